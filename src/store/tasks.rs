//! Tasks.

use super::rows::{MAX_ROWS, RowReader, json, millis, plain, row_limit, sql};
use super::{DatabaseKind, Store, StoreError, Tx};
use crate::domain::event::{Repo, SubjectKind};
use crate::domain::ids::{BranchName, RepoName, TaskId};
use crate::domain::task::Task;
use chrono::{DateTime, Utc};
use sqlx::any::AnyRow;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, remote, repo, kind, number, title, branch, pull_number, pull_url, created_at, closed_at \
             FROM tasks ",
            $rest
        )
    };
}

/// The state of a task's newest run.
macro_rules! last_state {
    ($task:literal) => {
        concat!(
            "SELECT w.state FROM runs w WHERE w.task = ",
            $task,
            ".id ORDER BY w.created_at DESC, w.id DESC LIMIT 1"
        )
    };
}

/// Whether a task that is waited for is not done yet.
macro_rules! blocks {
    ($task:literal) => {
        concat!(
            $task,
            ".closed_at IS NULL AND (",
            $task,
            ".pull_number IS NOT NULL OR (",
            $crate::store::tasks::last_state!($task),
            ") NOT IN ('succeeded', 'nothing'))"
        )
    };
}
pub(super) use {blocks, last_state};

fn kind_word(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Issue => "issue",
        SubjectKind::PullRequest => "pull_request",
    }
}

fn read_task(row: &AnyRow) -> Result<Task, StoreError> {
    let row = RowReader::new(row, "tasks", "id");
    Ok(Task {
        id: TaskId::new(row.text("id")?),
        remote: row.text("remote")?,
        repo: row.json("repo")?,
        kind: row.word("kind", |word| {
            [SubjectKind::Issue, SubjectKind::PullRequest].into_iter().find(|kind| kind_word(*kind) == word)
        })?,
        number: row.integer("number")?,
        title: row.text("title")?,
        branch: row
            .text_or_null("branch")?
            .map(|branch| BranchName::parse(&branch).map_err(|error| row.bad("branch", error)))
            .transpose()?,
        pull_number: row.integer_or_null("pull_number")?,
        pull_url: row.text_or_null("pull_url")?,
        created_at: row.time("created_at")?,
        closed_at: row.time_or_null("closed_at")?,
    })
}

/// Inserts a task; false when an open task for its subject exists already.
pub async fn insert(tx: &mut Tx, task: &Task) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO tasks (id, remote, repo_id, repo, kind, number, title, branch, pull_number, pull_url, \
         created_at, closed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (remote, repo_id, number) WHERE closed_at IS NULL DO NOTHING",
    )
    .bind(task.id.as_str())
    .bind(&task.remote)
    .bind(task.repo.id)
    .bind(json("insert a task", &task.repo)?)
    .bind(kind_word(task.kind))
    .bind(task.number)
    .bind(plain(&task.title).as_ref())
    .bind(task.branch.as_ref().map(BranchName::as_str))
    .bind(task.pull_number)
    .bind(task.pull_url.as_deref())
    .bind(millis(task.created_at))
    .bind(task.closed_at.map(millis))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("insert a task"))?;
    Ok(done.rows_affected() == 1)
}

/// By its id, open or closed.
pub async fn get(store: &Store, id: &TaskId) -> Result<Option<Task>, StoreError> {
    let row = sqlx::query(select!("WHERE id = $1"))
        .bind(id.as_str())
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read a task"))?;
    row.as_ref().map(read_task).transpose()
}

/// The open task of this issue or pull request, or whose own pull request this is.
pub async fn open_for(
    store: &Store,
    remote: &str,
    repo_id: i64,
    number: i64,
) -> Result<Option<Task>, StoreError> {
    let row = sqlx::query(select!(
        "WHERE remote = $1 AND repo_id = $2 AND closed_at IS NULL AND (number = $3 OR pull_number = $3) \
         ORDER BY CASE WHEN number = $3 THEN 1 ELSE 0 END, created_at, id LIMIT 1"
    ))
    .bind(remote)
    .bind(repo_id)
    .bind(number)
    .fetch_optional(&store.pool)
    .await
    .map_err(sql("read the open task of a subject"))?;
    row.as_ref().map(read_task).transpose()
}

