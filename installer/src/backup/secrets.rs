//! Secrets in an archive: packed in memory and encrypted in the age format, so that they are on no disk in clear, and any age
//! program opens them where this one is lost.

use std::io::{Read as _, Write as _};
use std::str::FromStr as _;

use crate::answers::is_secret_name;
use crate::guarded;
use age::secrecy::SecretString;
use camino::{Utf8Component, Utf8Path};

use super::error::{BackupError, BackupResult, at};

/// As the processes limit them.
const MAX_SECRET_BYTES: u64 = 64 << 10;
const MAX_SECRETS: usize = 1000;
/// More would be no secrets.
const MAX_PACKED_BYTES: u64 = 16 << 20;
const MIN_PASSPHRASE: usize = 12;

/// A secret by where it belongs: `etc/…` below the configuration's folder, `data/…` below the data folder.
pub(super) struct Secret {
    pub(super) name: String,
    pub(super) value: Vec<u8>,
}

/// Its value is shown nowhere.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Who can open what is locked.
pub(super) enum Lock {
    Recipients(Vec<age::x25519::Recipient>),
    Passphrase(SecretString),
}

/// What opens it.
pub(super) enum Key {
    Identities(Vec<age::x25519::Identity>),
    Passphrase(SecretString),
}

impl Lock {
    /// Errors with the recipient that is none.
    pub(super) fn of_recipients(recipients: &[String]) -> BackupResult<Self> {
        let parse = |text: &String| {
            age::x25519::Recipient::from_str(text.trim()).map_err(|why| {
                BackupError::Refused(format!(
                    "`{text}` is no age recipient ({why}); one begins with age1, as `age-keygen` shows it"
                ))
            })
        };
        Ok(Self::Recipients(recipients.iter().map(parse).collect::<BackupResult<_>>()?))
    }

    pub(super) fn of_passphrase(file: &Utf8Path) -> BackupResult<Self> {
        let text = line_of(file)?;
        if text.len() < MIN_PASSPHRASE {
            return Err(BackupError::Refused(format!(
                "the passphrase in {file} has fewer than {MIN_PASSPHRASE} characters"
            )));
        }
        Ok(Self::Passphrase(SecretString::from(text)))
    }
}

impl Key {
    /// The file that `age-keygen` writes.
    pub(super) fn of_identity(file: &Utf8Path) -> BackupResult<Self> {
        let text = fs_err::read_to_string(file).map_err(at("could not read", file))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        // The text of a refused line is not told: it may be a key with a slip in it.
        let parse = |line: &str| {
            age::x25519::Identity::from_str(line)
                .map_err(|why| BackupError::Refused(format!("{file} holds a line that is no age identity ({why})")))
        };
        let identities: Vec<_> = lines.map(parse).collect::<BackupResult<_>>()?;
        if identities.is_empty() {
            return Err(BackupError::Refused(format!("{file} holds no age identity")));
        }
        Ok(Self::Identities(identities))
    }

    pub(super) fn of_passphrase(file: &Utf8Path) -> BackupResult<Self> {
        Ok(Self::Passphrase(SecretString::from(line_of(file)?)))
    }
}

fn line_of(file: &Utf8Path) -> BackupResult<String> {
    let text = fs_err::read_to_string(file).map_err(at("could not read", file))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Reads one; none when it is not there. Links are not followed: what they lead to was not meant.
pub(super) fn read(path: &Utf8Path, name: &str) -> BackupResult<Option<Secret>> {
    let value = match guarded::read(path, MAX_SECRET_BYTES) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(BackupError::Refused(format!("{path} is no secret: {error}")));
        }
        value => value.map_err(at("could not read", path))?,
    };
    Ok(Some(Secret { name: name.to_owned(), value }))
}

