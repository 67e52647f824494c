//! The network configuration: what the chain's file says about us, and what the runtime adds.
//!
//! ```json
//! { "type": "kube-router-cni", "socket": "/run/kube-router/cni.sock", "timeout": 5, "whenAbsent": "fail",
//!   "pins": "/sys/fs/bpf/kube-router" }
//! ```
//!
//! All of ours are optional. Keys of others are passed over, as the specification wants.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use kube_router::cni::protocol::{self, Valid};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Code, Error, MAX_INPUT, version::Version};

/// Where an agent pins what it loads; the version follows.
const PINS: &str = "/sys/fs/bpf/kube-router";
/// A runtime gives up after two minutes and tries again; a person who waits for a pod, earlier.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_TIMEOUT_S: f64 = 60.0;
/// `sun_path` of unix(7), with its final zero.
const MAX_SOCKET: usize = 107;

/// What ADD does where no agent answers and none has run since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhenAbsent {
    /// The pod does not start.
    #[default]
    Fail,
    /// It starts, and no policy applies to it until an agent comes.
    Allow,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub version: Version,
    /// Of the network.
    pub name: String,
    pub socket: PathBuf,
    /// For the agent's answer to ADD and CHECK.
    pub timeout: Duration,
    pub when_absent: WhenAbsent,
    /// Directory above that of the version.
    pub pins: PathBuf,
    /// As the plugin before us answered.
    pub prev_result: Option<Map<String, Value>>,
    /// GC: all attachments that there are.
    pub valid: Option<BTreeSet<Valid>>,
}

#[derive(Deserialize)]
struct VersionOnly {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    name: String,
    socket: Option<PathBuf>,
    timeout: Option<f64>,
    #[serde(default)]
    when_absent: WhenAbsent,
    pins: Option<PathBuf>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<BTreeSet<Valid>>,
    /// The name that drafts of 1.1.0 used; runtimes say both.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<BTreeSet<Valid>>,
}

impl Config {
    pub fn parse(bytes: &[u8]) -> Result<Config, Error> {
        let decode = |error: serde_json::Error| {
            Error::new(Code::Decode, "the network configuration on standard input is not what CNI says").with(error)
        };
        if bytes.len() > MAX_INPUT {
            return Err(Error::new(Code::Decode, format!("the network configuration exceeds {MAX_INPUT} bytes")));
        }
        // A version that we do not know may have other fields, so it is judged before them.
        let only: VersionOnly = serde_json::from_slice(bytes).map_err(decode)?;
        let version = Version::parse(only.version.as_deref())?;
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| {
            // What can be read and says the wrong thing is not the decoder's business.
            let code = if error.is_data() { Code::Config } else { Code::Decode };
            Error { code, ..decode(error) }.of_version(version)
        })?;
        raw.judge(version).map_err(|error| error.of_version(version))
    }
}

impl Raw {
    fn judge(self, version: Version) -> Result<Config, Error> {
        let bad = |msg: String| Error::new(Code::Config, msg);
        let socket = self.socket.unwrap_or_else(|| protocol::SOCKET.into());
        if !is_plain(&socket) || socket.as_os_str().len() > MAX_SOCKET {
            return Err(bad(format!(
                "socket {socket:?} is not an absolute path without .. of at most {MAX_SOCKET} bytes"
            )));
        }
        let pins = self.pins.unwrap_or_else(|| PINS.into());
        if !is_plain(&pins) {
            return Err(bad(format!("pins {pins:?} is not an absolute path without ..")));
        }
        let timeout = match self.timeout {
            None => TIMEOUT,
            Some(seconds) if seconds > 0.0 && seconds <= MAX_TIMEOUT_S => Duration::from_secs_f64(seconds),
            Some(seconds) => {
                return Err(bad(format!("timeout {seconds} is not above 0 and up to {MAX_TIMEOUT_S} (seconds)")));
            }
        };
        let prev_result = match self.prev_result {
            None | Some(Value::Null) => None,
            Some(Value::Object(result)) => Some(result),
            Some(_) => return Err(bad("prevResult is not an object".into())),
        };
        Ok(Config {
            version,
            name: self.name,
            socket,
            timeout,
            when_absent: self.when_absent,
            pins,
            prev_result,
            valid: self.valid.or(self.attachments),
        })
    }
}

/// Absolute, without steps upwards, and something the kernel can take.
fn is_plain(path: &Path) -> bool {
    let has_zero = path.as_os_str().as_encoded_bytes().contains(&0);
    path.is_absolute() && !has_zero && !path.components().any(|part| part == Component::ParentDir)
}
