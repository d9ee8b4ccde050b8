//! A `Source.url`, parsed: a server that we may talk to, or a folder on this machine.

use camino::Utf8PathBuf;
use fettle_app::ports::git::GitError;
use reqwest::Url;

pub(crate) enum Place {
    Remote(Url),
    Local(Utf8PathBuf),
}

/// Refuses addresses with user information without repeating them: it may be a secret.
pub(crate) fn parse(url: &str, plain_http_on_loopback: bool) -> Result<Place, GitError> {
    if url.starts_with('/') {
        return Ok(Place::Local(Utf8PathBuf::from(url)));
    }
    let parsed = Url::parse(url).map_err(|_| {
        GitError::Invalid("the repository's address is neither an https URL nor an absolute path".into())
    })?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(GitError::Invalid(
            "the repository's address carries user information; give the token apart".into(),
        ));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(GitError::Invalid("the repository's address has a query or fragment".into()));
    }
    match parsed.scheme() {
        "https" => Ok(Place::Remote(parsed)),
        "http" if plain_http_on_loopback && is_loopback(&parsed) => Ok(Place::Remote(parsed)),
        scheme => Err(GitError::Invalid(format!("a repository is not read over {scheme}, only over https"))),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only_and_user_information_for_nobody() {
        assert!(matches!(parse("https://forge.test/a/b", false), Ok(Place::Remote(_))));
        assert!(matches!(parse("http://127.0.0.1:3/a", true), Ok(Place::Remote(_))));
        assert!(matches!(parse("http://[::1]:3/a", true), Ok(Place::Remote(_))));
        for refused in
            ["http://forge.test/a", "http://127.0.0.1.forge.test/a", "ssh://forge.test/a", "file:///tmp/a", "a/b"]
        {
            assert!(parse(refused, true).is_err(), "{refused}");
        }
        assert!(parse("http://127.0.0.1:3/a", false).is_err());
        let error = parse("https://x:s3cret@forge.test/a", true).err().unwrap();
        assert!(!format!("{error:?} {error}").contains("s3cret"));
    }
}
