//! What the placer says: to the gateway what is served and why not, to people what was done and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fettle_placement::device::{Device, Pool};
use fettle_placement::engine::{Engine, EngineState};
use fettle_placement::id::{EngineId, ModelId, OwnerId, RecipeId};
use fettle_placement::memory_ledger::Account;
use fettle_placement::placement::{Barrier, Placement, Reason, Refusal, Unmet};
use fettle_placement::view::View;

use super::catalog::Catalog;
use super::engine::{Failures, Held};
use crate::ports::serving::{Meter, ReadyEngine, ServedModel, Supply, Unserved, When};

/// Everything that is known, for `fettle gpus`, `fettle models`, metrics and the admin API.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub devices: Vec<Device>,
    /// Each with its account in the memory ledger.
    pub pools: Vec<(Pool, Account)>,
    pub meters: Vec<Meter>,
    pub engines: Vec<EngineStatus>,
    pub refused: Vec<Refused>,
    pub barrier: Option<Barrier>,
    /// What was planned with, for whoever asks what would be done.
    pub view: Arc<View>,
}

#[derive(Debug, Clone)]
pub struct EngineStatus {
    pub engine: Engine,
    /// Why it was put there, in one sentence.
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub model: ModelId,
    pub owner: OwnerId,
    pub refusal: Refusal,
    /// In words, with the reason of the last failure where that is why.
    pub why: String,
}

/// Something that was done or refused, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub kind: NoticeKind,
    pub model: ModelId,
    pub engine: Option<EngineId>,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeKind {
    Loading,
    Ready,
    Evicted,
    Ended,
    Failed,
    Refused,
    Leaked,
    Adopted,
    /// Devices are emptied for who has waited too long.
    Barrier,
    PassedOver,
}

impl NoticeKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Evicted => "evicted",
            Self::Ended => "ended",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Leaked => "leaked",
            Self::Adopted => "adopted",
            Self::Barrier => "barrier",
            Self::PassedOver => "passed_over",
        }
    }
}

/// What stands for as long as its cause does is told once: of two placements in a row both refuse, and only the first is news.
#[derive(Debug, Clone, Default)]
pub(super) struct Told(BTreeSet<(NoticeKind, String)>);

impl Told {
    pub(super) fn news(&mut self, placement: &Placement, models: &BTreeMap<EngineId, ModelId>) -> Vec<Notice> {
        let model_of = |engine: &EngineId| models.get(engine).cloned().unwrap_or_else(|| ModelId::new(engine.as_str()));
        let mut standing = BTreeSet::new();
        let mut news = Vec::new();
        let mut tell = |key: String, notice: Notice| {
            let key = (notice.kind, key);
            if !self.0.contains(&key) && standing.insert(key.clone()) {
                news.push(notice);
            }
            standing.insert(key);
        };
        for reason in &placement.reasons {
            let (kind, model, engine, key) = match reason {
                // Its end is foreseen anew each time; that it loads was told when it began.
                Reason::Underway { .. } => continue,
                Reason::Chosen { model, engine, .. } => {
                    (NoticeKind::Loading, model.clone(), Some(engine), engine.to_string())
                }
                Reason::PassedOver { model, recipe, .. } => {
                    (NoticeKind::PassedOver, model.clone(), None, recipe.to_string())
                }
                Reason::MadeRoom { engine, .. } => {
                    (NoticeKind::Evicted, model_of(engine), Some(engine), engine.to_string())
                }
                Reason::Unused { engine, .. } | Reason::Unhealthy { engine, .. } | Reason::Drained { engine } => {
                    (NoticeKind::Ended, model_of(engine), Some(engine), engine.to_string())
                }
                Reason::Emptying { model, .. } => (NoticeKind::Barrier, model.clone(), None, model.to_string()),
            };
            tell(key, Notice { kind, model, engine: engine.cloned(), text: reason.to_string() });
        }
        for unmet in &placement.refusals {
            let text = format!("{}: {}", unmet.model, unmet.refusal);
            let key = format!("{} {}", unmet.model, name(&unmet.refusal));
            tell(key, Notice { kind: NoticeKind::Refused, model: unmet.model.clone(), engine: None, text });
        }
        self.0 = standing;
        news
    }
}

