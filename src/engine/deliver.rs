//! Sends effects: intent first, in order, one at a time per installation, under the rate governor;
//! after an unclear reply it looks before it sends again, and later takes away what was made twice all the same.
//!
//! Each lane (remote and installation) goes by itself: one whose remote does not answer holds up no other. What comes
//! next in a lane is begun in the transaction that settles what went before, so that a write costs one commit.

use super::EngineError;
use super::report::{self, Owner, Urgency};
use crate::app::App;
use crate::domain::effect::{
    Effect, EffectPriority, EffectState, OwnComment, Payload, Reconcile, RemoteRef, Twin,
};
use crate::domain::event::Surface;
use crate::domain::run::{FailureClass, Phase, RunInput, RunState};
use crate::domain::wording;
use crate::queue::Topic;
use crate::remote::{Remote, RemoteError, Retry};
use crate::store::{self, Tx};
use chrono::{DateTime, Duration, Utc};
use futures_util::future::try_join_all;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::task::{self, JoinSet};

/// An effect that was refused this often for reasons that may pass is given up: after about three days.
const MAX_TRIES: i64 = 1000;

/// Lists of the forge may lag behind its writes: only when a thing was not to be found for this long
/// after its sending is it made again.
const LIST_LAG: Duration = Duration::seconds(45);

/// Between two looks for an ambiguous effect.
const LOOK_AGAIN: Duration = Duration::seconds(5);

/// How long after something was made again its twin is looked for.
const TWIN_LOOKS: [Duration; 2] = [Duration::minutes(2), Duration::minutes(10)];

/// Before a look for a twin that was not possible is tried again.
const TWIN_LATER: Duration = Duration::minutes(1);

/// Looks for twins in one round.
const TWINS_AT_ONCE: i64 = 20;

/// For how long a process has a lane (remote and installation) to itself without asking again.
const LANE_TIME: std::time::Duration = std::time::Duration::from_secs(20);

/// For how long it goes on in a lane before it asks again whether it has it still: a part of what is left at least.
const LANE_STRETCH: Duration = Duration::seconds(5);

/// Before a lane that another process has is asked for again.
const LANE_LATER: Duration = Duration::seconds(5);

/// After an error in one lane (the database is away), before the next try.
const LANE_ERROR: Duration = Duration::seconds(2);

/// A sending whose intent is older was held up on the way and is not begun: others may reconcile it by then.
const SEND_WITHIN: Duration = Duration::seconds(30);

/// How far the clocks of processes may run apart.
const CLOCKS_APART: Duration = Duration::seconds(60);

/// The part of the minute's and hour's writes that progress texts may use: the rest is for what matters.
const PROGRESS_SHARE: f64 = 0.7;

/// What one tick did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticked {
    pub sent: usize,
    /// When to look again, if nothing wakes us earlier.
    pub next: Option<DateTime<Utc>>,
}

/// Sends what may be sent now, lanes side by side, and waits for all of them.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn tick(app: &App) -> Result<Ticked, EngineError> {
    let now = app.clock.now();
    let lanes = store::effects::due_lanes(&app.store, now).await?;
    let results =
        try_join_all(lanes.iter().map(|(remote, installation)| lane(app, remote, *installation))).await?;
    let sent = results.iter().filter(|result| matches!(result, Lane::Worked)).count();
    let blocked = results.iter().filter_map(|result| match result {
        Lane::Worked => None,
        Lane::BlockedUntil(time) => Some(*time),
    });
    let due = store::effects::next_due(&app.store).await?.filter(|due| *due > now);
    Ok(Ticked { sent, next: blocked.chain(due).min() })
}

type LaneKey = (String, i64);

/// The lanes of this process: which are at work, each in a task of its own, and which wait until when.
#[derive(Debug, Default)]
pub struct Lanes {
    tasks: JoinSet<Result<Lane, EngineError>>,
    at_work: HashMap<task::Id, LaneKey>,
    waiting: HashMap<LaneKey, DateTime<Utc>>,
}

