//! SIGHUP: the configuration is read and checked anew. What can be exchanged while the process runs is exchanged; whatever
//! else differs is named, and waits for a restart. A configuration that is refused changes nothing.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::environment::Environment;
use crate::shutdown::Hangups;
use crate::systemd::Manager;
use crate::telemetry::{LogFilter, chain};

/// Keys, or sections with all their keys, as `forge.label` and `forge.paths`.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// Exchanged at once.
    pub live: &'static [&'static str],
    /// Those that this process reads at all: `[""]` is all of them.
    pub read: &'static [&'static str],
}

impl Keys {
    /// Whether a reload exchanges `key`.
    pub fn is_live(self, key: &str) -> bool {
        covers(self.live, key)
    }
}

/// Both kinds of process exchange it.
pub const LOG: &str = "telemetry.log";

/// What a process is reloaded with.
pub struct Reload {
    pub path: Option<Utf8PathBuf>,
    pub environment: Environment,
    /// As the process was started.
    pub started: Config,
    pub keys: Keys,
    pub filter: LogFilter,
    pub manager: Manager,
    /// For the service manager, when the reload is over.
    pub status: String,
}

/// What came of reading the configuration again.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    applied: Vec<String>,
    needs_restart: Vec<String>,
}

impl Reload {
    /// Reloads at each hangup until `stop`. `apply` exchanges all of its part or, with an error, nothing of it; it gives the
    /// keys whose change only it can see, such as a secret that has become another in the same file.
    pub async fn work(
        self,
        mut hangups: Hangups,
        mut apply: impl FnMut(&Config) -> Result<Vec<String>, String>,
        stop: &CancellationToken,
    ) {
        let started = self.started.values();
        let mut current = started.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = hangups.next() => {}
            }
            self.manager.reloading();
            match self.reload(&started, &current, &mut apply) {
                Ok((difference, values)) => {
                    current = values;
                    difference.tell();
                }
                Err(why) => error!("SIGHUP: the configuration is refused, and the old one stays: {why}"),
            }
            self.manager.serving(&self.status);
        }
    }

    fn reload(
        &self,
        started: &Values,
        current: &Values,
        apply: &mut impl FnMut(&Config) -> Result<Vec<String>, String>,
    ) -> Result<(Difference, Values), String> {
        let config = Config::load(self.path.as_deref(), &self.environment).map_err(|error| chain(&error))?;
        let unseen = apply(&config)?;
        // Checked with the configuration, so nothing above is half done when this fails.
        self.filter.set(&config.telemetry.log)?;
        let values = config.values();
        Ok((difference(started, current, &values, self.keys, unseen), values))
    }
}

/// Every key that has a value, with its value.
pub type Values = BTreeMap<String, toml::Value>;

/// A live key differs from what is in force now, any other from what the process was started with.
fn difference(started: &Values, current: &Values, new: &Values, keys: Keys, unseen: Vec<String>) -> Difference {
    let (live, rest): (Vec<String>, Vec<String>) =
        changed(current, new).chain(changed(started, new)).partition(|key| covers(keys.live, key));
    let mut found = Difference {
        applied: live.into_iter().filter(|key| current.get(key) != new.get(key)).collect(),
        needs_restart: rest.into_iter().filter(|key| started.get(key) != new.get(key)).collect(),
    };
    for found in [&mut found.applied, &mut found.needs_restart] {
        found.retain(|key| covers(keys.read, key));
    }
    found.needs_restart.extend(unseen);
    for found in [&mut found.applied, &mut found.needs_restart] {
        found.sort_unstable();
        found.dedup();
    }
    found
}

fn changed(old: &Values, new: &Values) -> impl Iterator<Item = String> {
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let changed: Vec<String> = keys.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect();
    changed.into_iter()
}

fn covers(keys: &[&str], key: &str) -> bool {
    keys.iter().any(|known| match key.strip_prefix(known) {
        Some(rest) => known.is_empty() || rest.is_empty() || rest.starts_with('.'),
        None => false,
    })
}

impl Difference {
    fn tell(&self) {
        match self.applied.as_slice() {
            [] => info!("SIGHUP: the configuration was read again; no key has changed"),
            applied => info!("SIGHUP: the configuration was read again; in force now: {}", applied.join(", ")),
        }
        if !self.needs_restart.is_empty() {
            warn!("needs a restart: {}", self.needs_restart.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = Keys { live: &["forge.label", "forge.paths"], read: &[""] };

    fn values(text: &str) -> Values {
        Config::parse("fettle.toml", text, &Environment::default()).unwrap().values()
    }

    fn told(started: &str, current: &str, new: &str, keys: Keys) -> (Vec<String>, Vec<String>) {
        let found = difference(&values(started), &values(current), &values(new), keys, Vec::new());
        (found.applied, found.needs_restart)
    }

    #[test]
    fn live_keys_are_told_once_and_others_until_the_restart() {
        let new = "[forge]\nlabel = 'x'\nlabel_mode = 'refine'\n[forge.paths]\nforbidden = ['a']\n[server]\nlisten = '127.0.0.1:1'";
        let (applied, restart) = told("", "", new, KEYS);
        assert_eq!(applied, ["forge.label", "forge.paths.forbidden"]);
        assert_eq!(restart, ["forge.label_mode", "server.listen"]);
        let (applied, restart) = told("", new, new, KEYS);
        assert_eq!((applied.len(), restart), (0, vec!["forge.label_mode".to_owned(), "server.listen".to_owned()]));
        // Back to what the process was started with.
        let (applied, restart) = told("", new, "", KEYS);
        assert_eq!((applied, restart.len()), (vec!["forge.label".to_owned(), "forge.paths.forbidden".to_owned()], 0));
    }

    #[test]
    fn a_process_names_only_keys_that_it_reads() {
        let keys = Keys { live: &[], read: &["agent"] };
        let new = "[agent]\nworkers = 3\n[server]\nlisten = '127.0.0.1:1'";
        assert_eq!(told("", "", new, keys), (Vec::new(), vec!["agent.workers".to_owned()]));
    }

    #[test]
    fn a_key_that_appears_or_goes_differs() {
        let with = "[forge]\napp_id = 1\napp_key_file = '/a'";
        let keys = ["forge.app_id".to_owned(), "forge.app_key_file".to_owned()];
        assert_eq!(told("", "", with, KEYS).1, keys);
        assert_eq!(told(with, with, "", KEYS).1, keys);
    }
}
