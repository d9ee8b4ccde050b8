//! A booted root: systemd is PID 1, its network is loopback alone.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::time::Instant;

/// Until systemd says that it is up; some seconds are usual.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const OFF_LIMIT: Duration = Duration::from_secs(90);
/// One command inside, unless it says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at something outside this process.
const LOOK: Duration = Duration::from_millis(50);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the sandbox asks of the kernel and systemd-nspawn would refuse.
const CALLS: &str = "landlock_create_ruleset landlock_add_rule landlock_restrict_self";

/// What a command said, both streams together.
#[derive(Debug, Clone)]
pub struct Said {
    pub code: Option<i32>,
    pub text: String,
    pub took: Duration,
}

impl Said {
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Errors with what it said when it failed.
    pub fn whole(self) -> anyhow::Result<Self> {
        ensure!(self.ok(), "exit status {:?}: {}", self.code, self.text);
        Ok(self)
    }
}

/// Runs to the end, or kills the whole group at the limit.
pub(super) fn run(mut command: Command, limit: Duration) -> anyhow::Result<Said> {
    let name = format!("{command:?}");
    let begun = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("while starting {name}"))?;
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] =
        [child.stdout.take().map(|s| Box::new(s) as _), child.stderr.take().map(|s| Box::new(s) as _)];
    let readers = streams.map(|stream| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let status = wait(&mut child, limit).with_context(|| format!("{name} ran for more than {} s", limit.as_secs()))?;
    let text: Vec<String> = readers.into_iter().map(|reader| reader.join().unwrap_or_default()).collect();
    Ok(Said { code: status.code(), text: text.concat().trim().to_owned(), took: begun.elapsed() })
}

fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<std::process::ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > limit {
            let group = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            child.wait()?;
            bail!("it was killed");
        }
        std::thread::sleep(LOOK);
    }
}

pub struct Machine {
    root: Utf8PathBuf,
    /// `script`, which gives systemd-nspawn the terminal that it insists on.
    terminal: Child,
    /// systemd inside, as this host numbers it.
    leader: u32,
}

impl Machine {
    /// Boots the root and waits until systemd is up.
    pub fn boot(root: &Utf8Path) -> anyhow::Result<Self> {
        let nspawn = format!(
            "systemd-nspawn --directory={root} --register=no --keep-unit --boot --private-network --quiet \
             --link-journal=no --resolv-conf=off --timezone=off --system-call-filter='{CALLS}'"
        );
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &nspawn, "/dev/null"]);
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").stdin(Stdio::null()).process_group(0);
        command.stdout(fs_err::File::create(root.with_extension("console.log"))?.into_file());
        let mut terminal = command.stderr(Stdio::null()).spawn().context("while starting script")?;
        let begun = Instant::now();
        let leader = loop {
            if let Some(leader) = leader_of(root) {
                break leader;
            }
            let console = || fs_err::read_to_string(root.with_extension("console.log")).unwrap_or_default();
            if let Some(status) = terminal.try_wait()? {
                bail!("the machine did not boot ({status}): {}", console());
            }
            ensure!(begun.elapsed() < BOOT_LIMIT, "the machine did not boot: {}", console());
            std::thread::sleep(LOOK);
        };
        let machine = Self { root: root.to_owned(), terminal, leader };
        loop {
            let said = machine.run("systemctl is-system-running")?;
            if matches!(said.text.as_str(), "running" | "degraded") {
                return Ok(machine);
            }
            ensure!(begun.elapsed() < BOOT_LIMIT, "systemd inside is not up: {}", said.text);
            std::thread::sleep(LOOK);
        }
    }

    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// A line for the shell, inside.
    pub fn run(&self, line: &str) -> anyhow::Result<Said> {
        self.run_for(line, COMMAND_LIMIT)
    }

    pub fn run_for(&self, line: &str, limit: Duration) -> anyhow::Result<Said> {
        let leader = self.leader.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]);
        command
            .args(["/bin/sh", "-c", line])
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root");
        run(command, limit)
    }

    /// A program of this host that has the machine's network, and nothing else of it.
    pub fn beside(&self, program: &Utf8Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.leader.to_string(), "--net", "--", program.as_str()]).args(arguments);
        command
    }

    /// Shuts down in order; the root stays.
    pub fn off(mut self) -> anyhow::Result<()> {
        // The answer may be cut off by the end that it brings about.
        let _ = self.run("systemctl poweroff");
        wait(&mut self.terminal, OFF_LIMIT).context("the machine did not shut down")?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.terminal.try_wait() {
            // systemd inside is killed with what it holds: a power cut.
            if let Some(leader) = rustix::process::Pid::from_raw(self.leader.cast_signed()) {
                let _ = rustix::process::kill_process(leader, rustix::process::Signal::KILL);
            }
            let _ = wait(&mut self.terminal, OFF_LIMIT);
        }
    }
}

/// systemd inside: the child of the systemd-nspawn that has this root.
fn leader_of(root: &Utf8Path) -> Option<u32> {
    let wanted = format!("--directory={root}");
    let processes = fs_err::read_dir("/proc").ok()?.filter_map(Result::ok);
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let nspawn = numbers.into_iter().find(|process| {
        let line = fs_err::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let mut words = line.split('\0');
        words.next().is_some_and(|first| first.ends_with("systemd-nspawn")) && words.any(|word| word == wanted)
    })?;
    let children = fs_err::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let leader = children.split_whitespace().next()?.parse().ok()?;
    // Before it is systemd it is a copy of systemd-nspawn that still sets itself up.
    let name = fs_err::read_to_string(format!("/proc/{leader}/comm")).ok()?;
    (name.trim() == "systemd").then_some(leader)
}
