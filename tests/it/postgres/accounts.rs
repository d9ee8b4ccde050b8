//! The contract of accounts on PostgreSQL, and what several dashboards on one database show.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::doorkeeping::{DoorError, Doorkeeper, Origin, Registration, Wanted};
use fettle_app::ports::accounts::{
    Accounts, Added, ApiKey, Changed, Digest, Exchanged, Founding, Identity, NewApiKey, NewSession, NewUser, Session,
    SignInBy, SigningKey, User, UserChange,
};
use fettle_app::ports::additions::{Addition, Additions, Kept, Sealed, Sort};
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::L;
use fettle_domain::account::Tries;
use fettle_domain::audit_log::{Entry, Head, Note, verify};
use fettle_domain::id::{ApiKeyId, SessionId, UserId};
use fettle_runtime::system::RandomSecrets;
use fettle_store_postgres::PostgresLedger;
use fettle_tests::contract;
use fettle_tests::contract::accounts::{World, note};
use fettle_tests::contract::ledger::CountedIds;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

use super::{Dashboard, execute, postgres};

contract::accounts!(
    on_one_dashboard,
    match one().await {
        Some(world) => world,
        None => return,
    }
);

contract::accounts!(
    on_two_dashboards,
    match in_turn().await {
        Some(world) => world,
        None => return,
    }
);

async fn one() -> Option<World<PostgresLedger>> {
    let Dashboard { ledger, time, url, .. } = Dashboard::alone().await?;
    Some(World { store: Arc::new(ledger), time, _held: Box::new(url) })
}

async fn in_turn() -> Option<World<InTurn>> {
    let url = postgres::migrated().await.expect("a database can be made")?;
    let time = Arc::default();
    let (one, other) = (Dashboard::join(&url, &time, 1).await.ledger, Dashboard::join(&url, &time, 2).await.ledger);
    Some(World { store: Arc::new(InTurn { both: [one, other], next: Default::default() }), time, _held: Box::new(url) })
}

/// Two dashboards behind one address: each verb goes to the one whose turn it is.
struct InTurn {
    both: [PostgresLedger; 2],
    next: std::sync::atomic::AtomicUsize,
}

impl InTurn {
    fn next(&self) -> &PostgresLedger {
        &self.both[self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 2]
    }
}

#[async_trait]
impl Additions for InTurn {
    async fn additions(&self) -> L<Vec<Addition>> {
        self.next().additions().await
    }
    async fn keep_addition(&self, addition: Addition) -> L<Kept> {
        self.next().keep_addition(addition).await
    }
    async fn drop_addition(&self, sort: Sort, name: &str) -> L<bool> {
        self.next().drop_addition(sort, name).await
    }
    async fn reseal_addition(&self, sort: Sort, name: &str, from: Sealed, to: Sealed) -> L<bool> {
        self.next().reseal_addition(sort, name, from, to).await
    }
}

#[async_trait]
impl Accounts for InTurn {
    async fn has_admin(&self) -> L<bool> {
        self.next().has_admin().await
    }
    async fn add_user(&self, user: NewUser, founding: Founding, note: Note) -> L<Added> {
        self.next().add_user(user, founding, note).await
    }
    async fn find_user(&self, id: UserId) -> L<Option<User>> {
        self.next().find_user(id).await
    }
    async fn find_user_by_login(&self, login: &str) -> L<Option<User>> {
        self.next().find_user_by_login(login).await
    }
    async fn find_user_by_identity(&self, identity: &Identity) -> L<Option<User>> {
        self.next().find_user_by_identity(identity).await
    }
    async fn list_users(&self, after: Option<UserId>, limit: u16) -> L<Vec<User>> {
        self.next().list_users(after, limit).await
    }
    async fn change_user(&self, id: UserId, change: UserChange, note: Note) -> L<Changed> {
        self.next().change_user(id, change, note).await
    }
    async fn tries(&self, id: UserId, address: &str) -> L<Tries> {
        self.next().tries(id, address).await
    }
    async fn fail_login(&self, id: UserId, address: &str, note: Note) -> L<Tries> {
        self.next().fail_login(id, address, note).await
    }
    async fn begin_session(&self, session: NewSession, by: SignInBy, note: Note) -> L<Option<Session>> {
        self.next().begin_session(session, by, note).await
    }
    async fn find_session(&self, secret: Digest) -> L<Option<(Session, User)>> {
        self.next().find_session(secret).await
    }
    async fn find_session_by_id(&self, id: SessionId) -> L<Option<(Session, User)>> {
        self.next().find_session_by_id(id).await
    }
    async fn touch_session(&self, id: SessionId) -> L<()> {
        self.next().touch_session(id).await
    }
    async fn exchange(&self, shown: Digest, next: Digest, note: Note) -> L<Exchanged> {
        self.next().exchange(shown, next, note).await
    }
    async fn list_sessions(&self, user: UserId) -> L<Vec<Session>> {
        self.next().list_sessions(user).await
    }
    async fn end_session(&self, id: SessionId, note: Note) -> L<bool> {
        self.next().end_session(id, note).await
    }
    async fn add_api_key(&self, key: NewApiKey, note: Note) -> L<Option<ApiKey>> {
        self.next().add_api_key(key, note).await
    }
    async fn find_api_key(&self, secret: Digest) -> L<Option<(ApiKey, User)>> {
        self.next().find_api_key(secret).await
    }
    async fn find_api_key_by_id(&self, id: ApiKeyId) -> L<Option<ApiKey>> {
        self.next().find_api_key_by_id(id).await
    }
    async fn touch_api_key(&self, id: ApiKeyId) -> L<()> {
        self.next().touch_api_key(id).await
    }
    async fn list_api_keys(&self, user: UserId) -> L<Vec<ApiKey>> {
        self.next().list_api_keys(user).await
    }
    async fn remove_api_key(&self, id: ApiKeyId, note: Note) -> L<bool> {
        self.next().remove_api_key(id, note).await
    }
    async fn note(&self, note: Note) -> L<Entry> {
        self.next().note(note).await
    }
    async fn newest_entries(&self, before: Option<u64>, limit: u16) -> L<Vec<Entry>> {
        self.next().newest_entries(before, limit).await
    }
    async fn entries_after(&self, after: u64, limit: u16) -> L<Vec<Entry>> {
        self.next().entries_after(after, limit).await
    }
    async fn signing_keys(&self) -> L<Vec<SigningKey>> {
        self.next().signing_keys().await
    }
    async fn add_signing_key(&self, id: Uuid, secret: [u8; 32], newest_before: Timestamp) -> L<()> {
        self.next().add_signing_key(id, secret, newest_before).await
    }
    async fn forget_signing_keys(&self, before: Timestamp) -> L<u64> {
        self.next().forget_signing_keys(before).await
    }
    async fn forget_sessions(&self, before: Timestamp, max: u16) -> L<u64> {
        self.next().forget_sessions(before, max).await
    }
    async fn forget_addresses(&self, before: Timestamp, max: u16) -> L<u64> {
        self.next().forget_addresses(before, max).await
    }
}

