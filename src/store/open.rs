//! Opening a database: address, pragmas (set and read back), migrations, checkpoints.

use super::rows::sql;
use super::writer::{Commits, TURN_TIMEOUT, Writers};
use super::{DatabaseKind, Migrated, Store, StoreError, inbox};
use sqlx::any::AnyPoolOptions;
use sqlx::migrate::Migrator;
use sqlx::{AnyConnection, AnyPool, Connection, Row};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// The schema, embedded. Files are only ever added.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

static DRIVERS: Once = Once::new();

/// SQLite connections that read (each is one thread).
const SQLITE_READERS: u32 = 4;
/// Connections to Postgres; its default is 100 for all clients.
const POSTGRES_CONNECTIONS: u32 = 10;
/// How long one statement waits for another process that writes, in milliseconds.
const BUSY_TIMEOUT_MS: i64 = 10_000;
/// Page size of new files, in bytes: bodies of 5 to 20 kB fit in one or two pages.
const PAGE_BYTES: i64 = 16_384;
/// Backstop, in pages (256 MiB): a writer checkpoints by itself only when the background task is far behind.
const AUTOCHECKPOINT_PAGES: i64 = 16_384;
/// How often it is asked whether committed pages are to be copied from the log to the file, off the path of an answer.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// They are after so many commits. Not after each: the first commit after a checkpoint begins the log anew, and waits for
/// the disk twice.
const MANY_COMMITS: u64 = 64;
/// They are after this time, however few there are; what was committed lazily is on the disk then, too.
const LONGEST_UNCOPIED: Duration = Duration::from_secs(10);
/// Pages in the log (64 MiB) from which a checkpoint stops writers for a moment, so that the log starts anew.
const LONG_LOG_PAGES: i64 = 4_096;
/// It stops them when so few pages (1 MiB) came since all before them were flushed: they wait for these and for their
/// flush.
const FEW_PAGES: i64 = 64;
/// How often it catches up before it stops writers all the same.
const CATCH_UPS: usize = 5;
/// The log file is cut back to this size, in bytes, when it starts anew.
const LOG_BYTES_KEPT: i64 = 64 * 1024 * 1024;
/// Attempts to set up a file that another process sets up at the same moment.
const SETUP_TRIES: u32 = 20;
/// Pause between two such attempts.
const SETUP_PAUSE: Duration = Duration::from_millis(100);

/// What a connection is used for: decides its pragmas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Write,
    Read,
}

/// Where the connection that writes to an SQLite file is to be had.
#[derive(Debug)]
pub(super) struct WriterAddress {
    url: String,
}

impl WriterAddress {
    pub(super) async fn connect(&self) -> Result<AnyConnection, StoreError> {
        const OPERATION: &str = "open the database for writing";
        let mut connection = AnyConnection::connect(&self.url).await.map_err(sql(OPERATION))?;
        pragmas(&mut connection, Use::Write).await.map_err(sql(OPERATION))?;
        Ok(connection)
    }
}

enum Address {
    Sqlite { path: PathBuf },
    Postgres { url: String },
}

pub(super) async fn open(url: &str) -> Result<Store, StoreError> {
    DRIVERS.call_once(sqlx::any::install_default_drivers);
    match parse(url)? {
        Address::Sqlite { path } => open_sqlite(&path).await,
        Address::Postgres { url } => open_postgres(&url).await,
    }
}

/// Versions of the migrations that this program has.
pub(super) fn known() -> Vec<i64> {
    MIGRATIONS.iter().map(|migration| migration.version).collect()
}

/// Versions of the migrations that a database has.
pub(super) async fn applied(connection: &mut AnyConnection) -> Result<Vec<i64>, StoreError> {
    let rows = sqlx::query("SELECT version FROM _sqlx_migrations ORDER BY version")
        .fetch_all(connection)
        .await
        .map_err(sql("list the migrations"))?;
    rows.iter().map(|row| row.try_get(0).map_err(sql("list the migrations"))).collect()
}

