//! Signing in by a provider, which is emulated here with a key of its own: what it says rightly, and all that must not count.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::extract::{Form, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fettle_app::doorkeeping::{Foreign, Registration};
use fettle_domain::access::Role;
use fettle_domain::audit_log::{Entry, Head, verify};
use fettle_domain::oidc::Allowed;
use fettle_oidc::{Options, Provider};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, StatusCode, redirect};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use url::Url;

use crate::accounts::House;
use crate::world::start;

const CLIENT: &str = "fettle";
/// Has to be escaped on its way.
const SECRET: &str = "a secret: with/odd+signs%";
const CALLBACK: &str = "http://127.0.0.1:1/api/auth/oidc/callback";

/// What the provider says to whoever redeems a code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    Right,
    AnotherNonce,
    AnotherAudience,
    AnotherIssuer,
    Expired,
    Unsigned,
    /// With the published key as if it were a shared secret.
    SharedSecret,
    SignedByAnother,
    SignedByAnUnknownKey,
    Unverified,
    Stranger,
}

struct Key {
    kid: &'static str,
    signing: EncodingKey,
    public: Vec<u8>,
}

impl Key {
    fn make(kid: &'static str) -> Self {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref()).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        Self { kid, signing: EncodingKey::from_ec_der(made.as_ref()), public }
    }

    fn published(&self) -> Value {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid,
            "x": part(&self.public[1..33]), "y": part(&self.public[33..]),
        })
    }
}

/// A browser that was approved and is on its way back.
#[derive(Clone)]
struct Approved {
    nonce: String,
    challenge: String,
    subject: String,
    email: String,
    says: Says,
}

struct Emulated {
    issuer: String,
    keys: Mutex<Vec<Arc<Key>>>,
    codes: Mutex<HashMap<String, Approved>>,
    /// How often keys were asked for.
    asked: Mutex<u32>,
    serving: Mutex<JoinSet<()>>,
}

impl Emulated {
    async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let keys = Mutex::new(vec![Arc::new(Key::make("first"))]);
        let emulated = Arc::new(Self {
            issuer,
            keys,
            codes: Mutex::default(),
            asked: Mutex::default(),
            serving: Mutex::default(),
        });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(document))
            .route("/keys", get(keys_of))
            .route("/token", post(token))
            .with_state(emulated.clone());
        let serve = async move { axum::serve(listener, routes).await.unwrap() };
        emulated.serving.lock().unwrap().spawn(serve);
        emulated
    }

    fn claims(&self, approved: &Approved) -> Value {
        let now = start().as_second();
        let mut claims = json!({
            "iss": self.issuer, "sub": approved.subject, "aud": CLIENT, "iat": now, "exp": now + 300,
            "nonce": approved.nonce, "email": approved.email, "email_verified": true, "preferred_username": "Ada.L",
        });
        let (name, value) = match approved.says {
            Says::AnotherNonce => ("nonce", json!("another")),
            Says::AnotherAudience => ("aud", json!("another")),
            Says::AnotherIssuer => ("iss", json!("https://id.evil.example")),
            Says::Expired => ("exp", json!(now - 61)),
            Says::Unverified => ("email_verified", json!(false)),
            Says::Stranger => ("email", json!("ada@example.org.evil.example")),
            Says::Right | Says::Unsigned | Says::SharedSecret | Says::SignedByAnother | Says::SignedByAnUnknownKey => {
                return claims;
            }
        };
        claims[name] = value;
        claims
    }

    fn signed(&self, approved: &Approved) -> String {
        let claims = self.claims(approved);
        let key = self.keys.lock().unwrap().last().unwrap().clone();
        let with = |algorithm, kid: &str, signing: &EncodingKey| {
            let header = Header { kid: Some(kid.into()), ..Header::new(algorithm) };
            jsonwebtoken::encode(&header, &claims, signing).unwrap()
        };
        match approved.says {
            Says::Unsigned => {
                let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
                format!("{}.{}.", part(json!({"alg": "none", "typ": "JWT", "kid": key.kid})), part(claims))
            }
            Says::SharedSecret => with(Algorithm::HS256, key.kid, &EncodingKey::from_secret(&key.public)),
            Says::SignedByAnother => with(Algorithm::ES256, key.kid, &Key::make("other").signing),
            Says::SignedByAnUnknownKey => with(Algorithm::ES256, "unknown", &Key::make("other").signing),
            _ => with(Algorithm::ES256, key.kid, &key.signing),
        }
    }
}

