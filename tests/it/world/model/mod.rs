//! A scripted model endpoint: one server that speaks the Anthropic Messages API, OpenAI Responses and Chat Completions, and
//! Gemini, streaming and not. It plays turns, counts what it would charge, and records what it heard.
//!
//! A `Turn` is the same for all of them; each wire format has a file that writes it down.

mod chat;
mod gemini;
mod messages;
mod responses;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use zeblit::config::{Config, PriceConfig, ProviderConfig};
use zeblit::domain::budget::Usage;
use zeblit::domain::model_api::ModelApi;

/// The only keys that it takes, one for each API.
pub const KEY: &str = "sk-ant-the-key-of-the-scripted-model";
pub const OPENAI_KEY: &str = "sk-proj-the-key-of-the-scripted-model";
pub const GEMINI_KEY: &str = "AIzaTheKeyOfTheScriptedModel";

/// A model of a house of its own, which speaks Chat Completions.
pub const HOUSE_MODEL: &str = "qwen/qwen3-coder";

/// The image with the agents' programs.
pub const IMAGE: &str = "zeblit-agent-clis:latest";

/// What the model does when it is asked next.
#[derive(Debug, Clone)]
pub enum Turn {
    /// Text, then tool calls (name and input). Without a usage of its own it costs what it is long.
    ///
    /// Responses: a call whose input is a text is one of a free-form tool; `NAMESPACE.NAME` names a tool in a namespace.
    Answer { text: String, calls: Vec<(String, Value)>, usage: Option<Usage> },
    /// An error instead of an answer: status, type, message.
    Error { status: u16, kind: &'static str, message: String },
    /// The answer breaks off in the middle of its text.
    Cut { text: String },
}

impl Turn {
    pub fn says(text: &str) -> Self {
        Turn::Answer { text: text.into(), calls: Vec::new(), usage: None }
    }

    pub fn calls(tool: &str, input: Value) -> Self {
        Turn::Answer { text: String::new(), calls: vec![(tool.into(), input)], usage: None }
    }

    /// A command, as Claude Code runs it.
    pub fn runs(command: &str) -> Self {
        Self::calls("Bash", json!({"command": command, "description": "Run it"}))
    }

    /// With words before its calls.
    pub fn after_saying(mut self, words: &str) -> Self {
        if let Turn::Answer { text, .. } = &mut self {
            *text = words.into();
        }
        self
    }

    /// With this usage, however long it is.
    pub fn using(mut self, used: Usage) -> Self {
        if let Turn::Answer { usage, .. } = &mut self {
            *usage = Some(used);
        }
        self
    }

    pub fn fails(status: u16, kind: &'static str, message: &str) -> Self {
        Turn::Error { status, kind, message: message.into() }
    }
}

/// One answer, before it is written in a wire format.
struct Reply {
    number: i64,
    model: Value,
    text: String,
    calls: Vec<(String, Value)>,
    usage: Usage,
    cut: bool,
}

impl Reply {
    /// A text in two pieces, as a real stream comes in pieces; only the first when it breaks off.
    fn pieces<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
        if self.cut { vec![first] } else { vec![first, second] }
    }
}

/// Which wire format a request is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Messages,
    Responses,
    Chat,
    Gemini,
}

impl Wire {
    /// By the path of a request that costs money.
    fn of(path: &str) -> Option<Self> {
        let gemini = path.strip_prefix("/gemini/v1beta/models/").and_then(|rest| rest.split_once(':'));
        match path {
            "/v1/messages" => Some(Wire::Messages),
            "/openai/v1/responses" => Some(Wire::Responses),
            "/openai/v1/chat/completions" => Some(Wire::Chat),
            _ if gemini
                .is_some_and(|(_, call)| matches!(call, "generateContent" | "streamGenerateContent")) =>
            {
                Some(Wire::Gemini)
            }
            _ => None,
        }
    }

    fn whole(self, reply: &Reply) -> Value {
        match self {
            Wire::Messages => messages::whole(reply),
            Wire::Responses => responses::whole(reply),
            Wire::Chat => chat::whole(reply),
            Wire::Gemini => gemini::whole(reply),
        }
    }

