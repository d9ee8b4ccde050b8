//! One started helper: hands it the specification, hears its reports, and sees to it that nothing outlives this value.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::time::Duration;

use camino::Utf8Path;
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::warn;

use crate::cgroup::Group;
use crate::spec::{Report, Spec};
use crate::sys;

/// The contract: the whole tree is dead this long after it was told to end.
pub(crate) const DEATH: Duration = Duration::from_secs(2);
/// A helper that does not take its specification within this time hangs.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A report is one short line; more than this is no report.
const REPORT_BYTES: usize = 64 * 1024;

pub(crate) struct Running {
    child: Child,
    control: UnixStream,
    /// The same socket as `control`, for the moments in which nothing may be awaited.
    lifeline: StdUnixStream,
    received: Vec<u8>,
    passed: Option<OwnedFd>,
    // Dropped after the tree is dead, in this order.
    group: Option<Group>,
    scratch: TempDir,
}

impl Running {
    /// The receiver gives standard output and error of the command, and ends when the helper has ended.
    pub(crate) async fn start(
        helper: &Utf8Path,
        spec: &Spec,
        scratch: TempDir,
        group: Option<Group>,
    ) -> io::Result<(Self, pipe::Receiver)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let (read, write) = io::pipe()?;
        ours.set_nonblocking(true)?;
        let lifeline = ours.try_clone()?;
        let mut command = Command::new(helper);
        command.env_clear().current_dir("/").process_group(0);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(write.try_clone()?).stderr(write);
        let child = command.spawn()?;
        // The parent's copies of the child's ends must go, or no end of file is ever seen.
        drop(command);

        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(read))?;
        let control = UnixStream::from_std(ours)?;
        let mut running = Self { child, control, lifeline, received: Vec::new(), passed: None, group, scratch };
        if let (Some(group), Some(pid)) = (&running.group, running.pid()) {
            group.take_in(pid)?;
        }
        let mut line = serde_json::to_vec(spec)?;
        line.push(b'\n');
        timeout(HANDSHAKE, running.control.write_all(&line)).await??;
        Ok((running, output))
    }

    /// `None` once the helper was collected.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.child.id().and_then(|id| i32::try_from(id).ok())
    }

    /// The next line of the helper; `None` when it has ended. Nothing is lost when the future is dropped.
    pub(crate) async fn report(&mut self) -> io::Result<Option<Report>> {
        loop {
            if let Some(end) = self.received.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let mut chunk = [0; 4096];
            let socket = &self.control;
            let received = socket.async_io(Interest::READABLE, || sys::receive_with(socket.as_fd(), &mut chunk)).await;
            let (count, passed) = match received {
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                other => other?,
            };
            if count == 0 {
                return Ok(None);
            }
            self.passed = passed.or(self.passed.take());
            self.received.extend_from_slice(&chunk[..count]);
            if self.received.len() > REPORT_BYTES {
                return Err(io::Error::other("the helper's report has no end"));
            }
        }
    }

    /// The descriptor that came with a report.
    pub(crate) fn take_passed(&mut self) -> Option<OwnedFd> {
        self.passed.take()
    }

    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.group.as_ref().is_some_and(Group::ran_out_of_memory)
    }

    /// Tells the helper to end everything, and returns at once.
    pub(crate) fn stop(&self) {
        // Refused only when the helper has ended already.
        let _ = self.lifeline.shutdown(std::net::Shutdown::Write);
    }

    /// Waits for the helper's end, which comes after that of its tree.
    pub(crate) async fn finish(mut self) -> io::Result<()> {
        if let Ok(ended) = timeout(DEATH, self.child.wait()).await {
            return ended.map(drop);
        }
        self.force();
        match timeout(DEATH, self.child.wait()).await {
            Ok(ended) => ended.map(drop),
            Err(_) => Err(io::Error::other("the helper outlived its kill")),
        }
    }

    /// For a helper that does not react: its end takes the init of the sandbox along.
    fn force(&mut self) {
        warn!("a sandbox helper did not end in time and is killed");
        if let Some(group) = &self.group {
            group.kill();
        }
        if let Err(e) = self.child.start_kill() {
            warn!(error = &e as &dyn std::error::Error, "could not kill a sandbox helper");
        }
    }
}

impl Drop for Running {
    /// Blocks for the few milliseconds that the kernel needs to end the tree, so that nothing survives a dropped future.
    fn drop(&mut self) {
        if self.pid().is_some() {
            self.stop();
            if !sys::wait_hangup(self.lifeline.as_fd(), DEATH).unwrap_or(false) {
                self.force();
            }
        }
        make_removable(self.scratch.path());
    }
}

/// A command may leave folders that even their owner cannot empty.
fn make_removable(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(facts) = folder.symlink_metadata() else { continue };
        if !facts.is_dir() {
            continue;
        }
        if facts.permissions().mode() & 0o700 != 0o700 {
            // The removal that follows reports what could not be helped here.
            let _ = fs_err::set_permissions(&folder, std::fs::Permissions::from_mode(0o700));
        }
        folders.extend(fs_err::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
}
