//! GitHub payloads: only the fields we use, optional wherever GitHub may drop them.

use crate::domain::command::{self, Verb};
use crate::domain::event::{
    Actor, ActorKind, Comment, CommentAction, Decoded, Event, EventKind, PullHead, Repo, Source, Subject,
    SubjectKind, Surface,
};
use crate::domain::ids::{BranchName, RepoName, Sha};
use crate::domain::wording;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;

/// What `after` holds in a push that deletes the branch.
const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

#[derive(Deserialize)]
struct Kind {
    action: Option<String>,
}

#[derive(Deserialize)]
struct Payload {
    repository: Option<RawRepo>,
    installation: Option<RawInstallation>,
    sender: Option<RawActor>,
    issue: Option<RawSubject>,
    pull_request: Option<RawSubject>,
    comment: Option<RawComment>,
    review: Option<RawComment>,
    changes: Option<RawChanges>,
    check_run: Option<RawCheckRun>,
    label: Option<RawLabel>,
    #[serde(rename = "ref")]
    git_ref: Option<String>,
    after: Option<String>,
    repositories: Option<Vec<RawRepo>>,
    repositories_added: Option<Vec<RawRepo>>,
    repositories_removed: Option<Vec<RawRepo>>,
}

#[derive(Deserialize)]
struct RawRepo {
    id: i64,
    full_name: String,
    private: Option<bool>,
    default_branch: Option<String>,
}

#[derive(Deserialize)]
struct RawInstallation {
    id: i64,
    account: Option<RawAccount>,
}

#[derive(Deserialize)]
struct RawAccount {
    login: Option<String>,
    /// Enterprise accounts have a slug and no login.
    slug: Option<String>,
}

#[derive(Deserialize)]
struct RawActor {
    id: i64,
    login: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct RawApp {
    id: i64,
}

/// An issue or a pull request: the fields that both have, and those of a pull request.
#[derive(Deserialize)]
struct RawSubject {
    id: i64,
    node_id: Option<String>,
    number: i64,
    title: Option<String>,
    body: Option<String>,
    user: Option<RawActor>,
    html_url: Option<String>,
    state: Option<String>,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
    performed_via_github_app: Option<RawApp>,
    /// On an issue: it is a pull request.
    pull_request: Option<IgnoredAny>,
    head: Option<RawSide>,
    base: Option<RawSide>,
    merged: Option<bool>,
    merged_at: Option<String>,
    draft: Option<bool>,
}

#[derive(Deserialize)]
struct RawSide {
    #[serde(rename = "ref")]
    name: String,
    sha: String,
    /// `null` when the fork was deleted.
    repo: Option<RawRepo>,
}

/// A comment, a review comment or a review.
#[derive(Deserialize)]
struct RawComment {
    id: i64,
    node_id: Option<String>,
    body: Option<String>,
    user: Option<RawActor>,
    html_url: Option<String>,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
    submitted_at: Option<DateTime<Utc>>,
    performed_via_github_app: Option<RawApp>,
    path: Option<String>,
    line: Option<i64>,
    pull_request_review_id: Option<i64>,
    commit_id: Option<String>,
    diff_hunk: Option<String>,
    in_reply_to_id: Option<i64>,
}

#[derive(Deserialize)]
struct RawChanges {
    body: Option<RawFrom<String>>,
    repository: Option<RawRenamed>,
    owner: Option<RawFrom<RawOwner>>,
}

#[derive(Deserialize)]
struct RawFrom<T> {
    from: Option<T>,
}

#[derive(Deserialize)]
struct RawRenamed {
    name: Option<RawFrom<String>>,
}

#[derive(Deserialize)]
struct RawOwner {
    user: Option<RawAccount>,
    organization: Option<RawAccount>,
}

#[derive(Deserialize)]
struct RawCheckRun {
    external_id: Option<String>,
    head_sha: String,
}

#[derive(Deserialize)]
struct RawLabel {
    name: Option<String>,
}

/// Labels that stand for a command begin so; the rest is its verb.
const LABEL_PREFIX: &str = "zeblit:";

/// Verbs that need no words besides.
const LABEL_VERBS: [Verb; 4] = [Verb::Fix, Verb::Review, Verb::Retry, Verb::Continue];

/// Why a delivery gives no event.
enum Refused {
    Ignored(String),
    Unreadable(String),
}

fn ignored(reason: impl Into<String>) -> Refused {
    Refused::Ignored(super::reason(&reason.into()))
}

fn missing(field: &str) -> Refused {
    Refused::Unreadable(format!("`{field}` is missing"))
}

/// Which actions of an event are acted on. Every other one is ignored before its payload is read:
/// its shape is none of our business.
fn used_actions(event: &str) -> &'static [&'static str] {
    match event {
        "issue_comment" | "pull_request_review_comment" => &["created", "edited"],
        "issues" => &["opened", "edited", "closed", "reopened", "labeled"],
        "pull_request" => &["opened", "edited", "closed", "reopened", "synchronize", "labeled"],
        "pull_request_review" => &["submitted", "edited"],
        "check_run" => &["rerequested"],
        "installation" => &["created", "deleted", "suspend", "unsuspend", "new_permissions_accepted"],
        "installation_repositories" => &["added", "removed"],
        "repository" => &["renamed", "transferred", "deleted"],
        "push" | "ping" => &[""],
        _ => &[],
    }
}

/// See [`super::unread`].
pub(super) fn unread(event: &str, raw: &[u8]) -> Option<String> {
    if used_actions(event).is_empty() {
        return Some(super::reason(&nothing_done_on(event)));
    }
    // Whatever else these do, they do it by a command.
    let by_command = matches!(event, "issue_comment" | "pull_request_review_comment" | "pull_request_review");
    (by_command && !command::may_stand_in_json(raw)).then(|| wording::NO_COMMAND.to_owned())
}

fn nothing_done_on(name: &str) -> String {
    format!("nothing is done on GitHub `{name}`")
}

