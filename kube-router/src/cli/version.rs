//! The version line. A release build stamps `KUBE_ROUTER_VERSION` and `KUBE_ROUTER_BUILD_DATE` (environment of the
//! build); unstamped, the version is the crate's and the date is empty, as in the original.

/// `Running <argv0> version <ver>, built on <date>, <compiler>`, as the original prints it.
pub fn line(argv0: &str) -> String {
    format!("Running {argv0} version {VERSION}, built on {DATE}, {COMPILER}")
}

/// Version of this build, for the log and for `build_info`.
pub const VERSION: &str = match option_env!("KUBE_ROUTER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

const DATE: &str = match option_env!("KUBE_ROUTER_BUILD_DATE") {
    Some(date) => date,
    None => "",
};

/// Compiler of this build, such as `rustc 1.95.0`; set by the build script.
pub const COMPILER: &str = env!("KUBE_ROUTER_COMPILER");
