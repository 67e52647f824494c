//! Which slot IPVS looks at for a new connection, with the schedulers that hash: sh, dh and mh.
//!
//! Such a scheduler has a table whose slots name destinations, and picks by a number made from the packet alone. Whoever
//! knows the table, here called a *ring*, and makes the same number finds the same destination without asking IPVS. In:
//! addresses, a port, the table's size. Out: a slot. What the slots hold is the agent's work (`compile/rings.rs`).
//!
//! | scheduler | hashes | slots |
//! |---|---|---|
//! | `sh` | the client's address, with the flag sh-port its port too | a power of two |
//! | `dh` | the virtual server's address | a power of two |
//! | `mh` | the client's address, with the flag mh-port its port too | a prime |
//!
//! An address counts as one number of 32 bits in the machine's order: for IPv6 the exclusive or of its four words. A port
//! is added to it. sh and dh multiply that by a constant and keep the upper bits (`hash_32` of include/linux/hash.h); mh
//! takes hsiphash with a key that is a constant, too, which on 64-bit kernels is the lower half of SipHash-1-3.
//!
//! As in net/netfilter/ipvs/ip_vs_{sh,dh,mh}.c since 4.18; before, there was no mh and the others hashed otherwise. A
//! service with session affinity asks its scheduler only for a client's first connection, so that no slot speaks for the
//! others. For a program, a key is 17 instructions, a slot of sh or dh 8, one of mh 132.

use crate::policy::Address;

/// What a ring's slot says where a connection gets no destination: IPVS refuses it (ICMP port unreachable), or with
/// mh-fallback looks further, see [`mh_fallback`]. A program leaves the packet to IPVS in either case.
pub const NONE: u32 = u32::MAX;

/// Sizes of the schedulers' tables, which are fixed when a kernel is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// `CONFIG_IP_VS_SH_TAB_BITS`
    pub sh_bits: u32,
    /// `CONFIG_IP_VS_DH_TAB_BITS`, which Kconfig does not offer: 8 unless somebody changed the source.
    pub dh_bits: u32,
    /// `CONFIG_IP_VS_MH_TAB_INDEX`: which prime of a list, counted from 8.
    pub mh_index: u32,
}

impl Default for Tables {
    /// Kconfig's own, and Debian's.
    fn default() -> Self {
        Tables { sh_bits: 8, dh_bits: 8, mh_index: 12 }
    }
}

impl Tables {
    /// Slots of mh's table: the largest prime below each power of two. `None`: there is no such index.
    pub const fn mh_slots(&self) -> Option<u32> {
        Some(match self.mh_index {
            8 => 251,
            9 => 509,
            10 => 1_021,
            11 => 2_039,
            12 => 4_093,
            13 => 8_191,
            14 => 16_381,
            15 => 32_749,
            16 => 65_521,
            17 => 131_071,
            _ => return None,
        })
    }
}

/// The number that an address and a port count as. Port 0 if the flag that brings it in is not set, and for dh.
#[inline(always)]
pub const fn key(address: &Address, port: u16) -> u32 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.0;
    let (first, second) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    let (third, last) = (u32::from_ne_bytes([i, j, k, l]), u32::from_ne_bytes([m, n, o, p]));
    // Words, as in programs the bytes of `is_v4` are many instructions.
    let is_v4 = first | second == 0 && third == 0xffff_u32.to_be();
    let folded = if is_v4 { last } else { first ^ second ^ third ^ last };
    u32::from_be(folded).wrapping_add(port as u32)
}

/// sh: the slot among `1 << bits` for a client's key.
#[inline(always)]
pub const fn sh_slot(client: u32, bits: u32) -> u32 {
    hash_32(client, bits)
}

/// The same, and dh's, among `slots`, a power of two: the upper bits of the hash, without a program's having to count them.
#[inline(always)]
pub const fn hashed_slot(key: u32, slots: u32) -> u32 {
    ((hash_32(key, 32) as u64 * slots as u64) >> 32) as u32
}

/// dh: the slot among `1 << bits` for the key of the virtual server's address.
#[inline(always)]
pub const fn dh_slot(service: u32, bits: u32) -> u32 {
    hash_32(service, bits)
}

/// mh: the slot among `slots` for a client's key.
#[inline(always)]
pub const fn mh_slot(client: u32, slots: u32) -> u32 {
    remainder(hsiphash(client, MH_KEY_1), slots)
}

/// Further slots that a program tries with mh-fallback. If half of the table is [`NONE`], one client in 500 finds
/// nothing in the first one and these, and IPVS goes on.
pub const MH_ATTEMPTS: u32 = 8;

