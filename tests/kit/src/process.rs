//! One program under test: its log as it comes, its end, and no way to outlive its owner.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

/// A program lets go of its Runs within 20 s; longer means that it hangs.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Lines of a log that a failure shows.
const TAIL: usize = 80;

/// A started program. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    log: Mutex<Vec<String>>,
    ended: Mutex<bool>,
    told_end: Condvar,
    /// Bumped with each line and at the end.
    changed: watch::Sender<()>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Vec<String>> {
        self.log.lock().expect("no holder of a log panics")
    }
}

impl Process {
    /// Starts `command` with its output collected and nothing to read.
    pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        Self::start_reading(name, command, Stdio::null())
    }

    /// Starts `command` with its output collected and `input` as its standard input.
    pub fn start_reading(name: &str, command: &mut Command, input: Stdio) -> anyhow::Result<Self> {
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("while starting {name}"))?;
        let shared = Arc::new(Shared {
            log: Mutex::default(),
            ended: Mutex::default(),
            told_end: Condvar::new(),
            changed: watch::Sender::new(()),
        });
        let outputs: [Option<Box<dyn Read + Send>>; 2] =
            [child.stdout.take().map(|pipe| Box::new(pipe) as _), child.stderr.take().map(|pipe| Box::new(pipe) as _)];
        let mut threads: Vec<JoinHandle<()>> =
            outputs.into_iter().flatten().map(|pipe| collect(pipe, Arc::clone(&shared))).collect();
        threads.push(notice_end(Pid::from_child(&child), Arc::clone(&shared)));
        Ok(Self { name: name.to_owned(), child, shared, threads })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Every line so far.
    pub fn log(&self) -> Vec<String> {
        self.shared.log().clone()
    }

    /// The last lines, for a failure's text.
    pub fn tail(&self) -> String {
        let log = self.shared.log();
        log[log.len().saturating_sub(TAIL)..].join("\n")
    }

    /// The first thing that `find` sees in a line, of those that came and those that come. Fails with the log after
    /// `limit`, and when the program ends before.
    pub async fn logged<T>(&self, what: &str, limit: Duration, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let mut changed = self.shared.changed.subscribe();
        let mut read = 0;
        let reading = async {
            loop {
                let ended = *self.shared.ended.lock().expect("no holder panics");
                {
                    let log = self.shared.log();
                    if let Some(found) = log[read..].iter().find_map(|line| find(line)) {
                        return Ok(found);
                    }
                    read = log.len();
                }
                if ended {
                    bail!("{} ended before {what}", self.name);
                }
                changed.changed().await.context("the log's threads are gone")?;
            }
        };
        let found = tokio::time::timeout(limit, reading).await;
        let found = found.unwrap_or_else(|_| bail!("{} did not say within {limit:?} that {what}", self.name));
        found.with_context(|| format!("the log of {}:\n{}", self.name, self.tail()))
    }

    pub fn has_ended(&self) -> bool {
        *self.shared.ended.lock().expect("no holder panics")
    }

    /// Waits for its end. Fails with the log after `limit`.
    pub async fn ended(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let mut changed = self.shared.changed.subscribe();
        let ending = async {
            while !*self.shared.ended.lock().expect("no holder panics") {
                changed.changed().await.context("the log's threads are gone")?;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(limit, ending).await {
            Ok(ended) => ended?,
            Err(_) => bail!("{} still runs after {limit:?}; its log:\n{}", self.name, self.tail()),
        }
        let status = self.child.wait().context("while waiting for a child")?;
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        Ok(status)
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to read its configuration again.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Stops it in its tracks, as a suspended machine does.
    pub fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks the program to stop and waits for its end; blocks.
    ///
    /// Errors when it had to be killed.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        let in_time = self.wait(STOP_LIMIT);
        if !in_time {
            self.signal(Signal::KILL);
        }
        let status = self.child.wait().context("while waiting for a child")?;
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        if !in_time {
            bail!("{} did not stop within {STOP_LIMIT:?}:\n{}", self.name, self.tail());
        }
        Ok(status)
    }

    /// Ends it as a power cut would; blocks until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ended = self.child.wait();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }

    /// Not reaped before its owner says so, the process keeps its id: no other one is hit.
    fn signal(&self, signal: Signal) {
        if !self.threads.is_empty() {
            let _gone_already = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    fn wait(&self, limit: Duration) -> bool {
        let ended = self.shared.ended.lock().expect("no holder panics");
        let (ended, _) =
            self.shared.told_end.wait_timeout_while(ended, limit, |ended| !*ended).expect("no holder panics");
        *ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.kill();
        }
    }
}

fn collect(pipe: Box<dyn Read + Send>, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            shared.log().push(String::from_utf8_lossy(&line).trim_end().to_owned());
            shared.changed.send_replace(());
            line.clear();
        }
    })
}

fn notice_end(pid: Pid, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let left_for_its_owner = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), left_for_its_owner).is_err_and(|e| e == rustix::io::Errno::INTR) {}
        *shared.ended.lock().expect("no holder panics") = true;
        shared.told_end.notify_all();
        shared.changed.send_replace(());
    })
}
