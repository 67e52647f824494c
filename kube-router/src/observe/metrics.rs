//! The numbers we count ourselves, and the one registry they live in.
//!
//! [`Metrics`] is handed to everyone who counts; counting is one relaxed atomic. Names, types and labels of the
//! original's series are the original's (dashboards depend on them); what is only ours is documented beside them in
//! docs/metrics.md, which a test compares with the registry. Numbers that others own are read at scrape time:
//! [`super::traffic`] (kernel), [`super::process`] (/proc), watches ([`super::Pulse`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector,
};

use super::{Pulse, process::ProcessCollector};
use crate::{
    objects::Kind,
    sys::{clock, version},
};

/// The kernel planes that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    Ipvs,
    Net,
    Firewall,
    Conntrack,
    Sysctl,
    Policy,
}

impl Plane {
    const ALL: [Plane; 6] = [Plane::Ipvs, Plane::Net, Plane::Firewall, Plane::Conntrack, Plane::Sysctl, Plane::Policy];

    /// Value of the label `plane`.
    pub fn name(self) -> &'static str {
        match self {
            Plane::Ipvs => "ipvs",
            Plane::Net => "net",
            Plane::Firewall => "firewall",
            Plane::Conntrack => "conntrack",
            Plane::Sysctl => "sysctl",
            Plane::Policy => "policy",
        }
    }
}

/// What a scrape could not read in time; label `part`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrapePart {
    /// The services, asked of the reconcile loop.
    Services,
    /// The kernel's statistics.
    Kernel,
}

impl ScrapePart {
    const ALL: [ScrapePart; 2] = [ScrapePart::Services, ScrapePart::Kernel];

    fn name(self) -> &'static str {
        match self {
            ScrapePart::Services => "services",
            ScrapePart::Kernel => "kernel",
        }
    }
}

/// Every number we keep. All methods may be called from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    export_time: Histogram,
    service_sync_time: Histogram,
    policy_sync_time: Histogram,
    policy_chains: IntGauge,
    policy_ipsets: IntGauge,
    pod_open_time: Histogram,
    problems: IntGaugeVec,
    /// Reasons ever seen: a reason without problems stays, as 0. Bounded by the program text (`&'static`).
    reasons: Mutex<BTreeSet<&'static str>>,
    kernel_writes: [IntCounter; Plane::ALL.len()],
    sync_failures: [IntCounter; Plane::ALL.len()],
    last_success: Gauge,
    /// Nobody else has successes to tell.
    policy_alone: bool,
    watch_complete: IntGaugeVec,
    drain_queue: IntGauge,
    objects: IntGaugeVec,
    health_check_ports: IntGaugeVec,
    scrape_failures: [IntCounter; ScrapePart::ALL.len()],
    requests: IntCounterVec,
    pub(super) requests_in_flight: IntGauge,
}

impl Metrics {
    /// `proxy`: the service proxy runs. Series of a feature that does not run do not appear, as in the original.
    pub fn new(proxy: bool) -> Metrics {
        Metrics::of(proxy, false)
    }

