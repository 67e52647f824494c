//! The five commands. Each asks the agent first or at least tells it, and knows what to do if there is none.
//!
//! "No agent" is one thing, however it shows: no socket, nobody behind it, silence, nonsense, or an agent that says that it
//! has no answer now. An agent that decides against something is another: its error is passed on.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use kube_router::{
    apply::bpf::{self, Pinned},
    cni::{
        client,
        protocol::{Attachment, Command, Detachment, PodEnd, Request, Response, VERSION, ValidAttachments},
    },
    compile::links::Tag,
    objects::ObjectKey,
};

use crate::{
    Code, Error, Notes,
    config::{Config, WhenAbsent},
    invocation::{Departure, Target},
    kernel::{self, Fault, Veth},
    prev_result,
};

/// DEL tells the agent and goes on: a pod that cannot be removed is worse than a row that stays a little longer.
const FAREWELL: Duration = Duration::from_secs(1);
/// STATUS is asked again and again.
const STATUS: Duration = Duration::from_secs(2);
/// An agent that replaces its programs pins them first and attaches them a moment later; CHECK must not fail in between.
const CONVERGENCE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(50);

/// What the agent said, if it said anything: published (or ready), and a note.
type Answer = Result<(bool, String), Error>;

/// `Err`: as good as no agent, and why.
fn ask(config: &Config, command: Command, patience: Duration) -> Result<Answer, String> {
    let request = Request { version: VERSION, patience_ms: patience.as_millis() as u64, command };
    match client::ask(&config.socket, &request, patience) {
        Ok(Response::Ok { published, note }) => Ok(Ok((published, note))),
        Ok(Response::Error { code, msg, details }) => Ok(Err(Error::new(Code::Agent(code), msg).with(details))),
        Ok(Response::Away { reason }) => Err(reason),
        Err(error) => Err(format!("no agent at {}: {error}", config.socket.display())),
    }
}

fn root(config: &Config) -> PathBuf {
    bpf::root(&config.pins)
}

fn prev_result(config: &Config) -> Result<&prev_result::PrevResult, Error> {
    config.prev_result.as_ref().ok_or_else(|| {
        Error::new(Code::Config, "prevResult is missing")
            .with("kube-router-cni makes no interface: put it behind bridge or ptp in the plugins of a .conflist")
    })
}

/// The request, and addresses of its interface: as the plugins say, or where they say none, as the kernel does.
fn attachment(config: &Config, target: &Target, veth: &Veth, told: BTreeSet<IpAddr>) -> Attachment {
    Attachment {
        network: config.name.clone(),
        container_id: target.container_id.clone(),
        pod: target.pod.clone(),
        namespace: veth.namespace.clone(),
        host: veth.host.clone(),
        pod_end: PodEnd {
            name: target.ifname.clone(),
            mac: veth.pod_end.mac,
            addresses: if told.is_empty() { veth.addresses.clone() } else { told },
        },
    }
}

/// `None`: no pod of Kubernetes.
fn tag(attachment: &Attachment) -> Option<Tag> {
    let pod = attachment.pod.as_ref()?;
    Some(Tag {
        pod: ObjectKey::new(&*pod.namespace, &*pod.name),
        uid: pod.uid.as_deref().map(Into::into),
        ifname: attachment.pod_end.name.as_str().into(),
        addresses: attachment.pod_end.addresses.clone(),
    })
}

/// `namespace/name (eth0, vethab12)`
fn who(target: &Target, veth: &Veth) -> String {
    let pod = target
        .pod
        .as_ref()
        .map_or_else(|| format!("container {}", target.container_id), |pod| format!("{}/{}", pod.namespace, pod.name));
    format!("{pod} ({}, {})", target.ifname, veth.host.name)
}

