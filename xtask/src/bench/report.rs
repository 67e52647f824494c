//! Goals, verdicts and the Markdown table, from the lines that the measuring program printed.

use std::fmt::Write;

use serde_json::Value;

use super::{
    goals::{self, Goal},
    plot::Curve,
};

/// Programming IPVS costs at most this share of `ipvsadm --restore`.
const COLD_SHARE: f64 = 0.5;
/// Ten times the services cost at most this many times as much: linear, with room for trees that grow deeper.
const COLD_GROWTH: f64 = 12.0;
/// One changed endpoint in the largest cluster against the smallest.
const CHANGE_GROWTH: f64 = 1.3;
/// Resident memory of the agent, at its peak.
const MEMORY_MIB: f64 = 64.0;

pub struct Report<'a> {
    lines: &'a [Value],
}

impl<'a> Report<'a> {
    pub fn new(lines: &'a [Value]) -> Self {
        Report { lines }
    }

    fn of(&self, what: &str) -> Vec<&'a Value> {
        self.lines.iter().filter(|line| line["what"] == what).collect()
    }

    /// (services, value at a JSON pointer) of every line of one kind.
    fn curve(&self, what: &str, pointer: &str) -> Vec<(f64, f64)> {
        let point = |line: &&Value| Some((line["services"].as_f64()?, line.pointer(pointer)?.as_f64()?));
        self.of(what).iter().filter_map(point).collect()
    }

    /// (services, instructions)
    pub fn curves(&self) -> Vec<Curve> {
        [
            ("ipvsadm --restore", "ipvsadm", "/ns"),
            ("agent: whole first pass", "cold", "/ns"),
            ("agent: IPVS programmed", "cold", "/planes/ipvs/apply_ns"),
            ("agent: restart, nothing to do", "restart", "/ns"),
            ("agent: one endpoint changed", "change", "/ns"),
        ]
        .map(|(name, what, pointer)| (name.to_owned(), self.curve(what, pointer)))
        .into()
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let theirs = self.curve("ipvsadm", "/ns");
        let ours = self.curve("cold", "/planes/ipvs/apply_ns");
        for ((services, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            let share = ours / theirs;
            goals.push(Goal {
                what: format!("{services} services: IPVS programmed, share of `ipvsadm --restore`"),
                goal: format!("at most {COLD_SHARE}"),
                is: format!("{share:.3}"),
                met: share <= COLD_SHARE,
            });
        }
        for pair in ours.windows(2) {
            let growth = pair[1].1 / pair[0].1 * 10.0 / (pair[1].0 / pair[0].0);
            goals.push(Goal {
                what: format!("IPVS programmed, {} to {} services, growth for ten times as many", pair[0].0, pair[1].0),
                goal: format!("at most {COLD_GROWTH}"),
                is: format!("{growth:.1}"),
                met: growth <= COLD_GROWTH,
            });
        }
        let changes = self.curve("change", "/ns");
        if let (Some(first), Some(last)) = (changes.first(), changes.last()) {
            let growth = last.1 / first.1;
            goals.push(Goal {
                what: format!("one endpoint changed, {} services against {}", last.0, first.0),
                goal: format!("at most {CHANGE_GROWTH}"),
                is: format!("{growth:.2}"),
                met: growth <= CHANGE_GROWTH,
            });
            // The measuring program refuses anything else.
            let is = "1".to_owned();
            goals.push(Goal { what: "one endpoint changed, kernel writes".into(), goal: "1".into(), is, met: true });
        }
        for line in self.of("first").into_iter().chain(self.of("restart")).filter(|line| line["pods"].is_u64()) {
            let name = format!("agent, {} services, {} pods, {}", line["services"], line["pods"], line["what"]);
            let mib = |field: &str| line[field].as_f64().unwrap_or(f64::INFINITY) / 1024.0;
            let (steady, peak) = (mib("rss_kib"), mib("peak_kib"));
            goals.push(Goal {
                what: format!("{name}: resident memory"),
                goal: format!("at most {MEMORY_MIB} MiB at the peak"),
                is: format!("{steady:.1} MiB steady, {peak:.1} MiB peak"),
                met: peak <= MEMORY_MIB,
            });
            if line["what"] == "restart" {
                let writes = line["writes"].as_u64();
                goals.push(zero(format!("{name}: kernel writes"), writes));
            }
            goals.push(zero(
                format!("{name}: kernel writes in {} s of rest", line["rest_s"]),
                line["rest_writes"].as_u64(),
            ));
        }
        goals
    }

    pub fn all_met(&self) -> bool {
        goals::all_met(&self.goals())
    }

    pub fn markdown(&self, kernel: &str) -> String {
        let mut out = format!("# What the agent costs\n\nLinux {kernel}, ten endpoints a service.\n\n");
        out += &goals::table(&self.goals());
        out += "\n## Instructions\n\nUser and kernel side together, in millions. `observe` reads the kernel, `apply` \
                writes it; the rest of a pass is compiling and planning.\n\n\
                | services | pass | all | IPVS apply | IPVS observe | addresses, routes apply | observe | sets, rules \
                apply | observe | orders |\n|---|---|---|---|---|---|---|---|---|---|\n";
        for what in ["ipvsadm", "cold", "change", "restart"] {
            for line in self.of(what).into_iter().filter(|line| line["pods"].is_null()) {
                let million = |pointer: &str| {
                    line.pointer(pointer).and_then(Value::as_f64).map(|n| format!("{:.2}", n / 1e6)).unwrap_or_default()
                };
                let planes = ["ipvs", "net", "firewall"];
                let orders: u64 =
                    planes.iter().filter_map(|p| line.pointer(&format!("/planes/{p}/orders"))?.as_u64()).sum();
                let _ = write!(out, "| {} | {} | {} |", line["services"], title(what), million("/ns"));
                for plane in planes {
                    let [apply, observe] = ["apply_ns", "observe_ns"].map(|f| million(&format!("/planes/{plane}/{f}")));
                    let _ = write!(out, " {apply} | {observe} |");
                }
                let _ = writeln!(out, " {} |", if what == "ipvsadm" { String::new() } else { orders.to_string() });
            }
        }
        let agents: Vec<_> = self.lines.iter().filter(|line| line["pods"].is_u64()).collect();
        if !agents.is_empty() {
            out += "\n## The whole agent, fed by an API server\n\nMemory in MiB; rest is 30 s in which nothing \
                    happens, after the first sync.\n\n| start | steady | of it anonymous | peak | writes | writes at \
                    rest | wake-ups at rest | CPU ms at rest |\n|---|---|---|---|---|---|---|---|\n";
            for line in agents {
                let mib = |field: &str| line[field].as_f64().unwrap_or(f64::NAN) / 1024.0;
                let (steady, anonymous, peak) = (mib("rss_kib"), mib("anonymous_kib"), mib("peak_kib"));
                let what = line["what"].as_str().unwrap_or_default();
                let [writes, rest, wakeups, cpu] =
                    ["writes", "rest_writes", "rest_wakeups", "rest_cpu_ms"].map(|field| &line[field]);
                let _ = writeln!(
                    out,
                    "| {what} | {steady:.1} | {anonymous:.1} | {peak:.1} | {writes} | {rest} | {wakeups} | {cpu} |"
                );
            }
        }
        out
    }
}

