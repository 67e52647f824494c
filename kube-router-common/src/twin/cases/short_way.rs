//! Promises about what a pod sends to another pod of its node.

use super::*;

#[cfg(test)]
mod tests;

/// The two pods, of which nothing isolates the first one either.
fn free(t: &mut Tables) {
    t.config.flags = Config::FAST;
    t.pods.insert(1, PodGroups::default());
}

/// A qdisc that shapes what the pod gets, say.
pub(super) fn stand_at(t: &mut Tables, ifindex: u32) {
    if let Some(iface) = t.ifaces.get_mut(&ifindex) {
        iface.flags &= !Iface::DIRECT;
    }
}

/// More of it follows.
fn first_piece(b: &mut Build) {
    if b.from.is_v4() {
        b.fragment = 0x2000;
    } else {
        b.extensions = vec![(protocol::FRAGMENT, vec![0, 0, 1, 0, 0, 0, 7])];
    }
}

pub(super) fn short_way(list: &mut List, f: Family) {
    let (one, two) = ((pod_1(f), 4000), (pod_2(f), 80));
    for protocol in [protocol::TCP, protocol::UDP] {
        let first = || match protocol {
            protocol::TCP => Build::tcp(one, two, SYN),
            _ => Build::udp(one, two, b"first"),
        };
        let later = || match protocol {
            protocol::TCP => Build::tcp(one, two, ACK),
            _ => Build::udp(one, two, b"later"),
        };
        let says = |text: &str| std::format!("protocol {protocol}, to a pod of the node: {text}");
        if protocol == protocol::TCP {
            list.out(&says("both get entries"), first()).given(free).delivers(IF_2, MAC_2).flows(2);
            list.out(&says("behind a router"), first()).given(free).sent_to([9; 6]).delivers(IF_2, MAC_2).flows(2);
            list.out(&says("not without the switch"), first())
                .given(free)
                .given(|t| t.config.flags = Config::ALL_FLOWS)
                .flows(1);
            list.out(&says("not to one that is not published"), first())
                .given(free)
                .given(|t| {
                    t.ifaces.insert(IF_2, Iface { pod: 2, ..Iface::default() });
                })
                .flows(0);
            for hindered in [IF_1, IF_2] {
                list.out(&says(&std::format!("not past what stands at interface {hindered}")), first())
                    .given(free)
                    .given(move |t| stand_at(t, hindered))
                    .flows(0);
            }
            list.out(&says("its policy is asked"), first())
                .given(free)
                .given(|t| {
                    t.pods.insert(2, PodGroups { ingress: GROUP_1_IN, egress: 0 });
                })
                .rejects(Direction::Ingress, Reason::Denied)
                .flows(0);
            list.out(&says("no room for both"), first()).given(free).given(|t| t.max_flows = 1).passes();
        } else {
            list.out(&says("it may be the reply to what was translated"), first()).given(free).passes().flows(0);
        }
        let pair = move |change: fn(&mut Flow)| {
            move |t: &mut Tables| {
                free(t);
                let own = Flow { to_ifindex: IF_2, ..live(t, Flow::FROM_POD | Flow::REPLIED | Flow::FAST) };
                let other = Flow { to_ifindex: IF_1, ifindex: IF_2, pod: 2, ..live(t, Flow::REPLIED | Flow::FAST) };
                for (key, mut flow) in [(key(one, two, protocol), own), (key(two, one, protocol), other)] {
                    change(&mut flow);
                    t.flows.insert(key, flow);
                }
            }
        };
        list.out(&says("a fragment of a live flow"), later().with(first_piece)).given(pair(|_| ())).passes();
        list.out(&says("a live flow"), later()).given(pair(|_| ())).delivers(IF_2, MAC_2).flows(2);
        list.out(&says("goes on where no other does any more"), later())
            .given(pair(|_| ()))
            .given(|t| t.config.flags = Config::FAST_FLOWS)
            .delivers(IF_2, MAC_2)
            .flows(2);
        list.out(&says("one direction was silent"), later())
            .given(pair(|flow| {
                if flow.is(Flow::FROM_POD) {
                    flow.last_seen_s = 0
                }
            }))
            .delivers(IF_2, MAC_2)
            .flows(2);
        list.out(&says("the other pod's policy came to forbid it"), later())
            .given(pair(|flow| flow.generation -= 1))
            .given(|t| {
                t.pods.insert(2, PodGroups { ingress: GROUP_1_IN, egress: 0 });
            })
            .rejects(Direction::Ingress, Reason::Denied)
            .flows(2);
        list.out(&says("something stands at the other pod's interface by now"), later())
            .given(pair(|_| ()))
            .given(|t| stand_at(t, IF_2))
            .passes()
            .flows(2);
        list.out(&says("the other pod is gone"), later())
            .given(pair(|_| ()))
            .given(|t| {
                t.ifaces.remove(&IF_2);
            })
            .passes()
            .flows(2);
    }
}
