//! Access to packets and map values: the one place of this crate with unsafe code (besides what every BPF object must
//! hold: licence and panic handler).

use core::{
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_xadd},
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_fib_lookup as FibLookup, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_redir_neigh,
    },
    btf_maps::{HashMap, LpmTrie, ProgramArray, RingBuf},
    helpers::{
        bpf_fib_lookup, bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_sk_release,
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_load_bytes_relative,
        bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skc_lookup_tcp,
    },
    maps::lpm_trie::Key,
    programs::TcContext,
};
use kube_router_common::{
    balance::VipCount,
    config::RuleCount,
    event::{CAPTURE, Event, EventHead},
    flow::{Flow, FlowKey},
    hooks::{Began, Case, Count, Way},
    packet::{Ends, Piece, halves, protocol},
    policy::{Address, CidrKey, Peer},
};

/// What begins further on is not looked for in the linear part.
const LAST_AT_HAND: u32 = 255;

pub const REDIRECT_INGRESS: u64 = BPF_F_INGRESS as u64;

/// The packet's protocol (`ETH_P_*`, host byte order), for devices without a link-layer header too. The kernel has taken
/// one VLAN tag off what comes in; a second one reads as the tag's protocol.
#[inline(always)]
pub fn ethertype(context: &TcContext) -> u16 {
    // SAFETY: the kernel hands a valid `__sk_buff` to the program and the verifier lets this field be read.
    let protocol = unsafe { (*context.skb.skb).protocol };
    u16::from_be(protocol as u16)
}

#[inline(always)]
pub fn is_tagged(context: &TcContext) -> bool {
    // SAFETY: as in `ethertype`.
    unsafe { (*context.skb.skb).vlan_present != 0 }
}

/// The network of the tag that was taken off (VLAN_VID_MASK of include/linux/if_vlan.h).
#[inline(always)]
pub fn vlan(context: &TcContext) -> Option<u32> {
    // SAFETY: as in `ethertype`.
    is_tagged(context).then(|| unsafe { (*context.skb.skb).vlan_tci } & 0x0fff)
}

#[inline(always)]
pub fn ifindex(context: &TcContext) -> u32 {
    // SAFETY: as in `ethertype`.
    unsafe { (*context.skb.skb).ifindex }
}

#[inline(always)]
pub fn note(context: &TcContext) -> u16 {
    // SAFETY: as in `ethertype`.
    unsafe { (*context.skb.skb).tc_index as u16 }
}

#[inline(always)]
pub fn set_note(context: &TcContext, note: u16) {
    // SAFETY: as in `ethertype`; a classifier may write this field.
    unsafe { (*context.skb.skb).tc_index = u32::from(note) }
}

#[inline(always)]
pub fn mark(context: &TcContext) -> u32 {
    // SAFETY: as in `ethertype`.
    unsafe { (*context.skb.skb).mark }
}

#[inline(always)]
pub fn set_mark(context: &TcContext, mark: u32) {
    // SAFETY: as in `set_note`.
    unsafe { (*context.skb.skb).mark = mark }
}

/// Has it a socket, and none of IPv4 or IPv6? A veth without GRO or XDP leaves the packet its socket; what was forwarded,
/// cut into segments or comes from vhost has none (docs/packets.md, what is known to get past).
#[inline(always)]
pub fn has_foreign_socket(context: &TcContext) -> bool {
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    // SAFETY: as in `ethertype`; the verifier lets the socket's family be read once it is known to be there.
    unsafe {
        let socket = (*context.skb.skb).__bindgen_anon_2.sk;
        !socket.is_null() && !matches!((*socket).family, AF_INET | AF_INET6)
    }
}

