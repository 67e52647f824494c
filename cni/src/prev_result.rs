//! What the plugins before us made, and passing it on in the version that was asked for.
//!
//! A chained plugin that adds nothing answers with the result it was given. Results differ between versions in few places,
//! and runtimes hand them on in the configuration's version; where a result is of another one it is converted:
//!
//! | version | difference |
//! |---|---|
//! | 0.3, 0.4 | every address tells its family as `version` |
//! | from 1.0 | no `version` there |
//! | from 1.1 | interfaces have `mtu`, `socketPath`, `pciID`; routes `mtu`, `advmss`, `priority`, `table`, `scope` |

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::{Code, Error, version::Version};

pub type PrevResult = Map<String, Value>;

const NEW_OF_INTERFACES: [&str; 3] = ["mtu", "socketPath", "pciID"];
const NEW_OF_ROUTES: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];
/// More than anybody gives one interface; each is a row of a table with two for a pod.
const MAX_ADDRESSES: usize = 64;

fn bad(what: &str) -> Error {
    Error::new(Code::Config, format!("prevResult: {what}"))
}

/// A list of objects; what is missing or null is empty.
fn list<'a>(of: &'a PrevResult, key: &str) -> Result<Vec<&'a Map<String, Value>>, Error> {
    match of.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => {
            let objects = items.iter().map(|item| item.as_object());
            objects.collect::<Option<_>>().ok_or_else(|| bad(&format!("{key} holds something else than objects")))
        }
        Some(_) => Err(bad(&format!("{key} is no list"))),
    }
}

fn text<'a>(of: &'a Map<String, Value>, key: &str) -> &'a str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn address(ip: &Map<String, Value>) -> Result<IpAddr, Error> {
    let said = text(ip, "address");
    let parsed = said.parse::<IpNet>().map(|net| net.addr());
    parsed.map(|ip| ip.to_canonical()).map_err(|_| bad(&format!("address {said:.80?} is not ADDRESS/LENGTH")))
}

/// The addresses of one interface of the container. Those that name no interface are the container's, too.
pub fn addresses(result: &PrevResult, ifname: &str) -> Result<BTreeSet<IpAddr>, Error> {
    let interfaces = list(result, "interfaces")?;
    let mut own = BTreeSet::new();
    for ip in list(result, "ips")? {
        let of = match ip.get("interface") {
            None | Some(Value::Null) => None,
            Some(index) => {
                let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
                let interface = index.and_then(|index| interfaces.get(index));
                Some(interface.ok_or_else(|| bad("an address names an interface that is not listed"))?)
            }
        };
        let is_own = |of: &&Map<String, Value>| !text(of, "sandbox").is_empty() && text(of, "name") == ifname;
        let address = address(ip)?;
        if of.is_none_or(is_own) {
            own.insert(address);
        }
    }
    if own.len() > MAX_ADDRESSES {
        return Err(bad(&format!("{} addresses of one interface are more than {MAX_ADDRESSES}", own.len())));
    }
    Ok(own)
}

/// The same result in this version.
pub fn answer(result: &PrevResult, version: Version) -> Result<String, Error> {
    let own_version = match result.get("cniVersion").and_then(Value::as_str) {
        Some(text) => {
            Version::parse(Some(text)).map_err(|error| Error { msg: format!("prevResult: {}", error.msg), ..error })?
        }
        None => version,
    };
    let mut result = result.clone();
    result.insert("cniVersion".into(), version.text().into());
    let ips = list(&result, "ips")?.into_iter().map(address).collect::<Result<Vec<IpAddr>, Error>>()?;
    for (ip, address) in objects(&mut result, "ips").zip(ips) {
        if version < Version::V1_0_0 {
            ip.insert("version".into(), if address.is_ipv4() { "4" } else { "6" }.into());
        } else {
            ip.remove("version");
        }
    }
    if version < Version::V1_1_0 && own_version >= Version::V1_1_0 {
        for (key, fields) in [("interfaces", NEW_OF_INTERFACES.as_slice()), ("routes", &NEW_OF_ROUTES)] {
            for object in objects(&mut result, key) {
                object.retain(|field, _| !fields.contains(&field.as_str()));
            }
        }
    }
    Ok(format!("{}\n", Value::Object(result)))
}

fn objects<'a>(result: &'a mut PrevResult, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let items = result.get_mut(key).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut)
}
