//! A scrape: the original's series, the documented ones, and what happens when an owner does not answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use super::*;

/// The original's series with only the proxy running, as `name type`, without those of the Go runtime.
const ORIGINAL: &str = include_str!("../testdata/original-proxy-only.txt");

/// (name, type, label names) of every family in a scrape.
fn families(text: &str) -> BTreeSet<(String, String, BTreeSet<String>)> {
    let mut families: BTreeMap<&str, (&str, BTreeSet<String>)> = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            current = name;
            assert!(families.insert(name, (kind, BTreeSet::new())).is_none(), "{name} twice");
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_string()));
            families.get_mut(current).unwrap().1.extend(labels.filter(|label| label != "le"));
        }
    }
    families.into_iter().map(|(name, (kind, labels))| (name.into(), kind.into(), labels)).collect()
}

#[test]
fn a_scrape_has_the_originals_names_and_the_documented_ones_and_no_others() {
    let mut agent = Agent::start(Stats::Counts);
    agent.answer(vec![row("plain", "10.96.1.1", 80)]);
    agent.pulse.watch(Kind::Service);
    agent.metrics.set_problems(["BadIP"]);
    agent.metrics.set_objects(Kind::Service, 1);
    let (status, content_type, text) = get(agent.metrics_at, "/metrics");
    assert_eq!((status, content_type.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let families = families(&text);

    let ours: BTreeSet<String> = families.iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
    for original in ORIGINAL.lines() {
        assert!(ours.contains(original), "missing: {original}");
    }
    let documented: BTreeSet<_> = documented().into_iter().collect();
    assert_eq!(documented, families);
    assert!(text.contains(
        "\nkube_router_service_total_connections{port=\"80\",protocol=\"tcp\",service_name=\"plain\",\
         service_vip=\"10.96.1.1\",svc_namespace=\"web\"} 42\n"
    ));
    assert!(text.contains("\nkube_router_controller_ipvs_services 2\n"));
    assert!(text.contains("\nkube_router_watch_complete{kind=\"Service\"} 0\n"));
    assert!(!text.contains("192.0.2.1"));
    // The next scrape has seen this one.
    let (_, _, text) = get(agent.metrics_at, "/metrics");
    assert!(text.contains("\npromhttp_metric_handler_requests_total{code=\"200\"} 1\n"));
    assert!(text.contains("\nkube_router_controller_ipvs_metrics_export_time_count 2\n"));
}

/// The tables of docs/metrics.md: | `name` | type | `label`, `label` | meaning |
fn documented() -> Vec<(String, String, BTreeSet<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let cells = |line: &str| line.split('|').map(|cell| cell.replace('`', "").trim().to_string()).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(cells);
    rows.map(|row| {
        let labels = row[3].split(", ").filter(|label| !label.is_empty()).map(String::from).collect();
        (row[1].clone(), row[2].clone(), labels)
    })
    .collect()
}

#[test]
fn a_scrape_goes_without_what_it_cannot_get() {
    // The loop does not answer: the scrape waits for it, then gives the rest; health is not delayed meanwhile.
    let agent = Agent::start(Stats::Counts);
    let at = agent.metrics_at;
    let scrape = std::thread::spawn(move || get(at, "/metrics"));
    sleep(Duration::from_millis(300));
    let start = Instant::now();
    assert_eq!(get(agent.health, "/healthz").0, 200);
    // On a machine that is busy enough the scrape may be through.
    assert!(!scrape.is_finished() || start.elapsed() > Duration::from_secs(1), "health does not wait for the scrape");
    let (status, _, text) = scrape.join().unwrap();
    assert_eq!(status, 200);
    assert!(text.contains("\nkube_router_scrape_failures_total{part=\"services\"} 1\n"));
    assert!(text.contains("\nprocess_open_fds ") && !text.contains("kube_router_service_"));

    // The kernel cannot be read.
    let mut agent = Agent::start(Stats::Fails);
    agent.answer(vec![row("plain", "10.96.1.1", 80)]);
    let (status, _, text) = get(agent.metrics_at, "/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("\nkube_router_scrape_failures_total{part=\"kernel\"} 1\n"));
    assert!(!text.contains("kube_router_controller_ipvs_services "));

    // Reading the kernel panics: this scrape is lost, the server is not.
    let mut agent = Agent::start(Stats::Panics);
    agent.answer(Vec::new());
    assert_eq!(get(agent.metrics_at, "/metrics").0, 500);
    assert_eq!(get(agent.metrics_at, "/metrics").0, 500);
    assert_eq!(get(agent.health, "/healthz").0, 200);
}
