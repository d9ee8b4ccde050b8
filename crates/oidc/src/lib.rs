//! A provider of sign-ins by OpenID Connect: where it wants browsers sent, and what it says of who comes back.
//!
//! Vouches for the signature alone. Whether what was said is meant for us, for this sign-in and for now, is `fettle_domain::oidc`'s
//! to say.

mod signature;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fettle_app::ports::chain;
use fettle_app::ports::provider::{IdentityProvider, ProviderError, Request};
use fettle_domain::oidc::Claims;
use jsonwebtoken::jwk::JwkSet;
use reqwest::redirect;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::{Host, Url};

use signature::{Unsound, claims};

/// A person waits for the answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Documents and keys are some kilobytes.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// A provider that moves its addresses keeps the old ones for far longer.
const DOCUMENT_LASTS: Duration = Duration::from_secs(3600);
/// Keys are asked for again when one is unknown, and no more often than this: anybody can name one.
const KEYS_LAST: Duration = Duration::from_secs(60);

/// Of the configuration.
pub struct Options {
    /// As the provider writes itself, to the letter.
    pub issuer: String,
    pub client_id: String,
    /// Absent: a public client, which PKCE alone protects.
    pub client_secret: Option<SecretString>,
    /// Where browsers come back to, as it was registered there.
    pub redirect_url: String,
}

/// Why a configuration is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

pub struct Provider {
    options: Options,
    http: reqwest::Client,
    document: Mutex<Option<(Instant, Arc<Document>)>>,
    keys: Mutex<Option<(Instant, Arc<JwkSet>)>>,
}

/// What a provider says about itself (OpenID Connect Discovery, 3).
#[derive(Debug, Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Told {
    id_token: String,
}

impl Provider {
    pub fn new(options: Options) -> Result<Self, Refused> {
        let issuer = address(&options.issuer).map_err(|why| Refused(format!("the issuer {why}")))?;
        address(&options.redirect_url).map_err(|why| Refused(format!("the address of these pages {why}")))?;
        let builder = reqwest::Client::builder()
            .user_agent(concat!("fettle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT)
            // A code or secret goes where it was meant to, or nowhere.
            .redirect(redirect::Policy::none());
        let builder = if is_loopback(&issuer) { builder.no_proxy() } else { builder };
        let http = builder.build().map_err(|error| Refused(chain(&error)))?;
        Ok(Self { options, http, document: Mutex::default(), keys: Mutex::default() })
    }

    async fn document(&self) -> Result<Arc<Document>, ProviderError> {
        if let Some(known) = fresh(&self.document, DOCUMENT_LASTS) {
            return Ok(known);
        }
        let at = format!("{}/.well-known/openid-configuration", self.options.issuer.trim_end_matches('/'));
        let document: Document = self.answer(self.http.get(at)).await?;
        if document.issuer != self.options.issuer {
            return Err(refused(format!("it calls itself `{}`", document.issuer)));
        }
        for endpoint in [&document.authorization_endpoint, &document.token_endpoint, &document.jwks_uri] {
            address(endpoint).map_err(|why| refused(format!("`{endpoint}` {why}")))?;
        }
        let document = Arc::new(document);
        *self.document.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), document.clone()));
        Ok(document)
    }

    async fn keys(&self, document: &Document) -> Result<Arc<JwkSet>, ProviderError> {
        let keys: Arc<JwkSet> = Arc::new(self.answer(self.http.get(&document.jwks_uri)).await?);
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), keys.clone()));
        Ok(keys)
    }

    /// What the token says, if one of the provider's keys has signed it.
    async fn read(&self, token: &str, document: &Document) -> Result<Claims, ProviderError> {
        let lasting = fresh(&self.keys, Duration::MAX);
        let known = lasting.map(|keys| claims(token, &keys));
        let found = match known {
            Some(Err(Unsound::UnknownKey)) if fresh(&self.keys, KEYS_LAST).is_none() => None,
            known => known,
        };
        let found = match found {
            Some(found) => found,
            None => claims(token, &*self.keys(document).await?),
        };
        found.map_err(|unsound| refused(unsound.to_string()))
    }

    async fn answer<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, ProviderError> {
        let unavailable = |error: reqwest::Error| ProviderError::Unavailable(chain(&error.without_url()));
        let mut response = request.header("accept", "application/json").send().await.map_err(unavailable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(refused("its answer is far too large"));
            }
        }
        match status {
            status if status.is_success() => {
                serde_json::from_slice(&body).map_err(|_| refused("its answer is not what the protocol says"))
            }
            status if status.is_server_error() => Err(ProviderError::Unavailable(format!("it answered {status}"))),
            status => Err(refused(format!("it answered {status}"))),
        }
    }
}

#[async_trait]
impl IdentityProvider for Provider {
    fn issuer(&self) -> &str {
        &self.options.issuer
    }

    fn client_id(&self) -> &str {
        &self.options.client_id
    }

    async fn authorization_url(&self, request: &Request) -> Result<String, ProviderError> {
        let document = self.document().await?;
        let mut url = Url::parse(&document.authorization_endpoint).map_err(|_| refused("it has no address"))?;
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", &self.options.client_id),
            ("redirect_uri", &self.options.redirect_url),
            ("scope", "openid email profile"),
            ("state", &request.state),
            ("nonce", &request.nonce),
            ("code_challenge", &request.challenge),
            ("code_challenge_method", "S256"),
        ]);
        Ok(url.into())
    }

    async fn redeem(&self, code: &str, verifier: &SecretString) -> Result<Claims, ProviderError> {
        let document = self.document().await?;
        let Options { client_id, client_secret, redirect_url, .. } = &self.options;
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_url),
            ("code_verifier", verifier.expose_secret()),
        ];
        let mut request = self.http.post(&document.token_endpoint);
        // Without a word about it, the secret goes into the header (Discovery, 3).
        let methods = document.token_endpoint_auth_methods_supported.as_ref();
        let in_header = methods.is_none_or(|methods| methods.iter().any(|method| method == "client_secret_basic"));
        match client_secret {
            Some(secret) if in_header => {
                request = request.basic_auth(escaped(client_id), Some(escaped(secret.expose_secret())));
            }
            Some(secret) => form.extend([("client_id", client_id.as_str()), ("client_secret", secret.expose_secret())]),
            None => form.push(("client_id", client_id)),
        }
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        let told: Told = self.answer(request).await?;
        self.read(&told.id_token, &document).await
    }
}

/// As a form has it, which is how both go into the header (RFC 6749, 2.3.1).
fn escaped(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn refused(why: impl Into<String>) -> ProviderError {
    ProviderError::Refused(why.into())
}

fn fresh<T>(kept: &Mutex<Option<(Instant, Arc<T>)>>, lasts: Duration) -> Option<Arc<T>> {
    let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.as_ref().filter(|(since, _)| since.elapsed() < lasts).map(|(_, known)| known.clone())
}

/// Encrypted, or on this machine.
fn address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "is not a URL".to_owned())?;
    let plain = url.scheme() == "http" && is_loopback(&url);
    if (url.scheme() == "https" || plain) && url.has_host() && url.username().is_empty() && url.password().is_none() {
        Ok(url)
    } else {
        Err("is not an https URL without user name and password".to_owned())
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_encrypted_is_refused_but_on_this_machine() {
        for good in
            ["https://id.example.org", "https://id.example.org/realms/x", "http://127.0.0.1:8080", "http://[::1]:1"]
        {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in [
            "http://id.example.org",
            "id.example.org",
            "https://u:p@id.example.org",
            "file:///etc/passwd",
            "http://127.0.0.1.evil.example",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
