//! The router by `oneshot`: a real database, the built-in forge, a sandbox that only answers its self-check.

use super::*;
use crate::agent::definition::AgentSet;
use crate::app::Signer;
use crate::broker::{Broker, Settings};
use crate::clock::{Clock, Ids, RandomIds};
use crate::config::{Config, LocalForgeConfig, RunPage};
use crate::domain::command::Verb;
use crate::domain::event::{Actor, ActorKind, Repo, Source, Subject, SubjectKind};
use crate::domain::ids::{BranchName, RepoName, RunId, Sha, SlotId, TaskId};
use crate::domain::repo_config::RepoConfig;
use crate::domain::run::{Publish, RunInput, RunMode, RunSpec};
use crate::domain::secrets::SecretScan;
use crate::domain::task::Task;
use crate::git::Git;
use crate::intake::signature;
use crate::queue::local::LocalWakeup;
use crate::remote::Forge;
use crate::remote::local::LocalForge;
use crate::sandbox::{Check, Listed, Polled, Sandbox, SandboxError, SandboxSpec};
use crate::store::{self, Store};
use axum::body::Body;
use axum::http::{HeaderMap, Method};
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use secrecy::SecretString;
use std::path::{Path, PathBuf};
use std::sync::Mutex as StdMutex;
use tower::ServiceExt;

const SECRET: &str = "the webhook secret of the tests";
const OLD_SECRET: &str = "an older secret in rotation";

#[derive(Debug)]
struct TestClock(StdMutex<DateTime<Utc>>);

impl TestClock {
    fn advance(&self, by: TimeDelta) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap()
    }
}

/// Only its self-check is asked for by HTTP.
#[derive(Debug)]
struct Checked(Vec<Check>);

fn unused<T>() -> Result<T, SandboxError> {
    Err(SandboxError::Unavailable { detail: "not in this test".into() })
}

#[async_trait::async_trait]
impl Sandbox for Checked {
    fn kind(&self) -> &'static str {
        "test"
    }
    fn objects_path_inside(&self, host_objects: &Path) -> PathBuf {
        host_objects.into()
    }
    fn inside(&self, spec: &SandboxSpec) -> (PathBuf, PathBuf) {
        (spec.workspace.clone(), spec.home.clone())
    }
    async fn start(&self, _spec: &SandboxSpec) -> Result<String, SandboxError> {
        unused()
    }
    async fn poll(&self, _slot: &SlotId, _cursor: i64, _wait: Duration) -> Result<Polled, SandboxError> {
        unused()
    }
    async fn stop(&self, _slot: &SlotId) -> Result<(), SandboxError> {
        unused()
    }
    async fn remove(&self, _slot: &SlotId) -> Result<(), SandboxError> {
        unused()
    }
    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        unused()
    }
    async fn self_check(&self) -> Vec<Check> {
        self.0.clone()
    }
    fn owner(&self) -> (u32, u32) {
        (0, 0)
    }
}

fn check(name: &str, ok: bool, required: bool) -> Check {
    Check { name: name.into(), ok, required, found: format!("{name} is {ok}"), fix: String::new() }
}

struct Server {
    app: Arc<App>,
    router: Router,
    clock: Arc<TestClock>,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

async fn server() -> Server {
    server_with(|_| {}, vec![check("container engine", true, true), check("apparmor", false, false)]).await
}

async fn server_with(change: impl FnOnce(&mut Config), checks: Vec<Check>) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config {
        state_dir: folder.path().into(),
        local_forge: Some(LocalForgeConfig { webhook_secret: SECRET.into(), folder: None }),
        ..Config::default()
    };
    config.jira.webhook_secrets = vec![SecretString::from(SECRET), SecretString::from(OLD_SECRET)];
    change(&mut config);
    let clock = Arc::new(TestClock(StdMutex::new(Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 5).unwrap())));
    let shared: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
    let ids: Arc<dyn Ids> = Arc::new(RandomIds);
    let url = format!("sqlite:{}", folder.path().join("zeblit.db").display());
    let store = Store::open(&url).await.unwrap();
    let local =
        LocalForge::open(&folder.path().join("forge"), "http://127.0.0.1:1/forge", Arc::clone(&shared))
            .unwrap();
    let forge: Arc<dyn Forge> = Arc::new(local.clone());
    let app = Arc::new(App {
        broker: Broker::new(Settings::default(), store.clone(), Arc::clone(&shared), Arc::clone(&ids)),
        git: Git::open(folder.path()).await.unwrap(),
        config: Arc::new(config),
        store,
        wakeup: Arc::new(LocalWakeup::default()),
        forge,
        remotes: Vec::new(),
        local: Some(local),
        sandbox: Arc::new(Checked(checks)),
        agents: AgentSet::default(),
        clock: shared,
        ids,
        signer: Signer::new(b"a key for the tests"),
        secrets: SecretScan::new(&[SECRET.as_bytes()]),
        live: Default::default(),
        loads: Default::default(),
        node: crate::domain::node::Node {
            id: "n1".into(),
            name: "n1".into(),
            role: Default::default(),
            capabilities: Vec::new(),
        },
        boot: "n1:boot".into(),
        socket_root: folder.path().into(),
    });
    let stop = CancellationToken::new();
    let router = router_until(Arc::clone(&app), stop.clone());
    Server { app, router, clock, stop, _folder: folder }
}

