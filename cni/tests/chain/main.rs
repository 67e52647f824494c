//! The plugin behind the reference plugins bridge, host-local and portmap, with the real programs in a real kernel.
//!
//! A binary built without the BPF object fails these tests; it does not pass them.

mod rig;

use std::{
    fs,
    os::unix::net::UnixListener,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use kube_router::{
    apply::bpf::{AttachMode, Dataplane, Tables, attached, root},
    cni::{
        protocol::{Attachment, Command, Response},
        server::{CniServer, channel},
    },
    compile::policy::address_of,
};
use kube_router_common::{config::Iface, hooks::Hook, policy::Endpoint};
use nix::sched::{CloneFlags, unshare};
use rig::{Chain, Pod, Said, answers, on_a_node, run};
use serde_json::{Value, json};

/// Two nodes at once would fight over nothing but time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn publish(tables: &Tables, pod: &Attachment) {
    let number = pod.host.ifindex;
    for address in &pod.pod_end.addresses {
        let endpoint = Endpoint { pod: number, ifindex: number, mac: pod.pod_end.mac, pad: [0; 2] };
        tables.endpoints.put(&address_of(*address), &endpoint).expect("endpoint");
    }
    let row = Iface { mac: pod.pod_end.mac, flags: Iface::PUBLISHED, pod: number, netns: 0 };
    tables.ifaces.put(&number, &row).expect("iface");
}

/// What the agent's loop does with questions, as little as it can be. It lives as long as the server.
fn agent(chain: &Chain, mut dataplane: Dataplane) -> CniServer {
    let (sender, mut asks) = channel();
    // Started by the node's thread, so it is in the node's namespace.
    thread::spawn(move || {
        while let Some(ask) = asks.blocking_recv() {
            let ok = |published| Response::Ok { published, note: "fake".into() };
            let response = match &ask.request.command {
                Command::Add(pod) => {
                    for hook in [Hook::PodOut, Hook::PodIn] {
                        dataplane.attach(pod.host.ifindex, hook, AttachMode::of_kernel()).expect("attach");
                    }
                    publish(dataplane.tables(), pod);
                    ok(true)
                }
                Command::Check(_) | Command::Status => ok(true),
                Command::Del(_) | Command::Gc(_) => ok(false),
            };
            ask.answer(response);
        }
    });
    CniServer::start(&chain.socket(), sender).expect("server")
}

/// The row and the number of the node's end of a pod.
fn row(tables: &Tables, said: &Said) -> (u32, Option<Iface>) {
    let name = said.json["interfaces"][1]["name"].as_str().expect("name");
    let index = index_of(name);
    (index, tables.ifaces.get(&index).expect("row"))
}

fn index_of(name: &str) -> u32 {
    run("ip", &format!("-o link show {name}")).split(':').next().and_then(|n| n.parse().ok()).expect("index")
}

