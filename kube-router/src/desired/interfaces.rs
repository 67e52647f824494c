//! Which interfaces policy is enforced at: what the programs find in `kr_ifaces` and `kr_eps`, and where they are attached.
//!
//! In: links as the kernel has them, the pods of this node. Out: plain rows. Every interface with programs has a row, so
//! that the rows tell the next agent where programs are.

use std::collections::{BTreeMap, BTreeSet};

use kube_router_common::{
    config::Iface,
    policy::{Address, Endpoint},
};

/// Which pair of programs an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The node's end of a pod's veth.
    Pod,
    Uplink,
}

impl Role {
    pub fn of(row: &Iface) -> Self {
        if row.flags & Iface::UPLINK != 0 { Role::Uplink } else { Role::Pod }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// By interface index.
    pub ifaces: BTreeMap<u32, Iface>,
    pub endpoints: BTreeMap<Address, Endpoint>,
    /// Interfaces at which both programs of their role are attached.
    pub attached: BTreeMap<u32, Role>,
}

/// What leads from one state to another. `None` removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceChanges {
    pub ifaces: BTreeMap<u32, Option<Iface>>,
    pub endpoints: BTreeMap<Address, Option<Endpoint>>,
    pub attach: BTreeMap<u32, Role>,
    pub detach: BTreeMap<u32, Role>,
}

impl InterfaceChanges {
    pub fn is_empty(&self) -> bool {
        self.ifaces.is_empty() && self.endpoints.is_empty() && self.attach.is_empty() && self.detach.is_empty()
    }
}

impl Interfaces {
    /// `there` are the interfaces that exist: nothing can be taken off one that is gone.
    pub fn changes_to(&self, wanted: &Interfaces, there: &BTreeSet<u32>) -> InterfaceChanges {
        let differs = |index: &u32, role: &Role| self.attached.get(index) != Some(role);
        // A row whose programs are not attached may still stand for older programs of ours.
        let ours = self.ifaces.iter().map(|(index, row)| (*index, Role::of(row)));
        let detach = ours.filter(|(index, role)| wanted.attached.get(index) != Some(role) && there.contains(index));
        InterfaceChanges {
            ifaces: difference(&self.ifaces, &wanted.ifaces),
            endpoints: difference(&self.endpoints, &wanted.endpoints),
            attach: wanted.attached.iter().filter(|(i, r)| differs(i, r)).map(|(i, r)| (*i, *r)).collect(),
            detach: detach.collect(),
        }
    }
}

fn difference<K: Ord + Copy, V: PartialEq + Copy>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let set = to.iter().filter(|(key, value)| from.get(key) != Some(value)).map(|(key, value)| (*key, Some(*value)));
    let gone = from.keys().filter(|key| !to.contains_key(key)).map(|key| (*key, None));
    set.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(rows: &[(u32, u16, bool)]) -> Interfaces {
        let mut state = Interfaces::default();
        for (index, flags, attached) in rows {
            let row = Iface { flags: *flags, ..Iface::default() };
            state.ifaces.insert(*index, row);
            if *attached {
                state.attached.insert(*index, Role::of(&row));
            }
        }
        state
    }

    #[test]
    fn what_is_gone_is_not_detached_and_what_lost_its_programs_gets_them_again() {
        let from = state(&[(1, 0, true), (2, 0, true), (3, 0, false), (4, Iface::UPLINK, true)]);
        let to = state(&[(3, 0, true), (4, 0, true)]);
        let changes = from.changes_to(&to, &BTreeSet::from([1, 3, 4]));
        assert_eq!(changes.detach, BTreeMap::from([(1, Role::Pod), (4, Role::Uplink)]), "2 went away by itself");
        assert_eq!(changes.attach, BTreeMap::from([(3, Role::Pod), (4, Role::Pod)]));
        assert_eq!(changes.ifaces.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
        assert!(to.changes_to(&to, &BTreeSet::new()).is_empty());
    }
}