fn zero(what: String, value: Option<u64>) -> Goal {
    let is = value.map_or("unknown".to_owned(), |value| value.to_string());
    Goal { what, goal: "0".into(), is, met: value == Some(0) }
}

fn title(what: &str) -> &str {
    match what {
        "ipvsadm" => "`ipvsadm --restore`",
        "cold" => "first pass",
        "change" => "one endpoint",
        "restart" => "nothing to do",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plot::Axes, *};

    const AXES: Axes = Axes { x: "services", y: "instructions" };

    fn lines(share: f64, change: u64, peak_kib: u64) -> Vec<Value> {
        let mut lines = Vec::new();
        for services in [100_u64, 1000] {
            let ipvs = services as f64 * 10_000.0 * share;
            lines.push(serde_json::json!({"what": "ipvsadm", "services": services, "ns": services * 10_000}));
            lines.push(serde_json::json!({"what": "cold", "services": services, "ns": services * 20_000,
                "planes": {"ipvs": {"apply_ns": ipvs, "observe_ns": 1, "orders": services * 11}}}));
        }
        lines.push(serde_json::json!({"what": "change", "services": 100, "ns": 100, "planes": {}}));
        lines.push(serde_json::json!({"what": "change", "services": 1000, "ns": change, "planes": {}}));
        lines.push(serde_json::json!({"what": "first", "services": 1000, "pods": 10, "rss_kib": 1024,
            "peak_kib": peak_kib, "anonymous_kib": 512, "writes": 9, "rest_s": 30, "rest_writes": 0}));
        lines
    }

    #[test]
    fn goals_are_met_and_missed() {
        assert!(Report::new(&lines(0.4, 120, 2048)).all_met());
        for missed in [lines(0.6, 120, 2048), lines(0.4, 140, 2048), lines(0.4, 120, 100 * 1024)] {
            assert!(!Report::new(&missed).all_met());
            assert_eq!(Report::new(&missed).markdown("6.1").matches("**missed**").count().min(1), 1);
        }
    }

    #[test]
    fn curves_have_a_point_for_each_size() {
        let lines = lines(0.4, 120, 2048);
        let curves = Report::new(&lines).curves();
        assert_eq!(curves[0].1, [(100.0, 1e6), (1000.0, 1e7)]);
        assert!(super::super::plot::svg(&AXES, &curves).contains("ipvsadm --restore"));
    }
}
