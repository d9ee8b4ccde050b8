//! The life of an installation, told on one machine: each step does what an operator would do, or what happens to one, and
//! looks at what came of it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use tokio::time::Instant;

use super::machine::{Machine, Said};
use super::release::{Kind, lay};
use super::root::Root;
use super::trace::Trace;
use crate::world::program;

const PUBLIC: &str = "127.0.0.1:8080";
const INTERNAL: &str = "127.0.0.1:8081";
const WORKER: &str = "127.0.0.1:9201";
const GATEWAY: &str = "127.0.0.1:8484";
const INFERENCE: &str = "127.0.0.1:8485";
const INFERENCE_UNIT: &str = "fettle-inference.service";
/// A model of the machine, by an engine of the tests' making.
const LOCAL_MODEL: &str = "small";
const ENGINE: &str = "srv/engine";
/// The way to the installer, inside.
const INSTALLER: &str = "/srv/good/bin/fettle-installer";
const INSTALLED: &str = "/opt/fettle/current/bin/fettle-installer";
const APPLY_LIMIT: Duration = Duration::from_secs(180);
/// A service that was killed is ready again: two seconds of systemd's patience and its own start.
const BACK_LIMIT: Duration = Duration::from_secs(30);
/// A service that stands still: patience of the probe, the watchdog's 30 s, and the time to end it.
const WATCHDOG_LIMIT: Duration = Duration::from_secs(120);
/// The scripted model takes any.
const MODEL_KEY: &str = "key-of-the-model-server";
/// systemd sweeps up its memory of units between other work.
const FORGET_LIMIT: Duration = Duration::from_secs(20);
/// What an upgrade that is switched back may take, as the design asks.
const SWITCHED_BACK_LIMIT: Duration = Duration::from_secs(90);
/// The archive of the story and what opens it.
const KEPT: &str = "/srv/kept.tar.zst --passphrase-file /srv/passphrase";
/// Each boundary is tried on a host in memory; on a machine some are enough. No number that divides the three boundaries of an
/// action, so that each kind of them is met.
const RESTORE_STRIDE: usize = 7;
const APPLY_STRIDE: usize = 2;
const REQUESTS_PER_SECOND: u32 = 200;
const LOOK: Duration = Duration::from_millis(200);

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Installed, at work, and gone without a trace.
    Quick,
    Full,
}

/// What was told.
#[derive(Debug, Default)]
pub struct Tale {
    pub steps: Vec<(String, Duration)>,
    /// What was not tried, and why.
    pub not_run: Vec<String>,
}

struct Teller {
    /// Absent while it reboots.
    machine: Option<Machine>,
    place: Utf8PathBuf,
    tale: Tale,
    own: Utf8PathBuf,
}

/// Tells it in `folder`, which is used up. `systemd` is the repository's folder of units, `own` this program.
///
/// Errors with the step that went otherwise, and the last lines of the machine's journal.
pub fn tell(root: &Root, folder: &Utf8Path, systemd: &Utf8Path, own: &Utf8Path, depth: Depth) -> anyhow::Result<Tale> {
    let place = folder.join("machine");
    root.unpack(&place)?;
    lay(Kind::Good, systemd, &place.join("srv/good"))?;
    fs_err::copy(program("fettle-fake-engine")?, place.join(ENGINE))?;
    if depth == Depth::Full {
        lay(Kind::Rebuilt, systemd, &place.join("srv/rebuilt"))?;
        lay(Kind::Broken, systemd, &place.join("srv/broken"))?;
    }
    let begun = Instant::now();
    let machine = Machine::boot(&place)?;
    let mut teller = Teller { machine: Some(machine), place, tale: Tale::default(), own: own.to_owned() };
    teller.note("boot", begun);
    match teller.whole(depth) {
        Ok(()) => {
            let Teller { machine, tale, .. } = teller;
            machine.map_or(Ok(()), Machine::off)?;
            Ok(tale)
        }
        Err(error) => {
            let journal =
                teller.machine().run("journalctl --no-pager --lines 60 --output short-precise --unit 'fettle*'");
            Err(error.context(journal.map_or_else(|error| error.to_string(), |said| said.text)))
        }
    }
}

