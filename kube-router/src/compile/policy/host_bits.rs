//! CIDRs whose address has bits beyond the length: `10.1.2.3/16`. The API server takes them, with a warning at most.
//!
//! They are read as the range around that address, 10.1.0.0/16, as every implementation does; nothing else about the
//! policy changes. But whoever wrote one may have meant the single address, so the policy has a problem that says what it was
//! taken for.

use super::normalize::read_net;
use crate::{
    compile::{Problem, Subject},
    objects::{IpBlock, PolicyRule},
};

/// So many are told in full: a policy may have ten thousand, and the note of an Event holds 1,024 bytes. One takes at most
/// some 150.
const TOLD: usize = 5;

#[derive(Default)]
pub struct HostBits {
    told: Vec<String>,
    more: usize,
}

impl HostBits {
    /// Of all blocks of a policy's rules in one direction; `place` is the list's path.
    pub fn look_at_rules(&mut self, rules: &[PolicyRule], place: &str, list: &str) {
        for (rule, written) in rules.iter().enumerate() {
            for (peer, written) in written.peers.iter().enumerate() {
                let Some(IpBlock { cidr, except }) = &written.block else { continue };
                let path = || format!("{place}[{rule}].{list}[{peer}].ipBlock");
                self.look(cidr, || format!("{}.cidr", path()));
                for (hole, text) in except.iter().enumerate() {
                    self.look(text, || format!("{}.except[{hole}]", path()));
                }
            }
        }
    }

    /// One that cannot be read at all is told by whoever reads it.
    pub fn look(&mut self, text: &str, place: impl FnOnce() -> String) {
        let (Ok(written), Ok(read)) = (text.parse::<ipnet::IpNet>(), read_net(text)) else { return };
        if written.addr() == written.network() {
            return;
        }
        if self.told.len() < TOLD {
            self.told.push(format!("{}: {written} is read as {read}", place()));
        } else {
            self.more += 1;
        }
    }

    pub fn problem(self, subject: &Subject) -> Option<Problem> {
        if self.told.is_empty() {
            return None;
        }
        let more = if self.more == 0 { String::new() } else { format!("; and {} more", self.more) };
        let text = format!("{}{more}", self.told.join("; "));
        Some(Problem { subject: subject.clone(), reason: "HostBitsIgnored", text })
    }
}
