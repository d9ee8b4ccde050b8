//! Where a model's files come from. A source is believed in nothing: names, sizes and bytes are checked by whoever takes them.

use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};

pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Blocks as long as its bytes take, and bounds each wait itself.
pub trait Source {
    /// All files of the model.
    fn offered(&self) -> Result<Vec<Offered>, SourceError>;

    /// The bytes of one of them from `from` on, or from its beginning where it cannot be divided.
    fn open(&self, file: &Offered, from: u64) -> Result<Opened, SourceError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub name: String,
    pub bytes: u64,
    /// In hex, where somebody has told it.
    pub sha256: Option<String>,
}

pub struct Opened {
    /// Where they really begin.
    pub from: u64,
    pub bytes: Box<dyn Read>,
}

/// A file of this machine, or the files at the top of a folder; folders below it are left out, as engines read none, and so are
/// hidden files.
#[derive(Debug, Clone)]
pub struct Local {
    pub path: Utf8PathBuf,
    pub links: Links,
}

/// A link in a folder may lead to a file that nobody meant to copy; a folder of a download cache has nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    Refuse,
    Follow,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is a link: links are followed only when that is asked for")]
pub struct IsLink(Utf8PathBuf);

impl Local {
    fn files(&self) -> Result<Vec<(String, Utf8PathBuf)>, SourceError> {
        if fs_err::metadata(&self.path)?.is_file() {
            let name = self.path.file_name().ok_or_else(|| format!("{} has no name", self.path))?;
            return Ok(vec![(name.to_owned(), self.path.clone())]);
        }
        let mut files = Vec::new();
        for entry in fs_err::read_dir(&self.path)? {
            let path =
                Utf8PathBuf::from_path_buf(entry?.path()).map_err(|path| format!("{} is no UTF-8", path.display()))?;
            let name = path.file_name().unwrap_or_default();
            if !name.starts_with('.') {
                files.push((name.to_owned(), path));
            }
        }
        Ok(files)
    }

    fn bytes_of(&self, path: &Utf8Path) -> Result<Option<u64>, SourceError> {
        if self.links == Links::Refuse && fs_err::symlink_metadata(path)?.is_symlink() {
            return Err(IsLink(path.to_owned()).into());
        }
        let about = fs_err::metadata(path)?;
        Ok(about.is_file().then_some(about.len()))
    }
}

impl Source for Local {
    fn offered(&self) -> Result<Vec<Offered>, SourceError> {
        let mut offered = Vec::new();
        for (name, path) in self.files()? {
            if let Some(bytes) = self.bytes_of(&path)? {
                offered.push(Offered { name, bytes, sha256: None });
            }
        }
        Ok(offered)
    }

    fn open(&self, file: &Offered, _from: u64) -> Result<Opened, SourceError> {
        let path = if fs_err::metadata(&self.path)?.is_file() { self.path.clone() } else { self.path.join(&file.name) };
        self.bytes_of(&path)?;
        Ok(Opened { from: 0, bytes: Box::new(fs_err::File::open(path)?) })
    }
}
