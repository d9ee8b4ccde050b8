//! Somebody else who knows people, and says who one is.

use async_trait::async_trait;
use fettle_domain::oidc::Claims;
use secrecy::SecretString;

/// What a browser takes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub state: String,
    pub nonce: String,
    /// SHA-256 of the verifier, as base64 for addresses.
    pub challenge: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// Try again later.
    #[error("the provider of sign-ins does not answer: {0}")]
    Unavailable(String),
    #[error("the provider of sign-ins is not followed: {0}")]
    Refused(String),
}

#[async_trait]
pub trait IdentityProvider: Send + Sync {
    /// As it must name itself.
    fn issuer(&self) -> &str;
    /// As it must name us.
    fn client_id(&self) -> &str;
    /// Where a browser is sent to sign in.
    async fn authorization_url(&self, request: &Request) -> Result<String, ProviderError>;
    /// What it says of whoever came back with `code`; signed by it, and not judged yet.
    async fn redeem(&self, code: &str, verifier: &SecretString) -> Result<Claims, ProviderError>;
}
