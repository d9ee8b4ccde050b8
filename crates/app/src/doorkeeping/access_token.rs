//! Access tokens: signed, short-lived, and good only as long as their session is.

use arc_swap::ArcSwap;
use fettle_domain::id::SessionId;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::ports::accounts::{Session, SigningKey, User};

/// What clients are told as `expiresIn`.
pub const TOKEN_SECONDS: i64 = 900;
/// Who signs, and for whom.
const ISSUER: &str = "fettle";
/// What a key makes beside signatures.
const SETUP: &[u8] = b"fettle setup token, version 1\0";
/// A longer text is none of ours; it is not decoded.
const MAX_TOKEN_BYTES: usize = 4 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    unique_name: String,
    email: String,
    role: String,
    /// The session, which ends the token with itself.
    sid: SessionId,
    jti: String,
    iat: i64,
    exp: i64,
    iss: String,
    aud: String,
}

/// The keys that count now, the newest first.
#[derive(Debug, Default)]
pub(super) struct Keys(ArcSwap<Vec<SigningKey>>);

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsound {
    /// Signed with a key that is not known here; perhaps another process has made it.
    UnknownKey,
    Other,
}

impl Keys {
    pub(super) fn set(&self, keys: Vec<SigningKey>) {
        self.0.store(keys.into());
    }

    /// What makes the first admin, of the newest key first. It follows from the key, so that each process on this database shows and
    /// takes the same: whoever has its terminal is the operator.
    pub(super) fn setup_tokens(&self) -> Vec<SecretString> {
        let token = |key: &SigningKey| Sha256::new().chain_update(SETUP).chain_update(key.secret).finalize();
        self.0.load().iter().map(|key| format!("fettle_setup_{}", hex::encode(token(key))).into()).collect()
    }

    pub(super) fn issue(&self, user: &User, session: &Session, id: Uuid, now: Timestamp) -> Option<String> {
        let keys = self.0.load();
        let key = keys.first()?;
        let header = Header { kid: Some(key.id.simple().to_string()), ..Header::new(Algorithm::HS256) };
        let claims = Claims {
            sub: user.id.to_string(),
            unique_name: user.username.as_str().to_owned(),
            email: user.email.as_str().to_owned(),
            role: user.standing.role.name().to_owned(),
            sid: session.id,
            jti: id.simple().to_string(),
            iat: now.as_second(),
            exp: now.checked_add(SignedDuration::from_secs(TOKEN_SECONDS)).ok()?.as_second(),
            iss: ISSUER.to_owned(),
            aud: ISSUER.to_owned(),
        };
        encode(&header, &claims, &EncodingKey::from_secret(&key.secret)).ok()
    }

    /// The session that a token was issued for.
    pub(super) fn read(&self, token: &str, now: Timestamp) -> Result<SessionId, Unsound> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Unsound::Other);
        }
        let header = decode_header(token).map_err(|_| Unsound::Other)?;
        let id = header.kid.and_then(|id| Uuid::try_parse(&id).ok()).ok_or(Unsound::Other)?;
        let keys = self.0.load();
        let key = keys.iter().find(|key| key.id == id).ok_or(Unsound::UnknownKey)?;
        let mut rules = Validation::new(Algorithm::HS256);
        rules.set_issuer(&[ISSUER]);
        rules.set_audience(&[ISSUER]);
        // By our own clock, below: the library asks the system's.
        rules.validate_exp = false;
        let claims = decode::<Claims>(token, &DecodingKey::from_secret(&key.secret), &rules);
        let claims = claims.map_err(|_| Unsound::Other)?.claims;
        if claims.exp <= now.as_second() { Err(Unsound::Other) } else { Ok(claims.sid) }
    }
}
