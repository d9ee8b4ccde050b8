//! Everything that a cluster without network is made of, in one folder: a release tree, our images and chart, and what others
//! publish, which somebody has fetched before. Nothing is fetched here. `SHA256SUMS` names every file; its own checksum is what an
//! operator writes into the answers.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context, bail, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use flate2::{Compression, GzBuilder};
use serde::Deserialize;

use crate::image::{self, Layer, archive, digest, folder_layer, with_folders};
use crate::workspace::Workspace;

const SUMS: &str = "SHA256SUMS";
const PINS: &str = "installer/pins.toml";
const CHART: &str = "charts/fettle";

pub(crate) struct Wanted<'a> {
    pub(crate) tree: &'a Utf8Path,
    /// The layout that `cargo xtask image` made of that tree.
    pub(crate) images: &'a Utf8Path,
    /// A folder with what others publish, by the names in the pins.
    pub(crate) from: &'a Utf8Path,
    pub(crate) out: &'a Utf8Path,
}

#[derive(Deserialize)]
struct Pins {
    artifact: Vec<Pin>,
}

#[derive(Deserialize)]
struct Pin {
    file: Utf8PathBuf,
    version: String,
    sha256: BTreeMap<String, String>,
}

/// Lays the bundle out and says what its sums are called by.
///
/// Errors: something is missing, is not what a pin says, or a bundle's place is taken.
pub(crate) fn run(workspace: &Workspace, wanted: &Wanted<'_>) -> anyhow::Result<()> {
    let pins: Pins = toml::from_str(&fs_err::read_to_string(workspace.root().join(PINS))?)?;
    let chart = packed(&workspace.root().join(CHART), image::changed(&wanted.tree.join("manifest.json"))?)?;
    let (sums, unpinned) = lay_out(wanted, &pins, &chart)?;
    for file in unpinned {
        println!("no pin has a checksum for {file}: compare it with what its maker publishes");
    }
    println!("{}\nsha256 of {SUMS}: {}", wanted.out, digest(sums.as_bytes()));
    Ok(())
}

/// The chart as helm packs it, but with the same bytes each time.
fn packed(chart: &Utf8Path, changed: u64) -> anyhow::Result<Vec<u8>> {
    let ignored = fs_err::read_to_string(chart.join(".helmignore"))?;
    // One with a slash in front is meant at the top alone.
    let at_top: Vec<&str> =
        ignored.lines().filter_map(|line| Some(line.trim().strip_prefix('/')?.trim_end_matches('/'))).collect();
    let is_ignored =
        |place: &str| place == ".helmignore" || at_top.iter().any(|top| Utf8Path::new(place).starts_with(top));
    let files = folder_layer(chart)?.into_iter().filter(|(place, _)| !is_ignored(place));
    let layer: Layer = files.map(|(place, entry)| (format!("fettle/{place}"), entry)).collect();
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(&archive(&with_folders(layer), changed)?)?;
    Ok(gzip.finish()?)
}

