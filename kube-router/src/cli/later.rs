//! What this release does not have yet, and how a command line that asks for it is answered.
//!
//! The rule: a flag that asks for a missing function stops the start and names itself, because an agent that runs
//! without the policy, route or address it was told to make is worse than one that does not run. The defaults, which
//! nobody asked for, run what exists and say once what is missing.
//!
//! In: the flag table with its marks, the values given. Out: the refusals, or the notices for the log. When a function
//! arrives, its flags' marks become [`Need::Works`] and its [`Feature`] goes.

use super::flags::{Flags, TABLE};

/// A function that comes with a later release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    Router,
    LoadBalancer,
    Bfd,
    Dsr,
    Profiler,
}

impl Feature {
    fn name(self) -> &'static str {
        match self {
            Feature::Router => "pod networking (routes, BGP, tunnels, CNI)",
            Feature::LoadBalancer => "the load-balancer address allocator",
            Feature::Bfd => "BFD",
            Feature::Dsr => "direct server return",
            Feature::Profiler => "the profiler",
        }
    }

    /// The flag that turns the function off has turned it off.
    fn is_off(self, flags: &Flags) -> bool {
        match self {
            Feature::Router => !flags.run_router,
            Feature::LoadBalancer => !flags.run_loadbalancer,
            Feature::Bfd => !flags.enable_bfd,
            Feature::Dsr | Feature::Profiler => false,
        }
    }
}

/// How a flag depends on functions that are not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Everything it can ask for is there.
    Works,
    /// Asks for the function by itself: given as `true`, or as anything but the default, it is refused.
    Asks(Feature),
    /// Shapes the function: given as anything but the default it is refused, unless the function is switched off. (Every
    /// manifest of the original passes `--bgp-graceful-restart`, those with `--run-router=false` too.)
    Shapes(Feature),
    /// Paces, limits or describes the function, or leaves part of it out: harmless whatever its value.
    Harmless(Feature),
    /// Of the past: accepted, without effect.
    Deprecated(&'static str),
}

impl Need {
    /// The mark in `--help`.
    pub fn waits(self) -> bool {
        matches!(self, Need::Asks(_) | Need::Shapes(_) | Need::Harmless(_))
    }
}

/// One line for the log at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The flag it is about, without dashes.
    pub flag: &'static str,
    pub text: String,
}

/// One sentence for each flag given that asks for a missing function. Values are not repeated: some are secret.
pub fn refusals(flags: &Flags) -> Vec<String> {
    let asked = TABLE.iter().filter_map(|flag| {
        let given = flags.given(flag.name)?;
        let feature = match flag.need {
            Need::Asks(feature) if given.is_true.unwrap_or(given.differs) => feature,
            Need::Shapes(feature) if given.differs && !feature.is_off(flags) => feature,
            _ => return None,
        };
        Some((flag.name, given, feature))
    });
    asked
        .map(|(name, given, feature)| {
            let value = match given.is_true {
                Some(value) => format!("={value}"),
                None => String::new(),
            };
            let way_out = match given.is_true {
                Some(true) => format!("leave it out or set --{name}=false until it lands"),
                _ => "leave it out until it lands".to_owned(),
            };
            format!("--{name}{value} needs {}, which this release does not have yet: {way_out}", feature.name())
        })
        .collect()
}

/// What the defaults would have switched on in the original and what was given in vain.
pub fn notices(flags: &Flags) -> Vec<Notice> {
    let mut notices = Vec::new();
    if flags.run_router {
        notices.push(Notice {
            flag: "run-router",
            text: "pod networking is not in this release yet: no routes, no BGP, no tunnels, no CNI file; pods need another \
                   network (say so with --run-router=false)"
                .into(),
        });
    }
    notices.extend(TABLE.iter().filter_map(|flag| match flag.need {
        Need::Deprecated(why) if flags.given(flag.name).is_some() => {
            Some(Notice { flag: flag.name, text: format!("--{} is deprecated and has no effect: {why}", flag.name) })
        }
        _ => None,
    }));
    notices
}
