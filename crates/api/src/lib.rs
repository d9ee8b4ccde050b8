//! The dashboard's HTTP edge: routes, bodies, the OpenAPI document, who may ask, event streams, health, metrics, and the
//! worker API with its client.
//!
//! Handlers read and check the wire's form, ask a port of `app`, and answer; they decide nothing about Tasks.

mod auth;
mod edge;
mod extract;
mod feeds;
mod gateway_models;
mod health;
mod inference_client;
mod metrics;
mod pages;
mod problem;
mod revision;
mod scale;
mod serve;
mod state;
mod tryout;
mod v1;
mod webhook;
mod worker;
mod worker_client;
mod worker_health;

use axum::extract::DefaultBodyLimit;
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::OpenApi as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{Object, Schema, Type};
use utoipa::openapi::security::{ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Required, Response, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use gateway_models::{GatewayModels, GatewayModelsError};
pub use health::{Health, PartsHealth, ProbeTiming};
pub use inference_client::{InferenceClient, InferenceError};
pub use metrics::HttpMetrics;
pub use serve::serve;
pub use state::{About, AboutForge, ApiState, ConfiguredModel, Parts, Setting, WebhookSecrets};
pub use tryout::Tryout;
pub use worker_client::{Contact, WorkerClient, WorkerClientError};
pub use worker_health::{WorkerHealth, WorkerHealthParts};

/// An issue's text at its largest fits several times.
const MAX_API_BODY_BYTES: usize = 1024 * 1024;

/// A name, an address and a password; nobody who is not known yet sends more.
const MAX_AUTH_BODY_BYTES: usize = 16 * 1024;

/// The one listener of a single process: what [`public_router`] has, and health and metrics.
pub fn router(api: ApiState) -> Router {
    finished(public(&api).merge(operations()).fallback(pages::get_page), api)
}

/// The public listener of a dashboard that has an internal one: pages, API, webhook. Health and metrics are not for
/// those who can reach it.
pub fn public_router(api: ApiState) -> Router {
    finished(public(&api).fallback(pages::get_page), api)
}

fn public(api: &ApiState) -> Router<ApiState> {
    let (v1, _) = v1_routes().split_for_parts();
    let v1 = v1
        .layer(DefaultBodyLimit::max(MAX_API_BODY_BYTES))
        .route_layer(middleware::from_fn(revision::revise))
        .route_layer(middleware::from_fn(edge::time_limit))
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::require_actor));
    let (doors, _) = auth_routes().split_for_parts();
    let doors =
        doors.layer(DefaultBodyLimit::max(MAX_AUTH_BODY_BYTES)).route_layer(middleware::from_fn(edge::time_limit));
    let (webhooks, _) = webhook_routes().split_for_parts();
    let webhooks = webhooks
        .layer(DefaultBodyLimit::max(webhook::MAX_BYTES))
        .route_layer(middleware::from_fn_with_state(api.clone(), webhook::few_large_bodies))
        .route_layer(middleware::from_fn(edge::time_limit));
    let document = openapi_json();
    let pages = Router::new()
        .route("/", get(pages::get_page))
        .route("/api/openapi.json", get(|| async { ([(CONTENT_TYPE, "application/json")], document) }));
    v1.merge(doors).merge(webhooks).merge(pages)
}

/// The internal listener: the worker API behind the service key, health and metrics.
pub fn internal_router(api: ApiState) -> Router {
    finished(
        worker::routes(&api).merge(gateway_models::routes(&api)).merge(operations()).fallback(edge::no_such_route),
        api,
    )
}

/// The public API's document.
pub fn openapi() -> OpenApi {
    let routes = OpenApiRouter::with_openapi(Document::openapi())
        .merge(auth_routes())
        .merge(v1_routes())
        .merge(webhook_routes())
        .merge(health_routes());
    let mut document = routes.into_openapi();
    for item in document.paths.paths.values_mut() {
        for operation in
            [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
        {
            operation.responses.responses.insert("default".to_owned(), any_problem());
        }
    }
    let bearer = || SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let named = |name: &str| ApiKeyValue::new(name);
    let components = document.components.get_or_insert_default();
    for (name, scheme) in [
        ("admin_key", bearer()),
        ("bearer", bearer()),
        ("cookie", SecurityScheme::ApiKey(utoipa::openapi::security::ApiKey::Cookie(named("__Host-fettle_session")))),
        ("api_key", SecurityScheme::ApiKey(utoipa::openapi::security::ApiKey::Header(named("X-API-Key")))),
    ] {
        components.add_security_scheme(name, scheme);
    }
    for (path, item) in &mut document.paths.paths {
        if let Some(read) = item.get.as_mut().filter(|_| revision::is_revised(&Method::GET, path)) {
            tell_of_revision(read);
        }
        // Whatever takes the admin key takes the others.
        for operation in
            [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
        {
            if let Some(security) = operation.security.as_mut().filter(|_| path.starts_with("/api/v1/")) {
                let others = ["bearer", "cookie", "api_key"];
                security.extend(others.map(|name| SecurityRequirement::new(name, Vec::<String>::new())));
            }
        }
    }
    document
}

/// A read whose answer has a revision, as far as it is a value and no feed.
fn tell_of_revision(read: &mut Operation) {
    let Some(RefOr::T(answer)) = read.responses.responses.get_mut("200") else { return };
    if !answer.content.contains_key("application/json") {
        return;
    }
    let text = || Schema::from(Object::with_type(Type::String));
    let header = HeaderBuilder::new().schema(Some(text())).description(Some("Weak; changes with what is told"));
    answer.headers.insert("ETag".to_owned(), header.build().into());
    let unchanged = ResponseBuilder::new().description("What `If-None-Match` names is what would be told").build();
    read.responses.responses.insert("304".to_owned(), unchanged.into());
    let parameter = ParameterBuilder::new()
        .name("If-None-Match")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("`ETag`s of answers that the client still has"))
        .schema(Some(text()));
    read.parameters.get_or_insert_default().push(parameter.build().into());
}

/// Whatever goes wrong, at every address.
fn any_problem() -> RefOr<Response> {
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    ResponseBuilder::new()
        .description("A problem; switch on its `code`")
        .content(problem::MEDIA_TYPE, content)
        .build()
        .into()
}

/// The document as it is committed and served.
pub fn openapi_json() -> String {
    let mut text = openapi().to_pretty_json().expect("the document is plain JSON");
    text.push('\n');
    text
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Fettle",
        description = "Turns GitHub issues into pull requests that carry their own proof.\n\nErrors are `application/problem+json`; switch on `code`. `X-Correlation-Id` (`corr_…` or a UUID) names a thread through logs and events; without one the answer tells the one that was made.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(problem::ProblemBody, v1::live::Said, v1::live::Tell)),
    tags(
        (name = "accounts", description = "Who comes in, with what, and what they did"),
        (name = "tasks", description = "What somebody asked for"),
        (name = "events", description = "Following Tasks as server-sent events, or many at once over a WebSocket"),
        (name = "models", description = "What Runs can ask"),
        (name = "inference", description = "Devices of this machine, and which model is where"),
        (name = "webhooks", description = "Where the forge reports"),
        (name = "operations", description = "How the process is doing; on the internal listener, where there is one"),
    )
)]
struct Document;

