//! Purpose: what repair remembers: when it looked at something, which deliveries it asked the forge for, and times that
//! a clock which was set back left far ahead.

use super::rows::{RowReader, lone_time, millis, plain, row_limit, sql};
use super::{Store, StoreError, Tx};
use chrono::{DateTime, TimeDelta, Utc};

/// A delivery that the forge could not hand over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The delivery id: the same in every attempt.
    pub guid: String,
    /// The newest attempt that is known.
    pub attempt: i64,
    pub event: String,
    pub failed_at: DateTime<Utc>,
    /// How often the forge was asked for it.
    pub asked: i64,
}

/// When something was last looked at.
pub async fn looked(store: &Store, name: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
    let row = sqlx::query("SELECT MAX(at) AS at FROM looks WHERE name = $1")
        .bind(name)
        .fetch_one(&store.pool)
        .await
        .map_err(sql("read when something was looked at"))?;
    lone_time(&row, "looks")
}

/// It was looked at now.
pub async fn set_looked(tx: &mut Tx, name: &str, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO looks (name, at) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET at = excluded.at",
    )
    .bind(name)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("remember a look"))?;
    Ok(())
}

/// The looks whose name begins so.
pub async fn looks(store: &Store, prefix: &str) -> Result<Vec<(String, DateTime<Utc>)>, StoreError> {
    let rows = sqlx::query(
        "SELECT name, at FROM looks WHERE SUBSTR(name, 1, LENGTH($1)) = $1 ORDER BY name LIMIT 10000",
    )
    .bind(prefix)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list looks"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "looks", "name");
            Ok((row.text("name")?, row.time("at")?))
        })
        .collect()
}

/// Forgets the looks whose name begins so and that lie before a time.
pub async fn forget_looks(tx: &mut Tx, prefix: &str, before: DateTime<Utc>) -> Result<u64, StoreError> {
    let done = sqlx::query("DELETE FROM looks WHERE SUBSTR(name, 1, LENGTH($1)) = $1 AND at < $2")
        .bind(prefix)
        .bind(millis(before))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("forget looks"))?;
    Ok(done.rows_affected())
}

/// Remembers a delivery that did not come; of one that is known only the attempt may be newer. False: it was known.
pub async fn missed(
    tx: &mut Tx,
    remote: &str,
    missing: &Missing,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let known = sqlx::query("UPDATE missed SET attempt = $3 WHERE remote = $1 AND guid = $2")
        .bind(remote)
        .bind(&missing.guid)
        .bind(missing.attempt)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("update a missed delivery"))?;
    if known.rows_affected() > 0 {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO missed (remote, guid, attempt, event, failed_at, asked, next_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (remote, guid) DO NOTHING",
    )
    .bind(remote)
    .bind(plain(&missing.guid).as_ref())
    .bind(missing.attempt)
    .bind(plain(&missing.event).as_ref())
    .bind(millis(missing.failed_at))
    .bind(missing.asked)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("remember a missed delivery"))?;
    Ok(true)
}

/// Those that were asked for at most `most` times and whose next time has come, oldest failure first.
pub async fn due_missed(
    store: &Store,
    remote: &str,
    most: i64,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Missing>, StoreError> {
    let rows = sqlx::query(
        "SELECT guid, attempt, event, failed_at, asked FROM missed \
         WHERE remote = $1 AND asked <= $2 AND next_at <= $3 ORDER BY failed_at, guid LIMIT $4",
    )
    .bind(remote)
    .bind(most)
    .bind(millis(now))
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list missed deliveries"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "missed", "guid");
            Ok(Missing {
                guid: row.text("guid")?,
                attempt: row.integer("attempt")?,
                event: row.text("event")?,
                failed_at: row.time("failed_at")?,
                asked: row.integer("asked")?,
            })
        })
        .collect()
}

/// It was asked for so often, and is looked after again at a time.
pub async fn asked(
    tx: &mut Tx,
    remote: &str,
    guid: &str,
    asked: i64,
    next_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE missed SET asked = $3, next_at = $4 WHERE remote = $1 AND guid = $2")
        .bind(remote)
        .bind(guid)
        .bind(asked)
        .bind(millis(next_at))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("count a question for a missed delivery"))?;
    Ok(())
}

