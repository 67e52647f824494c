//! Small clusters for the tests: objects in few words, a compiler beside them, and every question one can ask it.

use std::{collections::BTreeSet, net::IpAddr};

use kube_router_common::policy::Address;

use super::super::{
    PolicyCompiler, PolicyConfig, address_of,
    model::{self, RuleRef, Traffic},
};
use crate::{
    cluster::{ClusterState, Dirty},
    desired::policy::{Direction, PolicyChanges, PolicyTables},
    objects::{
        Kind, Object, ObjectEvent, ObjectKey, Pod, Protocol,
        parse::{Claim, RawObject},
    },
};

pub const NODE: &str = "n1";

pub fn object(yaml: &str) -> Object {
    let options = serde_saphyr::options! { strict_booleans: true };
    let raw: RawObject = serde_saphyr::from_str_with_options(yaml, options).unwrap_or_else(|e| panic!("{yaml}\n{e}"));
    let Claim::Ours(kind) = raw.claim() else { panic!("{yaml}") };
    raw.parse(kind).unwrap_or_else(|e| panic!("{yaml}\n{e}")).object
}

pub fn policy(namespace: &str, name: &str, spec: &str) -> Object {
    object(&format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {spec}}}"
    ))
}

pub fn pod(namespace: &str, name: &str, ip: &str, labels: &[(&str, &str)]) -> Pod {
    Pod {
        key: ObjectKey::new(namespace, name),
        uid: None,
        created_s: 0,
        labels: labels.iter().copied().collect(),
        node: Some(NODE.into()),
        host_ips: Default::default(),
        ips: ip.split_whitespace().map(|ip| ip.parse().unwrap()).collect(),
        host_network: false,
        completed: false,
        terminating: false,
        grace_period_s: None,
        ports: Default::default(),
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn applied(object: Object) -> ObjectEvent {
    ObjectEvent::Applied(object)
}

pub fn gone(kind: Kind, namespace: &str, name: &str) -> ObjectEvent {
    ObjectEvent::Deleted(kind, ObjectKey::new(namespace, name))
}

/// A cluster and its compiler.
pub struct World {
    pub cluster: ClusterState,
    pub compiler: PolicyCompiler,
    pub node: BTreeSet<IpAddr>,
    pub services: BTreeSet<IpAddr>,
}

impl World {
    pub fn new(config: PolicyConfig) -> Self {
        World {
            cluster: ClusterState::new(),
            compiler: PolicyCompiler::new(config),
            node: BTreeSet::from([ip("192.0.2.1")]),
            services: BTreeSet::from([ip("10.96.0.10")]),
        }
    }

    pub fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut world = World::new(PolicyConfig::new(NODE));
        world.send(objects.into_iter().map(applied));
        world
    }

    pub fn send(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> PolicyChanges {
        let mut dirty = Dirty::default();
        events.into_iter().for_each(|event| self.cluster.apply(event, &mut dirty));
        self.compiler.update(&self.cluster, &dirty, &self.node, &self.services)
    }

    /// Updates until nothing is left over.
    pub fn settle(&mut self) -> usize {
        let mut count = 0;
        while self.compiler.has_leftovers() {
            self.send([]);
            count += 1;
            assert!(count < 10, "leftovers without end");
        }
        count
    }

    /// (allowed, rule) by the walk of these tables.
    pub fn walk(&self, tables: &PolicyTables, question: &Question) -> Option<(bool, Option<RuleRef>)> {
        let port = match question.traffic {
            Traffic::Port(protocol, port) => Some((protocol.number(), port)),
            Traffic::Portless => None,
        };
        let verdict = tables.verdict(question.pod, question.direction, question.peer, port)?;
        let rule = tables.rules.get(&verdict.rule).map(|rule| RuleRef {
            tier: rule.tier,
            policy: rule.policy.clone(),
            direction: rule.direction,
            index: rule.index,
        });
        Some((verdict.allowed, rule))
    }

    /// Every pod of this node against every address and traffic, compared with the model. Returns how many.
    pub fn compare(&self, addresses: &[IpAddr], traffic: &[Traffic]) -> Result<usize, String> {
        let mut count = 0;
        for (key, number) in self.compiler.local_pods() {
            let pod = self.cluster.pod(key).ok_or_else(|| format!("{key} is gone"))?;
            for direction in Direction::BOTH {
                for peer in addresses {
                    for traffic in traffic {
                        let question = Question { pod: number, direction, peer: address_of(*peer), traffic: *traffic };
                        let rows = self.walk(self.compiler.state(), &question);
                        let model = model::judge(&self.cluster, pod, direction, *peer, *traffic);
                        let wanted = Some((model.allowed, model.rules.first().cloned()));
                        if rows != wanted {
                            return Err(format!(
                                "{key} {direction:?} {peer} {traffic:?}: rows {rows:?}, model {model:?}"
                            ));
                        }
                        count += 1;
                    }
                }
            }
        }
        Ok(count)
    }
}

#[derive(Clone, Debug)]
pub struct Question {
    pub pod: u32,
    pub direction: Direction,
    pub peer: Address,
    pub traffic: Traffic,
}

pub fn tcp(port: u16) -> Traffic {
    Traffic::Port(Protocol::Tcp, port)
}

pub fn udp(port: u16) -> Traffic {
    Traffic::Port(Protocol::Udp, port)
}

pub fn sctp(port: u16) -> Traffic {
    Traffic::Port(Protocol::Sctp, port)
}
