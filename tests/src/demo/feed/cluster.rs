//! The cluster as a real API server holds it: kubectl changes it, the EndpointSlice controller does its part, and the
//! agents watch as the service account that they have in a cluster, with reading rights only.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Feed;
use crate::{
    api::{Api, ApiSpec, Kubectl, programs},
    demo::{
        cast::{Cast, KUBERNETES, NodeRole, PodRole, SERVICE, SERVICE_RANGE},
        narrator::{Narrator, Place},
    },
    lab::{Lab, Namespace},
};

/// The machine of the control plane, beside the nodes.
const MASTER: &str = "192.168.10.104";

/// What the pods are said to run.
const IMAGE: &str = "cloudnativelabs/whats-my-ip";

/// Holds the service's node port, which the default range does not.
const NODE_PORT_RANGE: &str = "30000-40000";

/// What kubelets do.
const STATUS: [&str; 6] = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-"];

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
    ns: Namespace,
    /// The program.
    kubectl: PathBuf,
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
        // The kubelets' part, all of it in one command: kubectl takes seconds to start in an emulated machine.
        let statuses: Vec<String> =
            cast.nodes.iter().map(node_status).chain(cast.pods.iter().map(pod_status)).collect();
        api.kubectl_with_input(&STATUS, &statuses.join("\n---\n"))?;
        let feed = ClusterFeed { api, master, ns, kubectl: programs()?.join("kubectl") };
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

    fn add(&mut self, narrator: &mut Narrator, name: &str, objects: &[Value]) -> Result<()> {
        let texts = |all: &[&Value]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n---\n");
        self.api.apply(&texts(&objects.iter().collect::<Vec<_>>()))?;
        let statuses: Vec<&Value> = objects.iter().filter(|object| object["status"].is_object()).collect();
        self.api.kubectl_with_input(&STATUS, &texts(&statuses))?;
        narrator.say(format_args!("objects        {} of {name}", objects.len()));
        Ok(())
    }

    fn apply(&mut self, narrator: &mut Narrator, name: &str, yaml: &str) -> Result<()> {
        self.api.apply(yaml)?;
        let line = Narrator::line("kubectl", &["apply", "-f", &format!("{name}.yaml")]);
        narrator.shown(&format!("master {MASTER}"), &line, yaml)
    }

    fn how_to_change(&self) -> String {
        let (ns, kubeconfig) = (self.ns.path(), self.api.kubeconfig());
        let kubectl = self.kubectl.display();
        format!(
            "nsenter --net={} {kubectl} --kubeconfig={} annotate --overwrite service {SERVICE} \
             kube-router.io/service.scheduler=sh",
            ns.display(),
            kubeconfig.display()
        )
    }
}

fn pod_object(pod: &PodRole) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "labels": {"run": SERVICE}},
        "spec": {"nodeName": pod.node, "containers": [{"name": SERVICE, "image": IMAGE}]},
    })
    .to_string()
}

fn pod_status(pod: &PodRole) -> String {
    let container = json!({
        "name": SERVICE, "image": IMAGE, "imageID": "", "ready": true, "restartCount": 0,
        "state": {"running": {}},
    });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name, "namespace": "default"},
        "status": {
            "phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}],
            "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [container],
        },
    })
    .to_string()
}

fn node_status(node: &NodeRole) -> String {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
        "status": {
            "addresses": [{"type": "InternalIP", "address": node.address}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
    .to_string()
}
