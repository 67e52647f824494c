use std::net::IpAddr;

use ipnet::IpNet;

use super::*;
use crate::objects::{
    AddressType, IpBlock, LabelOperator, LabelSelector, NetworkPolicy, PolicyPeer, PolicyRule, PortRef, ServiceType,
    TrafficPolicy,
};

fn raw(yaml: &str) -> RawObject {
    serde_saphyr::from_str(yaml).unwrap()
}

/// Parses as what it claims to be, through YAML and, where the text is also JSON, through JSON.
fn parse(yaml: &str) -> Result<Parsed, Rejection> {
    let object = raw(yaml);
    let Claim::Ours(kind) = object.claim() else { panic!("{:?}", object.claim()) };
    object.parse(kind)
}

fn object(yaml: &str) -> Object {
    let parsed = parse(yaml).unwrap();
    assert_eq!(parsed.ignored, [], "nothing is left out");
    parsed.object
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn service(spec: &str) -> Result<Parsed, Rejection> {
    parse(&format!("{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: ns}}, spec: {spec}}}"))
}

fn good_service(spec: &str) -> crate::objects::Service {
    match service(spec).unwrap().object {
        Object::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

const FULL_SERVICE: &str = r#"
spec:
  type: LoadBalancer
  clusterIP: 10.96.3.7
  clusterIPs: [10.96.3.7, "fd00:10:96::307"]
  externalIPs: [203.0.113.9, not-an-address]
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080, protocol: TCP, appProtocol: h2c}
  - {name: dns, port: 53, protocol: UDP}
  - {name: assoc, port: 3868, protocol: SCTP}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 31999
  selector: {app: web}
status:
  loadBalancer:
    ingress:
    - {ip: 198.51.100.1, ipMode: VIP}
    - {ip: 198.51.100.2, ipMode: Proxy}
    - {hostname: lb.example}
    - {ip: 198.51.100.3}
metadata:
  name: shop
  namespace: web
  creationTimestamp: "2024-02-29T12:00:01Z"
  labels: {service.kubernetes.io/service-proxy-name: other, service.kubernetes.io/headless: "", app: web}
  annotations:
    kube-router.io/service.scheduler: mh
    kube-router.io/service.local: "true"
    kube-router.io/service.hairpin: "false"
    kubectl.kubernetes.io/last-applied-configuration: "{}"
    oddity: [not, text]
  managedFields: [{manager: kubectl, fieldsV1: {"f:spec": {}}}]
kind: Service
apiVersion: v1
"#;

/// `kind` comes last here: the sections are read before anybody knows whose they are.
#[test]
fn a_service_with_everything() {
    let Object::Service(service) = object(FULL_SERVICE) else { panic!() };
    assert_eq!(service.key, ObjectKey::new("web", "shop"));
    assert_eq!(service.created_s, 1_709_208_001, "date -u -d 2024-02-29T12:00:01Z +%s");
    assert_eq!(service.service_type, ServiceType::LoadBalancer);
    assert_eq!(service.cluster_ips, ips(&["10.96.3.7", "fd00:10:96::307"]));
    assert_eq!(service.external_ips, ["203.0.113.9".into(), "not-an-address".into()]);
    let lb: Vec<(&str, bool)> = service.lb_ingress.iter().map(|entry| (&*entry.ip, entry.proxy_mode)).collect();
    assert_eq!(lb, [("198.51.100.1", false), ("198.51.100.2", true), ("198.51.100.3", false)]);
    let ports: Vec<_> = service.ports.iter().map(|p| (&*p.name, p.protocol, p.port, p.node_port)).collect();
    assert_eq!(
        ports,
        [("http", Protocol::Tcp, 80, 30080), ("dns", Protocol::Udp, 53, 0), ("assoc", Protocol::Sctp, 3868, 0)]
    );
    assert_eq!(service.affinity_timeout_s, Some(600));
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.health_check_node_port, 31999);
    assert_eq!(service.proxy_name.as_deref(), Some("other"));
    assert!(service.headless_label);
    assert_eq!(service.annotations.scheduler.as_deref(), Some("mh"));
    assert!(service.annotations.local && service.annotations.hairpin && !service.annotations.skip_lb_ips);
}

#[test]
fn a_service_with_nothing() {
    let Object::Service(service) = object("{apiVersion: v1, kind: Service, metadata: {name: s}}") else { panic!() };
    assert_eq!(service.key, ObjectKey::new("default", "s"));
    assert_eq!((service.created_s, service.service_type), (0, ServiceType::ClusterIp));
    assert!(service.cluster_ips.is_empty() && service.ports.is_empty() && service.affinity_timeout_s.is_none());
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Cluster);
}

