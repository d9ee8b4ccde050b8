//! Models and repositories that people add, over HTTP and on the real store.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fettle_api::GatewayModels;
use fettle_app::adding::{AddedModel, Adding, Entered, Parts, RingFile};
use fettle_app::doorkeeping::Registration;
use fettle_app::ports::additions::{Addition, Additions as _, Sort};
use fettle_app::ports::clock::SecretSource;
use fettle_app::ports::forge::{
    F, ForgeAccess, ForgeError, ForgeReader, Issue, IssueComment, LabeledEvent, Permission,
};
use fettle_domain::repo::{Repo, RepoName};
use fettle_store_sqlite::SqliteLedger;
use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::accounts::House;
use crate::world::{GATEWAY_KEY, Still};

const KEY: &str = "sk-the-provider-gave-this";

/// A forge with one repository, which knows two tokens and is reached with none at first.
#[derive(Default)]
struct Forge(Mutex<Option<(Option<String>, Option<String>)>>);

#[async_trait]
impl ForgeAccess for Forge {
    fn can_write(&self) -> bool {
        self.0.lock().unwrap().as_ref().is_some_and(|(_, write)| write.is_some())
    }
    async fn login_of(&self, token: &SecretString) -> F<String> {
        match token.expose_secret() {
            "may-read" => Ok("reader".to_owned()),
            "may-write" => Ok("fettle".to_owned()),
            _ => Err(ForgeError::Denied("bad credentials".to_owned())),
        }
    }
    async fn may_write(&self, _: &Repo) -> F<()> {
        match &*self.0.lock().unwrap() {
            Some((_, Some(write))) if write == "may-write" => Ok(()),
            _ => Err(ForgeError::Denied("not accessible by this token".to_owned())),
        }
    }
    fn use_tokens(&self, read: Option<SecretString>, write: Option<SecretString>) {
        let text = |token: Option<SecretString>| token.map(|token| token.expose_secret().to_owned());
        *self.0.lock().unwrap() = Some((text(read), text(write)));
    }
}

#[async_trait]
impl ForgeReader for Forge {
    async fn repository(&self, name: &RepoName) -> F<Repo> {
        if !name.to_string().eq_ignore_ascii_case("acme/widget") {
            return Err(ForgeError::NotFound(name.to_string()));
        }
        Ok(Repo {
            forge_id: 1,
            name: "acme/widget".parse().unwrap(),
            clone_url: "https://forge.example/acme/widget.git".to_owned(),
            default_branch: "main".to_owned(),
            private: false,
            installation: None,
        })
    }
    async fn issue(&self, _: &Repo, _: u64) -> F<Issue> {
        unreachable!("nobody asks")
    }
    async fn comments(&self, _: &Repo, _: u64) -> F<Vec<IssueComment>> {
        unreachable!("nobody asks")
    }
    async fn labeled(&self, _: &Repo, _: u64, _: &str) -> F<Option<LabeledEvent>> {
        unreachable!("nobody asks")
    }
    async fn permission(&self, _: &Repo, _: &str) -> F<Permission> {
        unreachable!("nobody asks")
    }
    async fn read_token(&self, _: &Repo) -> F<Option<SecretString>> {
        unreachable!("nobody asks")
    }
    async fn own_login(&self) -> F<String> {
        unreachable!("nobody asks")
    }
}

/// A file of Fettle's own, in memory.
struct Ring(Mutex<Vec<SecretString>>);

impl Ring {
    fn of(secrets: &[&str]) -> Arc<Self> {
        Arc::new(Self(Mutex::new(secrets.iter().map(|secret| SecretString::from(*secret)).collect())))
    }
}

impl RingFile for Ring {
    fn read(&self) -> Result<Vec<SecretString>, String> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn grow(&self) -> Result<bool, String> {
        let mut keys = self.0.lock().unwrap();
        let next = format!("after {}", keys.last().map_or("nothing", |key| key.expose_secret()));
        keys.push(next.into());
        Ok(true)
    }

