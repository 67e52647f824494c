//! The kernel's planes with a stopwatch on each.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;
use kube_router::{
    apply::{
        Connections, ConntrackPlane, Failures, FirewallPlane, HostAddresses, IpvsPlane, IpvsTimeouts, NetPlane,
        PlaneError, conntrack::KernelConntrack, firewall::KernelFirewall, ipvs::Ipvs, net::NetlinkNet,
        sysctl::ProcSysctl,
    },
    desired::{Destination, VirtualKey},
    plan::{FirewallOp, IpvsOp, NetOp, ObservedFirewall, ObservedIpvs, ObservedNet, UdpFlow},
    reconcile::driver::Planes,
};

/// What one plane did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub observe: Duration,
    pub apply: Duration,
    pub orders: usize,
    pub refused: usize,
}

/// By plane: `ipvs`, `net`, `firewall`.
pub type Ledger = Rc<RefCell<BTreeMap<&'static str, Spent>>>;

struct Timed<P> {
    plane: P,
    name: &'static str,
    ledger: Ledger,
}

impl<P> Timed<P> {
    fn observe<T>(&mut self, work: impl FnOnce(&mut P) -> T) -> T {
        let begin = Instant::now();
        let result = work(&mut self.plane);
        self.ledger.borrow_mut().entry(self.name).or_default().observe += begin.elapsed();
        result
    }

    fn apply(&mut self, orders: usize, work: impl FnOnce(&mut P) -> Failures) -> Failures {
        let begin = Instant::now();
        let result = work(&mut self.plane);
        let mut ledger = self.ledger.borrow_mut();
        let spent = ledger.entry(self.name).or_default();
        spent.apply += begin.elapsed();
        spent.orders += orders;
        spent.refused += result.as_ref().map_or(orders, Vec::len);
        result
    }
}

/// The planes of the network namespace of this thread, and the ledger they write.
pub fn open() -> Result<(Planes, Ledger)> {
    let ledger = Ledger::default();
    let planes = Planes {
        ipvs: Box::new(timed("ipvs", &ledger, Ipvs::open()?)),
        net: Box::new(timed("net", &ledger, NetlinkNet::open()?)),
        firewall: Box::new(timed("firewall", &ledger, KernelFirewall::open()?)),
        conntrack: Box::new(timed("conntrack", &ledger, KernelConntrack::open()?)),
        sysctl: Box::new(ProcSysctl::new()),
        policy: None,
    };
    Ok((planes, ledger))
}

fn timed<P>(name: &'static str, ledger: &Ledger, plane: P) -> Timed<P> {
    Timed { plane, name, ledger: ledger.clone() }
}

impl IpvsPlane for Timed<Ipvs> {
    fn observe(&mut self) -> Result<ObservedIpvs, PlaneError> {
        Timed::observe(self, Ipvs::observe)
    }

    fn apply(&mut self, ops: &[IpvsOp]) -> Failures {
        Timed::apply(self, ops.len(), |plane| plane.apply(ops))
    }

    fn connections(&mut self, server: &VirtualKey) -> Result<BTreeMap<Destination, Connections>, PlaneError> {
        self.plane.connections(server)
    }

    fn set_timeouts(&mut self, timeouts: IpvsTimeouts) -> Result<(), PlaneError> {
        self.plane.set_timeouts(timeouts)
    }
}

impl NetPlane for Timed<NetlinkNet> {
    fn observe(&mut self) -> Result<ObservedNet, PlaneError> {
        Timed::observe(self, NetlinkNet::observe)
    }

    fn host_addresses(&mut self) -> Result<HostAddresses, PlaneError> {
        self.plane.host_addresses()
    }

    fn apply(&mut self, ops: &[NetOp]) -> Failures {
        Timed::apply(self, ops.len(), |plane| plane.apply(ops))
    }
}

impl FirewallPlane for Timed<KernelFirewall> {
    fn observe(&mut self) -> Result<ObservedFirewall, PlaneError> {
        Timed::observe(self, KernelFirewall::observe)
    }

    fn apply(&mut self, ops: &[FirewallOp]) -> Failures {
        Timed::apply(self, ops.len(), |plane| plane.apply(ops))
    }
}

impl ConntrackPlane for Timed<KernelConntrack> {
    fn flush_udp(&mut self, flows: &[UdpFlow]) -> Result<usize, PlaneError> {
        self.plane.flush_udp(flows)
    }
}
