//! Installs Fettle on a host, and takes it away again. Facts are read at the edge, a pure planner decides, a journal makes
//! sure that a run can be killed at any instant.

pub mod action;
pub mod answers;
pub mod facts;
pub mod host;
pub mod journal;
pub mod layout;
pub mod plan;
pub mod preflight;
pub mod production;
pub mod receipt;
pub mod report;
pub mod run;
