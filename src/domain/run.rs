//! A run: the request it serves, its state machine and how it ended.

use super::budget::BudgetKind;
use super::command::Verb;
use super::event::{Actor, PullHead, Subject, Surface};
use super::ids::{BranchName, RepoName, RunId, Sha, TaskId};
use super::repo_config::RepoConfig;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Queued,
    /// Claimed: workspace and container are being made.
    Preparing,
    /// The agent runs.
    Running,
    /// The agent is gone; what it left is being collected.
    Collecting,
    /// The changeset is imported, checked and pushed.
    Publishing,
    /// Pushed; waits until the forge confirmed the pull request. Holds no lease.
    Reporting,
    /// The changeset is kept and waits for a person's `/zeblit ok`. Holds neither lease nor lock.
    Held,
    Succeeded,
    /// Ended well and changed nothing.
    Nothing,
    /// The agent asked a question; an answer goes on from here.
    NeedsInput,
    Failed,
    Cancelled,
}

impl RunState {
    pub const ALL: [RunState; 12] = [
        RunState::Queued,
        RunState::Preparing,
        RunState::Running,
        RunState::Collecting,
        RunState::Publishing,
        RunState::Reporting,
        RunState::Held,
        RunState::Succeeded,
        RunState::Nothing,
        RunState::NeedsInput,
        RunState::Failed,
        RunState::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            RunState::Queued => "queued",
            RunState::Preparing => "preparing",
            RunState::Running => "running",
            RunState::Collecting => "collecting",
            RunState::Publishing => "publishing",
            RunState::Reporting => "reporting",
            RunState::Held => "held",
            RunState::Succeeded => "succeeded",
            RunState::Nothing => "nothing",
            RunState::NeedsInput => "needs_input",
            RunState::Failed => "failed",
            RunState::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            RunState::Succeeded
                | RunState::Nothing
                | RunState::NeedsInput
                | RunState::Failed
                | RunState::Cancelled
        )
    }

    /// Needs a worker that holds its lease.
    pub fn needs_worker(self) -> bool {
        matches!(self, RunState::Preparing | RunState::Running | RunState::Collecting | RunState::Publishing)
    }
}

/// Whether the run may change the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunMode {
    Change,
    ReadOnly,
}

/// What becomes of a changeset that passed the gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publish {
    /// Pushed at once.
    #[default]
    Push,
    /// Kept until somebody approves exactly this changeset, then pushed.
    Approve,
    /// A dry run: kept and shown.
    Stage,
    /// Kept and offered as a patch: there is no branch that we may push to.
    Patch,
}

/// The comment that asked, so that answers and reactions find their way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub surface: Surface,
    pub comment_id: i64,
    pub node_id: String,
    pub url: String,
    pub written_at: DateTime<Utc>,
    /// The inbox row, for logs and replay.
    pub delivery: String,
}

/// What a run was asked to do: fixed when the command arrives, never changed after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    pub verb: Verb,
    /// The words of the request; for `run`, the recipe's arguments.
    pub text: String,
    pub agent: String,
    pub model: Option<String>,
    pub mode: RunMode,
    pub requester: Actor,
    /// The issue or pull request as the payload showed it when the command arrived.
    pub subject: Subject,
    pub origin: Option<Origin>,
    /// The commit the agent starts from.
    pub start: Sha,
    /// The branch a pull request goes to; configuration and agents were read from the default branch.
    pub base: BranchName,
    /// The tip of `base` when the command arrived: where trusted copies of agent configuration come from.
    pub base_sha: Sha,
    /// The pull request that is worked on, pinned.
    pub pull: Option<PullHead>,
    /// The branch that will be pushed; `None` for read-only runs and patches.
    pub push_to: Option<BranchName>,
    /// Our fork, when that branch lives there and not in the repository itself.
    #[serde(default)]
    pub fork: Option<RepoName>,
    #[serde(default)]
    pub publish: Publish,
    pub image: String,
    pub budget_micros: i64,
    pub wall_seconds: i64,
    pub config: RepoConfig,
    /// The run this one retries or continues.
    pub previous: Option<RunId>,
    /// It may go on with the conversation of that run's agent; a retry begins anew.
    #[serde(default)]
    pub resume: bool,
    /// What a node must have to take it: sorted, each once.
    #[serde(default)]
    pub needs: Vec<String>,
}

