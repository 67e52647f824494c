//! What the proxy needs to know of its own node: addresses, pod CIDRs, and from them the shape of our firewall rules.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Problem, Subject};
use crate::{
    config::ProxyConfig,
    desired::{Ruleset, firewall::Masquerade},
    objects::{Kind, Node, ObjectKey, Place, Service, annotations},
};

/// Our node, digested. Equal views compile every service equally.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    pub name: Box<str>,
    /// First InternalIP, else first ExternalIP, of an enabled family.
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Where endpoints are near, if its label says so.
    pub zone: Option<Box<str>>,
    /// Addresses of every interface but kube-dummy-if: (interface name, address).
    pub host_addresses: BTreeSet<(Box<str>, IpAddr)>,
}

impl NodeView {
    /// A Node object has told something once.
    fn is_known(&self) -> bool {
        self.ipv4.is_some() || self.ipv6.is_some() || !self.pod_cidrs.is_empty()
    }

    /// Where its endpoints and those of its zone are.
    pub fn place(&self) -> Place<'_> {
        Place { node: &self.name, zone: self.zone.as_deref() }
    }

    /// The node's address of the same family as `like`.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.ipv4.map(IpAddr::V4),
            IpAddr::V6(_) => self.ipv6.map(IpAddr::V6),
        }
    }

    /// Addresses of the node itself: those of interfaces whose name does not contain dummy, kube or docker, and the
    /// Node's own wherever they are, as the guard would take them for a service's alone. They are the members of
    /// kube-router-local-ips and what --nodeport-bindon-all-ip binds.
    pub fn local_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.host_addresses
            .iter()
            .filter(|(name, address)| {
                self.address_like(*address) == Some(*address)
                    || !["dummy", "kube", "docker"].iter().any(|word| name.contains(word))
            })
            .map(|(_, address)| *address)
    }

    pub fn is_host_address(&self, address: IpAddr) -> bool {
        self.host_addresses.iter().any(|(_, known)| *known == address)
    }

    /// Which services compile differently on this view than on `before`.
    pub fn services_concerned(&self, before: &NodeView, config: &ProxyConfig) -> impl Fn(&Service) -> bool + use<> {
        let all = (&self.name, self.ipv4, self.ipv6, &self.zone) != (&before.name, before.ipv4, before.ipv6, &before.zone)
            // An address of the host may be a service's or an endpoint's; a link-local one never is.
            || self.host_addresses.symmetric_difference(&before.host_addresses).any(|(_, address)| !is_link_local(*address));
        let node_ports = config.node_port_all_addresses && !self.local_addresses().eq(before.local_addresses());
        move |service| all || (node_ports && service.ports.iter().any(|port| service.has_node_port(port)))
    }

    /// Does no service compile differently on this view than on `before`? Pods' veths come and go, and with them link-local
    /// addresses and, where each is its pod's gateway, the same address once more.
    pub fn serves_like(&self, before: &NodeView) -> bool {
        fn global(addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<IpAddr> {
            addresses.filter(|address| !is_link_local(*address)).collect()
        }
        let all = |of: &NodeView| global(of.host_addresses.iter().map(|(_, address)| *address));
        (&self.name, self.ipv4, self.ipv6, &self.zone) == (&before.name, before.ipv4, before.ipv6, &before.zone)
            && (self.host_addresses == before.host_addresses
                || all(self) == all(before) && global(self.local_addresses()) == global(before.local_addresses()))
    }

    /// Name of the interface that holds the node's primary address.
    pub fn primary_interface(&self) -> Option<&str> {
        let primary = self.ipv4.map(IpAddr::V4).or(self.ipv6.map(IpAddr::V6))?;
        self.host_addresses.iter().find(|(_, address)| *address == primary).map(|(name, _)| &**name)
    }

    /// The shape of our chains on this node.
    pub fn ruleset(&self, config: &ProxyConfig) -> Ruleset {
        let masquerade = if config.masquerade_all {
            Masquerade::All
        } else if config.masquerade_outside_pod_cidrs && !self.pod_cidrs.is_empty() {
            // Without a pod CIDR the original has no such rule at all: it makes one per CIDR.
            Masquerade::OutsidePodCidrs
        } else {
            Masquerade::Off
        };
        Ruleset { guard: config.guard, masquerade, node_ipv4: self.ipv4, node_ipv6: self.ipv6 }
    }
}

