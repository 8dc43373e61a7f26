//! `zeblit bench`: the figures a user asks about first, measured on this machine.
//!
//! - `ingest`: signed deliveries at a fixed rate (open loop: latency counts from the intended time of
//!   sending), each answered after it is durable on SQLite with `synchronous=FULL`.
//! - `start`: from a signed delivery to the agent's process running in a Docker container, warm mirror.

use crate::app::App;
use crate::config::{Config, LocalForgeConfig, SandboxKind};
use crate::domain::event::{Repo, Source};
use crate::domain::ids::RepoName;
use crate::engine;
use crate::http::server;
use crate::intake::signature;
use crate::remote::local::{LocalForge, SeedFile};
use crate::store::{self, Durability};
use anyhow::{Context, bail, ensure};
use secrecy::SecretString;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A recorded `issue_comment` delivery without a command.
const DELIVERY: &[u8] = include_bytes!("../../tests/fixtures/github/issue_comment.created.json");

const SECRET: &str = "the webhook secret of the bench";

/// A run that takes longer than this breaks the bench.
const RUN_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Deliveries answered durably (SQLite FULL): p50 and p99 at a fixed rate
    Ingest {
        /// Requests per second
        #[arg(long, default_value_t = 300)]
        rate: u64,
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// What a commit waits for: `full` as a server's, `normal` to see what that costs
        #[arg(long, default_value = "full", value_parser = durability)]
        synchronous: Durability,
    },
    /// From a delivery to the agent's process running in Docker: median
    Start {
        #[arg(long, default_value_t = 15)]
        runs: usize,
        #[arg(long, default_value = "zeblit-agent:latest")]
        image: String,
    },
}

fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "full" => Ok(Durability::Full),
        "normal" => Ok(Durability::Lost),
        _ => Err("full or normal".to_owned()),
    }
}

/// Gives the line with the figure, and whether the goal holds.
pub async fn run(args: Args) -> anyhow::Result<(String, bool)> {
    match args {
        Args::Ingest { rate, seconds, synchronous } => ingest(rate, seconds, synchronous).await,
        Args::Start { runs, image } => start(runs, image).await,
    }
}

/// A server with its own state and port, stopped and removed at the end.
struct Server {
    app: Arc<App>,
    url: String,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    folder: std::path::PathBuf,
}

impl Server {
    async fn start(kind: SandboxKind, image: Option<String>, durability: Durability) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("zeblit-bench-{}", std::process::id()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut config = Config { state_dir: folder.clone(), ..Config::default() };
        config.server.public_url = Some(url.clone());
        config.local_forge =
            Some(LocalForgeConfig { webhook_secret: SecretString::from(SECRET), folder: None });
        config.sandbox.kind = kind;
        config.limits.write_spacing_ms = 0;
        config.limits.writes_per_minute = 1_000_000;
        config.limits.writes_per_hour = 1_000_000;
        config.limits.commands_per_user_hour = 1_000_000;
        if let Some(image) = image {
            config.sandbox.image = image;
        }
        let app = App::build_for_measuring(config, durability).await?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let limits = server::Limits::of(&app.config.server);
        tasks.spawn(server::serve(listener, crate::http::router(Arc::clone(&app)), limits, stop.clone()));
        tasks.spawn(engine::run(Arc::clone(&app), stop.clone()));
        Ok(Self { app, url, stop, tasks, folder })
    }

    async fn end(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        drop(self.app);
        std::fs::remove_dir_all(&self.folder).with_context(|| format!("remove {}", self.folder.display()))
    }
}

async fn post(
    client: &reqwest::Client,
    url: &str,
    id: &str,
    event: &str,
    body: &[u8],
) -> anyhow::Result<u16> {
    let mut request =
        client.post(format!("{url}/webhooks/github")).header("content-type", "application/json");
    for (name, value) in signature::sign(Source::Github, &SecretString::from(SECRET), id, event, body) {
        request = request.header(name, value);
    }
    Ok(request.body(body.to_vec()).send().await?.status().as_u16())
}

