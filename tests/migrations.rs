//! Migrations apply in order on both databases over sample data, use portable types only and are only ever added.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use sqlx::any::AnyConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::{AnyConnection, AssertSqlSafe, ConnectOptions, Connection, Row};
use std::path::Path;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Rows put in after the migration of this number: each later migration must carry them.
const SAMPLES: &[(i64, &[&str])] = &[
    (
        1,
        &[
            "INSERT INTO inbox VALUES ('i', 'github', 'd', 'ping', '[]', $1, 3, 1, 'pending', '', 0, 0)",
            "INSERT INTO tasks VALUES ('t', 'github', 1, '{}', 'issue', 1, 'title', NULL, NULL, NULL, 1, NULL)",
            "INSERT INTO task_links VALUES ('t', 'u', 'blocked_by')",
            "INSERT INTO runs VALUES ('r', 't', 'k', 'github', 1, 'o/n', '{}', 1, 'l', '{}', 'queued', 1, 0, 1, NULL, \
         NULL, NULL, NULL, 0, NULL, 0, '{}', NULL, '{}')",
            "INSERT INTO attempts VALUES ('r', 1, 's', NULL, 1, NULL, 0)",
            "INSERT INTO artifacts VALUES ('r', 'diff', $1, 1)",
            "INSERT INTO effects VALUES ('e', 'r', 't', 'github', 7, 1, '{}', 'sticky', 'ek', 5, '{}', 1, 'planned', \
         NULL, 0, NULL, 0, NULL, 1, NULL)",
            "INSERT INTO writes VALUES ('github', 7, 1)",
            "INSERT INTO holds VALUES ('github', 7, 1, 'why')",
            "INSERT INTO ledger VALUES ('r', 'q', 1, 'm', 5, NULL, 0, 0, 0, 0, 1)",
            "INSERT INTO log_chunks VALUES ('r', 1, 1, 1, 'line')",
            "INSERT INTO nodes VALUES ('n', 'all', '', 1, 1)",
            "INSERT INTO installations VALUES ('github', 7, 'octo', 'active', 1)",
            "INSERT INTO tokens VALUES ('k', 'hash', 'name', 1, NULL, NULL)",
            "INSERT INTO audit VALUES ('a', 1, 'system', 'grant', 'r', '')",
            "INSERT INTO settings VALUES ('paused', 'why', 1)",
        ],
    ),
    (2, &["INSERT INTO budgets VALUES ('user:github:1', '2026-11-21', 5)"]),
    (
        3,
        &[
            "INSERT INTO egress VALUES ('r', 'static.crates.io', 443, 'allowed', 1, 2, 3, 1)",
            "INSERT INTO questions VALUES ('r', 1, '{}', 1)",
            "INSERT INTO checklists VALUES ('r', '[]', 1)",
        ],
    ),
    (4, &["INSERT INTO samples VALUES ('r', 1, 1500, 1, 1)"]),
    (
        5,
        &[
            "INSERT INTO approvals VALUES ('github', 1, 1, 'h', 7, 'ada', 1)",
            "INSERT INTO pull_pushes VALUES ('github', 1, 1, 'h', 1)",
        ],
    ),
    (8, &["INSERT INTO duties VALUES ('ingest', 'n:1', 1)"]),
    (
        10,
        &[
            "INSERT INTO node_capabilities VALUES ('n', 'arm64')",
            "INSERT INTO run_needs VALUES ('r', 'arm64')",
        ],
    ),
    (
        11,
        &[
            "INSERT INTO missed VALUES ('github', 'd', 1, 'push', 1, 0, 1)",
            "INSERT INTO looks VALUES ('clock', 1)",
        ],
    ),
];

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
}

/// Number, name and text of each file, in order.
fn files() -> Vec<(i64, String, String)> {
    let mut files: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let number = name.split('_').next().unwrap().parse().unwrap();
            (number, name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Statements without comments, upper-case, on one line each.
fn statements(text: &str) -> Vec<String> {
    let code: Vec<_> = text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    code.join(" ")
        .split(';')
        .map(|statement| statement.split_whitespace().collect::<Vec<_>>().join(" ").to_uppercase())
        .filter(|statement| !statement.is_empty())
        .collect()
}

async fn connect(url: &str) -> AnyConnection {
    sqlx::any::install_default_drivers();
    url.parse::<AnyConnectOptions>().unwrap().connect().await.unwrap()
}

async fn upgrade_step_by_step(connection: &mut AnyConnection) {
    for migration in MIGRATIONS.iter() {
        MIGRATIONS.run_to(migration.version, &mut *connection).await.unwrap();
        let samples = SAMPLES.iter().filter(|(number, _)| *number == migration.version);
        for sample in samples.flat_map(|(_, samples)| samples.iter()) {
            let mut query = sqlx::query(*sample);
            if sample.contains("$1") {
                query = query.bind(vec![0_u8, 255, 7]);
            }
            query.execute(&mut *connection).await.unwrap_or_else(|error| panic!("{sample}: {error}"));
        }
    }
    // A second run has nothing to do and finds every file as it was applied.
    MIGRATIONS.run(&mut *connection).await.unwrap();
    let tables = SAMPLES.iter().flat_map(|(_, samples)| samples.iter());
    for table in tables.map(|sample| sample.split(' ').nth(2).unwrap()) {
        let count = sqlx::query(AssertSqlSafe(format!("SELECT COUNT(*) AS n FROM {table}")))
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!(count.get::<i64, _>("n"), 1, "{table}");
    }
    for (table, column) in [("inbox", "raw"), ("artifacts", "bytes")] {
        let row = sqlx::query(AssertSqlSafe(format!("SELECT {column} AS b FROM {table}")))
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!(row.get::<Vec<u8>, _>("b"), [0, 255, 7], "{table}.{column}");
    }
}

#[tokio::test]
async fn sqlite_is_upgraded_step_by_step_with_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?mode=rwc", folder.path().join("zeblit.db").display());
    upgrade_step_by_step(&mut connect(&url).await).await;
}

#[tokio::test]
async fn postgres_is_upgraded_step_by_step_with_its_data() {
    let Ok(server) = std::env::var("ZEBLIT_TEST_POSTGRES") else { return };
    let name = format!("zeblit_migrations_{}", uuid::Uuid::now_v7().simple());
    let mut connection = connect(&server).await;
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.unwrap();
    let mut url = url::Url::parse(&server).unwrap();
    url.set_path(&name);
    let mut database = connect(url.as_str()).await;
    upgrade_step_by_step(&mut database).await;
    database.close().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name}"))).execute(&mut connection).await.unwrap();
}

