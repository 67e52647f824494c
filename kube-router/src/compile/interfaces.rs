//! Which interface belongs to which pod of this node, and which interfaces lead out of it.
//!
//! A veth whose other end carries a pod's address is the pod's. Pods may do as they like with their own end, so what was
//! bound once stays bound as long as pod and veth live: a pod that gives itself another's address wins nothing, and one
//! that drops its own is still itself. What a network plugin declared comes before anything that was only seen.
//!
//! In: links, addresses of pods as the compiler of policy numbers them, what is bound already. Out: [`Interfaces`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use kube_router_common::{
    config::Iface,
    policy::{Address, Endpoint},
};

use super::{
    links::{DeviceKind, Links, PodLink, Tag},
    policy::address_of,
};
use crate::desired::interfaces::{Interfaces, Role};

/// The interface of a pod that policies are about and that shows its address nowhere. Whoever uses that address is dropped,
/// and interfaces that may be its are shut.
pub const NOWHERE: u32 = 0;

/// What bindings depend on.
pub struct Surroundings<'a> {
    pub links: &'a Links,
    /// Address of a local pod -> its number.
    pub endpoints: &'a BTreeMap<Address, u32>,
    /// Numbers of local pods.
    pub pods: &'a BTreeSet<u32>,
    /// Numbers of pods that policies are about.
    pub guarded: &'a BTreeSet<u32>,
    /// The same, and those that they were about before this change.
    pub isolated: &'a BTreeSet<u32>,
    /// Interface -> pod, as a network plugin said.
    pub declared: &'a BTreeMap<u32, u32>,
    /// Interfaces whose pod a network plugin announced, and its number if it is known.
    pub announced: &'a BTreeMap<u32, Option<u32>>,
    /// Interfaces that a network plugin is about to take away.
    pub released: &'a BTreeSet<u32>,
    /// Addresses of this node's pods for which there is no number.
    pub homeless: &'a BTreeSet<IpAddr>,
    /// Names and addresses of the node's own interfaces.
    pub host: &'a BTreeSet<(Box<str>, IpAddr)>,
    /// Its own, as its Node object has them.
    pub node: &'a BTreeSet<IpAddr>,
    pub pod_cidrs: &'a BTreeSet<IpNet>,
    /// All addresses that the pod's end of an interface was ever seen with.
    pub shown: &'a BTreeMap<u32, BTreeSet<IpAddr>>,
    /// Policy is enforced. Without, no interface is shut, whoever is behind it.
    pub enforced: bool,
    /// `--netpol-default-deny`
    pub default_deny: bool,
    /// `--service-fastpath=on`: whatever stands at an interface, packets are handed past it.
    pub past_all: bool,
}

/// Two interfaces that carry the address of one pod: the address, the one that counts, the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    pub address: Address,
    pub owner: u32,
    pub claimant: u32,
}

/// `before` is what is in force; its rows bind.
pub fn compile_interfaces(s: &Surroundings<'_>, before: &Interfaces) -> (Interfaces, Vec<Claim>) {
    let bound = bind(s, before);
    let mut out = Interfaces::default();
    let mut claims = Vec::new();
    endpoints(s, before, &bound, &mut out, &mut claims);
    let at_home: BTreeSet<u32> = bound.values().copied().collect();
    let hidden = out.endpoints.values().any(|of| of.ifindex == NOWHERE && !at_home.contains(&of.pod));
    for (index, link) in &s.links.pods {
        let row = match bound.get(index) {
            Some(pod) => {
                let direct = if s.past_all || link.hindrance.is_none() { Iface::DIRECT } else { 0 };
                Some(row_of(link, Iface::PUBLISHED | direct, *pod))
            }
            None => unknown(s, before, link, hidden),
        };
        if let Some(row) = row {
            out.ifaces.insert(*index, row);
            out.attached.insert(*index, Role::Pod);
        }
    }
    for (index, device) in &s.links.devices {
        if out.ifaces.contains_key(index) {
            continue;
        }
        let is_uplink = match device.kind {
            DeviceKind::Inner => false,
            // Whoever is behind it may be an endpoint of a service.
            DeviceKind::Veth | DeviceKind::Outer => true,
        };
        if is_uplink {
            let bare = if device.has_link_header { 0 } else { Iface::NO_LINK_HEADER };
            out.ifaces.insert(*index, Iface { flags: Iface::UPLINK | bare, ..Iface::default() });
            out.attached.insert(*index, Role::Uplink);
        }
    }
    (out, claims)
}

