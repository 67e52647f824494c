//! The verdict as the programs find it: from address to pod, group, class, port class and row, in any tables.
//!
//! The same walk through the agent's own tables and through the kernel's; where the two differ, the first difference is
//! the fault, and it has a map and a key.

use std::{convert::Infallible, net::IpAddr};

use kube_router_common::policy::{
    ANY, Address, CLOSED, NOT_ISOLATED, PORTLESS, PORTS_OTHER, Peer, PodGroups, PolicyKey, PolicyRow, judge, port_index,
};
use serde::{Deserialize, Serialize};

use crate::{
    compile::policy::{ip_of, model::Traffic},
    desired::policy::{Direction, PolicyTables},
    plan::adopt::Numbered,
};

/// Tables, wherever they are.
pub trait Look {
    type Error;
    /// Number of the pod that has this address.
    fn pod_at(&self, address: &Address) -> Result<Option<u32>, Self::Error>;
    /// `None`: no such pod.
    fn groups(&self, pod: u32) -> Result<Option<PodGroups>, Self::Error>;
    /// Exact, else by the longest prefix, else of the world.
    fn peer(&self, address: &Address) -> Result<Peer, Self::Error>;
    fn port_class(&self, index: u32) -> Result<u32, Self::Error>;
    fn row(&self, key: &PolicyKey) -> Result<Option<PolicyRow>, Self::Error>;
}

impl Look for PolicyTables {
    type Error = Infallible;

    fn pod_at(&self, address: &Address) -> Result<Option<u32>, Infallible> {
        Ok(self.endpoints.get(address).copied())
    }

    fn groups(&self, pod: u32) -> Result<Option<PodGroups>, Infallible> {
        Ok(self.pods.get(&pod).copied())
    }

    fn peer(&self, address: &Address) -> Result<Peer, Infallible> {
        Ok(PolicyTables::peer(self, *address))
    }

    fn port_class(&self, index: u32) -> Result<u32, Infallible> {
        Ok(self.ports.range(..=index).next_back().map_or(PORTS_OTHER, |(_, class)| *class))
    }

    fn row(&self, key: &PolicyKey) -> Result<Option<PolicyRow>, Infallible> {
        Ok(self.rows.get(key).copied())
    }
}

impl Look for Numbered<'_> {
    type Error = Infallible;

    fn pod_at(&self, address: &Address) -> Result<Option<u32>, Infallible> {
        let (tables, renaming) = self.tables();
        let pod = tables.endpoints.get(address).copied();
        Ok(pod.map(|pod| renaming.map_or(pod, |renaming| renaming.pod(pod))))
    }

    fn groups(&self, pod: u32) -> Result<Option<PodGroups>, Infallible> {
        let (tables, renaming) = self.tables();
        let Some(renaming) = renaming else { return Ok(tables.pods.get(&pod).copied()) };
        Ok(tables.pods.get(&renaming.pod(pod)).map(|groups| renaming.groups_of(*groups)))
    }

    fn peer(&self, address: &Address) -> Result<Peer, Infallible> {
        let (tables, renaming) = self.tables();
        let peer = tables.peer(*address);
        Ok(renaming.map_or(peer, |renaming| renaming.peer(peer)))
    }

    fn port_class(&self, index: u32) -> Result<u32, Infallible> {
        let (tables, renaming) = self.tables();
        let Ok(class) = Look::port_class(tables, index);
        Ok(renaming.map_or(class, |renaming| renaming.port_class(class)))
    }

    fn row(&self, key: &PolicyKey) -> Result<Option<PolicyRow>, Infallible> {
        let (tables, renaming) = self.tables();
        let Some(renaming) = renaming else { return Look::row(tables, key) };
        Ok(tables.rows.get(&renaming.key(*key)).map(|row| renaming.row(*row)))
    }
}

/// What a walk met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    pub direction: Direction,
    pub address: IpAddr,
    pub peer: IpAddr,
    /// `None`: the address is no pod's, so nothing is judged.
    pub pod: Option<u32>,
    /// [`NOT_ISOLATED`]: everything is allowed. [`CLOSED`]: nothing, as a table is full.
    pub group: u32,
    pub class: u32,
    /// [`Peer::flags`]
    pub flags: u32,
    pub port_class: u32,
    /// The row that fits: class and port class of its key, verdict, rule.
    pub row: Option<(u32, u32, u32, u32)>,
    pub allowed: bool,
}

