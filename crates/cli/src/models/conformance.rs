//! What examinations of models found, as people read it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use fettle_agent::conformance::prompt_tokens;
use fettle_app::ports::model::ToolCalls;
use fettle_inference::examiner::{Report, in_words};
use fettle_runtime::config::Config;
use reqwest::StatusCode;

use crate::inference_process::Process;
use crate::progress::note;
use crate::served::{Away, Listed, listed};

/// An examination takes five minutes at most, and another may come before it.
const EXAMINED_LIMIT: Duration = Duration::from_secs(11 * 60);

/// A server that is up lists its models at once.
const LISTED_LIMIT: Duration = Duration::from_secs(3);

/// Of each form; `--json` has more.
const SHOWN_WRONG: usize = 3;

/// Refuses where somebody may have to be paid, and says how much for.
pub(crate) fn may_cost(config: &Config, model: &str) -> Result<()> {
    let mut models = config.gateway.models.iter();
    if let Some(elsewhere) = models.find(|known| known.name == model && !known.is_local()) {
        let millions = prompt_tokens(elsewhere.context) as f64 / 1e6;
        bail!(
            "`{model}` is answered by {}, which may cost money: some 220 questions with about {millions:.1} million tokens in all, and as many again for each form that it does not know well. Add --yes to ask them",
            elsewhere.server().unwrap_or("a server elsewhere")
        );
    }
    Ok(())
}

/// Refuses at once what would be found out only when all questions have been tried again and again: a server elsewhere that is
/// away, or does not take its key.
pub(crate) async fn is_there(config: &Config, model: &str) -> Result<()> {
    let mut models = config.gateway.models.iter();
    let Some(elsewhere) = models.find(|known| known.name == model && !known.is_local()) else { return Ok(()) };
    match listed(elsewhere, LISTED_LIMIT).await {
        Ok(Listed::Refused(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))) => {
            bail!("the server of `{model}` answers {status}: it wants another key than that of api_key_file")
        }
        // Whatever else it says of itself, it may answer questions; and the key may be another user's to read.
        Ok(_) => Ok(()),
        Err(error) => match error.downcast::<Away>() {
            Ok(away) if !away.busy => bail!("{away}; start it, or correct base_url of `{model}`"),
            _ => Ok(()),
        },
    }
}

pub(crate) async fn forget(process: &Process, model: &str) -> Result<ExitCode> {
    process.order("examine/forget", &serde_json::json!({ "model": model })).await?;
    note(&format!("what was found of `{model}` is forgotten; Runs find out by themselves how it calls tools"));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn check(process: &Process, model: &str, may_cost: bool, json: bool) -> Result<ExitCode> {
    note(&format!("asking `{model}`; that takes five minutes at most, and as long again if another is being asked"));
    let report: Report = process
        .order_and_wait("examine", &serde_json::json!({ "model": model, "may_cost": may_cost }), EXAMINED_LIMIT)
        .await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{}", text(&report))?;
    }
    Ok(match report.tool_calls {
        ToolCalls::Form { .. } => ExitCode::SUCCESS,
        ToolCalls::ChatOnly { .. } => ExitCode::FAILURE,
    })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for seen in &report.seen {
        text.push_str(&format!("{}: {} right\n", seen.dialect.name(), seen.score));
        for (kind, score) in &seen.by_kind {
            let kind =
                serde_json::to_value(kind).ok().and_then(|name| name.as_str().map(|name| name.replace('_', " ")));
            text.push_str(&format!("  {:<14} {score}\n", kind.unwrap_or_default()));
        }
        for (case, fault) in seen.wrong.iter().take(SHOWN_WRONG) {
            text.push_str(&format!("  {case}: {}\n", fettle_domain::outgoing::visible(&fault.replace('\n', " "))));
        }
    }
    text.push_str(&format!("{}: {}\n", report.model, in_words(&report.tool_calls)));
    text
}
