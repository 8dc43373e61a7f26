//! What the server asks of this forge besides conversations, checks and pull requests: labels, people, drafts,
//! threads, branches, reviews, issues, repositories, and the removal of what was made twice.

use super::state::{CommentRow, PlaceRow, PullRow, ReviewRow, SubjectRow};
use super::{
    Inner, LocalForge, check_body, check_title, failed, node_id, not_found, parse_id, parse_node_id,
    push_comment, push_subject, refused,
};
use crate::domain::effect::{
    CheckConclusion, CheckStatus, MergeMethod, OWN_BRANCH_PREFIX, OwnIssue, OwnReview, RemoteRef,
    STATE_LABELS, Twin,
};
use crate::domain::event::Repo;
use crate::domain::ids::{BranchName, RepoName, Sha};
use crate::domain::wording;
use crate::remote::RemoteError;

/// Labels of one subject, as at GitHub.
const MAX_LABELS: usize = 100;

impl Inner {
    /// Changes an issue or pull request; `change` says whether anything is different.
    fn change_subject(
        &self,
        operation: &'static str,
        repo: &Repo,
        number: i64,
        change: impl FnOnce(&mut SubjectRow) -> Result<bool, RemoteError>,
    ) -> Result<RemoteRef, RemoteError> {
        let now = self.clock.now();
        self.change(operation, |state| {
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let subject = row.subject_mut(number).ok_or_else(|| not_found(operation))?;
            if change(subject)? {
                subject.updated_at = now;
            }
            let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
            Ok(self.pull_ref(row, subject, None))
        })
    }

    fn change_pull(
        &self,
        operation: &'static str,
        repo: &Repo,
        number: i64,
        change: impl FnOnce(&mut PullRow) -> Result<bool, RemoteError>,
    ) -> Result<RemoteRef, RemoteError> {
        self.change_subject(operation, repo, number, |subject| {
            if !subject.open {
                return Err(refused(operation, "the pull request is closed"));
            }
            change(subject.pull.as_mut().ok_or_else(|| not_found(operation))?)
        })
    }

    pub(super) fn apply_label(
        &self,
        repo: &Repo,
        number: i64,
        name: &str,
        present: bool,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = if present { "add label" } else { "remove label" };
        self.change_subject(operation, repo, number, |subject| {
            let is_there = subject.labels.iter().any(|label| label == name);
            if present && !is_there {
                if subject.labels.len() >= MAX_LABELS {
                    return Err(refused(operation, format!("at most {MAX_LABELS} labels")));
                }
                subject.labels.push(name.to_owned());
            } else if !present {
                subject.labels.retain(|label| label != name);
            }
            Ok(present != is_there)
        })
    }

    pub(super) fn apply_state_label(
        &self,
        repo: &Repo,
        number: i64,
        name: Option<&str>,
    ) -> Result<RemoteRef, RemoteError> {
        self.change_subject("set state label", repo, number, |subject| {
            let before = subject.labels.clone();
            subject
                .labels
                .retain(|label| Some(label.as_str()) == name || !STATE_LABELS.contains(&label.as_str()));
            if let Some(name) = name
                && !subject.labels.iter().any(|label| label == name)
            {
                subject.labels.push(name.to_owned());
            }
            Ok(subject.labels != before)
        })
    }

    pub(super) fn apply_people(
        &self,
        repo: &Repo,
        number: i64,
        logins: &[String],
        reviewers: bool,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = if reviewers { "ask for a review" } else { "assign people" };
        self.change_subject(operation, repo, number, |subject| {
            if reviewers && subject.pull.is_none() {
                return Err(not_found(operation));
            }
            let list = if reviewers { &mut subject.reviewers } else { &mut subject.assignees };
            let before = list.len();
            for login in logins {
                if !list.iter().any(|known| known.eq_ignore_ascii_case(login)) {
                    list.push(login.clone());
                }
            }
            Ok(list.len() != before)
        })
    }

    pub(super) fn apply_draft(
        &self,
        repo: &Repo,
        number: i64,
        draft: bool,
    ) -> Result<RemoteRef, RemoteError> {
        self.change_pull("change draft", repo, number, |pull| {
            Ok(std::mem::replace(&mut pull.draft, draft) != draft)
        })
    }

    pub(super) fn apply_auto_merge(
        &self,
        repo: &Repo,
        number: i64,
        head: &Sha,
        method: MergeMethod,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = "turn on auto-merge";
        let (row, bare) = self.row(operation, repo)?;
        let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
        if self.pull_head(&row, &bare, subject)?.head_sha != *head {
            return Err(refused(operation, "the head of the pull request moved"));
        }
        self.change_pull(operation, repo, number, |pull| Ok(pull.auto_merge.replace(method) != Some(method)))
    }

