//! Bytes that a run produced and the host keeps: `bundle`, `diff`, `answer`.

use super::rows::{RowReader, millis, sql};
use super::{Store, StoreError, Tx};
use crate::domain::ids::RunId;
use chrono::{DateTime, Utc};

/// Inserts or replaces.
pub async fn put(
    tx: &mut Tx,
    run: &RunId,
    part: &str,
    bytes: &[u8],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO artifacts (run, part, bytes, created_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (run, part) DO UPDATE SET bytes = excluded.bytes, created_at = excluded.created_at",
    )
    .bind(run.as_str())
    .bind(part)
    .bind(bytes)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("store an artifact"))?;
    Ok(())
}

/// `None` when the run has no such part.
pub async fn get(store: &Store, run: &RunId, part: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let row = sqlx::query("SELECT run, bytes FROM artifacts WHERE run = $1 AND part = $2")
        .bind(run.as_str())
        .bind(part)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read an artifact"))?;
    row.map(|row| RowReader::new(&row, "artifacts", "run").bytes("bytes")).transpose()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    #[tokio::test]
    async fn arbitrary_bytes_come_back_as_they_were() {
        each_database(async |database| {
            let store = &database.store;
            let run = RunId::new("run");
            let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
            for bytes in [all.as_slice(), b"", b"\0", b"\xff\xfe", b"\\x00", "text".as_bytes()] {
                let mut tx = store.write_tx().await.unwrap();
                put(&mut tx, &run, "bundle", bytes, at(0)).await.unwrap();
                tx.commit().await.unwrap();
                assert_eq!(get(store, &run, "bundle").await.unwrap().as_deref(), Some(bytes));
            }
            assert_eq!(get(store, &run, "diff").await.unwrap(), None);
            assert_eq!(get(store, &RunId::new("other"), "bundle").await.unwrap(), None);
        })
        .await;
    }
}
