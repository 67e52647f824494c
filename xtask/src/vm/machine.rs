//! QEMU: its command line, its life, its end.
//!
//! The reports are files behind virtio-serial ports, read while the machine lives. The machine is over when the exit
//! status has arrived, when QEMU ended, or when the time is up; then QEMU is killed, whatever it does. QEMU also dies
//! with us: `setpriv` sets a parent-death signal, so that an interrupted test run leaves no machine behind.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::guest::{self, Mount};
use super::{Output, VmOptions, VmStatus, initramfs};
use crate::{paths, sh};

const POLL: Duration = Duration::from_millis(20);
/// A guest that has reported may take so long to switch itself off.
const POWER_OFF: Duration = Duration::from_secs(3);

/// Boots, runs `argv` and returns what it said. An error means that the machine could not be started at all.
pub fn run(options: &VmOptions, argv: &[String]) -> Result<Output> {
    let begin = Instant::now();
    let work = WorkDir::new()?;
    let kernel = options.kernel.files()?;
    let shared: Vec<&PathBuf> = options.share.iter().chain(&options.control).collect();
    let mounts: Vec<Mount> = shared
        .iter()
        .enumerate()
        .map(|(i, path)| Mount { tag: format!("share{i}"), path: path.as_path(), read_only: false })
        .collect();
    for mount in &mounts {
        fs::create_dir_all(mount.path).with_context(|| mount.path.display().to_string())?;
    }
    let control = work.0.join("control");
    fs::create_dir(&control)?;
    fs::write(control.join("start"), guest::start(options, argv))?;
    fs::write(control.join("keeper"), guest::KEEPER)?;
    let init = guest::init(&kernel, "control", &mounts);
    fs::write(work.0.join("initramfs"), initramfs::build(&kernel, &init)?)?;

    let mut reports = Reports::create(&work.0)?;
    let mut qemu = command(options, &kernel.image, &work.0);
    plan9(&mut qemu, "host", Path::new("/"), true);
    plan9(&mut qemu, "control", &control, true);
    for mount in &mounts {
        plan9(&mut qemu, &mount.tag, mount.path, mount.read_only);
    }
    let log = File::create(work.0.join("qemu.log"))?;
    let mut machine = Machine(
        qemu.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start qemu (package qemu-system-x86)")?,
    );

    let status = loop {
        reports.pump(options.stream)?;
        let over = machine.0.try_wait().context("qemu")?.is_some();
        if let Some(status) = reports.status()? {
            machine.wait(POWER_OFF)?;
            break VmStatus::Exited(status);
        }
        if over {
            break VmStatus::Died;
        }
        if begin.elapsed() > options.timeout {
            break VmStatus::Deadline;
        }
        std::thread::sleep(POLL);
    };
    drop(machine);
    reports.pump(options.stream)?;
    let mut console = fs::read(work.0.join("console"))?;
    console.extend(fs::read(work.0.join("qemu.log"))?);
    Ok(Output { status, stdout: reports.out.seen, stderr: reports.err.seen, console })
}

fn command(options: &VmOptions, image: &Path, work: &Path) -> Command {
    let mut qemu = sh::command("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args(["-machine", "q35", "-cpu", "max", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // Emulation also where /dev/kvm exists: it proves nothing (nested, or a host that cannot run these kernels).
    if options.icount {
        qemu.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off"]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi", "-smp", &options.smp.to_string()]);
    }
    qemu.args(["-m", &format!("{}M", options.memory_mib)]);
    qemu.arg("-kernel").arg(image).arg("-initrd").arg(work.join("initramfs"));
    qemu.args([
        "-append",
        "console=ttyS0 panic=-1 loglevel=4 mitigations=off nokaslr tsc=reliable random.trust_cpu=on \
         cgroup_no_v1=all net.ifnames=0 8250.nr_uarts=1",
    ]);
    let file = |id: &str| format!("file,id={id},path={}", work.join(id).display());
    qemu.args(["-chardev", &file("console"), "-serial", "chardev:console"]);
    qemu.args(["-device", "virtio-serial-pci"]);
    for id in ["out", "err", "status"] {
        qemu.args(["-chardev", &file(id), "-device", &format!("virtserialport,chardev={id},name=xt.{id}")]);
    }
    qemu.args(["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]);
    qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]);
    qemu
}

/// A folder of the host, offered to the guest under a tag.
fn plan9(qemu: &mut Command, tag: &str, path: &Path, read_only: bool) {
    let read_only = if read_only { ",readonly=on" } else { "" };
    // A comma in an option's value is written twice.
    let path = path.display().to_string().replace(',', ",,");
    qemu.args(["-fsdev", &format!("local,id={tag},path={path},security_model=none,multidevs=remap{read_only}")]);
    qemu.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
}

/// QEMU, killed when dropped.
struct Machine(Child);

impl Machine {
    fn wait(&mut self, patience: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < patience && self.0.try_wait().context("qemu")?.is_none() {
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file that grows.
struct Report {
    file: File,
    seen: Vec<u8>,
}

impl Report {
    fn create(path: &Path) -> Result<Report> {
        File::create(path).with_context(|| path.display().to_string())?;
        Ok(Report { file: File::open(path)?, seen: Vec::new() })
    }

    /// Reads on; returns the new part.
    fn pump(&mut self) -> Result<&[u8]> {
        let before = self.seen.len();
        self.file.seek(SeekFrom::Start(before as u64))?;
        self.file.read_to_end(&mut self.seen)?;
        Ok(&self.seen[before..])
    }
}

struct Reports {
    out: Report,
    err: Report,
    status: Report,
}

impl Reports {
    fn create(work: &Path) -> Result<Reports> {
        File::create(work.join("console"))?;
        Ok(Reports {
            out: Report::create(&work.join("out"))?,
            err: Report::create(&work.join("err"))?,
            status: Report::create(&work.join("status"))?,
        })
    }

    fn pump(&mut self, stream: bool) -> Result<()> {
        let out = self.out.pump()?;
        if stream && !out.is_empty() {
            // A reader that went away does not end the test.
            let _ = std::io::stdout().write_all(out).and_then(|()| std::io::stdout().flush());
        }
        let err = self.err.pump()?;
        if stream && !err.is_empty() {
            let _ = std::io::stderr().write_all(err);
        }
        Ok(())
    }

    fn status(&mut self) -> Result<Option<u8>> {
        self.status.pump()?;
        let text = String::from_utf8_lossy(&self.status.seen);
        match text.strip_suffix('\n') {
            Some(number) => Ok(Some(number.parse().context("exit status")?)),
            None => Ok(None),
        }
    }
}

/// A scratch folder below the build output, named by our process; folders of processes that are gone are swept.
struct WorkDir(PathBuf);

impl WorkDir {
    fn new() -> Result<WorkDir> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let all = paths::target().join("vm");
        fs::create_dir_all(&all).with_context(|| all.display().to_string())?;
        for entry in fs::read_dir(&all)?.flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let dir = all.join(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        // A leftover of an earlier process with our number.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir)?;
        Ok(WorkDir(dir))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
