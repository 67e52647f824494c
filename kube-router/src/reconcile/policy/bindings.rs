//! What is wrong with who is behind which interface: addresses at two of them, and pods at none.

use std::collections::BTreeSet;

use kube_router_common::policy::Address;

use crate::{
    compile::{
        Problem, Subject,
        interfaces::{Claim, NOWHERE},
        links::Links,
        policy::ip_of,
    },
    desired::interfaces::Interfaces,
    objects::ObjectKey,
};

const SUBJECT: Subject = Subject::Kernel("network policy");

/// Addresses of pods that policies are about and that show at no interface. A pod that starts or ends is such a one for a
/// moment; only what two full passes found is worth telling.
#[derive(Debug, Default)]
pub(super) struct Searched {
    last: BTreeSet<(Address, u32)>,
    lasting: BTreeSet<(Address, u32)>,
}

impl Searched {
    /// At a full pass.
    pub(super) fn look(&mut self, wanted: &Interfaces) {
        let nowhere = nowhere_in(wanted);
        self.lasting = nowhere.intersection(&self.last).copied().collect();
        self.last = nowhere;
    }

    /// Forgets those that show by now.
    pub(super) fn narrow(&mut self, wanted: &Interfaces) {
        if !self.last.is_empty() {
            let nowhere = nowhere_in(wanted);
            self.last.retain(|one| nowhere.contains(one));
            self.lasting.retain(|one| nowhere.contains(one));
        }
    }

    pub(super) fn problems(&self, pod: impl Fn(u32) -> Option<ObjectKey>) -> Vec<Problem> {
        let told = self.lasting.iter().map(|(address, number)| {
        let pod = pod(*number).map_or_else(|| format!("pod {number}"), |key| key.to_string());
        let address = ip_of(*address);
        let text = format!(
            "policies are about {pod}, but no veth of this node shows its address {address}: packets from and to it are \
             dropped at veths that are no known pod's, and veths that may be its are shut; policy needs a bridge or ptp \
             network, and a pod keeps its address at its interface"
        );
        Problem { subject: SUBJECT, reason: "PodWithoutInterface", text }
    });
        told.collect()
    }
}

fn nowhere_in(wanted: &Interfaces) -> BTreeSet<(Address, u32)> {
    let nowhere = wanted.endpoints.iter().filter(|(_, endpoint)| endpoint.ifindex == NOWHERE);
    nowhere.map(|(address, endpoint)| (*address, endpoint.pod)).collect()
}

pub(super) fn claimed(claims: &[Claim], links: &Links, antispoof: bool) -> Vec<Problem> {
    let name = |index: u32| match links.devices.get(&index) {
        Some(device) => device.name.to_string(),
        None => index.to_string(),
    };
    let told = claims.iter().map(|claim| {
        let text = format!(
            "{} is carried by the pods behind {} and {}; it counts as the first one's{}",
            ip_of(claim.address),
            name(claim.owner),
            name(claim.claimant),
            if antispoof { ", and the other cannot send from it" } else { "" }
        );
        Problem { subject: SUBJECT, reason: "AddressClaimed", text }
    });
    told.collect()
}
