//! Counting packets by class. Each processor counts on its own; the agent adds up.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map, programs::TcContext};
use kube_router_common::{Traffic, TrafficClass};

use crate::kernel;

#[btf_map(name = "kr_traffic")]
static TRAFFIC: PerCpuArray<Traffic, { TrafficClass::COUNT }> = PerCpuArray::new();

#[inline(always)]
pub fn count(context: &TcContext) {
    let ethertype = kernel::ethertype(context);
    let protocol = TrafficClass::protocol_offset(ethertype).and_then(|offset| kernel::network_byte(context, offset));
    let class = TrafficClass::of(ethertype, protocol);
    if let Some(counters) = TRAFFIC.get_ptr_mut(class.index()) {
        let packet = Traffic { packets: 1, bytes: u64::from(context.len()) };
        kernel::add(counters, packet);
    }
}
