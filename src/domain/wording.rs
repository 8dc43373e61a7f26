//! Every text a user sees on the forge. Says what happened, why, and what to type next.

use super::budget::{BudgetKind, Standing, dollars};
use super::command::{CommandError, VERBS, Verb};
use super::effect::{Annotation, CheckConclusion, CheckStatus};
use super::event::{SubjectKind, Surface};
use super::ids::{BranchName, RepoName, RunId, Sha};
use super::plan::AgentFacts;
use super::policy::{self, PushMode, Role};
use super::repo_config::{self, ConfigProblem, RepoConfig};
use super::run::{
    AgentEnd, FailureClass, Kept, Phase, Publish, Question, RETRY_MINUTES, Run, RunMode, RunState,
};
use super::sanitize;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// GitHub refuses comments above 65 536 characters (its API documentation); ours stay well below.
pub const MAX_BODY_BYTES: usize = 60_000;

/// Longest agent text inside a comment or pull request, bytes.
const MAX_SUMMARY_BYTES: usize = 20_000;

// ---------------------------------------------------------------- replies

pub fn pong() -> String {
    "🏓 Listening. `/zeblit help` lists what I can do here.".into()
}

pub fn command_error(error: &CommandError) -> String {
    let hint = match error {
        CommandError::UnknownVerb { did_you_mean: Some(verb), .. } => {
            format!("Did you mean `/zeblit {verb}`?")
        }
        CommandError::UnknownFlag { did_you_mean: Some(flag), .. } => format!("Did you mean `--{flag}`?"),
        // Most problems show an example themselves.
        CommandError::BadArguments { verb, problem } if !problem.contains("/zeblit ") => VERBS
            .iter()
            .find(|info| info.names.contains(&verb.as_str()))
            .map(|info| format!("Usage: `{}`.", info.usage))
            .unwrap_or_default(),
        _ => String::new(),
    };
    let text = sanitize::one_line(&error.to_string(), 300);
    format!("😕 {text}. {hint} `/zeblit help` lists the commands.").replace(".  ", ". ")
}

pub fn no_permission(login: &str, role: Role, verb: Verb, needs: Role) -> String {
    format!(
        "🚫 {} has `{}` access; `{}` here needs `{}` (rule: `permissions.{}` in `{}`).",
        sanitize::one_line(login, 60),
        role.name(),
        verb.name(),
        needs.name(),
        verb.name(),
        repo_config::PATH
    )
}

pub fn permission_unknown(login: &str) -> String {
    format!(
        "🚫 I could not find out what {} may do here: the forge did not answer for 15 minutes. Nothing was started. Please try the command again.",
        sanitize::one_line(login, 60)
    )
}

/// The forge answered, and its answer makes no sense: asking again would not help.
pub fn unreadable_answer() -> String {
    "🚫 I could not find out what is allowed here: an answer of the forge made no sense to me. Nothing was started. Please try the command again; when it stays so, the operator of this server finds more in its log.".into()
}

pub fn broken_config(problem: &ConfigProblem) -> String {
    format!(
        "😕 The configuration of this repository cannot be read, so I start nothing.\n\n```\n{}\n```\nMend it on the default branch, then type the command again.",
        problem.to_string().replace("```", "'''")
    )
}

pub fn broken_agents(problem: &str) -> String {
    format!(
        "😕 The agents of this repository (`.github/zeblit/`) cannot be read, so I start nothing.\n\n```\n{}\n```\nMend them on the default branch, then type the command again.",
        problem.replace("```", "'''")
    )
}

pub fn rate_limited(login: &str, limit: i64) -> String {
    format!(
        "🚫 {} has started {limit} runs within the last hour, which is the limit of this server. Please try again later.",
        sanitize::one_line(login, 60)
    )
}

pub fn no_previous(verb: Verb) -> String {
    format!("😕 There is no earlier run here to {}. `/zeblit fix` starts one.", verb.name())
}

pub fn unknown_agent(name: &str, agents: &BTreeMap<String, AgentFacts>, recipes: bool) -> String {
    let known: Vec<String> = agents
        .iter()
        .filter(|(_, facts)| !recipes || facts.is_recipe)
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    let what = if recipes { "recipe" } else { "agent" };
    format!("😕 There is no {what} `{}` here. There are: {}.", sanitize::one_line(name, 60), known.join(", "))
}

pub fn not_a_recipe(name: &str) -> String {
    format!("😕 `{name}` is an agent, not a recipe. Use `/zeblit fix --agent {name} …`.")
}

/// The digits of a commit that a person is asked to type.
fn digits(sha: &Sha) -> &str {
    sha.as_str().get(..12).unwrap_or_else(|| sha.short())
}

pub fn fork_needs_ok(verb: Verb, head: &Sha) -> String {
    format!(
        "🚫 This pull request comes from a fork, so `{}` would run a stranger's code. Read the commit `{}` first, then type `/zeblit ok {}` and the command again. `/zeblit review` and `/zeblit ask` run nothing and need no approval.",
        verb.name(),
        digits(head),
        digits(head)
    )
}

pub fn ok_names_another_head(asked: &str, head: &Sha) -> String {
    format!(
        "🚫 `{asked}` is not the head of this pull request, which is `{}`. Read that one; `/zeblit ok {}` approves it.",
        digits(head),
        digits(head)
    )
}

pub fn ok_came_before_a_push(head: &Sha) -> String {
    format!(
        "🚫 Somebody pushed to this pull request after your comment was written, so it approves nothing. Read the head `{}` and approve it with a new comment.",
        digits(head)
    )
}

pub fn head_approved(head: &Sha) -> String {
    format!(
        "👍 The commit `{}` may be run here. A push to this pull request needs a new approval.",
        digits(head)
    )
}

pub fn change_approved(run: &RunId, head: &Sha) -> String {
    format!("👍 The change `{}` of run `{}` is checked once more and pushed.", digits(head), run.short())
}

pub fn nothing_to_approve() -> String {
    "👍 Nothing waits for approval here.".into()
}

pub fn ok_names_another_change(asked: &str, waiting: &[&Sha]) -> String {
    let lines: Vec<String> = waiting.iter().map(|sha| format!("`/zeblit ok {}`", digits(sha))).collect();
    format!("🚫 No change `{asked}` waits for approval here. These do: {}.", lines.join(", "))
}

pub fn no_fork(repo: &RepoName) -> String {
    format!(
        "🚫 Results for `{repo}` go to a fork (mode `{}`), and this server has none that it may push to. Its operator has to fork the repository to the account in `publish.fork_owner` and install the App there.",
        PushMode::Fork.name()
    )
}

/// The head was approved, and then the approval was voided by a push.
pub fn approval_is_void(head: &Sha) -> String {
    format!(
        "The approval of the commit `{}` does not hold any more: somebody pushed to the pull request.",
        digits(head)
    )
}

/// Why a comment leads to nothing.
pub const NO_COMMAND: &str = "no command in it";

/// Why a change that nobody approved was dropped; stands where otherwise a person's name does.
pub const NOT_APPROVED: &str = "not approved in time";

/// A run that nobody came to work on.
pub fn waited_too_long(hours: i64) -> String {
    format!("It waited in the queue for {}, its limit, and never started.", plural(hours, "hour"))
}

/// Why a run on a stranger's code was stopped by a push; stands where otherwise a person's name does.
pub const APPROVAL_VOID: &str = "approval void";

/// Why the runs of a repository stop that was deleted, or taken from the App; stands where otherwise a name does.
pub const REPOSITORY_GONE: &str = "the repository is gone";

