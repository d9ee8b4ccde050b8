//! `fettle-engine-keeper`: see `keeper`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    fettle_engines::keeper::main(&arguments)
}
