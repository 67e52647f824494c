//! Node ports: on which addresses.

use super::*;
use crate::compile::compile_node;

const SPEC: &str = "spec: {type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}";
const DUAL: &str = "spec: {type: NodePort, clusterIPs: [10.96.0.10, 'fd00:10:96::10'], \
                    ports: [{port: 80, nodePort: 30080}]}";

fn ports(world: &World) -> Vec<String> {
    world.lines().into_iter().filter(|line| line.starts_with("NodePort")).collect()
}

#[test]
fn a_node_port_is_on_the_node_s_address_of_each_family_that_the_service_has() {
    assert_eq!(ports(&World::new(SPEC).dual_stack()), ["NodePort tcp 192.168.77.1:30080 rr ->"]);
    assert_eq!(
        ports(&World::new(DUAL).dual_stack()),
        ["NodePort tcp 192.168.77.1:30080 rr ->", "NodePort tcp [fd00:77::1]:30080 rr ->"]
    );
    assert_eq!(ports(&World::new(DUAL)), ["NodePort tcp 192.168.77.1:30080 rr ->"], "IPv6 is off");
}

#[test]
fn with_nodeport_bindon_all_ip_it_is_on_every_address_of_the_node_itself() {
    let all = |spec: &str| World::new(spec).config(|config| config.node_port_all_addresses = true);
    let four = ["NodePort tcp 127.0.0.1:30080 rr ->", "NodePort tcp 192.168.77.1:30080 rr ->"];
    assert_eq!(ports(&all(SPEC)), four, "not on kube-bridge and docker0");
    let more = all(SPEC).host_address("bond0.7", "192.0.2.7").host_address("my-dummy0", "192.0.2.8");
    assert_eq!(ports(&more), [four[0], "NodePort tcp 192.0.2.7:30080 rr ->", four[1]]);
    // An enabled family that the service does not have refuses: a virtual server without destinations.
    let six = ["NodePort tcp [::1]:30080 rr ->", "NodePort tcp [fd00:77::1]:30080 rr ->"];
    assert_eq!(ports(&all(SPEC).dual_stack()), [four[0], four[1], six[0], six[1]]);
}

#[test]
fn a_node_port_has_no_address_on_kube_dummy_if() {
    let all = World::new(SPEC).config(|config| config.node_port_all_addresses = true);
    for world in [World::new(SPEC), all] {
        let vips: Vec<String> = world.lines().into_iter().filter(|line| line.starts_with("vip")).collect();
        assert_eq!(vips, ["vip 10.96.0.10"]);
    }
}

/// `allocateLoadBalancerNodePorts: false` leaves none; a service that became ClusterIP may still carry the number.
#[test]
fn a_node_port_belongs_to_types_node_port_and_load_balancer() {
    for (service_type, has) in [("NodePort", true), ("LoadBalancer", true), ("ClusterIP", false)] {
        let spec = SPEC.replace("NodePort,", &format!("{service_type},"));
        assert_eq!(ports(&World::new(&spec)).len(), usize::from(has), "{service_type}");
    }
    let without = SPEC.replace("NodePort,", "LoadBalancer,").replace(", nodePort: 30080", "");
    assert_eq!(ports(&World::new(&without)), [""; 0]);
}

/// Until the Node object is there, or when its address is gone, the rest of the service works.
#[test]
fn without_an_address_of_the_node_there_are_no_node_ports() {
    use crate::{compile::compile_service, config::ProxyConfig, desired::Origin, objects::Object};
    let config = ProxyConfig::default();
    let (view, problems) = compile_node("n1", None, &Default::default(), &Default::default(), &config);
    assert_eq!(problems.iter().map(|problem| problem.reason).collect::<Vec<_>>(), ["NodeMissing"]);
    let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, {SPEC}}}");
    let raw: crate::objects::parse::RawObject = serde_saphyr::from_str(&text).unwrap();
    let Object::Service(service) = raw.parse(crate::objects::Kind::Service).unwrap().object else { panic!() };
    let (state, problems) = compile_service(&service, std::iter::empty(), &view, &config);
    let origins: Vec<Origin> = state.unwrap().frontends.values().map(|frontend| frontend.origin).collect();
    assert_eq!((origins, problems), (vec![Origin::ClusterIp], vec![]));
}
