//! Jobs for the queue: the rows that a `/zeblit fix` leaves, added, claimed and ended by the functions of the store
//! that the engine calls.

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use zeblit::clock::{Clock, SystemClock};
use zeblit::domain::command::Verb;
use zeblit::domain::event::{Actor, ActorKind, Repo, Subject, SubjectKind};
use zeblit::domain::ids::{BranchName, RepoName, RunId, Sha, TaskId};
use zeblit::domain::repo_config::RepoConfig;
use zeblit::domain::run::{AgentEnd, Publish, Run, RunInput, RunMode, RunSpec};
use zeblit::domain::task::Task;
use zeblit::queue::local::LocalWakeup;
use zeblit::queue::{Topic, Wakeup};
use zeblit::store::runs::{self, Caps, NewRun};
use zeblit::store::{Store, tasks};

const LEASE: Duration = Duration::from_secs(60);
/// Jobs that the one who adds has under way at one time, each in a transaction of its own.
const IN_FLIGHT: usize = 64;
/// Rows that are prepared share a transaction: they are not what is measured.
const PREPARED_AT_ONCE: usize = 500;

/// A queue with its own database and its own wake-ups.
#[derive(Debug, Clone)]
pub struct Queue {
    pub store: Store,
    pub wakeup: Arc<LocalWakeup>,
    pub caps: Caps,
    pub workers: usize,
    /// Repositories that jobs are of, one after the other.
    pub repos: usize,
    /// The first of them.
    pub first_repo: usize,
}

impl Queue {
    pub async fn open(folder: &std::path::Path, workers: usize, repos: usize) -> anyhow::Result<Self> {
        let store = Store::open(&format!("sqlite:{}", folder.join("zeblit.db").display())).await?;
        let most = i64::try_from(workers)?;
        let caps = Caps { global: most, per_owner: most, per_repo: most, per_user: most };
        Ok(Self { store, wakeup: Arc::default(), caps, workers, repos, first_repo: 0 })
    }

    fn rows(&self, name: &str) -> anyhow::Result<(Task, NewRun)> {
        let n: usize = name.rsplit('-').next().and_then(|n| n.parse().ok()).context("the number of a job")?;
        let id = self.first_repo + n % self.repos;
        let number = i64::try_from(n)?;
        let repo = Repo {
            id: i64::try_from(id)?,
            name: RepoName::parse(&format!("bench/repo-{id}"))?,
            installation: 1,
            private: false,
        };
        let now = SystemClock.now();
        let task = Task {
            id: TaskId::new(format!("task_{name}")),
            remote: "github".to_owned(),
            repo: repo.clone(),
            kind: SubjectKind::Issue,
            number,
            title: "The parser drops the last line".to_owned(),
            branch: None,
            pull_number: None,
            pull_url: None,
            created_at: now,
            closed_at: None,
        };
        let run = NewRun {
            id: RunId::new(name),
            task: task.id.clone(),
            key: format!("github:{name}:0"),
            remote: "github".to_owned(),
            repo,
            lock_key: format!("task:{name}"),
            spec: spec(number)?,
            priority: 1,
            created_at: now,
        };
        Ok((task, run))
    }

    /// One job, durable when this returns.
    pub async fn add(&self, name: &str) -> anyhow::Result<()> {
        let (task, run) = self.rows(name)?;
        let mut tx = self.store.write_tx().await?;
        tasks::insert(&mut tx, &task).await?;
        runs::insert(&mut tx, &run).await?;
        tx.commit().await?;
        self.wakeup.notify(Topic::Runs);
        Ok(())
    }

    pub async fn add_all(&self, prefix: &str, count: usize) -> anyhow::Result<()> {
        stream::iter(0..count)
            .map(|n| async move { self.add(&format!("{prefix}-{n}")).await })
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await
    }