/// Who began this TCP connection, as the sockets tell of the network namespace that this one knows by a number.
#[inline(always)]
pub fn who_began(context: &TcContext, netns: u32, key: &FlowKey) -> Began {
    const TCP_LISTEN: u32 = 10;
    let (peer, local) = (&key.peer.0, &key.local.0);
    let [high, low] = key.local_port.to_be_bytes();
    let [peer_high, peer_low] = key.peer_port.to_be_bytes();
    // Nobody calls from port 0, so that no connection is found instead of who listens.
    let nobody = u32::from_ne_bytes([0, 0, high, low]);
    let exact = u32::from_ne_bytes([peer_high, peer_low, high, low]);
    let word = |of: &[u8; 16], at: usize| u32::from_ne_bytes([of[at], of[at + 1], of[at + 2], of[at + 3]]);
    // `struct bpf_sock_tuple`: source, destination, their ports; of IPv4 the first three words. On the way in the peer is the source.
    let mut tuple = [0_u32; 9];
    let (length, ports) = if key.local.is_v4() {
        (tuple[0], tuple[1]) = (word(peer, 12), word(local, 12));
        (12, 2)
    } else {
        for at in 0..4 {
            (tuple[at], tuple[4 + at]) = (word(peer, 4 * at), word(local, 4 * at));
        }
        (36, 8)
    };
    tuple[ports] = nobody;
    if socket_state(context, netns, &mut tuple, length) == Some(TCP_LISTEN) {
        return Began::Peer;
    }
    tuple[ports] = exact;
    match socket_state(context, netns, &mut tuple, length) {
        None | Some(TCP_LISTEN) => Began::Unknown,
        Some(_) => Began::Pod,
    }
}

/// State (`TCP_*` of include/net/tcp_states.h) of the socket that a packet with these ends would get to.
#[inline(always)]
fn socket_state(context: &TcContext, netns: u32, tuple: &mut [u32; 9], length: u32) -> Option<u32> {
    // SAFETY: the helper reads as much of the tuple as it is told; what it returns is looked at only if there is
    // one, and given back.
    unsafe {
        let socket = bpf_skc_lookup_tcp(context.skb.skb.cast(), tuple.as_mut_ptr().cast(), length, u64::from(netns), 0);
        if socket.is_null() {
            return None;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        Some(state)
    }
}

/// Is the checksum left to the device that sends the packet (CHECKSUM_PARTIAL of include/linux/skbuff.h)? Then the helper
/// that keeps a transport checksum true leaves it alone; it is made to work on the packet's first two bytes, which are
/// written back. Without memory it does, too: then nothing can be cut either, and the packet goes.
#[inline(always)]
pub fn is_partial(context: &TcContext) -> bool {
    let skb = context.skb.skb;
    let Some(before) = bytes::<2>(context, 0) else { return true };
    // SAFETY: helpers check their arguments; the last says that the sum changes by a word, from 0 to 1.
    unsafe { bpf_l4_csum_replace(skb.cast(), 0, 0, 1, 4) };
    let after = bytes::<2>(context, 0);
    // SAFETY: the helper reads the two bytes.
    unsafe { bpf_skb_store_bytes(skb.cast(), 0, before.as_ptr().cast(), 2, 0) };
    after == Some(before)
}

/// Of a packet that leaves its checksum to the device: will that be written before byte `end`? A packet is not cut in front
/// of its checksum's end (`__bpf_skb_min_len` of net/core/filter.c); where it is cut, the answer is yes.
#[inline(always)]
pub fn is_written_before(context: &TcContext, end: u32) -> bool {
    const EINVAL: i64 = 22;
    // The checksum has two bytes: one that begins at `end` ends behind this.
    let length = end.saturating_add(1);
    // SAFETY: the helper checks its arguments; nothing holds on to what lay in the packet.
    unsafe { bpf_skb_change_tail(context.skb.skb.cast(), length, 0) != -EINVAL }
}

/// Bytes from the network header on, to their place; false if the packet ends before them.
#[inline(always)]
pub fn copy<const N: usize>(context: &TcContext, at: u32, to: &mut [u8; N]) -> bool {
    let to = to.as_mut_ptr().cast();
    // SAFETY: the helper writes no more than N bytes.
    unsafe { bpf_skb_load_bytes_relative(context.skb.skb.cast(), at, to, N as u32, BPF_HDR_START_NET) == 0 }
}

/// What any bytes are one of.
pub trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl<T: Plain, const N: usize> Plain for [T; N] {}

/// What lies `at` bytes behind the start of the packet, if that is in its linear part: a load, where a helper's call costs
/// some sixty instructions. The linear part may end with the link-layer header.
#[inline(always)]
pub fn at_hand<T: Plain>(context: &TcContext, at: u32) -> Option<T> {
    // The verifier wants to see a bound.
    if at > LAST_AT_HAND {
        return None;
    }
    let start = context.data() + at as usize;
    if start + size_of::<T>() > context.data_end() {
        return None;
    }
    // SAFETY: so many bytes are there, as the verifier checks, and any bytes will do. Where the processor cares about
    // alignment, the verifier does (it takes a network header as aligned to words, which NET_IP_ALIGN makes it there).
    Some(unsafe { (start as *const T).read() })
}

/// Makes the linear part reach so far; false if the packet does not, or there is no memory. Pages behind it may be shared with a pod, which could change them
/// after the verdict; the linear part is the kernel's own.
#[inline(always)]
pub fn bring(context: &TcContext, at: u32, length: usize) -> bool {
    // SAFETY: the helper checks its arguments; nothing holds on to what lay in the linear part.
    unsafe { bpf_skb_pull_data(context.skb.skb.cast(), at.saturating_add(length as u32)) == 0 }
}

/// What lies `at` bytes behind the start of the network header; `None` if the packet ends before that.
#[inline(always)]
pub fn network<T: Plain>(context: &TcContext, at: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let (to, length) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
    // SAFETY: the helper writes all bytes of the variable, or fails.
    let failed = unsafe { bpf_skb_load_bytes_relative(context.skb.skb.cast(), at, to, length, BPF_HDR_START_NET) };
    // SAFETY: it did not fail, and any bytes will do.
    (failed == 0).then(|| unsafe { value.assume_init() })
}

/// Bytes from the start of the packet on.
#[inline(always)]
pub fn bytes<const N: usize>(context: &TcContext, at: u32) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: the helper writes all N bytes, to a variable of N bytes, or fails.
    let failed = unsafe { bpf_skb_load_bytes(context.skb.skb.cast(), at, bytes.as_mut_ptr().cast(), N as u32) };
    // SAFETY: it did not fail.
    (failed == 0).then(|| unsafe { bytes.assume_init() })
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_ns() }
}

