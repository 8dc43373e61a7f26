//! Operations under trouble: a full disk, a database that is away or locked, a clock that jumps. Nothing is accepted that
//! is not stored, nothing is doubled, and everything goes on by itself.

use crate::kill::{ProofDatabase, Server, try_post};
use crate::world::hub::payloads::Delivery;
use crate::world::hub::state::On;
use crate::world::hub::{FakeHub, Fault};
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zeblit::domain::run::{FailureClass, RunState};
use zeblit::engine::repair::{self, Look};
use zeblit::store::{self, Store};

/// An agent that ends when a file is there, so that there is a middle that lasts as long as the test wants.
struct Waiting {
    folder: tempfile::TempDir,
}

impl Waiting {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("go")
    }

    fn definition(&self) -> String {
        format!(
            "---\nname: slow\ndescription: Answers when it may.\nadapter: command\nargv: [sh, -c, \"while [ ! -e {} ]; do sleep 0.1; done; echo 42 > answer.txt; echo answered\"]\n---\n",
            self.file().display()
        )
    }

    fn go(&self) {
        std::fs::write(self.file(), "").expect("our own folder");
    }
}

/// Nothing slows the outbox down.
const FAST: &str = "[limits]\nwrites_per_minute = 100000\nwrites_per_hour = 1000000\nwrite_spacing_ms = 0\n[sandbox]\nkind = \"process\"\n";

async fn hub() -> FakeHub {
    let hub = FakeHub::start().await;
    hub.add_user("ada", 101);
    hub.add_repo(REPO, &[("README.md", "# Demo\n")]);
    hub.set_role(REPO, "ada", "write");
    hub
}

/// An issue with `/zeblit fix` on it: its number, the comment, and the delivery.
fn asked(hub: &FakeHub) -> (i64, i64, Delivery) {
    let number = hub.open_issue(REPO, "ada", "No answer", "There is no answer.");
    let comment = hub.comment(REPO, number, "ada", "/zeblit fix");
    (number, comment, hub.comment_created(REPO, comment))
}

/// Status, and the seconds of `Retry-After`.
async fn ask(address: SocketAddr, request: &str, body: &[u8]) -> (u16, Option<u32>, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let head =
        format!("{request}Host: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.expect("it reads");
    // It may answer before it has read everything.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("it answers");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let retry =
        answer.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("retry-after: ")?.parse().ok());
    (status, retry, answer)
}

async fn post(address: SocketAddr, delivery: &Delivery) -> (u16, Option<u32>) {
    let mut head = "POST /webhooks/github HTTP/1.1\r\n".to_owned();
    for (name, value) in delivery.headers(crate::world::SECRET) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let (status, retry, _) = ask(address, &head, &delivery.body).await;
    (status, retry)
}

async fn ready(address: SocketAddr) -> (u16, String) {
    let (status, _, text) = ask(address, "GET /readyz HTTP/1.1\r\n", b"").await;
    (status, text)
}

fn is_done(hub: &FakeHub, comment: i64) -> bool {
    let reactions = hub.reactions(REPO, On::Comment(comment));
    reactions.iter().any(|reaction| matches!(reaction.as_str(), "rocket" | "confused"))
}

/// How often something was tried in vain: loops that do not wait would write thousands of lines.
fn failures(log: &str) -> usize {
    log.lines().filter(|line| line.contains("ERROR")).count()
}

// ---------------------------------------------------------------- a full disk

