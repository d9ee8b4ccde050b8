//! `fettle admin export` and `fettle admin import`: a ledger on its way from a file of this machine into PostgreSQL.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::archive::Counts;
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::system::{RandomIds, SystemClock};
use fettle_store_sqlite::Options;

use crate::Common;
use crate::progress::note;

#[derive(clap::Args)]
pub(crate) struct ExportFlags {
    /// The file to write, which must not exist yet, or `-` for standard output.
    #[arg(long, value_name = "FILE")]
    to: Utf8PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct ImportFlags {
    /// The file that `export` wrote, or `-` for standard input.
    #[arg(long, value_name = "FILE")]
    from: Utf8PathBuf,
}

/// Of the data folder, whatever `store.url` says: it may name the database already that the file is for.
pub(crate) async fn export(
    common: &Common,
    flags: &ExportFlags,
    environment: &Environment,
    json: bool,
) -> Result<ExitCode> {
    let config = Config::load(common.config.as_deref(), environment)?;
    if config.store.url.is_some() {
        bail!(
            "store.url says that the ledger is in PostgreSQL, and only one in a file is exported; for that one, name a configuration without store.url"
        );
    }
    let ledger = DataDir::open(common.data_dir.as_deref(), &config, environment)?.ledger();
    if !ledger.is_dir() {
        bail!("there is no ledger at {ledger}");
    }
    let counts =
        if flags.to == "-" { written(&ledger, std::io::stdout()).await? } else { to_file(&ledger, &flags.to).await? };
    // Standard output may be the archive itself.
    note(&if json { serde_json::json!({ "rows": counts }).to_string() } else { told("exported", &counts) });
    Ok(ExitCode::SUCCESS)
}

/// The name appears when the file is whole.
async fn to_file(ledger: &Utf8Path, to: &Utf8Path) -> Result<Counts> {
    if to.exists() {
        bail!("{to} is there already");
    }
    let folder = to.parent().filter(|folder| *folder != "").unwrap_or(Utf8Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).with_context(|| format!("could not write into {folder}"))?;
    let counts = written(ledger, file.reopen().with_context(|| format!("could not write into {folder}"))?).await?;
    file.as_file().sync_all()?;
    file.persist_noclobber(to).with_context(|| format!("could not write {to}"))?;
    fs_err::File::open(folder)?.sync_all()?;
    Ok(counts)
}

async fn written(ledger: &Utf8Path, out: impl Write + Send) -> Result<Counts> {
    let options = Options::new(Arc::new(SystemClock), Arc::new(RandomIds));
    let (mut out, counts) = fettle_store_sqlite::export(ledger, options, BufWriter::new(out)).await?;
    out.flush().context("could not write the file to its end")?;
    Ok(counts)
}

pub(crate) async fn import(
    common: &Common,
    flags: &ImportFlags,
    environment: &Environment,
    json: bool,
) -> Result<ExitCode> {
    let config = Config::load(common.config.as_deref(), environment)?;
    let Some(database) = fettle_dashboard::database(&config.store)? else {
        bail!("the configuration names no database: set store.url, and store.user with store.password_file");
    };
    let from: Box<dyn BufRead + Send> = if flags.from == "-" {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(fs_err::File::open(&flags.from)?))
    };
    let counts = fettle_store_postgres::import(&database, from).await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::json!({ "rows": counts }))?;
    } else {
        writeln!(out, "{}", told("imported", &counts))?;
        note("start no dashboard on the old ledger again: both would work on the same Tasks");
        note("sessions stay behind: people sign in again; API keys go on");
    }
    Ok(ExitCode::SUCCESS)
}

fn told(done: &str, counts: &Counts) -> String {
    let of = |table: &str| counts.get(table).copied().unwrap_or_default();
    let rows: u64 = counts.values().sum();
    let (tasks, events, blobs, accounts) = (of("task"), of("event"), of("blob"), of("account"));
    format!("{done} {tasks} Tasks, {events} events, {blobs} blobs and {accounts} accounts; {rows} rows in all")
}
