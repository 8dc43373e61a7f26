//! What an agent is told besides the request: the conversation before the command with the roles of those who wrote it,
//! attached files, what the checks of the commit say, and the run before this one.
//!
//! Everything is asked for at once and within a time limit: only the conversation may keep a run from starting.

use super::EngineError;
use crate::agent::prompt::{Attached, AttachedFile, Checks, Message, PromptContext};
use crate::app::App;
use crate::domain::attachment::{self, Kind, Link};
use crate::domain::ci::{self, FailedCheck};
use crate::domain::event::{Actor, Decoded, EventKind};
use crate::domain::policy::Role;
use crate::domain::run::Run;
use crate::domain::{sanitize, wording};
use crate::intake;
use crate::remote::{RemoteError, ThreadComment};
use crate::store;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

/// Comments of the conversation that go into a prompt, newest.
const MAX_MESSAGES: usize = 50;
/// People whose role is asked for; the others count as strangers.
const MAX_AUTHORS: usize = 20;
/// Requests to the forge at one time, of each kind.
const AT_ONCE: usize = 6;
/// Time for the roles, for the checks and for the files. A start waits for the longest of them.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of an attached text that an agent gets.
const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Where the checks' output lies below HOME.
const CHECKS_FILE: &str = "context/ci.txt";

/// What was found for one start.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub context: PromptContext,
    /// Paths below HOME, all made by us.
    pub files: Vec<(String, Vec<u8>)>,
    /// For the run's log: what an agent goes without, and why.
    pub notes: Vec<String>,
}

/// A link to a file, and whose it is.
struct Found {
    link: Link,
    author: Actor,
    place: &'static str,
}

/// `home`: where HOME is inside. `for_agent`: a recipe reads no prompt, so that nothing is fetched for it.
#[tracing::instrument(level = "debug", skip_all)]
pub(super) async fn gather(
    app: &App,
    run: &Run,
    home: &Path,
    for_agent: bool,
) -> Result<Gathered, EngineError> {
    let trigger = run.spec.origin.as_ref().map_or(run.created_at, |origin| origin.written_at);
    let previous = match &run.spec.previous {
        Some(id) => store::runs::get(&app.store, id).await?.map(|previous| summary_of(&previous)),
        None => None,
    };
    let mut gathered = Gathered::default();
    gathered.context.previous = previous;
    gathered.context.home = home.to_string_lossy().into_owned();
    let asked = if for_agent { trigger_body(app, run).await? } else { None };
    let thread = async {
        let comments = app.forge.thread(&run.repo, run.spec.subject.number, MAX_MESSAGES).await?;
        let thread = Thread::before(comments, trigger);
        if !for_agent {
            return Ok((thread, HashSet::new(), Files::default()));
        }
        let found = attachments(app, run, asked.as_deref(), &thread.kept);
        let (trusted, files) = tokio::join!(writers(app, run, &thread.kept), fetch_all(app, run, found));
        Ok::<_, EngineError>((thread, trusted, files))
    };
    let ((thread, trusted, files), checks) = if for_agent {
        let (told, checks) = tokio::join!(thread, failed_checks(app, run));
        (told?, checks)
    } else {
        (thread.await?, Ok(None))
    };
    let context = &mut gathered.context;
    context.asked = asked.filter(|body| says_more(body, &run.spec.text));
    context.subject_trusted = trusted.contains(&run.spec.subject.author.id);
    context.edited_later = thread.edited_later;
    context.messages = thread.kept.into_iter().map(|comment| message(comment, &trusted)).collect();
    for mut attached in files.attached {
        if let Err(reason) = &attached.file {
            gathered.notes.push(format!("attachment left out: {}: {reason}", attached.url));
        }
        attached.trusted = trusted.contains(&files.authors.get(&attached.url).copied().unwrap_or_default());
        context.attachments.push(attached);
    }
    gathered.files = files.bytes;
    match checks {
        Ok(Some(checks)) => {
            gathered.files.push((CHECKS_FILE.to_owned(), checks.text.clone().into_bytes()));
            context.checks = Some(checks);
        }
        Ok(None) => {}
        Err(reason) => gathered.notes.push(format!("the checks of the commit are left out: {reason}")),
    }
    for note in &gathered.notes {
        tracing::info!(run.id = %run.id, note, "the agent goes without something");
    }
    Ok(gathered)
}

/// Whether a comment says something beside its commands: they end with their paragraph.
fn says_more(body: &str, instruction: &str) -> bool {
    body.lines().map(str::trim).any(|line| {
        let is_command = line.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("/zeblit"));
        !line.is_empty() && !is_command && !instruction.contains(line)
    })
}

/// What stood there, unedited, before the command was written.
struct Thread {
    kept: Vec<ThreadComment>,
    edited_later: usize,
}

impl Thread {
    fn before(comments: Vec<ThreadComment>, trigger: DateTime<Utc>) -> Self {
        let others = comments.into_iter().filter(|comment| !comment.own && comment.created_at < trigger);
        let (kept, edited): (Vec<_>, Vec<_>) = others.partition(|comment| comment.updated_at < trigger);
        Self { kept, edited_later: edited.len() }
    }
}

