//! At which ports services answer, and behind which of them a process of this node may be found.
//!
//! A pod's packet to a service is judged where the load balancer's choice is visible: at the interface through which it
//! leaves the node's stack. A process of the node itself (a pod with the node's network, too) is reached without leaving
//! it, so the programs must know beforehand.
//!
//! In: one Service with its slices, the node. Out: rows of `kr_services`, exactly where a load balancer has somebody to
//! send a packet to. Where it has nobody, or is not there, nobody would look behind it, and at an address of the node the
//! packet would reach the node's own process: there it is judged as one to that address.
//!
//! Our own proxy is asked for its virtual servers (`services.rs`), and of two services that want one the winner counts. Of
//! another load balancer it is known only that it works from the same objects: it may answer at every address that they
//! name and at node ports of every address of the node, if there is an endpoint, and of two services either may.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use kube_router_common::policy::{Address, Service as Row, ServiceKey};

use super::{
    NodeView, Problem, Subject,
    endpoints::Candidates,
    policy::address_of,
    services::{compile_service, is_balanced},
};
use crate::{
    cluster::ClusterState,
    config::ProxyConfig,
    desired::VirtualKey,
    objects::{EndpointSlice, ObjectKey, Place, Protocol, Service},
};

/// `None`: a virtual server without destinations.
type Rows = BTreeMap<ServiceKey, Option<Row>>;
/// Age, then name, as the proxy has it: the smallest wins.
type Rank = (i64, ObjectKey);

/// The processes of this node among the endpoints of a family.
fn row(candidates: &Candidates, host: &BTreeSet<IpAddr>, v4: Option<bool>) -> Option<Row> {
    let of_family = |to: &SocketAddr| v4.is_none_or(|v4| to.is_ipv4() == v4);
    let mut all = candidates.addresses().filter(of_family).peekable();
    all.peek()?;
    let mut here = all.filter(|to| host.contains(&to.ip()));
    let Some(first) = here.next() else { return Some(Row::default()) };
    let flags = if here.next().is_some() { Row::MORE } else { 0 };
    Some(Row { host: address_of(first.ip()), host_port: first.port(), flags })
}

fn key(address: Address, protocol: Protocol, port: u16) -> ServiceKey {
    ServiceKey { address, port, protocol: protocol.number(), pad: 0 }
}

/// Where a virtual server of ours answers.
pub fn key_of(server: &VirtualKey) -> ServiceKey {
    key(address_of(server.address), server.protocol, server.port)
}

/// Where our own proxy has virtual servers for it. Their destinations are among the endpoints; who ends may still be one.
fn own<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    host: &BTreeSet<IpAddr>,
    node: &NodeView,
    config: &ProxyConfig,
) -> Rows {
    let mut rows = Rows::new();
    let Some(state) = compile_service(service, slices.clone(), node, config).0 else { return rows };
    for (at, frontend) in &state.frontends {
        let candidates = Candidates::collect(slices.clone(), &frontend.port_name, at.protocol, Place::default());
        let row = (!frontend.server.destinations.is_empty())
            .then(|| row(&candidates, host, Some(at.address.is_ipv4())))
            .flatten();
        rows.insert(key_of(at), row);
    }
    rows
}

/// Where another load balancer may answer for it.
fn foreign<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    host: &BTreeSet<IpAddr>,
) -> Rows {
    let mut rows = Rows::new();
    if !is_balanced(service) {
        return rows;
    }
    for port in &service.ports {
        let candidates = Candidates::collect(slices.clone(), &port.name, port.protocol, Place::default());
        for address in service.addresses() {
            let row = row(&candidates, host, Some(address.is_ipv4()));
            rows.insert(key(address_of(address), port.protocol, port.port), row);
        }
        if service.has_node_port(port) {
            rows.insert(key(Address::default(), port.protocol, port.node_port), row(&candidates, host, None));
        }
    }
    rows
}

