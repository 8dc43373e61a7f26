//! What an event leads to: a pure function from an event and its context to actions.

use super::budget::Standing;
use super::command::{self, Command, CommandError, Verb};
use super::egress::{self, AllowList};
use super::event::{Actor, ActorKind, Comment, CommentAction, PullHead, Repo, SubjectKind, Surface};
use super::ids::{BranchName, RepoName, RunId, Sha, TaskId};
use super::node;
use super::policy::{self, Permission, PushMode, Role};
use super::repo_config::{ConfigProblem, RepoConfig};
use super::run::{Origin, Priority, Publish, Run, RunMode, RunSpec, RunState};
use super::task::{self, Task};
use super::wording;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// Ourselves: events by these are never obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    pub user_id: i64,
    pub app_id: i64,
}

/// What of a comment concerns us, before anything was asked of the forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    Ignore(&'static str),
    Commands(Vec<Result<Command, CommandError>>),
}

/// Finds the commands of a comment event and drops what may never trigger.
pub fn interest(comment: &Comment, sender: Option<&Actor>, own: Own) -> Interest {
    let commands = match &comment.action {
        CommentAction::Created => command::parse(&comment.body),
        CommentAction::Edited { before: None } => {
            return Interest::Ignore("the edit did not change the text");
        }
        CommentAction::Edited { before: Some(before) } => command::added(before, &comment.body),
    };
    if commands.is_empty() {
        return Interest::Ignore(wording::NO_COMMAND);
    }
    if comment.author.id == own.user_id || (own.app_id != 0 && comment.app_id == Some(own.app_id)) {
        return Interest::Ignore("written by this bot");
    }
    if comment.author.kind != ActorKind::User {
        return Interest::Ignore("bots are not obeyed");
    }
    let Some(sender) = sender else { return Interest::Ignore("the delivery names no sender") };
    if sender.id == own.user_id {
        return Interest::Ignore("caused by this bot");
    }
    if sender.id != comment.author.id {
        return Interest::Ignore("edited or sent by somebody else than the author");
    }
    Interest::Commands(commands)
}

/// What a plan must know of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFacts {
    pub is_recipe: bool,
    pub read_only: bool,
    pub model: Option<String>,
    pub minutes: Option<i64>,
    pub budget_micros: Option<i64>,
    /// What a node must have to run it.
    pub needs: Vec<String>,
    pub description: String,
}

/// The server's own rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRules {
    pub fix_agent: String,
    pub review_agent: String,
    pub ask_agent: String,
    pub image: String,
    /// Other images; `*` at the end stands for any rest.
    pub allowed_images: Vec<String>,
    /// Hosts that repositories may choose.
    pub permitted_hosts: AllowList,
    pub wall_seconds: i64,
    pub run_budget_micros: i64,
    pub max_run_budget_micros: i64,
    pub commands_per_user_hour: i64,
    /// The server's mode for this repository; the repository can only be stricter.
    pub push: PushMode,
    /// Every run is a dry run.
    pub staged: bool,
    /// Why the operator paused everything, if he did.
    pub paused: Option<String>,
}

/// The default image, a listed one, or one that begins as an entry with `*` says.
fn image_is_allowed(image: &str, rules: &ServerRules) -> bool {
    image == rules.image
        || rules.allowed_images.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(start) => !start.is_empty() && image.starts_with(start),
            None => image == allowed,
        })
}

/// Everything a plan is made from.
#[derive(Debug, Clone)]
pub struct PlanContext<'a> {
    pub repo: &'a Repo,
    pub now: DateTime<Utc>,
    /// The live role of the comment's author.
    pub role: Role,
    pub config: &'a Result<RepoConfig, ConfigProblem>,
    pub default_branch: &'a BranchName,
    pub default_sha: &'a Sha,
    /// Heads of the branches that `--base` flags name; `None`: no such branch.
    pub bases: &'a BTreeMap<String, Option<Sha>>,
    /// The pull request that the comment stands on, as the forge shows it now.
    pub pull: Option<&'a PullHead>,
    /// The open task of the subject, or the one that will be made.
    pub task: &'a Task,
    /// The head of the task's own branch, when it has one and it still exists.
    pub own_head: Option<&'a Sha>,
    /// Our own fork of the repository, where there is one and it may matter.
    pub fork: Option<&'a RepoName>,
    /// The approved heads of the pull request.
    pub approved: &'a [Sha],
    /// Somebody pushed to the pull request when the comment was written, or after.
    pub pushed_since: bool,
    /// Runs of the task, oldest first.
    pub runs: &'a [Run],
    pub agents: &'a BTreeMap<String, AgentFacts>,
    /// Why the repository's own agents are not among them.
    pub agents_problem: Option<&'a str>,
    pub rules: &'a ServerRules,
    /// Runs that this user started within the last hour.
    pub recent_runs: i64,
    /// What the commenter's runs here count against, and the last run of the task; only for `budget`.
    pub standings: &'a [Standing],
    /// The open tasks of the numbers that `--after` flags name; `None`: none is known.
    pub after: &'a BTreeMap<i64, Option<Blocker>>,
    /// The inbox row.
    pub delivery: &'a str,
}

/// What the task of a started run waits for from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// As before.
    Unchanged,
    /// For nothing any more: the newer word counts.
    Nothing,
    /// For these tasks, too.
    For(Vec<TaskId>),
}

/// A task that another one may wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    pub task: TaskId,
    /// It waits for the task of the comment itself, perhaps by way of others.
    pub waits_for_us: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Start {
        command: Command,
        spec: Box<RunSpec>,
        priority: Priority,
        wait: Wait,
    },
    Cancel {
        run: RunId,
    },
    /// The change of this run was approved.
    Release {
        run: RunId,
    },
    /// The code of this head of the pull request may be run.
    ApproveHead {
        number: i64,
        head: Sha,
    },
    /// A reply in the thread. `ok` chooses the reaction: 👍 or 😕.
    Reply {
        command: String,
        occurrence: u32,
        body: String,
        ok: bool,
    },
}

/// What an event leads to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// (action, detail) lines for the audit log: grants and refusals.
    pub audit: Vec<(&'static str, String)>,
    /// One line stored with the delivery.
    pub verdict: String,
}

impl Plan {
    /// Of its most urgent run. What starts none may be about one that is live.
    pub fn priority(&self) -> Priority {
        let of = |action: &Action| match action {
            Action::Start { priority, .. } => Some(*priority),
            _ => None,
        };
        self.actions.iter().filter_map(of).min().unwrap_or_default()
    }

