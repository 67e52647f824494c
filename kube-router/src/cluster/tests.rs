use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::objects::{
    AddressType, Endpoint,
    parse::{Claim, RawObject},
};

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
            hints: None,
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

/// What is sent to a pod and what is sent to a node go different ways.
#[test]
fn endpoints_with_their_node_s_address_are_told_from_pods() {
    let node = |ip: [u8; 4]| {
        let yaml = format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n1}}, status: {{addresses: [{{type: InternalIP, address: {}}}]}}}}",
            IpAddr::from(ip)
        );
        let object: RawObject = serde_saphyr::from_str(&yaml).expect("yaml");
        let Claim::Ours(kind) = object.claim() else { panic!() };
        ObjectEvent::Applied(object.parse(kind).expect("node").object)
    };
    let hosts = |cluster: &ClusterState, name: &str| cluster.host_endpoints(&ObjectKey::new("web", name)).len();
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    cluster.apply(applied(slice("a-1", Some("a"), [10, 0, 0, 1])), &mut dirty);
    cluster.apply(applied(slice("b-1", Some("b"), [192, 0, 2, 1])), &mut dirty);
    cluster.apply(ObjectEvent::RelistStarted(Kind::Node), &mut dirty);
    assert_eq!((hosts(&cluster, "a"), hosts(&cluster, "b")), (1, 1), "nobody knows yet");
    cluster.apply(node([192, 0, 2, 1]), &mut dirty);
    cluster.apply(ObjectEvent::RelistDone(Kind::Node), &mut dirty);
    assert_eq!((hosts(&cluster, "a"), hosts(&cluster, "b")), (0, 1));
    // The node gets another address: who is concerned is looked at again.
    for (ip, services, count) in
        [([192, 0, 2, 9], &["b"][..], 0), ([192, 0, 2, 8], &[], 0), ([192, 0, 2, 1], &["b"], 1)]
    {
        dirty = Dirty::default();
        cluster.apply(node(ip), &mut dirty);
        assert_eq!((dirty.services.clone(), hosts(&cluster, "b")), (keys(services), count), "{ip:?}");
    }
}

