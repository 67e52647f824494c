//! The BPF object inside this binary.
//!
//! The build script copies the object to OUT_DIR and sets the cfg `kube_router_bpf_object`, or does neither.

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

#[cfg(all(test, kube_router_bpf_object))]
mod tests {
    use std::fmt::Write;

    use aya_obj::{Object, generated::bpf_map_type};
    use kube_router_common::names::LONGEST;

    use super::*;

    fn map_type(number: u32) -> &'static str {
        const PERCPU_ARRAY: u32 = bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32;
        match number {
            PERCPU_ARRAY => "percpu_array",
            _ => "another",
        }
    }

    /// One line for every map and program, sorted.
    fn contents(object: &Object) -> String {
        let mut lines: Vec<String> = Vec::new();
        for (name, map) in &object.maps {
            lines.push(format!(
                "map {name} {} key {} value {} entries {} flags {:#x}",
                map_type(map.map_type()),
                map.key_size(),
                map.value_size(),
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

    /// A difference here is a change of the border between kernel and agent: is `SCHEMA` still right?
    #[test]
    fn the_object_holds_what_the_agent_expects() {
        let object = Object::parse(embedded().expect("cfg says so")).expect("an object");
        assert_eq!(
            contents(&object),
            "map kr_traffic percpu_array key 4 value 16 entries 11 flags 0x0\n\
             program kr_count SchedClassifier licence Dual MIT/GPL"
        );
        for name in object.maps.keys().chain(object.programs.keys()) {
            assert!(name.len() <= LONGEST, "{name} is too long for the kernel");
        }
        assert!(object.btf.is_some() && object.btf_ext.is_some());
    }
}
