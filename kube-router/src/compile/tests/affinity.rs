//! Session affinity, schedulers and their flags: attributes shared by all virtual servers of a service.

use super::*;

fn world(spec: &str) -> World {
    World::new(&format!(
        "spec: {{type: NodePort, clusterIP: 10.96.0.10, {spec} ports: [{{port: 80, nodePort: 30080}}]}}"
    ))
}

#[track_caller]
fn check(world: World, attributes: &str) {
    let expected = [
        format!("ClusterIP tcp 10.96.0.10:80 {attributes} ->"),
        format!("NodePort tcp 192.168.77.1:30080 {attributes} ->"),
    ];
    world.gives_servers(&expected.each_ref().map(String::as_str));
}

#[test]
fn client_affinity_makes_every_virtual_server_persistent() {
    for (spec, attributes) in [
        ("", "rr"),
        ("sessionAffinity: None,", "rr"),
        ("sessionAffinity: ClientIP,", "rr persistent 10800"),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}},", "rr persistent 600"),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {}},", "rr persistent 10800"),
        ("sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}},", "rr"),
    ] {
        check(world(spec), attributes);
    }
}

#[test]
fn the_scheduler_annotation_is_taken_by_name_exactly() {
    for name in ["rr", "lc", "dh", "sh", "mh"] {
        let world = world("").annotated("service.scheduler", name);
        world.complains(&[]);
        check(world, name);
    }
    for name in ["wrr", "wlc", "LC", " lc", ""] {
        let world = world("").annotated("service.scheduler", name);
        world.complains(&[("UnknownScheduler", &format!("{name:?}"))]);
        check(world, "rr");
    }
}

#[test]
fn scheduler_flags_work_with_mh_alone() {
    for (flags, attributes) in [
        ("flag-1", "mh (mh-fallback)"),
        ("flag-2", "mh (mh-port)"),
        ("flag-1,flag-2", "mh (mh-fallback,mh-port)"),
        (" flag-2 , flag-1 ", "mh (mh-fallback,mh-port)"),
        ("flag-3", "mh (flag-3)"),
        ("flag-1,flag-1", "mh (mh-fallback)"),
    ] {
        let world = world("").annotated("service.scheduler", "mh").annotated("service.schedflags", flags);
        world.complains(&[]);
        check(world, attributes);
    }
    for scheduler in ["rr", "sh"] {
        let world = world("").annotated("service.scheduler", scheduler).annotated("service.schedflags", "flag-1");
        world.complains(&[("SchedulerFlagsIgnored", "mh")]);
        check(world, scheduler);
    }
    let world = world("").annotated("service.scheduler", "mh").annotated("service.schedflags", "flag-1,fallback");
    world.complains(&[("UnknownSchedulerFlag", "\"fallback\"")]);
    check(world, "mh (mh-fallback)");
}

#[test]
fn affinity_and_scheduler_go_together() {
    check(world("sessionAffinity: ClientIP,").annotated("service.scheduler", "sh"), "sh persistent 10800");
}

/// Direct server return is for external addresses only; a service without any loses nothing.
#[test]
fn direct_server_return_is_said_to_be_missing_where_it_would_have_an_effect() {
    world("").annotated("service.dsr", "tunnel").complains(&[]);
    let external = world("externalIPs: [203.0.113.9],").annotated("service.dsr", "tunnel");
    external.complains(&[("DsrNotAvailable", "NAT")]);
    external.gives_servers(&[
        "ClusterIP tcp 10.96.0.10:80 rr ->",
        "NodePort tcp 192.168.77.1:30080 rr ->",
        "ExternalIP tcp 203.0.113.9:80 rr ->",
    ]);
    world("").annotated("service.dsr", "gre").complains(&[("UnknownDsrMode", "\"gre\"")]);
}

/// The API server refuses more than a day.
#[test]
fn affinity_ends_after_a_day_at_the_latest() {
    for (seconds, kept) in [(86_400, 86_400), (86_401, 86_400), (4_294_967_295_u32, 86_400)] {
        let spec =
            format!("sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}},");
        check(world(&spec), &format!("rr persistent {kept}"));
        let problems: &[(&str, &str)] = if seconds == kept { &[] } else { &[("InvalidAffinityTimeout", "86400")] };
        world(&spec).complains(problems);
    }
}
