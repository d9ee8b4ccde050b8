//! The Helm chart: rendered by the real helm for every example of values, held against schemas and rules, and refusing what cannot
//! work. Never asks a cluster.

mod backups;
mod cluster;
mod render;
mod rules;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde_json::Value;

use crate::process::{self, Stream};
use crate::workspace::Workspace;
use render::{Apis, Helm};

pub(crate) use tools::Missing;

const CHART: &str = "charts/fettle";
const SNAPSHOTS: &str = "charts/fettle/tests/snapshots";
const REFUSED: &str = "charts/fettle/tests/refused";
const FLUX: &str = "charts/fettle/examples/flux";
const RULES: &str = "charts/fettle/rules/fettle.yaml";
const RULE_TESTS: &str = "charts/fettle/tests/rules/fettle.yaml";
const BOARD: &str = "charts/fettle/dashboards/fettle.json";
const SCHEMAS: &str = "charts/schemas";
/// What `Chart.yaml` promises, as far as schemas are published.
const KUBERNETES: &str = "1.34,1.35,1.36,1.37";
/// What the refused values stand above: values that are accepted.
const BASE: &str = "charts/fettle/ci/minimal-values.yaml";
const SHORT_LIMIT: Duration = Duration::from_secs(60); // one call of a tool that reads files
const VALIDATE_LIMIT: Duration = Duration::from_secs(3 * 60); // every object against four versions

const CLI: &str = "fettle";
/// Programs of ours that are in images, by the images' names.
const PROGRAMS: &[&str] = &[CLI, "fettle-dashboard", "fettle-worker"];

/// Begins the first line of a file of refused values; what follows must be in the refusal.
const EXPECTED: &str = "# refused: ";
/// A line of such a file: the cluster has nothing but Kubernetes.
const BARE_CLUSTER: &str = "# apis: none";

/// Manifests, by the name of the values that they were rendered with.
type Renders = BTreeMap<String, String>;

/// Checks the chart; gives what could not be looked at, as sentences.
pub(crate) fn check(workspace: &Workspace, missing: Missing) -> anyhow::Result<Vec<String>> {
    let root = workspace.root();
    let mut skipped = Vec::new();
    let renders = match tools::helm(workspace, missing)? {
        Ok(helm) => {
            let renders = rendered(root, &helm)?;
            lint(root, &helm)?;
            compare(root, &renders)?;
            refuse(root, &helm)?;
            cluster::lacking_keys_are_named(root, &helm)?;
            renders
        }
        Err(why) => {
            skipped.push(format!("the chart is not rendered, and its committed renderings are looked at: {why}"));
            committed(root)?
        }
    };
    match tools::validator(workspace, missing)? {
        Ok(python) => {
            let objects = validate(workspace, &python, &renders)?;
            judge(&objects)?;
            backups::the_newest_are_kept(&objects)?;
            if PROGRAMS.iter().all(|program| workspace.built("debug", program).exists()) {
                check_config(workspace, &objects)?;
                calls_exist(workspace, &objects)?;
            } else {
                skipped.push(
                    "the chart's fettle.toml and command lines are read by no program: they are not built".to_owned(),
                );
            }
        }
        Err(why) => skipped.push(format!("the chart's objects are held against no schema and no rule: {why}")),
    }
    metrics_exist(workspace)?;
    keys_can_be_set(root)?;
    alerts_are_tested(root)?;
    match tools::promtool() {
        Ok(promtool) => {
            for arguments in [["check", "rules", RULES], ["test", "rules", RULE_TESTS]] {
                let mut command = Command::new(promtool);
                command.current_dir(root).args(arguments);
                process::run(command, SHORT_LIMIT)?;
            }
        }
        Err(why) => skipped.push(format!("the chart's alerts are not read by Prometheus: {why}")),
    }
    Ok(skipped)
}

/// Writes the snapshots anew; a sentence when that cannot be done here.
pub(crate) fn codegen(workspace: &Workspace, helm: Missing) -> anyhow::Result<Result<(), String>> {
    let root = workspace.root();
    let helm = match tools::helm(workspace, helm)? {
        Ok(helm) => helm,
        Err(why) => return Ok(Err(why)),
    };
    let renders = rendered(root, &helm)?;
    let folder = root.join(SNAPSHOTS);
    fs_err::create_dir_all(&folder)?;
    for file in files(&folder)? {
        fs_err::remove_file(file)?;
    }
    for (name, text) in renders {
        fs_err::write(folder.join(format!("{name}.yaml")), text)?;
    }
    Ok(Ok(()))
}

/// The program, built if it is not there.
pub(crate) fn helm(workspace: &Workspace) -> anyhow::Result<Utf8PathBuf> {
    Ok(tools::helm(workspace, Missing::Build)?.map_err(|why| anyhow::anyhow!("{why}"))?.into_program())
}

