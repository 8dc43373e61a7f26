//! Use cases, one tick per file: every loop body is a public `tick`, loops are a few lines around ticks.
//!
//! - `ingest`: deliveries become plans, and plans become rows.
//! - `config_check`: a pull request that changes the bot's own rules gets them checked.
//! - `context`: what an agent is told besides the request.
//! - `execute`: claimed runs move from state to state; never waits for an agent to end.
//! - `load`: what a running agent uses, and the limits that the engine does not enforce.
//! - `publish`: what came back is imported, checked and pushed.
//! - `deliver`: effects are sent in order, under the rate governor, and reconciled when a reply was unclear.
//! - `sweep`: repairs what a crash left.
//! - `repair`: finds out what the forge could not tell, and ends what nobody goes on with.

pub mod config_check;
mod context;
pub mod deliver;
pub mod execute;
mod extras;
pub mod ingest;
pub mod load;
pub mod operate;
pub mod publish;
pub mod repair;
pub mod report;
mod resume;
mod setup;
pub mod sweep;

use crate::app::App;
use crate::broker::BrokerError;
use crate::git::GitError;
use crate::queue::Topic;
use crate::remote::RemoteError;
use crate::sandbox::SandboxError;
use crate::store::StoreError;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Anything that can go wrong in a tick.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("{operation}: {path}: {source}")]
    Io { operation: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("a defect of this program: {0}")]
    Defect(String),
}

impl From<crate::domain::run::InvalidTransition> for EngineError {
    fn from(error: crate::domain::run::InvalidTransition) -> Self {
        EngineError::Defect(error.to_string())
    }
}

/// No loop sleeps longer than this, whatever its next due time says: a lost wake-up costs this much.
const LONGEST_NAP: Duration = Duration::from_secs(5);

/// After an error (the database is away), before the next try.
const AFTER_ERROR: Duration = Duration::from_secs(2);

/// How often the sweeper looks.
const SWEEP_EVERY: Duration = Duration::from_secs(3);

/// How often repair asks itself what is due.
const REPAIR_EVERY: Duration = Duration::from_secs(10);

/// Boots (reconciles what a crash left) and runs every loop until `stop` is cancelled.
/// Deliveries are accepted meanwhile: the HTTP side does not wait for any of it.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    while let Err(error) = sweep::boot(&app).await {
        tracing::error!(error = %error, "start-up is not possible yet");
        tokio::select! {
            () = tokio::time::sleep(AFTER_ERROR) => {}
            () = stop.cancelled() => return,
        }
    }
    tokio::join!(
        until(&stop, ingest_loop(&app)),
        until(&stop, deliver_loop(&app)),
        execute::work(&app, &stop),
        until(&stop, sweep_loop(&app)),
        until(&stop, repair_loop(&app)),
    );
}

async fn until(stop: &CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn ingest_loop(app: &App) {
    loop {
        match ingest::tick(app).await {
            Ok(0) => nap(app, Topic::Inbox, ingest::next_due(app).await.ok().flatten()).await,
            Ok(_) => {}
            Err(error) => after_error("ingest", &error).await,
        }
    }
}

async fn deliver_loop(app: &App) {
    loop {
        match deliver::tick(app).await {
            Ok(deliver::Ticked { sent: 0, next }) => nap(app, Topic::Effects, next).await,
            Ok(_) => {}
            Err(error) => after_error("deliver", &error).await,
        }
    }
}

async fn sweep_loop(app: &App) {
    loop {
        if let Err(error) = sweep::tick(app).await {
            after_error("sweep", &error).await;
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}

async fn repair_loop(app: &App) {
    let mut look = repair::Look::Boot;
    loop {
        match repair::tick(app, look).await {
            Ok(()) => look = repair::Look::Due,
            Err(error) => after_error("repair", &error).await,
        }
        tokio::time::sleep(REPAIR_EVERY).await;
    }
}

async fn after_error(area: &'static str, error: &EngineError) {
    tracing::error!(area, error = %error, "tick failed");
    tokio::time::sleep(AFTER_ERROR).await;
}

/// Sleeps until a wake-up, the time something is due, or the longest nap.
async fn nap(app: &App, topic: Topic, due: Option<DateTime<Utc>>) {
    let wait = due
        .map(|due| (due - app.clock.now()).to_std().unwrap_or(Duration::ZERO))
        .unwrap_or(LONGEST_NAP)
        .clamp(Duration::from_millis(1), LONGEST_NAP);
    app.wakeup.wait(topic, wait).await;
}
