//! The node's links, as far as it matters whose traffic they carry. Read by `apply::net::pod_links`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use crate::objects::ObjectKey;

/// A veth whose other end is in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The node's end.
    pub index: u32,
    pub name: Box<str>,
    /// The pod's end, a number of its namespace.
    pub peer: u32,
    /// The namespace that the pod's end is in, a number of the node's.
    pub namespace: u32,
    pub mac: [u8; 6],
    /// Of the pod's end; not the link-local ones, which anybody makes up.
    pub addresses: BTreeSet<IpAddr>,
    /// A text of root's for the node's end; it may be a [`Tag`].
    pub alias: Option<Box<str>>,
    /// The bridge whose port the node's end is.
    pub master: Option<u32>,
    /// Why packets are not handed to the pod, and on from it, past the stack.
    pub hindrance: Option<Hindrance>,
}

/// What packets of a pod are to meet and would not meet past the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// A qdisc shapes what the pod gets, or sends (an ingress qdisc).
    Qdisc,
    /// Filters of others.
    Filter,
    /// The port is isolated, or the bridge looks at VLANs, or it is no bridge of the kernel's (Open vSwitch, a VRF).
    Bridge,
}

/// What our network plugin writes at the node's end of a pod's link, so that an agent that comes later knows whose it is
/// before the API server does, or at least that it is nobody's who may pass unjudged. It goes with the link, and no pod can change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    pub pod: ObjectKey,
    /// Older runtimes do not tell it.
    pub uid: Option<Box<str>>,
    /// Of the pod's end.
    pub ifname: Box<str>,
    /// That the plugins gave it.
    pub addresses: BTreeSet<IpAddr>,
}

/// IFALIASZ of include/uapi/linux/if.h, less one.
const LONGEST_ALIAS: usize = 255;
const TAG: &str = "kube-router-cni";

impl Tag {
    /// Does the alias begin as ours do? Those of others are theirs.
    pub fn is_ours(alias: &str) -> bool {
        alias.split(' ').next() == Some(TAG)
    }

    pub fn parse(alias: &str) -> Option<Tag> {
        let mut words = alias.split(' ').skip_while(|_| !Tag::is_ours(alias)).skip(1);
        let (namespace, name) = words.next()?.split_once('/')?;
        let uid = words.next()?;
        let ifname = words.next()?.into();
        let addresses = words.next()?.split(',').filter(|text| !text.is_empty());
        let addresses = addresses.map(str::parse).collect::<Result<_, _>>().ok()?;
        let uid = (uid != "-").then(|| uid.into());
        words.next().is_none().then(|| Tag { pod: ObjectKey::new(namespace, name), uid, ifname, addresses })
    }

    /// Where the kernel has no room for names as long as these: only that it is ours.
    pub fn alias(&self) -> String {
        Some(self.to_string()).filter(|text| text.len() <= LONGEST_ALIAS).unwrap_or_else(|| TAG.to_owned())
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TAG} {} {} {} ", self.pod, self.uid.as_deref().unwrap_or("-"), self.ifname)?;
        for (number, address) in self.addresses.iter().enumerate() {
            write!(f, "{}{address}", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// What a link is to the node's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Bridges, dummies, loopback: what crosses them is met elsewhere.
    Inner,
    /// Leads to whoever holds the other end.
    Veth,
    /// Anything else leads out: cards, bonds, VLANs, tunnels.
    Outer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: Box<str>,
    pub kind: DeviceKind,
    /// Ethernet, as opposed to most tunnels.
    pub has_link_header: bool,
    /// The bridge or bond whose port it is.
    pub master: Option<u32>,
    /// Of a VLAN, macvlan or the like: the link that it stands on.
    pub over: Option<u32>,
}

impl Device {
    /// What a pod's link is as a device.
    pub fn of(link: &PodLink) -> Device {
        Device {
            name: link.name.clone(),
            kind: DeviceKind::Veth,
            has_link_header: true,
            master: link.master,
            over: None,
        }
    }
}

/// By interface index. A pod's link is a device, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    pub devices: BTreeMap<u32, Device>,
    pub pods: BTreeMap<u32, PodLink>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_as_it_was_written_and_what_others_wrote_is_none() {
        let tag = Tag {
            pod: ObjectKey::new("default", "web-0"),
            uid: Some("0b1c".into()),
            ifname: "eth0".into(),
            addresses: ["10.1.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).into(),
        };
        let alias = tag.alias();
        assert_eq!(alias, "kube-router-cni default/web-0 0b1c eth0 10.1.0.5,fd00::5");
        let bare = Tag { uid: None, addresses: BTreeSet::new(), ..tag.clone() };
        assert_eq!([Tag::parse(&alias), Tag::parse(&bare.alias())], [Some(tag.clone()), Some(bare)]);
        let long = "a".repeat(253);
        assert_eq!(Tag { pod: ObjectKey::new("default", &*long), ..tag }.alias(), "kube-router-cni");
        for other in ["", "uplink", "kube-router-cni", "kube-router-cni web - eth0 ", "kube-router-cni a/b - eth0 x"] {
            assert_eq!(Tag::parse(other), None, "{other}");
        }
        assert!(!Tag::is_ours("kube-router-cnix a/b - eth0 ") && !Tag::is_ours(""));
        assert_eq!(Tag::parse("x a/b - eth0 10.0.0.1"), None);
        assert_eq!(Tag::parse(&format!("{alias} more")), None);
    }
}
