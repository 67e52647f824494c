//! What people see of network policy: `monitor`, `matrix`, `dump` and `explain` as commands, beside running agents and
//! real traffic, allowed and refused.

mod common;

use std::{path::Path, process::Command};

use common::netpol::started;
use kube_router::{
    desired::policy::Direction,
    observe::monitor::{Line, Seen, SeenKind},
};
use kube_router_tests::{
    agent::{self, Agent},
    netpol::{
        Change::Apply,
        Cluster,
        plan::{self, PODS, PORTS},
        probe::{Probe, ask_everywhere},
    },
    probe::{Kept, Transport},
    process::{Process, eventually},
};
use serde_json::{Value, json};

/// x/a answers namespace y on port 80, and nobody else.
const WEB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: web}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {ns: y}}}]
    ports: [{port: 80}]";

/// y/c sends to namespace x only, and one address of z.
const OUT: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: y, name: out}
spec:
  podSelector: {matchLabels: {pod: c}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {ns: x}}}]
  - to: [{ipBlock: {cidr: 10.246.2.31/32}}]
    ports: [{port: 80, endPort: 81, protocol: UDP}]";

const WEB_RULE: &str = "NetworkPolicy x/web ingress[0]";

/// What a command wrote, and its exit status.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs it as somebody on the agent's node would.
fn run(agent: &Agent, arguments: &[&str]) -> Ran {
    let socket = format!("--socket={}", agent.socket().display());
    let mut command = Command::new(agent::program().unwrap());
    command.args(arguments).arg(socket);
    let done = agent.ns().run(|| command.output()).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: done.status.code().unwrap_or(-1), out: text(&done.stdout), err: text(&done.stderr) }
}

/// Its standard output; it must work.
fn shown(agent: &Agent, arguments: &[&str]) -> String {
    let ran = run(agent, arguments);
    assert_eq!((ran.code, &*ran.err), (0, ""), "{arguments:?}: {}", ran.out);
    ran.out
}

fn maps(cluster: &Cluster, node: usize) -> String {
    format!("--maps={}", cluster.pins[node].path().display())
}

fn monitor(agent: &Agent, arguments: &[&str]) -> Process {
    let mut command = Command::new(agent::program().unwrap());
    command.arg("monitor").args(arguments).arg(format!("--socket={}", agent.socket().display()));
    agent.ns().spawn(&format!("monitor {}", arguments.join(" ")), command).unwrap()
}

fn lines(monitor: &Process) -> Vec<String> {
    monitor.log()
}

/// One question; did it get an answer?
fn passes(cluster: &Cluster, from: &str, to: &str, port: usize) -> bool {
    let to = plan::socket(plan::pod(to).unwrap(), port, true);
    cluster.ask(from, PORTS[port].0, to).unwrap().is_ok()
}

