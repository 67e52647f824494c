use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use proptest::{option, prelude::*, sample::select};

use super::*;
use crate::objects::{
    AddressType, Endpoint, EndpointPort, EndpointSlice, Hints, IpBlock, Kind, LabelOperator, LabelRequirement,
    LabelSelector, LoadBalancerIngress, NamedPort, Namespace, NetworkPolicy, Node, Object, ObjectKey, Pod, PolicyPeer,
    PolicyPort, PolicyRule, PortRef, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
    annotations::{Fastpath, ServiceAnnotations},
};

fn text() -> impl Strategy<Value = Box<str>> {
    any::<String>().prop_map(Into::into)
}

fn key() -> impl Strategy<Value = ObjectKey> {
    (text(), text()).prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn list<S: Strategy>(item: S) -> impl Strategy<Value = Vec<S::Value>> {
    prop::collection::vec(item, 0..4)
}

fn labels() -> impl Strategy<Value = BTreeMap<Box<str>, Box<str>>> {
    prop::collection::btree_map(text(), text(), 0..3)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn annotations() -> impl Strategy<Value = ServiceAnnotations> {
    let fastpath = select(vec![Fastpath::Wanted, Fastpath::Refused, Fastpath::Unclear]);
    ([0; 3].map(|_| option::of(text())), any::<[bool; 4]>(), fastpath).prop_map(
        |([scheduler, sched_flags, dsr], [hairpin, hairpin_external_ips, local, skip_lb_ips], fastpath)| {
            ServiceAnnotations {
                scheduler,
                sched_flags,
                dsr,
                hairpin,
                hairpin_external_ips,
                local,
                skip_lb_ips,
                fastpath,
            }
        },
    )
}

fn service() -> impl Strategy<Value = Object> {
    let port = (text(), protocol(), any::<u16>(), any::<u16>())
        .prop_map(|(name, protocol, port, node_port)| ServicePort { name, protocol, port, node_port });
    let ingress = (text(), any::<bool>()).prop_map(|(ip, proxy_mode)| LoadBalancerIngress { ip, proxy_mode });
    let types =
        vec![ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer, ServiceType::ExternalName];
    let addresses = (list(any::<IpAddr>()), list(text()), list(text()), list(ingress));
    let options = (option::of(any::<u32>()), policy(), policy(), any::<u16>(), option::of(text()), any::<bool>());
    (key(), any::<i64>(), select(types), addresses, list(port), options, annotations()).prop_map(
        |(key, created_s, service_type, addresses, ports, options, annotations)| {
            let (cluster_ips, bad_cluster_ips, external_ips, lb_ingress) = addresses;
            let (affinity_timeout_s, internal, external, health_check_node_port, proxy_name, headless_label) = options;
            Object::Service(Service {
                key,
                created_s,
                service_type,
                cluster_ips,
                bad_cluster_ips,
                external_ips,
                lb_ingress,
                ports,
                affinity_timeout_s,
                internal_traffic_policy: internal,
                external_traffic_policy: external,
                health_check_node_port,
                proxy_name,
                headless_label,
                annotations,
            })
        },
    )
}

fn slice() -> impl Strategy<Value = Object> {
    let types = select(vec![AddressType::Ipv4, AddressType::Ipv6, AddressType::Fqdn]);
    let port = (text(), protocol(), option::of(any::<u16>())).prop_map(|(name, protocol, port)| EndpointPort {
        name,
        protocol,
        port,
    });
    let hints = (list(text()), list(text()))
        .prop_map(|(zones, nodes)| Box::new(Hints { zones: zones.into(), nodes: nodes.into() }));
    let endpoint = (any::<IpAddr>(), any::<[bool; 3]>(), option::of(text()), option::of(hints)).prop_map(
        |(address, [ready, serving, terminating], node, hints)| Endpoint {
            address,
            ready,
            serving,
            terminating,
            node: node.map(Into::into),
            hints,
        },
    );
    (key(), option::of(key()), types, any::<bool>(), list(port), list(endpoint), list(text())).prop_map(
        |(key, service, address_type, headless_label, ports, endpoints, bad_addresses)| {
            Object::EndpointSlice(EndpointSlice {
                key,
                service,
                address_type,
                headless_label,
                ports,
                endpoints,
                bad_addresses,
            })
        },
    )
}

fn cidr() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=32u8).prop_map(|(address, length)| IpNet::new(address, length).unwrap())
}

