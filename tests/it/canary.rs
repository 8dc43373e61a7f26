//! Canary secrets in everything that a server holds, an agent that dumps all it can see, and a search for the
//! canaries everywhere: they are found nowhere. A canary of the agent's own is found in each place.
//!
//! `make prove-canary` prints the figures; `ZEBLIT_PROVE_FOLDER` names the folder for them.

use crate::docker::SPY;
use crate::world::model::KEY;
use crate::world::{APP_KEY, REPO, SECRET, World};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use zeblit::domain::ids::RunId;
use zeblit::domain::run::RunState;
use zeblit::domain::secrets::SecretScan;
use zeblit::store;

const SECRET_KEY: &str = "Zk8vQ2mX7rT4nB9wL3cH6yJ1dF5gS0pA";
const OPENAI: &str = "uY3mK7dL2fN8wQ5xB9zR4vT6";
const GEMINI: &str = "eH9gJ4pS8aD2kF7lZ3xC6nM1";
const JIRA: &str = "jW4xR8kN2bV6tM9qC3zL7hY1";
const SENTRY: &str = "sP5gD1nK9vX3wF7rB2mT8cQ6";
const DATABASE: &str = "pG7uH2aE9iO4lU6yS1dK3fJ8";
/// The agent's own: proves that the search finds what is there.
const PLANTED: &str = "oW6bN3hT8xC1vZ5kR9mY2qL7";
/// Shortened copies count from this length on.
const CUT: usize = 14;

/// Reads the memory and the tables of the processes with these ids, as the host's root sees them.
const READER: &str = r#"
import os, re, sys
out = sys.stdout.buffer
for pid in sys.argv[1].split(","):
    for name in ("environ", "cmdline", "status", "comm", "mountinfo"):
        try:
            data = open(f"/proc/{pid}/{name}", "rb").read()
        except OSError:
            continue
        out.write(f"\n== {pid} {name}\n".encode() + data)
    try:
        memory = open(f"/proc/{pid}/mem", "rb", 0)
        maps = open(f"/proc/{pid}/maps").read().splitlines()
    except OSError:
        continue
    size = 0
    for line in maps:
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r(w|-)", line)
        # What is mapped read-only from a file of the image is in the image.
        if not found or (found.group(3) == "-" and "/" in line):
            continue
        start, end = int(found.group(1), 16), int(found.group(2), 16)
        at = start
        while at < end:
            try:
                data = os.pread(memory.fileno(), min(1 << 20, end - at), at)
            except (OSError, OverflowError):
                data = b""
            # Pages that were never touched hold nothing.
            if data.strip(b"\0"):
                out.write(data)
                size += len(data)
            at += 1 << 20
    out.write(f"\n== {pid} had {size} bytes\n".encode())
"#;

/// A place that was searched, and what it holds.
struct Place {
    name: &'static str,
    bytes: Vec<u8>,
}

fn output(program: &str, words: &[&str], input: &str) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// Every file below a folder, names included.
fn files(folder: &Path, bytes: &mut Vec<u8>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        bytes.extend(path.as_os_str().as_encoded_bytes());
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            files(&path, bytes);
        } else if path.is_file() {
            bytes.extend(std::fs::read(&path).unwrap());
        }
    }
}

/// Whole secrets in all their forms, and their first characters as they are.
struct Search {
    name: &'static str,
    whole: SecretScan,
    cut: Vec<u8>,
}