/// It came.
pub async fn arrived(tx: &mut Tx, remote: &str, guid: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM missed WHERE remote = $1 AND guid = $2")
        .bind(remote)
        .bind(guid)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("forget a missed delivery"))?;
    Ok(())
}

/// Forgets what failed before a time: the forge has forgotten it, too.
pub async fn forget_missed(tx: &mut Tx, before: DateTime<Utc>) -> Result<u64, StoreError> {
    let done = sqlx::query("DELETE FROM missed WHERE failed_at < $1")
        .bind(millis(before))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("forget old missed deliveries"))?;
    Ok(done.rows_affected())
}

/// A time that lies ahead comes nearer by what the clock was set back, and is never before now.
macro_rules! nearer {
    ($column:literal) => {
        concat!(
            $column,
            " = CASE WHEN ",
            $column,
            " - $2 > $1 THEN ",
            $column,
            " - $2 ELSE $1 END WHERE ",
            $column,
            " > $1"
        )
    };
}

/// Every time that something waits for, where it is kept. `$1` is now, `$2` how far the clock was set back.
const AHEAD: &[&str] = &[
    concat!("UPDATE inbox SET ", nearer!("not_before"), " AND state = 'pending'"),
    concat!("UPDATE runs SET ", nearer!("not_before"), " AND state = 'queued'"),
    concat!(
        "UPDATE effects SET ",
        nearer!("not_before"),
        " AND state IN ('planned', 'sending', 'ambiguous')"
    ),
    concat!("UPDATE effects SET ", nearer!("intent_at"), " AND state IN ('sending', 'ambiguous')"),
    concat!("UPDATE holds SET ", nearer!("until")),
    concat!("UPDATE writes SET ", nearer!("at")),
    concat!("UPDATE missed SET ", nearer!("next_at")),
    concat!("UPDATE looks SET ", nearer!("at")),
];

