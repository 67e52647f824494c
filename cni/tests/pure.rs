//! What needs no privileges: what is asked, what is answered, and how long it takes at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    net::IpAddr,
    os::unix::{ffi::OsStringExt, net::UnixListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use kube_router::cni::{
    protocol::{Command as Asked, Response},
    server::{Ask, CniServer, channel},
};
use kube_router_cni::{
    Error, Input, MAX_INPUT,
    config::{Config, WhenAbsent},
    prev_result, run,
    version::Version,
};
use serde_json::{Value, json};

const NOWHERE: &str = "/nowhere/kube-router";

/// An invocation that is right; tests change one thing.
struct Call {
    environment: BTreeMap<&'static str, OsString>,
    config: Vec<u8>,
}

fn config(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "mynet", "type": "kube-router-cni",
        "socket": format!("{NOWHERE}/cni.sock"), "pins": NOWHERE,
        "prevResult": { "cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
                        "ips": [{"address": "10.1.0.5/24", "interface": 0}] },
    })
}

impl Call {
    fn new(command: &str, config: &Value) -> Call {
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "0a1b2c"),
            ("CNI_NETNS", "/nowhere/netns"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"),
        ];
        let environment = environment.into_iter().map(|(name, value)| (name, value.into())).collect();
        Call { environment, config: config.to_string().into_bytes() }
    }

    fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Call {
        self.environment.insert(name, value.into());
        self
    }

    fn without(mut self, name: &'static str) -> Call {
        self.environment.remove(name);
        self
    }

    fn run(&self) -> (Result<String, Error>, Vec<String>) {
        let mut notes = Vec::new();
        let input = Input { environment: &|name| self.environment.get(name).cloned(), config: &self.config };
        (run(&input, &mut |note| notes.push(note.to_owned())), notes)
    }

    fn code(&self) -> u32 {
        self.run().0.expect_err("refused").code.number()
    }
}

#[test]
fn the_command_and_its_variables_are_judged() {
    let good = config("1.1.0");
    assert_eq!(Call::new("ADD", &good).without("CNI_COMMAND").code(), 4);
    for command in ["add", "UPDATE", "ADD ", "\0"] {
        assert_eq!(Call::new(command, &good).code(), 4, "{command:?}");
    }
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        for value in [Vec::new(), vec![0xff, 0xfe]] {
            let error = Call::new("ADD", &good).with(name, OsString::from_vec(value)).run().0.expect_err("refused");
            assert!(error.code.number() == 4 && error.msg.contains(name), "{error:?}");
        }
        assert_eq!(Call::new("CHECK", &good).without(name).code(), 4, "{name}");
    }
    for name in ["../../etc", "a/b", ".", "..", "with space", "eth0:1", "sixteen-letters0", "tab\t"] {
        assert_eq!(Call::new("ADD", &good).with("CNI_IFNAME", name).code(), 4, "{name:?}");
    }
    for id in ["../../etc/passwd", "-rf", "_x", "a b", "a\nb", &"a".repeat(300)] {
        assert_eq!(Call::new("ADD", &good).with("CNI_CONTAINERID", id).code(), 4, "{id:?}");
    }
    let long = format!("K8S_POD_NAME={}", "x".repeat(300));
    for arguments in ["novalue", "K8S_POD_NAME=a\nb", &long] {
        assert_eq!(Call::new("ADD", &good).with("CNI_ARGS", arguments).code(), 4, "{arguments:?}");
    }
    // All in order: what is missing is the namespace.
    let error = Call::new("ADD", &good).run().0.expect_err("no namespace");
    assert!(error.code.number() == 4 && error.msg.contains("CNI_NETNS"), "{error:?}");
    assert_eq!(Call::new("ADD", &good).with("CNI_NETNS", "/etc/hostname").code(), 4, "not a namespace");
    assert_eq!(Call::new("ADD", &good).with("CNI_NETNS", "/proc/self/ns/net").code(), 4, "the node's own");
}