impl Server {
    async fn send(&self, request: Request) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    async fn call(&self, method: &str, path: &str, token: Option<&str>) -> Answer {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    async fn deliver(&self, source: Source, secret: &str, id: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.send(delivery(source, secret, id, body.into())).await
    }

    async fn stored(&self) -> usize {
        store::inbox::list(&self.app.store, 200).await.unwrap().len()
    }

    async fn token(&self, name: &str, expires_at: Option<DateTime<Utc>>) -> String {
        let text = format!("zbl_{name}");
        let token = store::access::Token {
            id: format!("id-{name}"),
            name: name.into(),
            created_at: self.app.clock.now(),
            expires_at,
            revoked_at: None,
        };
        let mut tx = self.app.store.write_tx().await.unwrap();
        store::access::insert(&mut tx, &token, &api::token_hash(&text)).await.unwrap();
        tx.commit().await.unwrap();
        text
    }

    /// A queued run; `change` may make it as hostile as it likes.
    async fn run(&self, id: &str, change: impl FnOnce(&mut RunSpec)) -> RunId {
        let repo =
            Repo { id: 1, name: RepoName::parse("octo/shop").unwrap(), installation: 0, private: false };
        let task = Task {
            id: TaskId::new(format!("task-{id}")),
            remote: "local".into(),
            repo: repo.clone(),
            kind: SubjectKind::Issue,
            number: i64::try_from(id.len()).unwrap(),
            title: "Wrong total".into(),
            branch: None,
            pull_number: None,
            pull_url: None,
            created_at: self.app.clock.now(),
            closed_at: None,
        };
        let mut spec = spec();
        change(&mut spec);
        let run = store::runs::NewRun {
            id: RunId::new(id),
            task: task.id.clone(),
            key: format!("key-{id}"),
            remote: "local".into(),
            repo,
            lock_key: format!("lock-{id}"),
            spec,
            priority: 1,
            created_at: self.app.clock.now(),
        };
        let mut tx = self.app.store.write_tx().await.unwrap();
        store::tasks::insert(&mut tx, &task).await.unwrap();
        assert!(store::runs::insert(&mut tx, &run).await.unwrap());
        tx.commit().await.unwrap();
        run.id
    }

    async fn change_run(&self, id: &RunId, change: impl FnOnce(&mut crate::domain::run::Run)) {
        let mut run = store::runs::get(&self.app.store, id).await.unwrap().unwrap();
        change(&mut run);
        let mut tx = self.app.store.write_tx().await.unwrap();
        store::runs::save(&mut tx, &run).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// A file of a run, kept for a day.
    async fn keep(&self, id: &RunId, path: &str, bytes: &[u8]) {
        let now = self.app.clock.now();
        let mut tx = self.app.store.write_tx().await.unwrap();
        store::artifacts::put_file(&mut tx, id, path, bytes, now, now + TimeDelta::days(1)).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn end_run(&self, id: &RunId) {
        let now = self.app.clock.now();
        self.change_run(id, |run| run.apply(&RunInput::Cancelled, now).unwrap()).await;
    }

    async fn log(&self, id: &RunId, lines: &[(&str, &str)]) {
        let text: String = lines
            .iter()
            .map(|(kind, text)| serde_json::json!({ "n": 1, "k": kind, "t": text }).to_string() + "\n")
            .collect();
        let mut tx = self.app.store.write_tx().await.unwrap();
        store::logs::append(&mut tx, id, 1, &text, self.app.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        self.app.wakeup.notify(crate::queue::Topic::Logs);
    }

    fn link(&self, id: &RunId) -> String {
        let expires = (self.app.clock.now() + TimeDelta::days(1)).timestamp();
        self.app.signer.run_path(id.as_str(), expires)
    }
}

fn spec() -> RunSpec {
    let sha = Sha::parse(&"a".repeat(40)).unwrap();
    let actor = Actor { id: 1, login: "ada".into(), kind: ActorKind::User };
    RunSpec {
        verb: Verb::Fix,
        text: "the rounding".into(),
        agent: "fixer".into(),
        model: None,
        mode: RunMode::Change,
        requester: actor.clone(),
        subject: Subject {
            kind: SubjectKind::Issue,
            number: 7,
            title: "Wrong total".into(),
            body: String::new(),
            author: actor,
            url: "http://127.0.0.1:1/forge/octo/shop/issues/7".into(),
            open: true,
        },
        origin: None,
        start: sha.clone(),
        base: BranchName::parse("main").unwrap(),
        base_sha: sha,
        pull: None,
        push_to: None,
        fork: None,
        publish: Publish::Push,
        image: "image".into(),
        budget_micros: 5_000_000,
        wall_seconds: 60,
        config: RepoConfig::default(),
        previous: None,
        resume: false,
        needs: Vec::new(),
    }
}

fn delivery(source: Source, secret: &str, id: &str, body: Vec<u8>) -> Request {
    let mut request = Request::builder()
        .method("POST")
        .uri(format!("/webhooks/{}", source.as_str()))
        .header("content-type", "application/json")
        .header("content-length", body.len());
    for (name, value) in signature::sign(source, &SecretString::from(secret), id, "issue_comment", &body) {
        request = request.header(name, value);
    }
    request.body(Body::from(body)).unwrap()
}

// ---------------------------------------------------------------- deliveries

#[tokio::test]
async fn a_signed_delivery_is_stored_before_it_is_accepted() {
    let server = server().await;
    let answer = server.deliver(Source::Github, SECRET, "d-1", "{\"zen\": 1}").await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let stored = store::inbox::get(&server.app.store, &id).await.unwrap().unwrap();
    assert_eq!((stored.delivery_id.as_str(), stored.event.as_str()), ("d-1", "issue_comment"));
    assert_eq!(stored.raw, b"{\"zen\": 1}");
    let names: Vec<&str> = stored.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"x-github-event"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("signature") || *name == "authorization"), "{names:?}");
}

#[tokio::test]
async fn a_repeated_delivery_is_told_so_and_stored_once() {
    let server = server().await;
    assert_eq!(server.deliver(Source::Github, SECRET, "d-1", "{}").await.status, 202);
    let again = server.deliver(Source::Github, SECRET, "d-1", "{}").await;
    assert_eq!((again.status, again.text.as_str()), (200, "{\"duplicate\":true}"));
    assert_eq!(server.stored().await, 1);
}

#[tokio::test]
async fn what_is_not_signed_right_is_refused_and_not_stored() {
    let server = server().await;
    let wrong = server.deliver(Source::Github, "another secret altogether", "d-1", "{}").await;
    assert_eq!(wrong.status, 401);
    assert_eq!(wrong.json()["error"]["code"], "unauthorized");
    let mut altered = delivery(Source::Github, SECRET, "d-2", b"{\"a\":1}".to_vec());
    *altered.body_mut() = Body::from("{\"a\":2}");
    assert_eq!(server.send(altered).await.status, 401);
    let mut unsigned = delivery(Source::Github, SECRET, "d-3", b"{}".to_vec());
    unsigned.headers_mut().remove("x-hub-signature-256");
    assert_eq!(server.send(unsigned).await.status, 401);
    assert_eq!(server.stored().await, 0);
}

#[tokio::test]
async fn a_delivery_without_an_id_is_refused() {
    let server = server().await;
    let mut request = delivery(Source::Github, SECRET, "d-1", b"{}".to_vec());
    request.headers_mut().remove("x-github-delivery");
    let answer = server.send(request).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text.to_lowercase().contains("x-github-delivery"), "{}", answer.text);
    assert_eq!(server.stored().await, 0);
}

#[tokio::test]
async fn sources_without_a_secret_are_disabled_and_unknown_ones_not_there() {
    let server = server().await;
    let disabled = server.deliver(Source::Sentry, SECRET, "d-1", "{}").await;
    assert_eq!(disabled.status, 404);
    assert!(disabled.text.contains("sentry.webhook_secrets"), "{}", disabled.text);
    let unknown = server.call("POST", "/webhooks/gitlab", None).await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.text.contains("github, jira, sentry"), "{}", unknown.text);
    assert_eq!(server.get("/webhooks/github").await.status, 405);
}

