//! Follows a run from its comment to its last effect, and shows each step as it happens.

use super::machine::Machine;
use super::screen::{Screen, Style, without_html_comments};
use crate::domain::effect::{EffectState, Payload};
use crate::domain::event::Repo;
use crate::domain::ids::RunId;
use crate::domain::run::{LogLine, Phase, Run, RunState};
use crate::domain::wording;
use crate::queue::Topic;
use crate::remote::Forge;
use crate::store;
use anyhow::bail;
use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

/// Between two looks at the database, when nothing wakes us.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// Log chunks read at one time.
const CHUNKS: i64 = 50;

/// After the run has ended: until its last comment, check and reaction must be there.
const SETTLE_TIME: Duration = Duration::from_secs(30);

/// Comments of a thread that are looked at for an answer without a run.
const THREAD: usize = 20;

/// Follows the run that the comment `comment_id` of issue or pull request `number` asks for, until it has ended and
/// everything it had to report is reported.
pub async fn follow<W: Write>(
    machine: &Machine,
    screen: &mut Screen<W>,
    repo: &Repo,
    number: i64,
    comment_id: i64,
    deadline: Instant,
) -> anyhow::Result<Run> {
    let run = run_of_comment(machine, screen, repo, number, comment_id, deadline).await?;
    let mut follower = Follower { machine, screen, id: run, chunk: 0, state: None, phase: None };
    let run = loop {
        let Some(run) = follower.look().await? else { bail!("the run vanished from the database") };
        if run.state.is_terminal() {
            break run;
        }
        late(machine, deadline, || format!("the run is still {}", run.state.as_str()))?;
        machine.app.wakeup.wait(Topic::Logs, LOOK_EVERY).await;
    };
    // Lines that were stored together with the end.
    follower.logs().await?;
    settle(machine, &run).await?;
    Ok(run)
}

fn late(machine: &Machine, deadline: Instant, what: impl FnOnce() -> String) -> anyhow::Result<()> {
    if Instant::now() >= deadline {
        bail!("the time is up: {}", what());
    }
    if machine.has_ended() {
        bail!("the server stopped by itself: {}", what());
    }
    Ok(())
}

/// The run of a comment. A comment that gets an answer of ours and no run was refused: that answer is the error.
async fn run_of_comment<W: Write>(
    machine: &Machine,
    screen: &mut Screen<W>,
    repo: &Repo,
    number: i64,
    comment_id: i64,
    deadline: Instant,
) -> anyhow::Result<RunId> {
    let filter = store::runs::Filter {
        repo: Some(repo.name.as_str().to_owned()),
        limit: 20,
        ..store::runs::Filter::default()
    };
    loop {
        let runs = store::runs::list(&machine.app.store, &filter).await?;
        let asked =
            |run: &&Run| run.spec.origin.as_ref().is_some_and(|origin| origin.comment_id == comment_id);
        if let Some(run) = runs.iter().find(asked) {
            let agent = &run.spec.agent;
            screen.step(Style::Plain, &format!("run {} for agent {agent}", run.id.short()));
            return Ok(run.id.clone());
        }
        let thread = machine.forge.thread(repo, number, THREAD).await?;
        let asked_at = thread.iter().rposition(|comment| !comment.own);
        let answer = thread.iter().skip(asked_at.map_or(0, |at| at + 1)).find(|comment| comment.own);
        if let Some(answer) = answer {
            // It may be the sticky comment of a run that was made between the two looks.
            let runs = store::runs::list(&machine.app.store, &filter).await?;
            if !runs.iter().any(|run| asked(&run)) {
                bail!("the command was refused: {}", without_html_comments(&answer.body).trim());
            }
            continue;
        }
        late(machine, deadline, || "the command led to no run".to_owned())?;
        machine.app.wakeup.wait(Topic::Runs, LOOK_EVERY).await;
    }
}

struct Follower<'a, W: Write> {
    machine: &'a Machine,
    screen: &'a mut Screen<W>,
    id: RunId,
    chunk: i64,
    state: Option<RunState>,
    phase: Option<Phase>,
}

