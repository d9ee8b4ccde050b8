//! The file tree of level `full`: a small root of its own, in which only what the specification names is mounted.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use camino::Utf8Path;

use super::{Step, forks};
use crate::spec::{Bind, Fault, HOME, Refusal, Spec, TEMPORARY};
use crate::sys::{self, Recursive};

/// Mount points, links and small files only.
const ROOT_BYTES: u64 = 16 * 1024 * 1024;
/// One page per file is the least that a file with content takes.
const BYTES_PER_INODE: u64 = 4096;
/// Where the host's tree hangs while the new one is built.
const OLD: &str = "/.old";
const PRIVATE: &str = "/.private";
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const TAME: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Replaces the caller's view of the file system. The host's tree is out of reach afterwards.
pub(super) fn build(spec: &Spec) -> Result<(), Refusal> {
    enter_empty_root(spec)?;
    for (link, target) in &spec.symlinks {
        make_parent(link.as_std_path()).and_then(|()| symlink(target, link)).walls(&format!("link {link}"))?;
    }
    for (path, content) in &spec.files {
        make_parent(path.as_std_path()).and_then(|()| fs_err::write(path, content)).walls(&format!("write {path}"))?;
    }
    for part in &spec.system {
        bind(part).walls(&format!("mount {}", part.inside))?;
    }
    devices().walls("make /dev")?;
    private_folders(spec.temporary_bytes).walls("make the private folders")?;
    processes(spec)?;
    workspace_and_mounts(spec)?;
    sys::unmount(Path::new(OLD)).walls("leave the host's tree")?;
    fs_err::remove_dir(OLD).walls("leave the host's tree")?;
    sys::restrict_mount(Path::new("/"), TAME | libc::MOUNT_ATTR_RDONLY, Recursive::No).walls("close the root")
}

fn enter_empty_root(spec: &Spec) -> Result<(), Refusal> {
    let stage = spec.scratch.as_std_path();
    sys::unshare(libc::CLONE_NEWNS).walls("create a mount namespace")?;
    sys::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "").walls("make mounts private")?;
    sys::mount("tmpfs", stage, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, &format!("mode=0755,size={ROOT_BYTES}"))
        .walls("mount the new root")?;
    let old = stage.join(&OLD[1..]);
    fs_err::create_dir(&old).walls("make the new root")?;
    sys::pivot_root(stage, &old).walls("change the root")?;
    std::env::set_current_dir("/").walls("enter the new root")
}

/// Hangs a part of the host into the new tree. The mount point is made when it is missing.
fn bind(part: &Bind) -> io::Result<()> {
    let source = on_host(&part.host);
    let target = part.inside.as_std_path();
    if fs_err::metadata(&source)?.is_dir() {
        make_folder(target)?;
    } else {
        make_parent(target)?;
        if target.symlink_metadata().is_err() {
            fs_err::write(target, "")?;
        }
    }
    refuse_links(target)?;
    attach(&source, target)?;
    let attributes = if part.writable { TAME } else { TAME | libc::MOUNT_ATTR_RDONLY };
    sys::restrict_mount(target, attributes, Recursive::Yes)
}

fn attach(source: &Path, target: &Path) -> io::Result<()> {
    let source = source.to_str().ok_or_else(|| io::Error::other("the path is not UTF-8"))?;
    sys::mount(source, target, "", libc::MS_BIND | libc::MS_REC, "")
}

fn on_host(path: &Utf8Path) -> PathBuf {
    Path::new(OLD).join(path.as_std_path().strip_prefix("/").unwrap_or(path.as_std_path()))
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), make_folder)
}

/// Like `create_dir_all`, but never through a symlink: the workspace's content is not ours, and the host's tree still hangs here.
fn make_folder(path: &Path) -> io::Result<()> {
    refuse_links(path)?;
    fs_err::create_dir_all(path)
}

fn refuse_links(path: &Path) -> io::Result<()> {
    let mut walked = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            return Err(io::Error::other("the path leads upwards"));
        }
        walked.push(part);
        match walked.symlink_metadata() {
            Ok(facts) if facts.is_symlink() => {
                return Err(io::Error::other(format!("{} is a symlink", walked.display())));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn devices() -> io::Result<()> {
    fs_err::create_dir_all("/dev/pts")?;
    for name in DEVICES {
        let inside = Path::new("/dev").join(name);
        fs_err::write(&inside, "")?;
        attach(&on_host(Utf8Path::new("/dev").join(name).as_path()), &inside)?;
        sys::restrict_mount(&inside, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC, Recursive::Yes)?;
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, Path::new("/dev").join(link))?;
    }
    let options = "newinstance,ptmxmode=0666,mode=620";
    sys::mount("devpts", Path::new("/dev/pts"), "devpts", libc::MS_NOSUID | libc::MS_NOEXEC, options)?;
    symlink("pts/ptmx", "/dev/ptmx")
}

/// Temporary files, home and shared memory lie in one file system, so that one limit holds for their sum.
fn private_folders(bytes: u64) -> io::Result<()> {
    let private = Path::new(PRIVATE);
    fs_err::create_dir(private)?;
    let options = format!("mode=0755,size={bytes},nr_inodes={}", (bytes / BYTES_PER_INODE).max(1024));
    sys::mount("tmpfs", private, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, &options)?;
    for (name, inside) in [("tmp", TEMPORARY), ("home", HOME), ("shm", "/dev/shm")] {
        let source = private.join(name);
        fs_err::create_dir(&source)?;
        fs_err::create_dir_all(inside)?;
        attach(&source, Path::new(inside))?;
    }
    sys::unmount(private)?;
    fs_err::remove_dir(private)
}

/// Read-only as a whole: a superuser's files under `/proc/sys` would be writable for a sandbox that was started by a superuser.
fn processes(spec: &Spec) -> Result<(), Refusal> {
    if !spec.proc {
        return Ok(());
    }
    let target = Path::new("/proc");
    fs_err::create_dir(target).walls("make /proc")?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    sys::mount("proc", target, "proc", flags, "").fault(Fault::Proc, "mount /proc")?;
    if spec.cap {
        forks::cap(spec.processes).fault(Fault::Cap, "cap the process numbers")?;
    }
    sys::restrict_mount(target, libc::MOUNT_ATTR_RDONLY, Recursive::Yes).walls("close /proc")
}

fn workspace_and_mounts(spec: &Spec) -> Result<(), Refusal> {
    let workspace = &spec.workspace;
    bind(&Bind { writable: true, ..workspace.clone() }).request(&format!("mount {}", workspace.inside))?;
    for part in spec.mounts.iter().filter(|part| part.inside.starts_with(&workspace.inside)) {
        make_point(part).request(&format!("make the mount point {}", part.inside))?;
    }
    if !workspace.writable {
        sys::restrict_mount(workspace.inside.as_std_path(), TAME | libc::MOUNT_ATTR_RDONLY, Recursive::Yes)
            .walls("close the workspace")?;
    }
    for part in &spec.mounts {
        bind(part).request(&format!("mount {} at {}", part.host, part.inside))?;
    }
    Ok(())
}

fn make_point(part: &Bind) -> io::Result<()> {
    let target = part.inside.as_std_path();
    if fs_err::metadata(on_host(&part.host))?.is_dir() {
        return make_folder(target);
    }
    make_parent(target)?;
    refuse_links(target)?;
    if target.exists() { Ok(()) } else { fs_err::write(target, "") }
}