/// Packs and encrypts.
pub(super) fn lock(secrets: &[Secret], lock: &Lock) -> BackupResult<Vec<u8>> {
    let failed = |what: String| BackupError::Refused(format!("could not encrypt the secrets: {what}"));
    let mut packed = tar::Builder::new(Vec::new());
    for secret in secrets {
        let mut header = tar::Header::new_ustar();
        header.set_size(secret.value.len() as u64);
        header.set_mode(0o600);
        packed
            .append_data(&mut header, &secret.name, secret.value.as_slice())
            .map_err(|error| failed(format!("{}: {error}", secret.name)))?;
    }
    let packed = packed.into_inner().map_err(|error| failed(error.to_string()))?;
    let encryptor = match lock {
        Lock::Recipients(recipients) => {
            age::Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as &dyn age::Recipient))
                .map_err(|_| failed("its recipients do not go together".to_owned()))?
        }
        Lock::Passphrase(passphrase) => age::Encryptor::with_user_passphrase(passphrase.clone()),
    };
    let mut locked = Vec::new();
    let written = encryptor.wrap_output(&mut locked).and_then(|mut out| {
        out.write_all(&packed)?;
        out.finish()
    });
    written.map_err(|error| failed(error.to_string()))?;
    Ok(locked)
}

/// Decrypts and unpacks.
///
/// Errors when the key is another's, and when anything but secrets is inside: who knows a recipient can lock anything.
pub(super) fn unlock(locked: &[u8], key: &Key) -> BackupResult<Vec<Secret>> {
    // Not in the library's own words: it looks them up in files that need not be on this host, and panics without them.
    let failed = |error: age::DecryptError| {
        let why = match error {
            age::DecryptError::InvalidHeader | age::DecryptError::InvalidMac | age::DecryptError::UnknownFormat => {
                "they are damaged, or written by a newer age".to_owned()
            }
            age::DecryptError::ExcessiveWork { .. } => {
                "their passphrase would take this host too long to try".to_owned()
            }
            age::DecryptError::Io(error) => error.to_string(),
            _ => "it is not the one with which they were locked".to_owned(),
        };
        BackupError::Refused(format!("the secrets do not open with this key or passphrase: {why}"))
    };
    let decryptor = age::Decryptor::new(locked).map_err(failed)?;
    let reader = match key {
        Key::Identities(identities) => {
            decryptor.decrypt(identities.iter().map(|identity| identity as &dyn age::Identity)).map_err(failed)?
        }
        Key::Passphrase(passphrase) => {
            let identity = age::scrypt::Identity::new(passphrase.clone());
            decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).map_err(failed)?
        }
    };
    let damaged = |what: String| BackupError::Damaged(format!("the secrets in it are damaged: {what}"));
    let mut secrets: Vec<Secret> = Vec::new();
    let mut tar = tar::Archive::new(reader.take(MAX_PACKED_BYTES));
    for entry in tar.entries().map_err(|error| damaged(error.to_string()))?.raw(true) {
        let mut entry = entry.map_err(|error| damaged(error.to_string()))?;
        let name = String::from_utf8_lossy(&entry.header().path_bytes()).into_owned();
        let size = entry.header().size().map_err(|error| damaged(error.to_string()))?;
        let plain = entry.header().entry_type() == tar::EntryType::Regular && size <= MAX_SECRET_BYTES;
        if !plain || !is_ours(&name) || secrets.len() >= MAX_SECRETS || secrets.iter().any(|other| other.name == name) {
            return Err(damaged(format!("{name:?} is no secret of a backup")));
        }
        let mut value = Vec::new();
        entry.read_to_end(&mut value).map_err(|error| damaged(error.to_string()))?;
        if value.len() as u64 != size {
            return Err(damaged(format!("{name} ends too early")));
        }
        secrets.push(Secret { name, value });
    }
    Ok(secrets)
}

