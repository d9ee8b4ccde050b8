//! What is written down of an engine before it is started, so that whoever comes after a crash finds it. One folder an engine,
//! readable by its owner alone:
//!
//! ```text
//! record.json   what was ordered, where it is reached, with which key       the host, before the start; again when it is ready
//! spec.json     what the keeper runs                                        the host, before the start
//! keeper.json   who the keeper and the engine's first process are           the keeper, before it starts anything
//! exit.json     how the first process ended                                 the keeper
//! engine.sock, key, …                                                       the engine's
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::serving::{Endpoint, EngineAddress};
use fettle_placement::engine::Seat;
use fettle_placement::id::{DeviceId, EngineId, Epoch, ModelId, PoolId, RecipeId};
use fettle_placement::quantity::Bytes;
use fs_err::os::unix::fs::OpenOptionsExt;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::driver::{Api, Launch};
use crate::exit::Status;
use crate::table::Identity;

const RECORD: &str = "record.json";
const SPEC: &str = "spec.json";
const KEEPER: &str = "keeper.json";
const EXIT: &str = "exit.json";
/// A keeper writes three files in its life.
const REMOVALS: u32 = 3;

#[derive(Serialize, Deserialize)]
#[serde(tag = "v")]
enum Stored {
    #[serde(rename = "1")]
    V1(Record),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub engine: EngineId,
    pub epoch: Epoch,
    pub model: ModelId,
    pub recipe: RecipeId,
    pub devices: Vec<DeviceId>,
    pub claims: Vec<(PoolId, Bytes)>,
    pub peaks: Vec<(PoolId, Bytes)>,
    pub boot: String,
    /// The unit of systemd that it is; `None`: a child of the host, which ends with it.
    pub unit: Option<String>,
    /// The control group made for it.
    pub cgroup: Option<Utf8PathBuf>,
    pub at: Address,
    pub key: Option<String>,
    /// The model's name in requests.
    pub name: String,
    pub api: Api,
    /// It once answered with a token.
    pub ready: bool,
    pub kv_tokens: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    Socket(Utf8PathBuf),
    Loopback(std::net::SocketAddr),
}

impl Record {
    pub fn seat(&self) -> Seat {
        Seat {
            engine: self.engine.clone(),
            model: self.model.clone(),
            recipe: self.recipe.clone(),
            devices: self.devices.clone(),
            claims: self.claims.clone(),
            peaks: self.peaks.clone(),
        }
    }

    pub fn of(seat: &Seat, epoch: Epoch, launch: &Launch, boot: String) -> Self {
        Self {
            engine: seat.engine.clone(),
            epoch,
            model: seat.model.clone(),
            recipe: seat.recipe.clone(),
            devices: seat.devices.clone(),
            claims: seat.claims.clone(),
            peaks: seat.peaks.clone(),
            boot,
            unit: None,
            cgroup: None,
            at: match &launch.endpoint {
                Endpoint::Unix(path) => Address::Socket(path.clone()),
                Endpoint::Tcp(address) => Address::Loopback(*address),
            },
            key: launch.key.as_ref().map(|key| key.expose_secret().to_owned()),
            name: launch.model.clone(),
            api: launch.api.clone(),
            ready: false,
            kv_tokens: None,
        }
    }

    pub fn address(&self) -> EngineAddress {
        EngineAddress {
            at: match &self.at {
                Address::Socket(path) => Endpoint::Unix(path.clone()),
                Address::Loopback(address) => Endpoint::Tcp(*address),
            },
            key: self.key.clone().map(SecretString::from),
            model: self.name.clone(),
            kv_tokens: self.kv_tokens,
        }
    }
}

/// What the keeper runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub argv: Vec<String>,
    /// All of it.
    pub env: BTreeMap<String, String>,
    pub log: Utf8PathBuf,
    pub log_bytes: u64,
    /// The control group to be in.
    pub cgroup: Option<Utf8PathBuf>,
    /// Its standard input is held open by the host, and its end is the host's.
    pub bound: bool,
}

/// What the keeper has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub keeper: Identity,
    /// `None` between the keeper's start and the engine's.
    pub engine: Option<Identity>,
}

/// The folder of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(Utf8PathBuf);

