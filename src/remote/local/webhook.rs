//! Deliveries of the local forge, in the shape of GitHub's webhooks.

use super::state::{CommentRow, RepoRow, ReviewRow, State, SubjectRow};
use super::{LocalForge, node_id, not_found};
use crate::domain::event::{Actor, ActorKind, PullHead, Repo};
use crate::remote::RemoteError;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

/// One webhook delivery, not yet signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// `X-GitHub-Event`.
    pub event: &'static str,
    /// `X-GitHub-Delivery`: unique on this forge and again the same when the same thing is sent twice.
    pub delivery_id: String,
    pub body: Vec<u8>,
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn user(actor: &Actor) -> Value {
    let kind = match actor.kind {
        ActorKind::User => "User",
        ActorKind::Bot => "Bot",
        ActorKind::Organization => "Organization",
    };
    json!({ "id": actor.id, "node_id": node_id(actor.id), "login": actor.login, "type": kind, "site_admin": false })
}

impl LocalForge {
    /// The App that wrote something, as `performed_via_github_app` names it.
    fn app(state: &State, author: i64) -> Value {
        if author == state.bot {
            json!({ "id": state.app_id, "slug": "zeblit", "node_id": node_id(state.app_id) })
        } else {
            Value::Null
        }
    }

    fn repository(&self, state: &State, row: &RepoRow) -> Value {
        let mut owner = user(&state.actor(state.owner));
        if let Some(login) = owner.get_mut("login") {
            *login = json!(row.name.owner());
        }
        json!({
            "id": row.id,
            "node_id": node_id(row.id),
            "name": row.name.name(),
            "full_name": row.name.as_str(),
            "private": row.private,
            "owner": owner,
            "html_url": self.inner.repo_url(&row.name),
            "description": row.description,
            "fork": row.fork_of.is_some(),
            "created_at": time(row.created_at),
            "default_branch": row.default_branch.as_str(),
        })
    }

    fn issue(&self, state: &State, row: &RepoRow, subject: &SubjectRow) -> Value {
        let mut issue = json!({
            "id": subject.id,
            "node_id": node_id(subject.id),
            "number": subject.number,
            "title": subject.title,
            "body": subject.body,
            "user": user(&state.actor(subject.author)),
            "labels": [],
            "state": if subject.open { "open" } else { "closed" },
            "locked": false,
            "comments": subject.comments.len(),
            "created_at": time(subject.created_at),
            "updated_at": time(subject.updated_at),
            "closed_at": subject.closed_at.map(time),
            "html_url": self.inner.subject_url(&row.name, subject),
        });
        if let (Some(pull), Some(fields)) = (&subject.pull, issue.as_object_mut()) {
            let url = self.inner.subject_url(&row.name, subject);
            fields.insert("pull_request".to_owned(), json!({ "url": url.clone(), "html_url": url }));
            fields.insert("draft".to_owned(), json!(pull.draft));
        }
        issue
    }

    fn pull_request(&self, state: &State, row: &RepoRow, subject: &SubjectRow, head: &PullHead) -> Value {
        let repository = self.repository(state, row);
        let home = head.head_repo.as_ref().and_then(|name| state.repo_named(name));
        let home = home.map(|home| self.repository(state, home));
        json!({
            "id": subject.id,
            "node_id": node_id(subject.id),
            "number": subject.number,
            "title": subject.title,
            "body": subject.body,
            "user": user(&state.actor(subject.author)),
            "state": if subject.open { "open" } else { "closed" },
            "draft": head.draft,
            "merged": head.merged,
            "created_at": time(subject.created_at),
            "updated_at": time(subject.updated_at),
            "closed_at": subject.closed_at.map(time),
            "html_url": self.inner.subject_url(&row.name, subject),
            "head": { "ref": head.head_ref, "sha": head.head_sha.as_str(), "repo": home },
            "base": { "ref": head.base_ref.as_str(), "sha": head.base_sha.as_str(), "repo": repository },
        })
    }

    fn issue_comment(
        &self,
        state: &State,
        row: &RepoRow,
        subject: &SubjectRow,
        comment: &CommentRow,
    ) -> Value {
        json!({
            "id": comment.id,
            "node_id": node_id(comment.id),
            "html_url": self.inner.comment_url(&row.name, subject, comment),
            "user": user(&state.actor(comment.author)),
            "created_at": time(comment.created_at),
            "updated_at": time(comment.updated_at),
            "body": comment.body,
            "performed_via_github_app": Self::app(state, comment.author),
        })
    }

    fn find_pull(
        &self,
        operation: &'static str,
        row: &RepoRow,
        subject: &SubjectRow,
    ) -> Result<PullHead, RemoteError> {
        let bare = self.inner.bare(&row.name);
        subject.pull.as_ref().ok_or_else(|| not_found(operation))?;
        self.inner.pull_head(row, &bare, subject)
    }