fn row_of(link: &PodLink, flags: u16, pod: u32) -> Iface {
    Iface { mac: link.mac, flags, pod, netns: link.namespace.saturating_add(1) }
}

/// Interface -> pod.
fn bind(s: &Surroundings<'_>, before: &Interfaces) -> BTreeMap<u32, u32> {
    let mut bound = BTreeMap::new();
    for index in s.links.pods.keys().filter(|index| !s.released.contains(index)) {
        let declared = s.declared.get(index).copied();
        let kept = before.ifaces.get(index).filter(|row| row.flags & Iface::PUBLISHED != 0).map(|row| row.pod);
        // Seen before the plugin spoke, it may have been taken for an older pod with that address.
        let kept = kept.filter(|pod| s.announced.get(index).is_none_or(|announced| *announced == Some(*pod)));
        if let Some(pod) = declared.or(kept).filter(|pod| s.pods.contains(pod)) {
            bound.insert(*index, pod);
        }
    }
    // The youngest interface first: an old sandbox that lingers carries the same address.
    for (index, link) in s.links.pods.iter().rev() {
        if bound.contains_key(index) || s.released.contains(index) || s.announced.contains_key(index) {
            continue;
        }
        let mut pods: Vec<u32> = Vec::new();
        for address in &link.addresses {
            let address = address_of(*address);
            let Some(pod) = s.endpoints.get(&address) else { continue };
            let taken = bound.iter().any(|(other, owner)| owner == pod && carries(s.links, *other, address));
            if !taken && !pods.contains(pod) {
                pods.push(*pod);
            }
        }
        // Two pods' addresses at one interface: it is neither's, so neither can be impersonated.
        if let [pod] = pods[..] {
            bound.insert(*index, pod);
        }
    }
    bound
}

fn carries(links: &Links, index: u32, address: Address) -> bool {
    links.pods.get(&index).is_some_and(|link| link.addresses.iter().any(|ip| address_of(*ip) == address))
}

fn endpoints(
    s: &Surroundings<'_>,
    before: &Interfaces,
    bound: &BTreeMap<u32, u32>,
    out: &mut Interfaces,
    claims: &mut Vec<Claim>,
) {
    let mut carriers: BTreeMap<Address, Vec<u32>> = BTreeMap::new();
    for (index, link) in &s.links.pods {
        for address in &link.addresses {
            let address = address_of(*address);
            if s.endpoints.contains_key(&address) {
                carriers.entry(address).or_default().push(*index);
            }
        }
    }
    for (address, pod) in s.endpoints {
        let carriers = carriers.get(address).map(Vec::as_slice).unwrap_or_default();
        let is_own = |index: &u32| bound.get(index) == Some(pod);
        let last = before.endpoints.get(address).map(|endpoint| endpoint.ifindex);
        let kept = last.filter(|index| is_own(index) && s.links.pods.contains_key(index));
        // A declared interface may not show the address yet.
        let declared = || s.declared.iter().find(|(index, of)| *of == pod && is_own(index)).map(|(index, _)| *index);
        let owner = kept.or_else(|| carriers.iter().copied().rev().find(is_own)).or_else(declared);
        let Some(owner) = owner else {
            if s.guarded.contains(pod) {
                // One that had an interface does not hide: it ends, or gets another.
                let left = last.filter(|index| !s.links.devices.contains_key(index) || s.released.contains(index));
                let ifindex = left.unwrap_or(NOWHERE);
                out.endpoints.insert(*address, Endpoint { pod: *pod, ifindex, mac: [0; 6], pad: [0; 2] });
            }
            continue;
        };
        let Some(link) = s.links.pods.get(&owner) else { continue };
        out.endpoints.insert(*address, Endpoint { pod: *pod, ifindex: owner, mac: link.mac, pad: [0; 2] });
        claims.extend(carriers.iter().filter(|index| **index != owner).map(|claimant| Claim {
            address: *address,
            owner,
            claimant: *claimant,
        }));
    }
}

