//! kube-dummy-if, its addresses and its local routes, by rtnetlink alone.
//!
//! The problem: a service address (VIP) must be local to every node, so that IPVS sees its packets, yet must never
//! become the source of the node's own connections. So every VIP sits on the interface kube-dummy-if, and its entry
//! in table `local` names the node's address as preferred source instead of the VIP itself.
//!
//! In: [`NetOp`]s. Out: refusals by index, and [`ObservedNet`]. Many orders travel in few `sendmsg`; asking for what is
//! already so is no error. The plane does not know services, nor which interfaces count as the node's: it reports the
//! addresses of all of them.
//!
//! What the kernel makes hard:
//!
//! * Adding an address adds a local route with the VIP as source. For IPv4 we add ours in front, then remove the other.
//! * For IPv6 the kernel's route has metric 0, always wins over ours (metric 1024, the least a request without metric
//!   can have), cannot be named in a deletion (metric 0 means any), and appears only after the request has returned,
//!   when a work queue gets to it. So we wait for it, then lay a copy of ours with metric 1 on top of 1024, delete
//!   "the first route", which is the kernel's or else the copy, and delete the copy. The VIP is local at every moment.
//! * The IPv4 addresses of an interface are a list that the kernel walks for each one added. The first 5,000 cost
//!   little, 20,000 cost ten seconds (as many by `ip -batch` cost as much), spent inside `apply`: a caller that must
//!   show signs of life hands over a large plan in slices.
//! * Removing an address does not remove the route that we made for it.

pub mod announce;
mod hindrances;
pub mod monitor;
mod orders;
pub mod pod_end;
pub mod pod_links;
mod table;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use netlink_packet_route::AddressFamily;
use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::debug;

use self::{
    orders::{Knowledge, Orders},
    table::{Address, Link, LocalRoute},
};
use crate::{
    apply::{Failures, HostAddresses, NetPlane, OpFailure, PlaneError},
    nl::{NlError, Refusal, Socket},
    plan::{NetOp, ObservedNet},
};

/// Name of the interface that holds the VIPs.
pub const DUMMY: &str = "kube-dummy-if";

/// Longest wait of one `apply` for the kernel's own IPv6 routes. They come within milliseconds; if they do not, the
/// next observation shows them and the planner asks again.
const OWN_ROUTE_WAIT: Duration = Duration::from_secs(1);
/// Pause between two looks.
const OWN_ROUTE_POLL: Duration = Duration::from_millis(1);

/// The [`NetPlane`] of the network namespace of the thread that opened it.
pub struct NetlinkNet {
    socket: Socket,
    knowledge: Knowledge,
}

/// A `SetLocalRoute` of which the addition was sent and the removal of other routes is still to come.
struct Setting {
    op: usize,
    vip: IpAddr,
    source: Option<IpAddr>,
    /// What was known of the VIP's routes before.
    before: Vec<LocalRoute>,
}

fn failed(source: NlError) -> PlaneError {
    PlaneError::Netlink { what: "links, addresses and routes", source }
}

impl NetlinkNet {
    pub fn open() -> Result<Self, PlaneError> {
        let mut socket = Socket::open(NETLINK_ROUTE).map_err(failed)?;
        // Lets the kernel filter route dumps. Without it they are longer, not wrong.
        let _ = socket.raw().set_netlink_get_strict_chk(true);
        Ok(NetlinkNet { socket, knowledge: Knowledge::default() })
    }

    /// Sends `orders` and files refusals. Returns the orders (by index) whose address was already there.
    fn send(&mut self, orders: Orders, failures: &mut Vec<OpFailure>) -> Result<HashSet<usize>, PlaneError> {
        let (mut batch, owners) = orders.into_parts();
        let mut present = HashSet::new();
        for (message, refusal) in self.socket.send_batch(&mut batch).map_err(failed)? {
            let Some(owner) = owners.get(message) else { continue };
            if owner.no_error.contains(&refusal.errno) {
                if owner.adds_address {
                    present.insert(owner.op);
                }
            } else {
                fail(failures, owner.op, refusal);
            }
        }
        Ok(present)
    }

