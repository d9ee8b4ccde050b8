//! Names of things that engines run on and are made of. They come from drivers, configuration and digests, and are compared,
//! never taken apart: an index of a device, which drivers number differently, is none of them.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    )*};
}

names! {
    /// A GPU's or MIG slice's UUID, or `cpu`.
    DeviceId,
    /// `gpu:<uuid>`, `gi:<uuid>/<n>`, `unified` or `host`.
    PoolId,
    /// Devices that reach each other over NVLink.
    IslandId,
    /// A model as configured.
    ModelId,
    /// Digest of everything else in a recipe.
    RecipeId,
    /// One engine process. Used again after it is gone, so an intent also names its [`Epoch`].
    EngineId,
    /// Who asks: a repository, a user, a key.
    OwnerId,
}

/// Numbers the lives of one engine id; an intent with an old one is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);
