//! Promises about what a pod sends to a service that does not wait for IPVS.

use super::*;
use crate::balance::{Backend, RingKey, Vip};

#[cfg(test)]
mod tests;

const VIP: u32 = 3;
const RING: u32 = 5;
/// At pod 2.
const BACKEND: u32 = 9;
/// The first of those that have connections.
const BUSY: u32 = 100;

/// Pod 2 answers for the service at port 8080, and nothing isolates the two pods.
fn serve(t: &mut Tables) {
    t.config.flags = Config::FAST;
    t.pods.insert(1, PodGroups::default());
    for f in Family::BOTH {
        serve_by(t, f, Vip::RR, &[BACKEND]);
        let (more, flags) = (u32::from(f == Family::V6), Backend::LIVE | Backend::OPEN);
        t.backends.insert(BACKEND + more, Backend { address: pod_2(f), port: 8080, flags, vip: VIP + more });
    }
}

/// Of IPv6 all numbers are larger by one.
fn serve_by(t: &mut Tables, f: Family, scheduler: u8, ring: &[u32]) {
    let more = u32::from(f == Family::V6);
    for (slot, backend) in (0_u32..).zip(ring) {
        t.rings.insert(RingKey { ring: RING + more, slot }, backend.saturating_add(more));
    }
    let key = ServiceKey { address: service(f), port: 443, protocol: protocol::TCP, pad: 0 };
    let vip = Vip { id: VIP + more, ring: RING + more, slots: ring.len() as u32, scheduler, ..Vip::default() };
    t.vips.insert(key, vip);
}

/// Its backends have so many connections each; only who has fewest is at pod 2, the others are nowhere.
fn serve_busy(t: &mut Tables, f: Family, actives: &[i32]) {
    serve(t);
    let more = u32::from(f == Family::V6);
    let least = actives.iter().min();
    let ids: std::vec::Vec<u32> = (BUSY..).take(actives.len()).collect();
    for (id, number) in ids.iter().map(|id| id + more).zip(actives) {
        let address = if Some(number) == least { pod_2(f) } else { Address([9; 16]) };
        let flags = Backend::LIVE | Backend::OPEN;
        t.backends.insert(id, Backend { address, port: 8080, flags, vip: VIP + more });
        t.actives.insert(id, *number);
    }
    serve_by(t, f, Vip::LC, &ids);
}

fn change(t: &mut Tables, change: impl Fn(&mut Backend)) {
    t.backends.values_mut().for_each(change);
}

/// Both halves of a connection that has begun.
pub(super) fn begun(t: &mut Tables, f: Family, state: u8) {
    serve(t);
    let backend = BACKEND + u32::from(f == Family::V6);
    let flags = Flow::REPLIED | Flow::FAST | Flow::NAT;
    let (client, at, by) = ((pod_1(f), 4000), (service(f), 443), (pod_2(f), 8080));
    let own = Flow { backend, state, to: by.0, to_port: by.1, to_ifindex: IF_2, ..live(t, Flow::FROM_POD | flags) };
    let far = Flow { to: at.0, to_port: at.1, to_ifindex: IF_1, ifindex: IF_2, pod: 2, ..own };
    t.flows.insert(key(client, at, protocol::TCP), own);
    t.flows.insert(key(by, client, protocol::TCP), Flow { flags, ..far });
    t.actives.insert(backend, i32::from(Tcp::is_active(state)));
}

