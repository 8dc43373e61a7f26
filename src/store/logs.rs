//! Live log chunks: JSON lines of `LogLine`, numbered per run.

use super::rows::{RowReader, exclusive, millis, plain, row_limit, sql};
use super::{Store, StoreError, Tx};
use crate::domain::ids::RunId;
use chrono::{DateTime, Utc};

/// Some lines of a live log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// 1, 2, 3, … without gaps: the event id of the live log.
    pub seq: i64,
    pub attempt: i64,
    pub at: DateTime<Utc>,
    /// Lines ended by `\n`, secrets masked.
    pub text: String,
}

/// Appends with the next number of the run, and gives it.
pub async fn append(
    tx: &mut Tx,
    run: &RunId,
    attempt: i64,
    text: &str,
    now: DateTime<Utc>,
) -> Result<i64, StoreError> {
    exclusive(tx, &format!("log {run}")).await?;
    let row = sqlx::query(
        "INSERT INTO log_chunks (run, seq, attempt, at, text) \
         VALUES ($1, (SELECT COALESCE(MAX(seq), 0) + 1 FROM log_chunks WHERE run = $1), $2, $3, $4) \
         RETURNING run, seq",
    )
    .bind(run.as_str())
    .bind(attempt)
    .bind(millis(now))
    .bind(plain(text).as_ref())
    .fetch_one(&mut *tx.inner)
    .await
    .map_err(sql("append to a log"))?;
    RowReader::new(&row, "log_chunks", "run").integer("seq")
}

/// The newest number of a run's log; 0 when it has none.
pub async fn last_seq(store: &Store, run: &RunId) -> Result<i64, StoreError> {
    let row = sqlx::query("SELECT $1 AS run, COALESCE(MAX(seq), 0) AS seq FROM log_chunks WHERE run = $1")
        .bind(run.as_str())
        .fetch_one(&store.pool)
        .await
        .map_err(sql("read the end of a log"))?;
    RowReader::new(&row, "log_chunks", "run").integer("seq")
}

/// Chunks after a number, oldest first.
pub async fn read(store: &Store, run: &RunId, after_seq: i64, limit: i64) -> Result<Vec<Chunk>, StoreError> {
    let rows = sqlx::query(
        "SELECT run, seq, attempt, at, text FROM log_chunks WHERE run = $1 AND seq > $2 ORDER BY seq LIMIT $3",
    )
    .bind(run.as_str())
    .bind(after_seq)
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("read a log"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "log_chunks", "run");
            Ok(Chunk {
                seq: row.integer("seq")?,
                attempt: row.integer("attempt")?,
                at: row.time("at")?,
                text: row.text("text")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    #[tokio::test]
    async fn chunks_are_numbered_per_run_without_gaps() {
        each_database(async |database| {
            let store = &database.store;
            let (run, other) = (RunId::new("run"), RunId::new("other"));
            let write = async |run: &RunId, n: i64| {
                let mut tx = store.write_tx().await.unwrap();
                append(&mut tx, run, 1, &format!("line {n}\n"), at(n)).await.unwrap();
                tx.commit().await.unwrap();
            };
            futures_util::future::join_all((0..20).map(|n| write(&run, n))).await;
            write(&other, 1).await;
            let chunks = read(store, &run, 0, 100).await.unwrap();
            assert_eq!(chunks.iter().map(|chunk| chunk.seq).collect::<Vec<_>>(), Vec::from_iter(1..=20));
            let mut texts: Vec<_> = chunks.into_iter().map(|chunk| chunk.text).collect();
            texts.sort_unstable();
            texts.dedup();
            assert_eq!(texts.len(), 20);
            let next = read(store, &run, 18, 1).await.unwrap();
            assert_eq!(next.iter().map(|chunk| chunk.seq).collect::<Vec<_>>(), [19]);
            assert_eq!(
                read(store, &other, 0, 9).await.unwrap(),
                [Chunk { seq: 1, attempt: 1, at: at(1), text: "line 1\n".to_owned() }]
            );
            assert_eq!(read(store, &other, 1, 9).await.unwrap(), []);
        })
        .await;
    }
}
