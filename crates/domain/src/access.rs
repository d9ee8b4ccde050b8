//! Who may do what: one rule for every operation of the API, whichever way somebody has proven who they are.

use serde::{Deserialize, Serialize};

use crate::id::UserId;

/// What an account may do; each may all that the one before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Viewer,
    Maintainer,
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Maintainer, Self::Admin];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Maintainer => "maintainer",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == text)
    }
}

/// How far an API key reaches; each reaches as far as the one before, and never beyond its owner's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Read,
    Write,
    Admin,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == text)
    }
}

macro_rules! actions {
    ($($name:ident = $word:literal: $least:ident, $scope:ident;)*) => {
        /// What an operation does. Each has the least role that may do it, and the scope that a key needs for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Action {
            $($name),*
        }

        impl Action {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word),*
                }
            }

            pub const fn least_role(self) -> Role {
                match self {
                    $(Self::$name => Role::$least),*
                }
            }

            pub const fn scope(self) -> Scope {
                match self {
                    $(Self::$name => Scope::$scope),*
                }
            }
        }
    };
}

actions! {
    TasksRead = "tasks.read": Viewer, Read;
    TasksCreate = "tasks.create": Maintainer, Write;
    TasksCancel = "tasks.cancel": Maintainer, Write;
    TasksRetry = "tasks.retry": Maintainer, Write;
    RunsCreate = "runs.create": Maintainer, Write;
    MessagesCreate = "messages.create": Maintainer, Write;
    PullRequestsCreate = "pull_requests.create": Maintainer, Write;
    JobsRead = "jobs.read": Viewer, Read;
    JobsRedrive = "jobs.redrive": Maintainer, Write;
    LedgerAudit = "ledger.audit": Viewer, Read;
    // It spends what the forge lets us ask.
    ForgeAudit = "forge.audit": Maintainer, Write;
    SystemRead = "system.read": Viewer, Read;
    // It names whom keys are sent to.
    ModelsChange = "models.change": Admin, Admin;
    // It spends what a provider counts.
    ModelsTry = "models.try": Maintainer, Write;
    RepositoriesChange = "repositories.change": Admin, Admin;
    ForgeChange = "forge.change": Admin, Admin;
    SecretsRotate = "secrets.rotate": Admin, Admin;
    // Where secrets lie and whom this machine talks to is nothing for everybody who may look at Tasks.
    SettingsRead = "settings.read": Admin, Admin;
    MeRead = "me.read": Viewer, Read;
    // A key that leaked must not become a password, a longer-lived key or an end to its owner's sessions.
    MePassword = "me.password": Viewer, Admin;
    SessionsRead = "sessions.read": Viewer, Read;
    SessionsEnd = "sessions.end": Viewer, Admin;
    ApiKeysRead = "api_keys.read": Viewer, Read;
    ApiKeysCreate = "api_keys.create": Viewer, Admin;
    ApiKeysEnd = "api_keys.end": Viewer, Admin;
    UsersRead = "users.read": Admin, Admin;
    UsersCreate = "users.create": Admin, Admin;
    UsersChange = "users.change": Admin, Admin;
    AuditLogRead = "audit_log.read": Admin, Admin;
}

/// What is acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// What belongs to the installation.
    Shared,
    /// A session or key of this account, or the account itself as its owner sees it.
    Of(UserId),
}

/// How somebody has proven who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    Session,
    Token,
    ApiKey,
    AdminKey,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `None` for the holder of the admin key, who is no account.
    pub user: Option<UserId>,
    /// As it is recorded: a user name, or `admin`.
    pub name: String,
    pub role: Role,
    /// `None`: whatever the role allows.
    pub scope: Option<Scope>,
    pub via: Via,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this needs the role `{}`", .0.name())]
    Role(Role),
    #[error("this needs a key with the scope `{}`", .0.name())]
    Scope(Scope),
    /// To be answered as if it did not exist: whose it is, is nobody else's business.
    #[error("this is somebody else's")]
    NotYours,
}

/// Whether `actor` may. What belongs to an account is its owner's and the admins'.
pub fn may(actor: &Actor, action: Action, object: Object) -> Result<(), Refusal> {
    if actor.role < action.least_role() {
        return Err(Refusal::Role(action.least_role()));
    }
    if actor.scope.is_some_and(|scope| scope < action.scope()) {
        return Err(Refusal::Scope(action.scope()));
    }
    match object {
        Object::Shared => Ok(()),
        Object::Of(owner) if actor.user == Some(owner) => Ok(()),
        Object::Of(_) if actor.role < Role::Admin => Err(Refusal::NotYours),
        // An admin's key that reads was made to look at Tasks, and not at other people.
        Object::Of(_) if actor.scope.is_some_and(|scope| scope < Scope::Admin) => Err(Refusal::Scope(Scope::Admin)),
        Object::Of(_) => Ok(()),
    }
}

