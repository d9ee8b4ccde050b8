//! The agent's folder as the file tools see it: every name is resolved beneath it, nothing else can be opened.
//!
//! Never follows a link out, never opens a FIFO or device in a way that waits, never writes through a link, never
//! touches `.git`. The kernel resolves the names (`RESOLVE_BENEATH`, no magic links), so there is no check to outrun.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use camino::Utf8Path;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use fettle_domain::path::RepoPath;

pub mod walk;

/// Larger files are neither shown nor edited; a source file of this size is generated.
pub const MAX_FILE_BYTES: u64 = 10 * 1024 * 1024;

/// A new file's mode, whatever the worker's umask.
const NEW_FILE_MODE: u32 = 0o644;

/// The permission bits of a mode; set-id bits are never put on a file by a tool.
const MODE_MASK: u32 = 0o777;

/// Names tried for a temporary file before giving up; a collision needs a leftover of a crash.
const TEMPORARY_NAMES: u32 = 100;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Absolute, `..`, a link that leads out, or `.git`.
    #[error("the path leads outside")]
    Outside,
    #[error("the path does not exist")]
    NotFound,
    /// A folder where a file is needed.
    #[error("the path is a folder")]
    IsFolder,
    /// A FIFO, socket or device.
    #[error("the path is not a regular file")]
    Special,
    /// The name, or a folder in it, is a link; writing goes to the real name only.
    #[error("the path is a link to {real}")]
    Link { real: String },
    #[error("the file has {bytes} bytes")]
    TooLarge { bytes: u64 },
    #[error("the file could not be used")]
    Io(#[source] io::Error),
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Root,
    Beneath(RepoPath),
}

impl Place {
    /// Reads a path as a model writes it: relative; `./`, doubled and trailing slashes are dropped, nothing else is mended.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        if text.starts_with('/') {
            return Err(FileError::Outside);
        }
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.is_empty() {
            return Ok(Self::Root);
        }
        let path = RepoPath::parse(parts.join("/")).map_err(|_| FileError::Outside)?;
        if has_git_component(path.as_bytes()) { Err(FileError::Outside) } else { Ok(Self::Beneath(path)) }
    }

    pub fn as_path(&self) -> &Path {
        match self {
            Self::Root => Path::new("."),
            Self::Beneath(path) => os_path(path),
        }
    }
}

fn has_git_component(path: &[u8]) -> bool {
    path.split(|&b| b == b'/').any(|part| part.eq_ignore_ascii_case(b".git"))
}

fn os_path(path: &RepoPath) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

#[derive(Debug)]
pub struct Workspace {
    root: Dir,
    temporary: AtomicU64,
}

impl Workspace {
    pub fn open(folder: &Utf8Path) -> Result<Self, FileError> {
        let root = Dir::open_ambient_dir(folder, ambient_authority()).map_err(FileError::Io)?;
        Ok(Self { root, temporary: AtomicU64::new(0) })
    }

    /// Whether the place is a folder; links inside the workspace are followed.
    pub fn is_folder(&self, place: &Place) -> Result<bool, FileError> {
        self.refuse_git_behind_links(place)?;
        Ok(self.root.metadata(place.as_path()).map_err(from_io)?.is_dir())
    }

    /// Reads a regular file, at most [`MAX_FILE_BYTES`]. Links that stay inside are followed.
    pub fn read(&self, path: &RepoPath) -> Result<FileContent, FileError> {
        let place = Place::Beneath(path.clone());
        self.refuse_git_behind_links(&place)?;
        read_regular(&self.root, place.as_path())
    }

