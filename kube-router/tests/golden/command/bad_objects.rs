//! Objects that are odd: each is named, the rest is served.

use std::fmt::Write;

use super::*;

#[test]
fn the_good_objects_alone_make_no_problem() {
    let said = plan_with("", &[]);
    said.serves_the_good_one();
    assert_eq!(said.ipvs(), GOOD_LINES);
    assert_eq!(said.problems(), [""; 0]);
    assert_eq!(said.stderr, "");
}

#[test]
fn a_manifest_that_cannot_be_parsed_is_named_with_its_line() {
    let broken = "apiVersion: v1\nkind: Service\nmetadata: {name: a\n---\n";
    let said = plan_with(broken, &[]);
    said.serves_the_good_one();
    // The brace is never closed; the parser notices at the end of the document.
    let [problem] = said.problems()[..] else { panic!("{:?}", said.problems()) };
    assert!(problem.contains("others.yaml:3: ") || problem.contains("others.yaml:4: "), "{problem}");
    assert!(problem.contains("(InputRejected)"), "{problem}");
}

#[test]
fn a_broken_document_hides_neither_of_its_neighbours() {
    let text = format!("{GOOD}---\nkind: [\n---\n{}", GOOD.replace("good", "other").replace("0.80", "0.81"));
    let directory = directory(&[("all.yaml", &text)]);
    let said = plan(directory.path(), &[]);
    said.serves_the_good_one();
    assert!(said.ipvs().contains(&"-A -t 10.96.0.81:80 -s rr"));
    // The node stands twice in the file, which is a problem of its own.
    assert_eq!(said.problems().len(), 2, "{:?}", said.problems());
}

#[test]
fn a_field_of_a_wrong_type_costs_its_object_and_is_named() {
    let odd = "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: web}\nspec: {clusterIP: 10.96.0.81, \
               ports: [{port: eighty}]}\n";
    let said = plan_with(odd, &[]);
    said.serves_the_good_one();
    said.one_problem(&["others.yaml:1: ", "Service web/odd", "spec.ports[0].port", "a whole number"]);
}

#[test]
fn the_longest_name_is_served_and_a_longer_one_is_named() {
    let service = |name: &str, last: u8| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: web}}\n\
             spec: {{clusterIP: 10.96.0.{last}, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let (longest, longer) = ("l".repeat(253), "m".repeat(254));
    let said = plan_with(&(service(&longest, 1) + &service(&longer, 2)), &[]);
    said.serves_the_good_one();
    assert!(said.ipvs().contains(&"-A -t 10.96.0.1:80 -s rr"));
    assert!(!said.stdout.contains("10.96.0.2:80"));
    said.one_problem(&["others.yaml:5: ", "metadata.name", "253"]);
}

/// Two services want one address and port: the older has it, and the younger is told.
#[test]
fn of_two_services_with_one_address_and_port_the_older_is_served() {
    let service = |name: &str, created: &str, pod: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: web, creationTimestamp: \"{created}\"}}\n\
             spec: {{clusterIP: 10.96.0.7, ports: [{{port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: web, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{port: 8080}}]\n\
             endpoints: [{{addresses: [{pod}], conditions: {{ready: true}}}}]\n---\n"
        )
    };
    // The name decides only between services of one age.
    for (alpha, omega, winner, pod) in [
        ("2024-02-29T12:00:01Z", "2024-02-29T12:00:00Z", "web/omega", "10.244.2.2"),
        ("2024-02-29T12:00:00Z", "2024-02-29T12:00:01Z", "web/alpha", "10.244.1.1"),
        ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00Z", "web/alpha", "10.244.1.1"),
    ] {
        let said = plan_with(&(service("alpha", alpha, "10.244.1.1") + &service("omega", omega, "10.244.2.2")), &[]);
        said.serves_the_good_one();
        let servers: Vec<&str> = said.ipvs().into_iter().filter(|line| line.contains("10.96.0.7:80")).collect();
        assert_eq!(servers, ["-A -t 10.96.0.7:80 -s rr", &format!("-a -t 10.96.0.7:80 -r {pod}:8080 -m -w 1")]);
        let loser = if winner == "web/omega" { "Service web/alpha: " } else { "Service web/omega: " };
        said.one_problem(&[loser, "tcp 10.96.0.7:80", &format!("belongs to service {winner}"), "(AddressInUse)"]);
    }
}

