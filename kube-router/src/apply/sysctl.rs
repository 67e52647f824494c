//! Kernel settings under /proc/sys, and kernel modules.
//!
//! In: paths below /proc/sys with slashes (an interface name may hold dots, so dots never separate). Out: values
//! without the final newline. Deciding which settings matter is the compiler's business.
//!
//! Whose settings: for everything below `net/` the kernel looks the name up in the network namespace of the *thread*
//! that opens the file (`net_ctl_header_lookup` of net/sysctl_net.c asks `current`), not in that of the process and
//! not in that of the mount. A plane therefore needs no path through /proc/thread-self; it must only be used on a
//! thread that is in the right namespace, like the netlink sockets.
//!
//! Loading a module runs `modprobe`: the one command the agent ever executes, because finding a module's file,
//! dependencies and options is defined by kmod's configuration and not by the kernel.

use std::{
    fs,
    io::{self, Read},
    path::{Component, Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::{
    apply::{PlaneError, SysctlPlane},
    desired::Sysctl,
};

/// Longest wait for modprobe. A full pass may run it twice, which must stay well under the minute after which the loop
/// counts as stuck.
const MODPROBE_LIMIT: Duration = Duration::from_secs(10);
const MODPROBE_POLL: Duration = Duration::from_millis(10);

/// The [`SysctlPlane`] of the thread that uses it.
#[derive(Debug)]
pub struct ProcSysctl {
    root: PathBuf,
    modules: PathBuf,
    modprobe: PathBuf,
    limit: Duration,
    /// Was killed, and may sleep inside the kernel all the same.
    stuck: Option<Child>,
}

impl Default for ProcSysctl {
    fn default() -> Self {
        ProcSysctl::new()
    }
}

impl ProcSysctl {
    pub fn new() -> Self {
        ProcSysctl {
            root: "/proc/sys".into(),
            modules: "/sys/module".into(),
            modprobe: "modprobe".into(),
            limit: MODPROBE_LIMIT,
            stuck: None,
        }
    }

    /// `path` below the root; refuses what would lead out of it.
    fn file(&self, path: &str) -> Result<PathBuf, PlaneError> {
        let plain = Path::new(path).components().all(|component| matches!(component, Component::Normal(_)));
        if path.is_empty() || !plain {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a path below /proc/sys");
            return Err(PlaneError::Io { what: format!("setting {path:?}"), source });
        }
        Ok(self.root.join(path))
    }

    /// Runs modprobe to its end, or to the limit.
    fn modprobe(&mut self, name: &str) -> Result<(), String> {
        if let Some(stuck) = &mut self.stuck {
            match stuck.try_wait() {
                // Another one would wait for the same lock.
                Ok(None) => return Err("an earlier modprobe was killed and has not ended".to_owned()),
                _ => self.stuck = None,
            }
        }
        let running = |error| format!("running modprobe: {error}");
        let mut command = Command::new(&self.modprobe);
        command.arg("--").arg(name).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(running)?;
        let deadline = Instant::now() + self.limit;
        let status = loop {
            match child.try_wait().map_err(running)? {
                Some(status) => break status,
                None if Instant::now() < deadline => thread::sleep(MODPROBE_POLL),
                None => {
                    // It may just have ended; then there is nothing to kill.
                    let _ = child.kill();
                    self.stuck = Some(child);
                    return Err(format!("modprobe did not end within {} s", self.limit.as_secs()));
                }
            }
        };
        if status.success() {
            Ok(())
        } else {
            Err(format!("modprobe ended with {status}: {}", complaint(child).trim()))
        }
    }
}

/// What an ended child has written. Somebody it left behind may hold the pipe open: that is not waited for.
fn complaint(child: Child) -> String {
    let Some(mut stderr) = child.stderr else { return String::new() };
    let mut text = Vec::new();
    if fcntl(&stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok() {
        // Ends with an error where the pipe is still open; what was read before counts.
        let _ = stderr.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

impl SysctlPlane for ProcSysctl {
    fn read(&mut self, path: &str) -> Result<Option<String>, PlaneError> {
        match fs::read_to_string(self.file(path)?) {
            Ok(value) => Ok(Some(value.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PlaneError::Io { what: format!("reading /proc/sys/{path}"), source }),
        }
    }

    fn write(&mut self, sysctl: &Sysctl) -> Result<(), PlaneError> {
        let Sysctl { path, value } = sysctl;
        // Opened, not created: procfs would refuse that with an errno that says nothing.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(self.file(path)?)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| {
            let hint = match source.kind() {
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                    " (the agent needs a writable /proc/sys: run its container privileged, or set the value on the host)"
                }
                io::ErrorKind::NotFound => " (this kernel has no such setting: is the module loaded?)",
                _ => "",
            };
            PlaneError::Io { what: format!("setting /proc/sys/{path} to {value}{hint}"), source }
        })
    }

    /// A module is there if /sys/module shows it. Modules built into the kernel without parameters do not show;
    /// modprobe then finds out.
    fn load_module(&mut self, name: &str) -> Result<(), PlaneError> {
        let valid =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        if !valid || name.starts_with('-') {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a module name");
            return Err(PlaneError::Io { what: format!("kernel module {name:?}"), source });
        }
        if self.modules.join(name.replace('-', "_")).exists() {
            return Ok(());
        }
        let failed = |why: String| PlaneError::Io {
            what: format!(
                "loading kernel module {name} (load it on the host, or mount the host's /lib/modules and give the agent CAP_SYS_MODULE)"
            ),
            source: io::Error::other(why),
        };
        self.modprobe(name).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(root: &Path) -> ProcSysctl {
        ProcSysctl { root: root.join("sys"), modules: root.join("module"), ..ProcSysctl::new() }
    }

    /// A plane whose modprobe is this shell script.
    fn with_modprobe(root: &Path, script: &str) -> ProcSysctl {
        use std::os::unix::fs::PermissionsExt;
        let path = root.join("modprobe");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        ProcSysctl { modprobe: path, ..plane(root) }
    }

    #[test]
    fn modprobe_has_a_time_limit() {
        let root = tempfile::tempdir().expect("directory");
        let limit = Duration::from_millis(100);
        let mut plane = ProcSysctl { limit, ..with_modprobe(root.path(), "exec sleep 30") };
        let began = Instant::now();
        let error = plane.load_module("ip_vs").expect_err("does not end");
        assert!(error.to_string().contains("did not end within"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        // Killed, so that the next try finds it gone.
        let status = plane.stuck.take().expect("a child").wait().expect("ended");
        assert!(!status.success());
    }

    #[test]
    fn modprobe_s_own_words_are_passed_on() {
        let root = tempfile::tempdir().expect("directory");
        // Somebody in the background holds the pipe.
        let mut plane = with_modprobe(root.path(), "sleep 5 & echo $2: no such module >&2; exit 1");
        let began = Instant::now();
        let error = plane.load_module("ip_vs").expect_err("refused");
        assert!(error.to_string().contains("ip_vs: no such module"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }

    #[test]
    fn names_with_dots_are_one_directory() {
        let root = tempfile::tempdir().expect("directory");
        let directory = root.path().join("sys/net/ipv4/conf/eth0.100");
        fs::create_dir_all(&directory).expect("directory");
        fs::write(directory.join("rp_filter"), "1\n").expect("file");
        let mut plane = plane(root.path());
        let path = "net/ipv4/conf/eth0.100/rp_filter";
        assert_eq!(plane.read(path).expect("read"), Some("1".into()));
        plane.write(&Sysctl { path: path.into(), value: "2".into() }).expect("write");
        assert_eq!(fs::read_to_string(directory.join("rp_filter")).expect("read")[..1], *"2");
    }

    #[test]
    fn a_missing_setting_is_none_and_is_not_created() {
        let root = tempfile::tempdir().expect("directory");
        fs::create_dir_all(root.path().join("sys")).expect("directory");
        let mut plane = plane(root.path());
        assert_eq!(plane.read("net/ipv4/vs/conntrack").expect("read"), None);
        let error = plane.write(&Sysctl { path: "nothing".into(), value: "1".into() }).expect_err("no such setting");
        assert!(matches!(error, PlaneError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound));
        assert!(!root.path().join("sys/nothing").exists());
    }

    #[test]
    fn paths_stay_below_the_root() {
        let root = tempfile::tempdir().expect("directory");
        for path in ["", "/etc/passwd", "net/../../secret", "./net"] {
            let error = plane(root.path()).read(path).expect_err(path);
            assert!(matches!(error, PlaneError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput));
        }
    }

    #[test]
    fn a_loaded_module_runs_nothing() {
        let root = tempfile::tempdir().expect("directory");
        fs::create_dir_all(root.path().join("module/ip_vs_rr")).expect("directory");
        plane(root.path()).load_module("ip-vs-rr").expect("is there");
        assert!(plane(root.path()).load_module("--help").is_err());
    }
}
