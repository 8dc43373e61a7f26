//! The real program with real containers, killed with SIGKILL in the middle: it ends as if nothing had happened.

use crate::world::SECRET;
use crate::world::hub::state::On;
use crate::world::hub::{APP_KEY, FakeHub};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
struct Server {
    folder: tempfile::TempDir,
    address: SocketAddr,
    process: Option<Child>,
}

impl Server {
    fn new(hub: &FakeHub, api_url: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("agents")).expect("a new folder");
        std::fs::write(at("agents/slow.md"), SLOW).expect("a new file");
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
             [sandbox]\nsocket_dir = \"{sockets}\"\n\
             [agents]\nfix = \"slow\"\nfolder = \"{agents}\"\n",
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

    async fn start(&mut self) {
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
    fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it runs");
        process.wait().expect("our child");
    }

    /// SIGTERM, and the status that it ends with.
    fn stop(&mut self) -> std::process::ExitStatus {
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

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < PATIENCE, "waited for: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
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
            let _ = Command::new("umount").arg("--quiet").arg(self.folder.path().join(name)).status();
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