impl Lanes {
    /// Sets every lane to work that has something due and neither works nor waits. Gives when to look again, if no lane
    /// ends and nothing wakes us earlier.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn begin(&mut self, app: &Arc<App>) -> Result<Option<DateTime<Utc>>, EngineError> {
        let now = app.clock.now();
        self.waiting.retain(|_, until| *until > now);
        for key in store::effects::due_lanes(&app.store, now).await? {
            if self.waiting.contains_key(&key) || self.at_work.values().any(|working| *working == key) {
                continue;
            }
            let (app, (remote, installation)) = (Arc::clone(app), key.clone());
            let task = self.tasks.spawn(async move { lane(&app, &remote, installation).await });
            self.at_work.insert(task.id(), key);
        }
        let due = store::effects::next_due(&app.store).await?.filter(|due| *due > now);
        Ok(self.waiting.values().copied().chain(due).min())
    }

    /// Waits until a lane has nothing more to do or has to wait; for ever when none is at work.
    pub async fn ended(&mut self, app: &App) {
        let Some(ended) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(EngineError::Defect(error.to_string()))),
        };
        let Some(key) = self.at_work.remove(&id) else { return };
        match result {
            Ok(Lane::Worked) => {}
            Ok(Lane::BlockedUntil(until)) => {
                self.waiting.insert(key, until);
            }
            Err(error) => {
                tracing::error!(remote = key.0, installation = key.1, error = %error, "a lane failed");
                self.waiting.insert(key, app.clock.now() + LANE_ERROR);
            }
        }
    }

    /// There may be something that a lane need not wait with.
    pub fn woken(&mut self) {
        self.waiting.clear();
    }
}

#[derive(Debug)]
enum Lane {
    Worked,
    BlockedUntil(DateTime<Utc>),
}

async fn lane(app: &App, remote: &str, installation: i64) -> Result<Lane, EngineError> {
    let now = app.clock.now();
    if let Some(until) = store::effects::held_until(&app.store, remote, installation).await?
        && until > now
    {
        return Ok(Lane::BlockedUntil(until));
    }
    // One process at a time, so that effects go in order.
    let duty = format!("lane:{remote}:{installation}");
    if !store::duties::hold(&app.store, &duty, &app.boot, now, LANE_TIME).await? {
        return Ok(Lane::BlockedUntil(now + LANE_LATER));
    }
    let Some(effect) = store::effects::next_of_lane(&app.store, remote, installation, now).await? else {
        return Ok(Lane::BlockedUntil(now + Duration::seconds(1)));
    };
    match effect.state {
        EffectState::Ambiguous | EffectState::Sending => {
            reconcile(app, &effect).await?;
            Ok(Lane::Worked)
        }
        EffectState::Planned => send_all(app, effect, now + LANE_STRETCH).await,
        EffectState::Confirmed | EffectState::Failed => Ok(Lane::Worked),
    }
}

/// Sends an effect, and after it what is due in its lane and may be sent, up to a time.
async fn send_all(app: &App, first: Effect, until: DateTime<Utc>) -> Result<Lane, EngineError> {
    let mut tx = app.store.write_tx().await?;
    store::effects::lock_lane(&mut tx, &first.remote, first.repo.installation).await?;
    let mut begun = match begin(app, &mut tx, first).await? {
        Begun::Sending(effect) => *effect,
        Begun::BlockedUntil(time) => return Ok(Lane::BlockedUntil(time)),
        Begun::Changed => return Ok(Lane::Worked),
    };
    // The intent, before anything is sent.
    tx.commit().await?;
    while let Some(next) = send(app, &begun, until).await? {
        begun = next;
    }
    Ok(Lane::Worked)
}

