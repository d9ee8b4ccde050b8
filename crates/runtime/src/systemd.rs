//! What a service manager of systemd's kind hands over, and what it is told: passed sockets, readiness, the watchdog.
//!
//! Whether there is anything to hand over or to tell is read from [`Environment`]; the two libraries behind this module then
//! read `NOTIFY_SOCKET`, `LISTEN_FDS` and `LISTEN_PID` of the process themselves. Nothing else does.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use fettle_app::vitals::{Vital, Vitals};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::environment::Environment;
use crate::supervisor::Supervisor;

/// Names of passed sockets (`FileDescriptorName=`): of the dashboard its two, of the inference process its one.
pub const PUBLIC: &str = "public";
pub const INTERNAL: &str = "internal";
pub const GATEWAY: &str = "gateway";
/// Of three signs of life in a period, two may be late.
const FEEDS_PER_PERIOD: u32 = 3;

/// A passed socket that cannot be served. The process does not start: to listen elsewhere than the operator said would help
/// nobody.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("LISTEN_FDS is `{0}`, which is no number of sockets")]
    Count(String),
    #[error("{count} sockets were passed with the names `{names}`: each needs one, by FileDescriptorName=")]
    Names { count: usize, names: String },
    #[error("a socket named `{name}` was passed: FileDescriptorName= must be {}", listed(.known))]
    Unknown { name: String, known: &'static [&'static str] },
    #[error("two sockets named `{0}` were passed: only one can be served")]
    Twice(String),
    #[error("the passed socket `{0}` is not a TCP socket that listens (ListenStream= with an address and port)")]
    NotListening(String),
    #[error("the passed socket `{name}` cannot be used")]
    Unusable {
        name: String,
        #[source]
        source: std::io::Error,
    },
}

/// Sockets that were bound before this process began and live on after it, so that a restart refuses no connection.
#[derive(Debug, Default)]
pub struct PassedSockets(BTreeMap<String, TcpListener>);