/// Why the runs of an issue or pull request stop; `subject_was_closed` knows it by its first character.
pub fn was_closed(number: i64) -> String {
    format!("#{number} was closed")
}

/// The same for one that does not exist any more, or lives elsewhere.
pub fn was_deleted(number: i64) -> String {
    format!("#{number} was deleted or moved")
}

/// The verdict on a delivery that nobody survived.
pub fn deadly_delivery(deaths: i64) -> String {
    format!(
        "the server died {deaths} times while it handled only this delivery; `zeblit replay` tries it again"
    )
}

/// A run that met a full disk of the server.
pub const SERVER_DISK_FULL: &str =
    "The disk of the server is full. Its operator makes room; then `/zeblit retry`.";

/// A run that was begun and that nobody goes on with.
pub fn abandoned(hours: i64) -> String {
    format!("It was begun, and for {hours} h no worker went on with it.")
}

/// A run whose work is pushed and whose pull request does not come.
pub fn no_pull_request(hours: i64, last_error: Option<&str>) -> String {
    let why = last_error.map_or(String::new(), |error| format!(" ({})", sanitize::one_line(error, 200)));
    format!("The pull request could not be opened within {hours} h{why}.")
}

/// A run whose pull request was asked for in vain, and the refusal reached nobody.
pub fn pull_request_lost(last_error: Option<&str>) -> String {
    match last_error {
        Some(error) => {
            format!(
                "The pull request could not be opened: {}.",
                sanitize::one_line(error, 300).trim_end_matches('.')
            )
        }
        None => "Nothing says any more that a pull request is to be opened.".into(),
    }
}

/// The bot's account has no fork of the repository (any more).
pub fn fork_is_missing(fork: &RepoName) -> String {
    format!("There is no fork `{fork}` of this repository that the App may push to.")
}

/// Of a branch that was not deleted.
pub fn branch_holds_other_work(branch: &BranchName) -> String {
    format!("`{branch}` holds other work than mine, so it stays.")
}

/// Title and text of what was made twice and stays visible.
pub const SUPERSEDED: &str = "Superseded: this was made twice by mistake, and the other one goes on.";

/// What such a check is called for the forge.
pub const SUPERSEDED_ID: &str = "superseded";

/// The text of an issue that was opened twice.
pub fn duplicate_of(number: &str) -> String {
    format!("Opened twice by mistake: #{number} goes on.")
}

pub fn pull_is_closed(number: i64) -> String {
    format!("😕 #{number} is closed. Reopen it, then type the command again.")
}

pub fn image_not_allowed(image: &str) -> String {
    format!(
        "🚫 The image `{}` (key `image` in `{}`) is not on this server's allow-list. Ask its operator for this line in the server's configuration, below `[sandbox]`: `allowed_images = [\"{}\"]`.",
        sanitize::one_line(image, 120),
        repo_config::PATH,
        sanitize::one_line(image, 120)
    )
}

pub fn egress_not_allowed(key: &str, entry: &str) -> String {
    let entry = sanitize::one_line(entry, 120);
    format!(
        "🚫 `{entry}` (key `{key}` in `{}`) is not among the hosts that this server permits. Ask its operator for this line in the server's configuration, below `[egress]`: `allow = [\"{entry}\"]`.",
        repo_config::PATH
    )
}

/// Hosts of the proxy's refusals that are listed in a report.
const SHOWN_HOSTS: usize = 5;

/// A host that the proxy refused because it is not on the run's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedHost {
    pub host: String,
    pub times: i64,
    /// The server permits it: the repository's own file can allow it.
    pub permitted: bool,
    /// It was the setup that may ask for it; else the agent.
    pub key: &'static str,
}

/// The note about hosts that were refused, with the lines that would allow them. Hosts are canonical names.
pub fn denied_hosts(denied: &[DeniedHost]) -> Option<String> {
    let first = denied.first()?;
    let mut text = String::from("Not reached, because they are not on the list of hosts: ");
    let names: Vec<String> = denied
        .iter()
        .take(SHOWN_HOSTS)
        .map(|host| format!("`{}` ({})", host.host, plural(host.times, "time")))
        .collect();
    text.push_str(&names.join(", "));
    if denied.len() > SHOWN_HOSTS {
        let _ = write!(text, " and {} more", denied.len() - SHOWN_HOSTS);
    }
    let entries = |all: bool| -> Vec<String> {
        let mut list: Vec<String> = denied
            .iter()
            .take(SHOWN_HOSTS)
            .filter(|host| all || !host.permitted)
            .map(|host| format!("\"{}\"", super::egress::entry_for(&host.host)))
            .collect();
        list.sort();
        list.dedup();
        list
    };
    let _ = write!(
        text,
        ". To allow: `{} = [{}]` in `{}`",
        first.key,
        entries(true).join(", "),
        repo_config::PATH
    );
    let missing = entries(false);
    if !missing.is_empty() {
        let _ = write!(
            text,
            ", after the operator of this server has set `egress.allow = [{}]`",
            missing.join(", ")
        );
    }
    text.push('.');
    Some(text)
}

/// The note about the setup in a report.
pub fn setup_took(shown: &str, seconds: i64) -> String {
    format!("Setup (`{shown}`) took {}.", duration(seconds))
}

pub fn setup_not_for_forks() -> String {
    "The setup was left out: this pull request comes from a fork.".into()
}

/// Files that one note about artifacts names.
const SHOWN_ARTIFACTS: usize = 5;

/// `a`, `b` and 3 more. The names are as they may be shown.
fn named(paths: &[String]) -> Option<String> {
    let names: Vec<String> = paths.iter().take(SHOWN_ARTIFACTS).map(|path| format!("`{path}`")).collect();
    let more = paths.len().saturating_sub(SHOWN_ARTIFACTS);
    match (names.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(names.join(", ")),
        (false, more) => Some(format!("{} and {more} more", names.join(", "))),
    }
}

pub fn artifacts_withheld(paths: &[String]) -> Option<String> {
    named(paths)
        .map(|names| format!("Artifacts withheld, because they hold a secret of this server: {names}."))
}

pub fn artifacts_suspicious(paths: &[String]) -> Option<String> {
    named(paths)
        .map(|names| format!("Artifacts withheld, because they hold what looks like a secret: {names}."))
}

pub fn artifacts_masked(paths: &[String]) -> Option<String> {
    named(paths).map(|names| format!("In these artifacts, what looks like a secret is masked: {names}."))
}

/// Files that match and are not kept: path (empty: it is about all of them) and why.
pub fn artifacts_left_out(left_out: &[(String, &str)], more: u64) -> Option<String> {
    let mut parts: Vec<String> = left_out
        .iter()
        .take(SHOWN_ARTIFACTS)
        .map(|(path, why)| if path.is_empty() { (*why).to_owned() } else { format!("`{path}` ({why})") })
        .collect();
    let more = more.saturating_add(left_out.len().saturating_sub(SHOWN_ARTIFACTS) as u64);
    if more > 0 {
        parts.push(format!("{more} more"));
    }
    (!parts.is_empty()).then(|| format!("Artifacts left out: {}.", parts.join("; ")))
}

/// The agent of a run that was to go on with a conversation began anew.
pub fn session_missing() -> String {
    "The agent's own conversation of the run before is not kept (any more), so it began anew with a summary."
        .into()
}

pub fn session_refused() -> String {
    "The agent could not go on with its own conversation of the run before, so it began anew with a summary."
        .into()
}

