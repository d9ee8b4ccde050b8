//! Brings a backup back. Everything is laid out beside what it will replace while the services still run; then a journaled run
//! exchanges it by renaming, so that a crash at any instant leaves the old or the new, and `resume` goes on.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};

use super::archive::{self, make_folders};
use super::error::{BackupError, BackupResult, at};
use super::manifest::{ANSWERS, CONFIG, LEDGER, Manifest, SECRETS};
use super::places::Places;
use super::secrets::{self, Key};
use crate::action::Action;
use crate::answers::Answers;
use crate::child::User;
use crate::host::sha256;
use crate::journal::Step;
use crate::layout::{BACKUP_TIMER, SOCKETS, STAGING, TARGET};
use crate::plan::Settled;

/// A backup, laid out to be exchanged.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) manifest: Manifest,
    pub(super) swaps: Vec<Action>,
    /// The configuration that will be there.
    pub(super) config: String,
    /// The answers that will be there. Secrets that they would copy from elsewhere are in the backup already.
    pub(super) answers: Option<Answers>,
    /// Secrets that will be there.
    pub(super) secrets: BTreeSet<Utf8PathBuf>,
}

/// What an archive must be for this release: of the same major version, and not of a newer release.
///
/// Errors with what to do.
pub(super) fn fits(backup: &str, running: &str) -> BackupResult<()> {
    let parse = |version: &str| -> Option<[u64; 3]> {
        let plain = version.split(['-', '+']).next()?;
        let parts: Vec<u64> = plain.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let (Some(from), Some(to)) = (parse(backup), parse(running)) else {
        return Err(BackupError::Refused(format!(
            "the backup is of version `{backup}`, which is none that {running} knows"
        )));
    };
    if from[0] != to[0] || from > to {
        return Err(BackupError::Refused(format!(
            "the backup is of Fettle {backup}, and {running} is installed; install {backup} first, restore, and upgrade then"
        )));
    }
    Ok(())
}

/// Unpacks, checks and lays out. Nothing that is in use is touched; what an earlier try has left is removed.
pub(super) fn stage(places: &Places, archive: &Utf8Path, key: Option<&Key>, running: &str) -> BackupResult<Staged> {
    let above = places.data.parent().unwrap_or(Utf8Path::new("/"));
    let owner = owner(&places.data)?;
    refuse_other_disk(above, &places.data)?;
    let [data, etc] = [Staging::make(above)?, Staging::make(&places.etc)?];
    let unpacked = data.new.join("unpacked");
    make_folders(&unpacked).map_err(at("could not make", &unpacked))?;
    let manifest = archive::unpack(archive, &unpacked)?.manifest;
    fits(&manifest.version, running)?;
    places.check(&unpacked.join(LEDGER))?;
    let text = |name: &str| -> BackupResult<Option<String>> {
        if !manifest.members.contains_key(name) {
            return Ok(None);
        }
        let path = unpacked.join(name);
        fs_err::read_to_string(&path).map(Some).map_err(at("could not read", &path))
    };
    let mut swaps = vec![ledger(places, &data, &unpacked, owner)?];
    let now = fs_err::read_to_string(&places.config).unwrap_or_default();
    let config = text(CONFIG)?.unwrap_or_else(|| now.clone());
    let theirs = places.of_config(&config);
    if theirs.data != places.data {
        return Err(BackupError::Refused(format!(
            "the backup keeps its data in {}, and this host in {}; set store.data_dir in {} to the same, apply, and restore then",
            theirs.data, places.data, places.config
        )));
    }
    if config != now {
        let as_now = fs_err::metadata(&places.config).map_err(at("could not look at", &places.config))?;
        let file = File { mode: as_now.mode() & 0o777, owner: Some(User { uid: as_now.uid(), gid: as_now.gid() }) };
        swaps.push(etc.put(&places.config, config.as_bytes(), &file)?);
    }
    let mut there = BTreeSet::new();
    if let (true, Some(key)) = (manifest.has_secrets(), key) {
        let path = unpacked.join(SECRETS);
        let locked = fs_err::read(&path).map_err(at("could not read", &path))?;
        for secret in secrets::unlock(&locked, key)? {
            let (staging, target, owner) = match secret.name.split_once('/') {
                Some(("data", name)) => (&data, places.data.join(name), Some(owner)),
                Some((_, inside)) => (&etc, places.etc.join(inside), None),
                None => continue,
            };
            if !target.parent().is_some_and(|folder| folder.is_dir() && !folder.is_symlink()) {
                return Err(BackupError::Refused(format!(
                    "the folder of {target} is not there; make it, and restore then"
                )));
            }
            if fs_err::read(&target).is_ok_and(|now| now == secret.value) {
                there.insert(target);
                continue;
            }
            swaps.push(staging.put(&target, &secret.value, &File { mode: 0o600, owner })?);
            there.insert(target);
        }
    }
    let answers = match text(ANSWERS)? {
        None => None,
        Some(text) => {
            let mut answers = Answers::parse(&text)
                .map_err(|why| BackupError::Damaged(format!("its {ANSWERS} is not understood: {why}")))?;
            answers.secrets.clear();
            Some(answers)
        }
    };
    fs_err::remove_dir_all(&unpacked).map_err(at("could not remove", &unpacked))?;
    Ok(Staged { manifest, swaps, config, answers, secrets: there })
}

/// Removes what was laid out and will not be exchanged. What cannot be removed is by the next restoration.
pub(super) fn discard(places: &Places) {
    for above in places.data.parent().into_iter().chain([places.etc.as_path()]) {
        let _ = fs_err::remove_dir_all(above.join(STAGING));
    }
}

/// Stops, exchanges, brings units to what the configuration asks for now, starts, and waits until all is well. Every step before
/// the gate can be taken back.
pub(super) fn steps(
    staged: &Staged,
    settled: Settled,
    planned: &[Action],
    running: &[String],
    check: Action,
) -> Vec<Step> {
    let mut steps = vec![Step::Do { action: Action::Stop { units: stop_order(running) } }];
    steps.extend(staged.swaps.iter().cloned().map(|action| Step::Do { action }));
    // What was put in the place of the configuration and of secrets is what the services get now.
    let is_exchanged = |action: &&Action| {
        let key = action.key();
        key.starts_with("secret:") || key == format!("file:{CONFIG}")
    };
    steps.extend(planned.iter().filter(is_exchanged).cloned().map(|action| Step::Do { action }));
    // What starts or checks comes after, for all units; and releases are no affair of a restoration.
    let own = |step: &Step| {
        !is_exchanged(&step.action())
            && !matches!(
                step,
                Step::Do {
                    action: Action::Start { .. }
                        | Action::Restart { .. }
                        | Action::CheckConfig { .. }
                        | Action::HealthGate { .. }
                        | Action::Smoke { .. }
                } | Step::Undo { action: Action::Release { .. }, .. }
            )
    };
    steps.extend(settled.steps.into_iter().filter(own));
    steps.push(Step::Do { action: check });
    let is_last =
        |action: &&Action| matches!(action, Action::Start { .. } | Action::HealthGate { .. } | Action::Smoke { .. });
    let last = planned.iter().filter(is_last);
    steps.extend(last.cloned().map(|action| Step::Do { action }));
    steps
}

/// First what would start the others again: the target and the timer, then the sockets, at which a connection starts the
/// dashboard.
fn stop_order(running: &[String]) -> Vec<String> {
    let rank = |unit: &String| match unit.as_str() {
        TARGET => 0,
        BACKUP_TIMER => 1,
        name if SOCKETS.contains(&name) => 2,
        name if name.contains('@') => 3,
        _ => 4,
    };
    let mut units = running.to_vec();
    units.sort_by_key(rank);
    units
}

/// The folder that will hold the ledger, as its owner has it.
fn ledger(places: &Places, staging: &Staging, unpacked: &Utf8Path, owner: User) -> BackupResult<Action> {
    let folder = staging.new.join("ledger");
    make_folders(&folder).map_err(at("could not make", &folder))?;
    for name in [LEDGER, "blobs"] {
        let from = unpacked.join(name);
        if from.exists() {
            fs_err::rename(&from, folder.join(name)).map_err(at("could not rename", &from))?;
        }
    }
    give(&folder, owner)?;
    Ok(Action::Swap { from: folder, path: places.ledger(), aside: staging.old.join("ledger") })
}

/// Our own folder of plain files and folders, all new.
fn give(path: &Utf8Path, owner: User) -> BackupResult<()> {
    if path.is_dir() {
        for entry in path.read_dir_utf8().map_err(at("could not list", path))? {
            give(entry.map_err(at("could not list", path))?.path(), owner)?;
        }
        fs_err::File::open(path).and_then(|folder| folder.sync_all()).map_err(at("could not sync", path))?;
    }
    own(path, owner)
}

fn own(path: &Utf8Path, owner: User) -> BackupResult<()> {
    fs_err::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
        .map_err(at("could not change the owner of", path))
}

fn owner(data: &Utf8Path) -> BackupResult<User> {
    match fs_err::symlink_metadata(data) {
        Ok(found) if found.is_dir() => Ok(User { uid: found.uid(), gid: found.gid() }),
        Ok(_) => Err(BackupError::Refused(format!("{data} is no folder"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(BackupError::Refused(format!(
            "the data folder {data} is not there; `fettle-installer apply` first, which makes it by starting the dashboard"
        ))),
        Err(error) => Err(at("could not look at", data)(error)),
    }
}

/// A rename does not lead from one file system to another.
fn refuse_other_disk(above: &Utf8Path, data: &Utf8Path) -> BackupResult<()> {
    let device =
        |path: &Utf8Path| fs_err::metadata(path).map(|found| found.dev()).map_err(at("could not look at", path));
    if device(above)? == device(data)? {
        return Ok(());
    }
    Err(BackupError::Refused(format!(
        "{data} is a file system of its own, in which nothing can be exchanged by renaming; mount it at {above}, or set store.data_dir to a folder inside of it"
    )))
}

struct Staging {
    new: Utf8PathBuf,
    old: Utf8PathBuf,
}

struct File {
    mode: u32,
    /// None: whoever makes it.
    owner: Option<User>,
}

impl Staging {
    fn make(above: &Utf8Path) -> BackupResult<Self> {
        let root = above.join(STAGING);
        match fs_err::remove_dir_all(&root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(at("could not remove", &root)(error));
            }
            _ => {}
        }
        let [new, old] = ["new", "old"].map(|name| root.join(name));
        for folder in [&new, &old] {
            make_folders(folder).map_err(at("could not make", folder))?;
        }
        Ok(Self { new, old })
    }

    /// Lays out a file that will be at `target`. It is the caller's alone until it has its owner, and gets wider rights last.
    fn put(&self, target: &Utf8Path, content: &[u8], file: &File) -> BackupResult<Action> {
        use std::io::Write as _;
        use std::os::unix::fs::PermissionsExt as _;
        let name = sha256(target.as_str().as_bytes())[..16].to_owned();
        let path = self.new.join(&name);
        let failed = || at("could not write", &path);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut out = fs_err::OpenOptions::from_options(options).open(&path).map_err(failed())?;
        out.write_all(content).map_err(failed())?;
        if let Some(owner) = file.owner {
            own(&path, owner)?;
        }
        out.set_permissions(std::fs::Permissions::from_mode(file.mode)).map_err(failed())?;
        out.sync_all().map_err(failed())?;
        Ok(Action::Swap { from: path, path: target.to_owned(), aside: self.old.join(name) })
    }
}
