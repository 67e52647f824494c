use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::objects::{AddressType, Endpoint};

fn slice(name: &str, service: Option<&str>, ip: [u8; 4]) -> EndpointSlice {
    EndpointSlice {
        key: ObjectKey::new("web", name),
        service: service.map(|name| ObjectKey::new("web", name)),
        address_type: AddressType::Ipv4,
        headless_label: false,
        ports: Vec::new(),
        endpoints: vec![Endpoint {
            address: IpAddr::from(ip),
            ready: true,
            serving: true,
            terminating: false,
            node: Some("n1".into()),
        }],
        bad_addresses: Vec::new(),
    }
}

fn applied(slice: EndpointSlice) -> ObjectEvent {
    ObjectEvent::Applied(Object::EndpointSlice(slice))
}

fn keys(names: &[&str]) -> BTreeSet<ObjectKey> {
    names.iter().map(|name| ObjectKey::new("web", *name)).collect()
}

#[test]
fn a_slice_touches_its_service_and_an_unchanged_one_touches_nothing() {
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    cluster.apply(applied(slice("a-1", Some("a"), [10, 0, 0, 1])), &mut dirty);
    assert_eq!(std::mem::take(&mut dirty).services, keys(&["a"]));
    cluster.apply(applied(slice("a-1", Some("a"), [10, 0, 0, 1])), &mut dirty);
    assert!(dirty.is_empty());
}

#[test]
fn a_slice_that_changes_its_owner_touches_both_services() {
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    cluster.apply(applied(slice("s", Some("a"), [10, 0, 0, 1])), &mut dirty);
    dirty = Dirty::default();
    cluster.apply(applied(slice("s", Some("b"), [10, 0, 0, 1])), &mut dirty);
    assert_eq!(dirty.services, keys(&["a", "b"]));
    assert_eq!(cluster.slices_of(&ObjectKey::new("web", "a")).count(), 0);
}

#[test]
fn what_a_full_list_does_not_mention_is_gone_but_not_before_the_list_ends() {
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    cluster.apply(applied(slice("a-1", Some("a"), [10, 0, 0, 1])), &mut dirty);
    cluster.apply(applied(slice("b-1", Some("b"), [10, 0, 0, 2])), &mut dirty);
    cluster.apply(ObjectEvent::RelistStarted(Kind::EndpointSlice), &mut dirty);
    cluster.apply(applied(slice("a-1", Some("a"), [10, 0, 0, 1])), &mut dirty);
    assert_eq!(cluster.slices_of(&ObjectKey::new("web", "b")).count(), 1);
    dirty = Dirty::default();
    cluster.apply(ObjectEvent::RelistDone(Kind::EndpointSlice), &mut dirty);
    assert_eq!(cluster.slices_of(&ObjectKey::new("web", "b")).count(), 0);
    assert_eq!(dirty.services, keys(&["b"]));
    assert!(cluster.is_complete(Kind::EndpointSlice) && dirty.view);
}

fn nobody(name: &str) -> Pod {
    Pod {
        key: ObjectKey::new("web", name),
        created_s: 0,
        labels: Default::default(),
        node: None,
        host_ips: Default::default(),
        ips: Vec::new(),
        host_network: false,
        completed: false,
        terminating: false,
        grace_period_s: Some(5),
        ports: Default::default(),
    }
}

fn pod(pod: Pod) -> ObjectEvent {
    ObjectEvent::Applied(Object::Pod(pod))
}

/// Whoever is heard of last.
#[test]
fn a_disputed_address_is_the_newest_pod_s_that_is_not_going() {
    let ip = IpAddr::from([10, 0, 0, 1]);
    let claims = [("old", 1, false), ("newest", 9, true), ("new", 5, false), ("as-new", 5, false)]
        .map(|(name, created_s, terminating)| pod(Pod { created_s, terminating, ips: vec![ip], ..nobody(name) }));
    for first in 0..claims.len() {
        let mut cluster = ClusterState::new();
        let mut dirty = Dirty::default();
        for i in 0..claims.len() {
            cluster.apply(claims[(first + i) % claims.len()].clone(), &mut dirty);
        }
        let names: Vec<String> = cluster.claimants(ip).iter().map(|pod| pod.key.name.to_string()).collect();
        assert_eq!(names, ["as-new", "new", "old", "newest"]);
    }
}

