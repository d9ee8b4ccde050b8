//! Inference servers and agents as their makers publish them, for the tests that `--engines` adds: fetched and built once, kept below
//! `target/fettle-test-cache/engines`. What cannot be had is left out, and the tests that need it say so.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};

use crate::process;
use crate::workspace::Workspace;

/// Its source has llama.cpp's whole tree within, `llama-server` included.
const LLAMA: &str = "llama-cpp-python==0.3.36";
const AGENTS: &[&str] = &["aider-chat==0.86.2", "mini-swe-agent==2.4.6"];
/// Some hundred megabytes over a slow line.
const FETCH_LIMIT: Duration = Duration::from_secs(20 * 60);
/// A quarter of an hour on two busy cores.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Makes what is missing. The names of the folders are those that `fettle_tests::downloads::engines` looks for.
pub(crate) fn provide(workspace: &Workspace) -> anyhow::Result<()> {
    let home = workspace.built("", "fettle-test-cache/engines");
    fs_err::create_dir_all(&home)?;
    keep(&home, "llama.cpp", LLAMA, llama)?;
    keep(&home, "agents", &AGENTS.join(" "), |folder| pip(folder, &[], AGENTS))
}

/// The folder `name` as `make` fills it, unless it is there already from the same `version`.
fn keep(
    home: &Utf8Path,
    name: &str,
    version: &str,
    make: impl FnOnce(&Utf8Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (kept, work) = (home.join(name), home.join(format!("{name}.new")));
    if fs_err::read_to_string(kept.join("version")).is_ok_and(|found| found == version) {
        println!("{name}: {version} is there");
        return Ok(());
    }
    println!("{name}: {version} is fetched and built; that takes a while");
    for old in [&kept, &work] {
        if old.exists() {
            fs_err::remove_dir_all(old)?;
        }
    }
    fs_err::create_dir(&work)?;
    make(&work).with_context(|| format!("while making {name}"))?;
    fs_err::write(work.join("version"), version)?;
    fs_err::rename(work, kept)?;
    Ok(())
}

/// `bin/llama-server` with its libraries, and `packages` with the Python server on top of the same libraries.
fn llama(folder: &Utf8Path) -> anyhow::Result<()> {
    let source = folder.join("source");
    let mut fetch = python();
    fetch.args(["download", "--no-deps", "--no-binary", ":all:", "--dest"]).args([source.as_str(), LLAMA]);
    process::run(fetch, FETCH_LIMIT)?;
    let mut unpack = Command::new("tar");
    unpack.args(["--extract", "--gzip", "--strip-components=1", "--file"]).arg(only_file(&source)?);
    unpack.args(["--directory", source.as_str()]);
    process::run(unpack, FETCH_LIMIT)?;
    let mut configure = Command::new("cmake");
    configure.args(["-S", source.join("vendor/llama.cpp").as_str(), "-B", source.join("build").as_str()]);
    configure.args(["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"]);
    // Less optimised it is built in half the time, and a model of some thousand weights does not need more.
    configure.args(["-DCMAKE_C_FLAGS_RELEASE=-O1 -DNDEBUG", "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG"]);
    configure.args(["TESTS", "EXAMPLES", "APP"].map(|part| format!("-DLLAMA_BUILD_{part}=OFF")));
    configure.args(["-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF", "-DGGML_OPENMP=OFF", "-DGGML_LLAMAFILE=OFF"]);
    process::run(configure, BUILD_LIMIT)?;
    let mut build = Command::new("cmake");
    // Without a number make would start all at once.
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string();
    build.args(["--build", source.join("build").as_str(), "--target", "llama-server", "--parallel", &jobs]);
    process::run(build, BUILD_LIMIT)?;
    let package = format!("{source}[server]");
    pip(folder, &[("CMAKE_ARGS", "-DLLAMA_BUILD=OFF")], &[&package])?;
    fs_err::rename(source.join("build/bin"), folder.join("bin"))?;
    fs_err::remove_dir_all(source)?;
    Ok(())
}

/// `packages` for `PYTHONPATH`.
fn pip(folder: &Utf8Path, environment: &[(&str, &str)], packages: &[&str]) -> anyhow::Result<()> {
    let mut install = python();
    install.args(["install", "--quiet", "--no-compile", "--target", folder.join("packages").as_str()]).args(packages);
    install.envs(environment.iter().copied());
    process::run(install, FETCH_LIMIT)
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "--disable-pip-version-check"]);
    command
}

fn only_file(folder: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    let entry = folder.read_dir_utf8()?.next().context("nothing was fetched")??;
    Ok(entry.into_path())
}