fn v1_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(v1::tasks::list_tasks, v1::submit::create_task))
        .routes(routes!(v1::tasks::get_task))
        .routes(routes!(v1::tasks::cancel_task))
        .routes(routes!(v1::tasks::retry_task))
        .routes(routes!(v1::runs::list_runs, v1::runs::add_runs))
        .routes(routes!(v1::runs::create_pull_request))
        .routes(routes!(v1::runs::stop_run))
        .routes(routes!(v1::messages::list_messages, v1::messages::post_message))
        .routes(routes!(v1::change::get_patch))
        .routes(routes!(v1::change::get_proof))
        .routes(routes!(v1::overview::get_overview))
        .routes(routes!(v1::events::follow_task))
        .routes(routes!(v1::events::follow_events))
        .routes(routes!(v1::live::follow_live))
        .routes(routes!(v1::operations::list_dead_jobs))
        .routes(routes!(v1::operations::redrive_job))
        .routes(routes!(v1::operations::audit))
        .routes(routes!(v1::system::list_reconcilers))
        .routes(routes!(v1::queue::get_queue))
        .routes(routes!(v1::queue::list_workers))
        .routes(routes!(v1::pods::list_pods))
        .routes(routes!(v1::pods::get_pod_log))
        .routes(routes!(v1::repositories::list_repositories, v1::repositories::add_repository))
        .routes(routes!(v1::repositories::remove_repository))
        .routes(routes!(v1::models::list_models))
        .routes(routes!(v1::models::put_model, v1::models::remove_model))
        .routes(routes!(v1::models::try_model))
        .routes(routes!(v1::models::rotate_secrets))
        .routes(routes!(v1::settings::get_settings))
        .routes(routes!(v1::forge::get_forge))
        .routes(routes!(v1::forge::put_forge_tokens, v1::forge::remove_forge_tokens))
        .routes(routes!(v1::steps::list_steps))
        .routes(routes!(v1::inference::list_devices))
        .routes(routes!(v1::inference::list_placements))
        .routes(routes!(v1::inference::list_placement_events))
        .routes(routes!(v1::accounts::get_me))
        .routes(routes!(v1::accounts::change_password))
        .routes(routes!(v1::accounts::list_sessions))
        .routes(routes!(v1::accounts::end_session))
        .routes(routes!(v1::accounts::list_users, v1::accounts::create_user))
        .routes(routes!(v1::accounts::change_user))
        .routes(routes!(v1::accounts::list_keys_of_user))
        .routes(routes!(v1::accounts::remove_key_of_user))
        .routes(routes!(v1::accounts::list_api_keys, v1::accounts::create_api_key))
        .routes(routes!(v1::accounts::remove_api_key))
        .routes(routes!(v1::accounts::list_audit_log))
        .routes(routes!(v1::accounts::export_audit_log))
}

fn auth_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(auth::routes::get_auth_state))
        .routes(routes!(auth::routes::set_up))
        .routes(routes!(auth::routes::sign_in, auth::routes::sign_out))
        .routes(routes!(auth::routes::register))
        .routes(routes!(auth::routes::log_in))
        .routes(routes!(auth::routes::refresh))
        .routes(routes!(auth::routes::log_out))
        .routes(routes!(auth::oidc::begin))
        .routes(routes!(auth::oidc::end))
}

fn webhook_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(webhook::receive_github))
}

fn health_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(health::get_health))
        .routes(routes!(health::get_readiness))
        .routes(routes!(scale::get_scale))
}

/// Health under all its names, metrics, and the number to scale by.
fn operations() -> Router<ApiState> {
    let (health, _) = health_routes().split_for_parts();
    health
        .route("/livez", get(health::get_health))
        .route("/health/live", get(health::get_health))
        .route("/health/ready", get(health::get_readiness))
        .route("/metrics", get(metrics::get_metrics))
}

/// What every listener of the dashboard has: answers for wrong methods, and the outermost layer.
fn finished(routes: Router<ApiState>, api: ApiState) -> Router {
    routes
        .method_not_allowed_fallback(edge::no_such_method)
        .layer(middleware::from_fn_with_state(api.clone(), edge::exchange))
        .with_state(api)
}