pub fn session_resumed(previous: &RunId) -> String {
    format!("It went on with the agent's own conversation of run `{}`.", previous.short())
}

/// Its agent was interrupted, and goes on.
pub fn session_taken_up(run: &Run) -> String {
    let reason = run.progress.again.as_ref().map_or("", |again| again.reason.as_str());
    format!("The agent was interrupted ({}) and went on with its own conversation.", unfinished(reason))
}

/// A sentence as part of another one.
fn unfinished(sentence: &str) -> String {
    let text = sentence.trim_end_matches('.');
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_lowercase().chain(chars).collect())
}

/// The model endpoint said "too much".
pub fn model_overloaded() -> String {
    "The model endpoint is overloaded or its rate limit is reached.".into()
}

pub fn model_does_not_answer() -> String {
    "The model endpoint does not answer.".into()
}

pub fn model_account_empty() -> String {
    "The account at the model provider is out of credit or over its limit.".into()
}

pub fn model_refused_key() -> String {
    "The model provider refused this server's key.".into()
}

/// Automatic retries are used up.
pub fn tried_in_vain(run: &Run, reason: &str) -> String {
    match run.progress.again.as_ref().map_or(0, |again| again.times) {
        0 => reason.to_owned(),
        times => format!("{reason} I tried again {times} times by myself."),
    }
}

/// Workers died on the run.
pub fn dead_letter(run: &Run) -> String {
    format!(
        "The worker died {} times in a row while it was at this run ({}), so nobody takes it on any more.",
        run.deaths,
        phase_name(Some(current_phase(run)))
    )
}

/// What the run waited for ended badly.
pub fn blocker_failed(number: i64) -> String {
    format!("It waited for #{number}, whose last run did not succeed.")
}

/// Somebody pushed what this run would not build on.
pub fn superseded(head: &Sha) -> String {
    format!("{NEWER_PUSH} {}", head.short())
}

/// How the request to cancel a superseded run begins.
pub const NEWER_PUSH: &str = "a newer push:";

/// `--after` names something that nothing is known of.
pub fn after_unknown(number: i64) -> String {
    format!("I know no open task for #{number}. Ask for it there first (`/zeblit fix`), then again here.")
}

pub fn after_itself(number: i64) -> String {
    format!("#{number} cannot wait for itself.")
}

pub fn after_circle(number: i64) -> String {
    format!("#{number} waits for this one already: both would wait for ever.")
}

pub fn priority_needs(needs: Role) -> String {
    format!("`--priority high` goes before everybody else's runs and needs the role `{}`.", needs.name())
}

/// The session of a run is not kept.
pub fn session_not_kept(why: &str) -> String {
    format!(
        "The agent's conversation is not kept ({why}): `/zeblit continue` will begin anew with a summary."
    )
}

/// The question that a run ended with, for the agent that goes on.
pub fn question_asked(question: &Question) -> String {
    let mut text = "It ended with a question, which the instruction above may answer:\n\n".to_owned();
    text.push_str(&question.text);
    for choice in &question.choices {
        let _ = write!(text, "\n- {choice}");
    }
    text
}

/// What the system made of a run, for the agent that goes on: not its own words, which it knows.
pub fn verdict(run: &Run) -> String {
    let outcome = &run.outcome;
    let mut text = format!("It ended as \"{}\".", run.state.as_str());
    // It was stopped while it asked, perhaps before it wrote that down.
    if let Some(question) = &outcome.question {
        let _ = write!(text, "\n\n{}", question_asked(question));
    }
    if !outcome.reason.is_empty() {
        let _ = write!(text, "\n\n{}", outcome.reason);
    }
    for note in &outcome.notes {
        let _ = write!(text, "\n\n{note}");
    }
    if let Some(branch) = outcome.branch.as_ref().filter(|_| outcome.head.is_some()) {
        let _ = write!(text, "\n\nIts {} are on the branch `{branch}`.", plural(outcome.commits, "commit"));
    }
    text
}

/// `artifacts` asks for files, and the run left no pack of them.
pub fn no_pack() -> String {
    "The files that `artifacts` names could not be collected; the log says more.".into()
}

pub fn bad_pack(problem: &str) -> String {
    let problem = sanitize::for_comment(&sanitize::one_line(problem, 300), 600);
    format!("What the run left besides its commits was not taken: {}.", problem.trim_end_matches('.'))
}

pub fn budget_too_high(asked: i64, most: i64) -> String {
    format!("🚫 A budget of {} is more than a run may have here ({}).", dollars(asked), dollars(most))
}

pub fn base_on_pull() -> String {
    "😕 `--base` has no meaning on a pull request: its base is fixed.".into()
}

pub fn odd_branch(name: &str) -> String {
    format!("😕 `{}` is not a branch name I can work with.", sanitize::one_line(name, 80).replace('`', "'"))
}

pub fn head_is_default(branch: &BranchName) -> String {
    format!(
        "🚫 The head of this pull request is `{branch}`, a branch I never push to. `/zeblit review` works."
    )
}

pub fn no_such_base(name: &str) -> String {
    format!("😕 There is no branch `{}` here.", sanitize::one_line(name, 80).replace('`', "'"))
}

pub fn nothing_to_cancel() -> String {
    "👍 Nothing is running or queued here.".into()
}

pub fn cancelling(runs: &[RunId]) -> String {
    let ids: Vec<String> = runs.iter().map(|run| format!("`{}`", run.short())).collect();
    format!("🛑 Stopping {}. Partial work is kept.", ids.join(", "))
}

pub fn status(runs: &[Run], paused: Option<&str>, now: DateTime<Utc>) -> String {
    let mut text = String::new();
    if let Some(why) = paused {
        let _ = writeln!(text, "⏸ This server is paused: {}\n", sanitize::one_line(why, 200));
    }
    if runs.is_empty() {
        text.push_str("No run was asked for here yet. `/zeblit help` shows how.");
        return text;
    }
    text.push_str("| Run | Asked by | What | State | Time | Cost |\n|---|---|---|---|---|---|\n");
    for run in runs.iter().rev().take(10) {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {}{} | {} | {} |",
            run.id.short(),
            sanitize::one_line(&run.spec.requester.login, 40),
            run.spec.verb.name(),
            state_words(run),
            run.progress
                .position
                .filter(|_| run.state == RunState::Queued)
                .map_or(String::new(), |p| format!(", position {p}")),
            elapsed(run, now),
            dollars(run.progress.cost_micros),
        );
    }
    text
}

/// `2026-11-22 00:00 UTC`
fn minute(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M UTC").to_string()
}

pub fn budget(standings: &[Standing]) -> String {
    let mut text = String::from("| Budget | Used | Limit | Starts again |\n|---|---|---|---|\n");
    for standing in standings.iter().rev() {
        let whose = sanitize::one_line(&standing.budget.whose, 100);
        let what = match standing.budget.kind {
            BudgetKind::Run => whose,
            BudgetKind::UserDay | BudgetKind::RepoDay => format!("{whose}, today"),
            BudgetKind::OwnerMonth => format!("{whose}, this month"),
        };
        let _ = writeln!(
            text,
            "| {what} | {} | {} | {} |",
            dollars(standing.micros),
            standing.budget.cap_micros.map_or_else(|| "none".to_owned(), dollars),
            standing.resets_at.map_or_else(|| "–".to_owned(), minute),
        );
    }
    text.push_str("\nUsed is what was spent, and what is reserved for requests on their way.");
    text
}