impl<W: Write> Follower<'_, W> {
    async fn look(&mut self) -> anyhow::Result<Option<Run>> {
        let Some(run) = store::runs::get(&self.machine.app.store, &self.id).await? else { return Ok(None) };
        let phase = wording::current_phase(&run);
        // What the agent said comes after the line that it began, and before what came after it.
        if phase > Phase::Agent {
            self.logs().await?;
        }
        if self.state != Some(run.state) || self.phase != Some(phase) {
            if let Some(text) = step_text(&run, phase, self.phase) {
                self.screen.step(Style::Plain, &text);
            }
            self.state = Some(run.state);
            self.phase = Some(phase);
        }
        self.logs().await?;
        Ok(Some(run))
    }

    async fn logs(&mut self) -> anyhow::Result<()> {
        loop {
            let chunks = store::logs::read(&self.machine.app.store, &self.id, self.chunk, CHUNKS).await?;
            let Some(last) = chunks.last() else { return Ok(()) };
            self.chunk = last.seq;
            for line in chunks.iter().flat_map(|chunk| chunk.text.lines()) {
                if let Ok(line) = serde_json::from_str::<LogLine>(line) {
                    self.screen.log(&line);
                }
            }
        }
    }
}

/// The words of a step; `None` when it says nothing new.
fn step_text(run: &Run, phase: Phase, before: Option<Phase>) -> Option<String> {
    if run.state == RunState::Queued {
        let place = run.progress.position.map(|position| format!(", position {position}"));
        return Some(format!("queued{}", place.unwrap_or_default()));
    }
    if run.state.is_terminal() || before == Some(phase) {
        return None;
    }
    let text = match phase {
        Phase::Queue => "claimed",
        Phase::Clone => "clone: mirror and workspace at the pinned commit",
        Phase::Sandbox => "sandbox: a fresh one for this run",
        Phase::Setup => "setup",
        Phase::Agent => "agent",
        Phase::Check => "check: import the bundle, look at every change",
        Phase::Push => "push",
        Phase::Pull => "pull request",
    };
    Some(text.to_owned())
}

/// Waits until every effect of the run is confirmed (or refused for good: then that is said).
async fn settle(machine: &Machine, run: &Run) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_TIME;
    loop {
        let effects = store::effects::of_run(&machine.app.store, &run.id).await?;
        let open: BTreeSet<&str> = effects
            .iter()
            .filter(|effect| !matches!(effect.state, EffectState::Confirmed | EffectState::Failed))
            .map(|effect| effect.payload.kind())
            .collect();
        if open.is_empty() {
            let failed = effects.iter().find(|effect| {
                effect.state == EffectState::Failed && !matches!(effect.payload, Payload::Minimise { .. })
            });
            if let Some(effect) = failed {
                bail!(
                    "the forge refused the {}: {}",
                    effect.payload.kind(),
                    effect.last_error.as_deref().unwrap_or("no reason given")
                );
            }
            return Ok(());
        }
        late(machine, deadline, || format!("not reported within {} s: {open:?}", SETTLE_TIME.as_secs()))?;
        machine.app.wakeup.wait(Topic::Logs, LOOK_EVERY).await;
    }
}

/// The end of a run in a few words.
pub fn ending(run: &Run) -> String {
    let outcome = &run.outcome;
    let what = match run.state {
        RunState::Succeeded => "done".to_owned(),
        RunState::Nothing => "the agent ended without changing anything".to_owned(),
        RunState::NeedsInput => {
            format!(
                "the agent asks: {}",
                outcome.question.as_ref().map_or("", |question| question.text.as_str())
            )
        }
        RunState::Cancelled => "cancelled".to_owned(),
        RunState::Failed => format!("failed ({})", outcome.class.map_or("internal", |class| class.name())),
        other => other.as_str().to_owned(),
    };
    let reason = outcome.reason.trim();
    if reason.is_empty() { what } else { format!("{what}: {reason}") }
}