    /// Whether it makes a run.
    pub fn starts(&self) -> bool {
        self.actions.iter().any(|action| matches!(action, Action::Start { .. }))
    }
}

/// Decides what the commands of one comment lead to.
pub fn plan(
    comment: &Comment,
    commands: &[Result<Command, CommandError>],
    context: &PlanContext<'_>,
) -> Plan {
    let fallback = RepoConfig::default();
    let config = context.config.as_ref().unwrap_or(&fallback);
    let mut plan = Plan::default();
    if !policy::is_heard(context.role, context.repo.private, config) {
        plan.audit
            .push(("refuse", format!("role {}: not answered on a public repository", context.role.name())));
        plan.verdict = "the author has no role here: silence".into();
        return plan;
    }
    if !config.enabled {
        plan.verdict = "turned off in this repository (enabled = false)".into();
        return plan;
    }
    let mut started = 0;
    // An `ok` counts for the commands below it, too.
    let mut approved = context.approved.to_vec();
    for parsed in commands {
        match parsed {
            Err(error) => plan.actions.push(Action::Reply {
                command: error.to_string(),
                occurrence: 1,
                body: wording::command_error(error),
                ok: false,
            }),
            Ok(command) => match one(comment, command, config, context, &approved, started) {
                Decision::Silent => plan.audit.push((
                    "refuse",
                    format!("{} as {}: not answered", command.verb.name(), context.role.name()),
                )),
                Decision::Refuse(body) => {
                    plan.audit
                        .push(("refuse", format!("{} as {}", command.verb.name(), context.role.name())));
                    plan.actions.push(reply(command, body, false));
                }
                Decision::Say(body) => plan.actions.push(reply(command, body, true)),
                Decision::Cancel(runs, body) => {
                    plan.audit.push(("grant", format!("cancel as {}", context.role.name())));
                    plan.actions.extend(runs.into_iter().map(|run| Action::Cancel { run }));
                    plan.actions.push(reply(command, body, true));
                }
                Decision::Release(run, head, body) => {
                    let detail = format!("the change {head} of run {run} as {}", context.role.name());
                    plan.audit.push(("approve", detail));
                    plan.actions.push(Action::Release { run });
                    plan.actions.push(reply(command, body, true));
                }
                Decision::ApproveHead(number, head, body) => {
                    plan.audit.push(("approve", format!("the head {head} as {}", context.role.name())));
                    plan.actions.push(Action::ApproveHead { number, head: head.clone() });
                    plan.actions.push(reply(command, body, true));
                    approved.push(head);
                }
                Decision::Start(spec) => {
                    started += 1;
                    plan.audit.push(("grant", format!("{} as {}", command.verb.name(), context.role.name())));
                    plan.actions.push(Action::Start {
                        command: command.clone(),
                        spec,
                        priority: priority(command, comment),
                        wait: wait(command, context),
                    });
                }
            },
        }
    }
    plan.verdict = format!("{} command(s), {} run(s) asked for", commands.len(), started);
    plan
}

fn reply(command: &Command, body: String, ok: bool) -> Action {
    Action::Reply { command: command.normalised(), occurrence: command.occurrence, body, ok }
}

enum Decision {
    Silent,
    Refuse(String),
    Say(String),
    Cancel(Vec<RunId>, String),
    Release(RunId, Sha, String),
    ApproveHead(i64, Sha, String),
    Start(Box<RunSpec>),
}

fn one(
    comment: &Comment,
    command: &Command,
    config: &RepoConfig,
    context: &PlanContext<'_>,
    approved: &[Sha],
    started: i64,
) -> Decision {
    match policy::permission(command.verb, context.role, context.repo.private, config) {
        Permission::Granted => {}
        Permission::Silent => return Decision::Silent,
        Permission::Refused { needs } => {
            return Decision::Refuse(wording::no_permission(
                &comment.author.login,
                context.role,
                command.verb,
                needs,
            ));
        }
    }
    match command.verb {
        Verb::Ping => Decision::Say(wording::pong()),
        Verb::Help => {
            let problem = context.config.as_ref().err();
            Decision::Say(wording::help(config, context.agents, problem, context.agents_problem))
        }
        Verb::Status => {
            Decision::Say(wording::status(context.runs, context.rules.paused.as_deref(), context.now))
        }
        Verb::Budget => Decision::Say(wording::budget(context.standings)),
        Verb::Cancel => {
            let open: Vec<RunId> = context
                .runs
                .iter()
                .filter(|run| !run.state.is_terminal())
                .map(|run| run.id.clone())
                .collect();
            if open.is_empty() {
                Decision::Say(wording::nothing_to_cancel())
            } else {
                let body = wording::cancelling(&open);
                Decision::Cancel(open, body)
            }
        }
        Verb::Ok => approve(&command.text, context),
        Verb::Fix | Verb::Run | Verb::Review | Verb::Ask | Verb::Retry | Verb::Continue => {
            if let Err(problem) = context.config {
                return Decision::Refuse(wording::broken_config(problem));
            }
            if let Some(problem) = context.agents_problem {
                return Decision::Refuse(wording::broken_agents(problem));
            }
            let limit = context.rules.commands_per_user_hour;
            if context.recent_runs + started >= limit {
                return Decision::Refuse(wording::rate_limited(&comment.author.login, limit));
            }
            let spec = may_stand_there(command, context)
                .and_then(|()| spec(comment, command, config, context, approved));
            match spec {
                Ok(spec) => Decision::Start(Box::new(spec)),
                Err(body) => Decision::Refuse(body),
            }
        }
    }
}

/// Labels are put on many at once: whoever asks for one thing in words goes before.
fn priority(command: &Command, comment: &Comment) -> Priority {
    let of_label = matches!(comment.surface, Surface::Label { .. }).then_some(Priority::Low);
    command.flags.priority.or(of_label).unwrap_or_default()
}

/// A question about a task that waits does not make it start.
fn wait(command: &Command, context: &PlanContext<'_>) -> Wait {
    let parents = command.flags.after.iter().filter_map(|number| context.after.get(number)?.as_ref());
    let parents: Vec<TaskId> = parents.map(|parent| parent.task.clone()).collect();
    match command.verb {
        _ if !parents.is_empty() => Wait::For(parents),
        Verb::Ask | Verb::Review => Wait::Unchanged,
        _ => Wait::Nothing,
    }
}

