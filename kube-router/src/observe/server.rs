//! The thread on which everything is shown: it has a runtime of its own, so that no other part of the agent, however
//! busy or stuck, delays an answer.
//!
//! Binding comes before ([`super::http::bind`], [`super::socket::bind`]) and may fail; from then on nothing here ends
//! the agent.

use std::{collections::BTreeMap, io, sync::Arc, thread::JoinHandle, time::Duration};

use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::error;

use super::{
    Metrics, Pulse, Questions, StatsSource, http, node_port_health,
    scrape::{PolicySource, Scraper},
    serve::{CONNECTION_LIFETIME, serve},
    socket::{self, BoundSocket},
};

/// At the end, a worker thread that still reads the kernel is left behind after this.
const STOP_WAIT: Duration = Duration::from_millis(200);

/// What the servers read. The other ends belong to the reconcile loop and to those who count.
pub struct Wiring {
    pub metrics: Arc<Metrics>,
    pub pulse: Arc<Pulse>,
    pub questions: Questions,
    /// `None`: the service proxy does not run.
    pub stats: Option<Box<dyn StatsSource>>,
    /// `None`: no network policy.
    pub policy: Option<Box<dyn PolicySource>>,
    pub health_checks: watch::Receiver<BTreeMap<u16, usize>>,
}

/// The running thread. Dropping it closes every listener and waits for the thread.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to serve. Errors only if the system gives no thread or no epoll instance.
    pub fn start(endpoints: Vec<http::Endpoint>, socket: Option<BoundSocket>, wiring: Wiring) -> io::Result<Server> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let tasks = prepare(&runtime, endpoints, socket, wiring)?;
        let thread = std::thread::Builder::new().name("observe".into()).spawn(move || {
            runtime.block_on(watch_over(tasks, stopped));
            runtime.shutdown_timeout(STOP_WAIT);
        })?;
        Ok(Server { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread that serves health and metrics ended in a panic");
        }
    }
}

fn prepare(
    runtime: &Runtime,
    endpoints: Vec<http::Endpoint>,
    socket: Option<BoundSocket>,
    wiring: Wiring,
) -> io::Result<JoinSet<()>> {
    let Wiring { metrics, pulse, questions, stats, policy, health_checks } = wiring;
    let scraper = Arc::new(Scraper::new(Arc::clone(&metrics), Arc::clone(&pulse), questions.clone(), stats, policy));
    // Sockets and tasks register with the runtime they are made in.
    let _inside = runtime.enter();
    let mut tasks = JoinSet::new();
    for endpoint in endpoints {
        let router = endpoint.router(&pulse, &scraper);
        tasks.spawn(serve(TcpListener::from_std(endpoint.listener)?, router, http::PLACES, Some(CONNECTION_LIFETIME)));
    }
    if let Some(socket) = socket {
        tasks.spawn(socket::run(socket.into_listener()?, questions));
    }
    tasks.spawn(node_port_health::run(health_checks, metrics));
    Ok(tasks)
}

/// Until told to stop. A server that panics is lost, the others go on; connections are tasks of their own anyway.
async fn watch_over(mut tasks: JoinSet<()>, stopped: oneshot::Receiver<()>) {
    let watching = async {
        while let Some(outcome) = tasks.join_next().await {
            if let Err(error) = outcome {
                error!(%error, "a server of health, metrics or status ended");
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = stopped => {}
        () = watching => {}
    }
    tasks.shutdown().await;
}
