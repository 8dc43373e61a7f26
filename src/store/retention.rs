//! Purpose: what is thrown away after its time, a little at a time: deliveries, and logs and artifacts of ended runs.
//! The runs themselves, their effects, the ledger and the audit log stay.

use super::rows::{RowReader, millis, sql};
use super::{Store, StoreError, Tx, settings};
use chrono::{DateTime, Utc};

/// Deliveries or runs that one call handles: a transaction of a few milliseconds.
const AT_ONCE: i64 = 100;

/// What of ended runs is thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Log chunks and samples.
    Logs,
    Artifacts,
}

impl Part {
    pub const ALL: [Part; 2] = [Part::Logs, Part::Artifacts];

    /// The setting that holds how far it is: runs that ended up to then are done.
    fn cursor(self) -> &'static str {
        match self {
            Part::Logs => "retention.logs",
            Part::Artifacts => "retention.artifacts",
        }
    }

    fn statements(self) -> &'static [&'static str] {
        match self {
            Part::Logs => &["DELETE FROM log_chunks WHERE run = $1", "DELETE FROM samples WHERE run = $1"],
            // The others have a time of their own.
            Part::Artifacts => &["DELETE FROM artifacts WHERE run = $1 AND expires_at IS NULL"],
        }
    }
}

const FORGET_IGNORED: &str = "DELETE FROM inbox WHERE id IN (SELECT id FROM inbox WHERE state = 'ignored' \
    AND received_at < $1 ORDER BY received_at LIMIT $2)";
const FORGET_HANDLED: &str = "DELETE FROM inbox WHERE id IN (SELECT id FROM inbox \
    WHERE state IN ('done', 'not_yet_handled') AND received_at < $1 ORDER BY received_at LIMIT $2)";

/// Removes deliveries that led to nothing and came before a time, with their ids: a repetition leads to nothing again.
pub async fn forget_ignored(store: &Store, before: DateTime<Utc>) -> Result<u64, StoreError> {
    deliveries(store, before, FORGET_IGNORED).await
}

/// Removes deliveries that were handled and came before a time, with their ids.
pub async fn forget_handled(store: &Store, before: DateTime<Utc>) -> Result<u64, StoreError> {
    deliveries(store, before, FORGET_HANDLED).await
}

async fn deliveries(store: &Store, before: DateTime<Utc>, text: &'static str) -> Result<u64, StoreError> {
    let mut tx = store.write_tx().await?;
    let done = sqlx::query(text)
        .bind(millis(before))
        .bind(AT_ONCE)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("forget old deliveries"))?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Removes a part of runs that ended before a time, oldest first. Gives how many runs it looked at.
pub async fn forget_runs(store: &Store, part: Part, before: DateTime<Utc>) -> Result<usize, StoreError> {
    let mut tx = store.write_tx().await?;
    let (from, after) = cursor(&mut tx, part).await?;
    let rows = sqlx::query(
        "SELECT id, finished_at FROM runs WHERE finished_at < $1 \
         AND (finished_at > $2 OR (finished_at = $2 AND id > $3)) ORDER BY finished_at, id LIMIT $4",
    )
    .bind(millis(before))
    .bind(from)
    .bind(after)
    .bind(AT_ONCE)
    .fetch_all(&mut *tx.inner)
    .await
    .map_err(sql("look for runs that ended long ago"))?;
    let mut last = None;
    for row in &rows {
        let row = RowReader::new(row, "runs", "id");
        let (id, finished) = (row.text("id")?, row.integer("finished_at")?);
        for text in part.statements() {
            sqlx::query(*text)
                .bind(&id)
                .execute(&mut *tx.inner)
                .await
                .map_err(sql("forget what an old run left"))?;
        }
        last = Some(format!("{finished} {id}"));
    }
    if let Some(last) = last {
        settings::set(&mut tx, part.cursor(), Some(&last), before).await?;
        tx.commit().await?;
    }
    Ok(rows.len())
}

