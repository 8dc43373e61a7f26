//! A small forge on this machine: bare repositories, issues, comments, pull requests, checks, reactions, and plain web pages.
//!
//! It refuses what GitHub refuses where that matters, speaks GitHub's webhook format, and keeps everything in one
//! folder: `forge.json`, `forge.log` and `repos/<owner>/<name>.git`. Branches are read from the repositories whenever somebody
//! asks, so a push by path needs no notice.

mod disk;
mod effects;
mod markdown;
mod pages;
mod repository;
mod state;
mod webhook;

pub use pages::{WebhookHook, router};
pub use repository::SeedFile;
pub use state::{BOT_LOGIN, OWNER_LOGIN};
pub use webhook::Webhook;

use super::{
    Forge, GitAccess, GitPermission, LogTail, Missed, OwnIdentity, Remote, RemoteError, RepoInfo,
    ThreadComment,
};
use crate::clock::Clock;
use crate::domain::attachment::{self, Link};
use crate::domain::ci::{self, Annotation, FailedCheck};
use crate::domain::effect::{
    CheckConclusion, CheckRun, CheckStatus, Effect, OwnComment, OwnPull, Payload, Reaction, ReactionTarget,
    RemoteRef,
};
use crate::domain::event::{Actor, ActorKind, PullHead, Repo, Subject, SubjectKind};
use crate::domain::ids::{BranchName, RepoName, Sha};
use crate::domain::policy::Role;
use async_trait::async_trait;
use disk::Disk;
use repository::{Bare, RepositoryError};
use state::{
    CheckRow, CommentRow, PlaceRow, PullRow, ReactionRow, RepoRow, ReportRow, ReviewRow, Shared, State,
    SubjectRow,
};
use std::fs::{self, File};
use std::io::Read;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// GitHub's limit of a comment, issue or pull request body, in characters; more is 422 there and here.
const MAX_BODY_CHARS: usize = 65_536;

/// GitHub's limit of a title, in characters.
const MAX_TITLE_CHARS: usize = 256;

/// Comments of one conversation: past this the one-file state would be the wrong tool.
const MAX_COMMENTS: usize = 10_000;

/// Issues and pull requests of one repository: as above.
const MAX_SUBJECTS: usize = 10_000;

/// Where a pull request template may lie, in GitHub's order.
const TEMPLATE_PATHS: [&str; 6] = [
    ".github/PULL_REQUEST_TEMPLATE.md",
    ".github/pull_request_template.md",
    "PULL_REQUEST_TEMPLATE.md",
    "pull_request_template.md",
    "docs/PULL_REQUEST_TEMPLATE.md",
    "docs/pull_request_template.md",
];

/// Bytes of a file that is attached: above what a run takes, so that its limit can be seen.
pub(super) const MAX_UPLOAD_BYTES: usize = 10 * 1024 * 1024;

/// Characters of the name of a file that is attached.
const MAX_UPLOAD_NAME_CHARS: usize = 100;

const NODE_PREFIX: &str = "LOCAL_";

/// The forge. Cheap to clone; one process at a time may hold a folder.
#[derive(Debug, Clone)]
pub struct LocalForge {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    web_url: String,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Held by who changes the state, until it is on disk; who reads does not wait for that.
    disk: Mutex<Disk>,
    /// Held (as a file lock) for as long as the forge is open.
    _lock: File,
}

/// Somebody's request to this forge could not be carried out; the texts are GitHub's where GitHub has one.
fn refused(operation: &'static str, detail: impl Into<String>) -> RemoteError {
    RemoteError::Refused { operation, status: 422, detail: detail.into() }
}

fn not_found(operation: &'static str) -> RemoteError {
    RemoteError::NotFound { operation }
}

fn failed(operation: &'static str) -> impl Fn(RepositoryError) -> RemoteError {
    move |error| match error {
        RepositoryError::Refused(detail) => refused(operation, detail),
        other => RemoteError::Unavailable { operation, detail: other.to_string() },
    }
}

fn node_id(id: i64) -> String {
    format!("{NODE_PREFIX}{id}")
}

fn parse_node_id(operation: &'static str, node: &str) -> Result<i64, RemoteError> {
    node.strip_prefix(NODE_PREFIX)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| refused(operation, format!("`{node}` is not a node id of this forge")))
}

fn parse_id(operation: &'static str, id: &str) -> Result<i64, RemoteError> {
    id.parse().map_err(|_| RemoteError::Protocol {
        operation,
        detail: format!("`{id}` is not an id of this forge"),
    })
}

fn check_body(operation: &'static str, body: &str) -> Result<(), RemoteError> {
    if body.trim().is_empty() {
        return Err(refused(operation, "Body can't be blank"));
    }
    if body.chars().count() > MAX_BODY_CHARS {
        return Err(refused(operation, format!("body is too long (maximum is {MAX_BODY_CHARS} characters)")));
    }
    Ok(())
}

