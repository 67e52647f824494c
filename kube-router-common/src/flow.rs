//! Live flows of pods: the table's layout, the states of TCP, and when an entry is over.
//!
//! Every pod has entries of its own, written from its point of view; a connection between two pods of a node has two. An
//! entry counts for the pod that it names only, whoever has the address later.
//! States and times are those of the kernel's connection tracking (net/netfilter/nf_conntrack_proto_*.c), which is what
//! people have tuned their applications for.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{packet::protocol, policy::Address};

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowKey {
    /// The pod's address.
    pub local: Address,
    pub peer: Address,
    /// Of an ICMP echo both ports are its identifier; of a protocol without ports, 0.
    pub local_port: u16,
    pub peer_port: u16,
    pub protocol: u8,
    /// [`FlowKey::POD`] or [`FlowKey::BEHIND`].
    pub kind: u8,
    pub pad: u16,
}

impl FlowKey {
    /// The same flow as the other pod of the node has it, `flow` being this one's entry.
    #[inline(always)]
    pub const fn turned(&self, flow: &Flow) -> FlowKey {
        let mut key = FlowKey {
            local: self.peer,
            peer: self.local,
            local_port: self.peer_port,
            peer_port: self.local_port,
            protocol: self.protocol,
            kind: FlowKey::POD,
            pad: 0,
        };
        if flow.is(Flow::NAT) {
            let is_routed = flow.to_ifindex == Flow::ROUTED;
            if is_routed || self.kind == FlowKey::NET {
                // The same pod has both.
                (key.local, key.local_port) = (self.local, self.local_port);
                (key.peer, key.peer_port) = (flow.to, flow.to_port);
                key.kind = if is_routed { FlowKey::NET } else { FlowKey::POD };
            } else if flow.is(Flow::FROM_POD) {
                (key.local, key.local_port) = (flow.to, flow.to_port);
            } else {
                (key.peer, key.peer_port) = (flow.to, flow.to_port);
            }
        }
        key
    }

    /// What the pod itself sends and gets.
    pub const POD: u8 = 0;
    /// Egress verdict of a flow to a service, with the endpoint that the load balancer chose; `local` is as the packet
    /// has it by then, so it may be the node's.
    pub const BEHIND: u8 = 1;
    /// What a service's backend on another node answers, as it comes from the network.
    pub const NET: u8 = 2;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// Seconds of CLOCK_MONOTONIC.
    pub last_seen_s: u32,
    /// [`crate::config::Config::generation`] when it was judged.
    pub generation: u32,
    /// Where it was met: with [`FlowKey::POD`] the node's end of the pod's veth.
    pub ifindex: u32,
    /// Who is judged; see `hooks::track`.
    pub pod: u32,
    /// The peer's, when it was judged.
    pub class: u32,
    /// The rule that allowed it.
    pub rule: u32,
    /// With [`Flow::FAST`]: the node's end of the other pod's veth, or [`Flow::ROUTED`].
    pub to_ifindex: u32,
    /// With [`Flow::NAT`]: whom the service's scheduler chose, a number in `kr_backends`.
    pub backend: u32,
    /// With [`Flow::NAT`]: what is written over the destination of a packet from who began the flow, and over the source of one
    /// from who answers.
    pub to: Address,
    pub to_port: u16,
    /// `Flow::FROM_POD` and the others.
    pub flags: u16,
    /// [`Tcp`]; 0 for other protocols.
    pub state: u8,
    pub pad: [u8; 3],
}

impl Flow {
    /// The pod sent the first packet; otherwise the peer did.
    pub const FROM_POD: u16 = 1;
    /// To a service's address: the egress verdict falls behind the load balancer, for every packet.
    pub const PENDING: u16 = 2;
    /// Packets went both ways.
    pub const REPLIED: u16 = 4;
    /// The pod is isolated in the direction of the replies: without this entry they would be judged.
    pub const NEEDED: u16 = 8;
    /// The peer was masqueraded; `class` is that of the real one.
    pub const MASQUERADED: u16 = 16;
    /// From the pod to itself, through a service: allowed whatever the policies.
    pub const OWN: u16 = 32;
    /// The policies came to forbid it: nothing passes by it. Every packet is judged, should they allow it again.
    pub const REFUSED: u16 = 64;
    /// Handed to the other pod at once, past the stack; see `hooks::fast`. The other direction has an entry of its own, the other
    /// pod's: each sees half of the packets, and tells the other what changes it.
    pub const FAST: u16 = 128;
    /// With [`Flow::FAST`]: to a service, whose address the packets have on the side of the pod that began it, and the
    /// backend's on the other.
    pub const NAT: u16 = 256;
    /// To a service, and no backend could be chosen for it here: IPVS has the flow and keeps it.
    pub const IPVS: u16 = 512;
    /// No interface's index: wherever the node's routes lead.
    pub const ROUTED: u32 = u32::MAX;

