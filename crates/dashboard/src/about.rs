//! What the API may show of the configuration.

use camino::Utf8Path;
use fettle_api::{About, AboutForge, ConfiguredModel, Setting};
use fettle_runtime::config::{Config, ModelConfig};

use crate::exchange::KEYS;

/// Models are shown apart, and engines not at all: their arguments are whatever the operator wrote.
const APART: [&str; 2] = ["gateway.models", "gpu.engines"];

pub(crate) fn about(config: &Config, file: Option<&Utf8Path>) -> About {
    let values = config.values();
    let apart = |key: &str| {
        let below =
            |apart: &&str| key.strip_prefix(*apart).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        APART.iter().any(below)
    };
    let shown = values.iter().filter(|(key, _)| !apart(key));
    About {
        config_file: file.map(ToString::to_string),
        settings: shown
            .map(|(key, value)| Setting { key: key.clone(), value: told(&value.to_string()), live: KEYS.is_live(key) })
            .collect(),
        repositories: config.forge.poll_repositories.iter().map(ToString::to_string).collect(),
        models: config.gateway.models.iter().map(model).collect(),
        forge: AboutForge {
            address: without_user(&config.forge.api_url),
            label: config.forge.label.clone(),
            webhooks: config.forge.webhook_secret_file.is_some(),
            looks: config.forge.looks_every().is_some(),
        },
    }
}

fn model(model: &ModelConfig) -> ConfiguredModel {
    ConfiguredModel {
        name: model.name.clone(),
        kind: model.kind.name().to_owned(),
        here: model.path.is_some() || !model.recipes.is_empty(),
        server: model.base_url.as_deref().map(without_user),
        known_as: model.model.clone(),
        context_tokens: model.context,
        parallel: model.parallel,
        with_key: model.api_key_file.is_some(),
        pinned: model.pinned,
    }
}

/// A value as it is shown; an address without what may be secret in it.
fn told(value: &str) -> String {
    let bare = value.trim_matches('"');
    if bare.contains("://") && !bare.contains([' ', ',', '[']) { without_user(bare) } else { value.to_owned() }
}

/// An address as others may see it: a password may stand before its host, and a key behind its path.
fn without_user(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}/{path}").trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_of_an_address_is_shown() {
        for (given, shown) in [
            ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
            ("https://ada:p@ss@models.example/v1?key=abc", "https://models.example/v1"),
            ("https://models.example", "https://models.example"),
            ("ada:pass@models.example", ""),
        ] {
            assert_eq!(without_user(given), shown, "{given}");
        }
    }

    #[test]
    fn models_stand_apart_and_settings_say_whether_a_reload_is_enough() {
        let mut config = Config::default();
        config.gateway.models.push(ModelConfig::elsewhere("coder", "http://u:p@127.0.0.1:8000/v1", 65_536));
        let about = about(&config, Some("/etc/fettle.toml".into()));
        let live = |key: &str| about.settings.iter().find(|one| one.key == key).map(|one| one.live);
        assert_eq!((live("forge.label"), live("server.listen"), live(APART[0])), (Some(true), Some(false), None));
        assert_eq!(about.models[0].server.as_deref(), Some("http://127.0.0.1:8000/v1"));
        assert!(about.settings.iter().all(|one| !one.value.contains("u:p")));
    }
}
