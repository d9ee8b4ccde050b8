//! Accounts over HTTP, on the real store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use fettle_app::doorkeeping::{Doorkeeper, Foreign, Registration};
use fettle_app::ports::accounts::Accounts;
use fettle_app::ports::clock::SecretSource;
use fettle_domain::access::{Action, Role};
use fettle_domain::audit_log::{Entry, Head, verify};
use fettle_store_sqlite::{Options, SqliteLedger};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use crate::contract;
use crate::models::adding;
use crate::world::{ADMIN_KEY, Counted, Seen, Still, World};

const PASSWORD: &str = "mohnfeld-quirlt-19-laternen";
const OURS: [(&str, &str); 2] = [("x-fettle-request", "1"), ("sec-fetch-site", "same-origin")];

#[derive(Default)]
struct CountedSecrets(AtomicU8);

impl SecretSource for CountedSecrets {
    fn secret(&self) -> [u8; 32] {
        [self.0.fetch_add(1, Ordering::Relaxed); 32]
    }
}

pub(crate) struct House {
    pub(crate) world: World,
    setup: SecretString,
    pub(crate) store: Arc<SqliteLedger>,
    _data: tempfile::TempDir,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    cookie: Option<String>,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{}", self.text))
    }
}

impl House {
    pub(crate) async fn open(registration: Registration) -> Self {
        let (door, setup, store, data) = Self::door(registration).await;
        let world = World::behind(door, adding(&store).await).await;
        Self { world, setup, store, _data: data }
    }

    /// Behind a proxy, which is the test: it says from where it passes a request on.
    async fn behind_proxy() -> Self {
        let (door, setup, store, data) = Self::door(Registration::Closed).await;
        let world = World::behind_proxy(door, adding(&store).await).await;
        Self { world, setup, store, _data: data }
    }

    pub(crate) async fn with_workers_as_gateways() -> Self {
        let (door, setup, store, data) = Self::door(Registration::Closed).await;
        let world = World::behind_with_workers_as_gateways(door, adding(&store).await).await;
        Self { world, setup, store, _data: data }
    }

    /// With somebody else who says who people are.
    pub(crate) async fn with_provider(foreign: Foreign) -> Self {
        let (mut door, setup, store, data) = Self::door(Registration::Open).await;
        door.foreign = Some(foreign);
        let world = World::behind(door, adding(&store).await).await;
        Self { world, setup, store, _data: data }
    }

    async fn door(registration: Registration) -> (Doorkeeper, SecretString, Arc<SqliteLedger>, tempfile::TempDir) {
        let data = tempfile::tempdir().unwrap();
        let options = Options::new(Arc::new(Still), Arc::new(Counted::from(1_000_000)));
        let store = Arc::new(SqliteLedger::open(data.path().to_str().unwrap(), options).await.unwrap());
        let (clock, ids) = (Arc::new(Still), Arc::new(Counted::from(2_000_000)));
        let secrets = Arc::<CountedSecrets>::default();
        let (door, setup) = Doorkeeper::open(store.clone(), clock, ids, secrets, registration).await.unwrap();
        (door, setup.unwrap(), store, data)
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = self.world.http.request(method.clone(), format!("{}{path}", self.world.public));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let cookie = answer.headers().get("set-cookie").map(|cookie| cookie.to_str().unwrap().to_owned());
        let seen = Seen::read(answer).await;
        contract::check(&method, path, &seen);
        Answer { status: seen.status.as_u16(), cookie, text: seen.text }
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path, &[], Some(body)).await
    }

    /// With the admin key.
    pub(crate) async fn by_key(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask(method, path, &[("authorization", &format!("Bearer {ADMIN_KEY}"))], body).await
    }

    async fn set_up(&self) -> Answer {
        let token = self.setup.expose_secret();
        let body = json!({"token": token, "username": "Ada", "email": "ada@example.org", "password": PASSWORD});
        self.post("/api/auth/setup", body).await
    }

    pub(crate) async fn user(&self, name: &str, role: Role) -> String {
        let body = json!({
            "username": name, "email": format!("{name}@example.org"), "password": PASSWORD, "role": role.name(),
        });
        let made = self.by_key(Method::POST, "/api/v1/users", Some(body)).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.json()["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn tokens(&self, name: &str) -> (String, String) {
        let given = self.post("/api/auth/login", json!({"username": name, "password": PASSWORD})).await;
        assert_eq!(given.status, 200, "{}", given.text);
        let tokens = given.json();
        assert_eq!(tokens["expiresIn"], 900);
        let text = |name: &str| tokens[name].as_str().unwrap().to_owned();
        (text("accessToken"), text("refreshToken"))
    }

    pub(crate) async fn cookie(&self, name: &str) -> String {
        let signed_in = self.post("/api/auth/session", json!({"username": name, "password": PASSWORD})).await;
        assert_eq!(signed_in.status, 200, "{}", signed_in.text);
        pair(&signed_in)
    }

    /// By access token.
    async fn with(&self, token: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask(method, path, &[("authorization", &format!("Bearer {token}"))], body).await
    }
}

