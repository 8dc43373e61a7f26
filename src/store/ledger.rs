//! Money: one row per model request, reserved before it is sent and settled on its usage.

use super::rows::{RowReader, exclusive, millis, row_limit, sql};
use super::{Store, StoreError, Tx};
use crate::domain::budget::{self, Budget, BudgetKind, BudgetRules, Standing, Usage};
use crate::domain::ids::RunId;
use crate::domain::run::RunSpec;
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

/// Every budget of a day or month that something was counted against today or this month, the most spent first, under the
/// name that its latest run knows: at most 1000.
pub async fn spending(
    store: &Store,
    rules: &BudgetRules,
    now: DateTime<Utc>,
) -> Result<Vec<Standing>, StoreError> {
    let rows = sqlx::query(
        "SELECT scope, micros FROM budgets WHERE period = $1 OR period = $2 ORDER BY micros DESC, scope LIMIT $3",
    )
    .bind(BudgetKind::UserDay.period(now))
    .bind(BudgetKind::OwnerMonth.period(now))
    .bind(row_limit(i64::MAX))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list the budgets"))?;
    let mut standings = Vec::new();
    for row in &rows {
        let row = RowReader::new(row, "budgets", "scope");
        let (scope, micros) = (row.text("scope")?, row.integer("micros")?);
        let (kind, remote, whose) = row.word("scope", |_| budget::parse_scope(&scope))?;
        let (whose, own) = match kind {
            BudgetKind::Run | BudgetKind::OwnerMonth => (whose.to_owned(), None),
            BudgetKind::RepoDay | BudgetKind::UserDay => match latest_of(store, kind, remote, whose).await? {
                Some((repo, spec)) if kind == BudgetKind::RepoDay => {
                    (repo, spec.config.limits.day_budget_micros)
                }
                Some((_, spec)) => (spec.requester.login, None),
                None => (whose.to_owned(), None),
            },
        };
        let budget = Budget { kind, whose, cap_micros: rules.cap(kind, own), scope };
        standings.push(Standing { resets_at: kind.resets_at(now), budget, micros });
    }
    Ok(standings)
}

/// The repository's name and the request of the newest run of a repository or person.
async fn latest_of(
    store: &Store,
    kind: BudgetKind,
    remote: &str,
    id: &str,
) -> Result<Option<(String, RunSpec)>, StoreError> {
    let Ok(id) = id.parse::<i64>() else { return Ok(None) };
    let text = match kind {
        BudgetKind::RepoDay => {
            "SELECT id, repo_name, spec FROM runs WHERE remote = $1 AND repo_id = $2 ORDER BY created_at DESC LIMIT 1"
        }
        _ => {
            "SELECT id, repo_name, spec FROM runs WHERE remote = $1 AND requester = $2 ORDER BY created_at DESC LIMIT 1"
        }
    };
    let row = sqlx::query(text)
        .bind(remote)
        .bind(id)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("look for the newest run"))?;
    row.map(|row| {
        let row = RowReader::new(&row, "runs", "id");
        Ok((row.text("repo_name")?, row.json("spec")?))
    })
    .transpose()
}

/// What one run cost within some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunCost {
    pub run: RunId,
    pub repo: String,
    pub state: String,
    pub spec: RunSpec,
    pub first_request: DateTime<Utc>,
    /// As of `totals`.
    pub totals: Totals,
    /// Requests that count at their reservation.
    pub unsettled: i64,
}

