//! Repairs what a crash left, and keeps what is shown true while nothing happens.

use super::EngineError;
use super::report::{self, Urgency};
use crate::app::App;
use crate::domain::ids::RunId;
use crate::domain::run::{FailureClass, Phase, Run, RunInput};
use crate::domain::wording;
use crate::queue::Topic;
use crate::sandbox::SandboxError;
use crate::store;
use crate::store::retention::Part;
use std::collections::HashSet;
use std::path::PathBuf;

/// Queued runs whose place is looked after; those behind it show an older place.
const PLACES: i64 = 200;

/// What start-up does before anything is claimed: leases of dead boots end, unclear effects are marked.
/// Containers of live runs are left alone: their runs are claimed again and adopt them.
pub async fn boot(app: &App) -> Result<(), EngineError> {
    if app.config.sandbox.strict {
        strict(app).await?;
    }
    let now = app.clock.now();
    let mut tx = app.store.write_tx().await?;
    let leases = store::runs::expire_leases(&mut tx, &app.boot, now).await?;
    let effects = store::effects::orphaned_to_ambiguous(&mut tx, &app.boot, now).await?;
    tx.commit().await?;
    store::duties::expire(&app.store, &app.boot).await?;
    if leases > 0 || effects > 0 {
        tracing::info!(leases, effects, "taking over from an earlier process");
    }
    Ok(())
}

/// With `sandbox.strict`, nothing starts while any line of the profile differs, recommended ones included.
async fn strict(app: &App) -> Result<(), EngineError> {
    let failed: Vec<String> = app
        .sandbox
        .self_check()
        .await
        .into_iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{}: {} ({})", check.name, check.found, check.fix))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let detail = format!("sandbox.strict is set, and these differ: {}", failed.join("; "));
    Err(EngineError::Sandbox(SandboxError::Profile { detail }))
}

/// One round of repair.
pub async fn tick(app: &App) -> Result<(), EngineError> {
    store::nodes::seen(&app.store, &app.boot, "all", app.clock.now()).await?;
    queued(app).await?;
    unapproved(app).await?;
    expired(app).await?;
    orphans(app).await?;
    retention(app).await?;
    super::deliver::twins(app).await?;
    Ok(())
}

/// Cancels of runs that nobody works on, and places in the queue.
async fn queued(app: &App) -> Result<(), EngineError> {
    let longest = chrono::Duration::hours(app.config.limits.queue_hours);
    let longest_blocked = chrono::Duration::days(app.config.limits.blocked_days);
    let blockers = store::tasks::blockers(&app.store).await?;
    for mut run in store::runs::queued(&app.store, PLACES).await? {
        if run.cancel_requested.is_some() {
            run.outcome.reason = wording::cancel_reason(&run);
            end_in_queue(app, run, &RunInput::Cancelled).await?;
            continue;
        }
        let waits_for: Vec<_> = blockers.iter().filter(|blocker| blocker.child == run.task).collect();
        let waited = app.clock.now() - run.created_at;
        // What it waits for by order, ours or its own, is not the queue's fault.
        let patient = !waits_for.is_empty() || run.progress.again.is_some();
        if let Some(failed) = waits_for.iter().find(|blocker| blocker.failed) {
            run.outcome.class = Some(FailureClass::Blocked);
            run.outcome.reason = wording::blocker_failed(failed.number);
            end_in_queue(app, run, &RunInput::Failed).await?;
        } else if waited >= if patient { longest_blocked } else { longest } {
            run.outcome.class = Some(FailureClass::Timeout);
            run.outcome.reason = if patient {
                wording::waited_too_long(app.config.limits.blocked_days * 24)
            } else {
                wording::waited_too_long(app.config.limits.queue_hours)
            };
            end_in_queue(app, run, &RunInput::Failed).await?;
        } else {
            let numbers = waits_for.iter().map(|blocker| blocker.number).collect();
            show_place(app, run, numbers).await?;
        }
    }
    Ok(())
}

async fn end_in_queue(app: &App, mut run: Run, how: &RunInput) -> Result<(), EngineError> {
    run.outcome.step = Some(Phase::Queue);
    run.apply(how, app.clock.now())?;
    match super::execute::save(app, &run, Urgency::State).await {
        // It was claimed meanwhile: its worker sees the cancel.
        Err(EngineError::Store(store::StoreError::Fenced { .. })) | Ok(()) => {}
        Err(error) => return Err(error),
    }
    app.wakeup.notify(Topic::Runs);
    Ok(())
}

