//! `discovery.k8s.io/v1` EndpointSlice.

use std::{net::IpAddr, sync::Arc};

use super::{BadField, Field, RawObject, Text, entries, port, protocol, raw, service::HEADLESS_LABEL, text, unknown};
use crate::objects::{AddressType, Endpoint, EndpointPort, EndpointSlice, Hints, ObjectKey};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn parse(key: ObjectKey, metadata: raw::Metadata, raw: &mut RawObject) -> Result<EndpointSlice, BadField> {
    let address_type = match text(std::mem::take(&mut raw.address_type), "addressType")?.as_deref() {
        Some("IPv4") => AddressType::Ipv4,
        Some("IPv6") => AddressType::Ipv6,
        Some("FQDN") => AddressType::Fqdn,
        Some(word) => return Err(unknown("addressType", word, "IPv4, IPv6 or FQDN")),
        None => return Err(BadField::new("addressType", "missing (expected IPv4, IPv6 or FQDN)")),
    };
    let mut labels = metadata.labels.get("metadata.labels")?.unwrap_or_default().0;
    let label = labels.remove(SERVICE_NAME_LABEL).unwrap_or_default();
    let service = owner(label, metadata.owner_references, metadata.generate_name)?;
    let (endpoints, bad_addresses) = endpoints(std::mem::take(&mut raw.endpoints), address_type)?;

    Ok(EndpointSlice {
        service: service.map(|name| ObjectKey::new(key.namespace.clone(), name)),
        key,
        address_type,
        headless_label: labels.contains_key(HEADLESS_LABEL),
        ports: ports(std::mem::take(&mut raw.ports))?,
        endpoints,
        bad_addresses,
    })
}

/// Name of the owning Service: the label, else the single owner, else `generateName` without its dash.
fn owner(
    label: Field<Text>,
    owners: Field<Vec<Field<raw::Owner>>>,
    generate_name: Field<Text>,
) -> Result<Option<Text>, BadField> {
    if let Some(name) = text(label, format_args!("metadata.labels.{SERVICE_NAME_LABEL}"))? {
        return Ok(Some(name));
    }
    let mut owners = entries(owners, "metadata.ownerReferences")?;
    if owners.len() == 1
        && let Some((path, owner)) = owners.pop()
        && let Some(name) = text(owner.name, format_args!("{path}.name"))?
    {
        return Ok(Some(name));
    }
    let generated = text(generate_name, "metadata.generateName")?;
    Ok(generated.map(|name| name.strip_suffix('-').unwrap_or(&name).into()).filter(|name: &Text| !name.is_empty()))
}

fn ports(field: Field<Vec<Field<raw::Port>>>) -> Result<Vec<EndpointPort>, BadField> {
    let entries = entries(field, "ports")?;
    let mut ports = Vec::with_capacity(entries.len());
    for (path, entry) in entries {
        ports.push(EndpointPort {
            name: entry.name.get(format_args!("{path}.name"))?.unwrap_or_default(),
            protocol: protocol(entry.protocol, format_args!("{path}.protocol"))?,
            port: Some(port(entry.port, format_args!("{path}.port"))?).filter(|port| *port != 0),
        });
    }
    Ok(ports)
}

fn hints(field: Field<raw::Hints>, endpoint: &str) -> Result<Option<Box<Hints>>, BadField> {
    let hints = field.get(format_args!("{endpoint}.hints"))?.unwrap_or_default();
    let names = |list, name: &str| {
        let mut names = Vec::new();
        for (path, hint) in entries::<raw::Hint>(list, &format!("{endpoint}.hints.{name}"))? {
            names.extend(text(hint.name, format_args!("{path}.name"))?);
        }
        Ok::<_, BadField>(names.into_boxed_slice())
    };
    let hints = Hints { zones: names(hints.for_zones, "forZones")?, nodes: names(hints.for_nodes, "forNodes")? };
    Ok((hints != Hints::default()).then(|| Box::new(hints)))
}

fn endpoints(
    field: Field<Vec<Field<raw::Endpoint>>>,
    address_type: AddressType,
) -> Result<(Vec<Endpoint>, Vec<Text>), BadField> {
    let endpoints = entries(field, "endpoints")?;
    // Exact: endpoints are most of what is kept of a cluster.
    let (mut good, mut bad) = (Vec::with_capacity(endpoints.len()), Vec::new());
    for (path, entry) in endpoints {
        let Some((_, written)) = entries(entry.addresses, &format!("{path}.addresses"))?.into_iter().next() else {
            continue;
        };
        let address = match (address_type, written.parse()) {
            (AddressType::Fqdn, _) => continue,
            (AddressType::Ipv4, Ok(address @ IpAddr::V4(_))) | (AddressType::Ipv6, Ok(address @ IpAddr::V6(_))) => {
                address
            }
            (AddressType::Ipv4 | AddressType::Ipv6, _) => {
                bad.push(written);
                continue;
            }
        };
        let conditions = entry.conditions.get(format_args!("{path}.conditions"))?.unwrap_or_default();
        let condition = |field: Field<bool>, name: &str| {
            Ok::<_, BadField>(field.get(format_args!("{path}.conditions.{name}"))?.unwrap_or(false))
        };
        good.push(Endpoint {
            address,
            ready: condition(conditions.ready, "ready")?,
            serving: condition(conditions.serving, "serving")?,
            terminating: condition(conditions.terminating, "terminating")?,
            node: text(entry.node_name, format_args!("{path}.nodeName"))?.map(Arc::from),
            hints: hints(entry.hints, &path)?,
        });
    }
    Ok((good, bad))
}
