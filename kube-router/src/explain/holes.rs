//! Where the view of the cluster has holes, so that an answer may be wrong, and what policies say that cannot be honoured, so
//! that an answer may surprise. For people, one line each.

use crate::{
    cluster::ClusterState,
    compile::{
        Problem,
        policy::{normalize, tiers},
    },
    objects::Kind,
};

/// Kinds that verdicts depend on.
const KINDS: [Kind; 4] = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::ClusterNetworkPolicy];

/// Kinds that cannot be read, and inputs that cannot be understood.
pub fn holes(cluster: &ClusterState) -> Vec<String> {
    let unread = cluster.unavailable().iter().filter(|(kind, _)| KINDS.contains(kind));
    let unread =
        unread.map(|(kind, reason)| format!("objects of kind {kind} cannot be read, so this may be wrong: {reason}"));
    let rejected = cluster.rejected().iter();
    let rejected =
        rejected.map(|(source, reason)| format!("{source} is not understood, so this may be wrong: {reason}"));
    unread.chain(rejected).collect()
}

/// What is wrong with policies, and namespaces that stand for one, whose names (`NetworkPolicy a/b`) are `wanted`. It is said
/// as the compiler says it; verdicts are the model's all the same.
pub fn faults(cluster: &ClusterState, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let is_wanted = |kind: Kind, key: &dyn std::fmt::Display| wanted(&format!("{kind} {key}"));
    let policies = cluster.policies().filter(|policy| is_wanted(Kind::NetworkPolicy, &policy.key));
    let policies = policies.flat_map(|policy| normalize::policy(policy).1);
    let tiers = cluster.cluster_policies().filter(|policy| is_wanted(Kind::ClusterNetworkPolicy, &policy.key));
    let tiers = tiers.flat_map(|policy| tiers::policy(policy).1);
    let namespaces = cluster.namespaces().filter(|namespace| is_wanted(Kind::Namespace, &namespace.key));
    let namespaces = namespaces.flat_map(|namespace| normalize::isolation(namespace).1);
    policies.chain(tiers).chain(namespaces).map(|problem: Problem| problem.to_string()).collect()
}