    fn shrink(&self) -> Result<(), String> {
        let mut keys = self.0.lock().unwrap();
        let last = keys.len() - 1;
        keys.drain(..last);
        Ok(())
    }
}

struct Random;

impl SecretSource for Random {
    #[expect(clippy::disallowed_methods, reason = "what the port stands for")]
    fn secret(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(Uuid::now_v7().as_bytes());
        bytes[16..].copy_from_slice(Uuid::now_v7().as_bytes());
        bytes
    }
}

async fn adding_with(store: &Arc<SqliteLedger>, ring: Arc<Ring>) -> Arc<Adding> {
    let parts = Parts {
        store: store.clone(),
        forge: Arc::new(Forge::default()),
        forge_url: "https://api.forge.example".to_owned(),
        forge_configured: false,
        hosts: vec!["forge.example".to_owned()],
        configured: vec!["coder".to_owned()],
        ring,
        clock: Arc::new(Still),
        random: Arc::new(Random),
        told: watch::channel(Arc::default()).0,
    };
    Arc::new(Adding::open(parts).await.unwrap())
}

pub(crate) async fn adding(store: &Arc<SqliteLedger>) -> Arc<Adding> {
    adding_with(store, Ring::of(&["the first"])).await
}

fn model(more: Value) -> Option<Value> {
    let mut body = json!({"kind": "openai", "context_tokens": 128_000});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Some(body)
}

async fn listed(house: &House, name: &str) -> Option<Value> {
    let models = house.by_key(Method::GET, "/api/v1/models", None).await.json();
    models["items"].as_array().unwrap().iter().find(|model| model["name"] == json!(name)).cloned()
}

#[tokio::test]
async fn a_model_is_added_changed_and_removed_and_its_key_is_never_shown() {
    let house = House::open(Registration::Closed).await;
    let put = |body| house.by_key(Method::PUT, "/api/v1/models/best%2Fgpt", body);
    let made = put(model(json!({"api_key": KEY}))).await;
    assert_eq!((made.status, &made.json()["with_key"]), (201, &json!(true)), "{}", made.text);
    assert_eq!(made.json()["server"], json!("https://api.openai.com/v1"));

    // At rest it is sealed, and whatever the API says of it holds no key.
    let stored = house.store.additions().await.unwrap().remove(0);
    let sealed = stored.secret.as_ref().unwrap();
    assert!(!sealed.bytes.windows(6).any(|part| KEY.as_bytes().windows(6).any(|key| key == part)));
    let all = house.by_key(Method::GET, "/api/v1/models", None).await.text;
    assert!(!all.contains(KEY) && !stored.value.contains(KEY) && !made.text.contains(KEY));

    // The key stays with the address that it was entered for.
    let changed = put(model(json!({"context_tokens": 200_000}))).await;
    assert_eq!((changed.status, &changed.json()["with_key"]), (200, &json!(true)), "{}", changed.text);
    let moved = put(model(json!({"base_url": "https://elsewhere.example/v1"}))).await;
    assert_eq!((moved.status, &moved.json()["errors"][0]["pointer"]), (422, &json!("/api_key")), "{}", moved.text);
    let moved = put(model(json!({"base_url": "https://elsewhere.example/v1", "api_key": "another"}))).await;
    assert_eq!(moved.status, 200, "{}", moved.text);
    let without = put(model(json!({"without_key": true}))).await;
    assert_eq!((without.status, &without.json()["with_key"]), (200, &json!(false)));
    assert_eq!(put(model(json!({"without_key": true, "api_key": "x"}))).await.status, 422);

    assert_eq!(listed(&house, "best/gpt").await.unwrap()["added"], json!(true));
    assert_eq!(listed(&house, "coder").await.unwrap()["added"], json!(false));
    assert_eq!(house.by_key(Method::DELETE, "/api/v1/models/best%2Fgpt", None).await.status, 204);
    assert_eq!(house.by_key(Method::DELETE, "/api/v1/models/best%2Fgpt", None).await.status, 404);
    assert_eq!(listed(&house, "best/gpt").await, None);
}

