//! Deliveries as received. Inserts of many requests share one commit (group commit).

use super::rows::{self, RowReader, for_each_of_them, json, lone_time, millis, plain, row_limit, sql};
use super::writer::{Flush, Writers};
use super::{DatabaseKind, Store, StoreError, Tx};
use crate::domain::event::Source;
use crate::domain::ids::InboxId;
use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;
use std::sync::LazyLock;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Deliveries that may wait for the writer; more are refused, so that memory stays bounded.
const QUEUE_LENGTH: usize = 1_024;
/// Deliveries that share one commit: enough to make the fsync cheap, few enough to answer soon.
const GROUP_LENGTH: usize = 256;
/// Bodies from this size, in bytes, are compressed off the async threads.
const LARGE_BODY_BYTES: usize = 256 * 1024;
/// Largest body that is read back, in bytes: above what any source sends (25 MB), against a broken size field.
const MAX_BODY_BYTES: i64 = 64 * 1024 * 1024;

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxState {
    Pending,
    Done,
    Ignored,
    NotYetHandled,
    Failed,
}

impl InboxState {
    /// Every state.
    pub const ALL: [InboxState; 5] = [
        InboxState::Pending,
        InboxState::Done,
        InboxState::Ignored,
        InboxState::NotYetHandled,
        InboxState::Failed,
    ];

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            InboxState::Pending => "pending",
            InboxState::Done => "done",
            InboxState::Ignored => "ignored",
            InboxState::NotYetHandled => "not_yet_handled",
            InboxState::Failed => "failed",
        }
    }

    /// The state of a word, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A verified delivery to be stored.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    pub id: InboxId,
    pub source: Source,
    pub delivery_id: String,
    /// The source's name for the kind of event, e.g. `issue_comment`.
    pub event: String,
    /// Headers that matter later (never the signature or authorization), lower-case names.
    pub headers: Vec<(String, String)>,
    pub raw: bytes::Bytes,
    pub received_at: DateTime<Utc>,
    /// Why it leads to nothing, where that was certain before it was read: it is stored as ended.
    pub ignored: Option<String>,
}

/// A delivery as stored.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub id: InboxId,
    pub source: Source,
    pub delivery_id: String,
    pub event: String,
    pub headers: Vec<(String, String)>,
    /// Decompressed; empty in listings.
    pub raw: Vec<u8>,
    pub received_at: DateTime<Utc>,
    pub state: InboxState,
    pub verdict: String,
    pub tries: i64,
    /// How often it was begun and neither ended nor put off: whoever began it died.
    pub taken: i64,
}

/// What an insert found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    New,
    Duplicate,
}

/// Hands inserts to the one task that commits them in groups.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    row: NewRow,
    answer: oneshot::Sender<Result<Inserted, StoreError>>,
}

/// A delivery in the form of its row.
#[derive(Debug)]
struct NewRow {
    id: InboxId,
    source: Source,
    delivery_id: String,
    event: String,
    headers: String,
    packed: Vec<u8>,
    raw_bytes: i64,
    received_at: i64,
    state: InboxState,
    verdict: String,
}

impl Writer {
    /// Starts the task; it ends when the last `Writer` is gone and what was handed over is committed.
    pub(super) fn start(writers: Writers) -> Self {
        Self::spawn(writers).0
    }

    fn spawn(writers: Writers) -> (Self, JoinHandle<()>) {
        let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE_LENGTH);
        let task = tokio::spawn(async move {
            let mut group = Vec::with_capacity(GROUP_LENGTH);
            while jobs.recv_many(&mut group, GROUP_LENGTH).await > 0 {
                store_group(&writers, std::mem::take(&mut group)).await;
            }
        });
        (Self { queue }, task)
    }
}

/// Why a group was not stored.
enum GroupError {
    /// The database refused a row; the others may be good.
    Row(StoreError),
    /// There is no transaction to be had, or it did not commit.
    Database(StoreError),
}

/// One transaction for all; when a row is refused, one transaction for each, so that it alone fails.
async fn store_group(writers: &Writers, group: Vec<Job>) {
    let inserted = match try_group(writers, &group).await {
        Ok(inserted) => inserted,
        Err(GroupError::Row(_)) if group.len() > 1 => return store_each(writers, group).await,
        Err(GroupError::Row(error) | GroupError::Database(error)) => return fail_all(group, error),
    };
    for (job, inserted) in group.into_iter().zip(inserted) {
        answer(job, Ok(inserted));
    }
}

