//! The release tree: what gets installed, with a manifest of its hashes. Built from another folder it is the same, byte by byte.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use cargo_metadata::MetadataCommand;
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use memchr::memmem;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::process;
use crate::workspace::Workspace;

/// Package and binary. All of them are built at once and share what they are built from.
const PROGRAMS: &[(&str, &str)] = &[
    ("fettle-cli", "fettle"),
    ("fettle-dashboard", "fettle-dashboard"),
    ("fettle-engines", "fettle-engine-keeper"),
    ("fettle-inference", "fettle-inference"),
    ("fettle-installer", "fettle-installer"),
    ("fettle-sandbox", "fettle-sandbox"),
    ("fettle-worker", "fettle-worker"),
];
/// Folders below `systemd/` that go into the tree as they are.
const SHARED: &[&str] = &["apparmor", "polkit", "sysusers", "tmpfiles", "units"];
const SHARE: &str = "share/fettle";
const MANIFEST: &str = "manifest.json";
/// The oldest schema of the ledger whose programs can still work on the one that this release leaves.
const OLDEST_READER: u32 = 12;

/// Optimised, everything anew, on two slow cores.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);
const ASK_LIMIT: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Manifest<'a> {
    // In the order of the alphabet, as all keys are.
    arch: &'a str,
    files: BTreeMap<String, Entry>,
    oldest_reader: u32,
    schema: u32,
    version: &'a str,
}

#[derive(Serialize)]
struct Entry {
    mode: String,
    sha256: String,
}

/// Builds the programs and lays out the tree at `out`, in the place of an earlier one.
///
/// Errors: a build fails, a program names a folder of this machine, or something that is no release tree lies at `out`.
pub(crate) fn run(workspace: &Workspace, out: Option<&Utf8Path>, profile: &str) -> anyhow::Result<()> {
    let default = workspace.built("release-tree", "tree");
    let out = out.unwrap_or(&default);
    refuse_foreign(out)?;
    let changed = commit_time(workspace)?;
    let folders = Folders::ask(workspace)?;
    // A folder of its own: with other flags cargo would compile everything anew, and for the next plain build once more.
    let target = workspace.built("release-tree", "build");
    build(workspace, &folders, &target, profile, changed)?;

    let folder = target.join(if profile == "dev" { "debug" } else { profile });
    let mut sources = shared(workspace)?;
    for (_, program) in PROGRAMS {
        let path = folder.join(program);
        folders.refuse_named(&path)?;
        sources.insert(format!("bin/{program}"), path);
    }
    let version = workspace.version("fettle-cli").context("the workspace has the package fettle-cli")?;
    lay_out(out, &sources, &version, std::env::consts::ARCH, SystemTime::UNIX_EPOCH + Duration::from_secs(changed))?;
    println!("{out}");
    Ok(())
}

fn shared(workspace: &Workspace) -> anyhow::Result<BTreeMap<String, Utf8PathBuf>> {
    let mut sources = BTreeMap::new();
    for folder in SHARED {
        for entry in workspace.root().join("systemd").join(folder).read_dir_utf8()? {
            let path = entry?.into_path();
            let name = path.file_name().context("an entry of a folder has a name")?;
            sources.insert(format!("{SHARE}/{folder}/{name}"), path.clone());
        }
    }
    Ok(sources)
}