/// The same as of the latest tick, a few milliseconds ago at most; much cheaper.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A copy of an entry that only the agent writes. It replaces entries, so a copy may mix an old and a new one only while
/// the kernel reuses the memory of a deleted entry.
#[inline(always)]
pub fn get<K, V: Copy, const N: usize, const F: usize>(map: &HashMap<K, V, N, F>, key: &K) -> Option<V> {
    // SAFETY: entries of maps without preallocation stay readable until the program ends (RCU).
    unsafe { map.get(key) }.copied()
}

#[inline(always)]
pub fn longest<const N: usize>(map: &LpmTrie<[u8; 20], Peer, N>, key: &CidrKey) -> Option<Peer> {
    const { assert!(size_of::<Key<[u8; 20]>>() == size_of::<CidrKey>() && offset_of!(CidrKey, family) == 4) };
    // SAFETY: both are 32 bits followed by 20 bytes, as asserted, and `Key` asks for no alignment.
    let key = unsafe { &*core::ptr::from_ref(key).cast::<Key<[u8; 20]>>() };
    map.get(key).copied()
}

/// A map value in its place. Other processors may write it at the same time: every field is a plain number whose old and
/// new values both make sense.
#[inline(always)]
pub fn shared<V: 'static>(value: Option<*mut V>) -> Option<&'static mut V> {
    // SAFETY: the pointer comes from a lookup that succeeded; it is valid and aligned until the program ends.
    value.map(|value| unsafe { &mut *value })
}

/// Works on a map value in its place; see `shared`.
#[inline(always)]
pub fn with<V: 'static, R>(value: Option<*mut V>, work: impl FnOnce(&mut V) -> R) -> Option<R> {
    shared(value).map(work)
}

/// A value that this program alone uses until it ends.
#[inline(always)]
pub fn exclusive<V>(value: Option<*mut V>) -> Option<&'static mut V> {
    // SAFETY: the pointer comes from a lookup in a per-CPU array that succeeded, and programs at tc hooks do not interrupt
    // each other.
    value.map(|value| unsafe { &mut *value })
}

/// Adds a flow to counters that all processors share.
#[inline(always)]
pub fn add_shared(count: *mut RuleCount, bytes: u64) {
    // SAFETY: the pointer comes from a lookup in an array that succeeded; it is valid and aligned.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*count).flows, 1);
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*count).bytes, bytes);
    }
}

