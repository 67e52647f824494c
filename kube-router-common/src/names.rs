//! Names of maps and programs, as `bpftool` shows them. The kernel keeps 15 characters (BPF_OBJ_NAME_LEN).
//!
//! The BPF crate cannot use these constants where an attribute or a function names the thing; the agent's test of the
//! object's contents holds the two together.

/// Hash: [`crate::policy::Address`] of a local pod to [`crate::policy::Endpoint`].
pub const ENDPOINTS: &str = "kr_eps";
/// Array: number of a pod to [`crate::policy::PodGroups`].
pub const PODS: &str = "kr_pods";
/// Hash: interface index to [`crate::config::Iface`].
pub const IFACES: &str = "kr_ifaces";
/// Hash: [`crate::policy::Address`] to [`crate::policy::Peer`].
pub const PEERS: &str = "kr_peers";
/// Trie: [`crate::policy::CidrKey`] to [`crate::policy::Peer`].
pub const CIDRS: &str = "kr_cidrs";
/// Hash: [`crate::policy::ServiceKey`] to [`crate::policy::Service`].
pub const SERVICES: &str = "kr_services";
/// Hash: [`crate::policy::ServiceKey`] to [`crate::balance::Vip`].
pub const VIPS: &str = "kr_vips";
/// Hash: [`crate::balance::RingKey`] to the number of a backend.
pub const RINGS: &str = "kr_rings";
/// Array: number of a backend to [`crate::balance::Backend`].
pub const BACKENDS: &str = "kr_backends";
/// Array: number of a backend to its active connections, an `i32`.
pub const ACTIVES: &str = "kr_actives";
/// Array: number of a virtual server to turns taken, a `u32`.
pub const TURNS: &str = "kr_turns";
/// Connections, packets and bytes of virtual servers.
pub const VIP_COUNTS: &str = "kr_vip_counts";
/// Array: [`crate::policy::port_index`] to port class.
pub const PORTS: &str = "kr_ports";
/// Hash: [`crate::policy::PolicyKey`] to [`crate::policy::PolicyRow`].
pub const POLICY: &str = "kr_policy";
/// Array: number of a rule to [`crate::config::RuleCount`].
pub const RULES: &str = "kr_rules";
/// Hash: [`crate::flow::FlowKey`] to [`crate::flow::Flow`].
pub const FLOWS: &str = "kr_flows";
/// Array: number of a pod to its rows in [`FLOWS`], an `i32`; [`crate::flow::ALL_PODS`] to all of them.
pub const FLOW_COUNTS: &str = "kr_flow_counts";
/// LRU hash: [`crate::config::FragKey`] to [`crate::config::FragPorts`].
pub const FRAGS: &str = "kr_frags";
/// Array: number of a pod to [`crate::config::Origin`].
pub const ORIGINS: &str = "kr_origins";
/// Per-CPU hash: [`crate::config::DropKey`] to [`crate::Traffic`].
pub const DROPS: &str = "kr_drops";
/// Per-CPU array of [`crate::event::Bucket`].
pub const BUCKETS: &str = "kr_buckets";
/// Ring buffer of [`crate::event::Event`].
pub const EVENTS: &str = "kr_events";
/// Array of one [`crate::config::Config`].
pub const CONFIG: &str = "kr_config";
/// Programs that others go on with: [`TAIL_PROGRAMS`].
pub const TAILS: &str = "kr_tails";

/// Per-CPU array: the packet at hand, [`crate::hooks::Case`]. The programs' own.
pub const CASE: &str = "kr_case";

pub const MAPS: [&str; 25] = [
    ENDPOINTS,
    PODS,
    IFACES,
    PEERS,
    CIDRS,
    SERVICES,
    VIPS,
    RINGS,
    BACKENDS,
    ACTIVES,
    TURNS,
    VIP_COUNTS,
    PORTS,
    POLICY,
    RULES,
    FLOWS,
    FLOW_COUNTS,
    FRAGS,
    ORIGINS,
    DROPS,
    BUCKETS,
    EVENTS,
    CONFIG,
    TAILS,
    CASE,
];

/// At the node's end of a pod's veth, ingress: what the pod sends.
pub const POD_OUT: &str = "kr_pod_out";
/// The same, egress: what the pod gets.
pub const POD_IN: &str = "kr_pod_in";
/// At uplinks and tunnels.
pub const UPLINK_IN: &str = "kr_uplink_in";
pub const UPLINK_OUT: &str = "kr_uplink_out";
/// Answers out of the interface through which the packet came.
pub const ANSWER_BACK: &str = "kr_answer_back";
/// Answers as if the answer had come in through the interface through which the packet would have gone.
pub const ANSWER_IN: &str = "kr_answer_in";

/// Goes on with [`POD_OUT`] where there is no live flow.
pub const JUDGE_OUT: &str = "kr_judge_out";
/// The same with [`POD_IN`].
pub const JUDGE_IN: &str = "kr_judge_in";

/// Goes on with [`JUDGE_OUT`] where a flow may take the short way.
pub const PAIR_OUT: &str = "kr_pair_out";

/// The same where a backend is to be chosen.
pub const BALANCE_OUT: &str = "kr_balance_out";

/// Goes on with [`POD_OUT`] or [`POD_IN`] where an ICMP error quotes a packet whose addresses were translated.
pub const REQUOTE: &str = "kr_requote";

pub const PROGRAMS: [&str; 11] = [
    POD_OUT,
    POD_IN,
    UPLINK_IN,
    UPLINK_OUT,
    ANSWER_BACK,
    ANSWER_IN,
    JUDGE_OUT,
    JUDGE_IN,
    PAIR_OUT,
    BALANCE_OUT,
    REQUOTE,
];

/// Places in [`TAILS`], each with its program.
pub const TAIL_ANSWER_BACK: u32 = 0;
pub const TAIL_ANSWER_IN: u32 = 1;
pub const TAIL_JUDGE_OUT: u32 = 2;
pub const TAIL_JUDGE_IN: u32 = 3;
pub const TAIL_PAIR_OUT: u32 = 4;
pub const TAIL_BALANCE_OUT: u32 = 5;
pub const TAIL_REQUOTE: u32 = 6;
pub const TAIL_PROGRAMS: [(u32, &str); 7] = [
    (TAIL_ANSWER_BACK, ANSWER_BACK),
    (TAIL_ANSWER_IN, ANSWER_IN),
    (TAIL_JUDGE_OUT, JUDGE_OUT),
    (TAIL_JUDGE_IN, JUDGE_IN),
    (TAIL_PAIR_OUT, PAIR_OUT),
    (TAIL_BALANCE_OUT, BALANCE_OUT),
    (TAIL_REQUOTE, REQUOTE),
];
pub const TAIL_COUNT: u32 = TAIL_PROGRAMS.len() as u32;
/// There is none in this place, and a packet that would go on there ends.
pub const NO_TAIL: u32 = TAIL_COUNT;

/// What the kernel keeps of a name.
pub const LONGEST: usize = 15;

const fn fits(names: &[&str]) -> bool {
    let mut at = 0;
    while at < names.len() {
        if names[at].len() > LONGEST {
            return false;
        }
        at += 1;
    }
    true
}

const _: () = assert!(fits(&MAPS) && fits(&PROGRAMS));