/// All that `actor` may do to what is shared or its own, for a page that shows only what works.
pub fn allowed(actor: &Actor) -> Vec<Action> {
    let own = actor.user.map_or(Object::Shared, Object::Of);
    // The holder of the admin key has no password to change, and no keys.
    let needs_account = |action| matches!(action, Action::MePassword | Action::ApiKeysCreate);
    let can = |action| actor.user.is_some() || !needs_account(action);
    Action::ALL.iter().copied().filter(|&action| can(action) && may(actor, action, own).is_ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proptest::sample::select;
    use uuid::Uuid;

    use super::*;

    fn user(number: u8) -> UserId {
        UserId::from_uuid(Uuid::from_u128(number.into()))
    }

    fn actors() -> impl Strategy<Value = Actor> {
        let scope = proptest::option::of(select(Scope::ALL.to_vec()));
        (select(Role::ALL.to_vec()), scope, proptest::option::of(0u8..3)).prop_map(|(role, scope, number)| Actor {
            user: number.map(user),
            name: "somebody".into(),
            role,
            scope,
            via: Via::ApiKey,
        })
    }

    fn objects() -> impl Strategy<Value = Object> {
        prop_oneof![Just(Object::Shared), (0u8..3).prop_map(|number| Object::Of(user(number)))]
    }

    proptest! {
        #[test]
        fn a_higher_role_or_scope_never_loses_anything(
            actor in actors(), action in select(Action::ALL.to_vec()), object in objects(), role in select(Role::ALL.to_vec()),
        ) {
            if may(&actor, action, object).is_ok() {
                let higher = Actor { role: actor.role.max(role), ..actor.clone() };
                prop_assert_eq!(may(&higher, action, object), Ok(()));
                let unbound = Actor { scope: None, ..actor };
                prop_assert_eq!(may(&unbound, action, object), Ok(()));
            }
        }

        #[test]
        fn nobody_but_its_owner_and_admins_reaches_what_is_somebodys(
            actor in actors(), action in select(Action::ALL.to_vec()), owner in 0u8..3,
        ) {
            if may(&actor, action, Object::Of(user(owner))).is_ok() && actor.user != Some(user(owner)) {
                prop_assert!(actor.role == Role::Admin && actor.scope.is_none_or(|scope| scope == Scope::Admin));
            }
        }

        #[test]
        fn a_key_that_reads_changes_nothing(actor in actors(), action in select(Action::ALL.to_vec()), object in objects()) {
            let reading = Actor { scope: Some(Scope::Read), ..actor };
            if may(&reading, action, object).is_ok() {
                let word = action.word();
                prop_assert!(word.ends_with(".read") || word == "ledger.audit", "{}", word);
            }
        }
    }

    #[test]
    fn each_role_may_what_the_product_says() {
        let words = |role| {
            let actor = Actor { user: Some(user(1)), name: "x".into(), role, scope: None, via: Via::Session };
            allowed(&actor).into_iter().map(Action::word).collect::<BTreeSet<_>>()
        };
        let (viewer, maintainer, admin) = (words(Role::Viewer), words(Role::Maintainer), words(Role::Admin));
        assert_eq!(
            maintainer.difference(&viewer).copied().collect::<Vec<_>>(),
            [
                "forge.audit",
                "jobs.redrive",
                "messages.create",
                "models.try",
                "pull_requests.create",
                "runs.create",
                "tasks.cancel",
                "tasks.create",
                "tasks.retry"
            ]
        );
        assert_eq!(
            admin.difference(&maintainer).copied().collect::<Vec<_>>(),
            [
                "audit_log.read",
                "forge.change",
                "models.change",
                "repositories.change",
                "secrets.rotate",
                "settings.read",
                "users.change",
                "users.create",
                "users.read"
            ]
        );
        assert_eq!(admin.len(), Action::ALL.len());
        let key = Actor { user: None, name: "admin".into(), role: Role::Admin, scope: None, via: Via::AdminKey };
        let key: BTreeSet<_> = allowed(&key).into_iter().map(Action::word).collect();
        assert_eq!(admin.difference(&key).copied().collect::<Vec<_>>(), ["api_keys.create", "me.password"]);
    }
}
