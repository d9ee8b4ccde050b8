//! What goes into a bundle. Everything passes the redaction once more as a whole, whatever it is.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_domain::secret::KnownSecrets;
use fettle_runtime::config::Config;
use fettle_runtime::environment::Environment;

use super::redact::{anonymise, configuration, redact};
use super::{Part, units};
use crate::action::Action;
use crate::answers::Answers;
use crate::child::Child;
use crate::commands::observe;
use crate::guarded;
use crate::host::{HostView, RealHost};
use crate::layout;
use crate::receipt::Receipt;
use crate::report;

/// Of one file, command or answer.
const PART_BYTES: usize = 4 << 20;
/// Of each unit.
const JOURNAL_LINES: &str = "2000";
const LIMIT: Duration = Duration::from_secs(30);
/// A secret file is small, as the processes limit it.
const SECRET_BYTES: usize = 64 << 10;

/// What is looked at.
pub(super) trait Look {
    /// What a program of the system says; a sentence when it cannot be run.
    fn said(&self, program: &str, arguments: &[&str]) -> String;
    /// A file's bytes; none when it cannot be read.
    fn file(&self, path: &Utf8Path) -> Option<Vec<u8>>;
    /// Names in a folder.
    fn names(&self, folder: &Utf8Path) -> Vec<String>;
    /// What is known of the host, as `detect` shows it.
    fn detected(&self) -> String;
    /// The body that a server on this host answers.
    fn answer(&self, url: &str) -> String;
}

/// More than the newest part of a log that is kept.
const FILE_BYTES: u64 = 64 << 20;

pub(super) struct RealLook<'a> {
    pub(super) host: &'a RealHost,
}

impl Look for RealLook<'_> {
    fn said(&self, program: &str, arguments: &[&str]) -> String {
        let kept_bytes = PART_BYTES as u64;
        let program = Utf8Path::new(program);
        let ran = Child { program, arguments, user: None, stdin: None, stdout: None, limit: LIMIT, kept_bytes }.run();
        ran.map_or_else(|why| why, |ran| format!("{}{}", ran.out, ran.err))
    }

    fn file(&self, path: &Utf8Path) -> Option<Vec<u8>> {
        // What a service owns may lead elsewhere, or never answer.
        if path.starts_with(layout::STATE) || path.starts_with(layout::LOGS) {
            return guarded::read(path, FILE_BYTES).ok();
        }
        self.host.read(path).ok()
    }

    fn names(&self, folder: &Utf8Path) -> Vec<String> {
        self.host.list(folder).unwrap_or_default()
    }

    fn detected(&self) -> String {
        let mut out = Vec::new();
        let show = report::Show { json: true, colour: false, brief: false };
        // What could not be shown is missing, and the bundle is no worse for it.
        let _ = report::detect(&mut out, &observe(), show);
        String::from_utf8_lossy(&out).into_owned()
    }

    fn answer(&self, url: &str) -> String {
        match self.host.get(url) {
            Ok(answer) => format!("HTTP {}\n{}", answer.status, answer.body),
            Err(error) => format!("{url} does not answer: {error}\n"),
        }
    }
}

/// Where things are.
pub(super) struct Paths {
    pub(super) etc: Utf8PathBuf,
    pub(super) data: Utf8PathBuf,
    pub(super) logs: Utf8PathBuf,
    pub(super) receipt: Utf8PathBuf,
    pub(super) journal: Utf8PathBuf,
}

impl Paths {
    pub(super) fn of_host(home: &Utf8Path) -> Self {
        Self {
            etc: layout::CONFIG_DIR.into(),
            data: Utf8Path::new(layout::STATE).join("dashboard"),
            logs: layout::LOGS.into(),
            receipt: home.join("receipt.json"),
            journal: home.join("journal.jsonl"),
        }
    }
}

