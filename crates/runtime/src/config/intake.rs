//! How work comes in, in the section `[forge]`: by webhooks, or by looking. What follows from the settings is said here once, for
//! whoever starts it and whoever tells of it.

use std::time::Duration;

use fettle_app::{polling, redelivering};
use serde::{Deserialize, Serialize};

use super::Forge;
use crate::units::Span;

/// Shorter ones are a mistake in the unit, and a burden for any forge.
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);
/// Longer ones are a mistake too: what is older than three days is never looked for.
const LONGEST_PERIOD: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntakeMode {
    /// The forge tells; what it could not tell is looked for now and then.
    #[default]
    Webhook,
    /// The forge cannot reach this host: labels are looked for.
    Poll,
}

impl Forge {
    /// How often repositories are looked at. `None`: never, and [`Forge::why_not_looked`] says why.
    pub fn looks_every(&self) -> Option<Duration> {
        let period = match self.intake {
            IntakeMode::Poll => polling::EVERY,
            IntakeMode::Webhook => polling::EVERY_BELOW_WEBHOOKS,
        };
        self.why_not_looked().is_none().then(|| self.poll_every.map_or(period, |every| every.0))
    }

    /// What is missing for looking at repositories. A token may reach many that nobody meant: below webhooks, which were set up
    /// one by one, they have to be named.
    pub fn why_not_looked(&self) -> Option<&'static str> {
        let has_token = self.write_token_file.is_some() || self.read_token_file.is_some();
        match (self.intake, self.app_id.is_some()) {
            (_, true) => None,
            (_, false) if !has_token => Some(
                "without credentials nobody can be asked who may ask for work; set forge.app_id and forge.app_key_file, or two tokens",
            ),
            (IntakeMode::Webhook, false) if self.poll_repositories.is_empty() => Some(
                "with tokens, the repositories in which lost webhooks are looked for have to be named in forge.poll_repositories",
            ),
            (IntakeMode::Poll, false) if self.poll_repositories.is_empty() && self.write_token_file.is_none() => {
                Some("without forge.write_token_file there is no repository that could be written to")
            }
            (IntakeMode::Webhook | IntakeMode::Poll, false) => None,
        }
    }

    /// How often repositories that people added in the browser are looked at.
    pub fn looks_at_added_every(&self) -> Duration {
        // Without webhooks nobody else tells.
        let period = match self.intake {
            IntakeMode::Webhook if self.webhook_secret_file.is_some() => polling::EVERY_BELOW_WEBHOOKS,
            IntakeMode::Webhook | IntakeMode::Poll => polling::EVERY,
        };
        self.poll_every.map_or(period, |every| every.0)
    }

    /// Which repositories are looked at beside those that people added.
    pub fn looks_at(&self) -> polling::LookAt {
        match self.looks_every() {
            Some(_) if self.poll_repositories.is_empty() => polling::LookAt::Reachable,
            Some(_) | None => polling::LookAt::Named(self.poll_repositories.clone()),
        }
    }

    /// How often failed deliveries are asked for again. `None`: there is no App, which alone has a list of them, or no webhook.
    pub fn redelivers_every(&self) -> Option<Duration> {
        let has_list = self.app_id.is_some() && self.webhook_secret_file.is_some();
        (self.intake == IntakeMode::Webhook && has_list)
            .then(|| self.redeliver_every.map_or(redelivering::EVERY, |every| every.0))
    }

    /// How often the comment of a Task at work may be edited. `None`: only its result is told.
    pub fn tells_every(&self) -> Option<Duration> {
        (!self.progress_every.0.is_zero()).then_some(self.progress_every.0)
    }

    /// `webhooks on`, `polling every 60s`.
    pub fn intake_in_words(&self) -> String {
        let has_webhooks = self.webhook_secret_file.is_some();
        let webhooks = if has_webhooks { "webhooks on" } else { "webhooks off" };
        let added = Span(self.looks_at_added_every());
        match (self.intake, self.looks_every()) {
            (IntakeMode::Webhook, _) if has_webhooks => webhooks.to_owned(),
            (IntakeMode::Webhook, Some(every)) => format!("{webhooks}, looking for labels every {}", Span(every)),
            (IntakeMode::Webhook, None) => {
                format!("{webhooks}, repositories added in the browser polled every {added}")
            }
            (IntakeMode::Poll, Some(every)) => format!("polling every {}, {webhooks}", Span(every)),
            (IntakeMode::Poll, None) => format!("repositories added in the browser polled every {added}, {webhooks}"),
        }
    }

    /// Errors with a sentence about the first setting that cannot work.
    pub(super) fn check_intake(&self) -> Result<(), String> {
        let periods = [
            ("forge.poll_every", self.poll_every),
            ("forge.redeliver_every", self.redeliver_every),
            ("forge.progress_every", self.tells_every().map(Span)),
        ];
        for (key, period) in periods {
            if let Some(period) = period.filter(|period| !(SHORTEST_PERIOD..=LONGEST_PERIOD).contains(&period.0)) {
                return Err(format!(
                    "{key}: {period} is not between {} and {}",
                    Span(SHORTEST_PERIOD),
                    Span(LONGEST_PERIOD)
                ));
            }
        }
        if self.intake == IntakeMode::Poll && self.label.contains(',') {
            return Err(format!(
                "forge.label: `{}` has a comma, and a forge cannot be asked for issues with such a label",
                self.label
            ));
        }
        Ok(())
    }
}
