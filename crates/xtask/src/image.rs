//! Images of a release tree for a cluster, as one OCI layout in a tar file: no Docker, no daemon, nothing fetched. The same tree
//! and the same host give the same bytes.
//!
//! The base is what the programs cannot do without, taken from this host: the shared objects that they are linked with,
//! certificates to trust and time zones. There is no shell and no package manager, and a worker has nothing to build and test
//! repositories with; a folder with a root file system that has such tools can be laid below.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::process;

/// Where the programs lie in an image, and in a release tree on a host.
const PROGRAMS: &str = "opt/fettle/bin";
/// Owns nothing but its own folder.
const USER: u64 = 65532;
const HOME: &str = "var/lib/fettle";
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
const ZONES: &str = "usr/share/zoneinfo";
/// Copies of all zones with other ideas of a second.
const OTHER_ZONES: [&str; 2] = ["posix", "right"];
/// Whatever node loads the images asks no registry for a name that begins so.
const REGISTRY: &str = "localhost";
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// Image, programs in it, the one that it starts.
const IMAGES: &[(&str, &[&str], &str)] = &[
    (
        "fettle",
        &[
            "fettle",
            "fettle-dashboard",
            "fettle-engine-keeper",
            "fettle-inference",
            "fettle-installer",
            "fettle-sandbox",
            "fettle-worker",
        ],
        "fettle",
    ),
    ("fettle-dashboard", &["fettle-dashboard"], "fettle-dashboard"),
    ("fettle-worker", &["fettle-sandbox", "fettle-worker"], "fettle-worker"),
    ("fettle-inference", &["fettle-engine-keeper", "fettle-inference"], "fettle-inference"),
];

/// Repositories are built and tested in the one, and backups thinned out by the other.
const WITH_TOOLS: [&str; 2] = ["fettle", "fettle-worker"];

/// What is put together.
pub(crate) struct Wanted<'a> {
    pub(crate) tree: &'a Utf8Path,
    pub(crate) out: &'a Utf8Path,
    /// As `uname -m` says it; what the tree was built for if it is not named.
    pub(crate) arch: Option<&'a str>,
    /// A root file system that lies below those images that want tools.
    pub(crate) tools: Option<&'a Utf8Path>,
    /// Whose shared objects, certificates and time zones they are.
    pub(crate) host: &'a Utf8Path,
}

/// Writes the layout and says what is in it.
///
/// Errors: the tree is none or for another processor, a program is not linked with what this host has.
pub(crate) fn run(wanted: &Wanted<'_>) -> anyhow::Result<()> {
    let bytes = assemble(wanted, &linked)?;
    fs_err::create_dir_all(wanted.out.parent().context("a file lies in a folder")?)?;
    let mut file = fs_err::File::create(wanted.out)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    println!("{} {} bytes, sha256 {}", wanted.out, bytes.len(), digest(&bytes));
    Ok(())
}

/// Seconds since 1970; in a release tree every file has the time of the commit that was built.
pub(crate) fn changed(file: &Utf8Path) -> anyhow::Result<u64> {
    Ok(fs_err::metadata(file)?.modified()?.duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
}

/// A file of an image, by its path without the first slash.
pub(crate) enum Entry {
    Folder { mode: u32, owner: u64 },
    File { bytes: Vec<u8>, mode: u32 },
    Link { target: String },
}

pub(crate) type Layer = BTreeMap<String, Entry>;

pub(crate) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Blobs by their digests, each once.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, media: &str, bytes: Vec<u8>) -> Value {
        let (sha256, size) = (digest(&bytes), bytes.len());
        self.0.insert(sha256.clone(), bytes);
        json!({ "mediaType": media, "digest": format!("sha256:{sha256}"), "size": size })
    }
}