    /// Waits until the kernel has made its own routes for freshly added IPv6 addresses.
    fn await_own_routes(&mut self, index: u32, vips: impl Iterator<Item = IpAddr>) -> Result<(), PlaneError> {
        let deadline = Instant::now() + OWN_ROUTE_WAIT;
        for vip in vips {
            loop {
                let route = table::read_matching_route(&mut self.socket, vip).map_err(failed)?;
                if route.is_some_and(|route| route.link == index && route.metric == 0) {
                    break;
                }
                if Instant::now() >= deadline {
                    debug!(%vip, "the kernel made no local route of its own for the address yet");
                    return Ok(());
                }
                thread::sleep(OWN_ROUTE_POLL);
            }
        }
        Ok(())
    }

    /// Carries out a run of orders that all concern the one interface `index`.
    fn apply_run(
        &mut self,
        index: u32,
        run: impl Iterator<Item = (usize, NetOp)>,
        failures: &mut Vec<OpFailure>,
    ) -> Result<(), PlaneError> {
        let mut orders = Orders::default();
        let mut added: HashMap<IpAddr, usize> = HashMap::new();
        let mut settings: Vec<Setting> = Vec::new();
        for (op, order) in run {
            match order {
                NetOp::AddAddress(address) => {
                    orders.add_address(op, index, address);
                    if address.is_ipv6() {
                        added.insert(address, op);
                    }
                    self.knowledge.address_added(index, address);
                }
                NetOp::DeleteAddress(address) => {
                    orders.delete_address(op, index, address, &self.knowledge);
                    added.remove(&address);
                    settings.retain(|setting| setting.vip != address);
                    self.knowledge.address_deleted(address);
                }
                NetOp::SetLocalRoute { vip, source } => {
                    let source = source.filter(|source| *source != vip);
                    let before = self.knowledge.route_set(index, vip, source);
                    orders.add_local_route(op, index, vip, source, &before);
                    settings.push(Setting { op, vip, source, before });
                }
                NetOp::DeleteLocalRoute { vip } => {
                    orders.delete_local_routes(op, index, vip, &self.knowledge);
                    settings.retain(|setting| setting.vip != vip);
                    self.knowledge.routes_deleted(vip);
                }
                NetOp::EnsureDummy | NetOp::DeleteDummy => {}
            }
        }
        let present = self.send(orders, failures)?;
        let failed_ops: HashSet<usize> = failures.iter().map(|failure| failure.index).collect();
        for refused in settings.extract_if(.., |setting| failed_ops.contains(&setting.op)) {
            self.knowledge.restore(refused.vip, refused.before);
        }
        let is_fresh =
            |vip: &IpAddr| added.get(vip).is_some_and(|op| !present.contains(op) && !failed_ops.contains(op));
        let fresh = settings.iter().filter(|setting| setting.source.is_some()).map(|setting| setting.vip);
        self.await_own_routes(index, fresh.filter(|vip| vip.is_ipv6() && is_fresh(vip)))?;
        let mut orders = Orders::default();
        for Setting { op, vip, source, before } in settings {
            orders.remove_other_routes(op, index, vip, source, &before);
        }
        self.send(orders, failures)?;
        Ok(())
    }

    fn dummy_index(&mut self) -> Result<Option<u32>, PlaneError> {
        Ok(table::read_dummy(&mut self.socket).map_err(failed)?.map(|link| link.index))
    }
}

/// Notes the first refusal of an order.
fn fail(failures: &mut Vec<OpFailure>, index: usize, refusal: Refusal) {
    if failures.iter().rev().take_while(|failure| failure.index >= index).all(|failure| failure.index != index) {
        failures.push(OpFailure { index, refusal });
    }
}

