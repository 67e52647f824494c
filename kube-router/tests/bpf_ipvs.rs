//! Policy through the load balancer: what one hook notes of a packet must reach the next one through IPVS.
//!
//! Both pods and the service are on one node; the packet goes pod 1, kr_pod_out, bridge, IPVS (which writes pod 2's address
//! over the service's), bridge, kr_pod_in, pod 2.

#[path = "bpf_kernel/net.rs"]
#[allow(dead_code, reason = "the other file uses the rest")]
mod net;

use std::{
    io::ErrorKind,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use kube_router::apply::bpf::{Dataplane, Options};
use kube_router_common::policy::{Peer, Service, ServiceKey};

use crate::net::{CLASS_1, CLASS_2, Net, address, allow, attach_pods, isolate, next_generation, write_pods};

/// One namespace's sysctls are set at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    assert!(output.status.success(), "{program} {arguments}: {}", text(output.stderr));
    text(output.stdout)
}

/// A service at 10.8.0.1:80 whose only endpoint is pod 2, port 8080.
fn with_a_service(body: impl FnOnce(Net, Dataplane) + Send + 'static) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = thread::spawn(|| {
        let net = Net::new();
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv4.vs.conntrack=1",
            "net.bridge.bridge-nf-call-iptables=1",
            "net.ipv4.conf.all.rp_filter=0",
        ] {
            run("sysctl", &format!("-qw {setting}"));
        }
        run("ip", "link add kube-dummy-if type dummy");
        run("ip", "link set kube-dummy-if up");
        run("ip", "addr add 10.8.0.1/32 dev kube-dummy-if");
        run("ipvsadm", "-A -t 10.8.0.1:80 -s rr");
        run("ipvsadm", "-a -t 10.8.0.1:80 -r 10.1.0.2:8080 -m");
        for port in [8080, 9090] {
            net.pod_2.listen(port);
        }
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        dataplane.tables().peers.put(&address("10.8.0.1"), &Peer { class: 5, flags: Peer::SERVICE }).expect("peer");
        let key = ServiceKey { address: address("10.8.0.1"), port: 80, protocol: 6, pad: 0 };
        dataplane.tables().services.put(&key, &Service::default()).expect("service");
        attach_pods(&mut dataplane);
        body(net, dataplane);
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

const SERVICE: &str = "10.8.0.1:80";

#[test]
#[ignore = "needs root, IPVS and the BPF object: cargo xtask test --tier 4 --filter bpf_ipvs"]
fn egress_through_a_service_is_judged_at_the_endpoint() {
    with_a_service(|net, dataplane| {
        net.pod_1.connect(SERVICE).0.expect("nothing isolates");
        isolate(&dataplane, 1, true, true);
        next_generation(&dataplane);
        let (denied, took) = net.pod_1.connect(SERVICE);
        assert_eq!(denied.map(drop), Err(ErrorKind::ConnectionRefused), "{took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        allow(&dataplane, 11, CLASS_2, 8080);
        next_generation(&dataplane);
        net.pod_1.connect(SERVICE).0.expect("the endpoint's port is allowed");
        let (denied, took) = net.pod_1.connect("10.1.0.2:9090");
        assert_eq!(denied.map(drop), Err(ErrorKind::ConnectionRefused), "directly, another port: {took:?}");
    });
}

#[test]
#[ignore = "needs root, IPVS and the BPF object: cargo xtask test --tier 4 --filter bpf_ipvs"]
fn a_masqueraded_pod_is_judged_as_itself() {
    with_a_service(|net, dataplane| {
        // As --masquerade-all does.
        run("nft", "add table ip m");
        run("nft", "add chain ip m post { type nat hook postrouting priority 100 ; }");
        run("nft", "add rule ip m post ip daddr 10.1.0.2 ct original ip daddr 10.8.0.1 snat to 10.1.0.254");
        net.pod_1.connect(SERVICE).0.expect("nothing isolates");
        isolate(&dataplane, 2, true, false);
        next_generation(&dataplane);
        let (denied, took) = net.pod_1.connect(SERVICE);
        assert!(denied.is_err(), "the node may, the pod may not: {took:?}");
        allow(&dataplane, 20, CLASS_1, 8080);
        next_generation(&dataplane);
        net.pod_1.connect(SERVICE).0.expect("the pod's class is allowed");
        let flows = dataplane.tables().flows.read_all().expect("flows");
        let masqueraded = flows.iter().filter(|(key, _)| key.peer == address("10.1.0.254")).count();
        assert!(masqueraded > 0, "{flows:?}");
    });
}
