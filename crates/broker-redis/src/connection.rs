//! Ways to a Redis that keeps what it is given: directly, or to the master that the sentinels name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fettle_app::ports::transport::{TransportError, X};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, FromRedisValue, Pipeline, ProtocolVersion,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, TlsMode,
};
use secrecy::ExposeSecret as _;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use crate::error::{from_redis, is_answer, is_no_permission, unreachable};
use crate::options::{RedisOptions, RedisOptionsError};

/// Name resolution, three sentinels of which two are dead, TLS; then the address is as good as away.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Commands that do not block take well below a millisecond; a disk that syncs each append may take a second.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A call on a connection that turns out to be dead, and the same on a new one.
const CALL_LIMIT: Duration = Duration::from_secs(12);
/// Where sentinels listen unless told otherwise.
const SENTINEL_PORT: u16 = 26379;

pub(crate) struct Server {
    route: Route,
    /// Whether it was said that nothing is known about eviction.
    said: AtomicBool,
}

enum Route {
    Direct(Client),
    Sentinels(Sentinels),
}

/// All that a client by sentinels is made of. It is made anew for each connection, which is rare and needs no lock.
struct Sentinels {
    sentinels: Vec<ConnectionAddr>,
    master: String,
    redis: RedisConnectionInfo,
    sentinel_password: Option<String>,
    tls: Option<Option<TlsCertificates>>,
}

impl Server {
    pub(crate) fn new(options: &RedisOptions) -> Result<Self, RedisOptionsError> {
        let addresses = addresses(&options.url, options.sentinel_master.is_some())?;
        let is_tls = addresses.iter().any(is_tls);
        if is_tls && !addresses.iter().all(self::is_tls) {
            return Err(address("some of it is rediss:// and some is not"));
        }
        let certificates = certificates(options.ca_pem.as_deref(), is_tls)?;
        let redis = identity(&addresses, options);
        let route = match &options.sentinel_master {
            Some(master) => {
                let sentinels = Sentinels {
                    sentinels: addresses.into_iter().map(|info| info.addr().clone()).collect(),
                    master: master.clone(),
                    redis,
                    sentinel_password: options.sentinel_password.as_ref().map(|one| one.expose_secret().to_owned()),
                    tls: is_tls.then_some(certificates),
                };
                sentinels.client().map_err(not_usable)?;
                Route::Sentinels(sentinels)
            }
            None => {
                let [info] = <[ConnectionInfo; 1]>::try_from(addresses)
                    .map_err(|_| address("several servers are sentinels, and those need the name of a master"))?;
                let info = info.set_redis_settings(redis).set_tcp_settings(tcp());
                let client = match certificates {
                    Some(certificates) => Client::build_with_tls(info, certificates),
                    None => Client::open(info),
                };
                Route::Direct(client.map_err(not_usable)?)
            }
        };
        Ok(Self { route, said: AtomicBool::new(false) })
    }

    /// A new connection whose commands wait [`ANSWER_LIMIT`].
    ///
    /// Errors: `Refused` when the server may throw away what it is given.
    pub(crate) async fn connect(&self) -> X<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(Some(ANSWER_LIMIT));
        let connecting = async {
            match &self.route {
                Route::Direct(client) => client.get_multiplexed_async_connection_with_config(&config).await,
                Route::Sentinels(sentinels) => sentinels.client()?.get_async_connection_with_config(&config).await,
            }
        };
        let connected = timeout(CONNECT_LIMIT, connecting).await;
        let mut connection = connected.map_err(|_| unreachable("no connection in time"))?.map_err(from_redis)?;
        self.refuse_a_cache(&mut connection).await?;
        Ok(connection)
    }

    /// A server that evicts would throw away streams when its memory is short: the only loss that no later ring or claim
    /// makes good, because other programs' messages are nowhere else.
    async fn refuse_a_cache(&self, connection: &mut MultiplexedConnection) -> X<()> {
        match memory(connection).await.map_err(from_redis)? {
            Some(memory) if memory.evicts() => Err(TransportError::Refused(format!(
                "its maxmemory-policy is {}, so it deletes streams when memory is short; noeviction is needed",
                memory.policy
            ))),
            Some(_) => Ok(()),
            None => {
                if !self.said.swap(true, Ordering::Relaxed) {
                    warn!(
                        "this user may read neither INFO nor CONFIG of Redis: whether it evicts streams is not known"
                    );
                }
                Ok(())
            }
        }
    }
}

impl Sentinels {
    fn client(&self) -> RedisResult<SentinelClient> {
        let mut builder = SentinelClientBuilder::new(self.sentinels.clone(), &self.master, SentinelServerType::Master)?
            .set_client_to_redis_db(self.redis.db())
            .set_client_to_redis_protocol(self.redis.protocol())
            .set_client_to_redis_tcp_settings(tcp())
            .set_client_to_sentinel_tcp_settings(tcp());
        if let Some(user) = self.redis.username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = self.redis.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(password) = &self.sentinel_password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let Some(certificates) = &self.tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            if let Some(certificates) = certificates {
                builder = builder
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_certificates(certificates.clone());
            }
        }
        builder.build()
    }
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

fn address(why: &str) -> RedisOptionsError {
    RedisOptionsError::Address(why.to_owned())
}

fn not_usable(error: RedisError) -> RedisOptionsError {
    RedisOptionsError::Address(error.to_string())
}

