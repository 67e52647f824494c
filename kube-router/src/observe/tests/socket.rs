//! The status socket and `kube-router dump`.

use std::path::Path;

/// No maps are pinned there.
const NO_MAPS: &str = "/nonexistent";

use super::*;
use crate::{
    cli::dump,
    observe::{ServiceRow, socket::SocketError},
};

#[test]
fn dump_shows_what_the_loop_answers() {
    let mut agent = Agent::start(Stats::Counts);
    let rows = vec![row("plain", "10.96.1.1", 80)];
    agent.answer(rows.clone());
    let mut text = Vec::new();
    dump::dump(dump::What::Services, &agent.socket(), Path::new(NO_MAPS), dump::Format::Text, &mut text).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), crate::observe::table::services(&rows));
    let mut json = Vec::new();
    dump::dump(dump::What::Services, &agent.socket(), Path::new(NO_MAPS), dump::Format::Json, &mut json).unwrap();
    assert_eq!(serde_json::from_slice::<Vec<ServiceRow>>(&json).unwrap(), rows);

    let socket = agent.socket();
    let ask = |path: &str| curl(&["--unix-socket", socket.to_str().unwrap(), &format!("http://localhost{path}")]);
    assert_eq!(ask("/v1/problems").2, r#"[{"subject":"Node n","reason":"R","text":"t"}]"#);
    let problems = |format| {
        let mut out = Vec::new();
        dump::dump(dump::What::Problems, &socket, Path::new(NO_MAPS), format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(problems(dump::Format::Text), "SUBJECT  REASON  TEXT\nNode n   R       t\n");
    assert!(problems(dump::Format::Json).contains("\"reason\": \"R\""));
    let (status, content_type, version) = ask("/v1/version");
    assert_eq!((status, content_type.as_str()), (200, "application/json"));
    assert!(version.contains("\"compiler\":\"rustc "), "{version}");
    assert_eq!(ask("/v2/services").0, 404);
}

#[test]
fn dump_says_what_to_do_when_no_agent_answers() {
    let agent = Agent::start(Stats::Counts);
    let socket = agent.socket();
    let dump = || {
        dump::dump(dump::What::Services, &socket, Path::new(NO_MAPS), dump::Format::Text, &mut Vec::new())
            .unwrap_err()
            .to_string()
    };
    // The loop is gone.
    let mut agent = agent;
    agent.queries = None;
    assert!(dump().contains("the reconcile loop has ended"));
    drop(agent);
    assert!(dump().contains("is kube-router running on this node?"));
}

#[test]
fn a_socket_belongs_to_one_agent() {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/agent.sock");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;

    let first = status_socket::bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o755);
    assert!(matches!(status_socket::bind(&path), Err(SocketError::Taken(_))));
    drop(first);
    assert!(!path.exists());

    // Left by a dead agent: replaced.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(status_socket::bind(&path).unwrap());
    // Somebody listens although nobody holds the lock: not stolen.
    let living = UnixListener::bind(&path).unwrap();
    assert!(matches!(status_socket::bind(&path), Err(SocketError::Taken(_))));
    drop(living);
    std::fs::remove_file(&path).unwrap();
    // A file is nobody's socket: kept.
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(status_socket::bind(&path), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