impl Teller {
    fn whole(&mut self, depth: Depth) -> anyhow::Result<()> {
        let before = Trace::of(self.machine())?;
        let mut stage = Stage::set(self.machine(), &self.own)?;
        self.step("apply", |teller| teller.apply(&stage))?;
        self.step("answers on the addresses it should", Self::health)?;
        self.step("a second apply writes nothing", Self::again)?;
        self.step("a Task through the hardened services", |teller| stage.task(teller.machine()))?;
        self.step("the smoke list, as root and as anybody", Self::smoke)?;
        self.step("an engine is a unit that outlives who started it", Self::engine)?;
        self.step("a support bundle holds no secret", |teller| teller.support_bundle(&stage))?;
        self.step("a nightly backup, behind its own walls", Self::nightly_backup)?;
        self.step("a backup comes back over what is there", Self::restore_over)?;
        if depth == Depth::Full {
            self.step("a restoration killed on its way goes on", Self::restore_killed)?;
            self.full(&mut stage)?;
        }
        self.step("uninstall keeps what is the operator's", Self::uninstall)?;
        self.step("purge leaves no trace", |teller| teller.purge(&before))?;
        if depth == Depth::Full {
            self.step("a backup comes back on an empty host", |teller| teller.restore_elsewhere(&before))?;
        }
        if depth == Depth::Full {
            self.step("what was there before is taken over, and comes back", |teller| teller.take_over(&before))?;
            self.step("killed between two facts, resumed or taken back", |teller| teller.killed(&before))?;
        }
        Ok(())
    }

    fn full(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        self.step("each service comes back after kill -9", Self::kill_services)?;
        self.step("a frozen dashboard is ended by the watchdog", |teller| teller.frozen("fettle-dashboard.service"))?;
        self.step("a frozen gateway is ended by the watchdog", |teller| teller.frozen(INFERENCE_UNIT))?;
        self.step("a blocked ledger is noticed by the watchdog", Self::blocked_ledger)?;
        self.step("an upgrade refuses no connection", Self::upgrade)?;
        self.step("a broken upgrade is switched back", Self::broken_upgrade)?;
        self.step("the Tasks are still there, and a new one is done", |teller| stage.task(teller.machine()))?;
        self.step("rollback by hand", Self::rollback)?;
        self.step("reboot", Self::reboot)
    }

    fn machine(&self) -> &Machine {
        self.machine.as_ref().expect("the machine is up but while it reboots")
    }

    fn step(&mut self, name: &str, work: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let begun = Instant::now();
        work(self).with_context(|| format!("at the step \"{name}\""))?;
        self.note(name, begun);
        Ok(())
    }

    fn note(&mut self, name: &str, begun: Instant) {
        let took = begun.elapsed();
        let _ = writeln!(std::io::stdout(), "{:>8.1} s  {name}", took.as_secs_f64());
        self.tale.steps.push((name.to_owned(), took));
    }

    fn installer(&self, program: &str, arguments: &str) -> anyhow::Result<Said> {
        self.machine().run_for(&format!("{program} {arguments}"), APPLY_LIMIT)
    }

    fn apply(&self, stage: &Stage) -> anyhow::Result<()> {
        stage.write_answers(self.machine().root())?;
        let said = self.installer(INSTALLER, "plan --answers /srv/answers.toml --explain")?.whole()?;
        ensure!(said.text.contains("why:"), "{}", said.text);
        ensure!(!said.text.contains(&stage.secret("write_token")), "the plan shows a secret");
        self.installer(INSTALLER, "apply --yes --ignore PF010 --answers /srv/answers.toml")?.whole()?;
        Ok(())
    }

    fn health(&mut self) -> anyhow::Result<()> {
        for (address, path, wanted) in [
            (INTERNAL, "/healthz", 200),
            (INTERNAL, "/readyz", 200),
            (INTERNAL, "/metrics", 200),
            (WORKER, "/healthz", 200),
            (WORKER, "/readyz", 200),
            (INFERENCE, "/healthz", 200),
            (INFERENCE, "/readyz", 200),
            (INFERENCE, "/metrics", 200),
            (GATEWAY, "/v1/models", 200),
            (PUBLIC, "/healthz", 404),
            (PUBLIC, "/api/v1/tasks", 401),
        ] {
            let status = self.get(address, path)?;
            ensure!(status == wanted, "{address}{path} is answered with {status}, not {wanted}");
        }
        // The wall that matters most stands: a Run would be refused below it, since the answers ask for `full`.
        let said =
            self.machine().run("journalctl --no-pager --unit fettle-worker@01 | grep -c 'sandbox level full'")?;
        ensure!(said.ok(), "the worker does not say that its sandbox is at level full");
        let modes = self
            .machine()
            .run("stat -c '%a %U:%G' /etc/fettle/fettle.toml /etc/fettle/secrets /etc/fettle/secrets/*")?
            .whole()?;
        let mut lines = modes.text.lines();
        ensure!(lines.next() == Some("640 root:fettle") && lines.next() == Some("700 root:root"), "{}", modes.text);
        ensure!(lines.all(|line| line == "600 root:root"), "{}", modes.text);
        Ok(())
    }

    fn get(&self, address: &str, path: &str) -> anyhow::Result<u16> {
        // Python is there and curl is not.
        let line = format!(
            "python3 -c \"
import urllib.request, urllib.error
try: print(urllib.request.urlopen('http://{address}{path}', timeout=10).status)
except urllib.error.HTTPError as e: print(e.code)
except Exception as e: print(0)\""
        );
        let said = self.machine().run(&line)?.whole()?;
        said.text.parse().with_context(|| format!("strange status `{}`", said.text))
    }

