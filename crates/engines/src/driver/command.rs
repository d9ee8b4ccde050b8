//! Any server that speaks OpenAI's protocol, by a template of its command line.

use fettle_app::ports::serving::{Endpoint, LaunchOrder};
use fettle_placement::recipe::EngineKind;
use secrecy::ExposeSecret;

use super::{Api, Launch, Place, Refused, loopback, probe_of, socket, visible};
use crate::settings::Command;

/// Where it finds its key; it may ignore it.
const KEY: &str = "FETTLE_ENGINE_KEY";

pub(super) fn plan(order: &LaunchOrder, settings: &Command, place: &Place) -> Result<Launch, Refused> {
    let recipe = &order.recipe;
    let on_socket = settings.argv.iter().any(|part| part.contains("{socket}"));
    let endpoint = if on_socket { Endpoint::Unix(socket(place)?) } else { loopback(place) };
    let socket = match &endpoint {
        Endpoint::Unix(path) => path.to_string(),
        Endpoint::Tcp(_) => String::new(),
    };
    let values = [
        ("socket", socket),
        ("port", place.port.to_string()),
        ("model", order.weights.to_string()),
        ("devices", visible(order)),
        ("claim_bytes", order.claim.get().to_string()),
        ("ctx", recipe.ctx.to_string()),
        ("parallel", recipe.parallel.max(1).to_string()),
    ];
    let argv = settings.argv.iter().map(|part| fill(part, &values)).collect::<Result<Vec<_>, _>>()?;
    if argv.is_empty() {
        return Err(Refused::not_started("the command is empty"));
    }
    Ok(Launch {
        argv: argv.into_iter().chain(recipe.flags.iter().cloned()).collect(),
        env: [(KEY.to_owned(), place.key.expose_secret().to_owned())].into(),
        files: Vec::new(),
        endpoint,
        key: Some(place.key.clone()),
        model: recipe.model.to_string(),
        api: Api {
            engine: EngineKind::Command,
            health: settings.health.clone(),
            guarded: "/v1/models".to_owned(),
            probe: probe_of(settings.answers),
        },
    })
}

/// `part` with its names in braces replaced, once: what a value contains is not looked at again.
fn fill(part: &str, values: &[(&str, String)]) -> Result<String, Refused> {
    let mut filled = String::new();
    let mut rest = part;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let Some((name, behind)) = after.split_once('}') else {
            return Err(Refused::flag(format!("`{part}` of the command has a brace that is not closed")));
        };
        let Some((_, value)) = values.iter().find(|(known, _)| *known == name) else {
            return Err(Refused::flag(format!("`{{{name}}}` of the command is no name that is filled in")));
        };
        filled.push_str(value);
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}
