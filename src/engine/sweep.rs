//! Repairs what a crash left, and keeps what is shown true while nothing happens.

use super::EngineError;
use super::report::{self, Urgency};
use crate::app::App;
use crate::domain::ids::{RunId, SlotId};
use crate::domain::node::node_of;
use crate::domain::run::{FailureClass, Phase, Run, RunInput};
use crate::domain::wording;
use crate::queue::Topic;
use crate::sandbox::{Listed, SandboxError};
use crate::store;
use crate::store::retention::Part;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

/// Queued runs whose place is looked after; those behind it show an older place.
const PLACES: i64 = 200;

/// A node that was not seen for so long is taken for lost, and after the other time forgotten.
pub const LOST_AFTER: chrono::Duration = chrono::Duration::minutes(2);
const FORGOTTEN_AFTER: chrono::Duration = chrono::Duration::days(1);
/// How long the duty of sweeping for all nodes is held.
const DUTY_TIME: Duration = Duration::from_secs(20);

/// What start-up does before anything is claimed: what earlier boots of this node held is taken over, unclear effects
/// are marked. Containers of live runs are left alone: their runs are claimed again and adopt them.
pub async fn boot(app: &App) -> Result<(), EngineError> {
    if app.config.sandbox.strict && app.node.role.works() {
        strict(app).await?;
    }
    let now = app.clock.now();
    seen(app).await?;
    let duties = store::duties::expire(&app.store, &app.boot).await?;
    let mut tx = app.store.write_tx().await?;
    let leases = match app.node.role.works() {
        true => store::runs::inherit_leases(&mut tx, &app.boot).await?,
        false => 0,
    };
    let effects = match app.node.role.delivers() {
        true => store::effects::orphaned_to_ambiguous(&mut tx, &app.boot, now).await?,
        false => 0,
    };
    tx.commit().await?;
    if leases > 0 || effects > 0 || duties > 0 {
        tracing::info!(leases, effects, duties, "taking over from an earlier process");
    }
    Ok(())
}

/// Tells the others that this node lives.
pub async fn seen(app: &App) -> Result<(), EngineError> {
    let slots = if app.node.role.works() { super::execute::slots(app) } else { 0 };
    Ok(store::nodes::seen(&app.store, &app.node, &app.boot, slots, app.clock.now()).await?)
}