async fn store_each(writers: &Writers, group: Vec<Job>) {
    let mut jobs = group.into_iter();
    while let Some(job) = jobs.next() {
        match try_group(writers, std::slice::from_ref(&job)).await {
            Ok(inserted) => {
                let inserted = inserted.into_iter().next().unwrap_or(Inserted::Duplicate);
                answer(job, Ok(inserted));
            }
            Err(GroupError::Row(error)) => answer(job, Err(error)),
            // Each of the others would wait as long for the same error.
            Err(GroupError::Database(error)) => return fail_all(std::iter::once(job).chain(jobs), error),
        }
    }
}

async fn try_group(writers: &Writers, group: &[Job]) -> Result<Vec<Inserted>, GroupError> {
    let mut tx = writers.begin(Flush::Now).await.map_err(GroupError::Database)?;
    let mut inserted = Vec::with_capacity(group.len());
    let mut rest = group;
    while let Some((some, text)) = INSERTS
        .iter()
        .find_map(|(rows, text)| rest.split_at_checked(*rows).map(|(some, _)| (some, text)))
        .filter(|_| !rest.is_empty())
    {
        inserted.extend(insert_rows(&mut tx, text, some).await.map_err(GroupError::Row)?);
        rest = rest.get(some.len()..).unwrap_or_default();
    }
    tx.commit().await.map_err(GroupError::Database)?;
    Ok(inserted)
}

fn answer(job: Job, result: Result<Inserted, StoreError>) {
    // A caller that went away no longer waits; a stored delivery is stored all the same.
    let _gone = job.answer.send(result);
}

fn fail_all(jobs: impl IntoIterator<Item = Job>, error: StoreError) {
    for (job, error) in jobs.into_iter().zip(for_each_of_them(error)) {
        answer(job, Err(error));
    }
}

/// Statements that insert so many rows, longest first: each statement costs more than what it does to a row.
static INSERTS: LazyLock<[(usize, String); 3]> =
    LazyLock::new(|| [16, 4, 1].map(|rows| (rows, insert_text(rows))));

fn insert_text(rows: usize) -> String {
    const COLUMNS: [&str; 10] = [
        "id",
        "source",
        "delivery_id",
        "event",
        "headers",
        "raw",
        "raw_bytes",
        "received_at",
        "state",
        "verdict",
    ];
    let mut next = 1..;
    let values: Vec<String> = (0..rows)
        .map(|_| {
            let own: Vec<String> = next.by_ref().take(COLUMNS.len()).map(|n| format!("${n}")).collect();
            format!("({}, 0, 0)", own.join(", "))
        })
        .collect();
    let once = "ON CONFLICT (delivery_id, source) DO NOTHING";
    format!(
        "INSERT INTO inbox ({}, not_before, tries) VALUES {} {once}",
        COLUMNS.join(", "),
        values.join(", ")
    )
}

/// Inserts as many rows as the statement takes.
async fn insert_rows(tx: &mut Tx, text: &'static str, jobs: &[Job]) -> Result<Vec<Inserted>, StoreError> {
    let query = jobs.iter().map(|job| &job.row).fold(sqlx::query(AssertSqlSafe(text)), |query, row| {
        query
            .bind(row.id.as_str())
            .bind(row.source.as_str())
            .bind(&row.delivery_id)
            .bind(&row.event)
            .bind(&row.headers)
            .bind(row.packed.as_slice())
            .bind(row.raw_bytes)
            .bind(row.received_at)
            .bind(row.state.as_str())
            .bind(&row.verdict)
    });
    let done = query.execute(&mut *tx.inner).await.map_err(sql("insert deliveries"))?;
    let mut inserted = vec![Inserted::New; jobs.len()];
    if done.rows_affected() == jobs.len() as u64 {
        return Ok(inserted);
    }
    // Of those that came before, or twice here, the row has another id.
    for (inserted, job) in inserted.iter_mut().zip(jobs) {
        let row = sqlx::query("SELECT id FROM inbox WHERE id = $1")
            .bind(job.row.id.as_str())
            .fetch_optional(&mut *tx.inner)
            .await
            .map_err(sql("look which deliveries are new"))?;
        if row.is_none() {
            *inserted = Inserted::Duplicate;
        }
    }
    Ok(inserted)
}