/// Why a command cannot wait for what it names, or go before others.
fn may_stand_there(command: &Command, context: &PlanContext<'_>) -> Result<(), String> {
    if command.flags.priority == Some(Priority::High) && context.role < Role::Maintain {
        return Err(wording::priority_needs(Role::Maintain));
    }
    for number in &command.flags.after {
        match context.after.get(number).and_then(Option::as_ref) {
            None => return Err(wording::after_unknown(*number)),
            Some(parent) if parent.task == context.task.id => return Err(wording::after_itself(*number)),
            Some(parent) if parent.waits_for_us => return Err(wording::after_circle(*number)),
            Some(_) => {}
        }
    }
    Ok(())
}

/// The head of a pull request that comes from a fork which is not ours.
fn foreign<'a>(context: &PlanContext<'a>) -> Option<&'a PullHead> {
    context.pull.filter(|pull| pull.fork && !in_our_fork(pull, context))
}

fn in_our_fork(pull: &PullHead, context: &PlanContext<'_>) -> bool {
    pull.fork && context.fork.is_some() && pull.head_repo.as_ref() == context.fork
}

/// What `ok` means here: the head of a stranger's pull request, or a change that waits for it.
fn approve(commit: &str, context: &PlanContext<'_>) -> Decision {
    if let Some(pull) = foreign(context) {
        if !pull.open {
            return Decision::Refuse(wording::pull_is_closed(pull.number));
        }
        if !pull.head_sha.as_str().starts_with(commit) {
            return Decision::Refuse(wording::ok_names_another_head(commit, &pull.head_sha));
        }
        // The digits may fit what was pushed after they were read.
        if context.pushed_since {
            return Decision::Refuse(wording::ok_came_before_a_push(&pull.head_sha));
        }
        let body = wording::head_approved(&pull.head_sha);
        return Decision::ApproveHead(pull.number, pull.head_sha.clone(), body);
    }
    let waiting: Vec<(&Run, &Sha)> = context
        .runs
        .iter()
        .filter(|run| run.state == RunState::Held)
        .filter_map(|run| run.outcome.kept.as_ref().map(|kept| (run, &kept.head)))
        .collect();
    match waiting.iter().rev().find(|(_, head)| head.as_str().starts_with(commit)) {
        Some((run, head)) => {
            Decision::Release(run.id.clone(), (*head).clone(), wording::change_approved(&run.id, head))
        }
        None if waiting.is_empty() => Decision::Say(wording::nothing_to_approve()),
        None => Decision::Refuse(wording::ok_names_another_change(
            commit,
            &waiting.iter().map(|(_, head)| *head).collect::<Vec<_>>(),
        )),
    }
}

/// Fills in what a run is asked to do, or says why it cannot be asked.
fn spec(
    comment: &Comment,
    command: &Command,
    config: &RepoConfig,
    context: &PlanContext<'_>,
    approved: &[Sha],
) -> Result<RunSpec, String> {
    let rules = context.rules;
    let previous = match command.verb {
        Verb::Retry | Verb::Continue => {
            Some(context.runs.last().ok_or_else(|| wording::no_previous(command.verb))?)
        }
        _ => None,
    };
    // What is really asked for: a retry repeats the request of the run before it.
    let (verb, text) = match (command.verb, previous) {
        (Verb::Retry, Some(run)) => (run.spec.verb, run.spec.text.clone()),
        (Verb::Run, _) => (
            Verb::Run,
            command.text.split_once(char::is_whitespace).map_or("", |(_, rest)| rest).trim().to_owned(),
        ),
        _ => (command.verb, command.text.clone()),
    };
    let agent_name = match (&command.flags.agent, previous) {
        (Some(name), _) => name.clone(),
        (None, Some(run)) if run.spec.mode == RunMode::Change || command.verb == Verb::Retry => {
            run.spec.agent.clone()
        }
        _ => match verb {
            Verb::Run => command.text.split_whitespace().next().unwrap_or_default().to_owned(),
            Verb::Review => rules.review_agent.clone(),
            Verb::Ask => rules.ask_agent.clone(),
            _ => config.agent.clone().unwrap_or_else(|| rules.fix_agent.clone()),
        },
    };
    let agent = context
        .agents
        .get(&agent_name)
        .ok_or_else(|| wording::unknown_agent(&agent_name, context.agents, verb == Verb::Run))?;
    if command.verb == Verb::Run && !agent.is_recipe {
        return Err(wording::not_a_recipe(&agent_name));
    }
    let read_only = agent.read_only || matches!(verb, Verb::Review | Verb::Ask);
    if let Some(pull) = foreign(context)
        && !matches!(verb, Verb::Review | Verb::Ask)
        && !approved.contains(&pull.head_sha)
    {
        return Err(wording::fork_needs_ok(command.verb, &pull.head_sha));
    }
    let mode = if read_only { RunMode::ReadOnly } else { RunMode::Change };
    if let Some(pull) = context.pull
        && mode == RunMode::Change
        && !pull.open
    {
        return Err(wording::pull_is_closed(pull.number));
    }
    let push = rules.push.max(config.push);
    let publish = way_out(command, config, context, push);
    let (start, base, base_sha, push_to) = place(command, context, mode, publish)?;
    let fork = match context.pull {
        Some(pull) => context.fork.filter(|_| in_our_fork(pull, context)).cloned(),
        None if push == PushMode::Fork && mode == RunMode::Change => {
            Some(context.fork.cloned().ok_or_else(|| wording::no_fork(&context.repo.name))?)
        }
        None => None,
    };
    let image = match &config.image {
        None => rules.image.clone(),
        Some(image) if image_is_allowed(image, rules) => image.clone(),
        Some(image) => return Err(wording::image_not_allowed(image)),
    };
    let setup_hosts = config.setup.as_ref().map_or(&[][..], |setup| &setup.egress);
    for (key, entries) in [("egress.allow", config.egress.as_slice()), ("setup.egress", setup_hosts)] {
        if let Some(entry) = egress::first_not_permitted(entries, &rules.permitted_hosts) {
            return Err(wording::egress_not_allowed(key, entry));
        }
    }
    let budget_micros = budget(command, config, agent, rules)?;
    let wall_seconds =
        [Some(rules.wall_seconds), config.limits.minutes.map(|m| m * 60), agent.minutes.map(|m| m * 60)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(rules.wall_seconds);
    Ok(RunSpec {
        verb,
        text,
        model: command
            .flags
            .model
            .clone()
            .or_else(|| {
                previous.filter(|_| command.flags.agent.is_none()).and_then(|run| run.spec.model.clone())
            })
            .or_else(|| agent.model.clone())
            .or_else(|| config.model.clone()),
        agent: agent_name,
        mode,
        requester: comment.author.clone(),
        subject: comment.subject.clone(),
        origin: Some(Origin {
            surface: comment.surface.clone(),
            comment_id: comment.id,
            node_id: comment.node_id.clone(),
            url: comment.url.clone(),
            written_at: comment.written_at,
            delivery: context.delivery.to_owned(),
        }),
        start,
        base,
        base_sha,
        pull: context.pull.cloned(),
        push_to,
        fork,
        publish,
        image,
        budget_micros,
        wall_seconds,
        config: config.clone(),
        previous: previous.map(|run| run.id.clone()),
        resume: command.verb == Verb::Continue,
        needs: node::union(&config.needs, &agent.needs),
    })
}

/// What becomes of the changeset of a run that may change something.
fn way_out(command: &Command, config: &RepoConfig, context: &PlanContext<'_>, push: PushMode) -> Publish {
    let in_repository = context.pull.is_some_and(|pull| !pull.fork);
    if foreign(context).is_some() {
        Publish::Patch
    } else if command.flags.staged || config.staged || context.rules.staged {
        Publish::Stage
    } else if in_repository && push == PushMode::Fork {
        // The branch of the pull request lives where this mode never pushes.
        Publish::Patch
    } else if push == PushMode::ApproveFirst {
        Publish::Approve
    } else {
        Publish::Push
    }
}

type Place = (Sha, BranchName, Sha, Option<BranchName>);

/// Where the agent starts and where its work goes.
fn place(
    command: &Command,
    context: &PlanContext<'_>,
    mode: RunMode,
    publish: Publish,
) -> Result<Place, String> {
    if let Some(pull) = context.pull {
        if command.flags.base.is_some() {
            return Err(wording::base_on_pull());
        }
        let push_to = match mode {
            RunMode::ReadOnly => None,
            RunMode::Change if publish == Publish::Patch => None,
            RunMode::Change => {
                let head =
                    BranchName::parse(&pull.head_ref).map_err(|_| wording::odd_branch(&pull.head_ref))?;
                if head == *context.default_branch || head == pull.base_ref {
                    return Err(wording::head_is_default(&head));
                }
                Some(head)
            }
        };
        let start = match (command.verb, &push_to) {
            (Verb::Continue, Some(head)) => partial_work(context.runs, head, &pull.head_sha),
            _ => None,
        };
        let start = start.unwrap_or(&pull.head_sha).clone();
        return Ok((start, pull.base_ref.clone(), pull.base_sha.clone(), push_to));
    }
    let (base, base_sha) = match &command.flags.base {
        None => (context.default_branch.clone(), context.default_sha.clone()),
        Some(name) => {
            let branch = BranchName::parse(name).map_err(|_| wording::odd_branch(name))?;
            match context.bases.get(name) {
                Some(Some(sha)) => (branch, sha.clone()),
                _ => return Err(wording::no_such_base(name)),
            }
        }
    };
    match mode {
        RunMode::ReadOnly => Ok((base_sha.clone(), base, base_sha, None)),
        RunMode::Change => {
            let branch = context.task.branch.clone().unwrap_or_else(|| {
                task::branch_name(context.task.number, &context.task.title, &context.task.id)
            });
            let start = context.own_head.cloned().unwrap_or_else(|| base_sha.clone());
            Ok((start, base, base_sha, Some(branch)))
        }
    }
}

/// What the newest run left beside somebody's branch, as long as that branch has not moved since.
fn partial_work<'a>(runs: &'a [Run], branch: &BranchName, head: &Sha) -> Option<&'a Sha> {
    runs.iter().rev().find_map(|run| {
        let beside = run.outcome.branch.as_ref().is_some_and(|its| its != branch);
        run.outcome.head.as_ref().filter(|_| beside && run.pinned() == head)
    })
}

