//! `fettle-installer`: sets up a host, upgrades it, backs it up and takes Fettle away again.

use std::process::ExitCode;

use clap::Parser as _;
use fettle_installer::cli::Flags;
use fettle_installer::commands;

fn main() -> ExitCode {
    fettle_runtime::install_tls();
    ExitCode::from(commands::run(Flags::parse()) as u8)
}
