//! What a packet from a pod to a service costs, whose backend is another pod of the node: by IPVS as the agent sets it up, and
//! past it, one policy judged on both sides. For comparison: from pod to pod, without either.

use std::{net::Ipv4Addr, thread};

use anyhow::{Result, ensure};
use kube_router::apply::bpf::Dataplane;
use kube_router_common::{
    balance::{Backend, RingKey, Vip},
    config::Config,
    policy::{Address, Peer, Service, ServiceKey},
};
use serde_json::json;

use crate::{
    cluster::{Measured, PORT, SERVER},
    enforce::Agent,
    lab::Lab,
    path::{CLEAN_UP, COUNT, median},
    pins::Pins,
    pktgen::{self, Packets},
};

/// The measured one; others follow.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const UDP: u8 = 17;

#[derive(Clone, Copy)]
enum Way {
    Plain,
    Ipvs,
    /// Among so many services.
    Past(u32),
}

pub fn run() -> Result<()> {
    // Fills the kernel's allocators and loads modules.
    measure(Way::Plain)?;
    for way in [Way::Plain, Way::Ipvs, Way::Past(10), Way::Past(1_000), Way::Past(10_000)] {
        let (established, new) = measure(way)?;
        let (name, services) = match way {
            Way::Plain => ("plain", 0),
            Way::Ipvs => ("ipvs", 1),
            Way::Past(services) => ("fast", services),
        };
        let line =
            json!({"what": "service", "way": name, "services": services, "established_ns": established, "new_ns": new});
        println!("{line}");
    }
    Ok(())
}

fn measure(way: Way) -> Result<(f64, f64)> {
    let lab = Lab::new()?;
    let (to, pins) = match way {
        Way::Plain => (SERVER, None),
        Way::Ipvs => {
            serve_by_ipvs(&lab)?;
            (VIP, None)
        }
        Way::Past(services) => (VIP, Some(serve_past(&lab, services)?)),
    };
    thread::sleep(CLEAN_UP);
    let established = 4_000;
    pktgen::shake_hands(&lab, to, established)?;
    pktgen::shut(&lab)?;
    let first = |round: u16| 10_000 + round * COUNT;
    let costs =
        [median(&lab, to, |_| Packets::Of(established))?, median(&lab, to, |round| Packets::From(first(round)))?];
    drop((lab, pins));
    thread::sleep(CLEAN_UP);
    Ok((costs[0], costs[1]))
}

fn serve_by_ipvs(lab: &Lab) -> Result<()> {
    for line in [
        format!("ip address add {VIP}/32 dev lo"),
        "sysctl -q -w net.ipv4.vs.conntrack=1 net.ipv4.vs.expire_nodest_conn=1".to_owned(),
        format!("ipvsadm -A -u {VIP}:{PORT} -s rr"),
        format!("ipvsadm -a -u {VIP}:{PORT} -r {SERVER}:{PORT} -m"),
    ] {
        lab.node.command(&line, None)?;
    }
    Ok(())
}

fn serve_past(lab: &Lab, services: u32) -> Result<Pins> {
    let pins = Pins::new()?;
    let base = pins.path().to_owned();
    lab.node.run(move || -> Result<()> {
        let mut agent = Agent::start(&base)?;
        agent.take(Measured { policies: 1, neighbours: 0, last: false }.objects())?;
        for id in 1..=services {
            serve(agent.plane.dataplane(), id)?;
        }
        let config = agent.plane.dataplane().tables().config()?;
        ensure!(config.has(Config::FAST), "the fast path is off");
        Ok(())
    })?;
    Ok(pins)
}

fn serve(dataplane: &Dataplane, id: u32) -> Result<()> {
    let (maps, balance) = (dataplane.tables(), dataplane.balance());
    let vip = Ipv4Addr::from(u32::from(VIP) + id - 1);
    let key = ServiceKey { address: Address::from_v4(vip.octets()), port: PORT, protocol: UDP, pad: 0 };
    maps.peers.put(&key.address, &Peer { class: 1, flags: Peer::SERVICE })?;
    maps.services.put(&key, &Service::default())?;
    let (flags, address) = (Backend::LIVE | Backend::OPEN, Address::from_v4(SERVER.octets()));
    balance.backends.put(&id, &Backend { address, port: PORT, flags, vip: id })?;
    balance.rings.put(&RingKey { ring: id, slot: 0 }, &id)?;
    balance.vips.put(&key, &Vip { id, ring: id, slots: 1, scheduler: Vip::RR, ..Vip::default() })?;
    Ok(())
}
