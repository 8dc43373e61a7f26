//! Deliveries → events → plans → tasks, runs and first effects, each in one transaction.

use super::EngineError;
use super::config_check;
use super::report::{self, Owner, Urgency};
use crate::agent::adapter::AgentError;
use crate::agent::definition::AgentSet;
use crate::agent::{AdapterKind, AgentSpec};
use crate::app::App;
use crate::clock::IdKind;
use crate::config::micros;
use crate::domain::budget::{self, Budget, BudgetRules, Standing};
use crate::domain::command::{Command, CommandError, Verb};
use crate::domain::effect::{EffectPriority, OwnComment, Payload, Reaction};
use crate::domain::egress::AllowList;
use crate::domain::event::{
    Actor, ActorKind, Comment, CommentAction, Decoded, Event, EventKind, PullHead, Repo, Source, SubjectKind,
    Surface,
};
use crate::domain::ids::{BranchName, InboxId, RepoName, RunId, Sha, TaskId};
use crate::domain::plan::{self, Action, AgentFacts, Interest, Own, Plan, PlanContext, ServerRules, Wait};
use crate::domain::policy::PushMode;
use crate::domain::repo_config::{self, ConfigProblem, RepoConfig};
use crate::domain::run::{Origin, Run, RunInput, RunState};
use crate::domain::task::Task;
use crate::domain::{policy, wording};
use crate::intake;
use crate::queue::Topic;
use crate::remote::RemoteError;
use crate::store::approvals::PullKey;
use crate::store::inbox::{Delivery, InboxState};
use crate::store::nodes::InstallationState;
use crate::store::runs::NewRun;
use crate::store::{self, Tx};
use crate::telemetry;
use chrono::{DateTime, Duration, Utc};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Deliveries taken by one tick.
const BATCH: i64 = 64;

/// A forge that does not answer is asked again for this long; then the command is refused with a text.
const PATIENCE: Duration = Duration::minutes(15);

/// Files of a repository's own agents and skills that are read, at most.
const MAX_AGENT_FILES: usize = 50;

/// A delivery that was begun with others when somebody died is begun alone from then on; when somebody died of it so
/// often while it was alone, it is given up.
const MAX_DEATHS: i64 = 3;

/// A delivery of which somebody died waits so long before the next try, times its deaths: the others go first.
const AFTER_DEATH: Duration = Duration::seconds(10);

/// Before the first tick of a process that has the duty of reading the inbox: what somebody died of while it was alone
/// waits until this process has lived for a while. One that is stopped soon after each start, whoever does that, never
/// has an innocent delivery in its hands then.
pub async fn take_over(app: &App) -> Result<(), EngineError> {
    let mut tx = app.store.lazy_tx().await?;
    store::inbox::put_off_suspects(&mut tx, app.clock.now() + AFTER_DEATH).await?;
    Ok(tx.commit().await?)
}

/// Takes what is pending and due. Gives the number of deliveries that were ended or put off.
pub async fn tick(app: &App) -> Result<usize, EngineError> {
    let pending = store::inbox::pending(&app.store, app.clock.now(), BATCH).await?;
    let count = pending.len();
    let (suspects, fresh): (Vec<_>, Vec<_>) = pending.into_iter().partition(|delivery| delivery.taken > 0);
    for delivery in suspects {
        if delivery.taken > MAX_DEATHS {
            give_up_deadly(app, &delivery).await?;
        } else {
            together(app, vec![delivery]).await?;
        }
    }
    together(app, fresh).await?;
    Ok(count)
}

/// Handles deliveries that share two commits: that they are begun (a death counts from there on), and the verdicts of
/// those that lead to nothing, which are most.
#[tracing::instrument(level = "debug", skip_all)]
async fn together(app: &App, deliveries: Vec<Delivery>) -> Result<(), EngineError> {
    if deliveries.is_empty() {
        return Ok(());
    }
    let now = app.clock.now();
    let mut tx = app.store.lazy_tx().await?;
    // Of those that somebody died of, each comes alone.
    let deaths = deliveries.iter().map(|delivery| delivery.taken).max().unwrap_or(0);
    let ids: Vec<InboxId> = deliveries.iter().map(|delivery| delivery.id.clone()).collect();
    let again = now + AFTER_DEATH * i32::try_from(deaths).unwrap_or(i32::MAX);
    store::inbox::begun(&mut tx, &ids, again).await?;
    tx.commit().await?;
    let done = all(app, &deliveries).await;
    if let Err(EngineError::Store(_)) = &done {
        // The database is down: nothing can be recorded, the deliveries stay pending.
        nobody_died(app, &deliveries).await;
    }
    done
}

