//! What the operator decides: a small TOML file, or nothing at all.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::layout::MAX_WORKERS;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answers {
    /// How many workers run: as many issues are worked on at a time. 1 to 99.
    pub workers: u8,
    /// Whether this host has the inference service: the gateway to all models, which workers then ask, and the engines of models
    /// that run here. Without a GPU it serves models elsewhere, and what runs on the CPU.
    pub inference: bool,
    /// Becomes `fettle.toml`, when there is none yet; sections and keys as there.
    pub settings: toml::Table,
    /// Secrets by file name, as `settings` names them: where each is now. They are copied, never shown.
    pub secrets: BTreeMap<String, SecretFrom>,
    /// Units of something that Fettle takes the place of: stopped and disabled while Fettle is installed, and as they were
    /// again when it is removed.
    pub retire: Vec<String>,
    /// How long the services may take to become ready, in seconds.
    pub gate_timeout: u32,
    /// Whether an installation and an upgrade count only when the smoke list passes too.
    pub smoke: bool,
    /// Whether `fettle` and `fettle-installer` are on everybody's search path, as links in /usr/local/bin.
    pub commands: bool,
    /// How backups are made; `true` and `false` alone say whether there is one every night.
    #[serde(deserialize_with = "backup")]
    pub backup: Backup,
    /// Of mode k3s alone.
    #[serde(skip_serializing_if = "is_default")]
    pub k3s: K3s,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a cluster is made of, and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct K3s {
    /// Where the files are: a bundle's folder, or an `https://` address below which they lie as in a bundle.
    pub source: String,
    /// The address of a cluster that this host joins, such as `https://10.0.0.1:6443`; without one it becomes a cluster.
    pub join: String,
    /// The name by which people reach Fettle; without one there is no way in from outside the cluster.
    pub host: String,
    /// `self_signed` (cert-manager makes a certificate that GitHub refuses), `none`, or the name of a ClusterIssuer.
    pub tls: String,
    /// Further names and addresses of the cluster's own API.
    pub tls_san: Vec<String>,
    /// Networks of pods and services; no route of the host may lead into them.
    pub cluster_cidr: String,
    pub service_cidr: String,
    /// Certificates by themselves.
    pub cert_manager: bool,
    /// A worker for each Run that waits; else as many as `workers` says run all the time.
    pub keda: bool,
    /// The chart's own Redis.
    pub redis: bool,
    /// GPUs that the inference service takes on each node that has some; 0: all models are elsewhere.
    pub gpus: u32,
    /// A registry that has all images; without one they come out of the bundle.
    pub registry: String,
    /// Checksums that the operator vouches for, by file. That of `SHA256SUMS` stands for all that a bundle holds.
    pub sha256: BTreeMap<String, String>,
    /// Values of the chart, over those that follow from the rest.
    pub values: toml::Table,
}

impl Default for K3s {
    fn default() -> Self {
        Self {
            source: String::new(),
            join: String::new(),
            host: String::new(),
            tls: "self_signed".to_owned(),
            tls_san: Vec::new(),
            cluster_cidr: "10.42.0.0/16".to_owned(),
            service_cidr: "10.43.0.0/16".to_owned(),
            cert_manager: true,
            keda: true,
            redis: false,
            gpus: 0,
            registry: String::new(),
            sha256: BTreeMap::new(),
            values: toml::Table::new(),
        }
    }
}

