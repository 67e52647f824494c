//! Sources that cannot be used at all: the program ends at once and names the file or the flag.

use std::net::TcpListener;

use super::*;

#[test]
fn a_missing_manifest_directory_is_named() {
    plan(Path::new("/nonexistent/manifests"), &[]).refused(&["/nonexistent/manifests"]);
}

#[test]
fn an_empty_manifest_directory_is_a_cluster_without_objects() {
    let said = plan(directory(&[]).path(), &[]);
    assert_eq!(said.status, 0, "{}", said.stderr);
    assert_eq!(said.ipvs(), [""; 0]);
    said.one_problem(&["(NodeMissing)"]);
}

fn kubeconfig(cluster: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    )
}

fn plan_by(kubeconfig: &Path, switches: &[&str]) -> Said {
    let flag = format!("--kubeconfig={}", kubeconfig.display());
    let mut args = vec!["plan", "--hostname-override=n1", "--run-router=false", "--run-firewall=false", &flag];
    args.extend(switches);
    kube_router(&args)
}

#[test]
fn a_missing_kubeconfig_is_named() {
    plan_by(Path::new("/nonexistent/kubeconfig"), &[]).refused(&["/nonexistent/kubeconfig", "--kubeconfig"]);
}

#[test]
fn a_kubeconfig_that_is_none_is_named() {
    let directory = directory(&[("kubeconfig", "what: is this\n- nonsense\n")]);
    plan_by(&directory.path().join("kubeconfig"), &[]).refused(&["kubeconfig"]);
}

#[test]
fn a_kubeconfig_with_a_missing_ca_names_both_files() {
    let text = kubeconfig("server: 'https://127.0.0.1:6443', certificate-authority: /nonexistent/ca.crt");
    let directory = directory(&[("kubeconfig", &text)]);
    let path = directory.path().join("kubeconfig");
    plan_by(&path, &[]).refused(&["/nonexistent/ca.crt", path.to_str().unwrap()]);
}

#[test]
fn a_ca_file_that_holds_no_certificate_is_named() {
    let directory = directory(&[("ca.crt", "not a certificate\n")]);
    let text = kubeconfig("server: 'https://127.0.0.1:6443', certificate-authority: ca.crt");
    let path = directory.path().join("kubeconfig");
    fs::write(&path, text).unwrap();
    plan_by(&path, &[]).refused(&[path.to_str().unwrap(), "no certificate"]);
}

#[test]
fn an_api_server_that_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let directory = directory(&[("kubeconfig", &kubeconfig(&format!("server: 'http://{free}'")))]);
    let said = plan_by(&directory.path().join("kubeconfig"), &[]);
    said.refused(&["nothing can be read", &format!("http://{free}/ cannot be reached")]);
    let said_by_libraries = said.stderr.lines().filter(|line| line.contains("kube_client"));
    assert_eq!(said_by_libraries.count(), 0, "{}", said.stderr);
}

/// Connections are taken, but never answered.
#[test]
fn an_api_server_that_does_not_answer_ends_plan_after_the_time_limit() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("server: 'http://{}'", silent.local_addr().unwrap());
    let directory = directory(&[("kubeconfig", &kubeconfig(&server))]);
    let said = plan_by(&directory.path().join("kubeconfig"), &["--cache-sync-timeout=1500ms"]);
    said.refused(&["failed to synchronize cache: 1.5s timeout"]);
}

#[test]
fn no_source_outside_a_cluster_is_explained() {
    let said = kube_router(&["plan", "--hostname-override=n1"]);
    assert_eq!((said.status, said.stdout.as_str()), (1, ""));
    for flag in ["--kubeconfig", "--master", "--manifests"] {
        assert!(said.stderr.contains(flag), "{}", said.stderr);
    }
}

#[test]
fn a_missing_recording_is_named() {
    let said = kube_router(&["replay", "--hostname-override=n1", "/nonexistent/record"]);
    said.refused(&["/nonexistent/record"]);
    assert_eq!(said.stderr.matches("No such file").count(), 1, "{}", said.stderr);
}

#[test]
fn a_recording_that_is_none_is_refused() {
    let directory = directory(&[("objects.yaml", GOOD)]);
    let path = directory.path().join("objects.yaml");
    let file = path.to_str().unwrap();
    kube_router(&["replay", "--hostname-override=n1", file]).refused(&[file, "is no recording"]);
}
