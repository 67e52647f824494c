//! Rings against a real kernel: every client gets the destination from IPVS that `compile::rings` and
//! `kube_router_common::schedule` say, before and after destinations come, go, drain and change their weight.
//!
//! Clients are addresses of local routes, with one datagram each; the kernel's table of connections tells who got whom. The
//! tables have the sizes of Debian's kernels. Needs root, the module ip_vs, and modprobe, ip, sysctl and ipvsadm.

#[path = "ipvs_kernel/support.rs"]
#[allow(dead_code, reason = "the other file uses the rest")]
mod support;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use kube_router::{
    apply::ipvs::Ipvs,
    compile::{
        policy::address_of,
        rings::{DestinationList, hashes_port, ring},
    },
    desired::{Scheduler, VirtualKey},
    objects::Protocol,
    plan::IpvsOp,
};
use kube_router_common::schedule::{self, NONE, Tables};

use crate::support::{add, add_destination, apply, in_namespace, run, server};

const FALLBACK: u32 = 0x8;
const PORT: u32 = 0x10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// Who may ask: addresses that differ in all of their bits.
    fn client(self, number: u32) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::from(0x6440_0000 + (number * 419) % (1 << 22)).into(),
            Family::V6 => {
                let low = u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) >> 32;
                Ipv6Addr::from(0x2001_0db8_u128 << 96 | low).into()
            }
        }
    }

    fn service(self, number: u16) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::from(0x0a60_0000 + u32::from(number)).into(),
            Family::V6 => Ipv6Addr::from(0xfd00_0096_u128 << 96 | u128::from(number)).into(),
        }
    }

    fn pod(self, number: u8) -> SocketAddr {
        match self {
            Family::V4 => ([10, 2, 0, number], 8080).into(),
            Family::V6 => (Ipv6Addr::from(0xfd00_0002_u128 << 96 | u128::from(number)), 8080).into(),
        }
    }

    fn routes(self) -> [&'static str; 3] {
        match self {
            Family::V4 => ["100.64.0.0/10", "10.96.0.0/16", "10.2.0.0/24"],
            Family::V6 => ["2001:db8::/32", "fd00:96::/32", "fd00:2::/32"],
        }
    }
}

/// Virtual servers that all have the same scheduler, flags and destinations; what we believe of them beside what is.
struct Servers {
    ipvs: Ipvs,
    family: Family,
    scheduler: Scheduler,
    flags: u32,
    keys: Vec<VirtualKey>,
    list: DestinationList,
    /// Rounds of clients so far: each is of new connections.
    rounds: u32,
    _pods: Vec<UdpSocket>,
}

impl Servers {
    /// With pods 1, 2, ... of these weights, added in this order.
    fn new(mut ipvs: Ipvs, family: Family, scheduler: Scheduler, count: u16, weights: &[u32]) -> Self {
        run("sysctl", &["-qw", "net.ipv6.ip_nonlocal_bind=1"]);
        for route in family.routes() {
            run("ip", &["route", "add", "local", route, "dev", "lo"]);
        }
        let key = |number| VirtualKey { address: family.service(number), protocol: Protocol::Udp, port: 53 };
        let keys: Vec<_> = (1..=count).map(key).collect();
        let orders: Vec<_> = keys.iter().map(|key| add(*key, server(scheduler, 0, None))).collect();
        apply(&mut ipvs, &orders);
        // Nobody reads; without them each datagram would be answered by an error.
        let _pods = (1..=weights.len() as u8).map(|number| UdpSocket::bind(family.pod(number)).unwrap()).collect();
        let list = DestinationList::default();
        let mut servers = Servers { ipvs, family, scheduler, flags: 0, keys, list, rounds: 0, _pods };
        for (number, weight) in (1..).zip(weights) {
            servers.add(number, *weight);
        }
        servers
    }

    fn apply(&mut self, order: impl Fn(VirtualKey) -> IpvsOp) {
        let orders: Vec<_> = self.keys.iter().map(|key| order(*key)).collect();
        apply(&mut self.ipvs, &orders);
    }

    fn add(&mut self, pod: u8, weight: u32) {
        let destination = self.family.pod(pod);
        self.apply(|key| add_destination(key, &destination.to_string(), weight));
        self.list.add(destination, weight);
    }

    fn edit(&mut self, pod: u8, weight: u32) {
        let destination = self.family.pod(pod);
        self.apply(|key| IpvsOp::EditDestination { key, destination, weight });
        self.list.edit(destination, weight);
    }

    fn delete(&mut self, pod: u8) {
        let destination = self.family.pod(pod);
        self.apply(|key| IpvsOp::DeleteDestination { key, destination });
        self.list.delete(destination);
    }

    fn set(&mut self, scheduler: Scheduler, flags: u32) {
        self.apply(|key| IpvsOp::EditServer { key, server: server(scheduler, flags, None) });
        (self.scheduler, self.flags) = (scheduler, flags);
    }

