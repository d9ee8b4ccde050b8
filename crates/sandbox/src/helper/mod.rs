//! The helper process: reads its specification from standard input, builds the walls, executes the command in them and reports.
//!
//! Three processes stand in a row at level `full`: the *outer* one (this `main`), the *init* of the process namespace and the
//! *command*. At level `landlock` there is no init; the outer one is the subreaper. The outer one lives as long as its socket to the
//! trusted side: when that closes, or anything arrives on it, everything below is killed. It never has more than one thread.

mod command;
mod forks;
mod full;
mod landlock;
mod outer;
mod root;
mod seccomp;

pub(crate) use full::USER_INSIDE;
pub(crate) use landlock::private_folders;

use std::io;
use std::process::ExitCode;

use crate::spec::{Fault, Refusal};

/// The whole of the binary. The exit code only matters to somebody who starts it by hand.
pub fn main() -> ExitCode {
    match outer::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Names the step that an error belongs to.
trait Step<T> {
    /// The host refuses this part of the walls.
    fn walls(self, step: &str) -> Result<T, Refusal>;
    /// The request cannot be carried out.
    fn request(self, step: &str) -> Result<T, Refusal>;
    fn fault(self, fault: Fault, step: &str) -> Result<T, Refusal>;
}

impl<T> Step<T> for io::Result<T> {
    fn walls(self, step: &str) -> Result<T, Refusal> {
        self.fault(Fault::Walls, step)
    }

    fn request(self, step: &str) -> Result<T, Refusal> {
        self.fault(Fault::Request, step)
    }

    fn fault(self, fault: Fault, step: &str) -> Result<T, Refusal> {
        self.map_err(|e| Refusal { fault, step: step.to_owned(), errno: e.raw_os_error(), detail: e.to_string() })
    }
}
