//! Claims due runs and moves each from state to state. No step waits for an agent to end: it starts,
//! polls or adopts, so that a restart and a test both just step again.

use super::report::{self, Urgency};
use super::resume::{self, Start};
use super::{EngineError, context, extras, ingest, load, publish, setup};
use crate::agent::adapter::{self, BRIDGE_PORT, EGRESS_PORT, LaunchContext, MASKED_PATHS};
use crate::agent::prompt;
use crate::agent::{AdapterKind, AgentEvent, AgentSpec};
use crate::app::App;
use crate::broker::trouble::Trouble;
use crate::broker::{Allowance, BrokerError, Listener, tools};
use crate::clock::IdKind;
use crate::domain::budget::{self, BudgetKind};
use crate::domain::event::Repo;
use crate::domain::ids::{BranchName, RunId, Sha, SlotId};
use crate::domain::run::{
    Again, AgentEnd, Attempt, FailureClass, LogKind, LogLine, MAX_DEATHS, Phase, Run, RunInput, RunState,
    SetupState,
};
use crate::domain::{sanitize, wording};
use crate::git::{Access, GitError, Workspace, WorkspaceSpec};
use crate::queue::{LogLines, Topic};
use crate::remote::{GitPermission, RemoteError, Retry};
use crate::sandbox::{CollectJob, Duty, Job, Limits, LineSource, Polled, SandboxSpec, SlotClass, Status};
use crate::store::approvals::PullKey;
use crate::store::runs::Caps;
use crate::store::{self, StoreError};
use chrono::{DateTime, Utc};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Requests that a budget did not reach for, until the agent is stopped.
const BUDGET_REFUSALS: u32 = 3;
/// How long a claim is good without a heartbeat, by default.
pub const LEASE: Duration = Duration::from_secs(60);

/// Between two heartbeats of a live run; also how fast a cancel is seen.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Heartbeats within one step that fit into a lease: some may fail.
const BEATS_PER_LEASE: u32 = 4;

/// A run that lost its worker this often before its agent ended is given up.
const MAX_ATTEMPTS: i64 = 3;

/// One poll of a container waits at most this long for news.
const POLL: Duration = Duration::from_millis(500);

/// Preparing that is done within this time goes without a report of its own.
const QUICK: Duration = Duration::from_millis(200);

/// An agent that asked has this time to write its conversation down, with the question: programs do that a moment later.
const AFTER_QUESTION: Duration = Duration::from_secs(1);

/// A collector has to commit and bundle; it may not take longer.
const COLLECT_SECONDS: i64 = 120;

/// What the name of a collector's slot has more than that of its attempt.
pub(super) const COLLECTOR: &str = "-c";

/// A step that the forge did not answer is tried this often in all.
const MAX_TROUBLES: u32 = 5;

/// A forge that wants to be left alone for longer than this fails the run: it can be retried then.
const LONGEST_TROUBLE: Duration = Duration::from_secs(120);

/// Work that is ready to be pushed waits for so long for a limit of the forge to end.
const LONGEST_LIMIT: Duration = Duration::from_secs(2 * 3600);

/// Result text that is kept of an agent, bytes.
const MAX_RESULT_BYTES: usize = 16 * 1024;

/// What a recipe prints after this line is its summary, in Markdown; without it, the end of its output is shown.
const SUMMARY_LINE: &str = "--- summary ---";

/// What this process holds for its live runs: sockets and clocks. Lost in a crash, made again on adoption.
#[derive(Debug, Default)]
pub struct Live {
    runs: Mutex<HashMap<RunId, Holding>>,
}

#[derive(Debug)]
struct Holding {
    #[expect(dead_code, reason = "held for their drop: the sockets close with them")]
    listeners: Vec<Listener>,
    reported_at: DateTime<Utc>,
}

impl Live {
    fn hold(&self, run: &RunId, listeners: Vec<Listener>, now: DateTime<Utc>) {
        let holding = Holding { listeners, reported_at: now };
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone(), holding);
    }

    /// Whether this process works on the run's agent.
    pub fn is_held(&self, run: &RunId) -> bool {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).contains_key(run)
    }

    fn release(&self, run: &RunId) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(run);
    }

    /// Whether a progress report is due; if so, the clock starts again.
    fn report_is_due(&self, run: &RunId, now: DateTime<Utc>, every: chrono::Duration) -> bool {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        match runs.get_mut(run) {
            // A clock that was set back must not silence it.
            Some(holding) if (now - holding.reported_at).abs() >= every => {
                holding.reported_at = now;
                true
            }
            _ => false,
        }
    }
}

/// How long a claim is good without a heartbeat.
pub fn lease(app: &App) -> Duration {
    Duration::from_secs(u64::try_from(app.config.limits.lease_seconds).unwrap_or(LEASE.as_secs()))
}

/// Whether a run wants another step, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Again,
    /// Nothing new: the agent runs.
    Idle,
    /// Something outside is in the way; the same step again after this time.
    Wait(Duration),
    /// No worker is needed any more.
    Done,
}

/// Claims runs while there is room, and gives each to its own task until `stop`.
/// On `drain` nothing more is claimed, and it ends when the last run has; on `stop` tasks end between two steps, and
/// containers go on for adoption.
pub async fn work(app: &Arc<App>, drain: &CancellationToken, stop: &CancellationToken) {
    let mut workers = JoinSet::new();
    let slots = usize::try_from(slots(app)).unwrap_or(1);
    loop {
        if stop.is_cancelled() || drain.is_cancelled() {
            break;
        }
        if workers.len() >= slots {
            tokio::select! {
                Some(_) = workers.join_next() => {}
                () = drain.cancelled() => break,
                () = stop.cancelled() => break,
            }
            continue;
        }
        match claim(app).await {
            Ok(Some(run)) => {
                let (app, stop) = (Arc::clone(app), stop.clone());
                workers.spawn(async move { drive(&app, run, &stop).await });
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(error = %error, "claiming failed");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
        let due = store::runs::next_due(&app.store).await.ok().flatten();
        tokio::select! {
            () = super::nap(app, Topic::Runs, due.filter(|due| *due > app.clock.now())) => {}
            Some(ended) = workers.join_next(), if !workers.is_empty() => note_panic(ended),
            () = drain.cancelled() => break,
            () = stop.cancelled() => break,
        }
    }
    while let Some(ended) = workers.join_next().await {
        note_panic(ended);
    }
}

/// A defect in the steps of one run takes nothing else with it: its lease ends, and it counts as a death.
fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(error = %error, "the steps of a run broke off");
    }
}

/// Runs at one time on this node.
pub(super) fn slots(app: &App) -> i64 {
    app.config.node.slots.unwrap_or(app.config.limits.runs)
}

/// Claims the next due run, unless the operator paused everything or drains this node.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn claim(app: &App) -> Result<Option<Run>, EngineError> {
    let limits = &app.config.limits;
    // Runs that are live already must go on while paused: only their lease is taken over.
    let paused = store::settings::get(&app.store, store::settings::PAUSED).await?.is_some()
        || store::nodes::is_draining(&app.store, &app.node.id).await?;
    let caps = if paused {
        Caps { global: 0, per_owner: 0, per_repo: 0, per_user: 0 }
    } else {
        Caps {
            global: limits.runs,
            per_owner: limits.runs_per_owner,
            per_repo: limits.runs_per_repo,
            per_user: limits.runs_per_user,
        }
    };
    Ok(store::runs::claim(&app.store, &app.boot, app.clock.now(), lease(app), caps).await?)
}