fn assemble(
    wanted: &Wanted<'_>,
    linked: &dyn Fn(&Utf8Path) -> anyhow::Result<Vec<Utf8PathBuf>>,
) -> anyhow::Result<Vec<u8>> {
    let manifest_file = wanted.tree.join("manifest.json");
    let manifest: Value =
        serde_json::from_slice(&fs_err::read(&manifest_file).with_context(|| {
            format!("{} is no release tree; make one with `cargo xtask release-tree`", wanted.tree)
        })?)?;
    let text = |key: &str| manifest[key].as_str().with_context(|| format!("{manifest_file} names no {key}"));
    let (version, built_for) = (text("version")?, text("arch")?);
    let arch = wanted.arch.unwrap_or(built_for);
    ensure!(arch == built_for, "{} was built for {built_for}, and not for {arch}", wanted.tree);
    let go_arch = match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no image is made for {other}"),
    };
    let changed = changed(&manifest_file)?;
    let created = jiff::Timestamp::from_second(changed.cast_signed())?.to_string();
    let programs: BTreeSet<&str> = IMAGES.iter().flat_map(|(_, programs, _)| programs.iter().copied()).collect();
    for program in &programs {
        let path = wanted.tree.join("bin").join(program);
        let sum = manifest["files"][format!("bin/{program}")]["sha256"].as_str().unwrap_or_default();
        ensure!(digest(&fs_err::read(&path)?) == sum, "{path} is not what {manifest_file} names");
    }

    let mut blobs = Blobs::default();
    let base = archive(&base(wanted, &programs, linked)?, changed)?;
    let below = wanted.tools.map(|folder| archive(&folder_layer(folder)?, changed)).transpose()?;
    let mut images = Vec::new();
    for (name, programs, started) in IMAGES {
        let own = archive(&programs_layer(wanted.tree, programs)?, changed)?;
        let lowest = below.clone().filter(|_| WITH_TOOLS.contains(name));
        let path = if lowest.is_some() { "/usr/local/bin:/usr/bin:/bin:/opt/fettle/bin" } else { "/opt/fettle/bin" };
        let layers: Vec<Vec<u8>> = lowest.into_iter().chain([base.clone(), own]).collect();
        let diffs: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
        let history: Vec<Value> =
            diffs.iter().map(|_| json!({ "created": created, "created_by": "cargo xtask image" })).collect();
        let config = json!({
            "architecture": go_arch,
            "os": "linux",
            "created": created,
            "config": {
                "User": format!("{USER}:{USER}"),
                "WorkingDir": format!("/{HOME}"),
                "Entrypoint": [format!("/{PROGRAMS}/{started}")],
                "Cmd": if *name == "fettle" { json!([]) } else { json!(["--config", "/etc/fettle/fettle.toml"]) },
                "Env": [
                    format!("PATH={path}"),
                    format!("SSL_CERT_FILE=/{CERTIFICATES}"),
                    format!("STATE_DIRECTORY=/{HOME}"),
                    format!("TZDIR=/{ZONES}"),
                ],
                "Labels": {
                    "org.opencontainers.image.title": name,
                    "org.opencontainers.image.version": version,
                    "org.opencontainers.image.licenses": "Apache-2.0",
                },
            },
            "rootfs": { "type": "layers", "diff_ids": diffs },
            "history": history,
        });
        let config = blobs.add("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?);
        let layers: Vec<Value> =
            layers.into_iter().map(|layer| blobs.add("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let image = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        let mut image = blobs.add("application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&image)?);
        let full = format!("{REGISTRY}/{name}:{version}");
        image["platform"] = json!({ "architecture": go_arch, "os": "linux" });
        image["annotations"] = json!({ "org.opencontainers.image.ref.name": full, "io.containerd.image.name": full });
        images.push(image);
    }
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": images });
    let mut layout: Layer = [
        ("oci-layout".to_owned(), file(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(), 0o644)),
        ("index.json".to_owned(), file(serde_json::to_vec(&index)?, 0o644)),
        ("blobs".to_owned(), folder(0o755)),
        ("blobs/sha256".to_owned(), folder(0o755)),
    ]
    .into();
    layout.extend(blobs.0.into_iter().map(|(sha256, bytes)| (format!("blobs/sha256/{sha256}"), file(bytes, 0o644))));
    archive(&layout, changed)
}

fn file(bytes: Vec<u8>, mode: u32) -> Entry {
    Entry::File { bytes, mode }
}

fn folder(mode: u32) -> Entry {
    Entry::Folder { mode, owner: 0 }
}

