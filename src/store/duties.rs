//! Duties: work that one process at a time may do (reading the inbox, sweeping, one lane of effects).
//!
//! A duty is a hint against doubled work, not a lock: a process that was paused may still believe to hold one. Whatever
//! is done under a duty is safe to be done twice (unique keys, states in the `WHERE`, the fence of a run).

use super::rows::{millis, sql};
use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use std::time::Duration;

/// Takes or keeps a duty for `time`; false while another process holds it.
///
/// A duty that is held for more than half of `time` yet is not written again: keeping one costs little.
pub async fn hold(
    store: &Store,
    name: &str,
    owner: &str,
    now: DateTime<Utc>,
    time: Duration,
) -> Result<bool, StoreError> {
    let length = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let until = millis(now).saturating_add(length);
    let kept =
        sqlx::query("SELECT name FROM duties WHERE name = $1 AND owner = $2 AND until > $3 AND until <= $4")
            .bind(name)
            .bind(owner)
            .bind(millis(now).saturating_add(length / 2))
            .bind(until)
            .fetch_optional(&store.pool)
            .await
            .map_err(sql("look after a duty"))?;
    if kept.is_some() {
        return Ok(true);
    }
    let mut tx = store.lazy_tx().await?;
    // An end that lies further ahead than anybody writes was written before a clock was set back.
    let done = sqlx::query(
        "INSERT INTO duties (name, owner, until) VALUES ($1, $2, $3) \
         ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until \
         WHERE duties.owner = excluded.owner OR duties.until <= $4 OR duties.until > $5",
    )
    .bind(name)
    .bind(owner)
    .bind(until)
    .bind(millis(now))
    .bind(until.saturating_add(length))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("take a duty"))?;
    tx.commit().await?;
    Ok(done.rows_affected() == 1)
}

/// Gives up every duty of this owner (an orderly end), so that another process takes over at once.
pub async fn release_all(store: &Store, owner: &str) -> Result<u64, StoreError> {
    let mut tx = store.write_tx().await?;
    let done = sqlx::query("DELETE FROM duties WHERE owner = $1")
        .bind(owner)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("release duties"))?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Ends the duties of other boots of this node (at start-up). An owner is `NODE:BOOT`.
pub async fn expire(store: &Store, keep_owner: &str) -> Result<u64, StoreError> {
    let Some((node, _)) = keep_owner.rsplit_once(':') else { return Ok(0) };
    let node = format!("{node}:");
    let mut tx = store.write_tx().await?;
    let done = sqlx::query("DELETE FROM duties WHERE owner <> $1 AND SUBSTR(owner, 1, LENGTH($2)) = $2")
        .bind(keep_owner)
        .bind(node)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("end the duties of earlier boots"))?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    const TIME: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn one_owner_at_a_time_until_it_ends_or_is_given_up() {
        each_database(async |database| {
            let store = &database.store;
            let held = async |owner, seconds| hold(store, "ingest", owner, at(seconds), TIME).await.unwrap();
            assert!(held("a:1", 0).await);
            assert!(!held("b:1", 5).await);
            // Kept without a write, then with one.
            assert!(held("a:1", 5).await);
            assert!(held("a:1", 15).await);
            assert!(!held("b:1", 34).await);
            assert!(held("b:1", 35).await, "it ended at 35");
            assert!(!held("a:1", 36).await);
            assert!(hold(store, "sweep", "a:1", at(36), TIME).await.unwrap(), "another duty");
            assert_eq!(release_all(store, "b:1").await.unwrap(), 1);
            assert!(held("a:1", 37).await);
        })
        .await;
    }

    #[tokio::test]
    async fn a_new_boot_takes_over_from_earlier_ones_of_its_node() {
        each_database(async |database| {
            let store = &database.store;
            for (name, owner) in [("ingest", "a:1"), ("sweep", "ab:1"), ("lane", "b:1"), ("own", "a:2")] {
                assert!(hold(store, name, owner, at(0), TIME).await.unwrap());
            }
            assert_eq!(expire(store, "a:2").await.unwrap(), 1);
            assert!(hold(store, "ingest", "a:2", at(1), TIME).await.unwrap());
            assert!(!hold(store, "sweep", "a:2", at(1), TIME).await.unwrap());
            assert_eq!(expire(store, "no colon").await.unwrap(), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_does_not_keep_a_duty_for_ever() {
        each_database(async |database| {
            let store = &database.store;
            assert!(hold(store, "ingest", "a:1", at(100_000), TIME).await.unwrap());
            assert!(hold(store, "ingest", "b:1", at(0), TIME).await.unwrap());
        })
        .await;
    }
}
