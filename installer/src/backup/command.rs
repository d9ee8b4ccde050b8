//! `fettle-installer backup` and `restore`: flags, locks, and what people are told.

use std::io::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args, Subcommand};
use fettle_app::ports::clock::Clock as _;
use fettle_runtime::system::SystemClock;

use super::create::{Made, Wanted, create};
use super::error::{BackupError, BackupResult};
use super::places::Places;
use super::restore::{discard, fits, stage, steps};
use super::secrets::{Key, Lock as Locking};
use super::store::{self, Kept};
use super::verify::{Verified, verify};
use crate::action::Action;
use crate::answers::Answers;
use crate::commands::{Ended, Ends, Session, planner_facts, unexpected};
use crate::exit::Exit;
use crate::journal::{OnFailure, Purpose, Step};
use crate::layout::{CONFIG, CURRENT};
use crate::lock::{self, Lock};
use crate::plan::{Foreign, Settled, plan, settle};
use crate::receipt::Receipt;
use crate::release;

#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Make a backup, also while Fettle runs.
    Create {
        /// The folder to write it into. Default: /var/lib/fettle/backups
        #[arg(long, value_name = "FOLDER")]
        to: Option<Utf8PathBuf>,
        /// Who can open the secrets in it, as an age recipient (`age1…`); may be repeated. Default: [backup] recipients of
        /// installer.toml. Without any, the secrets are left out.
        #[arg(long, value_name = "AGE1…")]
        recipient: Vec<String>,
        /// Lock the secrets with the passphrase in this file instead.
        #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
        passphrase_file: Option<Utf8PathBuf>,
        /// As the nightly timer does: make one, verify it, and remove the oldest.
        #[arg(long)]
        scheduled: bool,
        /// With --scheduled, how many stay. Default: [backup] keep of installer.toml, else 7.
        #[arg(long, value_name = "N", requires = "scheduled", value_parser = clap::value_parser!(u16).range(1..))]
        keep: Option<u16>,
    },
    /// Show which backups there are.
    List,
    /// Unpack a backup into a scratch folder and check every hash and the ledger in it.
    Verify {
        /// Default: the newest.
        #[arg(value_name = "ARCHIVE")]
        archive: Option<Utf8PathBuf>,
    },
    /// Remove all but the newest backups; the last verified one always stays.
    Prune {
        /// How many stay. Default: [backup] keep of installer.toml, else 7.
        #[arg(long, value_name = "N")]
        keep: Option<usize>,
    },
}

#[derive(Debug, Args)]
pub struct Restore {
    /// The backup.
    #[arg(value_name = "ARCHIVE")]
    pub archive: Utf8PathBuf,
    /// The age identity that opens the secrets in it, as `age-keygen` writes it.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<Utf8PathBuf>,
    /// The passphrase that opens the secrets in it.
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    pub passphrase_file: Option<Utf8PathBuf>,
    /// Keep the secrets of this host, and do not restore those of the backup.
    #[arg(long, conflicts_with_all = ["identity", "passphrase_file"])]
    pub without_secrets: bool,
    /// Do not back up what is here first, as when it is too damaged for that.
    #[arg(long)]
    pub no_backup: bool,
    /// How long the services may take to become ready, in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub gate_timeout: Option<u32>,
    /// Show what would be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Replace the data that is there.
    #[arg(long)]
    pub yes: bool,
    /// For tests: end with SIGKILL at this boundary between two durable facts.
    #[cfg(feature = "crash-points")]
    #[arg(long, hide = true)]
    pub kill_at: Option<usize>,
}

impl From<BackupError> for Ended {
    fn from(error: BackupError) -> Self {
        let exit = match &error {
            BackupError::Damaged(_) => Exit::Backup,
            BackupError::Refused(_) => Exit::Usage,
            BackupError::Path { .. } => Exit::Unexpected,
        };
        Self { exit, ..unexpected(error) }
    }
}