/// See `Store::migrate`.
pub(super) async fn migrate(url: &str) -> Result<Vec<Migrated>, StoreError> {
    DRIVERS.call_once(sqlx::any::install_default_drivers);
    let before = match parse(url)? {
        // Not made just to look.
        Address::Sqlite { path } if !path.exists() => Vec::new(),
        Address::Sqlite { path } => versions(&sqlite_url(&path)?).await?,
        Address::Postgres { url } => versions(&url).await?,
    };
    open(url).await?.close().await;
    let all = MIGRATIONS.iter().map(|migration| Migrated {
        version: migration.version,
        name: migration.description.to_string(),
        now: !before.contains(&migration.version),
    });
    Ok(all.collect())
}

/// None in a database that never had a migration.
async fn versions(url: &str) -> Result<Vec<i64>, StoreError> {
    let mut connection = AnyConnection::connect(url).await.map_err(sql("open the database"))?;
    let found = applied(&mut connection).await;
    connection.close().await.map_err(sql("close the database"))?;
    match found {
        Err(StoreError::Sql { source: sqlx::Error::Database(_), .. }) => Ok(Vec::new()),
        found => found,
    }
}

/// The address as it may be shown: without user name and password.
fn shown(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) if parsed.has_host() => {
            let hidden = parsed.password().is_none() || parsed.set_password(Some("***")).is_ok();
            parsed.set_query(None);
            if hidden { parsed.to_string() } else { format!("{}://…", parsed.scheme()) }
        }
        Ok(_) => url.to_owned(),
        Err(_) => match url.split_once(':') {
            Some(("sqlite", _)) => url.to_owned(),
            Some((scheme, _)) => format!("{}:…", scheme.chars().take(20).collect::<String>()),
            None => "…".to_owned(),
        },
    }
}

fn parse(url: &str) -> Result<Address, StoreError> {
    let invalid = |detail: &str| StoreError::Url { url: shown(url), detail: detail.to_owned() };
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(invalid("has no path; write sqlite:PATH, e.g. sqlite:/var/lib/zeblit/zeblit.db"));
        }
        if path.contains(":memory:") || path.contains("mode=memory") {
            return Err(invalid("a database in memory would lose every delivery; name a file"));
        }
        if path.contains('?') {
            return Err(invalid("takes no options after `?`; the program sets what it needs"));
        }
        let path = std::path::absolute(path).map_err(|error| invalid(&error.to_string()))?;
        return Ok(Address::Sqlite { path });
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        url::Url::parse(url).map_err(|error| invalid(&error.to_string()))?;
        return Ok(Address::Postgres { url: url.to_owned() });
    }
    Err(invalid("must begin with sqlite: or postgres://"))
}

/// `sqlite:` address of a path: everything but plain characters is percent-encoded, as sqlx decodes it.
fn sqlite_url(path: &Path) -> Result<String, StoreError> {
    let text = path.to_str().ok_or_else(|| StoreError::Url {
        url: path.display().to_string(),
        detail: "the path is not UTF-8".to_owned(),
    })?;
    let mut url = String::from("sqlite://");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-') {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str("?mode=rwc");
    Ok(url)
}

async fn open_sqlite(path: &Path) -> Result<Store, StoreError> {
    let unusable = |detail: String| StoreError::Url { url: format!("sqlite:{}", path.display()), detail };
    let folder = path.parent().ok_or_else(|| unusable("has no folder".to_owned()))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| unusable(format!("cannot create the folder {}: {error}", folder.display())))?;
    // Readable by its owner only: it holds the text of private repositories. The log files inherit it.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(format!("cannot create the file: {error}"))),
    }
    let url = sqlite_url(path)?;
    set_up_sqlite(&url).await?;
    let commits = Arc::<Commits>::default();
    let writers = Writers::in_turn(WriterAddress { url: url.clone() }, Arc::clone(&commits)).await?;
    let pool = AnyPoolOptions::new()
        .acquire_timeout(TURN_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .max_connections(SQLITE_READERS)
        .after_connect(|connection, _| Box::pin(pragmas(connection, Use::Read)))
        .connect(&url)
        .await
        .map_err(sql("open the database for reading"))?;
    let checkpoints = Checkpoints::start(&url, path, commits).await?;
    Ok(Store {
        pool,
        kind: DatabaseKind::Sqlite,
        inbox: inbox::Writer::start(writers.clone()),
        writers,
        folder: Some(Arc::from(folder)),
        checkpoints: Some(Arc::new(checkpoints)),
    })
}

