//! Who asks, and what they may ask for: static keys and run tokens. Keys are compared in constant time and never shown.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use fettle_app::run_token::{self, RunClaims, RunTokenKey, TokenError};
use fettle_domain::id::JobId;
use fettle_domain::lease::Fence;
use fettle_placement::id::OwnerId;
use fettle_placement::view::Class;
use fettle_protocols::Failure;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use crate::settings::{Settings, StaticKey};

/// Above it, jobs whose last token has expired are forgotten.
const MANY_JOBS: usize = 4_096;

#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) owner: OwnerId,
    pub(crate) class: Class,
    /// `None`: all.
    models: Option<Vec<String>>,
    pub(crate) run: Option<Box<RunClaims>>,
}

impl Caller {
    pub(crate) fn may_ask(&self, model: &str) -> Result<(), Failure> {
        match &self.models {
            Some(models) if models.iter().all(|allowed| allowed != model) => {
                Err(Failure::NotAllowed { sentence: "This key may not use this model.".to_owned() })
            }
            _ => Ok(()),
        }
    }
}

pub(crate) struct Access {
    keys: Vec<StaticKey>,
    run_tokens: Option<RunTokenKey>,
    without_key: Option<OwnerId>,
    fences: Mutex<HashMap<JobId, Newest>>,
}

/// The newest lease of a job that was seen, and when its token expires.
struct Newest {
    fence: Fence,
    expires: Timestamp,
}

