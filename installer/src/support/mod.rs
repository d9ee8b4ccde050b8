//! `fettle-installer support-bundle`: what somebody who helps needs to see of this host, and no secret.

mod collect;
mod redact;

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use fettle_app::ports::clock::Clock as _;
use fettle_runtime::system::SystemClock;

use crate::commands::{Ended, Ends, Session, unexpected};
use crate::exit::Exit;
use crate::layout;
use collect::{Paths, RealLook, collect};

/// It goes by mail or into an issue.
const MAX_BYTES: usize = 50 << 20;

#[derive(Debug, Args)]
pub struct SupportBundle {
    /// The file to write. Default: fettle-support-<time>.tar.zst in this folder.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<Utf8PathBuf>,
    /// Replace the names of this host and its users, and addresses.
    #[arg(long)]
    pub anonymise: bool,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    name: String,
    text: String,
}

pub(crate) fn support_bundle(session: &mut Session<'_>, flags: &SupportBundle) -> Ends<Exit> {
    let now = SystemClock.now();
    let output = flags
        .output
        .clone()
        .unwrap_or_else(|| format!("fettle-support-{}.tar.zst", now.strftime("%Y%m%dT%H%M%SZ")).into());
    let look = RealLook { host: &session.host };
    let parts = collect(&look, &Paths::of_host(&session.home.0), flags.anonymise)
        .map_err(|why| Ended { exit: Exit::Usage, why })?;
    let bytes = pack(&parts, u64::try_from(now.as_second()).unwrap_or(0)).map_err(unexpected)?;
    let mut listed = format!("{output} will hold, {} bytes compressed:\n", bytes.len());
    for part in &parts {
        listed.push_str(&format!("  {:>10}  {}\n", part.text.len(), part.name));
    }
    session.reporter.say(listed.trim_end());
    if bytes.len() > MAX_BYTES {
        return Err(Ended {
            exit: Exit::Unexpected,
            why: format!("that is more than {MAX_BYTES} bytes; nothing was written"),
        });
    }
    if !flags.yes && std::io::stdin().is_terminal() {
        let _ = write!(std::io::stderr(), "Write it? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map_err(unexpected)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(Ended { exit: Exit::Usage, why: "nothing was written".to_owned() });
        }
    }
    write(&output, &bytes)?;
    session.reporter.say(&format!("Wrote {output}. Look into it before you send it: `tar --zstd -xf {output}`."));
    Ok(Exit::Done)
}

fn pack(parts: &[Part], seconds: u64) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 6)?);
    for part in parts {
        let mut header = tar::Header::new_ustar();
        header.set_size(part.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        tar.append_data(&mut header, format!("fettle-support/{}", part.name), part.text.as_bytes())?;
    }
    tar.into_inner()?.finish()
}

/// Only the caller may read it: it is theirs to hand on.
fn write(output: &Utf8Path, bytes: &[u8]) -> Ends<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = fs_err::OpenOptions::from_options(options)
        .open(output)
        .map_err(|error| Ended { exit: Exit::Usage, why: error.to_string() })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(unexpected)
}

/// Our units, whether they run or not.
fn units(workers: u8) -> Vec<String> {
    let single = [layout::TARGET, layout::DASHBOARD, layout::BACKUP_TIMER, "fettle-backup.service"];
    let inference = [layout::INFERENCE, layout::INFERENCE_SOCKET, layout::ENGINES];
    let single = single.into_iter().chain(layout::SOCKETS).chain(inference).map(str::to_owned);
    single.chain((1..=workers).map(layout::worker)).collect()
}
