//! A real directory, real inotify events, and what comes out of the channel.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::objects::{Object, ObjectKey};

/// Long enough for a busy machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing is said for this long after a change that changes nothing.
const SILENCE: Duration = Duration::from_millis(400);

struct Source {
    events: mpsc::Receiver<ObjectEvent>,
    /// What a receiver that follows the events knows.
    objects: BTreeMap<(Kind, ObjectKey), Object>,
    rejected: BTreeMap<String, String>,
}

impl Source {
    async fn next(&mut self) -> ObjectEvent {
        let event = timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("the source lives");
        match event.clone() {
            ObjectEvent::Applied(object) => {
                self.objects.insert((object.kind(), object.key().clone()), object);
            }
            ObjectEvent::Deleted(kind, key) => {
                self.objects.remove(&(kind, key)).expect("only known objects are deleted");
            }
            ObjectEvent::Rejected { source, reason } => {
                self.rejected.insert(source, reason);
            }
            ObjectEvent::Accepted { source } => {
                self.rejected.remove(&source).expect("only rejected sources are accepted");
            }
            ObjectEvent::Kept(..)
            | ObjectEvent::RelistStarted(_)
            | ObjectEvent::RelistDone(_)
            | ObjectEvent::Unavailable { .. } => {}
        }
        event
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Source) -> bool) {
        while !condition(self) {
            let event = self.next().await;
            println!("until {what}: {event:?}");
        }
    }

    async fn silence(&mut self) {
        if let Ok(event) = timeout(SILENCE, self.events.recv()).await {
            panic!("unexpected {event:?}");
        }
    }

    /// Everything up to the `RelistDone` of the last kind.
    async fn listed(&mut self) -> Vec<ObjectEvent> {
        let mut events = Vec::new();
        loop {
            events.push(self.next().await);
            if events.last() == Some(&ObjectEvent::RelistDone(Kind::ALL[Kind::ALL.len() - 1])) {
                return events;
            }
        }
    }

    fn names(&self) -> Vec<String> {
        self.objects.keys().map(|(kind, key)| format!("{kind} {key}")).collect()
    }

    fn port(&self, service: &str) -> Option<u16> {
        match self.objects.get(&(Kind::Service, ObjectKey::new("default", service)))? {
            Object::Service(service) => Some(service.ports[0].port),
            other => panic!("{other:?}"),
        }
    }
}

/// Runs `test` against a source for `path`, which ends with it.
fn with_source<F: AsyncFnOnce(&mut Source)>(path: &Path, test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (sink, events) = mpsc::channel(16);
        let mut source = Source { events, objects: BTreeMap::new(), rejected: BTreeMap::new() };
        tokio::select! {
            result = run(path, sink) => panic!("the source ended: {result:?}"),
            () = test(&mut source) => {}
        }
    });
}

fn service(name: &str, port: u16) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: {port}\n")
}

/// As editors save: a new file over the old one.
fn replace(path: &Path, text: &str) {
    let copy = path.with_file_name(".4913");
    fs::write(&copy, text).unwrap();
    fs::rename(copy, path).unwrap();
}

#[test]
fn the_first_look_completes_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("one", 1) + "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n")
        .unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/b.yml"), service("two", 2)).unwrap();
    fs::write(
        dir.path().join("c.json"),
        r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x"}}]}"#,
    )
    .unwrap();
    fs::write(dir.path().join("notes.txt"), "not: [yaml").unwrap();
    fs::write(dir.path().join(".hidden.yaml"), "not: [yaml").unwrap();
    with_source(dir.path(), async |source| {
        let events = source.listed().await;
        for kind in Kind::ALL {
            let at = |wanted: ObjectEvent| events.iter().filter(|event| **event == wanted).count();
            assert_eq!((at(ObjectEvent::RelistStarted(kind)), at(ObjectEvent::RelistDone(kind))), (1, 1), "{kind}");
        }
        assert_eq!(source.names(), ["Service default/one", "Service default/two", "Node n1", "Namespace x"]);
        assert!(source.rejected.is_empty(), "{:?}", source.rejected);
        source.silence().await;
    });
}

#[test]
fn create_edit_rename_and_delete() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    with_source(dir.path(), async |source| {
        source.listed().await;
        fs::write(&a, service("one", 1) + &service("two", 2)).unwrap();
        source.until("created", |s| s.objects.len() == 2).await;
        fs::write(&a, service("one", 11) + &service("two", 2)).unwrap();
        assert!(matches!(source.next().await, ObjectEvent::Applied(_)));
        assert_eq!(source.port("one"), Some(11));
        source.silence().await;
        replace(&a, &(service("one", 12) + &service("two", 2)));
        source.until("saved by rename", |s| s.port("one") == Some(12)).await;
        fs::rename(&a, &b).unwrap();
        source.silence().await;
        replace(&b, &service("one", 12));
        source.until("one document less", |s| s.objects.len() == 1).await;
        fs::remove_file(&b).unwrap();
        source.until("removed", |s| s.objects.is_empty()).await;
        fs::create_dir_all(dir.path().join("x/y")).unwrap();
        fs::write(dir.path().join("x/y/c.yaml"), service("deep", 3)).unwrap();
        source.until("new directories", |s| s.port("deep") == Some(3)).await;
        fs::write(dir.path().join("x/y/c.yaml"), service("deep", 4)).unwrap();
        source.until("edit in a new directory", |s| s.port("deep") == Some(4)).await;
        fs::remove_dir_all(dir.path().join("x")).unwrap();
        source.until("directories removed", |s| s.objects.is_empty()).await;
    });
}

