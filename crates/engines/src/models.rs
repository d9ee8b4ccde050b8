//! Models on disk: files that were brought here, whole and unchanged, with what their headers say. Where files come from is
//! a [`Source`]; this opens no connection and runs nothing.
//!
//! ```text
//! <store>/<name>.lock              held by whoever adds or removes it
//! <store>/<name>/name              what it is called, written first
//! <store>/<name>/files/…           as they were, flat; the last one may be half there
//! <store>/<name>/manifest.json     files with sizes and digests; written last, so a folder without it is no model
//! ```

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_placement::id::{EngineId, ModelId};
use fettle_placement::quantity::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::record::{file_name, make_private, write_private};

mod bring;
mod name;
pub mod ready;
mod source;
pub mod weights;

pub use bring::check_names;
pub use name::{NameError, model_name};
pub use source::{IsLink, Links, Local, Offered, Opened, Source, SourceError};
pub use weights::WeightsError;

const MANIFEST: &str = "manifest.json";
const NAME: &str = "name";
const FILES: &str = "files";

/// The folder of all models.
#[derive(Debug, Clone)]
pub struct Store {
    root: Utf8PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub id: ModelId,
    /// By name.
    pub files: Vec<File>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    pub bytes: u64,
    /// SHA-256, in hex.
    pub sha256: String,
}

/// What lies in the store under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Whole(Model),
    /// Being brought, or left by somebody who was interrupted.
    Partial {
        id: ModelId,
        bytes: Bytes,
    },
}

/// How far the work on a model's files is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'f> {
    pub file: &'f str,
    /// Of all files.
    pub done: u64,
    pub total: u64,
}

