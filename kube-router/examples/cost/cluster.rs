//! A cluster of any size, the same each time: as the events that a source sends, and as the JSON of an API server.
//!
//! Each service has one TCP port and ten endpoints; the pods are spread over a hundred nodes, of which we are `n0`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kube_router::{
    desired::VirtualKey,
    objects::{
        AddressType, Endpoint, EndpointPort, EndpointSlice, Kind, Node, Object, ObjectEvent, ObjectKey, Protocol,
        Service, ServicePort, ServiceType, TrafficPolicy, annotations::ServiceAnnotations,
    },
};
use serde_json::{Value, json};

pub const NODE: &str = "n0";
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
pub const ENDPOINTS: u32 = 10;
const NODES: u32 = 100;
const NAMESPACES: u32 = 50;
const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;

/// 10.96.0.1 and up.
pub fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + service)
}

/// 10.128.0.1 and up.
pub fn pod_ip(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + pod)
}

fn namespace(number: u32) -> String {
    format!("team-{}", number % NAMESPACES)
}

fn name(service: u32) -> String {
    format!("service-{service:05}")
}

fn node_of(pod: u32) -> String {
    format!("n{}", pod % NODES)
}

pub fn virtual_key(service: u32) -> VirtualKey {
    VirtualKey { address: IpAddr::V4(cluster_ip(service)), protocol: Protocol::Tcp, port: PORT }
}

pub fn destinations(service: u32) -> impl Iterator<Item = SocketAddr> {
    (0..ENDPOINTS).map(move |n| SocketAddr::new(pod_ip(service * ENDPOINTS + n).into(), TARGET_PORT))
}

fn service(number: u32) -> ObjectEvent {
    ObjectEvent::Applied(Object::Service(Service {
        key: ObjectKey::new(namespace(number), name(number)),
        created_s: 1_700_000_000,
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![cluster_ip(number).into()],
        bad_cluster_ips: Vec::new(),
        external_ips: Vec::new(),
        lb_ingress: Vec::new(),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: PORT, node_port: 0 }],
        affinity_timeout_s: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: 0,
        proxy_name: None,
        headless_label: false,
        annotations: ServiceAnnotations::default(),
    }))
}

/// The slice of one service with its first `endpoints` endpoints.
pub fn slice(number: u32, endpoints: u32) -> ObjectEvent {
    let endpoint = |n: u32| {
        let pod = number * ENDPOINTS + n;
        Endpoint {
            address: pod_ip(pod).into(),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(node_of(pod).into()),
            hints: None,
        }
    };
    ObjectEvent::Applied(Object::EndpointSlice(EndpointSlice {
        key: ObjectKey::new(namespace(number), format!("{}-x7k2p", name(number))),
        service: Some(ObjectKey::new(namespace(number), name(number))),
        address_type: AddressType::Ipv4,
        headless_label: false,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: Some(TARGET_PORT) }],
        endpoints: (0..endpoints).map(endpoint).collect(),
        bad_addresses: Vec::new(),
    }))
}

/// A whole first list of every kind the proxy needs.
pub fn events(services: u32) -> impl Iterator<Item = ObjectEvent> {
    let node = ObjectEvent::Applied(Object::Node(Node {
        key: ObjectKey::cluster(NODE),
        internal_ips: vec![NODE_ADDRESS.into()],
        external_ips: Vec::new(),
        zone: None,
        pod_cidrs: Vec::new(),
        annotations: Default::default(),
    }));
    let list = |kind: Kind, objects: Box<dyn Iterator<Item = ObjectEvent>>| {
        std::iter::once(ObjectEvent::RelistStarted(kind)).chain(objects).chain([ObjectEvent::RelistDone(kind)])
    };
    list(Kind::Node, Box::new(std::iter::once(node)))
        .chain(list(Kind::Service, Box::new((0..services).map(service))))
        .chain(list(Kind::EndpointSlice, Box::new((0..services).map(|number| slice(number, ENDPOINTS)))))
}

