//! Brings files into the store, and looks at them again.

use std::io::{self, Read, Seek, SeekFrom, Write};

use camino::Utf8Path;
use fettle_placement::quantity::Bytes;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use sha2::{Digest, Sha256};

use super::{File, Flaw, Offered, Progress, Source, StoreError, Watch, name, weights};
use crate::record::make_private;

/// Read at once.
const PIECE: usize = 1 << 20;
/// The largest published models have fewer than two hundred.
pub(super) const MAX_FILES: usize = 1_000;
/// A trillion parameters of two bytes.
pub(super) const MAX_MODEL: Bytes = Bytes::gib(2 << 10);
/// Left free: a ledger and logs that share the disk must not stop because of a model.
const KEPT_FREE: Bytes = Bytes::gib(4);

/// Whether names and number of files are those of a model, whatever is in them.
pub fn check_names(offered: &[Offered]) -> Result<(), StoreError> {
    if offered.len() > MAX_FILES {
        return Err(StoreError::TooManyFiles { files: offered.len() });
    }
    Ok(offered.iter().try_for_each(|file| name::file_name(&file.name))?)
}

/// What is offered, by name, if it can be a model.
pub(super) fn checked(mut offered: Vec<Offered>) -> Result<Vec<Offered>, StoreError> {
    check_names(&offered)?;
    offered.sort_by(|a, b| a.name.cmp(&b.name));
    offered.dedup_by(|a, b| a.name == b.name);
    if !offered.iter().any(|file| weights::is_weights(&file.name)) {
        return Err(StoreError::NoWeights);
    }
    match total(&offered) {
        bytes if bytes > MAX_MODEL => Err(StoreError::TooLarge { bytes }),
        _ => Ok(offered),
    }
}

/// All of `offered` in `to`. Of what was there, the beginning of a file whose digest is known is kept.
pub(super) fn bring(
    source: &dyn Source,
    offered: &[Offered],
    to: &Utf8Path,
    watch: Watch<'_>,
) -> Result<Vec<File>, StoreError> {
    make_private(to)?;
    clear(offered, to)?;
    room(offered, to)?;
    let (total, mut done, mut files) = (total(offered).get(), 0, Vec::new());
    for file in offered {
        let see = &mut |bytes| watch(Progress { file: &file.name, done: done + bytes, total });
        files.push(whole(source, file, to, see)?);
        done += file.bytes;
    }
    fs_err::File::open(to)?.sync_all()?;
    Ok(files)
}

fn total(offered: &[Offered]) -> Bytes {
    Bytes::new(offered.iter().map(|file| file.bytes).fold(0, u64::saturating_add))
}