/// The governor: `None` when a content write may be sent now, else when to ask again. Exact below the lane's lock.
async fn may_write(
    app: &App,
    tx: &mut Tx,
    effect: &Effect,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, EngineError> {
    let limits = &app.config.limits;
    let (remote, installation) = (&effect.remote, effect.repo.installation);
    if let Some(until) = store::effects::held_until_tx(tx, remote, installation).await?
        && until > now
    {
        return Ok(Some(until));
    }
    let writes = store::effects::writes_since(tx, remote, installation, now - Duration::hours(1)).await?;
    // What lies further ahead than clocks run apart was recorded before this one was set back: it says nothing.
    let writes: Vec<_> = writes.into_iter().filter(|at| *at <= now + CLOCKS_APART).collect();
    if let Some(last) = writes.last() {
        let next = *last + Duration::milliseconds(limits.write_spacing_ms);
        if next > now {
            return Ok(Some(next));
        }
    }
    let share = if effect.priority == EffectPriority::Progress { PROGRESS_SHARE } else { 1.0 };
    for (window, cap) in
        [(Duration::minutes(1), limits.writes_per_minute), (Duration::hours(1), limits.writes_per_hour)]
    {
        // At least one: a cap of 1 must not starve progress for ever.
        let cap = ((cap as f64 * share) as usize).max(1);
        let inside: Vec<_> = writes.iter().filter(|at| **at > now - window).collect();
        if inside.len() >= cap
            && let Some(oldest) = inside.get(inside.len() - cap)
        {
            return Ok(Some(**oldest + window));
        }
    }
    Ok(None)
}

enum Begun {
    /// The intent stands in the transaction; once that is committed, it is to be sent.
    Sending(Box<Effect>),
    BlockedUntil(DateTime<Utc>),
    /// Somebody changed it since it was read.
    Changed,
}

/// Writes the intent to send an effect, below the lane's lock.
async fn begin(app: &App, tx: &mut Tx, effect: Effect) -> Result<Begun, EngineError> {
    // Read below the lock: a process that waited for it must not count from before.
    let now = app.clock.now();
    if let Some(until) = may_write(app, tx, &effect, now).await? {
        return Ok(Begun::BlockedUntil(until));
    }
    if !store::effects::sending(tx, &effect.id, effect.revision, &app.boot, now).await? {
        return Ok(Begun::Changed);
    }
    store::effects::record_write(tx, &effect.remote, effect.repo.installation, now).await?;
    Ok(Begun::Sending(Box::new(Effect {
        state: EffectState::Sending,
        intent_at: Some(now),
        sender: Some(app.boot.clone()),
        tries: effect.tries + 1,
        ..effect
    })))
}

/// Sends what was begun, and gives what was begun after it: that of its lane which comes next, up to a time.
#[tracing::instrument(skip_all, fields(effect.key = %effect.key, kind = effect.payload.kind(), repo = %effect.repo.name))]
async fn send(app: &App, effect: &Effect, until: DateTime<Utc>) -> Result<Option<Effect>, EngineError> {
    let now = app.clock.now();
    if now - effect.intent_at.unwrap_or(now) > SEND_WITHIN {
        let mut tx = app.store.write_tx().await?;
        store::effects::ambiguous(&mut tx, effect, "held up before it was sent", app.clock.now()).await?;
        tx.commit().await?;
        return Ok(None);
    }
    let result = match remote_of(app, effect) {
        Ok(remote) => remote.apply(masked(app, effect).as_ref().unwrap_or(effect)).await,
        Err(error) => Err(error),
    };
    settle(app, effect, result, until).await
}

/// Begins what comes next in the lane of an effect that was just settled.
async fn begin_next(app: &App, tx: &mut Tx, effect: &Effect) -> Result<Option<Effect>, EngineError> {
    let (remote, installation) = (&effect.remote, effect.repo.installation);
    let next = store::effects::next_of_lane_tx(tx, remote, installation, app.clock.now()).await?;
    // What is to be reconciled is looked for outside of any transaction.
    let Some(next) = next.filter(|next| next.state == EffectState::Planned) else { return Ok(None) };
    Ok(match begin(app, tx, next).await? {
        Begun::Sending(next) => Some(*next),
        Begun::BlockedUntil(_) | Begun::Changed => None,
    })
}

/// Where an effect goes. What is not configured now may be so again.
fn remote_of<'a>(app: &'a App, effect: &Effect) -> Result<&'a dyn Remote, RemoteError> {
    app.remote(&effect.remote).ok_or_else(|| RemoteError::Unavailable {
        operation: "find the remote of an effect",
        detail: format!("`{}` is not configured", effect.remote),
    })
}

async fn find_all(app: &App, effect: &Effect) -> Result<Vec<RemoteRef>, RemoteError> {
    remote_of(app, effect)?.find_all(effect).await
}

async fn find(app: &App, effect: &Effect) -> Result<Option<RemoteRef>, RemoteError> {
    remote_of(app, effect)?.find(effect).await
}

/// The effect with secrets taken out of its texts, when it holds any: whatever made a text, none leaves here with one.
/// A branch is names and commits only, and those passed the gate.
fn masked(app: &App, effect: &Effect) -> Option<Effect> {
    if matches!(effect.payload, Payload::Branch(_)) {
        return None;
    }
    let before = serde_json::to_value(&effect.payload).ok()?;
    let mut after = before.clone();
    mask_texts(app, &mut after);
    if after == before {
        return None;
    }
    tracing::warn!("a secret was taken out of an outgoing text");
    Some(Effect { payload: serde_json::from_value(after).ok()?, ..effect.clone() })
}

