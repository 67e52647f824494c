//! What programming IPVS costs: prints nanoseconds for one table, made by our plane or by `ipvsadm --restore`.
//!
//!     ipvs_program SERVERS DESTINATIONS        both ways, three times each, in fresh network namespaces
//!
//! Needs root and the module ip_vs. Under QEMU's `-icount shift=0,sleep=off` a nanosecond is an instruction of the
//! guest, user and kernel side together, and the figures repeat within about 1 %.

use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use kube_router::{
    apply::{IpvsPlane, ipvs::Ipvs},
    desired::{Virtual, VirtualKey},
    objects::Protocol,
    plan::IpvsOp,
};

const RUNS: usize = 3;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number =
        |name: &str| -> Result<u16> { arguments.next().context(name.to_owned())?.parse().context(name.to_owned()) };
    let (servers, destinations) = (number("SERVERS")?, number("DESTINATIONS")?);
    let ops = table(servers, destinations);
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(as_text(&ops).as_bytes())?;

    // The first round loads modules and fills the kernel's allocators; it is not printed.
    for round in 0..=RUNS {
        let ours = on_a_thread(|| ours(&ops))?;
        let theirs = on_a_thread(|| theirs(file.path(), &ops))?;
        if round == 0 {
            continue;
        }
        println!(
            "{servers} x {destinations}: apply {} ns, observe {} ns, ipvsadm --restore {theirs} ns, ratio {:.3}",
            ours.0,
            ours.1,
            ours.0 as f64 / theirs as f64
        );
    }
    Ok(())
}

/// A thread of its own, since it is going to leave the network namespace of the others.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn table(servers: u16, destinations: u16) -> Vec<IpvsOp> {
    let mut ops = Vec::new();
    for n in 0..servers {
        let [high, low] = n.to_be_bytes();
        let key = VirtualKey { address: [10, 96 + (high >> 6), high, low].into(), protocol: Protocol::Tcp, port: 80 };
        ops.push(IpvsOp::AddServer { key, server: Virtual::default() });
        for pod in 0..destinations {
            let [_, low_pod] = pod.to_be_bytes();
            let destination = SocketAddr::new([10, high, low, low_pod].into(), 8080 + (pod >> 8));
            ops.push(IpvsOp::AddDestination { key, destination, weight: 1 });
        }
    }
    ops
}

/// The same table as `ipvsadm --restore` reads it.
fn as_text(ops: &[IpvsOp]) -> String {
    let mut text = String::new();
    for op in ops {
        match op {
            IpvsOp::AddServer { key, .. } => text.push_str(&format!("-A -t {}:{} -s rr\n", key.address, key.port)),
            IpvsOp::AddDestination { key, destination, weight } => {
                text.push_str(&format!("-a -t {}:{} -r {destination} -m -w {weight}\n", key.address, key.port));
            }
            other => unreachable!("the table has additions only, not {other:?}"),
        }
    }
    text
}

/// Moves this thread into a new network namespace. `lo` comes up, as the kernel refuses every IPv4 destination
/// (EINVAL) while there is no local routing table.
fn fresh_namespace() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("unshare")?;
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip link set lo up");
    Ok(())
}

/// Time for apply and for one observe of the result.
fn ours(ops: &[IpvsOp]) -> Result<(u128, u128)> {
    fresh_namespace()?;
    let mut ipvs = Ipvs::open()?;
    let start = Instant::now();
    let failures = ipvs.apply(ops)?;
    let applied = start.elapsed();
    ensure!(failures.is_empty(), "refused: {:?}", failures.first());
    let start = Instant::now();
    let observed = ipvs.observe()?;
    let seen = start.elapsed();
    let objects: usize = observed.servers.values().map(|server| 1 + server.destinations.len()).sum();
    ensure!(objects == ops.len(), "{objects} of {} are there", ops.len());
    Ok((applied.as_nanos(), seen.as_nanos()))
}

fn theirs(file: &std::path::Path, ops: &[IpvsOp]) -> Result<u128> {
    fresh_namespace()?;
    let start = Instant::now();
    let status = Command::new("ipvsadm").arg("--restore").stdin(File::open(file)?).status()?;
    let elapsed = start.elapsed();
    ensure!(status.success(), "ipvsadm --restore failed");
    let saved = Command::new("ipvsadm").arg("-Sn").stderr(Stdio::inherit()).output()?;
    let lines = saved.stdout.iter().filter(|byte| **byte == b'\n').count();
    ensure!(lines == ops.len(), "{lines} of {} are there", ops.len());
    Ok(elapsed.as_nanos())
}
