//! Keys, certificates and tokens of a control plane. Made once per folder, by the openssl program.

use std::{
    fs::{self, File},
    io::Read,
    net::IpAddr,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::spec::{AGENT_USER, ApiSpec};
use crate::{lab::first_address, process};

/// The host, as a virtual machine with QEMU's user-mode network sees it.
const HOST_OF_A_GUEST: &str = "10.0.2.2";

/// Into `folder`: ca.crt ca.key server.crt server.key sa.key, tokens.csv, admin.token, agent.token.
pub(super) fn create(folder: &Path, spec: &ApiSpec) -> Result<()> {
    if !folder.join("ca.crt").exists() {
        // Not genpkey: kube-apiserver looks for a SEC 1 key, not for PKCS #8.
        openssl(folder, "ecparam -name prime256v1 -genkey -noout -out sa.key")?;
        openssl(
            folder,
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=test-ca",
        )?;
    }
    // Anew each time: another run in this folder may serve on another address.
    let names = alternative_names(spec)?;
    openssl(
        folder,
        &format!(
            "req -x509 -CA ca.crt -CAkey ca.key -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key \
             -out server.crt -days 30 -subj /CN=kube-apiserver -addext basicConstraints=critical,CA:FALSE \
             -addext extendedKeyUsage=serverAuth -addext subjectAltName={names}"
        ),
    )?;
    if !folder.join("tokens.csv").exists() {
        let (admin, agent) = (token()?, token()?);
        let groups = "system:serviceaccounts,system:serviceaccounts:kube-system";
        let table = format!("{admin},admin,admin,system:masters\n{agent},{AGENT_USER},agent,\"{groups}\"\n");
        for (file, text) in [("admin.token", &admin), ("agent.token", &agent), ("tokens.csv", &table)] {
            fs::write(folder.join(file), text).with_context(|| format!("writing {file}"))?;
        }
    }
    Ok(())
}

/// Everything by which a client may call the server.
fn alternative_names(spec: &ApiSpec) -> Result<String> {
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(|name| format!("DNS:{name}"))
        .into();
    let mut addresses: Vec<IpAddr> = vec![[127, 0, 0, 1].into(), HOST_OF_A_GUEST.parse()?, spec.address];
    for cidr in &spec.service_cidrs {
        let cidr: IpNet = cidr.parse().with_context(|| format!("service CIDR {cidr}"))?;
        addresses.push(first_address(&cidr));
    }
    addresses.sort();
    addresses.dedup();
    names.extend(addresses.iter().map(|address| format!("IP:{address}")));
    Ok(names.join(","))
}

fn openssl(folder: &Path, arguments: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(arguments.split_whitespace());
    process::output(command).map(drop)
}

/// 128 random bits in hexadecimal.
pub(super) fn token() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).context("random bits")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
