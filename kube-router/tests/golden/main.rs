//! What this agent programs, compared with listings that nobody here wrote.
//!
//! `recordings` holds the running original against us: same objects, same switches, the state of the kernel line by
//! line, with every wanted difference written down. `documents` does the same with the listings of the guides that
//! users follow. Both run the real pure core (sources, cluster, compilers, plan, reconciler) on a kernel in memory, so
//! they need no privileges; `command` runs the built program itself on good and on bad input.

mod agent;
mod command;
mod diff;
mod documents;
mod listing;
mod recordings;
