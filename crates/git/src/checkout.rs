//! A tree becomes files, byte for byte, by several threads; no filter runs, and nothing leaves the folder.
//!
//! Folders are made first, files are made new in them, symlinks come last: so nothing is ever written through a link.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use camino::Utf8Path;
use fettle_app::ports::git::{CheckoutKind, CheckoutReport, GitError};
use fettle_domain::object::TreeId;
use fettle_domain::patch::FileMode;
use git2::{ObjectType, Odb, Oid, Repository};

use fs_err::os::unix::fs::OpenOptionsExt as _;

use crate::error::{failed, finding};
use crate::names;
use crate::objects::{self, Leaf, Listing};
use crate::pack::{self, Deflater, IndexLine, PackWriter, Stat};

/// Beyond this the disk is the limit, not the inflating.
const MAX_THREADS: usize = 8;
/// Files a thread takes at once: neighbours share pack windows, and the counter is touched less.
const FILES_AT_ONCE: usize = 32;
/// Far above real repositories; a tree that names one large content a million times stops here.
const MAX_CHECKOUT_BYTES: u64 = 64 << 30;

pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

pub(crate) fn checkout(
    repo: &Repository,
    tree: TreeId,
    into: &Utf8Path,
    kind: CheckoutKind,
) -> Result<CheckoutReport, GitError> {
    let odb = objects::store(repo)?;
    let listing = objects::list_all(&odb, tree)?;
    refuse_dangerous_names(&listing)?;
    prepare(into)?;
    let plan = Plan::of(&listing)?;
    let folders = listing.trees.keys().map(Vec::as_slice).filter(|path| !path.is_empty());
    for folder in folders.chain(plan.submodules.iter().copied()) {
        fs_err::create_dir(place(into, folder)).map_err(failed("while making a folder of the checkout"))?;
    }

    let git_folder = into.join(".git");
    let pack = match kind {
        CheckoutKind::Plain => None,
        CheckoutKind::WithPrivateRepository => {
            Some(PackWriter::create(&git_folder.join("objects/pack"), plan.different_objects(&listing))?)
        }
    };
    let (bytes, stats) = write_files(&odb, into, &plan.files, pack.as_ref())?;
    let link_stats = write_links(&odb, into, &plan.links, pack.as_ref())?;

    if let Some(pack) = pack {
        let commit = pack_the_rest(&odb, tree, &listing, &pack)?;
        pack.finish()?;
        pack::write_repository(&git_folder, commit, &plan.index_lines(&listing, &stats, &link_stats))?;
    }
    Ok(CheckoutReport {
        files: (plan.files.len() + plan.links.len()) as u64,
        bytes,
        submodules: plan.submodules.iter().map(|path| objects::repo_path(path)).collect::<Result<_, _>>()?,
    })
}

fn place(into: &Utf8Path, path: &[u8]) -> PathBuf {
    into.as_std_path().join(OsStr::from_bytes(path))
}

fn refuse_dangerous_names(listing: &Listing) -> Result<(), GitError> {
    let last = |path: &[u8]| path.rsplit(|&b| b == b'/').next().is_some_and(names::is_refused);
    let mut paths = listing.trees.keys().filter(|path| !path.is_empty()).chain(listing.leaves.keys());
    match paths.find(|path| last(path)) {
        Some(path) => Err(GitError::Invalid(format!(
            "the tree has the forbidden path `{}`",
            String::from_utf8_lossy(path).escape_debug()
        ))),
        None => Ok(()),
    }
}

fn prepare(into: &Utf8Path) -> Result<(), GitError> {
    let doing = "while preparing the folder of the checkout";
    match fs_err::read_dir(into) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(Ok(_)) => Err(GitError::Invalid(format!("{into} is not empty"))),
            Some(Err(error)) => Err(failed(doing)(error)),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => fs_err::create_dir_all(into).map_err(failed(doing)),
        Err(error) => Err(failed(doing)(error)),
    }
}

struct File<'a> {
    path: &'a [u8],
    id: Oid,
    executable: bool,
}

/// The leaves by what has to be done with them, each in path order.
struct Plan<'a> {
    files: Vec<File<'a>>,
    links: Vec<(&'a [u8], Oid)>,
    submodules: Vec<&'a [u8]>,
}

impl<'a> Plan<'a> {
    fn of(listing: &'a Listing) -> Result<Self, GitError> {
        let mut plan = Self { files: Vec::new(), links: Vec::new(), submodules: Vec::new() };
        for (path, leaf) in &listing.leaves {
            match leaf.file_mode()? {
                FileMode::Regular => plan.files.push(File { path, id: leaf.id, executable: false }),
                FileMode::Executable => plan.files.push(File { path, id: leaf.id, executable: true }),
                FileMode::Symlink => plan.links.push((path, leaf.id)),
                FileMode::Submodule => plan.submodules.push(path),
            }
        }
        Ok(plan)
    }

    /// Contents, trees and the one commit.
    fn different_objects(&self, listing: &Listing) -> u32 {
        let contents: HashSet<Oid> =
            self.files.iter().map(|file| file.id).chain(self.links.iter().map(|(_, id)| *id)).collect();
        let trees: HashSet<Oid> = listing.trees.values().copied().collect();
        (contents.len() + trees.len() + 1) as u32
    }

