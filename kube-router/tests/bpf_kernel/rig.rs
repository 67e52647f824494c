//! The programs with chosen tables and packets: BPF_PROG_TEST_RUN in a namespace of its own.
//!
//! A test run can set an skb's interface and mark, but not the note (tc_index) that our programs leave for each other. So a
//! program of a few instructions stands in front: it takes the note from the control buffer, calls the real program, and,
//! when the same packet is run a second time, tells the note that was left.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use kube_router::{
    apply::bpf::{Dataplane, Events, Options, Row, Table, now_s},
    plan::balance::BalanceOrder,
};
use kube_router_common::{
    balance::{Backend, VipCount},
    config::{DropKey, FragKey, FragPorts, Origin},
    event::EventHead,
    flow::{Flow, FlowKey},
    hooks::Hook,
    names,
    policy::{Address, PodGroups},
    traffic::Traffic,
    twin::{
        Packet, Tables,
        cases::{IF_1, IF_2, IF_NEW, IF_UPLINK},
    },
};
use nix::sched::{CloneFlags, unshare};

use crate::run;

pub const PASS: u32 = u32::MAX;
pub const DROP: u32 = 2;
pub const REDIRECT: u32 = 7;

const MAP_CREATE: i32 = 0;
const MAP_UPDATE: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;

/// `struct __sk_buff`, as far as the control buffer.
const MARK: usize = 8;
const IFINDEX: usize = 40;
const TC_INDEX: i16 = 44;
const CB: usize = 48;
const CONTEXT: usize = 68;
/// More than any kernel's whole `struct __sk_buff`.
const CONTEXT_OUT: usize = 256;

/// What came of a packet.
pub struct Ran {
    pub verdict: u32,
    pub bytes: Vec<u8>,
    pub mark: u32,
}

struct Attr([u8; 72]);

impl Attr {
    fn new() -> Self {
        Attr([0; 72])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn pointer<T>(mut self, at: usize, to: &[T]) -> Self {
        self.0[at..at + 8].copy_from_slice(&(to.as_ptr() as u64).to_ne_bytes());
        self
    }

    fn pointer_mut<T>(mut self, at: usize, to: &mut [T]) -> Self {
        self.0[at..at + 8].copy_from_slice(&(to.as_mut_ptr() as u64).to_ne_bytes());
        self
    }

    fn read(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("4 bytes"))
    }

