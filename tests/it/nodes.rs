//! Several nodes on one database: what one leaves another goes on with, and nothing is lost or doubled.
//!
//! `make prove-nodes RUNS=2000` prints the figure of the proof at the end; `ZEBLIT_PROVE_RUNS` makes it longer.

use crate::world::hub::payloads::Delivery;
use crate::world::hub::state::On;
use crate::world::hub::{APP_KEY, FakeHub};
use crate::world::proxy::{Proxy, State as Way};
use crate::world::sandbox::{FakeSandbox, Script};
use crate::world::{self, Database, REPO, SECRET, World, node};
use sqlx::{Connection, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeblit::app::App;
use zeblit::domain::effect::EffectState;
use zeblit::domain::run::{Run, RunState};
use zeblit::engine::execute::{self, Step};
use zeblit::engine::{EngineError, ingest, operate, sweep};
use zeblit::sandbox::Sandbox;
use zeblit::store;

// ---------------------------------------------------------------- two nodes, by hand

/// Steps a claimed run on a node until it needs no worker or its agent only runs.
async fn work(app: &App, run: &mut Run) -> Step {
    let mut troubles = 0;
    for _ in 0..200 {
        match execute::advance(app, run, Duration::ZERO, &mut troubles).await.unwrap() {
            Step::Again | Step::Wait(_) => {}
            done => return done,
        }
    }
    panic!("the run does not come to rest: {:?}", run.state);
}

async fn claim(app: &App) -> Run {
    execute::claim(app).await.unwrap().expect("there is a run to claim")
}

/// A run that node `n1` has started, whose agent hangs.
async fn started(w: &mut World) -> (i64, Run) {
    let number = w.issue();
    w.sandbox.next(Script::hangs().and_edit("late.txt", "too late\n"));
    w.say(number, "ada", "/zeblit fix").await;
    ingest::tick(&w.app).await.unwrap();
    let mut run = claim(&w.app).await;
    assert_eq!(work(&w.app, &mut run).await, Step::Idle);
    assert_eq!(run.state, RunState::Running);
    (number, run)
}

async fn second(w: &World) -> (Arc<FakeSandbox>, Arc<App>) {
    let sandbox = Arc::new(FakeSandbox::default());
    let app = w.another(node("n2"), sandbox.clone()).await;
    (sandbox, app)
}

fn is_fenced(result: &Result<Step, EngineError>) -> bool {
    matches!(result, Err(EngineError::Store(store::StoreError::Fenced { .. })))
}

#[tokio::test]
async fn a_run_whose_node_is_gone_begins_anew_on_another_and_the_old_one_is_stopped() {
    World::run(async |w| {
        let (number, mut late) = started(w).await;
        let (sandbox, other) = second(w).await;
        assert!(execute::claim(&other).await.unwrap().is_none(), "its lease has not run out");
        w.clock.advance(chrono::Duration::seconds(61));

        sandbox.next(Script::edit("answer.txt", "42\n"));
        let mut run = claim(&other).await;
        assert_eq!(run.fence, late.fence + 1);
        assert_eq!(work(&other, &mut run).await, Step::Done);
        assert_eq!((run.state, run.attempts), (RunState::Reporting, 2));
        assert_eq!(sandbox.agents_started(), 1);

        // The first node comes back in the middle of its step: it writes nothing, and stops what it had.
        let before = w.nth_run(1).await;
        assert_eq!(w.sandbox.alive(), 1);
        let stepped = execute::advance(&w.app, &mut late, Duration::ZERO, &mut 0).await;
        assert!(stepped.is_ok() || is_fenced(&stepped), "{stepped:?}");
        w.sandbox.finish_hanging();
        let stepped = execute::advance(&w.app, &mut late, Duration::ZERO, &mut 0).await;
        assert!(is_fenced(&stepped), "{stepped:?}");
        assert_eq!(w.nth_run(1).await, before);
        sweep::tick(&w.app).await.unwrap();
        assert_eq!(w.sandbox.list().await.unwrap(), [], "the replaced agent is gone");

        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        let pull = w.our_pull();
        let branch = pull.pull.unwrap().head_ref;
        assert_eq!(w.hub.file_at(REPO, &branch, "answer.txt").as_deref(), Some("42\n"));
        assert_eq!(w.hub.file_at(REPO, &branch, "late.txt"), None);
        assert_eq!(w.own(number).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_node_that_was_away_stops_its_agent_while_the_run_goes_on_elsewhere() {
    World::run(async |w| {
        let (_, late) = started(w).await;
        let (sandbox, other) = second(w).await;
        w.clock.advance(chrono::Duration::seconds(61));
        sandbox.next(Script::hangs());
        let mut run = claim(&other).await;
        sweep::tick(&w.app).await.unwrap();
        assert_eq!(
            w.sandbox.list().await.unwrap(),
            [],
            "the run is another node's, which has not begun it yet"
        );
        assert_eq!(work(&other, &mut run).await, Step::Idle);

        // Everything that the late one may try in the end is refused, and takes nothing from the run.
        for (cancel, state) in [
            (None, RunState::Preparing),
            (Some("ada"), RunState::Preparing),
            (Some("ada"), RunState::Running),
            (None, RunState::Collecting),
            (None, RunState::Publishing),
        ] {
            let mut late = Run { state, cancel_requested: cancel.map(str::to_owned), ..late.clone() };
            let stepped = execute::advance(&w.app, &mut late, Duration::ZERO, &mut 0).await;
            assert!(is_fenced(&stepped), "{state:?}: {stepped:?}");
            let open = store::attempts::latest(&other.store, &run.id).await.unwrap().unwrap();
            assert_eq!((open.ended_at, open.node.as_str()), (None, "n2"), "{state:?}");
        }
        sweep::tick(&other).await.unwrap();
        assert_eq!(sandbox.list().await.unwrap().len(), 1, "the new one stays");
        sandbox.finish_hanging();
        assert_eq!(work(&other, &mut run).await, Step::Done);
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Nothing);
    })
    .await;
}

#[tokio::test]
async fn what_was_kept_before_a_node_went_is_published_by_another() {
    World::run(async |w| {
        w.sandbox.next(Script::edit("answer.txt", "42\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        ingest::tick(&w.app).await.unwrap();
        let mut run = claim(&w.app).await;
        while run.state != RunState::Publishing {
            execute::step(&w.app, &mut run, Duration::ZERO).await.unwrap();
        }
        // The node dies when the changeset is kept, whatever comes after.
        let kept =
            async || store::artifacts::get(&w.app.store, &run.id, "changeset").await.unwrap().is_some();
        assert!(!kept().await);
        let mut publishing = run.clone();
        let mut step = Box::pin(execute::step(&w.app, &mut publishing, Duration::ZERO));
        let died = loop {
            tokio::select! {
                biased;
                ended = &mut step => break ended.map(|_| false).unwrap(),
                () = tokio::time::sleep(Duration::from_millis(1)) => {
                    if kept().await {
                        break true;
                    }
                }
            }
        };
        drop(step);
        assert!(died, "the push was faster than the look");

        let (sandbox, other) = second(w).await;
        w.clock.advance(chrono::Duration::seconds(61));
        let mut run = claim(&other).await;
        assert_eq!(work(&other, &mut run).await, Step::Done);
        assert_eq!((sandbox.agents_started(), w.sandbox.agents_started(), run.attempts), (0, 1, 1));
        assert_eq!((run.outcome.files, run.outcome.commits), (1, 1));
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        let branch = w.our_pull().pull.unwrap().head_ref;
        assert_eq!(w.hub.file_at(REPO, &branch, "answer.txt").as_deref(), Some("42\n"));
    })
    .await;
}

#[tokio::test]
async fn a_run_that_is_given_up_in_the_middle_of_its_push_leaves_nothing_open() {
    World::run(async |w| {
        w.sandbox.next(Script::edit("answer.txt", "42\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        ingest::tick(&w.app).await.unwrap();
        let mut run = claim(&w.app).await;
        while run.state != RunState::Publishing {
            execute::step(&w.app, &mut run, Duration::ZERO).await.unwrap();
        }
        // The node dies when the push is intended, whether or not it took place.
        let key = format!("branch:{}", run.id);
        let app = Arc::clone(&w.app);
        let store = &app.store;
        let mut publishing = run.clone();
        let mut step = Box::pin(execute::step(&app, &mut publishing, Duration::ZERO));
        loop {
            tokio::select! {
                biased;
                _ = &mut step => panic!("the push was faster than the look"),
                () = tokio::time::sleep(Duration::from_millis(1)) => {
                    if store::effects::by_key(store, &key).await.unwrap().is_some() {
                        break;
                    }
                }
            }
        }
        drop(step);
        let (_, other) = second(w).await;
        w.clock.advance(chrono::Duration::seconds(61));
        let mut run = claim(&other).await;
        run.deaths = 100;
        assert_eq!(work(&other, &mut run).await, Step::Done);
        assert_eq!(w.state_of(1).await, RunState::Failed);
        w.settle().await;
        let effect = store::effects::by_key(store, &key).await.unwrap().unwrap();
        let pushed = w.hub.branches(REPO).into_iter().any(|name| name.starts_with("zeblit/"));
        let wanted = if pushed { EffectState::Confirmed } else { EffectState::Failed };
        assert_eq!((effect.state, w.nth_run(1).await.outcome.branch.is_some()), (wanted, pushed));
    })
    .await;
}

#[tokio::test]
async fn a_node_that_lost_what_was_not_kept_yet_leaves_a_new_beginning() {
    World::run(async |w| {
        w.sandbox.next(Script::edit("answer.txt", "41\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        ingest::tick(&w.app).await.unwrap();
        let mut run = claim(&w.app).await;
        while run.state != RunState::Publishing {
            execute::step(&w.app, &mut run, Duration::ZERO).await.unwrap();
        }
        let (sandbox, other) = second(w).await;
        sandbox.next(Script::edit("answer.txt", "42\n"));
        w.clock.advance(chrono::Duration::seconds(61));
        let mut run = claim(&other).await;
        assert_eq!(work(&other, &mut run).await, Step::Done);
        assert_eq!((sandbox.agents_started(), run.attempts), (1, 2));
        w.settle().await;
        let branch = w.our_pull().pull.unwrap().head_ref;
        assert_eq!(w.hub.file_at(REPO, &branch, "answer.txt").as_deref(), Some("42\n"));
    })
    .await;
}

#[tokio::test]
async fn the_next_boot_of_a_node_adopts_at_once_and_others_wait_for_the_lease() {
    World::run(async |w| {
        started(w).await;
        let (_, other) = second(w).await;
        w.restart().await;
        assert!(execute::claim(&other).await.unwrap().is_none(), "it is left to its own node");
        let mut run = claim(&w.app).await;
        w.sandbox.finish_hanging();
        assert_eq!(work(&w.app, &mut run).await, Step::Done);
        assert_eq!((run.attempts, w.sandbox.agents_started()), (1, 1));
        w.settle().await;
    })
    .await;
}

/// What two readers of one inbox make of many commands.
async fn read_by_two(w: &mut World) {
    let (_, other) = second(w).await;
    let mut numbers = Vec::new();
    for text in ["/zeblit fix", "/zeblit help", "/zeblit fix\n\n/zeblit ask why?", "/zeblit fx", "hello"] {
        for _ in 0..4 {
            let number = w.issue();
            w.say(number, "ada", text).await;
            numbers.push((number, text));
        }
    }
    loop {
        let (mine, others) = tokio::join!(ingest::tick(&w.app), ingest::tick(&other));
        if mine.unwrap() + others.unwrap() == 0 {
            break;
        }
    }
    let runs = w.runs().await;
    assert_eq!(runs.len(), 4 + 8, "{runs:#?}");
    let keys: BTreeSet<&str> = runs.iter().map(|run| run.key.as_str()).collect();
    assert_eq!(keys.len(), runs.len());
    let audit = store::audit::list(&w.app.store, 200).await.unwrap();
    let grants = audit.iter().filter(|entry| entry.action == "grant").count();
    let comments_with_commands = 4 * 3;
    assert!(grants >= comments_with_commands, "{audit:#?}");
    let mut lines: Vec<_> =
        audit.iter().map(|e| (e.action.clone(), e.subject.clone(), e.detail.clone())).collect();
    let all = lines.len();
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), all, "nothing is written down twice");
    w.settle().await;
    for (number, text) in numbers {
        // A question has a comment of its own for its answer.
        let wanted = if text == "hello" { 0 } else { 1 + 2 * usize::from(text.contains("ask")) };
        assert_eq!(w.own(number).len(), wanted, "{text}: {:#?}", w.own(number));
    }
}

#[tokio::test]
async fn two_readers_of_the_inbox_do_everything_once() {
    World::run_with(
        |config| {
            config.limits.commands_per_user_hour = 100;
            config.limits.writes_per_minute = 1000;
            config.limits.writes_per_hour = 10_000;
        },
        read_by_two,
    )
    .await;
}

#[tokio::test]
async fn two_readers_of_the_inbox_do_everything_once_on_postgres() {
    World::run_on_postgres(read_by_two).await;
}

#[tokio::test]
async fn a_drained_node_claims_nothing_and_its_live_runs_go_on() {
    World::run(async |w| {
        let (_, mut run) = started(w).await;
        let (sandbox, other) = second(w).await;
        assert_eq!(operate::drain(&w.app, "n1", true, "host").await.unwrap(), 1);
        let number = w.issue();
        w.say(number, "max", "/zeblit fix").await;
        ingest::tick(&w.app).await.unwrap();
        assert!(execute::claim(&w.app).await.unwrap().is_none());
        w.sandbox.finish_hanging();
        assert_eq!(work(&w.app, &mut run).await, Step::Done);
        sandbox.next(Script::nothing());
        let mut second = claim(&other).await;
        assert_eq!(work(&other, &mut second).await, Step::Done);
        assert!(operate::drain(&w.app, "nobody", true, "host").await.is_err());
        operate::drain(&w.app, "n1", false, "host").await.unwrap();
        w.fix(Script::nothing()).await;
        let audit = store::audit::list(&w.app.store, 100).await.unwrap();
        for action in ["drain", "undrain"] {
            assert_eq!(audit.iter().filter(|entry| entry.action == action).count(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_run_waits_for_a_node_that_has_what_it_needs_and_says_so() {
    World::run(async |w| {
        w.hub.push_commit(REPO, "main", &[(".github/zeblit.toml", "needs = [\"gpu\"]\n")], "Needs");
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Queued);
        let first_line = |w: &World| w.sticky(number).lines().next().unwrap().to_owned();
        assert_eq!(
            first_line(w),
            "**⏳ Queued · position 1 · waits for a worker with `gpu`: none is running**"
        );
        let waiting = store::nodes::without_node(&w.app.store, w.app.clock.now(), 10).await.unwrap();
        assert_eq!(waiting.len(), 1);

        let sandbox = Arc::new(FakeSandbox::default());
        let mut able = node("n2");
        able.capabilities = vec!["amd64".into(), "gpu".into()];
        let other = w.another(able, sandbox.clone()).await;
        w.settle().await;
        assert_eq!(first_line(w), "**⏳ Queued · position 1**");
        sandbox.next(Script::edit("answer.txt", "42\n"));
        let mut run = claim(&other).await;
        assert_eq!(work(&other, &mut run).await, Step::Done);
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
    })
    .await;
}

// ---------------------------------------------------------------- real processes

/// Ends at once and always does the same.
const QUICK: &str = "---\nname: quick\ndescription: Answers.\nadapter: command\nargv: [sh, -c, \"echo 42 > answer.txt; echo answered\"]\n---\n";
/// Takes its time, so that there is a middle to be stopped in.
pub const SLOW: &str = "---\nname: quick\ndescription: Waits, then answers.\nadapter: command\nargv: [sh, -c, \"echo thinking; sleep 4; echo 42 > answer.txt; echo answered\"]\n---\n";
/// Nothing may take longer than that: lists that lag and retries included.
const STUCK: Duration = Duration::from_secs(180);
/// Seconds of a lease in the proof: pauses last longer.
const LEASE_SECONDS: u64 = 5;

/// What processes of one installation share.
pub struct Installation {
    pub hub: Arc<FakeHub>,
    pub folder: tempfile::TempDir,
    /// TOML lines that every node has.
    shared: String,
}

impl Installation {
    /// `more` are sections of the configuration; `postgres` when there are several nodes.
    pub async fn new(agent: &str, database: Option<&str>, limits: &str, more: &str) -> Self {
        let hub = Arc::new(FakeHub::start().await);
        hub.add_user("ada", 101);
        hub.add_repo(REPO, &[("README.md", "# Demo\n")]);
        hub.set_role(REPO, "ada", "write");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("agents")).unwrap();
        std::fs::write(folder.path().join("agents/quick.md"), agent).unwrap();
        let key = folder.path().join("app.pem");
        std::fs::write(&key, APP_KEY).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let database = database.map_or(String::new(), |url| format!("[database]\nurl = \"{url}\"\n"));
        let shared = format!(
            "{database}{more}\n[agents]\nfix = \"quick\"\nfolder = \"{}\"\n\
             [limits]\nwrites_per_minute = 100000\nwrites_per_hour = 1000000\nwrite_spacing_ms = 0\n\
             commands_per_user_hour = 1000000\n{limits}\n",
            folder.path().join("agents").display(),
        );
        Self { hub, folder, shared }
    }

    /// A node with a folder of its own and the credentials of its role only.
    pub fn node(&self, name: &str, role: &str, public: Option<SocketAddr>) -> Process {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let address = own_address();
        let public = public.unwrap_or(address);
        let mut github = format!(
            "app_id = {}\napi_url = \"{}\"\ngit_url = \"{}\"\nweb_url = \"{}\"\n",
            self.hub.app_id(),
            self.hub.api_url(),
            self.hub.git_url(),
            self.hub.web_url()
        );
        if matches!(role, "all" | "web") {
            github.push_str(&format!("webhook_secrets = [\"{SECRET}\"]\n"));
        }
        if role != "web" {
            let key = self.folder.path().join("app.pem");
            github.push_str(&format!("private_key_file = \"{}\"\n", key.display()));
        }
        let config = format!(
            "state_dir = \"{}\"\nsecret_key = \"{}\"\n[node]\nname = \"{name}\"\nrole = \"{role}\"\nslots = 3\n\
             [server]\nlisten = \"{address}\"\npublic_url = \"http://{public}\"\n[github]\n{github}\
             [sandbox]\nkind = \"process\"\nsocket_dir = \"{}\"\n{}",
            folder.join("state").display(),
            "k".repeat(40),
            folder.join("sockets").display(),
            self.shared
        );
        std::fs::write(folder.join("zeblit-server.toml"), config).unwrap();
        Process { name: name.into(), folder, address, child: None, listens: matches!(role, "all" | "web") }
    }

    /// An issue with a command on it; gives both and the delivery.
    pub fn ask(&self) -> (i64, i64, Delivery) {
        let number = self.hub.open_issue(REPO, "ada", "No answer", "There is no answer.");
        let comment = self.hub.comment(REPO, number, "ada", "/zeblit fix");
        (number, comment, self.hub.comment_created(REPO, comment))
    }
}

/// A port of this process alone: below those that connections get, so that it stays free while nobody listens.
fn own_address() -> SocketAddr {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    loop {
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let port = 12_000 + (std::process::id().wrapping_mul(17) + n) % 18_000;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// One `zeblit serve`.
pub struct Process {
    pub name: String,
    pub folder: PathBuf,
    pub address: SocketAddr,
    pub child: Option<Child>,
    listens: bool,
}

impl Process {
    /// The command of this node, without variables of the test run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeblit"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ZEBLIT_") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(&self.folder)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    pub fn begin(&mut self, arguments: &[&str]) {
        let child = self.command(&[&["serve"], arguments].concat()).spawn().unwrap();
        self.child = Some(child);
    }

    /// Starts, and waits until it does its work.
    pub async fn start(&mut self) {
        let greetings = self.greetings();
        self.begin(&[]);
        let (address, listens) = (self.address, self.listens);
        until("the node is up", || {
            if listens { std::net::TcpStream::connect(address).is_ok() } else { self.greetings() > greetings }
        })
        .await;
    }

    fn greetings(&self) -> usize {
        self.log().matches(" is node ").count()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// SIGKILL: no handler of the program sees it.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The status of a process that ends by itself, and how long that took.
    pub async fn ended(&mut self, at_most: Duration) -> (std::process::ExitStatus, Duration) {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().expect("it runs").try_wait().unwrap() {
                self.child = None;
                return (status, begin.elapsed());
            }
            assert!(begin.elapsed() < at_most, "{} does not end: {}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Posts a delivery as plain HTTP; the status, if anybody answered.
    pub async fn post(&self, delivery: &Delivery) -> Option<u16> {
        let asked = async {
            let mut stream = tokio::net::TcpStream::connect(self.address).await.ok()?;
            let mut head = format!(
                "POST /webhooks/github HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
                self.address,
                delivery.body.len()
            );
            for (name, value) in delivery.headers(SECRET) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            stream.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
            stream.write_all(&delivery.body).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer.split(' ').nth(1)?.parse().ok()
        };
        tokio::time::timeout(Duration::from_secs(10), asked).await.ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A stopped one, too; a test that failed has nothing to lose any more.
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in ["state", "sockets"] {
            let _ = Command::new("umount").arg("--quiet").arg(self.folder.join(name)).status();
        }
    }
}

/// No single wait is longer.
const PATIENCE: Duration = Duration::from_secs(90);

pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// A repeatable source of chance.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Every end of a run that the database sees, and every write that would undo one or come from an older claim.
const WATCH_ENDS: &str = "
CREATE TABLE proof_ends (run TEXT NOT NULL, what TEXT NOT NULL);
CREATE FUNCTION proof_end() RETURNS trigger AS $$ BEGIN
  IF OLD.state IN ('succeeded', 'nothing', 'needs_input', 'failed', 'cancelled') AND NEW.state <> OLD.state THEN
    INSERT INTO proof_ends VALUES (NEW.id, 'undone');
  ELSIF NEW.state IN ('succeeded', 'nothing', 'needs_input', 'failed', 'cancelled') AND NEW.state <> OLD.state THEN
    INSERT INTO proof_ends VALUES (NEW.id, 'end');
  END IF;
  IF NEW.fence < OLD.fence THEN INSERT INTO proof_ends VALUES (NEW.id, 'late'); END IF;
  RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER proof_end BEFORE UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION proof_end();";

/// What happened to the nodes.
#[derive(Debug, Default)]
struct Chaos {
    kills: usize,
    pauses: usize,
    cuts: usize,
}

struct Cluster {
    installation: Installation,
    nodes: Vec<Process>,
    redis: Proxy,
    database: sqlx::PgConnection,
    /// The node that is paused, until when.
    paused: Option<(usize, Instant)>,
    redis_until: Option<Instant>,
    chaos: Chaos,
}

const WEB: usize = 0;
const WORKERS: [usize; 2] = [3, 4];

impl Cluster {
    async fn count(&mut self, sql: &'static str) -> i64 {
        sqlx::query(sql).fetch_one(&mut self.database).await.unwrap().get::<i64, _>("n")
    }

    /// What is open, and the last words of each node: for a proof that fails.
    async fn story(&mut self) -> String {
        let mut story = String::new();
        for sql in [
            "SELECT id || ' ' || state || ' fence ' || fence || ' deaths ' || deaths || ' attempts ' || attempts || ' due ' || not_before \
             || ' lease ' || COALESCE(lease_owner, '-') || ' until ' || COALESCE(lease_until, 0) || ' now ' \
             || CAST(EXTRACT(EPOCH FROM now()) * 1000 AS BIGINT) AS line FROM runs \
             WHERE state NOT IN ('succeeded', 'nothing', 'needs_input', 'failed', 'cancelled') LIMIT 20",
            "SELECT effect_key || ' ' || state || ' tries ' || tries || ' due ' || not_before || ' ' || COALESCE(last_error, '') AS line \
             FROM effects WHERE state IN ('planned', 'sending', 'ambiguous') LIMIT 20",
            "SELECT name || ' ' || owner || ' ' || until AS line FROM duties",
        ] {
            for row in sqlx::query(sql).fetch_all(&mut self.database).await.unwrap() {
                story.push_str(&format!("\n{}", row.get::<String, _>("line")));
            }
        }
        for node in &self.nodes {
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            story.push_str(&format!(
                "\n---- {}\n{}",
                node.name,
                lines[lines.len().saturating_sub(25)..].join("\n")
            ));
        }
        story
    }

    async fn open_runs(&mut self) -> i64 {
        self.count(
            "SELECT COUNT(*) AS n FROM runs WHERE state NOT IN ('succeeded', 'nothing', 'needs_input', 'failed', 'cancelled')",
        )
        .await
    }

    async fn open_effects(&mut self) -> i64 {
        self.count("SELECT COUNT(*) AS n FROM effects WHERE state IN ('planned', 'sending', 'ambiguous')")
            .await
    }

    /// Kills a node and starts it again; one that is paused stays as it is.
    async fn kill(&mut self, node: usize) {
        if self.paused.is_some_and(|(paused, _)| paused == node) {
            return;
        }
        if let Some(process) = self.nodes.get_mut(node) {
            process.kill();
            process.begin(&[]);
            self.chaos.kills += 1;
        }
    }

    /// What is over comes to its end; a process that ended by itself is started again, as a service manager does.
    fn mend(&mut self, all: bool) {
        let now = Instant::now();
        for node in &mut self.nodes {
            if node.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                node.begin(&[]);
            }
        }
        if let Some((node, until)) = self.paused
            && (all || now >= until)
        {
            self.nodes[node].signal("-CONT");
            self.paused = None;
        }
        if let Some(until) = self.redis_until
            && (all || now >= until)
        {
            self.redis.set(Way::Open);
            self.redis_until = None;
        }
    }

    async fn trouble(&mut self, dice: &mut Dice) {
        let worker = WORKERS[dice.below(2) as usize];
        // One of each kind comes first: a short proof has them all, too.
        let roll = match &self.chaos {
            Chaos { kills: 0, .. } => 0,
            Chaos { pauses: 0, .. } => 12,
            Chaos { cuts: 0, .. } => 16,
            _ => dice.below(20),
        };
        match roll {
            0..=6 => self.kill(worker).await,
            7..=9 => self.kill(1 + dice.below(2) as usize).await,
            10..=11 => self.kill(WEB).await,
            12..=15 if self.paused.is_none() => {
                self.nodes[worker].signal("-STOP");
                self.paused = Some((worker, Instant::now() + Duration::from_secs(LEASE_SECONDS + 3)));
                self.chaos.pauses += 1;
            }
            16..=19 if self.redis_until.is_none() => {
                match dice.below(3) {
                    0 => self.redis.set(Way::Cut),
                    1 => self.redis.set(Way::Swallows),
                    _ => flush_redis().await,
                }
                self.redis_until = Some(Instant::now() + Duration::from_secs(2 + dice.below(4)));
                self.chaos.cuts += 1;
            }
            _ => {}
        }
    }
}

/// Where the test's Redis is, as `host:port`.
fn redis_address() -> Option<String> {
    let url = std::env::var("ZEBLIT_TEST_REDIS").ok()?;
    Some(url.trim_start_matches("redis://").trim_end_matches('/').to_owned())
}

/// Everything that Redis keeps goes; what it passes on is not kept.
async fn flush_redis() {
    let Some(address) = redis_address() else { return };
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { return };
    stream.write_all(b"FLUSHDB\r\n").await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}

async fn cluster(database: &Database, redis: &str) -> Cluster {
    store::Store::open(database.url()).await.unwrap().close().await;
    world::execute_sql(database.url(), WATCH_ENDS).await;
    let redis = Proxy::to(redis).await;
    let more = format!("[redis]\nurl = \"redis://{}/\"\n", redis.address);
    let limits = format!(
        "lease_seconds = {LEASE_SECONDS}\nruns = 6\nruns_per_repo = 6\nruns_per_user = 6\nprogress_seconds = 2\n"
    );
    let installation = Installation::new(QUICK, Some(database.url()), &limits, &more).await;
    let web = installation.node("web", "web", None);
    let public = Some(web.address);
    let mut nodes = vec![web];
    for (name, role) in
        [("deliver-1", "deliver"), ("deliver-2", "deliver"), ("worker-1", "worker"), ("worker-2", "worker")]
    {
        nodes.push(installation.node(name, role, public));
    }
    for node in &mut nodes {
        node.start().await;
    }
    let connection = sqlx::PgConnection::connect(database.url()).await.unwrap();
    Cluster {
        installation,
        nodes,
        redis,
        database: connection,
        paused: None,
        redis_until: None,
        chaos: Chaos::default(),
    }
}

/// Five nodes under kills, pauses and cuts: every run that was asked for ends once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_end_every_run_once() {
    let (Some(database), Some(redis)) = (world::postgres().await, redis_address()) else {
        assert!(std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_POSTGRES and ZEBLIT_TEST_REDIS");
        return;
    };
    let wanted: usize =
        std::env::var("ZEBLIT_PROVE_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(40);
    let mut cluster = cluster(&database, &redis).await;
    let mut dice = Dice(2026);
    let mut asked: BTreeMap<i64, (i64, Delivery, bool)> = BTreeMap::new();
    let mut trouble_at = Instant::now();
    let mut moved = (Instant::now(), 0);
    loop {
        cluster.mend(false);
        let open = cluster.open_runs().await;
        let ended = cluster.count("SELECT COUNT(*) AS n FROM proof_ends").await;
        if ended > moved.1 {
            moved = (Instant::now(), ended);
        }
        if moved.0.elapsed() >= STUCK {
            panic!("nothing ends any more: {}", cluster.story().await);
        }
        // A few at a time: what waits for an answer is sent again, as GitHub would.
        let unanswered = asked.values().filter(|(_, _, accepted)| !accepted).count();
        if asked.len() < wanted && usize::try_from(open).unwrap() + unanswered < 10 {
            let (number, comment, delivery) = cluster.installation.ask();
            asked.insert(number, (comment, delivery, false));
        }
        for (_, delivery, accepted) in asked.values_mut().filter(|(_, _, accepted)| !accepted) {
            let answer = cluster.nodes[WEB].post(delivery).await;
            *accepted = matches!(answer, Some(200 | 202));
        }
        let all_accepted = asked.len() == wanted && asked.values().all(|(_, _, accepted)| *accepted);
        if all_accepted && open <= 3 {
            break;
        }
        if trouble_at.elapsed() >= Duration::from_millis(500 + dice.below(1500)) {
            trouble_at = Instant::now();
            cluster.trouble(&mut dice).await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    cluster.mend(true);
    let rest = Instant::now();
    while cluster.open_runs().await > 0 || cluster.open_effects().await > 0 {
        if rest.elapsed() >= STUCK {
            panic!("it does not come to rest: {}", cluster.story().await);
        }
        cluster.mend(true);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let (lost, doubled) = judge(&mut cluster, &asked).await;
    let refused: usize =
        cluster.nodes.iter().map(|node| node.log().matches("somebody else has this run now").count()).sum();
    let chaos = &cluster.chaos;
    let line = format!(
        "prove-nodes: 5 nodes, {} runs, {} kills, {} pauses, {} Redis cuts: {} ended once, {} doubled, {} lost, {refused} late claims refused",
        asked.len(),
        chaos.kills,
        chaos.pauses,
        chaos.cuts,
        asked.len() - lost.len().min(asked.len()),
        doubled.len(),
        lost.len()
    );
    if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(PathBuf::from(folder).join("nodes.txt"), format!("{line}\n")).unwrap();
    }
    assert!(lost.is_empty() && doubled.is_empty(), "{line}\nlost: {lost:#?}\ndoubled: {doubled:#?}");
    assert!(chaos.kills > 0 && chaos.pauses > 0 && chaos.cuts > 0, "{line}");
    for node in &cluster.nodes {
        assert!(!node.log().contains(SECRET), "a secret in the log of {}", node.name);
    }
    drop(cluster);
    database.remove().await;
}

/// What is missing, and what is there twice: in the database and on the forge.
async fn judge(
    cluster: &mut Cluster,
    asked: &BTreeMap<i64, (i64, Delivery, bool)>,
) -> (Vec<String>, Vec<String>) {
    let (mut lost, mut doubled) = (Vec::new(), Vec::new());
    let rows = sqlx::query(
        "SELECT t.number AS number, r.id AS id, r.state AS state, r.outcome AS outcome, \
         (SELECT COUNT(*) FROM proof_ends e WHERE e.run = r.id AND e.what = 'end') AS ends, \
         (SELECT COUNT(*) FROM proof_ends e WHERE e.run = r.id AND e.what <> 'end') AS wrong \
         FROM runs r JOIN tasks t ON t.id = r.task",
    )
    .fetch_all(&mut cluster.database)
    .await
    .unwrap();
    let hub = &cluster.installation.hub;
    let mut seen: BTreeSet<i64> = BTreeSet::new();
    let mut succeeded = 0;
    for row in &rows {
        let (number, id, state): (i64, String, String) = (row.get("number"), row.get("id"), row.get("state"));
        let (ends, wrong): (i64, i64) = (row.get("ends"), row.get("wrong"));
        if !seen.insert(number) {
            doubled.push(format!("two runs of #{number}"));
        }
        if ends != 1 || wrong != 0 {
            doubled.push(format!("run {id} of #{number} ended {ends} times, {wrong} wrong writes"));
        }
        // A run may be given up when its worker died too often: then it says so.
        match state.as_str() {
            "succeeded" => succeeded += 1,
            "failed" if row.get::<String, _>("outcome").contains("times") => {}
            other => {
                lost.push(format!("run {id} of #{number} is {other}: {}", row.get::<String, _>("outcome")))
            }
        }
        // A failure is told to who asked in a comment of its own.
        let (told, own): (Vec<String>, Vec<String>) =
            hub.own_comments(REPO, number).into_iter().partition(|body| body.starts_with("❌ @"));
        if told.len() > usize::from(state == "failed") {
            doubled.push(format!("the failure of #{number} is told {} times", told.len()));
        }
        match own.as_slice() {
            [] => lost.push(format!("#{number} has no comment")),
            [one] if one.starts_with("**✅") || one.starts_with("**❌") => {}
            [one] => lost.push(format!("the last word on #{number} is {}", one.lines().next().unwrap_or(""))),
            more => {
                let first: Vec<&str> = more.iter().map(|body| body.lines().next().unwrap_or("")).collect();
                doubled.push(format!("{} comments on #{number}: {first:?}", more.len()));
            }
        }
    }
    for (number, (comment, _, _)) in asked {
        if !seen.contains(number) {
            lost.push(format!("#{number} has no run"));
        }
        if !hub.reactions(REPO, On::Comment(*comment)).contains(&"eyes".to_owned()) {
            lost.push(format!("the command on #{number} was not seen"));
        }
    }
    let branches: BTreeSet<String> =
        hub.branches(REPO).into_iter().filter(|name| name.starts_with("zeblit/")).collect();
    let mut heads = BTreeSet::new();
    for pull in hub.pulls(REPO) {
        let head = pull.pull.map(|pull| pull.head_ref).unwrap_or_default();
        if !heads.insert(head.clone()) {
            doubled.push(format!("two pull requests of {head}"));
        }
        let sha = hub.head(REPO, &head).unwrap_or_default();
        let mut names = BTreeSet::new();
        for check in hub.checks(REPO, &sha) {
            if !names.insert(check.name.clone()) {
                doubled.push(format!("two checks `{}` on {head}", check.name));
            }
            if check.conclusion.is_none() {
                lost.push(format!("the check of {head} has no end"));
            }
        }
    }
    if heads.len() != succeeded || branches.len() < heads.len() {
        lost.push(format!(
            "{succeeded} runs succeeded, {} pull requests, {} branches",
            heads.len(),
            branches.len()
        ));
    }
    (lost, doubled)
}
