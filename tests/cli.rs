//! The program as people start it: exit codes, what goes to which output, a server and its verbs.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Until a server must have said that it listens; the machine may be busy.
const START_LIMIT: Duration = Duration::from_secs(60);

const CONFIG: &str = "
[server]
listen = \"127.0.0.1:0\"
[local_forge]
webhook_secret = \"a long secret of the local forge\"
[sandbox]
kind = \"process\"
[models]
# Nothing listens there: the check of the model ends at once.
anthropic_url = \"http://127.0.0.1:9\"
";

fn zeblit(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeblit"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ZEBLIT_")) {
        command.env_remove(name);
    }
    command
}

/// Exit code, standard output, standard error.
fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn ask(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    told(&zeblit(folder, arguments).output().unwrap())
}

/// A server of its own, stopped at the end.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(folder: &Path) -> Self {
        std::fs::write(folder.join("zeblit-server.toml"), CONFIG).unwrap();
        let mut child = zeblit(folder, &["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let begun = Instant::now();
        let url = loop {
            let line = lines.next().expect("the server ended").unwrap();
            if let Some((_, rest)) = line.split_once("listens on ") {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
            assert!(begun.elapsed() < START_LIMIT, "{line}");
        };
        // Read on, so that the server can go on logging.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    fn terminate(&mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn version_and_help_are_data_and_wrong_arguments_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, err) = ask(folder.path(), &["--version"]);
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, concat!("zeblit ", env!("CARGO_PKG_VERSION"), "\n"), "")
    );
    let (code, out, _) = ask(folder.path(), &["help"]);
    assert!(code == 0 && out.contains("send-webhook") && out.contains("zeblit help github-app"), "{out}");
    let (code, out, err) = ask(folder.path(), &["nonsense"]);
    assert!(code == 2 && out.is_empty() && err.contains("unrecognized subcommand"), "{err}");
    let (code, out, err) = ask(folder.path(), &[]);
    assert!(code == 2 && out.is_empty() && err.contains("Usage: zeblit"), "{err}");
}

#[test]
fn the_printed_example_is_a_valid_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (code, example, err) = ask(folder.path(), &["config", "example"]);
    assert_eq!((code, err.as_str()), (0, ""));
    std::fs::write(folder.path().join("zeblit-server.toml"), example).unwrap();
    let (code, out, _) = ask(folder.path(), &["config", "check"]);
    assert!(code == 0 && out.contains("server.listen = \"127.0.0.1:8080\"\n"), "{out}");
    std::fs::write(folder.path().join("bad.toml"), "[server]\nlissten = 1\n").unwrap();
    let (code, out, err) = ask(folder.path(), &["--config", "bad.toml", "config", "check"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(
        err,
        "error: server.lissten: there is no such key; did you mean `server.listen`?\nhint: `zeblit config example` shows every key; `zeblit config check` tries again\n"
    );
}

#[test]
fn verbs_say_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["status"][..], &["logs", "abcdef"], &["cancel", "abcdef"], &["audit"], &["budget"]] {
        let (code, out, err) = ask(folder.path(), arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(err.starts_with("error: there is no database at `state/zeblit.db` yet\nhint: "), "{err}");
    }
    let (code, _, err) = ask(folder.path(), &["serve"]);
    assert!(code == 2 && err.starts_with("error: there is no forge"), "{err}");
    let output = zeblit(folder.path(), &["status"]).env("ZEBLIT_URL", "http://127.0.0.1:9").output().unwrap();
    let (code, _, err) = told(&output);
    assert!(code == 2 && err.starts_with("error: ZEBLIT_TOKEN: is needed with ZEBLIT_URL"), "{err}");
}

