//! The audit log: append-only.

use super::rows::{RowReader, millis, plain, row_limit, sql};
use super::{Store, StoreError, Tx};
use chrono::{DateTime, Utc};

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: String,
    pub at: DateTime<Utc>,
    /// Login and id, `token:<name>`, or `system`.
    pub actor: String,
    /// `grant`, `refuse`, `push`, `cancel`, `replay`, `pause`, `token.create`, …
    pub action: String,
    /// Repository and number, run id, …
    pub subject: String,
    pub detail: String,
}

/// Writes one line; there is no way to change it.
pub async fn append(tx: &mut Tx, entry: &Entry) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit (id, at, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(&entry.id)
        .bind(millis(entry.at))
        .bind(plain(&entry.actor).as_ref())
        .bind(plain(&entry.action).as_ref())
        .bind(plain(&entry.subject).as_ref())
        .bind(plain(&entry.detail).as_ref())
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("append to the audit log"))?;
    Ok(())
}

/// Newest first.
pub async fn list(store: &Store, limit: i64) -> Result<Vec<Entry>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, at, actor, action, subject, detail FROM audit ORDER BY at DESC, id DESC LIMIT $1",
    )
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list the audit log"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "audit", "id");
            Ok(Entry {
                id: row.text("id")?,
                at: row.time("at")?,
                actor: row.text("actor")?,
                action: row.text("action")?,
                subject: row.text("subject")?,
                detail: row.text("detail")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    #[tokio::test]
    async fn entries_are_listed_newest_first() {
        each_database(async |database| {
            let store = &database.store;
            let entry = |id: &str, seconds| Entry {
                id: id.to_owned(),
                at: at(seconds),
                actor: "octo (1)".to_owned(),
                action: "grant".to_owned(),
                subject: "octo/repo-1#1".to_owned(),
                detail: "verb fix".to_owned(),
            };
            let mut tx = store.write_tx().await.unwrap();
            for (id, seconds) in [("a", 1), ("b", 3), ("c", 2)] {
                append(&mut tx, &entry(id, seconds)).await.unwrap();
            }
            append(&mut tx, &Entry { detail: "nul \0".to_owned(), ..entry("d", 0) }).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(list(store, 2).await.unwrap(), [entry("b", 3), entry("c", 2)]);
            assert_eq!(list(store, 100).await.unwrap().last().unwrap().detail, "nul \u{fffd}");
            assert_eq!(list(store, -1).await.unwrap(), []);
        })
        .await;
    }
}