impl Folder {
    pub fn at(path: impl Into<Utf8PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn of(root: &Utf8Path, engine: &EngineId) -> Self {
        Self(root.join(file_name(engine)))
    }

    pub fn path(&self) -> &Utf8Path {
        &self.0
    }

    /// Empty, whatever an earlier life left in it.
    pub fn make(&self) -> io::Result<()> {
        self.remove()?;
        make_private(&self.0)
    }

    /// All of it, and for good: a record that comes back after a crash would be believed.
    pub fn remove(&self) -> io::Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        // The record first: what is left of the rest names nobody.
        self.remove_file(RECORD)?;
        sync(&self.0)?;
        // A keeper that has just begun may write once more, and then finds that there is nothing to keep.
        for _ in 0..REMOVALS {
            if fs_err::remove_dir_all(&self.0).is_ok() {
                return Ok(());
            }
        }
        fs_err::remove_dir_all(&self.0)
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        match fs_err::remove_file(self.0.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        self.write_json(RECORD, &Stored::V1(record.clone()))
    }

    /// `None`: there is none.
    pub fn record(&self) -> io::Result<Option<Record>> {
        Ok(self.read_json(RECORD)?.map(|Stored::V1(record)| record))
    }

    pub fn write_spec(&self, spec: &Spec) -> io::Result<()> {
        self.write_json(SPEC, spec)
    }

    pub fn spec(&self) -> io::Result<Option<Spec>> {
        self.read_json(SPEC)
    }

    pub fn write_kept(&self, kept: &Kept) -> io::Result<()> {
        self.write_json(KEEPER, kept)
    }

    pub fn kept(&self) -> io::Result<Option<Kept>> {
        self.read_json(KEEPER)
    }

    pub fn write_status(&self, status: Status) -> io::Result<()> {
        self.write_json(EXIT, &status)
    }

    pub fn status(&self) -> io::Result<Option<Status>> {
        self.read_json(EXIT)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        write_private(&self.0.join(name), &serde_json::to_vec(value)?)
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs_err::read(self.0.join(name)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// All at once, on disk before it returns, for the owner's eyes only.
pub fn write_private(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    let next = Utf8PathBuf::from(format!("{path}.next"));
    let mut options = fs_err::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs_err::rename(&next, path)?;
    path.parent().map_or(Ok(()), sync)
}

pub fn make_private(path: &Utf8Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    path.parent().map_or(Ok(()), sync)
}

fn sync(folder: &Utf8Path) -> io::Result<()> {
    fs_err::File::open(folder)?.sync_all()
}

/// Longest name of an instance that units and the rule for them allow.
const NAME_CHARS: usize = 64;

/// The engine's name where only `[a-z0-9-]{1,64}` may be: a folder, a unit. Two engines never share one.
pub fn file_name(engine: &EngineId) -> String {
    let mut name = String::new();
    for byte in engine.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => name.push(char::from(byte)),
            _ => name.push_str(&format!("-{byte:02x}")),
        }
    }
    if !name.is_empty() && name.len() <= NAME_CHARS {
        return name;
    }
    // Too long to be told in full: its beginning for people, its digest against confusion. A short name never has two dashes in
    // a row.
    let digest = hex::encode(&Sha256::digest(engine.as_str())[..16]);
    name.truncate(NAME_CHARS - digest.len() - 2);
    format!("{name}--{digest}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_are_safe_and_never_shared(ids in prop::collection::btree_set(".{0,90}", 1..20)) {
            let names: BTreeSet<String> = ids.iter().map(|id| file_name(&EngineId::new(id.as_str()))).collect();
            prop_assert_eq!(names.len(), ids.len());
            for name in names {
                prop_assert!((1..=NAME_CHARS).contains(&name.len()), "{}", name);
                prop_assert!(name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')), "{}", name);
            }
        }
    }

    #[test]
    fn what_is_written_is_for_the_owner_alone_and_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(root.path()).unwrap().join("engines");
        let folder = Folder::of(&root, &EngineId::new("qwen/1"));
        folder.make().unwrap();
        assert_eq!(folder.kept().unwrap(), None);
        let kept = Kept { keeper: Identity { pid: 4, start: 9 }, engine: None };
        folder.write_kept(&kept).unwrap();
        assert_eq!(folder.kept().unwrap(), Some(kept));
        let mode = |path: &Utf8Path| fs_err::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root), 0o700);
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.path().join(KEEPER)), 0o600);
        folder.make().unwrap();
        assert_eq!(folder.kept().unwrap(), None);
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert!(!folder.path().exists());
    }
}