fn check_title(operation: &'static str, title: &str) -> Result<(), RemoteError> {
    if title.trim().is_empty() {
        return Err(refused(operation, "Title can't be blank"));
    }
    if title.chars().count() > MAX_TITLE_CHARS {
        return Err(refused(
            operation,
            format!("title is too long (maximum is {MAX_TITLE_CHARS} characters)"),
        ));
    }
    Ok(())
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave it half changed: changes are made on a copy.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state: on a copy first, which takes the place of the old one once it is on disk.
    fn change<T>(
        &self,
        operation: &'static str,
        change: impl FnOnce(&mut State) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.lock().clone();
        let mut next = before.clone();
        let answer = change(&mut next)?;
        if next != before {
            next.changes += 1;
            disk.keep(&before, &next).map_err(|error| RemoteError::Unavailable {
                operation,
                detail: format!("{}: {error}", self.folder.join("forge.json").display()),
            })?;
            *self.lock() = next;
        }
        Ok(answer)
    }

    fn bare(&self, name: &RepoName) -> Bare {
        Bare::at(self.folder.join("repos").join(name.owner()).join(format!("{}.git", name.name())))
    }

    /// The repository's row and its bare repository, as they are now.
    fn row(&self, operation: &'static str, repo: &Repo) -> Result<(RepoRow, Bare), RemoteError> {
        let row = self.lock().repo(repo).cloned().ok_or_else(|| not_found(operation))?;
        let bare = self.bare(&row.name);
        Ok((row, bare))
    }

    /// What was attached in a repository: `<id>/<name>`.
    fn uploads(&self, repo_id: i64) -> PathBuf {
        self.folder.join("attachments").join(repo_id.to_string())
    }

    /// The bytes of an attached file; more than `max_bytes` is refused.
    fn upload(&self, repo_id: i64, id: i64, name: &str, max_bytes: usize) -> Result<Vec<u8>, RemoteError> {
        let operation = "read an attached file";
        // One part of a path, whatever it is called.
        if name.is_empty() || name.contains('/') || name.bytes().all(|b| b == b'.') {
            return Err(not_found(operation));
        }
        let path = self.uploads(repo_id).join(id.to_string()).join(name);
        let unavailable = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => not_found(operation),
            _ => RemoteError::Unavailable { operation, detail: format!("{}: {error}", path.display()) },
        };
        let mut bytes = Vec::new();
        let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
        File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(unavailable)?;
        if bytes.len() > max_bytes {
            return Err(RemoteError::Refused {
                operation,
                status: 413,
                detail: format!("it is larger than {}", attachment::size(max_bytes)),
            });
        }
        Ok(bytes)
    }

    fn repo_url(&self, name: &RepoName) -> String {
        format!("{}/{}", self.web_url, name.as_str())
    }

    fn subject_url(&self, name: &RepoName, subject: &SubjectRow) -> String {
        let kind = if subject.pull.is_some() { "pull" } else { "issues" };
        format!("{}/{kind}/{}", self.repo_url(name), subject.number)
    }

    fn comment_url(&self, name: &RepoName, subject: &SubjectRow, comment: &CommentRow) -> String {
        let anchor = if comment.place.is_some() { "discussion_r" } else { "issuecomment-" };
        format!("{}#{anchor}{}", self.subject_url(name, subject), comment.id)
    }

    fn comment_ref(&self, row: &RepoRow, id: i64) -> Option<RemoteRef> {
        let (subject, comment) = row.comment(id)?;
        Some(RemoteRef {
            id: id.to_string(),
            node_id: Some(node_id(id)),
            url: Some(self.comment_url(&row.name, subject, comment)),
            note: None,
        })
    }

    fn pull_ref(&self, row: &RepoRow, subject: &SubjectRow, note: Option<String>) -> RemoteRef {
        RemoteRef {
            id: subject.number.to_string(),
            node_id: Some(node_id(subject.id)),
            url: Some(self.subject_url(&row.name, subject)),
            note,
        }
    }

    fn check_ref(&self, row: &RepoRow, check: &CheckRow) -> RemoteRef {
        RemoteRef {
            id: check.id.to_string(),
            node_id: Some(node_id(check.id)),
            url: Some(format!("{}/checks/{}", self.repo_url(&row.name), check.id)),
            note: None,
        }
    }

    /// Head, base and state of a pull request as the repository has them now.
    fn pull_head(&self, row: &RepoRow, bare: &Bare, subject: &SubjectRow) -> Result<PullHead, RemoteError> {
        let operation = "read pull request";
        let pull = subject.pull.as_ref().ok_or_else(|| not_found(operation))?;
        // What was merged or closed keeps its commits, whatever its branches do later.
        let live = |bare: &Bare, branch: &BranchName, seen: &Sha| -> Result<Sha, RemoteError> {
            if !subject.open {
                return Ok(seen.clone());
            }
            Ok(bare.branch_head(branch).map_err(failed(operation))?.unwrap_or_else(|| seen.clone()))
        };
        let fork = pull.fork.and_then(|id| self.lock().repo_by_id(id).cloned());
        let head_sha = match &fork {
            None => live(bare, &pull.head, &pull.head_seen)?,
            Some(fork) => {
                let home = self.bare(&fork.name);
                let sha = live(&home, &pull.head, &pull.head_seen)?;
                if !bare.has_commit(&sha).map_err(failed(operation))? {
                    bare.take_pull(&home, &pull.head, subject.number).map_err(failed(operation))?;
                }
                sha
            }
        };
        Ok(PullHead {
            number: subject.number,
            head_sha,
            head_ref: pull.head.as_str().to_owned(),
            head_repo: match pull.fork {
                None => Some(row.name.clone()),
                Some(_) => fork.map(|fork| fork.name),
            },
            base_ref: pull.base.clone(),
            base_sha: live(bare, &pull.base, &pull.base_seen)?,
            fork: pull.fork.is_some(),
            open: subject.open,
            merged: pull.merged,
            draft: pull.draft,
        })
    }

    fn role(state: &State, repo: &RepoRow, user: i64) -> Role {
        if user == state.owner {
            Role::Admin
        } else if user == state.bot {
            Role::Write
        } else {
            repo.roles.get(&user).copied().unwrap_or(Role::None)
        }
    }

    fn apply(&self, effect: &Effect) -> Result<RemoteRef, RemoteError> {
        let existing = effect.remote_ref.as_ref();
        match &effect.payload {
            Payload::Reaction { target, reaction } => self.apply_reaction(&effect.repo, target, *reaction),
            Payload::Sticky(comment) | Payload::Comment(comment) => {
                self.apply_comment(&effect.repo, comment, existing)
            }
            Payload::Check(check) => self.apply_check(&effect.repo, check, existing),
            Payload::Pull(pull) => self.apply_pull(&effect.repo, pull, existing),
            Payload::Minimise { node_id } => self.apply_minimise(&effect.repo, node_id),
            Payload::Label { number, name, present } => {
                self.apply_label(&effect.repo, *number, name, *present)
            }
            Payload::StateLabel { number, name } => {
                self.apply_state_label(&effect.repo, *number, name.as_deref())
            }
            Payload::Assignees { number, logins } => self.apply_people(&effect.repo, *number, logins, false),
            Payload::Reviewers { number, logins } => self.apply_people(&effect.repo, *number, logins, true),
            Payload::Draft { number, draft } => self.apply_draft(&effect.repo, *number, *draft),
            Payload::ResolveThread { node_id } => self.apply_resolve(&effect.repo, node_id),
            Payload::DeleteBranch { branch, expected } => {
                self.apply_delete_branch(&effect.repo, branch, expected)
            }
            Payload::AutoMerge { number, head, method } => {
                self.apply_auto_merge(&effect.repo, *number, head, *method)
            }
            Payload::Review(review) => self.apply_review(&effect.repo, review, existing),
            Payload::Issue(issue) => self.apply_issue(&effect.repo, issue, existing),
            Payload::Remove(twin) => self.apply_remove(&effect.repo, twin),
            Payload::TicketComment(_) | Payload::TicketStatus { .. } => {
                Err(super::not_here("local", &effect.payload))
            }
            Payload::Branch(_) | Payload::Fork { .. } | Payload::Repository { .. } => {
                Err(RemoteError::Protocol {
                    operation: "apply effect",
                    detail: "this kind changes no state of a repository".to_owned(),
                })
            }
        }
    }

    fn apply_reaction(
        &self,
        repo: &Repo,
        target: &ReactionTarget,
        reaction: Reaction,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = "add reaction";
        self.change(operation, |state| {
            let (bot, id) = (state.bot, state.new_id());
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let reactions = reactions_mut(row, operation, target)?;
            let kept = match reactions.iter().find(|row| row.user == bot && row.reaction == reaction) {
                Some(present) => present.id,
                None => {
                    reactions.push(ReactionRow { id, user: bot, reaction });
                    id
                }
            };
            Ok(RemoteRef { id: kept.to_string(), node_id: Some(node_id(kept)), url: None, note: None })
        })
    }

    fn apply_comment(
        &self,
        repo: &Repo,
        wanted: &OwnComment,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = if existing.is_some() { "edit comment" } else { "create comment" };
        check_body(operation, &wanted.body)?;
        let now = self.clock.now();
        self.change(operation, |state| {
            let (bot, new) = (state.bot, state.new_id());
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let id = match existing {
                Some(known) => {
                    let id = parse_id(operation, &known.id)?;
                    let comment = row.comment_mut(id).ok_or_else(|| not_found(operation))?;
                    if comment.body != wanted.body {
                        comment.body.clone_from(&wanted.body);
                        comment.updated_at = now;
                    }
                    id
                }
                None => {
                    let subject = row.subject_mut(wanted.number).ok_or_else(|| not_found(operation))?;
                    let place = match wanted.thread {
                        None => None,
                        Some(thread) => Some(reply_place(subject, thread, operation)?),
                    };
                    push_comment(subject, operation, new, bot, &wanted.body, place, now)?;
                    new
                }
            };
            self.comment_ref(row, id).ok_or_else(|| not_found(operation))
        })
    }

    fn apply_check(
        &self,
        repo: &Repo,
        wanted: &CheckRun,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = if existing.is_some() { "update check run" } else { "create check run" };
        if wanted.status == CheckStatus::Completed && wanted.conclusion.is_none() {
            return Err(refused(operation, "a completed check run needs a conclusion"));
        }
        if wanted.summary.chars().count() > MAX_BODY_CHARS {
            return Err(refused(
                operation,
                format!("summary exceeds a maximum of {MAX_BODY_CHARS} characters"),
            ));
        }
        let (row, bare) = self.row(operation, repo)?;
        // A push to a fork is seen when somebody looks.
        for subject in row.subjects.iter().filter(|subject| subject.open) {
            if subject.pull.as_ref().is_some_and(|pull| pull.fork.is_some()) {
                self.pull_head(&row, &bare, subject)?;
            }
        }
        if !bare.has_commit(&wanted.head_sha).map_err(failed(operation))? {
            return Err(refused(operation, format!("No commit found for SHA: {}", wanted.head_sha)));
        }
        let now = self.clock.now();
        self.change(operation, |state| {
            let new = state.new_id();
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let id = match existing {
                Some(known) => {
                    let id = parse_id(operation, &known.id)?;
                    let check = row
                        .checks
                        .iter_mut()
                        .find(|check| check.id == id)
                        .ok_or_else(|| not_found(operation))?;
                    if check.run != *wanted {
                        check.run = wanted.clone();
                        check.updated_at = now;
                    }
                    id
                }
                // As on GitHub there is no uniqueness: a careless second create makes a twin.
                None => {
                    let check = CheckRow { id: new, run: wanted.clone(), updated_at: now, reported: None };
                    row.checks.push(check.into());
                    new
                }
            };
            let check = row.checks.iter().find(|check| check.id == id).ok_or_else(|| not_found(operation))?;
            Ok(self.check_ref(row, check))
        })
    }

    fn apply_pull(
        &self,
        repo: &Repo,
        wanted: &OwnPull,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = if existing.is_some() { "edit pull request" } else { "create pull request" };
        check_title(operation, &wanted.title)?;
        if wanted.body.chars().count() > MAX_BODY_CHARS {
            return Err(refused(
                operation,
                format!("body is too long (maximum is {MAX_BODY_CHARS} characters)"),
            ));
        }
        let (row, bare) = self.row(operation, repo)?;
        let now = self.clock.now();
        if let Some(known) = existing {
            let number = parse_id(operation, &known.id)?;
            return self.change(operation, |state| {
                let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
                let subject = row.subject_mut(number).ok_or_else(|| not_found(operation))?;
                let pull = subject.pull.as_mut().ok_or_else(|| not_found(operation))?;
                let changed = subject.title != wanted.title
                    || subject.body != wanted.body
                    || pull.draft != wanted.draft;
                if changed {
                    pull.draft = wanted.draft;
                    subject.title.clone_from(&wanted.title);
                    subject.body.clone_from(&wanted.body);
                    subject.updated_at = now;
                }
                let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
                Ok(self.pull_ref(row, subject, None))
            });
        }
        let fork = wanted.fork.as_ref().map(|fork| fork.id);
        if let Some(open) = open_pull(&row, fork, &wanted.head, &wanted.base) {
            return Ok(self.pull_ref(&row, open, Some("the pull request was there already".to_owned())));
        }
        let home = match fork {
            None => bare.clone(),
            Some(id) => {
                let found = self.lock().repo_by_id(id).filter(|fork| fork.fork_of == Some(row.id)).cloned();
                let found = found
                    .ok_or_else(|| refused(operation, "head is invalid: not a fork of this repository"))?;
                self.bare(&found.name)
            }
        };
        let head = home
            .branch_head(&wanted.head)
            .map_err(failed(operation))?
            .ok_or_else(|| refused(operation, format!("head is invalid: no branch `{}`", wanted.head)))?;
        let base = bare
            .branch_head(&wanted.base)
            .map_err(failed(operation))?
            .ok_or_else(|| refused(operation, format!("base is invalid: no branch `{}`", wanted.base)))?;
        if fork.is_some() {
            // Under the number it is about to get; whoever reads it later brings it here again where that is needed.
            bare.take_pull(&home, &wanted.head, row.next_number).map_err(failed(operation))?;
        }
        if bare.commits_ahead(&base, &head).map_err(failed(operation))? == 0 {
            return Err(refused(
                operation,
                format!("No commits between {} and {}", wanted.base, wanted.head),
            ));
        }
        self.change(operation, |state| {
            let (bot, id) = (state.bot, state.new_id());
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            if let Some(open) = open_pull(row, fork, &wanted.head, &wanted.base) {
                let note = Some("the pull request was there already".to_owned());
                return Ok(self.pull_ref(row, open, note));
            }
            let pull = PullRow {
                head: wanted.head.clone(),
                fork,
                base: wanted.base.clone(),
                draft: wanted.draft,
                merged: false,
                head_seen: head,
                base_seen: base,
                auto_merge: None,
            };
            let number = push_subject(row, operation, id, bot, &wanted.title, &wanted.body, Some(pull), now)?;
            let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
            Ok(self.pull_ref(row, subject, None))
        })
    }

    fn apply_minimise(&self, repo: &Repo, node: &str) -> Result<RemoteRef, RemoteError> {
        let operation = "minimise comment";
        let id = parse_node_id(operation, node)?;
        self.change(operation, |state| {
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            row.comment_mut(id).ok_or_else(|| not_found(operation))?.minimised = true;
            self.comment_ref(row, id).ok_or_else(|| not_found(operation))
        })
    }

    fn find_all(&self, effect: &Effect) -> Result<Vec<RemoteRef>, RemoteError> {
        let operation = "find effect";
        let state = self.lock();
        let Some(row) = state.repo(&effect.repo) else { return Err(not_found(operation)) };
        let is_marked = |marker: &str, body: &str| !marker.is_empty() && body.contains(marker);
        let found = match &effect.payload {
            Payload::Reaction { target, reaction } => reactions(row, target)
                .and_then(|list| list.iter().find(|row| row.user == state.bot && row.reaction == *reaction))
                .map(|found| RemoteRef {
                    id: found.id.to_string(),
                    node_id: Some(node_id(found.id)),
                    url: None,
                    note: None,
                })
                .into_iter()
                .collect(),
            Payload::Sticky(wanted) | Payload::Comment(wanted) => row
                .subject(wanted.number)
                .into_iter()
                .flat_map(|subject| &subject.comments)
                .filter(|comment| {
                    comment.author == state.bot
                        && is_marked(&wanted.marker, &comment.body)
                        && comment.place.is_some() == wanted.thread.is_some()
                })
                .filter_map(|comment| self.comment_ref(row, comment.id))
                .collect(),
            Payload::Check(wanted) => row
                .checks
                .iter()
                .filter(|check| {
                    check.run.external_id == wanted.external_id
                        && check.run.name == wanted.name
                        && check.run.head_sha == wanted.head_sha
                })
                .map(|check| self.check_ref(row, check))
                .collect(),
            Payload::Pull(wanted) => open_pull(row, fork_id(wanted), &wanted.head, &wanted.base)
                .or_else(|| {
                    // Made by us and closed by somebody since: it was made all the same.
                    row.subjects.iter().map(Deref::deref).find(|subject| {
                        subject
                            .pull
                            .as_ref()
                            .is_some_and(|pull| is_of(pull, fork_id(wanted), &wanted.head, &wanted.base))
                            && subject.author == state.bot
                            && is_marked(&wanted.marker, &subject.body)
                    })
                })
                .map(|subject| self.pull_ref(row, subject, None))
                .into_iter()
                .collect(),
            Payload::Minimise { node_id } => {
                let id = parse_node_id(operation, node_id)?;
                row.comment(id)
                    .filter(|(_, comment)| comment.minimised)
                    .and_then(|_| self.comment_ref(row, id))
                    .into_iter()
                    .collect()
            }
            Payload::Review(wanted) => row
                .subject(wanted.number)
                .into_iter()
                .flat_map(|subject| &subject.reviews)
                .filter(|review| review.author == state.bot && is_marked(&wanted.marker, &review.body))
                .map(|review| effects::review_ref(review.id))
                .collect(),
            Payload::Issue(wanted) => row
                .subjects
                .iter()
                .filter(|subject| {
                    subject.pull.is_none()
                        && subject.author == state.bot
                        && is_marked(&wanted.marker, &subject.body)
                })
                .map(|subject| self.pull_ref(row, subject, None))
                .collect(),
            Payload::Fork { owner } => {
                drop(state);
                let fork = self.fork_named(&effect.repo, owner)?;
                fork.map(|fork| self.repository_ref(&fork.name)).into_iter().collect()
            }
            Payload::Repository { name, .. } => {
                state.repo_named(name).map(|row| self.repository_ref(&row.name)).into_iter().collect()
            }
            // Values that are set: doing it again changes nothing.
            Payload::Label { .. }
            | Payload::StateLabel { .. }
            | Payload::Assignees { .. }
            | Payload::Reviewers { .. }
            | Payload::Draft { .. }
            | Payload::ResolveThread { .. }
            | Payload::DeleteBranch { .. }
            | Payload::AutoMerge { .. }
            | Payload::TicketComment(_)
            | Payload::TicketStatus { .. }
            | Payload::Remove(_) => Vec::new(),
            Payload::Branch(_) => {
                return Err(RemoteError::Protocol {
                    operation,
                    detail: "branches are looked up with Git, not by a remote".to_owned(),
                });
            }
        };
        Ok(found)
    }

    fn subject_of(&self, state: &State, row: &RepoRow, subject: &SubjectRow) -> Subject {
        Subject {
            kind: if subject.pull.is_some() { SubjectKind::PullRequest } else { SubjectKind::Issue },
            number: subject.number,
            title: subject.title.clone(),
            body: subject.body.clone(),
            author: state.actor(subject.author),
            url: self.subject_url(&row.name, subject),
            open: subject.open,
        }
    }
}