/// The runs that asked a model from `since` to before `until`, by id after `after`: at most 1000. The pages of a month
/// together read the ledger once, in the order of its key.
pub async fn of_runs(
    store: &Store,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    after: &str,
    limit: i64,
) -> Result<Vec<RunCost>, StoreError> {
    let rows = sqlx::query(
        "SELECT ledger.run AS run, MAX(runs.repo_name) AS repo_name, MAX(runs.state) AS state, MAX(runs.spec) AS spec, \
         MIN(ledger.created_at) AS first_request, COUNT(*) AS requests, \
         CAST(SUM(CASE WHEN ledger.used IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS unsettled, \
         CAST(SUM(COALESCE(ledger.used, ledger.reserved)) AS BIGINT) AS micros, \
         CAST(SUM(ledger.input_tokens) AS BIGINT) AS input, CAST(SUM(ledger.output_tokens) AS BIGINT) AS output, \
         CAST(SUM(ledger.cache_read_tokens) AS BIGINT) AS cache_read, \
         CAST(SUM(ledger.cache_write_tokens) AS BIGINT) AS cache_write \
         FROM ledger JOIN runs ON runs.id = ledger.run \
         WHERE ledger.created_at >= $1 AND ledger.created_at < $2 AND ledger.run > $3 \
         GROUP BY ledger.run ORDER BY ledger.run LIMIT $4",
    )
    .bind(millis(since))
    .bind(millis(until))
    .bind(after)
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list the ledger by run"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "ledger", "run");
            Ok(RunCost {
                run: RunId::new(row.text("run")?),
                repo: row.text("repo_name")?,
                state: row.text("state")?,
                spec: row.json("spec")?,
                first_request: row.time("first_request")?,
                totals: Totals {
                    micros: row.integer("micros")?,
                    usage: Usage {
                        input: row.integer("input")?,
                        output: row.integer("output")?,
                        cache_read: row.integer("cache_read")?,
                        cache_write: row.integer("cache_write")?,
                    },
                    requests: row.integer("requests")?,
                },
                unsettled: row.integer("unsettled")?,
            })
        })
        .collect()
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
    use super::super::testing::{actor, at, each_database, new_run, repo};
    use super::*;
    use crate::store;

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
    async fn what_was_spent_is_listed_under_the_names_of_the_newest_runs() {
        each_database(async |database| {
            let store = &database.store;
            let rules = BudgetRules { user_day_micros: Some(70), ..BudgetRules::default() };
            assert_eq!(spending(store, &rules, at(0)).await.unwrap(), []);
            let mut tx = store.write_tx().await.unwrap();
            let mut new = new_run("run");
            new.spec.config.limits.day_budget_micros = Some(60);
            assert!(store::runs::insert(&mut tx, &new).await.unwrap());
            tx.commit().await.unwrap();
            let person = actor(1);
            let budgets = budget::wider("github", &new.repo, &person, Some(60), &rules);
            booked(store, "a", 50, &budgets).await;
            let stranger = budget::wider("github", &repo(9), &actor(9), None, &rules);
            booked(store, "b", 5, &stranger).await;
            let told = |all: Vec<Standing>| -> Vec<(BudgetKind, String, Option<i64>, i64)> {
                all.into_iter()
                    .map(|one| (one.budget.kind, one.budget.whose, one.budget.cap_micros, one.micros))
                    .collect()
            };
            let mut all = told(spending(store, &rules, at(0)).await.unwrap());
            assert_eq!(all.first().map(|one| one.3), Some(55), "the most spent first");
            all.sort();
            assert_eq!(
                all,
                [
                    (BudgetKind::OwnerMonth, "octo".into(), None, 55),
                    // Of the second nothing is known but its number.
                    (BudgetKind::RepoDay, "9".into(), None, 5),
                    (BudgetKind::RepoDay, "octo/repo-1".into(), Some(60), 50),
                    (BudgetKind::UserDay, "9".into(), Some(70), 5),
                    (BudgetKind::UserDay, "user1".into(), Some(70), 50),
                ]
            );
            // The next day only the month is left; it is 15 January.
            let tomorrow = told(spending(store, &rules, at(24 * 60 * 60)).await.unwrap());
            assert_eq!(tomorrow, [(BudgetKind::OwnerMonth, "octo".into(), None, 55)]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_month_of_the_ledger_is_told_by_run_page_by_page() {
        each_database(async |database| {
            let store = &database.store;
            let day = 24 * 60 * 60;
            let mut tx = store.write_tx().await.unwrap();
            for id in ["a", "b", "c"] {
                assert!(store::runs::insert(&mut tx, &new_run(id)).await.unwrap());
            }
            tx.commit().await.unwrap();
            for (run, request, when) in
                [("a", "1", 0), ("a", "2", 5), ("a", "3", 20 * day), ("b", "1", 1), ("c", "1", 20 * day)]
            {
                let asked = Reservation { run: RunId::new(run), ..reservation(request, 10) };
                let own = [Budget::of_run(&asked.run, 1_000)];
                let booking = booking(reserve(store, &asked, &own, at(when)).await.unwrap());
                if request == "1" {
                    settle(store, &booking, &USAGE, 7).await.unwrap();
                }
            }
            // It is 15 January 2027.
            let (since, until) = budget::month("2027-01").unwrap();
            let january = of_runs(store, since, until, "", 10).await.unwrap();
            let brief: Vec<(&str, i64, i64, i64)> = january
                .iter()
                .map(|cost| (cost.run.as_str(), cost.totals.micros, cost.totals.requests, cost.unsettled))
                .collect();
            assert_eq!(brief, [("a", 17, 2, 1), ("b", 7, 1, 0)]);
            let first = &january[0];
            assert_eq!((first.repo.as_str(), first.state.as_str()), ("octo/repo-1", "queued"));
            assert_eq!((first.first_request, first.totals.usage), (at(0), USAGE));
            assert_eq!(first.spec.requester, actor(1));
            let next = of_runs(store, since, until, "a", 10).await.unwrap();
            assert_eq!(next.len(), 1);
            assert_eq!(of_runs(store, since, until, "", 1).await.unwrap()[0].run.as_str(), "a");
            let (since, until) = budget::month("2027-02").unwrap();
            let february = of_runs(store, since, until, "", 10).await.unwrap();
            assert_eq!(february.iter().map(|cost| cost.run.as_str()).collect::<Vec<_>>(), ["a", "c"]);
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
