//! Keeps a conversation inside the model's window by shortening what is oldest. Pure, so that a replay does the same.

use fettle_app::ports::model::Message;

/// The largest working context, whatever window a model claims.
const MAX_WORKING_TOKENS: u64 = 96_000;
/// Above this share of the working context something is shortened.
const SHORTEN_ABOVE: f64 = 0.70;
/// What is aimed at.
const TARGET: f64 = 0.50;
/// The newest observations stay whole.
const KEEP_NEWEST: usize = 10;
/// Characters that a shortened observation keeps.
const KEPT_CHARS: usize = 160;
/// Characters a token, on the safe side for code.
const CHARS_PER_TOKEN: u64 = 3;

/// `min(75 % of the window, 96k)` tokens.
pub(crate) fn working_context(window_tokens: u64) -> u64 {
    (window_tokens * 3 / 4).min(MAX_WORKING_TOKENS)
}

/// An estimate on the safe side; usage reports correct the budget afterwards.
pub(crate) fn estimate_tokens(messages: &[Message]) -> u64 {
    messages.iter().map(chars).sum::<u64>() / CHARS_PER_TOKEN
}

/// Shortens old observations until the conversation is near its target; `true` when something was shortened.
pub(crate) fn fit(messages: &mut [Message], working_tokens: u64) -> bool {
    let above = |share: f64, messages: &[Message]| estimate_tokens(messages) as f64 > working_tokens as f64 * share;
    if !above(SHORTEN_ABOVE, messages) {
        return false;
    }
    let observations: Vec<usize> = (2..messages.len()).filter(|at| is_observation(&messages[*at])).collect();
    let old = observations.len().saturating_sub(KEEP_NEWEST);
    let mut shortened = false;
    for at in &observations[..old] {
        if !above(TARGET, messages) {
            break;
        }
        shortened |= shorten(&mut messages[*at]);
    }
    shortened
}

fn chars(message: &Message) -> u64 {
    let count = match message {
        Message::System { text } | Message::User { text } | Message::Tool { text, .. } => text.len(),
        Message::Assistant { text, calls } => {
            text.len() + calls.iter().map(|c| c.name.len() + c.arguments.to_string().len()).sum::<usize>()
        }
    };
    count as u64
}

fn is_observation(message: &Message) -> bool {
    match message {
        Message::Tool { .. } => true,
        Message::User { text } => text.starts_with("<result "),
        Message::System { .. } | Message::Assistant { .. } => false,
    }
}

fn shorten(message: &mut Message) -> bool {
    let (Message::Tool { text, .. } | Message::User { text }) = message else { return false };
    if text.len() <= KEPT_CHARS * 2 {
        return false;
    }
    let head: String = text.chars().take(KEPT_CHARS).collect();
    let line = head.lines().next().unwrap_or_default().to_owned();
    *text = format!("{line}\n[… an older result, shortened; call the tool again if you need it]");
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(n: usize) -> Message {
        Message::Tool { call_id: n.to_string(), text: format!("result {n}\n{}", "x".repeat(3000)) }
    }

    #[test]
    fn old_observations_shrink_first_and_rules_task_and_newest_stay_whole() {
        let mut messages =
            vec![Message::System { text: "rules".repeat(100) }, Message::User { text: "task".repeat(1000) }];
        messages.extend((0..30).map(tool));
        let before = messages.clone();
        assert!(fit(&mut messages, 20_000));
        assert_eq!(messages[..2], before[..2]);
        assert_eq!(messages[22..], before[22..]);
        assert!(matches!(&messages[2], Message::Tool { text, .. } if text.starts_with("result 0\n[…")));
        assert!(estimate_tokens(&messages) < estimate_tokens(&before) / 2 + 3000);
    }

    #[test]
    fn a_short_conversation_is_left_alone() {
        let mut messages = vec![tool(1), tool(2)];
        assert!(!fit(&mut messages, 96_000));
    }
}