    /// The pieces of an event stream.
    fn events(self, reply: &Reply) -> Vec<String> {
        match self {
            Wire::Messages => messages::events(reply),
            Wire::Responses => responses::events(reply),
            Wire::Chat => chat::events(reply),
            Wire::Gemini => gemini::events(reply),
        }
    }
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method, path and query.
    pub what: String,
    pub headers: HeaderMap,
    pub body: Value,
}

#[derive(Debug, Default)]
struct Play {
    turns: VecDeque<Turn>,
    seen: Vec<Seen>,
    usage: Usage,
    answers: i64,
    answered: Vec<Usage>,
}

/// The endpoint, on a loopback port until it is dropped.
#[derive(Debug)]
pub struct ModelServer {
    /// For `models.anthropic_url`.
    pub url: String,
    play: Arc<Mutex<Play>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ModelServer {
    pub async fn start(turns: impl IntoIterator<Item = Turn>) -> Self {
        let play = Arc::new(Mutex::new(Play { turns: turns.into_iter().collect(), ..Play::default() }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&play));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, play, task }
    }

    /// More turns, after those that are left.
    pub fn add(&self, turns: impl IntoIterator<Item = Turn>) {
        self.play.lock().unwrap().turns.extend(turns);
    }

    /// Everything that was asked, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.play.lock().unwrap().seen.clone()
    }

    /// What it would charge for, all answers together, and how many they were.
    pub fn charged(&self) -> (Usage, i64) {
        let play = self.play.lock().unwrap();
        (play.usage, play.answers)
    }

    /// A server whose agents are Claude Code, and whose models of every API are this endpoint.
    pub fn configure(&self, config: &mut Config) {
        config.sandbox.image = IMAGE.into();
        config.agents.fix = "fixer".into();
        let models = &mut config.models;
        models.anthropic_url = self.url.clone();
        models.anthropic_api_key = Some(KEY.into());
        models.openai_url = format!("{}/openai/v1", self.url);
        models.openai_api_key = Some(OPENAI_KEY.into());
        models.gemini_url = format!("{}/gemini", self.url);
        models.gemini_api_key = Some(GEMINI_KEY.into());
        let house = ProviderConfig {
            api: ModelApi::OpenAi,
            url: None,
            api_key: None,
            models: vec![HOUSE_MODEL.to_owned()],
        };
        models.providers.insert("house".to_owned(), house);
        let price = PriceConfig { input: 1.0, output: 4.0, cache_read: 0.1, cache_write: 1.25 };
        models.prices.insert(HOUSE_MODEL.to_owned(), price);
    }

    /// The usage of each answer.
    pub fn answered(&self) -> Vec<Usage> {
        self.play.lock().unwrap().answered.clone()
    }

    /// All that was said to the model, one after the other.
    pub fn heard(&self) -> String {
        self.seen().into_iter().map(|seen| format!("{}\n", seen.body)).collect()
    }

    /// Turns that were not asked for.
    pub fn left(&self) -> usize {
        self.play.lock().unwrap().turns.len()
    }
}

/// Every API's error at once: each client reads the fields that it knows.
fn error(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = json!({
        "type": "error",
        "error": {"type": kind, "message": message, "code": status.as_u16(), "status": kind, "param": null},
    });
    whole(status, &body)
}

