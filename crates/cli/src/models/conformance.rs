//! What examinations of models found, as people read it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use fettle_app::ports::model::ToolCalls;
use fettle_inference::examiner::{Report, in_words};

use crate::inference_process::Process;

/// An examination takes five minutes at most, and another may come before it.
const EXAMINED_LIMIT: Duration = Duration::from_secs(11 * 60);

pub(crate) async fn check(process: &Process, model: &str, json: bool) -> Result<ExitCode> {
    let report: Report =
        process.order_and_wait("examine", &serde_json::json!({ "model": model }), EXAMINED_LIMIT).await?;
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
        for (case, fault) in &seen.wrong {
            text.push_str(&format!("  {case}: {}\n", fettle_domain::outgoing::visible(&fault.replace('\n', " "))));
        }
    }
    text.push_str(&format!("{}: {}\n", report.model, in_words(&report.tool_calls)));
    text
}
