//! The node's links as last read, and what network plugins said of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::gaps::Gaps;
use crate::{
    compile::links::{Device, Links, PodLink, Tag},
    objects::ObjectKey,
};

/// A pod as a network plugin attached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub network: Box<str>,
    pub container: Box<str>,
    pub pod_ifname: Box<str>,
    pub pod: ObjectKey,
    /// `None`: the runtime did not tell.
    pub uid: Option<Box<str>>,
    pub addresses: BTreeSet<IpAddr>,
}

impl Attached {
    /// As the plugin wrote it down; which container that was is not known.
    fn by(tag: Tag) -> Attached {
        let Tag { pod, uid, ifname, addresses } = tag;
        Attached { network: "".into(), container: "".into(), pod_ifname: ifname, pod, uid, addresses }
    }
}

#[derive(Debug, Default)]
pub struct KnownLinks {
    pub(super) now: Links,
    /// Since bindings were compiled.
    pub(super) changed: bool,
    /// By interface, as network plugins said.
    pub(super) attachments: BTreeMap<u32, Attached>,
    /// Interfaces that network plugins are about to take away.
    pub(super) released: BTreeSet<u32>,
    pub(super) gaps: Gaps,
    /// Addresses that the pod's end of a link was ever seen with: a pod may take its own off.
    pub(super) shown: BTreeMap<u32, BTreeSet<IpAddr>>,
}

impl KnownLinks {
    /// Attachments whose links are gone, without a word of the plugin's.
    pub(in crate::reconcile) fn take_vanished(&mut self, links: &Links) -> Vec<Attached> {
        self.released.retain(|index| links.devices.contains_key(index));
        let gone = self.attachments.extract_if(.., |index, _| !links.devices.contains_key(index));
        gone.map(|(_, attached)| attached).collect()
    }

    /// Attachments that a plugin made while no agent was there, or another one.
    pub(in crate::reconcile) fn strange(&self, links: &Links) -> Vec<(u32, Attached)> {
        let is_strange = |index: &u32| !self.attachments.contains_key(index) && !self.released.contains(index);
        let strange = links.pods.iter().filter(|(index, _)| is_strange(index));
        strange.filter_map(|(index, link)| Some((*index, Attached::by(Tag::parse(link.alias.as_ref()?)?)))).collect()
    }

    /// Is this the one of the pod's interfaces that its addresses are about, the first?
    pub(in crate::reconcile) fn is_first(&self, attached: &Attached) -> bool {
        let mut others = self.attachments.values();
        !others.any(|of| of.pod == attached.pod && of.uid == attached.uid && of.pod_ifname != attached.pod_ifname)
    }

    /// Links came, went or changed their addresses. `now_ms`: `None` during the first pass.
    pub(super) fn replace(&mut self, links: Links, now_ms: Option<u64>) {
        self.gaps.look(&links, now_ms);
        self.changed |= self.now != links;
        self.now = links;
        self.shown.retain(|index, _| self.now.pods.contains_key(index));
        for (index, link) in &self.now.pods {
            self.shown.entry(*index).or_default().extend(&link.addresses);
        }
    }

    /// One pod's link, as read just now.
    pub(in crate::reconcile) fn put(&mut self, link: PodLink) {
        self.now.devices.insert(link.index, Device::of(&link));
        self.changed |= self.now.pods.get(&link.index) != Some(&link);
        self.shown.entry(link.index).or_default().extend(&link.addresses);
        self.now.pods.insert(link.index, link);
    }

    /// A network plugin attached a pod.
    pub(in crate::reconcile) fn attach(&mut self, index: u32, attached: Attached) {
        self.gaps.announced(index);
        self.released.remove(&index);
        if self.attachments.get(&index) != Some(&attached) {
            self.attachments.insert(index, attached);
            self.changed = true;
        }
    }

    /// A network plugin takes pods off: those that `goes` says.
    pub(in crate::reconcile) fn detach(&mut self, goes: impl Fn(&Attached) -> bool) -> Vec<Attached> {
        let gone: Vec<u32> = self.attachments.iter().filter(|(_, of)| goes(of)).map(|(index, _)| *index).collect();
        self.changed |= !gone.is_empty();
        self.released.extend(&gone);
        gone.iter().filter_map(|index| self.attachments.remove(index)).collect()
    }
}
