//! What the plugin and the agent say to each other: one line of JSON each way.
//!
//! The two are installed together but not at the same moment, so the version stands in front and is read first; fields
//! that are not known are passed over. A line has a bound, and so has the patience of whoever waits for one.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Changes when an older side would misunderstand a newer one.
pub const VERSION: u32 = 1;

/// Longest line. A request for a pod has about 500 bytes; the list of a node's valid attachments 90 for each of up to 700.
pub const MAX_LINE: usize = 64 * 1024;

/// Where the agent listens unless somebody says otherwise.
pub const SOCKET: &str = "/run/kube-router/cni.sock";

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the asking side.
    pub version: u32,
    /// How long the asker waits for the answer. The agent says in time that it has none.
    pub patience_ms: u64,
    pub command: Command,
}

/// The CNI command, with what the agent must know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Guard the interface, publish the pod, then answer. Twice is once.
    Add(Attachment),
    /// Is it guarded and published? Nothing is repaired, or repaired and said so.
    Check(Attachment),
    /// The pod goes. About a pod that is not known: done.
    Del(Detachment),
    /// Whatever is not in the list may go.
    Gc(ValidAttachments),
    /// Can pods be added?
    Status,
}

/// The name under which the agent's log and the errors know a command.
impl Command {
    pub fn name(&self) -> &'static str {
        match self {
            Command::Add(_) => "ADD",
            Command::Check(_) => "CHECK",
            Command::Del(_) => "DEL",
            Command::Gc(_) => "GC",
            Command::Status => "STATUS",
        }
    }
}

/// A pod's interface, as the kernel and the plugins before ours tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the CNI network.
    pub network: String,
    pub container_id: String,
    /// `None`: not started by Kubernetes.
    pub pod: Option<PodName>,
    pub namespace: Namespace,
    pub host: HostEnd,
    pub pod_end: PodEnd,
}

/// From CNI_ARGS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    /// Older runtimes do not say it.
    pub uid: Option<String>,
    /// Of the sandbox; usually the container id of the request.
    pub infra_container_id: Option<String>,
}

/// The pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// As the runtime names it; need not exist where the agent runs.
    pub path: String,
    /// Of the namespace file: the same wherever it is seen.
    pub inode: u64,
}

/// The node's end of the veth, in the node's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEnd {
    pub name: String,
    pub ifindex: u32,
}

/// The pod's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEnd {
    pub name: String,
    pub mac: [u8; 6],
    /// Of both families; IPv4 in its own form.
    pub addresses: BTreeSet<IpAddr>,
}

/// What is known of a pod that goes: its interface and its namespace may be gone already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detachment {
    pub network: String,
    pub container_id: String,
    pub pod: Option<PodName>,
    pub pod_ifname: String,
    /// As in [`Namespace::path`]; the runtime need not say it.
    pub namespace_path: Option<String>,
}

/// The attachments of a network that the runtime still knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidAttachments {
    pub network: String,
    pub valid: BTreeSet<Valid>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Valid {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Done. `published` (ADD, CHECK): the pod's addresses and rules are in the tables; if not, nothing passes until they
    /// are. STATUS: the agent is ready.
    Ok { published: bool, note: String },
    /// The agent decided against it. `code` is CNI's: 11 for "try again later", 100 and above are ours; 50 and 51 are for
    /// STATUS.
    Error { code: u32, msg: String, details: String },
    /// There is an agent, but it has no answer now: busy, ending, or of another version. The asker does what it does
    /// without an agent.
    Away { reason: String },
}

/// The part of a request that every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// Why a line is no request.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    #[error("this agent speaks version {VERSION} of the plugin's protocol, not {0}")]
    Version(u32),
    #[error("not a request: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Request {
    pub fn parse(line: &[u8]) -> Result<Request, BadRequest> {
        let head: Head = serde_json::from_slice(line)?;
        if head.version != VERSION {
            return Err(BadRequest::Version(head.version));
        }
        Ok(serde_json::from_slice(line)?)
    }
}

/// One line, newline included. `None`: longer than [`MAX_LINE`].
pub fn line<T: Serialize>(message: &T) -> Option<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message).ok()?;
    bytes.push(b'\n');
    (bytes.len() <= MAX_LINE).then_some(bytes)
}