#[tokio::test]
async fn both_secrets_of_a_rotation_are_taken() {
    let server = server().await;
    for (id, secret) in [("j-1", SECRET), ("j-2", OLD_SECRET)] {
        let answer = server.deliver(Source::Jira, secret, id, "{}").await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
}

/// A body that must not be read.
fn untouched() -> Body {
    Body::from_stream(futures_util::stream::poll_fn(
        |_| -> std::task::Poll<Option<Result<bytes::Bytes, std::io::Error>>> { panic!("the body was read") },
    ))
}

#[tokio::test]
async fn a_declared_length_over_the_cap_is_refused_unread() {
    let server = server_with(|config| config.jira.max_body_bytes = 1000, Vec::new()).await;
    let request = Request::builder()
        .method("POST")
        .uri("/webhooks/jira")
        .header("content-length", "1001")
        .body(untouched())
        .unwrap();
    let answer = server.send(request).await;
    assert_eq!((answer.status, answer.header("connection")), (413, "close"));
    let huge = Request::builder()
        .method("POST")
        .uri("/webhooks/jira")
        .header("content-length", "99999999999999999999999999")
        .body(untouched())
        .unwrap();
    assert_eq!(server.send(huge).await.status, 413);
}

#[tokio::test]
async fn an_undeclared_length_over_the_cap_is_refused_on_the_way() {
    let server = server_with(|config| config.jira.max_body_bytes = 1000, Vec::new()).await;
    let endless = futures_util::stream::repeat_with(|| {
        Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[b'x'; 300]))
    });
    let request =
        Request::builder().method("POST").uri("/webhooks/jira").body(Body::from_stream(endless)).unwrap();
    assert_eq!(server.send(request).await.status, 413);
}

#[tokio::test]
async fn a_body_that_never_ends_is_given_up() {
    let server = server_with(|config| config.server.body_timeout_seconds = 1, Vec::new()).await;
    let silent = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    let request =
        Request::builder().method("POST").uri("/webhooks/github").body(Body::from_stream(silent)).unwrap();
    assert_eq!(server.send(request).await.status, 408);
    let cut = futures_util::stream::iter([
        Ok(bytes::Bytes::from_static(b"{")),
        Err(std::io::Error::other("connection reset")),
    ]);
    let request =
        Request::builder().method("POST").uri("/webhooks/github").body(Body::from_stream(cut)).unwrap();
    assert_eq!(server.send(request).await.status, 400);
}

#[tokio::test]
async fn too_many_bytes_at_one_time_are_put_off_and_the_room_comes_back() {
    let server = server_with(|config| config.server.inflight_bytes = 8 * 1024, Vec::new()).await;
    let big = format!("{{\"a\": \"{}\"}}", "x".repeat(9 * 1024));
    let answer = server.deliver(Source::Github, SECRET, "d-1", big).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "5"));
    for n in 0..20 {
        let small = format!("{{\"a\": \"{}\"}}", "x".repeat(7 * 1024));
        assert_eq!(server.deliver(Source::Github, SECRET, &format!("s-{n}"), small).await.status, 202);
    }
    assert_eq!(server.stored().await, 20);
}

#[tokio::test]
async fn what_cannot_be_stored_is_never_accepted() {
    let server = server().await;
    server.app.store.close().await;
    let answer = server.deliver(Source::Github, SECRET, "d-1", "{}").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "5"));
    assert!(!answer.text.contains("sqlx") && !answer.text.contains("pool"), "{}", answer.text);
}

