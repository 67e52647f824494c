//! A connection that is kept: does it still reach the pod that it reached first?
//!
//! For UDP it is a socket that keeps its port, so that every datagram belongs to one flow.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use super::{
    Answer, ProbeError, Transport,
    ask::{ask_by_datagram, http_get},
    transport::Lines,
};

pub struct Kept {
    flow: Flow,
    address: SocketAddr,
    local: SocketAddr,
    timeout: Duration,
    said: u64,
}

enum Flow {
    Stream(Lines),
    Datagrams(UdpSocket),
}

impl Kept {
    /// Connects. `timeout` holds for this and for each later question.
    pub fn open(transport: Transport, address: SocketAddr, timeout: Duration) -> Result<Kept, ProbeError> {
        Kept::open_from(transport, address, None, timeout)
    }

    /// The same with a client address of choice.
    pub fn open_from(
        transport: Transport,
        address: SocketAddr,
        from: Option<IpAddr>,
        timeout: Duration,
    ) -> Result<Kept, ProbeError> {
        let socket = transport.connect(address, from, timeout)?;
        let local = socket.local_addr()?.as_socket().ok_or_else(|| ProbeError::Garbled("no local address".into()))?;
        let flow = match transport {
            Transport::Udp => Flow::Datagrams(socket.into()),
            Transport::Tcp | Transport::Sctp => Flow::Stream(Lines::new(socket)),
        };
        Ok(Kept { flow, address, local, timeout, said: 0 })
    }

    /// The client's end, to find the flow in a connection table.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Asks who is at the other end.
    pub fn ask(&mut self) -> Result<Answer, ProbeError> {
        let deadline = Instant::now() + self.timeout;
        match &mut self.flow {
            Flow::Datagrams(socket) => ask_by_datagram(socket, deadline),
            Flow::Stream(lines) => {
                lines.say("who\n")?;
                Answer::parse(&lines.hear(deadline)?)
            }
        }
    }

    /// An HTTP GET that keeps the connection; only TCP carries it.
    pub fn get(&mut self) -> Result<Answer, ProbeError> {
        let deadline = Instant::now() + self.timeout;
        match &mut self.flow {
            Flow::Stream(lines) => http_get(lines, self.address, true, deadline),
            Flow::Datagrams(_) => Err(ProbeError::Unsupported),
        }
    }

    /// Says something new and hears it back (for UDP: any answer). An error means that the connection is of no more use.
    pub fn check(&mut self) -> Result<(), ProbeError> {
        self.said += 1;
        let deadline = Instant::now() + self.timeout;
        match &mut self.flow {
            Flow::Datagrams(socket) => ask_by_datagram(socket, deadline).map(drop),
            Flow::Stream(lines) => {
                let sentence = format!("still there {}", self.said);
                lines.say(&format!("{sentence}\n"))?;
                let heard = lines.hear(deadline)?;
                if heard == sentence { Ok(()) } else { Err(ProbeError::Garbled(heard)) }
            }
        }
    }

    pub fn is_alive(&mut self) -> bool {
        self.check().is_ok()
    }
}
