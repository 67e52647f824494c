//! List and watch of one kind.
//!
//! ```text
//!            page, page, ...            200, then events and bookmarks
//!   Listing ---------------> Watching ------------------------------.
//!    ^  ^  failure: wait        |  ^  end of stream, failure: wait   |
//!    |  '----                   |  '---------------------------------'
//!    '--------------------------'
//!      410, another error event, or what cannot be read; watch works again after an `Unavailable`
//! ```
//!
//! `version` is the state: `None` lists, `Some(resourceVersion)` watches from there. A short outage costs a resumed
//! watch and no events. One that was announced by `Unavailable` ends with a new list, because only a list tells the
//! receiver that the kind is up to date again.
//!
//! A list of a custom resource begins with the question whether the server has it. One that it lacks is listed as
//! empty, so that nobody waits for it, and asked for again now and then.

use std::{pin::pin, time::Duration};

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
    delivery::Delivery,
    discovery,
    failure::{Class, Failure},
};
use crate::{
    objects::{Kind, ObjectEvent, ObjectKey, parse::RawObject},
    watch::SinkClosed,
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
/// Between two looks for a custom resource that is not there, plus a random part of the same: a thousand nodes ask eleven
/// times a second.
const ABSENT: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(60) };
/// A custom resource that was there must be missing for so long before its objects count as gone.
const VANISHED: Duration = if cfg!(test) { Duration::from_millis(50) } else { GRACE };

pub(super) struct KindWatch<'a> {
    kind: Kind,
    client: &'a Client,
    pages: &'a Semaphore,
    link: &'a Link,
    version: Option<String>,
    /// Of the API.
    api_version: &'static str,
    /// Listed as empty, because the server does not have it.
    absent: bool,
    /// Since when the server says that a resource is not there which was.
    vanished: Option<Instant>,
    listed_once: bool,
    backoff: Backoff,
    /// Since when nothing works.
    down_since: Option<Instant>,
    /// What the last `Unavailable` was about, while it lasts.
    announced: Option<(&'static str, Class)>,
    out: Delivery<'a>,
}

/// What comes after a page.
enum Next {
    /// Another one, from this continue token.
    Page(String),
    /// A watch from this resourceVersion.
    Watch(String),
}

/// Why a step ended early.
enum Stop {
    Closed,
    /// The server does not have this resource. Look again after this.
    Absent(Duration),
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
            version: None,
            api_version: kind.versions()[0],
            absent: false,
            vanished: None,
            listed_once: false,
            backoff: Backoff::default(),
            down_since: None,
            announced: None,
            out: Delivery::new(kind, sink),
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
                Err(Stop::Absent(wait)) => {
                    self.backoff.reset();
                    sleep(wait).await;
                    continue;
                }
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
        let version = self.api_version;
        Request::new(if group.is_empty() {
            format!("/api/{version}/{resource}")
        } else {
            format!("/apis/{group}/{version}/{resource}")
        })
    }

    /// The server does not have this resource: as good as an empty list. But one that was there is missed for a while
    /// before its objects are taken for gone.
    async fn no_such_resource(&mut self) -> Result<Stop, SinkClosed> {
        self.works();
        if self.listed_once && !self.absent && self.vanished.get_or_insert_with(Instant::now).elapsed() < VANISHED {
            return Ok(Stop::Absent(VANISHED));
        }
        if !self.absent || self.announced.is_some() {
            debug!(kind = %self.kind, "the API server does not have this resource");
            (self.absent, self.listed_once, self.announced) = (true, true, None);
            self.out.list_begins().await?;
            self.out.list_ends().await?;
        }
        Ok(Stop::Absent(ABSENT + Duration::from_millis(random() % ABSENT.as_millis() as u64)))
    }

    async fn list(&mut self) -> Result<(), Stop> {
        if self.kind.is_custom() {
            match discovery::served(self.client, self.kind).await? {
                Some(version) => (self.api_version, self.vanished) = (version, None),
                None => return Err(self.no_such_resource().await?),
            }
        }
        let mut continue_token = None;
        let mut started = false;
        loop {
            let (page, next) = self.page(continue_token).await?;
            self.works();
            if !started {
                started = true;
                self.announced = None;
                self.out.list_begins().await?;
            }
            let items = page.items.get("items").map_err(|bad| Failure::unreadable("list", bad.to_string()))?;
            for (i, item) in items.unwrap_or_default().into_iter().enumerate() {
                match item.get(format_args!("items[{i}]")) {
                    Ok(Some(object)) => self.out.take(object).await?,
                    Ok(None) => {}
                    Err(bad) => {
                        self.out.kept(ObjectKey::unnamed()).await?;
                        self.out.reject(format!("list of {}", self.kind), bad.to_string()).await?;
                    }
                }
            }
            match next {
                Next::Page(token) => continue_token = Some(token),
                Next::Watch(version) => {
                    self.version = Some(version);
                    (self.listed_once, self.absent) = (true, false);
                    return Ok(self.out.list_ends().await?);
                }
            }
        }
    }

    async fn page(&self, continue_token: Option<String>) -> Result<(RawObject, Next), Failure> {
        let params = ListParams { limit: Some(PAGE), continue_token, ..ListParams::default() };
        let request = self.request().list(&params).map_err(|error| Failure::unreadable("list", error.to_string()))?;
        // Never closed, so acquiring cannot fail; going on without the permit would only cost memory.
        let _permit = self.pages.acquire().await;
        let text = timeout(ANSWER_TIMEOUT, self.client.request_text(request))
            .await
            .map_err(|_| Failure::timeout("list", ANSWER_TIMEOUT))?
            .map_err(|error| Failure::request("list", &error))?;
        let page: RawObject =
            serde_json::from_str(&text).map_err(|error| Failure::unreadable("list", error.to_string()))?;
        let metadata = page.metadata.peek();
        let token = metadata.and_then(|metadata| metadata.continue_token.peek()).filter(|token| !token.is_empty());
        let version = metadata.and_then(|metadata| metadata.resource_version.peek()).filter(|text| !text.is_empty());
        let next = match (token, version) {
            (Some(token), _) => Next::Page(token.to_string()),
            (None, Some(version)) => Next::Watch(version.to_string()),
            (None, None) => return Err(Failure::unreadable("list", "no metadata.resourceVersion")),
        };
        Ok((page, next))
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
                Ok(next) => next.map_err(|error| self.expired_or(Failure::request("watch", &error)))?,
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
                self.out.remove(object).await?
            } else {
                self.out.take(object).await?
            }
            if version.is_some() {
                self.version = version;
            }
        }
    }

    fn expired_or(&mut self, failure: Failure) -> Failure {
        // What cannot be read would come again from the same version.
        let gone = failure.class == Class::NotServed && self.kind.is_custom();
        if gone || matches!(failure.class, Class::Expired | Class::Unreadable) {
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
        self.out.send(ObjectEvent::Unavailable { kind: self.kind, reason }).await
    }
}
