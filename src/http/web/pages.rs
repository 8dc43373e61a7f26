//! Purpose: the page of a run, rendered on the server and complete without any script.

use super::{Access, Signed, access};
use crate::app::App;
use crate::domain::ids::RunId;
use crate::domain::run::{Load, Run, RunState};
use crate::domain::wording::{self, RunLinks};
use crate::http::Http;
use crate::http::error::HttpError;
use crate::http::view::{self, duration_text, kind_name, visible};
use crate::store;
use crate::store::samples::Sample;
use askama::Template;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;

/// Chunks of the log on the page itself: the newest ones; the whole log is in `zeblit logs`.
const PAGE_LOG_CHUNKS: i64 = 200;
/// Lines of the log on the page; more would make a phone slow.
const PAGE_LOG_LINES: usize = 3000;
/// Lines of the diff on the page.
const PAGE_DIFF_LINES: usize = 5000;

/// A mark of the checklist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct PhaseMark {
    pub name: &'static str,
    /// `done`, `now`, `stopped` or `todo`: a CSS class.
    pub mark: &'static str,
}

/// What changes while a run goes: on the page, and in each `state` event of the live log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Facts {
    pub headline: String,
    pub state: &'static str,
    pub last: String,
    pub elapsed: String,
    pub cost: String,
    pub tokens: String,
    pub attempts: i64,
    pub phases: Vec<PhaseMark>,
}

pub(super) fn facts(run: &Run, paused: Option<String>, now: DateTime<Utc>) -> Facts {
    let links = RunLinks { paused, ..RunLinks::default() };
    let seconds = run.started_at.map(|start| (run.finished_at.unwrap_or(now) - start).num_seconds());
    Facts {
        headline: visible(&wording::headline(run, &links, now)),
        state: run.state.as_str(),
        // Of an ended run its outcome is told instead.
        last: if run.state.is_terminal() { String::new() } else { visible(&run.progress.last) },
        elapsed: seconds.map_or_else(|| "–".into(), duration_text),
        cost: view::cost(run.progress.cost_micros, run.spec.budget_micros),
        tokens: thousands(run.progress.tokens),
        attempts: run.attempts,
        phases: phase_marks(run),
    }
}

fn phase_marks(run: &Run) -> Vec<PhaseMark> {
    let current = run.outcome.step.unwrap_or_else(|| wording::current_phase(run));
    wording::phases(run)
        .into_iter()
        .map(|(phase, name)| {
            let mark = match run.state {
                RunState::Succeeded => "done",
                _ if phase < current => "done",
                RunState::Nothing | RunState::NeedsInput if phase <= current => "done",
                RunState::Failed | RunState::Cancelled if phase == current => "stopped",
                state if phase == current && !state.is_terminal() => "now",
                _ => "todo",
            };
            PhaseMark { name, mark }
        })
        .collect()
}

/// `12 345`: readable in every country.
fn thousands(number: i64) -> String {
    let digits = number.max(0).to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{a0}');
        }
        out.push(digit);
    }
    out
}

struct PageLine {
    kind: &'static str,
    text: String,
}

struct DiffLine {
    /// `add`, `del`, `hunk`, `file` or `same`: a CSS class.
    class: &'static str,
    text: String,
}

fn diff_lines(diff: &str) -> (Vec<DiffLine>, bool) {
    let mut in_hunk = false;
    let mut lines = Vec::new();
    let mut all = diff.lines();
    for line in all.by_ref().take(PAGE_DIFF_LINES) {
        if line.starts_with("diff --git ") {
            in_hunk = false;
        } else if line.starts_with("@@") {
            in_hunk = true;
        }
        let class = match line.as_bytes().first() {
            _ if line.starts_with("diff --git ") => "file",
            _ if line.starts_with("@@") => "hunk",
            Some(b'+') if in_hunk => "add",
            Some(b'-') if in_hunk => "del",
            _ => "same",
        };
        lines.push(DiffLine { class, text: visible(line) });
    }
    (lines, all.next().is_some())
}

