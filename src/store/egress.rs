//! What runs reached through the proxy and what they were refused: one row per host, port and verdict.
//! Bytes are counted before they go, so that a budget holds across connections, processes and crashes.

use super::rows::{RowReader, exclusive, millis, plain, sql};
use super::{Store, StoreError, Tx};
use crate::domain::ids::RunId;
use chrono::{DateTime, Utc};

/// The verdict of what was let through.
pub const ALLOWED: &str = "allowed";
/// Stands for every further host once a run has `MAX_REFUSED` rows of refusals.
pub const OTHERS: &str = "(others)";
/// Rows of refusals of one run.
const MAX_REFUSED: i64 = 64;

/// Where bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub run: RunId,
    pub host: String,
    pub port: u16,
}

/// Bytes of one connection, or of a whole run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    pub out: i64,
    pub inward: i64,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    pub host: String,
    pub port: i64,
    pub verdict: String,
    pub connections: i64,
    pub bytes: Bytes,
}

/// Counts bytes that are about to go, and perhaps a connection; `false`, and nothing counted, when the run's
/// budget does not reach for them.
pub async fn take(
    store: &Store,
    place: &Place,
    connections: i64,
    bytes: Bytes,
    budget: Bytes,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let mut tx = store.write_tx().await?;
    exclusive(&mut tx, &format!("egress {}", place.run)).await?;
    let row = sqlx::query(
        "SELECT CAST(COALESCE(SUM(bytes_out), 0) AS BIGINT) AS bytes_out, \
         CAST(COALESCE(SUM(bytes_in), 0) AS BIGINT) AS bytes_in FROM egress WHERE run = $1",
    )
    .bind(place.run.as_str())
    .fetch_one(&mut *tx.inner)
    .await
    .map_err(sql("sum up the traffic"))?;
    let row = RowReader::new(&row, "egress", "run");
    if row.integer("bytes_out")?.saturating_add(bytes.out) > budget.out
        || row.integer("bytes_in")?.saturating_add(bytes.inward) > budget.inward
    {
        return Ok(false);
    }
    add(&mut tx, place, ALLOWED, connections, bytes, now).await?;
    tx.commit().await?;
    Ok(true)
}

/// Takes back what was counted and did not go.
pub async fn give_back(store: &Store, place: &Place, bytes: Bytes) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    sqlx::query(
        "UPDATE egress SET bytes_out = bytes_out - $4, bytes_in = bytes_in - $5 \
         WHERE run = $1 AND host = $2 AND port = $3 AND verdict = 'allowed'",
    )
    .bind(place.run.as_str())
    .bind(&place.host)
    .bind(i64::from(place.port))
    .bind(bytes.out)
    .bind(bytes.inward)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("settle traffic"))?;
    tx.commit().await
}

/// Counts a refusal.
pub async fn refuse(
    store: &Store,
    place: &Place,
    verdict: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    exclusive(&mut tx, &format!("egress {}", place.run)).await?;
    let row = sqlx::query(
        "SELECT COUNT(*) AS rows_there, \
         CAST(COALESCE(SUM(CASE WHEN host = $2 AND port = $3 AND verdict = $4 THEN 1 ELSE 0 END), 0) AS BIGINT) \
         AS known FROM egress WHERE run = $1 AND verdict <> 'allowed'",
    )
    .bind(place.run.as_str())
    .bind(plain(&place.host).into_owned())
    .bind(i64::from(place.port))
    .bind(verdict)
    .fetch_one(&mut *tx.inner)
    .await
    .map_err(sql("count refusals"))?;
    let row = RowReader::new(&row, "egress", "run");
    let place = if row.integer("known")? > 0 || row.integer("rows_there")? < MAX_REFUSED {
        place.clone()
    } else {
        Place { run: place.run.clone(), host: OTHERS.into(), port: 0 }
    };
    add(&mut tx, &place, verdict, 1, Bytes::default(), now).await?;
    tx.commit().await
}

