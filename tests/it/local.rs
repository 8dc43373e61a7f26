//! Whole runs on the local forge: what GitHub's model shows in the other scenarios, on the second implementation.

use crate::world::hub::payloads::Delivery;
use crate::world::sandbox::{FakeSandbox, Script};
use crate::world::time::{CountedIds, SimClock};
use axum::body::Body;
use axum::http::Request;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;
use zeblit::agent::definition::AgentSet;
use zeblit::app::{App, Signer, broker_settings};
use zeblit::broker::Broker;
use zeblit::clock::{Clock, IdKind, Ids};
use zeblit::config::{Config, LocalForgeConfig};
use zeblit::domain::effect::{CheckConclusion, CheckRun, CheckStatus};
use zeblit::domain::event::Repo;
use zeblit::domain::ids::{BranchName, RepoName, RunId};
use zeblit::domain::policy::PushMode;
use zeblit::domain::run::{Run, RunState};
use zeblit::domain::secrets::SecretScan;
use zeblit::engine::execute::{self, Step};
use zeblit::engine::load::Loads;
use zeblit::engine::{deliver, ingest, sweep};
use zeblit::git::Git;
use zeblit::queue::local::LocalWakeup;
use zeblit::remote::Forge;
use zeblit::remote::local::{LocalForge, SeedFile, Webhook};
use zeblit::sandbox::Duty;
use zeblit::store::{self, Store};

const SECRET: &str = "a long secret of the local forge";
const WEB: &str = "http://127.0.0.1:8080/forge";
const FILES: &[SeedFile<'static>] =
    &[SeedFile { path: "src/app.py", content: "def answer():\n    return 41\n", executable: false }];

/// A server on the local forge, ticked by hand.
struct Small {
    forge: LocalForge,
    repo: Repo,
    sandbox: Arc<FakeSandbox>,
    clock: Arc<SimClock>,
    app: Arc<App>,
    _folder: tempfile::TempDir,
}

async fn small(change: impl FnOnce(&mut Config)) -> Small {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(SimClock::default());
    let forge = LocalForge::open(&folder.path().join("forge"), WEB, clock.clone()).unwrap();
    let name = RepoName::parse("demo/shop").unwrap();
    let repo = forge.create_repo(&name, "", FILES, "Begin").unwrap().repo;
    let mut config = Config { state_dir: folder.path().join("state"), ..Config::default() };
    config.local_forge = Some(LocalForgeConfig { webhook_secret: SECRET.into(), folder: None });
    change(&mut config);
    let url = format!("sqlite:{}", folder.path().join("zeblit.db").display());
    let store = Store::open(&url).await.unwrap();
    let ids: Arc<dyn Ids> = Arc::new(CountedIds::default());
    let sandbox = Arc::new(FakeSandbox::default());
    let time: Arc<dyn Clock> = clock.clone();
    let app = Arc::new(App {
        broker: Broker::new(broker_settings(&config), store.clone(), time.clone(), ids.clone()),
        store,
        wakeup: Arc::new(LocalWakeup::default()),
        forge: Arc::new(forge.clone()),
        remotes: Vec::new(),
        local: Some(forge.clone()),
        sandbox: sandbox.clone(),
        git: Git::open(&folder.path().join("state")).await.unwrap(),
        agents: AgentSet::builtin().unwrap(),
        clock: time,
        node: crate::world::node("n1"),
        boot: format!("n1:{}", ids.next(IdKind::Boot)),
        ids,
        signer: Signer::new(b"the secret key of the test world"),
        secrets: SecretScan::new(&[]),
        live: execute::Live::default(),
        loads: Loads::default(),
        socket_root: folder.path().join("sockets"),
        config: Arc::new(config),
    });
    sweep::boot(&app).await.unwrap();
    Small { forge, repo, sandbox, clock, app, _folder: folder }
}

impl Small {
    async fn deliver(&self, webhook: Webhook) {
        let delivery = Delivery { event: webhook.event, id: webhook.delivery_id, body: webhook.body };
        let mut request = Request::post("/webhooks/github");
        for (name, value) in delivery.headers(SECRET) {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(delivery.body)).unwrap();
        let answer = zeblit::http::router(Arc::clone(&self.app)).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 202);
    }

    /// The owner comments; ticks until nothing happens any more.
    async fn say(&self, number: i64, text: &str) {
        self.clock.advance(chrono::Duration::seconds(1));
        let (_, webhook) = self.forge.comment(&self.repo, &self.forge.owner(), number, text).unwrap();
        self.deliver(webhook).await;
        let mut workers: Vec<Run> = Vec::new();
        for _ in 0..300 {
            let mut moved = ingest::tick(&self.app).await.unwrap() > 0;
            while let Some(run) = execute::claim(&self.app).await.unwrap() {
                workers.push(run);
            }
            let mut left = Vec::new();
            for mut run in std::mem::take(&mut workers) {
                moved = true;
                match execute::advance(&self.app, &mut run, Duration::ZERO, &mut 0).await.unwrap() {
                    Step::Done => {}
                    _ => left.push(run),
                }
            }
            workers = left;
            let ticked = deliver::tick(&self.app).await.unwrap();
            if moved || ticked.sent > 0 {
                continue;
            }
            match ticked.next {
                Some(next) => {
                    self.clock.advance_to(next.max(self.clock.now() + chrono::Duration::milliseconds(1)))
                }
                None => return,
            }
        }
        panic!("the world does not come to rest");
    }

    async fn run(&self, n: u32) -> Run {
        store::runs::get(&self.app.store, &RunId::new(format!("run_{n:04}"))).await.unwrap().unwrap()
    }

    fn issue(&self, body: &str) -> i64 {
        self.forge.open_issue(&self.repo, &self.forge.owner(), "The answer is wrong", body).unwrap().0
    }
}

