//! Support for the tests and the demo: emulators that speak the real protocols on loopback.

pub mod model;
