//! Effects: every change to the outside world, its natural key and its place in the sending order.

use super::event::Repo;
use super::ids::{BranchName, EffectId, RepoName, RunId, Sha, TaskId};
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

/// A review with comments on lines of a pull request; it neither approves nor refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnReview {
    pub number: i64,
    /// The commit whose lines the comments name.
    pub commit: Sha,
    pub body: String,
    /// As `OwnComment::marker`.
    pub marker: String,
    pub comments: Vec<LineComment>,
}

/// A comment on a line of the new side of a file that the pull request changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineComment {
    pub path: String,
    /// Counted from 1.
    pub line: i64,
    pub body: String,
}

/// An issue that we open, for an alert or a part of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnIssue {
    pub title: String,
    pub body: String,
    /// As `OwnComment::marker`; made for the alert or the parent, so that each has one issue.
    pub marker: String,
}

/// A comment on a Jira ticket or a Sentry issue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketNote {
    /// Key of the ticket, id of the issue.
    pub ticket: String,
    pub body: String,
    /// As `OwnComment::marker`, but not part of `body`: each remote keeps it where it can be found again.
    pub mark: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeMethod {
    Merge,
    Squash,
    Rebase,
}

/// A second one of something of ours, made when a list of the forge lagged behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "twin")]
pub enum Twin {
    /// Deleted.
    Comment { id: i64, thread: bool },
    /// Checks cannot be deleted: it ends neutral and says why.
    Check { id: i64 },
    /// Closed; its text names the one that stays.
    Issue { number: i64, of: String },
    /// On a Jira ticket or a Sentry issue; deleted.
    Note { ticket: String, id: String },
    /// A review that was submitted cannot be deleted: its text is cut down to a note.
    Review { number: i64, id: i64 },
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
    /// One label of an issue or pull request, put on or taken off. Other labels stay as they are.
    Label {
        number: i64,
        name: String,
        present: bool,
    },
    /// Which one of our own state labels (`STATE_LABELS`) a subject has; `None`: none of them.
    StateLabel {
        number: i64,
        name: Option<String>,
    },
    /// People who are assigned, besides those who are already.
    Assignees {
        number: i64,
        logins: Vec<String>,
    },
    /// People who are asked for a review, besides those who are already.
    Reviewers {
        number: i64,
        logins: Vec<String>,
    },
    /// Whether a pull request is a draft (`false`: it is ready for review).
    Draft {
        number: i64,
        draft: bool,
    },
    /// A review thread is done with (GraphQL `resolveReviewThread`).
    ResolveThread {
        node_id: String,
    },
    /// Deletes a branch of ours; refused when it holds anything but `expected`.
    DeleteBranch {
        branch: BranchName,
        expected: Sha,
    },
    /// The forge merges by itself when everything it waits for is there, and only this head.
    AutoMerge {
        number: i64,
        head: Sha,
        method: MergeMethod,
    },
    Review(OwnReview),
    Issue(OwnIssue),
    /// The effect's repository has a fork that belongs to `owner` (an organisation).
    Fork {
        owner: String,
    },
    /// A repository of this name is there, made empty when it is not.
    Repository {
        name: RepoName,
        private: bool,
    },
    TicketComment(TicketNote),
    /// The status that a ticket or an alert is to have: a transition at Jira, a change at Sentry.
    TicketStatus {
        ticket: String,
        status: String,
    },
    /// Takes away what was made twice.
    Remove(Twin),
}

/// The labels of which `Payload::StateLabel` keeps at most one on a subject.
pub const STATE_LABELS: [&str; 4] = ["zeblit:queued", "zeblit:running", "zeblit:needs-input", "zeblit:done"];

/// Only branches whose names begin so are ever deleted.
pub const OWN_BRANCH_PREFIX: &str = "zeblit/";

/// Every kind of effect there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Reaction,
    Sticky,
    Comment,
    Check,
    Pull,
    Branch,
    Minimise,
    LabelAdd,
    LabelRemove,
    StateLabel,
    Assignees,
    Reviewers,
    Ready,
    Draft,
    ResolveThread,
    DeleteBranch,
    AutoMerge,
    Review,
    Issue,
    Fork,
    Repository,
    TicketComment,
    TicketStatus,
    RemoveComment,
    RemoveCheck,
    RemoveIssue,
    RemoveReview,
    RemoveNote,
}