fn nobody(name: &str) -> Pod {
    Pod {
        key: ObjectKey::new("web", name),
        uid: None,
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
fn what_a_plugin_announced_holds_until_it_is_taken_back_and_for_one_uid() {
    let mut cluster = ClusterState::new();
    let key = ObjectKey::new("web", "p");
    let at = |last: u8| vec![IpAddr::from([10, 0, 0, last])];
    let by = |uid: &str, last: u8| Announced { uid: Some(uid.into()), addresses: at(last) };
    let of = |uid: &str, ips: Vec<IpAddr>| pod(Pod { uid: Some(uid.into()), ips, ..nobody("p") });
    let ips = |cluster: &ClusterState| cluster.pod(&key).map(|pod| pod.ips.clone()).unwrap_or_default();
    let mut dirty = Dirty::default();
    cluster.announce(&key, by("u-1", 1), &mut dirty);
    cluster.apply(of("u-1", Vec::new()), &mut dirty);
    assert_eq!(ips(&cluster), at(1));

    // The sandbox failed and the next one is made before the first is taken away.
    cluster.announce(&key, by("u-1", 2), &mut dirty);
    assert_eq!(ips(&cluster), at(2));
    cluster.retract(&key, &at(1), &mut dirty);
    assert_eq!(ips(&cluster), at(2));
    dirty = Dirty::default();
    cluster.retract(&key, &at(2), &mut dirty);
    assert_eq!((ips(&cluster), &dirty.pod_ips), (Vec::new(), &at(2).into_iter().collect()));

    // What the API server says stands if it may be about another pod, and never beyond the attachment.
    cluster.apply(of("u-1", at(3)), &mut dirty);
    for (announced, want) in [(by("u-2", 4), 3), (Announced { uid: None, addresses: at(4) }, 3), (by("u-1", 4), 4)] {
        cluster.announce(&key, announced, &mut dirty);
        assert_eq!(ips(&cluster), at(want));
    }
    cluster.apply(of("u-1", at(3)), &mut dirty);
    assert_eq!(ips(&cluster), at(4), "older news");
    cluster.retract(&key, &at(4), &mut dirty);
    assert_eq!(ips(&cluster), Vec::<IpAddr>::new());

    // A pod of the same name is another one.
    cluster.announce(&key, by("u-2", 5), &mut dirty);
    assert_eq!(ips(&cluster), Vec::<IpAddr>::new());
    cluster.apply(of("u-2", Vec::new()), &mut dirty);
    assert_eq!(ips(&cluster), at(5));
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
fn what_a_full_list_holds_but_cannot_be_understood_stays_as_it_was() {
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    cluster.apply(applied(slice("a-1", Some("a"), [10, 0, 0, 1])), &mut dirty);
    dirty = Dirty::default();
    cluster.apply(ObjectEvent::RelistStarted(Kind::EndpointSlice), &mut dirty);
    cluster.apply(ObjectEvent::Kept(Kind::EndpointSlice, ObjectKey::new("web", "a-1")), &mut dirty);
    cluster.apply(ObjectEvent::RelistDone(Kind::EndpointSlice), &mut dirty);
    assert_eq!(cluster.slices_of(&ObjectKey::new("web", "a")).count(), 1);
    assert!(dirty.services.is_empty());
}

#[test]
fn an_object_that_was_never_understood_is_obscure_until_it_is_or_goes() {
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    let kind = Kind::EndpointSlice;
    cluster.apply(applied(slice("known", Some("a"), [10, 0, 0, 1])), &mut dirty);
    let names = ["known", "odd", "gone"].map(|name| ObjectKey::new("web", name));
    let list = |cluster: &mut ClusterState, names: &[ObjectKey]| {
        let mut dirty = Dirty::default();
        cluster.apply(ObjectEvent::RelistStarted(kind), &mut dirty);
        for key in names {
            cluster.apply(ObjectEvent::Kept(kind, key.clone()), &mut dirty);
        }
        cluster.apply(ObjectEvent::RelistDone(kind), &mut dirty);
        (cluster.obscure().iter().map(|(_, key)| key.name.to_string()).collect::<Vec<_>>(), dirty.view)
    };
    assert_eq!(list(&mut cluster, &names), (vec!["gone".to_owned(), "odd".to_owned()], true));
    assert_eq!(list(&mut cluster, &names[..2]), (vec!["odd".to_owned()], true));
    assert_eq!(list(&mut cluster, &[ObjectKey::unnamed(), names[1].clone()]).0, ["", "odd"]);
    assert_eq!(list(&mut cluster, &names[1..2]).0, ["odd"]);
    cluster.apply(applied(slice("odd", Some("a"), [10, 0, 0, 2])), &mut dirty);
    assert!(cluster.obscure().is_empty());
}

#[test]
fn a_pod_address_has_one_owner_and_completed_or_host_network_pods_have_none() {
    let pod = |name: &str, completed: bool, host_network: bool| {
        let created_s = if name == "new" { 2 } else { 1 };
        pod(Pod { created_s, ips: vec![[10, 0, 0, 1].into()], host_network, completed, ..nobody(name) })
    };
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    let ip = IpAddr::from([10, 0, 0, 1]);
    let owner = |cluster: &ClusterState| cluster.pod_by_ip(ip).map(|pod| pod.key.name.to_string());
    // Whichever comes first; the other has it when that one goes.
    for (first, second) in [("a", "b"), ("b", "a")] {
        cluster.apply(pod(first, false, false), &mut dirty);
        cluster.apply(pod(second, false, false), &mut dirty);
        assert_eq!(owner(&cluster), Some("a".to_owned()));
        cluster.apply(ObjectEvent::Deleted(Kind::Pod, ObjectKey::new("web", "a")), &mut dirty);
        assert_eq!(owner(&cluster), Some("b".to_owned()));
    }
    cluster.apply(pod("b", true, false), &mut dirty);
    assert!(cluster.pod_by_ip(ip).is_none());
    cluster.apply(pod("host", false, true), &mut dirty);
    assert!(cluster.pod_by_ip(ip).is_none());
}

#[test]
fn names_that_nobody_mentions_any_more_are_forgotten() {
    let mut cluster = ClusterState::new();
    let mut dirty = Dirty::default();
    for number in 0..10_000 {
        let mut slice = slice("s", Some("a"), [10, 0, 0, 1]);
        slice.key = ObjectKey::new(format!("job-{number}"), "s");
        let key = slice.key.clone();
        cluster.apply(applied(slice), &mut dirty);
        cluster.apply(ObjectEvent::Deleted(Kind::EndpointSlice, key), &mut dirty);
        dirty = Dirty::default();
    }
    assert!(cluster.names.len() < 5_000, "{}", cluster.names.len());
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