#[test]
fn cluster_addresses() {
    for (spec, good, bad) in [
        ("{clusterIP: None}", &[][..], &[][..]),
        ("{clusterIP: none, clusterIPs: [NONE]}", &[], &[]),
        ("{clusterIP: ''}", &[], &[]),
        ("{clusterIP: null, clusterIPs: null}", &[], &[]),
        ("{clusterIP: 10.96.0.1}", &["10.96.0.1"], &[]),
        ("{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1']}", &["10.96.0.1", "fd00::1"], &[]),
        ("{clusterIPs: [10.96.0.1, 10.96.0.300]}", &["10.96.0.1"], &["10.96.0.300"]),
        ("{clusterIP: 010.96.0.1}", &[], &["010.96.0.1"]),
    ] {
        let service = good_service(spec);
        assert_eq!(service.cluster_ips, ips(good), "{spec}");
        assert_eq!(service.bad_cluster_ips.iter().map(|ip| &**ip).collect::<Vec<_>>(), bad, "{spec}");
    }
}

#[test]
fn affinity_and_ports_at_their_limits() {
    for (spec, timeout) in [
        ("{sessionAffinity: None}", None),
        ("{sessionAffinity: ClientIP}", Some(10_800)),
        ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {}}}", Some(10_800)),
        ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}}", Some(86_400)),
        ("{sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}}", None),
    ] {
        assert_eq!(good_service(spec).affinity_timeout_s, timeout, "{spec}");
    }
    let service = good_service("{ports: [{port: 0}, {}, {port: 65535, nodePort: 65535}, null]}");
    let ports: Vec<_> = service.ports.iter().map(|p| (p.port, p.node_port, p.protocol)).collect();
    assert_eq!(ports, [(0, 0, Protocol::Tcp), (0, 0, Protocol::Tcp), (65535, 65535, Protocol::Tcp)]);
}

/// Every odd value costs its object and is named with its place.
#[test]
fn odd_values_in_a_service_are_named() {
    for (spec, path, word) in [
        ("{ports: [{port: 80}, {port: 65536}]}", "spec.ports[1].port", "65536"),
        ("{ports: [{port: -1}]}", "spec.ports[0].port", "-1"),
        ("{ports: [{port: 99999999999999999999}]}", "spec.ports[0].port", "too large"),
        ("{ports: [{port: '80'}]}", "spec.ports[0].port", "found a string"),
        ("{ports: [{port: 80.5}]}", "spec.ports[0].port", "not whole"),
        ("{ports: [{port: [80]}]}", "spec.ports[0].port", "found a list"),
        ("{ports: [{port: 80, nodePort: 70000}]}", "spec.ports[0].nodePort", "70000"),
        ("{ports: [{port: 80, protocol: tcp}]}", "spec.ports[0].protocol", "\"tcp\""),
        ("{ports: [{port: 80, name: 80}]}", "spec.ports[0].name", "found a number"),
        ("{ports: {http: 80}}", "spec.ports", "found an object"),
        ("{ports: [http]}", "spec.ports[0]", "expected an object, found a string"),
        ("{ports: 80}", "spec.ports", "found a number"),
        ("{type: Clusterip}", "spec.type", "\"Clusterip\""),
        ("{type: true}", "spec.type", "found a boolean"),
        ("{clusterIP: 10}", "spec.clusterIP", "found a number"),
        ("{clusterIPs: 10.0.0.1}", "spec.clusterIPs", "found a string"),
        ("{externalIPs: [1.5]}", "spec.externalIPs[0]", "not whole"),
        ("{sessionAffinity: Sticky}", "spec.sessionAffinity", "\"Sticky\""),
        (
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "greater than 0",
        ),
        ("{internalTrafficPolicy: local}", "spec.internalTrafficPolicy", "\"local\""),
        ("{externalTrafficPolicy: {}}", "spec.externalTrafficPolicy", "found an object"),
        ("{healthCheckNodePort: 65536}", "spec.healthCheckNodePort", "65536"),
        ("all of it", "spec", "found a string"),
    ] {
        let rejection = service(spec).unwrap_err();
        assert_eq!(rejection.key, Some(ObjectKey::new("ns", "s")), "{spec}");
        assert_eq!(rejection.field.path, path, "{spec}");
        assert!(rejection.field.text.contains(word), "{spec}: {rejection}");
        assert!(rejection.to_string().starts_with("Service ns/s: spec"), "{rejection}");
    }
}