/// Digests our Node object. `node` is `None` while the API server has no object of our name.
///
/// What `last` has and the object no longer says stays, with a problem: a node that registers again has no object for a
/// moment, then one without addresses or pod CIDRs, and its traffic must not pay for that.
pub fn compile_node(
    name: &str,
    node: Option<&Node>,
    last: &NodeView,
    host_addresses: &BTreeSet<(Box<str>, IpAddr)>,
    config: &ProxyConfig,
) -> (NodeView, Vec<Problem>) {
    let mut view = NodeView { name: name.into(), host_addresses: host_addresses.clone(), ..NodeView::default() };
    let mut problems = Vec::new();
    let mut problem = |reason, text: String| {
        let subject = Subject::Object(Kind::Node, ObjectKey::cluster(name));
        problems.push(Problem { subject, reason, text });
    };
    let Some(node) = node else {
        if last.is_known() {
            let text = "there is no Node object of this name any more; its last addresses and pod CIDRs stay in use";
            problem("NodeMissing", text.to_owned());
            return (NodeView { host_addresses: view.host_addresses, ..last.clone() }, problems);
        }
        problem(
            "NodeMissing",
            "there is no Node object of this name; node ports and masquerading are off until it appears. If the node \
             is registered under another name, set --hostname-override or NODE_NAME"
                .to_owned(),
        );
        return (view, problems);
    };

    view.zone = node.zone.clone();
    let addresses = || node.internal_ips.iter().chain(&node.external_ips);
    if config.ipv4 {
        view.ipv4 = addresses().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        if view.ipv4.is_none() {
            view.ipv4 = last.ipv4;
            problem("NodeWithoutAddress", no_address("IPv4", "--enable-ipv4=false", view.ipv4.map(IpAddr::from)));
        }
    }
    if config.ipv6 {
        view.ipv6 = addresses().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        if view.ipv6.is_none() {
            view.ipv6 = last.ipv6;
            problem("NodeWithoutAddress", no_address("IPv6", "--enable-ipv6=false", view.ipv6.map(IpAddr::from)));
        }
    }

    let (cidrs, bad) = pod_cidrs(node);
    for (key, value) in bad {
        problem(
            "InvalidPodCidr",
            format!("annotation {key} has {value:?}, which is not a CIDR; that entry is ignored"),
        );
    }
    let enabled = |cidr: &IpNet| match cidr {
        IpNet::V4(_) => config.ipv4,
        IpNet::V6(_) => config.ipv6,
    };
    let cidrs: Vec<IpNet> = cidrs.into_iter().filter(enabled).collect();
    // One inside another is part of it; the kernel's interval sets refuse what overlaps.
    view.pod_cidrs = IpNet::aggregate(&cidrs).into_iter().collect();
    if view.pod_cidrs.is_empty() && !last.pod_cidrs.is_empty() {
        problem("NodeWithoutPodCidr", "the Node object has no pod CIDR any more; its last ones stay in use".to_owned());
        view.pod_cidrs.clone_from(&last.pod_cidrs);
    }
    (view, problems)
}

fn no_address(family: &str, flag: &str, last: Option<IpAddr>) -> String {
    let effect = match last {
        Some(last) => format!("its last one, {last}, stays in use"),
        None => "node ports and masquerading of that family are off".to_owned(),
    };
    format!("status.addresses has no {family} address; {effect}. Set one, or switch the family off with {flag}")
}

/// The pod CIDRs that masquerading spares: annotation pod-cidr, else pod-cidrs, else the spec.
fn pod_cidrs(node: &Node) -> (Vec<IpNet>, Vec<(&'static str, String)>) {
    for key in [annotations::NODE_POD_CIDR, annotations::NODE_POD_CIDRS] {
        let Some(value) = node.annotations.get(key) else { continue };
        let (mut cidrs, mut bad) = (Vec::new(), Vec::new());
        for item in value.split(',') {
            match item.trim().parse::<IpNet>() {
                Ok(cidr) => cidrs.push(cidr.trunc()),
                Err(_) => bad.push((key, item.to_owned())),
            }
        }
        if !cidrs.is_empty() {
            return (cidrs, bad);
        }
        if !bad.is_empty() {
            return (node.pod_cidrs.clone(), bad);
        }
    }
    (node.pod_cidrs.clone(), Vec::new())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
