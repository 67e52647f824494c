//! The shorthand in which cases are written, and the lines in which results are read.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    compile::{NodeView, Problem, compile_node, compile_service},
    config::ProxyConfig,
    desired::ServiceState,
    objects::{
        AddressType, Endpoint, EndpointPort, EndpointSlice, Hints, Node, Object, ObjectKey, Protocol, Service,
        parse::{Claim, RawObject},
    },
};

/// One service on node n1 (192.168.77.1, fd00:77::1; pods in 10.244.1.0/24 and fd00:10:244:1::/64).
pub struct World {
    service: String,
    labels: Vec<String>,
    annotations: Vec<String>,
    slices: Vec<EndpointSlice>,
    config: ProxyConfig,
    host: BTreeSet<(Box<str>, IpAddr)>,
}

impl World {
    /// `fields` are those of the service below `metadata`, as `spec: {...}, status: {...}`.
    pub fn new(fields: &str) -> Self {
        let host = [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("eth0", "192.168.77.1"),
            ("eth0", "fd00:77::1"),
            ("kube-bridge", "10.244.1.1"),
            ("docker0", "172.17.0.1"),
        ];
        World {
            service: fields.to_owned(),
            labels: Vec::new(),
            annotations: Vec::new(),
            slices: Vec::new(),
            config: ProxyConfig {
                external_ip_ranges: vec!["203.0.113.0/25".parse().unwrap(), "2001:db8:113::/64".parse().unwrap()],
                load_balancer_ranges: vec!["203.0.113.128/25".parse().unwrap()],
                ..ProxyConfig::default()
            },
            host: host.map(|(name, address)| (name.into(), address.parse().unwrap())).into(),
        }
    }

    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.push(format!("kube-router.io/{key}: '{value}'"));
        self
    }

    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        self.labels.push(format!("{key}: '{value}'"));
        self
    }

    pub fn config(mut self, change: impl FnOnce(&mut ProxyConfig)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn dual_stack(self) -> Self {
        self.config(|config| {
            config.ipv6 = true;
            config.cluster_ip_ranges.push("fd00:10:96::/112".parse().unwrap());
        })
    }

    pub fn host_address(mut self, interface: &str, address: &str) -> Self {
        self.host.insert((interface.into(), address.parse().unwrap()));
        self
    }

    /// A slice with port 8080/TCP and no name. Words are `address[@node][/state]`, the state being one of
    /// ready (when there is none), notready, terminating (and still serving), gone (terminating, and not serving),
    /// published (terminating and not serving, but the service publishes not-ready addresses), null (no conditions).
    pub fn endpoints(self, words: &str) -> Self {
        self.slice("", Protocol::Tcp, 8080, words)
    }

    pub fn slice(self, name: &str, protocol: Protocol, port: u16, words: &str) -> Self {
        let name = name.into();
        self.slice_of(vec![EndpointPort { name, protocol, port: Some(port) }], words)
    }

    pub fn slice_of(mut self, ports: Vec<EndpointPort>, words: &str) -> Self {
        let endpoints: Vec<Endpoint> = words.split_whitespace().map(endpoint).collect();
        let ipv6 = endpoints.first().is_some_and(|endpoint| endpoint.address.is_ipv6());
        self.slices.push(EndpointSlice {
            key: ObjectKey::new("shop", format!("web-{}", self.slices.len())),
            service: Some(ObjectKey::new("shop", "web")),
            address_type: if ipv6 { AddressType::Ipv6 } else { AddressType::Ipv4 },
            headless_label: false,
            ports,
            endpoints,
            bad_addresses: Vec::new(),
        });
        self
    }

    /// Changes the slice that was added last.
    pub fn last_slice(mut self, change: impl FnOnce(&mut EndpointSlice)) -> Self {
        change(self.slices.last_mut().expect("a slice"));
        self
    }

    pub fn compile(&self) -> (Option<ServiceState>, Vec<Problem>) {
        compile_service(&self.service(), self.slices.iter(), &self.node(), &self.config)
    }

    fn service(&self) -> Service {
        let (labels, annotations) = (self.labels.join(", "), self.annotations.join(", "));
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop, labels: {{{labels}}}, \
             annotations: {{{annotations}}}}}, {}}}",
            self.service
        );
        let raw: RawObject = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let Claim::Ours(kind) = raw.claim() else { panic!("{text}") };
        match raw.parse(kind).unwrap().object {
            Object::Service(service) => service,
            other => panic!("{other:?}"),
        }
    }

    fn node(&self) -> NodeView {
        let node = Node {
            key: ObjectKey::cluster("n1"),
            internal_ips: vec!["192.168.77.1".parse().unwrap(), "fd00:77::1".parse().unwrap()],
            external_ips: Vec::new(),
            zone: Some("a".into()),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
            annotations: Default::default(),
        };
        let (view, problems) = compile_node("n1", Some(&node), &NodeView::default(), &self.host, &self.config);
        assert_eq!(problems, []);
        view
    }

    /// The result, in this order: virtual servers, VIPs, hairpins, health check, problems.
    pub fn lines(&self) -> Vec<String> {
        let (state, problems) = self.compile();
        let mut lines = Vec::new();
        if let Some(state) = state {
            for (key, frontend) in &state.frontends {
                let server = &frontend.server;
                let mut line = format!("{} {key} {}", frontend.origin.name(), server.scheduler.name());
                if !server.flag_names().is_empty() {
                    line.push_str(&format!(" ({})", server.flag_names().join(",")));
                }
                if let Some(seconds) = server.persistence_s {
                    line.push_str(&format!(" persistent {seconds}"));
                }
                line.push_str(" ->");
                for (destination, weight) in &server.destinations {
                    assert_eq!(*weight, 1, "the only weight there is");
                    line.push_str(&format!(" {destination}"));
                }
                lines.push(line);
            }
            lines.extend(state.vips.iter().map(|vip| format!("vip {vip}")));
            lines.extend(state.hairpins.iter().map(|hairpin| {
                let at = std::net::SocketAddr::new(hairpin.vip, hairpin.port);
                format!("hairpin {} by {} {at}", hairpin.pod, hairpin.protocol)
            }));
            lines.extend(state.health_check.map(|(port, endpoints)| format!("health check {port}: {endpoints}")));
        } else {
            lines.push("nothing".to_owned());
        }
        lines.extend(problems.iter().map(ToString::to_string));
        lines
    }

    #[track_caller]
    pub fn gives(&self, expected: &[&str]) {
        assert_eq!(self.lines(), expected);
    }

    /// Looks at the virtual servers only.
    #[track_caller]
    pub fn gives_servers(&self, expected: &[&str]) {
        let servers = self.lines().into_iter().filter(|line| line.contains(" ->"));
        assert_eq!(servers.collect::<Vec<_>>(), expected);
    }

    /// Looks at the problems only: (reason, a part of the text).
    #[track_caller]
    pub fn complains(&self, expected: &[(&str, &str)]) {
        let (_, problems) = self.compile();
        let reasons: Vec<&str> = problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, expected.iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), "{problems:?}");
        for (problem, (_, text)) in problems.iter().zip(expected) {
            assert!(problem.text.contains(text), "{text:?} is missing in {:?}", problem.text);
        }
    }
}

fn endpoint(word: &str) -> Endpoint {
    let (word, state) = word.split_once('/').unwrap_or((word, "ready"));
    let (word, nodes) = word.split_once('^').map_or((word, ""), |(word, nodes)| (word, nodes));
    let (word, zones) = word.split_once('~').map_or((word, ""), |(word, zones)| (word, zones));
    let (address, node) = word.split_once('@').map_or((word, None), |(address, node)| (address, Some(node)));
    let names = |words: &str| words.split('+').filter(|word| !word.is_empty()).map(Into::into).collect();
    let hints = Hints { zones: names(zones), nodes: names(nodes) };
    let hints = (hints != Hints::default()).then(|| Box::new(hints));
    let (ready, serving, terminating) = match state {
        "ready" => (true, true, false),
        "notready" => (false, false, false),
        "terminating" => (false, true, true),
        "gone" => (false, false, true),
        "published" => (true, false, true),
        "null" => (false, false, false),
        other => panic!("no such state: {other}"),
    };
    Endpoint { address: address.parse().unwrap(), ready, serving, terminating, node: node.map(Into::into), hints }
}
