//! Standing problems as Kubernetes Events, for people who look with `kubectl describe`: on the object that is to blame, or
//! on our Node where it is nobody's fault.
//!
//! ```text
//! loop --problems changed--> run --what stands?--> loop
//!                             | teller: what is to be said now, at which pace     pure
//!                             '-> api: one Event into the API server              effect
//! ```
//!
//! Every node sees the same policies and would say the same. So an Event's name is made from what it says, the first node
//! creates it and the others find it there. Events are forgotten by the server after an hour; what still stands is said
//! again. An agent that may not create Events says so once in its log and goes on: this is courtesy, no duty.

mod api;
mod teller;

use std::{path::PathBuf, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};

use super::{Questions, questions::NoAnswer};
use crate::{compile::Problem, watch::kube::client_config};
use api::{Api, Outcome};
use teller::Teller;

/// Between two looks at what stands: problems often come in numbers, and some are over at once.
const PAUSE: Duration = Duration::from_secs(2);
/// For the loop's answer.
const ANSWER: Duration = Duration::from_secs(5);
/// After a failure, before the next Event.
const RETRY: Duration = Duration::from_secs(30);
/// After the server said that we may not.
const FORBIDDEN: Duration = Duration::from_secs(3_600);

/// Where Events go, and who we are.
#[derive(Clone, Debug)]
pub struct Events {
    pub kubeconfig: Option<PathBuf>,
    pub master: Option<String>,
    pub node: String,
}

/// When to look again.
enum Look {
    /// When the problems change, or at the latest after this.
    Changed(Option<Duration>),
    /// After this, whatever happens.
    Later(Duration),
    /// Never: the configuration cannot be used, and the source of objects says so.
    Never,
}

/// Says what stands until the loop is gone. `changed` counts changes of the standing problems.
pub async fn run(events: Events, questions: Questions, mut changed: watch::Receiver<u64>) {
    let mut speaker = Speaker { events, began: Instant::now(), teller: Teller::default(), api: None, forbidden: false };
    loop {
        sleep(PAUSE).await;
        changed.mark_unchanged();
        let standing = match questions.standing(ANSWER).await {
            Ok(standing) => standing,
            Err(NoAnswer::Late(_)) => continue,
            Err(NoAnswer::Gone | NoAnswer::NoPolicy) => return,
        };
        match speaker.tell(&standing).await {
            Look::Never => return,
            Look::Later(time) => sleep(time).await,
            Look::Changed(None) => {
                if changed.changed().await.is_err() {
                    return;
                }
            }
            // The sender's end shows at the next look.
            Look::Changed(Some(time)) => drop(timeout(time, changed.changed()).await),
        }
    }
}

struct Speaker {
    events: Events,
    began: Instant,
    teller: Teller,
    /// Made when it is needed: most agents have nothing to say.
    api: Option<Api>,
    /// That we may not was said.
    forbidden: bool,
}

impl Speaker {
    async fn tell(&mut self, standing: &[Problem]) -> Look {
        loop {
            let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let problem = match self.teller.next(standing, now_ms) {
                teller::Next::Say(problem) => problem,
                teller::Next::At(at_ms) => {
                    return Look::Changed(at_ms.map(|at| Duration::from_millis(at.saturating_sub(now_ms))));
                }
            };
            let Some(api) = self.api().await else { return Look::Never };
            match api.say(problem).await {
                // Without its object it will be over soon.
                Outcome::Said | Outcome::NoObject => self.teller.said(problem, now_ms),
                Outcome::Forbidden(text) => {
                    if !std::mem::replace(&mut self.forbidden, true) {
                        info!(error = text, "problems are not told as Events; the ClusterRole in deploy/ allows them");
                    }
                    return Look::Later(FORBIDDEN);
                }
                Outcome::Failed(text) => {
                    debug!(error = text, "an Event could not be created");
                    return Look::Later(RETRY);
                }
            }
        }
    }

    async fn api(&mut self) -> Option<&Api> {
        if self.api.is_none() {
            let Events { kubeconfig, master, node } = &self.events;
            let config = client_config(kubeconfig.as_deref(), master.as_deref()).await.ok()?;
            self.api = Some(Api::new(config, node).ok()?);
        }
        self.api.as_ref()
    }
}
