//! What became of a first packet: what tcpdump saw of it at each interface of the node, what the agent counts against its
//! pod, and what the pod's own kernel counts. An interface's hook stands behind the capture on the way in, and before it on
//! the way out.

use std::{process::Command, time::Duration};

use kube_router_tests::{
    agent::Agent,
    lab::{Node, Pod},
    process::Process,
};

const SOON: Duration = Duration::from_secs(10);
/// The newest lines are told, so many.
const LINES: usize = 200;

pub struct Witness(Process);

impl Witness {
    /// Sees what `client` sends and gets, and how neighbours find each other.
    pub fn call(node: &Node, client: &Pod) -> Witness {
        let hosts: Vec<String> = client.addresses.iter().map(|ip| format!("host {ip}")).collect();
        let mut tcpdump = Command::new("tcpdump");
        tcpdump
            .args(["--immediate-mode", "-l", "-nn", "-e", "-i", "any", "-s", "128"])
            .arg(format!("icmp6 or {}", hosts.join(" or ")));
        let mut process = node.ns.spawn("tcpdump", tcpdump).expect("tcpdump, which `cargo xtask setup` installs");
        process.wait_for_line(SOON, |line| line.contains("listening on")).unwrap();
        Witness(process)
    }

    /// How somebody at `port` of one of these addresses called the client, and who asked for the address.
    pub fn saw(&self, addresses: &[String], port: u16) -> Vec<String> {
        let callers: Vec<String> = addresses.iter().map(|address| format!("{address}.{port}")).collect();
        let asks = |line: &str| [" ARP ", " neighbor "].iter().any(|what| line.contains(what));
        let of = |line: &String| {
            callers.iter().any(|caller| is_of(line, caller)) || asks(line) && addresses.iter().any(|ip| is_of(line, ip))
        };
        let mut lines: Vec<String> = self.0.log().into_iter().rev().filter(of).take(LINES).collect();
        lines.reverse();
        lines
    }
}

/// Does a line of tcpdump name this address, or address and port?
fn is_of(line: &str, whom: &str) -> bool {
    line.split(' ').any(|word| word.trim_end_matches([':', ',']) == whom)
}

/// The agent's counts of what it refused `pod`, by direction and reason.
pub fn refused(agent: &Agent, port: u16, pod: &str) -> Vec<String> {
    let (_, text) = agent.http(port, "/metrics").unwrap_or_default();
    let label = format!("pod=\"{pod}\"");
    let of = |line: &&str| line.starts_with("kube_router_policy_drops_total") && line.contains(&label);
    text.lines().filter(of).map(str::to_owned).collect()
}

/// What the kernel says of the calling thread's namespace.
pub fn counts() -> String {
    let show = |(program, arguments): (&str, &[&str])| {
        let output = Command::new(program).args(arguments).output();
        output.map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    [("nstat", &["-a"][..]), ("ip", &["-s", "-s", "link"]), ("ip", &["neigh"])].map(show).join("\n")
}