/// `$9.80 of $10.00`, and when it starts again.
fn used(standing: &Standing) -> String {
    let cap = standing.budget.cap_micros.unwrap_or(0);
    format!("{} of {}", dollars(standing.micros), dollars(cap))
}

/// The broker's answer to a request that a budget does not reach for. Adapters know it by its first words.
pub fn budget_used_up(standing: &Standing, request_micros: i64) -> String {
    let again =
        standing.resets_at.map_or_else(String::new, |at| format!("; it starts again at {}", minute(at)));
    format!(
        "the budget {} is used up ({}; this request may cost {}{again})",
        standing.budget.name(),
        used(standing),
        dollars(request_micros)
    )
}

/// Why a run was stopped by a budget that is not its own.
pub fn stopped_by_budget(standing: &Standing) -> String {
    let again =
        standing.resets_at.map_or_else(String::new, |at| format!(" It starts again at {}.", minute(at)));
    format!(
        "The budget {} did not reach for the agent's next request to the model: {} is spent or reserved.{again}",
        standing.budget.name(),
        used(standing)
    )
}

/// Said once, while a run goes on.
pub fn budget_nearly_used(standing: &Standing) -> String {
    let again =
        standing.resets_at.map_or_else(String::new, |at| format!(", and starts again at {}", minute(at)));
    format!("80 % of the budget {} is used: {}{again}.", standing.budget.name(), used(standing))
}

pub fn help(
    config: &RepoConfig,
    agents: &BTreeMap<String, AgentFacts>,
    problem: Option<&ConfigProblem>,
    agents_problem: Option<&str>,
) -> String {
    let mut text = String::from(
        "I am a bot. A command stands at the start of a line of a comment:\n\n| Command | What it does | Who may use it here |\n|---|---|---|\n",
    );
    for info in VERBS {
        let usage = info.usage.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{usage}` | {} | {} and above |",
            info.about,
            policy::required_role(info.verb, config).name()
        );
    }
    text.push_str("\nFlags: `--agent NAME`, `--model NAME`, `--base BRANCH`, `--budget DOLLARS`, `--priority high|default|low`; `--after #N` waits until that is done; `--staged` shows what would be done and pushes nothing.\n");
    for (title, recipe) in [("Agents", false), ("Recipes", true)] {
        let list: Vec<String> = agents
            .iter()
            .filter(|(_, facts)| facts.is_recipe == recipe)
            .map(|(name, facts)| format!("- `{name}`: {}", sanitize::one_line(&facts.description, 160)))
            .collect();
        if !list.is_empty() {
            let _ = write!(text, "\n{title}:\n\n{}\n", list.join("\n"));
        }
    }
    let _ = write!(text, "\nThis repository's rules stand in `{}` on its default branch.", repo_config::PATH);
    if let Some(problem) = problem {
        let _ = write!(text, " ⚠️ It cannot be read now: {}.", sanitize::one_line(&problem.to_string(), 300));
    }
    if let Some(problem) = agents_problem {
        let problem = sanitize::for_comment(&sanitize::one_line(problem, 300), 600);
        let _ = write!(text, " ⚠️ Its own agents cannot be read now: {problem}.");
    }
    text
}

// ---------------------------------------------------------------- the run

/// Links and names that the texts of a run need and that the run does not hold.
#[derive(Debug, Clone, Default)]
pub struct RunLinks {
    /// The run page; `None` when pages are off.
    pub run_page: Option<String>,
    /// Where the repository is seen, e.g. `https://github.com/owner/name`.
    pub repo_url: String,
    /// Set while the operator paused everything.
    pub paused: Option<String>,
    /// `name <address>` of the requester, for the `Co-authored-by` trailer.
    pub co_author: String,
}

fn state_words(run: &Run) -> &'static str {
    match run.state {
        RunState::Queued => "⏳ queued",
        RunState::Preparing => "🔧 preparing",
        RunState::Running => "🏃 running",
        RunState::Collecting => "📦 collecting",
        RunState::Publishing => "🔎 checking and pushing",
        RunState::Reporting => "🚚 opening the pull request",
        RunState::Held => "✋ waits for approval",
        RunState::Succeeded => "✅ done",
        RunState::Nothing => "👍 nothing to do",
        RunState::NeedsInput => "❓ needs an answer",
        RunState::Failed => "❌ failed",
        RunState::Cancelled => "🛑 cancelled",
    }
}

fn elapsed(run: &Run, now: DateTime<Utc>) -> String {
    let Some(start) = run.started_at else { return "–".into() };
    let seconds = (run.finished_at.unwrap_or(now) - start).num_seconds().max(0);
    duration(seconds)
}

fn duration(seconds: i64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{:02}s", seconds / 60, seconds % 60) }
}

/// Names of the checklist's lines, in order, as far as they apply to the run.
pub fn phases(run: &Run) -> Vec<(Phase, &'static str)> {
    let mut list = vec![(Phase::Queue, "queue"), (Phase::Clone, "clone"), (Phase::Sandbox, "container")];
    if run.has_setup() {
        list.push((Phase::Setup, "setup"));
    }
    list.push((Phase::Agent, "agent"));
    if run.spec.mode == RunMode::Change {
        list.push((Phase::Check, "check the changes"));
        if matches!(run.spec.publish, Publish::Stage | Publish::Patch) {
            return list;
        }
        list.push((Phase::Push, "push"));
        if run.spec.pull.is_none() {
            list.push((Phase::Pull, "pull request"));
        }
    }
    list
}

/// The phase a run is in, or ended in.
pub fn current_phase(run: &Run) -> Phase {
    match run.state {
        RunState::Queued => Phase::Queue,
        RunState::Preparing => {
            run.progress.phase.filter(|phase| *phase > Phase::Queue).unwrap_or(Phase::Clone)
        }
        RunState::Reporting => Phase::Pull,
        _ => run.progress.phase.unwrap_or(Phase::Queue),
    }
}

fn checklist(run: &Run) -> String {
    let current = run.outcome.step.unwrap_or_else(|| current_phase(run));
    let mut text = String::new();
    for (phase, name) in phases(run) {
        let (mark, note) = match run.state {
            RunState::Succeeded => ("x", ""),
            RunState::Nothing | RunState::NeedsInput if phase <= Phase::Agent => ("x", ""),
            _ if phase < current => ("x", ""),
            RunState::Failed | RunState::Cancelled if phase == current => (" ", " ← stopped here"),
            state if phase == current && !state.is_terminal() => (" ", " ←"),
            _ => (" ", ""),
        };
        let _ = writeln!(text, "- [{mark}] {name}{note}");
    }
    text
}

/// Bytes as whole MiB, at least 1.
fn mib(bytes: i64) -> i64 {
    (bytes.max(0) + (1 << 20) - 1).div_euclid(1 << 20).max(1)
}

/// `212 MiB, 1.3 CPU, 40 MiB disk`: the most that was seen of each; empty when nobody looked.
pub fn peak(run: &Run) -> String {
    let Some(peak) = run.progress.peak else { return String::new() };
    format!(
        "{} MiB, {}.{} CPU, {} MiB disk",
        mib(peak.memory_bytes),
        peak.millicpus / 1000,
        peak.millicpus % 1000 / 100,
        mib(peak.disk_bytes)
    )
}

pub fn over_disk(used: i64, limit: i64) -> String {
    format!(
        "The agent was stopped: its files took {} MiB of disk, more than its limit of {} MiB.",
        mib(used),
        mib(limit)
    )
}

