//! The test harness: a cluster's network on one machine, and questions to ask of it.
//!
//! * [`lab`] builds nodes, pods and clients as network namespaces, and takes them away again.
//! * `pod-server` (a program of this crate) is what runs in a pod; [`probe`] is what talks to it.
//! * [`agent`] runs the kube-router program on a node; [`api`] runs a real Kubernetes API server. `with-api-server` (a
//!   program of this crate) runs one around a test, or beside a virtual machine.
//! * [`chain`] calls the plugins of a CNI chain as a container runtime does.
//! * [`objects`] writes Kubernetes objects as manifests.
//! * [`pace`] tells an emulated machine from a real one.
//! * [`demo`] shows all of it to people (the program of that name).
//! * [`oracle`] asks programs that nobody here wrote (ipvsadm, ipset, ip, nft) what the kernel holds.
//!
//! Everything works the same on a host and in a virtual machine. The tests that need privileges are in `tests/`, marked
//! `#[ignore]` with what they need: one that cannot run must not pass.

pub mod agent;
pub mod api;
pub mod chain;
pub mod demo;
pub mod lab;
pub mod netpol;
pub mod objects;
pub mod oracle;
pub mod pace;
pub mod pins;
pub mod probe;
pub mod process;
