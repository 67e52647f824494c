//! What a packet from pod to pod costs on its way through a node: plain, with our programs, with the original's chains.
//!
//! Every case has namespaces of its own. A line holds the cost of a packet of an established flow and of the first packet
//! of a flow, each the median of some rounds, and what the case is.

use std::{net::Ipv4Addr, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use kube_router::objects::Object;
use serde_json::json;

use crate::{
    cluster::{Measured, SERVER, Shape},
    enforce::Agent,
    lab::Lab,
    original,
    pins::Pins,
    pktgen::{self, Packets},
};

const ROUNDS: usize = 3;
/// Rounds, with those in which something else in the machine was at work.
const ATTEMPTS: u16 = 12;
pub const COUNT: u16 = 2_000;
/// The kernel takes namespaces apart after their last thread is gone, and would do so during the next measurement. Where
/// idling costs nothing this passes at once.
pub const CLEAN_UP: Duration = Duration::from_secs(20);

/// Before another attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// What judges the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    Nobody,
    Ours,
    /// By this `iptables-restore`.
    Original(&'static str),
}

impl Judge {
    pub const ALL: [Judge; 4] = [
        Judge::Nobody,
        Judge::Ours,
        Judge::Original("iptables-nft-restore"),
        Judge::Original("iptables-legacy-restore"),
    ];

    fn name(self) -> &'static str {
        match self {
            Judge::Nobody => "plain",
            Judge::Ours => "ours",
            Judge::Original("iptables-nft-restore") => "iptables-nft",
            Judge::Original(_) => "iptables-legacy",
        }
    }
}

/// A cluster and what is varied in it.
pub struct Case {
    name: &'static str,
    measured: Measured,
    around: Option<Shape>,
    /// Left out for the original: its tools would take too long in an emulated machine.
    large: bool,
}

pub fn cases() -> Vec<Case> {
    let measured = |policies| Measured { policies, neighbours: 0, last: false };
    let case = |name, measured| Case { name, measured, around: None, large: false };
    let around = |policies, pods, namespaces| Some(Shape { policies, pods, namespaces });
    vec![
        case("1 policy on the pods", measured(1)),
        case("10 policies on the pods", measured(10)),
        case("100 policies on the pods", measured(100)),
        case("1 policy, first of 100 pods", Measured { neighbours: 98, ..measured(1) }),
        case("1 policy, last of 100 pods", Measured { neighbours: 98, last: true, ..measured(1) }),
        Case { around: around(1_000, 1_000, 10), ..case("1 policy, 1,000 in the cluster", measured(1)) },
        Case {
            around: around(10_000, 10_000, 100),
            large: true,
            ..case("1 policy, 10,000 in the cluster", measured(1))
        },
    ]
}

/// The cases by the judges that were asked for, or by all, one JSON object a line.
pub fn run(cases: &[Case], judges: &[String]) -> Result<()> {
    let wanted = |judge: &Judge| judges.is_empty() || judges.iter().any(|name| name == judge.name());
    let Some(usual) = cases.first() else { return Ok(()) };
    // Fills the kernel's allocators and loads modules.
    measure(Judge::Nobody, usual)?;
    for judge in Judge::ALL.into_iter().filter(wanted) {
        for case in cases {
            let skipped = match judge {
                Judge::Nobody => case.name != usual.name,
                Judge::Ours => false,
                Judge::Original(_) => case.large,
            };
            if skipped {
                continue;
            }
            let (established, new) =
                measure(judge, case).with_context(|| format!("{}: {}", judge.name(), case.name))?;
            let Measured { policies, neighbours, last } = case.measured;
            let line = json!({
                "what": "path", "judge": judge.name(), "case": case.name, "policies": policies, "neighbours": neighbours,
                "last": last, "cluster": case.around.map(|shape| shape.policies),
                "established_ns": established, "new_ns": new,
            });
            println!("{line}");
        }
    }
    Ok(())
}

fn measure(judge: Judge, case: &Case) -> Result<(f64, f64)> {
    let lab = Lab::new()?;
    let mut objects = case.around.map(|shape| shape.objects()).unwrap_or_default();
    let measured = case.measured.objects();
    let at = if case.measured.last { objects.len() } else { 0 };
    objects.splice(at..at, measured);
    let pins = match judge {
        Judge::Nobody => None,
        Judge::Ours => Some(protect(&lab, objects)?),
        Judge::Original(restore) => {
            let layout = original::layout(&objects);
            lab.node.command("ipset restore", Some(layout.sets))?;
            lab.node.command(restore, Some(layout.rules))?;
            None
        }
    };
    // What the tools left to the kernel to finish; not later, as a flow of two packets is soon forgotten.
    thread::sleep(CLEAN_UP);
    let established = 4_000;
    pktgen::shake_hands(&lab, SERVER, established)?;
    pktgen::shut(&lab)?;
    let first = |round: u16| 10_000 + round * COUNT;
    let costs = [
        median(&lab, SERVER, |_| Packets::Of(established))?,
        median(&lab, SERVER, |round| Packets::From(first(round)))?,
    ];
    drop((lab, pins));
    thread::sleep(CLEAN_UP);
    Ok((costs[0], costs[1]))
}

pub fn median(lab: &Lab, to: Ipv4Addr, packets: impl Fn(u16) -> Packets) -> Result<f64> {
    let mut costs = Vec::new();
    for round in 0..ATTEMPTS {
        match pktgen::blast(lab, to, packets(round), COUNT.into())? {
            // The first one fills caches of routes and slabs.
            Some(cost) if round > 0 => costs.push(cost),
            Some(_) => {}
            None => thread::sleep(PAUSE),
        }
        if costs.len() == ROUNDS {
            costs.sort_by(f64::total_cmp);
            return Ok(costs[ROUNDS / 2]);
        }
    }
    bail!("packets were late or lost in most of {ATTEMPTS} rounds")
}

/// Puts our programs in front of both pods; the links stay while the pins do.
fn protect(lab: &Lab, objects: Vec<Object>) -> Result<Pins> {
    let pins = Pins::new()?;
    let base = pins.path().to_owned();
    lab.node.run(move || -> Result<()> {
        let mut agent = Agent::start(&base)?;
        agent.take(objects)?;
        let rows = agent.plane.dataplane().tables().policy.read_all()?.len();
        ensure!(rows > 0, "no rows were written");
        Ok(())
    })?;
    Ok(pins)
}
