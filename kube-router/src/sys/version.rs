//! Which build this is. A release build stamps `KUBE_ROUTER_VERSION` and `KUBE_ROUTER_BUILD_DATE` (environment of the
//! build); unstamped, the version is the crate's and the date is empty, as in the original.

/// Version of this build, for the log and for `build_info`.
pub const VERSION: &str = match option_env!("KUBE_ROUTER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// When it was built; empty where nobody said.
pub const DATE: &str = match option_env!("KUBE_ROUTER_BUILD_DATE") {
    Some(date) => date,
    None => "",
};

/// Compiler of this build, such as `rustc 1.95.0`; set by the build script.
pub const COMPILER: &str = env!("KUBE_ROUTER_COMPILER");

#[cfg(test)]
mod tests {
    #[test]
    fn the_compiler_names_itself() {
        assert!(super::COMPILER.starts_with("rustc 1."), "{}", super::COMPILER);
    }
}
