//! Worlds whose agents run in containers of the real engine, and a look at those containers from outside.

use super::{REPO, World};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use zeblit::config::Config;
use zeblit::domain::ids::RunId;
use zeblit::sandbox::Sandbox;
use zeblit::sandbox::docker::{DockerOptions, DockerSandbox};
use zeblit::store;

/// How long a step of a worker waits for news of its container.
pub const POLL: Duration = Duration::from_millis(100);
/// No scenario waits longer for one thing; on an idle machine each takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The engine of this machine, and whose containers on it are a world's.
pub struct Engine {
    instance: String,
}

impl Engine {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        Self { instance: format!("world-{}-{count}", std::process::id()) }
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Fails with what to type when agents cannot run here.
    pub fn require(&self, image: &str) {
        let answer = docker(&["image", "inspect", "--format", "{{.Id}}", image]);
        assert!(
            answer.is_ok(),
            "This scenario needs a Docker Engine with the image `{image}`: type `deploy/setup.sh test`. \
             Docker said: {}",
            answer.unwrap_err()
        );
    }

    /// Each call is a server that has just started.
    pub fn sandbox(&self, folder: &Path, config: &Config) -> Arc<dyn Sandbox> {
        Arc::new(DockerSandbox::connect(DockerOptions {
            docker_host: config.sandbox.docker_host.clone(),
            instance: self.instance.clone(),
            shim_folder: folder.join("state/bin"),
            owner: None,
            image: config.sandbox.image.clone(),
            runtime: config.sandbox.runtime.clone(),
            warm: None,
        }))
    }

    /// The ids of this world's containers, running or not.
    fn containers(&self, more: &[&str]) -> Vec<String> {
        let label = format!("label=zeblit.instance={}", self.instance);
        let mut words = vec!["ps", "--all", "--quiet", "--no-trunc", "--filter", &label];
        words.extend(more);
        docker(&words).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Also when a scenario failed in the middle: nothing of it may stay at the engine.
        let label = format!("label=zeblit.instance={}", self.instance);
        if let Ok(left) = docker(&["ps", "--all", "--quiet", "--filter", &label]) {
            for id in left.lines() {
                let _ = docker(&["rm", "--force", "--volumes", id]);
            }
        }
    }
}

fn docker(words: &[&str]) -> Result<String, String> {
    let done = Command::new("docker").args(words).output().map_err(|error| error.to_string())?;
    if done.status.success() {
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

/// A comment without what changes from run to run: elapsed times, peaks and the signatures of links.
pub fn steady(text: &str) -> String {
    let mut steady = String::new();
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("| Peak |")).collect();
    let mut text = kept.join("\n");
    while let Some(at) = text.find(" · peak ") {
        let end = text[at..].find(" disk").expect("a peak ends with the disk") + " disk".len();
        text.replace_range(at..at + end, "");
    }
    for (n, part) in text.split("· ").enumerate() {
        if n > 0 {
            steady.push_str("· ");
        }
        let time = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
        let is_time =
            part.starts_with(|c: char| c.is_ascii_digit()) && part[..time].ends_with(['s', 'm', 'h']);
        steady.push_str(if is_time { "TIME" } else { &part[..time] });
        steady.push_str(&part[time..]);
    }
    let mut pieces = steady.split("?e=");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        plain.push_str("?SIGNED");
        plain.push_str(&piece[piece.find([')', ']', ' ']).unwrap_or(piece.len())..]);
    }
    plain
}

