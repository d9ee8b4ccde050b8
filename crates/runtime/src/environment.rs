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

    /// The first folder that the service manager has made under this name: systemd sets it to a list with colons.
    fn first_of(&self, name: &str) -> Option<Utf8PathBuf> {
        self.find(name)?.split(':').next().map(Utf8PathBuf::from).filter(|path| path.is_absolute())
    }

    /// Where log files go: the first entry of `$LOGS_DIRECTORY`.
    pub fn logs_dir(&self) -> Option<Utf8PathBuf> {
        self.first_of("LOGS_DIRECTORY")
    }

    /// What does not outlive the boot of the machine: the first entry of `$RUNTIME_DIRECTORY`.
    pub fn runtime_dir(&self) -> Option<Utf8PathBuf> {
        self.first_of("RUNTIME_DIRECTORY")
    }

    /// The first entry of `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/fettle`, else `$HOME/.local/state/fettle`.
    pub fn default_data_dir(&self) -> Option<Utf8PathBuf> {
        if let Some(state) = self.first_of("STATE_DIRECTORY") {
            return Some(state);
        }
        match self.find("XDG_STATE_HOME").map(Utf8PathBuf::from).filter(|path| path.is_absolute()) {
            Some(state) => Some(state.join("fettle")),
            None => self.home().map(|home| home.join(".local/state/fettle")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_keeps_its_state_where_its_manager_says_and_people_in_their_home() {
        let home = ("HOME", "/users/kim");
        for (pairs, folder) in [
            (vec![home, ("STATE_DIRECTORY", "/var/lib/fettle/dashboard:/var/lib/other")], "/var/lib/fettle/dashboard"),
            (vec![home, ("STATE_DIRECTORY", "relative"), ("XDG_STATE_HOME", "/state")], "/state/fettle"),
            (vec![home], "/users/kim/.local/state/fettle"),
        ] {
            let environment = Environment(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
            assert_eq!(environment.default_data_dir(), Some(folder.into()), "{pairs:?}");
        }
    }
}