#[tokio::test]
async fn what_cannot_be_asked_or_told_apart_is_refused_and_names_the_field() {
    let house = House::open(Registration::Closed).await;
    let put = async |name: &str, more| {
        let put = house.by_key(Method::PUT, &format!("/api/v1/models/{name}"), model(more)).await;
        (put.status, put.json()["errors"][0]["pointer"].as_str().unwrap_or_default().to_owned())
    };
    let refused = |field: &str| (422, field.to_owned());
    assert_eq!(put("two%20words", json!({})).await, refused("/name"));
    assert_eq!(put("a", json!({"kind": "telepathy"})).await, refused("/kind"));
    assert_eq!(put("a", json!({"kind": "openai-compatible"})).await, refused("/base_url"));
    assert_eq!(put("a", json!({"base_url": "https://u:p@host/v1"})).await, refused("/base_url"));
    assert_eq!(put("a", json!({"context_tokens": 4_096})).await, refused("/context_tokens"));
    assert_eq!(put("a", json!({"api_key": "two words"})).await, refused("/api_key"));
    assert_eq!(put("a", json!({"unknown": 1})).await.0, 422);
    assert_eq!(put("coder", json!({})).await.0, 409, "the configuration has it");
    assert_eq!(house.by_key(Method::DELETE, "/api/v1/models/coder", None).await.status, 409);
    assert_eq!(put("a%2Fb", json!({})).await.0, 201);
    assert_eq!(put("a-b", json!({})).await.0, 201);
    assert_eq!(put("a", json!({"base_url": "http://m\u{fc}nchen.example/v1"})).await, refused("/base_url"));
}

#[tokio::test]
async fn a_model_is_tried_and_why_it_does_not_answer_is_told() {
    let house = House::open(Registration::Closed).await;
    let tries = async |name: &str| house.by_key(Method::POST, &format!("/api/v1/models/{name}/try"), None).await;
    assert_eq!(tries("nobody").await.status, 404);
    assert_eq!(tries("coder").await.json()["text"], json!("I am coder"));
    house.by_key(Method::PUT, "/api/v1/models/mute", model(json!({}))).await;
    let tried = tries("mute").await.json();
    assert_eq!((&tried["answered"], &tried["why"]), (&json!(false), &json!("The server answered 401.")));
}

#[tokio::test]
async fn a_repository_is_added_as_the_forge_writes_it_and_removed() {
    let house = House::open(Registration::Closed).await;
    let add =
        async |text: &str| house.by_key(Method::POST, "/api/v1/repositories", Some(json!({"repository": text}))).await;
    assert_eq!(add("acme/widget").await.status, 409, "nothing could be written there yet");
    let enter = async |tokens: Value| house.by_key(Method::PUT, "/api/v1/forge/tokens", Some(tokens)).await.status;
    assert_eq!(enter(json!({"read": "may-write", "write": "may-read"})).await, 200, "whose they are is known");
    let exchanged = add("acme/widget").await;
    assert_eq!(exchanged.status, 409, "{}", exchanged.text);
    assert!(exchanged.text.contains("exchanged"), "{}", exchanged.text);
    assert_eq!(enter(json!({"write": "may-write"})).await, 200);
    let added = add("https://forge.example/Acme/Widget.git").await;
    assert_eq!((added.status, &added.json()["name"]), (201, &json!("acme/widget")), "{}", added.text);
    assert_eq!(add("acme/widget").await.status, 200);
    assert_eq!(add("acme/nothing").await.status, 404);
    assert_eq!(add("https://elsewhere.example/acme/widget").await.status, 422);
    assert_eq!(add("nonsense").await.status, 422);
    let list = house.by_key(Method::GET, "/api/v1/repositories", None).await.json();
    let found = list["items"].as_array().unwrap().iter().find(|one| one["name"] == json!("acme/widget")).unwrap();
    assert_eq!((&found["added"], &found["tasks"]), (&json!(true), &json!(0)));
    let noted = house.by_key(Method::GET, "/api/v1/audit-log?action=repositories.change&limit=200", None).await.json();
    let added = |entry: &&Value| entry["result"] == json!("done") && entry["detail"] == json!("acme/widget");
    assert_eq!(noted["items"].as_array().unwrap().iter().filter(added).count(), 2, "{noted}");
    let noted = house.by_key(Method::GET, "/api/v1/audit-log?action=forge.change", None).await.json();
    assert_eq!(noted["items"][0]["detail"], json!("the writing token is fettle's"));
    let remove = async || house.by_key(Method::DELETE, "/api/v1/repositories/acme/widget", None).await.status;
    assert_eq!((remove().await, remove().await), (204, 404));
}

