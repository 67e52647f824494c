//! The cluster of the documents: a shop.

use crate::{
    cluster::{ClusterState, Dirty},
    objects::{
        Object, ObjectEvent,
        parse::{Claim, RawObject},
    },
};

pub fn objects(yaml: &str) -> Vec<Object> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<RawObject> = serde_saphyr::from_multiple_with_options(yaml, options).unwrap();
    let read = |raw: RawObject| {
        let Claim::Ours(kind) = raw.claim() else { panic!("not ours") };
        raw.parse(kind).unwrap().object
    };
    documents.into_iter().map(read).collect()
}

pub fn cluster(yaml: &str) -> ClusterState {
    let (mut cluster, mut dirty) = (ClusterState::new(), Dirty::default());
    objects(yaml).into_iter().for_each(|object| cluster.apply(ObjectEvent::Applied(object), &mut dirty));
    cluster
}

pub fn shop() -> ClusterState {
    cluster(include_str!("../../../tests/fixtures/policies/shop.yaml"))
}
