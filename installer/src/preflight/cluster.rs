//! PF016, PF025, PF038, PF064, PF074, PF075: what only a cluster on this host needs.

use super::{Context, GIB, size};
use crate::facts::{HostFacts, Protocol};
use crate::k3s::layout::DATA;
use crate::k3s::neighbour;
use crate::k3s::network::Net;
use crate::report::{Check, Checked, fail, pass, warn};

pub(super) const CHECKS: &[Check<Context>] = &[
    Check { id: "PF016", name: "space for k3s", run: space },
    Check { id: "PF025", name: "ports of k3s", run: ports },
    Check { id: "PF038", name: "container toolkit", run: toolkit },
    Check { id: "PF064", name: "networks of pods", run: networks },
    Check { id: "PF074", name: "other clusters", run: clusters },
    Check { id: "PF075", name: "WSL", run: wsl },
];
/// State, backups, ports, users, polkit, Docker socket, sandbox and neighbours of services on the host; in a cluster they are a pod's
/// affair.
pub(super) const OF_SERVICES: [&str; 16] = [
    "PF010", "PF011", "PF012", "PF020", "PF021", "PF024", "PF040", "PF044", "PF045", "PF050", "PF051", "PF052",
    "PF053", "PF061", "PF070", "PF072",
];

/// Images of k3s, its add-ons and ours, twice while they are loaded, and volumes of a first week.
const SPACE_LEAST: u64 = 30 * GIB;
const SPACE_COMFORT: u64 = 100 * GIB;
/// The API, the kubelet, Traefik, etcd; a node that joins has only the kubelet's.
const PORTS: [u16; 7] = [80, 443, 6443, 10250, 2379, 2380, 2381];
const PORTS_OF_AGENT: [u16; 3] = [80, 443, 10250];
/// VXLAN of flannel, UDP.
const OVERLAY: u16 = 8472;

fn space(facts: &HostFacts, _: &Context) -> Checked {
    let disk = facts.disk(DATA)?;
    let free = format!("{} free for {DATA}", size(disk.free_bytes));
    if disk.read_only || disk.no_exec {
        return fail(
            format!("the file system of {DATA} is read-only or mounted noexec"),
            format!("Mount one at {DATA} that can be written to and from which programs may run."),
        );
    }
    match disk.free_bytes {
        bytes if bytes < SPACE_LEAST => fail(
            free,
            format!("Make room for at least {}, or mount a larger file system at {DATA}.", size(SPACE_LEAST)),
        ),
        bytes if bytes < SPACE_COMFORT => {
            warn(free, format!("Plan for {} or more: images and volumes grow.", size(SPACE_COMFORT)))
        }
        _ => pass(free),
    }
}

fn ports(facts: &HostFacts, context: &Context) -> Checked {
    if context.cluster.ours {
        return pass("in use by the k3s that is here");
    }
    let wanted: &[u16] = if context.cluster.serves { &PORTS } else { &PORTS_OF_AGENT };
    let listeners = facts.listeners.get()?;
    let taken = listeners.iter().filter(|one| match one.protocol {
        Protocol::Tcp => wanted.contains(&one.port),
        Protocol::Udp => one.port == OVERLAY,
    });
    let mut found: Vec<String> = taken
        .map(|one| {
            let who = one.process.known().map_or("a process that is not known", String::as_str);
            format!("{} is taken by {who}", one.port)
        })
        .collect();
    found.dedup();
    if found.is_empty() {
        return pass(format!(
            "{} and {OVERLAY}/udp free",
            wanted.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
        ));
    }
    fail(
        found.join("; "),
        "Stop these processes, such as a web server on 80 and 443, or use another host: k3s has these ports and no others.",
    )
}

fn toolkit(facts: &HostFacts, context: &Context) -> Checked {
    if facts.gpu.driver.get()?.is_none() {
        return if context.cluster.gpus {
            warn(
                "no NVIDIA driver here, while k3s.gpus asks for GPUs",
                "Join a node that has some, or install the driver first.",
            )
        } else {
            pass("no GPU here")
        };
    }
    if facts.has_program("nvidia-container-runtime")? {
        return pass("nvidia-container-runtime is there");
    }
    fail(
        "NVIDIA's driver is there, and nvidia-container-runtime is not",
        "Install the package nvidia-container-toolkit: k3s looks for that program and gives pods no GPU without it.",
    )
}

fn networks(facts: &HostFacts, context: &Context) -> Checked {
    let wanted: Vec<Net> = context.cluster.networks.iter().filter_map(|text| Net::parse(text)).collect();
    if let [pods, services] = wanted[..]
        && pods.overlaps(services)
    {
        return fail(
            context.cluster.networks.join(" and "),
            "Choose two networks that have nothing in common: k3s.cluster_cidr and k3s.service_cidr of the answers.",
        );
    }
    if context.cluster.ours {
        return pass(context.cluster.networks.join(", "));
    }
    let routes = facts.kubernetes.routes.get()?;
    let collides = routes
        .iter()
        .find(|route| Net::parse(route).is_some_and(|route| wanted.iter().any(|wanted| wanted.overlaps(route))));
    match collides {
        None => pass(context.cluster.networks.join(", ")),
        Some(route) => fail(
            format!("a route of this host leads to {route}, which pods or services would have"),
            "Choose others with k3s.cluster_cidr and k3s.service_cidr in the answers: they cannot be changed later.",
        ),
    }
}

fn clusters(facts: &HostFacts, context: &Context) -> Checked {
    facts.units.get()?;
    facts.kubernetes.paths.get()?;
    match neighbour(facts, context.cluster.ours) {
        None => pass("none"),
        Some(who) => fail(
            format!("{who} is on this host and not ours"),
            "It is left alone. Install Fettle's chart (charts/fettle) into that cluster with helm, or use another host.",
        ),
    }
}

fn wsl(facts: &HostFacts, _: &Context) -> Checked {
    match facts.wsl()? {
        None => pass("this is no WSL"),
        Some(version) => warn(
            format!("this is WSL {version}"),
            "Use it for trying out alone: addresses change at each start, Windows may end it at any time, and nobody has tried a cluster here.",
        ),
    }
}
