//! Which parts of the host a command may read, and the small files that are made for it instead of the host's own.

use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};

use crate::helper::USER_INSIDE;
use crate::spec::{Bind, HOME};

/// Programs and libraries. `/nix/store` and the link beside it are where NixOS has them.
const FOLDERS: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/run/current-system"];

/// What programs need of `/etc` and what holds no secret.
const ETC: [&str; 14] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/os-release",
    "/etc/services",
    "/etc/protocols",
    "/etc/mime.types",
];

/// Debian keeps the settings of its Java there, and the runtime does not start without.
const ETC_PREFIX: &str = "java";

/// What a command at level `landlock` may read beside: the facts of the host that are no process's, and names.
const UNMOVED: [&str; 13] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/version",
    "/proc/filesystems",
    "/proc/sys/kernel",
    "/proc/sys/vm/overcommit_memory",
];

#[derive(Debug, Default)]
pub(crate) struct System {
    pub(crate) binds: Vec<Bind>,
    pub(crate) symlinks: Vec<(Utf8PathBuf, Utf8PathBuf)>,
}

/// What exists here of the lists above, for level `full`.
pub(crate) fn system() -> System {
    let mut system = System::default();
    for path in FOLDERS.map(Utf8Path::new) {
        match path.read_link_utf8() {
            Ok(target) => system.symlinks.push((path.to_owned(), target)),
            Err(_) => system.binds.extend(readable(path)),
        }
    }
    system.binds.extend(etc().iter().filter_map(|path| readable(path)));
    system
}

/// The same for level `landlock`, where nothing is moved.
pub(crate) fn unmoved_system() -> Vec<Bind> {
    let folders = FOLDERS.into_iter().chain(UNMOVED).map(Utf8PathBuf::from);
    folders.chain(etc()).filter_map(|path| readable(&path)).collect()
}

fn etc() -> Vec<Utf8PathBuf> {
    let java = Utf8Path::new("/etc").read_dir_utf8().into_iter().flatten().flatten();
    let java = java.filter(|entry| entry.file_name().starts_with(ETC_PREFIX)).map(|entry| entry.into_path());
    ETC.into_iter().map(Utf8PathBuf::from).chain(java).collect()
}

fn readable(path: &Utf8Path) -> Option<Bind> {
    let host = path.canonicalize_utf8().ok()?;
    Some(Bind { host, inside: path.to_owned(), writable: false })
}

/// Whose names and addresses the sandbox knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    Own,
    /// With the host's network come its resolver and its hosts.
    Host,
}

pub(crate) fn files(names: Names) -> Vec<(Utf8PathBuf, String)> {
    let (hosts, resolver, order) = match names {
        Names::Own => ("127.0.0.1 localhost sandbox\n::1 localhost\n".to_owned(), String::new(), "files"),
        Names::Host => (text("/etc/hosts"), text("/etc/resolv.conf"), "files dns"),
    };
    let user = format!(
        "root:x:0:0::/nonexistent:/bin/false\nfettle:x:{USER_INSIDE}:{USER_INSIDE}::{HOME}:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n"
    );
    let group = format!("root:x:0:\nfettle:x:{USER_INSIDE}:\nnogroup:x:65534:\n");
    let order = format!("passwd: files\ngroup: files\nhosts: {order}\nservices: files\nprotocols: files\n");
    [("passwd", user), ("group", group), ("hosts", hosts), ("resolv.conf", resolver), ("nsswitch.conf", order)]
        .into_iter()
        .map(|(name, content)| (Utf8Path::new("/etc").join(name), content))
        .collect()
}

/// A missing file is an empty one.
fn text(path: impl AsRef<Path>) -> String {
    fs_err::read_to_string(path.as_ref()).unwrap_or_default()
}