#[test]
fn odd_metadata_is_named() {
    let long = "x".repeat(NAME_MAX + 1);
    for (metadata, path, word) in [
        ("{}", "metadata.name", "missing"),
        ("{name: ''}", "metadata.name", "missing"),
        ("{generateName: s-}", "metadata.name", "missing"),
        ("{name: 7}", "metadata.name", "found a number"),
        (&format!("{{name: {long}}}"), "metadata.name", "254 characters"),
        (&format!("{{name: s, namespace: {long}}}"), "metadata.namespace", "at most 253"),
        ("web", "metadata", "found a string"),
        ("{name: s, creationTimestamp: yesterday}", "metadata.creationTimestamp", "\"yesterday\""),
        ("{name: s, labels: [a]}", "metadata.labels", "found a list"),
        (
            "{name: s, annotations: {kube-router.io/service.local: true}}",
            "metadata.annotations.kube-router.io/service.local",
            "expected a string, found a boolean",
        ),
    ] {
        let rejection = parse(&format!("{{apiVersion: v1, kind: Service, metadata: {metadata}}}")).unwrap_err();
        assert_eq!(rejection.field.path, path, "{metadata}");
        assert!(rejection.field.text.contains(word), "{rejection}");
    }
    let longest = "x".repeat(NAME_MAX);
    assert!(parse(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {longest}}}}}")).is_ok());
}

fn slice(rest: &str) -> Result<Parsed, Rejection> {
    parse(&format!("{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, {rest}}}"))
}

#[test]
fn a_slice_and_its_owner() {
    for (metadata, owner) in [
        (
            "{name: a, labels: {kubernetes.io/service-name: s}, generateName: x-, ownerReferences: [{name: o}]}",
            Some("s"),
        ),
        ("{name: a, labels: {kubernetes.io/service-name: ''}, ownerReferences: [{name: o, kind: Service}]}", Some("o")),
        ("{name: a, generateName: web-shop-, ownerReferences: [{name: o}, {name: p}]}", Some("web-shop")),
        ("{name: a, generateName: web-shop}", Some("web-shop")),
        ("{name: a, generateName: '-'}", None),
        ("{name: a}", None),
    ] {
        let Object::EndpointSlice(slice) = slice(&format!("metadata: {metadata}, addressType: IPv4")).unwrap().object
        else {
            panic!()
        };
        assert_eq!(slice.service, owner.map(|name| ObjectKey::new("default", name)), "{metadata}");
    }
}

#[test]
fn endpoints_of_a_slice() {
    let parsed = slice(
        "metadata: {name: a, namespace: web, labels: {service.kubernetes.io/headless: ''}}, addressType: IPv4, \
         ports: [{name: http, port: 8080, protocol: TCP}, {port: null}, {name: zero, port: 0, protocol: UDP}], \
         endpoints: [{addresses: [10.0.0.1, 10.0.0.2], nodeName: n1, conditions: {ready: true, serving: true}}, \
         {addresses: [10.0.0.3], conditions: {serving: true, terminating: true}}, {addresses: [10.0.0.4]}, \
         {addresses: ['fd00::1']}, {addresses: [web]}, {addresses: []}, {}]",
    );
    let Object::EndpointSlice(slice) = parsed.unwrap().object else { panic!() };
    assert!(slice.headless_label);
    assert_eq!(slice.address_type, AddressType::Ipv4);
    let ports: Vec<_> = slice.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, Some(8080)), ("", Protocol::Tcp, None), ("zero", Protocol::Udp, None)]);
    let endpoints: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.address.to_string(), e.ready, e.serving, e.terminating, e.node.as_deref()))
        .collect();
    assert_eq!(
        endpoints,
        [
            ("10.0.0.1".into(), true, true, false, Some("n1")),
            ("10.0.0.3".into(), false, true, true, None),
            ("10.0.0.4".into(), false, false, false, None),
        ]
    );
    assert_eq!(slice.bad_addresses, ["fd00::1".into(), "web".into()]);
}

