//! The port of accounts, each verb a transaction of its own.

use async_trait::async_trait;
use fettle_app::ports::accounts::{
    Accounts, Added, ApiKey, Changed, Digest, Exchanged, Founding, Identity, NewApiKey, NewSession, NewUser, Session,
    SignInBy, SigningKey, User, UserChange,
};
use fettle_app::ports::ledger::L;
use fettle_domain::account::{Tries, network};
use fettle_domain::audit_log::{Entry, Note};
use fettle_domain::id::{ApiKeyId, SessionId, UserId};
use jiff::Timestamp;
use uuid::Uuid;

use crate::writer::within;
use crate::{PostgresLedger, account, api_key, audit_log, session, signing_key};

/// What one or two statements find; accounts are never removed, so these need no snapshot.
macro_rules! read {
    ($ledger:expr, $conn:ident => $found:expr) => {
        within(async {
            let mut $conn = $ledger.store.lend().await?;
            let found = $found.await;
            $conn.give_back(found)
        })
        .await
    };
}

#[async_trait]
impl Accounts for PostgresLedger {
    async fn has_admin(&self) -> L<bool> {
        read!(self, conn => account::has_admin(&mut conn))
    }

    async fn add_user(&self, user: NewUser, founding: Founding, note: Note) -> L<Added> {
        self.write(account::Add { user, founding, note }).await
    }

    async fn find_user(&self, id: UserId) -> L<Option<User>> {
        read!(self, conn => account::find(&mut conn, id))
    }

    async fn find_user_by_login(&self, login: &str) -> L<Option<User>> {
        read!(self, conn => account::find_by_login(&mut conn, login))
    }

    async fn find_user_by_identity(&self, identity: &Identity) -> L<Option<User>> {
        read!(self, conn => account::find_by_identity(&mut conn, identity))
    }

    async fn list_users(&self, after: Option<UserId>, limit: u16) -> L<Vec<User>> {
        read!(self, conn => account::list(&mut conn, after, limit))
    }

    async fn change_user(&self, id: UserId, change: UserChange, note: Note) -> L<Changed> {
        self.write(account::Change { id, change, note }).await
    }

    async fn tries(&self, id: UserId, address: &str) -> L<Tries> {
        let network = network(address);
        read!(self, conn => account::tries(&mut conn, id, &network))
    }

    async fn fail_login(&self, id: UserId, address: &str, note: Note) -> L<Tries> {
        self.write(account::FailLogin { id, network: network(address), note }).await
    }

    async fn begin_session(&self, session: NewSession, by: SignInBy, note: Note) -> L<Option<Session>> {
        self.write(session::Begin { session, by, note }).await
    }

    async fn find_session(&self, secret: Digest) -> L<Option<(Session, User)>> {
        read!(self, conn => session::find_by_secret(&mut conn, secret))
    }

    async fn find_session_by_id(&self, id: SessionId) -> L<Option<(Session, User)>> {
        read!(self, conn => session::find_by_id(&mut conn, id))
    }

    async fn touch_session(&self, id: SessionId) -> L<()> {
        self.write(session::Touch(id)).await
    }

    async fn exchange(&self, shown: Digest, next: Digest, note: Note) -> L<Exchanged> {
        self.write(session::ExchangeToken { shown, next, note }).await
    }

    async fn list_sessions(&self, user: UserId) -> L<Vec<Session>> {
        read!(self, conn => async {
            let now = self.store.now(&mut conn).await?;
            session::list(&mut conn, user, now).await
        })
    }

    async fn end_session(&self, id: SessionId, note: Note) -> L<bool> {
        self.write(session::End { id, note }).await
    }

    async fn add_api_key(&self, key: NewApiKey, note: Note) -> L<Option<ApiKey>> {
        self.write(api_key::Add { key, note }).await
    }

    async fn find_api_key(&self, secret: Digest) -> L<Option<(ApiKey, User)>> {
        read!(self, conn => api_key::find_by_secret(&mut conn, secret))
    }

    async fn find_api_key_by_id(&self, id: ApiKeyId) -> L<Option<ApiKey>> {
        read!(self, conn => api_key::find(&mut conn, id))
    }

    async fn touch_api_key(&self, id: ApiKeyId) -> L<()> {
        self.write(api_key::Touch(id)).await
    }

    async fn list_api_keys(&self, user: UserId) -> L<Vec<ApiKey>> {
        read!(self, conn => api_key::list(&mut conn, user))
    }

    async fn remove_api_key(&self, id: ApiKeyId, note: Note) -> L<bool> {
        self.write(api_key::Remove { id, note }).await
    }

    async fn note(&self, note: Note) -> L<Entry> {
        self.write(audit_log::Append(note)).await
    }

    async fn newest_entries(&self, before: Option<u64>, limit: u16) -> L<Vec<Entry>> {
        read!(self, conn => audit_log::newest(&mut conn, before, limit))
    }

    async fn entries_after(&self, after: u64, limit: u16) -> L<Vec<Entry>> {
        read!(self, conn => audit_log::after(&mut conn, after, limit))
    }

    async fn signing_keys(&self) -> L<Vec<SigningKey>> {
        read!(self, conn => signing_key::all(&mut conn))
    }

    async fn add_signing_key(&self, id: Uuid, secret: [u8; 32], newest_before: Timestamp) -> L<()> {
        self.write(signing_key::Add { id, secret, newest_before }).await
    }

    async fn forget_signing_keys(&self, before: Timestamp) -> L<u64> {
        self.write(signing_key::Forget(before)).await
    }

    async fn forget_sessions(&self, before: Timestamp, max: u16) -> L<u64> {
        self.write(session::Forget { before, max }).await
    }

    async fn forget_addresses(&self, before: Timestamp, max: u16) -> L<u64> {
        self.write(account::ForgetAddresses { before, max }).await
    }
}
