//! Everything that leaves the server, one by one, and the server's own secrets in every encoding put into each: text comes
//! out without them, code with them is refused. `make prove-canary` counts secrets, encodings and sinks.

use crate::world::model::KEY;
use crate::world::sandbox::Script;
use crate::world::{APP_KEY, REPO, SECRET, World};
use axum::body::Body;
use axum::http::Request;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_body_util::BodyExt;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use tower::ServiceExt;
use zeblit::app::App;
use zeblit::broker::tools;
use zeblit::clock::Clock;
use zeblit::config::{Config, ProviderConfig};
use zeblit::domain::gate::{self, Change, Changeset, Mode};
use zeblit::domain::ids::Sha;
use zeblit::domain::model_api::ModelApi;
use zeblit::domain::repo_config::GateConfig;
use zeblit::domain::run::{ChecklistItem, Question, RunState};
use zeblit::domain::secrets::SecretScan;
use zeblit::http::api::token_hash;
use zeblit::sandbox::Duty;
use zeblit::store;
use zeblit::telemetry;

const SECRET_KEY: &str = "Qp4wE7rT2yU9iO5aS8dF3gH6jK1lZ0xC";
const OPENAI: &str = "bN5mQ8wE2rT7yU4iO9pA3sD6";
const GEMINI: &str = "fG1hJ8kL4zX7cV2bN9mQ5wE3";
const PROVIDER: &str = "rT6yU3iO8pA5sD2fG9hJ4kL7";
const JIRA: &str = "zX1cV6bN3mQ8wE5rT2yU9iO4";
const SENTRY: &str = "pA7sD4fG1hJ8kL5zX2cV9bN6";
const REDIS: &str = "mQ3wE8rT5yU2iO7pA4sD1fG9";
const DATABASE: &str = "hJ6kL3zX8cV5bN2mQ7wE4rT1";
/// Not known to the server's search by itself: tokens are granted for an hour. Known by its shape.
const INSTALLATION: &str = "ghs_yU9iO4pA7sD2fG5hJ8kL1zX6cV3bN0mQ7wE4";

type Encode = fn(&str) -> String;

fn each(text: &str, encode: impl Fn(u8) -> String) -> String {
    text.bytes().map(encode).collect()
}

fn base32(text: &str) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits: String = each(text, |byte| format!("{byte:08b}"));
    let digit = |bits: &[u8]| {
        let bits = format!("{:0<5}", String::from_utf8_lossy(bits));
        char::from(DIGITS[usize::from_str_radix(&bits, 2).unwrap()])
    };
    bits.as_bytes().chunks(5).map(digit).collect()
}

fn rot13(text: &str) -> String {
    let turn = |c: char, first: u8| char::from((c as u8 - first + 13) % 26 + first);
    text.chars()
        .map(|c| match c {
            'a'..='z' => turn(c, b'a'),
            'A'..='Z' => turn(c, b'A'),
            _ => c,
        })
        .collect()
}

/// Made here by other means than those that search for them.
const ENCODINGS: [(&str, Encode); 14] = [
    ("as it is", str::to_owned),
    ("base64", |text| STANDARD.encode(text)),
    ("base64 within a longer text", |text| STANDARD.encode(format!("x={text};"))),
    ("base64 of base64", |text| STANDARD.encode(STANDARD.encode(text))),
    ("base64 for addresses", |text| URL_SAFE_NO_PAD.encode(format!("ab{text}"))),
    ("base32", base32),
    ("hexadecimal", |text| hex::encode(text)),
    ("a hexadecimal dump", |text| each(text, |byte| format!("{byte:02X} ")).trim().to_owned()),
    ("percent-encoded", |text| each(text, |byte| format!("%{byte:02X}"))),
    ("escapes of JSON", |text| each(text, |byte| format!("\\u{byte:04x}"))),
    ("escapes of C", |text| each(text, |byte| format!("\\x{byte:02x}"))),
    ("numbers of HTML", |text| each(text, |byte| format!("&#{byte};"))),
    ("backwards", |text| text.chars().rev().collect()),
    ("turned by 13", rot13),
];

