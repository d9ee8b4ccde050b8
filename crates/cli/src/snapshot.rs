//! `fettle snapshot` and `fettle check-snapshot`: what backups are made of. Standard output and input stand in for a file, so
//! that whoever makes the backup needs not let the ledger's user into its folders.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::chain;
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_store_sqlite::{Checked, check_snapshot, snapshot};
use serde_json::json;

use crate::Common;
use crate::progress::note;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// The file to write, which must not exist yet, or `-` for standard output.
    #[arg(long, value_name = "FILE")]
    to: Utf8PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct CheckFlags {
    /// The copy, or `-` for standard input.
    #[arg(value_name = "FILE")]
    file: Utf8PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(common: &Common, flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    let config = Config::load(common.config.as_deref(), environment)?;
    if config.store.url.is_some() {
        bail!("the ledger is in PostgreSQL (store.url): copy it with `pg_dump`, which this command does not replace");
    }
    if let Some(folder) = common.data_dir.as_deref().filter(|folder| !folder.is_dir()) {
        bail!("there is no data folder {folder}");
    }
    let ledger = DataDir::open(common.data_dir.as_deref(), &config, environment)?.ledger();
    if flags.to == "-" {
        let copy = scratch()?;
        snapshot(&ledger, path_of(&copy)?).await?;
        send(copy.path(), &mut std::io::stdout().lock())?;
    } else {
        write(&ledger, &flags.to).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The name appears when the copy is whole.
async fn write(ledger: &Utf8Path, to: &Utf8Path) -> Result<()> {
    if to.exists() {
        bail!("{to} is there already");
    }
    let folder = to.parent().filter(|folder| *folder != "").unwrap_or(Utf8Path::new("."));
    let copy = tempfile::NamedTempFile::new_in(folder).with_context(|| format!("could not write into {folder}"))?;
    snapshot(ledger, path_of(&copy)?).await?;
    copy.persist_noclobber(to).with_context(|| format!("could not write {to}"))?;
    fs_err::File::open(folder)?.sync_all()?;
    note(&format!("{to} holds the ledger of {ledger}"));
    Ok(())
}

fn send(copy: &std::path::Path, out: &mut impl Write) -> Result<()> {
    let mut copy = fs_err::File::open(copy)?;
    std::io::copy(&mut copy, out).context("could not write to standard output")?;
    Ok(out.flush()?)
}

fn scratch() -> Result<tempfile::NamedTempFile> {
    tempfile::NamedTempFile::new().context("could not make a temporary file; TMPDIR names where")
}

fn path_of(file: &tempfile::NamedTempFile) -> Result<&Utf8Path> {
    Utf8Path::from_path(file.path()).context("the path of temporary files is not UTF-8")
}

pub(crate) async fn check(flags: &CheckFlags) -> Result<ExitCode> {
    let checked = if flags.file == "-" {
        let copy = received(&mut std::io::stdin().lock())?;
        check_snapshot(path_of(&copy)?).await
    } else {
        check_snapshot(&flags.file).await
    };
    // A file that is no database at all is as damaged as one that is half there.
    let checked = checked.unwrap_or_else(|error| Checked {
        newest_migration: 0,
        unknown_migrations: Vec::new(),
        oldest_reader: 0,
        findings: vec![chain(&error)],
    });
    let ok = checked.findings.is_empty();
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", json!({ "ok": ok, "snapshot": checked }))?;
    } else if ok {
        writeln!(out, "ok: a whole ledger, schema {}", checked.newest_migration)?;
        if !checked.unknown_migrations.is_empty() {
            note(&format!("a newer Fettle has run migrations {:?} on it", checked.unknown_migrations));
        }
    } else {
        checked.findings.iter().for_each(|finding| note(&format!("error: {finding}")));
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn received(from: &mut impl Read) -> Result<tempfile::NamedTempFile> {
    let mut copy = scratch()?;
    std::io::copy(from, &mut copy).context("could not keep what came on standard input")?;
    copy.flush()?;
    Ok(copy)
}
