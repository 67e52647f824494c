//! The BPF object inside this binary.
//!
//! The build script copies the object to OUT_DIR and sets the cfg `kube_router_bpf_object`, or does neither.

use std::{collections::BTreeMap, io, os::fd::AsFd, path::Path};

use aya::EbpfError;
use aya_obj::Object;
use kube_router_common::names;

use super::{
    BpfError,
    syscall::{self, MapInfo},
};

/// Does this binary hold the object?
pub fn is_embedded() -> bool {
    embedded().is_some()
}

/// The ELF file, aligned as its reader wants it.
#[cfg(kube_router_bpf_object)]
pub(super) fn embedded() -> Option<&'static [u8]> {
    Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kube-router-ebpf.o")))
}

#[cfg(not(kube_router_bpf_object))]
pub(super) fn embedded() -> Option<&'static [u8]> {
    None
}

/// Maps that are pinned, beside those that this object would make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// There are none, or they are the same.
    Same,
    /// They have another number of rows: this one, for the first.
    Resized { map: &'static str, pinned: u32, wanted: u32 },
}

/// Are the maps that are pinned the ones that this object would make? aya takes over any map by its name.
///
/// # Errors
/// [`BpfError::Pinned`]: they have other rows.
pub(super) fn fit(object: &[u8], pins: &Path, entries: &BTreeMap<&'static str, u32>) -> Result<Fit, BpfError> {
    let mut fit = Fit::Same;
    let parsed = Object::parse(object).map_err(EbpfError::ParseError)?;
    for name in names::MAPS {
        let path = pins.join(name);
        let pinned = match syscall::open_pinned(&path) {
            Ok(map) => syscall::map_info(map.as_fd()).map_err(|source| BpfError::Map { map: name, source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(BpfError::Pin { path, source }),
        };
        let map = parsed.maps.get(name).ok_or(BpfError::Contents(name))?;
        let wanted = MapInfo {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: entries.get(name).copied().unwrap_or(map.max_entries()),
            flags: map.map_flags(),
        };
        if pinned == wanted {
            continue;
        }
        let (old, new) = (pinned.max_entries, wanted.max_entries);
        if pinned != (MapInfo { max_entries: old, ..wanted }) {
            let (pinned, wanted) = (format!("{pinned:?}"), format!("{wanted:?}"));
            return Err(BpfError::Pinned { map: name, pinned, wanted });
        }
        if fit == Fit::Same {
            fit = Fit::Resized { map: name, pinned: old, wanted: new };
        }
    }
    Ok(fit)
}

#[cfg(all(test, kube_router_bpf_object))]
mod tests {
    use std::fmt::Write;

    use aya_obj::generated::bpf_map_type;
    use kube_router_common::names::LONGEST;

    use super::*;

    fn map_type(number: u32) -> String {
        for (kind, name) in [
            (bpf_map_type::BPF_MAP_TYPE_HASH, "hash"),
            (bpf_map_type::BPF_MAP_TYPE_ARRAY, "array"),
            (bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY, "prog_array"),
            (bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH, "percpu_hash"),
            (bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, "percpu_array"),
            (bpf_map_type::BPF_MAP_TYPE_LRU_HASH, "lru_hash"),
            (bpf_map_type::BPF_MAP_TYPE_LPM_TRIE, "lpm_trie"),
            (bpf_map_type::BPF_MAP_TYPE_RINGBUF, "ringbuf"),
        ] {
            if kind as u32 == number {
                return name.to_owned();
            }
        }
        number.to_string()
    }

    /// One line for every map and program, sorted.
    fn contents(object: &Object) -> String {
        let mut lines: Vec<String> = Vec::new();
        for (name, map) in &object.maps {
            let value = map.value_size();
            lines.push(format!(
                "map {name} {} key {} value {value} entries {} flags {:#x}",
                map_type(map.map_type()),
                map.key_size(),
                map.max_entries(),
                map.map_flags()
            ));
        }
        for (name, program) in &object.programs {
            let mut line = format!("program {name} {:?}", program.section);
            let _ = write!(line, " licence {}", program.license.to_string_lossy());
            lines.push(line);
        }
        lines.sort();
        lines.join("\n")
    }

    /// Programs hold all their code: no calls from function to function. The verifier of Debian's 6.1 loses track of what
    /// it must remember of a branch across such a call, takes a path for impossible that is not, and removes it: an IPv6
    /// packet was answered with the sizes of IPv4. So decisions are inlined, and what the compiler would call to copy and
    /// clear memory is written out (`--disable-expand-memcpy-in-order` of bpf-linker, `cargo xtask build-ebpf`).
    #[test]
    fn no_program_calls_a_function_of_its_own() {
        const CALL: u8 = 0x85;
        let object = Object::parse(embedded().expect("cfg says so")).expect("an object");
        for (name, program) in &object.programs {
            let function = &object.functions[&program.function_key()];
            let calls = function.instructions.iter().filter(|one| one.code == CALL && one.src_reg() == 1).count();
            assert_eq!(calls, 0, "{name}");
            assert!(function.instructions.len() > 100, "{name}");
        }
    }

    /// A difference here is a change of the border between kernel and agent.
    #[test]
    fn the_object_holds_what_the_agent_expects() {
        let object = Object::parse(embedded().expect("cfg says so")).expect("an object");
        let expected = "\
            map kr_actives array key 4 value 4 entries 262144 flags 0x0
            map kr_backends array key 4 value 24 entries 262144 flags 0x0
            map kr_buckets percpu_array key 4 value 16 entries 21 flags 0x0
            map kr_case percpu_array key 4 value 552 entries 1 flags 0x0
            map kr_cidrs lpm_trie key 24 value 8 entries 131072 flags 0x1
            map kr_config array key 4 value 16 entries 1 flags 0x0
            map kr_drops percpu_hash key 8 value 16 entries 16384 flags 0x1
            map kr_eps hash key 16 value 16 entries 8192 flags 0x1
            map kr_events ringbuf key 0 value 0 entries 1048576 flags 0x0
            map kr_flow_counts array key 4 value 4 entries 4096 flags 0x0
            map kr_flows hash key 40 value 56 entries 262144 flags 0x1
            map kr_frags lru_hash key 40 value 8 entries 4096 flags 0x0
            map kr_ifaces hash key 4 value 16 entries 5120 flags 0x1
            map kr_origins array key 4 value 32 entries 4096 flags 0x0
            map kr_peers hash key 16 value 8 entries 262144 flags 0x1
            map kr_pods array key 4 value 8 entries 4096 flags 0x0
            map kr_policy hash key 12 value 8 entries 1048576 flags 0x1
            map kr_ports array key 4 value 4 entries 196608 flags 0x0
            map kr_rings hash key 8 value 4 entries 1048576 flags 0x1
            map kr_rules array key 4 value 16 entries 65536 flags 0x0
            map kr_services hash key 20 value 20 entries 131072 flags 0x1
            map kr_tails prog_array key 4 value 4 entries 7 flags 0x0
            map kr_turns array key 4 value 4 entries 65536 flags 0x0
            map kr_vip_counts array key 4 value 40 entries 262144 flags 0x0
            map kr_vips hash key 20 value 24 entries 65536 flags 0x1
            program kr_answer_back SchedClassifier licence Dual MIT/GPL
            program kr_answer_in SchedClassifier licence Dual MIT/GPL
            program kr_balance_out SchedClassifier licence Dual MIT/GPL
            program kr_judge_in SchedClassifier licence Dual MIT/GPL
            program kr_judge_out SchedClassifier licence Dual MIT/GPL
            program kr_pair_out SchedClassifier licence Dual MIT/GPL
            program kr_pod_in SchedClassifier licence Dual MIT/GPL
            program kr_pod_out SchedClassifier licence Dual MIT/GPL
            program kr_requote SchedClassifier licence Dual MIT/GPL
            program kr_uplink_in SchedClassifier licence Dual MIT/GPL
            program kr_uplink_out SchedClassifier licence Dual MIT/GPL";
        let expected: Vec<&str> = expected.lines().map(str::trim_start).collect();
        assert_eq!(contents(&object), expected.join("\n"));
        for name in object.maps.keys().chain(object.programs.keys()) {
            assert!(name.len() <= LONGEST, "{name} is too long for the kernel");
        }
        let named = names::MAPS.iter().all(|name| object.maps.contains_key(*name));
        assert!(named && names::PROGRAMS.iter().all(|name| object.programs.contains_key(*name)));
        assert!(object.btf.is_some() && object.btf_ext.is_some());
    }
}