async fn cursor(tx: &mut Tx, part: Part) -> Result<(i64, String), StoreError> {
    let row = sqlx::query("SELECT key, value FROM settings WHERE key = $1")
        .bind(part.cursor())
        .fetch_optional(&mut *tx.inner)
        .await
        .map_err(sql("read how far the retention is"))?;
    let Some(row) = row else { return Ok((0, String::new())) };
    let text = RowReader::new(&row, "settings", "key").text("value")?;
    let (at, id) = text.split_once(' ').unwrap_or((&text, ""));
    Ok((at.parse().unwrap_or(0), id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database, new_run, sqlite_plan};
    use super::super::{artifacts, inbox, logs, runs};
    use super::*;
    use crate::domain::event::Source;
    use crate::domain::ids::{InboxId, RunId};
    use std::time::Duration;

    #[tokio::test]
    async fn looking_for_what_is_old_does_not_read_what_is_young() {
        each_database(async |database| {
            if database.store.kind() != crate::store::DatabaseKind::Sqlite {
                return;
            }
            for text in [FORGET_IGNORED, FORGET_HANDLED] {
                let plan = sqlite_plan(&database.store, text).await;
                let wanted = "SEARCH inbox USING INDEX inbox_state (state=? AND received_at<?)";
                assert!(plan.iter().any(|step| step == wanted), "{plan:?}");
            }
        })
        .await;
    }

    /// A run that ended at a second, with a log and an artifact.
    async fn ended(store: &Store, id: &str, second: i64) {
        let run = RunId::new(id);
        let mut tx = store.write_tx().await.unwrap();
        runs::insert(&mut tx, &new_run(id)).await.unwrap();
        tx.commit().await.unwrap();
        let caps = runs::Caps { global: 100, per_owner: 100, per_repo: 100, per_user: 100 };
        let mut claimed =
            runs::claim(store, "boot", at(1), Duration::from_secs(60), caps).await.unwrap().unwrap();
        assert_eq!(claimed.id, run);
        claimed.apply(&crate::domain::run::RunInput::Failed, at(second)).unwrap();
        let mut tx = store.write_tx().await.unwrap();
        runs::save(&mut tx, &claimed).await.unwrap();
        logs::append(&mut tx, &run, 1, "line\n", at(second)).await.unwrap();
        artifacts::put(&mut tx, &run, "diff", b"diff", at(second)).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn has(store: &Store, id: &str) -> (bool, bool) {
        let run = RunId::new(id);
        let log = !logs::read(store, &run, 0, 10).await.unwrap().is_empty();
        (log, artifacts::get(store, &run, "diff").await.unwrap().is_some())
    }

    #[tokio::test]
    async fn what_old_runs_left_goes_and_the_runs_stay() {
        each_database(async |database| {
            let store = &database.store;
            // Two at the same moment: none is passed over.
            for (id, second) in [("run a", 10), ("run b", 10), ("run c", 20), ("run d", 5000)] {
                ended(store, id, second).await;
            }
            assert_eq!(forget_runs(store, Part::Logs, at(15)).await.unwrap(), 2);
            assert_eq!(has(store, "run a").await, (false, true));
            assert_eq!(has(store, "run b").await, (false, true));
            assert_eq!(has(store, "run c").await, (true, true));
            assert_eq!(
                forget_runs(store, Part::Logs, at(15)).await.unwrap(),
                0,
                "they are not looked at again"
            );
            assert_eq!(forget_runs(store, Part::Artifacts, at(1000)).await.unwrap(), 3);
            assert_eq!(forget_runs(store, Part::Logs, at(1000)).await.unwrap(), 1);
            assert_eq!(has(store, "run c").await, (false, false));
            assert_eq!(has(store, "run d").await, (true, true));
            assert!(runs::get(store, &RunId::new("run a")).await.unwrap().is_some());
        })
        .await;
    }

    #[tokio::test]
    async fn old_deliveries_go_when_they_were_handled() {
        each_database(async |database| {
            let store = &database.store;
            for (id, state, second) in [
                ("done", "done", 10),
                ("ignored", "ignored", 10),
                ("pending", "pending", 10),
                ("failed", "failed", 10),
                ("new", "ignored", 900),
            ] {
                let delivery = inbox::NewDelivery {
                    id: InboxId::new(id),
                    source: Source::Github,
                    delivery_id: id.to_owned(),
                    event: "ping".to_owned(),
                    ignored: None,
                    headers: Vec::new(),
                    raw: bytes::Bytes::from_static(b"{}"),
                    received_at: at(second),
                };
                inbox::insert(store, delivery).await.unwrap();
                let mut tx = store.write_tx().await.unwrap();
                sqlx::query("UPDATE inbox SET state = $1 WHERE id = $2")
                    .bind(state)
                    .bind(id)
                    .execute(&mut *tx.inner)
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
            }
            assert_eq!(forget_ignored(store, at(100)).await.unwrap(), 1);
            assert_eq!(forget_handled(store, at(100)).await.unwrap(), 1);
            assert_eq!(forget_ignored(store, at(100)).await.unwrap(), 0);
            for (id, there) in
                [("done", false), ("ignored", false), ("pending", true), ("failed", true), ("new", true)]
            {
                assert_eq!(inbox::get(store, id).await.unwrap().is_some(), there, "{id}");
            }
        })
        .await;
    }
}
