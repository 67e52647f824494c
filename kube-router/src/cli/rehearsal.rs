//! The agent without a kernel: the real reconciler on a kernel in memory, for `plan` and `replay`.

use crate::{
    apply::{IpvsPlane, fake::FakeKernel},
    config::Config,
    objects::ObjectEvent,
    plan::Stage,
    reconcile::{Command, Reconciler},
};

pub struct Rehearsal {
    reconciler: Reconciler,
    kernel: FakeKernel,
    now_ms: u64,
}

impl Rehearsal {
    pub fn new(config: &Config) -> Self {
        // Time only moves by the recording, so a view that is incomplete stays so instead of ending the agent.
        let reconciler = Reconciler::new(config.proxy.clone(), &config.node_name, std::time::Duration::MAX, 0);
        Rehearsal { reconciler, kernel: FakeKernel::new(), now_ms: 0 }
    }

    pub fn take(&mut self, event: ObjectEvent) {
        self.reconciler.handle_event(event);
    }

    /// Moves the clock, never back, and never so far (a recording may say anything) that no time is left to wait for.
    pub fn at(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms.min(u64::MAX / 2));
    }

    /// Carries everything out and returns the orders, in order.
    pub fn settle(&mut self) -> Vec<Stage> {
        let before = self.kernel.0.borrow().log.len();
        loop {
            match self.reconciler.poll(self.now_ms) {
                Command::Observe => {
                    let observed = self.kernel.observe();
                    self.reconciler.handle_observed(observed, self.now_ms);
                }
                Command::Apply(stage) => {
                    let result = self.kernel.apply(&stage);
                    self.reconciler.handle_applied(&stage, result, self.now_ms);
                }
                Command::CountConnections(servers) => {
                    for server in servers {
                        let counts = self.kernel.connections(&server).ok();
                        self.reconciler.handle_connections(&server, counts.as_ref(), self.now_ms);
                    }
                }
                // Policy and the fast path are rehearsed by nobody yet: the reconciler was not told of them.
                Command::ObservePolicy | Command::ApplyPolicy(_) | Command::PolicySettled => break,
                Command::ObserveBalance | Command::ApplyBalance(_) => break,
                Command::Wait { .. } | Command::GiveUp { .. } => break,
            }
        }
        self.kernel.0.borrow().log[before..].to_vec()
    }

    pub fn reconciler(&mut self) -> &mut Reconciler {
        &mut self.reconciler
    }
}
