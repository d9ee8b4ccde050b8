//! What models say, on its way from a Run to those who watch it: [`Speech`] beside the Run, [`Ear`] in the dashboard.
//!
//! It is lossy, bounded and recorded nowhere. The journal has every answer when it is whole; this only shows it earlier.

mod ear;
mod speech;

pub use ear::{Ear, Listened, Told};
pub use speech::Speech;

/// Of one message from a worker: some seconds of the fastest model.
pub const MAX_TOLD_BYTES: usize = 16 * 1024;
/// The same, counted in pieces.
pub const MAX_TOLD_PIECES: usize = 64;
