//! The fields of GitHub's replies that we use, and nothing more.

use crate::domain::event::{Actor, ActorKind, PullHead, Subject, SubjectKind};
use crate::domain::ids::{BranchName, RepoName, Sha};
use crate::remote::{Missed, RemoteError};
use chrono::{DateTime, Utc};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct User {
    pub id: i64,
    pub login: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

impl User {
    pub fn actor(self) -> Actor {
        let kind = match self.kind.as_deref() {
            Some("Bot") => ActorKind::Bot,
            Some("Organization") => ActorKind::Organization,
            _ => ActorKind::User,
        };
        Actor { id: self.id, login: self.login, kind }
    }
}

/// A deleted account, as GitHub shows it.
pub fn ghost() -> Actor {
    Actor { id: 0, login: "ghost".into(), kind: ActorKind::User }
}

#[derive(Deserialize)]
pub struct AppInfo {
    pub id: i64,
    pub slug: Option<String>,
    pub name: Option<String>,
}

#[derive(Deserialize)]
pub struct Id {
    pub id: i64,
}

/// Anything we made: a comment, check run, pull request or reaction.
#[derive(Deserialize)]
pub struct Made {
    pub id: i64,
    pub node_id: Option<String>,
    pub html_url: Option<String>,
}

#[derive(Deserialize)]
pub struct Comment {
    pub id: i64,
    pub node_id: Option<String>,
    pub html_url: Option<String>,
    pub body: Option<String>,
    pub user: Option<User>,
    pub performed_via_github_app: Option<Id>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub path: Option<String>,
    pub line: Option<i64>,
    pub original_line: Option<i64>,
}

#[derive(Deserialize)]
pub struct CheckRuns {
    pub check_runs: Vec<CheckRun>,
}

#[derive(Deserialize)]
pub struct CheckRun {
    pub id: i64,
    pub node_id: Option<String>,
    pub html_url: Option<String>,
    pub external_id: Option<String>,
    pub head_sha: String,
    pub name: Option<String>,
    pub conclusion: Option<String>,
    pub details_url: Option<String>,
    pub output: Option<CheckOutput>,
    pub app: Option<CheckApp>,
}

#[derive(Deserialize, Default)]
pub struct CheckOutput {
    pub title: Option<String>,
    pub summary: Option<String>,
    pub annotations_count: Option<i64>,
}

#[derive(Deserialize)]
pub struct CheckApp {
    pub id: i64,
    pub slug: Option<String>,
}

#[derive(Deserialize)]
pub struct Annotation {
    pub path: String,
    pub start_line: Option<i64>,
    pub message: Option<String>,
}

#[derive(Deserialize)]
pub struct RepoJson {
    pub id: i64,
    pub full_name: String,
    pub private: bool,
    pub default_branch: String,
    /// What it was forked from.
    pub parent: Option<Id>,
}

#[derive(Deserialize)]
pub struct RepoBrief {
    pub id: i64,
    pub full_name: String,
}

#[derive(Deserialize)]
pub struct ChangedFile {
    pub filename: String,
    pub previous_filename: Option<String>,
}

#[derive(Deserialize)]
pub struct PullSide {
    #[serde(rename = "ref")]
    pub name: String,
    pub sha: String,
    pub repo: Option<RepoBrief>,
}

#[derive(Deserialize)]
pub struct Pull {
    pub number: i64,
    pub node_id: Option<String>,
    pub html_url: Option<String>,
    pub state: String,
    pub title: Option<String>,
    pub body: Option<String>,
    pub draft: Option<bool>,
    pub merged: Option<bool>,
    pub merged_at: Option<DateTime<Utc>>,
    /// Not null: the forge merges by itself.
    pub auto_merge: Option<serde_json::Value>,
    pub user: Option<User>,
    pub head: PullSide,
    pub base: PullSide,
}

impl Pull {
    pub fn head(self, operation: &'static str) -> Result<PullHead, RemoteError> {
        let wrong = |error: crate::domain::ids::InvalidId| RemoteError::Protocol {
            operation,
            detail: error.to_string(),
        };
        let fork = match (&self.head.repo, &self.base.repo) {
            (Some(head), Some(base)) => head.id != base.id,
            // A deleted fork; a base without a repository cannot be.
            _ => true,
        };
        let head_repo = self
            .head
            .repo
            .as_ref()
            .map(|repo| RepoName::parse(&repo.full_name))
            .transpose()
            .map_err(wrong)?;
        Ok(PullHead {
            number: self.number,
            head_sha: Sha::parse(&self.head.sha).map_err(wrong)?,
            head_ref: self.head.name,
            head_repo,
            base_ref: BranchName::parse(&self.base.name).map_err(wrong)?,
            base_sha: Sha::parse(&self.base.sha).map_err(wrong)?,
            fork,
            open: self.state == "open",
            merged: self.merged.unwrap_or(false) || self.merged_at.is_some(),
            draft: self.draft.unwrap_or(false),
        })
    }
}

#[derive(Deserialize)]
pub struct Label {
    pub name: String,
}

#[derive(Deserialize)]
pub struct Review {
    pub id: i64,
    pub node_id: Option<String>,
    pub html_url: Option<String>,
    pub body: Option<String>,
    pub user: Option<User>,
}

#[derive(Deserialize)]
pub struct Issue {
    pub number: i64,
    pub node_id: Option<String>,
    #[serde(default)]
    pub labels: Vec<Label>,
    pub title: String,
    pub body: Option<String>,
    pub user: Option<User>,
    pub html_url: String,
    pub state: String,
    /// How many comments its conversation has.
    #[serde(default)]
    pub comments: usize,
    pub pull_request: Option<serde_json::Value>,
}

impl Issue {
    pub fn is_pull(&self) -> bool {
        self.pull_request.is_some()
    }

    pub fn subject(self) -> Subject {
        Subject {
            kind: if self.is_pull() { SubjectKind::PullRequest } else { SubjectKind::Issue },
            number: self.number,
            title: self.title,
            body: self.body.unwrap_or_default(),
            author: self.user.map_or_else(ghost, User::actor),
            url: self.html_url,
            open: self.state == "open",
        }
    }
}

#[derive(Deserialize)]
pub struct RefJson {
    #[serde(rename = "ref")]
    pub name: String,
    pub object: RefObject,
}

#[derive(Deserialize)]
pub struct RefObject {
    pub sha: String,
}

#[derive(Deserialize)]
pub struct Collaborator {
    pub permission: Option<String>,
    pub role_name: Option<String>,
    pub user: Option<User>,
}

/// What the contents endpoint says of a path.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Contents {
    Folder(Vec<Entry>),
    One(Entry),
}

#[derive(Deserialize)]
pub struct Entry {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub size: Option<u64>,
    pub encoding: Option<String>,
    pub content: Option<String>,
}

/// One attempt to hand over a delivery.
#[derive(Deserialize)]
pub struct HookAttempt {
    pub id: i64,
    pub guid: String,
    pub delivered_at: DateTime<Utc>,
    pub status_code: i64,
    pub event: String,
    pub action: Option<String>,
}

impl HookAttempt {
    pub fn missed(self) -> Missed {
        let event = match self.action {
            Some(action) => format!("{}.{action}", self.event),
            None => self.event,
        };
        Missed { guid: self.guid, attempt: self.id, event, at: self.delivered_at }
    }
}