/// A secret is below `etc/` and no configuration, or is a key of the data folder.
fn is_ours(name: &str) -> bool {
    if matches!(name, "data/admin.key" | "data/secrets.key" | "data/worker.key") {
        return true;
    }
    let path = Utf8Path::new(name);
    let plain = path.components().all(|part| matches!(part, Utf8Component::Normal(text) if !text.starts_with('.')));
    let canonical = path.components().map(|part| part.as_str()).collect::<Vec<_>>().join("/") == name;
    let configuration = name.ends_with(".toml");
    // These names go into units and paths.
    let plain = plain && path.components().all(|part| is_secret_name(part.as_str()));
    plain && canonical && !configuration && name.strip_prefix("etc/").is_some_and(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str) -> Secret {
        Secret { name: name.to_owned(), value: b"canary-value\n".to_vec() }
    }

    fn pair() -> (Lock, Key) {
        let identity = age::x25519::Identity::generate();
        (Lock::of_recipients(&[identity.to_public().to_string()]).unwrap(), Key::Identities(vec![identity]))
    }

    #[test]
    fn secrets_open_for_the_recipient_alone_and_are_not_in_what_is_locked() {
        let ((locks, key), (_, other)) = (pair(), pair());
        let locked = lock(&[secret("etc/secrets/worker.key"), secret("data/admin.key")], &locks).unwrap();
        assert!(!locked.windows(12).any(|window| window == b"canary-value"));
        let opened = unlock(&locked, &key).unwrap();
        assert_eq!(format!("{opened:?}"), "[etc/secrets/worker.key, data/admin.key]");
        assert_eq!(opened[1].value, b"canary-value\n");
        assert!(matches!(unlock(&locked, &other), Err(BackupError::Refused(_))));
        let mut damaged = locked.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(unlock(&damaged, &key).is_err());
    }

    #[test]
    fn a_passphrase_opens_what_it_locked_and_a_short_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("passphrase");
        fs_err::write(&file, "short\n").unwrap();
        assert!(matches!(Lock::of_passphrase(&file), Err(BackupError::Refused(_))));
        fs_err::write(&file, "correct horse battery\n").unwrap();
        let locked = lock(&[secret("data/worker.key")], &Lock::of_passphrase(&file).unwrap()).unwrap();
        assert_eq!(unlock(&locked, &Key::of_passphrase(&file).unwrap()).unwrap().len(), 1);
        assert!(unlock(&locked, &Key::Passphrase(SecretString::from("another one".to_owned()))).is_err());
    }

    #[test]
    fn what_somebody_else_locked_for_us_leads_nowhere() {
        let (locks, key) = pair();
        for name in
            ["etc/fettle.toml", "etc/secrets/x.toml", "data/ledger", "root/.ssh/x", "etc/.hidden", "data/x/admin.key"]
        {
            let locked = lock(&[secret(name)], &locks).unwrap();
            assert!(matches!(unlock(&locked, &key), Err(BackupError::Damaged(_))), "{name}");
        }
        // A secret's name becomes a line of a unit.
        for name in ["etc/secrets/x\nUser=root", "etc/secrets/%n", "etc/secrets/a b", "etc/secrets/a:b"] {
            assert!(!is_ours(name), "{name}");
        }
        for name in ["etc/../x", "/etc/x", "etc/", "etc//x", "etc/./x", "../etc/x", "etc/x/..", ""] {
            assert!(!is_ours(name), "{name}");
        }
        let twice = lock(&[secret("data/admin.key"), secret("data/admin.key")], &locks).unwrap();
        assert!(matches!(unlock(&twice, &key), Err(BackupError::Damaged(_))));
    }

    #[test]
    fn a_secret_behind_a_link_or_too_large_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        fs_err::write(root.join("large"), vec![b'x'; 70 << 10]).unwrap();
        fs_err::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        assert!(read(&root.join("large"), "x").is_err());
        assert!(read(&root.join("link"), "x").is_err());
        assert!(read(&root.join("absent"), "x").unwrap().is_none());
    }
}
