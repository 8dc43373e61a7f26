//! The real program, killed with SIGKILL in the middle: it ends as if nothing had happened. Three times with real
//! containers, and many times under load, where agents are plain processes: see `make prove-kill`.

use crate::world::SECRET;
use crate::world::hub::payloads::Delivery;
use crate::world::hub::state::On;
use crate::world::hub::{APP_KEY, FakeHub};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeblit::domain::run::{FailureClass, RunState};
use zeblit::store::inbox::InboxState;
use zeblit::store::{self, Store};

const REPO: &str = "octo/demo";
const IMAGE: &str = "zeblit-agent:latest";
/// No single wait is longer: two processors and a cold container engine need some of it.
const PATIENCE: Duration = Duration::from_secs(90);
/// A recipe that takes its time, so that there is a middle to be killed in.
const SLOW: &str = "---\nname: slow\ndescription: Waits, then answers.\nadapter: command\nargv: [sh, -c, \"echo thinking; sleep 6; echo 42 > answer.txt; echo answered\"]\n---\n";

/// As for the container tests: `make test` builds the image; a machine without Docker says so by this variable.
fn docker_is_wanted() -> bool {
    if std::env::var_os("ZEBLIT_TESTS_WITHOUT_DOCKER").is_some() {
        return false;
    }
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/agent/build-image.sh");
    let built = Command::new("sh").arg(script).arg(IMAGE).output().expect("sh runs");
    assert!(
        built.status.success(),
        "no agent image (or no Docker: set ZEBLIT_TESTS_WITHOUT_DOCKER=1): {}",
        String::from_utf8_lossy(&built.stderr)
    );
    true
}

/// A folder with the configuration of one server, and its process while it runs.
pub(crate) struct Server {
    pub folder: tempfile::TempDir,
    pub address: SocketAddr,
    process: Option<Child>,
}

impl Server {
    fn new(hub: &FakeHub, api_url: &str) -> Self {
        Self::with(hub, api_url, SLOW, "[sandbox]\n")
    }

    /// `more` goes at the end of the configuration; its first section must be `[sandbox]`.
    pub(crate) fn with(hub: &FakeHub, api_url: &str, agent: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("agents")).expect("a new folder");
        std::fs::write(at("agents/slow.md"), agent).expect("a new file");
        std::fs::write(at("app.pem"), APP_KEY).expect("a new file");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(at("app.pem"), private).expect("our file");
        // Free now, and nobody else on this machine asks for it by number.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound just now");
        let config = format!(
            "state_dir = \"{state}\"\n\
             [server]\nlisten = \"{address}\"\npublic_url = \"http://{address}\"\n\
             [github]\napp_id = {app}\nprivate_key_file = \"{key}\"\nwebhook_secrets = [\"{SECRET}\"]\n\
             api_url = \"{api_url}\"\ngit_url = \"{git}\"\nweb_url = \"{web}\"\n\
             [agents]\nfix = \"slow\"\nfolder = \"{agents}\"\n\
             {more}socket_dir = \"{sockets}\"\n",
            sockets = at("sockets").display(),
            state = at("state").display(),
            app = hub.app_id(),
            key = at("app.pem").display(),
            git = hub.git_url(),
            web = hub.web_url(),
            agents = at("agents").display(),
        );
        std::fs::write(at("zeblit-server.toml"), config).expect("a new file");
        Server { folder, address, process: None }
    }

    pub(crate) async fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("our own folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeblit"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ZEBLIT_") {
                command.env_remove(name);
            }
        }
        let process = command
            .current_dir(self.folder.path())
            .args(["serve", "--config", "zeblit-server.toml"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("an open file"))
            .stderr(log)
            .spawn()
            .expect("the program starts");
        self.process = Some(process);
        let address = self.address;
        self.until("it listens", || TcpStream::connect(address).is_ok()).await;
    }

    /// SIGKILL: no handler of the program sees it.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it runs");
        process.wait().expect("our child");
    }

    /// SIGTERM, and the status that it ends with.
    pub(crate) fn stop(&mut self) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("it runs");
        let told =
            Command::new("kill").args(["-TERM", &process.id().to_string()]).status().expect("kill runs");
        assert!(told.success());
        process.wait().expect("our child")
    }

    /// Posts a delivery as plain HTTP; gives the status.
    fn post(&self, delivery: &crate::world::hub::payloads::Delivery) -> u16 {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        let mut head = format!(
            "POST /webhooks/github HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            delivery.body.len()
        );
        for (name, value) in delivery.headers(SECRET) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).expect("it reads");
        stream.write_all(&delivery.body).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < PATIENCE, "waited for: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // A test that failed: nothing to lose any more.
            let _ = process.kill();
            let _ = process.wait();
        }
        // A server that is root mounts its folders on themselves, and leaves it so for its containers.
        for name in ["state", "sockets"] {
            let path = self.folder.path().join(name);
            // A test may have put a disk of its own below it.
            while Command::new("umount")
                .arg("--quiet")
                .arg(&path)
                .status()
                .is_ok_and(|status| status.success())
            {}
        }
    }
}

