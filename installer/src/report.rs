//! What checks have found, and how it is shown: to people in aligned lines, to programs as JSON lines.

use std::io::{self, Write};

use serde::Serialize;

use crate::facts::{HostFacts, NEEDS_ROOT, Unknown};
use crate::preflight::{self, Context, Mode, Refusal};
use crate::production;

/// Exit codes of the commands here.
pub const DONE: u8 = 0;
pub const FAILED: u8 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pass,
    /// It works, but look at it.
    Warn,
    Fail,
    /// It could not be looked at; nobody guesses.
    Unknown,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Pass => "\u{1b}[32m",
            Self::Warn => "\u{1b}[33m",
            Self::Fail => "\u{1b}[31m",
            Self::Unknown => "\u{1b}[36m",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Never given to another check.
    pub id: &'static str,
    pub name: &'static str,
    pub outcome: Outcome,
    /// A part of a sentence.
    pub found: String,
    /// One sentence; empty when there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// It failed, and the operator said that this is all right.
    pub ignored: bool,
}

/// What one check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    outcome: Outcome,
    found: String,
    remedy: String,
}

pub(crate) type Checked = Result<Verdict, Unknown>;

pub(crate) fn pass(found: impl Into<String>) -> Checked {
    Ok(Verdict { outcome: Outcome::Pass, found: found.into(), remedy: String::new() })
}

pub(crate) fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Checked {
    Ok(Verdict { outcome: Outcome::Warn, found: found.into(), remedy: remedy.into() })
}

pub(crate) fn fail(found: impl Into<String>, remedy: impl Into<String>) -> Checked {
    Ok(Verdict { outcome: Outcome::Fail, found: found.into(), remedy: remedy.into() })
}

pub(crate) struct Check<C> {
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    pub(crate) run: fn(&HostFacts, &C) -> Checked,
}

impl<C> Check<C> {
    pub(crate) fn find(&self, facts: &HostFacts, context: &C) -> Finding {
        let Verdict { outcome, found, remedy } = match (self.run)(facts, context) {
            Ok(verdict) => verdict,
            Err(Unknown { why }) => {
                let remedy = if why.starts_with(NEEDS_ROOT) {
                    "Run it as root (sudo) to have this checked."
                } else {
                    "It could not be checked here; look at it yourself before you go on."
                };
                Verdict { outcome: Outcome::Unknown, found: why, remedy: remedy.to_owned() }
            }
        };
        Finding { id: self.id, name: self.name, outcome, found, remedy, ignored: false }
    }
}

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Show {
    pub json: bool,
    /// Only for a terminal.
    pub colour: bool,
    /// Leaves out what passed.
    pub brief: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    pub pass: usize,
    pub warn: usize,
    pub fail: usize,
    pub unknown: usize,
}

impl Counts {
    pub fn of(findings: &[Finding]) -> Self {
        let count = |outcome| findings.iter().filter(|finding| finding.outcome == outcome).count();
        Self {
            pass: count(Outcome::Pass),
            warn: count(Outcome::Warn),
            fail: count(Outcome::Fail),
            unknown: count(Outcome::Unknown),
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pass, warn, fail, unknown } = self;
        let s = if *warn == 1 { "" } else { "s" };
        write!(f, "{pass} passed, {warn} warning{s}, {fail} failed, {unknown} unknown")
    }
}

/// One line for each finding and one for its remedy, then the counts.
pub fn print(out: &mut dyn Write, findings: &[Finding], show: Show) -> io::Result<()> {
    let counts = Counts::of(findings);
    if show.json {
        for finding in findings {
            line(out, finding)?;
        }
        return line(out, &serde_json::json!({ "summary": counts }));
    }
    let width = findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    for finding in findings.iter().filter(|finding| !(show.brief && finding.outcome == Outcome::Pass)) {
        let Finding { id, name, outcome, found, remedy, ignored } = finding;
        let (on, off) = if show.colour { (outcome.colour(), "\u{1b}[0m") } else { ("", "") };
        let ignored = if *ignored { " (ignored)" } else { "" };
        writeln!(out, "{id}  {on}{:<7}{off}  {name:<width$}  {found}{ignored}", outcome.name())?;
        if !remedy.is_empty() {
            writeln!(out, "{:<7}{:<7}  {:<width$}  -> {remedy}", "", "", "")?;
        }
    }
    writeln!(out, "{counts}")
}