fn origin() -> Origin {
    Origin { address: "192.0.2.1".into(), user_agent: "a browser".into() }
}

fn wanted(name: &str) -> Wanted {
    let (username, email) = (name.to_owned(), format!("{name}@example.org"));
    Wanted { username, email, password: PASSWORD.into() }
}

const PASSWORD: &str = "mohnfeld-quirlt-19-laternen";

/// Two processes behind one address, as people meet them.
async fn two_doors() -> Option<[(Doorkeeper, Option<SecretString>); 2]> {
    let url = postgres::migrated().await.expect("a database can be made")?;
    let time = Arc::default();
    let mut doors = Vec::new();
    for space in [1, 2] {
        let ledger = Arc::new(Dashboard::join(&url, &time, space).await.ledger);
        let (clock, ids): (Arc<dyn Clock>, Arc<dyn IdSource>) =
            (time.clone(), Arc::new(CountedIds::of_space(0xd00 + space)));
        let opened = Doorkeeper::open(ledger, clock, ids, Arc::new(RandomSecrets), Registration::Closed);
        doors.push(opened.await.expect("the accounts open"));
    }
    doors.try_into().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_sets_up_whichever_process_it_comes_to_and_of_two_at_once_one_is_admin() {
    let Some([(one, shown), (other, shown_there)]) = two_doors().await else { return };
    let (token, same) = (shown.unwrap(), shown_there.unwrap());
    assert_eq!(token.expose_secret(), same.expose_secret());
    let wrong = one.set_up(&"fettle_setup_00".into(), wanted("eve"), &origin()).await.unwrap_err();
    assert!(matches!(wrong, DoorError::WrongSetupToken), "{wrong:?}");
    let (here, origin) = (&origin(), &origin());
    let (first, second) =
        tokio::join!(one.set_up(&token, wanted("ada"), here), other.set_up(&token, wanted("bob"), origin));
    let refused = match (&first, &second) {
        (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
        both => panic!("{both:?}"),
    };
    assert!(matches!(refused, DoorError::SetUp), "{refused:?}");
    assert!(!other.needs_setup().await.unwrap());
    assert_eq!(one.store.list_users(None, 10).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_in_at_one_process_is_known_at_the_other_and_a_copied_token_ends_both() {
    let Some([(one, token), (other, _)]) = two_doors().await else { return };
    one.set_up(&token.unwrap(), wanted("ada"), &origin()).await.unwrap();
    let tokens = one.log_in_client("ada", &PASSWORD.into(), &origin()).await.unwrap();
    let access = tokens.access.expose_secret();
    let known = other.by_access_token(access).await.unwrap().expect("its key is in the database");
    assert_eq!(known.actor.name, "ada");
    let (here, origin) = (&origin(), &origin());
    let (first, second) = tokio::join!(one.refresh(&tokens.refresh, here), other.refresh(&tokens.refresh, origin));
    assert!(first.is_ok() != second.is_ok(), "of two who show it at once, one has copied it: {first:?} {second:?}");
    for door in [&one, &other] {
        assert!(door.by_access_token(access).await.unwrap().is_none(), "the family has ended");
    }
    let log = one.store.entries_after(0, 100).await.unwrap();
    assert!(log.last().is_some_and(|last| last.note.result == "refused" && last.note.action == "refresh"), "{log:?}");
    verify(Head::EMPTY, &log).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_was_changed_in_the_database_is_found() {
    let Some(Dashboard { ledger, url, .. }) = Dashboard::alone().await else { return };
    for action in ["one", "two", "three"] {
        ledger.note(note(action)).await.unwrap();
    }
    execute(&url, "UPDATE audit_log SET at = at + interval '1 microsecond' WHERE sequence = 2").await;
    let log = ledger.entries_after(0, 10).await.unwrap();
    assert_eq!(verify(Head::EMPTY, &log).map_err(|broken| broken.sequence), Err(2));
}
