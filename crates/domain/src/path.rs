//! Paths in a repository: bytes, as in git, relative, with `/`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A relative path that names something beneath the root: no empty, `.` or `..` component, no NUL, not absolute.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath(Vec<u8>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a path inside the repository")]
pub struct ParsePathError(String);

impl RepoPath {
    pub fn parse(bytes: impl AsRef<[u8]>) -> Result<Self, ParsePathError> {
        let bytes = bytes.as_ref();
        let fits = !bytes.contains(&0)
            && bytes.split(|&b| b == b'/').all(|part| !part.is_empty() && part != b"." && part != b"..");
        if fits {
            Ok(Self(bytes.to_vec()))
        } else {
            Err(ParsePathError(String::from_utf8_lossy(bytes).chars().take(300).collect()))
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path for people; bytes that are not UTF-8 are replaced.
    pub fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/')
    }

    /// The last component.
    pub fn file_name(&self) -> &[u8] {
        self.components().next_back().expect("a path has a component")
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lossy())
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.lossy(), f)
    }
}

/// As text when it is UTF-8 and does not begin with `hex:`, else as `hex:` and digits, so that every path survives JSON.
impl Serialize for RepoPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.starts_with("hex:") => s.serialize_str(text),
            _ => s.serialize_str(&format!("hex:{}", hex::encode(&self.0))),
        }
    }
}

impl<'de> Deserialize<'de> for RepoPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = match text.strip_prefix("hex:") {
            Some(digits) => hex::decode(digits).map_err(serde::de::Error::custom)?,
            None => text.into_bytes(),
        };
        Self::parse(bytes).map_err(serde::de::Error::custom)
    }
}
