//! Reads a release tree: the folder that `cargo xtask release-tree`, Nix or a bundle made.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::action::{MANIFEST, Manifest};
use crate::host::{Entry, HostView, sha256};
use crate::plan::Release;

const SHARE: &str = "share/fettle";
/// A unit or profile is some kilobytes.
const SHARED_BYTES: usize = 1 << 20;

/// Errors with a sentence when it is no release tree, is damaged, or is made for another kind of machine.
pub fn read(host: &dyn HostView, source: &Utf8Path) -> Result<Release, String> {
    let path = source.join(MANIFEST);
    let bytes = host.read(&path).map_err(|error| {
        format!("{source} is no release tree: {error}. Name one with --release, made by `cargo xtask release-tree`, Nix or a bundle")
    })?;
    let manifest = Manifest::parse(&bytes).map_err(|error| format!("{path}: {error}"))?;
    let machine = std::env::consts::ARCH;
    if manifest.arch != machine {
        return Err(format!("{source} is made for {}, and this machine is {machine}", manifest.arch));
    }
    let mut shared: BTreeMap<Utf8PathBuf, String> = BTreeMap::new();
    for (name, file) in &manifest.files {
        let Ok(inside) = name.strip_prefix(SHARE) else { continue };
        let path = source.join(name);
        let bytes = host.read(&path).map_err(|error| error.to_string())?;
        if sha256(&bytes) != file.sha256 || bytes.len() > SHARED_BYTES {
            return Err(format!("{path} does not have the content that {MANIFEST} names; get the release again"));
        }
        let text = String::from_utf8(bytes).map_err(|_| format!("{path} is no text"))?;
        shared.insert(inside.to_owned(), text);
    }
    Ok(Release { source: source.to_owned(), manifest_sha256: sha256(&bytes), manifest, shared })
}

/// Every file against its hash, before anything is copied. A tree that Nix made holds links into its store.
///
/// Errors with a sentence about the first file that is another.
pub fn verify(host: &dyn HostView, release: &Release) -> Result<(), String> {
    for (name, wanted) in &release.manifest.files {
        let path = release.source.join(name);
        let real = path.canonicalize_utf8().map_err(|error| format!("{path}: {error}; get the release again"))?;
        match host.entry(&real).map_err(|error| error.to_string())? {
            Entry::File { sha256, .. } if sha256 == wanted.sha256 => {}
            _ => return Err(format!("{path} does not have the content that {MANIFEST} names; get the release again")),
        }
    }
    Ok(())
}

/// The release tree that the running program lies in.
pub fn own() -> Option<Utf8PathBuf> {
    let program = std::env::current_exe().ok().and_then(|path| Utf8PathBuf::from_path_buf(path).ok())?;
    let tree = program.canonicalize_utf8().ok()?.parent()?.parent()?.to_owned();
    tree.join(MANIFEST).is_file().then_some(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::RealHost;

    #[test]
    fn a_file_that_is_not_what_the_manifest_names_is_found_before_anything_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Utf8Path::from_path(folder.path()).unwrap();
        fs_err::create_dir(tree.join("bin")).unwrap();
        fs_err::write(tree.join("bin/fettle"), "program").unwrap();
        let manifest = serde_json::json!({
            "schema": 1, "version": "1.0.0", "arch": std::env::consts::ARCH, "oldest_reader": 1,
            "files": { "bin/fettle": { "sha256": sha256(b"program"), "mode": "0755" } },
        });
        fs_err::write(tree.join(MANIFEST), manifest.to_string()).unwrap();
        let host = RealHost::new().unwrap();
        let release = read(&host, tree).unwrap();
        assert_eq!(verify(&host, &release), Ok(()));
        for damage in ["prograM", ""] {
            fs_err::write(tree.join("bin/fettle"), damage).unwrap();
            assert!(verify(&host, &release).unwrap_err().contains("bin/fettle"));
        }
        fs_err::remove_file(tree.join("bin/fettle")).unwrap();
        assert!(verify(&host, &release).unwrap_err().contains("get the release again"));
    }
}
