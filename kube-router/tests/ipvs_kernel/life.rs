//! What concerns IPVS as a whole: its timeouts, and its module's coming and going.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kube_router::{
    apply::{IpvsPlane, IpvsTimeouts, PlaneError, ipvs::Ipvs},
    objects::Protocol,
    plan::{IpvsOp, ObservedIpvs},
};

use crate::support::*;

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
fn timeouts_of_zero_leave_the_kernels() {
    in_namespace(|mut ipvs| {
        let shown = || {
            let text = run("ipvsadm", &["-L", "--timeout"]);
            let numbers: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            numbers
        };
        assert_eq!(shown(), [900, 120, 300]);
        let seconds = Duration::from_secs;
        ipvs.set_timeouts(IpvsTimeouts { udp: seconds(17), ..IpvsTimeouts::default() }).unwrap();
        assert_eq!(shown(), [900, 120, 17]);
        ipvs.set_timeouts(IpvsTimeouts { tcp: seconds(71), tcp_fin: seconds(72), ..IpvsTimeouts::default() }).unwrap();
        assert_eq!(shown(), [71, 72, 17]);
        ipvs.set_timeouts(IpvsTimeouts::default()).unwrap();
        assert_eq!(shown(), [71, 72, 17]);
        let endless = IpvsTimeouts { tcp: Duration::MAX, ..IpvsTimeouts::default() };
        match ipvs.set_timeouts(endless) {
            Err(PlaneError::Netlink { source, .. }) => assert_eq!(source.errno(), Some(libc::EINVAL)),
            other => panic!("{other:?}"),
        }
        assert_eq!(shown(), [71, 72, 17]);
    });
}

/// The module goes and comes back under an open plane, with another family number.
#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
fn an_unloaded_module_is_told_and_a_loaded_one_found_again() {
    in_namespace(|mut ipvs| {
        let key = key(Protocol::Tcp, "10.96.0.1:80");
        let destination = "10.2.0.9:80".parse().unwrap();
        let ops =
            [add(key, plain()), IpvsOp::DeleteDestination { key, destination }, add_destination(key, "10.2.0.1:80", 1)];
        let good = [ops[0].clone(), ops[2].clone()];
        assert_eq!(ipvs.observe().unwrap(), ObservedIpvs::default());
        unload();
        let modprobe = Modprobe::disable();
        for outcome in [ipvs.observe().map(drop), ipvs.apply(&ops).map(drop), ipvs.set_timeouts(Default::default())] {
            assert!(matches!(outcome, Err(PlaneError::Unavailable { .. })), "{outcome:?}");
        }
        // Asking for the family loads the module where the kernel may.
        drop(modprobe);
        assert_eq!(errnos(&ipvs.apply(&ops).unwrap()), [(1, libc::ENOENT)]);
        assert_eq!(ipvs.observe().unwrap(), expected(&good));

        // Gone and back between two calls: nobody was told, every kind of call must notice by itself.
        let reload = |ipvs: &mut Ipvs| {
            let _ = ipvs.apply(&[IpvsOp::DeleteServer { key }]).unwrap();
            unload();
            run("modprobe", &["ip_vs"]);
        };
        reload(&mut ipvs);
        assert_eq!(errnos(&ipvs.apply(&ops).unwrap()), [(1, libc::ENOENT)]);
        assert_eq!(ipvs.observe().unwrap(), expected(&good));
        reload(&mut ipvs);
        assert_eq!(ipvs.server_stats().unwrap(), BTreeMap::new());
        reload(&mut ipvs);
        ipvs.set_timeouts(IpvsTimeouts { udp: Duration::from_secs(5), ..IpvsTimeouts::default() }).unwrap();
    });
}

/// Keeps the kernel from loading modules by itself while it lives.
struct Modprobe(String);

impl Modprobe {
    const PATH: &str = "/proc/sys/kernel/modprobe";

    fn disable() -> Self {
        let before = std::fs::read_to_string(Self::PATH).unwrap();
        std::fs::write(Self::PATH, "/bin/false").unwrap();
        Modprobe(before)
    }
}

impl Drop for Modprobe {
    fn drop(&mut self) {
        std::fs::write(Self::PATH, &self.0).unwrap();
    }
}

/// Namespaces of earlier tests give the module back a little later, hence the patience.
fn unload() {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        for module in ["ip_vs_rr", "ip_vs_lc", "ip_vs_dh", "ip_vs_sh", "ip_vs_mh", "ip_vs_wlc", "ip_vs"] {
            let _ = Command::new("rmmod").arg(module).stderr(Stdio::null()).status();
        }
        if !std::path::Path::new("/sys/module/ip_vs").exists() {
            return;
        }
        assert!(Instant::now() < deadline, "ip_vs stays in use:\n{}", run("lsmod", &[]));
        thread::sleep(Duration::from_millis(200));
    }
}