pub fn add(config: &Config, target: &Target, notes: Notes) -> Result<String, Error> {
    let result = prev_result(config)?;
    // Both can fail, and nothing has happened yet.
    let told = prev_result::addresses(result, &target.ifname)?;
    let answer = prev_result::answer(result, config.version)?;
    let veth = kernel::look(target)?;
    let who = who(target, &veth);
    let attachment = attachment(config, target, &veth, told);
    if let Some(Err(why)) = tag(&attachment).map(|tag| kernel::tag(&veth, &tag)) {
        notes(&format!(
            "ADD {who}: an agent that starts learns whose interface this is from the API server only: {why}"
        ));
    }
    let addresses = attachment.pod_end.addresses.clone();
    match ask(config, Command::Add(attachment), config.timeout) {
        Ok(Ok((true, _))) => {}
        Ok(Ok((false, note))) => notes(&format!("ADD {who}: nothing passes until the agent publishes the pod: {note}")),
        Ok(Err(error)) => return Err(error),
        Err(why) => notes(&format!("ADD {who}: {}", add_alone(config, &veth, &why)?)),
    }
    // Behind the guard, which lets a published pod announce its own addresses.
    if let Err(error) = kernel::announce(target, &veth, &addresses) {
        notes(&format!("ADD {who}: neighbours were not told its hardware address: {error}"));
    }
    Ok(answer)
}

/// Guards the interface with what an agent left. Says what was done.
fn add_alone(config: &Config, veth: &Veth, why: &str) -> Result<String, Error> {
    let root = root(config);
    let again = |msg: &str| Error::new(Code::TryAgain, msg);
    let pinned = Pinned::open(&root).map_err(|error| {
        again("no agent answers, and what it left in the kernel cannot be used")
            .with(format!("{why}; {error}. Start kube-router on this node; it puts {} right", root.display()))
    })?;
    match (pinned, config.when_absent) {
        (Some(pinned), _) => {
            pinned.guard(veth.host.ifindex, veth.pod_end.mac).map_err(|error| {
                again("no agent answers, and the interface could not be guarded without it")
                    .with(format!("{why}; {error}"))
            })?;
            Ok(format!("{why}; guarded by the pinned programs, nothing passes until an agent publishes the pod"))
        }
        (None, WhenAbsent::Allow) => Ok(format!(
            "{why}; nothing pinned either, and whenAbsent says allow: NO POLICY applies until an agent comes"
        )),
        (None, WhenAbsent::Fail) => Err(again("kube-router has not run on this node since it started").with(format!(
            "{why}; nothing is pinned in {}. Look why the agent does not run (kubectl -n kube-system get pods -o wide, \
             then its log); pods start by themselves once it does. To start pods without policy until then, set \
             \"whenAbsent\": \"allow\" for kube-router-cni in the network configuration",
            root.display()
        ))),
    }
}

pub fn check(config: &Config, target: &Target, notes: Notes) -> Result<String, Error> {
    let told = prev_result::addresses(prev_result(config)?, &target.ifname)?;
    let veth = kernel::look(target)?;
    let attachment = attachment(config, target, &veth, told);
    let who = who(target, &veth);
    let pinned = Pinned::open(&root(config))
        .map_err(|error| Error::new(Code::Unguarded, format!("{who}: what is pinned cannot be read")).with(error))?;
    if let Some(pinned) = &pinned {
        let faults = settled_faults(pinned, &veth, &attachment.pod_end.addresses)
            .map_err(|error| Error::new(Code::Io, format!("{who} cannot be checked")).with(error))?;
        judge(&who, &faults)?;
    }
    match ask(config, Command::Check(attachment), config.timeout) {
        Ok(Ok((true, _))) => Ok(String::new()),
        Ok(Ok((false, note))) => {
            Err(Error::new(Code::TryAgain, format!("{who}: the agent has not published the pod")).with(note))
        }
        Ok(Err(error)) => Err(error),
        Err(why) if pinned.is_some() => {
            notes(&format!("CHECK {who}: {why}; all is in place without it"));
            Ok(String::new())
        }
        Err(why) => Err(Error::new(Code::Unguarded, format!("{who}: nothing guards it"))
            .with(format!("{why}; nothing is pinned in {}", root(config).display()))),
    }
}

