//! All SQL, one text for SQLite (embedded default) and Postgres.
//!
//! - SQLite: WAL and `synchronous=FULL`, set in `after_connect` and read back; writers begin with `BEGIN IMMEDIATE`.
//! - Columns are TEXT, BIGINT or BYTEA; times are milliseconds.
//! - A state change, its effects and its audit line belong in one transaction: functions that write take `&mut Tx`.
//! - A run is only written under its fence: `WHERE id = ? AND fence = ?`.
//! - On SQLite this process has one connection that writes: whoever holds a [`Tx`] must not call a function that
//!   begins its own (`runs::claim`, `runs::heartbeat`, `ledger::reserve`, `inbox::insert`, `Store::ping`, …).

pub mod access;
pub mod approvals;
pub mod artifacts;
pub mod attempts;
pub mod audit;
pub mod backup;
pub mod duties;
pub mod effects;
pub mod egress;
pub mod inbox;
pub mod ledger;
pub mod logs;
pub mod nodes;
mod open;
pub mod pushes;
pub mod questions;
pub mod repair;
pub mod retention;
mod rows;
pub mod runs;
pub mod samples;
pub mod settings;
pub mod tasks;
#[cfg(test)]
mod testing;
mod writer;

use rows::sql;
use std::path::Path;
use std::sync::Arc;

/// Which database holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseKind {
    Sqlite,
    Postgres,
}

/// What must be free for new deliveries: runs and effects that are under way write, too, and so do checkpoints.
const LEAST_FREE_BYTES: u64 = 64 * 1024 * 1024;

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("database: {operation}")]
    Sql {
        operation: &'static str,
        #[source]
        source: sqlx::Error,
    },
    /// A row that this program cannot have written.
    #[error("database: {table}.{column} of `{id}` is not valid: {detail}")]
    BadRow { table: &'static str, column: &'static str, id: String, detail: String },
    /// The run was claimed by somebody else in between.
    #[error("run {run}: the lease was lost")]
    Fenced { run: String },
    #[error("database url `{url}`: {detail}")]
    Url { url: String, detail: String },
    #[error("migrations: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Too many deliveries wait to be stored.
    #[error("the inbox writer is overloaded")]
    Overloaded,
}

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    /// Reads; on SQLite its connections refuse to write.
    pub(crate) pool: sqlx::AnyPool,
    pub(crate) kind: DatabaseKind,
    pub(crate) inbox: inbox::Writer,
    /// Writes: one connection on SQLite, which writers share in turn.
    writers: writer::Writers,
    folder: Option<Arc<Path>>,
    checkpoints: Option<Arc<open::Checkpoints>>,
}

/// One migration of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    pub version: i64,
    pub name: String,
    /// It was not there before.
    pub now: bool,
}

/// A write transaction; rolled back when dropped without `commit`.
#[derive(Debug)]
pub struct Tx {
    inner: writer::Inner,
    pub(crate) kind: DatabaseKind,
}

