//! Real processes and real protocols, on loopback: one binary, one module for each subject.

mod crash;
mod fix;
mod github;
mod hostile_issues;
mod hostile_models;
mod ledger;
mod nix;
mod service;
mod snapshot;
mod units;
mod webhook;
