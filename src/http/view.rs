//! Purpose: rows as people and programs see them: the JSON of the API, which the command line prints, too.

use crate::app::Signer;
use crate::config::{Config, micros};
use crate::domain::budget::{self, Budget, BudgetKind, Standing, Usage, dollars};
use crate::domain::ids::RunId;
use crate::domain::run::{LogKind, LogLine, Run};
use crate::domain::wording;
use crate::engine::sweep::LOST_AFTER;
use crate::store::{self, Store, StoreError};
use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Shortest end of a run id that may stand for it, in characters.
const MIN_ID_END_CHARS: usize = 6;
/// Longest run id taken from a client, in bytes; ours have 32.
const MAX_ID_BYTES: usize = 64;
/// Most rows of one answer.
pub const MAX_ROWS: i64 = 200;
/// Rows of an answer when nothing else is asked for.
pub const DEFAULT_ROWS: i64 = 50;
/// Rows of the ledger in one answer.
pub const LEDGER_ROWS: i64 = 200;
/// Chunks of a log in one answer.
pub const LOG_CHUNKS: i64 = 200;

/// Money: the limits, and how the budgets stand that something was spent of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    pub limits: LimitsView,
    pub budgets: Vec<StandingView>,
}

/// Millionths of a dollar; absent: no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsView {
    /// Of a run that names none, and the most that a command may ask for.
    pub run_micros: i64,
    pub max_run_micros: i64,
    pub user_day_micros: Option<i64>,
    pub repo_day_micros: Option<i64>,
    pub owner_month_micros: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingView {
    /// `run`, `user_day`, `repo_day` or `owner_month`.
    pub kind: String,
    pub whose: String,
    pub limit_micros: Option<i64>,
    /// Spent, and reserved for requests that are on their way.
    pub spent_micros: i64,
    pub left_micros: Option<i64>,
    pub resets_at: Option<DateTime<Utc>>,
}

impl BudgetView {
    /// With a run: what its requests count against. Else everything that something was spent of today or this month, and
    /// the runs that have not ended.
    pub async fn read(
        config: &Config,
        store: &Store,
        run: Option<&Run>,
        now: DateTime<Utc>,
    ) -> Result<Self, StoreError> {
        let rules = config.budget.rules();
        let of_one = |run: &Run| Budget {
            whose: format!("run {} of {}", run.id.short(), run.repo.name),
            ..Budget::of_run(&run.id, run.spec.budget_micros)
        };
        let standings = match run {
            Some(run) => {
                let mut budgets = budget::of_run(run, &rules);
                budgets.retain(|budget| budget.kind != BudgetKind::Run);
                budgets.push(of_one(run));
                store::ledger::standings(store, &budgets, now).await?
            }
            None => {
                let mut all = store::ledger::spending(store, &rules, now).await?;
                let filter = store::runs::Filter {
                    open_only: true,
                    limit: MAX_ROWS,
                    ..store::runs::Filter::default()
                };
                let open: Vec<Budget> = store::runs::list(store, &filter).await?.iter().map(of_one).collect();
                all.extend(store::ledger::standings(store, &open, now).await?);
                all
            }
        };
        let mut budgets: Vec<StandingView> = standings.iter().map(StandingView::of).collect();
        let order = |view: &StandingView| {
            let kinds = ["owner_month", "repo_day", "user_day", "run"];
            kinds.iter().position(|kind| *kind == view.kind)
        };
        budgets.sort_by_key(order);
        Ok(Self {
            limits: LimitsView {
                run_micros: micros(config.limits.run_budget),
                max_run_micros: micros(config.limits.max_run_budget),
                user_day_micros: rules.user_day_micros,
                repo_day_micros: rules.repo_day_micros,
                owner_month_micros: rules.owner_month_micros,
            },
            budgets,
        })
    }
}

impl StandingView {
    fn of(standing: &Standing) -> Self {
        let cap = standing.budget.cap_micros;
        Self {
            kind: standing.budget.kind.name().to_owned(),
            whose: visible(&standing.budget.whose),
            limit_micros: cap,
            spent_micros: standing.micros,
            left_micros: cap.map(|cap| cap.saturating_sub(standing.micros).max(0)),
            resets_at: standing.resets_at,
        }
    }
}

