//! Is a custom resource there, and in which version?
//!
//! A server that lacks it refuses the path with 404, or with 403 to those who have no right to what does not exist. The
//! discovery documents are readable by everybody whom the server knows, so they tell one from the other.

use std::time::Duration;

use http::Request;
use kube::Client;
use serde::Deserialize;
use tokio::time::timeout;

use super::failure::{Class, Failure};
use crate::objects::Kind;

const VERB: &str = "discover";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// APIGroup.
#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    versions: Vec<GroupVersion>,
}

#[derive(Deserialize)]
struct GroupVersion {
    version: String,
}

/// APIResourceList.
#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
}

/// The version to read; `None`: the server has no such resource.
///
/// # Errors
/// The server does not answer well, or has the resource in versions that we cannot read: nobody knows what is in it.
pub(super) async fn served(client: &Client, kind: Kind) -> Result<Option<&'static str>, Failure> {
    let (group, resource) = kind.group_and_resource();
    let Some(Group { versions }) = get(client, format!("/apis/{group}")).await? else { return Ok(None) };
    let served: Vec<String> = versions.into_iter().map(|entry| entry.version).collect();
    let has = async |version: &str| -> Result<bool, Failure> {
        let list: Option<Resources> = get(client, format!("/apis/{group}/{version}")).await?;
        Ok(list.is_some_and(|list| list.resources.iter().any(|known| known.name == resource)))
    };
    for version in kind.versions().iter().filter(|version| served.iter().any(|known| known == *version)) {
        if has(version).await? {
            return Ok(Some(version));
        }
    }
    for version in served.iter().filter(|version| !kind.versions().contains(&version.as_str())) {
        if has(version).await? {
            let text = format!("{version}, and {} is read", kind.versions().join(" or "));
            return Err(Failure { verb: VERB, class: Class::OtherVersion, text });
        }
    }
    Ok(None)
}

/// `None`: 404.
async fn get<T: for<'de> Deserialize<'de>>(client: &Client, path: String) -> Result<Option<T>, Failure> {
    let request = Request::get(path).body(Vec::new()).map_err(|error| Failure::unreadable(VERB, error.to_string()))?;
    let answer = timeout(ANSWER_TIMEOUT, client.request_text(request)).await;
    match answer.map_err(|_| Failure::timeout(VERB, ANSWER_TIMEOUT))? {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|error| Failure::unreadable(VERB, error.to_string())),
        Err(error) => match Failure::request(VERB, &error) {
            Failure { class: Class::NotServed, .. } => Ok(None),
            failure => Err(failure),
        },
    }
}
