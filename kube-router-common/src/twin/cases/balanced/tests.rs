//! Connections through a service, packet by packet. What arrives is compared with a packet that was built with the other
//! address from the start.

use std::collections::BTreeMap;

use super::*;

struct Path {
    f: Family,
    tables: Tables,
}

impl Path {
    /// A service of so many backends, with these connections each.
    fn by(f: Family, scheduler: u8, actives: &[i32]) -> Self {
        let mut path = Path::new(f);
        let more = u32::from(f == Family::V6);
        let first = path.tables.backends[&(BACKEND + more)];
        let ids: Vec<u32> = (BUSY..).take(actives.len()).collect();
        for (id, number) in ids.iter().zip(actives) {
            path.tables.backends.insert(id + more, Backend { port: *id as u16, ..first });
            path.tables.actives.insert(id + more, *number);
        }
        serve_by(&mut path.tables, f, scheduler, &ids);
        path
    }

    /// Who gets the next connection.
    #[track_caller]
    fn open_from(&mut self, port: u16) -> u32 {
        let (client, at) = ((pod_1(self.f), port), (service(self.f), 443));
        assert_eq!(self.run(IF_1, Build::tcp(client, at, SYN)).action, Action::Deliver);
        self.tables.flows[&key(client, at, protocol::TCP)].backend
    }

    /// Connections that do not close yet.
    fn open(&self) -> i32 {
        let counts = |(key, flow): &(&FlowKey, &Flow)| {
            flow.is(Flow::NAT) && flow.is(Flow::FROM_POD) && flow.is_active(key.protocol)
        };
        self.tables.flows.iter().filter(counts).count() as i32
    }

    fn new(f: Family) -> Self {
        let mut tables = tables(1_000_000);
        serve(&mut tables);
        Path { f, tables }
    }

    fn run(&mut self, ifindex: u32, build: Build) -> crate::twin::Outcome {
        let macs = if ifindex == IF_1 { (MAC_1, MAC_2) } else { (MAC_2, MAC_1) };
        let bytes = build.with(|b| (b.from_mac, b.to_mac) = macs).bytes();
        self.tables.run(Hook::PodOut, &Packet { bytes, ifindex, note: 0, mark: 0, checksum: None })
    }

    /// From the client's port to the service: it arrives at the backend with the backend's address.
    #[track_caller]
    fn call(&mut self, port: u16, flags: u8) {
        let client = (pod_1(self.f), port);
        let outcome = self.run(IF_1, Build::tcp(client, (service(self.f), 443), flags));
        let wanted = Build::tcp(client, (pod_2(self.f), 8080), flags).with(|b| (b.from_mac, b.to_mac) = (MAC_1, MAC_2));
        assert_eq!(outcome.delivered, Some((IF_2, wanted.bytes())), "{:?}", outcome.action);
        self.expect_twins();
    }

    /// The other way.
    #[track_caller]
    fn answer(&mut self, port: u16, flags: u8) {
        let client = (pod_1(self.f), port);
        let outcome = self.run(IF_2, Build::tcp((pod_2(self.f), 8080), client, flags));
        let wanted =
            Build::tcp((service(self.f), 443), client, flags).with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1));
        assert_eq!(outcome.delivered, Some((IF_1, wanted.bytes())), "{:?}", outcome.action);
        self.expect_twins();
    }

    #[track_caller]
    fn expect_twins(&self) {
        assert_eq!(self.tables.actives.values().sum::<i32>(), self.open(), "what is counted is what is there");
        for (key, flow) in &self.tables.flows {
            let other = &self.tables.flows[&key.turned(flow)];
            assert_eq!(key.turned(flow).turned(other), *key);
            assert_eq!((flow.state, flow.is(Flow::REPLIED)), (other.state, other.is(Flow::REPLIED)));
            assert_eq!(flow.backend, other.backend);
            let is_remote = [flow, other].iter().any(|half| half.to_ifindex == Flow::ROUTED);
            assert!(is_remote || (flow.to_ifindex, flow.ifindex) == (other.ifindex, other.to_ifindex));
        }
    }
}

