//! Whether an archive could be restored: unpacked into a scratch folder, every hash compared, the ledger read through.

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

use super::archive::{self, Unpacked};
use super::error::{BackupResult, at};
use super::manifest::LEDGER;
use super::places::{Places, Schema};
use super::store::{self, UNFINISHED};

#[derive(Debug)]
pub(super) struct Verified {
    pub(super) unpacked: Unpacked,
    pub(super) ledger: Schema,
}

/// Errors with what is wrong; then a mark from earlier is taken from it.
pub(super) fn verify(places: &Places, archive: &Utf8Path, now: Timestamp) -> BackupResult<Verified> {
    let verified = look(places, archive);
    let ours = archive.parent() == Some(&places.backups);
    match &verified {
        Ok(verified) if ours => store::mark(archive, &verified.unpacked.archive, now)?,
        Err(super::error::BackupError::Damaged(_)) if ours => store::unmark(archive)?,
        _ => {}
    }
    verified
}

fn look(places: &Places, archive: &Utf8Path) -> BackupResult<Verified> {
    let scratch = scratch(places)?;
    let folder = Utf8Path::from_path(scratch.path()).expect("our own folders have UTF-8 names");
    let unpacked = archive::unpack(archive, folder)?;
    let ledger = places.check(&folder.join(LEDGER))?;
    Ok(Verified { unpacked, ledger })
}

/// Beside the backups, where there is room for them; of mode 0700 and gone when it is dropped.
fn scratch(places: &Places) -> BackupResult<tempfile::TempDir> {
    let elsewhere = Utf8PathBuf::from("/var/tmp");
    let folder = if places.backups.is_dir() { &places.backups } else { &elsewhere };
    tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(folder).map_err(at("could not write into", folder))
}
