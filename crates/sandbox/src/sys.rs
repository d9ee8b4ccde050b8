//! The system calls that no safe library in this graph offers, one small function each. Nothing here decides anything.

#![expect(unsafe_code, reason = "namespaces, mounts, fork and descriptor passing exist only as raw system calls")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_ulong, c_void};

fn check(returned: c_int) -> io::Result<c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn check_long(returned: libc::c_long) -> io::Result<libc::c_long> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn text(path: impl AsRef<Path>) -> io::Result<CString> {
    Ok(CString::new(path.as_ref().as_os_str().as_bytes())?)
}

pub(crate) fn effective_ids() -> (u32, u32) {
    // SAFETY: both calls only read and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

pub(crate) fn page_bytes() -> u64 {
    // SAFETY: sysconf only reads.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// The newest landlock ABI of this kernel; 0 when there is none.
pub(crate) fn landlock_abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with the version flag the call takes no pointer and changes nothing.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<c_void>(), 0usize, VERSION) };
    u32::try_from(abi).unwrap_or(0)
}

pub(crate) fn drop_groups() -> io::Result<()> {
    // SAFETY: an empty list is never read.
    check(unsafe { libc::setgroups(0, ptr::null()) }).map(drop)
}

pub(crate) fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: no pointer is passed; the helper has one thread.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

pub(crate) enum Fork {
    Parent(i32),
    Child,
}

/// Only for the helper, which has one thread: no lock can be held by a thread that the child lacks.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the calling process has a single thread, so the child may allocate and lock.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends a forked child without the exit handlers of its parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    NoChildren,
    NoneYet,
    Child { pid: i32, status: i32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Block,
    Poll,
}

/// Collects one ended child; any of them when `pid` is -1.
pub(crate) fn reap(pid: i32, wait: Wait) -> io::Result<Reaped> {
    let flags = match wait {
        Wait::Block => 0,
        Wait::Poll => libc::WNOHANG,
    };
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(pid, &raw mut status, flags) }) {
            Ok(0) => return Ok(Reaped::NoneYet),
            Ok(pid) => return Ok(Reaped::Child { pid, status }),
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(Reaped::NoChildren),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

pub(crate) fn kill(pid: i32, signal: c_int) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = check_long(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us alone; descriptors fit in an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) readable: bool,
    /// The other side has gone.
    pub(crate) closed: bool,
}

/// Waits until one of the descriptors is readable or closed; nothing within `timeout` is no error. One answer each, in their order.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<Ready>> {
    poll(fds, libc::POLLIN, timeout)
}

/// Waits until the other end of a socket is closed by everybody. False: not within `timeout`.
pub(crate) fn wait_hangup(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    Ok(poll(&[fd], 0, timeout)?.iter().any(|ready| ready.closed))
}

fn poll(fds: &[BorrowedFd<'_>], events: i16, timeout: Duration) -> io::Result<Vec<Ready>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }).collect();
    let timeout = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the array outlives the call and its length is given.
    match check(unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) }) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::Interrupted => polled.iter_mut().for_each(|p| p.revents = 0),
        Err(e) => return Err(e),
    }
    let ready = |p: libc::pollfd| Ready {
        readable: p.revents & libc::POLLIN != 0,
        closed: p.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0,
    };
    Ok(polled.into_iter().map(ready).collect())
}

/// A second descriptor for the same thing, closed on exec.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

/// Makes descriptor `number` (0, 1 or 2) mean what `fd` means.
pub(crate) fn put_at(fd: BorrowedFd<'_>, number: c_int) -> io::Result<()> {
    // SAFETY: standard descriptors are owned by nobody in this process.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Makes the descriptor `over`, whoever owns it, mean what `fd` means; closed on exec.
pub(crate) fn put_over(fd: BorrowedFd<'_>, over: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open; the owner of `over` keeps a valid one.
    check(unsafe { libc::dup3(fd.as_raw_fd(), over.as_raw_fd(), libc::O_CLOEXEC) }).map(drop)
}

/// Closes everything above standard error, for a process that has just started and owns none of it.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: no pointer is passed, and nothing in this process owns a descriptor above standard error yet.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) }).map(drop)
}

