//! What a run's state means for its sticky comment, check runs, reactions and comments: effects, put
//! into the transaction that changes the state.

use crate::app::App;
use crate::clock::IdKind;
use crate::domain::effect::{
    CheckRun, CheckStatus, EffectPriority, NewEffect, OWN_BRANCH_PREFIX, OwnComment, Payload, Reaction,
    ReactionTarget,
};
use crate::domain::event::{Repo, Surface};
use crate::domain::ids::{EffectId, RunId, Sha, TaskId};
use crate::domain::run::{Origin, Run, RunState};
use crate::domain::wording::{self, RunLinks};
use crate::store::{self, StoreError, Tx};
use chrono::Duration;

/// The name of our check runs.
pub const CHECK_NAME: &str = "zeblit";

/// How urgent a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The first sticky comment and the queued check.
    First,
    /// The state changed.
    State,
    /// Time passed; only the newest text matters.
    Progress,
}

/// Whose effect it is.
#[derive(Debug, Clone)]
pub struct Owner<'a> {
    pub run: Option<&'a RunId>,
    pub task: Option<&'a TaskId>,
    pub remote: &'a str,
    pub repo: &'a Repo,
}

impl<'a> Owner<'a> {
    pub fn of(run: &'a Run) -> Self {
        Self { run: Some(&run.id), task: Some(&run.task), remote: &run.remote, repo: &run.repo }
    }
}

/// Puts one effect.
pub async fn put(
    app: &App,
    tx: &mut Tx,
    owner: &Owner<'_>,
    key: String,
    priority: EffectPriority,
    payload: Payload,
) -> Result<(), StoreError> {
    let effect = NewEffect {
        run: owner.run.cloned(),
        task: owner.task.cloned(),
        remote: owner.remote.to_owned(),
        repo: owner.repo.clone(),
        key,
        priority,
        payload,
        not_before: None,
    };
    let id = EffectId::new(app.ids.next(IdKind::Effect));
    store::effects::put(tx, &id, &effect, app.clock.now()).await
}

/// The links that the texts of a run need.
pub fn links(app: &App, run: &Run, paused: Option<String>) -> RunLinks {
    let web = app.forge.web_url().trim_end_matches('/');
    let host = url::Url::parse(web).ok().and_then(|url| url.host_str().map(str::to_owned));
    let requester = &run.spec.requester;
    RunLinks {
        run_page: run_page(app, run),
        repo_url: format!("{web}/{}", run.repo.name),
        paused,
        co_author: format!(
            "{} <{}+{}@users.noreply.{}>",
            requester.login,
            requester.id,
            requester.login,
            host.unwrap_or_else(|| "localhost".into())
        ),
    }
}

/// The signed link to the run page, when pages are on and the server knows its own address.
pub fn run_page(app: &App, run: &Run) -> Option<String> {
    if app.config.server.run_page == crate::config::RunPage::Off {
        return None;
    }
    let base = app.config.server.public_url.as_deref()?.trim_end_matches('/');
    // Counted from the run's creation, so that the link in an edited comment stays the same.
    let expires = (run.created_at + Duration::days(app.config.server.run_link_days)).timestamp();
    Some(format!("{base}{}", app.signer.run_path(run.id.as_str(), expires)))
}

/// Key of the sticky comment of a run.
pub fn sticky_key(run: &RunId) -> String {
    format!("sticky:{run}")
}

/// Plans sticky comment and check runs as the run is now; for an ended run also reaction and last comment.
pub async fn report(app: &App, tx: &mut Tx, run: &Run, urgency: Urgency) -> Result<(), StoreError> {
    let paused = store::settings::get(&app.store, store::settings::PAUSED).await?;
    let links = links(app, run, paused);
    let now = app.clock.now();
    // Nothing goes on by itself from here.
    let ended = run.state.is_terminal() || run.state == RunState::Held;
    let priority = match urgency {
        _ if ended => EffectPriority::Final,
        Urgency::First => EffectPriority::FirstSticky,
        Urgency::State | Urgency::Progress => EffectPriority::Progress,
    };
    let owner = Owner::of(run);
    let marker = app.signer.marker(run.id.as_str(), "sticky");
    let body = format!("{}\n\n{marker}", wording::sticky(run, &links, now));
    let comment = OwnComment { number: run.spec.subject.number, thread: None, marker, body };
    put(app, tx, &owner, sticky_key(&run.id), priority, Payload::Sticky(comment)).await?;
    for sha in check_shas(run) {
        let check = check(run, &links, sha, now);
        let priority = if ended { EffectPriority::Final } else { EffectPriority::Check };
        // Between state changes the check stays as it is: its page shows the rest.
        if urgency != Urgency::Progress {
            put(
                app,
                tx,
                &owner,
                format!("check:{}:{CHECK_NAME}:{sha}", run.id),
                priority,
                Payload::Check(check),
            )
            .await?;
        }
    }
    if run.spec.config.state_labels {
        let number = run.spec.subject.number;
        let payload = Payload::StateLabel { number, name: Some(wording::state_label(run).to_owned()) };
        // One effect for each subject: an older state never overtakes a newer one.
        let key = format!("state-label:{}:{}:{number}", run.remote, run.repo.id);
        put(app, tx, &owner, key, priority, payload).await?;
    }
    if ended {
        last_words(app, tx, run, &owner).await?;
    }
    Ok(())
}

