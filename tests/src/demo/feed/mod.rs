//! How the agents learn what the cluster looks like, and how a person changes it.
//!
//! Two ways with one face: a folder of manifests, and a Kubernetes API server. Each shows the audience what one does
//! there: an edited file, or a kubectl command.

mod cluster;
mod manifests;

use std::net::IpAddr;

use anyhow::Result;
use serde_json::Value;

use super::{
    cast::{Cast, PodRole},
    narrator::{Narrator, Place},
};
use crate::lab::Lab;

pub trait Feed {
    /// For the agents' command line.
    fn flags(&self) -> Vec<String>;

    /// Where the API servers behind the service `kubernetes` are.
    fn api_servers(&self) -> Vec<IpAddr>;

    /// Talks to the API servers through their service, from `place`, and checks who answers.
    fn visit_api(&self, narrator: &mut Narrator, place: Place<'_>) -> Result<()>;

    /// `sessionAffinity: ClientIP`, or None.
    fn set_affinity(&mut self, narrator: &mut Narrator, on: bool) -> Result<()>;

    /// The annotation `kube-router.io/service.scheduler`.
    fn set_scheduler(&mut self, narrator: &mut Narrator, scheduler: &'static str) -> Result<()>;

    /// The pod is no endpoint of the service any more.
    fn remove_pod(&mut self, narrator: &mut Narrator, pod: &PodRole) -> Result<()>;

    /// Objects that appear, pods with their status.
    fn add(&mut self, narrator: &mut Narrator, name: &str, objects: &[Value]) -> Result<()>;

    /// An object as its user writes it, in front of the audience.
    fn apply(&mut self, narrator: &mut Narrator, name: &str, yaml: &str) -> Result<()>;

    /// One line for somebody who stays: how to change the cluster.
    fn how_to_change(&self) -> String;
}

/// Brings the objects of `cast` to where agents will look for them.
pub fn open(from_cluster: bool, cast: &Cast, lab: &mut Lab, narrator: &mut Narrator) -> Result<Box<dyn Feed>> {
    Ok(match from_cluster {
        true => Box::new(cluster::ClusterFeed::open(cast, lab, narrator)?),
        false => Box::new(manifests::ManifestFeed::open(cast, lab, narrator)?),
    })
}