/// What a run cost within a month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCostView {
    pub run: String,
    pub repo: String,
    pub number: i64,
    pub requester: String,
    pub verb: String,
    pub agent: String,
    pub model: Option<String>,
    pub state: String,
    pub first_request: DateTime<Utc>,
    pub requests: i64,
    /// Requests that count at their reservation: on their way, or cut off by a crash.
    pub unsettled: i64,
    pub usage: Usage,
    pub micros: i64,
}

impl RunCostView {
    pub fn of(cost: &store::ledger::RunCost) -> Self {
        Self {
            run: cost.run.to_string(),
            repo: cost.repo.clone(),
            number: cost.spec.subject.number,
            requester: visible(&cost.spec.requester.login),
            verb: cost.spec.verb.name().to_owned(),
            agent: visible(&cost.spec.agent),
            model: cost.spec.model.as_deref().map(visible),
            state: cost.state.clone(),
            first_request: cost.first_request,
            requests: cost.totals.requests,
            unsettled: cost.unsettled,
            usage: cost.totals.usage,
            micros: cost.totals.micros,
        }
    }

    /// One page of a month's ledger by run: those after `after`, in the order of their ids.
    pub async fn read(
        store: &Store,
        (since, until): (DateTime<Utc>, DateTime<Utc>),
        after: &str,
    ) -> Result<Vec<Self>, StoreError> {
        let found = store::ledger::of_runs(store, since, until, after, LEDGER_ROWS).await?;
        Ok(found.iter().map(Self::of).collect())
    }
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunView {
    pub id: String,
    pub remote: String,
    pub repo: String,
    pub number: i64,
    pub title: String,
    pub subject_url: String,
    pub verb: String,
    pub text: String,
    pub agent: String,
    pub model: Option<String>,
    pub requester: String,
    pub state: String,
    pub ended: bool,
    pub phase: Option<String>,
    pub position: Option<i64>,
    pub waits_for: Option<String>,
    pub cancel_requested: Option<String>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub elapsed_seconds: i64,
    pub attempts: i64,
    pub tokens: i64,
    pub cost_micros: i64,
    pub budget_micros: i64,
    pub last: String,
    pub failure: Option<String>,
    pub reason: String,
    pub summary: String,
    pub branch: Option<String>,
    pub head: Option<String>,
    pub commits: i64,
    pub files: i64,
    pub added_lines: i64,
    pub removed_lines: i64,
    pub pull_number: Option<i64>,
    pub pull_url: Option<String>,
    pub notes: Vec<String>,
    /// Files that were kept for download when it ended.
    #[serde(default)]
    pub artifacts: i64,
    /// A fresh signed link, when run pages are on.
    pub page_url: Option<String>,
}

impl RunView {
    pub fn of(run: &Run, now: DateTime<Utc>, page_url: Option<String>) -> Self {
        let outcome = &run.outcome;
        let phase = wording::phases(run)
            .into_iter()
            .find(|(phase, _)| Some(*phase) == run.progress.phase)
            .map(|(_, name)| name.to_owned());
        Self {
            id: run.id.to_string(),
            remote: run.remote.clone(),
            repo: run.repo.name.to_string(),
            number: run.spec.subject.number,
            title: run.spec.subject.title.clone(),
            subject_url: run.spec.subject.url.clone(),
            verb: run.spec.verb.name().to_owned(),
            text: run.spec.text.clone(),
            agent: run.spec.agent.clone(),
            model: run.spec.model.clone(),
            requester: run.spec.requester.login.clone(),
            state: run.state.as_str().to_owned(),
            ended: run.state.is_terminal(),
            phase,
            position: run.progress.position,
            waits_for: run.progress.waits_for.as_ref().map(ToString::to_string),
            cancel_requested: run.cancel_requested.clone(),
            created_at: run.created_at,
            started_at: run.started_at,
            finished_at: run.finished_at,
            elapsed_seconds: elapsed_seconds(run, now),
            attempts: run.attempts,
            tokens: run.progress.tokens,
            cost_micros: run.progress.cost_micros,
            budget_micros: run.spec.budget_micros,
            last: run.progress.last.clone(),
            failure: outcome.class.map(|class| class.name().to_owned()),
            reason: match &outcome.question {
                Some(question) => format!("The agent asks: {}", question.text),
                None => outcome.reason.clone(),
            },
            summary: outcome.summary.clone(),
            branch: outcome.branch.as_ref().map(ToString::to_string),
            head: outcome.head.as_ref().map(ToString::to_string),
            commits: outcome.commits,
            files: outcome.files,
            added_lines: outcome.added_lines,
            removed_lines: outcome.removed_lines,
            pull_number: outcome.pull_number,
            pull_url: outcome.pull_url.clone(),
            notes: outcome.notes.clone(),
            artifacts: outcome.artifacts,
            page_url,
        }
    }

