//! What is asked of the machine itself: folders, disk, walls and toolchains.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;
use camino::Utf8Path;
use fettle_agent::ecosystem::{BaseFiles, Ecosystem};
use fettle_agent::prepare::Toolchains;
use fettle_app::ports::clock::IdSource as _;
use fettle_app::ports::sandbox::SandboxLevel;
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::system::RandomIds;
use fettle_runtime::units::Size;

use super::Check;

/// Below this the ledger cannot be trusted to take its next writes.
const MIN_FREE_BYTES: u64 = 1 << 30;
/// Mirrors and prepared environments beside the workspaces of Runs.
const CACHE_BYTES: u64 = 4 << 30;
/// Where tools are looked for when nothing says.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The folder takes a file, and nobody else sees what lies there.
pub(super) fn data(data: &DataDir) -> Check {
    let root = data.root();
    if let Err(error) = write_and_remove(root) {
        return Check::fail(
            "data",
            format!("{root} cannot be written: {error}"),
            "name a folder that you may write with --data-dir",
        );
    }
    let key = data.admin_key();
    for path in [root, key.as_path()] {
        let mode = fs_err::metadata(path).map(|found| found.permissions().mode() & 0o777);
        if let Some(mode) = mode.ok().filter(|mode| mode & 0o077 != 0) {
            let remedy = format!("chmod go= {path}");
            return Check::warn(
                "data",
                format!("other users may enter {path} (mode {mode:o}), where keys and code lie"),
                remedy,
            );
        }
    }
    Check::ok("data", format!("{root} is writable and private"))
}

fn write_and_remove(folder: &Utf8Path) -> std::io::Result<()> {
    let path = folder.join(format!(".doctor-{}", RandomIds.uuid().simple()));
    fs_err::write(&path, "written by fettle doctor\n")?;
    fs_err::remove_file(&path)
}

/// Room for the ledger, and for all Runs at their largest.
pub(super) fn disk(data: &DataDir, config: &Config) -> Check {
    let found = match rustix::fs::statvfs(data.root().as_std_path()) {
        Ok(found) => found,
        Err(error) => {
            return Check::warn(
                "disk",
                format!("could not look at the disk of {}: {error}", data.root()),
                "look at it with df",
            );
        }
    };
    room(found.f_bavail.saturating_mul(found.f_frsize), config)
}

fn room(free: u64, config: &Config) -> Check {
    let walls = &config.agent.sandbox;
    let runs = u64::from(config.agent.workers).saturating_mul(walls.workspace.0.saturating_add(walls.temporary.0));
    let wanted = runs.saturating_add(CACHE_BYTES);
    let sentence = format!("{} free beside the data folder; Runs and caches may take {}", gib(free), gib(wanted));
    if free < MIN_FREE_BYTES {
        Check::fail("disk", sentence, "make room, or move the data folder with store.data_dir")
    } else if free < wanted {
        Check::warn("disk", sentence, "make room, or lower agent.workers or agent.sandbox.workspace")
    } else {
        Check::ok("disk", sentence)
    }
}

fn gib(bytes: u64) -> String {
    let mib = bytes >> 20;
    if mib < 1024 { Size(mib << 20).to_string() } else { format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024) }
}

/// The walls, found by building them.
pub(super) async fn sandbox(config: &Config, data: &DataDir) -> Check {
    let process = format!("doctor-{}", RandomIds.uuid().simple());
    let found = fettle_worker::sandbox(config, data, &process).await;
    let scratch = data.scratch(&process);
    // What is left is cleared by the next worker.
    let _ = fs_err::tokio::remove_dir_all(&scratch).await;
    match found {
        Ok(sandbox) => {
            let report = sandbox.report();
            let caps = if report.cgroup { "a cgroup" } else { "rlimits and a watcher" };
            let sentence = format!("level {}; {caps} cap memory and processes", report.level.name());
            match (report.level, report.notes.join("; ")) {
                (SandboxLevel::Full, notes) if notes.is_empty() => Check::ok("sandbox", sentence),
                (SandboxLevel::Full, notes) => Check { remedy: Some(notes), ..Check::ok("sandbox", sentence) },
                (SandboxLevel::Landlock, notes) => Check::warn("sandbox", sentence, notes),
            }
        }
        Err(error) => Check::fail(
            "sandbox",
            format!("{error:#}"),
            "nothing of a model or a repository is run without these walls",
        ),
    }
}

/// One check for each ecosystem: a missing one only matters for repositories that need it.
pub(super) async fn toolchains(environment: &Environment) -> Vec<Check> {
    let path = environment.find("PATH").unwrap_or(DEFAULT_PATH);
    let mut checks = Vec::new();
    for ecosystem in [Ecosystem::Cargo, Ecosystem::Npm, Ecosystem::Pytest] {
        let id = format!("toolchain.{}", ecosystem.name());
        checks.push(match version(path, ecosystem).await {
            Ok(version) => Check::ok(id, version),
            Err(error) => Check::warn(
                id,
                format!("{error:#}"),
                format!("install it on the PATH of whoever runs workers, to work on {} repositories", ecosystem.name()),
            ),
        });
    }
    checks
}

async fn version(path: &str, ecosystem: Ecosystem) -> Result<String> {
    Ok(Toolchains::find(path, &[ecosystem], &BaseFiles::default()).await?.versions().join(", "))
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::super::Status;
    use super::*;

    #[test]
    fn a_data_folder_that_others_may_enter_is_named_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(folder.path().join("data")).unwrap();
        let found = DataDir::open(Some(&root), &Config::default(), &Environment::default()).unwrap();
        assert_eq!(data(&found).status, Status::Ok);
        assert_eq!(fs_err::read_dir(&root).unwrap().count(), 0, "the trial file is removed");
        fs_err::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
        let check = data(&found);
        assert_eq!((check.status, check.remedy), (Status::Warn, Some(format!("chmod go= {root}"))));
    }

    #[test]
    fn room_is_measured_against_what_runs_may_take() {
        let config = Config::default();
        let statuses = [1 << 20, (1 << 30) + 1, 10 << 30].map(|free| room(free, &config).status);
        assert_eq!(statuses, [Status::Fail, Status::Warn, Status::Ok]);
        assert!(room((3 << 30) / 2, &config).sentence.starts_with("1.5 GiB free"));
    }

    #[tokio::test]
    async fn an_absent_toolchain_warns_and_says_what_is_missing() {
        let nowhere = tempfile::tempdir().unwrap();
        let path = nowhere.path().to_str().unwrap();
        let checks = toolchains(&Environment::from_pairs([("PATH", path)])).await;
        assert_eq!(checks.len(), 3);
        assert!(checks.iter().all(|check| check.status == Status::Warn && check.remedy.is_some()), "{checks:?}");
        assert!(checks[0].id == "toolchain.cargo" && checks[0].sentence.contains("rustc"), "{checks:?}");
    }
}
