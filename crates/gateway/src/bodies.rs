//! The bodies of requests while they are here: each has a size and a time, and all of them together have a room.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use fettle_protocols::Failure;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Of a request for a model. Images travel inside it.
pub(crate) const BODY_LIMIT: usize = 32 << 20;
/// Of a question about one model.
pub(crate) const SMALL_BODY: usize = 16 * 1024;
/// A caller that sends its request slower than this is none.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Room is given out in pieces of so many bytes.
const UNIT: usize = 1 << 10;
/// Places go back within milliseconds, as soon as answers begin.
const SOON: Duration = Duration::from_secs(1);

/// The room for all bodies that are on their way to an answer.
pub(crate) struct Bodies {
    room: Arc<Semaphore>,
}

/// A whole body; its room is given back with it.
pub(crate) struct Kept {
    pub(crate) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(most_bytes.div_ceil(UNIT).min(Semaphore::MAX_PERMITS))) }
    }

    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body, limit: usize) -> Result<Kept, Failure> {
        let said = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if said.is_some_and(|bytes| bytes > limit) {
            return Err(too_large(limit));
        }
        timeout(BODY_TIME, self.gather(body, said.unwrap_or(0), limit)).await.unwrap_or_else(|_| Err(not_whole()))
    }

    /// Room is taken for what has come, not for what is announced, so that a caller that sends nothing takes nothing.
    async fn gather(&self, mut body: Body, said: usize, limit: usize) -> Result<Kept, Failure> {
        let mut whole = BytesMut::with_capacity(said.min(limit));
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| not_whole())?.into_data() else { continue };
            let bytes = whole.len() + data.len();
            if bytes > limit {
                return Err(too_large(limit));
            }
            let has = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            if let more @ 1.. = bytes.div_ceil(UNIT).saturating_sub(has) {
                let more = u32::try_from(more).map_err(|_| too_large(limit))?;
                let more = Arc::clone(&self.room).try_acquire_many_owned(more).map_err(|_| no_room())?;
                match &mut room {
                    Some(room) => room.merge(more),
                    None => room = Some(more),
                }
            }
            whole.extend_from_slice(&data);
        }
        Ok(Kept { bytes: whole.freeze(), _room: room })
    }
}

fn too_large(limit: usize) -> Failure {
    Failure::BodyTooLarge { limit_bytes: limit as u64 }
}

fn not_whole() -> Failure {
    Failure::BadBody { field: None, sentence: "The body did not arrive whole.".to_owned() }
}

fn no_room() -> Failure {
    let sentence = "The requests that are here now leave no room for another one of this size.".to_owned();
    Failure::CannotPlaceNow { sentence, retry_after: SOON }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;

    use super::*;

    async fn read(bodies: &Bodies, pieces: usize) -> Result<Kept, Failure> {
        let pieces = (0..pieces).map(|_| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1_000])));
        bodies.read(&HeaderMap::new(), Body::from_stream(stream::iter(pieces)), 20_000).await
    }

    #[tokio::test]
    async fn all_bodies_together_have_a_room_that_comes_back_with_them() {
        let bodies = Bodies::new(30 * UNIT);
        let first = read(&bodies, 20).await.unwrap();
        assert_eq!(first.bytes.len(), 20_000);
        assert!(matches!(read(&bodies, 20).await, Err(Failure::CannotPlaceNow { .. })));
        let small = read(&bodies, 5).await.unwrap();
        drop(first);
        assert!(read(&bodies, 20).await.is_ok());
        drop(small);
        assert!(matches!(read(&bodies, 21).await, Err(Failure::BodyTooLarge { limit_bytes: 20_000 })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let read = Bodies::new(UNIT).read(&HeaderMap::new(), body, SMALL_BODY).await;
        assert!(matches!(read, Err(Failure::BadBody { .. })));
    }
}
