//! What the programs stand on while they are killed: a broker or none between them, a file or a database for the ledger.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use fettle_app::ports::transport::Transport as Bell;
use fettle_broker::Access;
use fettle_runtime::config::Transport;
use serde_json::json;

use crate::brokers::rabbitmq::RabbitServer;
use crate::brokers::redis::{RedisServer, Settings};
use crate::postgres;
use crate::world::{MAINTAINER, TestBox};

/// What all cases of a matrix run on.
#[derive(Clone)]
pub struct Backend {
    between: Between,
    database: bool,
}

#[derive(Clone)]
enum Between {
    /// Workers wait at the ledger itself.
    Nothing,
    Redis,
    RabbitMq(Arc<RabbitServer>),
}

/// What one case stands on; no other case uses it, for as long as it is held.
pub(super) struct Services {
    broker: Broker,
    database: Option<postgres::Server>,
}

enum Broker {
    None,
    Redis(Box<RedisServer>),
    RabbitMq { url: String, own: Option<Box<OwnNode>> },
}

/// A node of RabbitMQ that nobody else uses.
struct OwnNode {
    server: RabbitServer,
    vhost: String,
}

const DATABASE: &str = "fettle";
/// RabbitMQ's own patience with a message that is not taken, 30 minutes, as the tests' leases are to real ones.
const COMPRESSED: &str = "consumer_timeout = 60000\n";
/// The queue of RabbitMQ that hints hang in.
const HINTS: &str = "fettle.hints";

impl Backend {
    /// `embedded`, `redis` or `rabbitmq`, and `sqlite` or `postgres`. Errors when it is none of them, or not installed here.
    pub async fn named(between: &str, ledger: &str) -> anyhow::Result<Self> {
        let between = match between {
            "embedded" => Between::Nothing,
            "redis" => match RedisServer::start(Settings::default()).await {
                Some(_) => Between::Redis,
                None => bail!("there is no redis-server here"),
            },
            "rabbitmq" => Between::RabbitMq(RabbitServer::shared().await?),
            other => bail!("there is no backend `{other}`, only embedded, redis and rabbitmq"),
        };
        let database = match ledger {
            "sqlite" => false,
            "postgres" if postgres::own(DATABASE).await?.is_some() => true,
            "postgres" => bail!("PostgreSQL is not installed here"),
            other => bail!("there is no ledger `{other}`, only sqlite and postgres"),
        };
        Ok(Self { between, database })
    }

    /// What needs nothing installed.
    pub fn embedded() -> Self {
        Self { between: Between::Nothing, database: false }
    }

    pub fn has_broker(&self) -> bool {
        !matches!(self.between, Between::Nothing)
    }

    pub fn has_database(&self) -> bool {
        self.database
    }

    pub(super) async fn services(&self) -> anyhow::Result<Services> {
        let broker = match &self.between {
            Between::Nothing => Broker::None,
            Between::Redis => {
                let server = RedisServer::start(Settings::default()).await.context("redis-server has gone")?;
                Broker::Redis(Box::new(server))
            }
            Between::RabbitMq(server) => Broker::RabbitMq { url: server.url(&server.vhost().await?), own: None },
        };
        self.with(broker).await
    }

    /// As [`Backend::services`], with a broker that can be killed.
    pub(super) async fn services_of_its_own(&self) -> anyhow::Result<Services> {
        let Between::RabbitMq(_) = &self.between else { return self.services().await };
        let server = RabbitServer::start_with(COMPRESSED).await?;
        let vhost = server.vhost().await?;
        let url = server.url(&vhost);
        self.with(Broker::RabbitMq { url, own: Some(Box::new(OwnNode { server, vhost })) }).await
    }

    async fn with(&self, broker: Broker) -> anyhow::Result<Services> {
        let database = match self.database {
            true => Some(postgres::own(DATABASE).await?.context("PostgreSQL has gone")?),
            false => None,
        };
        Ok(Services { broker, database })
    }
}

impl Services {
    pub(super) fn none() -> Self {
        Self { broker: Broker::None, database: None }
    }

    pub(super) fn broker(&self) -> Option<String> {
        match &self.broker {
            Broker::None => None,
            Broker::Redis(server) => Some(server.url()),
            Broker::RabbitMq { url, .. } => Some(url.clone()),
        }
    }

    pub(super) fn store(&self) -> Option<String> {
        Some(self.database.as_ref()?.tcp_url(DATABASE))
    }

    /// Kills the database's server and starts it again on what it left.
    pub(super) async fn restart_database(&mut self) -> anyhow::Result<()> {
        let server = self.database.as_mut().context("the ledger is in no database")?;
        server.kill()?;
        server.run().await
    }

    /// Kills the broker and starts it again.
    pub(super) async fn restart_broker(&self) -> anyhow::Result<()> {
        match &self.broker {
            Broker::Redis(server) => {
                server.kill().await;
                server.go_on().await;
                Ok(())
            }
            Broker::RabbitMq { own: Some(own), .. } => own.server.restart().await,
            Broker::RabbitMq { own: None, .. } => bail!("this node is others' as well"),
            Broker::None => bail!("there is no broker"),
        }
    }

    /// All that hangs there is gone.
    pub(super) async fn wipe_broker(&self) -> anyhow::Result<()> {
        match &self.broker {
            Broker::Redis(server) => server.flush().await,
            Broker::RabbitMq { own: Some(own), .. } => {
                own.server.ctl(&["purge_queue", "--vhost", &own.vhost, HINTS]).await?;
            }
            Broker::RabbitMq { own: None, .. } => bail!("this node is others' as well"),
            Broker::None => bail!("there is no broker"),
        }
        Ok(())
    }

    /// Rings where workers listen, as a dashboard does.
    pub(super) fn bell(&self) -> anyhow::Result<Arc<dyn Bell>> {
        let config = Transport { url: self.broker(), ..Transport::default() };
        Ok(fettle_broker::of_dashboard(&config)?.context("there is no broker")?.bell)
    }

    /// Orders the Task as another program would.
    pub(super) async fn order(&self, fettle: &TestBox, issue: u64) -> anyhow::Result<()> {
        let url = self.broker().context("an order needs a broker")?;
        let repo = fettle.forge.clone_url(&fettle.repo);
        let order = json!({ "repo_url": repo, "issue_id": issue, "trigger_user": MAINTAINER });
        fettle_broker::submit(&Access { url, ..Access::default() }, &Bytes::from(order.to_string())).await
    }
}
