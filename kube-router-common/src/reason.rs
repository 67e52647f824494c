//! Why a packet was refused, and which way it went: closed sets, with the names that metrics, events and people see.

/// From the pod's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Out of the pod.
    Egress = 0,
    /// Into the pod.
    Ingress = 1,
}

impl Direction {
    pub const ALL: [Direction; 2] = [Direction::Egress, Direction::Ingress];

    pub const fn name(self) -> &'static str {
        match self {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        }
    }

    pub const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Direction::Egress),
            1 => Some(Direction::Ingress),
            _ => None,
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal $label:literal,)+) => {
        /// Why a packet was dropped or refused; [`Reason::Untracked`] alone is about packets that passed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $name = $number,)+
        }

        impl Reason {
            pub const ALL: &[Reason] = &[$(Reason::$name),+];

            /// As a label of metrics and in events.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$name => $label,)+
                }
            }

            pub const fn of(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Reason::$name),)+
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    /// No policy allows it.
    Denied = 1 "policy",
    /// The pod of this interface is not known yet, and default deny is on.
    Unpublished = 2 "unpublished",
    /// The source address is not the pod's.
    SourceAddress = 3 "source_address",
    /// The source hardware address is not the pod's.
    SourceMac = 4 "source_mac",
    /// ARP or neighbour discovery that claims what is not the pod's; where no pod is known, what is another's.
    Neighbour = 5 "neighbour",
    /// A VLAN tag.
    Vlan = 6 "vlan",
    /// Neither IPv4, IPv6 nor ARP.
    EtherType = 7 "ethertype",
    /// The packet ends before a header does.
    Truncated = 8 "truncated",
    /// Header fields that contradict each other, or a checksum that would be written over them.
    Malformed = 9 "malformed",
    /// An IPv4-mapped IPv6 address on the wire; in our tables it would be the IPv4 address.
    Mapped = 10 "mapped_address",
    /// IPv4 options, from or to a pod that a policy isolates.
    IpOptions = 11 "ip_options",
    /// An IPv6 header chain that is too long, or a routing header with hops to go.
    Extensions = 12 "extension_headers",
    /// A fragment that would overwrite the flags of a TCP header (RFC 3128).
    Fragment = 13 "fragment",
    /// The flow table has no room for another flow of this pod, and the replies would need an entry.
    TableFull = 14 "flow_table_full",
    /// Passed: allowed without an entry in the flow table, which has no room for it, as no reply needs one.
    Untracked = 15 "flow_table_full_untracked",
    /// To a local pod that is not behind this interface, or to an unknown address and another hardware address than that of its pod, which is isolated: a bridge flooded it.
    Elsewhere = 16 "not_this_pod",
    /// The program that was to judge it is not there, or was handed nothing: two agents of different versions were at work.
    Handover = 17 "handover",
    /// The endpoint of a flow on the fast path vanished while its policies were asked again.
    BackendGone = 18 "backend_gone",
}

impl Reason {
    /// Does the sender get an answer? Only where the packet itself was in order.
    pub const fn answers(self) -> bool {
        matches!(self, Reason::Denied | Reason::Unpublished)
    }

    pub const fn drops(self) -> bool {
        !matches!(self, Reason::Untracked)
    }
}

/// One more than the highest number.
pub const REASONS: usize = 19;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_come_back() {
        assert_eq!(Reason::ALL.len() + 1, REASONS);
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at + 1);
            assert_eq!(Reason::of(*reason as u8), Some(*reason));
        }
        assert_eq!(Reason::of(0), None);
        assert_eq!(Reason::of(REASONS as u8), None);
        for direction in Direction::ALL {
            assert_eq!(Direction::of(direction as u8), Some(direction));
        }
    }
}
