//! Databases for the tests of this module: SQLite always, Postgres when `ZEBLIT_TEST_POSTGRES` names a server.

use super::{DatabaseKind, Store};
use crate::domain::command::Verb;
use crate::domain::effect::{EffectPriority, NewEffect, OwnComment, Payload};
use crate::domain::event::{Actor, ActorKind, Repo, Subject, SubjectKind};
use crate::domain::ids::{BranchName, RepoName, RunId, Sha, TaskId};
use crate::domain::repo_config::RepoConfig;
use crate::domain::run::{Publish, RunMode, RunSpec};
use crate::domain::task::Task;
use crate::store::runs::NewRun;
use chrono::{DateTime, TimeZone, Utc};
use sqlx::{AnyConnection, Connection};

/// A database of its own for one test.
pub(super) struct TestDatabase {
    pub store: Store,
    pub url: String,
    folder: Option<tempfile::TempDir>,
    server: Option<(String, String)>,
}

impl TestDatabase {
    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("zeblit.db").display());
        let store = Store::open(&url).await.unwrap();
        Self { store, url, folder: Some(folder), server: None }
    }

    async fn postgres(server: String) -> Self {
        let name = format!("zeblit_test_{}", uuid::Uuid::now_v7().simple());
        sqlx::any::install_default_drivers();
        let mut connection = AnyConnection::connect(&server).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .unwrap();
        let mut url = url::Url::parse(&server).unwrap();
        url.set_path(&name);
        let store = Store::open(url.as_str()).await.unwrap();
        Self { store, url: url.to_string(), folder: None, server: Some((server, name)) }
    }

    async fn remove(self) {
        self.store.close().await;
        if let Some((server, name)) = self.server {
            let mut connection = AnyConnection::connect(&server).await.unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
                .execute(&mut connection)
                .await
                .unwrap();
        }
        drop(self.folder);
    }
}

/// Runs a test on each kind of database; the database is removed when the test passed.
pub(super) async fn each_database<F>(test: F)
where
    F: AsyncFn(&TestDatabase),
{
    let database = TestDatabase::sqlite().await;
    assert_eq!(database.store.kind(), DatabaseKind::Sqlite);
    test(&database).await;
    database.remove().await;
    if let Ok(server) = std::env::var("ZEBLIT_TEST_POSTGRES") {
        let database = TestDatabase::postgres(server).await;
        assert_eq!(database.store.kind(), DatabaseKind::Postgres);
        test(&database).await;
        database.remove().await;
    }
}

/// The steps by which SQLite answers a query.
pub(super) async fn sqlite_plan(store: &Store, text: &str) -> Vec<String> {
    use sqlx::Row;
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}")))
        .fetch_all(&store.pool)
        .await
        .unwrap();
    rows.iter().map(|row| row.try_get("detail").unwrap()).collect()
}

/// A moment, `seconds` after the tests' beginning of time.
pub(super) fn at(seconds: i64) -> DateTime<Utc> {
    Utc.timestamp_opt(1_800_000_000 + seconds, 0).unwrap()
}

pub(super) fn repo(id: i64) -> Repo {
    Repo { id, name: RepoName::parse(&format!("octo/repo-{id}")).unwrap(), installation: 7, private: true }
}

pub(super) fn actor(id: i64) -> Actor {
    Actor { id, login: format!("user{id}"), kind: ActorKind::User }
}

pub(super) fn task(id: &str, repo_id: i64, number: i64) -> Task {
    Task {
        id: TaskId::new(id),
        remote: "github".to_owned(),
        repo: repo(repo_id),
        kind: SubjectKind::Issue,
        number,
        title: "It \"breaks\" 💥".to_owned(),
        branch: None,
        pull_number: None,
        pull_url: None,
        created_at: at(0),
        closed_at: None,
    }
}

pub(super) fn spec(requester: i64) -> RunSpec {
    let sha = Sha::parse(&"a".repeat(40)).unwrap();
    RunSpec {
        verb: Verb::Fix,
        text: "mend it\0 please".to_owned(),
        agent: "stub".to_owned(),
        model: None,
        mode: RunMode::Change,
        requester: actor(requester),
        subject: Subject {
            kind: SubjectKind::Issue,
            number: 1,
            title: "It breaks".to_owned(),
            body: "often".to_owned(),
            author: actor(2),
            url: "https://forge.test/octo/repo-1/issues/1".to_owned(),
            open: true,
        },
        origin: None,
        start: sha.clone(),
        base: BranchName::parse("main").unwrap(),
        base_sha: sha,
        pull: None,
        push_to: None,
        fork: None,
        publish: Publish::Push,
        image: "image".to_owned(),
        budget_micros: 5_000_000,
        wall_seconds: 600,
        config: RepoConfig::default(),
        previous: None,
        resume: false,
        needs: Vec::new(),
    }
}

/// A queued run of repository 1 with a lock of its own.
pub(super) fn new_run(id: &str) -> NewRun {
    NewRun {
        id: RunId::new(id),
        task: TaskId::new("task"),
        key: format!("key of {id}"),
        remote: "github".to_owned(),
        repo: repo(1),
        lock_key: format!("lock of {id}"),
        spec: spec(1),
        priority: 1,
        created_at: at(0),
    }
}

/// A comment of installation 7 to be written.
pub(super) fn comment(key: &str, body: &str) -> NewEffect {
    NewEffect {
        run: Some(RunId::new("run")),
        task: None,
        remote: "github".to_owned(),
        repo: repo(1),
        key: key.to_owned(),
        priority: EffectPriority::Progress,
        payload: Payload::Sticky(OwnComment {
            number: 1,
            thread: None,
            marker: "<!-- marker -->".to_owned(),
            body: body.to_owned(),
        }),
        not_before: None,
    }
}