    fn call(&mut self, command: i32) -> std::io::Result<i32> {
        // SAFETY: callers give pointers to memory that the command may use, and its size.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    fn call_for_fd(&mut self, command: i32) -> OwnedFd {
        let fd = self.call(command).expect("descriptor");
        // SAFETY: a descriptor that was just made for us.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }
}

/// One instruction: code, registers, offset, immediate.
fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let mut bytes = [code, from << 4 | to, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&number.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// The program in front, and the array of programs behind it.
pub struct Front {
    program: OwnedFd,
    array: OwnedFd,
}

impl Front {
    /// In front of these programs.
    pub fn of(dataplane: &Dataplane) -> Self {
        let front = Front::load();
        for hook in Hook::ALL {
            let program = dataplane.classifier(hook).expect("program").fd().expect("loaded");
            front.put(place(hook), program.as_fd());
        }
        front
    }

    fn load() -> Self {
        let array = Attr::new().u32(0, 3).u32(4, 4).u32(8, 4).u32(12, 4).call_for_fd(MAP_CREATE);
        let cb = |index: i16| CB as i16 + 4 * index;
        let code = [
            instruction(0xbf, 6, 1, 0, 0),                 // r6 = context
            instruction(0x61, 2, 1, cb(1), 0),             // run before?
            instruction(0x55, 2, 0, 10, 0),                // if so, go on below
            instruction(0xb7, 3, 0, 0, 1),                 //
            instruction(0x63, 1, 3, cb(1), 0),             // run now
            instruction(0x61, 2, 1, cb(0), 0),             //
            instruction(0x63, 1, 2, TC_INDEX, 0),          // the note
            instruction(0x61, 3, 1, cb(3), 0),             // which program
            instruction(0x18, 2, 1, 0, array.as_raw_fd()), // r2 = array
            0,                                             //
            instruction(0x85, 0, 0, 0, 12),                // bpf_tail_call
            instruction(0xb7, 0, 0, 0, 99),                //
            instruction(0x95, 0, 0, 0, 0),                 // no such program
            instruction(0x61, 2, 6, TC_INDEX, 0),          //
            instruction(0x63, 6, 2, cb(2), 0),             // the note that was left
            instruction(0xb7, 0, 0, 0, 98),                //
            instruction(0x95, 0, 0, 0, 0),                 //
        ];
        let mut attr = Attr::new().u32(0, 3).u32(4, code.len() as u32).pointer(8, &code).pointer(16, b"GPL\0");
        let program = attr.call_for_fd(PROG_LOAD);
        Front { program, array }
    }

    fn put(&self, place: u32, program: BorrowedFd<'_>) {
        let (key, value) = ([place], [program.as_raw_fd()]);
        let mut attr = Attr::new().u32(0, self.array.as_raw_fd() as u32).pointer(8, &key).pointer(16, &value);
        attr.call(MAP_UPDATE).expect("put");
    }

    /// Runs the packet once. `None`: newer kernels' test runs refuse what is shorter than its network header.
    pub fn run(&self, hook: Hook, packet: &Packet) -> Option<Ran> {
        let (ran, _) = self.test_run(hook, packet, 1)?;
        assert!(ran.verdict < 98 || ran.verdict == PASS, "the program in front answered {}", ran.verdict);
        Some(ran)
    }

    /// Runs the packet and says the note that was left.
    pub fn note_after(&self, hook: Hook, packet: &Packet) -> u16 {
        let (ran, context) = self.test_run(hook, packet, 2).expect("ran before");
        assert_eq!(ran.verdict, 98);
        u32::from_ne_bytes(context[CB + 8..CB + 12].try_into().expect("4 bytes")) as u16
    }

    fn test_run(&self, hook: Hook, packet: &Packet, repeat: u32) -> Option<(Ran, [u8; CONTEXT_OUT])> {
        let mut context = [0; CONTEXT];
        let mut put = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        put(MARK, packet.mark);
        put(IFINDEX, packet.ifindex);
        put(CB, u32::from(packet.note));
        put(CB + 12, place(hook));
        let (mut bytes, mut after) = (vec![0_u8; packet.bytes.len() + 256], [0_u8; CONTEXT_OUT]);
        let room = bytes.len() as u32;
        let mut attr = Attr::new()
            .u32(0, self.program.as_raw_fd() as u32)
            .u32(8, packet.bytes.len() as u32)
            .u32(12, room)
            .pointer(16, &packet.bytes)
            .pointer_mut(24, &mut bytes)
            .u32(32, repeat)
            .u32(40, CONTEXT as u32)
            .u32(44, CONTEXT_OUT as u32)
            .pointer(48, &context)
            .pointer_mut(56, &mut after);
        if let Err(error) = attr.call(PROG_TEST_RUN) {
            let short = error.raw_os_error() == Some(libc::EINVAL) && packet.bytes.len() < 54;
            assert!(short, "{} bytes: {error}", packet.bytes.len());
            return None;
        }
        bytes.truncate(attr.read(12) as usize);
        let mark = u32::from_ne_bytes(after[MARK..MARK + 4].try_into().expect("4 bytes"));
        Some((Ran { verdict: attr.read(4), bytes, mark }, after))
    }
}

fn place(hook: Hook) -> u32 {
    Hook::ALL.iter().position(|one| *one == hook).expect("a hook") as u32
}

/// The programs with tables of a certain size.
pub struct Rig {
    pub dataplane: Dataplane,
    events: Events,
    front: Front,
    wrote: Tables,
}

/// A fresh namespace for this thread, with the interfaces that the cases name.
pub fn namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
    for index in [IF_1, IF_2, IF_UPLINK, IF_NEW] {
        run("ip", &format!("link add v{index} index {index} type veth peer name w{index}"));
    }
}

fn clear<K: Row, V: Row>(table: &Table<K, V>) {
    let keys: Vec<K> = table.read_all().expect("read").into_iter().map(|(key, _)| key).collect();
    if !keys.is_empty() {
        table.delete_all(&keys).expect("delete");
    }
}

fn fill<K: Row + Ord, V: Row>(table: &Table<K, V>, rows: &BTreeMap<K, V>) {
    clear(table);
    follow(table, &BTreeMap::new(), rows);
}

/// A table that programs only read holds what was written last. Reading it would take longer than all the rest.
fn follow<K: Row + Ord, V: Row>(table: &Table<K, V>, wrote: &BTreeMap<K, V>, rows: &BTreeMap<K, V>) {
    let gone: Vec<K> = wrote.keys().filter(|key| !rows.contains_key(key)).copied().collect();
    if !gone.is_empty() {
        table.delete_all(&gone).expect("delete");
    }
    let new = rows.iter().filter(|(key, value)| wrote.get(key).is_none_or(|one| one.as_bytes() != value.as_bytes()));
    let new: Vec<(K, V)> = new.map(|(key, value)| (*key, *value)).collect();
    if !new.is_empty() {
        table.put_all(&new).expect("write");
    }
}

impl Rig {
    /// With room for so many flows; `None`: for all that a test has. What is read after each packet is small.
    pub fn new(flows: Option<u32>) -> Self {
        let entries = [(names::FLOWS, flows.unwrap_or(8_192)), (names::DROPS, 1_024)].into();
        let mut dataplane = Dataplane::load(&Options { pins: None, entries }).expect("load");
        let front = Front::of(&dataplane);
        let events = dataplane.take_events().expect("events");
        Rig { dataplane, events, front, wrote: Tables::default() }
    }

