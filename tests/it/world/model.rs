//! A scripted model endpoint: speaks the Anthropic Messages API, streaming and not, plays turns, counts, records.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use zeblit::config::Config;
use zeblit::domain::budget::Usage;

/// The only key that it takes.
pub const KEY: &str = "sk-ant-the-key-of-the-scripted-model";

/// The image with the agents' programs.
pub const IMAGE: &str = "zeblit-agent-clis:latest";

/// What the model does when it is asked next.
#[derive(Debug, Clone)]
pub enum Turn {
    /// Text, then tool calls (name and input). Without a usage of its own it costs what it is long.
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

    /// A server whose agents are Claude Code with this endpoint.
    pub fn configure(&self, config: &mut Config) {
        config.sandbox.image = IMAGE.into();
        config.agents.fix = "fixer".into();
        config.models.anthropic_url = self.url.clone();
        config.models.anthropic_api_key = Some(KEY.into());
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

fn error(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}});
    whole(status, &body)
}

fn whole(status: StatusCode, body: &Value) -> Response {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
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
    let mut play = play.lock().unwrap();
    play.seen.push(seen);
    if head.headers.get("x-api-key").is_none_or(|key| key != KEY) {
        return error(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key");
    }
    match (head.method.as_str(), head.uri.path()) {
        ("POST", "/v1/messages") => {}
        ("POST", "/v1/messages/count_tokens") => {
            return whole(StatusCode::OK, &json!({"input_tokens": length / 4}));
        }
        ("GET", "/v1/models") => return whole(StatusCode::OK, &json!({"data": [], "has_more": false})),
        _ => return error(StatusCode::NOT_FOUND, "not_found_error", "no such path"),
    }
    // Requests without tools are the CLI's own (titles, summaries) and not part of the script.
    let has_tools = body.get("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty());
    let turn = if has_tools { play.turns.pop_front() } else { Some(Turn::says("A title")) };
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
        cache_write: length / 16,
    });
    play.answered.push(usage);
    play.usage.input += usage.input;
    play.usage.output += usage.output;
    play.usage.cache_read += usage.cache_read;
    play.usage.cache_write += usage.cache_write;
    let number = play.answers;
    drop(play);

    let mut blocks = Vec::new();
    if !text.is_empty() {
        blocks.push(json!({"type": "text", "text": text}));
    }
    for (index, (name, input)) in calls.iter().enumerate() {
        blocks.push(
            json!({"type": "tool_use", "id": format!("toolu_{number}_{index}"), "name": name, "input": input}),
        );
    }
    let message = json!({
        "id": format!("msg_{number}"),
        "type": "message",
        "role": "assistant",
        "model": body.get("model").cloned().unwrap_or(Value::Null),
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": counts(&usage, 1),
    });
    let stop = if calls.is_empty() { "end_turn" } else { "tool_use" };
    if body.get("stream").and_then(Value::as_bool) == Some(true) {
        return streamed(message, &blocks, stop, &usage, cut);
    }
    let mut message = message;
    message["content"] = Value::Array(blocks);
    message["stop_reason"] = json!(stop);
    message["usage"] = counts(&usage, usage.output);
    whole(StatusCode::OK, &message)
}

fn counts(usage: &Usage, output: i64) -> Value {
    json!({
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": output,
    })
}

/// The event stream of one answer: every block in two deltas, as the real one comes in pieces.
fn streamed(message: Value, blocks: &[Value], stop: &str, usage: &Usage, cut: bool) -> Response {
    let mut events = vec![json!({"type": "message_start", "message": message})];
    for (index, block) in blocks.iter().enumerate() {
        let (start, kind, field, whole) = if block["type"] == "text" {
            let text = block["text"].as_str().unwrap().to_owned();
            (json!({"type": "text", "text": ""}), "text_delta", "text", text)
        } else {
            let mut start = block.clone();
            start["input"] = json!({});
            (start, "input_json_delta", "partial_json", block["input"].to_string())
        };
        events.push(json!({"type": "content_block_start", "index": index, "content_block": start}));
        let (first, second) = whole.split_at(whole.floor_char_boundary(whole.len() / 2));
        for part in [first, second] {
            events.push(
                json!({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: part}}),
            );
            if cut {
                break;
            }
        }
        if !cut {
            events.push(json!({"type": "content_block_stop", "index": index}));
        }
    }
    if !cut {
        events.push(json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": null},
            "usage": {"output_tokens": usage.output},
        }));
        events.push(json!({"type": "message_stop"}));
    }
    let mut chunks: Vec<Result<Bytes, std::io::Error>> = events
        .iter()
        .map(|event| {
            Ok(Bytes::from(format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())))
        })
        .collect();
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
