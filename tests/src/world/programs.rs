//! Where the programs under test stand.

use anyhow::{Context as _, bail};
use camino::Utf8PathBuf;

/// A binary of the workspace: beside this executable or, for a test, in the folder above it.
///
/// Errors with what to build when it is not there.
pub fn program(name: &str) -> anyhow::Result<Utf8PathBuf> {
    let own = Utf8PathBuf::try_from(std::env::current_exe().context("while looking for this executable")?)?;
    let beside = own.parent().context("an executable lies in a folder")?;
    for folder in beside.ancestors().take(2) {
        let found = folder.join(name);
        if found.is_file() {
            return Ok(found);
        }
    }
    bail!("`{name}` is not beside {own}; build it first: cargo build --workspace --bins")
}
