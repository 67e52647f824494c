//! Ways through the node: services, uplinks, a full table, pods that are not published, and what is answered.

use super::*;

pub(super) fn services(list: &mut List, f: Family) {
    let open = Build::tcp((pod_1(f), 4000), (service(f), 443), SYN);
    list.out("to a service: the verdict is pending, and noted", open.clone()).flows(1).notes(1);
    list.out("also for the packets after the first", Build::tcp((pod_1(f), 4000), (service(f), 443), ACK))
        .given(|t| {
            let flow = live(t, Flow::FROM_POD | Flow::PENDING);
            t.flows.insert(key((pod_1(f), 4000), (service(f), 443), protocol::TCP), flow);
        })
        .flows(1)
        .notes(1);
    list.into("its replies pass", Build::tcp((service(f), 443), (pod_1(f), 4000), SYN | ACK))
        .given(|t| {
            let flow = Flow { state: Tcp::SYN_SENT, ..live(t, Flow::FROM_POD | Flow::PENDING) };
            t.flows.insert(key((pod_1(f), 4000), (service(f), 443), protocol::TCP), flow);
        })
        .flows(1);
    let free = Build::tcp((pod_2(f), 4000), (service(f), 443), SYN).with(|b| b.from_mac = MAC_2);
    list.out("a pod that nothing isolates is noted too, as it may be masqueraded", free).at(IF_2).flows(0).notes(2);
    let gre = Build::new(pod_1(f), service(f), 47, vec![0; 12]);
    list.out("what no service balances is judged at once", gre).rejects(OUT, Reason::Denied).notes(0);
    let node_port = Build::tcp((pod_1(f), 4000), (node(f), 30_001), SYN);
    let ports = |t: &mut Tables| {
        let key = ServiceKey { port: 30_001, protocol: protocol::TCP, ..ServiceKey::default() };
        t.services.insert(key, Service::default());
    };
    list.out("to a port at which no service answers: judged", Build::tcp((pod_1(f), 4000), (service(f), 444), SYN))
        .rejects(OUT, Reason::Denied)
        .notes(0);
    let host = move |t: &mut Tables, flags: u16| {
        let key = ServiceKey { address: service(f), port: 443, protocol: protocol::TCP, pad: 0 };
        t.services.insert(key, Service { host: node(f), host_port: 6443, flags });
        t.ports.insert(port_index(protocol::TCP, 6443).unwrap_or_default(), WEB);
    };
    let allow_host = |t: &mut Tables| {
        let key = PolicyKey { group: GROUP_1_OUT, class: 8, ports: WEB };
        t.policy.insert(key, PolicyRow { verdict: PolicyRow::ALLOW, rule: 43 });
    };
    list.out("a process of this node may answer, and is forbidden", open.clone())
        .given(move |t| host(t, 0))
        .rejects(OUT, Reason::Denied);
    list.out("it may answer, and is allowed", open.clone())
        .given(move |t| host(t, 0))
        .given(allow_host)
        .flows(1)
        .notes(1);
    list.out("several may", open.clone())
        .given(move |t| host(t, Service::MORE))
        .given(allow_host)
        .rejects(OUT, Reason::Denied);
    let had = move |t: &mut Tables, to, generation| {
        let flow = Flow { generation, ..live(t, Flow::FROM_POD | Flow::PENDING | Flow::REPLIED) };
        t.flows.insert(key((pod_1(f), 4000), to, protocol::TCP), flow);
    };
    list.out("a connection anew, now that a process of this node may answer", open.clone())
        .given(move |t| host(t, 0))
        .given(move |t| had(t, (service(f), 443), GENERATION))
        .rejects(OUT, Reason::Denied)
        .flows(1);
    let goes_on = Build::tcp((pod_1(f), 4000), (node(f), 30_001), ACK);
    list.out("a flow to a node port that is nobody's any more", goes_on.clone())
        .given(move |t| had(t, (node(f), 30_001), GENERATION - 1))
        .rejects(OUT, Reason::Denied)
        .flows(1);
    list.out("and to one that is", goes_on)
        .given(ports)
        .given(move |t| had(t, (node(f), 30_001), GENERATION - 1))
        .flows(1)
        .notes(1);
    list.out("what was to a service stays so at other addresses", Build::tcp((pod_1(f), 4000), (service(f), 444), ACK))
        .given(move |t| had(t, (service(f), 444), GENERATION - 1))
        .flows(1)
        .notes(1);
    list.out("to a node port: pending", node_port.clone()).given(ports).flows(1).notes(1);
    list.out("to another port of the node: judged", Build::tcp((pod_1(f), 4000), (node(f), 10_250), SYN))
        .given(ports)
        .rejects(OUT, Reason::Denied);
    list.out("notes that a pod writes itself are removed", Build::tcp((pod_1(f), 4000), (friend(f), 80), SYN))
        .noted(2)
        .notes(0);

    // Behind the load balancer, at pod 2, which nothing isolates.
    let to_2 = |from| Build::tcp((from, 4000), (pod_2(f), 8080), SYN);
    list.into("pending, refused at the endpoint that was chosen", to_2(pod_1(f)))
        .at(IF_2)
        .noted(1)
        .rejects(OUT, Reason::Denied);
    let allow_2 = |t: &mut Tables| {
        let key = PolicyKey { group: GROUP_1_OUT, class: 6, ports: ANY };
        t.policy.insert(key, PolicyRow { verdict: PolicyRow::ALLOW, rule: 41 });
    };
    list.into("pending, allowed, and remembered", to_2(pod_1(f))).at(IF_2).noted(1).given(allow_2).flows(1);
    list.into("remembered for the packets after the first", Build::tcp((pod_1(f), 4000), (pod_2(f), 8080), ACK))
        .at(IF_2)
        .noted(1)
        .given(|t| {
            let behind = FlowKey { kind: FlowKey::BEHIND, ..key((pod_1(f), 4000), (pod_2(f), 8080), protocol::TCP) };
            t.flows.insert(behind, live(t, Flow::FROM_POD));
        })
        .flows(1);
    list.into("pending, but masqueraded: the verdict is the pod's all the same", to_2(node(f)))
        .at(IF_2)
        .noted(1)
        .rejects(OUT, Reason::Denied);

    // And at pod 1, whose ingress is isolated.
    let to_1 = |from| Build::tcp((from, 4000), (pod_1(f), 80), SYN);
    let origin = |t: &mut Tables| {
        let (v4, v6) = (pod_2(Family::V4), pod_2(Family::V6));
        t.origins.insert(2, Origin { v4, v6 });
    };
    list.into("a masqueraded pod is no node", to_1(node(f))).noted(2).given(origin).rejects(IN, Reason::Denied);
    list.into("but what it is", to_1(node(f)))
        .noted(2)
        .given(origin)
        .given(|t| {
            let key = PolicyKey { group: GROUP_1_IN, class: 6, ports: WEB };
            t.policy.insert(key, PolicyRow { verdict: PolicyRow::ALLOW, rule: 42 });
        })
        .flows(1);
    list.into("a pod reaches itself through a service", to_1(node(f))).noted(1).flows(1);
    list.into("a masqueraded client is no node", to_1(node(f)))
        .noted(note::of_class(STRANGER))
        .rejects(IN, Reason::Denied);
    list.into("but what it is, too", to_1(node(f))).noted(note::of_class(FRIEND)).flows(1);
    list.into("one without a class fits rows for any class only", to_1(node(f)))
        .noted(note::NO_CLASS)
        .rejects(IN, Reason::Denied);
    list.into("who is not masqueraded is known by the address", to_1(friend(f)))
        .noted(note::of_class(STRANGER))
        .flows(1);
    list.out("a reply to a masqueraded client, after a change", Build::tcp((pod_1(f), 80), (node(f), 4000), ACK))
        .given(|t| {
            let flow =
                Flow { generation: GENERATION - 1, class: STRANGER, ..live(t, Flow::MASQUERADED | Flow::REPLIED) };
            t.flows.insert(key((pod_1(f), 80), (node(f), 4000), protocol::TCP), flow);
        })
        .rejects(IN, Reason::Denied)
        .flows(1);
}