fn quantile(sorted: &[Duration], q: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let index = ((last as f64) * q).round() as usize;
    sorted.get(index.min(last)).copied().unwrap_or_default()
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

async fn ingest(rate: u64, seconds: u64, durability: Durability) -> anyhow::Result<(String, bool)> {
    ensure!(rate > 0 && seconds > 0, "--rate and --seconds must be at least 1");
    let server = Server::start(SandboxKind::Process, None, durability).await?;
    let client = reqwest::Client::new();
    let begin = Instant::now() + Duration::from_millis(100);
    let mut posts = JoinSet::new();
    for n in 0..rate * seconds {
        let at = begin + Duration::from_secs_f64(n as f64 / rate as f64);
        tokio::time::sleep_until(at.into()).await;
        let (client, url) = (client.clone(), server.url.clone());
        posts.spawn(async move {
            let status = post(&client, &url, &format!("bench-{n:06}"), "issue_comment", DELIVERY).await;
            (status, at.elapsed())
        });
    }
    let mut times = Vec::new();
    let mut refused = 0;
    while let Some(joined) = posts.join_next().await {
        let (status, time) = joined?;
        if status? == 202 {
            times.push(time);
        } else {
            refused += 1;
        }
    }
    times.sort();
    let stored: i64 = store::inbox::counts(&server.app.store).await?.iter().map(|(_, count)| count).sum();
    server.end().await?;
    let p99 = quantile(&times, 0.99);
    let ok = refused == 0 && usize::try_from(stored)? == times.len() && p99 < Duration::from_millis(50);
    let line = format!(
        "ingest: {} deliveries of {} bytes at {rate}/s, all stored with synchronous={} before the answer: p50 {}, p99 {} (goal 50 ms), {refused} refused",
        times.len(),
        DELIVERY.len(),
        if durability == Durability::Full { "FULL" } else { "NORMAL (a power cut may lose them)" },
        ms(quantile(&times, 0.5)),
        ms(p99),
    );
    Ok((line, ok))
}

async fn start(runs: usize, image: String) -> anyhow::Result<(String, bool)> {
    let server = Server::start(SandboxKind::Docker, Some(image), Durability::Full).await?;
    let forge = server.app.local.clone().context("the bench runs on the local forge")?;
    let name = RepoName::parse("bench/project")?;
    let files = [SeedFile { path: "README.md", content: "bench\n", executable: false }];
    let repo = forge.create_repo(&name, "For the bench", &files, "Start")?.repo;
    let client = reqwest::Client::new();
    let mut times = Vec::new();
    // The first run makes mirror and seed, and does not count.
    for n in 0..=runs {
        let time = one_start(&server, &forge, &repo, &client, n).await?;
        if n > 0 {
            times.push(time);
        }
    }
    times.sort();
    server.end().await?;
    let median = quantile(&times, 0.5);
    let line = format!(
        "start: delivery to agent process in Docker, warm mirror, {runs} runs: median {}, worst {} (goal 1000 ms)",
        ms(median),
        ms(quantile(&times, 1.0)),
    );
    Ok((line, median < Duration::from_secs(1)))
}

/// One issue, one `/zeblit run format`, until the log says that the agent's process runs; then waits for the end.
async fn one_start(
    server: &Server,
    forge: &LocalForge,
    repo: &Repo,
    client: &reqwest::Client,
    n: usize,
) -> anyhow::Result<Duration> {
    let owner = forge.owner();
    let (number, _) = forge.open_issue(repo, &owner, &format!("Bench {n}"), "Measure.")?;
    let (_, webhook) = forge.comment(repo, &owner, number, "/zeblit run format")?;
    let begin = Instant::now();
    let status = post(client, &server.url, &format!("start-{n}"), webhook.event, &webhook.body).await?;
    ensure!(status == 202, "the delivery was answered with {status}");
    let mut started = None;
    loop {
        ensure!(begin.elapsed() < RUN_LIMIT, "a run took longer than {} s", RUN_LIMIT.as_secs());
        let filter = store::runs::Filter { limit: 1, ..store::runs::Filter::default() };
        if let Some(run) = store::runs::list(&server.app.store, &filter).await?.pop()
            && run.spec.subject.number == number
        {
            if started.is_none() && !store::logs::read(&server.app.store, &run.id, 0, 1).await?.is_empty() {
                started = Some(begin.elapsed());
            }
            if run.state.is_terminal() {
                match started {
                    Some(time) => return Ok(time),
                    None => bail!("the agent never started: {}", run.outcome.reason),
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
