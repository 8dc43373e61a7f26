//! The way of a model request: agent, bridge, broker, endpoint; what the ledger says is what the endpoint counted.

use crate::world::model::{GEMINI_KEY, KEY, ModelServer, OPENAI_KEY, Turn};
use secrecy::SecretString;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use zeblit::agent::adapter::{self, LaunchContext};
use zeblit::agent::definition::AgentSet;
use zeblit::agent::{AdapterKind, AgentEvent};
use zeblit::broker::price::PriceTable;
use zeblit::broker::provider::Provider;
use zeblit::broker::{Allowance, Broker, Listener, Settings};
use zeblit::clock::{RandomIds, SystemClock};
use zeblit::domain::ids::RunId;
use zeblit::domain::model_api::ModelApi;
use zeblit::domain::run::{FailureClass, RunMode};
use zeblit::store::Store;
use zeblit::store::ledger::{self, Totals};

const PLENTY: i64 = 50_000_000;
const MODEL: &str = "claude-sonnet-4-5";

/// Everything between an agent and the scripted endpoint, as in a run.
struct Way {
    model: ModelServer,
    store: Store,
    run: RunId,
    folder: tempfile::TempDir,
    /// The address inside a container, here on a free port.
    base_url: String,
    _listener: Listener,
}

impl Way {
    async fn new(budget_micros: i64, turns: Vec<Turn>) -> Self {
        let model = ModelServer::start(turns).await;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", folder.path().join("z.db").display())).await.unwrap();
        let settings = Settings {
            providers: [
                (ModelApi::Anthropic, "", KEY),
                (ModelApi::OpenAi, "/openai/v1", OPENAI_KEY),
                (ModelApi::Gemini, "/gemini", GEMINI_KEY),
            ]
            .map(|(api, path, key)| {
                let url = format!("{}{path}", model.url);
                Provider::general(api, &url, Some(SecretString::from(key.to_owned())))
            })
            .to_vec(),
            ..Settings::default()
        };
        let broker = Broker::new(settings, store.clone(), Arc::new(SystemClock), Arc::new(RandomIds));
        let run = RunId::new("run_0001");
        let allowance = Allowance { run: run.clone(), attempt: 1, budget_micros, wider: Vec::new() };
        let listener = broker.open(folder.path(), allowance).await.unwrap();
        let base_url = bridge(folder.path().join("broker.sock")).await;
        Self { model, store, run, folder, base_url, _listener: listener }
    }

    async fn totals(&self) -> Totals {
        ledger::totals(&self.store, &self.run).await.unwrap()
    }

    /// The ledger has each answer, and exactly at its price.
    async fn assert_paid(&self) {
        let (usage, answers) = self.model.charged();
        let totals = self.totals().await;
        assert_eq!(totals.usage, usage);
        assert_eq!(totals.requests, answers);
        let whole = PriceTable::new([]).of(MODEL).unwrap().cost(&usage, 0);
        // Each request is rounded up for itself.
        assert!((whole..=whole + answers).contains(&totals.micros), "{totals:?} against {whole}");
    }
}

/// What the shim does inside: a TCP port in front of the socket.
async fn bridge(socket: PathBuf) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            let Ok(mut outside) = tokio::net::UnixStream::connect(&socket).await else { return };
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut inside, &mut outside).await });
        }
    });
    url
}

fn question(stream: bool) -> serde_json::Value {
    json!({"model": MODEL, "max_tokens": 100, "stream": stream, "tools": [{"name": "Bash"}], "messages": []})
}