/// Removes what is no beginning of a file that is offered.
fn clear(offered: &[Offered], to: &Utf8Path) -> io::Result<()> {
    let goes_on = |name: &str, bytes: u64| {
        offered.iter().any(|file| file.name == name && file.sha256.is_some() && bytes <= file.bytes)
    };
    for entry in to.read_dir_utf8()? {
        let entry = entry?;
        let about = entry.path().symlink_metadata()?;
        if about.is_dir() {
            fs_err::remove_dir_all(entry.path())?;
        } else if !about.is_file() || !goes_on(entry.file_name(), about.len()) {
            fs_err::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn room(offered: &[Offered], to: &Utf8Path) -> Result<(), StoreError> {
    let disk = rustix::fs::statvfs(to.as_std_path()).map_err(io::Error::from)?;
    let free = Bytes::new(disk.f_bavail.saturating_mul(disk.f_frsize));
    let missing = total(offered).get().saturating_sub(bytes_in(to)?.get());
    let needed = Bytes::new(missing) + KEPT_FREE;
    if missing > 0 && needed > free {
        return Err(StoreError::NoRoom { folder: to.to_owned(), needed, free });
    }
    Ok(())
}

pub(super) fn bytes_in(folder: &Utf8Path) -> io::Result<Bytes> {
    let entries = match folder.read_dir_utf8() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Bytes::ZERO),
        entries => entries?,
    };
    let lengths = entries.map(|entry| Ok(Bytes::new(entry?.path().symlink_metadata()?.len())));
    lengths.collect::<io::Result<Vec<Bytes>>>().map(|all| all.into_iter().sum())
}

/// One file, with the digest that was told of it, if one was.
fn whole(source: &dyn Source, offered: &Offered, to: &Utf8Path, see: &mut dyn FnMut(u64)) -> Result<File, StoreError> {
    let path = to.join(&offered.name);
    let file = |sha256| File { name: offered.name.clone(), bytes: offered.bytes, sha256 };
    let mut from = path.symlink_metadata().map_or(0, |about| about.len());
    loop {
        let (began, sha256) = copy(source, offered, &path, from, see)?;
        match &offered.sha256 {
            Some(wanted) if *wanted != sha256 => {
                fs_err::remove_file(&path)?;
                if began == 0 {
                    return Err(StoreError::Changed { file: offered.name.clone() });
                }
                // What an interrupted one left was of something else.
                from = 0;
            }
            _ => return Ok(file(sha256)),
        }
    }
}

/// Where it began to ask the source, and the digest of the whole.
fn copy(
    source: &dyn Source,
    offered: &Offered,
    path: &Utf8Path,
    from: u64,
    see: &mut dyn FnMut(u64),
) -> Result<(u64, String), StoreError> {
    let mut options = fs_err::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    let mut target = options.open(path)?;
    let failed = |source| StoreError::Source { file: offered.name.clone(), source };
    let mut content = Content { hasher: Sha256::new(), bytes: 0 };
    if from == offered.bytes && from > 0 {
        content.read(&mut target, see, |_| Ok(()))?;
        return Ok((from, content.digest()));
    }
    let opened = source.open(offered, from).map_err(failed)?;
    let began = if opened.from == from { from } else { 0 };
    target.set_len(began)?;
    content.read(&mut (&mut target).take(began), see, |_| Ok(()))?;
    target.seek(SeekFrom::Start(began))?;
    // One byte more than there should be is enough to know.
    let mut rest = opened.bytes.take((offered.bytes - began).saturating_add(1));
    let mut written = Ok(());
    let read = content.read(&mut rest, see, |piece| {
        written = target.write_all(piece);
        if written.is_ok() { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
    });
    written?;
    target.sync_all()?;
    read.map_err(|error| failed(error.into()))?;
    let name = || offered.name.clone();
    match content.bytes {
        got if got > offered.bytes => {
            fs_err::remove_file(path)?;
            Err(StoreError::Long { file: name(), bytes: offered.bytes })
        }
        got if got < offered.bytes => Err(StoreError::Short { file: name(), got, bytes: offered.bytes }),
        _ => Ok((began, content.digest())),
    }
}

/// What has been read so far.
struct Content {
    hasher: Sha256,
    bytes: u64,
}

impl Content {
    fn read(
        &mut self,
        from: &mut dyn Read,
        see: &mut dyn FnMut(u64),
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            let length = from.read(&mut piece)?;
            if length == 0 {
                return Ok(());
            }
            each(&piece[..length])?;
            self.hasher.update(&piece[..length]);
            self.bytes += length as u64;
            see(self.bytes);
        }
    }

    fn digest(self) -> String {
        hex::encode(self.hasher.finalize())
    }
}

/// What is wrong with it, as it is now.
pub(super) fn flaw(path: &Utf8Path, file: &File, see: &mut dyn FnMut(u64)) -> io::Result<Option<Flaw>> {
    let length = match fs_err::metadata(path) {
        Ok(about) => about.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(Flaw::Missing)),
        Err(e) => return Err(e),
    };
    if length != file.bytes {
        return Ok(Some(Flaw::Size { bytes: length }));
    }
    let mut content = Content { hasher: Sha256::new(), bytes: 0 };
    content.read(&mut fs_err::File::open(path)?, see, |_| Ok(()))?;
    Ok((content.digest() != file.sha256).then_some(Flaw::Digest))
}
