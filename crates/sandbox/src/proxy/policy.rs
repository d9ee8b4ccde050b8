//! Which hosts the proxy connects to. Pure: names and addresses in, a verdict out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const PORTS: [u16; 2] = [443, 80];

/// Names, each with a port when the operator gave one.
#[derive(Debug)]
pub(super) struct AllowList {
    hosts: Vec<(String, Option<u16>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not on the list at all.
    Refused,
    /// On the list, but not for this port.
    OtherPort,
    /// Allowed if the name leads to the public internet.
    PublicOnly,
    /// The operator named host and port, so it may be anywhere.
    Anywhere,
}

impl AllowList {
    pub(super) fn new(hosts: &[String]) -> Self {
        let parse = |host: &String| match split_port(host) {
            Some((name, port)) => (normal(name), Some(port)),
            None => (normal(host), None),
        };
        Self { hosts: hosts.iter().map(parse).collect() }
    }

    pub(super) fn judge(&self, host: &str, port: u16) -> Verdict {
        let host = normal(host);
        let listed = |with: Option<u16>| self.hosts.iter().any(|(name, given)| *name == host && *given == with);
        if listed(Some(port)) {
            return Verdict::Anywhere;
        }
        if host.parse::<IpAddr>().is_err() && PORTS.contains(&port) && listed(None) {
            return Verdict::PublicOnly;
        }
        if self.hosts.iter().any(|(name, _)| *name == host) { Verdict::OtherPort } else { Verdict::Refused }
    }
}

/// `host:port`; the host of an IPv6 address stands in brackets.
pub(super) fn split_port(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return None;
    }
    Some((host, port.parse().ok()?))
}

fn normal(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// How the list names a host together with a port; the inverse of [`split_port`].
pub(super) fn entry(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The word for an address that does not belong to the public internet.
pub(super) fn inner_kind(address: IpAddr) -> Option<&'static str> {
    let private = match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    if is_public(address) {
        None
    } else if private {
        Some("private")
    } else if address.to_canonical().is_loopback() {
        Some("loopback")
    } else {
        Some("reserved")
    }
}

/// Whether an address belongs to the public internet, after the special-purpose registries of IANA.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_public_v4(v4),
            None => is_public_v6(v6),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b)))
}

/// Global unicast without the parts that carry other addresses in them (6to4, Teredo) or none at all (documentation).
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    first & 0xe000 == 0x2000 && first != 0x2002 && !(first == 0x2001 && (second < 0x0200 || second == 0x0db8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(hosts: &[&str]) -> AllowList {
        AllowList::new(&hosts.iter().map(|&h| h.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_name_opens_the_web_ports_of_that_name_only() {
        let list = list(&["Static.Crates.io"]);
        assert_eq!(list.judge("static.crates.io", 443), Verdict::PublicOnly);
        assert_eq!(list.judge("STATIC.crates.io.", 80), Verdict::PublicOnly);
        assert_eq!(list.judge("static.crates.io", 22), Verdict::OtherPort);
        assert_eq!(list.judge("crates.io", 443), Verdict::Refused);
        assert_eq!(list.judge("evil-static.crates.io", 443), Verdict::Refused);
    }

    #[test]
    fn an_address_needs_its_port_on_the_list() {
        let list = list(&["10.0.0.1", "127.0.0.1:8080", "[::1]:8081"]);
        assert_eq!(list.judge("10.0.0.1", 443), Verdict::OtherPort);
        assert_eq!(list.judge("127.0.0.1", 8080), Verdict::Anywhere);
        assert_eq!(list.judge("127.0.0.1", 80), Verdict::OtherPort);
        assert_eq!(list.judge("10.0.0.2", 443), Verdict::Refused);
        assert_eq!(list.judge("::1", 8081), Verdict::Anywhere);
    }

    #[test]
    fn private_addresses_are_known_in_all_their_clothes() {
        let inner = [
            "127.0.0.1",
            "10.1.2.3",
            "172.20.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "2001:db8::1",
        ];
        for address in inner {
            assert!(!is_public(address.parse().expect("a literal")), "{address}");
        }
        for address in ["1.1.1.1", "151.101.1.1", "2606:4700::1111", "2a04:4e42::1", "::ffff:1.1.1.1"] {
            assert!(is_public(address.parse().expect("a literal")), "{address}");
        }
    }

    #[test]
    fn an_inner_address_is_called_what_it_is() {
        let kinds = [
            ("10.0.0.5", Some("private")),
            ("::ffff:192.168.0.1", Some("private")),
            ("fd00::1", Some("private")),
            ("127.0.0.1", Some("loopback")),
            ("::1", Some("loopback")),
            ("169.254.169.254", Some("reserved")),
            ("1.1.1.1", None),
        ];
        for (address, kind) in kinds {
            assert_eq!(inner_kind(address.parse().expect("a literal")), kind, "{address}");
        }
    }

    #[test]
    fn an_entry_is_read_as_it_is_written() {
        for (host, port) in [("registry.example", 443), ("10.0.0.5", 80), ("::1", 8081)] {
            assert_eq!(list(&[&entry(host, port)]).judge(host, port), Verdict::Anywhere);
        }
    }
}