#[tokio::test]
async fn another_key_seals_all_that_opens_and_tells_what_does_not() {
    let house = House::open(Registration::Closed).await;
    for name in ["one", "two"] {
        house.by_key(Method::PUT, &format!("/api/v1/models/{name}"), model(json!({"api_key": KEY}))).await;
    }
    let before = house.store.additions().await.unwrap();
    let rotated = house.by_key(Method::POST, "/api/v1/secrets/rotate", None).await;
    assert_eq!((rotated.status, &rotated.json()["resealed"]), (200, &json!(2)), "{}", rotated.text);
    let after = house.store.additions().await.unwrap();
    let key = |all: &[Addition]| all[0].secret.clone().unwrap().key;
    assert_eq!(rotated.json()["retired"], json!([key(&before)]));
    assert_eq!(rotated.json()["key"], json!(key(&after)));

    // Who has the new key reads them, and who has another is told what is lost.
    let ours = adding_with(&house.store, Ring::of(&["after the first"])).await.now();
    assert!(ours.models.iter().all(|model| matches!(&model.key, Entered::Open(key) if key.expose_secret() == KEY)));
    let late = Ring::of(&["the first"]);
    let later = adding_with(&house.store, late.clone()).await;
    assert!(later.now().models.iter().all(|model| matches!(model.key, Entered::Lost(_))));
    late.0.lock().unwrap().push("after the first".into());
    later.read().await.unwrap();
    assert!(later.now().models.iter().all(|model| matches!(model.key, Entered::Open(_))), "a new key needs no restart");
    let stranger = adding_with(&house.store, Ring::of(&["a stranger"])).await;
    assert!(stranger.now().models.iter().all(|model| matches!(model.key, Entered::Lost(_))));
    let rotated = stranger.rotate().await.unwrap();
    assert_eq!((rotated.resealed, rotated.lost), (0, vec!["model one".to_owned(), "model two".to_owned()]));
    assert_eq!(house.store.additions().await.unwrap(), after, "what is lost to one is not to others");
}

#[tokio::test]
async fn a_gateway_is_told_models_with_their_keys_and_nobody_else_is() {
    let house = House::open(Registration::Closed).await;
    house.by_key(Method::PUT, "/api/v1/models/mine", model(json!({"api_key": KEY}))).await;
    let path = "/gateway/v1/models";
    assert_eq!(house.by_key(Method::GET, path, None).await.status, 404, "not on the public listener");
    let internal = format!("{}{path}", house.world.internal);
    for key in ["", crate::world::ADMIN_KEY, crate::world::WORKER_KEY] {
        let asked = house.world.http.get(&internal).bearer_auth(key).send().await.unwrap();
        assert_eq!(asked.status().as_u16(), 401);
    }
    assert!(matches!(told_of_mine(&house).await.key, Entered::Open(key) if key.expose_secret() == KEY));

    // Who has the service key alone is told of no key.
    let house = House::with_workers_as_gateways().await;
    house.by_key(Method::PUT, "/api/v1/models/mine", model(json!({"api_key": KEY}))).await;
    assert_eq!(told_of_mine(&house).await.key, Entered::None);
}