/// A delivery too large for any room that the database has left in its files, and not to be made smaller.
fn large(hub: &FakeHub) -> Delivery {
    let mut dice: u64 = 7;
    let noise: String = (0..3_000_000)
        .map(|_| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'a' + u8::try_from((dice >> 33) % 26).expect("a letter"))
        })
        .collect();
    hub.delivery("push", &serde_json::json!({ "noise": noise }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_deliveries_says_so_and_everything_goes_on_when_there_is_room() {
    let hub = hub().await;
    let agent = Waiting::new();
    let mut server = Server::with(&hub, &hub.api_url(), &agent.definition(), FAST);
    let state = server.folder.path().join("state");
    std::fs::create_dir(&state).expect("a new folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=160m,mode=700", "tmpfs"])
        .arg(&state)
        .status()
        .expect("mount runs");
    if !mounted.success() {
        // Only root may mount: without a small disk there is nothing to fill.
        return;
    }
    server.start().await;
    let (before, first, delivery) = asked(&hub);
    assert_eq!(post(server.address, &delivery).await.0, 202);
    server
        .until("a running agent", || {
            hub.own_comments(REPO, before).iter().any(|body| body.contains("Running"))
        })
        .await;
    let filler = state.join("filler");
    let full = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k", "status=none"])
        .arg(format!("of={}", filler.display()))
        .output();
    assert!(!full.expect("dd runs").status.success(), "the disk is full");

    let large = large(&hub);
    let (_, second, small) = asked(&hub);
    let (status, retry) = post(server.address, &large).await;
    assert_eq!(status, 503, "{}", server.log());
    assert!(retry.is_some_and(|seconds| seconds > 0));
    let small_status = post(server.address, &small).await.0;
    let (status, text) = ready(server.address).await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("nothing can be written to") && text.contains("No space left"), "{text}");
    // The agent ends meanwhile.
    agent.go();
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    let failed = failures(&server.log());
    assert!(failed < 200, "{failed} errors in some seconds:\n{}", server.log());
    std::fs::remove_file(&filler).expect("our own file");

    // Nobody does anything but GitHub, which sends again what was refused.
    if small_status != 202 {
        assert_eq!(small_status, 503);
        assert_eq!(post(server.address, &small).await.0, 202, "{}", server.log());
    }
    assert_eq!(post(server.address, &large).await.0, 202, "{}", server.log());
    server.until("both runs end", || is_done(&hub, first) && is_done(&hub, second)).await;
    let store = Store::open(&format!("sqlite:{}", state.join("zeblit.db").display())).await.expect("opens");
    let runs = store::runs::list(&store, &store::runs::Filter { limit: 10, ..Default::default() })
        .await
        .expect("reads");
    assert_eq!(runs.len(), 2);
    for run in &runs {
        assert!(run.state.is_terminal());
        if run.state != RunState::Succeeded {
            assert_eq!(run.outcome.class, Some(FailureClass::Disk), "{:?}", run.outcome);
            assert!(run.outcome.reason.contains("disk"), "{}", run.outcome.reason);
        }
    }
    let stored = store::inbox::get(&store, &large.id).await.expect("reads").expect("accepted");
    assert!(stored.raw == large.body, "half of it was stored");
    let known = store::inbox::counts(&store).await.expect("reads");
    assert_eq!(known.iter().map(|(_, n)| n).sum::<i64>(), 3, "{known:?}");
    store.close().await;
    // And the next one is as if nothing had been.
    let (_, third, delivery) = asked(&hub);
    assert_eq!(post(server.address, &delivery).await.0, 202);
    server
        .until("a pull request", || hub.reactions(REPO, On::Comment(third)).contains(&"rocket".to_owned()))
        .await;
    assert!(server.stop().success());
}

// ---------------------------------------------------------------- a database that is away

/// Passes connections on until it is cut: then they break, and new ones are refused.
struct Wire {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    cut: tokio::sync::watch::Sender<bool>,
}