pub(crate) fn backup(session: &mut Session<'_>, command: &Backup) -> Ends<Exit> {
    let places = places(session)?;
    match command {
        Backup::Create { to, recipient, passphrase_file, scheduled, keep } => {
            let answers = session.answers(None)?;
            let _lock = lock(&places)?;
            let lock = locking(recipient, passphrase_file.as_deref(), &answers)?;
            let to = to.as_deref().unwrap_or(&places.backups);
            let made = make(session, &places, to, lock)?;
            if *scheduled {
                let verified = verify(&places, &made.path, SystemClock.now())?;
                tell_verified(session, &made.path, &verified);
                for name in store::prune(to, keep.map_or(answers.backup.keep, usize::from))? {
                    session.reporter.say(&format!("Removed the old backup {name}."));
                }
            }
            Ok(exit_of(&made))
        }
        Backup::List => {
            show(&store::list(&places.backups)?, session.reporter.is_json());
            Ok(Exit::Done)
        }
        Backup::Verify { archive } => {
            let _lock = lock(&places)?;
            let archive = match archive {
                Some(archive) => named(&places, archive)?,
                None => newest(&places)?,
            };
            let verified = verify(&places, &archive, SystemClock.now())?;
            tell_verified(session, &archive, &verified);
            Ok(Exit::Done)
        }
        Backup::Prune { keep } => {
            let keep = keep.map_or_else(|| Ok(session.answers(None)?.backup.keep), Ok::<_, Ended>)?;
            if keep == 0 {
                return Err(BackupError::Refused("--keep 0 would leave no backup".to_owned()).into());
            }
            let _lock = lock(&places)?;
            let gone = store::prune(&places.backups, keep)?;
            session.reporter.say(&match gone.as_slice() {
                [] => "There is no backup too many.".to_owned(),
                gone => format!("Removed {}.", gone.join(", ")),
            });
            Ok(Exit::Done)
        }
    }
}

fn places(session: &Session<'_>) -> Ends<Places> {
    let config = match fs_err::read_to_string(CONFIG) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        text => Some(text.map_err(unexpected)?),
    };
    Ok(Places::of_host(&session.home.0, config.as_deref()))
}

fn absolute(path: &Utf8Path) -> Ends<Utf8PathBuf> {
    path.canonicalize_utf8().map_err(|error| Ended { exit: Exit::Usage, why: format!("{path}: {error}") })
}

/// As `backup list` shows it, or by its path.
fn named(places: &Places, archive: &Utf8Path) -> Ends<Utf8PathBuf> {
    let listed = places.backups.join(archive);
    let is_name = archive.components().count() == 1 && !archive.exists();
    if is_name && listed.is_file() { Ok(listed) } else { absolute(archive) }
}

fn newest(places: &Places) -> BackupResult<Utf8PathBuf> {
    let newest = store::list(&places.backups)?.into_iter().next();
    let none = || BackupError::Refused(format!("there is no backup in {}", places.backups));
    newest.map(|kept| places.backups.join(kept.name)).ok_or_else(none)
}

/// Nobody else writes, prunes or restores meanwhile. The installer's own lock is not needed: an upgrade may go on.
fn lock(places: &Places) -> Ends<Lock> {
    if !places.backups.is_dir() {
        let why = format!("there is no folder {}; `fettle-installer apply` makes it", places.backups);
        return Err(Ended { exit: Exit::Usage, why });
    }
    let lock = lock::take(&places.backups)?;
    store::clear_unfinished(&places.backups)?;
    Ok(lock)
}

fn locking(recipients: &[String], passphrase: Option<&Utf8Path>, answers: &Answers) -> BackupResult<Option<Locking>> {
    if let Some(file) = passphrase {
        return Locking::of_passphrase(file).map(Some);
    }
    let recipients = if recipients.is_empty() { &answers.backup.recipients } else { recipients };
    if recipients.is_empty() { Ok(None) } else { Locking::of_recipients(recipients).map(Some) }
}

fn make(session: &mut Session<'_>, places: &Places, to: &Utf8Path, lock: Option<Locking>) -> Ends<Made> {
    let receipt = session.receipt()?;
    let version = receipt.map_or_else(|| env!("CARGO_PKG_VERSION").to_owned(), |receipt| receipt.product.version);
    let made = create(places, Wanted { to, version: &version, now: SystemClock.now(), lock })?;
    session.reporter.say(&format!("Made the backup {} ({} bytes).", made.path, made.archive.size));
    tell_left_out(session, &made.manifest.left_out);
    if !made.manifest.has_secrets() {
        session.reporter.say(
            "Name who may open the secrets: an age recipient in [backup] recipients of /etc/fettle/installer.toml, --recipient, or --passphrase-file.",
        );
    }
    Ok(made)
}

