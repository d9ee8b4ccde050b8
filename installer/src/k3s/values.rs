//! What the answers mean to Fettle's chart.

use fettle_domain::secret::{KnownSecrets, scan};
use serde_json::{Value, json};

use super::SECRET;
use crate::answers::Answers;

/// Keys of the configuration that name a secret end so.
const FILE: &str = "_file";
/// How images out of a bundle are called: no registry answers to it.
const LOCAL: &str = "localhost";
/// A value of this name in the chart's values would be a secret in the open.
const TELLING: [&str; 7] = ["password", "secret", "token", "apikey", "api_key", "api-key", "passphrase"];
/// How secrets begin that are known by nothing else.
const BEGINNINGS: [&str; 3] = ["AGE-SECRET-KEY-1", "hf_", "K10"];
/// Shorter texts that begin so are words.
const LEAST: usize = 24;

/// Each key that names a secret, and the secret's file name.
pub(super) fn secret_names(settings: &toml::Table) -> Vec<(String, String)> {
    fn look(path: &str, value: &toml::Value, found: &mut Vec<(String, String)>) {
        let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(table) => table.iter().for_each(|(key, value)| look(&below(key), value, found)),
            toml::Value::Array(list) => list.iter().for_each(|value| look(path, value, found)),
            // Certificates are no secret, and come from a ConfigMap.
            toml::Value::String(file) if path.ends_with(FILE) && !path.ends_with(".ca_file") => {
                found.push((path.to_owned(), file_name(file).to_owned()));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    look("", &toml::Value::Table(settings.clone()), &mut found);
    found
}

/// In the chart a secret is called by its key in the Secret.
fn file_name(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

fn by_file_name(key: &str, value: &mut Value) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| by_file_name(key, value)),
        Value::Array(list) => list.iter_mut().for_each(|value| by_file_name(key, value)),
        Value::String(file) if key.ends_with(FILE) && key != "ca_file" => *file = file_name(file).to_owned(),
        _ => {}
    }
}

/// The path of a text in the values that is a secret by its name or its shape.
pub(super) fn looks_secret(values: &toml::Table) -> Option<String> {
    in_table(values, "", &|name, text| is_telling(name) || has_shape(text))
}

/// The same by its shape alone: in the settings a telling name is that of a file.
pub(super) fn has_secret_shape(settings: &toml::Table) -> Option<String> {
    in_table(settings, "", &|_, text| has_shape(text))
}

type IsSecret<'a> = &'a dyn Fn(&str, &str) -> bool;

fn in_table(table: &toml::Table, path: &str, is_secret: IsSecret<'_>) -> Option<String> {
    // One variable of an environment.
    let named = table.get("name").and_then(toml::Value::as_str);
    table.iter().find_map(|(key, value)| {
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        in_value(value, named.filter(|_| key == "value").unwrap_or(key), &at, is_secret)
    })
}

fn in_value(value: &toml::Value, name: &str, at: &str, is_secret: IsSecret<'_>) -> Option<String> {
    match value {
        toml::Value::Table(table) => in_table(table, at, is_secret),
        toml::Value::Array(list) => {
            let inside = list.iter().enumerate();
            inside.into_iter().find_map(|(index, value)| in_value(value, name, &format!("{at}[{index}]"), is_secret))
        }
        toml::Value::String(text) => (!text.is_empty() && is_secret(name, text)).then(|| at.to_owned()),
        _ => None,
    }
}

fn is_telling(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    TELLING.iter().any(|telling| name.ends_with(telling))
}

fn has_shape(text: &str) -> bool {
    // An argument such as `--api-key=…`.
    let assigned = text.split_once('=').is_some_and(|(name, value)| is_telling(name) && !value.is_empty());
    let begins = text.len() >= LEAST && BEGINNINGS.iter().any(|beginning| text.starts_with(beginning));
    assigned || begins || !scan(&KnownSecrets::default(), "", text).is_empty()
}

/// `values.yaml`, written as JSON, which is YAML too.
pub(super) fn render(answers: &Answers) -> String {
    let k3s = &answers.k3s;
    let mut config = serde_json::to_value(&answers.settings).expect("a table that was read can be written");
    by_file_name("", &mut config);
    if config["server"]["trusted_proxies"].is_null() {
        // The ingress is a pod: without this everybody would seem to come from it.
        config["server"]["trusted_proxies"] = json!([k3s.cluster_cidr]);
    }
    let workers = answers.workers;
    let worker = if k3s.keda {
        json!({ "scaling": "scaledJob", "scaledJob": { "max": workers } })
    } else {
        json!({ "scaling": "fixed", "replicas": workers })
    };
    let mut values = json!({
        "image": { "registry": if k3s.registry.is_empty() { LOCAL } else { &k3s.registry } },
        "config": config,
        "worker": worker,
        "redis": { "enabled": k3s.redis },
    });
    if super::of_pods(answers).next().is_some() {
        values["secrets"] = json!({ "existingSecret": SECRET });
    }
    if k3s.gpus > 0 {
        values["inference"] = json!({ "enabled": true, "gpus": k3s.gpus });
    }
    if !k3s.host.is_empty() {
        let tls = match k3s.tls.as_str() {
            "none" => json!({ "kind": "none" }),
            "self_signed" => json!({ "kind": "selfSigned" }),
            issuer => json!({ "kind": "issuer", "issuer": { "name": issuer } }),
        };
        values["exposure"] = json!({ "kind": "ingress", "host": k3s.host, "className": "traefik", "tls": tls });
    }
    let over = serde_json::to_value(&k3s.values).expect("a table that was read can be written");
    merge(&mut values, over);
    let mut text = serde_json::to_string_pretty(&values).expect("a value is plain data");
    text.push('\n');
    text
}

fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_the_charts_configuration_and_secrets_are_called_by_their_keys() {
        let answers = Answers::parse(
            "workers = 4\n[settings.forge]\napp_id = 7\napp_key_file = \"secrets/app.pem\"\n[secrets]\n\"app.pem\" = \"/srv/app.pem\"\n\
             [k3s]\nhost = \"fettle.example.org\"\n[k3s.values.dashboard]\npersistence = { size = \"50Gi\" }\n",
        )
        .unwrap();
        assert_eq!(secret_names(&answers.settings), [("forge.app_key_file".to_owned(), "app.pem".to_owned())]);
        let values: Value = serde_json::from_str(&render(&answers)).unwrap();
        assert_eq!(values["config"]["forge"], json!({ "app_id": 7, "app_key_file": "app.pem" }));
        assert_eq!(values["config"]["server"]["trusted_proxies"], json!(["10.42.0.0/16"]));
        assert_eq!(values["secrets"]["existingSecret"], "fettle");
        assert_eq!(values["worker"], json!({ "scaling": "scaledJob", "scaledJob": { "max": 4 } }));
        assert_eq!(values["exposure"]["tls"]["kind"], "selfSigned");
        assert_eq!(values["dashboard"]["persistence"]["size"], "50Gi");
    }

    #[test]
    fn a_secret_among_the_values_is_found_by_its_name_or_its_shape_wherever_it_is() {
        let github = format!("ghp_{}", "a1".repeat(20));
        for (text, found) in [
            ("[redis]\npassword = 'x'".to_owned(), Some("redis.password")),
            ("[a.b]\napiKey = 'x'".to_owned(), Some("a.b.apiKey")),
            ("[auth]\nexistingSecret = ''".to_owned(), None),
            ("[image]\nregistry = 'r'".to_owned(), None),
            (format!("[a]\nb = '{github}'"), Some("a.b")),
            (format!("[a]\nb = [1, ['x', '{github}']]"), Some("a.b[1][1]")),
            ("[[a.env]]\nname = 'HF_TOKEN'\nvalue = 'x'".to_owned(), Some("a.env[0].value")),
            ("[[a.env]]\nname = 'HOME'\nvalue = '/tmp'".to_owned(), None),
            ("[[a]]\nb = 'x'\n[[a]]\npassword = 'x'".to_owned(), Some("a[1].password")),
            ("args = ['--port', '--api-key=x']".to_owned(), Some("args[1]")),
            ("a = '-----BEGIN RSA PRIVATE KEY-----\\nMII'".replace("\\\\", "\\").replace('\'', "\""), Some("a")),
            ("a = 'postgres://me:word-word@db/x'".to_owned(), Some("a")),
            (format!("a = 'K10{}::node:word'", "0a".repeat(32)), Some("a")),
            (format!("digest = 'sha256:{}'", "0a".repeat(32)), None),
        ] {
            assert_eq!(looks_secret(&toml::from_str(&text).unwrap()).as_deref(), found, "{text}");
        }
        let settings = format!(
            "[forge]\nwrite_token_file = 'token'\n[[gateway.models]]\nbase_url = 'http://x'\nname = '{github}'"
        );
        assert_eq!(has_secret_shape(&toml::from_str(&settings).unwrap()).as_deref(), Some("gateway.models[0].name"));
    }

    /// Kubernetes lets no pod start whose Secret is not there.
    #[test]
    fn the_words_by_which_nodes_join_are_no_secret_of_pods() {
        let tokens = "k3s-token = '/srv/a'\nk3s-agent-token = '/srv/b'";
        for (more, named) in [("", false), ("\n'app.pem' = '/srv/app.pem'", true)] {
            let answers = Answers::parse(&format!("[secrets]\n{tokens}{more}")).unwrap();
            let values: Value = serde_json::from_str(&render(&answers)).unwrap();
            assert_eq!(values["secrets"]["existingSecret"] == SECRET, named, "{more}");
        }
    }
}