    /// So many clients ask, each one server; every one must get whom the ring says. Returns how many got nobody.
    #[track_caller]
    fn check(&mut self, clients: u32) -> usize {
        self.rounds += 1;
        let asked: Vec<(SocketAddr, VirtualKey, bool)> = (0..clients)
            .map(|number| {
                let port = 1_024 + (number * 7_919 + self.rounds * 1_009) % 60_000;
                let client = SocketAddr::new(self.family.client(number), port as u16);
                let key = self.keys[number as usize % self.keys.len()];
                (client, key, is_let_through(client, key))
            })
            .collect();
        let found = connections();
        let ring = ring(self.scheduler, self.flags, self.list.as_slice(), &Tables::default()).expect("a ring");
        let (mut wrong, mut refused) = (Vec::new(), 0);
        for (client, key, let_through) in asked {
            let wanted = self.pick(&ring, client, key);
            let got = found.get(&(client, SocketAddr::new(key.address, key.port))).copied();
            if wanted != got || let_through != got.is_some() {
                wrong.push(format!("{client} to {key}: {got:?} (let through: {let_through}) instead of {wanted:?}"));
            }
            refused += usize::from(got.is_none());
        }
        assert!(
            wrong.is_empty(),
            "{:?} flags {:#x}: {} of {clients} clients are wrong, {:#?}",
            self.scheduler,
            self.flags,
            wrong.len(),
            &wrong[..wrong.len().min(8)]
        );
        println!("{:?} {:?} {:#x}: {clients} clients, {refused} refused", self.family, self.scheduler, self.flags);
        refused
    }

    fn pick(&self, ring: &[u32], client: SocketAddr, key: VirtualKey) -> Option<SocketAddr> {
        let tables = Tables::default();
        let port = if hashes_port(self.scheduler, self.flags) { client.port() } else { 0 };
        let client = schedule::key(&address_of(client.ip()), port);
        let at = |slot: u32| ring[slot as usize];
        let slots = tables.mh_slots().unwrap();
        let index = match self.scheduler {
            Scheduler::Sh => at(schedule::sh_slot(client, tables.sh_bits)),
            Scheduler::Dh => at(schedule::dh_slot(schedule::key(&address_of(key.address), 0), tables.dh_bits)),
            Scheduler::Mh if self.flags & FALLBACK != 0 => schedule::mh_fallback(client, slots, slots, at),
            Scheduler::Mh => at(schedule::mh_slot(client, slots)),
            other => panic!("{other:?} hashes nothing"),
        };
        (index != NONE).then(|| self.list.as_slice()[index as usize].destination)
    }

    /// Does the kernel list the destinations in the order that we believe?
    #[track_caller]
    fn check_order(&self) {
        let table = run("ipvsadm", &["-Ln", "--nosort"]);
        let listed: Vec<(SocketAddr, u32)> = table
            .lines()
            .filter_map(|line| line.trim().strip_prefix("-> "))
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.parse().ok()?, words.nth(1)?.parse().ok()?))
            })
            .collect();
        let wanted: Vec<_> = self.list.as_slice().iter().map(|listed| (listed.destination, listed.weight)).collect();
        assert_eq!(listed, wanted, "{table}");
    }
}

/// Sends one datagram. A refused one is dropped on its way out, which the sender is told.
fn is_let_through(client: SocketAddr, key: VirtualKey) -> bool {
    let socket = UdpSocket::bind(client).unwrap_or_else(|error| panic!("bind {client}: {error}"));
    match socket.send_to(b"?", (key.address, key.port)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
        Err(error) => panic!("{client} to {key}: {error}"),
    }
}

/// (client, virtual server) and the destination of all connections.
fn connections() -> HashMap<(SocketAddr, SocketAddr), SocketAddr> {
    let table = fs::read_to_string("/proc/thread-self/net/ip_vs_conn").unwrap();
    let connection = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let socket = |at: usize| {
            let port = u16::from_str_radix(words[at + 1], 16).expect("a port");
            let ip = match u32::from_str_radix(words[at], 16) {
                Ok(v4) => Ipv4Addr::from(v4).into(),
                Err(_) => words[at].parse::<Ipv6Addr>().expect("an address").into(),
            };
            SocketAddr::new(ip, port)
        };
        ((socket(1), socket(3)), socket(5))
    };
    table.lines().skip(1).map(connection).collect()
}

fn one_comes_and_goes(mut servers: Servers, clients: u32) {
    assert_eq!(servers.check(10 * clients), 0);
    servers.delete(3);
    assert_eq!(servers.check(clients), 0);
    servers.edit(5, 0);
    assert_ne!(servers.check(clients), 0);
    servers.add(3, 1);
    if servers.keys.len() == 1 {
        servers.check_order();
    }
    assert_ne!(servers.check(clients), 0);
    servers.edit(5, 1);
    assert_eq!(servers.check(clients), 0);
}

