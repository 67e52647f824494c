//! Kernel modules and settings: reads what is there, writes what differs, reports what is missing.

use crate::{
    apply::SysctlPlane,
    compile::{Problem, Subject, sysctls},
};
use tracing::{debug, info};

/// Modules that do not load themselves when they are first used.
const MODULES: [&str; 2] = ["ip_vs", "br_netfilter"];

/// Loads what is missing. What cannot be loaded shows itself later, where it is needed.
pub fn load_modules(plane: &mut dyn SysctlPlane) {
    for module in MODULES {
        if let Err(error) = plane.load_module(module) {
            debug!(module, %error, "module not loaded");
        }
    }
}

/// Returns the number of settings written, and what could not be.
pub fn ensure(plane: &mut dyn SysctlPlane, interface: Option<&str>) -> (usize, Vec<Problem>) {
    let mut written = 0;
    let mut problems = Vec::new();
    for wanted in sysctls::wanted(interface) {
        let path = &wanted.sysctl.path;
        let mut problem = |reason, text: String| {
            problems.push(Problem { subject: Subject::Kernel("kernel settings"), reason, text });
        };
        match plane.read(path) {
            Ok(Some(current)) => {
                let due = match wanted.only_if {
                    Some(value) => current == value,
                    None => current != wanted.sysctl.value,
                };
                if !due {
                    continue;
                }
                match plane.write(&wanted.sysctl) {
                    Ok(()) => {
                        written += 1;
                        info!(sysctl = %path, from = %current, to = %wanted.sysctl.value, "kernel setting changed");
                    }
                    Err(error) => {
                        problem("SysctlRefused", format!("{path} cannot be set to {}: {error}", wanted.sysctl.value))
                    }
                }
            }
            Ok(None) if wanted.required => problem(
                "SysctlMissing",
                format!("this kernel has no {path}; services may misbehave. Is module ip_vs available?"),
            ),
            Ok(None) => {}
            Err(error) => problem("SysctlUnreadable", format!("{path}: {error}")),
        }
    }
    (written, problems)
}