fn message(comment: ThreadComment, trusted: &HashSet<i64>) -> Message {
    Message {
        trusted: trusted.contains(&comment.author.id),
        author: comment.author.login,
        at: comment.created_at,
        place: comment.path.map(|path| match comment.line {
            Some(line) => format!("{path}:{line}"),
            None => path,
        }),
        body: comment.body,
    }
}

/// The whole comment that asked, as it was delivered: what it says beside the command may show files.
async fn trigger_body(app: &App, run: &Run) -> Result<Option<String>, EngineError> {
    let Some(origin) = &run.spec.origin else { return Ok(None) };
    let Some(delivery) = store::inbox::get(&app.store, &origin.delivery).await? else { return Ok(None) };
    Ok(match intake::decode(delivery.source, &delivery.event, &delivery.raw) {
        Decoded::Event(event) => match event.kind {
            EventKind::Comment(comment) if comment.id == origin.comment_id => Some(comment.body),
            _ => None,
        },
        _ => None,
    })
}

// ---------------------------------------------------------------- roles

/// Who of those that wrote something may write to the repository now. Silence of the forge makes nobody trusted, and
/// what a payload says of an author counts for nothing.
async fn writers(app: &App, run: &Run, comments: &[ThreadComment]) -> HashSet<i64> {
    let mut authors: Vec<Actor> = Vec::new();
    let newest_first = comments.iter().rev().map(|comment| &comment.author);
    for author in [&run.spec.requester, &run.spec.subject.author].into_iter().chain(newest_first) {
        if authors.len() < MAX_AUTHORS && authors.iter().all(|known| known.id != author.id) {
            authors.push(author.clone());
        }
    }
    let mut trusted = HashSet::new();
    let asked = futures_util::stream::iter(authors)
        .map(|author| async move {
            match app.forge.role_of(&run.repo, &author).await {
                Ok(role) => (role >= Role::Write).then_some(author.id),
                Err(error) => {
                    tracing::warn!(run.id = %run.id, author = author.id, %error, "an author's role is not known");
                    None
                }
            }
        })
        .buffer_unordered(AT_ONCE)
        .for_each(|author| {
            trusted.extend(author);
            std::future::ready(())
        });
    // Whoever was found in time is.
    let _late = tokio::time::timeout(PATIENCE, asked).await;
    trusted
}

// ---------------------------------------------------------------- attachments

/// Links to files, the most telling first: in the request, in the issue or pull request, in the newest messages.
fn attachments(app: &App, run: &Run, asked: Option<&str>, comments: &[ThreadComment]) -> Vec<Found> {
    if app.config.inputs.attachments == 0 {
        return Vec::new();
    }
    let spec = &run.spec;
    let subject = match spec.subject.kind {
        crate::domain::event::SubjectKind::Issue => "the issue",
        crate::domain::event::SubjectKind::PullRequest => "the pull request",
    };
    let base = app.forge.uploads_url();
    let mut found: Vec<Found> = Vec::new();
    let mut add = |text: &str, author: &Actor, place| {
        for link in attachment::links(text, base) {
            if found.iter().all(|known| known.link.url != link.url) {
                found.push(Found { link, author: author.clone(), place });
            }
        }
    };
    add(asked.unwrap_or(&spec.text), &spec.requester, "the request");
    add(&spec.subject.body, &spec.subject.author, subject);
    for comment in comments.iter().rev() {
        add(&comment.body, &comment.author, "a message");
    }
    found
}

#[derive(Default)]
struct Files {
    attached: Vec<Attached>,
    /// Author by address.
    authors: HashMap<String, i64>,
    bytes: Vec<(String, Vec<u8>)>,
}

/// Fetches the first files, looks at what they are, and gives each its name.
async fn fetch_all(app: &App, run: &Run, found: Vec<Found>) -> Files {
    let inputs = &app.config.inputs;
    let kib = |kib: i64| usize::try_from(kib).unwrap_or_default().saturating_mul(1024);
    let (most, largest) =
        (usize::try_from(inputs.attachments).unwrap_or_default(), kib(inputs.attachment_kib));
    let mut left = kib(inputs.attachments_kib);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut fetched: Vec<Option<Result<Vec<u8>, String>>> = vec![None; found.len()];
    let links: Vec<(usize, Link)> =
        found.iter().take(most).enumerate().map(|(n, found)| (n, found.link.clone())).collect();
    let asked = futures_util::stream::iter(links)
        .map(|(n, link)| async move { (n, app.forge.attachment(&run.repo, &link, largest).await) })
        .buffer_unordered(AT_ONCE)
        .for_each(|(n, result)| {
            if let Some(place) = fetched.get_mut(n) {
                *place = Some(result.map_err(|error| why(&error)));
            }
            std::future::ready(())
        });
    let _late = tokio::time::timeout_at(deadline, asked).await;
    let mut files = Files::default();
    for (n, (found, fetched)) in found.into_iter().zip(fetched).enumerate() {
        let file = match fetched {
            _ if n >= most => Err(format!("a run gets at most {most} files")),
            None => Err("the forge did not give it in time".to_owned()),
            Some(Err(reason)) => Err(reason),
            Some(Ok(bytes)) if bytes.len() > left => {
                Err(format!("a run gets at most {} of files", attachment::size(kib(inputs.attachments_kib))))
            }
            Some(Ok(bytes)) => {
                let size = bytes.len();
                prepare(app, bytes).map(|(kind, bytes, cut)| {
                    left -= size;
                    let path = attachment::path(files.bytes.len() + 1, &found.link, kind);
                    files.bytes.push((path.clone(), bytes));
                    AttachedFile { path, kind, bytes: size, cut }
                })
            }
        };
        files.authors.insert(found.link.url.clone(), found.author.id);
        files.attached.push(Attached {
            author: found.author.login,
            trusted: false,
            place: found.place,
            // A signature in it is nobody's to keep.
            url: found.link.url.split('?').next().unwrap_or_default().to_owned(),
            file,
        });
    }
    files
}