/// Pragmas and migrations on a connection of its own, so that an error is told at once: a pool would retry it.
async fn set_up_sqlite(url: &str) -> Result<(), StoreError> {
    let mut tries = 0;
    loop {
        match try_set_up_sqlite(url).await {
            Err(error) if is_busy(&error) && tries < SETUP_TRIES => {
                tries += 1;
                tokio::time::sleep(SETUP_PAUSE).await;
            }
            result => return result,
        }
    }
}

async fn try_set_up_sqlite(url: &str) -> Result<(), StoreError> {
    let mut connection = AnyConnection::connect(url).await.map_err(sql("open the database"))?;
    pragmas(&mut connection, Use::Write).await.map_err(sql("set up the database"))?;
    // One transaction around all migrations: two processes that start together do not both apply them.
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.map_err(sql("begin the migrations"))?;
    MIGRATIONS.run(&mut *tx).await?;
    tx.commit().await.map_err(sql("commit the migrations"))?;
    connection.close().await.map_err(sql("close the database after its set-up"))
}

fn is_busy(error: &StoreError) -> bool {
    let source = match error {
        StoreError::Sql { source, .. } => source,
        StoreError::Migrate(
            sqlx::migrate::MigrateError::Execute(source)
            | sqlx::migrate::MigrateError::ExecuteMigration(source, _),
        ) => source,
        _ => return false,
    };
    is_busy_code(source)
}

/// SQLITE_BUSY (5) or one of its extended codes.
fn is_busy_code(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code().and_then(|code| code.parse::<u32>().ok()))
        .is_some_and(|code| code & 0xff == 5)
}

/// Sets the pragmas and reads each back; the error names the one that did not take.
async fn pragmas(connection: &mut AnyConnection, purpose: Use) -> Result<(), sqlx::Error> {
    let pages = read_pragma(connection, "PRAGMA page_count").await?;
    if pages == "0" && purpose == Use::Write {
        // Only works before the first page is written.
        set_pragma(connection, "PRAGMA page_size", "PRAGMA page_size = 16384", &PAGE_BYTES.to_string())
            .await?;
    }
    set_pragma(
        connection,
        "PRAGMA busy_timeout",
        "PRAGMA busy_timeout = 10000",
        &BUSY_TIMEOUT_MS.to_string(),
    )
    .await?;
    set_pragma(connection, "PRAGMA journal_mode", "PRAGMA journal_mode = WAL", "wal").await?;
    let (set, wanted) = ("PRAGMA synchronous = FULL", "2");
    set_pragma(connection, "PRAGMA synchronous", set, wanted).await?;
    set_pragma(connection, "PRAGMA foreign_keys", "PRAGMA foreign_keys = OFF", "0").await?;
    match purpose {
        Use::Write => {
            set_pragma(
                connection,
                "PRAGMA wal_autocheckpoint",
                "PRAGMA wal_autocheckpoint = 16384",
                &AUTOCHECKPOINT_PAGES.to_string(),
            )
            .await?;
            set_pragma(
                connection,
                "PRAGMA journal_size_limit",
                "PRAGMA journal_size_limit = 67108864",
                &LOG_BYTES_KEPT.to_string(),
            )
            .await?;
            // What a savepoint would undo: a few pages, which would else go through a file in the folder for those.
            set_pragma(connection, "PRAGMA temp_store", "PRAGMA temp_store = MEMORY", "2").await
        }
        Use::Read => set_pragma(connection, "PRAGMA query_only", "PRAGMA query_only = ON", "1").await,
    }
}

async fn set_pragma(
    connection: &mut AnyConnection,
    read: &'static str,
    set: &'static str,
    wanted: &str,
) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(set).execute(&mut *connection).await.map_err(|error| pragma_error(set, error))?;
    let found = read_pragma(connection, read).await?;
    if found == wanted {
        Ok(())
    } else {
        Err(sqlx::Error::Configuration(
            format!("{read} is `{found}` after `{set}`; it must be `{wanted}` or deliveries could be lost")
                .into(),
        ))
    }
}

