//! Who the members of terms are: a class for every address and prefix that some rule of this node tells apart.
//!
//! An address has an element of its own if a selector names it, or if it is the node's or a service's. All others,
//! pods too, are found by the longest prefix, so a pod that only ipBlocks concern costs nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use kube_router_common::policy::{Address, CLASS_WORLD, CidrKey, Peer};

use super::{
    About, PolicyCompiler, Work, address_of,
    index::LabelIndex,
    ip_of,
    normalize::{Namespaces, Peers},
    ports::range,
    prefix::Prefix,
    selector::LabelView,
    terms::{ClassId, PortName, Term, TermId},
};
use crate::{
    cluster::ClusterState,
    compile::{Problem, Subject},
    objects::{Kind, Pod},
};

impl PolicyCompiler {
    /// Ends what was retired before this update and marks whom that and what is new concerns.
    pub(super) fn settle_terms(
        &mut self,
        cluster: &ClusterState,
        retired: (BTreeSet<TermId>, BTreeSet<PortName>),
        work: &mut Work,
    ) {
        let dropped = self.terms.drop_retired(retired.0, retired.1);
        let mut classes: BTreeSet<ClassId> = BTreeSet::new();
        let mut room = std::mem::take(&mut self.blocks_moved);
        for (id, term, members) in dropped {
            classes.extend(members);
            match term {
                Term::Peers(Peers::Block(block)) => {
                    work.prefixes.extend(block.prefixes());
                    work.prefixes.extend(self.blocks.inside(block.net));
                    self.blocks.remove(id, &block);
                    room = true;
                }
                Term::Peers(Peers::Pods { .. }) => {}
                Term::Named((_, protocol), port) => self.ports.release_range(range(protocol, port, port)),
            }
        }
        if !classes.is_empty() {
            let peers = self.out.tables.peers.iter();
            work.addresses.extend(peers.filter(|(_, peer)| classes.contains(&peer.class)).map(|(address, _)| *address));
        }
        self.place_blocks(room, work);
        self.mark_members(cluster, work);
    }

    /// Marks the pods that fresh terms match: one look at each pod, however many terms there are.
    fn mark_members(&mut self, cluster: &ClusterState, work: &mut Work) {
        let mut own: BTreeMap<Arc<str>, LabelIndex<()>> = BTreeMap::new();
        let mut selected: HashMap<_, LabelIndex<()>> = HashMap::new();
        for id in &work.fresh.terms {
            let Some(Term::Peers(Peers::Pods { namespaces, pods })) = self.terms.get(*id) else { continue };
            match namespaces {
                Namespaces::One(name) => own.entry(name.clone()).or_default().insert(pods, ()),
                Namespaces::Selected(selector) => selected.entry(selector.clone()).or_default().insert(pods, ()),
            }
        }
        let names: BTreeSet<&PortName> = work.fresh.names.iter().collect();
        let mark = |pod: &Pod, addresses: &mut BTreeSet<Address>| {
            if pod.has_own_network() {
                addresses.extend(pod.ips.iter().map(|ip| address_of(*ip)));
            }
        };
        for (name, index) in &own {
            for pod in cluster.pods_in(name).filter(|pod| index.matches_any(LabelView::of_pod(&pod.labels))) {
                mark(pod, &mut work.addresses);
            }
        }
        if selected.is_empty() && names.is_empty() {
            return;
        }
        let mut here: Vec<&LabelIndex<()>> = Vec::new();
        let mut namespace = None;
        for pod in cluster.pods() {
            if namespace != Some(&pod.key.namespace) {
                namespace = Some(&pod.key.namespace);
                let view = LabelView::of_namespace(&pod.key.namespace, cluster.namespace(&pod.key.namespace));
                here = selected.iter().filter(|(selector, _)| selector.matches(view)).map(|(_, index)| index).collect();
            }
            let labels = LabelView::of_pod(&pod.labels);
            let named = |pod: &Pod| {
                !names.is_empty() && pod.ports.iter().any(|port| names.contains(&(port.name.clone(), port.protocol)))
            };
            if here.iter().any(|index| index.matches_any(labels)) || named(pod) {
                mark(pod, &mut work.addresses);
            }
        }
    }