/// Steps one claimed run until it needs no worker, its lease is lost, or `stop`.
pub async fn drive(app: &App, mut run: Run, stop: &CancellationToken) {
    let mut beat = app.clock.now();
    let mut troubles = 0;
    let mut wait_until = None;
    while !stop.is_cancelled() {
        let now = app.clock.now();
        // A clock that was set back must not keep the lease from being extended.
        if now < beat || (now - beat).to_std().unwrap_or_default() >= HEARTBEAT {
            beat = now;
            match store::runs::heartbeat(&app.store, &run.id, run.fence, now + lease(app)).await {
                Ok(cancel) => run.cancel_requested = cancel,
                Err(StoreError::Fenced { .. }) => {
                    lost(app, &run.id).await;
                    break;
                }
                Err(error) => tracing::error!(run.id = %run.id, error = %error, "heartbeat failed"),
            }
        }
        // A wait may be longer than a lease, and ends early for a cancel.
        if let Some(until) = wait_until
            && std::time::Instant::now() < until
            && run.cancel_requested.is_none()
        {
            tokio::time::sleep(HEARTBEAT.min(until - std::time::Instant::now())).await;
            continue;
        }
        wait_until = None;
        let kept = keep_lease(app, run.id.clone(), run.fence);
        let stepped = tokio::select! {
            stepped = advance(app, &mut run, POLL, &mut troubles) => stepped,
            () = kept => {
                lost(app, &run.id).await;
                break;
            }
        };
        match stepped {
            Ok(Step::Again | Step::Idle) => {}
            Ok(Step::Wait(pause)) => wait_until = Some(std::time::Instant::now() + pause),
            Ok(Step::Done) => break,
            Err(EngineError::Store(StoreError::Fenced { .. })) => {
                lost(app, &run.id).await;
                break;
            }
            Err(error) => {
                tracing::error!(run.id = %run.id, error = %error, "the run is let go");
                break;
            }
        }
    }
    app.live.release(&run.id);
    app.wakeup.notify(Topic::Runs);
}

/// Somebody else has the run now: its broker answers no more at once, and its container goes unless it was adopted.
async fn lost(app: &App, run: &RunId) {
    tracing::warn!(run.id = %run, "somebody else has this run now");
    app.live.release(run);
    if let Err(error) = super::sweep::containers(app, Some(run)).await {
        tracing::warn!(run.id = %run, error = %error, "its container stays for the sweeper");
    }
}

/// Extends the lease while one step takes long (a first clone, an import). Ends when the lease is lost.
async fn keep_lease(app: &App, run: RunId, fence: i64) {
    loop {
        tokio::time::sleep(lease(app) / BEATS_PER_LEASE).await;
        match store::runs::heartbeat(&app.store, &run, fence, app.clock.now() + lease(app)).await {
            // A cancel is seen after the step.
            Ok(_) => {}
            Err(StoreError::Fenced { .. }) => return,
            Err(error) => tracing::error!(run.id = %run, error = %error, "heartbeat failed"),
        }
    }
}

/// One step, and what an error means: a passing trouble of the forge or the database waits, everything
/// else ends the run with a reason. An error here means that the run is not ours any more.
pub async fn advance(
    app: &App,
    run: &mut Run,
    patience: Duration,
    troubles: &mut u32,
) -> Result<Step, EngineError> {
    if run.deaths >= MAX_DEATHS {
        return dead_letter(app, run).await;
    }
    let error = match step(app, run, patience).await {
        Ok(step) => {
            *troubles = 0;
            if run.deaths > 0 {
                survived(app, run).await?;
            }
            return Ok(step);
        }
        Err(EngineError::Store(StoreError::Fenced { run })) => {
            return Err(EngineError::Store(StoreError::Fenced { run }));
        }
        Err(error) => error,
    };
    *troubles += 1;
    let pause = match &error {
        EngineError::Store(_) => Some(Duration::from_secs(1)),
        // A clone can be made again; a push is tried again where it is made, with a look at the branch.
        EngineError::Git(GitError::Unavailable { .. })
            if run.state == RunState::Preparing && *troubles <= MAX_TROUBLES =>
        {
            Some(Duration::from_secs(5))
        }
        // Once: the token may have been too old. Wrong credentials stay wrong.
        EngineError::Remote(RemoteError::Auth { .. }) if *troubles > 1 => None,
        EngineError::Remote(remote) => match remote.retry() {
            Retry::After(pause) if pause <= LONGEST_TROUBLE && *troubles <= MAX_TROUBLES => Some(pause),
            // Nothing is lost by waiting: the work is stored, and a limit is over at its reset.
            Retry::After(pause)
                if run.state == RunState::Publishing
                    && pause <= LONGEST_LIMIT
                    && matches!(remote, RemoteError::RateLimited { .. }) =>
            {
                Some(pause)
            }
            // A forge that is down for long is as good as one that wants to be left alone.
            Retry::After(pause) if run.state == RunState::Preparing => {
                let (_, reason) = classify(&error);
                if put_back(app, run, FailureClass::Quota, reason, Some(pause)).await? {
                    return Ok(Step::Done);
                }
                None
            }
            _ => None,
        },
        _ => None,
    };
    match pause {
        Some(pause) => {
            tracing::warn!(run.id = %run.id, error = %error, "the step is tried again");
            // Its first steps go without a report; now there is time to look.
            if run.state == RunState::Preparing
                && !matches!(error, EngineError::Store(_))
                && let Err(error) = save(app, run, Urgency::State).await
            {
                if matches!(error, EngineError::Store(StoreError::Fenced { .. })) {
                    return Err(error);
                }
                tracing::warn!(run.id = %run.id, error = %error, "the run cannot be shown as it is");
            }
            Ok(Step::Wait(pause))
        }
        None => {
            fail_on(app, run, &error).await?;
            Ok(Step::Done)
        }
    }
}

/// Back into the queue until something has passed, when it is of that kind and was not tried too often; else false, and
/// nothing has changed. The container goes; workspace and session stay for the next attempt on this machine.
async fn put_back(
    app: &App,
    run: &mut Run,
    class: FailureClass,
    reason: String,
    reset: Option<Duration>,
) -> Result<bool, EngineError> {
    let times = run.progress.again.as_ref().map_or(0, |again| again.times);
    let reset = reset.and_then(|reset| chrono::Duration::from_std(reset).ok());
    let Some(pause) = class.pause_before_retry(times, reset) else { return Ok(false) };
    let now = app.clock.now();
    app.loads.forget(&run.id);
    app.live.release(&run.id);
    let attempt = store::attempts::latest(&app.store, &run.id).await?;
    let attempt = attempt.filter(|attempt| attempt.ended_at.is_none());
    if attempt.is_some() {
        count_money(app, run).await?;
    }
    metrics::counter!(crate::telemetry::RUN_RETRIES, "class" => class.name()).increment(1);
    tracing::warn!(run.id = %run.id, class = class.name(), reason, minutes = pause.num_minutes(), "tried again later");
    run.not_before = Some(now + pause);
    let progress = &mut run.progress;
    progress.again = Some(Again { class, reason: app.secrets.mask(&reason), times: times + 1 });
    progress.error = None;
    progress.exit_code = None;
    progress.result.clear();
    progress.prose = false;
    progress.collected = false;
    progress.session_lost = false;
    progress.phase = None;
    if progress.setup == SetupState::Running {
        progress.setup = SetupState::Pending;
    }
    run.apply(&RunInput::Later, now)?;
    let mut tx = app.store.write_tx().await?;
    if let Some(attempt) = &attempt {
        store::attempts::end(&mut tx, &attempt.slot, now).await?;
    }
    store::runs::save(&mut tx, run).await?;
    report::report(app, &mut tx, run, Urgency::State).await?;
    tx.commit().await?;
    // Only now: a crash before it would find a run whose container has vanished, one after it leaves a container that
    // the sweeper takes away.
    if let Some(attempt) = &attempt {
        match app.sandbox.remove(&attempt.slot).await {
            Ok(()) => remove_sockets(app, &attempt.slot),
            Err(error) => tracing::warn!(run.id = %run.id, error = %error, "container stays for the sweeper"),
        }
    }
    app.wakeup.notify(Topic::Effects);
    app.wakeup.notify(Topic::Runs);
    Ok(true)
}

/// A step came to its end: whoever died before did not die of this run.
async fn survived(app: &App, run: &mut Run) -> Result<(), EngineError> {
    run.deaths = 0;
    Ok(store::runs::survived(&app.store, &run.id, run.fence).await?)
}

