//! `service_*`: the kernel's traffic counts of our virtual servers, under the names of their Services.
//!
//! In: what we want ([`ServiceRow`]s, they know the names) and what the kernel counted ([`ServerStats`]). Only virtual
//! servers in both are shown, so foreign ones never are. Counters carry the kernel's absolute values: they restart at
//! zero when the kernel's virtual server is made anew, which is what a counter may do.
//! Families are made one at a time: 10,000 virtual servers are 100,000 series, of which only a tenth is ever in memory
//! beside the text.

use std::collections::BTreeMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::ServiceRow;
use crate::{
    apply::{PlaneError, ServerStats},
    desired::VirtualKey,
};

/// Where the kernel's counts come from (the IPVS plane). Read on a worker thread, by one scrape at a time.
pub trait StatsSource: Send {
    /// Every virtual server in the kernel with an address, ours or not.
    fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, ServerStats>, PlaneError>;
}

struct Series {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&ServerStats) -> u64,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&ServerStats) -> u64) -> Series {
    Series { name, help, kind: MetricType::COUNTER, value }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&ServerStats) -> u64) -> Series {
    Series { name, help, kind: MetricType::GAUGE, value }
}

/// The original's names; "bps" are bytes.
const SERIES: [Series; 10] = [
    gauge("kube_router_service_bps_in", "Bytes per second from clients.", |s| s.bytes_in_per_s),
    gauge("kube_router_service_bps_out", "Bytes per second to clients.", |s| s.bytes_out_per_s),
    counter("kube_router_service_bytes_in", "Bytes from clients.", |s| s.bytes_in),
    counter("kube_router_service_bytes_out", "Bytes to clients.", |s| s.bytes_out),
    gauge("kube_router_service_cps", "New connections per second.", |s| s.connections_per_s),
    counter("kube_router_service_packets_in", "Packets from clients.", |s| s.packets_in),
    counter("kube_router_service_packets_out", "Packets to clients.", |s| s.packets_out),
    gauge("kube_router_service_pps_in", "Packets per second from clients.", |s| s.packets_in_per_s),
    gauge("kube_router_service_pps_out", "Packets per second to clients.", |s| s.packets_out_per_s),
    counter("kube_router_service_total_connections", "Connections.", |s| s.connections),
];

/// What one scrape knows about traffic.
#[derive(Debug)]
pub struct Traffic {
    /// Virtual servers in the kernel, ours or not.
    pub servers: usize,
    /// Labels and counts of ours.
    ours: Vec<(Vec<LabelPair>, ServerStats)>,
}

impl Traffic {
    pub fn new(rows: &[ServiceRow], stats: &BTreeMap<VirtualKey, ServerStats>) -> Traffic {
        // By key: the same series twice would make Prometheus refuse the whole scrape.
        let ours: BTreeMap<VirtualKey, &ServiceRow> = rows
            .iter()
            .map(|row| (VirtualKey { address: row.address, protocol: row.protocol, port: row.port }, row))
            .collect();
        let ours = ours.iter().filter_map(|(key, row)| Some((labels(key, row), *stats.get(key)?))).collect();
        Traffic { servers: stats.len(), ours }
    }

    /// All families that have a series, made one by one.
    pub fn families(&self) -> impl Iterator<Item = MetricFamily> {
        let servers = family(
            "kube_router_controller_ipvs_services",
            "Virtual servers in the kernel, ours or not.",
            MetricType::GAUGE,
            vec![metric(Vec::new(), MetricType::GAUGE, self.servers as u64)],
        );
        let series = if self.ours.is_empty() { &[] } else { &SERIES[..] };
        std::iter::once(servers).chain(series.iter().map(|series| {
            let value = |(labels, stats): &(Vec<LabelPair>, ServerStats)| {
                metric(labels.clone(), series.kind, (series.value)(stats))
            };
            family(series.name, series.help, series.kind, self.ours.iter().map(value).collect())
        }))
    }
}

