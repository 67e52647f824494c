//! `service_*`: the kernel's traffic counts of our virtual servers, under the names of their Services.
//!
//! In: what we want ([`ServiceRow`]s, they know the names) and what the kernel counted on both paths ([`PathStats`]). Only
//! virtual servers in both are shown, so foreign ones never are. Counters carry the kernel's absolute values: they restart
//! at zero when the kernel's virtual server is made anew, which is what a counter may do. The original's series are about
//! both paths together.
//!
//! 10,000 virtual servers are 100,000 series and 15 MB of text: it is made piece by piece as the reader takes it, and
//! therefore written here and not by the library's encoder, which wants a whole family.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write, sync::Arc};

use super::paths::PathStats;
use crate::{
    apply::{PlaneError, ServerStats},
    desired::VirtualKey,
    objects::ObjectKey,
};

/// Lines of one piece of text: some 40 KB.
const LINES_AT_A_TIME: usize = 256;

/// Where the kernel's counts come from (the IPVS plane, and the fast path's tables). Read on a worker thread, by one scrape at a time.
pub trait StatsSource: Send {
    /// Every virtual server in the kernel with an address, ours or not.
    fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, PathStats>, PlaneError>;
}

struct Series {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    value: fn(&ServerStats) -> u64,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&ServerStats) -> u64) -> Series {
    Series { name, help, kind: "counter", value }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&ServerStats) -> u64) -> Series {
    Series { name, help, kind: "gauge", value }
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

/// Of each path: both directions together.
const PATH_SERIES: [Series; 3] = [
    counter("kube_router_service_path_connections_total", "Connections, by path.", |s| s.connections),
    counter("kube_router_service_path_packets_total", "Packets, by path.", |s| s.packets_in + s.packets_out),
    counter("kube_router_service_path_bytes_total", "Bytes, by path.", |s| s.bytes_in + s.bytes_out),
];

/// What one scrape knows about traffic.
#[derive(Debug)]
pub struct Traffic {
    /// Virtual servers in the kernel, ours or not.
    servers: usize,
    ours: Vec<(VirtualKey, ObjectKey, PathStats)>,
}

impl Traffic {
    /// `owners`: the virtual servers that we want, with their Services.
    pub fn new(owners: Vec<(VirtualKey, ObjectKey)>, stats: &BTreeMap<VirtualKey, PathStats>) -> Traffic {
        let mut ours: Vec<_> = owners
            .into_iter()
            .filter_map(|(key, service)| stats.get(&key).map(|stats| (key, service, *stats)))
            .collect();
        ours.sort_unstable_by_key(|(key, ..)| *key);
        // The same series twice would make Prometheus refuse the whole scrape.
        ours.dedup_by_key(|(key, ..)| *key);
        Traffic { servers: stats.len(), ours }
    }

    /// The text in the exposition format 0.0.4, in pieces.
    pub fn pieces(self) -> impl Iterator<Item = String> + Send + 'static {
        let mut first = String::new();
        head(
            &mut first,
            "kube_router_controller_ipvs_services",
            "Virtual servers in the kernel, ours or not.",
            "gauge",
        );
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(first, "kube_router_controller_ipvs_services {}", self.servers);
        let ours = Arc::new(self.ours);
        let all = SERIES.iter().map(|series| (series, false)).chain(PATH_SERIES.iter().map(|series| (series, true)));
        let series = all.flat_map(move |(series, by_path)| {
            let ours = Arc::clone(&ours);
            (0..ours.len()).step_by(LINES_AT_A_TIME).map(move |start| {
                let mut text = String::new();
                if start == 0 {
                    head(&mut text, series.name, series.help, series.kind);
                }
                for (key, service, stats) in &ours[start..ours.len().min(start + LINES_AT_A_TIME)] {
                    if by_path {
                        line(&mut text, series, "path=\"fast\",", key, service, &stats.fast);
                        line(&mut text, series, "path=\"ipvs\",", key, service, &stats.ipvs);
                    } else {
                        line(&mut text, series, "", key, service, &stats.total());
                    }
                }
                text
            })
        });
        std::iter::once(first).chain(series)
    }
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// Labels in alphabetical order, as the registry writes its own.
fn line(text: &mut String, series: &Series, first: &str, key: &VirtualKey, service: &ObjectKey, stats: &ServerStats) {
    let (name, value) = (series.name, (series.value)(stats));
    let (port, protocol, address) = (key.port, key.protocol, key.address);
    let (service_name, namespace) = (escaped(&service.name), escaped(&service.namespace));
    let _ = writeln!(
        text,
        "{name}{{{first}port=\"{port}\",protocol=\"{protocol}\",service_name=\"{service_name}\",service_vip=\"{address}\",\
         svc_namespace=\"{namespace}\"}} {value}"
    );
}

/// A label's value; an API server lets no such name pass, a file may.
fn escaped(value: &str) -> Cow<'_, str> {
    if value.contains(['\\', '"', '\n']) {
        value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n").into()
    } else {
        value.into()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::objects::Protocol;

    pub fn key(address: &str, port: u16) -> VirtualKey {
        VirtualKey { address: address.parse::<IpAddr>().unwrap(), protocol: Protocol::Tcp, port }
    }

    pub fn owner(name: &str, address: &str, port: u16) -> (VirtualKey, ObjectKey) {
        (key(address, port), ObjectKey::new("web", name))
    }

    fn text(traffic: Traffic) -> String {
        traffic.pieces().collect()
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
        let fast = ServerStats { connections: 30, packets_in: 4, packets_out: 5, ..ServerStats::default() };
        let stats = PathStats { ipvs: stats, fast };
        let kernel = BTreeMap::from([(key("fd00::1", 80), stats), (key("192.0.2.9", 25), stats)]);
        let owners = vec![owner("plain", "fd00::1", 80), owner("not-in-kernel", "10.96.0.2", 80)];
        let text = text(Traffic::new(owners, &kernel));
        let labels = r#"{port="80",protocol="tcp",service_name="plain",service_vip="fd00::1",svc_namespace="web"}"#;
        for (name, kind, value) in [
            ("total_connections", "counter", 31),
            ("packets_in", "counter", 6),
            ("packets_out", "counter", 8),
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
        for (path, connections, packets) in [("fast", 30, 9), ("ipvs", 1, 5)] {
            let labels = format!("{{path=\"{path}\",{}", &labels[1..]);
            for (name, value) in [("connections", connections), ("packets", packets)] {
                let wanted = format!("\nkube_router_service_path_{name}_total{labels} {value}\n");
                assert!(text.contains(&wanted), "{wanted}\n{text}");
            }
        }
        assert!(text.contains("\nkube_router_controller_ipvs_services 2\n"));
        assert!(!text.contains("192.0.2.9") && !text.contains("not-in-kernel"), "{text}");
    }

    #[test]
    fn one_virtual_server_is_one_series() {
        let kernel = BTreeMap::from([(key("10.0.0.1", 80), PathStats::default())]);
        let text = text(Traffic::new(vec![owner("a", "10.0.0.1", 80), owner("a", "10.0.0.1", 80)], &kernel));
        assert_eq!(text.matches("kube_router_service_cps{").count(), 1);
    }

    #[test]
    fn a_long_text_comes_in_pieces_with_one_head_for_each_series() {
        let servers = 3 * LINES_AT_A_TIME as u16 + 1;
        let kernel = (0..servers).map(|port| (key("10.0.0.1", port), PathStats::default())).collect();
        let owners = (0..servers).map(|port| owner("a\"b", "10.0.0.1", port)).collect();
        let pieces: Vec<String> = Traffic::new(owners, &kernel).pieces().collect();
        assert_eq!(pieces.len(), 1 + 4 * (SERIES.len() + PATH_SERIES.len()));
        let text = pieces.concat();
        assert_eq!(text.matches("# TYPE kube_router_service_cps gauge\n").count(), 1);
        assert_eq!(text.matches("\nkube_router_service_cps{").count(), usize::from(servers));
        assert!(text.contains(r#"service_name="a\"b""#));
    }
}