/// Workers died on this run again and again: it ends here, so that it kills no more of them. What a running agent left
/// is still collected, unless that kills, too.
async fn dead_letter(app: &App, run: &mut Run) -> Result<Step, EngineError> {
    metrics::counter!(crate::telemetry::DEAD_LETTERS, "what" => "run").increment(1);
    tracing::error!(run.id = %run.id, state = run.state.as_str(), deaths = run.deaths, "a dead letter: workers die on this run");
    let reason = wording::dead_letter(run);
    let mut tx = app.store.write_tx().await?;
    ingest::audit(app, &mut tx, None, "dead_letter", run.id.as_str(), &reason).await?;
    tx.commit().await?;
    if run.state == RunState::Running && run.deaths == MAX_DEATHS && !is_out_of_reach(app, run).await? {
        let end = AgentEnd::Failed { class: FailureClass::Poison, detail: reason };
        let step = agent_gone(app, run, end).await?;
        survived(app, run).await?;
        return Ok(step);
    }
    fail(app, run, FailureClass::Poison, reason).await?;
    Ok(Step::Done)
}

/// One step of a claimed run. Waits for news of a running agent for at most `patience`.
#[tracing::instrument(skip_all, fields(run.id = %run.id, state = run.state.as_str()))]
pub async fn step(app: &App, run: &mut Run, patience: Duration) -> Result<Step, EngineError> {
    // It may have been renamed, or transferred to where only another installation may write.
    if let Some(repo) = store::runs::repo_of(&app.store, &run.id).await? {
        run.repo = repo;
    }
    if is_out_of_reach(app, run).await? {
        return begin_elsewhere(app, run).await;
    }
    match run.state {
        RunState::Preparing => prepare(app, run).await,
        RunState::Running => watch(app, run, patience).await,
        RunState::Collecting => collect(app, run).await,
        RunState::Publishing => publish::publish(app, run).await,
        RunState::Queued
        | RunState::Reporting
        | RunState::Held
        | RunState::Succeeded
        | RunState::Nothing
        | RunState::NeedsInput
        | RunState::Failed
        | RunState::Cancelled => Ok(Step::Done),
    }
}

/// Whether what the run goes on from is on another node: its container, its workspace.
async fn is_out_of_reach(app: &App, run: &Run) -> Result<bool, EngineError> {
    if !matches!(run.state, RunState::Running | RunState::Collecting | RunState::Publishing)
        || run.outcome.kept.is_some()
        || app.live.is_held(&run.id)
    {
        return Ok(false);
    }
    let attempt = store::attempts::latest(&app.store, &run.id).await?;
    if attempt.is_none_or(|attempt| attempt.node.is_empty() || attempt.node == app.node.id) {
        return Ok(false);
    }
    // What was imported and kept can be published from anywhere.
    Ok(run.state != RunState::Publishing || !publish::is_stored(app, run).await?)
}

/// Starts a run anew that another node had: there is nothing of it here.
async fn begin_elsewhere(app: &App, run: &mut Run) -> Result<Step, EngineError> {
    tracing::warn!(run.id = %run.id, state = run.state.as_str(), "its node is gone: the run begins anew here");
    run.apply(&RunInput::Moved, app.clock.now())?;
    let mut tx = app.store.lazy_tx().await?;
    if let Some(attempt) = store::attempts::latest_tx(&mut tx, &run.id).await? {
        store::attempts::end(&mut tx, &attempt.slot, app.clock.now()).await?;
    }
    store::runs::save(&mut tx, run).await?;
    report::report(app, &mut tx, run, Urgency::State).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(Step::Again)
}

/// Stores the run as it is, with its report, in one transaction.
#[tracing::instrument(level = "debug", skip_all)]
pub(super) async fn save(app: &App, run: &Run, urgency: Urgency) -> Result<(), EngineError> {
    let mut tx = app.store.lazy_tx().await?;
    store::runs::save(&mut tx, run).await?;
    report::report(app, &mut tx, run, urgency).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    app.wakeup.notify(Topic::Logs);
    Ok(())
}

/// Ends a run badly for a reason of this host; the class tells people whose turn it is.
async fn fail_on(app: &App, run: &mut Run, error: &EngineError) -> Result<(), EngineError> {
    tracing::error!(run.id = %run.id, error = %error, "the run failed");
    let (class, reason) = classify(error);
    fail(app, run, class, reason).await
}

pub(super) async fn fail(
    app: &App,
    run: &mut Run,
    class: FailureClass,
    reason: String,
) -> Result<(), EngineError> {
    // A full disk is the cause of what import and gate object to, not the other way round.
    let (class, reason) = match &run.agent_end {
        Some(AgentEnd::Failed { class: FailureClass::Disk, detail }) if class == FailureClass::Gate => {
            (FailureClass::Disk, format!("{detail}\n\n{reason}"))
        }
        _ => (class, reason),
    };
    if run.state == RunState::Publishing {
        publish::settle_push(app, run).await?;
    }
    run.outcome.class = Some(class);
    run.outcome.step = Some(wording::current_phase(run));
    run.outcome.reason = app.secrets.mask(&reason);
    run.apply(&RunInput::Failed, app.clock.now())?;
    save(app, run, Urgency::State).await?;
    clean_up(app, run).await;
    Ok(())
}

/// What people are told of an error; its details are in the log under the run's id.
fn classify(error: &EngineError) -> (FailureClass, String) {
    if is_full_disk(error) {
        return (FailureClass::Disk, wording::SERVER_DISK_FULL.into());
    }
    match error {
        EngineError::Git(GitError::Auth { .. }) => {
            (FailureClass::Auth, "The forge refused our credentials for Git.".into())
        }
        EngineError::Git(GitError::Moved { branch }) => (
            FailureClass::Conflict,
            format!("Somebody pushed to `{branch}` meanwhile, and I never overwrite that."),
        ),
        EngineError::Git(GitError::Refused { detail }) => {
            (FailureClass::Forge, format!("The push was refused: {}", sentence(detail)))
        }
        EngineError::Git(GitError::Rejected { detail }) => {
            (FailureClass::Gate, format!("What the agent left behind was refused: {}", sentence(detail)))
        }
        EngineError::Git(GitError::Unavailable { detail, .. }) => {
            (FailureClass::Git, format!("Git could not reach the forge: {}", sentence(detail)))
        }
        EngineError::Git(error) => (FailureClass::Git, sentence(&error.to_string())),
        EngineError::Remote(RemoteError::Auth { .. }) => {
            (FailureClass::Auth, "The forge refused our credentials.".into())
        }
        EngineError::Remote(RemoteError::RateLimited { .. }) => {
            (FailureClass::Quota, "The forge's rate limit was reached.".into())
        }
        EngineError::Remote(error) => (FailureClass::Forge, sentence(&error.to_string())),
        EngineError::Sandbox(error) => (FailureClass::Sandbox, sentence(&error.to_string())),
        EngineError::Broker(BrokerError::Client(_) | BrokerError::Endpoint { .. }) => (
            FailureClass::Model,
            "The model endpoint of this server is set up wrongly; its log has the details.".into(),
        ),
        EngineError::Broker(BrokerError::Socket { .. })
        | EngineError::Io { .. }
        | EngineError::Defect(_)
        | EngineError::Store(_) => (
            FailureClass::Internal,
            "Something broke on the server; its log has the details under this run's id.".into(),
        ),
    }
}

/// The disk of this server, not of the agent. Git says it in words only.
fn is_full_disk(error: &EngineError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::StorageFull
        {
            return true;
        }
        cause = inner.source();
    }
    error.to_string().contains("No space left on device")
}

/// Somebody else's words as the end of a sentence.
fn sentence(text: &str) -> String {
    format!("{}.", sanitize::one_line(text, 300).trim_end_matches('.'))
}

// ---------------------------------------------------------------- preparing