fn seen(line: &str) -> Seen {
    match serde_json::from_str(line) {
        Ok(Line::Seen(seen)) => *seen,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn the_monitor_names_pods_and_rules() {
    let mut cluster = started("netpolm", &[]);
    cluster.change(&[Apply(WEB)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("drops.pcapng");
    let agent = &cluster.agents[0];
    let (all, data) = (monitor(agent, &[]), monitor(agent, &["--json"]));
    let drops = monitor(agent, &["--drops", &format!("--pcap={}", file.display())]);
    let mine = monitor(agent, &["--pod=z/a"]);
    // A monitor that has just started has not seen what was before, so there is traffic until each has seen some.
    let refused = "-> x/a 10.246.1.11:80 tcp, no rule allows it";
    let datagram = "-> x/a 10.246.1.11:81 udp, no rule allows it";
    let own = "-> y/a 10.246.1.21:81 tcp, not isolated";
    let is_there = |monitor: &Process, text: &str| lines(monitor).iter().any(|line| line.contains(text));
    eventually("every monitor has seen traffic", cluster.patience.change, || {
        assert!(passes(&cluster, "y/b", "x/a", 0) && !passes(&cluster, "z/a", "x/a", 0));
        assert!(!passes(&cluster, "y/b", "x/a", 3) && passes(&cluster, "z/b", "y/a", 1));
        assert!(passes(&cluster, "x/a", "y/a", 1));
        let in_data = ["\"kind\":\"flow\"", "\"kind\":\"drop\""].iter().all(|part| is_there(&data, part));
        let in_all = [WEB_RULE, refused, datagram, own].iter().all(|part| is_there(&all, part));
        in_data && in_all && [refused, datagram].iter().all(|part| is_there(&drops, part)) && is_there(&mine, refused)
    })
    .unwrap();

    let find = |part: &str| lines(&all).into_iter().find(|line| line.contains(part)).unwrap_or_default();
    let line = find(WEB_RULE);
    assert!(line.contains(" flow ingress of x/a: y/b 10.246.2.22:") && line.contains("-> x/a 10.246.1.11:80 tcp, by "));
    assert!(find(refused).contains(" drop ingress of x/a: z/a 10.246.2.31:"), "{}", find(refused));
    assert!(find(datagram).contains(" drop ingress of x/a: y/b 10.246.2.22:"), "{}", find(datagram));
    assert!(find(own).contains(" flow egress of x/a: x/a 10.246.1.11:"), "{}", find(own));
    assert!(!lines(&all).iter().any(|line| line.contains("of z/b: ")), "no policy is about it, so nothing is judged");

    for line in lines(&data) {
        let seen = seen(&line);
        let rule = seen.rule.as_ref().map(ToString::to_string);
        assert_eq!(seen.allowed, seen.kind == SeenKind::Flow, "{line}");
        let of_web = seen.pod.as_ref().is_some_and(|pod| pod.to_string() == "x/a");
        if of_web && seen.direction == Direction::Ingress && seen.protocol == 6 {
            assert_eq!(rule.as_deref(), seen.allowed.then_some(WEB_RULE), "{line}");
        }
    }
    assert!(lines(&drops).iter().all(|line| line.contains(" drop ")), "{:#?}", lines(&drops));
    assert!(lines(&mine).iter().all(|line| line.contains("z/a 10.246.2.31:")), "{:#?}", lines(&mine));
    read_back(&file, drops);
}

/// The file says of each packet what the monitor said in its line.
fn read_back(file: &Path, mut drops: Process) {
    drops.terminate(std::time::Duration::from_secs(10)).unwrap();
    let said = lines(&drops).len();
    let read = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(file).output().ok()?;
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let text = read("tcpdump", &["-nn", "-r"]).expect("tcpdump, which `cargo xtask setup` installs");
    let packets: Vec<&str> = text.lines().filter(|line| line.contains(" > ")).collect();
    // It may have been ended between the two.
    assert!(packets.len() == said || packets.len() == said + 1, "{said}: {text}");
    let syn = |line: &&&str| line.contains("10.246.2.31.") && line.contains("> 10.246.1.11.80: Flags [S]");
    assert!(packets.iter().any(|line| syn(&line)), "{text}");
    assert!(packets.iter().any(|line| line.contains("> 10.246.1.11.81: UDP")), "{text}");
    // tshark knows comments; it is not everywhere.
    if let Some(text) = read("tshark", &["-T", "fields", "-e", "frame.comment", "-r"]) {
        assert!(text.contains("ingress of x/a") && text.contains("no rule allows it"), "{text}");
    }
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn the_matrix_is_what_probes_say() {
    let mut cluster = started("netpolx", &[]);
    cluster.objects.others.push(json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "fence"},
        "spec": {
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {"matchLabels": {"ns": "z"}}},
            "ingress": [{
                "action": "Deny", "from": [{"namespaces": {"matchLabels": {"ns": "y"}}}],
                "protocols": [{"tcp": {"destinationPort": {"number": 81}}}],
            }],
            "egress": [{"action": "Deny", "to": [{"networks": ["198.18.0.0/15"]}]}],
        },
    }));
    cluster.change(&[Apply(WEB), Apply(OUT)]).unwrap();
    let text = cluster.agents.iter().map(|agent| shown(agent, &["matrix", "-o", "json"])).collect::<Vec<_>>();
    assert_eq!(text[0], text[1], "both agents know the same");
    let matrix: Value = serde_json::from_str(&text[0]).unwrap();

    let (mut questions, mut asked) = (Vec::new(), Vec::new());
    for from in 0..PODS.len() {
        let others = (0..PODS.len()).filter(|to| *to != from);
        let all: Vec<_> = others.flat_map(|to| cluster.ports.iter().map(move |port| (from, to, *port))).collect();
        let probe = |(_, to, port): &(usize, usize, usize)| Probe::new(PORTS[*port].0, plan::socket(*to, *port, true));
        questions.push((cluster.pod(from).unwrap().ns, all.iter().map(probe).collect()));
        asked.extend(all);
    }
    let outcomes = ask_everywhere(&questions, cluster.patience.answer);
    let mut refused = 0;
    for ((from, to, port), outcome) in asked.into_iter().zip(outcomes.into_iter().flatten()) {
        let said = cell(&matrix, PODS[from], PODS[to], port);
        assert_eq!(said, outcome.is_ok(), "{} -> {} {:?}: {outcome:?}", PODS[from], PODS[to], PORTS[port]);
        refused += usize::from(!said);
    }
    assert!(refused > 40, "{refused}");

    let table = shown(&cluster.agents[0], &["matrix"]);
    for row in ["x/a", "y/c", "198.18.0.0/15", "outside", "all but tcp/81 (serve-81-tcp), icmp"] {
        assert!(table.contains(row), "{row} is not in\n{table}");
    }
    let one = shown(&cluster.agents[0], &["matrix", "--namespace=y"]);
    assert!(one.contains("y/c") && one.len() < table.len(), "{one}");
    let page = shown(&cluster.agents[0], &["matrix", "-o", "html"]);
    let data = page.split_once("id=\"data\">").and_then(|(_, rest)| rest.split_once("</script>")).unwrap().0;
    assert_eq!(serde_json::from_str::<Value>(data).unwrap(), matrix);
}

/// What the matrix says of a pair and a port.
fn cell(matrix: &Value, from: &str, to: &str, port: usize) -> bool {
    let list = |field: &str| matrix[field].as_array().unwrap();
    let place = |pod: &str| {
        let is_there = |party: &Value| party["pods"].as_array().unwrap().iter().any(|name| name == pod);
        list("parties").iter().position(is_there).unwrap_or_else(|| panic!("{pod} is in no row"))
    };
    let outcome = &list("outcomes")[matrix["cells"][place(from)][place(to)].as_u64().unwrap() as usize];
    let (transport, number) = PORTS[port];
    let wanted = format!("{}/{number}", transport.to_string().to_lowercase());
    let ports = outcome["ports"].as_array().unwrap();
    let found = ports.iter().find(|port| port["port"].as_str().unwrap().split(' ').next() == Some(&*wanted));
    found.unwrap_or_else(|| panic!("no {wanted} in {outcome}"))["allowed"].as_bool().unwrap()
}

#[test]
#[ignore = "needs root and BPF: cargo xtask test --tier 3"]
fn the_kernel_s_tables_are_told_with_names_and_without() {
    let mut cluster = started("netpolk", &[]);
    cluster.change(&[Apply(WEB)]).unwrap();
    let maps = maps(&cluster, 0);
    let to = plan::socket(plan::pod("x/a").unwrap(), 0, true);
    let client = cluster.named("y/b").unwrap().ns;
    let mut kept = client.run(|| Kept::open(Transport::Tcp, to, cluster.patience.answer)).unwrap();
    kept.ask().unwrap();

    let agent = &cluster.agents[0];
    let of = |what: &str, parts: &[&str]| {
        let text = shown(agent, &["dump", what, &maps]);
        let found = text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line with {parts:?} in\n{text}");
        let rows: Vec<Value> = serde_json::from_str(&shown(agent, &["dump", what, &maps, "-o", "json"])).unwrap();
        assert_eq!(rows.len(), text.lines().count() - 1, "one object for each line");
    };
    of("endpoints", &["x/a ", " 10.246.1.11 ", "group ", "open"]);
    of("endpoints", &["y/c ", " fd00:10:246:1::23 ", "open     open"]);
    of("policy", &["ingress", "x/a", "10.246.1.21", "tcp/80", "allow", WEB_RULE]);
    of("flows", &["x/a ", "10.246.1.11:80", "10.246.2.22:", "tcp", "peer", "established", WEB_RULE]);

    let explain = |from: &str| run(agent, &["explain", "--from", from, "--to=x/a", "--port=tcp/80", &maps]);
    let (allowed, denied) = (explain("y/b"), explain("z/a"));
    assert_eq!((allowed.code, denied.code), (0, 1), "{}{}", allowed.out, denied.out);
    assert!(allowed.out.contains(&format!("ingress of x/a: allowed by {WEB_RULE}")), "{}", allowed.out);
    assert!(denied.out.contains("ingress of x/a: denied, isolated by NetworkPolicy x/web"), "{}", denied.out);
    for told in [allowed, denied] {
        assert!(told.out.contains("kernel: agrees, "), "{}", told.out);
    }

    cluster.agents[0].stop(cluster.patience.change).unwrap();
    let agent = &cluster.agents[0];
    let policy = run(agent, &["dump", "policy", &maps]);
    assert_eq!(policy.code, 0, "{}", policy.err);
    assert!(policy.out.contains(" allow    rule ") && policy.out.contains("pod "), "{}", policy.out);
    assert!(policy.err.starts_with("numbers instead of names: no agent answers on "), "{}", policy.err);
    kept.ask().unwrap();
    nobody_home(agent);
}

/// Without an agent every command says what to do.
fn nobody_home(agent: &Agent) {
    let here = "is kube-router running on this node? Ask from inside its pod (kubectl exec) or on the node itself";
    let files = "Without an agent objects are read from files: --manifests=DIR or --recording=FILE";
    let cases: [(&[&str], i32, &[&str]); 6] = [
        (&["monitor"], 1, &[here]),
        (&["matrix"], 1, &[here, files]),
        (&["explain", "--from=x/a", "--to=y/b"], 2, &[here, files]),
        (&["dump", "services"], 1, &[here]),
        (&["dump", "problems"], 1, &[here]),
        (&["dump", "flows", "--maps=/sys/fs/bpf/kr-test-nobody"], 1, &["no tables of network policy", "--maps names"]),
    ];
    for (arguments, code, texts) in cases {
        let ran = run(agent, arguments);
        assert_eq!((ran.code, &*ran.out), (code, ""), "{arguments:?}: {}", ran.err);
        for text in texts {
            assert!(ran.err.contains(text), "{arguments:?}: {}", ran.err);
        }
    }
}
