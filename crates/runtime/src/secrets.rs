//! Secrets come as files, are read once, and are made with narrow rights.

use camino::Utf8Path;
use fettle_domain::strength::{WeakSecret, check_secret};
use secrecy::{ExposeSecret as _, SecretString};

use crate::config::Config;
use crate::data::DataDir;
use crate::environment::Environment;

/// Larger files are no secrets; a wrong path is told before it is read into memory.
const MAX_SECRET_BYTES: u64 = 64 * 1024;
/// Characters of a key that we make: 256 bits as hexadecimal digits.
const KEY_PREFIX: &str = "fettle_";

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("could not read the secret file {path}")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("could not read the secret file {0}: no such file")]
    Missing(String),
    #[error("the secret file {0} is empty")]
    Empty(String),
    #[error("the secret file {0} is larger than {MAX_SECRET_BYTES} bytes; is it the right file?")]
    TooLarge(String),
    #[error(
        "the secret in {path} can be guessed: {why}. Make a new one with `openssl rand -hex 32 > {path}`, and give it to whoever \
         else has the old one"
    )]
    Weak { path: String, why: WeakSecret },
    #[error("could not write {path}")]
    Write {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

/// The file's text without blanks around it.
pub fn read(path: &Utf8Path) -> Result<SecretString, SecretError> {
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => SecretError::Missing(path.to_string()),
        _ => SecretError::Read { path: path.to_string(), source },
    };
    let size = fs_err::metadata(path).map_err(error)?.len();
    if size > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge(path.to_string()));
    }
    let text = fs_err::read_to_string(path).map_err(error)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(SecretError::Empty(path.to_string()));
    }
    Ok(SecretString::from(text.to_owned()))
}

/// As [`read`], of a secret that other programs know as well and that nobody may guess.
pub fn read_strong(path: &Utf8Path) -> Result<SecretString, SecretError> {
    let secret = read(path)?;
    check_secret(secret.expose_secret()).map_err(|why| SecretError::Weak { path: path.to_string(), why })?;
    Ok(secret)
}

/// The configuration's keys of the files that [`read_strong`] reads.
pub fn shared(config: &Config) -> [(&'static str, Option<&Utf8Path>); 6] {
    let (auth, forge) = (&config.auth, &config.forge);
    [
        ("auth.admin_key_file", auth.admin_key_file.as_deref()),
        ("auth.worker_key_file", auth.worker_key_file.as_deref()),
        ("auth.scale_key_file", auth.scale_key_file.as_deref()),
        ("gateway.run_token_key_file", config.gateway.run_token_key_file.as_deref()),
        ("forge.webhook_secret_file", forge.webhook_secret_file.as_deref()),
        ("forge.webhook_secret_previous_file", forge.webhook_secret_previous_file.as_deref()),
    ]
}

/// Reads `path`, or makes a new random key there with mode 0600 when it is absent. `true`: it was made.
pub fn read_or_make(path: &Utf8Path, random: [u8; 32]) -> Result<(SecretString, bool), SecretError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let error = |source| SecretError::Write { path: path.to_string(), source };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    match fs_err::OpenOptions::from_options(options).open(path) {
        Ok(mut file) => {
            let key = key_of(random);
            writeln!(file, "{}", key.expose_secret()).and_then(|()| file.sync_all()).map_err(error)?;
            Ok((key, true))
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => read_strong(path).map(|key| (key, false)),
        Err(e) => Err(error(e)),
    }
}

/// A key as we make them.
pub fn key_of(random: [u8; 32]) -> SecretString {
    random.iter().fold(KEY_PREFIX.to_owned(), |text, byte| text + &format!("{byte:02x}")).into()
}

/// A sentence for each secret that others than its owner can read: those that the configuration names, and the keys in
/// the data folder.
pub fn exposed(config: &Config, data: Option<&DataDir>, environment: &Environment) -> Vec<String> {
    let keys = data.map(|data| [data.admin_key(), data.worker_key(), data.sealing_keys()]);
    let named = config.secret_files();
    let mut files: Vec<&Utf8Path> = named.iter().map(|(_, file)| *file).collect();
    files.extend(keys.iter().flatten().map(|key| key.as_path()));
    files.sort_unstable();
    files.dedup();
    // systemd makes this folder for the service alone; the modes in it are not ours to change.
    let systemd = environment.find("CREDENTIALS_DIRECTORY");
    let ours = |file: &&Utf8Path| systemd.is_none_or(|folder| !file.starts_with(folder));
    let folder = data.and_then(|data| told_if_entered(data.root()));
    files.into_iter().filter(ours).filter_map(told_if_open).chain(folder).collect()
}

/// Ledger, patches and usage lie below it, each with the modes of whoever made it.
fn told_if_entered(folder: &Utf8Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs_err::metadata(folder).ok()?.permissions().mode() & 0o777;
    (mode & 0o055 != 0).then(|| format!("{folder} can be entered by others than its owner; run `chmod 700 {folder}`"))
}

/// Nothing about a file that is not there: whoever needs it tells that.
fn told_if_open(file: &Utf8Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs_err::metadata(file).ok()?.permissions().mode() & 0o777;
    (mode & 0o044 != 0).then(|| format!("{file} can be read by others than its owner; run `chmod 600 {file}`"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("admin.key");
        let (first, made) = read_or_make(&path, std::array::from_fn(|nth| (nth * 89) as u8)).unwrap();
        assert!(made);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (second, made) = read_or_make(&path, [8; 32]).unwrap();
        assert!(!made);
        assert_eq!(first.expose_secret(), second.expose_secret());
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused_with_its_file_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("webhook-secret");
        for weak in ["changeme", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "hunter2hunter2hunter2hunter2"] {
            fs_err::write(&path, weak).unwrap();
            assert!(read(&path).is_ok());
            let refused = read_strong(&path).unwrap_err().to_string();
            assert!(refused.contains(&format!("openssl rand -hex 32 > {path}")), "{refused}");
            assert!(!refused.contains(weak), "{refused}");
            assert!(read_or_make(&path, [7; 32]).is_err(), "one that is there is no better");
        }
        fs_err::write(&path, "d4c1b5e2f39a7068c2ab4f6e1d0973b8\n").unwrap();
        assert_eq!(read_strong(&path).unwrap().expose_secret(), "d4c1b5e2f39a7068c2ab4f6e1d0973b8");
    }

    #[test]
    fn a_secret_that_others_can_read_is_told_unless_systemd_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let file = |name: &str, mode: u32| {
            let path = root.join(name);
            fs_err::write(&path, "secret").unwrap();
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (open, closed) = (file("open", 0o640), file("closed", 0o600));
        let text = format!(
            "[forge]\nread_token_file = \"{open}\"\nwrite_token_file = \"{closed}\"\nwebhook_secret_file = \"/nowhere\""
        );
        let config = Config::parse("fettle.toml", &text, &Environment::default()).unwrap();
        let told = exposed(&config, None, &Environment::default());
        assert!(told.len() == 1 && told[0].ends_with(&format!("run `chmod 600 {open}`")), "{told:?}");
        let systemd = Environment::from_pairs([("CREDENTIALS_DIRECTORY", root.as_str())]);
        assert_eq!(exposed(&config, None, &systemd), Vec::<String>::new());
    }
}
