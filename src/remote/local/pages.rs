//! The plain web pages of the local forge: repositories, issues, pull requests with their diff, and a comment form.
//!
//! No script runs on them, and every text is escaped or rendered by `markdown`.

use super::markdown::{escape, is_plain_link, render};
use super::repository::{Comparison, FileDiff, LineKind};
use super::state::{CheckRow, CommentRow, ReactionRow, RepoRow, ReviewRow, State, SubjectRow};
use super::{Inner, LocalForge, MAX_UPLOAD_BYTES, Webhook};
use crate::domain::attachment::{self, Kind};
use crate::domain::effect::{CheckConclusion, CheckStatus, Reaction};
use crate::domain::event::{ActorKind, PullHead, Repo};
use crate::domain::ids::RepoName;
use crate::remote::RemoteError;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Form, Path, Query, State as Shared};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post, put};
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use std::fmt::Write;
use std::ops::Deref;
use std::sync::Arc;

/// Takes a delivery to the server: signs it and posts it, as GitHub would. The error is shown to the person.
pub type WebhookHook = Arc<dyn Fn(Webhook) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Bytes of a posted form: 65 536 characters of four bytes, each byte written as `%xx`.
const MAX_FORM_BYTES: usize = 65_536 * 4 * 3 + 4_096;

/// Seconds between two reloads of a page on which something is going on.
const REFRESH_SECONDS: i64 = 4;

/// A page is live for this many seconds after its last change: long enough for a first sign of life.
const FRESH_SECONDS: i64 = 20;

/// A command with 👀 and no verdict keeps a page live until nothing has changed for this many minutes: a run edits its
/// comment far more often, and a command that only gets an answer never has a verdict.
const LIVE_MINUTES: i64 = 3;

/// Bytes of a README that the repository page shows.
const MAX_README_BYTES: usize = 128 * 1024;

const STYLE: &str = include_str!("style.css");

const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct Pages {
    forge: LocalForge,
    hook: WebhookHook,
}

/// Every page, below `/forge`. `hook` is called with the delivery of each comment and issue written on a page.
pub fn router(forge: LocalForge, hook: WebhookHook) -> Router {
    Router::new()
        .route("/forge", get(index))
        .route("/forge/", get(|| async { Redirect::permanent("/forge") }))
        .route("/forge/style.css", get(style))
        .route("/forge/{owner}/{name}", get(repository))
        .route("/forge/{owner}/{name}/issues/new", get(new_issue).post(post_issue))
        .route("/forge/{owner}/{name}/issues/{number}", get(issue))
        .route("/forge/{owner}/{name}/pull/{number}", get(pull))
        .route("/forge/{owner}/{name}/checks/{id}", get(check))
        .route("/forge/{owner}/{name}/comments/{number}", post(post_comment))
        .route(
            "/forge/{owner}/{name}/files/{file}",
            put(upload).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)),
        )
        .route("/forge/{owner}/{name}/files/{id}/{file}", get(download))
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .with_state(Pages { forge, hook })
}

/// A page that could not be made.
#[derive(Debug)]
struct PageError {
    status: StatusCode,
    text: String,
}

impl PageError {
    fn not_found() -> Self {
        Self { status: StatusCode::NOT_FOUND, text: "There is no such page on this forge".to_owned() }
    }
}

impl From<RemoteError> for PageError {
    fn from(error: RemoteError) -> Self {
        match &error {
            RemoteError::NotFound { .. } => Self::not_found(),
            RemoteError::Refused { detail, .. } => {
                Self { status: StatusCode::UNPROCESSABLE_ENTITY, text: detail.clone() }
            }
            _ => Self { status: StatusCode::SERVICE_UNAVAILABLE, text: error.to_string() },
        }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let body = format!(
            "<h1>{}</h1><p class=\"note\">{}</p><p><a href=\"/forge\">All repositories</a></p>",
            escape(self.status.canonical_reason().unwrap_or("Error")),
            escape(&self.text)
        );
        page(self.status, "Error", None, false, &body)
    }
}

type PageResult = Result<Response, PageError>;

fn with_headers(mut response: Response, content_type: &'static str) -> Response {
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn page(status: StatusCode, title: &str, repo: Option<&RepoName>, live: bool, body: &str) -> Response {
    let refresh = if live {
        format!("<meta http-equiv=\"refresh\" content=\"{REFRESH_SECONDS}\">")
    } else {
        String::new()
    };
    let crumbs = match repo {
        Some(name) => format!(
            "<span class=\"sep\">/</span>{}<span class=\"sep\">/</span><b><a href=\"/forge/{1}\">{2}</a></b>",
            escape(name.owner()),
            escape(name.as_str()),
            escape(name.name())
        ),
        None => String::new(),
    };
    let text = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">{refresh}\
         <title>{}</title><link rel=\"stylesheet\" href=\"/forge/style.css\"></head><body>\
         <header class=\"top\"><div><span class=\"where\">a forge on this machine</span>\
         <b><a href=\"/forge\">Local forge</a></b>{crumbs}</div></header><main>{body}</main>\
         <footer>Zeblit's local forge: bare Git repositories, issues and pull requests in one folder of this machine.</footer>\
         </body></html>",
        escape(title)
    );
    with_headers((status, text).into_response(), "text/html; charset=utf-8")
}

