//! The fake engine, where tests of this crate find it: `cargo test` builds examples, and no binary of another crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let environment: Vec<(String, String)> = std::env::vars().collect();
    fettle_fake_engine::main(&arguments, &environment)
}
