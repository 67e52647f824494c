//! The maps. What they mean is said by `kube_router_common::{policy, balance, config, flow, event}`.
//!
//! Large tables are allocated entry by entry (BPF_F_NO_PREALLOC): a small cluster does not pay for the largest.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf},
    macros::btf_map,
};
use kube_router_common::{
    Traffic,
    balance::{Backend, COUNT_SHARDS, MAX_BACKENDS, MAX_SLOTS, MAX_VIPS, RingKey, Vip, VipCount},
    config::{Config, DEFAULT_FRAGS, DEFAULT_IFACES, DropKey, FragKey, FragPorts, Iface, Origin, RuleCount},
    event::{BUCKETS as BUCKET_COUNT, Bucket, Event, RING_BYTES},
    flow::{Flow, FlowKey},
    hooks::Case,
    names::TAIL_COUNT,
    policy::{
        Address, DEFAULT_CIDRS, DEFAULT_DROPS, DEFAULT_ENDPOINTS, DEFAULT_FLOWS, DEFAULT_PEERS, DEFAULT_ROWS,
        DEFAULT_SERVICES, Endpoint, MAX_PODS, MAX_RULES, PORT_ENTRIES, Peer, PodGroups, PolicyKey, PolicyRow, Service,
        ServiceKey,
    },
};

use crate::kernel;

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "kr_eps")]
pub static ENDPOINTS: HashMap<Address, Endpoint, { DEFAULT_ENDPOINTS as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "kr_pods")]
pub static PODS: Array<PodGroups, { MAX_PODS as usize }> = Array::new();
#[btf_map(name = "kr_ifaces")]
pub static IFACES: HashMap<u32, Iface, { DEFAULT_IFACES as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "kr_peers")]
pub static PEERS: HashMap<Address, Peer, { DEFAULT_PEERS as usize }, SPARSE> = HashMap::new();
/// The key is `CidrKey`: its length, then family and address.
#[btf_map(name = "kr_cidrs")]
pub static CIDRS: LpmTrie<[u8; 20], Peer, { DEFAULT_CIDRS as usize }> = LpmTrie::new();
#[btf_map(name = "kr_services")]
pub static SERVICES: HashMap<ServiceKey, Service, { DEFAULT_SERVICES as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "kr_vips")]
pub static VIPS: HashMap<ServiceKey, Vip, { MAX_VIPS as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "kr_rings")]
pub static RINGS: HashMap<RingKey, u32, { MAX_SLOTS as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "kr_backends")]
pub static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }> = Array::new();
/// Added to by all processors.
#[btf_map(name = "kr_actives")]
pub static ACTIVES: Array<i32, { MAX_BACKENDS as usize }> = Array::new();
#[btf_map(name = "kr_turns")]
pub static TURNS: Array<u32, { MAX_VIPS as usize }> = Array::new();
#[btf_map(name = "kr_vip_counts")]
pub static VIP_COUNTS: Array<VipCount, { (MAX_VIPS * COUNT_SHARDS) as usize }> = Array::new();
#[btf_map(name = "kr_ports")]
pub static PORTS: Array<u32, { PORT_ENTRIES as usize }> = Array::new();
#[btf_map(name = "kr_policy")]
pub static POLICY: HashMap<PolicyKey, PolicyRow, { DEFAULT_ROWS as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "kr_rules")]
pub static RULES: Array<RuleCount, { MAX_RULES as usize }> = Array::new();
#[btf_map(name = "kr_flows")]
pub static FLOWS: HashMap<FlowKey, Flow, { DEFAULT_FLOWS as usize }, SPARSE> = HashMap::new();
/// Read and added to by all processors; the agent counts again from time to time.
#[btf_map(name = "kr_flow_counts")]
pub static FLOW_COUNTS: Array<i32, { MAX_PODS as usize }> = Array::new();
#[btf_map(name = "kr_frags")]
pub static FRAGS: LruHashMap<FragKey, FragPorts, { DEFAULT_FRAGS as usize }> = LruHashMap::new();
#[btf_map(name = "kr_origins")]
pub static ORIGINS: Array<Origin, { MAX_PODS as usize }> = Array::new();
#[btf_map(name = "kr_drops")]
pub static DROPS: PerCpuHashMap<DropKey, Traffic, { DEFAULT_DROPS as usize }, SPARSE> = PerCpuHashMap::new();
#[btf_map(name = "kr_buckets")]
pub static BUCKETS: PerCpuArray<Bucket, BUCKET_COUNT> = PerCpuArray::new();
#[btf_map(name = "kr_events")]
pub static EVENTS: RingBuf<Event, { RING_BYTES as usize }> = RingBuf::new();
#[btf_map(name = "kr_config")]
pub static CONFIG: Array<Config, 1> = Array::new();
#[btf_map(name = "kr_tails")]
pub static TAILS: ProgramArray<{ TAIL_COUNT as usize }> = ProgramArray::new();

/// A packet's case, outside of the stack. Programs at tc hooks run to their end on a processor, one after the other.
#[btf_map(name = "kr_case")]
static CASE: PerCpuArray<Case, 1> = PerCpuArray::new();

#[inline(always)]
pub fn case() -> Option<&'static mut Case> {
    kernel::exclusive(CASE.get_ptr_mut(0))
}