/// Different weights; then two drain, one of them with more than its share; with every combination of flags.
fn weights_and_flags(mut servers: Servers) {
    let scheduler = servers.scheduler;
    assert_eq!(servers.list.as_slice().len(), 7);
    for pods_to_drain in [&[][..], &[3, 6]] {
        pods_to_drain.iter().for_each(|pod| servers.edit(*pod, 0));
        for flags in [0, FALLBACK, PORT, FALLBACK | PORT] {
            servers.set(scheduler, flags);
            let refused = servers.check(1_000);
            if flags & FALLBACK != 0 {
                assert_eq!(refused, 0);
            }
        }
    }
    if servers.family == Family::V4 {
        servers.check_order();
    }
}

const WEIGHTS: [u32; 7] = [3, 1, 5, 0, 4, 7, 2];

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn sh_over_ipv4() {
    in_namespace(|ipvs| one_comes_and_goes(Servers::new(ipvs, Family::V4, Scheduler::Sh, 1, &[1; 7]), 1_000));
    in_namespace(|ipvs| weights_and_flags(Servers::new(ipvs, Family::V4, Scheduler::Sh, 1, &WEIGHTS)));
}

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn sh_over_ipv6() {
    in_namespace(|ipvs| one_comes_and_goes(Servers::new(ipvs, Family::V6, Scheduler::Sh, 1, &[1; 7]), 100));
    in_namespace(|ipvs| weights_and_flags(Servers::new(ipvs, Family::V6, Scheduler::Sh, 1, &WEIGHTS)));
}

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn dh_over_ipv4() {
    in_namespace(|ipvs| one_comes_and_goes(Servers::new(ipvs, Family::V4, Scheduler::Dh, 500, &[1; 7]), 1_000));
    in_namespace(|ipvs| {
        let mut servers = Servers::new(ipvs, Family::V4, Scheduler::Dh, 100, &WEIGHTS);
        assert_ne!(servers.check(100), 0, "one was added with weight 0");
    });
}

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn dh_over_ipv6() {
    in_namespace(|ipvs| one_comes_and_goes(Servers::new(ipvs, Family::V6, Scheduler::Dh, 100, &[1; 7]), 100));
}

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn mh_over_ipv4() {
    in_namespace(|ipvs| one_comes_and_goes(Servers::new(ipvs, Family::V4, Scheduler::Mh, 1, &[1; 7]), 1_000));
    in_namespace(|ipvs| weights_and_flags(Servers::new(ipvs, Family::V4, Scheduler::Mh, 1, &WEIGHTS)));
}

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn mh_over_ipv6() {
    in_namespace(|ipvs| one_comes_and_goes(Servers::new(ipvs, Family::V6, Scheduler::Mh, 1, &[1; 7]), 100));
    in_namespace(|ipvs| weights_and_flags(Servers::new(ipvs, Family::V6, Scheduler::Mh, 1, &WEIGHTS)));
}

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn mh_remembers_weights_until_a_destination_is_added_again() {
    in_namespace(|ipvs| {
        let mut servers = Servers::new(ipvs, Family::V4, Scheduler::Mh, 1, &[65_535, 1, 300, 9_000]);
        servers.check(1_000);
        servers.edit(4, 0);
        assert_ne!(servers.check(1_000), 0);
        // Its connections keep it in the trash, from where it comes back without its last weight.
        servers.delete(4);
        servers.add(4, 0);
        assert_eq!(servers.check(1_000), 0);
        servers.edit(4, 9_000);
        servers.edit(1, 0);
        assert_ne!(servers.check(1_000), 0);
        for pod in 2..=4 {
            servers.edit(pod, 0);
        }
        servers.set(Scheduler::Mh, FALLBACK);
        assert_eq!(servers.check(100), 100);
    });
}

/// A scheduler makes its table when it is bound, from the destinations as they are then.
#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn a_change_of_the_scheduler_changes_the_table() {
    in_namespace(|ipvs| {
        let mut servers = Servers::new(ipvs, Family::V4, Scheduler::Rr, 1, &[3, 1, 4]);
        servers.edit(3, 0);
        for scheduler in [Scheduler::Mh, Scheduler::Sh, Scheduler::Dh, Scheduler::Mh] {
            servers.set(scheduler, 0);
            servers.check(500);
        }
    });
}

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4 --filter ipvs_scheduling"]
fn rr_gives_the_same_to_all_that_take_turns() {
    in_namespace(|ipvs| {
        let servers = Servers::new(ipvs, Family::V4, Scheduler::Rr, 1, &[1, 0, 7, 1]);
        assert!((0..60).all(|n| is_let_through(SocketAddr::new(Family::V4.client(n), 1_024), servers.keys[0])));
        let mut counts = BTreeMap::<SocketAddr, u32>::new();
        connections().into_values().for_each(|destination| *counts.entry(destination).or_default() += 1);
        let list = servers.list.as_slice();
        let turns = ring(Scheduler::Rr, 0, list, &Tables::default()).unwrap();
        let wanted = turns.iter().map(|index| (list[*index as usize].destination, 20)).collect();
        assert_eq!(counts, wanted);
    });
}
