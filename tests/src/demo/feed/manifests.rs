//! The cluster as files: one object each, which a person edits while the agents watch the folder.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Feed;
use crate::{
    demo::{
        cast::{API_PORT, Cast, Document, KUBERNETES, POD_PORT, PodRole, SERVICE, Scheduling},
        look,
        narrator::{Narrator, Place},
    },
    lab::{Lab, Serve},
    objects::Manifests,
    process::Process,
};

/// Where labels end and annotations can follow in the Service's file.
const LABELS: &str = "labels: {run: myip}}";

pub struct ManifestFeed {
    folder: Manifests,
    service: File,
    slice: File,
    /// The service's file before anybody edited it.
    original: String,
    scheduling: Scheduling,
    api_servers: Vec<IpAddr>,
    /// On each node something that answers in the place of an API server.
    _masters: Vec<Process>,
}

struct File {
    name: String,
    yaml: String,
}

impl File {
    fn of(document: &Document) -> File {
        let name = format!("{}-{}.yaml", document.kind.to_lowercase(), document.name);
        File { name, yaml: document.yaml.clone() }
    }
}

impl ManifestFeed {
    pub fn open(cast: &Cast, lab: &mut Lab, narrator: &mut Narrator) -> Result<ManifestFeed> {
        let folder = Manifests::new()?;
        for document in &cast.documents {
            let file = File::of(document);
            folder.put_text(&file.name, &file.yaml)?;
        }
        for pod in &cast.pods {
            folder.put(&pod_file(pod), &[pod_object(pod)])?;
        }
        let serve = Serve::new().tcp(API_PORT);
        let masters: Result<Vec<Process>> =
            lab.nodes().map(|node| serve.start(&node.ns, &format!("master-{}", node.name))).collect();
        let files = cast.documents.len() + cast.pods.len();
        narrator.say(format_args!("objects        {files} files in {}", folder.path().display()));
        let service = File::of(cast.document("Service", SERVICE)?);
        Ok(ManifestFeed {
            folder,
            original: service.yaml.clone(),
            service,
            slice: File::of(cast.document("EndpointSlice", &format!("{SERVICE}-1"))?),
            scheduling: Scheduling::DEFAULT,
            api_servers: cast.nodes.iter().map(|node| node.address).collect(),
            _masters: masters?,
        })
    }

    fn write_service(&mut self, narrator: &mut Narrator) -> Result<()> {
        let yaml = edited(&self.original, &self.scheduling)?;
        write(&self.folder, &mut self.service, yaml, narrator)
    }
}

impl Feed for ManifestFeed {
    fn flags(&self) -> Vec<String> {
        vec![self.folder.flag()]
    }

    fn api_servers(&self) -> Vec<IpAddr> {
        self.api_servers.clone()
    }

    fn visit_api(&self, narrator: &mut Narrator, place: Place<'_>) -> Result<()> {
        let answers = look::ask(narrator, place, KUBERNETES, self.api_servers.len())?;
        let names: BTreeSet<IpAddr> = answers.iter().map(|answer| answer.ip).collect();
        narrator.equal("each API server answered once", &names, &self.api_servers.iter().copied().collect());
        Ok(())
    }

    fn set_affinity(&mut self, narrator: &mut Narrator, on: bool) -> Result<()> {
        self.scheduling.affinity = on;
        self.write_service(narrator)
    }

    fn set_scheduler(&mut self, narrator: &mut Narrator, scheduler: &'static str) -> Result<()> {
        self.scheduling.scheduler = scheduler;
        self.write_service(narrator)
    }

    fn remove_pod(&mut self, narrator: &mut Narrator, pod: &PodRole) -> Result<()> {
        let kept = |line: &&str| !line.contains(&format!("name: {},", pod.name));
        let yaml: String = self.slice.yaml.lines().filter(kept).map(|line| format!("{line}\n")).collect();
        ensure!(yaml != self.slice.yaml, "{} is not in {}", pod.name, self.slice.name);
        write(&self.folder, &mut self.slice, yaml, narrator)?;
        let file = pod_file(pod);
        narrator.say(format_args!("{} is removed", self.folder.path().join(format!("{file}.json")).display()));
        self.folder.remove(&file)
    }

