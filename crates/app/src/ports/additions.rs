//! Where what people added in the browser is kept: models, repositories, and the secrets that belong to them, sealed.

use async_trait::async_trait;
use jiff::Timestamp;

use super::ledger::L;

/// Of one sort. More are no menu any more, and each repository is looked at.
pub const MAX_ADDITIONS: u16 = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sort {
    Model,
    Repository,
    /// A token for the forge: `read` or `write`.
    ForgeToken,
}

impl Sort {
    pub const ALL: [Self; 3] = [Self::Model, Self::Repository, Self::ForgeToken];

    /// As it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Repository => "repository",
            Self::ForgeToken => "forge_token",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.name() == text)
    }
}

/// A secret that only whoever has the key can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Which key: 8 hexadecimal digits that tell nothing of it.
    pub key: String,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    pub sort: Sort,
    /// Unique within its sort.
    pub name: String,
    /// JSON; who reads and writes it is [`crate::adding`] alone.
    pub value: String,
    pub secret: Option<Sealed>,
    pub changed_at: Timestamp,
}

/// Whether an addition was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    New,
    Changed,
    /// There are [`MAX_ADDITIONS`] of its sort already.
    Full,
}

#[async_trait]
pub trait Additions: Send + Sync {
    /// All, by sort and name.
    async fn additions(&self) -> L<Vec<Addition>>;
    /// In the place of one of the same sort and name. Durable when it returns.
    async fn keep_addition(&self, addition: Addition) -> L<Kept>;
    /// `false`: there is none. Durable when it returns.
    async fn drop_addition(&self, sort: Sort, name: &str) -> L<bool>;
    /// Exchanges a secret, if it is still `from`. `false`: it is not.
    async fn reseal_addition(&self, sort: Sort, name: &str, from: Sealed, to: Sealed) -> L<bool>;
}