    fn ready(&self, limit: Duration) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            let mut ready = true;
            for address in [INTERNAL, INFERENCE, WORKER] {
                ready &= self.get(address, "/readyz")? == 200;
            }
            if ready {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < limit, "not ready after {} s", limit.as_secs());
            std::thread::sleep(LOOK);
        }
    }

    fn again(&mut self) -> anyhow::Result<()> {
        let list = "find /etc /opt /usr/lib/systemd /var/lib/fettle-installer -type f -printf '%p %s %C@\\n' | sort";
        let before = self.machine().run(list)?.whole()?;
        let said = self.installer(INSTALLED, "apply --yes --ignore PF010")?.whole()?;
        ensure!(said.text.contains("nothing to do"), "{}", said.text);
        ensure!(said.took < Duration::from_secs(10), "it took {:?}", said.took);
        let after = self.machine().run(list)?.whole()?;
        ensure!(before.text == after.text, "a second apply wrote something");
        self.installer(INSTALLED, "verify")?.whole()?;
        Ok(())
    }

    fn smoke(&mut self) -> anyhow::Result<()> {
        let said = self.installer(INSTALLED, "smoke")?.whole()?;
        ensure!(said.text.contains("7 passed, 0 failed, 2 skipped"), "{}", said.text);
        let nobody = format!("setpriv --reuid=65534 --regid=65534 --clear-groups {INSTALLED}");
        let said = self.installer(&nobody, &format!("smoke --url http://{PUBLIC}"))?.whole()?;
        ensure!(said.text.contains(" 0 failed") && said.text.contains("SM01 passed"), "{}", said.text);
        let said = self.installer(INSTALLED, "production-checks")?;
        ensure!(said.code == Some(10) && said.text.contains("PC"), "{:?}: {}", said.code, said.text);
        Ok(())
    }

    /// One answer of the machine's own model; a request that comes while the gateway starts anew waits.
    fn ask(&self) -> anyhow::Result<()> {
        let line = format!(
            "python3 -c \"
import json, urllib.request
body = json.dumps({{'model': '{LOCAL_MODEL}', 'messages': [{{'role': 'user', 'content': 'hi'}}]}}).encode()
request = urllib.request.Request('http://{GATEWAY}/v1/chat/completions', body, {{'content-type': 'application/json'}})
print(json.load(urllib.request.urlopen(request, timeout=60))['choices'][0]['message']['role'])\""
        );
        let said = self.machine().run(&line)?.whole()?;
        ensure!(said.text == "assistant", "{}", said.text);
        Ok(())
    }

    /// The one engine's unit and process.
    fn one_engine(&self) -> anyhow::Result<(String, u32)> {
        let list = "systemctl list-units 'fettle-engine@*' --state=active --plain --no-legend --full";
        let said = self.machine().run(list)?.whole()?;
        let units: Vec<&str> = said.text.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let [unit] = units.as_slice() else { bail!("there is to be one engine: {}", said.text) };
        let pid = self.pid(unit)?;
        ensure!(pid != 0, "{unit} has no process");
        Ok(((*unit).to_owned(), pid))
    }

    fn engine(&mut self) -> anyhow::Result<()> {
        self.ask()?;
        let (unit, pid) = self.one_engine()?;
        let said = self.machine().run(&format!("ps -o user:32= -p {pid}; cat /proc/{pid}/cgroup"))?.whole()?;
        let slice = "0::/fettle.slice/fettle-engine.slice/";
        ensure!(said.text.starts_with("fettle-inference") && said.text.contains(slice), "{}", said.text);
        // Keys of providers are the gateway's, and both have one user.
        let key = "/run/credentials/fettle-inference.service/model-key";
        let said = self.machine().run(&format!("cat {key} && ! nsenter --mount --target {pid} cat {key}"))?;
        ensure!(said.ok() && said.text.starts_with(MODEL_KEY), "{}", said.text);
        self.polkit(&unit)?;
        let said = self.machine().run("fettle --data-dir /var/lib/fettle/inference models")?.whole()?;
        ensure!(said.text.lines().any(|line| line.starts_with(LOCAL_MODEL) && line.contains("ready")), "{}", said.text);

        self.machine().run(&format!("systemctl restart {INFERENCE_UNIT}"))?.whole()?;
        self.same_engine(pid).context("after a restart of the service")?;
        self.machine().run(&format!("systemctl stop {INFERENCE_UNIT} fettle-inference.socket"))?.whole()?;
        self.machine().run(&format!("systemctl start fettle-inference.socket {INFERENCE_UNIT}"))?.whole()?;
        self.same_engine(pid).context("after a stop and a start of the service")?;
        let service = self.pid(INFERENCE_UNIT)?;
        self.machine().run(&format!("kill -9 {service}"))?.whole()?;
        self.changed(INFERENCE_UNIT, service, BACK_LIMIT)?;
        self.same_engine(pid).context("after kill -9 of the service")?;

        self.machine().run(&format!("kill -9 {pid}"))?.whole()?;
        self.ask().context("after kill -9 of what keeps the engine")?;
        ensure!(self.one_engine()?.1 != pid, "an engine without its keeper goes on");
        Ok(())
    }

    /// The gateway's user ends an engine, and nothing else.
    fn polkit(&self, engine: &str) -> anyhow::Result<()> {
        let nobody_else =
            "setpriv --reuid=fettle-inference --regid=fettle-inference --clear-groups systemctl --no-ask-password";
        for refused in [
            "stop fettle-worker@01.service".to_owned(),
            "kill fettle-dashboard.service".to_owned(),
            "start fettle-engine@UPPER.service".to_owned(),
            format!("set-property --runtime {engine} MemoryMax=1G"),
            "daemon-reload".to_owned(),
        ] {
            let said = self.machine().run(&format!("{nobody_else} {refused}"))?;
            ensure!(!said.ok() && said.text.contains("authentication required"), "{refused}: {}", said.text);
        }
        for allowed in ["start", "kill", "restart", "stop", "reset-failed"] {
            // It has no order and ends at once; asked for by its own folder, it is nobody's.
            let said = self.machine().run(&format!("{nobody_else} {allowed} fettle-engine@none.service"))?;
            ensure!(!said.text.contains("authentication required"), "{allowed}: {}", said.text);
        }
        Ok(())
    }

    fn same_engine(&self, pid: u32) -> anyhow::Result<()> {
        self.ready(BACK_LIMIT)?;
        self.ask()?;
        let now = self.one_engine()?.1;
        ensure!(now == pid, "the engine has the process {now} and not {pid}");
        Ok(())
    }

    fn support_bundle(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let said = self.installer(INSTALLED, "support-bundle --yes --output /srv/bundle.tar.zst")?.whole()?;
        let packed = fs_err::read(self.machine().root().join("srv/bundle.tar.zst"))?;
        let bytes = zstd::decode_all(packed.as_slice())?;
        let text = String::from_utf8_lossy(&bytes);
        ensure!(text.contains("fettle-dashboard.service"), "{}", said.text);
        let admin = fs_err::read_to_string(self.machine().root().join("var/lib/fettle/dashboard/admin.key"))?;
        let worker = fs_err::read_to_string(self.machine().root().join("etc/fettle/secrets/worker.key"))?;
        let known = ["read_token", "write_token", "webhook_secret"].map(|name| stage.secret(name));
        for secret in known.iter().chain([&admin, &worker, &MODEL_KEY.to_owned()]) {
            ensure!(!text.contains(secret.trim()), "a secret is in the bundle");
        }
        self.machine().run("rm /srv/bundle.tar.zst")?.whole().map(drop)
    }

    /// The founding layout: one service of a user of its own, its secrets in one file.
    fn take_over(&mut self, before: &Trace) -> anyhow::Result<()> {
        let unit = "[Service]\nEnvironmentFile=/etc/ai-agent/env\nExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 8000\n\
                    [Install]\nWantedBy=multi-user.target\n";
        let lay = format!(
            "mkdir -p /opt/ai-agent /etc/ai-agent && chmod 750 /etc/ai-agent && umask 077 && \
             printf 'OPENAI_API_KEY=\"key-of-before\"\nAPI_KEY=x\nREDIS_URL=redis://127.0.0.1:6379/0\nWEBHOOK_SECRET=webhook-of-before\n' > /etc/ai-agent/env && \
             printf '{unit}' > /etc/systemd/system/aiagent.service && systemctl daemon-reload && systemctl enable --now --quiet aiagent.service"
        );
        self.machine().run(&lay)?.whole()?;
        let there = Trace::of(self.machine())?;
        let said = self.installer(INSTALLER, "import --from aiagent --output /srv/taken.toml")?.whole()?;
        ensure!(said.text.contains("--model"), "{}", said.text);
        self.installer(INSTALLER, "import --from aiagent --model gpt-x --dry-run")?.whole()?;
        ensure!(there.differences(&Trace::of(self.machine())?).is_empty(), "looking changed something");
        let said = self.installer(INSTALLER, "import --from aiagent --model gpt-x --yes --ignore PF010")?.whole()?;
        ensure!(!said.text.contains("of-before"), "it shows a secret: {}", said.text);
        self.ready(BACK_LIMIT)?;
        let said = self.machine().run(
            "cat /etc/fettle/secrets/openai-api-key /etc/fettle/secrets/webhook-secret; grep -h gpt-x /etc/fettle/fettle.toml; \
             systemctl is-active aiagent.service; systemctl is-enabled aiagent.service",
        )?;
        let expected = "key-of-beforewebhook-of-beforename = \"gpt-x\"\ninactive\ndisabled";
        ensure!(said.text == expected, "{}", said.text);
        self.installer(INSTALLED, "smoke --only SM04")?.whole()?;
        let said = self.installer(INSTALLED, "import --from aiagent --model gpt-x --yes --ignore PF010")?.whole()?;
        ensure!(said.text.contains("nothing to do"), "{}", said.text);
        self.installer(INSTALLER, "uninstall --purge --yes")?.whole()?;
        self.as_it_was(&there)?;
        self.machine()
            .run("systemctl is-active --quiet aiagent.service && systemctl is-enabled --quiet aiagent.service")?
            .whole()?;
        self.machine()
            .run("systemctl disable --now --quiet aiagent.service; rm -r /opt/ai-agent /etc/ai-agent /etc/systemd/system/aiagent.service; systemctl daemon-reload")?
            .whole()?;
        self.as_it_was(before)
    }

    /// A unit of its own with little of what root may do; the ledger's files stay the dashboard's.
    fn nightly_backup(&mut self) -> anyhow::Result<()> {
        let owners = "stat -c '%n %a %U:%G' /var/lib/fettle/dashboard/ledger/* /var/lib/fettle/backups";
        let before = self.machine().run(owners)?.whole()?;
        self.machine().run("systemctl start fettle-backup.service")?.whole()?;
        let after = self.machine().run(owners)?.whole()?;
        ensure!(before.text == after.text, "{} became {}", before.text, after.text);
        let listed = self.installer(INSTALLED, "backup list")?.whole()?;
        ensure!(listed.text.contains("verified 2") && !listed.text.contains("NOT"), "{}", listed.text);
        let said = self.machine().run("journalctl --no-pager --unit fettle-backup | grep 'NOT in the backup'")?;
        ensure!(said.ok(), "nobody is told that the secrets are left out");
        let modes = self.machine().run("stat -c '%a %U:%G' /var/lib/fettle/backups/fettle-backup-*")?.whole()?;
        ensure!(modes.text.lines().all(|line| line == "600 root:root"), "{}", modes.text);
        Ok(())
    }

    /// What the operator has and the processes use, by content, owner and mode. Probes of the smoke list are nobody's.
    fn restorable(&self) -> anyhow::Result<String> {
        let line = "cd / && for f in /etc/fettle/fettle.toml /etc/fettle/secrets/* /var/lib/fettle/dashboard/*.key; do \
                    stat -c '%n %a %U:%G' $f; sha256sum < $f; done; stat -c '%n %a %U:%G' /var/lib/fettle/dashboard/ledger \
                    /var/lib/fettle/dashboard/ledger/ledger.db; find /var/lib/fettle/dashboard/ledger/blobs -type f | sort; \
                    python3 -c \"import sqlite3; c = sqlite3.connect('file:/var/lib/fettle/dashboard/ledger/ledger.db?mode=ro', uri=True); \
                    print(sorted(r[0].hex() for r in c.execute('SELECT id FROM task WHERE mode <> ?', ['probe'])))\"";
        Ok(self.machine().run(line)?.whole()?.text)
    }

    /// Afterwards the newest backup that opens with the passphrase is what is there.
    fn restore_over(&mut self) -> anyhow::Result<()> {
        self.machine()
            .run("echo 'a passphrase of the operator' > /srv/passphrase; chmod 600 /srv/passphrase")?
            .whole()?;
        self.installer(INSTALLED, "backup create --to /srv --passphrase-file /srv/passphrase")?.whole()?;
        self.machine().run("mv /srv/fettle-backup-*.tar.zst /srv/kept.tar.zst")?.whole()?;
        let then = self.restorable()?;
        self.spoil()?;
        let refused = self.installer(INSTALLED, &format!("restore {KEPT}"))?;
        ensure!(refused.code == Some(2) && refused.text.contains("--yes"), "{:?}: {}", refused.code, refused.text);
        let refused = self.installer(INSTALLED, "restore /srv/kept.tar.zst --yes")?;
        ensure!(refused.code == Some(2) && refused.text.contains("--identity"), "{}", refused.text);
        self.installer(INSTALLED, &format!("restore {KEPT} --dry-run"))?.whole()?;
        let said = self.installer(INSTALLED, &format!("restore {KEPT} --yes"))?.whole()?;
        ensure!(said.text.contains("backed up first"), "{}", said.text);
        self.restored(&then)
    }

    /// As after a mistake: other secrets, another configuration, no Task any more.
    fn spoil(&self) -> anyhow::Result<()> {
        let line = "echo spoiled-by-a-mistake > /etc/fettle/secrets/webhook-secret && echo '# spoiled' >> /etc/fettle/fettle.toml && \
                    rm /var/lib/fettle/dashboard/admin.key && systemctl stop fettle.target fettle-dashboard.service && \
                    rm -r /var/lib/fettle/dashboard/ledger && systemctl start fettle.target";
        self.machine().run(line)?.whole()?;
        self.ready(BACK_LIMIT).map(drop)
    }

    fn restored(&self, then: &str) -> anyhow::Result<()> {
        self.ready(BACK_LIMIT)?;
        let now = self.restorable()?;
        ensure!(now == then, "{now}\nis not\n{then}");
        let left = self.machine().run("ls -d /etc/fettle/.restore /var/lib/fettle/.restore 2>/dev/null")?;
        ensure!(left.text.is_empty(), "these stayed: {}", left.text);
        self.installer(INSTALLED, "verify")?.whole()?;
        let said = self.installer(INSTALLED, "apply --yes --ignore PF010")?.whole()?;
        ensure!(said.text.contains("nothing to do"), "{}", said.text);
        Ok(())
    }

    fn restore_killed(&mut self) -> anyhow::Result<()> {
        let then = self.restorable()?;
        for boundary in (1..).step_by(RESTORE_STRIDE) {
            self.spoil()?;
            let said = self.installer(INSTALLED, &format!("restore {KEPT} --yes --no-backup --kill-at {boundary}"))?;
            if said.ok() {
                ensure!(boundary > 20, "only {boundary} boundaries");
                return self.restored(&then);
            }
            ensure!(said.text.contains("killed at boundary"), "it ended otherwise: {}", said.text);
            self.installer(INSTALLED, "resume")?.whole().with_context(|| format!("boundary {boundary}"))?;
            self.restored(&then).with_context(|| format!("boundary {boundary}"))?;
        }
        Ok(())
    }

    /// The answers of the backup name secrets by paths that are not on this host; their values are in the backup.
    fn restore_elsewhere(&mut self, before: &Trace) -> anyhow::Result<()> {
        let keep = "mkdir /srv/aside && mv /srv/answers.toml /srv/*-token /srv/webhook-secret /srv/aside";
        self.machine().run(keep)?.whole()?;
        self.installer(INSTALLER, "apply --yes --ignore PF010")?.whole()?;
        self.installer(INSTALLED, &format!("restore {KEPT} --yes --no-backup"))?.whole()?;
        self.ready(BACK_LIMIT)?;
        let said = self.machine().run(
            "cmp /srv/aside/webhook-secret /etc/fettle/secrets/webhook-secret && \
             grep -c LoadCredential=write-token /etc/systemd/system/fettle-dashboard.service.d/10-secrets.conf",
        )?;
        ensure!(said.ok(), "the secrets of the backup are not in use: {}", said.text);
        self.machine().run("mv /srv/aside/* /srv && rmdir /srv/aside")?.whole()?;
        self.purge(before)
    }

    fn kill_services(&mut self) -> anyhow::Result<()> {
        for unit in ["fettle-dashboard.service", INFERENCE_UNIT, "fettle-worker@01.service"] {
            let before = self.pid(unit)?;
            self.machine().run(&format!("kill -9 {before}"))?.whole()?;
            self.changed(unit, before, BACK_LIMIT)?;
            self.ready(BACK_LIMIT).with_context(|| format!("after kill -9 of {unit}"))?;
        }
        Ok(())
    }

    fn pid(&self, unit: &str) -> anyhow::Result<u32> {
        let said = self.machine().run(&format!("systemctl show --value --property MainPID {unit}"))?.whole()?;
        said.text.parse().with_context(|| format!("strange pid `{}`", said.text))
    }

    /// Waits until the unit has another process.
    fn changed(&self, unit: &str, before: u32, limit: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let now = self.pid(unit)?;
            if now != 0 && now != before {
                return Ok(());
            }
            ensure!(begun.elapsed() < limit, "{unit} still has the process {before} after {} s", limit.as_secs());
            std::thread::sleep(LOOK);
        }
    }

    fn frozen(&mut self, unit: &str) -> anyhow::Result<()> {
        let before = self.pid(unit)?;
        self.machine().run(&format!("kill -STOP {before}"))?.whole()?;
        self.changed(unit, before, WATCHDOG_LIMIT)?;
        self.ready(BACK_LIMIT).map(drop)
    }

    /// Somebody holds the ledger's write lock: every part runs, and nothing gets anywhere.
    fn blocked_ledger(&mut self) -> anyhow::Result<()> {
        let unit = "fettle-dashboard.service";
        let before = self.pid(unit)?;
        let lock = "import sqlite3, time
c = sqlite3.connect('/var/lib/fettle/dashboard/ledger/ledger.db', isolation_level=None)
c.execute('PRAGMA busy_timeout=5000')
c.execute('BEGIN IMMEDIATE')
time.sleep(200)";
        self.machine().run(&format!("echo \"{lock}\" > /srv/lock.py; setsid python3 /srv/lock.py >/dev/null 2>&1 & sleep 1; pgrep -f lock.py"))?.whole()?;
        let changed = self.changed(unit, before, WATCHDOG_LIMIT);
        self.machine().run("pkill -f lock.py; rm /srv/lock.py")?;
        changed?;
        self.ready(BACK_LIMIT * 2).map(drop)
    }

    fn upgrade(&mut self) -> anyhow::Result<()> {
        self.ask()?;
        let (_, engine) = self.one_engine()?;
        let hammer = Hammer::start(self.machine(), &self.own)?;
        let said =
            self.installer("/srv/rebuilt/bin/fettle-installer", "upgrade --yes --ignore PF010 --to /srv/rebuilt");
        let seen = hammer.end()?;
        said?.whole()?;
        ensure!(seen["failed"] == 0 && seen["answered"].as_u64() > Some(0), "connections were refused: {seen}");
        let _ = writeln!(std::io::stdout(), "            {seen}");
        let current = self.machine().run("readlink /opt/fettle/current")?.whole()?;
        ensure!(self.generations()? == 2, "{}", current.text);
        self.same_engine(engine).context("after the upgrade")?;
        Ok(())
    }

    fn generations(&self) -> anyhow::Result<usize> {
        let said = self.installer(INSTALLED, "status")?.whole()?;
        Ok(said.text.lines().filter(|line| line.trim_start().starts_with("generation ")).count())
    }

    fn broken_upgrade(&mut self) -> anyhow::Result<()> {
        let before = self.machine().run("readlink /opt/fettle/current; ls /opt/fettle/releases")?.whole()?;
        let said = self.installer(
            "/srv/broken/bin/fettle-installer",
            "upgrade --yes --ignore PF010 --to /srv/broken --gate-timeout 20",
        )?;
        ensure!(said.code == Some(30), "exit status {:?} and not 30: {}", said.code, said.text);
        ensure!(said.took < SWITCHED_BACK_LIMIT, "it took {:?}", said.took);
        let after = self.machine().run("readlink /opt/fettle/current; ls /opt/fettle/releases")?.whole()?;
        ensure!(before.text == after.text, "{} became {}", before.text, after.text);
        self.ready(BACK_LIMIT).map(drop)
    }

    fn rollback(&mut self) -> anyhow::Result<()> {
        let before = self.machine().run("readlink /opt/fettle/current")?.whole()?;
        self.installer(INSTALLED, "rollback --yes --ignore PF010")?.whole()?;
        let after = self.machine().run("readlink /opt/fettle/current")?.whole()?;
        ensure!(before.text != after.text, "rollback left {}", after.text);
        self.ready(BACK_LIMIT).map(drop)
    }

    fn reboot(&mut self) -> anyhow::Result<()> {
        self.machine.take().map_or(Ok(()), Machine::off)?;
        self.machine = Some(Machine::boot(&self.place)?);
        self.ready(BACK_LIMIT * 2).map(drop)
    }

    fn uninstall(&mut self) -> anyhow::Result<()> {
        self.ask()?;
        self.one_engine()?;
        // Nobody is there to end its engine.
        let service = self.pid(INFERENCE_UNIT)?;
        self.machine().run(&format!("kill -9 {service}"))?.whole()?;
        self.installer(INSTALLED, "uninstall --yes")?.whole()?;
        let left = self
            .machine()
            .run("ls -d /etc/fettle/fettle.toml /etc/fettle/secrets/worker.key /var/lib/fettle/dashboard")?;
        ensure!(left.ok(), "what is the operator's was removed: {}", left.text);
        let gone = self.machine().run("ls -d /opt/fettle /etc/systemd/system/fettle* 2>/dev/null")?;
        ensure!(gone.text.is_empty(), "these stayed: {}", gone.text);
        let orphans = self.machine().run("ps -o pid=,args= -u fettle-inference")?;
        ensure!(orphans.text.is_empty(), "orphans: {}", orphans.text);
        Ok(())
    }

    /// Nothing is left behind. systemd forgets units that are gone when it next finds the time.
    fn as_it_was(&self, before: &Trace) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let left = before.differences(&Trace::of(self.machine())?);
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > FORGET_LIMIT {
                let why = self.machine().run("systemd-analyze dump | grep -A60 -E 'Unit fettle' ; find /sys/fs/cgroup -path '*fettle*'; ps -eo pid,cgroup,args | grep fettle")?;
                bail!("left behind:\n{}\n{}", left.join("\n"), why.text);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn purge(&mut self, before: &Trace) -> anyhow::Result<()> {
        self.installer(INSTALLER, "uninstall --purge --yes")?.whole()?;
        self.as_it_was(before)
    }

    /// The real program, killed at every other boundary between two durable facts.
    fn killed(&mut self, before: &Trace) -> anyhow::Result<()> {
        self.machine().run("rm -f /srv/answers.toml")?;
        for boundary in (1..).step_by(APPLY_STRIDE) {
            let said = self.installer(INSTALLER, &format!("apply --yes --ignore PF010 --kill-at {boundary}"))?;
            if said.ok() {
                ensure!(boundary > 20, "only {boundary} boundaries");
                self.installer(INSTALLER, "uninstall --purge --yes")?.whole()?;
                break;
            }
            ensure!(said.text.contains("killed at boundary"), "it ended otherwise: {}", said.text);
            if (boundary / APPLY_STRIDE).is_multiple_of(2) {
                let said = self.installer(INSTALLER, "resume")?.whole()?;
                ensure!(said.ok(), "boundary {boundary}: {}", said.text);
                let said = self.installer(INSTALLER, "apply --yes --ignore PF010")?.whole()?;
                ensure!(said.text.contains("nothing to do"), "boundary {boundary}: {}", said.text);
            }
            self.installer(INSTALLER, "uninstall --purge --yes")?
                .whole()
                .with_context(|| format!("boundary {boundary}"))?;
            self.as_it_was(before).with_context(|| format!("boundary {boundary}"))?;
        }
        Ok(())
    }
}