    /// `policy`: network policy runs.
    pub fn of(proxy: bool, policy: bool) -> Metrics {
        let registry = Registry::new();
        let r = &registry;
        let build = int_gauges(r, "kube_router_build_info", "Always 1; this build.", &["goversion", "version"]);
        build.with_label_values(&[version::COMPILER, version::VERSION]).set(1);
        add(r, ProcessCollector::new());

        let service_sync_time = histogram(
            "kube_router_controller_ipvs_services_sync_time",
            "Seconds that one sync of services with the kernel took.",
        );
        if proxy {
            add(r, service_sync_time.clone());
        }
        let policy_sync_time = histogram(
            "kube_router_controller_iptables_sync_time",
            "Seconds that one sync of network policy with the kernel took.",
        );
        let gauge = |name, help| made(IntGauge::new(name, help));
        let policy_chains = gauge("kube_router_controller_policy_chains", "Groups of pods with the same rules.");
        let policy_ipsets = gauge("kube_router_controller_policy_ipsets", "Classes of peers that rules tell apart.");
        let pod_open_time = histogram(
            "kube_router_policy_pod_open_seconds",
            "Seconds that a new pod's link was there without its rules, as no network plugin announced it.",
        );
        if policy {
            add(r, pod_open_time.clone());
            add(r, policy_sync_time.clone());
            add(r, policy_chains.clone());
            add(r, policy_ipsets.clone());
        }
        let export_time = histogram(
            "kube_router_controller_ipvs_metrics_export_time",
            "Seconds that collecting the per-service numbers of one scrape took.",
        );
        add(r, export_time.clone());

        let writes =
            int_counters(r, "kube_router_kernel_writes_total", "Orders carried out by the kernel.", &["plane"]);
        let failures =
            int_counters(r, "kube_router_sync_failures_total", "Syncs in which a plane refused something.", &["plane"]);
        let scrape_failures = int_counters(
            r,
            "kube_router_scrape_failures_total",
            "Scrapes that had to go without the per-service numbers.",
            &["part"],
        );
        let requests = int_counters(
            r,
            "promhttp_metric_handler_requests_total",
            "Scrapes answered, by HTTP status code.",
            &["code"],
        );
        for code in ["200", "500", "503"] {
            requests.with_label_values(&[code]);
        }
        let last_success = add(
            r,
            made(Gauge::new(
                "kube_router_sync_last_success_timestamp_seconds",
                "Unix time of the last sync without a failure; 0 before the first.",
            )),
        );
        let drain_queue = int_gauge(
            r,
            "kube_router_drain_queue_length",
            "Destinations that finish their connections before removal.",
        );
        let requests_in_flight = int_gauge(r, "promhttp_metric_handler_requests_in_flight", "Scrapes being answered.");
        let health_check_ports =
            int_gauges(r, "kube_router_health_check_ports", "Health-check node ports of services.", &["state"]);
        for state in ["listening", "failed"] {
            health_check_ports.with_label_values(&[state]);
        }
        Metrics {
            export_time,
            service_sync_time,
            policy_sync_time,
            policy_chains,
            policy_ipsets,
            pod_open_time,
            problems: int_gauges(r, "kube_router_problems", "Standing problems, by reason.", &["reason"]),
            reasons: Mutex::default(),
            kernel_writes: Plane::ALL.map(|plane| writes.with_label_values(&[plane.name()])),
            sync_failures: Plane::ALL.map(|plane| failures.with_label_values(&[plane.name()])),
            last_success,
            policy_alone: policy && !proxy,
            watch_complete: int_gauges(
                r,
                "kube_router_watch_complete",
                "1 when the full list of a watched kind of object is through, else 0.",
                &["kind"],
            ),
            drain_queue,
            objects: int_gauges(r, "kube_router_objects", "Objects held, by kind.", &["kind"]),
            health_check_ports,
            scrape_failures: ScrapePart::ALL.map(|part| scrape_failures.with_label_values(&[part.name()])),
            requests,
            requests_in_flight,
            registry,
        }
    }

    /// `count` orders of a plane were carried out.
    pub fn kernel_wrote(&self, plane: Plane, count: usize) {
        self.kernel_writes[plane as usize].inc_by(count as u64);
    }

    /// This plane failed as a whole, or refused at least one order of a batch.
    pub fn sync_failed(&self, plane: Plane) {
        self.sync_failures[plane as usize].inc();
    }

    /// One sync of services is over; `clean`: nothing failed.
    pub fn sync_done(&self, took: Duration, clean: bool) {
        self.service_sync_time.observe(took.as_secs_f64());
        if clean {
            self.last_success.set(clock::unix_seconds());
        }
    }

    /// One sync of network policy succeeded.
    pub fn policy_synced(&self, took: Duration, groups: usize, classes: usize) {
        self.policy_sync_time.observe(took.as_secs_f64());
        if self.policy_alone {
            self.last_success.set(clock::unix_seconds());
        }
        self.policy_chains.set(i64::try_from(groups).unwrap_or(i64::MAX));
        self.policy_ipsets.set(i64::try_from(classes).unwrap_or(i64::MAX));
    }

    /// A pod that no network plugin announced is judged by its rules; until now it was not.
    pub fn pod_was_open(&self, time: Duration) {
        self.pod_open_time.observe(time.as_secs_f64());
    }

    /// The reasons of all standing problems, one per problem.
    pub fn set_problems(&self, reasons: impl IntoIterator<Item = &'static str>) {
        let mut counts: BTreeMap<&'static str, i64> = BTreeMap::new();
        for reason in reasons {
            *counts.entry(reason).or_default() += 1;
        }
        let mut seen = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(counts.keys());
        for reason in seen.iter() {
            self.problems.with_label_values(&[*reason]).set(counts.get(reason).copied().unwrap_or(0));
        }
    }

    /// Destinations that are being drained.
    pub fn set_drain_queue(&self, length: usize) {
        self.drain_queue.set(gauge_value(length));
    }

    /// Objects of one kind that the cluster state holds.
    pub fn set_objects(&self, kind: Kind, count: usize) {
        self.objects.with_label_values(&[&kind.to_string()]).set(gauge_value(count));
    }

    pub(super) fn set_health_check_ports(&self, listening: usize, failed: usize) {
        self.health_check_ports.with_label_values(&["listening"]).set(gauge_value(listening));
        self.health_check_ports.with_label_values(&["failed"]).set(gauge_value(failed));
    }

    pub(super) fn set_watches(&self, pulse: &Pulse) {
        for (kind, complete) in pulse.watches() {
            self.watch_complete.with_label_values(&[&kind.to_string()]).set(complete.into());
        }
    }

