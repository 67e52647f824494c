//! Names of maps and programs, as `bpftool` shows them. The kernel keeps 15 characters (BPF_OBJ_NAME_LEN).
//!
//! The BPF crate cannot use these constants where an attribute or a function names the thing; the agent's test of the
//! object's contents holds the two together.

/// Per-CPU array: [`crate::TrafficClass`] to [`crate::Traffic`].
pub const TRAFFIC_MAP: &str = "kr_traffic";
/// Classifier that counts every packet and lets it pass on.
pub const COUNT_PROGRAM: &str = "kr_count";

/// What the kernel keeps of a name.
pub const LONGEST: usize = 15;

const _: () = assert!(TRAFFIC_MAP.len() <= LONGEST && COUNT_PROGRAM.len() <= LONGEST);
