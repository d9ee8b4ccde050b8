//! Compares the tree with the rules that its design states. Each check looks at facts and returns findings; only `run`
//! reads and prints.

mod bans;
mod graph;
mod layers;
mod manifests;
mod purity;
mod text;
mod top_level;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};

use crate::process;
use crate::workspace::Workspace;

/// What a rule found, as a sentence with the place and what to do.
type Findings = Vec<String>;

const TREE_LIMIT: Duration = Duration::from_secs(2 * 60); // it may have to fetch manifests
const ROOT_BANS: &str = ".clippy.toml";

/// Errors: something was found; every finding has been printed.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let files = workspace.files()?;
    let members = layers::members(workspace);
    let mut findings = [
        layers::check(&members, layers::CRATES),
        layers::check_adapters(layers::CRATES),
        graph::check_owner_named(&members, graph::OWNER_NAMED),
        graph::check_banned(&normal_graph(workspace)?, &graph::banned(&read(workspace, ".deny.toml")?)?),
        top_level::check(&files),
    ]
    .concat();
    for package in workspace.members() {
        let manifest = read(workspace, &relative(workspace, &package.manifest_path))?;
        findings.extend(manifests::check(&package.name, &manifest)?);
    }
    findings.extend(check_bans(workspace, &files)?);
    findings.extend(purity::check_dependencies(&members));
    for name in purity::PURE {
        findings.extend(check_pure(workspace, &files, &format!("crates/{name}"))?);
    }
    for file in &files {
        if let Ok(content) = fs_err::read_to_string(workspace.root().join(file)) {
            findings.extend(text::check(file, &content));
        }
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    ensure!(findings.is_empty(), "{} findings", findings.len());
    Ok(())
}

/// A crate's own `.clippy.toml` takes the place of the root's: it must say everything that the root's says.
fn check_bans(workspace: &Workspace, files: &[Utf8PathBuf]) -> anyhow::Result<Findings> {
    let root = bans::parse(&read(workspace, ROOT_BANS)?)?;
    let mut findings = Findings::new();
    for file in files.iter().filter(|file| file.file_name() == Some(ROOT_BANS) && file.as_str() != ROOT_BANS) {
        let own = bans::parse(&read(workspace, file.as_str())?)?;
        findings
            .extend(bans::missing(&root, &own).map(|entry| format!("{file} does not repeat `{entry}` of the root's")));
    }
    Ok(findings)
}

fn check_pure(workspace: &Workspace, files: &[Utf8PathBuf], folder: &str) -> anyhow::Result<Findings> {
    let own = format!("{folder}/{ROOT_BANS}");
    let bans =
        if files.iter().any(|file| *file == own) { bans::parse(&read(workspace, &own)?)? } else { BTreeSet::new() };
    let mut findings = purity::check_bans(&own, &bans);
    let sources = |file: &&Utf8PathBuf| file.starts_with(format!("{folder}/src")) && file.extension() == Some("rs");
    for file in files.iter().filter(sources) {
        findings.extend(purity::check_source(file, &read(workspace, file.as_str())?));
    }
    Ok(findings)
}

/// The names of all packages that a build for Linux compiles, dev-dependencies aside. `cargo metadata` would also list
/// what no feature turns on.
fn normal_graph(workspace: &Workspace) -> anyhow::Result<BTreeSet<String>> {
    let mut command = workspace.cargo("tree");
    command.args(["--workspace", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    command.args(["--target", "x86_64-unknown-linux-gnu", "--target", "aarch64-unknown-linux-gnu"]);
    let listed = process::output(command, TREE_LIMIT)?;
    Ok(listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn read(workspace: &Workspace, file: &str) -> anyhow::Result<String> {
    fs_err::read_to_string(workspace.root().join(file)).with_context(|| format!("while looking at {file}"))
}

fn relative(workspace: &Workspace, path: &Utf8Path) -> String {
    path.strip_prefix(workspace.root()).unwrap_or(path).to_string()
}
