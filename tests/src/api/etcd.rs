//! The few questions that a test has for etcd itself, over its JSON gateway.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// One HTTP exchange on the loopback.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn is_healthy(client: SocketAddr) -> bool {
    ask(client, "GET", "/health", "").is_ok_and(|answer| answer["health"] == "true")
}

/// The newest revision.
pub(super) fn revision(client: SocketAddr) -> Result<String> {
    let answer = ask(client, "POST", "/v3/maintenance/status", "{}")?;
    answer["header"]["revision"].as_str().map(str::to_owned).with_context(|| format!("no revision in {answer}"))
}

/// Forgets everything before `revision`, and waits until it is gone.
pub(super) fn compact(client: SocketAddr, revision: String) -> Result<()> {
    let body = serde_json::json!({"revision": revision, "physical": true});
    ask(client, "POST", "/v3/kv/compaction", &body.to_string()).map(drop)
}

fn ask(client: SocketAddr, method: &str, path: &str, body: &str) -> Result<serde_json::Value> {
    let mut stream = TcpStream::connect_timeout(&client, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    // 1.0: the answer ends with the connection.
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {client}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("etcd: no HTTP head")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("etcd: {method} {path}: {answer}");
    }
    serde_json::from_str(body).with_context(|| format!("etcd: {body}"))
}