#[test]
fn port_0_is_named_and_the_other_ports_are_served() {
    let odd = "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: web}\nspec: {clusterIP: 10.96.0.81, \
               ports: [{name: zero, port: 0}, {name: one, port: 1}]}\n";
    let said = plan_with(odd, &[]);
    said.serves_the_good_one();
    assert!(said.ipvs().contains(&"-A -t 10.96.0.81:1 -s rr"));
    assert!(!said.stdout.contains("10.96.0.81:0"));
    said.one_problem(&["Service web/odd", "\"zero\"", "(InvalidPort)"]);
}

#[test]
fn a_port_beyond_65535_is_named() {
    let odd = "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: web}\nspec: {clusterIP: 10.96.0.81, \
               ports: [{port: 65536}]}\n";
    let said = plan_with(odd, &[]);
    said.serves_the_good_one();
    said.one_problem(&["Service web/odd", "spec.ports[0].port"]);
}

#[test]
fn endpoints_of_the_wrong_family_are_named_and_their_neighbours_are_used() {
    let odd = "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: web}\nspec: {clusterIP: 10.96.0.81, \
               ports: [{port: 80}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
               metadata: {name: odd-1, namespace: web, labels: {kubernetes.io/service-name: odd}}\naddressType: IPv4\n\
               ports: [{port: 8080}]\nendpoints:\n- {addresses: ['fd00::1'], conditions: {ready: true}}\n\
               - {addresses: [10.244.9.9], conditions: {ready: true}}\n- {addresses: [pod-3], conditions: {ready: true}}\n";
    let said = plan_with(odd, &[]);
    said.serves_the_good_one();
    assert!(said.ipvs().contains(&"-a -t 10.96.0.81:80 -r 10.244.9.9:8080 -m -w 1"));
    said.one_problem(&["EndpointSlice web/odd-1", "fd00::1", "pod-3", "(InvalidEndpointAddress)"]);
}

#[test]
fn a_slice_of_nobody_is_named() {
    let odd = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: odd-1, namespace: web}\n\
               addressType: IPv4\nports: [{port: 8080}]\nendpoints: []\n";
    let said = plan_with(odd, &[]);
    said.serves_the_good_one();
    said.one_problem(&["EndpointSlice web/odd-1", "kubernetes.io/service-name", "(SliceWithoutService)"]);
}

/// Kubernetes writes at most 1,000 endpoints into a slice, and a service may have any number of slices.
#[test]
fn a_service_with_5000_endpoints_has_5000_destinations() {
    let mut big = "apiVersion: v1\nkind: Service\nmetadata: {name: big, namespace: web}\n\
                   spec: {clusterIP: 10.96.0.81, ports: [{port: 80}]}\n"
        .to_owned();
    for slice in 0..5 {
        let _ = write!(
            big,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: big-{slice}, namespace: web, \
             labels: {{kubernetes.io/service-name: big}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n"
        );
        for pod in 0..1_000 {
            let _ = writeln!(
                big,
                "- {{addresses: [10.{}.{}.{}], conditions: {{ready: true}}}}",
                100 + slice,
                pod / 250,
                pod % 250
            );
        }
    }
    let said = plan_with(&big, &[]);
    said.serves_the_good_one();
    let destinations = said.ipvs().into_iter().filter(|line| line.starts_with("-a -t 10.96.0.81:80 -r "));
    assert_eq!(destinations.count(), 5_000);
    assert_eq!(said.problems(), [""; 0]);
}

#[test]
fn annotations_with_nonsense_are_named_and_the_service_works_without_them() {
    let annotated = |annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: odd, namespace: web, annotations: {{{annotation}}}}}\n\
             spec: {{clusterIP: 10.96.0.81, ports: [{{port: 80}}]}}\n"
        )
    };
    for (annotation, words) in [
        ("kube-router.io/service.scheduler: fastest", ["service.scheduler", "\"fastest\"", "(UnknownScheduler)"]),
        ("kube-router.io/service.scheduler: ''", ["service.scheduler", "\"\"", "(UnknownScheduler)"]),
        ("kube-router.io/service.schedflags: flag-1", ["service.schedflags", "mh", "(SchedulerFlagsIgnored)"]),
        ("kube-router.io/service.dsr: yes please", ["service.dsr", "\"yes please\"", "(UnknownDsrMode)"]),
    ] {
        let said = plan_with(&annotated(annotation), &[]);
        said.serves_the_good_one();
        assert!(said.ipvs().contains(&"-A -t 10.96.0.81:80 -s rr"), "{annotation}");
        said.one_problem(&["Service web/odd"]);
        said.one_problem(&words);
    }
    let flags = "kube-router.io/service.scheduler: mh, kube-router.io/service.schedflags: 'flag-2, flag-9'";
    let said = plan_with(&annotated(flags), &[]);
    assert!(said.ipvs().contains(&"-A -t 10.96.0.81:80 -s mh -b mh-port"), "{}", said.stdout);
    said.one_problem(&["\"flag-9\"", "(UnknownSchedulerFlag)"]);
    // A value that YAML does not read as text costs the object: the API server would not have taken it either.
    let said = plan_with(&annotated("kube-router.io/service.local: [true]"), &[]);
    said.serves_the_good_one();
    said.one_problem(&["Service web/odd", "metadata.annotations.kube-router.io/service.local", "a string"]);
}