#[test]
fn a_closed_output_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = zeblit(folder.path(), &["config", "example"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[test]
fn a_server_is_operated_beside_it_and_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let mut server = Server::start(here);
    let elsewhere = tempfile::tempdir().unwrap();
    let (code, token, err) = ask(here, &["token", "create", "ci"]);
    assert!(code == 0 && token.starts_with("zbl_") && !err.contains("zbl_"), "{token} {err}");
    let remote = |arguments: &[&str]| {
        let output = zeblit(elsewhere.path(), arguments)
            .env("ZEBLIT_URL", &server.url)
            .env("ZEBLIT_TOKEN", token.trim())
            .output()
            .unwrap();
        told(&output)
    };

    // A delivery that nobody can act on is stored, handled and can be replayed.
    let address = format!("{}/webhooks/github", server.url);
    let mut sent =
        zeblit(here, &["send-webhook", "--event", "ping", "--delivery", "d-1", "--url", &address, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    sent.stdin.take().unwrap().write_all(b"{\"zen\": \"Keep it small\"}").unwrap();
    let (code, out, err) = told(&sent.wait_with_output().unwrap());
    assert!(code == 0 && out.starts_with("202 Accepted {\"id\":"), "{out} {err}");
    let forged = zeblit(
        here,
        &[
            "send-webhook",
            "--comment",
            "/zeblit fix",
            "--repo",
            "o/r",
            "--secret-env",
            "WRONG",
            "--url",
            &address,
        ],
    )
    .env("WRONG", "not the secret of this forge")
    .output()
    .unwrap();
    let (code, out, _) = told(&forged);
    assert!(code == 1 && out.starts_with("401 Unauthorized "), "{out}");
    let (code, out, err) = remote(&["deliveries", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out} {err}"));
    assert_eq!((code, listed.as_array().unwrap().len(), &listed[0]["delivery_id"]), (0, 1, &"d-1".into()));

    // The pause-all switch, set from elsewhere and lifted here, while the server runs.
    let (code, out, err) = remote(&["pause", "an upgrade"]);
    assert!(code == 0 && out.is_empty() && err.starts_with("Paused by token:ci: an upgrade"), "{err}");
    let (_, out, _) = ask(here, &["status"]);
    assert!(out.contains("paused      by token:ci: an upgrade"), "{out}");
    let (code, _, err) = ask(here, &["resume"]);
    assert!(code == 0 && err.contains("Resumed"), "{err}");
    let (_, out, _) = remote(&["status"]);
    assert!(!out.contains("paused"), "{out}");
    let (_, out, _) = remote(&["audit"]);
    for action in ["token.create", "token.use", "pause", "resume"] {
        assert!(out.contains(action), "{action} is not in:\n{out}");
    }
    let (code, _, err) = remote(&["cancel", "abcdef"]);
    assert!(code == 2 && err.contains("error: there is no run"), "{err}");

    // Money: what may be spent, what was, and the ledger of a month, here and from elsewhere.
    for (code, out, err) in [ask(here, &["budget"]), remote(&["budget"])] {
        assert_eq!(code, 0, "{err}");
        assert!(
            out.starts_with(
                "run          $5.00 unless it asks for more, at most $20.00\nuser/day     no limit\n"
            ),
            "{out}"
        );
        assert!(err.contains("Nothing was spent today"), "{err}");
    }
    let (code, out, _) = remote(&["budget", "--json"]);
    let view: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &view["limits"]["run_micros"], &view["budgets"]),
        (0, &5_000_000.into(), &serde_json::json!([]))
    );
    let head = "run,repository,number,requester,verb,agent,model,state,first_request,requests,unsettled,input_tokens,output_tokens,cache_read_tokens,cache_write_tokens,dollars\n";
    for arguments in [&["budget", "--csv"][..], &["budget", "--csv", "--month", "2026-02"]] {
        assert_eq!(ask(here, arguments).1, head);
        assert_eq!(remote(arguments).1, head);
    }
    let (code, _, err) = remote(&["budget", "abcdef"]);
    assert!(code == 2 && err.contains("error: there is no run"), "{err}");
    let (code, _, err) = ask(here, &["budget", "--csv", "--month", "last"]);
    assert!(code == 2 && err.contains("a month is written like 2026-11"), "{err}");

    // The doctor works beside it, too: what fails is required and named.
    let (_, out, _) = ask(here, &["doctor"]);
    for line in [
        "ok    configuration",
        "ok    database",
        "ok    git",
        "warn  model",
        "another zeblit uses this folder",
    ] {
        assert!(out.contains(line), "{line} is not in:\n{out}");
    }

    // A revoked token opens nothing.
    assert_eq!(ask(here, &["token", "revoke", "ci"]).0, 0);
    let (code, _, err) = remote(&["status"]);
    assert!(code == 2 && err.starts_with("error: the token is not valid"), "{err}");
    assert_eq!(server.terminate(), 0, "a server that is told to stop stops well");
    assert!(
        !here
            .join("state")
            .read_dir()
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("cli-") })
    );
}

#[test]
fn a_backup_is_taken_beside_the_server_and_fills_an_empty_place_only() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(old.path());
    let (code, token, said) = ask(old.path(), &["token", "create", "ci"]);
    assert_eq!((code, token.trim().starts_with("zbl_")), (0, true), "{said}");
    let file = new.path().join("backup");
    let file = file.to_str().unwrap();
    let (code, out, said) = ask(old.path(), &["backup", file]);
    assert_eq!((code, out.trim()), (0, file), "{said}");
    assert!(said.contains(" and the server's key: keep it as you keep the server"), "{said}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let (code, _, said) = ask(old.path(), &["backup", file]);
    assert_eq!(code, 2);
    assert!(said.contains("a backup never replaces another"), "{said}");
    let (code, _, said) = ask(old.path(), &["restore", file]);
    assert_eq!(code, 2);
    assert!(said.contains("nothing was restored: the database is not empty"), "{said}");

    std::fs::write(new.path().join("zeblit-server.toml"), CONFIG).unwrap();
    let (code, out, said) = ask(new.path(), &["restore", file]);
    assert_eq!(code, 0, "{said}");
    assert!(out.lines().any(|line| line == "tokens\t1"), "{out}");
    let key = |folder: &Path| std::fs::read_to_string(folder.join("state/secret.key")).unwrap();
    assert_eq!(key(old.path()), key(new.path()));
    let (_, listed, _) = ask(new.path(), &["token", "list"]);
    assert!(listed.contains("ci"), "{listed}");
    let (code, out, said) = ask(new.path(), &["migrate"]);
    assert_eq!(code, 0, "{said}");
    assert!(out.lines().next().unwrap().ends_with("was there"), "{out}");
    std::fs::write(new.path().join("cut"), &std::fs::read(file).unwrap()[..100]).unwrap();
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("zeblit-server.toml"), CONFIG).unwrap();
    let (code, _, said) = ask(empty.path(), &["restore", new.path().join("cut").to_str().unwrap()]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("nothing was restored"), "{said}");
    for file in [new.path().join("cut"), empty.path().join("zeblit-server.toml")] {
        let (code, _, said) = ask(empty.path(), &["restore", file.to_str().unwrap()]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("is it a whole file that `zeblit backup` made?"), "{said}");
    }
    drop(server);
}
