//! A scripted hostile agent in real containers: nothing it tries may succeed. The scripts are in `tests/hostile/`.
//!
//! `make prove-hostile` prints the whole table. `ZEBLIT_PROVE_FOLDER` names the folder for the rows, one file
//! per test. A row that got something fails its test here, too.

use crate::world::model::{KEY, ModelServer};
use crate::world::{REPO, World};
use axum::body::Body;
use axum::http::Request;
use secrecy::SecretString;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeblit::broker::provider::Provider;
use zeblit::broker::{Allowance, Broker, Listener, Settings};
use zeblit::clock::{RandomIds, SystemClock};
use zeblit::domain::gate;
use zeblit::domain::ids::{RunId, Sha, SlotId};
use zeblit::domain::model_api::ModelApi;
use zeblit::domain::repo_config::GateConfig;
use zeblit::domain::run::RunState;
use zeblit::domain::secrets::SecretScan;
use zeblit::git::{Git, ImportCaps, Rewrite};
use zeblit::sandbox::docker::{DockerOptions, DockerSandbox};
use zeblit::sandbox::{CollectJob, Duty, Job, Limits, Line, LineSource, Sandbox, SandboxSpec, Status};
use zeblit::store::Store;

const IMAGE: &str = "zeblit-agent:latest";
const INSIDE: &str = include_str!("../hostile/inside.py");
const LAYOUTS: &str = include_str!("../hostile/layouts.py");
const PAYLOADS: &str = include_str!("../hostile/payloads.py");
const BOMB: &str = include_str!("../hostile/bomb.py");
/// What the hostile agent tries in its container.
const GROUPS: &[&str] = &[
    "family",
    "reach",
    "dns",
    "socket",
    "mount",
    "proc",
    "namespace",
    "trace",
    "key",
    "cgroup",
    "device",
    "privilege",
    "call",
    "file",
    "control",
    "broker",
    "filter",
    "protocol",
];
/// What the probes of the broker mark their own headers and fields with.
const MARK: &str = "attacker-mark";
/// No test waits longer for one thing.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a run leaves must be gone so soon after its end.
const CLEAN_WITHIN: Duration = Duration::from_secs(10);
/// Where the bridge listens inside.
const PORT: u16 = 4180;

/// One try: `got` when it had what it must not have.
#[derive(Debug)]
struct Row {
    group: String,
    name: String,
    tried: String,
    got: bool,
    what: String,
}

impl Row {
    fn new(group: &str, name: &str, tried: &str, got: bool, what: impl Into<String>) -> Self {
        Self { group: group.into(), name: name.into(), tried: tried.into(), got, what: what.into() }
    }
}

/// Stores the rows for the table, and fails when one of them got something.
fn prove(part: &str, rows: &[Row]) {
    if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
        let plain = |text: &str| text.replace(['\t', '\n', '\r', '\0'], " ");
        let text: String = rows
            .iter()
            .map(|row| {
                let verdict = if row.got { "SUCCEEDED" } else { "failed" };
                let (name, tried, what) = (plain(&row.name), plain(&row.tried), plain(&row.what));
                format!("{verdict}\t{}\t{name}\t{tried}\t{what}\n", row.group)
            })
            .collect();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(PathBuf::from(folder).join(format!("{part}.tsv")), text).unwrap();
    }
    let got: Vec<_> = rows.iter().filter(|row| row.got).collect();
    assert!(got.is_empty(), "{} of {} succeeded: {got:#?}", got.len(), rows.len());
}

fn unique() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