fn passes(pod: &Pod, said: &Said) -> Vec<bool> {
    let mut all: Vec<bool> = said.addresses().iter().map(|address| answers(address)).collect();
    all.extend(["10.1.0.1", "fd00:1::1"].map(|gateway| pod.answers(gateway)));
    all
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter shut_until"]
fn a_pod_without_an_agent_is_shut_until_one_publishes_it() {
    let _alone = alone();
    on_a_node(|| {
        let mut chain = Chain::new("1.0.0");
        drop(chain.dataplane());
        let (one, two) = (Pod::new(), Pod::new());
        let (said, other) = (chain.add(&one, "one").done(), chain.add(&two, "two").done());
        assert!(said.stderr.contains("nothing passes until an agent publishes"), "{}", said.stderr);
        assert_eq!(said.stderr.lines().count(), 1);
        assert_eq!(passes(&one, &said), [false; 4]);
        let tables = chain.tables();
        let (index, shut) = row(&tables, &said);
        assert_eq!(shut.map(|row| (row.flags, row.pod)), Some((Iface::DEFAULT_DENY, 0)));
        assert_eq!(chain.ours("CHECK", &one, "one", &said.json).code(), Some(11));

        // An agent comes and publishes it.
        let mac = shut.expect("row").mac;
        for address in said.addresses() {
            let address = address_of(address.parse().expect("address"));
            tables.endpoints.put(&address, &Endpoint { pod: 1, ifindex: index, mac, pad: [0; 2] }).expect("endpoint");
        }
        let open = Iface { mac, flags: Iface::PUBLISHED, pod: 1, netns: 0 };
        tables.ifaces.put(&index, &open).expect("iface");
        // Neighbours that were asked for in vain are asked for again within a second or so.
        let deadline = Instant::now() + Duration::from_secs(10);
        while passes(&one, &said) != [true; 4] {
            assert!(Instant::now() < deadline, "{:?}", passes(&one, &said));
        }
        assert_eq!(passes(&two, &other), [false; 4], "the other one is still shut");
        let checked = chain.ours("CHECK", &one, "one", &said.json).done();
        assert!(checked.json.is_null() && checked.stderr.contains("in place without it"), "{checked:?}");

        // A plugin that is late does not shut what has been published meanwhile.
        chain.ours("ADD", &one, "one", &said.json).done();
        assert_eq!(tables.ifaces.get(&index).expect("row"), Some(open));

        // Tampered with, one thing at a time.
        let tampered = |what: &str| {
            let said = chain.ours("CHECK", &one, "one", &said.json);
            let details = said.json["details"].as_str().unwrap_or_default().to_owned();
            assert!(said.code() == Some(101) && details.contains(what), "{what}: {said:?}");
        };
        let address = address_of("fd00:1::2".parse().expect("address"));
        let endpoint = tables.endpoints.get(&address).expect("read").expect("the first pod's");
        tables.endpoints.delete(&address).expect("delete");
        tampered("does not lead fd00:1::2");
        tables.endpoints.put(&address, &endpoint).expect("put back");
        tables.ifaces.put(&index, &Iface { mac: [2; 6], ..open }).expect("other");
        tampered("another hardware address");
        tables.ifaces.delete(&index).expect("delete");
        tampered("no row");
        tables.ifaces.put(&index, &open).expect("put back");
        chain.ours("CHECK", &one, "one", &said.json).done();
        if AttachMode::of_kernel() == AttachMode::Tcx {
            fs::remove_file(root(&chain.pins()).join(format!("links/{index}-egress"))).expect("link");
        } else {
            run("tc", &format!("filter del dev {} egress", said.json["interfaces"][1]["name"].as_str().expect("name")));
        }
        // The kernel lets go of a link some time after its last name.
        let deadline = Instant::now() + Duration::from_secs(10);
        while attached(index).expect("list").len() == 2 {
            assert!(Instant::now() < deadline, "still attached");
            thread::sleep(Duration::from_millis(10));
        }
        tampered("kr_pod_in is not attached");
        chain.ours("ADD", &one, "one", &said.json).done();
        chain.ours("CHECK", &one, "one", &said.json).done();

        // It goes, twice; what is left of it is swept.
        chain.del(&one, "one", &said.json);
        chain.del(&one, "one", &said.json);
        assert_eq!(tables.endpoints.read_all().expect("rows").len(), 2, "nobody removed them yet");
        chain.version = "1.1.0";
        // From another namespace nothing is here, so nothing is taken for gone.
        thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
                chain.ours("GC", &two, "", &Value::Null).done()
            });
            elsewhere.join().expect("elsewhere");
        });
        assert_eq!(tables.ifaces.read_all().expect("rows").len(), 2);
        let swept = chain.ours("GC", &two, "", &Value::Null).done();
        assert!(swept.stderr.contains("1 interfaces, 2 addresses"), "{}", swept.stderr);
        assert_eq!(tables.endpoints.read_all().expect("rows"), []);
        assert_eq!(tables.ifaces.read_all().expect("rows").len(), 1, "the other pod's");
        let links = fs::read_dir(root(&chain.pins()).join("links")).expect("links").count();
        assert_eq!(links, if AttachMode::of_kernel() == AttachMode::Tcx { 2 } else { 0 });
        chain.ours("STATUS", &two, "", &Value::Null).done();
        // Half of what an agent pins.
        fs::remove_file(root(&chain.pins()).join("kr_pod_in")).expect("remove");
        assert_eq!(chain.ours("STATUS", &two, "", &Value::Null).code(), Some(51));
        assert_eq!(chain.ours("ADD", &two, "two", &other.json).code(), Some(11));
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter agent_publishes"]
fn an_agent_publishes_before_add_returns() {
    let _alone = alone();
    on_a_node(|| {
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let mut chain = Chain::new(version);
            let server = agent(&chain, chain.dataplane());
            let pod = Pod::new();
            let said = chain.add(&pod, "first").done();
            assert_eq!(said.stderr, "");
            // The first packets of all.
            assert_eq!(passes(&pod, &said), [true; 4], "{version}");
            let families: Vec<&Value> =
                said.json["ips"].as_array().expect("ips").iter().map(|ip| &ip["version"]).collect();
            let told = version.starts_with("0.");
            assert_eq!(families, if told { [json!("4"), json!("6")] } else { [Value::Null, Value::Null] }.each_ref());
            if version >= "0.4.0" {
                chain.ours("CHECK", &pod, "first", &said.json).done();
            }
            // The runtime's word for 1.1, which the plugins before us do not speak.
            chain.version = "1.1.0";
            let newest = chain.ours("ADD", &pod, "first", &said.json).done();
            assert!(newest.json["cniVersion"] == "1.1.0" && newest.json["ips"][0]["version"].is_null(), "{newest:?}");
            chain.ours("STATUS", &pod, "", &Value::Null).done();
            chain.version = version;
            chain.del(&pod, "first", &said.json);
            drop(server);
            run("ip", "link del kube-bridge");
        }
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter many_pods"]
fn many_pods_start_at_once() {
    let _alone = alone();
    on_a_node(|| {
        let chain = Chain::new("1.0.0");
        let server = agent(&chain, chain.dataplane());
        let pods: Vec<Pod> = (0..12).map(|_| Pod::new()).collect();
        let all: Vec<Said> = thread::scope(|scope| {
            let chain = &chain;
            let adding: Vec<_> = (1..)
                .zip(&pods)
                .map(|(id, pod)| scope.spawn(move || chain.add(pod, &format!("c{id}")).done()))
                .collect();
            adding.into_iter().map(|add| add.join().expect("add")).collect()
        });
        for (pod, said) in pods.iter().zip(&all) {
            assert_eq!(passes(pod, said), [true; 4]);
        }
        let mut took: Vec<Duration> =
            (0..21).map(|_| chain.ours("ADD", &pods[0], "c1", &all[0].json).done().took).collect();
        took.sort();
        println!("ADD of our plugin, process and all: {:?} (median), {:?} (worst)", took[10], took[20]);

        // Without the agent, all at once again: rows that are published stay, hooks are not doubled.
        drop(server);
        thread::scope(|scope| {
            for (pod, said) in pods.iter().zip(&all) {
                let chain = &chain;
                scope.spawn(move || chain.ours("ADD", pod, "c", &said.json).done());
            }
        });
        let tables = chain.tables();
        for said in &all {
            let (index, row) = row(&tables, said);
            assert_eq!(row.map(|row| row.flags), Some(Iface::PUBLISHED));
            assert_eq!(attached(index).expect("list").len(), 2, "one at each side");
        }
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter agent_that_hangs"]
fn an_agent_that_hangs_talks_nonsense_or_refuses() {
    let _alone = alone();
    on_a_node(|| {
        let mut chain = Chain::new("1.0.0");
        drop(chain.dataplane());
        chain.own = json!({ "timeout": 0.5 });
        let pod = Pod::new();
        let hung = UnixListener::bind(chain.socket()).expect("bind");
        let begin = Instant::now();
        let said = chain.add(&pod, "one").done();
        assert!(said.stderr.contains("no answer within 500 ms"), "{}", said.stderr);
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        assert_eq!(passes(&pod, &said), [false; 4]);
        thread::spawn(move || {
            hung.incoming().flatten().for_each(|mut stream| drop(std::io::Write::write(&mut stream, b"?\n")))
        });
        let said = chain.ours("ADD", &pod, "one", &said.json).done();
        assert!(said.stderr.contains("not understood"), "{}", said.stderr);
        fs::remove_file(chain.socket()).expect("remove");

        let (sender, mut asks) = channel();
        let _server = CniServer::start(&chain.socket(), sender).expect("server");
        thread::spawn(move || {
            while let Some(ask) = asks.blocking_recv() {
                ask.answer(Response::Error { code: 11, msg: "tables are full".into(), details: "4095 pods".into() });
            }
        });
        let refused = chain.ours("ADD", &pod, "one", &said.json);
        assert_eq!((refused.code(), &refused.json["msg"]), (Some(11), &json!("tables are full")));
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter agent_that_never_ran"]
fn an_agent_that_never_ran_stops_pods_unless_told_otherwise() {
    let _alone = alone();
    on_a_node(|| {
        let mut chain = Chain::new("0.4.0");
        let pod = Pod::new();
        let refused = chain.add(&pod, "one");
        assert_eq!(refused.code(), Some(11));
        let details = refused.json["details"].as_str().expect("details");
        assert!(details.contains("whenAbsent") && details.contains("no socket is there"), "{details}");
        // As a runtime does after a failure.
        chain.del(&pod, "one", &json!({"cniVersion": "0.4.0"}));
        chain.own = json!({ "whenAbsent": "allow" });
        let said = chain.add(&pod, "one").done();
        assert!(said.stderr.contains("NO POLICY"), "{}", said.stderr);
        assert_eq!(passes(&pod, &said), [true; 4]);
        assert_eq!(chain.ours("CHECK", &pod, "one", &said.json).code(), Some(101));
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter the_kernel_knows"]
fn the_kernel_knows_the_veth_whatever_results_say() {
    let _alone = alone();
    on_a_node(|| {
        let chain = Chain::new("1.0.0");
        let server = agent(&chain, chain.dataplane());
        let pod = Pod::new();
        let said = chain.call("ADD", &pod, "one", &chain.plugins()[0], None).done();
        let name = said.json["interfaces"][1]["name"].as_str().expect("name").to_owned();
        let index = index_of(&name);
        // Renamed since, and a decoy takes the old name.
        run("ip", &format!("link set {name} down"));
        run("ip", &format!("link set {name} name lxc0"));
        run("ip", "link set lxc0 up");
        run("ip", &format!("link add {name} type veth peer name decoy"));
        let results = [
            said.json.clone(),
            json!({"cniVersion": "1.0.0", "ips": said.json["ips"].as_array().expect("ips").iter().map(|ip| {
                json!({"address": ip["address"]})
            }).collect::<Vec<Value>>()}),
            // Addresses that nobody tells are read from the pod's end.
            json!({"cniVersion": "1.0.0", "interfaces": said.json["interfaces"]}),
            json!({"cniVersion": "1.0.0"}),
        ];
        for result in results {
            let tables = chain.tables();
            tables.ifaces.delete(&index).expect("delete");
            for (address, _) in tables.endpoints.read_all().expect("rows") {
                tables.endpoints.delete(&address).expect("delete");
            }
            assert_eq!(chain.ours("ADD", &pod, "one", &result).done().stderr, "", "{result}");
            assert_eq!(passes(&pod, &said), [true; 4], "{result}");
            assert_eq!(tables.ifaces.read_all().expect("rows").len(), 1);
        }
        assert_eq!(attached(index_of(&name)).expect("list"), [], "not the decoy");
        // What is no veth, and what is not there.
        let config = chain.plugins().pop().expect("ours");
        pod.run(|| run("ip", "link set eth0 down"));
        pod.run(|| run("ip", "link set eth0 name eth1"));
        assert_eq!(chain.call("ADD", &pod, "one", &config, Some(&said.json)).code(), Some(100));
        pod.run(|| run("ip", "link add eth0 type bridge"));
        assert_eq!(chain.call("ADD", &pod, "one", &config, Some(&said.json)).code(), Some(100));
        pod.run(|| run("ip", "link del eth0"));
        // Both ends are in the pod.
        pod.run(|| run("ip", "link add eth0 type veth peer name eth2"));
        assert_eq!(chain.call("ADD", &pod, "one", &config, Some(&said.json)).code(), Some(100));
        drop(server);
    });
}