async fn pack(raw: bytes::Bytes) -> Result<Vec<u8>, StoreError> {
    if raw.len() < LARGE_BODY_BYTES {
        return Ok(lz4_flex::block::compress_prepend_size(&raw));
    }
    tokio::task::spawn_blocking(move || lz4_flex::block::compress_prepend_size(&raw))
        .await
        .map_err(|error| sql("compress a delivery")(sqlx::Error::Io(std::io::Error::other(error))))
}

/// Stores a delivery; when this returns `New` it is on stable storage.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn insert(store: &Store, delivery: NewDelivery) -> Result<Inserted, StoreError> {
    let stopped = || {
        sql("hand a delivery to the inbox writer")(sqlx::Error::Io(std::io::Error::other(
            "the inbox writer has stopped",
        )))
    };
    let row = NewRow {
        id: delivery.id,
        source: delivery.source,
        delivery_id: delivery.delivery_id,
        event: plain(&delivery.event).into_owned(),
        headers: json("insert a delivery", &delivery.headers)?,
        raw_bytes: i64::try_from(delivery.raw.len()).unwrap_or(i64::MAX),
        packed: pack(delivery.raw).await?,
        received_at: millis(delivery.received_at),
        state: if delivery.ignored.is_some() { InboxState::Ignored } else { InboxState::Pending },
        verdict: delivery.ignored.as_deref().map(plain).unwrap_or_default().into_owned(),
    };
    let (answer, result) = oneshot::channel();
    store.inbox.queue.try_send(Job { row, answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
        mpsc::error::TrySendError::Closed(_) => stopped(),
    })?;
    result.await.map_err(|_| stopped())?
}

/// Deliveries that one statement changes: each statement costs more than what it does to a row.
const SEVERAL: usize = 16;

/// The pending ones of `SEVERAL` ids, which are the parameters from $3 on.
macro_rules! these {
    () => {
        "state = 'pending' AND id IN ("
    };
}

macro_rules! more {
    () => {
        ", $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
    };
}

/// Ids by `SEVERAL`; what lacks in the last of them is its last one again.
fn several(ids: &[InboxId]) -> impl Iterator<Item = [&InboxId; SEVERAL]> {
    ids.chunks(SEVERAL).filter_map(|some| {
        let last = some.last()?;
        Some(std::array::from_fn(|n| some.get(n).unwrap_or(last)))
    })
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, source, delivery_id, event, headers, raw, raw_bytes, received_at, state, verdict, tries, \
             taken FROM inbox ",
            $rest
        )
    };
}

fn read_delivery(row: &AnyRow, with_body: bool) -> Result<Delivery, StoreError> {
    let row = RowReader::new(row, "inbox", "id");
    Ok(Delivery {
        id: InboxId::new(row.text("id")?),
        source: row.word("source", Source::parse)?,
        delivery_id: row.text("delivery_id")?,
        event: row.text("event")?,
        headers: row.json("headers")?,
        raw: if with_body { unpack(&row)? } else { Vec::new() },
        received_at: row.time("received_at")?,
        state: row.word("state", InboxState::parse)?,
        verdict: row.text("verdict")?,
        tries: row.integer("tries")?,
        taken: row.integer("taken")?,
    })
}

fn unpack(row: &RowReader<'_>) -> Result<Vec<u8>, StoreError> {
    let packed = row.bytes("raw")?;
    let wanted = row.integer("raw_bytes")?;
    // The size field decides how much memory is taken: it must say what was stored.
    let named = packed.first_chunk().map(|size| i64::from(u32::from_le_bytes(*size)));
    if named != Some(wanted) || wanted > MAX_BODY_BYTES {
        return Err(row.bad("raw", format!("its size field is {named:?}, not {wanted}")));
    }
    lz4_flex::block::decompress_size_prepended(&packed).map_err(|error| row.bad("raw", error))
}