impl PassedSockets {
    /// Takes what was passed to this process, which serves the names in `known`; nothing without `LISTEN_FDS` and our own
    /// `LISTEN_PID`. They listen, do not block, and are closed in programs that this process starts.
    ///
    /// Called once, before any other thread: the library takes `LISTEN_FDS` and `LISTEN_PID` out of the environment.
    pub fn take(environment: &Environment, known: &'static [&'static str]) -> Result<Self, SocketError> {
        let names = names(environment, std::process::id())?;
        let mut taken = Self::default();
        if names.is_empty() {
            return Ok(taken);
        }
        let mut passed = ListenFd::from_env();
        for (index, name) in names.into_iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(SocketError::Unknown { name, known });
            }
            if taken.0.contains_key(&name) {
                return Err(SocketError::Twice(name));
            }
            // It checks family and type; that somebody has called `listen` is ours to check.
            let Ok(Some(socket)) = passed.take_tcp_listener(index) else {
                return Err(SocketError::NotListening(name));
            };
            let unusable = |source| SocketError::Unusable { name: name.clone(), source };
            let listens = rustix::net::sockopt::socket_acceptconn(&socket).map_err(|e| unusable(e.into()))?;
            if !listens {
                return Err(SocketError::NotListening(name));
            }
            socket.set_nonblocking(true).map_err(unusable)?;
            taken.0.insert(name, socket);
        }
        Ok(taken)
    }

    /// The socket of this name, once.
    pub fn listener(&mut self, name: &str) -> Option<TcpListener> {
        self.0.remove(name)
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

/// One name for each socket that was passed to the process `own`, in the order of the sockets.
fn names(environment: &Environment, own: u32) -> Result<Vec<String>, SocketError> {
    // Meant for another process, which has started us without clearing its variables.
    if environment.find("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(own) {
        return Ok(Vec::new());
    }
    let Some(count) = environment.find("LISTEN_FDS") else { return Ok(Vec::new()) };
    let count: usize = count.parse().map_err(|_| SocketError::Count(count.to_owned()))?;
    let text = environment.find("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<String> = text.split(':').filter(|_| count > 0 && !text.is_empty()).map(str::to_owned).collect();
    if names.len() != count {
        return Err(SocketError::Names { count, names: text.to_owned() });
    }
    Ok(names)
}

/// The service manager, when it wants to hear from this process; else every word goes nowhere.
#[derive(Debug, Clone, Default)]
pub struct Manager {
    listens: bool,
    /// How long this process may be silent before it is killed.
    watchdog: Option<Duration>,
}

impl Manager {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn of(environment: &Environment) -> Self {
        let listens = environment.find("NOTIFY_SOCKET").is_some();
        let number = |name: &str| environment.find(name)?.parse::<u64>().ok();
        let ours =
            environment.find("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
        let period = number("WATCHDOG_USEC").filter(|&period| listens && ours && period > 0);
        Self { listens, watchdog: period.map(Duration::from_micros) }
    }

    /// Requests are answered from now on. `status` is one sentence for `systemctl status`.
    pub fn serving(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is being read again; [`Manager::serving`] ends it.
    pub fn reloading(&self) {
        let mut words = vec![NotifyState::Reloading, NotifyState::Status("Reading the configuration again")];
        // Only `Type=notify-reload` needs the time; without it such a manager would say that the reload failed.
        words.extend(NotifyState::monotonic_usec_now().ok());
        self.tell(&words);
    }

    /// What is being done is brought to an end. The last sign of life: from now on the time for stopping counts, and parts
    /// that have ended can prove nothing.
    pub fn stopping(&self) {
        self.tell(&[
            NotifyState::Stopping,
            NotifyState::Status("Letting go of what is under way"),
            NotifyState::Watchdog,
        ]);
    }

    /// Gives a sign of life three times in each period of the watchdog, as long as all `vitals` are well. A part of
    /// `supervisor`; nothing where there is no watchdog.
    pub fn feed_watchdog(&self, vitals: &Arc<Vitals>, supervisor: &Supervisor) {
        if let Some(period) = self.watchdog {
            let (manager, vitals, stop) = (self.clone(), vitals.clone(), supervisor.shutdown().clone());
            supervisor.spawn("the watchdog's feeder", async move { manager.feed(&vitals, period, &stop).await });
        }
    }

    async fn feed(&self, vitals: &Vitals, period: Duration, stop: &CancellationToken) {
        let mut ticks = interval(period / FEEDS_PER_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fed = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let ill: Vec<String> = vitals.observe().iter().filter(|vital| !vital.is_well()).map(told).collect();
            if ill.is_empty() {
                self.tell(&[NotifyState::Watchdog]);
                if !fed {
                    info!("every part comes round again; the watchdog is fed");
                }
            } else if fed {
                error!(
                    "{}; the watchdog is no longer fed, so this process is killed and started anew in {} s",
                    ill.join(", "),
                    period.as_secs()
                );
            }
            fed = ill.is_empty();
        }
    }

    /// A manager that cannot be reached does not keep us from working; if it matters to it, it acts by itself.
    fn tell(&self, words: &[NotifyState<'_>]) {
        if self.listens
            && let Err(error) = sd_notify::notify(words)
        {
            warn!(error = &error as &dyn std::error::Error, "could not reach the service manager (NOTIFY_SOCKET)");
        }
    }
}

fn told(vital: &Vital) -> String {
    format!("{} has not come round for {} s", vital.name, vital.silent.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(fds: &str, names: &str, pid: &str) -> Result<Vec<String>, String> {
        let pairs = [("LISTEN_FDS", fds), ("LISTEN_FDNAMES", names), ("LISTEN_PID", pid)];
        super::names(&Environment::from_pairs(pairs), 7).map_err(|error| error.to_string())
    }

    #[test]
    fn only_sockets_that_were_passed_to_this_very_process_are_taken() {
        assert_eq!(named("2", "public:internal", "7"), Ok(vec!["public".to_owned(), "internal".to_owned()]));
        assert_eq!(named("2", "public:internal", "8"), Ok(Vec::new()));
        assert_eq!(named("2", "public:internal", ""), Ok(Vec::new()));
        assert_eq!(named("0", "", "7"), Ok(Vec::new()));
        assert_eq!(named("", "public", "7"), Ok(Vec::new()));
    }

    #[test]
    fn a_count_that_does_not_fit_its_names_is_refused_with_a_sentence() {
        assert!(named("two", "public", "7").unwrap_err().contains("`two`"));
        assert!(named("2", "public", "7").unwrap_err().contains("2 sockets were passed with the names `public`"));
        assert!(named("1", "", "7").unwrap_err().contains("FileDescriptorName="));
    }

    #[test]
    fn there_is_a_watchdog_only_where_somebody_listens_and_means_this_process() {
        let own = std::process::id().to_string();
        let watchdog = |socket: &str, period: &str, pid: &str| {
            let pairs = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", period), ("WATCHDOG_PID", pid)];
            Manager::of(&Environment::from_pairs(pairs)).watchdog
        };
        assert_eq!(watchdog("/run/notify", "30000000", &own), Some(Duration::from_secs(30)));
        assert_eq!(watchdog("/run/notify", "30000000", ""), Some(Duration::from_secs(30)));
        assert_eq!(watchdog("/run/notify", "30000000", "1"), None);
        assert_eq!(watchdog("/run/notify", "30000000", "none"), None);
        assert_eq!(watchdog("/run/notify", "0", &own), None);
        assert_eq!(watchdog("", "30000000", &own), None);
    }
}