fn object() -> impl Strategy<Value = Object> {
    let port = (text(), protocol(), any::<u16>()).prop_map(|(name, protocol, port)| NamedPort {
        name: name.into(),
        protocol,
        port,
    });
    let ends = (any::<[bool; 3]>(), option::of(any::<u32>()), any::<i64>());
    let pod = (key(), labels(), option::of(text()), list(any::<IpAddr>()), list(any::<IpAddr>()), list(port), ends)
        .prop_map(|(key, labels, node, ips, host_ips, ports, (flags, grace_period_s, created_s))| {
            let [host_network, completed, terminating] = flags;
            Object::Pod(Pod {
                key,
                uid: None,
                created_s,
                labels: labels.into(),
                node: node.map(Into::into),
                host_ips: host_ips.into(),
                ips,
                host_network,
                completed,
                terminating,
                grace_period_s,
                ports: ports.into(),
            })
        });
    let node = (key(), list(any::<IpAddr>()), list(any::<IpAddr>()), list(cidr()), option::of(text()), labels())
        .prop_map(|(key, internal_ips, external_ips, pod_cidrs, zone, annotations)| {
            Object::Node(Node { key, internal_ips, external_ips, pod_cidrs, zone, annotations })
        });
    prop_oneof![
        service(),
        slice(),
        pod,
        node,
        (key(), labels(), option::of(text())).prop_map(|(key, labels, isolation)| {
            Object::Namespace(Namespace { key, labels: labels.into(), isolation })
        }),
        network_policy(),
    ]
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let operator = prop_oneof![
        Just(LabelOperator::In),
        Just(LabelOperator::NotIn),
        Just(LabelOperator::Exists),
        Just(LabelOperator::DoesNotExist),
        text().prop_map(LabelOperator::Other),
    ];
    let requirement = (text(), operator, list(text())).prop_map(|(key, operator, values)| LabelRequirement {
        key,
        operator,
        values: values.into(),
    });
    (labels(), list(requirement)).prop_map(|(labels, expressions)| LabelSelector {
        match_labels: labels.into(),
        match_expressions: expressions.into(),
    })
}

fn network_policy() -> impl Strategy<Value = Object> {
    let block = (text(), list(text())).prop_map(|(cidr, except)| IpBlock { cidr, except: except.into() });
    let peer = (option::of(selector()), option::of(selector()), option::of(block))
        .prop_map(|(pods, namespaces, block)| PolicyPeer { pods, namespaces, block });
    let number = prop_oneof![any::<i64>().prop_map(PortRef::Number), text().prop_map(PortRef::Name)];
    let port = (option::of(text()), option::of(number), option::of(any::<i64>()))
        .prop_map(|(protocol, port, end_port)| PolicyPort { protocol, port, end_port });
    let rule = (list(peer), list(port), option::of(text()))
        .prop_map(|(peers, ports, unreadable)| PolicyRule { peers: peers.into(), ports: ports.into(), unreadable })
        .boxed();
    (key(), selector(), list(text()), list(rule.clone()), list(rule)).prop_map(
        |(key, pod_selector, policy_types, ingress, egress)| {
            Object::NetworkPolicy(NetworkPolicy {
                key,
                pod_selector,
                policy_types: policy_types.into(),
                ingress: ingress.into(),
                egress: egress.into(),
            })
        },
    )
}

