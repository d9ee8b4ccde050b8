//! What was seen, as figures beside their targets.

use std::collections::BTreeMap;
use std::time::Duration;

use fettle_test_kit::measure::disk::STEADY;
use fettle_test_kit::measure::report::{Figure, Report, Target};

use crate::callers::quantile;
use crate::rounds::{CALLERS, Round, Seen};
use crate::wait::Waits;

/// Cycles that share a flush of the disk, at least, and those that are enough on any disk: of 64 callers and of 256.
const CYCLE_64: Floor = Floor { per_flush: 15.0, enough: 8_000.0 };
const CYCLE_256: Floor = Floor { per_flush: 40.0, enough: 16_000.0 };
const OPEN: Floor = Floor { per_flush: 40.0, enough: 20_000.0 };
/// A call may meet a flush that has begun, wait for the next, and for one more.
const FLUSHES_IN_P99: f64 = 3.0;
const P99_ALLOWANCE: Duration = Duration::from_millis(2);

/// What must be reached a second.
struct Floor {
    per_flush: f64,
    enough: f64,
}

impl Floor {
    fn of(&self, round: &Round) -> f64 {
        (self.per_flush * round.flushes_per_second()).min(self.enough)
    }
}

pub(crate) fn tell_unsteady(notes: &mut Vec<String>, left_out: usize, unsteady: usize) {
    if left_out > 0 {
        notes.push(format!("{left_out} rounds are left out: the disk's speed changed by more than {STEADY} within"));
    }
    if unsteady > 0 {
        notes.push(format!("{unsteady} of the rounds are unsteady: the disk's speed changed by more than {STEADY}"));
    }
}

