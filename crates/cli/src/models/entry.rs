//! What a model that was brought here needs in the configuration.

use anyhow::Result;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_domain::budget::MIN_CONTEXT_TOKENS;
use fettle_engines::models::ready::{self, Ready};
use fettle_engines::models::weights;
use fettle_inference::catalog;
use fettle_placement::id::ModelId;

/// What the configuration has when nothing is said.
const USUAL_CONTEXT: u32 = 65_536;
const USUAL_PARALLEL: u16 = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    id: ModelId,
    weights: Utf8PathBuf,
    context: u32,
    parallel: u16,
}

impl Entry {
    pub(super) fn of(id: &ModelId, weights: &Utf8Path) -> Result<Self> {
        let trained = u32::try_from(weights::facts(weights)?.arch.max_ctx).unwrap_or(u32::MAX);
        Ok(Self::with(id, weights, trained, ready::find(id.as_str())))
    }

    /// `trained`: tokens of a sequence that the model was trained for; 0 where its files do not say.
    fn with(id: &ModelId, weights: &Utf8Path, trained: u32, ready: Option<&Ready>) -> Self {
        let wanted = ready.map_or(USUAL_CONTEXT, |ready| ready.context);
        Self {
            id: id.clone(),
            weights: weights.to_owned(),
            context: if trained == 0 { wanted } else { wanted.min(trained) },
            parallel: ready.map_or(USUAL_PARALLEL, |ready| ready.parallel),
        }
    }

    pub(super) fn context(&self) -> u32 {
        self.context
    }

    pub(super) fn parallel(&self) -> u16 {
        self.parallel
    }

    /// To be pasted.
    pub(super) fn toml(&self) -> String {
        let Self { id, weights, context, parallel } = self;
        let engine = if weights.extension() == Some("gguf") { "llama-server" } else { "vllm" };
        format!(
            "[[gateway.models]]\nname = {}\npath = {}\ncontext = {context}\nrecipes = [{{ engine = \"{engine}\", parallel = {parallel} }}]\n",
            quoted(id.as_str()),
            quoted(weights.as_str())
        )
    }

    /// What that would take, and who can use it.
    pub(super) fn takes(&self) -> Result<String> {
        let footprint = catalog::estimated(&self.weights, self.context, self.parallel, 1)?;
        let claim = footprint.claims().next().unwrap_or_default();
        let takes =
            format!("With {} tokens for each of {} at once it takes {claim} of a GPU.", self.context, self.parallel);
        Ok(match u64::from(self.context) {
            MIN_CONTEXT_TOKENS.. => takes,
            _ => format!("{takes} Other programs can use it; Runs cannot, as they need {MIN_CONTEXT_TOKENS} tokens."),
        })
    }
}

/// JSON's strings are TOML's, too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use fettle_runtime::config::{Config, ModelConfig};
    use fettle_runtime::environment::Environment;

    use super::*;

    fn read(entry: &Entry) -> ModelConfig {
        let config = Config::parse("fettle.toml", &entry.toml(), &Environment::default()).unwrap();
        config.gateway.models[0].clone()
    }

    #[test]
    fn entries_of_ready_models_are_accepted() {
        for ready in ready::READY {
            let path = Utf8PathBuf::from(format!("/data/models/a \"b\"/{}", ready.file));
            let entry = Entry::with(&ModelId::new(ready.name), &path, 0, Some(ready));
            let model = read(&entry);
            assert_eq!((model.name.as_str(), model.path.as_ref()), (ready.name, Some(&path)));
            assert_eq!(model.context, u64::from(ready.context));
            assert_eq!(model.recipes[0].parallel, ready.parallel);
        }
    }

    #[test]
    fn no_window_is_wider_than_the_model_was_trained_for() {
        let of = |trained, ready| Entry::with(&ModelId::new("m"), Utf8Path::new("/m"), trained, ready).context;
        assert_eq!(of(131_072, None), USUAL_CONTEXT);
        assert_eq!(of(8_192, None), 8_192);
        assert_eq!(of(0, None), USUAL_CONTEXT);
        assert_eq!(of(8_192, ready::find("mistral:7b")), 8_192);
        assert_eq!(of(131_072, ready::find("mistral:7b")), 32_768);
    }
}