/// Everything above standard error is closed when the next program starts.
pub(crate) fn close_others_on_exec() -> io::Result<()> {
    const CLOEXEC: u32 = 4;
    // SAFETY: no pointer is passed, and marking a descriptor takes it from no owner.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, CLOEXEC) }).map(drop)
}

fn prctl(option: c_int, argument: c_ulong) -> io::Result<c_int> {
    // SAFETY: only called with options whose arguments are plain numbers.
    check(unsafe { libc::prctl(option, argument, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) })
}

/// The caller dies when its parent does. A change of credentials takes this back.
pub(crate) fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong).map(drop)
}

pub(crate) fn become_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map(drop)
}

pub(crate) fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Nobody without capabilities may look into this process or stop it by a debugger.
pub(crate) fn hide_memory() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0).map(drop)
}

/// Gives up every capability for good, for a superuser too: the bounding set is emptied and user 0 means nothing any more.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    const LAST_POSSIBLE: c_ulong = 63;
    // SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP, each with its lock, and the lock of SECBIT_KEEP_CAPS.
    const NO_ROOT: c_ulong = 0b10_1111;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // Without CAP_SETPCAP these are refused; then there is nothing to lose, and no-new-privileges keeps it so.
    let _ = prctl(libc::PR_SET_SECUREBITS, NO_ROOT);
    for capability in 0..=LAST_POSSIBLE {
        let _ = prctl(libc::PR_CAPBSET_DROP, capability);
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong)?;
    let header = Header { version: VERSION_3, pid: 0 };
    let none = [Sets { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 reads one header and two sets, which both outlive the call.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) }).map(drop)
}

pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Signals as a fresh login would have them: nothing blocked, nothing ignored.
pub(crate) fn reset_signals() {
    // SAFETY: default actions need no handler, and the empty set outlives the call.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    CoreFile,
    OpenFiles,
    Processes,
}

/// For good. A lower limit that holds already stays.
pub(crate) fn set_limit(limit: Limit, value: u64) -> io::Result<()> {
    change_limit(limit, |hard| (value.min(hard), value.min(hard)))
}

/// Until it is set again.
pub(crate) fn set_soft_limit(limit: Limit, value: u64) -> io::Result<()> {
    change_limit(limit, |hard| (value.min(hard), hard))
}

/// `new` makes the soft and the hard limit of the present hard one.
fn change_limit(limit: Limit, new: impl FnOnce(u64) -> (u64, u64)) -> io::Result<()> {
    let resource = match limit {
        Limit::CoreFile => libc::RLIMIT_CORE,
        Limit::OpenFiles => libc::RLIMIT_NOFILE,
        Limit::Processes => libc::RLIMIT_NPROC,
    };
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structures outlive both calls.
    unsafe {
        check(libc::getrlimit(resource, &raw mut now))?;
        let (rlim_cur, rlim_max) = new(now.rlim_max);
        let new = libc::rlimit { rlim_cur, rlim_max };
        check(libc::setrlimit(resource, &raw const new)).map(drop)
    }
}

/// Keeps the caller on `wanted` of the processors it has now, starting at a place that depends on `seed` to spread the load.
pub(crate) fn narrow_processors(wanted: u32, seed: u32) -> io::Result<()> {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: both sets are plain memory of the given size, and every index is below CPU_SETSIZE.
    unsafe {
        let mut now: libc::cpu_set_t = std::mem::zeroed();
        check(libc::sched_getaffinity(0, size, &raw mut now))?;
        let allowed: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &now)).collect();
        let wanted = wanted.max(1) as usize;
        if allowed.len() <= wanted {
            return Ok(());
        }
        let start = (seed as usize).wrapping_mul(wanted) % allowed.len();
        let mut new: libc::cpu_set_t = std::mem::zeroed();
        for &cpu in allowed.iter().cycle().skip(start).take(wanted) {
            libc::CPU_SET(cpu, &mut new);
        }
        check(libc::sched_setaffinity(0, size, &raw const new)).map(drop)
    }
}

