//! Money: one row per model request, reserved before it is sent and settled on its usage.

use super::rows::{RowReader, exclusive, millis, sql};
use super::{Store, StoreError};
use crate::domain::budget::Usage;
use crate::domain::ids::RunId;
use chrono::{DateTime, Utc};

/// A model request before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    pub run: RunId,
    pub request_id: String,
    pub attempt: i64,
    pub model: String,
    /// Worst case, micros.
    pub micros: i64,
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    Ok,
    /// Spent and reserved together would pass the budget.
    OverBudget {
        committed_micros: i64,
    },
}

/// What a run cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Settled cost, plus the reservation of what is not settled.
    pub micros: i64,
    pub usage: Usage,
    pub requests: i64,
}

/// One transaction: sum, compare, insert.
pub async fn reserve(
    store: &Store,
    reservation: &Reservation,
    budget_micros: i64,
    now: DateTime<Utc>,
) -> Result<Reserved, StoreError> {
    let mut tx = store.write_tx().await?;
    exclusive(&mut tx, &format!("ledger {}", reservation.run)).await?;
    let row = sqlx::query(
        "SELECT CAST(COALESCE(SUM(COALESCE(used, reserved)), 0) AS BIGINT) AS micros FROM ledger WHERE run = $1",
    )
    .bind(reservation.run.as_str())
    .fetch_one(&mut *tx.inner)
    .await
    .map_err(sql("sum up the ledger"))?;
    let committed_micros = RowReader::new(&row, "ledger", "run").integer("micros")?;
    if committed_micros.saturating_add(reservation.micros) > budget_micros {
        return Ok(Reserved::OverBudget { committed_micros });
    }
    sqlx::query(
        "INSERT INTO ledger (run, request_id, attempt, model, reserved, input_tokens, output_tokens, \
         cache_read_tokens, cache_write_tokens, created_at) VALUES ($1, $2, $3, $4, $5, 0, 0, 0, 0, $6)",
    )
    .bind(reservation.run.as_str())
    .bind(&reservation.request_id)
    .bind(reservation.attempt)
    .bind(&reservation.model)
    .bind(reservation.micros)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("reserve a model request"))?;
    tx.commit().await?;
    Ok(Reserved::Ok)
}

/// `micros` of what was used. Settling twice keeps the first.
pub async fn settle(
    store: &Store,
    run: &RunId,
    request_id: &str,
    usage: &Usage,
    micros: i64,
) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    let done = sqlx::query(
        "UPDATE ledger SET used = COALESCE(used, $3), \
         input_tokens = CASE WHEN used IS NULL THEN $4 ELSE input_tokens END, \
         output_tokens = CASE WHEN used IS NULL THEN $5 ELSE output_tokens END, \
         cache_read_tokens = CASE WHEN used IS NULL THEN $6 ELSE cache_read_tokens END, \
         cache_write_tokens = CASE WHEN used IS NULL THEN $7 ELSE cache_write_tokens END \
         WHERE run = $1 AND request_id = $2",
    )
    .bind(run.as_str())
    .bind(request_id)
    .bind(micros)
    .bind(usage.input)
    .bind(usage.output)
    .bind(usage.cache_read)
    .bind(usage.cache_write)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("settle a model request"))?;
    if done.rows_affected() == 0 {
        // Money that was never reserved: the caller must hear of it.
        return Err(sql("settle a model request that was never reserved")(sqlx::Error::RowNotFound));
    }
    tx.commit().await
}

/// Nothing at all for an unknown run.
pub async fn totals(store: &Store, run: &RunId) -> Result<Totals, StoreError> {
    let row = sqlx::query(
        "SELECT CAST(COALESCE(SUM(COALESCE(used, reserved)), 0) AS BIGINT) AS micros, \
         CAST(COALESCE(SUM(input_tokens), 0) AS BIGINT) AS input, \
         CAST(COALESCE(SUM(output_tokens), 0) AS BIGINT) AS output, \
         CAST(COALESCE(SUM(cache_read_tokens), 0) AS BIGINT) AS cache_read, \
         CAST(COALESCE(SUM(cache_write_tokens), 0) AS BIGINT) AS cache_write, \
         COUNT(*) AS requests FROM ledger WHERE run = $1",
    )
    .bind(run.as_str())
    .fetch_one(&store.pool)
    .await
    .map_err(sql("sum up the ledger"))?;
    let row = RowReader::new(&row, "ledger", "run");
    Ok(Totals {
        micros: row.integer("micros")?,
        usage: Usage {
            input: row.integer("input")?,
            output: row.integer("output")?,
            cache_read: row.integer("cache_read")?,
            cache_write: row.integer("cache_write")?,
        },
        requests: row.integer("requests")?,
    })
}

