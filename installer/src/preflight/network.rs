//! PF020 to PF023: ports, names. PF060 to PF063: proxies, firewall, what has to be reached.

use super::{Context, Mode};
use crate::facts::{HostFacts, Listener, NEEDS_ROOT, Protocol, ReceiptFacts, Unknown};
use crate::report::{Check, Checked, fail, pass, warn};

pub(super) const PORTS: &[Check<Context>] = &[
    Check { id: "PF020", name: "ports of the dashboard", run: dashboard },
    Check { id: "PF021", name: "ports of the workers", run: workers },
    Check { id: "PF022", name: "host name", run: host_name },
    Check { id: "PF023", name: "name servers", run: resolvers },
    Check { id: "PF024", name: "ports of inference", run: inference },
];
pub(super) const CHECKS: &[Check<Context>] = &[
    Check { id: "PF060", name: "proxy variables", run: proxies },
    Check { id: "PF061", name: "no_proxy", run: no_proxy },
    Check { id: "PF062", name: "firewall", run: firewall },
    Check { id: "PF063", name: "reachability", run: reach },
];

/// Worker `01` tells its health on the next one.
const WORKERS: u16 = 9200;
const FIREWALLS: [(&str, &str); 3] =
    [("ufw.service", "ufw"), ("firewalld.service", "firewalld"), ("nftables.service", "nftables")];

fn dashboard(facts: &HostFacts, context: &Context) -> Checked {
    let ports = [context.ports.public, context.ports.internal];
    free(facts, &ports, "Stop that process, or choose another port in server.listen or server.internal_listen.")
}

fn workers(facts: &HostFacts, context: &Context) -> Checked {
    let ports: Vec<u16> = (1..=u16::from(context.ports.workers)).map(|worker| WORKERS + worker).collect();
    free(facts, &ports, "Stop that process: the health of a worker is told on a port that cannot be chosen.")
}

fn inference(facts: &HostFacts, context: &Context) -> Checked {
    let Some(ports) = context.ports.inference else { return pass("not needed") };
    let remedy = "Stop that process, choose another port in gateway.listen (8485 tells health and cannot be chosen), or answer \
                  inference = false.";
    free(facts, &ports, remedy)
}

fn free(facts: &HostFacts, ports: &[u16], remedy: &str) -> Checked {
    let listeners = facts.listeners.get()?;
    let taken = listeners.iter().filter(|one| one.protocol == Protocol::Tcp && ports.contains(&one.port));
    let mut others: Vec<String> = Vec::new();
    let mut ours = 0;
    for listener in taken {
        if is_ours(facts, listener) {
            ours += 1;
            continue;
        }
        if may_be_ours(facts, listener)? {
            return Err(Unknown { why: format!("{NEEDS_ROOT} to see who holds port {}", listener.port) });
        }
        let who = match listener.process.get() {
            Ok(process) => process.clone(),
            Err(Unknown { why }) => format!("a process that is not known ({why})"),
        };
        let taken = format!("{} is taken by {who}", listener.port);
        if !others.contains(&taken) {
            others.push(taken);
        }
    }
    let list = || ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    match (others.is_empty(), ours) {
        (false, _) => fail(others.join("; "), remedy),
        (true, 0) => pass(format!("{} free", list())),
        (true, _) => pass(format!("{} in use by the Fettle that is here", list())),
    }
}

/// A service of ours, or systemd itself, which holds the sockets of one that is installed.
fn is_ours(facts: &HostFacts, listener: &Listener) -> bool {
    let installed = matches!(facts.installed.receipt.known(), Some(ReceiptFacts::Present { .. }));
    let process = listener.process.known().map(String::as_str).unwrap_or_default();
    installed && (process.starts_with("fettle") || process == "systemd (pid 1)")
}

/// Fettle seems to be installed, and neither the process nor the receipt can be seen.
fn may_be_ours(facts: &HostFacts, listener: &Listener) -> Result<bool, Unknown> {
    let hidden = listener.process.known().is_none() && facts.installed.receipt.known().is_none();
    Ok(hidden && !facts.names.paths.get()?.is_empty())
}

fn host_name(facts: &HostFacts, _: &Context) -> Checked {
    let name = facts.network.host_name.get()?;
    if ["localhost", "localhost.localdomain", "(none)", "nixos", "ubuntu", "debian"].contains(&name.as_str()) {
        return warn(
            format!("{name}, a name that many hosts have"),
            "Run `hostnamectl hostname <name>` with one of its own: logs and leases tell hosts apart by it.",
        );
    }
    pass(name.clone())
}

