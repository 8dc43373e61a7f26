//! Purpose: the conversation in the words of two model APIs: Anthropic Messages and OpenAI Chat Completions.

use super::json::{Json, object};
use super::tools::Description;

/// Version of the Anthropic API that this speaks.
const ANTHROPIC_VERSION: &str = "2023-06-01";
/// What stands for the key; the broker replaces it.
const PLACEHOLDER: &str = "placeholder";
/// What is kept of a dropped text.
const DROPPED: &str = "[dropped to save space; ask again if you need it]";
/// Texts shorter than this are not worth dropping (bytes).
const WORTH_DROPPING: usize = 400;
/// The newest entries, which stay as they are.
const KEPT_ENTRIES: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    Anthropic,
    OpenAi,
}

impl Api {
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "anthropic" => Some(Self::Anthropic),
            "openai" => Some(Self::OpenAi),
            _ => None,
        }
    }

    /// Behind the base address of this API.
    pub fn path(self) -> &'static str {
        match self {
            Self::Anthropic => "/v1/messages",
            Self::OpenAi => "/chat/completions",
        }
    }

    pub fn headers(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Anthropic => vec![("anthropic-version", ANTHROPIC_VERSION), ("x-api-key", PLACEHOLDER)],
            Self::OpenAi => vec![("authorization", "Bearer placeholder")],
        }
    }
}

/// One call of a tool, as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// What cannot be read is kept as a text and answered with an error.
    pub input: Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub id: String,
    pub ok: bool,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    User(String),
    Model { text: String, calls: Vec<Call> },
    Tools(Vec<Told>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
    pub cache_read: u64,
    pub cache_write: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub text: String,
    pub calls: Vec<Call>,
    /// The answer ended at the limit of output tokens: its last call may be cut.
    pub cut: bool,
    pub tokens: Tokens,
}

/// What stays the same in all requests of a run.
#[derive(Debug)]
pub struct Setting {
    pub api: Api,
    pub model: String,
    pub system: String,
    pub max_tokens: u64,
}

/// The body of the next request.
pub fn request(setting: &Setting, tools: &[Description], entries: &[Entry]) -> String {
    match setting.api {
        Api::Anthropic => anthropic_request(setting, tools, entries),
        Api::OpenAi => openai_request(setting, tools, entries),
    }
}

fn cached(mut block: Json) -> Json {
    block.set("cache_control", object([("type", "ephemeral".into())]));
    block
}

fn text_block(text: &str) -> Json {
    object([("type", "text".into()), ("text", text.into())])
}

fn anthropic_request(setting: &Setting, tools: &[Description], entries: &[Entry]) -> String {
    let tools = tools
        .iter()
        .map(|tool| {
            object([
                ("name", tool.name.into()),
                ("description", tool.about.into()),
                ("input_schema", tool.schema.clone()),
            ])
        })
        .collect::<Vec<_>>();
    let last = entries.len().saturating_sub(1);
    let messages = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            let (role, mut blocks) = match entry {
                Entry::User(text) => ("user", vec![text_block(text)]),
                Entry::Model { text, calls } => {
                    let words =
                        Some(text).filter(|text| !text.trim().is_empty()).map(|text| text_block(text));
                    let calls = calls.iter().map(|call| {
                        let input = match &call.input {
                            input @ Json::Object(_) => input.clone(),
                            _ => Json::Object(Vec::new()),
                        };
                        object([
                            ("type", "tool_use".into()),
                            ("id", call.id.as_str().into()),
                            ("name", call.name.as_str().into()),
                            ("input", input),
                        ])
                    });
                    ("assistant", words.into_iter().chain(calls).collect())
                }
                Entry::Tools(results) => (
                    "user",
                    results
                        .iter()
                        .map(|told| {
                            object([
                                ("type", "tool_result".into()),
                                ("tool_use_id", told.id.as_str().into()),
                                ("content", told.text.as_str().into()),
                                ("is_error", (!told.ok).into()),
                            ])
                        })
                        .collect::<Vec<_>>(),
                ),
            };
            // All up to here is the same in the next request.
            if index == last
                && let Some(block) = blocks.pop()
            {
                blocks.push(cached(block));
            }
            object([("role", role.into()), ("content", blocks.into())])
        })
        .collect::<Vec<_>>();
    object([
        ("model", setting.model.as_str().into()),
        ("max_tokens", setting.max_tokens.into()),
        ("system", vec![cached(text_block(&setting.system))].into()),
        ("tools", tools.into()),
        ("messages", messages.into()),
    ])
    .write()
}