    /// `$0.42 of $5.00`.
    pub fn cost(&self) -> String {
        cost(self.cost_micros, self.budget_micros)
    }

    pub fn short(&self) -> &str {
        short(&self.id)
    }
}

/// The last 8 characters of an id, as comments show it.
pub fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id)
}

pub fn cost(micros: i64, budget_micros: i64) -> String {
    format!("{} of {}", dollars(micros), dollars(budget_micros))
}

fn elapsed_seconds(run: &Run, now: DateTime<Utc>) -> i64 {
    run.started_at.map_or(0, |start| (run.finished_at.unwrap_or(now) - start).num_seconds().max(0))
}

/// `1 commit`, `2 commits`.
pub fn plural(number: i64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// `42s`, `3m07s`, `2h05m`.
pub fn duration_text(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A link to the page of a run that is good from now on for as long as the configuration says.
pub fn fresh_page_url(config: &Config, signer: &Signer, run: &RunId, now: DateTime<Utc>) -> Option<String> {
    if config.server.run_page == crate::config::RunPage::Off {
        return None;
    }
    let expires = (now + Duration::days(config.server.run_link_days)).timestamp();
    Some(format!("{}{}", config.public_url(), signer.run_path(run.as_str(), expires)))
}

/// Whether a text can be an id of ours, before the database is asked.
pub fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ID_BYTES
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// The run of this id, or of this unique end of an id.
pub async fn find_run(store: &Store, id: &str) -> Result<Option<Run>, StoreError> {
    if !is_id(id) {
        return Ok(None);
    }
    if let Some(run) = store::runs::get(store, &RunId::new(id)).await? {
        return Ok(Some(run));
    }
    if id.len() < MIN_ID_END_CHARS { Ok(None) } else { store::runs::find(store, id).await }
}

/// A file of a run, kept for download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactView {
    /// Relative, as it lay in the workspace.
    pub path: String,
    pub size: i64,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
}

impl ArtifactView {
    pub fn of(file: &store::artifacts::File) -> Self {
        Self {
            path: file.path.clone(),
            size: file.size,
            created_at: file.created_at,
            expires_at: file.expires_at,
        }
    }
}

/// `512 B`, `14.2 KiB`, `3.0 MiB`.
pub fn size_text(bytes: i64) -> String {
    let tenths = |unit: i64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        ..1024 => format!("{} B", bytes.max(0)),
        1024..1_048_576 => format!("{} KiB", tenths(1024)),
        _ => format!("{} MiB", tenths(1_048_576)),
    }
}

/// A relative path as it stands in an address.
pub fn url_path(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/');
    path.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// What the server has to do and did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    pub version: String,
    /// Who paused everything and why.
    pub paused: Option<String>,
    /// Number of rows by state.
    pub runs: BTreeMap<String, i64>,
    pub effects: BTreeMap<String, i64>,
    pub deliveries: BTreeMap<String, i64>,
}

