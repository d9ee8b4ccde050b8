//! Installs Fettle on a host, and takes it away again. Facts are read at the edge, a pure planner decides, a journal makes
//! sure that a run can be killed at any instant.

pub mod action;
pub mod answers;
pub mod backup;
mod child;
pub mod cli;
pub mod commands;
pub mod console;
pub mod environment_file;
pub mod exit;
pub mod facts;
mod guarded;
pub mod host;
pub mod journal;
pub mod k3s;
pub mod layout;
pub mod lock;
pub mod nixos;
pub mod plan;
pub mod preflight;
pub mod production;
pub mod receipt;
pub mod release;
pub mod report;
pub mod run;
pub mod smoke;
pub mod support;
pub mod take_over;