fn addresses(url: &str, sentinels: bool) -> Result<Vec<ConnectionInfo>, RedisOptionsError> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme).ok_or_else(|| address("it has no scheme"))?;
    let one = |part: &str| {
        let part = if part.contains("://") { part.to_owned() } else { format!("{scheme}://{part}") };
        let mut url = redis::parse_redis_url(&part)
            .ok_or_else(|| address("expected redis://host:port, rediss://host:port or redis+unix:///path"))?;
        if url.fragment().is_some() {
            return Err(address("what follows a # is not understood; certificates are always checked"));
        }
        if sentinels && url.port().is_none() {
            url.set_port(Some(SENTINEL_PORT)).map_err(|()| address("sentinels are reached by host and port"))?;
        }
        redis::IntoConnectionInfo::into_connection_info(url).map_err(not_usable)
    };
    url.split(',').map(str::trim).map(one).collect()
}

fn certificates(ca_pem: Option<&[u8]>, is_tls: bool) -> Result<Option<TlsCertificates>, RedisOptionsError> {
    let Some(pem) = ca_pem else { return Ok(None) };
    let unusable = |why: &str| Err(RedisOptionsError::Certificates(why.to_owned()));
    if !is_tls {
        return unusable("only a rediss:// address is checked by certificates");
    }
    if !String::from_utf8_lossy(pem).contains("-----BEGIN CERTIFICATE-----") {
        return unusable("there is no certificate in PEM");
    }
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(pem.to_vec()) }))
}

/// Who asks, in which database. RESP2 is what every server speaks.
fn identity(addresses: &[ConnectionInfo], options: &RedisOptions) -> RedisConnectionInfo {
    let said = || addresses.iter().map(ConnectionInfo::redis_settings);
    let db = said().map(RedisConnectionInfo::db).find(|db| *db != 0).unwrap_or_default();
    let mut redis = RedisConnectionInfo::default()
        .set_db(db)
        .set_protocol(ProtocolVersion::RESP2)
        .set_lib_name("fettle", env!("CARGO_PKG_VERSION"));
    if let Some(user) = options.user.as_deref().or_else(|| said().find_map(RedisConnectionInfo::username)) {
        redis = redis.set_username(user);
    }
    let given = options.password.as_ref().map(|password| password.expose_secret());
    if let Some(password) = given.or_else(|| said().find_map(RedisConnectionInfo::password)) {
        redis = redis.set_password(password);
    }
    redis
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

struct Memory {
    limit: u64,
    policy: String,
}

impl Memory {
    fn evicts(&self) -> bool {
        self.limit != 0 && self.policy != "noeviction"
    }
}

/// `None`: this user may not know.
async fn memory(connection: &mut MultiplexedConnection) -> RedisResult<Option<Memory>> {
    let read = |limit: Option<&str>, policy: Option<&str>| {
        Some(Memory { limit: limit?.trim().parse().ok()?, policy: policy?.trim().to_owned() })
    };
    // Hosted servers often have no CONFIG, and rights are often given without INFO.
    match redis::cmd("INFO").arg("memory").query_async::<String>(connection).await {
        Ok(info) => {
            let line = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            return Ok(read(line("maxmemory"), line("maxmemory_policy")));
        }
        Err(error) if is_no_permission(&error) => {}
        Err(error) => return Err(error),
    }
    let mut both = redis::pipe();
    for name in ["maxmemory", "maxmemory-policy"] {
        both.cmd("CONFIG").arg("GET").arg(name);
    }
    match both.query_async::<[Vec<String>; 2]>(connection).await {
        Ok([limit, policy]) => Ok(read(limit.get(1).map(String::as_str), policy.get(1).map(String::as_str))),
        Err(error) if is_no_permission(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The connection for everything that does not wait, made when it is needed.
pub(crate) struct Commands {
    server: Arc<Server>,
    held: Mutex<Option<MultiplexedConnection>>,
}

impl Commands {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self { server, held: Mutex::new(None) }
    }

    /// The answers of the commands in `pipeline`, which may reach the server twice: a held connection may have died long
    /// before it is used, and then they are sent once more, on a new one.
    pub(crate) async fn run<T: FromRedisValue>(&self, pipeline: &Pipeline) -> X<T> {
        self.ask(pipeline).await?.map_err(from_redis)
    }

    /// As [`Commands::run`]; an error that `is_expected` is `None`.
    pub(crate) async fn run_unless<T: FromRedisValue>(
        &self,
        is_expected: fn(&RedisError) -> bool,
        pipeline: &Pipeline,
    ) -> X<Option<T>> {
        match self.ask(pipeline).await? {
            Err(error) if is_expected(&error) => Ok(None),
            answer => answer.map(Some).map_err(from_redis),
        }
    }

    async fn ask<T: FromRedisValue>(&self, pipeline: &Pipeline) -> X<RedisResult<T>> {
        let asking = async {
            let held = self.held.lock().await.clone();
            if let Some(mut held) = held {
                match self.ask_on(&mut held, pipeline).await {
                    Err(error) if !is_answer(&error) => {}
                    answer => return Ok(answer),
                }
            }
            let mut fresh = self.connection().await?;
            Ok(self.ask_on(&mut fresh, pipeline).await)
        };
        timeout(CALL_LIMIT, asking).await.unwrap_or_else(|_| Err(unreachable("no answer in time")))
    }

    async fn ask_on<T: FromRedisValue>(&self, on: &mut MultiplexedConnection, pipeline: &Pipeline) -> RedisResult<T> {
        let answer = pipeline.query_async(on).await;
        if answer.as_ref().is_err_and(|error| !is_answer(error)) {
            *self.held.lock().await = None;
        }
        answer
    }

    /// One caller connects, the others wait for it.
    async fn connection(&self) -> X<MultiplexedConnection> {
        let mut held = self.held.lock().await;
        match &*held {
            Some(connection) => Ok(connection.clone()),
            None => Ok(held.insert(self.server.connect().await?).clone()),
        }
    }
}
