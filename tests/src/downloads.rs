//! Reference material that others publish, fetched once with the registry's own client and kept in `target`.
//!
//! Nothing here decides a result: a test that cannot get its material says so, visibly, and is counted as skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::skip::skip;

/// For the whole download, in seconds; the largest package is 30 MB.
const FETCH_SECONDS: &str = "180";

/// The unpacked package (the folder with its `package.json`); `None` when the registry cannot be reached.
pub fn npm_package(name: &str, version: &str) -> Option<PathBuf> {
    told(name, version, || {
        let folder = home(name, version).join("all");
        if !folder.exists() {
            unpack(&tarball(name, version)?, &folder, &[])?;
        }
        Ok(folder.join("package"))
    })
}

/// One file of a package, without unpacking the rest; `None` when the registry cannot be reached.
pub fn npm_file(name: &str, version: &str, file: &str) -> Option<PathBuf> {
    told(name, version, || {
        let folder = home(name, version).join(file.replace('/', "+"));
        if !folder.exists() {
            unpack(&tarball(name, version)?, &folder, &[&format!("package/{file}")])?;
        }
        Ok(folder.join("package").join(file))
    })
}

/// Packages of PyPI in a folder that `PYTHONPATH` may name; `None` when they cannot be had. `name` is the folder's.
pub fn python_packages(name: &str, packages: &[&str]) -> Option<PathBuf> {
    let pip = ["python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--target"];
    installed("python", name, packages, &pip)
}

/// Packages of the npm registry with what they need, in a folder that has `node_modules`; `None` when they cannot be had. `name`
/// is the folder's.
pub fn npm_packages(name: &str, packages: &[&str]) -> Option<PathBuf> {
    let npm = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"];
    installed("node", name, packages, &npm)
}

/// Exactly what a project's lock file names, in a folder that has `node_modules`; `None` when it cannot be had.
pub fn npm_locked(project: &Path) -> Option<PathBuf> {
    let get = || {
        let lock = fs_err::read(project.join("package-lock.json"))?;
        let home = cache().join("node");
        let kept = home.join(format!("locked-{:016x}", digest(&lock)));
        if kept.exists() {
            return Ok(kept);
        }
        fs_err::create_dir_all(&home)?;
        let work = tempfile::tempdir_in(&home)?;
        let target = work.path().join("packages");
        fs_err::create_dir(&target)?;
        for file in ["package.json", "package-lock.json"] {
            fs_err::copy(project.join(file), target.join(file))?;
        }
        let mut command = Command::new("timeout");
        command.arg(FETCH_SECONDS).args(["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]);
        let output = command.current_dir(&target).stdin(Stdio::null()).output().context("while starting npm")?;
        if !output.status.success() {
            bail!("npm ci failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        if fs_err::rename(&target, &kept).is_err() && !kept.exists() {
            bail!("{} cannot be made", kept.display());
        }
        Ok(kept)
    };
    match get() {
        Ok(path) => Some(path),
        Err(error) => {
            skip(&format!("what needs the packages of {}: {error:#}", project.display()));
            None
        }
    }
}

fn digest(content: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}

/// What `install` makes of the packages in the folder that it is given after its own arguments.
fn installed(kind: &str, name: &str, packages: &[&str], install: &[&str]) -> Option<PathBuf> {
    let home = cache().join(kind);
    let kept = home.join(format!("{name}-{}", packages.join("+").replace('/', "_")));
    let get = || {
        if kept.exists() {
            return Ok(kept.clone());
        }
        fs_err::create_dir_all(&home)?;
        let work = tempfile::tempdir_in(&home)?;
        let target = work.path().join("packages");
        fs_err::create_dir(&target)?;
        let mut command = Command::new("timeout");
        command.arg(FETCH_SECONDS).args(install).arg(&target).args(packages).stdin(Stdio::null());
        let output = command.output().context("while starting the registry's client")?;
        if !output.status.success() {
            bail!("{} failed: {}", install[0], String::from_utf8_lossy(&output.stderr).trim());
        }
        // Whoever was faster has left the same.
        if fs_err::rename(&target, &kept).is_err() && !kept.exists() {
            bail!("{} cannot be made", kept.display());
        }
        Ok(kept.clone())
    };
    match get() {
        Ok(path) => Some(path),
        Err(error) => {
            skip(&format!("what needs {} of a registry: {error:#}", packages.join(", ")));
            None
        }
    }
}

/// What `cargo xtask test --engines` has made under this name; `None` where it has not.
pub fn engines(name: &str) -> Option<PathBuf> {
    let kept = cache().join("engines").join(name);
    if kept.join("version").exists() {
        return fs_err::canonicalize(kept).ok();
    }
    skip(&format!("what needs {name} itself: `cargo xtask test --engines` fetches and builds it"));
    None
}

/// The folder of `etcd`, `kube-apiserver`, `kube-controller-manager` and `helm` that `cargo xtask test --cluster` has made; `None`
/// where it has not.
pub fn cluster() -> Option<PathBuf> {
    let kept = cache().join("cluster");
    if kept.join("version").exists() {
        return fs_err::canonicalize(kept).ok();
    }
    skip("what needs a control plane of Kubernetes: `cargo xtask test --cluster` builds it");
    None
}

fn told(name: &str, version: &str, get: impl FnOnce() -> anyhow::Result<PathBuf>) -> Option<PathBuf> {
    match get() {
        Ok(path) => Some(path),
        Err(error) => {
            skip(&format!("what needs {name} {version} of the npm registry: {error:#}"));
            None
        }
    }
}

fn cache() -> PathBuf {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fettle-test-cache");
    fs_err::create_dir_all(&cache).expect("the target folder can be written");
    cache
}

fn home(name: &str, version: &str) -> PathBuf {
    cache().join("npm").join(format!("{}-{version}", name.replace('/', "+")))
}

/// Downloads into a folder of its own and moves the result, so that tests may race for it.
fn tarball(name: &str, version: &str) -> anyhow::Result<PathBuf> {
    let home = home(name, version);
    let kept = home.join("package.tgz");
    if kept.exists() {
        return Ok(kept);
    }
    fs_err::create_dir_all(&home)?;
    let work = tempfile::tempdir_in(&home)?;
    let output = Command::new("timeout")
        .args([FETCH_SECONDS, "npm", "pack", "--silent", "--ignore-scripts", "--fetch-retries=1"])
        .arg(format!("{name}@{version}"))
        .current_dir(work.path())
        .stdin(Stdio::null())
        .output()
        .context("while starting npm")?;
    if !output.status.success() {
        bail!("npm pack failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let packed = fs_err::read_dir(work.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "tgz"))
        .context("npm pack left no package")?;
    fs_err::rename(packed, &kept)?;
    Ok(kept)
}

fn unpack(tarball: &Path, into: &Path, members: &[&str]) -> anyhow::Result<()> {
    let work = tempfile::tempdir_in(into.parent().context("a folder in the cache")?)?;
    let status = Command::new("tar")
        .args(["--extract", "--gzip", "--no-same-owner", "--file"])
        .arg(tarball)
        .arg("--directory")
        .arg(work.path())
        .args(members)
        .stdin(Stdio::null())
        .status()
        .context("while starting tar")?;
    if !status.success() {
        bail!("could not unpack {}", tarball.display());
    }
    // Whoever comes second keeps what the first has put there.
    if let Err(error) = fs_err::rename(work.path(), into)
        && !into.exists()
    {
        return Err(error.into());
    }
    Ok(())
}