/// Pending deliveries that are due, oldest first. One that cannot be read is marked as failed, so that it does not
/// stop the others.
pub async fn pending(store: &Store, now: DateTime<Utc>, limit: i64) -> Result<Vec<Delivery>, StoreError> {
    let rows = sqlx::query(select!(
        "WHERE state = 'pending' AND not_before <= $1 ORDER BY received_at, id LIMIT $2"
    ))
    .bind(millis(now))
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list pending deliveries"))?;
    let mut deliveries = Vec::with_capacity(rows.len());
    for row in &rows {
        match read_delivery(row, true) {
            Ok(delivery) => deliveries.push(delivery),
            Err(error @ StoreError::BadRow { .. }) => {
                let id = InboxId::new(RowReader::new(row, "inbox", "id").text("id")?);
                tracing::error!(%error, delivery = %id, "a delivery cannot be read and is marked as failed");
                let mut tx = store.write_tx().await?;
                finish(&mut tx, &id, InboxState::Failed, &error.to_string()).await?;
                tx.commit().await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(deliveries)
}

/// By our id or by the sender's delivery id.
pub async fn get(store: &Store, id: &str) -> Result<Option<Delivery>, StoreError> {
    let row = sqlx::query(select!(
        "WHERE id = $1 OR delivery_id = $1 ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END, received_at DESC LIMIT 1"
    ))
    .bind(plain(id).as_ref())
    .fetch_optional(&store.pool)
    .await
    .map_err(sql("read a delivery"))?;
    row.map(|row| read_delivery(&row, true)).transpose()
}

/// Newest first, without bodies.
pub async fn list(store: &Store, limit: i64) -> Result<Vec<Delivery>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, source, delivery_id, event, headers, received_at, state, verdict, tries, taken FROM inbox \
         ORDER BY received_at DESC, id DESC LIMIT $1",
    )
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list deliveries"))?;
    rows.iter().map(|row| read_delivery(row, false)).collect()
}

/// Whether it is still pending; nobody else can end it until the transaction does.
pub async fn is_pending(tx: &mut Tx, id: &InboxId) -> Result<bool, StoreError> {
    let text = match tx.kind {
        DatabaseKind::Sqlite => "SELECT id FROM inbox WHERE id = $1 AND state = 'pending'",
        DatabaseKind::Postgres => "SELECT id FROM inbox WHERE id = $1 AND state = 'pending' FOR UPDATE",
    };
    let row = sqlx::query(text)
        .bind(id.as_str())
        .fetch_optional(&mut *tx.inner)
        .await
        .map_err(sql("look whether a delivery is pending"))?;
    Ok(row.is_some())
}

/// Ends a pending delivery; one that has ended stays as it is.
pub async fn finish(tx: &mut Tx, id: &InboxId, state: InboxState, verdict: &str) -> Result<(), StoreError> {
    finish_all(tx, std::slice::from_ref(id), state, verdict).await
}

/// Ends pending deliveries in the same way.
pub async fn finish_all(
    tx: &mut Tx,
    ids: &[InboxId],
    state: InboxState,
    verdict: &str,
) -> Result<(), StoreError> {
    for some in several(ids) {
        let query =
            sqlx::query(concat!("UPDATE inbox SET state = $1, verdict = $2 WHERE ", these!(), "$3", more!()));
        let query = query.bind(state.as_str()).bind(plain(verdict).into_owned());
        let query = some.iter().fold(query, |query, id| query.bind(id.as_str()));
        query.execute(&mut *tx.inner).await.map_err(sql("finish deliveries"))?;
    }
    Ok(())
}

/// Keeps it pending until `not_before` and counts a try.
pub async fn defer(
    tx: &mut Tx,
    id: &InboxId,
    not_before: DateTime<Utc>,
    why: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE inbox SET not_before = $2, verdict = $3, tries = tries + 1, taken = 0 \
         WHERE id = $1 AND state = 'pending'",
    )
    .bind(id.as_str())
    .bind(millis(not_before))
    .bind(plain(why).as_ref())
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("defer a delivery"))?;
    Ok(())
}

