//! The two kernels: the oldest that we support (Debian 12's own) and a newer one (Debian 12's backport).
//!
//! A kernel is an unpacked package, never installed. Before its first boot two files are made once: the module index
//! (`depmod`), and the uncompressed kernel image, which QEMU enters directly (PVH) and so saves the slow
//! decompression under emulation.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::{paths, sh};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    pub const ALL: [Kernel; 2] = [Kernel::V6_1, Kernel::V6_12];
    pub const OLDEST: Kernel = Kernel::ALL[0];

    pub fn name(self) -> &'static str {
        match self {
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
        }
    }

    /// The Debian package that always depends on the newest image of this line; images themselves carry an ABI number
    /// that vanishes from the archive.
    pub fn metapackage(self) -> &'static str {
        match self {
            Kernel::V6_1 => "linux-image-amd64",
            Kernel::V6_12 => "linux-image-6.12-amd64",
        }
    }

    /// The folder in the cache that holds the unpacked package.
    pub fn dir(self) -> Result<PathBuf> {
        Ok(paths::cache()?.join(format!("k{}", self.name())))
    }

    /// Where everything is, once [`Kernel::prepare`] has been run.
    pub fn files(self) -> Result<KernelFiles> {
        let dir = self.dir()?;
        let missing = || format!("no kernel {} in {}: run `cargo xtask setup`", self.name(), dir.display());
        let release = releases(&dir).pop().with_context(missing)?;
        let base = [dir.clone(), dir.join("usr")]
            .into_iter()
            .find(|base| base.join("lib/modules").join(&release).is_dir())
            .with_context(|| format!("{}: the package holds no modules", dir.display()))?;
        let image = dir.join(format!("vmlinux-{release}"));
        Ok(KernelFiles { release, base, image, packed: dir.join("boot") })
    }

    /// True if unpacked and prepared.
    pub fn is_ready(self) -> bool {
        self.files().is_ok_and(|files| files.image.exists() && files.modules().join("modules.dep.bin").exists())
    }

    /// Makes the module index and the uncompressed image, where they are missing.
    pub fn prepare(self) -> Result<()> {
        let files = self.files()?;
        if !files.modules().join("modules.dep.bin").exists() {
            sh::run("depmod", sh::command("depmod").arg("-b").arg(&files.base).arg(&files.release))?;
        }
        if !files.image.exists() {
            let packed = files.packed.join(format!("vmlinuz-{}", files.release));
            let elf = decompress(&fs::read(&packed).with_context(|| packed.display().to_string())?)
                .with_context(|| format!("{}: no compressed kernel found inside", packed.display()))?;
            // Written aside first: a kernel cut short by an interrupt must not look complete.
            let aside = files.image.with_extension("new");
            fs::write(&aside, elf).and_then(|()| fs::rename(&aside, &files.image)).context("write vmlinux")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel's files on disk.
pub struct KernelFiles {
    /// As in `uname -r`.
    pub release: String,
    /// The folder that contains `lib/modules`.
    pub base: PathBuf,
    /// The uncompressed image.
    pub image: PathBuf,
    pub(super) packed: PathBuf,
}

impl KernelFiles {
    pub fn modules(&self) -> PathBuf {
        self.base.join("lib/modules").join(&self.release)
    }

    /// What it was built with.
    pub fn config(&self) -> PathBuf {
        self.base.join(format!("boot/config-{}", self.release))
    }
}

/// Releases unpacked below `dir`, oldest first by name.
fn releases(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("boot")).into_iter().flatten().flatten();
    let mut found: Vec<String> =
        entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_string())).collect();
    found.sort();
    found
}

/// A bzImage is a small loader in front of the compressed ELF image: find the compression's magic number, unpack, and
/// take the first result that is an ELF file.
fn decompress(image: &[u8]) -> Result<Vec<u8>> {
    const FORMATS: [(&[u8], &[&str]); 3] = [
        (b"\xfd7zXZ\0", &["xz", "-dc"]),
        (b"\x28\xb5\x2f\xfd", &["zstd", "-dcq"]),
        (b"\x1f\x8b\x08", &["gzip", "-dcq"]),
    ];
    for (magic, argv) in FORMATS {
        for at in (0..image.len().saturating_sub(magic.len())).filter(|&at| image[at..].starts_with(magic)) {
            // What follows the compressed stream makes the program complain: only its output counts.
            let elf = filter(argv, &image[at..])?;
            if elf.starts_with(b"\x7fELF") {
                return Ok(elf);
            }
        }
    }
    anyhow::bail!("neither xz, zstd nor gzip")
}

/// Output of a filter program for that input, whatever its exit status.
fn filter(argv: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = sh::command(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", argv[0]))?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        // The program may stop reading before the end; that is not an error here.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input)));
        Ok(child.wait_with_output().context("wait")?.stdout)
    })
}

/// A module's bytes, uncompressed.
pub fn read_module(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    let module = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => filter(&["xz", "-dc"], &bytes)?,
        Some("zst") => filter(&["zstd", "-dcq"], &bytes)?,
        _ => bytes,
    };
    ensure!(module.starts_with(b"\x7fELF"), "{}: not a kernel module", file.display());
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decompress_finds_an_image_behind_a_loader() {
        let elf = [b"\x7fELF".as_slice(), &[7; 4096]].concat();
        let packed = filter(&["gzip", "-c"], &elf).expect("gzip");
        let image = [b"loader \x1f\x8b\x08 not it".as_slice(), &packed, b"trailing bytes"].concat();
        assert_eq!(decompress(&image).expect("found"), elf);
        assert!(decompress(b"nothing compressed in here").is_err());
    }
}
