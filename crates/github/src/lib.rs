//! GitHub behind the forge ports: REST through octocrab, App or token credentials, webhooks.
//!
//! Never retries a write: whoever holds the effect reads back first. Never gives a write token to a reader.

mod access;
mod allowance;
mod exchange;
mod reader;
mod watch;
pub mod webhook;
mod wire;
mod writer;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use fettle_app::live::Live;
use fettle_app::ports::BoxError;
use fettle_app::ports::forge::Permission;
use octocrab::Octocrab;
use secrecy::SecretString;

use tokio::time::Instant;
pub use url::Url;

use crate::access::{Access, TokenCache};
use crate::allowance::Allowances;

/// What a person changed in a repository's access holds after this time at the latest.
const PERMISSION_TTL: Duration = Duration::from_secs(300);
/// More people than ever trigger Fettle within [`PERMISSION_TTL`]; a full cache is emptied.
const MAX_CACHED_PERMISSIONS: usize = 10_000;

pub struct GitHubOptions {
    /// `https://api.github.com` when absent; `https://<host>/api/v3` on GitHub Enterprise Server.
    pub base_url: Option<Url>,
    pub auth: GitHubAuth,
    pub timeouts: Timeouts,
}

pub enum GitHubAuth {
    /// Each use mints a token for one repository and one purpose.
    App { app_id: u64, private_key: SecretString },
    /// Personal access tokens cannot be narrowed, so there are two. Readers are never given `write`.
    Tokens { read: Option<SecretString>, write: Option<SecretString> },
    /// Public repositories, read only.
    Anonymous,
}

#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Shorter than `answer`, so that a connection that never came up is told apart from a write without an answer.
    pub connect: Duration,
    /// From sending to the last byte of the answer.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(4), answer: Duration::from_secs(10) }
    }
}

/// The options cannot make a client; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("the App's private key is not an RSA key in PEM form")]
    PrivateKey(#[source] BoxError),
    #[error("could not build the forge client for `{base_url}`")]
    Client {
        base_url: String,
        #[source]
        source: BoxError,
    },
}

/// One connection pool, and for each call the narrowest credential that serves it.
pub struct GitHub {
    /// Without credentials, or as the App itself.
    root: Octocrab,
    access: Live<Access>,
    tokens: TokenCache,
    allowances: Allowances,
    permissions: Mutex<HashMap<(u64, String), (Permission, Instant)>>,
    own_login: Live<Option<String>>,
    answer_timeout: Duration,
    base_url: Url,
}

impl GitHub {
    /// Contacts nobody. Must be called within a tokio runtime, which then serves the connections.
    pub fn new(options: GitHubOptions) -> Result<Self, SetupError> {
        let GitHubOptions { base_url, auth, timeouts } = options;
        let (access, app) = access::open(auth).map_err(|e| SetupError::PrivateKey(e.into()))?;
        let base_url = base_url.unwrap_or_else(|| Url::parse("https://api.github.com").expect("a constant URL"));
        let client =
            |source: octocrab::Error| SetupError::Client { base_url: base_url.to_string(), source: source.into() };
        let mut builder = Octocrab::builder()
            .base_uri(base_url.as_str().trim_end_matches('/'))
            .map_err(client)?
            .set_connect_timeout(Some(timeouts.connect));
        if let Some((id, key)) = app {
            builder = builder.app(id, key);
        }
        let root = builder.build().map_err(client)?;
        Ok(Self {
            root,
            access: Live::new(access),
            tokens: TokenCache::default(),
            allowances: Allowances::default(),
            permissions: Mutex::default(),
            own_login: Live::new(None),
            answer_timeout: timeouts.answer,
            base_url,
        })
    }
}
