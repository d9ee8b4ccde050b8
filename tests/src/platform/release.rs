//! Release trees for the machine, from the programs that were just built.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::machine::run;
use crate::world::program;

const PROGRAMS: [&str; 7] = [
    "fettle",
    "fettle-dashboard",
    "fettle-engine-keeper",
    "fettle-inference",
    "fettle-installer",
    "fettle-sandbox",
    "fettle-worker",
];
/// Folders of `systemd/` that a release carries.
const SHARED: [&str; 5] = ["units", "sysusers", "tmpfiles", "apparmor", "polkit"];
const STRIP_LIMIT: Duration = Duration::from_secs(120);

/// What is in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The programs as they were built.
    Good,
    /// The same, built differently as far as anybody can see.
    Rebuilt,
    /// Its dashboard starts, and never says that it is ready.
    Broken,
}

/// Lays a release tree out in `folder`; `systemd` is the repository's folder of units.
pub fn lay(kind: Kind, systemd: &Utf8Path, folder: &Utf8Path) -> anyhow::Result<()> {
    let bin = folder.join("bin");
    fs_err::create_dir_all(&bin)?;
    let mut files: BTreeMap<Utf8PathBuf, serde_json::Value> = BTreeMap::new();
    for name in PROGRAMS {
        let path = bin.join(name);
        // Debug information is most of a test build, and each release is copied and hashed.
        let mut strip = Command::new("strip");
        strip.args(["--strip-debug", "-o", path.as_str(), program(name)?.as_str()]);
        run(strip, STRIP_LIMIT)?.whole()?;
        match kind {
            Kind::Good => {}
            // What stands behind an ELF file changes nothing but its hash.
            Kind::Rebuilt => append(&path, b"rebuilt")?,
            Kind::Broken if name == "fettle-dashboard" => {
                fs_err::write(&path, "#!/bin/sh\n# Started, and never ready.\nexec sleep 1000000\n")?;
            }
            Kind::Broken => append(&path, b"broken")?,
        }
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        files.insert(format!("bin/{name}").into(), entry(&path, "0755")?);
    }
    for shared in SHARED {
        let target = folder.join("share/fettle").join(shared);
        fs_err::create_dir_all(&target)?;
        for found in fs_err::read_dir(systemd.join(shared))? {
            let found = Utf8PathBuf::try_from(found?.path())?;
            let Some(name) = found.file_name() else { continue };
            fs_err::copy(&found, target.join(name))?;
            files.insert(format!("share/fettle/{shared}/{name}").into(), entry(&found, "0644")?);
        }
    }
    let manifest = json!({
        "schema": 1,
        "version": env!("CARGO_PKG_VERSION"),
        "arch": std::env::consts::ARCH,
        "oldest_reader": 1,
        "files": files,
    });
    fs_err::write(folder.join("manifest.json"), serde_json::to_string_pretty(&manifest)? + "\n")?;
    Ok(())
}

fn append(path: &Utf8Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    Ok(fs_err::OpenOptions::new().append(true).open(path)?.write_all(bytes)?)
}

fn entry(path: &Utf8Path, mode: &str) -> anyhow::Result<serde_json::Value> {
    let mut digest = Sha256::new();
    std::io::copy(&mut fs_err::File::open(path)?, &mut digest)?;
    Ok(json!({ "sha256": hex::encode(digest.finalize()), "mode": mode }))
}
