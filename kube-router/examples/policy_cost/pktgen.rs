//! The kernel's packet generator: UDP from the client's interface, through the node, up to the server's interface.
//!
//! There every packet is counted by the interface and dropped before anything else sees it, so that the figure is that
//! of the way: generator, both veth pairs, hooks, routing. The generator lives in the namespace of who writes to its files.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::{CLIENT, PORT, SERVER},
    lab::{Lab, NODE_MACS},
};

/// Of the thread that opens it.
const FOLDER: &str = "/proc/thread-self/net/pktgen";

/// Which packets.
#[derive(Clone, Copy, Debug)]
pub enum Packets {
    /// All of one flow, from this port.
    Of(u16),
    /// Each from another port, this one being the first.
    From(u16),
}

fn write(file: &str, line: &str) -> Result<()> {
    // The kernel cuts the last byte off, whatever it is.
    fs::write(format!("{FOLDER}/{file}"), format!("{line}\n")).with_context(|| format!("pktgen {file}: {line}"))
}

fn generate(to: Ipv4Addr, packets: Packets, count: u32) -> Result<f64> {
    write("kpktgend_0", "rem_device_all")?;
    write("kpktgend_0", "add_device eth0")?;
    let (first, last) = match packets {
        Packets::Of(port) => (port, port),
        // The last one is left out.
        Packets::From(port) => (port, port + u16::try_from(count)?),
    };
    for line in [
        format!("count {count}"),
        "delay 0".into(),
        "pkt_size 64".into(),
        "clone_skb 0".into(),
        format!("dst {to}"),
        format!("dst_mac {}", NODE_MACS[0]),
        format!("udp_dst_min {PORT}"),
        format!("udp_dst_max {PORT}"),
        format!("udp_src_min {first}"),
        format!("udp_src_max {last}"),
    ] {
        write("eth0", &line)?;
    }
    write("pgctrl", "start")?;
    let text = fs::read_to_string(format!("{FOLDER}/eth0"))?;
    let result = text.split("Result: OK: ").nth(1).and_then(|rest| rest.split('(').next());
    let microseconds: f64 = result.with_context(|| text.clone())?.parse()?;
    Ok(microseconds * 1000.0 / f64::from(count))
}

fn received() -> Result<u64> {
    // sysfs shows the namespace it was mounted in; this file the one of who opens it.
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).context("eth0")?;
    Ok(line.split_whitespace().nth(1).context("packets")?.parse()?)
}

/// A packet there and one back: from now on this is an established flow to everybody.
pub fn shake_hands(lab: &Lab, to: Ipv4Addr, port: u16) -> Result<()> {
    let server = lab.server.run(|| UdpSocket::bind((SERVER, PORT)))?;
    let client = lab.client.run(move || UdpSocket::bind((CLIENT, port)))?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    }
    client.send_to(b"a", (to, PORT))?;
    let (_, from) = server.recv_from(&mut [0; 8]).context("the server got nothing")?;
    server.send_to(b"b", from)?;
    client.recv_from(&mut [0; 8]).context("the client got nothing")?;
    Ok(())
}

/// From now on nothing goes further than the server's interface.
pub fn shut(lab: &Lab) -> Result<()> {
    let table = "table netdev bench { chain in { type filter hook ingress device eth0 priority 0; drop; }; }";
    lab.server.command("nft -f -", Some(table.into()))
}

/// Nanoseconds a packet; where the clock counts instructions, these. `None`: not every packet had come through when the last
/// one was sent, so that the time is not theirs.
pub fn blast(lab: &Lab, to: Ipv4Addr, packets: Packets, count: u32) -> Result<Option<f64>> {
    let before = lab.server.run(received)?;
    let cost = lab.client.run(move || generate(to, packets, count))?;
    let through = lab.server.run(received)? - before;
    ensure!(through > 0, "nothing came through");
    Ok((through == u64::from(count)).then_some(cost))
}
