//! A ledger moves from a file into a database, with all that it knows.

use std::time::Duration;

use fettle_app::archive::ArchiveError;
use fettle_app::ports::accounts::{
    Accounts as _, Added, Changed, Founding, Identity, NewApiKey, PasswordHash, User, UserChange,
};
use fettle_app::ports::ledger::{Delivery, Fenced, Leased, TaskFilter, Then};
use fettle_domain::access::{Role, Scope};
use fettle_domain::audit_log::{Head, verify};
use fettle_domain::budget::Spent;
use fettle_domain::id::{ApiKeyId, TaskId};
use fettle_domain::job::JobKind;
use fettle_domain::object::BlobId;
use fettle_domain::session::Kind;
use fettle_domain::step::{StepBody, StepKind, StepRecord};
use fettle_store_postgres::{Database, ImportError, import};
use fettle_store_sqlite::SqliteLedger;
use fettle_store_sqlite::{ExportError, OpenError, Options, export};
use fettle_tests::contract::accounts::{by_password, new_session, new_user, note, secret};
use fettle_tests::contract::ledger::{CountedIds, World};
use uuid::Uuid;

use super::together::unsolved;
use super::{Dashboard, postgres};
use crate::ledger::{OnDisk, options, path};

/// One Task in each state that a ledger knows, one of them with its holder at work.
struct Lived {
    tasks: Vec<TaskId>,
    at_work: Leased,
    step: StepRecord,
    blob: BlobId,
    open: Delivery,
}

async fn live(world: &World<OnDisk>) -> Lived {
    let (ledger, leases) = (world.ledger(), world.leases());
    let mut tasks = Vec::new();
    tasks.push(world.open(1).await);
    let finished = world.lease(JobKind::Run).await;
    leases.complete_run(&finished.lease, &unsolved()).await.unwrap();
    tasks.push(world.open(2).await);
    let given_up = world.lease(JobKind::Run).await;
    leases.fail(&given_up.lease, "no luck", Then::Never).await.unwrap();
    tasks.push(world.open(3).await);
    let delayed = world.lease(JobKind::Run).await;
    leases.fail(&delayed.lease, "later", Then::RetryAfter(Duration::from_secs(3600))).await.unwrap();
    tasks.push(world.open(4).await);
    ledger.cancel(tasks[3], "ada").await.unwrap();
    tasks.push(world.open(5).await);
    let at_work = world.lease(JobKind::Run).await;
    let blob = leases.put_blob(vec![0, 159, 146, 150].into()).await.unwrap();
    let step = StepRecord {
        seq: 0,
        kind: StepKind::ToolCall,
        phase: "fix".into(),
        title: "reads \0 a file".into(),
        input: BlobId::of(b"input"),
        body: StepBody::Blob(blob),
        workspace: None,
        spent: Spent { calls: 1, generated_tokens: 10, prompt_tokens: 20, wall_s: 1 },
        took_ms: 5,
    };
    assert_eq!(leases.record(&at_work.lease, &step).await.unwrap(), Fenced::Applied);
    tasks.push(world.open(6).await);
    ledger.post_message(tasks[5], "bob", "also the other one").await.unwrap();
    let (closed, open) = (world.delivery("closed"), world.delivery("open"));
    for delivery in [&closed, &open] {
        ledger.accept(delivery.clone()).await.unwrap();
    }
    ledger.close_delivery(closed.id, "an unrelated label").await.unwrap();
    Lived { tasks, at_work, step, blob, open }
}

fn identity() -> Identity {
    Identity { issuer: "https://id.example.org".into(), subject: "eve".into() }
}

