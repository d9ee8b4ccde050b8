//! Support for the tests and the demo: emulators that speak the real protocols on loopback.

pub mod bench;
pub mod cluster;
pub mod collector;
pub mod contract;
pub mod crash;
pub mod demo;
pub mod downloads;
pub mod fixtures;
pub mod forge;
pub mod https;
pub mod keda;
pub mod model;
pub mod platform;
pub mod postgres;
pub mod round_robin;
pub mod world;

pub use fettle_test_kit::{brokers, skip};
