//! One request from its arrival to the first byte of its answer: who asks, for what, whether it is paid for, where it goes,
//! and whether it is tried again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use fettle_app::live::Live;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::model::ToolCalls;
use fettle_app::ports::serving::When;
use fettle_app::run_token::RunClaims;
use fettle_protocols::{
    Edit, Failure, Head, Peek, Protocol, Request, ToolKind, UpstreamError, WatchOptions, edit, read_error,
    read_request, write_request,
};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use crate::access::{Access, Caller};
use crate::bodies::{BODY_LIMIT, Bodies, Kept};
use crate::breaker::Outcome;
use crate::budgets::{Budgets, Cost, Reservation};
use crate::carrier::{self, Carrier, Standing, Trouble};
use crate::desk::{Ask, LastFailure, NotNow, Refusal, Went};
use crate::floor::{Floor, Held, NotAdmitted};
use crate::metrics::Metrics;
use crate::names::{Names, Route};
use crate::passage::{Passage, Traveller};
use crate::relay::Streams;
use crate::retry::{Failed, Verdict};
use crate::settings::{Price, Timeouts};
use crate::thread::Thread;
use crate::upstream::{SendError, Sending, Upstream};
use crate::usage::{Accounts, End, Store};

/// Of an answer that is not streamed; it is gathered before it is sent on.
const WHOLE_LIMIT: usize = 64 << 20;
/// How much of a target's error is read, and for how long: a code and a sentence.
const ERROR_BYTES: usize = 64 * 1024;
const ERROR_TIME: Duration = Duration::from_secs(5);
/// A pause that a target asks for beyond this is a mistake.
const LONGEST_REST: Duration = Duration::from_secs(600);
/// Of a target that takes nothing more now and does not say for how long.
const UNSAID_PAUSE: Duration = Duration::from_secs(1);
/// What an answer is taken to have when nothing says so, in tokens; only the order of waiting depends on it.
const USUAL_OUTPUT: u64 = 512;
/// Where a protocol demands a limit that the caller's leaves open.
const DEFAULT_MAX_TOKENS: u64 = 8_192;
/// When there is no telling how soon asking again is of use.
const SOME_TIME: Duration = Duration::from_secs(10);

const SESSION: HeaderName = HeaderName::from_static("x-session-id");
const DEADLINE: HeaderName = HeaderName::from_static("x-fettle-deadline-ms");
const DROPPED: HeaderName = HeaderName::from_static("x-fettle-dropped");
/// Proxies that gather answers would hold streams up.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// The caller's, for a target of the same kind.
static ANTHROPIC: [HeaderName; 2] =
    [HeaderName::from_static("anthropic-version"), HeaderName::from_static("anthropic-beta")];

pub(crate) struct Front {
    pub(crate) access: Access,
    pub(crate) bodies: Bodies,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) names: Live<Names>,
    pub(crate) floor: Arc<Floor>,
    pub(crate) streams: Streams,
    pub(crate) store: Arc<Store>,
    pub(crate) accounts: Mutex<Accounts>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) max_wait: Duration,
    pub(crate) timeouts: Timeouts,
    /// How models call tools, by name.
    pub(crate) examined: watch::Receiver<Arc<BTreeMap<String, ToolCalls>>>,
}

/// A request that was read and found good.
struct Order {
    protocol: Protocol,
    parts: Parts,
    body: Kept,
    peek: Peek,
    routes: Vec<Route>,
    caller: Caller,
    thread: Thread,
    arrived: Instant,
    /// Until when the caller wants its answer.
    deadline: Option<Instant>,
    /// Read for another protocol, once.
    read: Option<Request>,
}

/// An attempt that brought nothing of which the caller saw a byte.
struct Miss {
    trouble: Trouble,
    outcome: Outcome,
    wait: Option<Duration>,
    /// The target was at work on it for as long as somebody waited: it is counted as having ended so.
    ended: Option<End>,
}

/// An answer that has begun.
struct Begun {
    carrier: Carrier,
    first: Bytes,
    /// `None`: it is all there.
    rest: Option<Incoming>,
    dropped: Vec<String>,
}