/// An orderly end: what this process held is free at once. Its leases stay for its next boot, which adopts its containers.
pub async fn end(app: &App) -> Result<(), EngineError> {
    store::duties::release_all(&app.store, &app.boot).await?;
    store::runs::left_alive(&app.store, &app.boot).await?;
    store::nodes::stopped(&app.store, &app.node.id, &app.boot).await?;
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

/// One round of repair: of this machine, and for all nodes when it is this one's turn.
pub async fn tick(app: &App) -> Result<(), EngineError> {
    seen(app).await?;
    if app.node.role.delivers() {
        left_by_earlier_boots(app).await?;
    }
    if app.node.role.delivers()
        && store::duties::hold(&app.store, "sweep", &app.boot, app.clock.now(), DUTY_TIME).await?
    {
        queued(app).await?;
        unapproved(app).await?;
        expired(app).await?;
        retention(app).await?;
        super::deliver::twins(app).await?;
        store::nodes::forget_unseen(&app.store, app.clock.now() - FORGOTTEN_AFTER).await?;
    }
    if app.node.role.works() {
        machine(app).await?;
    }
    Ok(())
}

/// Intents whose process is gone. `boot` looks, too, but what that process had handed to Postgres may be committed after it.
async fn left_by_earlier_boots(app: &App) -> Result<(), EngineError> {
    let mut tx = app.store.lazy_tx().await?;
    let effects = store::effects::orphaned_to_ambiguous(&mut tx, &app.boot, app.clock.now()).await?;
    tx.commit().await?;
    if effects > 0 {
        tracing::info!(effects, "taking over from an earlier process");
        app.wakeup.notify(Topic::Effects);
    }
    Ok(())
}

/// Cancels of runs that nobody works on, and places in the queue.
async fn queued(app: &App) -> Result<(), EngineError> {
    let longest = chrono::Duration::hours(app.config.limits.queue_hours);
    let longest_blocked = chrono::Duration::days(app.config.limits.blocked_days);
    let blockers = store::tasks::blockers(&app.store).await?;
    let lost = app.clock.now() - LOST_AFTER;
    let without_node = store::nodes::without_node(&app.store, lost, PLACES).await?;
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
            let no_node = without_node.iter().any(|(id, _)| *id == run.id);
            show_place(app, run, numbers, no_node).await?;
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

async fn show_place(app: &App, mut run: Run, after: Vec<i64>, no_node: bool) -> Result<(), EngineError> {
    let Some(place) = store::runs::place(&app.store, &run.id).await? else { return Ok(()) };
    // What waits by order asks for no node yet.
    let no_node = no_node && after.is_empty();
    let progress = &run.progress;
    if progress.position == Some(place.position)
        && progress.waits_for == place.waits_for
        && progress.after == after
        && progress.no_node == no_node
    {
        return Ok(());
    }
    run.progress.after = after;
    run.progress.no_node = no_node;
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
    let mut slots = app.sandbox.waiting();
    slots.extend(store::attempts::open(&app.store).await?.into_iter().map(|attempt| attempt.slot));
    let wanted: HashSet<PathBuf> = slots.iter().map(|slot| super::execute::sockets(app, slot)).collect();
    for path in found.into_iter().map(|name| app.socket_root.join(name)) {
        if !wanted.contains(&path) {
            tracing::info!(path = %path.display(), "removing an orphaned socket folder");
            super::execute::remove_folder(&path);
        }
    }
    Ok(())
}

/// Containers of this machine (of one run, when it is named) that no run goes on with: they are removed at once, so that
/// a worker that was away too long has no agent left that somebody else's replaced.
pub(super) async fn containers(app: &App, only: Option<&RunId>) -> Result<(), EngineError> {
    // Listed before the runs are read: a container that starts in between is not in the list.
    let listed = match app.sandbox.list().await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(error = %error, "containers cannot be listed");
            return Ok(());
        }
    };
    // Before the attempts are read: a slot stops waiting only after its attempt is stored.
    let waiting: HashSet<SlotId> = app.sandbox.waiting().into_iter().collect();
    let open = store::attempts::open(&app.store).await?;
    for Listed { slot, run, .. } in listed.iter().filter(|container| !waiting.contains(&container.slot)) {
        let entered = || open.iter().find(|attempt| attempt.slot == *slot).map(|attempt| &attempt.run);
        let run = run.as_ref().or_else(entered);
        if only.is_some() && only != run {
            continue;
        }
        let wanted = match run {
            Some(run) => is_wanted(app, run, slot).await?,
            None => false,
        };
        if !wanted {
            let run = run.map_or("", RunId::as_str);
            tracing::info!(run.id = run, %slot, "removing an orphaned container");
            app.sandbox.remove(slot).await?;
        }
    }
    Ok(())
}

/// Whether a container is that of the newest attempt of a live run, or its collector, and no other node has the run.
async fn is_wanted(app: &App, run: &RunId, slot: &SlotId) -> Result<bool, EngineError> {
    let Some(run) = store::runs::get(&app.store, run).await? else { return Ok(false) };
    let owner = run.lease_owner.as_deref().map_or("", node_of);
    if !run.state.needs_worker() || !(owner.is_empty() || owner == app.node.id) {
        return Ok(false);
    }
    let slot = slot.as_str();
    let slot = slot.strip_suffix(super::execute::COLLECTOR).unwrap_or(slot);
    let attempt = store::attempts::latest(&app.store, &run.id).await?;
    Ok(attempt.is_some_and(|attempt| attempt.slot.as_str() == slot && attempt.ended_at.is_none()))
}

/// What is left on this machine of runs that have ended: containers, workspaces, sockets.
async fn machine(app: &App) -> Result<(), EngineError> {
    containers(app, None).await?;
    let folders = app.git.known_runs();
    let live: Vec<RunId> = store::runs::live(&app.store).await?.into_iter().map(|run| run.id).collect();
    let wanted: HashSet<&RunId> = live.iter().collect();
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
