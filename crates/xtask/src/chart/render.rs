//! Calls of helm, and what is left of a rendering when what differs each time is taken out.

use std::process::Command;

use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};

use super::SHORT_LIMIT;
use crate::process::{self, Stream};

/// The lowest of what the chart promises; nothing in it depends on the version.
const KUBERNETES: &str = "1.34.0";
/// What a cluster with everything has beside Kubernetes.
const APIS: &[&str] =
    &["cert-manager.io/v1", "gateway.networking.k8s.io/v1", "keda.sh/v1alpha1", "monitoring.coreos.com/v1"];

pub(super) struct Helm {
    program: Utf8PathBuf,
    /// Its own folders, so that nobody's home is read.
    home: Utf8PathBuf,
}

#[derive(Clone, Copy)]
pub(super) enum Apis {
    None,
    All,
}

impl Helm {
    pub(super) fn new(program: Utf8PathBuf, home: Utf8PathBuf) -> Self {
        Self { program, home }
    }

    pub(super) fn into_program(self) -> Utf8PathBuf {
        self.program
    }

    /// The manifests, hooks included, or why there are none.
    pub(super) fn template(
        &self,
        chart: &Utf8Path,
        values: &[Utf8PathBuf],
        apis: Apis,
    ) -> anyhow::Result<Result<String, String>> {
        let mut command = self.command(&["template", "fettle"], chart, values);
        command.args(["--namespace", "fettle"]);
        if let Apis::All = apis {
            for api in APIS {
                command.args(["--api-versions", api]);
            }
        }
        said(command)
    }

    /// The same where helm asks a cluster for what is there: at this address, without TLS.
    pub(super) fn template_asking(
        &self,
        chart: &Utf8Path,
        values: &[Utf8PathBuf],
        address: &str,
    ) -> anyhow::Result<Result<String, String>> {
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": {} }],
        });
        fs_err::write(&kubeconfig, text.to_string())?;
        let mut command = self.command(&["template", "fettle"], chart, values);
        command.args(["--namespace", "fettle", "--dry-run=server"]).env("KUBECONFIG", &kubeconfig);
        said(command)
    }

    pub(super) fn lint(&self, chart: &Utf8Path, values: &[Utf8PathBuf]) -> anyhow::Result<Result<String, String>> {
        let mut command = self.command(&["lint"], chart, values);
        command.arg("--strict");
        said(command)
    }

    fn command(&self, verb: &[&str], chart: &Utf8Path, values: &[Utf8PathBuf]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(verb).arg(chart).args(["--kube-version", KUBERNETES]);
        for file in values {
            command.arg("--values").arg(file);
        }
        for (name, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(name, self.home.join(folder));
        }
        command.env("KUBECONFIG", "/dev/null");
        command
    }
}

fn said(command: Command) -> anyhow::Result<Result<String, String>> {
    let (mut out, mut err) = (String::new(), String::new());
    let status = process::run_lines(command, SHORT_LIMIT, &mut |stream, line| {
        let text = match stream {
            Stream::Out => &mut out,
            Stream::Err => &mut err,
        };
        text.push_str(line);
        text.push('\n');
    })?;
    // lint tells on standard output.
    Ok(if status.success() { Ok(out) } else { Err(format!("{}{}", err, if err.is_empty() { &out } else { "" })) })
}

/// A rendering without what is new each time: generated keys, and sums of what others hold.
pub(super) fn settled(rendered: &str) -> String {
    let mut settled = String::new();
    for document in rendered.split_inclusive("\n---\n") {
        let is_secret = document.lines().any(|line| line == "kind: Secret");
        let mut in_data = false;
        for line in document.lines() {
            in_data = line == "stringData:" || (in_data && line.starts_with(' '));
            let kept = match line.split_once(": ") {
                Some((key, _)) if is_secret && in_data && !key.trim_start().starts_with('#') => {
                    format!("{key}: \"(made at the first install)\"")
                }
                Some((key, _)) if key.trim_start().starts_with("checksum/") => format!("{key}: \"(a sum)\""),
                _ => line.trim_end().to_owned(),
            };
            settled.push_str(&kept);
            settled.push('\n');
        }
    }
    settled
}

/// `line 12: …` of the first line that is another one.
pub(super) fn first_difference(before: &str, now: &str) -> Option<String> {
    let (mut before, mut now) = (before.lines(), now.lines());
    for number in 1.. {
        match (before.next(), now.next()) {
            (None, None) => return None,
            (old, new) if old == new => {}
            (old, new) => {
                let told = |line: Option<&str>| line.map_or("the end".to_owned(), |line| format!("`{}`", line.trim()));
                return Some(format!("line {number}: {} was {}", told(new), told(old)));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENDERED: &str = "\
---
kind: Secret
metadata:
  name: a
stringData:
  # For KEDA.
  host: \"amqp://x:y@z\"
---
kind: Deployment
spec:
  annotations:
    checksum/config: 0123
  host: kept
";

    #[test]
    fn generated_keys_and_sums_are_taken_out_and_nothing_else() {
        let settled = settled(RENDERED);
        assert!(!settled.contains("amqp") && !settled.contains("0123"), "{settled}");
        assert!(settled.contains("  host: kept\n") && settled.contains("  name: a\n"), "{settled}");
        assert!(settled.contains("  # For KEDA.\n"), "{settled}");
        assert_eq!(settled.lines().count(), RENDERED.lines().count());
    }

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some("line 2: `c` was `b`".to_owned()));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some("line 2: `b` was the end".to_owned()));
    }
}
