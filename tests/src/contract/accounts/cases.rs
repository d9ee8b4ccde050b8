//! The cases, each on an empty store.

use std::sync::Arc;

use fettle_app::ports::accounts::{
    Accounts, Added, Changed, Exchanged, Founding, Identity, MAX_API_KEYS, MAX_SESSIONS, NewApiKey, NewSession,
    PasswordHash, SignInBy, UserChange,
};
use fettle_app::ports::additions::{Addition, Additions, Kept, MAX_ADDITIONS, Sealed, Sort};
use fettle_domain::access::{Role, Scope};
use fettle_domain::account::{FREE_FAILURES, FREE_FAILURES_ANYWHERE, Tries};
use fettle_domain::audit_log::{Head, verify};
use fettle_domain::id::{ApiKeyId, SessionId, UserId};
use fettle_domain::session::{IDLE_LIMIT, Kind, WHOLE_LIMIT};
use futures::future::join_all;
use jiff::Timestamp;
use uuid::Uuid;

use super::{World, by_password, new_session, new_user, note, secret};

const DAY: u64 = 24 * 3600;
const HERE: &str = "192.0.2.1";
const ELSEWHERE: &str = "198.51.100.7";

pub async fn the_first_admin_is_made_once_however_many_try<S: Accounts + Additions + 'static>(world: &World<S>) {
    assert!(!world.store.has_admin().await.unwrap());
    world.add("viewer", Role::Viewer).await;
    assert!(!world.store.has_admin().await.unwrap());
    let tries = join_all((0..8).map(|number| {
        let user = new_user(&format!("admin{number}"), Role::Admin);
        world.store.add_user(user, Founding::First, note("setup"))
    }));
    let added: Vec<Added> = tries.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(added.iter().filter(|added| matches!(added, Added::Added(_))).count(), 1);
    assert_eq!(added.iter().filter(|added| matches!(added, Added::AdminExists)).count(), 7);
    assert!(world.store.has_admin().await.unwrap());
    assert_eq!(world.actions().await, ["users.create", "setup"], "what was refused is not noted as done");
}

pub async fn names_and_addresses_are_unique<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    let mut other = new_user("bob", Role::Viewer);
    other.username = ada.username.clone();
    assert_eq!(world.store.add_user(other, Founding::Later, note("x")).await.unwrap(), Added::UsernameTaken);
    let mut other = new_user("bob", Role::Viewer);
    other.email = ada.email.clone();
    assert_eq!(world.store.add_user(other, Founding::Later, note("x")).await.unwrap(), Added::EmailTaken);
    for login in ["ada", "ada@example.org"] {
        assert_eq!(world.store.find_user_by_login(login).await.unwrap(), Some(ada.clone()), "{login}");
    }
    assert_eq!(world.store.find_user_by_login("bob").await.unwrap(), None);
    assert_eq!(world.store.find_user(ada.id).await.unwrap(), Some(ada));
    assert_eq!(world.actions().await, ["users.create"]);
}

pub async fn users_are_listed_in_pages<S: Accounts + Additions + 'static>(world: &World<S>) {
    for name in ["carl", "anna", "dora", "bert", "emil"] {
        world.add(name, Role::Viewer).await;
    }
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let page = world.store.list_users(after, 2).await.unwrap();
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        names.extend(page.iter().map(|user| user.username.as_str().to_owned()));
    }
    assert_eq!(names, ["anna", "bert", "carl", "dora", "emil"]);
}

pub async fn the_last_active_admin_stays<S: Accounts + Additions + 'static>(world: &World<S>) {
    let (ada, eve) = (world.add("ada", Role::Admin).await, world.add("eve", Role::Admin).await);
    let demote = UserChange { role: Some(Role::Viewer), ..UserChange::default() };
    let stop = UserChange { active: Some(false), ..UserChange::default() };
    // Both at once: one of them is the last by then.
    let (one, other) = tokio::join!(
        world.store.change_user(ada.id, demote.clone(), note("users.change")),
        world.store.change_user(eve.id, stop.clone(), note("users.change")),
    );
    let outcomes = [one.unwrap(), other.unwrap()];
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Changed::LastAdmin)).count(), 1, "{outcomes:?}");
    let left = if matches!(outcomes[0], Changed::LastAdmin) { ada.id } else { eve.id };
    for change in [demote, stop] {
        assert_eq!(world.store.change_user(left, change, note("users.change")).await.unwrap(), Changed::LastAdmin);
    }
    let nobody = UserId::from_uuid(Uuid::from_u128(1));
    assert_eq!(world.store.change_user(nobody, UserChange::default(), note("x")).await.unwrap(), Changed::NotFound);
    assert_eq!(world.actions().await, ["users.create", "users.create", "users.change"]);
}