fn command(program: &str, words: &[&str]) -> String {
    let done = Command::new(program).args(words).output().unwrap();
    assert!(done.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

fn git(folder: &Path, words: &[&str]) -> String {
    let folder = folder.to_string_lossy();
    let start = ["-C", folder.as_ref(), "-c", "user.name=t", "-c", "user.email=t@localhost"];
    command("git", &[&start[..], words].concat())
}

/// A workspace on a mirror, sockets, and the sandbox of a server of its own.
struct Cell {
    folder: tempfile::TempDir,
    sandbox: DockerSandbox,
    instance: String,
    base: String,
}

impl Cell {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mirror = at("state/mirrors/github/1.git");
        std::fs::create_dir_all(mirror.parent().unwrap()).unwrap();
        std::fs::create_dir(at("seed")).unwrap();
        git(&at("seed"), &["init", "-q", "-b", "main"]);
        std::fs::write(at("seed").join("a.txt"), "one\n").unwrap();
        git(&at("seed"), &["add", "-A"]);
        git(&at("seed"), &["commit", "-q", "-m", "base"]);
        let base = git(&at("seed"), &["rev-parse", "HEAD"]);
        git(folder.path(), &["clone", "-q", "--bare", "seed", &mirror.to_string_lossy()]);
        git(folder.path(), &["clone", "-q", "--shared", &mirror.to_string_lossy(), "workspace"]);
        std::fs::write(at("workspace/.git/objects/info/alternates"), "/zeblit/objects\n").unwrap();
        for name in ["output", "home", "sockets"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        private(&at("sockets"));
        let instance = format!("hostile-{}", unique());
        let sandbox = DockerSandbox::connect(DockerOptions {
            docker_host: "unix:///var/run/docker.sock".into(),
            instance: instance.clone(),
            shim_folder: at("shim"),
            owner: None,
            image: IMAGE.into(),
            runtime: None,
            warm: None,
        });
        let cell = Self { folder, sandbox, instance, base };
        for name in ["workspace", "output", "home"] {
            cell.give(&cell.at(name));
        }
        cell
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn give(&self, path: &Path) {
        let (uid, gid) = self.sandbox.owner();
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
        if path.is_dir() && !path.is_symlink() {
            for entry in std::fs::read_dir(path).unwrap() {
                self.give(&entry.unwrap().path());
            }
        }
    }

    /// A script of this folder in the workspace, started with these arguments.
    fn job(&self, name: &str, script: &str, arguments: &[&str], env: &[(&str, &str)]) -> SandboxSpec {
        // Renamed into its place: an agent that was started just before reads the same file, and never half of it.
        let (file, new) = (self.at("home").join(name), self.at("home").join(format!("{name}.new")));
        std::fs::write(&new, script).unwrap();
        self.give(&new);
        std::fs::rename(&new, &file).unwrap();
        let inside = format!("/zeblit/home/{name}");
        let argv =
            ["python3", "-u", &inside].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        let slot = format!("{}-{name}-{}", self.instance, unique());
        SandboxSpec {
            slot: SlotId::new(slot),
            run: RunId::new("run_0001"),
            image: IMAGE.into(),
            limits: Limits { memory_bytes: 1 << 30, millicpus: 2000, pids: 128, log_bytes: 8 << 20 },
            duty: Duty::Agent(Job {
                argv,
                env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                bridge_port: Some(PORT),
                collect: CollectJob { base: self.base.clone(), ..CollectJob::default() },
                ..Job::default()
            }),
            workspace: self.at("workspace"),
            output: self.at("output"),
            home: self.at("home"),
            sockets: Some(self.at("sockets")),
            objects: self.at("state/mirrors/github/1.git/objects"),
            cache: None,
        }
    }

    async fn until_end(&self, slot: &SlotId) -> Vec<Line> {
        let started = Instant::now();
        let (mut lines, mut cursor) = (Vec::new(), 0);
        while started.elapsed() < PATIENCE {
            let polled = self.sandbox.poll(slot, cursor, Duration::from_secs(5)).await.unwrap();
            cursor = polled.lines.last().map_or(cursor, |line| line.n);
            lines.extend(polled.lines);
            if polled.status != Status::Running {
                return lines;
            }
        }
        panic!("no end within {PATIENCE:?}; at last: {:?}", lines.last());
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // Also when a test failed in the middle: nothing of it may stay at the engine.
        let label = format!("label=zeblit.instance={}", self.instance);
        let found = Command::new("docker").args(["ps", "-aq", "--filter", &label]).output();
        for id in String::from_utf8_lossy(&found.map(|out| out.stdout).unwrap_or_default()).lines() {
            let _ = Command::new("docker").args(["rm", "-fv", id]).output();
        }
    }
}

/// As the server makes the folder of an attempt's sockets: others may pass through, not look.
fn private(folder: &Path) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).unwrap();
}

/// The rows that a script printed.
fn rows_of<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Row> {
    lines
        .filter_map(|line| line.strip_prefix("PROBE "))
        .map(|text| {
            let value: Value = serde_json::from_str(text).unwrap();
            let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            Row {
                group: field("group"),
                name: field("name"),
                tried: field("tried"),
                got: value["got"] == Value::Bool(true),
                what: field("what"),
            }
        })
        .collect()
}

/// A broker with a scripted model behind it, at the cell's socket.
async fn broker(cell: &Cell) -> (ModelServer, Listener) {
    let model = ModelServer::start([]).await;
    let store = Store::open(&format!("sqlite:{}", cell.at("z.db").display())).await.unwrap();
    let settings = Settings {
        providers: vec![Provider::general(
            ModelApi::Anthropic,
            &model.url,
            Some(SecretString::from(KEY.to_owned())),
        )],
        ..Settings::default()
    };
    let broker = Broker::new(settings, store, Arc::new(SystemClock), Arc::new(RandomIds));
    let allowance =
        Allowance { run: RunId::new("run_0001"), attempt: 1, budget_micros: 5_000_000, wider: Vec::new() };
    let listener = broker.open(&cell.at("sockets"), allowance).await.unwrap();
    (model, listener)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_agent_gets_nothing_from_inside() {
    let cell = Cell::new();
    let (model, _listener) = broker(&cell).await;
    // Things of the host that it must not reach; a container that shares the host's network does.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port_number = port.local_addr().unwrap().port().to_string();
    let name = format!("zeblit-hostile-{}", unique());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    std::fs::create_dir_all(cell.at("other-run")).unwrap();
    let other = cell.at("other-run/broker.sock");
    let _other = UnixListener::bind(&other).unwrap();
    let other = other.to_string_lossy().into_owned();
    let env = [
        ("PROBE_HOST_PORT", port_number.as_str()),
        ("PROBE_HOST_NAME", &name),
        ("PROBE_HOST_SOCKET", &other),
    ];
    let spec = cell.job("inside.py", INSIDE, GROUPS, &env);
    cell.sandbox.start(&spec).await.unwrap();
    let lines = cell.until_end(&spec.slot).await;
    cell.sandbox.remove(&spec.slot).await.unwrap();
    let out = lines.iter().filter(|line| line.source == LineSource::Stdout).map(|line| line.text.as_str());
    let mut rows = rows_of(out);
    assert!(
        lines.iter().any(|line| line.text == "END OF PROBES"),
        "{:#?}",
        lines.iter().rev().take(20).collect::<Vec<_>>()
    );

    // The broker worked, or its refusals would mean nothing.
    let at = rows.iter().position(|row| row.group == "control").unwrap();
    let control = rows.remove(at);
    assert!(control.got, "a plain request was refused: {control:?}");
    let seen = model.seen();
    assert!(!seen.is_empty());
    // What the provider saw of it: the server's own key, the two paths, nothing that the agent marked.
    for row in rows.iter_mut().filter(|row| row.tried == "judged on the host" && row.group == "broker") {
        let header = row.name.strip_prefix("header ").unwrap_or("");
        let reached = seen.iter().find(|seen| {
            seen.headers.iter().any(|(found, value)| {
                (header.is_empty() || found.as_str().eq_ignore_ascii_case(header))
                    && String::from_utf8_lossy(value.as_bytes()).contains(MARK)
            })
        });
        row.got = reached.is_some();
        row.what = format!("{} requests arrived, none with it", seen.len());
    }
    let strange = seen.iter().find(|seen| {
        let path = seen.what.split('?').next().unwrap_or_default();
        let keys: Vec<_> = seen.headers.get_all("x-api-key").iter().collect();
        !matches!(path, "POST /v1/messages" | "POST /v1/messages/count_tokens" | "GET /v1/models")
            || keys != [KEY]
            || seen.what.contains(MARK)
            || seen.body.to_string().contains(MARK)
            || seen.body.to_string().contains(KEY)
    });
    rows.push(Row::new(
        "broker",
        "everything that reached the provider",
        "path, key and body of each request",
        strange.is_some(),
        format!("{strange:?}").chars().take(300).collect::<String>(),
    ));
    // Forged lines stayed lines of the agent: the shim says of itself what the sandbox saw, once.
    let shim: Vec<_> = lines.iter().filter(|line| line.source == LineSource::Shim).collect();
    let forged = shim.iter().find(|line| line.text.contains("forged") || line.text.contains("99"));
    let ends = shim.iter().filter(|line| line.text.contains("\"exited\"")).count();
    for row in rows.iter_mut().filter(|row| row.group == "protocol") {
        row.got = forged.is_some() || ends != 1;
        row.what = format!("{} lines of the shim, {ends} of them an end", shim.len());
    }
    let names: BTreeSet<_> = rows.iter().map(|row| (&row.group, &row.name)).collect();
    assert_eq!(names.len(), rows.len(), "a name stands twice");
    assert!(rows.len() >= 400, "{}", rows.len());
    prove("inside", &rows);
}

/// The detectors work: with less confinement the same probes succeed.
#[tokio::test]
async fn the_same_probes_succeed_where_nothing_stops_them() {
    let run = |options: &[&str], env: &[(&str, String)], groups: &str| -> BTreeSet<String> {
        let mut words = vec!["run", "--rm", "-i"];
        words.extend(options);
        let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        for one in &env {
            words.extend(["--env", one]);
        }
        let groups = format!("PROBE_GROUPS={groups}");
        words.extend(["--env", &groups, IMAGE, "python3", "-u", "-"]);
        let mut child = Command::new("docker")
            .args(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), INSIDE.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains("END OF PROBES"), "{text} {}", String::from_utf8_lossy(&out.stderr));
        rows_of(text.lines())
            .into_iter()
            .filter(|row| row.got)
            .map(|row| format!("{}: {}", row.group, row.name))
            .collect()
    };
    let open = [
        "--network=none",
        "--user=0",
        "--cap-add=SYS_ADMIN",
        "--cap-add=SYS_PTRACE",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
    ];
    let got = run(&open, &[], "family,mount,namespace,trace,key,privilege,call,file");
    for name in [
        "family: raw IPv4",
        "family: PACKET raw",
        "family: NETLINK generic",
        "mount: tmpfs",
        "mount: bind of /",
        "mount: chroot",
        "mount: fsopen",
        "namespace: unshare mount",
        "namespace: unshare net",
        "namespace: clone pid",
        "trace: ptrace traceme",
        "trace: process_vm_readv of itself",
        "key: the session's keyring",
        "privilege: setuid(0)",
        "privilege: setuid(1)",
        "privilege: capabilities",
        "call: perf_event_open",
        "call: set_mempolicy",
        "file: make /etc/zeblit-probe",
        "file: write /etc/passwd",
        "file: read /etc/shadow",
    ] {
        assert!(got.contains(name), "`{name}` did not succeed in an open container: {got:#?}");
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("zeblit-hostile-{}", unique());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.sock");
    let _socket = UnixListener::bind(&path).unwrap();
    let bind = format!("--volume={0}:{0}", folder.path().display());
    let env = [
        ("PROBE_HOST_PORT", port.local_addr().unwrap().port().to_string()),
        ("PROBE_HOST_NAME", name),
        ("PROBE_HOST_SOCKET", path.to_string_lossy().into_owned()),
        (
            "PROBE_ONLY",
            "a port of the host,an abstract name of the host,a socket file of the host,abstract names".into(),
        ),
    ];
    let got = run(
        &["--network=host", "--user=0", "--security-opt=apparmor=unconfined", &bind],
        &env,
        "reach,socket",
    );
    assert_eq!(got.len(), 4, "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_results_are_kept_out() {
    let cell = Cell::new();
    let base = cell.base.clone();
    let spec = cell.job("layouts.py", LAYOUTS, &[&base], &[]);
    cell.sandbox.start(&spec).await.unwrap();
    let lines = cell.until_end(&spec.slot).await;
    cell.sandbox.remove(&spec.slot).await.unwrap();
    let said: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    assert!(said.contains(&"END OF LAYOUTS"), "{said:#?}");
    let store = Git::open(&cell.at("state")).await.unwrap();
    let rewrite = Rewrite {
        author_name: "zeblit".into(),
        author_email: "zeblit@localhost".into(),
        time: 1_700_000_000,
        trailers: Vec::new(),
        masked: vec![".claude".into(), "CLAUDE.md".into()],
    };
    let secrets = SecretScan::new(&[b"canary-of-the-server-1234567890"]);
    let start = Sha::parse(&base).unwrap();
    let mut rows = Vec::new();
    let mut control = false;
    for (name, what) in said.iter().filter_map(|line| line.strip_prefix("LAYOUT ")?.split_once(' ')) {
        let folder = cell.at("output/layouts").join(name);
        let begun = Instant::now();
        let import = store.import("github", 1, &folder, &start, &rewrite, ImportCaps::default());
        let (got, happened) = match tokio::time::timeout(PATIENCE, import).await {
            Err(_) => (true, "the host hangs".to_owned()),
            Ok(Err(error)) => (false, error.to_string()),
            Ok(Ok(None)) => (false, "nothing came in".to_owned()),
            Ok(Ok(Some(imported))) => {
                let found = gate::check(&imported.changeset, &GateConfig::default(), &secrets);
                let refused: BTreeSet<_> = found.iter().map(|violation| violation.rule.as_str()).collect();
                (
                    refused.is_empty(),
                    format!("{} change(s), gate: {refused:?}", imported.changeset.changes.len()),
                )
            }
        };
        if name == "zz-control" {
            control = got;
            continue;
        }
        rows.push(Row::new(
            "result",
            name,
            what,
            got,
            format!("{happened} ({} ms)", begun.elapsed().as_millis()),
        ));
    }
    assert!(control, "a plain change must come in");
    assert!(rows.len() >= 60, "{}", rows.len());
    prove("results", &rows);
}

#[tokio::test]
async fn a_workspace_whose_git_runs_programs_runs_none_on_the_host() {
    World::run_in_docker(
        |_| {},
        async |w| {
            let prefix = format!("/tmp/zeblit-hostile-{}", unique());
            let script = format!("import sys\nsys.argv = ['payloads', '{prefix}']\n{PAYLOADS}");
            w.recipe_says("planter", &script, "END OF PAYLOADS").await;
            w.settle().await;
            let run = w.nth_run(1).await;
            let said = w.said(1).await;
            assert!(
                matches!(run.state, RunState::Succeeded | RunState::Failed),
                "{:?}: {said:#?}",
                run.outcome
            );
            let named = |word: &str| -> Vec<&str> {
                said.iter().filter_map(|line| line.strip_prefix(word)).collect()
            };
            let fired = named("FIRED ");
            // The payloads are live: inside, where they may, several of them ran.
            assert!(fired.contains(&"fsmonitor") || fired.contains(&"hook-post-commit"), "{fired:?}");
            let marker = Path::new(&prefix).file_name().unwrap().to_string_lossy().into_owned();
            let made: Vec<String> = std::fs::read_dir("/tmp")
                .unwrap()
                .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
                .filter(|name| name.starts_with(&marker))
                .collect();
            let rows: Vec<Row> = named("PAYLOAD ")
                .into_iter()
                .map(|name| {
                    let got = made.contains(&format!("{marker}-{name}"));
                    let inside =
                        if fired.contains(&name) { "ran inside, not on the host" } else { "did not run" };
                    Row::new("git", name, "a program in the workspace's Git", got, inside)
                })
                .collect();
            assert!(rows.len() >= 50, "{}", rows.len());
            prove("git", &rows);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_stay_in_their_containers() {
    World::run(async |w| {
        let cell = Cell::new();
        let limits = Limits { memory_bytes: 96 << 20, millicpus: 200, pids: 64, log_bytes: 1 << 20 };
        let kinds =
            ["fork", "threads", "memory", "tmp", "shm", "log", "cpu", "descriptors", "pipes", "sessions"];
        let mut specs = Vec::new();
        for kind in kinds {
            let mut spec = cell.job("bomb.py", BOMB, &[kind], &[]);
            spec.limits = limits.clone();
            // One gate each.
            let sockets = cell.at(&format!("sockets-{kind}"));
            std::fs::create_dir(&sockets).unwrap();
            private(&sockets);
            spec.sockets = Some(sockets);
            cell.sandbox.start(&spec).await.unwrap();
            specs.push((kind, spec));
        }
        let mut armed: BTreeSet<&str> = BTreeSet::new();
        let mut limited: BTreeSet<&str> = BTreeSet::new();
        let mut bytes = 0;
        let mut most = vec![(0, 0); kinds.len()];
        let mut cursors = vec![0; kinds.len()];
        // What was heard last of those that are not armed.
        let mut heard = BTreeMap::new();
        let mut slowest = Duration::ZERO;
        let mut answers = 0;
        let started = Instant::now();
        // Until each one is armed, those that meet a limit have said so, and the host has answered for a while.
        while (armed.len() < kinds.len() || limited.len() < 5 || answers < 20) && started.elapsed() < PATIENCE
        {
            for (n, (kind, spec)) in specs.iter().enumerate() {
                let polled =
                    cell.sandbox.poll(&spec.slot, cursors[n], Duration::from_millis(50)).await.unwrap();
                if !armed.contains(kind) {
                    let last = polled.lines.last().map(|line| line.text.clone());
                    let (_, before) = heard.remove(kind).unwrap_or_default();
                    heard.insert(*kind, (Some(polled.status.clone()), last.or(before)));
                }
                for line in &polled.lines {
                    cursors[n] = line.n;
                    if line.text.starts_with("ARMED") {
                        armed.insert(kind);
                        heard.remove(kind);
                    }
                    if line.text.starts_with("LIMIT")
                        || line.text.contains("log_full")
                        || line.text.contains("\"out_of_memory\":true")
                    {
                        limited.insert(kind);
                    }
                    if *kind == "log" && line.source == LineSource::Stdout {
                        bytes += line.text.len();
                    }
                }
            }
            for (n, (_, spec)) in specs.iter().enumerate() {
                if let Some(used) = cell.sandbox.usage(&spec.slot).await.unwrap() {
                    most[n] = (most[n].0.max(used.memory_bytes), most[n].1.max(used.processes));
                }
            }
            let asked = Instant::now();
            let status = w.request(Request::get("/healthz").body(Body::empty()).unwrap()).await;
            assert_eq!(status.as_u16(), 200);
            slowest = slowest.max(asked.elapsed());
            answers += 1;
        }
        assert_eq!(armed.len(), kinds.len(), "not every bomb began: {heard:?}");
        assert!(limited.len() >= 5, "{limited:?}");
        let ended = Instant::now();
        for (_, spec) in &specs {
            cell.sandbox.remove(&spec.slot).await.unwrap();
        }
        let took = ended.elapsed();
        let left = cell.sandbox.list().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
        let mut rows: Vec<Row> = kinds
            .iter()
            .zip(&most)
            .map(|(kind, (memory, processes))| {
                let met = if limited.contains(kind) { "told it" } else { "held by it" };
                Row::new(
                    "bomb",
                    kind,
                    "limit: 64 processes, 96 MiB, 0.2 processors, 1 MiB of log",
                    *memory > limits.memory_bytes || *processes > limits.pids,
                    format!("at most {} MiB, {processes} processes; {met}", memory >> 20),
                )
            })
            .collect();
        rows.push(Row::new(
            "bomb",
            "the log",
            "bytes that the host took",
            bytes > (1 << 20) + (1 << 16),
            format!("{bytes} bytes"),
        ));
        rows.push(Row::new(
            "bomb",
            "the host's answers",
            "healthz while all bombs burn",
            answers == 0,
            format!("{answers} answers, the slowest after {} ms", slowest.as_millis()),
        ));
        // On a busy test machine the time is shown; the proof demands it.
        let strict = std::env::var_os("ZEBLIT_PROVE_FOLDER").is_some();
        rows.push(Row::new(
            "bomb",
            "cleanup",
            "ten containers removed within 10 s",
            strict && took > CLEAN_WITHIN,
            format!("{} ms", took.as_millis()),
        ));
        prove("bombs", &rows);
    })
    .await;
}

/// Bytes that a folder takes on the disk; what vanishes meanwhile does not count.
fn taken(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path().symlink_metadata() {
            Ok(found) if found.is_dir() => taken(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test]
async fn a_full_disk_ends_the_run_with_a_clear_text() {
    for (kind, files, text) in [
        ("disk", 1_000_000, "MiB of disk, more than its limit of 64 MiB"),
        ("inodes", 3000, "more than 3000 files"),
    ] {
        World::run_in_docker(
            |config| {
                config.sandbox.disk_mib = 64;
                config.sandbox.disk_files = files;
            },
            async |w| {
                let script = format!("import sys\nsys.argv = ['bomb', '{kind}']\n{BOMB}");
                w.recipe_says("filler", &script, "ARMED").await;
                let most = std::cell::Cell::new(0);
                w.until("it is stopped", async |w, _| {
                    most.set(most.get().max(taken(&w.run_folder(1))));
                    w.state_of(1).await.is_terminal()
                })
                .await;
                w.settle().await;
                let mib = most.get() >> 20;
                let run = w.nth_run(1).await;
                assert_eq!(run.state, RunState::Failed, "{:?}", run.outcome);
                assert!(run.outcome.reason.contains(text), "{}", run.outcome.reason);
                assert!(w.hub.pulls(REPO).is_empty());
                // The limit is soft: what is written between two looks and until the container is dead comes on top.
                let text = format!("{mib} MiB at most on the host; {}", run.outcome.reason);
                let row = Row::new("bomb", kind, "fill the workspace; limit 64 MiB", mib > 4096, text);
                prove(kind, &[row]);
            },
        )
        .await;
    }
}
