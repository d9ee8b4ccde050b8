//! The body of a streamed answer: each piece goes on as it came. It ends with the target's stream, with a silence that is too
//! long, or when the caller hangs up; then the connection to the target is closed, which ends the work for it.
//!
//! A server asks for the next piece only when its caller has taken the last ones, so whoever takes nothing is never heard of
//! here. [`Streams`] looks after all of them from outside.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fettle_protocols::Failure;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::carrier::{Carrier, Standing};
use crate::passage::Passage;
use crate::settings::Timeouts;

pub(crate) struct Relay {
    stream: Arc<Mutex<Stream>>,
}

/// All answers that are under way.
#[derive(Default)]
pub(crate) struct Streams {
    open: Mutex<Vec<Weak<Mutex<Stream>>>>,
}

struct Stream {
    /// `None`: what is left is in `next`, or nothing is.
    body: Option<Incoming>,
    carrier: Carrier,
    next: Option<Bytes>,
    passage: Passage,
    between_chunks: Duration,
    unread: Duration,
    until: Instant,
    last: Instant,
    /// Since when the caller was given a piece and has asked for no other one.
    untaken: Option<Instant>,
    /// Whoever waits for the next piece.
    waits: Option<Waker>,
    /// Fires when a silence may be too long; setting it anew for each piece would cost more than the piece.
    alarm: Pin<Box<Sleep>>,
}

impl Streams {
    pub(crate) fn relay(
        &self,
        body: Incoming,
        carrier: Carrier,
        first: Bytes,
        passage: Passage,
        timeouts: &Timeouts,
    ) -> Relay {
        let now = Instant::now();
        let until = now + timeouts.total;
        let stream = Stream {
            body: Some(body),
            carrier,
            next: Some(first),
            passage,
            between_chunks: timeouts.between_chunks,
            unread: timeouts.unread,
            until,
            last: now,
            untaken: Some(now),
            waits: None,
            alarm: Box::pin(tokio::time::sleep_until(until.min(now + timeouts.between_chunks))),
        };
        let stream = Arc::new(Mutex::new(stream));
        self.open().push(Arc::downgrade(&stream));
        Relay { stream }
    }

    /// Ends those that may not go on.
    pub(crate) fn look(&self, now: Instant) {
        let mut open = Vec::new();
        self.open().retain(|stream| stream.upgrade().map(|stream| open.push(stream)).is_some());
        open.iter().for_each(|stream| lock(stream).look(now));
    }

    fn open(&self) -> MutexGuard<'_, Vec<Weak<Mutex<Stream>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(stream: &Mutex<Stream>) -> MutexGuard<'_, Stream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    fn look(&mut self, now: Instant) {
        if self.body.is_none() {
            return;
        }
        let unread = self.untaken.is_some_and(|since| now.saturating_duration_since(since) >= self.unread);
        let slow = |sentence: &str| Failure::UpstreamSlow { sentence: sentence.to_owned() };
        let failure = if unread {
            slow("The answer was not read for too long.")
        } else if now >= self.until {
            slow("The answer has taken too long.")
        } else if let Some(forbidden) = self.passage.forbidden() {
            forbidden
        } else {
            return;
        };
        self.body = None;
        self.passage.cut_off();
        // What was not taken yet goes before.
        let rest = self.carrier.fail(failure);
        self.next = Some([self.next.take().unwrap_or_default(), rest].concat().into());
        if let Some(waits) = self.waits.take() {
            waits.wake();
        }
    }

    /// True: the stream has lasted too long, or been silent for too long.
    fn is_overdue(&mut self, context: &mut Context<'_>) -> bool {
        while self.alarm.as_mut().poll(context).is_ready() {
            let due = self.until.min(self.last + self.between_chunks);
            if Instant::now() >= due {
                return true;
            }
            self.alarm.as_mut().reset(due);
        }
        false
    }

    fn close(&mut self, rest: Bytes) -> Option<Bytes> {
        self.body = None;
        match self.carrier.standing() {
            Standing::Ended => self.passage.complete(&self.carrier),
            Standing::Going | Standing::Failed(_) => self.passage.failed(&self.carrier),
        }
        (!rest.is_empty()).then_some(rest)
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut stream = lock(&self.stream);
        let polled = stream.poll_piece(context);
        let waits = polled.is_pending();
        stream.untaken = (!waits).then(Instant::now);
        stream.waits = waits.then(|| context.waker().clone());
        polled.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

impl Stream {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let this = self;
        if let Some(next) = this.next.take() {
            return Poll::Ready(Some(next));
        }
        loop {
            let Some(body) = this.body.as_mut() else { return Poll::Ready(None) };
            let Poll::Ready(frame) = Pin::new(body).poll_frame(context) else {
                if !this.is_overdue(context) {
                    return Poll::Pending;
                }
                let sentence = "The model's server fell silent in the middle of its answer.".to_owned();
                let rest = match this.carrier.standing() {
                    Standing::Ended => this.carrier.finish(),
                    Standing::Going | Standing::Failed(_) => this.carrier.fail(Failure::UpstreamSlow { sentence }),
                };
                return Poll::Ready(this.close(rest));
            };
            let rest = match frame {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    this.last = Instant::now();
                    let out = this.carrier.push(data);
                    this.passage.piece(&this.carrier);
                    if this.carrier.has_failed() {
                        // The rest is said with the next poll, and nothing more is read.
                        let rest = this.carrier.finish();
                        this.next = this.close(rest);
                    }
                    if !out.is_empty() {
                        return Poll::Ready(Some(out));
                    }
                    match this.next.take() {
                        Some(rest) => return Poll::Ready(Some(rest)),
                        None => continue,
                    }
                }
                Some(Err(_)) | None => this.carrier.finish(),
            };
            return Poll::Ready(this.close(rest));
        }
    }
}
