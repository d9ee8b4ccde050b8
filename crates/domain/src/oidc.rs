//! Signing in by another provider (OpenID Connect): what it must have said, and who of those whom it knows may come in.
//!
//! Whether it was the provider who said it, its signature tells; that is checked before.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer};

use crate::account::{Email, Username};

/// Clocks of two machines differ by so much.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// A statement is used within seconds of its being made; one that is older was kept by somebody.
const MAX_AGE: SignedDuration = SignedDuration::from_secs(10 * 60);
/// Bytes of a subject (OpenID Connect Core, 2).
const MAX_SUBJECT_BYTES: usize = 255;
/// Characters of a user name that is made here; room is left for a number behind it.
const MAX_NAME_CHARS: usize = 40;

/// What a provider says of somebody.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    #[serde(default)]
    pub azp: Option<String>,
    pub exp: i64,
    pub iat: i64,
    #[serde(default)]
    pub nonce: Option<String>,
    #[serde(default)]
    pub email: Option<String>,
    /// Some say it as text.
    #[serde(default, deserialize_with = "truth")]
    pub email_verified: bool,
    #[serde(default)]
    pub preferred_username: Option<String>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::One(one) => vec![one],
        Either::Many(many) => many,
    })
}

fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Truth(bool),
        Text(String),
        Nothing(()),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Truth(truth) => truth,
        Either::Text(text) => text == "true",
        Either::Nothing(()) => false,
    })
}

/// What must have been said.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'e> {
    pub issuer: &'e str,
    pub client_id: &'e str,
    /// Of the browser that began.
    pub nonce: &'e str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("another issuer than the configured one says it")]
    Issuer,
    #[error("it is meant for another client")]
    Audience,
    #[error("it has expired, or was made long ago")]
    Expired,
    #[error("it is of the future")]
    Early,
    #[error("it was made for another sign-in")]
    Nonce,
    #[error("it names nobody")]
    Subject,
}

impl Claims {
    /// Whether this may be used now, for this sign-in (OpenID Connect Core, 3.1.3.7).
    pub fn check(&self, expected: Expected<'_>, now: Timestamp) -> Result<(), Unfit> {
        let at = |seconds: i64| Timestamp::from_second(seconds).map_err(|_| Unfit::Expired);
        let later = |at: Timestamp, by: SignedDuration| at.checked_add(by).unwrap_or(Timestamp::MAX);
        if self.iss != expected.issuer {
            return Err(Unfit::Issuer);
        }
        let ours = |client: &String| client == expected.client_id;
        let alone = self.aud.len() == 1 && self.azp.as_ref().is_none_or(ours);
        // Said for several at once, it has to be said which of them asked.
        if !self.aud.iter().any(ours) || !(alone || self.azp.as_ref().is_some_and(ours)) {
            return Err(Unfit::Audience);
        }
        let (issued, expires) = (at(self.iat)?, at(self.exp)?);
        if later(expires, LEEWAY) <= now || later(issued, MAX_AGE) <= now {
            return Err(Unfit::Expired);
        }
        if issued > later(now, LEEWAY) {
            return Err(Unfit::Early);
        }
        if self.nonce.as_deref() != Some(expected.nonce) || expected.nonce.is_empty() {
            return Err(Unfit::Nonce);
        }
        if self.sub.is_empty() || self.sub.len() > MAX_SUBJECT_BYTES || self.sub.chars().any(char::is_control) {
            return Err(Unfit::Subject);
        }
        Ok(())
    }
}

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// Those with an address of one of these domains, `example.org`; not of what is below them.
    pub domains: Vec<String>,
    pub emails: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    #[error("the provider says no e-mail address that it has verified")]
    Unverified,
    #[error("its e-mail address is not among those that may sign in")]
    Stranger,
}

impl Allowed {
    /// The address by which somebody may come in. One that the provider has not verified anybody could have entered there.
    pub fn admits(&self, claims: &Claims) -> Result<Email, NotAllowed> {
        let email = claims.email.as_deref().filter(|_| claims.email_verified).and_then(|text| Email::parse(text).ok());
        let email = email.ok_or(NotAllowed::Unverified)?;
        if self.is_for(&email) { Ok(email) } else { Err(NotAllowed::Stranger) }
    }

    /// Whether whoever has this address may come in by the provider.
    pub fn is_for(&self, email: &Email) -> bool {
        let domain = email.as_str().rsplit_once('@').map_or("", |(_, domain)| domain);
        let same = |wanted: &String, text: &str| wanted.trim().to_lowercase() == text;
        self.domains.iter().any(|wanted| same(wanted, domain))
            || self.emails.iter().any(|wanted| same(wanted, email.as_str()))
    }
}

