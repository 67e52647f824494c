//! From a changed manifest to a changed fate: the whole agent at work, and packets that ask all the while.
//!
//! Client and server are sockets of this process in two namespaces; a datagram between veths has arrived when its sending
//! returns, so a look at the server tells its fate at once.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{
    agent::{Agent, Manifests},
    cluster::{self, CLIENT, Measured, PORT, SERVER, Shape},
    lab::Lab,
};

const CHANGES: u32 = 60;
const PATIENCE: Duration = Duration::from_secs(10);
/// A busy kernel hands the datagram over a little later.
const ON_THE_WAY: Duration = Duration::from_millis(1);
/// Between two looks, so that the asking does not take the processor from who is asked about.
const PAUSE: Duration = Duration::from_micros(200);
/// So many packets must agree before a fate counts.
const AGREE: usize = 3;
/// Between two changes.
const REST: Duration = Duration::from_millis(250);

struct Talk {
    client: UdpSocket,
    server: UdpSocket,
}

impl Talk {
    fn new(lab: &Lab) -> Result<Talk> {
        let server = lab.server.run(|| UdpSocket::bind((SERVER, PORT)))?;
        let client = lab.client.run(|| UdpSocket::bind((CLIENT, 4_000)))?;
        server.set_nonblocking(true)?;
        Ok(Talk { client, server })
    }

    fn passes(&self) -> Result<bool> {
        let begin = Instant::now();
        match self.client.send_to(b"?", (SERVER, PORT)) {
            Ok(_) => {}
            // An answer to an earlier packet.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable) => {}
            Err(error) => return Err(error).context("the client cannot send"),
        }
        loop {
            match self.server.recv_from(&mut [0; 8]) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() < ON_THE_WAY => {
                    thread::sleep(PAUSE);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("the server cannot receive"),
            }
        }
    }

    /// When the first packet of several had this fate.
    fn until(&self, passes: bool) -> Result<Instant> {
        let begin = Instant::now();
        let (mut first, mut agreed) = (None, 0);
        while begin.elapsed() < PATIENCE {
            if self.passes()? == passes {
                first = first.or(Some(Instant::now()));
                agreed += 1;
                if let (Some(first), AGREE..) = (first, agreed) {
                    return Ok(first);
                }
            } else {
                (first, agreed) = (None, 0);
            }
            thread::sleep(PAUSE);
        }
        bail!("a change was not in force after {PATIENCE:?}")
    }
}

pub fn run(program: &Path, policies: u32) -> Result<()> {
    let shape = Shape { policies: policies - 2, pods: 1_000, namespaces: 10 };
    let measured = Measured { policies: 2, neighbours: 0, last: false };
    let mut objects = shape.objects();
    objects.extend(measured.objects().into_iter().filter(|object| *object != measured.policy(1, true)));
    let manifests = Manifests::new(&objects)?;
    let put = |allows: bool| manifests.prepare("changing", vec![cluster::manifest(&measured.policy(1, allows))]);
    put(true)?.put()?;

    let lab = Lab::new()?;
    let agent = Agent::start(program, &lab.node, &manifests)?;
    let talk = Talk::new(&lab)?;
    talk.until(true)?;
    let mut took = [Vec::new(), Vec::new()];
    for change in 0..CHANGES {
        thread::sleep(REST);
        let allows = change % 2 == 1;
        let prepared = put(allows)?;
        // What the agent sees of the writing is over.
        thread::sleep(REST);
        let begin = Instant::now();
        prepared.put()?;
        took[usize::from(allows)].push((talk.until(allows)? - begin).as_secs_f64() * 1e3);
    }
    drop(agent);
    for (times, to) in took.iter_mut().zip(["denies", "allows"]) {
        times.sort_by(f64::total_cmp);
        let line = json!({
            "what": "verdict", "policies": policies, "to": to, "changes": times.len(),
            "median_ms": times[times.len() / 2], "worst_ms": times.last(),
        });
        println!("{line}");
    }
    Ok(())
}
