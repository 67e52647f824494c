//! The later acts: the service changes, a pod goes, an agent dies, and two connections stay open through all of it.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};

use super::{
    cast::{CLUSTER_IP, NODE_PORT, Scheduling},
    look::{ask, names},
    narrator::{Narrator, Place},
    stage::Stage,
};
use crate::{
    oracle,
    probe::{Answer, Kept, Transport},
};

/// For one answer on an open connection.
const ANSWER: Duration = Duration::from_secs(20);

pub fn perform(stage: &mut Stage, narrator: &mut Narrator) -> Result<()> {
    narrator.act("Two connections that stay open");
    let mut open = OpenConnections::new(stage)?;
    narrator.say("One from the node to the service's address, one from outside to the node port. They stay with:");
    for one in &open.0 {
        narrator.say(format_args!("{:7} -> {}", one.from, one.pod.name));
    }
    open.check(narrator);
    affinity(stage, narrator, &mut open)?;
    schedulers(stage, narrator, &mut open)?;
    a_pod_leaves(stage, narrator, &mut open)?;
    an_agent_dies(stage, narrator, &mut open)
}

/// Connections made before anything changed.
struct OpenConnections(Vec<OpenConnection>);

struct OpenConnection {
    from: &'static str,
    kept: Kept,
    pod: Answer,
}

impl OpenConnections {
    fn new(stage: &Stage) -> Result<OpenConnections> {
        let (here, address) = stage.here()?;
        let cluster_ip: SocketAddr = CLUSTER_IP.parse()?;
        let targets = [
            ("node", stage.node(&here)?, cluster_ip),
            ("outside", stage.client(), SocketAddr::new(address, NODE_PORT)),
        ];
        let open = targets.into_iter().map(|(from, place, to)| {
            let mut kept = place.ns.run(|| Kept::open(Transport::Tcp, to, ANSWER)).context("an open connection")?;
            let pod = kept.ask().context("an answer on an open connection")?;
            Ok(OpenConnection { from, kept, pod })
        });
        Ok(OpenConnections(open.collect::<Result<_>>()?))
    }

    /// Asks on each of them: the same pod must answer.
    fn check(&mut self, narrator: &mut Narrator) {
        let mut lost = Vec::new();
        for one in &mut self.0 {
            match one.kept.ask() {
                Ok(answer) if answer == one.pod => {}
                Ok(answer) => lost.push(format!("{} -> {} instead of {}", one.from, answer.name, one.pod.name)),
                Err(error) => lost.push(format!("{} -> {}: {error}", one.from, one.pod.name)),
            }
        }
        narrator.holds("both open connections still talk to their pods", lost.is_empty(), lost.join(", "));
    }
}

/// Shows the service after a change, and that it was changed rather than made anew.
fn show(stage: &Stage, narrator: &mut Narrator, scheduling: &Scheduling, open: &mut OpenConnections) -> Result<()> {
    let (here, _) = stage.here()?;
    stage.settle(narrator, &format!("every node has it with `{}`", scheduling.options()), scheduling);
    let listing = narrator.run(stage.node(&here)?, "ipvsadm", &["-L", "-n", "-t", CLUSTER_IP])?;
    let servers = oracle::parse_ipvs(&listing)?;
    // All of them were made before the first change, and a virtual server made anew counts from nothing.
    narrator.holds("changed in place: its counters were kept", counted(stage)? > 0, "they begin at 0");
    let active: u32 = servers.iter().flat_map(|server| &server.destinations).map(|server| server.active).sum();
    narrator.holds("the kernel still counts the open connection", active >= 1, &listing);
    open.check(narrator);
    Ok(())
}

/// Connections that the service has had on this node, as the kernel has counted them.
fn counted(stage: &Stage) -> Result<u64> {
    let (here, _) = stage.here()?;
    let arguments = ["-L", "-n", "--stats", "--exact", "-t", CLUSTER_IP];
    let text = stage.node(&here)?.ns.command("ipvsadm", &arguments)?;
    let line = text.lines().find(|line| line.starts_with("TCP")).context("no line of the service")?;
    line.split_whitespace().nth(2).and_then(|word| word.parse().ok()).with_context(|| format!("no count in {line:?}"))
}

fn affinity(stage: &mut Stage, narrator: &mut Narrator, open: &mut OpenConnections) -> Result<()> {
    narrator.act("Session affinity: the same client, the same pod");
    stage.feed.set_affinity(narrator, true)?;
    show(stage, narrator, &Scheduling { affinity: true, ..Scheduling::DEFAULT }, open)?;
    let answers = ask(narrator, stage.client(), &node_port(stage)?, 3)?;
    narrator.equal("three questions, one pod", &counts(&answers), &vec![3]);
    stage.feed.set_affinity(narrator, false)?;
    stage.settle(narrator, "without affinity again", &Scheduling::DEFAULT);
    Ok(())
}