#[test]
fn hints_say_for_whom_an_endpoint_is_meant() {
    let parsed = slice(
        "metadata: {name: a}, addressType: IPv4, endpoints: [\
         {addresses: [10.0.0.1], hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: n1}]}}, \
         {addresses: [10.0.0.2], hints: {}}, {addresses: [10.0.0.3], hints: {forZones: []}}, {addresses: [10.0.0.4]}]",
    );
    let Object::EndpointSlice(slice) = parsed.unwrap().object else { panic!() };
    let names = |names: &[Box<str>]| names.join(" ");
    let hints = slice.endpoints.iter().map(|e| e.hints.as_ref().map(|of| (names(&of.zones), names(&of.nodes))));
    assert_eq!(hints.collect::<Vec<_>>(), [Some(("a b".into(), "n1".into())), None, None, None]);
}

#[test]
fn a_slice_of_host_names_has_no_endpoints_and_nothing_to_complain_about() {
    let parsed = slice("metadata: {name: a}, addressType: FQDN, endpoints: [{addresses: [web.example]}]").unwrap();
    let Object::EndpointSlice(slice) = parsed.object else { panic!() };
    assert_eq!((slice.endpoints.len(), slice.bad_addresses.len()), (0, 0));
}

#[test]
fn odd_values_in_a_slice_are_named() {
    for (rest, path) in [
        ("metadata: {name: a}", "addressType"),
        ("metadata: {name: a}, addressType: ipv4", "addressType"),
        ("metadata: {name: a}, addressType: IPv4, ports: [{port: 65536}]", "ports[0].port"),
        ("metadata: {name: a}, addressType: IPv4, ports: [{protocol: ICMP}]", "ports[0].protocol"),
        ("metadata: {name: a}, addressType: IPv4, endpoints: [{addresses: 10.0.0.1}]", "endpoints[0].addresses"),
        (
            "metadata: {name: a}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1], conditions: {ready: 1}}]",
            "endpoints[0].conditions.ready",
        ),
        ("metadata: {name: a, ownerReferences: [{name: 1}]}, addressType: IPv4", "metadata.ownerReferences[0].name"),
    ] {
        assert_eq!(slice(rest).unwrap_err().field.path, path, "{rest}");
    }
}

