//! What is measured: each contender with the same load, one after the other, and that again in every round.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8Path;
use fettle_test_kit::measure::process::load_average;
use fettle_test_kit::measure::report::Report;

use crate::contenders::{Contender, Peer, version};
use crate::figures;
use crate::load::{Times, What, at_rate, flood};

/// Connections of the closed loads.
pub(crate) const CALLERS: usize = 64;
/// Streams at once.
pub(crate) const STREAMS: usize = 16;
/// Events of an unpaced stream, and of one at a GPU's pace.
pub(crate) const EVENTS: u64 = 200;
const PACED_EVENTS: u64 = 100;
const SHORT_EVENTS: u64 = 8;
/// Of what the slower of Fettle and TensorZero can do: a rate that both sustain.
pub(crate) const SHARE: f64 = 0.4;
/// Streams of a few events are as much work as some whole answers.
const STREAMED_SHARE: f64 = 0.25;

/// What one contender did in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) requests_per_second: f64,
    pub(crate) events_per_second: f64,
    pub(crate) cpu_per_event: Duration,
    /// Bytes, after the loads.
    pub(crate) resident: u64,
}

/// Times at one rate for all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// To the first event of a stream.
    pub(crate) first_p50: Duration,
    pub(crate) first_p99: Duration,
    /// From an event's sending to its arrival, at a GPU's pace.
    pub(crate) lag: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) rate: f64,
    pub(crate) direct: Option<(Seen, Timed)>,
    pub(crate) fettle: Option<(Seen, Timed)>,
    pub(crate) peers: BTreeMap<&'static str, (Seen, Option<Timed>)>,
}

#[derive(Debug, Clone, Copy)]
struct Lengths {
    rounds: usize,
    flood: Duration,
    timed: Duration,
}

pub(crate) async fn measure(own: &Utf8Path, quick: bool, peers: &[Peer]) -> anyhow::Result<Report> {
    let lengths = match quick {
        true => Lengths { rounds: 2, flood: Duration::from_secs(1), timed: Duration::from_secs(2) },
        false => Lengths { rounds: 5, flood: Duration::from_secs(3), timed: Duration::from_secs(6) },
    };
    let load = load_average()?;
    let direct = Contender::direct(own).await?;
    let upstream = direct.door.authority.clone();
    let fettle = Contender::fettle(own, &upstream).await?;
    let (mut others, mut notes, mut versions) = (Vec::new(), Vec::new(), BTreeMap::new());
    for peer in peers {
        match Contender::peer(*peer, &upstream).await {
            Ok(contender) => {
                others.push((*peer, contender));
                versions.insert(name(*peer), version(*peer)?);
            }
            Err(error) => notes.push(format!("{peer} is missing: {error:#}")),
        }
    }
    let mut rounds = Vec::new();
    for _ in 0..lengths.rounds {
        rounds.push(round(&direct, &fettle, &others, lengths).await?);
    }
    figures::report(load, &rounds, notes, versions)
}

/// As figures call it.
pub(crate) fn name(peer: Peer) -> &'static str {
    match peer {
        Peer::Nginx => "nginx",
        Peer::Tensorzero => "TensorZero",
        Peer::Litellm => "LiteLLM",
    }
}

async fn round(
    direct: &Contender,
    fettle: &Contender,
    others: &[(Peer, Contender)],
    lengths: Lengths,
) -> anyhow::Result<Round> {
    let (bare, ours) = (seen(direct, lengths).await?, seen(fettle, lengths).await?);
    let mut peers = BTreeMap::new();
    for (peer, contender) in others {
        peers.insert(name(*peer), (seen(contender, lengths).await?, None));
    }
    let slower = peers.get(name(Peer::Tensorzero)).map_or(f64::INFINITY, |(seen, _)| seen.requests_per_second);
    let rate = SHARE * ours.requests_per_second.min(slower);
    let mut round = Round { rate, ..Round::default() };
    round.direct = Some((bare, timed(direct, rate, lengths).await?));
    round.fettle = Some((ours, timed(fettle, rate, lengths).await?));
    for (peer, contender) in others {
        let Some((seen, times)) = peers.get_mut(name(*peer)) else { continue };
        // One that is slower by far would only show its own queue.
        if seen.requests_per_second * SHARE >= rate * 0.99 {
            *times = Some(timed(contender, rate, lengths).await?);
        }
    }
    round.peers = peers;
    Ok(round)
}

async fn seen(contender: &Contender, lengths: Lengths) -> anyhow::Result<Seen> {
    let whole = flood(&contender.door, What::Whole, CALLERS, lengths.flood).await?;
    let before = contender.cpu()?;
    let streams = What::Stream { events: EVENTS, paced: false };
    let streamed = flood(&contender.door, streams, STREAMS, lengths.flood).await?;
    let spent = contender.cpu()?.saturating_sub(before);
    Ok(Seen {
        requests_per_second: whole.requests_per_second,
        events_per_second: streamed.events_per_second,
        cpu_per_event: spent.div_f64(streamed.events.max(1) as f64),
        resident: contender.resident()?,
    })
}

async fn timed(contender: &Contender, rate: f64, lengths: Lengths) -> anyhow::Result<Timed> {
    let whole = at_rate(&contender.door, What::Whole, CALLERS, rate, lengths.timed).await?;
    let short = What::Stream { events: SHORT_EVENTS, paced: false };
    let streamed = at_rate(&contender.door, short, CALLERS, rate * STREAMED_SHARE, lengths.timed).await?;
    // As many as run at once on a busy GPU, all the time.
    let paced = What::Stream { events: PACED_EVENTS, paced: true };
    let slow = at_rate(&contender.door, paced, STREAMS, STREAMS as f64, lengths.timed).await?;
    Ok(Timed {
        p50: Times::quantile(&whole.whole, 0.5),
        p99: Times::quantile(&whole.whole, 0.99),
        first_p50: Times::quantile(&streamed.first, 0.5),
        first_p99: Times::quantile(&streamed.first, 0.99),
        lag: Times::quantile(&slow.lags, 0.5),
    })
}
