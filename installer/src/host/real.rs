//! This machine. Every change is on the disk when it returns: files are written beside and renamed, folders are synced.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_lc_rs::digest;
use camino::{Utf8Path, Utf8PathBuf};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{Gid, Uid};

use super::{Answer, Attrs, Entry, Host, HostError, HostResult, HostView, Owner, PAUSE, Said, UnitState, UnitVerb};

/// systemd itself gives a unit 90 s to start, and 90 s to stop before that.
const SERVICE_LIMIT: Duration = Duration::from_secs(200);
/// Programs that read, or change little.
const PROGRAM_LIMIT: Duration = Duration::from_secs(60);
/// `nixos-rebuild` may download and build.
const REBUILD_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// A service on this host answers at once or is not well.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Images are some gigabytes, and a mirror may be slow.
const FETCH_LIMIT: Duration = Duration::from_secs(3600);
/// The largest file that is fetched: all images in one archive.
const FETCHED_BYTES: u64 = 32 << 30;
/// What a program says beyond this nobody reads.
const SAID_BYTES: usize = 16 << 10;
/// Programs are some ten megabytes each.
const HASHED_AT_ONCE: usize = 1 << 18;
/// Between two looks at a program that runs.
const LOOK: Duration = Duration::from_millis(10);
/// Where programs of the system are, whatever the caller's environment says.
const PATH: &str = "/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub struct RealHost {
    client: reqwest::blocking::Client,
    /// The boundary at which a test wants this process killed: its number, counted from one.
    #[cfg(feature = "crash-points")]
    killed_at: Option<usize>,
    #[cfg(feature = "crash-points")]
    boundaries: usize,
}

impl RealHost {
    /// Errors when no HTTP client can be made.
    pub fn new() -> Result<Self, reqwest::Error> {
        // Straight to loopback: a proxy of the environment would answer for the service.
        let client = reqwest::blocking::Client::builder().timeout(ANSWER_LIMIT).no_proxy().build()?;
        Ok(Self {
            client,
            #[cfg(feature = "crash-points")]
            killed_at: None,
            #[cfg(feature = "crash-points")]
            boundaries: 0,
        })
    }

    /// For tests: the process ends with SIGKILL at this boundary.
    #[cfg(feature = "crash-points")]
    pub fn kill_at(&mut self, boundary: Option<usize>) {
        self.killed_at = boundary;
    }

    fn systemctl(&self, arguments: &[&str]) -> HostResult<()> {
        succeed("systemctl", &[&["--no-ask-password"], arguments].concat(), SERVICE_LIMIT).map(drop)
    }
}

/// A service that does not start says why in the system's journal, and there alone.
fn with_its_words(error: HostError, unit: &str) -> HostError {
    let arguments = ["--no-pager", "--output=cat", "--since=-2min", "--unit", unit];
    let said = program("journalctl", &arguments, PROGRAM_LIMIT).map(|said| said.text).unwrap_or_default();
    match said.lines().rev().find_map(|line| line.strip_prefix("error: ")) {
        Some(why) => HostError::Program(format!("{unit} does not start: {why}")),
        None => error,
    }
}

fn at<T>(what: &'static str, path: &Utf8Path, result: std::io::Result<T>) -> HostResult<T> {
    result.map_err(|source| HostError::Path { what, path: path.to_owned(), source })
}

/// Runs a program of the system, without the caller's environment.
fn program(name: &str, arguments: &[&str], limit: Duration) -> HostResult<Said> {
    fed(name, arguments, None, limit)
}

/// The same with something on its standard input.
fn fed(name: &str, arguments: &[&str], input: Option<&[u8]>, limit: Duration) -> HostResult<Said> {
    let failed = |error: std::io::Error| HostError::Program(format!("could not run {name}: {error}"));
    #[expect(clippy::disallowed_types, reason = "the limit of a program is measured, and no test waits for it")]
    let begun = std::time::Instant::now();
    let mut command = Command::new(name);
    command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8");
    // helm and kubectl keep what they have looked up below it.
    command.env("HOME", "/root");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let writer = child.stdin.take().zip(input.map(<[u8]>::to_vec)).map(|(mut stdin, input)| {
        // One that does not read it to the end says so by its exit status.
        std::thread::spawn(move || drop(stdin.write_all(&input)))
    });
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as Box<_>),
        child.stderr.take().map(|stream| Box::new(stream) as Box<_>),
    ];
    let readers = streams.map(|stream| std::thread::spawn(move || stream.map(said).unwrap_or_default()));
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if begun.elapsed() > limit {
            child.kill().map_err(failed)?;
            child.wait().map_err(failed)?;
            let line =
                format!("{name} {} was still running after {} s and was ended", arguments.join(" "), limit.as_secs());
            return Err(HostError::Program(line));
        }
        std::thread::sleep(LOOK);
    };
    let text: Vec<String> = readers.into_iter().map(|reader| reader.join().unwrap_or_default()).collect();
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    Ok(Said { ok: status.success(), text: text.concat().trim().to_owned() })
}