impl StatusView {
    pub async fn read(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            paused: store::settings::get(store, store::settings::PAUSED).await?,
            runs: store::runs::counts(store).await?.into_iter().collect(),
            effects: store::effects::counts(store).await?.into_iter().collect(),
            deliveries: store::inbox::counts(store).await?.into_iter().collect(),
        })
    }
}

/// The nodes of an installation, and what none of them takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesView {
    pub nodes: Vec<NodeView>,
    pub waiting: Vec<WaitingView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    pub id: String,
    pub name: String,
    /// `all`, `web`, `worker` or `deliver`.
    pub role: String,
    /// `live`, `draining`, `lost` (not seen for two minutes) or `stopped`.
    pub state: String,
    pub version: String,
    pub capabilities: Vec<String>,
    /// Runs that it has, and takes at most.
    pub live: i64,
    pub slots: i64,
    pub started_at: DateTime<Utc>,
    pub seen_at: DateTime<Utc>,
}

/// A queued run that no live node would take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    pub run: String,
    pub needs: Vec<String>,
}

impl NodesView {
    pub async fn read(store: &Store, now: DateTime<Utc>) -> Result<Self, StoreError> {
        let lost = now - LOST_AFTER;
        let nodes = store::nodes::list(store).await?.into_iter().map(|known| NodeView {
            state: match () {
                () if known.boot.is_empty() => "stopped",
                () if known.seen_at < lost => "lost",
                () if known.draining => "draining",
                () => "live",
            }
            .to_owned(),
            id: known.node.id,
            name: visible(&known.node.name),
            role: known.node.role.as_str().to_owned(),
            version: visible(&known.version),
            capabilities: known.node.capabilities,
            live: known.live,
            slots: known.slots,
            started_at: known.started_at,
            seen_at: known.seen_at,
        });
        let waiting = store::nodes::without_node(store, lost, MAX_ROWS).await?;
        let waiting = waiting.into_iter().map(|(run, needs)| WaitingView { run: run.to_string(), needs });
        Ok(Self { nodes: nodes.collect(), waiting: waiting.collect() })
    }
}

/// A stored delivery, without its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryView {
    pub id: String,
    pub source: String,
    pub delivery_id: String,
    pub event: String,
    pub received_at: DateTime<Utc>,
    pub state: String,
    pub verdict: String,
    pub tries: i64,
}

impl DeliveryView {
    pub fn of(delivery: &store::inbox::Delivery) -> Self {
        use store::inbox::InboxState;
        Self {
            id: delivery.id.to_string(),
            source: delivery.source.as_str().to_owned(),
            delivery_id: delivery.delivery_id.clone(),
            event: delivery.event.clone(),
            received_at: delivery.received_at,
            state: match delivery.state {
                InboxState::Pending => "pending",
                InboxState::Done => "done",
                InboxState::Ignored => "ignored",
                InboxState::NotYetHandled => "not_yet_handled",
                InboxState::Failed => "failed",
            }
            .to_owned(),
            verdict: delivery.verdict.clone(),
            tries: delivery.tries,
        }
    }
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    pub id: String,
    pub at: DateTime<Utc>,
    pub actor: String,
    pub action: String,
    pub subject: String,
    pub detail: String,
}

impl AuditView {
    pub fn of(entry: &store::audit::Entry) -> Self {
        Self {
            id: entry.id.clone(),
            at: entry.at,
            actor: entry.actor.clone(),
            action: entry.action.clone(),
            subject: entry.subject.clone(),
            detail: entry.detail.clone(),
        }
    }
}

/// A part of a run's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogView {
    pub lines: Vec<LogLine>,
    /// Ask for what comes after this number.
    pub last_seq: i64,
    /// The run has ended and these are its last lines.
    pub end: bool,
}

impl LogView {
    /// The lines after `after`. The run is read before its log, so that `end` is never said too early.
    pub async fn read(store: &Store, run: &RunId, after: i64) -> Result<Option<Self>, StoreError> {
        let Some(known) = store::runs::get(store, run).await? else { return Ok(None) };
        let chunks = store::logs::read(store, run, after.max(0), LOG_CHUNKS).await?;
        let last_seq = chunks.last().map_or(after.max(0), |chunk| chunk.seq);
        let end = known.state.is_terminal() && chunks.is_empty();
        Ok(Some(Self {
            lines: chunks.iter().flat_map(|chunk| log_lines(&chunk.text)).collect(),
            last_seq,
            end,
        }))
    }
}

