//! The few files of a base tree that decide its commands and its environment.

use std::collections::BTreeMap;

use bytes::Bytes;
use fettle_app::ports::git::{GitError, Repositories};
use fettle_domain::object::TreeId;
use fettle_domain::patch::FileMode;
use fettle_domain::path::RepoPath;

/// A larger manifest is not read; lockfiles of big repositories reach a few MiB.
const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Manifests below the root (workspace members, CI files); beyond this the rest is ignored.
const NESTED_MAX: usize = 400;

/// Names that are read at the root.
const AT_ROOT: &[&str] = &[
    ".fettle.toml",
    ".npmrc",
    "Cargo.lock",
    "Cargo.toml",
    "GNUmakefile",
    "Makefile",
    "makefile",
    "npm-shrinkwrap.json",
    "package-lock.json",
    "package.json",
    "pnpm-lock.yaml",
    "poetry.lock",
    "pyproject.toml",
    "pytest.ini",
    "rust-toolchain",
    "rust-toolchain.toml",
    "setup.cfg",
    "setup.py",
    "tox.ini",
    "uv.lock",
    "yarn.lock",
];

/// All paths of a tree, and the contents of those that matter here.
#[derive(Debug, Clone, Default)]
pub struct BaseFiles {
    paths: Vec<RepoPath>,
    contents: BTreeMap<String, Bytes>,
}

impl BaseFiles {
    pub fn new(paths: Vec<RepoPath>, contents: BTreeMap<String, Bytes>) -> Self {
        Self { paths, contents }
    }

    /// Reads them from the mirror.
    pub async fn load(repositories: &dyn Repositories, key: &str, tree: TreeId) -> Result<Self, GitError> {
        let listed = repositories.list(key, tree).await?;
        let mut contents = BTreeMap::new();
        let mut nested = 0;
        for (path, mode, _) in &listed {
            let Some(name) = std::str::from_utf8(path.as_bytes()).ok().filter(|name| is_wanted(name)) else { continue };
            if !matches!(mode, FileMode::Regular | FileMode::Executable) {
                continue;
            }
            if name.contains('/') {
                nested += 1;
                if nested > NESTED_MAX {
                    continue;
                }
            }
            if let Some((_, bytes)) = repositories.read_file(key, tree, path).await?
                && bytes.len() <= FILE_BYTES_MAX
            {
                contents.insert(name.to_owned(), bytes);
            }
        }
        Ok(Self { paths: listed.into_iter().map(|(path, _, _)| path).collect(), contents })
    }

    pub fn bytes(&self, name: &str) -> Option<&Bytes> {
        self.contents.get(name)
    }

    /// The file as text; absent when it is not UTF-8.
    pub fn text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.contents.get(name)?.to_vec()).ok()
    }

    pub fn has(&self, name: &str) -> bool {
        self.contents.contains_key(name)
    }

    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().filter_map(|path| std::str::from_utf8(path.as_bytes()).ok())
    }

    /// The files that were read, in order.
    pub fn read(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.contents.iter().map(|(name, bytes)| (name.as_str(), bytes))
    }

    /// The texts of the CI definitions.
    pub fn ci_texts(&self) -> impl Iterator<Item = String> {
        self.contents
            .iter()
            .filter(|(name, _)| is_ci(name))
            .map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned())
    }
}

fn is_wanted(name: &str) -> bool {
    AT_ROOT.contains(&name)
        || is_requirements(name)
        || is_ci(name)
        || name.ends_with("/Cargo.toml")
        || (name.ends_with("/package.json") && !name.contains("node_modules/"))
}

/// `requirements.txt`, `requirements-dev.txt`, `dev-requirements.txt`, `requirements/test.txt`.
pub(crate) fn is_requirements(name: &str) -> bool {
    match name.rsplit_once('/') {
        None => name.ends_with(".txt") && name.contains("requirements"),
        Some((folder, file)) => folder == "requirements" && file.ends_with(".txt"),
    }
}

fn is_ci(name: &str) -> bool {
    let yaml = name.ends_with(".yml") || name.ends_with(".yaml");
    yaml && (name.starts_with(".github/workflows/") || name == ".gitlab-ci.yml")
}