async fn style() -> Response {
    with_headers(STYLE.into_response(), "text/css; charset=utf-8")
}

/// "3 minutes ago", with the exact time to be seen by pointing at it.
fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - at).num_seconds().max(0);
    let plural = |n: i64, unit: &str| format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" });
    let words = match seconds {
        0..=9 => "just now".to_owned(),
        10..=59 => plural(seconds, "second"),
        60..=3_599 => plural(seconds / 60, "minute"),
        3_600..=86_399 => plural(seconds / 3_600, "hour"),
        _ => format!("on {}", at.format("%Y-%m-%d")),
    };
    let exact = at.format("%Y-%m-%d %H:%M:%S UTC");
    format!("<time datetime=\"{}\" title=\"{exact}\">{words}</time>", at.to_rfc3339())
}

fn repo_name(owner: &str, name: &str) -> Result<RepoName, PageError> {
    RepoName::parse(&format!("{owner}/{name}")).map_err(|_| PageError::not_found())
}

/// Runs on a thread that may block: Git and the disk are read for every page.
async fn blocking(
    pages: Pages,
    work: impl FnOnce(&Inner, DateTime<Utc>) -> PageResult + Send + 'static,
) -> PageResult {
    let done = tokio::task::spawn_blocking(move || {
        let now = pages.forge.inner.clock.now();
        work(&pages.forge.inner, now)
    });
    done.await.unwrap_or_else(|_| {
        Err(PageError {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            text: "The page could not be made: see the server's log".to_owned(),
        })
    })
}

async fn index(Shared(pages): Shared<Pages>) -> PageResult {
    blocking(pages, |inner, now| {
        let state = inner.lock().clone();
        let mut body = String::from("<h1>Repositories</h1>");
        if state.repos.is_empty() {
            body.push_str("<p class=\"dim\">No repositories yet.</p>");
        } else {
            body.push_str("<div class=\"box\">");
            for row in &state.repos {
                let open = row.subjects.iter().filter(|s| s.open && s.pull.is_none()).count();
                let pulls = row.subjects.iter().filter(|s| s.open && s.pull.is_some()).count();
                let _ = write!(
                    body,
                    "<div class=\"row\"><div class=\"grow\"><b><a href=\"/forge/{0}\">{0}</a></b>\
                     <div class=\"dim\">{1}</div></div><div class=\"dim\">{open} open issues · {pulls} open pull requests · made {2}</div></div>",
                    escape(row.name.as_str()),
                    escape(&row.description),
                    ago(row.created_at, now)
                );
            }
            body.push_str("</div>");
        }
        Ok(page(StatusCode::OK, "Local forge", None, false, &body))
    })
    .await
}

fn find_repo(state: &State, name: &RepoName) -> Result<RepoRow, PageError> {
    state.repo_named(name).cloned().ok_or_else(PageError::not_found)
}

fn subject_state(subject: &SubjectRow) -> (&'static str, &'static str) {
    match (&subject.pull, subject.open) {
        (Some(pull), _) if pull.merged => ("merged", "Merged"),
        (Some(pull), true) if pull.draft => ("draft", "Draft"),
        (_, true) => ("open", "Open"),
        (_, false) => ("closed", "Closed"),
    }
}

fn subject_list(state: &State, row: &RepoRow, pulls: bool, now: DateTime<Utc>) -> String {
    let kind = if pulls { "pull" } else { "issues" };
    let mut rows = String::new();
    for subject in row.subjects.iter().rev().filter(|subject| subject.pull.is_some() == pulls) {
        let (class, word) = subject_state(subject);
        let colour = match class {
            "open" => "ok",
            "draft" => "dim",
            _ => "done",
        };
        let _ = write!(
            rows,
            "<div class=\"row\"><span class=\"icon {colour}\" title=\"{word}\">{}</span><div class=\"grow\">\
             <b><a href=\"/forge/{}/{kind}/{}\">{}</a></b><div class=\"dim\">#{} · {word} · {} by {}</div></div>\
             <div class=\"dim\">💬 {}</div></div>",
            if subject.open { "●" } else { "✓" },
            escape(row.name.as_str()),
            subject.number,
            escape(&subject.title),
            subject.number,
            ago(subject.created_at, now),
            escape(&state.actor(subject.author).login),
            subject.comments.len()
        );
    }
    if rows.is_empty() {
        rows.push_str("<div class=\"row dim\">None yet.</div>");
    }
    rows
}

