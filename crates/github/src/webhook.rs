//! Webhooks: whether GitHub sent the bytes, and what they say. Never trusts a field that is not the type it should be,
//! never fails on one that we do not know.

use fettle_domain::incoming::{Incoming, IncomingComment, IncomingIssue, IssueChange};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::Sha256;

use crate::wire::{CommentWire, InstallationWire, IssueWire, LabelWire, RepoWire, UserWire, known};

/// The body is not what its event promises.
#[derive(Debug, thiserror::Error)]
pub enum MalformedWebhook {
    #[error("the body of `{event}` cannot be read")]
    Unreadable {
        event: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the body of `{event}` names no valid repository")]
    Repository {
        event: String,
        #[source]
        source: fettle_domain::repo::ParseRepoNameError,
    },
}

/// Says what `X-GitHub-Event: event` with this body means.
pub fn normalise(event: &str, body: &[u8]) -> Result<Incoming, MalformedWebhook> {
    let unreadable = |source| MalformedWebhook::Unreadable { event: event.to_owned(), source };
    match event {
        "ping" => Ok(Incoming::Ping),
        "issues" | "issue_comment" => {
            let wire: IssueEventWire = serde_json::from_slice(body).map_err(unreadable)?;
            let change = change(event, wire.action, wire.label, wire.comment);
            let installation = wire.installation.map(|installation| installation.id);
            let repo = wire
                .repository
                .into_repo(installation)
                .map_err(|source| MalformedWebhook::Repository { event: event.to_owned(), source })?;
            let (sender, issue) = (wire.sender.into(), wire.issue.into());
            Ok(Incoming::Issue(Box::new(IncomingIssue { change, repo, sender, issue })))
        }
        _ => {
            let wire: OtherWire = serde_json::from_slice(body).map_err(unreadable)?;
            Ok(Incoming::Other { event: event.to_owned(), action: wire.action })
        }
    }
}

fn change(event: &str, action: String, label: Option<LabelWire>, comment: Option<CommentWire>) -> IssueChange {
    let name = format!("{event}.{action}");
    match (name.as_str(), label.and_then(LabelWire::into_name), comment) {
        ("issues.opened", _, _) => IssueChange::Opened,
        ("issues.labeled", Some(label), _) => IssueChange::Labeled { label },
        ("issue_comment.created", _, Some(comment)) => IssueChange::Commented { comment: comment.into() },
        _ => IssueChange::Other { name },
    }
}

#[derive(Deserialize)]
struct IssueEventWire {
    action: String,
    repository: RepoWire,
    installation: Option<InstallationWire>,
    sender: UserWire,
    issue: IssueWire,
    label: Option<LabelWire>,
    comment: Option<CommentWire>,
}

#[derive(Deserialize)]
struct OtherWire {
    action: Option<String>,
}

impl From<CommentWire> for IncomingComment {
    fn from(wire: CommentWire) -> Self {
        Self {
            id: wire.id,
            author: known(wire.user),
            body: wire.body.unwrap_or_default(),
            url: wire.html_url,
            created_at: wire.created_at,
            updated_at: wire.updated_at,
        }
    }
}

/// The value of `X-Hub-Signature-256` for these bytes.
pub fn sign(secret: &SecretString, body: &[u8]) -> String {
    format!("sha256={}", hex::encode(mac(secret, body).finalize().into_bytes()))
}

/// Whether the signature is by one of `secrets`: two during a rotation, none refuses everything. Constant time in the
/// signature's content.
pub fn verify(secrets: &[SecretString], body: &[u8], signature: &str) -> bool {
    let Some(Ok(claimed)) = signature.strip_prefix("sha256=").map(hex::decode) else {
        return false;
    };
    // No early end: which of the secrets fitted stays unknown, too.
    secrets.iter().fold(false, |found, secret| found | mac(secret, body).verify_slice(&claimed).is_ok())
}

fn mac(secret: &SecretString, body: &[u8]) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GitHub's own test values, from "Validating webhook deliveries".
    #[test]
    fn the_documented_signature_is_made_and_taken() {
        let secret = SecretString::from("It's a Secret to Everybody");
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert_eq!(sign(&secret, b"Hello, World!"), signature);
        let old = SecretString::from("last year's");
        assert!(verify(&[old.clone(), secret.clone()], b"Hello, World!", signature));
        assert!(verify(&[secret.clone(), old.clone()], b"Hello, World!", signature));
        assert!(!verify(&[old], b"Hello, World!", signature));
        assert!(!verify(&[], b"Hello, World!", signature));
        for broken in ["", "sha256=", "sha1=757107ea", "sha256=zz", &signature[..70], &signature.to_uppercase()] {
            assert!(!verify(std::slice::from_ref(&secret), b"Hello, World!", broken), "{broken}");
        }
        assert!(!verify(&[secret], b"Hello, World?", signature));
    }

    #[test]
    fn no_body_panics() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for event in ["issues", "issue_comment", "push", "", "\u{0}"] {
            for body in ["", "{", "null", "[]", "1e999", "{\"action\":7}", "{\"action\":\"opened\"}", deep.as_str()] {
                assert!(normalise(event, body.as_bytes()).is_err() || event != "issues", "{event}: {body:.20}");
            }
            assert!(normalise(event, &[0xff, 0xfe]).is_err());
        }
    }
}
