//! Runs, which are also the queue: claim, lease, fence, caps, position.

use super::rows::{self, MAX_ROWS, RowReader, json, lone_time, millis, plain, row_limit, sql};
use super::{DatabaseKind, Store, StoreError, Tx};
use crate::domain::event::Repo;
use crate::domain::ids::{RunId, TaskId};
use crate::domain::run::{Outcome, Progress, Run, RunSpec, RunState};
use chrono::{DateTime, Utc};
use sqlx::any::AnyRow;
use std::time::Duration;

/// A run to be queued.
#[derive(Debug, Clone)]
pub struct NewRun {
    pub id: RunId,
    pub task: TaskId,
    pub key: String,
    pub remote: String,
    pub repo: Repo,
    /// Runs with the same lock never run at the same time.
    pub lock_key: String,
    pub spec: RunSpec,
    pub priority: i64,
    pub created_at: DateTime<Utc>,
}

/// How many runs may be live (claimed and not ended) at one time.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    pub global: i64,
    /// Of one account's repositories together.
    pub per_owner: i64,
    pub per_repo: i64,
    pub per_user: i64,
}

/// Which runs a listing gives.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub state: Option<RunState>,
    pub repo: Option<String>,
    /// Only runs that have not ended.
    pub open_only: bool,
    pub limit: i64,
}

/// Where a queued run stands. `position` 1 is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub position: i64,
    pub queued: i64,
    /// The live run that holds the same lock.
    pub waits_for: Option<RunId>,
}

/// A queued run rises by one priority each time it waited so long: nothing waits for ever behind what is more urgent.
pub const AGEING: Duration = Duration::from_secs(30 * 60);
/// Shortest end of an id that `find` takes, in characters: fewer would match by chance.
const SHORTEST_ID_END: usize = 6;

/// What `read_run` reads.
macro_rules! columns {
    () => {
        "id, task, key, remote, repo, spec, state, priority, not_before, created_at, started_at, finished_at, \
         lease_owner, lease_until, fence, cancel_requested, deaths, attempts, progress, agent_end, outcome"
    };
}

macro_rules! select {
    ($($rest:expr),+) => {
        concat!("SELECT ", columns!(), " FROM runs ", $($rest),+)
    };
}

/// States of `RunState::needs_worker`.
macro_rules! working {
    () => {
        "('preparing', 'running', 'collecting', 'publishing')"
    };
}

/// Claimed and not ended. A statement about working runs names these, too: an index has them.
macro_rules! live_states {
    () => {
        "('preparing', 'running', 'collecting', 'publishing', 'reporting')"
    };
}

/// States of `RunState::is_terminal`.
macro_rules! ended {
    () => {
        "('succeeded', 'nothing', 'needs_input', 'failed', 'cancelled')"
    };
}

fn read_run(row: &AnyRow) -> Result<Run, StoreError> {
    let row = RowReader::new(row, "runs", "id");
    Ok(Run {
        id: RunId::new(row.text("id")?),
        task: TaskId::new(row.text("task")?),
        key: row.text("key")?,
        remote: row.text("remote")?,
        repo: row.json("repo")?,
        spec: row.json("spec")?,
        state: row.word("state", RunState::parse)?,
        priority: row.integer("priority")?,
        not_before: row.time_or_zero("not_before")?,
        created_at: row.time("created_at")?,
        started_at: row.time_or_null("started_at")?,
        finished_at: row.time_or_null("finished_at")?,
        lease_owner: row.text_or_null("lease_owner")?,
        lease_until: row.time_or_null("lease_until")?,
        fence: row.integer("fence")?,
        cancel_requested: row.text_or_null("cancel_requested")?,
        deaths: row.integer("deaths")?,
        attempts: row.integer("attempts")?,
        progress: row.json("progress")?,
        agent_end: row.json_or_null("agent_end")?,
        outcome: row.json("outcome")?,
    })
}

fn read_runs(rows: &[AnyRow]) -> Result<Vec<Run>, StoreError> {
    rows.iter().map(read_run).collect()
}

/// Inserts a queued run; false when its key exists (the command was seen before).
pub async fn insert(tx: &mut Tx, run: &NewRun) -> Result<bool, StoreError> {
    const OPERATION: &str = "insert a run";
    let done = sqlx::query(
        "INSERT INTO runs (id, task, key, remote, repo_id, repo_name, repo, requester, lock_key, spec, state, \
         priority, not_before, created_at, fence, attempts, progress, outcome, owner) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'queued', $11, 0, $12, 0, 0, $13, $14, $15) \
         ON CONFLICT (key) DO NOTHING",
    )
    .bind(run.id.as_str())
    .bind(run.task.as_str())
    .bind(&run.key)
    .bind(&run.remote)
    .bind(run.repo.id)
    .bind(run.repo.name.as_str())
    .bind(json(OPERATION, &run.repo)?)
    .bind(run.spec.requester.id)
    .bind(&run.lock_key)
    .bind(json(OPERATION, &run.spec)?)
    .bind(run.priority)
    .bind(millis(run.created_at))
    .bind(json(OPERATION, &Progress::default())?)
    .bind(json(OPERATION, &Outcome::default())?)
    .bind(run.repo.name.owner().to_lowercase())
    .execute(&mut *tx.inner)
    .await
    .map_err(sql(OPERATION))?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    for need in &run.spec.needs {
        sqlx::query("INSERT INTO run_needs (run, need) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(run.id.as_str())
            .bind(plain(need).as_ref())
            .execute(&mut *tx.inner)
            .await
            .map_err(sql("write what a run needs"))?;
    }
    Ok(true)
}

/// By its full id.
pub async fn get(store: &Store, id: &RunId) -> Result<Option<Run>, StoreError> {
    let row = sqlx::query(select!("WHERE id = $1"))
        .bind(id.as_str())
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read a run"))?;
    row.as_ref().map(read_run).transpose()
}

/// The repository of a run as it is called now: `tasks::repo_moved` changes it under a run that is worked on.
pub async fn repo_of(store: &Store, id: &RunId) -> Result<Option<Repo>, StoreError> {
    let row = sqlx::query("SELECT id, repo FROM runs WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read the repository of a run"))?;
    row.map(|row| RowReader::new(&row, "runs", "id").json("repo")).transpose()
}