fn schedulers(stage: &mut Stage, narrator: &mut Narrator, open: &mut OpenConnections) -> Result<()> {
    narrator.act("Other schedulers: least connections, source hash, destination hash, round robin");
    for scheduler in ["lc", "sh", "dh", "rr"] {
        stage.feed.set_scheduler(narrator, scheduler)?;
        show(stage, narrator, &Scheduling { scheduler, affinity: false }, open)?;
        let answers = ask(narrator, stage.client(), &node_port(stage)?, 3)?;
        match scheduler {
            "rr" => narrator.equal("in turn", &counts(&answers), &vec![1, 1, 1]),
            // One client and one service address: the hash has one answer.
            "sh" | "dh" => narrator.equal("one hash, one pod", &counts(&answers), &vec![3]),
            _ => {
                let busy = open.0.iter().find(|one| one.from == "outside").map(|one| one.pod.name.clone());
                let avoided = busy.is_none_or(|busy| !names(&answers).contains_key(&busy));
                narrator.holds("not the pod that has an open connection", avoided, format!("{:?}", names(&answers)));
            }
        }
        narrator.say("");
    }
    Ok(())
}

fn a_pod_leaves(stage: &mut Stage, narrator: &mut Narrator, open: &mut OpenConnections) -> Result<()> {
    narrator.act("A pod leaves");
    let busy: BTreeSet<&str> = open.0.iter().map(|one| one.pod.name.as_str()).collect();
    let leaving =
        stage.cast.pods.iter().find(|pod| !busy.contains(pod.name.as_str())).context("a pod to remove")?.clone();
    stage.feed.remove_pod(narrator, &leaving)?;
    stage.remove_pod(&leaving)?;
    stage.settle(narrator, &format!("{} is behind no virtual server any more", leaving.address), &Scheduling::DEFAULT);
    let (here, _) = stage.here()?;
    narrator.run(stage.node(&here)?, "ipvsadm", &["-L", "-n", "-t", CLUSTER_IP])?;
    let answers = ask(narrator, stage.client(), &node_port(stage)?, 4)?;
    narrator.equal("the other four answer in turn", &counts(&answers), &vec![1; 4]);
    let gone = !names(&answers).contains_key(&leaving.name);
    narrator.holds("and it does not", gone, &leaving.name);
    open.check(narrator);
    Ok(())
}

fn an_agent_dies(stage: &mut Stage, narrator: &mut Narrator, open: &mut OpenConnections) -> Result<()> {
    narrator.act("An agent dies, and service goes on");
    let (here, _) = stage.here()?;
    let agent = stage.agent(&here)?;
    narrator.shown(&here, &format!("kill -9 {}", agent.id()), "")?;
    agent.kill();
    narrator.holds("the agent is gone", !agent.process().is_running(), "it runs");
    let before = oracle::ipvs_rules(stage.node(&here)?.ns)?;
    let node = stage.node(&here)?;
    let answers = ask(narrator, Place { name: &here, ns: node.ns }, CLUSTER_IP, 4)?;
    narrator.equal("four pods answer, without an agent", &counts(&answers), &vec![1; 4]);
    let answers = ask(narrator, stage.client(), &node_port(stage)?, 2)?;
    narrator.equal("from outside, too", &counts(&answers), &vec![1; 2]);
    open.check(narrator);
    narrator.say("\nA new one takes over what it finds:");
    stage.start_agent(&here, narrator)?;
    stage.wait_ready(&here)?;
    narrator.equal("the rules are as they were", &oracle::ipvs_rules(stage.node(&here)?.ns)?, &before);
    open.check(narrator);
    nobody_complained(stage, narrator);
    Ok(())
}

/// What every agent should be able to say of itself.
fn nobody_complained(stage: &Stage, narrator: &mut Narrator) {
    let complaints: Vec<String> = stage
        .agents()
        .flat_map(|(_, agent)| agent.log())
        .filter(|line| line.split_whitespace().any(|word| matches!(word, "ERROR" | "WARN")))
        .collect();
    narrator.holds("no agent has logged an error or a warning", complaints.is_empty(), complaints.join("\n"));
}

/// How often each of those who answered did.
fn counts(answers: &[Answer]) -> Vec<usize> {
    names(answers).into_values().collect()
}

fn node_port(stage: &Stage) -> Result<String> {
    Ok(format!("{}:{NODE_PORT}", stage.here()?.1))
}