fn fork_id(pull: &OwnPull) -> Option<i64> {
    pull.fork.as_ref().map(|fork| fork.id)
}

fn is_of(pull: &PullRow, fork: Option<i64>, head: &BranchName, base: &BranchName) -> bool {
    pull.fork == fork && pull.head == *head && pull.base == *base
}

fn open_pull<'r>(
    row: &'r RepoRow,
    fork: Option<i64>,
    head: &BranchName,
    base: &BranchName,
) -> Option<&'r SubjectRow> {
    row.subjects.iter().map(Deref::deref).find(|subject| {
        subject.open && subject.pull.as_ref().is_some_and(|pull| is_of(pull, fork, head, base))
    })
}

fn reactions<'r>(row: &'r RepoRow, target: &ReactionTarget) -> Option<&'r Vec<ReactionRow>> {
    match target {
        ReactionTarget::Subject { number } => row.subject(*number).map(|subject| &subject.reactions),
        ReactionTarget::Comment { id } | ReactionTarget::ReviewComment { id } => {
            row.comment(*id).map(|(_, comment)| &comment.reactions)
        }
        ReactionTarget::Review { node_id } => {
            let id = node_id.strip_prefix(NODE_PREFIX)?.parse::<i64>().ok()?;
            let mut reviews = row.subjects.iter().flat_map(|subject| subject.reviews.iter());
            reviews.find(|review| review.id == id).map(|review| &review.reactions)
        }
    }
}

