//! Finds out what the forge could not tell while nobody listened, and ends what nobody goes on with.
//!
//! - Deliveries that did not arrive are asked for again; ingest takes them as any other.
//! - Open tasks are compared with the forge; what differs goes the way that the event would have gone.
//! - Runs that wait for something that does not come end with a reason.
//! - Times that a clock which was set back left far ahead come nearer.

use super::report::{self, Urgency};
use super::{EngineError, execute, ingest};
use crate::app::App;
use crate::domain::effect::{Effect, EffectState};
use crate::domain::event::{Repo, Source, SubjectKind};
use crate::domain::run::{FailureClass, Phase, Run, RunInput, RunState};
use crate::domain::task::Task;
use crate::domain::wording;
use crate::queue::Topic;
use crate::remote::{RemoteError, Retry};
use crate::store::approvals::PullKey;
use crate::store::repair::Missing;
use crate::store::{self, StoreError};
use crate::telemetry;
use chrono::{DateTime, Duration, Utc};
use std::collections::HashMap;

/// How long a forge keeps deliveries (GitHub: 3 days).
const KEPT: Duration = Duration::days(3);
/// A look reaches back so far before the last one: an attempt that failed just then was not to be seen yet.
const OVERLAP: Duration = Duration::minutes(10);
/// A delivery is asked for so often.
const MOST_ASKED: i64 = 5;
/// Between the first two times; each later wait is four times as long, so that the last one is after 7 hours.
const ASK_AGAIN: Duration = Duration::minutes(5);
/// Deliveries that one tick asks for: a forge wants about a second between writes.
const ASKED_AT_ONCE: i64 = 10;
/// An open task with a run is compared with the forge so often.
const COMPARE_EVERY: Duration = Duration::minutes(10);
/// One without.
const COMPARE_IDLE_EVERY: Duration = Duration::hours(6);
/// Tasks that one tick compares, at two or three conditional reads each.
const COMPARED_AT_ONCE: i64 = 20;
/// A repository counts as gone when a second look, so much later, does not find it either.
const GONE_AFTER: Duration = Duration::minutes(5);
/// A clock that goes back by more was set back; less is waited out.
const SET_BACK: Duration = Duration::minutes(5);
/// One process at a time repairs.
const DUTY: std::time::Duration = std::time::Duration::from_secs(60);
/// The name of the look that remembers the clock.
const CLOCK: &str = "clock";
/// What looks at runs that nobody goes on with are called.
const STUCK: &str = "stuck:";
/// Looks at things that are gone are forgotten after this time.
const LOOKS_KEPT: Duration = Duration::days(7);

/// Which looks a tick takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A process has started: whatever came before it may have been missed.
    Boot,
    /// What is due.
    Due,
}

/// One round: what is due is looked at. A forge that does not answer is asked again in the next round.
pub async fn tick(app: &App, look: Look) -> Result<(), EngineError> {
    let now = app.clock.now();
    // Before anything that asks for the time: a duty held until tomorrow is none.
    clock(app, now).await?;
    if look == Look::Due && !store::duties::hold(&app.store, "repair", &app.boot, now, DUTY).await? {
        return Ok(());
    }
    if look == Look::Boot {
        let mut tx = app.store.write_tx().await?;
        store::repair::forget_looks(&mut tx, "task:", now + Duration::days(1)).await?;
        tx.commit().await?;
    }
    stuck(app, now).await?;
    for asked in [deliveries(app, look, now).await, compare_all(app, now).await] {
        match asked {
            Err(EngineError::Remote(error)) => tracing::warn!(error = %error, "the forge did not tell"),
            other => other?,
        }
    }
    Ok(())
}

/// Notices a clock that was set back, and lets everything wait only as long as it would have.
async fn clock(app: &App, now: DateTime<Utc>) -> Result<(), EngineError> {
    let last = store::repair::looked(&app.store, CLOCK).await?;
    let mut tx = app.store.write_tx().await?;
    if let Some(by) = last.map(|last| last - now).filter(|by| *by > SET_BACK) {
        let lease = Duration::from_std(execute::lease(app)).unwrap_or(Duration::minutes(1));
        let rows = store::repair::clock_set_back(&mut tx, now, by, lease).await?;
        tracing::warn!(
            seconds = by.num_seconds(),
            rows,
            "the clock was set back: what waits for a time follows"
        );
    }
    store::repair::set_looked(&mut tx, CLOCK, now).await?;
    tx.commit().await?;
    Ok(())
}