impl Kind {
    pub const ALL: [Kind; 28] = [
        Kind::Reaction,
        Kind::Sticky,
        Kind::Comment,
        Kind::Check,
        Kind::Pull,
        Kind::Branch,
        Kind::Minimise,
        Kind::LabelAdd,
        Kind::LabelRemove,
        Kind::StateLabel,
        Kind::Assignees,
        Kind::Reviewers,
        Kind::Ready,
        Kind::Draft,
        Kind::ResolveThread,
        Kind::DeleteBranch,
        Kind::AutoMerge,
        Kind::Review,
        Kind::Issue,
        Kind::Fork,
        Kind::Repository,
        Kind::TicketComment,
        Kind::TicketStatus,
        Kind::RemoveComment,
        Kind::RemoveCheck,
        Kind::RemoveIssue,
        Kind::RemoveReview,
        Kind::RemoveNote,
    ];

    /// The `kind` column of the effects table and the label of its metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Reaction => "reaction",
            Kind::Sticky => "sticky",
            Kind::Comment => "comment",
            Kind::Check => "check",
            Kind::Pull => "pull",
            Kind::Branch => "branch",
            Kind::Minimise => "minimise",
            Kind::LabelAdd => "label_add",
            Kind::LabelRemove => "label_remove",
            Kind::StateLabel => "state_label",
            Kind::Assignees => "assignees",
            Kind::Reviewers => "reviewers",
            Kind::Ready => "ready",
            Kind::Draft => "draft",
            Kind::ResolveThread => "resolve_thread",
            Kind::DeleteBranch => "delete_branch",
            Kind::AutoMerge => "auto_merge",
            Kind::Review => "review",
            Kind::Issue => "issue",
            Kind::Fork => "fork",
            Kind::Repository => "repository",
            Kind::TicketComment => "ticket_comment",
            Kind::TicketStatus => "ticket_status",
            Kind::RemoveComment => "remove_comment",
            Kind::RemoveCheck => "remove_check",
            Kind::RemoveIssue => "remove_issue",
            Kind::RemoveReview => "remove_review",
            Kind::RemoveNote => "remove_note",
        }
    }
}

/// What is done when nobody knows whether an effect was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconcile {
    /// It sets a value: it is sent again.
    Repeat,
    /// It is looked for, and sent again at once when it is not there: the other side refuses a second one.
    Natural,
    /// It is looked for, and made again only when it stayed away for longer than lists lag.
    Look,
}

impl Payload {
    pub fn of_kind(&self) -> Kind {
        match self {
            Payload::Reaction { .. } => Kind::Reaction,
            Payload::Sticky(_) => Kind::Sticky,
            Payload::Comment(_) => Kind::Comment,
            Payload::Check(_) => Kind::Check,
            Payload::Pull(_) => Kind::Pull,
            Payload::Branch(_) => Kind::Branch,
            Payload::Minimise { .. } => Kind::Minimise,
            Payload::Label { present: true, .. } => Kind::LabelAdd,
            Payload::Label { present: false, .. } => Kind::LabelRemove,
            Payload::StateLabel { .. } => Kind::StateLabel,
            Payload::Assignees { .. } => Kind::Assignees,
            Payload::Reviewers { .. } => Kind::Reviewers,
            Payload::Draft { draft: false, .. } => Kind::Ready,
            Payload::Draft { draft: true, .. } => Kind::Draft,
            Payload::ResolveThread { .. } => Kind::ResolveThread,
            Payload::DeleteBranch { .. } => Kind::DeleteBranch,
            Payload::AutoMerge { .. } => Kind::AutoMerge,
            Payload::Review(_) => Kind::Review,
            Payload::Issue(_) => Kind::Issue,
            Payload::Fork { .. } => Kind::Fork,
            Payload::Repository { .. } => Kind::Repository,
            Payload::TicketComment(_) => Kind::TicketComment,
            Payload::TicketStatus { .. } => Kind::TicketStatus,
            Payload::Remove(Twin::Comment { .. }) => Kind::RemoveComment,
            Payload::Remove(Twin::Check { .. }) => Kind::RemoveCheck,
            Payload::Remove(Twin::Issue { .. }) => Kind::RemoveIssue,
            Payload::Remove(Twin::Review { .. }) => Kind::RemoveReview,
            Payload::Remove(Twin::Note { .. }) => Kind::RemoveNote,
        }
    }

