//! What we take from the operating system besides the planes: time, the kernel's identity and abilities, our own
//! build. Each has one place here, so that every other room gets it as a value.

pub mod bpffs;
pub mod clock;
pub mod kernel;
pub mod kernel_config;
pub mod memory;
pub mod version;