fn lay_out(wanted: &Wanted<'_>, pins: &Pins, chart: &[u8]) -> anyhow::Result<(String, Vec<String>)> {
    ensure!(!wanted.out.exists(), "{} is there already", wanted.out);
    let manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(wanted.tree.join("manifest.json"))?)?;
    let arch = manifest["arch"].as_str().context("the release tree names its processor")?;
    let missing: Vec<String> = pins
        .artifact
        .iter()
        .filter(|pin| !wanted.from.join(&pin.file).is_file())
        .map(|pin| format!("{} {}", pin.file, pin.version))
        .collect();
    if !missing.is_empty() {
        bail!("{} lacks {}", wanted.from, missing.join(", "));
    }
    let mut files: BTreeMap<String, Utf8PathBuf> = BTreeMap::new();
    for name in folder_layer(wanted.tree)?.into_keys().filter(|name| wanted.tree.join(name).is_file()) {
        files.insert(format!("release/{name}"), wanted.tree.join(name));
    }
    files.insert("images/fettle.tar".to_owned(), wanted.images.to_owned());
    files.extend(pins.artifact.iter().map(|pin| (pin.file.to_string(), wanted.from.join(&pin.file))));
    let mut sums = BTreeMap::from([("charts/fettle.tgz".to_owned(), digest(chart))]);
    for (place, source) in &files {
        sums.insert(place.clone(), digest(&fs_err::read(source)?));
    }
    let mut unpinned = Vec::new();
    for pin in &pins.artifact {
        let found = &sums[pin.file.as_str()];
        match pin.sha256.get(arch).or_else(|| pin.sha256.get("any")) {
            Some(pinned) => {
                ensure!(pinned == found, "{} {} is not the one that is pinned: {found}", pin.file, pin.version)
            }
            None => unpinned.push(format!("{} {} ({found})", pin.file, pin.version)),
        }
    }
    for (place, source) in &files {
        let to = wanted.out.join(place);
        fs_err::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        fs_err::copy(source, to)?;
    }
    fs_err::create_dir_all(wanted.out.join("charts"))?;
    fs_err::write(wanted.out.join("charts/fettle.tgz"), chart)?;
    let text: String = sums.iter().map(|(place, sum)| format!("{sum}  {place}\n")).collect();
    fs_err::write(wanted.out.join(SUMS), &text)?;
    Ok((text, unpinned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(sha256: &str) -> Pins {
        let sha256 = if sha256.is_empty() { BTreeMap::new() } else { [("any".to_owned(), sha256.to_owned())].into() };
        Pins { artifact: vec![Pin { file: "k3s/k3s".into(), version: "v1".to_owned(), sha256 }] }
    }

    #[test]
    fn a_bundle_names_every_file_and_what_is_missing_or_is_not_the_pinned_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        for (path, text) in [
            ("tree/manifest.json", r#"{"arch":"x86_64"}"#),
            ("tree/bin/fettle", "program"),
            ("images.tar", "images"),
            ("from/README", ""),
        ] {
            fs_err::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs_err::write(root.join(path), text).unwrap();
        }
        let (tree, images, from, out) =
            (root.join("tree"), root.join("images.tar"), root.join("from"), root.join("out"));
        let wanted = Wanted { tree: &tree, images: &images, from: &from, out: &out };
        assert!(lay_out(&wanted, &pins(""), b"chart").unwrap_err().to_string().contains("lacks k3s/k3s v1"));
        fs_err::create_dir_all(from.join("k3s")).unwrap();
        fs_err::write(from.join("k3s/k3s"), "k3s").unwrap();
        assert!(
            lay_out(&wanted, &pins("00"), b"chart").unwrap_err().to_string().contains("not the one that is pinned")
        );
        assert!(!out.exists());
        let (sums, unpinned) = lay_out(&wanted, &pins(""), b"chart").unwrap();
        assert_eq!(unpinned.len(), 1);
        let names: Vec<&str> = sums.lines().filter_map(|line| Some(line.split_once("  ")?.1)).collect();
        assert_eq!(
            names,
            ["charts/fettle.tgz", "images/fettle.tar", "k3s/k3s", "release/bin/fettle", "release/manifest.json"]
        );
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            assert_eq!(digest(&fs_err::read(out.join(name)).unwrap()), sum, "{name}");
        }
        assert!(lay_out(&wanted, &pins(""), b"chart").unwrap_err().to_string().contains("is there already"));
    }

    #[test]
    fn the_chart_is_packed_the_same_each_time_and_without_what_is_ignored() {
        let workspace = Workspace::load().unwrap();
        let chart = workspace.root().join(CHART);
        let once = packed(&chart, 7).unwrap();
        assert!(once == packed(&chart, 7).unwrap());
        let mut unpacked = tar::Archive::new(flate2::read::GzDecoder::new(&once[..]));
        let entries = unpacked.entries().unwrap();
        let names: Vec<String> =
            entries.map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect();
        assert!(
            names.iter().any(|name| name == "fettle/Chart.yaml")
                && names.iter().any(|name| name == "fettle/templates/redis.yaml")
        );
        assert!(
            !names.iter().any(|name| name.starts_with("fettle/tests") || name.starts_with("fettle/ci")),
            "{names:?}"
        );
    }
}