fn openai_request(setting: &Setting, tools: &[Description], entries: &[Entry]) -> String {
    let tools = tools
        .iter()
        .map(|tool| {
            object([
                ("type", "function".into()),
                (
                    "function",
                    object([
                        ("name", tool.name.into()),
                        ("description", tool.about.into()),
                        ("parameters", tool.schema.clone()),
                    ]),
                ),
            ])
        })
        .collect::<Vec<_>>();
    let message = |role: &str, text: &str| object([("role", role.into()), ("content", text.into())]);
    let mut messages = vec![message("system", &setting.system)];
    for entry in entries {
        match entry {
            Entry::User(text) => messages.push(message("user", text)),
            Entry::Model { text, calls } => {
                let mut said = message("assistant", text);
                if !calls.is_empty() {
                    let calls = calls.iter().map(|call| {
                        let arguments = match &call.input {
                            Json::Text(raw) => raw.clone(),
                            input => input.write(),
                        };
                        object([
                            ("id", call.id.as_str().into()),
                            ("type", "function".into()),
                            (
                                "function",
                                object([
                                    ("name", call.name.as_str().into()),
                                    ("arguments", arguments.into()),
                                ]),
                            ),
                        ])
                    });
                    said.set("tool_calls", Json::List(calls.collect()));
                }
                messages.push(said);
            }
            Entry::Tools(results) => messages.extend(results.iter().map(|told| {
                let text = if told.ok { told.text.clone() } else { format!("ERROR: {}", told.text) };
                object([
                    ("role", "tool".into()),
                    ("tool_call_id", told.id.as_str().into()),
                    ("content", text.into()),
                ])
            })),
        }
    }
    // OpenAI's own reasoning models refuse the old name, other servers do not know the new one.
    let limit = if is_openais_own(&setting.model) { "max_completion_tokens" } else { "max_tokens" };
    object([
        ("model", setting.model.as_str().into()),
        (limit, setting.max_tokens.into()),
        ("tools", tools.into()),
        ("messages", messages.into()),
    ])
    .write()
}

fn is_openais_own(model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or(model);
    let series = name.strip_prefix('o').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    series || name.starts_with("chatgpt") || (name.starts_with("gpt-") && !name.starts_with("gpt-oss"))
}

/// The model's answer to a request.
pub fn reply(api: Api, body: &[u8]) -> Result<Reply, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the answer is not UTF-8".to_owned())?;
    let json = Json::parse(text).map_err(|problem| format!("the answer is not JSON: {problem}"))?;
    match api {
        Api::Anthropic => anthropic_reply(&json),
        Api::OpenAi => openai_reply(&json),
    }
}

fn anthropic_reply(json: &Json) -> Result<Reply, String> {
    let blocks = json.get("content").ok_or("the answer has no content")?.list();
    let mut text = String::new();
    let mut calls = Vec::new();
    for block in blocks {
        match block.text_of("type") {
            Some("text") => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(block.text_of("text").unwrap_or_default());
            }
            Some("tool_use") => calls.push(Call {
                id: block.text_of("id").unwrap_or_default().to_owned(),
                name: block.text_of("name").unwrap_or_default().to_owned(),
                input: block.get("input").cloned().unwrap_or(Json::Null),
            }),
            _ => {}
        }
    }
    let usage = json.get("usage").cloned().unwrap_or(Json::Null);
    let count = |name: &str| usage.count_of(name).unwrap_or(0);
    Ok(Reply {
        text,
        calls,
        cut: json.text_of("stop_reason") == Some("max_tokens"),
        tokens: Tokens {
            input: count("input_tokens"),
            output: count("output_tokens"),
            cache_read: count("cache_read_input_tokens"),
            cache_write: count("cache_creation_input_tokens"),
        },
    })
}

fn openai_reply(json: &Json) -> Result<Reply, String> {
    let choice =
        json.get("choices").and_then(|choices| choices.list().first()).ok_or("the answer has no choice")?;
    let message = choice.get("message").ok_or("the answer has no message")?;
    let words = message.text_of("content").or_else(|| message.text_of("refusal")).unwrap_or_default();
    let calls = message.get("tool_calls").map_or(&[][..], Json::list).iter().map(|call| {
        let function = call.get("function");
        let raw = function.and_then(|function| function.text_of("arguments")).unwrap_or_default();
        // Some servers write nothing where there are no arguments.
        let input = Json::parse(if raw.trim().is_empty() { "{}" } else { raw });
        Call {
            id: call.text_of("id").unwrap_or_default().to_owned(),
            name: function.and_then(|function| function.text_of("name")).unwrap_or_default().to_owned(),
            input: input.unwrap_or_else(|_| Json::Text(raw.to_owned())),
        }
    });
    let usage = json.get("usage").cloned().unwrap_or(Json::Null);
    let cached =
        usage.get("prompt_tokens_details").and_then(|details| details.count_of("cached_tokens")).unwrap_or(0);
    let input = usage.count_of("prompt_tokens").unwrap_or(0);
    Ok(Reply {
        text: words.to_owned(),
        calls: calls.collect(),
        cut: choice.text_of("finish_reason") == Some("length"),
        tokens: Tokens {
            input: input.saturating_sub(cached),
            output: usage.count_of("completion_tokens").unwrap_or(0),
            cache_read: cached.min(input),
            cache_write: 0,
        },
    })
}

