//! IPv4 networks, as far as a cluster must not collide with what the host already reaches.

use std::net::Ipv4Addr;

/// `10.42.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    first: u32,
    bits: u8,
}

impl Net {
    /// None when it is no network, or has bits set that its length does not cover.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (first, bits) =
            (u32::from(address.parse::<Ipv4Addr>().ok()?), bits.parse().ok().filter(|bits| *bits <= 32)?);
        let net = Self { first, bits };
        (first & !net.mask() == 0).then_some(net)
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(u32::from(32 - self.bits)).unwrap_or(0)
    }

    pub fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        self.first & mask == other.first & mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_collide_when_one_lies_in_the_other() {
        let net = |text| Net::parse(text).unwrap();
        for (one, other, collide) in [
            ("10.42.0.0/16", "10.0.0.0/8", true),
            ("10.42.0.0/16", "10.42.7.0/24", true),
            ("10.42.0.0/16", "10.43.0.0/16", false),
            ("10.42.0.0/16", "192.168.1.0/24", false),
            ("10.42.0.0/16", "0.0.0.0/0", true),
        ] {
            assert_eq!(
                (net(one).overlaps(net(other)), net(other).overlaps(net(one))),
                (collide, collide),
                "{one} {other}"
            );
        }
        for wrong in ["10.42.0.1/16", "10.42.0.0", "10.42.0.0/33", "fd00::/8"] {
            assert_eq!(Net::parse(wrong), None, "{wrong}");
        }
    }
}