#[tokio::test]
async fn what_the_endpoint_counts_is_what_the_ledger_says() {
    let turns = vec![
        Turn::says("One moment."),
        Turn::calls("Bash", json!({"command": "ls"})),
        // Sent again twice before the agent hears of it.
        Turn::fails(529, "overloaded_error", "Overloaded"),
        Turn::fails(529, "overloaded_error", "Overloaded"),
        Turn::fails(529, "overloaded_error", "Overloaded"),
        Turn::says("Done."),
    ];
    let way = Way::new(PLENTY, turns).await;
    let client = reqwest::Client::new();
    for (stream, status, wanted) in [
        (true, 200, "\"One m\""),
        (false, 200, "\"tool_use\""),
        (true, 529, "Overloaded"),
        (true, 200, "message_stop"),
    ] {
        let answer = client
            .post(format!("{}/v1/messages?beta=true", way.base_url))
            .header("x-api-key", "placeholder")
            .json(&question(stream))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status);
        let text = answer.text().await.unwrap();
        assert!(text.contains(wanted), "{text}");
    }
    assert_eq!(way.model.left(), 0);
    assert!(way.model.seen().iter().all(|seen| seen.headers["x-api-key"] == KEY));
    let (usage, answers) = way.model.charged();
    let totals = way.totals().await;
    assert_eq!((totals.usage, answers), (usage, 3));
    // The overloaded request is in the ledger, at nothing.
    assert_eq!(totals.requests, 4);
}

