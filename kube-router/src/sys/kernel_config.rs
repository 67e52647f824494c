//! What the running kernel was built with, for the few sizes that nothing else tells: those of IPVS's schedulers.
//!
//! In: the build's configuration, where distributions put it. Out: [`Tables`], or nothing. Whoever gets nothing must not
//! guess: a wrong size sends clients to other destinations than the kernel does.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use flate2::read::GzDecoder;
use kube_router_common::schedule::Tables;

/// A distribution's configuration has some 300 KB, and a line for each of the kernel's 20,000 options would have 1 MB.
const MOST_BYTES: u64 = 4 << 20;

/// Sizes of the schedulers' tables in kernel `release`, with the file system seen from `root`.
///
/// The kernel's own word is asked first (CONFIG_IKCONFIG_PROC), then files that are named for the release: Debian's
/// place, and Fedora's. In a container the latter two are the host's only if they are mounted. `None`: no file can be
/// read, or the first that can does not say all that is needed.
pub fn ipvs_tables(root: &Path, release: &str) -> Option<Tables> {
    let text = unpacked(&root.join("proc/config.gz"))
        .or_else(|_| plain(&root.join("boot").join(format!("config-{release}"))))
        .or_else(|_| plain(&root.join("lib/modules").join(release).join("config")))
        .ok()?;
    parse(&text)
}

fn unpacked(path: &Path) -> io::Result<String> {
    read_text(GzDecoder::new(File::open(path)?))
}

fn plain(path: &Path) -> io::Result<String> {
    read_text(File::open(path)?)
}

fn read_text(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// From the lines of a `.config`. Kernels of 32 bits have another hsiphash, and those before 4.18 no mh and other hashes
/// for the rest; neither has a ring.
fn parse(text: &str) -> Option<Tables> {
    let value = |name: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix("CONFIG_")?.strip_prefix(name)?.strip_prefix('='))
    };
    let number = |name: &str| value(name).map(|number| number.parse::<u32>().ok());
    if value("64BIT") != Some("y") {
        return None;
    }
    let tables = Tables {
        sh_bits: number("IP_VS_SH_TAB_BITS")??,
        dh_bits: number("IP_VS_DH_TAB_BITS").unwrap_or(Some(Tables::default().dh_bits))?,
        mh_index: number("IP_VS_MH_TAB_INDEX")??,
    };
    // What net/netfilter/ipvs/Kconfig takes for sh.
    let bits = 4..=20;
    (bits.contains(&tables.sh_bits) && bits.contains(&tables.dh_bits) && tables.mh_slots().is_some()).then_some(tables)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    /// Lines of Debian 12's, around those that count.
    const DEBIAN: &str = "\
#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.1.0 Kernel Configuration
#
CONFIG_64BIT=y
CONFIG_IP_VS=m
CONFIG_IP_VS_IPV6=y
# CONFIG_IP_VS_DEBUG is not set
CONFIG_IP_VS_TAB_BITS=12
CONFIG_IP_VS_MH=m
# CONFIG_IP_VS_TWOS is not set

#
# IPVS SH scheduler
#
CONFIG_IP_VS_SH_TAB_BITS=8

#
# IPVS MH scheduler
#
CONFIG_IP_VS_MH_TAB_INDEX=12
CONFIG_IP_VS_FTP=m
";

    #[test]
    fn the_lines_that_count() {
        assert_eq!(parse(DEBIAN), Some(Tables { sh_bits: 8, dh_bits: 8, mh_index: 12 }));
        let other = DEBIAN.replace("SH_TAB_BITS=8", "SH_TAB_BITS=10").replace("INDEX=12", "INDEX=17");
        assert_eq!(parse(&other), Some(Tables { sh_bits: 10, dh_bits: 8, mh_index: 17 }));
        let patched = format!("{DEBIAN}CONFIG_IP_VS_DH_TAB_BITS=9\n");
        assert_eq!(parse(&patched).map(|tables| tables.dh_bits), Some(9));
    }

    #[test]
    fn what_is_not_said_is_not_known() {
        for (line, instead) in [
            ("CONFIG_64BIT=y", "# CONFIG_64BIT is not set"),
            ("CONFIG_IP_VS_SH_TAB_BITS=8", ""),
            ("CONFIG_IP_VS_SH_TAB_BITS=8", "# CONFIG_IP_VS_SH_TAB_BITS=8"),
            ("CONFIG_IP_VS_SH_TAB_BITS=8", "CONFIG_IP_VS_SH_TAB_BITS=31"),
            ("CONFIG_IP_VS_SH_TAB_BITS=8", "CONFIG_IP_VS_DH_TAB_BITS=x"),
            ("CONFIG_IP_VS_MH_TAB_INDEX=12", ""),
            ("CONFIG_IP_VS_MH_TAB_INDEX=12", "CONFIG_IP_VS_MH_TAB_INDEX=18"),
            ("CONFIG_IP_VS_MH_TAB_INDEX=12", "CONFIG_IP_VS_MH_TAB_INDEX=twelve"),
        ] {
            let text = DEBIAN.replace(line, instead);
            assert_ne!(text, DEBIAN);
            assert_eq!(parse(&text), None, "{instead:?} instead of {line}");
        }
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_kernels_own_word_comes_first() {
        let root = tempfile::tempdir().unwrap();
        let read = || ipvs_tables(root.path(), "6.1.0").map(|tables| tables.mh_index);
        let with = |index: u32| DEBIAN.replace("INDEX=12", &format!("INDEX={index}"));
        assert_eq!(read(), None);
        for folder in ["proc", "boot", "lib/modules/6.1.0"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("lib/modules/6.1.0/config"), with(10)).unwrap();
        fs::write(root.path().join("boot/config-6.1.1"), with(9)).unwrap();
        assert_eq!(read(), Some(10));
        fs::write(root.path().join("boot/config-6.1.0"), with(11)).unwrap();
        assert_eq!(read(), Some(11));
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(with(13).as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        fs::write(root.path().join("proc/config.gz"), &packed).unwrap();
        assert_eq!(read(), Some(13));
        fs::write(root.path().join("proc/config.gz"), &packed[..packed.len() / 2]).unwrap();
        assert_eq!(read(), Some(11), "one that cannot be read is none");
    }
}