pub fn disk_is_full(limit: i64) -> String {
    format!("The agent was stopped: its disk of {} MiB is full.", mib(limit))
}

pub fn over_files(limit: i64) -> String {
    format!("The agent was stopped: it made more than {limit} files, its limit.")
}

pub fn too_deep() -> String {
    "The agent was stopped: its folders are nested too deep to be looked after.".into()
}

pub fn idle(minutes: i64) -> String {
    format!(
        "The agent was stopped after {minutes} minutes without output and without a request to its model."
    )
}

/// `$0.42 of $5.00` for agents with a model, nothing for recipes that spend nothing.
fn money(run: &Run) -> String {
    if run.progress.cost_micros == 0 && run.progress.tokens == 0 {
        return String::new();
    }
    format!(" · {} of {}", dollars(run.progress.cost_micros), dollars(run.spec.budget_micros))
}

/// Why a run stays in the queue although nothing is ahead of it.
fn no_node(needs: &[String]) -> String {
    if needs.is_empty() {
        return " · no worker is running".into();
    }
    let needs: Vec<String> = needs.iter().map(|need| format!("`{need}`")).collect();
    format!(" · waits for a worker with {}: none is running", needs.join(", "))
}

/// The first line of the sticky comment, and the title of the check.
pub fn headline(run: &Run, links: &RunLinks, now: DateTime<Utc>) -> String {
    let outcome = &run.outcome;
    match run.state {
        RunState::Queued => {
            let mut line = String::from("⏳ Queued");
            if let Some(position) = run.progress.position {
                let _ = write!(line, " · position {position}");
            }
            if let Some(again) = &run.progress.again {
                let at = run.not_before.map_or(String::new(), |at| at.format(" at %H:%M UTC").to_string());
                let of = RETRY_MINUTES.len();
                let _ = write!(line, " · {} · try {} of {of}{at}", again.class.name(), again.times);
            }
            if !run.progress.after.is_empty() {
                let after: Vec<_> = run.progress.after.iter().map(|number| format!("#{number}")).collect();
                let _ = write!(line, " · waits for {}", after.join(", "));
            }
            if let Some(holder) = &run.progress.waits_for {
                let _ = write!(line, " · waits for run `{}` on the same branch", holder.short());
            }
            if links.paused.is_some() {
                line.push_str(" · the server is paused by its operator");
            } else if run.progress.no_node {
                line.push_str(&no_node(&run.spec.needs));
            }
            line
        }
        RunState::Held => format!("✋ Waits for approval · {}", elapsed(run, now)),
        RunState::Succeeded if outcome.kept.is_some() && run.spec.publish == Publish::Stage => {
            format!("🧪 Staged: nothing was pushed · {}", elapsed(run, now))
        }
        RunState::Succeeded if outcome.kept.is_some() && run.spec.publish == Publish::Patch => {
            format!("✅ A patch is ready, nothing was pushed · {}", elapsed(run, now))
        }
        RunState::Succeeded => match (outcome.pull_number, run.spec.mode) {
            (Some(number), RunMode::Change) if run.spec.pull.is_none() => {
                let kind = if outcome.no_draft { "Pull request" } else { "Draft pull request" };
                format!("✅ {kind} #{number} · {}", elapsed(run, now))
            }
            (_, RunMode::Change) => format!(
                "✅ Pushed {} to `{}` · {}",
                plural(outcome.commits, "commit"),
                outcome.branch.as_ref().map_or("", BranchName::as_str),
                elapsed(run, now)
            ),
            (_, RunMode::ReadOnly) if in_thread(run) => {
                format!("✅ Answered in the review thread · {}", elapsed(run, now))
            }
            (_, RunMode::ReadOnly) => format!("✅ Answered below · {}", elapsed(run, now)),
        },
        RunState::Nothing => format!("👍 Nothing to change · {}", elapsed(run, now)),
        RunState::NeedsInput => format!("❓ Needs an answer · {}", elapsed(run, now)),
        RunState::Failed => format!(
            "❌ Failed: {} at step \"{}\" · {}",
            outcome.class.map_or("internal", FailureClass::name),
            phase_name(outcome.step),
            elapsed(run, now)
        ),
        RunState::Cancelled if run.started_at.is_none() => "🛑 Cancelled before it started".into(),
        RunState::Cancelled => format!("🛑 Cancelled · {}", elapsed(run, now)),
        _ => format!("{} · {}", capitalise(state_words(run)), elapsed(run, now)),
    }
}

/// The command stands in a review thread.
fn in_thread(run: &Run) -> bool {
    run.spec.origin.as_ref().is_some_and(|origin| matches!(origin.surface, Surface::ReviewComment { .. }))
}

fn capitalise(text: &str) -> String {
    let mut done = false;
    text.chars()
        .map(|c| {
            if !done && c.is_ascii_alphabetic() {
                done = true;
                c.to_ascii_uppercase()
            } else {
                c
            }
        })
        .collect()
}

fn phase_name(step: Option<Phase>) -> &'static str {
    match step.unwrap_or(Phase::Queue) {
        Phase::Queue => "queue",
        Phase::Clone => "clone",
        Phase::Sandbox => "container",
        Phase::Setup => "setup",
        Phase::Agent => "agent",
        Phase::Check => "check the changes",
        Phase::Push => "push",
        Phase::Pull => "pull request",
    }
}

