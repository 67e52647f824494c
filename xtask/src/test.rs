//! `cargo xtask test`: the tests, tier by tier; then what failed, once more, and one closing line over all of them.
//!
//! Test binaries are compiled once, on this machine, and run by path: as they are, inside namespaces of their own
//! (tiers 1, 2, 3, 5), or in virtual machines (tier 4), at most two at a time. What libtest prints passes through.
//! A tier that cannot run is a failure, unless an environment variable says that it is to be skipped; its tests are
//! then counted as skipped.

mod control_plane;
mod count;
mod jobs;

use std::env;
use std::process::{ExitCode, Stdio};
use std::sync::LazyLock;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo::{self, TestBinary};
use crate::tiers::{self, Place, Rule};
use crate::vm::Kernel;
use crate::{build_ebpf, host, paths, setup, sh};

use count::Count;

#[derive(clap::Args)]
pub struct Args {
    /// Only this tier (0 to 6); repeatable. Without it: 0 to 5
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=6))]
    tier: Vec<u8>,
    /// Only tests whose name, or whose file's name, contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only this kernel, where virtual machines are used
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
}

/// One run of one test binary.
pub struct Job {
    tier: u8,
    binary: TestBinary,
    rule: &'static Rule,
    /// None: on this machine.
    kernel: Option<Kernel>,
    /// libtest's arguments that choose tests.
    selection: Vec<String>,
    /// Tests that the binary holds for this run.
    tests: u32,
}

impl Job {
    fn title(&self) -> String {
        let place = self.kernel.map_or("this machine".to_string(), |kernel| format!("kernel {kernel}"));
        format!("tier {}: {}/tests/{} on {place}", self.tier, self.binary.package, self.binary.name)
    }
}

/// A variable that skips, the tiers it stands for, and whether only files with an API server are meant.
struct Skip {
    variable: &'static str,
    applies: fn(&Job) -> bool,
}

const SKIPS: [Skip; 3] = [
    Skip { variable: "KUBE_ROUTER_TEST_ROOT", applies: |job| job.kernel.is_none() },
    Skip { variable: "KUBE_ROUTER_TEST_VM", applies: |job| job.kernel.is_some() },
    Skip { variable: "KUBE_ROUTER_TEST_APISERVER", applies: |job| job.rule.kubernetes },
];

