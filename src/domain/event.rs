//! What happened, in words that no source owns: the result of decoding one delivery.

use super::ids::{BranchName, RepoName, Sha};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Where a delivery came from; also the last part of its URL, `/webhooks/<source>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Github,
    Jira,
    Sentry,
}

impl Source {
    pub const ALL: [Source; 3] = [Source::Github, Source::Jira, Source::Sentry];

    pub fn as_str(self) -> &'static str {
        match self {
            Source::Github => "github",
            Source::Jira => "jira",
            Source::Sentry => "sentry",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
    }
}

/// A repository as an event names it. `id` survives renames; `name` does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    pub id: i64,
    pub name: RepoName,
    /// The App installation that covers it; 0 on forges that have none.
    pub installation: i64,
    pub private: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    User,
    Bot,
    Organization,
}

/// Somebody on the forge. Only `id` identifies; a login can be renamed or imitated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub id: i64,
    pub login: String,
    pub kind: ActorKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    Issue,
    PullRequest,
}

/// The issue or pull request that a comment stands on, as the payload showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub kind: SubjectKind,
    pub number: i64,
    pub title: String,
    pub body: String,
    pub author: Actor,
    pub url: String,
    pub open: bool,
}

/// Where in a conversation a comment stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "surface")]
pub enum Surface {
    /// A comment in the conversation of an issue or pull request.
    Conversation,
    /// The body of the issue or pull request itself, when it was opened.
    Opening,
    /// A comment on a line of a pull request. `line` is `None` on an outdated or file-level comment.
    ReviewComment {
        path: String,
        line: Option<i64>,
        review: Option<i64>,
        commit: Option<Sha>,
        diff_hunk: String,
        /// The first comment of the thread; replies go there.
        thread: i64,
    },
    /// The body of a submitted review. It takes no REST reaction, only a GraphQL one.
    Review,
    /// No text at all: a label that stands for a command, taken off once it was read.
    Label { name: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum CommentAction {
    Created,
    /// `before` is the body before this edit (`changes.body.from`); empty when the edit changed something else.
    Edited {
        before: Option<String>,
    },
}

/// The head of a pull request, when the payload carries it (`issue_comment` does not).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullHead {
    pub number: i64,
    pub head_sha: Sha,
    pub head_ref: String,
    /// `None` when the fork was deleted.
    pub head_repo: Option<RepoName>,
    pub base_ref: BranchName,
    pub base_sha: Sha,
    /// The head lives in another repository.
    pub fork: bool,
    pub open: bool,
    pub merged: bool,
    pub draft: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comment {
    pub surface: Surface,
    pub action: CommentAction,
    pub subject: Subject,
    /// Present on review comments and reviews; must be asked for otherwise.
    pub pull: Option<PullHead>,
    pub id: i64,
    pub node_id: String,
    pub body: String,
    pub author: Actor,
    /// The App that wrote it (`performed_via_github_app.id`), when an App did.
    pub app_id: Option<i64>,
    pub url: String,
    /// When the text that triggers was written: `updated_at` of an edit, else `created_at`.
    pub written_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum EventKind {
    Comment(Box<Comment>),
    /// `merged` is only ever true for pull requests.
    SubjectClosed {
        kind: SubjectKind,
        number: i64,
        merged: bool,
    },
    SubjectReopened {
        kind: SubjectKind,
        number: i64,
    },
    /// New commits on the head of a pull request.
    PullPushed {
        number: i64,
        head: Sha,
        /// By the forge's clock.
        at: Option<DateTime<Utc>>,
    },
    Pushed {
        branch: BranchName,
        after: Option<Sha>,
        /// It is the repository's default branch.
        is_default: bool,
    },
    /// Somebody pressed "Re-run" on one of our checks; `external_id` is what we set when creating it.
    CheckRerequested {
        external_id: String,
        head_sha: Sha,
    },
    InstallationCreated {
        account: String,
        repos: Vec<(i64, RepoName)>,
    },
    InstallationDeleted,
    InstallationSuspended {
        suspended: bool,
    },
    InstallationReposChanged {
        added: Vec<(i64, RepoName)>,
        removed: Vec<(i64, RepoName)>,
    },
    /// Renamed or transferred: `Event::repo` has the new name.
    RepoMoved {
        from: RepoName,
    },
    RepoDeleted,
    /// The forge checks that the hook works.
    Ping,
}

/// One decoded delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub source: Source,
    pub repo: Option<Repo>,
    pub installation: Option<i64>,
    pub sender: Option<Actor>,
    pub kind: EventKind,
}

/// What decoding a delivery gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    Event(Box<Event>),
    /// Understood and of no use here; the reason is stored with the delivery.
    Ignored(String),
    /// Of a kind that a later version acts on; kept for replay.
    NotYetHandled(String),
    /// Not what its headers say it is; kept for replay.
    Unreadable(String),
}