/// Each file of values and what it is called: `ci/*-values.yaml` and the environments.
fn examples(root: &Utf8Path) -> anyhow::Result<Vec<(String, Vec<Utf8PathBuf>)>> {
    let chart = root.join(CHART);
    let ci = files(&chart.join("ci"))?.into_iter().map(|file| {
        let name = file.file_name().unwrap_or_default().trim_end_matches("-values.yaml").to_owned();
        (name, vec![file])
    });
    // An environment says nothing of the forge and the models, which are the user's.
    let environments = files(&chart.join("environments"))?.into_iter().map(|file| {
        let name = format!("environment-{}", file.file_stem().unwrap_or_default());
        (name, vec![root.join(BASE), file])
    });
    Ok(ci.chain(environments).collect())
}

fn rendered(root: &Utf8Path, helm: &Helm) -> anyhow::Result<Renders> {
    let one = |(name, values): (String, Vec<Utf8PathBuf>)| {
        let text = helm.template(&root.join(CHART), &values, Apis::All)?;
        let text = text.map_err(|why| anyhow::anyhow!("{why}")).with_context(|| format!("while rendering {name}"))?;
        Ok((name, render::settled(&text)))
    };
    let renders: Renders = examples(root)?.into_iter().map(one).collect::<anyhow::Result<_>>()?;
    println!("{} examples of values are rendered", renders.len());
    Ok(renders)
}

fn lint(root: &Utf8Path, helm: &Helm) -> anyhow::Result<()> {
    for (name, values) in examples(root)? {
        helm.lint(&root.join(CHART), &values)?.map_err(|why| anyhow::anyhow!("helm lint with {name}: {why}"))?;
    }
    Ok(())
}

fn committed(root: &Utf8Path) -> anyhow::Result<Renders> {
    let read = |file: Utf8PathBuf| {
        let name = file.file_stem().unwrap_or_default().to_owned();
        Ok((name, fs_err::read_to_string(&file)?))
    };
    files(&root.join(SNAPSHOTS))?.into_iter().map(read).collect()
}

fn compare(root: &Utf8Path, renders: &Renders) -> anyhow::Result<()> {
    let committed = committed(root)?;
    let names: BTreeSet<&String> = committed.keys().chain(renders.keys()).collect();
    let stale: Vec<String> = names
        .into_iter()
        .filter_map(|name| match (committed.get(name), renders.get(name)) {
            (Some(before), Some(now)) => render::first_difference(before, now).map(|at| format!("{name} ({at})")),
            (None, _) => Some(format!("{name} (it has no snapshot)")),
            (Some(_), None) => Some(format!("{name} (nothing makes it any more)")),
        })
        .collect();
    ensure!(stale.is_empty(), "{SNAPSHOTS} is out of date, run `cargo xtask codegen`: {}", stale.join("; "));
    Ok(())
}

/// Every file of refused values is refused, with its sentence.
fn refuse(root: &Utf8Path, helm: &Helm) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    let cases = files(&root.join(REFUSED))?;
    for case in &cases {
        let text = fs_err::read_to_string(case)?;
        let expected = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix(EXPECTED))
            .with_context(|| format!("{case} does not begin with `{EXPECTED}`"))?;
        let apis = if text.lines().any(|line| line == BARE_CLUSTER) { Apis::None } else { Apis::All };
        match helm.template(&root.join(CHART), &[root.join(BASE), case.clone()], apis)? {
            Ok(_) => wrong.push(format!("{case} is accepted")),
            Err(why) if why.contains(expected) => {}
            Err(why) => wrong.push(format!("{case} is refused by `{why}`, wanted `{expected}`")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} bad values are refused, each with its sentence", cases.len());
    Ok(())
}

/// One object of one rendering.
#[derive(Deserialize)]
struct Validated {
    file: Utf8PathBuf,
    object: Value,
    problems: Vec<String>,
}

/// The objects of each rendering. Errors name every object that a schema refuses.
fn validate(
    workspace: &Workspace,
    python: &Utf8Path,
    renders: &Renders,
) -> anyhow::Result<BTreeMap<String, Vec<Value>>> {
    let root = workspace.root();
    let folder = tempfile::tempdir()?;
    let folder = Utf8Path::from_path(folder.path()).context("the path of temporary files is not UTF-8")?;
    let mut command = Command::new(python);
    command.arg(root.join("crates/xtask/src/chart/validate.py")).arg(root.join(SCHEMAS)).arg(KUBERNETES);
    for (name, text) in renders {
        let file = folder.join(format!("{name}.yaml"));
        fs_err::write(&file, text)?;
        command.arg(file);
    }
    // Their kinds are checked; they are no part of a release.
    command.args(files(&root.join(FLUX))?);
    let told = process::output(command, VALIDATE_LIMIT)?;
    let (mut objects, mut refused) = (BTreeMap::<String, Vec<Value>>::new(), Vec::new());
    let mut count = 0;
    for line in told.lines() {
        let Validated { file, object, problems } = serde_json::from_str(line).context("while reading validate.py")?;
        let name = file.file_stem().unwrap_or_default().to_owned();
        refused.extend(problems.iter().map(|problem| format!("{name}: {}: {problem}", rules::called(&object))));
        count += 1;
        if renders.contains_key(&name) {
            objects.entry(name).or_default().push(object);
        }
    }
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    println!("{count} objects are valid for Kubernetes {KUBERNETES}");
    Ok(objects)
}

