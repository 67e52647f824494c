//! Series of network policy, read from the kernel's tables when somebody asks.
//!
//! In: rows of the tables ([`PolicyRows::read`]) and the names of their numbers. Out: metric families for the exposition.
//! Only what was counted has a series, and no metric has more than [`MOST_SERIES`]: what is beyond is added up under
//! empty labels, so that sums stay right.

use std::collections::BTreeMap;

use kube_router_common::{
    Traffic,
    config::{DropKey, RuleCount},
    names,
    reason::{self, Reason},
};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Result, core::Collector, proto::MetricFamily};

use crate::{
    apply::bpf::{BpfError, Tables},
    explain::PolicyNames,
};

/// Of one metric: 250 pods with 4 reasons in 2 directions. A scrape of that has 250 KB.
pub const MOST_SERIES: usize = 2_000;

/// What is read for one scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRows {
    pub drops: Vec<(DropKey, Traffic)>,
    /// New flows by rule; only rules that decided.
    pub rules: Vec<(u32, RuleCount)>,
    /// (map, rows, rows that fit)
    pub tables: Vec<(&'static str, u64, u64)>,
}

impl PolicyRows {
    /// Reads every counter; walks the flow table to count it (a full one takes some 0.1 s).
    pub fn read(tables: &Tables) -> std::result::Result<Self, BpfError> {
        let mut rules = tables.rules.read_all()?;
        rules.retain(|(_, count)| count.flows > 0);
        let sizes = [
            (names::ENDPOINTS, tables.endpoints.read_all()?.len(), tables.endpoints.max_entries()),
            (names::PEERS, tables.peers.read_all()?.len(), tables.peers.max_entries()),
            (names::CIDRS, tables.cidrs.read_all()?.len(), tables.cidrs.max_entries()),
            (names::POLICY, tables.policy.read_all()?.len(), tables.policy.max_entries()),
            (names::FLOWS, tables.flows.read_all()?.len(), tables.flows.max_entries()),
        ];
        Ok(PolicyRows {
            drops: tables.drops.sums()?,
            rules,
            tables: sizes.map(|(map, rows, most)| (map, rows as u64, u64::from(most))).to_vec(),
        })
    }
}

/// The families, ready to be written beside others.
///
/// # Errors
/// Never for these names, which are constants; a test makes them all.
pub fn families(rows: &PolicyRows, names: &PolicyNames) -> Result<Vec<MetricFamily>> {
    let drop_labels = ["namespace", "pod", "direction", "reason"];
    let packets = counter("kube_router_policy_drops_total", "Packets that network policy refused.", &drop_labels)?;
    let bytes = counter("kube_router_policy_drop_bytes_total", "Bytes of refused packets.", &drop_labels)?;
    for (labels, sum) in drops(rows, names) {
        packets.with_label_values(&labels).inc_by(sum.packets);
        bytes.with_label_values(&labels).inc_by(sum.bytes);
    }
    let rule_labels = ["kind", "namespace", "policy", "direction", "rule"];
    let flows = counter("kube_router_policy_rule_flows_total", "New flows that a rule decided on.", &rule_labels)?;
    for (labels, count) in rules(rows, names) {
        flows.with_label_values(&labels).inc_by(count);
    }
    let entries = gauge("kube_router_policy_table_entries", "Rows of a table in the kernel.")?;
    let limit = gauge("kube_router_policy_table_limit", "Rows that fit.")?;
    for (map, rows, most) in &rows.tables {
        entries.with_label_values(&[*map]).set(i64::try_from(*rows).unwrap_or(i64::MAX));
        limit.with_label_values(&[*map]).set(i64::try_from(*most).unwrap_or(i64::MAX));
    }
    let all: [&dyn Collector; 5] = [&packets, &bytes, &flows, &entries, &limit];
    // A metric without series is none.
    let families = all.into_iter().flat_map(Collector::collect).filter(|family| !family.get_metric().is_empty());
    Ok(families.collect())
}

fn counter(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauge(name: &str, help: &str) -> Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), &["table"])
}

