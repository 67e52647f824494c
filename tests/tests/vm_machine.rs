//! The virtual machine is what the other `vm_*` files count on: the kernel that was asked for, IPVS, and no way out.

use std::fs;

#[test]
#[ignore = "needs a virtual machine: cargo xtask test --tier 4 --filter machine"]
fn machine_runs_the_kernel_that_was_asked_for() {
    let wanted = std::env::var("KUBE_ROUTER_VM").expect("set by the machine's start script");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    assert!(release.starts_with(&format!("{wanted}.")), "{wanted} was asked for, {release} runs");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test --tier 4 --filter machine"]
fn machine_has_ipvs_and_no_way_out() {
    assert!(fs::read_to_string("/proc/net/ip_vs").expect("ip_vs is loaded").starts_with("IP Virtual Server"));
    let routes = fs::read_to_string("/proc/net/route").expect("routes");
    let default = routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000"));
    assert!(!default, "a default route would let test traffic leave:\n{routes}");
}