/// Open tasks of one repository, oldest first.
pub async fn open_of_repo(store: &Store, remote: &str, repo_id: i64) -> Result<Vec<Task>, StoreError> {
    let rows = sqlx::query(select!(
        "WHERE remote = $1 AND repo_id = $2 AND closed_at IS NULL ORDER BY created_at, id LIMIT $3"
    ))
    .bind(remote)
    .bind(repo_id)
    .bind(MAX_ROWS)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list the open tasks of a repository"))?;
    rows.iter().map(read_task).collect()
}

/// Open tasks that nobody compared with the forge since a time: with a run that has not ended (`since`), without
/// one (`idle_since`). Those with a run first, then the longest not looked at. The look's name is `task:<id>`.
pub async fn to_compare(
    store: &Store,
    remote: &str,
    since: DateTime<Utc>,
    idle_since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Task>, StoreError> {
    let rows = sqlx::query(select!(
        "LEFT JOIN (SELECT name AS look, at AS looked_at FROM looks) l ON l.look = 'task:' || id \
         LEFT JOIN (SELECT task AS busy FROM runs WHERE state = 'queued' \
         UNION SELECT task FROM runs WHERE state IN ('preparing', 'running', 'collecting', 'publishing', 'reporting') \
         UNION SELECT task FROM runs WHERE state = 'held') r ON r.busy = id \
         WHERE remote = $1 AND closed_at IS NULL \
         AND COALESCE(looked_at, 0) <= CASE WHEN busy IS NULL THEN $3 ELSE $2 END \
         ORDER BY CASE WHEN busy IS NULL THEN 1 ELSE 0 END, COALESCE(looked_at, 0), created_at, id LIMIT $4"
    ))
    .bind(remote)
    .bind(millis(since))
    .bind(millis(idle_since))
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list tasks to compare"))?;
    rows.iter().map(read_task).collect()
}

/// As `open_for`; on Postgres the row stays locked until the transaction ends.
pub async fn open_for_tx(
    tx: &mut Tx,
    remote: &str,
    repo_id: i64,
    number: i64,
) -> Result<Option<Task>, StoreError> {
    let text = match tx.kind {
        DatabaseKind::Sqlite => select!(
            "WHERE remote = $1 AND repo_id = $2 AND closed_at IS NULL AND (number = $3 OR pull_number = $3) \
             ORDER BY CASE WHEN number = $3 THEN 1 ELSE 0 END, created_at, id LIMIT 1"
        ),
        DatabaseKind::Postgres => select!(
            "WHERE remote = $1 AND repo_id = $2 AND closed_at IS NULL AND (number = $3 OR pull_number = $3) \
             ORDER BY CASE WHEN number = $3 THEN 1 ELSE 0 END, created_at, id LIMIT 1 FOR UPDATE"
        ),
    };
    let row = sqlx::query(text)
        .bind(remote)
        .bind(repo_id)
        .bind(number)
        .fetch_optional(&mut *tx.inner)
        .await
        .map_err(sql("read the open task of a subject"))?;
    row.as_ref().map(read_task).transpose()
}

/// Runs of `child` wait until `parent` is done: closed, or ended well without a pull request.
pub async fn block(tx: &mut Tx, child: &TaskId, parent: &TaskId) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO task_links (child, parent, kind) VALUES ($1, $2, 'blocked_by') ON CONFLICT DO NOTHING",
    )
    .bind(child.as_str())
    .bind(parent.as_str())
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("link two tasks"))?;
    Ok(())
}

/// Nothing is waited for any more.
pub async fn unblock(tx: &mut Tx, child: &TaskId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM task_links WHERE child = $1 AND kind = 'blocked_by'")
        .bind(child.as_str())
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("unlink tasks"))?;
    Ok(())
}