    pub(super) fn classify(&mut self, cluster: &ClusterState, work: &mut Work) {
        let mut homeless = 0;
        for prefix in std::mem::take(&mut work.prefixes) {
            let wanted = self.blocks.names(prefix).then(|| {
                let mut terms = Vec::new();
                self.blocks.around(prefix, &mut terms);
                self.class_of(terms)
            });
            if wanted == Some(None) {
                self.refused_prefixes.insert(prefix);
                homeless += 1;
            }
            self.set_prefix(prefix.key(), wanted.map(|class| class.unwrap_or(CLASS_WORLD)));
        }
        for address in std::mem::take(&mut work.addresses) {
            let claimants = cluster.claimants(ip_of(address));
            let local = claimants.iter().find_map(|pod| self.local.get(&pod.key));
            self.out.set_endpoint(address, local.map(|pod| pod.number));
            self.report_claimants(address, &claimants);
            let flags = self.flags(address);
            let remote = if self.is_remote(&claimants) { Peer::REMOTE } else { 0 };
            let mut terms = match claimants.first() {
                Some(pod) => self.terms_of(cluster, pod),
                None => Vec::new(),
            };
            if terms.is_empty() && flags == 0 {
                self.set_address(address, None);
                continue;
            }
            if flags == 0 && !self.has_place(address) {
                self.refused.insert(address);
                self.set_address(address, None);
                continue;
            }
            if !self.blocks.is_empty() {
                self.blocks.around(Prefix::of_address(address), &mut terms);
            }
            let class = self.class_of(terms);
            if class.is_none() {
                self.refused.insert(address);
                homeless += 1;
            }
            self.set_address(address, Some(Peer { class: class.unwrap_or(CLASS_WORLD), flags: flags | remote }));
        }
        self.lacks_classes = homeless > 0;
        self.report_full(homeless);
    }

    fn terms_of(&mut self, cluster: &ClusterState, pod: &Pod) -> Vec<TermId> {
        let mut ports = Vec::new();
        let terms = self.terms.of_pod(cluster, pod, &mut ports);
        for (_, (_, protocol), port) in ports {
            self.ports.acquire(range(protocol, port, port));
        }
        terms
    }

    /// Do only pods of other nodes claim it? One that a pod of this node claims may show up at any interface here.
    fn is_remote(&self, claimants: &[&Pod]) -> bool {
        !claimants.is_empty() && claimants.iter().all(|pod| pod.node.is_some() && !self.is_local(pod))
    }

    fn flags(&self, address: Address) -> u32 {
        let ip = ip_of(address);
        let node = if self.node_ips.contains(&ip) { Peer::NODE } else { 0 };
        let service = if self.service_ips.contains(&ip) { Peer::SERVICE } else { 0 };
        node | service
    }

    /// Pods are refused before the node's and the services' addresses are.
    fn has_place(&self, address: Address) -> bool {
        let reserved = self.node_ips.len() + self.service_ips.len();
        self.out.tables.peers.contains_key(&address) || self.out.peers_in_kernel() + reserved < self.config.limits.peers
    }

    /// Joins the class of these terms; the caller's old class is left in `set_*`.
    fn class_of(&mut self, mut terms: Vec<TermId>) -> Option<ClassId> {
        terms.sort_unstable();
        terms.dedup();
        let class = self.classes.join(&terms);
        if let Some(class) = class {
            self.terms.enter(class, &terms);
        }
        class
    }

    fn set_address(&mut self, address: Address, peer: Option<Peer>) {
        let old = self.out.tables.peers.get(&address).map(|peer| peer.class);
        self.out.set_peer(address, peer);
        if let Some(class) = old {
            self.classes.leave(class);
        }
    }

    fn set_prefix(&mut self, key: CidrKey, class: Option<ClassId>) {
        let old = self.out.tables.cidrs.get(&key).map(|peer| peer.class);
        self.out.set_cidr(key, class.map(|class| Peer { class, flags: 0 }));
        if let Some(class) = old {
            self.classes.leave(class);
        }
    }

    fn report_claimants(&mut self, address: Address, claimants: &[&Pod]) {
        let ip = ip_of(address);
        let problems = match claimants {
            [first, others @ ..] if !others.is_empty() => {
                let names: Vec<String> = others.iter().map(|pod| pod.key.to_string()).collect();
                let text = format!("{ip} is also claimed by {}; it counts as {}'s", names.join(", "), first.key);
                let subject = Subject::Object(Kind::Pod, first.key.clone());
                vec![Problem { subject, reason: "DuplicatePodAddress", text }]
            }
            _ => Vec::new(),
        };
        self.report(About::Address(ip), problems);
    }

    fn report_full(&mut self, homeless: usize) {
        let classes = self.config.limits.classes;
        let text = format!(
            "this node's policies tell more than {classes} kinds of peers apart; {homeless} addresses are granted \
             nothing beyond what everybody is"
        );
        let problem = || Problem { subject: Subject::Kernel("policy"), reason: "TooManyClasses", text };
        self.report(About::Classes, (homeless > 0).then(problem).into_iter().collect());
        let refused = self.refused.len().saturating_sub(homeless);
        let text = format!(
            "the policies of this node name more than {} addresses (--netpol-max-peers); {refused} pods are granted nothing by selectors",
            self.config.limits.peers
        );
        let problem = || Problem { subject: Subject::Kernel("policy"), reason: "TooManyPeers", text };
        self.report(About::Peers, (refused > 0).then(problem).into_iter().collect());
    }
}