impl World {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("a world with containers")
    }

    /// Where the server keeps its files.
    pub fn state_folder(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The folder of a run's files, as the server sees it: `workspace`, `output`, `home`.
    pub fn run_folder(&self, n: u32) -> PathBuf {
        self.state_folder().join(format!("runs/run_{n:04}"))
    }

    /// Rounds until it is so. The condition is told whether the round moved anything.
    pub async fn until(&mut self, what: &str, is_so: impl AsyncFn(&World, bool) -> bool) {
        let started = Instant::now();
        loop {
            let moved = self.round().await;
            if is_so(self, moved).await {
                return;
            }
            if started.elapsed() > PATIENCE {
                let mut logs = String::new();
                for n in 1..=self.runs().await.len() {
                    logs.push_str(&self.log(u32::try_from(n).unwrap()).await);
                }
                let runs = self.runs().await;
                let states: Vec<_> = runs.iter().map(|run| run.state).collect();
                let mut open = Vec::new();
                for run in &runs {
                    let effects =
                        zeblit::store::effects::of_run(&self.app.store, &run.id).await.expect("read");
                    open.extend(effects.into_iter().filter(|effect| {
                        use zeblit::domain::effect::EffectState;
                        !matches!(effect.state, EffectState::Confirmed | EffectState::Failed)
                    }));
                }
                panic!(
                    "waited {PATIENCE:?} in vain until {what}; runs: {states:?}; not sent: {open:#?}; logs:\n{logs}"
                );
            }
            if !moved && self.workers.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Rounds until a run's log says this.
    pub async fn until_log(&mut self, n: u32, text: &str) {
        let what = format!("run {n} says `{text}`");
        self.until(&what, async |w, _| w.log(n).await.contains(text)).await;
    }

    /// The stored log of a run, as its page shows it: JSON lines.
    pub async fn log(&self, n: u32) -> String {
        let run = RunId::new(format!("run_{n:04}"));
        let chunks = store::logs::read(&self.app.store, &run, 0, 100_000).await.unwrap();
        chunks.into_iter().map(|chunk| chunk.text).collect()
    }

    /// Only the texts of a run's log.
    pub async fn said(&self, n: u32) -> Vec<String> {
        let log = self.log(n).await;
        let text =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["t"].as_str().unwrap().to_owned();
        log.lines().map(text).collect()
    }

    /// What the engine says of the only container of this world.
    pub fn inspect(&self) -> Value {
        let ids = self.engine().containers(&[]);
        assert_eq!(ids.len(), 1, "{ids:?}");
        let text = docker(&["inspect", &ids[0]]).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()[0].take()
    }

    pub fn running_containers(&self) -> usize {
        self.engine().containers(&["--filter", "status=running"]).len()
    }

    /// The kernel or somebody at the engine ends the only container.
    pub fn kill_container(&self) {
        for id in self.engine().containers(&[]) {
            docker(&["kill", &id]).unwrap();
        }
    }

    /// The process is replaced by one that runs the server's own loops while the scene plays.
    pub async fn live(&mut self, scene: impl AsyncFnOnce(&World)) {
        self.restart().await;
        let stop = CancellationToken::new();
        let loops = tokio::spawn(zeblit::engine::run(Arc::clone(&self.app), stop.clone()));
        scene(self).await;
        stop.cancel();
        loops.await.unwrap();
        self.restart().await;
    }

    /// In a live world: until a worker of this process has the run.
    pub async fn until_held(&self, n: u32) {
        let started = Instant::now();
        while !self.app.live.is_held(&RunId::new(format!("run_{n:04}"))) {
            assert!(started.elapsed() < PATIENCE, "nobody adopts the run");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A recipe of the repository itself: a Python script, in its default branch.
    pub fn recipe(&self, name: &str, python: &str) {
        let script: String = python.trim().lines().map(|line| format!("    {line}\n")).collect();
        let text = format!(
            "---\nname: {name}\ndescription: A recipe of a scenario.\nadapter: command\nargv:\n  - python3\n  - -uc\n  - |\n{script}---\nPlays a part.\n"
        );
        let path = format!(".github/zeblit/agents/{name}.md");
        self.hub.push_commit(REPO, "main", &[(&path, &text)], "Add a recipe");
    }

    /// An issue of bob's where ada asks for a recipe; it runs until its log says the word.
    pub async fn recipe_says(&mut self, name: &str, python: &str, word: &str) -> i64 {
        self.recipe(name, python);
        let number = self.issue();
        self.say(number, "ada", &format!("/zeblit run {name}")).await;
        self.until_log(1, word).await;
        number
    }
}

/// Writes a file for a `make prove-…` target, when there is one that wants it.
pub fn tally(name: &str, text: &str) {
    if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
        let folder = PathBuf::from(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
    }
}