async fn repository(Shared(pages): Shared<Pages>, Path((owner, name)): Path<(String, String)>) -> PageResult {
    let name = repo_name(&owner, &name)?;
    blocking(pages, move |inner, now| {
        let state = inner.lock().clone();
        let row = find_repo(&state, &name)?;
        let bare = inner.bare(&name);
        let failed = super::failed("read repository");
        let branches = bare.branches().map_err(&failed)?;
        let readme = bare.read_file(row.default_branch.as_str(), "README.md").map_err(&failed)?;
        let mut body = format!(
            "<h1>{}</h1><p class=\"meta\">{}</p>\
             <div class=\"box\"><div class=\"row head\"><span class=\"grow\">Issues</span>\
             <a href=\"/forge/{0}/issues/new\">New issue</a></div>{}</div>\
             <div class=\"box\"><div class=\"row head\">Pull requests</div>{}</div>\
             <div class=\"box\"><div class=\"row head\">Branches</div>",
            escape(name.as_str()),
            escape(&row.description),
            subject_list(&state, &row, false, now),
            subject_list(&state, &row, true, now)
        );
        for branch in branches {
            let default = if branch.name == row.default_branch.as_str() {
                "<span class=\"badge\">default</span>"
            } else {
                ""
            };
            let _ = write!(
                body,
                "<div class=\"row\"><span class=\"grow\"><code class=\"branch\">{}</code>{default} \
                 <span class=\"dim\">{}</span></span><span class=\"dim\"><span class=\"mono\">{}</span> · {}</span></div>",
                escape(&branch.name),
                escape(&branch.subject),
                branch.head.short(),
                ago(branch.when, now)
            );
        }
        let path = bare.path().display().to_string();
        let _ = write!(
            body,
            "</div><p class=\"dim\">Clone it: <code>git clone {}</code></p>",
            escape(&path)
        );
        if let Some(bytes) = readme {
            let shown = String::from_utf8_lossy(bytes.get(..MAX_README_BYTES).unwrap_or(&bytes)).into_owned();
            let _ = write!(
                body,
                "<div class=\"box\"><div class=\"row head\">README.md</div><div class=\"md\">{}</div></div>",
                render(&shown, None)
            );
        }
        Ok(page(StatusCode::OK, name.as_str(), Some(&name), false, &body))
    })
    .await
}

fn reaction_row(reactions: &[ReactionRow]) -> String {
    let mut out = String::new();
    for kind in [Reaction::PlusOne, Reaction::Eyes, Reaction::Rocket, Reaction::Confused] {
        let count = reactions.iter().filter(|row| row.reaction == kind).count();
        if count > 0 {
            let _ = write!(out, "<span title=\"{}\">{} {count}</span>", kind.rest_name(), kind.emoji());
        }
    }
    if out.is_empty() { out } else { format!("<div class=\"reactions\">{out}</div>") }
}

fn who(state: &State, author: i64) -> String {
    let actor = state.actor(author);
    let badge = match actor.kind {
        ActorKind::Bot => "<span class=\"badge\">bot</span>",
        _ if author == state.owner => "<span class=\"badge\">owner</span>",
        _ => "",
    };
    let login = actor.login.strip_suffix("[bot]").unwrap_or(&actor.login);
    format!("<b>{}</b>{badge}", escape(login))
}

fn issues_path(name: &RepoName) -> String {
    format!("/forge/{}/issues", name.as_str())
}

#[expect(clippy::too_many_arguments, reason = "the parts of one box, all of them texts")]
fn post_box(
    state: &State,
    repo: &RepoName,
    author: i64,
    anchor: &str,
    when: &str,
    verb: &str,
    body: &str,
    reactions: &[ReactionRow],
) -> String {
    let you = if author == state.owner { " you" } else { "" };
    let text = if body.trim().is_empty() {
        "<p class=\"dim\">No description provided.</p>".to_owned()
    } else {
        render(body, Some(&issues_path(repo)))
    };
    format!(
        "<article class=\"box comment{you}\" id=\"{anchor}\"><div class=\"who\">{} {verb} {when}</div>\
         <div class=\"md\">{text}</div>{}</article>",
        who(state, author),
        reaction_row(reactions)
    )
}

