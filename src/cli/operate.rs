//! Purpose: `zeblit pause|resume|deliveries|replay|audit`.

use super::args::ListArgs;
use super::backend::Backend;
use super::output::{CliError, Exit, Output};
use crate::http::view::visible;
use chrono::{DateTime, Utc};

pub async fn pause(backend: &Backend, why: &str, output: Output) -> Result<Exit, CliError> {
    let stored = backend.pause(why).await?;
    output.note(format!("Paused {stored}. Webhooks are still taken; go on with `zeblit resume`"));
    Ok(Exit::Ok)
}

pub async fn resume(backend: &Backend, output: Output) -> Result<Exit, CliError> {
    backend.resume().await?;
    output.note("Resumed");
    Ok(Exit::Ok)
}

/// A time as lists show it.
pub fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

pub async fn deliveries(backend: &Backend, args: &ListArgs, output: Output) -> Result<Exit, CliError> {
    let found = backend.deliveries(args.limit).await?;
    if args.json {
        output.json(&found)?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|delivery| {
            vec![
                delivery.id.clone(),
                time(delivery.received_at),
                delivery.source.clone(),
                visible(&delivery.event),
                delivery.state.clone(),
                one_line(&delivery.verdict),
            ]
        })
        .collect();
    output.table(&["ID", "RECEIVED (UTC)", "SOURCE", "EVENT", "STATE", "VERDICT"], &rows)?;
    Ok(Exit::Ok)
}

/// Takes up again what was given up: a delivery, or the request of a run.
pub async fn replay(backend: &Backend, id: &str, output: Output) -> Result<Exit, CliError> {
    output.line(&backend.replay(id).await?)?;
    output.note("It is taken up again; `zeblit deliveries` and `zeblit status` show what becomes of it");
    Ok(Exit::Ok)
}

pub async fn audit(backend: &Backend, args: &ListArgs, output: Output) -> Result<Exit, CliError> {
    let found = backend.audit(args.limit).await?;
    if args.json {
        output.json(&found)?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|entry| {
            vec![
                time(entry.at),
                one_line(&entry.actor),
                entry.action.clone(),
                one_line(&entry.subject),
                one_line(&entry.detail),
            ]
        })
        .collect();
    output.table(&["TIME (UTC)", "WHO", "WHAT", "SUBJECT", "DETAIL"], &rows)?;
    Ok(Exit::Ok)
}

/// Text of others in a row of a table.
pub fn one_line(text: &str) -> String {
    /// Characters of a cell; more would break the table on every terminal.
    const MAX_CHARS: usize = 100;
    let flat: String =
        visible(text).chars().map(|c| if matches!(c, '\n' | '\t') { ' ' } else { c }).collect();
    if flat.chars().count() <= MAX_CHARS {
        return flat;
    }
    flat.chars().take(MAX_CHARS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_one_short_line() {
        assert_eq!(one_line("a\nb\tc\u{1b}[31m"), "a b c");
        assert_eq!(one_line(&"x".repeat(300)).chars().count(), 100);
    }
}
