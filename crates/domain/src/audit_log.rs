//! The log of what was done and by whom: each entry's digest covers the one before, so that none can be changed, taken out or
//! put in without the rest showing it.
//!
//! Whoever can write the whole table can make a new chain; against that only a copy of a newer digest elsewhere helps.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::unseen::is_hidden;

/// Bytes of one text of an entry: parts come from whoever asks, and the log keeps them for ever.
pub const MAX_TEXT_BYTES: usize = 512;

/// What the first entry follows.
pub const BEGINNING: [u8; 32] = [0; 32];

/// What happened, before it has its place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// A user name, or `unknown`: what was given instead of a name may be a password.
    pub actor: String,
    /// `login`, `users.change`, …
    pub action: String,
    /// Which user, session, key or Task; empty if none.
    pub object: String,
    pub address: String,
    /// `done` or `refused`.
    pub result: String,
    pub detail: String,
}

impl Note {
    /// Its texts as they are kept: short, and without anything that a terminal or a line of a file would act upon.
    #[must_use]
    pub fn tidied(self) -> Self {
        let Self { actor, action, object, address, result, detail } = self;
        let [actor, action, object, address, result, detail] =
            [actor, action, object, address, result, detail].map(|text| tidy(&text, MAX_TEXT_BYTES));
        Self { actor, action, object, address, result, detail }
    }
}

/// `text` in one line of characters that are seen and leave their neighbours where they are, cut to `max_bytes`.
pub fn tidy(text: &str, max_bytes: usize) -> String {
    let mut tidied = String::new();
    let turns_lines = |one: char| matches!(one, '\u{2028}' | '\u{2029}');
    for one in text
        .chars()
        .filter(|one| !is_hidden(*one) && !turns_lines(*one))
        .map(|one| if one.is_control() { ' ' } else { one })
    {
        if tidied.len() + one.len_utf8() > max_bytes {
            break;
        }
        tidied.push(one);
    }
    tidied
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1, without gaps.
    pub sequence: u64,
    pub at: Timestamp,
    #[serde(flatten)]
    pub note: Note,
    /// Of this entry and the digest before it.
    #[serde(with = "hex::serde")]
    pub digest: [u8; 32],
}

/// The last entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub sequence: u64,
    pub digest: [u8; 32],
}

impl Head {
    pub const EMPTY: Self = Self { sequence: 0, digest: BEGINNING };

    /// The entry that follows.
    pub fn append(self, at: Timestamp, note: Note) -> Entry {
        let (sequence, at, note) = (self.sequence + 1, whole_micros(at), note.tidied());
        let digest = digest(self.digest, sequence, at, &note);
        Entry { sequence, at, note, digest }
    }

    /// The head after `entry`, if that is what follows.
    pub fn follow(self, entry: &Entry) -> Result<Self, Broken> {
        let expected = digest(self.digest, entry.sequence, entry.at, &entry.note);
        // The digest is of microseconds, and stores keep no more: an entry that says more is none of them.
        let exact = entry.at == whole_micros(entry.at);
        if entry.sequence != self.sequence + 1 || entry.digest != expected || !exact {
            return Err(Broken { sequence: self.sequence + 1 });
        }
        Ok(Self { sequence: entry.sequence, digest: entry.digest })
    }
}

fn whole_micros(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log is not what was written from entry {sequence} on")]
pub struct Broken {
    pub sequence: u64,
}

/// Whether `entries` follow `head` one by one.
pub fn verify<'e>(head: Head, entries: impl IntoIterator<Item = &'e Entry>) -> Result<Head, Broken> {
    entries.into_iter().try_fold(head, Head::follow)
}