fn comment_box(state: &State, repo: &RepoName, comment: &CommentRow, now: DateTime<Utc>) -> String {
    let edited = if comment.updated_at > comment.created_at { " · edited" } else { "" };
    let when = format!("{}{edited}", ago(comment.created_at, now));
    match &comment.place {
        None => {
            let anchor = format!("issuecomment-{}", comment.id);
            let shown = post_box(
                state,
                repo,
                comment.author,
                &anchor,
                &when,
                "commented",
                &comment.body,
                &comment.reactions,
            );
            if comment.minimised {
                format!(
                    "<details class=\"box folded\"><summary>A comment by {} is outdated</summary>{shown}</details>",
                    escape(&state.actor(comment.author).login)
                )
            } else {
                shown
            }
        }
        Some(place) => {
            let line = place.line.map(|line| format!(" line {line}")).unwrap_or_default();
            let verb = format!("commented on <code>{}</code>{line}", escape(&place.path));
            let anchor = format!("discussion_r{}", comment.id);
            let shown = post_box(
                state,
                repo,
                comment.author,
                &anchor,
                &when,
                &verb,
                &comment.body,
                &comment.reactions,
            );
            let hunk = if place.reply_to.is_none() {
                format!("<pre class=\"hunkbox\">{}</pre><div class=\"md\">", escape(&place.diff_hunk))
            } else {
                "<div class=\"md\">".to_owned()
            };
            shown.replacen("<div class=\"md\">", &hunk, 1)
        }
    }
}

fn review_box(state: &State, repo: &RepoName, review: &ReviewRow, now: DateTime<Utc>) -> String {
    let anchor = format!("pullrequestreview-{}", review.id);
    let when = ago(review.created_at, now);
    post_box(state, repo, review.author, &anchor, &when, "reviewed", &review.body, &review.reactions)
}

fn timeline(state: &State, repo: &RepoName, subject: &SubjectRow, now: DateTime<Utc>) -> String {
    let opening = post_box(
        state,
        repo,
        subject.author,
        "opening",
        &ago(subject.created_at, now),
        "opened this",
        &subject.body,
        &subject.reactions,
    );
    let mut posts: Vec<(DateTime<Utc>, String)> = Vec::new();
    posts.extend(subject.comments.iter().map(|row| (row.created_at, comment_box(state, repo, row, now))));
    posts.extend(subject.reviews.iter().map(|row| (row.created_at, review_box(state, repo, row, now))));
    // Stable: equal times keep the order of writing.
    posts.sort_by_key(|(at, _)| *at);
    posts.into_iter().fold(opening, |mut all, (_, post)| {
        all.push_str(&post);
        all
    })
}

/// Whether a reload in a few seconds may show something new: a command has 👀 and no verdict yet, or it just changed.
fn is_live(state: &State, subject: &SubjectRow, checks: &[&CheckRow], now: DateTime<Utc>) -> bool {
    let changes = subject.comments.iter().map(|row| row.updated_at);
    let last = changes.chain(checks.iter().map(|row| row.updated_at)).fold(subject.updated_at, DateTime::max);
    if (now - last).num_seconds() < FRESH_SECONDS {
        return true;
    }
    let waits = |reactions: &[ReactionRow]| {
        let own = |kind| reactions.iter().any(|row| row.user == state.bot && row.reaction == kind);
        own(Reaction::Eyes) && !own(Reaction::Rocket) && !own(Reaction::Confused) && !own(Reaction::PlusOne)
    };
    let asked = waits(&subject.reactions)
        || subject.comments.iter().any(|row| waits(&row.reactions))
        || checks.iter().any(|row| row.run.status != CheckStatus::Completed);
    asked && (now - last).num_minutes() < LIVE_MINUTES
}

fn comment_form(name: &RepoName, subject: &SubjectRow, live: bool, write: bool) -> String {
    let kind = if subject.pull.is_some() { "pull" } else { "issues" };
    if live && !write {
        return format!(
            "<p class=\"live\">● This page follows what happens and reloads every {REFRESH_SECONDS} seconds.</p>\
             <p><a class=\"button\" href=\"/forge/{}/{kind}/{}?write=1#write\">Write a comment</a></p>",
            escape(name.as_str()),
            subject.number
        );
    }
    let merged = subject.pull.as_ref().is_some_and(|pull| pull.merged);
    let state = match subject.open {
        true => "<button type=\"submit\" name=\"set\" value=\"close\" class=\"plain\">Close</button>",
        false if merged => "",
        false => "<button type=\"submit\" name=\"set\" value=\"reopen\" class=\"plain\">Reopen</button>",
    };
    format!(
        "<section class=\"box\" id=\"write\"><div class=\"row head\">Add a comment</div>\
         <form method=\"post\" action=\"/forge/{}/comments/{}\">\
         <textarea name=\"body\" maxlength=\"65536\" aria-label=\"Comment\" \
         placeholder=\"Markdown, or a command on a line of its own: /zeblit help\"></textarea>\
         <div class=\"foot\"><span class=\"dim\">You write as the owner. Try <code>/zeblit help</code> or <code>/zeblit fix</code>.</span>\
         {state}<button type=\"submit\">Comment</button></div></form></section>",
        escape(name.as_str()),
        subject.number
    )
}