/// Folders of this machine that compilers would write into what they make, and what they write instead.
struct Folders(Vec<(Utf8PathBuf, &'static str)>);

impl Folders {
    fn ask(workspace: &Workspace) -> anyhow::Result<Self> {
        let mut folders =
            vec![(workspace.root().to_owned(), "fettle"), (workspace.target().to_owned(), "fettle/target")];
        let mut ask = MetadataCommand::new();
        // For this platform alone: cargo would fetch what only other platforms need.
        let only = ["--locked", "--filter-platform", &host(workspace)?].map(str::to_owned);
        ask.manifest_path(workspace.root().join("Cargo.toml")).other_options(only.to_vec());
        let packages = ask.exec().context("while asking cargo for the dependencies")?.packages;
        // A dependency lies in a folder of its own, beside the others of its registry.
        let mut registries: Vec<Utf8PathBuf> = packages
            .iter()
            .filter(|package| package.source.is_some())
            .filter_map(|package| Some(package.manifest_path.parent()?.parent()?.to_owned()))
            .collect();
        registries.sort();
        registries.dedup();
        folders.extend(registries.into_iter().map(|folder| (folder, "crates")));
        let mut rustc = Command::new("rustc");
        rustc.args(["--print", "sysroot"]).current_dir(workspace.root());
        folders.push((process::output(rustc, ASK_LIMIT)?.trim_end().into(), "rust"));
        Ok(Self(folders))
    }

    fn remap(&self, option: &str) -> Vec<String> {
        self.0.iter().map(|(folder, name)| format!("{option}={folder}=/{name}")).collect()
    }

    /// A path that got through would differ on the next machine.
    fn refuse_named(&self, program: &Utf8Path) -> anyhow::Result<()> {
        let bytes = fs_err::read(program)?;
        for (folder, _) in &self.0 {
            let name = folder.as_str().as_bytes();
            let found = memmem::find(&bytes, name);
            ensure!(found.is_none(), "{program} names the folder {folder} of this machine");
        }
        Ok(())
    }
}

/// The platform that `rustc` builds for when none is named.
fn host(workspace: &Workspace) -> anyhow::Result<String> {
    let mut rustc = Command::new("rustc");
    rustc.arg("-vV").current_dir(workspace.root());
    let said = process::output(rustc, ASK_LIMIT)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

fn build(
    workspace: &Workspace,
    folders: &Folders,
    target: &Utf8Path,
    profile: &str,
    changed: u64,
) -> anyhow::Result<()> {
    let mut command = workspace.cargo("build");
    command.args(["--profile", profile, "--target-dir", target.as_str()]);
    for (package, program) in PROGRAMS {
        command.args(["--package", package, "--bin", program]);
    }
    let c = folders.remap("-ffile-prefix-map").join(" ");
    command
        .env("CARGO_ENCODED_RUSTFLAGS", folders.remap("--remap-path-prefix").join("\u{1f}"))
        .env("CARGO_INCREMENTAL", "0")
        .env("CFLAGS", &c)
        .env("CXXFLAGS", &c)
        .env("SOURCE_DATE_EPOCH", changed.to_string())
        .env("SQLX_OFFLINE", "true");
    process::run(command, BUILD_LIMIT)
}

/// Seconds since 1970 of the commit that is built.
fn commit_time(workspace: &Workspace) -> anyhow::Result<u64> {
    let mut git = Command::new("git");
    git.current_dir(workspace.root()).args(["log", "-1", "--format=%ct"]);
    process::output(git, ASK_LIMIT)?.trim_end().parse().context("while reading the time of the last commit")
}

/// What is removed to make room is a release tree, or nothing is removed.
fn refuse_foreign(out: &Utf8Path) -> anyhow::Result<()> {
    let free = !out.exists() || out.join(MANIFEST).exists() || out.read_dir_utf8()?.next().is_none();
    ensure!(free, "{out} is there and is no release tree");
    Ok(())
}

/// Copies `sources` (place in the tree, file) and writes the manifest. Every time in the tree is `changed`.
fn lay_out(
    out: &Utf8Path,
    sources: &BTreeMap<String, Utf8PathBuf>,
    version: &str,
    arch: &str,
    changed: SystemTime,
) -> anyhow::Result<()> {
    if out.exists() {
        fs_err::remove_dir_all(out)?;
    }
    fs_err::create_dir_all(out)?;
    let mut files = BTreeMap::new();
    for (place, source) in sources {
        let content = fs_err::read(source)?;
        let mode = if place.starts_with("bin/") { 0o755 } else { 0o644 };
        let sha256 = hex::encode(Sha256::digest(&content));
        write(&out.join(place), &content, mode, changed)?;
        files.insert(place.clone(), Entry { mode: format!("{mode:04o}"), sha256 });
    }
    let manifest = Manifest { arch, files, oldest_reader: OLDEST_READER, schema: 1, version };
    let text = format!("{}\n", serde_json::to_string_pretty(&manifest)?);
    write(&out.join(MANIFEST), text.as_bytes(), 0o644, changed)?;
    date_folders(out, changed)
}

fn write(path: &Utf8Path, content: &[u8], mode: u32, changed: SystemTime) -> anyhow::Result<()> {
    fs_err::create_dir_all(path.parent().context("a file of the tree lies in it")?)?;
    fs_err::write(path, content)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    fs_err::File::options().write(true).open(path)?.into_parts().0.set_modified(changed)?;
    Ok(())
}

/// After the last file: each of them dates its folder anew.
fn date_folders(folder: &Utf8Path, changed: SystemTime) -> anyhow::Result<()> {
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            date_folders(entry.path(), changed)?;
        }
    }
    fs_err::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    fs_err::File::open(folder)?.into_parts().0.set_modified(changed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGED: Duration = Duration::from_secs(1_700_000_000);

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn tree(root: &Utf8Path) -> Utf8PathBuf {
        fs_err::write(root.join("built"), "program").unwrap();
        fs_err::set_permissions(root.join("built"), std::fs::Permissions::from_mode(0o700)).unwrap();
        fs_err::write(root.join("unit"), "[Unit]\n").unwrap();
        let sources = [("share/fettle/units/a.target", "unit"), ("bin/fettle", "built")]
            .map(|(place, file)| (place.to_owned(), root.join(file)));
        let out = root.join("tree");
        lay_out(&out, &sources.into(), "0.1.0", "x86_64", SystemTime::UNIX_EPOCH + CHANGED).unwrap();
        out
    }

    #[test]
    fn the_manifest_names_every_file_with_hash_and_mode_and_its_keys_are_sorted() {
        let (_folder, root) = folder();
        let manifest = fs_err::read_to_string(tree(&root).join(MANIFEST)).unwrap();
        // Hashes by `printf program | sha256sum` and `printf '[Unit]\n' | sha256sum`.
        let expected = r#"{
  "arch": "x86_64",
  "files": {
    "bin/fettle": {
      "mode": "0755",
      "sha256": "1310ca2c8932dbd118668bd97442558a3e1f546b5e15c69699dfbd6024f548d8"
    },
    "share/fettle/units/a.target": {
      "mode": "0644",
      "sha256": "ae6c63cff33bcfa3b6a2d6d0c9dd19521dedaa351146b1a642d2bfc9cf5a1e1f"
    }
  },
  "oldest_reader": 12,
  "schema": 1,
  "version": "0.1.0"
}
"#;
        assert_eq!(manifest, expected);
    }

    #[test]
    fn modes_and_times_do_not_depend_on_where_the_files_came_from() {
        let (_folder, root) = folder();
        let out = tree(&root);
        for (place, mode) in
            [("bin/fettle", 0o755), ("share/fettle/units/a.target", 0o644), (MANIFEST, 0o644), ("bin", 0o755)]
        {
            let facts = fs_err::metadata(out.join(place)).unwrap();
            assert_eq!(facts.permissions().mode() & 0o7777, mode, "{place}");
            assert_eq!(facts.modified().unwrap(), SystemTime::UNIX_EPOCH + CHANGED, "{place}");
        }
    }

    #[test]
    fn an_earlier_tree_makes_room_and_nothing_else_does() {
        let (_folder, root) = folder();
        let out = tree(&root);
        fs_err::write(out.join("bin/left-over"), "").unwrap();
        assert!(refuse_foreign(&out).is_ok());
        assert!(!tree(&root).join("bin/left-over").exists());
        assert!(refuse_foreign(&root).unwrap_err().to_string().ends_with("is there and is no release tree"));
    }

    #[test]
    fn a_program_that_names_a_folder_of_this_machine_is_refused() {
        let (_folder, root) = folder();
        let folders = Folders(vec![("/builds/fettle".into(), "fettle")]);
        let program = root.join("program");
        fs_err::write(&program, b"\x7fELF /fettle/crates/a.rs").unwrap();
        assert!(folders.refuse_named(&program).is_ok());
        fs_err::write(&program, b"\x7fELF /builds/fettle/crates/a.rs").unwrap();
        let refused = folders.refuse_named(&program).unwrap_err().to_string();
        assert!(refused.ends_with("names the folder /builds/fettle of this machine"), "{refused}");
    }

    #[test]
    fn the_manifest_says_what_migrations_ask_of_older_programs() {
        let workspace = Workspace::load().unwrap();
        let mut newest = 1;
        for entry in workspace.root().join("crates/store-sqlite/migrations").read_dir_utf8().unwrap() {
            let migration = fs_err::read_to_string(entry.unwrap().into_path()).unwrap();
            let raised = migration.split("SET oldest_reader = ").skip(1);
            let raised = raised.map(|rest| rest.split(';').next().unwrap().parse::<u32>().unwrap());
            newest = raised.chain([newest]).max().unwrap();
        }
        assert_eq!(newest, OLDEST_READER, "what a migration asks of older programs, a release says");
    }
}