fn event() -> impl Strategy<Value = ObjectEvent> {
    let kind = || select(Kind::ALL.to_vec());
    prop_oneof![
        kind().prop_map(ObjectEvent::RelistStarted),
        kind().prop_map(ObjectEvent::RelistDone),
        (kind(), key()).prop_map(|(kind, key)| ObjectEvent::Deleted(kind, key)),
        (kind(), any::<String>()).prop_map(|(kind, reason)| ObjectEvent::Unavailable { kind, reason }),
        (any::<String>(), any::<String>()).prop_map(|(source, reason)| ObjectEvent::Rejected { source, reason }),
        any::<String>().prop_map(|source| ObjectEvent::Accepted { source }),
        (kind(), key()).prop_map(|(kind, key)| ObjectEvent::Kept(kind, key)),
        object().prop_map(ObjectEvent::Applied),
    ]
}

proptest! {
    #[test]
    fn a_line_is_read_as_it_was_written(at_ms: u64, event in event()) {
        let line = to_line(at_ms, &event).unwrap();
        prop_assert_eq!(line.matches('\n').count(), 1, "one event, one line");
        let read: Line = serde_json::from_str(&line).unwrap();
        prop_assert_eq!((read.at_ms, read.event), (at_ms, event));
    }
}

fn accepted(source: &str) -> ObjectEvent {
    ObjectEvent::Accepted { source: source.into() }
}

#[test]
fn what_is_recorded_is_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let mut recorder = Recorder::create(&path).unwrap();
    let events = [ObjectEvent::RelistStarted(Kind::Pod), accepted("a\nb"), ObjectEvent::RelistDone(Kind::Pod)];
    for event in &events {
        recorder.record(event);
    }
    // Brought to disk when idle, not only at the end.
    let began = Instant::now();
    while std::fs::read_to_string(&path).unwrap().lines().count() < events.len() {
        assert!(began.elapsed() < Duration::from_secs(20), "not flushed");
        std::thread::sleep(Duration::from_millis(10));
    }
    recorder.record(&accepted("last"));
    drop(recorder);
    let replayed: Vec<(u64, ObjectEvent)> = replay(&path).unwrap().map(Result::unwrap).collect();
    assert!(replayed.is_sorted_by_key(|(at_ms, _)| *at_ms));
    let replayed: Vec<ObjectEvent> = replayed.into_iter().map(|(_, event)| event).collect();
    assert_eq!(replayed[..3], events);
    assert_eq!(replayed[3], accepted("last"));
}

#[test]
fn a_recording_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    std::fs::write(&path, "older").unwrap();
    drop(Recorder::create(&path).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn bad_lines_are_named_and_do_not_end_the_replay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let good = to_line(5, &accepted("x")).unwrap();
    let half = &good[..good.len() / 2];
    std::fs::write(&path, [good.as_bytes(), b"\n{\"at_ms\":1}\n\xff\xfe\n", good.as_bytes(), half.as_bytes()].concat())
        .unwrap();
    let lines: Vec<Result<u64, String>> =
        replay(&path).unwrap().map(|line| line.map(|(at_ms, _)| at_ms).map_err(|error| error.to_string())).collect();
    let bad: Vec<(usize, &String)> =
        lines.iter().enumerate().filter_map(|(i, line)| line.as_ref().err().map(|e| (i, e))).collect();
    assert_eq!(lines.len(), 5);
    for ((at, error), (want, line)) in bad.iter().zip([(1, 3), (2, 4), (4, 6)]) {
        assert_eq!(*at, want);
        assert!(error.contains(&format!("{}, line {line}: ", path.display())), "{error}");
    }
    assert!(replay(&dir.path().join("none")).is_err());
}

/// /dev/full says ENOSPC to every write.
#[test]
fn a_full_disk_ends_the_recording_only() {
    let mut recorder = Recorder::create(Path::new("/dev/full")).unwrap();
    let began = Instant::now();
    while recorder.is_recording() {
        assert!(began.elapsed() < Duration::from_secs(20), "still recording");
        recorder.record(&accepted("x"));
        std::thread::sleep(Duration::from_millis(10));
    }
    recorder.record(&accepted("ignored"));
}
