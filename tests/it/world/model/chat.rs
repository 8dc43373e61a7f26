//! The wire format of OpenAI's Chat Completions API, which gateways and local servers speak, too.

use super::Reply;
use serde_json::{Value, json};

fn calls(reply: &Reply) -> Vec<Value> {
    reply
        .calls
        .iter()
        .enumerate()
        .map(|(index, (name, input))| {
            let id = format!("call_{}_{index}", reply.number);
            json!({"id": id, "type": "function", "function": {"name": name, "arguments": input.to_string()}})
        })
        .collect()
}

fn stop(reply: &Reply) -> &'static str {
    if reply.calls.is_empty() { "stop" } else { "tool_calls" }
}

/// Its prompt includes what was cached, and its completion what was thought.
fn counts(reply: &Reply) -> Value {
    let usage = &reply.usage;
    let prompt = usage.input + usage.cache_read + usage.cache_write;
    json!({
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "completion_tokens": usage.output,
        "completion_tokens_details": {"reasoning_tokens": usage.output / 3},
        "total_tokens": prompt + usage.output,
    })
}

fn completion(reply: &Reply, object: &str, choices: Value) -> Value {
    json!({
        "id": format!("chatcmpl-{}", reply.number),
        "object": object,
        "created": 1_795_000_000,
        "model": reply.model,
        "choices": choices,
    })
}

pub(super) fn whole(reply: &Reply) -> Value {
    let mut message = json!({"role": "assistant", "content": reply.text, "refusal": null});
    if !reply.calls.is_empty() {
        message["tool_calls"] = Value::Array(calls(reply));
    }
    let choices = json!([{"index": 0, "message": message, "finish_reason": stop(reply)}]);
    let mut completion = completion(reply, "chat.completion", choices);
    completion["usage"] = counts(reply);
    completion
}

pub(super) fn events(reply: &Reply) -> Vec<String> {
    let chunk = |delta: Value, finish: Value| {
        let choices = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        completion(reply, "chat.completion.chunk", choices)
    };
    let mut events = vec![chunk(json!({"role": "assistant", "content": ""}), Value::Null)];
    if !reply.text.is_empty() {
        for part in reply.pieces(&reply.text) {
            events.push(chunk(json!({"content": part}), Value::Null));
        }
    }
    for (index, mut call) in calls(reply).into_iter().enumerate() {
        let arguments = call["function"]["arguments"].as_str().unwrap().to_owned();
        call["index"] = json!(index);
        call["function"]["arguments"] = json!("");
        events.push(chunk(json!({"tool_calls": [call]}), Value::Null));
        for part in reply.pieces(&arguments) {
            let more = json!({"index": index, "function": {"arguments": part}});
            events.push(chunk(json!({"tool_calls": [more]}), Value::Null));
        }
    }
    let mut lines: Vec<String> = Vec::new();
    if !reply.cut {
        events.push(chunk(json!({}), json!(stop(reply))));
        let mut last = completion(reply, "chat.completion.chunk", json!([]));
        last["usage"] = counts(reply);
        events.push(last);
        lines.push("data: [DONE]\n\n".to_owned());
    }
    events.iter().map(|event| format!("data: {event}\n\n")).chain(lines).collect()
}
