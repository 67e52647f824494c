//! From "what should be" and "what is" to the least list of orders that leads from one to the other.
//!
//! Orders are data. A [`Plan`] is a list of stages; each stage is carried out by one plane before the next begins,
//! and every prefix of a plan is safe: a service answers the old way or the new way, never half a way, and what is
//! being removed is shut before it is taken apart.

mod ops;

pub use ops::{Backend, FirewallOp, IpvsOp, NetOp, ObservedFirewall, ObservedIpvs, ObservedNet, Sysctl, UdpFlow};
