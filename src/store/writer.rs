//! Who writes when. Postgres takes many writers at once; SQLite takes one, and each commit waits for the disk: here
//! those who write at the same time share one commit.
//!
//! A task owns the connection that writes. It begins a transaction, lends the connection to one writer after the other,
//! and commits when nobody waits any more; each writer after the first is a savepoint, so that what it gives up takes
//! nothing else with it. `commit` returns when the disk has the commit of all, and its failure is everybody's.
//!
//! A group of lazy writers commits without waiting for the disk (`synchronous=NORMAL`). A process that dies loses nothing
//! by it. A machine that stops loses the end of the log and never its middle: the next commit that waits flushes what was
//! written before it, too.

use super::open::WriterAddress;
use super::rows::{for_each_of_them, sql};
use super::{DatabaseKind, StoreError, Tx};
use sqlx::{AnyConnection, AnyPool};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};

/// Longest wait for one's turn: longer than any transaction of ours, short enough to fail a request.
pub(super) const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// Writers that share one commit.
const GROUP_LENGTH: usize = 256;
/// A group takes nobody in any more when it began so long ago: its first one waits.
const GROUP_TIME: Duration = Duration::from_millis(20);

/// Begins write transactions. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Writers {
    Many(AnyPool),
    InTurn { queue: mpsc::UnboundedSender<Asked>, commits: Arc<Commits> },
}

/// How many commits there were since the file was opened.
#[derive(Debug, Default)]
pub(super) struct Commits {
    all: AtomicU64,
    /// Those that waited for the disk.
    flushed: AtomicU64,
}

impl Commits {
    pub(super) fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    fn count(&self, flush: Flush) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if flush == Flush::Now {
            self.flushed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    Now,
    Later,
}

/// What the task is asked for.
#[derive(Debug)]
pub(super) enum Asked {
    Turn(Flush, Lent),
    Close(oneshot::Sender<()>),
}

/// Takes the connection to whoever asked for it.
type Lent = oneshot::Sender<Result<Turn, StoreError>>;

/// The connection, for the time of one transaction. Dropped without an `end`, it is rolled back.
#[derive(Debug)]
pub(super) struct Turn {
    connection: OwnedMutexGuard<AnyConnection>,
    end: oneshot::Sender<Committer>,
}

type Committer = oneshot::Sender<Result<(), StoreError>>;

/// The connection of a write transaction.
#[derive(Debug)]
pub(super) enum Inner {
    Alone(sqlx::Transaction<'static, sqlx::Any>),
    Turn(Turn),
}

impl Deref for Inner {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        match self {
            Self::Alone(tx) => tx,
            Self::Turn(turn) => &turn.connection,
        }
    }
}

impl DerefMut for Inner {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        match self {
            Self::Alone(tx) => tx,
            Self::Turn(turn) => &mut turn.connection,
        }
    }
}

impl Inner {
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        const OPERATION: &str = "commit a transaction";
        match self {
            Self::Alone(tx) => tx.commit().await.map_err(sql(OPERATION)),
            Self::Turn(Turn { connection, end }) => {
                let (committer, committed) = oneshot::channel();
                drop(connection);
                // The task is gone: so is the answer.
                let _gone = end.send(committer);
                committed.await.unwrap_or_else(|_| Err(sql(OPERATION)(sqlx::Error::PoolClosed)))
            }
        }
    }
}

impl Writers {
    /// Starts the task of an SQLite file; it ends when the last `Writers` is gone, and commits what is under way.
    pub(super) async fn in_turn(address: WriterAddress, commits: Arc<Commits>) -> Result<Self, StoreError> {
        let connection = address.connect().await?;
        let (queue, asked) = mpsc::unbounded_channel();
        tokio::spawn(
            Lender { address, asked, connection: None, flush: Flush::Now, commits: Arc::clone(&commits) }
                .run(connection),
        );
        Ok(Self::InTurn { queue, commits })
    }

