//! The first packet of a flow with a small and a large table, in real time: what a count of instructions does not show are
//! the misses of the processor's caches.
//!
//! The machine may be busy, so runs on both tables alternate, and the result is the median of the ratios of neighbours.
//! Peers are chosen at random; each has a class of its own and one row, so that addresses and rows grow together.

use std::{net::Ipv4Addr, os::fd::AsFd};

use anyhow::{Context, Result, ensure};
use kube_router::apply::bpf::{Dataplane, Options};
use kube_router_common::{
    config::{Config, Iface},
    flow::FlowKey,
    hooks::Hook,
    policy::{Address, Endpoint, Peer, PodGroups, PolicyKey, PolicyRow, port_index},
};
use serde_json::json;

use crate::{
    front::{FIRST_PEER, FIRST_POD, Front, PASS, PODS, empty},
    lab::Lab,
};

const PAIRS: usize = 201;
/// Packets of one run: far more than stay in a cache, far less than flows there is room for.
const PACKETS: u32 = 2_000;
const PORT: u16 = 80;
const PORT_CLASS: u32 = 3;
const FIRST_CLASS: u32 = 10;

fn address(number: u32) -> Address {
    Address::from_v4(Ipv4Addr::from(number).octets())
}

struct Tables {
    dataplane: Dataplane,
    front: Front,
}

impl Tables {
    fn new(rows: u32, ifindex: u32) -> Result<Tables> {
        let dataplane = Dataplane::load(&Options::default())?;
        let maps = dataplane.tables();
        let pods = 1..=PODS;
        maps.set_config(&Config { generation: 1, ..Config::default() })?;
        maps.ifaces.put(&ifindex, &Iface { flags: Iface::PUBLISHED, pod: 1, ..Iface::default() })?;
        let endpoints: Vec<_> = pods
            .clone()
            .map(|pod| (address(FIRST_POD + pod - 1), Endpoint { pod, ifindex, ..Endpoint::default() }))
            .collect();
        maps.endpoints.put_all(&endpoints)?;
        for pod in pods {
            maps.pods.put(&pod, &PodGroups { ingress: pod, egress: pod })?;
        }
        maps.ports.put(&port_index(17, PORT).context("UDP has ports")?, &PORT_CLASS)?;
        let class = |row: u32| FIRST_CLASS + row;
        let peers: Vec<_> =
            (0..rows).map(|row| (address(FIRST_PEER + row), Peer { class: class(row), flags: 0 })).collect();
        maps.peers.put_all(&peers)?;
        let allow = PolicyRow { verdict: PolicyRow::ALLOW, rule: 1 };
        let policy: Vec<_> = (0..rows)
            .map(|row| (PolicyKey { group: 1 + row % PODS, class: class(row), ports: PORT_CLASS }, allow))
            .collect();
        maps.policy.put_all(&policy)?;
        let front = Front::new(dataplane.classifier(Hook::PodIn)?.fd()?.as_fd(), rows)?;
        Ok(Tables { dataplane, front })
    }

    /// Nanoseconds for a packet that opens a flow.
    fn run(&self, packet: &[u8], ifindex: u32) -> Result<f64> {
        let (verdict, cost) = self.front.run(packet, ifindex, PACKETS)?;
        ensure!(verdict == PASS, "verdict {verdict}");
        let flows = &self.dataplane.tables().flows;
        let keys: Vec<FlowKey> = flows.read_all()?.into_iter().map(|(key, _)| key).collect();
        // Some peers come twice from the same port.
        ensure!(keys.len() > PACKETS as usize * 9 / 10, "{} flows of {PACKETS} packets", keys.len());
        flows.delete_all(&keys)?;
        Ok(cost.into())
    }
}

/// Ethernet, IPv4, UDP; addresses and source port are filled in by the front.
fn packet() -> Vec<u8> {
    let mut bytes = vec![0_u8; 14 + 20 + 8 + 22];
    bytes[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut bytes[14..];
    (ip[0], ip[3], ip[8], ip[9]) = (0x45, 50, 64, 17);
    let udp = &mut ip[20..];
    udp[2..4].copy_from_slice(&PORT.to_be_bytes());
    udp[5] = 30;
    bytes
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn run(few: u32, many: u32) -> Result<()> {
    let lab = Lab::new()?;
    let line = lab.node.run(move || measure(few, many))?;
    println!("{line}");
    Ok(())
}

fn measure(few: u32, many: u32) -> Result<serde_json::Value> {
    let ifindex = nix::net::if_::if_nametoindex("kr-server")?;
    let (small, large) = (Tables::new(few, ifindex)?, Tables::new(many, ifindex)?);
    let nothing = empty()?;
    let nothing = Front::new(nothing.as_fd(), many)?;
    let packet = packet();
    let (mut ratios, mut rows) = (Vec::new(), [Vec::new(), Vec::new()]);
    for pair in 0..PAIRS {
        // The front's own share, which both have, counts for neither.
        let own: f64 = nothing.run(&packet, ifindex, PACKETS)?.1.into();
        let (a, b) = if pair % 2 == 0 {
            let a = small.run(&packet, ifindex)?;
            (a, large.run(&packet, ifindex)?)
        } else {
            let b = large.run(&packet, ifindex)?;
            (small.run(&packet, ifindex)?, b)
        };
        ratios.push((b - own) / (a - own));
        rows[0].push(a - own);
        rows[1].push(b - own);
    }
    let [small, large] = rows.map(median);
    Ok(json!({
        "what": "lookups", "few": few, "many": many, "pairs": PAIRS, "ratio": median(ratios), "few_ns": small,
        "many_ns": large,
    }))
}