impl Front {
    /// The answer, whatever it is.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        protocol: Protocol,
        request: http::Request<Body>,
        thread: &Thread,
    ) -> Result<Response, Failure> {
        let arrived = Instant::now();
        let (parts, body) = request.into_parts();
        let caller = self.access.identify(&parts.headers, self.clock.now())?;
        let body = self.bodies.read(&parts.headers, body, BODY_LIMIT).await?;
        let peek = Peek::of(protocol, &body.bytes)?;
        caller.may_ask(&peek.model)?;
        let routes = self.names.now().find(&peek.model, &self.floor.known());
        if routes.is_empty() {
            return Err(Failure::UnknownModel { model: peek.model });
        }
        // A name that nobody configured is a text of the caller's.
        thread.span.record("model.name", peek.model.as_str());
        let deadline = milliseconds(&parts.headers, &DEADLINE).map(|left| arrived + left);
        let thread = thread.clone();
        let mut order = Order { protocol, parts, body, peek, routes, caller, thread, arrived, deadline, read: None };
        let reservation = self.reserve(&order)?;
        self.serve(&mut order, reservation).await
    }

    /// Sets aside the most that the request can take.
    fn reserve(&self, order: &Order) -> Result<Option<Reservation>, Failure> {
        let Some(run) = order.caller.run.as_deref().filter(|run| run.budgets.is_limited()) else { return Ok(None) };
        if !self.store.is_writable() {
            let sentence = "What requests use cannot be recorded now, so none with a budget is taken.";
            return Err(Failure::CannotPlaceNow { sentence: sentence.to_owned(), retry_after: SOME_TIME });
        }
        let peek = &order.peek;
        if peek.limits_differ {
            let sentence = "The request limits its answer twice, and not alike; with a budget it must say one limit.";
            return Err(Failure::BadBody { field: None, sentence: sentence.to_owned() });
        }
        let window = order.routes.iter().map(|route| route.context_tokens).max().unwrap_or(0);
        let prompt = peek.prompt_tokens;
        let answer = peek.max_tokens.unwrap_or_else(|| window.saturating_sub(prompt));
        let output = answer.saturating_mul(peek.answers());
        let prices = order.routes.iter().filter_map(|route| route.price);
        let micros = prices.map(|price| price.of(prompt, 0, output)).max().unwrap_or(0);
        let most = Cost { tokens: prompt.saturating_add(output), micros };
        match self.budgets.reserve(run, most, self.clock.now()) {
            Ok(reservation) => Ok(Some(reservation)),
            Err(spent) => Err(Failure::BudgetSpent { sentence: spent.to_string() }),
        }
    }

    async fn serve(self: &Arc<Self>, order: &mut Order, reservation: Option<Reservation>) -> Result<Response, Failure> {
        let mut ask = order.ask();
        let mut unspent = Unspent(reservation);
        let routes = order.routes.clone();
        let (mut attempts, mut waited) = (0, Duration::ZERO);
        loop {
            attempts += 1;
            let asked = Instant::now();
            let held = self.admit(order, &ask).await?;
            waited += asked.elapsed();
            if attempts == 1 {
                self.metrics.queue_wait.observe(waited.as_secs_f64());
            }
            let failing = held.grant.target;
            let traveller = order.traveller(routes[held.grant.source].price, attempts, waited);
            let mut passage = Passage::new(Arc::clone(self), held, unspent.0.take(), traveller);
            let miss = match self.attempt(order, &mut passage, waited).await {
                Ok(begun) => return Ok(self.respond(order, begun, passage)),
                Err(miss) => miss,
            };
            if let Some(end) = miss.ended {
                passage.unseen(end, miss.said());
                return Err(miss.trouble.failure);
            }
            let rest = miss.wait.map(|wait| wait.min(LONGEST_REST));
            unspent.0 = passage.undo(Went { outcome: miss.outcome, said: miss.said(), rest, measured: None });
            if miss.outcome == Outcome::Gone {
                // It reached nobody, so nothing is repeated: it waits for the engine's successor as if it had just come.
                attempts -= 1;
                ask.avoid = Some(failing);
                continue;
            }
            let failed = Failed {
                worth_retrying: miss.trouble.worth_retrying,
                wait: miss.wait,
                attempts,
                elsewhere: false,
                patience: order.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
            };
            match self.floor.retry(&ask, failed, failing) {
                Verdict::GiveUp => return Err(miss.trouble.failure),
                Verdict::Elsewhere => {}
                Verdict::SameAfter(pause) => tokio::time::sleep(pause).await,
            }
            self.metrics.retries.inc();
            ask.avoid = Some(failing);
        }
    }

    async fn admit(self: &Arc<Self>, order: &Order, ask: &Ask) -> Result<Held, Failure> {
        let waited = order.arrived.elapsed();
        let mut patience = self.max_wait.saturating_sub(waited);
        if let Some(deadline) = order.deadline {
            patience = patience.min(deadline.saturating_duration_since(Instant::now()));
        }
        let refused = match self.floor.admit(ask, patience).await {
            Ok(held) => return Ok(held),
            Err(refused) => refused,
        };
        Err(match refused {
            NotAdmitted::Refused(Refusal::Unknown) => Failure::UnknownModel { model: order.peek.model.clone() },
            NotAdmitted::Refused(Refusal::QueueFull) => Failure::QueueFull {
                sentence: "Too many requests wait for this model.".to_owned(),
                retry_after: SOME_TIME,
            },
            NotAdmitted::Refused(Refusal::Never(sentence)) => Failure::CannotPlaceEver { sentence },
            NotAdmitted::Refused(Refusal::Failing { why, retry_after }) => {
                Failure::CannotPlaceNow { sentence: why, retry_after }
            }
            NotAdmitted::Refused(Refusal::Broken { last, retry_after }) => left_alone(last, retry_after),
            NotAdmitted::Waited(Some(NotNow { why, when })) => match when {
                When::Waiting(retry_after) | When::Mended(retry_after) => {
                    Failure::CannotPlaceNow { sentence: why, retry_after }
                }
                When::Never => Failure::CannotPlaceNow { sentence: why, retry_after: SOME_TIME },
            },
            NotAdmitted::Waited(None) => Failure::CannotPlaceNow {
                sentence: "No engine became free for this request in time.".to_owned(),
                retry_after: SOME_TIME,
            },
        })
    }

    fn respond(&self, order: &Order, begun: Begun, mut passage: Passage) -> Response {
        let Begun { carrier, first, rest, dropped, .. } = begun;
        let body = match rest {
            Some(rest) => Body::new(self.streams.relay(rest, carrier, first, passage, &self.timeouts)),
            None => {
                passage.complete(&carrier);
                Body::from(first)
            }
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static(order.protocol.content_type(order.peek.stream));
        headers.insert(CONTENT_TYPE, kind);
        if order.peek.stream {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            headers.insert(NO_BUFFERING, HeaderValue::from_static("no"));
        }
        if !dropped.is_empty()
            && let Ok(value) = HeaderValue::try_from(dropped.join(", "))
        {
            headers.insert(DROPPED, value);
        }
        response
    }

    pub(crate) fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a provider that is not asked for a while: one that failed has failed this request too, one that wants a pause is only busy.
fn left_alone(last: Option<LastFailure>, retry_after: Duration) -> Failure {
    let until = retry_after.as_secs() + 1;
    match last {
        Some(LastFailure { sentence, ago }) => {
            let (sentence, ago) = (sentence.trim_end_matches('.'), ago.as_secs());
            let sentence = format!("{sentence}: it was asked {ago} s before this, and is asked again {until} s later.");
            Failure::UpstreamFailed { sentence }
        }
        None => {
            let sentence =
                format!("The model's server has too much to do or wants a pause; it is asked again {until} s later.");
            Failure::CannotPlaceNow { sentence, retry_after }
        }
    }
}

/// A reservation whose request is nowhere at work: nothing of it is spent.
struct Unspent(Option<Reservation>);

impl Drop for Unspent {
    fn drop(&mut self) {
        if let Some(reservation) = self.0.take() {
            reservation.settle(Cost::default());
        }
    }
}

impl Front {
    /// One sending of a request, until something of its answer is there.
    async fn attempt(&self, order: &mut Order, passage: &mut Passage, waited: Duration) -> Result<Begun, Miss> {
        let (source, cached_tokens) = (passage.held().grant.source, passage.held().grant.cached_tokens);
        let upstream = &Arc::clone(&passage.held().upstream);
        let (sending, carrier, dropped) = order.prepare(upstream, source, self)?;
        let overhead = order.arrived.elapsed().saturating_sub(waited);
        self.metrics.overhead.with_label_values(&["request"]).observe(overhead.as_secs_f64());
        let sent = passage.send();
        let allowed = if order.peek.stream { upstream.first_byte } else { self.timeouts.whole_answer };
        let (until, late) = match order.deadline {
            Some(deadline) if deadline < sent + allowed => (deadline, Miss::given_up as fn() -> Miss),
            _ => (sent + allowed, Miss::slow as fn() -> Miss),
        };
        let response = match timeout_at(until, upstream.send(sending)).await {
            Err(_) => return Err(late()),
            Ok(Err(error)) => return Err(Miss::unsent(&error, upstream, &order.thread)),
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            return Err(refused(response, upstream, &order.thread).await);
        }
        if !is_readable(response.headers()) {
            return Err(Miss::no_answer());
        }
        let body = response.into_body();
        let read =
            async { if order.peek.stream { first_of(body, carrier).await } else { whole_of(body, carrier).await } };
        let (carrier, first, rest) = timeout_at(until, read).await.unwrap_or_else(|_| Err(late()))?;
        passage.begin(order.peek.prompt_tokens.saturating_sub(cached_tokens).max(1), &carrier);
        Ok(Begun { carrier, first, rest, dropped })
    }
}

async fn refused(response: http::Response<Incoming>, upstream: &Upstream, thread: &Thread) -> Miss {
    let (head, body) = response.into_parts();
    let read = timeout(ERROR_TIME, Limited::new(body, ERROR_BYTES).collect()).await;
    let body = read.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let pause = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let status = head.status.as_u16();
    let error = read_error(status, pause, &body);
    let name = &upstream.name;
    match error {
        UpstreamError::BadKey => {
            warn!(request.id = thread.request(), http.status = status, "{name} does not accept our key");
        }
        UpstreamError::NoCredit => {
            warn!(request.id = thread.request(), http.status = status, "our account at {name} has nothing left");
        }
        UpstreamError::NotAllowed => {
            warn!(request.id = thread.request(), http.status = status, "{name} does not let us use a model");
        }
        _ => debug!(request.id = thread.request(), http.status = status, "{name} refused a request"),
    }
    Miss::refused(&error)
}

impl Miss {
    /// Of a failure that is the target's, and more than a lack of room.
    fn said(&self) -> Option<String> {
        let counts = matches!(self.outcome, Outcome::Failed | Outcome::Misconfigured);
        let failed = matches!(self.trouble.failure, Failure::UpstreamFailed { .. } | Failure::UpstreamSlow { .. });
        (counts && failed).then(|| self.trouble.failure.sentence())
    }

    fn slow() -> Self {
        let sentence = "The model's server did not answer in time.".to_owned();
        Self {
            trouble: Trouble { failure: Failure::UpstreamSlow { sentence }, worth_retrying: false },
            outcome: Outcome::Failed,
            wait: None,
            ended: Some(End::Failed),
        }
    }

    /// The caller's own deadline came first, which says nothing of the target.
    fn given_up() -> Self {
        Self { outcome: Outcome::Neutral, ended: Some(End::Cancelled), ..Self::slow() }
    }

    fn unsent(error: &SendError, upstream: &Upstream, thread: &Thread) -> Self {
        debug!(
            request.id = thread.request(),
            error = error as &dyn std::error::Error,
            "a request did not reach {}",
            upstream.name
        );
        let sentence = match error {
            SendError::Connect(_) => format!("The server of `{}` cannot be reached.", upstream.name),
            SendError::Broken(_) | SendError::Unsayable(_) => {
                format!("The server of `{}` broke the connection.", upstream.name)
            }
        };
        let worth_retrying = !matches!(error, SendError::Unsayable(_));
        let outcome = match error {
            SendError::Connect(_) if upstream.engine.is_some() => Outcome::Gone,
            _ => Outcome::Failed,
        };
        let trouble = Trouble { failure: Failure::UpstreamFailed { sentence }, worth_retrying };
        Self { trouble, outcome, wait: None, ended: None }
    }

    fn refused(error: &UpstreamError) -> Self {
        use UpstreamError as Said;
        let (outcome, wait) = match error {
            // 403 is about one model, or about what the request says.
            Said::BadRequest | Said::ContextTooLong | Said::UnknownModel | Said::NotAllowed => (Outcome::Neutral, None),
            Said::BadKey | Said::NoCredit => (Outcome::Misconfigured, None),
            Said::RateLimited { retry_after } => (Outcome::Neutral, Some(retry_after.unwrap_or(UNSAID_PAUSE))),
            Said::Overloaded { retry_after } => (Outcome::Failed, *retry_after),
            Said::Slow | Said::Failed => (Outcome::Failed, None),
        };
        Self { trouble: carrier::trouble(error), outcome, wait, ended: None }
    }

    fn broken(trouble: Trouble) -> Self {
        Self { trouble, outcome: Outcome::Failed, wait: None, ended: None }
    }

    fn no_answer() -> Self {
        let sentence = "The model's server answered with something that is no answer.".to_owned();
        Self::broken(Trouble { failure: Failure::UpstreamFailed { sentence }, worth_retrying: true })
    }

    fn broken_off() -> Self {
        Self::broken(Trouble { failure: carrier::broken_off(), worth_retrying: true })
    }
}

impl From<fettle_protocols::Refused> for Miss {
    fn from(refused: fettle_protocols::Refused) -> Self {
        let trouble = Trouble { failure: refused.into(), worth_retrying: false };
        Self { trouble, outcome: Outcome::Neutral, wait: None, ended: None }
    }
}

impl Order {
    fn traveller(&self, price: Option<Price>, attempts: u32, waited: Duration) -> Traveller {
        Traveller {
            thread: self.thread.clone(),
            owner: self.caller.owner.clone(),
            run: self.caller.run.clone(),
            model: self.peek.model.clone(),
            price,
            prompt_estimate: self.peek.prompt_tokens,
            answers: self.peek.answers(),
            attempts,
            arrived: self.arrived,
            waited,
        }
    }

    fn ask(&self) -> Ask {
        let peek = &self.peek;
        Ask {
            sources: self.routes.iter().map(|route| route.source.clone()).collect(),
            owner: self.caller.owner.clone(),
            class: self.caller.class,
            session: self.session(),
            prompt_tokens: peek.prompt_tokens,
            output_tokens: peek.max_tokens.unwrap_or(USUAL_OUTPUT).min(USUAL_OUTPUT),
            avoid: None,
            knocks: self.caller.run.as_deref().is_some_and(RunClaims::is_trial),
        }
    }

    /// What a conversation is known by: as the caller calls it, else its beginning. A name of the caller's own is one of its
    /// owner; equal beginnings may share what an engine remembers.
    fn session(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.peek.model.hash(&mut hasher);
        let named = self.parts.headers.get(&SESSION).map(HeaderValue::as_bytes);
        match named.or(self.peek.session.as_deref().map(str::as_bytes)) {
            Some(named) => (self.caller.owner.as_str(), named).hash(&mut hasher),
            None => self.peek.prefix.hash(&mut hasher),
        }
        hasher.finish()
    }

    /// The request as `upstream` reads it, and how its answer comes back.
    fn prepare(
        &mut self,
        upstream: &Upstream,
        source: usize,
        front: &Front,
    ) -> Result<(Sending, Carrier, Vec<String>), Miss> {
        let route = &self.routes[source];
        let model = route.model.as_deref().or(upstream.model.as_deref()).unwrap_or(&self.peek.model);
        let streamed = self.peek.stream;
        let mut headers = HeaderMap::new();
        self.thread.tell_target(&self.parts.headers, &mut headers);
        if upstream.speaks(self.protocol) {
            if self.protocol == Protocol::AnthropicMessages {
                let passing = ANTHROPIC.iter().filter_map(|name| Some((name, self.parts.headers.get(name)?)));
                headers.extend(passing.map(|(name, value)| (name.clone(), value.clone())));
            }
            let hide_usage = streamed && !self.peek.usage_in_stream;
            let body = edit(self.protocol, &self.body.bytes, Edit { model, ask_usage: streamed })?;
            let named = (model != self.peek.model).then(|| self.peek.model.clone());
            let carrier = Carrier::same(self.protocol, WatchOptions { streamed, model: named, hide_usage });
            let path = self.protocol.path().unwrap_or_default().to_owned();
            return Ok((Sending { path, body, streamed, protocol: self.protocol, headers }, carrier, Vec::new()));
        }
        let read = match &self.read {
            Some(read) => read,
            None => self.read.insert(read_request(self.protocol, &self.body.bytes)?),
        };
        let plain = matches!(read.input, fettle_protocols::Input::Text { .. });
        let protocol = upstream.native(plain);
        let target = fettle_protocols::Target {
            protocol,
            model,
            takes_thoughts: upstream.is_local(),
            default_max_tokens: DEFAULT_MAX_TOKENS,
        };
        let written = write_request(read, &target)?;
        let head = Head {
            id: front.ids.uuid().simple().to_string(),
            model: self.peek.model.clone(),
            created: front.clock.now().as_second(),
            streamed,
            usage: read.stream_usage,
            tools: read
                .tools
                .iter()
                .filter(|one| one.kind != ToolKind::Function)
                .map(|one| (one.name.clone(), one.kind.clone()))
                .collect(),
        };
        let carrier = Carrier::other(protocol, self.protocol, head);
        let sending = Sending { path: written.path, body: written.body, streamed, protocol, headers };
        Ok((sending, carrier, written.dropped))
    }
}

type Read = (Carrier, Bytes, Option<Incoming>);

/// A stream up to the first bytes for the caller. Comments alone are none: they only keep a connection open.
async fn first_of(mut body: Incoming, mut carrier: Carrier) -> Result<Read, Miss> {
    loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                let out = carrier.push(data);
                if let Standing::Failed(trouble) = carrier.standing()
                    && !carrier.content()
                {
                    return Err(Miss::broken(trouble));
                }
                if !out.is_empty() && !is_comment(&out) {
                    return Ok((carrier, out, Some(body)));
                }
            }
            Some(Err(_)) => return Err(Miss::broken_off()),
            None => {
                let out = carrier.finish();
                return match carrier.standing() {
                    Standing::Ended => Ok((carrier, out, None)),
                    Standing::Failed(trouble) => Err(Miss::broken(trouble)),
                    Standing::Going => Err(Miss::broken_off()),
                };
            }
        }
    }
}

