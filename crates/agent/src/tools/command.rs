//! `bash` and `run_tests`: commands in the sandbox, shown by head and tail.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::sandbox::{Access, CommandEnd, KilledBy, Mount, SandboxError, SandboxLimits};
use tokio_util::sync::CancellationToken;

use super::outcome::Outcome;
use super::text::{head_and_tail, without_control};
use super::{OUT_PREFIX, ToolBox};

/// Shown of a command's output from each end.
const HEAD_CHARS: usize = 5_000;
const TAIL_CHARS: usize = 5_000;

/// Failing tests that are explained, and the length of an explanation.
const SHOWN_MESSAGES: usize = 3;
const MESSAGE_CHARS: usize = 1_500;

/// Failing tests that are named.
const SHOWN_NAMES: usize = 50;

impl ToolBox {
    pub(super) async fn bash(
        &self,
        step: u32,
        command: &str,
        timeout_s: Option<u32>,
        access: Access,
        cancel: &CancellationToken,
    ) -> Result<Outcome, SandboxError> {
        let out_dir = &self.options.out_dir;
        let mut command = self.options.bench.shell(&self.options.workspace, access, command);
        if let Some(seconds) = timeout_s {
            command.limits.time = Duration::from_secs(u64::from(seconds));
        }
        // The same name inside and out, because the weakest level cannot move anything.
        command.mounts.push(Mount { host: out_dir.clone(), inside: out_dir.clone(), access: Access::ReadOnly });
        command.env.insert("FETTLE_OUT".to_owned(), out_dir.to_string());
        let output = self.options.sandbox.run(&command, cancel).await?;
        let log = format!("{OUT_PREFIX}{step}.log");
        let shown = without_control(&String::from_utf8_lossy(&output.output));
        let (body, cut) = head_and_tail(&shown, HEAD_CHARS, TAIL_CHARS, &log);
        let mut outcome = ended(output.end, output.took, &command.limits, &body);
        outcome.result.truncated = cut || output.truncated;
        outcome.result.bytes_total = output.bytes_total;
        outcome.output = Some(Bytes::from(output.output));
        Ok(outcome)
    }

    pub(super) async fn run_tests(
        &self,
        step: u32,
        target: Option<&str>,
        cancel: &CancellationToken,
    ) -> Result<Outcome, SandboxError> {
        let started = tokio::time::Instant::now();
        let tests = self.options.tests.run(&self.options.workspace, target, cancel).await?;
        let log = format!("{OUT_PREFIX}{step}.log");
        let mut body = String::new();
        let line = "writing to a string cannot fail";
        if let Some(note) = &tests.note {
            writeln!(body, "{note}").expect(line);
        }
        if let Some(counts) = tests.counts {
            writeln!(body, "{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped)
                .expect(line);
        }
        if !tests.failing.is_empty() {
            writeln!(body, "failing:").expect(line);
            for name in tests.failing.iter().take(SHOWN_NAMES) {
                writeln!(body, "  {}", without_control(name)).expect(line);
            }
            if let Some(more) = tests.failing.len().checked_sub(SHOWN_NAMES).filter(|more| *more > 0) {
                writeln!(body, "  … {more} more").expect(line);
            }
        }
        for message in tests.messages.iter().take(SHOWN_MESSAGES) {
            let (message, _) = head_and_tail(&without_control(message), MESSAGE_CHARS / 2, MESSAGE_CHARS / 2, &log);
            writeln!(body, "---\n{}", message.trim_end()).expect(line);
        }
        let shown = without_control(&String::from_utf8_lossy(&tests.output));
        let (output, cut) = head_and_tail(&shown, HEAD_CHARS, TAIL_CHARS, &log);
        if !output.trim().is_empty() {
            writeln!(body, "--- output\n{}", output.trim_end()).expect(line);
        }
        let mut outcome = ended(tests.end, started.elapsed(), &self.options.bench.limits, &body);
        outcome.result.truncated = cut;
        outcome.result.bytes_total = tests.bytes_total;
        outcome.output = Some(tests.output);
        Ok(outcome)
    }
}

/// The first line says how the command ended.
fn ended(end: CommandEnd, took: Duration, limits: &SandboxLimits, body: &str) -> Outcome {
    let seconds = format!("{:.1} s", took.as_secs_f64());
    let with_body = |first: String| if body.is_empty() { first } else { format!("{first}\n{body}") };
    match end {
        CommandEnd::Exited(code) => {
            let mut outcome = Outcome::done(with_body(format!("exit {code} · {seconds}")));
            outcome.result.ok = code == 0;
            outcome.result.exit = Some(code);
            outcome
        }
        CommandEnd::Signalled(signal) => {
            let mut outcome = Outcome::done(with_body(format!("signal {signal} · {seconds}")));
            outcome.result.ok = false;
            outcome.result.signal = Some(signal);
            outcome
        }
        CommandEnd::TimedOut => {
            let limit = limits.time.as_secs();
            let sentence = format!("ended after {limit} s; what it changed until then stays. Output so far:");
            let mut outcome = Outcome::refused("timed_out", with_body(sentence));
            outcome.result.timed_out = true;
            outcome
        }
        CommandEnd::Killed(by) => {
            let limit = match by {
                KilledBy::Memory => format!("memory limit of {}", mib(limits.memory_bytes)),
                KilledBy::Disk => format!("disk limit of {}", mib(limits.workspace_bytes)),
                KilledBy::Processes => format!("limit of {} processes", limits.processes),
                KilledBy::Output => format!("output limit of {}", mib(limits.output_killed_bytes)),
            };
            let sentence = format!("ended at the {limit}; what it changed until then stays. Output so far:");
            Outcome::refused("killed", with_body(sentence))
        }
        CommandEnd::Cancelled => Outcome::refused("cancelled", with_body("the Run was stopped.".to_owned())),
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_command_names_the_limit_it_hit() {
        let outcome =
            ended(CommandEnd::Killed(KilledBy::Memory), Duration::from_secs(3), &SandboxLimits::default(), "half\n");
        assert_eq!(
            outcome.result.text,
            "error[killed]: ended at the memory limit of 8192 MiB; what it changed until then stays. Output so far:\nhalf\n"
        );
    }
}