fn plural(count: i64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The sticky comment, without its marker.
pub fn sticky(run: &Run, links: &RunLinks, now: DateTime<Utc>) -> String {
    let mut text = format!("**{}**\n\n", headline(run, links, now));
    match run.state {
        RunState::Failed | RunState::Cancelled => {
            text.push_str(&ending(run));
            let said = matches!(
                run.outcome.class,
                Some(
                    FailureClass::Agent
                        | FailureClass::Timeout
                        | FailureClass::OutOfMemory
                        | FailureClass::Setup
                        | FailureClass::Disk
                )
            );
            if said && !run.outcome.summary.is_empty() {
                text.push_str(match run.outcome.class {
                    Some(FailureClass::Setup) => "The end of its output:\n\n",
                    _ => "What the agent said last:\n\n",
                });
                summary(&mut text, run);
            }
        }
        RunState::NeedsInput => text.push_str(&open_question(run)),
        RunState::Nothing => {
            text.push_str(if run.spec.pull.is_some() {
                "The agent ended without changing anything, so nothing was pushed.\n\n"
            } else {
                "The agent ended without changing anything, so there is no branch and no pull request.\n\n"
            });
            summary(&mut text, run);
        }
        RunState::Held => {
            kept(&mut text, run, links);
            summary(&mut text, run);
        }
        RunState::Succeeded => {
            if matches!(run.spec.publish, Publish::Stage | Publish::Patch) && run.outcome.kept.is_some() {
                kept(&mut text, run, links);
                summary(&mut text, run);
            } else if run.spec.mode == RunMode::Change {
                if let (Some(number), Some(url)) = (run.outcome.pull_number, &run.outcome.pull_url)
                    && run.spec.pull.is_none()
                {
                    let _ = write!(text, "[#{number}]({url}) · ");
                }
                let _ = writeln!(
                    text,
                    "{} · {}, +{} −{}\n",
                    plural(run.outcome.commits, "commit"),
                    plural(run.outcome.files, "file"),
                    run.outcome.added_lines,
                    run.outcome.removed_lines
                );
                summary(&mut text, run);
            }
        }
        _ => {
            text.push_str(&checklist(run));
            text.push('\n');
            if run.state == RunState::Running && !run.progress.last.is_empty() {
                let _ = writeln!(text, "> {}\n", run.progress.last);
            }
            if !run.progress.checklist.is_empty() {
                let _ = writeln!(text, "The agent's own list:\n\n{}", own_checklist(run));
            }
        }
    }
    for note in &run.outcome.notes {
        let _ = writeln!(text, "> ℹ️ {note}\n");
    }
    for (_, warning) in &run.progress.warnings {
        let _ = writeln!(text, "> ⚠️ {}\n", sanitize::for_comment(warning, 400));
    }
    let mut foot = vec![format!("`{}`", run.spec.agent)];
    let spent = money(run);
    if !spent.is_empty() {
        foot.push(spent.trim_start_matches(" · ").to_owned());
    }
    if run.state.is_terminal() && run.progress.peak.is_some() {
        foot.push(format!("peak {}", peak(run)));
    }
    if run.outcome.artifacts > 0 {
        foot.push(artifacts(run, links));
    }
    if let Some(page) = &links.run_page {
        let rests = run.state.is_terminal() || run.state == RunState::Held;
        let name = if rests { "log" } else { "live log" };
        foot.push(format!("[{name}]({page})"));
    }
    if !run.state.is_terminal() && run.state != RunState::Held {
        foot.push("stop it: `/zeblit cancel`".into());
    }
    let _ = write!(
        text,
        "<sub>run `{}` for {} · {}</sub>",
        run.id.short(),
        sanitize::one_line(&run.spec.requester.login, 60),
        foot.join(" · ")
    );
    cap(text)
}

/// `3 artifacts`, with the link to where they are.
fn artifacts(run: &Run, links: &RunLinks) -> String {
    let count = plural(run.outcome.artifacts, "artifact");
    links.run_page.as_ref().map_or(count.clone(), |page| format!("[{count}]({page}#artifacts)"))
}

/// Lines of the agent's own checklist that are shown.
const SHOWN_ITEMS: usize = 20;

fn own_checklist(run: &Run) -> String {
    let items = &run.progress.checklist;
    let mut text = String::new();
    for item in items.iter().take(SHOWN_ITEMS) {
        let mark = if item.done { "x" } else { " " };
        let words = sanitize::for_comment(&sanitize::one_line(&item.text, 120), 300);
        let _ = writeln!(text, "- [{mark}] {words}");
    }
    if items.len() > SHOWN_ITEMS {
        let _ = writeln!(text, "- and {} more", items.len() - SHOWN_ITEMS);
    }
    text
}

/// The agent's question, its suggestions, and what to type.
fn open_question(run: &Run) -> String {
    let mut text = String::from("The agent asks:\n\n");
    if let Some(question) = &run.outcome.question {
        for line in sanitize::for_comment(&question.text, MAX_SUMMARY_BYTES).lines() {
            let _ = writeln!(text, "> {line}");
        }
        text.push('\n');
        for choice in &question.choices {
            let words = sanitize::for_comment(&sanitize::one_line(choice, 200), 400);
            let _ = writeln!(text, "- {words}");
        }
        if !question.choices.is_empty() {
            text.push('\n');
        }
    }
    let outcome = &run.outcome;
    if let Some(branch) = outcome.branch.as_ref().filter(|_| outcome.commits > 0 && outcome.head.is_some()) {
        let _ = writeln!(text, "Partial work is on `{branch}` ({}).\n", plural(outcome.commits, "commit"));
    }
    text.push_str("`/zeblit continue YOUR ANSWER` goes on from here.\n\n");
    text
}

/// A changeset that was not pushed: what it is, what would be done with it, and what to type.
fn kept(text: &mut String, run: &Run, links: &RunLinks) {
    let Some(kept) = &run.outcome.kept else { return };
    let _ = write!(
        text,
        "{} · {}, +{} −{}",
        plural(run.outcome.commits, "commit"),
        plural(run.outcome.files, "file"),
        run.outcome.added_lines,
        run.outcome.removed_lines
    );
    if let Some(page) = &links.run_page {
        let _ = write!(text, " · [the whole diff]({page})");
    }
    text.push_str("\n\n");
    let _ = writeln!(text, "{}\n", what_would_be(run));
    for (path, added, removed) in &kept.files {
        let path = sanitize::one_line(path, 200).replace('`', "'");
        let _ = writeln!(text, "- `{path}` +{added} −{removed}");
    }
    let rest = run.outcome.files.saturating_sub(i64::try_from(kept.files.len()).unwrap_or(i64::MAX));
    if rest > 0 {
        let _ = writeln!(text, "- and {} more", plural(rest, "file"));
    }
    text.push('\n');
    if !kept.excerpt.is_empty() {
        let _ = write!(text, "{}\n\n", fenced(&kept.excerpt));
    }
    if run.state == RunState::Held {
        let _ = writeln!(text, "{}\n", what_to_type(kept));
    }
}

/// Where the changeset goes, or would go.
fn what_would_be(run: &Run) -> String {
    let branch = run.spec.push_to.as_ref().map_or("", BranchName::as_str);
    let place = run.spec.fork.as_ref().map_or(String::new(), |fork| format!(" of `{fork}`"));
    let will = if run.state == RunState::Held { "will" } else { "would" };
    match (run.spec.publish, &run.spec.pull) {
        (Publish::Patch, Some(pull)) if pull.fork => {
            "I never push to a fork: this is the change, to be applied by whoever wants it.".to_owned()
        }
        (Publish::Patch, _) => format!(
            "Nothing is pushed to this repository (mode `{}`): this is the change, to be applied by whoever wants it.",
            PushMode::Fork.name()
        ),
        (_, Some(_)) => format!("It {will} be pushed to the branch `{branch}`{place} of this pull request."),
        (_, None) => format!(
            "It {will} be pushed to the branch `{branch}`{place}, and a draft pull request to `{}` opened: \"{}\".",
            run.spec.base,
            sanitize::for_comment(&pull_title(run), 400)
        ),
    }
}

fn what_to_type(kept: &Kept) -> String {
    let until = kept
        .until
        .map_or(String::new(), |until| format!(" By itself it is dropped on {}.", until.format("%Y-%m-%d")));
    format!(
        "**`/zeblit ok {}`** by somebody with write access pushes exactly this change; `/zeblit cancel` drops it.{until}",
        digits(&kept.head)
    )
}

/// Somebody else's text as a block of code, made inert.
fn fenced(diff: &str) -> String {
    let mut longest = 0;
    let mut ticks = 0;
    for c in diff.chars() {
        ticks = if c == '`' { ticks + 1 } else { 0 };
        longest = longest.max(ticks);
    }
    let fence = "`".repeat((longest + 1).max(3));
    sanitize::for_comment(
        &format!("{fence}diff\n{}\n{fence}", diff.trim_end_matches('\n')),
        MAX_SUMMARY_BYTES,
    )
}

fn summary(text: &mut String, run: &Run) {
    if !run.outcome.summary.is_empty() {
        let _ = writeln!(text, "{}\n", sanitize::for_comment(&run.outcome.summary, MAX_SUMMARY_BYTES));
    }
}

/// The run was cancelled because its issue or pull request was closed: then the reason is no person's name.
pub fn subject_was_closed(run: &Run) -> bool {
    run.cancel_requested.as_deref().is_some_and(|by| by.starts_with('#'))
}

/// The run was cancelled because somebody pushed to the pull request.
fn was_superseded(run: &Run) -> bool {
    run.cancel_requested.as_deref().is_some_and(|by| by.starts_with(NEWER_PUSH))
}

/// Why a run was cancelled: who asked, or what happened.
pub fn cancel_reason(run: &Run) -> String {
    let by = run.cancel_requested.as_deref().unwrap_or("somebody");
    if by == NOT_APPROVED {
        return "Nobody approved the change in time.".into();
    }
    if by == APPROVAL_VOID {
        return "Somebody pushed to the pull request after its commit was approved.".into();
    }
    if by == REPOSITORY_GONE {
        return "The repository was deleted, or the App may not see it any more.".into();
    }
    if let Some(head) = by.strip_prefix(NEWER_PUSH) {
        return format!(
            "Somebody pushed to the pull request meanwhile ({}): this was for the head before.",
            head.trim()
        );
    }
    if subject_was_closed(run) {
        return format!("{}.", sanitize::one_line(by, 80));
    }
    format!("Asked for by {}.", sanitize::one_line(by, 80))
}

/// Why it ended and what to type next.
fn ending(run: &Run) -> String {
    let outcome = &run.outcome;
    let mut text = String::new();
    if !outcome.reason.is_empty() {
        let _ = writeln!(text, "{}\n", outcome.reason);
    }
    let kept = outcome.branch.as_ref().filter(|_| outcome.commits > 0 && outcome.head.is_some());
    if let Some(branch) = kept {
        let what = if outcome.step == Some(Phase::Pull) { "The work" } else { "Partial work" };
        let _ = writeln!(text, "{what} is on `{branch}` ({}).\n", plural(outcome.commits, "commit"));
    }
    if outcome.kept.is_some() && kept.is_none() {
        let what = if run.spec.publish == Publish::Approve && run.agent_end == Some(AgentEnd::Finished) {
            "The change"
        } else {
            "Partial work"
        };
        let _ = writeln!(
            text,
            "{what} ({}, {}) was not pushed; its diff is on the run page.\n",
            plural(outcome.commits, "commit"),
            plural(outcome.files, "file")
        );
    }
    let next = match (run.state, outcome.class) {
        (RunState::Cancelled, _) if run.cancel_requested.as_deref() == Some(NOT_APPROVED) => {
            "`/zeblit retry` asks for the same again."
        }
        (RunState::Cancelled, _) if run.cancel_requested.as_deref() == Some(APPROVAL_VOID) => {
            "Read the new head, approve it with `/zeblit ok`, then `/zeblit retry`."
        }
        (RunState::Cancelled, _) if was_superseded(run) => {
            "`/zeblit retry` asks for the same on the new head."
        }
        (RunState::Cancelled, _) if subject_was_closed(run) => {
            "That ended its task, too. When it is open again, `/zeblit fix` begins a new one."
        }
        (RunState::Cancelled, _) => {
            "`/zeblit continue` goes on from here, `/zeblit retry` asks for the same again."
        }
        (_, Some(FailureClass::Timeout)) if outcome.step == Some(Phase::Queue) => {
            "`/zeblit retry` asks for the same again."
        }
        (_, Some(FailureClass::Timeout)) => "`/zeblit continue` goes on from where it stopped.",
        (_, Some(FailureClass::Budget)) if run.progress.over.is_some_and(|kind| kind != BudgetKind::Run) => {
            "`/zeblit continue` goes on when that budget starts again; `/zeblit budget` shows all of them."
        }
        (_, Some(FailureClass::Budget)) => "`/zeblit continue --budget DOLLARS` goes on with more money.",
        (_, Some(FailureClass::Gate)) => {
            "`/zeblit retry` starts it again; say what to leave out, e.g. `/zeblit continue leave the workflow files alone`."
        }
        (_, Some(FailureClass::Conflict)) => "`/zeblit retry` starts again from the new head.",
        (_, Some(FailureClass::Auth | FailureClass::Sandbox | FailureClass::Model)) => {
            "This is for the operator of the server (`zeblit doctor` names the fix); then `/zeblit retry`."
        }
        (_, Some(FailureClass::Quota)) => {
            "`/zeblit continue` goes on from where it stopped, once there is room again."
        }
        (_, Some(FailureClass::Blocked)) => {
            "When that is settled, `/zeblit retry` here starts this one without waiting."
        }
        (_, Some(FailureClass::Poison)) => {
            "This is for the operator of the server: its log has the details under this run's id, and `zeblit replay RUN` queues it again."
        }
        (_, Some(FailureClass::Setup)) => {
            "The agent was not started. Mend `setup` in `.github/zeblit.toml` or what it runs, then `/zeblit retry`."
        }
        (_, Some(FailureClass::Config)) => "Mend the configuration, then `/zeblit retry`.",
        (_, Some(FailureClass::Forge)) => {
            "Mend what the forge objects to (rules of the branch, permissions of the App), then `/zeblit retry`."
        }
        _ if kept.is_some() => {
            "`/zeblit continue` goes on from there, `/zeblit retry --agent NAME` tries another agent."
        }
        _ => "`/zeblit retry` starts it again, `/zeblit retry --agent NAME` with another agent.",
    };
    let _ = writeln!(text, "{next}\n");
    text
}

/// A separate short comment when a human must act; `None` when the sticky says enough.
pub fn final_comment(run: &Run) -> Option<String> {
    match run.state {
        RunState::Succeeded if run.spec.mode == RunMode::ReadOnly => {
            let answer = sanitize::for_comment(&run.outcome.summary, MAX_BODY_BYTES - 2_000);
            let answer = if answer.trim().is_empty() {
                "The agent ended without an answer.".to_owned()
            } else {
                answer
            };
            let place = match run.spec.origin.as_ref().map(|origin| &origin.surface) {
                Some(Surface::ReviewComment { path, line: Some(line), .. }) => {
                    // A blank line: the answer may begin with a fence or a list.
                    format!("On `{}:{line}`:\n\n", sanitize::one_line(path, 200).replace('`', "'"))
                }
                _ => String::new(),
            };
            Some(cap(format!(
                "{place}{answer}\n\n<sub>`{}` answered {}'s `{}` · run `{}`{}</sub>",
                run.spec.agent,
                sanitize::one_line(&run.spec.requester.login, 60),
                run.spec.verb.name(),
                run.id.short(),
                money(run)
            )))
        }
        RunState::Held => run.outcome.kept.as_ref().map(|kept| {
            format!(
                "✋ @{}, the change of run `{}` waits for approval.\n\n{}",
                run.spec.requester.login,
                run.id.short(),
                what_to_type(kept)
            )
        }),
        RunState::Failed => Some(cap(format!(
            "❌ @{}, run `{}` failed ({}).\n\n{}",
            run.spec.requester.login,
            run.id.short(),
            run.outcome.class.map_or("internal", FailureClass::name),
            ending(run)
        ))),
        RunState::NeedsInput => Some(cap(format!(
            "❓ @{}, run `{}` needs an answer.\n\n{}",
            run.spec.requester.login,
            run.id.short(),
            open_question(run)
        ))),
        _ => None,
    }
}

/// The short reply in a review thread that points to the sticky comment. `None`: the answer stands there itself.
pub fn thread_pointer(run: &Run, sticky_url: &str) -> Option<String> {
    match run.state {
        RunState::Succeeded if run.spec.mode == RunMode::ReadOnly => None,
        state if state.is_terminal() => Some(format!("The result is in [this comment]({sticky_url}).")),
        _ => Some(format!("👀 On it: progress and result are in [this comment]({sticky_url}).")),
    }
}

/// Status, conclusion and title of the check run.
pub fn check_state(run: &Run) -> (CheckStatus, Option<CheckConclusion>) {
    match run.state {
        RunState::Queued => (CheckStatus::Queued, None),
        RunState::Preparing
        | RunState::Running
        | RunState::Collecting
        | RunState::Publishing
        | RunState::Reporting => (CheckStatus::InProgress, None),
        RunState::Held => (CheckStatus::Completed, Some(CheckConclusion::ActionRequired)),
        RunState::Succeeded if run.spec.publish == Publish::Stage && run.outcome.kept.is_some() => {
            (CheckStatus::Completed, Some(CheckConclusion::Neutral))
        }
        RunState::Succeeded => (CheckStatus::Completed, Some(CheckConclusion::Success)),
        RunState::Nothing => (CheckStatus::Completed, Some(CheckConclusion::Neutral)),
        RunState::NeedsInput => (CheckStatus::Completed, Some(CheckConclusion::ActionRequired)),
        RunState::Cancelled => (CheckStatus::Completed, Some(CheckConclusion::Cancelled)),
        RunState::Failed => match run.outcome.class {
            Some(FailureClass::Timeout) => (CheckStatus::Completed, Some(CheckConclusion::TimedOut)),
            _ => (CheckStatus::Completed, Some(CheckConclusion::Failure)),
        },
    }
}

/// Which of `effect::STATE_LABELS` shows where a run is.
pub fn state_label(run: &Run) -> &'static str {
    let [queued, running, needs_input, done] = super::effect::STATE_LABELS;
    match run.state {
        RunState::Queued => queued,
        RunState::Preparing
        | RunState::Running
        | RunState::Collecting
        | RunState::Publishing
        | RunState::Reporting => running,
        RunState::Held | RunState::NeedsInput => needs_input,
        RunState::Succeeded | RunState::Nothing | RunState::Failed | RunState::Cancelled => done,
    }
}