/// Asks the requester for a review of the run's new pull request, where the repository wants that and it is no draft.
pub async fn ask_review(app: &App, tx: &mut Tx, run: &Run, number: i64) -> Result<(), StoreError> {
    if !run.spec.config.request_review || !run.outcome.no_draft {
        return Ok(());
    }
    let payload = Payload::Reviewers { number, logins: vec![run.spec.requester.login.clone()] };
    let key = format!("reviewers:{}:{}:{number}", run.remote, run.repo.id);
    put(app, tx, &Owner::of(run), key, EffectPriority::Check, payload).await
}

/// Deletes the branch of a task whose pull request was closed, where the repository wants that. A branch in a fork stays.
pub async fn delete_branch(app: &App, tx: &mut Tx, run: &Run, number: i64) -> Result<(), StoreError> {
    let (Some(branch), Some(head)) = (&run.outcome.branch, &run.outcome.head) else { return Ok(()) };
    let ours = branch.as_str().starts_with(OWN_BRANCH_PREFIX) && run.spec.fork.is_none();
    if !run.spec.config.delete_branch || !ours || run.outcome.pull_number != Some(number) {
        return Ok(());
    }
    let payload = Payload::DeleteBranch { branch: branch.clone(), expected: head.clone() };
    let key = format!("delete-branch:{}:{}:{branch}", run.remote, run.repo.id);
    put(app, tx, &Owner::of(run), key, EffectPriority::Progress, payload).await
}

/// Commits that carry the run's check: the pinned head of a pull request, and what was pushed.
fn check_shas(run: &Run) -> Vec<&Sha> {
    let mut shas = Vec::new();
    if let Some(pull) = &run.spec.pull {
        shas.push(&pull.head_sha);
    }
    // What lies in our fork is known to the repository once the pull request is there.
    let reachable = run.spec.fork.is_none() || run.spec.pull.is_some() || run.outcome.pull_number.is_some();
    if let Some(head) = &run.outcome.head
        && reachable
        && !shas.contains(&head)
    {
        shas.push(head);
    }
    shas
}

fn check(run: &Run, links: &RunLinks, sha: &Sha, now: chrono::DateTime<chrono::Utc>) -> CheckRun {
    let (status, conclusion) = wording::check_state(run);
    CheckRun {
        name: CHECK_NAME.into(),
        head_sha: sha.clone(),
        external_id: format!("{}:{CHECK_NAME}", run.id),
        status,
        conclusion,
        title: wording::headline(run, links, now),
        summary: wording::check_summary(run, links, now),
        details_url: links.run_page.clone(),
        started_at: run.started_at,
        completed_at: if status == CheckStatus::Completed { run.finished_at } else { None },
        annotations: Vec::new(),
    }
}

async fn last_words(app: &App, tx: &mut Tx, run: &Run, owner: &Owner<'_>) -> Result<(), StoreError> {
    if let Some(origin) = run.spec.origin.as_ref().filter(|_| run.state.is_terminal()) {
        let reaction = match run.state {
            RunState::Succeeded => Reaction::Rocket,
            RunState::Nothing => Reaction::PlusOne,
            _ => Reaction::Confused,
        };
        let key = format!("react:{}:end:{}", run.id, reaction.rest_name());
        let payload =
            Payload::Reaction { target: reaction_target(origin, run.spec.subject.number), reaction };
        put(app, tx, owner, key, EffectPriority::Final, payload).await?;
    }
    if let Some(text) = wording::final_comment(run) {
        // A change that waits asks for a hand now; how its run ends is told later, in a comment of its own.
        let purpose = if run.state == RunState::Held { "held" } else { "final" };
        let marker = app.signer.marker(run.id.as_str(), purpose);
        let thread = run.spec.origin.as_ref().and_then(|origin| match &origin.surface {
            Surface::ReviewComment { thread, .. } if run.state == RunState::Succeeded => Some(*thread),
            _ => None,
        });
        let body = format!("{text}\n\n{marker}");
        let comment = OwnComment { number: run.spec.subject.number, thread, marker, body };
        let key = format!("{purpose}:{}", run.id);
        put(app, tx, owner, key, EffectPriority::Final, Payload::Comment(comment)).await?;
    }
    Ok(())
}

/// What a reaction to the asking comment is put on.
pub fn reaction_target(origin: &Origin, number: i64) -> ReactionTarget {
    match &origin.surface {
        Surface::Conversation => ReactionTarget::Comment { id: origin.comment_id },
        Surface::Opening | Surface::Label { .. } => ReactionTarget::Subject { number },
        Surface::ReviewComment { .. } => ReactionTarget::ReviewComment { id: origin.comment_id },
        Surface::Review => ReactionTarget::Review { node_id: origin.node_id.clone() },
    }
}