impl RunSpec {
    /// The pull request from a stranger's fork whose code this run executes: its head must be approved.
    pub fn needs_ok(&self) -> Option<&PullHead> {
        let runs_code = !matches!(self.verb, Verb::Review | Verb::Ask);
        self.pull.as_ref().filter(|pull| runs_code && pull.fork && self.fork.is_none())
    }

    /// Whether the agent of `other` was the same, worked on code of the same trust and might do the same: only then
    /// its conversation is gone on with.
    pub fn can_resume(&self, other: &RunSpec) -> bool {
        let foreign = |spec: &RunSpec| spec.pull.as_ref().is_some_and(|pull| pull.fork);
        self.resume && self.agent == other.agent && self.mode == other.mode && foreign(self) == foreign(other)
    }
}

/// Why a run ended badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Credentials were refused.
    Auth,
    /// The model or forge said "too much".
    Quota,
    /// The model endpoint is overloaded, down or not configured.
    Model,
    Timeout,
    OutOfMemory,
    /// Workspace, output and home grew above their limit.
    Disk,
    /// The container could not be made, or broke.
    Sandbox,
    /// The agent itself failed (exit code, error result).
    Agent,
    /// The gate refused the changeset.
    Gate,
    /// Somebody else moved the branch.
    Conflict,
    /// The money limit was reached.
    Budget,
    /// Clone or fetch failed.
    Git,
    /// The configuration of the repository is wrong.
    Config,
    /// The repository's setup failed.
    Setup,
    /// The forge refused something.
    Forge,
    /// What it waited for did not come to a good end.
    Blocked,
    /// Whoever worked on it died, again and again in the same step: nobody takes it on any more.
    Poison,
    /// A defect of ours; details are in the server's log.
    Internal,
}

impl FailureClass {
    pub fn name(self) -> &'static str {
        match self {
            FailureClass::Auth => "auth",
            FailureClass::Quota => "quota",
            FailureClass::Model => "model",
            FailureClass::Timeout => "timeout",
            FailureClass::OutOfMemory => "out of memory",
            FailureClass::Disk => "disk",
            FailureClass::Sandbox => "sandbox",
            FailureClass::Agent => "agent",
            FailureClass::Gate => "gate",
            FailureClass::Conflict => "conflict",
            FailureClass::Budget => "budget",
            FailureClass::Git => "git",
            FailureClass::Config => "config",
            FailureClass::Setup => "setup",
            FailureClass::Forge => "forge",
            FailureClass::Blocked => "blocked",
            FailureClass::Poison => "poison",
            FailureClass::Internal => "internal",
        }
    }

    /// How long a run that failed so waits before it is tried again by itself; `None`: it ends. `times` counts the tries
    /// before, `reset` is what the other side asked for. What passes by itself (overload, limits per time) is waited for;
    /// wrong credentials, an empty account and everything else need somebody.
    pub fn pause_before_retry(self, times: i64, reset: Option<TimeDelta>) -> Option<TimeDelta> {
        if !matches!(self, FailureClass::Model | FailureClass::Quota) {
            return None;
        }
        let step = RETRY_MINUTES.get(usize::try_from(times).ok()?).copied()?;
        let pause = reset.unwrap_or_default().max(TimeDelta::minutes(step));
        (pause <= LONGEST_RETRY_PAUSE).then_some(pause)
    }
}

/// Minutes before each automatic retry.
pub const RETRY_MINUTES: [i64; 5] = [1, 5, 15, 30, 60];
/// Whoever wants to be left alone for longer is not waited for.
const LONGEST_RETRY_PAUSE: TimeDelta = TimeDelta::hours(12);
/// A run whose worker died so often in the same step is given up: see `FailureClass::Poison`.
pub const MAX_DEATHS: i64 = 3;

/// Where a run stands in line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    High = 0,
    #[default]
    Default = 1,
    Low = 2,
}

impl Priority {
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Default, Priority::Low];

    pub fn as_str(self) -> &'static str {
        match self {
            Priority::High => "high",
            Priority::Default => "default",
            Priority::Low => "low",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.as_str() == text)
    }

    pub fn as_i64(self) -> i64 {
        self as i64
    }
}

/// The phases of the checklist, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Queue,
    Clone,
    Sandbox,
    /// The repository's setup runs ahead of the agent.
    Setup,
    Agent,
    Check,
    Push,
    Pull,
}

/// How far the repository's setup is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetupState {
    #[default]
    Pending,
    /// The container that runs is the setup's.
    Running,
    Done,
}

