//! The adapter against real repositories, the real `git` command and a real `git http-backend`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod local;
mod patches;
mod pushing;
mod remotes;
mod support;
mod trees;
