//! `POST /webhooks/github`: check the signature, store the raw delivery, answer. What it means is intake's business.
//!
//! Nothing is written, and nothing is told, before the signature has been found good.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fettle_app::crash::{self, Point};
use fettle_app::intake::{EVENTS, HOOK_KEY};
use fettle_app::ports::ledger::{Accepted, Delivery};
use fettle_app::spans;
use fettle_domain::id::DeliveryId;
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::time::timeout;
use tracing::{Instrument as _, debug};
use utoipa::ToSchema;

use crate::edge::{self, Exchange};
use crate::extract;
use crate::metrics::Verdict;
use crate::problem::{Code, Problem};
use crate::state::{ApiState, WebhookSecrets};

/// GitHub sends no more.
pub(crate) const MAX_BYTES: usize = 25 * 1024 * 1024;
/// What an issue's event normally stays below; with all connections in use this is 256 MiB.
const ORDINARY_BYTES: u64 = 64 * 1024;
/// GitHub gives up after 10 s; it must hear a refusal before.
const STORE_LIMIT: Duration = Duration::from_secs(8);
/// How long a large delivery waits for its turn, and how long it may then take: GitHub gives up after 10 s.
const LARGE_WAIT: Duration = Duration::from_secs(1);
const LARGE_LIMIT: Duration = Duration::from_secs(9);
/// Delivery ids are GUIDs (36 characters); longer text is not GitHub's.
const MAX_ID_CHARS: usize = 64;
const PREFIX: &[u8] = b"sha256=";

/// Knows the webhook secrets. The keyed states are made once, so that a delivery costs one pass over its bytes.
pub(crate) struct Verifier {
    current: Hmac<Sha256>,
    previous: Option<Hmac<Sha256>>,
}

impl Verifier {
    pub(crate) fn new(secrets: &WebhookSecrets) -> Self {
        Self { current: keyed(&secrets.current), previous: secrets.previous.as_ref().map(keyed) }
    }

    /// Whether `X-Hub-Signature-256` is the HMAC of the raw body under one of the secrets; in constant time.
    fn is_signed(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let mut given = [0; 32];
        let read = headers
            .get("x-hub-signature-256")
            .and_then(|value| value.as_bytes().strip_prefix(PREFIX))
            .is_some_and(|digits| hex::decode_to_slice(digits, &mut given).is_ok());
        let matches = |key: &Hmac<Sha256>| key.clone().chain_update(body).verify_slice(&given).is_ok();
        read && (matches(&self.current) || self.previous.as_ref().is_some_and(matches))
    }
}

fn keyed(secret: &SecretString) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.expose_secret().trim().as_bytes()).expect("HMAC takes keys of any length")
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Delivery)]
pub(crate) struct DeliveryBody {
    /// `X-GitHub-Delivery`, as it came.
    delivery: String,
    verdict: DeliveryVerdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DeliveryVerdict {
    /// Stored.
    New,
    /// Stored before; nothing changed.
    Duplicate,
    /// The answer to `ping`.
    Pong,
    /// An event without meaning here; not stored.
    Ignored,
}

/// Lets only a few large bodies be read at a time, since nobody has shown a signature yet, and none for long. Ordinary ones
/// pass at once. Nobody waits in line: strangers could make the line longer than GitHub's patience.
pub(crate) async fn few_large_bodies(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // A body that does not say its length counts as large.
    if length.is_some_and(|length| length <= ORDINARY_BYTES) {
        return next.run(request).await;
    }
    match timeout(LARGE_WAIT, api.large_webhooks.acquire()).await {
        Ok(permit) => {
            let _permit = permit.expect("the semaphore is never closed");
            edge::within(LARGE_LIMIT, next.run(request)).await
        }
        Err(_) => Problem::new(Code::Busy, "Too many large deliveries are being read. Redeliver it later.")
            .retry_after(LARGE_LIMIT)
            .into_response(),
    }
}

/// Takes a delivery of a GitHub webhook or App. Stored durably before 202; a repeated delivery changes nothing.
#[utoipa::path(
    post, path = "/webhooks/github", operation_id = "receive_github_webhook", tag = "webhooks",
    params(
        ("X-GitHub-Delivery" = String, Header, description = "Unique; a redelivery keeps it"),
        ("X-GitHub-Event" = String, Header, description = "`ping`, `issues`, `issue_comment`, …"),
        ("X-Hub-Signature-256" = String, Header, description = "`sha256=` and the HMAC of the raw body, in hex"),
    ),
    request_body(content = serde_json::Value, content_type = "application/json"),
    responses(
        (status = 200, description = "The answer to `ping`", body = DeliveryBody),
        (status = 202, description = "Stored, known already, or ignored", body = DeliveryBody),
    ),
)]
pub(crate) async fn receive_github(
    State(api): State<ApiState>,
    Extension(exchange): Extension<Exchange>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let received = receive(&api, exchange, &headers, body).await;
    crash::before(Point::IntakeAnswer);
    let (verdict, answer) = match received {
        Ok((verdict, status, body)) => (verdict, (status, Json(body)).into_response()),
        Err((verdict, problem)) => (verdict, problem.into_response()),
    };
    api.metrics.delivery(verdict);
    crash::after(Point::IntakeAnswer);
    answer
}

