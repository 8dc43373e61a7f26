//! Purpose: `zeblit status|logs|cancel|retry`.

use super::args::{LogsArgs, StatusArgs};
use super::backend::{Backend, RunsFilter};
use super::operate::{one_line, time};
use super::output::{CliError, Exit, Output};
use crate::domain::run::{LogKind, LogLine};
use crate::http::view::{RunView, StatusView, duration_text, plural, visible};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Milliseconds between two looks at the log of a run that goes on.
const FOLLOW_MS: u64 = 700;
/// Looks in a row that may fail (a restart of the server) before following ends.
const MAX_FAILED_LOOKS: u32 = 30;

#[derive(Serialize)]
struct Both<'a> {
    server: &'a StatusView,
    runs: &'a [RunView],
}

pub async fn status(backend: &Backend, args: &StatusArgs, output: Output) -> Result<Exit, CliError> {
    if let Some(id) = &args.run {
        let run = backend.run(id).await?;
        if args.json {
            output.json(&run)?;
        } else {
            output.text(run_text(&run))?;
        }
        return Ok(Exit::Ok);
    }
    let server = backend.status().await?;
    let filter =
        RunsFilter { state: args.state, repo: args.repo.clone(), open_only: args.open, limit: args.limit };
    let runs = backend.runs(&filter).await?;
    if args.json {
        output.json(&Both { server: &server, runs: &runs })?;
    } else {
        output.text(server_text(&server))?;
        if runs.is_empty() {
            output.note("No runs yet: comment `/zeblit help` on an issue, or try `zeblit demo`");
        } else {
            output.line("")?;
            output.table(
                &["RUN", "STATE", "REPOSITORY", "VERB", "BY", "CREATED (UTC)", "TIME", "RESULT"],
                &rows(&runs),
            )?;
        }
    }
    Ok(Exit::Ok)
}

fn counts(counts: &BTreeMap<String, i64>) -> String {
    let shown: Vec<String> =
        counts.iter().filter(|(_, n)| **n > 0).map(|(state, n)| format!("{n} {state}")).collect();
    if shown.is_empty() { "none".into() } else { shown.join(", ") }
}

fn server_text(server: &StatusView) -> String {
    let paused = server.paused.as_ref().map_or_else(String::new, |why| {
        format!("paused      {}; go on with `zeblit resume`\n", one_line(why))
    });
    format!(
        "version     {}\n{paused}runs        {}\neffects     {}\ndeliveries  {}\n",
        server.version,
        counts(&server.runs),
        counts(&server.effects),
        counts(&server.deliveries)
    )
}

fn rows(runs: &[RunView]) -> Vec<Vec<String>> {
    runs.iter()
        .map(|run| {
            let result = match (run.pull_number, run.ended, run.position) {
                (Some(number), ..) => format!("#{number}"),
                (None, true, _) => one_line(&run.reason),
                (None, false, Some(position)) => format!("position {position}"),
                (None, false, None) => one_line(&run.last),
            };
            vec![
                run.short().to_owned(),
                run.state.clone(),
                format!("{}#{}", run.repo, run.number),
                run.verb.clone(),
                one_line(&run.requester),
                time(run.created_at),
                if run.started_at.is_some() { duration_text(run.elapsed_seconds) } else { "–".into() },
                result,
            ]
        })
        .collect()
}