fn pod(rest: &str) -> crate::objects::Pod {
    match object(&format!("{{apiVersion: v1, kind: Pod, {rest}}}")) {
        Object::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pods() {
    let full = pod("metadata: {name: p, namespace: web, labels: {app: x}}, spec: {nodeName: n1, hostNetwork: true, \
         terminationGracePeriodSeconds: 45, containers: [{name: c, ports: [{containerPort: 80}]}]}, \
         status: {phase: Running, podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.9}, {ip: 'fd00::9'}]}");
    assert_eq!(full.ips, ips(&["10.0.0.9", "fd00::9"]));
    assert_eq!(full.labels.get("app"), Some("x"));
    assert_eq!((full.node.as_deref(), full.host_network, full.completed), (Some("n1"), true, false));
    assert_eq!(full.grace_period_s, Some(45));

    assert_eq!(pod("metadata: {name: p}, status: {podIP: 10.0.0.9, phase: Failed}").ips, ips(&["10.0.0.9"]));
    assert!(pod("metadata: {name: p}, status: {podIP: '', phase: Succeeded}").completed);
    for (metadata, spec_grace, want) in [
        ("deletionTimestamp: '2024-01-01T00:00:00Z', deletionGracePeriodSeconds: 5", 30, 5),
        ("deletionGracePeriodSeconds: 5", 30, 30),
        ("deletionTimestamp: '2024-01-01T00:00:00Z'", 30, 30),
        ("deletionTimestamp: null", -1, 1),
        ("deletionTimestamp: ''", 0, 0),
    ] {
        let pod =
            pod(&format!("metadata: {{name: p, {metadata}}}, spec: {{terminationGracePeriodSeconds: {spec_grace}}}"));
        assert_eq!(pod.grace_period_s, Some(want), "{metadata}");
    }
}

#[test]
fn nodes_with_and_without_a_status() {
    let Object::Node(node) = object(
        "{apiVersion: v1, kind: Node, metadata: {name: n1, namespace: ignored, annotations: \
         {kube-router.io/pod-cidr: 10.1.0.0/24, kube-router.io/peer.passwords: c2VjcmV0, other/key: x}}, \
         spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}, status: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, \
         address: 192.0.2.1}, {type: ExternalIP, address: 203.0.113.1}, {type: InternalIP, address: 'fd00::1'}]}}",
    ) else {
        panic!()
    };
    assert_eq!(node.key, ObjectKey::cluster("n1"));
    assert_eq!(node.internal_ips, ips(&["192.0.2.1", "fd00::1"]));
    assert_eq!(node.external_ips, ips(&["203.0.113.1"]));
    assert_eq!(node.pod_cidrs, [cidr("10.244.1.0/24"), cidr("fd00:10:244:1::/64")]);
    // BGP passwords least of all: a recording would hold them.
    assert_eq!(node.annotations.keys().map(|key| &**key).collect::<Vec<_>>(), ["kube-router.io/pod-cidr"]);

    let Object::Node(bare) = object("{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDR: 10.2.0.0/24}}")
    else {
        panic!()
    };
    assert_eq!(bare.pod_cidrs, [cidr("10.2.0.0/24")]);
    assert!(bare.internal_ips.is_empty());
}

fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// One odd address must not cost us the node that we run on.
#[test]
fn odd_entries_of_a_status_are_left_out_and_named() {
    let parsed = parse(
        "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24, 10.244.1.0]}, \
         status: {addresses: [{type: InternalIP, address: n1.example}, {type: InternalIP, address: 192.0.2.1}]}}",
    )
    .unwrap();
    let Object::Node(node) = parsed.object else { panic!() };
    assert_eq!((node.internal_ips.len(), node.pod_cidrs.len()), (1, 1));
    let paths: Vec<&str> = parsed.ignored.iter().map(|field| field.path.as_str()).collect();
    assert_eq!(paths, ["status.addresses[0].address", "spec.podCIDRs[1]"]);
}

#[test]
fn namespaces() {
    let Object::Namespace(namespace) =
        object("{apiVersion: v1, kind: Namespace, metadata: {name: web, labels: {team: a, empty: ''}}}")
    else {
        panic!()
    };
    assert_eq!((namespace.key, namespace.labels.len()), (ObjectKey::cluster("web"), 2));
    assert_eq!(namespace.isolation, None);
    let Object::Namespace(old) = object(
        r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "web", "annotations":
            {"net.beta.kubernetes.io/network-policy": "{\"ingress\":{\"isolation\":\"DefaultDeny\"}}"}}}"#,
    ) else {
        panic!()
    };
    assert_eq!(old.isolation.as_deref(), Some(r#"{"ingress":{"isolation":"DefaultDeny"}}"#));
}

fn policy(spec: &str) -> NetworkPolicy {
    let text =
        format!("{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, spec: {spec}}}");
    match object(&text) {
        Object::NetworkPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_with_everything() {
    let policy = policy(
        "{podSelector: {matchLabels: {app: db}, matchExpressions: [{key: tier, operator: In, values: [a, b]}, \
         {key: x, operator: Exists}, {key: z, operator: Like}]}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: \
         {}}, {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: \
         10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 80}, {protocol: UDP, port: dns}, {protocol: SCTP}, \
         {protocol: TCP, port: 1, endPort: 9}]}, {}], egress: [{to: []}]}",
    );
    assert_eq!(policy.key, ObjectKey::new("default", "p"));
    assert_eq!(policy.pod_selector.match_labels.get("app"), Some("db"));
    let operators: Vec<&LabelOperator> = policy.pod_selector.match_expressions.iter().map(|e| &e.operator).collect();
    assert_eq!(operators, [&LabelOperator::In, &LabelOperator::Exists, &LabelOperator::Other("Like".into())]);
    assert_eq!(&*policy.pod_selector.match_expressions[0].values, ["a".into(), "b".into()]);
    assert_eq!(&*policy.policy_types, ["Ingress".into(), "Egress".into()]);
    let [full, open] = &*policy.ingress else { panic!("{:?}", policy.ingress) };
    assert_eq!(*open, PolicyRule::default());
    assert_eq!(full.peers[0], PolicyPeer { pods: Some(LabelSelector::default()), ..PolicyPeer::default() });
    assert_eq!(full.peers[1].pods.as_ref().unwrap().match_labels.get("app"), Some("web"));
    assert_eq!(full.peers[1].namespaces.as_ref().unwrap().match_labels.get("team"), Some("a"));
    let block = IpBlock { cidr: "10.0.0.0/8".into(), except: ["10.1.0.0/16".into()].into() };
    assert_eq!(full.peers[2].block, Some(block));
    let ports: Vec<_> = full.ports.iter().map(|p| (p.protocol.as_deref(), p.port.clone(), p.end_port)).collect();
    assert_eq!(
        ports,
        [
            (None, Some(PortRef::Number(80)), None),
            (Some("UDP"), Some(PortRef::Name("dns".into())), None),
            (Some("SCTP"), None, None),
            (Some("TCP"), Some(PortRef::Number(1)), Some(9)),
        ]
    );
    assert_eq!(policy.egress.len(), 1);
}

/// What cannot be read is not left out: an empty list would allow everything, no policy would isolate nothing.
#[test]
fn a_policy_that_cannot_be_read_keeps_its_place() {
    let odd = policy(
        "{podSelector: [1], policyTypes: 5, ingress: [{from: 1}, null, {ports: [{port: [80]}]}, {from: [null]}]}",
    );
    let LabelOperator::Other(why) = &odd.pod_selector.match_expressions[0].operator else { panic!("{odd:?}") };
    assert_eq!(&**why, "spec.podSelector: expected an object, found a list");
    assert_eq!(odd.policy_types.len(), 1);
    let reasons: Vec<&str> = odd.ingress.iter().map(|rule| rule.unreadable.as_deref().unwrap()).collect();
    assert_eq!(
        reasons,
        [
            "spec.ingress[0].from: expected a list, found a number",
            "spec.ingress[1]: empty; write {} to allow everything",
            "spec.ingress[2].ports[0].port: expected a whole number or a string, found a list",
            "spec.ingress[3].from[0]: empty",
        ]
    );
    assert!(policy("{podSelector: {}, egress: {a: b}}").egress[0].unreadable.is_some());
    assert_eq!(policy("{}").pod_selector, LabelSelector::default());
}

#[test]
fn the_policy_group_of_old_is_read_and_said_to_be_old() {
    let old = raw("{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: p}}");
    assert_eq!(old.claim(), Claim::Ours(Kind::NetworkPolicy));
    assert!(old.deprecation().unwrap().contains("networking.k8s.io/v1"));
    let list = raw("{apiVersion: extensions/v1beta1, kind: NetworkPolicyList}");
    assert_eq!(list.claim(), Claim::List(Some(Kind::NetworkPolicy)));
    assert_eq!(raw("{apiVersion: extensions/v1beta1, kind: Ingress}").claim(), Claim::Foreign);
    assert_eq!(raw("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy}").deprecation(), None);
}

#[test]
fn names_of_ports_come_from_containers_that_keep_running() {
    let pod = pod(
        "metadata: {name: p, creationTimestamp: '2024-02-29T12:00:01Z', deletionTimestamp: '2024-03-01T00:00:00Z'}, \
         spec: {containers: [{ports: [{name: http, containerPort: 80}, {containerPort: 81}, {name: odd, containerPort: 0}]}, \
         {ports: [{name: dns, containerPort: 53, protocol: UDP}, {name: no, containerPort: 5, protocol: ICMP}]}], \
         initContainers: [{restartPolicy: Always, ports: [{name: mesh, containerPort: 15001}]}, \
         {ports: [{name: gone, containerPort: 1}]}]}, status: {hostIP: 192.0.2.1, hostIPs: [{ip: 192.0.2.1}, {ip: 'fd00::1'}]}",
    );
    let ports: Vec<(&str, Protocol, u16)> = pod.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53), ("mesh", Protocol::Tcp, 15001)]);
    assert_eq!(*pod.host_ips, *ips(&["192.0.2.1", "fd00::1"]));
    assert_eq!((pod.created_s, pod.terminating, &pod.uid), (1_709_208_001, true, &None));
}

/// The API server gives the mirror of a static pod a uid of its own; kubelet and the network plugin know another.
#[test]
fn a_pod_s_uid_is_the_one_that_its_node_knows() {
    let uid = |metadata: &str| pod(&format!("metadata: {{name: p, uid: u-1{metadata}}}")).uid;
    assert_eq!(uid("").as_deref(), Some("u-1"));
    assert_eq!(uid(", annotations: {kubernetes.io/config.mirror: 0f1e, other: x}").as_deref(), Some("0f1e"));
}

#[test]
fn claims() {
    for (api_version, kind, want) in [
        ("v1", "Service", Some(Claim::Ours(Kind::Service))),
        ("discovery.k8s.io/v1", "EndpointSlice", Some(Claim::Ours(Kind::EndpointSlice))),
        ("v1", "List", Some(Claim::List(None))),
        ("v1", "ServiceList", Some(Claim::List(Some(Kind::Service)))),
        ("discovery.k8s.io/v1", "EndpointSliceList", Some(Claim::List(Some(Kind::EndpointSlice)))),
        ("serving.knative.dev/v1", "Service", Some(Claim::Foreign)),
        ("apps/v1", "Deployment", Some(Claim::Foreign)),
        ("v1", "Endpoints", Some(Claim::Foreign)),
        ("v1", "ConfigMapList", Some(Claim::Foreign)),
        ("discovery.k8s.io/v1beta1", "EndpointSlice", None),
        ("v2", "Pod", None),
    ] {
        let claim = raw(&format!("{{apiVersion: {api_version}, kind: {kind}}}")).claim();
        match want {
            Some(want) => assert_eq!(claim, want, "{api_version} {kind}"),
            None => assert!(matches!(claim, Claim::Unusable(_)), "{api_version} {kind}: {claim:?}"),
        }
    }
    for odd in ["{}", "{kind: Service}", "{apiVersion: v1}", "{apiVersion: v1, kind: 1}"] {
        assert!(matches!(raw(odd).claim(), Claim::Unusable(_)), "{odd}");
    }
}

/// What an API server sends is read by the same layer: a page in which every second object is broken.
#[test]
fn a_page_of_json_with_broken_neighbours() {
    let page = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"77","continue":"abc"},
        "items":[{"metadata":{"name":"a","namespace":"x"}},
                 {"metadata":{"name":"b","namespace":"x"},"spec":{"ports":[{"port":"http"}],"clusterIP":{"deep":[1,{}]}}},
                 {"metadata":{"name":"c","namespace":"x"},"spec":{"clusterIP":"10.0.0.1"}},
                 "what", null,
                 {"metadata":{"name":"d","namespace":"x"}}]}"#;
    let page: RawObject = serde_json::from_str(page).unwrap();
    assert_eq!(page.claim(), Claim::List(Some(Kind::Service)));
    let metadata = page.metadata.peek().unwrap();
    assert_eq!(metadata.continue_token.peek().map(|text| &**text), Some("abc"));
    let items = page.items.get("items").unwrap().unwrap();
    let names: Vec<Option<bool>> = items
        .into_iter()
        .map(|item| item.get("item").ok().flatten().map(|raw| raw.parse(Kind::Service).is_ok()))
        .collect();
    assert_eq!(names, [Some(true), Some(false), Some(true), None, None, Some(true)]);
}

