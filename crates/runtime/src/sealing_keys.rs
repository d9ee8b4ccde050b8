//! The file with the keys that people's secrets are sealed with: one of Fettle's own in the data folder, or the operator's.

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::adding::RingFile;
use fettle_app::ports::clock::SecretSource;
use fettle_domain::strength::check_secret;
use secrecy::{ExposeSecret as _, SecretString};

use crate::config::Config;
use crate::data::DataDir;
use crate::secrets;
use crate::system::RandomSecrets;

/// As many keys may be in a file at once; one is enough, and a rotation needs two.
const MAX_KEYS: usize = 16;

/// Where sealing keys are, as the configuration has it.
pub enum SealingKeys {
    /// Made at the first need; nobody else has it.
    Own(Utf8PathBuf),
    /// `auth.secrets_key_file`, the same for all dashboards.
    Operators(Utf8PathBuf),
    /// Dashboards may share the database, and a key of one's own would keep the others out.
    None,
}

impl SealingKeys {
    pub fn of(config: &Config, data: &DataDir) -> Self {
        match (&config.auth.secrets_key_file, &config.store.url) {
            (Some(file), _) => Self::Operators(file.clone()),
            (None, None) => Self::Own(data.sealing_keys()),
            (None, Some(_)) => Self::None,
        }
    }
}

impl RingFile for SealingKeys {
    fn read(&self) -> Result<Vec<SecretString>, String> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Operators(file) => lines(file),
            // One that is there is not judged as a single new key would be: what is sealed with it would be lost with it.
            Self::Own(file) if file.exists() => lines(file),
            Self::Own(file) => {
                secrets::read_or_make(file, RandomSecrets.secret()).map_err(|error| chain(&error))?;
                lines(file)
            }
        }
    }

    fn grow(&self) -> Result<bool, String> {
        let Self::Own(file) = self else { return Ok(false) };
        let mut keys = self.read()?;
        if keys.len() >= MAX_KEYS {
            return Err(format!("{file} has {MAX_KEYS} keys already: something still needs each of them"));
        }
        keys.push(secrets::key_of(RandomSecrets.secret()));
        write(file, &keys)?;
        Ok(true)
    }

    fn shrink(&self) -> Result<(), String> {
        let Self::Own(file) = self else { return Ok(()) };
        let keys = self.read()?;
        write(file, &keys[keys.len().saturating_sub(1)..])
    }
}

/// One key a line, each as hard to guess as any other secret.
fn lines(file: &Utf8Path) -> Result<Vec<SecretString>, String> {
    let text = secrets::read(file).map_err(|error| chain(&error))?;
    let keys: Vec<&str> = text.expose_secret().lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if keys.len() > MAX_KEYS {
        return Err(format!("{file} has {} keys, one a line; at most {MAX_KEYS} are read", keys.len()));
    }
    for (nth, key) in keys.iter().enumerate() {
        check_secret(key).map_err(|why| {
            format!(
                "the key in line {} of {file} can be guessed: {why}. It is none that Fettle makes: bring the file back from a backup. Without one, remove it and enter the models' keys and the tokens again",
                nth + 1
            )
        })?;
    }
    Ok(keys.into_iter().map(SecretString::from).collect())
}

/// The whole file at once: a crash leaves the old one or the new one.
fn write(file: &Utf8Path, keys: &[SecretString]) -> Result<(), String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let written = || -> std::io::Result<()> {
        let fresh = file.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut out = fs_err::OpenOptions::from_options(options).open(&fresh)?;
        for key in keys {
            writeln!(out, "{}", key.expose_secret())?;
        }
        out.sync_all()?;
        fs_err::rename(&fresh, file)?;
        let folder = file.parent().unwrap_or(Utf8Path::new("."));
        fs_err::File::open(folder)?.sync_all()
    };
    written().map_err(|error| format!("could not write the sealing keys: {error}"))
}

fn chain(error: &dyn std::error::Error) -> String {
    fettle_app::ports::chain(error)
}

#[cfg(test)]
mod tests {
    use fettle_app::sealing::KeyRing;

    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(folder.path().join("secrets.key")).unwrap();
        (folder, file)
    }

    #[test]
    fn an_own_file_is_made_grows_and_shrinks_to_the_newest() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_folder, file) = folder();
        let keys = SealingKeys::Own(file.clone());
        let first = KeyRing::new(&keys.read().unwrap());
        assert!(keys.grow().unwrap());
        let both = KeyRing::new(&keys.read().unwrap());
        assert_eq!((first.newest(), both.ids().count()), (both.ids().next(), 2));
        keys.shrink().unwrap();
        let last = KeyRing::new(&keys.read().unwrap());
        assert_eq!((last.newest(), last.ids().count()), (both.newest(), 1));
        assert_eq!(fs_err::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_operators_file_is_read_and_never_written() {
        let (_folder, file) = folder();
        let keys = SealingKeys::Operators(file.clone());
        assert!(keys.read().unwrap_err().contains("no such file"));
        let text = "8f1e6a0b9d3c47e2a55b10c6f7d92e43\n\nc04d7be19a6f4382b1e5d0739f28ac6e\n";
        fs_err::write(&file, text).unwrap();
        assert_eq!(keys.read().unwrap().len(), 2);
        assert!(!keys.grow().unwrap());
        keys.shrink().unwrap();
        assert_eq!(fs_err::read_to_string(&file).unwrap(), text);
        fs_err::write(&file, "password\n").unwrap();
        assert!(keys.read().unwrap_err().contains("line 1"));
    }
}
