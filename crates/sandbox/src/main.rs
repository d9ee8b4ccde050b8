//! The helper that stands beside the worker's executable: it enters the sandbox and executes one command.

fn main() -> std::process::ExitCode {
    fettle_sandbox::helper::main()
}
