//! The outbox and the memory of the rate governor.

use super::rows::{self, MAX_ROWS, RowReader, exclusive, json, lone_time, millis, plain, sql};
use super::{DatabaseKind, Store, StoreError, Tx};
use crate::domain::effect::{Effect, EffectPriority, EffectState, NewEffect, RemoteRef};
use crate::domain::ids::{EffectId, RunId, TaskId};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::any::AnyRow;

/// A `sending` effect whose intent is older belongs to nobody any more: longer than any request to a forge may take.
const ORPHAN_AFTER: TimeDelta = TimeDelta::seconds(120);
/// An effect whose row cannot be read is set aside for so long, so that it does not stop its lane.
const SET_ASIDE: TimeDelta = TimeDelta::minutes(10);
/// How long a content write is remembered: the longest window of a forge's rate limit.
const WRITES_KEPT: TimeDelta = TimeDelta::hours(1);

macro_rules! select {
    ($($rest:expr),+) => {
        concat!(
            "SELECT id, run, task, remote, repo, effect_key, priority, payload, revision, state, intent_at, sender, \
             not_before, looks, remote_ref, tries, last_error, created_at FROM effects ",
            $($rest),+
        )
    };
}

/// To be sent or reconciled at `$1` (`$2`: intents up to then are orphaned); branches are pushed by their runs.
macro_rules! due {
    () => {
        "kind <> 'branch' AND state IN ('planned', 'sending', 'ambiguous') AND not_before <= $1 \
         AND (state <> 'sending' OR intent_at IS NULL OR intent_at <= $2)"
    };
}

/// The next due effect of the lane `$3`, `$4`, at `$1` and `$2` as in `due!`.
fn select_next() -> &'static str {
    select!(
        "WHERE ",
        due!(),
        " AND remote = $3 AND installation = $4 \
         ORDER BY CASE WHEN state = 'planned' THEN 1 ELSE 0 END, priority, created_at, id LIMIT 1"
    )
}

fn read_effect(row: &AnyRow) -> Result<Effect, StoreError> {
    let row = RowReader::new(row, "effects", "id");
    let priority = row.integer("priority")?;
    Ok(Effect {
        id: EffectId::new(row.text("id")?),
        run: row.text_or_null("run")?.map(RunId::new),
        task: row.text_or_null("task")?.map(TaskId::new),
        remote: row.text("remote")?,
        repo: row.json("repo")?,
        key: row.text("effect_key")?,
        priority: EffectPriority::from_i64(priority)
            .ok_or_else(|| row.bad("priority", format!("{priority} is no priority")))?,
        payload: row.json("payload")?,
        revision: row.integer("revision")?,
        state: row.word("state", EffectState::parse)?,
        intent_at: row.time_or_null("intent_at")?,
        sender: row.text_or_null("sender")?,
        not_before: row.time_or_zero("not_before")?,
        remote_ref: row.json_or_null("remote_ref")?,
        tries: row.integer("tries")?,
        last_error: row.text_or_null("last_error")?,
        created_at: row.time("created_at")?,
    })
}

/// Stores an effect; with a known key: replaces payload, priority and not_before, counts the revision up and plans it
/// again (keeping `remote_ref`; a `sending` or `ambiguous` one keeps its state and is sent again after it is resolved),
/// unless the payload is equal: then nothing changes. Tries of what was confirmed or failed before do not count.
pub async fn put(
    tx: &mut Tx,
    id: &EffectId,
    effect: &NewEffect,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    const OPERATION: &str = "store an effect";
    sqlx::query(
        "INSERT INTO effects (id, run, task, remote, installation, repo_id, repo, kind, effect_key, priority, \
         payload, revision, state, not_before, tries, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 1, 'planned', $12, 0, $13) \
         ON CONFLICT (effect_key) DO UPDATE SET run = excluded.run, task = excluded.task, \
         remote = excluded.remote, installation = excluded.installation, repo_id = excluded.repo_id, \
         repo = excluded.repo, kind = excluded.kind, priority = excluded.priority, payload = excluded.payload, \
         not_before = excluded.not_before, revision = effects.revision + 1, \
         tries = CASE WHEN effects.state IN ('confirmed', 'failed') THEN 0 ELSE effects.tries END, \
         last_error = CASE WHEN effects.state IN ('confirmed', 'failed') THEN NULL ELSE effects.last_error END, \
         state = CASE WHEN effects.state IN ('sending', 'ambiguous') THEN effects.state ELSE 'planned' END \
         WHERE effects.payload <> excluded.payload",
    )
    .bind(id.as_str())
    .bind(effect.run.as_ref().map(RunId::as_str))
    .bind(effect.task.as_ref().map(TaskId::as_str))
    .bind(&effect.remote)
    .bind(effect.repo.installation)
    .bind(effect.repo.id)
    .bind(json(OPERATION, &effect.repo)?)
    .bind(effect.payload.kind())
    .bind(&effect.key)
    .bind(effect.priority.as_i64())
    .bind(json(OPERATION, &effect.payload)?)
    .bind(effect.not_before.map_or(0, millis))
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql(OPERATION))?;
    Ok(())
}

