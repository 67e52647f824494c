//! As much of an API server as the agent needs: lists in pages, watches that only send bookmarks.

use std::{convert::Infallible, time::Duration};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, RawQuery, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};

use crate::cluster;

#[derive(Clone, Copy)]
pub struct Sizes {
    pub services: u32,
    pub pods: u32,
}

/// Serves on a port of the loopback and returns its URL.
pub fn start(sizes: Sizes) -> Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let router = Router::new()
            .route("/api/v1/{resource}", get(answer))
            .route("/apis/{group}/v1/{resource}", get(answer_group))
            .with_state(sizes);
        runtime.block_on(async { Ok(axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await?) })
    });
    Ok(url)
}

async fn answer_group(sizes: State<Sizes>, Path((_, resource)): Path<(String, String)>, query: RawQuery) -> Response {
    answer(sizes, Path(resource), query).await
}

async fn answer(State(sizes): State<Sizes>, Path(resource): Path<String>, RawQuery(query): RawQuery) -> Response {
    let (count, object): (u32, fn(u32, Sizes) -> Value) = match resource.as_str() {
        "services" => (sizes.services, |number, _| cluster::service_json(number)),
        "endpointslices" => (sizes.services, |number, sizes| cluster::slice_json(number, sizes.pods)),
        "pods" => (sizes.pods, |number, _| cluster::pod_json(number)),
        "nodes" => (1, |_, _| cluster::node_json()),
        "namespaces" | "networkpolicies" => (0, |_, _| Value::Null),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let query = query.unwrap_or_default();
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    if parameter("watch").is_some() {
        return watch().into_response();
    }
    let number = |name: &str| parameter(name).and_then(|text| text.parse::<u32>().ok());
    let first = number("continue").unwrap_or(0);
    let end = first.saturating_add(number("limit").unwrap_or(count)).min(count);
    let items: Vec<Value> = (first..end).map(|number| object(number, sizes)).collect();
    let mut metadata = json!({"resourceVersion": "1000000"});
    if end < count {
        metadata["continue"] = end.to_string().into();
    }
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
    ([(CONTENT_TYPE, "application/json")], list.to_string()).into_response()
}

/// A bookmark a minute, like the real one.
fn watch() -> impl IntoResponse {
    let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Bookmark", "apiVersion": "v1",
        "metadata": {"resourceVersion": "1000000"}}});
    let line = Bytes::from(format!("{bookmark}\n"));
    let lines = futures::stream::unfold(line, |line| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Some((Ok::<_, Infallible>(line.clone()), line))
    });
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(lines))
}
