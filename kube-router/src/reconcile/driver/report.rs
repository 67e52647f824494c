//! What the loop tells: metrics, log, readiness, and answers to questions about services.

use std::{net::IpAddr, time::Duration};

use tracing::{debug, info, warn};

use super::Driver;
use crate::{
    objects::Kind,
    observe::{DestinationRow, PathRow, Query, ServiceRow},
    reconcile::{Pass, Reconciler},
};

impl Driver {
    /// Tells what changed since the last report.
    pub(super) fn report(&mut self) {
        for pass in self.reconciler.take_passes() {
            let took = self.pass_began.take().map(|began| began.elapsed()).unwrap_or_default();
            self.passed(pass, took);
        }
        // Orders without an update, as when a monitor begins, have a beginning too, which is none of the next one's.
        let policy_began = self.policy_began.take();
        if self.reconciler.take_policy_updates() > 0
            && let Some(began) = policy_began
            && let Some(enforcer) = self.reconciler.enforcer()
        {
            let compiler = enforcer.compiled().compiler;
            self.outputs.metrics.policy_synced(began.elapsed(), compiler.group_count(), compiler.class_count());
        }
        for gap_ms in self.reconciler.take_policy_gaps() {
            self.outputs.metrics.pod_was_open(Duration::from_millis(gap_ms));
        }
        let (appeared, resolved) = self.reconciler.problems().take_changes();
        for problem in &appeared {
            warn!(subject = %problem.subject, reason = problem.reason, "{}", problem.text);
        }
        for problem in &resolved {
            info!(subject = %problem.subject, reason = problem.reason, "resolved: {}", problem.text);
        }
        if !appeared.is_empty() || !resolved.is_empty() {
            let reasons: Vec<&'static str> = self.reconciler.problems().iter().map(|problem| problem.reason).collect();
            self.outputs.metrics.set_problems(reasons);
            self.outputs.pulse.set_notes(self.reconciler.problems().iter());
            self.outputs.problems.send_modify(|changes| *changes += 1);
        }
        self.outputs.metrics.set_drain_queue(self.reconciler.draining());
        self.outputs.sweeping.send_replace(self.reconciler.sweeping());
        for kind in Kind::ALL {
            self.outputs.metrics.set_objects(kind, self.reconciler.cluster().count(kind));
        }
        if let Some(ports) = self.reconciler.take_health_checks() {
            self.outputs.health_checks.send_replace(ports);
        }
        if self.reconciler.is_ready() {
            self.outputs.pulse.set_ready();
        }
    }

    fn passed(&mut self, pass: Pass, took: Duration) {
        self.outputs.metrics.sync_done(took, pass.refused == 0);
        if pass.full {
            // kube-dummy-if, and with it its rp_filter, may be new.
            self.ensure_settings();
        }
        if pass.orders > 0 {
            debug!(full = pass.full, orders = pass.orders, refused = pass.refused, ?took, "synced");
        }
    }

    pub(super) fn answer(&mut self, query: Query) {
        // A reader that went away does not matter.
        match query {
            Query::Services(reply) => drop(reply.send(rows(&self.reconciler))),
            Query::Owners(reply) => {
                let servers = self.reconciler.desired().table.servers();
                drop(reply.send(servers.map(|(key, owner, _)| (*key, owner.clone())).collect()));
            }
            Query::Problems(reply) => drop(reply.send(self.reconciler.problems().iter().cloned().collect())),
        }
    }
}

/// Every virtual server we want, ordered by service, with what is being drained.
pub fn rows(reconciler: &Reconciler) -> Vec<ServiceRow> {
    let observed = reconciler.observed();
    let mut rows: Vec<ServiceRow> = reconciler
        .desired()
        .table
        .servers()
        .map(|(key, owner, frontend)| {
            let wanted = &frontend.server.destinations;
            let mut destinations: Vec<DestinationRow> = wanted
                .iter()
                .map(|(address, weight)| DestinationRow { address: *address, weight: *weight, draining: false })
                .collect();
            if let Some(there) = observed.and_then(|observed| observed.ipvs.servers.get(key)) {
                let draining = there.destinations.keys().filter(|address| !wanted.contains_key(address));
                destinations.extend(draining.map(|address| DestinationRow {
                    address: *address,
                    weight: 0,
                    draining: true,
                }));
            }
            ServiceRow {
                service: owner.clone(),
                port_name: frontend.port_name.to_string(),
                origin: frontend.origin.name().to_owned(),
                address: key.address,
                protocol: key.protocol,
                port: key.port,
                scheduler: frontend.server.scheduler.name().to_owned(),
                sched_flags: frontend.server.flag_names(),
                persistence_s: frontend.server.persistence_s,
                destinations,
                path: reconciler.path(key).map(|(path, vip)| PathRow {
                    path: path.to_string(),
                    number: vip.map(|vip| vip.id),
                    slots: vip.map(|vip| vip.slots),
                }),
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        let rank = |row: &ServiceRow| -> (IpAddr, u8, u16) { (row.address, row.protocol.number(), row.port) };
        a.service.cmp(&b.service).then_with(|| rank(a).cmp(&rank(b)))
    });
    rows
}
