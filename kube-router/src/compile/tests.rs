//! One service, or one node, and what comes of it: a row per statement of the behaviour that users rely on.
//!
//! A case is a service as its YAML, endpoints in a shorthand, switches, and the lines that [`World`] prints of the
//! result; all in this directory. How services meet each other is the table's business (`desired`).

mod addresses;
mod affinity;
mod balance;
mod endpoints;
mod hairpin;
mod kinds;
mod node;
mod node_port;
mod policies;
mod rings;
mod world;

use world::World;