fn mask_texts(app: &App, value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = app.secrets.mask(text),
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| mask_texts(app, item)),
        serde_json::Value::Object(members) => members.values_mut().for_each(|item| mask_texts(app, item)),
        _ => {}
    }
}

/// Records what came of sending, and begins what comes next in the lane, up to a time.
#[tracing::instrument(level = "debug", skip_all)]
async fn settle(
    app: &App,
    effect: &Effect,
    result: Result<RemoteRef, RemoteError>,
    until: DateTime<Utc>,
) -> Result<Option<Effect>, EngineError> {
    let mut tx = app.store.write_tx().await?;
    // First, as whoever begins an effect of this lane: in another order two of them might wait for each other.
    store::effects::lock_lane(&mut tx, &effect.remote, effect.repo.installation).await?;
    let now = app.clock.now();
    match result {
        Ok(remote) => made(app, &mut tx, effect, &remote).await?,
        Err(error) => {
            let text = error.to_string();
            match error.retry() {
                Retry::Reconcile => {
                    tracing::warn!(error = text, "unclear reply");
                    store::effects::ambiguous(&mut tx, effect, &text, now + Duration::seconds(1)).await?;
                }
                Retry::After(_) if matches!(error, RemoteError::Unfinished { .. }) => {
                    store::effects::again(&mut tx, effect, &text, now).await?;
                }
                Retry::After(wait) if effect.tries < MAX_TRIES => {
                    let wait = Duration::from_std(wait).unwrap_or(Duration::minutes(1));
                    let backoff = Duration::seconds(1 << effect.tries.clamp(0, 8));
                    let until = now + wait.max(backoff);
                    tracing::warn!(error = text, "the effect waits");
                    if matches!(error, RemoteError::RateLimited { .. }) {
                        hold(&mut tx, effect, until, &text).await?;
                    }
                    store::effects::again(&mut tx, effect, &text, until).await?;
                }
                Retry::After(_) | Retry::Never => {
                    tracing::error!(error = text, "the effect was refused");
                    store::effects::fail(&mut tx, effect, &text).await?;
                    refused(app, &mut tx, effect, &error).await?;
                }
            }
        }
    }
    let next = if now < until { begin_next(app, &mut tx, effect).await? } else { None };
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(next)
}

async fn hold(tx: &mut Tx, effect: &Effect, until: DateTime<Utc>, why: &str) -> Result<(), EngineError> {
    store::effects::hold(tx, &effect.remote, effect.repo.installation, until, why).await?;
    Ok(())
}

/// It was obeyed. Usually that confirms the effect; a process that was paused meanwhile may have been overtaken.
async fn made(app: &App, tx: &mut Tx, effect: &Effect, remote: &RemoteRef) -> Result<(), EngineError> {
    let current = store::effects::get_tx(tx, &effect.id).await?;
    let known = current.as_ref().and_then(|current| current.remote_ref.clone());
    if effect.remote_ref.is_none()
        && let Some(known) = known.filter(|known| known.id != remote.id)
        && let Some(twin) = effect.payload.twin(remote, &known)
    {
        tracing::warn!(remote.id = %remote.id, kept = %known.id, "made twice: this one is taken away");
        remove(app, tx, effect, twin).await?;
        return Ok(());
    }
    store::effects::confirm(tx, &effect.id, effect.revision, remote, app.clock.now()).await?;
    if current.is_some_and(|current| current.intent_at != effect.intent_at) {
        // Another process sent it since. Whose text the forge got last is not known: the newest goes once more.
        store::effects::resend(tx, &effect.id).await?;
    }
    confirmed(app, tx, effect, remote).await
}

/// Plans the removal of a second one.
async fn remove(app: &App, tx: &mut Tx, effect: &Effect, twin: Twin) -> Result<(), EngineError> {
    let payload = Payload::Remove(twin);
    let id = match &payload {
        Payload::Remove(Twin::Comment { id, .. } | Twin::Check { id } | Twin::Review { id, .. }) => {
            id.to_string()
        }
        Payload::Remove(Twin::Issue { number, .. }) => number.to_string(),
        Payload::Remove(Twin::Note { id, .. }) => id.clone(),
        _ => return Ok(()),
    };
    let key = format!("{}:{}:{}:{id}", payload.kind(), effect.remote, effect.repo.id);
    let owner = Owner {
        run: effect.run.as_ref(),
        task: effect.task.as_ref(),
        remote: &effect.remote,
        repo: &effect.repo,
    };
    report::put(app, tx, &owner, key, EffectPriority::Check, payload).await?;
    Ok(())
}