fn resolvers(facts: &HostFacts, _: &Context) -> Checked {
    let servers = facts.network.resolvers.get()?;
    if servers.is_empty() {
        return warn(
            "none in /etc/resolv.conf",
            "Name one there (or in systemd-resolved), unless forge and models are all in /etc/hosts.",
        );
    }
    pass(servers.join(", "))
}

fn proxy(facts: &HostFacts) -> Option<(&str, &str)> {
    let proxies = &facts.network.proxies;
    let mut names = ["https_proxy", "http_proxy", "all_proxy"].into_iter();
    names.find_map(|name| Some((name, proxies.get(name)?.as_str())))
}

fn proxies(facts: &HostFacts, _: &Context) -> Checked {
    match proxy(facts) {
        None => pass("none"),
        Some((name, value)) => warn(
            format!("{name} is {value} in this shell, which services do not see"),
            "Give it to them too: `systemctl edit fettle-dashboard.service fettle-worker@.service`, Environment=HTTPS_PROXY=… and NO_PROXY=….",
        ),
    }
}

fn no_proxy(facts: &HostFacts, _: &Context) -> Checked {
    if proxy(facts).is_none() {
        return pass("no proxy, so no exceptions");
    }
    let list = facts.network.proxies.get("no_proxy").map(String::as_str).unwrap_or_default();
    let names: Vec<&str> = list.split(',').map(str::trim).collect();
    let has = |wanted: &[&str]| names.iter().any(|name| *name == "*" || wanted.contains(name));
    if has(&["127.0.0.1", "127.0.0.0/8"]) && has(&["localhost", ".localhost"]) {
        return pass(list);
    }
    warn(
        format!("no_proxy is {}", if list.is_empty() { "empty" } else { list }),
        "Put localhost and 127.0.0.1 into NO_PROXY wherever the proxy is set: workers reach the dashboard there.",
    )
}

fn firewall(facts: &HostFacts, context: &Context) -> Checked {
    let units = facts.units.get()?;
    let active: Vec<&str> = FIREWALLS
        .iter()
        .filter(|(unit, _)| units.get(*unit).is_some_and(crate::facts::Unit::is_active))
        .map(|(_, name)| *name)
        .collect();
    let Some(name) = active.first() else { return pass("none of ufw, firewalld, nftables is active") };
    if context.mode == Mode::K3s {
        let networks = context.cluster.networks.join(" and ");
        return warn(
            format!("{name} is active, and pods and nodes talk through it"),
            format!(
                "Let {networks} through, ports 80 and 443 for people, and between nodes 6443/tcp, 10250/tcp, 2379-2380/tcp and 8472/udp; \
                 nothing else of a cluster has to be reached from elsewhere."
            ),
        );
    }
    let listen = facts.config.get()?.as_ref().map(|config| config.listen.as_str());
    let local = listen
        .is_none_or(|listen| listen.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback()));
    if local {
        return pass(format!("{name} is active; the dashboard listens on this host only"));
    }
    let port = context.ports.public;
    let how = match *name {
        "ufw" => format!("`ufw allow {port}/tcp`"),
        "firewalld" => format!("`firewall-cmd --permanent --add-port={port}/tcp && firewall-cmd --reload`"),
        _ => format!("a rule `tcp dport {port} accept`"),
    };
    warn(
        format!("{name} is active, and the dashboard is to be reached from elsewhere"),
        format!("Let port {port} through ({how}) if it does not pass yet; the forge's webhooks come in there."),
    )
}

fn reach(facts: &HostFacts, _: &Context) -> Checked {
    let tried = &facts.network.reach;
    if tried.is_empty() {
        return Err(Unknown { why: "no address was named, so none was tried".to_owned() });
    }
    let failed: Vec<String> = tried
        .iter()
        .filter(|(_, attempt)| !attempt.ok)
        .map(|(address, attempt)| format!("{address}: {}", attempt.said))
        .collect();
    if failed.is_empty() {
        return pass(tried.keys().cloned().collect::<Vec<_>>().join(", "));
    }
    let remedy = if proxy(facts).is_some() {
        "Nothing has to be done if they are reached through the proxy only; else open the way in the firewall between."
    } else {
        "Look at name servers, routes and the firewall between; installing needs no network, the forge and models do."
    };
    warn(failed.join("; "), remedy)
}