#[tokio::test]
async fn large_and_odd_bodies_are_stored_as_they_are() {
    let server = server().await;
    let large = vec![b'['; 1024 * 1024];
    assert_eq!(server.deliver(Source::Github, SECRET, "large", large.clone()).await.status, 202);
    assert_eq!(store::inbox::get(&server.app.store, "large").await.unwrap().unwrap().raw, large);
    for (id, body) in [("empty", &b""[..]), ("binary", &[0, 159, 146, 150]), ("text", b"not json")] {
        assert_eq!(server.deliver(Source::Github, SECRET, id, body).await.status, 202, "{id}");
    }
}

#[tokio::test]
async fn every_recorded_delivery_is_accepted() {
    let server = server_with(|config| config.sentry.webhook_secrets = vec![SECRET.into()], Vec::new()).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut sent = 0;
    for source in Source::ALL {
        for entry in std::fs::read_dir(folder.join(source.as_str())).unwrap() {
            let path = entry.unwrap().path();
            let answer =
                server.deliver(source, SECRET, &format!("d-{sent}"), std::fs::read(&path).unwrap()).await;
            assert_eq!(answer.status, 202, "{}: {}", path.display(), answer.text);
            sent += 1;
        }
    }
    assert!(sent >= 15, "{sent}");
}

// ---------------------------------------------------------------- health

#[tokio::test]
async fn readiness_names_each_part_and_ignores_what_is_only_recommended() {
    let server = server().await;
    assert_eq!(server.get("/healthz").await.text, "ok\n");
    let answer = server.get("/readyz").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let names: Vec<String> =
        answer.json()["checks"].as_array().unwrap().iter().map(|c| c["name"].to_string()).collect();
    assert_eq!(names, ["\"database\"", "\"sandbox\"", "\"forge\"", "\"disk\""]);
}

#[tokio::test]
async fn a_missing_sandbox_or_database_is_not_ready() {
    let server = server_with(|_| {}, vec![check("container engine", false, true)]).await;
    let answer = server.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["checks"][1]["detail"], "container engine: container engine is false");
    server.app.store.close().await;
    let answer = server.get("/readyz").await;
    assert_eq!(answer.json()["checks"][0]["ok"], false);
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn metrics_count_deliveries_and_the_queue() {
    let server = server().await;
    server.run("metrics-run", |_| {}).await;
    server.deliver(Source::Github, SECRET, "d-1", "{}").await;
    let text = server.get("/metrics").await.text;
    for line in [
        "zeblit_webhooks_total{source=\"github\",result=\"accepted\"}",
        "zeblit_runs{state=\"queued\"} ",
        "zeblit_effects{state=\"planned\"} 0",
        "zeblit_deliveries{state=\"pending\"} ",
        "zeblit_database_up 1",
        "# HELP zeblit_webhook_seconds ",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}

// ---------------------------------------------------------------- run pages

#[tokio::test]
async fn a_run_page_opens_with_its_link_only() {
    let server = server_with(|_| {}, Vec::new()).await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let other = server.run("0192aaaabbbbdddd0", |_| {}).await;
    let link = server.link(&run);
    let page = server.get(&link).await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("octo/shop#7") && page.text.contains("/zeblit fix the rounding"));
    assert_eq!(page.header("content-security-policy"), CONTENT_SECURITY_POLICY);
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    assert_eq!(page.header("cache-control"), "no-store");
    let borrowed = link.replace(run.as_str(), other.as_str());
    for wrong in [format!("/runs/{run}"), format!("{link}0"), borrowed, link.replace("e=1", "e=2")] {
        let page = server.get(&wrong).await;
        assert_eq!(page.status, 403, "{wrong}");
        assert!(page.text.contains("zeblit status"), "{}", page.text);
        let events = server.get(&wrong.replacen('?', "/events?", 1)).await;
        assert_eq!(events.status, 403, "{wrong}");
    }
    server.clock.advance(TimeDelta::days(2));
    let expired = server.get(&link).await;
    assert!(expired.status == 403 && expired.text.contains("has expired"), "{}", expired.text);
}

#[tokio::test]
async fn run_pages_can_be_off() {
    let server = server_with(|config| config.server.run_page = RunPage::Off, Vec::new()).await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let link = server.link(&run);
    assert_eq!(server.get(&link).await.status, 404);
    assert_eq!(server.get(&link.replacen('?', "/events?", 1)).await.status, 404);
}

#[tokio::test]
async fn hostile_text_stays_text() {
    const HOSTILE: &str = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\"'`\u{202e}\u{1b}[31m";
    let server = server().await;
    let run = server
        .run("0192aaaabbbbcccc", |spec| {
            spec.text = HOSTILE.into();
            spec.agent = HOSTILE.into();
            spec.model = Some(HOSTILE.into());
            spec.requester.login = HOSTILE.into();
            spec.subject.title = HOSTILE.into();
            spec.subject.url = "javascript:alert(1)".into();
        })
        .await;
    server.log(&run, &[("text", HOSTILE), ("out", "<b>bold</b>"), (HOSTILE, "an unknown kind")]).await;
    let now = server.app.clock.now();
    server
        .change_run(&run, |run| {
            run.progress.last = HOSTILE.into();
            run.outcome.reason = HOSTILE.into();
            run.outcome.summary = HOSTILE.into();
            run.outcome.notes = vec![HOSTILE.into()];
            run.outcome.pull_number = Some(3);
            run.outcome.pull_url = Some("javascript:alert(1)".into());
            run.apply(&RunInput::Failed, now).unwrap();
        })
        .await;
    let mut tx = server.app.store.write_tx().await.unwrap();
    let diff = format!("diff --git a/x b/x\n@@ -1 +1 @@\n-{HOSTILE}\n+{HOSTILE}\n");
    store::artifacts::put(&mut tx, &run, "diff", diff.as_bytes(), now).await.unwrap();
    tx.commit().await.unwrap();
    let page = server.get(&server.link(&run)).await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("&lt;script&gt;") || page.text.contains("&#60;script&#62;"), "{}", page.text);
    for bad in ["<script", "<img", "<b>", "javascript:", "\u{202e}", "\u{1b}"] {
        assert!(!page.text.contains(bad), "{bad:?} is in:\n{}", page.text);
    }
}

