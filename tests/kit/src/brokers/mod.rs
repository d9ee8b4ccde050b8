//! Real brokers of the system's packages, each on a spare port with its data in a temporary folder.

pub mod rabbitmq;
#[expect(clippy::unwrap_used, reason = "fixtures are a part of tests: what fails here fails the test")]
pub mod redis;