pub(super) fn full_table(list: &mut List, f: Family) {
    let full = |t: &mut Tables| t.max_flows = 0;
    let web = Build::tcp((pod_1(f), 4000), (friend(f), 80), SYN);
    list.out("full table: refused where replies need an entry", web.clone()).given(full).drops(OUT, Reason::TableFull);
    list.out("full table: passes where they do not, and is counted", web)
        .given(|t| {
            full(t);
            t.pods.insert(1, PodGroups { ingress: 0, egress: GROUP_1_OUT });
        })
        .counts(OUT, Reason::Untracked)
        .flows(0);
    list.into("full table: ingress", Build::tcp((friend(f), 4000), (pod_1(f), 80), SYN))
        .given(full)
        .drops(IN, Reason::TableFull);
    list.out("full table: denied is denied", Build::tcp((pod_1(f), 4000), (friend(f), 81), SYN))
        .given(full)
        .rejects(OUT, Reason::Denied);
    list.out("full table: a live flow goes on", Build::tcp((pod_1(f), 4000), (stranger(f), 80), ACK))
        .given(|t| {
            t.max_flows = 1;
            t.flows.insert(key((pod_1(f), 4000), (stranger(f), 80), protocol::TCP), live(t, Flow::FROM_POD));
        })
        .flows(1);
}