fn whole(status: StatusCode, body: &Value) -> Response {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// Whether a request has the key of its API, where that API has it.
fn is_permitted(path: &str, headers: &HeaderMap) -> bool {
    let (name, value) = if path.starts_with("/openai/") {
        ("authorization", format!("Bearer {OPENAI_KEY}"))
    } else if path.starts_with("/gemini/") {
        ("x-goog-api-key", GEMINI_KEY.to_owned())
    } else {
        ("x-api-key", KEY.to_owned())
    };
    headers.get(name).is_some_and(|key| *key == value)
}

/// Requests without tools are the CLI's own (titles, summaries) and not part of the script.
fn has_tools(body: &Value) -> bool {
    let filled = |tools: Option<&Value>| tools.and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    // Codex gives newer models their tools inside the conversation.
    let items = body.get("input").and_then(Value::as_array).into_iter().flatten();
    filled(body.get("tools"))
        || items.into_iter().any(|item| item["type"] == "additional_tools" && filled(item.get("tools")))
}

async fn answer(State(play): State<Arc<Mutex<Play>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let length = i64::try_from(body.len()).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let seen = Seen {
        what: format!("{} {}", head.method, head.uri),
        headers: head.headers.clone(),
        body: body.clone(),
    };
    let path = head.uri.path();
    let mut play = play.lock().unwrap();
    play.seen.push(seen);
    if !is_permitted(path, &head.headers) {
        return error(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key");
    }
    let wire = match (head.method.as_str(), path) {
        ("POST", "/v1/messages/count_tokens") => {
            return whole(StatusCode::OK, &json!({"input_tokens": length / 4}));
        }
        ("POST", _) if path.starts_with("/gemini/") && path.ends_with(":countTokens") => {
            return whole(StatusCode::OK, &json!({"totalTokens": length / 4}));
        }
        ("GET", "/v1/models" | "/openai/v1/models") => {
            return whole(StatusCode::OK, &json!({"object": "list", "data": [], "has_more": false}));
        }
        ("GET", "/gemini/v1beta/models") => return whole(StatusCode::OK, &json!({"models": []})),
        ("POST", _) => Wire::of(path),
        _ => None,
    };
    let Some(wire) = wire else {
        return error(StatusCode::NOT_FOUND, "not_found_error", "no such path");
    };
    let turn = if has_tools(&body) { play.turns.pop_front() } else { Some(Turn::says("A title")) };
    let (text, calls, own_usage, cut) = match turn {
        None => {
            return error(StatusCode::BAD_REQUEST, "invalid_request_error", "the script has no more turns");
        }
        Some(Turn::Error { status, kind, message }) => {
            return error(StatusCode::from_u16(status).unwrap(), kind, &message);
        }
        Some(Turn::Answer { text, calls, usage }) => (text, calls, usage, false),
        Some(Turn::Cut { text }) => (text, Vec::new(), None, true),
    };
    play.answers += 1;
    let written = text.len() + calls.iter().map(|(_, input)| input.to_string().len()).sum::<usize>();
    let usage = own_usage.unwrap_or(Usage {
        input: length / 8 + 1,
        output: i64::try_from(written / 4).unwrap() + 1,
        cache_read: length / 32,
        // Gemini does not know it.
        cache_write: if wire == Wire::Gemini { 0 } else { length / 16 },
    });
    play.answered.push(usage);
    play.usage.input += usage.input;
    play.usage.output += usage.output;
    play.usage.cache_read += usage.cache_read;
    play.usage.cache_write += usage.cache_write;
    let number = play.answers;
    drop(play);

    let model = body.get("model").cloned().unwrap_or(Value::Null);
    let reply = Reply { number, model, text, calls, usage, cut };
    let is_streamed = match wire {
        Wire::Gemini => path.ends_with(":streamGenerateContent"),
        _ => body.get("stream").and_then(Value::as_bool) == Some(true),
    };
    if is_streamed { streamed(wire.events(&reply), cut) } else { whole(StatusCode::OK, &wire.whole(&reply)) }
}

/// An event stream, piece by piece.
fn streamed(events: Vec<String>, cut: bool) -> Response {
    let mut chunks: Vec<Result<Bytes, std::io::Error>> =
        events.into_iter().map(|event| Ok(Bytes::from(event))).collect();
    if cut {
        chunks.push(Err(std::io::Error::other("the scripted answer breaks off")));
    }
    Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .body(Body::from_stream(futures_util::stream::iter(chunks).then(async |chunk| {
            // Lets the server flush what it has: events come one by one, and a break comes after them.
            tokio::task::yield_now().await;
            chunk
        })))
        .unwrap()
}