async fn hub() -> (FakeHub, i64) {
    let hub = FakeHub::start().await;
    hub.add_user("ada", 101);
    hub.add_repo(REPO, &[("README.md", "# Demo\n")]);
    hub.set_role(REPO, "ada", "write");
    let number = hub.open_issue(REPO, "ada", "No answer", "There is no answer.");
    (hub, number)
}

fn own_branch(hub: &FakeHub) -> Option<String> {
    hub.branches(REPO).into_iter().find(|name| name.starts_with("zeblit/"))
}

/// Comments, is killed when `reached` holds, starts again, and must come to the same end as always.
async fn killed_when(what: &str, enterprise: bool, reached: impl Fn(&FakeHub) -> bool) -> String {
    if !docker_is_wanted() {
        return String::new();
    }
    let (hub, number) = hub().await;
    let api_url = if enterprise { hub.enterprise_api_url() } else { hub.api_url() };
    let mut server = Server::new(&hub, &api_url);
    server.start().await;
    let comment = hub.comment(REPO, number, "ada", "/zeblit fix");
    let delivery = hub.comment_created(REPO, comment);
    assert_eq!(server.post(&delivery), 202, "{}", server.log());
    server.until(what, || reached(&hub)).await;
    server.kill();
    server.start().await;
    // GitHub sends again what it is not sure of.
    assert_eq!(server.post(&delivery), 200, "known already");
    server
        .until("the rocket", || hub.reactions(REPO, On::Comment(comment)).contains(&"rocket".to_owned()))
        .await;
    server
        .until("the last words", || {
            let checks =
                own_branch(&hub).and_then(|branch| hub.head(REPO, &branch)).map(|sha| hub.checks(REPO, &sha));
            hub.own_comments(REPO, number).iter().any(|body| body.starts_with("**✅"))
                && checks.is_some_and(|checks| checks.iter().any(|check| check.conclusion.is_some()))
        })
        .await;
    let status = server.stop();
    assert!(status.success(), "{status}: {}", server.log());

    let branch = own_branch(&hub).expect("waited for above");
    assert_eq!(hub.branches(REPO), ["main", branch.as_str()]);
    assert_eq!(hub.file_at(REPO, &branch, "answer.txt").as_deref(), Some("42\n"));
    assert_eq!(hub.log(REPO, &branch, "%s", 9), "No answer\nInitial commit");
    let pulls = hub.pulls(REPO);
    assert_eq!(pulls.len(), 1, "{pulls:#?}");
    let own = hub.own_comments(REPO, number);
    assert_eq!(own.len(), 1, "{own:#?}");
    let head = hub.head(REPO, &branch).expect("the branch is there");
    let checks = hub.checks(REPO, &head);
    assert_eq!(checks.len(), 1, "{checks:#?}");
    assert_eq!(checks[0].conclusion.as_deref(), Some("success"));
    assert_eq!(hub.reactions(REPO, On::Comment(comment)), ["eyes", "rocket"]);
    assert_eq!(hub.unknown_requests(), Vec::<String>::new());
    assert!(!server.log().contains(SECRET), "a secret in the log");
    server.log()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_just_after_the_delivery_was_accepted() {
    killed_when("nothing", false, |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_the_agent_runs_behind_another_api_address() {
    let log = killed_when("a running agent", true, |hub| {
        hub.own_comments(REPO, 1).iter().any(|body| body.contains("🏃 Running"))
    })
    .await;
    assert!(log.is_empty() || log.contains("adopting a running agent"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_when_the_branch_is_pushed() {
    killed_when("a branch", false, |hub| own_branch(hub).is_some()).await;
}

// ---------------------------------------------------------------- many kills under load

/// Ends at once and always does the same.
const QUICK: &str = "---\nname: slow\ndescription: Answers.\nadapter: command\nargv: [sh, -c, \"echo 42 > answer.txt; echo answered\"]\n---\n";
/// Kills of one proof, when no variable says otherwise: the suite runs two of them side by side.
const KILLS: u32 = 50;
/// Everything must be at rest so long after the last start.
const CONVERGES: Duration = Duration::from_secs(120);
/// Between two commands that start a run, and between two other deliveries.
const COMMAND_EVERY: Duration = Duration::from_millis(2400);
const NOISE_EVERY: Duration = Duration::from_millis(150);
/// GitHub gives up on an answer after 10 s; on this machine it comes at once or never.
const ANSWER: Duration = Duration::from_secs(10);
/// A delivery that nobody answered is sent again after so long: by hand, or because the App asked for it.
const SENT_AGAIN: Duration = Duration::from_millis(900);

/// A repeatable source of chance.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What is said on an issue of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Fix,
    Help,
    Chat,
}

struct Sent {
    delivery: Delivery,
    /// The status of the first answer; only 2xx counts.
    accepted: bool,
    again_at: Instant,
}

/// Deliveries without end, each sent until it is accepted and never after.
struct Load {
    hub: Arc<FakeHub>,
    address: SocketAddr,
    /// Issues by number, and the comment on each.
    said: BTreeMap<i64, (Said, i64)>,
    sent: BTreeMap<String, Sent>,
    /// Asked for by the App although its answer had come.
    asked_in_vain: Vec<String>,
}

impl Load {
    fn say(&mut self, said: Said) {
        let number = self.hub.open_issue(REPO, "ada", "No answer", "There is no answer.");
        let text = match said {
            Said::Fix => "/zeblit fix",
            Said::Help => "/zeblit help",
            Said::Chat => "I have seen that, too.",
        };
        let comment = self.hub.comment(REPO, number, "ada", text);
        self.said.insert(number, (said, comment));
        let delivery = self.hub.comment_created(REPO, comment);
        let sent = Sent { delivery: delivery.clone(), accepted: false, again_at: Instant::now() };
        self.sent.insert(delivery.id, sent);
    }

    /// Sends what is due, one after the other.
    async fn send(&mut self) {
        let now = Instant::now();
        let due: Vec<String> = self
            .sent
            .iter()
            .filter(|(_, sent)| !sent.accepted && sent.again_at <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.send_one(&id).await;
        }
        for wanted in self.hub.wanted_again() {
            // It may have been accepted since the App looked; that is no reason to send nothing.
            let accepted_before = self.sent.get(&wanted.id).is_some_and(|sent| sent.accepted);
            let status = self.send_one(&wanted.id).await;
            if accepted_before && status == Some(202) {
                self.asked_in_vain.push(wanted.id);
            }
        }
    }

    async fn send_one(&mut self, id: &str) -> Option<u16> {
        let delivery = self.sent.get(id).map(|sent| sent.delivery.clone())?;
        let status = tokio::time::timeout(ANSWER, try_post(self.address, &delivery)).await.ok().flatten();
        self.hub.log_attempt(&delivery, status.unwrap_or(0));
        let sent = self.sent.get_mut(id)?;
        sent.accepted |= status.is_some_and(|status| (200..300).contains(&status));
        sent.again_at = Instant::now() + SENT_AGAIN;
        status
    }

    fn accepted(&self) -> usize {
        self.sent.values().filter(|sent| sent.accepted).count()
    }
}

/// `None`: nobody answered.
pub(crate) async fn try_post(address: SocketAddr, delivery: &Delivery) -> Option<u16> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let mut head = format!(
        "POST /webhooks/github HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n",
        delivery.body.len()
    );
    for (name, value) in delivery.headers(SECRET) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(&delivery.body).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer);
    answer.lines().next()?.split(' ').nth(1)?.parse().ok()
}

/// What a proof came to.
#[derive(Debug)]
struct Proven {
    kills: u32,
    accepted: usize,
    runs: usize,
    failed: usize,
    lost: Vec<String>,
    doubled: Vec<String>,
    converged: Duration,
}

/// The address of a database for one proof, and what removes it.
pub(crate) struct ProofDatabase {
    pub url: Option<String>,
    drop: Option<(String, String)>,
}

impl ProofDatabase {
    /// `wanted`: `sqlite`, or `postgres` on the server that `ZEBLIT_TEST_POSTGRES` names.
    pub(crate) async fn make(wanted: &str, seed: u64) -> Self {
        let wanted = std::env::var("ZEBLIT_PROVE_DATABASE")
            .ok()
            .filter(|word| !word.is_empty())
            .unwrap_or(wanted.to_owned());
        let server = std::env::var("ZEBLIT_TEST_POSTGRES").ok();
        match (wanted.as_str(), server) {
            ("postgres", Some(server)) => {
                let name = format!("zeblit_kill_{}_{seed}", std::process::id());
                sql(&server, &format!("CREATE DATABASE {name}")).await;
                let (base, _) = server.rsplit_once('/').expect("a database URL with a name");
                Self { url: Some(format!("{base}/{name}")), drop: Some((server.clone(), name)) }
            }
            ("postgres", None) => {
                assert!(std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_POSTGRES");
                Self { url: None, drop: None }
            }
            _ => Self { url: None, drop: None },
        }
    }

    pub(crate) async fn remove(self) {
        if let Some((server, name)) = self.drop {
            sql(&server, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
    }
}

async fn sql(url: &str, text: &str) {
    use sqlx::Connection;
    let mut connection = sqlx::postgres::PgConnection::connect(url).await.expect("the test server answers");
    sqlx::raw_sql(sqlx::AssertSqlSafe(text.to_owned())).execute(&mut connection).await.expect("allowed");
}

/// Kills the program again and again while deliveries come and runs go, then lets it come to rest.
async fn proof(wanted: &str, seed: u64) -> Proven {
    let kills: u32 = std::env::var("ZEBLIT_PROVE_KILLS")
        .ok()
        .and_then(|kills| kills.parse::<u32>().ok())
        .map_or(KILLS, |kills| kills.div_ceil(2));
    let database = ProofDatabase::make(wanted, seed).await;
    let hub = Arc::new(FakeHub::start().await);
    hub.add_user("ada", 101);
    hub.add_repo(REPO, &[("README.md", "# Demo\n")]);
    hub.set_role(REPO, "ada", "write");
    let url = database.url.as_ref().map_or(String::new(), |url| format!("[database]\nurl = \"{url}\"\n"));
    let more = format!(
        "{url}[limits]\nwrites_per_minute = 100000\nwrites_per_hour = 1000000\nwrite_spacing_ms = 0\n\
         commands_per_user_hour = 1000000\nruns = 4\nruns_per_repo = 4\nruns_per_user = 4\n\
         [sandbox]\nkind = \"process\"\n"
    );
    let mut server = Server::with(&hub, &hub.api_url(), QUICK, &more);
    server.start().await;

    let stop = Arc::new(AtomicBool::new(false));
    let load = Load {
        hub: Arc::clone(&hub),
        address: server.address,
        said: BTreeMap::new(),
        sent: BTreeMap::new(),
        asked_in_vain: Vec::new(),
    };
    let loading = tokio::spawn(load_until(load, Arc::clone(&stop)));
    let mut dice = Dice(seed);
    for n in 0..kills {
        // Now and then there is time to come to something.
        let longest = if n % 4 == 3 { 2500 } else { 900 };
        tokio::time::sleep(Duration::from_millis(60 + dice.below(longest))).await;
        server.kill();
        server.start().await;
    }
    let last_start = Instant::now();
    stop.store(true, Ordering::SeqCst);
    let load = loading.await.expect("the load does not panic");
    let url = database
        .url
        .clone()
        .unwrap_or_else(|| format!("sqlite:{}", server.folder.path().join("state/zeblit.db").display()));
    let store = Store::open(&url).await.expect("opens");
    let filter = store::runs::Filter { limit: 1_000_000, ..store::runs::Filter::default() };
    loop {
        let open = store::effects::open_count(&store).await.expect("reads");
        let inbox = store::inbox::counts(&store).await.expect("reads");
        let pending = inbox.iter().find(|(word, _)| word == "pending").map_or(0, |(_, n)| *n);
        let runs = store::runs::counts(&store).await.expect("reads");
        let live: i64 = runs
            .iter()
            .filter(|(word, _)| RunState::parse(word).is_some_and(|state| !state.is_terminal()))
            .map(|(_, n)| *n)
            .sum();
        if (open, pending, live) == (0, 0, 0) {
            break;
        }
        if last_start.elapsed() > CONVERGES {
            panic!(
                "{open} effects, {pending} deliveries and {live} runs are open after {CONVERGES:?}: {:#?}\n{}",
                open_effects(&url).await,
                last_lines(&server.log())
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let converged = last_start.elapsed();
    let runs = store::runs::list(&store, &filter).await.expect("reads");
    // Nobody tells this program from a run that kills it: three deaths in the same step, and the run is given up.
    let given_up = |run: &&zeblit::domain::run::Run| {
        run.outcome.class == Some(FailureClass::Poison)
            || run.outcome.reason.contains("times before the agent could start")
    };
    let mut proven = Proven {
        kills,
        accepted: load.accepted(),
        runs: runs.len(),
        failed: runs.iter().filter(given_up).count(),
        lost: runs
            .iter()
            .filter(|run| run.state != RunState::Succeeded && !given_up(run))
            .map(|run| format!("run {} ended as {:?}: {:?}", run.id, run.state, run.outcome))
            .collect(),
        doubled: Vec::new(),
        converged,
    };
    for guid in load.sent.keys() {
        match store::inbox::get(&store, guid).await.expect("reads") {
            Some(row) if matches!(row.state, InboxState::Done | InboxState::Ignored) => {
                assert!(!row.verdict.is_empty(), "{guid} has no verdict");
            }
            other => {
                proven.lost.push(format!("delivery {guid}: {:?}", other.map(|row| (row.state, row.verdict))))
            }
        }
    }
    proven.lost.extend(load.asked_in_vain.iter().map(|guid| format!("{guid} was accepted and then unknown")));
    outside(&hub, &load, &runs, &mut proven);
    store.close().await;
    let status = server.stop();
    assert!(status.success(), "{status}");
    assert_eq!(hub.unknown_requests(), Vec::<String>::new());
    database.remove().await;
    if !proven.lost.is_empty() || !proven.doubled.is_empty() {
        panic!("{proven:#?}\n{}", last_lines(&server.log()));
    }
    proven
}

/// What was not sent, in the words of the database.
async fn open_effects(url: &str) -> Vec<String> {
    use sqlx::{Connection, Row};
    let mut connection = sqlx::AnyConnection::connect(url).await.expect("opens");
    let rows = sqlx::query(
        "SELECT effect_key || ' ' || state || ' after ' || CAST(tries AS TEXT) || ' tries, not before ' || \
         CAST(not_before AS TEXT) || ': ' || COALESCE(last_error, '') FROM effects \
         WHERE state IN ('planned', 'sending', 'ambiguous')",
    )
    .fetch_all(&mut connection)
    .await
    .expect("reads");
    rows.iter().map(|row| row.get::<String, _>(0)).collect()
}

async fn load_until(mut load: Load, stop: Arc<AtomicBool>) -> Load {
    let (mut command, mut noise, mut n) = (Instant::now(), Instant::now(), 0);
    while !stop.load(Ordering::SeqCst) {
        let now = Instant::now();
        if command <= now {
            command = now + COMMAND_EVERY;
            load.say(Said::Fix);
        }
        if noise <= now {
            noise = now + NOISE_EVERY;
            n += 1;
            load.say(if n % 5 == 0 { Said::Help } else { Said::Chat });
        }
        load.send().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nothing new; what was not accepted yet comes once more.
    while load.accepted() < load.sent.len() {
        load.send().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    load
}

/// What people see: one of everything.
fn outside(hub: &FakeHub, load: &Load, runs: &[zeblit::domain::run::Run], proven: &mut Proven) {
    let branches = hub.branches(REPO);
    let pulls = hub.pulls(REPO);
    for (number, (said, comment)) in &load.said {
        let own = hub.own_comments(REPO, *number);
        let markers: BTreeSet<&str> =
            own.iter().filter_map(|body| Some(&body[body.rfind("<!-- zeblit:v1")?..])).collect();
        if markers.len() != own.len() {
            proven.doubled.push(format!("comments on #{number}: {own:#?}"));
        }
        let mut reactions = hub.reactions(REPO, On::Comment(*comment));
        reactions.sort();
        let once: BTreeSet<&String> = reactions.iter().collect();
        if once.len() != reactions.len() {
            proven.doubled.push(format!("reactions on #{number}: {reactions:?}"));
        }
        let of_issue: Vec<_> = runs
            .iter()
            .filter(|run| run.spec.subject.number == *number && run.spec.push_to.is_some())
            .collect();
        let prefix = format!("zeblit/{number}-");
        let heads: Vec<&String> = branches.iter().filter(|name| name.starts_with(&prefix)).collect();
        let opened: Vec<_> = pulls
            .iter()
            .filter(|pull| pull.pull.as_ref().is_some_and(|pull| pull.head_ref.starts_with(&prefix)))
            .collect();
        let wanted = usize::from(*said == Said::Fix);
        if of_issue.len() < wanted {
            proven.lost.push(format!("the run of #{number}"));
        }
        if of_issue.len() > wanted || heads.len() > wanted || opened.len() > wanted {
            proven.doubled.push(format!("#{number}: {of_issue:?} {heads:?} {opened:?}"));
        }
        match said {
            Said::Chat if !own.is_empty() => {
                proven.doubled.push(format!("an answer to nothing on #{number}"))
            }
            Said::Help if own.len() != 1 => proven.lost.push(format!("the help on #{number}: {own:?}")),
            Said::Fix if own.is_empty() => proven.lost.push(format!("the comment on #{number}")),
            _ => {}
        }
        let Some(run) = of_issue.first().filter(|run| run.state == RunState::Succeeded) else { continue };
        let head = heads.first().and_then(|branch| hub.head(REPO, branch));
        let Some(head) = head.filter(|_| opened.len() == 1) else {
            proven.lost.push(format!("branch or pull request of {}", run.id));
            continue;
        };
        let checks = hub.checks(REPO, &head);
        match checks.as_slice() {
            [check] if check.conclusion.as_deref() == Some("success") => {}
            [] | [_] => proven.lost.push(format!("the check of {}: {checks:?}", run.id)),
            _ => proven.doubled.push(format!("checks of {}: {checks:?}", run.id)),
        }
        if !own.iter().any(|body| body.starts_with("**✅")) {
            proven.lost.push(format!("the last words of {}: {own:?}", run.id));
        }
        if reactions != ["eyes", "rocket"] {
            proven.lost.push(format!("reactions to {}: {reactions:?}", run.id));
        }
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// For `make prove-kill`, which adds the lines of all proofs up.
fn tell(name: &str, proven: &Proven) {
    assert!(proven.failed * 2 <= proven.runs, "most runs were given up: {proven:?}");
    if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
        std::fs::create_dir_all(&folder).expect("a folder for the proof");
        let Proven { kills, accepted, runs, failed, lost, doubled, converged } = proven;
        let line = format!(
            "{kills}\t{accepted}\t{}\t{}\t{}\t{runs}\t{failed}\n",
            lost.len(),
            doubled.len(),
            converged.as_secs_f64().ceil()
        );
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.tsv")), line).expect("our folder");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_under_load_on_one_file() {
    tell("first", &proof("sqlite", 1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_under_load_on_postgres() {
    tell("second", &proof("postgres", 2).await);
}
