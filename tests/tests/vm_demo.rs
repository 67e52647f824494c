//! The demonstration, all checks passed, as a person would start it.

use std::process::Command;

#[test]
#[ignore = "needs IPVS: cargo xtask test --tier 4"]
fn the_demonstration_shows_what_it_claims() {
    let status = Command::new(env!("CARGO_BIN_EXE_demo")).status().unwrap();
    assert!(status.success(), "{status}: see the lines with FAILED above");
}
