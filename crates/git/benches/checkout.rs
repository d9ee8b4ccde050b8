//! Times our checkout beside what `git` offers for the same commit, interleaved in one run, as medians and ratios.
//!
//! `cargo bench -p fettle-git`. The bound is 1.2 times `git worktree add` for a plain checkout.

#![expect(clippy::unwrap_used, reason = "a bench that fails has nothing to print")]
#![expect(clippy::print_stdout, reason = "the table is the result")]

use std::process::Command;
use std::time::Duration;

use camino::Utf8Path;
use fettle_app::ports::git::{BaseRef, CheckoutKind, Repositories, Source};
use fettle_git::{Git, GitOptions};
use tokio::time::Instant;

/// As many files as a middle-sized repository has.
const FILES: u64 = 5_000;
/// Enough for a median on a machine that does other things too.
const ROUNDS: usize = 9;
const KEY: &str = "local-bench";

fn git(folder: &Utf8Path, arguments: &[&str]) {
    let status = Command::new("git")
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .args(["-c", "user.name=Bench", "-c", "user.email=bench@localhost", "-c", "advice.detachedHead=false"])
        .args(arguments)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Lines that compress about as source code does, the same at each run.
fn content(file: u64) -> String {
    let words = ["let", "value", "return", "self", "match", "None", "Some", "index", "result", "if", "for", "="];
    let mut seed = file.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::new();
    for _ in 0..(20 + file % 300) {
        for _ in 0..7 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            text.push_str(words[(seed % words.len() as u64) as usize]);
            text.push(' ');
        }
        text.push_str(&format!("{:x};\n", seed >> 48));
    }
    text
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(temporary.path()).unwrap();
    let repo = folder.join("repo");
    for file in 0..FILES {
        let place = repo.join(format!("crate{}/src/part{}/file{file}.rs", file % 23, file % 7));
        fs_err::create_dir_all(place.parent().unwrap()).unwrap();
        fs_err::write(place, content(file)).unwrap();
    }
    git(&repo, &["init", "-q", "-b", "main"]);
    git(&repo, &["add", "."]);
    git(&repo, &["commit", "-q", "-m", "all"]);
    git(&repo, &["gc", "-q"]);

    let adapter = Git::new(GitOptions::new(folder.join("mirrors"))).unwrap();
    let source = Source { key: KEY.into(), url: repo.to_string(), token: None };
    let base = adapter.resolve(&source, &BaseRef::Default).await.unwrap();

    let names = ["git worktree add", "git clone --depth 1", "checkout, plain", "checkout, private", "snapshot"];
    let mut times: [Vec<Duration>; 5] = Default::default();
    for round in 0..ROUNDS {
        let place = |name: &str| folder.join(format!("{name}{round}"));
        let (worktree, clone, plain, private) = (place("worktree"), place("clone"), place("plain"), place("private"));
        let started = Instant::now();
        git(&repo, &["worktree", "add", "-q", "--detach", worktree.as_str(), "main"]);
        times[0].push(started.elapsed());
        let started = Instant::now();
        git(folder, &["clone", "-q", "--depth", "1", &format!("file://{repo}"), clone.as_str()]);
        times[1].push(started.elapsed());
        let started = Instant::now();
        adapter.checkout(KEY, base.tree, &plain, CheckoutKind::Plain).await.unwrap();
        times[2].push(started.elapsed());
        let started = Instant::now();
        adapter.checkout(KEY, base.tree, &private, CheckoutKind::WithPrivateRepository).await.unwrap();
        times[3].push(started.elapsed());
        let started = Instant::now();
        assert_eq!(adapter.snapshot(KEY, base.tree, &private).await.unwrap(), base.tree);
        times[4].push(started.elapsed());
        git(&repo, &["worktree", "remove", "--force", worktree.as_str()]);
        for used in [clone, plain, private] {
            fs_err::remove_dir_all(used).unwrap();
        }
    }
    let medians = times.map(median);
    println!("{FILES} files, {ROUNDS} rounds");
    for (name, milliseconds) in names.iter().zip(medians) {
        println!("{name:<20} {milliseconds:>8.1} ms  {:>5.2} x worktree add", milliseconds / medians[0]);
    }
}