#[tokio::test]
async fn every_wire_format_is_paid_to_the_token_streamed_and_not() {
    let way = Way::new(PLENTY, vec![]).await;
    let client = reqwest::Client::new();
    let send = async |path: &str, body: &serde_json::Value| {
        let answer = client.post(format!("{}{path}", way.base_url)).json(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answer.text().await.unwrap()
    };
    let said = json!([{"role": "user", "content": "hello"}]);
    let schema = json!({"type": "object"});
    let function = json!({"name": "f", "parameters": schema});
    let gemini = json!({
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "tools": [{"functionDeclarations": [function]}],
    });
    let mut whole = 0;
    for stream in [true, false] {
        let action = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
        for (model, path, body, call, end) in [
            (
                "gpt-5",
                "/openai/v1/chat/completions".to_owned(),
                json!({
                    "model": "gpt-5", "messages": said, "stream": stream,
                    "tools": [{"type": "function", "function": function}],
                }),
                r#""name":"f""#,
                r#""finish_reason":"stop""#,
            ),
            (
                "gpt-5.5",
                "/openai/v1/responses".to_owned(),
                json!({
                    "model": "gpt-5.5", "input": said, "stream": stream,
                    "tools": [{"type": "function", "name": "f", "parameters": schema}],
                }),
                r#""type":"function_call""#,
                r#""type":"output_text""#,
            ),
            (
                "gemini-2.5-pro",
                format!("/gemini/v1beta/models/gemini-2.5-pro:{action}"),
                gemini.clone(),
                r#""functionCall""#,
                r#""finishReason":"STOP""#,
            ),
        ] {
            way.model.add([
                Turn::calls("f", json!({"n": 1})).after_saying("I call it."),
                Turn::says("All of it is done."),
            ]);
            for wanted in [call, end] {
                let text = send(&path, &body).await;
                assert!(text.contains(wanted), "{path}: {text}");
                assert_eq!(text.contains("data: "), stream, "{path}: {text}");
            }
            let price = PriceTable::new([]).of(model).unwrap();
            let answered = way.model.answered();
            whole += answered[answered.len() - 2..].iter().map(|usage| price.cost(usage, 0)).sum::<i64>();
        }
    }
    let count = json!({"contents": gemini["contents"]});
    assert!(send("/gemini/v1beta/models/gemini-2.5-pro:countTokens", &count).await.contains("totalTokens"));
    assert_eq!(way.model.left(), 0);
    let (usage, answers) = way.model.charged();
    let totals = way.totals().await;
    assert_eq!((totals.usage, totals.requests, totals.micros), (usage, answers, whole));
    assert_eq!(answers, 12);
    for seen in way.model.seen() {
        let key = if seen.what.contains("/gemini/") {
            ("x-goog-api-key", GEMINI_KEY.to_owned())
        } else {
            ("authorization", format!("Bearer {OPENAI_KEY}"))
        };
        assert_eq!(seen.headers[key.0], key.1, "{}", seen.what);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_costs_what_was_reserved() {
    let way = Way::new(PLENTY, vec![Turn::Cut { text: "I was about to".into() }]).await;
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/messages", way.base_url))
        .json(&question(true))
        .send()
        .await
        .unwrap();
    assert!(answer.text().await.is_err());
    let totals = way.totals().await;
    // At least the 100 tokens of output that it might have written, at 15 millionths each.
    assert!(totals.micros > 1_500 && totals.requests == 1, "{totals:?}");
}

/// The program of Claude Code: `ZEBLIT_TEST_CLAUDE` names it, and `make test` sets that. CI must.
fn claude() -> Option<PathBuf> {
    let program = std::env::var_os("ZEBLIT_TEST_CLAUDE").map(PathBuf::from);
    assert!(program.is_some() || std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_CLAUDE");
    program
}

/// Runs an agent as the shim would: its own environment and nothing of ours. Gives its events.
async fn play(way: &Way, program: &Path, agent: &str, mode: RunMode) -> Vec<AgentEvent> {
    let (workspace, home) = (way.folder.path().join("workspace"), way.folder.path().join("home"));
    for folder in [&workspace, &home] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(workspace.join("a.txt"), "hello\n").unwrap();
    let set = AgentSet::builtin().unwrap();
    let spec = set.agent(agent).unwrap();
    let skills = set.skills_of(spec).unwrap();
    let launch = adapter::launch(&LaunchContext {
        spec,
        skills: &skills,
        mode,
        model: Some(MODEL),
        prompt: "PROMPT-MARK: say goodbye in a.txt",
        args: "",
        workspace: &workspace,
        home: &home,
    })
    .unwrap();
    for (name, bytes) in &launch.home_files {
        let file = home.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    let inside = format!("http://127.0.0.1:{}", adapter::BRIDGE_PORT);
    let mut command = Command::new(program);
    command
        .args(&launch.argv[1..])
        .current_dir(&workspace)
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value.replace(&inside, &way.base_url))))
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", &home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let stdin = launch.stdin.clone();
    let output = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&stdin).unwrap();
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!text.is_empty(), "{errors}");
    text.lines().flat_map(|line| adapter::parse_line(AdapterKind::Claude, false, line)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_works_through_the_bridge_and_is_paid_to_the_token() {
    let Some(program) = claude() else { return };
    let way = Way::new(PLENTY, vec![]).await;
    let file = way.folder.path().join("workspace/a.txt");
    way.model.add([
        Turn::calls("Read", json!({"file_path": file})),
        Turn::calls("Edit", json!({"file_path": file, "old_string": "hello", "new_string": "goodbye"})),
        Turn::calls("Bash", json!({"command": "cat a.txt && false", "description": "Check"})),
        Turn::says("Done: a.txt says goodbye."),
    ]);
    let events = play(&way, &program, "fixer", RunMode::Change).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "goodbye\n");
    assert_eq!(
        events.last(),
        Some(&AgentEvent::Result { ok: true, text: "Done: a.txt says goodbye.".into() })
    );
    let ends: Vec<bool> = events
        .iter()
        .filter_map(|event| match event {
            AgentEvent::ToolEnd { ok, .. } => Some(*ok),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [true, true, false], "{events:?}");
    way.assert_paid().await;
    let first = way.model.seen().into_iter().find(|seen| seen.what.starts_with("POST /v1/messages")).unwrap();
    let body = first.body.to_string();
    for mark in ["PROMPT-MARK", "You fix software in the repository", "small-diffs"] {
        assert!(body.contains(mark), "{mark}");
    }
    assert_eq!(first.headers["x-api-key"], KEY);
    let left = first.headers.keys().filter(|name| name.as_str().starts_with("x-stainless")).count();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_stops_at_once_when_the_budget_is_used_up() {
    let Some(program) = claude() else { return };
    let way = Way::new(1_000, vec![Turn::says("never")]).await;
    let events = play(&way, &program, "explainer", RunMode::ReadOnly).await;
    match events.last() {
        Some(AgentEvent::Error { class: FailureClass::Budget, detail }) => {
            assert!(detail.contains("the budget of this run is used up"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(way.model.charged().1, 0);
    assert_eq!(way.totals().await.requests, 0);
}