/// What an error answer says, in one line; both APIs have `error.message`.
pub fn error_message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json = Json::parse(&text).unwrap_or(Json::Null);
    let error = json.get("error");
    let said = error.and_then(|error| error.text_of("message").or_else(|| error.text())).unwrap_or(&text);
    said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}

/// Bytes of a conversation, roughly as a request writes it.
pub fn size(entries: &[Entry]) -> usize {
    entries
        .iter()
        .map(|entry| match entry {
            Entry::User(text) => text.len() + 40,
            Entry::Model { text, calls } => {
                text.len() + calls.iter().map(|call| call.input.write().len() + 120).sum::<usize>() + 40
            }
            Entry::Tools(results) => results.iter().map(|told| told.text.len() + 120).sum(),
        })
        .sum()
}

/// Drops old tool outputs and long inputs until the conversation has at most `goal` bytes, oldest first. What was
/// asked at the beginning and the newest entries stay.
pub fn shrink(entries: &mut [Entry], goal: usize) {
    let mut size = size(entries);
    let end = entries.len().saturating_sub(KEPT_ENTRIES);
    for entry in entries.iter_mut().take(end) {
        if size <= goal {
            return;
        }
        match entry {
            Entry::User(_) => {}
            Entry::Model { calls, .. } => {
                for call in calls {
                    let before = call.input.write().len();
                    drop_long_texts(&mut call.input);
                    size = size.saturating_sub(before.saturating_sub(call.input.write().len()));
                }
            }
            Entry::Tools(results) => {
                for told in results.iter_mut().filter(|told| told.text.len() > WORTH_DROPPING) {
                    size = size.saturating_sub(told.text.len() - DROPPED.len());
                    told.text = DROPPED.into();
                }
            }
        }
    }
}