    fn add(&mut self, narrator: &mut Narrator, name: &str, objects: &[Value]) -> Result<()> {
        self.folder.put(name, objects)?;
        narrator.say(format_args!("objects        {}", self.folder.path().join(format!("{name}.json")).display()));
        Ok(())
    }

    fn apply(&mut self, narrator: &mut Narrator, name: &str, yaml: &str) -> Result<()> {
        let file = format!("{name}.yaml");
        self.folder.put_text(&file, yaml)?;
        narrator.say(format_args!("{} appears:\n{}", self.folder.path().join(&file).display(), added(yaml)));
        Ok(())
    }

    fn how_to_change(&self) -> String {
        format!("echo '  sessionAffinity: ClientIP' >> {}", self.folder.path().join(&self.service.name).display())
    }
}

fn added(yaml: &str) -> String {
    changed("", yaml).collect::<Vec<_>>().join("\n")
}

/// Pods as the kubelets tell of them.
fn pod_object(pod: &PodRole) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "labels": {"run": SERVICE}},
        "spec": {
            "nodeName": pod.node,
            "containers": [{"name": SERVICE, "image": SERVICE, "ports": [{"containerPort": POD_PORT}]}],
        },
        "status": {"phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}]},
    })
}

fn pod_file(pod: &PodRole) -> String {
    format!("pod-{}", pod.name)
}

/// Replaces a file and shows what is different.
fn write(folder: &Manifests, file: &mut File, yaml: String, narrator: &mut Narrator) -> Result<()> {
    let changes: Vec<String> = changed(&file.yaml, &yaml).collect();
    let path = folder.path().join(&file.name);
    narrator.say(format_args!("{} is edited:\n{}", path.display(), changes.join("\n")));
    folder.put_text(&file.name, &yaml)?;
    file.yaml = yaml;
    Ok(())
}

/// Lines only in `old` with a minus, lines only in `new` with a plus.
fn changed<'a>(old: &'a str, new: &'a str) -> impl Iterator<Item = String> + 'a {
    let gone = old.lines().filter(move |line| !new.lines().any(|other| other == *line));
    let come = new.lines().filter(move |line| !old.lines().any(|other| other == *line));
    gone.map(|line| format!("  - {line}")).chain(come.map(|line| format!("  + {line}")))
}

/// The service's file with the annotation and the affinity asked for.
fn edited(original: &str, scheduling: &Scheduling) -> Result<String> {
    ensure!(original.matches(LABELS).count() == 1, "no {LABELS} in\n{original}");
    let mut yaml = original.to_owned();
    if scheduling.scheduler != Scheduling::DEFAULT.scheduler {
        let annotation = format!("annotations: {{kube-router.io/service.scheduler: {}}}}}", scheduling.scheduler);
        yaml = yaml.replace(LABELS, &format!("{}, {annotation}", &LABELS[..LABELS.len() - 1]));
    }
    if scheduling.affinity {
        yaml.push_str("  sessionAffinity: ClientIP\n");
    }
    Ok(yaml)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_changes_what_it_should_and_nothing_else() {
        let cast = Cast::load().unwrap();
        let original = &cast.document("Service", SERVICE).unwrap().yaml;
        assert_eq!(&edited(original, &Scheduling::DEFAULT).unwrap(), original);
        let yaml = edited(original, &Scheduling { scheduler: "sh", affinity: true }).unwrap();
        let mut object: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(object["metadata"]["annotations"]["kube-router.io/service.scheduler"], "sh");
        assert_eq!(object["spec"]["sessionAffinity"], "ClientIP");
        object["metadata"].as_object_mut().unwrap().remove("annotations");
        object["spec"].as_object_mut().unwrap().remove("sessionAffinity");
        assert_eq!(object, serde_saphyr::from_str::<Value>(original).unwrap());
        assert_eq!(changed(original, &yaml).count(), 3);
    }
}