/// Forge and model, in the machine's network.
struct Stage {
    child: Child,
    asks: ChildStdin,
    tells: BufReader<ChildStdout>,
    facts: Value,
}

impl Stage {
    fn set(machine: &Machine, own: &Utf8Path) -> anyhow::Result<Self> {
        let mut command = machine.beside(own, &["stage"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let asks = child.stdin.take().context("standard input was piped")?;
        let mut tells = BufReader::new(child.stdout.take().context("standard output was piped")?);
        let facts = told(&mut tells)?;
        Ok(Self { child, asks, tells, facts })
    }

    fn secret(&self, name: &str) -> String {
        self.facts[name].as_str().unwrap_or_default().to_owned()
    }

    fn write_answers(&self, root: &Utf8Path) -> anyhow::Result<()> {
        let secrets =
            [("read-token", "read_token"), ("write-token", "write_token"), ("webhook-secret", "webhook_secret")];
        fs_err::write(root.join("srv/models.env"), format!("MODEL_KEY='{MODEL_KEY}'\n"))?;
        for (file, name) in secrets {
            fs_err::write(root.join("srv").join(file), self.secret(name))?;
        }
        let text = format!(
            "workers = 1\n\n[settings.forge]\napi_url = {}\nhosts = [{}]\nread_token_file = 'secrets/read-token'\n\
             write_token_file = 'secrets/write-token'\nwebhook_secret_file = 'secrets/webhook-secret'\n\n\
             [settings.agent.sandbox]\nprepare_network = 'none'\nmin_level = 'full'\n\n\
             [[settings.gateway.models]]\nname = 'scripted'\nbase_url = {}\napi_key_file = 'secrets/model-key'\n\n\
             [[settings.gateway.models]]\nname = '{LOCAL_MODEL}'\npath = '/var/lib/fettle/models'\n\
             recipes = [{{ engine = 'command', device = 'cpu', memory = '64MiB' }}]\n\n\
             [settings.gpu]\nmode = 'off'\nhost_reserve = '1GiB'\n\n\
             [settings.gpu.engines.command]\nprogram = '/{ENGINE}'\nargs = ['--socket', '{{socket}}', '--model', '{{model}}']\n\n\
             [secrets]\nread-token = '/srv/read-token'\nwrite-token = '/srv/write-token'\nwebhook-secret = '/srv/webhook-secret'\n\
             model-key = {{ file = '/srv/models.env', variable = 'MODEL_KEY' }}\n",
            self.facts["forge"], self.facts["host"], self.facts["model"],
        );
        Ok(fs_err::write(root.join("srv/answers.toml"), text)?)
    }

    /// An issue becomes a pull request through what is installed.
    fn task(&mut self, _machine: &Machine) -> anyhow::Result<()> {
        writeln!(self.asks, "http://{PUBLIC}")?;
        self.asks.flush()?;
        let told = told(&mut self.tells)?;
        ensure!(told["pulls"] == 1 && told["draft"] == false, "{told}");
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Clients that connect all the while.
struct Hammer {
    child: Child,
    tells: BufReader<ChildStdout>,
}

impl Hammer {
    fn start(machine: &Machine, own: &Utf8Path) -> anyhow::Result<Self> {
        let rate = REQUESTS_PER_SECOND.to_string();
        let mut command = machine.beside(own, &["hammer", "--address", PUBLIC, "--per-second", &rate]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut tells = BufReader::new(child.stdout.take().context("standard output was piped")?);
        told(&mut tells)?;
        Ok(Self { child, tells })
    }

    fn end(mut self) -> anyhow::Result<Value> {
        drop(self.child.stdin.take());
        let seen = told(&mut self.tells)?;
        self.child.wait()?;
        Ok(seen)
    }
}

fn told(tells: &mut BufReader<ChildStdout>) -> anyhow::Result<Value> {
    let mut line = String::new();
    if tells.read_line(&mut line)? == 0 {
        bail!("what runs beside the machine ended without a word");
    }
    serde_json::from_str(&line).with_context(|| format!("strange line `{line}`"))
}