/// Two accounts, one of them inactive and known elsewhere, with a session and a key; as they are in the end.
async fn sign_up(accounts: &SqliteLedger) -> [User; 2] {
    let mut eve = new_user("eve", Role::Viewer);
    (eve.password, eve.identity) = (PasswordHash::none(), Some(identity()));
    let mut users = Vec::new();
    for user in [new_user("ada", Role::Admin), eve] {
        match accounts.add_user(user, Founding::Later, note("users.create")).await.unwrap() {
            Added::Added(user) => users.push(user),
            other => panic!("{other:?}"),
        }
    }
    let begun = accounts.begin_session(new_session(&users[0], Kind::Token, 1), by_password(&users[0]), note("login"));
    begun.await.unwrap().unwrap();
    let key = NewApiKey {
        id: ApiKeyId::from_uuid(Uuid::from_u128(1)),
        user: users[0].id,
        name: "nightly".into(),
        prefix: "fettle_key_ab".into(),
        secret: secret(9),
        scopes: vec![Scope::Read, Scope::Write],
        expires_at: None,
    };
    accounts.add_api_key(key, note("api_keys.create")).await.unwrap().unwrap();
    let stop = UserChange { active: Some(false), ..UserChange::default() };
    let changed = accounts.change_user(users[1].id, stop, note("users.change")).await.unwrap();
    let (ada, Changed::Changed(eve)) = (accounts.find_user(users[0].id).await.unwrap().unwrap(), changed) else {
        panic!("eve was not changed");
    };
    [ada, eve]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_a_file_knows_is_in_the_database_and_work_goes_on_there() {
    let Some(url) = postgres::empty().await.unwrap() else { return };
    let old = World::of(OnDisk::create().await);
    let lived = live(&old).await;
    old.finish().await;
    let [ada, eve] = sign_up(&old.subject().ledger).await;
    let ledger = old.ledger();
    let (events, dead) = (ledger.events(None, 0, 500).await.unwrap(), ledger.dead(None, 10).await.unwrap());
    let (demand, depth) = (ledger.demand().await.unwrap(), ledger.depth().await.unwrap());
    let tasks = ledger.tasks(TaskFilter::default(), None, 100).await.unwrap();
    assert_eq!((tasks.len(), dead.len()), (lived.tasks.len(), 1));

    let old = old.into_subject();
    let log = old.ledger.entries_after(0, 100).await.unwrap();
    let keys = old.ledger.list_api_keys(ada.id).await.unwrap();
    assert_eq!((log.len(), keys.len()), (5, 1));
    let at_once = Options { lock_wait: Duration::ZERO, ..options(&old.time, 50) };
    let busy = export(&path(&old.data), at_once, Vec::new()).await;
    assert!(matches!(busy, Err(ExportError::Open(OpenError::InUse { .. }))), "somebody has it open");
    old.ledger.close().await.unwrap();
    let (archive, counts) = export(&path(&old.data), options(&old.time, 51), Vec::new()).await.unwrap();
    assert_eq!(counts["task"], 6);

    let database = Database::at(&url);
    let cut = import(&database, &archive[..archive.len() - 40]).await;
    assert!(matches!(cut, Err(ImportError::Archive(ArchiveError::CutOff))), "{cut:?}");
    assert_eq!(import(&database, archive.as_slice()).await.unwrap(), counts);
    let again = import(&database, archive.as_slice()).await;
    assert!(matches!(again, Err(ImportError::NotEmpty(8))), "six Tasks and two deliveries: {again:?}");

    let mut new = World::of(Dashboard::join(&url, &old.time, 7).await);
    new.ids = CountedIds::of_space(0xcafe);
    let ledger = new.ledger();
    assert_eq!(ledger.tasks(TaskFilter::default(), None, 100).await.unwrap(), tasks);
    assert_eq!(ledger.events(None, 0, 500).await.unwrap(), events);
    assert_eq!(ledger.demand().await.unwrap(), demand);
    assert_eq!(ledger.depth().await.unwrap(), depth);
    assert_eq!(ledger.dead(None, 10).await.unwrap()[0].job, dead[0].job);
    assert_eq!(ledger.open_deliveries(10).await.unwrap(), [lived.open]);
    assert_eq!(&new.leases().blob(lived.blob).await.unwrap()[..], [0, 159, 146, 150]);
    assert_eq!(new.leases().steps(&lived.at_work.lease).await.unwrap(), [lived.step]);

    let accounts = &new.subject().ledger;
    assert_eq!(accounts.list_users(None, 10).await.unwrap(), [ada.clone(), eve.clone()]);
    assert_eq!(accounts.find_user_by_identity(&identity()).await.unwrap(), Some(eve));
    assert_eq!(accounts.find_api_key(secret(9)).await.unwrap(), Some((keys[0].clone(), ada.clone())));
    assert_eq!(accounts.entries_after(0, 100).await.unwrap(), log);
    assert_eq!(accounts.find_session(secret(1)).await.unwrap(), None, "people sign in again");
    let begun = accounts.begin_session(new_session(&ada, Kind::Browser, 2), by_password(&ada), note("login")).await;
    assert!(begun.unwrap().is_some());
    let log = accounts.entries_after(0, 100).await.unwrap();
    assert_eq!(verify(Head::EMPTY, &log).map(|head| head.sequence), Ok(6), "it goes on where it ended");

    // Its holder comes back, and so do further Tasks.
    let completed = new.leases().complete_run(&lived.at_work.lease, &unsolved()).await.unwrap();
    assert_eq!(completed, Fenced::Applied);
    new.open(7).await;
    assert!(new.try_lease(JobKind::Run).await.is_some());
    let busy = import(&database, archive.as_slice()).await;
    assert!(matches!(busy, Err(ImportError::InUse)), "a dashboard is there: {busy:?}");
    new.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_where_somebody_has_an_account_takes_no_others_in() {
    let Some(dashboard) = Dashboard::alone().await else { return };
    dashboard.ledger.note(note("setup")).await.unwrap();
    let Dashboard { ledger, url, time, .. } = dashboard;
    drop(ledger);
    super::nobody_is_there(&url).await;
    let old = OnDisk::create().await;
    old.ledger.close().await.unwrap();
    let (archive, _) = export(&path(&old.data), options(&time, 51), Vec::new()).await.unwrap();
    let refused = import(&Database::at(&url), archive.as_slice()).await;
    assert!(matches!(refused, Err(ImportError::HasAccounts)), "{refused:?}");
}
