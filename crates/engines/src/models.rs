//! Models on disk: files that were brought here, whole and unchanged, with what their headers say. Fetches nothing from a network
//! and runs nothing.
//!
//! ```text
//! <store>/<name>/manifest.json     files with sizes and digests; written last, so a folder without it is no model
//! <store>/<name>/files/…           as they were, flat
//! ```

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_placement::estimate::ModelFacts;
use fettle_placement::id::{EngineId, ModelId};
use fettle_placement::quantity::Bytes;
use serde::{Deserialize, Serialize};

use crate::record::{file_name, write_private};

mod bring;
mod headers;
pub mod ready;

pub use headers::HeaderError;

const MANIFEST: &str = "manifest.json";
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
    #[error("there is a model {0} already")]
    There(ModelId),
    #[error("there is no model {0}")]
    Absent(ModelId),
    /// Neither GGUF nor safetensors, at the top of what was given.
    #[error("{0} holds no weights")]
    NoWeights(Utf8PathBuf),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("the store of models cannot be used")]
    Io(#[from] io::Error),
}

impl Model {
    pub fn bytes(&self) -> Bytes {
        Bytes::new(self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add))
    }
}

impl Store {
    pub fn at(root: impl Into<Utf8PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Copies a file, or the files at the top of a folder, and keeps them if they are a model. Takes as long as reading and
    /// writing them does. What an interrupted one left is done again.
    pub fn add(&self, id: &ModelId, from: &Utf8Path) -> Result<Model, StoreError> {
        let place = self.folder(id);
        if place.join(MANIFEST).exists() {
            return Err(StoreError::There(id.clone()));
        }
        let files = place.join(FILES);
        let model = Model { id: id.clone(), files: bring::bring(from, &files)? };
        if !model.files.iter().any(|file| headers::is_weights(&file.name)) {
            fs_err::remove_dir_all(&place)?;
            return Err(StoreError::NoWeights(from.to_owned()));
        }
        // Headers that cannot be read are found now and not when somebody waits for the model.
        if let Err(e) = headers::facts(&files, &model.files) {
            fs_err::remove_dir_all(&place)?;
            return Err(e.into());
        }
        let manifest = serde_json::to_vec_pretty(&Stored::V1(model.clone())).map_err(io::Error::from)?;
        write_private(&place.join(MANIFEST), &manifest)?;
        Ok(model)
    }

    /// By name.
    pub fn list(&self) -> Result<Vec<Model>, StoreError> {
        let mut models = Vec::new();
        let entries = match fs_err::read_dir(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(models),
            entries => entries?,
        };
        for entry in entries {
            if let Some(path) = Utf8Path::from_path(&entry?.path())
                && let Some(model) = read(path)?
            {
                models.push(model);
            }
        }
        models.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(models)
    }

    pub fn get(&self, id: &ModelId) -> Result<Model, StoreError> {
        read(&self.folder(id))?.ok_or_else(|| StoreError::Absent(id.clone()))
    }

    pub fn remove(&self, id: &ModelId) -> Result<(), StoreError> {
        let place = self.folder(id);
        if !place.exists() {
            return Err(StoreError::Absent(id.clone()));
        }
        // First what makes it a model.
        match fs_err::remove_file(place.join(MANIFEST)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => fs_err::remove_dir_all(&place)?,
        }
        Ok(())
    }

    /// Reads every byte again. Gives the files that are not what they were.
    pub fn verify(&self, id: &ModelId) -> Result<Vec<(String, Flaw)>, StoreError> {
        let model = self.get(id)?;
        let files = self.folder(id).join(FILES);
        let mut flaws = Vec::new();
        for file in model.files {
            if let Some(flaw) = bring::flaw(&files.join(&file.name), &file)? {
                flaws.push((file.name, flaw));
            }
        }
        Ok(flaws)
    }

    /// What its headers say, for `fettle_placement::estimate::estimate`.
    pub fn facts(&self, id: &ModelId) -> Result<ModelFacts, StoreError> {
        let model = self.get(id)?;
        Ok(headers::facts(&self.folder(id).join(FILES), &model.files)?)
    }

    /// What engines are told: the first GGUF file, or the folder of a model in safetensors.
    pub fn weights(&self, id: &ModelId) -> Result<Utf8PathBuf, StoreError> {
        let model = self.get(id)?;
        let files = self.folder(id).join(FILES);
        Ok(headers::first_gguf(&model.files).map_or(files.clone(), |file| files.join(&file.name)))
    }

    fn folder(&self, id: &ModelId) -> Utf8PathBuf {
        self.root.join(file_name(&EngineId::new(id.as_str())))
    }
}

/// `None`: it is no model, or not yet.
fn read(place: &Utf8Path) -> Result<Option<Model>, StoreError> {
    match fs_err::read(place.join(MANIFEST)) {
        Ok(bytes) => {
            let Stored::V1(model) = serde_json::from_slice(&bytes).map_err(io::Error::from)?;
            Ok(Some(model))
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests;
