//! One stream with one group: the few commands that are used, and entries as they come.

use std::time::Duration;

use fettle_app::ports::transport::X;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, ParsingError, Pipeline, RedisResult, Value};
use tokio::time::Instant;

use crate::connection::Commands;
use crate::error::{is_busy_group, is_no_group, is_out_of_memory};

/// Pending entries that one look goes through, oldest first; a group holds one for each reader, for seconds.
const PENDING_LOOKED_AT: u32 = 1_000;
/// A read must have ended by itself long before anybody thinks that its connection is dead.
const BLOCK_GRACE: Duration = Duration::from_secs(10);

/// Removes consumers that hold nothing, in one step: between a look and a removal a consumer could be given an entry, which
/// would then belong to nobody. KEYS: stream. ARGV: group, idle ms, how many at most.
const FORGET: &str = r"
local gone = 0
for _, told in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #told, 2 do consumer[told[i]] = told[i + 1] end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) and gone < tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    gone = gone + 1
  end
end
return gone";
/// Of consumers in one run of the script, which blocks the server meanwhile.
const FORGOTTEN_AT_ONCE: u32 = 100;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) key: &'static str,
    pub(crate) group: &'static str,
}

/// One entry of a stream, in the hand of whoever read it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    /// In the order in which they were added; any bytes.
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) redelivered: bool,
    pub(crate) read_at: Instant,
}

/// An entry as Redis tells it; without fields when it was deleted while somebody held it.
struct Told {
    id: String,
    fields: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl FromRedisValue for Told {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (id, fields): (String, Option<Vec<Value>>) = redis::from_redis_value(value)?;
        let fields = fields.map(|flat| {
            let mut flat = flat.into_iter();
            let mut pairs = Vec::new();
            while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
                pairs.push((redis::from_redis_value(name)?, redis::from_redis_value(value)?));
            }
            Ok::<_, ParsingError>(pairs)
        });
        Ok(Self { id, fields: fields.transpose()? })
    }
}

/// What `XREADGROUP` answers for one stream: the stream's name and its entries, or nothing.
type Read = Option<Vec<(String, Vec<Told>)>>;

