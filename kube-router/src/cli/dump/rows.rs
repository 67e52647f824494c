//! Lines of the tables: what one row of a map says, in columns for people and in fields for programs.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use kube_router_common::{
    balance::Backend,
    flow::{Flow, FlowKey, Tcp},
    policy::{Address, CLOSED, Endpoint, NOT_ISOLATED, PodGroups, PolicyKey, PolicyRow, ServiceKey},
};
use serde::Serialize;

use crate::{
    compile::policy::ip_of, desired::policy::Direction, explain::PolicyNames, objects::Protocol,
    observe::monitor::protocol_name,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointLine {
    pub pod: String,
    pub number: u32,
    pub address: IpAddr,
    pub ifindex: u32,
    pub mac: String,
    /// 0: no policy isolates the pod.
    pub ingress_group: u32,
    pub egress_group: u32,
}

impl EndpointLine {
    pub const HEAD: &str =
        "POD                              NUMBER  ADDRESS          IFINDEX  MAC                INGRESS  EGRESS";

    pub fn new(address: Address, endpoint: &Endpoint, groups: PodGroups, names: &PolicyNames) -> Self {
        let [a, b, c, d, e, f] = endpoint.mac;
        EndpointLine {
            pod: names.pod(endpoint.pod),
            number: endpoint.pod,
            address: ip_of(address),
            ifindex: endpoint.ifindex,
            mac: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            ingress_group: groups.ingress,
            egress_group: groups.egress,
        }
    }
}

impl fmt::Display for EndpointLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = |group| match group {
            NOT_ISOLATED => "open".to_owned(),
            CLOSED => "shut".to_owned(),
            group => format!("group {group}"),
        };
        let address = self.address.to_string();
        write!(
            f,
            "{:<32} {:>6}  {address:<16} {:>7}  {}  {:<8} {}",
            self.pod,
            self.number,
            self.ifindex,
            self.mac,
            group(self.ingress_group),
            group(self.egress_group)
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyLine {
    pub group: u32,
    /// `None`: no pod is in the group.
    pub direction: Option<Direction>,
    pub pods: String,
    /// 4294967295: any.
    pub class: u32,
    pub peers: String,
    pub port_class: u32,
    pub ports: String,
    pub verdict: &'static str,
    pub rule: String,
    pub rule_number: u32,
}

impl PolicyLine {
    pub const HEAD: &str = "GROUP  DIRECTION  PODS                             PEERS                            PORTS                VERDICT  RULE";

    pub fn new(
        key: &PolicyKey,
        row: &PolicyRow,
        direction: Option<Direction>,
        pods: String,
        peers: String,
        ports: String,
        names: &PolicyNames,
    ) -> Self {
        PolicyLine {
            group: key.group,
            direction,
            pods,
            class: key.class,
            peers,
            port_class: key.ports,
            ports,
            verdict: if row.verdict == PolicyRow::ALLOW { "allow" } else { "deny" },
            rule: names.rule(row.rule),
            rule_number: row.rule,
        }
    }
}

impl fmt::Display for PolicyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PolicyLine { group, pods, peers, ports, verdict, rule, .. } = self;
        let direction = self.direction.map_or("-", Direction::name);
        write!(f, "{group:>5}  {direction:<9}  {pods:<32} {peers:<32} {ports:<20} {verdict:<7}  {rule}")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowLine {
    pub pod: String,
    pub local: IpAddr,
    pub local_port: u16,
    pub peer: IpAddr,
    pub peer_port: u16,
    pub protocol: String,
    /// Who sent the first packet.
    pub by: &'static str,
    /// Of TCP.
    pub state: &'static str,
    pub idle_s: u32,
    /// Seconds without packets after which it ends.
    pub timeout_s: u32,
    pub marks: Vec<&'static str>,
    /// Of a flow to a service, where the fast path chose: who answers.
    pub backend: Option<SocketAddr>,
    /// Of the same flow as the backend sees it: what the client called.
    pub service: Option<SocketAddr>,
    pub rule: String,
    pub rule_number: u32,
}

impl FlowLine {
    pub const HEAD: &str = "POD                              LOCAL                  PEER                   PROTOCOL  BY    STATE        IDLE     ENDS     RULE, MARKS";

    pub fn new(key: &FlowKey, flow: &Flow, now_s: u32, generation: u32, names: &PolicyNames) -> Self {
        let marks = [
            (key.kind == FlowKey::BEHIND, "behind-service"),
            (flow.is(Flow::PENDING), "to-service"),
            (flow.is(Flow::IPVS), "ipvs"),
            (key.kind == FlowKey::NET, "from-network"),
            (flow.is(Flow::FAST), "fast"),
            (!flow.is(Flow::REPLIED), "unreplied"),
            (flow.is(Flow::MASQUERADED), "masqueraded"),
            (flow.is(Flow::OWN), "to-itself"),
            (flow.is(Flow::REFUSED), "refused"),
            (flow.generation != generation, "to-be-judged-again"),
            (flow.is_over(key.protocol, now_s), "over"),
        ];
        let other = flow.is(Flow::NAT).then(|| SocketAddr::new(ip_of(flow.to), flow.to_port));
        let (backend, service) = if flow.is(Flow::FROM_POD) { (other, None) } else { (None, other) };
        FlowLine {
            pod: names.pod(flow.pod),
            local: ip_of(key.local),
            local_port: key.local_port,
            peer: ip_of(key.peer),
            peer_port: key.peer_port,
            protocol: protocol_name(key.protocol),
            by: if flow.is(Flow::FROM_POD) { "pod" } else { "peer" },
            state: if key.protocol == Protocol::Tcp.number() { Tcp::name(flow.state) } else { "-" },
            idle_s: now_s.saturating_sub(flow.last_seen_s),
            timeout_s: flow.timeout_s(key.protocol),
            marks: marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark).collect(),
            backend,
            service,
            rule: names.rule(flow.rule),
            rule_number: flow.rule,
        }
    }
}

impl fmt::Display for FlowLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |ip: IpAddr, port| SocketAddr::new(ip, port).to_string();
        let (local, peer) = (end(self.local, self.local_port), end(self.peer, self.peer_port));
        let (idle, ends) = (age(self.idle_s), age(self.timeout_s.saturating_sub(self.idle_s)));
        write!(
            f,
            "{:<32} {local:<22} {peer:<22} {:<9} {:<5} {:<12} {idle:<8} {ends:<8} {} {}",
            self.pod,
            self.protocol,
            self.by,
            self.state,
            self.rule,
            self.marks.join(" ")
        )?;
        let named = |word, end: &Option<SocketAddr>| end.map_or(String::new(), |end| format!(" {word} {end}"));
        write!(f, "{}{}", named("backend", &self.backend), named("service", &self.service))
    }
}