/// mh with its flag mh-fallback: what the first slot says that does not say [`NONE`], of the client's own and of
/// `attempts` others, whose order is the client's. `at` reads a slot. IPVS makes as many attempts as there are slots, so
/// with fewer [`NONE`] means that it may still find somebody.
#[inline(always)]
pub fn mh_fallback(client: u32, slots: u32, attempts: u32, at: impl Fn(u32) -> u32) -> u32 {
    let first = mh_slot(client, slots);
    let mut found = at(first);
    let mut attempt = 0;
    while found == NONE && attempt < attempts {
        let offset = remainder(first.wrapping_add(attempt), slots);
        found = at(mh_slot(client.wrapping_add(offset), slots));
        attempt += 1;
    }
    found
}

/// Where among `slots` mh's table begins to seek a place for a destination with this key, and by how much it goes on.
pub const fn mh_places(destination: u32, slots: u32) -> (u32, u32) {
    let offset = remainder(hsiphash(destination, MH_KEY_1), slots);
    let skip = remainder(hsiphash(destination, MH_KEY_2), slots.saturating_sub(1)) + 1;
    (offset, skip)
}

/// Both halves of mh's keys.
const MH_KEY_1: u64 = 2_654_435_761;
const MH_KEY_2: u64 = 2_654_446_892;

/// Total, as a program must have no way to panic.
#[inline(always)]
const fn remainder(number: u32, slots: u32) -> u32 {
    match number.checked_rem(slots) {
        Some(rest) => rest,
        None => 0,
    }
}

#[inline(always)]
const fn hash_32(value: u32, bits: u32) -> u32 {
    const GOLDEN_RATIO: u32 = 0x61c8_8647;
    match value.wrapping_mul(GOLDEN_RATIO).checked_shr(32_u32.wrapping_sub(bits)) {
        Some(upper) => upper,
        None => 0,
    }
}

/// The lower half of SipHash-1-3 (Aumasson and Bernstein, 2012) of four bytes, with a key whose halves are the same.
#[inline(always)]
const fn hsiphash(value: u32, half_key: u64) -> u32 {
    // The last block: the length in its highest byte, below it the bytes as they lie in memory.
    let block = (4 << 56) | u32::from_le(value) as u64;
    let mut state = [
        half_key ^ 0x736f_6d65_7073_6575,
        half_key ^ 0x646f_7261_6e64_6f6d,
        half_key ^ 0x6c79_6765_6e65_7261,
        half_key ^ 0x7465_6462_7974_6573 ^ block,
    ];
    state = sip_round(state);
    state[0] ^= block;
    state[2] ^= 0xff;
    state = sip_round(sip_round(sip_round(state)));
    (state[0] ^ state[1] ^ state[2] ^ state[3]) as u32
}

#[inline(always)]
const fn sip_round([a, b, c, d]: [u64; 4]) -> [u64; 4] {
    let (a, c) = (a.wrapping_add(b), c.wrapping_add(d));
    let (b, d) = (b.rotate_left(13) ^ a, d.rotate_left(16) ^ c);
    let (a, c) = (a.rotate_left(32).wrapping_add(d), c.wrapping_add(b));
    [a, b.rotate_left(17) ^ c, c.rotate_left(32), d.rotate_left(21) ^ a]
}

#[cfg(test)]
mod tests {
    use core::{hash::Hasher, net::Ipv6Addr};
    use std::vec::Vec;

    use siphasher::sip::SipHasher13;

    use super::*;

    fn v6(text: &str) -> Address {
        Address(text.parse::<Ipv6Addr>().unwrap().octets())
    }