/// An answer that is not streamed, all of it.
async fn whole_of(mut body: Incoming, mut carrier: Carrier) -> Result<Read, Miss> {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Miss::broken_off())?.into_data() else { continue };
        bytes += data.len();
        if bytes > WHOLE_LIMIT {
            return Err(Miss::broken(Trouble { failure: carrier::broken_off(), worth_retrying: false }));
        }
        pieces.push(carrier.push(data));
    }
    pieces.push(carrier.finish());
    if carrier.is_unread() {
        return Err(Miss::no_answer());
    }
    pieces.retain(|piece| !piece.is_empty());
    if let Standing::Failed(trouble) = carrier.standing() {
        return Err(Miss::broken(trouble));
    }
    let whole = match pieces.len() {
        1 => pieces.remove(0),
        _ => {
            let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
        }
    };
    Ok((carrier, whole, None))
}

/// Whether an answer of 200 can be one: proxies and wrong addresses send pages, and nothing was asked for in a coding. What says
/// nothing of itself is looked at.
fn is_readable(headers: &HeaderMap) -> bool {
    let plain = headers.get(CONTENT_ENCODING).is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default().to_ascii_lowercase());
    plain && kind.is_none_or(|kind| kind.contains("json") || kind.starts_with("text/event-stream"))
}

