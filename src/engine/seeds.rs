//! What was pushed is prepared ahead: the mirror is fetched and the seed of the new head built, so that a run finds both.
//!
//! Nothing depends on it. Each node that works reads the pushes of the inbox for itself, since its mirrors are its own; only
//! the newest push of a branch counts, and one repository at a time is worked on.

use super::EngineError;
use super::execute;
use crate::app::App;
use crate::domain::event::{Decoded, EventKind, Repo};
use crate::domain::ids::{BranchName, InboxId, Sha};
use crate::git::SeedSpec;
use crate::intake;
use crate::remote::GitPermission;
use crate::store;
use chrono::{DateTime, Duration, Utc};
use std::collections::{BTreeMap, BTreeSet};

/// Pushes that one look takes up; the next one goes on from there.
const BATCH: i64 = 200;
/// The first look goes so far back: what was pushed while this process was away.
const FIRST_LOOK: Duration = Duration::hours(1);
/// Each look begins so long before the newest push of the last one: a delivery is stored a moment after it is stamped.
const OVERLAP: Duration = Duration::seconds(10);

/// What this process has seen of the pushes.
#[derive(Debug, Default)]
pub struct Seen {
    until: Option<DateTime<Utc>>,
    /// Those of the overlap.
    ids: BTreeSet<InboxId>,
}

/// Prepares what was pushed since the last look. Gives the number of commits that are there now.
pub async fn tick(app: &App, seen: &mut Seen) -> Result<usize, EngineError> {
    let since = seen.until.unwrap_or_else(|| app.clock.now() - FIRST_LOOK) - OVERLAP;
    let found = store::pushes::since(&app.store, since, BATCH).await?;
    let mut newest: BTreeMap<(i64, String), (Repo, Sha)> = BTreeMap::new();
    for push in found.iter().filter(|push| !seen.ids.contains(&push.id)) {
        let Some((repo, branch, head)) = pushed(app, &push.id).await? else { continue };
        newest.insert((repo.id, branch.as_str().to_owned()), (repo, head));
    }
    let mut prepared = 0;
    for (repo, head) in newest.into_values() {
        match prepare(app, &repo, &head).await {
            Ok(()) => prepared += 1,
            Err(error) => {
                tracing::warn!(repo = %repo.name, head = %head, error = %error, "a push could not be prepared ahead");
            }
        }
    }
    if let Some(last) = found.last() {
        // A full batch of one moment is left behind, or the looks would stay with it.
        let stuck = found.len() >= usize::try_from(BATCH).unwrap_or(usize::MAX)
            && found.iter().all(|push| seen.ids.contains(&push.id));
        seen.until = Some(if stuck { last.received_at + OVERLAP } else { last.received_at });
        seen.ids = found.into_iter().map(|push| push.id).collect();
    }
    Ok(prepared)
}

/// A push that a run may soon ask for, in a repository that this machine has a mirror of: to the default branch, or to that
/// of an open task.
async fn pushed(app: &App, id: &InboxId) -> Result<Option<(Repo, BranchName, Sha)>, EngineError> {
    let Some(delivery) = store::inbox::get(&app.store, id.as_str()).await? else { return Ok(None) };
    let Decoded::Event(event) = intake::decode(delivery.source, &delivery.event, &delivery.raw) else {
        return Ok(None);
    };
    let (Some(repo), EventKind::Pushed { branch, after: Some(head), is_default }) = (event.repo, event.kind)
    else {
        return Ok(None);
    };
    if !app.git.knows(app.forge.name(), repo.id) {
        return Ok(None);
    }
    let is_wanted = is_default || {
        let open = store::tasks::open_of_repo(&app.store, app.forge.name(), repo.id).await?;
        open.iter().any(|task| task.branch.as_ref() == Some(&branch))
    };
    Ok(is_wanted.then_some((repo, branch, head)))
}

#[tracing::instrument(skip_all, fields(repo = %repo.name, head = %head))]
async fn prepare(app: &App, repo: &Repo, head: &Sha) -> Result<(), EngineError> {
    let access = execute::access_to(app, repo, GitPermission::Read).await?;
    let remote = app.forge.name();
    app.git.ensure(remote, repo.id, &access, std::slice::from_ref(head), None).await?;
    let objects = app.git.mirror_path(remote, repo.id).join("objects");
    let spec = SeedSpec {
        remote,
        repo_id: repo.id,
        start: head,
        objects_inside: app.sandbox.objects_path_inside(&objects),
        owner: app.sandbox.owner(),
    };
    app.git.prepare_ahead(&spec).await?;
    tracing::debug!("prepared ahead");
    Ok(())
}
