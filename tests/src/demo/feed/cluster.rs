//! The cluster as a real API server holds it: kubectl changes it, the EndpointSlice controller does its part, and the
//! agents watch as the service account that they have in a cluster, with reading rights only.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::json;

use super::Feed;
use crate::{
    api::{Api, ApiSpec, Kubectl},
    demo::{
        cast::{Cast, KUBERNETES, PodRole, SERVICE, SERVICE_RANGE},
        narrator::{Narrator, Place},
        stage::NODE_PORT_RANGE,
    },
    lab::Lab,
};

/// The machine of the control plane, beside the nodes.
const MASTER: &str = "192.168.10.104";

/// What the agents may do.
const RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kube-router}
rules:
- {apiGroups: [''], resources: [namespaces, nodes, pods, services], verbs: [get, list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
- {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kube-router}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kube-router}
subjects: [{kind: ServiceAccount, name: kube-router, namespace: kube-system}]
";

pub struct ClusterFeed {
    api: Api,
    master: IpAddr,
}

impl ClusterFeed {
    pub fn open(cast: &Cast, lab: &mut Lab, narrator: &mut Narrator) -> Result<ClusterFeed> {
        let master: IpAddr = MASTER.parse().context("the master's address")?;
        let ns = lab.outside("master", &[&format!("{MASTER}/24")])?;
        let spec = ApiSpec {
            service_cidrs: vec![SERVICE_RANGE.to_owned()],
            node_port_range: Some(NODE_PORT_RANGE.to_owned()),
            ..ApiSpec::default()
        };
        narrator.say(format_args!("objects        a Kubernetes API server at {MASTER} (it needs a moment to start)"));
        let api = Api::up(spec.controllers(&["endpointslice"]).inside(&ns, master))?;
        let nodes = cast.documents.iter().filter(|document| document.kind == "Node").map(|node| node.yaml.clone());
        let service = cast.document("Service", SERVICE)?.yaml.clone();
        let pods = cast.pods.iter().map(pod_object);
        let all: Vec<String> = nodes.chain([service, RIGHTS.to_owned()]).chain(pods).collect();
        api.apply(&all.join("\n---\n"))?;
        // The kubelets' part.
        for node in &cast.nodes {
            api.set_node_addresses(&node.name, &[node.address])?;
        }
        for pod in &cast.pods {
            api.set_pod_running("default", &pod.name, &[pod.address], true)?;
        }
        let feed = ClusterFeed { api, master };
        feed.kubectl(narrator, &["get", "pods", "-o", "wide"])?;
        feed.kubectl(narrator, &["get", "services", "-o", "wide"])?;
        Ok(feed)
    }

    fn kubectl(&self, narrator: &mut Narrator, arguments: &[&str]) -> Result<()> {
        let output = self.api.kubectl(arguments)?;
        narrator.shown(&format!("master {MASTER}"), &Narrator::line("kubectl", arguments), &output)
    }
}

impl Feed for ClusterFeed {
    fn flags(&self) -> Vec<String> {
        vec![format!("--kubeconfig={}", self.api.agent_kubeconfig().display())]
    }

    fn api_servers(&self) -> Vec<IpAddr> {
        vec![self.master]
    }

    fn visit_api(&self, narrator: &mut Narrator, place: Place<'_>) -> Result<()> {
        let authority = self.api.folder().join("ca.crt").display().to_string();
        let url = format!("https://{KUBERNETES}/livez");
        let answer = narrator.run(place, "curl", &["-sS", "-m", "20", "--cacert", &authority, &url])?;
        narrator.equal("the API server answered, by its certificate's word", &answer.trim(), &"ok");
        Ok(())
    }

    fn set_affinity(&mut self, narrator: &mut Narrator, on: bool) -> Result<()> {
        let affinity = if on { "ClientIP" } else { "None" };
        let patch = json!({"spec": {"sessionAffinity": affinity}}).to_string();
        self.kubectl(narrator, &["patch", "service", SERVICE, "-p", &patch])
    }

    fn set_scheduler(&mut self, narrator: &mut Narrator, scheduler: &'static str) -> Result<()> {
        let annotation = format!("kube-router.io/service.scheduler={scheduler}");
        self.kubectl(narrator, &["annotate", "--overwrite", "service", SERVICE, &annotation])
    }

    fn remove_pod(&mut self, narrator: &mut Narrator, pod: &PodRole) -> Result<()> {
        // There is no kubelet that would confirm the end.
        self.kubectl(narrator, &["delete", "pod", &pod.name, "--force", "--wait=false"])
    }

    fn how_to_change(&self) -> String {
        let kubeconfig = self.api.kubeconfig();
        format!("kubectl --kubeconfig={} annotate --overwrite service {SERVICE} ...", kubeconfig.display())
    }
}

fn pod_object(pod: &PodRole) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "labels": {"run": SERVICE}},
        "spec": {"nodeName": pod.node, "containers": [{"name": SERVICE, "image": "cloudnativelabs/whats-my-ip"}]},
    })
    .to_string()
}
