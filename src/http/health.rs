//! Purpose: `/healthz` (the process is up), `/readyz` (what it needs answers, each named), `/metrics` (Prometheus).

use super::Http;
use crate::app::App;
use crate::domain::secrets::SecretScan;
use crate::store;
use crate::telemetry;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::time::Duration;

/// Seconds that the answers of sandbox and forge are kept, so that probes cost no rate limit.
const CACHE_SECONDS: i64 = 30;
/// Seconds until something that does not answer counts as failed.
const CHECK_TIMEOUT_SECONDS: u64 = 5;
/// Bytes that are written to see whether there is room.
const PROBE_BYTES: usize = 256 * 1024;
/// Characters of a detail that are shown.
const MAX_DETAIL_CHARS: usize = 300;

/// One thing the server needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    pub name: &'static str,
    pub ok: bool,
    pub detail: String,
}

/// The kept answers of what is costly to ask.
#[derive(Debug, Default)]
pub struct Kept {
    asked_at: Option<DateTime<Utc>>,
    parts: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    checks: Vec<Part>,
}

/// The process is up.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// 200 when database, sandbox and forge answer, else 503; each with its name.
pub async fn readyz(State(http): State<Http>) -> Response {
    let app = http.app();
    let mut checks = vec![database(app).await];
    {
        // One request asks, the others wait for its answer.
        let mut kept = http.kept().lock().await;
        let now = app.clock.now();
        let fresh = kept.asked_at.is_some_and(|at| (now - at).num_seconds() < CACHE_SECONDS);
        if !fresh {
            let role = app.node.role;
            // What another role's nodes need says nothing of this one.
            let containers = async { if role.works() { Some(sandbox(app).await) } else { None } };
            let writes = async { if role.is_the_app() { Some(forge(app).await) } else { None } };
            let (containers, writes, disk) = tokio::join!(containers, writes, disk(app));
            kept.parts = containers.into_iter().chain(writes).chain([disk]).collect();
            kept.asked_at = Some(now);
        }
        checks.extend(kept.parts.iter().cloned());
    }
    let ready = checks.iter().all(|part| part.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, checks })).into_response()
}

fn shown(secrets: &SecretScan, detail: &str) -> String {
    secrets.mask(detail).chars().take(MAX_DETAIL_CHARS).collect()
}

async fn in_time<T>(asked: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(Duration::from_secs(CHECK_TIMEOUT_SECONDS), asked)
        .await
        .map_err(|_elapsed| format!("no answer within {CHECK_TIMEOUT_SECONDS} s"))
}

async fn database(app: &App) -> Part {
    let answer = in_time(app.store.ping()).await;
    let (ok, detail) = match answer {
        Ok(Ok(())) => (true, format!("{:?}", app.store.kind()).to_lowercase()),
        Ok(Err(error)) => {
            let detail = app.secrets.mask(&super::error::chain(&error));
            tracing::error!(error.detail = detail, "the database does not answer");
            (false, "the database does not answer; the server's log says more".into())
        }
        Err(late) => (false, late),
    };
    Part { name: "database", ok, detail }
}

async fn sandbox(app: &App) -> Part {
    let kind = app.sandbox.kind();
    let (ok, detail) = match in_time(app.sandbox.self_check()).await {
        Ok(checks) => {
            let failed: Vec<String> = checks
                .iter()
                .filter(|check| check.required && !check.ok)
                .map(|check| format!("{}: {}", check.name, check.found))
                .collect();
            if failed.is_empty() { (true, kind.to_owned()) } else { (false, failed.join("; ")) }
        }
        Err(late) => (false, late),
    };
    Part { name: "sandbox", ok, detail: shown(&app.secrets, &detail) }
}

/// Whether as much as a delivery may be written where the state and the database lie: a full disk refuses it, whatever the
/// database still finds room for in files that it has.
async fn disk(app: &App) -> Part {
    let mut folders = vec![app.config.state_dir.as_path()];
    folders.extend(app.store.folder().filter(|folder| *folder != app.config.state_dir));
    let mut part =
        Part { name: "disk", ok: true, detail: format!("{} KiB can be written", PROBE_BYTES / 1024) };
    if app.store.is_nearly_full() {
        part.ok = false;
        part.detail = "the disk of the database is nearly full: deliveries are refused".into();
    }
    for folder in folders {
        let path = folder.join(format!(".ready-{}", app.boot.replace([':', '/'], "-")));
        let written = in_time(tokio::fs::write(&path, vec![0; PROBE_BYTES])).await;
        // Also what a full disk took of it.
        let removed = tokio::fs::remove_file(&path).await;
        let problem = match written {
            Ok(written) => written.and(removed).err().map(|error| error.to_string()),
            Err(late) => Some(late),
        };
        if let Some(problem) = problem {
            let detail = format!("nothing can be written to {}: {problem}", folder.display());
            part = Part { name: "disk", ok: false, detail: shown(&app.secrets, &detail) };
        }
    }
    part
}

async fn forge(app: &App) -> Part {
    let (ok, detail) = match in_time(app.forge.check()).await {
        Ok(Ok(answer)) => (true, format!("{}: {answer}", app.forge.name())),
        Ok(Err(error)) => (false, format!("{}: {error}", app.forge.name())),
        Err(late) => (false, format!("{}: {late}", app.forge.name())),
    };
    Part { name: "forge", ok, detail: shown(&app.secrets, &detail) }
}

/// Prometheus text. Gauges of the queue are read from the database at each scrape.
pub async fn metrics(State(http): State<Http>) -> Response {
    let app = http.app();
    let handle = telemetry::prometheus();
    metrics::gauge!(telemetry::BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let up = match gauges(app).await {
        Ok(()) => 1.0,
        Err(error) => {
            tracing::warn!(error = super::error::chain(&error), "metrics: the database does not answer");
            0.0
        }
    };
    metrics::gauge!(telemetry::DATABASE_UP).set(up);
    handle.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], handle.render()).into_response()
}

async fn gauges(app: &App) -> Result<(), store::StoreError> {
    use crate::domain::effect::EffectState;
    use crate::domain::run::RunState;
    let of = |counts: &[(String, i64)], state: &str| {
        let count = counts.iter().find(|(name, _)| name == state).map_or(0, |(_, count)| *count);
        // Counts stay far below 2^52, where floats are exact.
        count as f64
    };
    // A state without rows is said to be 0, not left at its last value.
    let runs = store::runs::counts(&app.store).await?;
    for state in RunState::ALL {
        metrics::gauge!(telemetry::RUNS, "state" => state.as_str()).set(of(&runs, state.as_str()));
    }
    let effects = store::effects::counts(&app.store).await?;
    for state in EffectState::ALL {
        metrics::gauge!(telemetry::EFFECTS, "state" => state.as_str()).set(of(&effects, state.as_str()));
    }
    let deliveries = store::inbox::counts(&app.store).await?;
    for state in ["pending", "done", "ignored", "not_yet_handled", "failed"] {
        metrics::gauge!(telemetry::DELIVERIES, "state" => state).set(of(&deliveries, state));
    }
    let paused = store::settings::get(&app.store, store::settings::PAUSED).await?.is_some();
    metrics::gauge!(telemetry::PAUSED).set(if paused { 1.0 } else { 0.0 });
    Ok(())
}