    /// Postgres always waits: its server can stop alone, and whoever acted on what it lost would go on.
    pub(super) async fn begin(&self, flush: Flush) -> Result<Tx, StoreError> {
        const OPERATION: &str = "begin a transaction";
        match self {
            Self::Many(pool) => {
                let tx = pool.begin().await.map_err(sql(OPERATION))?;
                Ok(Tx { inner: Inner::Alone(tx), kind: DatabaseKind::Postgres })
            }
            Self::InTurn { queue, .. } => {
                let closed = || sql(OPERATION)(sqlx::Error::PoolClosed);
                let (asked, turn) = oneshot::channel();
                queue.send(Asked::Turn(flush, asked)).map_err(|_| closed())?;
                let turn = tokio::time::timeout(TURN_TIMEOUT, turn)
                    .await
                    .map_err(|_| sql(OPERATION)(sqlx::Error::PoolTimedOut))?
                    .map_err(|_| closed())??;
                Ok(Tx { inner: Inner::Turn(turn), kind: DatabaseKind::Sqlite })
            }
        }
    }

    /// Commits that waited for the disk, on SQLite.
    pub(super) fn commits(&self) -> u64 {
        match self {
            Self::Many(_) => 0,
            Self::InTurn { commits, .. } => commits.flushed.load(Ordering::Relaxed),
        }
    }

    /// Nothing begins any more. What was begun ends first.
    pub(super) async fn close(&self) {
        match self {
            Self::Many(pool) => pool.close().await,
            Self::InTurn { queue, .. } => {
                let (close, closed) = oneshot::channel();
                if queue.send(Asked::Close(close)).is_ok() {
                    // An error: another close came first, and the task is gone.
                    let _gone = closed.await;
                }
            }
        }
    }
}

/// How a turn ended.
enum Ended {
    Committed(Committer),
    GivenUp,
}

/// The task that owns the connection.
struct Lender {
    address: WriterAddress,
    asked: mpsc::UnboundedReceiver<Asked>,
    /// None: it broke, and the next one connects again.
    connection: Option<Arc<Mutex<AnyConnection>>>,
    /// How the connection commits; as it is opened, each commit waits.
    flush: Flush,
    commits: Arc<Commits>,
}

impl Lender {
    async fn run(mut self, connection: AnyConnection) {
        self.connection = Some(Arc::new(Mutex::new(connection)));
        let mut next = self.asked.recv().await;
        while let Some(asked) = next {
            match asked {
                Asked::Turn(flush, first) => {
                    next = match self.group(flush, first).await {
                        Some(asked) => Some(asked),
                        None => self.asked.recv().await,
                    };
                }
                Asked::Close(closed) => {
                    // Who still waits is told by the end of the queue.
                    self.asked.close();
                    drop(self);
                    let _gone = closed.send(());
                    return;
                }
            }
        }
    }

