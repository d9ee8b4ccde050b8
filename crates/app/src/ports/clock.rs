//! Time, ids and secrets, so that tests choose them.

use jiff::Timestamp;

/// The wall clock, cut to microseconds so that every store gives back what it was given.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

/// Makes the bytes of new ids (UUID v7) and other random choices such as jitter.
pub trait IdSource: Send + Sync {
    fn uuid(&self) -> uuid::Uuid;
}

/// Makes what nobody can guess: tokens, keys, salts.
pub trait SecretSource: Send + Sync {
    fn secret(&self) -> [u8; 32];
}
