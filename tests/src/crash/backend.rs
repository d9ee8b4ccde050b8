//! What stands between dashboard and worker while they are killed, and how an order gets to them.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use fettle_broker::Access;
use serde_json::json;

use crate::brokers::rabbitmq::RabbitServer;
use crate::brokers::redis::{RedisServer, Settings};
use crate::world::{MAINTAINER, TestBox};

#[derive(Clone)]
pub enum Backend {
    /// Workers wait at the ledger itself.
    Embedded,
    Redis,
    RabbitMq(Arc<RabbitServer>),
}

/// A broker that no other case uses, for as long as it is held.
pub(super) enum Broker {
    None,
    Redis(Box<RedisServer>),
    RabbitMq(String),
}

impl Backend {
    /// `embedded`, `redis` or `rabbitmq`. Errors when it is none of them, or not installed here.
    pub async fn named(name: &str) -> anyhow::Result<Self> {
        match name {
            "embedded" => Ok(Self::Embedded),
            "redis" => match RedisServer::start(Settings::default()).await {
                Some(_) => Ok(Self::Redis),
                None => bail!("there is no redis-server here"),
            },
            "rabbitmq" => Ok(Self::RabbitMq(RabbitServer::shared().await?)),
            other => bail!("there is no backend `{other}`, only embedded, redis and rabbitmq"),
        }
    }

    pub fn is_broker(&self) -> bool {
        !matches!(self, Self::Embedded)
    }

    pub(super) async fn broker(&self) -> anyhow::Result<Broker> {
        Ok(match self {
            Self::Embedded => Broker::None,
            Self::Redis => {
                let server = RedisServer::start(Settings::default()).await.context("redis-server has gone")?;
                Broker::Redis(Box::new(server))
            }
            Self::RabbitMq(server) => Broker::RabbitMq(server.url(&server.vhost().await?)),
        })
    }
}

impl Broker {
    pub(super) fn url(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Redis(server) => Some(server.url()),
            Self::RabbitMq(url) => Some(url.clone()),
        }
    }

    /// Orders the Task as another program would.
    pub(super) async fn order(&self, fettle: &TestBox, issue: u64) -> anyhow::Result<()> {
        let url = self.url().context("an order needs a broker")?;
        let repo = fettle.forge.clone_url(&fettle.repo);
        let order = json!({ "repo_url": repo, "issue_id": issue, "trigger_user": MAINTAINER });
        fettle_broker::submit(&Access { url, ..Access::default() }, &Bytes::from(order.to_string())).await
    }
}
