//! A pod's program, for demonstrations and for pods of a real runtime: `kube_router_tests::server` until it is killed.

use std::net::{Ipv4Addr, Ipv6Addr};

use clap::Parser;
use kube_router_tests::server::{Server, ServerSpec};

/// Answers over TCP (also HTTP), UDP and SCTP with its name, its address and the client's
#[derive(Parser)]
struct Args {
    /// What it calls itself
    #[arg(long)]
    name: String,
    /// Its IPv4 address; without one it does not serve IPv4
    #[arg(long)]
    ip4: Option<Ipv4Addr>,
    /// Its IPv6 address; without one it does not serve IPv6
    #[arg(long)]
    ip6: Option<Ipv6Addr>,
    /// TCP port; repeatable
    #[arg(long)]
    tcp: Vec<u16>,
    /// UDP port; repeatable
    #[arg(long)]
    udp: Vec<u16>,
    /// SCTP port; repeatable
    #[arg(long)]
    sctp: Vec<u16>,
}

fn main() -> anyhow::Result<()> {
    let Args { name, ip4, ip6, tcp, udp, sctp } = Args::parse();
    let server = Server::start(ServerSpec { name, ip4, ip6, tcp, udp, sctp })?;
    println!("ready");
    server.forever();
    Ok(())
}
