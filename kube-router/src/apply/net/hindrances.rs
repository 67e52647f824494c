//! What packets meet at a pod's link besides our programs, and would not meet if they were handed past the stack.
//!
//! The problem: what a pod sends to another pod of its node may be handed to it at once (`kube_router_common::hooks`). Then
//! it passes neither the bridge's rules for its ports, nor what shapes or redirects traffic at the node's end of a veth, as the
//! network plugin `bandwidth` does. Somebody wanted that, so such a link takes no short way.
//!
//! In: rtnetlink's qdiscs and filters, and what a bridge says of itself and its ports. Out: [`Hindrance`]s. Not seen: rules of
//! netfilter, and other people's programs on tcx.

use std::collections::{BTreeMap, BTreeSet};

use super::pod_links::{IFLA_INFO_KIND, IFLA_LINKINFO};
use crate::{
    apply::bpf::attach::{CLSACT_PRIORITY, RTM_GETTFILTER, TC_H_EGRESS, TC_H_INGRESS, TCA_KIND, TCMSG, tcmsg},
    compile::links::Hindrance,
    nl::{NlError, Socket, attr},
};

/// include/uapi/linux/rtnetlink.h, if_link.h
const RTM_GETQDISC: u16 = 38;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BRPORT_ISOLATED: u16 = 33;

/// What stands at the links of a node.
#[derive(Debug, Default)]
pub(super) struct Hindrances {
    /// Qdiscs that somebody put there, by interface: is one of them more than a place for filters?
    qdiscs: BTreeMap<u32, bool>,
    /// Bridges that look at hardware addresses only.
    plain_bridges: BTreeSet<u32>,
}

impl Hindrances {
    /// Adds what stands at all links.
    pub fn with_qdiscs(self, socket: &mut Socket) -> Result<Self, NlError> {
        let request = |bytes: &mut Vec<u8>| tcmsg(bytes, 0, 0, 0, 0);
        let qdiscs = socket.dump(RTM_GETQDISC, 0, request, |found: &mut BTreeMap<u32, bool>, _, payload| {
            if let Some((ifindex, shapes)) = parse_qdisc(payload) {
                *found.entry(ifindex).or_default() |= shapes;
            }
            Ok(())
        })?;
        Ok(Hindrances { qdiscs, ..self })
    }

    /// Takes in an answer to RTM_GETLINK: of a bridge, what it is like.
    pub fn note_link(&mut self, payload: &[u8]) {
        self.plain_bridges.extend(parse_plain_bridge(payload));
    }

    /// What stands at a link; `port` is what its bridge says of it. `Err`: the link is gone, or the kernel does not answer.
    pub fn at(
        &self,
        socket: &mut Socket,
        ifindex: u32,
        master: Option<u32>,
        port: Port,
    ) -> Result<Option<Hindrance>, NlError> {
        if port.is_isolated || master.is_some_and(|master| !self.plain_bridges.contains(&master)) {
            return Ok(Some(Hindrance::Bridge));
        }
        match self.qdiscs.get(&ifindex) {
            None => Ok(None),
            Some(true) => Ok(Some(Hindrance::Qdisc)),
            Some(false) => Ok(has_filters(socket, ifindex)?.then_some(Hindrance::Filter)),
        }
    }
}

/// Are there filters that are not ours?
fn has_filters(socket: &mut Socket, ifindex: u32) -> Result<bool, NlError> {
    for parent in [TC_H_INGRESS, TC_H_EGRESS] {
        let request = |bytes: &mut Vec<u8>| tcmsg(bytes, ifindex, 0, parent, 0);
        let foreign = socket.dump(RTM_GETTFILTER, 0, request, |foreign: &mut bool, _, payload| {
            // `tcm_info`: priority and protocol.
            *foreign |= attr::u32(payload.get(16..20).unwrap_or_default())
                .is_some_and(|info| info >> 16 != u32::from(CLSACT_PRIORITY));
            Ok(())
        })?;
        if foreign {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The interface, and whether it is more than a place for filters. `None`: what a link has by itself.
fn parse_qdisc(payload: &[u8]) -> Option<(u32, bool)> {
    let ifindex = attr::u32(payload.get(4..8)?)?;
    let (_, kind) = attr::attributes(payload.get(TCMSG..)?).find(|(kind, _)| *kind == TCA_KIND)?;
    match attr::text(kind) {
        "noqueue" => None,
        "clsact" => Some((ifindex, false)),
        _ => Some((ifindex, true)),
    }
}

fn parse_plain_bridge(payload: &[u8]) -> Option<u32> {
    let ifindex = attr::u32(payload.get(4..8)?)?;
    let info = |wanted: u16| link_info(payload, wanted);
    let is_bridge = info(IFLA_INFO_KIND).is_some_and(|kind| attr::text(kind) == "bridge");
    let filters = info(IFLA_INFO_DATA).is_some_and(|data| is_set(data, IFLA_BR_VLAN_FILTERING));
    (is_bridge && !filters).then_some(ifindex)
}

/// A link as a port of its bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Port {
    /// It talks to ports only that are not isolated.
    is_isolated: bool,
}

impl Port {
    pub fn parse(payload: &[u8]) -> Port {
        let data = link_info(payload, IFLA_INFO_SLAVE_DATA);
        Port { is_isolated: data.is_some_and(|data| is_set(data, IFLA_BRPORT_ISOLATED)) }
    }
}

fn link_info(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    let of = |bytes, wanted| attr::attributes(bytes).find(move |(kind, _)| *kind == wanted).map(|(_, value)| value);
    of(of(payload.get(16..)?, IFLA_LINKINFO)?, wanted)
}

fn is_set(attributes: &[u8], wanted: u16) -> bool {
    attr::attributes(attributes).any(|(kind, value)| kind == wanted && value.first() == Some(&1))
}