/// Names the pragma; a busy database stays what it is, because its code decides about a retry.
fn pragma_error(set: &'static str, error: sqlx::Error) -> sqlx::Error {
    if is_busy_code(&error) { error } else { sqlx::Error::Configuration(format!("{set}: {error}").into()) }
}

async fn read_pragma(connection: &mut AnyConnection, read: &'static str) -> Result<String, sqlx::Error> {
    let row = sqlx::query(read).fetch_one(connection).await?;
    match row.try_get::<i64, _>(0) {
        Ok(number) => Ok(number.to_string()),
        Err(_) => row.try_get::<String, _>(0),
    }
}

async fn open_postgres(url: &str) -> Result<Store, StoreError> {
    let mut connection = AnyConnection::connect(url).await.map_err(sql("connect to Postgres"))?;
    MIGRATIONS.run(&mut connection).await?;
    connection.close().await.map_err(sql("close the connection that migrated"))?;
    let pool = AnyPoolOptions::new()
        .acquire_timeout(TURN_TIMEOUT)
        .max_connections(POSTGRES_CONNECTIONS)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // What the claim and the answer to a delivery rely on, whatever the server's default is.
                sqlx::raw_sql(
                    "SET synchronous_commit = on; SET default_transaction_isolation = 'read committed'",
                )
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .connect(url)
        .await
        .map_err(sql("connect to Postgres"))?;
    let writers = Writers::Many(pool.clone());
    Ok(Store {
        inbox: inbox::Writer::start(writers.clone()),
        writers,
        pool,
        kind: DatabaseKind::Postgres,
        folder: None,
        checkpoints: None,
    })
}

/// The task that copies the write-ahead log into the file; ends with the last `Store`.
#[derive(Debug)]
pub(super) struct Checkpoints {
    task: AbortHandle,
}

