//! What the agent costs: prints one JSON object a line, for `cargo xtask bench` to make a table of.
//!
//!     cost table SERVICES...            time and orders of the agent's planes, and of `ipvsadm --restore`
//!     cost agent PROGRAM SERVICES PODS  memory, restart and rest of a whole agent, fed by an API server of our own
//!
//! Both need root and a kernel with IPVS. `table` makes network namespaces of its own; `agent` programs the namespace
//! it is started in, so it belongs into a throw-away machine. Under QEMU's `-icount shift=0,sleep=off` a nanosecond is
//! an instruction of the guest, user and kernel side together.

mod agent;
mod api_server;
mod cluster;
mod planes;
mod table;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("table") => {
            let sizes: Vec<u32> = arguments.map(|text| text.parse().context(text)).collect::<Result<_>>()?;
            table::run(&sizes)
        }
        Some("agent") => {
            let program = arguments.next().context("PROGRAM")?;
            let mut number =
                |name: &'static str| -> Result<u32> { arguments.next().context(name)?.parse().context(name) };
            let (services, pods) = (number("SERVICES")?, number("PODS")?);
            agent::run(program.as_ref(), services, pods)
        }
        _ => bail!("cost table SERVICES... | cost agent PROGRAM SERVICES PODS"),
    }
}
