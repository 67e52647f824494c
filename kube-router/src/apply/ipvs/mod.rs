//! The IPVS plane: virtual servers and destinations, over generic netlink.
//!
//! In: [`IpvsOp`]s. Out: refusals by index, and what the kernel holds. Requests go out many to a `sendmsg` and without
//! acknowledgements (see [`crate::nl`]), so that programming ten thousand destinations costs some forty system calls.
//! Which orders make sense, and in which sequence, is the planner's business; nothing is decided here.
//!
//! The family's number changes when the module is unloaded and loaded again, and a request to a number that is gone
//! fails with ENOENT, as does the removal of a missing destination. So after ENOENT the number is asked for again,
//! once per call; only when it has changed (then the tables are empty and nothing was carried out) are these requests
//! repeated.
//!
//! The kernel reads a dump in pieces and does not notice changes in between (no NLM_F_DUMP_INTR): while somebody else
//! adds or removes servers, one may be missing from a long list. The next pass sees it.

mod decode;
mod family;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;

use netlink_sys::protocols::NETLINK_GENERIC;

use crate::{
    apply::{Connections, Failures, IpvsPlane, IpvsTimeouts, OpFailure, PlaneError, ServerStats},
    compile::rings::DestinationList,
    desired::{Destination, Virtual, VirtualKey},
    nl::{Batch, NlError, Socket},
    plan::{IpvsOp, ObservedIpvs},
};

use decode::Identity;

/// `IPVS_GENL_NAME` of include/uapi/linux/ip_vs.h.
const FAMILY: &str = "IPVS";
/// Orders encoded at a time: at most about 200 bytes each, so the buffer stays near 200 KiB.
const ORDERS_AT_A_TIME: usize = 1024;

/// Receive buffer for lists of destinations: about twenty of them. The usual Service fits, and the kernel has less to
/// allocate and clear: a quarter off the cost of observing services of ten endpoints. A thousand take fifty receives.
const SHORT_LIST_BYTES: usize = 8 * 1024;

/// IPVS of one network namespace. Needs CAP_NET_ADMIN, on older kernels in the initial user namespace
/// (`GENL_ADMIN_PERM`).
pub struct Ipvs {
    socket: Socket,
    /// For the lists of destinations, one short dump per server.
    short_lists: Socket,
    /// Message type of the family, once asked for.
    family: Option<u16>,
}

impl Ipvs {
    /// Opens a socket into the calling thread's network namespace. Whether this kernel has IPVS shows with the first
    /// real call ([`PlaneError::Unavailable`]).
    pub fn open() -> Result<Self, PlaneError> {
        let socket = Socket::open(NETLINK_GENERIC).map_err(failed("generic netlink"))?;
        let short_lists = Socket::open_with(NETLINK_GENERIC, SHORT_LIST_BYTES).map_err(failed("generic netlink"))?;
        Ok(Ipvs { socket, short_lists, family: None })
    }

    /// Counters of every virtual server that is bound to an address. Kernel 6.1 brings them up to date every 2 s.
    pub fn server_stats(&mut self) -> Result<BTreeMap<VirtualKey, ServerStats>, PlaneError> {
        self.list_servers(|all: &mut BTreeMap<_, _>, payload| {
            if let (Identity::Key(key), stats) = decode::decode_server_stats(payload)? {
                all.insert(key, stats);
            }
            Ok(())
        })
    }

    fn family(&mut self) -> Result<u16, PlaneError> {
        match self.family {
            Some(family) => Ok(family),
            None => self.resolve(),
        }
    }

    /// Asks for the family's number anew.
    fn resolve(&mut self) -> Result<u16, PlaneError> {
        self.family = None;
        let family = family::resolve(&mut self.socket, FAMILY).map_err(|source| match source.errno() {
            Some(libc::ENOENT) => PlaneError::Unavailable { what: FAMILY, source },
            _ => PlaneError::Netlink { what: FAMILY, source },
        })?;
        self.family = Some(family);
        Ok(family)
    }