fn budget(
    command: &Command,
    config: &RepoConfig,
    agent: &AgentFacts,
    rules: &ServerRules,
) -> Result<i64, String> {
    let most = rules.max_run_budget_micros.min(config.limits.budget_micros.unwrap_or(i64::MAX));
    match command.flags.budget_micros {
        Some(asked) if asked > most => Err(wording::budget_too_high(asked, most)),
        Some(asked) => Ok(asked),
        None => Ok(agent
            .budget_micros
            .unwrap_or(rules.run_budget_micros)
            .min(config.limits.budget_micros.unwrap_or(i64::MAX))
            .min(rules.max_run_budget_micros)),
    }
}

/// Runs that end because their subject was closed.
pub fn cancelled_by_close(runs: &[Run]) -> Vec<RunId> {
    runs.iter()
        .filter(|run| !run.state.is_terminal() && run.state != RunState::Reporting)
        .map(|run| run.id.clone())
        .collect()
}

/// Runs that a push makes pointless: they were asked for an older head, and what they would make could not be pushed or
/// is about what is no more. `ours` says whether a run of ours made the new head. Answers to questions go on.
pub fn superseded_by_push(runs: &[Run], number: i64, head: &Sha, ours: bool) -> Vec<RunId> {
    let beside = |run: &&Run| {
        let pinned = run.spec.pull.as_ref().is_some_and(|pull| pull.number == number) && run.pinned() != head;
        let early = matches!(run.state, RunState::Queued | RunState::Preparing | RunState::Running);
        pinned && early && run.spec.verb != Verb::Ask && run.cancel_requested.is_none()
    };
    if ours { Vec::new() } else { runs.iter().filter(beside).map(|run| run.id.clone()).collect() }
}

