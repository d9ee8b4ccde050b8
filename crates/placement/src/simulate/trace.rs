//! Traces: of files, one JSON object a line as Mooncake's are, and made from a seed.

use serde::Deserialize;

use super::Request;
use super::random::Random;
use crate::id::{ModelId, OwnerId};
use crate::quantity::Millis;

/// A line of a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the trace")]
pub struct TraceError {
    pub line: usize,
    #[source]
    source: serde_json::Error,
}

#[derive(Deserialize)]
struct Line {
    /// Milliseconds since the trace's beginning.
    timestamp: u64,
    model: String,
    input_length: u32,
    output_length: u32,
    /// Blocks of the prompt; equal first ones are a prefix in common. Without a session they name it.
    #[serde(default)]
    hash_ids: Vec<u64>,
    session_id: Option<u64>,
    #[serde(default)]
    owner: String,
}

/// Reads a trace; requests come out in the order of time.
pub fn parse(text: &str) -> Result<Vec<Request>, TraceError> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let mut requests = lines
        .map(|(number, line)| {
            let line: Line = serde_json::from_str(line).map_err(|source| TraceError { line: number, source })?;
            Ok(Request {
                at: Millis::new(line.timestamp),
                model: ModelId::new(line.model),
                owner: OwnerId::new(line.owner),
                session: line.session_id.or(line.hash_ids.first().copied()).unwrap_or_default(),
                input: line.input_length,
                output: line.output_length,
                patience: None,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    requests.sort_by_key(|request| request.at);
    Ok(requests)
}

/// Agents at work: sessions of some requests each, one after the other, on one model.
#[derive(Debug, Clone, Copy)]
pub struct Agents {
    pub models: usize,
    pub owners: u64,
    pub sessions: u64,
    /// Between the beginnings of two sessions, on average.
    pub every: Millis,
    /// Requests of a session, at most.
    pub turns: u64,
    /// Between two requests of a session, on average.
    pub pause: Millis,
}

/// Models are named `m000`, `m001` …; the first is asked for most, the n-th 1/n as often.
pub fn agents(shape: Agents, seed: u64) -> Vec<Request> {
    let mut random = Random::new(seed);
    let popularity: Vec<u64> = (1..=shape.models as u64).map(|rank| 1_000_000 / rank).collect();
    let mut requests = Vec::new();
    let mut begin = 0;
    for session in 0..shape.sessions {
        begin += random.interval(shape.every.get());
        let model = ModelId::new(format!("m{:03}", random.weighted(&popularity)));
        let owner = OwnerId::new(format!("o{}", random.below(shape.owners)));
        let mut at = begin;
        let mut input = random.between(500, 8000);
        for _ in 0..random.between(1, shape.turns) {
            let output = random.between(50, 600);
            requests.push(Request {
                at: Millis::new(at),
                model: model.clone(),
                owner: owner.clone(),
                session,
                input: u32::try_from(input).unwrap_or(u32::MAX),
                output: u32::try_from(output).unwrap_or(u32::MAX),
                patience: None,
            });
            input += output + random.between(100, 1500);
            at += random.interval(shape.pause.get());
        }
    }
    requests.sort_by_key(|request| request.at);
    requests
}

/// Two models asked for in turn without a pause, of which a device has room for one.
pub fn in_turn(requests: u64, every: Millis) -> Vec<Request> {
    let request = |nth: u64| Request {
        at: every.times(nth),
        model: ModelId::new(format!("m{:03}", nth % 2)),
        owner: OwnerId::new(format!("o{}", nth % 2)),
        session: nth % 2,
        input: 1000,
        output: 400,
        patience: None,
    };
    (0..requests).map(request).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_line_by_line_and_a_mistake_has_its_line() {
        let text = "{\"timestamp\": 20, \"model\": \"a\", \"input_length\": 5, \"output_length\": 6, \"hash_ids\": [3, 4]}\n\n\
                    {\"timestamp\": 10, \"model\": \"b\", \"input_length\": 1, \"output_length\": 2, \"session_id\": 9}\n";
        let requests = parse(text).unwrap();
        let seen: Vec<_> = requests.iter().map(|one| (one.at.get(), one.model.as_str(), one.session)).collect();
        assert_eq!(seen, [(10, "b", 9), (20, "a", 3)]);
        assert_eq!(parse("{}\n").unwrap_err().line, 1);
    }

    #[test]
    fn the_first_model_is_asked_for_most_and_sessions_stay_with_theirs() {
        let shape =
            Agents { models: 20, owners: 3, sessions: 500, every: Millis::secs(5), turns: 6, pause: Millis::secs(20) };
        let trace = agents(shape, 1);
        let of = |model: &str| trace.iter().filter(|one| one.model.as_str() == model).count();
        assert!(of("m000") > 3 * of("m009"));
        assert!(trace.is_sorted_by_key(|one| one.at));
        assert_eq!(trace, agents(shape, 1));
        assert_ne!(trace, agents(shape, 2));
    }
}
