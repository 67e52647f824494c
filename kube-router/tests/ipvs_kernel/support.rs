//! Namespaces, the oracle, and short words for the orders under test.

use std::{
    collections::BTreeSet,
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
};

use kube_router::{
    apply::{IpvsPlane, OpFailure, ipvs::Ipvs},
    compile::rings::DestinationList,
    desired::{Scheduler, Virtual, VirtualKey},
    objects::Protocol,
    plan::{IpvsOp, ObservedIpvs},
};

static TURN: Mutex<()> = Mutex::new(());

/// Runs `test` on a thread of its own in a fresh network namespace with ip_vs loaded and `lo` up.
pub fn in_namespace(test: impl FnOnce(Ipvs) + Send + 'static) {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    run("modprobe", &["ip_vs"]);
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
        run("ip", &["link", "set", "lo", "up"]);
        test(Ipvs::open().unwrap());
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `ipvsadm -Sn`, as a set of lines: the kernel lists in the order of its hash table.
pub fn saved() -> BTreeSet<String> {
    run("ipvsadm", &["-Sn"]).lines().map(|line| line.trim().to_owned()).collect()
}

pub fn restore(text: &str) {
    let mut child = Command::new("ipvsadm").arg("-R").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

pub fn lines(text: &[&str]) -> BTreeSet<String> {
    text.iter().map(|line| (*line).to_owned()).collect()
}

pub fn key(protocol: Protocol, text: &str) -> VirtualKey {
    let socket: SocketAddr = text.parse().unwrap();
    VirtualKey { address: socket.ip(), protocol, port: socket.port() }
}

pub fn server(scheduler: Scheduler, sched_flags: u32, persistence_s: Option<u32>) -> Virtual {
    Virtual { scheduler, sched_flags, persistence_s, ..Virtual::default() }
}

pub fn plain() -> Virtual {
    server(Scheduler::Rr, 0, None)
}

pub fn add(key: VirtualKey, server: Virtual) -> IpvsOp {
    IpvsOp::AddServer { key, server }
}

pub fn add_destination(key: VirtualKey, destination: &str, weight: u32) -> IpvsOp {
    IpvsOp::AddDestination { key, destination: destination.parse().unwrap(), weight }
}

/// Carries out orders that must all succeed.
pub fn apply(ipvs: &mut Ipvs, ops: &[IpvsOp]) {
    assert_eq!(ipvs.apply(ops).unwrap(), []);
}

/// What the plane must observe after these additions.
pub fn expected(ops: &[IpvsOp]) -> ObservedIpvs {
    let mut observed = ObservedIpvs::default();
    for op in ops {
        match op {
            IpvsOp::AddServer { key, server } => {
                observed.servers.insert(*key, server.clone());
                observed.lists.insert(*key, Default::default());
            }
            IpvsOp::AddDestination { key, destination, weight } => {
                observed.servers.get_mut(key).unwrap().destinations.insert(*destination, *weight);
                observed.lists.get_mut(key).unwrap().add(*destination, *weight);
            }
            other => panic!("not an addition: {other:?}"),
        }
    }
    // A dump does not say which weight one had before it became 0.
    for list in observed.lists.values_mut() {
        *list = DestinationList::from_dump(list.as_slice().iter().map(|listed| (listed.destination, listed.weight)));
    }
    observed
}

pub fn errnos(failures: &[OpFailure]) -> Vec<(usize, i32)> {
    failures.iter().map(|failure| (failure.index, failure.refusal.errno)).collect()
}