    /// Many jobs, not measured; with `ended`, as they are when they have ended.
    pub async fn prepare(&self, prefix: &str, count: usize, ended: bool) -> anyhow::Result<()> {
        for from in (0..count).step_by(PREPARED_AT_ONCE) {
            let mut tx = self.store.write_tx().await?;
            for n in from..count.min(from + PREPARED_AT_ONCE) {
                let (task, run) = self.rows(&format!("{prefix}-{n}"))?;
                tasks::insert(&mut tx, &task).await?;
                runs::insert(&mut tx, &run).await?;
                if ended {
                    let mut run = runs::get_tx(&mut tx, &run.id).await?.context("a run that was inserted")?;
                    run.apply(&RunInput::Claimed, SystemClock.now())?;
                    end(&mut run)?;
                    runs::save(&mut tx, &run).await?;
                    tasks::close(&mut tx, &task.id, SystemClock.now()).await?;
                }
            }
            tx.commit().await?;
        }
        Ok(())
    }

    pub async fn claim(&self, limit: usize) -> anyhow::Result<Vec<Run>> {
        Ok(runs::claim_some(&self.store, "bench:1", SystemClock.now(), LEASE, self.caps, limit).await?)
    }

    /// Claims runs while there is room and gives each to a task of its own, as the engine does, until so many have
    /// ended; tells when each began, in no order.
    pub async fn work(&self, count: usize) -> anyhow::Result<Vec<(String, Instant)>> {
        let mut began = Vec::with_capacity(count);
        let mut workers = JoinSet::new();
        let mut ended = 0;
        while ended < count {
            // All that ended since: those who wrote together end together.
            tokio::task::yield_now().await;
            while let Some(done) = workers.try_join_next() {
                done??;
                ended += 1;
            }
            let room = self.workers - workers.len();
            let runs = if room == 0 { Vec::new() } else { self.claim(room).await? };
            let is_idle = runs.is_empty();
            for run in runs {
                began.push((run.id.to_string(), Instant::now()));
                let store = self.store.clone();
                workers.spawn(finish(store, run));
            }
            if is_idle && ended < count {
                tokio::select! {
                    Some(done) = workers.join_next(), if !workers.is_empty() => {
                        done??;
                        ended += 1;
                    }
                    () = self.wakeup.wait(Topic::Runs, Duration::from_secs(1)), if room > 0 => {}
                }
            }
        }
        ensure!(began.len() == count, "{} runs began, not {count}", began.len());
        Ok(began)
    }
}

/// The worker's part of a job that does nothing: its end, under the fence.
pub async fn finish(store: Store, mut run: Run) -> anyhow::Result<()> {
    end(&mut run)?;
    let mut tx = store.write_tx().await?;
    runs::save(&mut tx, &run).await?;
    tx.commit().await?;
    Ok(())
}

fn end(run: &mut Run) -> anyhow::Result<()> {
    let now = SystemClock.now();
    for input in [
        RunInput::AgentStarted,
        RunInput::AgentGone(AgentEnd::Finished),
        RunInput::Collected,
        RunInput::NothingToDo,
    ] {
        run.apply(&input, now)?;
    }
    ensure!(run.state.is_terminal(), "the run has not ended");
    Ok(())
}

fn spec(number: i64) -> anyhow::Result<RunSpec> {
    let sha = Sha::parse(&"a".repeat(40))?;
    let actor = |id: i64| Actor { id, login: format!("user{id}"), kind: ActorKind::User };
    Ok(RunSpec {
        verb: Verb::Fix,
        text: "Please mend it, and add a test that fails without the change.".to_owned(),
        agent: "claude".to_owned(),
        model: None,
        mode: RunMode::Change,
        requester: actor(number % 97),
        subject: Subject {
            kind: SubjectKind::Issue,
            number,
            title: "The parser drops the last line".to_owned(),
            body: "When a file has no newline at its end, the last line is lost. ".repeat(8),
            author: actor(number % 89),
            url: format!("https://github.com/bench/repo/issues/{number}"),
            open: true,
        },
        origin: None,
        start: sha.clone(),
        base: BranchName::parse("main")?,
        base_sha: sha,
        pull: None,
        push_to: None,
        fork: None,
        publish: Publish::Push,
        image: "zeblit-agent:latest".to_owned(),
        budget_micros: 5_000_000,
        wall_seconds: 1_800,
        config: RepoConfig::default(),
        previous: None,
        resume: false,
        needs: Vec::new(),
    })
}
