//! Keys, tokens and kubeconfigs of one control plane.
//!
//! Two certificates by the `openssl` program: an authority and the server's. Users are told apart by static tokens.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::ApiSpec;

/// Name and groups of each kubeconfig's user, as kube-apiserver's token file wants them.
const USERS: [(&str, &str, &str); 2] = [
    ("admin", "admin", "system:masters"),
    (
        "agent",
        "system:serviceaccount:kube-system:kube-router",
        "system:serviceaccounts,system:serviceaccounts:kube-system",
    ),
];

pub(super) fn create(dir: &Path, spec: &ApiSpec) -> Result<()> {
    certificates(dir, spec)?;
    let mut tokens = String::new();
    for (file, user, groups) in USERS {
        let token = token()?;
        tokens += &format!("{token},{user},{file},\"{groups}\"\n");
        write_secret(&dir.join(format!("{file}.kubeconfig")), &kubeconfig(dir, spec, &token))?;
    }
    write_secret(&dir.join("tokens.csv"), &tokens)
}

fn kubeconfig(dir: &Path, spec: &ApiSpec, token: &str) -> String {
    let server = std::net::SocketAddr::new(spec.address, spec.port);
    let authority = dir.join("ca.crt").display().to_string();
    format!(
        "apiVersion: v1\nkind: Config\n\
         clusters: [{{name: test, cluster: {{server: \"https://{server}\", certificate-authority: \"{authority}\"}}}}]\n\
         users: [{{name: user, user: {{token: \"{token}\"}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: user}}}}]\n\
         current-context: test\n"
    )
}

fn certificates(dir: &Path, spec: &ApiSpec) -> Result<()> {
    // 10.0.2.2 is this machine as seen from a virtual one.
    let names = format!("DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.0.2.2,IP:{}", spec.address);
    let config = format!(
        "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = kube-router-tests\n\
         [ca]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,digitalSignature\n\
         subjectKeyIdentifier = hash\n\
         [server]\nbasicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n\
         extendedKeyUsage = serverAuth\nsubjectAltName = {names}\n"
    );
    fs::write(dir.join("openssl.cnf"), config)?;
    certificate(dir, "ca", &["-subj", "/CN=test-authority"])?;
    certificate(dir, "server", &["-subj", "/CN=kube-apiserver", "-CA", "ca.crt", "-CAkey", "ca.key"])
}

/// `NAME.key` and `NAME.crt` with the extensions of the configuration's section `NAME`.
fn certificate(dir: &Path, name: &str, more: &[&str]) -> Result<()> {
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    let mut openssl = Command::new("openssl");
    openssl.current_dir(dir).stdin(Stdio::null());
    openssl.args(["req", "-x509", "-config", "openssl.cnf", "-extensions", name, "-days", "30", "-nodes"]);
    openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", &key, "-out", &certificate]);
    let output = openssl.args(more).output().context("cannot start openssl (package openssl)")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