fn now<S>(world: &World<S>) -> Timestamp {
    fettle_app::ports::clock::Clock::now(&*world.time)
}

pub async fn a_wrong_password_counts_and_a_session_forgets_it<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    assert_eq!(world.store.tries(ada.id, HERE).await.unwrap(), Tries::default());
    for count in 1..=FREE_FAILURES + 1 {
        let tries = world.store.fail_login(ada.id, HERE, note("login")).await.unwrap();
        assert_eq!((tries.here.count, tries.anywhere.count), (count, count));
        assert_eq!(tries.locked(now(world)), count > FREE_FAILURES);
        assert_eq!(world.store.tries(ada.id, HERE).await.unwrap(), tries);
    }
    assert!(!world.store.tries(ada.id, ELSEWHERE).await.unwrap().locked(now(world)));
    let seen = world.store.find_user(ada.id).await.unwrap().unwrap();
    assert_eq!(seen.failures.count, FREE_FAILURES + 1);
    world.begin(&ada, Kind::Browser, 1).await;
    let seen = world.store.find_user(ada.id).await.unwrap().unwrap();
    assert_eq!((seen.failures.count, seen.failures.last_at), (0, None));
    assert!(seen.last_login_at.is_some());
    let tries = world.store.tries(ada.id, HERE).await.unwrap();
    assert_eq!(tries, Tries { signed_in_at: seen.last_login_at, ..Tries::default() });
}

pub async fn who_signed_in_from_an_address_is_not_locked_out_there_by_others<S: Accounts + Additions + 'static>(
    world: &World<S>,
) {
    let ada = world.add("ada", Role::Viewer).await;
    world.begin(&ada, Kind::Browser, 1).await;
    // Those who come at once are all counted.
    let tries = join_all((0..=FREE_FAILURES_ANYWHERE).map(|number| {
        let world = &world;
        async move { world.store.fail_login(ada.id, &format!("198.51.100.{number}"), note("login")).await.unwrap() }
    }));
    let counts: std::collections::BTreeSet<u32> = tries.await.iter().map(|tries| tries.anywhere.count).collect();
    assert_eq!(counts, (1..=FREE_FAILURES_ANYWHERE + 1).collect());
    let locked =
        |address: &'static str| async move { world.store.tries(ada.id, address).await.unwrap().locked(now(world)) };
    assert!(!locked(HERE).await && locked("203.0.113.9").await);
    for _ in 0..=FREE_FAILURES {
        world.store.fail_login(ada.id, HERE, note("login")).await.unwrap();
    }
    assert!(locked(HERE).await, "its own wrong passwords count there");
}

pub async fn a_new_password_opens_every_address<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    for _ in 0..2 * FREE_FAILURES_ANYWHERE {
        world.store.fail_login(ada.id, HERE, note("login")).await.unwrap();
    }
    assert!(world.store.tries(ada.id, HERE).await.unwrap().locked(now(world)));
    let change = UserChange { password: Some(PasswordHash("new".into())), ..UserChange::default() };
    world.store.change_user(ada.id, change, note("users.change")).await.unwrap();
    for address in [HERE, ELSEWHERE] {
        assert!(!world.store.tries(ada.id, address).await.unwrap().locked(now(world)), "{address}");
    }
}

fn identity(subject: &str) -> Identity {
    Identity { issuer: "https://id.example.org".into(), subject: subject.into() }
}