impl Search {
    fn new(name: &'static str, secret: &str) -> Self {
        Self { name, whole: SecretScan::new(&[secret.as_bytes()]), cut: secret.bytes().take(CUT).collect() }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let needle: &[u8] = &self.cut;
        bytes.windows(needle.len()).any(|window| window == needle) || self.whole.found_in(bytes)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_are_found_nowhere_and_a_planted_one_everywhere() {
    // Runs the spy, and stays until the host has looked at its memory.
    let waits = format!(
        "\nmine = '{PLANTED}'\nopen('planted.txt', 'w').write(mine + '\\n')\nimport subprocess\nsubprocess.run(['git', 'add', '-A'], check=True)\nsubprocess.run(['git', 'commit', '-qm', mine], check=True)\nprint('planted', mine)\nimport time\nopen(os.path.expanduser('~/ready'), 'w').close()\nwhile not os.path.exists(os.path.expanduser('~/go')):\n    time.sleep(0.05)\n"
    );
    let script = format!("{SPY}{waits}");
    let configure = |config: &mut zeblit::config::Config| {
        config.models.anthropic_api_key = Some(KEY.into());
        config.models.openai_api_key = Some(OPENAI.into());
        config.models.gemini_api_key = Some(GEMINI.into());
        config.secret_key = Some(SECRET_KEY.into());
        config.jira.webhook_secrets = vec![JIRA.into()];
        config.sentry.webhook_secrets = vec![SENTRY.into()];
    };
    World::run_in_docker_on_postgres(DATABASE, configure, async |w| {
        let number = w.recipe_says("spy", &script, "planted").await;
        let ready = w.run_folder(1).join("home/ready");
        w.until("the spy has looked", async |_, _| ready.exists()).await;

        let inspected = w.inspect();
        let container = inspected["Id"].as_str().unwrap().to_owned();
        let top = output("docker", &["top", &container, "-eo", "pid,args"], "");
        let pids: Vec<String> = String::from_utf8_lossy(&top)
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect();
        assert!(pids.len() >= 2, "shim and spy: {}", String::from_utf8_lossy(&top));
        let reader = [
            "run",
            "--rm",
            "-i",
            "--pid=host",
            "--network=none",
            "--user=0",
            "--cap-add=SYS_PTRACE",
            "--security-opt=apparmor=unconfined",
            "--entrypoint=python3",
            &w.config.sandbox.image.clone(),
            "-",
            &pids.join(","),
        ];
        let memory = output("docker", &reader, READER);
        for pid in &pids {
            let line = format!("== {pid} had ");
            let found = memory.windows(line.len()).any(|window| window == line.as_bytes());
            assert!(found, "the memory of process {pid} was not read");
        }
        let mut folder = Vec::new();
        files(&w.run_folder(1), &mut folder);
        let mut places = vec![
            Place {
                name: "container's configuration and environment",
                bytes: inspected.to_string().into_bytes(),
            },
            Place { name: "list of processes", bytes: top },
            Place { name: "memory and tables of the processes", bytes: memory },
            Place { name: "files of the run on the host", bytes: folder },
        ];
        std::fs::write(w.run_folder(1).join("home/go"), "").unwrap();
        w.until_log(1, "process ended").await;
        // Before its removal: what the engine kept of its output, if the round has not removed it yet.
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Succeeded, "{:?} {}", run.outcome, w.log(1).await);
        let pull = w.our_pull();
        let bare = w.hub.bare(REPO);
        let history = output(
            "git",
            &[
                "-C",
                &bare.to_string_lossy(),
                "log",
                "--all",
                "-p",
                "--text",
                "--format=%H %an %ae %cn %ce %B",
            ],
            "",
        );
        let own: String = [number, pull.number]
            .into_iter()
            .flat_map(|number| w.hub.comments(REPO, number))
            .map(|comment| comment.body)
            .collect();
        let head = run.outcome.head.as_ref().unwrap().to_string();
        let mut artifacts = Vec::new();
        for part in ["diff", "report", "log"] {
            let found = store::artifacts::get(&w.app.store, &RunId::new("run_0001"), part).await.unwrap();
            artifacts.extend(found.unwrap_or_default());
        }
        places.extend([
            Place { name: "log of the run", bytes: w.log(1).await.into_bytes() },
            Place { name: "comments", bytes: own.into_bytes() },
            Place { name: "pull request", bytes: format!("{}\n{}", pull.title, pull.body).into_bytes() },
            Place { name: "checks", bytes: format!("{:?}", w.hub.checks(REPO, &head)).into_bytes() },
            Place { name: "branches and commits", bytes: history },
            Place { name: "stored artifacts", bytes: artifacts },
        ]);

        let mut secrets = vec![
            Search::new("Anthropic's key", KEY),
            Search::new("OpenAI's key", OPENAI),
            Search::new("Gemini's key", GEMINI),
            Search::new("secret key", SECRET_KEY),
            Search::new("App key", APP_KEY.lines().nth(3).unwrap()),
            Search::new("webhook secret of GitHub", SECRET),
            Search::new("webhook secret of Jira", JIRA),
            Search::new("webhook secret of Sentry", SENTRY),
            Search::new("password of the database", DATABASE),
        ];
        let tokens: Vec<String> = w.hub.state().tokens.keys().cloned().collect();
        assert!(tokens.len() >= 2, "tokens to read and to write were granted");
        for token in &tokens {
            // The first characters say only that it is a token.
            let mut search = Search::new("installation token", token);
            search.cut = token.bytes().take(CUT + 8).collect();
            secrets.push(search);
        }
        let mut found = Vec::new();
        let mut held = Vec::new();
        let planted = Search::new("planted", PLANTED);
        for place in &places {
            assert!(!place.bytes.is_empty() || place.name == "stored artifacts", "{} is empty", place.name);
            for secret in &secrets {
                if secret.is_in(&place.bytes) {
                    found.push(format!("{} in {}", secret.name, place.name));
                }
            }
            if planted.is_in(&place.bytes) {
                held.push(place.name);
            }
        }
        // The server of this test holds them all: an App that did not would prove nothing.
        let own = w.app.secrets.mask(&[KEY, OPENAI, GEMINI, SECRET_KEY, JIRA, SENTRY, SECRET].join(" "));
        assert_eq!(own, "[secret] [secret] [secret] [secret] [secret] [secret] [secret]");
        for name in [
            "memory and tables of the processes",
            "files of the run on the host",
            "log of the run",
            "pull request",
            "branches and commits",
        ] {
            assert!(held.contains(&name), "the planted canary was not found in: {name}; only in {held:?}");
        }
        let said = w.said(1).await;
        // Programs of the image speak of keys; they were there before the run.
        let own = said.iter().find(|line| line.contains("FOUND b'") && !line.contains(" in /usr/local/"));
        assert_eq!(own, None);
        let size: usize = places.iter().map(|place| place.bytes.len()).sum();
        if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
            std::fs::create_dir_all(&folder).unwrap();
            let mut text: String = places
                .iter()
                .map(|place| format!("{}: {} bytes searched\n", place.name, place.bytes.len()))
                .collect();
            text.push_str(&format!(
                "prove-canary: {} secrets in {} places ({} MiB), {} found; a planted one in {} places\n",
                secrets.len(),
                places.len(),
                size >> 20,
                found.len(),
                held.len()
            ));
            std::fs::write(Path::new(&folder).join("canary.txt"), text).unwrap();
        }
        assert!(found.is_empty(), "{found:#?}");
    })
    .await;
}
