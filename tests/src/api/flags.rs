//! The command lines of the components.

use std::path::Path;

use super::{ApiSpec, Component};

pub(super) fn of(component: Component, spec: &ApiSpec, files: &Path) -> Vec<String> {
    match component {
        Component::Etcd => etcd(spec, files),
        Component::ApiServer => api_server(spec, files),
        Component::ControllerManager => controller_manager(spec, files),
    }
}

fn etcd(spec: &ApiSpec, files: &Path) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", spec.etcd_port);
    let peer = format!("http://127.0.0.1:{}", spec.etcd_port + 1);
    let mut flags = vec![
        "--name=test".to_string(),
        format!("--data-dir={}", files.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=test={peer}"),
        // What a power failure would lose is no loss here.
        "--unsafe-no-fsync".to_string(),
    ];
    if spec.data.is_some() {
        // The saved member may have had other ports.
        flags.push("--force-new-cluster".to_string());
    }
    flags
}

fn api_server(spec: &ApiSpec, files: &Path) -> Vec<String> {
    let file = |name: &str| files.join(name).display().to_string();
    let mut flags = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", spec.etcd_port),
        format!("--bind-address={}", spec.address),
        format!("--advertise-address={}", spec.address),
        format!("--secure-port={}", spec.port),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_string(),
        format!("--service-account-key-file={}", file("server.crt")),
        format!("--service-account-signing-key-file={}", file("server.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=RBAC".to_string(),
        format!("--service-cluster-ip-range={}", spec.service_cidrs),
        // Pods need no service account then, and there is no controller that would make one.
        "--disable-admission-plugins=ServiceAccount".to_string(),
        "--allow-privileged".to_string(),
        "--profiling=false".to_string(),
    ];
    if spec.address.is_loopback() {
        // It refuses to put a loopback address into the endpoints of the service "kubernetes".
        flags.push("--endpoint-reconciler-type=none".to_string());
    }
    flags.extend(spec.api_args.iter().cloned());
    flags
}

fn controller_manager(spec: &ApiSpec, files: &Path) -> Vec<String> {
    let mut flags = vec![
        format!("--kubeconfig={}", files.join("admin.kubeconfig").display()),
        format!("--controllers={}", spec.controllers.join(",")),
        "--leader-elect=false".to_string(),
        "--secure-port=0".to_string(),
        "--concurrent-service-endpoint-syncs=10".to_string(),
        "--kube-api-qps=500".to_string(),
        "--kube-api-burst=1000".to_string(),
    ];
    if spec.controllers.iter().any(|name| name == "nodeipam") {
        flags.extend([
            "--allocate-node-cidrs".to_string(),
            format!("--cluster-cidr={}", spec.pod_cidrs),
            format!("--service-cluster-ip-range={}", spec.service_cidrs),
        ]);
    }
    flags
}