async fn told_of_mine(house: &House) -> AddedModel {
    let client = GatewayModels::new(&house.world.internal, &SecretString::from(GATEWAY_KEY)).unwrap();
    let ((told, mut added), stop) = (watch::channel(Arc::default()), CancellationToken::new());
    tokio::select! {
        () = client.follow(&told, &stop) => unreachable!("it follows until it is stopped"),
        changed = tokio::time::timeout(Duration::from_secs(20), added.changed()) => changed.unwrap().unwrap(),
    }
    added.borrow().model("mine").cloned().unwrap()
}

#[tokio::test]
async fn tokens_of_the_forge_are_taken_if_it_knows_them_and_count_at_once() {
    let house = House::open(Registration::Closed).await;
    let forge = async || house.by_key(Method::GET, "/api/v1/forge", None).await.json();
    let put = async |body: Value| {
        let put = house.by_key(Method::PUT, "/api/v1/forge/tokens", Some(body)).await;
        (put.status, put.json()["errors"][0]["pointer"].as_str().unwrap_or_default().to_owned(), put)
    };
    let before = forge().await;
    assert_eq!((&before["can_write"], &before["configured"]), (&json!(false), &json!(false)));
    let (status, field, _) = put(json!({"write": "nobody's"})).await;
    assert_eq!((status, field.as_str()), (422, "/write"));
    let (status, field, _) = put(json!({"write": "may-write", "read": "nobody's"})).await;
    assert_eq!((status, field.as_str()), (422, "/read"));
    let (status, field, _) = put(json!({"write": "may-write", "read": "may-write"})).await;
    assert_eq!((status, field.as_str()), (422, "/read"), "workers would get what writes");
    assert_eq!(forge().await["can_write"], json!(false));
    let (status, _, taken) = put(json!({"write": "may-write", "read": "may-read"})).await;
    assert_eq!((status, &taken.json()["login"]), (200, &json!("fettle")));
    let now = forge().await;
    assert_eq!((&now["can_write"], &now["read_token"]), (&json!(true), &json!(true)));
    assert!(!now.to_string().contains("may-"), "{now}");

    // They are there after a restart, and gone when they are thrown away.
    assert!(adding(&house.store).await.can_write());
    assert_eq!(house.by_key(Method::DELETE, "/api/v1/forge/tokens", None).await.status, 204);
    assert_eq!(forge().await["can_write"], json!(false));
    assert_eq!(house.by_key(Method::DELETE, "/api/v1/forge/tokens", None).await.status, 404);
}

#[tokio::test]
async fn what_is_lost_holds_no_key_however_often_they_are_exchanged() {
    let house = House::open(Registration::Closed).await;
    house.by_key(Method::PUT, "/api/v1/models/mine", model(json!({"api_key": KEY}))).await;
    let stranger = Ring::of(&["a stranger"]);
    let other = adding_with(&house.store, stranger.clone()).await;
    for _ in 0..3 {
        let rotated = other.rotate().await.unwrap();
        assert_eq!((rotated.lost.len(), rotated.retired.len()), (1, 1));
    }
    assert_eq!(stranger.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_newer_version_wrote_keeps_nobody_from_the_rest() {
    let house = House::open(Registration::Closed).await;
    house.by_key(Method::PUT, "/api/v1/models/mine", model(json!({}))).await;
    let newer = Addition {
        sort: Sort::Model,
        name: "newer".to_owned(),
        value: r#"{"v":"9"}"#.to_owned(),
        secret: None,
        changed_at: jiff::Timestamp::UNIX_EPOCH,
    };
    house.store.keep_addition(newer).await.unwrap();
    let now = adding(&house.store).await.now();
    assert_eq!((now.models.len(), now.unread.len()), (1, 1), "{now:?}");
    assert!(now.unread[0].contains("`newer`"), "{now:?}");
}
