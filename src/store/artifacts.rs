//! Bytes that a run produced and the host keeps: `bundle`, `diff`, `answer`; for a while only, files for download
//! (`file/<path>`) and the session of its agent.

use super::rows::{RowReader, millis, sql};
use super::{Store, StoreError, Tx};
use crate::domain::ids::RunId;
use chrono::{DateTime, Utc};

/// The part that holds an agent's session.
pub const SESSION: &str = "session";
/// What the parts of files begin with; their path follows.
const FILE: &str = "file/";

/// Inserts or replaces; kept as long as the run.
pub async fn put(
    tx: &mut Tx,
    run: &RunId,
    part: &str,
    bytes: &[u8],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    put_part(tx, run, part, bytes, now, None).await
}

/// The same, until `expires_at`.
pub async fn put_until(
    tx: &mut Tx,
    run: &RunId,
    part: &str,
    bytes: &[u8],
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    put_part(tx, run, part, bytes, now, Some(expires_at)).await
}

async fn put_part(
    tx: &mut Tx,
    run: &RunId,
    part: &str,
    bytes: &[u8],
    now: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO artifacts (run, part, bytes, created_at, expires_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (run, part) DO UPDATE SET bytes = excluded.bytes, created_at = excluded.created_at, \
         expires_at = excluded.expires_at",
    )
    .bind(run.as_str())
    .bind(part)
    .bind(bytes)
    .bind(millis(now))
    .bind(expires_at.map(millis))
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

/// A file for download, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub size: i64,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
}

/// Keeps a file for download.
pub async fn put_file(
    tx: &mut Tx,
    run: &RunId,
    path: &str,
    bytes: &[u8],
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    put_until(tx, run, &format!("{FILE}{path}"), bytes, now, expires_at).await
}

/// The bytes of a file.
pub async fn file(store: &Store, run: &RunId, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
    get(store, run, &format!("{FILE}{path}")).await
}

/// The files of a run, by path.
pub async fn files(store: &Store, run: &RunId) -> Result<Vec<File>, StoreError> {
    // The parts from `file/` up to what follows the slash.
    let rows = sqlx::query(
        "SELECT run, part, CAST(LENGTH(bytes) AS BIGINT) AS size, created_at, expires_at FROM artifacts \
         WHERE run = $1 AND SUBSTR(part, 1, 5) = $2 ORDER BY part",
    )
    .bind(run.as_str())
    .bind(FILE)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list artifacts"))?;
    let mut files = Vec::new();
    for row in &rows {
        let row = RowReader::new(row, "artifacts", "run");
        let part = row.text("part")?;
        files.push(File {
            path: part.strip_prefix(FILE).unwrap_or(&part).to_owned(),
            size: row.integer("size")?,
            created_at: row.time("created_at")?,
            expires_at: row.time_or_null("expires_at")?,
        });
    }
    // The databases sort text by different rules.
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Drops files and session of a run: a repeated collection begins anew.
pub async fn clear(tx: &mut Tx, run: &RunId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM artifacts WHERE run = $1 AND expires_at IS NOT NULL")
        .bind(run.as_str())
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("drop artifacts"))?;
    Ok(())
}

/// Drops what was kept for long enough; gives how many.
pub async fn expire(tx: &mut Tx, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let done = sqlx::query("DELETE FROM artifacts WHERE expires_at <= $1")
        .bind(millis(now))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("drop old artifacts"))?;
    Ok(done.rows_affected())
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

    #[tokio::test]
    async fn files_are_listed_with_their_sizes_and_nothing_else() {
        each_database(async |database| {
            let store = &database.store;
            let (run, other) = (RunId::new("run"), RunId::new("other"));
            let mut tx = store.write_tx().await.unwrap();
            put(&mut tx, &run, "bundle", b"x", at(0)).await.unwrap();
            put_until(&mut tx, &run, SESSION, b"x", at(0), at(5)).await.unwrap();
            put_file(&mut tx, &run, "b/\u{fc}.txt", b"four", at(1), at(9)).await.unwrap();
            put_file(&mut tx, &run, "B.txt", &[0xff; 7], at(2), at(10)).await.unwrap();
            put_file(&mut tx, &run, "B.txt", b"", at(3), at(11)).await.unwrap();
            put_file(&mut tx, &other, "c", b"c", at(1), at(9)).await.unwrap();
            tx.commit().await.unwrap();
            let file = |path: &str, size, created, expires| File {
                path: path.into(),
                size,
                created_at: at(created),
                expires_at: Some(at(expires)),
            };
            let listed = files(store, &run).await.unwrap();
            assert_eq!(listed, [file("B.txt", 0, 3, 11), file("b/\u{fc}.txt", 4, 1, 9)]);
            assert_eq!(
                super::file(store, &run, "b/\u{fc}.txt").await.unwrap().as_deref(),
                Some(&b"four"[..])
            );
            assert_eq!(super::file(store, &run, "c").await.unwrap(), None);
            assert_eq!(files(store, &RunId::new("none")).await.unwrap(), []);
        })
        .await;
    }

    #[tokio::test]
    async fn what_expires_goes_and_the_rest_stays() {
        each_database(async |database| {
            let store = &database.store;
            let (run, other) = (RunId::new("run"), RunId::new("other"));
            let mut tx = store.write_tx().await.unwrap();
            for run in [&run, &other] {
                put(&mut tx, run, "bundle", b"kept", at(0)).await.unwrap();
                put_until(&mut tx, run, SESSION, b"x", at(0), at(5)).await.unwrap();
                put_file(&mut tx, run, "a", b"x", at(0), at(9)).await.unwrap();
            }
            tx.commit().await.unwrap();
            let left = async |run: &RunId| {
                let session = get(store, run, SESSION).await.unwrap().is_some();
                (session, files(store, run).await.unwrap().len())
            };
            for (now, dropped, is_left) in [(4, 0, (true, 1)), (5, 2, (false, 1)), (5, 0, (false, 1))] {
                let mut tx = store.write_tx().await.unwrap();
                assert_eq!(expire(&mut tx, at(now)).await.unwrap(), dropped);
                tx.commit().await.unwrap();
                assert_eq!(left(&run).await, is_left);
            }
            let mut tx = store.write_tx().await.unwrap();
            clear(&mut tx, &run).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!((left(&run).await, left(&other).await), ((false, 0), (false, 1)));
            assert_eq!(get(store, &run, "bundle").await.unwrap().as_deref(), Some(&b"kept"[..]));
        })
        .await;
    }
}
