//! Running jobs: those on this machine one after the other, then those in virtual machines two at a time.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::control_plane::ControlPlane;
use super::count::Count;
use super::{Job, heading};
use crate::vm::{self, VmOptions, VmStatus};
use crate::{host, sh};

/// An emulated machine keeps about 1.3 cores busy, and a test with deadlines suffers from more neighbours.
const MACHINES: usize = 2;

/// Runs them all, whatever fails, and sums up.
pub fn run_all(jobs: &[Job], environment: &[(String, String)]) -> Result<Count> {
    let mut count = Count::default();
    for job in jobs.iter().filter(|job| job.kernel.is_none()) {
        heading(&job.title());
        count += on_this_machine(job, environment)?;
    }
    let queue: Mutex<VecDeque<&Job>> = Mutex::new(jobs.iter().filter(|job| job.kernel.is_some()).collect());
    let next = || queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front();
    let output = Mutex::new(());
    std::thread::scope(|scope| {
        let worker = || -> Result<Count> {
            let mut sum = Count::default();
            while let Some(job) = next() {
                sum += in_machine(job, environment, &output)?;
            }
            Ok(sum)
        };
        let workers: Vec<_> = (0..MACHINES).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            count += worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(count)
    })
}

fn on_this_machine(job: &Job, environment: &[(String, String)]) -> Result<Count> {
    let timeout = Duration::from_secs(job.rule.timeout_s);
    let environment = [environment, &[unstable()]].concat();
    let mut command = host::isolated(&environment, timeout);
    if let Some(controllers) = job.rule.control_plane {
        command.arg(ControlPlane::program()).arg(ControlPlane::controllers(controllers)).arg("--");
    }
    command.arg(&job.binary.path).args(["--ignored", "--test-threads=1"]).args(TIMES).args(&job.selection);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", sh::line(&command)))?;
    let output = tee(child.stdout.take().context("piped")?)?;
    let status = child.wait()?;
    Ok(judge(job, &output, status.success(), &status.to_string()))
}

/// How often the same is done in one run where the processor is emulated, tens of times slower; this machine's kernel sees
/// the rest.
const EMULATED: [(&str, &str); 3] =
    [("KUBE_ROUTER_FUZZ_PACKETS", "5000"), ("KUBE_ROUTER_MODEL_PAIRS", "2000"), ("KUBE_ROUTER_REPLACEMENTS", "4")];

/// libtest tells what each test took, though that is not stable yet.
const TIMES: [&str; 2] = ["-Zunstable-options", "--report-time"];

fn unstable() -> (String, String) {
    ("RUSTC_BOOTSTRAP".to_owned(), "1".to_owned())
}

/// Choices of the caller that tests in virtual machines hear of, too.
const CHOICES: [&str; 2] = ["KUBE_ROUTER_TEST_SCENARIO", "KUBE_ROUTER_KEPT_CONNECTIONS"];

fn in_machine(job: &Job, environment: &[(String, String)], output_lock: &Mutex<()>) -> Result<Count> {
    let kernel = job.kernel.context("a job in a virtual machine has a kernel")?;
    let begin = Instant::now();
    let control_plane = match job.rule.control_plane {
        Some(controllers) => Some(ControlPlane::start(controllers, environment)?),
        None => None,
    };
    let mut environment = [environment, control_plane.as_ref().map_or(&[], |started| &started.variables)].concat();
    for (name, number) in EMULATED {
        environment.push((name.to_owned(), std::env::var(name).unwrap_or_else(|_| number.to_owned())));
    }
    environment.push(unstable());
    environment.extend(CHOICES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
    let options = VmOptions {
        memory_mib: job.rule.memory_mib,
        timeout: Duration::from_secs(job.rule.timeout_s),
        env: environment,
        modules: job.rule.modules.iter().map(ToString::to_string).collect(),
        ..VmOptions::new(kernel)
    };
    let mut argv = vec![job.binary.path.to_string_lossy().into_owned()];
    argv.extend(["--include-ignored", "--test-threads=1"].map(String::from));
    argv.extend(TIMES.map(String::from));
    argv.extend(job.selection.clone());
    let progress = sh::Progress::start(&job.title());
    let mut output = vm::run(&options, &argv)?;
    if output.status == VmStatus::Died {
        // QEMU's emulation of several processors rarely runs over an instruction that the guest's kernel is just patching,
        // and the guest takes the breakpoint in its place for a fault. What our programs do to a kernel, they do twice.
        println!("\nxtask: {}: {}; once more", job.title(), output.verdict());
        std::io::stderr().write_all(&output.stderr)?;
        output = vm::run(&options, &argv)?;
    }
    drop((progress, control_plane));
    // Two machines at once: each one's output is shown as a whole.
    let _whole = output_lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    heading(&format!("{} ({:.0} s)", job.title(), begin.elapsed().as_secs_f64()));
    let mut stdout = std::io::stdout();
    stdout.write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    Ok(judge(job, &output.stdout, output.status == VmStatus::Exited(0), &output.verdict()))
}

/// A run that did not end with libtest's own verdict counts as one failure.
fn judge(job: &Job, output: &[u8], success: bool, end: &str) -> Count {
    // The last one: a test that runs another as its child may print that one's verdict, too.
    let verdict = Count::of_libtest(output).pop();
    let had_verdict = verdict.as_ref().is_some_and(|count| success == (count.failed == 0));
    let mut count = verdict.unwrap_or_default();
    count.failures = Count::failures_of_libtest(&job.title(), output);
    if !had_verdict {
        let text = format!("{}: no verdict of its own, counted as failed: {end}", job.title());
        println!("\nxtask: {text}");
        count.failures.push(text);
        count.failed += 1;
    }
    count
}

/// Copies to standard output as it comes, and returns it.
pub fn tee(mut reader: impl Read) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let length = reader.read(&mut buffer)?;
        if length == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&buffer[..length]);
        std::io::stdout().write_all(&buffer[..length])?;
        std::io::stdout().flush()?;
    }
}
