//! Versions of the CNI specification: those that we speak, and the VERSION command.

use std::fmt;

use serde::Deserialize;
use serde_json::json;

use crate::{Code, Error};

/// In their order. What came before 0.3.0 has no chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    /// CHECK.
    V0_4_0,
    /// Addresses no longer tell their family.
    V1_0_0,
    /// GC and STATUS; results tell MTUs and more of routes.
    V1_1_0,
}

impl Version {
    pub const ALL: [Version; 5] = [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
    pub const NEWEST: Version = Version::V1_1_0;

    pub fn text(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Of `cniVersion`; without it the configuration is of 0.1.0 (so says 0.2.0 of the specification).
    pub fn parse(text: Option<&str>) -> Result<Version, Error> {
        let text = text.filter(|text| !text.is_empty()).unwrap_or("0.1.0");
        Version::ALL.into_iter().find(|version| version.text() == text).ok_or_else(|| {
            let known: Vec<&str> = Version::ALL.map(Version::text).to_vec();
            Error::new(Code::IncompatibleVersion, format!("CNI version {text:?} is not supported"))
                .with(format!("supported: {}; set cniVersion of the network configuration to one", known.join(", ")))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    cni_version: String,
}

/// The answer to VERSION repeats the asker's version, if it has one; askers of 0.2.0 know no other.
pub fn answer(config: &[u8]) -> String {
    let asked = serde_json::from_slice::<Asked>(config).ok().map(|asked| asked.cni_version);
    let is_version = |text: &String| {
        !text.is_empty() && text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let version = asked.filter(is_version).unwrap_or_else(|| Version::NEWEST.text().to_owned());
    format!("{}\n", json!({ "cniVersion": version, "supportedVersions": Version::ALL.map(Version::text) }))
}
