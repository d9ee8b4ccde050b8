//! The offline query data of the SQLite store, so that a build needs no database: written, or compared with what is
//! committed.
//!
//! The queries are described by a scratch database that has nothing but the migrations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

const PACKAGE: &str = "fettle-store-sqlite";
const CRATE: &str = "crates/store-sqlite";

/// Compiles the store against its migrations and writes `crates/store-sqlite/.sqlx`; with `check` only says whether the
/// committed data is what would be written.
pub(crate) fn prepare(check: bool) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("xtask lies in crates/xtask")?;
    let scratch = root.join("target/sqlx-prepare");
    match fs_err::remove_dir_all(&scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let made = scratch.join("queries");
    fs_err::create_dir_all(&made)?;
    let database = scratch.join("scratch.db");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(migrate(&root.join(CRATE).join("migrations"), &database))?;
    describe_queries(root, &database, &made)?;

    let committed = root.join(CRATE).join(".sqlx");
    let (new, old) = (read_all(&made)?, read_all(&committed)?);
    ensure!(!new.is_empty(), "{PACKAGE} compiled without describing a query");
    if new == old {
        return Ok(());
    }
    if check {
        bail!("{} is out of date; run `cargo xtask codegen`", committed.display());
    }
    replace(&committed, &old, &new)
}

async fn migrate(migrations: &Path, database: &Path) -> anyhow::Result<()> {
    let mut conn = SqliteConnectOptions::new().filename(database).create_if_missing(true).connect().await?;
    let migrator =
        Migrator::new(migrations).await.with_context(|| format!("while reading {}", migrations.display()))?;
    migrator.run(&mut conn).await.context("while running the migrations on a scratch database")?;
    conn.close().await?;
    Ok(())
}

/// The macros write one file for each query that they describe.
fn describe_queries(root: &Path, database: &Path, queries: &Path) -> anyhow::Result<()> {
    // A cfg of its own makes cargo compile this crate, and only this one, even when nothing has changed.
    let fresh = format!("--cfg=sqlx_prepare=\"{}\"", std::process::id());
    let status = Command::new("cargo")
        .current_dir(root)
        .args(["rustc", "--quiet", "--package", PACKAGE, "--lib", "--profile", "check", "--", &fresh])
        .env("DATABASE_URL", format!("sqlite://{}", database.display()))
        .env("SQLX_OFFLINE_DIR", queries)
        .env("SQLX_OFFLINE", "false")
        .status()
        .context("while starting cargo")?;
    ensure!(status.success(), "{PACKAGE} does not compile against its migrations");
    Ok(())
}

fn read_all(folder: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    if !fs_err::exists(folder)? {
        return Ok(files);
    }
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let name = PathBuf::from(path.file_name().context("a listed file has a name")?);
        if name.extension().is_some_and(|extension| extension == "json") {
            files.insert(name, fs_err::read_to_string(&path)?);
        }
    }
    Ok(files)
}

fn replace(folder: &Path, old: &BTreeMap<PathBuf, String>, new: &BTreeMap<PathBuf, String>) -> anyhow::Result<()> {
    fs_err::create_dir_all(folder)?;
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        fs_err::remove_file(folder.join(name))?;
    }
    for (name, content) in new {
        fs_err::write(folder.join(name), content)?;
    }
    Ok(())
}
