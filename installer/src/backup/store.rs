//! The folder of backups: their names, which of them were verified, and which may go.

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::{BackupResult, at};
use super::manifest::Member;

const PREFIX: &str = "fettle-backup-";
const SUFFIX: &str = ".tar.zst";
/// Beside an archive, once it was verified.
const MARK: &str = ".verified";
/// The instant in a name: it sorts as it passes.
const INSTANT: &str = "%Y%m%dT%H%M%SZ";
/// Of a backup that is being written, or whose writing was cut short.
pub(super) const UNFINISHED: &str = ".fettle-backup-";

/// An archive in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) created: Timestamp,
    pub(super) size_bytes: u64,
    pub(super) verified: Option<Timestamp>,
}

/// What a verification found, for the archive that it was made of.
#[derive(Serialize, Deserialize)]
struct Mark {
    verified: Timestamp,
    size: u64,
    sha256: String,
}

pub(super) fn name(version: &str, created: Timestamp) -> String {
    format!("{PREFIX}{version}-{}{SUFFIX}", created.strftime(INSTANT))
}

/// Version and instant.
fn parse(name: &str) -> Option<(String, Timestamp)> {
    let (version, instant) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.rsplit_once('-')?;
    let created = jiff::civil::DateTime::strptime(INSTANT, instant).ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    (!version.is_empty() && !version.contains('/')).then(|| (version.to_owned(), created.timestamp()))
}

fn mark_of(archive: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{archive}{MARK}"))
}

/// Newest first.
pub(super) fn list(folder: &Utf8Path) -> BackupResult<Vec<Kept>> {
    let mut kept = Vec::new();
    let entries = match folder.read_dir_utf8() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(kept),
        entries => entries.map_err(at("could not list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(at("could not list", folder))?;
        let Some((version, created)) = parse(entry.file_name()) else { continue };
        let found = entry.metadata().map_err(at("could not look at", entry.path()))?;
        // A mark of another size was of another archive; one that cannot be read is none.
        let mark = fs_err::read(mark_of(entry.path())).ok().and_then(|text| serde_json::from_slice::<Mark>(&text).ok());
        let verified = mark.filter(|mark| mark.size == found.len()).map(|mark| mark.verified);
        let name = entry.file_name().to_owned();
        kept.push(Kept { name, version, created, size_bytes: found.len(), verified });
    }
    kept.sort_by(|one, other| (other.created, &other.name).cmp(&(one.created, &one.name)));
    Ok(kept)
}

/// Notes that `archive` was verified.
pub(super) fn mark(archive: &Utf8Path, of: &Member, now: Timestamp) -> BackupResult<()> {
    let mark = Mark { verified: now, size: of.size, sha256: of.sha256.clone() };
    let text = serde_json::to_vec(&mark).expect("a mark is plain data");
    place(&mark_of(archive), |file| std::io::Write::write_all(file, &text))
}

/// Makes or replaces a file of mode 0600, whole or not at all.
pub(super) fn place(
    path: &Utf8Path,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> BackupResult<()> {
    let folder = path.parent().filter(|folder| *folder != "").unwrap_or(Utf8Path::new("."));
    let failed = || at("could not write", path);
    let mut new = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder).map_err(failed())?;
    write(new.as_file_mut()).and_then(|()| new.as_file().sync_all()).map_err(failed())?;
    new.persist(path).map_err(|error| failed()(error.error))?;
    fs_err::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed())
}

/// What it said before is not true any more.
pub(super) fn unmark(archive: &Utf8Path) -> BackupResult<()> {
    remove(&mark_of(archive))
}

/// Those that may go, of a list that is newest first: all but the newest `keep`, and never the last that was verified.
pub(super) fn surplus(kept: &[Kept], keep: usize) -> Vec<&Kept> {
    let sure = kept.iter().position(|one| one.verified.is_some());
    let old = kept.iter().enumerate().skip(keep.max(1));
    old.filter(|(place, _)| Some(*place) != sure).map(|(_, one)| one).collect()
}