async fn add(
    tx: &mut Tx,
    place: &Place,
    verdict: &str,
    connections: i64,
    bytes: Bytes,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO egress (run, host, port, verdict, connections, bytes_out, bytes_in, last_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (run, host, port, verdict) DO UPDATE SET \
         connections = egress.connections + excluded.connections, \
         bytes_out = egress.bytes_out + excluded.bytes_out, \
         bytes_in = egress.bytes_in + excluded.bytes_in, last_at = excluded.last_at",
    )
    .bind(place.run.as_str())
    .bind(plain(&place.host).into_owned())
    .bind(i64::from(place.port))
    .bind(verdict)
    .bind(connections)
    .bind(bytes.out)
    .bind(bytes.inward)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("count traffic"))?;
    Ok(())
}

/// Everything a run reached and was refused, by host.
pub async fn of_run(store: &Store, run: &RunId) -> Result<Vec<Reached>, StoreError> {
    let rows = sqlx::query(
        "SELECT run, host, port, verdict, connections, bytes_out, bytes_in FROM egress WHERE run = $1 \
         ORDER BY host, port, verdict",
    )
    .bind(run.as_str())
    .fetch_all(&store.pool)
    .await
    .map_err(sql("read the traffic"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "egress", "run");
            Ok(Reached {
                host: row.text("host")?,
                port: row.integer("port")?,
                verdict: row.text("verdict")?,
                connections: row.integer("connections")?,
                bytes: Bytes { out: row.integer("bytes_out")?, inward: row.integer("bytes_in")? },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    fn place(host: &str) -> Place {
        Place { run: RunId::new("run"), host: host.into(), port: 443 }
    }

    const BUDGET: Bytes = Bytes { out: 100, inward: 1000 };

    #[tokio::test]
    async fn bytes_are_counted_before_they_go_and_never_pass_the_budget() {
        each_database(async |database| {
            let store = &database.store;
            let (a, b) = (place("a.example"), place("b.example"));
            let bytes = |out, inward| Bytes { out, inward };
            assert!(take(store, &a, 1, bytes(60, 400), BUDGET, at(0)).await.unwrap());
            assert!(!take(store, &b, 1, bytes(41, 0), BUDGET, at(0)).await.unwrap());
            assert!(!take(store, &b, 1, bytes(0, 601), BUDGET, at(0)).await.unwrap());
            give_back(store, &a, bytes(30, 100)).await.unwrap();
            assert!(take(store, &b, 1, bytes(70, 700), BUDGET, at(0)).await.unwrap());
            let other = Place { run: RunId::new("other"), ..place("a.example") };
            assert!(take(store, &other, 1, bytes(100, 1000), BUDGET, at(0)).await.unwrap());
            let rows = of_run(store, &RunId::new("run")).await.unwrap();
            let seen: Vec<_> =
                rows.iter().map(|row| (row.host.as_str(), row.connections, row.bytes)).collect();
            assert_eq!(seen, [("a.example", 1, bytes(30, 300)), ("b.example", 1, bytes(70, 700))]);
        })
        .await;
    }

    #[tokio::test]
    async fn takers_that_race_do_not_pass_the_budget_together() {
        each_database(async |database| {
            let store = &database.store;
            let places: Vec<_> = (0..20).map(|n| place(&format!("h{n}.example"))).collect();
            let bytes = Bytes { out: 10, inward: 0 };
            let taken = futures_util::future::join_all(
                places.iter().map(|place| take(store, place, 1, bytes, Bytes { out: 55, ..BUDGET }, at(0))),
            )
            .await;
            assert_eq!(taken.into_iter().filter(|taken| matches!(taken, Ok(true))).count(), 5);
        })
        .await;
    }

    #[tokio::test]
    async fn refusals_are_counted_with_a_cap() {
        each_database(async |database| {
            let store = &database.store;
            for n in 0..MAX_REFUSED + 6 {
                refuse(store, &place(&format!("h{n}.example")), "not listed", at(0)).await.unwrap();
            }
            refuse(store, &place("h0.example"), "not listed", at(0)).await.unwrap();
            refuse(store, &place("nul\0"), "malformed", at(0)).await.unwrap();
            let rows = of_run(store, &RunId::new("run")).await.unwrap();
            let count = |host: &str| -> i64 {
                rows.iter().filter(|row| row.host == host).map(|row| row.connections).sum()
            };
            assert_eq!((count("h0.example"), count("h1.example"), count(OTHERS)), (2, 1, 7));
            assert!(rows.iter().all(|row| row.bytes == Bytes::default() && row.verdict != ALLOWED));
        })
        .await;
    }
}
