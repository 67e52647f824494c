//! The first filesystem of the guest: busybox, the modules that lead to the real root, and the script that goes there.
//!
//! A cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kernel::{KernelFiles, read_module};
use crate::sh;

/// Bus, console, network and entropy of the machine; 9p and overlay for the root filesystem.
const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_console", "virtio_net", "virtio_rng", "9p", "9pnet_virtio", "overlay"];

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

/// The archive, with `init` as its first program.
pub fn build(kernel: &KernelFiles, init: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "m", "proc", "sys", "dev", "ro", "rw", "new"] {
        archive.add(dir, DIR, b"");
    }
    let busybox = fs::read("/bin/busybox").context("/bin/busybox (package busybox-static)")?;
    archive.add("bin/busybox", PROGRAM, &busybox);
    let mut order = String::new();
    for file in load_order(kernel)? {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.trim_end_matches(".xz").trim_end_matches(".zst");
        archive.add(&format!("m/{name}"), FILE, &read_module(&file)?);
        order += name;
        order.push('\n');
    }
    archive.add("m/order", FILE, order.as_bytes());
    archive.add("init", PROGRAM, init.as_bytes());
    Ok(archive.finish())
}

/// Module files, each after those it needs; what the kernel has built in is left out.
fn load_order(kernel: &KernelFiles) -> Result<Vec<PathBuf>> {
    let mut modprobe = sh::command("modprobe");
    modprobe.arg("-d").arg(&kernel.base).args(["-S", &kernel.release, "-C", "/dev/null", "-D", "-a"]).args(MODULES);
    let text = sh::read_text(&mut modprobe)?;
    let mut order: Vec<PathBuf> = Vec::new();
    for file in text.lines().filter_map(|line| line.trim().strip_prefix("insmod ")) {
        let file = Path::new(file.trim()).to_path_buf();
        if !order.contains(&file) {
            order.push(file);
        }
    }
    Ok(order)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        // magic; inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), length of the name, checksum
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let name_len = name.len() as u32 + 1;
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry by hand, after the format's description; that a kernel unpacks it is what every boot shows.
    #[test]
    fn entry_is_newc() {
        let mut archive = Archive::default();
        archive.add("d/three", FILE, b"abc");
        let inode_mode = "00000001000081A4";
        let ids_links_mtime = "00000000000000000000000100000000";
        let size_devices = "0000000300000000000000000000000000000000";
        let name_check = "0000000800000000";
        // The header is 110 bytes: with the name's 8 that makes 118, padded to 120; the data is padded to 4.
        let want = format!("070701{inode_mode}{ids_links_mtime}{size_devices}{name_check}d/three\0\0\0abc\0");
        assert_eq!(String::from_utf8_lossy(&archive.bytes), want);
        assert!(archive.finish().ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