fn drop_long_texts(json: &mut Json) {
    match json {
        Json::Text(text) if text.len() > WORTH_DROPPING => *text = DROPPED.into(),
        Json::List(items) => items.iter_mut().for_each(drop_long_texts),
        Json::Object(members) => members.iter_mut().for_each(|(_, value)| drop_long_texts(value)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::tools::{NAMES, descriptions};
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn entries() -> Vec<Entry> {
        let call = |id: &str, input: Json| Call { id: id.into(), name: "read".into(), input };
        vec![
            Entry::User("Fix it".into()),
            Entry::Model {
                text: "I look.".into(),
                calls: vec![
                    call("1", object([("path", "a \"b\"".into())])),
                    call("2", Json::Text("{broken".into())),
                ],
            },
            Entry::Tools(vec![
                Told { id: "1".into(), ok: true, text: "content".into() },
                Told { id: "2".into(), ok: false, text: "no".into() },
            ]),
        ]
    }

    fn body(api: Api, model: &str) -> Value {
        let setting = Setting { api, model: model.into(), system: "You fix.".into(), max_tokens: 8192 };
        let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        serde_json::from_str(&request(&setting, &descriptions(&names), &entries())).unwrap()
    }

    #[test]
    fn a_request_to_anthropic_has_its_shape() {
        let body = body(Api::Anthropic, "claude-sonnet-4-5");
        let cache = json!({"type": "ephemeral"});
        assert_eq!(body["max_tokens"], 8192);
        assert_eq!(body["system"], json!([{"type": "text", "text": "You fix.", "cache_control": cache}]));
        assert_eq!(body["tools"].as_array().unwrap().len(), 6);
        assert_eq!(body["tools"][0]["input_schema"]["type"], "object");
        assert_eq!(
            body["messages"],
            json!([
                {"role": "user", "content": [{"type": "text", "text": "Fix it"}]},
                {"role": "assistant", "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "1", "name": "read", "input": {"path": "a \"b\""}},
                    {"type": "tool_use", "id": "2", "name": "read", "input": {}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "content", "is_error": false},
                    {"type": "tool_result", "tool_use_id": "2", "content": "no", "is_error": true,
                     "cache_control": cache},
                ]},
            ])
        );
    }

    #[test]
    fn a_request_to_openai_has_its_shape() {
        let body = body(Api::OpenAi, "gpt-5-mini");
        assert_eq!(body["max_completion_tokens"], 8192);
        assert_eq!(body["tools"][5]["function"]["name"], "finish");
        assert_eq!(
            body["messages"],
            json!([
                {"role": "system", "content": "You fix."},
                {"role": "user", "content": "Fix it"},
                {"role": "assistant", "content": "I look.", "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "read", "arguments": "{\"path\":\"a \\\"b\\\"\"}"}},
                    {"id": "2", "type": "function", "function": {"name": "read", "arguments": "{broken"}},
                ]},
                {"role": "tool", "tool_call_id": "1", "content": "content"},
                {"role": "tool", "tool_call_id": "2", "content": "ERROR: no"},
            ])
        );
        for (model, own) in [
            ("o3", true),
            ("gpt-4.1", true),
            ("openai/gpt-5", true),
            ("gpt-oss-120b", false),
            ("olmo-2", false),
            ("qwen3-coder", false),
        ] {
            assert_eq!(is_openais_own(model), own, "{model}");
        }
    }

    #[test]
    fn answers_of_both_are_read() {
        let anthropic = json!({
            "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Well."},
                {"type": "tool_use", "id": "t1", "name": "run", "input": {"command": "ls"}}],
            "stop_reason": "tool_use",
            "usage": {"input_tokens": 5, "output_tokens": 6, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 8},
        });
        let openai = json!({
            "choices": [{"message": {"role": "assistant", "content": "Well.", "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "run", "arguments": "{\"command\":\"ls\"}"}}]},
                "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 7}},
        });
        let call = Call { id: "t1".into(), name: "run".into(), input: object([("command", "ls".into())]) };
        let first = reply(Api::Anthropic, anthropic.to_string().as_bytes()).unwrap();
        let second = reply(Api::OpenAi, openai.to_string().as_bytes()).unwrap();
        for (reply, cache_write) in [(first, 8), (second, 0)] {
            assert_eq!((reply.text.as_str(), reply.cut), ("Well.", false));
            assert_eq!(reply.calls, std::slice::from_ref(&call));
            assert_eq!(reply.tokens, Tokens { input: 5, output: 6, cache_read: 7, cache_write });
        }
        let cut = json!({"choices": [{"message": {"content": null, "tool_calls": [
            {"id": "1", "function": {"name": "edit", "arguments": "{\"path\":"}}]}, "finish_reason": "length"}]});
        let cut = reply(Api::OpenAi, cut.to_string().as_bytes()).unwrap();
        assert!(cut.cut && cut.calls[0].input == Json::Text("{\"path\":".into()));
        for bad in ["", "{}", "[]", "{\"choices\":[]}", "\u{1}"] {
            assert!(
                reply(Api::OpenAi, bad.as_bytes()).is_err() && reply(Api::Anthropic, bad.as_bytes()).is_err()
            );
        }
    }

    #[test]
    fn errors_are_told_in_their_own_words() {
        for (body, said) in [
            (r#"{"type":"error","error":{"type":"x","message":"too\nmuch"}}"#, "too much"),
            (r#"{"error":{"message":"bad key"}}"#, "bad key"),
            (r#"{"error":"plain"}"#, "plain"),
            ("<html>", "<html>"),
        ] {
            assert_eq!(error_message(body.as_bytes()), said);
        }
    }

    #[test]
    fn old_outputs_are_dropped_first_and_the_request_stays() {
        let mut all = vec![Entry::User("u".repeat(5_000))];
        for n in 0..20 {
            let input = object([("content", "c".repeat(3_000).into()), ("path", "p".into())]);
            all.push(Entry::Model {
                text: format!("say {n}"),
                calls: vec![Call { id: n.to_string(), name: "edit".into(), input }],
            });
            all.push(Entry::Tools(vec![Told { id: n.to_string(), ok: true, text: "t".repeat(5_000) }]));
        }
        shrink(&mut all, 100_000);
        assert!(size(&all) <= 100_000, "{}", size(&all));
        assert_eq!(all[0], Entry::User("u".repeat(5_000)));
        let tools = |entry: &Entry| match entry {
            Entry::Tools(results) => results[0].text.len(),
            _ => 0,
        };
        assert_eq!(tools(&all[2]), DROPPED.len());
        assert_eq!(tools(all.last().unwrap()), 5_000);
        let before = all.clone();
        shrink(&mut all, 100_000);
        assert_eq!(all, before, "what fits is left alone");
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for api in [Api::Anthropic, Api::OpenAi] {
                let _ = reply(api, &bytes);
            }
            let _ = error_message(&bytes);
        }
    }
}
