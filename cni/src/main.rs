//! The kube-router-cni binary: gathers the environment and standard input, prints what the runtime is to hear.

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use kube_router_cni::{Input, MAX_INPUT, run};

fn main() -> ExitCode {
    let mut config = Vec::new();
    // What cannot be read is as empty as what is not there; both are told as bad JSON.
    let _ = io::stdin().lock().take(MAX_INPUT as u64 + 1).read_to_end(&mut config);
    let input = Input { environment: &|name| std::env::var_os(name), config: &config };
    let outcome = run(&input, &mut |note| eprintln!("kube-router-cni: {note}"));
    let (text, code) = match outcome {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (error.to_json(), ExitCode::FAILURE),
    };
    // A runtime that does not listen learns by the exit status.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    code
}