    /// `issues` or `pull_request` with `action`.
    pub(super) fn subject_webhook(
        &self,
        operation: &'static str,
        repo: &Repo,
        number: i64,
        sender: &Actor,
        action: &str,
    ) -> Result<Webhook, RemoteError> {
        let (row, _) = self.inner.row(operation, repo)?;
        let subject = row.subject(number).ok_or_else(|| not_found(operation))?;
        let head = match subject.pull {
            Some(_) => Some(self.find_pull(operation, &row, subject)?),
            None => None,
        };
        let state = self.inner.lock();
        let mut body = json!({
            "action": action,
            "repository": self.repository(&state, &row),
            "sender": user(sender),
        });
        let event = if let Some(fields) = body.as_object_mut() {
            match &head {
                Some(head) => {
                    fields.insert("number".to_owned(), json!(number));
                    fields.insert("pull_request".to_owned(), self.pull_request(&state, &row, subject, head));
                    "pull_request"
                }
                None => {
                    fields.insert("issue".to_owned(), self.issue(&state, &row, subject));
                    "issues"
                }
            }
        } else {
            "issues"
        };
        let key = format!("{event}-{}-{action}-{}", subject.id, subject.updated_at.timestamp_millis());
        Ok(Webhook { event, delivery_id: delivery_id(&row, &key), body: body.to_string().into_bytes() })
    }

    /// `issue_comment` or `pull_request_review_comment`: `created`, or `edited` when the body before is given.
    pub(super) fn comment_webhook(
        &self,
        operation: &'static str,
        repo: &Repo,
        id: i64,
        sender: &Actor,
        before: Option<&str>,
    ) -> Result<Webhook, RemoteError> {
        let (row, _) = self.inner.row(operation, repo)?;
        let (subject, comment) = row.comment(id).ok_or_else(|| not_found(operation))?;
        let head = match comment.place {
            Some(_) => Some(self.find_pull(operation, &row, subject)?),
            None => None,
        };
        let state = self.inner.lock();
        let action = if before.is_some() { "edited" } else { "created" };
        let mut written = self.issue_comment(&state, &row, subject, comment);
        let mut body = json!({
            "action": action,
            "repository": self.repository(&state, &row),
            "sender": user(sender),
        });
        let mut event = "issue_comment";
        if let (Some(fields), Some(comment_fields)) = (body.as_object_mut(), written.as_object_mut()) {
            if let Some(before) = before {
                fields.insert("changes".to_owned(), json!({ "body": { "from": before } }));
            }
            match (&comment.place, &head) {
                (Some(place), Some(head)) => {
                    event = "pull_request_review_comment";
                    let extra = [
                        ("path", json!(place.path)),
                        ("line", json!(place.line)),
                        ("original_line", json!(place.line)),
                        ("side", json!("RIGHT")),
                        ("commit_id", json!(place.commit.as_str())),
                        ("original_commit_id", json!(place.commit.as_str())),
                        ("diff_hunk", json!(place.diff_hunk)),
                        ("pull_request_review_id", Value::Null),
                    ];
                    comment_fields.extend(extra.into_iter().map(|(name, value)| (name.to_owned(), value)));
                    if let Some(first) = place.reply_to {
                        comment_fields.insert("in_reply_to_id".to_owned(), json!(first));
                    }
                    fields.insert("pull_request".to_owned(), self.pull_request(&state, &row, subject, head));
                }
                _ => {
                    fields.insert("issue".to_owned(), self.issue(&state, &row, subject));
                }
            }
            fields.insert("comment".to_owned(), written);
        }
        let key = format!("{event}-{id}-{action}-{}", comment.updated_at.timestamp_millis());
        Ok(Webhook { event, delivery_id: delivery_id(&row, &key), body: body.to_string().into_bytes() })
    }

    /// `pull_request_review` with action `submitted`.
    pub(super) fn review_webhook(
        &self,
        operation: &'static str,
        repo: &Repo,
        id: i64,
        sender: &Actor,
    ) -> Result<Webhook, RemoteError> {
        let (row, _) = self.inner.row(operation, repo)?;
        let found = row.subjects.iter().find_map(|subject| {
            let review = subject.reviews.iter().find(|review: &&ReviewRow| review.id == id)?;
            Some((subject, review))
        });
        let (subject, review) = found.ok_or_else(|| not_found(operation))?;
        let head = self.find_pull(operation, &row, subject)?;
        let state = self.inner.lock();
        let body = json!({
            "action": "submitted",
            "review": {
                "id": id,
                "node_id": node_id(id),
                "user": user(&state.actor(review.author)),
                "body": review.body,
                "state": "commented",
                "commit_id": head.head_sha.as_str(),
                "submitted_at": time(review.created_at),
                "html_url": format!("{}#pullrequestreview-{id}", self.inner.subject_url(&row.name, subject)),
            },
            "pull_request": self.pull_request(&state, &row, subject, &head),
            "repository": self.repository(&state, &row),
            "sender": user(sender),
        });
        let key = format!("review-{id}");
        Ok(Webhook {
            event: "pull_request_review",
            delivery_id: delivery_id(&row, &key),
            body: body.to_string().into_bytes(),
        })
    }
}

/// The time keeps a forge that was begun anew from repeating the ids of the one before.
fn delivery_id(row: &RepoRow, key: &str) -> String {
    format!("local-{}-{key}", row.created_at.timestamp_millis())
}
