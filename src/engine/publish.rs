//! The way out: what the agent left is imported strictly, kept, passed through the gate and pushed.
//!
//! Repeating it after a crash gives the same commits, finds the branch pushed and goes on.

use super::execute::{self, Step};
use super::report::{self, Owner, Urgency};
use super::{EngineError, ingest};
use crate::agent::AdapterKind;
use crate::agent::adapter::MASKED_PATHS;
use crate::app::App;
use crate::clock::IdKind;
use crate::domain::effect::{
    BranchPush, EffectPriority, EffectState, NewEffect, OwnPull, Payload, RemoteRef,
};
use crate::domain::event::{Repo, SubjectKind};
use crate::domain::gate::{self, Changeset, Violation};
use crate::domain::ids::{BranchName, EffectId, Sha};
use crate::domain::run::{AgentEnd, FailureClass, Kept, Phase, Publish, Run, RunInput, RunMode, SetupState};
use crate::domain::{sanitize, task, wording};
use crate::git::{GitError, ImportCaps, Imported, Rewrite};
use crate::queue::Topic;
use crate::remote::{GitPermission, RemoteError, Retry};
use crate::store;
use std::collections::BTreeSet;

/// Violations that are listed in the report.
const SHOWN_VIOLATIONS: usize = 10;

/// Changed paths that are listed where a changeset is shown instead of pushed.
const SHOWN_FILES: usize = 30;

/// Dropped files that a report names.
const SHOWN_DROPPED: usize = 20;

/// Bytes of a diff that are shown in a comment.
const EXCERPT_BYTES: usize = 6 * 1024;

/// A push that the network swallowed is tried this often in all.
const PUSH_TRIES: i64 = 3;

/// Takes a collected run to its end, or to waiting for its pull request.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn publish(app: &App, run: &mut Run) -> Result<Step, EngineError> {
    if run.spec.publish == Publish::Approve
        && let Some(kept) = run.outcome.kept.clone()
    {
        // It waited and was released.
        return released(app, run, &kept).await;
    }
    run.progress.phase = Some(Phase::Check);
    let raw = run.progress.setup == SetupState::Running
        || execute::adapter_of(app, run).await? == AdapterKind::Command;
    run.outcome.summary = summary(run, raw);
    let end = run.agent_end.clone().unwrap_or(AgentEnd::Finished);
    let elsewhere = app.git.prepared(&run.remote, run.repo.id, &run.id).is_none();
    let from_store = elsewhere && is_stored(app, run).await?;
    let imported = match import(app, run).await {
        Ok(None) if from_store => Some(kept_changeset(app, run).await?),
        Ok(imported) => imported,
        Err(GitError::Rejected { detail }) => {
            let reason =
                format!("What the agent left behind was refused: {}.", sanitize::one_line(&detail, 300));
            execute::fail(app, run, FailureClass::Gate, reason).await?;
            return Ok(Step::Done);
        }
        Err(error) => return Err(error.into()),
    };
    let mut dropped: BTreeSet<String> =
        imported.iter().flat_map(|imported| imported.dropped.iter().cloned()).collect();
    if run.spec.mode != RunMode::ReadOnly && !from_store {
        // What was not committed did not even come into the bundle.
        let (repo, commits) = (run.repo.id, (run.start(), &run.spec.base_sha));
        dropped.extend(app.git.masked_edits(&run.remote, repo, &run.id, commits, MASKED_PATHS).await?);
        note_dropped(run, &dropped);
    }
    let Some(imported) = imported else {
        return nothing_came(app, run, end).await;
    };
    if run.spec.mode == RunMode::ReadOnly {
        run.outcome.notes.push(
            "The agent changed files although this is a read-only run; its changes were thrown away.".into(),
        );
        return nothing_came(app, run, end).await;
    }
    let changes = &imported.changeset.changes;
    run.outcome.files = i64::try_from(changes.len()).unwrap_or(i64::MAX);
    run.outcome.added_lines = changes.iter().map(|change| change.added_lines).sum();
    run.outcome.removed_lines = changes.iter().map(|change| change.removed_lines).sum();
    let violations = gate::check(&imported.changeset, &run.spec.config.gate, &app.secrets);
    if from_store {
        fetch_base(app, run, &imported).await?;
    } else {
        keep(app, run, &imported, &violations).await?;
    }
    if !violations.is_empty() {
        refuse(app, run, &violations).await?;
        return Ok(Step::Done);
    }
    if run.spec.publish == Publish::Push {
        push(app, run, imported, end).await
    } else {
        set_aside(app, run, &imported, &end).await
    }
}