// ---------------------------------------------------------------- deliveries

async fn deliveries(app: &App, look: Look, now: DateTime<Utc>) -> Result<(), EngineError> {
    let every = app.config.repair.minutes;
    // The source of a forge's deliveries has its name; one without a source posts none.
    let Some(source) = Source::parse(app.forge.name()).filter(|_| every > 0) else { return Ok(()) };
    let name = format!("deliveries:{}", app.forge.name());
    let last = store::repair::looked(&app.store, &name).await?.filter(|last| *last <= now);
    if look == Look::Boot || last.is_none_or(|last| now - last >= Duration::minutes(every)) {
        let since = last.map_or(now - KEPT, |last| (last - OVERLAP).max(now - KEPT));
        look_for_missed(app, source, since, now, &name).await?;
    }
    ask(app, source, now).await
}

async fn look_for_missed(
    app: &App,
    source: Source,
    since: DateTime<Utc>,
    now: DateTime<Utc>,
    name: &str,
) -> Result<(), EngineError> {
    let mut found = Vec::new();
    for missed in app.forge.missed_deliveries(since).await? {
        // It may have come although the forge did not see our answer.
        if !store::inbox::knows(&app.store, source, &missed.guid).await? {
            found.push(missed);
        }
    }
    let mut tx = app.store.write_tx().await?;
    for missed in found {
        let missing = Missing {
            guid: missed.guid,
            attempt: missed.attempt,
            event: missed.event,
            failed_at: missed.at,
            asked: 0,
        };
        if store::repair::missed(&mut tx, app.forge.name(), &missing, now).await? {
            tracing::warn!(delivery.id = missing.guid, event = missing.event, "a delivery did not arrive");
            count("found");
        }
    }
    store::repair::set_looked(&mut tx, name, now).await?;
    store::repair::forget_missed(&mut tx, now - KEPT - KEPT).await?;
    store::repair::forget_looks(&mut tx, "", now - LOOKS_KEPT).await?;
    tx.commit().await?;
    Ok(())
}

fn count(result: &'static str) {
    metrics::counter!(telemetry::MISSED_DELIVERIES, "result" => result).increment(1);
}

/// Asks for what has not come yet. Each question is counted before it is put: it may be heard and not answered.
async fn ask(app: &App, source: Source, now: DateTime<Utc>) -> Result<(), EngineError> {
    let remote = app.forge.name();
    let due = store::repair::due_missed(&app.store, remote, MOST_ASKED, now, ASKED_AT_ONCE).await?;
    for missing in due {
        let arrived = store::inbox::knows(&app.store, source, &missing.guid).await?;
        let given_up = missing.asked >= MOST_ASKED;
        let wait = ASK_AGAIN * 4_i32.saturating_pow(u32::try_from(missing.asked).unwrap_or(0));
        let mut tx = app.store.write_tx().await?;
        if arrived {
            store::repair::arrived(&mut tx, remote, &missing.guid).await?;
        } else {
            store::repair::asked(&mut tx, remote, &missing.guid, missing.asked + 1, now + wait).await?;
        }
        tx.commit().await?;
        if arrived {
            tracing::info!(delivery.id = missing.guid, "a missed delivery has arrived");
            count("arrived");
            continue;
        }
        if given_up {
            tracing::error!(
                delivery.id = missing.guid,
                event = missing.event,
                asked = missing.asked,
                "a delivery does not arrive: is the webhook address right, and reachable from the forge?"
            );
            count("given_up");
            continue;
        }
        count("asked");
        if let Err(error) = app.forge.redeliver(missing.attempt).await {
            if matches!(error.retry(), Retry::After(_)) {
                // Nothing was asked.
                let mut tx = app.store.write_tx().await?;
                store::repair::asked(&mut tx, remote, &missing.guid, missing.asked, now).await?;
                tx.commit().await?;
                return Err(error.into());
            }
            tracing::warn!(delivery.id = missing.guid, error = %error, "a delivery cannot be asked for");
        }
    }
    Ok(())
}

// ---------------------------------------------------------------- comparing with the forge

/// A repository as the forge has it now.
#[derive(Debug, Clone)]
enum Found {
    Here(Repo),
    /// Not to be found; whether it is gone, a second look says.
    NotNow,
}