/// A connection to a virtual server.
#[inline(always)]
pub fn add_connection(count: *mut VipCount) {
    // SAFETY: as in `add_shared`.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*count).connections, 1);
    }
}

/// A packet to or from its backends.
#[inline(always)]
pub fn add_packet(count: *mut VipCount, is_answer: bool, length: u64) {
    // SAFETY: as in `add_shared`.
    unsafe {
        let (packets, bytes) = if is_answer {
            (&raw mut (*count).packets_out, &raw mut (*count).bytes_out)
        } else {
            (&raw mut (*count).packets_in, &raw mut (*count).bytes_in)
        };
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(packets, 1);
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(bytes, length);
    }
}

/// The number of the processor that runs this.
#[inline(always)]
pub fn processor() -> u32 {
    // SAFETY: asks for nothing.
    unsafe { bpf_get_smp_processor_id() }
}

/// The next number, of a counter that all processors share; two of them may now and then get the same one.
#[inline(always)]
pub fn take_turn(turns: Option<*mut u32>) -> u32 {
    let Some(turns) = turns else { return 0 };
    // SAFETY: as in `add_shared`.
    unsafe {
        let turn = turns.read_volatile();
        atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(turns, 1);
        turn
    }
}

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: asks for nothing.
    unsafe { bpf_get_prandom_u32() }
}

/// A number in a map that all processors share.
pub struct Shared(*mut i32);

impl Shared {
    #[inline(always)]
    pub fn of(value: Option<*mut i32>) -> Option<Self> {
        value.map(Shared)
    }
}

impl Count for Shared {
    #[inline(always)]
    fn get(&self) -> i32 {
        // SAFETY: as in `add_shared`.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn add(&self, number: i32) {
        // SAFETY: as in `add_shared`.
        unsafe {
            atomic_xadd::<i32, i32, { AtomicOrdering::Relaxed }>(self.0, number);
        }
    }
}

/// Writes a record with the packet's first bytes; loses it if the ring is full.
#[inline(always)]
pub fn record<const N: usize>(context: &TcContext, ring: &RingBuf<Event, N>, fill: impl FnOnce(&mut EventHead)) {
    let Some(mut entry) = ring.reserve(0) else { return };
    let event: *mut Event = entry.as_mut_ptr();
    let length = context.len();
    // SAFETY: the ring gave us room for one event, which is written as a whole before anything reads it.
    unsafe {
        // In pieces that the compiler writes out; a larger one is a loop over bytes.
        let packet: *mut [u8; CAPTURE / 2] = (&raw mut (*event).packet).cast();
        (&raw mut (*event).head).write_bytes(0, 1);
        packet.write_bytes(0, 1);
        packet.add(1).write_bytes(0, 1);
        fill(&mut (*event).head);
        (*event).head.time_ns = bpf_ktime_get_ns();
        if length > 0 {
            // Old verifiers do not learn from a comparison with zero that a number is none; from a mask and a sum they do.
            let last = black_box(if length > CAPTURE as u32 { CAPTURE as u32 } else { length } - 1);
            let captured = (last & (CAPTURE as u32 - 1)) + 1;
            if bpf_skb_load_bytes(context.skb.skb.cast(), 0, packet.cast(), captured) == 0 {
                (*event).head.captured = captured as u8;
            }
        }
    }
    entry.submit(0);
}

#[inline(always)]
pub fn tail_call<const N: usize>(context: &TcContext, programs: &ProgramArray<N>, place: u32) {
    // SAFETY: nothing of this program needs to be dropped.
    unsafe { programs.tail_call(context, place) }
}

/// Cuts the packet to `length` bytes, then makes room of `inserted` bytes behind the link-layer header. The first undoes
/// offloads that the kernel had planned for the packet, but not its checksum (see `kube_router_common::answer`).
#[inline(always)]
pub fn reshape(context: &TcContext, length: u32, inserted: i32) -> bool {
    // SAFETY: helpers check their arguments.
    unsafe {
        bpf_skb_change_tail(context.skb.skb.cast(), length, 0) == 0
            && bpf_skb_adjust_room(context.skb.skb.cast(), inserted, BPF_ADJ_ROOM_MAC, 0) == 0
    }
}