pub(crate) fn report(load: f64, seen: &Seen) -> anyhow::Result<Report> {
    let rounds = &seen.rounds;
    let of = |value: &dyn Fn(&Round) -> f64| -> Vec<f64> { rounds.iter().map(value).collect() };
    // What failed in one round is judged by the others, and a note tells of it; what failed in all of them is missing.
    let some = |value: &dyn Fn(&Round) -> Option<f64>| -> Vec<f64> { rounds.iter().filter_map(value).collect() };
    let told = |name, unit, value: &dyn Fn(&Round) -> f64| Figure::of(name, unit, None, of(value));
    let told_if_there = |name, unit, value: &dyn Fn(&Round) -> Option<f64>| Figure::of(name, unit, None, some(value));
    let at_least = |name, bound, value: &dyn Fn(&Round) -> Option<f64>| {
        Figure::of(name, "", Some(Target::AtLeast(bound)), some(value))
    };
    let at_most = |name, unit, bound, value: &dyn Fn(&Round) -> Option<f64>| {
        Figure::of(name, unit, Some(Target::AtMost(bound)), some(value))
    };
    let best = best_of(rounds);
    let beside = |round: &Round, other: Option<f64>| other.map(|other| round.cycles[best] / other);
    let of_streams = |round: &Round, nth: usize| round.always.map(|streams| round.cycles[nth] / streams[nth]);
    let of_loose = |round: &Round, nth: usize| round.every_second.map(|streams| round.cycles[nth] / streams[nth]);
    let waited = |round: &Round, waits: Option<&Vec<Duration>>, part| {
        waits.map(|waits| ms(quantile(waits, part).saturating_sub(round.flush())))
    };

    let figures = vec![
        at_least("cycle, 64 callers ÷ min(15 × flushes, 8000/s)", 1.0, &|r| Some(r.cycles[1] / CYCLE_64.of(r))),
        at_least("cycle, 256 callers ÷ min(40 × flushes, 16000/s)", 1.0, &|r| Some(r.cycles[2] / CYCLE_256.of(r))),
        at_least("open, 64 callers ÷ min(40 × flushes, 20000/s)", 1.0, &|r| Some(r.opened / OPEN.of(r))),
        at_most("open, p99 at half rate ÷ (3 × flush p99 + 2 ms)", "", 1.0, &|r| {
            let limit = r.flush_p99().mul_f64(FLUSHES_IN_P99) + P99_ALLOWANCE;
            Some(r.open_p99_at_half.as_secs_f64() / limit.as_secs_f64())
        }),
        at_least("cycle ÷ raw streams (always), 16 callers", 0.4, &|r| of_streams(r, 0)),
        at_least("cycle ÷ raw streams (always), 64 callers", 0.4, &|r| of_streams(r, 1)),
        at_least("cycle ÷ raw streams (always), 256 callers", 0.4, &|r| of_streams(r, 2)),
        told_if_there("cycle ÷ raw streams (everysec), 16 callers", "", &|r| of_loose(r, 0)),
        told_if_there("cycle ÷ raw streams (everysec), 64 callers", "", &|r| of_loose(r, 1)),
        told_if_there("cycle ÷ raw streams (everysec), 256 callers", "", &|r| of_loose(r, 2)),
        at_least("cycle ÷ apalis-redis, its best backlog", 1.2, &|r| {
            let [short, long, _] = r.apalis;
            beside(r, short.into_iter().chain(long).reduce(f64::max))
        }),
        at_least("cycle ÷ apalis-redis, 7,900 jobs", 2.5, &|r| beside(r, r.apalis[2])),
        at_least("cycle ÷ RQ SimpleWorker", 25.0, &|r| beside(r, r.rq)),
        at_least("cycle ÷ Celery (prefork 2, acks late)", 25.0, &|r| beside(r, r.celery)),
        at_most("idle, in-process, p50 less a flush", "ms", 2.0, &|r| waited(r, Some(&r.idle), 0.5)),
        at_most("idle, in-process, p99 less a flush", "ms", 10.0, &|r| waited(r, Some(&r.idle), 0.99)),
        at_most("idle, Redis hints, p50 less a flush", "ms", 3.0, &|r| waited(r, r.idle_redis.as_ref(), 0.5)),
        at_most("idle, Redis hints, p99 less a flush", "ms", 15.0, &|r| waited(r, r.idle_redis.as_ref(), 0.99)),
        at_most("idle, RabbitMQ hints, p50 less a flush", "ms", 5.0, &|r| waited(r, r.idle_rabbitmq.as_ref(), 0.5)),
        at_most("idle, RabbitMQ hints, p99 less a flush", "ms", 25.0, &|r| waited(r, r.idle_rabbitmq.as_ref(), 0.99)),
        Figure::of("lease p99, long backlog ÷ 1,000 jobs", "", Some(Target::AtMost(2.0)), lease_ratios(seen)),
        Figure::of("others' p99 wait beside a crowd ÷ alone", "", Some(Target::AtMost(2.0)), wait_ratios(seen)),
        told("cycle, 16 callers", "1/s", &|r| r.cycles[0]),
        told("cycle, 64 callers", "1/s", &|r| r.cycles[1]),
        told("cycle, 256 callers", "1/s", &|r| r.cycles[2]),
        told("open only, 64 callers", "1/s", &|r| r.opened),
        told("open only, p99 at half rate", "ms", &|r| ms(r.open_p99_at_half)),
        told_if_there("raw streams (always), 16 callers", "1/s", &|r| r.always.map(|rates| rates[0])),
        told_if_there("raw streams (always), 64 callers", "1/s", &|r| r.always.map(|rates| rates[1])),
        told_if_there("raw streams (always), 256 callers", "1/s", &|r| r.always.map(|rates| rates[2])),
        told_if_there("raw streams (everysec), 64 callers", "1/s", &|r| r.every_second.map(|rates| rates[1])),
        told_if_there("raw streams (everysec), 256 callers", "1/s", &|r| r.every_second.map(|rates| rates[2])),
        told_if_there("apalis-redis, 1,000 jobs", "1/s", &|r| r.apalis[0]),
        told_if_there("apalis-redis, 3,000 jobs", "1/s", &|r| r.apalis[1]),
        told_if_there("apalis-redis, 7,900 jobs", "1/s", &|r| r.apalis[2]),
        told_if_there("RQ SimpleWorker", "1/s", &|r| r.rq),
        told_if_there("Celery (prefork 2, acks late)", "1/s", &|r| r.celery),
        Figure::of("lease p99, 1,000 jobs", "ms", None, p99s(&seen.leases.small)),
        Figure::of("lease p99, long backlog", "ms", None, p99s(&seen.leases.large)),
        Figure::of("others' p99 wait alone", "leases", None, seen.waits.iter().map(|w| p99(&w.alone)).collect()),
        Figure::of(
            "others' p99 wait beside a crowd",
            "leases",
            None,
            seen.waits.iter().map(|w| p99(&w.beside)).collect(),
        ),
        told("flushes: fdatasync of 4 KiB", "1/s", &Round::flushes_per_second),
        told("one flush, median", "ms", &|r| ms(r.flush())),
        told("one flush, p99", "ms", &|r| ms(r.flush_p99())),
    ];
    let report = Report::new("queue", load, figures, notes(seen, best))?;
    Ok(report.with_versions(seen.versions.clone()).with_samples(samples(seen)))
}

