//! Purpose: JSON under `/api/v1`, with bearer tokens. Every change is written to the audit log under the token's name.

use super::Http;
use super::error::HttpError;
use super::view::{
    self, ArtifactView, AuditView, BudgetView, DeliveryView, LogView, NodesView, RunCostView, RunView,
    StatusView,
};
use crate::app::App;
use crate::clock::IdKind;
use crate::domain::budget::month;
use crate::domain::run::{Run, RunState};
use crate::engine::operate;
use crate::store;
use crate::telemetry;
use axum::extract::{Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Every token starts with this, so that people and scanners know it.
pub const TOKEN_PREFIX: &str = "zbl_";
/// Longest token taken, in bytes; ours have 68.
const MAX_TOKEN_BYTES: usize = 200;
/// Longest reason for a pause, in characters.
const MAX_REASON_CHARS: usize = 500;

/// Who asks: the name of the token.
#[derive(Debug, Clone)]
struct Caller(String);

impl Caller {
    /// As the audit log names it.
    fn actor(&self) -> String {
        format!("token:{}", self.0)
    }
}

/// What is stored of a token.
pub fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

pub(super) fn routes(http: &Http) -> Router<Http> {
    Router::new()
        .route("/status", get(status))
        .route("/runs", get(runs))
        .route("/runs/{id}", get(run))
        .route("/runs/{id}/log", get(log))
        .route("/runs/{id}/artifacts", get(artifacts))
        .route("/runs/{id}/artifacts/{*path}", get(artifact))
        .route("/runs/{id}/cancel", post(cancel))
        .route("/runs/{id}/retry", post(retry))
        .route("/budget", get(budget))
        .route("/budget/runs", get(budget_runs))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/deliveries", get(deliveries))
        .route("/replay/{id}", post(replay))
        .route("/audit", get(audit))
        .route("/nodes", get(nodes))
        .route("/nodes/drain", post(drain))
        .route_layer(axum::middleware::from_fn_with_state(http.clone(), authenticate))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

async fn authenticate(State(http): State<Http>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let checked = check_token(http.app(), &parts).await;
    let result = match &checked {
        Ok(_) => "allowed",
        Err(error) if error.status == StatusCode::UNAUTHORIZED => "refused",
        Err(_) => "failed",
    };
    metrics::counter!(telemetry::API_REQUESTS, "result" => result).increment(1);
    match checked {
        Ok(caller) => {
            parts.extensions.insert(caller);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(error) => error.into_response(),
    }
}

async fn check_token(app: &App, request: &Parts) -> Result<Caller, HttpError> {
    let refused = |message: &str| {
        HttpError::unauthorized(message).with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    };
    let token = bearer(&request.headers).ok_or_else(|| {
        refused("a token is needed: `Authorization: Bearer zbl_…`; make one with `zeblit token create NAME`")
    })?;
    let unknown = || refused("the token is not valid (any more): make one with `zeblit token create NAME`");
    if !token.starts_with(TOKEN_PREFIX) || token.len() > MAX_TOKEN_BYTES {
        return Err(unknown());
    }
    let found = store::access::by_hash(&app.store, &token_hash(token), app.clock.now())
        .await
        .map_err(|error| HttpError::store(app, "look up a token", &error))?
        .ok_or_else(unknown)?;
    let caller = Caller(found.name);
    if request.method != Method::GET && request.method != Method::HEAD {
        record_use(app, &caller, request).await?;
    }
    Ok(caller)
}

/// One audit line for each use of a token that may change something, also when it is refused later.
async fn record_use(app: &App, caller: &Caller, request: &Parts) -> Result<(), HttpError> {
    let entry = store::audit::Entry {
        id: app.ids.next(IdKind::Request),
        at: app.clock.now(),
        actor: caller.actor(),
        action: "token.use".into(),
        subject: app
            .secrets
            .mask(&format!("{} {}", request.method, request.uri.path()))
            .chars()
            .take(200)
            .collect(),
        detail: String::new(),
    };
    let write = async {
        let mut tx = app.store.write_tx().await?;
        store::audit::append(&mut tx, &entry).await?;
        tx.commit().await
    };
    write.await.map_err(|error| HttpError::store(app, "write the audit log", &error))
}

fn rows(limit: Option<i64>) -> i64 {
    limit.unwrap_or(view::DEFAULT_ROWS).clamp(1, view::MAX_ROWS)
}

#[derive(Debug, Deserialize)]
struct Page {
    limit: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunsQuery {
    state: Option<String>,
    repo: Option<String>,
    /// Only runs that have not ended.
    #[serde(default)]
    open: bool,
    limit: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    #[serde(default)]
    after: i64,
}

type Answer<T> = Result<Json<T>, HttpError>;

async fn status(State(http): State<Http>) -> Answer<StatusView> {
    let app = http.app();
    StatusView::read(&app.store)
        .await
        .map(Json)
        .map_err(|error| HttpError::store(app, "read the status", &error))
}

async fn runs(
    State(http): State<Http>,
    query: Result<Query<RunsQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<RunView>> {
    let app = http.app();
    let Query(query) = query.map_err(|error| HttpError::bad_request(error.body_text()))?;
    let state = match query.state.as_deref() {
        None => None,
        Some(name) => Some(RunState::parse(name).ok_or_else(|| {
            let known: Vec<&str> = RunState::ALL.into_iter().map(RunState::as_str).collect();
            HttpError::bad_request(format!("`state` is one of {}", known.join(", ")))
        })?),
    };
    let filter =
        store::runs::Filter { state, repo: query.repo, open_only: query.open, limit: rows(query.limit) };
    let found = store::runs::list(&app.store, &filter)
        .await
        .map_err(|error| HttpError::store(app, "list runs", &error))?;
    let now = app.clock.now();
    Ok(Json(found.iter().map(|run| shown(app, run, now)).collect()))
}

fn shown(app: &App, run: &Run, now: DateTime<Utc>) -> RunView {
    RunView::of(run, now, view::fresh_page_url(&app.config, &app.signer, &run.id, now))
}

async fn known_run(app: &App, id: &str) -> Result<Run, HttpError> {
    view::find_run(&app.store, id)
        .await
        .map_err(|error| HttpError::store(app, "read a run", &error))?
        .ok_or_else(|| HttpError::not_found("there is no run with this id"))
}

async fn run(State(http): State<Http>, Path(id): Path<String>) -> Answer<RunView> {
    let app = http.app();
    let run = known_run(app, &id).await?;
    Ok(Json(shown(app, &run, app.clock.now())))
}

async fn log(
    State(http): State<Http>,
    Path(id): Path<String>,
    query: Result<Query<LogQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<LogView> {
    let app = http.app();
    let Query(query) = query.map_err(|error| HttpError::bad_request(error.body_text()))?;
    let run = known_run(app, &id).await?;
    LogView::read(&app.store, &run.id, query.after)
        .await
        .map_err(|error| HttpError::store(app, "read a log", &error))?
        .map(Json)
        .ok_or_else(|| HttpError::not_found("there is no run with this id"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BudgetQuery {
    /// A run: only what its requests count against.
    run: Option<String>,
}

async fn budget(
    State(http): State<Http>,
    query: Result<Query<BudgetQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<BudgetView> {
    let app = http.app();
    let Query(query) = query.map_err(|error| HttpError::bad_request(error.body_text()))?;
    let run = match &query.run {
        Some(id) => Some(known_run(app, id).await?),
        None => None,
    };
    BudgetView::read(&app.config, &app.store, run.as_ref(), app.clock.now())
        .await
        .map(Json)
        .map_err(|error| HttpError::store(app, "read the budgets", &error))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MonthQuery {
    /// `2026-11`.
    month: String,
    /// The last run of the page before.
    #[serde(default)]
    after: String,
}

async fn budget_runs(
    State(http): State<Http>,
    query: Result<Query<MonthQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<RunCostView>> {
    let app = http.app();
    let Query(query) = query.map_err(|error| HttpError::bad_request(error.body_text()))?;
    let month = month(&query.month)
        .ok_or_else(|| HttpError::bad_request("`month` is a month like `2026-11`".to_owned()))?;
    RunCostView::read(&app.store, month, &query.after)
        .await
        .map(Json)
        .map_err(|error| HttpError::store(app, "read the ledger", &error))
}

async fn artifacts(State(http): State<Http>, Path(id): Path<String>) -> Answer<Vec<ArtifactView>> {
    let app = http.app();
    let run = known_run(app, &id).await?;
    let files = store::artifacts::files(&app.store, &run.id)
        .await
        .map_err(|error| HttpError::store(app, "list the files of a run", &error))?;
    Ok(Json(files.iter().map(ArtifactView::of).collect()))
}

async fn artifact(
    State(http): State<Http>,
    Path((id, path)): Path<(String, String)>,
) -> Result<Response, HttpError> {
    let app = http.app();
    let run = known_run(app, &id).await?;
    let bytes = store::artifacts::file(&app.store, &run.id, &path)
        .await
        .map_err(|error| HttpError::store(app, "read a file of a run", &error))?
        .ok_or_else(|| HttpError::not_found("the run has no file of this name (any more)"))?;
    Ok(super::download::file(&path, bytes))
}

/// The id of what was made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub id: String,
}

async fn cancel(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Changed> {
    let app = http.app();
    let run = known_run(app, &id).await?;
    operate::cancel(app, &run.id, &caller.actor())
        .await
        .map_err(|error| HttpError::operate(app, "cancel a run", &error))?;
    Ok(Json(Changed { id: run.id.to_string() }))
}

async fn retry(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Changed> {
    let app = http.app();
    let run = known_run(app, &id).await?;
    let new = operate::retry(app, &run.id, &caller.actor())
        .await
        .map_err(|error| HttpError::operate(app, "retry a run", &error))?;
    Ok(Json(Changed { id: new.to_string() }))
}

/// Why everything is paused.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseBody {
    #[serde(default)]
    pub why: String,
}

async fn pause(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Answer<PauseBody> {
    let app = http.app();
    let body: PauseBody = if body.is_empty() {
        PauseBody::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| HttpError::bad_request(format!("the body is `{{\"why\": \"…\"}}`: {error}")))?
    };
    let why: String = view::visible(&body.why).chars().take(MAX_REASON_CHARS).collect();
    let why = pause_text(&caller.actor(), &why);
    operate::pause(app, Some(&why), &caller.actor())
        .await
        .map_err(|error| HttpError::operate(app, "pause", &error))?;
    Ok(Json(PauseBody { why }))
}

/// What is stored while everything is paused: who, and why.
pub fn pause_text(by: &str, why: &str) -> String {
    if why.trim().is_empty() { format!("by {by}") } else { format!("by {by}: {}", why.trim()) }
}

async fn resume(State(http): State<Http>, Extension(caller): Extension<Caller>) -> Answer<PauseBody> {
    let app = http.app();
    operate::pause(app, None, &caller.actor())
        .await
        .map_err(|error| HttpError::operate(app, "resume", &error))?;
    Ok(Json(PauseBody::default()))
}

async fn nodes(State(http): State<Http>) -> Answer<NodesView> {
    let app = http.app();
    NodesView::read(&app.store, app.clock.now())
        .await
        .map(Json)
        .map_err(|error| HttpError::store(app, "list the nodes", &error))
}

/// Which node, by name or id, and whether it shall claim nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainBody {
    pub node: String,
    pub drain: bool,
}

/// How many nodes there are of the name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drained {
    pub nodes: u64,
}

async fn drain(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Answer<Drained> {
    let app = http.app();
    let body: DrainBody = serde_json::from_slice(&body).map_err(|error| {
        HttpError::bad_request(format!("the body is `{{\"node\": \"…\", \"drain\": true}}`: {error}"))
    })?;
    operate::drain(app, &body.node, body.drain, &caller.actor())
        .await
        .map(|nodes| Json(Drained { nodes }))
        .map_err(|error| HttpError::operate(app, "drain a node", &error))
}

async fn deliveries(
    State(http): State<Http>,
    query: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<DeliveryView>> {
    let app = http.app();
    let Query(page) = query.map_err(|error| HttpError::bad_request(error.body_text()))?;
    let found = store::inbox::list(&app.store, rows(page.limit))
        .await
        .map_err(|error| HttpError::store(app, "list deliveries", &error))?;
    Ok(Json(found.iter().map(DeliveryView::of).collect()))
}

async fn replay(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Changed> {
    let app = http.app();
    let id = operate::replay(app, &id, &caller.actor())
        .await
        .map_err(|error| HttpError::operate(app, "replay a delivery or run", &error))?;
    Ok(Json(Changed { id }))
}

async fn audit(
    State(http): State<Http>,
    query: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<AuditView>> {
    let app = http.app();
    let Query(page) = query.map_err(|error| HttpError::bad_request(error.body_text()))?;
    let found = store::audit::list(&app.store, rows(page.limit))
        .await
        .map_err(|error| HttpError::store(app, "list the audit log", &error))?;
    Ok(Json(found.iter().map(AuditView::of).collect()))
}