/// Which refusal it is, without its amounts, which change with every sample.
fn name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::TooBig { .. } => "too_big",
        Refusal::ComputeCapability { .. } => "compute_capability",
        Refusal::NoIsland { .. } => "no_island",
        Refusal::NoRecipe => "no_recipe",
        Refusal::HostMemory { .. } => "host_memory",
        Refusal::Stale { .. } => "stale",
        Refusal::Frozen { .. } => "frozen",
        Refusal::FabricPending { .. } => "fabric_pending",
        Refusal::Quarantined { .. } => "quarantined",
        Refusal::Backoff { .. } => "backoff",
        Refusal::Pinned { .. } => "pinned",
        Refusal::Foreign { .. } => "foreign",
        Refusal::Busy { .. } => "busy",
    }
}

/// What the gateway may send where. `held`: all engines; a model that nobody serves and nobody loads has the planner's reason.
pub(super) fn supply<'h>(
    catalog: &Catalog,
    held: impl Iterator<Item = &'h Held> + Clone,
    failures: &BTreeMap<RecipeId, Failures>,
    placement: &Placement,
) -> Supply {
    let serve = |model: &ModelId| {
        held.clone().filter(|held| held.seat.model == *model).filter_map(|held| ready(catalog, held)).collect()
    };
    let underway = |model: &ModelId| {
        let loads = |state| matches!(state, EngineState::Reserved | EngineState::Spawning | EngineState::Loading);
        held.clone().any(|held| held.seat.model == *model && loads(held.state))
    };
    let models = catalog.models.iter().map(|model| {
        let engines: Vec<ReadyEngine> = serve(&model.id);
        let unmet = placement.refusals.iter().find(|unmet| unmet.model == model.id);
        let served = engines.iter().any(|engine| !engine.draining) || underway(&model.id);
        let unserved = unmet
            .filter(|_| !served)
            .map(|unmet| Unserved { why: in_words(unmet, catalog, failures), when: when(unmet, catalog, failures) });
        // Requests must fit whichever engine takes them.
        let context = model.recipes.iter().map(|local| local.recipe.ctx).min().unwrap_or_default();
        ServedModel { id: model.id.clone(), context_tokens: context.into(), engines, unserved }
    });
    Supply { models: models.collect() }
}

/// Of a model whose recipes wait after failures, those failures.
fn failed<'f>(
    unmet: &'f Unmet,
    catalog: &'f Catalog,
    failures: &'f BTreeMap<RecipeId, Failures>,
) -> impl Iterator<Item = &'f Failures> {
    let waits = matches!(unmet.refusal, Refusal::Backoff { .. });
    let model = catalog.model(&unmet.model).filter(|_| waits);
    model.into_iter().flat_map(|model| &model.recipes).filter_map(|local| failures.get(&local.recipe.id))
}

pub(super) fn in_words(unmet: &Unmet, catalog: &Catalog, failures: &BTreeMap<RecipeId, Failures>) -> String {
    match (&unmet.refusal, failed(unmet, catalog, failures).find_map(Failures::why)) {
        (Refusal::Backoff { eta, .. }, Some(why)) => format!("its last load failed: {why}; it is tried again in {eta}"),
        (refusal, _) => refusal.to_string(),
    }
}

fn when(unmet: &Unmet, catalog: &Catalog, failures: &BTreeMap<RecipeId, Failures>) -> When {
    let Some(after) = unmet.refusal.retry_after().map(Duration::from_secs) else { return When::Never };
    let failed: Vec<&Failures> = failed(unmet, catalog, failures).collect();
    let hopeless = !failed.is_empty() && failed.into_iter().all(Failures::is_hopeless);
    if hopeless { When::Mended(after) } else { When::Waiting(after) }
}

fn ready(catalog: &Catalog, held: &Held) -> Option<ReadyEngine> {
    let draining = match held.state {
        EngineState::Ready => false,
        EngineState::Draining { .. } => true,
        _ => return None,
    };
    Some(ReadyEngine {
        engine: held.seat.engine.clone(),
        epoch: held.epoch,
        recipe: held.seat.recipe.to_string(),
        address: held.address.clone()?,
        parallel: catalog.recipe(&held.seat.recipe).map_or(1, |local| local.recipe.parallel),
        draining,
        devices: held.seat.devices.clone(),
    })
}
