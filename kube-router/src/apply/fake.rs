//! A kernel in memory: all planes over one [`Observed`], with faults at any order. For tests, and for `plan` and
//! `replay`, which rehearse without a kernel.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::{
    Connections, ConntrackPlane, Failures, FirewallPlane, HostAddresses, IpvsPlane, IpvsTimeouts, NetPlane, OpFailure,
    PlaneError, SysctlPlane,
};
use crate::{
    compile::rings::DestinationList,
    desired::{Destination, Sysctl, VirtualKey},
    nl::{NlError, Refusal},
    plan::{FirewallOp, IpvsOp, NetOp, Observed, ObservedFirewall, ObservedIpvs, ObservedNet, Stage, UdpFlow},
};

/// What goes wrong at an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The order is refused with this errno and changes nothing.
    Refuse(i32),
    /// The plane fails with this errno: orders before this one were carried out, the rest were not.
    Break(i32),
    /// The subsystem vanished: the plane fails, and everything it held is gone.
    Unload,
}

#[derive(Debug, Default)]
pub struct FakeState {
    pub kernel: Observed,
    pub connections: BTreeMap<(VirtualKey, Destination), Connections>,
    /// Orders carried out since the start, in order, each as a stage of one.
    pub log: Vec<Stage>,
    /// Orders seen so far, refused ones included.
    pub seen: usize,
    /// Fault at the n-th order (counted by `seen`).
    pub faults: BTreeMap<usize, Fault>,
    /// The next observations fail: a dump that ends early.
    pub broken_observations: usize,
    pub sysctls: BTreeMap<String, String>,
    pub modules: BTreeSet<String>,
}

/// A handle; clones share the kernel.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel(pub Rc<RefCell<FakeState>>);

impl FakeKernel {
    pub fn new() -> Self {
        FakeKernel::default()
    }

    /// Carries out one stage, as the planes would.
    pub fn apply(&self, stage: &Stage) -> Failures {
        match stage {
            Stage::Ipvs(ops) => IpvsPlane::apply(&mut self.clone(), ops),
            Stage::Net(ops) => NetPlane::apply(&mut self.clone(), ops),
            Stage::Firewall(ops) => FirewallPlane::apply(&mut self.clone(), ops),
            Stage::Conntrack(flows) => self.clone().flush_udp(flows).map(|_| Vec::new()),
        }
    }

    pub fn observe(&self) -> Result<Observed, PlaneError> {
        let mut state = self.0.borrow_mut();
        if state.broken_observations > 0 {
            state.broken_observations -= 1;
            return Err(broken(libc::ENOBUFS));
        }
        let mut observed = state.kernel.clone();
        for list in observed.ipvs.lists.values_mut() {
            // A dump tells less than the kernel knows.
            let dump = list.as_slice().iter().map(|listed| (listed.destination, listed.weight));
            *list = DestinationList::from_dump(dump);
        }
        Ok(observed)
    }

    fn each<T: Clone>(
        &self,
        ops: &[T],
        stage: impl Fn(T) -> Stage,
        unload: impl Fn(&mut Observed),
        carry_out: impl Fn(&mut Observed, &T) -> Result<(), i32>,
    ) -> Failures {
        let mut state = self.0.borrow_mut();
        let mut failures = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            let number = state.seen;
            state.seen += 1;
            let result = match state.faults.remove(&number) {
                Some(Fault::Refuse(errno)) => Err(errno),
                Some(Fault::Break(errno)) => return Err(broken(errno)),
                Some(Fault::Unload) => {
                    unload(&mut state.kernel);
                    return Err(broken(libc::ENOENT));
                }
                None => carry_out(&mut state.kernel, op),
            };
            match result {
                Ok(()) => state.log.push(stage(op.clone())),
                Err(errno) => failures.push(OpFailure { index, refusal: Refusal { errno, text: "".into() } }),
            }
        }
        Ok(failures)
    }
}

fn broken(errno: i32) -> PlaneError {
    PlaneError::Netlink { what: "fake", source: NlError::Socket(std::io::Error::from_raw_os_error(errno)) }
}

impl IpvsPlane for FakeKernel {
    fn observe(&mut self) -> Result<ObservedIpvs, PlaneError> {
        FakeKernel::observe(self).map(|observed| observed.ipvs)
    }

    fn apply(&mut self, ops: &[IpvsOp]) -> Failures {
        let unload = |kernel: &mut Observed| kernel.ipvs = ObservedIpvs::default();
        self.each(ops, |op| Stage::Ipvs(vec![op]), unload, |kernel, op| kernel.ipvs.carry_out(op))
    }

    fn connections(&mut self, server: &VirtualKey) -> Result<BTreeMap<Destination, Connections>, PlaneError> {
        let state = self.0.borrow();
        let Some(known) = state.kernel.ipvs.servers.get(server) else { return Ok(BTreeMap::new()) };
        let count =
            |destination: &Destination| state.connections.get(&(*server, *destination)).copied().unwrap_or_default();
        Ok(known.destinations.keys().map(|destination| (*destination, count(destination))).collect())
    }

    fn set_timeouts(&mut self, _timeouts: IpvsTimeouts) -> Result<(), PlaneError> {
        Ok(())
    }
}

impl NetPlane for FakeKernel {
    fn observe(&mut self) -> Result<ObservedNet, PlaneError> {
        FakeKernel::observe(self).map(|observed| observed.net)
    }

    fn host_addresses(&mut self) -> Result<HostAddresses, PlaneError> {
        Ok(self.0.borrow().kernel.net.host_addresses.clone())
    }

    fn apply(&mut self, ops: &[NetOp]) -> Failures {
        let unload = |kernel: &mut Observed| {
            let host_addresses = std::mem::take(&mut kernel.net.host_addresses);
            kernel.net = ObservedNet { host_addresses, ..ObservedNet::default() };
        };
        self.each(ops, |op| Stage::Net(vec![op]), unload, |kernel, op| kernel.net.carry_out(op))
    }
}

impl FirewallPlane for FakeKernel {
    fn observe(&mut self) -> Result<ObservedFirewall, PlaneError> {
        FakeKernel::observe(self).map(|observed| observed.firewall)
    }

    fn apply(&mut self, ops: &[FirewallOp]) -> Failures {
        let unload = |kernel: &mut Observed| kernel.firewall = ObservedFirewall::default();
        self.each(ops, |op| Stage::Firewall(vec![op]), unload, |kernel, op| kernel.firewall.carry_out(op))
    }
}

impl ConntrackPlane for FakeKernel {
    fn flush_udp(&mut self, flows: &[UdpFlow]) -> Result<usize, PlaneError> {
        self.0.borrow_mut().log.push(Stage::Conntrack(flows.to_vec()));
        Ok(flows.len())
    }
}

impl SysctlPlane for FakeKernel {
    fn read(&mut self, path: &str) -> Result<Option<String>, PlaneError> {
        Ok(self.0.borrow().sysctls.get(path).cloned())
    }

    fn write(&mut self, sysctl: &Sysctl) -> Result<(), PlaneError> {
        self.0.borrow_mut().sysctls.insert(sysctl.path.clone(), sysctl.value.clone());
        Ok(())
    }

    fn load_module(&mut self, name: &str) -> Result<(), PlaneError> {
        self.0.borrow_mut().modules.insert(name.to_owned());
        Ok(())
    }
}