/// As `get`; nobody else can write the run until the transaction ends.
pub async fn get_tx(tx: &mut Tx, id: &RunId) -> Result<Option<Run>, StoreError> {
    let text = match tx.kind {
        DatabaseKind::Sqlite => select!("WHERE id = $1"),
        DatabaseKind::Postgres => select!("WHERE id = $1 FOR UPDATE"),
    };
    let row = sqlx::query(text)
        .bind(id.as_str())
        .fetch_optional(&mut *tx.inner)
        .await
        .map_err(sql("read a run"))?;
    row.as_ref().map(read_run).transpose()
}

/// By full id or by a unique end of it (at least 6 characters), as people copy it from a comment.
pub async fn find(store: &Store, id_end: &str) -> Result<Option<Run>, StoreError> {
    if !id_end.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
        return Ok(None);
    }
    if let Some(run) = get(store, &RunId::new(id_end)).await? {
        return Ok(Some(run));
    }
    if id_end.len() < SHORTEST_ID_END {
        return Ok(None);
    }
    // The underscore is the only character let through above that LIKE would read as a wildcard.
    let pattern = format!("%{}", id_end.replace('_', "!_"));
    let rows = sqlx::query(select!("WHERE id LIKE $1 ESCAPE '!' LIMIT 2"))
        .bind(pattern)
        .fetch_all(&store.pool)
        .await
        .map_err(sql("find a run"))?;
    let mut runs = read_runs(&rows)?;
    Ok(if runs.len() == 1 { runs.pop() } else { None })
}

/// One text for each index: how much is read must not grow with what has ended.
fn list_text(filter: &Filter) -> &'static str {
    macro_rules! listed {
        ($($rest:expr),*) => {
            select!("WHERE ($1 = '' OR state = $1)", $($rest,)* " ORDER BY created_at DESC, id DESC LIMIT $3")
        };
    }
    match (filter.repo.is_some(), filter.open_only) {
        (false, false) => listed!(" AND $2 = $2"),
        (true, false) => listed!(" AND LOWER(repo_name) = LOWER($2)"),
        (false, true) => listed!(" AND $2 = $2 AND state NOT IN ", ended!()),
        (true, true) => listed!(" AND LOWER(repo_name) = LOWER($2) AND state NOT IN ", ended!()),
    }
}

/// Newest first.
pub async fn list(store: &Store, filter: &Filter) -> Result<Vec<Run>, StoreError> {
    let rows = sqlx::query(list_text(filter))
        .bind(filter.state.map_or("", RunState::as_str))
        .bind(plain(filter.repo.as_deref().unwrap_or_default()).into_owned())
        .bind(row_limit(filter.limit))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("list runs"))?;
    read_runs(&rows)
}

/// All runs of a task, oldest first.
pub async fn of_task(store: &Store, task: &TaskId) -> Result<Vec<Run>, StoreError> {
    let rows = sqlx::query(select!("WHERE task = $1 ORDER BY created_at, id LIMIT $2"))
        .bind(task.as_str())
        .bind(MAX_ROWS)
        .fetch_all(&store.pool)
        .await
        .map_err(sql("list the runs of a task"))?;
    read_runs(&rows)
}

/// This owner ends in an orderly way: whoever claims its runs next takes them from nobody who died.
pub async fn left_alive(store: &Store, owner: &str) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    sqlx::query(concat!(
        "UPDATE runs SET deaths = -1 WHERE lease_owner = $1 AND state IN ",
        live_states!(),
        " AND state IN ",
        working!()
    ))
    .bind(owner)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("leave runs alive"))?;
    tx.commit().await
}

/// The run came a step further: whoever died on it before did not die of it.
pub async fn survived(store: &Store, id: &RunId, fence: i64) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    sqlx::query("UPDATE runs SET deaths = 0 WHERE id = $1 AND fence = $2")
        .bind(id.as_str())
        .bind(fence)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("note that a run goes on"))?;
    tx.commit().await
}

/// Extends the lease; `Fenced` when it is not ours any more. Returns who asked for a cancel, if anybody.
pub async fn heartbeat(
    store: &Store,
    id: &RunId,
    fence: i64,
    until: DateTime<Utc>,
) -> Result<Option<String>, StoreError> {
    let mut tx = store.lazy_tx().await?;
    let row = sqlx::query(concat!(
        "UPDATE runs SET lease_until = $3 WHERE id = $1 AND fence = $2 AND state IN ",
        working!(),
        " RETURNING id, cancel_requested"
    ))
    .bind(id.as_str())
    .bind(fence)
    .bind(millis(until))
    .fetch_optional(&mut *tx.inner)
    .await
    .map_err(sql("extend a lease"))?;
    let Some(row) = row else { return Err(StoreError::Fenced { run: id.to_string() }) };
    let cancel = RowReader::new(&row, "runs", "id").text_or_null("cancel_requested")?;
    tx.commit().await?;
    Ok(cancel)
}