#[test]
fn only_versions_with_chains_are_spoken() {
    for (version, command, code) in [
        (json!("0.2.0"), "ADD", 1),
        (json!("0.1.0"), "DEL", 1),
        (json!("1.2.0"), "ADD", 1),
        (json!("1.0"), "ADD", 1),
        (json!(""), "ADD", 1),
        (Value::Null, "ADD", 1),
        (json!(1), "ADD", 6),
        (json!("0.3.1"), "CHECK", 1),
        (json!("0.3.1"), "STATUS", 1),
        (json!("1.0.0"), "GC", 1),
    ] {
        let mut config = config("1.1.0");
        config["cniVersion"] = version.clone();
        assert_eq!(Call::new(command, &config).code(), code, "{version} {command}");
    }
    let mut none = config("1.1.0");
    none.as_object_mut().expect("object").remove("cniVersion");
    let error = Call::new("ADD", &none).run().0.expect_err("0.1.0");
    assert!(error.code.number() == 1 && error.details.contains("1.1.0"), "{error:?}");
}

#[test]
fn errors_are_the_specifications_json_in_the_version_of_the_asker() {
    for version in Version::ALL {
        let error = Call::new("ADD", &config(version.text())).run().0.expect_err("no namespace");
        let shown: Value = serde_json::from_str(&error.to_json()).expect("JSON");
        assert_eq!(shown["cniVersion"], version.text());
        assert_eq!(shown["code"], 4);
        assert!(shown["msg"].is_string() && shown["details"].is_string(), "{shown}");
    }
}

#[test]
fn version_repeats_the_askers() {
    let all = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (asked, answered) in [
        ("{\"cniVersion\":\"0.2.0\"}", "0.2.0"),
        ("{\"cniVersion\":\"0.4.0\"}", "0.4.0"),
        ("{\"cniVersion\":\"$(reboot)\"}", "1.1.0"),
        ("{}", "1.1.0"),
        ("", "1.1.0"),
        ("nonsense", "1.1.0"),
    ] {
        let mut call = Call::new("VERSION", &Value::Null);
        call.environment.retain(|name, _| *name == "CNI_COMMAND");
        call.config = asked.as_bytes().to_vec();
        let answer: Value = serde_json::from_str(&call.run().0.expect("answer")).expect("JSON");
        assert_eq!((&answer["cniVersion"], &answer["supportedVersions"]), (&json!(answered), &all), "{asked}");
    }
}

#[test]
fn the_configuration_is_judged() {
    for bad in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", b"{\"cniVersion\": \"1.0.0\", \"name\": \"\xff\"}"] {
        let call = Call { config: bad.to_vec(), ..Call::new("ADD", &Value::Null) };
        assert_eq!(call.code(), 6, "{}", String::from_utf8_lossy(bad));
    }
    let huge = format!("{{\"cniVersion\":\"1.0.0\",\"x\":\"{}\"}}", "x".repeat(MAX_INPUT));
    let deep = format!("{{\"cniVersion\":\"1.0.0\",\"prevResult\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    for bad in [huge, deep] {
        assert_eq!(Call { config: bad.into_bytes(), ..Call::new("ADD", &Value::Null) }.code(), 6);
    }
    for (key, values) in [
        (
            "socket",
            vec![json!("cni.sock"), json!("/run/../cni.sock"), json!(7), json!(format!("/{}", "x".repeat(108)))],
        ),
        ("pins", vec![json!("bpf"), json!("/sys/fs/bpf/../../../etc"), json!(""), json!("/a\u{0}b")]),
        ("timeout", vec![json!(0), json!(-1), json!(61), json!("5s")]),
        ("whenAbsent", vec![json!("ALLOW"), json!("")]),
        ("prevResult", vec![json!([]), json!("x"), Value::Null]),
        ("cni.dev/valid-attachments", vec![json!([{}]), json!({})]),
    ] {
        for value in values {
            let mut config = config("1.1.0");
            config[key] = value.clone();
            assert_eq!(Call::new("ADD", &config).code(), 7, "{key} {value}");
        }
    }
    let mut chainless = config("1.1.0");
    chainless.as_object_mut().expect("object").remove("prevResult");
    let error = Call::new("ADD", &chainless).run().0.expect_err("chained");
    assert!(error.code.number() == 7 && error.details.contains("bridge"), "{error:?}");
}