/// The lock that keeps runs on one branch apart: the branch that is pushed, else the task.
pub fn lock_key(repo: &Repo, task: &Task, spec: &RunSpec) -> String {
    match (&spec.push_to, task.kind) {
        (Some(branch), SubjectKind::PullRequest) => format!("{}:{}:{branch}", task.remote, repo.id),
        // Runs of one task always share a lock, also read-only ones: the conversation is serial.
        _ => format!("{}:{}:task:{}", task.remote, repo.id, task.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::Flags;
    use crate::domain::event::{Subject, Surface};
    use crate::domain::ids::{RepoName, TaskId};
    use crate::domain::repo_config::{Setup, SetupCommand};
    use crate::domain::run::tests::{actor, at, run, sha};

    fn repo(private: bool) -> Repo {
        Repo { id: 1, name: RepoName::parse("octo/demo").unwrap(), installation: 9, private }
    }

    fn comment(kind: SubjectKind) -> Comment {
        Comment {
            surface: Surface::Conversation,
            action: CommentAction::Created,
            subject: Subject {
                kind,
                number: 12,
                title: "It crashes".into(),
                body: String::new(),
                author: actor(8, "bob"),
                url: "https://forge.example/octo/demo/issues/12".into(),
                open: true,
            },
            pull: None,
            id: 100,
            node_id: "IC_100".into(),
            body: "/zeblit fix".into(),
            author: actor(7, "ada"),
            app_id: None,
            url: "https://forge.example/c/100".into(),
            written_at: at(0),
        }
    }

    fn pull(fork: bool) -> PullHead {
        PullHead {
            number: 12,
            head_sha: sha('b'),
            head_ref: "feature/x".into(),
            head_repo: Some(RepoName::parse("octo/demo").unwrap()),
            base_ref: BranchName::parse("main").unwrap(),
            base_sha: sha('a'),
            fork,
            open: true,
            merged: false,
            draft: false,
        }
    }

    fn command(verb: Verb, text: &str) -> Command {
        Command { verb, text: text.into(), flags: Flags::default(), occurrence: 1 }
    }

    fn facts(is_recipe: bool, read_only: bool) -> AgentFacts {
        AgentFacts {
            is_recipe,
            read_only,
            model: None,
            minutes: None,
            budget_micros: None,
            needs: Vec::new(),
            description: "x".into(),
        }
    }

    /// A context that grants everything; each test changes what it is about.
    struct Case {
        repo: Repo,
        role: Role,
        config: Result<RepoConfig, ConfigProblem>,
        main: BranchName,
        default_sha: Sha,
        bases: BTreeMap<String, Option<Sha>>,
        pull: Option<PullHead>,
        task: Task,
        own_head: Option<Sha>,
        runs: Vec<Run>,
        agents: BTreeMap<String, AgentFacts>,
        agents_problem: Option<String>,
        rules: ServerRules,
        recent_runs: i64,
        fork: Option<RepoName>,
        approved: Vec<Sha>,
        pushed_since: bool,
        after: BTreeMap<i64, Option<Blocker>>,
    }

    impl Case {
        fn new() -> Self {
            let agents = [
                ("fixer", facts(false, false)),
                ("reviewer", facts(false, true)),
                ("explainer", facts(false, true)),
                ("format", facts(true, false)),
            ];
            Self {
                repo: repo(false),
                role: Role::Write,
                config: Ok(RepoConfig::default()),
                main: BranchName::parse("main").unwrap(),
                default_sha: sha('a'),
                bases: BTreeMap::new(),
                pull: None,
                task: Task {
                    id: TaskId::new("tsk_0001"),
                    remote: "github".into(),
                    repo: repo(false),
                    kind: SubjectKind::Issue,
                    number: 12,
                    title: "It crashes".into(),
                    branch: None,
                    pull_number: None,
                    pull_url: None,
                    created_at: at(0),
                    closed_at: None,
                },
                own_head: None,
                runs: Vec::new(),
                agents: agents.into_iter().map(|(name, facts)| (name.to_owned(), facts)).collect(),
                agents_problem: None,
                rules: ServerRules {
                    fix_agent: "fixer".into(),
                    review_agent: "reviewer".into(),
                    ask_agent: "explainer".into(),
                    image: "img:1".into(),
                    allowed_images: vec!["img:2".into(), "ghcr.example/octo/*".into()],
                    permitted_hosts: AllowList::new(&["crates".into()]).unwrap(),
                    wall_seconds: 3600,
                    run_budget_micros: 5_000_000,
                    max_run_budget_micros: 20_000_000,
                    commands_per_user_hour: 3,
                    push: PushMode::Trusted,
                    staged: false,
                    paused: None,
                },
                recent_runs: 0,
                fork: None,
                approved: Vec::new(),
                pushed_since: false,
                after: BTreeMap::new(),
            }
        }

        fn on_pull(mut self, fork: bool) -> Self {
            self.pull = Some(pull(fork));
            self.task.kind = SubjectKind::PullRequest;
            self
        }

        fn plan(&self, commands: &[Command]) -> Plan {
            let kind = if self.pull.is_some() { SubjectKind::PullRequest } else { SubjectKind::Issue };
            let commands: Vec<_> = commands.iter().cloned().map(Ok).collect();
            plan(
                &comment(kind),
                &commands,
                &PlanContext {
                    repo: &self.repo,
                    now: at(10),
                    role: self.role,
                    config: &self.config,
                    default_branch: &self.main,
                    default_sha: &self.default_sha,
                    bases: &self.bases,
                    pull: self.pull.as_ref(),
                    task: &self.task,
                    own_head: self.own_head.as_ref(),
                    fork: self.fork.as_ref(),
                    approved: &self.approved,
                    pushed_since: self.pushed_since,
                    runs: &self.runs,
                    agents: &self.agents,
                    agents_problem: self.agents_problem.as_deref(),
                    rules: &self.rules,
                    recent_runs: self.recent_runs,
                    standings: &[],
                    after: &self.after,
                    delivery: "inb_0001",
                },
            )
        }

        fn spec(&self, command: Command) -> RunSpec {
            match self.plan(&[command]).actions.pop() {
                Some(Action::Start { spec, .. }) => *spec,
                other => panic!("expected a run, got {other:?}"),
            }
        }

        fn refusal(&self, command: Command) -> String {
            match self.plan(&[command]).actions.pop() {
                Some(Action::Reply { body, ok: false, .. }) => body,
                other => panic!("expected a refusal, got {other:?}"),
            }
        }
    }

    #[test]
    fn fix_on_an_issue_starts_from_the_default_branch_and_pushes_an_own_branch() {
        let spec = Case::new().spec(command(Verb::Fix, "please"));
        assert_eq!((spec.start, spec.base.as_str()), (sha('a'), "main"));
        assert_eq!(spec.push_to.unwrap().as_str(), "zeblit/12-it-crashes-k0001");
        assert_eq!((spec.agent.as_str(), spec.mode), ("fixer", RunMode::Change));
        assert_eq!((spec.budget_micros, spec.wall_seconds), (5_000_000, 3600));
    }

    #[test]
    fn a_run_may_wait_for_other_tasks_but_not_for_itself_or_in_a_circle() {
        let after = |numbers: &[i64]| Command {
            flags: Flags { after: numbers.to_vec(), ..Flags::default() },
            ..command(Verb::Fix, "")
        };
        let mut case = Case::new();
        let blocker = |task: &str, waits_for_us| Some(Blocker { task: TaskId::new(task), waits_for_us });
        case.after = BTreeMap::from([
            (3, blocker("tsk_3", false)),
            (4, blocker("tsk_4", false)),
            (5, blocker("tsk_5", true)),
            (6, None),
            (12, blocker("tsk_0001", false)),
        ]);
        let wait_of = |command: Command| match case.plan(&[command]).actions.pop() {
            Some(Action::Start { wait, .. }) => wait,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait_of(after(&[3, 4])), Wait::For(vec![TaskId::new("tsk_3"), TaskId::new("tsk_4")]));
        assert_eq!(wait_of(command(Verb::Fix, "")), Wait::Nothing);
        assert_eq!(wait_of(command(Verb::Ask, "why?")), Wait::Unchanged);
        for (numbers, words) in [
            (&[3, 5][..], "both would wait for ever"),
            (&[6], "no open task for #6"),
            (&[12], "wait for itself"),
        ] {
            let refusal = case.refusal(after(numbers));
            assert!(refusal.contains(words), "{refusal}");
        }
    }

    #[test]
    fn only_maintainers_go_before_everybody_and_labels_go_last() {
        let with =
            |priority| Command { flags: Flags { priority, ..Flags::default() }, ..command(Verb::Fix, "") };
        let mut case = Case::new();
        assert!(case.refusal(with(Some(Priority::High))).contains("`maintain`"));
        case.role = Role::Maintain;
        let mut labelled = comment(SubjectKind::Issue);
        labelled.surface = Surface::Label { name: "zeblit:fix".into() };
        for (comment, asked, wanted) in [
            (comment(SubjectKind::Issue), Some(Priority::High), Priority::High),
            (comment(SubjectKind::Issue), Some(Priority::Low), Priority::Low),
            (comment(SubjectKind::Issue), None, Priority::Default),
            (labelled, None, Priority::Low),
        ] {
            assert_eq!(priority(&with(asked), &comment), wanted);
        }
        assert!(matches!(
            case.plan(&[with(Some(Priority::High))]).actions.as_slice(),
            [Action::Start { priority: Priority::High, .. }]
        ));
    }

    #[test]
    fn a_push_supersedes_what_was_asked_for_the_head_before() {
        let at_head = |state, verb, head| {
            let mut run = run();
            run.state = state;
            run.spec.verb = verb;
            run.spec.pull = Some(PullHead { head_sha: sha(head), ..pull(false) });
            run
        };
        let new = sha('e');
        for (run, ours, wanted) in [
            (at_head(RunState::Queued, Verb::Fix, 'b'), false, true),
            (at_head(RunState::Running, Verb::Review, 'b'), false, true),
            (at_head(RunState::Running, Verb::Fix, 'b'), true, false),
            (at_head(RunState::Running, Verb::Fix, 'e'), false, false),
            (at_head(RunState::Running, Verb::Ask, 'b'), false, false),
            // Its push has a lease of its own, and what it made is worth keeping.
            (at_head(RunState::Publishing, Verb::Fix, 'b'), false, false),
            (at_head(RunState::Succeeded, Verb::Fix, 'b'), false, false),
        ] {
            let found = superseded_by_push(std::slice::from_ref(&run), 12, &new, ours);
            assert_eq!(!found.is_empty(), wanted, "{:?} {:?} {ours}", run.state, run.spec.verb);
            assert!(superseded_by_push(&[run], 13, &new, ours).is_empty());
        }
    }

    #[test]
    fn a_second_fix_goes_on_from_the_branch_of_the_task() {
        let mut case = Case::new();
        case.task.branch = Some(BranchName::parse("zeblit/12-old-name-k0001").unwrap());
        case.own_head = Some(sha('c'));
        let spec = case.spec(command(Verb::Fix, ""));
        assert_eq!(spec.start, sha('c'));
        assert_eq!(spec.push_to.unwrap().as_str(), "zeblit/12-old-name-k0001");
    }

    #[test]
    fn fix_on_a_pull_request_pins_its_head_and_pushes_there() {
        let spec = Case::new().on_pull(false).spec(command(Verb::Fix, ""));
        assert_eq!(spec.start, sha('b'));
        assert_eq!(spec.push_to.unwrap().as_str(), "feature/x");
        assert_eq!(spec.base_sha, sha('a'));
    }

    #[test]
    fn forks_are_read_only_until_their_head_is_approved() {
        let case = Case::new().on_pull(true);
        for verb in [Verb::Fix, Verb::Continue, Verb::Retry, Verb::Run] {
            let mut case = Case::new().on_pull(true);
            case.runs = vec![run()];
            let text = if verb == Verb::Run { "format" } else { "" };
            assert!(case.refusal(command(verb, text)).contains("fork"), "{verb:?}");
        }
        for verb in [Verb::Review, Verb::Ask] {
            let spec = case.spec(command(verb, "why?"));
            assert_eq!((spec.mode, spec.push_to, spec.start), (RunMode::ReadOnly, None, sha('b')));
        }
        let mut case = Case::new().on_pull(true);
        case.approved = vec![sha('c')];
        assert!(case.refusal(command(Verb::Fix, "")).contains("/zeblit ok bbbbbbbbbbbb"), "of another head");
        case.approved = vec![sha('b')];
        let spec = case.spec(command(Verb::Fix, ""));
        assert_eq!((spec.publish, &spec.push_to, &spec.start), (Publish::Patch, &None, &sha('b')));
        assert!(spec.needs_ok().is_some());
    }

    #[test]
    fn ok_is_for_exactly_the_present_head_and_counts_for_what_follows() {
        let mut case = Case::new().on_pull(true);
        let ok = |digits: &str| command(Verb::Ok, digits);
        assert!(case.refusal(ok("ccccccc")).contains("bbbbbbbbbbbb"));
        let plan = case.plan(&[ok("bbbbbbb"), command(Verb::Fix, "")]);
        let [Action::ApproveHead { number: 12, head }, Action::Reply { ok: true, .. }, Action::Start { .. }] =
            plan.actions.as_slice()
        else {
            panic!("{:?}", plan.actions)
        };
        assert_eq!(*head, sha('b'));
        assert!(plan.audit.iter().any(|(action, detail)| *action == "approve" && detail.contains("bbbb")));
        case.pushed_since = true;
        assert!(case.refusal(ok("bbbbbbb")).contains("pushed"));
        case.pushed_since = false;
        case.pull.as_mut().unwrap().open = false;
        assert!(case.refusal(ok("bbbbbbb")).contains("closed"));
        case.role = Role::Triage;
        case.pull.as_mut().unwrap().open = true;
        assert!(case.refusal(ok("bbbbbbb")).contains("needs `write`"));
    }

    #[test]
    fn ok_releases_the_change_that_it_names_and_no_other() {
        let mut case = Case::new();
        let ok = |digits: &str| command(Verb::Ok, digits);
        assert!(matches!(case.plan(&[ok("ddddddd")]).actions.as_slice(), [Action::Reply { ok: true, .. }]));
        let mut held = run();
        held.state = RunState::Held;
        held.outcome.kept = Some(super::super::run::Kept {
            head: sha('d'),
            files: Vec::new(),
            excerpt: String::new(),
            until: None,
            approved_by: None,
        });
        case.runs = vec![held];
        assert!(case.refusal(ok("eeeeeee")).contains("dddddddddddd"));
        let plan = case.plan(&[ok("ddddddd")]);
        assert!(matches!(plan.actions.first(), Some(Action::Release { run }) if run.as_str() == "run_0001"));
    }

    #[test]
    fn the_stricter_of_server_and_repository_decides_the_way_out() {
        use PushMode::{ApproveFirst, Fork, Trusted};
        for (server, repository, expected) in [
            (Trusted, Trusted, Publish::Push),
            (Trusted, ApproveFirst, Publish::Approve),
            (ApproveFirst, Trusted, Publish::Approve),
            (Trusted, Fork, Publish::Push),
            (Fork, Trusted, Publish::Push),
            (ApproveFirst, Fork, Publish::Push),
        ] {
            let mut case = Case::new();
            case.rules.push = server;
            case.config = Ok(RepoConfig { push: repository, ..RepoConfig::default() });
            let fork = RepoName::parse("zeblit-bot/demo").unwrap();
            let forked = server.max(repository) == Fork;
            if forked {
                assert!(case.refusal(command(Verb::Fix, "")).contains("fork"), "there is none yet");
            }
            case.fork = Some(fork.clone());
            let spec = case.spec(command(Verb::Fix, ""));
            assert_eq!(spec.publish, expected, "{server:?} {repository:?}");
            assert_eq!(spec.fork, forked.then_some(fork), "{server:?} {repository:?}");
        }
    }

    #[test]
    fn in_fork_mode_pull_requests_get_patches_except_those_from_our_own_fork() {
        let fork = RepoName::parse("zeblit-bot/demo").unwrap();
        let mut case = Case::new().on_pull(false);
        case.rules.push = PushMode::Fork;
        case.fork = Some(fork.clone());
        let spec = case.spec(command(Verb::Fix, ""));
        assert_eq!((spec.publish, &spec.push_to, spec.needs_ok()), (Publish::Patch, &None, None));
        let mut case = Case::new().on_pull(true);
        case.pull.as_mut().unwrap().head_repo = Some(fork.clone());
        case.fork = Some(fork.clone());
        let spec = case.spec(command(Verb::Fix, ""));
        assert_eq!(spec.publish, Publish::Push);
        assert_eq!((spec.push_to.as_ref().unwrap().as_str(), spec.fork.as_ref()), ("feature/x", Some(&fork)));
        assert!(spec.needs_ok().is_none());
    }

    #[test]
    fn a_dry_run_can_be_asked_for_by_flag_repository_and_server() {
        let mut flagged = command(Verb::Fix, "");
        flagged.flags.staged = true;
        assert_eq!(Case::new().spec(flagged).publish, Publish::Stage);
        let mut case = Case::new();
        case.config = Ok(RepoConfig { staged: true, ..RepoConfig::default() });
        assert_eq!(case.spec(command(Verb::Fix, "")).publish, Publish::Stage);
        let mut case = Case::new().on_pull(false);
        case.rules.staged = true;
        case.rules.push = PushMode::ApproveFirst;
        assert_eq!(case.spec(command(Verb::Fix, "")).publish, Publish::Stage);
    }

    #[test]
    fn the_default_branch_is_never_pushed_to() {
        let mut case = Case::new().on_pull(false);
        case.pull.as_mut().unwrap().head_ref = "main".into();
        assert!(case.refusal(command(Verb::Fix, "")).contains("never push"));
        case.pull.as_mut().unwrap().head_ref = "a..b".into();
        assert!(case.refusal(command(Verb::Fix, "")).contains("branch name"));
    }

    #[test]
    fn a_closed_pull_request_takes_no_changes() {
        let mut case = Case::new().on_pull(false);
        case.pull.as_mut().unwrap().open = false;
        assert!(case.refusal(command(Verb::Fix, "")).contains("closed"));
        assert_eq!(case.spec(command(Verb::Review, "")).mode, RunMode::ReadOnly);
    }

    #[test]
    fn every_verb_is_refused_below_its_role_and_strangers_hear_nothing() {
        for info in command::VERBS {
            for role in [Role::None, Role::Read, Role::Triage, Role::Write] {
                for private in [false, true] {
                    let mut case = Case::new();
                    case.role = role;
                    case.repo.private = private;
                    case.runs = vec![run()];
                    let text = match info.verb {
                        Verb::Run => "format",
                        Verb::Ok => "aaaaaaa",
                        _ => "x",
                    };
                    let plan = case.plan(&[command(info.verb, text)]);
                    let started = plan
                        .actions
                        .iter()
                        .any(|action| matches!(action, Action::Start { .. } | Action::Cancel { .. }));
                    if role < info.default_role {
                        assert!(!started, "{:?} as {role:?}", info.verb);
                        let silent = !private && role < Role::Triage;
                        assert_eq!(plan.actions.is_empty(), silent, "{:?} as {role:?}", info.verb);
                        assert!(plan.audit.iter().any(|(action, _)| *action == "refuse"));
                    } else {
                        assert!(!plan.actions.is_empty());
                    }
                }
            }
        }
    }

    #[test]
    fn a_broken_configuration_starts_nothing_but_help_still_works() {
        let mut case = Case::new();
        case.config = Err(ConfigProblem { line: 3, problem: "unknown key `agnet`".into() });
        let text = case.refusal(command(Verb::Fix, ""));
        assert!(text.contains("line 3") && text.contains("agnet"), "{text}");
        assert!(matches!(
            case.plan(&[command(Verb::Help, "")]).actions.as_slice(),
            [Action::Reply { ok: true, .. }]
        ));
    }

    #[test]
    fn a_repository_can_turn_the_bot_off() {
        let mut case = Case::new();
        case.config = Ok(RepoConfig { enabled: false, ..RepoConfig::default() });
        assert!(case.plan(&[command(Verb::Fix, "")]).actions.is_empty());
    }

    #[test]
    fn the_hourly_limit_counts_the_commands_of_this_comment_too() {
        let mut case = Case::new();
        case.recent_runs = 2;
        let plan = case.plan(&[command(Verb::Fix, "a"), command(Verb::Fix, "b")]);
        assert!(matches!(plan.actions.as_slice(), [Action::Start { .. }, Action::Reply { ok: false, .. }]));
    }

    #[test]
    fn budgets_are_the_smallest_of_what_applies_and_never_above_the_most() {
        let mut case = Case::new();
        let mut asked = command(Verb::Fix, "");
        asked.flags.budget_micros = Some(25_000_000);
        assert!(case.refusal(asked.clone()).contains("$25.00"));
        asked.flags.budget_micros = Some(15_000_000);
        assert_eq!(case.spec(asked.clone()).budget_micros, 15_000_000);
        let mut config = RepoConfig::default();
        config.limits.budget_micros = Some(2_000_000);
        case.config = Ok(config);
        assert_eq!(case.spec(command(Verb::Fix, "")).budget_micros, 2_000_000);
        assert!(case.refusal(asked).contains("$2.00"));
    }

    #[test]
    fn hosts_come_from_what_the_server_permits_only() {
        let mut case = Case::new();
        let setup = |entry: &str| Setup {
            command: SetupCommand::Recipe("install".into()),
            egress: vec![entry.into()],
            cache: Vec::new(),
        };
        case.config = Ok(RepoConfig {
            egress: vec!["crates".into()],
            setup: Some(setup("static.crates.io")),
            ..RepoConfig::default()
        });
        case.spec(command(Verb::Fix, ""));
        case.config = Ok(RepoConfig { egress: vec!["npm".into()], ..RepoConfig::default() });
        assert!(case.refusal(command(Verb::Fix, "")).contains("allow = [\"npm\"]"));
        case.config = Ok(RepoConfig { setup: Some(setup("evil.example")), ..RepoConfig::default() });
        assert!(case.refusal(command(Verb::Fix, "")).contains("`setup.egress`"));
    }

    #[test]
    fn images_come_from_the_allow_list_only() {
        let mut case = Case::new();
        case.config = Ok(RepoConfig { image: Some("img:2".into()), ..RepoConfig::default() });
        assert_eq!(case.spec(command(Verb::Fix, "")).image, "img:2");
        case.config = Ok(RepoConfig { image: Some("ghcr.example/octo/a:1".into()), ..RepoConfig::default() });
        assert_eq!(case.spec(command(Verb::Fix, "")).image, "ghcr.example/octo/a:1");
        case.config =
            Ok(RepoConfig { image: Some("ghcr.example/octopus/a".into()), ..RepoConfig::default() });
        assert!(
            case.refusal(command(Verb::Fix, "")).contains("allowed_images = [\"ghcr.example/octopus/a\"]")
        );
        case.config = Ok(RepoConfig { image: Some("evil:1".into()), ..RepoConfig::default() });
        assert!(case.refusal(command(Verb::Fix, "")).contains("evil:1"));
    }

    #[test]
    fn recipes_are_run_by_name_and_agents_are_not_recipes() {
        let case = Case::new();
        let spec = case.spec(command(Verb::Run, "format src tests"));
        assert_eq!((spec.agent.as_str(), spec.text.as_str()), ("format", "src tests"));
        assert!(case.refusal(command(Verb::Run, "fixer")).contains("not a recipe"));
        assert!(case.refusal(command(Verb::Run, "nothing")).contains("`format`"));
    }

    #[test]
    fn retry_repeats_the_request_and_continue_goes_on() {
        let mut case = Case::new();
        assert!(case.refusal(command(Verb::Retry, "")).contains("no earlier run"));
        case.runs = vec![run()];
        let again = case.spec(command(Verb::Retry, ""));
        assert_eq!(
            (again.verb, again.text.as_str(), again.previous),
            (Verb::Fix, "the crash", Some(RunId::new("run_0001")))
        );
        let on = case.spec(command(Verb::Continue, "now the tests"));
        assert_eq!((on.verb, on.text.as_str()), (Verb::Continue, "now the tests"));
        assert!(on.previous.is_some() && on.resume && !again.resume);
    }

    #[test]
    fn base_must_exist_and_has_no_meaning_on_pull_requests() {
        let mut case = Case::new();
        let mut asked = command(Verb::Fix, "");
        asked.flags.base = Some("release/1".into());
        assert!(case.refusal(asked.clone()).contains("release/1"));
        case.bases.insert("release/1".into(), Some(sha('d')));
        let spec = case.spec(asked.clone());
        assert_eq!((spec.base.as_str(), spec.start), ("release/1", sha('d')));
        assert!(Case::new().on_pull(false).refusal(asked).contains("--base"));
    }

    #[test]
    fn cancel_names_every_open_run() {
        let mut case = Case::new();
        let mut ended = run();
        ended.state = RunState::Failed;
        case.runs = vec![ended, run()];
        let plan = case.plan(&[command(Verb::Cancel, "")]);
        assert!(matches!(plan.actions.as_slice(), [Action::Cancel { .. }, Action::Reply { ok: true, .. }]));
    }

    #[test]
    fn bots_strangers_and_this_bot_trigger_nothing() {
        let own = Own { user_id: 99, app_id: 5 };
        let ada = actor(7, "ada");
        let check = |change: &dyn Fn(&mut Comment), sender: Option<&Actor>| {
            let mut comment = comment(SubjectKind::Issue);
            change(&mut comment);
            matches!(interest(&comment, sender, own), Interest::Commands(_))
        };
        assert!(check(&|_| {}, Some(&ada)));
        assert!(!check(&|c| c.author.id = 99, Some(&ada)));
        assert!(!check(&|c| c.app_id = Some(5), Some(&ada)));
        assert!(!check(&|c| c.author.kind = ActorKind::Bot, Some(&ada)));
        assert!(!check(&|_| {}, Some(&actor(8, "bob"))), "sent by somebody else");
        assert!(!check(&|_| {}, None));
        assert!(!check(&|c| c.action = CommentAction::Edited { before: None }, Some(&ada)));
        assert!(!check(
            &|c| c.action = CommentAction::Edited { before: Some("/zeblit fix".into()) },
            Some(&ada)
        ));
        assert!(check(&|c| c.action = CommentAction::Edited { before: Some("hello".into()) }, Some(&ada)));
    }
}