impl Stream {
    /// Begins at the oldest entry: what came before the group is read as well. One that is there stays as it is.
    pub(crate) async fn create_group(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        match self.group_creation().exec_async(connection).await {
            Err(error) if !is_busy_group(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn group_creation(&self) -> Cmd {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(self.key).arg(self.group).arg("0").arg("MKSTREAM");
        create
    }

    /// As [`Stream::create_group`], for who only writes: scalers look at the group before anybody has read from it.
    pub(crate) async fn ensure_group(&self, commands: &Commands) -> X<()> {
        let mut create = redis::pipe();
        create.add_command(self.group_creation());
        commands.run_unless::<()>(is_busy_group, &create).await.map(|_| ())
    }

    /// Entries that nobody has read yet, as `consumer`'s; waits for the first up to `block`, which must not be zero.
    pub(crate) async fn read_new(
        &self,
        connection: &MultiplexedConnection,
        consumer: &str,
        count: usize,
        block: Duration,
    ) -> RedisResult<Vec<Entry>> {
        let mut patient = connection.clone();
        patient.set_response_timeout(block + BLOCK_GRACE);
        let mut read = self.read(consumer, count);
        read.arg("BLOCK").arg(millis(block).max(1)).arg("STREAMS").arg(self.key).arg(">");
        let told: Read = read.query_async(&mut patient).await?;
        Ok(entries(told).filter_map(|told| told.entry(false)).collect())
    }

    /// What `consumer` holds beyond `after` by the server's account, oldest first, and the last id that was looked at.
    pub(crate) async fn read_own(
        &self,
        connection: &mut MultiplexedConnection,
        consumer: &str,
        count: usize,
        after: &str,
    ) -> RedisResult<(Vec<Entry>, Option<String>)> {
        let mut read = self.read(consumer, count);
        read.arg("STREAMS").arg(self.key).arg(after);
        let told: Read = read.query_async(connection).await?;
        let told: Vec<Told> = entries(told).collect();
        let last = told.last().map(|told| told.id.clone());
        let mut held = Vec::new();
        for told in told {
            match told.fields {
                Some(_) => held.extend(told.entry(true)),
                None => self.ack(&told.id).exec_async(connection).await?,
            }
        }
        Ok((held, last))
    }

    fn read(&self, consumer: &str, count: usize) -> Cmd {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(self.group).arg(consumer).arg("COUNT").arg(count);
        read
    }

    /// Makes up to `count` entries `consumer`'s that somebody was given at least `idle` ago and has not settled.
    pub(crate) async fn claim(
        &self,
        connection: &mut MultiplexedConnection,
        consumer: &str,
        count: usize,
        idle: Duration,
    ) -> RedisResult<Vec<Entry>> {
        let pending: Vec<Pending> = self.pending().query_async(connection).await?;
        let mut claimed = Vec::new();
        for Pending { id, .. } in pending.into_iter().filter(|one| one.is_idle(idle)).take(count) {
            // One by one: an entry that is gone is told as nil, and only so it is known which.
            let mut claim = redis::cmd("XCLAIM");
            claim.arg(self.key).arg(self.group).arg(consumer).arg(millis(idle)).arg(&id);
            let told: Vec<Option<Told>> = claim.query_async(connection).await?;
            match told.into_iter().next() {
                Some(Some(told)) => claimed.extend(told.entry(true)),
                Some(None) => self.ack(&id).exec_async(connection).await?,
                // Somebody else was faster.
                None => {}
            }
        }
        Ok(claimed)
    }

    fn pending(&self) -> Cmd {
        let mut pending = redis::cmd("XPENDING");
        pending.arg(self.key).arg(self.group).arg("-").arg("+").arg(PENDING_LOOKED_AT);
        pending
    }

    fn ack(&self, id: &str) -> Cmd {
        let mut ack = redis::cmd("XACK");
        ack.arg(self.key).arg(self.group).arg(id);
        ack
    }

    /// The entry is done with: nobody gets it any more, and it is gone.
    pub(crate) async fn settle(&self, commands: &Commands, id: &str) -> X<()> {
        let mut both = redis::pipe();
        both.atomic().add_command(self.ack(id)).add_command(self.deletion(id));
        if commands.run_unless::<()>(is_out_of_memory, &both).await?.is_some() {
            return Ok(());
        }
        // A server that is full queues nothing for a transaction, not even what would empty it. In this order an end in
        // between leaves a pending entry without a body, which the next claim clears away.
        let mut plain = redis::pipe();
        plain.add_command(self.deletion(id)).add_command(self.ack(id));
        commands.run(&plain).await
    }

    fn deletion(&self, id: &str) -> Cmd {
        let mut deletion = redis::cmd("XDEL");
        deletion.arg(self.key).arg(id);
        deletion
    }

    /// A new entry in the place of `id`, for whoever reads next.
    pub(crate) fn put_back(&self, id: &str, fields: &[(&str, &str)]) -> Pipeline {
        let mut pipeline = redis::pipe();
        pipeline.atomic().cmd("XADD").arg(self.key).arg("*");
        for (name, value) in fields {
            pipeline.arg(name).arg(value);
        }
        pipeline.add_command(self.ack(id)).add_command(self.deletion(id));
        pipeline
    }

    /// Entries that are there, less those that somebody was given `idle` ago and has not settled.
    pub(crate) async fn unread_and_fresh(&self, commands: &Commands, idle: Duration) -> X<u64> {
        let mut pending = redis::pipe();
        pending.add_command(self.pending());
        // Without a group nobody was given anything.
        let pending: Option<(Vec<Pending>,)> = commands.run_unless(is_no_group, &pending).await?;
        let stale = pending.map_or(0, |(pending,)| pending.iter().filter(|one| one.is_idle(idle)).count());
        let length = self.length(commands).await?;
        Ok(length.saturating_sub(u64::try_from(stale).unwrap_or(u64::MAX)))
    }

    /// Entries that are there.
    pub(crate) async fn length(&self, commands: &Commands) -> X<u64> {
        let mut length = redis::pipe();
        length.cmd("XLEN").arg(self.key);
        let (length,): (u64,) = commands.run(&length).await?;
        Ok(length)
    }

    /// Removes consumers that hold nothing and have asked for nothing since `idle`.
    pub(crate) async fn forget_consumers(
        &self,
        connection: &mut MultiplexedConnection,
        idle: Duration,
    ) -> RedisResult<u64> {
        let mut forget = redis::cmd("EVAL");
        forget.arg(FORGET).arg(1).arg(self.key).arg(self.group).arg(millis(idle)).arg(FORGOTTEN_AT_ONCE);
        forget.query_async(connection).await
    }
}

impl Told {
    fn entry(self, redelivered: bool) -> Option<Entry> {
        Some(Entry { id: self.id, fields: self.fields?, redelivered, read_at: Instant::now() })
    }
}

fn entries(read: Read) -> impl Iterator<Item = Told> {
    read.into_iter().flatten().flat_map(|(_, entries)| entries)
}

/// A line of `XPENDING`.
struct Pending {
    id: String,
    idle: Duration,
}

impl Pending {
    fn is_idle(&self, limit: Duration) -> bool {
        self.idle >= limit
    }
}

impl FromRedisValue for Pending {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (id, _consumer, idle, _deliveries): (String, Value, u64, Value) = redis::from_redis_value(value)?;
        Ok(Self { id, idle: Duration::from_millis(idle) })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