/// The table that the events ask for, as `ipvsadm --restore` reads it.
pub fn as_ipvsadm(services: u32) -> String {
    let mut text = String::new();
    for number in 0..services {
        let key = virtual_key(number);
        text.push_str(&format!("-A -t {}:{} -s rr\n", key.address, key.port));
        for destination in destinations(number) {
            text.push_str(&format!("-a -t {}:{} -r {destination} -m -w 1\n", key.address, key.port));
        }
    }
    text
}

/// What the API server keeps about who set which field: read over and thrown away by every client, but it is there.
fn managed_fields(manager: &str) -> Value {
    json!([{"manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2024-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}},
        "f:generateName": {}, "f:ownerReferences": {".": {}, "k:{\"uid\":\"0b7c2d5e\"}": {}}},
        "f:spec": {"f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {},
        "f:protocol": {}, "f:targetPort": {}}}, "f:selector": {}, "f:sessionAffinity": {}, "f:type": {}}}}])
}

fn metadata(namespace: &str, name: &str, number: u32, labels: Value) -> Value {
    json!({"name": name, "namespace": namespace, "uid": format!("0b7c2d5e-0000-4000-8000-{number:012}"),
        "resourceVersion": number.to_string(), "creationTimestamp": "2023-11-14T22:13:20Z", "labels": labels,
        "managedFields": managed_fields("kube-controller-manager")})
}

pub fn service_json(number: u32) -> Value {
    let ip = cluster_ip(number);
    json!({"metadata": metadata(&namespace(number), &name(number), number, json!({"app": name(number)})),
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "selector": {"app": name(number)},
            "sessionAffinity": "None",
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": TARGET_PORT}]},
        "status": {"loadBalancer": {}}})
}

/// With fewer pods than endpoints, pods serve several services.
pub fn slice_json(number: u32, pods: u32) -> Value {
    let endpoint = |n: u32| {
        let pod = (number * ENDPOINTS + n) % pods.max(1);
        json!({"addresses": [pod_ip(pod)], "nodeName": node_of(pod),
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "name": pod_name(pod), "namespace": namespace(pod)}})
    };
    let labels = json!({"kubernetes.io/service-name": name(number),
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"});
    json!({"metadata": metadata(&namespace(number), &format!("{}-x7k2p", name(number)), number, labels),
        "addressType": "IPv4",
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}]})
}

fn pod_name(pod: u32) -> String {
    format!("deployment-{}-6c9f7d5b8-{pod:05}", pod / ENDPOINTS)
}

/// A pod of one container, with what a kubelet writes into its status.
pub fn pod_json(pod: u32) -> Value {
    let labels = json!({"app": name(pod / ENDPOINTS), "pod-template-hash": "6c9f7d5b8"});
    let mount = json!({"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        "readOnly": true});
    json!({"metadata": metadata(&namespace(pod), &pod_name(pod), pod, labels),
        "spec": {"nodeName": node_of(pod), "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "terminationGracePeriodSeconds": 30, "serviceAccountName": "default", "schedulerName": "default-scheduler",
            "containers": [{"name": "main", "image": "registry.example/team/service:1.2.3",
                "env": [{"name": "MODE", "value": "production"}, {"name": "PORT", "value": "8080"}],
                "ports": [{"containerPort": TARGET_PORT, "protocol": "TCP"}], "volumeMounts": [mount],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
            "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": []}}]},
        "status": {"phase": "Running", "hostIP": NODE_ADDRESS, "podIP": pod_ip(pod), "podIPs": [{"ip": pod_ip(pod)}],
            "qosClass": "Burstable", "startTime": "2023-11-14T22:13:20Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2023-11-14T22:13:22Z"}],
            "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0, "started": true,
                "image": "registry.example/team/service:1.2.3", "state": {"running": {}}}]}})
}

pub fn node_json() -> Value {
    json!({"metadata": {"name": NODE, "resourceVersion": "1"}, "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}]}})
}
