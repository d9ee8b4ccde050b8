//! The toolchains of the worker's host, found by fixed questions and bound read-only into the sandbox.

use std::process::Stdio;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{Access, Mount};
use tokio::process::Command;

use super::PrepareError;
use crate::ecosystem::{BaseFiles, Ecosystem};

/// Tools answer `--version` at once; a shim that hangs must not hang preparation.
const PROBE_TIME: Duration = Duration::from_secs(20);
/// Where every sandbox sees the system's own tools.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// NixOS has nearly nothing in those folders: what a service may use is in folders below this one, on its own `PATH`.
const STORE: &str = "/nix/store/";
/// Folders that the sandbox shows anyway.
const SYSTEM_FOLDERS: &[&str] = &["/usr", "/bin", "/lib", "/lib64", "/sbin"];

/// What one tool brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    pub ecosystem: Ecosystem,
    /// `rustc 1.95.0 (…)`.
    pub version: String,
    /// The folder that goes first on `PATH`.
    pub bin: Utf8PathBuf,
    /// What must be visible; empty for a tool of the system.
    pub roots: Vec<Utf8PathBuf>,
    /// The interpreter or compiler itself.
    pub executable: Utf8PathBuf,
}

/// The tools that one repository needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Toolchains {
    pub tools: Vec<Tool>,
    /// Folders of the worker's `PATH` that lie in the store of Nix.
    pub store: Vec<String>,
}

impl Toolchains {
    /// Finds what `ecosystems` need. `path` is the worker's own `PATH`; the base says which Rust channel it pins.
    ///
    /// Errors: `MissingToolchain` with the name of the first that is absent.
    pub async fn find(path: &str, ecosystems: &[Ecosystem], files: &BaseFiles) -> Result<Self, PrepareError> {
        let mut tools = Vec::new();
        for ecosystem in ecosystems {
            match ecosystem {
                Ecosystem::Cargo => tools.push(rust(path, files).await?),
                Ecosystem::Npm => tools.push(node(path).await?),
                Ecosystem::Pytest => tools.push(python(path).await?),
                Ecosystem::Make => tools.push(make(path).await?),
            }
        }
        let store = path.split(':').filter(|folder| folder.starts_with(STORE)).map(str::to_owned).collect();
        Ok(Self { tools, store })
    }

    pub fn get(&self, ecosystem: Ecosystem) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.ecosystem == ecosystem)
    }

    /// `PATH` inside: the toolchains before the store of Nix, and that before the system.
    pub fn path(&self) -> String {
        let mut folders: Vec<&str> = Vec::new();
        for tool in &self.tools {
            if !folders.contains(&tool.bin.as_str()) && !SYSTEM_PATH.split(':').any(|folder| folder == tool.bin) {
                folders.push(tool.bin.as_str());
            }
        }
        for folder in &self.store {
            if !folders.contains(&folder.as_str()) {
                folders.push(folder);
            }
        }
        folders.push(SYSTEM_PATH);
        folders.join(":")
    }

    pub fn mounts(&self) -> Vec<Mount> {
        let mut roots: Vec<&Utf8PathBuf> = self.tools.iter().flat_map(|tool| &tool.roots).collect();
        roots.sort();
        roots.dedup();
        roots
            .into_iter()
            .map(|root| Mount { host: root.clone(), inside: root.clone(), access: Access::ReadOnly })
            .collect()
    }

    pub fn versions(&self) -> Vec<String> {
        self.tools.iter().map(|tool| tool.version.clone()).collect()
    }
}

