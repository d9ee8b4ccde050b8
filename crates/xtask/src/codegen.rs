//! Files that are made from code and committed: written, or compared with what would be written.

use std::process::Command;
use std::time::Duration;

use anyhow::bail;

use crate::workspace::Workspace;
use crate::{chart, process, sqlx_prepare, units};

const OPENAPI: &str = "crates/api/openapi.json";
/// The example of `fettle-api` that prints the document.
const OPENAPI_PROGRAM: &str = "openapi";
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60); // cold, on two cores
const PRINT_LIMIT: Duration = Duration::from_secs(30); // it computes a constant

/// Writes every generated file; with `check` fails when one is out of date, after having looked at all of them.
pub(crate) fn run(workspace: &Workspace, check: bool) -> anyhow::Result<()> {
    let outcomes = [
        ("systemd units", units::codegen(workspace.root(), check)),
        // First of those that are built: without it, nothing else compiles.
        ("query data", sqlx_prepare::prepare(check)),
        ("OpenAPI document", openapi(workspace, check)),
        // Compared by the chart's own stage, which renders it anyway.
        ("chart's snapshots", if check { Ok(()) } else { chart_snapshots(workspace) }),
    ];
    let mut failed = Vec::new();
    for (what, outcome) in outcomes {
        if let Err(error) = outcome {
            eprintln!("{what}: {error:#}");
            failed.push(what);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("not current: {}", failed.join(", ")) }
}

/// Without Go there is no helm, and who changes no template needs none.
fn chart_snapshots(workspace: &Workspace) -> anyhow::Result<()> {
    if let Err(why) = chart::codegen(workspace, chart::Missing::Leave)? {
        eprintln!("the chart's snapshots stay as they are: {why}");
    }
    Ok(())
}

fn openapi(workspace: &Workspace, check: bool) -> anyhow::Result<()> {
    // Built as the tests build it, or every dependency would be compiled once more.
    let mut build = workspace.cargo("build");
    build.args(["--quiet", "--workspace", "--example", OPENAPI_PROGRAM]).args(workspace.crash_points());
    process::run(build, BUILD_LIMIT)?;
    let made = process::output(Command::new(workspace.built("debug/examples", OPENAPI_PROGRAM)), PRINT_LIMIT)?;

    let file = workspace.root().join(OPENAPI);
    let committed = if file.exists() { fs_err::read_to_string(&file)? } else { String::new() };
    if committed == made {
        return Ok(());
    }
    if check {
        bail!("{OPENAPI} is out of date; run `cargo xtask codegen`");
    }
    fs_err::write(&file, made)?;
    Ok(())
}