#[test]
fn the_example_is_a_chain_that_ends_with_us() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/10-kuberouter.conflist");
    let list: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("file")).expect("JSON");
    let types: Vec<&Value> = list["plugins"].as_array().expect("plugins").iter().map(|one| &one["type"]).collect();
    assert_eq!(types, ["bridge", "portmap", env!("CARGO_PKG_NAME")]);
    let mut own = list["plugins"][2].clone();
    own["cniVersion"] = list["cniVersion"].clone();
    own["name"] = list["name"].clone();
    let config = Config::parse(own.to_string().as_bytes()).expect("ours");
    assert_eq!((config.socket.to_str(), config.timeout), (Some("/run/kube-router/cni.sock"), Duration::from_secs(5)));
    assert_eq!((config.pins.to_str(), config.when_absent), (Some("/sys/fs/bpf/kube-router"), WhenAbsent::Fail));
}

fn result(text: Value) -> prev_result::PrevResult {
    text.as_object().expect("object").clone()
}

/// As bridge and host-local of 1.1.1 and later answer.
fn dual_stack(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "interfaces": [
            {"name": "kube-bridge", "mac": "0a:58:00:00:00:01"},
            {"name": "veth12", "mac": "0a:58:00:00:00:02", "mtu": 1500},
            {"name": "eth0", "mac": "0a:58:00:00:00:03", "sandbox": "/run/netns/x", "mtu": 1500, "pciID": "p"},
            {"name": "net1", "mac": "0a:58:00:00:00:04", "sandbox": "/run/netns/x"},
        ],
        "ips": [
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2},
            {"address": "fd00:1::5/64", "gateway": "fd00:1::1", "interface": 2},
            {"address": "192.0.2.9/24", "interface": 3},
            {"address": "10.1.0.1/24", "interface": 0},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "priority": 7}],
        "dns": {"nameservers": ["10.96.0.10"]},
        "somebody's": {"own": 1},
    })
}

#[test]
fn addresses_are_those_of_the_containers_interface() {
    let set = |addresses: &[&str]| -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().expect("address")).collect()
    };
    let whole = result(dual_stack("1.0.0"));
    assert_eq!(prev_result::addresses(&whole, "eth0"), Ok(set(&["10.1.0.5", "fd00:1::5"])));
    assert_eq!(prev_result::addresses(&whole, "net1"), Ok(set(&["192.0.2.9"])));
    assert_eq!(prev_result::addresses(&whole, "kube-bridge"), Ok(set(&[])), "not in the sandbox");
    for (ips, own) in [
        (json!({}), vec![]),
        (json!({"ips": null}), vec![]),
        (json!({"ips": [], "interfaces": []}), vec![]),
        (json!({"ips": [{"address": "10.1.0.5/32"}]}), vec!["10.1.0.5"]),
        (json!({"ips": [{"address": "::ffff:10.1.0.5/128", "interface": null}]}), vec!["10.1.0.5"]),
    ] {
        assert_eq!(prev_result::addresses(&result(ips.clone()), "eth0"), Ok(set(&own)), "{ips}");
    }
    let many: Vec<Value> = (0..200).map(|n| json!({"address": format!("10.1.0.{n}/24")})).collect();
    for bad in [
        json!({"ips": 1}),
        json!({"ips": ["10.1.0.5/24"]}),
        json!({"ips": [{}]}),
        json!({"ips": [{"address": "10.1.0.5"}]}),
        json!({"ips": [{"address": "10.1.0.5/33"}]}),
        json!({"ips": [{"address": "10.1.0.5/24", "interface": 0}]}),
        json!({"ips": [{"address": "10.1.0.5/24", "interface": -1}], "interfaces": [{}]}),
        json!({"ips": many}),
    ] {
        let error = prev_result::addresses(&result(bad.clone()), "eth0").expect_err("refused");
        assert_eq!(error.code.number(), 7, "{bad}");
    }
}

