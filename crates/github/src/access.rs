//! Which credential serves which call. An App's tokens are minted for one repository and one purpose.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use fettle_app::ports::forge::{F, ForgeAccess, ForgeError};
use fettle_domain::repo::{Repo, RepoName};
use http::Method;
use jiff::Timestamp;
use octocrab::Octocrab;
use octocrab::jsonwebtoken::{EncodingKey, errors::Error as JwtError};
use octocrab::models::AppId;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::exchange::{Answer, Call, Failure, route};
use crate::reader::in_repo;
use crate::wire::{InstallationWire, TokenWire, UserWire};
use crate::{GitHub, GitHubAuth};

/// A token with less life than this is not handed out: it must outlast the clone or push it was asked for.
const TOKEN_MARGIN: Duration = Duration::from_secs(300);

pub(crate) enum Access {
    App,
    Tokens { read: Option<SecretString>, write: Option<SecretString> },
    Anonymous,
}

pub(crate) fn open(auth: GitHubAuth) -> Result<(Access, Option<(AppId, EncodingKey)>), JwtError> {
    Ok(match auth {
        GitHubAuth::App { app_id, private_key } => {
            let key = EncodingKey::from_rsa_pem(private_key.expose_secret().as_bytes())?;
            (Access::App, Some((AppId(app_id), key)))
        }
        GitHubAuth::Tokens { read, write } => (Access::Tokens { read, write }, None),
        GitHubAuth::Anonymous => (Access::Anonymous, None),
    })
}

/// What a token may do, and so who may hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Handed to the worker that clones.
    Checkout,
    /// Our own reads over REST.
    Read,
    /// The publisher's.
    Write,
}

impl Purpose {
    fn permissions(self) -> Value {
        match self {
            Self::Checkout => json!({ "contents": "read" }),
            Self::Read => json!({ "issues": "read", "metadata": "read", "pull_requests": "read" }),
            Self::Write => json!({ "contents": "write", "issues": "write", "pull_requests": "write" }),
        }
    }
}

/// Minted tokens until [`TOKEN_MARGIN`] before their end.
#[derive(Default)]
pub(crate) struct TokenCache(Mutex<HashMap<(u64, Purpose), (SecretString, Instant)>>);

impl TokenCache {
    fn find(&self, repo: u64, purpose: Purpose) -> Option<SecretString> {
        let tokens = self.0.lock().expect("no holder of the token cache panics");
        tokens.get(&(repo, purpose)).filter(|(_, until)| Instant::now() < *until).map(|(token, _)| token.clone())
    }

    fn put(&self, repo: u64, purpose: Purpose, token: SecretString, until: Instant) {
        let now = Instant::now();
        let mut tokens = self.0.lock().expect("no holder of the token cache panics");
        tokens.retain(|_, (_, until)| now < *until);
        tokens.insert((repo, purpose), (token, until));
    }

    fn forget(&self, repo: u64, purpose: Purpose) {
        self.0.lock().expect("no holder of the token cache panics").remove(&(repo, purpose));
    }
}

impl GitHub {
    /// Sends `call` about `repo` with the credential for `purpose`. A minted token that GitHub no longer takes is
    /// replaced once: 401 says that nothing was applied.
    ///
    /// Errors with [`ForgeError::RateLimited`] before it asks for what can wait while little of the allowance is left.
    pub(crate) async fn ask(&self, repo: &Repo, purpose: Purpose, call: &Call) -> F<Answer> {
        let owner = repo.installation;
        if let Some(wait) = self.allowances.wait(owner).filter(|_| call.can_wait) {
            return Err(ForgeError::RateLimited { wait });
        }
        let answer = self.ask_now(repo, purpose, call).await?;
        self.allowances.note(owner, &answer.headers, answer.date());
        Ok(answer)
    }