impl Wire {
    async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound just now");
        let is_cut = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(AtomicUsize::new(0));
        let (cut, watched) = tokio::sync::watch::channel(false);
        let (asked, counted) = (Arc::clone(&is_cut), Arc::clone(&refused));
        tokio::spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                if asked.load(Ordering::SeqCst) {
                    counted.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let (target, mut watched) = (target.clone(), watched.clone());
                tokio::spawn(async move {
                    let Ok(mut outside) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => {}
                        _ = watched.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Wire { address, is_cut, refused, cut }
    }

    fn set(&self, cut: bool) {
        self.is_cut.store(cut, Ordering::SeqCst);
        self.cut.send_replace(cut);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_deliveries_are_refused_and_runs_keep_their_agents() {
    let database = ProofDatabase::make("postgres", 99).await;
    // Without a server this machine has no such trouble; CI always has one.
    let Some(url) = database.url.clone() else { return };
    let mut through = url::Url::parse(&url).expect("a URL");
    let target = format!("{}:{}", through.host_str().expect("a host"), through.port().unwrap_or(5432));
    let wire = Wire::to(target).await;
    through.set_host(Some("127.0.0.1")).expect("a host");
    through.set_port(Some(wire.address.port())).expect("a port");
    let hub = hub().await;
    let more = format!("[database]\nurl = \"{through}\"\n{FAST}");
    let agent = Waiting::new();
    let mut server = Server::with(&hub, &hub.api_url(), &agent.definition(), &more);
    server.start().await;
    let (number, comment, delivery) = asked(&hub);
    assert_eq!(post(server.address, &delivery).await.0, 202);
    server
        .until("a running agent", || {
            hub.own_comments(REPO, number).iter().any(|body| body.contains("Running"))
        })
        .await;

    wire.set(true);
    let (_, later, refused) = asked(&hub);
    let begun = Instant::now();
    let (status, retry) = post(server.address, &refused).await;
    assert_eq!(status, 503);
    assert!(retry.is_some_and(|seconds| seconds > 0));
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(10),
        "GitHub waits no longer: {:?}",
        begun.elapsed()
    );
    let (status, text) = ready(server.address).await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("\"database\",\"ok\":false"), "{text}");
    let (tries, log) = (wire.refused.load(Ordering::SeqCst), failures(&server.log()));
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let (tries, log) = (wire.refused.load(Ordering::SeqCst) - tries, failures(&server.log()) - log);
    assert!(tries < 150 && log < 60, "{tries} connections and {log} errors in 5 s:\n{}", server.log());
    wire.set(false);
    agent.go();

    server.until("it takes deliveries again", || std::net::TcpStream::connect(server.address).is_ok()).await;
    let begun = Instant::now();
    while try_post(server.address, &refused).await.is_none_or(|status| status >= 500) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{}", server.log());
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    for comment in [comment, later] {
        server
            .until("a rocket", || hub.reactions(REPO, On::Comment(comment)).contains(&"rocket".to_owned()))
            .await;
    }
    let store = Store::open(&url).await.expect("opens");
    let runs = store::runs::list(&store, &store::runs::Filter { limit: 10, ..Default::default() })
        .await
        .expect("reads");
    assert_eq!(runs.len(), 2);
    // The agent that ran while the database was away is the one whose work came.
    assert!(runs.iter().all(|run| run.attempts == 1 && run.state == RunState::Succeeded), "{runs:#?}");
    store.close().await;
    assert!(server.stop().success());
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_process_locks_the_file_deliveries_are_refused_in_time() {
    use sqlx::Connection;
    let hub = hub().await;
    let agent = Waiting::new();
    let mut server = Server::with(&hub, &hub.api_url(), &agent.definition(), FAST);
    server.start().await;
    let url = format!("sqlite:{}", server.folder.path().join("state/zeblit.db").display());
    // The port is there before the database is.
    while ready(server.address).await.0 != 200 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let mut other = sqlx::sqlite::SqliteConnection::connect(&url).await.expect("opens");
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.expect("nobody else has it for long");
    let (_, comment, delivery) = asked(&hub);
    let begun = Instant::now();
    let (status, retry) = post(server.address, &delivery).await;
    assert_eq!(status, 503);
    assert!(retry.is_some_and(|seconds| seconds > 0));
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("it is ours");
    agent.go();
    // It may have been stored after the answer; then it is known.
    let status = post(server.address, &delivery).await.0;
    assert!(matches!(status, 200 | 202), "{status}");
    server
        .until("a rocket", || hub.reactions(REPO, On::Comment(comment)).contains(&"rocket".to_owned()))
        .await;
    assert_eq!(hub.pulls(REPO).len(), 1);
    assert!(failures(&server.log()) < 60, "{}", server.log());
    assert!(server.stop().success());
}

// ---------------------------------------------------------------- a clock that jumps

/// A run that works, one that waits behind it, effects that wait for the forge, a delivery that waits for a role, a duty.
async fn jump(by: Duration) {
    World::run_with(
        |config| config.limits.runs = 1,
        async |w| {
            w.sandbox.usually(Script::hangs().and_edit("a.txt", "a\n").and_remove("README.md"));
            repair::tick(&w.app, Look::Due).await.unwrap();
            let (one, two, three) = (w.issue(), w.issue(), w.issue());
            w.say(one, "ada", "/zeblit fix").await;
            w.settle().await;
            let first = w.hub.comment(REPO, two, "ada", "/zeblit fix");
            let second = w.hub.comment(REPO, three, "max", "/zeblit fix");
            w.hub.fail_next("POST /repos/*/*/issues/*/comments", Fault::SecondaryLimit(120));
            w.hub.fail_next("GET /repos/*/*/collaborators/max/permission", Fault::Before(503));
            w.deliver(&w.hub.comment_created(REPO, first)).await;
            w.deliver(&w.hub.comment_created(REPO, second)).await;
            for stage in [0, 1, 2, 3, 4, 4, 4, 4] {
                w.stage(stage).await;
                w.clock.advance(Duration::seconds(2));
            }
            assert_eq!(w.state_of(1).await, RunState::Running);
            assert!(w.open_effects().await > 0, "they wait");

            w.clock.advance(by);
            repair::tick(&w.app, Look::Due).await.unwrap();
            // Half an hour is more than anything waits for here; nothing may wait for the length of the jump.
            let jumped = w.clock_now();
            let mut rounds = 0;
            loop {
                w.sandbox.finish_hanging();
                w.round().await;
                rounds += 1;
                let all = w.runs().await;
                if all.len() == 3
                    && all.iter().all(|run| run.state.is_terminal())
                    && w.open_effects().await == 0
                {
                    break;
                }
                assert!(rounds < 2_000, "after {by}: {all:#?}");
            }
            let waited = w.clock_now() - jumped;
            assert!(waited < Duration::minutes(30), "after {by}: waited {waited}");
            for (number, run) in [(one, 1), (two, 2), (three, 3)] {
                let run = w
                    .runs()
                    .await
                    .into_iter()
                    .find(|found| found.spec.subject.number == number)
                    .unwrap_or_else(|| panic!("run {run}"));
                // A jump ahead is longer than an agent may take, or a run wait; a jump back ends nothing.
                if by < Duration::zero() || (number != one && by < Duration::hours(24)) {
                    assert_eq!(run.state, RunState::Succeeded, "after {by}: {:?}", run.outcome);
                }
                let own = w.own(number);
                assert!(own.iter().filter(|text| text.contains("run `")).count() >= 1, "{own:?}");
                let markers: std::collections::BTreeSet<_> = w
                    .hub
                    .own_comments(REPO, number)
                    .into_iter()
                    .map(|body| body[body.rfind("<!--").unwrap()..].to_owned())
                    .collect();
                assert_eq!(markers.len(), own.len(), "after {by}: {own:?}");
            }
            assert!(w.sandbox.agents_started() <= 3, "after {by}");
            let heads: Vec<_> =
                w.hub.pulls(REPO).into_iter().map(|pull| pull.pull.unwrap().head_ref).collect();
            let once: std::collections::BTreeSet<_> = heads.iter().collect();
            assert_eq!(once.len(), heads.len());
        },
    )
    .await;
}

#[tokio::test]
async fn a_clock_that_jumps_an_hour_ahead_doubles_nothing() {
    jump(Duration::hours(1)).await;
}

#[tokio::test]
async fn a_clock_that_jumps_a_day_ahead_doubles_nothing() {
    jump(Duration::days(1)).await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_an_hour_keeps_nothing_waiting_and_ends_nothing() {
    jump(-Duration::hours(1)).await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_a_day_keeps_nothing_waiting_and_ends_nothing() {
    jump(-Duration::days(1)).await;
}
