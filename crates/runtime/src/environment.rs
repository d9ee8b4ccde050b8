//! The environment as a value, read once by `main`.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;

/// Variables of the process. Those that are not UTF-8 are left out: no key of ours can need them.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    pub fn of_process() -> Self {
        Self(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect())
    }

    pub fn from_pairs<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    pub fn home(&self) -> Option<Utf8PathBuf> {
        self.find("HOME").map(Utf8PathBuf::from)
    }

    /// `$XDG_STATE_HOME/fettle`, else `$HOME/.local/state/fettle`.
    pub fn default_data_dir(&self) -> Option<Utf8PathBuf> {
        match self.find("XDG_STATE_HOME").map(Utf8PathBuf::from).filter(|path| path.is_absolute()) {
            Some(state) => Some(state.join("fettle")),
            None => self.home().map(|home| home.join(".local/state/fettle")),
        }
    }
}