    pub(super) fn apply_resolve(&self, repo: &Repo, node: &str) -> Result<RemoteRef, RemoteError> {
        let operation = "resolve thread";
        let id = parse_node_id(operation, node)?;
        self.change(operation, |state| {
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let comment = row.comment_mut(id).ok_or_else(|| not_found(operation))?;
            if comment.place.as_ref().is_none_or(|place| place.reply_to.is_some()) {
                return Err(not_found(operation));
            }
            comment.resolved = true;
            self.comment_ref(row, id).ok_or_else(|| not_found(operation))
        })
    }

    pub(super) fn apply_delete_branch(
        &self,
        repo: &Repo,
        branch: &BranchName,
        expected: &Sha,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = "delete branch";
        if !branch.as_str().starts_with(OWN_BRANCH_PREFIX) {
            return Err(refused(operation, format!("`{branch}` is not one of ours")));
        }
        let (row, bare) = self.row(operation, repo)?;
        // Open pull requests keep showing what they had: as after a merge.
        match bare.branch_head(branch).map_err(failed(operation))? {
            None => {}
            Some(head) if head == *expected => bare.delete_branch(branch).map_err(failed(operation))?,
            Some(_) => return Err(refused(operation, wording::branch_holds_other_work(branch))),
        }
        let url = Some(self.repo_url(&row.name));
        Ok(RemoteRef { id: expected.to_string(), node_id: None, url, note: None })
    }

    pub(super) fn apply_review(
        &self,
        repo: &Repo,
        wanted: &OwnReview,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = if existing.is_some() { "edit review" } else { "submit review" };
        check_body(operation, &wanted.body)?;
        if let Some(known) = existing {
            let id = parse_id(operation, &known.id)?;
            return self.edit_review(operation, repo, wanted.number, id, &wanted.body);
        }
        let (row, bare) = self.row(operation, repo)?;
        let subject = row.subject(wanted.number).ok_or_else(|| not_found(operation))?;
        let head = self.pull_head(&row, &bare, subject)?;
        let compared = bare.compare(&head.base_sha, &wanted.commit).map_err(failed(operation))?;
        let mut places = Vec::new();
        for comment in &wanted.comments {
            check_body(operation, &comment.body)?;
            let file = compared.files.iter().find(|file| file.path == comment.path);
            let hunk = file.and_then(|file| file.hunk_of(comment.line)).ok_or_else(|| {
                refused(
                    operation,
                    format!("`{}` line {} is not part of the diff", comment.path, comment.line),
                )
            })?;
            places.push(PlaceRow {
                path: comment.path.clone(),
                line: Some(comment.line),
                commit: wanted.commit.clone(),
                diff_hunk: hunk,
                reply_to: None,
            });
        }
        let now = self.clock.now();
        self.change(operation, |state| {
            let (bot, id) = (state.bot, state.new_id());
            let ids: Vec<i64> = places.iter().map(|_| state.new_id()).collect();
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let subject = row.subject_mut(wanted.number).ok_or_else(|| not_found(operation))?;
            subject.reviews.push(ReviewRow {
                id,
                author: bot,
                body: wanted.body.clone(),
                created_at: now,
                reactions: Vec::new(),
            });
            for ((comment, place), comment_id) in wanted.comments.iter().zip(places).zip(ids) {
                push_comment(subject, operation, comment_id, bot, &comment.body, Some(place), now)?;
                if let Some(pushed) = subject.comments.last_mut() {
                    pushed.review = Some(id);
                }
            }
            Ok(review_ref(id))
        })
    }

    fn edit_review(
        &self,
        operation: &'static str,
        repo: &Repo,
        number: i64,
        id: i64,
        body: &str,
    ) -> Result<RemoteRef, RemoteError> {
        self.change(operation, |state| {
            let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
            let subject = row.subject_mut(number).ok_or_else(|| not_found(operation))?;
            let review = subject.reviews.iter_mut().find(|review| review.id == id);
            body.clone_into(&mut review.ok_or_else(|| not_found(operation))?.body);
            Ok(review_ref(id))
        })
    }