pub(super) fn decode(event: &str, raw: &[u8]) -> Decoded {
    let raw = json_of(raw);
    match event_of(event, &raw) {
        Ok(event) => Decoded::Event(Box::new(event)),
        Err(Refused::Ignored(reason)) => Decoded::Ignored(reason),
        Err(Refused::Unreadable(reason)) => Decoded::Unreadable(reason),
    }
}

/// A hook of content type `application/x-www-form-urlencoded` carries its JSON in the field `payload`.
fn json_of(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.starts_with(b"payload=") {
        return Cow::Borrowed(raw);
    }
    url::form_urlencoded::parse(raw)
        .find(|(key, _)| key == "payload")
        .map_or(Cow::Borrowed(raw), |(_, value)| Cow::Owned(value.into_owned().into_bytes()))
}

fn event_of(event: &str, raw: &[u8]) -> Result<Event, Refused> {
    let Kind { action } = super::read(raw).map_err(Refused::Unreadable)?;
    let action = action.unwrap_or_default();
    if !used_actions(event).contains(&action.as_str()) {
        let name = if action.is_empty() { event.to_owned() } else { format!("{event}.{action}") };
        return Err(ignored(nothing_done_on(&name)));
    }
    let mut payload: Payload = super::read(raw).map_err(Refused::Unreadable)?;
    let installation = payload.installation.as_ref().map(|installation| installation.id);
    let default_branch = payload.repository.as_mut().and_then(|repo| repo.default_branch.take());
    let repo = payload.repository.take().map(|raw| repo_of(raw, installation)).transpose()?;
    let sender = payload.sender.take().map(actor_of);
    let kind = match event {
        "issue_comment" => comment(&mut payload, &action)?,
        "issues" if action == "labeled" => {
            labeled(payload.issue.take(), "issue", payload.label.take(), sender.as_ref())?
        }
        "pull_request" if action == "labeled" => {
            labeled(payload.pull_request.take(), "pull_request", payload.label.take(), sender.as_ref())?
        }
        "issues" => subject_event(payload.issue.take(), "issue", payload.changes.take(), &action)?,
        "pull_request" => {
            subject_event(payload.pull_request.take(), "pull_request", payload.changes.take(), &action)?
        }
        "pull_request_review" => review(&mut payload, &action)?,
        "pull_request_review_comment" => review_comment(&mut payload, &action)?,
        "push" => push(&payload, default_branch.as_deref())?,
        "check_run" => check_run(payload.check_run.take())?,
        "installation" => installation_event(&mut payload, &action)?,
        "installation_repositories" => EventKind::InstallationReposChanged {
            added: listed(payload.repositories_added.take())?,
            removed: listed(payload.repositories_removed.take())?,
        },
        "repository" => repository(&mut payload, repo.as_ref(), &action)?,
        _ => EventKind::Ping,
    };
    let about_installation =
        matches!(event, "installation" | "installation_repositories") && installation.is_none();
    if about_installation {
        return Err(missing("installation"));
    }
    let needs_repo = !matches!(event, "installation" | "installation_repositories" | "ping");
    if needs_repo && repo.is_none() {
        return Err(missing("repository"));
    }
    Ok(Event { source: Source::Github, repo, installation, sender, kind })
}

/// Runs are keyed by the node id of the comment that asked: where GitHub leaves it out, the number stands for it.
fn node_id_of(raw: Option<String>, what: &str, id: i64) -> String {
    let node_id = text(raw);
    if node_id.is_empty() { format!("{what}-{id}") } else { node_id }
}

/// NUL is no text: no database column would take it.
fn text(value: Option<String>) -> String {
    let mut value = value.unwrap_or_default();
    value.retain(|c| c != '\0');
    value
}

fn invalid(error: crate::domain::ids::InvalidId) -> Refused {
    Refused::Unreadable(super::reason(&error.to_string()))
}

fn repo_of(raw: RawRepo, installation: Option<i64>) -> Result<Repo, Refused> {
    Ok(Repo {
        id: raw.id,
        name: RepoName::parse(&raw.full_name).map_err(invalid)?,
        installation: installation.unwrap_or(0),
        // Unknown counts as public: the bot is quieter there.
        private: raw.private.unwrap_or(false),
    })
}

fn listed(repos: Option<Vec<RawRepo>>) -> Result<Vec<(i64, RepoName)>, Refused> {
    repos
        .unwrap_or_default()
        .into_iter()
        .map(|raw| Ok((raw.id, RepoName::parse(&raw.full_name).map_err(invalid)?)))
        .collect()
}

fn actor_of(raw: RawActor) -> Actor {
    let kind = match raw.kind.as_deref() {
        Some("Bot") => ActorKind::Bot,
        Some("Organization") => ActorKind::Organization,
        _ => ActorKind::User,
    };
    Actor { id: raw.id, login: text(Some(raw.login)), kind }
}

/// The author of a text. An account that is gone shows as GitHub's `ghost`, with an id that nobody has.
fn author_of(raw: Option<RawActor>) -> Actor {
    raw.map_or(Actor { id: 0, login: "ghost".to_owned(), kind: ActorKind::User }, actor_of)
}

fn number_of(raw: &RawSubject, field: &str) -> Result<i64, Refused> {
    if raw.number > 0 {
        Ok(raw.number)
    } else {
        Err(Refused::Unreadable(format!("`{field}.number` is {}, not a number of an issue", raw.number)))
    }
}

fn subject_of(raw: RawSubject, field: &str) -> Result<Subject, Refused> {
    Ok(Subject {
        kind: kind_of(&raw, field),
        number: number_of(&raw, field)?,
        title: text(raw.title),
        body: text(raw.body),
        author: author_of(raw.user),
        url: text(raw.html_url),
        open: raw.state.as_deref() != Some("closed"),
    })
}

fn kind_of(raw: &RawSubject, field: &str) -> SubjectKind {
    if field == "pull_request" || raw.pull_request.is_some() {
        SubjectKind::PullRequest
    } else {
        SubjectKind::Issue
    }
}