/// Only web addresses become links; anything else stays text.
fn web_link(url: &str) -> Option<String> {
    let parsed = url::Url::parse(url).ok()?;
    matches!(parsed.scheme(), "http" | "https").then(|| parsed.to_string())
}

#[derive(Template)]
#[template(path = "run.html", config = "src/http/web/askama.toml")]
struct RunPage {
    run_id: String,
    short: String,
    repo: String,
    number: i64,
    title: String,
    subject_link: Option<String>,
    requester: String,
    request: String,
    agent: String,
    model: String,
    created: String,
    facts: Facts,
    live: bool,
    events: String,
    class: String,
    reason: String,
    summary: String,
    notes: Vec<String>,
    branch: String,
    pull_number: i64,
    pull_link: Option<String>,
    stats: String,
    log: Vec<PageLine>,
    log_cut: bool,
    diff: Vec<DiffLine>,
    diff_cut: bool,
    artifacts: Vec<ArtifactLine>,
    /// Empty when nobody looked.
    peak: String,
    curves: Vec<Curve>,
}

struct ArtifactLine {
    path: String,
    size: String,
    link: String,
}

/// One figure over time, as the points of a line in a box of 240 by 40.
struct Curve {
    name: &'static str,
    highest: String,
    points: String,
}

/// Processor, memory and disk of a run; nothing with fewer than two samples.
fn curves(samples: &[Sample]) -> Vec<Curve> {
    if samples.len() < 2 {
        return Vec::new();
    }
    let curve = |name: &'static str, value: fn(&Load) -> i64, shown: fn(i64) -> String| {
        let values: Vec<i64> = samples.iter().map(|sample| value(&sample.load).max(0)).collect();
        let highest = values.iter().copied().max().unwrap_or(0);
        let times: Vec<i64> = samples.iter().map(|sample| sample.at.timestamp_millis()).collect();
        let (first, last) = (times.first().copied().unwrap_or(0), times.last().copied().unwrap_or(0));
        let points: Vec<String> = times
            .iter()
            .zip(&values)
            .map(|(at, value)| {
                let x = (at - first).saturating_mul(240) / (last - first).max(1);
                let y = 39 - i64::try_from(i128::from(*value) * 38 / i128::from(highest.max(1))).unwrap_or(0);
                format!("{x},{y}")
            })
            .collect();
        Curve { name, highest: shown(highest), points: points.join(" ") }
    };
    let mib = |bytes: i64| format!("{} MiB", bytes >> 20);
    vec![
        curve("Processor", |load| load.millicpus, |value| format!("{}.{}", value / 1000, value % 1000 / 100)),
        curve("Memory", |load| load.memory_bytes, mib),
        curve("Disk", |load| load.disk_bytes, mib),
    ]
}

#[derive(Template)]
#[template(path = "message.html", config = "src/http/web/askama.toml")]
struct MessagePage {
    title: &'static str,
    text: String,
    command: String,
}

/// `GET /runs/{id}?e=&s=`
pub(super) async fn run(
    State(http): State<Http>,
    Path(id): Path<String>,
    query: Result<Query<Signed>, QueryRejection>,
) -> Response {
    let app = http.app();
    let signed = query.map(|Query(signed)| signed).unwrap_or_default();
    if let Some(refusal) = refuse(access(app, &id, &signed), &id) {
        return refusal;
    }
    match page(app, &RunId::new(id), &signed).await {
        Ok(Some(page)) => html(StatusCode::OK, &page),
        Ok(None) => message(
            StatusCode::NOT_FOUND,
            "No such run",
            "The link is genuine, but the run is not in the database any more.",
            "",
        ),
        Err(error) => {
            let error = HttpError::store(app, "show a run", &error);
            message(error.status, "Not now", &error.message, "")
        }
    }
}