#[tracing::instrument(level = "debug", skip_all)]
async fn prepare(app: &App, run: &mut Run) -> Result<Step, EngineError> {
    if run.cancel_requested.is_some() {
        return cancel_before_start(app, run).await;
    }
    if let Some(old) = store::attempts::latest(&app.store, &run.id).await?
        && old.ended_at.is_none()
    {
        // A crash between the attempt's row and the agent's start: that slot is burnt.
        app.sandbox.remove(&old.slot).await?;
        remove_sockets(app, &old.slot);
        end_attempt(app, run, &old.slot).await?;
    }
    // The setup has an attempt of its own, and an agent that begins anew after all has all of them once more.
    let containers = 1 + i64::from(run.has_setup());
    let retries = run.progress.again.as_ref().map_or(0, |again| again.times);
    if run.attempts >= MAX_ATTEMPTS - 1 + containers * (1 + retries + i64::from(run.progress.no_resume)) {
        let reason = format!("The server stopped {MAX_ATTEMPTS} times before the agent could start.");
        fail(app, run, FailureClass::Internal, reason).await?;
        return Ok(Step::Done);
    }
    let started_from = run.start().clone();
    if let Some(reason) = settle_start(app, run).await? {
        fail(app, run, FailureClass::Conflict, reason).await?;
        return Ok(Step::Done);
    }
    // Of the setup that just ran, or of an agent that was interrupted by something that has passed.
    let interrupted = run.progress.again.is_some() && *run.start() == started_from;
    let kept = app
        .git
        .prepared(&run.remote, run.repo.id, &run.id)
        .filter(|_| run.progress.setup == SetupState::Done || (interrupted && !run.has_setup()));
    let workspace = match kept {
        Some(workspace) => workspace,
        None => {
            run.progress.setup = SetupState::Pending;
            if interrupted {
                // It lay on another machine, or is gone: so is its session.
                run.progress.session = None;
            }
            run.progress.phase = Some(Phase::Clone);
            told_when_slow(app, run, workspace(app, run)).await?
        }
    };
    let is_setup = run.has_setup() && run.progress.setup != SetupState::Done;
    run.progress.phase = Some(Phase::Sandbox);
    let set = match ingest::repository_agents(app, &run.repo, run.spec.base_sha.as_str()).await? {
        Ok(set) => set,
        Err(problem) => {
            fail(app, run, FailureClass::Config, problem).await?;
            return Ok(Step::Done);
        }
    };
    let agent = match set.agent(&run.spec.agent) {
        Ok(agent) => agent.clone(),
        Err(error) => {
            fail(app, run, FailureClass::Config, error.to_string()).await?;
            return Ok(Step::Done);
        }
    };
    if app.config.sandbox.kind == crate::config::SandboxKind::Process
        && (agent.adapter != AdapterKind::Command || is_setup)
    {
        let reason = "There is no container engine on this server, and agents with a model and setups run in containers only. Install Docker, then set `sandbox.kind = \"docker\"`.".to_owned();
        fail(app, run, FailureClass::Sandbox, reason).await?;
        return Ok(Step::Done);
    }
    let class = slot_class(app, &run.spec.image);
    let slot = app.sandbox.take(&class).unwrap_or_else(|| SlotId::new(app.ids.next(IdKind::Slot)));
    let made = if is_setup {
        setup::spec(app, run, &set, &workspace, &slot)?
    } else {
        told_when_slow(app, run, sandbox_spec(app, run, &agent, &set, &workspace, &slot)).await?
    };
    let spec = match made {
        Ok(spec) => spec,
        Err(problem) => {
            fail(app, run, FailureClass::Config, problem).await?;
            return Ok(Step::Done);
        }
    };
    let now = app.clock.now();
    run.outcome.notes = spec.notes;
    run.progress.session = spec.resumes.clone();
    run.progress.resumed = spec.resumes;
    run.progress.setup = match run.progress.setup {
        _ if is_setup => SetupState::Running,
        other => other,
    };
    run.attempts += 1;
    let attempt = Attempt {
        run: run.id.clone(),
        n: run.attempts,
        slot: slot.clone(),
        container: None,
        started_at: now,
        ended_at: None,
        log_cursor: 0,
        node: app.node.id.clone(),
    };
    let known = serde_json::to_vec(&spec.context).map_err(|error| EngineError::Defect(error.to_string()))?;
    let mut tx = app.store.lazy_tx().await?;
    store::attempts::insert(&mut tx, &attempt).await?;
    if spec.needs_model {
        store::artifacts::put(&mut tx, &run.id, tools::CONTEXT_PART, &known, now).await?;
    }
    note_in_log(app, &mut tx, run, &spec.log).await?;
    store::runs::save(&mut tx, run).await?;
    tx.commit().await?;
    // Only now: from here on the attempt's row tells whose folder it is.
    make_private(&sockets(app, &slot))?;
    let listeners = open_broker(app, run, &slot, spec.needs_model).await?;
    app.live.hold(&run.id, listeners, now);
    let container = app.sandbox.start(&spec.sandbox).await?;
    tracing::info!(run.id = %run.id, attempt = run.attempts, container, "agent started");
    run.progress.phase = Some(if is_setup { Phase::Setup } else { Phase::Agent });
    run.apply(&RunInput::AgentStarted, app.clock.now())?;
    let mut tx = app.store.lazy_tx().await?;
    store::attempts::set_container(&mut tx, &slot, &container).await?;
    store::runs::save(&mut tx, run).await?;
    report::report(app, &mut tx, run, Urgency::State).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(Step::Again)
}

/// Writes lines of our own into the run's log, before any of its agent's.
async fn note_in_log(app: &App, tx: &mut store::Tx, run: &Run, notes: &[String]) -> Result<(), EngineError> {
    let mut text = String::new();
    for note in notes {
        let shown = app.secrets.mask(&sanitize::one_line(note, 500));
        let line = LogLine { n: 0, k: LogKind::Note, t: shown };
        text.push_str(&serde_json::to_string(&line).map_err(|error| EngineError::Defect(error.to_string()))?);
        text.push('\n');
    }
    if !text.is_empty() {
        store::logs::append(tx, &run.id, run.attempts, &text, app.clock.now()).await?;
    }
    Ok(())
}

/// Writes that an attempt has ended, which only who holds the run may.
async fn end_attempt(app: &App, run: &Run, slot: &SlotId) -> Result<(), EngineError> {
    let mut tx = app.store.lazy_tx().await?;
    store::runs::check_fence(&mut tx, run).await?;
    store::attempts::end(&mut tx, slot, app.clock.now()).await?;
    tx.commit().await?;
    Ok(())
}

async fn cancel_before_start(app: &App, run: &mut Run) -> Result<Step, EngineError> {
    run.outcome.step = Some(wording::current_phase(run));
    run.outcome.reason = wording::cancel_reason(run);
    run.apply(&RunInput::Cancelled, app.clock.now())?;
    save(app, run, Urgency::State).await?;
    clean_up(app, run).await;
    Ok(Step::Done)
}

/// Is the pinned commit still what it was? Our own earlier run may have moved the branch on: then the
/// agent starts from our commit. Anything else is a conflict, told by the answer.
#[tracing::instrument(level = "debug", skip_all)]
async fn settle_start(app: &App, run: &mut Run) -> Result<Option<String>, EngineError> {
    if let Some(pull) = run.spec.needs_ok() {
        let key = PullKey { remote: &run.remote, repo_id: run.repo.id, number: pull.number };
        if app.forge.pull(&run.repo, pull.number).await?.head_sha != pull.head_sha
            || !store::approvals::of_pull(&app.store, key).await?.contains(&pull.head_sha)
        {
            return Ok(Some(wording::approval_is_void(&pull.head_sha)));
        }
    }
    let Some(push_to) = run.spec.push_to.clone() else { return Ok(None) };
    let head = match &run.spec.pull {
        Some(pull) => Some(app.forge.pull(&run.repo, pull.number).await?.head_sha),
        None => app.forge.branch_head(&publish::home(app, run).await?, &push_to).await?,
    };
    let Some(head) = head else {
        return Ok(None);
    };
    run.progress.start = None;
    if head == *run.pinned() {
        return Ok(None);
    }
    if pushed_by_us(app, run, &push_to, &head).await? {
        run.progress.start = Some(head);
        return Ok(None);
    }
    Ok(Some(format!(
        "`{push_to}` moved after the command was given, and I work only on the commit that was meant."
    )))
}

async fn pushed_by_us(app: &App, run: &Run, branch: &BranchName, head: &Sha) -> Result<bool, EngineError> {
    let runs = store::runs::of_task(&app.store, &run.task).await?;
    Ok(runs.iter().any(|other| {
        other.outcome.branch.as_ref() == Some(branch) && other.outcome.head.as_ref() == Some(head)
    }))
}