/// How far the largest and the smallest of these are apart, in percent of their mean.
fn spread(numbers: &BTreeMap<u32, i32>) -> i32 {
    let (most, least) = (numbers.values().max(), numbers.values().min());
    let mean = numbers.values().sum::<i32>() / numbers.len() as i32;
    (most.copied().unwrap_or_default() - least.copied().unwrap_or_default()) * 100 / mean
}

const FIN_ACK: u8 = Tcp::FIN | ACK;

#[test]
fn both_ends_of_a_connection_see_the_addresses_that_they_know() {
    for f in Family::BOTH {
        let mut path = Path::new(f);
        path.call(4000, SYN);
        path.call(4000, SYN);
        path.answer(4000, SYN | ACK);
        path.call(4000, ACK);
        // Policies change meanwhile.
        path.tables.config.generation += 1;
        path.call(4000, ACK);
        path.answer(4000, ACK);
        path.answer(4000, FIN_ACK);
        path.call(4000, FIN_ACK);
        path.answer(4000, ACK);
        let states: Vec<_> = path.tables.flows.values().map(|flow| Tcp::name(flow.state)).collect();
        assert_eq!(states, ["time-wait"; 2]);
        // The port is used again: a connection of its own.
        path.call(4000, SYN);
        let states: Vec<_> = path.tables.flows.values().map(|flow| Tcp::name(flow.state)).collect();
        assert_eq!(states, ["syn-sent"; 2]);
    }
}

/// The backend's socket could not tell the two apart.
#[test]
fn a_connection_to_the_backend_itself_is_not_mixed_up_with_one_through_the_service() {
    for f in Family::BOTH {
        let mut path = Path::new(f);
        let (client, by) = ((pod_1(f), 4000), (pod_2(f), 8080));
        assert_eq!(path.run(IF_1, Build::tcp(client, by, SYN)).action, Action::Deliver);
        let outcome = path.run(IF_1, Build::tcp(client, (service(f), 443), SYN));
        assert_eq!(outcome.action, Action::Pass, "IPVS is to know what to do");
        assert_eq!(path.tables.flows.len(), 3, "and keeps it");
        let answer = path.run(IF_2, Build::tcp(by, client, SYN | ACK));
        let wanted = Build::tcp(by, client, SYN | ACK).with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1)).bytes();
        assert_eq!(answer.delivered, Some((IF_1, wanted)));
    }
}

#[test]
fn turns_are_taken() {
    for f in Family::BOTH {
        let mut path = Path::new(f);
        let more = u32::from(f == Family::V6);
        let first = path.tables.backends[&(BACKEND + more)];
        for port in 1..=4_u16 {
            let id = 20 + u32::from(port);
            path.tables.backends.insert(id + more, Backend { port: 8080 + port, ..first });
        }
        serve_by(&mut path.tables, f, Vip::RR, &[21, 22, 23, 24]);
        let mut chosen = BTreeMap::<u32, u32>::new();
        for port in 0..100 {
            let outcome = path.run(IF_1, Build::tcp((pod_1(f), 4000 + port), (service(f), 443), SYN));
            assert_eq!(outcome.action, Action::Deliver);
        }
        for flow in path.tables.flows.values().filter(|flow| flow.is(Flow::FROM_POD)) {
            *chosen.entry(flow.backend - more).or_default() += 1;
        }
        assert_eq!(chosen, BTreeMap::from([21, 22, 23, 24].map(|id| (id, 25))));
    }
}

#[test]
fn lc_gives_everybody_the_same_while_connections_stay_open() {
    for f in Family::BOTH {
        for backends in [2, 7, 64] {
            let mut path = Path::by(f, Vip::LC, &std::vec![0; backends]);
            for port in 0..backends as u16 * 30 + 1 {
                path.open_from(4_000 + port);
            }
            assert!(spread(&path.tables.actives) <= 5, "{:?}", path.tables.actives);
        }
    }
}

#[test]
fn lc_fills_up_who_has_fewer_first() {
    let mut path = Path::by(Family::V4, Vip::LC, &[30, 0, 20, 25]);
    for port in 0..45 {
        path.open_from(4_000 + port);
    }
    assert_eq!(path.tables.actives.values().copied().collect::<Vec<_>>(), [30; 4]);
}

