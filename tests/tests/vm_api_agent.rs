//! The agent against a real API server, as an installation has it: RBAC, the EndpointSlice controller, kubectl.
//!
//! The server runs beside the virtual machine (`Remote`), the agent on node n1 reaches it over a wire that can be cut.

mod common;

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use common::{
    ANSWER, PATIENCE,
    kube::{DEPLOY, KubeCluster},
};
use kube_router_tests::{
    api::{Component, Kubectl},
    oracle,
    probe::{Kept, Load, LoadSpec, Question, Transport},
};

/// The argument list of an old installation, word for word but for the kubeconfig's path.
const INSTALLED: [&str; 8] = [
    "--run-router=false",
    "--run-firewall=false",
    "--run-service-proxy=true",
    "--masquerade-all",
    "--ipvs-sync-period=5s",
    "--iptables-sync-period=10s",
    "--cluster-cidr=10.20.0.0/16",
    "--metrics-port=80",
];

const VIP: &str = "10.96.2.1:80";

/// Two pods on n2 and a service of them.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {nodeName: n2, containers: [{name: web, image: none}]}
---
apiVersion: v1
kind: Service
metadata: {name: my-service}
spec:
  type: NodePort
  clusterIP: 10.96.2.1
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30021}]
"#;

/// As much of the role as names `resource`.
fn without(resource: &str) -> String {
    let documents: Vec<&str> = DEPLOY.split("\n---\n").filter(|document| !document.contains("DaemonSet")).collect();
    let text = documents.join("\n---\n");
    let less = text.replace(&format!("resources: [{resource}]"), "resources: [nothing]");
    assert_ne!(text, less, "the role names {resource}");
    less
}

fn vip() -> SocketAddr {
    VIP.parse().unwrap()
}