fn reactions_mut<'r>(
    row: &'r mut RepoRow,
    operation: &'static str,
    target: &ReactionTarget,
) -> Result<&'r mut Vec<ReactionRow>, RemoteError> {
    let found = match target {
        ReactionTarget::Subject { number } => row.subject_mut(*number).map(|subject| &mut subject.reactions),
        ReactionTarget::Comment { id } | ReactionTarget::ReviewComment { id } => {
            row.comment_mut(*id).map(|comment| &mut comment.reactions)
        }
        ReactionTarget::Review { node_id } => {
            let id = parse_node_id(operation, node_id)?;
            let has_it =
                |subject: &&mut Shared<SubjectRow>| subject.reviews.iter().any(|review| review.id == id);
            row.subjects
                .iter_mut()
                .find(has_it)
                .and_then(|subject| subject.reviews.iter_mut().find(|review| review.id == id))
                .map(|review| &mut review.reactions)
        }
    };
    found.ok_or_else(|| not_found(operation))
}

/// Where a reply in the review thread of comment `thread` stands.
fn reply_place(subject: &SubjectRow, thread: i64, operation: &'static str) -> Result<PlaceRow, RemoteError> {
    let first = subject
        .comments
        .iter()
        .find(|comment| comment.id == thread)
        .and_then(|comment| comment.place.as_ref())
        .ok_or_else(|| not_found(operation))?;
    // A reply to a reply stands in the same thread.
    Ok(PlaceRow { reply_to: Some(first.reply_to.unwrap_or(thread)), ..first.clone() })
}

