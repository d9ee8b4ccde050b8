//! The demo: one issue becomes one proven pull request, with a forge emulator, a scripted model and the real `fettle up`,
//! on this machine alone.

mod example;
mod stage;
mod story;
mod tell;

pub use stage::Stage;
pub use story::play;
pub use tell::Teller;
