//! A control plane for tests in another machine: it runs beside the emulator, where it is fast, and is told over TCP
//! what to do.
//!
//! One JSON request and one JSON answer per connection. A request carries a secret: kubectl writes files where it is
//! told to, and the port is open to everybody on the machine. In: an [`Api`] to serve. Out: in the other machine a
//! [`Remote`], which finds the server by a variable ([`REMOTE`]) that the test runner passes on.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{Api, Component, Kubectl, User, keys};

/// `ADDRESS,SECRET`: where the control plane listens for requests, as the tests see it.
pub const REMOTE: &str = "KUBE_ROUTER_TEST_CONTROL";

/// The slowest request starts a server.
const PATIENCE: Duration = Duration::from_secs(180);

/// What can be asked of a control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Start(Component),
    Stop(Component),
    /// See [`Api::expire`].
    Expire,
    Kubectl {
        user: User,
        arguments: Vec<String>,
        input: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    secret: String,
    request: Request,
}

/// The serving side.
pub struct Control {
    listener: TcpListener,
    secret: String,
}

impl Control {
    /// Listens on a free port of the loopback.
    pub fn bind() -> Result<Control> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port for requests")?;
        Ok(Control { listener, secret: keys::token()? })
    }

    /// The value of [`REMOTE`] for somebody who sees this machine's loopback at `host`.
    pub fn variable(&self, host: Ipv4Addr) -> Result<String> {
        Ok(format!("{host}:{},{}", self.listener.local_addr()?.port(), self.secret))
    }

    /// Answers requests, one after the other, until the control plane is taken away.
    pub fn serve(&self, api: &Mutex<Option<Api>>) {
        for stream in self.listener.incoming().flatten() {
            // One that asks nonsense, or goes away, learns by the end of its connection.
            let mut api = api.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(api) = api.as_mut() else { return };
            if let Err(error) = self.answer(stream, api) {
                eprintln!("with-api-server: {error:#}");
            }
        }
    }

    fn answer(&self, mut stream: TcpStream, api: &mut Api) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let Envelope { secret, request } = serde_json::from_str(&line).context("a request")?;
        if secret != self.secret {
            bail!("a request without the secret");
        }
        let answer: Result<String, String> = carry_out(api, request).map_err(|error| format!("{error:#}"));
        serde_json::to_writer(&stream, &answer)?;
        Ok(stream.flush()?)
    }
}

fn carry_out(api: &mut Api, request: Request) -> Result<String> {
    match request {
        Request::Start(component) => api.start(component)?,
        Request::Stop(component) => api.stop(component),
        Request::Expire => api.expire()?,
        Request::Kubectl { user, arguments, input } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            return api.call(user, &arguments, input.as_deref());
        }
    }
    Ok(String::new())
}

/// A control plane that runs elsewhere.
#[derive(Clone, Debug)]
pub struct Remote {
    address: SocketAddr,
    secret: String,
}

impl Remote {
    /// The one that the test runner started.
    pub fn from_env() -> Result<Remote> {
        let value = env::var(REMOTE).with_context(|| format!("{REMOTE} is not set: run by cargo xtask test"))?;
        Remote::parse(&value)
    }

    /// From the value of [`REMOTE`].
    pub fn parse(value: &str) -> Result<Remote> {
        let (address, secret) = value.split_once(',').with_context(|| format!("{REMOTE} is not ADDRESS,SECRET"))?;
        Ok(Remote { address: address.parse().context(REMOTE)?, secret: secret.to_owned() })
    }

    /// The machine with the control plane.
    pub fn host(&self) -> IpAddr {
        self.address.ip()
    }

    pub fn start(&self, component: Component) -> Result<()> {
        self.ask(&Request::Start(component)).map(drop)
    }

    pub fn stop(&self, component: Component) -> Result<()> {
        self.ask(&Request::Stop(component)).map(drop)
    }

    pub fn expire(&self) -> Result<()> {
        self.ask(&Request::Expire).map(drop)
    }

    pub fn ask(&self, request: &Request) -> Result<String> {
        let envelope = Envelope { secret: self.secret.clone(), request: request.clone() };
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE).context("the control plane")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_string(&envelope)?;
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        let answer: Result<String, String> = serde_json::from_reader(stream).context("the control plane's answer")?;
        answer.map_err(|error| anyhow!(error))
    }
}

impl Kubectl for Remote {
    fn call(&self, user: User, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        self.ask(&Request::Kubectl { user, arguments, input: input.map(str::to_owned) })
    }
}
