//! Roles, stops, restarts and too much at once, as an operator meets them: real processes, and a database that is stuck.

use crate::nodes::{Installation, Process, SLOW, until};
use crate::world::hub::payloads::Delivery;
use crate::world::{self, REPO, SECRET, World};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

fn running(installation: &Installation, number: i64) -> bool {
    installation.hub.own_comments(REPO, number).iter().any(|body| body.contains("🏃 Running"))
}

fn succeeded(installation: &Installation, number: i64) -> bool {
    installation.hub.own_comments(REPO, number).iter().any(|body| body.starts_with("**✅"))
}

/// One server with a run whose agent is in the middle.
async fn in_the_middle(arguments: &[&str]) -> (Installation, Process, i64) {
    let installation = Installation::new(SLOW, None, "", "").await;
    let mut server = installation.node("one", "all", None);
    server.begin(arguments);
    let address = server.address;
    until("it listens", || std::net::TcpStream::connect(address).is_ok()).await;
    let (number, _, delivery) = installation.ask();
    assert_eq!(server.post(&delivery).await, Some(202));
    until("a running agent", || running(&installation, number)).await;
    (installation, server, number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_the_agent_and_the_next_start_adopts_it_at_once() {
    let (installation, mut server, number) = in_the_middle(&[]).await;
    server.signal("-TERM");
    let (status, time) = server.ended(Duration::from_secs(11)).await;
    assert!(status.success(), "{status}: {}", server.log());
    assert!(time < Duration::from_secs(10), "{time:?}");
    assert!(!succeeded(&installation, number));
    let begun = Instant::now();
    server.start().await;
    until("it is adopted", || server.log().contains("adopting a running agent")).await;
    // Far below a lease.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    until("the end", || succeeded(&installation, number)).await;
    assert_eq!(server.log().matches("agent started").count(), 1);
    server.signal("-TERM");
    server.ended(Duration::from_secs(11)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_live_runs_and_a_second_signal_does_not() {
    let (installation, mut server, number) = in_the_middle(&["--drain", "wait"]).await;
    server.signal("-TERM");
    let (status, _) = server.ended(Duration::from_secs(60)).await;
    assert!(status.success(), "{status}: {}", server.log());
    assert_eq!(server.log().matches("pushed").count(), 1, "the run came to its end before: {}", server.log());
    server.start().await;
    until("its last words", || succeeded(&installation, number)).await;
    assert!(!server.log().contains("adopting a running agent"));
    server.kill();

    server.begin(&["--drain", "wait"]);
    let address = server.address;
    until("it listens", || std::net::TcpStream::connect(address).is_ok()).await;
    let (second, _, delivery) = installation.ask();
    assert_eq!(server.post(&delivery).await, Some(202));
    until("a running agent", || running(&installation, second)).await;
    server.signal("-TERM");
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.signal("-TERM");
    let (status, time) = server.ended(Duration::from_secs(11)).await;
    assert!(status.success() && time < Duration::from_secs(10), "{status} after {time:?}");
    server.start().await;
    until("the end", || succeeded(&installation, second)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_of_one_role_do_not_share_a_folder() {
    let installation = Installation::new(SLOW, None, "", "").await;
    let mut server = installation.node("one", "all", None);
    server.start().await;
    let output = server
        .command(&["serve"])
        .env("ZEBLIT_SERVER__LISTEN", "127.0.0.1:0")
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another `zeblit serve` with the role `all` works on"), "{said}");
}

// ---------------------------------------------------------------- roles

/// The variables of a process.
fn environment(process: &Process) -> String {
    let pid = process.child.as_ref().unwrap().id();
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    String::from_utf8_lossy(&bytes).replace('\0', "\n")
}

async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_works_with_its_own_credentials_only() {
    const MODEL_KEY: &str = "sk-ant-the-key-of-the-model";
    let Some(database) = world::postgres().await else {
        assert!(std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_POSTGRES");
        return;
    };
    let installation = Installation::new(SLOW, Some(database.url()), "", "").await;
    let mut started = Vec::new();
    let mut public = None;
    for (role, variables) in [
        ("web", vec![]),
        ("deliver", vec![]),
        ("worker", vec![("ZEBLIT_MODELS__ANTHROPIC_API_KEY", MODEL_KEY.to_owned())]),
    ] {
        let mut node = installation.node(role, role, public);
        public = public.or(Some(node.address));
        let mut command = node.command(&["serve"]);
        if role != "web" {
            command.env("ZEBLIT_NODE__HEALTH", node.address.to_string());
        }
        for (name, value) in variables {
            command.env(name, value);
        }
        node.child = Some(command.spawn().unwrap());
        let address = node.address;
        until("it listens", || std::net::TcpStream::connect(address).is_ok()).await;
        started.push(node);
    }
    let [web, deliver, worker] = [0, 1, 2].map(|n: usize| &started[n]);
    let given = |node: &Process| {
        environment(node) + &std::fs::read_to_string(node.folder.join("zeblit-server.toml")).unwrap()
    };
    // (who, what it must not have, what it must have)
    for (node, absent, there) in [
        (web, vec!["private_key", MODEL_KEY], vec![SECRET]),
        (deliver, vec![SECRET, MODEL_KEY], vec!["private_key"]),
        (worker, vec![SECRET], vec!["private_key", MODEL_KEY]),
    ] {
        let given = given(node);
        assert!(absent.iter().all(|text| !given.contains(text)), "{}", node.name);
        assert!(there.iter().all(|text| given.contains(text)), "{}", node.name);
        assert!(!node.log().contains("does not use it"), "{}", node.log());
    }

    let (number, _, delivery) = installation.ask();
    assert_eq!(web.post(&delivery).await, Some(202));
    until("the end", || succeeded(&installation, number)).await;
    for (node, checks) in [
        (web, vec!["database"]),
        (deliver, vec!["database", "forge"]),
        (worker, vec!["database", "sandbox", "forge"]),
    ] {
        let (status, answer) = get(node.address, "/readyz").await.unwrap();
        assert_eq!(status, 200, "{answer}");
        for check in ["database", "sandbox", "forge"] {
            let named = answer.contains(&format!("\"name\":\"{check}\""));
            assert_eq!(named, checks.contains(&check), "{}: {answer}", node.name);
        }
        assert_eq!(get(node.address, "/metrics").await.unwrap().0, 200);
    }
    assert_eq!(get(worker.address, "/api/v1/status").await.unwrap().0, 404, "only web has an API");
    assert_eq!(get(web.address, "/api/v1/status").await.unwrap().0, 401);

    // The operator's view, from any node's configuration.
    let nodes = |arguments: &[&str]| {
        let output = web.command(arguments).stdout(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", web.log());
        String::from_utf8(output.stdout).unwrap()
    };
    let states = || {
        let json: serde_json::Value = serde_json::from_str(&nodes(&["nodes", "--json"])).unwrap();
        let states = json["nodes"].as_array().unwrap().iter();
        states.map(|node| (node["name"].to_string(), node["state"].to_string())).collect::<BTreeMap<_, _>>()
    };
    let live = || "\"live\"".to_owned();
    let wanted = ["deliver", "web", "worker"].map(|name| (format!("\"{name}\""), live()));
    assert_eq!(states(), BTreeMap::from(wanted));
    let table = nodes(&["nodes"]);
    assert!(table.contains("0/3"), "{table}");
    nodes(&["nodes", "drain", "worker"]);
    assert_eq!(states()["\"worker\""], "\"draining\"");
    nodes(&["nodes", "undrain", "worker"]);
    assert_eq!(states()["\"worker\""], live());

    // What is too much is taken out, and named.
    let mut careless = installation.node("careless", "web", public);
    let mut command = careless.command(&["serve"]);
    command.env("ZEBLIT_MODELS__ANTHROPIC_API_KEY", MODEL_KEY);
    careless.child = Some(command.spawn().unwrap());
    until("it warns", || {
        careless.log().contains("`models.anthropic_api_key` is set and the role `web` does not use it")
    })
    .await;
    let address = careless.address;
    until("it listens", || std::net::TcpStream::connect(address).is_ok()).await;
    until("it is registered", || states().contains_key("\"careless\"")).await;
    careless.signal("-TERM");
    assert!(careless.ended(Duration::from_secs(11)).await.0.success());
    assert_eq!(states()["\"careless\""], "\"stopped\"");
    let refused = web
        .command(&["serve", "--role", "worker"])
        .env("ZEBLIT_DATABASE__URL", "sqlite:x.db")
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the role `worker` shares its database with other nodes"), "{said}");
    drop((careless, started));
    database.remove().await;
}

// ---------------------------------------------------------------- a socket that stays

/// The program under a parent that holds its socket, as a service manager does.
fn under_a_parent(server: &Process, listener: &std::net::TcpListener) -> Command {
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_FDNAMES=zeblit LISTEN_PID=$$ exec \"$0\" serve";
    let plain = server.command(&[]);
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(plain.get_program()).current_dir(&server.folder);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let log = std::fs::OpenOptions::new().create(true).append(true).open(server.folder.join("log")).unwrap();
    command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_refused_while_a_server_behind_a_passed_socket_restarts() {
    let installation = Installation::new(SLOW, None, "", "").await;
    let mut server = installation.node("one", "all", None);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    server.address = address;
    let notify = server.folder.join("notify");
    let told = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    told.set_nonblocking(true).unwrap();
    let start = |server: &mut Process| {
        let mut command = under_a_parent(server, &listener);
        command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "600000");
        server.child = Some(command.spawn().unwrap());
    };
    start(&mut server);

    let stop = Arc::new(AtomicBool::new(false));
    let (answered, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut visitors = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (stop, answered, failed) = (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&failed));
        visitors.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let count = match get(address, "/healthz").await {
                    Some((200, _)) => &answered,
                    _ => &failed,
                };
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    for _ in 0..3 {
        let before = answered.load(Ordering::SeqCst);
        until("it answers", || answered.load(Ordering::SeqCst) > before + 50).await;
        server.signal("-TERM");
        let (status, _) = server.ended(Duration::from_secs(11)).await;
        assert!(status.success(), "{}", server.log());
        start(&mut server);
    }
    let before = answered.load(Ordering::SeqCst);
    until("it answers", || answered.load(Ordering::SeqCst) > before + 50).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    stop.store(true, Ordering::SeqCst);
    while visitors.join_next().await.is_some() {}
    assert_eq!(failed.load(Ordering::SeqCst), 0, "of {}", answered.load(Ordering::SeqCst));
    assert!(std::net::TcpStream::connect(address).is_ok());

    let mut states = BTreeMap::new();
    let mut buffer = [0; 64];
    while let Ok(length) = told.recv(&mut buffer) {
        *states.entry(String::from_utf8_lossy(&buffer[..length]).into_owned()).or_insert(0) += 1;
    }
    assert_eq!((states["READY=1"], states["STOPPING=1"]), (4, 3), "{states:?}");
    assert!(states["WATCHDOG=1"] > 0, "{states:?}");
}

// ---------------------------------------------------------------- too much at once

/// Bytes that this process has in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_large_deliveries_against_a_stuck_database_are_stored_or_refused() {
    const DELIVERIES: usize = 1000;
    const BODY_BYTES: usize = 1024 * 1024;
    const IN_FLIGHT: usize = 24 * 1024 * 1024;
    World::run_with(
        |config| config.server.inflight_bytes = IN_FLIGHT,
        async |w| {
            let router = zeblit::http::router(Arc::clone(&w.app));
            // Nobody else writes until it is dropped.
            let stuck = w.app.store.write_tx().await.unwrap();
            let before = resident();
            let filler: String = (0..BODY_BYTES / 16)
                .map(|n| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
                .collect();
            let body = format!("{{\"zen\":\"{filler}\"}}").into_bytes();
            let signed = Delivery { event: "ping", id: String::new(), body: body.clone() };
            let signature = signed
                .headers(SECRET)
                .into_iter()
                .find(|(name, _)| name.to_ascii_lowercase().contains("signature"))
                .unwrap();
            let body = bytes::Bytes::from(body);
            let mut posts = tokio::task::JoinSet::new();
            for n in 0..DELIVERIES {
                let request = Request::post("/webhooks/github")
                    .header("content-type", "application/json")
                    .header("x-github-event", "ping")
                    .header("x-github-delivery", format!("large-{n}"))
                    .header(signature.0, signature.1.as_str())
                    .body(Body::from(body.clone()))
                    .unwrap();
                let router = router.clone();
                posts.spawn(async move {
                    let answer = router.oneshot(request).await.unwrap();
                    let retry = answer.headers().contains_key("retry-after");
                    (n, answer.status(), retry)
                });
            }
            let mut refused = 0;
            let mut accepted = Vec::new();
            let mut most = 0;
            // All that do not fit are refused while nothing can be stored.
            while posts.len() > IN_FLIGHT / (BODY_BYTES + 1024) {
                let (n, status, retry) = posts.join_next().await.unwrap().unwrap();
                assert_eq!((status, retry), (StatusCode::SERVICE_UNAVAILABLE, true), "large-{n}");
                refused += 1;
                most = most.max(resident().saturating_sub(before));
            }
            assert!(most < 6 * IN_FLIGHT, "{most} bytes more than before");
            drop(stuck);
            while let Some(posted) = posts.join_next().await {
                let (n, status, _) = posted.unwrap();
                assert_eq!(status, StatusCode::ACCEPTED, "large-{n}");
                accepted.push(n);
            }
            assert_eq!(refused + accepted.len(), DELIVERIES);
            assert!(!accepted.is_empty());
            for n in &accepted {
                let stored = zeblit::store::inbox::get(&w.app.store, &format!("large-{n}")).await.unwrap();
                assert_eq!(stored.map(|stored| stored.raw.len()), Some(body.len()), "large-{n}");
            }
            let counts = zeblit::store::inbox::counts(&w.app.store).await.unwrap();
            let all: i64 = counts.iter().map(|(_, count)| count).sum();
            assert_eq!(usize::try_from(all).unwrap(), accepted.len(), "nothing else was stored");
            w.settle().await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_waits_too_long_for_the_database_is_refused_and_known_when_it_comes_again() {
    World::run(async |w| {
        let delivery = Delivery { event: "ping", id: "patient".into(), body: b"{\"zen\":\"x\"}".to_vec() };
        let stuck = w.app.store.write_tx().await.unwrap();
        let begun = Instant::now();
        assert_eq!(w.deliver(&delivery).await, StatusCode::SERVICE_UNAVAILABLE);
        assert!(begun.elapsed() < Duration::from_secs(10), "its sender has hung up: {:?}", begun.elapsed());
        drop(stuck);
        let again = w.deliver(&delivery).await;
        assert!(again == StatusCode::OK || again == StatusCode::ACCEPTED, "{again}");
        let counts = zeblit::store::inbox::counts(&w.app.store).await.unwrap();
        assert_eq!(counts, [("pending".to_owned(), 1)]);
        w.settle().await;
    })
    .await;
}
