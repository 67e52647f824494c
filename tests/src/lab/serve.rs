//! Starting `pod-server` in a namespace.

use std::{process::Command, time::Duration};

use anyhow::Result;

use super::Namespace;
use crate::process::{Process, built_program};

/// Time for the server to listen; an emulated machine under load needs seconds.
const START: Duration = Duration::from_secs(30);

/// What a pod serves. Without an address it listens on all of them.
#[derive(Clone, Debug, Default)]
pub struct Serve {
    tcp: Vec<u16>,
    udp: Vec<u16>,
    sctp: Vec<u16>,
}

impl Serve {
    pub fn new() -> Serve {
        Serve::default()
    }

    pub fn tcp(mut self, port: u16) -> Serve {
        self.tcp.push(port);
        self
    }

    pub fn udp(mut self, port: u16) -> Serve {
        self.udp.push(port);
        self
    }

    pub fn sctp(mut self, port: u16) -> Serve {
        self.sctp.push(port);
        self
    }

    /// Starts it in `namespace`, answering as `name`. Returns once every port listens.
    pub fn start(&self, namespace: &Namespace, name: &str) -> Result<Process> {
        let mut command = Command::new(built_program("pod-server", "KUBE_ROUTER_POD_SERVER_BIN")?);
        command.args(["--name", name]);
        for (flag, ports) in [("--tcp", &self.tcp), ("--udp", &self.udp), ("--sctp", &self.sctp)] {
            for port in ports {
                command.args([flag, &port.to_string()]);
            }
        }
        let mut server = namespace.spawn(&format!("pod-server {name}"), command)?;
        server.wait_for_line(START, |line| line == "ready")?;
        Ok(server)
    }
}
