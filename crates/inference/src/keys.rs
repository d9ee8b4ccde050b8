//! `gateway.keys_file`: who may ask for models. One key a line: whose it is, a space, the key. Empty lines and those that begin with
//! `#` say nothing.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use camino::Utf8Path;
use fettle_gateway::StaticKey;
use fettle_placement::id::OwnerId;
use fettle_placement::view::Class;
use fettle_runtime::secrets;
use secrecy::{ExposeSecret as _, SecretString};

/// A shorter key could be guessed by whoever may ask as often as he likes.
const MIN_KEY_CHARS: usize = 16;

/// Errors name the line, and never the key.
pub fn read(file: &Utf8Path) -> Result<Vec<StaticKey>> {
    let text = secrets::read(file)?;
    let (mut keys, mut known) = (Vec::new(), BTreeMap::new());
    // Editors on other systems put a mark before the first line.
    for (nth, line) in (1..).zip(text.expose_secret().trim_start_matches('\u{feff}').lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (owner, key) = line
            .split_once(char::is_whitespace)
            .with_context(|| format!("{file}, line {nth}: it needs a name, a space and a key"))?;
        let key = key.trim();
        ensure!(
            key.chars().count() >= MIN_KEY_CHARS,
            "{file}, line {nth}: the key of `{owner}` is shorter than {MIN_KEY_CHARS} characters and could be guessed; `openssl rand -hex 24` makes one"
        );
        if let Some(before) = known.insert(key.to_owned(), nth) {
            bail!("{file}, line {nth}: the key of `{owner}` is that of line {before} as well");
        }
        keys.push(StaticKey {
            key: SecretString::from(key.to_owned()),
            owner: OwnerId::new(owner),
            class: Class::Interactive,
            models: None,
        });
    }
    ensure!(!keys.is_empty(), "{file} has no key: nobody could ask");
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<Vec<StaticKey>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        fs_err::write(&file, text).unwrap();
        read(Utf8Path::from_path(&file).unwrap())
    }

    #[test]
    fn keys_have_names() {
        let keys = keys("\u{feff}alice sk-one-of-alice-1\r\n# people\n\nci   sk-two-of-the-ci-2\n").unwrap();
        assert_eq!(keys.iter().map(|key| key.owner.to_string()).collect::<Vec<_>>(), ["alice", "ci"]);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_no_key_is_repeated() {
        for (text, told) in [
            ("alice sk-one-of-alice-1\nsk-secret-without-name\n", "line 2: it needs a name"),
            ("# me\nalice sk-secret\n", "line 2: the key of `alice` is shorter"),
            ("alice sk-secret-of-both-1\nbob sk-secret-of-both-1\n", "line 2: the key of `bob` is that of line 1"),
            ("# nobody\n", "has no key"),
        ] {
            let error = format!("{:#}", keys(text).map(|_| ()).unwrap_err());
            assert!(error.contains(told) && !error.contains("sk-secret"), "{error}");
        }
    }
}
