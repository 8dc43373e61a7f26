//! What runs used over time: processor, memory, disk.

use super::rows::{RowReader, millis, row_limit, sql};
use super::{Store, StoreError, Tx};
use crate::domain::ids::RunId;
use crate::domain::run::Load;
use chrono::{DateTime, Utc};

/// One look at a run's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub at: DateTime<Utc>,
    pub load: Load,
}

/// A second sample of the same millisecond changes nothing.
pub async fn insert(tx: &mut Tx, run: &RunId, sample: &Sample) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO samples (run, at, millicpus, memory_bytes, disk_bytes) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (run, at) DO NOTHING",
    )
    .bind(run.as_str())
    .bind(millis(sample.at))
    .bind(sample.load.millicpus)
    .bind(sample.load.memory_bytes)
    .bind(sample.load.disk_bytes)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("store a sample"))?;
    Ok(())
}

/// Oldest first.
pub async fn of_run(store: &Store, run: &RunId, limit: i64) -> Result<Vec<Sample>, StoreError> {
    let rows = sqlx::query(
        "SELECT run, at, millicpus, memory_bytes, disk_bytes FROM samples WHERE run = $1 ORDER BY at LIMIT $2",
    )
    .bind(run.as_str())
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("read samples"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "samples", "run");
            Ok(Sample {
                at: row.time("at")?,
                load: Load {
                    millicpus: row.integer("millicpus")?,
                    memory_bytes: row.integer("memory_bytes")?,
                    disk_bytes: row.integer("disk_bytes")?,
                },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    #[tokio::test]
    async fn samples_are_read_in_order_per_run() {
        each_database(async |database| {
            let store = &database.store;
            let (run, other) = (RunId::new("run"), RunId::new("other"));
            let sample = |n: i64| Sample {
                at: at(n),
                load: Load { millicpus: n, memory_bytes: n << 33, disk_bytes: n << 40 },
            };
            let mut tx = store.write_tx().await.unwrap();
            for (run, n) in [(&run, 2), (&run, 1), (&other, 5), (&run, 3), (&run, 2)] {
                insert(&mut tx, run, &sample(n)).await.unwrap();
            }
            tx.commit().await.unwrap();
            assert_eq!(of_run(store, &run, 9).await.unwrap(), [sample(1), sample(2), sample(3)]);
            assert_eq!(of_run(store, &run, 1).await.unwrap(), [sample(1)]);
            assert_eq!(of_run(store, &RunId::new("none"), 9).await.unwrap(), []);
        })
        .await;
    }
}