/// What of the bytes an agent gets: images as they are, texts without what hides in them.
fn prepare(app: &App, bytes: Vec<u8>) -> Result<(Kind, Vec<u8>, bool), String> {
    let kind = attachment::judge(&bytes).map_err(|refusal| refusal.to_string())?;
    match kind {
        Kind::Image { .. } => Ok((kind, bytes, false)),
        Kind::Text => {
            let cut = bytes.len() > MAX_TEXT_BYTES;
            let text = sanitize::for_file(&String::from_utf8_lossy(&bytes), MAX_TEXT_BYTES);
            Ok((kind, app.secrets.mask(&text).into_bytes(), cut))
        }
    }
}

/// An error of the forge in a few words; its details are in the server's log.
fn why(error: &RemoteError) -> String {
    match error {
        RemoteError::NotFound { .. } | RemoteError::Auth { .. } | RemoteError::Forbidden { .. } => {
            "the forge does not give it to the App".into()
        }
        RemoteError::Refused { detail, .. } => sanitize::one_line(detail, 200),
        RemoteError::RateLimited { .. } => "the forge's rate limit was reached".into(),
        RemoteError::Unavailable { .. }
        | RemoteError::Unclear { .. }
        | RemoteError::Unfinished { .. }
        | RemoteError::Protocol { .. } => {
            tracing::warn!(%error, "the forge did not give what an agent was to get");
            "the forge could not be asked".into()
        }
    }
}

// ---------------------------------------------------------------- checks

/// The failed checks of the pinned commit of a pull request, with the ends of their logs.
async fn failed_checks(app: &App, run: &Run) -> Result<Option<Checks>, String> {
    if run.spec.pull.is_none() {
        return Ok(None);
    }
    let read = async {
        let failed = app.forge.failed_checks(&run.repo, run.start()).await.map_err(|error| why(&error))?;
        if failed.is_empty() {
            return Ok(None);
        }
        let logs = futures_util::future::join_all(failed.iter().enumerate().map(async |(n, check)| {
            match check
                .job
                .filter(|_| failed.iter().take(n).filter(|c| c.job.is_some()).count() < ci::MAX_LOGS)
            {
                Some(job) => end_of_log(app, run, job).await,
                None => None,
            }
        }));
        let logs = logs.await;
        let known: Vec<(FailedCheck, Option<String>)> = failed.into_iter().zip(logs).collect();
        Ok(Some(Checks {
            failed: known.iter().map(|(check, _)| app.secrets.mask(&ci::title(check))).collect(),
            text: app.secrets.mask(&ci::tell(&known)),
            path: CHECKS_FILE.to_owned(),
        }))
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .unwrap_or_else(|_| Err("the forge did not give them in time".into()))
}

async fn end_of_log(app: &App, run: &Run, job: i64) -> Option<String> {
    match app.forge.job_log(&run.repo, job, ci::READ_LOG_BYTES).await {
        Ok(log) => log.map(|log| ci::tail(&String::from_utf8_lossy(&log.bytes), log.whole)),
        Err(error) => {
            tracing::warn!(run.id = %run.id, job, %error, "the log of a check could not be read");
            None
        }
    }
}

fn summary_of(previous: &Run) -> String {
    let outcome = &previous.outcome;
    let mut text = format!(
        "It was asked to {} and ended as \"{}\".",
        previous.spec.verb.name(),
        previous.state.as_str()
    );
    if let Some(question) = &outcome.question {
        text.push_str("\n\n");
        text.push_str(&wording::question_asked(question));
    }
    for part in [&outcome.reason, &outcome.summary] {
        if !part.is_empty() {
            text.push_str("\n\n");
            text.push_str(part);
        }
    }
    if let Some(branch) = &outcome.branch {
        text.push_str(&format!("\n\nIts {} commit(s) are on the branch `{branch}`.", outcome.commits));
    }
    text
}
