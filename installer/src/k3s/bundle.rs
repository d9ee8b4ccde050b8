//! Where the files of a cluster come from, and which bytes they must be. A checksum is somebody's word: of the pins, or of the
//! operator. Without one a file is refused.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::answers::K3s;
use crate::host::{Entry, HostView, sha256};

pub const SUMS: &str = "SHA256SUMS";
pub const RELEASE: &str = "release";
pub const K3S: &str = "k3s/k3s";
pub const K3S_IMAGES: &str = "k3s/k3s-airgap-images.tar.zst";
pub const HELM: &str = "k3s/helm";
pub const OUR_CHART: &str = "charts/fettle.tgz";
pub const OUR_IMAGES: &str = "images/fettle.tar";
pub const OTHER_IMAGES: &str = "images/others.tar";

const PINS: &str = include_str!("../../pins.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pins {
    artifact: Vec<Pin>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    file: String,
    version: String,
    /// By the processor, as `uname -m` says it, or `any`; empty while nobody has verified it.
    sha256: BTreeMap<String, String>,
}

static PINNED: std::sync::LazyLock<Pins> =
    std::sync::LazyLock::new(|| toml::from_str(PINS).expect("the pins are read in a test"));

fn pin(file: &str) -> Option<&'static Pin> {
    PINNED.artifact.iter().find(|pin| pin.file == file)
}

/// The pinned version of a file; empty for what comes with a release of Fettle.
pub fn version(file: &str) -> String {
    pin(file).map(|pin| pin.version.clone()).unwrap_or_default()
}

/// Where a file is taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    File(Utf8PathBuf),
    Url(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// A file with the checksum that somebody vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    pub origin: Origin,
    pub sha256: String,
}

/// What is at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    source: String,
    /// What a bundle says of its own files; none for a mirror.
    sums: BTreeMap<String, String>,
    /// Of `SHA256SUMS` itself.
    sums_sha256: String,
}

