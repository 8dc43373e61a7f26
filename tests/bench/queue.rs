//! G6 and G7: the queue beside BullMQ (Redis with `appendfsync always`) and RQ's forking worker.
//!
//! Every job does nothing. Ours is a run with its task: added, claimed with its lease, ended under its fence, each
//! durable. RQ's Redis keeps nothing, which spares it the disk.

use super::Bench;
use super::jobs::Queue;
use super::load::quantile;
use super::peers::{self, Keeps};
use super::report::{Measured, Ratio};
use anyhow::{Context, ensure};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use zeblit::store::runs::Caps;

/// Workers at our side, and at BullMQ's.
const WORKERS: usize = 16;
const CONCURRENCY: &str = "20";
/// Repositories that the jobs are of.
const REPOS: usize = 40;
const OUR_JOBS: usize = 20_000;
const BULLMQ_JOBS: usize = 8_000;
const RQ_JOBS: usize = 60;
/// Jobs of the latency, and the time between two.
const PACED_JOBS: usize = 300;
const PACE: Duration = Duration::from_millis(10);
/// What waits while latency and rate are measured again.
const BACKLOG: usize = 2_000;
const BULLMQ: &str = "BullMQ, AOF always";
const RQ: &str = "RQ, forking worker";

#[derive(Debug, Default)]
struct Latency {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Latency {
    /// In milliseconds.
    fn add(&mut self, mut times: Vec<Duration>) {
        times.sort();
        self.p50.push(quantile(&times, 0.5).as_secs_f64() * 1e3);
        self.p99.push(quantile(&times, 0.99).as_secs_f64() * 1e3);
    }
}

pub fn measure(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut our_rate, mut bullmq_rate, mut rq_rate) = (Vec::new(), Vec::new(), Vec::new());
    let (mut our_drain, mut long_drain, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ours, mut bullmq, mut behind, mut far_behind) =
        (Latency::default(), Latency::default(), Latency::default(), Latency::default());
    for round in 1..=bench.rounds {
        let tell = |what: &str| bench.tell(&format!("queue, round {round}: {what}"));
        if bench.wants("G6") {
            tell("zeblit, jobs a minute");
            let (rate, shared) = runtime.block_on(our_jobs(&bench.fresh("queue-zeblit")?))?;
            our_rate.push(rate);
            commits.push(shared);
            tell("BullMQ, jobs a minute");
            bullmq_rate.push(bullmq_jobs(bench)?);
            tell("RQ, jobs a minute");
            rq_rate.push(rq_jobs(bench)?);
        }
        if bench.wants("G7") {
            tell("zeblit, from enqueued to started");
            ours.add(runtime.block_on(our_latency(&bench.fresh("queue-zeblit")?, 0))?);
            tell("BullMQ, from enqueued to started");
            bullmq.add(bullmq_latency(bench)?);
            tell("zeblit, behind a backlog, and behind ten times that");
            behind.add(runtime.block_on(our_latency(&bench.fresh("queue-zeblit")?, BACKLOG))?);
            far_behind.add(runtime.block_on(our_latency(&bench.fresh("queue-zeblit")?, 10 * BACKLOG))?);
            our_drain.push(runtime.block_on(drain(&bench.fresh("queue-zeblit")?, BACKLOG))?);
            long_drain.push(runtime.block_on(drain(&bench.fresh("queue-zeblit")?, 10 * BACKLOG))?);
        }
    }
    let row = |goal, what: &str, unit, ours: &[f64], peer: &[f64], peer_name, wanted| Measured {
        goal,
        what: what.to_owned(),
        ours: ours.to_vec(),
        peer: peer.to_vec(),
        peer_name,
        unit,
        wanted,
    };
    let mut measured = Vec::new();
    if bench.wants("G6") {
        measured.extend([
            row(
                "G6",
                "durable jobs, enqueued and done",
                "/min",
                &our_rate,
                &bullmq_rate,
                BULLMQ,
                Ratio::AtLeast(3.0),
            ),
            row("G6", "the same", "/min", &our_rate, &rq_rate, RQ, Ratio::AtLeast(500.0)),
            row("G6", "commits for a job (three transactions)", "", &commits, &[], "", Ratio::Told),
        ]);
    }
    if bench.wants("G7") {
        let half = Ratio::AtMost(0.5);
        let flat = Ratio::AtMost(1.3);
        measured.extend([
            row("G7", "enqueued to started, idle, p50", "ms", &ours.p50, &bullmq.p50, BULLMQ, half),
            row("G7", "the same, p99", "ms", &ours.p99, &bullmq.p99, BULLMQ, half),
            row(
                "G7",
                "p50 behind 20 000 runs that have to wait",
                "ms",
                &far_behind.p50,
                &behind.p50,
                "2 000",
                flat,
            ),
            row(
                "G7",
                "p99 behind 20 000 runs that have to wait",
                "ms",
                &far_behind.p99,
                &behind.p99,
                "2 000",
                flat,
            ),
            row(
                "G7",
                "jobs done with 20 000 queued",
                "/min",
                &long_drain,
                &our_drain,
                "2 000",
                Ratio::AtLeast(1.0 / 1.3),
            ),
        ]);
    }
    Ok(measured)
}