async fn document(State(emulated): State<Arc<Emulated>>) -> Json<Value> {
    let at = |path: &str| format!("{}/{path}", emulated.issuer);
    Json(json!({
        "issuer": emulated.issuer, "authorization_endpoint": at("authorize?tenant=1"), "token_endpoint": at("token"),
        "jwks_uri": at("keys"), "response_types_supported": ["code"],
    }))
}

async fn keys_of(State(emulated): State<Arc<Emulated>>) -> Json<Value> {
    *emulated.asked.lock().unwrap() += 1;
    let keys = emulated.keys.lock().unwrap();
    Json(json!({"keys": keys.iter().map(|key| key.published()).collect::<Vec<_>>()}))
}

async fn token(
    State(emulated): State<Arc<Emulated>>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Result<Json<Value>, StatusCode> {
    let escaped = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", escaped(CLIENT), escaped(SECRET))));
    let given = |name: &str| form.get(name).map(String::as_str).unwrap_or_default().to_owned();
    if headers.get("authorization").and_then(|value| value.to_str().ok()) != Some(&basic) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    // A code is good once, and for whoever asked for it.
    let approved = emulated.codes.lock().unwrap().remove(&given("code")).ok_or(StatusCode::BAD_REQUEST)?;
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(given("code_verifier")));
    let fits = given("grant_type") == "authorization_code" && given("redirect_uri") == CALLBACK;
    if !fits || challenge != approved.challenge {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(Json(json!({"access_token": "x", "token_type": "Bearer", "id_token": emulated.signed(&approved)})))
}

struct Inn {
    house: House,
    emulated: Arc<Emulated>,
    http: reqwest::Client,
}

/// An answer with all that it sets.
struct Seen {
    status: u16,
    location: String,
    cookies: Vec<String>,
    text: String,
}

impl Seen {
    /// As a browser sends it back.
    fn cookie(&self, name: &str) -> Option<String> {
        let set = self.cookies.iter().find(|set| set.starts_with(&format!("{name}=")))?;
        Some(set.split(';').next().unwrap().to_owned())
    }
}

/// A browser at the provider.
struct Begun {
    state: String,
    nonce: String,
    challenge: String,
    cookie: String,
}

impl Inn {
    async fn open() -> Self {
        let emulated = Emulated::start().await;
        let provider = Provider::new(Options {
            issuer: emulated.issuer.clone(),
            client_id: CLIENT.into(),
            client_secret: Some(SECRET.into()),
            redirect_url: CALLBACK.into(),
        });
        let house = House::with_provider(Foreign {
            provider: Arc::new(provider.unwrap()),
            name: "Example".into(),
            allowed: Allowed { domains: vec!["example.org".into()], emails: Vec::new() },
            role: Role::Maintainer,
        });
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy();
        // A connection that is kept would be closed when time is moved.
        let http = http.pool_max_idle_per_host(0);
        let http = http.redirect(redirect::Policy::none()).build().unwrap();
        Self { house: house.await, emulated, http }
    }

    async fn get(&self, path: &str, cookie: &str) -> Seen {
        let request = self.http.get(format!("{}{path}", self.house.world.public)).header("cookie", cookie);
        let answer = request.send().await.unwrap();
        let text = |value: &reqwest::header::HeaderValue| value.to_str().unwrap().to_owned();
        Seen {
            status: answer.status().as_u16(),
            location: answer.headers().get("location").map(text).unwrap_or_default(),
            cookies: answer.headers().get_all("set-cookie").iter().map(text).collect(),
            text: answer.text().await.unwrap(),
        }
    }

    async fn begin(&self) -> Begun {
        let seen = self.get("/api/auth/oidc/start", "").await;
        assert_eq!(seen.status, 303, "{}", seen.text);
        let url = Url::parse(&seen.location).unwrap();
        assert!(seen.location.starts_with(&format!("{}/authorize?tenant=1&", self.emulated.issuer)), "{url}");
        let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
        for (name, value) in [
            ("response_type", "code"),
            ("client_id", CLIENT),
            ("redirect_uri", CALLBACK),
            ("code_challenge_method", "S256"),
            ("scope", "openid email profile"),
        ] {
            assert_eq!(query[name], value);
        }
        let set = &seen.cookies[0];
        assert!(set.contains("HttpOnly; SameSite=Lax") && set.contains("Max-Age=600"), "{set}");
        let cookie = seen.cookie("fettle_sign_in").unwrap();
        for part in ["state", "nonce", "code_challenge"] {
            assert!(!cookie.contains(&query[part]), "the cookie alone tells nobody what goes along");
        }
        let of = |name: &str| query[name].clone();
        Begun { state: of("state"), nonce: of("nonce"), challenge: of("code_challenge"), cookie }
    }

    /// The word by which the page of the sign-in says why somebody was not signed in.
    fn refused(seen: &Seen) -> &str {
        assert!(seen.status == 303 && seen.cookie("fettle_session").is_none(), "{} {}", seen.status, seen.text);
        seen.location.strip_prefix("/sign-in?problem=").unwrap_or_else(|| panic!("{}", seen.location))
    }

    /// A code as the provider gives it to the browser that began.
    fn approve(&self, begun: &Begun, subject: &str, email: &str, says: Says) -> String {
        let mut codes = self.emulated.codes.lock().unwrap();
        let code = format!("code-{}-{}", codes.len(), begun.nonce);
        let (nonce, challenge) = (begun.nonce.clone(), begun.challenge.clone());
        codes.insert(code.clone(), Approved { nonce, challenge, subject: subject.into(), email: email.into(), says });
        code
    }

    async fn end(&self, begun: &Begun, code: &str) -> Seen {
        let path = format!("/api/auth/oidc/callback?code={code}&state={}&session_state=x", begun.state);
        self.get(&path, &begun.cookie).await
    }

    async fn sign_in(&self, subject: &str, email: &str, says: Says) -> Seen {
        let begun = self.begin().await;
        let code = self.approve(&begun, subject, email, says);
        self.end(&begun, &code).await
    }

    async fn me(&self, seen: &Seen) -> Value {
        let me = self.get("/api/v1/me", &seen.cookie("fettle_session").unwrap()).await;
        assert_eq!(me.status, 200, "{}", me.text);
        serde_json::from_str(&me.text).unwrap()
    }

    async fn log(&self) -> Vec<Entry> {
        let export = self.house.by_key(Method::GET, "/api/v1/audit-log/export", None).await;
        let log: Vec<Entry> = export.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        verify(Head::EMPTY, &log).unwrap();
        log
    }
}

#[tokio::test]
async fn who_comes_from_the_provider_has_one_account_whatever_their_address_becomes() {
    let inn = Inn::open().await;
    let state: Value = serde_json::from_str(&inn.get("/api/auth/state", "").await.text).unwrap();
    assert_eq!(state["oidc"], json!({"name": "Example"}));
    let first = inn.sign_in("1", "ada@example.org", Says::Right).await;
    assert_eq!((first.status, first.location.as_str()), (303, "/"), "{}", first.text);
    let session = first.cookies.iter().find(|set| set.starts_with("fettle_session=")).unwrap();
    assert!(session.contains("HttpOnly; SameSite=Lax"), "{session}");
    assert!(first.cookies.iter().any(|set| set.starts_with("fettle_sign_in=;") && set.contains("Max-Age=0")));
    let me = inn.me(&first).await;
    assert_eq!((&me["username"], &me["role"], &me["via"]), (&json!("ada.l"), &json!("maintainer"), &json!("session")));

    let again = inn.sign_in("1", "ada.lovelace@example.org", Says::Right).await;
    assert_eq!(inn.me(&again).await["id"], me["id"]);
    assert_ne!(again.cookie("fettle_session"), first.cookie("fettle_session"));
    let other = inn.sign_in("2", "other@example.org", Says::Right).await;
    assert_eq!(inn.me(&other).await["username"], "ada.l-2", "another person of the same name");
    let actions: Vec<String> = inn.log().await.into_iter().map(|entry| entry.note.action).collect();
    assert_eq!(actions, ["register", "login", "login", "register", "login"]);
    assert_eq!(*inn.emulated.asked.lock().unwrap(), 1, "keys are kept");

    // Made inactive here, the provider's word is no longer enough; and there is no password to try.
    let path = format!("/api/v1/users/{}", me["id"].as_str().unwrap());
    assert_eq!(inn.house.by_key(Method::PATCH, &path, Some(json!({"active": false}))).await.status, 200);
    assert_eq!(Inn::refused(&inn.sign_in("1", "ada@example.org", Says::Right).await), "inactive");
    let body = json!({"username": "ada.l-2", "password": ""}).to_string();
    let login = inn.http.post(format!("{}/api/auth/login", inn.house.world.public));
    let login = login.header("content-type", "application/json").body(body).send().await.unwrap();
    assert_eq!(login.status(), 401);
}

#[tokio::test]
async fn nothing_that_the_provider_did_not_say_for_this_sign_in_counts() {
    let inn = Inn::open().await;
    for (says, word) in [
        (Says::AnotherNonce, "unfit"),
        (Says::AnotherAudience, "unfit"),
        (Says::AnotherIssuer, "unfit"),
        (Says::Expired, "unfit"),
        (Says::Unsigned, "unfit"),
        (Says::SharedSecret, "unfit"),
        (Says::SignedByAnother, "unfit"),
        (Says::SignedByAnUnknownKey, "unfit"),
        (Says::Unverified, "unverified"),
        (Says::Stranger, "not_allowed"),
    ] {
        let seen = inn.sign_in("1", "ada@example.org", says).await;
        assert_eq!(Inn::refused(&seen), word, "{says:?}");
        assert!(seen.cookies.iter().any(|set| set.starts_with("fettle_sign_in=;")), "what was begun is over");
        let last = inn.log().await.pop().unwrap().note;
        assert_eq!((&*last.action, &*last.result, &*last.actor), ("login", "refused", "unknown"), "{says:?}");
    }
    let users = inn.house.by_key(Method::GET, "/api/v1/users", None).await.json();
    assert_eq!(users["items"], json!([]), "and nobody has an account of it");
}

#[tokio::test]
async fn a_sign_in_ends_in_the_browser_where_it_began_and_once() {
    let inn = Inn::open().await;
    let (mine, theirs) = (inn.begin().await, inn.begin().await);
    assert!(mine.state != theirs.state && mine.nonce != theirs.nonce && mine.challenge != theirs.challenge);
    let code = inn.approve(&theirs, "7", "eve@example.org", Says::Right);
    // Somebody else's way back in my browser, or in one that never began.
    for cookie in [mine.cookie.as_str(), "", "fettle_sign_in=0123456789abcdef"] {
        let path = format!("/api/auth/oidc/callback?code={code}&state={}", theirs.state);
        let seen = inn.get(&path, cookie).await;
        assert_eq!(Inn::refused(&seen), "not_begun_here");
    }
    // Somebody else's code with my state: the provider knows for whom it was.
    let injected = inn.end(&mine, &code).await;
    assert_eq!(Inn::refused(&injected), "unfit");

    let mine = inn.begin().await;
    let code = inn.approve(&mine, "1", "ada@example.org", Says::Right);
    assert_eq!(inn.end(&mine, &code).await.location, "/");
    assert_eq!(Inn::refused(&inn.end(&mine, &code).await), "unfit", "a code is good once");
    for (path, word) in
        [("?error=access_denied&state=x", "refused"), ("", "nothing"), ("?state=x", "nothing"), ("?code=x", "nothing")]
    {
        let seen = inn.get(&format!("/api/auth/oidc/callback{path}"), &mine.cookie).await;
        assert_eq!(Inn::refused(&seen), word, "{path}");
    }
}

#[tokio::test]
async fn an_address_that_an_account_has_already_opens_no_account() {
    let inn = Inn::open().await;
    inn.house.user("ada", Role::Admin).await;
    let seen = inn.sign_in("1", "ada@example.org", Says::Right).await;
    assert_eq!(Inn::refused(&seen), "email_has_account");
}

#[tokio::test]
async fn nobody_registers_with_an_address_of_the_providers_people_so_nobody_is_kept_out_or_joined_to_a_stranger() {
    let inn = Inn::open().await;
    let register = |name: &str, email: &str| {
        let body = json!({"username": name, "email": email, "password": "mohnfeld-quirlt-19-laternen"});
        inn.house.post("/api/auth/register", body)
    };
    for email in ["ada@example.org", " ADA@Example.ORG "] {
        let taken = register("eve", email).await;
        assert_eq!((taken.status, taken.json()["errors"][0]["pointer"].clone()), (422, json!("/email")), "{email}");
    }
    assert_eq!(register("eve", "eve@example.com").await.status, 201, "others may");
    let ada = inn.sign_in("1", "ada@example.org", Says::Right).await;
    assert_eq!(inn.me(&ada).await["username"], "ada.l");
    // An account that has the address by an admin's word stays one of its own.
    inn.house.user("bob", Role::Viewer).await;
    assert_eq!(Inn::refused(&inn.sign_in("2", "bob@example.org", Says::Right).await), "email_has_account");
}

#[tokio::test]
async fn new_keys_of_the_provider_are_found_and_a_made_up_one_does_not_make_us_ask_again_and_again() {
    let inn = Inn::open().await;
    assert_eq!(inn.sign_in("1", "ada@example.org", Says::Right).await.location, "/");
    for _ in 0..3 {
        assert_eq!(Inn::refused(&inn.sign_in("1", "ada@example.org", Says::SignedByAnUnknownKey).await), "unfit");
    }
    assert_eq!(*inn.emulated.asked.lock().unwrap(), 1);
    inn.emulated.keys.lock().unwrap().push(Arc::new(Key::make("second")));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    assert_eq!(inn.sign_in("1", "ada@example.org", Says::Right).await.location, "/");
    assert_eq!(*inn.emulated.asked.lock().unwrap(), 2);
}

#[tokio::test]
async fn without_a_provider_there_is_none_and_one_that_is_away_is_said_to_be() {
    let none = House::open(Registration::Closed).await;
    assert_eq!(none.world.get("/api/auth/oidc/start").await.status, StatusCode::NOT_FOUND);
    assert_eq!(none.world.get("/api/auth/oidc/callback?code=x&state=y").await.status, StatusCode::NOT_FOUND);
    let provider = Provider::new(Options {
        issuer: "http://127.0.0.1:1".into(),
        client_id: CLIENT.into(),
        client_secret: None,
        redirect_url: CALLBACK.into(),
    });
    let away = House::with_provider(Foreign {
        provider: Arc::new(provider.unwrap()),
        name: "Example".into(),
        allowed: Allowed::default(),
        role: Role::Viewer,
    });
    let away = away.await;
    let http = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap();
    let answer = http.get(format!("{}/api/auth/oidc/start", away.world.public)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 303);
    assert_eq!(answer.headers()["location"], "/sign-in?problem=away");
}