fn judge(objects: &BTreeMap<String, Vec<Value>>) -> anyhow::Result<()> {
    let found: Vec<String> = objects
        .iter()
        .flat_map(|(name, objects)| rules::breaches(objects).into_iter().map(move |breach| format!("{name}: {breach}")))
        .collect();
    ensure!(found.is_empty(), "{}", found.join("\n"));
    let airgap = objects.get("airgap").context("there are no values for an air gap")?;
    let loose: Vec<String> = rules::images(airgap).into_iter().filter(|image| !image.contains("@sha256:")).collect();
    ensure!(loose.is_empty(), "airgap: images without a digest: {}", loose.join(", "));
    let founding = objects.get("founding").context("there are no values for the founding shape")?;
    let missing = rules::not_founding(founding, "fettle-worker");
    ensure!(missing.is_empty(), "founding: {}", missing.join("; "));
    Ok(())
}

/// Each rendered configuration is accepted by the program that will have it.
fn check_config(workspace: &Workspace, objects: &BTreeMap<String, Vec<Value>>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file =
        Utf8Path::from_path(folder.path()).context("the path of temporary files is not UTF-8")?.join("fettle.toml");
    for (name, objects) in objects {
        let text = objects.iter().find_map(rules::configuration);
        fs_err::write(&file, text.with_context(|| format!("{name} has no fettle.toml"))?)?;
        let mut command = Command::new(workspace.built("debug", CLI));
        command.arg("check-config").arg(&file);
        // Its warnings are of secrets that only a cluster has.
        let mut said = Vec::new();
        let status = process::run_lines(command, SHORT_LIMIT, &mut |stream, line| match stream {
            Stream::Out => println!("{name}: {line}"),
            Stream::Err => said.push(line.to_owned()),
        })?;
        ensure!(status.success(), "{name}: fettle.toml is refused: {}", said.join("\n"));
    }
    println!("{} rendered configurations are accepted by `fettle check-config`", objects.len());
    Ok(())
}

/// Every verb and flag that a pod starts one of our programs with is in that program's help.
fn calls_exist(workspace: &Workspace, objects: &BTreeMap<String, Vec<Value>>) -> anyhow::Result<()> {
    let calls: BTreeSet<rules::Call> = objects.values().flat_map(|objects| rules::calls(objects, PROGRAMS)).collect();
    for rules::Call { program, verbs, flags } in &calls {
        // A verb's own help has the flags that stand behind it.
        let help = |verbs: &[String]| {
            let mut command = Command::new(workspace.built("debug", program));
            command.args(verbs).arg("--help");
            process::output(command, SHORT_LIMIT)
        };
        let told = help(&[])? + &help(verbs)?;
        let missing: Vec<&String> = flags.iter().filter(|flag| !told.contains(flag.as_str())).collect();
        ensure!(
            missing.is_empty(),
            "the chart starts `{program} {}` with {missing:?}, which it does not have",
            verbs.join(" ")
        );
    }
    println!("{} command lines are known to our programs", calls.len());
    Ok(())
}

/// What alerts and the Grafana dashboard ask for is what the programs tell.
fn metrics_exist(workspace: &Workspace) -> anyhow::Result<()> {
    let root = workspace.root();
    let mut told = String::new();
    for file in workspace.files()?.iter().filter(|file| file.starts_with("crates") && file.extension() == Some("rs")) {
        if !file.starts_with("crates/xtask") {
            told += &fs_err::read_to_string(root.join(file))?;
        }
    }
    for asked in [RULES, BOARD] {
        let unknown = rules::unknown_metrics(&fs_err::read_to_string(root.join(asked))?, &told);
        if !unknown.is_empty() {
            bail!("{asked} asks for metrics that no program has: {}", unknown.join(", "));
        }
    }
    Ok(())
}

/// Of every alert it is tested when it fires, and when it does not.
fn alerts_are_tested(root: &Utf8Path) -> anyhow::Result<()> {
    let read = |file: &str| fs_err::read_to_string(root.join(file));
    let untested = rules::untested_alerts(&read(RULES)?, &read(RULE_TESTS)?);
    ensure!(
        untested.is_empty(),
        "{RULE_TESTS} lacks a case that fires, or one that does not, of {}",
        untested.join(", ")
    );
    Ok(())
}

/// Values can set every key that the README documents, but for those that are the chart's.
fn keys_can_be_set(root: &Utf8Path) -> anyhow::Result<()> {
    let schema = serde_json::from_str(&fs_err::read_to_string(root.join(CHART).join("values.schema.json"))?)?;
    let unsettable = rules::unsettable_keys(&fs_err::read_to_string(root.join("README.md"))?, &schema);
    ensure!(unsettable.is_empty(), "values.schema.json refuses keys of fettle.toml: {}", unsettable.join(", "));
    Ok(())
}

/// Of one folder, by name; none when it is missing.
fn files(folder: &Utf8Path) -> anyhow::Result<Vec<Utf8PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        files.push(Utf8PathBuf::try_from(entry?.path())?);
    }
    files.sort();
    Ok(files)
}