/// Everything about one run, one fact a line; lines without a value are left out.
fn run_text(run: &RunView) -> String {
    let mut facts: Vec<(&str, String)> = vec![
        ("run", run.id.clone()),
        (
            "state",
            match &run.phase {
                Some(phase) if !run.ended => format!("{} ({phase})", run.state),
                _ => run.state.clone(),
            },
        ),
        ("on", format!("{}#{} {}", run.repo, run.number, one_line(&run.title))),
        ("request", one_line(&format!("/zeblit {} {}", run.verb, run.text))),
        ("by", one_line(&run.requester)),
        (
            "agent",
            match &run.model {
                Some(model) => format!("{} with {model}", run.agent),
                None => run.agent.clone(),
            },
        ),
        ("created", time(run.created_at)),
    ];
    if run.started_at.is_some() {
        facts.push(("elapsed", duration_text(run.elapsed_seconds)));
        facts.push(("cost", format!("{}, {} tokens", run.cost(), run.tokens)));
        facts.push(("attempts", run.attempts.to_string()));
    }
    if let Some(position) = run.position.filter(|_| !run.ended) {
        facts.push(("position", position.to_string()));
    }
    facts.extend(run.waits_for.clone().filter(|_| !run.ended).map(|id| ("waits for", id)));
    facts.extend(run.cancel_requested.clone().map(|by| ("cancel by", by)));
    facts.extend(run.failure.clone().map(|class| ("failure", class)));
    for (name, value) in [("reason", &run.reason), ("last", &run.last)] {
        if !value.is_empty() {
            facts.push((name, visible(value)));
        }
    }
    facts.extend(run.branch.clone().map(|branch| ("branch", branch)));
    if run.files > 0 {
        let changes = format!(
            "{}, {}, +{} -{}",
            plural(run.commits, "commit"),
            plural(run.files, "file"),
            run.added_lines,
            run.removed_lines
        );
        facts.push(("changes", changes));
    }
    if run.artifacts > 0 {
        let shown = format!("{}: zeblit artifacts {}", plural(run.artifacts, "file"), run.short());
        facts.push(("artifacts", shown));
    }
    facts.extend(run.pull_url.clone().map(|url| ("pull", visible(&url))));
    facts.extend(run.notes.iter().map(|note| ("note", visible(note))));
    facts.extend(run.page_url.clone().map(|url| ("page", url)));
    let mut out = String::new();
    for (name, value) in facts {
        out.push_str(&format!("{name:<10}  {}\n", value.trim_end().replace('\n', "\n            ")));
    }
    if !run.summary.is_empty() {
        out.push_str(&format!("\n{}\n", visible(&run.summary).trim_end()));
    }
    out
}