    #[inline(always)]
    pub const fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Notes a packet of this flow. `from_initiator`: in the direction of the first packet. Returns whether anything
    /// changed.
    #[inline(always)]
    pub fn see(&mut self, protocol: u8, tcp_flags: u8, from_initiator: bool, now_s: u32) -> bool {
        let before = (self.last_seen_s, self.flags, self.state);
        self.last_seen_s = now_s;
        if !from_initiator {
            self.flags |= Flow::REPLIED;
        }
        if protocol == protocol::TCP {
            self.state = Tcp::next(self.state, tcp_flags, from_initiator);
        }
        before != (self.last_seen_s, self.flags, self.state)
    }

    /// Seconds without packets after which the flow is over.
    #[inline(always)]
    pub const fn timeout_s(&self, protocol: u8) -> u32 {
        let replied = self.is(Flow::REPLIED);
        match protocol {
            // More than twice the longest wait before a segment is sent again (TCP_RTO_MAX of include/net/tcp.h).
            protocol::TCP if self.is(Flow::REFUSED) => 300,
            protocol::TCP => match self.state {
                Tcp::SYN_SENT => 120,
                Tcp::SYN_RECV => 60,
                // Picked up in the middle and never answered: as the kernel's nf_conntrack_tcp_timeout_unacknowledged.
                Tcp::ESTABLISHED if !replied => 300,
                Tcp::ESTABLISHED => 432_000,
                Tcp::FIN_WAIT => 120,
                Tcp::CLOSE_WAIT => 60,
                Tcp::LAST_ACK => 30,
                Tcp::TIME_WAIT => 120,
                _ => 10,
            },
            // As long as IPVS knows one, or it would move to another backend.
            protocol::UDP if self.is(Flow::NAT) || self.is(Flow::IPVS) => 300,
            protocol::UDP if replied => 120,
            protocol::UDP => 30,
            protocol::SCTP if replied => 210,
            protocol::SCTP => 30,
            protocol::ICMP | protocol::ICMPV6 => 30,
            _ => 600,
        }
    }

    /// Does it count among its backend's active connections? IPVS asks the same (`tcp_state_active_table` of ip_vs_proto_tcp.c):
    /// what closes does not, and what has no states always does.
    #[inline(always)]
    pub const fn is_active(&self, protocol: u8) -> bool {
        protocol != protocol::TCP || Tcp::is_active(self.state)
    }

    /// Is it over? Clocks of processors may differ a little: the future is now.
    #[inline(always)]
    pub const fn is_over(&self, protocol: u8, now_s: u32) -> bool {
        now_s.saturating_sub(self.last_seen_s) > self.timeout_s(protocol)
    }
}

/// In `kr_flow_counts`: the entries of all pods. No pod has this number.
pub const ALL_PODS: u32 = 0;

/// May a pod with `own` entries have another one, where all pods together have `all` and `most` fit? While it has fewer
/// than there are free places: the dynamic threshold of Choudhury and Hahne for a buffer that many queues share (IEEE/ACM
/// Transactions on Networking 6(2), 1998), with their factor 1. One pod gets half of the table, two that flood a third
/// each, n of them 1/(n + 1), and as much stays free for everybody else. Counts may be off by a few, and below zero, until
/// the agent counts again.
#[inline(always)]
pub const fn has_place(own: i32, all: i32, most: u32, want: Want) -> bool {
    most == 0 || (own as i64) * (want as i64) < most as i64 - all as i64
}

impl Want {
    /// Of a pod that some policy is about, or none; `needed`: the replies would be judged.
    #[inline(always)]
    pub const fn of(isolated: bool, needed: bool) -> Want {
        match (isolated, needed) {
            (false, _) => Want::Unasked,
            (true, true) => Want::Needed,
            (true, false) => Want::Spares,
        }
    }
}

/// How many free places there must be for each entry that the pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Want {
    /// Without the entry, replies would be refused.
    Needed = 1,
    /// It only spares later packets a verdict: those that are needed are not to wait for it.
    Spares = 2,
    /// No policy let it through: whoever asks a pod for an echo gets one, and of pods that nothing isolates all are known
    /// only because that may change. The other entries are worth more.
    Unasked = 16,
}

const _: () = assert!(size_of::<FlowKey>() == 40 && size_of::<Flow>() == 56);

/// States of a TCP connection, with the meaning they have in nf_conntrack_proto_tcp.c.
pub struct Tcp;

impl Tcp {
    pub const NONE: u8 = 0;
    pub const SYN_SENT: u8 = 1;
    pub const SYN_RECV: u8 = 2;
    pub const ESTABLISHED: u8 = 3;
    pub const FIN_WAIT: u8 = 4;
    pub const CLOSE_WAIT: u8 = 5;
    pub const LAST_ACK: u8 = 6;
    pub const TIME_WAIT: u8 = 7;
    pub const CLOSE: u8 = 8;

    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;

