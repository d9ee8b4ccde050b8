//! What a plan does: as scenarios in text files, and as invariants that hold for every world.

mod invariants;
mod scenario;
mod world;
