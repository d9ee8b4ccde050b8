//! Real processes and real protocols, on loopback: one binary, one module for each subject.

mod crash;
mod fix;
mod github;
mod hostile_issues;
mod hostile_models;
mod ledger;
mod snapshot;
mod webhook;
