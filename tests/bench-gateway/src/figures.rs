//! What was seen, as figures beside their targets.

use std::collections::BTreeMap;
use std::time::Duration;

use fettle_test_kit::measure::report::{Figure, Report, Target};

use crate::contenders::Peer;
use crate::rounds::{CALLERS, EVENTS, Round, SHARE, STREAMS, Seen, Timed, name};

/// Three figures of a contender, and what it did in a round.
type Told<'f> = (&'static [&'static str; 3], &'f dyn Fn(&Round) -> Option<Seen>);

pub(crate) fn report(
    load: f64,
    rounds: &[Round],
    mut notes: Vec<String>,
    versions: BTreeMap<&'static str, String>,
) -> anyhow::Result<Report> {
    let some = |value: &dyn Fn(&Round) -> Option<f64>| -> Vec<f64> { rounds.iter().filter_map(value).collect() };
    let figure =
        |name, unit, target, value: &dyn Fn(&Round) -> Option<f64>| Figure::of(name, unit, target, some(value));
    let seen = |round: &Round| round.fettle.map(|(seen, _)| seen);
    let peer = |round: &Round, peer| round.peers.get(name(peer)).copied();
    let rates =
        |round: &Round, other: Option<Seen>| Some(seen(round)?.requests_per_second / other?.requests_per_second);
    // What a contender adds to the model's server alone, in milliseconds.
    let added = |round: &Round, times: Option<Timed>, part: &dyn Fn(&Timed) -> Duration| {
        let (_, bare) = round.direct?;
        Some(ms(part(&times?)) - ms(part(&bare)))
    };
    let ours =
        |round: &Round, part: &dyn Fn(&Timed) -> Duration| added(round, round.fettle.map(|(_, times)| times), part);
    let theirs = |round: &Round, which, part: &dyn Fn(&Timed) -> Duration| {
        added(round, peer(round, which).and_then(|(_, times)| times), part)
    };
    let most = |bound| Some(Target::AtMost(bound));
    let least = |bound| Some(Target::AtLeast(bound));
    let beside = |round: &Round, part: &dyn Fn(&Timed) -> Duration| {
        Some(ours(round, part)? / theirs(round, Peer::Tensorzero, part)?)
    };
    let tensorzero = |round: &Round| peer(round, Peer::Tensorzero).map(|(seen, _)| seen);

    let mut figures = vec![
        figure("added p50, whole answers", "ms", most(0.2), &|r| ours(r, &|t| t.p50)),
        figure("added p99, whole answers", "ms", most(0.9), &|r| ours(r, &|t| t.p99)),
        figure("added p50, first event", "ms", most(0.2), &|r| ours(r, &|t| t.first_p50)),
        figure("added p99, first event", "ms", most(0.9), &|r| ours(r, &|t| t.first_p99)),
        figure("added to an event at a GPU's pace", "µs", most(20.0), &|r| Some(ours(r, &|t| t.lag)? * 1000.0)),
        figure("resident after the loads", "MB", most(150.0), &|r| Some(seen(r)?.resident as f64 / 1e6)),
        figure("requests/s ÷ TensorZero", "", least(2.0), &|r| rates(r, tensorzero(r))),
        figure("requests/s ÷ nginx", "", least(0.4), &|r| rates(r, peer(r, Peer::Nginx).map(|(seen, _)| seen))),
        figure("added p50 ÷ TensorZero's", "", most(0.6), &|r| beside(r, &|t| t.p50)),
        figure("added p99 ÷ TensorZero's", "", most(0.6), &|r| beside(r, &|t| t.p99)),
        figure("CPU per event ÷ TensorZero's", "", most(0.5), &|r| {
            Some(seen(r)?.cpu_per_event.as_secs_f64() / tensorzero(r)?.cpu_per_event.as_secs_f64())
        }),
        figure("requests/s ÷ LiteLLM", "", None, &|r| rates(r, peer(r, Peer::Litellm).map(|(seen, _)| seen))),
        figure("the rate of the timed loads", "1/s", None, &|r| Some(r.rate)),
    ];
    let alone = |round: &Round| round.direct.map(|(seen, _)| seen);
    let contenders: [Told<'_>; 5] = [
        (&["direct, requests/s", "direct, events/s", "direct, CPU per event"], &alone),
        (&["Fettle, requests/s", "Fettle, events/s", "Fettle, CPU per event"], &seen),
        (&["nginx, requests/s", "nginx, events/s", "nginx, CPU per event"], &|r| peer(r, Peer::Nginx).map(|(s, _)| s)),
        (&["TensorZero, requests/s", "TensorZero, events/s", "TensorZero, CPU per event"], &tensorzero),
        (&["LiteLLM, requests/s", "LiteLLM, events/s", "LiteLLM, CPU per event"], &|r| {
            peer(r, Peer::Litellm).map(|(s, _)| s)
        }),
    ];
    for ([requests, events, cpu], of) in contenders {
        figures.push(figure(requests, "1/s", None, &|r| Some(of(r)?.requests_per_second)));
        figures.push(figure(events, "1/s", None, &|r| Some(of(r)?.events_per_second)));
        figures.push(figure(cpu, "µs", None, &|r| Some(of(r)?.cpu_per_event.as_secs_f64() * 1e6)));
    }
    notes.extend([
        format!(
            "requests/s: {CALLERS} connections, each asks again as soon as it is answered; a prompt of 1 KiB, an answer of three lines"
        ),
        format!("events/s and CPU: {STREAMS} streams of {EVENTS} events, without a pause between them"),
        format!(
            "added: what a caller waits longer than for the model's server alone, at {SHARE} of what the slower of Fettle and \
             TensorZero can do; to the first event at a quarter of that"
        ),
        "callers, the model's server and the gateways share the cores, unpinned".to_owned(),
    ]);
    Ok(Report::new("gateway", load, figures, notes)?.with_versions(versions))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
