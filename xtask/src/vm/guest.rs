//! What runs inside the guest before the command: `init` in the initramfs, then `start` on the real root.
//!
//! Both are shell scripts: at that point the guest has busybox, then bash, and nothing of ours. `start` reports over
//! named virtio-serial ports (`xt.out`, `xt.err`, `xt.status`), which on the host are plain files.
//!
//! [`exec`] is the way into a machine that is being kept: the host leaves `N.cmd` in a shared folder, a loop in the
//! guest runs it and leaves `N.out` and, last, `N.status`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::VmOptions;
use super::kernel::KernelFiles;
use crate::sh::quote;

/// Where the guest finds `start` and `keeper`, read-only.
const CONTROL: &str = "/run/xt-control";

/// The 9p mount options: large messages, since each one costs an exit to the emulator.
const P9: &str = "trans=virtio,version=9p2000.L,msize=512000";

/// A folder of the host in the guest.
pub struct Mount<'a> {
    pub tag: String,
    pub path: &'a Path,
    pub read_only: bool,
}

/// The script of the initramfs. `control` is the tag of the share that holds `start`.
pub fn init(kernel: &KernelFiles, control: &str, mounts: &[Mount]) -> String {
    let modules = kernel.modules();
    let modules = quote(&modules.to_string_lossy());
    let config = kernel.config();
    let config = quote(&config.to_string_lossy());
    let release = quote(&kernel.release);
    let mut shares = format!("share {control} {CONTROL} ro\n");
    for mount in mounts {
        let mode = if mount.read_only { "ro" } else { "rw" };
        shares += &format!("share {} {} {mode}\n", mount.tag, quote(&mount.path.to_string_lossy()));
    }
    format!(
        r#"#!/bin/busybox sh
b=/bin/busybox
give_up() {{ $b echo "xt-init: $*" >/dev/console; $b poweroff -f; }}
virtual() {{ $b mkdir -p "$2"; $b mount -t "$1" ${{3:+-o "$3"}} "$1" "$2"; }}
share() {{ $b mkdir -p "/new$2"; $b mount -t 9p -o {P9},cache=none,"$3" "$1" "/new$2" || give_up "cannot mount $2"; }}
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs devtmpfs /dev
while read -r module; do $b insmod "/m/$module" || $b echo "xt-init: $module did not load" >/dev/console; done </m/order
$b mount -t 9p -o {P9},cache=loose,ro host /ro || give_up "cannot mount the host's root"
virtual tmpfs /rw mode=755,size=75%
$b mkdir -p /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new || give_up "no overlay"
virtual proc /new/proc; virtual sysfs /new/sys; virtual devtmpfs /new/dev
virtual devpts /new/dev/pts; virtual tmpfs /new/dev/shm; virtual tmpfs /new/run mode=755
virtual cgroup2 /new/sys/fs/cgroup; virtual bpf /new/sys/fs/bpf
virtual debugfs /new/sys/kernel/debug; virtual tracefs /new/sys/kernel/tracing
$b mkdir -p /new/run/netns /new/run/lock /new/tmp
for pair in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
  $b ln -sfn "${{pair#*:}}" "/new/dev/${{pair%%:*}}"
done
{shares}
$b mkdir -p /new/lib/modules/{release}
$b mount -o bind /new{modules} /new/lib/modules/{release} || give_up "no modules"
$b mkdir -p /new/boot
$b cp /new{config} /new/boot/ || give_up "no configuration of the kernel"
exec $b switch_root /new /bin/bash {CONTROL}/start
"#
    )
}

