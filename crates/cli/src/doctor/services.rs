//! What the configuration names beside this machine: the ledger's database, and the broker.

use std::time::Duration;

use fettle_app::ports::chain;
use fettle_app::ports::transport::TransportError;
use fettle_runtime::config::Config;
use fettle_store_postgres::{OpenError, PostgresLedger};

use super::Check;

/// Either answers at once, or is not there.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// `None`: the ledger is a file.
pub(super) async fn store(config: &Config) -> Option<Check> {
    const ID: &str = "store";
    let database = match fettle_dashboard::database(&config.store) {
        Ok(database) => database?,
        Err(error) => return Some(Check::fail(ID, format!("{error:#}"), "correct the file that [store] names")),
    };
    let url = &database.url;
    let examined = tokio::time::timeout(ANSWER_LIMIT, PostgresLedger::examine(&database)).await;
    Some(match examined {
        Ok(Ok(())) => Check::ok(ID, format!("{url} answers and has the ledger's schema")),
        Ok(Err(error @ OpenError::NotMigrated { .. })) => {
            Check::fail(ID, chain(&error), "run `fettle-dashboard migrate` with this configuration")
        }
        Ok(Err(error @ OpenError::TooNew { .. })) => Check::fail(ID, chain(&error), "upgrade Fettle on this machine"),
        Ok(Err(error)) => {
            let remedy = "correct store.url, store.user, store.password_file or store.tls, or start the server";
            Check::fail(ID, format!("{url}: {}", chain(&error)), remedy)
        }
        Err(_) => {
            let sentence = format!("{url} did not answer within {} s", ANSWER_LIMIT.as_secs());
            Check::fail(ID, sentence, "start the server, or correct store.url")
        }
    })
}

/// `None`: there is none.
pub(super) async fn broker(config: &Config) -> Option<Check> {
    const ID: &str = "broker";
    let url = config.transport.url.as_ref()?;
    let broker = match fettle_broker::of_dashboard(&config.transport) {
        Ok(broker) => broker?,
        Err(error) => return Some(Check::warn(ID, format!("{error:#}"), "correct [transport]")),
    };
    let waiting = tokio::time::timeout(ANSWER_LIMIT, async {
        Ok::<_, TransportError>((broker.bell.depth().await?, broker.inbox.depth().await?))
    });
    // Without it, work is found by asking: slower, and nothing is lost.
    Some(match waiting.await {
        Ok(Ok((hints, orders))) => {
            Check::ok(ID, format!("{url} answers; {hints} hints and {orders} orders wait there"))
        }
        Ok(Err(error)) => {
            let remedy = "start the broker, or correct transport.url, transport.user or transport.password_file";
            Check::warn(ID, format!("{url}: {}", chain(&error)), remedy)
        }
        Err(_) => {
            let sentence = format!("{url} did not answer within {} s", ANSWER_LIMIT.as_secs());
            Check::warn(ID, sentence, "start the broker, or correct transport.url")
        }
    })
}