/// In alphabetical order, as the registry writes its own.
fn labels(key: &VirtualKey, row: &ServiceRow) -> Vec<LabelPair> {
    let pair = |name: &str, value: String| {
        let mut pair = LabelPair::default();
        pair.set_name(name.into());
        pair.set_value(value);
        pair
    };
    vec![
        pair("port", key.port.to_string()),
        pair("protocol", key.protocol.name().into()),
        pair("service_name", row.service.name.to_string()),
        pair("service_vip", key.address.to_string()),
        pair("svc_namespace", row.service.namespace.to_string()),
    ]
}

fn metric(labels: Vec<LabelPair>, kind: MetricType, value: u64) -> Metric {
    let mut metric = Metric::from_label(labels);
    // Exact up to 2^53; beyond that the format itself (a 64-bit float) rounds.
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value as f64);
        metric.set_gauge(gauge);
    }
    metric
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::objects::{ObjectKey, Protocol};

    pub fn row(name: &str, address: &str, port: u16) -> ServiceRow {
        ServiceRow {
            service: ObjectKey::new("web", name),
            port_name: "http".into(),
            origin: "ClusterIP".into(),
            address: address.parse().unwrap(),
            protocol: Protocol::Tcp,
            port,
            scheduler: "rr".into(),
            sched_flags: Vec::new(),
            persistence_s: None,
            destinations: Vec::new(),
        }
    }

    pub fn key(address: &str, port: u16) -> VirtualKey {
        VirtualKey { address: address.parse::<IpAddr>().unwrap(), protocol: Protocol::Tcp, port }
    }

    fn text(traffic: &Traffic) -> String {
        let encoder = prometheus::TextEncoder::new();
        traffic.families().map(|family| encoder.encode_to_string(&[family]).unwrap()).collect()
    }

    #[test]
    fn every_count_has_its_name_and_foreign_servers_have_none() {
        // Ten different values, so that a swapped pair shows.
        let stats = ServerStats {
            connections: 1,
            packets_in: 2,
            packets_out: 3,
            bytes_in: 4,
            bytes_out: 5,
            connections_per_s: 6,
            packets_in_per_s: 7,
            packets_out_per_s: 8,
            bytes_in_per_s: 9,
            bytes_out_per_s: 10,
        };
        let kernel = BTreeMap::from([(key("fd00::1", 80), stats), (key("192.0.2.9", 25), stats)]);
        let rows = [row("plain", "fd00::1", 80), row("not-in-kernel", "10.96.0.2", 80)];
        let text = text(&Traffic::new(&rows, &kernel));
        let labels = r#"{port="80",protocol="tcp",service_name="plain",service_vip="fd00::1",svc_namespace="web"}"#;
        for (name, kind, value) in [
            ("total_connections", "counter", 1),
            ("packets_in", "counter", 2),
            ("packets_out", "counter", 3),
            ("bytes_in", "counter", 4),
            ("bytes_out", "counter", 5),
            ("cps", "gauge", 6),
            ("pps_in", "gauge", 7),
            ("pps_out", "gauge", 8),
            ("bps_in", "gauge", 9),
            ("bps_out", "gauge", 10),
        ] {
            assert!(text.contains(&format!("# TYPE kube_router_service_{name} {kind}\n")), "{name}\n{text}");
            assert!(text.contains(&format!("\nkube_router_service_{name}{labels} {value}\n")), "{name}\n{text}");
        }
        assert!(text.contains("\nkube_router_controller_ipvs_services 2\n"));
        assert!(!text.contains("192.0.2.9") && !text.contains("not-in-kernel"), "{text}");
    }

    #[test]
    fn one_virtual_server_is_one_series() {
        let kernel = BTreeMap::from([(key("10.0.0.1", 80), ServerStats::default())]);
        let text = text(&Traffic::new(&[row("a", "10.0.0.1", 80), row("a", "10.0.0.1", 80)], &kernel));
        assert_eq!(text.matches("kube_router_service_cps{").count(), 1);
    }
}