impl K3s {
    /// Errors with a sentence about the first value that cannot be.
    fn check(&self) -> Result<(), String> {
        for (key, cidr) in [("cluster_cidr", &self.cluster_cidr), ("service_cidr", &self.service_cidr)] {
            if crate::k3s::network::Net::parse(cidr).is_none() {
                return Err(format!("k3s.{key}: `{cidr}` is no IPv4 network; write it as 10.42.0.0/16"));
            }
        }
        let names = [("host", &self.host), ("tls", &self.tls), ("registry", &self.registry)];
        let sans = self.tls_san.iter().map(|san| ("tls_san", san));
        if let Some((key, name)) = names.into_iter().chain(sans).find(|(_, name)| !is_host_name(name)) {
            return Err(format!("k3s.{key}: {name:?} is no name"));
        }
        for (file, sha256) in &self.sha256 {
            if sha256.len() != 64 || !sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(format!("k3s.sha256: that of `{file}` is not 64 hexadecimal digits in lower case"));
            }
        }
        let source = self.source.as_str();
        if !(source.is_empty() || source.starts_with('/') || source.starts_with("https://")) {
            return Err(format!("k3s.source: `{source}` is neither an absolute path nor an https:// address"));
        }
        // Answers, plans and logs tell addresses as they are.
        for (key, address) in [("source", source), ("join", self.join.as_str())] {
            if address.starts_with("https://") && address.contains(['@', '?', '#']) {
                return Err(format!(
                    "k3s.{key}: an address with a user, a password, a query or a fragment is not taken: others can read it"
                ));
            }
        }
        if !self.join.is_empty() && !self.join.starts_with("https://") {
            return Err(format!("k3s.join: `{}` is no https:// address", self.join));
        }
        Ok(())
    }
}

/// Letters, digits, dots, hyphens, underscores; a port is fine.
fn is_host_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte)) && !name.starts_with('-')
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SecretFrom {
    /// The whole content of a file.
    File(Utf8PathBuf),
    /// One variable in a file as systemd's `EnvironmentFile=` reads it.
    Variable(VariableOf),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariableOf {
    pub file: Utf8PathBuf,
    pub variable: String,
}

impl SecretFrom {
    pub fn file(&self) -> &Utf8Path {
        match self {
            Self::File(file) | Self::Variable(VariableOf { file, .. }) => file,
        }
    }
}

impl std::fmt::Display for SecretFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Variable(VariableOf { file, variable }) => write!(f, "{variable} in {file}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// A backup every night.
    pub nightly: bool,
    /// Who can open the secrets in a backup: age recipients (`age1…`), as `age-keygen` shows them. Without one, secrets are in
    /// no backup. Keep the keys that belong to them on another machine.
    pub recipients: Vec<String>,
    /// How many backups are kept, and the last verified one besides. At least 1.
    pub keep: usize,
}

impl Default for Backup {
    fn default() -> Self {
        Self { nightly: true, recipients: Vec::new(), keep: 7 }
    }
}

fn backup<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Backup, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Nightly(bool),
        Whole(Backup),
    }
    Ok(match Said::deserialize(deserializer)? {
        Said::Nightly(nightly) => Backup { nightly, ..Backup::default() },
        Said::Whole(backup) => backup,
    })
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            workers: 1,
            inference: true,
            settings: toml::Table::new(),
            secrets: BTreeMap::new(),
            retire: Vec::new(),
            gate_timeout: 60,
            smoke: true,
            commands: true,
            backup: Backup::default(),
            k3s: K3s::default(),
        }
    }
}

impl Answers {
    /// Errors with a sentence that names the line or the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let answers: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if !(1..=MAX_WORKERS).contains(&answers.workers) {
            return Err(format!("workers: {} is not between 1 and {MAX_WORKERS}", answers.workers));
        }
        if answers.gate_timeout == 0 {
            return Err("gate_timeout: 0 s is no time in which a service could start".to_owned());
        }
        if answers.backup.keep == 0 {
            return Err(
                "backup.keep: 0 would keep no backup; write backup.nightly = false to have none made".to_owned()
            );
        }
        for recipient in &answers.backup.recipients {
            let parsed: Result<age::x25519::Recipient, _> = recipient.trim().parse();
            parsed.map_err(|why| {
                format!("backup.recipients: `{recipient}` is no age recipient ({why}); one begins with age1")
            })?;
        }
        let strange = answers.secrets.iter().find(|(name, from)| !is_secret_name(name) || !from.file().is_absolute());
        if let Some((name, _)) = strange {
            // The place is not repeated: whoever mistakes it for the value has written the secret there.
            return Err(format!(
                "secrets: `{}` must be a file name of letters, digits, `.`, `-` and `_`, and its place an absolute path",
                name.escape_debug()
            ));
        }
        if let Some(unit) = answers.retire.iter().find(|unit| !is_retirable(unit)) {
            return Err(format!(
                "retire: `{unit}` is not a unit of something else; write its whole name, as in `aiagent.service`"
            ));
        }
        answers.k3s.check()?;
        Ok(answers)
    }
}

