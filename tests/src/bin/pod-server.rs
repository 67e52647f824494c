//! What runs in a pod of the laboratory: it says who it is, on TCP, UDP and SCTP, over IPv4 and IPv6.
//!
//! The answer is always one line, `HOSTNAME:<name> IP:<own address> CLIENT:<client's address>`.
//! A stream (TCP, or one-to-one SCTP) is spoken to in lines. A line that is an HTTP request line makes it HTTP: whatever
//! is asked gets the answer, and the connection is kept if HTTP says so. `who` gets the answer. Any other line comes
//! back as it is, until the client closes: that is the long-lived connection of a test.
//! A datagram gets the answer, whatever it says.
//!
//! One thread per connection with a small stack: a few thousand of them are no burden. `ready` on standard output means
//! that every port listens; a port that cannot is an error and the end.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use kube_router_tests::probe::{Transport, local_address_towards};
use nix::ifaddrs::getifaddrs;
use socket2::{SockAddr, Socket};

/// Enough for the buffers of one connection.
const STACK: usize = 64 << 10;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// A longer request head or line is not spoken here.
const LONGEST: u64 = 64 << 10;

/// Answers with its name on the given ports.
#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    name: String,
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    tcp: Vec<u16>,
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    udp: Vec<u16>,
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    sctp: Vec<u16>,
    /// Listen on these addresses only.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    bind: Vec<IpAddr>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.tcp.is_empty() && arguments.udp.is_empty() && arguments.sctp.is_empty() {
        bail!("give at least one of --tcp, --udp, --sctp");
    }
    let name: Arc<str> = arguments.name.into();
    let any = if arguments.bind.is_empty() {
        vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
    } else {
        arguments.bind.clone()
    };
    for address in &any {
        for port in &arguments.tcp {
            listen(Transport::Tcp, SocketAddr::new(*address, *port), &name)?;
        }
        for port in &arguments.udp {
            serve_datagrams(SocketAddr::new(*address, *port), name.clone())?;
        }
    }
    // An SCTP socket bound to several addresses offers all of them to its peer as further paths, which a NAT on the way
    // does not translate; so each address gets its own.
    if !arguments.sctp.is_empty() {
        let each = if arguments.bind.is_empty() { own_addresses()? } else { arguments.bind };
        for address in each {
            for port in &arguments.sctp {
                listen(Transport::Sctp, SocketAddr::new(address, *port), &name)?;
            }
        }
    }
    println!("ready");
    loop {
        thread::park();
    }
}

/// Addresses that a peer elsewhere can use; without any, those of the loopback.
fn own_addresses() -> Result<Vec<IpAddr>> {
    let mut found = BTreeSet::new();
    for interface in getifaddrs().context("listing addresses")? {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            found.insert(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            found.insert(IpAddr::V6(v6.ip()));
        }
    }
    found.retain(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    if found.iter().any(|address| !address.is_loopback()) {
        found.retain(|address| !address.is_loopback());
    }
    Ok(found.into_iter().collect())
}

fn listen(transport: Transport, address: SocketAddr, name: &Arc<str>) -> Result<()> {
    let open = || -> io::Result<Socket> {
        let socket = transport.socket(address.ip())?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    let listener = open().with_context(|| format!("listening on {transport} {address}"))?;
    let name = name.clone();
    thread::spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, peer)) => converse_in_thread(stream, peer, name.clone()),
                Err(error) => {
                    // Out of descriptors, or a client that left early: neither ends the server.
                    eprintln!("accept on {transport} {address}: {error}");
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    });
    Ok(())
}

fn converse_in_thread(stream: Socket, peer: SockAddr, name: Arc<str>) {
    let work = move || {
        let (Some(peer), Ok(own)) = (peer.as_socket(), stream.local_addr()) else { return };
        let Some(own) = own.as_socket() else { return };
        let answer = answer(&name, own.ip(), peer.ip());
        // A client that goes away in the middle is the client's business.
        let _ = converse(&stream, &answer);
    };
    if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(work) {
        eprintln!("no thread for a connection: {error}");
    }
}

fn answer(name: &str, own: IpAddr, client: IpAddr) -> String {
    format!("HOSTNAME:{name} IP:{own} CLIENT:{client}\n")
}

fn converse(stream: &Socket, answer: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.by_ref().take(LONGEST).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let said = line.trim_end();
        let mut writer = stream;
        if let Some((_, version)) = said.rsplit_once(" HTTP/") {
            let kept = http(&mut reader, stream, version != "1.0", answer)?;
            if !kept {
                return Ok(());
            }
        } else if said == "who" {
            writer.write_all(answer.as_bytes())?;
        } else {
            writer.write_all(line.as_bytes())?;
        }
    }
}

/// Reads the rest of one request and answers it. Returns whether the connection is kept.
fn http(reader: &mut impl BufRead, mut stream: &Socket, mut keep: bool, answer: &str) -> io::Result<bool> {
    let (mut body, mut head) = (0, 0);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.by_ref().take(LONGEST).read_line(&mut line)? == 0 {
            return Ok(false);
        }
        let header = line.trim_end();
        if header.is_empty() {
            break;
        }
        head += line.len();
        if head as u64 > LONGEST {
            return Ok(false);
        }
        let Some((key, value)) = header.split_once(':') else { continue };
        if key.eq_ignore_ascii_case("content-length") {
            body = value.trim().parse().unwrap_or(0);
        } else if key.eq_ignore_ascii_case("connection") {
            keep = value.trim().eq_ignore_ascii_case("keep-alive");
        }
    }
    io::copy(&mut reader.take(body), &mut io::sink())?;
    let connection = if keep { "keep-alive" } else { "close" };
    let length = answer.len();
    let text = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{answer}"
    );
    stream.write_all(text.as_bytes())?;
    Ok(keep)
}

fn serve_datagrams(address: SocketAddr, name: Arc<str>) -> Result<()> {
    let open = || -> io::Result<UdpSocket> {
        let socket = Transport::Udp.socket(address.ip())?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    let socket = open().with_context(|| format!("listening on UDP {address}"))?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            // An error here is an earlier answer that could not be delivered.
            let Ok((_, peer)) = socket.recv_from(&mut buffer) else { continue };
            let own = match address.ip() {
                own if !own.is_unspecified() => own,
                _ => local_address_towards(peer).unwrap_or(address.ip()),
            };
            let _ = socket.send_to(answer(&name, own, peer.ip()).as_bytes(), peer);
        }
    });
    Ok(())
}
