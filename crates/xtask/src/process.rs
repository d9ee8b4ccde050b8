//! Runs one command to its end, with a limit on its time; whatever it started ends with it.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// From the request to end until the kill.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// Runs `command` with our own output.
///
/// Errors: it cannot be started, fails, takes longer than `limit`, or is interrupted.
pub(crate) fn run(command: Command, limit: Duration) -> anyhow::Result<()> {
    let told = describe(&command);
    let status = supervise(command, Stdio::inherit, limit, &mut |_, _| {})?;
    ensure!(status.success(), "`{told}` failed ({status})");
    Ok(())
}

/// Runs `command` and hands over its lines as they come; how it ended is the caller's to judge.
pub(crate) fn run_lines(
    command: Command,
    limit: Duration,
    each: &mut dyn FnMut(Stream, &str),
) -> anyhow::Result<ExitStatus> {
    supervise(command, Stdio::piped, limit, each)
}

/// Runs `command` and gives what it wrote to its standard output; the rest goes to our standard error.
pub(crate) fn output(command: Command, limit: Duration) -> anyhow::Result<String> {
    let told = describe(&command);
    let mut text = String::new();
    let status = run_lines(command, limit, &mut |stream, line| match stream {
        Stream::Out => {
            text.push_str(line);
            text.push('\n');
        }
        Stream::Err => eprintln!("{line}"),
    })?;
    ensure!(status.success(), "`{told}` failed ({status})");
    Ok(text)
}

/// Becomes `command`: its terminal, its signals and its exit code are ours.
pub(crate) fn become_command(mut command: Command) -> anyhow::Result<ExitCode> {
    let told = describe(&command);
    Err(command.exec()).with_context(|| format!("while starting `{told}`"))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn supervise(
    mut command: Command,
    output: fn() -> Stdio,
    limit: Duration,
    each: &mut dyn FnMut(Stream, &str),
) -> anyhow::Result<ExitStatus> {
    let told = describe(&command);
    // A group of its own, so that the end reaches what cargo has started too.
    command.stdin(Stdio::null()).stdout(output()).stderr(output()).process_group(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the start: whoever ends us must find somebody who ends the command.
        let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        let mut child =
            tokio::process::Command::from(command).spawn().with_context(|| format!("while starting `{told}`"))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("a started process has an id")?;
        let why = tokio::select! {
            ended = follow(&mut child, each) => return ended.with_context(|| format!("while running `{told}`")),
            () = tokio::time::sleep(limit) => format!("took longer than {} s", limit.as_secs()),
            _ = tokio::signal::ctrl_c() => "was interrupted".to_owned(),
            _ = terminate.recv() => "was stopped, since this process was told to end".to_owned(),
            _ = hangup.recv() => "was stopped, since the terminal has gone".to_owned(),
        };
        end(&mut child, group).await;
        bail!("`{told}` {why}");
    })
}

async fn follow(child: &mut Child, each: &mut dyn FnMut(Stream, &str)) -> std::io::Result<ExitStatus> {
    let mut out = child.stdout.take().map(lines);
    let mut err = child.stderr.take().map(lines);
    while out.is_some() || err.is_some() {
        let (stream, line) = tokio::select! {
            line = next(&mut out), if out.is_some() => (Stream::Out, line?),
            line = next(&mut err), if err.is_some() => (Stream::Err, line?),
        };
        match (line, stream) {
            (Some(line), _) => each(stream, String::from_utf8_lossy(&line).trim_end_matches('\r')),
            (None, Stream::Out) => out = None,
            (None, Stream::Err) => err = None,
        }
    }
    child.wait().await
}

type Segments<R> = tokio::io::Split<BufReader<R>>;

fn lines<R: AsyncRead + Unpin>(pipe: R) -> Segments<R> {
    BufReader::new(pipe).split(b'\n')
}

async fn next<R: AsyncRead + Unpin>(lines: &mut Option<Segments<R>>) -> std::io::Result<Option<Vec<u8>>> {
    match lines {
        Some(lines) => lines.next_segment().await,
        None => Ok(None),
    }
}

/// A group that is gone already cannot be signalled, and need not be.
async fn end(child: &mut Child, group: Pid) {
    let _gone = kill_process_group(group, Signal::TERM);
    let _late = tokio::time::timeout(GRACE, child.wait()).await;
    let _gone = kill_process_group(group, Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_both_streams_and_the_exit_code_come_back() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status =
            run_lines(shell("echo one; echo two >&2; printf three; exit 3"), GRACE, &mut |stream, line| match stream {
                Stream::Out => out.push(line.to_owned()),
                Stream::Err => err.push(line.to_owned()),
            })
            .unwrap();
        assert_eq!((out, err, status.code()), (vec!["one".into(), "three".into()], vec!["two".into()], Some(3)));
    }

    // The grandchild holds the pipe: if it outlived its time, its end would never be read.
    #[test]
    fn a_command_over_its_limit_ends_with_all_that_it_started() {
        let mut grandchild = None;
        let error = run_lines(shell("sleep 600 & echo $!; wait"), Duration::from_millis(500), &mut |_, line| {
            grandchild = line.parse::<i32>().ok();
        })
        .unwrap_err();
        assert!(error.to_string().contains("took longer than"), "{error}");
        let gone = || {
            let stat = fs_err::read_to_string(format!("/proc/{}/stat", grandchild.unwrap()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let deadline = tokio::time::Instant::now() + GRACE;
        while !gone() {
            assert!(tokio::time::Instant::now() < deadline, "the grandchild still runs");
            std::thread::yield_now();
        }
    }
}