/// Everything below the programs.
fn base(
    wanted: &Wanted<'_>,
    programs: &BTreeSet<&str>,
    linked: &dyn Fn(&Utf8Path) -> anyhow::Result<Vec<Utf8PathBuf>>,
) -> anyhow::Result<Layer> {
    let accounts = format!("root:x:0:0::/:/sbin/nologin\nfettle:x:{USER}:{USER}::/{HOME}:/sbin/nologin\n");
    let mut layer: Layer = [
        ("etc/passwd".to_owned(), file(accounts.into_bytes(), 0o644)),
        ("etc/group".to_owned(), file(format!("root:x:0:\nfettle:x:{USER}:\n").into_bytes(), 0o644)),
        ("etc/nsswitch.conf".to_owned(), file(b"hosts: files dns\n".to_vec(), 0o644)),
        (CERTIFICATES.to_owned(), file(fs_err::read(wanted.host.join(CERTIFICATES))?, 0o644)),
        ("tmp".to_owned(), folder(0o1777)),
        (HOME.to_owned(), Entry::Folder { mode: 0o700, owner: USER }),
    ]
    .into();
    zones(wanted.host, ZONES, &mut layer)?;
    let mut objects = BTreeSet::new();
    for program in programs {
        objects.extend(linked(&wanted.tree.join("bin").join(program))?);
    }
    for object in objects {
        let place = object.as_str().trim_start_matches('/').to_owned();
        layer.insert(place, file(fs_err::read(&object)?, 0o755));
    }
    Ok(with_folders(layer))
}

fn zones(host: &Utf8Path, at: &str, layer: &mut Layer) -> anyhow::Result<()> {
    for entry in host.join(at).read_dir_utf8()? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let place = format!("{at}/{name}");
        if kind.is_dir() {
            if !OTHER_ZONES.contains(&name) {
                zones(host, &place, layer)?;
            }
        } else if kind.is_symlink() {
            let target = entry.path().read_link_utf8()?;
            // One that leads out of the zones would lead nowhere.
            if target.is_relative() {
                layer.insert(place, Entry::Link { target: target.into_string() });
            }
        } else {
            layer.insert(place, file(fs_err::read(entry.path())?, 0o644));
        }
    }
    Ok(())
}

fn programs_layer(tree: &Utf8Path, programs: &[&str]) -> anyhow::Result<Layer> {
    let mut layer = Layer::new();
    for program in programs {
        layer.insert(format!("{PROGRAMS}/{program}"), file(fs_err::read(tree.join("bin").join(program))?, 0o755));
    }
    Ok(with_folders(layer))
}

/// A folder as it is, owned by root.
pub(crate) fn folder_layer(root: &Utf8Path) -> anyhow::Result<Layer> {
    fn take(root: &Utf8Path, at: &Utf8Path, layer: &mut Layer) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        for entry in root.join(at).read_dir_utf8()? {
            let entry = entry?;
            let (place, kind) = (at.join(entry.file_name()), entry.file_type()?);
            // Without the bits that let whoever runs it become root: all of it belongs to root there.
            let mode = fs_err::symlink_metadata(entry.path())?.permissions().mode() & 0o1777;
            if kind.is_dir() {
                layer.insert(place.to_string(), folder(mode));
                take(root, &place, layer)?;
            } else if kind.is_symlink() {
                let target = entry.path().read_link_utf8()?.into_string();
                layer.insert(place.to_string(), Entry::Link { target });
            } else if kind.is_file() {
                layer.insert(place.to_string(), file(fs_err::read(entry.path())?, mode));
            }
        }
        Ok(())
    }
    let mut layer = Layer::new();
    take(root, Utf8Path::new(""), &mut layer)?;
    Ok(layer)
}

pub(crate) fn with_folders(mut layer: Layer) -> Layer {
    let above: BTreeSet<String> = layer
        .keys()
        .flat_map(|place| Utf8Path::new(place).ancestors().skip(1).map(ToString::to_string).collect::<Vec<_>>())
        .filter(|place| !place.is_empty())
        .collect();
    for place in above {
        layer.entry(place).or_insert_with(|| folder(0o755));
    }
    layer
}

/// A tar file whose bytes follow from what is in it alone.
pub(crate) fn archive(layer: &Layer, changed: u64) -> anyhow::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (place, entry) in layer {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(changed);
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::Folder { mode, owner } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_uid(*owner);
                header.set_gid(*owner);
                header.set_size(0);
                builder.append_data(&mut header, format!("{place}/"), std::io::empty())?;
            }
            Entry::File { bytes, mode } => {
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, place, &bytes[..])?;
            }
            Entry::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, place, target)?;
            }
        }
    }
    Ok(builder.into_inner()?)
}

