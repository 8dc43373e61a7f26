//! Money: one row per model request, reserved before it is sent and settled on its usage.

use super::rows::{RowReader, exclusive, millis, sql};
use super::{Store, StoreError, Tx};
use crate::domain::budget::{Budget, BudgetKind, Standing, Usage};
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    Ok(Booking),
    /// Spent and reserved together would pass a budget; this is how it stands.
    OverBudget(Standing),
}

/// What was reserved, for its settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booking {
    pub run: RunId,
    pub request_id: String,
    pub micros: i64,
    /// Scope and period of each budget besides the run's own.
    counted: Vec<(String, String)>,
}

/// What a run cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Settled cost, plus the reservation of what is not settled.
    pub micros: i64,
    pub usage: Usage,
    pub requests: i64,
}

/// One transaction over all budgets: add up, compare, insert. Nothing of it stays when one of them does not reach.
/// Budgets of days and months are rows that are locked in the order given, so it must be the same everywhere.
pub async fn reserve(
    store: &Store,
    reservation: &Reservation,
    budgets: &[Budget],
    now: DateTime<Utc>,
) -> Result<Reserved, StoreError> {
    let mut tx = store.write_tx().await?;
    let mut counted = Vec::new();
    for budget in budgets {
        let period = budget.kind.period(now);
        let before = if budget.kind == BudgetKind::Run {
            exclusive(&mut tx, &format!("ledger {}", budget.scope)).await?;
            committed(&mut tx, &budget.scope).await?
        } else {
            let total = count(&mut tx, &budget.scope, &period, reservation.micros).await?;
            counted.push((budget.scope.clone(), period));
            total.saturating_sub(reservation.micros)
        };
        if budget.cap_micros.is_some_and(|cap| before.saturating_add(reservation.micros) > cap) {
            let resets_at = budget.kind.resets_at(now);
            return Ok(Reserved::OverBudget(Standing { budget: budget.clone(), micros: before, resets_at }));
        }
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
    Ok(Reserved::Ok(Booking {
        run: reservation.run.clone(),
        request_id: reservation.request_id.clone(),
        micros: reservation.micros,
        counted,
    }))
}

/// Spent and reserved by a run.
async fn committed(tx: &mut Tx, run: &str) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "SELECT CAST(COALESCE(SUM(COALESCE(used, reserved)), 0) AS BIGINT) AS micros FROM ledger WHERE run = $1",
    )
    .bind(run)
    .fetch_one(&mut *tx.inner)
    .await
    .map_err(sql("sum up the ledger"))?;
    RowReader::new(&row, "ledger", "run").integer("micros")
}

/// Adds to a budget of a day or month and says what it comes to.
async fn count(tx: &mut Tx, scope: &str, period: &str, micros: i64) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "INSERT INTO budgets (scope, period, micros) VALUES ($1, $2, $3) \
         ON CONFLICT (scope, period) DO UPDATE SET micros = budgets.micros + excluded.micros RETURNING micros",
    )
    .bind(scope)
    .bind(period)
    .bind(micros)
    .fetch_one(&mut *tx.inner)
    .await
    .map_err(sql("count against a budget"))?;
    RowReader::new(&row, "budgets", "scope").integer("micros")
}

/// `micros` of what was used, on the day of its reservation. Settling twice keeps the first.
pub async fn settle(store: &Store, booking: &Booking, usage: &Usage, micros: i64) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    let done = sqlx::query(
        "UPDATE ledger SET used = $3, input_tokens = $4, output_tokens = $5, cache_read_tokens = $6, \
         cache_write_tokens = $7 WHERE run = $1 AND request_id = $2 AND used IS NULL",
    )
    .bind(booking.run.as_str())
    .bind(&booking.request_id)
    .bind(micros)
    .bind(usage.input)
    .bind(usage.output)
    .bind(usage.cache_read)
    .bind(usage.cache_write)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("settle a model request"))?;
    if done.rows_affected() == 0 {
        let known = sqlx::query("SELECT used FROM ledger WHERE run = $1 AND request_id = $2")
            .bind(booking.run.as_str())
            .bind(&booking.request_id)
            .fetch_optional(&mut *tx.inner)
            .await
            .map_err(sql("look for a model request"))?;
        // Money that was never reserved: the caller must hear of it.
        return match known {
            Some(_) => Ok(()),
            None => Err(sql("settle a model request that was never reserved")(sqlx::Error::RowNotFound)),
        };
    }
    for (scope, period) in &booking.counted {
        count(&mut tx, scope, period, micros.saturating_sub(booking.micros)).await?;
    }
    tx.commit().await
}

