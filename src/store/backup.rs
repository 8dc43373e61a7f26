//! Purpose: the whole database as one portable stream: written from a snapshot while others write, read into an empty
//! database of either kind.
//!
//! The stream is lines of JSON: a header, per table its columns and then its rows as arrays, and a count at the end that
//! tells a whole stream from a cut one. Columns are text, numbers and bytes only, so what SQLite wrote Postgres reads.
//!
//! A restored outbox may be older than the outside world: what was planned is not sent but looked for first.

use super::rows::sql;
use super::{DatabaseKind, Store, StoreError, open};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};

/// Raised when an older program could not read the stream.
const FORMAT: u32 = 1;
/// Bytes of one line that are read: a delivery of 25 MiB in base64, and room.
const MAX_LINE_BYTES: u64 = 64 * 1024 * 1024;
/// What nodes said of themselves, and what they were at, is not true of the machine that a backup is restored on.
const LEFT_OUT: &[&str] = &["duties", "node_capabilities", "nodes"];
/// A database that holds rows in one of these is in use.
const IN_USE: &[&str] = &["audit", "effects", "inbox", "runs", "tasks", "tokens"];

/// Rows per table.
pub type Counts = BTreeMap<String, u64>;
/// Small texts by name that travel with a backup.
pub type Extra = BTreeMap<String, String>;