pub fn run(args: &Args) -> Result<ExitCode> {
    let tiers: Vec<u8> = if args.tier.is_empty() { (0..=5).collect() } else { args.tier.clone() };
    // Decided before anything is compiled: the tests include the BPF object.
    let privileged = tiers.iter().any(|&tier| tier > 0);
    if privileged && build_ebpf::exists() {
        build_ebpf::build(setup::bpf_toolchain()?)?;
    }
    let binaries = cargo::build_tests()?;
    let filter = args.filter.as_deref();
    let kernels: Vec<Kernel> = args.kernel.map_or(Kernel::ALL.to_vec(), |kernel| vec![kernel]);
    let (skipped, jobs): (Vec<Job>, Vec<Job>) =
        select(&binaries, &tiers, &kernels, filter)?.into_iter().partition(|job| skip(job).is_some());

    let mut count = Count::default();
    if tiers.contains(&0) {
        heading("tier 0: everything that needs no privileges");
        count += unprivileged(filter, tiers.len() < 6)?;
    }
    for job in &skipped {
        let variable = skip(job).unwrap_or_default();
        heading(&format!("{}: SKIPPED, {} tests ({variable}=skip)", job.title(), job.tests));
        count.skipped += job.tests;
    }
    if !jobs.is_empty() {
        let environment = prepare(&jobs)?;
        count += jobs::run_all(&jobs, &environment)?;
    }
    if count == Count::default() {
        bail!("no test was run: nothing matches");
    }
    for failure in &count.failures {
        println!("\nFAILED: {failure}");
    }
    println!("\n{count}");
    Ok(if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// With the time since the first one: continuous integration has only so much.
fn heading(text: &str) {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let seconds = BEGIN.elapsed().as_secs();
    println!("\n==== {:02}:{:02} {text}", seconds / 60, seconds % 60);
}

/// The variable that skips this job, if one is set. Any other value than "skip" is a mistake worth stopping for.
fn skip(job: &Job) -> Option<&'static str> {
    let set = |variable: &str| env::var(variable).is_ok_and(|value| value == "skip");
    SKIPS.iter().find(|skip| (skip.applies)(job) && set(skip.variable)).map(|skip| skip.variable)
}

/// The runs that the table asks for; none for a binary without a matching test.
fn select(binaries: &[TestBinary], tiers: &[u8], kernels: &[Kernel], filter: Option<&str>) -> Result<Vec<Job>> {
    for skip in &SKIPS {
        if let Some(value) = env::var_os(skip.variable)
            && value != "skip"
        {
            bail!("{}={}: the only value is \"skip\"", skip.variable, value.to_string_lossy());
        }
    }
    let mut jobs = Vec::new();
    for binary in binaries.iter().filter(|binary| binary.integration) {
        // A file is asked for by its name, or tests in it are by theirs.
        let filter = filter.filter(|text| !binary.name.contains(text));
        let wanted: Vec<String> = filter.map(String::from).into_iter().collect();
        if list(binary, "--ignored", &wanted)? == 0 {
            continue;
        }
        let rule = tiers::rule_for(&binary.package, &binary.name).with_context(|| {
            format!("{}/tests/{}.rs has ignored tests and no place in xtask/src/tiers.rs", binary.package, binary.name)
        })?;
        let skip = |names: &[&str]| -> Vec<String> {
            names.iter().flat_map(|name| ["--skip".to_string(), name.to_string()]).collect()
        };
        let selection = [skip(rule.skip), wanted].concat();
        let ignored = list(binary, "--ignored", &selection)?;
        if ignored == 0 {
            continue;
        }
        for &(tier, place) in rule.runs.iter().filter(|(tier, _)| tiers.contains(tier)) {
            let left_out = if tier < 6 { rule.vm_skip } else { &[] };
            let in_machines = [skip(left_out), selection.clone()].concat();
            let job = |kernel: Option<Kernel>, tests| {
                let selection = if kernel.is_some() { &in_machines } else { &selection };
                Job { tier, binary: binary.clone(), rule, kernel, selection: selection.clone(), tests }
            };
            match place {
                Place::Host => jobs.push(job(None, ignored)),
                Place::Vm | Place::OldVm => {
                    let tests = list(binary, "--include-ignored", &in_machines)?;
                    if tests == 0 {
                        continue;
                    }
                    let fits = |kernel: &&Kernel| place == Place::Vm || **kernel == Kernel::OLDEST;
                    jobs.extend(kernels.iter().filter(fits).map(|&kernel| job(Some(kernel), tests)));
                }
            }
        }
    }
    jobs.sort_by_key(|job| job.tier);
    Ok(jobs)
}

/// How many tests a binary would run; asked without privileges.
fn list(binary: &TestBinary, which: &str, selection: &[String]) -> Result<u32> {
    let text = sh::read_text(sh::command(&binary.path).args(["--list", "--format=terse", which]).args(selection))?;
    Ok(text.lines().filter(|line| line.ends_with(": test")).count() as u32)
}

/// Tier 0. `alone`: some tiers are left out, so the ignored tests count as skipped; else the other tiers count them.
fn unprivileged(filter: Option<&str>, alone: bool) -> Result<Count> {
    let mut test = cargo::command();
    test.args(["test", "--workspace", "--no-fail-fast"]).args(filter);
    test.stdout(Stdio::piped());
    let mut child = test.spawn().with_context(|| format!("cannot start {}", sh::line(&test)))?;
    let output = jobs::tee(child.stdout.take().context("piped")?)?;
    let status = child.wait()?;
    let verdicts = Count::of_libtest(&output);
    let mut count = Count::default();
    let is_empty = verdicts.is_empty();
    verdicts.into_iter().for_each(|verdict| count += verdict);
    if !status.success() && count.failed == 0 {
        bail!("{} ended with {status}", sh::line(&test));
    }
    if is_empty {
        bail!("{} ran no test binary", sh::line(&test));
    }
    count.failures = Count::failures_of_libtest("tier 0", &output);
    if !alone {
        count.skipped = 0;
    }
    Ok(count)
}

/// Installs and builds what these jobs need; returns the variables by which the tests find it.
fn prepare(jobs: &[Job]) -> Result<Vec<(String, String)>> {
    let kernels: Vec<Kernel> =
        Kernel::ALL.into_iter().filter(|kernel| jobs.iter().any(|job| job.kernel == Some(*kernel))).collect();
    if jobs.iter().any(|job| job.kernel.is_none()) {
        setup::lab_packages()?;
        host::check_rights().context("tiers 1, 2, 3 and 5 (KUBE_ROUTER_TEST_ROOT=skip leaves them out)")?;
    }
    if !kernels.is_empty() {
        setup::lab_packages()?;
        setup::virtual_machines(&kernels)?;
    }
    cargo::build_programs()?;
    let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let mut environment = vec![
        ("KUBE_ROUTER_BIN".to_string(), path(paths::target().join("debug/kube-router"))),
        // A panic's own place is enough; errors would otherwise carry a second, longer list of frames.
        ("RUST_LIB_BACKTRACE".to_string(), "0".to_string()),
    ];
    if jobs.iter().any(|job| job.rule.kubernetes) {
        environment.push(("KUBE_ROUTER_TEST_KUBE_BIN".to_string(), path(setup::kubernetes()?)));
    }
    Ok(environment)
}
