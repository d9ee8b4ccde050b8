//! Which copies of the ledger stay: the command of the CronJob, run as it is rendered, on a folder of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use cargo_metadata::camino::Utf8Path;
use serde_json::Value;

use super::SHORT_LIMIT;
use crate::process;

/// `backup.keep`, where an example of values says it.
const SAID: &[(&str, usize)] = &[("airgap", 30), ("environment-prod", 14)];
/// And where it does not.
const KEPT: usize = 7;
/// As the container mounts it.
const FOLDER: &str = "/backups/";

pub(super) fn the_newest_are_kept(objects: &BTreeMap<String, Vec<Value>>) -> anyhow::Result<()> {
    let mut tried = 0;
    for (name, objects) in objects {
        for job in objects.iter().filter(|object| object["kind"] == "CronJob") {
            let containers = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"];
            let thin = containers.as_array().into_iter().flatten().find(|one| one["name"] == "thin");
            let command = thin.context("no container of the backup removes old copies")?["command"].as_array();
            let command: Vec<&str> = command.into_iter().flatten().filter_map(Value::as_str).collect();
            let said = SAID.iter().find(|(example, _)| example == name);
            thinned(&command, said.map_or(KEPT, |(_, kept)| *kept)).with_context(|| format!("{name}: backups"))?;
            tried += 1;
        }
    }
    ensure!(tried > 0, "no example of values makes backups");
    println!("{tried} backups keep the newest copies and no others");
    Ok(())
}

fn thinned(command: &[&str], kept: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = Utf8Path::from_path(folder.path()).context("the path of temporary files is not UTF-8")?;
    // By name the newest is the first: only its time tells.
    let name = |age: usize| format!("ledger-{age:02}.db");
    for age in 0..kept + 3 {
        fs_err::write(folder.join(name(age)), "")?;
        let file = fs_err::OpenOptions::new().write(true).open(folder.join(name(age)))?;
        let day = Duration::from_secs(24 * 60 * 60);
        file.into_file().set_modified(SystemTime::UNIX_EPOCH + day * u32::try_from(100 - age)?)?;
    }
    fs_err::write(folder.join("of-somebody-else"), "")?;
    let [program, arguments @ ..] = command else { anyhow::bail!("there is no command") };
    // Twice: a night on which nothing is too much.
    for _ in 0..2 {
        let mut thin = Command::new(program);
        thin.args(arguments.iter().map(|one| one.replace(FOLDER, &format!("{folder}/"))));
        process::run(thin, SHORT_LIMIT)?;
    }
    let left: BTreeSet<String> =
        folder.read_dir_utf8()?.map(|entry| Ok(entry?.file_name().to_owned())).collect::<std::io::Result<_>>()?;
    let wanted: BTreeSet<String> = (0..kept).map(name).chain(["of-somebody-else".to_owned()]).collect();
    ensure!(left == wanted, "{left:?} are left instead of {wanted:?}");
    Ok(())
}