pub async fn logs(backend: &Backend, args: &LogsArgs, output: Output) -> Result<Exit, CliError> {
    let id = backend.run(&args.run).await?.id;
    let mut after = 0;
    let mut failed = 0;
    loop {
        let part = match backend.log(&id, after).await {
            Ok(part) => part,
            // A server that restarts is followed further.
            Err(error) if args.follow && after > 0 && failed < MAX_FAILED_LOOKS => {
                if failed == 0 {
                    output.warning(format!("{}; trying again", error.problems.join("; ")));
                }
                failed += 1;
                tokio::time::sleep(Duration::from_millis(FOLLOW_MS)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        failed = 0;
        for line in &part.lines {
            if args.json {
                let text = serde_json::to_string(line)
                    .map_err(|error| CliError::because("cannot write JSON", &error))?;
                output.line(text)?;
            } else {
                output.line(line_text(line))?;
            }
        }
        let more = part.last_seq > after;
        after = part.last_seq;
        if part.end || (!more && !args.follow) {
            break;
        }
        if !more {
            tokio::time::sleep(Duration::from_millis(FOLLOW_MS)).await;
        }
    }
    if args.follow {
        let run = backend.run(&id).await?;
        output.note(format!("Run {} ended: {}", run.short(), run.state));
    }
    Ok(Exit::Ok)
}

/// A line of the log, told apart without colour.
fn line_text(line: &LogLine) -> String {
    match line.k {
        LogKind::Text | LogKind::Out => line.t.clone(),
        LogKind::Tool => format!("> {}", line.t),
        LogKind::ToolEnd => format!("< {}", line.t),
        LogKind::Err => format!("! {}", line.t),
        LogKind::Note => format!("# {}", line.t),
        LogKind::Result => format!("= {}", line.t),
        LogKind::Error => format!("error: {}", line.t),
    }
}

pub async fn cancel(backend: &Backend, run: &str, output: Output) -> Result<Exit, CliError> {
    let id = backend.cancel(run).await?;
    output.line(&id)?;
    output.note(format!("Cancelling; partial work is kept. Follow it with `zeblit logs -f {id}`"));
    Ok(Exit::Ok)
}

pub async fn retry(backend: &Backend, run: &str, output: Output) -> Result<Exit, CliError> {
    let id = backend.retry(run).await?;
    output.line(&id)?;
    output.note(format!("Queued; follow it with `zeblit logs -f {id}`"));
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{TimeZone, Utc};

    pub(crate) fn sample() -> RunView {
        RunView {
            id: "0192f00dcafe0001".into(),
            remote: "github".into(),
            repo: "octo/shop".into(),
            number: 7,
            title: "Wrong total \u{1b}[31mred".into(),
            subject_url: "https://github.com/octo/shop/issues/7".into(),
            verb: "fix".into(),
            text: "the rounding".into(),
            agent: "fixer".into(),
            model: Some("claude-sonnet-4-5".into()),
            requester: "ada".into(),
            state: "failed".into(),
            ended: true,
            phase: Some("agent".into()),
            position: None,
            waits_for: None,
            cancel_requested: None,
            created_at: Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 5).unwrap(),
            started_at: Some(Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 6).unwrap()),
            finished_at: Some(Utc.with_ymd_and_hms(2026, 1, 2, 3, 6, 0).unwrap()),
            elapsed_seconds: 114,
            attempts: 1,
            tokens: 12_345,
            cost_micros: 420_000,
            budget_micros: 5_000_000,
            last: String::new(),
            failure: Some("timeout".into()),
            reason: "The agent took longer than 60 minutes.".into(),
            summary: "I found the bug.\nThe tests hang.".into(),
            branch: Some("zeblit/7-wrong-total-abcdef".into()),
            head: None,
            commits: 1,
            files: 2,
            added_lines: 3,
            removed_lines: 1,
            pull_number: None,
            pull_url: None,
            notes: vec!["`.env` was left out".into()],
            artifacts: 2,
            page_url: Some("https://z.example.com/runs/x?e=1&s=2".into()),
        }
    }

    #[test]
    fn one_run_is_told_fact_by_fact() {
        insta::assert_snapshot!(run_text(&sample()), @r"
        run         0192f00dcafe0001
        state       failed
        on          octo/shop#7 Wrong total red
        request     /zeblit fix the rounding
        by          ada
        agent       fixer with claude-sonnet-4-5
        created     2026-01-02 03:04:05
        elapsed     1m54s
        cost        $0.42 of $5.00, 12345 tokens
        attempts    1
        failure     timeout
        reason      The agent took longer than 60 minutes.
        branch      zeblit/7-wrong-total-abcdef
        changes     1 commit, 2 files, +3 -1
        artifacts   2 files: zeblit artifacts cafe0001
        note        `.env` was left out
        page        https://z.example.com/runs/x?e=1&s=2

        I found the bug.
        The tests hang.
        ");
    }

    #[test]
    fn the_overview_counts_and_lists() {
        let server = StatusView {
            version: "0.1.0".into(),
            paused: Some("by host:uid-0: upgrade".into()),
            runs: BTreeMap::from([("queued".into(), 2), ("failed".into(), 0)]),
            effects: BTreeMap::new(),
            deliveries: BTreeMap::from([("done".into(), 9)]),
        };
        insta::assert_snapshot!(server_text(&server), @r"
        version     0.1.0
        paused      by host:uid-0: upgrade; go on with `zeblit resume`
        runs        2 queued
        effects     none
        deliveries  9 done
        ");
        let queued =
            RunView { state: "queued".into(), ended: false, started_at: None, position: Some(2), ..sample() };
        let table = super::super::output::table_text(
            &["RUN", "STATE", "REPOSITORY", "VERB", "BY", "CREATED (UTC)", "TIME", "RESULT"],
            &rows(&[sample(), queued]),
        );
        insta::assert_snapshot!(table, @r"
        RUN       STATE   REPOSITORY   VERB  BY   CREATED (UTC)        TIME   RESULT
        cafe0001  failed  octo/shop#7  fix   ada  2026-01-02 03:04:05  1m54s  The agent took longer than 60 minutes.
        cafe0001  queued  octo/shop#7  fix   ada  2026-01-02 03:04:05  –      position 2
        ");
    }

    #[test]
    fn log_lines_are_told_apart_without_colour() {
        let line = |k, t: &str| line_text(&LogLine { n: 1, k, t: t.into() });
        assert_eq!(line(LogKind::Text, "hello"), "hello");
        assert_eq!(line(LogKind::Tool, "Bash: ls"), "> Bash: ls");
        assert_eq!(line(LogKind::Error, "no"), "error: no");
    }
}