/// The same, with a backend of another node.
pub(super) fn begun_remotely(t: &mut Tables, f: Family) {
    begun(t, f, Tcp::ESTABLISHED);
    let backend = BACKEND + u32::from(f == Family::V6);
    let (client, at, by) = ((pod_1(f), 4000), (service(f), 443), (friend(f), 8080));
    t.backends.entry(backend).and_modify(|row| (row.address, row.flags) = (by.0, row.flags | Backend::REMOTE));
    t.flows.clear();
    let flow = Flow { backend, ..live(t, Flow::REPLIED | Flow::FAST | Flow::NAT) };
    let own = Flow { to: by.0, to_port: by.1, to_ifindex: Flow::ROUTED, flags: flow.flags | Flow::FROM_POD, ..flow };
    t.flows.insert(key(client, at, protocol::TCP), own);
    let answers = FlowKey { kind: FlowKey::NET, ..key(client, by, protocol::TCP) };
    t.flows.insert(answers, Flow { to: at.0, to_port: at.1, to_ifindex: IF_1, ..flow });
}

pub(super) fn balanced(list: &mut List, f: Family) {
    let (client, at, by) = ((pod_1(f), 4000), (service(f), 443), (pod_2(f), 8080));
    let first = || Build::tcp(client, at, SYN);
    let later = || Build::tcp(client, at, ACK);
    let reply = || Build::tcp(by, client, SYN | ACK).with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1));
    let says = |text: &str| std::format!("to a service without IPVS: {text}");
    list.out(&says("a backend of this node gets it, and both have entries"), first())
        .given(serve)
        .delivers(IF_2, MAC_2)
        .flows(2);
    for scheduler in [Vip::SH, Vip::DH] {
        list.out(&says(&std::format!("scheduler {scheduler}")), first())
            .given(serve)
            .given(move |t| serve_by(t, f, scheduler, &[BACKEND; 8]))
            .delivers(IF_2, MAC_2)
            .flows(2);
    }
    list.out(&says("scheduler mh"), first())
        .given(serve)
        .given(move |t| serve_by(t, f, Vip::MH, &[BACKEND; 251]))
        .delivers(IF_2, MAC_2)
        .flows(2);
    for slots in [1, 3, 64, 65, 700] {
        list.out(&says(&std::format!("scheduler lc, {slots} backends")), first())
            .given(serve)
            .given(move |t| serve_by(t, f, Vip::LC, &std::vec![BACKEND; slots]))
            .delivers(IF_2, MAC_2)
            .flows(2);
    }
    list.out(&says("lc: who has fewer connections"), first())
        .given(move |t| serve_busy(t, f, &[2, 1, 2, 5]))
        .delivers(IF_2, MAC_2)
        .flows(2);
    list.out(&says("lc: the last of 64 slots"), first())
        .given(move |t| {
            let mut actives = [2; 64];
            actives[63] = 1;
            serve_busy(t, f, &actives);
        })
        .delivers(IF_2, MAC_2)
        .flows(2);
    list.out(&says("lc: slots that are nobody's are passed over"), first())
        .given(serve)
        .given(move |t| serve_by(t, f, Vip::LC, &[u32::MAX - 1, BACKEND, u32::MAX - 1]))
        .delivers(IF_2, MAC_2)
        .flows(2);
    list.out(&says("an odd payload"), first().with(|b| b.transport.extend([7; 33]))).given(serve).delivers(IF_2, MAC_2);
    type Change = fn(&mut Tables, Family);
    let not_here: [(&str, Change); 17] = [
        ("a service that is all IPVS's", |t, _| t.vips.clear()),
        ("a row that rests", |t, _| t.vips.values_mut().for_each(|vip| *vip = Vip::resting(vip.id))),
        ("slots without rows", |t, _| t.rings.clear()),
        ("a number that no backend has", |t, _| t.backends.clear()),
        ("the backend is the service itself", |t, f| {
            let address = service(f);
            change(t, |backend| (backend.address, backend.port) = (address, 443));
        }),
        ("the same, said to be on another node", |t, f| {
            let address = service(f);
            change(t, |backend| {
                (backend.address, backend.port, backend.flags) = (address, 443, backend.flags | Backend::REMOTE);
            });
        }),
        ("a scheduler of a later agent", |t, f| serve_by(t, f, 9, &[BACKEND])),
        ("lc, and nobody in any slot", |t, f| serve_by(t, f, Vip::LC, &[u32::MAX - 1; 3])),
        ("lc, and nobody in any slot of many", |t, f| serve_by(t, f, Vip::LC, &[u32::MAX - 1; 100])),
        ("lc, and who has fewest is on another node", |t, f| {
            serve_busy(t, f, &[3, 1, 3]);
            let more = u32::from(f == Family::V6);
            t.backends.entry(BUSY + 1 + more).and_modify(|backend| backend.address = friend(f));
        }),
        ("session affinity", |t, _| t.vips.values_mut().for_each(|vip| vip.affinity_s = 60)),
        ("nobody in the slot", |t, f| serve_by(t, f, Vip::RR, &[u32::MAX - 1])),
        ("the backend drains", |t, _| change(t, |backend| backend.flags = Backend::LIVE)),
        ("the number is another service's by now", |t, _| change(t, |backend| backend.vip = 77)),
        ("the backend is on another node", |t, f| {
            let address = friend(f);
            change(t, |backend| backend.address = address);
        }),
        ("the backend is the pod itself", |t, f| {
            let address = pod_1(f);
            change(t, |backend| backend.address = address);
        }),
        ("without the switch", |t, _| t.config.flags = 0),
    ];
    // What was tried stays with IPVS; of what never is nothing is known.
    let never = ["a service that is all IPVS's", "a row that rests", "without the switch"];
    for (text, change) in not_here {
        list.out(&says(&std::format!("{text}: IPVS chooses")), first())
            .given(serve)
            .given(move |t| change(t, f))
            .passes()
            .flows(usize::from(!never.contains(&text)))
            .notes(1);
    }
    list.out(&says("what opens nothing is IPVS's"), later()).given(serve).passes().flows(0).notes(1);
    list.out(&says("the client's policy is asked about the backend"), first())
        .given(serve)
        .given(|t| {
            t.pods.insert(1, PodGroups { ingress: 0, egress: GROUP_1_OUT });
        })
        .rejects(OUT, Reason::Denied)
        .flows(0);
    list.out(&says("and lets it through to the backend's port"), first())
        .given(serve)
        .given(|t| {
            t.pods.insert(1, PodGroups { ingress: 0, egress: GROUP_1_OUT });
            t.ports.insert(port_index(protocol::TCP, 8080).unwrap_or_default(), WEB);
            let row = PolicyRow { verdict: PolicyRow::ALLOW, rule: 44 };
            t.policy.insert(PolicyKey { group: GROUP_1_OUT, class: 6, ports: WEB }, row);
        })
        .delivers(IF_2, MAC_2)
        .flows(2);
    list.out(&says("the backend's policy is asked about the client"), first())
        .given(serve)
        .given(|t| {
            t.pods.insert(2, PodGroups { ingress: GROUP_1_IN, egress: 0 });
        })
        .rejects(IN, Reason::Denied)
        .flows(0);
    list.out(&says("no room for both: IPVS chooses"), first())
        .given(serve)
        .given(|t| t.max_flows = 1)
        .passes()
        .notes(1);
    list.out(&says("a live connection goes on"), later())
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .delivers(IF_2, MAC_2)
        .flows(2);
    for flags in [Tcp::FIN | ACK, Tcp::RST] {
        for (generation, changed) in [(0, ""), (1, ", since policies changed")] {
            list.out(
                &says(&std::format!("the client ends it with {flags:#x}{changed}: one less")),
                Build::tcp(client, at, flags),
            )
            .given(move |t| begun(t, f, Tcp::ESTABLISHED))
            .given(move |t| t.config.generation += generation)
            .delivers(IF_2, MAC_2)
            .flows(2);
            list.out(
                &says(&std::format!("the backend ends it with {flags:#x}{changed}: one less")),
                Build::tcp(by, client, flags).with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1)),
            )
            .at(IF_2)
            .given(move |t| begun(t, f, Tcp::ESTABLISHED))
            .given(move |t| t.config.generation += generation)
            .delivers(IF_1, MAC_1)
            .flows(2);
        }
    }
    list.out(&says("its replies have the service's address"), reply())
        .at(IF_2)
        .given(move |t| begun(t, f, Tcp::SYN_SENT))
        .delivers(IF_1, MAC_1)
        .flows(2);
    list.out(&says("it goes on though the service is all IPVS's by now"), later())
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .given(|t| {
            (t.config.flags, t.vips, t.rings) = (Config::FAST_FLOWS, Default::default(), Default::default());
            change(t, |backend| backend.flags = Backend::LIVE);
        })
        .delivers(IF_2, MAC_2)
        .flows(2);
    list.out(&says("it goes on past what stands there by now"), later())
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .given(|t| short_way::stand_at(t, IF_2))
        .delivers(IF_2, MAC_2)
        .flows(2);
    list.out(&says("its backend is gone: nobody knows it any more, and the node's stack ends it"), later())
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .given(|t| change(t, |backend| backend.flags = 0))
        .passes()
        .flows(0)
        .notes(1);
    for flags in [ACK, Tcp::FIN | ACK, Tcp::RST] {
        list.out(
            &says(&std::format!("what a backend that is gone still says with {flags:#x} arrives")),
            Build::tcp(by, client, flags).with(|b| (b.from_mac, b.to_mac) = (MAC_2, MAC_1)),
        )
        .at(IF_2)
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .given(|t| change(t, |backend| backend.flags = 0))
        .delivers(IF_1, MAC_1)
        .flows(2);
    }
    for (generation, changed) in [(0, ""), (1, ", since policies changed")] {
        list.out(
            &says(&std::format!("its pod is gone{changed}: the client's policy is asked whom IPVS chooses")),
            later(),
        )
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .given(move |t| {
            t.ifaces.remove(&IF_2);
            t.config.generation += generation;
            t.pods.insert(1, PodGroups { ingress: 0, egress: GROUP_1_OUT });
        })
        .passes()
        .flows(1)
        .notes(1);
    }
    list.out(&says("a connection anew gets a backend anew"), first())
        .given(move |t| begun(t, f, Tcp::TIME_WAIT))
        .given(|t| change(t, |backend| backend.flags = Backend::LIVE))
        .passes()
        .flows(1)
        .notes(1);
    for (state, flows, ends) in [(Tcp::TIME_WAIT, 2, "has ended"), (Tcp::ESTABLISHED, 3, "lives")] {
        let entry = list
            .out(
                &says(&std::format!("the same port, to another service of the same backend, and the former {ends}")),
                first(),
            )
            .given(move |t| begun(t, f, state))
            .given(move |t| {
                // The former one was to the service's other port.
                let (own, other) = (key(client, at, protocol::TCP), (at.0, 444));
                let flow = t.flows.remove(&own).unwrap_or_default();
                t.flows.insert(key(client, other, protocol::TCP), flow);
                t.flows.entry(key(by, client, protocol::TCP)).and_modify(|flow| flow.to_port = 444);
            })
            .flows(flows);
        if flows == 2 {
            entry.delivers(IF_2, MAC_2)
        } else {
            entry.passes().notes(1)
        };
    }
    list.out(&says("the client's policy came to forbid it"), later())
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .given(|t| {
            t.config.generation += 1;
            t.pods.insert(1, PodGroups { ingress: 0, egress: GROUP_1_OUT });
        })
        .rejects(OUT, Reason::Denied)
        .flows(2);
    list.out(&says("policies changed and still allow it"), later())
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .given(|t| t.config.generation += 1)
        .delivers(IF_2, MAC_2)
        .flows(2);
    list.out(&says("the same of a reply"), reply())
        .at(IF_2)
        .given(move |t| begun(t, f, Tcp::ESTABLISHED))
        .given(|t| t.config.generation += 1)
        .delivers(IF_1, MAC_1)
        .flows(2);
}
