//! Live flows: what they let through, for whom, and when they are judged again.

use super::*;

pub(super) fn live_flows(list: &mut List, f: Family) {
    let (pod, far) = ((pod_1(f), 4000), (stranger(f), 443));
    let known = |flags: u8| {
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
        .flows(0);
    list.into("from either side", Build::tcp(far, pod, ACK)).given(old).rejects(OUT, Reason::Denied).flows(0);
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
            let left = |flags: u8| {
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
