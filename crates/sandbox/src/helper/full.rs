//! Level `full`: the namespaces and the init process of the sandbox.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};

use super::{Step, command, root};
use crate::spec::{PROXY_PORT, Refusal, Report, Spec, SpecNetwork};
use crate::sys::{self, Fork, Reaped, Wait};

/// The user inside. Not 0: tests that check permissions, and tools that change owners, behave as for any developer.
pub(crate) const USER_INSIDE: u32 = 1000;

/// Moves the caller into new namespaces; its next child is the init of the process namespace.
/// The caller keeps its view of the files, because it still has to count the processes in `/proc`.
/// Gives the listener of the proxy when there is to be one.
pub(super) fn unshare(spec: &Spec) -> Result<Option<TcpListener>, Refusal> {
    let (user, group) = sys::effective_ids();
    // Only a superuser may; for anybody else the groups show up as "nobody" inside.
    let _ = sys::drop_groups();
    let network = match spec.network {
        SpecNetwork::Host => 0,
        SpecNetwork::None | SpecNetwork::Proxy => libc::CLONE_NEWNET,
    };
    sys::unshare(libc::CLONE_NEWUSER).walls("create a user namespace")?;
    write("/proc/self/setgroups", "deny").walls("deny setgroups")?;
    write("/proc/self/uid_map", &format!("{USER_INSIDE} {user} 1")).walls("map the user")?;
    write("/proc/self/gid_map", &format!("{USER_INSIDE} {group} 1")).walls("map the group")?;
    let others = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    sys::unshare(others | network).walls("create namespaces")?;
    sys::set_host_name("sandbox").walls("name the host")?;
    if spec.network == SpecNetwork::Host {
        return Ok(None);
    }
    sys::loopback_up().walls("switch loopback on")?;
    if spec.network == SpecNetwork::None {
        return Ok(None);
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, PROXY_PORT)).walls("listen for the proxy").map(Some)
}

fn write(file: &str, text: &str) -> std::io::Result<()> {
    // Not fs_err::write: these files refuse to be created or truncated, and one write must carry all.
    use std::io::Write;
    File::options().write(true).open(file)?.write_all(text.as_bytes())
}

/// Process 1 of the sandbox. Never returns; when it ends the kernel kills all other processes of the namespace.
pub(super) fn init(spec: &Spec, mut says: File) -> ! {
    let report = match enter(spec, &says) {
        Ok(status) => Report::Ended { status },
        Err(refusal) => Report::Refused(refusal),
    };
    command::tell(&mut says, &report);
    sys::exit_now(0)
}

/// The command's status.
fn enter(spec: &Spec, says: &File) -> Result<i32, Refusal> {
    // Should the host run out of memory, the sandbox goes first; failing that, as before.
    let _ = write("/proc/self/oom_score_adj", "500");
    sys::die_with_parent().walls("die with the parent")?;
    root::build(spec)?;
    sys::hide_memory().walls("hide the init process")?;
    let (refused, refuses) = std::io::pipe().walls("make a pipe")?;
    match sys::fork().walls("fork")? {
        Fork::Child => {
            drop(refused);
            command::become_it(spec, File::from(std::os::fd::OwnedFd::from(refuses)))
        }
        Fork::Parent(child) => {
            drop(refuses);
            sys::no_new_privileges().walls("refuse new privileges")?;
            sys::drop_capabilities().walls("drop capabilities")?;
            // Dropping capabilities took the first request back.
            sys::die_with_parent().walls("die with the parent")?;
            if command::reader_is_gone(says) {
                sys::exit_now(0);
            }
            let status = collect_until(child)?;
            let mut line = String::new();
            if std::io::Read::read_to_string(&mut { refused }, &mut line).is_ok()
                && let Ok(Report::Refused(refusal)) = serde_json::from_str(&line)
            {
                return Err(refusal);
            }
            Ok(status)
        }
    }
}

/// Collects whatever ends until `child` has.
fn collect_until(child: i32) -> Result<i32, Refusal> {
    loop {
        match sys::reap(-1, Wait::Block).walls("wait for the command")? {
            Reaped::Child { pid, status } if pid == child => return Ok(status),
            Reaped::Child { .. } | Reaped::NoneYet => {}
            Reaped::NoChildren => {
                return Err(std::io::Error::other("the command was lost")).walls("wait for the command");
            }
        }
    }
}