#[derive(Debug, Deserialize, Default)]
struct View {
    #[serde(default)]
    write: Option<String>,
}

async fn issue(
    Shared(pages): Shared<Pages>,
    Path((owner, name, number)): Path<(String, String, i64)>,
    Query(view): Query<View>,
) -> PageResult {
    let name = repo_name(&owner, &name)?;
    blocking(pages, move |inner, now| {
        let state = inner.lock().clone();
        let row = find_repo(&state, &name)?;
        let subject = row.subject(number).ok_or_else(PageError::not_found)?;
        if subject.pull.is_some() {
            return Ok(Redirect::to(&format!("/forge/{}/pull/{number}", name.as_str())).into_response());
        }
        let write = view.write.is_some();
        let live = is_live(&state, subject, &[], now);
        let (class, word) = subject_state(subject);
        let mut linked = String::new();
        for pull in row.subjects.iter().filter(|other| other.pull.is_some() && mentions(&other.body, number)) {
            let (class, word) = subject_state(pull);
            let _ = write!(
                linked,
                "<div class=\"row\"><span class=\"state {class}\">{word}</span><span class=\"grow\">\
                 <a href=\"/forge/{}/pull/{}\">{} <span class=\"dim\">#{}</span></a></span></div>",
                escape(name.as_str()),
                pull.number,
                escape(&pull.title),
                pull.number
            );
        }
        if !linked.is_empty() {
            linked = format!("<div class=\"box\"><div class=\"row head\">Linked pull requests</div>{linked}</div>");
        }
        let body = format!(
            "<h1>{} <span class=\"num\">#{number}</span></h1><div class=\"meta\">\
             <span class=\"state {class}\">{word}</span>{} opened this issue {} · {} comments</div>{linked}{}{}",
            escape(&subject.title),
            who(&state, subject.author),
            ago(subject.created_at, now),
            subject.comments.len(),
            timeline(&state, &name, subject, now),
            comment_form(&name, subject, live, write)
        );
        let title = format!("{} · Issue #{number} · {}", subject.title, name.as_str());
        Ok(page(StatusCode::OK, &title, Some(&name), live && !write, &body))
    })
    .await
}

/// Whether a text names `#number` as a whole.
fn mentions(text: &str, number: i64) -> bool {
    let wanted = format!("#{number}");
    text.match_indices(&wanted).any(|(at, found)| {
        let after = text.get(at + found.len()..).unwrap_or_default();
        !after.starts_with(|c: char| c.is_ascii_digit())
    })
}

fn check_words(check: &CheckRow) -> (&'static str, &'static str, &'static str) {
    match (check.run.status, check.run.conclusion) {
        (CheckStatus::Queued, _) => ("wait", "◌", "queued"),
        (CheckStatus::InProgress, _) => ("wait", "●", "in progress"),
        (CheckStatus::Completed, Some(CheckConclusion::Success)) => ("ok", "✓", "success"),
        (CheckStatus::Completed, Some(CheckConclusion::Failure)) => ("bad", "✕", "failure"),
        (CheckStatus::Completed, Some(CheckConclusion::TimedOut)) => ("bad", "✕", "timed out"),
        (CheckStatus::Completed, Some(CheckConclusion::ActionRequired)) => ("wait", "!", "action required"),
        (CheckStatus::Completed, Some(CheckConclusion::Cancelled)) => ("dim", "■", "cancelled"),
        (CheckStatus::Completed, Some(CheckConclusion::Neutral)) => ("dim", "■", "neutral"),
        (CheckStatus::Completed, None) => ("dim", "■", "completed"),
    }
}

fn check_rows(name: &RepoName, checks: &[&CheckRow]) -> String {
    let mut out = String::new();
    for check in checks {
        let (class, icon, word) = check_words(check);
        let details = match &check.run.details_url {
            Some(url) if is_plain_link(url) => format!("<a href=\"{}\">Details</a>", escape(url)),
            _ => String::new(),
        };
        let _ = write!(
            out,
            "<div class=\"row\"><span class=\"icon {class}\">{icon}</span><span class=\"grow\">\
             <b><a href=\"/forge/{}/checks/{}\">{}</a></b> <span class=\"dim\">{word} · {}</span></span>{details}</div>",
            escape(name.as_str()),
            check.id,
            escape(&check.run.name),
            escape(&check.run.title)
        );
    }
    if out.is_empty() {
        out.push_str("<div class=\"row dim\">No checks on this commit.</div>");
    }
    out
}

fn diff_table(file: &FileDiff) -> String {
    let mut out = String::from("<div class=\"scroll\"><table class=\"diff\">");
    for line in &file.lines {
        let number = |n: Option<u32>| n.map(|n| n.to_string()).unwrap_or_default();
        let (class, sign) = match line.kind {
            LineKind::Hunk => ("hunk", ""),
            LineKind::Context => ("", " "),
            LineKind::Added => ("add", "+"),
            LineKind::Removed => ("del", "-"),
        };
        let _ = write!(
            out,
            "<tr class=\"{class}\"><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"t\">{sign}{}</td></tr>",
            number(line.old),
            number(line.new),
            escape(&line.text)
        );
    }
    out.push_str("</table></div>");
    out
}