    /// The `kind` column of the effects table and the label of its metrics.
    pub fn kind(&self) -> &'static str {
        self.of_kind().as_str()
    }

    /// What an unclear reply to its sending leads to, while nothing of it is known to be there.
    pub fn reconcile(&self) -> Reconcile {
        match self {
            Payload::Reaction { .. }
            | Payload::Minimise { .. }
            | Payload::Label { .. }
            | Payload::StateLabel { .. }
            | Payload::Assignees { .. }
            | Payload::Reviewers { .. }
            | Payload::Draft { .. }
            | Payload::ResolveThread { .. }
            | Payload::DeleteBranch { .. }
            | Payload::AutoMerge { .. }
            | Payload::TicketStatus { .. }
            | Payload::Remove(_) => Reconcile::Repeat,
            Payload::Pull(_) | Payload::Branch(_) | Payload::Fork { .. } | Payload::Repository { .. } => {
                Reconcile::Natural
            }
            Payload::Sticky(_)
            | Payload::Comment(_)
            | Payload::Check(_)
            | Payload::Review(_)
            | Payload::Issue(_)
            | Payload::TicketComment(_) => Reconcile::Look,
        }
    }

    /// How a second one of it, known as `twin`, is taken away, when `kept` stays. `None`: there cannot be two.
    pub fn twin(&self, twin: &RemoteRef, kept: &RemoteRef) -> Option<Twin> {
        let id = twin.id.parse().ok()?;
        let marker = match self {
            Payload::Sticky(own) | Payload::Comment(own) => &own.marker,
            Payload::Issue(own) => &own.marker,
            Payload::Review(own) => &own.marker,
            Payload::Check(own) => &own.external_id,
            Payload::TicketComment(own) => &own.mark,
            _ => return None,
        };
        // Without a mark nobody could tell it from something else of ours.
        if marker.is_empty() {
            return None;
        }
        match self {
            Payload::Sticky(own) | Payload::Comment(own) => {
                Some(Twin::Comment { id, thread: own.thread.is_some() })
            }
            Payload::Check(_) => Some(Twin::Check { id }),
            Payload::Issue(_) => Some(Twin::Issue { number: id, of: kept.id.clone() }),
            Payload::Review(own) => Some(Twin::Review { number: own.number, id }),
            Payload::TicketComment(own) => {
                Some(Twin::Note { ticket: own.ticket.clone(), id: twin.id.clone() })
            }
            _ => None,
        }
    }
}

/// What the other side calls the thing that an effect made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RemoteRef {
    /// Comment id, check run id, number of a pull request or issue, commit id, name of a repository.
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
    /// When its sending was committed last. What comes of a sending is recorded only while this is its time.
    pub intent_at: Option<DateTime<Utc>>,
    /// Who sent it last: `NODE:BOOT`.
    pub sender: Option<String>,
    pub not_before: Option<DateTime<Utc>>,
    /// Set once the thing exists; later sends edit it.
    pub remote_ref: Option<RemoteRef>,
    pub tries: i64,
    pub last_error: Option<String>,
    pub created_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Kind::ALL.into_iter().map(Kind::as_str).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        // The list is in the order of the kinds and skips none.
        assert!(Kind::ALL.iter().enumerate().all(|(n, kind)| *kind as usize == n));
        assert_eq!(Kind::RemoveNote as usize + 1, Kind::ALL.len(), "the last kind is in the list");
    }

    #[test]
    fn what_can_be_made_twice_can_be_taken_away() {
        let comment = OwnComment { number: 1, thread: Some(4), marker: "m".into(), body: "b".into() };
        let id = |id: &str| RemoteRef { id: id.into(), ..RemoteRef::default() };
        let payload = Payload::Comment(comment);
        assert_eq!(payload.reconcile(), Reconcile::Look);
        assert_eq!(payload.twin(&id("7"), &id("5")), Some(Twin::Comment { id: 7, thread: true }));
        assert_eq!(payload.twin(&id("no number"), &id("5")), None);
        let label = Payload::Label { number: 1, name: "bug".into(), present: true };
        assert_eq!((label.reconcile(), label.twin(&id("7"), &id("5"))), (Reconcile::Repeat, None));
    }
}
