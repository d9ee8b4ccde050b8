//! Where the broker is, and who we are there.

use std::time::Duration;

use fettle_app::ports::transport::{TransportError, X};
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::{AMQPScheme, AMQPUri};
use secrecy::{ExposeSecret as _, SecretString};
use url::{Host, Url};

/// Seconds: a broker that has fallen silent is noticed within twice that.
const HEARTBEAT_S: u16 = 10;

#[derive(Clone)]
pub struct RabbitOptions {
    /// `amqp://host:port/vhost`, or `amqps://…` for TLS; percent-encoded, the vhost is `/` when there is none.
    pub url: String,
    /// Comes before the one in the URL. Neither: `guest`.
    pub user: Option<String>,
    /// Comes before the one in the URL. Neither: `guest`.
    pub password: Option<SecretString>,
    /// Certificates (PEM) to trust beside the system's.
    pub ca_pem: Option<String>,
}

/// How long what was handed out may stay unsettled.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Then it comes again.
    pub unsettled: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // The port promises a minute for hints; intake's commit takes milliseconds, or its ledger is away.
        Self { unsettled: Duration::from_secs(30) }
    }
}

/// Options that were understood.
#[derive(Clone)]
pub(crate) struct Target {
    uri: AMQPUri,
    password: SecretString,
    ca_pem: Option<String>,
}

impl Target {
    /// Refuses an address that is none. Connects to nothing.
    pub(crate) fn of(options: &RabbitOptions) -> X<Self> {
        // What is wrong is told without the address: it may hold a password.
        let refused = |why: &str| TransportError::Refused(format!("the broker's URL cannot be used: {why}"));
        let url = Url::parse(&options.url).map_err(|error| refused(&error.to_string()))?;
        if !matches!(url.scheme(), "amqp" | "amqps") {
            return Err(refused("it begins with neither amqp:// nor amqps://"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err(refused("it names no host")),
        };
        let mut uri: AMQPUri = options.url.parse().map_err(|why: String| refused(&why))?;
        uri.authority.host = host;
        if uri.vhost.is_empty() {
            uri.vhost = "/".to_owned();
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        if let Some(user) = &options.user {
            uri.authority.userinfo.username.clone_from(user);
        }
        let in_url = SecretString::from(std::mem::take(&mut uri.authority.userinfo.password));
        let password = options.password.clone().unwrap_or(in_url);
        Ok(Self { uri, password, ca_pem: options.ca_pem.clone() })
    }

    /// With the password in it.
    pub(crate) fn uri(&self) -> AMQPUri {
        let mut uri = self.uri.clone();
        self.password.expose_secret().clone_into(&mut uri.authority.userinfo.password);
        uri
    }

    pub(crate) fn tls(&self) -> Option<OwnedTLSConfig> {
        let encrypted = self.uri.scheme == AMQPScheme::AMQPS;
        encrypted.then(|| OwnedTLSConfig { identity: None, cert_chain: self.ca_pem.clone() })
    }

    /// For people: without credentials.
    pub(crate) fn place(&self) -> String {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        format!("{scheme}://{}:{}, vhost {vhost}", authority.host, authority.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> X<Target> {
        Target::of(&RabbitOptions { url: url.to_owned(), user: None, password: None, ca_pem: None })
    }

    #[test]
    fn an_address_is_understood() {
        for (url, place, user, password) in [
            ("amqp://broker", "amqp://broker:5672, vhost /", "guest", "guest"),
            ("amqp://broker/", "amqp://broker:5672, vhost /", "guest", "guest"),
            ("amqps://broker/ci%2Fnight", "amqps://broker:5671, vhost ci/night", "guest", "guest"),
            ("amqp://me:pass%40word@10.0.0.1:25672/x", "amqp://10.0.0.1:25672, vhost x", "me", "pass@word"),
            ("amqp://[::1]:9/x", "amqp://::1:9, vhost x", "guest", "guest"),
        ] {
            let target = target(url).unwrap();
            let user_info = target.uri().authority.userinfo;
            assert_eq!(target.place(), place);
            assert_eq!((user_info.username.as_str(), user_info.password.as_str()), (user, password));
        }
    }

    #[test]
    fn credentials_beside_the_address_come_first() {
        let options = RabbitOptions {
            url: "amqp://me:old@broker".to_owned(),
            user: Some("fettle".to_owned()),
            password: Some("new".into()),
            ca_pem: None,
        };
        let uri = Target::of(&options).unwrap().uri();
        assert_eq!(
            (uri.authority.userinfo.username.as_str(), uri.authority.userinfo.password.as_str()),
            ("fettle", "new")
        );
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_it() {
        for url in
            ["", "broker:5672", "http://u:hunter2@broker", "amqp://", "amqp:u:hunter2", "amqp://u:hunter2@b:port"]
        {
            let Err(TransportError::Refused(why)) = target(url) else { panic!("{url}") };
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