/// By its id.
pub async fn get(store: &Store, id: &EffectId) -> Result<Option<Effect>, StoreError> {
    let row = sqlx::query(select!("WHERE id = $1"))
        .bind(id.as_str())
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read an effect"))?;
    row.as_ref().map(read_effect).transpose()
}

/// As `get`; nobody else can write the effect until the transaction ends.
pub async fn get_tx(tx: &mut Tx, id: &EffectId) -> Result<Option<Effect>, StoreError> {
    let text = match tx.kind {
        DatabaseKind::Sqlite => select!("WHERE id = $1"),
        DatabaseKind::Postgres => select!("WHERE id = $1 FOR UPDATE"),
    };
    let row = sqlx::query(text)
        .bind(id.as_str())
        .fetch_optional(&mut *tx.inner)
        .await
        .map_err(sql("read an effect"))?;
    row.as_ref().map(read_effect).transpose()
}

/// By its natural key.
pub async fn by_key(store: &Store, key: &str) -> Result<Option<Effect>, StoreError> {
    let row = sqlx::query(select!("WHERE effect_key = $1"))
        .bind(key)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read an effect"))?;
    row.as_ref().map(read_effect).transpose()
}

/// As `by_key`; nobody else can write the effect until the transaction ends.
pub async fn by_key_tx(tx: &mut Tx, key: &str) -> Result<Option<Effect>, StoreError> {
    let text = match tx.kind {
        DatabaseKind::Sqlite => select!("WHERE effect_key = $1"),
        DatabaseKind::Postgres => select!("WHERE effect_key = $1 FOR UPDATE"),
    };
    let row =
        sqlx::query(text).bind(key).fetch_optional(&mut *tx.inner).await.map_err(sql("read an effect"))?;
    row.as_ref().map(read_effect).transpose()
}

/// Oldest first.
pub async fn of_run(store: &Store, run: &RunId) -> Result<Vec<Effect>, StoreError> {
    let rows = sqlx::query(select!("WHERE run = $1 ORDER BY created_at, id LIMIT $2"))
        .bind(run.as_str())
        .bind(MAX_ROWS)
        .fetch_all(&store.pool)
        .await
        .map_err(sql("list the effects of a run"))?;
    rows.iter().map(read_effect).collect()
}

/// (remote, installation) pairs with effects to send or reconcile that are due, except kind `branch`.
pub async fn due_lanes(store: &Store, now: DateTime<Utc>) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = sqlx::query(concat!(
        "SELECT DISTINCT remote, installation FROM effects WHERE ",
        due!(),
        " ORDER BY remote, installation LIMIT $3"
    ))
    .bind(millis(now))
    .bind(millis(now - ORPHAN_AFTER))
    .bind(MAX_ROWS)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list the installations with due effects"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "effects", "remote");
            Ok((row.text("remote")?, row.integer("installation")?))
        })
        .collect()
}

/// The next due effect of a lane: `ambiguous` and orphaned `sending` before `planned`, then priority, then age; never
/// kind `branch`. A `sending` effect is orphaned two minutes after its intent. One that cannot be read is an error once
/// and then set aside for ten minutes.
pub async fn next_of_lane(
    store: &Store,
    remote: &str,
    installation: i64,
    now: DateTime<Utc>,
) -> Result<Option<Effect>, StoreError> {
    let row = next_row(&store.pool, remote, installation, now).await?;
    let Some(row) = row else { return Ok(None) };
    match read_effect(&row) {
        Err(error @ StoreError::BadRow { .. }) => {
            let id = EffectId::new(RowReader::new(&row, "effects", "id").text("id")?);
            let mut tx = store.write_tx().await?;
            sqlx::query("UPDATE effects SET not_before = $2, last_error = $3 WHERE id = $1")
                .bind(id.as_str())
                .bind(millis(now + SET_ASIDE))
                .bind(plain(&error.to_string()).as_ref())
                .execute(&mut *tx.inner)
                .await
                .map_err(sql("set an effect aside"))?;
            tx.commit().await?;
            Err(error)
        }
        read => read.map(Some),
    }
}

async fn next_row<'e>(
    executor: impl sqlx::Executor<'e, Database = sqlx::Any>,
    remote: &str,
    installation: i64,
    now: DateTime<Utc>,
) -> Result<Option<AnyRow>, StoreError> {
    sqlx::query(select_next())
        .bind(millis(now))
        .bind(millis(now - ORPHAN_AFTER))
        .bind(remote)
        .bind(installation)
        .fetch_optional(executor)
        .await
        .map_err(sql("find the next effect"))
}

/// As `next_of_lane`, within a transaction, which a row that cannot be read does not end: `None` then.
pub async fn next_of_lane_tx(
    tx: &mut Tx,
    remote: &str,
    installation: i64,
    now: DateTime<Utc>,
) -> Result<Option<Effect>, StoreError> {
    let row = next_row(&mut *tx.inner, remote, installation, now).await?;
    Ok(row.and_then(|row| read_effect(&row).ok()))
}

