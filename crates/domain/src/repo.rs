//! A repository on a forge, parsed at the door.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `owner/name`, as the forge writes it. Compared without regard to ASCII case only by the forge's numeric id, never here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoName {
    owner: String,
    name: String,
}

/// The text is not `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a repository name: expected `owner/name` of letters, digits, `-`, `_` and `.`")]
pub struct ParseRepoNameError(String);

impl RepoName {
    pub fn owner(&self) -> &str {
        &self.owner
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for RepoName {
    type Err = ParseRepoNameError;

    fn from_str(text: &str) -> Result<Self, ParseRepoNameError> {
        let valid = |part: &str| {
            !part.is_empty()
                && part.len() <= 100
                && part != "."
                && part != ".."
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        match text.split_once('/') {
            Some((owner, name)) if valid(owner) && valid(name) => {
                Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => Err(ParseRepoNameError(text.chars().take(200).collect())),
        }
    }
}

impl TryFrom<String> for RepoName {
    type Error = ParseRepoNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RepoName> for String {
    fn from(name: RepoName) -> String {
        name.to_string()
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A repository as the forge knows it. Keys use `forge_id`: names change when a repository is renamed or transferred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    /// The forge's numeric repository id.
    pub forge_id: u64,
    pub name: RepoName,
    /// https URL without user info, from which git clones.
    pub clone_url: String,
    pub default_branch: String,
    pub private: bool,
    /// The App installation that gives access; absent with personal access tokens.
    pub installation: Option<u64>,
}