/// Keeps a changeset that is not pushed (now): shows it, and for an approval waits.
async fn set_aside(
    app: &App,
    run: &mut Run,
    imported: &Imported,
    end: &AgentEnd,
) -> Result<Step, EngineError> {
    let changeset = &imported.changeset;
    let waits = run.spec.publish == Publish::Approve && *end == AgentEnd::Finished;
    let until = app.clock.now() + chrono::Duration::days(app.config.publish.approval_days);
    run.outcome.commits = changeset.commits;
    run.outcome.kept = Some(Kept {
        head: changeset.head.clone(),
        files: changeset
            .changes
            .iter()
            .take(SHOWN_FILES)
            .map(|change| {
                let path = app.secrets.mask(&gate::shown(&change.path));
                (path, change.added_lines, change.removed_lines)
            })
            .collect(),
        excerpt: excerpt(&app.secrets.mask(&imported.diff)),
        until: waits.then_some(until),
        approved_by: None,
    });
    let input = if waits { RunInput::Held } else { ended_by(run, end, RunInput::Done) };
    run.apply(&input, app.clock.now())?;
    let mut tx = app.store.write_tx().await?;
    ingest::audit(app, &mut tx, None, "kept", run.id.as_str(), changeset.head.as_str()).await?;
    store::runs::save(&mut tx, run).await?;
    report::report(app, &mut tx, run, Urgency::State).await?;
    tx.commit().await?;
    tracing::info!(run.id = %run.id, head = %changeset.head, state = run.state.as_str(), "kept, not pushed");
    // The report goes out while the container is taken away.
    app.wakeup.notify(Topic::Effects);
    app.wakeup.notify(Topic::Logs);
    execute::clean_up(app, run).await;
    Ok(Step::Done)
}

