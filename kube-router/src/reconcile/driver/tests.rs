use super::*;
use crate::{
    apply::{
        Connections,
        fake::{FakeKernel, Fault},
    },
    config::ProxyConfig,
    desired::{Destination, VirtualKey},
    nl::{NlError, Refusal},
    objects::{Namespace, Object, ObjectKey},
    plan::{IpvsOp, ObservedIpvs},
    reconcile::PROXY_KINDS,
};

/// Refuses timeouts so many times.
struct Stubborn(FakeKernel, usize);

impl IpvsPlane for Stubborn {
    fn observe(&mut self) -> Result<ObservedIpvs, PlaneError> {
        IpvsPlane::observe(&mut self.0)
    }
    fn apply(&mut self, ops: &[IpvsOp]) -> Failures {
        IpvsPlane::apply(&mut self.0, ops)
    }
    fn connections(&mut self, server: &VirtualKey) -> Result<BTreeMap<Destination, Connections>, PlaneError> {
        self.0.connections(server)
    }
    fn set_timeouts(&mut self, _: IpvsTimeouts) -> Result<(), PlaneError> {
        let Some(left) = self.1.checked_sub(1) else { return Ok(()) };
        self.1 = left;
        let refusal = Refusal { errno: libc::EINVAL, text: "".into() };
        Err(PlaneError::Netlink { what: "IPVS timeouts", source: NlError::Refused(refusal) })
    }
}

/// A driver on a fake kernel, with every list complete and empty.
fn driver(kernel: &FakeKernel, refused_timeouts: usize) -> Driver {
    let planes = Planes {
        ipvs: Box::new(Stubborn(kernel.clone(), refused_timeouts)),
        net: Box::new(kernel.clone()),
        firewall: Box::new(kernel.clone()),
        conntrack: Box::new(kernel.clone()),
        sysctl: Box::new(kernel.clone()),
        policy: None,
    };
    // Nobody receives or sends: `settle` only looks at what it was given.
    let inputs = Inputs {
        events: mpsc::channel(1).1,
        queries: mpsc::channel(1).1,
        addresses: mpsc::channel(1).1,
        links: mpsc::channel(1).1,
        asks: mpsc::channel(1).1,
        policy_queries: mpsc::channel(1).1,
        records: None,
        sweeps: mpsc::channel(1).1,
        stop: watch::channel(false).1,
    };
    let outputs = Outputs {
        metrics: Arc::new(Metrics::new(true)),
        pulse: Arc::default(),
        health_checks: watch::channel(BTreeMap::new()).0,
        problems: watch::channel(0).0,
        record: None,
        monitor: Broadcaster::default(),
        sweeping: watch::channel(Default::default()).0,
    };
    let config = ProxyConfig { sync_period: Duration::from_millis(1), ..ProxyConfig::default() };
    let limit = Duration::from_secs(60);
    let reconciler = Reconciler::new(config, "n1", limit, clock::uptime_ms());
    let timeouts = IpvsTimeouts { tcp: Duration::from_secs(900), ..IpvsTimeouts::default() };
    let mut driver = Driver::new(reconciler, planes, inputs, outputs, limit, timeouts);
    PROXY_KINDS.into_iter().for_each(|kind| driver.take(ObjectEvent::RelistDone(kind)));
    driver
}

#[test]
fn timeouts_that_are_refused_stop_nothing_and_are_not_forgotten() {
    let mut driver = driver(&FakeKernel::new(), 3);
    let refused = |driver: &mut Driver| driver.reconciler.problems().iter().any(|p| p.reason == "KernelRefused");
    driver.settle();
    assert!(driver.reconciler.is_ready());
    assert!(refused(&mut driver));
    // Two tries in each full pass.
    std::thread::sleep(Duration::from_millis(5));
    driver.settle();
    assert!(!refused(&mut driver) && driver.timeouts.is_none());
}

/// The next update would be told to have taken all the time since.
#[test]
fn orders_without_an_update_leave_no_beginning() {
    let mut driver = driver(&FakeKernel::new(), 0);
    driver.policy_began = Some(Instant::now());
    driver.settle();
    assert!(driver.policy_began.is_none());
}

/// Every pod's veth brings an address.
#[test]
fn the_host_s_addresses_are_read_without_looking_at_all_else() {
    let kernel = FakeKernel::new();
    let mut driver = driver(&kernel, 0);
    driver.settle();
    kernel.0.borrow_mut().kernel.net.host_addresses.insert(("eth0".into(), [192, 0, 2, 1].into()));
    // An observation would fail and be counted.
    kernel.0.borrow_mut().broken_observations = 1;
    driver.read_addresses();
    driver.reconciler.poll(0);
    assert_eq!(kernel.0.borrow().broken_observations, 1);
    assert_eq!(driver.reconciler.node().local_addresses().count(), 1);
}

/// Somebody who ends the agent does not wait for a whole cluster.
#[test]
fn a_loop_that_is_told_to_stop_goes_no_further() {
    let kernel = FakeKernel::new();
    let mut driver = driver(&kernel, 0);
    let (stop, stopped) = watch::channel(true);
    driver.inputs.stop = stopped;
    driver.settle();
    assert_eq!(kernel.0.borrow().seen, 0);
    stop.send_replace(false);
    driver.settle();
    assert!(kernel.0.borrow().seen > 0);
}

#[test]
fn refusals_broken_observations_and_objects_are_counted() {
    let kernel = FakeKernel::new();
    // The first order makes ipsets, tables and chains.
    kernel.0.borrow_mut().faults.insert(0, Fault::Refuse(libc::EBUSY));
    let mut driver = driver(&kernel, 0);
    driver.take(ObjectEvent::Applied(Object::Namespace(Namespace {
        key: ObjectKey::cluster("web"),
        labels: Default::default(),
        isolation: None,
    })));
    driver.settle();
    let text =
        |driver: &Driver| prometheus::TextEncoder::new().encode_to_string(&driver.outputs.metrics.gather()).unwrap();
    assert!(text(&driver).contains("kube_router_sync_failures_total{plane=\"firewall\"} 1\n"));
    assert!(text(&driver).contains("kube_router_objects{kind=\"Namespace\"} 1\n"));
    kernel.0.borrow_mut().broken_observations = 1;
    std::thread::sleep(Duration::from_millis(1_100));
    driver.settle();
    assert!(text(&driver).contains("kube_router_sync_failures_total{plane=\"ipvs\"} 1\n"));
}
