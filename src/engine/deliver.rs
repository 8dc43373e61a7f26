//! Sends effects: intent first, in order, one at a time per installation, under the rate governor;
//! after an unclear reply it looks before it sends again.

use super::EngineError;
use super::report::{self, Owner, Urgency};
use crate::app::App;
use crate::domain::effect::{Effect, EffectPriority, EffectState, OwnComment, Payload, RemoteRef};
use crate::domain::event::Surface;
use crate::domain::run::{FailureClass, Phase, RunInput, RunState};
use crate::domain::wording;
use crate::queue::Topic;
use crate::remote::{RemoteError, Retry};
use crate::store::{self, Tx};
use chrono::{DateTime, Duration, Utc};
use futures_util::future::try_join_all;

/// An effect that was refused this often for reasons that may pass is given up.
const MAX_TRIES: i64 = 40;

/// Lists of the forge may lag behind its writes: only when a thing was not to be found for this long
/// after its sending is it made again.
const LIST_LAG: Duration = Duration::seconds(45);

/// Between two looks for an ambiguous effect.
const LOOK_AGAIN: Duration = Duration::seconds(5);

/// The part of the minute's and hour's writes that progress texts may use: the rest is for what matters.
const PROGRESS_SHARE: f64 = 0.7;

/// What one tick did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticked {
    pub sent: usize,
    /// When to look again, if nothing wakes us earlier.
    pub next: Option<DateTime<Utc>>,
}

/// Handles at most one effect of each lane (remote and installation), lanes side by side.
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
    let Some(effect) = store::effects::next_of_lane(&app.store, remote, installation, now).await? else {
        return Ok(Lane::BlockedUntil(now + Duration::seconds(1)));
    };
    match effect.state {
        EffectState::Ambiguous | EffectState::Sending => {
            reconcile(app, &effect).await?;
            Ok(Lane::Worked)
        }
        EffectState::Planned => match may_write(app, &effect, now).await? {
            Some(until) => Ok(Lane::BlockedUntil(until)),
            None => {
                send(app, &effect).await?;
                Ok(Lane::Worked)
            }
        },
        EffectState::Confirmed | EffectState::Failed => Ok(Lane::Worked),
    }
}

/// The governor: `None` when a content write may be sent now, else when to ask again.
async fn may_write(
    app: &App,
    effect: &Effect,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, EngineError> {
    let limits = &app.config.limits;
    let installation = effect.repo.installation;
    let writes =
        store::effects::writes_since(&app.store, &effect.remote, installation, now - Duration::hours(1))
            .await?;
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

#[tracing::instrument(skip_all, fields(effect.key = %effect.key, kind = effect.payload.kind(), repo = %effect.repo.name))]
async fn send(app: &App, effect: &Effect) -> Result<(), EngineError> {
    let now = app.clock.now();
    let mut tx = app.store.write_tx().await?;
    if !store::effects::sending(&mut tx, &effect.id, effect.revision, now).await? {
        return Ok(());
    }
    store::effects::record_write(&mut tx, &effect.remote, effect.repo.installation, now).await?;
    tx.commit().await?;
    let result = match masked(app, effect) {
        Some(masked) => app.forge.apply(&masked).await,
        None => app.forge.apply(effect).await,
    };
    settle(app, effect, result).await
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

/// Records what came of sending.
async fn settle(
    app: &App,
    effect: &Effect,
    result: Result<RemoteRef, RemoteError>,
) -> Result<(), EngineError> {
    let now = app.clock.now();
    let mut tx = app.store.write_tx().await?;
    match result {
        Ok(remote) => {
            store::effects::confirm(&mut tx, &effect.id, effect.revision, &remote, now).await?;
            confirmed(app, &mut tx, effect, &remote).await?;
        }
        Err(error) => {
            let text = error.to_string();
            let tries = effect.tries + 1;
            match error.retry() {
                Retry::Reconcile => {
                    tracing::warn!(error = text, "unclear reply");
                    store::effects::ambiguous(&mut tx, &effect.id, &text, now + Duration::seconds(1)).await?;
                }
                Retry::After(wait) if tries < MAX_TRIES => {
                    let wait = Duration::from_std(wait).unwrap_or(Duration::minutes(1));
                    let backoff = Duration::seconds(1 << tries.clamp(0, 8));
                    tracing::warn!(error = text, "the effect waits");
                    if matches!(error, RemoteError::RateLimited { .. }) {
                        let installation = effect.repo.installation;
                        store::effects::hold(&mut tx, &effect.remote, installation, now + wait, &text)
                            .await?;
                        store::effects::again(&mut tx, &effect.id, &text, now + wait).await?;
                    } else {
                        store::effects::again(&mut tx, &effect.id, &text, now + wait.max(backoff)).await?;
                    }
                }
                Retry::After(_) | Retry::Never => {
                    tracing::error!(error = text, "the effect was refused");
                    store::effects::fail(&mut tx, &effect.id, &text).await?;
                    refused(app, &mut tx, effect, &error).await?;
                }
            }
        }
    }
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(())
}

/// An effect whose sending had no clear end: look for what it made, before anything is sent again.
#[tracing::instrument(skip_all, fields(effect.key = %effect.key, kind = effect.payload.kind()))]
async fn reconcile(app: &App, effect: &Effect) -> Result<(), EngineError> {
    let now = app.clock.now();
    let sets_a_value = matches!(effect.payload, Payload::Reaction { .. } | Payload::Minimise { .. });
    let found = if sets_a_value || effect.remote_ref.is_some() {
        // Repeating it, or editing the same thing again, changes nothing.
        None
    } else {
        match app.forge.find(effect).await {
            Ok(found) => found,
            Err(error) => {
                let wait = match error.retry() {
                    Retry::After(wait) => Duration::from_std(wait).unwrap_or(LOOK_AGAIN),
                    Retry::Reconcile | Retry::Never => LOOK_AGAIN,
                };
                let mut tx = app.store.write_tx().await?;
                store::effects::ambiguous(
                    &mut tx,
                    &effect.id,
                    &error.to_string(),
                    now + wait.max(LOOK_AGAIN),
                )
                .await?;
                tx.commit().await?;
                return Ok(());
            }
        }
    };
    let mut tx = app.store.write_tx().await?;
    match found {
        Some(remote) => {
            tracing::info!(remote.id = %remote.id, "found what an unclear sending had made");
            // One revision back: it exists, and is edited once more to hold the newest text.
            store::effects::confirm(&mut tx, &effect.id, effect.revision - 1, &remote, now).await?;
            confirmed(app, &mut tx, effect, &remote).await?;
        }
        None => {
            let sent = effect.intent_at.unwrap_or(now);
            // A pull request has a natural key at the forge: a second one is refused there and adopted.
            let safe =
                sets_a_value || effect.remote_ref.is_some() || matches!(effect.payload, Payload::Pull(_));
            if safe || now - sent >= LIST_LAG {
                store::effects::again(&mut tx, &effect.id, "not found: sent again", now).await?;
            } else {
                store::effects::ambiguous(&mut tx, &effect.id, "not found yet", now + LOOK_AGAIN).await?;
            }
        }
    }
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
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