async fn rust(path: &str, files: &BaseFiles) -> Result<Tool, PrepareError> {
    let missing = || PrepareError::MissingToolchain { name: "Rust (`rustc` and `cargo`)".to_owned() };
    let sysroot = ask(path, &["rustc", "--print", "sysroot"]).await.ok_or_else(missing)?;
    let mut sysroot = Utf8PathBuf::from(sysroot.trim());
    if let Some(channel) = pinned_channel(files) {
        sysroot = installed_channel(&sysroot, &channel).ok_or_else(|| PrepareError::MissingToolchain {
            name: format!("Rust `{channel}`, pinned by the repository"),
        })?;
    }
    let bin = sysroot.join("bin");
    let rustc = bin.join("rustc");
    let version = ask(path, &[rustc.as_str(), "--version"]).await.ok_or_else(missing)?;
    if !bin.join("cargo").exists() {
        return Err(missing());
    }
    // The sysroot holds rustc, cargo, clippy and rustfmt themselves; rustup's proxies would look for a home of their own.
    Ok(Tool {
        ecosystem: Ecosystem::Cargo,
        version: version.trim().to_owned(),
        bin,
        roots: outside_system(vec![sysroot]),
        executable: rustc,
    })
}

/// The channel of `rust-toolchain.toml` or `rust-toolchain`.
fn pinned_channel(files: &BaseFiles) -> Option<String> {
    let text = files.text("rust-toolchain.toml").or_else(|| files.text("rust-toolchain"))?;
    match text.parse::<toml::Table>() {
        Ok(table) => table.get("toolchain")?.get("channel")?.as_str().map(str::to_owned),
        Err(_) => text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()),
    }
}

/// Toolchains of rustup lie side by side, named `channel-host`.
fn installed_channel(sysroot: &Utf8Path, channel: &str) -> Option<Utf8PathBuf> {
    let named = |folder: &Utf8Path| {
        folder.file_name().is_some_and(|name| name == channel || name.starts_with(&format!("{channel}-")))
    };
    if named(sysroot) {
        return Some(sysroot.to_owned());
    }
    let siblings = sysroot.parent()?.read_dir_utf8().ok()?;
    let mut found: Vec<Utf8PathBuf> =
        siblings.flatten().map(|entry| entry.into_path()).filter(|path| named(path)).collect();
    found.sort();
    found.into_iter().next()
}

async fn node(path: &str) -> Result<Tool, PrepareError> {
    let missing = |name: &str| PrepareError::MissingToolchain { name: name.to_owned() };
    let said = ask(path, &["node", "-p", "process.execPath + '\\n' + process.version"]).await;
    let said = said.ok_or_else(|| missing("Node (`node`)"))?;
    let (executable, version) = said.trim().split_once('\n').ok_or_else(|| missing("Node (`node`)"))?;
    let npm = ask(path, &["npm", "--version"]).await.ok_or_else(|| missing("`npm`"))?;
    let executable = Utf8PathBuf::from(executable);
    let bin = executable.parent().unwrap_or(Utf8Path::new("/usr/bin")).to_owned();
    let prefix = bin.parent().unwrap_or(&bin).to_owned();
    Ok(Tool {
        ecosystem: Ecosystem::Npm,
        version: format!("node {}, npm {}", version.trim(), npm.trim()),
        bin,
        roots: outside_system(vec![prefix]),
        executable,
    })
}

async fn python(path: &str) -> Result<Tool, PrepareError> {
    let missing = || PrepareError::MissingToolchain { name: "Python (`python3`)".to_owned() };
    // Asked of the interpreter itself, because what is on the path may be a version manager's shell script.
    let question =
        "import sys; print(sys.executable); print(sys.prefix); print(sys.base_prefix); print(sys.version.split()[0])";
    let said = ask(path, &["python3", "-c", question]).await.ok_or_else(missing)?;
    let lines: Vec<&str> = said.lines().collect();
    let [executable, prefix, base_prefix, version] = lines[..] else { return Err(missing()) };
    let executable = Utf8PathBuf::from(executable);
    let bin = executable.parent().unwrap_or(Utf8Path::new("/usr/bin")).to_owned();
    Ok(Tool {
        ecosystem: Ecosystem::Pytest,
        version: format!("python {version}"),
        bin,
        roots: outside_system(vec![Utf8PathBuf::from(prefix), Utf8PathBuf::from(base_prefix)]),
        executable,
    })
}