fn files_section(comparison: &Comparison) -> String {
    let mut out = String::new();
    for file in &comparison.files {
        let renamed = match &file.old_path {
            Some(old) => format!("{} → ", escape(old)),
            None => String::new(),
        };
        let _ = write!(
            out,
            "<div class=\"box\"><div class=\"row head\"><span class=\"grow mono\">{renamed}{}</span>\
             <span class=\"dim\">{}</span><span class=\"ok\">+{}</span><span class=\"bad\">−{}</span></div>",
            escape(&file.path),
            file.what,
            file.added,
            file.removed
        );
        if file.binary {
            out.push_str("<div class=\"row dim\">Binary file, not shown.</div>");
        } else if file.lines.is_empty() {
            out.push_str("<div class=\"row dim\">No changed lines.</div>");
        } else {
            out.push_str(&diff_table(file));
        }
        out.push_str("</div>");
    }
    if comparison.cut {
        out.push_str("<p class=\"note\">The diff is long; not all of it is shown. Fetch the branch to see the rest.</p>");
    }
    out
}

fn pull_body(
    state: &State,
    row: &RepoRow,
    subject: &SubjectRow,
    head: &PullHead,
    comparison: &Comparison,
    write: bool,
    now: DateTime<Utc>,
) -> (String, bool) {
    let name = &row.name;
    let checks: Vec<&CheckRow> =
        row.checks.iter().map(Deref::deref).filter(|check| check.run.head_sha == head.head_sha).collect();
    let live = is_live(state, subject, &checks, now);
    let (class, word) = subject_state(subject);
    let draft = if head.draft && subject.open {
        "<p class=\"dim\">This pull request is a draft: it waits for a person to look at it.</p>"
    } else {
        ""
    };
    let mut commits = String::new();
    for commit in &comparison.commits {
        let rest = if commit.body.trim().is_empty() {
            String::new()
        } else {
            format!(
                "<details><summary class=\"dim\">message</summary><pre>{}</pre></details>",
                escape(commit.body.trim())
            )
        };
        let _ = write!(
            commits,
            "<div class=\"row\"><div class=\"grow\"><b>{}</b>{rest}<div class=\"dim\">{} committed {}</div></div>\
             <span class=\"mono\">{}</span></div>",
            escape(&commit.subject),
            escape(&commit.author),
            ago(commit.when, now),
            commit.id.short()
        );
    }
    let body = format!(
        "<h1>{title} <span class=\"num\">#{number}</span></h1><div class=\"meta\">\
         <span class=\"state {class}\">{word}</span>{author} wants to merge {count} commit{s} into \
         <code class=\"branch\">{base}</code> from <code class=\"branch\">{from}</code></div>\
         <nav class=\"tabs\"><a href=\"#conversation\">Conversation<span>{comments}</span></a>\
         <a href=\"#checks\">Checks<span>{check_count}</span></a><a href=\"#commits\">Commits<span>{count}</span></a>\
         <a href=\"#files\">Files changed<span>{files}</span></a></nav>\
         <section id=\"conversation\">{timeline}</section>{draft}\
         <section id=\"checks\"><div class=\"box\"><div class=\"row head\">Checks on \
         <span class=\"mono\">{short}</span></div>{check_rows}</div></section>{form}\
         <section id=\"commits\"><h2>Commits</h2><div class=\"box\">{commits}</div></section>\
         <section id=\"files\"><h2>Files changed</h2>{diff}</section>",
        title = escape(&subject.title),
        number = subject.number,
        author = who(state, subject.author),
        count = comparison.commits.len(),
        s = if comparison.commits.len() == 1 { "" } else { "s" },
        base = escape(head.base_ref.as_str()),
        from = escape(&match head.head_repo.as_ref().filter(|_| head.fork) {
            Some(fork) => format!("{}:{}", fork.owner(), head.head_ref),
            None => head.head_ref.clone(),
        }),
        comments = subject.comments.len() + subject.reviews.len(),
        check_count = checks.len(),
        files = comparison.files.len(),
        timeline = timeline(state, name, subject, now),
        short = head.head_sha.short(),
        check_rows = check_rows(name, &checks),
        form = comment_form(name, subject, live, write),
        diff = files_section(comparison),
    );
    (body, live)
}