pub(crate) fn pair(answer: &Answer) -> String {
    answer.cookie.as_ref().unwrap().split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_terminals_token_makes_the_first_admin_once() {
    let house = House::open(Registration::Closed).await;
    let state = house.ask(Method::GET, "/api/auth/state", &[], None).await.json();
    assert_eq!(state, json!({"setup_needed": true, "registration": "closed", "oidc": null, "user": null}));
    let body = json!({"token": "wrong", "username": "eve", "email": "eve@example.org", "password": PASSWORD});
    assert_eq!(house.post("/api/auth/setup", body.clone()).await.status, 401);
    let made = house.set_up().await;
    assert_eq!((made.status, made.json()["role"].clone()), (201, json!("admin")), "{}", made.text);
    let set = made.cookie.clone().unwrap();
    assert!(set.contains("; Path=/;") && set.contains("; HttpOnly") && set.contains("; SameSite=Lax"), "{set}");
    assert_eq!(house.set_up().await.status, 409);
    assert_eq!(house.post("/api/auth/setup", body).await.status, 409);
    let state = house.ask(Method::GET, "/api/auth/state", &[("cookie", &pair(&made))], None).await.json();
    assert_eq!((&state["setup_needed"], &state["user"]["username"]), (&json!(false), &json!("ada")));
}

#[tokio::test]
async fn every_operation_asks_what_its_caller_may() {
    let house = House::open(Registration::Closed).await;
    let document: Value = serde_json::from_str(&fettle_api::openapi_json()).unwrap();
    let mut callers = Vec::new();
    for role in Role::ALL {
        let name = format!("user-{}", role.name());
        house.user(&name, role).await;
        callers.push((role, house.tokens(&name).await.0));
    }
    let mut operations = 0;
    for (route, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if !route.starts_with("/api/v1/") {
                continue;
            }
            operations += 1;
            let method: Method = method.to_ascii_uppercase().parse().unwrap();
            let id = operation["operationId"].as_str().unwrap();
            let path: String = route
                .split('/')
                .map(|part| match part {
                    "{task_id}" => "task_00000000000000000000000000000099",
                    "{job_id}" => "job_00000000000000000000000000000099",
                    "{session_id}" => "session_00000000000000000000000000000099",
                    "{key_id}" => "key_00000000000000000000000000000099",
                    "{user_id}" => "user_00000000000000000000000000000099",
                    other => other,
                })
                .collect::<Vec<_>>()
                .join("/");
            let body = (method != Method::GET && method != Method::DELETE).then(|| json!({}));
            assert_eq!(house.ask(method.clone(), &path, &[], body.clone()).await.status, 401, "{id} without anything");
            if id == "follow_events" {
                // It does not end by itself; its action is that of `list_tasks`.
                continue;
            }
            for (role, token) in &callers {
                let seen = house.with(token, method.clone(), &path, body.clone()).await;
                let least = least_role(id);
                assert_eq!(seen.status == 403, *role < least, "{id} as {}: {} {}", role.name(), seen.status, seen.text);
                assert_ne!(seen.status, 401, "{id} as {}", role.name());
            }
        }
    }
    assert!(operations >= 20, "{operations}");
}

