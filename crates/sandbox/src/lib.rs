//! Runs commands that nobody trusts: isolated processes behind the port [`fettle_app::ports::sandbox::Sandbox`].
//!
//! The trusted side ([`ProcessSandbox`]) starts the binary `fettle-sandbox` for every command, hands it the specification over a
//! socket and watches time, memory, processes, disk and output. The helper ([`helper`]) builds the walls and executes the command
//! in them. When the socket closes, for whatever reason, the helper ends everything it has started.

mod cgroup;
mod environment;
mod etc;
pub mod helper;
mod output;
mod probe;
mod process;
mod proctree;
mod proxy;
mod running;
mod spec;
mod sys;
mod validate;
mod watch;

pub use probe::{SandboxOptions, helper_beside_current_exe};
pub use process::ProcessSandbox;
