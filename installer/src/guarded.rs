//! Reads files in folders that belong to a service. Who runs as that service may have put anything in their place: a link to
//! what only root can read, or a pipe that never answers.

use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::OpenOptionsExt as _;

use camino::Utf8Path;
use rustix::fs::OFlags;

/// The content of a plain file of at most `limit` bytes.
///
/// Errors when it is a link, no plain file, or larger.
pub(crate) fn read(path: &Utf8Path, limit: u64) -> Result<Vec<u8>> {
    let mut options = std::fs::OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > limit {
        return Err(Error::new(ErrorKind::InvalidData, format!("no plain file of at most {limit} bytes")));
    }
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_pipes_folders_and_what_is_too_large_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        fs_err::write(root.join("plain"), "value").unwrap();
        fs_err::os::unix::fs::symlink(root.join("plain"), root.join("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe").as_std_path(), rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(read(&root.join("plain"), 5).unwrap(), b"value");
        for path in ["link", "pipe", "."] {
            assert!(read(&root.join(path), 5).is_err(), "{path}");
        }
        assert!(read(&root.join("plain"), 4).is_err());
        assert_eq!(read(&root.join("absent"), 4).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
