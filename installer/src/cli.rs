//! The commands of `fettle-installer`, as typed.

use camino::Utf8PathBuf;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::preflight::Mode;

const STATUS: &str = "Exit status: 0 done or nothing to do, 2 usage, 10 preflight failed, 11 conflict, 20 failed and all taken back, \
21 failed and not all taken back, 30 not healthy and switched back, 31 not healthy and not switched back, 40 another run is at \
work, 50 backup, 60 release or bundle damaged, 1 anything else.";

/// Installs Fettle on this host, upgrades it, and takes it away again without a trace.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = STATUS)]
pub struct Flags {
    /// JSON lines on standard output, a summary last.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what this host is.
    Detect,
    /// Check whether Fettle can be installed here, and say what to do where it cannot. Writes nothing; some checks need root.
    Preflight {
        /// systemd, nixos or k3s; default: as it was installed, else as the host itself says; k3s only when asked for.
        #[arg(long, value_name = "MODE")]
        mode: Option<Mode>,
        /// Checks whose failure is all right, such as PF012,PF030.
        #[arg(long, value_delimiter = ',', value_name = "IDS")]
        ignore: Vec<String>,
    },
    /// Show what stands between this host and production: TLS, secrets, backups, disk, clock, updates.
    ProductionChecks,
    /// Show what would be done, and write nothing.
    Plan {
        #[command(flatten)]
        wanted: Wanted,
        /// Write the plan to a file.
        #[arg(short, long, value_name = "FILE")]
        output: Option<Utf8PathBuf>,
        /// With the reason of each step, and what taking it back would do.
        #[arg(long)]
        explain: bool,
    },
    /// Install, or bring an installation to what is asked for now.
    Apply {
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        how: How,
    },
    /// Take the place of another installation: show what would be carried over, then install with it. The other's files stay,
    /// its services are stopped, and an uninstallation starts them again.
    Import {
        /// Which kind of installation.
        #[arg(long, value_enum)]
        from: Predecessor,
        /// The model's name, where the installation does not say it.
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// Only write the answers to this file, to be looked at and changed; then `apply --answers FILE`.
        #[arg(short, long, value_name = "FILE")]
        output: Option<Utf8PathBuf>,
        /// The release tree to install; default: the one that this program lies in.
        #[arg(long, value_name = "FOLDER")]
        release: Option<Utf8PathBuf>,
        #[command(flatten)]
        how: How,
    },
    /// Make this host a further node of a cluster that fettle-installer has made. Without --server, on a host of that cluster: show
    /// the command for the next one.
    Join {
        /// The address of the cluster, such as https://10.0.0.1:6443.
        #[arg(long, value_name = "URL", requires = "token_file")]
        server: Option<String>,
        /// The word by which nodes join, in its full form; it is in /var/lib/rancher/k3s/server/agent-token there.
        #[arg(long, value_name = "FILE", requires = "server")]
        token_file: Option<Utf8PathBuf>,
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        how: How,
    },
    /// Go on with a run that was interrupted.
    Resume,
    /// Show what is installed, what runs, and whether a run is unfinished.
    Status,
    /// Compare the host with what was installed.
    Verify,
    /// Switch to another release; the earlier one comes back by itself when this one does not become healthy.
    Upgrade {
        /// The release tree to switch to; in mode k3s the bundle with it.
        #[arg(long, value_name = "FOLDER")]
        to: Utf8PathBuf,
        #[command(flatten)]
        how: How,
        /// How long the services may take to become ready, in seconds.
        #[arg(long, value_name = "SECONDS")]
        gate_timeout: Option<u32>,
    },
    /// Switch back to an earlier generation; `status` lists them.
    Rollback {
        /// The generation's number; default: the one before.
        #[arg(long, value_name = "N")]
        to: Option<u32>,
        #[command(flatten)]
        how: How,
    },
    /// Make, list, verify and prune backups.
    #[command(subcommand)]
    Backup(crate::backup::Backup),
    /// Bring a backup back; what is there comes back by itself when that does not become healthy.
    Restore(crate::backup::Restore),
    /// Collect what somebody who helps needs to see, without secrets.
    SupportBundle(crate::support::SupportBundle),
    /// Try the running services: health, queue, webhook, events, sandbox, metrics. Nothing is written to any forge.
    Smoke {
        /// The dashboard's public address; default: as fettle.toml says.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// The admin key; default: the dashboard's own, which root can read.
        #[arg(long, value_name = "FILE")]
        token_file: Option<Utf8PathBuf>,
        /// Only this one, such as SM03.
        #[arg(long, value_name = "ID")]
        only: Option<String>,
    },
    /// Take Fettle away. Data, configuration, secrets and users stay unless --purge.
    Uninstall {
        /// Take everything away, data and secrets too.
        #[arg(long)]
        purge: bool,
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Predecessor {
    /// /opt/ai-agent, /etc/ai-agent/env, aiagent.service.
    Aiagent,
}

#[derive(Debug, Args)]
pub struct Wanted {
    /// What is asked for, as TOML: workers, settings, secrets. Default: /etc/fettle/installer.toml if it is there.
    #[arg(long, value_name = "FILE")]
    pub answers: Option<Utf8PathBuf>,
    /// The release tree to install; default: the one that this program lies in. On NixOS the flake brings it.
    #[arg(long, value_name = "FOLDER")]
    pub release: Option<Utf8PathBuf>,
    /// systemd, nixos or k3s; default: as it was installed, else as the host itself says; k3s only when asked for.
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// Of mode k3s: the folder with k3s, charts and images, or the https:// address of a mirror; default: as the answers say.
    #[arg(long, value_name = "FOLDER")]
    pub bundle: Option<String>,
}

#[derive(Debug, Args)]
pub struct How {
    /// Show what would be done, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// What happens to what was done when a later step fails.
    #[arg(long, value_enum, default_value = "revert")]
    pub on_failure: OnFailure,
    /// Preflight checks whose failure is all right, such as PF012,PF030.
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub ignore: Vec<String>,
    /// Do not make a backup before an upgrade.
    #[arg(long)]
    pub no_backup: bool,
    /// Replace files that somebody else has changed; a copy is kept.
    #[arg(long)]
    pub overwrite: bool,
    /// For tests: end with SIGKILL at this boundary between two durable facts.
    #[cfg(feature = "crash-points")]
    #[arg(long, hide = true)]
    pub kill_at: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    Revert,
    Keep,
}
