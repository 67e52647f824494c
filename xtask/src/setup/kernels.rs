//! A kernel package, fetched and unpacked into the cache; installed nowhere.

use std::fs;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::sh;
use crate::vm::Kernel;

/// Fetches, unpacks and prepares; what is there already is kept.
pub fn install(kernel: Kernel) -> Result<()> {
    if kernel.files().is_err() {
        fetch(kernel)?;
    }
    kernel.prepare()
}

fn fetch(kernel: Kernel) -> Result<()> {
    if !apt::is_debian_12() {
        bail!(
            "this is not Debian 12: unpack the package that its {} depends on into {} (dpkg -x)",
            kernel.metapackage(),
            kernel.dir()?.display()
        );
    }
    let dir = kernel.dir()?;
    let aside = dir.with_extension("new");
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir_all(aside.join("deb")).with_context(|| aside.display().to_string())?;
    sh::run("package lists", apt::apt_get().arg("update"))?;
    let depends = sh::read_text(sh::command("apt-cache").args(["depends", kernel.metapackage()]))?;
    let package = image_package(&depends)
        .with_context(|| format!("{} depends on no image; apt-cache said:\n{depends}", kernel.metapackage()))?;
    let mut download = sh::command("apt-get");
    download.args(["-q", "-o", "APT::Sandbox::User=root", "download", package]);
    sh::run(&format!("fetch {package}"), download.current_dir(aside.join("deb")))?;
    let deb = fs::read_dir(aside.join("deb"))?.flatten().next().context("apt-get download left no file")?.path();
    sh::run(&format!("unpack {package}"), sh::command("dpkg").arg("-x").arg(&deb).arg(aside.join("root")))?;
    // Moved into place as a whole, so that an interrupted unpacking is not taken for a kernel.
    let _ = fs::remove_dir_all(&dir);
    fs::rename(aside.join("root"), &dir)?;
    fs::remove_dir_all(&aside)?;
    Ok(())
}

/// The image that a metapackage depends on, from `apt-cache depends`.
fn image_package(depends: &str) -> Option<&str> {
    depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).find(|name| {
        name.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_package_is_the_one_with_a_version() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Depends: <linux-image-x>\n";
        assert_eq!(image_package(depends), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(image_package("linux-image-amd64\n  Depends: linux-base\n"), None);
    }
}