/// What is known of a run while it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub phase: Option<Phase>,
    /// The last thing the agent said or did, one line, already inert.
    pub last: String,
    pub tool_calls: i64,
    pub tokens: i64,
    pub cost_micros: i64,
    /// Queue position (1 is next) and what it waits for, while queued.
    pub position: Option<i64>,
    pub waits_for: Option<RunId>,
    /// Where the agent really starts, when our own earlier run moved the branch on since the command arrived.
    pub start: Option<Sha>,
    /// The agent's result (of a recipe: the end of its output), raw, capped; becomes `Outcome::summary`.
    pub result: String,
    /// `result` is prose (Markdown), not the end of a recipe's output.
    pub prose: bool,
    /// The shim has committed and bundled what the agent left.
    pub collected: bool,
    /// The first error that the agent's own output named.
    pub error: Option<(FailureClass, String)>,
    /// The agent's exit code, as the shim saw it.
    pub exit_code: Option<i64>,
    /// The agent's own checklist.
    #[serde(default)]
    pub checklist: Vec<ChecklistItem>,
    #[serde(default)]
    pub setup: SetupState,
    /// How long it took.
    #[serde(default)]
    pub setup_seconds: i64,
    /// The most that was seen of each.
    #[serde(default)]
    pub peak: Option<Load>,
    /// Budgets that were nearly used while it ran, each once, with the words for it.
    #[serde(default)]
    pub warnings: Vec<(BudgetKind, String)>,
    /// The budget that stopped it.
    #[serde(default)]
    pub over: Option<BudgetKind>,
    /// The agent's session by the name that its program gave it.
    #[serde(default)]
    pub session: Option<String>,
    /// The session of an earlier run that the running attempt goes on with.
    #[serde(default)]
    pub resumed: Option<String>,
    /// The agent's program began another session than that one.
    #[serde(default)]
    pub session_lost: bool,
    /// Going on with a session was tried in vain: the run begins anew.
    #[serde(default)]
    pub no_resume: bool,
    /// It was put back into the queue because something passes by itself.
    #[serde(default)]
    pub again: Option<Again>,
    /// Numbers of the issues and pull requests that it still waits for, while queued.
    #[serde(default)]
    pub after: Vec<i64>,
    /// While queued: no node that lives would take it.
    #[serde(default)]
    pub no_node: bool,
}

impl Progress {
    /// Forgets what is true of a container and workspace that the run goes on without.
    fn begin_elsewhere(&mut self) {
        let kept = Progress {
            cost_micros: self.cost_micros,
            tokens: self.tokens,
            peak: self.peak,
            no_resume: self.no_resume,
            again: self.again.take(),
            warnings: std::mem::take(&mut self.warnings),
            ..Progress::default()
        };
        *self = kept;
    }
}

/// Why a run waits to be tried again by itself; `Run::not_before` says until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    pub class: FailureClass,
    /// For people.
    pub reason: String,
    /// Tries before, this one counted.
    pub times: i64,
}

/// What a container uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Thousandths of a processor.
    pub millicpus: i64,
    pub memory_bytes: i64,
    /// Workspace, output and home.
    pub disk_bytes: i64,
}

/// How the agent's part ended, decided when the container is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "end")]
pub enum AgentEnd {
    Finished,
    Failed {
        class: FailureClass,
        detail: String,
    },
    Cancelled,
    /// It asked a question.
    Asked {
        question: Question,
    },
}

/// What an agent wants to know from a human.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Raw text of an agent, secrets masked.
    pub text: String,
    /// Suggested answers; empty: free text.
    pub choices: Vec<String>,
}

/// One line of the agent's own checklist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChecklistItem {
    /// Raw text of an agent.
    pub text: String,
    pub done: bool,
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub class: Option<FailureClass>,
    /// The phase in which it failed.
    pub step: Option<Phase>,
    /// One or two sentences for people, without secrets.
    pub reason: String,
    /// The agent's own words (its result), inert; the answer of `ask` and `review`.
    pub summary: String,
    pub branch: Option<BranchName>,
    pub head: Option<Sha>,
    pub commits: i64,
    pub files: i64,
    pub added_lines: i64,
    pub removed_lines: i64,
    pub pull_number: Option<i64>,
    pub pull_url: Option<String>,
    /// The pull request is not a draft: they are refused there, or somebody else opened it.
    #[serde(default)]
    pub no_draft: bool,
    /// What the agent asked, when the run needs input.
    #[serde(default)]
    pub question: Option<Question>,
    /// A changeset that was kept instead of being pushed at once.
    #[serde(default)]
    pub kept: Option<Kept>,
    /// Files that are kept for download.
    #[serde(default)]
    pub artifacts: i64,
    /// Things the report should mention (drafts refused, masked files dropped, …).
    pub notes: Vec<String>,
}