#[test]
fn an_external_address_inside_the_service_range_is_refused_and_the_service_keeps_its_own() {
    let odd = "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: web}\nspec: {clusterIP: 10.96.0.81, \
               externalIPs: [10.96.0.82, 203.0.113.9], ports: [{port: 80}]}\n";
    let said = plan_with(odd, &["--service-external-ip-range=203.0.113.0/24"]);
    said.serves_the_good_one();
    assert!(said.ipvs().contains(&"-A -t 10.96.0.81:80 -s rr"));
    assert!(said.ipvs().contains(&"-A -t 203.0.113.9:80 -s rr"));
    assert!(!said.ipvs().contains(&"-A -t 10.96.0.82:80 -s rr"));
    said.one_problem(&["Service web/odd", "rejecting externalIP 10.96.0.82: conflicts with cluster IP range"]);
}

#[test]
fn a_node_without_address_costs_its_node_ports_only() {
    let without = GOOD.replace("{type: InternalIP, address: 192.168.77.1}", "{type: Hostname, address: n1}");
    let port = "apiVersion: v1\nkind: Service\nmetadata: {name: np, namespace: web}\nspec: {type: NodePort, clusterIP: \
                10.96.0.81, ports: [{port: 80, nodePort: 30080}]}\n";
    let directory = directory(&[("good.yaml", &without), ("np.yaml", port)]);
    let said = plan(directory.path(), &[]);
    said.serves_the_good_one();
    assert!(said.ipvs().contains(&"-A -t 10.96.0.81:80 -s rr"));
    assert!(!said.stdout.contains("30080"));
    said.one_problem(&["Node n1", "IPv4", "--enable-ipv4=false", "(NodeWithoutAddress)"]);
}

#[test]
fn a_missing_node_costs_its_node_ports_only_and_says_how_to_name_another() {
    let elsewhere = GOOD.replace("metadata: {name: n1}", "metadata: {name: n2}");
    let directory = directory(&[("good.yaml", &elsewhere)]);
    let said = plan(directory.path(), &[]);
    said.serves_the_good_one();
    said.one_problem(&["Node n1", "--hostname-override", "NODE_NAME", "(NodeMissing)"]);
}

#[test]
fn the_same_object_in_two_files_is_named_with_both_places() {
    let directory = directory(&[("a.yaml", GOOD), ("b.yaml", &GOOD.replace("8080", "9090"))]);
    let said = plan(directory.path(), &[]);
    said.serves_the_good_one();
    assert!(!said.stdout.contains("9090"), "the first file has it");
    assert_eq!(said.problems().len(), 3, "{:?}", said.problems());
    let service = said.problems().into_iter().find(|problem| problem.contains("Service web/good")).unwrap();
    assert!(service.contains("b.yaml:6: ") && service.contains("a.yaml:6 "), "{service}");
}