/// Every part with its length before it, so that moving a character from one part to the next makes another digest.
fn digest(before: [u8; 32], sequence: u64, at: Timestamp, note: &Note) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"fettle audit log 1\0");
    hash.update(before);
    hash.update(sequence.to_be_bytes());
    hash.update(at.as_microsecond().to_be_bytes());
    for part in [&note.actor, &note.action, &note.object, &note.address, &note.result, &note.detail] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn notes() -> impl Strategy<Value = Vec<Note>> {
        let note = proptest::array::uniform6(".{0,12}").prop_map(|[actor, action, object, address, result, detail]| {
            Note { actor, action, object, address, result, detail }
        });
        proptest::collection::vec(note, 2..12)
    }

    fn chain(notes: Vec<Note>) -> (Vec<Entry>, Head) {
        let mut head = Head::EMPTY;
        let mut entries = Vec::new();
        for (second, note) in (0i64..).zip(notes) {
            let entry = head.append(Timestamp::from_second(second).unwrap(), note);
            head = head.follow(&entry).unwrap();
            entries.push(entry);
        }
        (entries, head)
    }

    proptest! {
        #[test]
        fn what_was_written_verifies_and_travels(notes in notes()) {
            let (entries, head) = chain(notes);
            prop_assert_eq!(verify(Head::EMPTY, &entries), Ok(head));
            let lines: Vec<String> = entries.iter().map(|entry| serde_json::to_string(entry).unwrap()).collect();
            let back: Vec<Entry> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
            prop_assert_eq!(verify(Head::EMPTY, &back), Ok(head));
        }

        #[test]
        fn any_change_is_seen_where_it_is(notes in notes(), which in any::<prop::sample::Index>(), how in 0..9) {
            let (mut entries, _) = chain(notes);
            let which = which.index(entries.len());
            let entry = &mut entries[which];
            let note = &mut entry.note;
            match how {
                0 => note.actor.push('x'),
                1 => note.action.push('x'),
                2 => note.object.push('x'),
                3 => note.address.push('x'),
                4 => note.result.push('x'),
                5 => note.detail.push('x'),
                6 => entry.at = entry.at.checked_add(jiff::SignedDuration::from_micros(1)).unwrap(),
                7 => entry.at = entry.at.checked_add(jiff::SignedDuration::from_nanos(1)).unwrap(),
                _ => entry.digest[0] ^= 1,
            }
            let broken = verify(Head::EMPTY, &entries).map_err(|broken| broken.sequence);
            prop_assert_eq!(broken, Err(which as u64 + 1));
        }

        #[test]
        fn one_taken_out_or_moved_is_seen(notes in notes(), which in any::<prop::sample::Index>()) {
            let (entries, head) = chain(notes);
            let which = which.index(entries.len());
            let mut without = entries.clone();
            without.remove(which);
            // The last one's absence is told by the head alone.
            prop_assert_ne!(verify(Head::EMPTY, &without), Ok(head));
            let mut moved = entries;
            let other = (which + 1) % moved.len();
            moved.swap(which, other);
            prop_assert!(verify(Head::EMPTY, &moved).is_err());
        }

        #[test]
        fn kept_texts_are_short_and_in_one_line(text in "\\PC{0,300}|[\\x00-\\x1f]{0,700}") {
            let tidied = tidy(&text, MAX_TEXT_BYTES);
            prop_assert!(tidied.len() <= MAX_TEXT_BYTES && !tidied.chars().any(char::is_control));
            prop_assert_eq!(tidy(&tidied, MAX_TEXT_BYTES), tidied);
        }
    }

    #[test]
    fn nothing_that_turns_text_around_or_is_not_seen_is_kept() {
        assert_eq!(
            tidy("Mo\u{202e}zilla\u{200b}\u{feff}/5.0\u{2066} (\u{e0041}X\u{2028}11)", 100),
            "Mozilla/5.0 (X11)"
        );
    }

    #[test]
    fn what_a_clock_says_beyond_microseconds_is_cut_before_it_is_kept() {
        let at = Timestamp::from_nanosecond(1_234_567_890_123).unwrap();
        let note = notes_of("x");
        let entry = Head::EMPTY.append(at, note);
        assert_eq!(entry.at, Timestamp::from_microsecond(1_234_567_890).unwrap());
        assert!(Head::EMPTY.follow(&entry).is_ok());
    }

    fn notes_of(action: &str) -> Note {
        let empty = String::new;
        Note {
            actor: empty(),
            action: action.into(),
            object: empty(),
            address: empty(),
            result: empty(),
            detail: empty(),
        }
    }

    #[test]
    fn moving_text_from_one_part_to_the_next_is_another_entry() {
        let note = |actor: &str, action: &str| Note {
            actor: actor.into(),
            action: action.into(),
            object: String::new(),
            address: String::new(),
            result: String::new(),
            detail: String::new(),
        };
        let at = Timestamp::UNIX_EPOCH;
        assert_ne!(Head::EMPTY.append(at, note("ab", "c")).digest, Head::EMPTY.append(at, note("a", "bc")).digest);
    }
}