/// Looks again for what was made again because a list lagged: whatever carries the same mark and is not the one that
/// we hold is taken away.
pub async fn twins(app: &App) -> Result<(), EngineError> {
    let now = app.clock.now();
    for (effect, looks) in store::effects::watched(&app.store, now, TWINS_AT_ONCE).await? {
        let at = usize::try_from(looks).unwrap_or(usize::MAX);
        let next = TWIN_LOOKS.get(at).zip(TWIN_LOOKS.get(at.saturating_add(1)));
        let next = next.map(|(this, next)| now + (*next - *this));
        let found = match (&effect.remote_ref, effect.state) {
            (None, EffectState::Failed) => Some(Vec::new()),
            // Not made again yet: the other one may still be adopted.
            (None, _) => None,
            (Some(_), _) => match find_all(app, &effect).await {
                Ok(found) => Some(found),
                Err(error) => {
                    tracing::warn!(error = %error, effect.key = %effect.key, "twins cannot be looked for now");
                    None
                }
            },
        };
        let mut tx = app.store.write_tx().await?;
        if let (Some(found), Some(kept)) = (&found, &effect.remote_ref) {
            for twin in found.iter().filter(|found| found.id != kept.id) {
                if let Some(twin) = effect.payload.twin(twin, kept) {
                    tracing::warn!(effect.key = %effect.key, "a twin turned up: it is taken away");
                    remove(app, &mut tx, &effect, twin).await?;
                }
            }
        }
        match found {
            Some(_) => store::effects::looked(&mut tx, &effect.id, true, next).await?,
            None => store::effects::looked(&mut tx, &effect.id, false, Some(now + TWIN_LATER)).await?,
        }
        tx.commit().await?;
        app.wakeup.notify(Topic::Effects);
    }
    Ok(())
}

/// An effect whose sending had no clear end: look for what it made, before anything is sent again.
#[tracing::instrument(skip_all, fields(effect.key = %effect.key, kind = effect.payload.kind()))]
async fn reconcile(app: &App, effect: &Effect) -> Result<(), EngineError> {
    let now = app.clock.now();
    let how = match effect.remote_ref {
        // Editing the same thing again changes nothing.
        Some(_) => Reconcile::Repeat,
        None => effect.payload.reconcile(),
    };
    let found = match how {
        Reconcile::Repeat => None,
        Reconcile::Natural | Reconcile::Look => match find(app, effect).await {
            Ok(found) => found,
            Err(error) => return look_later(app, effect, &error).await,
        },
    };
    let mut tx = app.store.write_tx().await?;
    match (found, how) {
        (Some(remote), _) => {
            tracing::info!(remote.id = %remote.id, "found what an unclear sending had made");
            // One revision back: it exists, and is edited once more to hold the newest text.
            store::effects::confirm(&mut tx, &effect.id, effect.revision - 1, &remote, now).await?;
            confirmed(app, &mut tx, effect, &remote).await?;
        }
        (None, Reconcile::Repeat) => {
            store::effects::again(&mut tx, effect, "sent again", now).await?;
        }
        (None, Reconcile::Natural) => {
            store::effects::again(&mut tx, effect, "not found: sent again", now).await?;
        }
        (None, Reconcile::Look) if now - effect.intent_at.unwrap_or(now) >= LIST_LAG => {
            store::effects::again(&mut tx, effect, "not found: sent again", now).await?;
            store::effects::watch(&mut tx, &effect.id, now + TWIN_LOOKS[0]).await?;
        }
        (None, Reconcile::Look) => {
            store::effects::ambiguous(&mut tx, effect, "not found yet", now + LOOK_AGAIN).await?;
        }
    }
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(())
}

/// The look itself did not succeed.
async fn look_later(app: &App, effect: &Effect, error: &RemoteError) -> Result<(), EngineError> {
    let (now, text) = (app.clock.now(), error.to_string());
    let wait = match error.retry() {
        Retry::After(wait) => Duration::from_std(wait).unwrap_or(LOOK_AGAIN),
        Retry::Reconcile | Retry::Never => LOOK_AGAIN,
    };
    let until = now + wait.max(LOOK_AGAIN);
    let mut tx = app.store.write_tx().await?;
    if matches!(error, RemoteError::RateLimited { .. }) {
        hold(&mut tx, effect, until, &text).await?;
    }
    store::effects::ambiguous(&mut tx, effect, &text, until).await?;
    tx.commit().await?;
    Ok(())
}