/// What a backup held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub made_at: DateTime<Utc>,
    pub rows: Counts,
    pub extra: Extra,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the backup cannot be written")]
    Write(#[source] std::io::Error),
    #[error("the backup cannot be read")]
    Read(#[source] std::io::Error),
    #[error("the backup is damaged at line {line}: {detail}")]
    Damaged { line: u64, detail: String },
    #[error("the backup was made by a newer version ({detail})")]
    Newer { detail: String },
    /// Restoring over rows would mix two histories.
    #[error("the database is not empty: `{table}` has rows")]
    InUse { table: &'static str },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Text,
    Number,
    Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Column {
    name: String,
    kind: Kind,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Zeblit {
        format: u32,
        version: String,
        at: i64,
        migrations: Vec<i64>,
        /// What belongs to it and is not in the database.
        extra: Extra,
    },
    Table {
        name: String,
        columns: Vec<Column>,
    },
    Row(Vec<Value>),
    End {
        rows: Counts,
    },
}

/// Writes everything as it is at one moment. Others may go on writing meanwhile.
pub async fn dump(
    store: &Store,
    extra: &Extra,
    to: &mut (dyn Write + Send),
    now: DateTime<Utc>,
) -> Result<Counts, BackupError> {
    let mut tx = store.pool.begin().await.map_err(sql("begin a backup"))?;
    if store.kind == DatabaseKind::Postgres {
        // On SQLite every read transaction is a snapshot.
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut *tx)
            .await
            .map_err(sql("take a snapshot"))?;
    }
    let mut write = |line: &Line| -> Result<(), BackupError> {
        serde_json::to_writer(&mut *to, line).map_err(|error| BackupError::Write(error.into()))?;
        to.write_all(b"\n").map_err(BackupError::Write)
    };
    write(&Line::Zeblit {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at: super::rows::millis(now),
        migrations: open::applied(&mut tx).await?,
        extra: extra.clone(),
    })?;
    let mut rows = Counts::new();
    for name in tables(&mut tx, store.kind).await? {
        let columns = columns(&mut tx, store.kind, &name).await?;
        write(&Line::Table { name: name.clone(), columns: columns.clone() })?;
        let list: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        // Names of our own schema, and plain words: see `is_plain`.
        let text = format!("SELECT {} FROM {name}", list.join(", "));
        let mut found = sqlx::query(AssertSqlSafe(text)).fetch(&mut *tx);
        let mut count = 0;
        while let Some(row) = found.try_next().await.map_err(sql("read a table"))? {
            write(&Line::Row(values(&row, &columns)?))?;
            count += 1;
        }
        rows.insert(name, count);
    }
    write(&Line::End { rows: rows.clone() })?;
    tx.rollback().await.map_err(sql("end a backup"))?;
    Ok(rows)
}

/// Fills an empty database: all of it or nothing.
pub async fn load(
    store: &Store,
    from: &mut (dyn BufRead + Send),
    now: DateTime<Utc>,
) -> Result<Loaded, BackupError> {
    let mut tx = store.write_tx().await?;
    for table in IN_USE {
        let found = sqlx::query(AssertSqlSafe(format!("SELECT 1 FROM {table} LIMIT 1")))
            .fetch_optional(&mut *tx.inner)
            .await
            .map_err(sql("look whether the database is empty"))?;
        if found.is_some() {
            return Err(BackupError::InUse { table });
        }
    }
    let mut lines = Lines { from, number: 0 };
    let (made_at, extra) = match lines.next()? {
        Some(Line::Zeblit { format, version, at, migrations, extra }) => {
            let ours = open::known();
            let newer = migrations.iter().any(|migration| !ours.contains(migration));
            if format > FORMAT || newer {
                return Err(BackupError::Newer {
                    detail: format!("{version}; this is {}", env!("CARGO_PKG_VERSION")),
                });
            }
            let made_at = DateTime::from_timestamp_millis(at);
            (made_at.ok_or_else(|| lines.damaged("its time is no time"))?, extra)
        }
        _ => return Err(lines.damaged("it does not begin like a backup of Zeblit")),
    };
    let there = tables(&mut tx.inner, store.kind).await?;
    let mut into: Option<Into> = None;
    let mut rows = Counts::new();
    let told = loop {
        match lines.next()? {
            Some(Line::Table { name, columns: given }) => {
                if !there.contains(&name) {
                    return Err(lines.damaged(&format!("there is no table `{name}`")));
                }
                let known = columns(&mut tx.inner, store.kind, &name).await?;
                // Columns that came later have defaults.
                if let Some(unknown) = given.iter().find(|column| !known.contains(column)) {
                    return Err(
                        lines.damaged(&format!("`{name}` has no column `{}` of that kind", unknown.name))
                    );
                }
                sqlx::query(AssertSqlSafe(format!("DELETE FROM {name}")))
                    .execute(&mut *tx.inner)
                    .await
                    .map_err(sql("empty a table"))?;
                rows.insert(name.clone(), 0);
                into = Some(Into::new(name, given));
            }
            Some(Line::Row(values)) => {
                let Some(into) = &into else { return Err(lines.damaged("a row before its table")) };
                if let Err(detail) = into.insert(&mut tx.inner, values).await? {
                    return Err(lines.damaged(&detail));
                }
                *rows.entry(into.table.clone()).or_default() += 1;
            }
            Some(Line::End { rows }) => break rows,
            Some(Line::Zeblit { .. }) => return Err(lines.damaged("a second beginning")),
            None => return Err(lines.damaged("it ends in the middle")),
        }
    };
    if told != rows {
        return Err(lines.damaged("rows are missing"));
    }
    // Whether it was carried out after the backup, only the other side knows.
    sqlx::query("UPDATE effects SET state = 'ambiguous', intent_at = $1, last_error = 'restored from a backup' WHERE state = 'planned' AND kind <> 'branch'")
        .bind(super::rows::millis(now))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("mark restored effects"))?;
    tx.commit().await?;
    Ok(Loaded { made_at, rows, extra })
}

/// The table that rows go into.
struct Into {
    table: String,
    columns: Vec<Column>,
    insert: String,
}

impl Into {
    fn new(table: String, columns: Vec<Column>) -> Self {
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let places: Vec<String> = (1..=columns.len()).map(|n| format!("${n}")).collect();
        let insert = format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), places.join(", "));
        Self { table, columns, insert }
    }

    /// The inner error: what is wrong with the row.
    async fn insert(
        &self,
        connection: &mut AnyConnection,
        values: Vec<Value>,
    ) -> Result<Result<(), String>, StoreError> {
        if values.len() != self.columns.len() {
            return Ok(Err(format!("a row of `{}` has {} columns", self.table, values.len())));
        }
        let mut query = sqlx::query(AssertSqlSafe(self.insert.clone()));
        for (column, value) in self.columns.iter().zip(values) {
            let wrong = || format!("`{}.{}` is not {:?}", self.table, column.name, column.kind);
            query = match (column.kind, value) {
                (Kind::Text, Value::Null) => query.bind(None::<String>),
                (Kind::Number, Value::Null) => query.bind(None::<i64>),
                (Kind::Bytes, Value::Null) => query.bind(None::<Vec<u8>>),
                (Kind::Text, Value::String(text)) => query.bind(text),
                (Kind::Number, Value::Number(number)) => match number.as_i64() {
                    Some(number) => query.bind(number),
                    None => return Ok(Err(wrong())),
                },
                (Kind::Bytes, Value::String(text)) => match STANDARD.decode(text) {
                    Ok(bytes) => query.bind(bytes),
                    Err(_) => return Ok(Err(wrong())),
                },
                _ => return Ok(Err(wrong())),
            };
        }
        match query.execute(connection).await {
            Ok(_) => Ok(Ok(())),
            // A row that breaks a rule of the schema is the backup's fault, everything else the database's.
            Err(sqlx::Error::Database(error))
                if error.is_unique_violation() || error.is_check_violation() =>
            {
                Ok(Err(format!("a row of `{}` is refused: {error}", self.table)))
            }
            Err(error) => Err(sql("restore a row")(error)),
        }
    }
}