/// What is older than the configuration says is thrown away, some of it in each round.
async fn retention(app: &App) -> Result<(), EngineError> {
    let (now, kept) = (app.clock.now(), &app.config.retention);
    let before = |days: i64| now - chrono::Duration::days(days);
    let ignored = store::retention::forget_ignored(&app.store, before(kept.ignored_days)).await?;
    let handled = store::retention::forget_handled(&app.store, before(kept.deliveries_days)).await?;
    let logs = store::retention::forget_runs(&app.store, Part::Logs, before(kept.logs_days)).await?;
    let artifacts =
        store::retention::forget_runs(&app.store, Part::Artifacts, before(kept.artifacts_days)).await?;
    if ignored + handled > 0 || logs + artifacts > 0 {
        tracing::info!(ignored, handled, logs, artifacts, "threw away what is old");
    }
    Ok(())
}

/// Changes that waited for their approval long enough are dropped.
async fn unapproved(app: &App) -> Result<(), EngineError> {
    let now = app.clock.now();
    let held = store::runs::held(&app.store, PLACES).await?;
    let late: Vec<_> = held
        .iter()
        .filter(|run| run.outcome.kept.as_ref().and_then(|kept| kept.until).is_some_and(|until| until <= now))
        .collect();
    if late.is_empty() {
        return Ok(());
    }
    let mut tx = app.store.write_tx().await?;
    for run in late {
        store::runs::request_cancel(&mut tx, &run.id, wording::NOT_APPROVED).await?;
    }
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    Ok(())
}

/// Files and sessions that were kept for long enough.
async fn expired(app: &App) -> Result<(), EngineError> {
    let mut tx = app.store.write_tx().await?;
    let dropped = store::artifacts::expire(&mut tx, app.clock.now()).await?;
    tx.commit().await?;
    if dropped > 0 {
        tracing::info!(dropped, "kept files and sessions have expired");
    }
    Ok(())
}

async fn show_place(app: &App, mut run: Run, after: Vec<i64>) -> Result<(), EngineError> {
    let Some(place) = store::runs::place(&app.store, &run.id).await? else { return Ok(()) };
    if run.progress.position == Some(place.position)
        && run.progress.waits_for == place.waits_for
        && run.progress.after == after
    {
        return Ok(());
    }
    run.progress.after = after;
    run.progress.position = Some(place.position);
    run.progress.waits_for = place.waits_for;
    let mut tx = app.store.write_tx().await?;
    match store::runs::save_progress(&mut tx, &run).await {
        Err(store::StoreError::Fenced { .. }) => return Ok(()),
        other => other?,
    }
    report::report(app, &mut tx, &run, Urgency::Progress).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(())
}

/// Socket folders of attempts that have ended. Other things in that folder are not ours and stay.
async fn sockets(app: &App) -> Result<(), EngineError> {
    // Listed before the attempts are read: the row of an attempt stands before its folder is made.
    let Ok(entries) = std::fs::read_dir(&app.socket_root) else { return Ok(()) };
    let is_ours = |name: &str| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let found: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_ours(name))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    let open = store::attempts::open(&app.store).await?;
    let wanted: HashSet<PathBuf> =
        open.iter().map(|attempt| super::execute::sockets(app, &attempt.slot)).collect();
    for path in found.into_iter().map(|name| app.socket_root.join(name)) {
        if !wanted.contains(&path) {
            tracing::info!(path = %path.display(), "removing an orphaned socket folder");
            super::execute::remove_folder(&path);
        }
    }
    Ok(())
}

/// Containers and workspaces whose run has ended.
async fn orphans(app: &App) -> Result<(), EngineError> {
    // Listed before the runs are read: a container that starts in between is not in the list.
    let listed = app.sandbox.list().await;
    let folders = app.git.known_runs();
    let live: Vec<RunId> = store::runs::live(&app.store).await?.into_iter().map(|run| run.id).collect();
    let wanted: HashSet<&RunId> = live.iter().collect();
    match listed {
        Ok(listed) => {
            for container in listed.iter().filter(|container| !wanted.contains(&container.run)) {
                tracing::info!(run.id = %container.run, slot = %container.slot, "removing an orphaned container");
                app.sandbox.remove(&container.slot).await?;
            }
        }
        Err(error) => tracing::warn!(error = %error, "containers cannot be listed"),
    }
    for id in folders.iter().filter(|id| !wanted.contains(id)) {
        // Queued ones and those that wait for somebody are not live either.
        if store::runs::get(&app.store, id).await?.is_none_or(|run| run.state.is_terminal()) {
            tracing::info!(run.id = %id, "removing an orphaned workspace");
            app.git.discard(id).await?;
        }
    }
    sockets(app).await?;
    let mut kept = live;
    kept.extend(store::runs::queued(&app.store, PLACES).await?.into_iter().map(|run| run.id));
    app.git.sweep(&kept).await?;
    super::setup::sweep_caches(app, kept.is_empty())?;
    Ok(())
}
