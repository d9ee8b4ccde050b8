//! Which engines are loaded where, woken, put to sleep and ended. Looks at the facts of one moment and says what to do and why;
//! it knows no clock, asks no device, and gives the same answer to the same facts in whatever order they are listed.
//!
//! Wants are served one after the other (`turns.rs`), each from what the ones before it have left (`desk.rs`). For each, in this
//! order: an engine that sleeps is woken; a place that is free is taken (`sites.rs`); room is made where that costs others
//! least (`evict.rs`); it waits and is told why and for how long (`refuse.rs`). Who has waited too long gets devices emptied
//! (`barrier.rs`). Memory is counted by the memory ledger alone.

mod acts;
mod barrier;
mod desk;
mod evict;
mod refuse;
mod sites;

use crate::engine::{Engine, EngineState};
use crate::footprint::Footprint;
use crate::id::EngineId;
use crate::placement::{Alternative, Barrier, How, Intent, Placement, Reason, Refusal, Unmet};
use crate::quantity::Millis;
use crate::recipe::Recipe;
use crate::view::{Policy, RecipeChoice, View, Want};
use desk::Desk;
use evict::{Evictable, Eviction};
use sites::{Shape, Site};

/// Decides for all of `demand` at once. `view.turns` and `view.barrier` are those of the last placement.
///
/// Every want is answered in one of four ways: an engine is ready and nothing is said; one is on its way ([`Reason::Underway`]);
/// something is done for it ([`Reason::Chosen`]); or it is refused, for now or for good.
pub fn plan(view: &View, demand: &[Want], policy: &Policy) -> Placement {
    let mut desk = Desk::new(view, demand, policy);
    end_what_should_not_be(&mut desk, demand);

    let mut standing = barrier::standing(&desk, demand);
    barrier::let_go(&mut desk, standing.as_ref());
    let wants = view.turns.order(demand, standing.as_ref().map(|barrier| &barrier.model), policy);
    let mut refusals = Vec::new();
    let mut served = Vec::new();
    for want in &wants {
        desk.keep_for(standing.as_ref().filter(|barrier| barrier.model != want.model));
        match answer(&mut desk, want, standing.as_ref()) {
            Answer::Ready => {}
            Answer::Underway(reason) => desk.reasons.push(reason),
            Answer::Started => {
                served.push(*want);
                standing = standing.filter(|barrier| barrier.model != want.model);
            }
            Answer::Refused(refusal) => {
                refusals.push(Unmet { model: want.model.clone(), owner: want.owner.clone(), refusal });
            }
        }
    }

    let barrier = standing.or_else(|| barrier::begin(&desk, &wants, &refusals));
    barrier::let_go(&mut desk, barrier.as_ref());
    if let Some(barrier) = &barrier {
        barrier::drain(&mut desk, barrier);
    }
    let turns = view.turns.after(demand, &served, policy);
    Placement { intents: desk.intents, reasons: desk.reasons, refusals, barrier, turns }
}

enum Answer {
    Ready,
    Underway(Reason),
    Started,
    Refused(Refusal),
}

fn answer(desk: &mut Desk, want: &Want, barrier: Option<&Barrier>) -> Answer {
    let (ready, underway) = desk.at_work_for(&want.model);
    let at_work = ready + underway.len();
    if at_work == 0 && want.waiting > 0 {
        return match start(desk, want, Effort::MakeRoom, barrier) {
            Ok(()) => Answer::Started,
            Err(refusal) => Answer::Refused(refusal),
        };
    }

    // Engines that nobody waits for push nobody out, or two models could do so to each other for ever.
    let (least, most) = (usize::from(want.replicas.0), usize::from(want.replicas.1.max(1)));
    let delayed = want.waiting > 0 && desk.view.now.since(want.oldest) > desk.policy.replica_delay;
    let replica = delayed && at_work < most && underway.is_empty();
    let more = if at_work < least || replica { start(desk, want, Effort::TakeFree, None).map(Some) } else { Ok(None) };
    match (more, underway.into_iter().min_by_key(|(engine, ready_in)| (*ready_in, engine.clone()))) {
        (Ok(Some(())), _) => Answer::Started,
        (Err(refusal), None) if ready == 0 => Answer::Refused(refusal),
        (_, Some((engine, ready_in))) if ready == 0 => {
            Answer::Underway(Reason::Underway { model: want.model.clone(), engine, ready_in })
        }
        _ => Answer::Ready,
    }
}

