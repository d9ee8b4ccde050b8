//! What every store of accounts does: sessions and their exchange, what ends what, the chained log; and what people add.
//!
//! `contract::accounts!(name, make().await)` makes one test of each case, on the empty store that the expression opens; after each,
//! the log's chain must hold.

mod cases;

use std::sync::Arc;
use std::time::Duration;

use fettle_app::ports::accounts::{
    Accounts, Added, Digest, Founding, NewSession, NewUser, PasswordHash, Session, SignInBy, User,
};
use fettle_app::ports::additions::Additions;
use fettle_domain::access::Role;
use fettle_domain::account::{Email, Username};
use fettle_domain::audit_log::{Entry, Head, Note, verify};
use fettle_domain::id::{SessionId, UserId};
use fettle_domain::session::Kind;
use uuid::Uuid;

use super::ledger::ManualTime;

pub use cases::*;

/// Entries of one page of the log; more than a page is written in one case.
const PAGE: u16 = 7;

/// One store with the time it goes by, and short words for what cases do all the time.
pub struct World<S> {
    pub store: Arc<S>,
    pub time: Arc<ManualTime>,
    /// Lives as long as the store.
    pub _held: Box<dyn std::any::Any + Send + Sync>,
}

pub fn note(action: &str) -> Note {
    Note {
        actor: "somebody".into(),
        action: action.into(),
        object: String::new(),
        address: "192.0.2.1".into(),
        result: "done".into(),
        detail: String::new(),
    }
}

pub fn secret(number: u8) -> Digest {
    [number; 32]
}

impl<S: Accounts + Additions + 'static> World<S> {
    pub async fn add(&self, name: &str, role: Role) -> User {
        match self.store.add_user(new_user(name, role), Founding::Later, note("users.create")).await.unwrap() {
            Added::Added(user) => user,
            other => panic!("{name} was not added: {other:?}"),
        }
    }

    pub async fn begin(&self, user: &User, kind: Kind, number: u8) -> Session {
        let begun = self.store.begin_session(new_session(user, kind, number), by_password(user), note("login")).await;
        begun.unwrap().expect("the account may sign in")
    }

    pub fn pass(&self, seconds: u64) {
        self.time.advance(Duration::from_secs(seconds));
    }

    /// The whole log, in its order.
    pub async fn log(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let after = all.last().map_or(0, |entry| entry.sequence);
            let page = self.store.entries_after(after, PAGE).await.unwrap();
            if page.is_empty() {
                return all;
            }
            all.extend(page);
        }
    }

    pub async fn actions(&self) -> Vec<String> {
        self.log().await.into_iter().map(|entry| entry.note.action).collect()
    }

    pub async fn finish(self) {
        verify(Head::EMPTY, &self.log().await).expect("the chain holds");
    }
}

pub fn new_user(name: &str, role: Role) -> NewUser {
    // In the order in which names are made up, so that lists have one.
    let number = name.bytes().fold(0u128, |number, byte| (number << 8) | u128::from(byte));
    NewUser {
        id: UserId::from_uuid(Uuid::from_u128(number)),
        username: Username::parse(name).unwrap(),
        email: Email::parse(&format!("{name}@example.org")).unwrap(),
        password: PasswordHash(format!("hash of {name}")),
        role,
        identity: None,
    }
}

pub fn by_password(user: &User) -> SignInBy {
    SignInBy::Password { verified: user.password.clone(), upgraded: None }
}

pub fn new_session(user: &User, kind: Kind, number: u8) -> NewSession {
    NewSession {
        id: SessionId::from_uuid(Uuid::from_u128(u128::from(number) + 1)),
        user: user.id,
        kind,
        secret: secret(number),
        address: "192.0.2.1".into(),
        user_agent: "a browser".into(),
    }
}

/// All cases against the [`World`] that the expression makes, in a module of the given name.
#[macro_export]
macro_rules! accounts_contract {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;

            $crate::accounts_contract! { @cases $make;
                the_first_admin_is_made_once_however_many_try,
                names_and_addresses_are_unique,
                users_are_listed_in_pages,
                the_last_active_admin_stays,
                a_wrong_password_counts_and_a_session_forgets_it,
                who_signed_in_from_an_address_is_not_locked_out_there_by_others,
                a_new_password_opens_every_address,
                an_identity_is_one_accounts_and_needs_no_password,
                of_many_who_come_with_one_identity_one_is_added,
                addresses_are_forgotten,
                a_session_begins_only_under_the_password_that_was_checked,
                a_new_password_ends_all_sessions_but_one,
                who_is_made_inactive_has_no_session_left,
                a_browser_session_slides_and_ends,
                a_session_ends_once_and_only_live_ones_are_listed,
                one_more_session_than_fits_ends_the_oldest,
                a_refresh_token_rotates_and_a_spent_one_ends_the_family,
                of_many_who_show_one_token_one_rotates_and_the_family_ends,
                a_browsers_secret_is_no_refresh_token,
                keys_are_found_by_their_secret_counted_and_removed,
                of_many_keys_at_once_no_more_are_made_than_fit,
                the_log_is_one_chain_for_concurrent_writers,
                the_log_is_read_backwards_in_pages,
                signing_keys_are_added_once_and_forgotten,
                old_sessions_are_forgotten_with_their_tokens,
                what_is_added_is_kept_changed_and_dropped,
                of_many_that_are_added_at_once_no_more_are_kept_than_fit,
                a_secret_is_sealed_anew_only_if_it_is_what_it_was,
            }
        }
    };
    (@cases $make:expr; $($case:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let world = $make;
            $crate::contract::accounts::$case(&world).await;
            world.finish().await;
        }
    )*};
}
