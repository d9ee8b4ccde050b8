//! Starts what looks for work that no webhook told of, as far as the configuration has it, and says so.

use std::sync::Arc;

use fettle_app::adding::Added;
use fettle_app::intake::IntakeOptions;
use fettle_app::live::Live;
use fettle_app::polling::Poller;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::forge::ForgeWatch;
use fettle_app::ports::ledger::Ledger;
use fettle_app::reconciling::{Reconcilers, WORKED_WITHIN};
use fettle_app::redelivering::Redeliverer;
use fettle_app::vitals::Vitals;
use fettle_runtime::config::{Config, IntakeMode};
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::units::Span;
use tokio::sync::watch;
use tracing::{info, warn};

pub(crate) struct Lookout<'a> {
    pub(crate) config: &'a Config,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) forge: Arc<dyn ForgeWatch>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) options: Live<IntakeOptions>,
    pub(crate) reconcilers: &'a Arc<Reconcilers>,
    pub(crate) vitals: &'a Arc<Vitals>,
    pub(crate) supervisor: &'a Supervisor,
    pub(crate) added: watch::Receiver<Arc<Added>>,
}

/// The poller and the redeliverer, each if it has something to do.
pub(crate) fn spawn(lookout: Lookout<'_>) {
    let Lookout { config, ledger, forge, clock, ids, options, reconcilers, vitals, supervisor, added } = lookout;
    let settings = &config.forge;
    match (settings.looks_every(), settings.why_not_looked()) {
        (Some(every), _) => {
            let where_to = match settings.poll_repositories.len() {
                0 => "what our credentials reach".to_owned(),
                named => format!("{named} named repositories"),
            };
            info!("{where_to} will be looked at every {} for labels that no webhook told of", Span(every));
        }
        (None, Some(why)) if settings.intake == IntakeMode::Poll => {
            warn!("missing: only repositories that are added in the browser are looked at, since {why}")
        }
        (None, Some(why)) if settings.webhook_secret_file.is_some() => {
            info!("a lost webhook is looked for only in repositories that are added in the browser, since {why}");
        }
        (None, _) => {}
    }
    let every = settings.looks_every().unwrap_or(settings.looks_at_added_every());
    let mut poller = Poller {
        ledger: ledger.clone(),
        forge: forge.clone(),
        clock,
        ids,
        options,
        at: settings.looks_at(),
        added,
        remembered: Default::default(),
    };
    let (own, pulse) = (reconcilers.register("poll", every), vitals.pulse("poll", WORKED_WITHIN));
    let stop = supervisor.shutdown().clone();
    supervisor.spawn("the poller", async move { own.work(&mut poller, &pulse, &stop).await });
    if let Some(every) = settings.redelivers_every() {
        info!("webhook deliveries that failed will be asked for again, every {}", Span(every));
        let mut redeliverer = Redeliverer { ledger, forge, pause: every, settled_until: None };
        let (own, pulse) = (reconcilers.register("redelivery", every), vitals.pulse("redelivery", WORKED_WITHIN));
        let stop = supervisor.shutdown().clone();
        supervisor.spawn("the redeliverer", async move { own.work(&mut redeliverer, &pulse, &stop).await });
    }
}
