//! The repository's own commands: `cargo xtask <command>`. What CI runs is what you run.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool speaks through the terminal")]

mod bundle;
mod chart;
mod cluster;
mod codegen;
mod engines;
mod image;
mod needs;
mod process;
mod programs;
mod release_tree;
mod scratch_postgres;
mod sqlx_prepare;
mod test;
mod test_output;
mod tidy;
mod units;
mod workspace;

use std::process::ExitCode;

use cargo_metadata::camino::Utf8PathBuf;
use clap::{Parser, Subcommand};

use crate::programs::Bench;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The repository's own commands", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that CI checks, stage by stage
    Test {
        /// Only format, tidy and tests
        #[arg(long)]
        quick: bool,
        /// Also the whole life of an installation on a booted machine; root, some twenty minutes
        #[arg(long, conflicts_with = "quick")]
        platform: bool,
        /// Also real inference servers and agents: llama.cpp is built, and some hundred megabytes are fetched, the first time
        #[arg(long, conflicts_with = "quick")]
        engines: bool,
        /// Also a real control plane of Kubernetes under the chart: it is built by Go the first time, some half an hour
        #[arg(long, conflicts_with = "quick")]
        cluster: bool,
        /// Run only the tests whose name contains this; finding none is a failure
        filter: Option<String>,
    },
    /// Compare the tree with the rules of its design
    Tidy,
    /// Render the Helm chart with every example of values, and hold it against schemas and rules
    Chart {
        /// Write the snapshots of its renderings anew
        #[arg(long)]
        write: bool,
    },
    /// Write the generated files: the systemd units, the OpenAPI document, the offline query data, the chart's snapshots
    Codegen {
        /// Only say whether the committed files are current
        #[arg(long)]
        check: bool,
    },
    /// Start the demo: forge emulator, scripted model and `fettle`, on this machine alone
    Demo {
        /// For `fettle-demo`, such as `--json`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Kill the system at its crash points and check what is left
    CrashMatrix {
        /// What hints and foreign messages go over: `embedded`, `redis` or `rabbitmq`
        #[arg(long, default_value = programs::EMBEDDED)]
        backend: String,
        /// For the matrix: `--seed S`, `--points C9,C18`, `--sample N`, `--full`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Live through histories of the durable core in virtual time, under faults, in the release profile
    Simulate {
        /// For the simulation: `--seeds N`, `--from S`, `--bug NAME`, `--trace`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Build what gets installed, with a manifest; the same bytes wherever it is built
    ReleaseTree {
        /// Where the tree goes; without it, below `target/`
        #[arg(long)]
        out: Option<Utf8PathBuf>,
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// Make images for a cluster of a release tree, as one OCI layout in a tar file; without Docker, and the same bytes each time
    Image {
        /// The release tree; without it, the one below `target/`
        #[arg(long)]
        tree: Option<Utf8PathBuf>,
        /// The processor that it must be for, as `uname -m` says it
        #[arg(long)]
        arch: Option<String>,
        /// A root file system with tools, such as debootstrap makes: it lies below `fettle-worker` and `fettle`
        #[arg(long)]
        tools: Option<Utf8PathBuf>,
        /// The tar file; without it, below `target/`
        #[arg(long)]
        out: Option<Utf8PathBuf>,
    },
    /// Lay out what a cluster without network is made of: a release tree, its images, the chart, and what others publish
    Bundle {
        /// The release tree; without it, the one below `target/`
        #[arg(long)]
        tree: Option<Utf8PathBuf>,
        /// What `cargo xtask image` made; without it, what is below `target/`
        #[arg(long)]
        images: Option<Utf8PathBuf>,
        /// A folder with what others publish, by the names in `installer/pins.toml`
        #[arg(long)]
        from: Utf8PathBuf,
        #[arg(long)]
        out: Utf8PathBuf,
    },
    /// Measure one thing, in the release profile
    Bench {
        what: Bench,
        /// For the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = Workspace::load().and_then(|workspace| match arguments.command {
        Command::Test { quick, platform, engines, cluster, filter } => {
            let extent = match (quick, platform) {
                (true, _) => test::Extent::Quick,
                (_, true) => test::Extent::Platform,
                _ => test::Extent::Usual,
            };
            test::run(&workspace, extent, test::With { engines, cluster }, filter.as_deref())
        }
        Command::Tidy => tidy::run(&workspace).map(|()| ExitCode::SUCCESS),
        Command::Chart { write } => chart_command(&workspace, write).map(|()| ExitCode::SUCCESS),
        Command::Codegen { check } => codegen::run(&workspace, check).map(|()| ExitCode::SUCCESS),
        Command::Demo { rest } => programs::demo(&workspace, &rest),
        Command::CrashMatrix { backend, rest } => programs::crash_matrix(&workspace, &backend, &rest),
        Command::Simulate { rest } => programs::simulate(&workspace, &rest),
        Command::ReleaseTree { out, profile } => {
            release_tree::run(&workspace, out.as_deref(), &profile).map(|()| ExitCode::SUCCESS)
        }
        Command::Image { tree, arch, tools, out } => {
            let tree = tree.unwrap_or_else(|| workspace.built("release-tree", "tree"));
            let out = out.unwrap_or_else(|| images(&workspace));
            let (arch, tools, host) = (arch.as_deref(), tools.as_deref(), "/".into());
            image::run(&image::Wanted { tree: &tree, out: &out, arch, tools, host }).map(|()| ExitCode::SUCCESS)
        }
        Command::Bundle { tree, images, from, out } => {
            let tree = tree.unwrap_or_else(|| workspace.built("release-tree", "tree"));
            let images = images.unwrap_or_else(|| self::images(&workspace));
            let wanted = bundle::Wanted { tree: &tree, images: &images, from: &from, out: &out };
            bundle::run(&workspace, &wanted).map(|()| ExitCode::SUCCESS)
        }
        Command::Bench { what, rest } => programs::bench(&workspace, what, &rest),
    });
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn images(workspace: &Workspace) -> Utf8PathBuf {
    workspace.built("images", "fettle.tar")
}

fn chart_command(workspace: &Workspace, write: bool) -> anyhow::Result<()> {
    if write {
        return chart::codegen(workspace, chart::Missing::Build)?
            .map_err(|why| anyhow::anyhow!("the snapshots cannot be written: {why}"));
    }
    chart::check(workspace, chart::Missing::Build)?.iter().for_each(|skipped| println!("SKIPPED: {skipped}"));
    Ok(())
}
