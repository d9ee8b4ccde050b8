//! A small repository of one commit, written file by file: a pack of exactly one tree, an index that matches the files,
//! and a configuration under which nothing runs and nothing is converted.
//!
//! libgit2's pack builder would search for deltas, which takes longer than the checkout itself; here each object is only
//! deflated, by the thread that has it in hand anyway.

use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::git::GitError;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use git2::{ObjectType, Oid};
use sha1::{Digest, Sha1};

use crate::error::failed;

/// The private repository lives as long as its sandbox, so time counts and size hardly does.
const LEVEL: u32 = 1;
/// Fewer and larger writes than one per object.
const BUFFER_BYTES: usize = 1 << 20;
/// Offsets at or above this stand in the second table of a pack's index.
const LARGE_OFFSET: u64 = 1 << 31;

/// Nothing here starts a program. `checkStat = minimal` since a sandbox may show other owners and inode numbers.
const CONFIG: &str = "[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tautocrlf = false
\tsafecrlf = false
\tsymlinks = true
\tcheckStat = minimal
\ttrustctime = false
\tfsmonitor = false
\thooksPath = /dev/null
[gc]
\tauto = 0
[maintenance]
\tauto = false
";

/// Strongest of all attribute files: bytes are compared as they are, whatever the repository's `.gitattributes` asks for.
const ATTRIBUTES: &str = "* -text -filter -ident -working-tree-encoding\n";

const COMMIT_HEADER: &str =
    "author Fettle <fettle@localhost> 946684800 +0000\ncommitter Fettle <fettle@localhost> 946684800 +0000\n";

fn doing<E: std::error::Error + Send + Sync + 'static>(error: E) -> GitError {
    failed("while writing the private repository")(error)
}

/// Per-thread state of deflation; making it anew for each object would cost more than small objects do.
pub(crate) struct Deflater {
    state: Compress,
}

impl Deflater {
    pub(crate) fn new() -> Self {
        Self { state: Compress::new(Compression::new(LEVEL), true) }
    }

    fn deflate(&mut self, mut data: &[u8], into: &mut Vec<u8>) -> Result<(), GitError> {
        self.state.reset();
        loop {
            into.reserve(data.len() / 2 + 64);
            let before = self.state.total_in();
            let status = self.state.compress_vec(data, into, FlushCompress::Finish).map_err(doing)?;
            let taken = usize::try_from(self.state.total_in() - before).expect("no more was taken than was given");
            data = &data[taken..];
            if status == Status::StreamEnd {
                return Ok(());
            }
        }
    }
}

/// Writes a pack from several threads at once.
pub(crate) struct PackWriter {
    folder: Utf8PathBuf,
    unfinished: Utf8PathBuf,
    state: Mutex<Written>,
}

struct Written {
    file: BufWriter<fs_err::File>,
    digest: Sha1,
    offset: u64,
    seen: HashSet<Oid>,
    objects: Vec<(Oid, u32, u64)>,
}

impl PackWriter {
    /// `count` is the number of different objects that will be added.
    pub(crate) fn create(folder: &Utf8Path, count: u32) -> Result<Self, GitError> {
        fs_err::create_dir_all(folder).map_err(doing)?;
        let unfinished = folder.join("unfinished");
        let file = fs_err::OpenOptions::new().write(true).create_new(true).open(&unfinished).map_err(doing)?;
        let mut state = Written {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            digest: Sha1::new(),
            offset: 0,
            seen: HashSet::new(),
            objects: Vec::new(),
        };
        let mut header = b"PACK\0\0\0\x02".to_vec();
        header.extend_from_slice(&count.to_be_bytes());
        state.append(&header)?;
        Ok(Self { folder: folder.to_owned(), unfinished, state: Mutex::new(state) })
    }

    /// Adds an object unless it is in the pack already.
    pub(crate) fn add(&self, deflater: &mut Deflater, kind: ObjectType, id: Oid, data: &[u8]) -> Result<(), GitError> {
        if !self.state.lock().unwrap_or_else(PoisonError::into_inner).seen.insert(id) {
            return Ok(());
        }
        let mut record = entry_header(kind, data.len());
        deflater.deflate(data, &mut record)?;
        let mut crc = Crc::new();
        crc.update(&record);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = state.offset;
        state.objects.push((id, crc.sum(), offset));
        state.append(&record)
    }

    pub(crate) fn finish(self) -> Result<(), GitError> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let digest: [u8; 20] = state.digest.finalize_reset().into();
        state.file.write_all(&digest).and_then(|()| state.file.flush()).map_err(doing)?;
        state.objects.sort_unstable_by_key(|(id, _, _)| *id);
        let name = format!("pack-{}", hex::encode(digest));
        fs_err::rename(&self.unfinished, self.folder.join(format!("{name}.pack"))).map_err(doing)?;
        fs_err::write(self.folder.join(format!("{name}.idx")), pack_index(&state.objects, &digest)).map_err(doing)
    }
}

