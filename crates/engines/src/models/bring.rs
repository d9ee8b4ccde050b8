//! Copies files into the store, and looks at them again.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};

use super::{File, Flaw};

/// Read at once.
const PIECE: usize = 1 << 20;

/// The files at `from`, in `to`, by name. What `to` had before is gone. Folders below `from` are left out: engines read none.
pub(super) fn bring(from: &Utf8Path, to: &Utf8Path) -> io::Result<Vec<File>> {
    if to.exists() {
        fs_err::remove_dir_all(to)?;
    }
    fs_err::create_dir_all(to)?;
    let files = sources(from)?.into_iter().map(|(name, source)| copy(&source, &to.join(&name), name));
    let files = files.collect::<io::Result<Vec<File>>>()?;
    fs_err::File::open(to)?.sync_all()?;
    Ok(files)
}

/// Links are followed: a folder of a download cache has nothing else.
fn sources(from: &Utf8Path) -> io::Result<BTreeMap<String, Utf8PathBuf>> {
    let name_of = |path: &Utf8Path| path.file_name().map(str::to_owned).ok_or(io::ErrorKind::InvalidInput);
    if fs_err::metadata(from)?.is_file() {
        return Ok(BTreeMap::from([(name_of(from)?, from.to_owned())]));
    }
    let mut found = BTreeMap::new();
    for entry in fs_err::read_dir(from)? {
        let path = Utf8PathBuf::from_path_buf(entry?.path()).map_err(|_| io::ErrorKind::InvalidFilename)?;
        if fs_err::metadata(&path)?.is_file() {
            found.insert(name_of(&path)?, path);
        }
    }
    Ok(found)
}

fn copy(source: &Utf8Path, target: &Utf8Path, name: String) -> io::Result<File> {
    let mut target = fs_err::File::create(target)?;
    let (bytes, sha256) = digest(source, |piece| target.write_all(piece))?;
    target.sync_all()?;
    Ok(File { name, bytes, sha256 })
}

/// What is wrong with it, as it is now.
pub(super) fn flaw(path: &Utf8Path, file: &File) -> io::Result<Option<Flaw>> {
    let length = match fs_err::metadata(path) {
        Ok(about) => about.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(Flaw::Missing)),
        Err(e) => return Err(e),
    };
    if length != file.bytes {
        return Ok(Some(Flaw::Size { bytes: length }));
    }
    let (_, sha256) = digest(path, |_| Ok(()))?;
    Ok((sha256 != file.sha256).then_some(Flaw::Digest))
}

fn digest(path: &Utf8Path, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(u64, String)> {
    let mut file = fs_err::File::open(path)?;
    let (mut piece, mut bytes, mut hasher) = (vec![0; PIECE], 0, Sha256::new());
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok((bytes, hex::encode(hasher.finalize())));
        }
        each(&piece[..length])?;
        hasher.update(&piece[..length]);
        bytes += length as u64;
    }
}
