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
//! - `seeds`: what was pushed is prepared ahead of the runs that will ask for it.
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
pub mod seeds;
mod setup;
pub mod sweep;

use crate::app::App;
use crate::broker::BrokerError;
use crate::git::GitError;
use crate::queue::Topic;
use crate::remote::RemoteError;
use crate::sandbox::SandboxError;
use crate::store::{self, StoreError};
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

/// How often it is looked for what was pushed, and every so many looks the cache is tidied.
const SEEDS_EVERY: Duration = Duration::from_secs(3);
const LOOKS_PER_TIDY: u32 = 20;

/// Between two signs of life of a node.
const SEEN_EVERY: Duration = Duration::from_secs(5);

/// How long warm slots may take to be removed at the end.
const RETIRE_LIMIT: Duration = Duration::from_secs(5);

/// How long the duty of reading the inbox is held: those that stand by take over after it.
const DUTY_TIME: Duration = Duration::from_secs(20);

/// `run_until` that does not drain.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    run_until(app, CancellationToken::new(), stop).await;
}

/// Boots (reconciles what a crash left) and runs the loops of this node's role until `stop` is cancelled; after `drain`
/// nothing more is claimed, and it ends with the last run. Deliveries are accepted meanwhile: the HTTP side does not
/// wait for any of it.
pub async fn run_until(app: Arc<App>, drain: CancellationToken, stop: CancellationToken) {
    while let Err(error) = sweep::boot(&app).await {
        tracing::error!(error = %error, "start-up is not possible yet");
        tokio::select! {
            () = tokio::time::sleep(AFTER_ERROR) => {}
            () = stop.cancelled() => return,
        }
    }
    let role = app.node.role;
    let work = async {
        if role.works() {
            execute::work(&app, &drain, &stop).await;
        } else {
            tokio::select! {
                () = drain.cancelled() => {}
                () = stop.cancelled() => {}
            }
        }
        // The last run has ended: so may the rest.
        if drain.is_cancelled() {
            stop.cancel();
        }
    };
    tokio::join!(
        until(&stop, only(role.delivers(), ingest_loop(&app))),
        until(&stop, only(role.delivers(), deliver_loop(&app))),
        until(&stop, only(role.works() || role.delivers(), sweep_loop(&app))),
        until(&stop, only(role.delivers(), repair_loop(&app))),
        until(&stop, only(role.works(), seeds_loop(&app))),
        until(&stop, seen_loop(&app)),
        until(&drain, until(&stop, only(role.works(), warm_loop(&app)))),
        work,
    );
    if tokio::time::timeout(RETIRE_LIMIT, app.sandbox.retire()).await.is_err() {
        tracing::warn!("warm slots stay for the next start: the container engine does not answer");
    }
    match tokio::time::timeout(AFTER_ERROR, sweep::end(&app)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = %error, "the others were not told of the end"),
        Err(_elapsed) => tracing::warn!("the others were not told of the end: the database does not answer"),
    }
}

/// Does the work, or nothing.
async fn only(wanted: bool, work: impl Future<Output = ()>) {
    if wanted {
        work.await;
    }
}

async fn until(stop: &CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn ingest_loop(app: &App) {
    let mut reads = false;
    loop {
        let mine = store::duties::hold(&app.store, "ingest", &app.boot, app.clock.now(), DUTY_TIME).await;
        match mine {
            Ok(true) if reads => {}
            Ok(true) => match ingest::take_over(app).await {
                Ok(()) => reads = true,
                Err(error) => {
                    after_error("ingest", &error).await;
                    continue;
                }
            },
            // Another node reads the inbox; this one stands by.
            Ok(false) => {
                reads = false;
                nap(app, Topic::Inbox, None).await;
                continue;
            }
            Err(error) => {
                after_error("ingest", &error.into()).await;
                continue;
            }
        }
        match ingest::tick(app).await {
            Ok(0) => nap(app, Topic::Inbox, ingest::next_due(app).await.ok().flatten()).await,
            Ok(_) => {}
            Err(error) => after_error("ingest", &error).await,
        }
    }
}

async fn deliver_loop(app: &Arc<App>) {
    let mut lanes = deliver::Lanes::default();
    loop {
        match lanes.begin(app).await {
            Ok(next) => tokio::select! {
                () = lanes.ended(app) => {}
                () = nap(app, Topic::Effects, next) => lanes.woken(),
            },
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

async fn seeds_loop(app: &App) {
    let mut seen = seeds::Seen::default();
    for look in 0_u32.. {
        tokio::time::sleep(SEEDS_EVERY).await;
        if let Err(error) = seeds::tick(app, &mut seen).await {
            after_error("seeds", &error).await;
        }
        if look % LOOKS_PER_TIDY == 0
            && let Err(error) = app.git.tidy().await
        {
            after_error("tidy", &error.into()).await;
        }
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

async fn seen_loop(app: &App) {
    loop {
        tokio::time::sleep(SEEN_EVERY).await;
        if let Err(error) = sweep::seen(app).await {
            after_error("seen", &error).await;
        }
    }
}

/// Keeps slots warm for the runs to come.
async fn warm_loop(app: &App) {
    let usual = execute::slot_class(app, &app.config.sandbox.image);
    loop {
        app.sandbox.tend(&usual).await;
        app.sandbox.untended().await;
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
