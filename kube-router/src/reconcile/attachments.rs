//! Answers to the network plugin: a pod that starts is judged before its first packet.
//!
//! An ADD is answered when the pod's rules are in force at its interface. If the pod is not known yet, its interface lets
//! nothing pass, and the answer waits a while for the API server's word.

use std::collections::BTreeSet;

use tracing::{debug, info};

use super::{
    Reconciler,
    policy::{Attached, Guarded},
};
use crate::{
    cni::{
        protocol::{Attachment, Command, Response},
        server::Ask,
    },
    compile::links::PodLink,
    objects::ObjectKey,
};

/// CNI's code for "try again later".
const TRY_AGAIN: u32 = 11;
/// Our share of the asker's patience, and never more than this: kubelet waits for nothing else meanwhile.
const SHARE: (u64, u64) = (3, 5);
const LONGEST_MS: u64 = 3_000;

/// An ADD that waits.
pub struct Waiting {
    ask: Ask,
    index: u32,
    until_ms: u64,
}

/// ADDs that are not answered yet.
#[derive(Default)]
pub struct Attachments {
    waiting: Vec<Waiting>,
}

impl Attachments {
    /// Takes a question in. `read` reads a link by its index.
    pub fn take(
        &mut self,
        ask: Ask,
        reconciler: &mut Reconciler,
        read: impl FnOnce(u32) -> Result<Option<PodLink>, String>,
        now_ms: u64,
    ) {
        let patience_ms = (ask.request.patience_ms.saturating_mul(SHARE.0) / SHARE.1).min(LONGEST_MS);
        match &ask.request.command {
            Command::Add(attachment) => {
                let index = attachment.host.ifindex;
                match self.attach(attachment, reconciler, read) {
                    Ok(true) => self.waiting.push(Waiting { ask, index, until_ms: now_ms + patience_ms }),
                    Ok(false) => ask.answer(ok(true, "no pod of Kubernetes: no policy is about it")),
                    Err(response) => ask.answer(response),
                }
            }
            Command::Check(attachment) => {
                let response = match guarded(reconciler, attachment) {
                    Guarded::No if attachment.pod.is_some() => error("the interface is not guarded", attachment),
                    guarded => ok(guarded != Guarded::Denied, ""),
                };
                ask.answer(response);
            }
            Command::Del(gone) => {
                let (container, ifname) = (&*gone.container_id, &*gone.pod_ifname);
                reconciler.handle_detached(|of| &*of.container == container && &*of.pod_ifname == ifname);
                ask.answer(ok(false, ""));
            }
            Command::Gc(valid) => {
                let known: BTreeSet<(&str, &str)> =
                    valid.valid.iter().map(|one| (&*one.container_id, &*one.ifname)).collect();
                let network = &*valid.network;
                reconciler.handle_detached(|of| {
                    &*of.network == network && !known.contains(&(&*of.container, &*of.pod_ifname))
                });
                ask.answer(ok(false, ""));
            }
            Command::Status => {
                let ready = reconciler.enforcer().is_some_and(|enforcer| enforcer.is_ready());
                ask.answer(ok(ready, if ready { "" } else { "policies are not in force yet" }));
            }
        }
    }

    /// True: to be answered when the pod's rules are in force.
    fn attach(
        &self,
        a: &Attachment,
        reconciler: &mut Reconciler,
        read: impl FnOnce(u32) -> Result<Option<PodLink>, String>,
    ) -> Result<bool, Response> {
        let Some(name) = &a.pod else { return Ok(false) };
        let link = read(a.host.ifindex).map_err(|text| error(&text, a))?;
        let Some(mut link) = link else {
            return Err(error("it is gone, or leads into no other network namespace", a));
        };
        // They are set by now, but who says so knows it first.
        link.addresses.extend(&a.pod_end.addresses);
        let attached = Attached {
            network: a.network.as_str().into(),
            container: a.container_id.as_str().into(),
            pod_ifname: a.pod_end.name.as_str().into(),
            pod: ObjectKey::new(&*name.namespace, &*name.name),
            uid: name.uid.as_deref().map(Into::into),
            addresses: a.pod_end.addresses.clone(),
        };
        debug!(pod = %attached.pod, interface = %link.name, "attached by the network plugin");
        reconciler.handle_attached(link, attached);
        Ok(true)
    }

    /// Answers what can be answered by now.
    pub fn answer(&mut self, reconciler: &Reconciler, now_ms: u64) {
        let waiting = std::mem::take(&mut self.waiting);
        for one in waiting {
            let Command::Add(a) = &one.ask.request.command else { continue };
            let response = match guarded(reconciler, a) {
                Guarded::Published => ok(true, ""),
                _ if now_ms < one.until_ms => {
                    self.waiting.push(one);
                    continue;
                }
                Guarded::Denied => {
                    info!(interface = %a.host.name, "a pod starts that the API server has not told of; nothing passes");
                    ok(false, "the API server has not told of this pod yet")
                }
                Guarded::No => error("policies are not in force yet", a),
            };
            one.ask.answer(response);
        }
    }

    pub fn until_ms(&self) -> Option<u64> {
        self.waiting.iter().map(|one| one.until_ms).min()
    }

    /// The interfaces whose pods wait.
    pub fn interfaces(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().map(|one| one.index)
    }
}

fn guarded(reconciler: &Reconciler, a: &Attachment) -> Guarded {
    let enforcer = reconciler.enforcer();
    enforcer.map_or(Guarded::No, |enforcer| enforcer.guard(a.host.ifindex, &a.pod_end.addresses))
}

fn ok(published: bool, note: &str) -> Response {
    Response::Ok { published, note: note.to_owned() }
}

fn error(text: &str, a: &Attachment) -> Response {
    Response::Error {
        code: TRY_AGAIN,
        msg: "try again later".to_owned(),
        details: format!("interface {} of the node: {text}", a.host.name),
    }
}