/// What the report says of a changeset that was not pushed (yet); its bytes are artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub head: Sha,
    /// Path, added and removed lines of the first changes, as they may be shown.
    pub files: Vec<(String, i64, i64)>,
    /// The beginning of the diff, masked.
    pub excerpt: String,
    /// When a change that waits for approval is dropped.
    pub until: Option<DateTime<Utc>>,
    /// Who approved it.
    pub approved_by: Option<String>,
}

/// A run as stored. `fence` counts claims: a write with an older fence is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub id: RunId,
    pub task: TaskId,
    /// The semantic key: one command makes one run, however often it is delivered.
    pub key: String,
    pub remote: String,
    pub repo: super::event::Repo,
    pub spec: RunSpec,
    pub state: RunState,
    /// `Priority` as a number.
    pub priority: i64,
    pub not_before: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub lease_owner: Option<String>,
    pub lease_until: Option<DateTime<Utc>>,
    pub fence: i64,
    /// Who asked for the cancel.
    pub cancel_requested: Option<String>,
    /// Workers that died on it since it last came a step further.
    pub deaths: i64,
    pub attempts: i64,
    pub progress: Progress,
    /// Set when the agent is gone, before anything is published.
    pub agent_end: Option<AgentEnd>,
    pub outcome: Outcome,
}

/// What may happen to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunInput {
    Claimed,
    /// Or its setup.
    AgentStarted,
    /// The agent is next.
    SetupDone,
    /// The agent could not go on with its session: it is started once more, without.
    Anew,
    /// Another node took the run over; what the container and its workspace held is out of its reach.
    Moved,
    AgentGone(AgentEnd),
    Collected,
    /// Pushed and the pull request was asked for.
    Pushed,
    Done,
    NothingToDo,
    /// A question is open.
    NeedsInput,
    Failed,
    Cancelled,
    /// The changeset waits for approval.
    Held,
    /// It was approved, or is to be dropped: a worker takes it on.
    Released,
    /// Something passes by itself: back to the queue until then. The workspace stays, where it can.
    Later,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a run that is {} cannot take {input:?}", .state.as_str())]
pub struct InvalidTransition {
    pub state: RunState,
    pub input: RunInput,
}

impl Run {
    /// The commit the agent starts from.
    pub fn start(&self) -> &Sha {
        self.progress.start.as_ref().unwrap_or(&self.spec.start)
    }

    /// Something runs ahead of the agent. Never on a fork's pull request: its code is not run with egress.
    pub fn has_setup(&self) -> bool {
        self.spec.config.setup.is_some() && !self.spec.pull.as_ref().is_some_and(|pull| pull.fork)
    }

    /// The commit that its branch must hold when the run starts, and again when it pushes. It differs from
    /// `start` where a run goes on from partial work that lies on a branch of ours beside somebody's.
    pub fn pinned(&self) -> &Sha {
        let spec = &self.spec;
        let meant = spec.pull.as_ref().map_or(&spec.start, |pull| &pull.head_sha);
        self.progress.start.as_ref().unwrap_or(meant)
    }

    /// Moves the run; the only place that changes `state`.
    pub fn apply(&mut self, input: &RunInput, now: DateTime<Utc>) -> Result<(), InvalidTransition> {
        use RunState::*;
        let next = match (self.state, input) {
            (Queued, RunInput::Claimed) => Preparing,
            (Preparing, RunInput::AgentStarted) => Running,
            (Preparing | Running, RunInput::Later) => Queued,
            (Running, RunInput::SetupDone | RunInput::Anew) => Preparing,
            (Running | Collecting | Publishing, RunInput::Moved) => Preparing,
            (Preparing | Running, RunInput::AgentGone(_)) => Collecting,
            (Collecting, RunInput::Collected) => Publishing,
            (Publishing, RunInput::Pushed) => Reporting,
            (Publishing, RunInput::Held) => Held,
            (Held, RunInput::Released) => Publishing,
            (Publishing | Reporting, RunInput::Done) => Succeeded,
            (Publishing, RunInput::NothingToDo) => Nothing,
            (Publishing, RunInput::NeedsInput) => RunState::NeedsInput,
            (Queued | Preparing | Running | Collecting | Publishing | Reporting | Held, RunInput::Failed) => {
                Failed
            }
            (
                Queued | Preparing | Running | Collecting | Publishing | Reporting | Held,
                RunInput::Cancelled,
            ) => Cancelled,
            (state, input) => return Err(InvalidTransition { state, input: input.clone() }),
        };
        if let RunInput::AgentGone(end) = input {
            self.agent_end = Some(end.clone());
        }
        if *input == RunInput::Moved {
            self.agent_end = None;
            self.progress.begin_elsewhere();
        }
        if next == Preparing && self.started_at.is_none() {
            self.started_at = Some(now);
        }
        if next.is_terminal() {
            self.finished_at = Some(now);
        }
        self.state = next;
        Ok(())
    }
}