/// An interface of no pod that is known.
fn unknown(s: &Surroundings<'_>, before: &Interfaces, link: &PodLink, hidden: bool) -> Option<Iface> {
    let held = before.ifaces.get(&link.index);
    // The pod that was here went, its interface did not. If policies were about it, nothing goes on unjudged.
    let orphan = held.is_some_and(|row| {
        let isolated = s.isolated.contains(&row.pod);
        (row.flags & Iface::PUBLISHED != 0 && isolated) || (row.flags & Iface::DEFAULT_DENY != 0 && row.pod != 0)
    });
    let shown = s.shown.get(&link.index).into_iter().flatten().chain(&link.addresses);
    let in_range = shown.into_iter().any(|address| s.pod_cidrs.iter().any(|cidr| cidr.contains(address)));
    let plugged = s.announced.contains_key(&link.index) || link.alias.as_deref().is_some_and(Tag::is_ours);
    // In a container that plays a node the uplink itself is a veth, and its far end is a port of somebody's bridge.
    let leads_out = !in_range && is_addressed(s, link);
    let may_be_pod = in_range || (link.addresses.is_empty() && !leads_out);
    // What policy says of it cannot be written down.
    let homeless = link.addresses.iter().any(|address| s.homeless.contains(address));
    let row = |flags, pod| Some(row_of(link, flags, pod));
    let open = || if leads_out { None } else { row(0, 0) };
    if !s.enforced {
        return open();
    }
    if orphan || plugged || homeless || s.default_deny && may_be_pod {
        return row(Iface::DEFAULT_DENY, held.filter(|_| orphan).map_or(0, |row| row.pod));
    }
    // A plugin that came while no agent was there denied it; who it is will be known.
    let plugged = |row: &&Iface| row.flags & (Iface::DEFAULT_DENY | Iface::SUSPECT) == Iface::DEFAULT_DENY;
    if let Some(held) = held.filter(plugged).filter(|_| !leads_out) {
        return Some(*held);
    }
    if hidden && may_be_pod {
        return row(Iface::DEFAULT_DENY | Iface::SUSPECT, 0);
    }
    open()
}

/// Does the node's end, or what stands on it or has it for a port, carry an address of the node, which is no gateway of
/// pods? What stands on a bridge may be there for all of its ports, so that says nothing.
fn is_addressed(s: &Surroundings<'_>, link: &PodLink) -> bool {
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_gateway = |ip: &IpAddr| !s.node.contains(ip) && s.pod_cidrs.iter().any(|cidr| cidr.contains(ip));
    let master = |index: &u32| s.links.devices.get(index).and_then(|device| device.master);
    let mut above: BTreeSet<u32> = std::iter::successors(link.master, master).take(MOST_MASTERS).collect();
    above.extend(s.links.devices.iter().filter(|(_, device)| device.over == Some(link.index)).map(|(index, _)| *index));
    let here = |name: &str| *name == *link.name || above.iter().any(|index| is_named(s.links, *index, name));
    let counts = |address: &IpAddr| !is_link_local(address) && !is_gateway(address);
    s.host.iter().any(|(name, address)| counts(address) && here(name))
}

/// A veth in a bond in a bridge has two.
const MOST_MASTERS: usize = 4;

