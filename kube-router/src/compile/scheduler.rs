//! Annotations that choose the IPVS scheduler and its flags.

use crate::{
    desired::{
        Scheduler,
        ipvs::{FLAG_SCHED_1, FLAG_SCHED_2, FLAG_SCHED_3},
    },
    objects::annotations::{SCHED_FLAGS, SCHEDULER, ServiceAnnotations},
};

/// Scheduler, flags and complaints as (reason, text). Unknown values leave the default, as in the original.
pub fn choose(annotations: &ServiceAnnotations) -> (Scheduler, u32, Vec<(&'static str, String)>) {
    let mut complaints = Vec::new();
    let scheduler = match annotations.scheduler.as_deref() {
        None => Scheduler::default(),
        Some(name) => Scheduler::from_name(name).unwrap_or_else(|| {
            let text = format!("annotation {SCHEDULER} is {name:?}; rr is used. Known: rr, lc, dh, sh, mh");
            complaints.push(("UnknownScheduler", text));
            Scheduler::default()
        }),
    };
    let mut flags = 0;
    if let Some(list) = annotations.sched_flags.as_deref() {
        for item in list.split(',').map(str::trim) {
            match item {
                "flag-1" => flags |= FLAG_SCHED_1,
                "flag-2" => flags |= FLAG_SCHED_2,
                "flag-3" => flags |= FLAG_SCHED_3,
                other => {
                    let text = format!(
                        "annotation {SCHED_FLAGS} has {other:?}, which is ignored. Known: flag-1, flag-2, flag-3"
                    );
                    complaints.push(("UnknownSchedulerFlag", text));
                }
            }
        }
        if scheduler != Scheduler::Mh {
            // The original honours them only for mh.
            flags = 0;
            complaints
                .push(("SchedulerFlagsIgnored", format!("annotation {SCHED_FLAGS} only works with scheduler mh")));
        }
    }
    (scheduler, flags, complaints)
}