    async fn ask_now(&self, repo: &Repo, purpose: Purpose, call: &Call) -> F<Answer> {
        let client = self.client(repo, purpose).await?;
        match self.exchange(&client, call).await {
            Err(Failure { unauthorized: true, .. }) if self.is_app() => {
                self.tokens.forget(repo.forge_id, purpose);
                let client = self.client(repo, purpose).await?;
                Ok(self.exchange(&client, call).await?)
            }
            other => Ok(other?),
        }
    }

    /// The same connections under another credential.
    async fn client(&self, repo: &Repo, purpose: Purpose) -> F<Octocrab> {
        match &*self.access.now() {
            Access::App => Ok(self.bearing(&self.minted(repo, purpose).await?)),
            Access::Tokens { .. } | Access::Anonymous => self.configured(purpose),
        }
    }

    /// Without a repository: the configured token, or none.
    fn configured(&self, purpose: Purpose) -> F<Octocrab> {
        let access = self.access.now();
        let token = match (&*access, purpose) {
            (Access::Tokens { read, write }, Purpose::Read | Purpose::Checkout) => read.as_ref().or(write.as_ref()),
            (Access::Tokens { write: Some(write), .. }, Purpose::Write) => Some(write),
            (_, Purpose::Write) => return Err(ForgeError::Denied("there is no token that may write".to_owned())),
            (Access::App | Access::Anonymous, _) => None,
        };
        Ok(token.map_or_else(|| self.root.clone(), |token| self.bearing(token)))
    }

    fn bearing(&self, token: &SecretString) -> Octocrab {
        self.root.user_access_token(token.clone()).expect("octocrab only stores the token")
    }

    /// The token that leaves this crate.
    pub(crate) async fn token(&self, repo: &Repo, purpose: Purpose) -> F<Option<SecretString>> {
        match (&*self.access.now(), purpose) {
            (Access::App, _) => self.minted(repo, purpose).await.map(Some),
            (Access::Tokens { read, .. }, Purpose::Checkout | Purpose::Read) => Ok(read.clone()),
            (Access::Tokens { write, .. }, Purpose::Write) => Ok(write.clone()),
            (Access::Anonymous, _) => Ok(None),
        }
    }

    /// A token for exactly this repository. Two callers at once may mint two: both are good.
    async fn minted(&self, repo: &Repo, purpose: Purpose) -> F<SecretString> {
        if let Some(token) = self.tokens.find(repo.forge_id, purpose) {
            return Ok(token);
        }
        let installation = match repo.installation {
            Some(id) => id,
            None => self.installation(&repo.name).await?,
        };
        let asked_at = Instant::now();
        let wanted = json!({ "repository_ids": [repo.forge_id], "permissions": purpose.permissions() });
        let (token, life) = self.mint(installation, wanted).await?;
        if let Some(useful) = life.checked_sub(TOKEN_MARGIN) {
            self.tokens.put(repo.forge_id, purpose, token.clone(), asked_at + useful);
        }
        Ok(token)
    }

    /// As what an installation sees: every repository that was given to it, and nothing in them.
    pub(crate) async fn as_installation(&self, installation: u64) -> F<Octocrab> {
        let (token, _) = self.mint(installation, json!({ "permissions": { "metadata": "read" } })).await?;
        Ok(self.bearing(&token))
    }

    /// As the App itself. `None`: we are none.
    pub(crate) fn as_app(&self) -> Option<&Octocrab> {
        self.is_app().then_some(&self.root)
    }

    /// As whoever writes with the configured token.
    pub(crate) fn as_writer(&self) -> F<Octocrab> {
        self.configured(Purpose::Write)
    }

    async fn mint(&self, installation: u64, wanted: Value) -> F<(SecretString, Duration)> {
        let path = route(&["app", "installations", &installation.to_string(), "access_tokens"]);
        let call = Call::preparing(Method::POST, path, "App installation").with(wanted);
        let answer = self.exchange(&self.root, &call).await?;
        let token: TokenWire = answer.parse()?;
        // The forge's own clock on both sides: ours may be wrong. Without it the token is used once.
        let life = answer.date().map_or(Duration::ZERO, |now| life(&token, now));
        Ok((token.token.into(), life))
    }

