//! One look at the processes of this host, shared by all who want one at about the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use fettle_placement::id::{EngineId, Epoch};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::error;

use crate::cgroup;
use crate::record::Kept;
use crate::table::{Identity, Mark, Table};

/// What is older is not looked at again for somebody else.
const FRESH: Duration = Duration::from_millis(5);

pub(crate) struct Sight {
    pub(crate) table: Table,
    /// Processes of engines of this host, by what they say themselves.
    marked: BTreeMap<u32, (EngineId, Epoch)>,
}

/// What an engine was seen to consist of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    /// If it is alive.
    pub(crate) keeper: Option<Identity>,
    /// Without the keeper.
    pub(crate) pids: BTreeSet<u32>,
}

impl Sight {
    fn read(home: &Utf8Path) -> std::io::Result<Self> {
        let table = Table::read()?;
        let own = table.pids().filter_map(|pid| Some((pid, Mark::of(pid)?)));
        let own = own.filter(|(_, mark)| mark.home == home.as_str());
        let marked = own.map(|(pid, mark)| (pid, (mark.engine, mark.epoch))).collect();
        Ok(Self { table, marked })
    }

    /// Everything that belongs to an engine by any sign: below its keeper, in its session, in its group, or by its own word.
    pub(crate) fn members(
        &self,
        engine: &EngineId,
        epoch: Epoch,
        kept: Option<Kept>,
        group: Option<&Utf8Path>,
    ) -> Members {
        let mut pids: BTreeSet<u32> = group.map(cgroup::pids).unwrap_or_default();
        let said = self.marked.iter().filter(|(_, (of, life))| of == engine && *life == epoch);
        pids.extend(said.map(|(pid, _)| *pid));
        let keeper = kept.map(|kept| kept.keeper);
        if let Some(keeper) = keeper {
            pids.extend(self.table.in_session_of(keeper));
            if self.table.has(keeper) {
                pids.extend(self.table.below(keeper.pid));
            }
            pids.remove(&keeper.pid);
        }
        // A group also names what has ended and is not reaped.
        pids.retain(|pid| self.table.identity(*pid).is_some());
        Members { keeper: keeper.filter(|keeper| self.table.has(*keeper)), pids }
    }

    pub(crate) fn marked(&self) -> impl Iterator<Item = (u32, &EngineId, Epoch)> {
        self.marked.iter().map(|(pid, (engine, epoch))| (*pid, engine, *epoch))
    }
}

pub(crate) struct Watcher {
    home: Arc<Utf8Path>,
    last: Mutex<Option<(Instant, Arc<Sight>)>>,
}

impl Watcher {
    pub(crate) fn new(home: &Utf8Path) -> Self {
        Self { home: home.into(), last: Mutex::new(None) }
    }

    /// Begun after the call, but for those `FRESH` ago. `None`: `/proc` cannot be read, and nobody knows what is there.
    pub(crate) async fn look(&self) -> Option<Arc<Sight>> {
        let mut last = self.last.lock().await;
        if let Some((at, sight)) = &*last
            && at.elapsed() < FRESH
        {
            return Some(Arc::clone(sight));
        }
        let at = Instant::now();
        let home = Arc::clone(&self.home);
        let read = tokio::task::spawn_blocking(move || Sight::read(&home)).await;
        match read {
            Ok(Ok(sight)) => {
                let sight = Arc::new(sight);
                *last = Some((at, Arc::clone(&sight)));
                Some(sight)
            }
            Ok(Err(e)) => {
                error!(error = &e as &dyn std::error::Error, "the processes of this host cannot be seen");
                None
            }
            Err(e) => {
                error!(error = &e as &dyn std::error::Error, "looking at processes failed");
                None
            }
        }
    }
}