/// Room for so many flows, of which pod 1 has one (of port 4000 with the friend's) and others have some.
fn shared(t: &mut Tables, f: Family, most: u32, others: u16) {
    let flow = live(t, Flow::FROM_POD);
    t.config.max_flows = most;
    t.flows.insert(key((pod_1(f), 4000), (friend(f), 80), protocol::TCP), flow);
    for port in 0..others {
        t.flows.insert(key((pod_2(f), port), (friend(f), 80), protocol::TCP), Flow { ifindex: IF_2, pod: 2, ..flow });
    }
    t.count_flows();
}

pub(super) fn shared_table(list: &mut List, f: Family) {
    let web = Build::tcp((pod_1(f), 4001), (friend(f), 80), SYN);
    list.out("shared table: fewer than are free", web.clone()).given(|t| shared(t, f, 3, 0)).flows(2);
    list.out("shared table: as many as are free", web.clone())
        .given(|t| shared(t, f, 2, 0))
        .drops(OUT, Reason::TableFull)
        .flows(1);
    list.out("shared table: others have the most of it", web.clone()).given(|t| shared(t, f, 12, 9)).flows(11);
    list.out("shared table: others have more", web.clone())
        .given(|t| shared(t, f, 12, 10))
        .drops(OUT, Reason::TableFull)
        .flows(11);
    list.out("shared table: a limit that is not known", web.clone()).given(|t| shared(t, f, 0, 10)).flows(12);
    list.out("shared table: passes where replies need no entry, and is counted", web)
        .given(|t| {
            shared(t, f, 2, 0);
            t.pods.insert(1, PodGroups { ingress: 0, egress: GROUP_1_OUT });
        })
        .counts(OUT, Reason::Untracked)
        .flows(1);
    list.into("shared table: ingress", Build::tcp((friend(f), 4000), (pod_1(f), 80), SYN))
        .given(|t| shared(t, f, 2, 0))
        .drops(IN, Reason::TableFull);
    let again = Build::tcp((pod_1(f), 4000), (friend(f), 80), SYN);
    list.out("shared table: a live flow goes on", again.clone()).given(|t| shared(t, f, 1, 9)).flows(10);
    list.out("shared table: a flow anew in the place of one that is over", again)
        .given(|t| {
            shared(t, f, 1, 9);
            t.flows.values_mut().for_each(|flow| (flow.last_seen_s, flow.state) = (0, Tcp::CLOSE));
        })
        .flows(10);
}