/// Commits the intent: `planned → sending` by `sender`, counts a try. False when it was not `planned` at this revision.
pub async fn sending(
    tx: &mut Tx,
    id: &EffectId,
    revision: i64,
    sender: &str,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE effects SET state = 'sending', intent_at = $3, sender = $4, tries = tries + 1 \
         WHERE id = $1 AND revision = $2 AND state = 'planned'",
    )
    .bind(id.as_str())
    .bind(revision)
    .bind(millis(now))
    .bind(sender)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("commit an intent"))?;
    Ok(done.rows_affected() == 1)
}

/// `confirmed` with its remote name; stays `planned` (with the name) when a newer revision came meanwhile.
pub async fn confirm(
    tx: &mut Tx,
    id: &EffectId,
    revision: i64,
    remote: &RemoteRef,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    const OPERATION: &str = "confirm an effect";
    // A late confirmation of an older revision does not undo what became of the newer one.
    sqlx::query(
        "UPDATE effects SET remote_ref = $3, confirmed_at = $4, last_error = NULL, \
         tries = CASE WHEN revision = $2 OR state IN ('confirmed', 'failed') THEN tries ELSE 0 END, \
         state = CASE WHEN revision = $2 THEN 'confirmed' \
         WHEN state IN ('confirmed', 'failed') THEN state ELSE 'planned' END WHERE id = $1",
    )
    .bind(id.as_str())
    .bind(revision)
    .bind(json(OPERATION, remote)?)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql(OPERATION))?;
    Ok(())
}

/// Nobody knows whether it was carried out: it is looked for, not before a time.
///
/// This and the next two change nothing once the effect is confirmed or failed, nor when it was sent again since it was
/// read: a process that was paused does not undo what another one did meanwhile.
pub async fn ambiguous(
    tx: &mut Tx,
    effect: &Effect,
    error: &str,
    not_before: DateTime<Utc>,
) -> Result<(), StoreError> {
    unsettled(tx, effect, EffectState::Ambiguous, error, Some(not_before)).await
}

/// Back to `planned`, not before a time.
pub async fn again(
    tx: &mut Tx,
    effect: &Effect,
    error: &str,
    not_before: DateTime<Utc>,
) -> Result<(), StoreError> {
    unsettled(tx, effect, EffectState::Planned, error, Some(not_before)).await
}

/// The other side said no, for good.
pub async fn fail(tx: &mut Tx, effect: &Effect, error: &str) -> Result<(), StoreError> {
    unsettled(tx, effect, EffectState::Failed, error, None).await
}

async fn unsettled(
    tx: &mut Tx,
    effect: &Effect,
    state: EffectState,
    error: &str,
    not_before: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE effects SET state = $2, last_error = $3, not_before = COALESCE($4, not_before) \
         WHERE id = $1 AND state NOT IN ('confirmed', 'failed') AND COALESCE(intent_at, 0) = $5",
    )
    .bind(effect.id.as_str())
    .bind(state.as_str())
    .bind(plain(error).as_ref())
    .bind(not_before.map(millis))
    .bind(effect.intent_at.map_or(0, millis))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("record what came of an effect"))?;
    Ok(())
}

/// Effects left `sending` by earlier boots of this node become `ambiguous`, and those of other nodes whose
/// intent is too old to be under way still (except kind `branch`, which its run re-checks). A sender is `NODE:BOOT`;
/// without a node every other boot is an earlier one. Asked every few seconds: the statement names all open states, so that
/// the index of the open ones serves it.
pub async fn orphaned_to_ambiguous(
    tx: &mut Tx,
    keep_sender: &str,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let node = keep_sender.rsplit_once(':').map_or(String::new(), |(node, _)| format!("{node}:"));
    let done = sqlx::query(
        "UPDATE effects SET state = 'ambiguous', not_before = $1, \
         last_error = 'the process ended before the answer came' WHERE state = 'sending' \
         AND state IN ('planned', 'sending', 'ambiguous') AND kind <> 'branch' \
         AND (intent_at <= $4 OR (sender <> $2 AND ($3 = '' OR SUBSTR(sender, 1, LENGTH($3)) = $3)))",
    )
    .bind(millis(now))
    .bind(keep_sender)
    .bind(node)
    .bind(millis(now - ORPHAN_AFTER))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("mark orphaned effects"))?;
    Ok(done.rows_affected())
}

/// The newest revision goes once more: somebody else may have sent an older one after it.
pub async fn resend(tx: &mut Tx, id: &EffectId) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE effects SET revision = revision + 1, \
         state = CASE WHEN state = 'confirmed' THEN 'planned' ELSE state END WHERE id = $1",
    )
    .bind(id.as_str())
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("send an effect once more"))?;
    Ok(())
}

/// It was not to be found and is made again: what was made first may still turn up. It is looked for at `at`.
pub async fn watch(tx: &mut Tx, id: &EffectId, at: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query("UPDATE effects SET look_at = $2, looks = 0 WHERE id = $1")
        .bind(id.as_str())
        .bind(millis(at))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("plan a look for a twin"))?;
    Ok(())
}