/// The beginning of a stream; the rest is read and dropped, so that the program does not wait for us.
fn said(mut stream: Box<dyn std::io::Read + Send>) -> String {
    let mut kept = Vec::new();
    // What cannot be read any more was not said.
    let _ = stream.by_ref().take(SAID_BYTES as u64).read_to_end(&mut kept);
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

fn succeed(name: &str, arguments: &[&str], limit: Duration) -> HostResult<String> {
    let said = program(name, arguments, limit)?;
    if said.ok {
        return Ok(said.text);
    }
    Err(HostError::Program(format!("{name} {} failed: {}", arguments.join(" "), said.text)))
}

/// Names and numbers of users or groups, as the file has them; system users are always there.
fn numbers(file: &str) -> Vec<(String, u32)> {
    let text = fs_err::read_to_string(file).unwrap_or_default();
    let line = |line: &str| {
        let mut parts = line.split(':');
        Some((parts.next()?.to_owned(), parts.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

fn name_of(file: &str, number: u32) -> String {
    numbers(file).into_iter().find(|(_, other)| *other == number).map_or_else(|| number.to_string(), |(name, _)| name)
}

fn number_of(file: &str, name: &str) -> HostResult<u32> {
    let known = numbers(file).into_iter().find(|(other, _)| other == name).map(|(_, number)| number);
    known.or_else(|| name.parse().ok()).ok_or_else(|| HostError::Program(format!("{file} has no `{name}`")))
}

fn sha256_of(path: &Utf8Path) -> std::io::Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut digest = digest::Context::new(&digest::SHA256);
    let mut part = vec![0; HASHED_AT_ONCE];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex::encode(digest.finish())),
            read => digest.update(&part[..read]),
        }
    }
}

fn own(path: &Utf8Path, owner: &Owner) -> HostResult<()> {
    let (user, group) = (number_of(USERS, &owner.user)?, number_of(GROUPS, &owner.group)?);
    let changed = rustix::fs::chown(path.as_std_path(), Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    at("could not change the owner of", path, changed.map_err(Into::into))
}

fn sync_folder_of(path: &Utf8Path) -> HostResult<()> {
    let folder = path.parent().unwrap_or(Utf8Path::new("/"));
    at("could not sync", folder, fs_err::File::open(folder).and_then(|folder| folder.sync_all()))
}

/// A name beside `path` that nobody else uses.
fn beside(path: &Utf8Path) -> Utf8PathBuf {
    path.with_file_name(format!(".{}.fettle-new", path.file_name().unwrap_or("file")))
}

/// Makes or replaces `path` from a stream, in one step.
fn replace(path: &Utf8Path, content: &mut dyn std::io::Read, attrs: &Attrs) -> HostResult<()> {
    let new = beside(path);
    let written = (|| {
        // Left from a run that was killed; a link in its place is not followed.
        match fs_err::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        std::io::copy(content, &mut file)?;
        file.flush()?;
        file.set_permissions(std::fs::Permissions::from_mode(attrs.mode))?;
        file.sync_all()
    })();
    at("could not write", path, written)?;
    own(&new, &attrs.owner)?;
    at("could not write", path, fs_err::rename(&new, path))?;
    sync_folder_of(path)
}

impl HostView for RealHost {
    fn entry(&self, path: &Utf8Path) -> HostResult<Entry> {
        let found = match fs_err::symlink_metadata(path) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(Entry::Absent);
            }
            found => at("could not look at", path, found)?,
        };
        let owner = Owner { user: name_of(USERS, found.uid()), group: name_of(GROUPS, found.gid()) };
        let attrs = Attrs { mode: found.mode() & 0o7777, owner };
        Ok(if found.is_symlink() {
            let target = at("could not read the link", path, fs_err::read_link(path))?;
            Entry::Link { target: Utf8PathBuf::from_path_buf(target).unwrap_or_default() }
        } else if found.is_dir() {
            Entry::Dir { attrs }
        } else if found.is_file() {
            Entry::File { sha256: at("could not read", path, sha256_of(path))?, attrs }
        } else {
            Entry::Other
        })
    }

    fn read(&self, path: &Utf8Path) -> HostResult<Vec<u8>> {
        at("could not read", path, fs_err::read(path))
    }

    fn list(&self, folder: &Utf8Path) -> HostResult<Vec<String>> {
        let entries = match fs_err::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => at("could not list", folder, entries)?,
        };
        let names: std::io::Result<Vec<String>> =
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
        let mut names = at("could not list", folder, names)?;
        names.sort();
        Ok(names)
    }

    fn unit(&self, name: &str) -> HostResult<UnitState> {
        let text =
            succeed("systemctl", &["show", "--property=ActiveState,LoadState,UnitFileState", name], PROGRAM_LIMIT)?;
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Ok(UnitState {
            enabled: value("UnitFileState") == Some("enabled"),
            active: matches!(value("ActiveState"), Some("active" | "activating" | "reloading")),
            absent: value("LoadState") == Some("not-found"),
        })
    }

    fn has_user(&self, name: &str) -> HostResult<bool> {
        Ok(numbers(USERS).iter().any(|(user, _)| user == name))
    }

    fn has_group(&self, name: &str) -> HostResult<bool> {
        Ok(numbers(GROUPS).iter().any(|(group, _)| group == name))
    }

    fn ask(&self, path: &Utf8Path, arguments: &[&str]) -> HostResult<Said> {
        program(path.as_str(), arguments, PROGRAM_LIMIT)
    }

    fn get(&self, url: &str) -> HostResult<Answer> {
        let answer = self.client.get(url).send().and_then(|answer| Ok((answer.status().as_u16(), answer.text()?)));
        let (status, body) = answer.map_err(|error| HostError::Program(error.without_url().to_string()))?;
        Ok(Answer { status, body })
    }

    fn through_ingress(&self, url: &str) -> HostResult<Answer> {
        let failed = |error: reqwest::Error| HostError::Program(error.without_url().to_string());
        let parsed = reqwest::Url::parse(url).map_err(|error| HostError::Program(format!("{url}: {error}")))?;
        let here = std::net::SocketAddr::from(([127, 0, 0, 1], parsed.port_or_known_default().unwrap_or(443)));
        let client = reqwest::blocking::Client::builder()
            .timeout(ANSWER_LIMIT)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .resolve(parsed.host_str().unwrap_or_default(), here)
            // A certificate that cert-manager has just signed itself is trusted by nobody.
            .tls_danger_accept_invalid_certs(true)
            .build()
            .map_err(failed)?;
        let answer = client.get(parsed).send().map_err(failed)?;
        let status = answer.status().as_u16();
        Ok(Answer { status, body: answer.text().map_err(failed)? })
    }
}