/// An order against an interface that is not there: additions fail, removals have nothing to do.
fn without_dummy(op: usize, order: &NetOp) -> Option<OpFailure> {
    match order {
        NetOp::AddAddress(_) | NetOp::SetLocalRoute { .. } => Some(OpFailure {
            index: op,
            refusal: Refusal { errno: libc::ENODEV, text: "kube-dummy-if does not exist".into() },
        }),
        NetOp::DeleteAddress(_) | NetOp::DeleteLocalRoute { .. } | NetOp::EnsureDummy | NetOp::DeleteDummy => None,
    }
}

fn of_the_host(links: &[Link], addresses: &[Address]) -> HostAddresses {
    let names = table::names(links);
    // A link made after the first dump has no name yet; the monitor reports it.
    let named = addresses.iter().filter_map(|address| Some((*names.get(&address.link)?, address.address)));
    named.filter(|(name, _)| *name != DUMMY).map(|(name, address)| (name.into(), address)).collect()
}

impl NetPlane for NetlinkNet {
    /// Four dumps at most. A VIP whose local routes are not the single one of the usual form reads as source `0.0.0.0`
    /// or `::`, which equals nothing that is ever asked for.
    fn observe(&mut self) -> Result<ObservedNet, PlaneError> {
        let links = table::read_links(&mut self.socket).map_err(failed)?;
        let addresses = table::read_addresses(&mut self.socket).map_err(failed)?;
        let dummy = links.iter().find(|link| &*link.name == DUMMY);
        let mut routes: Vec<LocalRoute> = Vec::new();
        if let Some(dummy) = dummy {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                routes.extend(table::read_local_routes(&mut self.socket, dummy.index, family).map_err(failed)?);
            }
        }
        let index = dummy.map(|dummy| dummy.index);
        self.knowledge = Knowledge::new(&addresses, routes, index);
        let mut observed = ObservedNet {
            dummy_exists: dummy.is_some(),
            dummy_up: dummy.is_some_and(|dummy| dummy.up),
            host_addresses: of_the_host(&links, &addresses),
            ..ObservedNet::default()
        };
        let of_dummy = addresses.iter().filter(|address| Some(address.link) == index).map(|address| address.address);
        observed.dummy_addresses.extend(of_dummy.filter(|address| !table::is_link_local(*address)));
        observed.local_routes = self.knowledge.sources();
        Ok(observed)
    }

    fn host_addresses(&mut self) -> Result<HostAddresses, PlaneError> {
        let links = table::read_links(&mut self.socket).map_err(failed)?;
        Ok(of_the_host(&links, &table::read_addresses(&mut self.socket).map_err(failed)?))
    }

    fn apply(&mut self, ops: &[NetOp]) -> Failures {
        let mut failures = Vec::new();
        let mut index = self.dummy_index()?;
        let mut next = 0;
        while next < ops.len() {
            let whole_link = |order: &NetOp| matches!(order, NetOp::EnsureDummy | NetOp::DeleteDummy);
            let end = ops[next..].iter().position(whole_link).map_or(ops.len(), |offset| next + offset);
            let run = (next..end).map(|op| (op, ops[op].clone()));
            match index {
                Some(index) => self.apply_run(index, run, &mut failures)?,
                None => failures.extend(run.filter_map(|(op, order)| without_dummy(op, &order))),
            }
            if let Some(order) = ops.get(end) {
                let mut orders = Orders::default();
                if *order == NetOp::EnsureDummy {
                    orders.ensure_dummy(end);
                } else {
                    orders.delete_dummy(end);
                    self.knowledge = Knowledge::default();
                }
                self.send(orders, &mut failures)?;
                index = self.dummy_index()?;
            }
            next = end + 1;
        }
        failures.sort_by_key(|failure| failure.index);
        Ok(failures)
    }
}
