//! The file itself: plain files in tar, compressed with zstd. Written by us, read from anywhere.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;

use aws_lc_rs::digest::{Context, SHA256};
use camino::{Utf8Path, Utf8PathBuf};

use super::error::{BackupError, BackupResult, at};
use super::manifest::{LEDGER, MANIFEST, Manifest, Member, Name, blob_digits};

/// Fast, and near what higher levels reach on SQLite pages and text.
const LEVEL: i32 = 3;
const MODE: u32 = 0o600;
/// Blobs of years; far more than these are an attack on our memory.
const MAX_MEMBERS: usize = 2_000_000;
/// The most an archive may unpack to, whatever the disk has room for.
const MAX_BYTES: u64 = 1 << 40;
/// What stays free of a disk that is unpacked to.
const SPARE_BYTES: u64 = 256 << 20;
/// tar ends with zeros, and pads to this at most.
const MAX_PADDING: u64 = 1 << 20;

/// Counts and hashes what passes.
struct Hashed<T> {
    inner: T,
    digest: Context,
    bytes: u64,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, digest: Context::new(&SHA256), bytes: 0 }
    }

    fn member(self) -> Member {
        Member { sha256: hex::encode(self.digest.finish()), size: self.bytes }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digest.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.digest.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// An archive being written. What it says of itself comes last, when all hashes are known.
pub(super) struct Writer<W: Write> {
    tar: tar::Builder<zstd::Encoder<'static, Hashed<W>>>,
    members: BTreeMap<String, Member>,
    seconds: u64,
}

impl<W: Write> Writer<W> {
    /// `seconds` since 1970 become the time of every member.
    pub(super) fn new(to: W, seconds: u64) -> std::io::Result<Self> {
        let mut encoder = zstd::Encoder::new(Hashed::new(to), LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(Self { tar: tar::Builder::new(encoder), members: BTreeMap::new(), seconds })
    }

    pub(super) fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }

    /// Adds `size` bytes of `from`.
    ///
    /// Errors when it has fewer.
    pub(super) fn add(&mut self, name: &str, from: impl Read, size: u64) -> std::io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(MODE);
        header.set_mtime(self.seconds);
        let mut from = Hashed::new(from.take(size));
        self.tar.append_data(&mut header, name, &mut from)?;
        if from.bytes != size {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, format!("{name} became shorter")));
        }
        self.members.insert(name.to_owned(), from.member());
        Ok(())
    }

    /// Gives back where it was written to, and the hash and size of the archive.
    pub(super) fn finish(
        mut self,
        manifest: impl FnOnce(BTreeMap<String, Member>) -> Manifest,
    ) -> std::io::Result<(W, Member)> {
        let mut text = serde_json::to_vec_pretty(&manifest(std::mem::take(&mut self.members)))?;
        text.push(b'\n');
        self.add(MANIFEST, text.as_slice(), text.len() as u64)?;
        let hashed = self.tar.into_inner()?.finish()?;
        let member = Member { sha256: hex::encode(hashed.digest.finish()), size: hashed.bytes };
        Ok((hashed.inner, member))
    }
}

/// What was unpacked, every hash compared.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) manifest: Manifest,
    /// The archive's own hash and size.
    pub(super) archive: Member,
}

/// Unpacks into a folder, which is the caller's alone: files of mode 0600, and folders of mode 0700 for blobs.
///
/// Errors when the archive holds anything that is not ours, is larger than the disk has room for, or is not what its
/// manifest says.
pub(super) fn unpack(archive: &Utf8Path, into: &Utf8Path) -> BackupResult<Unpacked> {
    let file = fs_err::File::open(archive).map_err(at("could not open", archive))?;
    let room = room(into)?.min(MAX_BYTES);
    let mut file = Hashed::new(file);
    let found = {
        let decoder = zstd::Decoder::new(&mut file).map_err(unreadable)?;
        let mut tar = tar::Archive::new(decoder);
        let found = members(&mut tar, into, room)?;
        // The checksum of zstd stands at the very end, and what follows the last member must be nothing.
        let mut rest = tar.into_inner();
        let mut padding = Vec::new();
        rest.by_ref().take(MAX_PADDING + 1).read_to_end(&mut padding).map_err(unreadable)?;
        if padding.len() as u64 > MAX_PADDING || padding.iter().any(|byte| *byte != 0) {
            return Err(BackupError::Damaged("something follows the end of the archive".to_owned()));
        }
        found
    };
    std::io::copy(&mut file, &mut std::io::sink()).map_err(unreadable)?;
    let manifest = compare(into, found)?;
    Ok(Unpacked { manifest, archive: file.member() })
}