/// The clock was set back by `by`: what waits for a time waits as long as it would have. A lease ends in `lease`, unless
/// it is renewed. Gives the number of rows that changed.
pub async fn clock_set_back(
    tx: &mut Tx,
    now: DateTime<Utc>,
    by: TimeDelta,
    lease: TimeDelta,
) -> Result<u64, StoreError> {
    let mut changed = 0;
    for text in AHEAD {
        let done = sqlx::query(*text)
            .bind(millis(now))
            .bind(by.num_milliseconds())
            .execute(&mut *tx.inner)
            .await
            .map_err(sql("follow a clock that was set back"))?;
        changed += done.rows_affected();
    }
    let leases = sqlx::query(
        "UPDATE runs SET lease_until = $1 WHERE lease_until > $1 \
         AND state IN ('preparing', 'running', 'collecting', 'publishing')",
    )
    .bind(millis(now + lease))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("shorten leases"))?;
    Ok(changed + leases.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, comment, each_database, new_run};
    use super::super::{effects, inbox, runs};
    use super::*;
    use crate::domain::event::Source;
    use crate::domain::ids::{EffectId, InboxId, RunId};
    use std::time::Duration;

    fn missing(guid: &str, failed: i64) -> Missing {
        Missing { guid: guid.into(), attempt: failed, event: "push".into(), failed_at: at(failed), asked: 0 }
    }

    #[tokio::test]
    async fn looks_are_remembered_by_name_and_forgotten_by_age() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(looked(store, "a").await.unwrap(), None);
            let mut tx = store.write_tx().await.unwrap();
            for (name, seconds) in [("a", 1), ("stuck:1", 2), ("stuck:2", 9), ("a", 5)] {
                set_looked(&mut tx, name, at(seconds)).await.unwrap();
            }
            tx.commit().await.unwrap();
            assert_eq!(looked(store, "a").await.unwrap(), Some(at(5)));
            let stuck = looks(store, "stuck:").await.unwrap();
            assert_eq!(stuck, [("stuck:1".to_owned(), at(2)), ("stuck:2".to_owned(), at(9))]);
            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(forget_looks(&mut tx, "stuck:", at(9)).await.unwrap(), 1);
            tx.commit().await.unwrap();
            assert_eq!(looks(store, "").await.unwrap().len(), 2);
        })
        .await;
    }

    #[tokio::test]
    async fn a_missed_delivery_is_due_until_it_came_or_was_asked_for_too_often() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            assert!(missed(&mut tx, "github", &missing("one", 3), at(10)).await.unwrap());
            assert!(missed(&mut tx, "github", &missing("two", 2), at(10)).await.unwrap());
            assert!(missed(&mut tx, "other", &missing("one", 1), at(10)).await.unwrap());
            let again = Missing { attempt: 99, ..missing("one", 8) };
            assert!(!missed(&mut tx, "github", &again, at(11)).await.unwrap(), "known");
            tx.commit().await.unwrap();
            let due = async |seconds| {
                let due = due_missed(store, "github", 1, at(seconds), 9).await.unwrap();
                due.into_iter().map(|missing| (missing.guid, missing.attempt)).collect::<Vec<_>>()
            };
            assert_eq!(due(9).await, []);
            assert_eq!(due(10).await, [("two".to_owned(), 2), ("one".to_owned(), 99)]);
            let mut tx = store.write_tx().await.unwrap();
            asked(&mut tx, "github", "one", 1, at(20)).await.unwrap();
            arrived(&mut tx, "github", "two").await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(due(19).await, []);
            assert_eq!(due(20).await, [("one".to_owned(), 99)]);
            let mut tx = store.write_tx().await.unwrap();
            asked(&mut tx, "github", "one", 2, at(21)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(due(99).await, []);
            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(forget_missed(&mut tx, at(3)).await.unwrap(), 1, "the other remote's");
            tx.commit().await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn what_waits_keeps_its_wait_when_the_clock_is_set_back() {
        each_database(async |database| {
            let store = &database.store;
            let day = TimeDelta::days(1);
            let caps = runs::Caps { global: 9, per_owner: 9, per_repo: 9, per_user: 9 };
            let mut tx = store.write_tx().await.unwrap();
            runs::insert(&mut tx, &new_run("live")).await.unwrap();
            let effect = EffectId::new("effect");
            effects::put(&mut tx, &effect, &comment("key", "text"), at(0)).await.unwrap();
            tx.commit().await.unwrap();
            let planned = effects::get(store, &effect).await.unwrap().unwrap();
            let mut tx = store.write_tx().await.unwrap();
            effects::again(&mut tx, &planned, "later", at(86_400 + 30)).await.unwrap();
            effects::hold(&mut tx, "github", 7, at(86_400 + 50), "limit").await.unwrap();
            effects::record_write(&mut tx, "github", 7, at(86_400)).await.unwrap();
            missed(&mut tx, "github", &missing("one", 3), at(86_400 + 5)).await.unwrap();
            tx.commit().await.unwrap();
            let delivery = inbox::NewDelivery {
                id: InboxId::new("i"),
                source: Source::Github,
                delivery_id: "d".into(),
                event: "push".into(),
                ignored: None,
                headers: Vec::new(),
                raw: bytes::Bytes::from_static(b"{}"),
                received_at: at(86_400),
            };
            inbox::insert(store, delivery).await.unwrap();
            let lease = Duration::from_secs(60);
            runs::claim(store, "a:1", at(86_400), lease, caps).await.unwrap().unwrap();
            let mut tx = store.write_tx().await.unwrap();
            inbox::defer(&mut tx, &InboxId::new("i"), at(86_400 + 20), "later").await.unwrap();
            tx.commit().await.unwrap();

            let mut tx = store.write_tx().await.unwrap();
            let changed = clock_set_back(&mut tx, at(10), day, TimeDelta::seconds(60)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(changed, 6);
            assert_eq!(effects::get(store, &effect).await.unwrap().unwrap().not_before, Some(at(30)));
            assert_eq!(effects::held_until(store, "github", 7).await.unwrap(), Some(at(50)));
            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(effects::writes_since(&mut tx, "github", 7, at(-10)).await.unwrap(), [at(10)]);
            drop(tx);
            assert_eq!(due_missed(store, "github", 5, at(10), 9).await.unwrap().len(), 1);
            assert_eq!(inbox::next_due(store).await.unwrap(), Some(at(86_400)), "its age stays");
            assert_eq!(inbox::pending(store, at(20), 9).await.unwrap().len(), 1);
            let run = runs::get(store, &RunId::new("live")).await.unwrap().unwrap();
            assert_eq!(run.lease_until, Some(at(70)));
            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(clock_set_back(&mut tx, at(86_500), day, TimeDelta::seconds(60)).await.unwrap(), 0);
        })
        .await;
    }
}