/// The rows of all services, with who wants them: two services may claim one port.
///
/// When the table is full, who comes later has no row until somebody goes; at such a port nobody looks behind the load
/// balancer, so an isolated pod's packet is judged as one to the service's address.
#[derive(Debug)]
pub struct ServicePorts {
    /// Rows that fit.
    limit: usize,
    /// Ours, if it runs.
    proxy: Option<ProxyConfig>,
    node: NodeView,
    placed: BTreeSet<ServiceKey>,
    waiting: BTreeSet<ServiceKey>,
    of: BTreeMap<ObjectKey, (i64, Rows)>,
    wanted: BTreeMap<ServiceKey, BTreeMap<Rank, Option<Row>>>,
    addresses: BTreeMap<IpAddr, usize>,
    all: BTreeSet<IpAddr>,
    moved: bool,
}

impl ServicePorts {
    pub fn new(limit: usize) -> Self {
        ServicePorts {
            limit,
            proxy: None,
            node: NodeView::default(),
            placed: BTreeSet::new(),
            waiting: BTreeSet::new(),
            of: BTreeMap::new(),
            wanted: BTreeMap::new(),
            addresses: BTreeMap::new(),
            all: BTreeSet::new(),
            moved: false,
        }
    }

    /// The node at which virtual servers are. `true`: every service is to be looked at again.
    pub fn set_node(&mut self, node: &NodeView) -> bool {
        let same = node.serves_like(&self.node);
        if !same {
            self.node = node.clone();
        }
        !same
    }

    /// Our own proxy balances.
    pub fn balanced_by(&mut self, proxy: &ProxyConfig) {
        self.proxy = Some(proxy.clone());
    }

    /// Gives room to wanted keys and takes it from others; returns keys that waited and wait no more.
    fn place(&mut self, touched: &BTreeSet<ServiceKey>) -> Vec<ServiceKey> {
        for key in touched {
            if self.claimed(key).is_none() {
                self.placed.remove(key);
                self.waiting.remove(key);
            } else if !self.placed.contains(key) {
                self.waiting.insert(*key);
            }
        }
        let room = self.limit.saturating_sub(self.placed.len());
        let now: Vec<ServiceKey> = self.waiting.iter().take(room).copied().collect();
        for key in &now {
            self.waiting.remove(key);
            self.placed.insert(*key);
        }
        now
    }

    /// What has no room.
    pub fn problem(&self) -> Option<Problem> {
        let first = self.waiting.first()?;
        let text = format!(
            "{} ports of services have no room beside {} others (--netpol-max-service-ports), {} port {} the first; pods \
             with egress rules are judged by the service's address there",
            self.waiting.len(),
            self.limit,
            super::policy::ip_of(first.address),
            first.port
        );
        Some(Problem { subject: Subject::Kernel("network policy"), reason: "TooManyServicePorts", text })
    }

    /// Brings one service up to date; returns the keys whose rows may have changed.
    pub fn update(&mut self, cluster: &ClusterState, key: &ObjectKey, host: &BTreeSet<IpAddr>) -> Vec<ServiceKey> {
        let rows = |service: &Service| {
            let slices = cluster.slices_of(key);
            let rows = match &self.proxy {
                Some(config) => own(service, slices, host, &self.node, config),
                None => foreign(service, slices, host),
            };
            (service.created_s, rows)
        };
        let (age, rows) = cluster.service(key).map(rows).unwrap_or_default();
        let (old_age, old) = self.of.remove(key).unwrap_or_default();
        if (old_age, &old) == (age, &rows) {
            if !rows.is_empty() {
                self.of.insert(key.clone(), (age, rows));
            }
            return Vec::new();
        }
        let touched: BTreeSet<ServiceKey> = old.keys().chain(rows.keys()).copied().collect();
        for address in ips(&old) {
            let users = self.addresses.entry(address).or_default();
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.addresses.remove(&address);
                self.moved |= self.all.remove(&address);
            }
        }
        for address in ips(&rows) {
            *self.addresses.entry(address).or_default() += 1;
            self.moved |= self.all.insert(address);
        }
        for port in old.keys() {
            if let Some(owners) = self.wanted.get_mut(port) {
                owners.remove(&(old_age, key.clone()));
                if owners.is_empty() {
                    self.wanted.remove(port);
                }
            }
        }
        for (port, row) in &rows {
            self.wanted.entry(*port).or_default().insert((age, key.clone()), *row);
        }
        if !rows.is_empty() {
            self.of.insert(key.clone(), (age, rows));
        }
        let placed = self.place(&touched);
        touched.into_iter().chain(placed).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Every address at which a service may answer, node ports apart.
    pub fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.all
    }

    /// May these addresses have changed since the last call?
    pub fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// The row that a key should have, were there room.
    fn claimed(&self, key: &ServiceKey) -> Option<Row> {
        let owners = self.wanted.get(key)?;
        if self.proxy.is_some() {
            return *owners.values().next()?;
        }
        let mut rows = owners.values().flatten();
        let mut row = *rows.next()?;
        for other in rows.filter(|other| other.host_port != 0) {
            let same = (row.host, row.host_port) == (other.host, other.host_port);
            row = match row.host_port {
                0 => *other,
                _ if same => Row { flags: row.flags | other.flags, ..row },
                _ => Row { flags: Row::MORE, ..row },
            };
        }
        Some(row)
    }

    pub fn row(&self, key: &ServiceKey) -> Option<Row> {
        self.placed.get(key)?;
        self.claimed(key)
    }

    pub fn all(&self) -> BTreeMap<ServiceKey, Row> {
        self.wanted.keys().filter_map(|key| Some((*key, self.row(key)?))).collect()
    }
}

