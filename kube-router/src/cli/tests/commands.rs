//! Which command a line becomes, and how functions that are not there yet are answered.

use super::*;
use crate::{
    cli::{
        OutputFormat, dump,
        flags::TABLE,
        later::Need,
        logging::Verbosity,
        look::{LookCommand, MonitorWish, Objects, Output},
    },
    explain::Question,
};

const PROXY: &str = "--run-router=false --run-firewall=false";

#[test]
fn version_and_help() {
    let Command::Version(line) = read("--version").unwrap().command else { panic!() };
    assert!(line.starts_with("Running kube-router version "), "{line}");
    assert!(line.contains(", rustc 1."), "{line}");
    for line in [
        "-h",
        "--help",
        "--help --version",
        "plan -h",
        "dump --help",
        "replay -h",
        "explain -h",
        "matrix --help",
        "monitor -h",
    ] {
        let Command::Help(text) = read(line).unwrap().command else { panic!("{line}") };
        assert!(text.starts_with("Usage of kube-router"), "{text}");
    }
    assert!(matches!(read("--help=false --run-firewall=false").unwrap().command, Command::Run(_)));
}

#[test]
fn subcommands() {
    let Command::Plan { config, output } =
        read_in("plan --manifests=/m --hostname-override=n1 -o json", &env(&[]), &facts()).unwrap().command
    else {
        panic!()
    };
    assert_eq!((&*config.node_name, output), ("n1", OutputFormat::Json));
    for (line, expected) in [
        ("dump services", (dump::What::Services, "/run/kube-router/kube-router.sock", Output::Text)),
        ("dump --socket=/a --socket=/s services -ojson", (dump::What::Services, "/s", Output::Json)),
        ("dump problems -o json", (dump::What::Problems, "/run/kube-router/kube-router.sock", Output::Json)),
        ("dump policy", (dump::What::Policy, "/run/kube-router/kube-router.sock", Output::Text)),
    ] {
        let LookCommand::Dump { what, socket, output, .. } = look(line) else { panic!("{line}") };
        assert_eq!((what, socket.to_str().unwrap(), output), expected, "{line}");
    }
    let Command::Replay { file, config } =
        read_in("replay --masquerade-all events.jsonl", &env(&[]), &facts()).unwrap().command
    else {
        panic!()
    };
    assert_eq!(file.to_str(), Some("events.jsonl"));
    assert!(config.proxy.masquerade_all);
    for (line, code) in [
        ("dump", 2),
        ("dump routes", 2),
        ("dump services extra", 2),
        ("dump problems services", 2),
        ("dump services -o xml", 2),
        ("dump services --masquerade-all", 2),
        ("plan extra --manifests=/m", 1),
        ("plan --manifests=/m -o xml", 1),
        ("replay", 1),
        ("replay a b", 1),
        // Only the first argument names a command.
        ("--run-firewall=false plan", 1),
        // -o belongs to plan and dump.
        ("-o json", 2),
    ] {
        assert_eq!(refused(line).0, code, "{line}");
    }
    // Without manifests and outside a cluster there is nothing to plan from.
    assert_eq!(read_in("plan", &env(&[]), &facts()).unwrap_err().exit_code(), 1);
}

fn look(line: &str) -> LookCommand {
    match read_in(line, &env(&[]), &Facts { uid: 65534, ..facts() }).unwrap().command {
        Command::Look(command) => command,
        other => panic!("{line}: {other:?}"),
    }
}

/// Nobody needs to be root for them, where there is no agent to ask.
#[test]
fn commands_that_look_at_policy() {
    let agent = || Objects::Agent("/run/kube-router/kube-router.sock".into());
    let maps = || "/sys/fs/bpf/kube-router".into();
    let question =
        |port: Option<&str>| Question { from: "a/b".into(), to: "10.1.0.1".into(), port: port.map(Into::into) };
    for (line, expected) in [
        (
            "explain --from a/b --to=10.1.0.1 --port tcp/80 --manifests=/m -o json",
            LookCommand::Explain {
                question: question(Some("tcp/80")),
                objects: Objects::Manifests("/m".into()),
                maps: maps(),
                output: Output::Json,
            },
        ),
        (
            "explain --from=a/b --to=10.1.0.1 --recording=/r",
            LookCommand::Explain {
                question: question(None),
                objects: Objects::Recording("/r".into()),
                maps: maps(),
                output: Output::Text,
            },
        ),
        (
            "explain --from=a/b --to=10.1.0.1 --maps=/x",
            LookCommand::Explain {
                question: question(None),
                objects: agent(),
                maps: "/x".into(),
                output: Output::Text,
            },
        ),
        (
            "matrix -n shop -o html",
            LookCommand::Matrix { namespace: Some("shop".into()), objects: agent(), output: Output::Html },
        ),
        ("matrix", LookCommand::Matrix { namespace: None, objects: agent(), output: Output::Text }),
        (
            "monitor --drops --pod=a/b --json=false --pcap /p",
            LookCommand::Monitor {
                wish: MonitorWish { drops: true, pod: Some("a/b".into()), json: false, pcap: Some("/p".into()) },
                socket: "/run/kube-router/kube-router.sock".into(),
            },
        ),
    ] {
        assert_eq!(look(line), expected, "{line}");
    }
    for line in [
        "explain",
        "explain --from=a/b",
        "explain --from=a/b --to=c/d --manifests=/m --recording=/r",
        "explain --from=a/b --to=c/d -o html",
        "explain --from=a/b --to=c/d extra",
        "explain --from=a/b --to=c/d --masquerade-all",
        "matrix -o xml",
        "monitor --json=maybe",
        "monitor -o json",
    ] {
        assert_eq!(refused(line).0, 2, "{line}");
    }
}