/// Looks again for a while: what is being changed is no fault.
fn settled_faults(pinned: &Pinned, veth: &Veth, addresses: &BTreeSet<IpAddr>) -> Result<Vec<Fault>, bpf::BpfError> {
    let deadline = Instant::now() + CONVERGENCE;
    loop {
        let faults = kernel::faults(pinned, veth, addresses)?;
        if faults.is_empty() || Instant::now() >= deadline {
            return Ok(faults);
        }
        thread::sleep(AGAIN);
    }
}

fn judge(who: &str, faults: &[Fault]) -> Result<(), Error> {
    let details: Vec<String> = faults.iter().map(Fault::to_string).collect();
    match faults {
        [] => Ok(()),
        [Fault::NotPublished] => {
            Err(Error::new(Code::TryAgain, format!("{who} waits for the agent")).with(details.join("; ")))
        }
        _ => Err(Error::new(Code::Unguarded, format!("{who} is not guarded as it should be"))
            .with(format!("{}. A running agent repairs this at its next full pass", details.join("; ")))),
    }
}

/// Never fails: what is gone is gone, and what stays is swept by the agent, or by GC.
pub fn del(config: &Config, departure: &Departure, notes: Notes) -> Result<String, Error> {
    let detachment = Detachment {
        network: config.name.clone(),
        container_id: departure.container_id.clone(),
        pod: departure.pod.clone(),
        pod_ifname: departure.ifname.clone(),
        namespace_path: departure.netns.clone(),
    };
    if let Ok(Err(error)) = ask(config, Command::Del(detachment), FAREWELL) {
        notes(&format!("DEL {}: the agent says: {} {}", departure.container_id, error.msg, error.details));
    }
    Ok(String::new())
}

pub fn gc(config: &Config, notes: Notes) -> Result<String, Error> {
    // Without the list nothing would be valid.
    let agent = config.valid.as_ref().map(|valid| {
        let command = Command::Gc(ValidAttachments { network: config.name.clone(), valid: valid.clone() });
        ask(config, command, config.timeout)
    });
    if let Some(Err(why)) = &agent {
        notes(&format!("GC: {why}; only what belongs to interfaces that are gone is removed"));
    }
    let io = |error| Error::new(Code::Io, "leftovers could not be removed").with(error);
    if let Some(pinned) = Pinned::open(&root(config)).map_err(io)? {
        let swept = pinned.sweep().map_err(io)?;
        if swept != bpf::Leftovers::default() {
            let bpf::Leftovers { interfaces, endpoints, links } = swept;
            notes(&format!(
                "GC: removed {interfaces} interfaces, {endpoints} addresses and {links} links that were gone"
            ));
        }
    }
    match agent {
        Some(Ok(Err(error))) => Err(error),
        _ => Ok(String::new()),
    }
}

pub fn status(config: &Config, notes: Notes) -> Result<String, Error> {
    let why = match ask(config, Command::Status, config.timeout.min(STATUS)) {
        Ok(Ok((true, _))) => return Ok(String::new()),
        Ok(Ok((false, note))) => format!("the agent is not ready: {note}"),
        Ok(Err(error)) => return Err(error),
        Err(why) => why,
    };
    let root = root(config);
    match (Pinned::open(&root), config.when_absent) {
        (Ok(Some(_)), _) => {
            notes(&format!("STATUS: {why}; new pods are guarded, and nothing passes until an agent publishes them"));
            Ok(String::new())
        }
        (Ok(None), WhenAbsent::Allow) => {
            notes(&format!("STATUS: {why}; whenAbsent says allow: NO POLICY applies to new pods"));
            Ok(String::new())
        }
        (Ok(None), WhenAbsent::Fail) => {
            Err(Error::new(Code::NotAvailable, "kube-router has not run on this node since it started").with(why))
        }
        (Err(error), _) => {
            Err(Error::new(Code::Limited, "what the agent left in the kernel is damaged")
                .with(format!("{why}; {error}")))
        }
    }
}