/// The script that runs the command and reports.
pub fn start(options: &VmOptions, argv: &[String]) -> String {
    let mut environment = String::new();
    for (name, value) in &options.env {
        environment += &format!("export {name}={}\n", quote(value));
    }
    let modules = match options.modules.as_slice() {
        [] => String::new(),
        names => format!("modprobe -a {} || exit\n", names.join(" ")),
    };
    let keeper = match &options.control {
        Some(dir) => format!("bash {CONTROL}/keeper {} &\n", quote(&dir.to_string_lossy())),
        None => String::new(),
    };
    let dir = quote(&options.working_dir.to_string_lossy());
    let command = argv.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
    format!(
        r#"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
export KUBE_ROUTER_VM={kernel}
declare -A port
for entry in /sys/class/virtio-ports/*; do port[$(<$entry/name)]=/dev/${{entry##*/}}; done
hostname vm; ip link set lo up
# The user-mode network reaches the host's loopback and nothing else: no default route, no resolver.
nic=$(ls /sys/class/net | grep -m1 '^e')
ip address add 10.0.2.15/24 dev "$nic" && ip link set "$nic" up
: >/etc/resolv.conf
{environment}(
  exec </dev/null >"${{port[xt.out]}}" 2>"${{port[xt.err]}}"
  {modules}  {keeper}  cd {dir} || exit
  {command}
)
echo $? >"${{port[xt.status]}}"
sync
echo o >/proc/sysrq-trigger
sleep 10
"#,
        kernel = options.kernel
    )
}

/// The loop that serves [`exec`]. Its own children go to the background, so a command may take its time.
pub const KEEPER: &str = r#"cd "$1" || exit
while sleep 0.2; do
  for request in *.cmd; do
    [ -e "$request" ] || continue
    number=${request%.cmd}
    mv "$request" "$number.run"
    ( bash "$number.run" </dev/null >"$number.out" 2>&1; echo $? >"$number.new"; mv "$number.new" "$number.status" ) &
  done
done
"#;

/// Runs a shell command in the machine kept behind `control`; returns its output (both streams) and exit status.
pub fn exec(control: &Path, shell_command: &str, timeout: Duration) -> Result<(Vec<u8>, u8)> {
    let begin = Instant::now();
    // The clock makes the name unique also between several terminals.
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let number = format!("{}-{}", since.as_nanos(), std::process::id());
    let file = |extension: &str| control.join(format!("{number}.{extension}"));
    fs::write(file("new"), shell_command).with_context(|| format!("no kept machine at {}", control.display()))?;
    fs::rename(file("new"), file("cmd"))?;
    while !file("status").exists() {
        if begin.elapsed() > timeout {
            bail!("no answer from the kept machine within {} s", timeout.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = fs::read_to_string(file("status"))?.trim().parse().context("exit status")?;
    let output = fs::read(file("out"))?;
    for extension in ["status", "out", "run"] {
        let _ = fs::remove_file(file(extension));
    }
    Ok((output, status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Kernel;

    #[test]
    fn scripts_are_valid_shell_and_carry_the_command_unchanged() {
        let mut options = VmOptions::new(Kernel::V6_1);
        options.env.push(("WORDS".into(), "it's two".into()));
        options.modules.push("ip_vs".into());
        options.control = Some("/tmp/kept".into());
        let start = start(&options, &["echo".into(), "a b".into(), "$HOME".into()]);
        assert!(start.contains("\n  echo 'a b' '$HOME'\n"), "{start}");
        assert!(start.contains(r"export WORDS='it'\''s two'"), "{start}");
        let kernel = KernelFiles {
            release: "6.1.0-1-amd64".into(),
            base: "/k".into(),
            image: "/k/vmlinux".into(),
            packed: "/k/boot".into(),
        };
        let init = init(&kernel, "ctl", &[Mount { tag: "s0".into(), path: Path::new("/out put"), read_only: false }]);
        assert!(init.contains("share s0 '/out put' rw"), "{init}");
        for script in [start.as_str(), init.as_str(), KEEPER] {
            crate::sh::run("bash -n", crate::sh::command("bash").args(["-n", "-c", script])).expect("valid shell");
        }
    }

    #[test]
    fn keeper_answers_exec() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut keeper =
            crate::sh::command("bash").args(["-c", KEEPER, "keeper"]).arg(dir.path()).spawn().expect("spawn");
        let (output, status) =
            exec(dir.path(), "echo said; echo shouted >&2; exit 3", Duration::from_secs(20)).expect("exec");
        keeper.kill().expect("kill");
        keeper.wait().expect("wait");
        assert_eq!((String::from_utf8_lossy(&output).as_ref(), status), ("said\nshouted\n", 3));
        assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 0, "nothing is left in the folder");
    }
}
