//! Where what is backed up lies, and the program that knows the ledger.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_runtime::config::Config;
use fettle_runtime::environment::Environment;
use serde::Deserialize;

use super::error::{BackupError, BackupResult, at};
use crate::child::{Child, User};
use crate::layout;

/// Copying or reading every page of a large ledger from a slow disk.
const LEDGER_LIMIT: Duration = Duration::from_secs(3600);
const KEPT_BYTES: u64 = 1 << 20;

/// Everything by its path, so that tests can have it elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// Configuration, answers and secrets.
    pub(super) etc: Utf8PathBuf,
    pub(super) config: Utf8PathBuf,
    pub(super) answers: Utf8PathBuf,
    pub(super) secrets: Utf8PathBuf,
    /// The dashboard's data folder.
    pub(super) data: Utf8PathBuf,
    /// Where it is when the configuration names none: the service's own.
    pub(super) default_data: Utf8PathBuf,
    pub(super) backups: Utf8PathBuf,
    pub(super) receipt: Utf8PathBuf,
    /// `bin/fettle` of the release that runs.
    pub(super) program: Utf8PathBuf,
}

impl Places {
    /// Of this host. The data folder is the configuration's, if it names one.
    pub(super) fn of_host(home: &Utf8Path, config: Option<&str>) -> Self {
        let places = Self {
            etc: layout::CONFIG_DIR.into(),
            config: layout::CONFIG.into(),
            answers: layout::ANSWERS.into(),
            secrets: layout::SECRETS.into(),
            data: Utf8Path::new(layout::STATE).join("dashboard"),
            default_data: Utf8Path::new(layout::STATE).join("dashboard"),
            backups: layout::BACKUPS.into(),
            receipt: home.join("receipt.json"),
            // On NixOS there is no such link, and the programs lie beside this one.
            program: crate::release::own()
                .unwrap_or_else(|| Utf8Path::new(layout::CURRENT).to_owned())
                .join("bin/fettle"),
        };
        places.of_config(config.unwrap_or_default())
    }

    /// The same with another configuration.
    pub(super) fn of_config(&self, text: &str) -> Self {
        let parsed = Config::parse(layout::CONFIG, text, &Environment::default());
        let named = parsed.ok().and_then(|config| config.store.data_dir);
        Self { data: named.unwrap_or_else(|| self.default_data.clone()), ..self.clone() }
    }

    /// Database, blobs and their lock: one folder, exchanged as a whole.
    pub(super) fn ledger(&self) -> Utf8PathBuf {
        self.data.join("ledger")
    }

    pub(super) fn database(&self) -> Utf8PathBuf {
        self.ledger().join("ledger.db")
    }

    /// Who runs the program: the ledger's owner when root asks, else whoever asks. A database opened by root would get files
    /// beside it that its owner could not write.
    fn user(&self) -> BackupResult<Option<User>> {
        let path = self.database();
        let found = fs_err::symlink_metadata(&path).map_err(at("could not look at", &path))?;
        let folder = fs_err::symlink_metadata(&self.data).map_err(at("could not look at", &self.data))?;
        // The folder is a service's: what it puts in the ledger's place must not decide as whom it is read.
        if !found.is_file() || found.uid() != folder.uid() {
            return Err(BackupError::Refused(format!(
                "{path} is no plain file of the user who owns {}; somebody has put it there",
                self.data
            )));
        }
        let root = rustix::process::geteuid().is_root() && found.uid() != 0;
        Ok(root.then(|| User { uid: found.uid(), gid: found.gid() }))
    }

    /// A copy of the ledger in a file without a name, made while the dashboard may be writing. It is written through the open
    /// file: the ledger's owner gets into no folder of ours.
    pub(super) fn snapshot(&self, folder: &Utf8Path) -> BackupResult<std::fs::File> {
        let file = tempfile::tempfile_in(folder).map_err(at("could not write into", folder))?;
        let out = file.try_clone().map_err(at("could not write into", folder))?;
        let arguments = ["snapshot", "--data-dir", self.data.as_str(), "--to", "-"];
        let ran = self.run(&arguments, self.user()?, None, Some(out))?;
        if !ran.ok {
            return Err(BackupError::Damaged(format!("the ledger could not be copied: {}", ran.err)));
        }
        Ok(file)
    }

    /// Has the program read every page of a copy. As nobody in particular: the copy may come from anywhere, and root is no
    /// reader for that.
    ///
    /// Errors with what is wrong with it.
    pub(super) fn check(&self, copy: &Utf8Path) -> BackupResult<Schema> {
        let file = fs_err::File::open(copy).map_err(at("could not read", copy))?;
        let user = self.user().or_else(|_| self.owner())?;
        let ran = self.run(&["check-snapshot", "--json", "-"], user, Some(file.into_parts().0), None)?;
        let said: Said = serde_json::from_str(&ran.out).map_err(|_| {
            BackupError::Damaged(format!("{} did not say whether the ledger is whole: {}", self.program, ran.err))
        })?;
        if said.ok && ran.ok {
            return Ok(said.snapshot);
        }
        Err(BackupError::Damaged(format!("its ledger is not whole: {}", said.snapshot.findings.join("; "))))
    }

    /// Whose the data folder is, where there is no ledger yet; without one, whoever asks.
    fn owner(&self) -> BackupResult<Option<User>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let owner = fs_err::metadata(&self.data).map(|found| User { uid: found.uid(), gid: found.gid() });
        Ok(owner.ok().filter(|user| user.uid != 0))
    }

    fn run(
        &self,
        arguments: &[&str],
        user: Option<User>,
        stdin: Option<std::fs::File>,
        stdout: Option<std::fs::File>,
    ) -> BackupResult<crate::child::Ran> {
        let program = &self.program;
        let child = Child { program, arguments, user, stdin, stdout, limit: LEDGER_LIMIT, kept_bytes: KEPT_BYTES };
        child.run().map_err(BackupError::Damaged)
    }
}

#[derive(Deserialize)]
struct Said {
    ok: bool,
    snapshot: Schema,
}

/// What the program says of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Schema {
    pub(super) newest_migration: i64,
    pub(super) unknown_migrations: Vec<i64>,
    findings: Vec<String>,
}
