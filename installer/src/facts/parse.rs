//! The forms in which the system tells what is asked of it. Text in, values out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Group, Memory, Protocol, Unit, User};

/// `KEY=value` lines of a shell, as in `/etc/os-release`.
pub(super) fn assignments(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().trim_matches(['"', '\'']).to_owned())).collect()
}

/// `/proc/meminfo`.
pub(super) fn memory(text: &str) -> Option<Memory> {
    let find = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Memory {
        total_bytes: find("MemTotal")?,
        available_bytes: find("MemAvailable")?,
        swap_bytes: find("SwapTotal").unwrap_or(0),
    })
}

/// A socket that waits for connections or datagrams, with the inode by which its process is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) protocol: Protocol,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) inode: u64,
}

/// `/proc/net/{tcp,tcp6,udp,udp6}`.
pub(super) fn sockets(text: &str, protocol: Protocol) -> Vec<Socket> {
    // TCP_LISTEN; an unconnected UDP socket is in TCP_CLOSE.
    let wanted = match protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
    };
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if *fields.get(3)? != wanted {
            return None;
        }
        let (address, port) = fields.get(1)?.split_once(':')?;
        let (address, port) = (address_of(address)?, u16::from_str_radix(port, 16).ok()?);
        Some(Socket { protocol, address, port, inode: fields.get(9)?.parse().ok()? })
    };
    text.lines().skip(1).filter_map(parse).collect()
}

/// `/proc/net/route`: networks other than the default one, as `10.42.0.0/24`. Bridges and tunnels of k3s itself are left out.
pub(super) fn routes(text: &str) -> Option<Vec<String>> {
    const OF_K3S: [&str; 2] = ["cni0", "flannel"];
    let word = |text: &str| Some(Ipv4Addr::from(u32::from_str_radix(text, 16).ok()?.to_ne_bytes()));
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (name, network, mask) = (*fields.first()?, word(fields.get(1)?)?, word(fields.get(7)?)?);
        Some((name.to_owned(), network, u32::from(mask).count_ones()))
    };
    let routes: Option<Vec<_>> = text.lines().skip(1).map(parse).collect();
    let others =
        routes?.into_iter().filter(|(name, _, bits)| *bits > 0 && !OF_K3S.iter().any(|of| name.starts_with(of)));
    let mut networks: Vec<String> = others.map(|(_, network, bits)| format!("{network}/{bits}")).collect();
    networks.sort();
    networks.dedup();
    Some(networks)
}

/// The kernel prints each 32-bit word in the order of its own processor.
fn address_of(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: Vec<u8> = words.concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
        }
        _ => None,
    }
}

/// `/proc/driver/nvidia/version`. Older modules name no architecture between "Module" and the version.
pub(super) fn driver(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let is_version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// NVIDIA's names among the character devices of `/proc/devices`.
pub(super) fn classes(text: &str) -> Vec<String> {
    let characters = text.lines().skip_while(|line| !line.starts_with("Character")).skip(1);
    let names = characters.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().nth(1));
    names.filter(|name| name.starts_with("nvidia")).map(str::to_owned).collect()
}

/// `/etc/passwd`.
pub(super) fn users(text: &str, wanted: &[&str]) -> BTreeMap<String, User> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let name = *fields.first()?;
        let user = User { uid: fields.get(2)?.parse().ok()?, shell: (*fields.get(6)?).to_owned() };
        wanted.contains(&name).then(|| (name.to_owned(), user))
    };
    text.lines().filter_map(parse).collect()
}

/// `/etc/group`.
pub(super) fn groups(text: &str, wanted: &[&str]) -> BTreeMap<String, Group> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let name = *fields.first()?;
        let members = fields.get(3)?.split(',').map(str::trim).filter(|member| !member.is_empty());
        let group = Group { gid: fields.get(2)?.parse().ok()?, members: members.map(str::to_owned).collect() };
        wanted.contains(&name).then(|| (name.to_owned(), group))
    };
    text.lines().filter_map(parse).collect()
}

/// What `systemctl show` says of several units: blocks of `Key=value`.
pub(super) fn units(text: &str) -> BTreeMap<String, Unit> {
    let parse = |block: &str| {
        let values = assignments(block);
        let value = |key: &str| values.get(key).cloned().unwrap_or_default();
        let unit = Unit {
            load: value("LoadState"),
            active: value("ActiveState"),
            enabled: value("UnitFileState"),
            watchdog_s: span_s(&value("WatchdogUSec")),
            needs_reload: value("NeedDaemonReload") == "yes",
        };
        let id = value("Id");
        (!id.is_empty() && unit.load != "not-found").then_some((id, unit))
    };
    text.split("\n\n").filter_map(parse).collect()
}