    /// One transaction, and everybody who writes in it. Gives back what was asked for and is none of it.
    async fn group(&mut self, flush: Flush, first: Lent) -> Option<Asked> {
        if first.is_closed() {
            return None;
        }
        let connection = match self.begin(flush).await {
            Ok(connection) => connection,
            Err(error) => {
                self.broke();
                let _gone = first.send(Err(error));
                return None;
            }
        };
        let mut waiting = Vec::new();
        let began = Instant::now();
        let mut asked = first;
        let mut is_savepoint = false;
        loop {
            let ended = lend(&connection, asked).await;
            let mut locked = connection.lock().await;
            let given_up = matches!(ended, Ended::GivenUp);
            if let Ended::Committed(committer) = ended {
                waiting.push(committer);
            }
            let next = self.next_of_group(waiting.len(), began);
            let joins = match (&next, flush) {
                (Some(Asked::Turn(..)), Flush::Now) | (Some(Asked::Turn(Flush::Later, _)), Flush::Later) => {
                    true
                }
                // Who waits for the disk is no member of a group that does not.
                (Some(Asked::Turn(Flush::Now, _)), Flush::Later) | (Some(Asked::Close(_)) | None, _) => false,
            };
            let goes_on = joins && !(given_up && waiting.is_empty());
            let text = match (given_up, goes_on) {
                // The first one: there is nothing else in the transaction.
                (true, _) if waiting.is_empty() => "ROLLBACK",
                (true, true) => "ROLLBACK TO turn",
                (true, false) => "ROLLBACK TO turn; COMMIT",
                (false, true) if is_savepoint => "RELEASE turn; SAVEPOINT turn",
                (false, true) => "SAVEPOINT turn",
                (false, false) => "COMMIT",
            };
            let done = sqlx::query(text).execute(&mut *locked).await;
            drop(locked);
            if let Err(error) = done {
                // Also when SQLite ended the transaction itself (a full disk): nothing of it is there.
                self.broke();
                tell_all(waiting, sql("commit a transaction")(error));
                return next;
            }
            match next {
                Some(Asked::Turn(_, next)) if goes_on => {
                    is_savepoint = true;
                    asked = next;
                }
                next => {
                    if !waiting.is_empty() {
                        self.commits.count(flush);
                    }
                    for committer in waiting {
                        let _gone = committer.send(Ok(()));
                    }
                    return next;
                }
            }
        }
    }

    async fn begin(&mut self, flush: Flush) -> Result<Arc<Mutex<AnyConnection>>, StoreError> {
        let connection = match &self.connection {
            Some(connection) => Arc::clone(connection),
            None => Arc::new(Mutex::new(self.address.connect().await?)),
        };
        let text = match (self.flush, flush) {
            (Flush::Now, Flush::Later) => "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE",
            (Flush::Later, Flush::Now) => "PRAGMA synchronous = FULL; BEGIN IMMEDIATE",
            (Flush::Now, Flush::Now) | (Flush::Later, Flush::Later) => "BEGIN IMMEDIATE",
        };
        sqlx::query(text).execute(&mut *connection.lock().await).await.map_err(sql("begin a transaction"))?;
        self.flush = flush;
        self.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// The next group connects again.
    fn broke(&mut self) {
        self.connection = None;
        self.flush = Flush::Now;
    }

    /// Who waits already, if the group may grow.
    fn next_of_group(&mut self, members: usize, began: Instant) -> Option<Asked> {
        if members >= GROUP_LENGTH || began.elapsed() >= GROUP_TIME {
            return None;
        }
        loop {
            match self.asked.try_recv().ok()? {
                Asked::Turn(_, asked) if asked.is_closed() => {}
                asked => return Some(asked),
            }
        }
    }
}

/// Lends the connection until its borrower commits or drops it.
async fn lend(connection: &Arc<Mutex<AnyConnection>>, asked: Lent) -> Ended {
    let (end, ended) = oneshot::channel();
    let turn = Turn { connection: Arc::clone(connection).lock_owned().await, end };
    // What is not taken comes back, and must go at once: nobody else would ever end this turn.
    drop(asked.send(Ok(turn)));
    match ended.await {
        Ok(committer) => Ended::Committed(committer),
        Err(_) => Ended::GivenUp,
    }
}

fn tell_all(waiting: Vec<Committer>, error: StoreError) {
    for (committer, error) in waiting.into_iter().zip(for_each_of_them(error)) {
        let _gone = committer.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::super::{Store, settings};
    use super::*;
    use futures_util::future::join_all;
    use sqlx::{Connection, Row};

    async fn set(tx: &mut Tx, key: &str) {
        settings::set(tx, key, Some("kept"), at(0)).await.unwrap();
    }

    async fn write(store: &Store, key: &str) -> Result<(), StoreError> {
        let mut tx = store.write_tx().await?;
        set(&mut tx, key).await;
        tx.commit().await
    }

    async fn keys(store: &Store) -> Vec<String> {
        let rows = sqlx::query("SELECT key FROM settings ORDER BY key").fetch_all(&store.pool).await.unwrap();
        rows.iter().map(|row| row.try_get("key").unwrap()).collect()
    }

    /// An SQLite store whose folder lives as long.
    async fn sqlite() -> (tempfile::TempDir, String, Store) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("zeblit.db").display());
        let store = Store::open(&url).await.unwrap();
        (folder, url, store)
    }