impl Access {
    pub(crate) fn new(settings: &mut Settings) -> Self {
        Self {
            keys: std::mem::take(&mut settings.keys),
            run_tokens: settings.run_token_key.take(),
            without_key: settings.without_key.take(),
            fences: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn identify(&self, headers: &HeaderMap, now: Timestamp) -> Result<Caller, Failure> {
        let Some(key) = shown_key(headers) else {
            let owner = self.without_key.clone().ok_or_else(|| bad_key("A key is needed."))?;
            refuse_browsers(headers)?;
            return Ok(Caller { owner, class: Class::Interactive, models: None, run: None });
        };
        if key.starts_with(run_token::PREFIX) {
            // Never somebody else, whoever may ask without a key.
            let tokens = self.run_tokens.as_ref().ok_or_else(|| bad_key("Tokens of runs are not known here."))?;
            return self.admit_run(tokens.verify(key, now).map_err(refuse_token)?, now);
        }
        // All keys are looked at, so that the time tells nothing of which one it nearly was.
        let mut found = None;
        for known in &self.keys {
            if bool::from(known.key.expose_secret().as_bytes().ct_eq(key.as_bytes())) {
                found = Some(known);
            }
        }
        match (found, &self.without_key) {
            (Some(known), _) => {
                Ok(Caller { owner: known.owner.clone(), class: known.class, models: known.models.clone(), run: None })
            }
            // SDKs insist on some key.
            (None, Some(owner)) => {
                refuse_browsers(headers)?;
                Ok(Caller { owner: owner.clone(), class: Class::Interactive, models: None, run: None })
            }
            (None, _) => Err(bad_key("This key is not known here.")),
        }
    }

    /// Whether what was begun with a token may still go on.
    pub(crate) fn still_good(&self, claims: &RunClaims, now: Timestamp) -> Result<(), Failure> {
        if claims.expires <= now {
            return Err(refuse_token(TokenError::Expired));
        }
        let fences = self.fences.lock().unwrap_or_else(PoisonError::into_inner);
        match fences.get(&claims.job) {
            Some(newest) if claims.fence < newest.fence => Err(old_lease()),
            _ => Ok(()),
        }
    }

    fn admit_run(&self, claims: RunClaims, now: Timestamp) -> Result<Caller, Failure> {
        let mut fences = self.fences.lock().unwrap_or_else(PoisonError::into_inner);
        if fences.len() >= MANY_JOBS {
            fences.retain(|_, newest| newest.expires > now);
        }
        let newest = fences.entry(claims.job).or_insert(Newest { fence: claims.fence, expires: claims.expires });
        if claims.fence < newest.fence {
            return Err(old_lease());
        }
        newest.fence = claims.fence;
        newest.expires = newest.expires.max(claims.expires);
        Ok(Caller {
            owner: OwnerId::new(claims.repository.clone()),
            class: claims.class,
            models: Some(claims.models.clone()),
            run: Some(Box::new(claims)),
        })
    }
}

/// Where no key is needed, a page in somebody's browser could ask as well, and spend what the models cost: directly, which says
/// `Origin`, or by a name of its own for this machine. Programs send neither.
fn refuse_browsers(headers: &HeaderMap) -> Result<(), Failure> {
    let named = headers.get(HOST).and_then(|host| host.to_str().ok()).is_none_or(|host| {
        let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
        name == "localhost"
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    if named && !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let sentence = "Pages in a browser, and names other than localhost, may ask only with a key.";
    Err(Failure::NotAllowed { sentence: sentence.to_owned() })
}

fn shown_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok()).filter(|key| !key.is_empty())
}

fn refuse_token(error: TokenError) -> Failure {
    match error {
        TokenError::Forged => bad_key("This key is not known here."),
        TokenError::Expired => bad_key("This token has expired."),
    }
}

fn old_lease() -> Failure {
    let sentence = "The lease that this token was made for is no longer the newest of its job.";
    Failure::NotAllowed { sentence: sentence.to_owned() }
}

fn bad_key(sentence: &str) -> Failure {
    Failure::BadKey { sentence: sentence.to_owned() }
}

#[cfg(test)]
mod tests {
    use fettle_app::run_token::RunBudgets;
    use fettle_domain::id::RunId;
    use http::HeaderValue;
    use uuid::Uuid;

    use super::*;

    const SIGNING: &str = "a signing key of forty bytes, all in all";

    fn access() -> Access {
        let mut settings = Settings::new("usage".into());
        settings.run_token_key = Some(RunTokenKey::new(&SIGNING.to_owned().into()).unwrap());
        settings.keys = vec![
            StaticKey {
                key: "open sesame".to_owned().into(),
                owner: OwnerId::new("ada"),
                class: Class::Interactive,
                models: None,
            },
            StaticKey {
                key: "narrow".to_owned().into(),
                owner: OwnerId::new("ben"),
                class: Class::Batch,
                models: Some(vec!["small".to_owned()]),
            },
        ];
        Access::new(&mut settings)
    }

    fn shown(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    fn token(fence: u64) -> HeaderMap {
        let claims = RunClaims {
            run: RunId::from_uuid(Uuid::from_u128(1)),
            job: JobId::from_uuid(Uuid::from_u128(2)),
            fence: Fence::new(fence),
            models: vec!["coder".to_owned()],
            budgets: RunBudgets::default(),
            repository: "ada/engine".to_owned(),
            class: Class::Batch,
            expires: Timestamp::from_second(1_000).unwrap(),
        };
        let token = RunTokenKey::new(&SIGNING.to_owned().into()).unwrap().sign(&claims);
        shown("authorization", &format!("Bearer {}", token.expose_secret()))
    }

    #[test]
    fn a_key_is_taken_from_either_header_and_names_its_owner() {
        let (access, now) = (access(), Timestamp::UNIX_EPOCH);
        assert_eq!(access.identify(&shown("authorization", "bearer open sesame"), now).unwrap().owner.as_str(), "ada");
        let ben = access.identify(&shown("x-api-key", "narrow"), now).unwrap();
        assert_eq!((ben.owner.as_str(), ben.class), ("ben", Class::Batch));
        assert!(ben.may_ask("small").is_ok());
        assert!(matches!(ben.may_ask("large"), Err(Failure::NotAllowed { .. })));
    }

    #[test]
    fn without_keys_a_page_in_a_browser_is_refused_and_programs_are_not() {
        let mut settings = Settings::new("usage".into());
        settings.without_key = Some(OwnerId::new("local"));
        let access = Access::new(&mut settings);
        let asks = |headers: &HeaderMap| access.identify(headers, Timestamp::UNIX_EPOCH).is_ok();
        for host in ["127.0.0.1:8484", "localhost:8484", "[::1]:8484", "localhost", "127.0.0.1"] {
            assert!(asks(&shown("host", host)), "{host}");
        }
        assert!(!asks(&shown("host", "evil.example:8484")));
        assert!(!asks(&shown("host", "192.168.1.1:8484")));
        let mut page = shown("host", "127.0.0.1:8484");
        page.insert(ORIGIN, HeaderValue::from_static("null"));
        assert!(!asks(&page));
        page.insert(AUTHORIZATION, HeaderValue::from_static("Bearer any"));
        assert!(!asks(&page));
    }

    #[test]
    fn an_unknown_key_and_none_are_refused() {
        let (access, now) = (access(), Timestamp::UNIX_EPOCH);
        for headers in [
            HeaderMap::new(),
            shown("x-api-key", "open sesam"),
            shown("authorization", "Basic open sesame"),
            shown("authorization", "Bearer fettle_run.e30.AAAA"),
        ] {
            assert!(matches!(access.identify(&headers, now), Err(Failure::BadKey { .. })), "{headers:?}");
        }
    }

    #[test]
    fn without_configured_keys_any_key_is_the_one_owners() {
        let mut settings = Settings::new("usage".into());
        settings.without_key = Some(OwnerId::new("everybody"));
        let access = Access::new(&mut settings);
        for headers in [HeaderMap::new(), shown("x-api-key", "whatever")] {
            assert_eq!(access.identify(&headers, Timestamp::UNIX_EPOCH).unwrap().owner.as_str(), "everybody");
        }
        let token = access.identify(&shown("authorization", "Bearer fettle_run.a.b"), Timestamp::UNIX_EPOCH);
        assert!(matches!(token, Err(Failure::BadKey { .. })), "a run is not everybody");
    }

    #[test]
    fn a_run_may_use_its_models_until_its_token_expires() {
        let access = access();
        let caller = access.identify(&token(7), Timestamp::UNIX_EPOCH).unwrap();
        assert!(caller.may_ask("coder").is_ok() && caller.may_ask("small").is_err());
        let late = access.identify(&token(7), Timestamp::from_second(1_000).unwrap());
        assert!(matches!(late, Err(Failure::BadKey { .. })));
    }

    #[test]
    fn a_lease_that_was_followed_by_another_is_refused() {
        let (access, now) = (access(), Timestamp::UNIX_EPOCH);
        assert!(access.identify(&token(7), now).is_ok());
        assert!(access.identify(&token(8), now).is_ok());
        assert!(matches!(access.identify(&token(7), now), Err(Failure::NotAllowed { .. })));
        assert!(access.identify(&token(8), now).is_ok());
    }

    #[test]
    fn what_was_begun_may_go_on_while_its_token_and_lease_are_good() {
        let (access, now) = (access(), Timestamp::UNIX_EPOCH);
        let claims = access.identify(&token(7), now).unwrap().run.unwrap();
        assert_eq!(access.still_good(&claims, now), Ok(()));
        assert!(matches!(access.still_good(&claims, claims.expires), Err(Failure::BadKey { .. })));
        assert!(access.identify(&token(8), now).is_ok());
        assert!(matches!(access.still_good(&claims, now), Err(Failure::NotAllowed { .. })));
    }
}
