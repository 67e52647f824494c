//! Both sides against each other, and each against somebody who does not keep to the protocol.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::MetadataExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Receiver;

use super::{
    client::{Unanswered, ask},
    protocol::{
        Attachment, Command, Detachment, HostEnd, MAX_LINE, Namespace, PodEnd, PodName, Request, Response, VERSION,
        Valid, ValidAttachments,
    },
    server::{Ask, CniServer, channel},
};
use crate::observe::socket::SocketError;

const LONG: Duration = Duration::from_secs(20);

fn request(command: Command, patience: Duration) -> Request {
    Request { version: VERSION, patience_ms: patience.as_millis() as u64, command }
}

fn attachment(container: &str) -> Attachment {
    Attachment {
        network: "mynet".into(),
        container_id: container.into(),
        pod: Some(PodName {
            namespace: "default".into(),
            name: "web".into(),
            uid: Some("u-1".into()),
            infra_container_id: None,
        }),
        namespace: Namespace { path: "/run/netns/x".into(), inode: 4_026_532_000 },
        host: HostEnd { name: "veth1".into(), ifindex: 7 },
        pod_end: PodEnd {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            addresses: ["10.1.0.5", "fd00:1::5"].map(|address| address.parse().expect("address")).into(),
        },
    }
}

fn ok() -> Response {
    Response::Ok { published: true, note: String::new() }
}

/// A directory with a path for the socket in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("cni.sock");
    (directory, path)
}

/// A loop that answers every question at once, until the server is gone.
fn loop_of(
    mut asks: Receiver<Ask>,
    answer: impl Fn(&Request) -> Response + Send + 'static,
) -> thread::JoinHandle<usize> {
    thread::spawn(move || {
        let mut answered = 0;
        while let Some(ask) = asks.blocking_recv() {
            let response = answer(&ask.request);
            ask.answer(response);
            answered += 1;
        }
        answered
    })
}

#[test]
fn the_wire_format_stays() {
    let text = serde_json::to_string(&request(Command::Add(attachment("c1")), Duration::from_secs(5))).expect("JSON");
    assert_eq!(
        text,
        "{\"version\":1,\"patience_ms\":5000,\"command\":{\"add\":{\"network\":\"mynet\",\"container_id\":\"c1\",\
         \"pod\":{\"namespace\":\"default\",\"name\":\"web\",\"uid\":\"u-1\",\"infra_container_id\":null},\
         \"namespace\":{\"path\":\"/run/netns/x\",\"inode\":4026532000},\"host\":{\"name\":\"veth1\",\"ifindex\":7},\
         \"pod_end\":{\"name\":\"eth0\",\"mac\":[2,0,0,0,0,1],\"addresses\":[\"10.1.0.5\",\"fd00:1::5\"]}}}}"
    );
    let status = serde_json::to_string(&request(Command::Status, Duration::from_secs(1))).expect("JSON");
    assert_eq!(status, "{\"version\":1,\"patience_ms\":1000,\"command\":\"status\"}");
    for (response, text) in [
        (ok(), "{\"ok\":{\"published\":true,\"note\":\"\"}}"),
        (Response::Away { reason: "r".into() }, "{\"away\":{\"reason\":\"r\"}}"),
        (
            Response::Error { code: 11, msg: "m".into(), details: "d".into() },
            "{\"error\":{\"code\":11,\"msg\":\"m\",\"details\":\"d\"}}",
        ),
    ] {
        assert_eq!(serde_json::to_string(&response).expect("JSON"), text);
    }
}