fn push_comment(
    subject: &mut SubjectRow,
    operation: &'static str,
    id: i64,
    author: i64,
    body: &str,
    place: Option<PlaceRow>,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<(), RemoteError> {
    if subject.comments.len() >= MAX_COMMENTS {
        return Err(refused(
            operation,
            format!("Commenting is disabled on more than {MAX_COMMENTS} comments"),
        ));
    }
    subject.comments.push(CommentRow {
        id,
        author,
        body: body.to_owned(),
        created_at: now,
        updated_at: now,
        minimised: false,
        reactions: Vec::new(),
        place,
        resolved: false,
        review: None,
    });
    subject.updated_at = now;
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the columns of one row, used in two places of this file")]
fn push_subject(
    row: &mut RepoRow,
    operation: &'static str,
    id: i64,
    author: i64,
    title: &str,
    body: &str,
    pull: Option<PullRow>,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<i64, RemoteError> {
    if row.subjects.len() >= MAX_SUBJECTS {
        return Err(refused(
            operation,
            format!("this forge keeps at most {MAX_SUBJECTS} issues a repository"),
        ));
    }
    let number = row.next_number;
    row.next_number += 1;
    let subject = SubjectRow {
        id,
        number,
        title: title.to_owned(),
        body: body.to_owned(),
        author,
        open: true,
        created_at: now,
        updated_at: now,
        closed_at: None,
        reactions: Vec::new(),
        comments: Vec::new(),
        reviews: Vec::new(),
        pull,
        labels: Vec::new(),
        assignees: Vec::new(),
        reviewers: Vec::new(),
    };
    row.subjects.push(subject.into());
    Ok(number)
}

/// The verbs of people on this forge: what the demo, `zeblit run`, the pages and tests do.
impl LocalForge {
    /// Opens the forge in `folder` (made when it is not there). `web_url` is where its pages are reached,
    /// e.g. `http://127.0.0.1:8080/forge`.
    pub fn open(folder: &Path, web_url: &str, clock: Arc<dyn Clock>) -> Result<Self, RemoteError> {
        let operation = "open the local forge";
        let unavailable = |what: &Path, error: &dyn std::fmt::Display| RemoteError::Unavailable {
            operation,
            detail: format!("{}: {error}", what.display()),
        };
        fs::create_dir_all(folder.join("repos")).map_err(|error| unavailable(folder, &error))?;
        let folder = folder.canonicalize().map_err(|error| unavailable(folder, &error))?;
        let lock_path = folder.join("lock");
        let lock = File::create(&lock_path).map_err(|error| unavailable(&lock_path, &error))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                unavailable(&folder, &"another zeblit uses this folder: stop it, or choose another folder")
            }
            fs::TryLockError::Error(error) => unavailable(&lock_path, &error),
        })?;
        let (disk, state) =
            Disk::open(&folder).map_err(|error| unavailable(&folder.join("forge.json"), &error))?;
        Ok(Self {
            inner: Arc::new(Inner {
                folder,
                web_url: web_url.trim_end_matches('/').to_owned(),
                clock,
                state: Mutex::new(state),
                disk: Mutex::new(disk),
                _lock: lock,
            }),
        })
    }

    /// The person who owns every repository here.
    pub fn owner(&self) -> Actor {
        let state = self.inner.lock();
        state.actor(state.owner)
    }

    pub fn bot(&self) -> Actor {
        let state = self.inner.lock();
        state.actor(state.bot)
    }

    /// A new user, or the one that has this login.
    pub fn create_user(&self, login: &str, kind: ActorKind) -> Result<Actor, RemoteError> {
        let operation = "create user";
        let valid = !login.is_empty()
            && login.len() <= 39 + "[bot]".len()
            && login.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'[' | b']'));
        if !valid {
            return Err(refused(operation, "Login may only contain alphanumeric characters or hyphens"));
        }
        self.inner.change(operation, |state| {
            if let Some(user) = state.users.iter().find(|user| user.login == login) {
                return Ok(user.actor());
            }
            let id = state.add_user(login, kind);
            Ok(state.actor(id))
        })
    }

    /// Gives a user a role in a repository; `Role::None` takes it away. The owner stays admin.
    pub fn set_role(&self, repo: &Repo, user: &Actor, role: Role) -> Result<(), RemoteError> {
        let operation = "set role";
        self.inner.change(operation, |state| {
            if state.user(user.id).is_none() {
                return Err(not_found(operation));
            }
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            if role == Role::None {
                row.roles.remove(&user.id);
            } else {
                row.roles.insert(user.id, role);
            }
            Ok(())
        })
    }

    fn add_repo(
        &self,
        name: &RepoName,
        description: &str,
        make: impl FnOnce(&Bare) -> Result<BranchName, RepositoryError>,
    ) -> Result<RepoInfo, RemoteError> {
        let operation = "create repository";
        if self.inner.lock().repo_named(name).is_some() {
            return Err(refused(operation, format!("name already exists on this forge: {name}")));
        }
        let bare = self.inner.bare(name);
        if bare.path().exists() {
            // A crash between Git and the state file: nothing knows it, so nothing is lost.
            fs::remove_dir_all(bare.path()).map_err(|error| RemoteError::Unavailable {
                operation,
                detail: format!("{}: {error}", bare.path().display()),
            })?;
        }
        let default_branch = make(&bare).map_err(failed(operation))?;
        let now = self.inner.clock.now();
        self.inner.change(operation, |state| {
            let id = state.new_id();
            state.repos.push(RepoRow {
                id,
                name: name.clone(),
                description: description.to_owned(),
                private: false,
                default_branch: default_branch.clone(),
                roles: std::collections::BTreeMap::new(),
                next_number: 1,
                subjects: Vec::new(),
                checks: Vec::new(),
                created_at: now,
                fork_of: None,
            });
            let repo = Repo { id, name: name.clone(), installation: 0, private: false };
            Ok(RepoInfo { repo, default_branch })
        })
    }

    /// A new repository with one commit of `files` on `main`.
    pub fn create_repo(
        &self,
        name: &RepoName,
        description: &str,
        files: &[SeedFile<'_>],
        message: &str,
    ) -> Result<RepoInfo, RemoteError> {
        let main =
            BranchName::parse("main").map_err(|error| refused("create repository", error.to_string()))?;
        let now = self.inner.clock.now();
        self.add_repo(name, description, |bare| bare.create(&main, files, message, now).map(|_| main.clone()))
    }

    /// A new repository with every branch and tag of the one at `source`; its checked out branch is the default one.
    pub fn import_repo(
        &self,
        name: &RepoName,
        description: &str,
        source: &Path,
    ) -> Result<RepoInfo, RemoteError> {
        self.add_repo(name, description, |bare| bare.import(source))
    }

    /// A copy of a repository that belongs to somebody else, from which its pull requests may come.
    pub fn create_fork(&self, of: &Repo, owner: &str) -> Result<RepoInfo, RemoteError> {
        let operation = "create a fork";
        let (row, bare) = self.inner.row(operation, of)?;
        let name = RepoName::parse(&format!("{owner}/{}", row.name.name()))
            .map_err(|error| refused(operation, error.to_string()))?;
        let made =
            self.add_repo(&name, &format!("forked from {}", row.name), |copy| copy.import(bare.path()))?;
        self.inner.change(operation, |state| {
            state.repo_mut(&made.repo).ok_or_else(|| not_found(operation))?.fork_of = Some(row.id);
            Ok(())
        })?;
        Ok(made)
    }

    /// Commits files to a branch of a repository (as a person would push them).
    pub fn commit_files(
        &self,
        repo: &Repo,
        branch: &BranchName,
        files: &[SeedFile<'_>],
        message: &str,
    ) -> Result<Sha, RemoteError> {
        let operation = "commit files";
        let (_, bare) = self.inner.row(operation, repo)?;
        bare.commit_files(branch, files, message, self.inner.clock.now()).map_err(failed(operation))
    }

    /// Where the bare repository lies.
    pub fn repo_path(&self, repo: &Repo) -> Result<PathBuf, RemoteError> {
        Ok(self.inner.row("find repository", repo)?.1.path().to_owned())
    }

    /// Repositories of this forge, oldest first.
    pub fn repos(&self) -> Vec<RepoInfo> {
        let state = self.inner.lock();
        let infos = state.repos.iter();
        infos.map(|row| RepoInfo { repo: row.repo(), default_branch: row.default_branch.clone() }).collect()
    }

    /// Opens an issue; gives its number and the `issues` delivery that GitHub would send.
    pub fn open_issue(
        &self,
        repo: &Repo,
        author: &Actor,
        title: &str,
        body: &str,
    ) -> Result<(i64, Webhook), RemoteError> {
        let operation = "open issue";
        check_title(operation, title)?;
        if !body.is_empty() {
            check_body(operation, body)?;
        }
        let now = self.inner.clock.now();
        let number = self.inner.change(operation, |state| {
            let id = state.new_id();
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            push_subject(row, operation, id, author.id, title, body, None, now)
        })?;
        Ok((number, self.subject_webhook(operation, repo, number, author, "opened")?))
    }

    /// Opens a pull request as a person; refused as on GitHub when its branches do not allow one.
    pub fn open_pull(
        &self,
        repo: &Repo,
        author: &Actor,
        head: &BranchName,
        base: &BranchName,
        title: &str,
        body: &str,
    ) -> Result<(i64, Webhook), RemoteError> {
        let operation = "open pull request";
        let wanted = OwnPull {
            head: head.clone(),
            // People here work on branches; only the server opens pull requests from a fork.
            fork: None,
            base: base.clone(),
            title: title.to_owned(),
            body: body.to_owned(),
            draft: false,
            marker: String::new(),
        };
        let (row, _) = self.inner.row(operation, repo)?;
        if open_pull(&row, None, head, base).is_some() {
            return Err(refused(
                operation,
                format!("A pull request already exists for {}:{head}.", row.name.owner()),
            ));
        }
        let made = self.inner.apply_pull(repo, &wanted, None)?;
        let number = parse_id(operation, &made.id)?;
        self.inner.change(operation, |state| {
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            row.subject_mut(number).ok_or_else(|| not_found(operation))?.author = author.id;
            Ok(())
        })?;
        Ok((number, self.subject_webhook(operation, repo, number, author, "opened")?))
    }

    /// Closes or reopens an issue or pull request. A pull request whose head is in its base counts as merged.
    pub fn set_open(
        &self,
        repo: &Repo,
        author: &Actor,
        number: i64,
        open: bool,
    ) -> Result<Webhook, RemoteError> {
        let operation = if open { "reopen" } else { "close" };
        let (row, bare) = self.inner.row(operation, repo)?;
        let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
        let head = match &subject.pull {
            Some(_) => Some(self.inner.pull_head(&row, &bare, subject)?),
            None => None,
        };
        let merged = match &head {
            Some(head) if !open => {
                bare.commits_ahead(&head.base_sha, &head.head_sha).map_err(failed(operation))? == 0
            }
            _ => false,
        };
        let now = self.inner.clock.now();
        self.inner.change(operation, |state| {
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let subject = row.subject_mut(number).ok_or_else(|| not_found(operation))?;
            if open && subject.pull.as_ref().is_some_and(|pull| pull.merged) {
                return Err(refused(operation, "a merged pull request cannot be reopened"));
            }
            subject.open = open;
            subject.closed_at = (!open).then_some(now);
            subject.updated_at = now;
            if let (Some(pull), Some(head)) = (&mut subject.pull, head) {
                pull.merged = merged;
                (pull.head_seen, pull.base_seen) = (head.head_sha, head.base_sha);
            }
            Ok(())
        })?;
        self.subject_webhook(operation, repo, number, author, if open { "reopened" } else { "closed" })
    }

    pub fn close_issue(&self, repo: &Repo, author: &Actor, number: i64) -> Result<Webhook, RemoteError> {
        self.set_open(repo, author, number, false)
    }

    /// Adds a comment to a conversation; gives its id and the `issue_comment` delivery that GitHub would send.
    pub fn comment(
        &self,
        repo: &Repo,
        author: &Actor,
        number: i64,
        body: &str,
    ) -> Result<(i64, Webhook), RemoteError> {
        let operation = "comment";
        check_body(operation, body)?;
        let now = self.inner.clock.now();
        let id = self.inner.change(operation, |state| {
            let id = state.new_id();
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let subject = row.subject_mut(number).ok_or_else(|| not_found(operation))?;
            push_comment(subject, operation, id, author.id, body, None, now)?;
            Ok(id)
        })?;
        Ok((id, self.comment_webhook(operation, repo, id, author, None)?))
    }

    /// Edits a comment; gives the `edited` delivery with the body before.
    pub fn edit_comment(
        &self,
        repo: &Repo,
        editor: &Actor,
        id: i64,
        body: &str,
    ) -> Result<Webhook, RemoteError> {
        let operation = "edit comment";
        check_body(operation, body)?;
        let now = self.inner.clock.now();
        let before = self.inner.change(operation, |state| {
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let comment = row.comment_mut(id).ok_or_else(|| not_found(operation))?;
            comment.updated_at = now;
            Ok(std::mem::replace(&mut comment.body, body.to_owned()))
        })?;
        self.comment_webhook(operation, repo, id, editor, Some(&before))
    }

    /// Adds a comment on a line of a pull request; gives its id and the `pull_request_review_comment` delivery.
    pub fn review_comment(
        &self,
        repo: &Repo,
        author: &Actor,
        number: i64,
        path: &str,
        line: i64,
        body: &str,
    ) -> Result<(i64, Webhook), RemoteError> {
        let operation = "review comment";
        check_body(operation, body)?;
        let (row, bare) = self.inner.row(operation, repo)?;
        let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
        let head = self.inner.pull_head(&row, &bare, subject)?;
        let compared = bare.compare(&head.base_sha, &head.head_sha).map_err(failed(operation))?;
        let hunk =
            compared
                .files
                .iter()
                .find(|file| file.path == path)
                .and_then(|file| file.hunk_of(line))
                .ok_or_else(|| refused(operation, format!("`{path}` line {line} is not part of the diff")))?;
        let now = self.inner.clock.now();
        let id = self.inner.change(operation, |state| {
            let id = state.new_id();
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let subject = row.subject_mut(number).ok_or_else(|| not_found(operation))?;
            let place = PlaceRow {
                path: path.to_owned(),
                line: Some(line),
                commit: head.head_sha.clone(),
                diff_hunk: hunk,
                reply_to: None,
            };
            push_comment(subject, operation, id, author.id, body, Some(place), now)?;
            Ok(id)
        })?;
        Ok((id, self.comment_webhook(operation, repo, id, author, None)?))
    }

    /// Submits a review with a body; gives its id and the `pull_request_review` delivery.
    pub fn review(
        &self,
        repo: &Repo,
        author: &Actor,
        number: i64,
        body: &str,
    ) -> Result<(i64, Webhook), RemoteError> {
        let operation = "review";
        check_body(operation, body)?;
        let now = self.inner.clock.now();
        let id = self.inner.change(operation, |state| {
            let id = state.new_id();
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let subject = row.subject_mut(number).ok_or_else(|| not_found(operation))?;
            if subject.pull.is_none() {
                return Err(not_found(operation));
            }
            subject.reviews.push(ReviewRow {
                id,
                author: author.id,
                body: body.to_owned(),
                created_at: now,
                reactions: Vec::new(),
            });
            subject.updated_at = now;
            Ok(id)
        })?;
        Ok((id, self.review_webhook(operation, repo, id, author)?))
    }

    /// The open pull requests whose head is `head`, newest first.
    pub fn pulls_of_branch(&self, repo: &Repo, head: &BranchName) -> Result<Vec<i64>, RemoteError> {
        let (row, _) = self.inner.row("list pull requests", repo)?;
        let mut numbers: Vec<i64> = row
            .subjects
            .iter()
            .filter(|subject| {
                let own = |pull: &PullRow| pull.fork.is_none() && pull.head == *head;
                subject.open && subject.pull.as_ref().is_some_and(own)
            })
            .map(|subject| subject.number)
            .collect();
        numbers.reverse();
        Ok(numbers)
    }

    /// Keeps a file for links in comments; gives the link as Markdown.
    pub fn attach(&self, repo: &Repo, name: &str, bytes: &[u8]) -> Result<String, RemoteError> {
        let operation = "attach a file";
        if bytes.len() > MAX_UPLOAD_BYTES {
            return Err(refused(
                operation,
                format!("at most {} are kept", attachment::size(MAX_UPLOAD_BYTES)),
            ));
        }
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
            .take(MAX_UPLOAD_NAME_CHARS)
            .collect();
        if name.bytes().all(|b| b == b'.') {
            return Err(refused(operation, "a file needs a name"));
        }
        let (row, _) = self.inner.row(operation, repo)?;
        let id = self.inner.change(operation, |state| Ok(state.new_id()))?;
        let folder = self.inner.uploads(row.id).join(id.to_string());
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(&name), bytes));
        written.map_err(|error| RemoteError::Unavailable {
            operation,
            detail: format!("{}: {error}", folder.display()),
        })?;
        Ok(format!("[{name}]({}/files/{id}/{name})", self.inner.repo_url(&row.name)))
    }

    /// A check of somebody else's, e.g. of a test script on this machine.
    pub fn report_check(&self, repo: &Repo, run: &CheckRun, log: &str) -> Result<i64, RemoteError> {
        let operation = "report a check";
        let (_, bare) = self.inner.row(operation, repo)?;
        if !bare.has_commit(&run.head_sha).map_err(failed(operation))? {
            return Err(refused(operation, format!("No commit found for SHA: {}", run.head_sha)));
        }
        let now = self.inner.clock.now();
        self.inner.change(operation, |state| {
            let id = state.new_id();
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let reported = Some(ReportRow { log: log.to_owned() });
            row.checks.push(CheckRow { id, run: run.clone(), updated_at: now, reported }.into());
            Ok(id)
        })
    }

    /// The check runs of a commit, oldest first.
    pub fn checks(&self, repo: &Repo, commit: &Sha) -> Result<Vec<CheckRun>, RemoteError> {
        let (row, _) = self.inner.row("list check runs", repo)?;
        Ok(row.checks.iter().map(|check| &check.run).filter(|run| run.head_sha == *commit).cloned().collect())
    }

    /// The bot's reactions to a comment.
    pub fn reactions(&self, repo: &Repo, comment: i64) -> Result<Vec<Reaction>, RemoteError> {
        let operation = "list reactions";
        let (row, _) = self.inner.row(operation, repo)?;
        let (_, found) = row.comment(comment).ok_or_else(|| not_found(operation))?;
        let bot = self.inner.lock().bot;
        Ok(found.reactions.iter().filter(|row| row.user == bot).map(|row| row.reaction).collect())
    }

    /// The unified diff of a pull request since its merge base, cut after `max_bytes`.
    pub fn pull_diff(&self, repo: &Repo, number: i64, max_bytes: usize) -> Result<String, RemoteError> {
        let operation = "read diff";
        let (row, bare) = self.inner.row(operation, repo)?;
        let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
        let head = self.inner.pull_head(&row, &bare, subject)?;
        bare.diff_text(&head.base_sha, &head.head_sha, max_bytes).map_err(failed(operation))
    }

    /// Writes the files of a commit below `folder`, without any `.git`.
    pub fn export(&self, repo: &Repo, commit: &Sha, folder: &Path) -> Result<(), RemoteError> {
        let operation = "export files";
        let (_, bare) = self.inner.row(operation, repo)?;
        bare.export(commit, folder).map_err(failed(operation))
    }

    /// Brings a branch into another repository on this machine under the same name: no work tree, no HEAD
    /// and no other branch is touched there, and a branch that holds other work is refused.
    pub fn copy_branch_to(&self, repo: &Repo, branch: &BranchName, target: &Path) -> Result<(), RemoteError> {
        let operation = "copy branch";
        let (_, bare) = self.inner.row(operation, repo)?;
        bare.copy_branch_to(branch, target).map_err(failed(operation))
    }

    /// Runs `work` where it may block on the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await.unwrap_or_else(|error| {
            Err(RemoteError::Unclear { operation, detail: format!("the task ended early: {error}") })
        })
    }
}