#[test]
fn a_typo_costs_nothing_and_is_forgotten_when_mended() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    fs::write(&a, service("one", 1) + &service("two", 2) + &service("three", 3)).unwrap();
    fs::write(&b, service("other", 9)).unwrap();
    with_source(dir.path(), async |source| {
        source.listed().await;
        // "two" is broken, "one" changes with the same save, "three" is taken out with it.
        replace(&a, &(service("one", 11) + &service("two", 2).replace("kind:", "kind")));
        source.until("broken", |s| !s.rejected.is_empty() && s.port("one") == Some(11)).await;
        assert_eq!((source.port("two"), source.port("three"), source.port("other")), (Some(2), Some(3), Some(9)));
        let (place, reason) = source.rejected.iter().next().unwrap();
        let line: u64 = place.strip_prefix(&format!("{}:", a.display())).unwrap().parse().unwrap();
        assert!((9..=16).contains(&line), "{place}: {reason}");
        // Other files live on.
        replace(&b, &service("other", 10));
        source.until("another file", |s| s.port("other") == Some(10)).await;
        assert_eq!(source.rejected.len(), 1);
        replace(&a, &(service("one", 11) + &service("two", 22)));
        source.until("mended", |s| s.rejected.is_empty()).await;
        assert_eq!((source.port("two"), source.port("three")), (Some(22), None));
        // A value of the wrong type: the object is named and stays as it was, its neighbours change.
        replace(&a, &(service("one", 12) + &service("two", 22).replace("port: 22", "port: x")));
        source.until("odd value", |s| s.port("one") == Some(12) && !s.rejected.is_empty()).await;
        assert_eq!(source.port("two"), Some(22));
        let reason = &source.rejected[&format!("{}:9", a.display())];
        assert!(reason.starts_with("Service default/two: spec.ports[0].port: "), "{reason}");
        // A rejected document that is taken out is gone.
        replace(&a, &service("one", 12));
        source.until("taken out", |s| s.rejected.is_empty()).await;
        assert_eq!(source.port("two"), None);
    });
}

/// Or the agent would remove what they meant, as nobody wants it.
#[test]
fn what_cannot_be_understood_is_said_to_be_there_until_it_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a.yaml");
    let odd = service("two", 2).replace("port: 2", "port: x");
    fs::write(&a, service("one", 1) + &odd).unwrap();
    fs::write(dir.path().join("b.yaml"), "not: [yaml").unwrap();
    let two = ObjectEvent::Kept(Kind::Service, ObjectKey::new("default", "two"));
    with_source(dir.path(), async |source| {
        let events = source.listed().await;
        assert!(events.contains(&two));
        for kind in Kind::ALL {
            assert!(events.contains(&ObjectEvent::Kept(kind, ObjectKey::unnamed())), "{kind}");
        }
        fs::remove_file(dir.path().join("b.yaml")).unwrap();
        let events = source.listed().await;
        assert!(events.contains(&two) && !events.contains(&ObjectEvent::Kept(Kind::Service, ObjectKey::unnamed())));
        assert!(events.contains(&ObjectEvent::Kept(Kind::Service, ObjectKey::new("default", "one"))), "not gone");
        fs::write(&a, service("one", 1) + &service("two", 2)).unwrap();
        let mut events = Vec::new();
        while events.last() != Some(&ObjectEvent::RelistDone(Kind::Service)) {
            events.push(source.next().await);
        }
        assert!(events.contains(&two) && source.port("two") == Some(2));
        source.until("mended", |s| s.rejected.is_empty()).await;
        source.silence().await;
    });
}

#[test]
fn the_first_file_in_path_order_has_the_object() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    fs::write(&b, service("one", 2)).unwrap();
    with_source(dir.path(), async |source| {
        source.listed().await;
        assert_eq!(source.port("one"), Some(2));
        fs::write(&a, service("one", 1) + &service("one", 3)).unwrap();
        source.until("taken over", |s| s.port("one") == Some(1) && s.rejected.len() == 2).await;
        for place in [format!("{}:1", b.display()), format!("{}:9", a.display())] {
            let reason = &source.rejected[&place];
            assert!(
                reason.contains("Service default/one") && reason.contains(&format!("{}:1", a.display())),
                "{reason}"
            );
        }
        fs::remove_file(&a).unwrap();
        source.until("given back", |s| s.port("one") == Some(2) && s.rejected.is_empty()).await;
    });
}