/// Everything, without secrets.
///
/// Errors when a secret file is there and cannot be read: then it could not be told from anything else.
pub(super) fn collect(look: &dyn Look, paths: &Paths, anonymous: bool) -> Result<Vec<Part>, String> {
    let text = |path: &Utf8Path| look.file(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let config_text = text(&paths.etc.join("fettle.toml")).unwrap_or_default();
    let config = Config::parse("fettle.toml", &config_text, &Environment::default()).unwrap_or_default();
    let known = known(look, paths, &config)?;
    let answers_text = text(&paths.etc.join("installer.toml")).unwrap_or_default();
    let workers = Answers::parse(&answers_text).map_or(1, |answers| answers.workers);

    let mut parts = Vec::new();
    let mut add = |name: &str, text: String| {
        let end = text.floor_char_boundary(text.len().min(PART_BYTES));
        let mut redacted = redact(&known, &text[..end]);
        if anonymous {
            redacted = anonymise(&redacted, &names_of_host(look));
        }
        parts.push(Part { name: name.to_owned(), text: redacted });
    };
    for (name, program, arguments) in [
        ("facts/uname.txt", "uname", &["-a"][..]),
        ("facts/systemd.txt", "systemctl", &["--version"]),
        ("facts/disks.txt", "df", &["-hT"]),
        ("facts/memory.txt", "free", &["-m"]),
        ("facts/gpus.txt", "nvidia-smi", &["-L"]),
        ("versions.txt", "/opt/fettle/current/bin/fettle", &["--version"]),
    ] {
        add(name, look.said(program, arguments));
    }
    add("facts/detected.jsonl", look.detected());
    add("facts/os-release.txt", text("/etc/os-release".into()).unwrap_or_default());
    add("config/fettle.toml", configuration(&known, &config_text));
    add("config/installer.toml", configuration(&known, &answers_text));
    add("receipt.json", receipt(&known, text(&paths.receipt)));
    add("journal-of-the-installer.txt", steps(text(&paths.journal)));
    for unit in units(workers) {
        let shown = "--property=Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,MemoryCurrent,UnitFileState,DropInPaths";
        add(&format!("units/{unit}.txt"), look.said("systemctl", &["show", shown, &unit]));
        if unit.ends_with(".service") {
            add(&format!("exposure/{unit}.txt"), look.said("systemd-analyze", &["security", "--no-pager", &unit]));
            let journal = ["-u", &unit, "-n", JOURNAL_LINES, "--no-pager", "-o", "short-iso"];
            add(&format!("logs/{unit}.txt"), look.said("journalctl", &journal));
        }
    }
    add("logs/installer.jsonl", text(&paths.logs.join("installer.jsonl")).unwrap_or_default());
    let dashboard = format!("http://{}", layout::local(&config.server.internal_listen));
    let workers = (1..=workers).map(|instance| (format!("worker-{instance:02}"), layout::worker_address(instance)));
    let inference = ("inference".to_owned(), layout::INFERENCE_ADDRESS.to_owned());
    for (name, at) in [("dashboard".to_owned(), dashboard), inference].into_iter().chain(workers) {
        for page in ["healthz", "metrics"] {
            add(&format!("{page}/{name}.txt"), look.answer(&format!("{at}/{page}")));
        }
    }
    Ok(parts)
}

/// The only use of secret files: their values are looked for in everything else.
fn known(look: &dyn Look, paths: &Paths, config: &Config) -> Result<KnownSecrets, String> {
    let folder = paths.etc.join("secrets");
    let mut files: Vec<Utf8PathBuf> = look.names(&folder).into_iter().map(|name| folder.join(name)).collect();
    files.extend(config.secret_files().into_iter().map(|(_, file)| paths.etc.join(file)));
    files.extend(["admin.key", "secrets.key", "worker.key"].map(|key| paths.data.join(key)));
    files.sort();
    files.dedup();
    let mut values = Vec::new();
    for file in files {
        match look.file(&file) {
            Some(bytes) if bytes.len() <= SECRET_BYTES => {
                values.push((file.to_string(), String::from_utf8_lossy(&bytes).into_owned()));
            }
            Some(_) => return Err(format!("{file} is too large for a secret; move it out of the folder of secrets")),
            None if look
                .names(file.parent().unwrap_or(Utf8Path::new("/")))
                .iter()
                .any(|name| Some(name.as_str()) == file.file_name()) =>
            {
                return Err(format!("{file} cannot be read, so its value could not be taken out; run this as root"));
            }
            None => {}
        }
    }
    Ok(KnownSecrets::new(values.iter().map(|(name, value)| (name.as_str(), value.as_str()))))
}

/// Files that the installer has written are not repeated: some of them are configuration.
fn receipt(known: &KnownSecrets, text: Option<String>) -> String {
    let Some(text) = text else { return "nothing is installed\n".to_owned() };
    let Ok(mut receipt) = serde_json::from_str::<Receipt>(&text) else { return "it cannot be read\n".to_owned() };
    for recorded in &mut receipt.actions {
        if let crate::receipt::Recorded::Known(entry) = recorded
            && let Action::File { text, path, .. } = &mut entry.action
        {
            let is_ours = path.starts_with(layout::UNITS);
            *text = if is_ours { redact(known, text) } else { format!("[{} bytes]", text.len()) };
        }
    }
    serde_json::to_string_pretty(&receipt).unwrap_or_default()
}

/// Which steps the last run has taken, without what it wrote.
fn steps(text: Option<String>) -> String {
    let records = text.unwrap_or_default();
    let line = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(format!("{} {} {}\n", record["record"], record["step"], record["reason"]))
    };
    records.lines().filter_map(line).collect()
}