/// It is made, and it is not all that there was.
fn exit_of(made: &Made) -> Exit {
    if made.damaged.is_empty() { Exit::Done } else { Exit::Backup }
}

fn tell_left_out(session: &mut Session<'_>, left_out: &[String]) {
    for what in left_out {
        session.reporter.say(&format!("NOT in the backup: {what}."));
    }
}

fn tell_verified(session: &mut Session<'_>, archive: &Utf8Path, verified: &Verified) {
    let (manifest, ledger) = (&verified.unpacked.manifest, &verified.ledger);
    session.reporter.say(&format!(
        "{archive} is whole: Fettle {}, made {}, {} members, ledger schema {}.",
        manifest.version,
        manifest.created,
        manifest.members.len(),
        ledger.newest_migration,
    ));
    if !ledger.unknown_migrations.is_empty() {
        session.reporter.say(&format!("A newer release has run migrations {:?} on it.", ledger.unknown_migrations));
    }
    tell_left_out(session, &manifest.left_out);
    if manifest.has_secrets() {
        session.reporter.say("Its secrets are encrypted; that they open with your key is for you to try.");
    }
}

fn show(kept: &[Kept], json: bool) {
    let mut stdout = std::io::stdout().lock();
    if json {
        let _ = writeln!(stdout, "{}", serde_json::json!({ "backups": kept }));
        return;
    }
    let now = SystemClock.now();
    for one in kept {
        let hours = now.duration_since(one.created).as_hours();
        let verified = one.verified.map_or_else(|| "NOT verified".to_owned(), |at| format!("verified {at}"));
        let _ =
            writeln!(stdout, "{}  {:>12} bytes  {}  {hours} h old  {verified}", one.name, one.size_bytes, one.version);
    }
    if kept.is_empty() {
        let _ = writeln!(stdout, "There is no backup.");
    }
}

pub(crate) fn restore(session: &mut Session<'_>, flags: &Restore) -> Ends<Exit> {
    session.refuse_unfinished()?;
    let receipt = session.installed()?;
    let places = places(session)?;
    let archive = named(&places, &flags.archive)?;
    let running = receipt.product.version.clone();
    if flags.dry_run {
        let verified = verify(&places, &archive, SystemClock.now())?;
        fits(&verified.unpacked.manifest.version, &running)?;
        tell_verified(session, &archive, &verified);
        session.reporter.say(&format!(
            "It would replace {}, {} and what differs of the secrets, with all services stopped meanwhile.",
            places.ledger(),
            places.config
        ));
        return Ok(Exit::Done);
    }
    session.need_root()?;
    let there = places.database().exists();
    if there && !flags.yes {
        let why = format!("{} holds a ledger, which would be replaced; say so with --yes", places.ledger());
        return Err(Ended { exit: Exit::Usage, why });
    }
    let _lock = session.lock()?;
    let _backups = lock(&places)?;
    // Laid out and looked at first: what does not fit costs nothing but time.
    let prepared = prepared(session, &places, flags, &archive, &receipt).and_then(|prepared| {
        if there && !flags.no_backup {
            first(session, &places)?;
        }
        Ok(prepared)
    });
    let (steps, created) = match prepared {
        Ok(prepared) => prepared,
        Err(ended) => {
            discard(&places);
            return Err(ended);
        }
    };
    #[cfg(feature = "crash-points")]
    session.host.kill_at(flags.kill_at);
    let exit = session.start(Purpose::Restore, OnFailure::Revert, receipt.product.clone(), steps)?;
    match exit {
        Exit::Done => session.reporter.say(&format!(
            "The backup of {} is restored, and Fettle {running} runs on it. Work that was under way then is taken up again; what was asked for since has to be asked for anew.",
            created
        )),
        Exit::Reverted => session.reporter.say("What was there before is back, and nothing of it was changed."),
        _ => {}
    }
    Ok(exit)
}