/// The shared objects that a program is loaded with, and what loads them, by the paths that it finds them under.
fn linked(program: &Utf8Path) -> anyhow::Result<Vec<Utf8PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    let said = process::output(ldd, ASK_LIMIT).with_context(|| {
        format!("{program} is not for this machine, or static: images are made where its tree was built")
    })?;
    objects(&said)
}

fn objects(said: &str) -> anyhow::Result<Vec<Utf8PathBuf>> {
    let mut found = Vec::new();
    for line in said.lines().map(str::trim) {
        if let Some((name, rest)) = line.split_once(" => ") {
            let path = rest.split(' ').next().unwrap_or_default();
            ensure!(path.starts_with('/'), "{name} is not on this host: {line}");
            found.push(path.into());
        } else if let Some(path) = line.split(' ').next().filter(|path| path.starts_with('/')) {
            found.push(path.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const CHANGED: u64 = 1_700_000_000;

    struct Place {
        _folder: tempfile::TempDir,
        root: Utf8PathBuf,
    }

    fn place() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let mut files = serde_json::Map::new();
        fs_err::create_dir_all(root.join("tree/bin")).unwrap();
        for program in IMAGES[0].1 {
            fs_err::write(root.join("tree/bin").join(program), program).unwrap();
            files.insert(format!("bin/{program}"), json!({ "sha256": digest(program.as_bytes()), "mode": "0755" }));
        }
        let manifest = json!({ "schema": 1, "version": "1.2.3", "arch": "x86_64", "files": files });
        fs_err::write(root.join("tree/manifest.json"), manifest.to_string()).unwrap();
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(CHANGED);
        fs_err::File::options()
            .write(true)
            .open(root.join("tree/manifest.json"))
            .unwrap()
            .into_parts()
            .0
            .set_modified(changed)
            .unwrap();
        for (path, text) in
            [(CERTIFICATES, "certificates"), ("usr/share/zoneinfo/Europe/Vienna", "zone"), ("lib/libc.so.6", "libc")]
        {
            let path = root.join("host").join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        Place { _folder: folder, root }
    }

    fn assembled(place: &Place, arch: Option<&str>) -> anyhow::Result<Vec<u8>> {
        let wanted = Wanted {
            tree: &place.root.join("tree"),
            out: &place.root.join("out.tar"),
            arch,
            tools: None,
            host: &place.root.join("host"),
        };
        let object = place.root.join("host/lib/libc.so.6");
        assemble(&wanted, &|_| Ok(vec![object.clone()]))
    }

    fn unpacked(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(path, content);
        }
        found
    }

    fn blob(layout: &BTreeMap<String, Vec<u8>>, described: &Value) -> Vec<u8> {
        let name = described["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = layout[&format!("blobs/sha256/{name}")].clone();
        assert_eq!((digest(&bytes).as_str(), bytes.len() as u64), (name, described["size"].as_u64().unwrap()));
        bytes
    }

    #[test]
    fn every_digest_and_size_of_the_layout_is_that_of_its_blob_and_nobody_is_root() {
        let layout = unpacked(&assembled(&place(), None).unwrap());
        assert_eq!(layout["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index: Value = serde_json::from_slice(&layout["index.json"]).unwrap();
        let mut names = Vec::new();
        for described in index["manifests"].as_array().unwrap() {
            names.push(described["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned());
            let manifest: Value = serde_json::from_slice(&blob(&layout, described)).unwrap();
            let config: Value = serde_json::from_slice(&blob(&layout, &manifest["config"])).unwrap();
            assert_eq!(config["config"]["User"], "65532:65532");
            assert_eq!(
                (&config["architecture"], &config["created"]),
                (&json!("amd64"), &json!("2023-11-14T22:13:20Z"))
            );
            let layers = manifest["layers"].as_array().unwrap();
            assert_eq!(layers.len(), config["rootfs"]["diff_ids"].as_array().unwrap().len());
            let mut files = BTreeMap::new();
            for (layer, diff) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
                assert_eq!(layer["digest"], *diff, "a layer that is not compressed is its own difference");
                files.extend(unpacked(&blob(&layout, layer)));
            }
            let started = config["config"]["Entrypoint"][0].as_str().unwrap().trim_start_matches('/');
            assert!(
                files.contains_key(started) && files.contains_key(CERTIFICATES) && files.contains_key("etc/passwd")
            );
            assert!(files.keys().any(|path| path.ends_with("lib/libc.so.6")), "{:?}", files.keys());
        }
        let wanted = ["fettle", "fettle-dashboard", "fettle-worker", "fettle-inference"]
            .map(|name| format!("localhost/{name}:1.2.3"));
        assert_eq!(names, wanted);
        // The base is there once for all.
        assert_eq!(
            layout.keys().filter(|path| path.starts_with("blobs/sha256/") && path.len() > 20).count(),
            4 * 3 + 1
        );
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes_and_another_processor_or_program_is_refused() {
        let place = place();
        let once = assembled(&place, None).unwrap();
        // When and by whom a file was copied is nobody's business.
        fs_err::write(place.root.join("tree/bin/fettle"), "fettle").unwrap();
        assert!(once == assembled(&place, Some("x86_64")).unwrap());
        assert!(assembled(&place, Some("aarch64")).unwrap_err().to_string().contains("built for x86_64"));
        fs_err::write(place.root.join("tree/bin/fettle"), "another").unwrap();
        assert!(assembled(&place, None).unwrap_err().to_string().contains("is not what"));
    }

    #[test]
    fn what_ldd_says_is_understood_and_an_object_that_is_missing_is_named() {
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(objects(said).unwrap(), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(objects("\tlibx.so.1 => not found\n").unwrap_err().to_string().contains("libx.so.1"));
    }

    #[test]
    fn no_file_of_a_folder_makes_root_of_whoever_runs_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = place();
        let root = place.root.join("tools");
        fs_err::create_dir_all(root.join("usr/bin")).unwrap();
        fs_err::create_dir_all(root.join("tmp")).unwrap();
        for (path, mode) in [("usr/bin/su", 0o4755), ("usr/bin/wall", 0o2755), ("usr/bin/cat", 0o755)] {
            fs_err::write(root.join(path), path).unwrap();
            fs_err::set_permissions(root.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        for (path, mode) in [("usr/bin", 0o2755), ("tmp", 0o1777)] {
            fs_err::set_permissions(root.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let out = place.root.join("out.tar");
        let (tree, host) = (place.root.join("tree"), place.root.join("host"));
        let wanted = Wanted { tree: &tree, out: &out, arch: None, tools: Some(&root), host: &host };
        let object = host.join("lib/libc.so.6");
        let layout = unpacked(&assemble(&wanted, &|_| Ok(vec![object.clone()])).unwrap());
        let mut modes = BTreeMap::new();
        for (_, bytes) in layout.iter().filter(|(path, _)| path.starts_with("blobs/sha256/")) {
            let mut archive = tar::Archive::new(bytes.as_slice());
            // Other blobs are JSON.
            for entry in archive.entries().unwrap().map_while(Result::ok) {
                modes.insert(entry.path().unwrap().to_string_lossy().into_owned(), entry.header().mode().unwrap());
            }
        }
        let of = |path: &str| modes.get(path).or_else(|| modes.get(&format!("{path}/"))).map(|mode| mode & 0o7777);
        assert_eq!(["usr/bin/su", "usr/bin/wall", "usr/bin/cat"].map(of), [Some(0o755); 3], "{modes:?}");
        assert_eq!(["usr/bin", "tmp"].map(of), [Some(0o755), Some(0o1777)], "{modes:?}");
    }

    #[test]
    fn skopeo_reads_the_layout() {
        let place = place();
        fs_err::write(place.root.join("out.tar"), assembled(&place, None).unwrap()).unwrap();
        let mut skopeo = Command::new("skopeo");
        let image = format!("oci-archive:{}:localhost/fettle-dashboard:1.2.3", place.root.join("out.tar"));
        skopeo.args(["inspect", "--config", &image]);
        match skopeo.output() {
            Err(_) => {
                fettle_test_kit::skip::skip("skopeo reads the layout: there is no skopeo (Debian package skopeo)")
            }
            Ok(said) => {
                assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
                let config: Value = serde_json::from_slice(&said.stdout).unwrap();
                assert_eq!(config["config"]["Entrypoint"], json!(["/opt/fettle/bin/fettle-dashboard"]));
            }
        }
    }
}
