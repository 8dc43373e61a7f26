//! The wire format of Anthropic's Messages API.

use super::Reply;
use serde_json::{Value, json};
use zeblit::domain::budget::Usage;

fn blocks(reply: &Reply) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !reply.text.is_empty() {
        blocks.push(json!({"type": "text", "text": reply.text}));
    }
    for (index, (name, input)) in reply.calls.iter().enumerate() {
        let id = format!("toolu_{}_{index}", reply.number);
        blocks.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
    }
    blocks
}

fn stop(reply: &Reply) -> &'static str {
    if reply.calls.is_empty() { "end_turn" } else { "tool_use" }
}

fn counts(usage: &Usage, output: i64) -> Value {
    json!({
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": output,
    })
}

fn message(reply: &Reply) -> Value {
    json!({
        "id": format!("msg_{}", reply.number),
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": counts(&reply.usage, 1),
    })
}

pub(super) fn whole(reply: &Reply) -> Value {
    let mut message = message(reply);
    message["content"] = Value::Array(blocks(reply));
    message["stop_reason"] = json!(stop(reply));
    message["usage"] = counts(&reply.usage, reply.usage.output);
    message
}

/// Every block in two deltas.
pub(super) fn events(reply: &Reply) -> Vec<String> {
    let mut events = vec![json!({"type": "message_start", "message": message(reply)})];
    for (index, block) in blocks(reply).iter().enumerate() {
        let (start, kind, field, whole) = if block["type"] == "text" {
            let text = block["text"].as_str().unwrap().to_owned();
            (json!({"type": "text", "text": ""}), "text_delta", "text", text)
        } else {
            let mut start = block.clone();
            start["input"] = json!({});
            (start, "input_json_delta", "partial_json", block["input"].to_string())
        };
        events.push(json!({"type": "content_block_start", "index": index, "content_block": start}));
        for part in reply.pieces(&whole) {
            events.push(
                json!({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: part}}),
            );
        }
        if !reply.cut {
            events.push(json!({"type": "content_block_stop", "index": index}));
        }
    }
    if !reply.cut {
        events.push(json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop(reply), "stop_sequence": null},
            "usage": {"output_tokens": reply.usage.output},
        }));
        events.push(json!({"type": "message_stop"}));
    }
    events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()))
        .collect()
}