/// Writes the first `length` bytes over the start of the packet.
#[inline(always)]
pub fn store<const N: usize>(context: &TcContext, bytes: &[u8; N], length: usize) -> bool {
    let length = if length < N { length } else { N };
    // SAFETY: the helper reads no more than the array holds.
    unsafe { bpf_skb_store_bytes(context.as_ptr().cast(), 0, bytes.as_ptr().cast(), length as u32, 0) == 0 }
}

#[inline(always)]
pub fn redirect(ifindex: u32, flags: u64) -> i32 {
    // SAFETY: the helper notes where to; the kernel checks.
    unsafe { bpf_redirect(ifindex, flags) as i32 }
}

/// Bytes of an Ethernet header, which every pod's interface has.
const LINK: u32 = 14;
/// Bytes of a TCP header with all options.
const TCP_LONGEST: u32 = 60;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The question to the node's routes, from the packet's source to another destination, as if it were forwarded.
#[inline(always)]
fn question(context: &TcContext, ends: &Ends, to: &Address) -> FibLookup {
    // SAFETY: zeros are a valid one.
    let mut question: FibLookup = unsafe { MaybeUninit::zeroed().assume_init() };
    question.ifindex = ifindex(context);
    question.l4_protocol = ends.protocol;
    let (from, to) = (words(&ends.source), words(to));
    if ends.v4 {
        question.family = AF_INET;
        question.__bindgen_anon_3.ipv4_src = from[3];
        question.__bindgen_anon_4.ipv4_dst = to[3];
    } else {
        question.family = AF_INET6;
        question.__bindgen_anon_3.ipv6_src = from;
        question.__bindgen_anon_4.ipv6_dst = to;
    }
    question
}

const FOUND: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
const NO_NEIGHBOUR: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;

/// The interface through which the node sends to an address.
#[inline(always)]
pub fn route_of(context: &TcContext, ends: &Ends, to: &Address) -> Option<u32> {
    let mut question = question(context, ends, to);
    // SAFETY: the helper reads and writes as much as it is told.
    let answer = unsafe { bpf_fib_lookup(context.skb.skb.cast(), &raw mut question, size_of::<FibLookup>() as i32, 0) };
    matches!(answer, FOUND | NO_NEIGHBOUR).then_some(question.ifindex)
}

