//! How fast the machine is that the tests run on. In a virtual machine every instruction is emulated, which takes some twenty
//! times as long: patience is longer there, floods are thinner and repetitions fewer, so that agents still come to their
//! turn. What is asserted is the same.

/// `real` on a processor, `emulated` in a virtual machine of `cargo xtask`, whose start script sets the variable.
pub fn choose<T>(real: T, emulated: T) -> T {
    if is_emulated() { emulated } else { real }
}

pub fn is_emulated() -> bool {
    std::env::var_os("KUBE_ROUTER_VM").is_some()
}
