//! Reading over smart HTTP.

use axum::http::StatusCode;
use fettle_app::ports::git::{BaseRef, CheckoutKind, GitError, Repositories, Source};
use secrecy::SecretString;
use tokio::net::TcpListener;

use crate::support::{Folder, Server, TOKEN, adapter, commit_all, commit_id, fingerprint, git, write};

#[tokio::test]
async fn references_are_found_and_fetched_once() {
    let server = Server::start().await;
    let work = server.repository("a", &[("x", "1\n")]);
    git(&work, ["tag", "-a", "v1", "-m", "annotated"]);
    git(&work, ["checkout", "-q", "-b", "topic"]);
    write(&work, "x", "2\n");
    let topic = commit_all(&work, "second");
    git(&work, ["push", "-q", "origin", "topic", "v1"]);
    let first = commit_id(&work, "main");

    let folder = Folder::new();
    let adapter = adapter(folder.path());
    let source = server.source("a");
    let base = adapter.resolve(&source, &BaseRef::Default).await.unwrap();
    assert_eq!((base.commit, base.branch.as_deref()), (first, Some("main")));
    let named = |name: &str| BaseRef::Named(name.to_owned());
    let found = adapter.resolve(&source, &named("topic")).await.unwrap();
    assert_eq!((found.commit, found.branch.as_deref()), (topic, Some("topic")));
    let found = adapter.resolve(&source, &named("v1")).await.unwrap();
    assert_eq!((found.commit, found.branch), (first, None));
    let found = adapter.resolve(&source, &named("refs/heads/topic")).await.unwrap();
    assert_eq!(found.commit, topic);
    assert!(matches!(adapter.resolve(&source, &named("absent")).await, Err(GitError::NotFound { .. })));

    // From here on nobody may be asked: the commit is there, and neither checkout, snapshot nor diff fetch.
    let before = server.seen().len();
    adapter.resolve(&source, &BaseRef::Commit(topic)).await.unwrap();
    let into = folder.join("out");
    adapter.checkout(&source.key, found.tree, &into, CheckoutKind::WithPrivateRepository).await.unwrap();
    assert_eq!(adapter.snapshot(&source.key, found.tree, &into).await.unwrap(), found.tree);
    adapter.diff(&source.key, first, found.tree).await.unwrap();
    assert_eq!(adapter.describe_commit(&source, topic).await.unwrap().unwrap().message, "second\n");
    assert_eq!(server.seen().len(), before);
    let packs = server.seen().iter().filter(|seen| seen.line.contains("POST")).count();
    assert_eq!(packs, 2, "one request for main, one for topic; the tag comes along: {:?}", server.seen());
}

#[tokio::test]
async fn a_commit_without_a_branch_is_fetched_by_name_or_looked_for_in_the_branches() {
    let server = Server::start().await;
    let work = server.repository("a", &[("x", "1\n")]);
    let first = commit_id(&work, "main");
    write(&work, "x", "2\n");
    let second = commit_all(&work, "second");
    git(&work, ["push", "-q", "origin", "main"]);

    for allowed in ["true", "false"] {
        git(&server.bare("a"), ["config", "uploadpack.allowAnySHA1InWant", allowed]);
        let folder = Folder::new();
        let adapter = adapter(folder.path());
        let found = adapter.resolve(&server.source("a"), &BaseRef::Commit(first)).await.unwrap();
        assert_eq!(found.commit, first);
        let has_later = git(&folder.join("mirrors/github-a.git"), ["cat-file", "--batch-all-objects", "--batch-check"])
            .contains(&second.to_string());
        assert_eq!(has_later, allowed == "false", "only what is needed is fetched where the server allows it");
        let absent = "1234567890123456789012345678901234567890".parse().unwrap();
        assert_eq!(adapter.describe_commit(&server.source("a"), absent).await.unwrap(), None);
    }
}

#[tokio::test]
async fn the_token_goes_to_its_server_only_and_is_kept_nowhere() {
    let server = Server::start().await;
    server.repository("a", &[("x", "1\n")]);
    let elsewhere = Server::start().await;
    let folder = Folder::new();
    let adapter = adapter(folder.path());
    let source = server.source("a");
    adapter.resolve(&source, &BaseRef::Default).await.unwrap();
    assert!(server.seen().iter().all(|seen| seen.authorized && !seen.line.contains(TOKEN)));

    // A repository that moved on the same host is followed, requests after the first one too.
    server.script(|script| script.redirect = Some(("/old.git".into(), "/a.git".into())));
    let old = Source { key: "github-old".into(), url: format!("{}/old.git", server.url), ..source.clone() };
    adapter.resolve(&old, &BaseRef::Default).await.unwrap();
    assert!(server.seen().last().unwrap().line.starts_with("POST /a.git/git-upload-pack"));

    // Another host gets neither the token nor a request.
    server.script(|script| script.redirect = Some(("/a.git".into(), format!("{}/a.git", elsewhere.url))));
    let error = adapter.resolve(&source, &BaseRef::Default).await.unwrap_err();
    assert!(elsewhere.seen().is_empty());
    let mut text = format!("{error} {error:?}");
    server.script(|script| script.redirect = None);

    for wrong in ["wrong", ""] {
        let token = (!wrong.is_empty()).then(|| SecretString::from(wrong));
        let error = adapter.resolve(&Source { token, ..source.clone() }, &BaseRef::Default).await.unwrap_err();
        assert!(matches!(error, GitError::Denied { .. }), "{error:?}");
    }
    let absent = Source { url: format!("{}/absent.git", server.url), ..source.clone() };
    let error = adapter.resolve(&absent, &BaseRef::Default).await.unwrap_err();
    assert!(matches!(error, GitError::Denied { .. }), "{error:?}");
    text.push_str(&format!("{error} {error:?} {adapter:?}", adapter = source));
    server.script(|script| script.status = Some(StatusCode::BAD_GATEWAY));
    let error = adapter.resolve(&source, &BaseRef::Default).await.unwrap_err();
    assert!(matches!(error, GitError::Unreachable { .. }), "{error:?}");
    text.push_str(&format!("{error} {error:?}"));
    assert!(!text.contains(TOKEN), "{text}");

    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("x-access-token:{TOKEN}"));
    for (path, (content, _, _)) in fingerprint(folder.path().as_std_path()) {
        let content = String::from_utf8_lossy(&content);
        assert!(!content.contains(TOKEN) && !content.contains(&encoded), "{}", path.display());
    }
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/a.git", listener.local_addr().unwrap());
    drop(listener);
    let folder = Folder::new();
    let source = Source { key: "github-1".into(), url, token: None };
    let error = adapter(folder.path()).resolve(&source, &BaseRef::Default).await.unwrap_err();
    assert!(matches!(error, GitError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn several_first_visits_at_once_share_one_sound_mirror() {
    let server = Server::start().await;
    let work = server.repository("a", &[("x", "1\n")]);
    let folder = Folder::new();
    // Two adapters stand for two processes: the lock is the file system's.
    let (one, two) = (adapter(folder.path()), adapter(folder.path()));
    let source = server.source("a");
    let visits = (0..8).map(|number| {
        let adapter = if number % 2 == 0 { &one } else { &two };
        adapter.resolve(&source, &BaseRef::Default)
    });
    for base in futures::future::join_all(visits).await {
        assert_eq!(base.unwrap().commit, commit_id(&work, "main"));
    }
    git(&folder.join("mirrors/github-a.git"), ["fsck", "--full", "--strict"]);
}