pub async fn an_identity_is_one_accounts_and_needs_no_password<S: Accounts + Additions + 'static>(world: &World<S>) {
    let mut wanted = new_user("ada", Role::Viewer);
    (wanted.password, wanted.identity) = (PasswordHash::none(), Some(identity("1")));
    let added = world.store.add_user(wanted, Founding::Later, note("register")).await.unwrap();
    let Added::Added(ada) = added else { panic!("{added:?}") };
    assert_eq!(world.store.find_user_by_identity(&identity("1")).await.unwrap(), Some(ada.clone()));
    let other = Identity { issuer: "https://other.example.org".into(), ..identity("1") };
    for unknown in [identity("2"), other] {
        assert_eq!(world.store.find_user_by_identity(&unknown).await.unwrap(), None);
    }
    let mut again = new_user("eve", Role::Admin);
    again.identity = Some(identity("1"));
    let refused = world.store.add_user(again, Founding::Later, note("register")).await.unwrap();
    assert_eq!(refused, Added::IdentityTaken);
    assert_eq!(world.store.find_user_by_login("eve").await.unwrap(), None);

    let begin = |number| {
        let session = new_session(&ada, Kind::Browser, number);
        async move { world.store.begin_session(session, SignInBy::Identity, note("login")).await.unwrap() }
    };
    assert!(begin(1).await.is_some());
    assert_eq!(world.store.find_user(ada.id).await.unwrap().unwrap().password, PasswordHash::none());
    let stop = UserChange { active: Some(false), ..UserChange::default() };
    world.store.change_user(ada.id, stop, note("users.change")).await.unwrap();
    assert!(begin(2).await.is_none());
}

pub async fn of_many_who_come_with_one_identity_one_is_added<S: Accounts + Additions + 'static>(world: &World<S>) {
    let tries = join_all((0..6).map(|number| {
        let mut user = new_user(&format!("ada{number}"), Role::Viewer);
        user.identity = Some(identity("1"));
        world.store.add_user(user, Founding::Later, note("register"))
    }));
    let added: Vec<Added> = tries.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(added.iter().filter(|added| matches!(added, Added::Added(_))).count(), 1, "{added:?}");
    assert_eq!(added.iter().filter(|added| matches!(added, Added::IdentityTaken)).count(), 5, "{added:?}");
    assert_eq!(world.store.list_users(None, 10).await.unwrap().len(), 1);
}

pub async fn addresses_are_forgotten<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    for number in 0..3 {
        world.store.fail_login(ada.id, &format!("198.51.100.{number}"), note("login")).await.unwrap();
    }
    world.pass(DAY);
    world.begin(&ada, Kind::Browser, 1).await;
    assert_eq!(world.store.forget_addresses(now(world), 2).await.unwrap(), 2);
    assert_eq!(world.store.forget_addresses(now(world), 2).await.unwrap(), 1);
    assert_eq!(world.store.forget_addresses(now(world), 2).await.unwrap(), 0);
    assert!(world.store.tries(ada.id, HERE).await.unwrap().signed_in_at.is_some());
}

pub async fn a_session_begins_only_under_the_password_that_was_checked<S: Accounts + Additions + 'static>(
    world: &World<S>,
) {
    let ada = world.add("ada", Role::Viewer).await;
    let begin = |number, verified: &str, upgraded: Option<&str>| {
        let (verified, upgraded) = (PasswordHash(verified.into()), upgraded.map(|hash| PasswordHash(hash.into())));
        let (session, by) = (new_session(&ada, Kind::Browser, number), SignInBy::Password { verified, upgraded });
        async move { world.store.begin_session(session, by, note("login")).await.unwrap() }
    };
    assert!(begin(1, "another", None).await.is_none());
    let session = begin(2, "hash of ada", Some("a better one")).await.unwrap();
    assert_eq!((session.user, session.kind, session.address.as_str()), (ada.id, Kind::Browser, "192.0.2.1"));
    assert!(begin(3, "hash of ada", None).await.is_none());
    assert!(begin(4, "a better one", None).await.is_some());
    let stop = UserChange { active: Some(false), ..UserChange::default() };
    world.store.change_user(ada.id, stop, note("users.change")).await.unwrap();
    assert!(begin(5, "a better one", None).await.is_none());
    assert_eq!(world.actions().await, ["users.create", "login", "login", "users.change"]);
}