fn was_merged(raw: &RawSubject) -> bool {
    raw.merged.unwrap_or(raw.merged_at.is_some())
}

/// The head, when the payload has all of it in a form that we accept; else it must be asked for,
/// and what is wrong with it is said there.
fn pull_of(raw: &RawSubject) -> Option<PullHead> {
    let (head, base) = (raw.head.as_ref()?, raw.base.as_ref()?);
    let base_repo = base.repo.as_ref()?;
    let head_repo = match &head.repo {
        Some(repo) => Some(RepoName::parse(&repo.full_name).ok()?),
        None => None,
    };
    Some(PullHead {
        number: raw.number,
        head_sha: Sha::parse(&head.sha).ok()?,
        head_ref: text(Some(head.name.clone())),
        head_repo,
        base_ref: BranchName::parse(&base.name).ok()?,
        base_sha: Sha::parse(&base.sha).ok()?,
        fork: head.repo.as_ref().is_none_or(|repo| repo.id != base_repo.id),
        open: raw.state.as_deref() != Some("closed"),
        merged: was_merged(raw),
        draft: raw.draft.unwrap_or(false),
    })
}

/// What an edit changed. The new text was written when it was edited.
fn action_of(action: &str, changes: Option<RawChanges>) -> CommentAction {
    if action != "edited" {
        return CommentAction::Created;
    }
    let before = changes.and_then(|changes| changes.body).and_then(|body| body.from);
    CommentAction::Edited { before: before.map(|before| text(Some(before))) }
}

fn written(
    action: &str,
    created: Option<DateTime<Utc>>,
    updated: Option<DateTime<Utc>>,
    field: &str,
) -> Result<DateTime<Utc>, Refused> {
    let time = if action == "edited" { updated.or(created) } else { created.or(updated) };
    time.ok_or_else(|| missing(&format!("{field}.created_at")))
}

fn comment_event(
    raw: RawComment,
    field: &str,
    surface: Surface,
    subject: Subject,
    pull: Option<PullHead>,
    changes: Option<RawChanges>,
    action: &str,
) -> Result<EventKind, Refused> {
    let written_at = written(action, raw.created_at.or(raw.submitted_at), raw.updated_at, field)?;
    Ok(EventKind::Comment(Box::new(Comment {
        surface,
        action: action_of(action, changes),
        subject,
        pull,
        id: raw.id,
        node_id: node_id_of(raw.node_id, field, raw.id),
        body: text(raw.body),
        author: author_of(raw.user),
        app_id: raw.performed_via_github_app.map(|app| app.id),
        url: text(raw.html_url),
        written_at,
    })))
}

fn comment(payload: &mut Payload, action: &str) -> Result<EventKind, Refused> {
    let raw = payload.comment.take().ok_or_else(|| missing("comment"))?;
    let subject = subject_of(payload.issue.take().ok_or_else(|| missing("issue"))?, "issue")?;
    comment_event(raw, "comment", Surface::Conversation, subject, None, payload.changes.take(), action)
}

fn review(payload: &mut Payload, action: &str) -> Result<EventKind, Refused> {
    let raw = payload.review.take().ok_or_else(|| missing("review"))?;
    let pull = payload.pull_request.take().ok_or_else(|| missing("pull_request"))?;
    let head = pull_of(&pull);
    let subject = subject_of(pull, "pull_request")?;
    comment_event(raw, "review", Surface::Review, subject, head, payload.changes.take(), action)
}

fn review_comment(payload: &mut Payload, action: &str) -> Result<EventKind, Refused> {
    let mut raw = payload.comment.take().ok_or_else(|| missing("comment"))?;
    let pull = payload.pull_request.take().ok_or_else(|| missing("pull_request"))?;
    let head = pull_of(&pull);
    let subject = subject_of(pull, "pull_request")?;
    let surface = Surface::ReviewComment {
        path: text(Some(raw.path.take().ok_or_else(|| missing("comment.path"))?)),
        line: raw.line,
        review: raw.pull_request_review_id,
        commit: raw.commit_id.as_deref().and_then(|sha| Sha::parse(sha).ok()),
        diff_hunk: text(raw.diff_hunk.take()),
        thread: raw.in_reply_to_id.unwrap_or(raw.id),
    };
    comment_event(raw, "comment", surface, subject, head, payload.changes.take(), action)
}

/// What happens to an issue or pull request itself.
fn subject_event(
    raw: Option<RawSubject>,
    field: &str,
    changes: Option<RawChanges>,
    action: &str,
) -> Result<EventKind, Refused> {
    let mut raw = raw.ok_or_else(|| missing(field))?;
    let number = number_of(&raw, field)?;
    let kind = kind_of(&raw, field);
    match action {
        "closed" => {
            let merged = kind == SubjectKind::PullRequest && was_merged(&raw);
            Ok(EventKind::SubjectClosed { kind, number, merged })
        }
        "reopened" => Ok(EventKind::SubjectReopened { kind, number }),
        "synchronize" => {
            let head = raw.head.as_ref().ok_or_else(|| missing("pull_request.head"))?;
            let head = Sha::parse(&head.sha).map_err(invalid)?;
            Ok(EventKind::PullPushed { number, head, at: raw.updated_at })
        }
        _ => {
            let pull = if kind == SubjectKind::PullRequest { pull_of(&raw) } else { None };
            let written_at = written(action, raw.created_at, raw.updated_at, field)?;
            let (id, app) = (raw.id, raw.performed_via_github_app.take());
            let node_id = node_id_of(raw.node_id.take(), field, raw.id);
            let subject = subject_of(raw, field)?;
            Ok(EventKind::Comment(Box::new(Comment {
                surface: Surface::Opening,
                action: action_of(action, changes),
                pull,
                id,
                node_id,
                body: subject.body.clone(),
                author: subject.author.clone(),
                app_id: app.map(|app| app.id),
                url: subject.url.clone(),
                written_at,
                subject,
            })))
        }
    }
}

