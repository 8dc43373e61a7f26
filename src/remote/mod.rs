//! Places that effects go to. A remote that also hosts Git is a forge.
//!
//! `apply` sends one effect; `find` looks for what an earlier, unclear `apply` may have made.
//! Neither retries: when to send again is the engine's decision.

pub mod github;
pub mod jira;
pub mod local;
mod rest;
pub mod sentry;

use crate::domain::attachment::Link;
use crate::domain::ci::FailedCheck;
use crate::domain::effect::{Effect, Payload, RemoteRef};
use crate::domain::event::{Actor, PullHead, Repo, Subject};
use crate::domain::ids::{BranchName, Sha};
use crate::domain::policy::Role;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use std::fmt::Debug;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Primary or secondary rate limit; nothing was done.
    #[error("{operation}: rate limited, again in {} s", retry_after.as_secs())]
    RateLimited { operation: &'static str, retry_after: Duration },
    /// The request may or may not have been obeyed: time-out, reset, 5xx after sending.
    #[error("{operation}: unclear reply: {detail}")]
    Unclear { operation: &'static str, detail: String },
    /// Nothing was sent (connection refused, DNS, TLS) or the read failed harmlessly (5xx on a GET).
    #[error("{operation}: unavailable: {detail}")]
    Unavailable { operation: &'static str, detail: String },
    /// Our credentials were refused.
    #[error("{operation}: credentials refused: {detail}")]
    Auth { operation: &'static str, detail: String },
    /// The App may not do this here.
    #[error("{operation}: forbidden: {detail}")]
    Forbidden { operation: &'static str, detail: String },
    #[error("{operation}: not found")]
    NotFound { operation: &'static str },
    /// The other side understood and said no (4xx).
    #[error("{operation}: refused ({status}): {detail}")]
    Refused { operation: &'static str, status: u16, detail: String },
    /// One step of several was done: it is sent again for the next.
    #[error("{operation}: more steps follow")]
    Unfinished { operation: &'static str },
    /// The reply is not what the protocol says.
    #[error("{operation}: unexpected reply: {detail}")]
    Protocol { operation: &'static str, detail: String },
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    After(Duration),
    /// Ask `find` first.
    Reconcile,
    Never,
}

impl RemoteError {
    pub fn retry(&self) -> Retry {
        match self {
            RemoteError::RateLimited { retry_after, .. } => Retry::After(*retry_after),
            RemoteError::Unclear { .. } => Retry::Reconcile,
            RemoteError::Unavailable { .. } => Retry::After(Duration::from_secs(5)),
            RemoteError::Auth { .. } => Retry::After(Duration::from_secs(60)),
            RemoteError::Unfinished { .. } => Retry::After(Duration::ZERO),
            RemoteError::Forbidden { .. }
            | RemoteError::NotFound { .. }
            | RemoteError::Refused { .. }
            | RemoteError::Protocol { .. } => Retry::Never,
        }
    }
}

/// An effect of a kind that this remote does not have.
fn not_here(remote: &str, payload: &Payload) -> RemoteError {
    let detail = format!("{remote} has no effects of kind `{}`", payload.kind());
    RemoteError::Refused { operation: "apply an effect", status: 400, detail }
}

#[async_trait]
pub trait Remote: Send + Sync + Debug {
    /// `github`, `local`, `jira` or `sentry`: the `remote` column of tasks, runs and effects.
    fn name(&self) -> &'static str;

    /// Makes the outside world as the effect wants it: creates, or edits what `remote_ref` names.
    async fn apply(&self, effect: &Effect) -> Result<RemoteRef, RemoteError>;

    /// Everything that the effect may already have made (natural key or signed marker), the one to keep first;
    /// more than one where a list lagged behind and it was made again.
    async fn find_all(&self, effect: &Effect) -> Result<Vec<RemoteRef>, RemoteError>;

    /// The first of `find_all`. `None`: not there, or it is known what the effect edits: doing that again is
    /// harmless and cheaper than comparing.
    async fn find(&self, effect: &Effect) -> Result<Option<RemoteRef>, RemoteError> {
        if effect.remote_ref.is_some() {
            return Ok(None);
        }
        Ok(self.find_all(effect).await?.into_iter().next())
    }
}

/// What Git needs to reach a repository.
#[derive(Debug, Clone)]
pub struct GitAccess {
    /// Without credentials.
    pub url: String,
    pub username: String,
    /// `None` where no credentials are needed (a local path).
    pub token: Option<SecretString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GitPermission {
    Read,
    Write,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoInfo {
    pub repo: Repo,
    pub default_branch: BranchName,
}

/// A comment of a conversation, as context for a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadComment {
    pub author: Actor,
    pub body: String,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// Set on review comments.
    pub path: Option<String>,
    pub line: Option<i64>,
    /// We wrote it.
    pub own: bool,
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTail {
    pub bytes: Vec<u8>,
    /// Nothing stands before it.
    pub whole: bool,
}

#[async_trait]
pub trait Forge: Remote {
    /// The App's or bot's own user id and App id: events by these are never obeyed.
    async fn own_identity(&self) -> Result<OwnIdentity, RemoteError>;

    /// The live role of a user. An unknown user or no access is `Role::None`; an error is never a grant.
    async fn role_of(&self, repo: &Repo, user: &Actor) -> Result<Role, RemoteError>;

    async fn repo_info(&self, repo: &Repo) -> Result<RepoInfo, RemoteError>;

    /// The commit a branch points to; `None` when there is no such branch.
    async fn branch_head(&self, repo: &Repo, branch: &BranchName) -> Result<Option<Sha>, RemoteError>;

    /// The content of a file at a branch or commit; `None` when there is none. At most 1 MiB, else `Refused`.
    async fn read_file(&self, repo: &Repo, at: &str, path: &str) -> Result<Option<Vec<u8>>, RemoteError>;

    /// Names of the files directly in a folder at a branch or commit, of folders with a `/` at the end; empty when
    /// there is none.
    async fn list_folder(&self, repo: &Repo, at: &str, path: &str) -> Result<Vec<String>, RemoteError>;

    /// A pull request as it is now.
    async fn pull(&self, repo: &Repo, number: i64) -> Result<PullHead, RemoteError>;

    /// The paths that a pull request changes, old names too.
    async fn changed_paths(&self, repo: &Repo, number: i64) -> Result<Vec<String>, RemoteError>;

    /// An issue or pull request as it is now.
    async fn subject(&self, repo: &Repo, number: i64) -> Result<Subject, RemoteError>;

    /// The conversation (and review comments of a pull request), oldest first, at most `limit` newest.
    async fn thread(&self, repo: &Repo, number: i64, limit: usize)
    -> Result<Vec<ThreadComment>, RemoteError>;

    /// The address below which people's uploads lie, e.g. `https://github.com`: see `domain::attachment::links`.
    fn uploads_url(&self) -> &str;

    /// The bytes of a file that somebody attached; more than `max_bytes` is `Refused`.
    async fn attachment(&self, repo: &Repo, link: &Link, max_bytes: usize) -> Result<Vec<u8>, RemoteError>;

    /// The checks of a commit that ended badly, without our own.
    async fn failed_checks(&self, repo: &Repo, commit: &Sha) -> Result<Vec<FailedCheck>, RemoteError>;

    /// The last bytes of a failed check's log; `None` when there is none or we may not read it.
    async fn job_log(&self, repo: &Repo, job: i64, last_bytes: usize)
    -> Result<Option<LogTail>, RemoteError>;

    /// The pull request template of the default branch, when there is one.
    async fn pull_template(&self, repo: &Repo) -> Result<Option<String>, RemoteError>;

    /// The fork of a repository that this account owns and that we may push to; `None` when there is none.
    async fn fork_of(&self, repo: &Repo, owner: &str) -> Result<Option<Repo>, RemoteError>;

    /// Short-lived access for Git, for this repository and permission only.
    async fn git_access(&self, repo: &Repo, permission: GitPermission) -> Result<GitAccess, RemoteError>;

    /// Deliveries since a time that no attempt brought to us, oldest first; empty on a forge that keeps none.
    async fn missed_deliveries(&self, since: DateTime<Utc>) -> Result<Vec<Missed>, RemoteError>;

    /// Asks for one more attempt of a delivery, by the number of an earlier one.
    async fn redeliver(&self, attempt: i64) -> Result<(), RemoteError>;

    /// One cheap authenticated call: does the forge answer us?
    async fn check(&self) -> Result<String, RemoteError>;

    /// The installation or repository moved, changed or vanished: forget what is cached.
    fn forget(&self, installation: i64);

    /// Where people see a repository, issue or comment, e.g. `https://github.com`.
    fn web_url(&self) -> &str;
}

/// A delivery that the forge tried in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// The delivery id, the same in every attempt.
    pub guid: String,
    /// The newest attempt.
    pub attempt: i64,
    /// `event.action`, for the log.
    pub event: String,
    /// When the newest attempt failed.
    pub at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnIdentity {
    /// The bot user (`<slug>[bot]`).
    pub user_id: i64,
    pub login: String,
    pub app_id: i64,
}