#[test]
fn a_pod_names_itself_and_all_its_addresses_old_and_new() {
    let mut cluster = ClusterState::new();
    let at = |last: u8| pod(Pod { ips: vec![[10, 0, 0, last].into()], node: Some("n1".into()), ..nobody("p") });
    let mut dirty = Dirty::default();
    cluster.apply(at(1), &mut dirty);
    cluster.apply(at(1), &mut dirty);
    dirty = Dirty::default();
    cluster.apply(at(1), &mut dirty);
    assert!(dirty.is_empty(), "nothing new");
    cluster.apply(at(2), &mut dirty);
    assert_eq!(dirty.pods, keys(&["p"]));
    assert_eq!(dirty.pod_ips, BTreeSet::from([[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]));
    assert_eq!(
        (cluster.pods_on("n1").count(), cluster.pods_in("web").count(), cluster.pods_in("we").count()),
        (1, 1, 0)
    );
    cluster.apply(ObjectEvent::Deleted(Kind::Pod, ObjectKey::new("web", "p")), &mut dirty);
    assert_eq!(cluster.pods_on("n1").count(), 0);
}

#[test]
fn a_pod_address_goes_to_the_newest_pod_and_completed_or_host_network_pods_have_none() {
    let pod = |name: &str, completed: bool, host_network: bool| {
        let created_s = if name == "new" { 2 } else { 1 };
        pod(Pod { created_s, ips: vec![[10, 0, 0, 1].into()], host_network, completed, ..nobody(name) })
    };
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    let ip = IpAddr::from([10, 0, 0, 1]);
    cluster.apply(pod("old", false, false), &mut dirty);
    cluster.apply(pod("new", false, false), &mut dirty);
    cluster.apply(ObjectEvent::Deleted(Kind::Pod, ObjectKey::new("web", "old")), &mut dirty);
    assert_eq!(cluster.pod_by_ip(ip).map(|pod| pod.key.name.to_string()), Some("new".to_owned()));
    cluster.apply(pod("new", true, false), &mut dirty);
    assert!(cluster.pod_by_ip(ip).is_none());
    cluster.apply(pod("host", false, true), &mut dirty);
    assert!(cluster.pod_by_ip(ip).is_none());
}

proptest! {
    /// The order in which different objects arrive does not matter.
    #[test]
    fn order_of_events_across_objects_is_irrelevant(order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle()) {
        let events = [
            applied(slice("a-1", Some("a"), [10, 0, 0, 1])),
            applied(slice("a-2", Some("a"), [10, 0, 0, 2])),
            applied(slice("b-1", Some("b"), [10, 0, 0, 3])),
            applied(slice("c-1", None, [10, 0, 0, 4])),
            ObjectEvent::Unavailable { kind: Kind::Pod, reason: "forbidden".into() },
            ObjectEvent::Rejected { source: "x.yaml:3".into(), reason: "no".into() },
        ];
        let build = |order: &[usize]| {
            let mut cluster = ClusterState::new();
            let mut dirty = Dirty::default();
            order.iter().for_each(|i| cluster.apply(events[*i].clone(), &mut dirty));
            let slices = |name| cluster.slices_of(&ObjectKey::new("web", name)).cloned().collect::<Vec<_>>();
            (slices("a"), slices("b"), cluster.unavailable().clone(), cluster.rejected().clone(), dirty)
        };
        prop_assert_eq!(build(&order), build(&[0, 1, 2, 3, 4, 5]));
    }
}
