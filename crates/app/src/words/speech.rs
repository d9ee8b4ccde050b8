//! The Run's side: takes pieces as they stream, and tells them a few times a second.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fettle_domain::id::TaskId;
use fettle_domain::lease::LeaseRef;
use fettle_domain::words::{Piece, Voice, joins};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{MAX_TOLD_BYTES, MAX_TOLD_PIECES};
use crate::ports::ledger::LedgerError;
use crate::ports::words::{Heard, Listen, Words};

/// Of one call. The longest answers are files of some tens of kilobytes; of a longer one the beginning is told.
const MAX_CALL_BYTES: usize = 128 * 1024;
/// Between two tellings: people see no difference, and a worker's link to its dashboard hardly notices.
const PAUSE: Duration = Duration::from_millis(300);
/// Nobody waits for an answer for longer.
const TELL_LIMIT: Duration = Duration::from_secs(3);
/// After one that did not come.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// A piece grows no further, so that what is asked for again is little.
const PIECE_BYTES: usize = 2 * 1024;

/// The words of one Run. Taking them costs a copy and waits for nobody.
#[derive(Debug, Default)]
pub struct Speech {
    saying: Mutex<Saying>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Saying {
    call: u32,
    step: u32,
    pieces: Vec<Piece>,
    bytes: usize,
    /// Pieces that were told and stay as they are.
    sealed: usize,
    over: bool,
}

/// What the listener has.
#[derive(Debug, Default)]
struct Place {
    call: u32,
    known: usize,
    over: bool,
}

impl Speech {
    /// A model call begins, which will be the step of this number. What was said before is forgotten.
    pub fn begin(&self, step: u32) {
        let mut saying = self.lock();
        *saying = Saying { call: saying.call + 1, step, ..Saying::default() };
    }

    pub fn say(&self, voice: Voice, text: &str) {
        let mut saying = self.lock();
        let room = MAX_CALL_BYTES.saturating_sub(saying.bytes);
        if text.is_empty() || text.len() > room {
            // Whatever comes after a gap would be read as its beginning.
            saying.bytes = if text.is_empty() { saying.bytes } else { MAX_CALL_BYTES };
            return;
        }
        saying.bytes += text.len();
        let open = saying.pieces.len() > saying.sealed;
        match saying.pieces.last_mut() {
            Some(last) if open && joins(last.voice, voice) && last.text.len() + text.len() <= PIECE_BYTES => {
                last.text.push_str(text);
            }
            _ => {
                let mut rest = text;
                while !rest.is_empty() {
                    let (piece, more) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
                    saying.pieces.push(Piece::new(voice, piece));
                    rest = more;
                }
            }
        }
        self.news.notify_one();
    }

    /// The call has ended; the journal will have it.
    pub fn end(&self) {
        self.lock().over = true;
        self.news.notify_one();
    }

    /// Tells `listener` for as long as it is polled, and never has an effect on the Run.
    pub async fn tell(&self, lease: LeaseRef, task: TaskId, listener: &dyn Listen) -> Infallible {
        let mut place = Place::default();
        loop {
            self.news.notified().await;
            while let Some(words) = self.next(lease, task, &mut place) {
                let over = words.over;
                match timeout(TELL_LIMIT, listener.hear(words)).await {
                    Ok(Ok(Heard::Has(known))) => {
                        place.known = known as usize;
                        place.over = over;
                        sleep(PAUSE).await;
                    }
                    // Not ours any more, or a dashboard of before there were words: nobody will listen to this lease.
                    Ok(Ok(Heard::Stale) | Err(LedgerError::NotFound(_) | LedgerError::Invalid(_))) => {
                        debug!(job.id = %lease.job, "nobody listens to what the model says");
                        std::future::pending::<()>().await;
                    }
                    Ok(Err(_)) | Err(_) => sleep(PAUSE_AFTER_FAILURE).await,
                }
            }
        }
    }

    /// What the listener does not have yet.
    fn next(&self, lease: LeaseRef, task: TaskId, place: &mut Place) -> Option<Words> {
        let mut saying = self.lock();
        if place.call != saying.call {
            *place = Place { call: saying.call, ..Place::default() };
        }
        let from = place.known.min(saying.pieces.len());
        let mut bytes = 0;
        let pieces: Vec<Piece> = saying.pieces[from..]
            .iter()
            .take(MAX_TOLD_PIECES)
            .take_while(|piece| {
                bytes += piece.text.len();
                bytes <= MAX_TOLD_BYTES
            })
            .cloned()
            .collect();
        let upto = from + pieces.len();
        let over = saying.over && upto == saying.pieces.len();
        if pieces.is_empty() && (!over || place.over) {
            return None;
        }
        saying.sealed = saying.sealed.max(upto);
        let from = u32::try_from(from).unwrap_or(u32::MAX);
        Some(Words { lease, task, call: saying.call, step: saying.step, from, pieces, over })
    }

