//! Files that agent CLIs run or obey, planted in the head of a pull request: none of them does anything in a run, for
//! each CLI as it is installed from npm. The same files in a plain work tree do fire, so the proof can fail.
//!
//! The files are in `tests/fixtures/trigger-files.toml`. `make prove-trigger-files` adds up what the tests here write into
//! `ZEBLIT_PROVE_FOLDER`.

use crate::agents::{CLAUDE, CODEX, GEMINI, Hand, OPENCODE};
use crate::world::docker::tally;
use crate::world::hub::state::git;
use crate::world::model::{GEMINI_KEY, HOUSE_MODEL, IMAGE, KEY, ModelServer, OPENAI_KEY, Turn};
use crate::world::{REPO, World};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use zeblit::cli::demo::project;
use zeblit::domain::run::RunState;

/// How the file that a fired command leaves behind begins; the number of the trigger follows.
const CANARY: &str = "CANARY-";
/// Shows environment variables that a file set, and lets Git run whatever it would run.
const LOOK: &str =
    "env | sort; git commit -qam 'Count the last, partial page' 2>&1; git status --short | wc -l";
/// Canaries wherever the container has room, by another name than theirs.
const SEARCH: &str = "find / -xdev -name 'CANARY-*' 2>/dev/null | sed 's/CANARY-/FOUND-/'";
/// What the base branch says for itself, where CLIs look: it must be what they see.
const BASE_WORD: &str = "The base branch speaks here";

#[derive(Deserialize)]
struct Table {
    file: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    text: String,
}

struct Trigger {
    path: String,
    text: String,
    /// The name of the file that its command leaves.
    file: String,
    /// Tells when a model hears of it.
    word: String,
}

fn triggers() -> Vec<Trigger> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trigger-files.toml");
    let table: Table = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let triggers: Vec<Trigger> = table
        .file
        .into_iter()
        .enumerate()
        .map(|(n, entry)| {
            let (id, file, word) = (format!("{n:03}"), format!("{CANARY}{n:03}"), format!("kanarie{n:03}x"));
            let fire = format!("echo fired > /zeblit/workspace/{file}; echo fired > /zeblit/home/{file}");
            let text = entry.text.replace("{fire}", &fire).replace("{word}", &word).replace("{id}", &id);
            assert!(text != entry.text, "{} has no canary", entry.path);
            Trigger { path: entry.path, text, file, word }
        })
        .collect();
    let paths: BTreeSet<_> = triggers.iter().map(|trigger| &trigger.path).collect();
    assert_eq!(paths.len(), triggers.len(), "every path once");
    assert!(triggers.len() >= 40, "{}", triggers.len());
    triggers
}

/// The canary files anywhere below a folder.
fn fired_files(folder: &Path, found: &mut BTreeSet<String>) {
    // A run's folder may vanish while it is looked at.
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(CANARY) {
            found.insert(name);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fired_files(&entry.path(), found);
        }
    }
}

/// The model reads and changes a file in a folder, runs commands, and ends.
fn script(hand: &Hand) -> Vec<Turn> {
    vec![
        (hand.read)(),
        (hand.edit)(),
        (hand.run)(LOOK),
        (hand.run)(SEARCH),
        Turn::says("The last page counts now."),
    ]
}

/// Those that fired, by their paths.
fn fired(triggers: &[Trigger], files: &BTreeSet<String>, heard: &str) -> Vec<String> {
    triggers
        .iter()
        .filter(|trigger| {
            files.contains(&trigger.file)
                || heard.contains(&trigger.word)
                || heard.contains(&trigger.file.replace(CANARY, "FOUND-"))
        })
        .map(|trigger| trigger.path.clone())
        .collect()
}