pub async fn a_new_password_ends_all_sessions_but_one<S: Accounts + Additions + 'static>(world: &World<S>) {
    let (ada, eve) = (world.add("ada", Role::Viewer).await, world.add("eve", Role::Viewer).await);
    let kept = world.begin(&ada, Kind::Browser, 1).await;
    world.begin(&ada, Kind::Token, 2).await;
    world.begin(&eve, Kind::Browser, 3).await;
    let change =
        UserChange { password: Some(PasswordHash("new".into())), keep: Some(kept.id), ..UserChange::default() };
    let changed = world.store.change_user(ada.id, change, note("me.password")).await.unwrap();
    assert!(matches!(changed, Changed::Changed(user) if user.password.0 == "new"));
    let left: Vec<SessionId> = world.store.list_sessions(ada.id).await.unwrap().iter().map(|one| one.id).collect();
    assert_eq!(left, [kept.id]);
    assert_eq!(world.store.list_sessions(eve.id).await.unwrap().len(), 1);
    assert_eq!(world.store.exchange(secret(2), secret(9), note("refresh")).await.unwrap(), Exchanged::Over);
}

pub async fn who_is_made_inactive_has_no_session_left<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    let session = world.begin(&ada, Kind::Browser, 1).await;
    let stop = UserChange { active: Some(false), keep: Some(session.id), ..UserChange::default() };
    world.store.change_user(ada.id, stop, note("users.change")).await.unwrap();
    let (session, user) = world.store.find_session(secret(1)).await.unwrap().unwrap();
    assert!(session.life.ended_at.is_some() && !user.standing.active);
}

pub async fn a_browser_session_slides_and_ends<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    let session = world.begin(&ada, Kind::Browser, 1).await;
    let begun = session.life.created_at;
    for _ in 0..5 {
        world.pass(6 * DAY);
        world.store.touch_session(session.id).await.unwrap();
    }
    let (used, _) = world.store.find_session(secret(1)).await.unwrap().unwrap();
    let whole = i64::try_from(WHOLE_LIMIT.as_secs()).unwrap();
    assert_eq!(used.life.expires_at.duration_since(begun).as_secs(), whole);
    assert_eq!(used.life.created_at, begun);
    world.pass(DAY);
    world.store.touch_session(session.id).await.unwrap();
    let (over, _) = world.store.find_session_by_id(session.id).await.unwrap().unwrap();
    assert_eq!(over.life.expires_at, used.life.expires_at, "what is over is not prolonged");
    assert_eq!(world.store.list_sessions(ada.id).await.unwrap(), []);
    assert_eq!(world.store.find_session(secret(7)).await.unwrap(), None);
}

pub async fn a_session_ends_once_and_only_live_ones_are_listed<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    let first = world.begin(&ada, Kind::Browser, 1).await;
    world.pass(1);
    let second = world.begin(&ada, Kind::Token, 2).await;
    let listed: Vec<SessionId> = world.store.list_sessions(ada.id).await.unwrap().iter().map(|one| one.id).collect();
    assert_eq!(listed, [second.id, first.id]);
    assert!(world.store.end_session(first.id, note("sessions.end")).await.unwrap());
    assert!(!world.store.end_session(first.id, note("sessions.end")).await.unwrap());
    assert_eq!(world.store.list_sessions(ada.id).await.unwrap().len(), 1);
    assert_eq!(world.actions().await, ["users.create", "login", "login", "sessions.end"]);
}

pub async fn one_more_session_than_fits_ends_the_oldest<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    for number in 0..=MAX_SESSIONS {
        world.pass(1);
        world.begin(&ada, Kind::Browser, u8::try_from(number).unwrap()).await;
    }
    assert_eq!(world.store.list_sessions(ada.id).await.unwrap().len(), usize::from(MAX_SESSIONS));
    let ended = |number| async move {
        world.store.find_session(secret(number)).await.unwrap().unwrap().0.life.ended_at.is_some()
    };
    assert!(ended(0).await && !ended(1).await);
}

