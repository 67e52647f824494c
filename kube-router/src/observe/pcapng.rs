//! Packets in a file that Wireshark and tcpdump read, each with a comment that says what was decided, and why.
//!
//! The format is pcapng (draft-ietf-opsawg-pcapng): a section header, an interface for each interface of the node, and a
//! block for each packet. Of the four kinds of block that there are in it we write three, which is less than a library
//! would bring.

use std::collections::BTreeMap;

use super::monitor::{Seen, SeenKind};
use crate::desired::policy::Direction;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

const OPTION_COMMENT: u16 = 1;
const OPTION_IF_NAME: u16 = 2;
const OPTION_FLAGS: u16 = 2;
const OPTION_TIME_RESOLUTION: u16 = 9;
/// 10^-9 s
const NANOSECONDS: u8 = 9;

/// Makes the blocks of one file, in order.
#[derive(Debug, Default)]
pub struct Pcapng {
    /// Interface index -> its number in the file.
    interfaces: BTreeMap<u32, u32>,
}

impl Pcapng {
    /// What a file begins with.
    pub fn header() -> Vec<u8> {
        let mut body = BYTE_ORDER.to_ne_bytes().to_vec();
        body.extend(1_u16.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        // The section's length is not known.
        body.extend(u64::MAX.to_ne_bytes());
        option(&mut body, 4, b"kube-router monitor");
        end_options(&mut body);
        block(SECTION_HEADER, &body)
    }

    /// The blocks for one record.
    pub fn packet(&mut self, seen: &Seen) -> Vec<u8> {
        let mut out = Vec::new();
        let count = self.interfaces.len() as u32;
        let interface = *self.interfaces.entry(seen.ifindex).or_insert_with(|| {
            out = interface(seen.ifindex);
            count
        });
        let bytes = seen.bytes();
        let mut body = interface.to_ne_bytes().to_vec();
        body.extend(((seen.time_ns >> 32) as u32).to_ne_bytes());
        body.extend((seen.time_ns as u32).to_ne_bytes());
        body.extend((bytes.len() as u32).to_ne_bytes());
        body.extend(seen.length.max(bytes.len() as u32).to_ne_bytes());
        padded(&mut body, &bytes);
        option(&mut body, OPTION_COMMENT, comment(seen).as_bytes());
        // The node's end of the veth receives what the pod sends.
        let direction: u32 = if seen.direction == Direction::Egress { 1 } else { 2 };
        option(&mut body, OPTION_FLAGS, &direction.to_ne_bytes());
        end_options(&mut body);
        out.extend(block(PACKET, &body));
        out
    }
}

fn comment(seen: &Seen) -> String {
    let verdict = match (seen.kind, seen.allowed) {
        (SeenKind::Drop, false) => "dropped",
        (SeenKind::Drop, true) | (SeenKind::Flow, _) => "allowed",
    };
    let pod = seen.pod.as_ref().map_or(format!("pod {}", seen.pod_number), ToString::to_string);
    format!("{verdict}: {} of {pod}, {}", seen.direction.name(), seen.why())
}

fn interface(ifindex: u32) -> Vec<u8> {
    let mut body = LINKTYPE_ETHERNET.to_ne_bytes().to_vec();
    body.extend(0_u16.to_ne_bytes());
    body.extend((kube_router_common::event::CAPTURE as u32).to_ne_bytes());
    option(&mut body, OPTION_IF_NAME, format!("if{ifindex}").as_bytes());
    option(&mut body, OPTION_TIME_RESOLUTION, &[NANOSECONDS]);
    end_options(&mut body);
    block(INTERFACE, &body)
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 12).to_ne_bytes();
    [&kind.to_ne_bytes()[..], &length, body, &length].concat()
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    // Longer comments than a length can say are cut; ours have a few hundred bytes.
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    padded(body, value);
}

fn end_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

/// To a multiple of four.
fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}