impl Bundle {
    /// Errors with a sentence when there is no bundle, or none that can be read.
    pub fn read(host: &dyn HostView, source: &str) -> Result<Self, String> {
        if source.starts_with("https://") {
            return Ok(Self { source: source.to_owned(), sums: BTreeMap::new(), sums_sha256: String::new() });
        }
        if source.is_empty() {
            return Err("mode k3s installs from a bundle, a folder with k3s, helm, charts and images, and none is named: say where it \
                        is with --bundle FOLDER, or as k3s.source in the answers. Where there is none yet, make it of Fettle's sources: \
                        `cargo xtask release-tree`, `cargo xtask image`, then `cargo xtask bundle --from FOLDER --out BUNDLE` \
                        (installer/README.md, \"A cluster of its own\")"
                .to_owned());
        }
        let path = Utf8Path::new(source).join(SUMS);
        let bytes = host.read(&path).map_err(|error| format!("{source} is no bundle: {error}"))?;
        let text = String::from_utf8(bytes).map_err(|_| format!("{path} is no text"))?;
        let mut sums = BTreeMap::new();
        for line in text.lines() {
            let strange = || format!("{path}: the line {line:?} is not as sha256sum writes it");
            let (sum, file) = line.split_once("  ").ok_or_else(strange)?;
            let inside = Utf8Path::new(file).components().all(|part| matches!(part, camino::Utf8Component::Normal(_)));
            let is_sum = sum.len() == 64 && sum.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if !inside || !is_sum || file.is_empty() {
                return Err(strange());
            }
            sums.insert(file.to_owned(), sum.to_owned());
        }
        Ok(Self { source: source.to_owned(), sums, sums_sha256: sha256(text.as_bytes()) })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn has(&self, file: &str) -> bool {
        self.sums.contains_key(file)
    }

    /// Every file against its checksum, before the first one is copied; what a mirror brings is compared when it has come.
    ///
    /// Errors with a sentence about the first file that is another.
    pub fn verify(&self, host: &dyn HostView) -> Result<(), String> {
        for (file, wanted) in &self.sums {
            let path = Utf8Path::new(&self.source).join(file);
            match host.entry(&path).map_err(|error| error.to_string())? {
                Entry::File { sha256, .. } if sha256 == *wanted => {}
                _ => return Err(format!("{path} does not have the checksum that {SUMS} names; get the bundle again")),
            }
        }
        Ok(())
    }

    /// Whether the operator vouches for the bundle as a whole.
    ///
    /// Errors with a sentence when he means another one.
    pub fn vouched(&self, answers: &K3s) -> Result<bool, String> {
        match answers.sha256.get(SUMS) {
            Some(sums) if !self.sums.is_empty() && *sums != self.sums_sha256 => Err(format!(
                "{}/{SUMS} has the checksum {}, and k3s.sha256 of the answers says {sums}: it is another bundle, or a damaged one",
                self.source, self.sums_sha256
            )),
            Some(_) => Ok(!self.sums.is_empty()),
            None => Ok(false),
        }
    }

    /// A file with a checksum that the pins or the operator vouch for.
    ///
    /// Errors with a sentence that says what to do.
    pub fn artifact(&self, answers: &K3s, arch: &str, file: &str) -> Result<Artifact, String> {
        let pinned = pin(file).and_then(|pin| pin.sha256.get(arch).or_else(|| pin.sha256.get("any")).cloned());
        let vouched = self.vouched(answers)?;
        let said = self.sums.get(file);
        let is_mirror = self.source.starts_with("https://");
        if said.is_none() && !is_mirror {
            return Err(format!("the bundle {} does not hold {file}", self.source));
        }
        let trusted = answers.sha256.get(file).cloned().or(pinned).or_else(|| said.filter(|_| vouched).cloned());
        let Some(trusted) = trusted else {
            let whole = if is_mirror { "" } else { ", or that of SHA256SUMS for all of the bundle" };
            let sums = if is_mirror { String::new() } else { format!(" (here it is {})", self.sums_sha256) };
            return Err(format!(
                "nobody has verified the checksum of {file} {}: compare it with what its maker publishes and put it into \
                 [k3s.sha256] of the answers{whole}{sums}",
                version(file)
            ));
        };
        if said.is_some_and(|said| *said != trusted) {
            return Err(format!(
                "{file} of the bundle {} is not the one that is asked for: get the bundle again",
                self.source
            ));
        }
        let origin = if is_mirror {
            Origin::Url(format!("{}/{file}", self.source.trim_end_matches('/')))
        } else {
            Origin::File(Utf8Path::new(&self.source).join(file))
        };
        Ok(Artifact { origin, sha256: trusted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    fn bundle() -> (FakeHost, Bundle) {
        let mut host = FakeHost::fresh();
        host.put("/srv/bundle/k3s/k3s", "k3s", 0o755);
        host.put("/srv/bundle/SHA256SUMS", &format!("{}  k3s/k3s\n", sha256(b"k3s")), 0o644);
        let bundle = Bundle::read(&host, "/srv/bundle").unwrap();
        (host, bundle)
    }

    #[test]
    fn the_pins_can_be_read_and_name_no_address() {
        for file in [K3S, K3S_IMAGES, HELM, OTHER_IMAGES, "charts/keda.tgz", "charts/cert-manager.tgz"] {
            assert!(pin(file).is_some(), "{file}");
        }
        assert!(!PINS.contains("://"));
    }

    #[test]
    fn a_file_whose_checksum_nobody_vouches_for_is_refused_and_the_operator_can_vouch() {
        let (_, bundle) = bundle();
        let mut answers = K3s::default();
        let why = bundle.artifact(&answers, "x86_64", K3S).unwrap_err();
        assert!(why.contains("nobody has verified") && why.contains("[k3s.sha256]"), "{why}");
        for (file, sum) in [(K3S, sha256(b"k3s")), (SUMS, bundle.sums_sha256.clone())] {
            answers.sha256 = [(file.to_owned(), sum)].into();
            let artifact = bundle.artifact(&answers, "x86_64", K3S).unwrap();
            assert_eq!(
                artifact,
                Artifact { origin: Origin::File("/srv/bundle/k3s/k3s".into()), sha256: sha256(b"k3s") }
            );
        }
        for file in [K3S, SUMS] {
            answers.sha256 = [(file.to_owned(), sha256(b"another"))].into();
            assert!(bundle.artifact(&answers, "x86_64", K3S).is_err(), "{file}");
        }
        assert!(bundle.artifact(&answers, "x86_64", HELM).is_err());
    }

    #[test]
    fn what_a_mirror_brings_is_named_below_its_address_and_vouched_for_by_the_operator_alone() {
        let mirror = Bundle::read(&FakeHost::fresh(), "https://mirror.internal/fettle/").unwrap();
        let mut answers = K3s::default();
        assert!(mirror.artifact(&answers, "x86_64", K3S).unwrap_err().contains("nobody has verified"));
        answers.sha256 = [(K3S.to_owned(), sha256(b"k3s"))].into();
        let origin = mirror.artifact(&answers, "x86_64", K3S).unwrap().origin;
        assert_eq!(origin, Origin::Url("https://mirror.internal/fettle/k3s/k3s".to_owned()));
    }

    #[test]
    fn one_flipped_byte_is_found_by_name_and_sums_that_lead_out_of_the_bundle_are_refused() {
        let (mut host, bundle) = bundle();
        assert_eq!(bundle.verify(&host), Ok(()));
        host.put("/srv/bundle/k3s/k3s", "k3t", 0o755);
        assert!(bundle.verify(&host).unwrap_err().contains("/srv/bundle/k3s/k3s"));
        host.put("/srv/bundle/SHA256SUMS", &format!("{}  ../k3s\n", sha256(b"k3s")), 0o644);
        assert!(Bundle::read(&host, "/srv/bundle").unwrap_err().contains("../k3s"));
    }
}
