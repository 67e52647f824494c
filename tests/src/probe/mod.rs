//! Talking to `pod-server` from wherever the calling thread is: one question, a connection that is kept, a crowd.
//!
//! In: an address and a patience. Out: an [`Answer`] (who replied, and which client address it saw) or a
//! [`ProbeError`] that says how it failed, as a refusal and a silence mean different things about a service.
//! Nothing here knows of namespaces: call it inside [`Namespace::run`](crate::lab::Namespace::run).

mod ask;
mod first_try;
mod flood;
mod kept;
mod load;
mod transport;
mod unfinished;

use std::{
    io::{self, ErrorKind},
    net::IpAddr,
};

pub use self::{
    ask::{Question, sctp_ask, tcp_get, udp_ask},
    first_try::{FirstTry, first_try, first_try_from},
    flood::{Flood, Sniffer},
    kept::Kept,
    load::{Load, LoadReport, LoadSpec},
    transport::{Transport, local_address_towards},
    unfinished::{finish_checksums, send_unfinished},
};

/// What a pod says about itself and its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod's name.
    pub name: String,
    /// The pod's address, as the pod's socket has it.
    pub ip: IpAddr,
    /// The client's address as the pod sees it: whether it was masqueraded.
    pub client: IpAddr,
}

impl Answer {
    /// Parses `HOSTNAME:<name> IP:<ip> CLIENT:<ip>`.
    pub fn parse(line: &str) -> Result<Answer, ProbeError> {
        let garbled = || ProbeError::Garbled(line.chars().take(200).collect());
        let mut words = line.split_whitespace();
        let mut word = |key| words.next().and_then(|word| word.strip_prefix(key)).ok_or_else(garbled);
        let (name, ip, client) = (word("HOSTNAME:")?, word("IP:")?, word("CLIENT:")?);
        let address = |text: &str| text.parse().map_err(|_| garbled());
        Ok(Answer { name: name.to_owned(), ip: address(ip)?, client: address(client)? })
    }
}

/// How a question failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Somebody said no: a reset, or a port-unreachable message.
    #[error("refused")]
    Refused,
    /// Silence until the patience ended.
    #[error("timed out")]
    TimedOut,
    /// No route, or a host- or net-unreachable message.
    #[error("unreachable")]
    Unreachable,
    /// The connection stood and then ended before the answer.
    #[error("connection ended")]
    Ended,
    /// Something answered that is not `pod-server`.
    #[error("not an answer of pod-server: {0:?}")]
    Garbled(String),
    /// The kernel has no such protocol.
    #[error("protocol not supported")]
    Unsupported,
    #[error(transparent)]
    Other(io::Error),
}

impl From<io::Error> for ProbeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => ProbeError::Refused,
            // A read that runs into its time limit says WouldBlock.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => ProbeError::TimedOut,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => ProbeError::Unreachable,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => ProbeError::Ended,
            _ => match error.raw_os_error() {
                Some(libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT) => ProbeError::Unsupported,
                _ => ProbeError::Other(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_three_words() {
        let answer = Answer::parse("HOSTNAME:myip-x IP:10.2.0.10 CLIENT:fd00::7\n").unwrap();
        assert_eq!(answer.name, "myip-x");
        assert_eq!(answer.ip.to_string(), "10.2.0.10");
        assert_eq!(answer.client.to_string(), "fd00::7");
        for wrong in ["", "HOSTNAME:a", "HOSTNAME:a IP:x CLIENT:10.0.0.1", "404 page not found"] {
            assert!(matches!(Answer::parse(wrong), Err(ProbeError::Garbled(_))), "{wrong:?}");
        }
    }
}
