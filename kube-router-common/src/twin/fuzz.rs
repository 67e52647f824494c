//! Packets that chance makes: whole nonsense, and good ones with a few bytes changed, cut or prolonged.

use std::{env, println, string::String, time::SystemTime, vec::Vec};

use super::{
    Packet,
    cases::{IF_1, IF_2, IF_NEW, IF_UPLINK},
};
use crate::hooks::Hook;

/// A number from the environment, or this one.
pub fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|text: String| text.parse().ok()).unwrap_or(default)
}

/// KUBE_ROUTER_FUZZ_SEED, or another one in every run; printed, so that a failure can be had again.
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64);
    let seed = number("KUBE_ROUTER_FUZZ_SEED", now);
    println!("KUBE_ROUTER_FUZZ_SEED={seed}");
    seed
}

/// splitmix64 (Vigna): the same packets for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.draw() % end as u64) as usize
    }

    /// A packet and where it is met.
    pub fn packet(&mut self, seeds: &[(Hook, Packet)]) -> (Hook, Packet) {
        let (hook, mut packet) = seeds[self.below(seeds.len())].clone();
        let hook = if self.below(8) == 0 { Hook::ALL[self.below(4)] } else { hook };
        if self.below(8) == 0 {
            packet.ifindex = [IF_1, IF_2, IF_UPLINK, IF_NEW][self.below(4)];
        }
        if self.below(16) == 0 {
            packet.note = [0, 1, 2, 3, 4_096 + 3, 0xfffe, 0xffff, self.draw() as u16][self.below(8)];
        }
        match self.below(16) {
            0 => self.nonsense(&mut packet.bytes),
            1..=3 => {}
            _ => self.mutate(&mut packet.bytes),
        }
        (hook, packet)
    }

    fn nonsense(&mut self, bytes: &mut Vec<u8>) {
        let length = 14 + self.below(200);
        let kind = [[8, 0], [0x86, 0xdd], [8, 6]][self.below(3)];
        bytes.resize(length.max(14), 0);
        for byte in bytes.iter_mut().skip(14) {
            *byte = self.draw() as u8;
        }
        bytes[12..14].copy_from_slice(&kind);
        if let Some(first) = bytes.get_mut(14) {
            *first = if kind == [8, 0] { 0x45 } else { 0x60 };
        }
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(3) {
            let at = 14 + self.below(bytes.len().saturating_sub(14).clamp(1, 80));
            let interesting = [0, 1, 6, 17, 43, 44, 51, 58, 60, 132, 0x80, 0xff, 0x45, 0x60];
            let value = if self.below(2) == 0 { interesting[self.below(interesting.len())] } else { self.draw() as u8 };
            match self.below(8) {
                0 => bytes.truncate(14.max(self.below(bytes.len() + 1))),
                1 => bytes.resize(bytes.len() + self.below(64), value),
                2 => bytes[self.below(14)] = value,
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, format, println};

    use super::*;
    use crate::{
        packet::{self, Bytes},
        reason::Reason,
        twin::{
            cases::cases,
            oracle::{self, Facts},
        },
    };

    /// From the network header on.
    struct Slice<'a>(&'a [u8]);

    impl Bytes for Slice<'_> {
        fn copy<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool {
            let bytes = self.0.get(at as usize..at as usize + N);
            bytes.map(|bytes| to.copy_from_slice(bytes)).is_some()
        }

        fn link<const N: usize>(&self, _at: u32) -> Option<[u8; N]> {
            None
        }

        fn net_length(&self) -> u32 {
            self.0.len() as u32
        }

        fn ethertype(&self) -> u16 {
            0
        }

        fn is_tagged(&self) -> bool {
            false
        }

        fn is_priority_tagged(&self) -> bool {
            false
        }
    }

    fn ours(bytes: &[u8], v4: bool) -> Result<Facts, Reason> {
        let ends = packet::ends(&Slice(bytes), v4)?;
        let t = packet::transport(&Slice(bytes), &ends)?;
        Ok(Facts {
            source: ends.source,
            destination: ends.destination,
            hop_limit: ends.hop_limit,
            protocol: t.protocol,
            piece: t.piece,
            id: t.id,
            ports: (t.source_port, t.destination_port),
            tcp_flags: t.flags,
            icmp: (t.icmp_type, t.icmp_code),
        })
    }

    /// The programs' reader and the oracle, on as many inputs as KUBE_ROUTER_FUZZ_INPUTS says.
    #[test]
    fn both_readers_say_the_same_of_every_packet() {
        let inputs = number("KUBE_ROUTER_FUZZ_INPUTS", 10_000_000);
        let mut random = Random::new(seed());
        let seeds: Vec<_> = cases(1_000).into_iter().map(|case| (case.hook, case.packet)).collect();
        let mut outcomes = BTreeMap::<&str, u64>::new();
        for at in 0..inputs {
            let (_, packet) = random.packet(&seeds);
            let network = packet.bytes.get(14..).unwrap_or_default();
            let kind = packet.bytes.get(12..14).unwrap_or_default();
            let v4 = if random.below(64) == 0 { kind != [8, 0] } else { kind == [8, 0] };
            let (read, wanted) = (ours(network, v4), oracle::read(network, v4));
            assert_eq!(read, wanted, "input {at}, {} bytes: {network:02x?}", network.len());
            *outcomes.entry(read.map_or_else(Reason::name, |_| "read")).or_default() += 1;
        }
        let told = outcomes.iter().map(|(what, count)| format!("{what} {count}"));
        println!("{inputs} inputs: {}", told.collect::<Vec<_>>().join(", "));
        // Read, truncated, malformed, mapped, options, extensions, fragment.
        assert!(inputs < 100_000 || outcomes.len() == 7, "{outcomes:?}");
        assert!(outcomes["read"] > inputs / 5, "{outcomes:?}");
    }
}