pub(super) fn answers(list: &mut List, f: Family) {
    let denied = |to| Build::tcp((pod_1(f), 4000), to, SYN);
    let unfinished = denied((stranger(f), 80)).partial(16);
    list.out("a packet without its checksum is answered too", unfinished).rejects(OUT, Reason::Denied);
    let group = if f == Family::V4 {
        Address::from_v4([224, 0, 0, 251])
    } else {
        Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb])
    };
    list.out("groups are not answered", Build::udp((pod_1(f), 5353), (group, 5353), b"who"))
        .rejects(OUT, Reason::Denied)
        .unanswered();
    let broadcast = denied((stranger(f), 80)).with(|b| b.to_mac = [0xff; 6]);
    list.out("what went to everybody on the link is not answered", broadcast).rejects(OUT, Reason::Denied).unanswered();
    let answer = Build::icmp(nobody(f), pod_1(f), if f == Family::V4 { 3 } else { 1 }, 3, &[0; 40]);
    list.out("our own answer is not judged again", answer.clone())
        .noted(note::ANSWER)
        .marked(note::ANSWER_MARK)
        .notes(0)
        .flows(0);
    list.into("nor at the other hook", answer.clone()).noted(note::ANSWER).marked(note::ANSWER_MARK).flows(0);
    list.out("a pod that pretends so is judged", Build::tcp((pod_1(f), 4000), (friend(f), 81), SYN))
        .noted(note::ANSWER)
        .rejects(OUT, Reason::Denied)
        .notes(note::ANSWER);
}

pub(super) fn unpublished(list: &mut List, f: Family) {
    let out = Build::tcp((nobody(f), 4000), (friend(f), 80), SYN);
    let into = Build::tcp((friend(f), 4000), (nobody(f), 80), SYN);
    list.out("a pod that is not published sends", out.clone()).at(IF_NEW).flows(0);
    list.into("and gets", into.clone()).at(IF_NEW).flows(0);
    list.out("but not under default deny", out.clone()).at(IF_NEW).given(shut).rejects(OUT, Reason::Unpublished);
    list.into("nor gets", into).at(IF_NEW).given(shut).rejects(IN, Reason::Unpublished);
    let client = Build::tcp((in_block(f), 4000), (service(f), 443), SYN);
    list.out("its class is noted where it talks to a service", client).at(IF_NEW).notes(note::of_class(BLOCK));
    // Pod 3 is isolated, and none of the interfaces shows its address.
    let hidden = |t: &mut Tables| {
        t.endpoints.insert(nobody(f), Endpoint { pod: 3, ifindex: 0, mac: [0; 6], pad: [0; 2] });
    };
    let unchecked = |t: &mut Tables| t.config.flags = Config::NO_ANTISPOOF;
    list.out("one that sends as a pod which hides", out.clone())
        .at(IF_NEW)
        .given(hidden)
        .drops(OUT, Reason::SourceAddress);
    list.out("that is no matter of spoofing", out)
        .at(IF_NEW)
        .given(|t| (hidden(t), unchecked(t)).0)
        .drops(OUT, Reason::SourceAddress);
    let as_pod_2 = Build::tcp((pod_2(f), 4000), (friend(f), 80), SYN);
    list.out("one that sends as a pod of another interface", as_pod_2.clone())
        .at(IF_NEW)
        .drops(OUT, Reason::SourceAddress);
    list.out("unless sources are not checked", as_pod_2).at(IF_NEW).given(unchecked).flows(0);
    let as_friend = Build::tcp((friend(f), 4000), (pod_1(f), 80), SYN);
    list.out("one that sends as a pod of another node", as_friend.clone()).at(IF_NEW).drops(OUT, Reason::SourceAddress);
    list.out("unless sources are not checked there either", as_friend).at(IF_NEW).given(unchecked).flows(0);
    let early = Build::tcp((nobody(f), 4000), (friend(f), 80), SYN);
    list.out("a pod of this node that policies name before it has an interface", early)
        .at(IF_NEW)
        .given(|t| {
            t.peers.insert(nobody(f), Peer { class: FRIEND, flags: 0 });
        })
        .flows(0);
    let to = |to| Build::tcp((friend(f), 4000), (to, 80), SYN);
    list.into("nothing for a pod which hides gets there", to(nobody(f)))
        .at(IF_NEW)
        .given(hidden)
        .drops(IN, Reason::Elsewhere);
    list.into("what a bridge floods for another pod ends", to(pod_2(f))).at(IF_NEW).drops(IN, Reason::Elsewhere);
    let flooded = Build::tcp((stranger(f), 4000), (pod_2(f), 80), SYN);
    list.into("at an isolated pod, too, and nobody answers for the other", flooded).drops(IN, Reason::Elsewhere);
    list.into(
        "an address that nobody published is its interface's pod's",
        Build::tcp((stranger(f), 4000), (nobody(f), 80), SYN),
    )
    .rejects(IN, Reason::Denied);
    let flooded = Build::tcp((stranger(f), 4000), (nobody(f), 80), SYN);
    let other_mac = [2, 0, 0, 0, 0, 9];
    list.into("but not if a bridge floods it for another hardware address", flooded.clone())
        .sent_to(other_mac)
        .drops(IN, Reason::Elsewhere);
    list.into("unless sources are not checked: it may forward", flooded.clone())
        .sent_to(other_mac)
        .given(unchecked)
        .rejects(IN, Reason::Denied);
    list.into("a pod that nothing isolates gets what others see", flooded.clone()).sent_to(other_mac).at(IF_2).flows(0);
    let with_mac = |t: &mut Tables| t.ifaces.get_mut(&IF_NEW).expect("is there").mac = MAC_2;
    list.into("so does who is no pod, or a pod's second interface", flooded.clone())
        .sent_to(other_mac)
        .at(IF_NEW)
        .given(with_mac)
        .flows(0);
    list.into("nor does a pod that is shut refuse it in another's name", flooded.clone())
        .sent_to(other_mac)
        .at(IF_NEW)
        .given(|t| {
            shut(t);
            with_mac(t);
        })
        .drops(IN, Reason::Elsewhere);
    list.into("what is for everybody on the link is the pod's, too", flooded)
        .sent_to([0xff; 6])
        .rejects(IN, Reason::Denied)
        .unanswered();
    if f == Family::V6 {
        let solicit = Build::icmp(friend(f), nobody(f), icmp::NEIGHBOUR_SOLICIT, 0, &[0; 20]);
        let solicit = solicit.with(|b| b.hop_limit = 255);
        list.into("discovery passes even so", solicit).at(IF_NEW).given(shut).flows(0);
    }
}