/// A label that stands for a command, by whoever put it there.
fn labeled(
    raw: Option<RawSubject>,
    field: &str,
    label: Option<RawLabel>,
    sender: Option<&Actor>,
) -> Result<EventKind, Refused> {
    let name = text(label.ok_or_else(|| missing("label"))?.name);
    let verb = name.strip_prefix(LABEL_PREFIX).unwrap_or_default();
    let Some(verb) = LABEL_VERBS.into_iter().find(|known| known.name() == verb) else {
        return Err(ignored(format!("the label `{name}` stands for no command")));
    };
    let raw = raw.ok_or_else(|| missing(field))?;
    let pull = if kind_of(&raw, field) == SubjectKind::PullRequest { pull_of(&raw) } else { None };
    let at = written("labeled", raw.updated_at, raw.created_at, field)?;
    let (id, subject_node) = (raw.id, node_id_of(raw.node_id.clone(), field, raw.id));
    let subject = subject_of(raw, field)?;
    Ok(EventKind::Comment(Box::new(Comment {
        action: CommentAction::Created,
        pull,
        id,
        // Putting the label there again is another request; GitHub gives the act no id of its own.
        node_id: format!("{subject_node}:{name}:{}", at.timestamp_millis()),
        body: format!("/zeblit {}", verb.name()),
        author: sender.cloned().ok_or_else(|| missing("sender"))?,
        app_id: None,
        url: subject.url.clone(),
        written_at: at,
        subject,
        surface: Surface::Label { name },
    })))
}

fn push(payload: &Payload, default_branch: Option<&str>) -> Result<EventKind, Refused> {
    let name = payload.git_ref.as_deref().ok_or_else(|| missing("ref"))?;
    let Some(branch) = name.strip_prefix("refs/heads/") else {
        return Err(ignored(format!("a push to `{name}`, which is not a branch")));
    };
    let branch = BranchName::parse(branch)
        .map_err(|error| ignored(format!("a push to a branch that runs cannot use: {error}")))?;
    let after = match payload.after.as_deref() {
        None | Some(NO_COMMIT) => None,
        Some(sha) => Some(Sha::parse(sha).map_err(invalid)?),
    };
    let is_default = default_branch == Some(branch.as_str());
    Ok(EventKind::Pushed { branch, after, is_default })
}

fn check_run(raw: Option<RawCheckRun>) -> Result<EventKind, Refused> {
    let raw = raw.ok_or_else(|| missing("check_run"))?;
    let external_id = text(raw.external_id);
    if external_id.is_empty() {
        return Err(ignored("a re-run of a check that is not ours: it has no external id"));
    }
    Ok(EventKind::CheckRerequested { external_id, head_sha: Sha::parse(&raw.head_sha).map_err(invalid)? })
}

fn installation_event(payload: &mut Payload, action: &str) -> Result<EventKind, Refused> {
    match action {
        "created" | "new_permissions_accepted" => {
            let account = payload.installation.take().and_then(|installation| installation.account);
            Ok(EventKind::InstallationCreated {
                account: account.and_then(name_of).ok_or_else(|| missing("installation.account.login"))?,
                repos: listed(payload.repositories.take())?,
            })
        }
        "deleted" => Ok(EventKind::InstallationDeleted),
        action => Ok(EventKind::InstallationSuspended { suspended: action == "suspend" }),
    }
}

fn name_of(account: RawAccount) -> Option<String> {
    account.login.or(account.slug).map(|name| text(Some(name)))
}