fn is_named(links: &Links, index: u32, name: &str) -> bool {
    links.devices.get(&index).is_some_and(|device| *device.name == *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::links::{Device, Hindrance};

    static NO_ADDRESSES: BTreeSet<IpAddr> = BTreeSet::new();
    static NO_CIDRS: BTreeSet<IpNet> = BTreeSet::new();
    static NO_ENDPOINTS: BTreeMap<Address, u32> = BTreeMap::new();
    static NOBODY: BTreeSet<u32> = BTreeSet::new();
    static NOTHING_DECLARED: BTreeMap<u32, u32> = BTreeMap::new();
    static NOTHING_ANNOUNCED: BTreeMap<u32, Option<u32>> = BTreeMap::new();
    static NOTHING_SHOWN: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
    static NO_HOST: BTreeSet<(Box<str>, IpAddr)> = BTreeSet::new();

    /// Nothing but links is known.
    fn around(links: &Links) -> Surroundings<'_> {
        Surroundings {
            links,
            endpoints: &NO_ENDPOINTS,
            pods: &NOBODY,
            guarded: &NOBODY,
            isolated: &NOBODY,
            node: &NO_ADDRESSES,
            shown: &NOTHING_SHOWN,
            declared: &NOTHING_DECLARED,
            announced: &NOTHING_ANNOUNCED,
            released: &NOBODY,
            homeless: &NO_ADDRESSES,
            host: &NO_HOST,
            pod_cidrs: &NO_CIDRS,
            enforced: true,
            default_deny: false,
            past_all: false,
        }
    }

    fn add_device(links: &mut Links, index: u32, name: &str, kind: DeviceKind) {
        let device = Device { name: name.into(), kind, has_link_header: true, master: None, over: None };
        links.devices.insert(index, device);
    }

    fn add_veth(links: &mut Links, index: u32, name: &str, addresses: BTreeSet<IpAddr>) {
        add_device(links, index, name, DeviceKind::Veth);
        links.pods.insert(
            index,
            PodLink {
                index,
                name: name.into(),
                peer: 9,
                namespace: 0,
                mac: [2; 6],
                addresses,
                alias: None,
                master: None,
                hindrance: None,
            },
        );
    }

    #[test]
    fn what_stands_at_a_link_is_not_passed_by_unless_asked_for() {
        let address = IpAddr::from([10, 1, 0, 7]);
        let (endpoints, pods) = (BTreeMap::from([(address_of(address), 3)]), BTreeSet::from([3]));
        let mut links = Links::default();
        add_veth(&mut links, 5, "pod", BTreeSet::from([address]));
        for (hindrance, past_all, direct) in
            [(None, false, true), (Some(Hindrance::Qdisc), false, false), (Some(Hindrance::Qdisc), true, true)]
        {
            links.pods.entry(5).and_modify(|link| link.hindrance = hindrance);
            let surroundings = Surroundings { endpoints: &endpoints, pods: &pods, past_all, ..around(&links) };
            let (found, _) = compile_interfaces(&surroundings, &Interfaces::default());
            assert_eq!(found.ifaces[&5].flags & Iface::DIRECT != 0, direct, "{hindrance:?} {past_all}");
        }
    }

    /// A pod may take the address off its interface before anybody saw it there.
    #[test]
    fn who_hides_from_its_policies_gets_nowhere() {
        let address = IpAddr::from([10, 1, 0, 7]);
        let endpoints = BTreeMap::from([(address_of(address), 3)]);
        let (pods, isolated) = (BTreeSet::from([3]), BTreeSet::from([3]));
        let pod_cidrs = BTreeSet::from(["10.1.0.0/24".parse().expect("a CIDR")]);
        let host = BTreeSet::from([("ptp".into(), IpAddr::from([10, 1, 0, 1]))]);
        let around = |links, isolated| Surroundings {
            endpoints: &endpoints,
            pods: &pods,
            guarded: isolated,
            isolated,
            pod_cidrs: &pod_cidrs,
            host: &host,
            ..around(links)
        };
        let mut links = Links::default();
        add_veth(&mut links, 5, "bare", BTreeSet::new());
        add_veth(&mut links, 6, "ptp", BTreeSet::new());
        add_veth(&mut links, 7, "other", BTreeSet::from([IpAddr::from([10, 1, 0, 9])]));
        add_veth(&mut links, 8, "foreign", BTreeSet::from([IpAddr::from([172, 17, 0, 2])]));
        let (hiding, _) = compile_interfaces(&around(&links, &isolated), &Interfaces::default());
        assert_eq!(hiding.endpoints[&address_of(address)].ifindex, NOWHERE);
        let shut = Iface::DEFAULT_DENY | Iface::SUSPECT;
        assert_eq!([5, 6, 7, 8].map(|index| hiding.ifaces[&index].flags), [shut, shut, shut, 0]);
        // An address of another range does not help one that was seen with one of the pods'.
        let shown = BTreeMap::from([(8, BTreeSet::from([IpAddr::from([10, 1, 0, 8])]))]);
        let seen = Surroundings { shown: &shown, ..around(&links, &isolated) };
        assert_eq!(compile_interfaces(&seen, &Interfaces::default()).0.ifaces[&8].flags, shut);
        // No policy is about it: whoever it is may do as they like.
        let (free, _) = compile_interfaces(&around(&links, &NOBODY), &hiding);
        assert_eq!(free.endpoints, BTreeMap::new());
        assert_eq!([5, 6, 7, 8].map(|index| free.ifaces[&index].flags), [0; 4]);
        // It is found, and the others are free.
        let mut found_links = links.clone();
        add_veth(&mut found_links, 5, "bare", BTreeSet::from([address]));
        let (found, _) = compile_interfaces(&around(&found_links, &isolated), &hiding);
        assert_eq!(found.endpoints[&address_of(address)].ifindex, 5);
        assert_eq!([5, 6, 7, 8].map(|index| found.ifaces[&index].flags), [Iface::PUBLISHED | Iface::DIRECT, 0, 0, 0]);
        // Its interface goes before the API server says so: it ends, and nobody else pays for that.
        let mut ended = links.clone();
        ended.pods.remove(&5);
        ended.devices.remove(&5);
        let (left, _) = compile_interfaces(&around(&ended, &isolated), &found);
        assert_eq!(left.endpoints[&address_of(address)].ifindex, 5, "who pretends to be it is still found out");
        assert_eq!([6, 7, 8].map(|index| left.ifaces[&index].flags), [0; 3]);
        let (left, _) = compile_interfaces(&around(&ended, &isolated), &left);
        assert_eq!([6, 7, 8].map(|index| left.ifaces[&index].flags), [0; 3]);
        // One address of two is missing: the pod is judged by the other.
        let second = address_of("fd00::7".parse().expect("an address"));
        let two = BTreeMap::from([(address_of(address), 3), (second, 3)]);
        let (half, _) = compile_interfaces(
            &Surroundings { endpoints: &two, ..around(&found_links, &isolated) },
            &Interfaces::default(),
        );
        assert_eq!(half.endpoints[&second].ifindex, NOWHERE);
        assert_eq!([5, 6, 7, 8].map(|index| half.ifaces[&index].flags), [Iface::PUBLISHED | Iface::DIRECT, 0, 0, 0]);
    }

    /// A node in a container: its address is at a bridge whose port the way out is.
    #[test]
    fn a_port_of_the_node_s_own_bridge_leads_out() {
        let mut links = Links::default();
        add_veth(&mut links, 2, "eth0", BTreeSet::new());
        add_veth(&mut links, 5, "vethpod", BTreeSet::new());
        for (index, name, port) in [(3, "br0", 2), (4, "kube-bridge", 5)] {
            add_device(&mut links, index, name, DeviceKind::Inner);
            links.pods.get_mut(&port).expect("a veth").master = Some(index);
        }
        let node = BTreeSet::from([IpAddr::from([10, 9, 0, 1])]);
        let host = BTreeSet::from([
            ("br0".into(), IpAddr::from([10, 9, 0, 1])),
            ("kube-bridge".into(), IpAddr::from([10, 1, 0, 1])),
        ]);
        // One range for all of it, as in flat networks.
        let pod_cidrs = BTreeSet::from(["10.0.0.0/8".parse().expect("a CIDR")]);
        let surroundings =
            Surroundings { host: &host, node: &node, pod_cidrs: &pod_cidrs, default_deny: true, ..around(&links) };
        let (interfaces, _) = compile_interfaces(&surroundings, &Interfaces::default());
        assert_eq!([2, 5].map(|index| interfaces.ifaces[&index].flags), [Iface::UPLINK, Iface::DEFAULT_DENY]);
    }

    /// The address may be further up: at the bridge of a bond, or at a VLAN of the link.
    #[test]
    fn what_stands_on_a_link_or_has_it_for_a_port_tells_that_it_leads_out() {
        let mut links = Links::default();
        for (index, name) in [(2, "eth0"), (3, "eth1"), (4, "vethpod"), (5, "vethother")] {
            add_veth(&mut links, index, name, BTreeSet::new());
        }
        for (index, name, kind) in [
            (6, "bond0", DeviceKind::Outer),
            (7, "br0", DeviceKind::Inner),
            (8, "eth1.9", DeviceKind::Outer),
            (9, "kube-bridge", DeviceKind::Inner),
            (10, "shim", DeviceKind::Outer),
        ] {
            add_device(&mut links, index, name, kind);
        }
        for (port, master) in [(2, 6), (4, 9)] {
            links.pods.get_mut(&port).expect("a veth").master = Some(master);
        }
        for (index, master, over) in [(6, Some(7), None), (8, None, Some(3)), (10, None, Some(9))] {
            let device = links.devices.get_mut(&index).expect("a device");
            (device.master, device.over) = (master, over);
        }
        // A ring, which the kernel does not make, ends.
        links.devices.get_mut(&7).expect("a bridge").master = Some(6);
        let host = ["br0", "eth1.9", "shim"].map(|name| (name.into(), IpAddr::from([192, 0, 2, 1]))).into();
        let surroundings = Surroundings { host: &host, ..around(&links) };
        let (interfaces, _) = compile_interfaces(&surroundings, &Interfaces::default());
        let flags = [2, 3, 4, 5].map(|index| interfaces.ifaces[&index].flags);
        assert_eq!(flags, [Iface::UPLINK, Iface::UPLINK, 0, 0], "a bridge's own shim is there for pods");
    }

    /// Two veths whose other ends have no address: a pod that is being made, and the way out of a node in a container.
    #[test]
    fn default_deny_is_for_pods_that_start_and_not_for_the_way_out() {
        let mut links = Links::default();
        add_veth(&mut links, 2, "eth0", BTreeSet::new());
        add_veth(&mut links, 5, "vethpod", BTreeSet::new());
        let host = BTreeSet::from([("eth0".into(), IpAddr::from([192, 0, 2, 1]))]);
        let surroundings = Surroundings { host: &host, default_deny: true, ..around(&links) };
        // An earlier pass that did not know the node's addresses is put right.
        let mut wrong = Interfaces::default();
        wrong.ifaces.insert(2, Iface { mac: [2; 6], flags: Iface::DEFAULT_DENY, ..Iface::default() });
        for before in [Interfaces::default(), wrong] {
            let (interfaces, _) = compile_interfaces(&surroundings, &before);
            assert_eq!(interfaces.attached, BTreeMap::from([(2, Role::Uplink), (5, Role::Pod)]));
            assert_eq!(interfaces.ifaces[&2].flags, Iface::UPLINK);
            assert_eq!(interfaces.ifaces[&5].flags, Iface::DEFAULT_DENY);
        }
    }

    #[test]
    fn a_pod_for_which_there_is_no_number_is_shut() {
        let address = IpAddr::from([10, 1, 0, 7]);
        let mut links = Links::default();
        add_veth(&mut links, 5, "v", BTreeSet::from([address]));
        let pod_cidrs = BTreeSet::from(["10.1.0.0/24".parse().expect("a CIDR")]);
        for (homeless, flags) in [(BTreeSet::from([address]), Iface::DEFAULT_DENY), (BTreeSet::new(), 0)] {
            let surroundings = Surroundings { homeless: &homeless, pod_cidrs: &pod_cidrs, ..around(&links) };
            let (interfaces, _) = compile_interfaces(&surroundings, &Interfaces::default());
            assert_eq!(interfaces.ifaces[&5].flags, flags);
            assert_eq!(interfaces.attached, BTreeMap::from([(5, Role::Pod)]));
        }
    }
}
