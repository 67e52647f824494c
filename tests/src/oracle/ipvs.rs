//! IPVS as ipvsadm tells it.

use std::{fmt, net::SocketAddr};

use anyhow::{Context, Result, bail};

use super::sorted;
use crate::lab::Namespace;

/// `ipvsadm -Sn`, sorted: rules that would restore the table.
pub fn ipvs_rules(ns: &Namespace) -> Result<Vec<String>> {
    Ok(sorted(&ns.command("ipvsadm", &["-S", "-n"])?))
}

/// `ipvsadm -Ln`, parsed; servers by address, destinations by address.
pub fn ipvs_servers(ns: &Namespace) -> Result<Vec<Server>> {
    parse_ipvs(&ns.command("ipvsadm", &["-L", "-n"])?)
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    pub address: ServerAddress,
    pub scheduler: String,
    /// The scheduler's flags in ipvsadm's spelling, e.g. `sh-port`; empty without.
    pub scheduler_flags: Vec<String>,
    /// Seconds; `None` = not persistent.
    pub persistence: Option<u32>,
    /// Client mask of the persistence where it is not a single address.
    pub mask: Option<String>,
    /// One-packet scheduling.
    pub one_packet: bool,
    pub destinations: Vec<Destination>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerAddress {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Sctp(SocketAddr),
    Mark { mark: u32, ipv6: bool },
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Tcp(address) => write!(f, "TCP {address}"),
            ServerAddress::Udp(address) => write!(f, "UDP {address}"),
            ServerAddress::Sctp(address) => write!(f, "SCTP {address}"),
            ServerAddress::Mark { mark, ipv6: false } => write!(f, "FWM {mark}"),
            ServerAddress::Mark { mark, ipv6: true } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// A real server behind a virtual one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub address: SocketAddr,
    /// `Masq`, `Tunnel`, `Route` or `Local`.
    pub forward: String,
    pub weight: i32,
    pub active: u32,
    pub inactive: u32,
}

impl Server {
    /// `address:weight` of every destination.
    pub fn weights(&self) -> Vec<(SocketAddr, i32)> {
        self.destinations.iter().map(|destination| (destination.address, destination.weight)).collect()
    }
}

/// What `ipvsadm -Ln` printed; for all servers or for one.
pub fn parse_ipvs(text: &str) -> Result<Vec<Server>> {
    let mut servers: Vec<Server> = Vec::new();
    // Two lines of heading, and before them the version unless one server was asked for.
    let heading = if text.starts_with("IP Virtual Server version") { 3 } else { 2 };
    for line in text.lines().skip(heading) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let what = || format!("ipvsadm said {line:?}");
        match words.as_slice() {
            [] => {}
            ["->", address, forward, weight, active, inactive] => {
                let destination = Destination {
                    address: address.parse().with_context(what)?,
                    forward: (*forward).to_owned(),
                    weight: weight.parse().with_context(what)?,
                    active: active.parse().with_context(what)?,
                    inactive: inactive.parse().with_context(what)?,
                };
                servers.last_mut().with_context(what)?.destinations.push(destination);
            }
            ["FWM", mark, "IPv6", scheduler, options @ ..] => {
                let address = ServerAddress::Mark { mark: mark.parse().with_context(what)?, ipv6: true };
                servers.push(server(address, scheduler, options).with_context(what)?);
            }
            ["FWM", mark, scheduler, options @ ..] => {
                let address = ServerAddress::Mark { mark: mark.parse().with_context(what)?, ipv6: false };
                servers.push(server(address, scheduler, options).with_context(what)?);
            }
            [protocol, address, scheduler, options @ ..] => {
                let address = address.parse().with_context(what)?;
                let address = match *protocol {
                    "TCP" => ServerAddress::Tcp(address),
                    "UDP" => ServerAddress::Udp(address),
                    "SCTP" => ServerAddress::Sctp(address),
                    _ => bail!(what()),
                };
                servers.push(server(address, scheduler, options).with_context(what)?);
            }
            _ => bail!(what()),
        }
    }
    for server in &mut servers {
        server.destinations.sort();
    }
    servers.sort();
    Ok(servers)
}

fn server(address: ServerAddress, scheduler: &str, mut options: &[&str]) -> Result<Server> {
    let mut server = Server {
        address,
        scheduler: scheduler.to_owned(),
        scheduler_flags: Vec::new(),
        persistence: None,
        mask: None,
        one_packet: false,
        destinations: Vec::new(),
    };
    loop {
        options = match options {
            [] => return Ok(server),
            ["persistent", seconds, rest @ ..] => {
                server.persistence = Some(seconds.parse()?);
                rest
            }
            ["mask", mask, rest @ ..] => {
                server.mask = Some((*mask).to_owned());
                rest
            }
            ["ops", rest @ ..] => {
                server.one_packet = true;
                rest
            }
            [flags, rest @ ..] => {
                let flags = flags.strip_prefix('(').and_then(|flags| flags.strip_suffix(')'));
                let flags = flags.context("an option of a kind never seen")?;
                server.scheduler_flags = flags.split(',').map(str::to_owned).collect();
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ipvsadm 1.31 printed it.
    const LISTING: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.0.0.1:80 rr persistent 300
  -> 10.0.0.2:8080                Masq    3      0          7         
SCTP 10.0.0.1:99 wlc
UDP  [fd00::1]:53 mh (mh-port) persistent 100 mask 64
  -> [fd00::2]:53                 Route   1      0          0         
FWM  17 rr ops
  -> 10.0.0.9:0                   Tunnel  1      0          0         
FWM  18 IPv6 rr
";

    #[test]
    fn every_kind_of_line() {
        let servers = parse_ipvs(LISTING).unwrap();
        let names: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
        assert_eq!(names, ["TCP 10.0.0.1:80", "UDP [fd00::1]:53", "SCTP 10.0.0.1:99", "FWM 17", "FWM 18 IPv6"]);
        assert_eq!(servers[0].persistence, Some(300));
        assert_eq!(servers[0].weights(), [("10.0.0.2:8080".parse().unwrap(), 3)]);
        assert_eq!(servers[0].destinations[0].inactive, 7);
        assert_eq!(servers[1].scheduler_flags, ["mh-port"]);
        assert_eq!(servers[1].mask.as_deref(), Some("64"));
        assert!(servers[3].one_packet);
        assert_eq!(servers[3].destinations[0].forward, "Tunnel");
    }

    #[test]
    fn one_server_comes_without_a_version() {
        let (_, text) = LISTING.split_once('\n').unwrap();
        assert_eq!(parse_ipvs(text).unwrap(), parse_ipvs(LISTING).unwrap());
    }

    #[test]
    fn an_unknown_line_is_not_skipped() {
        let text = format!("{LISTING}TCP  10.0.0.1:81 rr surprise\n");
        assert!(parse_ipvs(&text).is_err());
    }
}
