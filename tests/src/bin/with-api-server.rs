//! A Kubernetes control plane around a test program, or beside a virtual machine.
//!
//! ```text
//! with-api-server [--controllers=a,b] -- PROGRAM ARGUMENT...   runs PROGRAM with variables that name the control plane
//! with-api-server [--controllers=a,b] --announce=HOST       prints the variables and serves until its input ends
//! with-api-server --ask=stop|start|expire                   asks the one that the variables name
//! ```
//!
//! The variables: KUBE_ROUTER_TEST_KUBECONFIG (an administrator's), KUBE_ROUTER_TEST_AGENT_KUBECONFIG (the agent's
//! service account, without rights), KUBE_ROUTER_TEST_CONTROL (for `kube_router_tests::api::Remote`), and
//! KUBE_ROUTER_TEST_APISERVER_{STOP,START,EXPIRE}, shell commands for tests that do not use that library.

use std::{
    env,
    ffi::OsString,
    io::{self, Read},
    net::Ipv4Addr,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use kube_router_tests::api::{Api, ApiSpec, Component, Control, REMOTE, Remote};

#[derive(Clone, Copy, ValueEnum)]
enum Ask {
    Stop,
    Start,
    Expire,
}

/// Runs a program beside a Kubernetes control plane.
#[derive(Parser)]
struct Arguments {
    /// Controllers to run, e.g. endpointslice.
    #[arg(long, value_delimiter = ',')]
    controllers: Vec<String>,
    /// Print the variables, for somebody who sees this machine's loopback at HOST, and serve.
    #[arg(long, value_name = "HOST", conflicts_with = "program")]
    announce: Option<Ipv4Addr>,
    #[arg(long, conflicts_with_all = ["program", "announce"])]
    ask: Option<Ask>,
    #[arg(trailing_var_arg = true)]
    program: Vec<OsString>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(ask) = arguments.ask {
        let remote = Remote::from_env()?;
        match ask {
            Ask::Stop => remote.stop(Component::ApiServer)?,
            Ask::Start => remote.start(Component::ApiServer)?,
            Ask::Expire => remote.expire()?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let controllers = arguments.controllers.into_iter().filter(|name| !name.is_empty()).collect();
    let api = Api::up(ApiSpec { controllers, ..ApiSpec::default() })?;
    let control = Control::bind()?;
    let variables = variables(&api, &control, arguments.announce.unwrap_or(Ipv4Addr::LOCALHOST))?;
    // Requests are served to the end of this process; its last act is to take the control plane away from them.
    let shared: &Mutex<Option<Api>> = Box::leak(Box::new(Mutex::new(Some(api))));
    thread::spawn(move || control.serve(shared));
    let code = match (arguments.announce, arguments.program.as_slice()) {
        (Some(_), _) => announce(&variables),
        (None, [program, rest @ ..]) => run(Command::new(program).args(rest).envs(variables)),
        (None, []) => bail!("no program to run"),
    };
    drop(shared.lock().unwrap_or_else(PoisonError::into_inner).take());
    Ok(ExitCode::from(code?))
}

/// Prints the variables, one a line and an empty line, and waits for the end of the input.
fn announce(variables: &[(String, String)]) -> Result<u8> {
    for (name, value) in variables {
        println!("{name}={value}");
    }
    println!();
    // Whoever started us holds the other end. Its content means nothing.
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(0)
}

/// The exit status as a shell would say it.
fn run(command: &mut Command) -> Result<u8> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn variables(api: &Api, control: &Control, host: Ipv4Addr) -> Result<Vec<(String, String)>> {
    let me = env::current_exe()?;
    let own = |name: &str, value: String| (format!("KUBE_ROUTER_TEST_{name}"), value);
    let ask = |what: &str| format!("'{}' --ask={what}", me.display());
    Ok(vec![
        (REMOTE.to_owned(), control.variable(host)?),
        own("KUBECONFIG", api.kubeconfig().display().to_string()),
        own("AGENT_KUBECONFIG", api.agent_kubeconfig().display().to_string()),
        own("APISERVER_STOP", ask("stop")),
        own("APISERVER_START", ask("start")),
        own("APISERVER_EXPIRE", ask("expire")),
    ])
}
