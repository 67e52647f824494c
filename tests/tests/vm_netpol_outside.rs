//! Clients outside of the cluster, policies with ipBlock, and node ports: a client is judged by its own address where the
//! node that it asks has the pod, also if that node masquerades it before the pod sees it. Through another node the pod's
//! node sees that node's address, and Kubernetes leaves open what then holds.

use std::net::{IpAddr, SocketAddr};

use kube_router_tests::{
    lab::load_modules,
    netpol::{
        Change::{Apply, Delete},
        Cluster,
        cluster::Patience,
        plan::{self, node_address, pod, socket},
    },
    objects::ServiceSpec,
    probe::{Answer, ProbeError, Question, Transport},
    process::eventually,
};
use serde_json::json;

/// Node port of x/a's service with externalTrafficPolicy Local.
const LOCAL: u16 = 30_500;

const FROM_100: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: outside}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: [{ipBlock: {cidr: 192.168.79.100/32}}, {ipBlock: {cidr: 'fd00:79::100/128'}}]
    ports: [{port: 80}]";

const FROM_ALL_BUT_100: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: outside}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from:
    - ipBlock: {cidr: 192.168.79.64/26, except: [192.168.79.100/32]}
    - ipBlock: {cidr: 'fd00:79::/64', except: ['fd00:79::100/128']}";

const FROM_PODS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: outside}
spec: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {}}]}]}";

/// Two clients on one machine: .100 and .101.
fn client(number: u8, ipv4: bool) -> IpAddr {
    let text = if ipv4 { format!("192.168.79.{number}") } else { format!("fd00:79::{number}") };
    text.parse().unwrap()
}

fn cluster(prefix: &str, flags: &[&str]) -> Cluster {
    load_modules(&["ip_vs", "ip_vs_rr", "dummy", "br_netfilter", "nf_conntrack"]).unwrap();
    let mut cluster = Cluster::new(prefix, Patience::EMULATED).unwrap();
    let more = ["address add 192.168.79.101/24 dev eth0", "address add fd00:79::101/64 dev eth0 nodad"];
    cluster.outside.ip(&more.map(str::to_owned)).unwrap();
    cluster.add_services().unwrap();
    let local = ServiceSpec::new("local", &["10.96.3.1", "fd00:10:96::3:1"])
        .kind("NodePort")
        .with("externalTrafficPolicy", json!("Local"))
        .port("TCP", 80, 80, LOCAL)
        .pods([&cluster.named("x/a").unwrap()]);
    cluster.manifests.put("local", &local.objects()).unwrap();
    let all = [&["--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112"], flags].concat();
    cluster.start(&all).unwrap();
    cluster
}

fn ask(cluster: &Cluster, number: u8, to: SocketAddr) -> Result<Answer, ProbeError> {
    let question = Question::new(Transport::Tcp, to, cluster.patience.answer).from(client(number, to.is_ipv4()));
    cluster.outside.run(|| question.ask())
}

/// Where x/a is asked for through its own node: at its address and at both node ports.
fn ways(ipv4: bool) -> [SocketAddr; 3] {
    let x = pod("x/a").unwrap();
    let node = node_address(plan::node_of(x), ipv4);
    [socket(x, 0, ipv4), SocketAddr::new(node, plan::node_port(x, 0)), SocketAddr::new(node, LOCAL)]
}

fn play(mut cluster: Cluster, masqueraded: bool) {
    // Policy, and which clients it lets in.
    let steps: [(Option<&str>, &[u8]); 4] =
        [(None, &[100, 101]), (Some(FROM_100), &[100]), (Some(FROM_ALL_BUT_100), &[101]), (Some(FROM_PODS), &[])];
    for (policy, allowed) in steps {
        if let Some(yaml) = policy {
            cluster.change(&[Apply(yaml)]).unwrap();
        }
        for (to, number) in [true, false].into_iter().flat_map(ways).flat_map(|to| [(to, 100), (to, 101)]) {
            let answer = ask(&cluster, number, to);
            let what = format!("{allowed:?} are allowed; .{number} asks {to}: {answer:?}");
            assert_eq!(answer.is_ok(), allowed.contains(&number), "{what}");
            let Ok(answer) = answer else { continue };
            assert_eq!(answer.name, "x-a", "{what}");
            let own = client(number, to.is_ipv4());
            let through_service = to.port() != 80;
            let seen = if masqueraded && through_service { node_address(1, to.is_ipv4()) } else { own };
            assert_eq!(answer.client, seen, "{what}");
        }
        // The other node has no endpoint of its own to offer.
        assert!(ask(&cluster, 100, SocketAddr::new(node_address(2, true), LOCAL)).is_err());
    }
    cluster.change(&[Delete("x", "outside")]).unwrap();
    for ipv4 in [true, false] {
        let other = SocketAddr::new(node_address(2, ipv4), plan::node_port(pod("x/a").unwrap(), 0));
        let open = || ways(ipv4).into_iter().chain([other]).all(|to| ask(&cluster, 101, to).is_ok());
        eventually("everything is open again", cluster.patience.change, open).unwrap();
    }
}

#[test]
#[ignore = "needs IPVS: cargo xtask test --tier 4"]
fn a_client_outside_is_judged_by_its_address() {
    play(cluster("netpolb", &[]), false);
}

/// To the pod it is the node that talks, which may always; to the policy it is the client.
#[test]
#[ignore = "needs IPVS: cargo xtask test --tier 4"]
fn a_client_outside_is_judged_by_its_address_although_the_node_masquerades_it() {
    play(cluster("netpolg", &["--masquerade-all"]), true);
}
