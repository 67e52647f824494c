//! Live flows: what they let through, for whom, and when they are judged again.

use super::*;

pub(super) fn live_flows(list: &mut List, f: Family) {
    let (pod, far) = ((pod_1(f), 4000), (stranger(f), 443));
    let known = |flags: u16| {
        move |t: &mut Tables| {
            t.flows.insert(key(pod, far, protocol::TCP), live(t, flags));
        }
    };
    list.into("a reply passes by its flow", Build::tcp(far, pod, ACK)).given(known(Flow::FROM_POD)).flows(1);
    list.out("and what follows", Build::tcp(pod, far, ACK)).given(known(Flow::FROM_POD)).flows(1);
    list.into("but the peer's own connection is judged", Build::tcp(far, pod, SYN))
        .given(known(Flow::FROM_POD))
        .rejects(IN, Reason::Denied);
    list.into("a flow that is over is judged", Build::tcp(far, pod, ACK))
        .given(|t| {
            // The shortest time there is, as machines may be young.
            let (last_seen_s, state) = (t.now_s.saturating_sub(11), Tcp::CLOSE);
            let flow = Flow { last_seen_s, state, ..live(t, Flow::FROM_POD) };
            t.flows.insert(key(pod, far, protocol::TCP), flow);
        })
        .rejects(IN, Reason::Denied);
    let old = |t: &mut Tables| {
        let flow = Flow { generation: GENERATION - 1, ..live(t, Flow::FROM_POD | Flow::REPLIED) };
        t.flows.insert(key(pod, far, protocol::TCP), flow);
    };
    list.out("a change of policies stops a live connection", Build::tcp(pod, far, ACK))
        .given(old)
        .rejects(OUT, Reason::Denied)
        .flows(1);
    list.into("from either side", Build::tcp(far, pod, ACK)).given(old).rejects(OUT, Reason::Denied).flows(1);
    list.out("unless they may live on", Build::tcp(pod, far, ACK))
        .given(|t| {
            old(t);
            t.config.flags = Config::KEEP_ESTABLISHED;
        })
        .flows(1);
    let allowed = (friend(f), 80);
    list.into("a connection that is still allowed goes on", Build::tcp(allowed, pod, ACK))
        .given(|t| {
            let flow = Flow { generation: GENERATION - 1, ..live(t, Flow::FROM_POD | Flow::REPLIED) };
            t.flows.insert(key(pod, allowed, protocol::TCP), flow);
        })
        .flows(1);
    let reply = Build::tcp((pod_1(f), 80), (friend(f), 5000), ACK);
    list.out("a reply without a flow is judged as it goes", reply.clone()).rejects(OUT, Reason::Denied);
    list.out("while we learn it may be of an older connection", reply.clone())
        .given(|t| t.config.learn_until_s = t.now_s + 60)
        .flows(1);
    list.out("a new connection may not", Build::tcp((pod_1(f), 80), (friend(f), 5000), SYN))
        .given(|t| t.config.learn_until_s = t.now_s + 60)
        .rejects(OUT, Reason::Denied);
    list.out("nor what neither direction allows", Build::tcp((pod_1(f), 81), (friend(f), 5000), ACK))
        .given(|t| t.config.learn_until_s = t.now_s + 60)
        .rejects(OUT, Reason::Denied);
    list.into("learning the other way", Build::tcp((friend(f), 80), (pod_1(f), 5000), ACK))
        .given(|t| t.config.learn_until_s = t.now_s + 60)
        .flows(1);
    let dns = ((pod_1(f), 5353), (stranger(f), 53));
    list.into("UDP replies pass by their flow", Build::udp(dns.1, dns.0, b"answer"))
        .given(|t| {
            t.flows.insert(key(dns.0, dns.1, protocol::UDP), live(t, Flow::FROM_POD));
        })
        .flows(1);
}

