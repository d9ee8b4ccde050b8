//! Secrets that people enter, at rest: sealed with XChaCha20-Poly1305 under a key of a ring. What a secret is for is sealed with it, so
//! that whoever can write to the ledger cannot have it sent elsewhere.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::ports::additions::Sealed;

/// Random ones of this size do not come twice.
const NONCE_BYTES: usize = 24;
/// Of a key's digest, to tell keys apart.
const ID_DIGITS: usize = 8;

/// Keys in the order in which they were made; the last one seals, all open.
pub struct KeyRing {
    keys: Vec<(String, Key)>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("it was sealed with the key {0}, which is not among ours")]
    UnknownKey(String),
    #[error("it does not open: it was changed, or belongs to something else")]
    Damaged,
}

impl KeyRing {
    /// From secrets that nobody can guess, at least one; each line of the ring's file is one.
    pub fn new(secrets: &[SecretString]) -> Self {
        let digest = |label: &[u8], of: &[u8]| Sha256::new().chain_update(label).chain_update(of).finalize();
        let key = |secret: &SecretString| {
            let key = digest(b"fettle sealing 1\0", secret.expose_secret().as_bytes());
            let id = hex::encode(digest(b"fettle key id\0", &key));
            (id[..ID_DIGITS].to_owned(), Key::clone_from_slice(&key))
        };
        Self { keys: secrets.iter().map(key).collect() }
    }

    /// The key that seals. `None`: the ring is empty.
    pub fn newest(&self) -> Option<&str> {
        self.keys.last().map(|(id, _)| id.as_str())
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(id, _)| id.as_str())
    }

    /// `random`: never the same twice. `purpose`: what the secret is for; it opens for nothing else. `None`: the ring is empty.
    pub fn seal(&self, secret: &SecretString, purpose: &str, random: [u8; 32]) -> Option<Sealed> {
        let (id, key) = self.keys.last()?;
        let nonce = XNonce::from_slice(&random[..NONCE_BYTES]);
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: purpose.as_bytes() };
        let sealed = XChaCha20Poly1305::new(key).encrypt(nonce, payload).ok()?;
        Some(Sealed { key: id.clone(), bytes: [&random[..NONCE_BYTES], &sealed].concat() })
    }

    pub fn open(&self, sealed: &Sealed, purpose: &str) -> Result<SecretString, SealError> {
        let key = self.keys.iter().find(|(id, _)| *id == sealed.key);
        let (_, key) = key.ok_or_else(|| SealError::UnknownKey(sealed.key.clone()))?;
        let (nonce, bytes) = sealed.bytes.split_at_checked(NONCE_BYTES).ok_or(SealError::Damaged)?;
        let payload = Payload { msg: bytes, aad: purpose.as_bytes() };
        let opened = XChaCha20Poly1305::new(key).decrypt(XNonce::from_slice(nonce), payload);
        let text = String::from_utf8(opened.map_err(|_| SealError::Damaged)?).map_err(|_| SealError::Damaged)?;
        Ok(SecretString::from(text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(secrets: &[&str]) -> KeyRing {
        KeyRing::new(&secrets.iter().map(|one| SecretString::from(*one)).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn a_secret_opens_for_its_purpose_alone_and_not_when_a_bit_has_changed(
            text in ".{0,80}", nonce in any::<[u8; 32]>(), at in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let keys = ring(&["first", "second"]);
            let mut sealed = keys.seal(&SecretString::from(text.clone()), "model coder", nonce).unwrap();
            let opened = keys.open(&sealed, "model coder").unwrap();
            prop_assert_eq!(opened.expose_secret(), text);
            prop_assert_eq!(keys.open(&sealed, "model other").err(), Some(SealError::Damaged));
            let at = at.index(sealed.bytes.len());
            sealed.bytes[at] ^= 1 << bit;
            prop_assert_eq!(keys.open(&sealed, "model coder").err(), Some(SealError::Damaged));
        }
    }

    #[test]
    fn the_newest_key_seals_and_older_ones_open_until_they_are_taken_away() {
        let secret = SecretString::from("sk-abc");
        let old = ring(&["first"]);
        let sealed = old.seal(&secret, "it", [7; 32]).unwrap();
        let both = ring(&["first", "second"]);
        assert_eq!(both.open(&sealed, "it").unwrap().expose_secret(), "sk-abc");
        let again = both.seal(&secret, "it", [8; 32]).unwrap();
        assert_eq!(Some(again.key.as_str()), both.newest());
        assert_eq!(ring(&["second"]).open(&sealed, "it").unwrap_err(), SealError::UnknownKey(sealed.key.clone()));
        assert_eq!(ring(&["second"]).open(&again, "it").unwrap().expose_secret(), "sk-abc");
    }

    #[test]
    fn what_is_cut_short_is_damaged_and_an_empty_ring_seals_nothing() {
        let keys = ring(&["first"]);
        let id = keys.newest().unwrap().to_owned();
        for bytes in [vec![], vec![0; NONCE_BYTES - 1], vec![0; NONCE_BYTES]] {
            assert_eq!(keys.open(&Sealed { key: id.clone(), bytes }, "it").unwrap_err(), SealError::Damaged);
        }
        assert_eq!(ring(&[]).seal(&SecretString::from("x"), "it", [0; 32]), None);
    }
}