fn unreadable(error: std::io::Error) -> BackupError {
    BackupError::Damaged(format!("it cannot be read as a backup: {error}"))
}

fn room(folder: &Utf8Path) -> BackupResult<u64> {
    let found =
        rustix::fs::statvfs(folder.as_std_path()).map_err(|error| at("could not look at", folder)(error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize).saturating_sub(SPARE_BYTES))
}

fn members<R: Read>(tar: &mut tar::Archive<R>, into: &Utf8Path, room: u64) -> BackupResult<BTreeMap<String, Member>> {
    let mut found: BTreeMap<String, Member> = BTreeMap::new();
    let mut left = room;
    // Raw: long names, sparse files and attributes come as entries of their own kind then, and are refused like any other kind.
    for entry in tar.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        let header = entry.header();
        let path = header.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&path).into_owned();
        let refused = |what: &str| BackupError::Damaged(format!("its member {shown:?} {what}"));
        if header.entry_type() != tar::EntryType::Regular {
            return Err(refused("is no plain file"));
        }
        let size = header.size().map_err(unreadable)?;
        let name = str::from_utf8(&path).ok().and_then(Name::parse).ok_or_else(|| refused("is none of a backup"))?;
        if size > name.max_bytes {
            return Err(refused(&format!("is larger than {} bytes", name.max_bytes)));
        }
        if found.contains_key(&shown) || found.len() >= MAX_MEMBERS {
            return Err(refused("is one too many"));
        }
        left = left.checked_sub(size).ok_or_else(|| {
            BackupError::Refused(format!("there is no room to unpack it: {room} bytes are free for it at {into}"))
        })?;
        let member = write(&mut entry, into, &name.path, size).map_err(|error| match error {
            Writing::From(error) => unreadable(error),
            Writing::To(error) => error,
        })?;
        if member.size != size {
            return Err(refused("ends too early"));
        }
        found.insert(shown, member);
    }
    Ok(found)
}

enum Writing {
    From(std::io::Error),
    To(BackupError),
}