/// Writes state, progress, agent end, outcome, times, attempts, not_before under the fence of `run`.
/// A run whose state needs no worker loses its lease. `Fenced` when somebody else claimed it.
pub async fn save(tx: &mut Tx, run: &Run) -> Result<(), StoreError> {
    const OPERATION: &str = "save a run";
    let agent_end = run.agent_end.as_ref().map(|end| json(OPERATION, end)).transpose()?;
    let done = sqlx::query(
        "UPDATE runs SET state = $3, progress = $4, agent_end = $5, outcome = $6, started_at = $7, \
         finished_at = $8, attempts = $9, not_before = $10, \
         lease_owner = CASE WHEN $11 = 1 THEN lease_owner ELSE NULL END, \
         lease_until = CASE WHEN $11 = 1 THEN lease_until ELSE NULL END \
         WHERE id = $1 AND fence = $2",
    )
    .bind(run.id.as_str())
    .bind(run.fence)
    .bind(run.state.as_str())
    .bind(json(OPERATION, &run.progress)?)
    .bind(agent_end)
    .bind(json(OPERATION, &run.outcome)?)
    .bind(run.started_at.map(millis))
    .bind(run.finished_at.map(millis))
    .bind(run.attempts)
    .bind(run.not_before.map_or(0, millis))
    .bind(i64::from(run.state.needs_worker()))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql(OPERATION))?;
    fenced_unless_written(run, done.rows_affected())
}

/// Only the progress, outside of transitions. `Fenced` as above.
pub async fn save_progress(tx: &mut Tx, run: &Run) -> Result<(), StoreError> {
    const OPERATION: &str = "save the progress of a run";
    let done = sqlx::query("UPDATE runs SET progress = $3 WHERE id = $1 AND fence = $2")
        .bind(run.id.as_str())
        .bind(run.fence)
        .bind(json(OPERATION, &run.progress)?)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql(OPERATION))?;
    fenced_unless_written(run, done.rows_affected())
}

/// `Fenced` when somebody else claimed the run; nobody can until the transaction ends.
pub async fn check_fence(tx: &mut Tx, run: &Run) -> Result<(), StoreError> {
    let text = match tx.kind {
        DatabaseKind::Sqlite => "SELECT id FROM runs WHERE id = $1 AND fence = $2",
        DatabaseKind::Postgres => "SELECT id FROM runs WHERE id = $1 AND fence = $2 FOR UPDATE",
    };
    let row = sqlx::query(text)
        .bind(run.id.as_str())
        .bind(run.fence)
        .fetch_optional(&mut *tx.inner)
        .await
        .map_err(sql("look at the fence of a run"))?;
    fenced_unless_written(run, u64::from(row.is_some()))
}

fn fenced_unless_written(run: &Run, rows: u64) -> Result<(), StoreError> {
    if rows == 0 { Err(StoreError::Fenced { run: run.id.to_string() }) } else { Ok(()) }
}

/// Marks a run that has not ended; false when it has ended or does not exist. The first who asked stays.
/// One that waits for approval is released, so that a worker ends it.
pub async fn request_cancel(tx: &mut Tx, id: &RunId, by: &str) -> Result<bool, StoreError> {
    let done = sqlx::query(concat!(
        "UPDATE runs SET cancel_requested = COALESCE(cancel_requested, $2), \
         state = CASE WHEN state = 'held' THEN 'publishing' ELSE state END WHERE id = $1 AND state NOT IN ",
        ended!()
    ))
    .bind(id.as_str())
    .bind(plain(by).as_ref())
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("ask for a cancel"))?;
    Ok(done.rows_affected() > 0)
}

/// Leases of other boots of this node are left to this one (at start-up): it claims those runs at once, since their
/// containers are on its machine; others claim them when the lease has run out. An owner is `NODE:BOOT`; an `owner`
/// without a colon stands for the only node, which inherits all leases.
pub async fn inherit_leases(tx: &mut Tx, owner: &str) -> Result<u64, StoreError> {
    let node = owner.rsplit_once(':').map_or(String::new(), |(node, _)| format!("{node}:"));
    let done = sqlx::query(concat!(
        "UPDATE runs SET lease_owner = $1 || '/left' WHERE lease_owner <> $1 \
         AND ($2 = '' OR SUBSTR(lease_owner, 1, LENGTH($2)) = $2) AND state IN ",
        live_states!(),
        " AND state IN ",
        working!()
    ))
    .bind(owner)
    .bind(node)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("inherit the leases of earlier boots"))?;
    Ok(done.rows_affected())
}

/// `None` when the run is not queued.
pub async fn place(store: &Store, id: &RunId) -> Result<Option<Place>, StoreError> {
    let row = sqlx::query(concat!(
        "SELECT q.id AS id, \
         (SELECT COUNT(*) FROM runs o WHERE o.state = 'queued' AND (o.priority < q.priority \
         OR (o.priority = q.priority AND o.created_at < q.created_at) \
         OR (o.priority = q.priority AND o.created_at = q.created_at AND o.id < q.id))) + 1 AS position, \
         (SELECT COUNT(*) FROM runs o WHERE o.state = 'queued') AS queued, \
         (SELECT MIN(l.id) FROM runs l WHERE l.lock_key = q.lock_key AND l.state IN ",
        live_states!(),
        ") AS waits_for FROM runs q WHERE q.id = $1 AND q.state = 'queued'"
    ))
    .bind(id.as_str())
    .fetch_optional(&store.pool)
    .await
    .map_err(sql("find the place of a run"))?;
    row.map(|row| {
        let row = RowReader::new(&row, "runs", "id");
        Ok(Place {
            position: row.integer("position")?,
            queued: row.integer("queued")?,
            waits_for: row.text_or_null("waits_for")?.map(RunId::new),
        })
    })
    .transpose()
}

/// Runs of a state that needs a worker or waits for a confirmation, with any lease.
pub async fn live(store: &Store) -> Result<Vec<Run>, StoreError> {
    let rows = sqlx::query(select!("WHERE state IN ", live_states!(), " ORDER BY created_at, id LIMIT $1"))
        .bind(MAX_ROWS)
        .fetch_all(&store.pool)
        .await
        .map_err(sql("list live runs"))?;
    read_runs(&rows)
}