#[test]
fn every_command_arrives_as_it_was_sent() {
    let (_directory, path) = place();
    let (sender, mut asks) = channel();
    let server = CniServer::start(&path, sender).expect("server");
    assert_eq!(fs::metadata(&path).expect("socket").mode() & 0o777, 0o600);
    let valid = Valid { container_id: "c1".into(), ifname: "eth0".into() };
    let commands = [
        Command::Add(attachment("c1")),
        Command::Check(attachment("c1")),
        Command::Del(Detachment {
            network: "mynet".into(),
            container_id: "c1".into(),
            pod: None,
            pod_ifname: "eth0".into(),
            namespace_path: None,
        }),
        Command::Gc(ValidAttachments { network: "mynet".into(), valid: [valid].into() }),
        Command::Status,
    ];
    for command in commands {
        let sent = request(command, LONG);
        let asker = thread::spawn({
            let (path, sent) = (path.clone(), sent.clone());
            move || ask(&path, &sent, LONG)
        });
        let heard = asks.blocking_recv().expect("question");
        assert_eq!(heard.request, sent);
        heard.answer(ok());
        assert_eq!(asker.join().expect("asker").expect("answer"), ok());
    }
    drop(server);
    assert!(!path.exists(), "the socket goes with its server");
    assert!(asks.blocking_recv().is_none());
}

#[test]
fn many_ask_at_once_and_each_hears_its_own_answer() {
    let (_directory, path) = place();
    let (sender, asks) = channel();
    let server = CniServer::start(&path, sender).expect("server");
    let answering = loop_of(asks, |request| match &request.command {
        Command::Add(pod) => Response::Ok { published: true, note: pod.container_id.clone() },
        other => panic!("{other:?}"),
    });
    thread::scope(|scope| {
        for number in 0..120 {
            let path = &path;
            scope.spawn(move || {
                let id = format!("c{number}");
                let answer = ask(path, &request(Command::Add(attachment(&id)), LONG), LONG).expect("answer");
                assert_eq!(answer, Response::Ok { published: true, note: id });
            });
        }
    });
    drop(server);
    assert_eq!(answering.join().expect("loop"), 120);
}