fn drops(rows: &PolicyRows, names: &PolicyNames) -> BTreeMap<[String; 4], Traffic> {
    let mut sums: BTreeMap<[String; 4], Traffic> = BTreeMap::new();
    let mut ordered: Vec<&(DropKey, Traffic)> = rows.drops.iter().collect();
    ordered.sort_by_key(|(key, _)| *key);
    for (key, traffic) in ordered {
        // A number from another version has no name.
        let direction = reason::Direction::of(key.direction).map_or("", reason::Direction::name);
        let reason = Reason::of(key.reason).map_or("", Reason::name);
        let pod = names.pods.get(&key.pod).filter(|_| sums.len() < MOST_SERIES);
        let (namespace, pod) = pod.map_or(("", ""), |pod| (&*pod.namespace, &*pod.name));
        let sum = sums.entry([namespace, pod, direction, reason].map(str::to_owned)).or_default();
        *sum = sum.plus(*traffic);
    }
    sums
}

fn rules(rows: &PolicyRows, names: &PolicyNames) -> BTreeMap<[String; 5], u64> {
    let mut sums: BTreeMap<[String; 5], u64> = BTreeMap::new();
    for (number, count) in &rows.rules {
        let labels = match names.rules.get(number).filter(|_| sums.len() < MOST_SERIES) {
            Some(rule) => [
                rule.kind.to_string(),
                rule.policy.namespace.to_string(),
                rule.policy.name.to_string(),
                rule.direction.name().to_owned(),
                rule.index.to_string(),
            ],
            None => Default::default(),
        };
        *sums.entry(labels).or_default() += count.flows;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::policy::Direction, explain::RuleName, objects::ObjectKey};

    fn text(rows: &PolicyRows, names: &PolicyNames) -> String {
        prometheus::TextEncoder::new().encode_to_string(&families(rows, names).unwrap()).unwrap()
    }

    fn key(pod: u32, reason: Reason) -> DropKey {
        DropKey { pod, direction: reason::Direction::Ingress as u8, reason: reason as u8, pad: 0 }
    }

    #[test]
    fn rows_become_series() {
        let rule = RuleName {
            kind: "NetworkPolicy".into(),
            policy: ObjectKey::new("web", "allow"),
            direction: Direction::Ingress,
            index: 2,
            text: "everybody".into(),
        };
        let names = PolicyNames { pods: [(7, ObjectKey::new("web", "front"))].into(), rules: [(4, rule)].into() };
        let rows = PolicyRows {
            drops: vec![
                (key(7, Reason::Denied), Traffic { packets: 3, bytes: 180 }),
                (key(9, Reason::Denied), Traffic { packets: 1, bytes: 60 }),
                (key(0, Reason::Denied), Traffic { packets: 1, bytes: 60 }),
            ],
            rules: vec![(4, RuleCount { flows: 5, bytes: 300 }), (8, RuleCount { flows: 1, bytes: 60 })],
            tables: vec![(names::FLOWS, 12, 262_144)],
        };
        let text = text(&rows, &names);
        for line in [
            "kube_router_policy_drops_total{direction=\"ingress\",namespace=\"web\",pod=\"front\",reason=\"policy\"} 3",
            "kube_router_policy_drops_total{direction=\"ingress\",namespace=\"\",pod=\"\",reason=\"policy\"} 2",
            "kube_router_policy_drop_bytes_total{direction=\"ingress\",namespace=\"web\",pod=\"front\",reason=\"policy\"} 180",
            "kube_router_policy_rule_flows_total{direction=\"ingress\",kind=\"NetworkPolicy\",namespace=\"web\",policy=\"allow\",rule=\"2\"} 5",
            "kube_router_policy_rule_flows_total{direction=\"\",kind=\"\",namespace=\"\",policy=\"\",rule=\"\"} 1",
            "kube_router_policy_table_entries{table=\"kr_flows\"} 12",
            "kube_router_policy_table_limit{table=\"kr_flows\"} 262144",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
    }

    #[test]
    fn series_are_bounded_and_sums_stay_right() {
        let many = MOST_SERIES as u32 * 2;
        let names = PolicyNames {
            pods: (1..=many).map(|n| (n, ObjectKey::new("web", format!("p{n}")))).collect(),
            ..PolicyNames::default()
        };
        let one = Traffic { packets: 1, bytes: 60 };
        let rows = PolicyRows {
            drops: (1..=many).map(|pod| (key(pod, Reason::Denied), one)).collect(),
            ..PolicyRows::default()
        };
        let sums = drops(&rows, &names);
        assert_eq!(sums.len(), MOST_SERIES + 1);
        assert_eq!(sums.values().map(|sum| sum.packets).sum::<u64>(), u64::from(many));
        assert_eq!(text(&PolicyRows::default(), &names), "");
    }
}