/// In the order of their places.
pub async fn queued(store: &Store, limit: i64) -> Result<Vec<Run>, StoreError> {
    let rows = sqlx::query(select!("WHERE state = 'queued' ORDER BY priority, created_at, id LIMIT $1"))
        .bind(row_limit(limit))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("list queued runs"))?;
    read_runs(&rows)
}

/// Runs that wait for approval, oldest first.
pub async fn held(store: &Store, limit: i64) -> Result<Vec<Run>, StoreError> {
    let rows = sqlx::query(select!("WHERE state = 'held' ORDER BY created_at, id LIMIT $1"))
        .bind(row_limit(limit))
        .fetch_all(&store.pool)
        .await
        .map_err(sql("list runs that wait for approval"))?;
    read_runs(&rows)
}

/// Runs that this user asked for since `since` (rate limit).
pub async fn count_by_requester(
    store: &Store,
    requester: i64,
    since: DateTime<Utc>,
) -> Result<i64, StoreError> {
    let row =
        sqlx::query("SELECT COUNT(*) AS n, '' AS id FROM runs WHERE requester = $1 AND created_at >= $2")
            .bind(requester)
            .bind(millis(since))
            .fetch_one(&store.pool)
            .await
            .map_err(sql("count the runs of a user"))?;
    RowReader::new(&row, "runs", "id").integer("n")
}

macro_rules! oldest {
    ($priority:literal) => {
        concat!(
            "SELECT MIN(created_at) AS at FROM runs WHERE state = 'queued' AND priority = ",
            $priority,
            " AND not_before = 0"
        )
    };
}

const NEXT_DUE: &str = concat!(
    "SELECT MIN(at) AS at FROM (",
    oldest!("0"),
    " UNION ALL ",
    oldest!("1"),
    " UNION ALL ",
    oldest!("2"),
    " UNION ALL SELECT MIN(not_before) AS at FROM runs WHERE state = 'queued' AND not_before > 0 \
     UNION ALL SELECT MIN(lease_until) AS at FROM runs WHERE state IN ",
    live_states!(),
    " AND state IN ",
    working!(),
    ") times"
);

/// When the next queued run is due (`not_before`, else when it was made) or the next lease ends, whichever is first.
pub async fn next_due(store: &Store) -> Result<Option<DateTime<Utc>>, StoreError> {
    let row =
        sqlx::query(NEXT_DUE).fetch_one(&store.pool).await.map_err(sql("find when the next run is due"))?;
    lone_time(&row, "runs")
}

/// Number of runs per state.
pub async fn counts(store: &Store) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = sqlx::query("SELECT state AS word, COUNT(*) AS n FROM runs GROUP BY state ORDER BY state")
        .fetch_all(&store.pool)
        .await
        .map_err(sql("count runs"))?;
    rows::counts(&rows, "runs")
}

mod claim;
#[cfg(test)]
mod model;

pub use claim::{AT_ONCE, claim, claim_some};

#[cfg(test)]
mod tests {
    use super::super::testing::{TestDatabase, at, each_database, new_run, repo, spec};
    use super::claim::SET_ASIDE;
    use super::*;
    use crate::domain::run::{AgentEnd, FailureClass, Phase, RunInput};

    const CAPS: Caps = Caps { global: 100, per_owner: 100, per_repo: 100, per_user: 100 };
    const LEASE: Duration = Duration::from_secs(60);

    async fn add(store: &Store, runs: &[NewRun]) {
        let mut tx = store.write_tx().await.unwrap();
        for run in runs {
            assert!(insert(&mut tx, run).await.unwrap());
        }
        tx.commit().await.unwrap();
    }

    async fn claim_at(store: &Store, seconds: i64, caps: Caps) -> Option<Run> {
        claim(store, "node:1", at(seconds), LEASE, caps).await.unwrap()
    }

    async fn claimed_id(store: &Store, seconds: i64, caps: Caps) -> Option<String> {
        claim_at(store, seconds, caps).await.map(|run| run.id.to_string())
    }

    async fn write(store: &Store, run: &Run) -> Result<(), StoreError> {
        let mut tx = store.write_tx().await.unwrap();
        save(&mut tx, run).await?;
        tx.commit().await
    }

    async fn apply(store: &Store, run: &mut Run, input: RunInput) {
        run.apply(&input, at(50)).unwrap();
        write(store, run).await.unwrap();
    }

    #[test]
    fn the_state_lists_in_sql_say_what_the_domain_says() {
        let quoted = |fits: fn(RunState) -> bool| {
            let words: Vec<_> = RunState::ALL
                .into_iter()
                .filter(|state| fits(*state))
                .map(|state| format!("'{}'", state.as_str()))
                .collect();
            format!("({})", words.join(", "))
        };
        assert_eq!(working!(), quoted(RunState::needs_worker));
        assert_eq!(ended!(), quoted(RunState::is_terminal));
        let waits = |state| matches!(state, RunState::Queued | RunState::Held);
        assert_eq!(live_states!(), quoted(|state| state.needs_worker() || state == RunState::Reporting));
        assert!(RunState::ALL.into_iter().all(|state| {
            state.needs_worker() || state == RunState::Reporting || state.is_terminal() || waits(state)
        }));
    }