/// What a line of the live log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    /// The agent said it.
    Text,
    Tool,
    ToolEnd,
    /// Plain output.
    Out,
    Err,
    /// We say it.
    Note,
    Result,
    Error,
}

/// One line of the live log, as stored in log chunks (JSON, one per line).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The container's line number.
    pub n: i64,
    pub k: LogKind,
    /// Raw text of an agent, secrets masked: escape it wherever it is shown.
    pub t: String,
}

/// A container given to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub run: RunId,
    pub n: i64,
    pub slot: super::ids::SlotId,
    pub container: Option<String>,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    /// Lines of the container's output already stored: where a reader goes on after a crash.
    pub log_cursor: i64,
    /// The node whose container engine has it.
    pub node: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::event::{ActorKind, Repo, SubjectKind};
    use crate::domain::ids::RepoName;
    use chrono::TimeZone;

    pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
        Utc.timestamp_opt(1_760_000_000 + seconds, 0).unwrap()
    }

    pub(crate) fn actor(id: i64, login: &str) -> Actor {
        Actor { id, login: login.into(), kind: ActorKind::User }
    }

    pub(crate) fn sha(c: char) -> Sha {
        Sha::parse(&c.to_string().repeat(40)).unwrap()
    }

    pub(crate) fn run() -> Run {
        Run {
            id: RunId::new("run_0001"),
            task: TaskId::new("tsk_0001"),
            key: "k".into(),
            remote: "github".into(),
            repo: Repo {
                id: 1,
                name: RepoName::parse("octo/demo").unwrap(),
                installation: 9,
                private: false,
            },
            spec: RunSpec {
                verb: Verb::Fix,
                text: "the crash".into(),
                agent: "fixer".into(),
                model: None,
                mode: RunMode::Change,
                requester: actor(7, "ada"),
                subject: Subject {
                    kind: SubjectKind::Issue,
                    number: 12,
                    title: "It crashes".into(),
                    body: "When I …".into(),
                    author: actor(8, "bob"),
                    url: "https://forge.example/octo/demo/issues/12".into(),
                    open: true,
                },
                origin: None,
                start: sha('a'),
                base: BranchName::parse("main").unwrap(),
                base_sha: sha('a'),
                pull: None,
                push_to: Some(BranchName::parse("zeblit/12-it-crashes-k0001").unwrap()),
                fork: None,
                publish: Publish::Push,
                image: "zeblit-agent:latest".into(),
                budget_micros: 5_000_000,
                wall_seconds: 3600,
                config: RepoConfig::default(),
                previous: None,
                resume: false,
                needs: Vec::new(),
            },
            state: RunState::Queued,
            priority: 1,
            not_before: None,
            created_at: at(0),
            started_at: None,
            finished_at: None,
            lease_owner: None,
            lease_until: None,
            fence: 0,
            cancel_requested: None,
            deaths: 0,
            attempts: 0,
            progress: Progress::default(),
            agent_end: None,
            outcome: Outcome::default(),
        }
    }

    fn inputs() -> Vec<RunInput> {
        vec![
            RunInput::Claimed,
            RunInput::AgentStarted,
            RunInput::SetupDone,
            RunInput::Anew,
            RunInput::Moved,
            RunInput::AgentGone(AgentEnd::Finished),
            RunInput::Collected,
            RunInput::Pushed,
            RunInput::Done,
            RunInput::NothingToDo,
            RunInput::NeedsInput,
            RunInput::Failed,
            RunInput::Cancelled,
            RunInput::Later,
            RunInput::Held,
            RunInput::Released,
        ]
    }

    #[test]
    fn the_good_way_leads_from_queue_to_pull_request() {
        let mut run = run();
        for input in [
            RunInput::Claimed,
            RunInput::AgentStarted,
            RunInput::AgentGone(AgentEnd::Finished),
            RunInput::Collected,
            RunInput::Pushed,
            RunInput::Done,
        ] {
            run.apply(&input, at(5)).unwrap();
        }
        assert_eq!(run.state, RunState::Succeeded);
        assert_eq!(run.started_at, Some(at(5)));
        assert_eq!(run.finished_at, Some(at(5)));
    }

    #[test]
    fn an_ended_run_takes_no_input() {
        for state in RunState::ALL.into_iter().filter(|state| state.is_terminal()) {
            for input in inputs() {
                let mut run = run();
                run.state = state;
                assert!(run.apply(&input, at(1)).is_err(), "{state:?} took {input:?}");
                assert_eq!(run.state, state);
            }
        }
    }

    #[test]
    fn every_open_state_can_fail_and_be_cancelled() {
        for state in RunState::ALL.into_iter().filter(|state| !state.is_terminal()) {
            for (input, end) in
                [(RunInput::Failed, RunState::Failed), (RunInput::Cancelled, RunState::Cancelled)]
            {
                let mut run = run();
                run.state = state;
                run.apply(&input, at(1)).unwrap();
                assert_eq!(run.state, end);
                assert!(run.finished_at.is_some());
            }
        }
    }

    #[test]
    fn nothing_is_published_before_the_agent_is_gone() {
        for state in [RunState::Queued, RunState::Preparing, RunState::Running, RunState::Collecting] {
            for input in [RunInput::Pushed, RunInput::Done, RunInput::NothingToDo, RunInput::NeedsInput] {
                let mut run = run();
                run.state = state;
                assert!(run.apply(&input, at(1)).is_err(), "{state:?} took {input:?}");
            }
        }
    }

    #[test]
    fn a_run_that_moved_begins_anew_and_keeps_what_it_cost() {
        for state in RunState::ALL {
            let mut run = run();
            run.state = state;
            run.agent_end = Some(AgentEnd::Finished);
            run.progress =
                Progress { cost_micros: 7, collected: true, setup: SetupState::Done, ..Progress::default() };
            let has_begun = matches!(state, RunState::Running | RunState::Collecting | RunState::Publishing);
            assert_eq!(run.apply(&RunInput::Moved, at(1)).is_ok(), has_begun, "{state:?}");
            if has_begun {
                assert_eq!(run.state, RunState::Preparing);
                assert_eq!(run.agent_end, None);
                assert_eq!(run.progress, Progress { cost_micros: 7, ..Progress::default() });
            }
        }
    }

    #[test]
    fn a_session_is_gone_on_with_by_the_same_agent_on_code_of_the_same_trust() {
        let spec = || RunSpec { resume: true, ..run().spec };
        assert!(spec().can_resume(&run().spec));
        let foreign = PullHead {
            number: 12,
            head_sha: sha('b'),
            head_ref: "x".into(),
            head_repo: None,
            base_ref: spec().base,
            base_sha: sha('a'),
            fork: true,
            open: true,
            merged: false,
            draft: false,
        };
        for other in [
            RunSpec { resume: false, ..spec() },
            RunSpec { agent: "other".into(), ..spec() },
            RunSpec { mode: RunMode::ReadOnly, ..spec() },
            RunSpec { pull: Some(foreign), ..spec() },
        ] {
            assert!(!other.can_resume(&run().spec), "{other:?}");
        }
    }

    #[test]
    fn state_names_are_unique_and_readable_back() {
        for state in RunState::ALL {
            assert_eq!(RunState::parse(state.as_str()), Some(state));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_sequence_of_inputs_keeps_the_invariants(choices in proptest::collection::vec(0usize..15, 0..40)) {
            let inputs = inputs();
            let mut run = run();
            let mut ended = 0;
            for choice in choices {
                let before = run.state;
                let taken = run.apply(&inputs[choice], at(1)).is_ok();
                if !taken {
                    proptest::prop_assert_eq!(before, run.state);
                }
                if taken && run.state.is_terminal() {
                    ended += 1;
                }
                proptest::prop_assert_eq!(run.state.is_terminal(), run.finished_at.is_some());
            }
            proptest::prop_assert!(ended <= 1);
        }
    }
}