async fn compare_all(app: &App, now: DateTime<Utc>) -> Result<(), EngineError> {
    let due = store::tasks::to_compare(
        &app.store,
        app.forge.name(),
        now - COMPARE_EVERY,
        now - COMPARE_IDLE_EVERY,
        COMPARED_AT_ONCE,
    )
    .await?;
    let mut repos = HashMap::new();
    for task in due {
        match compare(app, &task, &mut repos, now).await {
            Ok(()) => {}
            Err(EngineError::Remote(error)) if matches!(error.retry(), Retry::Never) => {
                // Nothing was learned, and the next period may tell more.
                tracing::info!(task.id = %task.id, error = %error, "a task cannot be compared with the forge");
            }
            Err(error) => return Err(error),
        }
        let mut tx = app.store.write_tx().await?;
        store::repair::set_looked(&mut tx, &format!("task:{}", task.id), now).await?;
        tx.commit().await?;
    }
    Ok(())
}

async fn compare(
    app: &App,
    task: &Task,
    repos: &mut HashMap<i64, Found>,
    now: DateTime<Utc>,
) -> Result<(), EngineError> {
    let found = match repos.get(&task.repo.id) {
        Some(found) => found.clone(),
        None => {
            let found = look_at_repo(app, &task.repo, now).await?;
            repos.insert(task.repo.id, found.clone());
            found
        }
    };
    let Found::Here(repo) = found else { return Ok(()) };
    // A task about an issue ends with the issue, and with the pull request that we opened for it.
    for number in [Some(task.number), task.pull_number].into_iter().flatten() {
        let why = match app.forge.subject(&repo, number).await {
            Ok(subject) if subject.number != number => Some(wording::was_deleted(number)),
            Ok(subject) if subject.open => None,
            Ok(_) => Some(wording::was_closed(number)),
            Err(RemoteError::NotFound { .. }) => Some(wording::was_deleted(number)),
            Err(error) => return Err(error.into()),
        };
        if let Some(why) = why {
            if let Some(stopped) = ingest::end_task(app, task, number, &why, Some(now)).await? {
                tracing::warn!(task.id = %task.id, repo = %repo.name, stopped, "{why}, and nobody told");
            }
            return Ok(());
        }
    }
    if task.kind == SubjectKind::PullRequest {
        let key = PullKey { remote: app.forge.name(), repo_id: repo.id, number: task.number };
        // Only approvals depend on the head before a run starts or pushes, where it is looked at anyway.
        if !store::approvals::of_pull(&app.store, key).await?.is_empty() {
            let pull = app.forge.pull(&repo, task.number).await?;
            let void = ingest::head_seen(app, &repo, task.number, &pull.head_sha).await?;
            if void > 0 {
                tracing::warn!(repo = %repo.name, number = task.number, void, "a push voids approvals, and nobody told");
            }
        }
    }
    Ok(())
}

async fn look_at_repo(app: &App, repo: &Repo, now: DateTime<Utc>) -> Result<Found, EngineError> {
    let name = format!("gone:{}:{}", app.forge.name(), repo.id);
    match app.forge.repo_info(repo).await {
        Ok(info) => {
            if info.repo.name != repo.name {
                let moved = ingest::repo_moved(app, &info.repo, &repo.name, None).await?;
                tracing::warn!(from = %repo.name, to = %info.repo.name, moved, "a repository has another name, and nobody told");
            }
            if store::repair::looked(&app.store, &name).await?.is_some() {
                let mut tx = app.store.write_tx().await?;
                store::repair::forget_looks(&mut tx, &name, now + Duration::days(1)).await?;
                tx.commit().await?;
            }
            Ok(Found::Here(info.repo))
        }
        Err(RemoteError::NotFound { .. }) => {
            match store::repair::looked(&app.store, &name).await? {
                Some(first) if now - first >= GONE_AFTER => {
                    let stopped = ingest::repo_gone(app, repo, None).await?;
                    tracing::warn!(repo = %repo.name, stopped, "a repository is gone, and nobody told");
                }
                Some(_) => {}
                None => {
                    let mut tx = app.store.write_tx().await?;
                    store::repair::set_looked(&mut tx, &name, now).await?;
                    tx.commit().await?;
                }
            }
            Ok(Found::NotNow)
        }
        Err(error) => Err(error.into()),
    }
}

// ---------------------------------------------------------------- stuck runs