#[tokio::test]
async fn files_of_a_run_are_downloads_and_never_pages() {
    const HOSTILE: &str = "out/<img src=x>\"; filename=evil.html";
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let other = server.run("0192aaaabbbbdddd0", |_| {}).await;
    server.keep(&run, HOSTILE, b"<script>alert(1)</script>").await;
    server.keep(&run, "out/report.html", b"<h1>hello</h1>").await;
    server.keep(&other, "secret.txt", b"of the other run").await;
    let mut tx = server.app.store.write_tx().await.unwrap();
    store::artifacts::put(&mut tx, &run, "session", b"not for download", server.app.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let page = server.get(&server.link(&run)).await;
    assert!(page.text.contains("out/report.html") && page.text.contains("14 B"), "{}", page.text);
    assert!(!page.text.contains("<img") && !page.text.contains("secret.txt"), "{}", page.text);

    let (path, query) = server.link(&run).split_once('?').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let at = |file: &str| format!("{path}/artifacts/{}?{query}", view::url_path(file));
    for (file, text) in [("out/report.html", "<h1>hello</h1>"), (HOSTILE, "<script>alert(1)</script>")] {
        assert!(page.text.contains(&at(file).replace('&', "&#38;")), "{}", page.text);
        let answer = server.get(&at(file)).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, text));
        assert_eq!(answer.header("content-type"), "application/octet-stream");
        assert_eq!(answer.header("content-security-policy"), "sandbox; default-src 'none'");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert!(answer.header("content-disposition").starts_with("attachment; filename=\""));
    }
    let named = server.get(&at(HOSTILE)).await;
    assert_eq!(
        named.header("content-disposition"),
        "attachment; filename=\"_img src_x___ filename_evil.html\"; \
         filename*=UTF-8''%3Cimg%20src%3Dx%3E%22%3B%20filename%3Devil.html"
    );
    for (wrong, status) in [
        (at("out/missing"), 404),
        (at("secret.txt"), 404),
        (at("../session"), 404),
        (format!("{path}/artifacts/session?{query}"), 404),
        (format!("{path}/artifacts/out/report.html"), 403),
        (at("secret.txt").replace(run.as_str(), other.as_str()), 403),
    ] {
        assert_eq!(server.get(&wrong).await.status, status, "{wrong}");
    }
    let token = server.token("ci", None).await;
    let listed = server.call("GET", &format!("/api/v1/runs/{run}/artifacts"), Some(&token)).await.json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!((&listed[1]["path"], &listed[1]["size"]), (&"out/report.html".into(), &14.into()));
    let saved =
        server.call("GET", &format!("/api/v1/runs/{run}/artifacts/out/report.html"), Some(&token)).await;
    assert_eq!((saved.status, saved.text.as_str()), (200, "<h1>hello</h1>"));
    assert_eq!(saved.header("content-type"), "application/octet-stream");
    server.clock.advance(TimeDelta::days(2));
    assert_eq!(server.get(&at("out/report.html")).await.status, 403, "the link has expired");
}

#[tokio::test]
async fn assets_are_small_and_served_with_their_type() {
    let server = server().await;
    let script = server.get("/assets/run.js").await;
    assert_eq!((script.status, script.header("content-type")), (200, "text/javascript; charset=utf-8"));
    assert!(script.text.lines().count() <= 150);
    for bad in ["innerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!script.text.contains(bad), "{bad}");
    }
    assert_eq!(server.get("/assets/style.css").await.header("content-type"), "text/css; charset=utf-8");
}

// ---------------------------------------------------------------- the live log

/// Reads events until one of kind `until`, as `(kind, id, data)`.
struct Events {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Events {
    async fn open(server: &Server, path: &str, last_event_id: Option<&str>) -> Self {
        let mut request = Request::builder().uri(path);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = server.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers().get("content-type").unwrap(), "text/event-stream");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    async fn next(&mut self) -> Option<(String, String, String)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned()
                };
                if event.contains("event:") {
                    return Some((field("event:"), field("id:"), field("data:")));
                }
                continue;
            }
            let piece = self.body.next().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    async fn next_of(&mut self, kind: &str) -> (String, String) {
        loop {
            let (event, id, data) = self.next().await.expect("the stream ended");
            if event == kind {
                return (id, data);
            }
        }
    }
}

