//! `dump policy`, `endpoints`, `flows` and `backends`: the kernel's pinned tables, readable.
//!
//! Works beside a running agent, which tells the names, and without one: then there are numbers. Rows are sorted, and
//! written as they come; a full table of a million rows needs 20 MB.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::Path,
};

use kube_router_common::{
    balance::Backend,
    policy::{ANY, CLASS_WORLD, NOT_ISOLATED, PORT_ENTRIES, PORTLESS, PORTS_OTHER, PolicyKey, PolicyRow, ServiceKey},
};
use serde::Serialize;

use super::{
    DumpError, Format, What,
    rows::{BackendLine, EndpointLine, FlowLine, PolicyLine},
};
use crate::{
    apply::bpf::{BalanceMaps, BpfError, Tables, now_s},
    compile::policy::ip_of,
    desired::policy::Direction,
    explain::PolicyNames,
    objects::Protocol,
    observe::{
        socket::POLICY_NAMES_PATH,
        socket_client::{self, ClientError},
    },
};

/// Members of a class or group that are named; the rest is counted.
const MOST_NAMES: usize = 4;

/// What numbers stand for, and what to say where nobody knows.
pub fn names(socket: &Path) -> Result<(PolicyNames, Option<String>), DumpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DumpError::Start)?;
    match runtime.block_on(socket_client::get(socket, POLICY_NAMES_PATH)) {
        Ok(names) => Ok((names, None)),
        Err(error @ (ClientError::NotRunning(_) | ClientError::NotAllowed(_) | ClientError::Declined { .. })) => {
            Ok((PolicyNames::default(), Some(format!("numbers instead of names: {error}"))))
        }
        Err(error) => Err(error.into()),
    }
}

/// Prints one of the tables.
pub fn dump(
    what: What,
    tables: &Tables,
    names: &PolicyNames,
    format: Format,
    output: &mut impl Write,
) -> Result<(), DumpError> {
    match what {
        What::Endpoints => write(endpoints(tables, names)?.iter(), EndpointLine::HEAD, format, output),
        What::Flows => {
            let mut flows = tables.flows.read_all()?;
            flows.sort_by_key(|(key, _)| *key);
            let now = now_s();
            let generation = tables.config()?.generation;
            let lines = flows.iter().map(|(key, flow)| FlowLine::new(key, flow, now, generation, names));
            write(lines, FlowLine::HEAD, format, output)
        }
        // The caller knows the others.
        What::Policy | What::Services | What::Problems | What::Backends => {
            let mut rows = tables.policy.read_all()?;
            rows.sort_by_key(|(key, _)| *key);
            let legend = Legend::read(tables, names)?;
            let lines = rows.iter().map(|(key, row)| legend.line(key, row, names));
            write(lines, PolicyLine::HEAD, format, output)
        }
    }
}

/// Prints the destinations of the fast path, by virtual server.
pub fn backends(maps: &BalanceMaps, format: Format, output: &mut impl Write) -> Result<(), DumpError> {
    let servers: BTreeMap<u32, ServiceKey> =
        maps.vips.read_all()?.into_iter().map(|(key, vip)| (vip.id, key)).collect();
    let actives: BTreeMap<u32, i32> = maps.actives.nonzero(u32::MAX)?;
    let mut backends = maps.backends.read_all()?;
    backends.retain(|(_, backend)| *backend != Backend::default());
    backends.sort_unstable_by_key(|(id, backend)| (servers.get(&backend.vip).copied(), backend.vip, *id));
    let lines = backends.iter().map(|(id, backend)| {
        let active = actives.get(id).copied().unwrap_or_default();
        BackendLine::new(*id, backend, servers.get(&backend.vip), active)
    });
    write(lines, BackendLine::HEAD, format, output)
}

/// A table with columns as wide as they usually are, or an array of objects; each line is written as it comes.
fn write<Row: Serialize + ToString>(
    mut rows: impl Iterator<Item = Row>,
    head: &str,
    format: Format,
    output: &mut impl Write,
) -> Result<(), DumpError> {
    let json = |row: &Row| serde_json::to_string(row).map_err(|error| DumpError::Output(io::Error::from(error)));
    let mut none = true;
    match format {
        Format::Text => {
            writeln!(output, "{head}")?;
            rows.try_for_each(|row| Ok(writeln!(output, "{}", row.to_string().trim_end())?))
        }
        Format::Json => {
            for (at, row) in rows.enumerate() {
                write!(output, "{}{}", if at == 0 { "[\n" } else { ",\n" }, json(&row)?)?;
                none = false;
            }
            Ok(output.write_all(if none { b"[]\n" } else { b"\n]\n" })?)
        }
    }
}