fn ips(rows: &Rows) -> BTreeSet<IpAddr> {
    let named = rows.keys().filter(|key| key.address != Address::default());
    named.map(|key| super::policy::ip_of(key.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::Dirty,
        objects::ObjectEvent,
        objects::parse::{Claim, RawObject},
    };

    fn send(cluster: &mut ClusterState, json: serde_json::Value) {
        let raw: RawObject = serde_json::from_value(json).expect("an object");
        let Claim::Ours(kind) = raw.claim() else { panic!("not ours") };
        let object = raw.parse(kind).expect("sound").object;
        cluster.apply(ObjectEvent::Applied(object), &mut Dirty::default());
    }

    fn cluster(endpoints: &[&str]) -> ClusterState {
        let mut cluster = ClusterState::new();
        send(
            &mut cluster,
            serde_json::json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "default"},
                "spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
                         "externalIPs": ["192.0.2.99"], "ports": [{"port": 443, "targetPort": 6443, "nodePort": 30443}]},
            }),
        );
        let endpoints: Vec<_> =
            endpoints.iter().map(|ip| serde_json::json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
        send(
            &mut cluster,
            serde_json::json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "api-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "api"}},
                "ports": [{"name": "", "port": 6443, "protocol": "TCP"}], "endpoints": endpoints,
            }),
        );
        cluster
    }

    fn slice(namespace: &str, service: &str, endpoint: &str, port: u16) -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": service, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}, "nodeName": "n2"}],
        })
    }

    fn node() -> NodeView {
        let addresses = [("eth0", "192.0.2.1"), ("eth1", "198.51.100.1"), ("kube-bridge", "10.244.1.1")];
        NodeView {
            name: "n1".into(),
            ipv4: Some([192, 0, 2, 1].into()),
            host_addresses: addresses.map(|(name, ip)| (name.into(), ip.parse().expect("an IP"))).into(),
            ..NodeView::default()
        }
    }

    /// Rows of these services at a node whose proxy is ours, with the node's processes.
    fn own_rows(cluster: &ClusterState, config: &ProxyConfig, names: &[&str]) -> BTreeMap<ServiceKey, Row> {
        let host = node().host_addresses.into_iter().map(|(_, address)| address).collect();
        let mut ports = ServicePorts::new(1_000);
        ports.balanced_by(config);
        assert!(ports.set_node(&node()) && !ports.set_node(&node()));
        names.iter().for_each(|name| drop(ports.update(cluster, &ObjectKey::new("a", *name), &host)));
        ports.all()
    }

    fn node_port(name: &str, ip: &str, created_s: u32, policy: &str) -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "a", "creationTimestamp": format!("2026-01-01T00:00:{created_s:02}Z")},
            "spec": {"type": "NodePort", "clusterIP": ip, "clusterIPs": [ip], "externalTrafficPolicy": policy,
                     "ports": [{"port": 80, "nodePort": 30080}]},
        })
    }

    /// At any other address of the node a pod would reach the node's own process that listens there.
    #[test]
    fn a_node_port_has_rows_where_a_virtual_server_has_destinations() {
        let one = ProxyConfig::default();
        let all = ProxyConfig { node_port_all_addresses: true, ..ProxyConfig::default() };
        let cluster_ip = || vec![key("10.96.0.1", 80)];
        for (config, policy, endpoint, rows) in [
            (&one, "Cluster", true, [cluster_ip(), vec![key("192.0.2.1", 30080)]].concat()),
            (&all, "Cluster", true, [cluster_ip(), vec![key("192.0.2.1", 30080), key("198.51.100.1", 30080)]].concat()),
            (&one, "Local", true, cluster_ip()),
            (&all, "Local", true, cluster_ip()),
            (&one, "Cluster", false, vec![]),
            (&all, "Cluster", false, vec![]),
        ] {
            let mut cluster = ClusterState::new();
            send(&mut cluster, node_port("web", "10.96.0.1", 1, policy));
            if endpoint {
                send(&mut cluster, slice("a", "web", "10.244.2.9", 8080));
            }
            let got: Vec<ServiceKey> = own_rows(&cluster, config, &["web"]).into_keys().collect();
            assert_eq!(got, rows, "{policy} {endpoint} {}", config.node_port_all_addresses);
        }
    }

    #[test]
    fn of_a_disputed_port_the_winner_names_the_process() {
        let here =
            |rows: &BTreeMap<ServiceKey, Row>| rows.get(&key("192.0.2.1", 30080)).map(|row| (row.host_port, row.flags));
        for names in [["old", "young"], ["young", "old"]] {
            let mut cluster = ClusterState::new();
            send(&mut cluster, node_port("old", "10.96.0.1", 1, "Cluster"));
            send(&mut cluster, node_port("young", "10.96.0.2", 2, "Cluster"));
            send(&mut cluster, slice("a", "young", "192.0.2.1", 22));
            let config = ProxyConfig::default();
            assert_eq!(here(&own_rows(&cluster, &config, &names)), None, "its virtual server has no destination");
            send(&mut cluster, slice("a", "old", "192.0.2.1", 8080));
            assert_eq!(here(&own_rows(&cluster, &config, &names)), Some((8080, 0)));
            send(&mut cluster, slice("a", "old", "10.244.2.9", 8080));
            assert_eq!(here(&own_rows(&cluster, &config, &names)), Some((0, 0)));
        }
    }

    fn key(address: &str, port: u16) -> ServiceKey {
        let address = if address.is_empty() { Address::default() } else { address_of(address.parse().expect("an IP")) };
        ServiceKey { address, port, protocol: 6, pad: 0 }
    }

    #[test]
    fn every_address_has_its_port_and_a_process_of_the_node_is_named() {
        let service = ObjectKey::new("default", "api");
        let host = BTreeSet::from(["192.0.2.1".parse().expect("an IP")]);
        let mut ports = ServicePorts::new(1_000);
        let changed = ports.update(&cluster(&["192.0.2.1", "192.0.2.2"]), &service, &host);
        assert_eq!(changed.len(), 4);
        let here = Row { host: address_of("192.0.2.1".parse().expect("an IP")), host_port: 6443, flags: 0 };
        for (address, port) in [("10.96.0.1", 443), ("192.0.2.99", 443), ("", 30443)] {
            assert_eq!(ports.row(&key(address, port)), Some(here), "{address}");
        }
        assert_eq!(ports.row(&key("fd00:96::1", 443)), None, "no endpoint of this family");
        assert_eq!(ports.row(&key("10.96.0.1", 80)), None);
        assert_eq!(ports.addresses().len(), 3);
        assert!(ports.update(&cluster(&["192.0.2.1"]), &service, &host).is_empty(), "nothing new");
        assert_eq!(ports.update(&cluster(&["192.0.2.2"]), &service, &host).len(), 4);
        assert_eq!(ports.row(&key("", 30443)), Some(Row::default()));
        assert_eq!(ports.update(&ClusterState::new(), &service, &host).len(), 4);
        assert!(ports.all().is_empty() && ports.addresses().is_empty());
    }

    /// Else a pod with egress rules would reach any port of its node, by a Service of its own that names the node.
    #[test]
    fn what_no_proxy_answers_for_has_no_row() {
        let service = |name: &str, label: &str, ip: &str| {
            serde_json::json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "a", "labels": {label: "other"}},
                "spec": {"clusterIP": ip, "externalIPs": ["192.0.2.1", "203.0.113.9"], "ports": [{"port": 10250}]},
            })
        };
        let mut cluster = ClusterState::new();
        for (name, label, ip) in [
            ("external", "x", "10.96.0.1"),
            ("headless", "x", "None"),
            ("foreign", "service.kubernetes.io/service-proxy-name", "10.96.0.2"),
        ] {
            send(&mut cluster, service(name, label, ip));
            send(&mut cluster, slice("a", name, "203.0.113.77", 10250));
        }
        let host = BTreeSet::from(["192.0.2.1".parse().expect("an IP")]);
        let rows = |proxy: Option<ProxyConfig>| {
            let mut ports = ServicePorts::new(1_000);
            proxy.iter().for_each(|proxy| ports.balanced_by(proxy));
            ports.set_node(&node());
            for name in ["external", "headless", "foreign"] {
                ports.update(&cluster, &ObjectKey::new("a", name), &host);
            }
            ports.all().into_keys().collect::<Vec<_>>()
        };
        let [own, node, other] = ["10.96.0.1", "192.0.2.1", "203.0.113.9"].map(|address| key(address, 10250));
        assert_eq!(rows(None), [own, node, other], "other proxies take what is written");
        assert_eq!(rows(Some(ProxyConfig::default())), [own], "strict");
        let external_ip_ranges = vec!["203.0.113.0/24".parse().expect("a CIDR")];
        assert_eq!(rows(Some(ProxyConfig { external_ip_ranges, ..ProxyConfig::default() })), [own, other]);
    }

    #[test]
    fn several_processes_are_told() {
        let host = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().expect("an IP")).into();
        let mut ports = ServicePorts::new(1_000);
        ports.update(&cluster(&["192.0.2.1", "192.0.2.2"]), &ObjectKey::new("default", "api"), &host);
        assert_eq!(ports.row(&key("10.96.0.1", 443)).map(|row| row.flags), Some(Row::MORE));
    }

    #[test]
    fn a_full_table_keeps_who_is_there_and_takes_who_waits_when_somebody_goes() {
        let cluster = cluster(&["192.0.2.1"]);
        let host = BTreeSet::new();
        let name = ObjectKey::new("default", "api");
        let mut ports = ServicePorts::new(2);
        let wanted = ports.update(&cluster, &name, &host);
        assert_eq!((wanted.len(), ports.all().len()), (4, 2), "{wanted:?}");
        let problem = ports.problem().expect("told");
        assert_eq!(problem.reason, "TooManyServicePorts");
        assert!(problem.text.starts_with("1 ports of services"), "{}", problem.text);
        let there: Vec<ServiceKey> = ports.all().into_keys().collect();
        assert!(wanted.iter().all(|key| ports.row(key).is_some() == there.contains(key)));
        // Its object goes: so do its rows, and the problem.
        let touched = ports.update(&ClusterState::new(), &name, &host);
        assert_eq!(touched, wanted);
        assert!(ports.all().is_empty() && ports.problem().is_none());
        // Whoever waits is told as changed when there is room.
        let mut ports = ServicePorts::new(3);
        ports.update(&cluster, &name, &host);
        let other = ObjectKey::new("default", "other");
        assert!(ports.problem().is_none());
        ports.waiting.insert(key("10.96.0.9", 80));
        ports.wanted.insert(key("10.96.0.9", 80), BTreeMap::from([((0, other), Some(Row::default()))]));
        let touched = ports.update(&ClusterState::new(), &name, &host);
        assert!(touched.contains(&key("10.96.0.9", 80)) && ports.all().len() == 1);
    }
}