    pub const fn name(state: u8) -> &'static str {
        match state {
            Tcp::NONE => "none",
            Tcp::SYN_SENT => "syn-sent",
            Tcp::SYN_RECV => "syn-recv",
            Tcp::ESTABLISHED => "established",
            Tcp::FIN_WAIT => "fin-wait",
            Tcp::CLOSE_WAIT => "close-wait",
            Tcp::LAST_ACK => "last-ack",
            Tcp::TIME_WAIT => "time-wait",
            Tcp::CLOSE => "close",
            _ => "unknown",
        }
    }

    /// Opening or open.
    #[inline(always)]
    pub const fn is_active(state: u8) -> bool {
        matches!(state, Tcp::SYN_SENT | Tcp::SYN_RECV | Tcp::ESTABLISHED)
    }

    /// Does this packet ask for a new connection?
    #[inline(always)]
    pub const fn opens(flags: u8) -> bool {
        flags & (Tcp::SYN | Tcp::ACK | Tcp::RST) == Tcp::SYN
    }

    /// Does it accept one?
    #[inline(always)]
    pub const fn accepts(flags: u8) -> bool {
        flags & (Tcp::SYN | Tcp::ACK | Tcp::RST) == Tcp::SYN | Tcp::ACK
    }

    /// The state after a packet. Sequence numbers are not looked at: what a forged packet can do is to make an entry
    /// end early, and then the next packet is judged anew.
    #[inline(always)]
    pub const fn next(state: u8, flags: u8, from_initiator: bool) -> u8 {
        let (syn, ack, fin) = (flags & Tcp::SYN != 0, flags & Tcp::ACK != 0, flags & Tcp::FIN != 0);
        if flags & Tcp::RST != 0 {
            return Tcp::CLOSE;
        }
        if syn && !ack {
            // A connection anew, or the first packet again.
            return match state {
                Tcp::SYN_RECV | Tcp::ESTABLISHED | Tcp::FIN_WAIT | Tcp::CLOSE_WAIT | Tcp::LAST_ACK => state,
                _ => Tcp::SYN_SENT,
            };
        }
        if syn {
            return match state {
                Tcp::NONE | Tcp::SYN_SENT if !from_initiator => Tcp::SYN_RECV,
                Tcp::NONE => Tcp::ESTABLISHED,
                _ => state,
            };
        }
        if fin {
            return match state {
                Tcp::FIN_WAIT | Tcp::CLOSE_WAIT | Tcp::LAST_ACK => Tcp::LAST_ACK,
                Tcp::TIME_WAIT | Tcp::CLOSE => state,
                _ => Tcp::FIN_WAIT,
            };
        }
        if ack {
            return match state {
                Tcp::NONE => Tcp::ESTABLISHED,
                Tcp::SYN_RECV if from_initiator => Tcp::ESTABLISHED,
                Tcp::FIN_WAIT => Tcp::CLOSE_WAIT,
                Tcp::LAST_ACK => Tcp::TIME_WAIT,
                _ => state,
            };
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u8 = Tcp::SYN;
    const ACK: u8 = Tcp::ACK;
    const FIN: u8 = Tcp::FIN | Tcp::ACK;
    const RST: u8 = Tcp::RST;

    /// Packets (flags, from the initiator?) and the states after each.
    fn walk(start: u8, packets: &[(u8, bool, u8)]) {
        let mut state = start;
        for (at, (flags, initiator, then)) in packets.iter().enumerate() {
            state = Tcp::next(state, *flags, *initiator);
            assert_eq!(Tcp::name(state), Tcp::name(*then), "packet {at}");
        }
    }

    #[test]
    fn a_connection_opens_and_both_sides_close() {
        walk(
            Tcp::NONE,
            &[
                (SYN, true, Tcp::SYN_SENT),
                (SYN, true, Tcp::SYN_SENT),
                (SYN | ACK, false, Tcp::SYN_RECV),
                (ACK, false, Tcp::SYN_RECV),
                (ACK, true, Tcp::ESTABLISHED),
                (ACK, false, Tcp::ESTABLISHED),
                (SYN, true, Tcp::ESTABLISHED),
                (FIN, false, Tcp::FIN_WAIT),
                (ACK, true, Tcp::CLOSE_WAIT),
                (ACK, true, Tcp::CLOSE_WAIT),
                (FIN, true, Tcp::LAST_ACK),
                (ACK, false, Tcp::TIME_WAIT),
                (ACK, false, Tcp::TIME_WAIT),
                (SYN, true, Tcp::SYN_SENT),
            ],
        );
    }

    #[test]
    fn a_reset_closes_from_anywhere_and_a_picked_up_one_is_established() {
        for state in 0..=8 {
            assert_eq!(Tcp::next(state, RST, false), Tcp::CLOSE);
        }
        walk(Tcp::NONE, &[(ACK, false, Tcp::ESTABLISHED), (RST | ACK, true, Tcp::CLOSE), (ACK, true, Tcp::CLOSE)]);
        walk(Tcp::NONE, &[(SYN | ACK, false, Tcp::SYN_RECV), (ACK, true, Tcp::ESTABLISHED)]);
        walk(Tcp::NONE, &[(FIN, true, Tcp::FIN_WAIT), (FIN, false, Tcp::LAST_ACK), (0, false, Tcp::LAST_ACK)]);
    }

    #[test]
    fn only_a_bare_syn_opens() {
        for (flags, opens) in [(SYN, true), (SYN | 8, true), (SYN | ACK, false), (ACK, false), (SYN | RST, false)] {
            assert_eq!(Tcp::opens(flags), opens, "{flags:#x}");
        }
    }

    #[test]
    fn entries_end_when_the_kernels_would() {
        let flow = |state, flags| Flow { last_seen_s: 1000, state, flags, ..Flow::default() };
        for (protocol, flow, lasts_s) in [
            (6, flow(Tcp::SYN_SENT, 0), 120),
            (6, flow(Tcp::SYN_RECV, Flow::REPLIED), 60),
            (6, flow(Tcp::ESTABLISHED, Flow::REPLIED), 432_000),
            (6, flow(Tcp::ESTABLISHED, 0), 300),
            (6, flow(Tcp::FIN_WAIT, Flow::REPLIED), 120),
            (6, flow(Tcp::CLOSE_WAIT, Flow::REPLIED), 60),
            (6, flow(Tcp::LAST_ACK, Flow::REPLIED), 30),
            (6, flow(Tcp::TIME_WAIT, Flow::REPLIED), 120),
            (6, flow(Tcp::CLOSE, Flow::REPLIED), 10),
            (17, flow(0, 0), 30),
            (17, flow(0, Flow::REPLIED), 120),
            (132, flow(0, Flow::REPLIED), 210),
            (1, flow(0, 0), 30),
            (47, flow(0, 0), 600),
            (6, flow(Tcp::ESTABLISHED, Flow::REPLIED | Flow::REFUSED), 300),
            (17, flow(0, Flow::REPLIED | Flow::REFUSED), 120),
        ] {
            assert!(!flow.is_over(protocol, 1000 + lasts_s), "{protocol} {flow:?}");
            assert!(flow.is_over(protocol, 1001 + lasts_s), "{protocol} {flow:?}");
            assert!(!flow.is_over(protocol, 0), "clocks differ");
        }
    }

    /// Pods that add wherever they may, in turns; what each has in the end.
    fn flood<const N: usize>(most: u32, mut own: [i32; N]) -> [i32; N] {
        loop {
            let before = own;
            for pod in 0..N {
                own[pod] += i32::from(has_place(own[pod], own.iter().sum(), most, Want::Needed));
            }
            if own == before {
                return own;
            }
        }
    }

    #[test]
    fn places_are_shared_and_some_stay_free() {
        assert_eq!(flood(1_000, [0]), [500]);
        assert_eq!(flood(1_000, [0, 0]), [334, 333]);
        assert_eq!(flood(1_000, [500, 0]), [500, 250], "who comes later gets half of what is left");
        assert_eq!(flood(1_000, [0; 9]).iter().sum::<i32>(), 900);
        let has_place = |own, all, most| super::has_place(own, all, most, Want::Needed);
        assert!(has_place(0, 999, 1_000) && !has_place(0, 1_000, 1_000) && !has_place(0, 0x7fff_ffff, 1_000));
        assert!(has_place(-3, -3, 1) && has_place(i32::MAX, i32::MAX, 0), "a limit that is not known is none");
        // Alone: half of the table for what is needed, a third for what spares work, a seventeenth for what no policy let through.
        let most_of = |want| (0..).find(|own| !super::has_place(*own, *own, 1_020, want));
        assert_eq!([Want::Needed, Want::Spares, Want::Unasked].map(most_of), [510, 340, 60].map(Some));
    }

    #[test]
    fn seeing_a_packet_says_whether_the_entry_changed() {
        let mut flow = Flow { last_seen_s: 5, state: Tcp::ESTABLISHED, flags: Flow::REPLIED, ..Flow::default() };
        assert!(!flow.see(6, ACK, true, 5));
        assert!(flow.see(6, ACK, true, 6));
        assert!(flow.see(6, FIN, true, 6));
        let mut flow = Flow { last_seen_s: 5, ..Flow::default() };
        assert!(!flow.see(17, 0, true, 5));
        assert!(flow.see(17, 0, false, 5) && flow.is(Flow::REPLIED));
    }
}
