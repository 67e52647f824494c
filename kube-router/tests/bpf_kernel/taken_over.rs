//! An agent that ends between a change of policy and the word that live flows are to be judged again: the next one says it.

use kube_router::apply::bpf::KernelPolicy;
use kube_router_common::{hooks::Hook, policy::PodGroups};

use crate::{
    net::Pins,
    promises::in_a_namespace,
    rig::{Front, PASS, REDIRECT},
    share::{base, flood, sizes, syn, world, write},
};

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter next_agent_judges"]
fn the_next_agent_judges_what_the_last_one_left_unsaid() {
    in_a_namespace(|| {
        let pins = Pins::new();
        let mut plane = KernelPolicy::open(&base(&pins), sizes()).expect("opens");
        write(&world(), plane.dataplane().tables());
        let front = Front::of(plane.dataplane());
        assert_eq!((flood(&front, 1, 1_000..1_001), flood(&front, 2, 1_000..1_001)), (1, 1));
        // Groups without a row, as of a policy that allows nothing; and no new generation.
        let tables = plane.dataplane().tables();
        tables.pods.put(&1, &PodGroups { ingress: 41, egress: 42 }).expect("groups");
        let generation = tables.config().expect("config").generation;
        assert_eq!(front.run(Hook::PodOut, &syn(1, 1_000)).expect("runs").verdict, PASS, "nobody has said it");
        drop((front, plane));

        let mut plane = KernelPolicy::open(&base(&pins), sizes()).expect("opens");
        let front = Front::of(plane.dataplane());
        assert_eq!(front.run(Hook::PodOut, &syn(1, 1_000)).expect("runs").verdict, REDIRECT, "refused, and answered");
        assert_eq!(front.run(Hook::PodOut, &syn(2, 1_000)).expect("runs").verdict, PASS, "what is allowed lives on");
        let tables = plane.dataplane().tables();
        let pods: Vec<u32> = tables.flows.read_all().expect("flows").iter().map(|(_, flow)| flow.pod).collect();
        assert_eq!(pods, [2]);
        let config = tables.config().expect("config");
        assert_eq!(config.generation, generation + 1);
    });
}
