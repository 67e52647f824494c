//! The verifier's word, and what the programs weigh.

use kube_router::apply::bpf::{Dataplane, Options};
use kube_router_common::names;

use crate::{alone, run};

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter the_verifier"]
fn the_verifier_accepts_all_programs() {
    let _alone = alone();
    let dataplane = Dataplane::load(&Options::default()).unwrap_or_else(|error| {
        let mut text = format!("{error}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text += &format!("\n{cause}");
            source = cause.source();
        }
        panic!("{}", &text[text.len().saturating_sub(6000)..])
    });
    for program in names::PROGRAMS {
        let shown: serde_json::Value =
            serde_json::from_str(&run("bpftool", &format!("-j prog show name {program}"))).expect("JSON");
        let shown = shown.as_array().and_then(|all| all.last()).cloned().unwrap_or(shown);
        let (xlated, verified) = (shown["bytes_xlated"].as_u64(), shown["verified_insns"].clone());
        println!("{program}: {} instructions, verifier walked {verified}", xlated.unwrap_or(0) / 8);
    }
    drop(dataplane);
}
