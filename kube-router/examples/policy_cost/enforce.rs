//! The agent's network policy without its loop: the very same compiler, plans and plane, driven to the end of each step.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, bail};
use kube_router::{
    apply::{PolicyPlane, bpf::KernelPolicy},
    cluster::{ClusterState, Dirty},
    config::{FirewallConfig, ProgramsConfig},
    objects::{Kind, Object, ObjectEvent},
    reconcile::policy::{Enforcer, PolicyStep},
};

use crate::cluster::NODE;

pub struct Agent {
    cluster: ClusterState,
    enforcer: Enforcer,
    pub plane: KernelPolicy,
}

impl Agent {
    /// Of the network namespace of this thread; with pins below `base`.
    pub fn start(base: &Path) -> Result<Agent> {
        let plane = KernelPolicy::open(base, BTreeMap::new())?;
        Ok(Agent {
            cluster: ClusterState::new(),
            enforcer: Enforcer::new(FirewallConfig::default(), &ProgramsConfig::default(), NODE),
            plane,
        })
    }

    /// Takes a whole cluster in, and returns when it is in force: so many orders later.
    pub fn take(&mut self, objects: impl IntoIterator<Item = Object>) -> Result<usize> {
        let mut dirty = Dirty::default();
        for object in objects {
            self.cluster.apply(ObjectEvent::Applied(object), &mut dirty);
        }
        for kind in Kind::ALL {
            self.cluster.apply(ObjectEvent::RelistDone(kind), &mut dirty);
        }
        self.enforcer.note(&dirty);
        let mut orders = 0;
        loop {
            // A clock that stands still: no periodic pass.
            match self.enforcer.poll(&self.cluster, 0) {
                PolicyStep::Observe => {
                    let observed = self.plane.observe();
                    self.enforcer.handle_observed(&self.cluster, observed, 0);
                }
                PolicyStep::Apply(batch) => {
                    let (done, result) = self.plane.apply(&batch);
                    if let Err(error) = &result {
                        bail!("order {done}: {error}");
                    }
                    orders += done;
                    self.enforcer.handle_applied(done, result, 0);
                }
                PolicyStep::Settled => self.plane.settled(),
                PolicyStep::Wait { .. } => return Ok(orders),
            }
        }
    }
}
