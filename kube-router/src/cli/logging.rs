//! The log: lines on standard error, readable text with `name=value` fields.
//!
//! `-v` chooses how much our own crates say; libraries speak only of trouble. `RUST_LOG`, if set, decides instead.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How much our own code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    Info,
    Debug,
    Trace,
}

impl Verbosity {
    /// From `-v`: 0 and less is info, 1 and 2 debug, more is trace.
    pub fn from_level(level: i32) -> Self {
        match level {
            ..=0 => Verbosity::Info,
            1..=2 => Verbosity::Debug,
            3.. => Verbosity::Trace,
        }
    }

    /// The filter in `RUST_LOG`'s language.
    ///
    /// `kube_client` calls every request that fails an error, at every retry; `watch` tells each outage once.
    pub fn directives(self) -> &'static str {
        match self {
            Verbosity::Info => "warn,kube_client=off,kube_router=info,kube_router_common=info",
            Verbosity::Debug => "warn,kube_client=off,kube_router=debug,kube_router_common=debug",
            Verbosity::Trace => "warn,kube_router=trace,kube_router_common=trace",
        }
    }
}

/// Sets up the log of this process; `rust_log` is the value of `RUST_LOG`. Once only: a later call does nothing.
/// Returns the complaint about a `rust_log` that cannot be read, in which case `verbosity` counts.
pub fn init(verbosity: Verbosity, rust_log: Option<&str>) -> Option<String> {
    let (filter, complaint) = filter(verbosity, rust_log);
    let color = std::io::stderr().is_terminal();
    let set =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(color).try_init();
    // Fails only if a log is set up already, which is as good.
    set.ok();
    complaint
}

fn filter(verbosity: Verbosity, rust_log: Option<&str>) -> (EnvFilter, Option<String>) {
    match rust_log.filter(|text| !text.is_empty()).map(EnvFilter::try_new) {
        None => (EnvFilter::new(verbosity.directives()), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => {
            (EnvFilter::new(verbosity.directives()), Some(format!("RUST_LOG cannot be read and is ignored: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        let shown = |level, rust_log| filter(Verbosity::from_level(level), rust_log).0.to_string();
        for (level, word) in [(-1, "info"), (0, "info"), (1, "debug"), (2, "debug"), (3, "trace"), (9, "trace")] {
            assert!(shown(level, None).contains(&format!("kube_router={word}")), "{level}");
        }
        assert_eq!(shown(3, Some("error")), "error");
        assert!(shown(3, Some("")).contains("trace"));
        let (kept, complaint) = filter(Verbosity::Info, Some("kube_router=loud"));
        assert!(kept.to_string().contains("kube_router=info"));
        assert!(complaint.unwrap().contains("RUST_LOG"));
    }
}
