//! Reading and writing columns: times, JSON documents and the error that names a row that cannot be read.

use super::{StoreError, Tx};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sqlx::any::AnyRow;
use sqlx::{Any, Decode, Row, Type};
use std::borrow::Cow;

/// Most rows that one listing gives, however many were asked for.
pub(super) const MAX_ROWS: i64 = 1_000;

/// A limit as the database takes it: at least none, at most [`MAX_ROWS`].
pub(super) fn row_limit(asked: i64) -> i64 {
    asked.clamp(0, MAX_ROWS)
}

/// Names the operation that a database error interrupted.
pub(super) fn sql(operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Sql { operation, source }
}

/// One error for all who wait for the same thing: the first gets it, the others its words, because a database error
/// cannot be copied.
pub(super) fn for_each_of_them(error: StoreError) -> impl Iterator<Item = StoreError> {
    let (operation, words) = match &error {
        StoreError::Sql { operation, source } => (*operation, source.to_string()),
        other => ("write with others", other.to_string()),
    };
    let again = move || sql(operation)(sqlx::Error::Io(std::io::Error::other(words.clone())));
    std::iter::once(error).chain(std::iter::repeat_with(again))
}

pub(super) fn millis(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis()
}

/// A document column.
pub(super) fn json<T: Serialize>(operation: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Sql { operation, source: sqlx::Error::Encode(Box::new(error)) })
}

/// Free text as both databases take it: Postgres refuses the character NUL.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// One row, with the words that an error about it needs.
pub(super) struct RowReader<'r> {
    row: &'r AnyRow,
    table: &'static str,
    id: String,
}

impl<'r> RowReader<'r> {
    /// `id_column` names the row in errors.
    pub fn new(row: &'r AnyRow, table: &'static str, id_column: &str) -> Self {
        let id = row.try_get::<String, _>(id_column).unwrap_or_else(|_| "?".to_owned());
        Self { row, table, id }
    }

    pub fn bad(&self, column: &'static str, detail: impl std::fmt::Display) -> StoreError {
        StoreError::BadRow { table: self.table, column, id: self.id.clone(), detail: detail.to_string() }
    }

    fn get<T: Decode<'r, Any> + Type<Any>>(&self, column: &'static str) -> Result<T, StoreError> {
        self.row.try_get(column).map_err(|error| self.bad(column, error))
    }

    pub fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.get(column)
    }

    pub fn text_or_null(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        self.get(column)
    }

    pub fn integer(&self, column: &'static str) -> Result<i64, StoreError> {
        self.get(column)
    }

    pub fn integer_or_null(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
        self.get(column)
    }

    pub fn bytes(&self, column: &'static str) -> Result<Vec<u8>, StoreError> {
        self.get(column)
    }

    fn moment(&self, column: &'static str, value: i64) -> Result<DateTime<Utc>, StoreError> {
        DateTime::from_timestamp_millis(value)
            .ok_or_else(|| self.bad(column, format!("{value} is no time in milliseconds")))
    }

    pub fn time(&self, column: &'static str) -> Result<DateTime<Utc>, StoreError> {
        let value = self.integer(column)?;
        self.moment(column, value)
    }

    pub fn time_or_null(&self, column: &'static str) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.integer_or_null(column)?.map(|value| self.moment(column, value)).transpose()
    }

    /// A time where 0 stands for "none".
    pub fn time_or_zero(&self, column: &'static str) -> Result<Option<DateTime<Utc>>, StoreError> {
        match self.integer(column)? {
            0 => Ok(None),
            value => self.moment(column, value).map(Some),
        }
    }

    pub fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|error| self.bad(column, error))
    }

    pub fn json_or_null<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        self.text_or_null(column)?
            .map(|text| serde_json::from_str(&text).map_err(|error| self.bad(column, error)))
            .transpose()
    }

    /// A column that holds one word of a fixed list.
    pub fn word<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        let text = self.text(column)?;
        parse(&text).ok_or_else(|| self.bad(column, format!("`{text}` is not a word this version knows")))
    }
}

/// `(word, number)` pairs of a `SELECT state, COUNT(*)`.
pub(super) fn counts(rows: &[AnyRow], table: &'static str) -> Result<Vec<(String, i64)>, StoreError> {
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, table, "word");
            Ok((row.text("word")?, row.integer("n")?))
        })
        .collect()
}

/// One number or nothing, e.g. a `MIN`.
pub(super) fn lone_time(row: &AnyRow, table: &'static str) -> Result<Option<DateTime<Utc>>, StoreError> {
    RowReader::new(row, table, "at").time_or_null("at")
}

/// Holds everybody else out of the same named section until this transaction ends. On SQLite a write
/// transaction is alone anyway.
pub(super) async fn exclusive(tx: &mut Tx, section: &str) -> Result<(), StoreError> {
    if tx.kind == super::DatabaseKind::Postgres {
        let digest = Sha256::digest(section.as_bytes());
        let mut key = [0_u8; 8];
        for (to, from) in key.iter_mut().zip(digest.iter()) {
            *to = *from;
        }
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(i64::from_be_bytes(key))
            .execute(&mut *tx.inner)
            .await
            .map_err(sql("take an advisory lock"))?;
    }
    Ok(())
}