    /// The App's installation that covers the repository.
    async fn installation(&self, name: &RepoName) -> F<u64> {
        let path = route(&["repos", name.owner(), name.name(), "installation"]);
        let call = Call::read(path, format!("installation of the App on {name}"));
        let found: InstallationWire = self.exchange(&self.root, &call).await?.parse()?;
        Ok(found.id)
    }

    /// For a repository whose id is not known yet: its installation and a client that may look at it.
    pub(crate) async fn introduce(&self, name: &RepoName) -> F<(Option<u64>, Octocrab)> {
        match &*self.access.now() {
            Access::App => {
                let installation = self.installation(name).await?;
                let wanted = json!({ "repositories": [name.name()], "permissions": { "metadata": "read" } });
                let (token, _) = self.mint(installation, wanted).await?;
                Ok((Some(installation), self.bearing(&token)))
            }
            Access::Tokens { .. } | Access::Anonymous => Ok((None, self.configured(Purpose::Read)?)),
        }
    }

    /// `/app` for an App, `/user` for the token that writes.
    pub(crate) async fn who_am_i(&self) -> F<Answer> {
        match &*self.access.now() {
            Access::App => Ok(self.exchange(&self.root, &Call::read(route(&["app"]), "App")).await?),
            Access::Tokens { read, write } => {
                let Some(token) = write.as_ref().or(read.as_ref()) else {
                    return Err(ForgeError::Denied("no token is configured".to_owned()));
                };
                Ok(self.exchange(&self.bearing(token), &Call::read(route(&["user"]), "user")).await?)
            }
            Access::Anonymous => Err(ForgeError::Denied("no credentials are configured".to_owned())),
        }
    }

    pub(crate) fn is_app(&self) -> bool {
        matches!(*self.access.now(), Access::App)
    }
}

#[async_trait]
impl ForgeAccess for GitHub {
    fn can_write(&self) -> bool {
        match &*self.access.now() {
            Access::App => true,
            Access::Tokens { write, .. } => write.is_some(),
            Access::Anonymous => false,
        }
    }

    async fn login_of(&self, token: &SecretString) -> F<String> {
        let answer = self.exchange(&self.bearing(token), &Call::read(route(&["user"]), "user")).await?;
        Ok(answer.parse::<UserWire>()?.login)
    }

    async fn may_write(&self, repo: &Repo) -> F<()> {
        // A branch at a commit that cannot be: who may write hears that (422), others that they may not (403, or 404 where even that is
        // not told). What a repository tells of permissions is the user's, and a token may have fewer.
        let wanted = json!({ "ref": "refs/heads/fettle/permission-check", "sha": "0".repeat(40) });
        let path = in_repo(repo, &["git", "refs"]);
        let call = Call::preparing(Method::POST, path, format!("repository {} to write to", repo.name)).with(wanted);
        // A token that is not even made is no yes.
        self.token(repo, Purpose::Write).await.map_err(|error| match error {
            ForgeError::Refused(why) => ForgeError::Denied(why),
            other => other,
        })?;
        match self.ask(repo, Purpose::Write, &call).await {
            Ok(_) | Err(ForgeError::Refused(_)) => Ok(()),
            Err(ForgeError::NotFound(what)) => Err(ForgeError::Denied(format!("it shows no {what}"))),
            Err(other) => Err(other),
        }
    }

    fn use_tokens(&self, read: Option<SecretString>, write: Option<SecretString>) {
        self.access.set(match (&read, &write) {
            (None, None) => Access::Anonymous,
            _ => Access::Tokens { read, write },
        });
        // What others may see and do, and who we are.
        self.permissions.lock().expect("no holder of the permission cache panics").clear();
        self.own_login.set(None);
    }
}

fn life(token: &TokenWire, now: Timestamp) -> Duration {
    Duration::try_from(token.expires_at.duration_since(now)).unwrap_or(Duration::ZERO)
}