    #[tokio::test]
    async fn a_turn_that_comes_too_late_is_given_up() {
        let (_folder, url, store) = sqlite().await;
        let connection = AnyConnection::connect(&url).await.unwrap();
        let connection = Arc::new(Mutex::new(connection));
        let (asked, turn) = oneshot::channel();
        drop(turn);
        let lent = tokio::time::timeout(Duration::from_secs(20), lend(&connection, asked)).await;
        assert!(matches!(lent, Ok(Ended::GivenUp)), "it would be waited for without end");
        write(&store, "key").await.unwrap();
    }

    #[tokio::test]
    async fn writers_who_wait_share_one_commit() {
        let (_folder, _, store) = sqlite().await;
        let before = store.commits();
        let names: Vec<String> = (0..50).map(|n| format!("key {n:02}")).collect();
        for done in join_all(names.iter().map(|name| write(&store, name))).await {
            done.unwrap();
        }
        assert_eq!(keys(&store).await, names);
        let commits = store.commits() - before;
        assert!((1..=5).contains(&commits), "{commits} commits for 50 writers");
        write(&store, "alone").await.unwrap();
        assert_eq!(store.commits() - before, commits + 1);
    }

    #[tokio::test]
    async fn nobody_is_told_before_the_commit_of_all() {
        let (_folder, _, store) = sqlite().await;
        let mut first = store.write_tx().await.unwrap();
        set(&mut first, "first").await;
        let mut second = Box::pin(store.write_tx());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        let mut told = Box::pin(first.commit());
        assert!(futures_util::poll!(told.as_mut()).is_pending());
        let mut second = second.await.unwrap();
        // The second has its turn, and the first is neither told nor to be seen.
        assert!(futures_util::poll!(told.as_mut()).is_pending());
        assert!(keys(&store).await.is_empty());
        set(&mut second, "second").await;
        second.commit().await.unwrap();
        told.await.unwrap();
        assert_eq!(keys(&store).await, ["first", "second"]);
    }

