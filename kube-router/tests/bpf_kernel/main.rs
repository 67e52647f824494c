//! The BPF programs in a real kernel: load, run packets through them, attach, replace, refuse.
//!
//! A binary built without the object fails these tests; it does not pass them.

mod balance;
mod cluster;
mod crowd;
mod explained;
mod forbidden;
mod full;
mod live;
mod load;
mod maps;
mod model;
mod net;
mod paged;
mod promises;
mod rig;
mod served;
mod share;
mod sizes;
mod taken_over;

use std::{
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Names of maps and programs are looked for in all namespaces.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    assert!(output.status.success(), "{program} {arguments}: {}", text(output.stderr));
    text(output.stdout)
}
