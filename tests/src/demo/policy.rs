//! The act of network policy: a shop is shut, and opened again rule by rule, while others knock.
//!
//! Before each step one sentence; after it three questions from three places, and what the agent says about them.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use super::{
    cast::PodRole,
    narrator::{Narrator, Place},
    shop::{self, CLIENT_BLOCK, PODS, STEPS, Step, WEB},
    stage::{PATIENCE, Stage},
};
use crate::{
    agent,
    probe::tcp_get,
    process::{Process, eventually},
};

/// Refusals are answered at once; this is for an answer in an emulated machine.
const ANSWER: Duration = Duration::from_secs(20);

pub fn perform(stage: &mut Stage, narrator: &mut Narrator) -> Result<()> {
    narrator.act("Network policy: who may talk to whom");
    narrator.say("Three more pods. shop/web answers; shop/front, ops/probe and the client outside will ask it:\n");
    open_the_shop(stage, narrator)?;
    narrator.say("\nWithout a policy everybody is answered:");
    knock(stage, narrator, &["shop/front", "ops/probe", "outside"])?;
    for (number, step) in STEPS.iter().enumerate() {
        narrator.say(format_args!("\n{}", step.sentence));
        stage.feed.apply(narrator, step.name, step.policy)?;
        in_force(stage, narrator, step)?;
        match number {
            0 => refused_in_public(stage, narrator, step)?,
            1 => {
                knock(stage, narrator, step.answered)?;
                explained(stage, narrator)?;
            }
            _ => knock(stage, narrator, step.answered)?,
        }
    }
    narrator.say("\nThe table again: who may now reach the shop, and on which ports?");
    let table = matrix(stage, narrator)?;
    let has = |party: &str| table.lines().any(|line| line.contains(party));
    narrator.holds("the client's block has a row of its own", has(CLIENT_BLOCK), &table);
    Ok(())
}

/// Its pods, their objects, and ways for the client outside.
fn open_the_shop(stage: &mut Stage, narrator: &mut Narrator) -> Result<()> {
    let nodes: Vec<String> = stage.cast.nodes.iter().map(|node| node.name.clone()).collect();
    let mut objects = shop::namespaces();
    for (pod, node) in PODS.iter().zip(&nodes) {
        let role = PodRole { name: pod.name.to_owned(), address: pod.address.parse()?, node: node.clone() };
        stage.add_pod(&role, pod.port)?;
        narrator
            .say(format_args!("pod            {:10} {:9} on {node}, labels {}", pod.shown, pod.address, pod.labels));
        objects.push(pod.object(node));
    }
    stage.let_client_reach_pods()?;
    stage.feed.add(narrator, "shop", &objects)
}

/// Those who ask: a name, and where its prompt is.
fn askers(stage: &Stage) -> Result<Vec<Place<'_>>> {
    let mut places = Vec::new();
    for pod in PODS.iter().filter(|pod| pod.port.is_none()) {
        places.push(Place { name: pod.shown, ns: &stage.pod(pod.name)?.ns });
    }
    places.push(stage.client());
    Ok(places)
}

/// Who is answered, asked in silence.
fn answered(stage: &Stage) -> Result<Vec<&str>> {
    let web: SocketAddr = format!("{WEB}:80").parse()?;
    let mut names = askers(stage)?;
    names.retain(|place| place.ns.run(|| tcp_get(web, ANSWER)).is_ok());
    Ok(names.into_iter().map(|place| place.name).collect())
}

fn in_force(stage: &Stage, narrator: &mut Narrator, step: &Step) -> Result<()> {
    let agreed = || answered(stage).is_ok_and(|names| names == step.answered);
    let outcome = eventually(step.name, PATIENCE, agreed).map_err(|error| error.to_string());
    narrator.check("it is in force", outcome);
    Ok(())
}

