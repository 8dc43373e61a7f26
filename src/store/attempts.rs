//! Attempts: which container belongs to which run. The row is committed before the container starts.

use super::rows::{MAX_ROWS, RowReader, millis, sql};
use super::{Store, StoreError, Tx};
use crate::domain::ids::{RunId, SlotId};
use crate::domain::run::Attempt;
use chrono::{DateTime, Utc};
use sqlx::any::AnyRow;

fn read_attempt(row: &AnyRow) -> Result<Attempt, StoreError> {
    let row = RowReader::new(row, "attempts", "slot");
    Ok(Attempt {
        run: RunId::new(row.text("run")?),
        n: row.integer("n")?,
        slot: SlotId::new(row.text("slot")?),
        container: row.text_or_null("container")?,
        started_at: row.time("started_at")?,
        ended_at: row.time_or_null("ended_at")?,
        log_cursor: row.integer("log_cursor")?,
        node: row.text("node")?,
    })
}

/// Committed before the container is made.
pub async fn insert(tx: &mut Tx, attempt: &Attempt) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO attempts (run, n, slot, container, started_at, ended_at, log_cursor, node) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(attempt.run.as_str())
    .bind(attempt.n)
    .bind(attempt.slot.as_str())
    .bind(attempt.container.as_deref())
    .bind(millis(attempt.started_at))
    .bind(attempt.ended_at.map(millis))
    .bind(attempt.log_cursor)
    .bind(&attempt.node)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("insert an attempt"))?;
    Ok(())
}

/// The engine's id of the container.
pub async fn set_container(tx: &mut Tx, slot: &SlotId, container: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE attempts SET container = $2 WHERE slot = $1")
        .bind(slot.as_str())
        .bind(container)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("name the container of an attempt"))?;
    Ok(())
}

/// How many lines of the container's output are stored.
pub async fn set_cursor(tx: &mut Tx, slot: &SlotId, cursor: i64) -> Result<(), StoreError> {
    sqlx::query("UPDATE attempts SET log_cursor = $2 WHERE slot = $1")
        .bind(slot.as_str())
        .bind(cursor)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("move the log cursor of an attempt"))?;
    Ok(())
}

/// Ending twice keeps the first time.
pub async fn end(tx: &mut Tx, slot: &SlotId, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query("UPDATE attempts SET ended_at = $2 WHERE slot = $1 AND ended_at IS NULL")
        .bind(slot.as_str())
        .bind(millis(now))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("end an attempt"))?;
    Ok(())
}

/// The newest attempt of a run.
pub async fn latest(store: &Store, run: &RunId) -> Result<Option<Attempt>, StoreError> {
    let row = sqlx::query(
        "SELECT run, n, slot, container, started_at, ended_at, log_cursor, node FROM attempts \
         WHERE run = $1 ORDER BY n DESC LIMIT 1",
    )
    .bind(run.as_str())
    .fetch_optional(&store.pool)
    .await
    .map_err(sql("read the latest attempt"))?;
    row.as_ref().map(read_attempt).transpose()
}

/// As `latest`, inside a transaction.
pub async fn latest_tx(tx: &mut Tx, run: &RunId) -> Result<Option<Attempt>, StoreError> {
    let row = sqlx::query(
        "SELECT run, n, slot, container, started_at, ended_at, log_cursor, node FROM attempts \
         WHERE run = $1 ORDER BY n DESC LIMIT 1",
    )
    .bind(run.as_str())
    .fetch_optional(&mut *tx.inner)
    .await
    .map_err(sql("read the latest attempt"))?;
    row.as_ref().map(read_attempt).transpose()
}

/// The attempt of a container found at the engine.
pub async fn of_slot(store: &Store, slot: &SlotId) -> Result<Option<Attempt>, StoreError> {
    let row = sqlx::query(
        "SELECT run, n, slot, container, started_at, ended_at, log_cursor, node FROM attempts WHERE slot = $1",
    )
    .bind(slot.as_str())
    .fetch_optional(&store.pool)
    .await
    .map_err(sql("read an attempt"))?;
    row.as_ref().map(read_attempt).transpose()
}

/// Not ended, oldest first.
pub async fn open(store: &Store) -> Result<Vec<Attempt>, StoreError> {
    let rows = sqlx::query(
        "SELECT run, n, slot, container, started_at, ended_at, log_cursor, node FROM attempts \
         WHERE ended_at IS NULL ORDER BY started_at, slot LIMIT $1",
    )
    .bind(MAX_ROWS)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list open attempts"))?;
    rows.iter().map(read_attempt).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    fn attempt(run: &str, n: i64) -> Attempt {
        Attempt {
            run: RunId::new(run),
            n,
            slot: SlotId::new(format!("{run}-{n}")),
            container: None,
            started_at: at(n),
            ended_at: None,
            log_cursor: 0,
            node: "n1".into(),
        }
    }

    #[tokio::test]
    async fn an_attempt_is_followed_from_its_slot_to_its_end() {
        each_database(async |database| {
            let store = &database.store;
            let (first, second) = (attempt("run", 1), attempt("run", 2));
            let mut tx = store.write_tx().await.unwrap();
            insert(&mut tx, &first).await.unwrap();
            insert(&mut tx, &second).await.unwrap();
            insert(&mut tx, &attempt("other", 1)).await.unwrap();
            set_container(&mut tx, &second.slot, "container").await.unwrap();
            set_cursor(&mut tx, &second.slot, 42).await.unwrap();
            end(&mut tx, &first.slot, at(9)).await.unwrap();
            end(&mut tx, &first.slot, at(10)).await.unwrap();
            tx.commit().await.unwrap();

            let second = Attempt { container: Some("container".to_owned()), log_cursor: 42, ..second };
            assert_eq!(latest(store, &second.run).await.unwrap(), Some(second.clone()));
            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(latest_tx(&mut tx, &second.run).await.unwrap(), Some(second.clone()));
            drop(tx);
            assert_eq!(
                of_slot(store, &first.slot).await.unwrap(),
                Some(Attempt { ended_at: Some(at(9)), ..first })
            );
            assert_eq!(open(store).await.unwrap(), [attempt("other", 1), second]);
            assert_eq!(latest(store, &RunId::new("none")).await.unwrap(), None);
            assert_eq!(of_slot(store, &SlotId::new("none")).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test]
    async fn a_slot_belongs_to_one_attempt() {
        each_database(async |database| {
            let mut tx = database.store.write_tx().await.unwrap();
            insert(&mut tx, &attempt("run", 1)).await.unwrap();
            assert!(insert(&mut tx, &Attempt { n: 2, ..attempt("run", 1) }).await.is_err());
        })
        .await;
    }
}
