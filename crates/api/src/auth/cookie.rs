//! The browser's cookie, and when it counts.

use std::net::IpAddr;

use axum::http::header::{COOKIE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method};
use fettle_domain::session::WHOLE_LIMIT;
use secrecy::{ExposeSecret as _, SecretString};

/// The prefix makes browsers refuse one that another host or an unencrypted page has set.
const SECURE_NAME: &str = "__Host-fettle_session";
/// On loopback there is no TLS.
const PLAIN_NAME: &str = "fettle_session";
/// Of a sign-in that is under way at a provider.
const SECURE_FLOW: &str = "__Host-fettle_sign_in";
const PLAIN_FLOW: &str = "fettle_sign_in";
/// Seconds to sign in at a provider; whoever takes longer begins again.
const FLOW_LASTS: u64 = 600;
/// No page of another origin can send it without being asked whether it may.
const REQUEST_HEADER: &str = "x-fettle-request";

/// Where the request came to, as far as cookies care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    PlainLoopback,
    Elsewhere,
}

impl Place {
    pub(crate) fn of(headers: &HeaderMap, peer: Option<IpAddr>) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(HOST.as_str()).unwrap_or_default();
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let loopback = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let encrypted = text("x-forwarded-proto").is_some_and(|proto| proto.eq_ignore_ascii_case("https"));
        if loopback && !encrypted && peer.is_some_and(|peer| peer.is_loopback()) {
            Self::PlainLoopback
        } else {
            Self::Elsewhere
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::PlainLoopback => PLAIN_NAME,
            Self::Elsewhere => SECURE_NAME,
        }
    }

    fn flow(self) -> &'static str {
        match self {
            Self::PlainLoopback => PLAIN_FLOW,
            Self::Elsewhere => SECURE_FLOW,
        }
    }

    pub(crate) fn find(self, headers: &HeaderMap) -> Option<SecretString> {
        find(self.name(), headers)
    }

    pub(crate) fn find_flow(self, headers: &HeaderMap) -> Option<SecretString> {
        find(self.flow(), headers)
    }

    pub(crate) fn set_flow(self, secret: &SecretString) -> HeaderValue {
        self.header(self.flow(), secret.expose_secret(), FLOW_LASTS)
    }

    pub(crate) fn clear_flow(self) -> HeaderValue {
        self.header(self.flow(), "", 0)
    }

    pub(crate) fn set(self, secret: &SecretString) -> HeaderValue {
        self.header(self.name(), secret.expose_secret(), WHOLE_LIMIT.as_secs())
    }

    pub(crate) fn clear(self) -> HeaderValue {
        self.header(self.name(), "", 0)
    }

    fn header(self, name: &str, value: &str, seconds: u64) -> HeaderValue {
        let secure = match self {
            Self::PlainLoopback => "",
            Self::Elsewhere => "; Secure",
        };
        let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
        HeaderValue::try_from(text).expect("a cookie of hex digits is a header")
    }
}

fn find(wanted: &str, headers: &HeaderMap) -> Option<SecretString> {
    let values = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, value)| *name == wanted && !value.is_empty()).map(|(_, value)| value.into())
}

/// Whether a cookie may stand for its holder in this request: a page of another origin can make a browser send it along.
pub(crate) fn counts(method: &Method, headers: &HeaderMap) -> bool {
    if method.is_safe() {
        return true;
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = text(REQUEST_HEADER) == Some("1");
    let same = match text("sec-fetch-site") {
        Some(site) => site == "same-origin" || site == "none",
        None => is_own_origin(headers) == Some(true),
    };
    asked && same
}

/// Whether the page that asks is of this very host. `None`: no page asks.
pub(crate) fn is_own_origin(headers: &HeaderMap) -> Option<bool> {
    let text = |value: Option<&HeaderValue>| value.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let origin = headers.get(ORIGIN)?;
    let (origin, host) = (text(Some(origin)).unwrap_or_default(), text(headers.get(HOST)));
    Some(match (origin.split_once("://"), host) {
        (Some((_, origin)), Some(host)) => origin.eq_ignore_ascii_case(&host),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        HeaderMap::from_iter(pairs.collect::<Vec<(axum::http::HeaderName, _)>>())
    }

    #[test]
    fn a_cookie_changes_something_only_from_our_own_pages() {
        let (asked, host) = (("x-fettle-request", "1"), ("host", "fettle.example"));
        let (site, origin) = ("sec-fetch-site", "origin");
        for (given, counted) in [
            (vec![asked, host, (site, "same-origin")], true),
            (vec![asked, host, (site, "none")], true),
            (vec![asked, host, (origin, "https://fettle.example")], true),
            (vec![asked, host, (origin, "https://fettle.example.evil")], false),
            (vec![asked, host, (origin, "null")], false),
            (vec![asked, host, (site, "cross-site")], false),
            (vec![asked, host, (site, "same-site"), (origin, "https://fettle.example")], false),
            (vec![asked, host], false),
            (vec![host, (site, "same-origin")], false),
            (vec![("x-fettle-request", "0"), host, (site, "same-origin")], false),
        ] {
            for method in [Method::POST, Method::PATCH, Method::DELETE, Method::PUT] {
                assert_eq!(counts(&method, &headers(&given)), counted, "{method} {given:?}");
            }
            assert!(counts(&Method::GET, &headers(&given)));
        }
    }

    #[test]
    fn a_cookie_is_secure_but_on_plain_loopback() {
        let (here, there) = ("127.0.0.1".parse().ok(), "192.0.2.1".parse().ok());
        let plain = |host, peer| Place::of(&headers(&[("host", host)]), peer) == Place::PlainLoopback;
        assert!(plain("localhost:7878", here) && plain("127.0.0.1", here) && plain("[::1]:7878", here));
        assert!(!plain("fettle.example", here) && !plain("localhost", there) && !plain("localhost", None));
        let proxied = headers(&[("host", "localhost"), ("x-forwarded-proto", "https")]);
        assert_eq!(Place::of(&proxied, here), Place::Elsewhere);
        let set = Place::Elsewhere.set(&"abc".into());
        let text = set.to_str().unwrap();
        assert!(
            text.starts_with("__Host-fettle_session=abc; Path=/;") && text.ends_with("HttpOnly; SameSite=Lax; Secure")
        );
        assert!(!Place::PlainLoopback.set(&"abc".into()).to_str().unwrap().contains("Secure"));
    }

    #[test]
    fn the_cookie_is_found_among_others_and_one_of_another_name_is_not_taken() {
        let found =
            |place: Place, text| place.find(&headers(&[("cookie", text)])).map(|one| one.expose_secret().to_owned());
        assert_eq!(found(Place::PlainLoopback, "a=b; fettle_session=x1; c"), Some("x1".to_owned()));
        assert_eq!(found(Place::Elsewhere, "fettle_session=x1"), None);
        assert_eq!(found(Place::PlainLoopback, "fettle_session="), None);
    }
}
