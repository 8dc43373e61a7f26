//! What an operator does to runs and deliveries: the verbs of the CLI and of the API.

use super::{EngineError, ingest};
use crate::app::App;
use crate::clock::IdKind;
use crate::domain::ids::RunId;
use crate::domain::run::RunState;
use crate::queue::Topic;
use crate::store::{self, StoreError};

/// An operator's request that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    #[error("there is no {what} `{id}`")]
    NotFound { what: &'static str, id: String },
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

fn no_run(run: &RunId) -> OperateError {
    OperateError::NotFound { what: "run", id: run.to_string() }
}

/// Asks a run to stop; a queued one ends at once, a live one within seconds.
pub async fn cancel(app: &App, run: &RunId, by: &str) -> Result<(), OperateError> {
    let known = store::runs::get(&app.store, run).await?.ok_or_else(|| no_run(run))?;
    let mut tx = app.store.write_tx().await?;
    if known.state == RunState::Reporting || !store::runs::request_cancel(&mut tx, run, by).await? {
        return Err(OperateError::Refused(format!(
            "run {run} cannot be cancelled: it is {}",
            known.state.as_str()
        )));
    }
    ingest::audit_by(app, &mut tx, by, "cancel", run.as_str(), "").await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    Ok(())
}

/// The command line of a shell in a running agent's container, as its user and with its limits. Who asked is
/// written down before anybody gets it.
pub async fn shell(app: &App, run: &RunId, by: &str) -> Result<Vec<String>, OperateError> {
    let known = store::runs::get(&app.store, run).await?.ok_or_else(|| no_run(run))?;
    let refused = |why: &str| OperateError::Refused(format!("run {run} has no shell: {why}"));
    if known.state != RunState::Running {
        return Err(refused(&format!("its agent does not run (it is {})", known.state.as_str())));
    }
    let attempt = store::attempts::latest(&app.store, run).await?;
    let Some(attempt) = attempt.filter(|attempt| attempt.ended_at.is_none()) else {
        return Err(refused("its container is gone"));
    };
    let words = app.sandbox.shell(&attempt.slot).await.map_err(EngineError::Sandbox)?;
    let words =
        words.ok_or_else(|| refused("its container does not run, or is not one of a container engine"))?;
    let mut tx = app.store.write_tx().await?;
    ingest::audit_by(app, &mut tx, by, "shell", run.as_str(), attempt.slot.as_str()).await?;
    tx.commit().await?;
    Ok(words)
}

/// Queues a new run of the same task with the same request; gives the new run's id.
pub async fn retry(app: &App, run: &RunId, by: &str) -> Result<RunId, OperateError> {
    let known = store::runs::get(&app.store, run).await?.ok_or_else(|| no_run(run))?;
    if !known.state.is_terminal() {
        return Err(OperateError::Refused(format!(
            "run {run} has not ended (it is {}): cancel it first",
            known.state.as_str()
        )));
    }
    let mut tx = app.store.write_tx().await?;
    let key = format!("operator:{}", app.ids.next(IdKind::Request));
    let requester = known.spec.requester.clone();
    let new = ingest::again(app, &mut tx, &known, key, requester)
        .await?
        .ok_or_else(|| OperateError::Refused("this retry was asked for before".into()))?;
    ingest::audit_by(app, &mut tx, by, "retry", run.as_str(), new.as_str()).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    app.wakeup.notify(Topic::Effects);
    Ok(new)
}

/// Takes up again what was given up: an ended delivery (our id or the sender's) is pending again, the request of an ended
/// run is queued again. Gives the id of the delivery or of the new run.
pub async fn replay(app: &App, id: &str, by: &str) -> Result<String, OperateError> {
    let Some(delivery) = store::inbox::get(&app.store, id).await? else {
        return match store::runs::find(&app.store, id).await? {
            Some(run) => Ok(retry(app, &run.id, by).await?.to_string()),
            None => Err(OperateError::NotFound { what: "delivery or run", id: id.to_owned() }),
        };
    };
    let mut tx = app.store.write_tx().await?;
    store::inbox::replay(&mut tx, &delivery.id, app.clock.now()).await?;
    ingest::audit_by(app, &mut tx, by, "replay", delivery.id.as_str(), "").await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Inbox);
    Ok(delivery.id.to_string())
}

/// Lets the nodes of a name or id claim nothing (their live runs go on), or claim again; gives how many there are.
pub async fn drain(app: &App, node: &str, drain: bool, by: &str) -> Result<u64, OperateError> {
    let mut tx = app.store.write_tx().await?;
    let nodes = store::nodes::set_draining(&mut tx, node, drain).await?;
    if nodes == 0 {
        let id: String = node.chars().take(100).collect();
        return Err(OperateError::NotFound { what: "node", id });
    }
    let action = if drain { "drain" } else { "undrain" };
    ingest::audit_by(app, &mut tx, by, action, node, "").await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    Ok(nodes)
}

/// The pause-all switch: while set, nothing new is claimed; deliveries are still taken. `None` resumes.
pub async fn pause(app: &App, why: Option<&str>, by: &str) -> Result<(), OperateError> {
    let mut tx = app.store.write_tx().await?;
    store::settings::set(&mut tx, store::settings::PAUSED, why, app.clock.now()).await?;
    let action = if why.is_some() { "pause" } else { "resume" };
    ingest::audit_by(app, &mut tx, by, action, "server", why.unwrap_or("")).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    Ok(())
}