/// `curl` from everybody, before the audience.
fn knock(stage: &Stage, narrator: &mut Narrator, expected: &[&str]) -> Result<()> {
    let mut answered = Vec::new();
    for place in askers(stage)? {
        if narrator.attempt(place, "curl", &["-sS", "-m", "20", WEB])?.contains("HOSTNAME:web") {
            answered.push(place.name);
        }
    }
    let claim = match expected {
        [] => "nobody is answered".to_owned(),
        some => format!("answered: {}", some.join(", ")),
    };
    narrator.equal(&claim, &answered, &expected.to_vec());
    Ok(())
}

/// The shop is shut: what a monitor on its node sees of those who knock, and the table of all.
fn refused_in_public(stage: &Stage, narrator: &mut Narrator, step: &Step) -> Result<()> {
    narrator.say("\nOn the shop's node somebody looks on while they knock:");
    let (node, mut monitor) = monitor(stage, narrator)?;
    // Whether it looks on already is known once it has seen something.
    eventually("the monitor sees something", PATIENCE, || {
        answered(stage).is_ok() && monitor.log().iter().any(|line| line.contains(" drop "))
    })?;
    let begin = SystemTime::now();
    knock(stage, narrator, step.answered)?;
    let since =
        |lines: Vec<String>| -> Vec<String> { lines.into_iter().filter(|line| is_since(line, begin)).collect() };
    let all = |lines: &[String]| ["shop/front ", "ops/probe ", "192.168.10.200:"].iter().all(|who| has(lines, who));
    let told = eventually("the monitor tells of all three", PATIENCE, || all(&since(monitor.log())));
    narrator.say(format_args!("\nThe monitor on {node} said meanwhile:"));
    since(monitor.log()).iter().for_each(|line| narrator.say(line));
    narrator.check("it names who was refused, and says why", told.map_err(|error| error.to_string()));
    monitor.kill();
    narrator.say("\nAnd this is what anybody may do with the shop (+ everything, . nothing):");
    matrix(stage, narrator).map(drop)
}

/// The line's time of day, in UTC, is not before this one.
fn is_since(line: &str, begin: SystemTime) -> bool {
    const DAY_MS: u128 = 86_400_000;
    let begin = begin.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() % DAY_MS);
    let clock = line.split(' ').next().unwrap_or_default().split([':', '.']).map(|part| part.parse().unwrap_or(0));
    let ms = clock.zip([3_600_000, 60_000, 1_000, 1]).map(|(part, unit): (u128, u128)| part * unit).sum::<u128>();
    ms >= begin
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(&format!(": {part}")))
}

fn monitor(stage: &Stage, narrator: &mut Narrator) -> Result<(String, Process)> {
    let node = stage.cast.nodes.first().context("a node")?.name.clone();
    let (_, agent) = stage.agents().find(|(name, _)| *name == node).context("its agent")?;
    let arguments = ["monitor", "--drops", "--pod=shop/web", &format!("--socket={}", agent.socket().display())];
    let mut command = Command::new(agent::program()?);
    command.args(arguments);
    let process = agent.ns().spawn("monitor", command)?;
    narrator.shown(&node, &format!("{} &", Narrator::line("kube-router", &arguments)), "")?;
    Ok((node, process))
}

fn matrix(stage: &Stage, narrator: &mut Narrator) -> Result<String> {
    let (here, _) = stage.here()?;
    stage.ask_agent(narrator, &here, &["matrix", "--namespace=shop"])
}

fn explained(stage: &Stage, narrator: &mut Narrator) -> Result<()> {
    narrator.say("\nWhy may shop/front? The agent names the rule, and has looked it up in the kernel:");
    let node = stage.cast.nodes.first().context("a node")?.name.clone();
    let maps = stage.maps(&node)?;
    let text =
        stage.ask_agent(narrator, &node, &["explain", "--from=shop/front", "--to=shop/web", "--port=tcp/80", &maps])?;
    let good = text.contains("allowed by NetworkPolicy shop/front-only ingress[0]") && text.contains("kernel: agrees");
    narrator.holds("the rule is the one just written, and the kernel has it", good, &text);
    Ok(())
}