fn is_comment(event: &[u8]) -> bool {
    event.split(|byte| *byte == b'\n').all(|line| line.is_empty() || line == b"\r" || line.starts_with(b":"))
}

fn milliseconds(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    headers.get(name)?.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// For metrics.
pub(crate) fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200..=299 => "2xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_coded_bytes_are_no_answers() {
        let readable = |name: http::HeaderName, value: &'static str| {
            is_readable(&HeaderMap::from_iter([(name, HeaderValue::from_static(value))]))
        };
        for kind in ["application/json", "application/x-ndjson", "text/event-stream; charset=utf-8", "Application/JSON"]
        {
            assert!(readable(CONTENT_TYPE, kind), "{kind}");
        }
        assert!(is_readable(&HeaderMap::new()) && readable(CONTENT_ENCODING, "identity"));
        assert!(!readable(CONTENT_TYPE, "text/html") && !readable(CONTENT_TYPE, "image/png"));
        assert!(!readable(CONTENT_ENCODING, "gzip"));
    }

    #[test]
    fn comments_alone_are_no_answer() {
        assert!(is_comment(b": keep-alive\n\n") && is_comment(b":\r\n\r\n: x\n\n"));
        assert!(!is_comment(b": x\n\ndata: {}\n\n"));
    }
}