/// As the product says it, not as the code does.
fn least_role(operation: &str) -> Role {
    match operation {
        "create_task"
        | "cancel_task"
        | "stop_run"
        | "retry_task"
        | "add_runs"
        | "post_message"
        | "create_pull_request"
        | "try_model"
        | "redrive_job" => Role::Maintainer,
        "put_model"
        | "remove_model"
        | "add_repository"
        | "remove_repository"
        | "rotate_secrets"
        | "put_forge_tokens"
        | "remove_forge_tokens" => Role::Admin,
        "get_settings" | "list_users" | "create_user" | "change_user" | "list_audit_log" | "export_audit_log" => {
            Role::Admin
        }
        _ => Role::Viewer,
    }
}

#[tokio::test]
async fn a_refresh_token_that_comes_again_ends_its_family_also_when_two_come_at_once() {
    let house = House::open(Registration::Closed).await;
    house.user("bob", Role::Viewer).await;
    let (access, first) = house.tokens("bob").await;
    let refresh = |token: String| house.post("/api/auth/refresh", json!({"refreshToken": token}));
    let second = refresh(first.clone()).await;
    assert_eq!(second.status, 200);
    let second = second.json()["refreshToken"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    assert_eq!(house.with(&access, Method::GET, "/api/v1/me", None).await.status, 200);
    let (one, other) = tokio::join!(refresh(second.clone()), refresh(second));
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401]);
    let winner = if one.status == 200 { one } else { other };
    let third = winner.json()["refreshToken"].as_str().unwrap().to_owned();
    assert_eq!(refresh(third).await.status, 401, "the family has ended");
    assert_eq!(house.with(&access, Method::GET, "/api/v1/me", None).await.status, 401, "and its access tokens with it");
}

#[tokio::test]
async fn a_cookie_changes_something_only_from_our_own_pages_and_is_new_at_each_sign_in() {
    let house = House::open(Registration::Closed).await;
    house.user("bob", Role::Viewer).await;
    let first = house.cookie("bob").await;
    let cookie = ("cookie", first.as_str());
    assert_eq!(house.ask(Method::GET, "/api/v1/me", &[cookie], None).await.json()["via"], "session");
    let body = || Some(json!({"name": "ci", "scopes": ["read"]}));
    let foreign = house.ask(Method::POST, "/api/v1/api-keys", &[cookie], body()).await;
    assert_eq!((foreign.status, foreign.json()["code"].clone()), (403, json!("forbidden")));
    let evil = [cookie, OURS[0], ("sec-fetch-site", "cross-site")];
    assert_eq!(house.ask(Method::POST, "/api/v1/api-keys", &evil, body()).await.status, 403);
    assert_eq!(house.ask(Method::DELETE, "/api/auth/session", &evil, None).await.status, 403);
    let ours = [cookie, OURS[0], OURS[1]];
    assert_eq!(house.ask(Method::POST, "/api/v1/api-keys", &ours, body()).await.status, 201);

    let again = json!({"username": "bob@example.org", "password": PASSWORD});
    let again = house.ask(Method::POST, "/api/auth/session", &[cookie], Some(again)).await;
    assert_ne!(pair(&again), first);
    assert_eq!(house.ask(Method::GET, "/api/v1/me", &[cookie], None).await.status, 401, "the old one is over");
    let chosen = "fettle_session=0123456789abcdef";
    let fixed = json!({"username": "bob", "password": PASSWORD});
    let fixed = house.ask(Method::POST, "/api/auth/session", &[("cookie", chosen)], Some(fixed)).await;
    assert_ne!(pair(&fixed), chosen);
    let out = [("cookie", &*pair(&fixed)), OURS[0], OURS[1]];
    assert_eq!(house.ask(Method::DELETE, "/api/auth/session", &out, None).await.status, 204);
    assert_eq!(house.ask(Method::GET, "/api/v1/me", &out, None).await.status, 401);
}