/// Sends the packet, whose destination is another one by now, where the node's routes lead. One that cannot go there, too
/// large or at its last hop, is the stack's, which knows how to cut it or what to tell its sender.
#[inline(always)]
fn route(context: &TcContext, case: &Case) -> i32 {
    let skb = context.skb.skb;
    let mut question = question(context, &case.ends, &case.way.address);
    question.__bindgen_anon_1.tot_len = largest(context, case);
    // SAFETY: helpers check their arguments, read and write as much as they are told.
    unsafe {
        let answer = bpf_fib_lookup(skb.cast(), &raw mut question, size_of::<FibLookup>() as i32, 0);
        if !matches!(answer, FOUND | NO_NEIGHBOUR) || case.ends.hop_limit <= 1 {
            return TC_ACT_UNSPEC;
        }
        if !hop(context, case) {
            return TC_ACT_SHOT;
        }
        if mark(context) != 0 {
            set_mark(context, 0);
        }
        // The kernel's neighbour table does the rest, so that a stale entry is asked about, as routing does.
        let mut hop: bpf_redir_neigh = MaybeUninit::zeroed().assume_init();
        hop.nh_family = u32::from(question.family);
        hop.__bindgen_anon_1.ipv6_nh = question.__bindgen_anon_4.ipv6_dst;
        bpf_redirect_neigh(question.ifindex, &raw mut hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

/// Bytes from the network header on; of what is cut into segments on its way (GSO), those of the longest segment, as
/// `skb_gso_network_seglen` of include/linux/skbuff.h counts them.
#[inline(always)]
fn largest(context: &TcContext, case: &Case) -> u16 {
    const UDP_HEADER: u32 = 8;
    // SAFETY: as in `ethertype`.
    let segment = unsafe { (*context.skb.skb).gso_size };
    if segment == 0 {
        return case.ends.total as u16;
    }
    let header = if case.t.protocol == protocol::TCP {
        // The header's length, in words, is the upper half of its 13th byte.
        let at = LINK.saturating_add(case.t.at).saturating_add(12);
        at_hand::<u16>(context, at).map_or(TCP_LONGEST, |word| u32::from(word.to_ne_bytes()[0] >> 4) * 4)
    } else {
        UDP_HEADER
    };
    (case.t.at + header + segment) as u16
}

/// One hop less to go, of more than one. False: half of it may be written.
#[inline(always)]
fn hop(context: &TcContext, case: &Case) -> bool {
    let (skb, left) = (context.skb.skb, case.ends.hop_limit);
    let (at, less) = (LINK + if case.ends.v4 { 8 } else { 7 }, left - 1);
    // SAFETY: helpers check their arguments; of IPv4 the byte is the first of a word of the checksum's.
    unsafe {
        let summed = !case.ends.v4 || {
            let word = |hops: u8| u64::from(u16::from_ne_bytes([hops, case.ends.protocol]));
            bpf_l3_csum_replace(skb.cast(), LINK + 10, word(left), word(less), 2) == 0
        };
        summed && bpf_skb_store_bytes(skb.cast(), at, (&raw const less).cast(), 1, 0) == 0
    }
}

/// Writes another address and port over one end of the packet, and keeps its checksums true. False: half of it may be written.
#[inline(always)]
fn rewrite(context: &TcContext, case: &Case) -> bool {
    const TCP_CHECK: u32 = 16;
    const UDP_CHECK: u32 = 6;
    let (skb, way, v4) = (context.skb.skb, &case.way, case.ends.v4);
    let is_source = way.rewrites == Way::SOURCE;
    let (before, port, port_at) = if is_source {
        (&case.ends.source, case.t.source_port, 0)
    } else {
        (&case.ends.destination, case.t.destination_port, 2)
    };
    let (old, new) = (words(before), words(&way.address));
    let address_at = LINK
        + match (v4, is_source) {
            (true, true) => 12,
            (true, false) => 16,
            (false, true) => 8,
            (false, false) => 24,
        };
    let ports_at = LINK.saturating_add(case.t.at);
    let (check_at, zero_is_none) = if case.t.protocol == protocol::TCP {
        (ports_at.saturating_add(TCP_CHECK), 0)
    } else {
        (ports_at.saturating_add(UDP_CHECK), BPF_F_MARK_MANGLED_0)
    };
    // A later fragment has addresses only.
    let has_transport = !matches!(case.t.piece, Piece::Later);
    let pseudo = u64::from(BPF_F_PSEUDO_HDR | zero_is_none);
    let (old_port, new_port) = (port.to_be(), way.port.to_be());
    // SAFETY: helpers check their arguments and read no more than they are told.
    unsafe {
        let mut failed = if v4 {
            let (from, to) = (u64::from(old[3]), u64::from(new[3]));
            bpf_l3_csum_replace(skb.cast(), LINK + 10, from, to, 4)
                | bpf_skb_store_bytes(skb.cast(), address_at, new[3..].as_ptr().cast(), 4, 0)
        } else {
            // Of a packet whose sum the card has taken whole the helpers below count the address where it does not count.
            let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
            bpf_skb_store_bytes(skb.cast(), address_at, new.as_ptr().cast(), 16, if has_transport { flags } else { 0 })
        };
        if has_transport {
            failed |= if v4 {
                bpf_l4_csum_replace(skb.cast(), check_at, u64::from(old[3]), u64::from(new[3]), pseudo | 4)
            } else {
                bpf_l4_csum_replace(skb.cast(), check_at, 0, u64::from(difference(&old, &new)), pseudo)
            };
        }
        if old_port != new_port && has_transport {
            let flags = u64::from(zero_is_none) | 2;
            failed |= bpf_l4_csum_replace(skb.cast(), check_at, u64::from(old_port), u64::from(new_port), flags)
                | bpf_skb_store_bytes(skb.cast(), ports_at.saturating_add(port_at), (&raw const new_port).cast(), 2, 0);
        }
        failed == 0
    }
}

/// Writes another address and port over one end of the packet that an ICMP error quotes, and over the error's destination if
/// it is the source; keeps all checksums true but the quoted transport header's, of which there may be no more than the
/// ports. False: half of it may be written.
#[inline(always)]
pub fn requote(context: &TcContext, case: &Case) -> bool {
    let (skb, way, v4) = (context.skb.skb, &case.way, case.ends.v4);
    let is_source = way.rewrites == Way::QUOTED_SOURCE;
    let message = LINK.saturating_add(case.t.at);
    let (check_at, quoted_at) = (message.saturating_add(2), message.saturating_add(8));
    let (destination_at, header) = if v4 { (16, 20) } else { (24, 40) };
    let address_at = quoted_at + if is_source { if v4 { 12 } else { 8 } } else { destination_at };
    let port_at = quoted_at + header + if is_source { 0 } else { 2 };
    let (old, new) = (words(&case.far), words(&way.address));
    let (old_port, new_port) = (case.far_port.to_be(), way.port.to_be());
    // SAFETY: helpers check their arguments and read no more than they are told.
    unsafe {
        let mut failed = if v4 {
            // The quoted header's own checksum makes up for the address in the message's.
            bpf_l3_csum_replace(skb.cast(), quoted_at + 10, u64::from(old[3]), u64::from(new[3]), 4)
                | bpf_skb_store_bytes(skb.cast(), address_at, new[3..].as_ptr().cast(), 4, 0)
        } else {
            bpf_l4_csum_replace(skb.cast(), check_at, 0, u64::from(difference(&old, &new)), 0)
                | bpf_skb_store_bytes(skb.cast(), address_at, new.as_ptr().cast(), 16, 0)
        };
        if old_port != new_port {
            failed |= bpf_l4_csum_replace(skb.cast(), check_at, u64::from(old_port), u64::from(new_port), 2)
                | bpf_skb_store_bytes(skb.cast(), port_at, (&raw const new_port).cast(), 2, 0);
        }
        if is_source {
            failed |= if v4 {
                bpf_l3_csum_replace(skb.cast(), LINK + 10, u64::from(old[3]), u64::from(new[3]), 4)
                    | bpf_skb_store_bytes(skb.cast(), LINK + destination_at, new[3..].as_ptr().cast(), 4, 0)
            } else {
                let pseudo = u64::from(BPF_F_PSEUDO_HDR);
                bpf_l4_csum_replace(skb.cast(), check_at, 0, u64::from(difference(&old, &new)), pseudo)
                    | bpf_skb_store_bytes(skb.cast(), LINK + destination_at, new.as_ptr().cast(), 16, 0)
            };
        }
        failed == 0
    }
}

/// As they lie in a packet.
#[inline(always)]
fn words(address: &Address) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.0;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

/// What a checksum grows by when the second takes the first one's place (`csum_partial` of include/net/checksum.h).
#[inline(always)]
fn difference(old: &[u32; 4], new: &[u32; 4]) -> u32 {
    let mut sum = 0_u64;
    for at in 0..4 {
        sum += u64::from(!old[at]) + u64::from(new[at]);
    }
    let folded = (sum & 0xffff_ffff) + (sum >> 32);
    (folded + (folded >> 32)) as u32
}

/// Hands the packet to the pod at the other end of a veth, as if it had come in there: past the bridge, which would have asked
/// for the pod's hardware address, and past everything that the node's end of the veth has.
#[inline(always)]
pub fn deliver(context: &TcContext, case: &Case) -> i32 {
    const PACKET_HOST: u32 = 0;
    let way = &case.way;
    if way.rewrites != 0 && !rewrite(context, case) {
        return TC_ACT_SHOT;
    }
    if way.ifindex == Flow::ROUTED {
        return route(context, case);
    }
    let mac = halves(way.mac);
    if mac != [0; 3] && at_hand::<[u16; 3]>(context, 0) != Some(mac) {
        // SAFETY: the helper reads the six bytes.
        let failed = unsafe { bpf_skb_store_bytes(context.skb.skb.cast(), 0, way.mac.as_ptr().cast(), 6, 0) };
        if failed != 0 {
            return TC_ACT_SHOT;
        }
    }
    if mark(context) != 0 {
        // It would cross into the pod (net/core/filter.c, skb_do_redirect), where what the node means by it means something else.
        set_mark(context, 0);
    }
    // SAFETY: helpers check their arguments. To the node's end the packet is somebody else's; there it is the pod's own.
    unsafe {
        bpf_skb_change_type(context.skb.skb.cast(), PACKET_HOST);
        bpf_redirect_peer(way.ifindex, 0) as i32
    }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