fn write(from: &mut impl Read, into: &Utf8Path, name: &Utf8Path, size: u64) -> Result<Member, Writing> {
    let path = into.join(name);
    let to = |error| Writing::To(at("could not write", &path)(error));
    if let Some(folder) = path.parent() {
        make_folders(folder).map_err(|error| Writing::To(at("could not make", folder)(error)))?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(MODE);
    let file = fs_err::OpenOptions::from_options(options).open(&path).map_err(to)?;
    let mut out = Hashed::new(file);
    let mut buffer = vec![0; 128 << 10];
    let mut from = from.take(size);
    loop {
        let count = from.read(&mut buffer).map_err(Writing::From)?;
        if count == 0 {
            break;
        }
        out.write_all(&buffer[..count]).map_err(to)?;
    }
    out.inner.sync_all().map_err(to)?;
    Ok(out.member())
}

pub(super) fn make_folders(folder: &Utf8Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Every member is as the manifest says, none more and none less.
fn compare(into: &Utf8Path, mut found: BTreeMap<String, Member>) -> BackupResult<Manifest> {
    let path: Utf8PathBuf = into.join(MANIFEST);
    if found.remove(MANIFEST).is_none() {
        return Err(BackupError::Damaged(format!("it has no {MANIFEST}: it is no backup, or was cut off")));
    }
    let manifest = Manifest::parse(&fs_err::read(&path).map_err(at("could not read", &path))?)?;
    for (name, member) in &manifest.members {
        match found.remove(name) {
            None => return Err(BackupError::Damaged(format!("{name} is missing"))),
            Some(other) if other != *member => {
                return Err(BackupError::Damaged(format!("{name} is not what was saved")));
            }
            Some(other) => {
                if blob_digits(name).is_some_and(|digits| digits != other.sha256) {
                    return Err(BackupError::Damaged(format!("{name} holds another content than its name says")));
                }
            }
        }
    }
    if let Some(name) = found.keys().next() {
        return Err(BackupError::Damaged(format!("{name} is in it, and its {MANIFEST} does not know it")));
    }
    if !manifest.members.contains_key(LEDGER) {
        return Err(BackupError::Damaged("it holds no ledger".to_owned()));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn manifest(members: BTreeMap<String, Member>) -> Manifest {
        Manifest { schema: 1, version: "0.1.0".to_owned(), created: Timestamp::UNIX_EPOCH, left_out: vec![], members }
    }

    fn good() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), 0).unwrap();
        writer.add(LEDGER, &b"rows"[..], 4).unwrap();
        let blob = crate::host::sha256(b"blob");
        writer.add(&format!("blobs/{}/{}", &blob[..2], &blob[2..]), &b"blob"[..], 4).unwrap();
        writer.finish(manifest).unwrap().0
    }

    /// Unpacks bytes; the folder is looked at afterwards.
    fn tried(bytes: &[u8]) -> (BackupResult<Unpacked>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let archive = root.join("archive");
        fs_err::write(&archive, bytes).unwrap();
        let into = root.join("into");
        make_folders(&into).unwrap();
        (unpack(&archive, &into), folder)
    }

    /// An archive of raw members: kind, name, link, content.
    fn raw(members: &[(tar::EntryType, &[u8], &str, &[u8])]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        for (kind, name, link, content) in members {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name);
            header.set_entry_type(*kind);
            header.set_link_name_literal(link).unwrap();
            header.set_size(content.len() as u64);
            header.set_mode(0o777);
            header.set_cksum();
            encoder.write_all(header.as_bytes()).unwrap();
            encoder.write_all(content).unwrap();
            encoder.write_all(&vec![0; content.len().next_multiple_of(512) - content.len()]).unwrap();
        }
        encoder.write_all(&[0; 1024]).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_was_written_comes_back_for_its_owner_alone_and_with_the_archives_own_hash() {
        let bytes = good();
        let (unpacked, folder) = tried(&bytes);
        let unpacked = unpacked.unwrap();
        assert_eq!(unpacked.archive.sha256, crate::host::sha256(&bytes));
        assert_eq!((unpacked.manifest.members.len(), unpacked.manifest.has_secrets()), (2, false));
        let into = folder.path().join("into");
        assert_eq!(fs_err::read(into.join(LEDGER)).unwrap(), b"rows");
        let mode = |path: &std::path::Path| fs_err::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&into.join(LEDGER)), mode(&into.join("blobs"))), (0o600, 0o700));
    }

    #[test]
    fn archives_from_elsewhere_write_nothing_outside_and_are_refused() {
        use tar::EntryType as Kind;
        let ledger: (Kind, &[u8], &str, &[u8]) = (Kind::Regular, b"ledger.db", "", b"rows");
        for (what, member) in [
            ("absolute", (Kind::Regular, &b"/tmp/fettle-hostile"[..], "", &b"x"[..])),
            ("upwards", (Kind::Regular, b"../escaped", "", b"x")),
            ("upwards inside", (Kind::Regular, b"blobs/ab/../../../escaped", "", b"x")),
            ("symbolic link", (Kind::Symlink, b"fettle.toml", "/etc/passwd", b"")),
            ("hard link", (Kind::Link, b"fettle.toml", "/etc/passwd", b"")),
            ("folder", (Kind::Directory, b"blobs/", "", b"")),
            ("device", (Kind::Char, b"fettle.toml", "", b"")),
            ("pipe", (Kind::Fifo, b"fettle.toml", "", b"")),
            ("sparse", (Kind::GNUSparse, b"fettle.toml", "", b"")),
            ("long name", (Kind::GNULongName, b"././@LongLink", "", b"../escaped\0")),
            ("long link", (Kind::GNULongLink, b"././@LongLink", "", b"../escaped\0")),
            ("extended header", (Kind::XHeader, b"x", "", b"20 path=../escaped\n\0")),
            ("global header", (Kind::XGlobalHeader, b"x", "", b"20 path=../escaped\n\0")),
            ("not text", (Kind::Regular, b"\xff\xfe", "", b"x")),
            ("no name", (Kind::Regular, b"", "", b"x")),
            ("foreign", (Kind::Regular, b"authorized_keys", "", b"x")),
            ("twice", ledger),
        ] {
            let (refused, folder) = tried(&raw(&[ledger, member]));
            assert!(matches!(refused, Err(BackupError::Damaged(_))), "{what}: {refused:?}");
            let mut left: Vec<String> = Vec::new();
            for entry in fs_err::read_dir(folder.path()).unwrap() {
                left.push(entry.unwrap().file_name().to_string_lossy().into_owned());
            }
            left.sort();
            assert_eq!(left, ["archive", "into"], "{what}");
        }
        assert!(!std::path::Path::new("/tmp/fettle-hostile").exists());
    }

    #[test]
    fn sizes_that_lie_or_that_no_disk_has_room_for_are_refused_before_anything_is_written() {
        for (name, size) in [("ledger.db", 1 << 60), ("fettle.toml", TOO_LARGE), ("ledger.db", 4096)] {
            let mut header = tar::Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_size(size);
            header.set_cksum();
            let bytes = zstd::encode_all(header.as_bytes().as_slice(), 1).unwrap();
            let (refused, folder) = tried(&bytes);
            assert!(matches!(refused, Err(BackupError::Damaged(_) | BackupError::Refused(_))), "{name} {size}");
            let written = fs_err::metadata(folder.path().join("into").join(name)).map_or(0, |found| found.len());
            assert_eq!(written, 0, "{name} {size}");
        }
    }

    const TOO_LARGE: u64 = 17 << 20;

    #[test]
    fn a_manifest_that_does_not_fit_its_archive_is_damage() {
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 4] = [
            ("hash", |m| m.members.get_mut(LEDGER).unwrap().sha256 = "0".repeat(64)),
            ("missing", |m| {
                let member = m.members[LEDGER].clone();
                m.members.insert("fettle.toml".to_owned(), member);
            }),
            ("unknown", |m| drop(m.members.pop_first())),
            ("no ledger", |m| m.members.clear()),
        ];
        for (what, change) in changes {
            let mut writer = Writer::new(Vec::new(), 0).unwrap();
            writer.add(LEDGER, &b"rows"[..], 4).unwrap();
            let changed = |members| {
                let mut manifest = manifest(members);
                change(&mut manifest);
                manifest
            };
            let (refused, _folder) = tried(&writer.finish(changed).unwrap().0);
            assert!(matches!(refused, Err(BackupError::Damaged(_))), "{what}: {refused:?}");
        }
        let mut misnamed = Writer::new(Vec::new(), 0).unwrap();
        misnamed.add(LEDGER, &b"rows"[..], 4).unwrap();
        misnamed.add(&format!("blobs/ab/{}", "0".repeat(62)), &b"other"[..], 5).unwrap();
        let (refused, _folder) = tried(&misnamed.finish(manifest).unwrap().0);
        assert!(refused.unwrap_err().to_string().contains("another content"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn a_cut_is_damage_and_a_changed_byte_is_damage_or_changes_nothing(at in any::<prop::sample::Index>(), change in 1u8.., cut in any::<bool>()) {
            let mut bytes = good();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= change }
            match tried(&bytes).0 {
                Err(BackupError::Damaged(_)) => {}
                // The header of zstd has bits on which the content does not depend, such as the size of its window.
                Ok(unpacked) => prop_assert!(!cut && unpacked.manifest == tried(&good()).0.unwrap().manifest),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