fn endpoints(tables: &Tables, names: &PolicyNames) -> Result<Vec<EndpointLine>, BpfError> {
    let mut rows = tables.endpoints.read_all()?;
    rows.sort_by_key(|(address, endpoint)| (endpoint.pod, *address));
    let lines = rows.into_iter().map(|(address, endpoint)| {
        let groups = tables.pods.get(&endpoint.pod)?.unwrap_or_default();
        Ok(EndpointLine::new(address, &endpoint, groups, names))
    });
    lines.collect()
}

/// What the numbers of a row stand for, as far as the tables themselves say.
struct Legend {
    /// (group, direction) by group.
    groups: BTreeMap<u32, (Direction, Vec<String>)>,
    classes: BTreeMap<u32, Vec<String>>,
    ports: BTreeMap<u32, Vec<String>>,
}

impl Legend {
    fn read(tables: &Tables, names: &PolicyNames) -> Result<Self, BpfError> {
        let mut groups: BTreeMap<u32, (Direction, Vec<String>)> = BTreeMap::new();
        let local: BTreeSet<u32> = tables.endpoints.read_all()?.into_iter().map(|(_, endpoint)| endpoint.pod).collect();
        for pod in local {
            let Some(of) = tables.pods.get(&pod)? else { continue };
            for direction in Direction::BOTH {
                let group = direction.group(of);
                if group != NOT_ISOLATED {
                    groups.entry(group).or_insert((direction, Vec::new())).1.push(names.pod(pod));
                }
            }
        }
        let mut classes: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let mut cidrs = tables.cidrs.read_all()?;
        cidrs.sort_by_key(|(key, _)| *key);
        for (key, peer) in cidrs {
            let length = key.length.saturating_sub(if key.address.is_v4() { 128 } else { 32 });
            classes.entry(peer.class).or_default().push(format!("{}/{length}", ip_of(key.address)));
        }
        let mut peers = tables.peers.read_all()?;
        peers.sort_by_key(|(address, _)| *address);
        for (address, peer) in peers {
            classes.entry(peer.class).or_default().push(ip_of(address).to_string());
        }
        let mut ports = tables.ports.read_all()?;
        ports.sort_unstable();
        Ok(Legend { groups, classes, ports: runs(&ports) })
    }

    fn line(&self, key: &PolicyKey, row: &PolicyRow, names: &PolicyNames) -> PolicyLine {
        let (direction, pods) = match self.groups.get(&key.group) {
            Some((direction, pods)) => (Some(*direction), short(pods)),
            None => (None, "no pod".to_owned()),
        };
        let peers = match key.class {
            ANY => "anybody".to_owned(),
            CLASS_WORLD => "whom no rule names".to_owned(),
            class => self.classes.get(&class).map_or("nobody".to_owned(), |members| short(members)),
        };
        let ports = match key.ports {
            ANY => "any".to_owned(),
            PORTLESS => "without ports".to_owned(),
            class => self.ports.get(&class).map_or("none".to_owned(), |ranges| short(ranges)),
        };
        PolicyLine::new(key, row, direction, pods, peers, ports, names)
    }
}

fn short(names: &[String]) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let more = if more > 0 { format!(" +{more}") } else { String::new() };
    names.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(" ") + &more
}

/// Port class -> its ranges, from the array in order of its indices.
pub fn runs(ports: &[(u32, u32)]) -> BTreeMap<u32, Vec<String>> {
    let mut ranges: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut rest = ports;
    while let [(first, class), ..] = rest {
        let place = first / 65_536;
        let same = |(index, of): &&(u32, u32)| of == class && index / 65_536 == place;
        let length = rest.iter().take_while(same).count();
        let last = rest[length - 1].0;
        rest = &rest[length..];
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].get(place as usize);
        if let Some(protocol) = protocol.filter(|_| *first < PORT_ENTRIES) {
            let (first, last) = (first % 65_536, last % 65_536);
            let range = match (first, last) {
                (0, 65_535) => protocol.to_string(),
                _ if first == last => format!("{protocol}/{first}"),
                _ => format!("{protocol}/{first}-{last}"),
            };
            ranges.entry(*class).or_default().push(range);
        }
    }
    ranges.entry(PORTS_OTHER).or_default();
    ranges
}