/// `GET /runs/{id}/artifacts/{path}?e=&s=`
pub(super) async fn artifact(
    State(http): State<Http>,
    Path((id, path)): Path<(String, String)>,
    query: Result<Query<Signed>, QueryRejection>,
) -> Response {
    let app = http.app();
    let signed = query.map(|Query(signed)| signed).unwrap_or_default();
    if let Some(refusal) = refuse(access(app, &id, &signed), &id) {
        return refusal;
    }
    match store::artifacts::file(&app.store, &RunId::new(id), &path).await {
        Ok(Some(bytes)) => crate::http::download::file(&path, bytes),
        Ok(None) => message(
            StatusCode::NOT_FOUND,
            "No such file",
            "The run has no file of this name (any more): files are kept for a limited time.",
            "",
        ),
        Err(error) => {
            let error = HttpError::store(app, "read a file of a run", &error);
            message(error.status, "Not now", &error.message, "")
        }
    }
}

/// The page to show instead, when a link gives nothing.
pub(super) fn refuse(access: Access, id: &str) -> Option<Response> {
    let (status, title, text) = match access {
        Access::Granted => return None,
        Access::Off => {
            return Some(message(
                StatusCode::NOT_FOUND,
                "Run pages are off",
                "This server shows no run pages. The run's comment on the forge tells its state.",
                "",
            ));
        }
        Access::Wrong => (
            StatusCode::FORBIDDEN,
            "This link is not valid",
            "A link to a run must be complete and unchanged. Use the one in the run's comment or check, or ask an operator for a fresh one:",
        ),
        Access::Expired => (
            StatusCode::FORBIDDEN,
            "This link has expired",
            "Links to runs are good for a limited time. An operator gets a fresh one with:",
        ),
    };
    let shown = if view::is_id(id) { id } else { "RUN" };
    Some(message(status, title, text, &format!("zeblit status {shown}")))
}

fn message(status: StatusCode, title: &'static str, text: &str, command: &str) -> Response {
    html(status, &MessagePage { title, text: text.to_owned(), command: command.to_owned() })
}

fn html(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response(),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "a page could not be rendered");
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the page could not be rendered")
                .into_response()
        }
    }
}

