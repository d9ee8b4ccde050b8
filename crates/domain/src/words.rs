//! What a model says while it says it: pieces for people who watch, kept nowhere.
//!
//! They are shown before anybody could read them whole, so whatever may become a secret by what follows is held back.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::secret::{self, KnownSecrets};

/// What a piece is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Voice {
    /// Thought before the answer, where a provider tells.
    Thought,
    Said,
    /// The name of a tool that is called; its arguments follow.
    Call,
    Arguments,
}

/// Foreign text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub voice: Voice,
    pub text: String,
}

impl Piece {
    pub fn new(voice: Voice, text: impl Into<String>) -> Self {
        Self { voice, text: text.into() }
    }
}

/// Of what has passed, so much is still looked at: the beginning of what gives a secret away may be in it, as a URL's scheme.
const BEFORE_BYTES: usize = 64;

/// What may be held; a beginning of a secret that goes on for longer, as with blanks without end, hides the rest.
const MAX_HELD_BYTES: usize = 64 * 1024;

/// Whether a piece goes on where the one before it ended. Each call is one of its own.
pub fn joins(last: Voice, next: Voice) -> bool {
    last == next && next != Voice::Call
}

/// Stands between one model call and whoever watches it. Once a secret was found, nothing more of the call passes.
#[derive(Debug, Default)]
pub struct Veil {
    /// The end of what has passed.
    before: String,
    held: VecDeque<Piece>,
    drawn: bool,
}

impl Veil {
    /// What may be shown now of all that has come. The rest is held until it is known to be harmless, and in the end stays hidden:
    /// then the journal has it.
    pub fn pass(&mut self, known: &KnownSecrets, pieces: impl IntoIterator<Item = Piece>) -> Vec<Piece> {
        if self.drawn {
            return Vec::new();
        }
        self.held.extend(pieces.into_iter().filter(|piece| !piece.text.is_empty()));
        let held = self.held.iter().map(|piece| piece.text.as_str());
        let text: String = std::iter::once(self.before.as_str()).chain(held).collect();
        if text.len() > MAX_HELD_BYTES || !secret::scan(known, "words", &text).is_empty() {
            self.drawn = true;
            self.held.clear();
            return Vec::new();
        }
        let upto = secret::settled(known, &text).max(self.before.len());
        let shown = self.release(upto - self.before.len());
        let from = text[..upto].ceil_char_boundary(upto.saturating_sub(BEFORE_BYTES));
        text[from..upto].clone_into(&mut self.before);
        shown
    }

    /// A secret was found.
    pub fn is_drawn(&self) -> bool {
        self.drawn
    }

    /// The first `bytes` of what is held.
    fn release(&mut self, bytes: usize) -> Vec<Piece> {
        let (mut shown, mut left) = (Vec::new(), bytes);
        while let Some(first) = self.held.front_mut() {
            if first.text.len() > left {
                let rest = first.text.split_off(left);
                let voice = first.voice;
                let begun = std::mem::replace(first, Piece::new(voice, rest));
                if !begun.text.is_empty() {
                    shown.push(begun);
                }
                break;
            }
            left -= first.text.len();
            shown.extend(self.held.pop_front());
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CANARY: &str = "canary-7f@d9b!e2#4a1|8x";

    fn known() -> KnownSecrets {
        KnownSecrets::new([("webhook", CANARY)])
    }

    /// What is seen of `text` when it comes in pieces of `size` characters.
    fn seen(text: &str, size: usize) -> (String, bool) {
        let (known, mut veil, mut seen) = (known(), Veil::default(), String::new());
        let chars: Vec<char> = text.chars().collect();
        for (at, piece) in chars.chunks(size).enumerate() {
            let voice = if at % 3 == 0 { Voice::Said } else { Voice::Arguments };
            let shown = veil.pass(&known, [Piece::new(voice, piece.iter().collect::<String>())]);
            seen.extend(shown.into_iter().map(|piece| piece.text));
        }
        (seen, veil.is_drawn())
    }

    #[test]
    fn plain_words_pass_at_once_and_in_order() {
        let mut veil = Veil::default();
        let pieces = [Piece::new(Voice::Said, "Let me look. "), Piece::new(Voice::Call, "view")];
        assert_eq!(veil.pass(&known(), pieces.clone()), pieces);
        assert_eq!(seen("An honest summary of the change.", 1).0, "An honest summary of the change.");
    }

    #[test]
    fn of_a_secret_in_pieces_not_even_the_beginning_is_seen() {
        let token = format!("ghp_{}", "a1B2".repeat(9));
        let url = "https://ada:swordfish-77@example.org".to_owned();
        let hex = hex::encode(CANARY);
        let spread: String = CANARY.chars().map(|c| format!("{c}\n")).collect();
        for hidden in [CANARY.to_owned(), token, url, hex, spread] {
            for size in [1, 2, 7, 500] {
                let (seen, drawn) = seen(&format!("It is: {hidden} and more of it"), size);
                assert!(drawn, "{hidden:?} in pieces of {size}");
                assert!("It is: https".starts_with(&seen), "{seen:?} of {hidden:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn what_only_begins_like_a_secret_is_shown_when_it_goes_on_otherwise() {
        let text = format!("canary-7f is a bird. The token is not in {}", "the file ".repeat(40));
        let (seen, drawn) = seen(&text, 3);
        assert!(!drawn && text.starts_with(&seen) && seen.len() + 20 > text.len(), "{seen}");
    }

    #[test]
    fn what_is_held_has_an_end() {
        let (known, mut veil) = (known(), Veil::default());
        let blanks = |veil: &mut Veil| veil.pass(&known, [Piece::new(Voice::Said, " ".repeat(16 * 1024))]);
        veil.pass(&known, [Piece::new(Voice::Said, "the key is")]);
        assert!(blanks(&mut veil).is_empty() && !veil.is_drawn());
        (0..4).for_each(|_| drop(blanks(&mut veil)));
        assert!(veil.is_drawn() && veil.held.is_empty());
    }

    proptest! {
        #[test]
        fn no_piece_of_a_known_secret_longer_than_a_few_letters_is_seen(
            before in "[a-z \n]{0,60}", after in "[a-z \n]{0,60}", size in 1usize..40,
        ) {
            let (seen, drawn) = seen(&format!("{before}{CANARY}{after}"), size);
            prop_assert!(drawn);
            prop_assert!(before.starts_with(&seen), "{:?}", seen);
        }
    }
}