#[tokio::test]
async fn a_wrong_password_an_unknown_name_and_a_locked_account_are_one_answer() {
    let house = House::open(Registration::Closed).await;
    let id = house.user("bob", Role::Viewer).await;
    let login = |name: &'static str, password: &'static str| {
        house.post("/api/auth/login", json!({"username": name, "password": password}))
    };
    let seen = |answer: Answer| (answer.status, answer.json()["detail"].clone());
    let unknown = seen(login("nobody", "x").await);
    assert_eq!(unknown.0, 401);
    for _ in 0..5 {
        assert_eq!(seen(login("bob", "x").await), unknown);
    }
    assert_eq!(seen(login("bob", PASSWORD).await), unknown, "it is locked");
    let body = json!({"password": "another-quirl-of-19-poppies"});
    let changed = house.by_key(Method::PATCH, &format!("/api/v1/users/{id}"), Some(body)).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    assert_eq!(login("bob", "another-quirl-of-19-poppies").await.status, 200);
    for _ in 0..3 {
        login("bob", "x").await;
    }
    let limited = login("bob", PASSWORD).await;
    assert_eq!((limited.status, limited.json()["code"].clone()), (429, json!("too_many")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_that_come_at_once_are_counted_one_by_one() {
    let house = House::open(Registration::Closed).await;
    house.user("bob", Role::Viewer).await;
    let guess =
        |nth: usize| house.post("/api/auth/login", json!({"username": "bob", "password": format!("guess {nth}")}));
    let answers = futures::future::join_all((0..9).map(guess)).await;
    assert!(answers.iter().all(|answer| answer.status == 401));
    let log = house.by_key(Method::GET, "/api/v1/audit-log?action=login", None).await.json();
    let weighed = |why: &str| log["items"].as_array().unwrap().iter().filter(|entry| entry["detail"] == why).count();
    // Two are weighed at a time, so one more than the five may slip through.
    assert!((5..=6).contains(&weighed("wrong password")), "{log:#}");
    assert_eq!(weighed("wrong password") + weighed("locked"), 9, "{log:#}");
}

#[tokio::test]
async fn a_key_makes_no_keys_and_a_viewer_spends_no_questions_to_the_forge() {
    let house = House::open(Registration::Closed).await;
    house.user("vic", Role::Viewer).await;
    let token = house.tokens("vic").await.0;
    let wanted = json!({"name": "script", "scopes": ["admin"]});
    let made = house.with(&token, Method::POST, "/api/v1/api-keys", Some(wanted.clone())).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let key = made.json()["key"].as_str().unwrap().to_owned();
    assert_eq!(house.with(&key, Method::POST, "/api/v1/api-keys", Some(wanted)).await.status, 403);
    assert_eq!(house.with(&token, Method::GET, "/api/v1/audit?forge=true", None).await.status, 403);
}

#[tokio::test]
async fn whoever_knows_a_name_cannot_keep_its_owner_out_of_where_they_sign_in() {
    let house = House::behind_proxy().await;
    house.user("bob", Role::Viewer).await;
    let from = |address: String, password: &'static str| {
        let house = &house;
        async move {
            let headers = [("x-forwarded-for", address.as_str())];
            let body = json!({"username": "bob", "password": password});
            house.ask(Method::POST, "/api/auth/login", &headers, Some(body)).await.status
        }
    };
    assert_eq!(from("192.0.2.1".into(), PASSWORD).await, 200);
    for number in 0..22 {
        assert_eq!(from(format!("198.51.100.{number}"), "x").await, 401);
    }
    let users = house.by_key(Method::GET, "/api/v1/users", None).await.json();
    assert!(users["items"][0]["locked_until"].is_string(), "{users}");
    assert_eq!(from("203.0.113.1".into(), PASSWORD).await, 401, "others are locked out");
    assert_eq!(from("192.0.2.1".into(), PASSWORD).await, 200, "and its own address is not");
    // Of one network there are no many addresses.
    for number in 0..5 {
        assert_eq!(from(format!("2001:db8::{number}"), "x").await, 401);
    }
    assert_eq!(from("2001:db8::77".into(), PASSWORD).await, 401);
    // What the client says of itself stands before what the proxy says.
    assert_eq!(from("192.0.2.1, 198.51.100.200".into(), "x").await, 401);
    let log = house.by_key(Method::GET, "/api/v1/audit-log?limit=1", None).await.json();
    assert_eq!(log["items"][0]["address"], "198.51.100.200", "{log}");
}

#[tokio::test]
async fn an_admins_key_that_reads_sees_no_other_peoples_sessions() {
    let house = House::open(Registration::Closed).await;
    let (ada, bob) = (house.user("ada", Role::Admin).await, house.user("bob", Role::Viewer).await);
    house.tokens("bob").await;
    let token = house.tokens("ada").await.0;
    let mut keys = Vec::new();
    for scope in ["read", "write", "admin"] {
        let body = json!({"name": scope, "scopes": [scope]});
        let made = house.with(&token, Method::POST, "/api/v1/api-keys", Some(body)).await;
        keys.push((scope, made.json()["key"].as_str().unwrap().to_owned()));
    }
    for (scope, key) in keys {
        let headers = [("x-api-key", key.as_str())];
        let own = house.ask(Method::GET, &format!("/api/v1/sessions?user={ada}"), &headers, None).await;
        assert_eq!(own.status, 200, "{scope}");
        let others = house.ask(Method::GET, &format!("/api/v1/sessions?user={bob}"), &headers, None).await;
        assert_eq!(others.status, if scope == "admin" { 200 } else { 403 }, "{scope}");
    }
    let me = house.by_key(Method::GET, "/api/v1/me", None).await.json();
    let may: Vec<&str> = me["may"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(may.contains(&"users.create") && !may.contains(&"me.password"), "{may:?}");
}

#[tokio::test]
async fn the_setup_token_is_one_for_all_who_serve_from_the_same_store() {
    let house = House::open(Registration::Closed).await;
    let (clock, ids, secrets) = (Arc::new(Still), Arc::new(Counted::from(3_000_000)), Arc::<CountedSecrets>::default());
    let (_, other) = Doorkeeper::open(house.store.clone(), clock, ids, secrets, Registration::Closed).await.unwrap();
    assert_eq!(other.unwrap().expose_secret(), house.setup.expose_secret());
    assert_eq!(house.set_up().await.status, 201);
}

#[tokio::test]
async fn a_password_is_the_same_on_every_keyboard_and_a_browsers_name_turns_no_text_around() {
    let house = House::open(Registration::Closed).await;
    let composed = "\u{c4}pfel-quirlen-\u{fc}ber-laternen";
    let body = json!({"username": "bob", "email": "bob@example.org", "password": composed, "role": "viewer"});
    assert_eq!(house.by_key(Method::POST, "/api/v1/users", Some(body)).await.status, 201);
    let decomposed = json!({"username": "bob", "password": "A\u{308}pfel-quirlen-u\u{308}ber-laternen"});
    let agent = [("user-agent", "Mozilla\u{202e}\u{200b} 5")];
    let answer = house.ask(Method::POST, "/api/auth/login", &agent, Some(decomposed)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let token = answer.json()["accessToken"].as_str().unwrap().to_owned();
    let sessions = house.with(&token, Method::GET, "/api/v1/sessions", None).await.json();
    assert_eq!(sessions["items"][0]["user_agent"], "Mozilla 5");
    for odd in ["bo\u{202e}b", "bo\u{200b}b"] {
        let body = json!({"username": odd, "email": "b@example.org", "password": PASSWORD, "role": "viewer"});
        assert_eq!(house.by_key(Method::POST, "/api/v1/users", Some(body)).await.status, 422);
        let body =
            json!({"username": "bo", "email": format!("{odd}@example.org"), "password": PASSWORD, "role": "viewer"});
        assert_eq!(house.by_key(Method::POST, "/api/v1/users", Some(body)).await.status, 422);
    }
}

#[tokio::test]
async fn what_is_somebody_elses_does_not_exist() {
    let house = House::open(Registration::Closed).await;
    let (bob, _) = (house.user("bob", Role::Viewer).await, house.user("eve", Role::Maintainer).await);
    let (bobs, eves) = (house.tokens("bob").await.0, house.tokens("eve").await.0);
    let key =
        house.with(&bobs, Method::POST, "/api/v1/api-keys", Some(json!({"name": "ci", "scopes": ["read"]}))).await;
    let key = key.json();
    let sessions = house.with(&bobs, Method::GET, "/api/v1/sessions", None).await.json();
    assert_eq!((&sessions["items"][0]["current"], sessions["items"].as_array().unwrap().len()), (&json!(true), 1));
    let session = format!("/api/v1/sessions/{}", sessions["items"][0]["id"].as_str().unwrap());
    let key_path = format!("/api/v1/api-keys/{}", key["id"].as_str().unwrap());
    for path in [&session, &key_path] {
        assert_eq!(house.with(&eves, Method::DELETE, path, None).await.status, 404, "{path}");
    }
    assert_eq!(house.with(&eves, Method::GET, &format!("/api/v1/sessions?user={bob}"), None).await.status, 404);
    assert_eq!(house.with(&eves, Method::GET, "/api/v1/api-keys", None).await.json()["items"], json!([]));

    let secret = key["key"].as_str().unwrap();
    assert!(secret.starts_with(key["prefix"].as_str().unwrap()));
    let listed = house.with(&bobs, Method::GET, "/api/v1/api-keys", None).await;
    assert!(!listed.text.contains(secret));
    for headers in [[("x-api-key", secret.to_owned())], [("authorization", format!("Bearer {secret}"))]] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(house.ask(Method::GET, "/api/v1/me", &headers, None).await.json()["via"], "api_key");
        let more = Some(json!({"name": "more", "scopes": ["admin"]}));
        assert_eq!(
            house.ask(Method::POST, "/api/v1/api-keys", &headers, more).await.status,
            403,
            "a key makes no keys"
        );
    }
    assert_eq!(house.with(&bobs, Method::DELETE, &key_path, None).await.status, 204);
    assert_eq!(house.ask(Method::GET, "/api/v1/me", &[("x-api-key", secret)], None).await.status, 401);
    assert_eq!(house.with(&bobs, Method::DELETE, &session, None).await.status, 204);
    assert_eq!(house.with(&bobs, Method::GET, "/api/v1/me", None).await.status, 401);
}

#[tokio::test]
async fn a_feed_ends_with_the_session_that_it_came_with() {
    let house = House::open(Registration::Closed).await;
    house.user("bob", Role::Viewer).await;
    let cookie = house.cookie("bob").await;
    let url = format!("{}/api/v1/events", house.world.public);
    let feed = house.world.http.get(url).header("cookie", &cookie).send().await.unwrap();
    assert_eq!(feed.status(), 200);
    let sessions = house.ask(Method::GET, "/api/v1/sessions", &[("cookie", &cookie)], None).await.json();
    let session = format!("/api/v1/sessions/{}", sessions["items"][0]["id"].as_str().unwrap());
    assert_eq!(house.by_key(Method::DELETE, &session, None).await.status, 204);
    // It breaks off without its end: who may still follow asks again.
    assert!(!feed.text().await.unwrap().contains("event: end"));
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions_and_the_last_admin_stays() {
    let house = House::open(Registration::Closed).await;
    let made = house.set_up().await;
    let ada = made.json()["id"].as_str().unwrap().to_owned();
    let (kept, other) = (pair(&made), house.cookie("ada").await);
    let change = |current: &str, new: &str| json!({"current": current, "new": new});
    let headers = [("cookie", kept.as_str()), OURS[0], OURS[1]];
    let ask = |body| house.ask(Method::POST, "/api/v1/me/password", &headers, Some(body));
    assert_eq!(ask(change("wrong", "another-quirl-of-19-poppies")).await.status, 422);
    assert_eq!(ask(change(PASSWORD, "password1234")).await.status, 422);
    assert_eq!(ask(change(PASSWORD, "another-quirl-of-19-poppies")).await.status, 204);
    assert_eq!(house.ask(Method::GET, "/api/v1/me", &[("cookie", &kept)], None).await.status, 200);
    assert_eq!(house.ask(Method::GET, "/api/v1/me", &[("cookie", &other)], None).await.status, 401);
    for body in [json!({"role": "viewer"}), json!({"active": false})] {
        assert_eq!(house.by_key(Method::PATCH, &format!("/api/v1/users/{ada}"), Some(body)).await.status, 409);
    }
}

#[tokio::test]
async fn admins_see_and_remove_the_keys_of_others_and_an_admins_new_password_removes_all() {
    let house = House::open(Registration::Closed).await;
    let (bob, eve) = (house.user("bob", Role::Viewer).await, house.user("eve", Role::Maintainer).await);
    let (bobs, eves) = (house.tokens("bob").await.0, house.tokens("eve").await.0);
    let mut keys = Vec::new();
    for name in ["first", "second", "third"] {
        let made =
            house.with(&bobs, Method::POST, "/api/v1/api-keys", Some(json!({"name": name, "scopes": ["read"]}))).await;
        keys.push(made.json());
    }
    let of_bob = format!("/api/v1/users/{bob}/keys");
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    };
    let listed = house.by_key(Method::GET, &of_bob, None).await.json();
    assert_eq!(names(&listed).len(), 3);
    assert_eq!(house.with(&bobs, Method::GET, &of_bob, None).await.json(), listed, "one's own");
    assert_eq!(house.with(&eves, Method::GET, &of_bob, None).await.status, 404);
    let path = |user: &str, nth: usize| format!("/api/v1/users/{user}/keys/{}", keys[nth]["id"].as_str().unwrap());
    assert_eq!(house.with(&eves, Method::DELETE, &path(&bob, 0), None).await.status, 404);
    assert_eq!(house.by_key(Method::DELETE, &path(&eve, 0), None).await.status, 404, "it is not eve's");
    assert_eq!(house.by_key(Method::DELETE, &path(&bob, 0), None).await.status, 204);
    assert_eq!(house.with(&bobs, Method::DELETE, &path(&bob, 1), None).await.status, 204);
    let secret = |nth: usize| keys[nth]["key"].as_str().unwrap();
    let status =
        async |nth: usize| house.ask(Method::GET, "/api/v1/me", &[("x-api-key", secret(nth))], None).await.status;
    assert_eq!([status(0).await, status(1).await, status(2).await], [401, 401, 200]);
    let nobody = "/api/v1/users/user_00000000000000000000000000000099/keys";
    assert_eq!(house.by_key(Method::GET, nobody, None).await.status, 404);

    let changed =
        house.by_key(Method::PATCH, &format!("/api/v1/users/{bob}"), Some(json!({"role": "maintainer"}))).await;
    assert_eq!((changed.status, status(2).await), (200, 200), "another role leaves them");
    let password = json!({"password": "another-quirl-of-19-poppies"});
    assert_eq!(house.by_key(Method::PATCH, &format!("/api/v1/users/{bob}"), Some(password)).await.status, 200);
    assert_eq!(status(2).await, 401);
    assert_eq!(house.by_key(Method::GET, &of_bob, None).await.json()["items"], json!([]));
    let log = house.by_key(Method::GET, "/api/v1/audit-log?limit=1", None).await.json();
    assert_eq!(log["items"][0]["detail"], "a new password, without its keys");
}

#[tokio::test]
async fn registration_follows_the_configuration_and_inactive_accounts_stay_out() {
    let body = || json!({"username": "bob", "email": "bob@example.org", "password": PASSWORD});
    let closed = House::open(Registration::Closed).await;
    assert_eq!(closed.post("/api/auth/register", body()).await.status, 403);
    let open = House::open(Registration::Open).await;
    let made = open.post("/api/auth/register", body()).await;
    assert_eq!((made.status, made.json()["role"].clone()), (201, json!("viewer")));
    assert_eq!(open.post("/api/auth/register", body()).await.status, 422, "the name is taken");
    let large = json!({"username": "x".repeat(20_000), "email": "x@example.org", "password": PASSWORD});
    assert_eq!(open.post("/api/auth/register", large).await.status, 413);
    let (access, _) = open.tokens("bob").await;
    let path = format!("/api/v1/users/{}", made.json()["id"].as_str().unwrap());
    assert_eq!(open.by_key(Method::PATCH, &path, Some(json!({"active": false}))).await.status, 200);
    assert_eq!(open.with(&access, Method::GET, "/api/v1/me", None).await.status, 401);
    let again = open.post("/api/auth/login", json!({"username": "bob", "password": PASSWORD})).await;
    assert_eq!(again.status, 401);
}

#[tokio::test]
async fn the_log_tells_who_did_what_and_its_export_verifies() {
    let house = House::open(Registration::Closed).await;
    house.user("bob", Role::Maintainer).await;
    let odd = [("user-agent", "<b>	'\""), ("x-forwarded-for", "1.2.3.4")];
    let body = json!({"username": "bob", "password": PASSWORD});
    let answer = house.ask(Method::POST, "/api/auth/login", &odd, Some(body)).await;
    let token = answer.json()["accessToken"].as_str().unwrap().to_owned();
    let made = house.with(&token, Method::POST, "/api/v1/tasks", Some(json!({"mode": "probe"}))).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json()["task"]["actor"], "bob");
    assert_eq!(house.with(&token, Method::GET, "/api/v1/users", None).await.status, 403);
    let export = house.by_key(Method::GET, "/api/v1/audit-log/export", None).await;
    let log: Vec<Entry> = export.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let head = verify(Head::EMPTY, &log).unwrap();
    assert_eq!(head.sequence, log.len() as u64);
    let told: Vec<(&str, &str, &str)> =
        log.iter().map(|one| (&*one.note.actor, &*one.note.action, &*one.note.result)).collect();
    assert_eq!(
        told,
        [
            ("admin", "users.create", "done"),
            ("bob", "login", "done"),
            ("bob", Action::TasksCreate.word(), "done"),
            ("bob", Action::UsersRead.word(), "refused"),
        ]
    );
    assert!(log.iter().all(|entry| entry.note.address == "127.0.0.1"), "a header moves nobody elsewhere");
    let page = house.by_key(Method::GET, "/api/v1/audit-log?limit=3", None).await.json();
    assert_eq!((&page["items"][0]["sequence"], &page["next"]), (&json!(4), &json!("2")));
    let rest = house.by_key(Method::GET, "/api/v1/audit-log?limit=3&after=2", None).await.json();
    assert_eq!((&rest["items"][0]["sequence"], &rest["next"]), (&json!(1), &Value::Null));
    let sequences = |page: &Value| -> Vec<u64> {
        page["items"].as_array().unwrap().iter().map(|entry| entry["sequence"].as_u64().unwrap()).collect()
    };
    for (query, wanted, next) in [
        ("actor=bob", vec![4, 3, 2], Value::Null),
        ("actor=bob&limit=2", vec![4, 3], json!("3")),
        ("actor=bob&limit=2&after=3", vec![2], Value::Null),
        ("action=users.create", vec![1], Value::Null),
        ("actor=bob&action=users.create", vec![], Value::Null),
        ("actor=bo", vec![], Value::Null),
    ] {
        let page = house.by_key(Method::GET, &format!("/api/v1/audit-log?{query}"), None).await.json();
        assert_eq!((sequences(&page), &page["next"]), (wanted, &next), "{query}");
    }
    assert_eq!(house.store.entries_after(0, 10).await.unwrap(), log);
}

#[tokio::test]
async fn without_accounts_the_admin_key_alone_opens() {
    let world = World::start().await;
    let me = world.get("/api/v1/me").await;
    assert_eq!((me.status, me.json()["via"].clone()), (StatusCode::OK, json!("admin_key")));
    assert_eq!(world.get("/api/v1/users").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.ask(Method::GET, "/api/auth/state", &[], None).await.status, StatusCode::SERVICE_UNAVAILABLE);
}