#[async_trait]
impl Remote for LocalForge {
    fn name(&self) -> &'static str {
        "local"
    }

    async fn apply(&self, effect: &Effect) -> Result<RemoteRef, RemoteError> {
        let (forge, effect) = (self.clone(), effect.clone());
        self.blocking("apply effect", move |inner| match &effect.payload {
            Payload::Fork { owner } => forge.apply_fork(&effect.repo, owner),
            Payload::Repository { name, .. } => forge.apply_repository(name),
            _ => inner.apply(&effect),
        })
        .await
    }

    async fn find_all(&self, effect: &Effect) -> Result<Vec<RemoteRef>, RemoteError> {
        let effect = effect.clone();
        self.blocking("find effect", move |inner| inner.find_all(&effect)).await
    }
}

#[async_trait]
impl Forge for LocalForge {
    async fn own_identity(&self) -> Result<OwnIdentity, RemoteError> {
        let state = self.inner.lock();
        Ok(OwnIdentity { user_id: state.bot, login: BOT_LOGIN.to_owned(), app_id: state.app_id })
    }

    async fn role_of(&self, repo: &Repo, user: &Actor) -> Result<Role, RemoteError> {
        let state = self.inner.lock();
        let row = state.repo(repo).ok_or_else(|| not_found("read role"))?;
        Ok(Inner::role(&state, row, user.id))
    }

