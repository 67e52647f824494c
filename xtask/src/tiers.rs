//! Which test file runs where: the one table.
//!
//! | tier | needs | what |
//! |---|---|---|
//! | 0 | nothing | every test that is not `#[ignore]`d |
//! | 1 | root, namespaces | netlink, nft, ipset on this machine's kernel |
//! | 2 | root, BPF | load, verifier, maps, packet runs on this machine's kernel |
//! | 3 | root, namespaces | traffic between nodes and pods on this machine's kernel |
//! | 4 | QEMU | the same files, and IPVS, dummy, IPIP, SCTP, on kernels 6.1 and 6.12 |
//! | 5 | kube-apiserver, etcd | against a real API server |
//! | 6 | QEMU, an hour | what tier 4 has no time for, on both kernels: all scenarios of network policy, through services too; all tests of the programs; only when asked for |
//!
//! Tests of tiers 1 to 6 are `#[ignore]`d and only in integration test files (below a package's `tests/`), because
//! only those are found by this table; `cargo xtask tidy` checks that. The first rule that fits a file decides.

/// Where a file's tests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine, in namespaces of its own.
    Host,
    /// In a virtual machine, once for each kernel.
    Vm,
    /// In a virtual machine with the oldest kernel: what differs there is what is asked about. Before 6.6 programs are
    /// attached as filters of clsact, and on this machine's kernel by tcx links.
    OldVm,
}

/// A kind of test file.
#[derive(Debug)]
pub struct Rule {
    /// The package's folder.
    pub package: &'static str,
    /// The target's name; a final `*` stands for any rest.
    pub name: &'static str,
    pub runs: &'static [(u8, Place)],
    /// The Kubernetes components must have been built.
    pub kubernetes: bool,
    /// The file does not start its API server itself: the program `with-api-server` of the test crate does, around it, or
    /// on this machine beside the virtual one (an emulated machine takes minutes to start a server). With these
    /// controllers; `None`: no API server.
    pub control_plane: Option<&'static [&'static str]>,
    /// Modules that a virtual machine loads first. Most load by themselves when a netlink family, a link kind or a
    /// socket asks for them; these are the ones that only a sysctl or nothing at all asks for.
    pub modules: &'static [&'static str],
    pub memory_mib: u32,
    /// Tests that only another test starts, as a child process.
    pub skip: &'static [&'static str],
    /// Tests that a virtual machine leaves out below tier 6: what they ask about is the same on every kernel.
    pub vm_skip: &'static [&'static str],
    /// For one run of the file, boot included. About three times what it takes on a quiet machine.
    pub timeout_s: u64,
}

const fn rule(package: &'static str, name: &'static str, runs: &'static [(u8, Place)]) -> Rule {
    Rule {
        package,
        name,
        runs,
        kubernetes: false,
        control_plane: None,
        modules: &[],
        skip: &[],
        vm_skip: &[],
        memory_mib: 1536,
        timeout_s: 600,
    }
}

const NETWORK: &[&str] = &["ip_vs", "br_netfilter"];

use Place::{Host, OldVm, Vm};

pub const RULES: &[Rule] = &[
    Rule { memory_mib: 2048, ..rule("cni", "chain", &[(2, Host), (4, Vm)]) },
    // A thousand crafted packets and a hundred thousand random ones, one by one. An emulated verifier takes up to 20
    // seconds for all programs, and most tests load them.
    Rule {
        memory_mib: 3072,
        vm_skip: &["balance::", "crowd::", "explained::", "maps::", "share::", "sizes::"],
        timeout_s: 2700,
        ..rule("kube-router", "bpf_kernel", &[(2, Host), (4, Vm), (6, Vm)])
    },
    Rule { modules: NETWORK, ..rule("kube-router", "bpf_ipvs", &[(4, Vm)]) },
    Rule { modules: NETWORK, ..rule("kube-router", "firewall_kernel", &[(1, Host), (4, Vm)]) },
    Rule { modules: NETWORK, ..rule("kube-router", "firewall_ipvs", &[(4, Vm)]) },
    Rule { modules: NETWORK, ..rule("kube-router", "ipvs_kernel", &[(4, Vm)]) },
    // Eighty-four thousand connections, from ten thousand addresses.
    Rule { modules: NETWORK, timeout_s: 1200, ..rule("kube-router", "ipvs_scheduling", &[(4, Vm)]) },
    Rule {
        kubernetes: true,
        control_plane: Some(&[]),
        skip: &["follow_and_tell_the_heap"],
        timeout_s: 900,
        ..rule("kube-router", "kube_api", &[(5, Host)])
    },
    Rule { kubernetes: true, control_plane: Some(&[]), ..rule("kube-router", "kube_events", &[(5, Host)]) },
    Rule { modules: NETWORK, ..rule("kube-router", "net_kernel", &[(4, Vm)]) },
    rule("kube-router", "pod_links_kernel", &[(1, Host), (4, Vm)]),
    Rule {
        kubernetes: true,
        control_plane: Some(&["deployment", "replicaset", "endpointslice"]),
        modules: NETWORK,
        memory_mib: 2048,
        timeout_s: 1800,
        ..rule("tests", "vm_api_*", &[(5, Vm)])
    },
    Rule { modules: NETWORK, memory_mib: 2048, timeout_s: 3600, ..rule("tests", "vm_netpol_scenarios", &[(6, Vm)]) },
    Rule { modules: NETWORK, memory_mib: 2048, timeout_s: 1800, ..rule("tests", "vm_netpol_*", &[(4, Vm)]) },
    // As long as `cargo xtask demo` may take.
    Rule { modules: NETWORK, memory_mib: 2048, timeout_s: 900, ..rule("tests", "vm_demo", &[(4, Vm)]) },
    // A thousand connections, each asked after each change.
    Rule { modules: NETWORK, memory_mib: 2048, timeout_s: 1200, ..rule("tests", "vm_fastpath", &[(4, Vm)]) },
    Rule { modules: NETWORK, memory_mib: 2048, ..rule("tests", "vm_*", &[(4, Vm)]) },
    Rule { kubernetes: true, ..rule("tests", "api_*", &[(5, Host)]) },
    // A thousand pods, one after the other and four at a time; fewer where the processor is emulated.
    Rule {
        timeout_s: 1800,
        memory_mib: 2048,
        vm_skip: &["neighbours_learn_"],
        ..rule("tests", "netpol_starts", &[(3, Host), (4, OldVm)])
    },
    Rule {
        memory_mib: 2048,
        vm_skip: &["a_connection_", "changes_are_quick"],
        ..rule("tests", "netpol_life", &[(3, Host), (4, OldVm)])
    },
    Rule { memory_mib: 2048, ..rule("tests", "netpol_upgrade", &[(3, Host), (4, OldVm)]) },
    rule("tests", "*", &[(3, Host)]),
];

/// The rule for a test file, if any.
pub fn rule_for(package: &str, name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| {
        rule.package == package
            && match rule.name.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == rule.name,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_decides() {
        let runs = |package, name| rule_for(package, name).map(|rule| rule.runs);
        assert_eq!(runs("tests", "vm_api_agent"), Some([(5, Vm)].as_slice()));
        assert_eq!(runs("tests", "vm_dsr"), Some([(4, Vm)].as_slice()));
        assert_eq!(runs("tests", "lab"), Some([(3, Host)].as_slice()));
        assert_eq!(runs("kube-router", "firewall_kernel"), Some([(1, Host), (4, Vm)].as_slice()));
        assert_eq!(runs("kube-router", "golden"), None);
    }
}
