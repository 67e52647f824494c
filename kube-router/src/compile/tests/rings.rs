//! Rings as the kernel's source says they are. The figures of single clients were computed by a second implementation in
//! another language; that real kernels agree is seen in `tests/ipvs_scheduling.rs`.

use std::{collections::BTreeMap, net::SocketAddr};

use kube_router_common::{
    policy::Address,
    schedule::{NONE, Tables, dh_slot, key, mh_slot, sh_slot},
};

use crate::{
    compile::{
        policy::address_of,
        rings::{DestinationList, hashes_port, ring},
    },
    desired::Scheduler,
};

const TABLES: Tables = Tables { sh_bits: 8, dh_bits: 8, mh_index: 12 };
const SLOTS: u32 = 4_093;
const FALLBACK: u32 = 0x8;

fn pod(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 2, 0, number], 8080))
}

/// Pods 1, 2, ... with these weights, added in this order.
fn pods(weights: &[u32]) -> DestinationList {
    let mut list = DestinationList::default();
    for (number, weight) in (1..).zip(weights) {
        list.add(pod(number), *weight);
    }
    list
}

fn ring_of(scheduler: Scheduler, flags: u32, list: &DestinationList) -> Vec<u32> {
    ring(scheduler, flags, list.as_slice(), &TABLES).unwrap()
}

/// How many slots each has, and how many nobody.
fn places(ring: &[u32]) -> BTreeMap<u32, usize> {
    let mut places = BTreeMap::new();
    ring.iter().for_each(|index| *places.entry(*index).or_default() += 1);
    places
}

fn clients() -> impl Iterator<Item = u32> {
    (0..12_u8).map(|n| key(&Address::from_v4([10, 200, n, (u32::from(n) * 37 % 256) as u8]), 0))
}

fn by_mh(list: &DestinationList) -> Vec<u32> {
    let ring = ring_of(Scheduler::Mh, 0, list);
    clients().map(|client| ring[mh_slot(client, SLOTS) as usize]).collect()
}

fn by_sh(list: &DestinationList) -> Vec<u32> {
    let ring = ring_of(Scheduler::Sh, 0, list);
    clients().map(|client| ring[sh_slot(client, 8) as usize]).collect()
}

#[test]
fn single_clients_get_who_they_should() {
    assert_eq!(by_mh(&pods(&[1; 7])), [2, 2, 5, 4, 3, 4, 0, 2, 3, 0, 5, 1]);
    assert_eq!(by_sh(&pods(&[1; 7])), [5, 4, 4, 3, 3, 3, 2, 1, 0, 0, 0, 3]);
    let ports = ring_of(Scheduler::Mh, 0, &pods(&[1; 7]));
    let with_port = (40_000..).zip(clients()).map(|(port, client)| ports[mh_slot(client + port, SLOTS) as usize]);
    assert_eq!(with_port.collect::<Vec<_>>(), [0, 6, 1, 4, 1, 1, 1, 2, 6, 3, 0, 4]);

    let dh = ring_of(Scheduler::Dh, 0, &pods(&[1, 5, 1, 1, 2, 1, 1]));
    let services = (0..12_u8).map(|n| key(&Address::from_v4([10, 96, n, (u32::from(n) * 37 % 256) as u8]), 0));
    let answers: Vec<u32> = services.map(|service| dh[dh_slot(service, 8) as usize]).collect();
    assert_eq!(answers, [4, 4, 0, 0, 6, 6, 5, 4, 4, 3, 3, 2], "whatever the weight");

    let mut list = DestinationList::default();
    (1..=7).for_each(|n| list.add(format!("[fd00:2::{n}]:8080").parse().unwrap(), 1));
    let (mh, sh) = (ring_of(Scheduler::Mh, 0, &list), ring_of(Scheduler::Sh, 0, &list));
    let clients: Vec<u32> = (0..12_u32)
        .map(|n| format!("2001:db8:{n:x}:{:x}::{:x}", n * 7, n * 1021).parse().unwrap())
        .map(|ip| key(&address_of(ip), 0))
        .collect();
    let answers: Vec<u32> = clients.iter().map(|client| mh[mh_slot(*client, SLOTS) as usize]).collect();
    assert_eq!(answers, [0, 0, 1, 1, 4, 5, 3, 6, 1, 6, 4, 3]);
    let answers: Vec<u32> = clients.iter().map(|client| sh[sh_slot(*client, 8) as usize]).collect();
    assert_eq!(answers, [4, 6, 2, 0, 5, 0, 0, 0, 2, 4, 5, 6]);
}