/// Counts that deliveries are begun now. If whoever does it dies, they are not looked at before a time.
pub async fn begun(tx: &mut Tx, ids: &[InboxId], not_before: DateTime<Utc>) -> Result<(), StoreError> {
    for some in several(ids) {
        let query = sqlx::query(concat!(
            "UPDATE inbox SET taken = taken + $1, not_before = $2 WHERE ",
            these!(),
            "$3",
            more!()
        ));
        let query = query.bind(1_i64).bind(millis(not_before));
        let query = some.iter().fold(query, |query, id| query.bind(id.as_str()));
        query.execute(&mut *tx.inner).await.map_err(sql("begin deliveries"))?;
    }
    Ok(())
}

/// It was begun and not ended, and nobody died of it: the last beginning does not count.
pub async fn not_begun(tx: &mut Tx, id: &InboxId, not_before: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE inbox SET taken = taken - 1, not_before = $2 \
         WHERE id = $1 AND state = 'pending' AND taken > 0",
    )
    .bind(id.as_str())
    .bind(millis(not_before))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("let a delivery go"))?;
    Ok(())
}

/// Those of which somebody died more than once are not looked at before a time.
pub async fn put_off_suspects(tx: &mut Tx, not_before: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query("UPDATE inbox SET not_before = $1 WHERE state = 'pending' AND taken > 1 AND not_before < $1")
        .bind(millis(not_before))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("put off deliveries that somebody died of"))?;
    Ok(())
}

/// Whether this delivery of a source was stored, whatever became of it.
pub async fn knows(store: &Store, source: Source, delivery_id: &str) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT id FROM inbox WHERE delivery_id = $1 AND source = $2")
        .bind(plain(delivery_id).as_ref())
        .bind(source.as_str())
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("look for a delivery"))?;
    Ok(row.is_some())
}

/// Makes an ended delivery pending again (`zeblit replay`). False when there is no such delivery.
pub async fn replay(tx: &mut Tx, id: &InboxId, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE inbox SET state = 'pending', verdict = '', not_before = $2, tries = 0, taken = 0 WHERE id = $1",
    )
    .bind(id.as_str())
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("replay a delivery"))?;
    Ok(done.rows_affected() == 1)
}

/// When the next pending delivery is due (when it came, if it was not deferred).
pub async fn next_due(store: &Store) -> Result<Option<DateTime<Utc>>, StoreError> {
    let row = sqlx::query(
        "SELECT MIN(CASE WHEN not_before > received_at THEN not_before ELSE received_at END) AS at FROM inbox \
         WHERE state = 'pending'",
    )
    .fetch_one(&store.pool)
    .await
    .map_err(sql("find when the next delivery is due"))?;
    lone_time(&row, "inbox")
}

