//! Going on with the conversation of the run before: its session is put back below HOME, and the agent's program told to
//! resume it. Where that cannot be, the run begins anew with a summary, and its report says so.

use super::EngineError;
use crate::agent::AdapterKind;
use crate::agent::adapter::resume;
use crate::agent::prompt::Resumed;
use crate::app::App;
use crate::domain::ids::RunId;
use crate::domain::run::{Progress, Run, SetupState};
use crate::domain::wording;
use crate::sandbox::extras;
use crate::sandbox::{Polled, Status};
use crate::store;

/// A session that can be gone on with.
pub(super) struct Session {
    pub id: String,
    /// Path below HOME, bytes.
    pub files: Vec<(String, Vec<u8>)>,
    pub resumed: Resumed,
    pub previous: RunId,
}

/// What an agent starts with.
pub(super) enum Start {
    /// As if there were nothing before, or with a summary of it.
    Anew,
    /// The same, though going on was meant; the note says why.
    Instead(String),
    Session(Box<Session>),
}

/// Patterns of the session's files that are kept of an agent.
pub(super) fn patterns(app: &App, adapter: AdapterKind) -> Vec<String> {
    if app.config.retention.sessions_days == 0 {
        return Vec::new();
    }
    resume::session_patterns(adapter).iter().map(|pattern| (*pattern).to_owned()).collect()
}

/// How the run's agent starts.
pub(super) async fn start(app: &App, run: &Run, adapter: AdapterKind) -> Result<Start, EngineError> {
    // It was interrupted, and workspace and HOME are as its agent left them.
    if run.progress.again.is_some()
        && !run.progress.no_resume
        && let Some(id) = run.progress.session.clone().filter(|id| resume::is_session_id(adapter, id))
    {
        let resumed = Resumed {
            since: run.started_at.unwrap_or(run.created_at),
            subject_known: true,
            verdict: String::new(),
            kept_workspace: true,
        };
        let previous = run.id.clone();
        return Ok(Start::Session(Box::new(Session { id, files: Vec::new(), resumed, previous })));
    }
    let Some(previous) = run.spec.previous.as_ref().filter(|_| run.spec.resume) else {
        return Ok(Start::Anew);
    };
    let Some(previous) = store::runs::get(&app.store, previous).await? else { return Ok(Start::Anew) };
    let id = previous.progress.session.clone().filter(|id| resume::is_session_id(adapter, id));
    let Some(id) = id.filter(|_| run.spec.can_resume(&previous.spec)) else { return Ok(Start::Anew) };
    if run.progress.no_resume {
        return Ok(Start::Instead(wording::session_refused()));
    }
    let kept = store::artifacts::get(&app.store, &previous.id, store::artifacts::SESSION).await?;
    // Checked when it was stored, and here again.
    let files: Vec<(String, Vec<u8>)> = kept
        .and_then(|bytes| extras::read(&bytes).ok())
        .map(|kept| kept.session)
        .unwrap_or_default()
        .into_iter()
        .filter(|file| resume::is_session_file(adapter, &id, &file.path))
        .map(|file| (file.path, file.bytes))
        .collect();
    if files.is_empty() {
        return Ok(Start::Instead(wording::session_missing()));
    }
    let written = previous.spec.origin.as_ref().map_or(previous.created_at, |origin| origin.written_at);
    let (now, then) = (&run.spec.subject, &previous.spec.subject);
    let resumed = Resumed {
        since: written,
        subject_known: now.title == then.title && now.body == then.body,
        verdict: wording::verdict(&previous),
        kept_workspace: false,
    };
    Ok(Start::Session(Box::new(Session { id, files, resumed, previous: previous.id })))
}

/// Whether the agent of a resumed run did not go on with its session: its program began another one, or ended with an
/// error before it asked the model for anything.
pub(super) async fn failed(app: &App, run: &Run, polled: &Polled) -> Result<bool, EngineError> {
    if run.progress.resumed.is_none() {
        return Ok(false);
    }
    if run.progress.session_lost {
        return Ok(true);
    }
    let gave_up = matches!(polled.status, Status::Exited { out_of_memory: false, .. })
        && polled.lines.is_empty()
        && run.progress.exit_code.is_some_and(|code| code != 0)
        && app.broker.over_budget(&run.id).is_none();
    Ok(gave_up && store::ledger::totals(&app.store, &run.id).await?.requests == 0)
}

/// The progress of a run whose agent is started once more, without a session.
pub(super) fn forget(progress: &mut Progress) {
    *progress = Progress {
        phase: progress.phase,
        peak: progress.peak,
        cost_micros: progress.cost_micros,
        tokens: progress.tokens,
        tool_calls: progress.tool_calls,
        warnings: std::mem::take(&mut progress.warnings),
        start: progress.start.take(),
        // What the setup left in the workspace may have been touched: it runs again.
        setup: SetupState::Pending,
        no_resume: true,
        ..Progress::default()
    };
}