#[test]
fn weights_are_shares_of_sh_and_mh() {
    let list = pods(&[3, 1, 5, 1, 4, 7, 2]);
    assert_eq!(
        places(&ring_of(Scheduler::Sh, 0, &list)).into_values().collect::<Vec<_>>(),
        [24, 78, 44, 11, 55, 11, 33]
    );
    assert_eq!(
        places(&ring_of(Scheduler::Mh, 0, &list)).into_values().collect::<Vec<_>>(),
        [356, 1_246, 712, 178, 890, 178, 533]
    );
    // What they have in common does not count.
    assert_eq!(by_mh(&pods(&[30, 10, 50, 10, 40, 70, 20])), by_mh(&list));
    // A weight of 16 bits is brought down to 6, and who would get less than one slot a round gets one.
    let rough = places(&ring_of(Scheduler::Mh, 0, &pods(&[65_535, 1, 300])));
    assert_eq!(rough, BTreeMap::from([(0, 63), (1, 63), (2, 3_967)]));
    // sh has no such care: the table ends in the first one's share.
    assert_eq!(places(&ring_of(Scheduler::Sh, 0, &pods(&[1, 1, 65_535]))), BTreeMap::from([(0, 256)]));
    for scheduler in [Scheduler::Dh, Scheduler::Rr] {
        assert_eq!(ring_of(scheduler, 0, &list), ring_of(scheduler, 0, &pods(&[1; 7])), "{scheduler:?}");
    }
}

#[test]
fn the_newest_is_first_and_edits_keep_the_place() {
    let mut list = pods(&[1, 1, 1]);
    let order = |list: &DestinationList| list.as_slice().iter().map(|l| l.destination).collect::<Vec<_>>();
    assert_eq!(order(&list), [pod(3), pod(2), pod(1)]);
    list.edit(pod(2), 0);
    list.add(pod(2), 9);
    list.edit(pod(4), 9);
    assert_eq!(order(&list), [pod(3), pod(2), pod(1)], "what the kernel refuses changes nothing");
    assert_eq!((list.as_slice()[1].weight, list.as_slice()[1].last_weight), (0, Some(1)));
    list.delete(pod(2));
    list.add(pod(2), 0);
    assert_eq!(order(&list), [pod(2), pod(3), pod(1)]);
    assert_eq!(list.as_slice()[0].last_weight, Some(0), "added anew");
    list.edit(pod(2), 4);
    list.edit(pod(2), 0);
    assert_eq!(list.as_slice()[0].last_weight, Some(4));

    let read = DestinationList::from_dump([(pod(2), 0), (pod(3), 1), (pod(1), 1)]);
    assert_eq!(order(&read), order(&list));
    assert_eq!(ring(Scheduler::Sh, 0, read.as_slice(), &TABLES), ring(Scheduler::Sh, 0, list.as_slice(), &TABLES));
    assert_eq!(ring(Scheduler::Mh, 0, read.as_slice(), &TABLES), None, "nobody knows the last weight");
}

#[test]
fn drained_clients_are_refused_and_who_else_moves() {
    // Weight 1, so that sh leaves the others where they are as well.
    for scheduler in [Scheduler::Sh, Scheduler::Dh, Scheduler::Mh] {
        let mut list = pods(&[1; 7]);
        let before = ring_of(scheduler, 0, &list);
        list.edit(pod(3), 0);
        let after = ring_of(scheduler, 0, &list);
        let wanted: Vec<u32> = before.iter().map(|index| if *index == 4 { NONE } else { *index }).collect();
        assert_eq!(after, wanted, "{scheduler:?}");
    }
    // Of five slots a round sh leaves one.
    let mut list = pods(&[1, 5, 1]);
    let before = ring_of(Scheduler::Sh, 0, &list);
    list.edit(pod(2), 0);
    let after = ring_of(Scheduler::Sh, 0, &list);
    assert_eq!((&before[..7], &after[..7]), (&[0, 1, 1, 1, 1, 1, 2][..], &[0, NONE, 2, 0, NONE, 2, 0][..]));
    // mh knows what it was.
    let before = by_mh(&pods(&[1, 5, 1]));
    let after = by_mh(&list);
    assert!(before.iter().zip(&after).all(|(before, after)| *after == if *before == 1 { NONE } else { *before }));
    // Of one that was added with 0 it knows nothing.
    assert_eq!(places(&ring_of(Scheduler::Mh, 0, &pods(&[1, 0, 1]))), BTreeMap::from([(0, 2_047), (2, 2_046)]));
    assert_eq!(places(&ring_of(Scheduler::Sh, 0, &pods(&[1, 0, 1])))[&NONE], 85);
}

