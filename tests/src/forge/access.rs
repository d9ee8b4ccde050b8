//! Who calls, and what they may do.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

use super::refusal::Refusal;
use super::state::{AppOptions, Inner, now};

/// GitHub refuses a JWT that lives longer.
const MAX_JWT_LIFE_S: u64 = 600;

/// The public half of an App's key.
#[derive(Clone)]
pub struct AppKey(DecodingKey);

impl AppKey {
    /// A new pair: the private half as PEM, as the App's owner downloads it, and the public half.
    pub fn generate() -> anyhow::Result<(String, Self)> {
        let pair = KeyPair::generate(KeySize::Rsa2048).context("while making an RSA key")?;
        let der = pair.as_der().context("while encoding an RSA key")?;
        let lines: Vec<String> =
            STANDARD.encode(der.as_ref()).as_bytes().chunks(64).map(|c| String::from_utf8_lossy(c).into()).collect();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        Ok((pem, Self(DecodingKey::from_rsa_der(pair.public_key().as_ref()))))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatAccess {
    Read,
    Write,
}

/// With what a request came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    Anonymous,
    /// The App itself.
    App,
    /// An installation's token, with its permissions.
    Installation {
        permissions: BTreeMap<String, String>,
    },
    ReadToken {
        login: String,
    },
    WriteToken {
        login: String,
    },
    /// Unknown, expired or badly signed.
    Invalid,
}

/// What the forge knows of a token it gave out.
pub(super) struct Secret {
    credential: Credential,
    login: String,
    /// `None`: all.
    repositories: Option<Vec<u64>>,
    expires_at: Option<Timestamp>,
}

impl Secret {
    pub(super) fn pat(login: &str, access: PatAccess) -> Self {
        let credential = match access {
            PatAccess::Read => Credential::ReadToken { login: login.to_owned() },
            PatAccess::Write => Credential::WriteToken { login: login.to_owned() },
        };
        Self { credential, login: login.to_owned(), repositories: None, expires_at: None }
    }

    pub(super) fn installation(
        login: String,
        repositories: Option<Vec<u64>>,
        permissions: BTreeMap<String, String>,
        expires_at: Timestamp,
    ) -> Self {
        let credential = Credential::Installation { permissions };
        Self { credential, login, repositories, expires_at: Some(expires_at) }
    }
}

/// Who a request comes from.
pub(super) struct Caller {
    pub(super) credential: Credential,
    pub(super) login: Option<String>,
    repositories: Option<Vec<u64>>,
}

/// One thing to do with a repository, in the words of GitHub's App permissions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    pub(super) permission: &'static str,
    pub(super) write: bool,
}

impl Caller {
    /// From an `Authorization` header.
    pub(super) fn identify(inner: &Inner, app: Option<&AppOptions>, header: Option<&str>) -> Self {
        let nobody = |credential| Self { credential, login: None, repositories: None };
        let Some(header) = header else {
            return nobody(Credential::Anonymous);
        };
        let Some(token) = token(header) else {
            return nobody(Credential::Invalid);
        };
        if let Some(app) = app
            && token.matches('.').count() == 2
        {
            return nobody(if is_app(app, &token) { Credential::App } else { Credential::Invalid });
        }
        match inner.secrets.get(&token) {
            Some(secret) if secret.expires_at.is_none_or(|end| now() < end) => Self {
                credential: secret.credential.clone(),
                login: Some(secret.login.clone()),
                repositories: secret.repositories.clone(),
            },
            _ => nobody(Credential::Invalid),
        }
    }

    /// Whether an installation's token is for this repository; others are for all.
    pub(super) fn covers(&self, repository: u64) -> bool {
        self.repositories.as_ref().is_none_or(|covered| covered.contains(&repository))
    }

    pub(super) fn covers_all(&self) -> bool {
        self.repositories.is_none()
    }

    /// The caller's name on what it writes.
    pub(super) fn author(&self) -> &str {
        self.login.as_deref().unwrap_or("ghost")
    }

    pub(super) fn may(&self, repository: u64, private: bool, need: Need) -> Result<(), Refusal> {
        let covered = self.covers(repository);
        match &self.credential {
            Credential::Invalid => Err(Refusal::bad_credentials()),
            Credential::App => Err(Refusal::bad_credentials()),
            Credential::Anonymous if need.write => Err(Refusal::requires_authentication()),
            Credential::Anonymous if private => Err(Refusal::not_found()),
            Credential::Anonymous | Credential::WriteToken { .. } => Ok(()),
            Credential::ReadToken { .. } if need.write => {
                Err(Refusal::forbidden("Resource not accessible by personal access token"))
            }
            Credential::ReadToken { .. } => Ok(()),
            Credential::Installation { .. } if !covered && (private || need.write) => Err(Refusal::not_found()),
            Credential::Installation { permissions } => {
                let given = permissions.get(need.permission).map(String::as_str);
                let enough =
                    matches!((need.permission, need.write, given), ("metadata", false, _) | (_, _, Some("write")))
                        || (!need.write && given == Some("read"));
                if enough { Ok(()) } else { Err(Refusal::forbidden("Resource not accessible by integration")) }
            }
        }
    }
}

/// `Bearer <token>`, `token <token>`, or the password of `Basic`.
fn token(header: &str) -> Option<String> {
    let (scheme, rest) = header.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" | "token" => Some(rest.trim().to_owned()),
        "basic" => {
            let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
            Some(text.split_once(':')?.1.to_owned())
        }
        _ => None,
    }
}

fn is_app(app: &AppOptions, token: &str) -> bool {
    let mut rules = Validation::new(Algorithm::RS256);
    rules.set_required_spec_claims(&["exp"]);
    let Ok(data) = jsonwebtoken::decode::<Value>(token, &app.public_key.0, &rules) else {
        return false;
    };
    let number = |name: &str| {
        let claim = data.claims.get(name)?;
        claim.as_u64().or_else(|| claim.as_str()?.parse().ok())
    };
    let (Some(issuer), Some(issued), Some(end)) = (number("iss"), number("iat"), number("exp")) else {
        return false;
    };
    let now = u64::try_from(now().as_second()).unwrap_or(0);
    issuer == app.id && issued <= now && end <= now + MAX_JWT_LIFE_S
}