    #[tokio::test]
    async fn what_one_gives_up_takes_nothing_else_with_it() {
        each_database(async |database| {
            let store = &database.store;
            let one = async |n: usize| {
                let mut tx = store.write_tx().await.unwrap();
                set(&mut tx, &format!("key {n}")).await;
                match n {
                    // Given up as the first, in the middle, after an error, and as the last.
                    0 | 3 | 9 => drop(tx),
                    5 => {
                        let refused = sqlx::query(
                            "INSERT INTO settings (key, value, updated_at) VALUES ('key 5', '', 0)",
                        )
                        .execute(&mut *tx.inner)
                        .await;
                        assert!(refused.is_err());
                    }
                    _ => tx.commit().await.unwrap(),
                }
            };
            join_all((0..10).map(one)).await;
            assert_eq!(keys(store).await, ["key 1", "key 2", "key 4", "key 6", "key 7", "key 8"]);
            write(store, "later").await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn a_writer_that_goes_away_wedges_nobody() {
        each_database(async |database| {
            let store = &database.store;
            let holder = store.write_tx().await.unwrap();
            // Gone while waiting for a turn, and while waiting for the commit.
            let mut waiting = Box::pin(store.write_tx());
            let _ = futures_util::poll!(waiting.as_mut());
            let mut next = Box::pin(write(store, "next"));
            let _ = futures_util::poll!(next.as_mut());
            drop(waiting);
            drop(holder);
            next.await.unwrap();
            let mut tx = store.write_tx().await.unwrap();
            set(&mut tx, "committed unheard").await;
            let mut committing = Box::pin(tx.commit());
            let _ = futures_util::poll!(committing.as_mut());
            drop(committing);
            // Gone in the middle of a statement.
            let mut tx = store.write_tx().await.unwrap();
            let mut setting = Box::pin(set(&mut tx, "half"));
            let _ = futures_util::poll!(setting.as_mut());
            drop(setting);
            drop(tx);
            write(store, "last").await.unwrap();
            let keys = keys(store).await;
            assert!(!keys.contains(&"half".to_owned()), "{keys:?}");
            assert!(keys.contains(&"last".to_owned()) && keys.contains(&"next".to_owned()), "{keys:?}");
            if database.store.kind() == DatabaseKind::Sqlite {
                assert!(keys.contains(&"committed unheard".to_owned()), "{keys:?}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_commit_that_fails_fails_all_and_the_next_group_is_well() {
        let (_folder, _, store) = sqlite().await;
        write(&store, "before").await.unwrap();
        let mut first = store.write_tx().await.unwrap();
        set(&mut first, "first").await;
        let mut second = Box::pin(store.write_tx());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        let mut told = Box::pin(first.commit());
        assert!(futures_util::poll!(told.as_mut()).is_pending());
        let mut second = second.await.unwrap();
        // As SQLite itself does when the disk is full: the transaction is over, of all of them.
        sqlx::query("ROLLBACK").execute(&mut *second.inner).await.unwrap();
        let third = write(&store, "third");
        let (second, first, third) = tokio::join!(second.commit(), told, third);
        for refused in [first, second] {
            let error = refused.unwrap_err();
            assert!(matches!(error, StoreError::Sql { operation: "commit a transaction", .. }), "{error}");
        }
        third.unwrap();
        assert_eq!(keys(&store).await, ["before", "third"]);
    }

    /// 1: NORMAL, 2: FULL.
    async fn synchronous(tx: &mut Tx) -> i64 {
        sqlx::query("PRAGMA synchronous").fetch_one(&mut *tx.inner).await.unwrap().try_get(0).unwrap()
    }

    #[tokio::test]
    async fn only_a_lazy_commit_does_not_wait_for_the_disk() {
        let (_folder, _, store) = sqlite().await;
        let before = store.commits();
        for (n, is_lazy) in [false, true, true, false, true, false, false].into_iter().enumerate() {
            let mut tx = if is_lazy { store.lazy_tx().await } else { store.write_tx().await }.unwrap();
            assert_eq!(synchronous(&mut tx).await, if is_lazy { 1 } else { 2 }, "{n}");
            set(&mut tx, &format!("key {n}")).await;
            tx.commit().await.unwrap();
            assert_eq!(keys(&store).await.len(), n + 1, "seen at once");
        }
        assert_eq!(store.commits() - before, 4);
        // A connection that broke while it was lazy is opened as one that waits.
        let mut tx = store.lazy_tx().await.unwrap();
        sqlx::query("ROLLBACK").execute(&mut *tx.inner).await.unwrap();
        assert!(tx.commit().await.is_err());
        let mut tx = store.write_tx().await.unwrap();
        assert_eq!(synchronous(&mut tx).await, 2);
    }

    #[tokio::test]
    async fn who_waits_for_the_disk_is_in_no_lazy_group_and_lazy_ones_are_in_any() {
        let (_folder, _, store) = sqlite().await;
        let mut first = store.lazy_tx().await.unwrap();
        set(&mut first, "first").await;
        let mut second = Box::pin(store.lazy_tx());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        let mut third = Box::pin(store.write_tx());
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        let mut fourth = Box::pin(store.lazy_tx());
        assert!(futures_util::poll!(fourth.as_mut()).is_pending());
        let mut told = Box::pin(first.commit());
        assert!(futures_util::poll!(told.as_mut()).is_pending());
        let mut second = second.await.unwrap();
        assert!(futures_util::poll!(told.as_mut()).is_pending(), "one commit for both");
        set(&mut second, "second").await;
        let (told, second) = tokio::join!(told, second.commit());
        told.unwrap();
        second.unwrap();
        assert_eq!(keys(&store).await, ["first", "second"], "the third is of another group");

        let mut third = third.await.unwrap();
        assert_eq!(synchronous(&mut third).await, 2);
        let mut told = Box::pin(third.commit());
        assert!(futures_util::poll!(told.as_mut()).is_pending());
        let mut fourth = fourth.await.unwrap();
        assert!(futures_util::poll!(told.as_mut()).is_pending());
        assert_eq!(synchronous(&mut fourth).await, 2, "what joins those who wait waits with them");
        let (told, fourth) = tokio::join!(told, fourth.commit());
        told.unwrap();
        fourth.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_group_and_room_makes_it_well() {
        let (_folder, _, store) = sqlite().await;
        let mut tx = store.write_tx().await.unwrap();
        let pages: i64 =
            sqlx::query("PRAGMA page_count").fetch_one(&mut *tx.inner).await.unwrap().try_get(0).unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 1)))
            .fetch_one(&mut *tx.inner)
            .await
            .unwrap();
        let fill = async |tx: &mut Tx| {
            sqlx::query("INSERT INTO artifacts (run, part, bytes, created_at) VALUES ('run', 'part', $1, 0)")
                .bind(vec![7_u8; 1_000_000])
                .execute(&mut *tx.inner)
                .await
        };
        let mut second = Box::pin(store.write_tx());
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        set(&mut tx, "first").await;
        let mut told = Box::pin(tx.commit());
        assert!(futures_util::poll!(told.as_mut()).is_pending());
        let mut second = second.await.unwrap();
        let full = fill(&mut second).await.unwrap_err();
        assert!(full.to_string().contains("full"), "{full}");
        drop(second);
        // Whether SQLite ended the whole transaction or only the statement: the answer says what is there.
        let is_kept = told.await.is_ok();
        assert_eq!(keys(&store).await.contains(&"first".to_owned()), is_kept);
        let mut tx = store.write_tx().await.unwrap();
        sqlx::query("PRAGMA max_page_count = 1000000").fetch_one(&mut *tx.inner).await.unwrap();
        fill(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn a_store_that_was_closed_begins_nothing() {
        let (_folder, url, store) = sqlite().await;
        let mut tx = store.write_tx().await.unwrap();
        set(&mut tx, "before").await;
        let (committed, ()) = tokio::join!(tx.commit(), store.close());
        committed.unwrap();
        store.close().await;
        let error = store.write_tx().await.unwrap_err();
        assert!(matches!(error, StoreError::Sql { operation: "begin a transaction", .. }), "{error}");
        let again = Store::open(&url).await.unwrap();
        assert_eq!(keys(&again).await, ["before"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_writers_of_two_processes_who_give_up_and_go_away_lose_nothing() {
        let (_folder, url, store) = sqlite().await;
        let other = Store::open(&url).await.unwrap();
        let tasks = (0..200_usize).map(|n| {
            let store = if n.is_multiple_of(2) { store.clone() } else { other.clone() };
            tokio::spawn(async move {
                let mut tx = store.write_tx().await.unwrap();
                set(&mut tx, &format!("key {n:03}")).await;
                match n % 5 {
                    0 => drop(tx),
                    _ => tx.commit().await.unwrap(),
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        // Some are stopped wherever they are.
        let stopped: Vec<usize> = (7..200).step_by(13).collect();
        for n in &stopped {
            if let Some(task) = tasks.get(*n) {
                task.abort();
            }
        }
        for (n, task) in tasks.into_iter().enumerate() {
            let done = task.await;
            assert!(done.is_ok() || stopped.contains(&n));
        }
        let keys = keys(&store).await;
        for n in 0..200 {
            let there = keys.contains(&format!("key {n:03}"));
            if n % 5 == 0 {
                assert!(!there, "{n} was given up");
            } else if !stopped.contains(&n) {
                assert!(there, "{n} was committed");
            }
        }
        other.close().await;
    }
}