    fn index_lines(&self, listing: &'a Listing, files: &[Stat], links: &[Stat]) -> Vec<IndexLine<'a>> {
        let (mut files, mut links) = (files.iter().copied(), links.iter().copied());
        listing
            .leaves
            .iter()
            .map(|(path, &Leaf { mode, id })| {
                let mode = FileMode::from_git_mode(mode).expect("the plan has looked at every mode");
                let stat = match mode {
                    FileMode::Regular | FileMode::Executable => files.next(),
                    FileMode::Symlink => links.next(),
                    FileMode::Submodule => Some(Stat::default()),
                };
                let stat = stat.expect("every file and link has been written");
                IndexLine { path, mode: mode.git_mode() as u32, id, stat }
            })
            .collect()
    }
}

/// Writes the files; gives their total size, and what the file system says of each when a pack asks for it.
fn write_files(
    odb: &Odb<'_>,
    into: &Utf8Path,
    files: &[File<'_>],
    pack: Option<&PackWriter>,
) -> Result<(u64, Vec<Stat>), GitError> {
    let next = AtomicUsize::new(0);
    let total = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let work = || -> Result<Vec<(usize, Stat)>, GitError> {
        let mut deflater = Deflater::new();
        let mut stats = Vec::new();
        loop {
            let start = next.fetch_add(FILES_AT_ONCE, Ordering::Relaxed);
            if start >= files.len() || stop.load(Ordering::Relaxed) {
                return Ok(stats);
            }
            for (number, file) in files.iter().enumerate().skip(start).take(FILES_AT_ONCE) {
                let size = write_file(odb, into, file, pack.map(|pack| (pack, &mut deflater)))
                    .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                if let Some(stat) = size.stat {
                    stats.push((number, stat));
                }
                if total.fetch_add(size.bytes, Ordering::Relaxed) + size.bytes > MAX_CHECKOUT_BYTES {
                    stop.store(true, Ordering::Relaxed);
                    return Err(GitError::Invalid(format!("the tree is larger than {MAX_CHECKOUT_BYTES} bytes")));
                }
            }
        }
    };
    let parts: Vec<Result<Vec<(usize, Stat)>, GitError>> = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads()).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let theirs = helpers.into_iter().map(|helper| helper.join().expect("a checkout thread does not panic"));
        std::iter::once(mine).chain(theirs).collect()
    });
    let mut stats: Vec<(usize, Stat)> = Vec::new();
    for part in parts {
        stats.extend(part?);
    }
    stats.sort_unstable_by_key(|(number, _)| *number);
    Ok((total.into_inner(), stats.into_iter().map(|(_, stat)| stat).collect()))
}

struct WrittenFile {
    bytes: u64,
    stat: Option<Stat>,
}

fn write_file(
    odb: &Odb<'_>,
    into: &Utf8Path,
    file: &File<'_>,
    pack: Option<(&PackWriter, &mut Deflater)>,
) -> Result<WrittenFile, GitError> {
    let doing = "while writing a file of the checkout";
    let object = odb.read(file.id).map_err(finding(format!("the content {}", file.id)))?;
    let mut out = fs_err::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(if file.executable { 0o777 } else { 0o666 })
        .open(place(into, file.path))
        .map_err(failed(doing))?;
    out.write_all(object.data()).map_err(failed(doing))?;
    let stat = match pack {
        Some((pack, deflater)) => {
            pack.add(deflater, ObjectType::Blob, file.id, object.data())?;
            Some(Stat::of(&out.metadata().map_err(failed(doing))?))
        }
        None => None,
    };
    Ok(WrittenFile { bytes: object.len() as u64, stat })
}

fn write_links(
    odb: &Odb<'_>,
    into: &Utf8Path,
    links: &[(&[u8], Oid)],
    pack: Option<&PackWriter>,
) -> Result<Vec<Stat>, GitError> {
    let doing = "while writing a symlink of the checkout";
    let mut deflater = Deflater::new();
    let mut stats = Vec::new();
    for (path, id) in links {
        let target = objects::read_blob(odb, *id)?;
        let link = place(into, path);
        fs_err::os::unix::fs::symlink(Path::new(OsStr::from_bytes(&target)), &link).map_err(failed(doing))?;
        if let Some(pack) = pack {
            pack.add(&mut deflater, ObjectType::Blob, *id, &target)?;
            stats.push(Stat::of(&fs_err::symlink_metadata(&link).map_err(failed(doing))?));
        }
    }
    Ok(stats)
}

/// Trees and the commit; gives the commit.
fn pack_the_rest(odb: &Odb<'_>, tree: TreeId, listing: &Listing, pack: &PackWriter) -> Result<Oid, GitError> {
    let mut deflater = Deflater::new();
    for id in listing.trees.values() {
        let object = odb.read(*id).map_err(finding(format!("the tree {id}")))?;
        pack.add(&mut deflater, ObjectType::Tree, *id, object.data())?;
    }
    let commit = pack::synthetic_commit(objects::oid(tree.as_bytes()));
    let id = Oid::hash_object(ObjectType::Commit, &commit).map_err(failed("while naming the private commit"))?;
    pack.add(&mut deflater, ObjectType::Commit, id, &commit)?;
    Ok(id)
}