/// A destination of a virtual server, as the programs of the fast path know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendLine {
    /// Of IPVS alone, if it has no row any more.
    pub server: Option<String>,
    /// Its number.
    pub vip: u32,
    pub number: u32,
    pub address: SocketAddr,
    /// `open`; `draining`: what has begun goes on; `gone`: nothing does, and the number rests.
    pub state: &'static str,
    pub active: i32,
}

impl BackendLine {
    pub const HEAD: &str = "VIRTUAL SERVER               NUMBER  BACKEND  ADDRESS                STATE     ACTIVE";

    pub fn new(number: u32, backend: &Backend, server: Option<&ServiceKey>, active: i32) -> Self {
        let server = server.map(|key| {
            let address = SocketAddr::new(ip_of(key.address), key.port);
            format!("{} {address}", protocol_name(key.protocol))
        });
        let state = match (backend.has(Backend::OPEN), backend.has(Backend::LIVE)) {
            (true, _) => "open",
            (false, true) => "draining",
            (false, false) => "gone",
        };
        let address = SocketAddr::new(ip_of(backend.address), backend.port);
        BackendLine { server, vip: backend.vip, number, address, state, active }
    }
}

impl fmt::Display for BackendLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BackendLine { vip, number, state, active, .. } = self;
        let (server, address) = (self.server.as_deref().unwrap_or("-"), self.address.to_string());
        write!(f, "{server:<28} {vip:>6}  {number:>7}  {address:<22} {state:<8}  {active:>6}")
    }
}

