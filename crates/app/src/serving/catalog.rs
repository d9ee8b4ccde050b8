//! The models that may be loaded here, as configured, with what each recipe takes.

use camino::Utf8PathBuf;
use fettle_placement::footprint::Footprint;
use fettle_placement::id::{ModelId, RecipeId};
use fettle_placement::recipe::{ModelSpec, Recipe};
use fettle_placement::view::Policy;

#[derive(Debug, Clone, Default)]
pub struct Catalog {
    pub models: Vec<LocalModel>,
    pub policy: Policy,
}

#[derive(Debug, Clone)]
pub struct LocalModel {
    pub id: ModelId,
    /// In the order of preference.
    pub recipes: Vec<LocalRecipe>,
    /// The least number of engines, kept without requests, and the most.
    pub replicas: (u8, u8),
    /// Never pushed out.
    pub pinned: bool,
}

#[derive(Debug, Clone)]
pub struct LocalRecipe {
    pub recipe: Recipe,
    pub footprint: Footprint,
    /// A file or a folder, as the recipe's engine expects.
    pub weights: Utf8PathBuf,
}

impl Catalog {
    pub(super) fn model(&self, id: &ModelId) -> Option<&LocalModel> {
        self.models.iter().find(|model| model.id == *id)
    }

    pub(super) fn recipe(&self, id: &RecipeId) -> Option<&LocalRecipe> {
        self.all().find(|local| local.recipe.id == *id)
    }

    pub fn all(&self) -> impl Iterator<Item = &LocalRecipe> {
        self.models.iter().flat_map(|model| &model.recipes)
    }

    pub(super) fn specs(&self) -> Vec<ModelSpec> {
        let ids = |model: &LocalModel| model.recipes.iter().map(|local| local.recipe.id.clone()).collect();
        self.models.iter().map(|model| ModelSpec { id: model.id.clone(), recipes: ids(model) }).collect()
    }
}
