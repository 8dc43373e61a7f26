//! Purpose: `zeblit budget`.

use super::args::BudgetArgs;
use super::backend::Backend;
use super::operate::time;
use super::output::{CliError, Exit, Output};
use crate::clock::{Clock, SystemClock};
use crate::domain::budget::{BudgetKind, dollars, dollars_exact};
use crate::http::view::{BudgetView, LEDGER_ROWS, RunCostView};

/// The columns of the CSV. New ones go to the end: programs count them.
const COLUMNS: &str = "run,repository,number,requester,verb,agent,model,state,first_request,requests,unsettled,\
                       input_tokens,output_tokens,cache_read_tokens,cache_write_tokens,dollars";

pub async fn run(backend: &Backend, args: &BudgetArgs, output: Output) -> Result<Exit, CliError> {
    if args.csv {
        let this = BudgetKind::OwnerMonth.period(SystemClock.now());
        return csv(backend, args.month.as_deref().unwrap_or(&this), output).await;
    }
    let view = backend.budget(args.run.as_deref()).await?;
    if args.json {
        output.json(&view)?;
        return Ok(Exit::Ok);
    }
    output.text(limits(&view))?;
    if view.budgets.is_empty() {
        output.note("Nothing was spent today or this month, and no run is open");
    } else {
        output.line("")?;
        output.table(&["BUDGET", "WHOSE", "LIMIT", "SPENT", "LEFT", "STARTS AGAIN (UTC)"], &rows(&view))?;
    }
    Ok(Exit::Ok)
}

/// Money or a dash: no limit.
fn money(micros: Option<i64>) -> String {
    micros.map_or_else(|| "–".to_owned(), dollars)
}

fn limits(view: &BudgetView) -> String {
    let limits = &view.limits;
    let or_none = |micros: Option<i64>| micros.map_or_else(|| "no limit".to_owned(), dollars);
    format!(
        "run          {} unless it asks for more, at most {}\nuser/day     {}\nrepo/day     {}\nowner/month  {}\n",
        dollars(limits.run_micros),
        dollars(limits.max_run_micros),
        or_none(limits.user_day_micros),
        or_none(limits.repo_day_micros),
        or_none(limits.owner_month_micros)
    )
}

fn rows(view: &BudgetView) -> Vec<Vec<String>> {
    view.budgets
        .iter()
        .map(|budget| {
            vec![
                budget.kind.replace('_', "/"),
                budget.whose.clone(),
                money(budget.limit_micros),
                dollars(budget.spent_micros),
                money(budget.left_micros),
                budget.resets_at.map_or_else(|| "–".to_owned(), time),
            ]
        })
        .collect()
}

async fn csv(backend: &Backend, month: &str, output: Output) -> Result<Exit, CliError> {
    output.line(COLUMNS)?;
    let mut after = String::new();
    loop {
        let page = backend.month(month, &after).await?;
        for cost in &page {
            output.line(line(cost))?;
        }
        match page.last() {
            Some(last) if i64::try_from(page.len()).unwrap_or(i64::MAX) >= LEDGER_ROWS => {
                after.clone_from(&last.run);
            }
            _ => return Ok(Exit::Ok),
        }
    }
}

fn line(cost: &RunCostView) -> String {
    [
        cost.run.clone(),
        cost.repo.clone(),
        cost.number.to_string(),
        cost.requester.clone(),
        cost.verb.clone(),
        cost.agent.clone(),
        cost.model.clone().unwrap_or_default(),
        cost.state.clone(),
        cost.first_request.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        cost.requests.to_string(),
        cost.unsettled.to_string(),
        cost.usage.input.to_string(),
        cost.usage.output.to_string(),
        cost.usage.cache_read.to_string(),
        cost.usage.cache_write.to_string(),
        dollars_exact(cost.micros),
    ]
    .map(|cell| quoted(&cell))
    .join(",")
}

/// One cell. What a spreadsheet would take for a formula begins with an apostrophe.
fn quoted(cell: &str) -> String {
    let cell = if cell.starts_with(['=', '+', '-', '@']) { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::budget::Usage;
    use crate::http::view::{LimitsView, StandingView};
    use chrono::{TimeZone, Utc};

    #[test]
    fn limits_come_first_and_then_what_is_left() {
        let standing = |kind: &str, whose: &str, limit: Option<i64>, spent: i64| StandingView {
            kind: kind.into(),
            whose: whose.into(),
            limit_micros: limit,
            spent_micros: spent,
            left_micros: limit.map(|limit| (limit - spent).max(0)),
            resets_at: (kind != "run").then(|| Utc.with_ymd_and_hms(2026, 12, 1, 0, 0, 0).unwrap()),
        };
        let view = BudgetView {
            limits: LimitsView {
                run_micros: 5_000_000,
                max_run_micros: 20_000_000,
                user_day_micros: None,
                repo_day_micros: Some(20_000_000),
                owner_month_micros: Some(200_000_000),
            },
            budgets: vec![
                standing("owner_month", "octo", Some(200_000_000), 12_345_678),
                standing("user_day", "ada", None, 420_000),
                standing("run", "run cafe0001 of octo/shop", Some(5_000_000), 5_100_000),
            ],
        };
        let table = super::super::output::table_text(
            &["BUDGET", "WHOSE", "LIMIT", "SPENT", "LEFT", "STARTS AGAIN (UTC)"],
            &rows(&view),
        );
        insta::assert_snapshot!(format!("{}\n{table}", limits(&view)), @r"
        run          $5.00 unless it asks for more, at most $20.00
        user/day     no limit
        repo/day     $20.00
        owner/month  $200.00

        BUDGET       WHOSE                      LIMIT    SPENT   LEFT     STARTS AGAIN (UTC)
        owner/month  octo                       $200.00  $12.35  $187.66  2026-12-01 00:00:00
        user/day     ada                        –        $0.42   –        2026-12-01 00:00:00
        run          run cafe0001 of octo/shop  $5.00    $5.10   $0.00    –
        ");
    }

    #[test]
    fn a_line_of_the_ledger_has_every_column() {
        let cost = RunCostView {
            run: "0192f00dcafe0001".into(),
            repo: "octo/shop".into(),
            number: 7,
            requester: "ada".into(),
            verb: "fix".into(),
            agent: "=cmd, \"x\"".into(),
            model: None,
            state: "succeeded".into(),
            first_request: Utc.with_ymd_and_hms(2026, 11, 21, 10, 0, 0).unwrap(),
            requests: 3,
            unsettled: 1,
            usage: Usage { input: 1, output: 2, cache_read: 3, cache_write: 4 },
            micros: 1_500_001,
        };
        let line = line(&cost);
        assert_eq!(
            line,
            "0192f00dcafe0001,octo/shop,7,ada,fix,\"'=cmd, \"\"x\"\"\",,succeeded,2026-11-21T10:00:00Z,3,1,1,2,3,4,1.500001"
        );
        assert_eq!(COLUMNS.split(',').count(), 16);
        assert_eq!(quoted("-1+2"), "'-1+2");
    }
}