#[test]
fn shs_fallback_is_in_the_ring_and_mhs_is_not() {
    let mut list = pods(&[1, 1, 1, 1]);
    list.edit(pod(3), 0);
    list.edit(pod(2), 0);
    // Slot 1 goes on at 2 and finds 3; slot 2 finds 4; slot 5 goes on at 10 and finds 11; slot 6 finds 12.
    assert_eq!(ring_of(Scheduler::Sh, 0, &list)[..8], [0, NONE, NONE, 3, 0, NONE, NONE, 3]);
    assert_eq!(ring_of(Scheduler::Sh, FALLBACK, &list)[..8], [0, 3, 0, 3, 0, 3, 0, 3]);
    assert_eq!(ring_of(Scheduler::Mh, FALLBACK, &list), ring_of(Scheduler::Mh, 0, &list));
    assert!(places(&ring_of(Scheduler::Mh, FALLBACK, &list))[&NONE] > 2_000);
}

#[test]
fn nobody_to_pick() {
    let drained = {
        let mut list = pods(&[1, 2]);
        list.edit(pod(1), 0);
        list.edit(pod(2), 0);
        list
    };
    for list in [DestinationList::default(), pods(&[0, 0]), drained] {
        for scheduler in [Scheduler::Sh, Scheduler::Dh, Scheduler::Mh, Scheduler::Rr] {
            let ring = ring_of(scheduler, FALLBACK, &list);
            let slots = match scheduler {
                Scheduler::Mh => SLOTS as usize,
                Scheduler::Rr => 0,
                _ => 256,
            };
            assert_eq!((ring.len(), ring.iter().all(|index| *index == NONE)), (slots, true), "{scheduler:?} {list:?}");
        }
    }
}

#[test]
fn what_cannot_be_foretold_has_no_ring() {
    let list = pods(&[1, 1]);
    for scheduler in [Scheduler::Lc, Scheduler::Other] {
        assert_eq!(ring(scheduler, 0, list.as_slice(), &TABLES), None);
    }
    assert_eq!(ring(Scheduler::Rr, 0, pods(&[1, u32::MAX]).as_slice(), &TABLES), None, "not plain NAT");
    let small = Tables { mh_index: 8, ..TABLES };
    let many = |count: u32| {
        let mut list = DestinationList::default();
        (0..count).for_each(|n| list.add(SocketAddr::from((n.to_be_bytes(), 80)), 1));
        list
    };
    assert_eq!(ring(Scheduler::Mh, 0, many(251).as_slice(), &small).map(|ring| places(&ring).len()), Some(251));
    assert_eq!(ring(Scheduler::Mh, 0, many(252).as_slice(), &small), None, "the kernel keeps its old table");
    assert_eq!(ring(Scheduler::Mh, 0, list.as_slice(), &Tables { mh_index: 7, ..TABLES }), None);
}

#[test]
fn ports_count_if_the_flag_says_so() {
    let answers = [(Scheduler::Mh, 0x18), (Scheduler::Mh, 0x8), (Scheduler::Sh, 0x10), (Scheduler::Dh, 0x10)]
        .map(|(scheduler, flags)| hashes_port(scheduler, flags));
    assert_eq!(answers, [true, false, true, false]);
}

/// The figures of the module's story: clients of 10,000 that move when one of 100 destinations leaves, on average, at least
/// and at most; and how many of them had the one that left.
#[test]
fn mh_moves_few_clients_and_sh_most_when_one_of_a_hundred_leaves() {
    let hundred = pods(&[1; 100]);
    let clients: Vec<u32> =
        (0..10_000_u32).map(|n| key(&address_of([10, 200, (n / 256) as u8, n as u8].into()), 0)).collect();
    let answers = |scheduler: Scheduler, list: &DestinationList| -> Vec<SocketAddr> {
        let ring = ring_of(scheduler, 0, list);
        let slot = |client| if scheduler == Scheduler::Mh { mh_slot(client, SLOTS) } else { sh_slot(client, 8) };
        clients.iter().map(|client| list.as_slice()[ring[slot(*client) as usize] as usize].destination).collect()
    };
    let figures = |scheduler| {
        let before = answers(scheduler, &hundred);
        let moved: Vec<[usize; 2]> = (1..=100)
            .map(|number| {
                let mut list = hundred.clone();
                list.delete(pod(number));
                let after = answers(scheduler, &list);
                let moved = || before.iter().zip(&after).filter(|(before, after)| before != after);
                [moved().count(), moved().filter(|(before, _)| **before == pod(number)).count()]
            })
            .collect();
        let sum = |which: usize| moved.iter().map(|counts| counts[which]).sum::<usize>();
        [sum(0) / 100, moved.iter().min().unwrap()[0], moved.iter().max().unwrap()[0], sum(1) / 100]
    };
    assert_eq!(figures(Scheduler::Mh), [387, 338, 437, 100]);
    assert_eq!(figures(Scheduler::Sh), [8_066, 6_134, 10_000, 100]);
}