#[test]
fn a_loop_that_is_stuck_or_gone_is_told_in_time() {
    let (_directory, path) = place();
    let (sender, asks) = channel();
    let _server = CniServer::start(&path, sender).expect("server");
    let patience = Duration::from_millis(500);
    let begin = Instant::now();
    // More than wait in the queue: neither a place there nor an answer takes longer than the patience.
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| match ask(&path, &request(Command::Status, patience), LONG).expect("answer") {
                Response::Away { reason } => assert!(reason.contains("busy"), "{reason}"),
                other => panic!("{other:?}"),
            });
        }
    });
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    drop(asks);
    match ask(&path, &request(Command::Status, LONG), LONG).expect("answer") {
        Response::Away { reason } => assert!(reason.contains("ending"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_agent_has_the_socket_and_a_dead_ones_is_replaced() {
    let (_directory, path) = place();
    drop(UnixListener::bind(&path).expect("a dead agent's"));
    let (sender, _asks) = channel();
    let first = CniServer::start(&path, sender.clone()).expect("replaces it");
    assert!(matches!(CniServer::start(&path, sender.clone()), Err(SocketError::Taken(_))));
    drop(first);
    drop(CniServer::start(&path, sender.clone()).expect("free again"));
    fs::write(&path, "a file").expect("file");
    assert!(matches!(CniServer::start(&path, sender), Err(SocketError::NotASocket(_))));
}

/// Sends bytes and reads what comes back.
fn raw(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).expect("connect");
    stream.set_read_timeout(Some(LONG)).expect("timeout");
    // A server that has heard enough hangs up in the middle.
    let _ = stream.write_all(bytes);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn what_is_no_request_costs_the_server_nothing() {
    let (_directory, path) = place();
    let (sender, asks) = channel();
    let server = CniServer::start(&path, sender).expect("server");
    let answering = loop_of(asks, |_| ok());
    assert!(raw(&path, b"{\"version\":2,\"verb\":\"NEW\"}\n").contains("\"away\""));
    for bad in ["nonsense\n", "{\"version\":1}\n", "{\"version\":1,\"patience_ms\":1,\"command\":\"reboot\"}\n", "\n"] {
        let answer = raw(&path, bad.as_bytes());
        assert!(answer.contains("\"error\"") && answer.contains("\"code\":6"), "{bad}: {answer}");
    }
    assert!(raw(&path, b"\xff\xfe\n").contains("\"code\":6"), "no UTF-8");
    assert_eq!(raw(&path, &vec![b'x'; 2 * MAX_LINE]), "", "too long");
    assert_eq!(
        raw(&path, &[b'['; 60_000].iter().copied().chain(*b"\n").collect::<Vec<u8>>()).matches("error").count(),
        1
    );
    // Somebody who connects and says nothing holds one of many places, for a while.
    let silent: Vec<UnixStream> = (0..5).map(|_| UnixStream::connect(&path).expect("connect")).collect();
    assert_eq!(ask(&path, &request(Command::Status, LONG), LONG).expect("answer"), ok());
    drop(silent);
    drop(server);
    assert_eq!(answering.join().expect("loop"), 1);
}

/// A listener that does this with its connections, one after the other.
fn false_agent(path: &Path, mut act: impl FnMut(UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(path).expect("bind");
    thread::spawn(move || listener.incoming().flatten().for_each(&mut act));
}

#[test]
fn an_agent_that_is_absent_is_told_from_one_that_is_silent_or_mad() {
    let patience = Duration::from_millis(400);
    let status = request(Command::Status, patience);
    let (_directory, path) = place();
    assert!(matches!(ask(&path, &status, patience), Err(Unanswered::Absent)));
    fs::write(&path, "a file").expect("file");
    assert!(matches!(ask(&path, &status, patience), Err(Unanswered::Refused)));
    fs::remove_file(&path).expect("remove");
    drop(UnixListener::bind(&path).expect("bind"));
    assert!(matches!(ask(&path, &status, patience), Err(Unanswered::Refused)));

    let answers: [(&[u8], &str); 5] = [
        (b"", "ended before"),
        (b"\n", "not understood"),
        (b"garbage\n", "not understood"),
        (b"{\"ok\":{}}\n", "not understood"),
        (b"{\"ok\":{\"published\":true", "ended before"),
    ];
    for (answer, says) in answers {
        let (_directory, path) = place();
        false_agent(&path, move |mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer);
        });
        let error = ask(&path, &status, Duration::from_secs(10)).expect_err("no answer");
        assert!(matches!(error, Unanswered::Garbled(_)) && error.to_string().contains(says), "{error}");
    }

    // Silent, slower than anybody waits, and without an end.
    for step in [Duration::MAX, Duration::from_millis(50), Duration::ZERO] {
        let (_directory, path) = place();
        false_agent(&path, move |mut stream| {
            thread::spawn(move || {
                while step == Duration::MAX || stream.write_all(&[b'x'; 100]).is_ok() {
                    thread::sleep(step.min(LONG));
                }
            });
        });
        let begin = Instant::now();
        let error = ask(&path, &status, patience).expect_err("no answer");
        assert!(begin.elapsed() < Duration::from_secs(5), "{step:?}: {:?}", begin.elapsed());
        assert!(matches!(error, Unanswered::Silent(_) | Unanswered::Garbled(_)), "{step:?}: {error}");
    }
}

#[test]
fn a_listener_whose_queue_is_full_is_silent() {
    let (_directory, path) = place();
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("socket");
    socket.bind(&socket2::SockAddr::unix(&path).expect("address")).expect("bind");
    socket.listen(0).expect("listen");
    let _first = UnixStream::connect(&path).expect("fits");
    let patience = Duration::from_millis(300);
    let begin = Instant::now();
    let answer = ask(&path, &request(Command::Status, patience), patience);
    assert!(matches!(answer, Err(Unanswered::Silent(_))), "{answer:?}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_request_that_is_too_long_is_not_sent() {
    let valid = |number: u32| Valid { container_id: format!("{number:064}"), ifname: "eth0".into() };
    let command = Command::Gc(ValidAttachments { network: "mynet".into(), valid: (0..5_000).map(valid).collect() });
    assert!(matches!(ask(Path::new("/nowhere"), &request(command, LONG), LONG), Err(Unanswered::TooLong)));
    let command = Command::Gc(ValidAttachments { network: "mynet".into(), valid: (0..600).map(valid).collect() });
    assert!(matches!(ask(Path::new("/nowhere"), &request(command, LONG), LONG), Err(Unanswered::Absent)));
}