/// The first lines of a diff, whole ones.
fn excerpt(diff: &str) -> String {
    let mut out = String::new();
    for line in diff.lines() {
        if out.len() + line.len() >= EXCERPT_BYTES {
            out.push_str("…\n");
            break;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// What the end of the agent's part means for the run, with `good` when it ended well.
fn ended_by(run: &mut Run, end: &AgentEnd, good: RunInput) -> RunInput {
    match end {
        AgentEnd::Finished => good,
        AgentEnd::Cancelled => {
            run.outcome.step = Some(Phase::Agent);
            run.outcome.reason = wording::cancel_reason(run);
            RunInput::Cancelled
        }
        AgentEnd::Failed { class, detail } => {
            run.outcome.class = Some(*class);
            run.outcome.step = Some(if *class == FailureClass::Setup { Phase::Setup } else { Phase::Agent });
            run.outcome.reason = detail.clone();
            RunInput::Failed
        }
        AgentEnd::Asked { question } => {
            run.outcome.question = Some(question.clone());
            RunInput::NeedsInput
        }
    }
}

/// A changeset that waited: dropped when that is asked for, else checked by the rules as they are now, and pushed.
async fn released(app: &App, run: &mut Run, kept: &Kept) -> Result<Step, EngineError> {
    if run.cancel_requested.is_some() {
        run.outcome.step = Some(Phase::Push);
        run.outcome.reason = wording::cancel_reason(run);
        finish(app, run, &RunInput::Cancelled).await?;
        return Ok(Step::Done);
    }
    let imported = kept_changeset(app, run).await?;
    if imported.changeset.head != kept.head {
        return Err(EngineError::Defect("the stored changeset is not the one that was approved".into()));
    }
    let base = app.forge.repo_info(&run.repo).await?.default_branch;
    let config = match app.forge.branch_head(&run.repo, &base).await? {
        Some(head) => ingest::repository_config(app, &run.repo, head.as_str()).await?,
        None => Ok(run.spec.config.clone()),
    };
    let config = match config {
        Ok(config) => config,
        Err(problem) => {
            execute::fail(app, run, FailureClass::Config, problem.to_string()).await?;
            return Ok(Step::Done);
        }
    };
    let violations = gate::check(&imported.changeset, &config.gate, &app.secrets);
    if !violations.is_empty() {
        refuse(app, run, &violations).await?;
        return Ok(Step::Done);
    }
    fetch_base(app, run, &imported).await?;
    if let Some(by) = &kept.approved_by {
        let note = format!("Approved by {}.", sanitize::for_comment(&sanitize::one_line(by, 60), 200));
        if !run.outcome.notes.contains(&note) {
            run.outcome.notes.push(note);
        }
    }
    push(app, run, imported, AgentEnd::Finished).await
}

/// Brings the commit here that a stored changeset stands on.
async fn fetch_base(app: &App, run: &Run, imported: &Imported) -> Result<(), EngineError> {
    let access = execute::git_access(app, run, GitPermission::Read).await?;
    let pull = run.spec.pull.as_ref().filter(|pull| pull.fork).map(|pull| pull.number);
    let wanted = [imported.changeset.base.clone()];
    app.git.ensure(&run.remote, run.repo.id, &access, &wanted, pull).await?;
    Ok(())
}

/// Whether the run's changeset is kept whole, so that any node can publish it.
pub(super) async fn is_stored(app: &App, run: &Run) -> Result<bool, EngineError> {
    Ok(store::artifacts::get(&app.store, &run.id, "changeset").await?.is_some())
}

/// The changeset that was kept, as it was verified.
async fn kept_changeset(app: &App, run: &Run) -> Result<Imported, EngineError> {
    let part = async |name: &str| -> Result<Vec<u8>, EngineError> {
        let missing = || EngineError::Defect(format!("the artifact `{name}` of run {} is gone", run.id));
        store::artifacts::get(&app.store, &run.id, name).await?.ok_or_else(missing)
    };
    let mut changeset: Changeset = serde_json::from_slice(&part("changeset").await?)
        .map_err(|error| EngineError::Defect(format!("a stored changeset cannot be read: {error}")))?;
    changeset.added_text = part("added").await?;
    let diff = String::from_utf8_lossy(&part("diff").await?).into_owned();
    Ok(Imported { changeset, bundle: part("bundle").await?, diff, dropped: Vec::new() })
}

/// Where the run's branch lives: the repository itself, or our fork of it.
pub(super) async fn home(app: &App, run: &Run) -> Result<Repo, EngineError> {
    let Some(fork) = &run.spec.fork else { return Ok(run.repo.clone()) };
    let missing = || RemoteError::Refused {
        operation: "look for our fork",
        status: 404,
        detail: wording::fork_is_missing(fork),
    };
    Ok(app.forge.fork_of(&run.repo, fork.owner()).await?.ok_or_else(missing)?)
}

/// Tells which changes of the agent to files that configure agents are not in the result.
fn note_dropped(run: &mut Run, dropped: &BTreeSet<String>) {
    if dropped.is_empty() {
        return;
    }
    let mut shown: Vec<String> = dropped
        .iter()
        .take(SHOWN_DROPPED)
        .map(|path| format!("`{}`", sanitize::one_line(path, 120).replace('`', "'")))
        .collect();
    if dropped.len() > shown.len() {
        shown.push(format!("{} more", dropped.len() - shown.len()));
    }
    let note = format!(
        "Changes to {} were dropped: agents may not change what configures agents.",
        shown.join(", ")
    );
    // A repeated tick says it once.
    if !run.outcome.notes.contains(&note) {
        run.outcome.notes.push(note);
    }
}

/// The agent's own words; masked and made inert where they are shown.
fn summary(run: &Run, recipe: bool) -> String {
    let result = run.progress.result.trim();
    if recipe && !run.progress.prose && !result.is_empty() {
        // A recipe's output is not prose: shown as it was printed.
        format!("```\n{}\n```", result.replace("```", "'''"))
    } else {
        result.to_owned()
    }
}

async fn import(app: &App, run: &Run) -> Result<Option<Imported>, GitError> {
    let Some(workspace) = app.git.prepared(&run.remote, run.repo.id, &run.id) else { return Ok(None) };
    let own = app.forge.own_identity().await.ok();
    let host = url::Url::parse(app.forge.web_url()).ok().and_then(|url| url.host_str().map(str::to_owned));
    let host = host.unwrap_or_else(|| "localhost".into());
    let (name, email) = own.map_or_else(
        || ("zeblit".to_owned(), format!("zeblit@users.noreply.{host}")),
        |own| (own.login.clone(), format!("{}+{}@users.noreply.{host}", own.user_id, own.login)),
    );
    let rewrite = Rewrite {
        author_name: name,
        author_email: email,
        // Fixed per run: a repeated import gives the same commits.
        time: run.created_at.timestamp(),
        trailers: vec![
            ("Co-authored-by".into(), report::links(app, run, None).co_author),
            ("Zeblit-Run".into(), run.id.to_string()),
        ],
        masked: MASKED_PATHS.iter().map(|path| (*path).to_owned()).collect(),
    };
    app.git
        .import(&run.remote, run.repo.id, &workspace.output, run.start(), &rewrite, ImportCaps::default())
        .await
}

/// No commit came back: the end depends on how the agent ended.
async fn nothing_came(app: &App, run: &mut Run, end: AgentEnd) -> Result<Step, EngineError> {
    let good = if run.spec.mode == RunMode::ReadOnly { RunInput::Done } else { RunInput::NothingToDo };
    let input = ended_by(run, &end, good);
    finish(app, run, &input).await?;
    Ok(Step::Done)
}

async fn finish(app: &App, run: &mut Run, input: &RunInput) -> Result<(), EngineError> {
    run.apply(input, app.clock.now())?;
    tracing::info!(run.id = %run.id, state = run.state.as_str(), "run ended");
    execute::save(app, run, Urgency::State).await?;
    execute::clean_up(app, run).await;
    Ok(())
}

/// Keeps bundle and diff, so that refused work is not lost, and of what may be published the changeset: any node can go
/// on from it.
async fn keep(
    app: &App,
    run: &mut Run,
    imported: &Imported,
    violations: &[Violation],
) -> Result<(), EngineError> {
    let now = app.clock.now();
    let mut tx = app.store.write_tx().await?;
    store::artifacts::put(&mut tx, &run.id, "bundle", &imported.bundle, now).await?;
    // What was refused may hold a secret, and nobody publishes it.
    if violations.is_empty() {
        let changeset = &imported.changeset;
        let without_text = Changeset { added_text: Vec::new(), ..changeset.clone() };
        let json = serde_json::to_vec(&without_text)
            .map_err(|error| EngineError::Defect(format!("a changeset cannot be stored: {error}")))?;
        store::artifacts::put(&mut tx, &run.id, "changeset", &json, now).await?;
        store::artifacts::put(&mut tx, &run.id, "added", &changeset.added_text, now).await?;
    }
    let diff = app.secrets.mask(&imported.diff);
    store::artifacts::put(&mut tx, &run.id, "diff", diff.as_bytes(), now).await?;
    let verdict = if violations.is_empty() { "gate.pass" } else { "gate.refuse" };
    let detail: Vec<String> =
        violations.iter().map(|violation| format!("{} {}", violation.rule, violation.path)).collect();
    ingest::audit(app, &mut tx, None, verdict, run.id.as_str(), &detail.join("; ")).await?;
    store::runs::save_progress(&mut tx, run).await?;
    tx.commit().await?;
    Ok(())
}

async fn refuse(app: &App, run: &mut Run, violations: &[Violation]) -> Result<(), EngineError> {
    let mut reason = String::from("The changes were not pushed, because:\n");
    for violation in violations.iter().take(SHOWN_VIOLATIONS) {
        let path = if violation.path.is_empty() {
            String::new()
        } else {
            format!("`{}`: ", sanitize::one_line(&violation.path, 200).replace('`', "'"))
        };
        reason.push_str(&format!(
            "\n- {path}{} (rule `{}`)",
            sanitize::one_line(&violation.problem, 300),
            violation.rule
        ));
    }
    if violations.len() > SHOWN_VIOLATIONS {
        reason.push_str(&format!("\n- and {} more", violations.len() - SHOWN_VIOLATIONS));
    }
    execute::fail(app, run, FailureClass::Gate, reason).await
}

/// Where the commits go: the run's branch, or for partial work on somebody's pull request a branch of our own.
fn target(run: &Run, end: &AgentEnd) -> Option<BranchName> {
    let partial = !matches!(end, AgentEnd::Finished);
    if partial && run.spec.subject.kind == SubjectKind::PullRequest && run.spec.pull.is_some() {
        let id = crate::domain::ids::TaskId::new(run.id.as_str());
        return Some(task::branch_name(run.spec.subject.number, "partial work", &id));
    }
    run.spec.push_to.clone()
}

/// What the branch must hold for the push: the commit the agent started from, or nothing when the branch is new.
async fn expected(app: &App, run: &Run, branch: &BranchName) -> Result<Option<Sha>, EngineError> {
    if run.spec.pull.is_some() && run.spec.push_to.as_ref() == Some(branch) {
        return Ok(Some(run.pinned().clone()));
    }
    let head = app.forge.branch_head(&home(app, run).await?, branch).await?;
    // A branch that holds something else than our start is refused by the lease on it.
    Ok(head.map(|_| run.start().clone()))
}

async fn push(app: &App, run: &mut Run, imported: Imported, end: AgentEnd) -> Result<Step, EngineError> {
    let Some(branch) = target(run, &end) else {
        return Err(EngineError::Defect("a changing run has no branch to push to".into()));
    };
    run.progress.phase = Some(Phase::Push);
    if matches!(end, AgentEnd::Finished)
        && let Some(pull) = &run.spec.pull
    {
        // Once more before the push: the head must still be the one that was meant (or ours already).
        let head = app.forge.pull(&run.repo, pull.number).await?.head_sha;
        if head != *run.pinned() && head != imported.changeset.head {
            let reason = format!("`{branch}` moved while the agent worked, and I never overwrite that.");
            execute::fail(app, run, FailureClass::Conflict, reason).await?;
            return Ok(Step::Done);
        }
    }
    let key = format!("branch:{}", run.id);
    let push = match store::effects::by_key(&app.store, &key).await? {
        Some(effect) => match effect.payload {
            Payload::Branch(push) if push.new == imported.changeset.head => push,
            _ => return Err(EngineError::Defect("the branch effect names other commits".into())),
        },
        None => BranchPush {
            expected: expected(app, run, &branch).await?,
            new: imported.changeset.head.clone(),
            branch: branch.clone(),
        },
    };
    intend(app, run, &key, &push).await?;
    let home = home(app, run).await?;
    let access = execute::access_to(app, &home, GitPermission::Write).await?;
    let mut tries = 0;
    loop {
        tries += 1;
        match app.git.push(&run.remote, run.repo.id, &access, &imported.bundle, &push).await {
            Ok(()) => break,
            // Not known whether it took place: repeating it finds the branch at our commit or at the old one.
            Err(GitError::Unavailable { operation, detail }) if tries < PUSH_TRIES => {
                tracing::warn!(operation, detail, tries, "push again");
                store::runs::heartbeat(&app.store, &run.id, run.fence, app.clock.now() + execute::lease(app))
                    .await?;
            }
            Err(error) => {
                fail_branch(app, run, &key, &error.to_string()).await?;
                return Err(error.into());
            }
        }
    }
    pushed(app, run, imported, push, end, home).await
}

/// Commits the intent of the push.
async fn intend(app: &App, run: &Run, key: &str, push: &BranchPush) -> Result<(), EngineError> {
    let now = app.clock.now();
    let effect = NewEffect {
        run: Some(run.id.clone()),
        task: Some(run.task.clone()),
        remote: run.remote.clone(),
        repo: run.repo.clone(),
        key: key.to_owned(),
        priority: EffectPriority::Final,
        payload: Payload::Branch(push.clone()),
        not_before: None,
    };
    let mut tx = app.store.write_tx().await?;
    store::effects::put(&mut tx, &EffectId::new(app.ids.next(IdKind::Effect)), &effect, now).await?;
    if let Some(stored) = store::effects::by_key_tx(&mut tx, key).await?
        && stored.state == EffectState::Planned
    {
        store::effects::sending(&mut tx, &stored.id, stored.revision, &app.boot, now).await?;
    }
    let detail = format!("{} to {}", push.new, push.branch);
    ingest::audit(app, &mut tx, None, "push", run.id.as_str(), &detail).await?;
    store::runs::save_progress(&mut tx, run).await?;
    tx.commit().await?;
    Ok(())
}

async fn fail_branch(app: &App, run: &Run, key: &str, error: &str) -> Result<(), EngineError> {
    let mut tx = app.store.write_tx().await?;
    store::runs::check_fence(&mut tx, run).await?;
    if let Some(stored) = store::effects::by_key_tx(&mut tx, key).await? {
        store::effects::fail(&mut tx, &stored, error).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// A run ends while a push of its own is not settled: the branch says whether it took place. Then the work is there,
/// and the report says where.
pub(super) async fn settle_push(app: &App, run: &mut Run) -> Result<(), EngineError> {
    let Some(stored) = store::effects::by_key(&app.store, &format!("branch:{}", run.id)).await? else {
        return Ok(());
    };
    let Payload::Branch(push) = &stored.payload else { return Ok(()) };
    if matches!(stored.state, EffectState::Confirmed | EffectState::Failed) {
        return Ok(());
    }
    let head =
        async { Ok::<_, EngineError>(app.forge.branch_head(&home(app, run).await?, &push.branch).await?) };
    let head = head.await.unwrap_or_else(|error| {
        tracing::warn!(run.id = %run.id, error = %error, "the forge does not say whether the push took place");
        None
    });
    let mut tx = app.store.write_tx().await?;
    store::runs::check_fence(&mut tx, run).await?;
    if head.as_ref() == Some(&push.new) {
        let remote = RemoteRef { id: push.new.to_string(), ..RemoteRef::default() };
        store::effects::confirm(&mut tx, &stored.id, stored.revision, &remote, app.clock.now()).await?;
        run.outcome.branch = Some(push.branch.clone());
        run.outcome.head = head;
    } else {
        store::effects::fail(&mut tx, &stored, "the run ended before it was pushed").await?;
    }
    tx.commit().await?;
    Ok(())
}

async fn is_open(app: &App, run: &Run, number: i64) -> Result<bool, EngineError> {
    match app.forge.pull(&run.repo, number).await {
        Ok(pull) => Ok(pull.open),
        Err(error) if error.retry() == Retry::Never => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The branch is there: what follows, in one transaction.
async fn pushed(
    app: &App,
    run: &mut Run,
    imported: Imported,
    push: BranchPush,
    end: AgentEnd,
    home: Repo,
) -> Result<Step, EngineError> {
    run.outcome.branch = Some(push.branch.clone());
    run.outcome.head = Some(push.new.clone());
    run.outcome.commits = imported.changeset.commits;
    let issue = run.spec.pull.is_none();
    let known = store::tasks::get(&app.store, &run.task).await?;
    let opened = known.as_ref().and_then(|task| task.pull_number.zip(task.pull_url.clone()));
    // Closed without our hearing of it: the work needs a new one.
    let existing = match &opened {
        Some((number, _)) if issue && !is_open(app, run, *number).await? => None,
        _ => opened.clone(),
    };
    let input = match &end {
        AgentEnd::Finished if issue && existing.is_none() => RunInput::Pushed,
        AgentEnd::Finished => {
            if let (true, Some((number, url))) = (issue, existing) {
                run.outcome.pull_number = Some(number);
                run.outcome.pull_url = Some(url);
            }
            RunInput::Done
        }
        end => ended_by(run, end, RunInput::Done),
    };
    let template = match input {
        RunInput::Pushed => app.forge.pull_template(&run.repo).await?,
        _ => None,
    };
    run.apply(&input, app.clock.now())?;
    let mut tx = app.store.write_tx().await?;
    if let Some(stored) = store::effects::by_key_tx(&mut tx, &format!("branch:{}", run.id)).await? {
        let remote = RemoteRef { id: push.new.to_string(), ..RemoteRef::default() };
        store::effects::confirm(&mut tx, &stored.id, stored.revision, &remote, app.clock.now()).await?;
    }
    if issue {
        store::tasks::set_branch(&mut tx, &run.task, &push.branch).await?;
    }
    store::runs::save(&mut tx, run).await?;
    if input == RunInput::Pushed {
        let links = report::links(app, run, None);
        let (key, marker) = match &opened {
            None => (format!("pull:{}", run.task), app.signer.marker(run.task.as_str(), "pull")),
            Some(_) => (format!("pull:{}", run.id), app.signer.marker(run.id.as_str(), "pull")),
        };
        let body = format!("{}\n\n{marker}", wording::pull_body(run, &links, template.as_deref()));
        let pull = OwnPull {
            head: push.branch.clone(),
            fork: run.spec.fork.as_ref().map(|_| home),
            base: run.spec.base.clone(),
            title: wording::pull_title(run),
            body: app.secrets.mask(&body),
            draft: true,
            marker,
        };
        report::put(app, &mut tx, &Owner::of(run), key, EffectPriority::Final, Payload::Pull(pull)).await?;
    }
    report::report(app, &mut tx, run, Urgency::State).await?;
    tx.commit().await?;
    tracing::info!(run.id = %run.id, branch = %push.branch, head = %push.new, state = run.state.as_str(), "pushed");
    // The report goes out while the container is taken away.
    app.wakeup.notify(Topic::Effects);
    app.wakeup.notify(Topic::Logs);
    execute::clean_up(app, run).await;
    Ok(Step::Done)
}