fn repository(payload: &mut Payload, repo: Option<&Repo>, action: &str) -> Result<EventKind, Refused> {
    let repo = repo.ok_or_else(|| missing("repository"))?;
    let changes = payload.changes.take();
    let from = match action {
        "deleted" => return Ok(EventKind::RepoDeleted),
        "renamed" => {
            let before = changes.and_then(|c| c.repository).and_then(|r| r.name).and_then(|name| name.from);
            let before = before.ok_or_else(|| missing("changes.repository.name.from"))?;
            format!("{}/{before}", repo.name.owner())
        }
        _ => {
            let before = changes.and_then(|changes| changes.owner).and_then(|owner| owner.from);
            let before = before.and_then(|from| from.user.or(from.organization)).and_then(name_of);
            let before = before.ok_or_else(|| missing("changes.owner.from"))?;
            format!("{before}/{}", repo.name.name())
        }
    };
    Ok(EventKind::RepoMoved { from: RepoName::parse(&from).map_err(invalid)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    macro_rules! fixtures {
        ($($name:literal),* $(,)?) => {
            &[$(($name, include_bytes!(concat!("../../tests/fixtures/github/", $name, ".json")))),*]
        };
    }

    /// Every recorded delivery; the event is the part of the name before the dot.
    const FIXTURES: &[(&str, &[u8])] = fixtures![
        "check_run.requested_action",
        "check_run.rerequested",
        "check_suite.completed",
        "installation.created",
        "issue_comment.created",
        "issue_comment.edited",
        "issues.assigned",
        "issues.labeled",
        "ping",
        "pull_request.opened",
        "pull_request.synchronize",
        "pull_request_review.submitted",
        "pull_request_review_comment.created",
        "push",
        "workflow_run.completed",
    ];

    fn fixture(name: &str) -> (&'static str, &'static [u8]) {
        let (name, bytes) = FIXTURES.iter().find(|(known, _)| *known == name).expect("a known fixture");
        (name.split('.').next().unwrap_or(name), bytes)
    }

    fn value(name: &str) -> Value {
        serde_json::from_slice(fixture(name).1).unwrap()
    }

    fn decoded(name: &str) -> Decoded {
        let (event, bytes) = fixture(name);
        decode(event, bytes)
    }

    fn with(name: &str, change: impl FnOnce(&mut Value)) -> Decoded {
        let mut payload = value(name);
        change(&mut payload);
        decode(fixture(name).0, payload.to_string().as_bytes())
    }

    fn event(decoded: Decoded) -> Event {
        match decoded {
            Decoded::Event(event) => *event,
            other => panic!("no event: {other:?}"),
        }
    }

    fn kind(decoded: Decoded) -> EventKind {
        event(decoded).kind
    }

    fn comment_in(decoded: Decoded) -> Comment {
        match kind(decoded) {
            EventKind::Comment(comment) => *comment,
            other => panic!("no comment: {other:?}"),
        }
    }

    /// One line per decoded delivery, so that a table can hold it.
    fn line(decoded: Decoded) -> String {
        match decoded {
            Decoded::Ignored(reason) => format!("ignored: {reason}"),
            Decoded::NotYetHandled(reason) => format!("later: {reason}"),
            Decoded::Unreadable(reason) => format!("unreadable: {reason}"),
            Decoded::Event(event) => {
                let repo = event.repo.as_ref().map_or("-", |repo| repo.name.as_str()).to_owned();
                let what = match event.kind {
                    EventKind::Comment(c) => format!(
                        "comment {} on {:?} {} {:?} pull={}",
                        c.id,
                        c.subject.kind,
                        c.subject.number,
                        c.surface,
                        c.pull.is_some()
                    ),
                    other => format!("{other:?}"),
                };
                format!("{repo} by {}: {what}", event.sender.map_or(0, |sender| sender.id))
            }
        }
    }

    fn check(name: &str, expected: &str) {
        assert_eq!(line(decoded(name)), expected, "{name}");
    }

    #[test]
    fn recorded_deliveries_decode_as_the_table_says() {
        check(
            "check_run.requested_action",
            "ignored: nothing is done on GitHub `check_run.requested_action`",
        );
        check(
            "check_run.rerequested",
            "ignored: a re-run of a check that is not ours: it has no external id",
        );
        check("check_suite.completed", "ignored: nothing is done on GitHub `check_suite.completed`");
        check(
            "installation.created",
            r#"- by 21031067: InstallationCreated { account: "Codertocat", repos: [(186853002, RepoName("Codertocat/Hello-World"))] }"#,
        );
        check(
            "issue_comment.created",
            "Codertocat/Hello-World by 21031067: comment 492700400 on Issue 1 Conversation pull=false",
        );
        check(
            "issue_comment.edited",
            "Codertocat/Hello-World by 21031067: comment 492700400 on Issue 1 Conversation pull=false",
        );
        check("issues.assigned", "ignored: nothing is done on GitHub `issues.assigned`");
        check("issues.labeled", "ignored: the label `bug` stands for no command");
        check("ping", "Octocoders/Hello-World by 21031067: Ping");
        check(
            "pull_request.opened",
            "Codertocat/Hello-World by 21031067: comment 279147437 on PullRequest 2 Opening pull=true",
        );
        check(
            "pull_request.synchronize",
            r#"Codertocat/Hello-World by 21031067: PullPushed { number: 2, head: Sha("ec26c3e57ca3a959ca5aad62de7213c562f8c821"), at: Some(2019-05-15T15:20:33Z) }"#,
        );
        check(
            "pull_request_review.submitted",
            "Codertocat/Hello-World by 21031067: comment 237895671 on PullRequest 2 Review pull=true",
        );
        check(
            "pull_request_review_comment.created",
            r#"Codertocat/Hello-World by 21031067: comment 284312630 on PullRequest 2 ReviewComment { path: "README.md", line: Some(265), review: Some(237895671), commit: Some(Sha("ec26c3e57ca3a959ca5aad62de7213c562f8c821")), diff_hunk: "@@ -1 +1 @@\n-# Hello-World", thread: 284312630 } pull=true"#,
        );
        check("push", "ignored: a push to `refs/tags/simple-tag`, which is not a branch");
        check("workflow_run.completed", "ignored: nothing is done on GitHub `workflow_run.completed`");
    }

    #[test]
    fn a_comment_carries_all_that_a_decision_needs() {
        let event = event(decoded("issue_comment.created"));
        assert_eq!(event.sender.as_ref().map(|s| s.login.as_str()), Some("Codertocat"));
        let comment = comment_in(decoded("issue_comment.created"));
        assert_eq!(comment.body, "You are totally right! I'll get this fixed right away.");
        assert_eq!(comment.action, CommentAction::Created);
        assert_eq!(comment.author.id, 21031067);
        assert_eq!(comment.node_id, "MDEyOklzc3VlQ29tbWVudDQ5MjcwMDQwMA==");
        assert_eq!(comment.app_id, None);
        assert_eq!(comment.written_at.to_rfc3339(), "2019-05-15T15:20:21+00:00");
        assert!(comment.subject.open);
        assert_eq!(comment.subject.title, "Spelling error in the README file");
        assert!(comment.url.ends_with("#issuecomment-492700400"), "{}", comment.url);
    }

    #[test]
    fn an_edit_carries_the_text_before_it_and_the_time_of_the_edit() {
        let comment = comment_in(decoded("issue_comment.edited"));
        assert_eq!(
            comment.action,
            CommentAction::Edited {
                before: Some("You are totally right! I'll get this fixed right away.".into())
            }
        );
        assert_eq!(comment.written_at.to_rfc3339(), "2019-05-15T15:20:22+00:00");
        let title_only = comment_in(with("issue_comment.edited", |p| {
            p["changes"] = json!({"title": {"from": "x"}});
        }));
        assert_eq!(title_only.action, CommentAction::Edited { before: None });
    }

    #[test]
    fn a_comment_on_a_pull_request_is_told_by_the_pull_request_field_of_its_issue() {
        let comment = comment_in(with("issue_comment.created", |p| {
            p["issue"]["pull_request"] = json!({"url": "https://api.github.com/x"});
        }));
        assert_eq!(comment.subject.kind, SubjectKind::PullRequest);
        assert_eq!(comment.pull, None);
        let null = comment_in(with("issue_comment.created", |p| p["issue"]["pull_request"] = Value::Null));
        assert_eq!(null.subject.kind, SubjectKind::Issue);
    }

    #[test]
    fn the_app_that_wrote_a_comment_is_known() {
        let comment = comment_in(with("issue_comment.created", |p| {
            p["comment"]["performed_via_github_app"] = json!({"id": 4242, "slug": "zeblit"});
        }));
        assert_eq!(comment.app_id, Some(4242));
    }

    #[test]
    fn senders_are_users_bots_or_organisations() {
        for (kind, expected) in [
            (json!("User"), ActorKind::User),
            (json!("Bot"), ActorKind::Bot),
            (json!("Organization"), ActorKind::Organization),
            (json!("Mannequin"), ActorKind::User),
            (Value::Null, ActorKind::User),
        ] {
            let event = event(with("issue_comment.created", |p| p["sender"]["type"] = kind));
            assert_eq!(event.sender.unwrap().kind, expected);
        }
    }

    #[test]
    fn a_deleted_account_is_a_ghost_that_nobody_is() {
        let comment = comment_in(with("issue_comment.created", |p| {
            p["comment"]["user"] = Value::Null;
            p["issue"]["user"] = Value::Null;
        }));
        assert_eq!((comment.author.id, comment.author.login.as_str()), (0, "ghost"));
        assert_eq!(comment.subject.author.id, 0);
    }

    #[test]
    fn the_installation_and_privacy_of_a_repository_are_kept() {
        let repo = event(with("issue_comment.created", |p| {
            p["installation"] = json!({"id": 77});
            p["repository"]["private"] = json!(true);
        }));
        assert_eq!(repo.installation, Some(77));
        let repo = repo.repo.unwrap();
        assert_eq!((repo.id, repo.installation, repo.private), (186853002, 77, true));
        let bare = event(with("issue_comment.created", |p| {
            let p = p.as_object_mut().unwrap();
            p.remove("installation");
            p["repository"].as_object_mut().unwrap().remove("private");
        }));
        assert_eq!(bare.installation, None);
        assert_eq!(bare.repo.map(|repo| (repo.installation, repo.private)), Some((0, false)));
    }

    #[test]
    fn pull_request_heads_tell_forks_from_branches() {
        let pull = comment_in(decoded("pull_request.opened")).pull.unwrap();
        assert_eq!(pull.head_ref, "changes");
        assert_eq!(pull.base_ref.as_str(), "master");
        assert_eq!(pull.head_sha.as_str(), "ec26c3e57ca3a959ca5aad62de7213c562f8c821");
        assert_eq!(pull.base_sha.as_str(), "f95f852bd8fca8fcc58a9a2d6c842781e32a215e");
        assert!(!pull.fork && pull.open && !pull.merged && !pull.draft);
        let fork = comment_in(with("pull_request.opened", |p| {
            p["pull_request"]["head"]["repo"]["id"] = json!(1);
            p["pull_request"]["head"]["repo"]["full_name"] = json!("stranger/Hello-World");
            p["pull_request"]["draft"] = json!(true);
        }));
        let fork = fork.pull.unwrap();
        assert!(fork.fork && fork.draft);
        assert_eq!(fork.head_repo.unwrap().as_str(), "stranger/Hello-World");
        let gone = comment_in(with("pull_request.opened", |p| {
            p["pull_request"]["head"]["repo"] = Value::Null;
        }));
        let gone = gone.pull.unwrap();
        assert!(gone.fork && gone.head_repo.is_none());
    }

    #[test]
    fn a_head_that_cannot_be_used_must_be_asked_for() {
        for (field, bad) in [("sha", json!("abc")), ("ref", json!("-x"))] {
            let comment = comment_in(with("pull_request.opened", |p| {
                p["pull_request"]["base"][field] = bad;
            }));
            assert_eq!(comment.pull, None);
        }
    }

    #[test]
    fn what_happens_to_a_pull_request_is_told() {
        let act = |action: &str, merged: bool| {
            kind(with("pull_request.opened", |p| {
                p["action"] = json!(action);
                p["pull_request"]["merged"] = json!(merged);
            }))
        };
        let kind = SubjectKind::PullRequest;
        assert_eq!(act("closed", true), EventKind::SubjectClosed { kind, number: 2, merged: true });
        assert_eq!(act("closed", false), EventKind::SubjectClosed { kind, number: 2, merged: false });
        assert_eq!(act("reopened", false), EventKind::SubjectReopened { kind, number: 2 });
        let edited = comment_in(with("pull_request.opened", |p| {
            p["action"] = json!("edited");
            p["changes"] = json!({"body": {"from": "old"}});
        }));
        assert_eq!(edited.action, CommentAction::Edited { before: Some("old".into()) });
        assert_eq!(edited.written_at.to_rfc3339(), "2019-05-15T15:20:33+00:00");
    }

    #[test]
    fn what_happens_to_an_issue_is_told() {
        let act = |action: &str| {
            with("issues.labeled", |p| {
                p["action"] = json!(action);
                p["issue"]["merged"] = json!(true);
            })
        };
        let kind_ = SubjectKind::Issue;
        let opened = comment_in(act("opened"));
        assert_eq!(opened.surface, Surface::Opening);
        assert_eq!(opened.body, opened.subject.body);
        assert_eq!(opened.author, opened.subject.author);
        assert_eq!(kind(act("closed")), EventKind::SubjectClosed { kind: kind_, number: 1, merged: false });
        assert_eq!(kind(act("reopened")), EventKind::SubjectReopened { kind: kind_, number: 1 });
        assert!(matches!(act("deleted"), Decoded::Ignored(_)));
        assert!(matches!(act(""), Decoded::Ignored(_)));
    }

    #[test]
    fn a_label_that_stands_for_a_command_is_one_by_whoever_put_it_there() {
        let put = |name: &str| with("issues.labeled", |p| p["label"]["name"] = json!(name));
        let fix = comment_in(put("zeblit:fix"));
        assert_eq!((fix.body.as_str(), fix.author.id), ("/zeblit fix", 21_031_067));
        assert_eq!(fix.surface, Surface::Label { name: "zeblit:fix".into() });
        assert!(fix.node_id.starts_with("MDU6SXNzdWU0NDQ1MDAwNDE=:zeblit:fix:"), "{}", fix.node_id);
        assert_eq!(comment_in(put("zeblit:review")).body, "/zeblit review");
        for other in
            ["zeblit:queued", "zeblit:", "zeblit", "fix", "zeblit:run", "zeblit:fix now", "Zeblit:fix"]
        {
            assert!(matches!(put(other), Decoded::Ignored(_)), "{other}");
        }
        let again = with("issues.labeled", |p| {
            p["label"]["name"] = json!("zeblit:fix");
            p["issue"]["updated_at"] = json!("2026-01-01T00:00:00Z");
        });
        assert_ne!(comment_in(again).node_id, fix.node_id);
        let nobody = with("issues.labeled", |p| {
            p["label"]["name"] = json!("zeblit:fix");
            p["sender"] = json!(null);
        });
        assert!(matches!(nobody, Decoded::Unreadable(_)));
    }

    #[test]
    fn reviews_without_a_text_and_edited_reviews_decode() {
        assert_eq!(comment_in(decoded("pull_request_review.submitted")).body, "");
        let edited = comment_in(with("pull_request_review.submitted", |p| {
            p["action"] = json!("edited");
            p["review"]["body"] = json!("/zeblit review");
            p["changes"] = json!({"body": {"from": ""}});
        }));
        assert_eq!(edited.body, "/zeblit review");
        assert_eq!(edited.action, CommentAction::Edited { before: Some(String::new()) });
        assert_eq!(edited.written_at.to_rfc3339(), "2019-05-15T15:20:38+00:00");
        assert!(matches!(
            with("pull_request_review.submitted", |p| p["action"] = json!("dismissed")),
            Decoded::Ignored(_)
        ));
    }

    #[test]
    fn a_reply_in_a_review_thread_names_the_first_comment() {
        let reply = comment_in(with("pull_request_review_comment.created", |p| {
            p["comment"]["in_reply_to_id"] = json!(11);
            p["comment"]["line"] = Value::Null;
            p["comment"]["commit_id"] = json!("odd");
        }));
        match reply.surface {
            Surface::ReviewComment { thread, line, commit, .. } => {
                assert_eq!((thread, line, commit), (11, None, None));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pushes_tell_the_branch_and_its_new_tip() {
        let push = |git_ref: &str, after: &str| {
            with("push", |p| {
                p["ref"] = json!(git_ref);
                p["after"] = json!(after);
                p["repository"]["default_branch"] = json!("trunk");
            })
        };
        let sha = "6113728f27ae82c7b1a177c8d03f9e96e0adf246";
        let branch = BranchName::parse("feature/x").unwrap();
        assert_eq!(
            kind(push("refs/heads/feature/x", sha)),
            EventKind::Pushed {
                branch: branch.clone(),
                after: Some(Sha::parse(sha).unwrap()),
                is_default: false
            }
        );
        let trunk = BranchName::parse("trunk").unwrap();
        assert_eq!(
            kind(push("refs/heads/trunk", NO_COMMIT)),
            EventKind::Pushed { branch: trunk, after: None, is_default: true }
        );
        assert!(matches!(push("refs/heads/-x", sha), Decoded::Ignored(_)));
        assert!(matches!(push("refs/heads/x", "short"), Decoded::Unreadable(_)));
    }

    #[test]
    fn a_rerun_of_our_check_names_it() {
        let rerun = kind(with("check_run.rerequested", |p| p["check_run"]["external_id"] = json!("run-1")));
        assert_eq!(
            rerun,
            EventKind::CheckRerequested {
                external_id: "run-1".into(),
                head_sha: Sha::parse("d6fde92930d4715a2b49857d24b940956b26d2d3").unwrap()
            }
        );
    }

    #[test]
    fn installations_come_go_and_change() {
        let act = |action: &str| with("installation.created", |p| p["action"] = json!(action));
        assert_eq!(event(act("created")).installation, Some(957387));
        assert_eq!(kind(act("deleted")), EventKind::InstallationDeleted);
        assert_eq!(kind(act("suspend")), EventKind::InstallationSuspended { suspended: true });
        assert_eq!(kind(act("unsuspend")), EventKind::InstallationSuspended { suspended: false });
        assert!(matches!(kind(act("new_permissions_accepted")), EventKind::InstallationCreated { .. }));
        assert!(matches!(act("renamed"), Decoded::Ignored(_)));
        let body = json!({
            "action": "added", "installation": {"id": 3}, "sender": null,
            "repositories_added": [{"id": 5, "full_name": "o/r", "private": true}], "repositories_removed": [],
        });
        let changed = decode("installation_repositories", body.to_string().as_bytes());
        assert_eq!(
            kind(changed),
            EventKind::InstallationReposChanged {
                added: vec![(5, RepoName::parse("o/r").unwrap())],
                removed: vec![]
            }
        );
        let without = json!({"action": "added", "repositories_added": []});
        assert!(matches!(
            decode("installation_repositories", without.to_string().as_bytes()),
            Decoded::Unreadable(_)
        ));
    }

    #[test]
    fn repositories_move_and_go() {
        let repository = |action: &str, changes: Value| {
            let body = json!({"action": action, "changes": changes,
                "repository": {"id": 5, "full_name": "new-owner/new", "private": false}});
            decode("repository", body.to_string().as_bytes())
        };
        let moved = |from: &str| EventKind::RepoMoved { from: RepoName::parse(from).unwrap() };
        assert_eq!(
            kind(repository("renamed", json!({"repository": {"name": {"from": "old"}}}))),
            moved("new-owner/old")
        );
        assert_eq!(
            kind(repository("transferred", json!({"owner": {"from": {"user": {"login": "ann"}}}}))),
            moved("ann/new")
        );
        assert_eq!(
            kind(repository("transferred", json!({"owner": {"from": {"organization": {"login": "org"}}}}))),
            moved("org/new")
        );
        assert_eq!(kind(repository("deleted", Value::Null)), EventKind::RepoDeleted);
        assert!(matches!(repository("renamed", Value::Null), Decoded::Unreadable(_)));
        assert!(matches!(repository("archived", Value::Null), Decoded::Ignored(_)));
    }

    #[test]
    fn form_encoded_deliveries_decode_like_plain_ones() {
        let (event, bytes) = fixture("issue_comment.created");
        let json = std::str::from_utf8(bytes).unwrap();
        let form = url::form_urlencoded::Serializer::new(String::new()).append_pair("payload", json).finish();
        assert_eq!(decode(event, form.as_bytes()), decode(event, bytes));
        assert!(matches!(decode(event, b"payload="), Decoded::Unreadable(_)));
        assert!(matches!(decode(event, b"payload=%ff%00%zz"), Decoded::Unreadable(_)));
    }

    #[test]
    fn unreadable_payloads_name_the_field() {
        let said = |decoded| match decoded {
            Decoded::Unreadable(reason) => reason,
            other => panic!("{other:?}"),
        };
        let number = said(with("issue_comment.created", |p| p["issue"]["number"] = json!("seven")));
        assert!(number.contains("`issue.number`"), "{number}");
        let name = said(with("issue_comment.created", |p| p["repository"]["full_name"] = json!("../../etc")));
        assert!(name.contains("repository name"), "{name}");
        let none = said(with("issue_comment.created", |p| {
            p.as_object_mut().unwrap().remove("comment");
        }));
        assert_eq!(none, "`comment` is missing");
        let zero = said(with("issue_comment.created", |p| p["issue"]["number"] = json!(0)));
        assert!(zero.contains("issue.number"), "{zero}");
        let long = said(with("issue_comment.created", |p| p["issue"]["number"] = json!("x\n".repeat(9_000))));
        assert!(long.chars().count() <= super::super::MAX_REASON_CHARS && !long.contains('\n'));
        for body in [&b""[..], b"null", b"[]", b"42", b"\"x\"", b"{", b"\xff", b"{} {}"] {
            assert!(matches!(decode("issue_comment", body), Decoded::Unreadable(_)), "{body:?}");
        }
    }

    #[test]
    fn a_comment_without_a_node_id_is_keyed_by_its_number() {
        let comment = comment_in(with("issue_comment.created", |p| p["comment"]["node_id"] = Value::Null));
        assert_eq!(comment.node_id, "comment-492700400");
        let review =
            comment_in(with("pull_request_review.submitted", |p| p["review"]["node_id"] = json!("")));
        assert_eq!(review.node_id, "review-237895671");
    }

    #[test]
    fn nul_characters_never_reach_a_column() {
        let comment = comment_in(with("issue_comment.created", |p| {
            p["comment"]["body"] = json!("/zeblit\0 fix");
            p["issue"]["title"] = json!("a\0b");
        }));
        assert_eq!((comment.body.as_str(), comment.subject.title.as_str()), ("/zeblit fix", "ab"));
    }

    #[test]
    fn the_reason_of_an_ignored_event_is_short_whatever_its_name() {
        let body = json!({"action": "x".repeat(10_000)}).to_string();
        match decode(&"e".repeat(10_000), body.as_bytes()) {
            Decoded::Ignored(reason) => {
                assert!(reason.chars().count() <= super::super::MAX_REASON_CHARS);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Every path to a value in a payload, so that each can be broken.
    fn paths(value: &Value, at: &str, into: &mut Vec<String>) {
        into.push(at.to_owned());
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    paths(inner, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), into);
                }
            }
            Value::Array(list) => {
                for (index, inner) in list.iter().enumerate() {
                    paths(inner, &format!("{at}/{index}"), into);
                }
            }
            _ => {}
        }
    }

    fn remove(payload: &mut Value, path: &str) {
        let Some((parent, key)) = path.rsplit_once('/') else { return };
        match payload.pointer_mut(parent) {
            Some(Value::Object(map)) => {
                map.remove(&key.replace("~1", "/").replace("~0", "~"));
            }
            Some(Value::Array(list)) => {
                if let Ok(index) = key.parse::<usize>()
                    && index < list.len()
                {
                    list.remove(index);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn each_field_of_each_recording_may_be_missing_or_null() {
        for (name, bytes) in FIXTURES {
            let event = fixture(name).0;
            let original: Value = serde_json::from_slice(bytes).unwrap();
            let mut all = Vec::new();
            paths(&original, "", &mut all);
            // Only the upper levels and what we read: the deep rest is not looked at.
            for path in all.iter().filter(|path| path.matches('/').count() <= 3) {
                let mut without = original.clone();
                remove(&mut without, path);
                let _ = decode(event, without.to_string().as_bytes());
                let mut null = original.clone();
                if let Some(value) = null.pointer_mut(path) {
                    *value = Value::Null;
                }
                let _ = decode(event, null.to_string().as_bytes());
            }
        }
    }

    proptest! {
        #[test]
        fn broken_recordings_never_panic(
            which in 0..FIXTURES.len(),
            breaks in proptest::collection::vec((any::<usize>(), 0usize..9), 1..6),
            cut: bool, at: usize,
        ) {
            let (name, bytes) = FIXTURES[which];
            let mut payload: Value = serde_json::from_slice(bytes).unwrap();
            for (path, how) in breaks {
                let mut all = Vec::new();
                paths(&payload, "", &mut all);
                let path = all[path % all.len()].clone();
                if how == 8 {
                    remove(&mut payload, &path);
                } else if let Some(value) = payload.pointer_mut(&path) {
                    *value = [json!(null), json!(true), json!(-1), json!(1e300), json!("\u{0}x"),
                        json!([]), json!({}), json!([{"id": "x"}])][how].clone();
                }
            }
            let text = payload.to_string();
            let event = fixture(name).0;
            let _ = decode(event, text.as_bytes());
            if cut {
                let _ = decode(event, &text.as_bytes()[..at % (text.len() + 1)]);
            }
        }
    }
}