/// A file name that means the same in a path and in a line of a unit, whatever it was made of.
pub(crate) fn is_secret_name(name: &str) -> bool {
    const LONGEST: usize = 64;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    plain && (1..=LONGEST).contains(&name.len()) && !name.starts_with('.')
}

/// A unit's whole name, of nothing that is Fettle's.
fn is_retirable(unit: &str) -> bool {
    const KINDS: [&str; 4] = [".service", ".socket", ".timer", ".target"];
    let plain = unit.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@:\\".contains(&byte));
    let named = KINDS.iter().any(|kind| unit.strip_suffix(kind).is_some_and(|stem| !stem.is_empty()));
    plain && named && !unit.starts_with(['-', '.']) && !unit.starts_with("fettle")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_a_complete_answer_and_nonsense_is_refused_by_name() {
        assert_eq!(Answers::parse("").unwrap(), Answers::default());
        for (text, named) in [
            ("workers = 0", "workers"),
            ("workers = 100", "99"),
            ("wrokers = 2", "wrokers"),
            ("gate_timeout = 0", "gate_timeout"),
            ("[secrets]\n\"../x\" = \"/srv/x\"", "../x"),
            ("[secrets]\nx = \"root/x\"", "absolute path"),
            ("[secrets]\n\"x\\nUser=root\" = \"/srv/x\"", "letters, digits"),
            ("[secrets]\n\"x%n\" = \"/srv/x\"", "x%n"),
            ("[secrets]\nx = { file = \"x\", variable = \"X\" }", "absolute"),
            ("retire = [\"sshd\"]", "`sshd`"),
            ("retire = [\"--now.service\"]", "`--now.service`"),
            ("retire = [\"fettle-dashboard.service\"]", "`fettle-dashboard.service`"),
            ("[backup]\nkeep = 0", "backup.keep"),
            ("[backup]\nrecipients = [\"age1x\"]", "`age1x`"),
            ("[backup]\nnightli = false", "backup"),
            ("[k3s]\ncluster_cidr = \"10.42.0.0\"", "k3s.cluster_cidr"),
            ("[k3s]\nhost = \"a b\"", "k3s.host"),
            ("[k3s]\nsource = \"bundle\"", "k3s.source"),
            ("[k3s]\nsource = \"https://me:word@mirror.example/k3s\"", "k3s.source"),
            ("[k3s]\njoin = \"https://one.example:6443?token=word\"", "k3s.join"),
            ("[k3s.sha256]\n\"k3s/k3s\" = \"ABC\"", "k3s/k3s"),
        ] {
            assert!(Answers::parse(text).unwrap_err().contains(named), "{text}");
        }
    }

    #[test]
    fn whether_there_are_backups_can_be_said_alone_and_what_is_written_is_read_again() {
        for (text, backup) in [
            ("backup = false", Backup { nightly: false, ..Backup::default() }),
            ("[backup]\nkeep = 3", Backup { keep: 3, ..Backup::default() }),
        ] {
            let answers = Answers::parse(text).unwrap();
            assert_eq!(answers.backup, backup, "{text}");
            assert_eq!(Answers::parse(&toml::to_string_pretty(&answers).unwrap()).unwrap(), answers);
        }
    }
}
