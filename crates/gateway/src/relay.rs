//! The body of a streamed answer: each piece goes on as it came. It ends with the target's stream, with a silence that is too
//! long, or when the caller hangs up; then the connection to the target is closed, which ends the work for it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
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
    /// `None`: what is left is in `next`, or nothing is.
    body: Option<Incoming>,
    carrier: Carrier,
    next: Option<Bytes>,
    passage: Passage,
    between_chunks: Duration,
    until: Instant,
    last: Instant,
    /// Fires when a silence may be too long; setting it anew for each piece would cost more than the piece.
    alarm: Pin<Box<Sleep>>,
}

impl Relay {
    pub(crate) fn new(body: Incoming, carrier: Carrier, first: Bytes, passage: Passage, timeouts: &Timeouts) -> Self {
        let now = Instant::now();
        let until = now + timeouts.total;
        let alarm = Box::pin(tokio::time::sleep_until(until.min(now + timeouts.between_chunks)));
        let between_chunks = timeouts.between_chunks;
        Self { body: Some(body), carrier, next: Some(first), passage, between_chunks, until, last: now, alarm }
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
        let usage = self.carrier.usage();
        match self.carrier.standing() {
            Standing::Ended => self.passage.complete(usage),
            Standing::Going | Standing::Failed(_) => self.passage.failed(usage),
        }
        (!rest.is_empty()).then_some(rest)
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Some(next) = this.next.take() {
            return Poll::Ready(Some(Ok(Frame::data(next))));
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
                return Poll::Ready(this.close(rest).map(|rest| Ok(Frame::data(rest))));
            };
            let rest = match frame {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    this.last = Instant::now();
                    let out = this.carrier.push(data);
                    this.passage.piece(this.carrier.usage());
                    if this.carrier.has_failed() {
                        // The rest is said with the next poll, and nothing more is read.
                        let rest = this.carrier.finish();
                        this.next = this.close(rest);
                    }
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                    match this.next.take() {
                        Some(rest) => return Poll::Ready(Some(Ok(Frame::data(rest)))),
                        None => continue,
                    }
                }
                Some(Err(_)) | None => this.carrier.finish(),
            };
            return Poll::Ready(this.close(rest).map(|rest| Ok(Frame::data(rest))));
        }
    }
}
