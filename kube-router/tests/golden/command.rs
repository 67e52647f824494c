//! The built program: `plan` and `replay` on good input, and on every kind of bad input that a user can produce.
//!
//! Bad input must cost its own object and nothing else, be named with its object or its file and line, and be visible
//! in the answer.

mod bad_objects;
mod bad_sources;
mod looks;
mod outputs;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

/// Node n1 and a plain service `web/good`, which must be served whatever stands beside it.
const GOOD: &str = "\
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.77.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: good, namespace: web}
spec: {clusterIP: 10.96.0.80, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: good-1, namespace: web, labels: {kubernetes.io/service-name: good}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.17], nodeName: n1, conditions: {ready: true}}]
";

const GOOD_LINES: [&str; 2] = ["-A -t 10.96.0.80:80 -s rr", "-a -t 10.96.0.80:80 -r 10.244.1.17:8080 -m -w 1"];

/// What the program said.
struct Said {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        let status = output.status.code().expect("it ended by itself");
        Said { status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The lines below one heading of the listing.
    fn section(&self, heading: &str) -> Vec<&str> {
        let start = format!("# {heading}");
        let lines = self.stdout.lines().skip_while(|line| !line.starts_with(&start)).skip(1);
        lines.take_while(|line| !line.starts_with("# ")).collect()
    }

    fn ipvs(&self) -> Vec<&str> {
        self.section("IPVS on node")
    }

    fn problems(&self) -> Vec<&str> {
        self.section("problems")
    }

    /// The program did its work, and the good service is there.
    fn serves_the_good_one(&self) {
        assert_eq!(self.status, 0, "{}", self.stderr);
        for line in GOOD_LINES {
            assert!(self.ipvs().contains(&line), "{line} is missing in\n{}", self.stdout);
        }
    }

    /// Exactly one problem, which mentions all of these.
    fn one_problem(&self, words: &[&str]) {
        let [problem] = self.problems()[..] else { panic!("not one problem: {:?}", self.problems()) };
        for word in words {
            assert!(problem.contains(word), "{word:?} is missing in {problem:?}");
        }
    }

    /// The program refused to work, and the last line on standard error mentions all of these.
    fn refused(&self, words: &[&str]) {
        assert_eq!((self.status, self.stdout.as_str()), (1, ""), "{}", self.stderr);
        let reason = self.stderr.lines().last().unwrap_or_default();
        for word in words {
            assert!(reason.contains(word), "{word:?} is missing in {reason:?}");
        }
    }
}

/// Runs the program without anything of this shell's environment.
fn kube_router(args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-router"));
    Said::of(command.env_clear().args(args).output().expect("the program starts"))
}

/// Plans for node n1 from a directory or file.
fn plan(manifests: &Path, switches: &[&str]) -> Said {
    let manifests = format!("--manifests={}", manifests.display());
    let mut args = vec!["plan", "--hostname-override=n1", "--run-router=false", "--run-firewall=false", &manifests];
    args.extend(switches);
    kube_router(&args)
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("writes");
    }
    directory
}

/// Plans from the good objects and, in a file of their own, others.
fn plan_with(others: &str, switches: &[&str]) -> Said {
    let directory = directory(&[("good.yaml", GOOD), ("others.yaml", others)]);
    plan(directory.path(), switches)
}