    pub(super) fn apply_issue(
        &self,
        repo: &Repo,
        wanted: &OwnIssue,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = if existing.is_some() { "edit issue" } else { "open issue" };
        check_title(operation, &wanted.title)?;
        check_body(operation, &wanted.body)?;
        let number = match existing {
            Some(known) => parse_id(operation, &known.id)?,
            None => {
                let now = self.clock.now();
                self.change(operation, |state| {
                    let (bot, id) = (state.bot, state.new_id());
                    let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
                    push_subject(row, operation, id, bot, &wanted.title, &wanted.body, None, now)
                })?
            }
        };
        self.change_subject(operation, repo, number, |subject| {
            let changed = subject.title != wanted.title || subject.body != wanted.body;
            subject.title.clone_from(&wanted.title);
            subject.body.clone_from(&wanted.body);
            Ok(changed)
        })
    }

    pub(super) fn apply_remove(&self, repo: &Repo, twin: &Twin) -> Result<RemoteRef, RemoteError> {
        let operation = "remove a twin";
        match twin {
            Twin::Comment { id, .. } => self.change(operation, |state| {
                let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
                let is_it = |comment: &CommentRow| comment.id == *id;
                for subject in &mut row.subjects {
                    if subject.comments.iter().any(is_it) {
                        subject.comments.retain(|comment| !is_it(comment));
                    }
                }
                Ok(RemoteRef { id: id.to_string(), ..RemoteRef::default() })
            }),
            Twin::Check { id } => {
                let now = self.clock.now();
                self.change(operation, |state| {
                    let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
                    let check = row.checks.iter_mut().find(|check| check.id == *id);
                    let check = check.ok_or_else(|| not_found(operation))?;
                    check.run.status = CheckStatus::Completed;
                    check.run.conclusion = Some(CheckConclusion::Neutral);
                    check.run.completed_at = Some(now);
                    // It is not to be found again by what it once was.
                    check.run.external_id = wording::SUPERSEDED_ID.to_owned();
                    wording::SUPERSEDED.clone_into(&mut check.run.title);
                    wording::SUPERSEDED.clone_into(&mut check.run.summary);
                    check.updated_at = now;
                    Ok(RemoteRef { id: id.to_string(), ..RemoteRef::default() })
                })
            }
            Twin::Issue { number, of } => {
                let now = self.clock.now();
                self.change_subject(operation, repo, *number, |subject| {
                    let changed = subject.open;
                    subject.open = false;
                    subject.closed_at = subject.closed_at.or(Some(now));
                    subject.body = wording::duplicate_of(of);
                    Ok(changed)
                })
            }
            Twin::Note { .. } => Err(refused(operation, "this forge has no tickets")),
            Twin::Review { number, id } => {
                self.change(operation, |state| {
                    let row = state.repo_mut(repo).ok_or_else(|| not_found(operation))?;
                    let subject = row.subject_mut(*number).ok_or_else(|| not_found(operation))?;
                    subject.comments.retain(|comment| comment.review != Some(*id));
                    Ok(())
                })?;
                self.edit_review(operation, repo, *number, *id, wording::SUPERSEDED)
            }
        }
    }
}

pub(super) fn review_ref(id: i64) -> RemoteRef {
    RemoteRef { id: id.to_string(), node_id: Some(node_id(id)), url: None, note: None }
}

impl LocalForge {
    /// The fork that belongs to `owner`, made when it is not there.
    pub(super) fn apply_fork(&self, repo: &Repo, owner: &str) -> Result<RemoteRef, RemoteError> {
        let known = self.inner.fork_named(repo, owner)?;
        let name = match known {
            Some(fork) => fork.name,
            None => self.create_fork(repo, owner)?.repo.name,
        };
        Ok(self.inner.repository_ref(&name))
    }

    /// A repository of this name, made empty when it is not there.
    pub(super) fn apply_repository(&self, name: &RepoName) -> Result<RemoteRef, RemoteError> {
        if self.inner.lock().repo_named(name).is_none() {
            let main =
                BranchName::parse("main").map_err(|error| refused("create repository", error.to_string()))?;
            self.add_repo(name, "", |bare| bare.create_empty(&main).map(|()| main.clone()))?;
        }
        Ok(self.inner.repository_ref(name))
    }
}

impl Inner {
    pub(super) fn fork_named(&self, repo: &Repo, owner: &str) -> Result<Option<Repo>, RemoteError> {
        let state = self.lock();
        let row = state.repo(repo).ok_or_else(|| not_found("look for our fork"))?;
        let mut forks = state.repos.iter().filter(|fork| fork.fork_of == Some(row.id));
        Ok(forks.find(|fork| fork.name.owner().eq_ignore_ascii_case(owner)).map(super::RepoRow::repo))
    }

    pub(super) fn repository_ref(&self, name: &RepoName) -> RemoteRef {
        RemoteRef { id: name.to_string(), node_id: None, url: Some(self.repo_url(name)), note: None }
    }
}