/// Each connection is over before the next one begins.
#[test]
fn lc_gives_an_idle_service_s_connections_to_all_in_turn() {
    for f in Family::BOTH {
        let mut path = Path::by(f, Vip::LC, &[0; 4]);
        let mut chosen = BTreeMap::<u32, i32>::new();
        for port in 4_000..4_100 {
            let backend = path.open_from(port);
            *chosen.entry(backend).or_default() += 1;
            let by = (pod_2(f), path.tables.backends[&backend].port);
            assert_eq!(path.run(IF_2, Build::tcp(by, (pod_1(f), port), Tcp::RST | ACK)).action, Action::Deliver);
            assert_eq!(path.tables.actives.values().sum::<i32>(), 0);
        }
        assert!(chosen.len() == 4 && spread(&chosen) == 0, "{chosen:?}");
    }
}

/// With chance alone the fullest of 100 that get 100 each would have some 25 more than the mean, here two or three.
#[test]
fn of_many_backends_lc_compares_two_and_none_gets_far_ahead() {
    for f in Family::BOTH {
        let mut path = Path::by(f, Vip::LC, &[0; 100]);
        for port in 0..10_000 {
            path.open_from(4_000 + port);
        }
        assert!(spread(&path.tables.actives) <= 10, "{:?}", path.tables.actives);
        assert!(path.tables.actives.values().all(|number| *number <= 105));
    }
}

/// However many packets close it, and whoever sends them.
#[test]
fn a_connection_counts_until_it_begins_to_close_and_once() {
    for f in Family::BOTH {
        let mut path = Path::new(f);
        let mut counted = |call: bool, flags: u8, wanted: i32| {
            if call {
                path.call(4_000, flags)
            } else {
                path.answer(4_000, flags)
            }
            assert_eq!(path.tables.actives.values().sum::<i32>(), wanted, "{call} {flags:#x}");
        };
        for (call, flags, wanted) in [
            (true, SYN, 1),
            (true, SYN, 1),
            (false, SYN | ACK, 1),
            (true, ACK, 1),
            (false, FIN_ACK, 0),
            (true, FIN_ACK, 0),
            (false, ACK, 0),
            (true, SYN, 1),
            (false, Tcp::RST | ACK, 0),
            (false, Tcp::RST | ACK, 0),
            (true, SYN, 1),
            (false, SYN | ACK, 1),
            (true, FIN_ACK, 0),
        ] {
            counted(call, flags, wanted);
        }
        // The first word after a change of policies is the last one.
        path.call(5_000, SYN);
        path.answer(5_000, SYN | ACK);
        path.tables.config.generation += 1;
        path.call(5_000, Tcp::RST);
        assert_eq!(path.tables.actives.values().sum::<i32>(), 0);
    }
}

/// Datagrams of any size, and one whose backend goes.
#[test]
fn datagrams_keep_their_backend_until_it_is_gone() {
    for f in Family::BOTH {
        let mut path = Path::new(f);
        let (at, client, by) = ((service(f), 53), (pod_1(f), 4000), (pod_2(f), 5353));
        let more = u32::from(f == Family::V6);
        let key = ServiceKey { address: at.0, port: at.1, protocol: protocol::UDP, pad: 0 };
        let peers = &mut path.tables.peers;
        assert!(peers[&at.0].flags & Peer::SERVICE != 0);
        path.tables.services.insert(key, Service::default());
        let learn_until_s = path.tables.now_s + 10;
        let vip = Vip { id: 40, ring: 40, slots: 1, scheduler: Vip::RR, learn_until_s, ..Vip::default() };
        path.tables.vips.insert(key, vip);
        for id in [50, 51] {
            let flags = Backend::LIVE | Backend::OPEN;
            path.tables.backends.insert(id + more, Backend { address: by.0, port: by.1 + id as u16, flags, vip: 40 });
        }
        path.tables.rings.insert(RingKey { ring: 40, slot: 0 }, 50 + more);
        let ask = |path: &mut Path, text: &[u8]| path.run(IF_1, Build::udp(client, at, text));
        assert_eq!(ask(&mut path, b"early").action, Action::Pass, "IPVS may know it");
        path.tables.now_s += 290;
        assert_eq!(ask(&mut path, b"still").action, Action::Pass, "IPVS has it, and keeps it");
        path.tables.now_s += 310;
        for text in [&b"one"[..], b"two", b"three"] {
            let wanted = Build::udp(client, (by.0, by.1 + 50), text).with(|b| (b.from_mac, b.to_mac) = (MAC_1, MAC_2));
            assert_eq!(ask(&mut path, text).delivered, Some((IF_2, wanted.bytes())), "{f:?}");
            path.expect_twins();
        }
        let reply = path.run(IF_2, Build::udp((by.0, by.1 + 50), client, b"answer"));
        let wanted = Build::udp(at, client, b"answer").with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1));
        assert_eq!(reply.delivered, Some((IF_1, wanted.bytes())));
        // As long as IPVS would know it.
        path.tables.now_s += 300;
        assert_eq!(ask(&mut path, b"late").action, Action::Deliver);
        path.tables.backends.entry(50 + more).and_modify(|backend| backend.flags = 0);
        path.tables.rings.insert(RingKey { ring: 40, slot: 0 }, 51 + more);
        let wanted = Build::udp(client, (by.0, by.1 + 51), b"anew").with(|b| (b.from_mac, b.to_mac) = (MAC_1, MAC_2));
        assert_eq!(ask(&mut path, b"anew").delivered, Some((IF_2, wanted.bytes())), "{f:?}");
        assert_eq!(path.tables.flows.len(), 2);
        path.expect_twins();
    }
}