pub async fn a_refresh_token_rotates_and_a_spent_one_ends_the_family<S: Accounts + Additions + 'static>(
    world: &World<S>,
) {
    let ada = world.add("ada", Role::Viewer).await;
    let (family, other) = (world.begin(&ada, Kind::Token, 1).await, world.begin(&ada, Kind::Token, 100).await);
    for number in 1..4 {
        world.pass(6 * DAY);
        let rotated = world.store.exchange(secret(number), secret(number + 1), note("refresh")).await.unwrap();
        let Exchanged::Rotated(session, user) = rotated else { panic!("{rotated:?}") };
        assert_eq!((session.id, user.id), (family.id, ada.id));
    }
    let reused = world.store.exchange(secret(2), secret(50), note("refresh")).await.unwrap();
    assert!(matches!(reused, Exchanged::Reused(session) if session.id == family.id));
    for number in [2, 4, 50] {
        let after = world.store.exchange(secret(number), secret(51), note("refresh")).await.unwrap();
        assert!(matches!(after, Exchanged::Over | Exchanged::Unknown), "{number}: {after:?}");
    }
    let (other, _) = world.store.find_session_by_id(other.id).await.unwrap().unwrap();
    assert!(other.life.ended_at.is_none(), "another sign-in is no part of the family");
    let last = world.log().await.pop().unwrap().note;
    assert_eq!((last.result.as_str(), last.actor.as_str()), ("refused", "ada"));
    assert_eq!(last.object, family.id.to_string());
}

pub async fn of_many_who_show_one_token_one_rotates_and_the_family_ends<S: Accounts + Additions + 'static>(
    world: &World<S>,
) {
    let ada = world.add("ada", Role::Viewer).await;
    let family = world.begin(&ada, Kind::Token, 1).await;
    let tries = join_all((2..10).map(|next| world.store.exchange(secret(1), secret(next), note("refresh"))));
    let outcomes: Vec<Exchanged> = tries.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|one| matches!(one, Exchanged::Rotated(..))).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|one| matches!(one, Exchanged::Reused(_))).count(), 1, "{outcomes:?}");
    for next in 2..10 {
        let after = world.store.exchange(secret(next), secret(77), note("refresh")).await.unwrap();
        assert!(matches!(after, Exchanged::Over | Exchanged::Unknown), "{next}: {after:?}");
    }
    let (family, _) = world.store.find_session_by_id(family.id).await.unwrap().unwrap();
    assert!(family.life.ended_at.is_some());
}

pub async fn a_browsers_secret_is_no_refresh_token<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    world.begin(&ada, Kind::Browser, 1).await;
    assert_eq!(world.store.exchange(secret(1), secret(2), note("refresh")).await.unwrap(), Exchanged::Unknown);
}

pub async fn keys_are_found_by_their_secret_counted_and_removed<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    let add = |number: u8| {
        let key = NewApiKey {
            id: ApiKeyId::from_uuid(Uuid::from_u128(u128::from(number) + 1)),
            user: ada.id,
            name: format!("key {number}"),
            prefix: "fettle_key_ab".into(),
            secret: secret(number),
            scopes: vec![Scope::Read, Scope::Write],
            expires_at: Some(Timestamp::from_second(1_900_000_000).unwrap()),
        };
        world.store.add_api_key(key, note("api_keys.create"))
    };
    let first = add(0).await.unwrap().unwrap();
    assert_eq!(first.scopes, [Scope::Read, Scope::Write]);
    let (found, owner) = world.store.find_api_key(secret(0)).await.unwrap().unwrap();
    assert_eq!((found, owner.id), (first.clone(), ada.id));
    world.store.touch_api_key(first.id).await.unwrap();
    let found = world.store.find_api_key_by_id(first.id).await.unwrap().unwrap();
    assert!(found.last_used_at.is_some());
    for number in 1..MAX_API_KEYS {
        world.pass(1);
        assert!(add(u8::try_from(number).unwrap()).await.unwrap().is_some());
    }
    assert!(add(200).await.unwrap().is_none());
    let listed = world.store.list_api_keys(ada.id).await.unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str()), (usize::from(MAX_API_KEYS), "key 49"));
    assert!(world.store.remove_api_key(first.id, note("api_keys.end")).await.unwrap());
    assert!(!world.store.remove_api_key(first.id, note("api_keys.end")).await.unwrap());
    assert_eq!(world.store.find_api_key(secret(0)).await.unwrap(), None);
    assert_eq!(world.actions().await.iter().filter(|action| *action == "api_keys.end").count(), 1);

    let eve = world.add("eve", Role::Viewer).await;
    let hers = NewApiKey {
        id: ApiKeyId::from_uuid(Uuid::from_u128(500)),
        user: eve.id,
        name: "hers".into(),
        prefix: "fettle_key_ab".into(),
        secret: secret(200),
        scopes: vec![Scope::Read],
        expires_at: None,
    };
    world.store.add_api_key(hers, note("api_keys.create")).await.unwrap().unwrap();
    add(100).await.unwrap().unwrap();
    let (password, without_keys) = (Some(PasswordHash("new".into())), true);
    let own = UserChange { password: password.clone(), ..UserChange::default() };
    world.store.change_user(ada.id, own, note("me.password")).await.unwrap();
    assert!(world.store.find_api_key(secret(100)).await.unwrap().is_some());
    let others = UserChange { password, without_keys, ..UserChange::default() };
    world.store.change_user(ada.id, others, note("users.change")).await.unwrap();
    assert_eq!(world.store.list_api_keys(ada.id).await.unwrap(), []);
    assert_eq!(world.store.list_api_keys(eve.id).await.unwrap().len(), 1);
}

