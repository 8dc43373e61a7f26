//! Effects: every change to the outside world, its natural key and its place in the sending order.

use super::event::Repo;
use super::ids::{BranchName, EffectId, RunId, Sha, TaskId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// `planned → sending → confirmed`; a crash or an unclear reply makes it `ambiguous`, and it is
/// reconciled (`find`) before it may be sent again. `failed` is for good: the other side said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectState {
    Planned,
    Sending,
    Ambiguous,
    Confirmed,
    Failed,
}

impl EffectState {
    pub const ALL: [EffectState; 5] = [
        EffectState::Planned,
        EffectState::Sending,
        EffectState::Ambiguous,
        EffectState::Confirmed,
        EffectState::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            EffectState::Planned => "planned",
            EffectState::Sending => "sending",
            EffectState::Ambiguous => "ambiguous",
            EffectState::Confirmed => "confirmed",
            EffectState::Failed => "failed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Order of sending under the rate governor: lower goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectPriority {
    /// 👀
    Seen = 0,
    /// The pull request, final states, failures, answers.
    Final = 1,
    Question = 2,
    FirstSticky = 3,
    Check = 4,
    /// Newest only.
    Progress = 5,
}

impl EffectPriority {
    pub fn as_i64(self) -> i64 {
        self as i64
    }

    pub fn from_i64(value: i64) -> Option<Self> {
        [Self::Seen, Self::Final, Self::Question, Self::FirstSticky, Self::Check, Self::Progress]
            .into_iter()
            .find(|priority| priority.as_i64() == value)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reaction {
    Eyes,
    Rocket,
    Confused,
    PlusOne,
}

impl Reaction {
    /// GitHub's REST name. GraphQL uses `EYES ROCKET CONFUSED THUMBS_UP`.
    pub fn rest_name(self) -> &'static str {
        match self {
            Reaction::Eyes => "eyes",
            Reaction::Rocket => "rocket",
            Reaction::Confused => "confused",
            Reaction::PlusOne => "+1",
        }
    }

    pub fn graphql_name(self) -> &'static str {
        match self {
            Reaction::Eyes => "EYES",
            Reaction::Rocket => "ROCKET",
            Reaction::Confused => "CONFUSED",
            Reaction::PlusOne => "THUMBS_UP",
        }
    }

    pub fn emoji(self) -> &'static str {
        match self {
            Reaction::Eyes => "👀",
            Reaction::Rocket => "🚀",
            Reaction::Confused => "😕",
            Reaction::PlusOne => "👍",
        }
    }
}

/// What a reaction is put on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "on")]
pub enum ReactionTarget {
    /// The issue or pull request itself.
    Subject {
        number: i64,
    },
    Comment {
        id: i64,
    },
    ReviewComment {
        id: i64,
    },
    /// A review body: GraphQL only.
    Review {
        node_id: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    Queued,
    InProgress,
    Completed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckConclusion {
    Success,
    Failure,
    Neutral,
    Cancelled,
    TimedOut,
    ActionRequired,
}

/// The wanted state of one check run; natural key: `external_id` (run, name) and SHA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRun {
    pub name: String,
    pub head_sha: Sha,
    pub external_id: String,
    pub status: CheckStatus,
    pub conclusion: Option<CheckConclusion>,
    pub title: String,
    pub summary: String,
    pub details_url: Option<String>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    /// Shown beside the lines; sent when the check is created.
    #[serde(default)]
    pub annotations: Vec<Annotation>,
}

/// Something wrong with a line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    pub path: String,
    /// Counted from 1.
    pub line: i64,
    pub message: String,
}

/// A comment that we own. With a `remote_ref` on the effect it is edited in place, else created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnComment {
    pub number: i64,
    /// Reply in this review thread (id of its first comment) instead of in the conversation.
    pub thread: Option<i64>,
    /// The exact hidden marker (`<!-- zeblit:v1 … mac=… -->`) that `body` contains: how `find` knows the comment.
    pub marker: String,
    pub body: String,
}

/// The wanted pull request; natural key: head and base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnPull {
    pub head: BranchName,
    /// The repository that `head` lives in, when it is our fork.
    #[serde(default)]
    pub fork: Option<Repo>,
    pub base: BranchName,
    pub title: String,
    pub body: String,
    pub draft: bool,
    pub marker: String,
}

/// A push of verified commits; applied by `engine/publish` from the stored artifact, not by a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchPush {
    pub branch: BranchName,
    /// What the ref must hold before (`None`: it must not exist).
    pub expected: Option<Sha>,
    pub new: Sha,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Payload {
    Reaction {
        target: ReactionTarget,
        reaction: Reaction,
    },
    /// The one comment of a run that is edited in place.
    Sticky(OwnComment),
    /// A reply, an answer, a refusal: written once.
    Comment(OwnComment),
    Check(CheckRun),
    Pull(OwnPull),
    Branch(BranchPush),
    /// Fold an old sticky comment away as outdated (GraphQL `minimizeComment`).
    Minimise {
        node_id: String,
    },
}

impl Payload {
    /// The `kind` column of the effects table and the label of its metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Payload::Reaction { .. } => "reaction",
            Payload::Sticky(_) => "sticky",
            Payload::Comment(_) => "comment",
            Payload::Check(_) => "check",
            Payload::Pull(_) => "pull",
            Payload::Branch(_) => "branch",
            Payload::Minimise { .. } => "minimise",
        }
    }
}

/// What the other side calls the thing that an effect made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RemoteRef {
    /// Comment id, check run id, pull request number, commit id.
    pub id: String,
    pub node_id: Option<String>,
    pub url: Option<String>,
    /// Something the report should say, e.g. that drafts are refused here.
    pub note: Option<String>,
}

/// An effect to be stored. Storing one whose `key` exists replaces payload and priority and plans it
/// again (desired state, newest only), unless the payload is equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEffect {
    pub run: Option<RunId>,
    pub task: Option<TaskId>,
    pub remote: String,
    pub repo: Repo,
    pub key: String,
    pub priority: EffectPriority,
    pub payload: Payload,
    /// Not sent before this time (coalescing of progress).
    pub not_before: Option<DateTime<Utc>>,
}

/// A row of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    pub id: EffectId,
    pub run: Option<RunId>,
    pub task: Option<TaskId>,
    pub remote: String,
    pub repo: Repo,
    pub key: String,
    pub priority: EffectPriority,
    pub payload: Payload,
    /// Counts payload changes: a confirmation of an older revision leaves the effect planned.
    pub revision: i64,
    pub state: EffectState,
    pub intent_at: Option<DateTime<Utc>>,
    pub not_before: Option<DateTime<Utc>>,
    /// Set once the thing exists; later sends edit it.
    pub remote_ref: Option<RemoteRef>,
    pub tries: i64,
    pub last_error: Option<String>,
    pub created_at: DateTime<Utc>,
}