/// What may be done for a want.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    TakeFree,
    MakeRoom,
}

/// Starts an engine of the first recipe that can be used. An earlier one is passed over when it can never run here or has just
/// failed, so that the same request gets the same model; or, if the settings allow, when a later one is free now.
fn start(desk: &mut Desk, want: &Want, effort: Effort, barrier: Option<&Barrier>) -> Result<(), Refusal> {
    let strict = desk.policy.recipes == RecipeChoice::Strict;
    let at_first = if strict { effort } else { Effort::TakeFree };
    let mut passed_over = Vec::new();
    for recipe in desk.recipes_of(&want.model) {
        match find(desk, want, recipe, at_first, barrier) {
            Ok(choice) => {
                carry_out(desk, choice, passed_over);
                return Ok(());
            }
            Err(refusal) if strict && usable(&refusal) => return Err(refusal),
            Err(refusal) => passed_over.push((recipe, refusal)),
        }
    }
    if let Some(nth) = passed_over.iter().position(|(_, refusal)| usable(refusal)).filter(|_| effort != at_first) {
        let choice = find(desk, want, passed_over[nth].0, effort, barrier)?;
        passed_over.truncate(nth);
        carry_out(desk, choice, passed_over);
        return Ok(());
    }
    // What may still come true is told before what never will.
    let refusals = passed_over.into_iter().map(|(_, refusal)| refusal);
    Err(refusals.min_by_key(|refusal| (!usable(refusal), refusal.is_final())).unwrap_or(Refusal::NoRecipe))
}

/// Whether a recipe that was refused so is still the one to use: it may run here, and has not just failed.
fn usable(refusal: &Refusal) -> bool {
    !refusal.is_final() && !matches!(refusal, Refusal::Backoff { .. })
}

/// What was found for one recipe.
struct Choice<'v> {
    recipe: &'v Recipe,
    footprint: &'v Footprint,
    site: Site,
    victims: Vec<usize>,
    /// The engine to wake, else a new one.
    sleeper: Option<usize>,
    how: How,
    instead_of: Vec<Alternative>,
}

/// Wakes who sleeps, else takes the tightest device or set that is free, else makes room at the least cost to others, and for
/// whoever has waited too long on the devices that are emptied for it.
fn find<'v>(
    desk: &Desk<'v>,
    want: &Want,
    recipe: &'v Recipe,
    effort: Effort,
    barrier: Option<&Barrier>,
) -> Result<Choice<'v>, Refusal> {
    let shape = Shape::of(desk, recipe)?;
    let free = wake(desk, &shape).or_else(|| take_free(desk, &shape));
    let found = match effort {
        Effort::TakeFree => free,
        Effort::MakeRoom => free
            .or_else(|| make_room_to_wake(desk, &shape))
            .or_else(|| make_room(desk, &shape))
            .or_else(|| take_emptied(desk, &shape, barrier.filter(|barrier| barrier.model == want.model)?)),
    };
    found.ok_or_else(|| refuse::why_not_now(desk, &shape, (effort == Effort::MakeRoom).then_some(want)))
}

impl<'v> Choice<'v> {
    fn of(shape: &Shape<'v>, site: Site, how: How) -> Self {
        let (recipe, footprint) = (shape.recipe, shape.footprint);
        Self { recipe, footprint, site, victims: Vec::new(), sleeper: None, how, instead_of: Vec::new() }
    }
}

fn wake<'v>(desk: &Desk<'v>, shape: &Shape<'v>) -> Option<Choice<'v>> {
    let (sleeper, site) = shape.sleepers(desk).find(|(_, site)| site.fits(desk))?;
    Some(Choice { sleeper: Some(sleeper), ..Choice::of(shape, site, How::Woken) })
}

fn take_free<'v>(desk: &Desk<'v>, shape: &Shape<'v>) -> Option<Choice<'v>> {
    let (site, how, instead_of) = shape.best_free(desk)?;
    Some(Choice { instead_of, ..Choice::of(shape, site, how) })
}

fn make_room_to_wake<'v>(desk: &Desk<'v>, shape: &Shape<'v>) -> Option<Choice<'v>> {
    shape.sleepers(desk).find_map(|(sleeper, site)| {
        let Eviction { victims, cost, .. } = evict::cheapest(desk, &site, Evictable::Now, Some(sleeper))?;
        let how = desk.making_room(&victims, cost);
        Some(Choice { victims, sleeper: Some(sleeper), ..Choice::of(shape, site, how) })
    })
}

