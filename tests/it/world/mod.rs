//! The world of a scenario. `World::run` fails the test when anything is left over at its end.

pub mod docker;
pub mod hub;
pub mod model;
pub mod proxy;
pub mod sandbox;
pub mod time;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use hub::payloads::Delivery;
use hub::{FakeHub, tickets};
use sandbox::FakeSandbox;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use time::{CountedIds, ProcessClock, SimClock};
use tower::ServiceExt;
use zeblit::agent::definition::AgentSet;
use zeblit::app::{App, Signer, broker_settings, disk};
use zeblit::broker::Broker;
use zeblit::clock::{Clock, IdKind, Ids};
use zeblit::config::{Config, GithubConfig};
use zeblit::domain::ids::RunId;
use zeblit::domain::node::{Node, Role};
use zeblit::domain::run::{Run, RunState};
use zeblit::domain::secrets::SecretScan;
use zeblit::engine::execute::{self, Step};
use zeblit::engine::load::Loads;
use zeblit::engine::{EngineError, deliver, ingest, sweep};
use zeblit::git::Git;
use zeblit::queue::local::LocalWakeup;
use zeblit::remote::github::{GithubForge, GithubSettings};
use zeblit::remote::jira::Jira;
use zeblit::remote::sentry::Sentry;
use zeblit::sandbox::Sandbox;
use zeblit::store::{self, Store};

pub const SECRET: &str = "the webhook secret of the test world";
pub const REPO: &str = "octo/demo";
pub const APP_KEY: &str = hub::APP_KEY;

/// Rounds of ticks after which a world that does not come to rest is broken.
const MAX_ROUNDS: usize = 400;

/// A run that this world works on.
struct Worker {
    run: Run,
    troubles: u32,
}

pub struct World {
    pub hub: FakeHub,
    pub sandbox: Arc<FakeSandbox>,
    pub clock: Arc<SimClock>,
    /// The clock as `app` sees it.
    pub process: Arc<ProcessClock>,
    pub app: Arc<App>,
    pub config: Config,
    ids: Arc<CountedIds>,
    /// Before the folder: what is mounted cannot be removed with it.
    _mounts: Mounts,
    folder: tempfile::TempDir,
    database: Database,
    /// Set when agents run in containers of the real engine; then time passes by itself, too.
    engine: Option<docker::Engine>,
    workers: Vec<Worker>,
    boots: u32,
    /// Set by scenarios that end in the middle on purpose.
    pub ends_in_the_middle: bool,
}

/// What runs that did not end have mounted below a folder.
struct Mounts(std::path::PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        for point in zeblit::mount::below(&self.0).iter().rev() {
            // Best effort: the scenario has told already what is wrong.
            let _ = zeblit::mount::unmount(point);
        }
    }
}

/// Which database a world stands on.
pub enum Database {
    Sqlite(String),
    Postgres { url: String, admin: String, name: String },
}

impl Database {
    pub fn url(&self) -> &str {
        match self {
            Database::Sqlite(url) | Database::Postgres { url, .. } => url,
        }
    }

    /// Removes it from its server.
    pub async fn remove(self) {
        if let Database::Postgres { admin, name, .. } = self {
            execute_sql(&admin, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
    }
}

/// A database of its own on the test server. CI must set `ZEBLIT_TEST_POSTGRES`.
pub async fn postgres() -> Option<Database> {
    let admin = std::env::var("ZEBLIT_TEST_POSTGRES").ok()?;
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let name = format!("zeblit_world_{}_{count}", std::process::id());
    execute_sql(&admin, &format!("CREATE DATABASE {name}")).await;
    let (base, _) = admin.rsplit_once('/').expect("a database URL with a name");
    Some(Database::Postgres { url: format!("{base}/{name}"), admin: admin.clone(), name })
}

pub async fn execute_sql(url: &str, sql: &str) {
    use sqlx::Connection;
    let mut connection = sqlx::postgres::PgConnection::connect(url).await.expect("the test server answers");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.expect("allowed");
}

impl World {
    /// Runs a scenario on SQLite, and fails it when anything is left over.
    pub async fn run(scenario: impl AsyncFnOnce(&mut World)) {
        Self::run_with(|_| {}, scenario).await;
    }

    /// With a changed configuration.
    pub async fn run_with(change: impl Fn(&mut Config), scenario: impl AsyncFnOnce(&mut World)) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = Database::Sqlite(format!("sqlite:{}", folder.path().join("zeblit.db").display()));
        Self::run_on(folder, database, None, change, scenario).await;
    }

    /// With real containers: the configured image must be at the engine, else the scenario fails.
    pub async fn run_in_docker(change: impl Fn(&mut Config), scenario: impl AsyncFnOnce(&mut World)) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = Database::Sqlite(format!("sqlite:{}", folder.path().join("zeblit.db").display()));
        let engine = docker::Engine::new();
        Self::run_on(folder, database, Some(engine), change, scenario).await;
    }