    /// The content of the place as it would be overwritten; `None` when nothing is there. Refuses links.
    pub fn read_for_writing(&self, path: &RepoPath) -> Result<Option<FileContent>, FileError> {
        self.refuse_links(path)?;
        match self.read(path) {
            Ok(content) => Ok(Some(content)),
            Err(FileError::NotFound) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Puts `bytes` at `path` in one step: a reader sees the old file or the new one. Missing folders are made; `mode`
    /// `None` keeps an existing file's mode.
    pub fn write(&self, path: &RepoPath, bytes: &[u8], mode: Option<u32>) -> Result<(), FileError> {
        self.refuse_links(path)?;
        let target = os_path(path);
        let mode = match mode {
            Some(mode) => mode,
            None => match self.root.symlink_metadata(target) {
                Ok(found) if found.is_dir() => return Err(FileError::IsFolder),
                Ok(found) if !found.is_file() => return Err(FileError::Special),
                Ok(found) => found.mode(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => NEW_FILE_MODE,
                Err(e) => return Err(from_io(e)),
            },
        };
        let folder = match target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => {
                self.root.create_dir_all(parent).map_err(from_io)?;
                self.root.open_dir(parent).map_err(from_io)?
            }
            None => self.root.try_clone().map_err(FileError::Io)?,
        };
        let name = target.file_name().ok_or(FileError::Outside)?;
        let (temporary, mut file) = self.create_temporary(&folder)?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.set_permissions(Permissions::from_mode(mode & MODE_MASK)))
            .and_then(|()| folder.rename(&temporary, &folder, name));
        if let Err(e) = written {
            // The failure to write is what the caller needs to know; a leftover is not part of any result.
            drop(folder.remove_file(&temporary));
            return Err(from_io(e));
        }
        Ok(())
    }

    pub fn remove(&self, path: &RepoPath) -> Result<(), FileError> {
        self.refuse_links(path)?;
        self.root.remove_file(os_path(path)).map_err(from_io)
    }

    fn create_temporary(&self, folder: &Dir) -> Result<(String, cap_std::fs::File), FileError> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        for _ in 0..TEMPORARY_NAMES {
            let name = format!(".fettle-write-{}", self.temporary.fetch_add(1, Ordering::Relaxed));
            match folder.open_with(&name, &options) {
                Ok(file) => return Ok((name, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(from_io(e)),
            }
        }
        Err(FileError::Io(io::Error::from(io::ErrorKind::AlreadyExists)))
    }

    /// A link to `.git` would show what the name itself may not.
    fn refuse_git_behind_links(&self, place: &Place) -> Result<(), FileError> {
        use std::os::unix::ffi::OsStrExt;
        let real = self.root.canonicalize(place.as_path()).map_err(from_io)?;
        if has_git_component(real.as_os_str().as_bytes()) { Err(FileError::Outside) } else { Ok(()) }
    }

    /// Fails unless each component that exists is itself, not a link to something else.
    fn refuse_links(&self, path: &RepoPath) -> Result<(), FileError> {
        if has_git_component(path.as_bytes()) {
            return Err(FileError::Outside);
        }
        let target = os_path(path);
        let mut prefix = std::path::PathBuf::new();
        for component in target.components() {
            prefix.push(component);
            match self.root.symlink_metadata(&prefix) {
                Ok(found) if found.is_symlink() => {
                    let real = self.root.canonicalize(target).map_err(|_| FileError::Outside)?;
                    return Err(FileError::Link { real: real.to_string_lossy().into_owned() });
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(from_io(e)),
            }
        }
        Ok(())
    }
}

/// Opens without waiting (a FIFO without a writer would block) and refuses whatever is not a regular file.
fn read_regular(folder: &Dir, path: &Path) -> Result<FileContent, FileError> {
    let found = folder.metadata(path).map_err(from_io)?;
    if found.is_dir() {
        return Err(FileError::IsFolder);
    }
    if !found.is_file() {
        return Err(FileError::Special);
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = folder.open_with(path, &options).map_err(from_io)?;
    let opened = file.metadata().map_err(FileError::Io)?;
    if !opened.is_file() {
        return Err(FileError::Special);
    }
    if opened.len() > MAX_FILE_BYTES {
        return Err(FileError::TooLarge { bytes: opened.len() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(FileError::Io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(FileError::TooLarge { bytes: bytes.len() as u64 });
    }
    Ok(FileContent { bytes, mode: opened.mode() & MODE_MASK })
}

/// cap-std reports a name that leads out as `PermissionDenied` without an OS error number.
fn from_io(e: io::Error) -> FileError {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileError::NotFound,
        io::ErrorKind::IsADirectory => FileError::IsFolder,
        io::ErrorKind::PermissionDenied if e.raw_os_error().is_none() => FileError::Outside,
        _ if e.raw_os_error() == Some(libc::EXDEV) => FileError::Outside,
        _ => FileError::Io(e),
    }
}
