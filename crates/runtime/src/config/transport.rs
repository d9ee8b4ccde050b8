//! The section `[transport]`: which broker, and who is who there.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

/// A broker between processes: it rings for workers on other hosts, brings in other programs' messages, and tells them what
/// happened. Without one, workers ask the dashboard itself. It holds nothing that the ledger does not have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transport {
    /// `redis://host:6379`, `rediss://…`, `amqp://host:5672/vhost` or `amqps://…`, without user and password.
    pub url: Option<String>,
    /// The dashboard's user there; absent for the broker's default.
    pub user: Option<String>,
    pub password_file: Option<Utf8PathBuf>,
    /// The workers' user there, who needs no more than the hints. Whoever may write all of the broker can order Tasks.
    pub worker_user: Option<String>,
    pub worker_password_file: Option<Utf8PathBuf>,
    /// Certificates (PEM) that the broker's own may be signed by, beside those that the system trusts.
    pub ca_file: Option<Utf8PathBuf>,
    /// The name of the master, when `url` names Redis Sentinels: the first as a URL, further ones after commas.
    pub sentinel_master: Option<String>,
}

/// What speaks at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerKind {
    Redis,
    RabbitMq,
}

impl Transport {
    /// Whether workers are to listen there: when nobody needs a password, or they have one of their own.
    pub fn rings_for_workers(&self) -> bool {
        self.url.is_some() && (self.password_file.is_none() || self.worker_password_file.is_some())
    }

    /// Errors with a sentence about the first setting that cannot work. Addresses are not repeated: a password may be in one.
    pub(super) fn check(&self) -> Result<(), String> {
        let Some(url) = &self.url else {
            return if *self == Self::default() {
                Ok(())
            } else {
                Err("transport has settings and no transport.url, so there is no broker that they could be for".into())
            };
        };
        if url.contains(['@', '?', '#']) {
            return Err(
                "transport.url holds more than an address: use transport.user and transport.password_file".into()
            );
        }
        let Some(kind) = kind_of(url) else {
            return Err("transport.url begins with none of redis://, rediss://, amqp:// and amqps://".into());
        };
        if url.contains(',') && self.sentinel_master.is_none() && kind == BrokerKind::Redis {
            return Err(
                "transport.url names several servers: those are sentinels, and need the name of a master in transport.sentinel_master"
                    .into(),
            );
        }
        if self.sentinel_master.is_some() && kind == BrokerKind::RabbitMq {
            return Err("transport.sentinel_master is for Redis, and transport.url is not".into());
        }
        for (user, password, what) in [
            (&self.user, &self.password_file, "transport.user and transport.password_file"),
            (&self.worker_user, &self.worker_password_file, "transport.worker_user and transport.worker_password_file"),
        ] {
            if user.is_some() && password.is_none() {
                return Err(format!("{what} belong together: a user without a password is nobody"));
            }
        }
        Ok(())
    }
}

/// What a broker's address begins with says what it is.
pub fn kind_of(url: &str) -> Option<BrokerKind> {
    match url.split_once("://")?.0 {
        "redis" | "rediss" => Some(BrokerKind::Redis),
        "amqp" | "amqps" => Some(BrokerKind::RabbitMq),
        _ => None,
    }
}