    pub(super) fn scrape_failed(&self, part: ScrapePart) {
        self.scrape_failures[part as usize].inc();
    }

    pub(super) fn scrape_answered(&self, code: u16) {
        self.requests.with_label_values(&[&code.to_string()]).inc();
    }

    pub(super) fn exported(&self, took: Duration) {
        self.export_time.observe(took.as_secs_f64());
    }

    /// All series of the registry; families come sorted by name.
    pub(crate) fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.registry.gather()
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Go's default buckets (and prometheus' own): .005 .01 .025 .05 .1 .25 .5 1 2.5 5 10 seconds.
fn histogram(name: &str, help: &str) -> Histogram {
    made(Histogram::with_opts(HistogramOpts::new(name, help)))
}

fn int_gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    add(registry, made(IntGauge::new(name, help)))
}

fn int_gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    add(registry, made(IntGaugeVec::new(Opts::new(name, help), labels)))
}

fn int_counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    add(registry, made(IntCounterVec::new(Opts::new(name, help), labels)))
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    made(registry.register(Box::new(collector.clone())));
    collector
}

/// Making or registering a metric fails only on a malformed or doubled name; ours are constants, and every test that
/// makes a [`Metrics`] would fail.
fn made<T>(outcome: prometheus::Result<T>) -> T {
    outcome.expect("metric names are well-formed and unique")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.gather()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn counts_come_out_where_they_went_in() {
        let metrics = Metrics::new(true);
        metrics.kernel_wrote(Plane::Firewall, 3);
        metrics.kernel_wrote(Plane::Firewall, 4);
        metrics.sync_failed(Plane::Sysctl);
        metrics.set_drain_queue(2);
        metrics.set_objects(Kind::Node, 5);
        assert_eq!(value(&metrics, "kube_router_kernel_writes_total{plane=\"firewall\"}"), Some(7.0));
        assert_eq!(value(&metrics, "kube_router_kernel_writes_total{plane=\"ipvs\"}"), Some(0.0));
        assert_eq!(value(&metrics, "kube_router_sync_failures_total{plane=\"sysctl\"}"), Some(1.0));
        assert_eq!(value(&metrics, "kube_router_drain_queue_length"), Some(2.0));
        assert_eq!(value(&metrics, "kube_router_objects{kind=\"Node\"}"), Some(5.0));
    }

    #[test]
    fn a_problem_that_is_solved_reads_zero() {
        let metrics = Metrics::new(true);
        metrics.set_problems(["BadIP", "BadIP", "NoPorts"]);
        assert_eq!(value(&metrics, "kube_router_problems{reason=\"BadIP\"}"), Some(2.0));
        metrics.set_problems(["NoPorts"]);
        assert_eq!(value(&metrics, "kube_router_problems{reason=\"BadIP\"}"), Some(0.0));
        assert_eq!(value(&metrics, "kube_router_problems{reason=\"NoPorts\"}"), Some(1.0));
    }

    #[test]
    fn a_failed_sync_takes_time_but_is_no_success() {
        let metrics = Metrics::new(true);
        let success = "kube_router_sync_last_success_timestamp_seconds";
        metrics.sync_done(Duration::from_millis(7), false);
        assert_eq!(value(&metrics, success), Some(0.0));
        metrics.sync_done(Duration::from_millis(7), true);
        assert!(value(&metrics, success).unwrap() > 1_600_000_000.0);
        let series = "kube_router_controller_ipvs_services_sync_time";
        assert_eq!(value(&metrics, &format!("{series}_count")), Some(2.0));
        assert_eq!(value(&metrics, &format!("{series}_bucket{{le=\"0.005\"}}")), Some(0.0));
        assert_eq!(value(&metrics, &format!("{series}_bucket{{le=\"0.01\"}}")), Some(2.0));
    }

    /// Services that fail must not hide behind policy that succeeds.
    #[test]
    fn a_policy_sync_is_a_success_where_no_services_are() {
        let success = "kube_router_sync_last_success_timestamp_seconds";
        for (proxy, is_told) in [(true, false), (false, true)] {
            let metrics = Metrics::of(proxy, true);
            metrics.policy_synced(Duration::from_millis(7), 1, 1);
            assert_eq!(value(&metrics, success).unwrap() > 0.0, is_told);
        }
    }

    #[test]
    fn a_feature_that_does_not_run_has_no_series() {
        let metrics = Metrics::new(false);
        metrics.sync_done(Duration::from_millis(7), true);
        assert_eq!(value(&metrics, "kube_router_controller_ipvs_services_sync_time_count"), None);
        assert_eq!(value(&metrics, "kube_router_controller_ipvs_metrics_export_time_count"), Some(0.0));
    }
}