async fn receive(
    api: &ApiState,
    exchange: Exchange,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(Verdict, StatusCode, DeliveryBody), (Verdict, Problem)> {
    let refused = |problem| (Verdict::Refused, problem);
    let verifier = api.webhook.now();
    let verifier = (*verifier).as_ref().ok_or_else(|| refused(no_secret()))?;
    let body = body.map_err(|rejection| refused(extract::unread(rejection)))?;
    if !verifier.is_signed(headers, &body) {
        return Err((
            Verdict::BadSignature,
            Problem::new(
                Code::Unauthenticated,
                "`X-Hub-Signature-256` is missing or does not fit the body: compare the webhook's secret with `forge.webhook_secret_file`.",
            ),
        ));
    }
    let delivery = word(headers, "x-github-delivery").map_err(refused)?;
    let event = word(headers, "x-github-event").map_err(refused)?;
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !extract::is_json(kind) {
        return Err(refused(Problem::new(
            Code::UnsupportedMediaType,
            "Set the webhook's content type to `application/json` in its settings on GitHub.",
        )));
    }
    let said = |verdict| DeliveryBody { delivery: delivery.to_owned(), verdict };
    if event == "ping" {
        return Ok((Verdict::Ping, StatusCode::OK, said(DeliveryVerdict::Pong)));
    }
    if !EVENTS.contains(&event) {
        debug!(event, "ignored a webhook event");
        return Ok((Verdict::Ignored, StatusCode::ACCEPTED, said(DeliveryVerdict::Ignored)));
    }
    if !is_json_object(&body) {
        return Err(refused(Problem::new(Code::BadRequest, "The body is not a JSON object.")));
    }

    let stored = Delivery {
        id: DeliveryId::from_uuid(api.ids.uuid()),
        key: format!("{HOOK_KEY}{delivery}"),
        event: event.to_owned(),
        body,
        correlation: exchange.correlation,
        received_at: api.clock.now(),
    };
    crash::before(Point::IntakeStore);
    let span = spans::delivery(&stored);
    let accepted = timeout(STORE_LIMIT, api.ledger.accept(stored)).instrument(span).await;
    crash::after(Point::IntakeStore);
    match accepted {
        Ok(Ok(Accepted::New)) => Ok((Verdict::New, StatusCode::ACCEPTED, said(DeliveryVerdict::New))),
        Ok(Ok(Accepted::Duplicate)) => Ok((Verdict::Duplicate, StatusCode::ACCEPTED, said(DeliveryVerdict::Duplicate))),
        Ok(Err(error)) => Err((Verdict::Unavailable, error.into())),
        Err(_) => Err((
            Verdict::Unavailable,
            Problem::new(Code::Unavailable, "The ledger did not store the delivery in time. Redeliver it.")
                .retry_after(Duration::from_secs(5)),
        )),
    }
}

fn no_secret() -> Problem {
    Problem::new(
        Code::NotConfigured,
        "Webhooks are refused until `forge.webhook_secret_file` names a file with the webhook's secret.",
    )
}

/// A header that holds an id or an event name.
fn word<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Problem> {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.is_empty() || value.len() > MAX_ID_CHARS || !value.bytes().all(fits) {
        return Err(Problem::new(Code::BadRequest, format!("The header `{name}` is missing or odd.")));
    }
    Ok(value)
}

/// Reads the body once without keeping anything; intake builds the values later.
fn is_json_object(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'{') && serde_json::from_slice::<IgnoredAny>(body).is_ok()
}