mod any_text {
    use proptest::prelude::*;

    use super::*;

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            "[a-zA-Z0-9.:/-]{0,12}".prop_map(Into::into),
        ];
        let words = prop::sample::select(vec![
            "metadata",
            "spec",
            "status",
            "name",
            "labels",
            "ports",
            "port",
            "clusterIPs",
            "items",
            "endpoints",
            "addresses",
            "conditions",
            "annotations",
            "sessionAffinityConfig",
            "clientIP",
            "loadBalancer",
            "x",
        ]);
        leaf.prop_recursive(5, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::btree_map(words.clone(), inner, 0..6).prop_map(|map| {
                    serde_json::Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
                }),
            ]
        })
    }

    proptest! {
        /// Whatever valid JSON stands in a page, the page is read and its good object is found.
        #[test]
        fn no_value_breaks_a_page(odd in json()) {
            let page = serde_json::json!({"items": [odd, {"metadata": {"name": "good", "namespace": "x"}}]});
            let page: RawObject = serde_json::from_str(&page.to_string()).unwrap();
            let mut items = page.items.get("items").unwrap().unwrap();
            let good = items.pop().unwrap().get("items[1]").unwrap().unwrap().parse(Kind::Service).unwrap();
            prop_assert_eq!(good.object.key(), &ObjectKey::new("x", "good"));
            if let Ok(Some(odd)) = items.pop().unwrap().get("items[0]") {
                for kind in Kind::ALL {
                    let _ = odd.clone().parse(kind);
                }
            }
        }
    }
}