#[test]
fn every_table_has_a_sample_row() {
    let created: Vec<String> = files()
        .iter()
        .flat_map(|(_, _, text)| statements(text))
        .filter_map(|statement| {
            statement.strip_prefix("CREATE TABLE ").map(|rest| rest.split(' ').next().unwrap().to_lowercase())
        })
        .collect();
    let sampled: Vec<_> = SAMPLES
        .iter()
        .flat_map(|(_, samples)| samples.iter())
        .map(|sample| sample.split(' ').nth(2).unwrap().to_owned())
        .collect();
    assert_eq!(created, sampled);
}

#[test]
fn files_are_numbered_from_one_without_gaps() {
    let numbers: Vec<_> = files().into_iter().map(|(number, _, _)| number).collect();
    let wanted: Vec<_> = (1..).take(numbers.len()).collect();
    assert_eq!(numbers, wanted);
    for (number, name, _) in files() {
        assert!(name.starts_with(&format!("{number:04}_")) && name.ends_with(".sql"), "{name}");
    }
    let embedded: Vec<_> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    assert_eq!(embedded, numbers);
}

#[test]
fn columns_have_portable_types() {
    for (_, name, text) in files() {
        for statement in statements(&text) {
            let Some((_, columns)) =
                statement.split_once('(').filter(|_| statement.starts_with("CREATE TABLE"))
            else {
                continue;
            };
            // Key lists hold commas of their own: their parts are names without a type.
            let columns = columns.split("PRIMARY KEY (").next().unwrap();
            for column in
                columns.trim_end_matches(')').split(',').map(str::trim).filter(|part| !part.is_empty())
            {
                let kind = column.split(' ').nth(1).unwrap_or_default();
                assert!(matches!(kind, "TEXT" | "BIGINT" | "BYTEA"), "{name}: {column}");
            }
        }
    }
}

/// What would break an upgrade of a database that holds data, or a program of the version before.
fn problem_of(statement: &str) -> Option<&'static str> {
    let words: Vec<_> = statement.split(' ').collect();
    if words.first() == Some(&"ALTER") && words.contains(&"ADD") {
        if statement.contains("NOT NULL") && !statement.contains("DEFAULT") {
            return Some("a new column that must not be null needs a default");
        }
        if !words.iter().any(|word| matches!(*word, "TEXT" | "BIGINT" | "BYTEA")) {
            return Some("a new column has a portable type");
        }
    }
    if words.first() == Some(&"DROP") && words.get(1) != Some(&"INDEX") {
        return Some("data is never dropped");
    }
    if words.first() == Some(&"ALTER") && (words.contains(&"DROP") || words.contains(&"RENAME")) {
        return Some("columns and tables keep their names");
    }
    None
}

#[test]
fn later_files_only_add() {
    for (_, name, text) in files() {
        for statement in statements(&text) {
            assert_eq!(problem_of(&statement), None, "{name}: {statement}");
        }
    }
    for (statement, refused) in [
        ("ALTER TABLE RUNS ADD COLUMN X BIGINT NOT NULL", true),
        ("ALTER TABLE RUNS ADD COLUMN X BIGINT NOT NULL DEFAULT 0", false),
        ("ALTER TABLE RUNS ADD COLUMN X TEXT", false),
        ("ALTER TABLE RUNS ADD COLUMN X BOOLEAN", true),
        ("ALTER TABLE RUNS DROP COLUMN SPEC", true),
        ("ALTER TABLE RUNS RENAME TO JOBS", true),
        ("DROP TABLE RUNS", true),
        ("DROP INDEX RUNS_KEY", false),
    ] {
        assert_eq!(problem_of(statement).is_some(), refused, "{statement}");
    }
}