#[tokio::test]
async fn lines_that_another_node_tells_are_shown_at_once_and_gaps_are_read_from_the_store() {
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let path = server.link(&run).replacen('?', "/events?", 1);
    let mut events = Events::open(&server, &path, None).await;
    assert_eq!(events.next().await.unwrap().0, "state");
    let tell = |seq: i64, text: &str| {
        let text = format!("{{\"n\":1,\"k\":\"out\",\"t\":\"{text}\"}}\n").into();
        server.app.wakeup.lines(crate::queue::LogLines { run: run.to_string(), seq, text });
    };
    // It is not stored here: what is shown was told.
    tell(1, "told");
    let (id, lines) = events.next_of("log").await;
    assert!(id == "1" && lines.contains("told"), "{id} {lines}");
    tell(1, "told twice");
    // Stored by a process that cannot wake this one.
    for n in 1..=3 {
        let text = format!("{{\"n\":1,\"k\":\"out\",\"t\":\"stored as {n}\"}}\n");
        let mut tx = server.app.store.write_tx().await.unwrap();
        store::logs::append(&mut tx, &run, 1, &text, server.app.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
    }
    // The second was missed: it comes from the store, with the third.
    tell(3, "told after a gap");
    let (id, lines) = events.next_of("log").await;
    assert!(
        lines.contains("stored as 2") && !lines.contains("told") && !lines.contains("as 1"),
        "{id} {lines}"
    );
}

#[tokio::test]
async fn the_live_log_follows_resumes_and_ends() {
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    server.log(&run, &[("note", "first")]).await;
    server.log(&run, &[("text", "second <b>")]).await;
    let path = server.link(&run).replacen('?', "/events?", 1);

    let mut events = Events::open(&server, &path, None).await;
    let (kind, _, state) = events.next().await.unwrap();
    assert_eq!(kind, "state");
    assert!(state.contains("\"state\":\"queued\""), "{state}");
    let (id, lines) = events.next_of("log").await;
    assert_eq!(id, "2");
    assert_eq!(lines, r#"[{"n":1,"k":"note","t":"first"},{"n":1,"k":"text","t":"second <b>"}]"#);
    // What comes later arrives without asking again.
    server.log(&run, &[("out", "third")]).await;
    let (id, lines) = events.next_of("log").await;
    assert!(id == "3" && lines.contains("third"), "{id} {lines}");
    server.end_run(&run).await;
    let (_, state) = events.next_of("state").await;
    assert!(state.contains("\"state\":\"cancelled\""), "{state}");
    assert_eq!(events.next_of("end").await.1, "cancelled");
    assert_eq!(events.next().await, None);

    // A browser that saw 2 goes on with 3, whatever its address says.
    let mut again = Events::open(&server, &format!("{path}&after=0"), Some("2")).await;
    let (id, lines) = again.next_of("log").await;
    assert!(id == "3" && !lines.contains("second"), "{id} {lines}");
    // A page that shows everything only hears of the end.
    let mut none = Events::open(&server, &format!("{path}&after=3"), None).await;
    assert_eq!(none.next().await.unwrap().0, "state");
    assert_eq!(none.next().await.unwrap().0, "end");
}

/// The lines of `log` events up to the chunk `last`, and how many events they came in.
async fn lines_until(events: &mut Events, last: &str) -> (Vec<String>, usize) {
    let (mut lines, mut count) = (Vec::new(), 0);
    loop {
        let (id, data) = events.next_of("log").await;
        let told: Vec<serde_json::Value> = serde_json::from_str(&data).unwrap();
        lines.extend(told.iter().map(|line| line["t"].as_str().unwrap().to_owned()));
        count += 1;
        if id == last {
            return (lines, count);
        }
    }
}

#[tokio::test]
async fn lines_that_come_together_are_one_event_for_every_reader() {
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let path = server.link(&run).replacen('?', "/events?", 1);
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut events = Events::open(&server, &path, None).await;
        assert_eq!(events.next().await.unwrap().0, "state");
        readers.push(events);
    }
    // The first a reader may have read by itself; the second it was told.
    for n in 1..=2 {
        server.log(&run, &[("out", &format!("line {n}"))]).await;
        for reader in &mut readers {
            assert_eq!(reader.next_of("log").await.0, n.to_string());
        }
    }
    for seq in 3..=52 {
        let text = format!("{{\"n\":1,\"k\":\"out\",\"t\":\"line {seq}\"}}\n").into();
        server.app.wakeup.lines(crate::queue::LogLines { run: run.to_string(), seq, text });
    }
    let expected: Vec<String> = (3..=52).map(|seq| format!("line {seq}")).collect();
    for reader in &mut readers {
        let (lines, events) = lines_until(reader, "52").await;
        assert_eq!(lines, expected);
        assert!(events < 10, "50 lines came in {events} events");
    }
}

#[tokio::test]
async fn a_slow_reader_misses_no_line_and_holds_nobody_up() {
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let path = server.link(&run).replacen('?', "/events?", 1);
    let mut slow = Events::open(&server, &path, None).await;
    let mut quick = Events::open(&server, &path, None).await;
    server.log(&run, &[("out", "line 1")]).await;
    assert_eq!(slow.next_of("log").await.0, "1");
    // More frames than are kept for it: each is a frame of its own, because the other reader waits for it.
    let mut read_at_once = 0;
    for n in 1..=40 {
        if n > 1 {
            server.log(&run, &[("out", &format!("line {n}"))]).await;
        }
        let (lines, events) = lines_until(&mut quick, &n.to_string()).await;
        assert_eq!(lines, [format!("line {n}")]);
        read_at_once += events;
    }
    assert_eq!(read_at_once, 40);
    let (lines, events) = lines_until(&mut slow, "40").await;
    assert_eq!(lines, (2..=40).map(|n| format!("line {n}")).collect::<Vec<_>>());
    assert!(events < 39, "it took up {events} events");
}

#[tokio::test]
async fn a_stopping_server_lets_live_logs_go() {
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let path = server.link(&run).replacen('?', "/events?", 1);
    let mut events = Events::open(&server, &path, None).await;
    assert_eq!(events.next().await.unwrap().0, "state");
    server.stop.cancel();
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn the_page_holds_the_log_so_far_and_follows_from_there() {
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    for n in 0..205 {
        server.log(&run, &[("out", &format!("line {n}."))]).await;
    }
    let page = server.get(&server.link(&run)).await.text;
    assert!(page.contains("line 204.") && page.contains("line 5.") && !page.contains("line 4."), "{page}");
    assert!(page.contains("zeblit logs 0192aaaabbbbcccc") && page.contains("after=205\""), "{page}");
}

// ---------------------------------------------------------------- the API and who may use what

/// Every route: method, path, what it needs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Needs {
    Nothing,
    Token,
    Link,
}

#[tokio::test]
async fn every_route_asks_for_what_it_needs() {
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    server.keep(&run, "a/b.txt", b"x").await;
    let valid = server.token("valid", None).await;
    let expired = server.token("expired", Some(server.app.clock.now())).await;
    let revoked = server.token("revoked", None).await;
    let mut tx = server.app.store.write_tx().await.unwrap();
    assert!(store::access::revoke(&mut tx, "revoked", server.app.clock.now()).await.unwrap());
    tx.commit().await.unwrap();
    let (_, query) = server.link(&run).split_once('?').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let run_path = |end: &str| format!("/api/v1/runs/{run}{end}");
    let routes = [
        ("GET", "/healthz".to_owned(), Needs::Nothing),
        ("GET", "/readyz".into(), Needs::Nothing),
        ("GET", "/metrics".into(), Needs::Nothing),
        ("GET", "/assets/run.js".into(), Needs::Nothing),
        ("GET", "/assets/style.css".into(), Needs::Nothing),
        ("GET", format!("/runs/{run}"), Needs::Link),
        ("GET", "/api/v1/status".into(), Needs::Token),
        ("GET", "/api/v1/runs".into(), Needs::Token),
        ("GET", run_path(""), Needs::Token),
        ("GET", run_path("/log"), Needs::Token),
        ("GET", format!("/runs/{run}/artifacts/a/b.txt"), Needs::Link),
        ("GET", run_path("/artifacts"), Needs::Token),
        ("GET", run_path("/artifacts/a/b.txt"), Needs::Token),
        ("POST", run_path("/cancel"), Needs::Token),
        ("POST", run_path("/retry"), Needs::Token),
        ("GET", "/api/v1/budget".into(), Needs::Token),
        ("GET", "/api/v1/budget/runs?month=2026-11".into(), Needs::Token),
        ("POST", "/api/v1/pause".into(), Needs::Token),
        ("POST", "/api/v1/resume".into(), Needs::Token),
        ("GET", "/api/v1/deliveries".into(), Needs::Token),
        ("POST", "/api/v1/replay/none".into(), Needs::Token),
        ("GET", "/api/v1/audit".into(), Needs::Token),
    ];
    for (method, path, needs) in &routes {
        for (who, token) in [
            ("nobody", None),
            ("a wrong token", Some("zbl_wrong")),
            ("a foreign token", Some("ghp_x")),
            ("an expired token", Some(expired.as_str())),
            ("a revoked token", Some(revoked.as_str())),
            ("a valid token", Some(valid.as_str())),
        ] {
            let answer = server.call(method, path, token).await;
            let refused = match needs {
                Needs::Nothing => None,
                // A token opens no page: pages are opened by links alone.
                Needs::Link => Some(403),
                Needs::Token => (who != "a valid token").then_some(401),
            };
            match refused {
                Some(status) => {
                    assert_eq!(answer.status, status, "{method} {path} by {who}: {}", answer.text);
                }
                None => assert!(
                    ![401, 403, 405, 500].contains(&answer.status),
                    "{method} {path} by {who}: {} {}",
                    answer.status,
                    answer.text
                ),
            }
            if answer.status == 401 {
                assert_eq!(answer.header("www-authenticate"), "Bearer");
                assert_eq!(answer.json()["error"]["code"], "unauthorized");
            }
        }
        // The signature of a link is no key to anything else.
        let joint = if path.contains('?') { '&' } else { '?' };
        let linked = server.call(method, &format!("{path}{joint}{query}"), None).await;
        match needs {
            Needs::Link => assert_eq!(linked.status, 200),
            Needs::Token => assert_eq!(linked.status, 401),
            Needs::Nothing => {}
        }
    }
    let refused_only = store::audit::list(&server.app.store, 200).await.unwrap();
    assert!(refused_only.iter().all(|entry| entry.actor == "token:valid"), "{refused_only:?}");
}

#[tokio::test]
async fn runs_are_listed_read_and_cancelled() {
    let server = server().await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let token = server.token("ci", None).await;
    let get = async |path: &str| server.call("GET", path, Some(&token)).await;
    let listed = get("/api/v1/runs?open=true&repo=octo/shop").await.json();
    assert_eq!(listed[0]["id"], run.as_str());
    assert_eq!(listed[0]["state"], "queued");
    assert!(listed[0]["page_url"].as_str().unwrap().contains("/runs/0192aaaabbbbcccc?e="));
    assert_eq!(get("/api/v1/runs?state=failed").await.text, "[]");
    let bad = get("/api/v1/runs?state=sleeping").await;
    assert!(bad.status == 400 && bad.text.contains("queued, preparing"), "{}", bad.text);
    assert_eq!(get("/api/v1/runs?nonsense=1").await.status, 400);
    assert_eq!(get("/api/v1/runs/bbbbcccc").await.json()["id"], run.as_str(), "by the end of its id");
    for missing in ["/api/v1/runs/nonsense", "/api/v1/runs/..%2f", "/api/v1/runs/cc"] {
        assert_eq!(get(missing).await.status, 404, "{missing}");
    }
    server.log(&run, &[("text", "hello")]).await;
    let log = get("/api/v1/runs/0192aaaabbbbcccc/log").await.json();
    assert_eq!(
        (&log["lines"][0]["t"], &log["last_seq"], &log["end"]),
        (&"hello".into(), &1.into(), &false.into())
    );
    let cancelled = server.call("POST", "/api/v1/runs/bbbbcccc/cancel", Some(&token)).await;
    assert_eq!(cancelled.json()["id"], run.as_str());
    let known = store::runs::get(&server.app.store, &run).await.unwrap().unwrap();
    assert_eq!(known.cancel_requested.as_deref(), Some("token:ci"));
    let early = server.call("POST", "/api/v1/runs/bbbbcccc/retry", Some(&token)).await;
    assert_eq!((early.status, early.json()["error"]["code"].as_str()), (409, Some("refused")));
}

#[tokio::test]
async fn budgets_and_the_ledger_of_a_month_are_told() {
    let server = server_with(
        |config| {
            config.budget.user_day = Some(10.0);
            config.budget.repo_day = Some(20.0);
        },
        Vec::new(),
    )
    .await;
    let run = server.run("0192aaaabbbbcccc", |_| {}).await;
    let token = server.token("ci", None).await;
    let get = async |path: &str| server.call("GET", path, Some(&token)).await;
    let now = server.app.clock.now();
    let known = store::runs::get(&server.app.store, &run).await.unwrap().unwrap();
    let budgets = crate::domain::budget::of_run(&known, &server.app.config.budget.rules());
    let reservation = store::ledger::Reservation {
        run: run.clone(),
        request_id: "q".into(),
        attempt: 1,
        model: "m".into(),
        micros: 1_500_000,
    };
    store::ledger::reserve(&server.app.store, &reservation, &budgets, now).await.unwrap();
    let all = get("/api/v1/budget").await.json();
    assert_eq!(all["limits"]["user_day_micros"], 10_000_000);
    assert_eq!(all["limits"]["owner_month_micros"], serde_json::Value::Null);
    let shown = |view: &serde_json::Value| -> Vec<String> {
        let row = |budget: &serde_json::Value| {
            format!("{} {} {}", budget["kind"], budget["limit_micros"], budget["left_micros"])
        };
        view["budgets"].as_array().unwrap().iter().map(row).collect()
    };
    let expected = [
        "\"owner_month\" null null",
        "\"repo_day\" 20000000 18500000",
        "\"user_day\" 10000000 8500000",
        "\"run\" 5000000 3500000",
    ];
    assert_eq!(shown(&all), expected);
    assert_eq!(all["budgets"][1]["whose"], "octo/shop");
    assert_eq!(shown(&get("/api/v1/budget?run=bbbbcccc").await.json()), expected);
    assert_eq!(get("/api/v1/budget?run=nonsense").await.status, 404);
    let month = now.format("%Y-%m").to_string();
    let ledger = get(&format!("/api/v1/budget/runs?month={month}")).await.json();
    assert_eq!(ledger.as_array().unwrap().len(), 1);
    assert_eq!((&ledger[0]["run"], &ledger[0]["micros"]), (&run.as_str().into(), &1_500_000.into()));
    assert_eq!((&ledger[0]["repo"], &ledger[0]["unsettled"]), (&"octo/shop".into(), &1.into()));
    assert_eq!(get(&format!("/api/v1/budget/runs?month={month}&after={run}")).await.text, "[]");
    assert_eq!(get("/api/v1/budget/runs?month=2001-01").await.text, "[]");
    assert_eq!(get("/api/v1/budget/runs?month=last").await.status, 400);
}

#[tokio::test]
async fn pause_replay_and_audit_name_the_token() {
    let server = server().await;
    let token = server.token("ci", None).await;
    let pause = Request::builder()
        .method("POST")
        .uri("/api/v1/pause")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from("{\"why\": \"an upgrade\"}"))
        .unwrap();
    assert_eq!(server.send(pause).await.json()["why"], "by token:ci: an upgrade");
    let status = server.call("GET", "/api/v1/status", Some(&token)).await.json();
    assert_eq!(status["paused"], "by token:ci: an upgrade");
    assert_eq!(server.call("POST", "/api/v1/resume", Some(&token)).await.status, 200);
    server.deliver(Source::Jira, SECRET, "j-1", "{}").await;
    let listed = server.call("GET", "/api/v1/deliveries?limit=1", Some(&token)).await.json();
    assert_eq!((&listed[0]["delivery_id"], &listed[0]["state"]), (&"j-1".into(), &"pending".into()));
    assert_eq!(server.call("POST", "/api/v1/replay/j-9", Some(&token)).await.status, 404);
    let audit = server.call("GET", "/api/v1/audit", Some(&token)).await.json();
    let actions: Vec<(&str, &str)> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["actor"].as_str().unwrap(), entry["action"].as_str().unwrap()))
        .collect();
    for action in ["pause", "resume", "token.use"] {
        assert!(actions.contains(&("token:ci", action)), "{action}: {actions:?}");
    }
    let wrong = Request::builder()
        .method("POST")
        .uri("/api/v1/pause")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from(vec![b' '; API_BODY_BYTES + 1]))
        .unwrap();
    assert_eq!(server.send(wrong).await.status, 413);
}

#[tokio::test]
async fn other_addresses_are_not_there() {
    let server = server().await;
    for path in ["/", "/api/v1/", "/api/v1/nonsense", "/runs", "/assets/../config", "/webhooks"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.json()["error"]["code"], "not_found", "{path}");
    }
    assert_eq!(server.call("DELETE", "/api/v1/status", None).await.status, 405);
}
