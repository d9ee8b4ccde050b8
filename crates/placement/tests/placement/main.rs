//! What a plan does: as scenarios in text files, and as invariants that hold for every world.

#![expect(clippy::unwrap_used, reason = "what a helper finds missing is the test's failure")]

mod invariants;
mod scenario;
mod world;
