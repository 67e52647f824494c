//! List and watch of one kind.
//!
//! ```text
//!            page, page, ...            200, then events and bookmarks
//!   Listing ---------------> Watching ------------------------------.
//!    ^  ^  failure: wait        |  ^  end of stream, failure: wait   |
//!    |  '----                   |  '---------------------------------'
//!    '--------------------------'
//!      410 or another error event; watch works again after an `Unavailable`
//! ```
//!
//! `version` is the state: `None` lists, `Some(resourceVersion)` watches from there. A short outage costs a resumed
//! watch and no events. One that was announced by `Unavailable` ends with a new list, because only a list tells the
//! receiver that the kind is up to date again.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::TryStreamExt;
use kube::{
    Client,
    api::{ListParams, WatchEvent, WatchParams},
    core::Request,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{
    Link,
    backoff::{Backoff, random},
    failure::{Class, Failure},
};
use crate::{
    objects::{
        Kind, Object, ObjectEvent,
        parse::{Named, Parsed, RawObject},
    },
    watch::{SinkClosed, send},
};

/// Objects asked for at once.
const PAGE: u32 = 500;
/// Longest wait for a page, or for the answer that opens a watch.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The server ends a watch after this many seconds, plus a random part of [`WATCH_JITTER_S`] so that a fleet does
/// not return in step. Servers cut longer wishes at about 300 s.
const WATCH_S: u64 = 240;
const WATCH_JITTER_S: u64 = 50;
/// A watch without any line for this long is taken for dead. Servers send a bookmark about once a minute; one that
/// sends none costs a reconnection, no events.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that ends sooner is a failure as far as the pace of retries goes.
const SHORT_WATCH: Duration = Duration::from_secs(5);
/// A failure after the first list is announced when it has lasted this long: a restart of the API server, which
/// refuses connections and then, until its authorizer is filled, requests, is not worth an alarm.
const GRACE: Duration = Duration::from_secs(10);
/// Interned node names are swept when they have doubled, but not below this.
const SWEEP_FROM: usize = 1024;

pub(super) struct KindWatch<'a> {
    kind: Kind,
    client: &'a Client,
    pages: &'a Semaphore,
    link: &'a Link,
    sink: &'a mpsc::Sender<ObjectEvent>,
    version: Option<String>,
    listed_once: bool,
    backoff: Backoff,
    /// Since when nothing works.
    down_since: Option<Instant>,
    /// What the last `Unavailable` was about, while it lasts.
    announced: Option<(&'static str, Class)>,
    /// Standing rejections: object -> reason.
    rejected: HashMap<String, String>,
    /// Those of them that the running list has seen.
    seen: HashSet<String>,
    nodes: Interner,
}

/// Why a step ended early.
enum Stop {
    Closed,
    Failed(Failure),
}

impl From<SinkClosed> for Stop {
    fn from(_: SinkClosed) -> Self {
        Stop::Closed
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

impl<'a> KindWatch<'a> {
    pub(super) fn new(
        kind: Kind,
        client: &'a Client,
        pages: &'a Semaphore,
        link: &'a Link,
        sink: &'a mpsc::Sender<ObjectEvent>,
    ) -> Self {
        KindWatch {
            kind,
            client,
            pages,
            link,
            sink,
            version: None,
            listed_once: false,
            backoff: Backoff::default(),
            down_since: None,
            announced: None,
            rejected: HashMap::new(),
            seen: HashSet::new(),
            nodes: Interner::default(),
        }
    }

    /// Runs until the receiver is gone.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let listing = self.version.is_none();
            let step = if listing { self.list().await } else { self.watch().await };
            let long = began.elapsed() >= SHORT_WATCH;
            if !listing && long {
                self.backoff.reset();
            }
            match step {
                Err(Stop::Closed) => return,
                Err(Stop::Failed(failure)) => {
                    debug!(kind = %self.kind, ?failure, "interrupted");
                    if self.report(&failure).await.is_err() {
                        return;
                    }
                }
                // After a list comes the watch; a watch that was not interrupted goes on, or wants a list.
                Ok(()) if listing || long || self.version.is_none() => continue,
                Ok(()) => {}
            }
            let wait = self.backoff.next(random());
            debug!(kind = %self.kind, wait_ms = wait.as_millis() as u64, "waiting before the next request");
            tokio::select! {
                () = sleep(wait) => {}
                // Another kind got through.
                () = self.link.back.notified() => {}
            }
        }
    }

    fn request(&self) -> Request {
        let (group, resource) = self.kind.group_and_resource();
        Request::new(if group.is_empty() {
            format!("/api/v1/{resource}")
        } else {
            format!("/apis/{group}/v1/{resource}")
        })
    }

    async fn list(&mut self) -> Result<(), Stop> {
        let mut continue_token = None;
        let mut started = false;
        self.seen.clear();
        loop {
            let page = self.page(continue_token).await?;
            self.works();
            if !started {
                started = true;
                self.announced = None;
                send(self.sink, ObjectEvent::RelistStarted(self.kind)).await?;
            }
            let metadata = page.metadata.get("metadata").ok().flatten().unwrap_or_default();
            let items = page.items.get("items").map_err(|bad| Failure::unreadable("list", bad.to_string()))?;
            for (i, item) in items.unwrap_or_default().into_iter().enumerate() {
                match item.get(format_args!("items[{i}]")) {
                    Ok(Some(object)) => self.take(object).await?,
                    Ok(None) => {}
                    Err(bad) => self.reject(format!("list of {}", self.kind), bad.to_string()).await?,
                }
            }
            continue_token = metadata.continue_token.peek().filter(|token| !token.is_empty()).map(ToString::to_string);
            if continue_token.is_some() {
                continue;
            }
            let version = metadata.resource_version.peek().filter(|version| !version.is_empty());
            let version = version.ok_or_else(|| Failure::unreadable("list", "the list has no resourceVersion"))?;
            self.version = Some(version.to_string());
            self.listed_once = true;
            send(self.sink, ObjectEvent::RelistDone(self.kind)).await?;
            return Ok(self.accept_unseen().await?);
        }
    }

    async fn page(&self, continue_token: Option<String>) -> Result<RawObject, Failure> {
        let params = ListParams { limit: Some(PAGE), continue_token, ..ListParams::default() };
        let request = self.request().list(&params).map_err(|error| Failure::unreadable("list", error.to_string()))?;
        // Never closed, so acquiring cannot fail; going on without the permit would only cost memory.
        let _permit = self.pages.acquire().await;
        let text = timeout(ANSWER_TIMEOUT, self.client.request_text(request))
            .await
            .map_err(|_| Failure::timeout("list", ANSWER_TIMEOUT))?
            .map_err(|error| Failure::request("list", &error))?;
        serde_json::from_str(&text).map_err(|error| Failure::unreadable("list", error.to_string()))
    }

    async fn watch(&mut self) -> Result<(), Stop> {
        let version = self.version.clone().unwrap_or_default();
        let limit_s = WATCH_S + random() % WATCH_JITTER_S;
        let params = WatchParams::default().timeout(u32::try_from(limit_s).unwrap_or(u32::MAX));
        let request =
            self.request().watch(&params, &version).map_err(|error| Failure::unreadable("watch", error.to_string()))?;
        let events = timeout(ANSWER_TIMEOUT, self.client.request_events::<RawObject>(request)).await;
        let events = events
            .map_err(|_| Failure::timeout("watch", ANSWER_TIMEOUT))?
            .map_err(|error| self.expired_or(Failure::request("watch", &error)))?;
        self.works();
        if self.announced.is_some() {
            self.version = None;
            return Ok(());
        }
        let mut events = pin!(events);
        loop {
            let next = match timeout(SILENCE, events.try_next()).await {
                Ok(next) => next.map_err(|error| Failure::request("watch", &error))?,
                Err(_) => return Ok(()),
            };
            let (object, gone) = match next {
                None => return Ok(()),
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (object, false),
                Some(WatchEvent::Deleted(object)) => (object, true),
                Some(WatchEvent::Bookmark(mark)) => {
                    self.version = Some(mark.metadata.resource_version);
                    continue;
                }
                Some(WatchEvent::Error(status)) => {
                    // Whatever it is, this watch is over, and a list is the way out of every state of the server.
                    self.version = None;
                    return Err(Failure::status("watch", status.code, &status.message).into());
                }
            };
            let metadata = object.metadata.peek();
            let version = metadata.and_then(|metadata| metadata.resource_version.peek()).map(ToString::to_string);
            if gone {
                self.remove(object).await?
            } else {
                self.take(object).await?
            }
            if version.is_some() {
                self.version = version;
            }
        }
    }

    fn expired_or(&mut self, failure: Failure) -> Failure {
        if failure.class == Class::Expired {
            self.version = None;
        }
        failure
    }

    /// The server answered a request.
    fn works(&mut self) {
        self.link.works();
        self.down_since = None;
    }

    /// Says what is new about a failure.
    async fn report(&mut self, failure: &Failure) -> Result<(), SinkClosed> {
        if failure.class == Class::Expired {
            return Ok(());
        }
        if failure.class == Class::Unreachable {
            self.link.lost(&failure.text);
        } else {
            self.link.works();
        }
        let since = *self.down_since.get_or_insert_with(Instant::now);
        if self.listed_once && since.elapsed() < GRACE {
            return Ok(());
        }
        let news = (failure.verb, failure.class);
        if self.announced == Some(news) {
            return Ok(());
        }
        self.announced = Some(news);
        let (group, resource) = self.kind.group_and_resource();
        let reason = failure.reason(&self.link.server, group, resource);
        send(self.sink, ObjectEvent::Unavailable { kind: self.kind, reason }).await
    }

    async fn take(&mut self, raw: RawObject) -> Result<(), SinkClosed> {
        match raw.parse(self.kind) {
            Ok(Parsed { mut object, ignored }) => {
                let source = Named(self.kind, Some(object.key())).to_string();
                if let Object::EndpointSlice(slice) = &mut object {
                    for node in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
                        self.nodes.intern(node);
                    }
                }
                send(self.sink, ObjectEvent::Applied(object)).await?;
                if ignored.is_empty() {
                    return self.accept(source).await;
                }
                let reasons: Vec<String> = ignored.iter().map(ToString::to_string).collect();
                self.reject(source, reasons.join("; ")).await
            }
            Err(rejection) => {
                let source = Named(self.kind, rejection.key.as_ref()).to_string();
                self.reject(source, rejection.field.to_string()).await
            }
        }
    }

    async fn remove(&mut self, raw: RawObject) -> Result<(), SinkClosed> {
        match raw.key(self.kind) {
            Ok(key) => {
                let source = Named(self.kind, Some(&key)).to_string();
                send(self.sink, ObjectEvent::Deleted(self.kind, key)).await?;
                self.accept(source).await
            }
            Err(_) => self.accept(Named(self.kind, None).to_string()).await,
        }
    }

    async fn reject(&mut self, source: String, reason: String) -> Result<(), SinkClosed> {
        self.seen.insert(source.clone());
        if self.rejected.get(&source) == Some(&reason) {
            return Ok(());
        }
        self.rejected.insert(source.clone(), reason.clone());
        send(self.sink, ObjectEvent::Rejected { source, reason }).await
    }

    async fn accept(&mut self, source: String) -> Result<(), SinkClosed> {
        match self.rejected.remove(&source) {
            Some(_) => send(self.sink, ObjectEvent::Accepted { source }).await,
            None => Ok(()),
        }
    }

    /// After a list: rejected objects that it does not hold are gone.
    async fn accept_unseen(&mut self) -> Result<(), SinkClosed> {
        let gone: Vec<String> = self.rejected.keys().filter(|source| !self.seen.contains(*source)).cloned().collect();
        for source in gone {
            self.accept(source).await?;
        }
        Ok(())
    }
}

/// One allocation per node name instead of one per endpoint.
#[derive(Default)]
struct Interner {
    names: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Interner {
    fn intern(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.names.get(&**name) {
            *name = known.clone();
            return;
        }
        if self.names.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.names.len() * 2;
        }
        self.names.insert(name.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation_and_unused_ones_are_swept() {
        let mut interner = Interner::default();
        let (mut one, mut two): (Arc<str>, Arc<str>) = ("n1".into(), "n1".into());
        interner.intern(&mut one);
        interner.intern(&mut two);
        assert!(Arc::ptr_eq(&one, &two));
        for i in 0..10_000 {
            interner.intern(&mut format!("gone-{i}").into());
        }
        assert!(interner.names.len() <= 2 * SWEEP_FROM, "{}", interner.names.len());
        assert!(interner.names.contains("n1"));
    }
}
