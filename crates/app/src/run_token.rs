//! What lets one Run ask for models: signed by the dashboard, which knows the Run, and checked by the gateway, which knows
//! nothing of it. A token grants models and a budget until it expires, and says which lease of the job it was made for.
//!
//! `fettle_run.<payload>.<signature>`: JSON and HMAC-SHA256 over the text before the last dot, both in base64 without padding.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fettle_domain::budget::Limits;
use fettle_domain::id::{JobId, RunId};
use fettle_domain::lease::Fence;
use fettle_placement::view::Class;
use hmac::{Hmac, Mac};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::ports::clock::Clock;
use crate::ports::ledger::TaskView;

/// How every run token begins, so that it is told from other keys.
pub const PREFIX: &str = "fettle_run.";
/// A longer text is none of ours; it is not decoded. Some hundred names of models fit.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// A shorter key could be guessed.
const MIN_KEY_BYTES: usize = 32;

/// A model call may still be under way when the Run's wall time is over, and it is the gateway's clock that ends the token.
const GRACE: SignedDuration = SignedDuration::from_hours(2);

/// Gives each Run its token, as the dashboard knows the Run.
#[derive(Clone)]
pub struct RunTokens {
    pub key: RunTokenKey,
    pub clock: Arc<dyn Clock>,
}

impl RunTokens {
    /// To ask `model`, for the lease that the Run is under now; a later lease needs another.
    pub fn token(&self, task: &TaskView, model: String) -> SecretString {
        let limits = Limits::for_mode(task.mode);
        let wall = i64::try_from(limits.wall_s).map_or(SignedDuration::MAX, SignedDuration::from_secs);
        self.key.sign(&RunClaims {
            run: task.run.id,
            job: task.run.job,
            fence: Fence::new(task.run.fence),
            models: vec![model],
            budgets: RunBudgets {
                tokens: Some(limits.prompt_tokens + limits.generated_tokens),
                ..RunBudgets::default()
            },
            repository: task.repo.as_ref().map(|repo| repo.name.to_string()).unwrap_or_default(),
            class: Class::Batch,
            expires: self.clock.now().saturating_add(wall.saturating_add(GRACE)).expect("a span of hours fits"),
        })
    }
}

/// Of one question that somebody asks to see whether a model answers: prompt and answer, with room for how others count.
const TRIAL_TOKENS: u64 = 4 * 1024;
/// Longer than anybody waits for it.
const TRIAL_LIFE: SignedDuration = SignedDuration::from_mins(10);

impl RunTokens {
    /// For one small question to `model`, as a Run of nobody's.
    pub fn trial(&self, run: RunId, job: JobId, model: String) -> SecretString {
        self.key.sign(&RunClaims {
            run,
            job,
            fence: Fence::new(1),
            models: vec![model],
            budgets: RunBudgets { tokens: Some(TRIAL_TOKENS), ..RunBudgets::default() },
            repository: OF_NO_REPOSITORY.to_owned(),
            class: Class::Interactive,
            expires: self.clock.now().saturating_add(TRIAL_LIFE).expect("a span of minutes fits"),
        })
    }
}

/// Every Run is of a repository; whoever tries a model is of none.
const OF_NO_REPOSITORY: &str = "";

impl RunClaims {
    /// Whether this is somebody at a button who wants to know whether a model answers.
    pub fn is_trial(&self) -> bool {
        self.repository == OF_NO_REPOSITORY
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunClaims {
    pub run: RunId,
    pub job: JobId,
    pub fence: Fence,
    /// Names as a request may give them. Empty: none.
    pub models: Vec<String>,
    pub budgets: RunBudgets,
    /// `owner/repository`.
    pub repository: String,
    pub class: Class,
    pub expires: Timestamp,
}

/// Ceilings over all requests of the Run; `None`: without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunBudgets {
    /// Prompt and answer together, cached ones included.
    pub tokens: Option<u64>,
    pub gpu_milliseconds: Option<u64>,
    /// Millionths of the currency that prices are configured in.
    pub micros: Option<u64>,
}

impl RunBudgets {
    pub fn is_limited(&self) -> bool {
        self.tokens.is_some() || self.gpu_milliseconds.is_some() || self.micros.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the run token is not one of this installation")]
    Forged,
    #[error("the run token has expired")]
    Expired,
}

#[derive(Debug, thiserror::Error)]
#[error("the key of run tokens needs at least {MIN_KEY_BYTES} bytes")]
pub struct WeakKey;

/// The key that dashboard and gateway share.
#[derive(Clone)]
pub struct RunTokenKey(Hmac<Sha256>);

/// What the key made of the service key is made for; another purpose would have another key.
const PURPOSE: &[u8] = b"fettle run tokens, version 1";
/// No token begins like this.
const GATEWAY_PURPOSE: &[u8] = b"fettle gateway, version 1";

impl RunTokenKey {
    /// The installation's secret for this; without one, what follows from the service key, which all of its processes have.
    /// Then whoever has the service key can make tokens: workers do.
    pub fn choose(own: Option<&SecretString>, service_key: &SecretString) -> Result<Self, WeakKey> {
        if let Some(own) = own {
            return Self::new(own);
        }
        let service_key = Hmac::<Sha256>::new_from_slice(service_key.expose_secret().as_bytes());
        let made =
            service_key.expect("a key of HMAC may have any length").chain_update(PURPOSE).finalize().into_bytes();
        Ok(Self(Hmac::new_from_slice(&made).expect("a key of HMAC may have any length")))
    }