/// What a confirmed effect leads to, in the same transaction.
async fn confirmed(app: &App, tx: &mut Tx, effect: &Effect, remote: &RemoteRef) -> Result<(), EngineError> {
    let Some(run_id) = &effect.run else { return Ok(()) };
    match &effect.payload {
        Payload::Pull(_) => {
            let Some(mut run) = store::runs::get_tx(tx, run_id).await? else { return Ok(()) };
            let number: i64 = remote.id.parse().unwrap_or(0);
            let url = remote.url.clone().unwrap_or_default();
            store::tasks::set_pull(tx, &run.task, number, &url).await?;
            if run.state == RunState::Reporting {
                run.outcome.pull_number = Some(number);
                run.outcome.pull_url = Some(url);
                run.outcome.no_draft = remote.note.is_some();
                run.outcome.notes.extend(remote.note.clone());
                run.apply(&RunInput::Done, app.clock.now())?;
                store::runs::save(tx, &run).await?;
                tracing::info!(run.id = %run.id, pull = number, "pull request is open");
                report::report(app, tx, &run, Urgency::State).await?;
                report::ask_review(app, tx, &run, number).await?;
            }
        }
        Payload::Sticky(_) if effect.remote_ref.is_none() => {
            let Some(run) = store::runs::get_tx(tx, run_id).await? else { return Ok(()) };
            point_to_sticky(app, tx, &run, remote).await?;
            fold_previous(app, tx, &run).await?;
        }
        _ => {}
    }
    Ok(())
}

/// A command in a review thread gets one short reply there that links to the sticky comment.
async fn point_to_sticky(
    app: &App,
    tx: &mut Tx,
    run: &crate::domain::run::Run,
    remote: &RemoteRef,
) -> Result<(), EngineError> {
    let Some(Surface::ReviewComment { thread, .. }) = run.spec.origin.as_ref().map(|origin| &origin.surface)
    else {
        return Ok(());
    };
    let Some(url) = &remote.url else { return Ok(()) };
    let Some(text) = wording::thread_pointer(run, url) else { return Ok(()) };
    let marker = app.signer.marker(run.id.as_str(), "thread");
    let body = format!("{text}\n\n{marker}");
    let reply = OwnComment { number: run.spec.subject.number, thread: Some(*thread), marker, body };
    report::put(
        app,
        tx,
        &Owner::of(run),
        format!("thread:{}", run.id),
        EffectPriority::Final,
        Payload::Comment(reply),
    )
    .await?;
    Ok(())
}

/// The sticky comment of the run before this one is folded away as outdated.
async fn fold_previous(app: &App, tx: &mut Tx, run: &crate::domain::run::Run) -> Result<(), EngineError> {
    let Some(previous) = &run.spec.previous else { return Ok(()) };
    let Some(old) = store::effects::by_key_tx(tx, &report::sticky_key(previous)).await? else {
        return Ok(());
    };
    let Some(node_id) = old.remote_ref.and_then(|remote| remote.node_id) else { return Ok(()) };
    let key = format!("minimise:{node_id}");
    report::put(app, tx, &Owner::of(run), key, EffectPriority::Progress, Payload::Minimise { node_id })
        .await?;
    Ok(())
}

/// What a refusal leads to: a run whose pull request was refused has failed, and says so.
async fn refused(app: &App, tx: &mut Tx, effect: &Effect, error: &RemoteError) -> Result<(), EngineError> {
    let (Payload::Pull(_), Some(run_id)) = (&effect.payload, &effect.run) else { return Ok(()) };
    let Some(mut run) = store::runs::get_tx(tx, run_id).await? else { return Ok(()) };
    if run.state != RunState::Reporting {
        return Ok(());
    }
    run.outcome.class = Some(FailureClass::Forge);
    run.outcome.step = Some(Phase::Pull);
    let why = match error {
        RemoteError::Refused { detail, .. } | RemoteError::Forbidden { detail, .. } => detail.clone(),
        other => other.to_string(),
    };
    run.outcome.reason =
        format!("The pull request could not be opened: {}.", crate::domain::sanitize::one_line(&why, 300));
    run.apply(&RunInput::Failed, app.clock.now())?;
    store::runs::save(tx, &run).await?;
    report::report(app, tx, &run, Urgency::State).await?;
    Ok(())
}
