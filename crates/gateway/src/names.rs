//! What the model's name in a request stands for: profiles and aliases, models of this machine, `provider/model`.

use std::collections::BTreeMap;

use fettle_app::ports::serving::Supply;
use fettle_placement::id::ModelId;
use fettle_protocols::ModelEntry;

use crate::desk::Source;
use crate::settings::{Price, Provider, Settings};

/// Of a model whose window nobody told.
const UNKNOWN_CONTEXT: u64 = 32_768;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) source: Source,
    /// The provider's name for the model; an engine says itself what it wants to hear.
    pub(crate) model: Option<String>,
    pub(crate) context_tokens: u64,
    pub(crate) price: Option<Price>,
}

#[derive(Debug)]
pub(crate) struct Names {
    names: BTreeMap<String, Vec<String>>,
    providers: Vec<Listed>,
    /// Found only where nothing of the settings and no model of this machine is called so.
    others: BTreeMap<String, Route>,
}

#[derive(Debug)]
struct Listed {
    number: usize,
    name: String,
    models: BTreeMap<String, (Option<u64>, Option<Price>)>,
}

impl Names {
    /// `others`: each with the number of its provider, whose first model it stands for.
    pub(crate) fn new<'a>(settings: &Settings, others: impl Iterator<Item = (&'a str, usize, &'a Provider)>) -> Self {
        let listed = |(number, provider): (usize, &Provider)| Listed {
            number,
            name: provider.name.clone(),
            models: provider.models.iter().map(|one| (one.name.clone(), (one.context_tokens, one.price))).collect(),
        };
        let route = |(name, number, provider): (&str, usize, &Provider)| {
            let model = provider.models.first()?;
            Some((name.to_owned(), route(number, &model.name, model.context_tokens, model.price)))
        };
        Self {
            names: settings.names.clone(),
            providers: settings.providers.iter().enumerate().map(listed).collect(),
            others: others.filter_map(route).collect(),
        }
    }

    /// In order of preference; empty: nobody is called so.
    pub(crate) fn find(&self, name: &str, supply: &Supply) -> Vec<Route> {
        match self.names.get(name) {
            Some(members) => members.iter().filter_map(|member| self.find_plain(member, supply)).collect(),
            None => self.find_plain(name, supply).or_else(|| self.others.get(name).cloned()).into_iter().collect(),
        }
    }

    /// All that can be asked for now, by name.
    pub(crate) fn list(&self, supply: &Supply) -> Vec<ModelEntry> {
        let mut entries = BTreeMap::new();
        for model in &supply.models {
            entries
                .insert(model.id.as_str().to_owned(), entry(model.id.as_str(), "fettle", Some(model.context_tokens)));
        }
        for provider in &self.providers {
            for (model, (context, _)) in &provider.models {
                let name = format!("{}/{model}", provider.name);
                entries.insert(name.clone(), entry(&name, &provider.name, *context));
            }
        }
        for name in self.names.keys().chain(self.others.keys()) {
            let context = self.find(name, supply).first().map(|route| route.context_tokens);
            if context.is_some() {
                entries.insert(name.clone(), entry(name, "fettle", context));
            }
        }
        entries.into_values().collect()
    }

    pub(crate) fn find_entry(&self, name: &str, supply: &Supply) -> Option<ModelEntry> {
        self.list(supply).into_iter().find(|one| one.id == name)
    }

    fn find_plain(&self, name: &str, supply: &Supply) -> Option<Route> {
        if let Some(model) = supply.models.iter().find(|model| model.id.as_str() == name) {
            return Some(Route {
                source: Source::Local(ModelId::new(name)),
                model: None,
                context_tokens: model.context_tokens,
                price: None,
            });
        }
        let (provider, model) = name.split_once('/')?;
        let listed = self.providers.iter().find(|one| one.name == provider)?;
        let (context, price) = listed.models.get(model).copied()?;
        Some(route(listed.number, model, context, price))
    }
}

fn route(number: usize, model: &str, context: Option<u64>, price: Option<Price>) -> Route {
    Route {
        source: Source::Provider(number),
        model: Some(model.to_owned()),
        context_tokens: context.unwrap_or(UNKNOWN_CONTEXT),
        price,
    }
}

fn entry(id: &str, owned_by: &str, context_tokens: Option<u64>) -> ModelEntry {
    ModelEntry {
        id: id.to_owned(),
        display_name: id.to_owned(),
        owned_by: owned_by.to_owned(),
        created: 0,
        context_tokens,
        max_output_tokens: None,
        vision: false,
        tools: true,
        thinking: false,
        size_bytes: None,
        fettle: None,
    }
}

#[cfg(test)]
mod tests {
    use fettle_app::ports::serving::ServedModel;

    use super::*;
    use crate::settings::{ProviderKind, ProviderModel};

    fn names() -> Names {
        let mut settings = Settings::new("usage".into());
        let mut provider = Provider::new("cloud", ProviderKind::OpenAi);
        provider.models = vec![ProviderModel { name: "big".to_owned(), context_tokens: Some(200_000), price: None }];
        settings.providers = vec![provider];
        settings.names = BTreeMap::from([
            ("coder".to_owned(), vec!["qwen".to_owned(), "cloud/big".to_owned()]),
            ("gone".to_owned(), vec!["absent".to_owned()]),
        ]);
        crate::providers::names(&settings, &[])
    }

    fn supply(models: &[&str]) -> Supply {
        let served = |id: &&str| ServedModel {
            id: ModelId::new(*id),
            context_tokens: 8_192,
            engines: Vec::new(),
            unserved: None,
        };
        Supply { models: models.iter().map(served).collect() }
    }

    fn sources(name: &str) -> Vec<Source> {
        let supply = supply(&["qwen", "cloud/local"]);
        names().find(name, &supply).into_iter().map(|route| route.source).collect()
    }

    #[test]
    fn a_name_is_a_profile_a_model_of_this_machine_or_one_of_a_provider() {
        let local = |id| Source::Local(ModelId::new(id));
        assert_eq!(sources("coder"), [local("qwen"), Source::Provider(0)]);
        assert_eq!(sources("qwen"), [local("qwen")]);
        assert_eq!(sources("cloud/big"), [Source::Provider(0)]);
        assert_eq!(sources("cloud/local"), [local("cloud/local")], "what is here comes first");
        for unknown in ["gone", "absent", "cloud/", "cloud", "cloud/anything", "elsewhere/x", ""] {
            assert_eq!(sources(unknown), [], "{unknown}");
        }
    }

    #[test]
    fn the_list_has_what_can_be_asked_for_and_nothing_else() {
        let listed: Vec<_> = names().list(&supply(&["qwen"])).into_iter().map(|one| one.id).collect();
        assert_eq!(listed, ["cloud/big", "coder", "qwen"]);
    }
}