/// A task that another one waits for, and that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    pub child: TaskId,
    pub number: i64,
    /// Its last run failed or was cancelled, and there is no pull request: nothing goes on by itself.
    pub failed: bool,
}

/// Everything that is waited for, by child and number.
pub async fn blockers(store: &Store) -> Result<Vec<Blocker>, StoreError> {
    let rows = sqlx::query(concat!(
        "SELECT l.child AS child, p.number AS number, CASE WHEN p.pull_number IS NULL AND (",
        last_state!("p"),
        ") IN ('failed', 'cancelled') THEN 1 ELSE 0 END AS failed FROM task_links l \
         JOIN tasks p ON p.id = l.parent WHERE l.kind = 'blocked_by' AND ",
        blocks!("p"),
        " ORDER BY l.child, p.number"
    ))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list what tasks wait for"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "task_links", "child");
            Ok(Blocker {
                child: TaskId::new(row.text("child")?),
                number: row.integer("number")?,
                failed: row.integer("failed")? == 1,
            })
        })
        .collect()
}

/// Everything that this task is linked to as waiting for, done or not, also by way of others.
pub async fn waits_for_all(store: &Store, child: &TaskId) -> Result<Vec<TaskId>, StoreError> {
    let rows = sqlx::query(
        "WITH RECURSIVE before(id) AS (SELECT parent FROM task_links WHERE child = $1 AND kind = 'blocked_by' \
         UNION SELECT l.parent FROM task_links l JOIN before b ON l.child = b.id WHERE l.kind = 'blocked_by') \
         SELECT id FROM before ORDER BY id",
    )
    .bind(child.as_str())
    .fetch_all(&store.pool)
    .await
    .map_err(sql("follow what a task waits for"))?;
    rows.iter().map(|row| Ok(TaskId::new(RowReader::new(row, "task_links", "id").text("id")?))).collect()
}

/// Once a run has pushed it.
pub async fn set_branch(tx: &mut Tx, id: &TaskId, branch: &BranchName) -> Result<(), StoreError> {
    sqlx::query("UPDATE tasks SET branch = $2 WHERE id = $1")
        .bind(id.as_str())
        .bind(branch.as_str())
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("set the branch of a task"))?;
    Ok(())
}

/// Once the forge confirmed it.
pub async fn set_pull(tx: &mut Tx, id: &TaskId, number: i64, url: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE tasks SET pull_number = $2, pull_url = $3 WHERE id = $1")
        .bind(id.as_str())
        .bind(number)
        .bind(plain(url).as_ref())
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("set the pull request of a task"))?;
    Ok(())
}

/// Closing twice keeps the first time.
pub async fn close(tx: &mut Tx, id: &TaskId, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query("UPDATE tasks SET closed_at = $2 WHERE id = $1 AND closed_at IS NULL")
        .bind(id.as_str())
        .bind(millis(now))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("close a task"))?;
    Ok(())
}