/// The place of the callers with which Fettle is the fastest, by the sum over rounds.
fn best_of(rounds: &[Round]) -> usize {
    let total = |nth: usize| rounds.iter().map(|round| round.cycles[nth]).sum::<f64>();
    (0..CALLERS.len()).max_by(|a, b| total(*a).total_cmp(&total(*b))).unwrap_or_default()
}

fn notes(seen: &Seen, best: usize) -> Vec<String> {
    let (backlog, leases) = (seen.backlog, &seen.leases);
    let mut notes = vec![
        format!(
            "cycle: open a Task, lease its Run, complete it, each durable before the next, which queues its publish job too; \
             1 KiB a job, each caller its own repository; beside others at {} callers, its best",
            CALLERS[best]
        ),
        "raw streams: XADD, then XREADGROUP, XACK and XDEL in one script; all callers on one connection".to_owned(),
        "RQ, Celery and apalis run on Redis with appendfsync always, their jobs' pushing included".to_owned(),
        "idle: from the call that opens a Task until the worker's handler begins, so two commits and no HTTP"
            .to_owned(),
        format!(
            "long backlog: {} jobs in {} repositories, one of which holds 90 %, filled in {:.0} s and audited in {:.0} s \
             without a finding; 16 callers lease and release, leases alone are timed",
            backlog.jobs,
            backlog.repositories,
            leases.filled_in.as_secs_f64(),
            leases.audited_in.as_secs_f64(),
        ),
        format!(
            "waits are counted in leases from a Task's opening to its own, at one lease a second, half of which others ask \
             for, by chance (Poisson); the crowd is one repository with {} jobs",
            seen.crowd
        ),
        "after each measurement of cycle and open the ledger's audit found nothing and no job was missing".to_owned(),
        "callers, ledgers and servers share the cores, unpinned".to_owned(),
    ];
    notes.extend(seen.notes.iter().cloned());
    notes
}

fn samples(seen: &Seen) -> BTreeMap<String, Vec<Vec<f64>>> {
    let in_ms = |waits: &Vec<Duration>| waits.iter().map(|wait| ms(*wait)).collect();
    let idle =
        |waits: &dyn Fn(&Round) -> Option<&Vec<Duration>>| seen.rounds.iter().filter_map(waits).map(in_ms).collect();
    let mut samples = BTreeMap::from([
        ("idle, in-process, ms".to_owned(), idle(&|round| Some(&round.idle))),
        ("idle, Redis hints, ms".to_owned(), idle(&|round| round.idle_redis.as_ref())),
        ("idle, RabbitMQ hints, ms".to_owned(), idle(&|round| round.idle_rabbitmq.as_ref())),
    ]);
    let waits = |value: &dyn Fn(&Waits) -> Vec<f64>| seen.waits.iter().map(value).collect();
    samples.insert("others' waits alone, leases".to_owned(), waits(&|waits| waits.alone.clone()));
    samples.insert("others' waits beside a crowd, leases".to_owned(), waits(&|waits| waits.beside.clone()));
    samples
}

fn lease_ratios(seen: &Seen) -> Vec<f64> {
    seen.leases.large.iter().zip(&seen.leases.small).map(|(large, small)| p99(large) / p99(small)).collect()
}

fn wait_ratios(seen: &Seen) -> Vec<f64> {
    seen.waits.iter().map(|waits| p99(&waits.beside) / p99(&waits.alone)).collect()
}

fn p99s(rounds: &[Vec<f64>]) -> Vec<f64> {
    rounds.iter().map(|round| p99(round)).collect()
}

/// `sorted` holds at least one.
fn p99(sorted: &[f64]) -> f64 {
    sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
