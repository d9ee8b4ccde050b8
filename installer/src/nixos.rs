//! An installation on NixOS: the answers become a module, and NixOS does the rest. Pure, like the other planner.

use camino::{Utf8Path, Utf8PathBuf};
use fettle_runtime::config::Config;
use fettle_runtime::environment::Environment;
use toml::Value;

use crate::action::{Action, Gate, Keeping, Way};
use crate::answers::Answers;
use crate::host::Attrs;
use crate::journal::Product;
use crate::layout::{self, CONFIG_DIR, DASHBOARD, INFERENCE};
use crate::plan::{self, Plan, WORKER_KEY};

/// Its owner imports it, with a placeholder at first.
pub const MODULE: &str = "/etc/nixos/fettle.nix";
/// NixOS makes `/etc/fettle/fettle.toml` itself; what root alone may read lies apart.
const SECRETS: &str = "/etc/fettle-secrets";
const HEAD: &str =
    "# Written by `fettle-installer apply` from /etc/fettle/installer.toml, and replaced by the next one.\n";

/// `version` is the one that the host's flake brings, `program` its installer.
pub fn plan(answers: &Answers, version: &str, program: Utf8PathBuf) -> Plan {
    let product = Product { version: version.to_owned(), release: String::new() };
    let settings = plan::settings(answers);
    let text = toml::to_string(&settings).expect("a table that was read can be written");
    let config = match Config::parse("the settings", &text, &Environment::default()) {
        Ok(config) => config,
        Err(error) => return Plan { product, actions: Vec::new(), refusals: vec![error.to_string()] },
    };
    let refusals = refusals(answers, &config);
    let seeded =
        |path: &str, mode| Action::Dir { path: path.into(), attrs: Attrs::root(mode), keeping: Keeping::Seeded };
    let mut actions = vec![seeded(CONFIG_DIR, 0o755), plan::answers_file(answers, 0o644), seeded(SECRETS, 0o700)];
    actions.extend(plan::secrets(answers, Utf8Path::new(SECRETS)));
    actions.push(Action::NixosRebuild { way: Way::Back });
    actions.push(Action::NixosModule { path: MODULE.into(), text: module(answers) });
    actions.push(Action::NixosRebuild { way: Way::Forth });
    let workers = 1..=answers.workers;
    let inference = answers.inference.then(|| INFERENCE.to_owned());
    let units =
        std::iter::once(DASHBOARD.to_owned()).chain(inference).chain(workers.clone().map(layout::worker)).collect();
    // A new value of a secret is no change to NixOS.
    actions.push(Action::Restart { units, way: Way::Forth });
    let dashboard = format!("http://{}/readyz", layout::local(&config.server.internal_listen));
    let inference = answers.inference.then(|| format!("{}/readyz", layout::INFERENCE_ADDRESS));
    let urls = std::iter::once(dashboard)
        .chain(inference)
        .chain(workers.map(|worker| format!("{}/readyz", layout::worker_address(worker))))
        .collect();
    actions
        .push(Action::HealthGate { gate: Gate { urls, version: version.to_owned(), limit_s: answers.gate_timeout } });
    if answers.smoke {
        actions.push(Action::Smoke { program });
    }
    Plan { product, actions, refusals }
}

fn refusals(answers: &Answers, config: &Config) -> Vec<String> {
    let mut refusals = Vec::new();
    for (key, file) in config.secret_files() {
        let name = file.file_name().unwrap_or_default();
        if name != WORKER_KEY && !answers.secrets.contains_key(name) {
            refusals.push(format!("{key} names {file}: say in the answers' [secrets] where `{name}` is now"));
        }
    }
    if !answers.retire.is_empty() {
        refusals.push(format!(
            "retire: on NixOS units are taken away in its configuration; remove {} there",
            answers.retire.join(", ")
        ));
    }
    refusals
}

