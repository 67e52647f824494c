//! From `--kubeconfig`, `--master` or the pod's environment to a client configuration.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderValue, Uri, header::USER_AGENT};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::failure::chain;
use crate::watch::WatchError;

/// A host that does not answer a connection attempt within this is taken for unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a pod finds its service account.
const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// `kubeconfig`, with `master` in place of its server; else `master` alone; else the service account of this pod.
///
/// `master` alone uses the pod's token and CA if they are there and works without (the original needs them).
///
/// # Errors
/// A file that is missing or cannot be used, a URL that is none, no configuration at all.
pub async fn client_config(kubeconfig: Option<&Path>, master: Option<&str>) -> Result<Config, WatchError> {
    let master = master.filter(|master| !master.is_empty());
    let mut config = match (kubeconfig, master) {
        (Some(path), _) => from_file(path).await?,
        (None, Some(url)) => from_url(url, Path::new(ACCOUNT_DIR))?,
        (None, None) => Config::incluster().map_err(|error| WatchError::InCluster { reason: chain(&error) })?,
    };
    if let (Some(_), Some(url)) = (kubeconfig, master) {
        let has_tls = config.root_cert.is_some() || config.auth_info.client_certificate.is_some();
        config.cluster_url = parse_url(url, if has_tls { "https" } else { "http" })?;
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let agent = concat!("kube-router/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
    Ok(config)
}

async fn from_file(path: &Path) -> Result<Config, WatchError> {
    let wrong = |error: &dyn std::error::Error| WatchError::Kubeconfig { path: path.to_owned(), reason: chain(error) };
    let file = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
    let config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|error| wrong(&error))?;
    // A file without any certificate is read as a list of none, which would make every server look like an impostor.
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        let reason = "certificate-authority holds no certificate".to_owned();
        return Err(WatchError::Kubeconfig { path: path.to_owned(), reason });
    }
    Ok(config)
}

fn from_url(url: &str, account_dir: &Path) -> Result<Config, WatchError> {
    let existing = |name: &str| Some(account_dir.join(name)).filter(|path: &PathBuf| path.is_file());
    let ca = existing("ca.crt");
    let mut config = Config::new(parse_url(url, if ca.is_some() { "https" } else { "http" })?);
    // Plain http would show the token to everybody on the way.
    if config.cluster_url.scheme_str() == Some("https") {
        config.root_cert_file = ca;
        config.auth_info.token_file = existing("token").map(|path| path.to_string_lossy().into_owned());
    }
    Ok(config)
}

/// A URL; `host:port` alone gets `default_scheme`, as in the original's client library.
fn parse_url(url: &str, default_scheme: &str) -> Result<Uri, WatchError> {
    let wrong = |reason: String| WatchError::Master { url: url.to_owned(), reason };
    let full = if url.contains("://") { url.to_owned() } else { format!("{default_scheme}://{url}") };
    let uri: Uri = full.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
        (Some("http" | "https"), _) => Err(wrong("no host".into())),
        (scheme, _) => Err(wrong(format!("unknown scheme {}", scheme.unwrap_or_default()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    const TOKEN_ONLY: &str = r#"
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443"}}]
users: [{name: u, user: {token: secret}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"#;

    #[test]
    fn master_takes_the_place_of_the_kubeconfigs_server() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubeconfig");
        std::fs::write(&file, TOKEN_ONLY).unwrap();
        let plain = block_on(client_config(Some(&file), None)).unwrap();
        assert_eq!(plain.cluster_url.to_string(), "https://192.0.2.1:6443/");
        let moved = block_on(client_config(Some(&file), Some("http://127.0.0.1:8080"))).unwrap();
        assert_eq!(moved.cluster_url.to_string(), "http://127.0.0.1:8080/");
        assert!(moved.auth_info.token.is_some(), "the credentials stay");
        assert!(
            moved
                .headers
                .iter()
                .any(|(name, value)| name == USER_AGENT && value.to_str().unwrap().starts_with("kube-router/"))
        );
    }

    #[test]
    fn master_alone_needs_no_token_file() {
        let config = block_on(client_config(None, Some("http://127.0.0.1:8080"))).unwrap();
        assert_eq!(config.cluster_url.to_string(), "http://127.0.0.1:8080/");
        assert!(config.auth_info.token_file.is_none());
    }

    #[test]
    fn master_alone_uses_the_service_account_that_is_there_but_not_in_the_open() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["token", "ca.crt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let https = from_url("https://10.0.0.1", dir.path()).unwrap();
        assert!(https.auth_info.token_file.is_some() && https.root_cert_file.is_some());
        let http = from_url("http://10.0.0.1", dir.path()).unwrap();
        assert!(http.auth_info.token_file.is_none());
        assert_eq!(from_url("10.0.0.1:6443", dir.path()).unwrap().cluster_url.scheme_str(), Some("https"));
    }

    #[test]
    fn urls() {
        for (url, want) in [
            ("https://[fd00::1]:6443", Ok("https://[fd00::1]:6443/")),
            ("10.0.0.1:8080", Ok("http://10.0.0.1:8080/")),
            ("api.example", Ok("http://api.example/")),
            ("ftp://host", Err("unknown scheme ftp")),
            ("http://", Err("")),
            ("http://a b", Err("")),
        ] {
            match (parse_url(url, "http"), want) {
                (Ok(uri), Ok(want)) => assert_eq!(uri.to_string(), want),
                (Err(error), Err(want)) => {
                    let text = error.to_string();
                    assert!(text.contains(want) && text.contains(url), "{text}");
                }
                (got, want) => panic!("{url}: {got:?}, expected {want:?}"),
            }
        }
    }

    /// Each broken configuration names the file to look at.
    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let missing = block_on(client_config(Some(&path), None)).unwrap_err().to_string();
        assert!(missing.contains(path.to_str().unwrap()), "{missing}");

        let ca_missing = TOKEN_ONLY.replace("6443\"", "6443\", certificate-authority: /nonexistent/ca.crt");
        let not_pem = dir.path().join("ca.crt");
        std::fs::write(&not_pem, "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n").unwrap();
        let ca_broken =
            TOKEN_ONLY.replace("6443\"", &format!("6443\", certificate-authority: \"{}\"", not_pem.to_str().unwrap()));
        let empty = dir.path().join("empty.crt");
        std::fs::write(&empty, "no PEM at all\n").unwrap();
        let ca_empty = ca_broken.replace(not_pem.to_str().unwrap(), empty.to_str().unwrap());
        for (content, wanted) in [
            ("{", ""),
            ("apiVersion: v1\nkind: Config\n", "context"),
            (&TOKEN_ONLY.replace("current-context: x", "current-context: y"), "context"),
            (&ca_missing, "/nonexistent/ca.crt"),
            (&ca_broken, "certificate"),
            (&ca_empty, "no certificate"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = block_on(client_config(Some(&path), None)).unwrap_err();
            assert!(matches!(error, WatchError::Kubeconfig { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()) && text.contains(wanted), "{text}");
        }
    }
}