async fn pull(
    Shared(pages): Shared<Pages>,
    Path((owner, name, number)): Path<(String, String, i64)>,
    Query(view): Query<View>,
) -> PageResult {
    let name = repo_name(&owner, &name)?;
    blocking(pages, move |inner, now| {
        let state = inner.lock().clone();
        let row = find_repo(&state, &name)?;
        let subject = row.subject(number).ok_or_else(PageError::not_found)?;
        if subject.pull.is_none() {
            return Ok(Redirect::to(&format!("/forge/{}/issues/{number}", name.as_str())).into_response());
        }
        let bare = inner.bare(&name);
        let head = inner.pull_head(&row, &bare, subject)?;
        let comparison = bare.compare(&head.base_sha, &head.head_sha).map_err(super::failed("read diff"))?;
        let write = view.write.is_some();
        let (body, live) = pull_body(&state, &row, subject, &head, &comparison, write, now);
        let title = format!("{} · Pull request #{number} · {}", subject.title, name.as_str());
        Ok(page(StatusCode::OK, &title, Some(&name), live && !write, &body))
    })
    .await
}

async fn check(
    Shared(pages): Shared<Pages>,
    Path((owner, name, id)): Path<(String, String, i64)>,
) -> PageResult {
    let name = repo_name(&owner, &name)?;
    blocking(pages, move |inner, now| {
        let state = inner.lock().clone();
        let row = find_repo(&state, &name)?;
        let check = row.checks.iter().find(|check| check.id == id).ok_or_else(PageError::not_found)?;
        let live = check.run.status != CheckStatus::Completed
            && (now - check.updated_at).num_minutes() < LIVE_MINUTES;
        let body = format!(
            "<h1>{}</h1><div class=\"meta\">on commit <span class=\"mono\">{}</span> · updated {}</div>\
             <div class=\"box\">{}</div><div class=\"box\"><div class=\"md\">{}</div></div>",
            escape(&check.run.name),
            check.run.head_sha.short(),
            ago(check.updated_at, now),
            check_rows(&name, &[check]),
            render(&check.run.summary, Some(&issues_path(&name)))
        );
        Ok(page(StatusCode::OK, &check.run.name, Some(&name), live, &body))
    })
    .await
}

fn refuse<T>(why: &str) -> Result<T, PageError> {
    Err(PageError {
        status: StatusCode::FORBIDDEN,
        text: format!("This form was refused: {why}. Open the page on this server and send it from there."),
    })
}

/// Refuses requests to a foreign name that was pointed at this address (DNS rebinding). Gives the host.
fn known_host<'h>(inner: &Inner, headers: &'h HeaderMap) -> Result<&'h str, PageError> {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    let Some(host) = host else { return refuse("the request names no host") };
    let own = url::Url::parse(&inner.web_url)
        .ok()
        .and_then(|url| url.host_str().map(|name| (name.to_owned(), url.port_or_known_default())));
    let bare_host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let known = matches!(bare_host, "localhost" | "127.0.0.1" | "[::1]")
        || own.is_some_and(|(name, port)| {
            host == name || port.is_some_and(|port| host == format!("{name}:{port}"))
        });
    if known { Ok(host) } else { refuse("it was sent to a host name that is not this server's") }
}

/// Refuses forms of other sites: a browser names the page a form was sent from, and the host must be this one.
fn same_origin(inner: &Inner, headers: &HeaderMap) -> Result<(), PageError> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = known_host(inner, headers)?;
    match text(HeaderName::from_static("sec-fetch-site")) {
        Some("same-origin") => Ok(()),
        Some(_) => refuse("it came from another site"),
        None => match text(header::ORIGIN) {
            Some(origin) if origin == format!("http://{host}") || origin == format!("https://{host}") => {
                Ok(())
            }
            Some(_) => refuse("it came from another site"),
            None => refuse("the browser did not say which page it came from"),
        },
    }
}

#[derive(Debug, Deserialize)]
struct CommentForm {
    #[serde(default)]
    body: String,
    /// `close` or `reopen`: the second button.
    #[serde(default)]
    set: Option<String>,
}

async fn send(pages: &Pages, webhooks: Vec<Webhook>, back: &str) -> PageResult {
    for webhook in webhooks {
        if let Err(why) = (pages.hook)(webhook).await {
            return Err(PageError {
                status: StatusCode::BAD_GATEWAY,
                text: format!("What you wrote is stored, but the server did not take its webhook: {why}"),
            });
        }
    }
    Ok(Redirect::to(back).into_response())
}