/// How each budget stands now.
pub async fn standings(
    store: &Store,
    budgets: &[Budget],
    now: DateTime<Utc>,
) -> Result<Vec<Standing>, StoreError> {
    let mut standings = Vec::new();
    for budget in budgets {
        let micros = if budget.kind == BudgetKind::Run {
            totals(store, &RunId::new(&*budget.scope)).await?.micros
        } else {
            let row = sqlx::query("SELECT micros FROM budgets WHERE scope = $1 AND period = $2")
                .bind(&budget.scope)
                .bind(budget.kind.period(now))
                .fetch_optional(&store.pool)
                .await
                .map_err(sql("read a budget"))?;
            match row {
                Some(row) => RowReader::new(&row, "budgets", "scope").integer("micros")?,
                None => 0,
            }
        };
        let resets_at = budget.kind.resets_at(now);
        standings.push(Standing { budget: budget.clone(), micros, resets_at });
    }
    Ok(standings)
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

    fn run_budget(micros: i64) -> Vec<Budget> {
        vec![Budget::of_run(&RunId::new("run"), micros)]
    }

    fn booking(reserved: Reserved) -> Booking {
        match reserved {
            Reserved::Ok(booking) => booking,
            Reserved::OverBudget(standing) => panic!("{standing:?}"),
        }
    }

    async fn booked(store: &Store, request: &str, micros: i64, budgets: &[Budget]) -> Booking {
        booking(reserve(store, &reservation(request, micros), budgets, at(0)).await.unwrap())
    }

    async fn refused(store: &Store, request: &str, micros: i64, budgets: &[Budget]) -> (BudgetKind, i64) {
        match reserve(store, &reservation(request, micros), budgets, at(0)).await.unwrap() {
            Reserved::OverBudget(standing) => (standing.budget.kind, standing.micros),
            Reserved::Ok(booking) => panic!("{booking:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_reserved_and_spent_stays_within_the_budget() {
        each_database(async |database| {
            let store = &database.store;
            let run = RunId::new("run");
            let budget = run_budget(100);
            assert_eq!(totals(store, &run).await.unwrap(), Totals::default());
            let a = booked(store, "a", 60, &budget).await;
            assert_eq!(refused(store, "b", 41, &budget).await, (BudgetKind::Run, 60));
            settle(store, &a, &USAGE, 10).await.unwrap();
            settle(store, &a, &Usage::default(), 99).await.unwrap();
            booked(store, "b", 90, &budget).await;
            assert_eq!(refused(store, "c", 1, &budget).await, (BudgetKind::Run, 100));
            assert_eq!(totals(store, &run).await.unwrap(), Totals { micros: 100, usage: USAGE, requests: 2 });
            let other = Reservation { run: RunId::new("other"), ..reservation("a", 100) };
            let own = [Budget::of_run(&other.run, 100)];
            booking(reserve(store, &other, &own, at(0)).await.unwrap());
        })
        .await;
    }

    #[tokio::test]
    async fn money_that_was_never_reserved_cannot_be_settled() {
        each_database(async |database| {
            let never =
                Booking { run: RunId::new("run"), request_id: "none".into(), micros: 1, counted: Vec::new() };
            let error = settle(&database.store, &never, &USAGE, 1).await.unwrap_err();
            assert!(error.to_string().contains("never reserved"), "{error}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_request_is_reserved_once() {
        each_database(async |database| {
            let store = &database.store;
            booked(store, "a", 1, &run_budget(100)).await;
            assert!(reserve(store, &reservation("a", 1), &run_budget(100), at(0)).await.is_err());
            assert_eq!(totals(store, &RunId::new("run")).await.unwrap().requests, 1);
        })
        .await;
    }

    /// Of one person, repository and owner, with these caps.
    fn all_budgets(run: &str, owner: Option<i64>, repo: Option<i64>, user: Option<i64>) -> Vec<Budget> {
        let budget = |kind, scope: &str, cap_micros| Budget {
            kind,
            scope: scope.to_owned(),
            whose: scope.to_owned(),
            cap_micros,
        };
        vec![
            budget(BudgetKind::OwnerMonth, "owner:x:acme", owner),
            budget(BudgetKind::RepoDay, "repo:x:1", repo),
            budget(BudgetKind::UserDay, "user:x:7", user),
            Budget::of_run(&RunId::new(run), 1_000),
        ]
    }

    async fn spent(store: &Store, budgets: &[Budget], now: i64) -> Vec<i64> {
        standings(store, budgets, at(now)).await.unwrap().into_iter().map(|one| one.micros).collect()
    }

    #[tokio::test]
    async fn every_budget_counts_or_none_does() {
        each_database(async |database| {
            let store = &database.store;
            let open = all_budgets("run", None, None, None);
            let a = booked(store, "a", 50, &open).await;
            assert_eq!(spent(store, &open, 0).await, [50, 50, 50, 50]);
            for (budgets, kind) in [
                (all_budgets("run", Some(59), None, None), BudgetKind::OwnerMonth),
                (all_budgets("run", None, Some(59), None), BudgetKind::RepoDay),
                (all_budgets("run", None, None, Some(59)), BudgetKind::UserDay),
            ] {
                assert_eq!(refused(store, "b", 10, &budgets).await, (kind, 50));
                assert_eq!(spent(store, &open, 0).await, [50, 50, 50, 50]);
            }
            settle(store, &a, &USAGE, 20).await.unwrap();
            settle(store, &a, &USAGE, 90).await.unwrap();
            assert_eq!(spent(store, &open, 0).await, [20, 20, 20, 20]);
            booked(store, "b", 39, &all_budgets("run", Some(59), Some(59), Some(59))).await;
            // The next day, days start again; the month goes on. It is 15 January.
            let day = 24 * 60 * 60;
            assert_eq!(spent(store, &open, day).await, [59, 0, 0, 59]);
            assert_eq!(spent(store, &open, 31 * day).await, [0, 0, 0, 59]);
        })
        .await;
    }

    #[tokio::test]
    async fn requests_that_race_do_not_pass_any_budget_together() {
        each_database(async |database| {
            let store = &database.store;
            for (at_most, round) in [
                (all_budgets("run", None, None, Some(55)), "user"),
                (all_budgets("run", Some(105), None, None), "owner"),
            ] {
                let requests: Vec<_> = (0..20).map(|n| reservation(&format!("{round} {n}"), 10)).collect();
                let results = futures_util::future::join_all(
                    requests.iter().map(|request| reserve(store, request, &at_most, at(0))),
                )
                .await;
                let granted =
                    results.into_iter().filter(|result| matches!(result, Ok(Reserved::Ok(_)))).count();
                assert_eq!(granted, 5);
            }
            let open = all_budgets("run", None, None, None);
            assert_eq!(spent(store, &open, 0).await, [100, 100, 100, 100]);
            let alone = [Budget::of_run(&RunId::new("run"), 155)];
            let requests: Vec<_> = (0..20).map(|n| reservation(&format!("run {n}"), 10)).collect();
            let results = futures_util::future::join_all(
                requests.iter().map(|request| reserve(store, request, &alone, at(0))),
            )
            .await;
            let granted = results.into_iter().filter(|result| matches!(result, Ok(Reserved::Ok(_)))).count();
            assert_eq!(granted, 5);
        })
        .await;
    }
}