/// Effects whose twins are to be looked for by now, with the number of looks so far; the longest due first.
pub async fn watched(
    store: &Store,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<(Effect, i64)>, StoreError> {
    let rows = sqlx::query(select!("WHERE look_at > 0 AND look_at <= $1 ORDER BY look_at, id LIMIT $2"))
        .bind(millis(now))
        .bind(limit)
        .fetch_all(&store.pool)
        .await
        .map_err(sql("list effects that may have a twin"))?;
    rows.iter()
        .map(|row| Ok((read_effect(row)?, RowReader::new(row, "effects", "id").integer("looks")?)))
        .collect()
}

/// One look is done (or put off, when `counts` is false); the next one is at `next`, if any.
pub async fn looked(
    tx: &mut Tx,
    id: &EffectId,
    counts: bool,
    next: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE effects SET look_at = $2, looks = looks + $3 WHERE id = $1")
        .bind(id.as_str())
        .bind(next.map_or(0, millis))
        .bind(i64::from(counts))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("record a look for a twin"))?;
    Ok(())
}

/// Nobody else decides about writes to this installation until the transaction ends.
pub async fn lock_lane(tx: &mut Tx, remote: &str, installation: i64) -> Result<(), StoreError> {
    exclusive(tx, &format!("lane:{remote}:{installation}")).await
}

/// When the next effect is due, except kind `branch`.
pub async fn next_due(store: &Store) -> Result<Option<DateTime<Utc>>, StoreError> {
    let row = sqlx::query(
        "SELECT MIN(CASE WHEN state = 'sending' AND COALESCE(intent_at, 0) + $1 > not_before \
         THEN COALESCE(intent_at, 0) + $1 \
         WHEN not_before > created_at THEN not_before ELSE created_at END) AS at FROM effects \
         WHERE kind <> 'branch' AND state IN ('planned', 'sending', 'ambiguous')",
    )
    .bind(ORPHAN_AFTER.num_milliseconds())
    .fetch_one(&store.pool)
    .await
    .map_err(sql("find when the next effect is due"))?;
    lone_time(&row, "effects")
}

/// Not confirmed and not failed.
pub async fn open_count(store: &Store) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS n, '' AS id FROM effects WHERE state IN ('planned', 'sending', 'ambiguous')",
    )
    .fetch_one(&store.pool)
    .await
    .map_err(sql("count open effects"))?;
    RowReader::new(&row, "effects", "id").integer("n")
}

/// Number of effects per state.
pub async fn counts(store: &Store) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = sqlx::query("SELECT state AS word, COUNT(*) AS n FROM effects GROUP BY state ORDER BY state")
        .fetch_all(&store.pool)
        .await
        .map_err(sql("count effects"))?;
    rows::counts(&rows, "effects")
}

/// Remembers one content write (and forgets those older than an hour).
pub async fn record_write(
    tx: &mut Tx,
    remote: &str,
    installation: i64,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM writes WHERE remote = $1 AND installation = $2 AND at < $3")
        .bind(remote)
        .bind(installation)
        .bind(millis(now - WRITES_KEPT))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("forget old writes"))?;
    sqlx::query("INSERT INTO writes (remote, installation, at) VALUES ($1, $2, $3)")
        .bind(remote)
        .bind(installation)
        .bind(millis(now))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("remember a write"))?;
    Ok(())
}

/// Times of the content writes since `since`, oldest first; exact below `lock_lane`.
pub async fn writes_since(
    tx: &mut Tx,
    remote: &str,
    installation: i64,
    since: DateTime<Utc>,
) -> Result<Vec<DateTime<Utc>>, StoreError> {
    let rows = sqlx::query(
        "SELECT remote, at FROM writes WHERE remote = $1 AND installation = $2 AND at >= $3 ORDER BY at",
    )
    .bind(remote)
    .bind(installation)
    .bind(millis(since))
    .fetch_all(&mut *tx.inner)
    .await
    .map_err(sql("list recent writes"))?;
    rows.iter().map(|row| RowReader::new(row, "writes", "remote").time("at")).collect()
}

/// Nothing is sent to this installation until then. A shorter hold does not end a longer one.
pub async fn hold(
    tx: &mut Tx,
    remote: &str,
    installation: i64,
    until: DateTime<Utc>,
    reason: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO holds (remote, installation, until, reason) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (remote, installation) DO UPDATE SET until = excluded.until, reason = excluded.reason \
         WHERE holds.until < excluded.until",
    )
    .bind(remote)
    .bind(installation)
    .bind(millis(until))
    .bind(plain(reason).as_ref())
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("hold an installation"))?;
    Ok(())
}

const HELD_UNTIL: &str = "SELECT remote, until FROM holds WHERE remote = $1 AND installation = $2";

fn read_hold(row: Option<AnyRow>) -> Result<Option<DateTime<Utc>>, StoreError> {
    row.map(|row| RowReader::new(&row, "holds", "remote").time("until")).transpose()
}

/// The end of the last hold, also when it is over.
pub async fn held_until(
    store: &Store,
    remote: &str,
    installation: i64,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let query = sqlx::query(HELD_UNTIL).bind(remote).bind(installation);
    read_hold(query.fetch_optional(&store.pool).await.map_err(sql("read a hold"))?)
}