/// The lines of a chunk, made harmless for terminals and pages. A line that is not one of ours is shown as plain output.
pub fn log_lines(text: &str) -> Vec<LogLine> {
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| match serde_json::from_str::<LogLine>(line) {
            Ok(known) => LogLine { t: visible(&known.t), ..known },
            Err(_foreign) => LogLine { n: 0, k: LogKind::Out, t: visible(line) },
        })
        .collect()
}

/// The name of a kind of line: a CSS class and the start of a line in a terminal.
pub fn kind_name(kind: LogKind) -> &'static str {
    match kind {
        LogKind::Text => "text",
        LogKind::Tool => "tool",
        LogKind::ToolEnd => "tool_end",
        LogKind::Out => "out",
        LogKind::Err => "err",
        LogKind::Note => "note",
        LogKind::Result => "result",
        LogKind::Error => "error",
    }
}

/// Agent text without what a terminal or a reader could be fooled by: escape sequences, other control
/// characters (except tab and line feed) and characters that turn the direction of writing or are not seen.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_escape(&mut chars),
            '\t' | '\n' => out.push(c),
            '\r' => {}
            c if c.is_control() => out.push('\u{fffd}'),
            '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Skips the rest of a terminal escape sequence: `[ … letter` or one character.
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    /// Parameters of a control sequence; longer ones are not one.
    const MAX_SEQUENCE_CHARS: usize = 64;
    if chars.next_if_eq(&'[').is_none() {
        chars.next_if(|c| *c != '\n');
        return;
    }
    for _ in 0..MAX_SEQUENCE_CHARS {
        match chars.next_if(|c| (' '..='~').contains(c)) {
            Some('@'..='~') | None => return,
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_log_lines_become_visible_text() {
        for (given, shown) in [
            ("plain\ttext", "plain\ttext"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}]8;;http://evil\u{7}link", "8;;http://evil\u{fffd}link"),
            ("a\rb", "ab"),
            ("nul\0bell\u{7}", "nul\u{fffd}bell\u{fffd}"),
            ("abc\u{202e}fed", "abc\u{fffd}fed"),
            ("zero\u{200b}width\u{feff}", "zero\u{fffd}width\u{fffd}"),
            ("\u{1b}[", ""),
            ("\u{1b}", ""),
        ] {
            assert_eq!(visible(given), shown, "{given:?}");
        }
    }

    #[test]
    fn lines_of_a_chunk_are_read_and_strangers_kept() {
        let lines = log_lines("{\"n\":3,\"k\":\"tool_end\",\"t\":\"ok\"}\n\nnot json <b>\n{\"n\":4}\n");
        let kinds: Vec<_> = lines.iter().map(|line| (line.n, kind_name(line.k), line.t.as_str())).collect();
        assert_eq!(kinds, [(3, "tool_end", "ok"), (0, "out", "not json <b>"), (0, "out", "{\"n\":4}")]);
    }

    #[test]
    fn sizes_and_addresses_are_plain() {
        for (bytes, text) in
            [(-1, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (16 << 20, "16.0 MiB")]
        {
            assert_eq!(size_text(bytes), text);
        }
        assert_eq!(url_path("a/b c?#\u{e4}.txt"), "a/b%20c%3F%23%C3%A4.txt");
    }

    #[test]
    fn times_are_short_to_read() {
        for (seconds, text) in [(-5, "0s"), (59, "59s"), (187, "3m07s"), (7_500, "2h05m")] {
            assert_eq!(duration_text(seconds), text);
        }
    }

    #[test]
    fn only_plain_ids_reach_the_database() {
        assert!(is_id("019a-b_C"));
        for bad in ["", "a b", "a'", "ä", "%", &"x".repeat(65)] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
