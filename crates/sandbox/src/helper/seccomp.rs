//! The system calls that no command gets: the wide doors of the kernel, and those that would lead out of the other walls.

use std::collections::BTreeMap;

use fettle_app::ports::sandbox::SandboxLevel;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use crate::spec::{Fault, Refusal, Spec, SpecNetwork};

/// From this landlock ABI on, abstract UNIX sockets of processes outside cannot be reached.
const SCOPED_ABI: u32 = 6;

/// Refused whatever the arguments.
const DENIED: &[i64] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    OPEN_TREE_ATTR,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_vhangup,
];

/// Shared with the whole host when there is no namespace for them.
const DENIED_WITHOUT_NAMESPACES: &[i64] = &[libc::SYS_shmget, libc::SYS_msgget, libc::SYS_semget, libc::SYS_mq_open];

/// Since Linux 6.15 and not in libc yet; such new calls have one number on all architectures.
const OPEN_TREE_ATTR: i64 = 467;

/// `TIOCSTI` and `TIOCLINUX`, whose type in libc differs between C libraries; their values do not.
const TYPE_INTO: u64 = 0x5412;
const CONSOLE_CONTROL: u64 = 0x541c;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sockets {
    None,
    Internet,
    InternetAndUnix,
}

/// Binds the calling process and its children. Needs no-new-privileges.
pub(super) fn install(spec: &Spec) -> Result<(), Refusal> {
    let programs = programs(spec.level, sockets(spec)).map_err(|e| refusal(&e))?;
    programs.iter().try_for_each(|program| apply_filter(program)).map_err(|e| refusal(&e))
}

fn refusal(error: &dyn std::error::Error) -> Refusal {
    Refusal { fault: Fault::Walls, step: "apply seccomp".to_owned(), detail: error.to_string(), errno: None }
}

fn sockets(spec: &Spec) -> Sockets {
    match (spec.level, spec.network) {
        (SandboxLevel::Full, SpecNetwork::None | SpecNetwork::Proxy) => Sockets::InternetAndUnix,
        (SandboxLevel::Full, SpecNetwork::Host) if spec.landlock_abi >= SCOPED_ABI => Sockets::InternetAndUnix,
        // Abstract sockets of the host share its network namespace; path-named ones are not held by an older landlock.
        (SandboxLevel::Full | SandboxLevel::Landlock, SpecNetwork::Host) => Sockets::Internet,
        (SandboxLevel::Landlock, SpecNetwork::None | SpecNetwork::Proxy) => Sockets::None,
    }
}

fn programs(level: SandboxLevel, sockets: Sockets) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let mut denied: Rules = DENIED.iter().map(|&call| (call, Vec::new())).collect();
    if level == SandboxLevel::Landlock {
        denied.extend(DENIED_WITHOUT_NAMESPACES.iter().map(|&call| (call, Vec::new())));
    }
    let new_user = SeccompCmpOp::MaskedEq(libc::CLONE_NEWUSER as u64);
    denied.insert(libc::SYS_unshare, vec![argument(0, new_user.clone(), libc::CLONE_NEWUSER as u64)?]);
    denied.insert(libc::SYS_clone, vec![argument(0, new_user, libc::CLONE_NEWUSER as u64)?]);
    // Typing into somebody's terminal.
    denied.insert(
        libc::SYS_ioctl,
        vec![argument(1, SeccompCmpOp::Eq, TYPE_INTO)?, argument(1, SeccompCmpOp::Eq, CONSOLE_CONTROL)?],
    );
    // The flags of clone3 lie in memory, where a filter cannot look; a C library falls back to clone.
    let missing: Rules = [(libc::SYS_clone3, Vec::new())].into();
    let families: Rules = [(libc::SYS_socket, refused_families(sockets)?)].into();

    let mut programs = vec![
        compile(denied, libc::EPERM)?,
        compile(missing, libc::ENOSYS)?,
        compile(families, if sockets == Sockets::None { libc::EACCES } else { libc::EAFNOSUPPORT })?,
    ];
    if cfg!(target_arch = "x86_64") {
        programs.push(refuse_x32());
    }
    Ok(programs)
}

/// An empty list refuses every socket.
fn refused_families(sockets: Sockets) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let mut allowed = vec![libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    match sockets {
        Sockets::None => return Ok(Vec::new()),
        Sockets::Internet => {}
        Sockets::InternetAndUnix => allowed.push(libc::AF_UNIX),
    }
    let other =
        allowed.into_iter().map(|family| condition(0, SeccompCmpOp::Ne, family as u64)).collect::<Result<_, _>>()?;
    // C libraries list addresses through NETLINK_ROUTE; the other protocols of that family reach deep into the kernel.
    let netlink = vec![
        condition(0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?,
        condition(2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE as u64)?,
    ];
    Ok(vec![SeccompRule::new(other)?, SeccompRule::new(netlink)?])
}

fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::Error> {
    Ok(SeccompRule::new(vec![condition(index, operator, value)?])?)
}

fn condition(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::Error> {
    Ok(SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?)
}

fn compile(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::Error> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), architecture)?.try_into()?)
}

/// The x32 variants of all calls have numbers of their own, which the lists above do not match.
fn refuse_x32() -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS; the number lies at offset 0
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| seccompiler::sock_filter { code, jt, jf, k };
    vec![
        step(LOAD_NUMBER, 0, 0, 0),
        step(JUMP_IF_AT_LEAST, 0, 1, X32_BIT),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