/// When the run asked a model last.
pub async fn last_request(store: &Store, run: &RunId) -> Result<Option<DateTime<Utc>>, StoreError> {
    let row = sqlx::query("SELECT $1 AS run, COALESCE(MAX(created_at), 0) AS at FROM ledger WHERE run = $1")
        .bind(run.as_str())
        .fetch_one(&store.pool)
        .await
        .map_err(sql("read the last model request"))?;
    let row = RowReader::new(&row, "ledger", "run");
    Ok(if row.integer("at")? == 0 { None } else { Some(row.time("at")?) })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    fn reservation(request_id: &str, micros: i64) -> Reservation {
        Reservation {
            run: RunId::new("run"),
            request_id: request_id.to_owned(),
            attempt: 1,
            model: "model".to_owned(),
            micros,
        }
    }

    const USAGE: Usage = Usage { input: 1, output: 2, cache_read: 3, cache_write: 4 };

    #[tokio::test]
    async fn what_is_reserved_and_spent_stays_within_the_budget() {
        each_database(async |database| {
            let store = &database.store;
            let run = RunId::new("run");
            assert_eq!(totals(store, &run).await.unwrap(), Totals::default());
            assert_eq!(reserve(store, &reservation("a", 60), 100, at(0)).await.unwrap(), Reserved::Ok);
            assert_eq!(
                reserve(store, &reservation("b", 41), 100, at(0)).await.unwrap(),
                Reserved::OverBudget { committed_micros: 60 }
            );
            settle(store, &run, "a", &USAGE, 10).await.unwrap();
            settle(store, &run, "a", &Usage::default(), 99).await.unwrap();
            assert_eq!(reserve(store, &reservation("b", 90), 100, at(0)).await.unwrap(), Reserved::Ok);
            assert_eq!(
                reserve(store, &reservation("c", 1), 100, at(0)).await.unwrap(),
                Reserved::OverBudget { committed_micros: 100 }
            );
            assert_eq!(totals(store, &run).await.unwrap(), Totals { micros: 100, usage: USAGE, requests: 2 });
            let other = Reservation { run: RunId::new("other"), ..reservation("a", 100) };
            assert_eq!(reserve(store, &other, 100, at(0)).await.unwrap(), Reserved::Ok);
        })
        .await;
    }

    #[tokio::test]
    async fn money_that_was_never_reserved_cannot_be_settled() {
        each_database(async |database| {
            let error = settle(&database.store, &RunId::new("run"), "none", &USAGE, 1).await.unwrap_err();
            assert!(error.to_string().contains("never reserved"), "{error}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_request_is_reserved_once() {
        each_database(async |database| {
            let store = &database.store;
            reserve(store, &reservation("a", 1), 100, at(0)).await.unwrap();
            assert!(reserve(store, &reservation("a", 1), 100, at(0)).await.is_err());
            assert_eq!(totals(store, &RunId::new("run")).await.unwrap().requests, 1);
        })
        .await;
    }

    #[tokio::test]
    async fn requests_that_race_do_not_pass_the_budget_together() {
        each_database(async |database| {
            let store = &database.store;
            let requests: Vec<_> = (0..20).map(|n| reservation(&format!("request {n}"), 10)).collect();
            let results = futures_util::future::join_all(
                requests.iter().map(|request| reserve(store, request, 55, at(0))),
            )
            .await;
            let granted = results.into_iter().filter(|result| matches!(result, Ok(Reserved::Ok))).count();
            assert_eq!(granted, 5);
            assert_eq!(totals(store, &RunId::new("run")).await.unwrap().micros, 50);
        })
        .await;
    }
}