/// The summary text of the check run.
pub fn check_summary(run: &Run, links: &RunLinks, now: DateTime<Utc>) -> String {
    let mut text = format!("{}\n\n{}", headline(run, links, now), checklist(run));
    if matches!(run.state, RunState::Failed | RunState::Cancelled) {
        let _ = write!(text, "\n{}", ending(run));
    }
    if run.state == RunState::NeedsInput {
        let _ = write!(text, "\n{}", open_question(run));
    }
    if let (RunState::Held, Some(kept)) = (run.state, &run.outcome.kept) {
        let _ = write!(text, "\n{}\n", what_to_type(kept));
    }
    let _ = write!(
        text,
        "\nAgent `{}` · {} tool calls · {} tokens · {}",
        run.spec.agent,
        run.progress.tool_calls,
        run.progress.tokens,
        dollars(run.progress.cost_micros)
    );
    cap(text)
}

/// The check of a pull request that changes the bot's rules.
pub fn config_check_title(problems: usize) -> String {
    match problems {
        0 => "The configuration is right".into(),
        1 => "The configuration has a problem".into(),
        count => format!("The configuration has {count} problems"),
    }
}

pub fn config_check_summary(touched: &[String], problems: &[Annotation]) -> String {
    let code = |text: &str| format!("`{}`", sanitize::one_line(text, 200).replace('`', "'"));
    let mut text = String::from("This pull request changes what this bot may do here:\n\n");
    for path in touched.iter().take(20) {
        let _ = writeln!(text, "- {}", code(path));
    }
    if touched.len() > 20 {
        let _ = writeln!(text, "- and {} more", touched.len() - 20);
    }
    if !problems.is_empty() {
        text.push_str("\nProblems:\n\n");
        for problem in problems.iter().take(50) {
            let message = sanitize::for_comment(&sanitize::one_line(&problem.message, 400), 1000);
            let _ = writeln!(text, "- {}, line {}: {message}", code(&problem.path), problem.line);
        }
        text.push_str("\nMerged like this, no command that starts a run would work.\n");
    }
    text.push_str(
        "\nRules are read from the default branch only: nothing of this takes effect before it is merged.",
    );
    cap(text)
}