async fn make(path: &str) -> Result<Tool, PrepareError> {
    let said = ask(path, &["make", "--version"]).await;
    let said = said.ok_or_else(|| PrepareError::MissingToolchain { name: "`make`".to_owned() })?;
    let version = said.lines().next().unwrap_or_default().to_owned();
    let bin = Utf8PathBuf::from("/usr/bin");
    Ok(Tool { ecosystem: Ecosystem::Make, version, executable: bin.join("make"), bin, roots: Vec::new() })
}

fn outside_system(roots: Vec<Utf8PathBuf>) -> Vec<Utf8PathBuf> {
    roots.into_iter().filter(|root| !SYSTEM_FOLDERS.iter().any(|folder| root.starts_with(folder))).collect()
}

/// Runs one of the host's own tools at `/`, so that no file of a repository has a say. `None` when it is absent, fails or is silent for too long.
pub(super) async fn ask(path: &str, argv: &[&str]) -> Option<String> {
    let (program, arguments) = argv.split_first()?;
    let program = if program.contains('/') { Utf8PathBuf::from(*program) } else { look_up(path, program)? };
    let mut command = Command::new(program.as_std_path());
    command.args(arguments).current_dir("/").env("PATH", path);
    command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(PROBE_TIME, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok())?
}

fn look_up(path: &str, name: &str) -> Option<Utf8PathBuf> {
    path.split(':')
        .filter(|folder| folder.starts_with('/'))
        .map(|folder| Utf8Path::new(folder).join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_pinned_channel_is_read_from_either_form() {
        let with = |name: &str, text: &'static str| {
            BaseFiles::new(vec![], BTreeMap::from([(name.to_owned(), bytes::Bytes::from_static(text.as_bytes()))]))
        };
        let toml = with("rust-toolchain.toml", "[toolchain]\nchannel = \"1.70.0\"\n");
        assert_eq!(pinned_channel(&toml).as_deref(), Some("1.70.0"));
        assert_eq!(pinned_channel(&with("rust-toolchain", "nightly\n")).as_deref(), Some("nightly"));
        assert_eq!(pinned_channel(&with("Cargo.toml", "")), None);
    }

    #[test]
    fn a_channel_is_found_beside_the_default_one_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(home.path()).unwrap();
        for name in ["stable-x86_64", "1.70.0-x86_64"] {
            fs_err::create_dir_all(root.join(name)).unwrap();
        }
        let default = root.join("stable-x86_64");
        assert_eq!(installed_channel(&default, "stable"), Some(default.clone()));
        assert_eq!(installed_channel(&default, "1.70.0"), Some(root.join("1.70.0-x86_64")));
        assert_eq!(installed_channel(&default, "1.7"), None);
    }

    #[tokio::test]
    async fn what_the_worker_has_of_the_store_of_nix_is_found_inside_and_nothing_else_of_its_path() {
        let path = "/nix/store/a-cargo/bin:/opt/own/bin:/nix/store/b-coreutils/bin:/usr/bin";
        let mut toolchains = Toolchains::find(path, &[], &BaseFiles::default()).await.unwrap();
        let outside = "/usr/local/bin:/usr/bin:/bin";
        assert_eq!(toolchains.path(), format!("/nix/store/a-cargo/bin:/nix/store/b-coreutils/bin:{outside}"));
        let bin = Utf8PathBuf::from("/nix/store/b-coreutils/bin");
        let executable = bin.join("node");
        toolchains.tools.push(Tool { ecosystem: Ecosystem::Npm, version: "1".into(), bin, roots: vec![], executable });
        assert_eq!(toolchains.path(), format!("/nix/store/b-coreutils/bin:/nix/store/a-cargo/bin:{outside}"));
        toolchains.store.clear();
        toolchains.tools.clear();
        assert_eq!(toolchains.path(), outside);
    }

    #[tokio::test]
    async fn an_absent_toolchain_is_named() {
        let nowhere = tempfile::tempdir().unwrap();
        let path = nowhere.path().to_str().unwrap();
        let error = Toolchains::find(path, &[Ecosystem::Cargo], &BaseFiles::default()).await.unwrap_err();
        assert!(error.to_string().contains("Rust (`rustc` and `cargo`)"), "{error}");
    }
}