    /// Makes the maps hold what the twin holds.
    pub fn write(&mut self, tables: &Tables) {
        let maps = self.dataplane.tables();
        maps.set_config(&tables.config).expect("config");
        let wrote = &self.wrote;
        follow(&maps.endpoints, &wrote.endpoints, &tables.endpoints);
        follow(&maps.ifaces, &wrote.ifaces, &tables.ifaces);
        follow(&maps.peers, &wrote.peers, &tables.peers);
        follow(&maps.cidrs, &wrote.cidrs, &tables.cidrs);
        follow(&maps.services, &wrote.services, &tables.services);
        follow(&maps.policy, &wrote.policy, &tables.policy);
        let balance = self.dataplane.balance();
        follow(&balance.vips, &wrote.vips, &tables.vips);
        follow(&balance.rings, &wrote.rings, &tables.rings);
        for backend in self.wrote.backends.keys().chain(tables.backends.keys()) {
            let row = tables.backends.get(backend).copied().unwrap_or_default();
            balance.backends.put(backend, &row).expect("backend");
            balance.actives.put(backend, &tables.actives.get(backend).copied().unwrap_or_default()).expect("active");
        }
        for vip in self.wrote.vips.values().chain(tables.vips.values()) {
            balance.turns.put(&vip.id, &tables.turns.get(&vip.id).copied().unwrap_or_default()).expect("turn");
        }
        for backend in self.wrote.backends.values().chain(tables.backends.values()) {
            balance.carry_out(&BalanceOrder::ForgetVip(backend.vip)).expect("counts");
        }
        fill(&maps.flows, &tables.flows);
        // Notes name pods that there are not, too.
        let counted: Vec<u32> = self.flow_counts().into_keys().chain(0..4).collect();
        for pod in counted {
            maps.flow_counts.put(&pod, &tables.flow_counts.get(&pod).copied().unwrap_or_default()).expect("count");
        }
        fill(&maps.frags, &tables.frags);
        clear(&maps.drops);
        for pod in self.wrote.pods.keys().chain(tables.pods.keys()) {
            let groups = tables.pods.get(pod).copied().unwrap_or_default();
            maps.pods.put(pod, &PodGroups { ..groups }).expect("pod");
        }
        for port in self.wrote.ports.keys().chain(tables.ports.keys()) {
            maps.ports.put(port, &tables.ports.get(port).copied().unwrap_or_default()).expect("port");
        }
        for pod in 0..4 {
            maps.origins.put(&pod, &tables.origins.get(&pod).copied().unwrap_or_default()).expect("origin");
        }
        self.wrote = tables.clone();
        self.events.by_ref().for_each(drop);
    }

