//! Sign-ins by another provider, bound to the browser that began.
//!
//! All that binds follows from one secret in the browser's cookie, so nothing is kept here while somebody is away, and whichever
//! dashboard they come back to can go on.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fettle_domain::access::Role;
use fettle_domain::account::Email;
use fettle_domain::audit_log::Note;
use fettle_domain::id::UserId;
use fettle_domain::oidc::{Allowed, Claims, Expected, username};
use fettle_domain::session::Kind;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{DoorError, Doorkeeper, Origin, SignedIn, UNKNOWN, note, secret_text};
use crate::ports::accounts::{Added, Founding, Identity, NewUser, PasswordHash, SignInBy, User};
use crate::ports::chain;
use crate::ports::provider::{IdentityProvider, Request};

/// Names that are tried for somebody new; so many of one name there are not.
const NAMES_TRIED: u32 = 50;

/// A provider, and who of those whom it knows comes in as what.
pub struct Foreign {
    pub provider: Arc<dyn IdentityProvider>,
    /// As the sign-in page shows it.
    pub name: String,
    pub allowed: Allowed,
    /// Of whoever comes for the first time.
    pub role: Role,
}

/// What follows from a browser's secret.
struct Flow {
    state: String,
    nonce: String,
    verifier: SecretString,
}

impl Flow {
    fn of(secret: &SecretString) -> Self {
        let part = |purpose: &[u8]| {
            let secret = secret.expose_secret().as_bytes();
            hex::encode(Sha256::new().chain_update(purpose).chain_update([0]).chain_update(secret).finalize())
        };
        Self { state: part(b"state"), nonce: part(b"nonce"), verifier: part(b"verifier").into() }
    }

    fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.verifier.expose_secret()))
    }
}

/// What a browser comes back with.
#[derive(Debug)]
pub struct Returned {
    pub state: String,
    pub code: String,
}

impl Doorkeeper {
    fn foreign(&self) -> Result<&Foreign, DoorError> {
        self.foreign.as_ref().ok_or(DoorError::NotFound)
    }

    /// Where a browser is sent, and the secret that it takes along.
    pub async fn begin_foreign(&self) -> Result<(String, SecretString), DoorError> {
        let foreign = self.foreign()?;
        let secret = secret_text("", self.secrets.secret());
        let flow = Flow::of(&secret);
        let challenge = flow.challenge();
        let request = Request { state: flow.state, nonce: flow.nonce, challenge };
        Ok((foreign.provider.authorization_url(&request).await?, secret))
    }

    /// Signs in whoever comes back from the provider, with an account of their own that is made when they first come.
    pub async fn end_foreign(
        &self,
        secret: Option<&SecretString>,
        returned: &Returned,
        origin: &Origin,
    ) -> Result<SignedIn, DoorError> {
        let foreign = self.foreign()?;
        let ended = self.foreign_user(foreign, secret, returned, origin).await;
        match &ended {
            Ok(_) => {}
            Err(DoorError::Ledger(_) | DoorError::Busy(_)) => {}
            Err(error) => {
                let detail = format!("{}: {}", foreign.provider.issuer(), chain(error));
                let refused = Note { result: "refused".into(), detail, ..note(UNKNOWN, "login", "", origin) };
                self.store.note(refused).await?;
            }
        }
        self.sign_in(&ended?, SignInBy::Identity, Kind::Browser, origin).await
    }

    async fn foreign_user(
        &self,
        foreign: &Foreign,
        secret: Option<&SecretString>,
        returned: &Returned,
        origin: &Origin,
    ) -> Result<User, DoorError> {
        // Without it, somebody else's sign-in could be finished in this browser.
        let flow = secret.map(Flow::of).ok_or(DoorError::NotBegunHere)?;
        if !bool::from(flow.state.as_bytes().ct_eq(returned.state.as_bytes())) {
            return Err(DoorError::NotBegunHere);
        }
        let claims = foreign.provider.redeem(&returned.code, &flow.verifier).await?;
        let (issuer, client_id) = (foreign.provider.issuer(), foreign.provider.client_id());
        claims.check(Expected { issuer, client_id, nonce: &flow.nonce }, self.clock.now())?;
        let email = foreign.allowed.admits(&claims)?;
        let identity = Identity { issuer: claims.iss.clone(), subject: claims.sub.clone() };
        let user = match self.store.find_user_by_identity(&identity).await? {
            Some(user) => user,
            None => self.add_foreign(foreign, identity, &claims, email, origin).await?,
        };
        // Who they are is proven, so this tells nobody anything new.
        if user.standing.active { Ok(user) } else { Err(DoorError::Inactive) }
    }

    async fn add_foreign(
        &self,
        foreign: &Foreign,
        identity: Identity,
        claims: &Claims,
        email: Email,
        origin: &Origin,
    ) -> Result<User, DoorError> {
        for nth in 1..=NAMES_TRIED {
            let Some(username) = username(claims, &email, nth) else { continue };
            let id = UserId::from_uuid(self.ids.uuid());
            let detail = format!("{} as {} by {}", username.as_str(), foreign.role.name(), identity.issuer);
            let note = Note { detail, ..note(username.as_str(), "register", id, origin) };
            let user = NewUser {
                id,
                username,
                email: email.clone(),
                password: PasswordHash::none(),
                role: foreign.role,
                identity: Some(identity.clone()),
            };
            match self.store.add_user(user, Founding::Later, note).await? {
                Added::Added(user) => return Ok(user),
                Added::UsernameTaken => {}
                // Whoever has it has an account with a password, and did not say that this is the same person.
                Added::EmailTaken => return Err(DoorError::EmailHasAccount),
                Added::IdentityTaken => {
                    return self.store.find_user_by_identity(&identity).await?.ok_or(DoorError::NotFound);
                }
                Added::AdminExists => return Err(DoorError::SetUp),
            }
        }
        Err(DoorError::UsernameTaken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_binds_a_sign_in_is_of_one_browser_and_tells_nothing_of_its_secret() {
        let (one, other) = (Flow::of(&"one".into()), Flow::of(&"other".into()));
        let parts = |flow: &Flow| {
            [flow.state.clone(), flow.nonce.clone(), flow.verifier.expose_secret().to_owned(), flow.challenge()]
        };
        let all: std::collections::BTreeSet<String> = parts(&one).into_iter().chain(parts(&other)).collect();
        assert_eq!(all.len(), 8);
        assert_eq!(parts(&one), parts(&Flow::of(&"one".into())));
        // RFC 7636, 4.1: 43 to 128 characters.
        assert!((43..=128).contains(&one.verifier.expose_secret().len()));
    }
}