async fn post_comment(
    Shared(pages): Shared<Pages>,
    Path((owner, name, number)): Path<(String, String, i64)>,
    headers: HeaderMap,
    Form(form): Form<CommentForm>,
) -> PageResult {
    same_origin(&pages.forge.inner, &headers)?;
    let name = repo_name(&owner, &name)?;
    let forge = pages.forge.clone();
    let written = tokio::task::spawn_blocking(move || {
        let (repo, kind) = {
            let state = forge.inner.lock();
            let row = find_repo(&state, &name)?;
            let subject = row.subject(number).ok_or_else(PageError::not_found)?;
            (row.repo(), if subject.pull.is_some() { "pull" } else { "issues" })
        };
        let mut back = format!("/forge/{}/{kind}/{number}", name.as_str());
        let mut webhooks = Vec::new();
        // Browsers send CRLF; everybody else means LF.
        let body = form.body.replace("\r\n", "\n");
        if form.set.is_none() || !body.trim().is_empty() {
            let (id, webhook) = forge.comment(&repo, &forge.owner(), number, &body)?;
            back.push_str(&format!("#issuecomment-{id}"));
            webhooks.push(webhook);
        }
        if let Some(set) = form.set {
            webhooks.push(forge.set_open(&repo, &forge.owner(), number, set == "reopen")?);
        }
        Ok::<_, PageError>((webhooks, back))
    });
    let (webhooks, back) = written.await.unwrap_or_else(|_| Err(PageError::not_found()))?;
    send(&pages, webhooks, &back).await
}

/// Takes a file as the whole body (`curl -T crash.log …/files/crash.log`) and answers with its link in Markdown, to be
/// written into an issue or comment. Other sites cannot send a PUT here: browsers ask first, and nobody says yes.
async fn upload(
    Shared(pages): Shared<Pages>,
    Path((owner, name, file)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> PageResult {
    known_host(&pages.forge.inner, &headers)?;
    let name = repo_name(&owner, &name)?;
    let kept = tokio::task::spawn_blocking(move || {
        let repo = find_repo(&pages.forge.inner.lock(), &name)?.repo();
        Ok::<_, PageError>(pages.forge.attach(&repo, &file, &body)?)
    });
    let link = kept.await.unwrap_or_else(|_| Err(PageError::not_found()))?;
    let answer = (StatusCode::CREATED, format!("{link}\n")).into_response();
    Ok(with_headers(answer, "text/plain; charset=utf-8"))
}

/// A file that somebody attached: shown as an image when it is one, else saved, never run in the browser.
async fn download(
    Shared(pages): Shared<Pages>,
    Path((owner, name, id, file)): Path<(String, String, i64, String)>,
) -> PageResult {
    let name = repo_name(&owner, &name)?;
    blocking(pages, move |inner, _| {
        let row = find_repo(&inner.lock().clone(), &name)?;
        let bytes = inner.upload(row.id, id, &file, MAX_UPLOAD_BYTES)?;
        let kind = match attachment::judge(&bytes) {
            Ok(Kind::Image { format, .. }) => format.media_type(),
            Ok(Kind::Text) => "text/plain; charset=utf-8",
            Err(_) => "application/octet-stream",
        };
        Ok(with_headers(bytes.into_response(), kind))
    })
    .await
}

#[derive(Debug, Deserialize)]
struct IssueForm {
    title: String,
    #[serde(default)]
    body: String,
}

async fn new_issue(Shared(pages): Shared<Pages>, Path((owner, name)): Path<(String, String)>) -> PageResult {
    let name = repo_name(&owner, &name)?;
    find_repo(&pages.forge.inner.lock(), &name)?;
    let body = format!(
        "<h1>New issue</h1><section class=\"box\"><form method=\"post\" action=\"/forge/{}/issues/new\">\
         <input type=\"text\" name=\"title\" required maxlength=\"256\" placeholder=\"Title\" aria-label=\"Title\">\
         <textarea name=\"body\" maxlength=\"65536\" placeholder=\"What is wrong, and how to see it\" aria-label=\"Description\"></textarea>\
         <div class=\"foot\"><span class=\"dim\">A line <code>/zeblit fix</code> starts a run at once.</span>\
         <button type=\"submit\">Open issue</button></div></form></section>",
        escape(name.as_str())
    );
    Ok(page(StatusCode::OK, "New issue", Some(&name), false, &body))
}

async fn post_issue(
    Shared(pages): Shared<Pages>,
    Path((owner, name)): Path<(String, String)>,
    headers: HeaderMap,
    Form(form): Form<IssueForm>,
) -> PageResult {
    same_origin(&pages.forge.inner, &headers)?;
    let name = repo_name(&owner, &name)?;
    let forge = pages.forge.clone();
    let written = tokio::task::spawn_blocking(move || {
        let repo: Repo = find_repo(&forge.inner.lock(), &name)?.repo();
        let body = form.body.replace("\r\n", "\n");
        let (number, webhook) = forge.open_issue(&repo, &forge.owner(), form.title.trim(), &body)?;
        Ok::<_, PageError>((webhook, format!("/forge/{}/issues/{number}", name.as_str())))
    });
    let (webhook, back) = written.await.unwrap_or_else(|_| Err(PageError::not_found()))?;
    send(&pages, vec![webhook], &back).await
}
