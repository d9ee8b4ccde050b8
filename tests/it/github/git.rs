//! The emulator's git, by git's own client: what it serves, whom it lets push, and what it records.

use fettle_app::ports::forge::{Forge, ForgeReader};
use fettle_tests::forge::{Act, Fault};
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;
use tokio::process::Command;

use super::World;

/// A clone and how it authenticates.
struct Clone {
    folder: TempDir,
    url: String,
}

impl Clone {
    async fn of(world: &World, token: Option<&SecretString>) -> Self {
        let url = world.forge.clone_url(&world.name);
        let url = match token {
            Some(token) => url.replace("http://", &format!("http://x-access-token:{}@", token.expose_secret())),
            None => url,
        };
        Self { folder: tempfile::tempdir().unwrap(), url }
    }

    async fn git(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("git")
            .args(["-c", "user.name=P", "-c", "user.email=p@forge.invalid"])
            .args(["-c", "credential.helper="])
            .args(arguments)
            .current_dir(self.folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("no_proxy", "127.0.0.1")
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    async fn cloned(self) -> Self {
        self.git(&["clone", "--quiet", &self.url, "."]).await.unwrap();
        self
    }

    async fn commit(&self, content: &[u8]) -> String {
        fs_err::write(self.folder.path().join("data.bin"), content).unwrap();
        self.git(&["add", "--all"]).await.unwrap();
        self.git(&["commit", "--quiet", "--message", "work"]).await.unwrap();
        self.git(&["rev-parse", "HEAD"]).await.unwrap().trim().to_owned()
    }
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

#[tokio::test]
async fn pushes_move_refs_and_pull_requests_and_are_recorded() {
    let world = World::with_app().await;
    world.forge.set_private(&world.name, true);
    let repo = world.repo().await;
    let write = world.github.write_token(&repo).await.unwrap();
    let clone = Clone::of(&world, Some(&write)).await.cloned().await;
    // Above git's post buffer, so the pack comes in chunks.
    let first = clone.commit(&noise(300_000)).await;
    let chunked = ["-c", "http.postBuffer=65536", "push", "--quiet", "origin", "HEAD:refs/heads/ai-agent/x"];
    clone.git(&chunked).await.unwrap();
    assert_eq!(world.forge.tip(&world.name, "ai-agent/x").await.unwrap().as_ref(), Some(&first));
    let spec = fettle_app::ports::forge::PullSpec {
        title: "t".into(),
        body: "b".into(),
        head: "ai-agent/x".into(),
        base: "main".into(),
        draft: false,
    };
    world.github.open_pull(&repo, &spec).await.unwrap();
    let second = clone.commit(b"small").await;
    clone.git(&["push", "--quiet", "origin", "HEAD:refs/heads/ai-agent/x"]).await.unwrap();
    assert_eq!(world.github.pulls_by_head(&repo, "ai-agent/x").await.unwrap()[0].head_sha, second);
    let updates: Vec<_> = world.forge.ref_updates().into_iter().map(|u| (u.old, u.new, u.name)).collect();
    let name = "refs/heads/ai-agent/x".to_owned();
    assert_eq!(updates, [("0".repeat(40), first.clone(), name.clone()), (first, second.clone(), name)]);

    // What the forge refuses leaves no record, even if it was pushed together with nothing else.
    assert!(clone.git(&["push", "origin", ":refs/heads/main"]).await.is_err());
    assert_eq!(world.forge.ref_updates().len(), 2);
    assert_eq!(world.forge.tip(&world.name, "ai-agent/x").await.unwrap(), Some(second));
}

#[tokio::test]
async fn a_read_token_clones_and_cannot_push() {
    let world = World::with_app().await;
    world.forge.set_private(&world.name, true);
    let repo = world.repo().await;
    let read = world.github.read_token(&repo).await.unwrap().unwrap();
    let clone = Clone::of(&world, Some(&read)).await.cloned().await;
    clone.commit(b"x").await;
    let refused = clone.git(&["push", "origin", "HEAD:refs/heads/ai-agent/x"]).await.unwrap_err();
    assert!(refused.contains("Write access to repository not granted") || refused.contains("403"), "{refused}");
    assert_eq!(world.forge.ref_updates(), []);
    let stranger = Clone::of(&world, None).await;
    assert!(stranger.git(&["clone", &stranger.url, "."]).await.is_err());
}

#[tokio::test]
async fn long_negotiations_come_compressed_and_are_understood() {
    let world = World::with_tokens().await;
    let clone = Clone::of(&world, None).await.cloned().await;
    // Many commits that the forge lacks make a request that git compresses.
    for n in 0..80_u8 {
        clone.git(&["commit", "--quiet", "--allow-empty", "--message", &n.to_string()]).await.unwrap();
    }
    let theirs = world.forge.commit(&world.name, "main", &[("new.txt", "new\n")]).await.unwrap();
    clone.git(&["fetch", "--quiet", "origin"]).await.unwrap();
    assert_eq!(clone.git(&["rev-parse", "origin/main"]).await.unwrap().trim(), theirs);
}

#[tokio::test]
async fn a_push_whose_answer_is_lost_has_happened() {
    let world = World::with_tokens().await;
    let repo = world.repo().await;
    let write = world.github.write_token(&repo).await.unwrap();
    let clone = Clone::of(&world, Some(&write)).await.cloned().await;
    let commit = clone.commit(b"x").await;
    // Twice, because git's HTTP library repeats a request when a kept connection dies under it.
    world.forge.inject(Fault::on("POST", "/octo/hello.git/git-receive-pack", Act::DropAfter).times(2));
    assert!(clone.git(&["push", "origin", "HEAD:refs/heads/ai-agent/x"]).await.is_err());
    assert_eq!(world.forge.tip(&world.name, "ai-agent/x").await.unwrap(), Some(commit));
    assert_eq!(world.forge.ref_updates().len(), 1);
}

#[tokio::test]
async fn a_repository_can_start_from_one_on_disk() {
    let world = World::with_tokens().await;
    let source = Clone::of(&world, None).await.cloned().await;
    source.git(&["checkout", "--quiet", "-b", "trunk"]).await.unwrap();
    let tip = source.commit(b"imported").await;
    let path = camino::Utf8Path::from_path(source.folder.path()).unwrap();
    let copy = world.forge.import_repository("octo/copy", path).await.unwrap();
    assert_eq!(world.github.repository(&copy).await.unwrap().default_branch, "trunk");
    assert_eq!(world.forge.tip(&copy, "trunk").await.unwrap(), Some(tip));
}