impl Walk {
    pub fn rule(&self) -> u32 {
        self.row.map_or(0, |(_, _, _, rule)| rule)
    }
}

/// Judges a new flow of the pod that has `address`, to or from `peer`.
pub fn walk<L: Look>(
    tables: &L,
    direction: Direction,
    address: Address,
    peer: Address,
    traffic: Traffic,
) -> Result<Walk, L::Error> {
    let pod = tables.pod_at(&address)?;
    let groups = match pod {
        Some(pod) => tables.groups(pod)?.unwrap_or_default(),
        None => PodGroups::default(),
    };
    let group = direction.group(groups);
    let known = tables.peer(&peer)?;
    let index = match traffic {
        Traffic::Port(protocol, port) => port_index(protocol.number(), port),
        Traffic::Portless => None,
    };
    let port_class = match index {
        Some(index) => tables.port_class(index)?,
        None => PORTLESS,
    };
    let (mut row, mut failed) = (None, None);
    let verdict = judge(group, known.class, port_class, |key| match tables.row(key) {
        Ok(found) => {
            row = found.map(|found| (key.class, key.ports, found.verdict, found.rule));
            found
        }
        Err(error) => {
            failed.get_or_insert(error);
            None
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let own_node = direction == Direction::Ingress && known.flags & Peer::NODE != 0;
    Ok(Walk {
        direction,
        address: ip_of(address),
        peer: ip_of(peer),
        pod,
        group,
        class: known.class,
        flags: known.flags,
        port_class,
        row,
        allowed: verdict.allowed || own_node,
    })
}

/// Every element in which the kernel's walk differs from the one that the agent wants; `rule` names rules.
pub fn differences(wanted: &Walk, found: &Walk, traffic: &str, rule: impl Fn(u32) -> String) -> Vec<String> {
    let mut faults = Vec::new();
    let (address, peer, direction) = (wanted.address, wanted.peer, wanted.direction.name());
    if found.pod != wanted.pod {
        let said = |pod: Option<u32>| pod.map_or("no row".to_owned(), |pod| format!("pod {pod}"));
        faults.push(format!("kr_eps[{address}] has {}, the agent wants {}", said(found.pod), said(wanted.pod)));
        // Whatever follows is about somebody else.
        return faults;
    }
    let pod = wanted.pod.unwrap_or_default();
    if found.group != wanted.group {
        let said = |group| match group {
            NOT_ISOLATED => "0 (open)".to_owned(),
            CLOSED => "that of shut pods".to_owned(),
            group => format!("{group}"),
        };
        faults.push(format!(
            "kr_pods[{pod}].{direction} is group {}, the agent wants {}",
            said(found.group),
            said(wanted.group)
        ));
    }
    if (found.class, found.flags) != (wanted.class, wanted.flags) {
        faults.push(format!(
            "kr_peers[{peer}] or its prefix in kr_cidrs has class {} flags {}, the agent wants class {} flags {}",
            found.class, found.flags, wanted.class, wanted.flags
        ));
    }
    if found.port_class != wanted.port_class {
        faults.push(format!(
            "kr_ports[{traffic}] is port class {}, the agent wants {}",
            found.port_class, wanted.port_class
        ));
    }
    if faults.is_empty() && found.row != wanted.row {
        let number = |number| if number == ANY { "any".to_owned() } else { format!("{number}") };
        let said = |row: Option<(u32, u32, u32, u32)>| match row {
            None => "no row that fits".to_owned(),
            Some((class, ports, verdict, by)) => {
                let verdict = if verdict == PolicyRow::ALLOW { "allow" } else { "deny" };
                format!("[class {}, ports {}] {verdict} by {}", number(class), number(ports), rule(by))
            }
        };
        faults.push(format!(
            "kr_policy, group {}: {}, the agent wants {}",
            wanted.group,
            said(found.row),
            said(wanted.row)
        ));
    }
    faults
}