/// Runs that somebody should go on with and nobody does, since this was seen for the first time. What was seen counts,
/// not what the row says of its past: a clock that jumps ends nothing.
async fn stuck(app: &App, now: DateTime<Utc>) -> Result<(), EngineError> {
    let longest = Duration::hours(app.config.limits.queue_hours);
    let known: HashMap<String, DateTime<Utc>> =
        store::repair::looks(&app.store, STUCK).await?.into_iter().collect();
    let mut still = HashMap::new();
    for run in store::runs::live(&app.store).await? {
        // With the fence: whoever took it meanwhile gets the whole time.
        let name = format!("{STUCK}{}:{}", run.id, run.fence);
        let since = known.get(&name).copied().filter(|since| *since <= now).unwrap_or(now);
        let late = now - since >= longest;
        let waits = if run.state == RunState::Reporting {
            reporting(app, run, late).await?
        } else if run.lease_until.is_none_or(|until| until < now) {
            if late {
                let reason = wording::abandoned(app.config.limits.queue_hours);
                end(app, run, FailureClass::Internal, None, reason).await?;
            }
            !late
        } else {
            false
        };
        if waits {
            still.insert(name, since);
        }
    }
    if known != still {
        let mut tx = app.store.write_tx().await?;
        store::repair::forget_looks(&mut tx, STUCK, now + Duration::days(366)).await?;
        for (name, since) in &still {
            store::repair::set_looked(&mut tx, name, *since).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// A run whose pull request was asked for. True while there is something to wait for.
async fn reporting(app: &App, run: Run, late: bool) -> Result<bool, EngineError> {
    // See `engine/publish`: the task's own pull request, or the one of this run alone.
    let keys = [format!("pull:{}", run.task), format!("pull:{}", run.id)];
    let mut asked: Option<Effect> = None;
    for key in &keys {
        if let Some(effect) = store::effects::by_key(&app.store, key).await? {
            asked = Some(effect);
        }
    }
    let error = asked.as_ref().and_then(|effect| effect.last_error.as_deref());
    let reason = match asked.as_ref().map(|effect| effect.state) {
        None | Some(EffectState::Failed) => wording::pull_request_lost(error),
        Some(_) if late => wording::no_pull_request(app.config.limits.queue_hours, error),
        Some(_) => return Ok(true),
    };
    end(app, run, FailureClass::Forge, asked.as_ref(), reason).await?;
    Ok(false)
}

/// Ends a run that nobody goes on with; an effect that it waited for is not sent any more, unless it is under way.
async fn end(
    app: &App,
    mut run: Run,
    class: FailureClass,
    waited_for: Option<&Effect>,
    reason: String,
) -> Result<(), EngineError> {
    let state = run.state;
    run.outcome.class = Some(class);
    run.outcome.step =
        Some(if state == RunState::Reporting { Phase::Pull } else { wording::current_phase(&run) });
    run.outcome.reason = app.secrets.mask(&reason);
    run.apply(&RunInput::Failed, app.clock.now())?;
    let attempt = store::attempts::latest(&app.store, &run.id).await?;
    let mut tx = app.store.write_tx().await?;
    // Under the lock of its row: it may have been confirmed since it was read.
    match store::runs::get_tx(&mut tx, &run.id).await? {
        Some(now) if now.state == state && now.fence == run.fence => {}
        _ => return Ok(()),
    }
    match store::runs::save(&mut tx, &run).await {
        Err(StoreError::Fenced { .. }) => return Ok(()),
        other => other?,
    }
    if let Some(effect) = waited_for.filter(|effect| effect.state == EffectState::Planned) {
        store::effects::fail(&mut tx, effect, "its run was ended").await?;
    }
    // The container is removed by the node that has it, which asks for ended attempts.
    if let Some(attempt) = attempt.filter(|attempt| attempt.ended_at.is_none()) {
        store::attempts::end(&mut tx, &attempt.slot, app.clock.now()).await?;
    }
    report::report(app, &mut tx, &run, Urgency::State).await?;
    ingest::audit(app, &mut tx, None, "run.stuck", run.id.as_str(), &reason).await?;
    tx.commit().await?;
    tracing::error!(run.id = %run.id, state = state.as_str(), reason, "a run that nobody goes on with is ended");
    metrics::counter!(telemetry::STUCK_RUNS, "state" => state.as_str()).increment(1);
    app.wakeup.notify(Topic::Runs);
    app.wakeup.notify(Topic::Effects);
    Ok(())
}
