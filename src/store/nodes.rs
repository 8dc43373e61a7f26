//! Nodes and installations: who works on this database, and where the App is installed.

use super::rows::{RowReader, millis, plain, sql};
use super::{Store, StoreError, Tx};
use chrono::{DateTime, Utc};

/// This node is alive.
pub async fn seen(store: &Store, id: &str, role: &str, now: DateTime<Utc>) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    sqlx::query(
        "INSERT INTO nodes (id, role, capabilities, started_at, seen_at) VALUES ($1, $2, '', $3, $3) \
         ON CONFLICT (id) DO UPDATE SET role = excluded.role, seen_at = excluded.seen_at",
    )
    .bind(id)
    .bind(role)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("register a node"))?;
    tx.commit().await
}

/// This node ended in an orderly way.
pub async fn forget(store: &Store, id: &str) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    sqlx::query("DELETE FROM nodes WHERE id = $1")
        .bind(id)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("forget a node"))?;
    tx.commit().await
}

/// Whether the App may work for an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstallationState {
    Active,
    Suspended,
    Deleted,
}

impl InstallationState {
    /// Every state.
    pub const ALL: [InstallationState; 3] =
        [InstallationState::Active, InstallationState::Suspended, InstallationState::Deleted];

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            InstallationState::Active => "active",
            InstallationState::Suspended => "suspended",
            InstallationState::Deleted => "deleted",
        }
    }

    /// The state of a word, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// An empty `account` keeps the one that is known.
pub async fn set_installation(
    tx: &mut Tx,
    remote: &str,
    id: i64,
    account: &str,
    state: InstallationState,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO installations (remote, id, account, state, updated_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (remote, id) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at, \
         account = CASE WHEN excluded.account = '' THEN installations.account ELSE excluded.account END",
    )
    .bind(remote)
    .bind(id)
    .bind(plain(account).as_ref())
    .bind(state.as_str())
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("write an installation"))?;
    Ok(())
}

/// `None` when it was never seen: then it is treated as active.
pub async fn installation(
    store: &Store,
    remote: &str,
    id: i64,
) -> Result<Option<InstallationState>, StoreError> {
    let row = sqlx::query("SELECT account, state FROM installations WHERE remote = $1 AND id = $2")
        .bind(remote)
        .bind(id)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read an installation"))?;
    row.map(|row| RowReader::new(&row, "installations", "account").word("state", InstallationState::parse))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;
    use sqlx::Row;

    #[tokio::test]
    async fn a_node_is_seen_again_and_forgotten() {
        each_database(async |database| {
            let store = &database.store;
            seen(store, "node", "all", at(1)).await.unwrap();
            seen(store, "node", "worker", at(2)).await.unwrap();
            let row = sqlx::query("SELECT role, started_at, seen_at FROM nodes")
                .fetch_one(&store.pool)
                .await
                .unwrap();
            assert_eq!(row.get::<String, _>("role"), "worker");
            assert_eq!(row.get::<i64, _>("started_at"), millis(at(1)));
            assert_eq!(row.get::<i64, _>("seen_at"), millis(at(2)));
            forget(store, "node").await.unwrap();
            forget(store, "node").await.unwrap();
            assert!(sqlx::query("SELECT id FROM nodes").fetch_optional(&store.pool).await.unwrap().is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn an_installation_has_its_latest_state() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(installation(store, "github", 7).await.unwrap(), None);
            for state in InstallationState::ALL {
                let mut tx = store.write_tx().await.unwrap();
                set_installation(&mut tx, "github", 7, "octo", state, at(0)).await.unwrap();
                tx.commit().await.unwrap();
                assert_eq!(installation(store, "github", 7).await.unwrap(), Some(state));
            }
            let mut tx = store.write_tx().await.unwrap();
            set_installation(&mut tx, "github", 7, "", InstallationState::Active, at(0)).await.unwrap();
            tx.commit().await.unwrap();
            let row = sqlx::query("SELECT account FROM installations").fetch_one(&store.pool).await.unwrap();
            assert_eq!(row.get::<String, _>("account"), "octo");
            assert_eq!(installation(store, "other", 7).await.unwrap(), None);
        })
        .await;
    }
}
