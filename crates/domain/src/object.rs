//! Names of git objects (SHA-1) and of blobs in our own store (SHA-256).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The text is not a hexadecimal name of the right length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a name of {hex_digits} hexadecimal digits")]
pub struct ParseNameError {
    text: String,
    hex_digits: usize,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident [$bytes:literal]),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The first seven digits, as people quote it.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])[..7].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;

            fn from_str(text: &str) -> Result<Self, ParseNameError> {
                let mut bytes = [0; $bytes];
                match hex::decode_to_slice(text, &mut bytes) {
                    Ok(()) => Ok(Self(bytes)),
                    Err(_) => Err(ParseNameError { text: text.chars().take(80).collect(), hex_digits: 2 * $bytes }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// A git commit.
    CommitId[20],
    /// A git tree.
    TreeId[20],
    /// A git blob (or, in a tree entry, the commit of a submodule).
    ObjectId[20],
    /// Content in Fettle's blob store, named by its SHA-256.
    BlobId[32],
}

impl BlobId {
    /// The name of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }
}