/// A user name for somebody new; the `nth` that is tried, from 1.
pub fn username(claims: &Claims, email: &Email, nth: u32) -> Option<Username> {
    let local = email.as_str().split('@').next().unwrap_or_default();
    let preferred = claims.preferred_username.as_deref().and_then(|name| name.split('@').next());
    [preferred.unwrap_or_default(), local, "user"].into_iter().find_map(|text| {
        let plain = text.chars().filter(|one| one.is_ascii_alphanumeric() || "._-".contains(*one));
        let name: String = plain.skip_while(|one| !one.is_ascii_alphanumeric()).take(MAX_NAME_CHARS).collect();
        let name = if nth > 1 { format!("{name}-{nth}") } else { name };
        Username::parse(&name).ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn claims() -> Claims {
        Claims {
            iss: "https://id.example.org".into(),
            sub: "248289761001".into(),
            aud: vec!["fettle".into()],
            azp: None,
            exp: NOW + 300,
            iat: NOW,
            nonce: Some("n-0S6_WzA2Mj".into()),
            email: Some("Ada@Example.org".into()),
            email_verified: true,
            preferred_username: Some("ada.l".into()),
        }
    }

    fn check(claims: &Claims) -> Result<(), Unfit> {
        let expected = Expected { issuer: "https://id.example.org", client_id: "fettle", nonce: "n-0S6_WzA2Mj" };
        claims.check(expected, Timestamp::from_second(NOW).unwrap())
    }

    #[test]
    fn what_was_said_for_this_sign_in_is_taken_and_nothing_else() {
        assert_eq!(check(&claims()), Ok(()));
        let several = Claims { aud: vec!["other".into(), "fettle".into()], azp: Some("fettle".into()), ..claims() };
        assert_eq!(check(&several), Ok(()));
        for (claims, why) in [
            (Claims { iss: "https://id.example.org/".into(), ..claims() }, Unfit::Issuer),
            (Claims { iss: "https://evil.example.org".into(), ..claims() }, Unfit::Issuer),
            (Claims { aud: vec!["other".into()], ..claims() }, Unfit::Audience),
            (Claims { aud: Vec::new(), ..claims() }, Unfit::Audience),
            (Claims { azp: Some("other".into()), ..claims() }, Unfit::Audience),
            (Claims { azp: None, ..several.clone() }, Unfit::Audience),
            (Claims { azp: Some("other".into()), ..several.clone() }, Unfit::Audience),
            (Claims { exp: NOW - 60, ..claims() }, Unfit::Expired),
            (Claims { iat: NOW - 600, ..claims() }, Unfit::Expired),
            (Claims { exp: i64::MAX, ..claims() }, Unfit::Expired),
            (Claims { iat: NOW + 61, ..claims() }, Unfit::Early),
            (Claims { nonce: None, ..claims() }, Unfit::Nonce),
            (Claims { nonce: Some("another".into()), ..claims() }, Unfit::Nonce),
            (Claims { sub: String::new(), ..claims() }, Unfit::Subject),
            (Claims { sub: "x".repeat(256), ..claims() }, Unfit::Subject),
        ] {
            assert_eq!(check(&claims), Err(why), "{claims:?}");
        }
    }

    #[test]
    fn only_a_verified_address_that_is_allowed_lets_somebody_in() {
        let allowed = Allowed { domains: vec!["Example.org".into()], emails: vec!["bob@other.example".into()] };
        assert_eq!(allowed.admits(&claims()).unwrap().as_str(), "ada@example.org");
        let with = |email: &str| allowed.admits(&Claims { email: Some(email.into()), ..claims() });
        assert!(with("Bob@Other.example").is_ok());
        for stranger in ["eve@other.example", "ada@sub.example.org", "ada@example.org.evil.example", "x@notexample.org"]
        {
            assert_eq!(with(stranger), Err(NotAllowed::Stranger), "{stranger}");
        }
        assert_eq!(with("ada@evil.example@example.org"), Err(NotAllowed::Unverified), "no address at all");
        for unverified in [Claims { email_verified: false, ..claims() }, Claims { email: None, ..claims() }] {
            assert_eq!(allowed.admits(&unverified), Err(NotAllowed::Unverified));
        }
        assert_eq!(Allowed::default().admits(&claims()), Err(NotAllowed::Stranger));
    }

    #[test]
    fn claims_are_read_as_providers_write_them() {
        let read = |extra: &str| {
            let text = format!(r#"{{"iss":"i","sub":"s","exp":2,"iat":1,"family_name":"L"{extra}}}"#);
            serde_json::from_str::<Claims>(&text)
        };
        assert_eq!(read(r#","aud":"a""#).unwrap().aud, ["a"]);
        assert_eq!(read(r#","aud":["a","b"]"#).unwrap().aud, ["a", "b"]);
        for (said, is) in [("true", true), ("\"true\"", true), ("false", false), ("\"yes\"", false), ("null", false)] {
            assert_eq!(read(&format!(r#","aud":"a","email_verified":{said}"#)).unwrap().email_verified, is, "{said}");
        }
        assert!(!read(r#","aud":"a""#).unwrap().email_verified);
        assert!(read("").is_err(), "without an audience");
    }

    proptest! {
        #[test]
        fn everybody_gets_a_name_and_another_when_it_is_taken(preferred in "\\PC{0,80}", local in "[a-z.+_-]{1,30}", nth in 2u32..99) {
            let Ok(email) = Email::parse(&format!("{local}@example.org")) else { return Ok(()) };
            let claims = Claims { preferred_username: Some(preferred), ..claims() };
            let (first, next) = (username(&claims, &email, 1).unwrap(), username(&claims, &email, nth).unwrap());
            prop_assert_ne!(first.as_str(), next.as_str());
        }
    }

    #[test]
    fn names_that_stand_for_others_are_not_given() {
        let claims = Claims { preferred_username: Some("admin".into()), ..claims() };
        assert_eq!(username(&claims, &Email::parse("ada@example.org").unwrap(), 1).unwrap().as_str(), "ada");
    }
}