/// What is laid out, and the steps that exchange it; with the instant of the backup.
fn prepared(
    session: &mut Session<'_>,
    places: &Places,
    flags: &Restore,
    archive: &Utf8Path,
    receipt: &Receipt,
) -> Ends<(Vec<Step>, jiff::Timestamp)> {
    let key = match (&flags.identity, &flags.passphrase_file) {
        (Some(file), _) => Some(Key::of_identity(file)?),
        (None, Some(file)) => Some(Key::of_passphrase(file)?),
        (None, None) => None,
    };
    let staged = stage(places, archive, key.as_ref(), &receipt.product.version)?;
    tell_left_out(session, &staged.manifest.left_out);
    if staged.manifest.has_secrets() && key.is_none() && !flags.without_secrets {
        let why = "the backup holds secrets: open them with --identity or --passphrase-file, or keep those of this host with --without-secrets";
        return Err(Ended { exit: Exit::Usage, why: why.to_owned() });
    }
    let mut answers = match &staged.answers {
        Some(answers) => answers.clone(),
        None => session.answers(None)?,
    };
    // What else runs on a host is decided on that host, and not by whoever wrote an archive.
    answers.retire = session.answers(None)?.retire;
    answers.gate_timeout = flags.gate_timeout.unwrap_or(answers.gate_timeout);
    let mut facts = planner_facts(&session.host, &answers)?;
    facts.config = Some(staged.config.clone());
    facts.secrets.extend(staged.secrets.iter().cloned());
    let current = Utf8Path::new(CURRENT).canonicalize_utf8().map_err(unexpected)?;
    let release = release::read(&session.host, &current).map_err(|why| Ended { exit: Exit::Bundle, why })?;
    let plan = plan(&release, &facts, &answers);
    if let Some(why) = plan.refusals.first() {
        return Err(Ended {
            exit: Exit::Conflict,
            why: format!("the backup's configuration does not fit this host: {why}"),
        });
    }
    let settled = settle(&plan, &session.host, Some(receipt), Foreign::Refuse).map_err(unexpected)?;
    refuse(&settled)?;
    let check = Action::CheckConfig { program: places.program.clone(), config: places.config.clone() };
    let steps = steps(&staged, settled, &plan.actions, &units(receipt), check);
    Ok((steps, staged.manifest.created))
}

/// Everything that this installation starts.
fn units(receipt: &Receipt) -> Vec<String> {
    let unit = |action: &Action| match action {
        Action::Start { unit } => Some(unit.clone()),
        _ => None,
    };
    receipt.known().filter_map(|entry| unit(&entry.action)).collect()
}

fn refuse(settled: &Settled) -> Ends<()> {
    if let Some(why) = settled.blocked.first() {
        return Err(Ended { exit: Exit::Preflight, why: why.clone() });
    }
    match settled.conflicts.first() {
        Some((key, what)) => Err(Ended {
            exit: Exit::Conflict,
            why: format!(
                "{key} was changed by somebody else:\n{what}\n`fettle-installer apply --overwrite` first, or take the change back"
            ),
        }),
        None => Ok(()),
    }
}

/// A restoration that was killed while it laid things out.
pub(crate) fn discard_leftovers(session: &Session<'_>) -> Ends<()> {
    discard(&places(session)?);
    Ok(())
}

/// What is there now, should an upgrade be regretted.
pub(crate) fn before_upgrade(session: &mut Session<'_>) -> Ends<()> {
    let places = places(session)?;
    let _lock = lock(&places)?;
    first(session, &places)
}

/// What is there now, should what follows be regretted.
fn first(session: &mut Session<'_>, places: &Places) -> Ends<()> {
    session.reporter.say("What is here is backed up first.");
    let answers = session.answers(None)?;
    let lock = locking(&[], None, &answers)?;
    let made = make(session, places, &places.backups, lock)
        .and_then(|made| verify(places, &made.path, SystemClock.now()).map(|_| made).map_err(Ended::from));
    match made {
        Ok(_) => Ok(()),
        Err(ended) => Err(Ended {
            exit: Exit::Backup,
            why: format!(
                "what is here cannot be backed up first: {}\nTo go on all the same, use --no-backup.",
                ended.why
            ),
        }),
    }
}