    async fn repo_info(&self, repo: &Repo) -> Result<RepoInfo, RemoteError> {
        let (row, _) = self.inner.row("read repository", repo)?;
        Ok(RepoInfo { repo: row.repo(), default_branch: row.default_branch })
    }

    async fn branch_head(&self, repo: &Repo, branch: &BranchName) -> Result<Option<Sha>, RemoteError> {
        let operation = "read branch";
        let (repo, branch) = (repo.clone(), branch.clone());
        self.blocking(operation, move |inner| {
            let (_, bare) = inner.row(operation, &repo)?;
            bare.branch_head(&branch).map_err(failed(operation))
        })
        .await
    }

    async fn read_file(&self, repo: &Repo, at: &str, path: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        let operation = "read file";
        let (repo, at, path) = (repo.clone(), at.to_owned(), path.to_owned());
        self.blocking(operation, move |inner| {
            let (_, bare) = inner.row(operation, &repo)?;
            bare.read_file(&at, &path).map_err(failed(operation))
        })
        .await
    }

    async fn list_folder(&self, repo: &Repo, at: &str, path: &str) -> Result<Vec<String>, RemoteError> {
        let operation = "list folder";
        let (repo, at, path) = (repo.clone(), at.to_owned(), path.to_owned());
        self.blocking(operation, move |inner| {
            let (_, bare) = inner.row(operation, &repo)?;
            bare.list_folder(&at, &path).map_err(failed(operation))
        })
        .await
    }