/// The name of a secret and what it is.
fn secrets() -> Vec<(&'static str, String)> {
    let line = APP_KEY.lines().nth(3).unwrap();
    [
        ("Anthropic's key", KEY),
        ("OpenAI's key", OPENAI),
        ("Gemini's key", GEMINI),
        ("another provider's key", PROVIDER),
        ("secret key", SECRET_KEY),
        ("App key", line),
        ("webhook secret of GitHub", SECRET),
        ("webhook secret of Jira", JIRA),
        ("webhook secret of Sentry", SENTRY),
        ("password of Redis", REDIS),
        ("password of the database", DATABASE),
        ("installation token", INSTALLATION),
    ]
    .into_iter()
    .map(|(name, secret)| (name, secret.to_owned()))
    .collect()
}

fn configure(config: &mut Config) {
    config.models.anthropic_api_key = Some(KEY.into());
    config.models.openai_api_key = Some(OPENAI.into());
    config.models.gemini_api_key = Some(GEMINI.into());
    let provider = ProviderConfig {
        url: Some("http://127.0.0.1:9".into()),
        api_key: Some(PROVIDER.into()),
        api: ModelApi::OpenAi,
        models: vec!["own".into()],
    };
    config.models.providers.insert("own".into(), provider);
    config.secret_key = Some(SECRET_KEY.into());
    config.jira.webhook_secrets = vec![JIRA.into()];
    config.sentry.webhook_secrets = vec![SENTRY.into()];
    config.redis.url = Some(format!("redis://:{REDIS}@127.0.0.1/").into());
    config.database.url = Some(format!("postgres://zeblit:{DATABASE}@127.0.0.1/zeblit").into());
}

/// The middle of an encoded secret: whoever has that has it.
fn core(encoded: &str) -> &str {
    let chars: Vec<usize> = encoded.char_indices().map(|(at, _)| at).collect();
    &encoded[chars[chars.len() / 4]..chars[chars.len() * 3 / 4]]
}

fn is_in(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// What was found where, and what was searched.
#[derive(Default)]
struct Findings {
    leaks: BTreeSet<String>,
    /// Bytes per sink.
    sinks: BTreeMap<&'static str, usize>,
    masked: BTreeMap<&'static str, usize>,
}

impl Findings {
    fn look(&mut self, sink: &'static str, name: &str, secret: &str, bytes: &[u8]) {
        *self.sinks.entry(sink).or_default() += bytes.len();
        *self.masked.entry(sink).or_default() += String::from_utf8_lossy(bytes).matches("[secret]").count();
        for (encoding, encode) in ENCODINGS {
            if is_in(bytes, core(&encode(secret))) {
                self.leaks.insert(format!("{name}, {encoding}, in {sink}"));
            }
        }
    }
}

/// One line for each encoding.
fn lines(secret: &str) -> Vec<String> {
    ENCODINGS.iter().map(|(_, encode)| format!("found {} there", encode(secret))).collect()
}

async fn get(app: &Arc<App>, method: &str, path: &str, token: Option<&str>) -> Vec<u8> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer =
        zeblit::http::router(Arc::clone(app)).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let mut bytes = format!("{head:?}\n").into_bytes();
    bytes.extend(body.collect().await.unwrap().to_bytes());
    bytes
}

/// A token of the API.
async fn token(app: &Arc<App>) -> String {
    let text = "zbl_sinks".to_owned();
    let token = store::access::Token {
        id: "id-sinks".into(),
        name: "sinks".into(),
        created_at: app.clock.now(),
        expires_at: None,
        revoked_at: None,
    };
    let mut tx = app.store.write_tx().await.unwrap();
    store::access::insert(&mut tx, &token, &token_hash(&text)).await.unwrap();
    tx.commit().await.unwrap();
    text
}

