//! Goals, verdicts and tables of network policy, from the lines that the measuring program printed.

use std::fmt::Write;

use serde_json::Value;

use super::{
    goals::{self, Goal},
    plot::Curve,
};

/// A larger number of policies, of policies on a pod, of pods in front of it: what a packet may cost of what it cost.
const GROWTH: f64 = 1.10;
/// An established flow through both hooks, of plain routed forwarding.
const ESTABLISHED: f64 = 1.35;
/// A new flow with a hundred times the rows.
const LOOKUPS: f64 = 1.7;
const COLD_MS: f64 = 1_000.0;
const CHANGE_MS: f64 = 1.0;
const MEMORY_MB: f64 = 150.0;
const VERDICT_MS: f64 = 10.0;

/// The event whose writes must not depend on the size of the cluster.
const NAMED: &str = "a peer that two policies name gets another label";
/// Events of a pod's labels.
const LABELS: [&str; 4] = [NAMED, "a peer gets a label", "a peer loses it", "a pod of ours gets a label"];
const KINDS: [(&str, &str); 2] = [("established flow", "/established_ns"), ("new flow", "/new_ns")];
const JUDGES: [(&str, &str); 3] =
    [("ours", "kube-router"), ("iptables-nft", "original, nft"), ("iptables-legacy", "original, legacy")];

pub struct Report<'a> {
    lines: &'a [Value],
}

impl<'a> Report<'a> {
    pub fn new(lines: &'a [Value]) -> Self {
        Report { lines }
    }