pub async fn of_many_keys_at_once_no_more_are_made_than_fit<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    let most = u8::try_from(MAX_API_KEYS).unwrap();
    let tries = join_all((0..most + 5).map(|number| {
        let key = NewApiKey {
            id: ApiKeyId::from_uuid(Uuid::from_u128(u128::from(number) + 1)),
            user: ada.id,
            name: "a key".into(),
            prefix: "fettle_key_ab".into(),
            secret: secret(number),
            scopes: vec![Scope::Read],
            expires_at: None,
        };
        world.store.add_api_key(key, note("api_keys.create"))
    }));
    let made = tries.await.into_iter().filter(|added| added.as_ref().unwrap().is_some()).count();
    assert_eq!(made, usize::from(most));
}

pub async fn the_log_is_one_chain_for_concurrent_writers<S: Accounts + Additions + 'static>(world: &World<S>) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let store = Arc::clone(&world.store);
        writers.spawn(async move {
            for number in 0..10 {
                store.note(note(&format!("{writer}.{number}"))).await.unwrap();
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    let log = world.log().await;
    assert_eq!(log.len(), 80);
    assert_eq!(verify(Head::EMPTY, &log).map(|head| head.sequence), Ok(80));
}

pub async fn the_log_is_read_backwards_in_pages<S: Accounts + Additions + 'static>(world: &World<S>) {
    for number in 0..20 {
        let mut odd = note("x");
        odd.detail = format!("{number}\r\n\u{1b}[31m{}", "ä".repeat(1000));
        let entry = world.store.note(odd).await.unwrap();
        assert!(!entry.note.detail.chars().any(char::is_control));
    }
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = world.store.newest_entries(before, 6).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.sequence);
        seen.extend(page);
    }
    seen.reverse();
    assert_eq!(seen, world.log().await);
}

pub async fn signing_keys_are_added_once_and_forgotten<S: Accounts + Additions + 'static>(world: &World<S>) {
    let begin = fettle_app::ports::clock::Clock::now(&*world.time);
    let later = |seconds| begin.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap();
    let tries = join_all(
        (1..6u8).map(|number| world.store.add_signing_key(Uuid::from_u128(number.into()), [number; 32], begin)),
    );
    tries.await.into_iter().for_each(Result::unwrap);
    let first = world.store.signing_keys().await.unwrap();
    assert_eq!(first.len(), 1, "those who come at once make one");
    world.pass(100);
    world.store.add_signing_key(Uuid::from_u128(9), [9; 32], later(50)).await.unwrap();
    let keys = world.store.signing_keys().await.unwrap();
    assert_eq!((keys.len(), keys[0].secret), (2, [9; 32]));
    assert_eq!(world.store.forget_signing_keys(later(50)).await.unwrap(), 1);
    assert_eq!(world.store.signing_keys().await.unwrap(), keys[..1]);
}