/// Replaces the caller's program; returns only to say why it could not.
pub(crate) fn execute(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let argv: Vec<_> = argv.iter().map(|a| a.as_ptr()).chain([ptr::null()]).collect();
    let env: Vec<_> = env.iter().map(|e| e.as_ptr()).chain([ptr::null()]).collect();
    // SAFETY: both lists end with null, and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: the bytes outlive the call and their length is given.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Switches the loopback device of the caller's network namespace on.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: the request is zeroed, its name is short and ends with zero, and it outlives both calls; the descriptor is new.
    unsafe {
        let fd = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let socket = OwnedFd::from_raw_fd(fd);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)).map(drop)
    }
}

pub(crate) fn mount(source: &str, target: &Path, kind: &str, flags: c_ulong, data: &str) -> io::Result<()> {
    let (source, target, kind, data) = (text(source)?, text(target)?, text(kind)?, text(data)?);
    // SAFETY: all four strings end with zero and outlive the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })
        .map(drop)
}

/// Adds `attributes` (`MOUNT_ATTR_*`) to the mount at `target`, and to all beneath it when `recursive`.
pub(crate) fn restrict_mount(target: &Path, attributes: u64, recursive: Recursive) -> io::Result<()> {
    let target = text(target)?;
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = match recursive {
        Recursive::Yes => libc::AT_RECURSIVE,
        Recursive::No => 0,
    };
    // SAFETY: path and structure outlive the call, and the structure's size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check_long(done).map(drop)
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Recursive {
    Yes,
    No,
}

pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    let target = text(target)?;
    // SAFETY: the string ends with zero and outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

pub(crate) fn pivot_root(new: &Path, old: &Path) -> io::Result<()> {
    let (new, old) = (text(new)?, text(old)?);
    // SAFETY: both strings end with zero and outlive the call.
    check_long(unsafe { libc::syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()) }).map(drop)
}

/// Goes before all ordinary processes, as far as the host allows: real-time where it may, else the best priority. Refused to
/// ordinary users. Children keep at most the latter, until they say something else.
pub(crate) fn go_first() -> io::Result<()> {
    const BEST: c_int = -20;
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure outlives the call.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const lowest) })
        // SAFETY: no pointer is passed.
        .or_else(|_| check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BEST) }))
        .map(drop)
}

/// Lets everybody else go first.
pub(crate) fn be_nice() -> io::Result<()> {
    const NICER: c_int = 5;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICER) }).map(drop)
}

/// Room for exactly one descriptor beside a message, aligned as the kernel wants it.
#[repr(align(8))]
struct Ancillary([u8; 32]);

/// Sends `bytes` with one descriptor.
pub(crate) fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], passed: BorrowedFd<'_>) -> io::Result<()> {
    let mut room = Ancillary([0; 32]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the message points to buffers that outlive the call; the header lies inside `room`, which holds CMSG_SPACE(4) bytes.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = room.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as _;
        libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(passed.as_raw_fd());
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent == bytes.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives up to `buffer.len()` bytes and the descriptor that came with them, if any.
pub(crate) fn receive_with(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut room = Ancillary([0; 32]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the message points to buffers that outlive the call; the kernel fills at most what the lengths allow, and a
    // descriptor it reports is new and owned by nobody else.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = room.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as u32) as _;
        let received = libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        let Ok(received) = usize::try_from(received) else { return Err(io::Error::last_os_error()) };
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let passed =
            (!header.is_null() && (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS)
                .then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<c_int>().read_unaligned()));
        Ok((received, passed))
    }
}
