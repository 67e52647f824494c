//! `kube-router explain`: may one talk to another, and which rule says so?
//!
//! From manifests or a recording the answer is worked out here, without any agent or kernel. On a node the agent is
//! asked, and what it says is held against the kernel's tables, element by element.

use kube_router_common::policy::CLOSED;
use std::{fmt::Write as _, path::Path, process::ExitCode, thread, time::Duration};

use anyhow::{Result, anyhow};
use serde::Serialize;
use tokio::runtime::Builder;

use super::{
    look::{Objects, Output},
    reading,
    tables::{self, Pinned},
};
use crate::{
    compile::policy::{address_of, model::Traffic},
    explain::{
        Answer, Here, PolicyNames, Question,
        answer::{End, Way},
        answer_explain,
        holes::holes,
        ports::PortWish,
        text,
        walk::{differences, walk},
    },
    observe::{socket, socket_client},
};

/// Exit statuses; 0 is allowed.
const DENIED: u8 = 1;
const ERROR: u8 = 2;
const FAULT: u8 = 3;

/// The agent may be in the middle of a change: a difference must stand this often, this long apart.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// The answer with what the kernel says.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    /// Of the kernel's tables; `None`: not looked at.
    faults: Option<&'a [String]>,
}

/// Prints the answer; errors go to standard error.
pub fn explain(question: &Question, objects: &Objects, maps: &Path, output: Output) -> ExitCode {
    match told(question, objects, maps, output) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(ERROR)
        }
    }
}

fn told(question: &Question, objects: &Objects, maps: &Path, output: Output) -> Result<u8> {
    let (answer, faults) = match objects {
        Objects::Agent(socket) => {
            let (answer, faults) = live(question, socket, maps)?;
            (answer, Some(faults))
        }
        offline => {
            let cluster = reading::cluster(offline)?;
            let answer = answer_explain(&cluster, Here::default(), question);
            // Who is not there may be in what could not be understood.
            let answer = answer.map_err(|refusal| {
                let notes: String = holes(&cluster).iter().map(|hole| format!("\nnote: {hole}")).collect();
                anyhow!("{refusal}{notes}")
            });
            (answer?, None)
        }
    };
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&Told { answer: &answer, faults: faults.as_deref() })? + "\n",
        _ => in_words(&answer, faults.as_deref()),
    };
    super::print(&text)?;
    Ok(match (&faults, answer.allowed) {
        (Some(faults), _) if !faults.is_empty() => FAULT,
        (_, true) => 0,
        (_, false) => DENIED,
    })
}

fn in_words(answer: &Answer, faults: Option<&[String]>) -> String {
    let mut out = text::answer(answer);
    // Writing to a String cannot fail, here and below.
    match faults {
        None => {}
        Some([]) => {
            let judged = answer.ways.iter().flat_map(ends).filter(|end| end.wanted.is_some()).count();
            let _ = match judged {
                0 => writeln!(out, "kernel: not asked, no pod of this node is judged"),
                1 => writeln!(out, "kernel: agrees, one verdict compared"),
                _ => writeln!(out, "kernel: agrees, {judged} verdicts compared"),
            };
        }
        Some(faults) => faults.iter().for_each(|fault| {
            let _ = writeln!(out, "FAULT: {fault}");
        }),
    }
    out
}

fn ends(way: &Way) -> [&End; 2] {
    [&way.egress, &way.ingress]
}

/// Asks the agent, then the kernel; again where they differ.
fn live(question: &Question, socket: &Path, maps: &Path) -> Result<(Answer, Vec<String>)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut look = 1;
    loop {
        let answer = runtime.block_on(socket_client::get(socket, &socket::explain_path(question)));
        let answer: Answer = answer.map_err(reading::or_files)?;
        let judged = answer.ways.iter().flat_map(ends).any(|end| end.wanted.is_some());
        if !judged {
            return Ok((answer, Vec::new()));
        }
        let names: PolicyNames = runtime.block_on(socket_client::get(socket, socket::POLICY_NAMES_PATH))?;
        let pinned = Pinned(tables::open(maps)?);
        let faults = faults(&answer, &names, &pinned)?;
        if faults.is_empty() || look == LOOKS {
            return Ok((answer, faults));
        }
        look += 1;
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// Where model, agent and kernel differ.
fn faults(answer: &Answer, names: &PolicyNames, pinned: &Pinned) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for way in &answer.ways {
        let traffic = match PortWish::read(&way.traffic) {
            Some(PortWish::Number(protocol, port)) => Traffic::Port(protocol, port),
            _ => Traffic::Portless,
        };
        for end in ends(way) {
            let Some(wanted) = &end.wanted else { continue };
            let about = format!("{} of {}", wanted.direction.name(), end.pod.clone().unwrap_or_default());
            if wanted.group == CLOSED {
                faults.push(format!("{about}: shut, as a table is full; the agent's problems say which one and why"));
            } else if wanted.allowed != end.state.passes() {
                faults.push(format!(
                    "{about}, {}: the agent's own tables say {}, the policies {}",
                    way.traffic,
                    word(wanted.allowed),
                    word(end.state.passes())
                ));
            }
            let (own, peer) = (address_of(wanted.address), address_of(wanted.peer));
            let found = walk(pinned, wanted.direction, own, peer, traffic)?;
            let rule = |number| names.rule(number);
            faults.extend(
                differences(wanted, &found, &way.traffic, rule).into_iter().map(|fault| format!("{about}: {fault}")),
            );
        }
    }
    faults.sort();
    faults.dedup();
    Ok(faults)
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}
