//! The offline query data of the PostgreSQL store, so that a build needs no database: written, or compared with what is
//! committed.
//!
//! The queries are described by a scratch database that has nothing but the migrations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::scratch_postgres::Scratch;

const PACKAGE: &str = "fettle-store-postgres";
const FOLDER: &str = "crates/store-postgres";

/// Compiles the store against its migrations and writes its `.sqlx`; with `check` only says whether the committed data is
/// what would be written. Without PostgreSQL the data is left as it is, and that is said.
pub(crate) fn prepare(check: bool) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("xtask lies in crates/xtask")?;
    let made = root.join("target/sqlx-prepare").join(PACKAGE);
    match fs_err::remove_dir_all(&made) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs_err::create_dir_all(&made)?;
    let Some(server) = Scratch::start()? else {
        eprintln!("SKIPPED: the query data of {PACKAGE}: PostgreSQL is not installed");
        return Ok(());
    };
    let url = server.url();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(migrate(&root.join(FOLDER).join("migrations"), url.parse()?))?;
    describe_queries(root, &url, &made)?;

    let committed = root.join(FOLDER).join(".sqlx");
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

/// The macros write one file for each query that they describe.
fn describe_queries(root: &Path, url: &str, queries: &Path) -> anyhow::Result<()> {
    // A cfg of its own makes cargo compile this crate, and only this one, even when nothing has changed.
    let fresh = format!("--cfg=sqlx_prepare=\"{}\"", std::process::id());
    let status = Command::new("cargo")
        .current_dir(root)
        .args(["rustc", "--quiet", "--package", PACKAGE, "--lib", "--profile", "check", "--", &fresh])
        .env("DATABASE_URL", url)
        .env("SQLX_OFFLINE_DIR", queries)
        .env("SQLX_OFFLINE", "false")
        .status()
        .context("while starting cargo")?;
    ensure!(status.success(), "{PACKAGE} does not compile against its migrations");
    Ok(())
}

async fn migrate(migrations: &Path, options: PgConnectOptions) -> anyhow::Result<()> {
    let mut conn = options.connect().await?;
    let migrator =
        Migrator::new(migrations).await.with_context(|| format!("while reading {}", migrations.display()))?;
    migrator.run_direct(None, &mut conn, false).await.context("while running the migrations on a scratch database")?;
    conn.close().await?;
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
