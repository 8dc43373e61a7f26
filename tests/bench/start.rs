//! G11 to G13 and G16: from a trigger to an agent's process in its own workspace, beside `docker run`; starts under load;
//! what a whole run takes besides its agent and its push.
//!
//! An agent's first instruction prints the clock that containers share with the host.

use super::Bench;
use super::load::quantile;
use super::report::{Measured, Ratio};
use super::timeline::{self, Timeline, ms_since};
use anyhow::{Context, bail, ensure};
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use zeblit::app::App;
use zeblit::clock::RandomIds;
use zeblit::config::{Config, LocalForgeConfig, SandboxKind};
use zeblit::domain::effect::EffectState;
use zeblit::domain::event::{Repo, Source};
use zeblit::domain::ids::{RepoName, RunId, Sha, SlotId};
use zeblit::domain::run::{Run, RunState};
use zeblit::git::{Access, Git, WorkspaceSpec};
use zeblit::http::server;
use zeblit::intake::signature;
use zeblit::remote::local::{LocalForge, SeedFile};
use zeblit::sandbox::docker::{DockerOptions, DockerSandbox, WarmOptions};
use zeblit::sandbox::{CollectJob, Duty, Job, Limits, LineSource, Sandbox, SandboxSpec, SlotClass, Status};
use zeblit::store;

const IMAGE: &str = "zeblit-agent:latest";
const SECRET: &str = "the webhook secret of the bench";
/// The time, by nothing but the shell itself, in seconds with six digits.
const CLOCK: &str = "echo $EPOCHREALTIME";
/// Files of the repository: a workspace costs the same with ten times as many (G8).
const FILES: usize = 1_000;
/// Starts per round of G11.
const STARTS: usize = 15;
/// Runs per round of G12 and G16.
const RUNS: usize = 20;
/// Runs that are queued at once for G13, and how many may be live.
const CROWD: usize = 40;
const CROWD_LIVE: i64 = 8;
/// Until the engine has settled and warm slots are there again.
const PAUSE: Duration = Duration::from_millis(900);
const RUN_LIMIT: Duration = Duration::from_secs(60);

pub fn measure(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    ensure!(
        docker(&["image", "inspect", IMAGE]).is_ok(),
        "there is no Docker Engine with the image {IMAGE}: deploy/setup.sh demo"
    );
    let timeline = Timeline::default();
    let of_ours = tracing_subscriber::filter::Targets::new().with_target("zeblit", tracing::Level::DEBUG);
    let subscriber = tracing_subscriber::registry().with(timeline.clone().with_filter(of_ours));
    tracing::subscriber::set_global_default(subscriber)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut measured = Vec::new();
        if bench.wants("G11") {
            measured.extend(entering(bench).await?);
        }
        if bench.wants("G12") || bench.wants("G16") {
            measured.extend(whole(bench, &timeline).await?);
        }
        if bench.wants("G13") {
            measured.extend(crowd(bench).await?);
        }
        Ok(measured)
    })
}

fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    let out = Command::new("docker").args(arguments).stdin(Stdio::null()).output().context("start docker")?;
    ensure!(
        out.status.success(),
        "docker {}: {}",
        arguments.first().unwrap_or(&""),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// What `CLOCK` printed.
fn clock(text: &str) -> anyhow::Result<SystemTime> {
    let seconds: f64 = text.trim().parse().with_context(|| format!("`{text}` is no time"))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let out = Command::new("git")
        .args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()?;
    ensure!(out.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Files of a made-up project.
fn contents() -> impl Iterator<Item = (String, String)> {
    (0..FILES).map(|n| {
        let lines: String = (0..40).map(|line| format!("line {line} of file {n}\n")).collect();
        (format!("src/part{}/file{n}.txt", n % 25), lines)
    })
}

// ---------------------------------------------------------------- G11

/// A Git store, a sandbox and one commit, without a server around them.
struct Bare {
    git: Git,
    sandbox: DockerSandbox,
    folder: PathBuf,
    start: Sha,
    class: SlotClass,
    runs: usize,
}

const REMOTE: &str = "bench";
const REPO: i64 = 1;

impl Bare {
    async fn new(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.canonicalize()?;
        let source = folder.join("source");
        for (path, text) in contents() {
            let file = source.join(path);
            std::fs::create_dir_all(file.parent().context("a folder")?)?;
            std::fs::write(file, text)?;
        }
        git(&source, &["init", "-q", "-b", "main"])?;
        git(&source, &["add", "-A"])?;
        git(&source, &["commit", "-qm", "Start"])?;
        let start = Sha::parse(&git(&source, &["rev-parse", "HEAD"])?).context("a commit")?;
        let state = folder.join("state");
        let store = Git::open(&state).await?;
        let access =
            Access { url: format!("file://{}", source.display()), username: "x".into(), token: None };
        store.ensure(REMOTE, REPO, &access, std::slice::from_ref(&start), None).await?;
        let sockets = PathBuf::from(format!("/run/zeblit-bench-{}", std::process::id()));
        std::fs::create_dir_all(&sockets)?;
        let limits = Limits { memory_bytes: 1 << 30, millicpus: 2000, pids: 512, log_bytes: 1 << 20 };
        let sandbox = DockerSandbox::connect(DockerOptions {
            docker_host: "unix:///var/run/docker.sock".into(),
            instance: format!("bench-{}", std::process::id()),
            shim_folder: state.join("bin"),
            owner: None,
            image: IMAGE.into(),
            runtime: None,
            warm: Some(WarmOptions {
                most: 1,
                folder: state.join("slots"),
                views: vec![state.join("mirrors")],
                sockets: Arc::new(move |slot| sockets.join(slot.as_str())),
                ids: Arc::new(RandomIds),
            }),
        });
        let class = SlotClass { image: IMAGE.into(), limits };
        Ok(Self { git: store, sandbox, folder, start, class, runs: 0 })
    }

    fn sockets(&self, slot: &SlotId) -> PathBuf {
        PathBuf::from(format!("/run/zeblit-bench-{}", std::process::id())).join(slot.as_str())
    }

    /// Milliseconds from the trigger to the agent's first instruction in a workspace of its own.
    async fn start(&mut self, warm: bool) -> anyhow::Result<f64> {
        self.runs += 1;
        let run = RunId::new(format!("run-{}", self.runs));
        if warm {
            self.sandbox.tend(&self.class).await;
        }
        let begin = SystemTime::now();
        let taken = if warm { self.sandbox.take(&self.class) } else { None };
        ensure!(taken.is_some() == warm, "there is no warm slot");
        let slot = taken.unwrap_or_else(|| SlotId::new(format!("cold-{}-{}", std::process::id(), self.runs)));
        let workspace = self
            .git
            .prepare(&WorkspaceSpec {
                remote: REMOTE,
                repo_id: REPO,
                run: &run,
                start: &self.start,
                base_sha: &self.start,
                masked: &[],
                objects_inside: self.sandbox.objects_path_inside(Path::new("")),
                owner: self.sandbox.owner(),
            })
            .await?;
        let script = format!("{CLOCK}; test -e src/part0/file0.txt");
        let spec = SandboxSpec {
            slot: slot.clone(),
            run: run.clone(),
            image: self.class.image.clone(),
            limits: self.class.limits.clone(),
            duty: Duty::Agent(Job {
                argv: vec!["bash".into(), "-c".into(), script],
                collect: CollectJob { base: self.start.to_string(), ..CollectJob::default() },
                ..Job::default()
            }),
            workspace: workspace.workspace,
            output: workspace.output,
            home: workspace.home,
            sockets: Some(self.sockets(&slot)),
            objects: workspace.objects,
            cache: None,
        };
        self.sandbox.start(&spec).await?;
        let time = self.first_line(&slot).await?;
        self.sandbox.remove(&slot).await?;
        self.git.discard(&run).await?;
        Ok(ms_since(begin, time))
    }

    /// The time that the agent printed; waits until it has ended well.
    async fn first_line(&self, slot: &SlotId) -> anyhow::Result<SystemTime> {
        let (mut cursor, mut found) = (0, None);
        loop {
            let polled = self.sandbox.poll(slot, cursor, Duration::from_secs(10)).await?;
            for line in polled.lines {
                cursor = line.n;
                if line.source == LineSource::Stdout && found.is_none() {
                    found = Some(clock(&line.text)?);
                }
            }
            match polled.status {
                Status::Running => {}
                Status::Exited { code: 0, .. } => return found.context("the agent printed no time"),
                ended => bail!("the agent ended: {ended:?}"),
            }
        }
    }

    /// The same by hand: an overlay on a checkout, and `docker run` on it.
    fn docker_run(&mut self) -> anyhow::Result<f64> {
        self.runs += 1;
        let path = |name: &str| self.folder.join(format!("peer-{}", self.runs)).join(name);
        let begin = SystemTime::now();
        for name in ["upper", "work", "at"] {
            std::fs::create_dir_all(path(name))?;
        }
        zeblit::mount::overlay(&self.folder.join("source"), &path("upper"), &path("work"), &path("at"), &[])?;
        let bind = format!("{}:/work", path("at").display());
        let script = format!("{CLOCK}; test -e src/part0/file0.txt");
        let arguments =
            ["run", "--rm", "--network", "none", "-v", &bind, "-w", "/work", IMAGE, "bash", "-c", &script];
        let printed = docker(&arguments)?;
        zeblit::mount::unmount(&path("at"))?;
        Ok(ms_since(begin, clock(&printed)?))
    }
}

async fn entering(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let folder = bench.fresh("start-entering")?;
    let mut bare = Bare::new(&folder).await?;
    // The first makes the seed.
    bare.start(true).await?;
    let (mut warm, mut cold, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        bench.tell(&format!("start, round {round}: {STARTS} starts warm, cold and by docker run, in turns"));
        let (mut w, mut c, mut p) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..STARTS {
            w.push(bare.start(true).await?);
            c.push(bare.start(false).await?);
            p.push(bare.docker_run()?);
        }
        warm.push(median(&mut w));
        cold.push(median(&mut c));
        peer.push(median(&mut p));
    }
    bare.sandbox.retire().await;
    std::fs::remove_dir_all(format!("/run/zeblit-bench-{}", std::process::id()))?;
    let row = |what: &str, ours: &[f64], wanted| Measured {
        goal: "G11",
        what: what.into(),
        ours: ours.to_vec(),
        peer: peer.clone(),
        peer_name: "docker run + overlay",
        unit: "ms",
        wanted,
    };
    Ok(vec![
        row("trigger to agent's process, warm slot", &warm, Ratio::AtMost(1.0 / 20.0)),
        row("trigger to agent's process, cold", &cold, Ratio::AtMost(1.1)),
    ])
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

// ---------------------------------------------------------------- G12, G16

/// A server with its own state and port.
struct Server {
    app: Arc<App>,
    forge: LocalForge,
    repo: Repo,
    client: reqwest::Client,
    url: String,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// An agent without a model that tells the time and changes one file.
const AGENT: &str = "---\nname: clock\ndescription: Tells the time and changes one file. No model.\nadapter: command\nargv:\n  - bash\n  - -c\n  - \"echo $EPOCHREALTIME; echo $EPOCHREALTIME >time.txt; echo $EPOCHREALTIME\"\n---\n";

impl Server {
    async fn start(folder: &Path, live: i64) -> anyhow::Result<Self> {
        let agents = folder.join("agents");
        std::fs::create_dir_all(&agents)?;
        std::fs::write(agents.join("clock.md"), AGENT)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut config = Config { state_dir: folder.join("state"), ..Config::default() };
        config.server.public_url = Some(url.clone());
        config.local_forge =
            Some(LocalForgeConfig { webhook_secret: SecretString::from(SECRET), folder: None });
        config.sandbox.kind = SandboxKind::Docker;
        config.sandbox.image = IMAGE.into();
        config.sandbox.memory_mib = 1024;
        config.agents.folder = Some(agents);
        // GitHub's pace of writes is not what is measured.
        config.limits.write_spacing_ms = 0;
        config.limits.writes_per_minute = 1_000_000;
        config.limits.writes_per_hour = 1_000_000;
        config.limits.commands_per_user_hour = 1_000_000;
        config.limits.runs = live;
        config.limits.runs_per_owner = live;
        config.limits.runs_per_repo = live;
        config.limits.runs_per_user = live;
        let app = App::build(config).await?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let limits = server::Limits::of(&app.config.server);
        tasks.spawn(server::serve(listener, zeblit::http::router(Arc::clone(&app)), limits, stop.clone()));
        tasks.spawn(zeblit::engine::run(Arc::clone(&app), stop.clone()));
        let forge = app.local.clone().context("the bench runs on the local forge")?;
        let files: Vec<(String, String)> = contents().collect();
        let files: Vec<SeedFile<'_>> =
            files.iter().map(|(path, content)| SeedFile { path, content, executable: false }).collect();
        let repo =
            forge.create_repo(&RepoName::parse("bench/project")?, "For the bench", &files, "Start")?.repo;
        Ok(Self { app, forge, repo, client: reqwest::Client::new(), url, stop, tasks })
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    /// An issue and a command on it; its delivery is made and not sent yet.
    fn command(&self, n: usize) -> anyhow::Result<(i64, String, Vec<u8>)> {
        let owner = self.forge.owner();
        let (number, _) = self.forge.open_issue(&self.repo, &owner, &format!("Bench {n}"), "Measure.")?;
        let (_, webhook) = self.forge.comment(&self.repo, &owner, number, "/zeblit run clock")?;
        Ok((number, webhook.event.to_owned(), webhook.body))
    }

    async fn post(&self, id: &str, event: &str, body: Vec<u8>) -> anyhow::Result<()> {
        let mut request = self
            .client
            .post(format!("{}/webhooks/github", self.url))
            .header("content-type", "application/json");
        for (name, value) in signature::sign(Source::Github, &SecretString::from(SECRET), id, event, &body) {
            request = request.header(name, value);
        }
        let status = request.body(body).send().await?.status();
        ensure!(status.as_u16() == 202, "a delivery was answered with {status}");
        Ok(())
    }

    async fn run_of(&self, number: i64) -> anyhow::Result<Option<Run>> {
        let filter = store::runs::Filter { limit: 2 * CROWD as i64, ..store::runs::Filter::default() };
        let runs = store::runs::list(&self.app.store, &filter).await?;
        Ok(runs.into_iter().find(|run| run.spec.subject.number == number))
    }

    /// The times that a run's agent printed: first and last.
    async fn printed(&self, run: &RunId) -> anyhow::Result<(SystemTime, SystemTime)> {
        let chunks = store::logs::read(&self.app.store, run, 0, 100).await?;
        let mut times = Vec::new();
        for line in chunks.iter().flat_map(|chunk| chunk.text.lines()) {
            let line: serde_json::Value = serde_json::from_str(line)?;
            let text = line.get("t").and_then(serde_json::Value::as_str).unwrap_or_default();
            if let Ok(time) = clock(text) {
                times.push(time);
            }
        }
        times.first().copied().zip(times.last().copied()).context("the agent printed no times")
    }

    /// Waits until a run has ended and everything that it has to say stands on the forge.
    async fn reported(&self, number: i64) -> anyhow::Result<(Run, SystemTime)> {
        let begin = Instant::now();
        loop {
            ensure!(begin.elapsed() < RUN_LIMIT, "a run took longer than {} s", RUN_LIMIT.as_secs());
            if let Some(run) = self.run_of(number).await?
                && run.state.is_terminal()
            {
                let effects = store::effects::of_run(&self.app.store, &run.id).await?;
                if effects.iter().all(|effect| effect.state == EffectState::Confirmed) {
                    let now = SystemTime::now();
                    ensure!(
                        run.state == RunState::Succeeded,
                        "a run ended as {}: {}",
                        run.state.as_str(),
                        run.outcome.reason
                    );
                    return Ok((run, now));
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What one run took, in milliseconds.
struct Took {
    /// From sending the delivery to the agent's first instruction.
    start: f64,
    /// From sending the delivery until everything stands on the forge, without the agent's own time.
    around: f64,
}

async fn one(server: &Server, n: usize, timeline: Option<&Timeline>) -> anyhow::Result<Took> {
    let (number, event, body) = server.command(n)?;
    tokio::time::sleep(PAUSE).await;
    if let Some(timeline) = timeline {
        timeline.take();
    }
    let begin = SystemTime::now();
    server.post(&format!("run-{n}"), &event, body).await?;
    let answered = SystemTime::now();
    let (run, ended) = server.reported(number).await?;
    let (first, last) = server.printed(&run.id).await?;
    if let Some(timeline) = timeline {
        let marks = [
            ("the delivery is sent", begin),
            ("the answer is there", answered),
            ("the agent's first instruction", first),
            ("the agent's last instruction", last),
            ("pull request and comment stand on the forge", ended),
        ];
        let steps = timeline.take();
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench/run.txt");
        std::fs::write(file, timeline::table(begin, &steps, &marks))?;
    }
    Ok(Took { start: ms_since(begin, first), around: ms_since(begin, ended) - ms_since(first, last) })
}

async fn whole(bench: &Bench, timeline: &Timeline) -> anyhow::Result<Vec<Measured>> {
    let folder = bench.fresh("start-whole")?;
    let server = Server::start(&folder, 4).await?;
    let peer_folder = bench.fresh("start-whole-peer")?;
    let mut peer = Bare::new(&peer_folder).await?;
    // Mirror, seed and the first warm slot are made by the first.
    for n in 0..3 {
        one(&server, n, None).await?;
    }
    let (mut starts, mut worst, mut around, mut by_docker, mut pushes) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        bench.tell(&format!("start, round {round}: {RUNS} whole runs, docker run and git push, in turns"));
        let (mut s, mut a, mut d, mut p) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for n in 0..RUNS {
            // The last one is written down step by step.
            let last = round == bench.rounds && n + 1 == RUNS;
            let took = one(&server, round * 1000 + n, last.then_some(timeline)).await?;
            let push = push(&peer_folder, round * 1000 + n)?;
            s.push(took.start);
            a.push(took.around - push);
            d.push(peer.docker_run()?);
            p.push(push);
        }
        let times: Vec<Duration> = {
            let mut times: Vec<Duration> = s.iter().map(|ms| Duration::from_secs_f64(ms / 1e3)).collect();
            times.sort();
            times
        };
        worst.push(quantile(&times, 0.99).as_secs_f64() * 1e3);
        starts.push(median(&mut s));
        around.push(median(&mut a));
        by_docker.push(median(&mut d));
        pushes.push(median(&mut p));
    }
    server.end().await;
    let row = |goal, what: &str, ours: Vec<f64>, wanted| Measured {
        goal,
        what: what.into(),
        ours,
        peer: Vec::new(),
        peer_name: "",
        unit: "ms",
        wanted,
    };
    let mut against = row("G12", "signed delivery to agent's process, median", starts, Ratio::AtMost(0.1));
    against.peer = by_docker;
    against.peer_name = "docker run alone";
    Ok(vec![
        against,
        row("G12", "signed delivery to agent's process, p99", worst, Ratio::ValueAtMost(25.0)),
        row(
            "G16",
            "delivery to pull request and comment, without agent and push",
            around,
            Ratio::ValueAtMost(50.0),
        ),
        row("G16", "the push that was taken off (git push by hand)", pushes, Ratio::Told),
    ])
}

/// Milliseconds of a `git push` of one small commit as a new branch.
fn push(folder: &Path, n: usize) -> anyhow::Result<f64> {
    let (source, bare) = (folder.join("source"), folder.join("bare.git"));
    if !bare.exists() {
        git(folder, &["clone", "-q", "--bare", "source", "bare.git"])?;
    }
    std::fs::write(source.join("time.txt"), n.to_string())?;
    git(&source, &["add", "time.txt"])?;
    git(&source, &["commit", "-qm", "Change"])?;
    let begin = Instant::now();
    git(&source, &["push", "-q", &bare.to_string_lossy(), &format!("HEAD:refs/heads/branch-{n}")])?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

// ---------------------------------------------------------------- G13

/// Whole runs, queued at once, beside bare containers that the engine starts and removes as fast as it can.
async fn crowd(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let (mut ours, mut peer, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        bench.tell(&format!("start, round {round}: {CROWD} runs at once, and {CROWD} bare containers"));
        let folder = bench.fresh("start-crowd")?;
        let server = Server::start(&folder, CROWD_LIVE).await?;
        one(&server, 0, None).await?;
        let mut commands = Vec::new();
        for n in 1..=CROWD {
            commands.push(server.command(n)?);
        }
        tokio::time::sleep(PAUSE).await;
        let begin = SystemTime::now();
        let mut numbers = Vec::new();
        for (n, (number, event, body)) in commands.into_iter().enumerate() {
            server.post(&format!("crowd-{n}"), &event, body).await?;
            numbers.push(number);
        }
        let mut begun = BTreeMap::new();
        for number in numbers {
            let (run, _) = server.reported(number).await?;
            begun.insert(server.printed(&run.id).await?.0, number);
        }
        server.end().await;
        let (first, last) = begun.keys().next().zip(begun.keys().next_back()).context("no run started")?;
        ours.push((CROWD - 1) as f64 / (ms_since(*first, *last) / 1e3));
        waits.push(ms_since(begin, *last) / 1e3);
        peer.push(bare_starts().await?);
    }
    Ok(vec![
        Measured {
            goal: "G13",
            what: format!("starts of whole runs, {CROWD} queued at once"),
            ours,
            peer,
            peer_name: "bare containers, 4 at a time",
            unit: "/s",
            wanted: Ratio::AtLeast(0.9),
        },
        Measured {
            goal: "G13",
            what: "the longest wait in that queue".into(),
            ours: waits,
            peer: Vec::new(),
            peer_name: "",
            unit: "s",
            wanted: Ratio::Told,
        },
    ])
}

/// What the engine can do at best: create, start, wait and remove, four at a time.
async fn bare_starts() -> anyhow::Result<f64> {
    use bollard::models::{ContainerCreateBody, HostConfig};
    use bollard::query_parameters as query;
    use futures_util::StreamExt;
    let engine = bollard::Docker::connect_with_unix_defaults()?;
    let begin = Instant::now();
    let mut containers = futures_util::stream::iter(0..CROWD)
        .map(|n| {
            let engine = engine.clone();
            async move {
                let name = format!("zeblit-bench-bare-{}-{n}", std::process::id());
                let body = ContainerCreateBody {
                    image: Some(IMAGE.into()),
                    cmd: Some(vec!["true".into()]),
                    host_config: Some(HostConfig {
                        network_mode: Some("none".into()),
                        ..HostConfig::default()
                    }),
                    ..ContainerCreateBody::default()
                };
                let options =
                    query::CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
                engine.create_container(Some(options), body).await?;
                engine.start_container(&name, None::<query::StartContainerOptions>).await?;
                let mut ended = engine.wait_container(&name, None::<query::WaitContainerOptions>);
                while ended.next().await.is_some() {}
                let options = query::RemoveContainerOptions { force: true, ..Default::default() };
                engine.remove_container(&name, Some(options)).await
            }
        })
        .buffer_unordered(4);
    while let Some(done) = containers.next().await {
        done?;
    }
    Ok(CROWD as f64 / begin.elapsed().as_secs_f64())
}