/// A mounted ConfigMap: files are links into `..data`, which is a link that is exchanged.
#[test]
fn a_config_map_is_exchanged() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str, port| {
        fs::create_dir_all(dir.path().join(name).join("sub")).unwrap();
        fs::write(dir.path().join(name).join("a.yaml"), service("one", port)).unwrap();
        fs::write(dir.path().join(name).join("sub/b.yaml"), service("two", port)).unwrap();
        symlink(name, dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    version("..v1", 1);
    symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    symlink("..data/sub", dir.path().join("sub")).unwrap();
    with_source(dir.path(), async |source| {
        source.listed().await;
        assert_eq!((source.port("one"), source.port("two"), source.rejected.len()), (Some(1), Some(1), 0));
        version("..v2", 2);
        fs::remove_dir_all(dir.path().join("..v1")).unwrap();
        source.until("exchanged", |s| s.port("one") == Some(2) && s.port("two") == Some(2)).await;
        assert_eq!(source.names().len(), 2);
    });
}

#[test]
fn one_file_of_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster");
    fs::write(&file, service("one", 1)).unwrap();
    fs::write(dir.path().join("else.yaml"), service("two", 2)).unwrap();
    with_source(&file, async |source| {
        source.listed().await;
        assert_eq!(source.names(), ["Service default/one"]);
        replace(&file, &service("one", 2));
        source.until("saved", |s| s.port("one") == Some(2)).await;
        fs::write(dir.path().join("else.yaml"), service("three", 3)).unwrap();
        source.silence().await;
        assert_eq!(source.names(), ["Service default/one"]);
    });
}

#[test]
fn a_vanished_directory_deletes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, aside) = (parent.path().join("m"), parent.path().join("aside"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("one", 1)).unwrap();
    fs::write(dir.join("b.yaml"), service("two", 2)).unwrap();
    with_source(&dir, async |source| {
        source.listed().await;
        fs::rename(&dir, &aside).unwrap();
        for _ in Kind::ALL {
            let event = source.next().await;
            assert!(matches!(&event, ObjectEvent::Unavailable { reason, .. } if reason.contains("m: ")), "{event:?}");
        }
        source.silence().await;
        assert_eq!(source.names().len(), 2);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), service("one", 5)).unwrap();
        // The directory may be seen before the file; the relists and what follows say what is there.
        source.listed().await;
        source.until("back", |s| s.port("one") == Some(5)).await;
        fs::write(dir.join("a.yaml"), service("one", 6)).unwrap();
        source.until("watched again", |s| s.port("one") == Some(6)).await;
    });
}

/// `kubectl get ... > file`: the file is empty at first and grows slowly.
#[test]
fn a_file_that_is_being_written_is_waited_for() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("one", 1) + &service("two", 2)).unwrap();
    with_source(dir.path(), async |source| {
        source.listed().await;
        let mut writer = fs::File::create(&file).unwrap();
        source.silence().await;
        writer.write_all(service("one", 11).as_bytes()).unwrap();
        source.silence().await;
        writer.write_all(service("two", 22).as_bytes()).unwrap();
        drop(writer);
        source.until("closed", |s| s.port("one") == Some(11) && s.port("two") == Some(22)).await;
    });
}

/// Two renames are not one: between them the object is in no file.
#[test]
fn what_moves_from_one_file_to_another_is_never_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    fs::write(&a, service("one", 1) + &service("two", 2)).unwrap();
    let mut view = View::new(dir.path().to_owned());
    assert!(matches!(view.look(false), Look::Events(_)));
    replace(&a, &(service("two", 22)));
    assert!(matches!(view.look(true), Look::Fewer));
    replace(&b, &service("one", 1));
    let Look::Events(events) = view.look(true) else { panic!("everything is there") };
    assert!(matches!(&events[..], [ObjectEvent::Applied(object)] if &*object.key().name == "two"), "{events:?}");
    replace(&b, "");
    let gone = [ObjectEvent::Deleted(Kind::Service, ObjectKey::new("default", "one"))];
    assert!(matches!(view.look(true), Look::Fewer));
    assert!(matches!(view.look(false), Look::Events(events) if events == gone));
}

#[test]
fn what_cannot_be_read_at_start_is_an_error_that_names_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for path in ["/nonexistent/manifests", "/nonexistent.yaml"] {
        let (sink, _events) = mpsc::channel(1);
        let error = runtime.block_on(run(Path::new(path), sink)).unwrap_err();
        assert!(matches!(error, WatchError::Manifests { .. }));
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[test]
fn the_source_ends_with_its_receiver() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("one", 1)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (sink, events) = mpsc::channel(64);
        let path: PathBuf = dir.path().to_owned();
        let ended = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(events);
        };
        let (result, ()) = timeout(PATIENCE, async { tokio::join!(run(&path, sink), ended) }).await.unwrap();
        assert!(result.is_ok());
    });
}
