//! `fettle-fake-engine`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let environment: Vec<(String, String)> = std::env::vars().collect();
    fettle_fake_engine::main(&arguments, &environment)
}
