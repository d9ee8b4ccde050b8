//! Where the database is, and as whom it is asked.

use std::str::FromStr as _;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::open::OpenError;

/// A database of a PostgreSQL server.
#[derive(Debug, Clone)]
pub struct Database {
    /// `postgres://host:5432/database`; user and password may be in it, and those below come before them.
    pub url: String,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub tls: Tls,
}

/// How the connection is kept from others.
#[derive(Debug, Clone)]
pub enum Tls {
    /// What the address says (`?sslmode=`); encrypted if the server offers it, and not if it does not.
    AsAddressed,
    Off,
    /// Encrypted, and the server's certificate names the host of the address.
    Verify {
        /// PEM; absent: public authorities.
        ca: Option<String>,
    },
}

impl Database {
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), user: None, password: None, tls: Tls::AsAddressed }
    }

    pub(crate) fn options(&self) -> Result<PgConnectOptions, OpenError> {
        let mut options = PgConnectOptions::from_str(&self.url).map_err(|error| OpenError::Address(error.into()))?;
        if let Some(user) = &self.user {
            options = options.username(user);
        }
        if let Some(password) = &self.password {
            options = options.password(password.expose_secret());
        }
        Ok(match &self.tls {
            Tls::AsAddressed => options,
            Tls::Off => options.ssl_mode(PgSslMode::Disable),
            Tls::Verify { ca: None } => options.ssl_mode(PgSslMode::VerifyFull),
            Tls::Verify { ca: Some(pem) } => {
                options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert_from_pem(pem.clone().into_bytes())
            }
        })
    }
}
