//! `process_*`: what /proc says about this process, under the names and units of Prometheus' client libraries.
//!
//! The collector that comes with the `prometheus` crate counts CPU in whole seconds and lacks three series that the
//! original has (network bytes, limit of virtual memory), so this one reads the same files through `procfs`.

use std::{collections::HashMap, fs};

use procfs::process::{LimitValue, Process};
use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, Metric, MetricFamily, MetricType},
};

/// Name, help, type; in the order of [`read`].
const SERIES: [(&str, &str, MetricType); 9] = [
    ("process_cpu_seconds_total", "CPU time of user and system mode, in seconds.", MetricType::COUNTER),
    ("process_max_fds", "Limit of open file descriptors.", MetricType::GAUGE),
    (
        "process_network_receive_bytes_total",
        "IPv4 bytes received in this process's network namespace.",
        MetricType::COUNTER,
    ),
    (
        "process_network_transmit_bytes_total",
        "IPv4 bytes sent in this process's network namespace.",
        MetricType::COUNTER,
    ),
    ("process_open_fds", "Open file descriptors.", MetricType::GAUGE),
    ("process_resident_memory_bytes", "Resident memory in bytes.", MetricType::GAUGE),
    ("process_start_time_seconds", "Start of the process as unix time.", MetricType::GAUGE),
    ("process_virtual_memory_bytes", "Virtual memory in bytes.", MetricType::GAUGE),
    ("process_virtual_memory_max_bytes", "Limit of virtual memory in bytes.", MetricType::GAUGE),
];

#[derive(Clone, Debug)]
pub struct ProcessCollector {
    descriptions: Vec<Desc>,
}

impl ProcessCollector {
    pub fn new() -> Self {
        let describe = |(name, help, _): &(&str, &str, _)| {
            Desc::new((*name).into(), (*help).into(), Vec::new(), HashMap::new())
                .expect("metric names are well-formed: they are constants")
        };
        ProcessCollector { descriptions: SERIES.iter().map(describe).collect() }
    }
}

impl Default for ProcessCollector {
    fn default() -> Self {
        ProcessCollector::new()
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    /// A value that cannot be read now is left out.
    fn collect(&self) -> Vec<MetricFamily> {
        SERIES
            .iter()
            .zip(read())
            .filter_map(|((name, help, kind), value)| Some(family(name, help, *kind, value?)))
            .collect()
    }
}

fn family(name: &str, help: &str, kind: MetricType, value: f64) -> MetricFamily {
    let mut metric = Metric::default();
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

/// The values of [`SERIES`].
fn read() -> [Option<f64>; SERIES.len()] {
    let Ok(process) = Process::myself() else { return Default::default() };
    let stat = process.stat().ok();
    let limits = process.limits().ok();
    let stat = stat.as_ref();
    let ticks = procfs::ticks_per_second() as f64;
    let (received, sent) = network_bytes().unzip();
    [
        stat.map(|s| (s.utime + s.stime) as f64 / ticks),
        limits.as_ref().map(|l| limit(&l.max_open_files.soft_limit)),
        received,
        sent,
        process.fd_count().ok().map(|n| n as f64),
        stat.map(|s| s.rss as f64 * procfs::page_size() as f64),
        stat.and_then(|s| Some(s.starttime as f64 / ticks + procfs::boot_time_secs().ok()? as f64)),
        stat.map(|s| s.vsize as f64),
        limits.as_ref().map(|l| limit(&l.max_address_space.soft_limit)),
    ]
}

/// Unlimited shows as the largest number, as in other client libraries.
fn limit(value: &LimitValue) -> f64 {
    match value {
        LimitValue::Value(value) => *value as f64,
        LimitValue::Unlimited => u64::MAX as f64,
    }
}

/// Bytes in and out.
fn network_bytes() -> Option<(f64, f64)> {
    parse_octets(&fs::read_to_string("/proc/self/net/netstat").ok()?)
}

/// InOctets and OutOctets of the `IpExt` pair of lines: one with names, one with values (net/ipv4/proc.c).
fn parse_octets(netstat: &str) -> Option<(f64, f64)> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted| {
        let (_, value) = names.split_whitespace().zip(values.split_whitespace()).find(|(name, _)| *name == wanted)?;
        value.parse().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_found_by_name() {
        let text = "TcpExt: InOctets X\nTcpExt: 1 2\nIpExt: InMcastPkts InOctets OutOctets\nIpExt: 7 4096 512\n";
        assert_eq!(parse_octets(text), Some((4096.0, 512.0)));
        assert_eq!(parse_octets("IpExt: InOctets OutOctets\n"), None);
        assert_eq!(parse_octets(""), None);
    }

    #[test]
    fn this_process_reads_itself() {
        let values = read();
        for ((name, ..), value) in SERIES.iter().zip(values) {
            let value = value.unwrap_or_else(|| panic!("{name} is missing"));
            assert!(value.is_finite() && value >= 0.0, "{name} = {value}");
        }
        let at = |wanted| SERIES.iter().zip(values).find(|((name, ..), _)| *name == wanted).unwrap().1.unwrap();
        let age = crate::sys::clock::unix_seconds() - at("process_start_time_seconds");
        assert!((-5.0..3600.0).contains(&age), "age {age}");
        // `ps` reads the same files with code of its own.
        let ps = std::process::Command::new("ps").args(["-o", "rss=", "-p", &std::process::id().to_string()]).output();
        let rss_kib: f64 = String::from_utf8(ps.unwrap().stdout).unwrap().trim().parse().unwrap();
        let ours = at("process_resident_memory_bytes") / 1024.0;
        assert!((ours / rss_kib - 1.0).abs() < 0.5, "{ours} KiB, ps says {rss_kib}");
    }
}