    async fn pull(&self, repo: &Repo, number: i64) -> Result<PullHead, RemoteError> {
        let operation = "read pull request";
        let repo = repo.clone();
        self.blocking(operation, move |inner| {
            let (row, bare) = inner.row(operation, &repo)?;
            let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
            inner.pull_head(&row, &bare, subject)
        })
        .await
    }

    async fn changed_paths(&self, repo: &Repo, number: i64) -> Result<Vec<String>, RemoteError> {
        let operation = "read the files of a pull request";
        let repo = repo.clone();
        self.blocking(operation, move |inner| {
            let (row, bare) = inner.row(operation, &repo)?;
            let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
            let pull = inner.pull_head(&row, &bare, subject)?;
            let compared = bare.compare(&pull.base_sha, &pull.head_sha).map_err(failed(operation))?;
            Ok(compared
                .files
                .into_iter()
                .flat_map(|file| [Some(file.path), file.old_path])
                .flatten()
                .collect())
        })
        .await
    }

    async fn subject(&self, repo: &Repo, number: i64) -> Result<Subject, RemoteError> {
        let operation = "read issue";
        let state = self.inner.lock();
        let row = state.repo(repo).ok_or_else(|| not_found(operation))?;
        let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
        Ok(self.inner.subject_of(&state, row, subject))
    }

    async fn thread(
        &self,
        repo: &Repo,
        number: i64,
        limit: usize,
    ) -> Result<Vec<ThreadComment>, RemoteError> {
        let operation = "read comments";
        let state = self.inner.lock();
        let row = state.repo(repo).ok_or_else(|| not_found(operation))?;
        let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
        // Comments are stored in the order they were written.
        let skip = subject.comments.len().saturating_sub(limit);
        let newest = subject.comments.iter().skip(skip);
        Ok(newest
            .map(|comment| ThreadComment {
                author: state.actor(comment.author),
                body: comment.body.clone(),
                created_at: comment.created_at,
                updated_at: comment.updated_at,
                path: comment.place.as_ref().map(|place| place.path.clone()),
                line: comment.place.as_ref().and_then(|place| place.line),
                own: comment.author == state.bot,
            })
            .collect())
    }

    fn uploads_url(&self) -> &str {
        &self.inner.web_url
    }

    async fn attachment(&self, repo: &Repo, link: &Link, max_bytes: usize) -> Result<Vec<u8>, RemoteError> {
        let operation = "read an attached file";
        let (repo, url) = (repo.clone(), link.url.clone());
        self.blocking(operation, move |inner| {
            let (row, _) = inner.row(operation, &repo)?;
            // Files of other repositories are not this one's to see.
            let inside = url.strip_prefix(&format!("{}/files/", inner.repo_url(&row.name)));
            let (id, name) =
                inside.and_then(|rest| rest.split_once('/')).ok_or_else(|| not_found(operation))?;
            inner.upload(row.id, parse_id(operation, id)?, name, max_bytes)
        })
        .await
    }

    async fn failed_checks(&self, repo: &Repo, commit: &Sha) -> Result<Vec<FailedCheck>, RemoteError> {
        let (row, _) = self.inner.row("read the checks of a commit", repo)?;
        let others = row.checks.iter().filter(|check| check.reported.is_some());
        Ok(others
            .filter(|check| check.run.head_sha == *commit)
            .filter_map(|check| {
                let conclusion = match check.run.conclusion? {
                    CheckConclusion::Failure => "failure",
                    CheckConclusion::TimedOut => "timed_out",
                    _ => return None,
                };
                let run = check.run.clone();
                let annotations = run.annotations.into_iter().map(|found| Annotation {
                    path: found.path,
                    line: found.line,
                    message: found.message,
                });
                Some(FailedCheck {
                    id: check.id,
                    name: run.name,
                    conclusion: conclusion.to_owned(),
                    title: run.title,
                    summary: run.summary,
                    annotations: annotations.collect(),
                    job: Some(check.id),
                })
            })
            .take(ci::MAX_CHECKS)
            .collect())
    }

    async fn job_log(
        &self,
        repo: &Repo,
        job: i64,
        last_bytes: usize,
    ) -> Result<Option<LogTail>, RemoteError> {
        let (row, _) = self.inner.row("read the log of a check", repo)?;
        let found = row.checks.iter().find(|check| check.id == job).and_then(|check| check.reported.clone());
        Ok(found.map(|report| {
            let mut bytes = report.log.into_bytes();
            let cut = bytes.len().saturating_sub(last_bytes);
            bytes.drain(..cut);
            LogTail { bytes, whole: cut == 0 }
        }))
    }

    async fn fork_of(&self, repo: &Repo, owner: &str) -> Result<Option<Repo>, RemoteError> {
        self.inner.fork_named(repo, owner)
    }

    async fn pull_template(&self, repo: &Repo) -> Result<Option<String>, RemoteError> {
        let operation = "read pull request template";
        let repo = repo.clone();
        self.blocking(operation, move |inner| {
            let (row, bare) = inner.row(operation, &repo)?;
            for path in TEMPLATE_PATHS {
                let found = bare.read_file(row.default_branch.as_str(), path).map_err(failed(operation))?;
                if let Some(bytes) = found {
                    return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
                }
            }
            Ok(None)
        })
        .await
    }

    async fn git_access(&self, repo: &Repo, _permission: GitPermission) -> Result<GitAccess, RemoteError> {
        let operation = "git access";
        let (_, bare) = self.inner.row(operation, repo)?;
        let url = url::Url::from_file_path(bare.path()).map_err(|()| RemoteError::Protocol {
            operation,
            detail: format!("{} is not an absolute path", bare.path().display()),
        })?;
        Ok(GitAccess { url: url.to_string(), username: BOT_LOGIN.to_owned(), token: None })
    }

    async fn check(&self) -> Result<String, RemoteError> {
        let operation = "check the local forge";
        let repos = self.inner.lock().repos.len();
        let folder = self.inner.folder.display();
        match self.inner.folder.join("forge.json").try_exists() {
            Ok(true) => Ok(format!("local forge at {folder}, {repos} repositories")),
            Ok(false) => {
                Err(RemoteError::Unavailable { operation, detail: format!("{folder}/forge.json is gone") })
            }
            Err(error) => Err(RemoteError::Unavailable { operation, detail: format!("{folder}: {error}") }),
        }
    }

    async fn missed_deliveries(
        &self,
        _since: chrono::DateTime<chrono::Utc>,
    ) -> Result<Vec<Missed>, RemoteError> {
        // A delivery is handed to whoever caused it, and that one posts it: the forge keeps none.
        Ok(Vec::new())
    }

    async fn redeliver(&self, _attempt: i64) -> Result<(), RemoteError> {
        Err(RemoteError::NotFound { operation: "deliver again" })
    }

    fn forget(&self, _installation: i64) {
        // Nothing is cached: every answer is read from the state and the repositories.
    }

    fn web_url(&self) -> &str {
        &self.inner.web_url
    }
}

#[cfg(test)]
mod tests;
