//! Facts about the running kernel, read once at start and when a plane reports that something is missing.
//!
//! The question that matters to a person is not "did it fail" but "can this kernel do it at all, or is only a module
//! not loaded": [`module`] tells loaded, loadable and absent apart. Nothing here loads modules or changes anything.

use std::{fmt, fs, io, path::Path};

/// Who the kernel is and what it has, as far as any plane cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `uname -r`
    pub release: String,
    /// `uname -m`
    pub machine: String,
    /// (major, minor) of the release; (0, 0) if it does not start with numbers.
    pub version: (u32, u32),
    /// The IPv6 stack exists (it may still be switched off per interface).
    pub ipv6: bool,
    /// Type information for BPF programs (CONFIG_DEBUG_INFO_BTF).
    pub btf: bool,
    pub ip_vs: Module,
    pub dummy: Module,
    pub nf_tables: Module,
    pub ip_set: Module,
}

/// Where a piece of the kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// Built in, or loaded.
    Present,
    /// Not loaded; the module file is installed below /lib/modules.
    Loadable,
    /// Neither. (Also when /lib/modules is not visible, as in a container without that mount.)
    Absent,
}

impl Kernel {
    /// Reads everything. Errors only if uname(2) fails; what cannot be read counts as absent.
    pub fn read() -> io::Result<Kernel> {
        let uname = nix::sys::utsname::uname()?;
        let release = uname.release().to_string_lossy().into_owned();
        let root = Path::new("/");
        let state = |name| module(root, &release, name);
        Ok(Kernel {
            version: parse_version(&release),
            machine: uname.machine().to_string_lossy().into_owned(),
            ipv6: root.join("proc/net/if_inet6").exists(),
            btf: root.join("sys/kernel/btf/vmlinux").exists(),
            ip_vs: state("ip_vs"),
            dummy: state("dummy"),
            nf_tables: state("nf_tables"),
            ip_set: state("ip_set"),
            release,
        })
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Module::Present => "present",
            Module::Loadable => "loadable",
            Module::Absent => "absent",
        })
    }
}

/// State of module `name` (with underscores) for kernel `release`, with the file system seen from `root`.
///
/// A loaded module and a built-in one with parameters show up in /sys/module; other built-in ones only in
/// modules.builtin (Documentation/kbuild/kbuild.rst).
pub fn module(root: &Path, release: &str, name: &str) -> Module {
    if root.join("sys/module").join(name).exists() {
        return Module::Present;
    }
    let installed = root.join("lib/modules").join(release);
    let listed = |file: &str| {
        fs::read_to_string(installed.join(file))
            .is_ok_and(|text| text.lines().any(|line| module_name(line).as_deref() == Some(name)))
    };
    if listed("modules.builtin") {
        Module::Present
    } else if listed("modules.dep") {
        Module::Loadable
    } else {
        Module::Absent
    }
}

/// `kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/...` -> `ip_vs`. File names may use dashes for underscores.
fn module_name(line: &str) -> Option<String> {
    let path = line.split(':').next()?.trim();
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// The two leading numbers of a release: `6.1.0-40-amd64` -> (6, 1).
fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions() {
        assert_eq!(parse_version("6.1.0-40-amd64"), (6, 1));
        assert_eq!(parse_version("6.12-rc1"), (6, 12));
        assert_eq!(parse_version("5.14.0"), (5, 14));
        assert_eq!(parse_version("custom"), (0, 0));
    }

    #[test]
    fn a_module_is_present_loadable_or_absent() {
        let root = tempfile::tempdir().unwrap();
        let installed = root.path().join("lib/modules/6.1.0");
        fs::create_dir_all(&installed).unwrap();
        fs::create_dir_all(root.path().join("sys/module/nf_tables")).unwrap();
        fs::write(installed.join("modules.builtin"), "kernel/drivers/net/dummy.ko\n").unwrap();
        fs::write(
            installed.join("modules.dep"),
            "kernel/net/netfilter/ipvs/ip_vs_rr.ko.xz: kernel/net/netfilter/ipvs/ip_vs.ko.xz\nkernel/x/ip-set.ko:\n",
        )
        .unwrap();
        let state = |name| module(root.path(), "6.1.0", name);
        assert_eq!(state("nf_tables"), Module::Present);
        assert_eq!(state("dummy"), Module::Present);
        assert_eq!(state("ip_vs_rr"), Module::Loadable);
        assert_eq!(state("ip_set"), Module::Loadable);
        // Named as a dependency only; its own line is missing.
        assert_eq!(state("ip_vs"), Module::Absent);
    }

    #[test]
    fn the_running_kernel_agrees_with_uname() {
        let kernel = Kernel::read().unwrap();
        let uname = std::process::Command::new("uname").arg("-r").output().unwrap();
        assert_eq!(kernel.release, String::from_utf8(uname.stdout).unwrap().trim());
        assert_ne!(kernel.version, (0, 0));
    }
}