/// `59s`, `3m20s`, `4h12m`, `4d23h`.
pub fn age(s: u32) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m{}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{}h", s / 86_400, s / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::dump::kernel::runs, objects::ObjectKey};

    fn names() -> PolicyNames {
        PolicyNames { pods: [(7, ObjectKey::new("web", "front"))].into(), ..PolicyNames::default() }
    }

    #[test]
    fn a_flow_reads_as_a_sentence() {
        let key = FlowKey {
            local: Address::from_v4([10, 1, 0, 1]),
            peer: Address::from_v4([10, 1, 0, 2]),
            local_port: 80,
            peer_port: 34_000,
            protocol: 6,
            ..FlowKey::default()
        };
        let flow = Flow { last_seen_s: 900, generation: 3, pod: 7, rule: 12, state: Tcp::SYN_RECV, ..Flow::default() };
        let line = FlowLine::new(&key, &flow, 1_000, 4, &names());
        assert_eq!(
            line.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
            "web/front 10.1.0.1:80 10.1.0.2:34000 tcp peer syn-recv 1m40s 0s rule 12 unreplied to-be-judged-again over"
        );
    }

    #[test]
    fn a_flow_on_the_fast_path_names_who_answers_and_what_was_called() {
        let end = |address, port| (Address::from_v4(address), port);
        let (client, service, backend) = (end([10, 1, 0, 1], 4000), end([10, 96, 0, 1], 80), end([10, 1, 0, 2], 8080));
        let line = |local: (Address, u16), peer: (Address, u16), to: (Address, u16), flags| {
            let (local, local_port, peer, peer_port) = (local.0, local.1, peer.0, peer.1);
            let key = FlowKey { local, peer, local_port, peer_port, protocol: 17, ..FlowKey::default() };
            let flags = Flow::FAST | Flow::NAT | Flow::REPLIED | flags;
            let flow = Flow { pod: 7, flags, to: to.0, to_port: to.1, ..Flow::default() };
            let line = FlowLine::new(&key, &flow, 0, 0, &names()).to_string();
            line.split_once("fast").map(|(_, rest)| rest.to_owned())
        };
        assert_eq!(line(client, service, backend, Flow::FROM_POD).as_deref(), Some(" backend 10.1.0.2:8080"));
        assert_eq!(line(backend, client, service, 0).as_deref(), Some(" service 10.96.0.1:80"));
    }

    /// docs/looking-at-policy.md shows a line of each.
    #[test]
    fn the_page_s_examples_are_what_is_printed() {
        let page = include_str!("../../../../docs/looking-at-policy.md");
        let rule = crate::explain::RuleName {
            kind: "NetworkPolicy".into(),
            policy: ObjectKey::new("shop", "front"),
            direction: Direction::Ingress,
            index: 0,
            text: "".into(),
        };
        let names = PolicyNames { pods: [(7, ObjectKey::new("shop", "front-1"))].into(), rules: [(2, rule)].into() };
        let own = Address::from_v4([10, 244, 1, 11]);
        let endpoint = Endpoint { pod: 7, ifindex: 12, mac: [2, 0, 0, 0, 0, 7], pad: [0; 2] };
        let endpoint = EndpointLine::new(own, &endpoint, PodGroups { ingress: 3, egress: 0 }, &names);
        let key = PolicyKey { group: 3, class: u32::MAX, ports: 5 };
        let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 2 };
        let of = |text: &str| text.to_owned();
        let direction = Some(Direction::Ingress);
        let policy = PolicyLine::new(&key, &row, direction, of("shop/front-1"), of("anybody"), of("tcp/8080"), &names);
        let peer = Address::from_v4([10, 244, 2, 31]);
        let key = FlowKey { local: own, peer, local_port: 8080, peer_port: 40_112, protocol: 6, ..FlowKey::default() };
        let (flags, state) = (Flow::REPLIED, Tcp::ESTABLISHED);
        let flow = Flow { last_seen_s: 100, generation: 9, pod: 7, rule: 2, flags, state, ..Flow::default() };
        let flow = FlowLine::new(&key, &flow, 112, 9, &names);
        let printed = [
            format!("{}\n{endpoint}\n", EndpointLine::HEAD),
            format!("{}\n{policy}\n", PolicyLine::HEAD),
            format!("{}\n{}\n", FlowLine::HEAD, flow.to_string().trim_end()),
        ];
        for example in printed {
            assert!(page.contains(&example), "the page shows something else than\n{example}");
        }
    }

    #[test]
    fn heads_stand_above_their_columns() {
        let endpoint = Endpoint { pod: 7, ifindex: 3, mac: [2, 0, 0, 0, 0, 1], pad: [0; 2] };
        let groups = PodGroups { ingress: 0, egress: 5 };
        let line = EndpointLine::new(Address::from_v4([10, 1, 0, 1]), &endpoint, groups, &names()).to_string();
        for (head, value) in [("ADDRESS", "10.1.0.1"), ("MAC", "02:00"), ("INGRESS", "open"), ("EGRESS", "group 5")] {
            assert_eq!(EndpointLine::HEAD.find(head), line.find(value), "{head}\n{}\n{line}", EndpointLine::HEAD);
        }
        let key = PolicyKey { group: 3, class: 4, ports: 5 };
        let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 9 };
        let text = |text: &str| text.to_owned();
        let line = PolicyLine::new(&key, &row, None, text("P"), text("Q"), text("R"), &names()).to_string();
        for (head, value) in [("PODS", "P"), ("PEERS", "Q"), ("PORTS", "R"), ("VERDICT", "allow"), ("RULE", "rule 9")] {
            assert_eq!(PolicyLine::HEAD.find(head), line.find(value), "{head}\n{}\n{line}", PolicyLine::HEAD);
        }
        let flow = FlowLine::new(&FlowKey { protocol: 17, ..FlowKey::default() }, &Flow::default(), 0, 0, &names());
        let line = flow.to_string();
        for (head, value) in [("PROTOCOL", "udp"), ("BY", "peer"), ("IDLE", "0s"), ("ENDS", "30s")] {
            assert_eq!(FlowLine::HEAD.find(head), line.find(value), "{head}\n{}\n{line}", FlowLine::HEAD);
        }
    }

    #[test]
    fn a_backend_is_open_draining_or_gone() {
        let key = ServiceKey { address: Address::from_v4([10, 96, 0, 10]), port: 53, protocol: 17, pad: 0 };
        let backend = |flags| Backend { address: Address::from_v4([10, 1, 0, 9]), port: 5353, flags, vip: 7 };
        let line = |flags, server| BackendLine::new(12, &backend(flags), server, 3).to_string();
        let open = line(Backend::LIVE | Backend::OPEN, Some(&key));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&open), "udp 10.96.0.10:53 7 12 10.1.0.9:5353 open 3");
        assert_eq!(words(&line(Backend::LIVE, None)), "- 7 12 10.1.0.9:5353 draining 3");
        assert_eq!(words(&line(0, None)), "- 7 12 10.1.0.9:5353 gone 3");
        for (head, value) in [("ADDRESS", "10.1.0.9"), ("STATE", "open")] {
            assert_eq!(BackendLine::HEAD.find(head), open.find(value), "{head}\n{}\n{open}", BackendLine::HEAD);
        }
        assert_eq!(BackendLine::HEAD.len(), open.len(), "the last column ends with its head");
    }

    #[test]
    fn ages_and_runs_of_ports() {
        for (s, text) in [(59, "59s"), (200, "3m20s"), (15_121, "4h12m"), (430_000, "4d23h")] {
            assert_eq!(age(s), text);
        }
        let mut ports: Vec<(u32, u32)> = (0..3 * 65_536).map(|index| (index, index / 65_536)).collect();
        ports[80].1 = 9;
        (100..=200).for_each(|port| ports[port].1 = 9);
        ports[65_536 + 53].1 = 9;
        let runs = runs(&ports);
        assert_eq!(runs[&9], ["tcp/80", "tcp/100-200", "udp/53"]);
        assert_eq!(runs[&2], ["sctp"]);
    }
}