async fn all(app: &App, deliveries: &[Delivery]) -> Result<(), EngineError> {
    let ended = &mut Vec::new();
    // A label put on many issues at once comes as many deliveries: they are planned together and share a commit, too.
    let mut batch = Batch::default();
    for delivery in deliveries {
        let decoded = decode(delivery);
        if !is_label(&decoded) {
            flush(app, &mut batch, ended).await?;
        }
        let taken = take(app, delivery, decoded, &mut batch).await;
        settle(app, delivery, taken, ended).await?;
    }
    flush(app, &mut batch, ended).await?;
    if !ended.is_empty() {
        let mut tx = app.store.lazy_tx().await?;
        let mut alike: BTreeMap<(&str, &str), (InboxState, Vec<InboxId>)> = BTreeMap::new();
        for (id, state, verdict) in ended.iter() {
            let same = alike.entry((state.as_str(), verdict)).or_insert((*state, Vec::new()));
            same.1.push(id.clone());
        }
        for ((_, verdict), (state, ids)) in alike {
            store::inbox::finish_all(&mut tx, &ids, state, verdict).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// The database failed, not a delivery. Where it fails here, too, they are begun one by one next time, that is all.
async fn nobody_died(app: &App, deliveries: &[Delivery]) {
    let undone = async {
        let mut tx = app.store.lazy_tx().await?;
        for delivery in deliveries {
            store::inbox::not_begun(&mut tx, &delivery.id, app.clock.now()).await?;
        }
        tx.commit().await
    };
    if let Err(error) = undone.await {
        tracing::warn!(error = %error, "deliveries stay marked as begun");
    }
}

/// Whoever took this delivery died, again and again: it is left alone, and somebody must look.
async fn give_up_deadly(app: &App, delivery: &Delivery) -> Result<(), EngineError> {
    let why = wording::deadly_delivery(MAX_DEATHS);
    tracing::error!(delivery.id = %delivery.delivery_id, inbox.id = %delivery.id, "{why}");
    let mut tx = app.store.write_tx().await?;
    store::inbox::finish(&mut tx, &delivery.id, InboxState::Failed, &why).await?;
    audit(app, &mut tx, None, "dead_letter", &delivery.delivery_id, &why).await?;
    tx.commit().await?;
    metrics::counter!(telemetry::DEAD_LETTERS, "what" => "delivery").increment(1);
    Ok(())
}

type Ended = Vec<(InboxId, InboxState, String)>;

/// Records what became of a delivery, as far as that was not done with its consequences.
async fn settle(
    app: &App,
    delivery: &Delivery,
    taken: Result<Taken, EngineError>,
    ended: &mut Ended,
) -> Result<(), EngineError> {
    match taken {
        Ok(Taken::Ended(state, verdict)) => {
            tracing::debug!(delivery.id = %delivery.delivery_id, verdict, "delivery ended");
            ended.push((delivery.id.clone(), state, verdict));
        }
        Ok(Taken::Stored | Taken::Batched) => {}
        // The database is down: nothing can be recorded, the delivery stays pending.
        Err(EngineError::Store(error)) => return Err(EngineError::Store(error)),
        // A defect must not stop the deliveries behind this one; `zeblit replay` takes it up again.
        Err(error) => {
            tracing::error!(delivery.id = %delivery.delivery_id, error = %error, "delivery failed");
            give_up(app, &delivery.id, &error.to_string()).await?;
        }
    }
    Ok(())
}

/// Before the forge was asked who we are.
const NOBODY: Own = Own { user_id: 0, app_id: 0 };

/// What became of a delivery.
enum Taken {
    Ended(InboxState, String),
    /// Stored already, in the transaction that holds its consequences.
    Stored,
    /// Planned, and stored with the others of its batch.
    Batched,
}

/// A delivery whose commands are decided.
struct Planned {
    delivery: Delivery,
    repo: Repo,
    comment: Comment,
    task: Task,
    plan: Plan,
}

/// Deliveries that are stored together, and what was asked for them once instead of for each.
#[derive(Default)]
struct Batch {
    planned: Vec<Planned>,
    known: Known,
}

impl Batch {
    /// Runs that are planned here for this person and not in the database yet.
    fn started_by(&self, user: i64) -> i64 {
        let starts = |planned: &&Planned| planned.comment.author.id == user && planned.plan.starts();
        i64::try_from(self.planned.iter().filter(starts).count()).unwrap_or(i64::MAX)
    }
}

/// Answers of the forge that are good for one batch.
#[derive(Default)]
struct Known {
    repos: BTreeMap<i64, RepoFacts>,
    roles: BTreeMap<(i64, i64), policy::Role>,
}

/// What is true of a repository, whoever asks about whatever in it.
#[derive(Clone)]
struct RepoFacts {
    default_branch: BranchName,
    default_sha: Sha,
    config: Result<RepoConfig, ConfigProblem>,
    agents: AgentSet,
    agents_problem: Option<String>,
}

fn decode(delivery: &Delivery) -> Decoded {
    intake::decode(delivery.source, &delivery.event, &delivery.raw)
}

fn is_label(decoded: &Decoded) -> bool {
    matches!(decoded, Decoded::Event(event)
        if matches!(&event.kind, EventKind::Comment(comment) if of_label(comment)))
}

fn of_label(comment: &Comment) -> bool {
    matches!(comment.surface, Surface::Label { .. })
}

/// Stores a batch in one transaction; when that cannot be (two of one issue's first task), each in its own.
#[tracing::instrument(level = "debug", skip_all)]
async fn flush(app: &App, batch: &mut Batch, ended: &mut Ended) -> Result<(), EngineError> {
    let planned = std::mem::take(batch).planned;
    if planned.is_empty() {
        return Ok(());
    }
    let mut tx = app.store.lazy_tx().await?;
    let mut stored = true;
    for one in &planned {
        stored = stored && store_plan(app, &mut tx, one).await?;
    }
    if stored {
        tx.commit().await?;
        app.wakeup.notify(Topic::Effects);
        let most_urgent = planned.iter().map(|one| one.plan.priority()).min().unwrap_or_default();
        app.wakeup.notify(Topic::runs(most_urgent.as_i64()));
        return Ok(());
    }
    drop(tx);
    for one in planned {
        let mut alone = Batch::default();
        let taken = take(app, &one.delivery, decode(&one.delivery), &mut alone).await;
        settle(app, &one.delivery, taken, ended).await?;
        for one in alone.planned {
            let taken = commit(app, one).await;
            if !taken? {
                // Its task was made between the two looks: the next tick finds it.
                tracing::debug!("a label waits for the next tick");
            }
        }
    }
    Ok(())
}

#[tracing::instrument(skip_all, fields(delivery.id = %delivery.delivery_id, source = delivery.source.as_str(), event = %delivery.event))]
async fn take(
    app: &App,
    delivery: &Delivery,
    decoded: Decoded,
    batch: &mut Batch,
) -> Result<Taken, EngineError> {
    Ok(match decoded {
        Decoded::Ignored(reason) => Taken::Ended(InboxState::Ignored, reason),
        Decoded::NotYetHandled(reason) => Taken::Ended(InboxState::NotYetHandled, reason),
        Decoded::Unreadable(reason) => Taken::Ended(InboxState::Failed, reason),
        Decoded::Event(mut event) => {
            // Of what is not for us nothing is kept, and most is not.
            if let EventKind::Comment(comment) = &mut event.kind
                && let Interest::Commands(_) = plan::interest(comment, event.sender.as_ref(), NOBODY)
            {
                hide_secrets(app, comment);
            }
            match handle(app, delivery, &event, batch).await {
                Ok(taken) => taken,
                Err(EngineError::Remote(error)) => {
                    put_off(app, delivery, &event, &error).await?;
                    Taken::Stored
                }
                Err(error) => return Err(error),
            }
        }
    })
}

/// What people wrote becomes prompts, branches, commits and comments: a secret that somebody pasted goes no further.
fn hide_secrets(app: &App, comment: &mut Comment) {
    let mut texts = vec![&mut comment.subject.title, &mut comment.subject.body, &mut comment.body];
    if let CommentAction::Edited { before: Some(before) } = &mut comment.action {
        texts.push(before);
    }
    if let Surface::ReviewComment { diff_hunk, .. } = &mut comment.surface {
        texts.push(diff_hunk);
    }
    for text in texts {
        *text = app.secrets.mask(text);
    }
}

/// The forge did not answer: try later, and after `PATIENCE` refuse aloud. Never a grant.
async fn put_off(
    app: &App,
    delivery: &Delivery,
    event: &Event,
    error: &RemoteError,
) -> Result<(), EngineError> {
    let now = app.clock.now();
    let waited = now - delivery.received_at;
    let Some(mut tx) = begin(app, &delivery.id).await? else { return Ok(()) };
    let passing = !matches!(error.retry(), crate::remote::Retry::Never);
    if passing && waited < PATIENCE {
        let asked = match error.retry() {
            crate::remote::Retry::After(wait) => Duration::from_std(wait).unwrap_or(Duration::seconds(60)),
            _ => Duration::zero(),
        };
        let backoff =
            Duration::seconds(2_i64.saturating_pow(u32::try_from(delivery.tries.clamp(1, 7)).unwrap_or(7)));
        let until = now + asked.max(backoff).min(PATIENCE);
        tracing::warn!(error = %error, until = %until, "the forge did not answer; the delivery waits");
        store::inbox::defer(&mut tx, &delivery.id, until, &error.to_string()).await?;
    } else if !passing && !matches!(error, RemoteError::Protocol { .. }) {
        // The App cannot see this repository, or may not: saying so there would be refused as well.
        tracing::warn!(error = %error, "the forge refused; the delivery ends");
        store::inbox::finish(&mut tx, &delivery.id, InboxState::Failed, &error.to_string()).await?;
    } else {
        tracing::error!(error = %error, "the forge did not answer what must be known; the command is refused");
        if let (EventKind::Comment(comment), Some(repo)) = (&event.kind, &event.repo) {
            let body = if passing {
                wording::permission_unknown(&comment.author.login)
            } else {
                wording::unreadable_answer()
            };
            let key = format!("reply:{}:unanswered", comment.node_id);
            put_reply(app, &mut tx, repo, comment, key, &body).await?;
        }
        store::inbox::finish(&mut tx, &delivery.id, InboxState::Failed, &error.to_string()).await?;
    }
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(())
}

/// A transaction in which the delivery is still pending: `None` when another process has ended it meanwhile. Whatever a
/// delivery leads to is written in one of these, so that two readers of the inbox do it once.
async fn begin(app: &App, id: &InboxId) -> Result<Option<Tx>, EngineError> {
    let mut tx = app.store.lazy_tx().await?;
    if store::inbox::is_pending(&mut tx, id).await? {
        return Ok(Some(tx));
    }
    tracing::info!(delivery = %id, "another process has handled this delivery");
    Ok(None)
}

async fn handle(
    app: &App,
    delivery: &Delivery,
    event: &Event,
    batch: &mut Batch,
) -> Result<Taken, EngineError> {
    let done = |verdict: &str| Taken::Ended(InboxState::Done, verdict.to_owned());
    match &event.kind {
        EventKind::Ping => Ok(done("the hook works")),
        EventKind::InstallationCreated { account, repos } => {
            installation(app, delivery, event, account, InstallationState::Active).await?;
            Ok(done(&format!("installed for {account}, {} repositories", repos.len())))
        }
        EventKind::InstallationDeleted => {
            installation(app, delivery, event, "", InstallationState::Deleted).await?;
            Ok(done("uninstalled"))
        }
        EventKind::InstallationSuspended { suspended } => {
            let state = if *suspended { InstallationState::Suspended } else { InstallationState::Active };
            installation(app, delivery, event, "", state).await?;
            Ok(done(if *suspended { "suspended" } else { "unsuspended" }))
        }
        EventKind::InstallationReposChanged { added, removed } => {
            if let Some(id) = event.installation {
                app.forge.forget(id);
            }
            Ok(done(&format!("{} repositories added, {} removed", added.len(), removed.len())))
        }
        EventKind::RepoMoved { from } => {
            let Some(repo) = &event.repo else { return Ok(done("names no repository")) };
            let moved = repo_moved(app, repo, from, event.sender.as_ref()).await?;
            Ok(done(&format!("{from} is now {}; {moved} rows follow", repo.name)))
        }
        EventKind::RepoDeleted => {
            let Some(repo) = &event.repo else { return Ok(done("names no repository")) };
            let stopped = repo_gone(app, repo, event.sender.as_ref()).await?;
            Ok(done(&format!("repository deleted: {stopped} run(s) stop")))
        }
        EventKind::PullPushed { number, head, at } => {
            pull_pushed(app, delivery, event, *number, head, *at).await
        }
        EventKind::Pushed { .. } | EventKind::SubjectReopened { .. } => {
            Ok(Taken::Ended(InboxState::Ignored, "nothing depends on it".into()))
        }
        EventKind::SubjectClosed { kind, number, merged } => {
            closed(app, event, *kind, *number, *merged).await
        }
        EventKind::CheckRerequested { external_id, .. } => {
            rerequested(app, delivery, event, external_id).await
        }
        EventKind::Comment(comment) => {
            let checked = match (&comment.surface, &comment.action, &comment.pull, &event.repo) {
                (Surface::Opening, CommentAction::Created, Some(pull), Some(repo)) => {
                    config_check::check(app, repo, pull.number, &pull.head_sha).await?
                }
                _ => None,
            };
            match (commented(app, delivery, event, comment, batch).await?, checked) {
                (Taken::Ended(InboxState::Ignored, _), Some(verdict)) => {
                    Ok(Taken::Ended(InboxState::Done, verdict))
                }
                (taken, _) => Ok(taken),
            }
        }
    }
}

async fn installation(
    app: &App,
    delivery: &Delivery,
    event: &Event,
    account: &str,
    state: InstallationState,
) -> Result<(), EngineError> {
    let Some(id) = event.installation else { return Ok(()) };
    app.forge.forget(id);
    let Some(mut tx) = begin(app, &delivery.id).await? else { return Ok(()) };
    store::nodes::set_installation(&mut tx, app.forge.name(), id, account, state, app.clock.now()).await?;
    audit(
        app,
        &mut tx,
        event.sender.as_ref(),
        "installation",
        &id.to_string(),
        &format!("{state:?} {account}"),
    )
    .await?;
    tx.commit().await?;
    Ok(())
}

/// A repository has another name: everything that is not ended follows. Gives the number of rows.
pub(super) async fn repo_moved(
    app: &App,
    repo: &Repo,
    from: &RepoName,
    by: Option<&Actor>,
) -> Result<u64, EngineError> {
    app.forge.forget(repo.installation);
    let mut tx = app.store.write_tx().await?;
    let moved = store::tasks::repo_moved(&mut tx, app.forge.name(), repo, &repo.name).await?;
    audit(app, &mut tx, by, "repository.moved", repo.name.as_str(), &format!("from {from}")).await?;
    tx.commit().await?;
    Ok(moved)
}

/// A repository was deleted, or is not ours to see any more: its runs and tasks end. Gives the number of runs.
pub(super) async fn repo_gone(app: &App, repo: &Repo, by: Option<&Actor>) -> Result<usize, EngineError> {
    app.forge.forget(repo.installation);
    let mut stopped = 0;
    let tasks = store::tasks::open_of_repo(&app.store, app.forge.name(), repo.id).await?;
    for task in &tasks {
        stopped += end_task(app, task, task.number, wording::REPOSITORY_GONE, None).await?.unwrap_or(0);
    }
    if !tasks.is_empty() {
        let mut tx = app.store.write_tx().await?;
        let what = format!("{} task(s) end", tasks.len());
        audit(app, &mut tx, by, "repository.gone", repo.name.as_str(), &what).await?;
        tx.commit().await?;
    }
    Ok(stopped)
}

/// An issue or pull request was closed: its runs end, its task ends; the next command starts a new one.
async fn closed(
    app: &App,
    event: &Event,
    kind: SubjectKind,
    number: i64,
    merged: bool,
) -> Result<Taken, EngineError> {
    let Some(repo) = &event.repo else {
        return Ok(Taken::Ended(InboxState::Failed, "names no repository".into()));
    };
    let Some(task) = store::tasks::open_for(&app.store, app.forge.name(), repo.id, number).await? else {
        return Ok(Taken::Ended(InboxState::Ignored, "no task of ours".into()));
    };
    let stopped = end_task(app, &task, number, &wording::was_closed(number), None).await?.unwrap_or(0);
    let what = match (kind, merged) {
        (SubjectKind::PullRequest, true) => "merged",
        _ => "closed",
    };
    Ok(Taken::Ended(InboxState::Done, format!("#{number} was {what}: {stopped} run(s) stop")))
}

/// Ends a task because issue or pull request `number` ended, and asks its runs to stop, with the reason. Where a run is newer than `seen_at`, what was seen is older
/// than the newest command and nothing is done: `None`. Else the number of runs that stop.
pub(super) async fn end_task(
    app: &App,
    task: &Task,
    number: i64,
    why: &str,
    seen_at: Option<DateTime<Utc>>,
) -> Result<Option<usize>, EngineError> {
    let runs = store::runs::of_task(&app.store, &task.id).await?;
    if seen_at.is_some_and(|seen| runs.iter().any(|run| run.created_at >= seen)) {
        return Ok(None);
    }
    let cancelled = plan::cancelled_by_close(&runs);
    let mut tx = app.store.write_tx().await?;
    for run in &cancelled {
        store::runs::request_cancel(&mut tx, run, why).await?;
    }
    store::tasks::close(&mut tx, &task.id, app.clock.now()).await?;
    if let Some(last) = runs.iter().rev().find(|run| run.outcome.head.is_some()) {
        report::delete_branch(app, &mut tx, last, number).await?;
    }
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    app.wakeup.notify(Topic::Effects);
    Ok(Some(cancelled.len()))
}

/// New commits on a pull request: what was approved before them is approved no more, and a run on the very
/// commit that they brought had no approval at all.
async fn pull_pushed(
    app: &App,
    delivery: &Delivery,
    event: &Event,
    number: i64,
    head: &Sha,
    at: Option<DateTime<Utc>>,
) -> Result<Taken, EngineError> {
    let Some(repo) = &event.repo else {
        return Ok(Taken::Ended(InboxState::Failed, "names no repository".into()));
    };
    let checked = config_check::check(app, repo, number, head).await?;
    let runs = runs_on(app, repo, number).await?;
    let ours = pushed_by_us(app, event.sender.as_ref(), &runs, head).await?;
    let seen = HeadMoved { repo, number, head, by: event.sender.as_ref(), ours };
    let key = PullKey { remote: app.forge.name(), repo_id: repo.id, number };
    let Some(mut tx) = begin(app, &delivery.id).await? else { return Ok(Taken::Stored) };
    let void = store::approvals::pushed(&mut tx, key, head, at.unwrap_or(delivery.received_at)).await?;
    let superseded = head_moved(app, &mut tx, &seen, &void, &runs).await?;
    store::inbox::finish(
        &mut tx,
        &delivery.id,
        InboxState::Done,
        &checked.unwrap_or_else(|| {
            let void = void.len();
            format!("pushed {}; {void} approval(s) void, {superseded} run(s) superseded", head.short())
        }),
    )
    .await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    Ok(Taken::Stored)
}

/// The head of a pull request as it is now, when nobody told of the push. Gives the number of void approvals.
pub(super) async fn head_seen(app: &App, repo: &Repo, number: i64, head: &Sha) -> Result<usize, EngineError> {
    let runs = runs_on(app, repo, number).await?;
    let key = PullKey { remote: app.forge.name(), repo_id: repo.id, number };
    let ours = pushed_by_us(app, None, &runs, head).await?;
    let mut tx = app.store.write_tx().await?;
    let void = store::approvals::moved(&mut tx, key, head, app.clock.now()).await?;
    head_moved(app, &mut tx, &HeadMoved { repo, number, head, by: None, ours }, &void, &runs).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    Ok(void.len())
}

/// A pull request that has a new head.
struct HeadMoved<'a> {
    repo: &'a Repo,
    number: i64,
    head: &'a Sha,
    by: Option<&'a Actor>,
    /// A run of ours made it.
    ours: bool,
}

async fn runs_on(app: &App, repo: &Repo, number: i64) -> Result<Vec<Run>, EngineError> {
    Ok(match store::tasks::open_for(&app.store, app.forge.name(), repo.id, number).await? {
        Some(task) => store::runs::of_task(&app.store, &task.id).await?,
        None => Vec::new(),
    })
}

/// What a new head leads to. Gives the number of runs that it makes pointless.
async fn head_moved(
    app: &App,
    tx: &mut Tx,
    seen: &HeadMoved<'_>,
    void: &[Sha],
    runs: &[Run],
) -> Result<usize, EngineError> {
    let head = seen.head;
    let subject = format!("{}#{}", seen.repo.name, seen.number);
    for old in void {
        audit(app, tx, seen.by, "approve.void", &subject, &format!("{old}: pushed {head}")).await?;
    }
    let on_it = |run: &&Run| {
        run.spec.needs_ok().is_some_and(|pull| pull.head_sha == *head) && !run.state.is_terminal()
    };
    if void.contains(head) {
        for run in runs.iter().filter(on_it) {
            store::runs::request_cancel(tx, &run.id, wording::APPROVAL_VOID).await?;
        }
    }
    let superseded = plan::superseded_by_push(runs, seen.number, head, seen.ours);
    for run in &superseded {
        store::runs::request_cancel(tx, run, &wording::superseded(head)).await?;
    }
    Ok(superseded.len())
}

/// Whether we made this head: by what runs recorded, or by a push whose outcome nobody has recorded yet.
async fn pushed_by_us(
    app: &App,
    sender: Option<&Actor>,
    runs: &[Run],
    head: &Sha,
) -> Result<bool, EngineError> {
    if runs.iter().any(|run| run.outcome.head.as_ref() == Some(head)) {
        return Ok(true);
    }
    for run in runs.iter().filter(|run| !run.state.is_terminal()) {
        let effects = store::effects::of_run(&app.store, &run.id).await?;
        if effects.iter().any(|effect| matches!(&effect.payload, Payload::Branch(push) if push.new == *head))
        {
            return Ok(true);
        }
    }
    Ok(match sender {
        Some(sender) if sender.kind == ActorKind::Bot => sender.id == app.forge.own_identity().await?.user_id,
        _ => false,
    })
}

/// GitHub's own "Re-run" on our check: a retry, by whoever pressed it.
async fn rerequested(
    app: &App,
    delivery: &Delivery,
    event: &Event,
    external_id: &str,
) -> Result<Taken, EngineError> {
    let ignored = |why: &str| Ok(Taken::Ended(InboxState::Ignored, why.to_owned()));
    let (Some(repo), Some(sender)) = (&event.repo, &event.sender) else {
        return ignored("names no repository or sender");
    };
    let Some((id, _)) = external_id.split_once(':') else { return ignored("not a check of ours") };
    let Some(run) = store::runs::get(&app.store, &RunId::new(id)).await? else {
        return ignored("not a check of ours");
    };
    if run.repo.id != repo.id || run.remote != app.forge.name() {
        return ignored("a check of another repository");
    }
    let role = app.forge.role_of(repo, sender).await?;
    let granted =
        policy::permission(Verb::Retry, role, repo.private, &run.spec.config) == policy::Permission::Granted;
    let Some(mut tx) = begin(app, &delivery.id).await? else { return Ok(Taken::Stored) };
    let action = if granted { "grant" } else { "refuse" };
    audit(
        app,
        &mut tx,
        Some(sender),
        action,
        run.id.as_str(),
        &format!("re-run of the check as {}", role.name()),
    )
    .await?;
    if !granted {
        store::inbox::finish(&mut tx, &delivery.id, InboxState::Ignored, "the sender may not start runs")
            .await?;
        tx.commit().await?;
        return Ok(Taken::Stored);
    }
    let key = format!("check:{}", delivery.delivery_id);
    let verdict = match again(app, &mut tx, &run, key, sender.clone()).await? {
        Some(id) => format!("re-run as {id}"),
        None => "this re-run was asked for before".into(),
    };
    store::inbox::finish(&mut tx, &delivery.id, InboxState::Done, &verdict).await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Runs);
    app.wakeup.notify(Topic::Effects);
    Ok(Taken::Stored)
}

/// Queues a run with the request of `run`. `None`: the key was seen before.
pub(super) async fn again(
    app: &App,
    tx: &mut Tx,
    run: &Run,
    key: String,
    requester: Actor,
) -> Result<Option<RunId>, EngineError> {
    let mut spec = run.spec.clone();
    spec.requester = requester;
    spec.previous = Some(run.id.clone());
    spec.resume = false;
    // The work of earlier runs of this task, if any, is what this one starts from.
    if let Some(head) = run.outcome.head.as_ref().filter(|_| run.outcome.branch == spec.push_to) {
        spec.start = head.clone();
    }
    let Some(task) = store::tasks::get(&app.store, &run.task).await? else {
        return Err(EngineError::Defect(format!("run {} has no task", run.id)));
    };
    let lock_key = plan::lock_key(&run.repo, &task, &spec);
    let new = NewRun {
        id: RunId::new(app.ids.next(IdKind::Run)),
        task: run.task.clone(),
        key,
        remote: run.remote.clone(),
        repo: run.repo.clone(),
        lock_key,
        spec,
        priority: run.priority,
        created_at: app.clock.now(),
    };
    store_run(app, tx, &new).await.map(|stored| stored.then_some(new.id))
}

/// Inserts a run with its first effects; false when its key was seen before.
async fn store_run(app: &App, tx: &mut Tx, new: &NewRun) -> Result<bool, EngineError> {
    if !store::runs::insert(tx, new).await? {
        return Ok(false);
    }
    let Some(run) = store::runs::get_tx(tx, &new.id).await? else {
        return Err(EngineError::Defect(format!("run {} vanished inside its transaction", new.id)));
    };
    tracing::info!(run.id = %run.id, repo = %run.repo.name, number = run.spec.subject.number, verb = run.spec.verb.name(), agent = %run.spec.agent, "run queued");
    report::report(app, tx, &run, Urgency::First).await?;
    Ok(true)
}

async fn commented(
    app: &App,
    delivery: &Delivery,
    event: &Event,
    comment: &Comment,
    batch: &mut Batch,
) -> Result<Taken, EngineError> {
    let ignored = |why: &str| Ok(Taken::Ended(InboxState::Ignored, why.to_owned()));
    let Some(repo) = &event.repo else { return ignored("names no repository") };
    // Cheap and pure first: most comments are not for us and cost no call.
    if let Interest::Ignore(why) = plan::interest(comment, event.sender.as_ref(), NOBODY) {
        return ignored(why);
    }
    let own = app.forge.own_identity().await?;
    let own = Own { user_id: own.user_id, app_id: own.app_id };
    let commands = match plan::interest(comment, event.sender.as_ref(), own) {
        Interest::Ignore(why) => return ignored(why),
        Interest::Commands(commands) => commands,
    };
    if let Some(state) = store::nodes::installation(&app.store, app.forge.name(), repo.installation).await?
        && state != InstallationState::Active
    {
        return ignored("the App is not active here");
    }
    let mut fresh = Known::default();
    let known = if of_label(comment) { &mut batch.known } else { &mut fresh };
    let mut facts = match gather(app, repo, comment, &commands, known).await? {
        Ok(facts) => facts,
        Err(refusal) => {
            return refuse_all(app, delivery, repo, comment, &refusal).await;
        }
    };
    facts.recent_runs += batch.started_by(comment.author.id);
    if of_label(comment) {
        facts.rules.commands_per_user_hour = app.config.limits.labels_per_user_hour;
    }
    let context = PlanContext {
        repo,
        now: app.clock.now(),
        role: facts.role,
        config: &facts.config,
        default_branch: &facts.default_branch,
        default_sha: &facts.default_sha,
        bases: &facts.bases,
        pull: facts.pull.as_ref(),
        task: &facts.task,
        own_head: facts.own_head.as_ref(),
        fork: facts.fork.as_ref(),
        approved: &facts.approved,
        pushed_since: facts.pushed_since,
        runs: &facts.runs,
        agents: &facts.agents,
        agents_problem: facts.agents_problem.as_deref(),
        rules: &facts.rules,
        recent_runs: facts.recent_runs,
        standings: &facts.standings,
        after: &facts.after,
        delivery: delivery.id.as_str(),
    };
    let plan = plan::plan(comment, &commands, &context);
    let planned = Planned {
        delivery: delivery.clone(),
        repo: repo.clone(),
        comment: comment.clone(),
        task: facts.task,
        plan,
    };
    if of_label(comment) {
        batch.planned.push(planned);
        return Ok(Taken::Batched);
    }
    if commit(app, planned).await? {
        return Ok(Taken::Stored);
    }
    // Somebody made the subject's task meanwhile: plan again on what is there now.
    Box::pin(take(app, delivery, decode(delivery), batch)).await
}

/// What a plan is made from, asked of forge and store.
struct Facts {
    role: policy::Role,
    config: Result<RepoConfig, ConfigProblem>,
    default_branch: BranchName,
    default_sha: Sha,
    bases: BTreeMap<String, Option<Sha>>,
    pull: Option<PullHead>,
    task: Task,
    own_head: Option<Sha>,
    runs: Vec<Run>,
    agents: BTreeMap<String, AgentFacts>,
    agents_problem: Option<String>,
    rules: ServerRules,
    fork: Option<RepoName>,
    approved: Vec<Sha>,
    pushed_since: bool,
    recent_runs: i64,
    standings: Vec<Standing>,
    after: BTreeMap<i64, Option<plan::Blocker>>,
}

/// `Ok(Err(text))`: cannot be planned; say so (to people that are heard).
async fn gather(
    app: &App,
    repo: &Repo,
    comment: &Comment,
    commands: &[Result<Command, CommandError>],
    known: &mut Known,
) -> Result<Result<Facts, String>, EngineError> {
    let whose = (repo.id, comment.author.id);
    let role = match known.roles.get(&whose) {
        Some(role) => *role,
        None => app.forge.role_of(repo, &comment.author).await?,
    };
    known.roles.insert(whose, role);
    let of_repo = match known.repos.get(&repo.id) {
        Some(facts) => facts.clone(),
        None => match repo_facts(app, repo).await? {
            Ok(facts) => facts,
            Err(refusal) => return Ok(Err(refusal)),
        },
    };
    known.repos.insert(repo.id, of_repo.clone());
    let RepoFacts { default_branch, default_sha, config, agents, agents_problem } = of_repo;
    let pull = match (&comment.pull, comment.subject.kind) {
        // Asked again even when the payload has it: the payload may be old.
        (_, SubjectKind::PullRequest) => Some(app.forge.pull(repo, comment.subject.number).await?),
        (_, SubjectKind::Issue) => None,
    };
    let mut bases = BTreeMap::new();
    for name in commands.iter().flatten().filter_map(|command| command.flags.base.as_ref()) {
        if let Ok(branch) = BranchName::parse(name) {
            bases.insert(name.clone(), app.forge.branch_head(repo, &branch).await?);
        }
    }
    let remote = app.forge.name();
    let task = match store::tasks::open_for(&app.store, remote, repo.id, comment.subject.number).await? {
        Some(task) => task,
        None => Task {
            id: TaskId::new(app.ids.next(IdKind::Task)),
            remote: remote.to_owned(),
            repo: repo.clone(),
            kind: comment.subject.kind,
            number: comment.subject.number,
            title: comment.subject.title.clone(),
            branch: None,
            pull_number: None,
            pull_url: None,
            created_at: app.clock.now(),
            closed_at: None,
        },
    };
    let rules = rules(app, repo).await?;
    let mode = config.as_ref().map_or(rules.push, |config| rules.push.max(config.push));
    let fork = our_fork(app, repo, pull.as_ref(), mode).await?;
    let own_head = match &task.branch {
        Some(branch) => {
            let home = fork.as_ref().filter(|_| mode == PushMode::Fork).unwrap_or(repo);
            app.forge.branch_head(home, branch).await?
        }
        None => None,
    };
    let key = PullKey { remote, repo_id: repo.id, number: comment.subject.number };
    let (approved, pushed_since) = if pull.as_ref().is_some_and(|pull| pull.fork) {
        let pushed = store::approvals::pushed_since(&app.store, key, comment.written_at).await?;
        (store::approvals::of_pull(&app.store, key).await?, pushed)
    } else {
        (Vec::new(), false)
    };
    let hour_ago = app.clock.now() - Duration::hours(1);
    let runs = store::runs::of_task(&app.store, &task.id).await?;
    let task_id = task.id.clone();
    let standings = if commands.iter().flatten().any(|command| command.verb == Verb::Budget) {
        let own = config.as_ref().ok().and_then(|config| config.limits.day_budget_micros);
        let remote = &task.remote;
        let mut all = budget::wider(remote, repo, &comment.author, own, &budget_rules(app));
        all.extend(runs.last().map(|run| Budget {
            whose: format!("run `{}`", run.id.short()),
            ..Budget::of_run(&run.id, run.spec.budget_micros)
        }));
        store::ledger::standings(&app.store, &all, app.clock.now()).await?
    } else {
        Vec::new()
    };
    Ok(Ok(Facts {
        role,
        config,
        default_branch,
        default_sha,
        bases,
        pull,
        own_head,
        runs,
        task,
        agents: agents.agents.iter().map(|(name, spec)| (name.clone(), facts_of(spec))).collect(),
        agents_problem,
        rules,
        fork: fork.map(|fork| fork.name),
        approved,
        pushed_since,
        recent_runs: store::runs::count_by_requester(&app.store, comment.author.id, hour_ago).await?,
        standings,
        after: blockers(app, repo, &task_id, commands).await?,
    }))
}

/// What is true of a repository now; `Ok(Err(text))` as in `gather`.
async fn repo_facts(app: &App, repo: &Repo) -> Result<Result<RepoFacts, String>, EngineError> {
    let info = app.forge.repo_info(repo).await?;
    let Some(default_sha) = app.forge.branch_head(repo, &info.default_branch).await? else {
        return Ok(Err("😕 This repository has no commit yet.".into()));
    };
    let config = repository_config(app, repo, default_sha.as_str()).await?;
    // Broken agents must not keep anybody from `cancel` and `help`: the plan decides with the server's own.
    let (agents, agents_problem) = match repository_agents(app, repo, default_sha.as_str()).await? {
        Ok(agents) => (agents, None),
        Err(problem) => (app.agents.clone(), Some(problem)),
    };
    Ok(Ok(RepoFacts { default_branch: info.default_branch, default_sha, config, agents, agents_problem }))
}

/// The tasks that `--after` flags name.
async fn blockers(
    app: &App,
    repo: &Repo,
    task: &TaskId,
    commands: &[Result<Command, CommandError>],
) -> Result<BTreeMap<i64, Option<plan::Blocker>>, EngineError> {
    let mut found = BTreeMap::new();
    for number in commands.iter().flatten().flat_map(|command| command.flags.after.iter().copied()) {
        let parent = store::tasks::open_for(&app.store, app.forge.name(), repo.id, number).await?;
        let blocker = match parent {
            None => None,
            Some(parent) => {
                let waits_for_us = store::tasks::waits_for_all(&app.store, &parent.id).await?.contains(task);
                Some(plan::Blocker { task: parent.id, waits_for_us })
            }
        };
        found.insert(number, blocker);
    }
    Ok(found)
}

/// Where a devcontainer is described, in the order in which its tools look.
const DEVCONTAINER_FILES: [&str; 2] = [".devcontainer/devcontainer.json", ".devcontainer.json"];

/// Puts the devcontainer's image in the place of `image = "devcontainer"`.
async fn devcontainer(
    app: &App,
    repo: &Repo,
    at: &str,
    mut config: RepoConfig,
) -> Result<Result<RepoConfig, ConfigProblem>, EngineError> {
    if config.image.as_deref() != Some(repo_config::DEVCONTAINER) {
        return Ok(Ok(config));
    }
    let problem = |text: String| {
        Ok(Err(ConfigProblem { line: 1, problem: format!("`image` is \"devcontainer\", but {text}") }))
    };
    for path in DEVCONTAINER_FILES {
        let bytes = match app.forge.read_file(repo, at, path).await {
            Ok(None) => continue,
            Ok(Some(bytes)) => bytes,
            Err(RemoteError::Refused { detail, .. }) => {
                return problem(format!("{path} cannot be read: {detail}"));
            }
            Err(error) => return Err(error.into()),
        };
        return match repo_config::devcontainer_image(&String::from_utf8_lossy(&bytes)) {
            Ok(image) => {
                config.image = Some(image);
                Ok(Ok(config))
            }
            Err(what) => problem(format!("{path} {what}")),
        };
    }
    problem(format!("there is no {}", DEVCONTAINER_FILES[0]))
}

fn facts_of(spec: &AgentSpec) -> AgentFacts {
    AgentFacts {
        is_recipe: spec.adapter == AdapterKind::Command,
        read_only: spec.read_only,
        model: spec.model.clone(),
        minutes: spec.minutes,
        budget_micros: spec.budget_micros,
        needs: spec.needs.clone(),
        description: spec.description.clone(),
    }
}

/// The rules of a repository at a commit of its default branch.
pub(super) async fn repository_config(
    app: &App,
    repo: &Repo,
    at: &str,
) -> Result<Result<RepoConfig, ConfigProblem>, EngineError> {
    Ok(match app.forge.read_file(repo, at, repo_config::PATH).await {
        // The forge has it and will not give it: too large, or no file.
        Err(RemoteError::Refused { detail, .. }) => {
            Err(ConfigProblem { line: 1, problem: format!("cannot be read: {detail}") })
        }
        Err(error) => return Err(error.into()),
        Ok(None) => Ok(RepoConfig::default()),
        Ok(Some(bytes)) => match String::from_utf8(bytes) {
            Ok(text) => match repo_config::parse(&text) {
                Ok(config) => devcontainer(app, repo, at, config).await?,
                Err(problem) => Err(problem),
            },
            Err(_) => Err(ConfigProblem { line: 1, problem: "is not UTF-8 text".into() }),
        },
    })
}

/// Our fork of the repository, asked for only where it matters: in the mode `fork`, and for a pull request
/// that comes from the account of our forks.
async fn our_fork(
    app: &App,
    repo: &Repo,
    pull: Option<&PullHead>,
    mode: PushMode,
) -> Result<Option<Repo>, EngineError> {
    let Some(owner) = &app.config.publish.fork_owner else { return Ok(None) };
    let from_it = pull
        .filter(|pull| pull.fork)
        .and_then(|pull| pull.head_repo.as_ref())
        .is_some_and(|head| head.owner().eq_ignore_ascii_case(owner));
    if mode != PushMode::Fork && !from_it {
        return Ok(None);
    }
    Ok(app.forge.fork_of(repo, owner).await?)
}

async fn rules(app: &App, repo: &Repo) -> Result<ServerRules, EngineError> {
    let config = &app.config;
    Ok(ServerRules {
        fix_agent: config.agents.fix.clone(),
        review_agent: config.agents.review.clone(),
        ask_agent: config.agents.ask.clone(),
        image: config.sandbox.image.clone(),
        allowed_images: config.sandbox.allowed_images.clone(),
        // Validated at start; a list that cannot be read permits nothing.
        permitted_hosts: AllowList::new(&config.egress.allow).unwrap_or_default(),
        wall_seconds: config.sandbox.minutes.saturating_mul(60),
        run_budget_micros: micros(config.limits.run_budget),
        max_run_budget_micros: micros(config.limits.max_run_budget),
        commands_per_user_hour: config.limits.commands_per_user_hour,
        push: config.publish.mode_of(&repo.name),
        staged: config.publish.staged,
        paused: store::settings::get(&app.store, store::settings::PAUSED).await?,
    })
}

/// The server's limits on money besides that of a run.
pub(super) fn budget_rules(app: &App) -> BudgetRules {
    app.config.budget.rules()
}

/// The server's agents and those of the repository at a commit of its default branch.
pub(super) async fn repository_agents(
    app: &App,
    repo: &Repo,
    at: &str,
) -> Result<Result<AgentSet, String>, EngineError> {
    Ok(agents_at(app, repo, at).await?.map_err(|error| error.to_string()))
}

/// The same with what is wrong file by file.
pub(super) async fn agents_at(
    app: &App,
    repo: &Repo,
    at: &str,
) -> Result<Result<AgentSet, AgentError>, EngineError> {
    let mut files = Vec::new();
    for name in app.forge.list_folder(repo, at, ".github/zeblit/agents").await? {
        if name.ends_with(".md") && name != "README.md" && files.len() < MAX_AGENT_FILES {
            files.push(format!(".github/zeblit/agents/{name}"));
        }
    }
    if !app.forge.list_folder(repo, at, ".github/zeblit").await?.is_empty() {
        for name in app.forge.list_folder(repo, at, ".github/zeblit/skills").await? {
            if files.len() < MAX_AGENT_FILES {
                files.push(format!(".github/zeblit/skills/{}/SKILL.md", name.trim_end_matches('/')));
            }
        }
    }
    let mut texts = Vec::new();
    for path in files {
        match app.forge.read_file(repo, at, &path).await {
            Err(RemoteError::Refused { detail, .. }) => {
                let problem = format!("cannot be read: {detail}");
                return Ok(Err(AgentError::Folder { path, problem }));
            }
            Err(error) => return Err(error.into()),
            Ok(None) => {}
            Ok(Some(bytes)) => match String::from_utf8(bytes) {
                Ok(text) => texts.push((path, text)),
                Err(_) => {
                    return Ok(Err(AgentError::Folder { path, problem: "is not UTF-8 text".into() }));
                }
            },
        }
    }
    Ok(app.agents.with_repository(&texts))
}

async fn refuse_all(
    app: &App,
    delivery: &Delivery,
    repo: &Repo,
    comment: &Comment,
    text: &str,
) -> Result<Taken, EngineError> {
    let role = app.forge.role_of(repo, &comment.author).await?;
    let heard = policy::is_heard(role, repo.private, &RepoConfig::default());
    let Some(mut tx) = begin(app, &delivery.id).await? else { return Ok(Taken::Stored) };
    if heard {
        put_reply(app, &mut tx, repo, comment, format!("reply:{}:all", comment.node_id), text).await?;
    }
    store::inbox::finish(&mut tx, &delivery.id, InboxState::Done, "refused: see the reply").await?;
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(Taken::Stored)
}

/// One transaction: task, runs, cancels, replies, reactions, audit and the delivery's verdict. False, and nothing is
/// stored, when somebody made the subject's task meanwhile.
async fn commit(app: &App, planned: Planned) -> Result<bool, EngineError> {
    let mut tx = app.store.lazy_tx().await?;
    if !store_plan(app, &mut tx, &planned).await? {
        return Ok(false);
    }
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    app.wakeup.notify(Topic::runs(planned.plan.priority().as_i64()));
    Ok(true)
}

/// Writes what was planned; false when it was planned for a task that is not the subject's.
async fn store_plan(app: &App, tx: &mut Tx, planned: &Planned) -> Result<bool, EngineError> {
    let Planned { delivery, repo, comment, task, plan } = planned;
    if !store::inbox::is_pending(tx, &delivery.id).await? {
        tracing::info!(delivery = %delivery.id, "another process has handled this delivery");
        return Ok(true);
    }
    let mut seen = false;
    let mut confused = false;
    let starts = plan.starts();
    if starts
        && !store::tasks::insert(tx, task).await?
        && let Some(other) = store::tasks::open_for_tx(tx, &task.remote, repo.id, task.number).await?
        && other.id != task.id
    {
        return Ok(false);
    }
    for action in &plan.actions {
        match action {
            Action::Start { command, spec, priority, wait } => {
                seen = true;
                match wait {
                    Wait::Unchanged => {}
                    Wait::Nothing => store::tasks::unblock(tx, &task.id).await?,
                    Wait::For(parents) => {
                        for parent in parents {
                            store::tasks::block(tx, &task.id, parent).await?;
                        }
                    }
                }
                let new = NewRun {
                    id: RunId::new(app.ids.next(IdKind::Run)),
                    task: task.id.clone(),
                    key: run_key(
                        delivery.source,
                        &comment.node_id,
                        &command.normalised(),
                        command.occurrence,
                    ),
                    remote: app.forge.name().to_owned(),
                    repo: repo.clone(),
                    lock_key: plan::lock_key(repo, task, spec),
                    spec: (**spec).clone(),
                    priority: priority.as_i64(),
                    created_at: app.clock.now(),
                };
                store_run(app, tx, &new).await?;
            }
            Action::Cancel { run } => {
                store::runs::request_cancel(tx, run, &comment.author.login).await?;
            }
            Action::Release { run } => {
                release(app, tx, run, &comment.author).await?;
            }
            Action::ApproveHead { number, head } => {
                let key = PullKey { remote: app.forge.name(), repo_id: repo.id, number: *number };
                store::approvals::approve(tx, key, head, &comment.author, comment.written_at).await?;
            }
            Action::Reply { command, occurrence, body, ok } => {
                seen |= *ok;
                confused |= !*ok;
                let key =
                    format!("reply:{}", run_key(delivery.source, &comment.node_id, command, *occurrence));
                put_reply(app, tx, repo, comment, key, body).await?;
            }
        }
    }
    let owner = Owner { run: None, task: starts.then_some(&task.id), remote: app.forge.name(), repo };
    for (wanted, reaction) in [(seen, Reaction::Eyes), (confused, Reaction::Confused)] {
        if wanted {
            let payload = Payload::Reaction {
                target: report::reaction_target(&origin(comment), comment.subject.number),
                reaction,
            };
            let key = format!("react:{}:{}", comment.node_id, reaction.rest_name());
            report::put(app, tx, &owner, key, EffectPriority::Seen, payload).await?;
        }
    }
    if let Surface::Label { name } = &comment.surface
        && (seen || confused)
    {
        // It was read: put there again, it is asked again.
        let number = comment.subject.number;
        let payload = Payload::Label { number, name: name.clone(), present: false };
        let key = format!("unlabel:{}", comment.node_id);
        report::put(app, tx, &owner, key, EffectPriority::Check, payload).await?;
    }
    let subject = format!("{}#{}", repo.name, comment.subject.number);
    for (action, detail) in &plan.audit {
        audit(app, tx, Some(&comment.author), action, &subject, detail).await?;
    }
    store::inbox::finish(tx, &delivery.id, InboxState::Done, &plan.verdict).await?;
    Ok(true)
}

/// A change was approved: a worker takes its run on. Nothing happens when it does not wait any more.
async fn release(app: &App, tx: &mut Tx, run: &RunId, by: &Actor) -> Result<(), EngineError> {
    let Some(mut run) = store::runs::get_tx(tx, run).await? else { return Ok(()) };
    if run.state != RunState::Held {
        return Ok(());
    }
    if let Some(kept) = &mut run.outcome.kept {
        kept.approved_by = Some(by.login.clone());
    }
    run.apply(&RunInput::Released, app.clock.now())?;
    store::runs::save(tx, &run).await?;
    report::report(app, tx, &run, Urgency::State).await?;
    Ok(())
}

/// The semantic key: source, comment, normalised command and which repetition of it.
fn run_key(source: Source, node_id: &str, normalised: &str, occurrence: u32) -> String {
    let hash = hex::encode(Sha256::digest(normalised.as_bytes()));
    format!("{}:{node_id}:{hash}:{occurrence}", source.as_str())
}

fn origin(comment: &Comment) -> Origin {
    Origin {
        surface: comment.surface.clone(),
        comment_id: comment.id,
        node_id: comment.node_id.clone(),
        url: comment.url.clone(),
        written_at: comment.written_at,
        delivery: String::new(),
    }
}

async fn put_reply(
    app: &App,
    tx: &mut Tx,
    repo: &Repo,
    comment: &Comment,
    key: String,
    text: &str,
) -> Result<(), EngineError> {
    let marker = app.signer.marker(&hex::encode(Sha256::digest(key.as_bytes())), "reply");
    let thread = match &comment.surface {
        Surface::ReviewComment { thread, .. } => Some(*thread),
        _ => None,
    };
    let body = format!("{text}\n\n{marker}");
    let own = OwnComment { number: comment.subject.number, thread, marker, body };
    let owner = Owner { run: None, task: None, remote: app.forge.name(), repo };
    report::put(app, tx, &owner, key, EffectPriority::Final, Payload::Comment(own)).await?;
    Ok(())
}

/// One line of the audit log.
pub(super) async fn audit(
    app: &App,
    tx: &mut Tx,
    actor: Option<&Actor>,
    action: &str,
    subject: &str,
    detail: &str,
) -> Result<(), EngineError> {
    let actor = actor.map_or_else(|| "system".to_owned(), |actor| format!("{} ({})", actor.login, actor.id));
    audit_by(app, tx, &actor, action, subject, detail).await
}

/// The same for an actor that is no forge user.
pub(super) async fn audit_by(
    app: &App,
    tx: &mut Tx,
    actor: &str,
    action: &str,
    subject: &str,
    detail: &str,
) -> Result<(), EngineError> {
    let entry = store::audit::Entry {
        id: app.ids.next(IdKind::Effect),
        at: app.clock.now(),
        actor: app.secrets.mask(actor),
        action: action.to_owned(),
        subject: app.secrets.mask(subject),
        detail: app.secrets.mask(detail),
    };
    store::audit::append(tx, &entry).await?;
    Ok(())
}

/// When the next pending delivery is due.
pub async fn next_due(app: &App) -> Result<Option<DateTime<Utc>>, EngineError> {
    Ok(store::inbox::next_due(&app.store).await?)
}

async fn give_up(app: &App, id: &InboxId, why: &str) -> Result<(), EngineError> {
    let mut tx = app.store.write_tx().await?;
    store::inbox::finish(&mut tx, id, InboxState::Failed, why).await?;
    tx.commit().await?;
    Ok(())
}
