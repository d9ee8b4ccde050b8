//! A Debian root, made once by debootstrap and kept as an archive.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};

use super::machine::run;

const SUITE: &str = "bookworm";
/// systemd as PID 1 with D-Bus for `systemctl`; Python for what a test does to the ledger behind Fettle's back.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,libpam-systemd,polkitd,ca-certificates,python3,procps";
/// Some hundred megabytes over a slow line.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(8 * 60);
const ARCHIVE_LIMIT: Duration = Duration::from_secs(3 * 60);
/// What making and booting a root takes, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 5] = [
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("nsenter", "util-linux"),
    ("script", "bsdutils"),
    ("tar", "tar"),
];

/// Why there can be no machine here.
#[derive(Debug)]
pub struct Missing(pub String);

/// The archive of a root that was never booted.
pub struct Root {
    archive: Utf8PathBuf,
}

impl Root {
    /// Finds the archive in `cache`, or makes it.
    ///
    /// The inner error is a reason to skip: no root, a program or the archive's mirror is not there.
    pub fn provide(cache: &Utf8Path) -> anyhow::Result<Result<Self, Missing>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Err(Missing("booting a machine takes root".to_owned())));
        }
        for (program, package) in PROGRAMS {
            let found =
                Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status()?;
            if !found.success() {
                return Ok(Err(Missing(format!("{program} is not there (Debian package {package})"))));
            }
        }
        fs_err::create_dir_all(cache)?;
        let archive = cache.join(format!("{SUITE}-2.tar"));
        if !archive.is_file() {
            let folder = cache.join(format!("{SUITE}-making"));
            let _ = fs_err::remove_dir_all(&folder);
            let mut command = Command::new("debootstrap");
            command.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE, folder.as_str()]);
            if let Err(error) = run(command, BOOTSTRAP_LIMIT) {
                let _ = fs_err::remove_dir_all(&folder);
                return Ok(Err(Missing(format!("debootstrap made no Debian root: {error:#}"))));
            }
            // A machine that was never booted makes its own.
            fs_err::write(folder.join("etc/machine-id"), "")?;
            let part = cache.join(format!("{SUITE}.tar.part"));
            let mut command = Command::new("tar");
            command.args([
                "--create",
                "--numeric-owner",
                "--xattrs",
                "--file",
                part.as_str(),
                "--directory",
                folder.as_str(),
                ".",
            ]);
            run(command, ARCHIVE_LIMIT)?.whole()?;
            fs_err::rename(&part, &archive)?;
            fs_err::remove_dir_all(&folder)?;
        }
        Ok(Ok(Self { archive }))
    }

    /// A fresh root in `folder`, which must not exist.
    pub fn unpack(&self, folder: &Utf8Path) -> anyhow::Result<()> {
        ensure!(!folder.exists(), "{folder} is there already");
        fs_err::create_dir_all(folder)?;
        let mut command = Command::new("tar");
        command.args([
            "--extract",
            "--numeric-owner",
            "--xattrs",
            "--file",
            self.archive.as_str(),
            "--directory",
            folder.as_str(),
        ]);
        let said = run(command, ARCHIVE_LIMIT).with_context(|| format!("while unpacking {}", self.archive))?;
        if !said.ok() {
            bail!("{} cannot be unpacked ({}); remove it, and it is made anew", self.archive, said.text);
        }
        Ok(())
    }
}
