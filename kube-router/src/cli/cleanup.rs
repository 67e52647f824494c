//! `--cleanup-config`: removes exactly what is ours, or what the original left under the same names, and says so.
//!
//! Which IPVS entries are ours is told at [`plan_cleanup`]. Left alone: kernel settings (nobody knows what they were),
//! foreign virtual servers, sets and tables, and everything inside --excluded-cidrs.

use anyhow::{Result, bail};
use tracing::{error, info};

use crate::{
    apply::{FirewallPlane, IpvsPlane, NetPlane, PlaneError, firewall::KernelFirewall, ipvs::Ipvs, net::NetlinkNet},
    config::Config,
    plan::{Observed, Stage, plan_cleanup},
};

/// Each part is tried even if another fails.
///
/// # Errors
/// Something of ours could not be removed; the log names it.
pub fn cleanup(config: &Config) -> Result<()> {
    let (mut ipvs, mut net, mut firewall) = (Ipvs::open()?, NetlinkNet::open()?, KernelFirewall::open()?);
    let observed = Observed {
        ipvs: match ipvs.observe() {
            // A kernel without IPVS holds no virtual server of ours.
            Err(PlaneError::Unavailable { .. }) => Default::default(),
            other => other?,
        },
        net: net.observe()?,
        firewall: firewall.observe()?,
    };
    let mut failed = 0;
    for stage in plan_cleanup(&observed, &config.proxy.excluded_cidrs).stages {
        let result = match &stage {
            Stage::Ipvs(ops) => ipvs.apply(ops),
            Stage::Net(ops) => net.apply(ops),
            Stage::Firewall(ops) => firewall.apply(ops),
            Stage::Conntrack(_) => Ok(Vec::new()),
        };
        match result {
            Ok(failures) => {
                for failure in &failures {
                    error!(order = describe(&stage, failure.index), refused = %failure.refusal, "not removed");
                }
                failed += failures.len();
                info!(removed = stage.len() - failures.len(), what = name(&stage), "cleaned up");
            }
            Err(error) => {
                error!(%error, what = name(&stage), "not cleaned up");
                failed += stage.len();
            }
        }
    }
    if failed > 0 {
        bail!("{failed} things of ours could not be removed; the lines above name them");
    }
    Ok(())
}

fn name(stage: &Stage) -> &'static str {
    match stage {
        Stage::Ipvs(_) => "IPVS virtual servers",
        Stage::Net(_) => "kube-dummy-if",
        Stage::Firewall(_) => "nftables table and ipsets",
        Stage::Conntrack(_) => "UDP flows",
    }
}

fn describe(stage: &Stage, index: usize) -> String {
    match stage {
        Stage::Ipvs(ops) => format!("{:?}", ops[index]),
        Stage::Net(ops) => format!("{:?}", ops[index]),
        Stage::Firewall(ops) => format!("{:?}", ops[index]),
        Stage::Conntrack(flows) => format!("{:?}", flows[index]),
    }
}