struct Lines<'a> {
    from: &'a mut (dyn BufRead + Send),
    number: u64,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Option<Line>, BackupError> {
        let mut text = Vec::new();
        self.number += 1;
        let mut capped = std::io::Read::take(&mut *self.from, MAX_LINE_BYTES);
        let read = capped.read_until(b'\n', &mut text).map_err(BackupError::Read)?;
        if read == 0 {
            return Ok(None);
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| self.damaged(&error.to_string()))
    }

    fn damaged(&self, detail: &str) -> BackupError {
        BackupError::Damaged { line: self.number, detail: detail.to_owned() }
    }
}

/// Words that stand in SQL text without quotes; our schema has no others.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

async fn tables(connection: &mut AnyConnection, kind: DatabaseKind) -> Result<Vec<String>, StoreError> {
    let text = match kind {
        DatabaseKind::Sqlite => {
            "SELECT CAST(name AS TEXT) AS name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        }
        DatabaseKind::Postgres => {
            "SELECT CAST(table_name AS TEXT) AS name FROM information_schema.tables \
             WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' ORDER BY 1"
        }
    };
    let rows = sqlx::query(text).fetch_all(connection).await.map_err(sql("list the tables"))?;
    let mut names = Vec::new();
    for row in rows {
        let name: String = row.try_get("name").map_err(sql("list the tables"))?;
        // What the database and its migrations keep for themselves begins otherwise.
        let own = !name.starts_with("sqlite_") && !name.starts_with("_sqlx");
        if own && is_plain(&name) && !LEFT_OUT.contains(&name.as_str()) {
            names.push(name);
        }
    }
    Ok(names)
}

async fn columns(
    connection: &mut AnyConnection,
    kind: DatabaseKind,
    table: &str,
) -> Result<Vec<Column>, StoreError> {
    let text = match kind {
        DatabaseKind::Sqlite => {
            "SELECT CAST(name AS TEXT) AS name, CAST(LOWER(type) AS TEXT) AS kind FROM pragma_table_info($1) ORDER BY cid"
        }
        DatabaseKind::Postgres => {
            "SELECT CAST(column_name AS TEXT) AS name, CAST(data_type AS TEXT) AS kind \
             FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1 \
             ORDER BY ordinal_position"
        }
    };
    let rows = sqlx::query(text)
        .bind(table)
        .fetch_all(connection)
        .await
        .map_err(sql("list the columns of a table"))?;
    let mut columns = Vec::new();
    for row in rows {
        let name: String = row.try_get("name").map_err(sql("list the columns of a table"))?;
        let word: String = row.try_get("kind").map_err(sql("list the columns of a table"))?;
        let kind = match word.as_str() {
            "text" => Kind::Text,
            "bigint" => Kind::Number,
            "bytea" => Kind::Bytes,
            _ => {
                let detail = format!("`{word}` is not a type that every database has");
                return Err(StoreError::BadRow {
                    table: "schema",
                    column: "type",
                    id: format!("{table}.{name}"),
                    detail,
                });
            }
        };
        if is_plain(&name) {
            columns.push(Column { name, kind });
        }
    }
    Ok(columns)
}

fn values(row: &AnyRow, columns: &[Column]) -> Result<Vec<Value>, StoreError> {
    let mut values = Vec::with_capacity(columns.len());
    for (n, column) in columns.iter().enumerate() {
        let value = match column.kind {
            Kind::Text => row.try_get::<Option<String>, _>(n).map(|text| text.map(Value::from)),
            Kind::Number => row.try_get::<Option<i64>, _>(n).map(|number| number.map(Value::from)),
            Kind::Bytes => row
                .try_get::<Option<Vec<u8>>, _>(n)
                .map(|bytes| bytes.map(|bytes| Value::from(STANDARD.encode(bytes)))),
        };
        values.push(value.map_err(sql("read a row"))?.unwrap_or(Value::Null));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestDatabase, at, comment, each_database, new_run, task};
    use super::super::{artifacts, effects, inbox, runs, settings, tasks};
    use super::*;
    use crate::domain::effect::EffectState;
    use crate::domain::event::Source;
    use crate::domain::ids::{EffectId, InboxId, RunId};

    async fn filled(store: &Store) {
        let raw = bytes::Bytes::from((0..=255).cycle().take(70_000).collect::<Vec<u8>>());
        let delivery = inbox::NewDelivery {
            id: InboxId::new("inbox"),
            source: Source::Github,
            delivery_id: "delivery".to_owned(),
            event: "ping".to_owned(),
            ignored: None,
            headers: Vec::new(),
            raw,
            received_at: at(0),
        };
        inbox::insert(store, delivery).await.unwrap();
        let mut tx = store.write_tx().await.unwrap();
        tasks::insert(&mut tx, &task("task", 1, 7)).await.unwrap();
        runs::insert(&mut tx, &new_run("run")).await.unwrap();
        artifacts::put(&mut tx, &RunId::new("run"), "bundle", b"\0\xff\xfe bytes", at(1)).await.unwrap();
        effects::put(&mut tx, &EffectId::new("effect"), &comment("key", "\"text\"\n💥"), at(2))
            .await
            .unwrap();
        settings::set(&mut tx, "paused", Some("why"), at(3)).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn dumped(store: &Store) -> Vec<u8> {
        let mut bytes = Vec::new();
        dump(store, &Extra::from([("key".to_owned(), "k".to_owned())]), &mut bytes, at(5)).await.unwrap();
        bytes
    }

    async fn loaded(store: &Store, bytes: &[u8]) -> Result<Loaded, BackupError> {
        load(store, &mut &bytes[..], at(9)).await
    }

    /// Everything but what the load itself changes.
    async fn rows(store: &Store) -> Vec<String> {
        let text = String::from_utf8(dumped(store).await).unwrap();
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.contains("\"zeblit\"")).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[tokio::test]
    async fn a_backup_of_either_database_fills_either() {
        each_database(async |from| {
            filled(&from.store).await;
            let bytes = dumped(&from.store).await;
            each_database(async |to| {
                let loaded = loaded(&to.store, &bytes).await.unwrap();
                assert_eq!((loaded.made_at, loaded.extra["key"].as_str()), (at(5), "k"));
                let counts = loaded.rows;
                assert_eq!(counts["runs"], 1);
                assert_eq!(counts["effects"], 1);
                assert!(!counts.contains_key("nodes"));
                let effect = effects::by_key(&to.store, "key").await.unwrap().unwrap();
                assert_eq!((effect.state, effect.intent_at), (EffectState::Ambiguous, Some(at(9))));
                // Back to what it was, and everything is equal.
                let mut tx = to.store.write_tx().await.unwrap();
                sqlx::query("UPDATE effects SET state = 'planned', intent_at = NULL, last_error = NULL")
                    .execute(&mut *tx.inner)
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
                assert_eq!(rows(&to.store).await, rows(&from.store).await);
                assert_eq!(
                    runs::get(&to.store, &RunId::new("run")).await.unwrap(),
                    runs::get(&from.store, &RunId::new("run")).await.unwrap()
                );
            })
            .await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_backup_is_one_moment_while_others_write() {
        each_database(async |database| {
            let store = &database.store;
            filled(store).await;
            // A writer that gives nothing up: each task has its run, or neither is there.
            let stop = tokio_util::sync::CancellationToken::new();
            let (writer, stopped) = (store.clone(), stop.clone());
            let writing = tokio::spawn(async move {
                let mut n = 100;
                while !stopped.is_cancelled() {
                    let mut tx = writer.write_tx().await.unwrap();
                    tasks::insert(&mut tx, &task(&format!("task {n}"), 1, n)).await.unwrap();
                    runs::insert(&mut tx, &new_run(&format!("run {n}"))).await.unwrap();
                    tx.commit().await.unwrap();
                    n += 1;
                }
                n
            });
            for _ in 0..10 {
                let mut bytes = Vec::new();
                let counts =
                    dump(store, &Extra::from([("key".to_owned(), "k".to_owned())]), &mut bytes, at(5))
                        .await
                        .unwrap();
                assert_eq!(counts["tasks"], counts["runs"]);
            }
            stop.cancel();
            assert!(writing.await.unwrap() > 100);
        })
        .await;
    }

    #[tokio::test]
    async fn a_database_in_use_is_not_touched() {
        each_database(async |database| {
            let store = &database.store;
            filled(store).await;
            let before = rows(store).await;
            let bytes = dumped(store).await;
            assert!(matches!(loaded(store, &bytes).await, Err(BackupError::InUse { .. })));
            assert_eq!(rows(store).await, before);
        })
        .await;
    }

    #[tokio::test]
    async fn a_damaged_backup_leaves_nothing() {
        each_database(async |from: &TestDatabase| {
            filled(&from.store).await;
            let whole = String::from_utf8(dumped(&from.store).await).unwrap();
            let lines: Vec<&str> = whole.lines().collect();
            let without = |left: usize| {
                let kept: Vec<&str> =
                    lines.iter().enumerate().filter(|(n, _)| *n != left).map(|(_, line)| *line).collect();
                kept.join("\n")
            };
            let row = lines.iter().position(|line| line.starts_with("{\"row\"")).unwrap();
            let bad = [
                String::new(),
                "not a backup".to_owned(),
                without(0),
                without(lines.len() - 1),
                without(row),
                without(row - 1),
                whole[..whole.len() / 2].to_owned(),
                whole.replace("\"name\":\"runs\"", "\"name\":\"runs; DROP TABLE runs\""),
                whole
                    .replace("{\"name\":\"raw\",\"kind\":\"bytes\"}", "{\"name\":\"raw\",\"kind\":\"text\"}"),
                whole.replace("\"queued\"", "5"),
                whole.replacen("{\"row\"", "{\"row\":[1]}\n{\"row\"", 1),
            ];
            each_database(async |to| {
                // The same empty database takes them all: each leaves nothing.
                for text in &bad {
                    let error = loaded(&to.store, text.as_bytes()).await.unwrap_err();
                    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
                    assert!(runs::get(&to.store, &RunId::new("run")).await.unwrap().is_none());
                }
            })
            .await;
            let newer = whole.replace("\"format\":1", "\"format\":2");
            let error = loaded(&from.store, newer.as_bytes()).await.unwrap_err();
            assert!(matches!(error, BackupError::InUse { .. }), "that comes first: {error}");
            each_database(async |to| {
                for text in [newer.clone(), whole.replace("\"migrations\":[1,", "\"migrations\":[1,999,")] {
                    let error = loaded(&to.store, text.as_bytes()).await.unwrap_err();
                    assert!(matches!(error, BackupError::Newer { .. }), "{error}");
                }
            })
            .await;
        })
        .await;
    }
}
