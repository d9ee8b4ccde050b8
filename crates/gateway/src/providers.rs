//! Which providers there are: those of the settings, and others that come and go while the gateway serves.

use std::sync::{Arc, Mutex, PoisonError};

use secrecy::ExposeSecret as _;

use crate::front::Front;
use crate::names::Names;
use crate::settings::{Provider, Settings, SettingsError};

/// A provider that is asked for one model by a name of its own.
#[derive(Debug, Clone)]
pub struct Served {
    /// As requests give it.
    pub name: String,
    /// What it stands for: its first model.
    pub provider: Provider,
}

pub struct Providers {
    front: Arc<Front>,
    settings: Settings,
    others: Mutex<Others>,
}

struct Others {
    served: Vec<(usize, Served)>,
    /// The number of the next one.
    next: usize,
}

impl Providers {
    pub(crate) fn new(front: &Arc<Front>, settings: Settings) -> Self {
        let others = Others { served: Vec::new(), next: settings.providers.len() };
        Self { front: Arc::clone(front), settings, others: Mutex::new(others) }
    }

    /// Whom there is beside those of the settings from now on. One that stays as it was keeps its line and what is known of it.
    ///
    /// Gives the names of those that cannot be, each with the reason: they keep nobody else out.
    pub fn set(&self, served: Vec<Served>) -> Vec<(String, SettingsError)> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = others.next;
        let mut numbered: Vec<(usize, Served)> = served
            .into_iter()
            .map(|one| match others.served.iter().find(|(_, known)| is_same(&known.provider, &one.provider)) {
                Some((number, _)) => (*number, one),
                None => {
                    next += 1;
                    (next - 1, one)
                }
            })
            .collect();
        let refused = self.front.floor.provide(every(&self.settings, &numbered));
        let refused: Vec<(String, SettingsError)> = refused
            .into_iter()
            .filter_map(|(number, error)| {
                let place = numbered.iter().position(|(known, _)| *known == number)?;
                Some((numbered.remove(place).1.name, error))
            })
            .collect();
        self.front.names.set(names(&self.settings, &numbered));
        *others = Others { served: numbered, next };
        refused
    }
}

fn every<'a>(settings: &'a Settings, others: &'a [(usize, Served)]) -> impl Iterator<Item = (usize, &'a Provider)> {
    let others = others.iter().map(|(number, one)| (*number, &one.provider));
    settings.providers.iter().enumerate().chain(others)
}

pub(crate) fn names(settings: &Settings, others: &[(usize, Served)]) -> Names {
    Names::new(settings, others.iter().map(|(number, one)| (one.name.as_str(), *number, &one.provider)))
}

/// The key is compared as well: another one may be allowed what this one was not.
fn is_same(one: &Provider, other: &Provider) -> bool {
    let plain = |it: &Provider| {
        let key = it.api_key.as_ref().map(|key| key.expose_secret().to_owned());
        (it.name.clone(), it.kind, it.base_url.clone(), key, it.parallel, it.models.clone())
    };
    plain(one) == plain(other)
}

pub(crate) fn check(providers: &[Provider]) -> Result<(), SettingsError> {
    for (nth, provider) in providers.iter().enumerate() {
        let name = || provider.name.clone();
        if provider.name.is_empty() || provider.name.contains('/') {
            return Err(SettingsError::ProviderName { name: name() });
        }
        if providers[..nth].iter().any(|other| other.name == provider.name) {
            return Err(SettingsError::ProviderTwice { name: name() });
        }
    }
    Ok(())
}