    /// Of the secret's bytes as they are.
    pub fn new(secret: &SecretString) -> Result<Self, WeakKey> {
        let bytes = secret.expose_secret().as_bytes();
        if bytes.len() < MIN_KEY_BYTES {
            return Err(WeakKey);
        }
        Ok(Self(Hmac::new_from_slice(bytes).expect("a key of HMAC may have any length")))
    }

    /// What a gateway shows to a dashboard to be told the models that people added, with their keys. Neither needs the other's word
    /// for it: both have made it of the same key.
    pub fn gateway_secret(&self) -> SecretString {
        hex::encode(self.0.clone().chain_update(GATEWAY_PURPOSE).finalize().into_bytes()).into()
    }

    pub fn sign(&self, claims: &RunClaims) -> SecretString {
        let payload = serde_json::to_vec(&Payload::of(claims)).expect("a payload is plain values");
        let mut token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(payload));
        let signature = self.0.clone().chain_update(token.as_bytes()).finalize().into_bytes();
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        token.into()
    }

    /// The signature is looked at first: nothing of a forged token is parsed.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<RunClaims, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Forged);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Forged)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Forged)?;
        self.0.clone().chain_update(signed.as_bytes()).verify_slice(&signature).map_err(|_| TokenError::Forged)?;
        let payload = signed.strip_prefix(PREFIX).ok_or(TokenError::Forged)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Forged)?;
        let payload: Payload<'_> = serde_json::from_slice(&payload).map_err(|_| TokenError::Forged)?;
        let claims = payload.claims().ok_or(TokenError::Forged)?;
        if claims.expires <= now { Err(TokenError::Expired) } else { Ok(claims) }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "v")]
enum Payload<'a> {
    #[serde(rename = "1")]
    V1(#[serde(borrow)] PayloadV1<'a>),
}

#[derive(Serialize, Deserialize)]
struct PayloadV1<'a> {
    run: RunId,
    job: JobId,
    fence: Fence,
    models: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    micros: Option<u64>,
    #[serde(borrow)]
    repo: std::borrow::Cow<'a, str>,
    class: Class,
    /// Seconds since 1970.
    exp: i64,
}

impl<'a> Payload<'a> {
    fn of(claims: &'a RunClaims) -> Self {
        let RunBudgets { tokens, gpu_milliseconds, micros } = claims.budgets;
        Self::V1(PayloadV1 {
            run: claims.run,
            job: claims.job,
            fence: claims.fence,
            models: claims.models.clone(),
            tokens,
            gpu_ms: gpu_milliseconds,
            micros,
            repo: (&*claims.repository).into(),
            class: claims.class,
            exp: claims.expires.as_second(),
        })
    }

    fn claims(self) -> Option<RunClaims> {
        let Self::V1(payload) = self;
        Some(RunClaims {
            run: payload.run,
            job: payload.job,
            fence: payload.fence,
            models: payload.models,
            budgets: RunBudgets { tokens: payload.tokens, gpu_milliseconds: payload.gpu_ms, micros: payload.micros },
            repository: payload.repo.into_owned(),
            class: payload.class,
            expires: Timestamp::from_second(payload.exp).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(text: &str) -> RunTokenKey {
        RunTokenKey::new(&text.repeat(32).into()).unwrap()
    }

    fn claims() -> RunClaims {
        RunClaims {
            run: RunId::from_uuid(Uuid::from_u128(1)),
            job: JobId::from_uuid(Uuid::from_u128(2)),
            fence: Fence::new(7),
            models: vec!["coder".to_owned()],
            budgets: RunBudgets { tokens: Some(1000), ..RunBudgets::default() },
            repository: "ada/engine".to_owned(),
            class: Class::Batch,
            expires: Timestamp::from_second(1_000).unwrap(),
        }
    }

    #[test]
    fn a_token_gives_back_its_claims_until_it_expires() {
        let token = key("k").sign(&claims());
        let at = |second| key("k").verify(token.expose_secret(), Timestamp::from_second(second).unwrap());
        assert_eq!(at(999), Ok(claims()));
        assert_eq!(at(1_000), Err(TokenError::Expired));
    }

    #[test]
    fn a_token_of_another_key_or_with_one_byte_changed_is_forged() {
        let token = key("k").sign(&claims());
        let (token, now) = (token.expose_secret(), Timestamp::UNIX_EPOCH);
        assert_eq!(key("x").verify(token, now), Err(TokenError::Forged));
        for nth in 0..token.len() {
            let mut changed = token.as_bytes().to_vec();
            changed[nth] = if changed[nth] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(key("k").verify(&changed, now), Err(TokenError::Forged), "byte {nth}");
        }
    }

    #[test]
    fn a_short_key_is_refused() {
        assert!(RunTokenKey::new(&"short".to_owned().into()).is_err());
    }

    #[test]
    fn without_a_secret_of_its_own_the_key_follows_from_the_service_key_and_is_not_it() {
        let service_key: SecretString = "a service key of more than thirty-two bytes".to_owned().into();
        let token = RunTokenKey::choose(None, &service_key).unwrap().sign(&claims());
        let checked = |key: RunTokenKey| key.verify(token.expose_secret(), Timestamp::UNIX_EPOCH);
        assert_eq!(checked(RunTokenKey::choose(None, &service_key).unwrap()), Ok(claims()));
        assert_eq!(checked(RunTokenKey::new(&service_key).unwrap()), Err(TokenError::Forged));
        let own = "the installation's own secret for run tokens".to_owned().into();
        assert_eq!(checked(RunTokenKey::choose(Some(&own), &service_key).unwrap()), Err(TokenError::Forged));
    }
}
