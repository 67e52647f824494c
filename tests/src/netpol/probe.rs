//! Many questions from one namespace at the same time, in one thread.
//!
//! Sockets that do not block, so that silence costs one patience for all of them together. Agents answer refused
//! packets at a limited rate; therefore few questions are under way at a time, and fewer start while refusals come.
//! A datagram is said again now and then until its patience ends.
//!
//! An ICMP answer that is there before `connect` has returned is kept by the kernel as a soft error, for which it ends
//! neither the connection nor a wait; a TCP client learns it with the next SYN, a second later, one of SCTP never. Here it
//! is looked for.

use std::{
    io::{self, ErrorKind, Read},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::{
    lab::Namespace,
    probe::{Answer, ProbeError, Transport, local_address_towards},
};

/// Questions under way from one place.
const WINDOW: usize = 8;
/// After a refusal nothing new is asked for so long. Nine askers then stay below a thousand refusals a second.
const AFTER_REFUSAL: Duration = Duration::from_millis(8);
/// A datagram without an answer is said again after so long.
const SAY_AGAIN: Duration = Duration::from_millis(400);

pub type Outcome = Result<Answer, ProbeError>;

#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub transport: Transport,
    pub to: SocketAddr,
    /// Where no answer is expected, waiting longer proves nothing more.
    pub at_most: Option<Duration>,
}

impl Probe {
    pub fn new(transport: Transport, to: SocketAddr) -> Probe {
        Probe { transport, to, at_most: None }
    }
}

/// Asks from several namespaces side by side; outcomes in the order of the questions.
pub fn ask_everywhere(questions: &[(Namespace, Vec<Probe>)], patience: Duration) -> Vec<Vec<Outcome>> {
    thread::scope(|scope| {
        let ask = |(ns, probes): &'_ (Namespace, Vec<Probe>)| ns.run(|| ask_all(probes, patience));
        let askers: Vec<_> = questions.iter().map(|question| scope.spawn(move || ask(question))).collect();
        let join = |asker: thread::ScopedJoinHandle<'_, Vec<Outcome>>| {
            asker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        askers.into_iter().map(join).collect()
    })
}

/// Asks all of them from where the calling thread is.
pub fn ask_all(probes: &[Probe], patience: Duration) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = probes.iter().map(|_| None).collect();
    let mut open: Vec<Open> = Vec::new();
    let (mut next, mut not_before) = (0, Instant::now());
    while next < probes.len() || !open.is_empty() {
        while next < probes.len() && open.len() < WINDOW && Instant::now() >= not_before {
            match Open::new(next, probes[next], patience) {
                Ok(question) => open.push(question),
                Err(error) => outcomes[next] = Some(Err(error.into())),
            }
            next += 1;
        }
        if open.is_empty() {
            thread::sleep(not_before.saturating_duration_since(Instant::now()));
            continue;
        }
        let ready = wait(&open, if next < probes.len() { AFTER_REFUSAL } else { SAY_AGAIN / 4 });
        let mut ready = ready.into_iter();
        open.retain_mut(|question| {
            let ready = ready.next().unwrap_or(false);
            let Some(outcome) = question.step(ready) else { return true };
            if outcome.is_err() {
                not_before = Instant::now() + AFTER_REFUSAL;
            }
            outcomes[question.number] = Some(outcome);
            false
        });
    }
    outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(ProbeError::TimedOut))).collect()
}

/// Which of them have something to say.
fn wait(open: &[Open], at_most: Duration) -> Vec<bool> {
    let flags = |question: &Open| if question.asked { PollFlags::POLLIN } else { PollFlags::POLLOUT };
    let mut fds: Vec<PollFd> =
        open.iter().map(|question| PollFd::new(question.socket.as_fd(), flags(question))).collect();
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::ZERO);
    // An interrupted wait finds nothing ready, and the next one will.
    let _ = poll(&mut fds, timeout);
    fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
}

struct Open {
    number: usize,
    transport: Transport,
    socket: Socket,
    asked: bool,
    deadline: Instant,
    say_again: Instant,
}

impl Open {
    fn new(number: usize, probe: Probe, patience: Duration) -> io::Result<Open> {
        let socket = probe.transport.socket(probe.to.ip())?;
        socket.set_nonblocking(true)?;
        if probe.transport == Transport::Sctp {
            // As in `Transport::connect`: one address, one path.
            socket.bind(&SocketAddr::new(local_address_towards(probe.to)?, 0).into())?;
        }
        match socket.connect(&probe.to.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            other => other?,
        }
        let now = Instant::now();
        let mut open = Open {
            number,
            transport: probe.transport,
            socket,
            asked: false,
            deadline: now + probe.at_most.unwrap_or(patience).min(patience),
            say_again: now + SAY_AGAIN,
        };
        if probe.transport == Transport::Udp {
            open.say()?;
        }
        Ok(open)
    }

    fn say(&mut self) -> io::Result<()> {
        self.asked = true;
        self.socket.send(b"who\n").map(drop)
    }

    /// The outcome, once there is one.
    fn step(&mut self, ready: bool) -> Option<Outcome> {
        let now = Instant::now();
        let refused = if self.asked { Ok(None) } else { self.socket.take_error() };
        let result = match (ready, self.asked) {
            _ if !matches!(refused, Ok(None)) => refused.and_then(|error| error.map_or(Ok(None), Err)),
            (true, true) => self.hear(),
            (true, false) => self.say().map(|()| None),
            (false, _) if now >= self.deadline => Err(ErrorKind::TimedOut.into()),
            (false, true) if self.transport == Transport::Udp && now >= self.say_again => {
                self.say_again = now + SAY_AGAIN;
                self.say().map(|()| None)
            }
            (false, _) => Ok(None),
        };
        match result {
            Ok(None) => None,
            Ok(Some(answer)) => Some(Answer::parse(&answer)),
            Err(error) => Some(Err(error.into())),
        }
    }

    fn hear(&self) -> io::Result<Option<String>> {
        let mut buffer = [0; 512];
        match (&self.socket).read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => Ok(Some(String::from_utf8_lossy(&buffer[..length]).into_owned())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Has this kernel got it?
pub fn has_sctp() -> bool {
    Transport::Sctp.socket(IpAddr::from([127, 0, 0, 1])).is_ok()
}