/// Somebody whose words hold a secret asks an agent that prints it, asks with it, and commits it.
async fn everything_of_a_run(findings: &mut Findings, name: &str, secret: &str) {
    World::run_with(configure, async |w| {
        let all = lines(secret);
        let text = all.join("\n");
        let title = format!("The answer is {secret}");
        let number = w.hub.open_issue(REPO, "bob", &title, &text);
        let mut script = Script::edit("src/app.py", "def answer():\n    return 42\n");
        for line in &all {
            script = script.and_print(line);
        }
        w.sandbox.next(script);
        w.say(number, "ada", &format!("/zeblit fix it says {secret}\n\n{text}")).await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Succeeded, "{:?}", run.outcome);
        let pull = w.our_pull();

        // The second agent asks, shows a checklist and is refused.
        let second = w.hub.open_issue(REPO, "bob", "Another one", &text);
        w.sandbox.next(Script::hangs());
        w.say(second, "ada", "/zeblit fix --agent fixer").await;
        while w.sandbox.alive() == 0 {
            assert!(w.round().await, "it was never started");
        }
        w.round().await;
        let asking = w.nth_run(2).await.id;
        let items: Vec<_> =
            all.iter().map(|line| ChecklistItem { text: line.clone(), done: false }).collect();
        let now = w.clock.now();
        store::questions::set_checklist(&w.app.store, &asking, &items, now).await.unwrap();
        let question = Question { text: text.clone(), choices: all.clone() };
        assert!(store::questions::ask(&w.app.store, &asking, 1, &question, now).await.unwrap());
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::NeedsInput);

        // The third leaves it in a file, in a file's name, and in a commit's message.
        let third = w.hub.open_issue(REPO, "bob", "A third one", "Nothing");
        let mut script = Script::fails(3).and_print(secret);
        for (n, line) in all.iter().enumerate() {
            script = script.and_edit(&format!("leak-{n}.txt"), line);
        }
        w.sandbox.next(script.and_edit(&format!("{secret}.txt").replace('/', "_"), "x\n"));
        w.say(third, "ada", "/zeblit fix").await;
        w.settle().await;
        let refused = w.nth_run(3).await;
        assert_eq!(refused.state, RunState::Failed, "{:?}", refused.outcome);
        assert!(refused.outcome.branch.is_none(), "a secret was pushed");

        // A pull request whose configuration is wrong gets a check with annotations.
        let files: Vec<(String, String)> = all
            .iter()
            .enumerate()
            .map(|(n, line)| {
                let path = format!(".github/zeblit/agents/x{n}.md");
                (path, format!("---\nname: x{n}\ndescription: d\n'{line}': 1\n---\n{line}\n"))
            })
            .collect();
        let files: Vec<(&str, &str)> =
            files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let rules = w.hub.push_commit(REPO, "rules", &files, "Rules");
        let wrong = w.hub.open_pull(REPO, "bob", "rules", "main", "Rules");
        w.deliver(&w.hub.pull_event(REPO, wrong, "opened", "bob")).await;
        w.settle().await;

        let mut look = |sink: &'static str, bytes: &[u8]| findings.look(sink, name, secret, bytes);
        for number in [number, second, third, pull.number] {
            look("comments", w.hub.own_comments(REPO, number).join("\n").as_bytes());
        }
        look("pull request", format!("{}\n{}", pull.title, pull.body).as_bytes());
        let branches = w.hub.branches(REPO).join("\n");
        // A branch holds lower-case letters only.
        assert!(!branches.contains(&secret.to_lowercase()[..8]), "{branches}");
        look("branches", branches.as_bytes());
        look(
            "commits",
            w.hub.log(REPO, &pull.pull.clone().unwrap().head_ref, "%an %ae %cn %ce %B", 5).as_bytes(),
        );
        let head = run.outcome.head.clone().unwrap();
        for commit in [head.as_str(), &rules] {
            let checks = w.hub.checks(REPO, commit);
            assert!(!checks.is_empty());
            look("checks", format!("{checks:?}").as_bytes());
        }
        // What they said is looked at where it arrived.
        let said: String = w.hub.requests().iter().map(|seen| format!("{seen:?}\n")).collect();
        look("addresses of requests to the forge", said.as_bytes());
        for spec in w.sandbox.started() {
            let inputs = "prompt, arguments and environment of the agent";
            look(inputs, format!("{:?}", spec.duty).as_bytes());
            if let Duty::Agent(job) = &spec.duty {
                look(inputs, &job.stdin);
            }
        }
        for run in w.runs().await {
            let stored = store::logs::read(&w.app.store, &run.id, 0, 1000).await.unwrap();
            look("stored log", stored.iter().map(|chunk| chunk.text.clone()).collect::<String>().as_bytes());
            for part in ["diff", "report", "log", "changeset", "added"] {
                let bytes = store::artifacts::get(&w.app.store, &run.id, part).await.unwrap();
                look("artifacts", &bytes.unwrap_or_default());
            }
            let context = store::artifacts::get(&w.app.store, &run.id, tools::CONTEXT_PART).await.unwrap();
            look("what the tool `context` tells", &context.unwrap_or_default());
        }
        let audit = store::audit::list(&w.app.store, 200).await.unwrap();
        look("audit log", format!("{audit:?}").as_bytes());

        // Rows as a careless writer would leave them: what shows them hides them.
        let mut tx = w.app.store.write_tx().await.unwrap();
        let entry = store::audit::Entry {
            id: "raw".into(),
            at: w.clock.now(),
            actor: all.join(" "),
            action: "note".into(),
            subject: secret.into(),
            detail: text.clone(),
        };
        store::audit::append(&mut tx, &entry).await.unwrap();
        let raw: String = all
            .iter()
            .map(|line| serde_json::json!({"n": 0, "k": "text", "t": line}).to_string() + "\n")
            .collect();
        store::logs::append(&mut tx, &run.id, 1, &raw, w.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        let token = token(&w.app).await;
        let page = w.app.signer.run_path(run.id.as_str(), w.clock.now().timestamp() + 1000);
        let events = page.replace('?', "/events?");
        let id = run.id.as_str();
        let mut answers = Vec::new();
        for (sink, method, path, token) in [
            ("run page", "GET", page.clone(), None),
            ("live log", "GET", events, None),
            ("API", "GET", "/api/v1/runs".into(), Some(&token)),
            ("API", "GET", format!("/api/v1/runs/{id}"), Some(&token)),
            ("API", "GET", format!("/api/v1/runs/{id}/log"), Some(&token)),
            ("API", "GET", "/api/v1/audit".into(), Some(&token)),
            ("API", "GET", "/api/v1/deliveries".into(), Some(&token)),
            ("API", "GET", "/api/v1/status".into(), Some(&token)),
            ("API", "GET", format!("/api/v1/runs/{}", hex::encode(secret)), Some(&token)),
            ("health and metrics", "GET", "/healthz".into(), None),
            ("health and metrics", "GET", "/readyz".into(), None),
            ("health and metrics", "GET", "/metrics".into(), None),
            ("answers to webhooks", "POST", format!("/webhooks/{}", hex::encode(secret)), None),
        ] {
            answers.push((sink, get(&w.app, method, &path, token.map(String::as_str)).await));
        }
        let delivery = w.hub.comment_created(REPO, w.hub.comment(REPO, number, "bob", &text));
        let mut request = Request::post("/webhooks/github");
        for (name, value) in delivery.headers("not the secret of this server") {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(delivery.body.clone())).unwrap();
        let answer = zeblit::http::router(Arc::clone(&w.app)).oneshot(request).await.unwrap();
        answers
            .push(("answers to webhooks", answer.into_body().collect().await.unwrap().to_bytes().to_vec()));
        // The database of this test has no password, so the program beside the server does not know one.
        if secret != DATABASE {
            answers.extend(command_line(w.state_folder().parent().unwrap(), id));
        }
        for (sink, bytes) in answers {
            findings.look(sink, name, secret, &bytes);
        }
    })
    .await;
}