    /// As `run_in_docker`, on Postgres when there is one, with this password in its URL.
    pub async fn run_in_docker_on_postgres(
        password: &str,
        change: impl Fn(&mut Config),
        scenario: impl AsyncFnOnce(&mut World),
    ) {
        let Some(database) = postgres().await else {
            assert!(std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_POSTGRES");
            return Self::run_in_docker(change, scenario).await;
        };
        let database = match database {
            Database::Postgres { url, admin, name } => {
                let mut url = url::Url::parse(&url).expect("a URL");
                // A server that trusts local connections does not look at it.
                url.set_password(Some(password)).expect("a URL with a host");
                Database::Postgres { url: url.into(), admin, name }
            }
            other => other,
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::run_on(folder, database, Some(docker::Engine::new()), change, scenario).await;
    }

    /// On Postgres when `ZEBLIT_TEST_POSTGRES` names a server; CI always does.
    pub async fn run_on_postgres(scenario: impl AsyncFnOnce(&mut World)) {
        Self::run_on_postgres_with(|_| {}, scenario).await;
    }

    /// With a changed configuration.
    pub async fn run_on_postgres_with(change: impl Fn(&mut Config), scenario: impl AsyncFnOnce(&mut World)) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let Some(database) = postgres().await else {
            assert!(std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_POSTGRES");
            return;
        };
        Self::run_on(folder, database, None, change, scenario).await;
    }

    /// The same scenario on both databases, one after the other.
    pub async fn run_on_both(change: impl Fn(&mut Config), scenario: impl AsyncFn(&mut World)) {
        Self::run_with(&change, &scenario).await;
        Self::run_on_postgres_with(&change, &scenario).await;
    }

    async fn run_on(
        folder: tempfile::TempDir,
        database: Database,
        engine: Option<docker::Engine>,
        change: impl Fn(&mut Config),
        scenario: impl AsyncFnOnce(&mut World),
    ) {
        let clock = Arc::new(SimClock::default());
        let hub = FakeHub::with_clock(clock.clone()).await;
        for (login, id, role) in
            [("ada", 101, "write"), ("bob", 102, "read"), ("tri", 103, "triage"), ("max", 104, "admin")]
        {
            hub.add_user(login, id);
            if id == 101 {
                hub.add_repo(
                    REPO,
                    &[("README.md", "# Demo\n"), ("src/app.py", "def answer():\n    return 41\n")],
                );
            }
            hub.set_role(REPO, login, role);
        }
        let mut config = config(folder.path(), &hub, &database);
        config.agents.fix = "demo-fix".into();
        change(&mut config);
        let ids = Arc::new(CountedIds::default());
        let sandbox = Arc::new(FakeSandbox::default());
        let place: Arc<dyn Sandbox> = match &engine {
            Some(engine) => {
                engine.require(&config.sandbox.image);
                clock.follow_real_time();
                ids.name_slots(engine.instance());
                engine.sandbox(folder.path(), &config)
            }
            None => sandbox.clone(),
        };
        let process = Arc::new(ProcessClock::new(clock.clone()));
        let app = build(node("n1"), folder.path(), &config, &hub, place, &process, &ids, &database).await;
        sweep::boot(&app).await.expect("boots");
        let mut world = World {
            hub,
            sandbox,
            clock,
            process,
            app,
            config,
            ids,
            _mounts: Mounts(folder.path().to_owned()),
            folder,
            database,
            engine,
            workers: Vec::new(),
            boots: 1,
            ends_in_the_middle: false,
        };
        scenario(&mut world).await;
        world.end().await;
    }

    /// The process dies: everything in memory is gone; a new one starts on the same database and folders.
    pub async fn restart(&mut self) {
        self.workers.clear();
        self.boots += 1;
        let place: Arc<dyn Sandbox> = match &self.engine {
            Some(engine) => engine.sandbox(self.folder.path(), &self.config),
            None => self.sandbox.clone(),
        };
        self.app = self.built(place).await;
        sweep::boot(&self.app).await.expect("boots");
        ingest::take_over(&self.app).await.expect("reads the inbox");
    }

    async fn built(&self, place: Arc<dyn Sandbox>) -> Arc<App> {
        self.process.lives();
        let (folder, process) = (self.folder.path(), &self.process);
        build(node("n1"), folder, &self.config, &self.hub, place, process, &self.ids, &self.database).await
    }

    /// One more process of this installation, on a machine of its own: same database, same forge.
    pub async fn another(&self, node: Node, sandbox: Arc<FakeSandbox>) -> Arc<App> {
        let folder = self.folder.path().join(&node.id);
        std::fs::create_dir_all(&folder).expect("a folder of our own");
        let process = Arc::new(ProcessClock::new(self.clock.clone()));
        let app =
            build(node, &folder, &self.config, &self.hub, sandbox, &process, &self.ids, &self.database).await;
        sweep::boot(&app).await.expect("boots");
        app
    }

    /// Posts a delivery as GitHub would.
    pub async fn deliver(&self, delivery: &Delivery) -> StatusCode {
        let mut request = Request::post("/webhooks/github");
        for (name, value) in delivery.headers(SECRET) {
            request = request.header(name, value);
        }
        let status = self.request(request.body(Body::from(delivery.body.clone())).expect("a request")).await;
        self.hub.log_attempt(delivery, status.as_u16());
        status
    }

    /// Nobody listens: the delivery is tried in vain.
    pub fn miss(&self, delivery: &Delivery) {
        self.hub.log_attempt(delivery, 502);
    }

    pub async fn request(&self, request: Request<Body>) -> StatusCode {
        zeblit::http::router(Arc::clone(&self.app)).oneshot(request).await.expect("infallible").status()
    }

    /// Somebody comments, and the delivery arrives. Gives the comment's id.
    pub async fn say(&self, number: i64, login: &str, body: &str) -> i64 {
        let id = self.hub.comment(REPO, number, login, body);
        let status = self.deliver(&self.hub.comment_created(REPO, id)).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        id
    }

    /// An issue of bob's to work on.
    pub fn issue(&self) -> i64 {
        self.hub.open_issue(REPO, "bob", "The answer is wrong", "It says 41, it should say 42.")
    }

    /// Ticks until nothing happens any more. Time passes only where something waits for it.
    pub async fn settle(&mut self) {
        if self.engine.is_some() {
            return self.until("the world is at rest", async |w, moved| !moved && w.workers.is_empty()).await;
        }
        for _ in 0..MAX_ROUNDS {
            if !self.round().await {
                return;
            }
        }
        panic!("the world does not come to rest; open effects: {:?}", self.open_effects().await);
    }

    /// The time as the program sees it.
    pub fn clock_now(&self) -> chrono::DateTime<chrono::Utc> {
        self.clock.now()
    }

    /// Whoever worked on runs is gone for good; their leases stay.
    pub fn forget_workers(&mut self) {
        self.workers.clear();
    }

    /// Whether this world works on no run.
    pub fn is_idle(&self) -> bool {
        self.workers.is_empty()
    }

    /// One round of every loop. False when nothing happened and nothing will soon.
    pub async fn round(&mut self) -> bool {
        let mut moved = false;
        for wanted in self.hub.wanted_again() {
            self.deliver(&wanted).await;
            moved = true;
        }
        let taken = ingest::tick(&self.app).await.expect("ingest");
        moved |= taken > 0;
        while let Some(run) = execute::claim(&self.app).await.expect("claim") {
            moved = true;
            self.workers.push(Worker { run, troubles: 0 });
        }
        moved |= self.work().await;
        sweep::tick(&self.app).await.expect("sweep");
        let ticked = deliver::tick(&self.app).await.expect("deliver");
        moved |= ticked.sent > 0;
        // Where containers are real, time is not skipped while one of them may still say something.
        if moved || (self.engine.is_some() && !self.workers.is_empty()) {
            return moved;
        }
        let now = self.clock.now();
        let inbox = ingest::next_due(&self.app).await.expect("inbox");
        let soon = [ticked.next.filter(|next| *next - now <= chrono::Duration::minutes(70)), inbox];
        match soon.into_iter().flatten().min() {
            Some(next) => {
                self.clock.advance_to(next.max(now + chrono::Duration::milliseconds(1)));
                true
            }
            None => false,
        }
    }

    async fn work(&mut self) -> bool {
        let mut moved = false;
        let mut left = Vec::new();
        let patience = self.engine.as_ref().map_or(Duration::ZERO, |_| docker::POLL);
        for mut worker in std::mem::take(&mut self.workers) {
            let until = self.clock.now() + execute::LEASE;
            match store::runs::heartbeat(&self.app.store, &worker.run.id, worker.run.fence, until).await {
                Ok(cancel) => worker.run.cancel_requested = cancel,
                Err(store::StoreError::Fenced { .. }) => continue,
                Err(error) => panic!("heartbeat: {error}"),
            }
            match execute::advance(&self.app, &mut worker.run, patience, &mut worker.troubles).await {
                Ok(Step::Idle) => left.push(worker),
                Ok(Step::Again) => {
                    moved = true;
                    left.push(worker);
                }
                Ok(Step::Wait(pause)) => {
                    moved = true;
                    self.clock.advance(chrono::Duration::from_std(pause).expect("short"));
                    left.push(worker);
                }
                Ok(Step::Done) => moved = true,
                Err(EngineError::Store(store::StoreError::Fenced { .. })) => moved = true,
                Err(error) => panic!("run {}: {error}", worker.run.id),
            }
        }
        self.workers = left;
        moved
    }

    /// Time passes, with ticks on the way.
    pub async fn pass(&mut self, time: chrono::Duration) {
        let step = chrono::Duration::seconds(20);
        let end = self.clock.now() + time;
        while self.clock.now() < end {
            self.clock.advance(step.min(end - self.clock.now()));
            self.settle().await;
        }
    }

    /// A comment that starts a change, and its whole way to rest.
    pub async fn fix(&mut self, script: sandbox::Script) -> i64 {
        let number = self.issue();
        self.sandbox.next(script);
        self.say(number, "ada", "/zeblit fix").await;
        self.settle().await;
        number
    }

    /// An issue and a comment of ada's on it; the agent that may follow plays the script. Gives both numbers.
    pub async fn ask(&mut self, command: &str, script: sandbox::Script) -> (i64, i64) {
        let number = self.issue();
        self.sandbox.next(script);
        let comment = self.say(number, "ada", command).await;
        (number, comment)
    }

    /// A pull request of bob's in the repository itself, from `feature` to `main`.
    pub fn pull(&self) -> i64 {
        self.hub.push_commit(REPO, "feature", &[("src/new.py", "def new():\n    return 1\n")], "Add new");
        self.hub.open_pull(REPO, "bob", "feature", "main", "Something new")
    }

    /// One stage of a round, for stops at finer places: 0 ingest, 1 claim, 2 work, 3 sweep, 4 deliver.
    pub async fn stage(&mut self, stage: usize) {
        match stage {
            0 => {
                ingest::tick(&self.app).await.expect("ingest");
            }
            1 => {
                if let Some(run) = execute::claim(&self.app).await.expect("claim") {
                    self.workers.push(Worker { run, troubles: 0 });
                }
            }
            2 => {
                self.work().await;
            }
            3 => sweep::tick(&self.app).await.expect("sweep"),
            _ => {
                deliver::tick(&self.app).await.expect("deliver");
            }
        }
    }

    /// As `settle`, but the process dies at its nth wait for anything (a reply, a row, a child): what was under
    /// way there is dropped where it stood. False when the world came to rest before.
    pub async fn dies_at_wait(&mut self, nth: usize) -> bool {
        let mut waits = 0;
        let mut work = std::pin::pin!(self.settle());
        let died = std::future::poll_fn(|context| match work.as_mut().poll(context) {
            std::task::Poll::Ready(()) => std::task::Poll::Ready(false),
            std::task::Poll::Pending => {
                waits += 1;
                if waits > nth { std::task::Poll::Ready(true) } else { std::task::Poll::Pending }
            }
        });
        died.await
    }

    /// The first of our comments, which is the run's sticky one, as people see it.
    pub fn sticky(&self, number: i64) -> String {
        self.own(number).into_iter().next().unwrap_or_else(|| panic!("no comment of ours on #{number}"))
    }

    /// The only pull request of ours.
    pub fn our_pull(&self) -> hub::state::Issue {
        let mut ours: Vec<_> =
            self.hub.pulls(REPO).into_iter().filter(|pull| self.hub.is_own(pull.author)).collect();
        assert_eq!(ours.len(), 1, "{ours:#?}");
        ours.remove(0)
    }

    /// The nth run, counted from 1.
    pub async fn nth_run(&self, n: u32) -> Run {
        let id = RunId::new(format!("run_{n:04}"));
        store::runs::get(&self.app.store, &id)
            .await
            .expect("read")
            .unwrap_or_else(|| panic!("there is no {id}"))
    }

    pub async fn runs(&self) -> Vec<Run> {
        let filter = store::runs::Filter { limit: 1000, ..store::runs::Filter::default() };
        store::runs::list(&self.app.store, &filter).await.expect("read")
    }

    pub async fn state_of(&self, n: u32) -> RunState {
        self.nth_run(n).await.state
    }

    /// Our comments on an issue or pull request, markers removed.
    pub fn own(&self, number: i64) -> Vec<String> {
        self.hub.own_comments(REPO, number).iter().map(|body| self.shown(body)).collect()
    }

    /// A text as people see it; the forge's address, which changes from test to test, is made plain.
    pub fn shown(&self, body: &str) -> String {
        without_markers(body).replace(&self.hub.api_url(), "https://hub.example")
    }

    pub async fn open_effects(&self) -> i64 {
        store::effects::open_count(&self.app.store).await.expect("read")
    }

    /// What must hold at the end of every scenario.
    async fn end(self) {
        if !self.ends_in_the_middle {
            assert_eq!(self.open_effects().await, 0, "effects are left over");
            assert_eq!(self.sandbox.alive(), 0, "containers are left over");
            if self.engine.is_some() {
                assert_eq!(self.app.sandbox.list().await.expect("the engine answers"), []);
                let runs = std::fs::read_dir(self.state_folder().join("runs")).expect("a folder of runs");
                assert_eq!(runs.count(), 0, "workspaces are left over");
            }
            assert!(self.workers.is_empty(), "runs are left over");
            let open: Vec<_> = self.runs().await.into_iter().filter(|run| !run.state.is_terminal()).collect();
            assert!(open.is_empty(), "runs have not ended: {open:?}");
            let pending = store::inbox::pending(&self.app.store, self.clock.now(), 10).await.expect("read");
            assert!(pending.is_empty(), "deliveries are pending");
            let folders = std::fs::read_dir(&self.app.socket_root).map(Iterator::count).unwrap_or(0);
            assert_eq!(folders, 0, "socket folders are left over");
        }
        assert_eq!(self.hub.unknown_requests(), Vec::<String>::new(), "requests that the hub does not know");
        assert_eq!(self.hub.unused_faults(), Vec::<String>::new(), "faults that never happened");
        let limits = &self.config.limits;
        let minute = self.hub.most_writes_in(chrono::Duration::minutes(1));
        assert!(
            minute <= usize::try_from(limits.writes_per_minute).expect("positive"),
            "{minute} writes in a minute"
        );
        if let Database::Postgres { admin, name, .. } = &self.database {
            let (admin, name) = (admin.clone(), name.clone());
            drop(self);
            execute_sql(&admin, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
    }
}

/// A comment as people see it.
pub fn without_markers(body: &str) -> String {
    let mut text = String::new();
    let mut rest = body;
    while let Some(start) = rest.find("<!--") {
        text.push_str(&rest[..start]);
        rest = rest[start..].find("-->").map_or("", |end| &rest[start + end + 3..]);
    }
    text.push_str(rest);
    text.trim().to_owned()
}

fn config(folder: &Path, hub: &FakeHub, database: &Database) -> Config {
    let mut config = Config { state_dir: folder.join("state"), ..Config::default() };
    config.server.public_url = Some("https://zeblit.example".into());
    config.database.url = Some(database.url().to_owned().into());
    config.github = Some(GithubConfig {
        app_id: hub.app_id(),
        private_key: Some(APP_KEY.into()),
        private_key_file: None,
        webhook_secrets: vec![SECRET.into()],
        api_url: hub.api_url(),
        git_url: hub.git_url(),
        web_url: Some("https://github.example".into()),
        storage_urls: vec![hub.storage_url()],
        max_body_bytes: 25 * 1024 * 1024,
    });
    config
}

/// The node of a world, or one more.
pub fn node(id: &str) -> Node {
    Node { id: id.into(), name: id.into(), role: Role::All, capabilities: vec!["amd64".into()] }
}

#[expect(clippy::too_many_arguments, reason = "a process of a world is made of all of these")]
async fn build(
    node: Node,
    folder: &Path,
    config: &Config,
    hub: &FakeHub,
    sandbox: Arc<dyn Sandbox>,
    process: &Arc<ProcessClock>,
    ids: &Arc<CountedIds>,
    database: &Database,
) -> Arc<App> {
    let clock: Arc<dyn Clock> = process.clone();
    let ids: Arc<dyn Ids> = ids.clone();
    let store = Store::open(database.url()).await.expect("opens");
    let forge = GithubForge::new(GithubSettings {
        app_id: hub.app_id(),
        private_key: APP_KEY.into(),
        api_url: hub.api_url(),
        git_url: hub.git_url(),
        web_url: "https://github.example".into(),
        storage_urls: vec![hub.storage_url()],
        // What the forge's client does is no step of the engine.
        clock: process.clock.clone(),
    })
    .expect("a forge")
    .with_timeout(hub.patience());
    let secrets = config.all_secrets();
    let secrets: Vec<&[u8]> = secrets.iter().map(Vec::as_slice).collect();
    let boot = format!("{}:{}", node.id, ids.next(IdKind::Boot));
    Arc::new(App {
        broker: Broker::new(broker_settings(config), store.clone(), clock.clone(), ids.clone()),
        store,
        wakeup: Arc::new(LocalWakeup::default()),
        forge: Arc::new(forge),
        remotes: vec![
            Arc::new(
                Jira::new(
                    &format!("{}/jira", hub.api_url()),
                    Some(tickets::JIRA_USER),
                    &tickets::TOKEN.into(),
                )
                .expect("a URL")
                .with_timeout(hub.patience()),
            ),
            Arc::new(
                Sentry::new(&format!("{}/sentry", hub.api_url()), "octo", &tickets::TOKEN.into())
                    .expect("a URL")
                    .with_timeout(hub.patience()),
            ),
        ],
        local: None,
        sandbox,
        git: Git::open(&folder.join("state")).await.expect("git").with_disk(disk(config)),
        agents: AgentSet::builtin().expect("built-in agents"),
        clock,
        ids,
        signer: Signer::new(b"the secret key of the test world"),
        secrets: SecretScan::new(&secrets),
        live: execute::Live::default(),
        loads: Loads::default(),
        node,
        boot,
        socket_root: folder.join("sockets"),
        config: Arc::new(config.clone()),
    })
}