#[test]
fn the_result_is_passed_on_in_the_version_that_was_asked() {
    let answer = |from: &str, to: Version| -> Value {
        let text = prev_result::answer(&result(dual_stack(from)), to).expect("answer");
        serde_json::from_str(&text).expect("JSON")
    };
    for (from, to) in [("0.3.1", Version::V0_3_1), ("1.1.0", Version::V0_4_0), ("1.0.0", Version::V0_3_0)] {
        let converted = answer(from, to);
        assert_eq!(converted["cniVersion"], to.text());
        let families: Vec<&Value> =
            converted["ips"].as_array().expect("list").iter().map(|ip| &ip["version"]).collect();
        assert_eq!(families, ["4", "6", "4", "4"], "{from} {to}");
        assert_eq!(converted["somebody's"], json!({"own": 1}));
    }
    // Backwards: what old results say of families goes.
    let old = result(answer("0.4.0", Version::V0_4_0));
    let new: Value = serde_json::from_str(&prev_result::answer(&old, Version::V1_0_0).expect("answer")).expect("JSON");
    assert_eq!(new["ips"], dual_stack("1.0.0")["ips"]);
    // What 1.1 has more stays where it came from, and in results that have it although they are older.
    assert_eq!(answer("1.1.0", Version::V1_1_0), dual_stack("1.1.0"));
    assert_eq!(answer("1.0.0", Version::V1_0_0), dual_stack("1.0.0"));
    let shorter = answer("1.1.0", Version::V1_0_0);
    assert_eq!(
        shorter["interfaces"][2],
        json!({"name": "eth0", "mac": "0a:58:00:00:00:03", "sandbox": "/run/netns/x"})
    );
    assert_eq!(shorter["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]));
    let ancient = result(json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/24"}}));
    assert_eq!(prev_result::answer(&ancient, Version::V1_0_0).expect_err("refused").code.number(), 1);
}

/// An agent that answers STATUS and everything else like this.
fn agent(path: &Path, answer: Response) -> CniServer {
    let (sender, mut asks) = channel();
    thread::spawn(move || {
        while let Some(ask) = asks.blocking_recv() {
            let ask: Ask = ask;
            assert!(!matches!(ask.request.command, Asked::Add(_)), "no namespace, no question");
            ask.answer(answer.clone());
        }
    });
    CniServer::start(path, sender).expect("agent")
}

#[test]
fn status_is_the_agents_word() {
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("cni.sock");
    let mut config = config("1.1.0");
    assert_eq!(Call::new("STATUS", &config).code(), 50, "no agent, nothing pinned");
    config["whenAbsent"] = json!("allow");
    let (answer, notes) = Call::new("STATUS", &config).run();
    assert!(answer == Ok(String::new()) && notes[0].contains("NO POLICY"), "{answer:?} {notes:?}");
    config["whenAbsent"] = json!("fail");
    config["socket"] = json!(socket);
    for (said, code) in [
        (Response::Ok { published: true, note: String::new() }, None),
        (Response::Ok { published: false, note: "lists are not complete".into() }, Some(50)),
        (Response::Away { reason: "busy".into() }, Some(50)),
        (Response::Error { code: 51, msg: "hooks are lost".into(), details: String::new() }, Some(51)),
    ] {
        let _agent = agent(&socket, said.clone());
        let mut call = Call::new("STATUS", &config);
        call.environment.retain(|name, _| *name == "CNI_COMMAND");
        assert_eq!(call.run().0.err().map(|error| error.code.number()), code, "{said:?}");
    }
}

#[test]
fn del_says_farewell_and_never_fails() {
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("cni.sock");
    let mut config = config("0.4.0");
    config["socket"] = json!(socket);
    let done = |call: &Call| assert_eq!(call.run().0, Ok(String::new()));
    for _ in 0..3 {
        done(&Call::new("DEL", &config));
    }
    done(&Call::new("DEL", &config).without("CNI_NETNS").without("CNI_ARGS"));
    done(&Call::new("DEL", &config).with("CNI_ARGS", "novalue").with("CNI_NETNS", OsString::from_vec(vec![0xff])));
    let hung = UnixListener::bind(&socket).expect("bind");
    let begin = Instant::now();
    done(&Call::new("DEL", &config));
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(4), "{took:?}");
    drop(hung);
    std::fs::remove_file(&socket).expect("remove");
    let _agent = agent(&socket, Response::Error { code: 999, msg: "no".into(), details: "way".into() });
    let (answer, notes) = Call::new("DEL", &config).run();
    assert!(answer.is_ok() && notes[0].contains("no way"), "{notes:?}");
}