    /// Makes an exchange with the family's number, and once more with a new number if the old one is gone.
    fn exchange<T>(
        &mut self,
        what: &'static str,
        mut once: impl FnMut(&mut Self, u16) -> Result<T, NlError>,
    ) -> Result<T, PlaneError> {
        let family = self.family()?;
        match once(self, family) {
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                let family = self.resolve()?;
                once(self, family).map_err(failed(what))
            }
            other => other.map_err(failed(what)),
        }
    }

    /// Reads all virtual servers of the network namespace.
    fn list_servers<T: Default>(
        &mut self,
        mut each: impl FnMut(&mut T, &[u8]) -> Result<(), NlError>,
    ) -> Result<T, PlaneError> {
        self.exchange("list of IPVS servers", |ipvs, family| {
            ipvs.socket.dump(family, 0, wire::encode_list_servers, |all, _, payload| each(all, payload))
        })
    }

    /// Reads one virtual server's destinations in the kernel's order; none if there is no such server.
    fn list_destinations<V>(
        &mut self,
        key: &VirtualKey,
        decode: impl Fn(&[u8]) -> Result<(Destination, V), NlError>,
    ) -> Result<Vec<(Destination, V)>, PlaneError> {
        self.exchange("list of IPVS destinations", |ipvs, family| {
            let body = |bytes: &mut Vec<u8>| wire::encode_list_destinations(bytes, key);
            ipvs.short_lists.dump(family, 0, body, |all: &mut Vec<_>, _, payload| {
                all.push(decode(payload)?);
                Ok(())
            })
        })
    }

    /// Sends the orders named by `indices`; returns the refused ones.
    fn send(&mut self, family: u16, ops: &[IpvsOp], indices: &[usize]) -> Failures {
        let mut failures = Vec::new();
        for indices in indices.chunks(ORDERS_AT_A_TIME) {
            let mut batch = Batch::new();
            for index in indices {
                batch.push(family, 0, |bytes| wire::encode(bytes, &ops[*index]));
            }
            let refused = self.socket.send_batch(&mut batch).map_err(failed("IPVS orders"))?;
            failures.extend(refused.into_iter().map(|(at, refusal)| OpFailure { index: indices[at], refusal }));
        }
        Ok(failures)
    }
}

impl IpvsPlane for Ipvs {
    fn observe(&mut self) -> Result<ObservedIpvs, PlaneError> {
        let mut observed = self.list_servers(|all: &mut ObservedIpvs, payload| {
            match decode::decode_server(payload)? {
                (Identity::Key(key), server) => drop(all.servers.insert(key, server)),
                (Identity::Mark { mark, ipv6 }, _) => drop(all.marks.insert((mark, ipv6))),
                (Identity::OtherProtocol, _) => {}
            }
            Ok(())
        })?;
        for (key, Virtual { destinations, .. }) in &mut observed.servers {
            let list = self.list_destinations(key, decode::decode_destination)?;
            *destinations = list.iter().copied().collect();
            observed.lists.insert(*key, DestinationList::from_dump(list));
        }
        Ok(observed)
    }

    fn apply(&mut self, ops: &[IpvsOp]) -> Failures {
        if ops.is_empty() {
            return Ok(Vec::new());
        }
        let family = self.family()?;
        let all: Vec<usize> = (0..ops.len()).collect();
        let mut failures = self.send(family, ops, &all)?;
        if failures.iter().any(is_missing) {
            let fresh = self.resolve()?;
            if fresh != family {
                let again: Vec<usize> = failures.iter().filter(|f| is_missing(f)).map(|f| f.index).collect();
                failures.retain(|failure| !is_missing(failure));
                failures.extend(self.send(fresh, ops, &again)?);
                failures.sort_by_key(|failure| failure.index);
            }
        }
        for OpFailure { index, refusal } in &failures {
            tracing::debug!(order = ?ops[*index], %refusal, "IPVS order refused");
        }
        if failures.len() < ops.len() {
            tracing::debug!(orders = ops.len(), refused = failures.len(), "IPVS changed");
        }
        Ok(failures)
    }

    fn connections(&mut self, server: &VirtualKey) -> Result<BTreeMap<Destination, Connections>, PlaneError> {
        Ok(self.list_destinations(server, decode::decode_connections)?.into_iter().collect())
    }

    fn set_timeouts(&mut self, timeouts: IpvsTimeouts) -> Result<(), PlaneError> {
        self.exchange("IPVS timeouts", |ipvs, family| {
            ipvs.socket.request(family, 0, |bytes| wire::encode_timeouts(bytes, &timeouts), |_, _| Ok(()))
        })
    }
}

fn is_missing(failure: &OpFailure) -> bool {
    failure.refusal.errno == libc::ENOENT
}

fn failed(what: &'static str) -> impl FnOnce(NlError) -> PlaneError {
    move |source| PlaneError::Netlink { what, source }
}
