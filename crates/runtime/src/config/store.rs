//! The section `[store]`: where state is kept.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

/// Where state is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Ledger, blobs, mirrors and keys; `--data-dir` comes before it.
    pub data_dir: Option<Utf8PathBuf>,
    /// `postgres://host:5432/database`, without user and password: the ledger is in PostgreSQL, which several dashboards can
    /// share. `postgres:///database` is the server of this machine, by its socket. Absent: a file in the data folder.
    pub url: Option<String>,
    pub user: Option<String>,
    pub password_file: Option<Utf8PathBuf>,
    /// Whether the server has to prove by a certificate that it is the one that `url` names. Without an answer it has to, unless
    /// it is on this machine.
    pub tls: Option<Tls>,
    /// Certificates (PEM) that the server's own may be signed by, instead of those of public authorities.
    pub ca_file: Option<Utf8PathBuf>,
    /// Connections of this dashboard, beside one to listen on; all dashboards' together stay below the server's limit.
    pub connections: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    Verify,
    /// Whoever listens in on the network reads every Task and the password.
    Off,
}

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
/// Fewer, and a slow read keeps heartbeats waiting.
const MIN_CONNECTIONS: u32 = 4;

impl Store {
    /// Whether the connection is encrypted and the server's name proven.
    pub fn is_verified(&self) -> bool {
        self.tls.map_or_else(|| self.ca_file.is_some() || !self.is_here(), |tls| tls == Tls::Verify)
    }

    /// The server is on this machine, as far as its address tells.
    fn is_here(&self) -> bool {
        let Some(url) = &self.url else { return true };
        let rest = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme)).unwrap_or(url);
        let address = rest.split('/').next().unwrap_or_default();
        // A name of IPv6 stands in brackets, since it has colons itself.
        let host =
            if address.starts_with('[') { address.split_inclusive(']').next() } else { address.split(':').next() };
        matches!(host, Some("" | "localhost" | "127.0.0.1" | "[::1]"))
    }

    /// Errors with a sentence about the first setting that cannot work. The address is not repeated: a password may be in it.
    pub(super) fn check(&self) -> Result<(), String> {
        let Some(url) = &self.url else {
            let alone = Self { data_dir: self.data_dir.clone(), ..Self::default() };
            return if *self == alone {
                Ok(())
            } else {
                Err("store has settings of a database and no store.url, so there is none that they could be for".into())
            };
        };
        if url.contains(['@', '?', '#']) {
            return Err(
                "store.url holds more than an address: use store.user, store.password_file and store.tls".into()
            );
        }
        let Some(rest) = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme)) else {
            return Err("store.url does not begin with postgres://".into());
        };
        if rest.split_once('/').is_none_or(|(_, database)| database.is_empty() || database.contains('/')) {
            return Err("store.url names no database; it reads like postgres://host:5432/fettle".into());
        }
        if self.password_file.is_some() && self.user.is_none() {
            return Err("store.password_file is nobody's without store.user".into());
        }
        if self.tls == Some(Tls::Off) && self.ca_file.is_some() {
            return Err("store.ca_file is of no use while store.tls is `off`".into());
        }
        if self.connections.is_some_and(|connections| connections < MIN_CONNECTIONS) {
            return Err(format!("store.connections is below {MIN_CONNECTIONS}: heartbeats would wait for each other"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(url: &str) -> Store {
        Store { url: Some(url.to_owned()), ..Store::default() }
    }

    #[test]
    fn a_server_elsewhere_proves_its_name_unless_somebody_wants_it_otherwise() {
        for here in
            ["postgres:///f", "postgres://localhost/f", "postgresql://127.0.0.1:5433/f", "postgres://[::1]:5432/f"]
        {
            assert!(!store(here).is_verified(), "{here}");
        }
        for elsewhere in
            ["postgres://db/f", "postgres://db1:5432/f", "postgres://localhost.evil:5432/f", "postgres://10.0.0.127/f"]
        {
            assert!(store(elsewhere).is_verified(), "{elsewhere}");
            assert!(!Store { tls: Some(Tls::Off), ..store(elsewhere) }.is_verified());
        }
        assert!(Store { ca_file: Some("ca.pem".into()), ..store("postgres://localhost/f") }.is_verified());
    }
}
