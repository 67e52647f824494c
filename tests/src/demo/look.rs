//! The first acts: nothing changes, one only looks. Who answers, and by what.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Result;

use super::{
    cast::{CLUSTER_IP, KUBERNETES, NODE_PORT, Scheduling},
    narrator::{Narrator, Place},
    stage::{INTERFACE, Stage},
};
use crate::{
    oracle,
    probe::{Answer, ProbeError},
};

pub fn perform(stage: &mut Stage, narrator: &mut Narrator) -> Result<()> {
    virtual_servers(stage, narrator)?;
    who_answers(stage, narrator)?;
    what_makes_it_work(stage, narrator)
}

/// `curl ADDRESS`, so many times; the answers that were answers.
pub fn ask(narrator: &mut Narrator, place: Place<'_>, address: &str, times: usize) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for _ in 0..times {
        let text = narrator.run(place, "curl", &["-sS", "-m", "20", address])?;
        match Answer::parse(text.trim()) {
            Ok(answer) => answers.push(answer),
            // A silent or failed curl is a failed check already.
            Err(ProbeError::Garbled(said)) if said.is_empty() => {}
            Err(error) => narrator.check("a pod answers", Err(error.to_string())),
        }
    }
    Ok(answers)
}

/// Names that answered, each with the number of times.
pub fn names(answers: &[Answer]) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for answer in answers {
        *names.entry(answer.name.clone()).or_default() += 1;
    }
    names
}

fn virtual_servers(stage: &Stage, narrator: &mut Narrator) -> Result<()> {
    narrator.act("Each service is a virtual server of the kernel, each pod a real server behind it");
    let (here, address) = stage.here()?;
    let place = stage.node(&here)?;
    let listing = narrator.run(place, "ipvsadm", &["-L", "-n"])?;
    let servers = oracle::parse_ipvs(&listing)?;
    let mut addresses: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
    addresses.sort();
    let expected = [KUBERNETES, CLUSTER_IP, &format!("{address}:{NODE_PORT}")].map(|address| format!("TCP {address}"));
    narrator.equal("three virtual servers: two services, and the node port", &addresses, &expected.to_vec());
    let forward: BTreeSet<&str> =
        servers.iter().flat_map(|server| &server.destinations).map(|server| server.forward.as_str()).collect();
    narrator.equal("reached by address translation", &forward, &["Masq"].into());
    let saved = narrator.run(place, "ipvsadm", &["-S", "-n"])?;
    let lines: BTreeSet<String> = saved.lines().map(|line| line.trim().to_owned()).collect();
    let expected = stage.cast.rules(address, &stage.feed.api_servers(), &Scheduling::DEFAULT);
    narrator.equal("these rules and no other", &lines, &expected);
    Ok(())
}

fn who_answers(stage: &Stage, narrator: &mut Narrator) -> Result<()> {
    narrator.act("Who answers? Everybody in turn");
    let (here, address) = stage.here()?;
    let pods = stage.cast.pod_names();
    let each_once: BTreeMap<String, usize> = pods.iter().map(|name| (name.clone(), 1)).collect();

    narrator.say("From a node:");
    let answers = ask(narrator, stage.node(&here)?, CLUSTER_IP, pods.len())?;
    narrator.equal("five questions, five pods", &names(&answers), &each_once);

    let Some(role) = stage.cast.pods.iter().find(|pod| pod.node == here) else { return Ok(()) };
    narrator.say("\nFrom a pod (one of the five, so in its turn it reaches itself):");
    let pod = stage.pod(&role.name)?;
    let answers = ask(narrator, Place { name: &role.name, ns: &pod.ns }, CLUSTER_IP, pods.len())?;
    narrator.equal("five questions, five pods", &names(&answers), &each_once);

    narrator.say("\nFrom outside, at the node port of any node:");
    let answers = ask(narrator, stage.client(), &format!("{address}:{NODE_PORT}"), pods.len())?;
    narrator.equal("five questions, five pods", &names(&answers), &each_once);
    let seen: BTreeSet<IpAddr> = answers.iter().map(|answer| answer.client).collect();
    narrator.equal("the pods see the node as their client (--masquerade-all)", &seen, &[address].into());
    let Some(other) = stage.cast.nodes.first() else { return Ok(()) };
    let answers = ask(narrator, stage.client(), &format!("{}:{NODE_PORT}", other.address), 2)?;
    narrator.equal("another node balances, too", &names(&answers).len(), &2);

    narrator.say("\nThe API server has a service as well:");
    stage.feed.visit_api(narrator, stage.node(&here)?)
}

fn what_makes_it_work(stage: &Stage, narrator: &mut Narrator) -> Result<()> {
    narrator.act("What makes it work: addresses, sets and routes");
    let (here, address) = stage.here()?;
    let place = stage.node(&here)?;
    narrator.say("Every service address is an address of the node, on an interface that leads nowhere:");
    narrator.run(place, "ip", &["address", "show", "kube-dummy-if"])?;
    let own = oracle::addresses(place.ns)?.remove("kube-dummy-if").unwrap_or_default();
    let own: BTreeSet<String> = own.iter().map(ToString::to_string).collect();
    let ip = |service: &str| service.split(':').next().unwrap_or_default().to_owned();
    let expected = [KUBERNETES, CLUSTER_IP].map(|service| format!("{}/32", ip(service)));
    narrator.equal("both service addresses are there", &own, &expected.into());

    narrator.say("\nOnly the services' own ports are open on them; these sets say which:");
    for (set, members) in [
        ("kube-router-svip", vec![ip(KUBERNETES), ip(CLUSTER_IP), address.to_string()]),
        (
            "kube-router-svip-prt",
            [KUBERNETES, CLUSTER_IP, &format!("{address}:{NODE_PORT}")].map(|at| at.replace(':', ",tcp:")).into(),
        ),
    ] {
        let text = narrator.run(place, "ipset", &["list", set])?;
        // Each member is followed by its timeout, 0 for ever.
        let members_seen = text.lines().skip_while(|line| *line != "Members:").skip(1);
        let seen: BTreeSet<&str> = members_seen.filter_map(|line| line.split(' ').next()).collect();
        narrator.equal(
            &format!("{set} holds the virtual servers"),
            &seen,
            &members.iter().map(String::as_str).collect(),
        );
    }

    narrator
        .say("\nPods of other nodes are reached by routes (static ones here: this agent runs the service proxy only):");
    let text = narrator.run(place, "ip", &["route"])?;
    for node in &stage.cast.nodes {
        let route = match node.name == here {
            true => format!("{} dev kube-bridge", node.pod_cidr),
            false => format!("{} via {} dev {INTERFACE}", node.pod_cidr, node.address),
        };
        narrator.holds(&format!("{route} is there"), text.lines().any(|line| line.starts_with(&route)), &text);
    }

    narrator.say("\nThe agent says the same in the words of Kubernetes:");
    let text = stage.ask_agent(narrator, &here, &["dump", "services"])?;
    let wanted: Vec<String> = stage.cast.pods.iter().map(|pod| format!("-> {}:8080 weight 1", pod.address)).collect();
    let all_there = wanted.iter().all(|line| text.contains(line)) && text.contains("default/myip");
    narrator.holds("service, virtual servers and pods are in it", all_there, "something is missing");
    Ok(())
}
