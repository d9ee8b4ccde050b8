//! `fettle usage`: what the models of this machine and those elsewhere were used for, as the gateway here has counted it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use fettle_app::ports::clock::Clock as _;
use fettle_gateway::{UsageBy, Used};
use fettle_runtime::environment::Environment;
use fettle_runtime::system::SystemClock;
use fettle_runtime::units::Span;

use crate::Common;
use crate::inference_process::Process;
use crate::table::table;

/// All records of a busy year are read within it.
const READ_LIMIT: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// What requests are added up by.
    #[arg(long, value_enum, default_value_t = By::Model)]
    by: By,
    /// Of requests that ended within this time, as in 24h or 7d.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    last: Span,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Model,
    /// The repository, or whose key asked.
    Owner,
    Run,
    /// The engine or provider.
    Target,
}

impl From<By> for UsageBy {
    fn from(by: By) -> Self {
        match by {
            By::Model => Self::Model,
            By::Owner => Self::Owner,
            By::Run => Self::Run,
            By::Target => Self::Target,
        }
    }
}

pub(crate) async fn run(common: &Common, flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    let since = SystemClock.now().checked_sub(flags.last.0).context("--last goes back beyond all calendars")?;
    let by = serde_json::to_value(UsageBy::from(flags.by))?;
    let query = [("by", by.as_str().unwrap_or_default()), ("since", &since.to_string())];
    let used: Vec<Used> = Process::of(common, environment)?.ask_within("usage", &query, READ_LIMIT).await?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", serde_json::to_string(&used)?)?;
    } else {
        write!(out, "{}", text(flags.by, &used))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(by: By, used: &[Used]) -> String {
    if used.is_empty() {
        return "nothing was asked in that time\n".to_owned();
    }
    let name = match by {
        By::Model => "MODEL",
        By::Owner => "OWNER",
        By::Run => "RUN",
        By::Target => "TARGET",
    };
    let header = [name, "REQUESTS", "UNFINISHED", "PROMPT", "CACHED", "OUTPUT", "GPU SECONDS", "WATT HOURS"];
    let rows: Vec<[String; 8]> = used
        .iter()
        .map(|one| {
            [
                one.name.clone(),
                one.requests.to_string(),
                one.unfinished.to_string(),
                one.prompt_tokens.to_string(),
                one.cached_tokens.to_string(),
                one.output_tokens.to_string(),
                format!("{:.1}", one.gpu_seconds),
                format!("{:.2}", one.joules / 3600.0),
            ]
        })
        .collect();
    let mut text = String::new();
    table(&mut text, &header, &rows);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_is_a_line_each_in_units_that_people_pay_for() {
        let used = Used {
            name: "coder".to_owned(),
            requests: 3,
            prompt_tokens: 900,
            gpu_seconds: 12.34,
            joules: 7_200.0,
            ..Used::default()
        };
        let text = text(By::Model, &[used]);
        assert!(text.starts_with("MODEL  REQUESTS") && text.contains("12.3         2.00"), "{text}");
    }
}