#[test]
fn cleanup_needs_no_cluster_and_no_later_function() {
    let line = "--cleanup-config --run-router=true --run-firewall=true --bgp-graceful-restart=true";
    let parsed = read_in(line, &env(&[]), &facts()).unwrap();
    assert!(matches!(parsed.command, Command::CleanupConfig(_)));
    assert!(parsed.notices.is_empty());
}

#[test]
fn verbosity() {
    for (line, verbosity) in
        [("", Verbosity::Info), ("-v=1", Verbosity::Debug), ("-v 2", Verbosity::Debug), ("-v3", Verbosity::Trace)]
    {
        assert_eq!(read(line).unwrap().verbosity, verbosity, "{line}");
    }
}

/// The defaults start and say what is missing; switched off they are silent.
#[test]
fn defaults_start_with_notices() {
    let notices = |line: &str| {
        let parsed = read(line).unwrap();
        assert!(matches!(parsed.command, Command::Run(_)), "{line}");
        parsed.notices
    };
    let said = notices("");
    assert_eq!(said.iter().map(|notice| notice.flag).collect::<Vec<_>>(), ["run-router"]);
    assert!(said[0].text.contains("no routes"));
    assert_eq!(notices(PROXY), []);
    let said = notices(&format!("{PROXY} --cluster-cidr=10.20.0.0/16 --config-sync-period=1m"));
    assert_eq!(said.iter().map(|notice| notice.flag).collect::<Vec<_>>(), ["cluster-cidr", "config-sync-period"]);
    assert!(said.iter().all(|notice| notice.text.contains("deprecated")));
}

/// Asking for what is not there stops the start and names the flag; writing its default does not.
#[test]
fn later_functions() {
    // What makes each value pass its own checks, so that the refusal is what is left.
    let ask = |name: &str| match name {
        "overlay-type" => "--overlay-type=full".to_owned(),
        "overlay-encap" => "--overlay-encap=fou".to_owned(),
        "peer-router-ips" | "peer-router-asns" => "--peer-router-ips=192.0.2.1 --peer-router-asns=65001".to_owned(),
        "peer-router-ports" => {
            "--peer-router-ips=192.0.2.1 --peer-router-asns=65001 --peer-router-ports=180".to_owned()
        }
        "peer-router-passwords" => {
            "--peer-router-ips=192.0.2.1 --peer-router-asns=65001 --peer-router-passwords=c2VjcmV0".to_owned()
        }
        "peer-router-passwords-file" => "--peer-router-passwords-file=/p".to_owned(),
        "peer-router-multihop-ttl" => "--peer-router-multihop-ttl=3".to_owned(),
        "runtime-endpoint" => "--runtime-endpoint=unix:///run/containerd/containerd.sock".to_owned(),
        "overlay-encap-port" => "--overlay-encap-port=5556".to_owned(),
        "nodes-full-mesh" => "--nodes-full-mesh=false".to_owned(),
        "cluster-asn" => "--cluster-asn=64600".to_owned(),
        "router-id" => "--router-id=generate".to_owned(),
        "bgp-port" => "--bgp-port=1179".to_owned(),
        name if name.starts_with("bgp-") && name != "bgp-graceful-restart" => format!("--{name}=30s"),
        name => format!("--{name}"),
    };
    for row in TABLE {
        let default = format!("--{}={}", row.name, row.default);
        match row.need {
            Need::Asks(_) | Need::Shapes(crate::cli::later::Feature::Router) => {
                let line = ask(row.name);
                let error = read(&line).map(|parsed| parsed.command).expect_err(&line);
                assert_eq!(error.exit_code(), 1, "{line}");
                let text = error.to_string();
                assert!(text.contains(&format!("--{}", row.name)), "{line}: {text}");
                assert!(text.contains("leave it out"), "{line}: {text}");
                assert!(!text.contains("c2VjcmV0"));
            }
            _ => {}
        }
        match row.need {
            Need::Asks(_) if row.default == "true" => {
                run(&format!("{PROXY} --{}=false", row.name));
            }
            Need::Asks(_) | Need::Shapes(_) | Need::Harmless(_) if row.type_name != "uints" => {
                run(&format!("{PROXY} {default}"));
                run(&default);
            }
            _ => {}
        }
    }
}

#[test]
fn several_refusals_at_once() {
    let text = read("--run-router --run-loadbalancer").unwrap_err().to_string();
    for flag in ["--run-router=true", "--run-loadbalancer=true"] {
        assert!(text.lines().any(|line| line.starts_with(flag)), "{text}");
    }
    assert!(text.contains("set --run-router=false until it lands"));
    // The last word counts.
    run("--run-router=true --run-firewall=true --run-router=false --run-firewall=false");
}

/// The original's proxy-only manifest passes it beside --run-router=false.
#[test]
fn shaping_a_function_that_is_off() {
    run(&format!("{PROXY} --bgp-graceful-restart=true --bgp-port=1179 --nodes-full-mesh=false"));
    assert_eq!(refused(&format!("{PROXY} --peer-router-ips=192.0.2.1")).0, 1);
    run(&format!("{PROXY} --netpol-default-deny"));
}

#[test]
fn nothing_that_exists_is_on() {
    let (code, text) = refused("--run-service-proxy=false --run-firewall=false");
    assert_eq!(code, 1);
    assert!(text.contains("--run-service-proxy=false"), "{text}");
}