/// The repository got a new name: tasks, runs and effects that are not ended follow. `repo` is what the event says of
/// it now (a transfer also changes its installation). Gives the number of rows that followed.
pub async fn repo_moved(tx: &mut Tx, remote: &str, repo: &Repo, new: &RepoName) -> Result<u64, StoreError> {
    const OPERATION: &str = "rename a repository";
    let document = json(OPERATION, &Repo { name: new.clone(), ..repo.clone() })?;
    let tasks = sqlx::query(
        "UPDATE tasks SET repo = $3 WHERE remote = $1 AND repo_id = $2 AND closed_at IS NULL AND repo <> $3",
    )
    .bind(remote)
    .bind(repo.id)
    .bind(&document)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql(OPERATION))?;
    let runs = sqlx::query(
        "UPDATE runs SET repo = $3, repo_name = $4 WHERE remote = $1 AND repo_id = $2 AND repo <> $3 \
         AND state NOT IN ('succeeded', 'nothing', 'needs_input', 'failed', 'cancelled')",
    )
    .bind(remote)
    .bind(repo.id)
    .bind(&document)
    .bind(new.as_str())
    .execute(&mut *tx.inner)
    .await
    .map_err(sql(OPERATION))?;
    let effects = sqlx::query(
        "UPDATE effects SET repo = $3, installation = $4 WHERE remote = $1 AND repo_id = $2 AND repo <> $3 \
         AND state IN ('planned', 'sending', 'ambiguous')",
    )
    .bind(remote)
    .bind(repo.id)
    .bind(&document)
    .bind(repo.installation)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql(OPERATION))?;
    Ok(tasks.rows_affected() + runs.rows_affected() + effects.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, comment, each_database, new_run, repo, task};
    use super::super::{effects, runs};
    use super::*;
    use crate::domain::ids::EffectId;

    #[tokio::test]
    async fn tasks_with_a_run_are_compared_more_often_than_those_without() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            for (id, number) in [("busy", 1), ("idle", 2), ("closed", 3), ("elsewhere", 4)] {
                let repo_id = if id == "elsewhere" { 2 } else { 1 };
                insert(&mut tx, &task(id, repo_id, number)).await.unwrap();
            }
            close(&mut tx, &TaskId::new("closed"), at(1)).await.unwrap();
            let run = runs::NewRun { task: TaskId::new("busy"), ..new_run("run") };
            runs::insert(&mut tx, &run).await.unwrap();
            tx.commit().await.unwrap();
            let due = async |since, idle_since| {
                let due = to_compare(store, "github", at(since), at(idle_since), 9).await.unwrap();
                due.into_iter().map(|task| task.id.to_string()).collect::<Vec<_>>()
            };
            assert_eq!(due(0, 0).await, ["busy", "elsewhere", "idle"]);
            let of_repo = open_of_repo(store, "github", 1).await.unwrap();
            assert_eq!(of_repo.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["busy", "idle"]);
            let mut tx = store.write_tx().await.unwrap();
            for (name, seconds) in [("task:busy", 10), ("task:idle", 5), ("task:elsewhere", 9)] {
                super::super::repair::set_looked(&mut tx, name, at(seconds)).await.unwrap();
            }
            tx.commit().await.unwrap();
            assert_eq!(due(9, 4).await, Vec::<String>::new());
            assert_eq!(due(10, 5).await, ["busy", "idle"]);
            assert_eq!(to_compare(store, "github", at(10), at(9), 2).await.unwrap().len(), 2);
        })
        .await;
    }

    #[tokio::test]
    async fn a_subject_has_one_open_task() {
        each_database(async |database| {
            let store = &database.store;
            let first = Task { title: "NUL \0 here".to_owned(), ..task("first", 1, 5) };
            let mut tx = store.write_tx().await.unwrap();
            assert!(insert(&mut tx, &first).await.unwrap());
            assert!(!insert(&mut tx, &task("second", 1, 5)).await.unwrap());
            assert!(insert(&mut tx, &task("of another repository", 2, 5)).await.unwrap());
            assert!(
                insert(&mut tx, &Task { remote: "local".to_owned(), ..task("remote", 1, 5) }).await.unwrap()
            );
            close(&mut tx, &first.id, at(5)).await.unwrap();
            close(&mut tx, &first.id, at(6)).await.unwrap();
            assert!(insert(&mut tx, &task("second", 1, 5)).await.unwrap());
            tx.commit().await.unwrap();
            let first = Task { closed_at: Some(at(5)), title: "NUL \u{fffd} here".to_owned(), ..first };
            assert_eq!(get(store, &first.id).await.unwrap(), Some(first));
            assert_eq!(open_for(store, "github", 1, 5).await.unwrap(), Some(task("second", 1, 5)));
            assert_eq!(open_for(store, "github", 1, 6).await.unwrap(), None);
            assert_eq!(open_for(store, "github", 3, 5).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test]
    async fn a_task_is_found_by_its_own_pull_request() {
        each_database(async |database| {
            let store = &database.store;
            let issue = task("issue", 1, 5);
            let branch = BranchName::parse("zeblit/5-it-breaks-abc123").unwrap();
            let mut tx = store.write_tx().await.unwrap();
            insert(&mut tx, &issue).await.unwrap();
            set_branch(&mut tx, &issue.id, &branch).await.unwrap();
            set_pull(&mut tx, &issue.id, 9, "https://forge.test/9").await.unwrap();
            let wanted = Task {
                branch: Some(branch),
                pull_number: Some(9),
                pull_url: Some("https://forge.test/9".to_owned()),
                ..issue
            };
            assert_eq!(open_for_tx(&mut tx, "github", 1, 9).await.unwrap().as_ref(), Some(&wanted));
            assert_eq!(open_for_tx(&mut tx, "github", 1, 5).await.unwrap().as_ref(), Some(&wanted));
            assert_eq!(open_for_tx(&mut tx, "github", 2, 5).await.unwrap(), None);
            tx.commit().await.unwrap();
            assert_eq!(open_for(store, "github", 1, 9).await.unwrap(), Some(wanted));
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_open_follows_a_repository_that_moved() {
        each_database(async |database| {
            let store = &database.store;
            let name = RepoName::parse("new-owner/new-name").unwrap();
            let now = Repo { name: name.clone(), installation: 8, ..repo(1) };
            let mut tx = store.write_tx().await.unwrap();
            insert(&mut tx, &task("open", 1, 1)).await.unwrap();
            insert(&mut tx, &task("closed", 1, 2)).await.unwrap();
            close(&mut tx, &TaskId::new("closed"), at(1)).await.unwrap();
            insert(&mut tx, &task("elsewhere", 2, 1)).await.unwrap();
            runs::insert(&mut tx, &new_run("run")).await.unwrap();
            effects::put(&mut tx, &EffectId::new("effect"), &comment("key", "text"), at(0)).await.unwrap();
            assert_eq!(repo_moved(&mut tx, "github", &now, &name).await.unwrap(), 3);
            assert_eq!(repo_moved(&mut tx, "github", &now, &name).await.unwrap(), 0);
            tx.commit().await.unwrap();

            assert_eq!(get(store, &TaskId::new("open")).await.unwrap().unwrap().repo, now);
            assert_eq!(get(store, &TaskId::new("closed")).await.unwrap().unwrap().repo, repo(1));
            assert_eq!(get(store, &TaskId::new("elsewhere")).await.unwrap().unwrap().repo, repo(2));
            let filter = runs::Filter {
                repo: Some("New-Owner/new-name".to_owned()),
                limit: 10,
                ..runs::Filter::default()
            };
            let listed = runs::list(store, &filter).await.unwrap();
            assert!(listed.len() == 1 && listed.iter().all(|run| run.repo == now), "{listed:?}");
            for run in &listed {
                assert_eq!(runs::repo_of(store, &run.id).await.unwrap(), Some(now.clone()));
            }
            assert_eq!(effects::by_key(store, "key").await.unwrap().unwrap().repo, now);
            assert_eq!(effects::due_lanes(store, at(1)).await.unwrap(), [("github".to_owned(), 8)]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_read_is_named() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            insert(&mut tx, &task("bad", 1, 1)).await.unwrap();
            sqlx::query("UPDATE tasks SET repo = 'no json'").execute(&mut *tx.inner).await.unwrap();
            tx.commit().await.unwrap();
            let error = get(store, &TaskId::new("bad")).await.unwrap_err();
            assert!(
                matches!(&error, StoreError::BadRow { table: "tasks", column: "repo", id, .. } if id == "bad"),
                "{error}"
            );
            for (change, column) in [
                ("UPDATE tasks SET repo = '{}'", "repo"),
                ("UPDATE tasks SET kind = 'epic'", "kind"),
            ] {
                let mut tx = store.write_tx().await.unwrap();
                sqlx::query("DELETE FROM tasks").execute(&mut *tx.inner).await.unwrap();
                insert(&mut tx, &task("bad", 1, 1)).await.unwrap();
                sqlx::query(change).execute(&mut *tx.inner).await.unwrap();
                tx.commit().await.unwrap();
                let error = get(store, &TaskId::new("bad")).await.unwrap_err().to_string();
                assert!(error.contains(&format!("tasks.{column} of `bad`")), "{error}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_task_waits_until_what_blocks_it_is_done() {
        each_database(async |database| {
            let store = &database.store;
            let (lease, caps) = (
                std::time::Duration::from_secs(60),
                runs::Caps { global: 9, per_owner: 9, per_repo: 9, per_user: 9 },
            );
            let mut tx = store.write_tx().await.unwrap();
            for (name, number) in [("one", 1), ("two", 2), ("three", 3)] {
                insert(&mut tx, &task(name, 1, number)).await.unwrap();
                let run = runs::NewRun {
                    task: TaskId::new(name),
                    lock_key: name.to_owned(),
                    created_at: at(10 - number),
                    ..new_run(name)
                };
                runs::insert(&mut tx, &run).await.unwrap();
            }
            // three waits for two, two waits for one; said twice.
            for _ in 0..2 {
                block(&mut tx, &TaskId::new("three"), &TaskId::new("two")).await.unwrap();
                block(&mut tx, &TaskId::new("two"), &TaskId::new("one")).await.unwrap();
            }
            tx.commit().await.unwrap();
            let numbers = async |name: &str| {
                let blockers = blockers(store).await.unwrap();
                blockers.iter().filter(|b| b.child.as_str() == name).map(|b| b.number).collect::<Vec<_>>()
            };
            assert_eq!(
                (numbers("three").await, numbers("two").await, numbers("one").await),
                (vec![2], vec![1], vec![])
            );
            let all = waits_for_all(store, &TaskId::new("three")).await.unwrap();
            assert_eq!(all, [TaskId::new("one"), TaskId::new("two")]);

            let claim = async || {
                let run = runs::claim(store, "n:1", at(20), lease, caps).await.unwrap();
                run.map(|run| run.id.to_string())
            };
            assert_eq!(claim().await.as_deref(), Some("one"), "though it is the youngest");
            assert_eq!(claim().await, None);
            // Its run ended with a pull request: that must be closed first.
            let mut tx = store.write_tx().await.unwrap();
            sqlx::query("UPDATE runs SET state = 'succeeded' WHERE id = 'one'")
                .execute(&mut *tx.inner)
                .await
                .unwrap();
            set_pull(&mut tx, &TaskId::new("one"), 9, "https://forge.test/9").await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(claim().await, None);
            let mut tx = store.write_tx().await.unwrap();
            close(&mut tx, &TaskId::new("one"), at(21)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(claim().await.as_deref(), Some("two"));
            assert_eq!(claim().await, None);
            // An end that is no good one is not done, and says so.
            let mut tx = store.write_tx().await.unwrap();
            sqlx::query("UPDATE runs SET state = 'failed' WHERE id = 'two'")
                .execute(&mut *tx.inner)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            assert_eq!(claim().await, None);
            let failed = Blocker { child: TaskId::new("three"), number: 2, failed: true };
            assert_eq!(blockers(store).await.unwrap(), [failed]);
            // A good one without a pull request leaves nothing to wait for.
            let mut tx = store.write_tx().await.unwrap();
            sqlx::query("UPDATE runs SET state = 'nothing' WHERE id = 'two'")
                .execute(&mut *tx.inner)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            assert_eq!(numbers("three").await, Vec::<i64>::new());
            assert_eq!(claim().await.as_deref(), Some("three"));

            let mut tx = store.write_tx().await.unwrap();
            unblock(&mut tx, &TaskId::new("three")).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(waits_for_all(store, &TaskId::new("three")).await.unwrap(), []);
        })
        .await;
    }
}