/// `/zeblit fix` on a pull request whose head is full of triggers.
async fn nothing_fires(name: &str, hand: Hand) {
    let triggers = triggers();
    let model = ModelServer::start(script(&hand)).await;
    World::run_in_docker(
        |config| {
            model.configure(config);
            config.models.default_model = hand.model.into();
        },
        async |w| {
            let mut base: Vec<(&str, &str)> =
                project::FILES.iter().map(|file| (file.path, file.content)).collect();
            // What the base branch has is trusted, and may name other files, which only the head changes.
            let memory = format!("{BASE_WORD}.\n\n@docs/imported.md\n\n@./docs/gemini.md\n");
            for path in ["CLAUDE.md", "AGENTS.md", "GEMINI.md"] {
                base.push((path, &memory));
            }
            for path in ["docs/imported.md", "docs/gemini.md", "docs/opencode.md"] {
                base.push((path, "Nothing special.\n"));
            }
            w.hub.push_commit(REPO, "main", &base, project::FIRST_COMMIT);
            let planted: Vec<(&str, &str)> =
                triggers.iter().map(|trigger| (trigger.path.as_str(), trigger.text.as_str())).collect();
            w.hub.push_commit(REPO, "feature", &planted, "Help the reviewers");
            let number = w.hub.open_pull(REPO, "bob", "feature", "main", "Helpful files");
            w.say(number, "ada", &format!("/zeblit fix --agent {} --model {}", hand.agent, hand.model)).await;

            let files = std::cell::RefCell::new(BTreeSet::new());
            w.until("the run has ended", async |w, moved| {
                fired_files(&w.run_folder(1), &mut files.borrow_mut());
                !moved && w.is_idle()
            })
            .await;
            let mut files = files.into_inner();
            // Whatever lay in the workspace at the end is on the branch now.
            for branch in w.hub.branches(REPO) {
                let tree = git(&w.hub.bare(REPO), &["ls-tree", "-r", "--name-only", &branch]);
                let names = tree.lines().map(|path| path.rsplit('/').next().unwrap());
                files.extend(names.filter(|name| name.starts_with(CANARY)).map(str::to_owned));
            }

            let run = w.nth_run(1).await;
            let log = w.log(1).await;
            assert_eq!(run.state, RunState::Succeeded, "{:?} {log}", run.outcome);
            assert_eq!(model.left(), 0, "{log}");
            assert!(w.hub.file_at(REPO, "feature", project::BUGGY_FILE).unwrap().contains("-(-items"));
            // It was looked at in the right place: the agent did see its own environment.
            let heard: String = model
                .seen()
                .iter()
                .map(|seen| format!("{} {:?} {}\n", seen.what, seen.headers, seen.body))
                .collect();
            assert!(heard.contains("HOME=/zeblit/home"), "{heard}");
            let fired = fired(&triggers, &files, &format!("{heard}{log}"));
            tally(
                &format!("masked-{name}.tsv"),
                &format!("masked\t{name}\t{}\t{}\n", triggers.len(), fired.len()),
            );
            assert_eq!(fired, [""; 0], "they fire in {name}");
            assert_eq!(heard.contains(BASE_WORD), hand.obeys_base, "the memory of the base branch in {name}");
        },
    )
    .await;
}

#[tokio::test]
async fn nothing_that_a_pull_request_brings_fires_in_claude_code() {
    nothing_fires("claude", CLAUDE).await;
}

#[tokio::test]
async fn nothing_that_a_pull_request_brings_fires_in_codex() {
    nothing_fires("codex", CODEX).await;
}

#[tokio::test]
async fn nothing_that_a_pull_request_brings_fires_in_opencode() {
    nothing_fires("opencode", OPENCODE).await;
}

#[tokio::test]
async fn nothing_that_a_pull_request_brings_fires_in_gemini_cli() {
    nothing_fires("gemini", GEMINI).await;
}

/// The model at a port of the container, as a plain CLI needs it; then the CLI, which reads its prompt.
const PLAIN: &str = r#"
python3 -c '
import socket, threading
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        pass
listener = socket.create_server(("127.0.0.1", 4180))
while True:
    inside, _ = listener.accept()
    outside = socket.socket(socket.AF_UNIX)
    outside.connect("/model/socket")
    for pair in ((inside, outside), (outside, inside)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
' & bridge=$!
until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 4180))' 2>/dev/null; do :; done
echo 'Mend the last page' | timeout 240 "$@"
code=$?
kill $bridge
exit $code
"#;