fn per_minute(jobs: usize, time: Duration) -> f64 {
    jobs as f64 / time.as_secs_f64() * 60.0
}

/// Jobs a minute from the first one added to the last one done, and commits for each.
async fn our_jobs(folder: &Path) -> anyhow::Result<(f64, f64)> {
    let queue = Queue::open(folder, WORKERS, REPOS).await?;
    let begin = Instant::now();
    let adding = tokio::spawn({
        let queue = queue.clone();
        async move { queue.add_all("job", OUR_JOBS).await }
    });
    queue.work(OUR_JOBS).await?;
    let rate = per_minute(OUR_JOBS, begin.elapsed());
    adding.await??;
    let commits = queue.store.commits() as f64 / OUR_JOBS as f64;
    queue.store.close().await;
    Ok((rate, commits))
}

/// Jobs a minute of so many that are queued already.
async fn drain(folder: &Path, jobs: usize) -> anyhow::Result<f64> {
    let queue = Queue::open(folder, WORKERS, REPOS).await?;
    queue.prepare("job", jobs, false).await?;
    let begin = Instant::now();
    queue.work(jobs).await?;
    let rate = per_minute(jobs, begin.elapsed());
    queue.store.close().await;
    Ok(rate)
}

/// From the call that adds a job until its worker begins, while nothing else can go. `backlog` runs are older and wait
/// for the one live run of their repository.
async fn our_latency(folder: &Path, backlog: usize) -> anyhow::Result<Vec<Duration>> {
    let queue = Queue::open(folder, WORKERS, 1).await?;
    let queue = Queue { caps: Caps { per_repo: 1, ..queue.caps }, ..queue };
    if backlog > 0 {
        queue.prepare("waits", backlog, false).await?;
        ensure!(queue.claim(WORKERS).await?.len() == 1, "one run of the backlog's repository goes");
    }
    let queue = Queue { repos: REPOS, first_repo: 1, ..queue };
    let working = tokio::spawn({
        let queue = queue.clone();
        async move { queue.work(PACED_JOBS).await }
    });
    let mut added = Vec::with_capacity(PACED_JOBS);
    for n in 0..PACED_JOBS {
        tokio::time::sleep(PACE).await;
        let name = format!("job-{n}");
        let begin = Instant::now();
        queue.add(&name).await?;
        added.push((name, begin));
    }
    let began = working.await??;
    queue.store.close().await;
    let times = added.iter().map(|(name, added)| {
        let began = began.iter().find(|(id, _)| id == name).context("a job that never began")?;
        Ok(began.1.duration_since(*added))
    });
    times.collect()
}

/// Runs a program of the peers and reads the numbers that it prints.
fn numbers(command: &mut Command, what: &str) -> anyhow::Result<Vec<f64>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| what.to_owned())?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout)?;
    said.split_whitespace().map(|word| word.parse().with_context(|| format!("{what}: `{word}`"))).collect()
}

fn bullmq(bench: &Bench, jobs: usize, pace: Duration) -> anyhow::Result<Vec<f64>> {
    let redis = peers::redis(&bench.fresh("queue-redis")?, Keeps::Always, None)?;
    let programs = peers::node(bench)?;
    let mut command = Command::new("node");
    command.arg(programs.join("queue.mjs")).env("NODE_ENV", "production");
    command.args([redis.address.port().to_string(), jobs.to_string(), CONCURRENCY.to_owned()]);
    command.arg(pace.as_millis().to_string());
    let numbers = numbers(&mut command, "BullMQ")?;
    redis.stop()?;
    Ok(numbers)
}

fn bullmq_jobs(bench: &Bench) -> anyhow::Result<f64> {
    let took = bullmq(bench, BULLMQ_JOBS, Duration::ZERO)?;
    let took = took.first().context("BullMQ said nothing")?;
    Ok(per_minute(BULLMQ_JOBS, Duration::from_secs_f64(took / 1e3)))
}

fn bullmq_latency(bench: &Bench) -> anyhow::Result<Vec<Duration>> {
    let times = bullmq(bench, PACED_JOBS, PACE)?;
    ensure!(times.len() == PACED_JOBS + 1, "BullMQ told {} times", times.len());
    Ok(times.iter().skip(1).map(|ms| Duration::from_secs_f64(ms / 1e3)).collect())
}

fn rq_jobs(bench: &Bench) -> anyhow::Result<f64> {
    let redis = peers::redis(&bench.fresh("queue-redis")?, Keeps::Nothing, None)?;
    let mut command = Command::new(peers::python(bench)?);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/peers/queue_rq.py"));
    command.args([redis.address.port().to_string(), RQ_JOBS.to_string()]);
    let took = numbers(&mut command, "RQ")?;
    redis.stop()?;
    let took = took.first().context("RQ said nothing")?;
    Ok(per_minute(RQ_JOBS, Duration::from_secs_f64(took / 1e3)))
}
