//! Where things are on a host, and what belongs to whom.

use camino::Utf8PathBuf;

pub const RELEASES: &str = "/opt/fettle/releases";
/// Leads to the release that runs.
pub const CURRENT: &str = "/opt/fettle/current";
/// On everybody's search path.
pub const COMMANDS: &str = "/usr/local/bin";
pub const CONFIG_DIR: &str = "/etc/fettle";
pub const CONFIG: &str = "/etc/fettle/fettle.toml";
/// The answers of the last `apply`.
pub const ANSWERS: &str = "/etc/fettle/installer.toml";
pub const SECRETS: &str = "/etc/fettle/secrets";
pub const UNITS: &str = "/etc/systemd/system";
pub const STATE: &str = "/var/lib/fettle";
pub const BACKUPS: &str = "/var/lib/fettle/backups";
pub const LOGS: &str = "/var/log/fettle";
pub const RUNTIME: &str = "/run/fettle";
/// When the timer of backups last elapsed, as systemd remembers it.
pub const TIMER_STAMP: &str = "/var/lib/systemd/timers/stamp-fettle-backup.timer";
pub const SLICES: [&str; 3] = ["fettle-worker.slice", ENGINES, "fettle.slice"];
pub const HOME: &str = "/var/lib/fettle-installer";

/// Beside what a restoration exchanges, on the same file system: what is new and what is replaced wait in it.
pub const STAGING: &str = ".restore";

pub const DASHBOARD: &str = "fettle-dashboard.service";
pub const TARGET: &str = "fettle.target";
pub const SOCKETS: [&str; 2] = ["fettle-dashboard.socket", "fettle-dashboard-internal.socket"];
pub const INFERENCE: &str = "fettle-inference.service";
pub const INFERENCE_SOCKET: &str = "fettle-inference.socket";
/// Engines are units in it. Stopped, it ends them all.
pub const ENGINES: &str = "fettle-engine.slice";
/// What begins so belongs to the inference service, in each folder of a release that has units, users or rules.
pub const INFERENCE_FILES: [&str; 2] = ["fettle-inference", "fettle-engine"];
/// Where the inference service tells its health.
pub const INFERENCE_ADDRESS: &str = "http://127.0.0.1:8485";
/// Where it serves models unless the configuration says something else.
pub const GATEWAY: &str = "127.0.0.1:8484";
pub const BACKUP_TIMER: &str = "fettle-backup.timer";
/// Runs the dashboard; may read the configuration.
pub const USER: &str = "fettle";
pub const WORKER_USER: &str = "fettle-worker";
/// Runs the gateway and the engines; may read the configuration.
pub const INFERENCE_USER: &str = "fettle-inference";
/// Two digits name an instance, and its port.
pub const MAX_WORKERS: u8 = 99;

pub fn worker(instance: u8) -> String {
    format!("fettle-worker@{instance:02}.service")
}

/// Where a worker tells its health.
pub fn worker_address(instance: u8) -> String {
    format!("http://127.0.0.1:92{instance:02}")
}

/// The service that a connection to the socket starts.
pub fn behind(socket: &str) -> Option<&'static str> {
    match socket {
        INFERENCE_SOCKET => Some(INFERENCE),
        socket if SOCKETS.contains(&socket) => Some(DASHBOARD),
        _ => None,
    }
}

/// The address at which this host itself reaches a listener.
pub fn local(listen: &str) -> String {
    match listen.parse::<std::net::SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("127.0.0.1:{}", address.port()),
        _ => listen.to_owned(),
    }
}

pub fn unit_file(name: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(UNITS).join(name)
}

pub fn drop_in(unit: &str, name: &str) -> (Utf8PathBuf, Utf8PathBuf) {
    let folder = unit_file(&format!("{unit}.d"));
    let file = folder.join(name);
    (folder, file)
}