/// Title of the pull request: the subject's, one line. It becomes a commit message when somebody squashes.
pub fn pull_title(run: &Run) -> String {
    let title = sanitize::for_commit(&sanitize::one_line(&run.spec.subject.title, 200));
    let title = title.trim();
    if title.is_empty() { format!("Changes for #{}", run.spec.subject.number) } else { title.to_owned() }
}

/// Body of the pull request, without its marker: after the repository's template, written by the server.
pub fn pull_body(run: &Run, links: &RunLinks, template: Option<&str>) -> String {
    let number = run.spec.subject.number;
    let closing = if run.spec.subject.kind == SubjectKind::Issue {
        format!("Fixes #{number}")
    } else {
        format!("Refs #{number}")
    };
    let mut text = format!("{closing}\n\n");
    if !run.outcome.summary.is_empty() {
        let _ = writeln!(
            text,
            "## What and why\n\n{}\n",
            sanitize::for_comment(&run.outcome.summary, MAX_SUMMARY_BYTES)
        );
    }
    if let Some(template) = template.map(str::trim).filter(|template| !template.is_empty()) {
        // The template is the repository's own text from its default branch: kept as it is.
        let template: String = template.chars().take(10_000).collect();
        let _ = writeln!(text, "{template}\n");
    }
    let _ = writeln!(
        text,
        "---\n\n| | |\n|---|---|\n| Requested by | @{} in [{}#{number}]({}) |\n| Agent | `{}`{} |\n| Changes | {}, {}, +{} −{} |\n| Cost | {} ({} tokens) |",
        run.spec.requester.login,
        run.repo.name,
        run.spec.origin.as_ref().map_or(run.spec.subject.url.as_str(), |origin| origin.url.as_str()),
        run.spec.agent,
        run.spec
            .model
            .as_ref()
            .map_or(String::new(), |model| format!(", model `{}`", sanitize::one_line(model, 80))),
        plural(run.outcome.commits, "commit"),
        plural(run.outcome.files, "file"),
        run.outcome.added_lines,
        run.outcome.removed_lines,
        dollars(run.progress.cost_micros),
        run.progress.tokens,
    );
    if run.progress.peak.is_some() {
        let _ = writeln!(text, "| Peak | {} |", peak(run));
    }
    if run.outcome.artifacts > 0 {
        let _ = writeln!(text, "| Kept for download | {} |", artifacts(run, links));
    }
    if let Some(page) = &links.run_page {
        let _ = writeln!(text, "| Run | [`{}`]({page}) |", run.id.short());
    }
    text.push_str("\n<sub>Written by a bot and not yet reviewed by a human. `/zeblit` commands work in this pull request too: `/zeblit fix …`, `/zeblit review`, `/zeblit help`.</sub>\n\n");
    let _ = write!(text, "Co-authored-by: {}\nZeblit-Run: {}", links.co_author, run.id);
    cap(text)
}

/// The commit message of what an agent left uncommitted.
pub fn commit_message(run: &Run) -> String {
    let title = sanitize::one_line(&run.spec.subject.title, 60);
    format!(
        "{}\n\nRefs #{}",
        if title.trim().is_empty() { "Apply changes" } else { title.trim() },
        run.spec.subject.number
    )
}

fn cap(text: String) -> String {
    if text.len() <= MAX_BODY_BYTES {
        return text;
    }
    let mut end = MAX_BODY_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}\n\n… (cut)", text.get(..end).unwrap_or(""))
}