    fn lock(&self) -> MutexGuard<'_, Saying> {
        self.saying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use fettle_domain::id::JobId;
    use fettle_domain::lease::Fence;
    use tokio::time::Instant;
    use uuid::Uuid;

    use super::*;
    use crate::ports::ledger::L;

    /// Is away at first, and then has all that comes in order.
    struct Listener {
        away: Mutex<u32>,
        has: Mutex<Vec<Words>>,
    }

    impl Listener {
        fn away(times: u32) -> Self {
            Self { away: Mutex::new(times), has: Mutex::default() }
        }

        fn pieces(&self) -> Vec<Piece> {
            self.has.lock().unwrap().iter().flat_map(|words| words.pieces.clone()).collect()
        }
    }

    #[async_trait]
    impl Listen for Listener {
        async fn hear(&self, words: Words) -> L<Heard> {
            let mut away = self.away.lock().unwrap();
            if *away > 0 {
                *away -= 1;
                return Err(LedgerError::Unavailable("away".to_owned()));
            }
            let mut has = self.has.lock().unwrap();
            let of_call = has.iter().filter(|old| old.call == words.call);
            let known: u32 = of_call.map(|old| u32::try_from(old.pieces.len()).unwrap()).sum();
            if words.from != known {
                return Ok(Heard::Has(known));
            }
            let known = known + u32::try_from(words.pieces.len()).unwrap();
            has.push(words);
            Ok(Heard::Has(known))
        }
    }

    fn lease() -> LeaseRef {
        LeaseRef { job: JobId::from_uuid(Uuid::from_u128(1)), fence: Fence::new(1) }
    }

    async fn told(speech: &Speech, listener: &Listener, lasting: Duration) {
        let telling = speech.tell(lease(), TaskId::from_uuid(Uuid::from_u128(2)), listener);
        assert!(timeout(lasting, telling).await.is_err(), "it is told for as long as it is polled");
    }

    #[tokio::test(start_paused = true)]
    async fn words_are_gathered_and_what_was_not_heard_is_told_again() {
        let (speech, listener) = (Speech::default(), Listener::away(2));
        speech.begin(7);
        for word in ["Let ", "me ", "look."] {
            speech.say(Voice::Said, word);
        }
        speech.say(Voice::Call, "view");
        speech.say(Voice::Call, "bash");
        speech.end();
        told(&speech, &listener, Duration::from_secs(30)).await;
        let has = listener.has.lock().unwrap();
        let [words] = has.as_slice() else { panic!("{has:?}") };
        let pieces = ["Let me look.", "view", "bash"];
        assert_eq!(words.pieces.iter().map(|piece| piece.text.as_str()).collect::<Vec<_>>(), pieces);
        assert_eq!((words.step, words.from, words.over), (7, 0, true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_end_is_told_in_parts_as_far_as_there_is_room() {
        let (speech, listener) = (Speech::default(), Listener::away(0));
        speech.begin(0);
        let long = "ü".repeat(5_000);
        for _ in 0..100 {
            speech.say(Voice::Arguments, &long);
        }
        let began = Instant::now();
        told(&speech, &listener, Duration::from_secs(60)).await;
        let bytes: usize = listener.pieces().iter().map(|piece| piece.text.len()).sum();
        assert!((MAX_CALL_BYTES - long.len()..=MAX_CALL_BYTES).contains(&bytes), "{bytes}");
        let has = listener.has.lock().unwrap();
        let of_words = |words: &Words| words.pieces.iter().map(|piece| piece.text.len()).sum::<usize>();
        assert!(has.iter().all(|words| of_words(words) <= MAX_TOLD_BYTES && words.pieces.len() <= MAX_TOLD_PIECES));
        assert!(has.len() >= MAX_CALL_BYTES / MAX_TOLD_BYTES && began.elapsed() >= Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_call_begins_from_its_own_start() {
        let (speech, listener) = (Speech::default(), Listener::away(0));
        speech.begin(1);
        speech.say(Voice::Said, "first");
        told(&speech, &listener, Duration::from_secs(2)).await;
        speech.end();
        speech.begin(2);
        speech.say(Voice::Thought, "second");
        told(&speech, &listener, Duration::from_secs(2)).await;
        let has = listener.has.lock().unwrap();
        let seen: Vec<_> = has.iter().map(|words| (words.call, words.step, words.from)).collect();
        assert_eq!(seen, [(1, 1, 0), (2, 2, 0)]);
    }
}
