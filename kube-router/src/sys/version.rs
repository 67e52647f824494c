//! Which build this is.

/// Version of this build, as in Cargo.toml.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What compiled it, e.g. `rustc 1.95.0 (59807616e 2026-04-14)`.
pub const COMPILER: &str = env!("KUBE_ROUTER_COMPILER");

#[cfg(test)]
mod tests {
    #[test]
    fn the_compiler_names_itself() {
        assert!(super::COMPILER.starts_with("rustc 1."), "{}", super::COMPILER);
    }
}