    /// By a crate that nobody here wrote.
    fn reference(value: u32, half_key: u64) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(half_key, half_key);
        hasher.write(&value.to_ne_bytes());
        hasher.finish() as u32
    }

    /// Numbers that differ in all of their bits.
    fn numbers(count: u32) -> impl Iterator<Item = u32> {
        (0..count).map(|n| n.wrapping_mul(2_891_336_453).rotate_left(n % 32))
    }

    #[test]
    fn an_address_and_a_port_are_one_number() {
        assert_eq!(key(&Address::from_v4([10, 1, 2, 3]), 0), 0x0a01_0203);
        assert_eq!(key(&Address::from_v4([10, 1, 2, 3]), 0x1000), 0x0a01_1203);
        assert_eq!(key(&Address::from_v4([255, 255, 255, 255]), 2), 1, "it wraps");
        assert_eq!(key(&v6("2001:db8::1"), 0), 0x2001_0db9);
        assert_eq!(
            key(&v6("102:304:1020:3040:100:200:ffff:1"), 0),
            0x0102_0304 ^ 0x1020_3040 ^ 0x0100_0200 ^ 0xffff_0001
        );
    }

    #[test]
    fn hsiphash_is_the_lower_half_of_siphash_1_3() {
        for value in numbers(10_000).chain([0, 1, u32::MAX]) {
            for half_key in [0, 1, u64::MAX, MH_KEY_1, MH_KEY_2] {
                assert_eq!(hsiphash(value, half_key), reference(value, half_key), "{value:#x} {half_key:#x}");
            }
        }
    }

    #[test]
    fn the_upper_bits_of_a_product() {
        // 0x61c88647 times 1, 2, 0x0a010203 and 0xc0a80001 is, without what overflows, 0x61c88647, 0xc3910c8e, 0x02ad20d5
        // and 0xc0608647.
        assert_eq!([1, 2, 0x0a01_0203, 0xc0a8_0001].map(|number| hash_32(number, 8)), [0x61, 0xc3, 0x02, 0xc0]);
        assert_eq!([hash_32(1, 4), hash_32(1, 20), hash_32(1, 32)], [0x6, 0x61c88, 0x61c8_8647]);
        assert_eq!([hash_32(1, 0), hash_32(1, 33)], [0, 0], "no such table, and no panic");
    }

    #[test]
    fn every_slot_is_somebodys() {
        let spread = |slots: u32, slot: &dyn Fn(u32) -> u32| {
            let mut clients = std::vec![0_u32; slots as usize];
            numbers(100 * slots).for_each(|number| clients[slot(number) as usize] += 1);
            (*clients.iter().min().unwrap(), *clients.iter().max().unwrap())
        };
        for bits in [4, 8, 12] {
            let (least, most) = spread(1 << bits, &|number| sh_slot(number, bits));
            assert!(least > 40 && most < 200, "{bits} bits: {least} to {most}");
        }
        for slots in (8..=12).filter_map(|mh_index| Tables { mh_index, ..Tables::default() }.mh_slots()) {
            let (least, most) = spread(slots, &|number| mh_slot(number, slots));
            assert!(least > 40 && most < 200, "{slots} slots: {least} to {most}");
        }
    }

    #[test]
    fn tables_have_prime_sizes() {
        let sizes: Vec<_> =
            (0..30).filter_map(|mh_index| Tables { mh_index, ..Tables::default() }.mh_slots()).collect();
        assert_eq!(sizes.len(), 10);
        for (size, bits) in sizes.iter().zip(8..) {
            assert!(*size < 1 << bits && (size + 1..1 << bits).all(|number| !is_prime(number)) && is_prime(*size));
        }
    }

    fn is_prime(number: u32) -> bool {
        (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
    }

    #[test]
    fn fallback_goes_its_own_way_from_the_first_slot() {
        let slots = 251;
        for client in numbers(1_000) {
            let first = mh_slot(client, slots);
            assert_eq!(mh_fallback(client, slots, 0, |slot| slot), first);
            // The first attempt hashes with the slot added; then one more each time.
            let second = reference(client.wrapping_add(first), MH_KEY_1) % slots;
            let third = reference(client.wrapping_add((first + 1) % slots), MH_KEY_1) % slots;
            let without = |shut: &[u32], slot| if shut.contains(&slot) { NONE } else { slot };
            if second != first {
                assert_eq!(mh_fallback(client, slots, 1, |slot| without(&[first], slot)), second);
            }
            if third != first && third != second {
                assert_eq!(mh_fallback(client, slots, 2, |slot| without(&[first, second], slot)), third);
                assert_eq!(mh_fallback(client, slots, 1, |slot| without(&[first, second], slot)), NONE);
            }
        }
        assert_eq!(mh_fallback(7, slots, slots, |_| NONE), NONE);
        assert_eq!(mh_fallback(7, 0, 3, |_| NONE), NONE, "no table, and no panic");
    }

    #[test]
    fn half_of_a_table_is_enough_for_eight_attempts() {
        let slots = 4_093;
        let half = |slot| if slot % 2 == 0 { NONE } else { slot };
        let lost = numbers(100_000).filter(|client| mh_fallback(*client, slots, MH_ATTEMPTS, half) == NONE).count();
        assert!((100..300).contains(&lost), "{lost} of 100,000: one in 512");
    }
}
