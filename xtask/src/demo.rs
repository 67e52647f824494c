//! `cargo xtask demo`: the agent at work on a small cluster of network namespaces, for people to watch.
//!
//! The content is the program `demo` of the test crate. Here is only where it runs: on this machine, inside namespaces
//! of its own, if the kernel has IPVS; else in a virtual machine. With `--keep` it stays, and commands can be run
//! beside it, from its terminal or from another one with `--exec`.

use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::vm::{self, Kernel, VmOptions, VmStatus, guest};
use crate::{build_ebpf, cargo, host, paths, setup, sh};

/// For a demonstration without `--keep`.
const SHORT: Duration = Duration::from_secs(15 * 60);
/// A kept one ends by itself after a working day.
const LONG: Duration = Duration::from_secs(12 * 3600);
/// One command beside a kept demonstration.
const COMMAND: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub struct Args {
    /// Stay, and take commands: lines on standard input, or `cargo xtask demo --exec COMMAND` elsewhere
    #[arg(long)]
    keep: bool,
    /// Feed the agents from a real API server instead of manifest files
    #[arg(long)]
    from_cluster: bool,
    /// Which kernel, where a virtual machine is used
    #[arg(long, value_enum, default_value_t = Kernel::V6_1)]
    kernel: Kernel,
    /// Use a virtual machine even if this machine's kernel has IPVS
    #[arg(long)]
    vm: bool,
    /// Run a shell command beside a demonstration that is being kept
    #[arg(long, value_name = "COMMAND", exclusive = true)]
    exec: Option<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let control = paths::target().join("demo");
    if let Some(command) = &args.exec {
        ensure!(owner_lives(&control), "no demonstration is being kept: start one with `cargo xtask demo --keep`");
        return exec(&control, command);
    }
    ensure!(!owner_lives(&control), "a demonstration is being kept already (see {})", control.display());
    let (program, environment) = prepare(args)?;
    let mut argv = vec![program.to_string_lossy().into_owned()];
    argv.extend(args.from_cluster.then(|| "--from-cluster".to_string()));
    let _kept = match args.keep {
        true => {
            argv.push("--keep".into());
            Some(Kept::open(&control)?)
        }
        false => None,
    };
    if args.vm || !host_has_ipvs() {
        setup::virtual_machines(&[args.kernel])?;
        println!("this demonstration runs in a virtual machine with kernel {}", args.kernel);
        in_machine(args, &argv, environment, &control)
    } else {
        host::check_rights()?;
        println!("this demonstration runs on this machine, in namespaces of its own");
        on_this_machine(args, &argv, &environment, &control)
    }
}

/// Builds everything; returns the program and the variables by which it finds the rest.
fn prepare(args: &Args) -> Result<(PathBuf, Vec<(String, String)>)> {
    setup::lab_packages()?;
    if build_ebpf::exists() {
        build_ebpf::build(setup::bpf_toolchain()?)?;
    }
    cargo::build_programs()?;
    let program = paths::target().join("debug/demo");
    ensure!(program.is_file(), "the test crate has no program `demo`");
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut environment = vec![("KUBE_ROUTER_BIN".to_string(), text(paths::target().join("debug/kube-router")))];
    if args.from_cluster {
        environment.push(("KUBE_ROUTER_TEST_KUBE_BIN".to_string(), text(setup::kubernetes()?)));
    }
    Ok((program, environment))
}

/// True if this kernel has IPVS, loading the module if that is possible.
fn host_has_ipvs() -> bool {
    let there = || Path::new("/proc/net/ip_vs").exists();
    there() || (sh::read(setup::as_root("modprobe").arg("ip_vs")).is_ok() && there())
}

fn in_machine(args: &Args, argv: &[String], env: Vec<(String, String)>, control: &Path) -> Result<ExitCode> {
    let options = VmOptions {
        memory_mib: if args.from_cluster { 3072 } else { 1536 },
        timeout: if args.keep { LONG } else { SHORT },
        env,
        modules: ["ip_vs", "br_netfilter"].map(String::from).to_vec(),
        stream: true,
        control: args.keep.then(|| control.to_path_buf()),
        ..VmOptions::new(args.kernel)
    };
    if args.keep {
        prompt(control, "echo o >/proc/sysrq-trigger");
    }
    let output = vm::run(&options, argv)?;
    match output.status {
        VmStatus::Exited(status) => Ok(ExitCode::from(status)),
        VmStatus::Died | VmStatus::Deadline if args.keep => Ok(ExitCode::SUCCESS),
        VmStatus::Died | VmStatus::Deadline => bail!("{}", output.verdict()),
    }
}

fn on_this_machine(args: &Args, argv: &[String], env: &[(String, String)], control: &Path) -> Result<ExitCode> {
    let mut command = host::isolated(env, if args.keep { LONG } else { SHORT });
    if args.keep {
        // The first process of a PID namespace takes the others with it when it is killed.
        let script = format!("bash -c \"$KEEPER\" keeper {} & exec \"$@\"", sh::quote(&control.to_string_lossy()));
        command.args(["env", &format!("KEEPER={}", guest::KEEPER), "bash", "-c", &script, "bash"]);
        prompt(control, "kill -9 -1");
    }
    let status = sh::pass(command.args(argv))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(if args.keep { ExitCode::SUCCESS } else { code.map_or(ExitCode::FAILURE, ExitCode::from) })
}

/// Commands from standard input, until its end; then `end` is run beside the demonstration, which ends it.
fn prompt(control: &Path, end: &str) {
    println!("it is kept until this command ends (Ctrl-D or Ctrl-C). Lines typed here are run beside it, also by:");
    println!("    cargo xtask demo --exec 'ip netns'");
    let (control, end) = (control.to_path_buf(), end.to_string());
    // Not joined: it may wait for a line that never comes.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if !line.trim().is_empty()
                && let Err(error) = exec(&control, &line)
            {
                eprintln!("{error:#}");
            }
        }
        // Without a terminal (in CI, or in the background) an empty standard input is no wish to end.
        if std::io::stdin().is_terminal() {
            let _ = guest::exec(&control, &end, Duration::from_secs(10));
        }
    });
}

fn exec(control: &Path, command: &str) -> Result<ExitCode> {
    let (output, status) = guest::exec(control, command, COMMAND)?;
    std::io::stdout().write_all(&output)?;
    Ok(ExitCode::from(status))
}

/// The folder through which commands reach a kept demonstration, with our process number in it.
struct Kept(PathBuf);

impl Kept {
    fn open(control: &Path) -> Result<Kept> {
        let _ = fs::remove_dir_all(control);
        fs::create_dir_all(control).with_context(|| control.display().to_string())?;
        fs::write(control.join("owner"), std::process::id().to_string())?;
        Ok(Kept(control.to_path_buf()))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn owner_lives(control: &Path) -> bool {
    let owner = fs::read_to_string(control.join("owner")).unwrap_or_default();
    !owner.is_empty() && Path::new("/proc").join(owner.trim()).join("exe").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_demonstration_is_known_by_its_owner() {
        let dir = tempfile::tempdir().expect("tempdir");
        let control = dir.path().join("demo");
        assert!(!owner_lives(&control));
        let kept = Kept::open(&control).expect("open");
        assert!(owner_lives(&control));
        fs::write(control.join("owner"), "999999999").expect("write");
        assert!(!owner_lives(&control), "nobody has that number");
        drop(kept);
        assert!(!control.exists());
    }
}