/// What is usually done at once is not worth a report; where it takes longer, the run is shown as it is meanwhile.
async fn told_when_slow<T>(
    app: &App,
    run: &Run,
    work: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout(QUICK, &mut work).await {
        return done;
    }
    let (done, told) = tokio::join!(work, save(app, run, Urgency::State));
    told?;
    done
}

#[tracing::instrument(level = "debug", skip_all)]
async fn workspace(app: &App, run: &Run) -> Result<Workspace, EngineError> {
    let access = git_access(app, run, GitPermission::Read).await?;
    let wanted = [run.start().clone(), run.spec.base_sha.clone()];
    let pull = run.spec.pull.as_ref().filter(|pull| pull.fork).map(|pull| pull.number);
    if run.spec.fork.is_some() && run.start() != &run.spec.base_sha {
        // Our earlier work lies in our fork.
        let fork = publish::home(app, run).await?;
        let access = access_to(app, &fork, GitPermission::Read).await?;
        app.git.ensure(&run.remote, run.repo.id, &access, &wanted[..1], None).await?;
    }
    app.git.ensure(&run.remote, run.repo.id, &access, &wanted, pull).await?;
    let objects = app.git.mirror_path(&run.remote, run.repo.id).join("objects");
    let spec = WorkspaceSpec {
        remote: &run.remote,
        repo_id: run.repo.id,
        run: &run.id,
        start: run.start(),
        base_sha: &run.spec.base_sha,
        masked: MASKED_PATHS,
        objects_inside: app.sandbox.objects_path_inside(&objects),
        owner: app.sandbox.owner(),
    };
    Ok(app.git.prepare(&spec).await?)
}

pub(super) async fn git_access(
    app: &App,
    run: &Run,
    permission: GitPermission,
) -> Result<Access, EngineError> {
    access_to(app, &run.repo, permission).await
}

pub(super) async fn access_to(
    app: &App,
    repo: &Repo,
    permission: GitPermission,
) -> Result<Access, EngineError> {
    let access = app.forge.git_access(repo, permission).await?;
    Ok(Access { url: access.url, username: access.username, token: access.token })
}

pub(super) struct Prepared {
    pub sandbox: SandboxSpec,
    pub needs_model: bool,
    /// What the report should say of the request, e.g. words that a recipe ignores.
    pub notes: Vec<String>,
    /// For the run's log.
    pub log: Vec<String>,
    /// What the tool `context` tells.
    pub context: Vec<tools::Section>,
    /// The session that the agent goes on with.
    pub resumes: Option<String>,
}

pub(super) fn limits(app: &App) -> Limits {
    let config = &app.config.sandbox;
    Limits {
        memory_bytes: config.memory_mib.saturating_mul(1024 * 1024),
        millicpus: (config.cpus * 1000.0) as i64,
        pids: config.pids,
        log_bytes: config.log_mib.saturating_mul(1024 * 1024),
    }
}

/// What the slots of runs with this image have in common.
pub(super) fn slot_class(app: &App, image: &str) -> SlotClass {
    SlotClass { image: image.to_owned(), limits: limits(app) }
}

/// The private directory of an attempt's sockets: a name that nobody can guess, short enough for a socket path.
pub(super) fn sockets(app: &App, slot: &SlotId) -> PathBuf {
    app.signer.sockets(&app.socket_root, slot)
}