/// As `held_until`; exact below `lock_lane`.
pub async fn held_until_tx(
    tx: &mut Tx,
    remote: &str,
    installation: i64,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let query = sqlx::query(HELD_UNTIL).bind(remote).bind(installation);
    read_hold(query.fetch_optional(&mut *tx.inner).await.map_err(sql("read a hold"))?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, comment, each_database, repo};
    use super::*;
    use crate::domain::effect::{BranchPush, Payload};
    use crate::domain::event::Repo;
    use crate::domain::ids::{BranchName, Sha};

    const KEY: &str = "run/sticky";
    const BOOT: &str = "a:1";

    fn id() -> EffectId {
        EffectId::new("effect")
    }

    fn remote() -> RemoteRef {
        RemoteRef { id: "77".to_owned(), node_id: Some("node".to_owned()), url: None, note: None }
    }

    /// Does one thing in a transaction of its own.
    macro_rules! commit {
        ($store:expr, $function:ident $(, $argument:expr)*) => {{
            let mut tx = $store.write_tx().await.unwrap();
            let result = $function(&mut tx $(, $argument)*).await.unwrap();
            tx.commit().await.unwrap();
            result
        }};
    }

    async fn now(store: &Store) -> Effect {
        get(store, &id()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn an_effect_is_planned_sent_and_confirmed() {
        each_database(async |database| {
            let store = &database.store;
            let new = NewEffect { not_before: Some(at(5)), ..comment(KEY, "one") };
            commit!(store, put, &id(), &new, at(0));
            let planned = now(store).await;
            assert_eq!(
                planned,
                Effect {
                    id: id(),
                    run: new.run.clone(),
                    task: None,
                    remote: new.remote.clone(),
                    repo: new.repo.clone(),
                    key: KEY.to_owned(),
                    priority: new.priority,
                    payload: new.payload.clone(),
                    revision: 1,
                    state: EffectState::Planned,
                    intent_at: None,
                    sender: None,
                    not_before: Some(at(5)),
                    remote_ref: None,
                    tries: 0,
                    last_error: None,
                    created_at: at(0),
                }
            );
            assert_eq!(by_key(store, KEY).await.unwrap().as_ref(), Some(&planned));
            assert_eq!(of_run(store, &RunId::new("run")).await.unwrap(), [planned]);
            assert_eq!(next_due(store).await.unwrap(), Some(at(5)));
            assert_eq!(open_count(store).await.unwrap(), 1);

            assert!(!commit!(store, sending, &id(), 2, BOOT, at(6)));
            assert!(commit!(store, sending, &id(), 1, BOOT, at(6)));
            assert!(!commit!(store, sending, &id(), 1, "b:1", at(7)));
            let sent = now(store).await;
            assert_eq!(sent.sender.as_deref(), Some(BOOT));
            assert_eq!((sent.state, sent.intent_at, sent.tries), (EffectState::Sending, Some(at(6)), 1));

            commit!(store, confirm, &id(), 1, &remote(), at(8));
            let confirmed = now(store).await;
            assert_eq!((confirmed.state, confirmed.remote_ref), (EffectState::Confirmed, Some(remote())));
            assert_eq!(next_due(store).await.unwrap(), None);
            assert_eq!(open_count(store).await.unwrap(), 0);
            assert_eq!(counts(store).await.unwrap(), [("confirmed".to_owned(), 1)]);
            assert_eq!(by_key(store, "none").await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test]
    async fn putting_a_known_key_plans_it_again_unless_nothing_changed() {
        // State before, is the payload equal, state after, revision after.
        let cases = [
            (EffectState::Planned, true, EffectState::Planned, 1),
            (EffectState::Planned, false, EffectState::Planned, 2),
            (EffectState::Sending, true, EffectState::Sending, 1),
            (EffectState::Sending, false, EffectState::Sending, 2),
            (EffectState::Ambiguous, true, EffectState::Ambiguous, 1),
            (EffectState::Ambiguous, false, EffectState::Ambiguous, 2),
            (EffectState::Confirmed, true, EffectState::Confirmed, 1),
            (EffectState::Confirmed, false, EffectState::Planned, 2),
            (EffectState::Failed, true, EffectState::Failed, 1),
            (EffectState::Failed, false, EffectState::Planned, 2),
        ];
        each_database(async |database| {
            let store = &database.store;
            for (before, equal, after, revision) in cases {
                let mut tx = store.write_tx().await.unwrap();
                sqlx::query("DELETE FROM effects").execute(&mut *tx.inner).await.unwrap();
                put(&mut tx, &id(), &comment(KEY, "one"), at(0)).await.unwrap();
                sqlx::query("UPDATE effects SET state = $1, tries = 3, last_error = 'why', remote_ref = $2")
                    .bind(before.as_str())
                    .bind(serde_json::to_string(&remote()).unwrap())
                    .execute(&mut *tx.inner)
                    .await
                    .unwrap();
                let text = if equal { "one" } else { "two" };
                let new = NewEffect {
                    priority: EffectPriority::Final,
                    not_before: Some(at(9)),
                    ..comment(KEY, text)
                };
                put(&mut tx, &EffectId::new("ignored"), &new, at(1)).await.unwrap();
                tx.commit().await.unwrap();
                let effect = now(store).await;
                let case = format!("{before:?} {equal}");
                assert_eq!((effect.state, effect.revision), (after, revision), "{case}");
                assert_eq!(effect.remote_ref, Some(remote()), "{case}");
                assert_eq!(effect.created_at, at(0), "{case}");
                assert_eq!(effect.payload, new.payload, "{case}");
                let changed = (EffectPriority::Final, Some(at(9)));
                let kept = (EffectPriority::Progress, None);
                assert_eq!(
                    (effect.priority, effect.not_before),
                    if equal { kept } else { changed },
                    "{case}"
                );
                let fresh = !equal && matches!(before, EffectState::Confirmed | EffectState::Failed);
                assert_eq!(effect.tries, if fresh { 0 } else { 3 }, "{case}");
                assert_eq!(effect.last_error.is_none(), fresh, "{case}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn confirming_an_older_revision_leaves_the_newer_one_planned() {
        each_database(async |database| {
            let store = &database.store;
            for unclear in [false, true] {
                let mut tx = store.write_tx().await.unwrap();
                sqlx::query("DELETE FROM effects").execute(&mut *tx.inner).await.unwrap();
                for text in ["one", "two", "three"] {
                    put(&mut tx, &id(), &comment(KEY, text), at(0)).await.unwrap();
                }
                assert!(sending(&mut tx, &id(), 3, BOOT, at(1)).await.unwrap());
                if unclear {
                    let sent = get_tx(&mut tx, &id()).await.unwrap().unwrap();
                    ambiguous(&mut tx, &sent, "timeout", at(2)).await.unwrap();
                }
                put(&mut tx, &id(), &comment(KEY, "four"), at(2)).await.unwrap();
                tx.commit().await.unwrap();
                let state = if unclear { EffectState::Ambiguous } else { EffectState::Sending };
                assert_eq!((now(store).await.state, now(store).await.revision), (state, 4));

                commit!(store, confirm, &id(), 3, &remote(), at(3));
                let effect = now(store).await;
                assert_eq!((effect.state, effect.tries), (EffectState::Planned, 0));
                assert_eq!(effect.remote_ref, Some(remote()));
                assert_eq!(effect.payload, comment(KEY, "four").payload);

                assert!(commit!(store, sending, &id(), 4, BOOT, at(4)));
                commit!(store, confirm, &id(), 4, &remote(), at(5));
                assert_eq!(now(store).await.state, EffectState::Confirmed);
                // A reply to the older revision that comes last does not send the newer one again.
                commit!(store, confirm, &id(), 3, &remote(), at(6));
                assert_eq!(now(store).await.state, EffectState::Confirmed);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_confirmed_or_failed_stays_so() {
        each_database(async |database| {
            let store = &database.store;
            commit!(store, put, &id(), &comment(KEY, "one"), at(0));
            commit!(store, again, &now(store).await, "busy\0", at(4));
            let effect = now(store).await;
            assert_eq!((effect.state, effect.not_before), (EffectState::Planned, Some(at(4))));
            assert_eq!(effect.last_error.as_deref(), Some("busy\u{fffd}"));
            commit!(store, confirm, &id(), 1, &remote(), at(5));
            commit!(store, again, &effect, "late", at(6));
            commit!(store, ambiguous, &effect, "late", at(6));
            commit!(store, fail, &effect, "late");
            let effect = now(store).await;
            assert_eq!((effect.state, effect.last_error), (EffectState::Confirmed, None));

            commit!(store, put, &id(), &comment(KEY, "two"), at(7));
            let effect = now(store).await;
            commit!(store, fail, &effect, "gone");
            commit!(store, again, &effect, "late", at(8));
            commit!(store, ambiguous, &effect, "late", at(8));
            let effect = now(store).await;
            assert_eq!((effect.state, effect.last_error.as_deref()), (EffectState::Failed, Some("gone")));
        })
        .await;
    }

    #[tokio::test]
    async fn what_came_of_an_earlier_sending_does_not_undo_a_later_one() {
        each_database(async |database| {
            let store = &database.store;
            commit!(store, put, &id(), &comment(KEY, "one"), at(0));
            assert!(commit!(store, sending, &id(), 1, BOOT, at(1)));
            let paused = now(store).await;
            commit!(store, ambiguous, &paused, "orphaned", at(121));
            commit!(store, again, &paused, "not found", at(121));
            assert!(commit!(store, sending, &id(), 1, "b:1", at(122)));
            commit!(store, again, &paused, "late", at(500));
            commit!(store, ambiguous, &paused, "late", at(500));
            commit!(store, fail, &paused, "late");
            let effect = now(store).await;
            assert_eq!((effect.state, effect.sender.as_deref()), (EffectState::Sending, Some("b:1")));
            assert_eq!(effect.intent_at, Some(at(122)));
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_sent_once_more_stays_planned_when_an_older_sending_is_confirmed() {
        each_database(async |database| {
            let store = &database.store;
            commit!(store, put, &id(), &comment(KEY, "one"), at(0));
            assert!(commit!(store, sending, &id(), 1, BOOT, at(1)));
            commit!(store, resend, &id());
            assert_eq!((now(store).await.state, now(store).await.revision), (EffectState::Sending, 2));
            commit!(store, confirm, &id(), 1, &remote(), at(2));
            assert_eq!(now(store).await.state, EffectState::Planned);
            assert!(commit!(store, sending, &id(), 2, BOOT, at(3)));
            commit!(store, confirm, &id(), 2, &remote(), at(4));
            assert_eq!(now(store).await.state, EffectState::Confirmed);
            commit!(store, resend, &id());
            assert_eq!((now(store).await.state, now(store).await.revision), (EffectState::Planned, 3));
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_made_again_is_looked_at_until_nothing_more_can_turn_up() {
        each_database(async |database| {
            let store = &database.store;
            commit!(store, put, &id(), &comment(KEY, "one"), at(0));
            assert!(watched(store, at(1_000), 9).await.unwrap().is_empty());
            commit!(store, watch, &id(), at(120));
            assert!(watched(store, at(119), 9).await.unwrap().is_empty());
            let looks = async |seconds| {
                let found = watched(store, at(seconds), 9).await.unwrap();
                found.into_iter().map(|(effect, looks)| (effect.id, looks)).collect::<Vec<_>>()
            };
            assert_eq!(looks(120).await, [(id(), 0)]);
            commit!(store, looked, &id(), false, Some(at(180)));
            assert_eq!(looks(180).await, [(id(), 0)]);
            commit!(store, looked, &id(), true, Some(at(600)));
            assert_eq!(looks(599).await, []);
            assert_eq!(looks(600).await, [(id(), 1)]);
            commit!(store, looked, &id(), true, None);
            assert_eq!(looks(100_000).await, []);
        })
        .await;
    }

    fn branch(key: &str) -> NewEffect {
        NewEffect {
            payload: Payload::Branch(BranchPush {
                branch: BranchName::parse("zeblit/1-x-abcdef").unwrap(),
                expected: None,
                new: Sha::parse(&"b".repeat(40)).unwrap(),
            }),
            ..comment(key, "")
        }
    }

    #[tokio::test]
    async fn lanes_send_unclear_effects_first_then_by_priority_then_by_age() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            for (name, priority, seconds, not_before) in [
                ("progress", EffectPriority::Progress, 0, None),
                ("final young", EffectPriority::Final, 3, None),
                ("final old", EffectPriority::Final, 2, None),
                ("unclear", EffectPriority::Progress, 5, None),
                ("orphan", EffectPriority::Check, 6, None),
                ("later", EffectPriority::Seen, 0, Some(at(1_000))),
            ] {
                let effect = NewEffect { priority, not_before, ..comment(name, name) };
                put(&mut tx, &EffectId::new(name), &effect, at(seconds)).await.unwrap();
            }
            put(&mut tx, &EffectId::new("branch"), &branch("branch"), at(0)).await.unwrap();
            let elsewhere =
                NewEffect { repo: Repo { installation: 8, ..repo(3) }, ..comment("elsewhere", "x") };
            put(&mut tx, &EffectId::new("elsewhere"), &elsewhere, at(0)).await.unwrap();
            let local = NewEffect { remote: "local".to_owned(), ..comment("local", "x") };
            put(&mut tx, &EffectId::new("local"), &local, at(0)).await.unwrap();
            sending(&mut tx, &EffectId::new("unclear"), 1, BOOT, at(6)).await.unwrap();
            let sent = get_tx(&mut tx, &EffectId::new("unclear")).await.unwrap().unwrap();
            ambiguous(&mut tx, &sent, "timeout", at(7)).await.unwrap();
            sending(&mut tx, &EffectId::new("orphan"), 1, BOOT, at(10)).await.unwrap();
            tx.commit().await.unwrap();

            assert_eq!(
                due_lanes(store, at(20)).await.unwrap(),
                [("github".to_owned(), 7), ("github".to_owned(), 8), ("local".to_owned(), 7)]
            );
            let next = async |seconds| {
                let effect = next_of_lane(store, "github", 7, at(seconds)).await.unwrap();
                effect.map(|effect| effect.id.to_string())
            };
            // Until two minutes have passed, somebody may still be sending it.
            assert_eq!(next(20).await.as_deref(), Some("unclear"));
            let mut order = Vec::new();
            while let Some(id) = next(130).await {
                let effect = get(store, &EffectId::new(id.clone())).await.unwrap().unwrap();
                commit!(store, fail, &effect, "done");
                order.push(id);
            }
            assert_eq!(order, ["orphan", "unclear", "final old", "final young", "progress"]);
            assert_eq!(next(1_000).await.as_deref(), Some("later"));
            assert_eq!(next_of_lane(store, "github", 9, at(130)).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test]
    async fn an_effect_that_cannot_be_read_does_not_stop_its_lane() {
        each_database(async |database| {
            let store = &database.store;
            commit!(store, put, &id(), &comment(KEY, "one"), at(0));
            commit!(store, put, &EffectId::new("good"), &comment("good", "one"), at(1));
            let mut tx = store.write_tx().await.unwrap();
            sqlx::query("UPDATE effects SET payload = '{}' WHERE id = 'effect'")
                .execute(&mut *tx.inner)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            let error = next_of_lane(store, "github", 7, at(2)).await.unwrap_err().to_string();
            assert!(error.contains("effects.payload of `effect`"), "{error}");
            let next = next_of_lane(store, "github", 7, at(2)).await.unwrap().unwrap();
            assert_eq!(next.id.as_str(), "good");
            assert!(next_of_lane(store, "github", 7, at(2) + SET_ASIDE).await.is_err());
        })
        .await;
    }

    #[tokio::test]
    async fn effects_of_a_dead_process_are_reconciled_but_branches_are_left_to_their_run() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            for (name, sender, seconds) in
                [("dead", "a:1", 100), ("own", "a:2", 100), ("other node", "b:1", 100), ("old", "ab:1", 0)]
            {
                put(&mut tx, &EffectId::new(name), &comment(name, "one"), at(0)).await.unwrap();
                assert!(sending(&mut tx, &EffectId::new(name), 1, sender, at(seconds)).await.unwrap());
            }
            put(&mut tx, &EffectId::new("planned"), &comment("planned", "one"), at(0)).await.unwrap();
            put(&mut tx, &EffectId::new("branch"), &branch("branch"), at(0)).await.unwrap();
            assert!(sending(&mut tx, &EffectId::new("branch"), 1, "a:1", at(1)).await.unwrap());
            tx.commit().await.unwrap();

            let state = async |key| by_key(store, key).await.unwrap().unwrap().state;
            assert_eq!(commit!(store, orphaned_to_ambiguous, "a:2", at(121)), 2);
            for (name, wanted) in [
                ("dead", EffectState::Ambiguous),
                ("own", EffectState::Sending),
                ("other node", EffectState::Sending),
                ("old", EffectState::Ambiguous),
                ("planned", EffectState::Planned),
                ("branch", EffectState::Sending),
            ] {
                assert_eq!(state(name).await, wanted, "{name}");
            }
            assert_eq!(
                commit!(store, orphaned_to_ambiguous, "no node", at(122)),
                2,
                "every other boot is dead"
            );
        })
        .await;
    }

    #[tokio::test]
    async fn the_next_effect_is_due_when_its_wait_is_over() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(next_due(store).await.unwrap(), None);
            commit!(store, put, &EffectId::new("branch"), &branch("branch"), at(0));
            assert_eq!(next_due(store).await.unwrap(), None);
            commit!(store, put, &id(), &comment(KEY, "one"), at(3));
            assert_eq!(next_due(store).await.unwrap(), Some(at(3)));
            assert!(commit!(store, sending, &id(), 1, BOOT, at(4)));
            assert_eq!(next_due(store).await.unwrap(), Some(at(4) + ORPHAN_AFTER));
            commit!(store, ambiguous, &now(store).await, "timeout", at(50));
            assert_eq!(next_due(store).await.unwrap(), Some(at(50)));
        })
        .await;
    }

    #[tokio::test]
    async fn writes_of_the_last_hour_are_remembered_per_installation() {
        each_database(async |database| {
            let store = &database.store;
            for seconds in [0, 10, 3_605] {
                commit!(store, record_write, "github", 7, at(seconds));
            }
            commit!(store, record_write, "github", 8, at(1));
            for (remote, installation, since, wanted) in [
                ("github", 7, 0, vec![at(10), at(3_605)]),
                ("github", 7, 11, vec![at(3_605)]),
                ("github", 8, 0, vec![at(1)]),
                ("local", 7, 0, vec![]),
            ] {
                assert_eq!(commit!(store, writes_since, remote, installation, at(since)), wanted);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn the_longest_hold_counts() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(held_until(store, "github", 7).await.unwrap(), None);
            commit!(store, hold, "github", 7, at(60), "retry-after");
            commit!(store, hold, "github", 7, at(30), "shorter");
            assert_eq!(held_until(store, "github", 7).await.unwrap(), Some(at(60)));
            commit!(store, hold, "github", 7, at(90), "longer");
            assert_eq!(commit!(store, held_until_tx, "github", 7), Some(at(90)));
            assert_eq!(held_until(store, "github", 8).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test]
    async fn two_processes_decide_about_a_lane_one_after_the_other() {
        each_database(async |database| {
            let store = &database.store;
            let one = async |boot: &'static str| {
                let mut tx = store.write_tx().await.unwrap();
                lock_lane(&mut tx, "github", 7).await.unwrap();
                let free = writes_since(&mut tx, "github", 7, at(0)).await.unwrap().is_empty();
                tokio::task::yield_now().await;
                if free {
                    record_write(&mut tx, "github", 7, at(1)).await.unwrap();
                }
                tx.commit().await.unwrap();
                (boot, free)
            };
            let won = [tokio::join!(one("a:1"), one("b:1"))];
            let won = won.into_iter().flat_map(|(a, b)| [a, b]).filter(|(_, free)| *free).count();
            assert_eq!(won, 1);
        })
        .await;
    }
}