pub(super) fn uplinks(list: &mut List, f: Family) {
    let add = |list: &mut List, says: &str, hook, packet: Build| -> usize {
        list.add(&std::format!("{f:?}: {says}"), hook, packet.bytes());
        list.cases.len() - 1
    };
    let from = |peer, to| Build::tcp((peer, 4000), (to, 80), SYN);
    let into = Hook::UplinkIn;
    let at = add(list, "an outside client's class is noted", into, from(friend(f), service(f)));
    Entry(&mut list.cases[at]).notes(note::of_class(FRIEND));
    let at = add(list, "by prefix too, and at a node's address", into, from(in_block(f), node(f)));
    Entry(&mut list.cases[at]).notes(note::of_class(BLOCK));
    let at = add(list, "not what goes elsewhere", into, from(friend(f), pod_1(f)));
    Entry(&mut list.cases[at]).notes(0);
    let at = add(list, "one who claims our address is not us", into, from(node(f), pod_1(f)));
    Entry(&mut list.cases[at]).notes(note::of_class(8));
    let at = add(list, "a foreign note is removed", into, from(friend(f), pod_1(f)));
    Entry(&mut list.cases[at]).noted(1).notes(0);
    let at = add(list, "a class too high to be noted", into, from(friend(f), service(f)));
    Entry(&mut list.cases[at])
        .given(|t| {
            t.peers.insert(friend(f), Peer { class: note::LAST_CLASS + 1, flags: 0 });
        })
        .notes(note::NO_CLASS);
    let out = Hook::UplinkOut;
    let at = add(list, "what is not pending goes out", out, from(pod_1(f), stranger(f)));
    Entry(&mut list.cases[at]).flows(0).notes(0);
    let at = add(list, "pending, allowed", out, from(pod_1(f), friend(f)));
    Entry(&mut list.cases[at]).noted(1).flows(1).notes(0);
    let at = add(list, "pending, refused", out, from(pod_1(f), stranger(f)));
    Entry(&mut list.cases[at]).noted(1).rejects(OUT, Reason::Denied).flows(0);
    let at = add(list, "pending, masqueraded, refused", out, from(node(f), stranger(f)));
    Entry(&mut list.cases[at]).noted(1).rejects(OUT, Reason::Denied).flows(0);
    let at = add(list, "a client's note ends here", out, from(node(f), stranger(f)));
    Entry(&mut list.cases[at]).noted(note::of_class(FRIEND)).flows(0).notes(0);
}
