//! Makes an archive of what cannot be made again: the ledger and its blobs, configuration, receipt and secrets.
//!
//! Mirrors, workspaces, caches and prepared environments are not in it: they come back by themselves, from the forge and the
//! registries, and are many times larger. Models are neither.

use std::io::{Read as _, Seek as _};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_runtime::config::Config;
use fettle_runtime::environment::Environment;
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};

use super::archive::Writer;
use super::error::{BackupError, BackupResult, at};
use super::manifest::{ANSWERS, CONFIG, LEDGER, Manifest, Member, RECEIPT, SCHEMA, SECRETS, blob_digits};
use super::places::Places;
use super::secrets::{self, Lock, Secret};
use super::store;
use crate::host::sha256;

/// What lies in the data folder and is a secret.
const DATA_KEYS: [&str; 3] = ["admin.key", "secrets.key", "worker.key"];

pub(super) struct Wanted<'a> {
    pub(super) to: &'a Utf8Path,
    pub(super) version: &'a str,
    pub(super) now: Timestamp,
    /// None: secrets are left out, and that is told.
    pub(super) lock: Option<Lock>,
}

/// An archive that is on the disk.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) path: Utf8PathBuf,
    pub(super) archive: Member,
    pub(super) manifest: Manifest,
    /// Blobs of the store that do not hold what their name says: they are left out.
    pub(super) damaged: Vec<String>,
}

pub(super) fn create(places: &Places, wanted: Wanted<'_>) -> BackupResult<Made> {
    let path = wanted.to.join(store::name(wanted.version, wanted.now));
    if path.exists() {
        return Err(BackupError::Refused(format!("{path} is there already")));
    }
    let mut left_out = Vec::new();
    let mut damaged = Vec::new();
    let mut finished = None;
    store::place(&path, |file| {
        let seconds = u64::try_from(wanted.now.as_second()).unwrap_or(0);
        let out = std::io::BufWriter::new(file.try_clone()?);
        let mut writer = Writer::new(out, seconds)?;
        // The ledger first: a blob is on the disk before a row names it, so whatever this copy names is there afterwards.
        let done = ledger(places, wanted.to, &mut writer)
            .and_then(|()| blobs(places, &mut writer, &mut damaged))
            .and_then(|()| texts(places, &mut writer))
            .and_then(|()| lock_secrets(places, wanted.lock.as_ref(), &mut writer, &mut left_out));
        if let Err(error) = done {
            finished = Some(Err(error));
            return Err(std::io::Error::other("the archive could not be made"));
        }
        left_out.extend(damaged.iter().map(|name| format!("{name}, whose content is damaged")));
        let manifest = Manifest {
            schema: SCHEMA,
            version: wanted.version.to_owned(),
            created: wanted.now,
            left_out: std::mem::take(&mut left_out),
            members: writer.members().clone(),
        };
        let (out, archive) = writer.finish(|_| manifest.clone())?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        finished = Some(Ok((archive, manifest)));
        Ok(())
    })
    .or_else(|error| match finished {
        // Why it could not be made says more than that it was not placed.
        Some(Err(_)) => Ok(()),
        _ => Err(error),
    })?;
    let (archive, manifest) = finished.expect("it is either made, or an error was told")?;
    Ok(Made { path, archive, manifest, damaged })
}

type Out = Writer<std::io::BufWriter<std::fs::File>>;

fn ledger(places: &Places, scratch: &Utf8Path, out: &mut Out) -> BackupResult<()> {
    let mut copy = places.snapshot(scratch)?;
    let failed = || at("could not save", Utf8Path::new(LEDGER));
    let size = copy.metadata().map_err(failed())?.len();
    copy.rewind().map_err(failed())?;
    out.add(LEDGER, copy, size).map_err(failed())
}