pub type Watch<'w> = &'w mut dyn FnMut(Progress<'_>);

#[derive(Serialize, Deserialize)]
#[serde(tag = "v")]
enum Stored {
    #[serde(rename = "1")]
    V1(Model),
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    Missing,
    Size { bytes: u64 },
    Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is a model {0} already")]
    There(ModelId),
    #[error("there is no model {0}")]
    Absent(ModelId),
    /// By another process, or the same.
    #[error("somebody else is at work on the model {0}")]
    Busy(ModelId),
    #[error("{files} files are no model: at most {} are taken", bring::MAX_FILES)]
    TooManyFiles { files: usize },
    #[error("{bytes} are no model: at most {} are taken", bring::MAX_MODEL)]
    TooLarge { bytes: Bytes },
    #[error("{needed} more are needed at {folder}, with what is kept free for others, and {free} are free")]
    NoRoom { folder: Utf8PathBuf, needed: Bytes, free: Bytes },
    #[error("it is offered with neither .gguf nor .safetensors files, so it holds no weights")]
    NoWeights,
    #[error("{file} ends at byte {got} of {bytes}")]
    Short { file: String, got: u64, bytes: u64 },
    #[error("{file} goes on beyond its {bytes} bytes")]
    Long { file: String, bytes: u64 },
    #[error("{file} is not what its SHA-256 says: it was damaged on the way, or has been changed")]
    Changed { file: String },
    #[error("{file} cannot be had")]
    Source { file: String, source: SourceError },
    #[error("the files cannot be asked for")]
    Offer(#[source] SourceError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("the store of models cannot be used")]
    Io(#[from] io::Error),
}

impl Model {
    pub fn bytes(&self) -> Bytes {
        Bytes::new(self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add))
    }

    /// Of all files: the SHA-256 of what `sha256sum *` prints of them.
    pub fn digest(&self) -> String {
        let lines: String = self.files.iter().map(|file| format!("{}  {}\n", file.sha256, file.name)).collect();
        hex::encode(Sha256::digest(lines))
    }
}

impl Entry {
    pub fn id(&self) -> &ModelId {
        match self {
            Self::Whole(model) => &model.id,
            Self::Partial { id, .. } => id,
        }
    }

    pub fn whole(self) -> Option<Model> {
        match self {
            Self::Whole(model) => Some(model),
            Self::Partial { .. } => None,
        }
    }
}

impl Store {
    pub fn at(root: impl Into<Utf8PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Brings what `source` offers and keeps it if it is a model. Takes as long as reading and writing the files does. What an
    /// interrupted one left is gone on with where a digest tells that it belongs to this, else brought anew.
    pub fn add(&self, id: &ModelId, source: &dyn Source, watch: Watch<'_>) -> Result<Model, StoreError> {
        name::model_name(id.as_str())?;
        make_private(&self.root)?;
        let _lock = self.lock(id)?;
        let place = self.folder(id);
        if place.join(MANIFEST).exists() {
            return Err(StoreError::There(id.clone()));
        }
        let offered = bring::checked(source.offered().map_err(StoreError::Offer)?)?;
        make_private(&place)?;
        write_private(&place.join(NAME), id.as_str().as_bytes())?;
        let files = place.join(FILES);
        let brought = bring::bring(source, &offered, &files, watch);
        if brought.is_err() && bring::bytes_in(&files)? == Bytes::ZERO {
            fs_err::remove_dir_all(&place)?;
        }
        let model = Model { id: id.clone(), files: brought? };
        // Headers that cannot be read are found now and not when somebody waits for the model.
        if let Err(unreadable) = weights::facts(&weights_of(&place, &model)) {
            fs_err::remove_dir_all(&place)?;
            return Err(unreadable.into());
        }
        let manifest = serde_json::to_vec_pretty(&Stored::V1(model.clone())).map_err(io::Error::from)?;
        write_private(&place.join(MANIFEST), &manifest)?;
        Ok(model)
    }

    /// By name.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut found = Vec::new();
        let entries = match fs_err::read_dir(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            if let Some(place) = Utf8Path::from_path(&entry?.path()).filter(|path| path.is_dir()) {
                found.extend(entry_of(place)?);
            }
        }
        found.sort_by(|a, b| a.id().cmp(b.id()));
        Ok(found)
    }

    pub fn get(&self, id: &ModelId) -> Result<Model, StoreError> {
        read(&self.folder(id))?.ok_or_else(|| StoreError::Absent(id.clone()))
    }

    /// Also what an interrupted `add` left.
    pub fn remove(&self, id: &ModelId) -> Result<(), StoreError> {
        let place = self.folder(id);
        if !place.exists() {
            return Err(StoreError::Absent(id.clone()));
        }
        let _lock = self.lock(id)?;
        // First what makes it a model.
        match fs_err::remove_file(place.join(MANIFEST)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => fs_err::remove_dir_all(&place)?,
        }
        Ok(())
    }

    /// Reads every byte again. Gives the files that are not what they were.
    pub fn verify(&self, id: &ModelId, watch: Watch<'_>) -> Result<Vec<(String, Flaw)>, StoreError> {
        let model = self.get(id)?;
        let (files, total, mut done) = (self.folder(id).join(FILES), model.bytes().get(), 0);
        let mut flaws = Vec::new();
        for file in model.files {
            let see = &mut |bytes| watch(Progress { file: &file.name, done: done + bytes, total });
            if let Some(flaw) = bring::flaw(&files.join(&file.name), &file, see)? {
                flaws.push((file.name, flaw));
            }
            done += file.bytes;
        }
        Ok(flaws)
    }

    /// What engines are told: the first GGUF file, or the folder of a model in safetensors.
    pub fn weights(&self, id: &ModelId) -> Result<Utf8PathBuf, StoreError> {
        Ok(weights_of(&self.folder(id), &self.get(id)?))
    }

    /// Where its files lie, if it is there.
    pub fn files(&self, id: &ModelId) -> Utf8PathBuf {
        self.folder(id).join(FILES)
    }

    fn folder(&self, id: &ModelId) -> Utf8PathBuf {
        self.root.join(file_name(&EngineId::new(id.as_str())))
    }

    /// Stays when the model goes: whoever waits for it must wait for the same file.
    fn lock(&self, id: &ModelId) -> Result<std::fs::File, StoreError> {
        let lock = std::fs::File::create(format!("{}.lock", self.folder(id)))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Busy(id.clone())),
            Err(std::fs::TryLockError::Error(e)) => Err(e.into()),
        }
    }
}

/// A projector is a model of its own, which only the engine's flags name.
fn weights_of(place: &Utf8Path, model: &Model) -> Utf8PathBuf {
    let files = place.join(FILES);
    let first = model.files.iter().find(|file| weights::is_gguf(&file.name) && !file.name.contains("mmproj"));
    first.map_or(files.clone(), |file| files.join(&file.name))
}

/// `None`: what lies there is not of this store.
fn entry_of(place: &Utf8Path) -> Result<Option<Entry>, StoreError> {
    if let Some(model) = read(place)? {
        return Ok(Some(Entry::Whole(model)));
    }
    match fs_err::read_to_string(place.join(NAME)) {
        Ok(name) => {
            let bytes = bring::bytes_in(&place.join(FILES))?;
            Ok(Some(Entry::Partial { id: ModelId::new(name), bytes }))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// `None`: it is no model, or not yet.
fn read(place: &Utf8Path) -> Result<Option<Model>, StoreError> {
    match fs_err::read(place.join(MANIFEST)) {
        Ok(bytes) => {
            let Stored::V1(model) = serde_json::from_slice(&bytes).map_err(io::Error::from)?;
            Ok(Some(model))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests;