/// The module, as text.
pub fn module(answers: &Answers) -> String {
    let secrets: toml::Table = answers
        .secrets
        .keys()
        .map(String::as_str)
        .chain([WORKER_KEY])
        .map(|name| (name.to_owned(), Value::from(format!("{SECRETS}/{name}"))))
        .collect();
    let workers = toml::Table::from_iter([("instances".to_owned(), i64::from(answers.workers).into())]);
    let keep = i64::try_from(answers.backup.keep).unwrap_or(i64::MAX);
    let backup = toml::Table::from_iter([
        ("enable".to_owned(), answers.backup.nightly.into()),
        ("keep".to_owned(), keep.into()),
    ]);
    let fettle = toml::Table::from_iter([
        ("enable".to_owned(), true.into()),
        ("settings".to_owned(), plan::settings(answers).into()),
        ("secrets".to_owned(), secrets.into()),
        ("worker".to_owned(), workers.into()),
        ("inference".to_owned(), toml::Table::from_iter([("enable".to_owned(), answers.inference.into())]).into()),
        ("backup".to_owned(), backup.into()),
    ]);
    let mut text = format!("{HEAD}{{\n  services.fettle = ");
    expression(&fettle.into(), 1, &mut text);
    text.push_str(";\n}\n");
    text
}

/// A value in the Nix language. `depth` is that of the line on which it begins.
fn expression(value: &Value, depth: usize, text: &mut String) {
    let line = |depth: usize| format!("\n{}", "  ".repeat(depth));
    match value {
        Value::String(value) => text.push_str(&string(value)),
        // The smallest integer has no literal in Nix, and no setting asks for it.
        Value::Integer(value) if *value < 0 => text.push_str(&format!("({value})")),
        Value::Integer(value) => text.push_str(&value.to_string()),
        Value::Float(value) if *value < 0.0 => text.push_str(&format!("({value:?})")),
        Value::Float(value) => text.push_str(&format!("{value:?}")),
        Value::Boolean(value) => text.push_str(&value.to_string()),
        Value::Datetime(value) => text.push_str(&string(&value.to_string())),
        Value::Array(values) if values.is_empty() => text.push_str("[ ]"),
        Value::Array(values) => {
            text.push('[');
            for value in values {
                text.push_str(&line(depth + 1));
                expression(value, depth + 1, text);
            }
            text.push_str(&line(depth));
            text.push(']');
        }
        Value::Table(table) if table.is_empty() => text.push_str("{ }"),
        Value::Table(table) => {
            text.push('{');
            for (key, value) in table {
                text.push_str(&line(depth + 1));
                text.push_str(&format!("{} = ", string(key)));
                expression(value, depth + 1, text);
                text.push(';');
            }
            text.push_str(&line(depth));
            text.push('}');
        }
    }
}

/// A string in which nothing is substituted.
fn string(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' | '$' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_what_was_asked_for_in_the_language_of_nix() {
        let answers = Answers::parse(
            "workers = 2\n[settings.forge]\nlabel = 'a \"b\" ${c} \\d'\nallowed_bots = [1, 2]\nwebhook_secret_file = 'secrets/hook'\n\
             [secrets]\nhook = '/srv/hook'\n[backup]\nnightly = false\n",
        )
        .unwrap();
        let expected = concat!(
            "{\n",
            "  services.fettle = {\n",
            "    \"backup\" = {\n      \"enable\" = false;\n      \"keep\" = 7;\n    };\n",
            "    \"enable\" = true;\n",
            "    \"inference\" = {\n      \"enable\" = true;\n    };\n",
            "    \"secrets\" = {\n      \"hook\" = \"/etc/fettle-secrets/hook\";\n      \"worker.key\" = \"/etc/fettle-secrets/worker.key\";\n    };\n",
            "    \"settings\" = {\n",
            "      \"auth\" = {\n        \"worker_key_file\" = \"secrets/worker.key\";\n      };\n",
            "      \"forge\" = {\n        \"allowed_bots\" = [\n          1\n          2\n        ];\n",
            "        \"label\" = \"a \\\"b\\\" \\${c} \\\\d\";\n        \"webhook_secret_file\" = \"secrets/hook\";\n      };\n    };\n",
            "    \"worker\" = {\n      \"instances\" = 2;\n    };\n  };\n}\n",
        );
        assert_eq!(module(&answers).strip_prefix(HEAD).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused_with_what_to_do() {
        for (text, why) in [
            ("[settings.forge]\nwebhook_secret_file = 'secrets/hook'", "[secrets]"),
            ("[settings.forge]\nlabl = 'x'", "labl"),
            ("retire = ['aiagent.service']", "aiagent.service"),
        ] {
            let plan = plan(&Answers::parse(text).unwrap(), "1.0.0", "/x".into());
            assert!(plan.refusals.iter().any(|refusal| refusal.contains(why)), "{text}: {:?}", plan.refusals);
        }
    }
}