/// A flow counts for the pod that it was made for, whatever its address is.
pub(super) fn foreign_flows(list: &mut List, f: Family) {
    let (pod, far) = ((pod_1(f), 4000), (stranger(f), 443));
    let other_veth: fn(&mut Flow) = |flow| flow.ifindex = IF_2;
    let other_number: fn(&mut Flow) = |flow| flow.pod = 2;
    for (whose, change) in [("another interface's", other_veth), ("another number's", other_number)] {
        for protocol in [protocol::TCP, protocol::UDP] {
            let packet = |from, to| match protocol {
                protocol::TCP => Build::tcp(from, to, ACK),
                _ => Build::udp(from, to, b"late"),
            };
            let left = |flags: u16| {
                move |t: &mut Tables| {
                    let mut flow = live(t, flags | Flow::REPLIED);
                    change(&mut flow);
                    t.flows.insert(key(pod, far, protocol), flow);
                }
            };
            let says = |text: &str| std::format!("protocol {protocol}: {whose} flow {text}");
            list.out(&says("does not let out"), packet(pod, far))
                .given(left(Flow::FROM_POD))
                .rejects(OUT, Reason::Denied);
            list.into(&says("does not let in"), packet(far, pod)).given(left(0)).rejects(IN, Reason::Denied);
            list.into(&says("does not even if connections may live on"), packet(far, pod))
                .given(left(Flow::FROM_POD))
                .given(|t| t.config.flags = Config::KEEP_ESTABLISHED)
                .rejects(IN, Reason::Denied);
            list.into(&says("does not if it is old either"), packet(far, pod))
                .given(left(Flow::FROM_POD))
                .given(|t| t.config.generation += 1)
                .rejects(IN, Reason::Denied);
            list.into(&says("gives way to ours"), packet((friend(f), 4000), (pod_1(f), 80)))
                .given(move |t| {
                    let mut flow = live(t, Flow::FROM_POD);
                    change(&mut flow);
                    t.flows.insert(key((pod_1(f), 80), (friend(f), 4000), protocol), flow);
                })
                .flows(1);
        }
        let sent = Build::udp(pod, far, b"query").network();
        let mut rest = vec![0; 4];
        rest.extend_from_slice(&sent);
        let problem = if f == Family::V4 { icmp::PARAMETER_PROBLEM } else { icmp::PARAMETER_PROBLEM_6 };
        list.into(
            &std::format!("an error about {whose} flow does not pass"),
            Build::icmp(nobody(f), pod_1(f), problem, 0, &rest),
        )
        .given(move |t| {
            let mut flow = live(t, Flow::FROM_POD);
            change(&mut flow);
            t.flows.insert(key(pod, far, protocol::UDP), flow);
        })
        .rejects(IN, Reason::Denied)
        .unanswered();
    }
    let group = if f == Family::V4 {
        Address::from_v4([224, 0, 0, 251])
    } else {
        Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb])
    };
    list.into("what another pod may get of a group is not for all", Build::udp((stranger(f), 1), (group, 99), b"all"))
        .given(move |t| {
            let flow = Flow { pod: 2, ifindex: IF_2, ..live(t, 0) };
            t.flows.insert(key((group, 99), (stranger(f), 1), protocol::UDP), flow);
        })
        .rejects(IN, Reason::Denied)
        .unanswered();

    // Behind a load balancer that masquerades pods have one address, and ports come round.
    let masqueraded = |t: &mut Tables, of: u32| {
        let behind = FlowKey { kind: FlowKey::BEHIND, ..key((node(f), 4000), (pod_2(f), 8080), protocol::TCP) };
        t.flows.insert(behind, Flow { pod: of, ..live(t, Flow::FROM_POD) });
    };
    let to_2 = |flags| Build::tcp((node(f), 4000), (pod_2(f), 8080), flags);
    list.into("behind a service: what was allowed to another pod", to_2(ACK))
        .at(IF_2)
        .noted(1)
        .given(move |t| masqueraded(t, 2))
        .rejects(OUT, Reason::Denied);
    list.into("behind a service: a new connection over an old entry", to_2(SYN))
        .at(IF_2)
        .noted(1)
        .given(move |t| masqueraded(t, 1))
        .rejects(OUT, Reason::Denied);
}

