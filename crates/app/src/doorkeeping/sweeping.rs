//! What passes: sessions that are long over, addresses that nobody came from lately, and keys that have signed long enough.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::account::FAMILIAR_FOR;
use jiff::SignedDuration;

use super::Doorkeeper;
use crate::ports::chain;
use crate::ports::ledger::L;
use crate::reconciling::{Reconcile, Trouble};
use crate::vitals::Pulse;

/// Nothing here is urgent.
pub const SWEPT_EVERY: Duration = Duration::from_secs(3600);
/// One short transaction; the next tick takes the rest.
const FORGOTTEN_AT_ONCE: u16 = 500;
/// A key signs for so long; a copy that nobody noticed is worth nothing afterwards.
const KEY_SIGNS: SignedDuration = SignedDuration::from_hours(30 * 24);
/// And verifies for a little longer than its last token lasts.
const KEY_VERIFIES: SignedDuration = SignedDuration::from_hours(30 * 24 + 3);

impl Doorkeeper {
    /// Makes a key if the newest has signed long enough, forgets the old, and knows those that others have made.
    pub(super) async fn renew_signing_keys(&self) -> L<()> {
        let now = self.clock.now();
        let before = |span: SignedDuration| now.checked_sub(span).unwrap_or(jiff::Timestamp::MIN);
        self.store.add_signing_key(super::key_id(&*self.ids), self.secrets.secret(), before(KEY_SIGNS)).await?;
        self.store.forget_signing_keys(before(KEY_VERIFIES)).await?;
        self.keys.set(self.store.signing_keys().await?);
        Ok(())
    }

    async fn sweep(&self) -> L<()> {
        self.renew_signing_keys().await?;
        let now = self.clock.now();
        self.store.forget_sessions(now, FORGOTTEN_AT_ONCE).await?;
        let familiar = SignedDuration::try_from(FAMILIAR_FOR).unwrap_or(SignedDuration::MAX);
        let before = now.checked_sub(familiar).unwrap_or(jiff::Timestamp::MIN);
        self.store.forget_addresses(before, FORGOTTEN_AT_ONCE).await?;
        Ok(())
    }
}

pub struct Sweep(pub Arc<Doorkeeper>);

#[async_trait]
impl Reconcile for Sweep {
    async fn tick(&mut self, _pulse: &Pulse) -> Result<(), Trouble> {
        self.0.sweep().await.map_err(|error| Trouble::new(chain(&error)))
    }
}