/// The program beside the server, with the same secrets in its configuration.
fn command_line(folder: &Path, run: &str) -> Vec<(&'static str, Vec<u8>)> {
    let file = folder.join("cli.toml");
    let line = APP_KEY.replace('\n', "\\n");
    let text = format!(
        "secret_key = \"{SECRET_KEY}\"\nstate_dir = \"{}\"\n[database]\nurl = \"sqlite:{}\"\n[redis]\nurl = \"redis://:{REDIS}@127.0.0.1:1/\"\n\
         [server]\npublic_url = \"https://zeblit.example\"\n[github]\napp_id = 1\nprivate_key = \"{line}\"\nwebhook_secrets = [\"{SECRET}\"]\n\
         [jira]\nwebhook_secrets = [\"{JIRA}\"]\n[sentry]\nwebhook_secrets = [\"{SENTRY}\"]\n\
         [models]\nanthropic_api_key = \"{KEY}\"\nopenai_api_key = \"{OPENAI}\"\ngemini_api_key = \"{GEMINI}\"\n\
         [models.providers.own]\nurl = \"http://127.0.0.1:9\"\napi_key = \"{PROVIDER}\"\napi = \"openai\"\nmodels = [\"own\"]\n",
        folder.join("state").display(),
        folder.join("zeblit.db").display()
    );
    std::fs::write(&file, text).unwrap();
    let mut said = Vec::new();
    for words in
        [&["audit"][..], &["logs", run], &["status"], &["status", run], &["deliveries"], &["config", "check"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeblit"));
        command.arg("--config").arg(&file).args(words).current_dir(folder).stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ZEBLIT_")) {
            command.env_remove(name);
        }
        let done = command.output().unwrap();
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code().is_some_and(|code| code != 2), "zeblit {words:?}: {errors}");
        assert!(!done.stdout.is_empty(), "zeblit {words:?}: {errors}");
        said.push(("output of the command line", [done.stdout, done.stderr].concat()));
    }
    said
}