/// `1min 30s`, as systemd prints it; whole seconds, and 1 for anything shorter.
fn span_s(text: &str) -> u64 {
    let word = |word: &str| {
        let digits = word.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(word.len());
        let (number, unit) = word.split_at(digits);
        let number: u64 = number.parse().ok()?;
        Some(match unit {
            "d" => number * 86_400,
            "h" => number * 3_600,
            "min" => number * 60,
            "s" => number,
            _ => u64::from(number > 0),
        })
    };
    text.split_whitespace().filter_map(word).sum()
}

/// The first line of `systemctl --version`: `systemd 252 (252.39-1~deb12u1)`.
pub(super) fn systemd_version(text: &str) -> Option<u32> {
    let version = text.lines().next()?.strip_prefix("systemd ")?;
    let digits = version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// A process that holds an flock on the inode, from `/proc/locks`.
pub(super) fn lock_holder(text: &str, inode: u64) -> Option<u32> {
    let suffix = format!(":{inode}");
    let line = text.lines().find(|line| line.split_whitespace().nth(5).is_some_and(|at| at.ends_with(&suffix)))?;
    line.split_whitespace().nth(4)?.parse().ok()
}

/// An address of a proxy without the credentials that it may hold.
pub(super) fn without_credentials(value: &str) -> String {
    let (scheme, rest) = value.split_once("://").map_or(("", value), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_of_both_namings_are_read() {
        // Texts as quoted in nix-community/nixGL #121 and in NVIDIA's README of the proprietary module.
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  525.60.11  Release Build  (archlinux-builder@localhost)  \nGCC version:  gcc version 12.2.0 (GCC) \n";
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n";
        assert_eq!(driver(open).as_deref(), Some("525.60.11"));
        assert_eq!(driver(closed).as_deref(), Some("535.183.01"));
        assert_eq!(driver("GCC version:  gcc version 12.2.0"), None);
    }

    #[test]
    fn a_listening_socket_is_told_from_a_connected_one() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 34567 1 0 100 0 0 10 0\n\
            1: 0100007F:1F91 0100007F:D431 01 00000000:00000000 00:00000000 00000000   998        0 34568 1 0 100 0 0 10 0\n";
        let expected = Socket {
            protocol: Protocol::Tcp,
            address: Ipv4Addr::from(u32::from_ne_bytes([127, 0, 0, 1]).to_ne_bytes()).into(),
            port: 8080,
            inode: 34567,
        };
        if cfg!(target_endian = "little") {
            assert_eq!(sockets(text, Protocol::Tcp), [expected]);
        }
        let six = "head\n 0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7\n";
        if cfg!(target_endian = "little") {
            assert_eq!(sockets(six, Protocol::Tcp)[0].address, Ipv6Addr::LOCALHOST);
        }
    }

    #[test]
    fn units_and_their_watchdogs_are_read_and_absent_ones_left_out() {
        let text = "Id=fettle-dashboard.service\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\nWatchdogUSec=1min 30s\nNeedDaemonReload=no\n\n\
            Id=k3s.service\nLoadState=not-found\nActiveState=inactive\nUnitFileState=\n";
        let units = units(text);
        assert_eq!(units.keys().collect::<Vec<_>>(), ["fettle-dashboard.service"]);
        let unit = &units["fettle-dashboard.service"];
        assert!(unit.is_there() && unit.is_active() && !unit.needs_reload);
        assert_eq!(unit.watchdog_s, 90);
        assert_eq!([span_s("500ms"), span_s("0"), span_s("infinity"), span_s("30s")], [1, 0, 0, 30]);
    }

    #[test]
    fn a_proxy_loses_its_password_on_the_way_into_a_record() {
        assert_eq!(without_credentials("http://me:secret@proxy.example:3128"), "http://proxy.example:3128");
        assert_eq!(without_credentials("me:secret@proxy.example:3128"), "proxy.example:3128");
        assert_eq!(without_credentials("localhost,127.0.0.1"), "localhost,127.0.0.1");
    }

    #[test]
    fn the_holder_of_a_lock_is_found_by_inode() {
        let text = "1: FLOCK  ADVISORY  WRITE 812 fe:01:131077 0 EOF\n2: POSIX  ADVISORY  WRITE 9 00:1a:77 0 EOF\n";
        assert_eq!(lock_holder(text, 131_077), Some(812));
        assert_eq!(lock_holder(text, 31_077), None);
    }
}
