//! `--cleanup-config`: removes exactly what is ours, or what the original left under the same names, and says so.
//!
//! Which IPVS entries are ours is told at [`plan_cleanup`]. Left alone: kernel settings (nobody knows what they were),
//! foreign virtual servers, sets and tables, and everything inside --excluded-cidrs.

use anyhow::{Result, bail};
use ipnet::IpNet;
use tracing::{error, info};

use crate::{
    apply::{
        FirewallPlane, IpvsPlane, NetPlane, PlaneError, bpf, firewall::KernelFirewall, ipvs::Ipvs, net::NetlinkNet,
    },
    config::Config,
    plan::{Observed, Stage, plan_cleanup},
};

/// Each part is tried even if another fails.
///
/// # Errors
/// Something of ours could not be removed; the log names it.
pub fn cleanup(config: &Config) -> Result<()> {
    let policy = match bpf::remove_all(&config.programs.pins) {
        Ok(interfaces) => {
            info!(interfaces, what = "BPF programs and tables", "cleaned up");
            0
        }
        Err(error) => {
            error!(%error, what = "BPF programs and tables", "not cleaned up");
            1
        }
    };
    clean(Ipvs::open(), NetlinkNet::open(), KernelFirewall::open(), &config.proxy.excluded_cidrs, policy)
}

fn clean(
    ipvs: Result<impl IpvsPlane, PlaneError>,
    net: Result<impl NetPlane, PlaneError>,
    firewall: Result<impl FirewallPlane, PlaneError>,
    excluded: &[IpNet],
    mut failed: usize,
) -> Result<()> {
    let ipvs = look(ipvs, IpvsPlane::observe, &mut failed);
    let net = look(net, NetPlane::observe, &mut failed);
    let firewall = look(firewall, FirewallPlane::observe, &mut failed);
    let ((mut ipvs, ipvs_holds), (mut net, net_holds), (mut firewall, firewall_holds)) = (ipvs, net, firewall);
    let observed = Observed { ipvs: ipvs_holds, net: net_holds, firewall: firewall_holds };
    for stage in plan_cleanup(&observed, excluded).stages {
        let result = match &stage {
            Stage::Ipvs(ops) => ipvs.as_mut().map_or(Ok(Vec::new()), |plane| plane.apply(ops)),
            Stage::Net(ops) => net.as_mut().map_or(Ok(Vec::new()), |plane| plane.apply(ops)),
            Stage::Firewall(ops) => firewall.as_mut().map_or(Ok(Vec::new()), |plane| plane.apply(ops)),
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
        bail!("{failed} thing(s) of ours could not be removed; the lines above name them");
    }
    Ok(())
}

/// A plane with what it holds. One that cannot be read is named and counted, and nothing is planned for it.
fn look<P, T: Default>(
    plane: Result<P, PlaneError>,
    observe: impl FnOnce(&mut P) -> Result<T, PlaneError>,
    failed: &mut usize,
) -> (Option<P>, T) {
    let looked = plane.and_then(|mut plane| observe(&mut plane).map(|there| (plane, there)));
    match looked {
        Ok((plane, there)) => (Some(plane), there),
        // A kernel without IPVS holds no virtual server of ours.
        Err(PlaneError::Unavailable { .. }) => (None, T::default()),
        Err(error) => {
            error!(%error, "cannot be read, so nothing of it is removed");
            *failed += 1;
            (None, T::default())
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{apply::fake::FakeKernel, desired::VirtualKey, objects::Protocol};

    /// A kernel that holds something of ours on every plane.
    fn kernel() -> FakeKernel {
        let kernel = FakeKernel::new();
        let vip = [10, 96, 0, 1].into();
        {
            let held = &mut kernel.0.borrow_mut().kernel;
            let key = VirtualKey { address: vip, protocol: Protocol::Tcp, port: 80 };
            held.ipvs.servers.insert(key, Default::default());
            held.net.dummy_exists = true;
            held.net.dummy_addresses.insert(vip);
            held.firewall.tables_exist = true;
        }
        kernel
    }

    #[test]
    fn a_plane_that_cannot_be_read_keeps_nobody_from_the_others() {
        for broken in 0..3 {
            let kernel = kernel();
            let plane = |number| {
                let error = || std::io::Error::from_raw_os_error(libc::EPERM);
                if number == broken {
                    Err(PlaneError::Io { what: "test".into(), source: error() })
                } else {
                    Ok(kernel.clone())
                }
            };
            let error = clean(plane(0), plane(1), plane(2), &[], 0).expect_err("the exit status tells");
            assert!(error.to_string().starts_with("1 thing"), "{error}");
            let held = kernel.observe().expect("in memory");
            let left = [!held.ipvs.servers.is_empty(), held.net.dummy_exists, held.firewall.tables_exist];
            // What is ours in IPVS is told by the address on kube-dummy-if.
            let expected = [broken < 2, broken == 1, broken == 2];
            assert_eq!(left, expected, "plane {broken}");
        }
    }

    #[test]
    fn a_kernel_without_ipvs_has_nothing_of_ours_there() {
        let kernel = kernel();
        let source = crate::nl::NlError::Socket(std::io::Error::from_raw_os_error(libc::ENOENT));
        let missing = PlaneError::Unavailable { what: "IPVS", source };
        clean(Err::<FakeKernel, _>(missing), Ok(kernel.clone()), Ok(kernel.clone()), &[], 0).expect("clean");
        assert!(!kernel.observe().expect("in memory").net.dummy_exists);
    }
}
