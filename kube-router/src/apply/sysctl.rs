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
    fs, io,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    apply::{PlaneError, SysctlPlane},
    plan::Sysctl,
};

/// The [`SysctlPlane`] of the thread that uses it.
#[derive(Clone, Debug)]
pub struct ProcSysctl {
    root: PathBuf,
    modules: PathBuf,
}

impl Default for ProcSysctl {
    fn default() -> Self {
        ProcSysctl::new()
    }
}

impl ProcSysctl {
    pub fn new() -> Self {
        ProcSysctl { root: "/proc/sys".into(), modules: "/sys/module".into() }
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
        let output = Command::new("modprobe")
            .arg("--")
            .arg(name)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(format!("running modprobe: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(failed(format!("modprobe ended with {}: {}", output.status, text.trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(root: &Path) -> ProcSysctl {
        ProcSysctl { root: root.join("sys"), modules: root.join("module") }
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