impl Path {
    /// The backend is a pod of another node, behind the uplink.
    fn remote(f: Family) -> Self {
        let mut path = Path::new(f);
        let there = friend(f);
        change(&mut path.tables, |backend| (backend.address, backend.flags) = (there, backend.flags | Backend::REMOTE));
        path.tables.routes.insert(there, IF_UPLINK);
        path.tables.ifaces.insert(IF_UPLINK, Iface { flags: Iface::UPLINK, ..Iface::default() });
        path
    }

    /// What leaves for the other node; nothing if it takes the stack.
    fn send(&mut self, flags: u8) -> Option<Vec<u8>> {
        let outcome = self.run(IF_1, Build::tcp((pod_1(self.f), 4000), (service(self.f), 443), flags));
        outcome.delivered.map(|(ifindex, bytes)| {
            assert_eq!(ifindex, Flow::ROUTED);
            bytes[14..].to_vec()
        })
    }

    /// What comes back from there.
    fn hear(&mut self, flags: u8) -> crate::twin::Outcome {
        let bytes = Build::tcp((friend(self.f), 8080), (pod_1(self.f), 4000), flags).bytes();
        self.tables.run(Hook::UplinkIn, &Packet { bytes, ifindex: IF_UPLINK, note: 0, mark: 0, checksum: None })
    }
}

#[test]
fn a_backend_of_another_node_answers_as_the_service() {
    for f in Family::BOTH {
        let mut path = Path::remote(f);
        let client = (pod_1(f), 4000);
        for flags in [SYN, ACK, FIN_ACK] {
            assert_eq!(path.send(flags), Some(Build::tcp(client, (friend(f), 8080), flags).network()), "{f:?} {flags}");
            path.expect_twins();
            let back = if flags == SYN { SYN | ACK } else { flags };
            let wanted = Build::tcp((service(f), 443), client, back).with(|b| b.to_mac = MAC_1).bytes();
            let heard =
                path.hear(back).delivered.map(|(ifindex, bytes)| (ifindex, bytes[..6].to_vec(), bytes[14..].to_vec()));
            assert_eq!(heard, Some((IF_1, MAC_1.to_vec(), wanted[14..].to_vec())), "{f:?} {flags}");
            path.expect_twins();
        }
        assert_eq!(path.tables.flows.len(), 2);
        // Policies come to forbid it: neither side gets through.
        let mut path = Path::remote(f);
        assert!(path.send(SYN).is_some() && path.hear(SYN | ACK).action == Action::Deliver);
        path.tables.pods.insert(1, PodGroups { ingress: 0, egress: GROUP_1_OUT });
        path.tables.config.generation += 1;
        assert_eq!(path.hear(ACK).action, Action::Reject);
        assert_eq!(path.send(ACK), None);
        path.tables.pods.remove(&1);
        assert!(path.hear(ACK).action == Action::Deliver && path.send(ACK).is_some());
        // They come to allow this port and no other.
        let mut path = Path::remote(f);
        assert!(path.send(SYN).is_some());
        path.tables.pods.insert(1, PodGroups { ingress: 0, egress: GROUP_1_OUT });
        path.tables.ports.insert(port_index(protocol::TCP, 8080).unwrap_or_default(), WEB);
        path.tables.config.generation += 1;
        assert_eq!(path.hear(SYN | ACK).action, Action::Deliver);
        // What opens a connection is no answer.
        assert_eq!(path.hear(SYN).action, Action::Pass);
        // Somebody else has the address by now.
        path.tables.endpoints.entry(pod_1(f)).and_modify(|to| to.pod = 77);
        assert_eq!(path.hear(ACK).action, Action::Pass);
    }
}