#[test]
fn cluster_network_policies_are_read_in_both_versions() {
    let yaml = |version: &str| {
        format!(
            "{{apiVersion: policy.networking.k8s.io/{version}, kind: ClusterNetworkPolicy, metadata: {{name: p, namespace: odd}}, \
             spec: {{tier: Admin, priority: 5, subject: {{pods: {{podSelector: {{matchLabels: {{a: b}}}}}}}}, egress: [{{name: net, \
             action: Deny, to: [{{networks: [10.0.0.0/8]}}, {{nodes: {{}}}}], protocols: [{{tcp: {{destinationPort: {{range: {{start: \
             1, end: 9}}}}}}}}, {{destinationNamedPort: http}}]}}, 5, {{action: Pass, to: 7}}]}}}}"
        )
    };
    let read = |version: &str| serde_saphyr::from_str::<RawObject>(&yaml(version)).unwrap();
    let mut objects = Vec::new();
    for version in ["v1alpha2", "v1beta1"] {
        let raw = read(version);
        assert_eq!(raw.claim(), Claim::Ours(Kind::ClusterNetworkPolicy));
        objects.push(raw.parse(Kind::ClusterNetworkPolicy).unwrap().object);
    }
    assert_eq!(objects[0], objects[1]);
    let Object::ClusterNetworkPolicy(policy) = &objects[0] else { panic!("{objects:?}") };
    assert_eq!(policy.key, ObjectKey::cluster("p"));
    assert_eq!((&*policy.tier, policy.priority, policy.ingress.len()), ("Admin", Some(5), 0));
    assert_eq!(policy.subject.pods.as_ref().unwrap().pods.match_labels.get("a"), Some("b"));
    let [rule, bad, worse] = &*policy.egress else { panic!("{policy:?}") };
    assert_eq!((&*rule.name, &*rule.action, rule.peers.len()), ("net", "Deny", 2), "{:?}", rule.unreadable);
    let protocols = rule.protocols.as_ref().unwrap();
    assert_eq!(protocols[0].tcp.as_ref().unwrap().range, Some((Some(1), Some(9))));
    assert_eq!(protocols[1].named_port.as_deref(), Some("http"));
    assert_eq!((&*bad.action, bad.unreadable.is_some()), ("", true));
    assert_eq!((&*worse.action, worse.unreadable.is_some()), ("Pass", true), "what it does is known");
    assert!(matches!(read("v1alpha1").claim(), Claim::Unusable(_)));
}