impl Checkpoints {
    async fn start(url: &str, path: &Path, commits: Arc<Commits>) -> Result<Self, StoreError> {
        let file = never_closed(path)?;
        let pool = AnyPoolOptions::new()
            .acquire_timeout(TURN_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .max_connections(1)
            .after_connect(|connection, _| Box::pin(pragmas(connection, Use::Write)))
            .connect(url)
            .await
            .map_err(sql("open the database for checkpoints"))?;
        let task = tokio::spawn(async move {
            let (mut copied, mut copied_at) = (0, Instant::now());
            loop {
                tokio::time::sleep(CHECKPOINT_EVERY).await;
                let committed = commits.all();
                if !is_due(committed - copied, copied_at.elapsed()) {
                    continue;
                }
                match checkpoint(&pool, file).await {
                    Ok(()) => (copied, copied_at) = (committed, Instant::now()),
                    Err(error) => {
                        tracing::warn!(%error, "a checkpoint failed; the next one is tried in a second");
                    }
                }
            }
        });
        Ok(Self { task: task.abort_handle() })
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether so many commits are to be copied, so long after the last copy.
fn is_due(commits: u64, since: Duration) -> bool {
    commits >= MANY_COMMITS || (commits > 0 && since >= LONGEST_UNCOPIED)
}

/// The database's file, for flushing it. It stays open until the process ends: to close any descriptor of a file is to give
/// up all locks that the process has on it, SQLite's among them (<https://sqlite.org/howtocorrupt.html>, 2.2).
fn never_closed(path: &Path) -> Result<&'static File, StoreError> {
    let file = File::open(path).map_err(|error| sql("open the database's file")(sqlx::Error::Io(error)))?;
    Ok(Box::leak(Box::new(file)))
}

/// Copies what it can without stopping anybody. When the log got long, it goes on until little is left, and stops writers
/// for that, so that the log starts anew. SQLite flushes the file only when nothing is left, in the time of the writers:
/// it is flushed here before.
async fn checkpoint(pool: &AnyPool, file: &'static File) -> Result<(), sqlx::Error> {
    let mut before = 0;
    for _ in 0..CATCH_UPS {
        let row = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(pool).await?;
        let pages: i64 = row.try_get(1)?;
        if pages <= LONG_LOG_PAGES {
            return Ok(());
        }
        let flushed = tokio::task::spawn_blocking(|| file.sync_data()).await;
        flushed.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)))?;
        if pages - before <= FEW_PAGES {
            break;
        }
        before = pages;
    }
    sqlx::query("PRAGMA wal_checkpoint(RESTART)").fetch_one(pool).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::writer::Flush;
    use super::*;
    use crate::domain::event::Source;
    use crate::domain::ids::InboxId;
    use crate::store::testing::at;
    use std::os::unix::fs::PermissionsExt;

    fn file(folder: &tempfile::TempDir, name: &str) -> (PathBuf, String) {
        let path = folder.path().join(name);
        let url = format!("sqlite:{}", path.display());
        (path, url)
    }

    #[tokio::test]
    async fn bad_addresses_are_refused_with_a_reason_and_without_the_password() {
        for (url, part) in [
            ("", "must begin with sqlite:"),
            ("mysql://me:hunter2@host/db", "must begin with sqlite:"),
            ("sqlite:", "has no path"),
            ("sqlite://", "has no path"),
            ("sqlite::memory:", "would lose every delivery"),
            ("sqlite://:memory:", "would lose every delivery"),
            ("sqlite:file.db?mode=ro", "takes no options"),
            ("postgres://me:hunter2@[bad/db", "invalid IPv6"),
        ] {
            let error = open(url).await.unwrap_err();
            assert!(matches!(error, StoreError::Url { .. }), "{url}: {error}");
            let text = error.to_string();
            assert!(text.contains(part), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_password_is_not_in_the_error_of_a_server_that_does_not_answer() {
        // Port 1 of the loopback: nothing listens there.
        let error = open("postgres://me:hunter2@127.0.0.1:1/db?password=hunter2").await.unwrap_err();
        let shown = format!("{error} {error:?} {:?}", std::error::Error::source(&error));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[tokio::test]
    async fn a_new_file_has_its_folder_its_pragmas_and_one_reader_of_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let (path, url) = file(&folder, "deep/er/with space % # ü.db");
        let store = open(&url).await.unwrap();
        assert_eq!(store.folder(), path.parent());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut tx = store.write_tx().await.unwrap();
        for (pragma, wanted) in [
            ("PRAGMA journal_mode", "wal"),
            ("PRAGMA synchronous", "2"),
            ("PRAGMA busy_timeout", "10000"),
            ("PRAGMA page_size", "16384"),
            ("PRAGMA foreign_keys", "0"),
            ("PRAGMA wal_autocheckpoint", "16384"),
            ("PRAGMA temp_store", "2"),
        ] {
            assert_eq!(read_pragma(&mut tx.inner, pragma).await.unwrap(), wanted, "{pragma}");
        }
        drop(tx);
        let mut reader = store.pool.acquire().await.unwrap();
        assert_eq!(read_pragma(&mut reader, "PRAGMA synchronous").await.unwrap(), "2");
        let write = sqlx::query("DELETE FROM settings").execute(&mut *reader).await;
        assert!(write.unwrap_err().to_string().contains("readonly"));
        drop(reader);
        store.close().await;
        assert!(path.is_file());
    }

    #[tokio::test]
    async fn a_pragma_that_does_not_take_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (path, url) = file(&folder, "zeblit.db");
        let _store = open(&url).await.unwrap();
        let mut connection = AnyConnection::connect(&sqlite_url(&path).unwrap()).await.unwrap();
        let error = set_pragma(&mut connection, "PRAGMA synchronous", "PRAGMA synchronous = NORMAL", "2")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("PRAGMA synchronous is `1`"), "{error}");
    }

    #[tokio::test]
    async fn what_was_stored_is_there_after_a_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let (path, url) = file(&folder, "zeblit.db");
        let store = open(&url).await.unwrap();
        let delivery = inbox::NewDelivery {
            id: InboxId::new("inbox"),
            source: Source::Github,
            delivery_id: "delivery".to_owned(),
            event: "ping".to_owned(),
            ignored: None,
            headers: Vec::new(),
            raw: bytes::Bytes::from_static(b"{}"),
            received_at: at(0),
        };
        assert_eq!(inbox::insert(&store, delivery).await.unwrap(), inbox::Inserted::New);
        // Not closed in an orderly way: a copy of the files, as a crash would leave them.
        let (copy, copy_url) = file(&folder, "copy.db");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::copy(path.with_extension("db-wal"), copy.with_extension("db-wal")).unwrap();
        let copied = open(&copy_url).await.unwrap();
        assert!(inbox::get(&copied, "inbox").await.unwrap().is_some());
        copied.close().await;
        store.close().await;
        let again = open(&url).await.unwrap();
        assert!(inbox::get(&again, "inbox").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn two_processes_may_create_the_database_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let (_, url) = file(&folder, "zeblit.db");
        let opened = futures_util::future::join_all((0..4).map(|_| open(&url))).await;
        for store in opened {
            store.unwrap().ping().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, url) = file(&folder, "zeblit.db");
        std::fs::write(&path, "this is no database, and longer than a header of a hundred bytes ".repeat(9))
            .unwrap();
        assert!(matches!(open(&url).await, Err(StoreError::Sql { .. })));
        let (_, inside_a_file) = file(&folder, "zeblit.db/below.db");
        assert!(matches!(open(&inside_a_file).await, Err(StoreError::Url { .. })));
    }

    #[test]
    fn many_commits_are_copied_soon_and_few_together() {
        let (soon, late) = (CHECKPOINT_EVERY, LONGEST_UNCOPIED);
        assert!(is_due(MANY_COMMITS, soon) && is_due(1, late));
        assert!(!is_due(MANY_COMMITS - 1, soon));
        assert!(!is_due(0, late * 100), "an idle server leaves the disk alone");
    }

    #[tokio::test]
    async fn every_commit_counts_for_the_next_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let (path, url) = file(&folder, "zeblit.db");
        drop(open(&url).await.unwrap());
        let commits = Arc::<Commits>::default();
        let address = WriterAddress { url: sqlite_url(&path).unwrap() };
        let writers = Writers::in_turn(address, Arc::clone(&commits)).await.unwrap();
        for (flush, wanted) in [(Flush::Now, 1), (Flush::Later, 2)] {
            let mut tx = writers.begin(flush).await.unwrap();
            sqlx::query("DELETE FROM artifacts").execute(&mut *tx.inner).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(commits.all(), wanted);
        }
        drop(writers.begin(Flush::Now).await.unwrap());
        assert_eq!(commits.all(), 2, "nothing was committed");
    }

    #[tokio::test]
    async fn a_checkpoint_empties_the_log_without_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let (path, url) = file(&folder, "zeblit.db");
        let store = open(&url).await.unwrap();
        store.ping().await.unwrap();
        let before = std::fs::metadata(&path).unwrap().len();
        let mut tx = store.write_tx().await.unwrap();
        sqlx::query("INSERT INTO artifacts (run, part, bytes, created_at) VALUES ('run', 'part', $1, 0)")
            .bind(vec![7_u8; 1_000_000])
            .execute(&mut *tx.inner)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let other =
            AnyPoolOptions::new().max_connections(1).connect(&sqlite_url(&path).unwrap()).await.unwrap();
        // A writer at work does not stop it.
        let tx = store.write_tx().await.unwrap();
        checkpoint(&other, never_closed(&path).unwrap()).await.unwrap();
        drop(tx);
        assert!(std::fs::metadata(&path).unwrap().len() >= before + 900_000);
    }

    #[tokio::test]
    async fn the_checkpoint_task_ends_with_the_last_store() {
        let folder = tempfile::tempdir().unwrap();
        let (_, url) = file(&folder, "zeblit.db");
        let store = open(&url).await.unwrap();
        let task = store.checkpoints.as_ref().unwrap().task.clone();
        let clone = store.clone();
        drop(store);
        tokio::task::yield_now().await;
        assert!(!task.is_finished());
        drop(clone);
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
    }
}
