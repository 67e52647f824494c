//! Every `kube-router.io/*` key, its parser and what an odd value means. Keys are exact and case-sensitive.
//!
//! Values are parsed where they are read from the object; a value we do not understand is kept as text so that the
//! compiler can name it in a [`Problem`](crate::compile::Problem). "Presence" means: the value does not matter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What all our keys begin with.
pub const PREFIX: &str = "kube-router.io/";

pub const SCHEDULER: &str = "kube-router.io/service.scheduler";
pub const SCHED_FLAGS: &str = "kube-router.io/service.schedflags";
pub const DSR: &str = "kube-router.io/service.dsr";
pub const HAIRPIN: &str = "kube-router.io/service.hairpin";
pub const HAIRPIN_EXTERNAL_IPS: &str = "kube-router.io/service.hairpin.externalips";
pub const LOCAL: &str = "kube-router.io/service.local";
pub const SKIP_LB_IPS: &str = "kube-router.io/service.skiplbips";
pub const FASTPATH: &str = "kube-router.io/service.fastpath";
pub const NODE_POD_CIDR: &str = "kube-router.io/pod-cidr";
pub const NODE_POD_CIDRS: &str = "kube-router.io/pod-cidrs";
/// The node annotations that are read. Others are not even kept: some hold BGP passwords, which must not reach a
/// recording or a log.
pub const OF_NODES: [&str; 2] = [NODE_POD_CIDR, NODE_POD_CIDRS];

/// On a Namespace: the isolation of Kubernetes before 1.7, `{"ingress":{"isolation":"DefaultDeny"}}`.
pub const NETWORK_POLICY: &str = "net.beta.kubernetes.io/network-policy";

/// On the Pod object that mirrors a static pod: its uid on the node (kubelet's `ConfigMirrorAnnotationKey`).
pub const MIRRORED: &str = "kubernetes.io/config.mirror";

/// Keys that are kept; kubectl stores whole objects in its own ones.
pub fn is_read(key: &str) -> bool {
    key.starts_with(PREFIX) || key == NETWORK_POLICY || key == MIRRORED
}

/// The service annotations that the proxy reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAnnotations {
    /// As written: rr, lc, dh, sh or mh.
    pub scheduler: Option<Box<str>>,
    /// As written: comma list of flag-1, flag-2, flag-3.
    pub sched_flags: Option<Box<str>>,
    /// As written; only `tunnel` asks for direct server return.
    pub dsr: Option<Box<str>>,
    /// Presence.
    pub hairpin: bool,
    /// Presence.
    pub hairpin_external_ips: bool,
    /// Exactly "true".
    pub local: bool,
    /// Presence.
    pub skip_lb_ips: bool,
    #[serde(default)]
    pub fastpath: Fastpath,
}

/// What a Service says of the fast path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fastpath {
    /// Nothing, or "true".
    #[default]
    Wanted,
    /// Exactly "false".
    Refused,
    /// Something else.
    Unclear,
}

impl ServiceAnnotations {
    pub fn from_map(annotations: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| annotations.get(key).map(|value| value.as_str().into());
        let present = |key: &str| annotations.contains_key(key);
        ServiceAnnotations {
            scheduler: text(SCHEDULER),
            sched_flags: text(SCHED_FLAGS),
            dsr: text(DSR),
            hairpin: present(HAIRPIN),
            hairpin_external_ips: present(HAIRPIN_EXTERNAL_IPS),
            local: annotations.get(LOCAL).is_some_and(|value| value == "true"),
            skip_lb_ips: present(SKIP_LB_IPS),
            fastpath: match annotations.get(FASTPATH).map(String::as_str) {
                None | Some("true") => Fastpath::Wanted,
                Some("false") => Fastpath::Refused,
                Some(_) => Fastpath::Unclear,
            },
        }
    }
}