fn make_room<'v>(desk: &Desk<'v>, shape: &Shape<'v>) -> Option<Choice<'v>> {
    let (site, Eviction { victims, cost, .. }, instead_of) = evict::best(desk, shape, Evictable::Now)?;
    let how = desk.making_room(&victims, cost);
    Some(Choice { victims, instead_of, ..Choice::of(shape, site, how) })
}

fn take_emptied<'v>(desk: &Desk<'v>, shape: &Shape<'v>, barrier: &Barrier) -> Option<Choice<'v>> {
    let (site, victims) = barrier::emptied(desk, shape, barrier)?;
    let how = How::Emptied { victims: desk.names(&victims) };
    Some(Choice { victims, ..Choice::of(shape, site, how) })
}

fn carry_out<'v>(desk: &mut Desk<'v>, choice: Choice<'v>, passed_over: Vec<(&'v Recipe, Refusal)>) {
    let Choice { recipe, footprint, site, victims, sleeper, how, instead_of } = choice;
    let model = &recipe.model;
    for (other, why) in passed_over {
        desk.reasons.push(Reason::PassedOver { model: model.clone(), recipe: other.id.clone(), why });
    }
    let load = sleeper.map_or(footprint.load, |nth| desk.engines[nth].reload);
    let seated = desk.seat(recipe, &site, sleeper, load);
    desk.make_way(&victims, &site, model);
    desk.reasons.push(Reason::Chosen {
        model: model.clone(),
        recipe: recipe.id.clone(),
        engine: seated.id().clone(),
        devices: desk.device_ids(&site),
        how,
        load,
        instead_of,
    });
    desk.intents.push(seated.into_intent());
}

/// Engines on devices that were quarantined or lost, those that have been drained, and those that nobody has used for as long as the
/// settings keep them.
fn end_what_should_not_be(desk: &mut Desk, demand: &[Want]) {
    let now = desk.view.now;
    let kept_by_barrier =
        |id: &EngineId| desk.view.barrier.as_ref().is_some_and(|barrier| barrier.engines.contains(id));
    let mut ends: Vec<(usize, Intent, Reason)> = Vec::new();
    for &nth in &desk.doubtful {
        let engine = desk.engines[nth];
        let (id, epoch) = (engine.id.clone(), engine.epoch);
        match engine.state {
            EngineState::Ready => {
                if let Some(device) = desk.unhealthy_device_of(engine) {
                    let reason = Reason::Unhealthy { engine: id.clone(), device: device.clone() };
                    ends.push((nth, Intent::Drain(id, epoch, now + desk.policy.drain_deadline), reason));
                } else if let Some(idle) = unused(desk, engine, demand, now) {
                    ends.push((nth, Intent::Stop(id.clone(), epoch), Reason::Unused { engine: id, idle }));
                }
            }
            EngineState::Draining { until } if !kept_by_barrier(&id) && (engine.inflight == 0 || until <= now) => {
                ends.push((nth, Intent::Stop(id.clone(), epoch), Reason::Drained { engine: id }));
            }
            EngineState::Draining { .. }
            | EngineState::Reserved
            | EngineState::Spawning
            | EngineState::Loading
            | EngineState::Stopping
            | EngineState::Reclaiming
            | EngineState::Gone
            | EngineState::Sleeping(_)
            | EngineState::Backoff { .. } => {}
        }
    }
    for (nth, intent, reason) in ends {
        match intent {
            Intent::Drain(_, _, until) => desk.drains(nth, until),
            _ => desk.leaves(nth),
        }
        desk.intents.push(intent);
        desk.reasons.push(reason);
    }
}

/// For how long nobody has used an engine that may end for that.
fn unused(desk: &Desk, engine: &Engine, demand: &[Want], now: Millis) -> Option<Millis> {
    let idle = now.since(engine.last_used.max(engine.ready_at));
    let kept = demand.iter().any(|want| want.model == engine.seat.model && (want.replicas.0 > 0 || want.waiting > 0));
    let over = desk.policy.idle_ttl.is_some_and(|ttl| idle >= ttl);
    (over && engine.inflight == 0 && !engine.pinned && !kept).then_some(idle)
}
