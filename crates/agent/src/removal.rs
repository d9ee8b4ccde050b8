//! Removing folders that foreign code has filled.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};

/// Whatever lies at `path`; nothing there is no error. Links are removed, never followed.
pub(crate) async fn remove(path: Utf8PathBuf) -> io::Result<()> {
    tokio::task::spawn_blocking(move || remove_now(&path)).await.map_err(io::Error::other)?
}

/// Not `remove_dir_all`: that descends by recursion with one descriptor per level, and a command may nest folders deeper than
/// the stack and the limit of descriptors reach. Here a folder that is not empty is moved to the top before it is looked into.
pub(crate) fn remove_now(top: &Utf8Path) -> io::Result<()> {
    let top = top.as_std_path();
    match fs_err::symlink_metadata(top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.is_dir() => {}
        Ok(_) => return fs_err::remove_file(top),
        Err(error) => return Err(error),
    }
    open_up(top)?;
    let mut folders = Vec::new();
    for entry in fs_err::read_dir(top)?.collect::<io::Result<Vec<_>>>()? {
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
            folders.push(entry.path());
        } else {
            fs_err::remove_file(entry.path())?;
        }
    }
    let mut names = (0_u64..).map(|number| top.join(format!(".removed-{number}")));
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs_err::remove_file(entry.path())?;
            } else if std::fs::remove_dir(entry.path()).is_err() {
                open_up(&entry.path())?;
                let free = names.by_ref().find(|name| name.symlink_metadata().is_err());
                let moved = free.ok_or_else(|| io::Error::from(io::ErrorKind::AlreadyExists))?;
                fs_err::rename(entry.path(), &moved)?;
                folders.push(moved);
            }
        }
        fs_err::remove_dir(&folder)?;
    }
    fs_err::remove_dir(top)
}

/// A build may have made folders that even their owner cannot write to.
fn open_up(folder: &Path) -> io::Result<()> {
    let mode = fs_err::symlink_metadata(folder)?.permissions().mode();
    if mode & 0o700 == 0o700 { Ok(()) } else { fs_err::set_permissions(folder, Permissions::from_mode(0o700)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deeper than any stack, and longer than any path.
    const LEVELS: u32 = 20_000;

    #[test]
    fn a_folder_of_any_depth_with_closed_parts_is_removed_and_a_link_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let home = Utf8Path::from_path(home.path()).unwrap();
        let (run, top, next) = (home.join("run"), home.join("run/top"), home.join("run/next"));
        fs_err::create_dir_all(run.join("closed/inner")).unwrap();
        fs_err::write(run.join("closed/inner/file"), "").unwrap();
        fs_err::set_permissions(run.join("closed/inner"), Permissions::from_mode(0o000)).unwrap();
        fs_err::set_permissions(run.join("closed"), Permissions::from_mode(0o500)).unwrap();
        fs_err::create_dir(run.join(".removed-0")).unwrap();
        fs_err::write(run.join(".removed-0/file"), "").unwrap();
        fs_err::write(home.join("outside"), "kept").unwrap();
        fs_err::os::unix::fs::symlink(home, run.join("link")).unwrap();
        fs_err::create_dir(&top).unwrap();
        for _ in 0..LEVELS {
            fs_err::create_dir(&next).unwrap();
            fs_err::rename(&top, next.join("top")).unwrap();
            fs_err::rename(&next, &top).unwrap();
        }
        remove_now(&run).unwrap();
        assert!(!run.exists());
        assert_eq!(fs_err::read_to_string(home.join("outside")).unwrap(), "kept");
        remove_now(&run).unwrap();
    }
}
