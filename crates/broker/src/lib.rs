//! The one broker of a configuration, whichever it is. Contacts nobody: a broker that is away is found when it is back.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use camino::Utf8Path;
use fettle_app::ports::clock::IdSource as _;
use fettle_app::ports::transport::{Broker, Transport as Bell};
use fettle_broker_rabbitmq::{Limits, RabbitAnnouncer, RabbitInbox, RabbitOptions, RabbitTransport};
use fettle_broker_redis::{Redis, RedisOptions};
use fettle_runtime::config::{BrokerKind, Transport, kind_of};
use fettle_runtime::{
    secrets,
    system::{self, RandomIds},
};
use secrecy::SecretString;

/// Who connects, and where to.
#[derive(Clone, Default)]
pub struct Access {
    /// May hold user and password, which those below come before.
    pub url: String,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    /// PEM.
    pub ca: Option<String>,
    pub sentinel_master: Option<String>,
}

/// `None` without a broker in the configuration.
pub fn of_dashboard(config: &Transport) -> Result<Option<Broker>> {
    let Some(url) = &config.url else { return Ok(None) };
    let access = access(config, url, config.user.as_ref(), config.password_file.as_deref())?;
    Ok(Some(match kind(url)? {
        BrokerKind::Redis => {
            let redis = Redis::new(&redis(&access))?;
            Broker {
                bell: Arc::new(redis.transport()),
                inbox: Arc::new(redis.inbox()),
                announcer: Arc::new(redis.announcer()),
                is_rabbitmq: false,
            }
        }
        BrokerKind::RabbitMq => {
            let options = rabbit(&access);
            Broker {
                bell: Arc::new(RabbitTransport::new(&options, Limits::default())?),
                inbox: Arc::new(RabbitInbox::new(&options, Limits::default())?),
                announcer: Arc::new(RabbitAnnouncer::new(&options)?),
                is_rabbitmq: true,
            }
        }
    }))
}

/// The bell that a worker listens to. `None`: it asks the dashboard alone, since there is no broker or none of its own user.
pub fn of_worker(config: &Transport) -> Result<Option<Arc<dyn Bell>>> {
    let Some(url) = config.url.as_ref().filter(|_| config.rings_for_workers()) else { return Ok(None) };
    let access = access(config, url, config.worker_user.as_ref(), config.worker_password_file.as_deref())?;
    Ok(Some(match kind(url)? {
        BrokerKind::Redis => Arc::new(Redis::new(&redis(&access))?.transport()),
        BrokerKind::RabbitMq => Arc::new(RabbitTransport::new(&rabbit(&access), Limits::default())?),
    }))
}

/// Puts a message into `agent-tasks`, as another program would. The broker has confirmed it when this returns.
pub async fn submit(access: &Access, body: &Bytes) -> Result<()> {
    let put = match kind(&access.url)? {
        BrokerKind::Redis => fettle_broker_redis::submit(&redis(access), body).await,
        BrokerKind::RabbitMq => fettle_broker_rabbitmq::submit(&rabbit(access), body).await,
    };
    Ok(put?)
}

fn kind(url: &str) -> Result<BrokerKind> {
    match kind_of(url) {
        Some(kind) => Ok(kind),
        // Not repeated: a password may be in it.
        None => bail!("the broker's address begins with none of redis://, rediss://, amqp:// and amqps://"),
    }
}

fn access(config: &Transport, url: &str, user: Option<&String>, password: Option<&Utf8Path>) -> Result<Access> {
    let ca = config.ca_file.as_deref().map(fs_err::read_to_string).transpose();
    Ok(Access {
        url: url.to_owned(),
        user: user.cloned(),
        password: password.map(secrets::read).transpose().context("while reading the broker's password")?,
        ca: ca.context("while reading transport.ca_file")?,
        sentinel_master: config.sentinel_master.clone(),
    })
}

fn redis(access: &Access) -> RedisOptions {
    // A process that starts again is another consumer: what its predecessor held is not its own.
    let process = format!("{}-{}", system::process_name(), RandomIds.uuid().simple());
    RedisOptions {
        user: access.user.clone(),
        password: access.password.clone(),
        ca_pem: access.ca.clone().map(String::into_bytes),
        sentinel_master: access.sentinel_master.clone(),
        ..RedisOptions::new(&access.url, process)
    }
}

fn rabbit(access: &Access) -> RabbitOptions {
    RabbitOptions {
        url: access.url.clone(),
        user: access.user.clone(),
        password: access.password.clone(),
        ca_pem: access.ca.clone(),
    }
}