/// In order, as a node sends them.
#[test]
fn a_large_answer_of_another_node_comes_in_fragments() {
    for f in Family::BOTH {
        let mut path = Path::remote(f);
        let (client, at, by) = ((pod_1(f), 4000), (service(f), 443), (friend(f), 8080));
        let vips: Vec<(ServiceKey, Vip)> = path.tables.vips.iter().map(|(key, vip)| (*key, *vip)).collect();
        for (key, vip) in vips {
            let key = ServiceKey { protocol: protocol::UDP, ..key };
            path.tables.vips.insert(key, vip);
            path.tables.services.insert(key, Service::default());
        }
        assert_eq!(path.run(IF_1, Build::udp(client, at, b"query")).action, Action::Deliver);
        let whole = Build::udp(by, client, &[7; 64]);
        for (offset, more) in [(0, true), (24, true), (48, false)] {
            let part = |from: (Address, u16)| {
                let mut part = Build::udp(from, client, &[7; 64]).with(|b| b.to_mac = MAC_1);
                let end = if more { offset + 24 } else { part.transport.len() };
                part.transport = part.transport[offset..end].to_vec();
                fragment(part, offset, more)
            };
            let bytes = part(by);
            let packet = Packet { bytes, ifindex: IF_UPLINK, note: 0, mark: 0, checksum: None };
            let heard = path.tables.run(Hook::UplinkIn, &packet);
            assert_eq!(heard.delivered, Some((IF_1, part(at))), "{f:?} {offset} of {}", whole.transport.len());
        }
    }
}

fn fragment(part: Build, offset: usize, more: bool) -> Vec<u8> {
    let word = (offset as u16 / 8) << if part.from.is_v4() { 0 } else { 3 };
    if part.from.is_v4() {
        return part.with(|b| b.fragment = word | if more { 0x2000 } else { 0 }).bytes();
    }
    let [high, low] = (word | u16::from(more)).to_be_bytes();
    part.with(|b| b.extensions = std::vec![(44, std::vec![0, high, low, 0, 0, 0, 9])]).bytes()
}

#[test]
fn what_could_not_come_back_is_not_sent_past_the_stack() {
    for f in Family::BOTH {
        type Change = fn(&mut Tables, Family);
        let changes: [(&str, Change); 5] = [
            ("no route", |t, _| t.routes.clear()),
            ("no hook there", |t, _| {
                t.ifaces.remove(&IF_UPLINK);
            }),
            ("a tunnel", |t, _| {
                t.ifaces.entry(IF_UPLINK).and_modify(|iface| iface.flags |= Iface::NO_LINK_HEADER);
            }),
            ("something stands at the pod's interface", |t, _| short_way::stand_at(t, IF_1)),
            ("a connection of its own to that backend", |t, f| {
                let flow = live(t, Flow::FROM_POD);
                t.flows.insert(key((pod_1(f), 4000), (friend(f), 8080), protocol::TCP), flow);
            }),
        ];
        for (text, change) in changes {
            let mut path = Path::remote(f);
            change(&mut path.tables, f);
            path.tables.count_flows();
            assert_eq!(path.send(SYN), None, "{f:?}: {text}");
            assert!(path.tables.flows.values().all(|flow| !flow.is(Flow::NAT)), "{f:?}: {text}");
        }
        // What nobody asked for is none of ours.
        assert_eq!(Path::remote(f).hear(ACK).action, Action::Pass);
    }
}
