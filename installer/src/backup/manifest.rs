//! What an archive says of itself, and which members there can be: a name that is not one of these is refused, so no path of
//! an archive can lead anywhere.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::{BackupError, BackupResult};

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const SCHEMA: u32 = 1;
pub(super) const LEDGER: &str = "ledger.db";
pub(super) const CONFIG: &str = "fettle.toml";
pub(super) const ANSWERS: &str = "installer.toml";
pub(super) const RECEIPT: &str = "receipt.json";
pub(super) const SECRETS: &str = "secrets.tar.age";
/// Hexadecimal digits of a blob's name: SHA-256, two of them its folder.
const BLOB_DIGITS: usize = 64;

/// Configuration and receipts are read by people.
const TEXT_BYTES: u64 = 16 << 20;
/// A line for each blob.
const MANIFEST_BYTES: u64 = 256 << 20;
/// As the ledger itself limits them.
const BLOB_BYTES: u64 = fettle_app::ports::ledger::MAX_BLOB_BYTES as u64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) schema: u32,
    /// The release that it was made by.
    pub(super) version: String,
    pub(super) created: Timestamp,
    /// What a whole backup would hold and this one does not: a sentence each.
    #[serde(default)]
    pub(super) left_out: Vec<String>,
    /// Every other member, by its name.
    pub(super) members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub sha256: String,
    pub(super) size: u64,
}

impl Manifest {
    /// Errors with what to do when another installer has to read it.
    pub(super) fn parse(bytes: &[u8]) -> BackupResult<Self> {
        let unreadable =
            |error: serde_json::Error| BackupError::Damaged(format!("its {MANIFEST} cannot be read: {error}"));
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(unreadable)?;
        match value["schema"].as_u64() {
            Some(schema) if schema == u64::from(SCHEMA) => serde_json::from_value(value).map_err(unreadable),
            Some(schema) => Err(BackupError::Refused(format!(
                "the backup has schema {schema}, and this installer reads {SCHEMA}; use the installer of the release that made it"
            ))),
            None => Err(BackupError::Damaged(format!("its {MANIFEST} names no schema"))),
        }
    }

    pub(super) fn has_secrets(&self) -> bool {
        self.members.contains_key(SECRETS)
    }
}

/// What may stand in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// Below the folder that it is unpacked into.
    pub(super) path: Utf8PathBuf,
    pub(super) max_bytes: u64,
}

impl Name {
    /// None for whatever is not ours.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let max_bytes = match name {
            MANIFEST => MANIFEST_BYTES,
            CONFIG | ANSWERS | RECEIPT | SECRETS => TEXT_BYTES,
            LEDGER => u64::MAX,
            _ => {
                blob_digits(name)?;
                BLOB_BYTES
            }
        };
        Some(Self { path: name.into(), max_bytes })
    }
}

/// The digest that a blob's name in an archive says: `blobs/ab/cdef…`.
pub(super) fn blob_digits(name: &str) -> Option<String> {
    let (folder, rest) = name.strip_prefix("blobs/")?.split_once('/')?;
    let digits = format!("{folder}{rest}");
    let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (folder.len() == 2 && digits.len() == BLOB_DIGITS && digits.bytes().all(plain)).then_some(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_our_own_names_are_names() {
        let blob = format!("blobs/ab/{}", "0".repeat(62));
        for name in [MANIFEST, LEDGER, CONFIG, ANSWERS, RECEIPT, SECRETS, &blob] {
            assert_eq!(Name::parse(name).unwrap().path, name);
        }
        for name in [
            "",
            "/etc/passwd",
            "../ledger.db",
            "./ledger.db",
            "ledger.db/",
            "blobs/ab/../../../x",
            "blobs/../x",
            "blobs/ab",
            "blobs//etc",
            "ledger.db\0",
            "Ledger.db",
            &blob.to_uppercase(),
            &format!("blobs/abc/{}", "0".repeat(61)),
            &format!("/{blob}"),
        ] {
            assert_eq!(Name::parse(name), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_never_leads_out(name in "(blobs/)?[a-f0-9./]{0,70}") {
            if let Some(found) = Name::parse(&name) {
                let plain = |part: camino::Utf8Component<'_>| matches!(part, camino::Utf8Component::Normal(_));
                prop_assert!(found.path.components().all(plain));
            }
        }
    }

    #[test]
    fn another_schema_is_refused_with_what_to_do_and_nonsense_is_damage() {
        let newer = Manifest::parse(br#"{"schema": 2}"#).unwrap_err();
        assert!(matches!(&newer, BackupError::Refused(why) if why.contains("schema 2")), "{newer}");
        for damaged in ["", "{}", "[]", r#"{"schema": 1}"#, r#"{"schema": "1"}"#] {
            assert!(matches!(Manifest::parse(damaged.as_bytes()), Err(BackupError::Damaged(_))), "{damaged}");
        }
    }
}