    fn of(&self, what: &str) -> impl Iterator<Item = &'a Value> {
        self.lines.iter().filter(move |line| line["what"] == what)
    }

    fn paths(&self, judge: &str) -> impl Iterator<Item = &'a Value> {
        self.of("path").filter(move |line| line["judge"] == judge)
    }

    /// What our programs cost in the case for which all of this holds.
    fn ours(&self, pointer: &str, case: &[(&str, Value)]) -> Option<f64> {
        let fits = |line: &&Value| case.iter().all(|(field, value)| line[*field] == *value);
        self.paths("ours").find(fits)?.pointer(pointer)?.as_f64()
    }

    pub fn goals(&self) -> Vec<Goal> {
        let mut goals = self.packets();
        goals.extend(self.of("lookups").map(|line| {
            let what = format!("new flow, {} rows against {}, random peers, real time", line["many"], line["few"]);
            Goal::at_most(what, LOOKUPS, line["ratio"].as_f64(), "")
        }));
        goals.extend(self.changes());
        for line in self.of("memory") {
            let megabytes = |field: &str| line[field].as_f64().map(|kib| kib * 1024.0 / 1e6);
            let what = format!("agent with {} policies, {} pods: resident", line["policies"], line["pods"]);
            goals.push(Goal::at_most(what, MEMORY_MB, megabytes("rss_kib"), "MB"));
        }
        for line in self.of("verdict") {
            let (to, changes, policies) = (text(line, "to"), &line["changes"], &line["policies"]);
            let what = format!("a policy {to}: change to verdict, median of {changes}, {policies} policies");
            goals.push(Goal::at_most(what, VERDICT_MS, line["median_ms"].as_f64(), "ms"));
        }
        goals
    }

    /// What `--once` can tell.
    pub fn once(&self) -> Vec<Goal> {
        vec![self.hooks()]
    }

    fn hooks(&self) -> Goal {
        let plain = self.paths("plain").find_map(|line| line["established_ns"].as_f64());
        let one = [("policies", 1.into()), ("neighbours", 0.into()), ("cluster", Value::Null)];
        let ratio = self.ours(KINDS[0].1, &one).zip(plain).map(|(ours, plain)| ours / plain);
        Goal::at_most("established flow, both hooks, against plain forwarding", ESTABLISHED, ratio, "")
    }

    fn packets(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let (none, of) = (Value::Null, |number: u64| Value::from(number));
        for (kind, pointer) in KINDS {
            let alone = |policies| {
                self.ours(pointer, &[("policies", of(policies)), ("neighbours", of(0)), ("cluster", none.clone())])
            };
            let ratio = |larger: Option<f64>, smaller: Option<f64>| Some(larger? / smaller?);
            let large = self.ours(pointer, &[("cluster", of(10_000))]);
            goals.push(Goal::at_most(format!("{kind}, 10000 policies against 1"), GROWTH, ratio(large, alone(1)), ""));
            for policies in [10, 100] {
                let what = format!("{kind}, {policies} policies on the pods against 1");
                goals.push(Goal::at_most(what, GROWTH, ratio(alone(policies), alone(1)), ""));
            }
            let crowd = |last: bool| self.ours(pointer, &[("neighbours", of(98)), ("last", last.into())]);
            let what = format!("{kind}, last of 100 pods against the first");
            goals.push(Goal::at_most(what, GROWTH, ratio(crowd(true), crowd(false)), ""));
            if kind == KINDS[0].0 {
                goals.push(self.hooks());
            }
        }
        goals
    }

    fn changes(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let largest = self.of("cold").filter_map(|line| line["policies"].as_u64()).max();
        for line in self.of("cold").filter(|line| line["policies"].as_u64() == largest) {
            let what = format!("cold compile, {} policies, {} pods", line["policies"], line["pods"]);
            goals.push(Goal::at_most(what, COLD_MS, line["compile_ns"].as_f64().map(|ns| ns / 1e6), "ms"));
        }
        let is_label = |line: &&Value| LABELS.iter().any(|event| line["event"] == **event);
        for line in self.of("change").filter(|line| line["policies"].as_u64() == largest).filter(is_label) {
            let what = format!("{}, {} policies: median", text(line, "event"), line["policies"]);
            goals.push(Goal::at_most(what, CHANGE_MS, line["median_ns"].as_f64().map(|ns| ns / 1e6), "ms"));
        }
        let named: Vec<&Value> = self.of("change").filter(|line| line["event"] == NAMED).collect();
        if let Some(first) = named.first() {
            let list = |field: &str| named.iter().map(|line| line[field].to_string()).collect::<Vec<_>>().join(", ");
            goals.push(Goal {
                what: format!("{NAMED}: map writes with {} policies", list("policies")),
                goal: "the same".into(),
                is: list("orders"),
                met: named.iter().all(|line| line["orders"] == first["orders"]),
            });
        }
        goals
    }

    pub fn curves(&self) -> Vec<Curve> {
        let point = |line: &Value, pointer: &str| Some((line["policies"].as_f64()?, line.pointer(pointer)?.as_f64()?));
        let alone = |line: &&Value| line["cluster"].is_null() && line["neighbours"] == 0;
        let mut curves = Vec::new();
        // Nobody judges, so it costs the same whatever the policies.
        let plain = self.paths("plain").find_map(|line| line["established_ns"].as_f64());
        curves.push(("plain forwarding".to_owned(), [1.0, 100.0].into_iter().zip(plain.into_iter().cycle()).collect()));
        for (judge, name) in JUDGES {
            for (kind, pointer) in KINDS {
                let points = self.paths(judge).filter(alone).filter_map(|line| point(line, pointer)).collect();
                curves.push((format!("{name}: {kind}"), points));
            }
        }
        curves
    }

    pub fn markdown(&self, kernel: &str) -> String {
        let mut out = format!("# What network policy costs\n\n{}", goals::table(&self.goals()));
        let _ = write!(
            out,
            "\n## A packet's way\n\nInstructions a packet, Linux {kernel}: out of a pod, routed by its node, into another \
             pod of it, with the generator and both veth pairs. Plain forwarding, with neither programs nor rules nor \
             connection tracking: {}.\n\n| |",
            self.paths("plain").find_map(|line| line["established_ns"].as_f64()).map_or("unknown".into(), thousands)
        );
        for (_, name) in JUDGES {
            let _ = write!(out, " {name}: established | new |");
        }
        out += "\n|---|---|---|---|---|---|---|\n";
        for line in self.paths("ours") {
            let case = text(line, "case");
            let _ = write!(out, "| {case} |");
            for (judge, _) in JUDGES {
                let same = self.paths(judge).find(|line| line["case"] == case);
                for (_, pointer) in KINDS {
                    let cost = same.and_then(|line| line.pointer(pointer)?.as_f64());
                    let _ = write!(out, " {} |", cost.map(thousands).unwrap_or_default());
                }
            }
            out += "\n";
        }
        out += "\n## A change\n\nThe compiler and its plan; writes are the most that one event led to.\n\n\
                | event | policies | median | worst | writes |\n|---|---|---|---|---|\n";
        for line in self.of("change") {
            let ms = |field: &str| line[field].as_f64().map(|ns| format!("{:.3} ms", ns / 1e6)).unwrap_or_default();
            let (event, median, worst) = (text(line, "event"), ms("median_ns"), ms("worst_ns"));
            let _ = writeln!(out, "| {event} | {} | {median} | {worst} | {} |", line["policies"], line["orders"]);
        }
        out +=
            "\n| cold | pods | of them ours | compiled | planned | rows | prefixes |\n|---|---|---|---|---|---|---|\n";
        for line in self.of("cold") {
            let ms = |field: &str| line[field].as_f64().map(|ns| format!("{:.0} ms", ns / 1e6)).unwrap_or_default();
            let (compiled, planned) = (ms("compile_ns"), ms("plan_ns"));
            let [policies, pods, local, rows, prefixes] =
                ["policies", "pods", "local", "rows", "prefixes"].map(|f| &line[f]);
            let _ = writeln!(
                out,
                "| {policies} policies | {pods} | {local} | {compiled} | {planned} | {rows} | {prefixes} |"
            );
        }
        for line in self.of("memory") {
            let mb = |field: &str| line[field].as_f64().map_or(f64::NAN, |kib| kib * 1024.0 / 1e6);
            let (rss, peak, anonymous) = (mb("rss_kib"), mb("peak_kib"), mb("anonymous_kib"));
            let _ = writeln!(
                out,
                "\nThe whole agent, fed with {} policies and {} pods from manifests: {rss:.0} MB resident, of it \
                 {anonymous:.0} MB anonymous; {peak:.0} MB at the peak, while the manifests are parsed.",
                line["policies"], line["pods"]
            );
        }
        for line in self.of("verdict") {
            let _ = writeln!(
                out,
                "\nFrom the rename of a manifest until packets fare otherwise, when a policy {}: median {:.1} ms, worst \
                 {:.1} ms of {}.",
                text(line, "to"),
                line["median_ms"].as_f64().unwrap_or(f64::NAN),
                line["worst_ms"].as_f64().unwrap_or(f64::NAN),
                line["changes"]
            );
        }
        for line in self.of("lookups") {
            let _ = writeln!(
                out,
                "\nA new flow from a random peer, a test run on this machine without the program around it: {} ns with {} \
                 rows, {} ns with {}.",
                line["few_ns"], line["few"], line["many_ns"], line["many"]
            );
        }
        out
    }
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(judge: &str, policies: u64, neighbours: u64, last: bool, cluster: Option<u64>, cost: f64) -> Value {
        json!({"what": "path", "judge": judge, "case": format!("{policies} {neighbours} {last} {cluster:?}"),
            "policies": policies, "neighbours": neighbours, "last": last, "cluster": cluster,
            "established_ns": cost, "new_ns": 2.0 * cost})
    }

    /// Everything as it should be, but for one line.
    fn lines(other: Option<Value>) -> Vec<Value> {
        let mut lines = vec![path("plain", 1, 0, false, None, 1000.0)];
        for policies in [1, 10, 100] {
            lines.push(path("ours", policies, 0, false, None, 1300.0));
            lines.push(path("iptables-nft", policies, 0, false, None, 1_000_000.0));
        }
        lines.push(path("ours", 1, 98, false, None, 1300.0));
        lines.push(path("ours", 1, 98, true, None, 1300.0));
        lines.push(path("ours", 1, 0, false, Some(10_000), 1310.0));
        lines.push(json!({"what": "lookups", "few": 1, "many": 100, "ratio": 1.5, "few_ns": 1, "many_ns": 2}));
        for policies in [100, 10_000] {
            lines.push(json!({"what": "cold", "policies": policies, "pods": 10, "compile_ns": 5e8}));
            lines.push(json!({"what": "change", "policies": policies, "event": NAMED, "median_ns": 10, "orders": 3}));
        }
        lines.push(json!({"what": "memory", "policies": 1, "pods": 2, "rss_kib": 100_000, "peak_kib": 200_000}));
        lines.push(json!({"what": "verdict", "policies": 1, "to": "allows", "changes": 30, "median_ms": 5.0}));
        let same =
            |a: &Value, b: &Value| ["what", "judge", "case", "policies"].iter().all(|field| a[*field] == b[*field]);
        if let Some(other) = other {
            let at = lines.iter().position(|line| same(line, &other)).expect("a line of that sort");
            lines[at] = other;
        }
        lines
    }

    #[test]
    fn every_goal_can_be_missed() {
        let fine = lines(None);
        assert!(goals::all_met(&Report::new(&fine).goals()), "{}", Report::new(&fine).markdown("6.1"));
        let missed = [
            (path("ours", 1, 0, false, Some(10_000), 1500.0), 2),
            (path("ours", 100, 0, false, None, 1500.0), 2),
            (path("ours", 1, 98, true, None, 1500.0), 2),
            (path("plain", 1, 0, false, None, 900.0), 1),
            (json!({"what": "lookups", "few": 1, "many": 100, "ratio": 1.8}), 1),
            (json!({"what": "cold", "policies": 10_000, "compile_ns": 2e9}), 1),
            (json!({"what": "change", "policies": 10_000, "event": NAMED, "median_ns": 2e6, "orders": 3}), 1),
            (json!({"what": "change", "policies": 10_000, "event": NAMED, "median_ns": 10, "orders": 4}), 1),
            (json!({"what": "memory", "policies": 1, "rss_kib": 160_000}), 1),
            (json!({"what": "verdict", "policies": 1, "to": "allows", "median_ms": 12.0}), 1),
            (json!({"what": "verdict", "policies": 1, "to": "allows"}), 1),
        ];
        for (line, count) in missed {
            let lines = lines(Some(line.clone()));
            let text = Report::new(&lines).markdown("6.1");
            assert_eq!(text.matches("**missed**").count(), count, "{line}\n{text}");
        }
    }

    #[test]
    fn the_original_stands_beside_us() {
        let lines = lines(None);
        let report = Report::new(&lines);
        let row = "| 10 0 false None | 1,300 | 2,600 | 1,000,000 | 2,000,000 |  |  |";
        assert!(report.markdown("6.1").contains(row), "{}", report.markdown("6.1"));
        let curves = report.curves();
        assert_eq!(curves[0].1, [(1.0, 1000.0), (100.0, 1000.0)]);
        assert_eq!(curves[1].1, [(1.0, 1300.0), (10.0, 1300.0), (100.0, 1300.0)]);
    }
}
