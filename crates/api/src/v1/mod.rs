//! Version 1 of the public API: handler, bodies and OpenAPI of each resource in one file.

pub(crate) mod accounts;
pub(crate) mod change;
pub(crate) mod cursor;
pub(crate) mod events;
pub(crate) mod forge;
pub(crate) mod inference;
pub(crate) mod live;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod operations;
pub(crate) mod overview;
pub(crate) mod pods;
pub(crate) mod queue;
pub(crate) mod repositories;
pub(crate) mod runs;
pub(crate) mod settings;
pub(crate) mod steps;
pub(crate) mod submit;
pub(crate) mod system;
pub(crate) mod tasks;