#[tokio::test]
async fn the_mode_fork_pushes_to_the_fork_and_goes_on_there() {
    let change = |config: &mut Config| {
        config.agents.fix = "demo-fix".into();
        config.publish.mode = PushMode::Fork;
        config.publish.fork_owner = Some("bots".into());
    };
    let w = small(change).await;
    let number = w.issue("It says 41.");
    w.say(number, "/zeblit fix").await;
    assert_eq!(w.sandbox.agents_started(), 0, "there is no fork yet");
    let fork = w.forge.create_fork(&w.repo, "bots").unwrap().repo;
    w.sandbox.next(Script::edit("src/app.py", "def answer():\n    return 42\n"));
    w.say(number, "/zeblit fix the answer").await;
    let run = w.run(1).await;
    assert_eq!(run.state, RunState::Succeeded, "{:?}", run.outcome);
    let branch = run.outcome.branch.clone().unwrap();
    assert_eq!(w.forge.branch_head(&w.repo, &branch).await.unwrap(), None);
    assert_eq!(w.forge.branch_head(&fork, &branch).await.unwrap(), run.outcome.head);
    let pull = w.forge.pull(&w.repo, run.outcome.pull_number.unwrap()).await.unwrap();
    assert_eq!(
        (pull.fork, pull.head_repo, Some(pull.head_sha)),
        (true, Some(fork.name.clone()), run.outcome.head)
    );
    let conclusions =
        |checks: Vec<CheckRun>| checks.into_iter().map(|check| check.conclusion).collect::<Vec<_>>();
    let checks =
        w.forge.checks(&w.repo, &w.forge.branch_head(&fork, &branch).await.unwrap().unwrap()).unwrap();
    assert_eq!(conclusions(checks), [Some(CheckConclusion::Success)]);
    // On its own pull request the work goes on in the fork.
    w.sandbox.next(Script::edit("notes.txt", "done\n"));
    w.say(pull.number, "/zeblit fix add notes").await;
    let run = w.run(2).await;
    assert_eq!(run.state, RunState::Succeeded, "{:?}", run.outcome);
    assert_eq!(w.forge.branch_head(&fork, &branch).await.unwrap(), run.outcome.head);
    let paths = w.forge.changed_paths(&w.repo, pull.number).await.unwrap();
    assert_eq!(paths, ["notes.txt", "src/app.py"]);
}

#[tokio::test]
async fn attached_files_and_failed_checks_reach_the_agent_here_too() {
    let change = |config: &mut Config| {
        config.agents.fix = "fixer".into();
        config.models.anthropic_api_key = Some("sk-ant-test-key-of-the-test-world".into());
    };
    let w = small(change).await;
    let topic = BranchName::parse("topic").unwrap();
    let main = BranchName::parse("main").unwrap();
    let begin = w.forge.branch_head(&w.repo, &main).await.unwrap().unwrap();
    let git = git2::Repository::open_bare(w.forge.repo_path(&w.repo).unwrap()).unwrap();
    git.reference(&topic.full(), git2::Oid::from_str(begin.as_str()).unwrap(), true, "begin").unwrap();
    let file = SeedFile { path: "src/new.py", content: "x = 1\n", executable: false };
    let head = w.forge.commit_files(&w.repo, &topic, &[file], "New").unwrap();
    let link = w.forge.attach(&w.repo, "crash.log", b"\x1b[31mboom\x1b[0m\n").unwrap();
    let owner = w.forge.owner();
    let (number, _) =
        w.forge.open_pull(&w.repo, &owner, &topic, &main, "New", &format!("See {link}")).unwrap();
    let check = CheckRun {
        name: "tests".into(),
        head_sha: head,
        external_id: "tests/1".into(),
        status: CheckStatus::Completed,
        conclusion: Some(CheckConclusion::Failure),
        title: "1 failed".into(),
        summary: "assert 41 == 42".into(),
        details_url: None,
        started_at: None,
        completed_at: None,
        annotations: Vec::new(),
    };
    w.forge.report_check(&w.repo, &check, "line one\nline two\n").unwrap();
    w.say(number, "/zeblit fix the tests").await;
    let started = w.sandbox.started();
    let Duty::Agent(job) = &started[0].duty else { panic!("a collector") };
    let file = |path: &str| {
        let found = job.home_files.iter().find(|(name, _)| name == path);
        String::from_utf8(found.unwrap_or_else(|| panic!("no {path}")).1.clone()).unwrap()
    };
    assert_eq!(file("attachments/01-crash.log"), "boom\n");
    let ci = file("context/ci.txt");
    assert!(ci.contains("assert 41 == 42") && ci.contains("line one\nline two"), "{ci}");
    let prompt = String::from_utf8(job.stdin.clone()).unwrap();
    let label = "attached to the pull request by @maintainer (may write to this repository)";
    assert!(prompt.contains(label), "{prompt}");
}