impl Written {
    fn append(&mut self, bytes: &[u8]) -> Result<(), GitError> {
        self.digest.update(bytes);
        self.offset += bytes.len() as u64;
        self.file.write_all(bytes).map_err(doing)
    }
}

/// Type and size before deflation: four bits of size, then seven in each further byte, lowest first.
fn entry_header(kind: ObjectType, size: usize) -> Vec<u8> {
    let code: u8 = match kind {
        ObjectType::Commit => 1,
        ObjectType::Tree => 2,
        ObjectType::Tag => 4,
        ObjectType::Blob | ObjectType::Any => 3,
    };
    let mut rest = size >> 4;
    let mut header = vec![(code << 4) | (size & 0x0f) as u8];
    while rest > 0 {
        *header.last_mut().expect("the header has a first byte") |= 0x80;
        header.push((rest & 0x7f) as u8);
        rest >>= 7;
    }
    header
}

/// Version 2 of git's pack index: fan-out, names, checksums, offsets, large offsets, two digests.
fn pack_index(objects: &[(Oid, u32, u64)], pack_digest: &[u8; 20]) -> Vec<u8> {
    let mut index = b"\xfftOc\0\0\0\x02".to_vec();
    let mut below = 0;
    for first_byte in 0..=255_u8 {
        while objects.get(below).is_some_and(|(id, _, _)| id.as_bytes()[0] <= first_byte) {
            below += 1;
        }
        index.extend_from_slice(&(below as u32).to_be_bytes());
    }
    objects.iter().for_each(|(id, _, _)| index.extend_from_slice(id.as_bytes()));
    objects.iter().for_each(|(_, crc, _)| index.extend_from_slice(&crc.to_be_bytes()));
    let mut large: Vec<u64> = Vec::new();
    for (_, _, offset) in objects {
        let short = if *offset < LARGE_OFFSET {
            *offset as u32
        } else {
            large.push(*offset);
            0x8000_0000 | (large.len() - 1) as u32
        };
        index.extend_from_slice(&short.to_be_bytes());
    }
    large.iter().for_each(|offset| index.extend_from_slice(&offset.to_be_bytes()));
    index.extend_from_slice(pack_digest);
    let own = Sha1::digest(&index);
    index.extend_from_slice(&own);
    index
}

/// A file as the index remembers it, so that git need not read it to know that it is unchanged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stat {
    ctime: (u32, u32),
    mtime: (u32, u32),
    dev: u32,
    ino: u32,
    uid: u32,
    gid: u32,
    size: u32,
}

impl Stat {
    /// The index keeps the low 32 bits of everything.
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            ctime: (metadata.ctime() as u32, metadata.ctime_nsec() as u32),
            mtime: (metadata.mtime() as u32, metadata.mtime_nsec() as u32),
            dev: metadata.dev() as u32,
            ino: metadata.ino() as u32,
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: metadata.size() as u32,
        }
    }
}

pub(crate) struct IndexLine<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) id: Oid,
    pub(crate) stat: Stat,
}

/// Version 2 of git's index. `lines` is in path order.
fn index_file(lines: &[IndexLine<'_>]) -> Vec<u8> {
    let mut index = b"DIRC\0\0\0\x02".to_vec();
    index.extend_from_slice(&(lines.len() as u32).to_be_bytes());
    for line in lines {
        let start = index.len();
        let Stat { ctime, mtime, dev, ino, uid, gid, size } = line.stat;
        for field in [ctime.0, ctime.1, mtime.0, mtime.1, dev, ino, line.mode, uid, gid, size] {
            index.extend_from_slice(&field.to_be_bytes());
        }
        index.extend_from_slice(line.id.as_bytes());
        index.extend_from_slice(&(line.path.len().min(0x0fff) as u16).to_be_bytes());
        index.extend_from_slice(line.path);
        let length = index.len() - start;
        index.resize(start + (length / 8 + 1) * 8, 0);
    }
    let digest = Sha1::digest(&index);
    index.extend_from_slice(&digest);
    index
}

/// The one commit of a private repository; the same tree gives the same commit.
pub(crate) fn synthetic_commit(tree: Oid) -> Vec<u8> {
    format!("tree {tree}\n{COMMIT_HEADER}\nThe state before the work\n").into_bytes()
}

/// Everything of the private repository but its pack.
pub(crate) fn write_repository(git_folder: &Utf8Path, commit: Oid, lines: &[IndexLine<'_>]) -> Result<(), GitError> {
    for folder in ["info", "objects/info", "refs/heads", "refs/tags"] {
        fs_err::create_dir_all(git_folder.join(folder)).map_err(doing)?;
    }
    let files: [(&str, Vec<u8>); 5] = [
        ("config", CONFIG.into()),
        ("info/attributes", ATTRIBUTES.into()),
        ("refs/heads/main", format!("{commit}\n").into()),
        ("HEAD", "ref: refs/heads/main\n".into()),
        ("index", index_file(lines)),
    ];
    for (name, content) in files {
        fs_err::write(git_folder.join(name), content).map_err(doing)?;
    }
    Ok(())
}
