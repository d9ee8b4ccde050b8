//! The appliance on a whole machine: a Debian root is booted with systemd as PID 1, the installer installs the real programs
//! into it, and everything that an operator would do is done there, and everything that could go wrong.

mod machine;
mod release;
mod root;
mod stage;
mod story;
mod trace;

pub use machine::{Machine, Said};
pub use release::{Kind, lay};
pub use root::{Missing, Root};
pub use stage::{hammer, play};
pub use story::{Depth, Tale, tell};
pub use trace::Trace;