/// Connections that a virtual server of n1 has taken since it was made.
fn connections(kube: &KubeCluster) -> u64 {
    let text = kube.cluster.node(1).ns.command("ipvsadm", &["-L", "-n", "--stats", "--exact", "-t", VIP]).unwrap();
    let line = text.lines().find(|line| line.starts_with("TCP")).unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

fn serves(kube: &KubeCluster) {
    let answer = kube.cluster.outside.run(|| Question::new(Transport::Tcp, vip(), ANSWER).ask());
    assert!(answer.is_ok(), "{answer:?}\n{}", kube.state());
}

#[test]
#[ignore = "needs IPVS and Kubernetes components: cargo xtask test --tier 5"]
fn an_installation_follows_kubectl() {
    let mut kube = KubeCluster::new("apilife");
    kube.spare_pod("web-3", 35);
    kube.remote.apply(DEPLOY).unwrap();
    kube.remote.apply(WEB).unwrap();
    kube.start_agent(&INSTALLED);
    kube.agent().wait_ready(PATIENCE * 2).unwrap();
    kube.until("create: two destinations", |kube| kube.count(VIP) == Some(2));
    assert_eq!(kube.count("192.168.77.1:30021"), Some(2));
    serves(&kube);
    let (status, metrics) = kube.agent().http(80, "/metrics").unwrap();
    assert!(status == 200 && metrics.contains("kube_router_"), "{status} {metrics}");

    kube.kubectl("scale deployment web --replicas=3");
    kube.until("scale up", |kube| kube.count(VIP) == Some(3));

    // Each way to choose a scheduler; a connection that is open stays, and the server is not made anew.
    thread::sleep(Duration::from_secs(3));
    let mut kept = kube.cluster.outside.run(|| Kept::open(Transport::Tcp, vip(), ANSWER)).unwrap();
    let pod = kept.ask().unwrap().name;
    // The kernel may sum its counters only every two seconds.
    kube.until("the connection counts", |kube| connections(kube) >= 2);
    let before = connections(&kube);
    let mut change = |kube: &mut KubeCluster, words: &[&str], scheduler: &str| {
        kube.remote.kubectl(words).unwrap();
        let what = format!("{words:?}");
        kube.until(&what, |kube| kube.server(VIP).is_some_and(|server| server.scheduler == scheduler));
        assert_eq!(kube.server("192.168.77.1:30021").unwrap().scheduler, scheduler);
        kept.check().unwrap();
    };
    for scheduler in ["lc", "rr", "sh", "dh"] {
        let annotation = format!("kube-router.io/service.scheduler={scheduler}");
        change(&mut kube, &["annotate", "--overwrite", "service", "my-service", &annotation], scheduler);
    }
    for scheduler in ["lc", "rr", "sh", "dh"] {
        let patch = format!(r#"{{"metadata":{{"annotations":{{"kube-router.io/service.scheduler":"{scheduler}"}}}}}}"#);
        change(&mut kube, &["patch", "svc", "my-service", "-p", &patch], scheduler);
    }
    change(&mut kube, &["annotate", "service", "my-service", "kube-router.io/service.scheduler-"], "rr");
    assert_eq!(kept.ask().unwrap().name, pod);
    thread::sleep(Duration::from_secs(3));
    assert!(connections(&kube) >= before, "the server was made anew");

    kube.kubectl("scale deployment web --replicas=1");
    kube.until("scale down", |kube| kube.count(VIP) == Some(1));
    serves(&kube);
    kube.kubectl("delete service my-service");
    kube.until("delete", |kube| kube.server(VIP).is_none() && kube.server("192.168.77.1:30021").is_none());
    let addresses = oracle::addresses(&kube.cluster.node(1).ns).unwrap();
    assert!(!addresses["kube-dummy-if"].contains(&"10.96.2.1/32".parse().unwrap()), "{addresses:?}");
    // Nothing was wrong on the way, but one flag is of no use any more.
    let log = kube.agent().log();
    let complaints: Vec<&String> = log.iter().filter(|line| line.contains("WARN")).collect();
    assert!(matches!(complaints[..], [one] if one.contains("--cluster-cidr is deprecated")), "{complaints:?}");
}

#[test]
#[ignore = "needs IPVS and Kubernetes components: cargo xtask test --tier 5"]
fn missing_rights_are_named_and_delete_nothing() {
    let mut kube = KubeCluster::new("apirbac");
    kube.remote.apply(DEPLOY).unwrap();
    kube.remote.apply(WEB).unwrap();
    kube.start_agent(&INSTALLED);
    kube.until("two destinations", |kube| kube.count(VIP) == Some(2));
    kube.agent().stop(PATIENCE).unwrap();
    let ns = kube.cluster.node(1).ns.clone();
    let before = (oracle::ipvs_rules(&ns).unwrap(), oracle::addresses(&ns).unwrap());

    // No rights at all.
    kube.revoke();
    kube.start_agent(&INSTALLED);
    let said =
        kube.agent().process().wait_for_line(PATIENCE, |line| line.contains("forbidden") && line.contains("services"));
    assert!(said.unwrap().contains("ClusterRole"));
    thread::sleep(Duration::from_secs(12));
    assert_eq!((oracle::ipvs_rules(&ns).unwrap(), oracle::addresses(&ns).unwrap()), before);
    let (_, metrics) = kube.agent().http(80, "/metrics").unwrap();
    assert!(metrics.contains("kube_router_problems{reason=\"WatchUnavailable\"} "), "{metrics}");
    serves(&kube);

    // All but one kind: what is programmed stays, and what does not need that kind follows.
    kube.remote.apply(&without("endpointslices")).unwrap();
    kube.kubectl("create service clusterip other --tcp=81:8080 --clusterip=10.96.2.2");
    kube.until("a new service", |kube| kube.count("10.96.2.2:81") == Some(0));
    assert_eq!(kube.count(VIP), Some(2));
    kube.kubectl("annotate service my-service kube-router.io/service.scheduler=lc");
    kube.until("a changed service", |kube| kube.server(VIP).is_some_and(|server| server.scheduler == "lc"));
    kube.kubectl("delete service my-service");
    thread::sleep(Duration::from_secs(8));
    assert_eq!(kube.count(VIP), Some(2), "an incomplete view deletes nothing");
    serves(&kube);

    // All of them, while it runs.
    kube.remote.apply(DEPLOY).unwrap();
    kube.until("the view is complete", |kube| kube.server(VIP).is_none());
    kube.agent().wait_ready(PATIENCE).unwrap();
    let (_, metrics) = kube.agent().http(80, "/metrics").unwrap();
    assert!(metrics.contains("kube_router_problems{reason=\"WatchUnavailable\"} 0"), "{metrics}");
}

#[test]
#[ignore = "needs IPVS and Kubernetes components: cargo xtask test --tier 5"]
fn services_outlive_an_outage_and_a_forgotten_history() {
    let mut kube = KubeCluster::new("apiout");
    kube.spare_pod("web-3", 35);
    kube.remote.apply(DEPLOY).unwrap();
    kube.remote.apply(WEB).unwrap();
    // Not on the service under load: while a server changes its scheduler, the kernel has none and refuses.
    kube.kubectl("create service clusterip steady --tcp=80:8080 --clusterip=10.96.2.5");
    kube.kubectl("create service clusterip doomed --tcp=81:8080 --clusterip=10.96.2.2");
    kube.start_agent(&[&INSTALLED[..], &["-v=2"]].concat());
    kube.until("two destinations", |kube| kube.count(VIP) == Some(2) && kube.count("10.96.2.2:81") == Some(0));
    let ns = kube.cluster.node(1).ns.clone();
    let before = oracle::ipvs_rules(&ns).unwrap();
    let question = Question::new(Transport::Tcp, vip(), ANSWER);
    let load = kube.cluster.outside.run(|| Load::start(LoadSpec::new(question, 2).pause(Duration::from_millis(50))));

    // A minute without a server.
    kube.remote.stop(Component::ApiServer).unwrap();
    thread::sleep(Duration::from_secs(60));
    assert_eq!(oracle::ipvs_rules(&ns).unwrap(), before);
    assert_eq!(kube.agent().health("/healthz").unwrap().0, 200, "no reason to restart the agent");

    // The server is back, for all but the agent; and the cluster moves on.
    kube.wire.cut();
    kube.remote.start(Component::ApiServer).unwrap();
    kube.remote.stop(Component::ControllerManager).unwrap();
    kube.remote.start(Component::ControllerManager).unwrap();
    kube.kubectl("scale deployment web --replicas=3");
    kube.kubectl("annotate service steady kube-router.io/service.scheduler=lc");
    kube.kubectl("delete service doomed");
    kube.kubectl("create service clusterip young --tcp=82:8080 --clusterip=10.96.2.3");
    let slices =
        "get endpointslices -l kubernetes.io/service-name=my-service -o jsonpath={.items[*].endpoints[*].addresses[*]}";
    kube.until("the slice has three", |kube| kube.kubectl(slices).split_whitespace().count() == 3);
    assert_eq!(oracle::ipvs_rules(&ns).unwrap(), before);
    kube.wire.join().unwrap();
    let converged = |kube: &KubeCluster| {
        kube.count(VIP) == Some(3)
            && kube.server("10.96.2.5:80").unwrap().scheduler == "lc"
            && kube.server("10.96.2.2:81").is_none()
            && kube.count("10.96.2.3:82") == Some(0)
    };
    kube.until("converged after the outage", converged);

    // Changes behind the agent's back, then a history that does not reach back to what it knows.
    kube.wire.cut();
    kube.kubectl("delete service young");
    kube.kubectl("create service clusterip younger --tcp=83:8080 --clusterip=10.96.2.4");
    kube.kubectl("annotate --overwrite service steady kube-router.io/service.scheduler=rr");
    kube.remote.expire().unwrap();
    kube.wire.join().unwrap();
    let converged = |kube: &KubeCluster| {
        kube.server("10.96.2.5:80").is_some_and(|server| server.scheduler == "rr")
            && kube.server("10.96.2.3:82").is_none()
            && kube.count("10.96.2.4:83") == Some(0)
    };
    kube.until("converged without a history", converged);
    assert_eq!(kube.count(VIP), Some(3));
    assert!(kube.agent().log().iter().any(|line| line.contains("Expired")), "{}", kube.state());

    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(report.answered > 100, "{report:?}");
}

/// Services `s0` to `s249`, every one with a slice of its own whose size depends on `round`.
fn many(round: usize) -> String {
    let mut text = String::new();
    for i in 0..250 {
        let scheduler = ["rr", "lc", "sh", "dh"][(i + round) % 4];
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, labels: {{many: yes-{}}}, annotations: \
             {{kube-router.io/service.scheduler: {scheduler}}}}}\nspec: {{clusterIP: 10.97.{}.{}, ports: [{{port: 80, \
             targetPort: 8080}}]}}\n",
            i % 3,
            i / 200,
            i % 200 + 1,
        );
        let endpoints: Vec<String> = (0..=(i + round) % 4)
            .map(|n| format!("{{addresses: [10.244.2.{}], conditions: {{ready: true}}}}", 20 + (i + n + round) % 100))
            .collect();
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{i}, labels: {{many: \
             yes-{}, kubernetes.io/service-name: s{i}}}}}\naddressType: IPv4\nports: [{{port: 8080, protocol: \
             TCP}}]\nendpoints: [{}]\n",
            i % 3,
            endpoints.join(", "),
        );
    }
    text
}