fn line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// `detect`: what this host is, and all facts with `json`. Gives the exit code.
pub fn detect(out: &mut dyn Write, facts: &HostFacts, show: Show) -> io::Result<u8> {
    let mode = preflight::select(facts, None);
    if show.json {
        let (mode, refused) = match &mode {
            Ok(mode) => (Some(mode.name()), None),
            Err(refusal) => (None, Some(refusal.to_string())),
        };
        line(out, &serde_json::json!({ "mode": mode, "refused": refused, "facts": facts }))?;
        return Ok(DONE);
    }
    for (name, value) in summary(facts) {
        writeln!(out, "{name:<9} {}", value.unwrap_or_else(|unknown| format!("unknown: {}", unknown.why)))?;
    }
    match mode {
        Ok(mode) => writeln!(out, "{:<9} {}", "mode", mode.name())?,
        Err(refusal) => writeln!(out, "{:<9} none: {refusal}", "mode")?,
    }
    Ok(DONE)
}

/// What people ask for first.
fn summary(facts: &HostFacts) -> Vec<(&'static str, Result<String, Unknown>)> {
    let owned = |value: Result<&String, &Unknown>| value.cloned().map_err(Unknown::from);
    let systemd = || {
        Ok(match facts.system.systemd.get()? {
            Some(version) => format!("systemd {version}, process 1 is {}", facts.system.init.get()?),
            None => format!("no systemd, process 1 is {}", facts.system.init.get()?),
        })
    };
    let gpus = || {
        let models = facts.gpu.models.get()?;
        let driver = facts.gpu.driver.get()?;
        Ok(match (models.first(), driver) {
            (Some(first), Some(driver)) => format!("{} x {first}, driver {driver}", models.len()),
            _ if *facts.gpu.on_bus.get()? > 0 => "present, but no driver has taken them".to_owned(),
            _ => "none".to_owned(),
        })
    };
    let memory = || Ok(preflight::size(facts.memory.get()?.total_bytes));
    let level = || Ok(preflight::level(facts)?.map_or("none", |level| level.name()).to_owned());
    vec![
        ("system", facts.os_name().map_err(Unknown::from)),
        ("kernel", owned(facts.system.kernel.get())),
        ("machine", owned(facts.system.arch.get())),
        ("init", systemd()),
        ("memory", memory()),
        ("gpus", gpus()),
        ("sandbox", level()),
    ]
}

/// What `preflight` was asked.
#[derive(Debug, Clone)]
pub struct Preflight {
    /// None: as the host itself says.
    pub mode: Option<Mode>,
    /// The mode in it is replaced by the one that was found.
    pub context: Context,
    /// As typed: `PF012,PF040`.
    pub ignore: Vec<String>,
}

/// What came of it, for whoever goes on only when nothing failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub findings: Vec<Finding>,
    /// There is no mode for this host.
    pub refused: Option<Refusal>,
}

impl Judged {
    pub fn passed(&self) -> bool {
        self.refused.is_none() && Counts::of(&self.findings).fail == 0
    }
}

/// Errors with a sentence about the usage: an id that no check has.
pub fn judge(facts: &HostFacts, asked: &Preflight) -> Result<Judged, String> {
    let ignored = preflight::ids(&asked.ignore)?;
    let (mode, refused) = match preflight::select(facts, asked.mode) {
        Ok(mode) => (mode, None),
        Err(refusal) => (asked.mode.unwrap_or(Mode::Systemd), Some(refusal)),
    };
    let context = Context { mode, ..asked.context.clone() };
    let mut findings = preflight::checks(facts, &context);
    preflight::ignore(&mut findings, &ignored);
    // A system that is not supported is a matter of check PF004, which can be ignored.
    let refused = refused.filter(|refusal| !(refusal.is_unsupported() && ignored.contains("PF004")));
    Ok(Judged { findings, refused })
}

/// `preflight`. Gives the exit code.
pub fn preflight(out: &mut dyn Write, judged: &Judged, show: Show) -> io::Result<u8> {
    print(out, &judged.findings, show)?;
    if let Some(refusal) = &judged.refused {
        if show.json {
            line(out, &serde_json::json!({ "refused": refusal.to_string() }))?;
        } else {
            writeln!(out, "{refusal}")?;
        }
    }
    Ok(if judged.passed() { DONE } else { FAILED })
}

/// `production-checks`. Gives the exit code.
pub fn production_checks(out: &mut dyn Write, facts: &HostFacts, show: Show) -> io::Result<u8> {
    let findings = production::checks(facts);
    print(out, &findings, show)?;
    Ok(if Counts::of(&findings).fail == 0 { DONE } else { FAILED })
}
