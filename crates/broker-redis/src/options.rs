//! What a client of Redis is made with.

use std::time::Duration;

use secrecy::SecretString;

/// Where Redis is and who asks.
///
/// A user with an ACL needs the keys `{fettle}:hints`, `agent-tasks`, `agent-tasks.dead` and `fettle.events`, and the commands
/// `MULTI`, `EXEC`, `XADD`, `XREADGROUP`, `XGROUP CREATE`, `XACK`, `XDEL`, `XLEN`, `XPENDING` and `XCLAIM`. With `INFO` it is
/// known whether the server evicts; with `EVAL`, `XINFO CONSUMERS` and `XGROUP DELCONSUMER` dead consumers are removed.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// `redis://host:6379/0`, `rediss://…` over TLS, or `redis+unix:///path`. With `sentinel_master` the sentinels instead,
    /// separated by commas, the scheme with the first at least, port 26379 unless given. User and password in it count
    /// where those below are absent, and never for sentinels.
    pub url: String,
    /// The ACL user; without it a password is the default user's.
    pub user: Option<String>,
    pub password: Option<SecretString>,
    /// Certificates in PEM that a `rediss` server is trusted by, instead of the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// The name under which the sentinels know the master.
    pub sentinel_master: Option<String>,
    /// What the sentinels themselves ask for; most ask for nothing.
    pub sentinel_password: Option<SecretString>,
    /// Names this process among the consumers of a group. Must be new at each start: under a used name a process would take
    /// for its own what its predecessor held.
    pub process: String,
    pub limits: Limits,
}

impl RedisOptions {
    pub fn new(url: impl Into<String>, process: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            ca_pem: None,
            sentinel_master: None,
            sentinel_password: None,
            process: process.into(),
            limits: Limits::default(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// An entry that was delivered this long ago and not settled is anybody's. A hint is held for one request for a lease
    /// and a message for one commit, both seconds; and the port promises a hint again within a minute.
    pub unsettled_after: Duration,
    /// A consumer that holds nothing and asked for nothing this long is removed. Processes are busy for hours between two
    /// hints; removed by mistake, a consumer is simply made again.
    pub forgotten_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unsettled_after: Duration::from_secs(45), forgotten_after: Duration::from_secs(3600) }
    }
}

impl Limits {
    pub fn for_tests() -> Self {
        Self { unsettled_after: Duration::from_secs(1), forgotten_after: Duration::from_secs(2) }
    }

    /// Between two looks for entries that nobody settled; with `unsettled_after` it stays below the promised minute.
    pub(crate) fn between_claims(&self) -> Duration {
        self.unsettled_after / 9
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RedisOptionsError {
    /// The text never holds the address, which may hold a password.
    #[error("the address of Redis cannot be understood: {0}")]
    Address(String),
    #[error("the certificates to trust Redis by cannot be used: {0}")]
    Certificates(String),
}