/// What was refused stays so whoever speaks next, until it is silent.
pub(super) fn refused_flows(list: &mut List, f: Family) {
    let (pod, far) = ((pod_1(f), 4000), (stranger(f), 443));
    let only = |ingress: u32, egress: u32| {
        move |t: &mut Tables| {
            t.pods.insert(1, PodGroups { ingress, egress });
        }
    };
    let (served, calling) = (only(GROUP_1_IN, 0), only(0, GROUP_1_OUT));
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        let packet = |from, to| match protocol {
            protocol::TCP => Build::tcp(from, to, ACK),
            protocol::UDP => Build::udp(from, to, b"more"),
            _ => Build::sctp(from, to),
        };
        let refused = |peer: (Address, u16), flags: u16| {
            move |t: &mut Tables| {
                let flow = live(t, flags | Flow::REPLIED | Flow::REFUSED);
                t.flows.insert(key(pod, peer, protocol), flow);
            }
        };
        let says = |text: &str| std::format!("protocol {protocol}: a refused flow {text}");
        // Nothing else isolates the pod in the direction in which each of these goes.
        list.out(&says("of the peer's is no way out"), packet(pod, far))
            .given(served)
            .given(refused(far, 0))
            .rejects(IN, Reason::Denied)
            .flows(1);
        list.into(&says("of the pod's is no way in"), packet(far, pod))
            .given(calling)
            .given(refused(far, Flow::FROM_POD))
            .rejects(OUT, Reason::Denied)
            .flows(1);
        list.into(&says("is refused though connections may live on"), packet(far, pod))
            .given(served)
            .given(refused(far, 0))
            .given(|t| t.config.flags = Config::KEEP_ESTABLISHED)
            .rejects(IN, Reason::Denied)
            .flows(1);
        list.out(&says("of another pod's says nothing"), packet(pod, far))
            .given(served)
            .given(refused(far, 0))
            .given(move |t| t.flows.values_mut().for_each(|flow| flow.pod = 2))
            .flows(1);
        let friendly = (friend(f), 80);
        list.into(&says("goes on when it is allowed again"), packet(friendly, pod))
            .given(calling)
            .given(refused(friendly, Flow::FROM_POD))
            .flows(1);
    }
    let connection = |t: &mut Tables| {
        let flow = live(t, Flow::REPLIED | Flow::REFUSED);
        t.flows.insert(key(pod, far, protocol::TCP), flow);
    };
    list.out("the pod may open a connection where one is refused", Build::tcp(pod, far, SYN))
        .given(served)
        .given(connection)
        .flows(1);
    list.into("and whom it refused is judged anew", Build::tcp(far, pod, SYN))
        .given(served)
        .given(connection)
        .rejects(IN, Reason::Denied)
        .flows(1);
    let mut quoted = vec![0; 4];
    quoted.extend_from_slice(&Build::udp(pod, far, b"query").network());
    let problem = if f == Family::V4 { icmp::PARAMETER_PROBLEM } else { icmp::PARAMETER_PROBLEM_6 };
    list.into("an error about a refused flow does not pass", Build::icmp(nobody(f), pod.0, problem, 0, &quoted))
        .given(move |t| {
            let flow = live(t, Flow::FROM_POD | Flow::REFUSED);
            t.flows.insert(key(pod, far, protocol::UDP), flow);
        })
        .rejects(IN, Reason::Denied)
        .unanswered();
}

/// Where there are policies at all, flows of pods that nothing isolates are known.
pub(super) fn kept_flows(list: &mut List, f: Family) {
    let (pod, far) = ((pod_1(f), 4000), (stranger(f), 443));
    let free = |t: &mut Tables| {
        t.pods.clear();
        t.config.flags = Config::ALL_FLOWS;
    };
    list.out("a free pod's connection is known", Build::tcp(pod, far, SYN)).given(free).flows(1);
    list.into("and whom it serves", Build::udp(far, pod, b"query")).given(free).flows(1);
    list.into("and goes on when the policies change", Build::tcp(far, pod, ACK))
        .given(free)
        .given(move |t| {
            let flow = Flow { generation: GENERATION - 1, ..live(t, Flow::FROM_POD) };
            t.flows.insert(key(pod, far, protocol::TCP), flow);
        })
        .flows(1);
    list.into(
        "behind a service, into a free pod: the caller's flow is judged again",
        Build::tcp(pod, (pod_2(f), 81), ACK),
    )
    .at(IF_2)
    .noted(1)
    .given(move |t| {
        t.config.flags = Config::ALL_FLOWS;
        let behind = FlowKey { kind: FlowKey::BEHIND, ..key(pod, (pod_2(f), 81), protocol::TCP) };
        let flow = Flow { generation: GENERATION - 1, ifindex: IF_2, ..live(t, Flow::FROM_POD) };
        t.flows.insert(behind, flow);
    })
    .rejects(OUT, Reason::Denied);
    list.out("but not where there are no policies", Build::tcp(pod, far, SYN)).given(|t| t.pods.clear()).flows(0);
    list.out("what can't be read leaves a free pod", Build::tcp(pod, far, SYN).with(|b| b.transport.truncate(3)))
        .given(free)
        .flows(0);
    list.into("no room, and a free pod is served", Build::udp(far, pod, b"query"))
        .given(free)
        .given(|t| t.max_flows = 0)
        .given(|t| t.config.max_flows = 1)
        .given(|t| {
            t.flow_counts.insert(crate::flow::ALL_PODS, 1);
        })
        .flows(0);
    list.out(
        "a process of the node may be chosen, where nothing isolates egress",
        Build::tcp(pod, (service(f), 443), SYN),
    )
    .given(|t| {
        t.pods.insert(1, PodGroups { ingress: GROUP_1_IN, egress: 0 });
        for service in t.services.values_mut() {
            (service.host, service.host_port, service.flags) = (node(f), 443, Service::MORE);
        }
    })
    .flows(1);
}