#[test]
#[ignore = "needs IPVS and Kubernetes components: cargo xtask test --tier 5"]
fn a_thousand_rapid_changes_end_in_the_right_state() {
    let mut kube = KubeCluster::new("apimany");
    kube.remote.apply(DEPLOY).unwrap();
    kube.remote.apply(WEB).unwrap();
    kube.start_agent(&INSTALLED);
    kube.until("two destinations", |kube| kube.count(VIP) == Some(2));
    // 500 creations, 500 changes, and a third of everything deleted and made again.
    let apply = |round| kube.remote.kubectl_with_input(&["apply", "-f", "-"], &many(round)).unwrap().lines().count();
    assert_eq!(apply(0), 500);
    assert_eq!(apply(1), 500);
    kube.kubectl("delete services,endpointslices -l many=yes-1 --wait=false");
    kube.kubectl("delete services,endpointslices -l many=yes-2 --wait=false");
    assert_eq!(apply(2), 500);
    kube.kubectl("delete services,endpointslices -l many=yes-0 --wait=false");

    let kubeconfig = kube.kubeconfig.clone();
    let ns = kube.cluster.node(1).ns.clone();
    let mut flags = vec!["plan", "--hostname-override=n1", &kubeconfig];
    flags.extend(INSTALLED);
    let planned = kube_router_tests::agent::run(&ns, &flags).unwrap();
    let planned: BTreeSet<String> = planned.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect();
    assert!(planned.len() > 300, "{planned:?}");
    let programmed = || -> BTreeSet<String> { oracle::ipvs_rules(&ns).unwrap().into_iter().collect() };
    kube.until("the kernel holds what is planned", |_| programmed() == planned);
    assert_eq!(kube.count(VIP), Some(2));
}
