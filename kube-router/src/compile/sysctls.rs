//! Kernel settings that the proxy needs (the original's list).

use crate::desired::Sysctl;

/// A setting and when to write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub sysctl: Sysctl,
    /// Write only where the current value is this one.
    pub only_if: Option<&'static str>,
    /// Missing is worth a warning (false: the feature is optional).
    pub required: bool,
}

/// In the order in which they are written. `interface` is the one with the node's address.
pub fn wanted(interface: Option<&str>) -> Vec<Wanted> {
    let always = |path: &str, value: &str, required| Wanted {
        sysctl: Sysctl { path: path.to_owned(), value: value.to_owned() },
        only_if: None,
        required,
    };
    let mut list = vec![
        // SNAT after IPVS is decided in conntrack.
        always("net/ipv4/vs/conntrack", "1", true),
        always("net/ipv4/vs/expire_nodest_conn", "1", true),
        always("net/ipv4/vs/expire_quiescent_template", "1", true),
        // Source-port reuse must not cost a second (original issue 544).
        always("net/ipv4/vs/conn_reuse_mode", "0", true),
        // VIPs are not announced on the LAN.
        always("net/ipv4/conf/all/arp_ignore", "1", true),
        always("net/ipv4/conf/all/arp_announce", "2", true),
        // IPVS between two pods of one bridge is seen only when bridged packets pass netfilter.
        always("net/bridge/bridge-nf-call-iptables", "1", false),
        always("net/bridge/bridge-nf-call-ip6tables", "1", false),
    ];
    // Strict reverse-path filtering drops replies that take another way; loose is enough.
    for name in ["all", "kube-bridge", "kube-dummy-if"].into_iter().chain(interface) {
        list.push(Wanted {
            sysctl: Sysctl { path: format!("net/ipv4/conf/{name}/rp_filter"), value: "2".to_owned() },
            only_if: Some("1"),
            required: false,
        });
    }
    list
}
