//! A throw-away machine: one command on a stock Debian kernel, on top of this machine's own root filesystem.
//!
//! Why: the kernel under a developer's container or CI usually lacks IPVS, dummy links, IPIP and SCTP, and cannot be
//! another version. QEMU's emulator needs no privileges and no nested virtualisation, and boots in about five seconds.
//!
//! The guest sees the host's `/` read-only under a memory overlay, so host-built binaries run as they are, and nothing
//! the guest writes survives except below a share. Standard output, standard error and the exit status come back. The
//! guest has no default route and no resolver: what a test sends goes nowhere. Servers on the host's loopback are at
//! 10.0.2.2.
//!
//! [`kernel`] finds and prepares a kernel, [`initramfs`] packs what reaches the root filesystem, [`guest`] is the
//! guest's two start scripts, [`machine`] is QEMU and its end.

pub mod guest;
pub mod initramfs;
pub mod kernel;
pub mod machine;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

pub use kernel::Kernel;
pub use machine::run;

/// What the machine is and how long it may live.
#[derive(Clone, Debug)]
pub struct VmOptions {
    pub kernel: Kernel,
    /// One vCPU whose clock advances 1 ns per instruction: durations become instruction counts that do not depend on
    /// the host's load. `smp` is ignored.
    pub icount: bool,
    pub memory_mib: u32,
    pub smp: u32,
    /// Host folders that the guest may write to, under the same path.
    pub share: Vec<PathBuf>,
    /// Real time for boot and command together.
    pub timeout: Duration,
    pub env: Vec<(String, String)>,
    /// Modules loaded before the command.
    pub modules: Vec<String>,
    pub working_dir: PathBuf,
    /// Pass output on as it comes, and also return it.
    pub stream: bool,
    /// A folder through which [`guest::exec`] runs further commands while the first one lives.
    pub control: Option<PathBuf>,
}

impl VmOptions {
    /// Two vCPUs, 1.5 GiB, five minutes.
    pub fn new(kernel: Kernel) -> VmOptions {
        VmOptions {
            kernel,
            icount: false,
            memory_mib: 1536,
            smp: 2,
            share: Vec::new(),
            timeout: Duration::from_secs(300),
            env: Vec::new(),
            modules: Vec::new(),
            working_dir: crate::paths::workspace().to_path_buf(),
            stream: false,
            control: None,
        }
    }
}

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmStatus {
    /// The command's exit status.
    Exited(u8),
    /// The time was up.
    Deadline,
    /// The guest ended (a panic, say) before the command did.
    Died,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Output {
    pub status: VmStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The kernel's console; worth showing unless the command exited.
    pub console: Vec<u8>,
}

impl Output {
    /// A sentence, with the console's end where the command did not come to its own.
    pub fn verdict(&self) -> String {
        let what = match self.status {
            VmStatus::Exited(status) => return format!("exit status {status}"),
            VmStatus::Deadline => "the time was up",
            VmStatus::Died => "the guest ended before its command did",
        };
        format!("{what}; the end of its console:\n{}", crate::sh::tail(&self.console, 25))
    }
}

#[derive(clap::Args)]
pub struct Args {
    /// Which kernel
    #[arg(long, value_enum, default_value_t = Kernel::V6_1)]
    kernel: Kernel,
    /// Clock by instruction count, one vCPU
    #[arg(long)]
    icount: bool,
    /// Memory in MiB
    #[arg(long, default_value_t = 1536)]
    mem: u32,
    /// Number of vCPUs
    #[arg(long, default_value_t = 2)]
    smp: u32,
    /// Host folder that the guest may write to (same path in the guest); repeatable
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// Seconds for boot and command together
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// NAME=VALUE for the command; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Modules to load first, separated by commas
    #[arg(long, value_delimiter = ',')]
    modules: Vec<String>,
    /// Also run further commands given to `demo --exec` through this folder
    #[arg(long, hide = true)]
    control: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    argv: Vec<String>,
}

/// `cargo xtask vm`: exits with the command's status; 124 when the time was up, 125 when the guest died.
pub fn command(args: &Args) -> Result<ExitCode> {
    crate::setup::virtual_machines(&[args.kernel])?;
    let env = args.env.iter().map(|pair| {
        let (name, value) = pair.split_once('=').with_context(|| format!("--env {pair}: expected NAME=VALUE"))?;
        Ok((name.to_string(), value.to_string()))
    });
    let options = VmOptions {
        icount: args.icount,
        memory_mib: args.mem,
        smp: args.smp,
        share: args.share.iter().map(std::path::absolute).collect::<std::io::Result<_>>()?,
        timeout: Duration::from_secs(args.timeout),
        env: env.collect::<Result<_>>()?,
        modules: args.modules.clone(),
        working_dir: std::env::current_dir()?,
        stream: true,
        control: args.control.clone(),
        ..VmOptions::new(args.kernel)
    };
    let output = run(&options, &args.argv)?;
    Ok(match output.status {
        VmStatus::Exited(status) => ExitCode::from(status),
        VmStatus::Deadline | VmStatus::Died => {
            eprintln!("vm: {}", output.verdict());
            ExitCode::from(if output.status == VmStatus::Deadline { 124 } else { 125 })
        }
    })
}
