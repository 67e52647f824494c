//! The firewall and conntrack planes against a real kernel, judged by nft, ipset, conntrack and by what packets do.
//!
//! Each test works in a network namespace of its own, made on a thread of its own, and leaves nothing behind.

mod conntrack;
mod elements;
mod guard;
mod ruleset;
mod support;
