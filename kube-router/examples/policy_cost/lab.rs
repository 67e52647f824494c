//! A node with two pods, as network namespaces on threads of their own.
//!
//! ```text
//!   client 10.130.0.10 ── veth kr-client ┐
//!                                        ├ node: routes, no bridge
//!   server 10.130.0.11 ── veth kr-server ┘
//! ```
//!
//! Hardware addresses are chosen and neighbours permanent, so that no ARP falls into a measurement.

use std::{
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

use crate::cluster::{CLIENT, NODE_ADDRESS, SERVER};

type Job = Box<dyn FnOnce() + Send>;

/// A namespace that lives as long as this value; jobs run in it.
pub struct Namespace {
    jobs: mpsc::Sender<Job>,
    tid: i32,
}

impl Namespace {
    pub fn new() -> Result<Namespace> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        thread::spawn(move || {
            let result = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw());
            // Who waits for it is there.
            let _ = ready.send(result);
            for job in inbox {
                job();
            }
        });
        let tid = made.recv()?.context("a network namespace (needs root)")?;
        Ok(Namespace { jobs, tid })
    }

    /// Waits for it. A panic of the job is one here, too.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(answer.send(job())))).expect("the thread lives as long as its namespace");
        result.recv().expect("the job did not panic")
    }

    /// A command line without quotes, and what it reads.
    pub fn command(&self, line: &str, input: Option<String>) -> Result<()> {
        let line = line.to_owned();
        self.run(move || command(&line, input))
    }
}

fn command(line: &str, input: Option<String>) -> Result<()> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().context("a program")?);
    command.args(words).stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() }).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| line.to_owned())?;
    let writer = child
        .stdin
        .take()
        .zip(input)
        .map(|(mut stdin, input)| thread::spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes())));
    let output = child.wait_with_output()?;
    if let Some(writer) = writer {
        // A program that ends before it has read everything says so by its status.
        let _ = writer.join();
    }
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {} {said}", output.status);
    Ok(())
}

pub struct Lab {
    pub node: Namespace,
    pub client: Namespace,
    pub server: Namespace,
}

/// The gateway's address on every pod's link.
const GATEWAY: &str = "169.254.1.1";
/// The node's ends, in the order client, server.
pub const NODE_MACS: [&str; 2] = ["0a:58:00:00:00:01", "0a:58:00:00:00:02"];
const POD_MACS: [&str; 2] = ["0a:58:0a:82:00:0a", "0a:58:0a:82:00:0b"];

impl Lab {
    pub fn new() -> Result<Lab> {
        let lab = Lab { node: Namespace::new()?, client: Namespace::new()?, server: Namespace::new()? };
        for namespace in [&lab.node, &lab.client, &lab.server] {
            // Or discovery would come between the packets that are counted. `/proc/sys/net` is that of the thread that
            // opens it.
            let quiet = |which| std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
            namespace.run(move || ["all", "default"].into_iter().try_for_each(quiet)).context("disable_ipv6")?;
        }
        let ip =
            |namespace: &Namespace, lines: &[String]| namespace.command("ip -batch -", Some(lines.join("\n") + "\n"));
        ip(&lab.node, &["link set lo up".into(), format!("address add {NODE_ADDRESS}/32 dev lo")])?;
        let pods: [(&Namespace, &str, Ipv4Addr); 2] =
            [(&lab.client, "kr-client", CLIENT), (&lab.server, "kr-server", SERVER)];
        for (n, (pod, link, address)) in pods.into_iter().enumerate() {
            let (node_mac, pod_mac, netns) = (NODE_MACS[n], POD_MACS[n], pod.tid);
            ip(
                &lab.node,
                &[
                    format!(
                        "link add {link} address {node_mac} type veth peer name eth0 address {pod_mac} netns {netns}"
                    ),
                    format!("address add {GATEWAY}/32 dev {link}"),
                    format!("link set {link} up"),
                    format!("route add {address}/32 dev {link}"),
                    format!("neighbour replace {address} lladdr {pod_mac} dev {link} nud permanent"),
                ],
            )?;
            ip(
                pod,
                &[
                    "link set lo up".into(),
                    format!("address add {address}/32 dev eth0"),
                    "link set eth0 up".into(),
                    format!("route add {GATEWAY}/32 dev eth0"),
                    format!("route add default via {GATEWAY}"),
                    format!("neighbour replace {GATEWAY} lladdr {node_mac} dev eth0 nud permanent"),
                ],
            )?;
        }
        lab.node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).context("ip_forward")?;
        Ok(lab)
    }
}