/// Number of deliveries per state.
pub async fn counts(store: &Store) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = sqlx::query("SELECT state AS word, COUNT(*) AS n FROM inbox GROUP BY state ORDER BY state")
        .fetch_all(&store.pool)
        .await
        .map_err(sql("count deliveries"))?;
    rows::counts(&rows, "inbox")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;
    use futures_util::future::join_all;

    fn delivery(n: usize) -> NewDelivery {
        NewDelivery {
            id: InboxId::new(format!("inbox-{n:04}")),
            source: Source::Github,
            delivery_id: format!("delivery-{n}"),
            event: "issue_comment".to_owned(),
            ignored: None,
            headers: vec![("x-github-event".to_owned(), "issue_comment".to_owned())],
            raw: bytes::Bytes::from(format!("{{\"n\":{n}}}").repeat(n % 7 + 1)),
            received_at: at(i64::try_from(n).unwrap()),
        }
    }

    #[tokio::test]
    async fn a_delivery_comes_back_as_it_was_sent() {
        each_database(async |database| {
            let store = &database.store;
            let large: Vec<u8> = (0..LARGE_BODY_BYTES * 2).map(|n| (n * n % 251) as u8).collect();
            for (n, raw) in [Vec::new(), b"\0\xff not text".to_vec(), large].into_iter().enumerate() {
                let new = NewDelivery { raw: raw.clone().into(), ..delivery(n) };
                assert_eq!(insert(store, new.clone()).await.unwrap(), Inserted::New);
                for id in [new.id.as_str(), new.delivery_id.as_str()] {
                    let found = get(store, id).await.unwrap().unwrap();
                    assert_eq!(found.id, new.id);
                    assert_eq!(found.source, new.source);
                    assert_eq!(found.delivery_id, new.delivery_id);
                    assert_eq!(found.event, new.event);
                    assert_eq!(found.headers, new.headers);
                    assert!(found.raw == raw, "body {n}");
                    assert_eq!(found.received_at, new.received_at);
                    assert_eq!(found.state, InboxState::Pending);
                    assert_eq!((found.verdict.as_str(), found.tries), ("", 0));
                }
            }
            assert!(get(store, "unknown").await.unwrap().is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn the_same_delivery_of_the_same_source_is_stored_once() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(insert(store, delivery(1)).await.unwrap(), Inserted::New);
            let again = NewDelivery { id: InboxId::new("other"), ..delivery(1) };
            assert_eq!(insert(store, again).await.unwrap(), Inserted::Duplicate);
            let sentry = NewDelivery { id: InboxId::new("sentry"), source: Source::Sentry, ..delivery(1) };
            assert_eq!(insert(store, sentry).await.unwrap(), Inserted::New);
            assert_eq!(counts(store).await.unwrap(), [("pending".to_owned(), 2)]);
        })
        .await;
    }

    #[tokio::test]
    async fn what_leads_to_nothing_is_stored_as_ended_and_can_be_replayed() {
        each_database(async |database| {
            let store = &database.store;
            let new = NewDelivery { ignored: Some("no command in it".into()), ..delivery(1) };
            assert_eq!(insert(store, new.clone()).await.unwrap(), Inserted::New);
            let again = NewDelivery { id: InboxId::new("other"), ..new };
            assert_eq!(insert(store, again).await.unwrap(), Inserted::Duplicate);
            let found = get(store, "inbox-0001").await.unwrap().unwrap();
            assert_eq!((found.state, found.verdict.as_str()), (InboxState::Ignored, "no command in it"));
            assert!(pending(store, at(9), 9).await.unwrap().is_empty());
            let mut tx = store.write_tx().await.unwrap();
            assert!(replay(&mut tx, &found.id, at(9)).await.unwrap());
            tx.commit().await.unwrap();
            let due = pending(store, at(9), 9).await.unwrap();
            assert_eq!(due.first().unwrap().raw, found.raw);
        })
        .await;
    }

    #[tokio::test]
    async fn five_hundred_inserts_at_once_store_each_delivery_once() {
        each_database(async |database| {
            let store = &database.store;
            // Every fifth comes twice: 400 different deliveries.
            let deliveries = (0..500).map(|n| NewDelivery {
                id: InboxId::new(format!("inbox-{n:04}")),
                ..delivery(if n % 5 == 4 { n - 1 } else { n })
            });
            let results = join_all(deliveries.map(|delivery| insert(store, delivery))).await;
            let count = |wanted: Inserted| {
                results.iter().filter(|result| result.as_ref().is_ok_and(|got| *got == wanted)).count()
            };
            assert_eq!((count(Inserted::New), count(Inserted::Duplicate)), (400, 100));
            assert_eq!(counts(store).await.unwrap(), [("pending".to_owned(), 400)]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_bad_row_does_not_sink_its_neighbours() {
        each_database(async |database| {
            let store = &database.store;
            insert(store, delivery(1_000)).await.unwrap();
            // An id that exists already under another delivery id breaks the primary key.
            let deliveries = (0..100).map(|n| match n {
                30 | 31 | 99 => NewDelivery { id: InboxId::new("inbox-1000"), ..delivery(n) },
                _ => delivery(n),
            });
            let results = join_all(deliveries.map(|delivery| insert(store, delivery))).await;
            let failed: Vec<_> =
                results.iter().enumerate().filter(|(_, result)| result.is_err()).map(|(n, _)| n).collect();
            assert_eq!(failed, [30, 31, 99]);
            assert_eq!(counts(store).await.unwrap(), [("pending".to_owned(), 98)]);
            assert_eq!(insert(store, delivery(2_000)).await.unwrap(), Inserted::New);
        })
        .await;
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_is_refused_at_once() {
        each_database(async |database| {
            let (queue, jobs) = mpsc::channel(1);
            let store = Store { inbox: Writer { queue }, ..database.store.clone() };
            let mut first = std::pin::pin!(insert(&store, delivery(1)));
            assert!(futures_util::poll!(first.as_mut()).is_pending());
            assert!(matches!(insert(&store, delivery(2)).await, Err(StoreError::Overloaded)));
            drop(jobs);
            assert!(matches!(first.await, Err(StoreError::Sql { .. })));
            assert!(matches!(insert(&store, delivery(3)).await, Err(StoreError::Sql { .. })));
        })
        .await;
    }

    #[tokio::test]
    async fn an_unusable_database_fails_each_insert_of_the_group() {
        each_database(async |database| {
            let store = Store::open(&database.url).await.unwrap();
            store.close().await;
            let results = join_all((0..10).map(|n| insert(&store, delivery(n)))).await;
            assert!(results.iter().all(Result::is_err));
        })
        .await;
    }

    #[tokio::test]
    async fn the_writer_ends_with_its_last_handle_and_stores_what_it_was_given() {
        each_database(async |database| {
            let (inbox, task) = Writer::spawn(database.store.writers.clone());
            let store = Store { inbox, ..database.store.clone() };
            let mut waiting = Box::pin(insert(&store, delivery(1)));
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            // The caller gives up; the task still commits, then ends.
            drop(waiting);
            drop(store);
            task.await.unwrap();
            assert!(get(&database.store, "inbox-0001").await.unwrap().is_some());
        })
        .await;
    }

    #[tokio::test]
    async fn pending_deliveries_come_oldest_first_when_they_are_due() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(next_due(store).await.unwrap(), None);
            for n in [3, 1, 2, 4] {
                insert(store, delivery(n)).await.unwrap();
            }
            let ids = async |seconds, limit| {
                let deliveries = pending(store, at(seconds), limit).await.unwrap();
                deliveries.into_iter().map(|delivery| delivery.id.to_string()).collect::<Vec<_>>()
            };
            assert_eq!(ids(10, 3).await, ["inbox-0001", "inbox-0002", "inbox-0003"]);
            assert_eq!(next_due(store).await.unwrap(), Some(at(1)));
            let first = InboxId::new("inbox-0001");
            let mut tx = store.write_tx().await.unwrap();
            defer(&mut tx, &first, at(60), "no answer").await.unwrap();
            finish(&mut tx, &InboxId::new("inbox-0002"), InboxState::Done, "run 1").await.unwrap();
            finish(&mut tx, &InboxId::new("inbox-0002"), InboxState::Failed, "twice").await.unwrap();
            finish(&mut tx, &InboxId::new("inbox-0003"), InboxState::Ignored, "bot").await.unwrap();
            finish(&mut tx, &InboxId::new("inbox-0004"), InboxState::NotYetHandled, "").await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(ids(59, 10).await, Vec::<String>::new());
            assert_eq!(next_due(store).await.unwrap(), Some(at(60)));
            let deferred = pending(store, at(60), 10).await.unwrap().pop().unwrap();
            assert_eq!((deferred.tries, deferred.verdict.as_str()), (1, "no answer"));
            let done = get(store, "inbox-0002").await.unwrap().unwrap();
            assert_eq!((done.state, done.verdict.as_str()), (InboxState::Done, "run 1"));

            let mut tx = store.write_tx().await.unwrap();
            assert!(replay(&mut tx, &InboxId::new("inbox-0002"), at(70)).await.unwrap());
            assert!(!replay(&mut tx, &InboxId::new("none"), at(70)).await.unwrap());
            tx.commit().await.unwrap();
            assert_eq!(ids(69, 10).await, ["inbox-0001"]);
            assert_eq!(ids(70, 10).await, ["inbox-0001", "inbox-0002"]);
            let listed = list(store, 10).await.unwrap();
            assert_eq!(listed.first().unwrap().id.as_str(), "inbox-0004");
            assert!(listed.iter().all(|delivery| delivery.raw.is_empty()));
            assert_eq!(
                counts(store).await.unwrap(),
                [("ignored".to_owned(), 1), ("not_yet_handled".to_owned(), 1), ("pending".to_owned(), 2)]
            );
        })
        .await;
    }

    /// More than one statement takes, a full one, one, none.
    #[tokio::test]
    async fn many_are_begun_and_ended_together_and_others_are_not() {
        each_database(async |database| {
            let store = &database.store;
            for n in 1..=40 {
                insert(store, delivery(n)).await.unwrap();
            }
            let ids = |from: i64, count: usize| -> Vec<InboxId> {
                (from..).take(count).map(|n| InboxId::new(format!("inbox-{n:04}"))).collect()
            };
            let mut tx = store.write_tx().await.unwrap();
            for (from, count) in [(1, 17), (18, 16), (34, 1), (35, 0)] {
                begun(&mut tx, &ids(from, count), at(0)).await.unwrap();
                finish_all(&mut tx, &ids(from, count), InboxState::Ignored, "not for us").await.unwrap();
            }
            tx.commit().await.unwrap();
            for delivery in list(store, 100).await.unwrap() {
                let is_ended = delivery.id.as_str() <= "inbox-0034";
                let wanted = if is_ended {
                    (InboxState::Ignored, 1, "not for us")
                } else {
                    (InboxState::Pending, 0, "")
                };
                let found = (delivery.state, delivery.taken, delivery.verdict.as_str());
                assert_eq!(found, wanted, "{}", delivery.id);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_delivery_counts_how_often_it_was_begun_in_vain() {
        each_database(async |database| {
            let store = &database.store;
            insert(store, delivery(1)).await.unwrap();
            assert!(knows(store, Source::Github, "delivery-1").await.unwrap());
            assert!(!knows(store, Source::Sentry, "delivery-1").await.unwrap());
            let id = InboxId::new("inbox-0001");
            let taken = async || get(store, "inbox-0001").await.unwrap().unwrap().taken;
            let mut tx = store.write_tx().await.unwrap();
            begun(&mut tx, std::slice::from_ref(&id), at(0)).await.unwrap();
            begun(&mut tx, std::slice::from_ref(&id), at(30)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(taken().await, 2);
            assert!(pending(store, at(29), 9).await.unwrap().is_empty());
            let mut tx = store.write_tx().await.unwrap();
            not_begun(&mut tx, &id, at(5)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(taken().await, 1);
            assert_eq!(pending(store, at(5), 9).await.unwrap().len(), 1);
            let mut tx = store.write_tx().await.unwrap();
            defer(&mut tx, &id, at(9), "later").await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(taken().await, 0);
            let mut tx = store.write_tx().await.unwrap();
            begun(&mut tx, std::slice::from_ref(&id), at(0)).await.unwrap();
            finish(&mut tx, &id, InboxState::Failed, "it killed us").await.unwrap();
            begun(&mut tx, std::slice::from_ref(&id), at(0)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(taken().await, 1, "one that has ended is not begun");
            let mut tx = store.write_tx().await.unwrap();
            replay(&mut tx, &id, at(9)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(taken().await, 0);
        })
        .await;
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_read_fails_alone() {
        each_database(async |database| {
            let store = &database.store;
            insert(store, delivery(1)).await.unwrap();
            insert(store, delivery(2)).await.unwrap();
            insert(store, delivery(3)).await.unwrap();
            let mut tx = store.write_tx().await.unwrap();
            // A size field of 4 GB, and bytes that are no lz4 block.
            sqlx::query("UPDATE inbox SET raw = $1 WHERE id = 'inbox-0001'")
                .bind(vec![255_u8, 255, 255, 255, 0])
                .execute(&mut *tx.inner)
                .await
                .unwrap();
            sqlx::query("UPDATE inbox SET raw = $1, raw_bytes = 9 WHERE id = 'inbox-0002'")
                .bind(vec![9_u8, 0, 0, 0, 255, 255])
                .execute(&mut *tx.inner)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            let due = pending(store, at(10), 10).await.unwrap();
            assert_eq!(
                due.into_iter().map(|delivery| delivery.id.to_string()).collect::<Vec<_>>(),
                ["inbox-0003"]
            );
            for id in ["inbox-0001", "inbox-0002"] {
                let error = get(store, id).await.unwrap_err().to_string();
                assert!(error.contains(&format!("inbox.raw of `{id}`")), "{error}");
            }
            assert_eq!(counts(store).await.unwrap(), [("failed".to_owned(), 2), ("pending".to_owned(), 1)]);
        })
        .await;
    }
}
