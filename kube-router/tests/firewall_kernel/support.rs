//! Namespaces, commands and values for tests against a real kernel.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command},
    time::Duration,
};

use kube_router::{
    apply::{FirewallPlane, OpFailure, firewall::KernelFirewall},
    desired::{Hairpin, Ruleset, SetElement, VirtualKey, firewall::Masquerade},
    objects::Protocol,
    plan::{Backend, FirewallOp},
};
use nix::sched::{CloneFlags, setns, unshare};

/// Runs `test` in a fresh network namespace with loopback up.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        sh("ip link set lo up");
        test();
    })
    .join()
    .expect("the test's thread panicked");
}

/// Runs a shell command in this thread's namespace; panics if it fails.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}: {out}{err}");
    out.into_owned()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn service(address: &str, protocol: Protocol, port: u16) -> SetElement {
    SetElement::ServicePort(VirtualKey { address: ip(address), protocol, port })
}

pub fn every_kind() -> Vec<SetElement> {
    let mut all = Vec::new();
    for (vip, pod, nets) in [
        ("10.96.0.10", "10.244.1.2", ["10.244.1.0/24", "10.244.2.0/24", "255.255.255.0/24"]),
        ("fd00:10:96::10", "fd00:10:244:1::2", ["fd00:10:244:1::/64", "fd00:10:244:2::/64", "ff00::/8"]),
    ] {
        all.extend([SetElement::LocalIp(ip(vip)), SetElement::ServiceIp(ip(vip))]);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            all.push(service(vip, protocol, 30080));
            all.push(SetElement::Hairpin(Hairpin { pod: ip(pod), vip: ip(vip), protocol, port: 80 }));
        }
        all.extend(nets.map(|net| SetElement::PodCidr(net.parse().unwrap())));
    }
    all
}

pub fn rich() -> Ruleset {
    Ruleset {
        guard: true,
        masquerade: Masquerade::OutsidePodCidrs,
        node_ipv4: Some([192, 168, 10, 100].into()),
        node_ipv6: Some("fd00:77::1".parse().unwrap()),
    }
}

pub fn add(backend: Backend, elements: &[SetElement]) -> Vec<FirewallOp> {
    elements.iter().map(|element| FirewallOp::AddElement(backend, *element)).collect()
}

pub fn delete(backend: Backend, elements: &[SetElement]) -> Vec<FirewallOp> {
    elements.iter().map(|element| FirewallOp::DeleteElement(backend, *element)).collect()
}

pub fn mirrored(elements: &[SetElement]) -> Vec<SetElement> {
    elements.iter().copied().filter(|element| element.set().ipset_name().is_some()).collect()
}

pub fn apply(plane: &mut KernelFirewall, ops: &[FirewallOp]) {
    assert_eq!(plane.apply(ops).unwrap(), [], "nothing is refused");
}

pub fn indices(failures: &[OpFailure]) -> Vec<usize> {
    failures.iter().map(|failure| failure.index).collect()
}

/// Another network namespace, held by a sleeping process until dropped.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Self {
        let namespace = Namespace(Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().expect("unshare"));
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("/proc");
        while std::fs::read_link(format!("/proc/{}/ns/net", namespace.pid())).is_ok_and(|link| link == own) {
            std::thread::sleep(Duration::from_millis(5));
        }
        namespace.sh("ip link set lo up");
        namespace
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs a shell command in there; panics if it fails.
    pub fn sh(&self, command: &str) -> String {
        sh(&format!("nsenter -t {} -n sh -c '{command}'", self.pid()))
    }

    /// Runs `work` on a thread in there.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/proc/{}/ns/net", self.pid());
        std::thread::spawn(move || {
            setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
        .join()
        .expect("the thread in the namespace panicked")
    }

    /// Connects from in there and returns what the server says.
    pub fn ask(&self, address: &str, port: u16, timeout: Duration) -> io::Result<String> {
        let to = SocketAddr::new(ip(address), port);
        self.run(move || ask(to, timeout))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects from this thread's namespace and returns what the server says before it closes.
pub fn ask(to: SocketAddr, timeout: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Tells every TCP client of these ports, of both families, the address that it comes from; until the process ends.
pub fn serve(ports: &[u16]) {
    for port in ports {
        let listener = TcpListener::bind(format!("[::]:{port}")).expect("bind");
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let _ = stream.write_all(from.ip().to_canonical().to_string().as_bytes());
            }
        });
    }
}