async fn page(app: &App, id: &RunId, signed: &Signed) -> Result<Option<RunPage>, store::StoreError> {
    let Some(run) = store::runs::get(&app.store, id).await? else { return Ok(None) };
    let paused = store::settings::get(&app.store, store::settings::PAUSED).await?;
    let newest = store::logs::last_seq(&app.store, id).await?;
    let from = (newest - PAGE_LOG_CHUNKS).max(0);
    let chunks = store::logs::read(&app.store, id, from, PAGE_LOG_CHUNKS).await?;
    let shown_to = chunks.last().map_or(from, |chunk| chunk.seq);
    let mut log: Vec<PageLine> = chunks
        .iter()
        .flat_map(|chunk| view::log_lines(&chunk.text))
        .map(|line| PageLine { kind: kind_name(line.k), text: line.t })
        .collect();
    let surplus = log.len().saturating_sub(PAGE_LOG_LINES);
    log.drain(..surplus);
    let diff = store::artifacts::get(&app.store, id, "diff").await?.unwrap_or_default();
    let (diff, diff_cut) = diff_lines(&String::from_utf8_lossy(&diff));
    let (spec, outcome) = (&run.spec, &run.outcome);
    let artifacts = store::artifacts::files(&app.store, id)
        .await?
        .iter()
        .map(|file| ArtifactLine {
            path: visible(&file.path),
            size: view::size_text(file.size),
            link: format!(
                "/runs/{id}/artifacts/{}?e={}&s={}",
                view::url_path(&file.path),
                signed.e,
                hex_only(&signed.s)
            ),
        })
        .collect();
    let events = format!("/runs/{id}/events?e={}&s={}&after={shown_to}", signed.e, hex_only(&signed.s));
    let request = if spec.text.is_empty() {
        format!("/zeblit {}", spec.verb.name())
    } else {
        format!("/zeblit {} {}", spec.verb.name(), spec.text)
    };
    let stats = if outcome.files > 0 {
        format!(
            "{}, {}, +{} −{}",
            view::plural(outcome.commits, "commit"),
            view::plural(outcome.files, "file"),
            outcome.added_lines,
            outcome.removed_lines
        )
    } else {
        String::new()
    };
    Ok(Some(RunPage {
        run_id: id.to_string(),
        short: id.short().to_owned(),
        repo: run.repo.name.to_string(),
        number: spec.subject.number,
        title: visible(&spec.subject.title),
        subject_link: web_link(&spec.subject.url),
        requester: visible(&spec.requester.login),
        request: visible(&request),
        agent: visible(&spec.agent),
        model: visible(spec.model.as_deref().unwrap_or_default()),
        created: run.created_at.format("%Y-%m-%d %H:%M UTC").to_string(),
        facts: facts(&run, paused, app.clock.now()),
        live: !run.state.is_terminal(),
        events,
        class: outcome.class.map(|class| class.name().to_owned()).unwrap_or_default(),
        reason: visible(&outcome.reason),
        summary: visible(&outcome.summary),
        notes: outcome.notes.iter().map(|note| visible(note)).collect(),
        branch: outcome.branch.as_ref().map(ToString::to_string).unwrap_or_default(),
        pull_number: outcome.pull_number.unwrap_or_default(),
        pull_link: outcome.pull_url.as_deref().and_then(web_link),
        stats,
        log,
        log_cut: from > 0 || surplus > 0,
        diff,
        diff_cut,
        artifacts,
        peak: wording::peak(&run),
        curves: curves(&store::samples::of_run(&app.store, id, crate::engine::load::MAX_SAMPLES).await?),
    }))
}

/// The signature was verified, so it is hexadecimal; this keeps it so if that ever changes.
fn hex_only(text: &str) -> String {
    text.chars().filter(char::is_ascii_hexdigit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_web_addresses_become_links() {
        assert!(web_link("https://github.com/o/r/issues/1").is_some());
        for bad in ["javascript:alert(1)", "data:text/html,x", "//x", "nonsense", ""] {
            assert_eq!(web_link(bad), None, "{bad}");
        }
    }

    #[test]
    fn diff_lines_are_told_apart_by_where_they_stand() {
        let diff = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old\n+new <script>\n same\n--- not a header\ndiff --git a/y b/y\n+++ b/y\n";
        let (lines, cut) = diff_lines(diff);
        let classes: Vec<&str> = lines.iter().map(|line| line.class).collect();
        assert_eq!(classes, ["file", "same", "same", "hunk", "del", "add", "same", "del", "file", "same"]);
        assert!(!cut);
        assert!(diff_lines(&"+\n".repeat(PAGE_DIFF_LINES + 1)).1);
    }

    #[test]
    fn samples_become_lines_in_a_box() {
        let sample = |seconds: i64, memory_bytes: i64| Sample {
            at: DateTime::from_timestamp(seconds, 0).unwrap(),
            load: Load { millicpus: 1500, memory_bytes, disk_bytes: 0 },
        };
        assert!(curves(&[sample(0, 1)]).is_empty());
        let lines = curves(&[sample(0, 0), sample(5, 64 << 20), sample(20, 128 << 20)]);
        let shown: Vec<_> = lines.iter().map(|line| (line.highest.as_str(), line.points.as_str())).collect();
        assert_eq!(
            shown,
            [("1.5", "0,1 60,1 240,1"), ("128 MiB", "0,39 60,20 240,1"), ("0 MiB", "0,39 60,39 240,39")]
        );
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1\u{a0}234\u{a0}567");
    }
}
