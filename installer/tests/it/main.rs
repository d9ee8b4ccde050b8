//! The installer's decisions on recorded hosts. The records are in `tests/facts`; each says where it comes from.

#![expect(clippy::unwrap_used, reason = "all of this is test code")]

mod gather;
mod k3s;
mod k3s_programs;
mod preflight;
mod production;

use camino::Utf8PathBuf;
use fettle_installer::facts::HostFacts;

fn folder() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/facts")
}

/// The record with this name.
fn host(name: &str) -> HostFacts {
    let text = fs_err::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn hosts() -> Vec<(String, HostFacts)> {
    let mut names: Vec<String> =
        folder().read_dir_utf8().unwrap().map(|entry| entry.unwrap().path().file_stem().unwrap().to_owned()).collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), host(&name))).collect()
}