    pub fn run(&self, hook: Hook, packet: &Packet) -> Option<Ran> {
        self.front.run(hook, packet)
    }

    pub fn note_after(&self, hook: Hook, packet: &Packet) -> u16 {
        self.front.note_after(hook, packet)
    }

    pub fn flows(&self) -> BTreeMap<FlowKey, Flow> {
        self.dataplane.tables().flows.read_all().expect("flows").into_iter().collect()
    }

    /// Of pods that have some.
    pub fn flow_counts(&self) -> BTreeMap<u32, i32> {
        let mut counts = self.dataplane.tables().flow_counts.read_all().expect("counts");
        counts.retain(|(_, count)| *count != 0);
        counts.into_iter().collect()
    }

    /// Of backends that have some.
    pub fn actives(&self, backends: &BTreeMap<u32, Backend>) -> BTreeMap<u32, i32> {
        let actives = |id| self.dataplane.balance().actives.get(id).expect("active").unwrap_or_default();
        backends.keys().map(|id| (*id, actives(id))).filter(|(_, count)| *count != 0).collect()
    }

    /// Of virtual servers that counted something.
    pub fn vip_counts(&self, backends: &BTreeMap<u32, Backend>) -> BTreeMap<u32, VipCount> {
        let vips: BTreeSet<u32> = backends.values().map(|backend| backend.vip).collect();
        let counts = vips.into_iter().map(|vip| (vip, self.dataplane.balance().count(vip).expect("count")));
        counts.filter(|(_, count)| *count != VipCount::default()).collect()
    }

    pub fn frags(&self) -> BTreeMap<FragKey, FragPorts> {
        self.dataplane.tables().frags.read_all().expect("fragments").into_iter().collect()
    }

    pub fn drops(&self) -> BTreeMap<DropKey, Traffic> {
        self.dataplane.tables().drops.sums().expect("drops").into_iter().collect()
    }

    pub fn origin(&self, pod: u32) -> Origin {
        self.dataplane.tables().origins.get(&pod).expect("origin").unwrap_or_default()
    }

    pub fn records(&mut self) -> Vec<(EventHead, Vec<u8>)> {
        self.events.by_ref().collect()
    }
}

/// The same but for clocks.
pub fn same_flows(kernel: &BTreeMap<FlowKey, Flow>, twin: &BTreeMap<FlowKey, Flow>) -> Result<(), String> {
    let timeless = |flows: &BTreeMap<FlowKey, Flow>| -> BTreeMap<FlowKey, Flow> {
        flows.iter().map(|(key, flow)| (*key, Flow { last_seen_s: 0, ..*flow })).collect()
    };
    let (ours, theirs) = (timeless(kernel), timeless(twin));
    if ours == theirs {
        return Ok(());
    }
    let differs = |(key, flow): &(&FlowKey, &Flow)| theirs.get(*key) != Some(*flow);
    let kernel: Vec<_> = ours.iter().filter(differs).take(3).collect();
    let differs = |(key, flow): &(&FlowKey, &Flow)| ours.get(*key) != Some(*flow);
    let twin: Vec<_> = theirs.iter().filter(differs).take(3).collect();
    Err(format!("flows differ: kernel {kernel:?} twin {twin:?}"))
}

/// A flow that nobody has, to take up room.
pub fn filler() -> (FlowKey, Flow) {
    let key = FlowKey { local: Address([0xaa; 16]), protocol: 6, ..FlowKey::default() };
    (key, Flow { last_seen_s: now_s(), state: 3, ..Flow::default() })
}