/// Keeps what the server's own log writes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn own_log(secret: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for json in [false, true] {
        let written = Written::default();
        let writer = written.clone();
        let make = move || telemetry::Masked(writer.clone());
        let tell = || {
            for line in lines(secret) {
                tracing::warn!(detail = line, error = ?line, "{line}");
            }
        };
        let builder = tracing_subscriber::fmt().with_ansi(false).with_writer(make);
        if json {
            tracing::subscriber::with_default(builder.json().finish(), tell);
        } else {
            tracing::subscriber::with_default(builder.finish(), tell);
        }
        all.extend(written.0.lock().unwrap().iter());
    }
    all
}

fn changeset(path: &str, added: &str) -> Changeset {
    let sha = |c: &str| Sha::parse(&c.repeat(40)).unwrap();
    let change = Change {
        path: path.into(),
        old_mode: Mode::Absent,
        new_mode: Mode::File,
        added_lines: 1,
        removed_lines: 0,
        binary: false,
        new_bytes: 100,
    };
    Changeset { base: sha("a"), head: sha("b"), commits: 1, changes: vec![change], added_text: added.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_by_any_sink_in_any_encoding() {
    let mut config = Config::default();
    configure(&mut config);
    config.github = Some(zeblit::config::GithubConfig {
        app_id: 1,
        private_key: Some(APP_KEY.into()),
        private_key_file: None,
        webhook_secrets: vec![SECRET.into()],
        api_url: "https://api.github.example".into(),
        git_url: "https://github.example".into(),
        storage_urls: Vec::new(),
        web_url: None,
        max_body_bytes: 1 << 20,
    });
    let scan: SecretScan = config.secret_scan();
    telemetry::hide(&scan);
    let mut findings = Findings::default();
    let mut refused = 0;
    let mut passed = Vec::new();
    for (name, secret) in secrets() {
        // Code: added lines, messages of commits and names of files are refused, not masked.
        for (encoding, encode) in ENCODINGS {
            let encoded = encode(&secret);
            let mut code = vec![
                ("added line", changeset("src/x.py", &format!("token = '{encoded}'\n"))),
                (
                    "commit message",
                    changeset("src/x.py", &format!("src/x.py\n\nFix it with {encoded}\n\nZeblit-Run: x")),
                ),
            ];
            if encoded.len() < 250 && !encoded.contains('\\') {
                code.push((
                    "file name",
                    changeset(&format!("notes/{}.txt", encoded.replace('/', "_")), "x\n"),
                ));
            }
            for (sink, set) in code {
                let found = gate::check(&set, &GateConfig::default(), &scan);
                // A slash separates folders, so a secret with one cannot be a name as it is.
                let broken = sink == "file name" && encoded.contains('/');
                if found.iter().any(|violation| violation.rule == "gate.secret") || broken {
                    refused += 1;
                } else {
                    passed.push(format!("{name}, {encoding}, in {sink}"));
                }
                findings.look("reports of the gate", name, &secret, format!("{found:?}").as_bytes());
            }
        }
        findings.look("the server's own log", name, &secret, &own_log(&secret));
        everything_of_a_run(&mut findings, name, &secret).await;
    }
    assert!(passed.is_empty(), "code that was not refused: {passed:#?}");
    assert!(findings.leaks.is_empty(), "{:#?}", findings.leaks);
    // What was put in came out masked: an empty sink would prove nothing.
    for sink in [
        "comments",
        "pull request",
        "checks",
        "stored log",
        "what the tool `context` tells",
        "prompt, arguments and environment of the agent",
        "run page",
        "live log",
        "API",
        "output of the command line",
        "the server's own log",
    ] {
        assert!(findings.masked.get(sink).is_some_and(|count| *count > 0), "nothing was put into: {sink}");
    }
    if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
        std::fs::create_dir_all(&folder).unwrap();
        let mut text: String = findings
            .sinks
            .iter()
            .map(|(sink, bytes)| format!("{sink}: {bytes} bytes, {} places masked\n", findings.masked[sink]))
            .collect();
        text.push_str(&format!(
            "{} secrets x {} encodings x {} sinks, {refused} of {refused} changes refused, {} found\n",
            secrets().len(),
            ENCODINGS.len(),
            findings.sinks.len() + 3,
            findings.leaks.len()
        ));
        std::fs::write(Path::new(&folder).join("sinks.txt"), text).unwrap();
    }
}