pub async fn old_sessions_are_forgotten_with_their_tokens<S: Accounts + Additions + 'static>(world: &World<S>) {
    let ada = world.add("ada", Role::Viewer).await;
    for number in 0..3 {
        let session = NewSession {
            id: SessionId::from_uuid(Uuid::from_u128(u128::from(number) + 1)),
            ..new_session(&ada, Kind::Token, number)
        };
        world.store.begin_session(session, by_password(&ada), note("login")).await.unwrap().unwrap();
    }
    world.store.exchange(secret(0), secret(50), note("refresh")).await.unwrap();
    assert_eq!(world.store.forget_sessions(now(world), 100).await.unwrap(), 0);
    world.pass(IDLE_LIMIT.as_secs() + 1);
    let fresh = world.begin(&ada, Kind::Token, 9).await;
    assert_eq!(world.store.forget_sessions(now(world), 2).await.unwrap(), 2);
    assert_eq!(world.store.forget_sessions(now(world), 2).await.unwrap(), 1);
    assert_eq!(world.store.exchange(secret(0), secret(51), note("refresh")).await.unwrap(), Exchanged::Unknown);
    assert!(world.store.find_session_by_id(fresh.id).await.unwrap().is_some());
}

fn addition(sort: Sort, name: &str, value: &str) -> Addition {
    Addition { sort, name: name.to_owned(), value: value.to_owned(), secret: None, changed_at: Timestamp::UNIX_EPOCH }
}

fn sealed(key: &str, byte: u8) -> Sealed {
    Sealed { key: key.to_owned(), bytes: vec![byte; 60] }
}

pub async fn what_is_added_is_kept_changed_and_dropped<S: Accounts + Additions + 'static>(world: &World<S>) {
    let store = &world.store;
    let coder = Addition { secret: Some(sealed("first", 1)), ..addition(Sort::Model, "coder", r#"{"v":"1"}"#) };
    assert_eq!(store.keep_addition(coder.clone()).await.unwrap(), Kept::New);
    // A name is unique within its sort alone.
    let widget = addition(Sort::Repository, "coder", "{}");
    assert_eq!(store.keep_addition(widget.clone()).await.unwrap(), Kept::New);
    assert_eq!(store.additions().await.unwrap(), [coder.clone(), widget.clone()]);
    let changed_at = Timestamp::from_second(7).unwrap();
    let coder = Addition { secret: None, value: "\"\\u0000 \u{1f9ea}\"".to_owned(), changed_at, ..coder };
    assert_eq!(store.keep_addition(coder.clone()).await.unwrap(), Kept::Changed);
    assert_eq!(store.additions().await.unwrap(), [coder, widget.clone()]);
    assert!(store.drop_addition(Sort::Model, "coder").await.unwrap());
    assert!(!store.drop_addition(Sort::Model, "coder").await.unwrap());
    assert!(!store.drop_addition(Sort::Model, "nul \0 in a name").await.unwrap());
    assert_eq!(store.additions().await.unwrap(), [widget]);
}

pub async fn of_many_that_are_added_at_once_no_more_are_kept_than_fit<S: Accounts + Additions + 'static>(
    world: &World<S>,
) {
    for number in 0..MAX_ADDITIONS - 2 {
        world.store.keep_addition(addition(Sort::Model, &format!("model{number}"), "{}")).await.unwrap();
    }
    let tries =
        join_all((0..8).map(|number| world.store.keep_addition(addition(Sort::Model, &format!("more{number}"), "{}"))));
    let kept: Vec<Kept> = tries.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(kept.iter().filter(|kept| **kept == Kept::New).count(), 2, "{kept:?}");
    assert_eq!(kept.iter().filter(|kept| **kept == Kept::Full).count(), 6, "{kept:?}");
    let known = addition(Sort::Model, "model0", "[]");
    assert_eq!(world.store.keep_addition(known).await.unwrap(), Kept::Changed, "a change needs no room");
    assert_eq!(world.store.keep_addition(addition(Sort::Repository, "a/b", "{}")).await.unwrap(), Kept::New);
}

pub async fn a_secret_is_sealed_anew_only_if_it_is_what_it_was<S: Accounts + Additions + 'static>(world: &World<S>) {
    let (first, second) = (sealed("first", 1), sealed("second", 2));
    let coder = Addition { secret: Some(first.clone()), ..addition(Sort::Model, "coder", "{}") };
    world.store.keep_addition(coder.clone()).await.unwrap();
    let reseal = |from: &Sealed| world.store.reseal_addition(Sort::Model, "coder", from.clone(), second.clone());
    assert!(!reseal(&sealed("first", 9)).await.unwrap());
    assert!(reseal(&first).await.unwrap());
    assert!(!reseal(&first).await.unwrap());
    assert_eq!(world.store.additions().await.unwrap(), [Addition { secret: Some(second.clone()), ..coder }]);
}