#[tracing::instrument(level = "debug", skip_all)]
async fn sandbox_spec(
    app: &App,
    run: &Run,
    agent: &AgentSpec,
    set: &crate::agent::definition::AgentSet,
    workspace: &Workspace,
    slot: &SlotId,
) -> Result<Result<Prepared, String>, EngineError> {
    let skills = match set.skills_of(agent) {
        Ok(skills) => skills,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut collect = collect_job(run);
    collect.session = resume::patterns(app, agent.adapter);
    let mut spec = SandboxSpec {
        slot: slot.clone(),
        run: run.id.clone(),
        image: run.spec.image.clone(),
        limits: limits(app),
        duty: Duty::Collect(collect.clone()),
        workspace: workspace.workspace.clone(),
        output: workspace.output.clone(),
        home: workspace.home.clone(),
        sockets: Some(sockets(app, slot)),
        objects: workspace.objects.clone(),
        cache: setup::cache(app, run, false)?,
    };
    let (inside, home) = app.sandbox.inside(&spec);
    let gathered = context::gather(app, run, &home, agent.adapter != AdapterKind::Command).await?;
    let (mut session, mut began) = (None, None);
    match resume::start(app, run, agent.adapter).await? {
        Start::Anew => {}
        Start::Instead(note) => began = Some(note),
        Start::Session(found) => {
            began = Some(if found.previous == run.id {
                wording::session_taken_up(run)
            } else {
                wording::session_resumed(&found.previous)
            });
            session = Some(found);
        }
    }
    let prompt = match &session {
        Some(session) => prompt::build_resumed(&run.spec, &gathered.context, &session.resumed),
        None => prompt::build(&run.spec, &gathered.context),
    };
    let prompt = app.secrets.mask(&prompt);
    let model = run.spec.model.as_deref().or(Some(app.config.models.default_model.as_str()));
    let launch = adapter::launch(&LaunchContext {
        spec: agent,
        skills: &skills,
        mode: run.spec.mode,
        model,
        prompt: &prompt,
        args: &run.spec.text,
        workspace: &inside,
        home: &home,
    });
    let mut launch = match launch {
        Ok(launch) => launch,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let resumes = session.map(|session| {
        let id = session.id.clone();
        adapter::resume::apply(agent.adapter, &mut launch, &agent.system_prompt, &id, session.files);
        id
    });
    let reaches = !setup::hosts(app, run, false).is_empty();
    let mut env = launch.env;
    if reaches {
        env.extend(setup::proxy_environment());
    }
    let mut notes = launch.notes;
    notes.extend(setup::notes(run));
    notes.extend(began);
    let mut home_files = launch.home_files;
    home_files.extend(gathered.files);
    spec.duty = Duty::Agent(Job {
        argv: launch.argv,
        env,
        stdin: launch.stdin,
        home_files,
        bridge_port: launch.needs_model.then_some(BRIDGE_PORT),
        egress_port: reaches.then_some(EGRESS_PORT),
        links: setup::links(run),
        // Whatever ran in this workspace before.
        mask_from: (run.progress.setup == SetupState::Done || run.progress.again.is_some())
            .then(|| run.spec.base_sha.to_string()),
        setup: false,
        collect,
    });
    Ok(Ok(Prepared {
        sandbox: spec,
        needs_model: launch.needs_model,
        notes,
        log: gathered.notes,
        resumes,
        context: prompt::sections(&run.spec, &gathered.context)
            .into_iter()
            .map(|(part, text)| tools::Section { part: part.to_owned(), text: app.secrets.mask(&text) })
            .collect(),
    }))
}

fn make_private(folder: &std::path::Path) -> Result<(), EngineError> {
    use std::os::unix::fs::PermissionsExt;
    let io = |operation| move |source| EngineError::Io { operation, path: folder.to_path_buf(), source };
    std::fs::create_dir_all(folder).map_err(io("create"))?;
    // Others may pass through, not look: its name is the secret, the container's uid must reach the sockets.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).map_err(io("set permissions"))
}

pub(super) fn collect_job(run: &Run) -> CollectJob {
    CollectJob {
        base: run.start().to_string(),
        message: wording::commit_message(run),
        exclude: MASKED_PATHS.iter().map(|path| (*path).to_owned()).collect(),
        artifacts: run.spec.config.artifacts.clone(),
        session: Vec::new(),
    }
}

#[tracing::instrument(level = "debug", skip_all)]
async fn open_broker(
    app: &App,
    run: &Run,
    slot: &SlotId,
    wants_model: bool,
) -> Result<Vec<Listener>, EngineError> {
    let folder = sockets(app, slot);
    let hosts = setup::hosts(app, run, run.progress.setup == SetupState::Running);
    let mut listeners = Vec::new();
    if wants_model || !hosts.is_empty() {
        make_private(&folder)?;
    }
    if wants_model {
        let mut wider = budget::of_run(run, &ingest::budget_rules(app));
        wider.retain(|budget| budget.kind != BudgetKind::Run);
        let allowance = Allowance {
            run: run.id.clone(),
            attempt: run.attempts,
            budget_micros: run.spec.budget_micros,
            wider,
        };
        listeners.push(app.broker.open(&folder, allowance).await?);
    }
    if !hosts.is_empty() {
        listeners.push(app.broker.open_egress(&folder, setup::grant(app, run, hosts)).await?);
    }
    Ok(listeners)
}

// ---------------------------------------------------------------- running

#[tracing::instrument(level = "debug", skip_all)]
async fn watch(app: &App, run: &mut Run, patience: Duration) -> Result<Step, EngineError> {
    let Some(attempt) = store::attempts::latest(&app.store, &run.id).await? else {
        return Err(EngineError::Defect("a running run has no attempt".into()));
    };
    if !app.live.is_held(&run.id) {
        adopt(app, run, &attempt).await?;
    }
    if run.cancel_requested.is_some() {
        return agent_gone(app, run, AgentEnd::Cancelled).await;
    }
    if let Some(mut question) = store::questions::of_run(&app.store, &run.id).await? {
        question.text = app.secrets.mask(&question.text);
        question.choices.iter_mut().for_each(|choice| *choice = app.secrets.mask(choice));
        tokio::time::sleep(AFTER_QUESTION).await;
        // It may have asked before anybody heard of its session.
        let polled = app.sandbox.poll(&attempt.slot, attempt.log_cursor, Duration::ZERO).await?;
        take_lines(app, run, &attempt, &polled).await?;
        return agent_gone(app, run, AgentEnd::Asked { question }).await;
    }
    let polled = app.sandbox.poll(&attempt.slot, attempt.log_cursor, patience).await?;
    if !polled.lines.is_empty() {
        app.loads.touch(&run.id, app.clock.now());
        take_lines(app, run, &attempt, &polled).await?;
    }
    if run.progress.setup == SetupState::Running
        && let Some(end) = setup::ended(app, run, &attempt, &polled)
    {
        return match end {
            Ok(()) => setup_done(app, run, &attempt).await,
            Err(end) => agent_gone(app, run, end).await,
        };
    }
    if resume::failed(app, run, &polled).await? {
        return begin_anew(app, run, &attempt).await;
    }
    match polled.status {
        // Asked only of one that still runs: it may have ended well while nobody looked.
        Status::Running if (app.clock.now() - attempt.started_at).num_seconds() >= run.spec.wall_seconds => {
            let detail = format!(
                "The agent was stopped after {} minutes, its limit.",
                run.spec.wall_seconds.div_euclid(60).max(1)
            );
            agent_gone(app, run, AgentEnd::Failed { class: FailureClass::Timeout, detail }).await
        }
        // A smaller request may still fit; one that does not, again and again, is an agent that cannot go on.
        Status::Running
            if app.broker.over_budget(&run.id).is_some_and(|(_, times)| times >= BUDGET_REFUSALS) =>
        {
            let detail = budget_detail(app, run);
            agent_gone(app, run, AgentEnd::Failed { class: FailureClass::Budget, detail }).await
        }
        Status::Running => {
            if let Some(end) = load::watch(app, run, &attempt).await? {
                return agent_gone(app, run, end).await;
            }
            let every = chrono::Duration::seconds(app.config.limits.progress_seconds.max(1));
            if app.live.report_is_due(&run.id, app.clock.now(), every) {
                count_money(app, run).await?;
                take_checklist(app, run).await?;
                let mut tx = app.store.lazy_tx().await?;
                store::runs::save_progress(&mut tx, run).await?;
                report::report(app, &mut tx, run, Urgency::Progress).await?;
                tx.commit().await?;
                app.wakeup.notify(Topic::Effects);
            }
            Ok(if polled.lines.is_empty() { Step::Idle } else { Step::Again })
        }
        // Lines may still be on their way: only an exit with nothing new is the end.
        Status::Exited { .. } if !polled.lines.is_empty() => Ok(Step::Again),
        Status::Exited { code, out_of_memory } => {
            run.progress.collected = code == 0;
            let end = judge(run, out_of_memory, code);
            agent_gone(app, run, end).await
        }
        Status::Gone => {
            let detail = "The container vanished from the engine.".to_owned();
            agent_gone(app, run, AgentEnd::Failed { class: FailureClass::Sandbox, detail }).await
        }
    }
}

/// The workspace is prepared: the setup's container goes, and the agent's is next.
async fn setup_done(app: &App, run: &mut Run, attempt: &Attempt) -> Result<Step, EngineError> {
    app.live.release(&run.id);
    app.sandbox.remove(&attempt.slot).await?;
    remove_sockets(app, &attempt.slot);
    setup::trim_cache(app, run)?;
    let now = app.clock.now();
    let progress = &mut run.progress;
    progress.setup = SetupState::Done;
    progress.setup_seconds = (now - attempt.started_at).num_seconds().max(0);
    progress.exit_code = None;
    progress.result.clear();
    progress.prose = false;
    progress.last.clear();
    run.apply(&RunInput::SetupDone, now)?;
    next_container(app, run, attempt, now).await
}

/// The agent could not go on with its session: its container goes, and it is started once more without.
async fn begin_anew(app: &App, run: &mut Run, attempt: &Attempt) -> Result<Step, EngineError> {
    tracing::info!(run.id = %run.id, "the session cannot be gone on with: the agent begins anew");
    app.loads.forget(&run.id);
    app.live.release(&run.id);
    app.sandbox.remove(&attempt.slot).await?;
    remove_sockets(app, &attempt.slot);
    count_money(app, run).await?;
    resume::forget(&mut run.progress);
    let now = app.clock.now();
    run.apply(&RunInput::Anew, now)?;
    next_container(app, run, attempt, now).await
}

/// Ends an attempt whose run goes on in another container.
async fn next_container(
    app: &App,
    run: &Run,
    attempt: &Attempt,
    now: DateTime<Utc>,
) -> Result<Step, EngineError> {
    let mut tx = app.store.lazy_tx().await?;
    store::attempts::end(&mut tx, &attempt.slot, now).await?;
    store::runs::save(&mut tx, run).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Logs);
    Ok(Step::Again)
}

/// Takes over the container of an agent that a dead process started: its socket is opened again, and the
/// log is read on from the stored cursor.
async fn adopt(app: &App, run: &Run, attempt: &Attempt) -> Result<(), EngineError> {
    tracing::info!(run.id = %run.id, slot = %attempt.slot, "adopting a running agent");
    let recipe = app.agents.agent(&run.spec.agent).is_ok_and(|agent| agent.adapter == AdapterKind::Command);
    let model = !recipe && run.progress.setup != SetupState::Running;
    let listeners = open_broker(app, run, &attempt.slot, model).await?;
    app.live.hold(&run.id, listeners, app.clock.now());
    Ok(())
}

async fn take_checklist(app: &App, run: &mut Run) -> Result<(), EngineError> {
    run.progress.checklist = store::questions::checklist(&app.store, &run.id).await?;
    for item in &mut run.progress.checklist {
        item.text = app.secrets.mask(&item.text);
    }
    Ok(())
}

async fn count_money(app: &App, run: &mut Run) -> Result<(), EngineError> {
    let totals = store::ledger::totals(&app.store, &run.id).await?;
    run.progress.cost_micros = totals.micros;
    run.progress.tokens = totals.usage.total();
    let budgets = budget::of_run(run, &ingest::budget_rules(app));
    for standing in store::ledger::standings(&app.store, &budgets, app.clock.now()).await? {
        let kind = standing.budget.kind;
        if standing.is_nearly_used() && run.progress.warnings.iter().all(|(warned, _)| *warned != kind) {
            run.progress.warnings.push((kind, wording::budget_nearly_used(&standing)));
        }
    }
    Ok(())
}

/// Stores new lines with the cursor in one transaction, and follows what the agent does.
#[tracing::instrument(level = "debug", skip_all)]
async fn take_lines(app: &App, run: &mut Run, attempt: &Attempt, polled: &Polled) -> Result<(), EngineError> {
    let adapter = match run.progress.setup {
        SetupState::Running => AdapterKind::Command,
        SetupState::Pending | SetupState::Done => adapter_of(app, run).await?,
    };
    let mut text = String::new();
    let mut cursor = attempt.log_cursor;
    for line in &polled.lines {
        cursor = cursor.max(line.n);
        // Before anything is cut short: the rest of a secret would not be recognised any more.
        let said = app.secrets.mask(&line.text);
        let logged = match line.source {
            LineSource::Shim => shim_line(run, &said),
            LineSource::Stdout => follow(run, adapter, &adapter::parse_line(adapter, false, &said)),
            LineSource::Stderr => follow(run, adapter, &adapter::parse_line(adapter, true, &said)),
        };
        for (kind, shown) in logged {
            let entry = LogLine { n: line.n, k: kind, t: app.secrets.mask(&shown) };
            if let Ok(json) = serde_json::to_string(&entry) {
                text.push_str(&json);
                text.push('\n');
            }
        }
    }
    run.progress.result = app.secrets.mask(&run.progress.result);
    run.progress.last = app.secrets.mask(&run.progress.last);
    let mut tx = app.store.lazy_tx().await?;
    let seq = match text.is_empty() {
        true => None,
        false => Some(store::logs::append(&mut tx, &run.id, attempt.n, &text, app.clock.now()).await?),
    };
    store::attempts::set_cursor(&mut tx, &attempt.slot, cursor).await?;
    store::runs::save_progress(&mut tx, run).await?;
    tx.commit().await?;
    if let Some(seq) = seq {
        app.wakeup.lines(LogLines { run: run.id.to_string(), seq, text: text.into() });
    }
    Ok(())
}

pub(super) async fn adapter_of(app: &App, run: &Run) -> Result<AdapterKind, EngineError> {
    if let Ok(agent) = app.agents.agent(&run.spec.agent) {
        return Ok(agent.adapter);
    }
    let set = ingest::repository_agents(app, &run.repo, run.spec.base_sha.as_str()).await?;
    Ok(set
        .ok()
        .and_then(|set| set.agent(&run.spec.agent).map(|agent| agent.adapter).ok())
        .unwrap_or(AdapterKind::Command))
}

/// A line of the shim itself.
fn shim_line(run: &mut Run, text: &str) -> Vec<(LogKind, String)> {
    let Ok(event) = serde_json::from_str::<serde_json::Value>(text) else {
        return vec![(LogKind::Note, text.to_owned())];
    };
    let field = |name: &str| event.get(name).and_then(serde_json::Value::as_i64);
    let who = if run.progress.setup == SetupState::Running { "setup" } else { "agent" };
    let note = match event.get("event").and_then(serde_json::Value::as_str) {
        Some("started") => format!("{who} process started"),
        Some("exited") => {
            run.progress.exit_code = field("code").or_else(|| field("signal").map(|signal| 128 + signal));
            format!("{who} process ended with exit code {}", run.progress.exit_code.unwrap_or(-1))
        }
        Some("settled") => "the workspace is prepared".to_owned(),
        Some("collected") => format!("{} commit(s) collected", field("commits").unwrap_or(0)),
        Some("nothing") => "nothing was changed".to_owned(),
        Some("packed") => format!("{} artifact(s) collected", field("artifacts").unwrap_or(0)),
        _ => text.to_owned(),
    };
    vec![(LogKind::Note, note)]
}

/// Follows the agent: what is shown as its last step, its result, its errors. Gives what the log shows.
fn follow(run: &mut Run, adapter: AdapterKind, events: &[AgentEvent]) -> Vec<(LogKind, String)> {
    let progress = &mut run.progress;
    let mut shown = Vec::new();
    for event in events {
        match event {
            AgentEvent::Text { text } => {
                progress.last = sanitize::for_comment(&sanitize::one_line(text, 160), 400);
                if adapter == AdapterKind::Command && text.trim() == SUMMARY_LINE {
                    progress.result.clear();
                    progress.prose = true;
                } else if adapter == AdapterKind::Command {
                    progress.result.push_str(text);
                    progress.result.push('\n');
                    keep_tail(&mut progress.result, 4 * 1024);
                }
                shown.push((LogKind::Text, text.clone()));
            }
            AgentEvent::Answer { text } => {
                progress.last = sanitize::for_comment(&sanitize::one_line(text, 160), 400);
                progress.result.push_str(text);
                progress.prose = true;
                keep_tail(&mut progress.result, MAX_RESULT_BYTES);
                shown.push((LogKind::Text, text.trim_end().to_owned()));
            }
            AgentEvent::ToolStart { tool, summary } => {
                progress.tool_calls += 1;
                if adapter != AdapterKind::Command {
                    // It goes on: what it said so far was not its result.
                    progress.result.clear();
                }
                let line = format!("{tool} {summary}");
                progress.last = sanitize::for_comment(&sanitize::one_line(&line, 160), 400);
                shown.push((LogKind::Tool, line));
            }
            AgentEvent::ToolEnd { tool, ok } => {
                shown.push((LogKind::ToolEnd, format!("{tool} {}", if *ok { "ok" } else { "failed" })));
            }
            AgentEvent::Session { id } if adapter::resume::is_session_id(adapter, id) => {
                if progress.resumed.as_ref().is_some_and(|resumed| resumed != id) {
                    progress.session_lost = true;
                } else if progress.session.is_none() {
                    progress.session = Some(id.clone());
                }
            }
            AgentEvent::Tokens { .. } | AgentEvent::Session { .. } => {}
            AgentEvent::Result { ok, text } => {
                progress.result = text.clone();
                progress.prose = true;
                keep_tail(&mut progress.result, MAX_RESULT_BYTES);
                if !ok && progress.error.is_none() {
                    progress.error = Some((FailureClass::Agent, sanitize::one_line(text, 300)));
                }
                shown.push((LogKind::Result, text.clone()));
            }
            AgentEvent::Error { class, detail } => {
                // The first error is the cause; later ones are its consequences.
                if progress.error.is_none() {
                    progress.error = Some((*class, sanitize::one_line(detail, 300)));
                }
                shown.push((LogKind::Error, detail.clone()));
            }
        }
    }
    shown
}

/// Keeps the last `max` bytes, cut at a character.
fn keep_tail(text: &mut String, max: usize) {
    if text.len() <= max {
        return;
    }
    let mut start = text.len() - max;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.drain(..start);
}

/// How the agent's part ended, from what engine, shim and agent said.
fn judge(run: &Run, out_of_memory: bool, code: i64) -> AgentEnd {
    let failed = |class, detail: String| AgentEnd::Failed { class, detail };
    if out_of_memory {
        return failed(
            FailureClass::OutOfMemory,
            "The agent needed more memory than its container has.".into(),
        );
    }
    if let Some((class, detail)) = &run.progress.error {
        return failed(*class, format!("The agent said: {}", sanitize::for_comment(detail, 600)));
    }
    match run.progress.exit_code {
        Some(0) => AgentEnd::Finished,
        Some(exit) => failed(FailureClass::Agent, format!("The agent ended with exit code {exit}.")),
        None => failed(
            FailureClass::Sandbox,
            format!("The container ended (exit code {code}) before the agent did."),
        ),
    }
}

/// Stops what still runs and goes on to collecting.
#[tracing::instrument(level = "debug", skip_all)]
async fn agent_gone(app: &App, run: &mut Run, end: AgentEnd) -> Result<Step, EngineError> {
    // A container whose shim collected has nobody left to stop.
    if !run.progress.collected
        && let Some(attempt) = store::attempts::latest(&app.store, &run.id).await?
    {
        app.sandbox.stop(&attempt.slot).await?;
    }
    app.loads.forget(&run.id);
    app.live.release(&run.id);
    if run.progress.setup == SetupState::Running {
        // What a setup left half done is nobody's work.
        run.progress.collected = true;
    }
    count_money(app, run).await?;
    take_checklist(app, run).await?;
    let end = match end {
        AgentEnd::Failed { class, .. }
            if class == FailureClass::Budget
                || (is_models(class) && (over_budget(run) || app.broker.over_budget(&run.id).is_some())) =>
        {
            let over =
                app.broker.over_budget(&run.id).map_or(BudgetKind::Run, |(standing, _)| standing.budget.kind);
            run.progress.over = Some(over);
            // What is used up need not be called nearly used.
            run.progress.warnings.retain(|(kind, _)| *kind != over);
            AgentEnd::Failed { class: FailureClass::Budget, detail: budget_detail(app, run) }
        }
        AgentEnd::Failed { class, detail } if is_models(class) || class == FailureClass::Auth => {
            match seen(app, run) {
                Some(seen) if seen.passes => {
                    if put_back(app, run, seen.class, seen.detail.clone(), seen.reset).await? {
                        return Ok(Step::Done);
                    }
                    AgentEnd::Failed { class: seen.class, detail: wording::tried_in_vain(run, &seen.detail) }
                }
                Some(seen) => AgentEnd::Failed { class: seen.class, detail: seen.detail },
                None => AgentEnd::Failed { class, detail },
            }
        }
        end => end,
    };
    tracing::info!(run.id = %run.id, end = ?end, "the agent is gone");
    run.apply(&RunInput::AgentGone(end), app.clock.now())?;
    save(app, run, Urgency::State).await?;
    Ok(Step::Again)
}

/// What the broker saw of the model endpoint, for an agent that gave up.
struct Seen {
    class: FailureClass,
    detail: String,
    /// It passes by itself, perhaps at a known time.
    passes: bool,
    reset: Option<Duration>,
}

/// The agent's own words are not enough to wait for anything: only an endpoint that was seen to be busy is waited for.
fn seen(app: &App, run: &Run) -> Option<Seen> {
    let (trouble, until) = app.broker.trouble(&run.id)?;
    let reset = until.and_then(|until| (until - app.clock.now()).to_std().ok());
    let (class, detail, passes) = match trouble {
        Trouble::Auth => (FailureClass::Auth, wording::model_refused_key(), false),
        // Nobody knows when somebody pays: only a named time is waited for.
        Trouble::Quota => (FailureClass::Quota, wording::model_account_empty(), reset.is_some()),
        Trouble::Overload => (FailureClass::Quota, wording::model_overloaded(), true),
        Trouble::Timeout => (FailureClass::Model, wording::model_does_not_answer(), true),
        Trouble::Other => return None,
    };
    Some(Seen { class, detail, passes, reset })
}

/// What an agent says when the broker refuses its requests, in whatever words.
fn is_models(class: FailureClass) -> bool {
    matches!(class, FailureClass::Agent | FailureClass::Model | FailureClass::Quota)
}

/// In our words and from our ledger, whatever the agent made of the refusal.
fn budget_detail(app: &App, run: &Run) -> String {
    if let Some((standing, _)) = app.broker.over_budget(&run.id)
        && standing.budget.kind != BudgetKind::Run
    {
        return wording::stopped_by_budget(&standing);
    }
    format!(
        "The run's budget did not reach for the agent's next request to the model: {} of {} is spent.",
        crate::domain::budget::dollars(run.progress.cost_micros),
        crate::domain::budget::dollars(run.spec.budget_micros)
    )
}

fn over_budget(run: &Run) -> bool {
    // The broker refuses what might pass the budget, so the last of it is never quite spent.
    run.progress.cost_micros > 0 && run.progress.cost_micros * 10 >= run.spec.budget_micros * 9
}

// ---------------------------------------------------------------- collecting

#[tracing::instrument(level = "debug", skip_all)]
async fn collect(app: &App, run: &mut Run) -> Result<Step, EngineError> {
    let attempt = store::attempts::latest(&app.store, &run.id).await?;
    if let (Some(attempt), Some(workspace)) = (&attempt, app.git.prepared(&run.remote, run.repo.id, &run.id))
        && !run.progress.collected
    {
        run.progress.collected = run_collector(app, run, attempt, &workspace).await?;
        if !run.progress.collected {
            run.outcome.notes.push("What the agent left in its workspace could not be collected.".into());
        }
    }
    if let Some(attempt) = &attempt {
        take_away(app, run, &attempt.slot).await?;
        remove_sockets(app, &attempt.slot);
        end_attempt(app, run, &attempt.slot).await?;
    }
    if attempt.is_some() && run.progress.setup != SetupState::Running {
        extras::take(app, run).await?;
    }
    setup::note_denied(app, run).await?;
    run.progress.phase = Some(Phase::Agent);
    run.apply(&RunInput::Collected, app.clock.now())?;
    save(app, run, Urgency::State).await?;
    Ok(Step::Again)
}

/// Removes an agent's container. One whose shim has collected only exits any more: nobody waits for that, and what fails
/// is the sweeper's.
async fn take_away(app: &App, run: &Run, slot: &SlotId) -> Result<(), EngineError> {
    if !run.progress.collected {
        return Ok(app.sandbox.remove(slot).await?);
    }
    let (sandbox, run, slot) = (Arc::clone(&app.sandbox), run.id.clone(), slot.clone());
    tokio::spawn(async move {
        if let Err(error) = sandbox.remove(&slot).await {
            tracing::warn!(run.id = %run, %slot, error = %error, "container stays for the sweeper");
        }
    });
    Ok(())
}

/// A second container, without agent and socket, commits what the stopped one left.
async fn run_collector(
    app: &App,
    run: &Run,
    attempt: &Attempt,
    workspace: &Workspace,
) -> Result<bool, EngineError> {
    let slot = SlotId::new(format!("{}{COLLECTOR}", attempt.slot));
    let mut collect = collect_job(run);
    collect.session = resume::patterns(app, adapter_of(app, run).await?);
    let spec = SandboxSpec {
        slot: slot.clone(),
        run: run.id.clone(),
        image: run.spec.image.clone(),
        limits: limits(app),
        duty: Duty::Collect(collect),
        workspace: workspace.workspace.clone(),
        output: workspace.output.clone(),
        home: workspace.home.clone(),
        sockets: None,
        objects: workspace.objects.clone(),
        cache: None,
    };
    app.git.open_reserve(&run.id).await?;
    app.sandbox.start(&spec).await?;
    let deadline = app.clock.now() + chrono::Duration::seconds(COLLECT_SECONDS);
    let mut cursor = 0;
    let ok = loop {
        let polled = app.sandbox.poll(&slot, cursor, POLL).await?;
        cursor = polled.lines.iter().map(|line| line.n).max().unwrap_or(cursor);
        match polled.status {
            Status::Exited { code, .. } => break code == 0,
            Status::Gone => break false,
            Status::Running if app.clock.now() >= deadline => break false,
            Status::Running => {
                // Collecting may outlast a lease's heartbeat.
                store::runs::heartbeat(&app.store, &run.id, run.fence, app.clock.now() + lease(app)).await?;
            }
        }
    };
    app.sandbox.remove(&slot).await?;
    Ok(ok)
}

fn remove_sockets(app: &App, slot: &SlotId) {
    remove_folder(&sockets(app, slot));
}

pub(super) fn remove_folder(folder: &std::path::Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %folder.display(), error = %error, "socket folder stays behind");
    }
}

/// Best effort: whatever an ended run still holds. What stays is found by the sweeper.
pub(super) async fn clean_up(app: &App, run: &Run) {
    app.loads.forget(&run.id);
    app.live.release(&run.id);
    match store::attempts::latest(&app.store, &run.id).await {
        // That of another node is not ours to end, whoever has the run now.
        Ok(Some(attempt)) if attempt.ended_at.is_none() && attempt.node == app.node.id => {
            if let Err(error) = app.sandbox.remove(&attempt.slot).await {
                tracing::warn!(run.id = %run.id, error = %error, "container stays behind");
                return;
            }
            remove_sockets(app, &attempt.slot);
            if let Err(error) = end_attempt(app, run, &attempt.slot).await {
                tracing::warn!(run.id = %run.id, error = %error, "attempt stays open");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(run.id = %run.id, error = %error, "attempt could not be read"),
    }
    if let Err(error) = app.git.discard(&run.id).await {
        tracing::warn!(run.id = %run.id, error = %error, "workspace stays behind");
    }
}
