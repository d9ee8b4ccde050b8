//! Whose request it is that a proxy passes on.

use core::net::IpAddr;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address, or all that begin like it: `192.0.2.7`, `10.0.0.0/8`, `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither an address nor a network such as `10.0.0.0/8`")]
pub struct NoNetwork(String);

impl Network {
    pub fn holds(self, address: IpAddr) -> bool {
        let differing = match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        differing >= u32::from(self.bits)
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let no = || NoNetwork(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| no())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            // Digits alone: `parse` takes a sign too.
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().map_err(|_| no())?,
            Some(_) => return Err(no()),
        };
        if bits > most { Err(no()) } else { Ok(Self { address, bits }) }
    }
}

impl TryFrom<String> for Network {
    type Error = NoNetwork;

    fn try_from(text: String) -> Result<Self, NoNetwork> {
        text.parse()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

/// From where a request came that reached us from `peer`. Each proxy appends whom it heard it from to `forwarded`, the values of
/// `X-Forwarded-For` in their order; so from the right, as far as proxies are trusted, it tells the truth, and what stands before that
/// was written by the client.
pub fn client<'h>(peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'h str>, trusted: &[Network]) -> IpAddr {
    let mut told = forwarded.rev().flat_map(|value| value.rsplit(',')).map(str::trim);
    let mut client = peer.to_canonical();
    while trusted.iter().any(|network| network.holds(client)) {
        match told.next().and_then(address) {
            Some(next) => client = next,
            // The proxy said nothing that can be read; it is all that is known.
            None => break,
        }
    }
    client
}

/// Some proxies append the port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.split(']').next());
    let parsed = text.parse().ok().or_else(|| bare?.parse().ok());
    let parsed: Option<IpAddr> =
        parsed.or_else(|| text.parse::<core::net::SocketAddr>().ok().map(|socket| socket.ip()));
    parsed.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_is_the_clients() {
        let trusted = networks(&["127.0.0.1", "10.0.0.0/8", "fd00::/8"]);
        for (peer, forwarded, expected) in [
            // Whoever is not trusted says nothing about itself.
            ("203.0.113.9", vec!["198.51.100.1"], "203.0.113.9"),
            ("127.0.0.1", vec![], "127.0.0.1"),
            ("127.0.0.1", vec!["198.51.100.1"], "198.51.100.1"),
            ("::ffff:127.0.0.1", vec!["198.51.100.1"], "198.51.100.1"),
            // What the client wrote itself stands on the left.
            ("127.0.0.1", vec!["127.0.0.1, 198.51.100.1"], "198.51.100.1"),
            ("127.0.0.1", vec!["192.0.2.66", "198.51.100.1, 10.1.2.3"], "198.51.100.1"),
            ("fd00::7", vec!["198.51.100.1:4711,10.1.2.3"], "198.51.100.1"),
            ("127.0.0.1", vec!["[2001:db8::1]:443"], "2001:db8::1"),
            ("127.0.0.1", vec!["198.51.100.1, unknown, 10.1.2.3"], "10.1.2.3"),
            ("127.0.0.1", vec!["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
        ] {
            assert_eq!(client(ip(peer), forwarded.iter().copied(), &trusted), ip(expected), "{peer} {forwarded:?}");
            assert_eq!(client(ip(peer), forwarded.iter().copied(), &[]), ip(peer).to_canonical());
        }
    }

    #[test]
    fn networks_hold_what_begins_like_them() {
        let holds = |network: &str, address: &str| network.parse::<Network>().unwrap().holds(ip(address));
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("0.0.0.0/0", "203.0.113.1") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("2001:db8::/33", "2001:db8:7fff::1") && !holds("2001:db8::/33", "2001:db8:8000::1"));
        for odd in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::/129", "localhost", "10.0.0.0/8/8", "10.0.0/8"] {
            assert!(odd.parse::<Network>().is_err(), "{odd}");
        }
        assert_eq!(networks(&["10.0.0.0/8"])[0].to_string(), "10.0.0.0/8");
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_writes_before_what_a_proxy_appends_matters(forged in "[0-9a-f.:, ]{0,60}") {
            let trusted = networks(&["127.0.0.1"]);
            let told = format!("{forged}, 198.51.100.1");
            prop_assert_eq!(client(ip("127.0.0.1"), [told.as_str()].into_iter(), &trusted), ip("198.51.100.1"));
            prop_assert_eq!(client(ip("203.0.113.9"), [told.as_str()].into_iter(), &trusted), ip("203.0.113.9"));
        }
    }
}