    #[tokio::test]
    async fn a_run_that_waits_holds_no_lock_and_a_cancel_gives_it_to_a_worker() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            for name in ["a", "b"] {
                insert(&mut tx, &NewRun { lock_key: "same".into(), ..new_run(name) }).await.unwrap();
            }
            tx.commit().await.unwrap();
            let caps = Caps { global: 9, per_owner: 9, per_repo: 9, per_user: 9 };
            let lease = Duration::from_secs(60);
            let mut first = claim(store, "n:1", at(1), lease, caps).await.unwrap().unwrap();
            for input in [RunInput::AgentGone(AgentEnd::Finished), RunInput::Collected, RunInput::Held] {
                first.apply(&input, at(2)).unwrap();
            }
            write(store, &first).await.unwrap();
            assert_eq!(held(store, 10).await.unwrap().len(), 1);
            let second = claim(store, "n:1", at(3), lease, caps).await.unwrap().unwrap();
            assert_ne!(second.id, first.id);
            assert!(claim(store, "n:1", at(500), Duration::from_secs(1), caps).await.unwrap().is_some());
            let mut tx = store.write_tx().await.unwrap();
            assert!(request_cancel(&mut tx, &first.id, "ada").await.unwrap());
            tx.commit().await.unwrap();
            assert!(held(store, 10).await.unwrap().is_empty());
            let taken = claim(store, "n:1", at(500), lease, caps).await.unwrap().unwrap();
            assert_eq!((taken.id, taken.state), (first.id, RunState::Publishing));
            assert_eq!(taken.cancel_requested.as_deref(), Some("ada"));
        })
        .await;
    }

    #[tokio::test]
    async fn a_run_is_stored_once_and_read_back_equal() {
        each_database(async |database| {
            let store = &database.store;
            let new = new_run("run-1");
            let mut tx = store.write_tx().await.unwrap();
            assert!(insert(&mut tx, &new).await.unwrap());
            assert!(!insert(&mut tx, &NewRun { id: RunId::new("other"), ..new.clone() }).await.unwrap());
            let read = get_tx(&mut tx, &new.id).await.unwrap().unwrap();
            assert_eq!(get_tx(&mut tx, &RunId::new("other")).await.unwrap(), None);
            tx.commit().await.unwrap();
            let wanted = Run {
                id: new.id.clone(),
                task: new.task,
                key: new.key,
                remote: new.remote,
                repo: new.repo,
                spec: new.spec,
                state: RunState::Queued,
                priority: 1,
                not_before: None,
                created_at: at(0),
                started_at: None,
                finished_at: None,
                lease_owner: None,
                lease_until: None,
                fence: 0,
                cancel_requested: None,
                deaths: 0,
                attempts: 0,
                progress: Progress::default(),
                agent_end: None,
                outcome: Outcome::default(),
            };
            assert_eq!(read, wanted);
            assert_eq!(get(store, &new.id).await.unwrap(), Some(wanted));
            assert_eq!(get(store, &RunId::new("other")).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test]
    async fn a_claim_takes_the_lease_and_raises_the_fence() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(claim_at(store, 0, CAPS).await, None);
            add(store, &[new_run("run-1")]).await;
            let run = claim_at(store, 1, CAPS).await.unwrap();
            assert_eq!(run.state, RunState::Preparing);
            assert_eq!((run.fence, run.started_at), (1, Some(at(1))));
            assert_eq!((run.lease_owner.as_deref(), run.lease_until), (Some("node:1"), Some(at(61))));
            assert_eq!(claim_at(store, 61, CAPS).await, None);

            let again = claim(store, "node:2", at(62), LEASE, CAPS).await.unwrap().unwrap();
            assert_eq!((again.state, again.fence), (RunState::Preparing, 2));
            assert_eq!((again.lease_owner.as_deref(), again.lease_until), (Some("node:2"), Some(at(122))));
            assert_eq!(again.started_at, Some(at(1)));
            assert_eq!(claim_at(store, 62, CAPS).await, None);
        })
        .await;
    }

    #[tokio::test]
    async fn a_worker_that_lost_its_lease_can_write_nothing() {
        each_database(async |database| {
            let store = &database.store;
            add(store, &[new_run("run-1")]).await;
            let old = claim_at(store, 1, CAPS).await.unwrap();
            let new = claim(store, "node:2", at(100), LEASE, CAPS).await.unwrap().unwrap();
            assert!(matches!(write(store, &old).await, Err(StoreError::Fenced { run }) if run == "run-1"));
            let mut tx = store.write_tx().await.unwrap();
            assert!(matches!(save_progress(&mut tx, &old).await, Err(StoreError::Fenced { .. })));
            drop(tx);
            let beat = heartbeat(store, &old.id, old.fence, at(500)).await;
            assert!(matches!(beat, Err(StoreError::Fenced { .. })));
            assert_eq!(get(store, &old.id).await.unwrap(), Some(new));
            let beat = heartbeat(store, &RunId::new("none"), 0, at(500)).await;
            assert!(matches!(beat, Err(StoreError::Fenced { .. })));
        })
        .await;
    }

    #[tokio::test]
    async fn a_heartbeat_extends_the_lease_and_brings_the_cancel() {
        each_database(async |database| {
            let store = &database.store;
            add(store, &[new_run("run-1")]).await;
            let mut run = claim_at(store, 1, CAPS).await.unwrap();
            assert_eq!(heartbeat(store, &run.id, run.fence, at(90)).await.unwrap(), None);
            assert_eq!(get(store, &run.id).await.unwrap().unwrap().lease_until, Some(at(90)));
            let mut tx = store.write_tx().await.unwrap();
            assert!(request_cancel(&mut tx, &run.id, "octo (1)").await.unwrap());
            assert!(request_cancel(&mut tx, &run.id, "second (2)").await.unwrap());
            assert!(!request_cancel(&mut tx, &RunId::new("none"), "octo (1)").await.unwrap());
            tx.commit().await.unwrap();
            let cancel = heartbeat(store, &run.id, run.fence, at(91)).await.unwrap();
            assert_eq!(cancel.as_deref(), Some("octo (1)"));
            // A save that did not see the cancel keeps it.
            write(store, &run).await.unwrap();
            let stored = get(store, &run.id).await.unwrap().unwrap();
            assert_eq!(stored.cancel_requested.as_deref(), Some("octo (1)"));
            assert_eq!(stored.lease_until, Some(at(91)));

            apply(store, &mut run, RunInput::Cancelled).await;
            let beat = heartbeat(store, &run.id, run.fence, at(92)).await;
            assert!(matches!(beat, Err(StoreError::Fenced { .. })));
            let mut tx = store.write_tx().await.unwrap();
            assert!(!request_cancel(&mut tx, &run.id, "octo (1)").await.unwrap());
        })
        .await;
    }

    #[tokio::test]
    async fn a_run_is_saved_with_all_its_parts_and_keeps_its_lease_only_while_it_needs_one() {
        each_database(async |database| {
            let store = &database.store;
            add(store, &[new_run("run-1"), NewRun { created_at: at(1), ..new_run("run-2") }]).await;
            let mut run = claim_at(store, 1, CAPS).await.unwrap();
            run.attempts = 2;
            run.progress = Progress { phase: Some(Phase::Agent), tokens: 9, ..Progress::default() };
            run.outcome = Outcome { class: Some(FailureClass::Gate), commits: 3, ..Outcome::default() };
            let failed = AgentEnd::Failed { class: FailureClass::Timeout, detail: "too long".to_owned() };
            for (input, holds) in [
                (RunInput::AgentStarted, true),
                (RunInput::AgentGone(failed), true),
                (RunInput::Collected, true),
                (RunInput::Pushed, false),
                (RunInput::Done, false),
            ] {
                apply(store, &mut run, input.clone()).await;
                if !holds {
                    (run.lease_owner, run.lease_until) = (None, None);
                }
                assert_eq!(get(store, &run.id).await.unwrap().as_ref(), Some(&run), "{input:?}");
            }
            let mut second = claim_at(store, 2, CAPS).await.unwrap();
            second.not_before = Some(at(300));
            apply(store, &mut second, RunInput::Later).await;
            let stored = get(store, &second.id).await.unwrap().unwrap();
            assert_eq!((stored.state, stored.lease_owner), (RunState::Queued, None));
            assert_eq!(claimed_id(store, 299, CAPS).await, None);
            assert_eq!(next_due(store).await.unwrap(), Some(at(300)));
            let third = claim_at(store, 300, CAPS).await.unwrap();
            assert_eq!((third.fence, third.started_at), (2, Some(at(2))));

            let mut tx = store.write_tx().await.unwrap();
            let progress = Progress { last: "line".to_owned(), ..Progress::default() };
            save_progress(&mut tx, &Run { progress: progress.clone(), attempts: 99, ..third.clone() })
                .await
                .unwrap();
            tx.commit().await.unwrap();
            assert_eq!(get(store, &third.id).await.unwrap(), Some(Run { progress, ..third }));
        })
        .await;
    }

    #[tokio::test]
    async fn claims_go_by_priority_then_by_fairness_then_by_age() {
        each_database(async |database| {
            let store = &database.store;
            let run = |id: &str, repository, priority, seconds| NewRun {
                repo: repo(repository),
                priority,
                created_at: at(seconds),
                ..new_run(id)
            };
            add(
                store,
                &[
                    run("low", 3, 2, 0),
                    run("busy 1", 1, 1, 1),
                    run("busy 2", 1, 1, 2),
                    run("busy 3", 1, 1, 3),
                    run("quiet 1", 2, 1, 4),
                    run("quiet 2", 2, 1, 5),
                    run("high", 1, 0, 6),
                ],
            )
            .await;
            let mut order = Vec::new();
            while let Some(id) = claimed_id(store, 10, CAPS).await {
                order.push(id);
            }
            assert_eq!(order, ["high", "quiet 1", "busy 1", "quiet 2", "busy 2", "busy 3", "low"]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_lock_is_held_until_the_pull_request_is_confirmed() {
        each_database(async |database| {
            let store = &database.store;
            let run = |id: &str, seconds, priority| NewRun {
                lock_key: "branch".to_owned(),
                created_at: at(seconds),
                priority,
                ..new_run(id)
            };
            // The oldest goes first, also when a younger one has the higher priority.
            add(store, &[run("first", 0, 2), run("second", 1, 1), run("third", 2, 0)]).await;
            let mut first = claim_at(store, 5, CAPS).await.unwrap();
            assert_eq!(first.id.as_str(), "first");
            let place_of = async |id| place(store, &RunId::new(id)).await.unwrap();
            assert_eq!(
                place_of("second").await,
                Some(Place { position: 2, queued: 2, waits_for: Some(RunId::new("first")) })
            );
            assert_eq!(place_of("third").await.unwrap().position, 1);
            assert_eq!(place_of("first").await, None);
            for input in [
                RunInput::AgentStarted,
                RunInput::AgentGone(AgentEnd::Finished),
                RunInput::Collected,
                RunInput::Pushed,
            ] {
                assert_eq!(claim_at(store, 5, CAPS).await, None);
                apply(store, &mut first, input).await;
            }
            assert_eq!(first.state, RunState::Reporting);
            assert_eq!(claim_at(store, 5, CAPS).await, None);
            assert_eq!(live(store).await.unwrap().len(), 1);
            apply(store, &mut first, RunInput::Done).await;
            assert_eq!(claimed_id(store, 5, CAPS).await.as_deref(), Some("second"));
            assert_eq!(claim_at(store, 5, CAPS).await, None);
            assert_eq!(place_of("third").await.unwrap().waits_for, Some(RunId::new("second")));
        })
        .await;
    }

    #[tokio::test]
    async fn caps_hold_back_what_would_pass_them() {
        each_database(async |database| {
            let store = &database.store;
            let run = |id: &str, repository, user| NewRun {
                repo: repo(repository),
                spec: spec(user),
                ..new_run(id)
            };
            add(store, &[run("a", 1, 1), run("b", 1, 2), run("c", 2, 1), run("d", 3, 3)]).await;
            let caps = Caps { global: 2, per_owner: 9, per_repo: 1, per_user: 1 };
            assert_eq!(claimed_id(store, 1, caps).await.as_deref(), Some("a"));
            assert_eq!(claimed_id(store, 1, caps).await.as_deref(), Some("d"));
            assert_eq!(claimed_id(store, 1, caps).await, None);
            assert_eq!(claimed_id(store, 1, Caps { global: 9, ..caps }).await, None);
            let wide = Caps { global: 9, per_owner: 9, per_repo: 9, per_user: 1 };
            assert_eq!(claimed_id(store, 1, wide).await.as_deref(), Some("b"));
            assert_eq!(claimed_id(store, 1, wide).await, None);
            // A lease that ran out is no new live run.
            assert_eq!(claim_at(store, 100, caps).await.unwrap().fence, 2);
        })
        .await;
    }

    #[tokio::test]
    async fn leases_of_earlier_boots_of_the_node_are_left_to_the_next_one() {
        // Who starts, and whose leases it inherits: of `node:1`, `node:2`, `other:1`.
        let cases: [(&str, &[&str]); 3] = [
            ("node:9", &["node:1", "node:2"]),
            ("boot", &["node:1", "node:2", "other:1"]),
            ("other:9", &["other:1"]),
        ];
        each_database(async |database| {
            let store = &database.store;
            for (heir, inherited) in cases {
                let mut tx = store.write_tx().await.unwrap();
                sqlx::query("DELETE FROM runs").execute(&mut *tx.inner).await.unwrap();
                tx.commit().await.unwrap();
                for owner in ["node:1", "node:2", "other:1"] {
                    add(store, &[new_run(owner)]).await;
                    claim(store, owner, at(0), LEASE, CAPS).await.unwrap().unwrap();
                }
                let mut tx = store.write_tx().await.unwrap();
                // A boot that died before it claimed anything.
                inherit_leases(&mut tx, &heir.replace('9', "8")).await.unwrap();
                let count = inherit_leases(&mut tx, heir).await.unwrap();
                tx.commit().await.unwrap();
                assert_eq!(count, u64::try_from(inherited.len()).unwrap());
                let claims = async |owner: &str, seconds: i64| {
                    let mut ids = Vec::new();
                    while let Some(run) = claim(store, owner, at(seconds), LEASE, CAPS).await.unwrap() {
                        assert_eq!((run.fence, run.lease_owner.as_deref()), (2, Some(owner)));
                        ids.push(run.id.to_string());
                    }
                    ids.sort();
                    ids
                };
                assert_eq!(claims("third:1", 1).await, Vec::<String>::new(), "the leases have not run out");
                assert_eq!(claims(heir, 1).await, inherited);
                let rest = claims("third:1", 61).await;
                assert_eq!(rest.len() + inherited.len(), 3);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_run_goes_to_a_node_that_can_all_it_needs() {
        use crate::domain::node::{Node, Role};
        each_database(async |database| {
            let store = &database.store;
            let mut picky = new_run("picky");
            picky.spec.needs = vec!["arm64".into(), "gpu".into()];
            add(store, &[picky, NewRun { created_at: at(5), ..new_run("plain") }]).await;
            for (id, capabilities) in [("n1", vec!["arm64"]), ("n2", vec!["amd64", "arm64", "gpu"])] {
                let capabilities = capabilities.into_iter().map(str::to_owned).collect();
                let node = Node { id: id.into(), name: id.into(), role: Role::Worker, capabilities };
                super::super::nodes::seen(store, &node, &format!("{id}:1"), 4, at(0)).await.unwrap();
            }
            let claimed = async |owner: &str, seconds| {
                let run = claim(store, owner, at(seconds), LEASE, CAPS).await.unwrap();
                run.map(|run| run.id.to_string())
            };
            assert_eq!(claimed("n1:1", 10).await.as_deref(), Some("plain"));
            assert_eq!(claimed("n1:1", 10).await, None);
            assert_eq!(claimed("n2:1", 10).await.as_deref(), Some("picky"));
            // Lost leases, too.
            assert_eq!(claimed("n1:2", 100).await.as_deref(), Some("plain"));
            assert_eq!(claimed("n1:2", 100).await, None);
            assert_eq!(claimed("n2:2", 100).await.as_deref(), Some("picky"));
        })
        .await;
    }

    #[tokio::test]
    async fn a_run_is_found_by_a_unique_end_of_its_id() {
        each_database(async |database| {
            let store = &database.store;
            add(store, &[new_run("0192aa-abcdef12"), new_run("0192bb-abcdef34"), new_run("run_0001")]).await;
            let found = async |end| find(store, end).await.unwrap().map(|run| run.id.to_string());
            assert_eq!(found("0192aa-abcdef12").await.as_deref(), Some("0192aa-abcdef12"));
            assert_eq!(found("bcdef34").await.as_deref(), Some("0192bb-abcdef34"));
            assert_eq!(found("run_0001").await.as_deref(), Some("run_0001"));
            assert_eq!(found("n_0001").await.as_deref(), Some("run_0001"));
            add(store, &[new_run("runx0001"), new_run("0193aa-abcdef12")]).await;
            assert_eq!(found("n_0001").await.as_deref(), Some("run_0001"));
            for bad in ["abcdef12", "def34", "", "%", "%bcdef34", "______", "no-such-run", "a'b", "abcdef\0"]
            {
                assert_eq!(found(bad).await, None, "{bad}");
            }
        })
        .await;
    }

    async fn three_runs(database: &TestDatabase) {
        let store = &database.store;
        add(
            store,
            &[
                NewRun { created_at: at(1), repo: repo(2), ..new_run("b") },
                NewRun { created_at: at(2), spec: spec(5), ..new_run("c") },
                NewRun { created_at: at(0), ..new_run("a") },
            ],
        )
        .await;
        let mut run = claim_at(store, 3, CAPS).await.unwrap();
        assert_eq!(run.id.as_str(), "a");
        apply(store, &mut run, RunInput::Failed).await;
    }

    #[tokio::test]
    async fn lists_are_filtered_and_ordered() {
        each_database(async |database| {
            three_runs(database).await;
            let store = &database.store;
            let all = Filter { limit: 10, ..Filter::default() };
            let ids = |runs: Vec<Run>| runs.into_iter().map(|run| run.id.to_string()).collect::<Vec<_>>();
            for (filter, wanted) in [
                (all.clone(), &["c", "b", "a"][..]),
                (Filter { limit: 2, ..all.clone() }, &["c", "b"]),
                (Filter { limit: 0, ..all.clone() }, &[]),
                (Filter { open_only: true, ..all.clone() }, &["c", "b"]),
                (Filter { state: Some(RunState::Failed), ..all.clone() }, &["a"]),
                (Filter { state: Some(RunState::Failed), open_only: true, ..all.clone() }, &[]),
                (Filter { repo: Some("Octo/Repo-1".to_owned()), ..all.clone() }, &["c", "a"]),
                (Filter { repo: Some("nul\0".to_owned()), ..all.clone() }, &[]),
            ] {
                assert_eq!(ids(list(store, &filter).await.unwrap()), wanted, "{filter:?}");
            }
            assert_eq!(ids(of_task(store, &TaskId::new("task")).await.unwrap()), ["a", "b", "c"]);
            assert_eq!(ids(of_task(store, &TaskId::new("none")).await.unwrap()), Vec::<String>::new());
            assert_eq!(ids(queued(store, 10).await.unwrap()), ["b", "c"]);
            assert_eq!(ids(queued(store, 1).await.unwrap()), ["b"]);
            assert_eq!(counts(store).await.unwrap(), [("failed".to_owned(), 1), ("queued".to_owned(), 2)]);
            assert_eq!(count_by_requester(store, 1, at(0)).await.unwrap(), 2);
            assert_eq!(count_by_requester(store, 1, at(1)).await.unwrap(), 1);
            assert_eq!(count_by_requester(store, 9, at(0)).await.unwrap(), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn the_next_run_is_due_when_it_was_made_or_a_lease_ends() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(next_due(store).await.unwrap(), None);
            add(store, &[NewRun { created_at: at(7), ..new_run("a") }]).await;
            assert_eq!(next_due(store).await.unwrap(), Some(at(7)));
            claim_at(store, 8, CAPS).await.unwrap();
            assert_eq!(next_due(store).await.unwrap(), Some(at(68)));
        })
        .await;
    }

    #[tokio::test]
    async fn a_run_that_cannot_be_read_does_not_stop_the_queue() {
        each_database(async |database| {
            let store = &database.store;
            add(store, &[new_run("a bad one"), NewRun { created_at: at(1), ..new_run("good") }]).await;
            let mut tx = store.write_tx().await.unwrap();
            sqlx::query("UPDATE runs SET spec = '{\"verb\":1}' WHERE id = 'a bad one'")
                .execute(&mut *tx.inner)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            let error = claim(store, "node:1", at(2), LEASE, CAPS).await.unwrap_err();
            assert!(
                matches!(&error, StoreError::BadRow { table: "runs", column: "spec", id, .. } if id == "a bad one"),
                "{error}"
            );
            assert_eq!(claimed_id(store, 2, CAPS).await.as_deref(), Some("good"));
            assert_eq!(claimed_id(store, 50, CAPS).await, None);
            assert!(claim(store, "node:1", at(2) + SET_ASIDE, LEASE, CAPS).await.is_ok());
        })
        .await;
    }

    #[tokio::test]
    async fn one_account_has_no_more_live_runs_than_its_cap() {
        each_database(async |database| {
            let store = &database.store;
            let caps = Caps { per_owner: 1, ..CAPS };
            let elsewhere = crate::domain::ids::RepoName::parse("Acme/tool").unwrap();
            let other = crate::domain::event::Repo { name: elsewhere, ..repo(9) };
            add(
                store,
                &[
                    NewRun { repo: repo(1), ..new_run("run-1") },
                    NewRun { repo: repo(2), created_at: at(1), ..new_run("run-2") },
                    NewRun { repo: other, created_at: at(2), ..new_run("run-3") },
                ],
            )
            .await;
            assert_eq!(claimed_id(store, 3, caps).await.as_deref(), Some("run-1"));
            assert_eq!(claimed_id(store, 3, caps).await.as_deref(), Some("run-3"), "another account");
            assert_eq!(claimed_id(store, 3, caps).await, None);
            assert_eq!(claimed_id(store, 3, CAPS).await.as_deref(), Some("run-2"));
        })
        .await;
    }

    #[tokio::test]
    async fn deaths_count_when_an_owner_was_lost_and_end_when_the_run_goes_on() {
        each_database(async |database| {
            let store = &database.store;
            add(store, &[new_run("run-1")]).await;
            assert_eq!(claim_at(store, 0, CAPS).await.unwrap().deaths, 0);
            assert_eq!(claim_at(store, 100, CAPS).await.unwrap().deaths, 1);
            let run = claim_at(store, 200, CAPS).await.unwrap();
            assert_eq!((run.deaths, run.fence), (2, 3));
            survived(store, &run.id, run.fence - 1).await.unwrap();
            assert_eq!(get(store, &run.id).await.unwrap().unwrap().deaths, 2, "another's word");
            survived(store, &run.id, run.fence).await.unwrap();
            assert_eq!(get(store, &run.id).await.unwrap().unwrap().deaths, 0);
            // Left in an orderly way: nobody died.
            left_alive(store, "another:1").await.unwrap();
            left_alive(store, "node:1").await.unwrap();
            assert_eq!(claim_at(store, 300, CAPS).await.unwrap().deaths, 0);
            assert_eq!(claim_at(store, 400, CAPS).await.unwrap().deaths, 1);
        })
        .await;
    }
}
