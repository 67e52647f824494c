//! A node and its pods as namespaces on threads, and the usual chain on it.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use kube_router::apply::bpf::{Dataplane, Options, Tables, root};
pub use kube_router_tests::chain::Said;
use kube_router_tests::chain::{self, Container, usual_plugins};
use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use serde_json::{Value, json};

type Job = Box<dyn FnOnce() + Send>;

/// Runs `body` on a thread in a network namespace of its own: the node.
pub fn on_a_node(body: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        run("ip", "link set lo up");
        quiet_ipv6();
        body();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// No waiting for duplicate addresses.
fn quiet_ipv6() {
    for of in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{of}/accept_dad"), "0").expect("sysctl");
    }
}

pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    assert!(output.status.success(), "{program} {arguments}: {}", text(output.stderr));
    text(output.stdout)
}

/// Does the other side answer? Asked from the namespace of the calling thread.
pub fn answers(address: &str) -> bool {
    let ping = Command::new("ping").args(["-c", "1", "-W", "1", address]).stdout(Stdio::null()).status();
    ping.expect("ping").success()
}

/// A pod's namespace; jobs run in it.
pub struct Pod {
    jobs: mpsc::Sender<Job>,
    pub netns: String,
}

impl Pod {
    pub fn new() -> Pod {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, thread_id) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            quiet_ipv6();
            ready.send(gettid()).expect("test waits");
            for job in inbox {
                job();
            }
        });
        let tid = thread_id.recv().expect("pod");
        Pod { jobs, netns: format!("/proc/{}/task/{tid}/ns/net", std::process::id()) }
    }

    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(answer.send(job())))).expect("pod");
        result.recv_timeout(Duration::from_secs(120)).expect("job done")
    }

    pub fn answers(&self, address: &str) -> bool {
        let address = address.to_owned();
        self.run(move || answers(&address))
    }
}

/// A chain with places of its own for pins, socket and addresses. The BPF file system goes with it.
pub struct Chain {
    base: tempfile::TempDir,
    pub version: &'static str,
    /// Keys of our plugin besides those that say where things are.
    pub own: Value,
}

impl Chain {
    pub fn new(version: &'static str) -> Chain {
        let base = tempfile::tempdir().expect("directory");
        let chain = Chain { base, version, own: json!({}) };
        fs::create_dir(chain.pins()).expect("directory");
        mount(Some("bpf"), &chain.pins(), Some("bpf"), MsFlags::empty(), None::<&str>).expect("bpf file system");
        chain
    }

    pub fn pins(&self) -> PathBuf {
        self.base.path().join("bpf")
    }

    pub fn socket(&self) -> PathBuf {
        self.base.path().join("cni.sock")
    }

    /// As an agent does when it starts.
    pub fn dataplane(&self) -> Dataplane {
        Dataplane::load(&Options { pins: Some(root(&self.pins())), ..Options::default() }).expect("load")
    }

    pub fn tables(&self) -> Tables {
        Tables::open(&root(&self.pins())).expect("pinned tables")
    }

    fn inner(&self) -> chain::Chain {
        let mut own = json!({ "socket": self.socket(), "pins": self.pins() });
        for (key, value) in self.own.as_object().expect("object") {
            own[key] = value.clone();
        }
        let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]);
        chain::Chain {
            version: self.version,
            plugins: usual_plugins(self.base.path(), &ranges, own),
            pause: Duration::ZERO,
        }
    }

    pub fn plugins(&self) -> Vec<Value> {
        self.inner().plugins
    }

    /// One plugin, once.
    pub fn call(&self, command: &str, pod: &Pod, id: &str, plugin: &Value, prev: Option<&Value>) -> Said {
        self.inner().call(command, container(pod, id, &name(id)), plugin, prev).expect("it runs")
    }

    /// The whole chain in its order; ends at the first error. Says what the last one said.
    pub fn add(&self, pod: &Pod, id: &str) -> Said {
        self.inner().add(container(pod, id, &name(id))).expect("plugins run")
    }

    /// In reverse order.
    pub fn del(&self, pod: &Pod, id: &str, result: &Value) {
        self.inner().del(container(pod, id, &name(id)), result).expect("every plugin succeeds");
    }

    /// Our plugin only.
    pub fn ours(&self, command: &str, pod: &Pod, id: &str, result: &Value) -> Said {
        self.inner().last(command, container(pod, id, &name(id)), result).expect("it runs")
    }
}

fn name(id: &str) -> String {
    format!("pod-{id}")
}

fn container<'a>(pod: &'a Pod, id: &'a str, name: &'a str) -> Container<'a> {
    Container { id, netns: &pod.netns, pod: name, uid: None }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(root(&self.pins()));
        let _ = umount(&self.pins());
    }
}