fn names_of_host(look: &dyn Look) -> Vec<(String, &'static str)> {
    let name = look.file("/etc/hostname".into()).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let id = look.file("/etc/machine-id".into()).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    // A short name would be found within other words.
    let named = [(name, "[host]"), (id, "[machine]")].into_iter();
    named.filter_map(|(name, stands_for)| Some((name.filter(|name| name.len() > 3)?, stands_for))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const CANARY: &str = "canary-3e8c91aa4d";

    /// A host whose every word holds a secret somewhere.
    struct Leaky {
        files: BTreeMap<Utf8PathBuf, String>,
    }

    impl Look for Leaky {
        fn said(&self, program: &str, arguments: &[&str]) -> String {
            format!(
                "{program} {}\nstarted with Environment=FETTLE_KEY={CANARY}\nfine\nx\u{2060}{}\n",
                arguments.join(" "),
                hex::encode(CANARY)
            )
        }

        fn file(&self, path: &Utf8Path) -> Option<Vec<u8>> {
            self.files.get(path).map(|text| text.clone().into_bytes())
        }

        fn names(&self, folder: &Utf8Path) -> Vec<String> {
            let inside = self.files.keys().filter(|path| path.parent() == Some(folder));
            inside.filter_map(|path| path.file_name()).map(str::to_owned).collect()
        }

        fn detected(&self) -> String {
            format!("{{\"kernel\": \"6.8\"}}\n{{\"proxy\": \"http://me:{CANARY}@proxy:3128\"}}\n")
        }

        fn answer(&self, url: &str) -> String {
            format!("HTTP 200\n# {url}?token={CANARY}\nfettle_up 1\n")
        }
    }

    fn paths() -> Paths {
        Paths::of_host("/var/lib/fettle-installer".into())
    }

    fn leaky() -> Leaky {
        let receipt = format!(
            r#"{{"schema": 1, "note": "{CANARY}", "actions": [{{"id": "file:/etc/fettle/installer.toml", "action": {{"type": "file", "path": "/etc/fettle/installer.toml", "attrs": {{"mode": 420, "owner": {{"user": "root", "group": "root"}}}}, "text": "{CANARY}", "keeping": "kept", "why": "x"}}, "before": {{"of": "nothing"}}, "after": {{"of": "nothing"}}}}]}}"#
        );
        let files = [
            ("/etc/fettle/secrets/worker.key", format!("{CANARY}\n")),
            (
                "/etc/fettle/fettle.toml",
                format!(
                    "# once {CANARY}\n[forge]\nlabel = \"fettle\"\n[auth]\nworker_key_file = \"secrets/worker.key\"\n"
                ),
            ),
            ("/etc/fettle/installer.toml", format!("# {CANARY}\nworkers = 2\n")),
            ("/var/lib/fettle-installer/receipt.json", receipt),
            (
                "/var/lib/fettle-installer/journal.jsonl",
                format!("{{\"record\":\"turn\",\"step\":3,\"reason\":\"{CANARY}\"}}\n"),
            ),
            ("/var/log/fettle/installer.jsonl", format!("{{\"detail\": \"{CANARY}\"}}\n{{\"detail\": \"fine\"}}\n")),
            ("/etc/hostname", "node-17\n".to_owned()),
        ];
        Leaky { files: files.into_iter().map(|(path, text)| (path.into(), text)).collect() }
    }

    #[test]
    fn a_secret_planted_everywhere_is_nowhere_in_the_bundle_and_the_rest_is_there() {
        let parts = collect(&leaky(), &paths(), false).unwrap();
        let packed = super::super::pack(&parts, 0).unwrap();
        let whole = zstd::decode_all(packed.as_slice()).unwrap();
        for needle in [CANARY.to_owned(), hex::encode(CANARY)] {
            assert!(!whole.windows(needle.len()).any(|window| window == needle.as_bytes()), "{needle}");
        }
        let text = |name: &str| &parts.iter().find(|part| part.name == name).unwrap_or_else(|| panic!("{name}")).text;
        assert!(text("config/fettle.toml").contains("worker_key_file = \"secrets/worker.key\""));
        assert!(text("logs/installer.jsonl").contains("fine"));
        assert!(text("logs/fettle-worker@02.service.txt").contains("fine"));
        assert!(text("metrics/dashboard.txt").contains("fettle_up 1"));
        assert!(text("receipt.json").contains("bytes]"));
        assert!(parts.iter().all(|part| !part.name.contains("secrets")), "no secret file is a part");
    }

    #[test]
    fn a_secret_that_cannot_be_read_stops_it() {
        struct Closed(Leaky);
        impl Look for Closed {
            fn said(&self, program: &str, arguments: &[&str]) -> String {
                self.0.said(program, arguments)
            }
            fn file(&self, path: &Utf8Path) -> Option<Vec<u8>> {
                (!path.as_str().contains("secrets")).then(|| self.0.file(path)).flatten()
            }
            fn names(&self, folder: &Utf8Path) -> Vec<String> {
                self.0.names(folder)
            }
            fn detected(&self) -> String {
                self.0.detected()
            }
            fn answer(&self, url: &str) -> String {
                self.0.answer(url)
            }
        }
        let refused = collect(&Closed(leaky()), &paths(), false).unwrap_err();
        assert!(refused.contains("worker.key") && refused.contains("root"), "{refused}");
    }

    #[test]
    fn an_anonymous_bundle_does_not_name_the_host() {
        let mut host = leaky();
        host.files.insert("/var/log/fettle/installer.jsonl".into(), "node-17 at 10.9.8.7\n".to_owned());
        let parts = collect(&host, &paths(), true).unwrap();
        assert!(parts.iter().all(|part| !part.text.contains("node-17") && !part.text.contains("10.9.8.7")));
    }
}