impl Store {
    /// `sqlite:PATH` (created when missing), `sqlite::memory:` is refused; `postgres://…`. Applies migrations.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        open::open(url).await
    }

    /// Brings a database up to this program's schema: every migration with its name, and whether it was applied now.
    pub async fn migrate(url: &str) -> Result<Vec<Migrated>, StoreError> {
        open::migrate(url).await
    }

    /// Which database this is.
    pub fn kind(&self) -> DatabaseKind {
        self.kind
    }

    /// Begins a write transaction (`BEGIN IMMEDIATE` on SQLite, where those who write at the same time share a commit).
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn write_tx(&self) -> Result<Tx, StoreError> {
        self.writers.begin(writer::Flush::Now).await
    }

    /// A write transaction whose commit may be lost when the machine stops (never when the process does), unless one of
    /// `write_tx` came after it: that flushes all before it. For what nobody outside this machine learns of sooner: all
    /// who acted on it stopped with the machine. On Postgres it is as durable as any.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn lazy_tx(&self) -> Result<Tx, StoreError> {
        self.writers.begin(writer::Flush::Later).await
    }

    /// A write and a read go through: for `/readyz` and `doctor`.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut tx = self.write_tx().await?;
        sqlx::query(
            "INSERT INTO settings (key, value, updated_at) VALUES ('ping', '', 0) \
             ON CONFLICT (key) DO UPDATE SET updated_at = settings.updated_at + 1",
        )
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("write a ping"))?;
        tx.commit().await?;
        sqlx::query("SELECT updated_at FROM settings WHERE key = 'ping'")
            .fetch_one(&self.pool)
            .await
            .map_err(sql("read a ping"))?;
        Ok(())
    }

    /// The folder of the SQLite file, for disk checks; `None` on Postgres.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Whether the disk of the SQLite file has so little room left that nothing new should begin; never on Postgres,
    /// whose disk is elsewhere.
    pub fn is_nearly_full(&self) -> bool {
        self.folder().and_then(free_bytes).is_some_and(|free| free < LEAST_FREE_BYTES)
    }

    /// Commits that waited for the disk since the store was opened, on SQLite: fewer than the transactions that
    /// committed when many wrote at the same time.
    pub fn commits(&self) -> u64 {
        self.writers.commits()
    }

    /// Closes every connection; all clones of this store are unusable afterwards.
    pub async fn close(&self) {
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.stop();
        }
        self.pool.close().await;
        self.writers.close().await;
    }
}

/// Room on the disk of a folder; `None`: the system does not say.
fn free_bytes(folder: &Path) -> Option<u64> {
    let room = rustix::fs::statvfs(folder).ok()?;
    Some(room.f_bavail.saturating_mul(room.f_frsize))
}

impl Tx {
    /// Makes the changes durable, or only visible when the transaction is a lazy one.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn commit(self) -> Result<(), StoreError> {
        self.inner.commit().await
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{at, each_database};
    use super::*;
    use futures_util::future::join_all;

    #[tokio::test]
    async fn a_ping_writes_and_reads() {
        each_database(async |database| {
            database.store.ping().await.unwrap();
            database.store.ping().await.unwrap();
            database.store.close().await;
            let error = database.store.ping().await.unwrap_err();
            assert!(matches!(error, StoreError::Sql { operation: "begin a transaction", .. }), "{error}");
        })
        .await;
    }

    #[test]
    fn the_room_of_a_disk_is_known() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).unwrap() > 0);
        assert_eq!(free_bytes(Path::new("/proc/no such folder")), None);
    }

    #[tokio::test]
    async fn a_transaction_that_is_not_committed_leaves_nothing() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            settings::set(&mut tx, "key", Some("lost"), at(0)).await.unwrap();
            drop(tx);
            assert_eq!(settings::get(store, "key").await.unwrap(), None);
            let mut tx = store.write_tx().await.unwrap();
            settings::set(&mut tx, "key", Some("kept"), at(0)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(settings::get(store, "key").await.unwrap().as_deref(), Some("kept"));
        })
        .await;
    }

    #[tokio::test]
    async fn many_writers_in_two_processes_wait_for_each_other() {
        each_database(async |database| {
            let other = Store::open(&database.url).await.unwrap();
            let one_write = async |n: usize| {
                let store = if n.is_multiple_of(2) { &database.store } else { &other };
                let mut tx = store.write_tx().await.unwrap();
                // Reads, then writes: what fails under a plain BEGIN.
                sqlx::query("SELECT COUNT(*) AS n FROM settings").fetch_one(&mut *tx.inner).await.unwrap();
                settings::set(&mut tx, &format!("key {n}"), Some("value"), at(0)).await.unwrap();
                tx.commit().await.unwrap();
            };
            join_all((0..100).map(one_write)).await;
            let row = sqlx::query("SELECT COUNT(*) AS n, '' AS id FROM settings")
                .fetch_one(&other.pool)
                .await
                .unwrap();
            assert_eq!(rows::RowReader::new(&row, "settings", "id").integer("n").unwrap(), 100);
            other.close().await;
        })
        .await;
    }
}
