//! A stand-in for inference servers: it takes time to load, holds memory of a fake GPU, answers as OpenAI's API does, and fails
//! in all the ways that engines fail. Knows nothing of Fettle, and no model.
//!
//! It plays the engine whose name it is called by: `llama-server`, `vllm`, `sglang` or `ollama` with that engine's command line,
//! log lines, paths and keys, and by any other name a server with flags of its own. How it behaves is in the JSON file beside
//! that name, see [`Behaviour`], so a test links it into a folder, once for each way to behave.

mod behaviour;
mod command_line;
mod lines;
mod memory;
mod serve;

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

pub use behaviour::{Behaviour, Fault, Gpu, link};
use command_line::{Kind, Order};

/// Started by itself with this as its only argument but one, it is a worker, and the other says how to behave.
const WORKER: &str = "fake-worker";

/// `arguments` with the program's name.
pub fn main(arguments: &[String], environment: &[(String, String)]) -> ExitCode {
    let played = match arguments {
        [_, verb, file] if verb == WORKER => worker(Path::new(file)),
        [program, rest @ ..] => play(program, rest, environment),
        [] => Err(io::ErrorKind::InvalidInput.into()),
    };
    match played {
        Ok(code) => code,
        Err(e) => {
            say(&format!("fake-engine: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// A line of the log.
pub(crate) fn say(line: &str) {
    let _nobody_reads = writeln!(io::stderr(), "{line}");
}

fn play(program: &str, arguments: &[String], environment: &[(String, String)]) -> io::Result<ExitCode> {
    let behaviour = Behaviour::beside(program)?;
    let order = match Order::read(Kind::of(program), arguments, environment) {
        Ok(order) => order,
        Err(unknown) => {
            say(&lines::bad_flag(Kind::of(program), &unknown));
            return Ok(ExitCode::from(2));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve::live(order, behaviour, program.to_owned()))
}

/// Begins its workers, which hold memory of their own.
pub(crate) fn begin_workers(program: &str, behaviour: &Behaviour) -> io::Result<()> {
    for _ in 0..behaviour.workers {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(WORKER).arg(Behaviour::file(program)).stdin(Stdio::null());
        if behaviour.has(Fault::HidingWorkers) {
            command.env_clear();
        }
        command.spawn()?;
    }
    Ok(())
}

fn worker(file: &Path) -> io::Result<ExitCode> {
    let behaviour = Behaviour::read(file)?;
    let parent = rustix::process::getppid();
    if behaviour.has(Fault::DetachedWorkers) {
        rustix::process::setsid()?;
    }
    if let Some(gpu) = &behaviour.gpu {
        memory::allocate(gpu)?;
    }
    // Workers of engines often outlive their parent.
    while behaviour.has(Fault::OrphanedWorkers) || rustix::process::getppid() == parent {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(ExitCode::SUCCESS)
}