/// Removes what is surplus, and gives their names.
pub(super) fn prune(folder: &Utf8Path, keep: usize) -> BackupResult<Vec<String>> {
    let kept = list(folder)?;
    let surplus = surplus(&kept, keep);
    for one in &surplus {
        let archive = folder.join(&one.name);
        // The mark first: killed in between, an archive without one is no worse than before.
        unmark(&archive)?;
        remove(&archive)?;
    }
    Ok(surplus.into_iter().map(|one| one.name.clone()).collect())
}

/// Removes what a backup that was cut short has left. Nobody else may be writing one.
pub(super) fn clear_unfinished(folder: &Utf8Path) -> BackupResult<()> {
    for entry in folder.read_dir_utf8().map_err(at("could not list", folder))? {
        let entry = entry.map_err(at("could not list", folder))?;
        if entry.file_name().starts_with(UNFINISHED) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => {
                    fs_err::remove_dir_all(entry.path()).map_err(at("could not remove", entry.path()))?;
                }
                _ => remove(entry.path())?,
            }
        }
    }
    Ok(())
}

fn remove(path: &Utf8Path) -> BackupResult<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(at("could not remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(day: i64, verified: bool) -> Kept {
        let created = Timestamp::from_second(day * 86_400).unwrap();
        let name = name("0.1.0", created);
        Kept { name, version: "0.1.0".to_owned(), created, size_bytes: 1, verified: verified.then_some(created) }
    }

    #[test]
    fn a_name_tells_version_and_instant_and_other_files_are_none_of_ours() {
        let created: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
        let name = name("0.2.0-rc.1", created);
        assert_eq!(name, "fettle-backup-0.2.0-rc.1-20260304T050607Z.tar.zst");
        assert_eq!(parse(&name), Some(("0.2.0-rc.1".to_owned(), created)));
        for other in [
            "fettle-backup-0.1.0-20260304T050607Z.tar.zst.verified",
            "fettle-backup-.tar.zst",
            "fettle-backup-0.1.0-20261304T050607Z.tar.zst",
            ".fettle-backup-abc",
            "lock",
            "notes.txt",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn pruning_keeps_the_newest_and_the_last_verified_whatever_there_is(verified in prop::collection::vec(any::<bool>(), 0..20), keep in 0usize..10) {
            let all: Vec<Kept> =
                verified.iter().enumerate().map(|(age, verified)| kept(1000 - age as i64, *verified)).collect();
            let gone: Vec<&str> = surplus(&all, keep).iter().map(|one| one.name.as_str()).collect();
            let stays: Vec<&Kept> = all.iter().filter(|one| !gone.contains(&one.name.as_str())).collect();
            prop_assert!(all.iter().take(keep.max(1)).all(|one| stays.contains(&one)));
            prop_assert!(stays.len() <= keep.max(1) + 1);
            let newest_verified = all.iter().find(|one| one.verified.is_some());
            prop_assert!(newest_verified.is_none_or(|one| stays.contains(&one)));
        }
    }

    #[test]
    fn pruning_takes_marks_along_and_leaves_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        for day in 1..=4 {
            let archive = root.join(kept(day, false).name);
            fs_err::write(&archive, "x").unwrap();
            let mark = Mark { verified: Timestamp::UNIX_EPOCH, size: 1, sha256: String::new() };
            if day == 2 {
                fs_err::write(mark_of(&archive), serde_json::to_vec(&mark).unwrap()).unwrap();
            }
            if day == 3 {
                // Of an archive that has been replaced since.
                let mark = Mark { size: 2, ..mark };
                fs_err::write(mark_of(&archive), serde_json::to_vec(&mark).unwrap()).unwrap();
            }
        }
        fs_err::write(root.join("notes.txt"), "mine").unwrap();
        fs_err::write(root.join(".fettle-backup-abc"), "half").unwrap();
        let shown: Vec<bool> = list(root).unwrap().iter().map(|one| one.verified.is_some()).collect();
        assert_eq!(shown, [false, false, true, false]);
        assert_eq!(prune(root, 1).unwrap(), [kept(3, false).name, kept(1, false).name]);
        clear_unfinished(root).unwrap();
        let mut left: Vec<String> = root.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
        left.sort();
        let verified = kept(2, false).name;
        assert_eq!(left, [verified.clone(), format!("{verified}{MARK}"), kept(4, false).name, "notes.txt".to_owned()]);
    }
}
