//! ClusterNetworkPolicies of the shop: what they name is seen, and what they decide is told.

use super::shop::{cluster, shop};
use crate::{
    cluster::{ClusterState, Dirty},
    explain::{
        Here, Question, answer_explain,
        matrix::{Matrix, matrix, text::text as matrix_text},
        text,
    },
    objects::ObjectEvent,
};

/// Nobody of the shop may leave by SSH or towards a network of others; who has no policy is shut.
const POLICIES: &str = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: fence}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {team: shop}}}
  egress:
  - action: Deny
    to: [{networks: [198.18.0.0/15]}]
  - action: Deny
    to: [{namespaces: {}}]
    protocols: [{tcp: {destinationPort: {number: 22}}}, {udp: {destinationPort: {range: {start: 5000, end: 5009}}}}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: closed}
spec:
  tier: Baseline
  priority: 1
  subject: {pods: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}, podSelector: {}}}
  ingress:
  - {name: by default, action: Deny, from: [{namespaces: {}}]}
";

fn fenced() -> ClusterState {
    let (mut cluster, mut dirty) = (shop(), Dirty::default());
    let policies = super::shop::objects(POLICIES);
    policies.into_iter().for_each(|policy| cluster.apply(ObjectEvent::Applied(policy), &mut dirty));
    cluster
}

fn ask(from: &str, to: &str) -> String {
    let question = Question { from: from.into(), to: to.into(), port: None };
    text::answer(&answer_explain(&fenced(), Here::default(), &question).unwrap())
}

/// (label, by whom) of a pair's ports.
fn ports(matrix: &Matrix, from: &str, to: &str) -> Vec<(String, bool, String)> {
    let place = |name: &str| matrix.parties.iter().position(|party| party.name == name);
    let (Some(from), Some(to)) = (place(from), place(to)) else { panic!("{:?}", matrix.parties) };
    let outcome = &matrix.outcomes[matrix.cells[from][to].unwrap()];
    let ports = outcome.ports.iter();
    ports.map(|port| (port.port.clone(), port.allowed, matrix.reasons[port.egress].clone())).collect()
}

#[test]
fn ports_that_they_name_are_judged_where_they_apply() {
    let expected = "\
shop/cart (10.244.1.12) -> default/visitor (10.244.1.51)
  tcp/22, udp/5000-5009, icmp: denied
    egress of shop/cart: denied by ClusterNetworkPolicy fence egress[1]: Deny pods * in namespaces *, tcp/22 udp/5000-5009
    ingress of default/visitor: denied by ClusterNetworkPolicy closed ingress[0]: Deny \"by default\" pods * in namespaces *
  tcp/5432, other tcp, other udp, other sctp: denied
    egress of shop/cart: open, no policy isolates it
    ingress of default/visitor: denied by ClusterNetworkPolicy closed ingress[0]: Deny \"by default\" pods * in namespaces *
verdict: denied, every way
";
    assert_eq!(ask("shop/cart", "default/visitor"), expected);
    // They are not about pods of these namespaces, so there is nothing to tell apart.
    let text = ask("watch/prometheus", "db/postgres-0");
    assert!(!text.contains("tcp/22") && !text.contains("5000"), "{text}");
}

#[test]
fn the_matrix_has_their_ports_and_networks() {
    let matrix = matrix(&fenced(), None).unwrap();
    let by_fence = |ports: Vec<(String, bool, String)>| -> Vec<String> {
        let denied = ports.into_iter().filter(|(_, allowed, by)| !allowed && by.contains("ClusterNetworkPolicy fence"));
        denied.map(|(port, _, _)| port).collect()
    };
    assert_eq!(by_fence(ports(&matrix, "shop/cart", "old/ledger")), ["tcp/22", "udp/5000-5009", "icmp"]);
    assert_eq!(by_fence(ports(&matrix, "watch/prometheus", "old/ledger")), Vec::<String>::new());
    let network = ports(&matrix, "shop/cart", "198.18.0.0/15");
    assert!(network.iter().all(|(_, allowed, by)| !allowed && by.contains("fence egress[0]")), "{network:?}");
    assert!(ports(&matrix, "shop/cart", "outside").iter().all(|(_, allowed, _)| *allowed));
    assert!(matrix_text(&matrix).contains("198.18.0.0/15"));
}

#[test]
fn without_pods_there_is_no_table_to_fill() {
    let matrix = matrix(&cluster(POLICIES.trim_start()), None).unwrap();
    assert!(matrix.cells.iter().flatten().all(Option::is_none));
    assert!(!matrix_text(&matrix).contains("letters"), "there are none");
}