/// A CLI as anybody would start it, in a folder that its user trusts.
struct Plain {
    argv: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
    home: fn() -> Vec<(&'static str, String)>,
}

fn plain(name: &str) -> Plain {
    match name {
        "claude" => Plain {
            argv: &["claude", "-p", "--dangerously-skip-permissions", "--model", CLAUDE.model],
            env: &[
                ("ANTHROPIC_BASE_URL", "http://127.0.0.1:4180"),
                ("ANTHROPIC_API_KEY", KEY),
                ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
                ("IS_SANDBOX", "1"),
            ],
            home: Vec::new,
        },
        "codex" => Plain {
            argv: &[
                "codex",
                "exec",
                "--skip-git-repo-check",
                "--dangerously-bypass-approvals-and-sandbox",
                "--dangerously-bypass-hook-trust",
                "-",
            ],
            env: &[("OPENAI_API_KEY", OPENAI_KEY)],
            home: || {
                let config = format!(
                    "model = \"{}\"\nmodel_provider = \"plain\"\n\
                     [projects.\"/zeblit/workspace\"]\ntrust_level = \"trusted\"\n\
                     [model_providers.plain]\nname = \"plain\"\nwire_api = \"responses\"\n\
                     env_key = \"OPENAI_API_KEY\"\nbase_url = \"http://127.0.0.1:4180/openai/v1\"\n",
                    CODEX.model
                );
                vec![(".codex/config.toml", config)]
            },
        },
        "opencode" => Plain {
            argv: &["opencode", "run", "--auto"],
            env: &[
                ("OPENCODE_DISABLE_MODELS_FETCH", "1"),
                ("OPENCODE_DISABLE_AUTOUPDATE", "1"),
                // It asks the registry for what plugins need, and would ask again for a minute.
                ("npm_config_fetch_retries", "0"),
            ],
            home: || {
                let config = json!({
                    "model": format!("plain/{HOUSE_MODEL}"),
                    "provider": {"plain": {
                        "npm": "@ai-sdk/openai-compatible",
                        "options": {"baseURL": "http://127.0.0.1:4180/openai/v1", "apiKey": OPENAI_KEY},
                        "models": {HOUSE_MODEL: {"name": "house", "tool_call": true}},
                    }},
                });
                vec![(".config/opencode/opencode.json", config.to_string())]
            },
        },
        "gemini" => Plain {
            argv: &["gemini", "--approval-mode", "yolo", "--model", GEMINI.model],
            env: &[
                ("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:4180/gemini"),
                ("GEMINI_API_KEY", GEMINI_KEY),
                ("GEMINI_CLI_TRUST_WORKSPACE", "true"),
                // Not the file that our image has against all this.
                ("GEMINI_CLI_SYSTEM_SETTINGS_PATH", "/nowhere"),
            ],
            home: || {
                let settings = json!({"security": {"auth": {"selectedType": "gemini-api-key"}}});
                vec![(".gemini/settings.json", settings.to_string())]
            },
        },
        other => unreachable!("{other}"),
    }
}

/// The same files in a plain work tree.
async fn some_fire(name: &str, hand: Hand) {
    let triggers = triggers();
    let model = ModelServer::start(script(&hand)).await;
    let folder = tempfile::tempdir().unwrap();
    let (workspace, home, bridge) =
        (folder.path().join("workspace"), folder.path().join("home"), folder.path().join("model"));
    let plain = plain(name);
    let seed = project::FILES.iter().map(|file| (workspace.join(file.path), file.content.to_owned()));
    let planted = triggers.iter().map(|trigger| (workspace.join(&trigger.path), trigger.text.clone()));
    let own = (plain.home)().into_iter().map(|(path, text)| (home.join(path), text));
    for (path, text) in seed.chain(planted).chain(own) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::create_dir_all(&home).unwrap();
    let identity = "[user]\n\tname = A\n\temail = a@example.com\n";
    std::fs::write(home.join(".gitconfig"), identity).unwrap();
    git(&workspace, &["init", "-q"]);
    git(&workspace, &["add", "-A", "-f"]);
    git(
        &workspace,
        &["-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "-q", "-m", "All of it"],
    );

    std::fs::create_dir(&bridge).unwrap();
    let listener = tokio::net::UnixListener::bind(bridge.join("socket")).unwrap();
    let address = model.url.trim_start_matches("http://").to_owned();
    let forward = tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            let Ok(mut outside) = tokio::net::TcpStream::connect(&address).await else { return };
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut inside, &mut outside).await });
        }
    });
    let owner = std::fs::metadata(&workspace).unwrap();
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--interactive", "--network", "none", "--workdir", "/zeblit/workspace"]);
    command.args(["--user", &format!("{}:{}", owner.uid(), owner.gid()), "--env", "HOME=/zeblit/home"]);
    for (inside, outside) in [("workspace", &workspace), ("home", &home), ("model", &bridge)] {
        let top = if inside == "model" { "" } else { "/zeblit" };
        command.arg("--volume").arg(format!("{}:{top}/{inside}", outside.display()));
    }
    for (key, value) in plain.env {
        command.args(["--env", &format!("{key}={value}")]);
    }
    command.args([IMAGE, "bash", "-c", PLAIN, "plain"]).args(plain.argv).stdin(Stdio::null());
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    forward.abort();

    let mut files = BTreeSet::new();
    fired_files(&workspace, &mut files);
    fired_files(&home, &mut files);
    let fired = fired(&triggers, &files, &model.heard());
    let said =
        format!("{}\n{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(model.charged().1 > 0, "{name} did not ask its model: {said}");
    let rows: String = fired.iter().map(|path| format!("plain\t{name}\t{path}\n")).collect();
    tally(&format!("plain-{name}.tsv"), &rows);
    assert!(fired.len() >= 5, "only {fired:?} fire in {name}: {said}");
}

#[tokio::test]
async fn without_the_mask_they_fire_in_claude_code() {
    some_fire("claude", CLAUDE).await;
}

#[tokio::test]
async fn without_the_mask_they_fire_in_codex() {
    some_fire("codex", CODEX).await;
}

#[tokio::test]
async fn without_the_mask_they_fire_in_opencode() {
    some_fire("opencode", OPENCODE).await;
}

#[tokio::test]
async fn without_the_mask_they_fire_in_gemini_cli() {
    some_fire("gemini", GEMINI).await;
}