impl Host for RealHost {
    fn write(&mut self, path: &Utf8Path, bytes: &[u8], attrs: &Attrs) -> HostResult<()> {
        replace(path, &mut &bytes[..], attrs)
    }

    fn append(&mut self, path: &Utf8Path, bytes: &[u8]) -> HostResult<()> {
        let new = !path.exists();
        let mut options = fs_err::OpenOptions::new();
        let written = options.append(true).create(true).mode(0o600).open(path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        });
        at("could not write", path, written)?;
        if new { sync_folder_of(path) } else { Ok(()) }
    }

    fn mkdir(&mut self, path: &Utf8Path, attrs: &Attrs) -> HostResult<()> {
        if !path.is_dir() {
            at("could not make", path, fs_err::create_dir(path))?;
        }
        self.set_attrs(path, attrs)?;
        sync_folder_of(path)
    }

    fn set_attrs(&mut self, path: &Utf8Path, attrs: &Attrs) -> HostResult<()> {
        own(path, &attrs.owner)?;
        let mode = std::fs::Permissions::from_mode(attrs.mode);
        at("could not change the mode of", path, fs_err::set_permissions(path, mode))
    }

    fn copy(&mut self, from: &Utf8Path, to: &Utf8Path, attrs: &Attrs) -> HostResult<()> {
        let mut file = at("could not read", from, fs_err::File::open(from))?;
        replace(to, &mut file, attrs)
    }

    fn rename(&mut self, from: &Utf8Path, to: &Utf8Path) -> HostResult<()> {
        at("could not rename", from, fs_err::rename(from, to))?;
        sync_folder_of(from)?;
        sync_folder_of(to)
    }

    fn link(&mut self, path: &Utf8Path, target: &Utf8Path) -> HostResult<()> {
        let new = beside(path);
        self.remove(&new)?;
        at(
            "could not link",
            path,
            fs_err::os::unix::fs::symlink(target, &new).and_then(|()| fs_err::rename(&new, path)),
        )?;
        sync_folder_of(path)
    }

    fn remove(&mut self, path: &Utf8Path) -> HostResult<()> {
        match fs_err::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => at("could not remove", path, removed).and_then(|()| sync_folder_of(path)),
        }
    }

    fn rmdir(&mut self, path: &Utf8Path) -> HostResult<bool> {
        match fs_err::remove_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(false),
            removed => at("could not remove", path, removed).and_then(|()| sync_folder_of(path)).map(|()| true),
        }
    }

    fn remove_tree(&mut self, path: &Utf8Path) -> HostResult<()> {
        match fs_err::remove_dir_all(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => at("could not remove", path, removed).and_then(|()| sync_folder_of(path)),
        }
    }

    fn units(&mut self, verb: UnitVerb, unit: &str) -> HostResult<()> {
        match verb {
            UnitVerb::Enable => self.systemctl(&["enable", "--quiet", unit]),
            UnitVerb::Disable => self.systemctl(&["disable", "--quiet", unit]),
            UnitVerb::Start => self.systemctl(&["start", unit]).map_err(|error| with_its_words(error, unit)),
            UnitVerb::TryRestart => self.systemctl(&["try-restart", unit]).map_err(|error| with_its_words(error, unit)),
            // Taken back twice, the unit may be gone already.
            UnitVerb::Stop if !self.unit(unit)?.active => Ok(()),
            UnitVerb::Stop => self.systemctl(&["stop", unit]),
        }
    }

    fn daemon_reload(&mut self) -> HostResult<()> {
        self.systemctl(&["daemon-reload"])
    }

    fn sysusers(&mut self, file: &Utf8Path) -> HostResult<()> {
        succeed("systemd-sysusers", &[file.as_str()], PROGRAM_LIMIT).map(drop)
    }

    fn remove_user(&mut self, name: &str) -> HostResult<()> {
        if self.has_user(name)? {
            succeed("userdel", &[name], PROGRAM_LIMIT)?;
        }
        // userdel takes the group of the same name along, unless others are in it.
        if self.has_group(name)? {
            succeed("groupdel", &[name], PROGRAM_LIMIT)?;
        }
        Ok(())
    }

    fn load_apparmor(&mut self, profile: &Utf8Path) -> HostResult<()> {
        succeed("apparmor_parser", &["--replace", profile.as_str()], PROGRAM_LIMIT).map(drop)
    }

    fn unload_apparmor(&mut self, profile: &Utf8Path) -> HostResult<()> {
        // One that was never loaded, or is gone, is unloaded.
        program("apparmor_parser", &["--remove", profile.as_str()], PROGRAM_LIMIT).map(drop)
    }

    fn change(&mut self, path: &Utf8Path, arguments: &[&str]) -> HostResult<Said> {
        program(path.as_str(), arguments, REBUILD_LIMIT)
    }

    fn feed(&mut self, path: &Utf8Path, arguments: &[&str], input: &[u8]) -> HostResult<Said> {
        fed(path.as_str(), arguments, Some(input), PROGRAM_LIMIT)
    }

    fn fetch(&mut self, url: &str, path: &Utf8Path, attrs: &Attrs) -> HostResult<()> {
        let failed =
            |error: reqwest::Error| HostError::Program(format!("could not fetch {url}: {}", error.without_url()));
        // Elsewhere: here a proxy of the environment is meant.
        let client =
            reqwest::blocking::Client::builder().timeout(FETCH_LIMIT).https_only(true).build().map_err(failed)?;
        let answer = client.get(url).send().and_then(|answer| answer.error_for_status()).map_err(failed)?;
        replace(path, &mut answer.take(FETCHED_BYTES), attrs)
    }

    fn end_processes(&mut self, group: &Utf8Path) -> HostResult<()> {
        let file = group.join("cgroup.kill");
        match fs_err::OpenOptions::new().write(true).open(&file).and_then(|mut file| file.write_all(b"1")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            ended => at("could not end the processes of", group, ended),
        }
    }

    fn random(&mut self, count: usize) -> HostResult<Vec<u8>> {
        let mut bytes = vec![0; count];
        let source = Utf8Path::new("/dev/urandom");
        at("could not read", source, fs_err::File::open(source).and_then(|mut file| file.read_exact(&mut bytes)))?;
        Ok(bytes)
    }

    fn pause(&mut self) {
        std::thread::sleep(PAUSE);
    }

    fn boundary(&mut self, name: &str) {
        #[cfg(feature = "crash-points")]
        {
            self.boundaries += 1;
            if self.killed_at == Some(self.boundaries) {
                let _ = writeln!(std::io::stderr(), "killed at boundary {}: {name}", self.boundaries);
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
        }
        #[cfg(not(feature = "crash-points"))]
        let _ = name;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder and the attributes that its user may give.
    fn place() -> (tempfile::TempDir, Utf8PathBuf, Attrs) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let owner = match RealHost::new().unwrap().entry(&path).unwrap() {
            Entry::Dir { attrs } => attrs.owner,
            other => panic!("{other:?}"),
        };
        (folder, path, Attrs { mode: 0o640, owner })
    }

    #[test]
    fn files_folders_and_links_become_what_was_asked_for_and_go_again() {
        let (_keep, folder, attrs) = place();
        let mut host = RealHost::new().unwrap();
        let file = folder.join("file");
        for text in ["one", "two"] {
            host.write(&file, text.as_bytes(), &attrs).unwrap();
            assert_eq!(
                host.entry(&file).unwrap(),
                Entry::File { sha256: super::super::sha256(text.as_bytes()), attrs: attrs.clone() }
            );
        }
        host.append(&file, b" three").unwrap();
        assert_eq!(host.read(&file).unwrap(), b"two three");
        let link = folder.join("link");
        for target in ["file", "elsewhere"] {
            host.link(&link, target.into()).unwrap();
            assert_eq!(host.entry(&link).unwrap(), Entry::Link { target: target.into() });
        }
        let inner = folder.join("inner");
        let open = Attrs { mode: 0o750, ..attrs.clone() };
        host.mkdir(&inner, &open).unwrap();
        host.mkdir(&inner, &open).unwrap();
        host.copy(&file, &inner.join("copy"), &attrs).unwrap();
        assert!(!host.rmdir(&inner).unwrap());
        assert_eq!(host.list(&folder).unwrap(), ["file", "inner", "link"]);
        host.remove_tree(&inner).unwrap();
        host.remove(&file).unwrap();
        host.remove(&link).unwrap();
        for gone in [&inner, &file, &link] {
            assert_eq!(host.entry(gone).unwrap(), Entry::Absent);
        }
        // Taken back twice is taken back.
        host.remove_tree(&inner).unwrap();
        host.remove(&file).unwrap();
        assert!(host.rmdir(&inner).unwrap());
    }

    #[test]
    fn what_a_killed_run_left_beside_a_file_is_replaced_and_a_link_there_is_not_followed() {
        let (_keep, folder, attrs) = place();
        let mut host = RealHost::new().unwrap();
        let (file, victim) = (folder.join("file"), folder.join("victim"));
        host.write(&victim, b"kept", &attrs).unwrap();
        host.link(&beside(&file), &victim).unwrap();
        host.write(&file, b"new", &attrs).unwrap();
        assert_eq!((host.read(&file).unwrap(), host.read(&victim).unwrap()), (b"new".to_vec(), b"kept".to_vec()));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_and_named() {
        let error = program("sleep", &["60"], Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("sleep 60 was still running"), "{error}");
        assert!(program("no-such-program", &[], PROGRAM_LIMIT).unwrap_err().to_string().contains("no-such-program"));
        let said = program("sh", &["-c", "echo to out; echo to err >&2; exit 3"], PROGRAM_LIMIT).unwrap();
        assert_eq!(said, Said { ok: false, text: "to out\nto err".to_owned() });
    }
}