/// The folder belongs to a service that reads what strangers send, so nothing in it may lead root elsewhere, and what a name
/// promises is compared with what is there.
fn blobs(places: &Places, out: &mut Out, damaged: &mut Vec<String>) -> BackupResult<()> {
    let root = places.ledger().join("blobs");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::DIRECTORY;
    let folder = match rustix::fs::open(root.as_std_path(), flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        folder => folder.map_err(|error| at("could not open", &root)(error.into()))?,
    };
    for above in names(&root)? {
        if above.len() != 2 {
            // `tmp` holds what is still being written, and no row names it.
            continue;
        }
        for below in names(&root.join(&above))? {
            let inside = format!("{above}/{below}");
            let Some(digits) = blob_digits(&format!("blobs/{inside}")) else { continue };
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let path = root.join(&inside);
            // One step at a time, none of them along a link. `openat2` would do it in one, and RestrictSUIDSGID= refuses it.
            let opened = rustix::fs::openat(&folder, above.as_str(), flags | OFlags::DIRECTORY, Mode::empty())
                .and_then(|above| rustix::fs::openat(above, below.as_str(), flags, Mode::empty()));
            let file = match opened {
                Ok(file) => std::fs::File::from(file),
                Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {
                    damaged.push(format!("blobs/{inside}"));
                    continue;
                }
                Err(error) => return Err(at("could not read", &path)(error.into())),
            };
            let limit = fettle_app::ports::ledger::MAX_BLOB_BYTES as u64;
            let mut content = Vec::new();
            file.take(limit + 1).read_to_end(&mut content).map_err(at("could not read", &path))?;
            if sha256(&content) != digits {
                damaged.push(format!("blobs/{inside}"));
                continue;
            }
            let size = content.len() as u64;
            out.add(&format!("blobs/{inside}"), content.as_slice(), size).map_err(at("could not save", &path))?;
        }
    }
    Ok(())
}

/// Sorted, so that the same store makes the same archive.
fn names(folder: &Utf8Path) -> BackupResult<Vec<String>> {
    let failed = || at("could not list", folder);
    let entries = folder.read_dir_utf8().map_err(failed())?;
    let names: std::io::Result<Vec<String>> = entries.map(|entry| Ok(entry?.file_name().to_owned())).collect();
    let mut names = names.map_err(failed())?;
    names.sort();
    Ok(names)
}

fn texts(places: &Places, out: &mut Out) -> BackupResult<()> {
    for (name, path) in [(CONFIG, &places.config), (ANSWERS, &places.answers), (RECEIPT, &places.receipt)] {
        let text = match fs_err::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.map_err(at("could not read", path))?,
        };
        out.add(name, text.as_slice(), text.len() as u64).map_err(at("could not save", path))?;
    }
    Ok(())
}

fn lock_secrets(places: &Places, lock: Option<&Lock>, out: &mut Out, left_out: &mut Vec<String>) -> BackupResult<()> {
    let Some(lock) = lock else {
        left_out.push("the secrets, since it is not said who may open them".to_owned());
        return Ok(());
    };
    let secrets = collect(places, left_out)?;
    let locked = secrets::lock(&secrets, lock)?;
    out.add(SECRETS, locked.as_slice(), locked.len() as u64).map_err(at("could not save", Utf8Path::new(SECRETS)))
}

/// All in the folder of secrets, what the configuration names below its own folder, and the keys of the data folder.
fn collect(places: &Places, left_out: &mut Vec<String>) -> BackupResult<Vec<Secret>> {
    let mut paths: Vec<Utf8PathBuf> = Vec::new();
    if places.secrets.is_dir() {
        paths.extend(names(&places.secrets)?.into_iter().map(|name| places.secrets.join(name)));
    }
    let text = fs_err::read_to_string(&places.config).unwrap_or_default();
    if let Ok(config) = Config::parse(CONFIG, &text, &Environment::default()) {
        paths.extend(config.secret_files().into_iter().map(|(_, file)| places.etc.join(file)));
    }
    paths.sort();
    paths.dedup();
    let mut found = Vec::new();
    for path in paths {
        match path.strip_prefix(&places.etc) {
            Ok(inside) => found.extend(secrets::read(&path, &format!("etc/{inside}"))?),
            // Where it lies is the operator's affair, and an archive writes nowhere but below our folders.
            Err(_) => left_out.push(format!("the secret {path}, which is not below {}", places.etc)),
        }
    }
    for key in DATA_KEYS {
        found.extend(secrets::read(&places.data.join(key), &format!("data/{key}"))?);
    }
    Ok(found)
}
