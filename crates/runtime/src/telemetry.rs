//! Logs: lines for people on a terminal, JSON with the whole chain of causes elsewhere.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    Text,
    Json,
}

/// Which lines are logged.
///
/// Errors with a sentence when `text` cannot be read.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(text)
        .map_err(|e| format!("telemetry.log: `{text}` cannot be read ({e}); write it as in `info,fettle_git=debug`"))
}

/// Logs go to standard error, so that standard output is the command's own. `log` as in `info,fettle_git=debug`.
///
/// Errors when it cannot be read.
pub fn init(log: &str, format: LogFormat) -> Result<(), String> {
    let filter = filter(log)?;
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let writer = std::io::stderr.with_max_level(tracing::Level::TRACE);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    // A second initialisation in one process (tests) keeps the first.
    let _ = if json {
        tracing::subscriber::set_global_default(builder.json().flatten_event(true).with_span_list(false).finish())
    } else {
        tracing::subscriber::set_global_default(builder.with_ansi(std::io::stderr().is_terminal()).finish())
    };
    Ok(())
}

/// An error with its causes on one line.
pub use fettle_app::ports::chain;
