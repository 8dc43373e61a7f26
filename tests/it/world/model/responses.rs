//! The wire format of OpenAI's Responses API.

use super::Reply;
use serde_json::{Value, json};

fn items(reply: &Reply) -> Vec<Value> {
    let mut items = Vec::new();
    if !reply.text.is_empty() {
        items.push(json!({
            "type": "message",
            "id": format!("msg_{}", reply.number),
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": reply.text, "annotations": []}],
        }));
    }
    for (index, (name, input)) in reply.calls.iter().enumerate() {
        items.push(call(&format!("{}_{index}", reply.number), name, input));
    }
    items
}

fn call(number: &str, name: &str, input: &Value) -> Value {
    let call_id = format!("call_{number}");
    if name == "tool_search" {
        return json!({
            "type": "tool_search_call",
            "id": format!("ts_{number}"),
            "call_id": call_id,
            "execution": "client",
            "status": "completed",
            "arguments": input,
        });
    }
    let (namespace, name) = match name.split_once('.') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, name),
    };
    let mut item = match input {
        Value::String(text) => {
            json!({"type": "custom_tool_call", "id": format!("ctc_{number}"), "input": text})
        }
        input => {
            json!({"type": "function_call", "id": format!("fc_{number}"), "arguments": input.to_string()})
        }
    };
    item["call_id"] = json!(call_id);
    item["name"] = json!(name);
    item["status"] = json!("completed");
    if let Some(namespace) = namespace {
        item["namespace"] = json!(namespace);
    }
    item
}

fn response(reply: &Reply, status: &str, output: Vec<Value>, usage: Value) -> Value {
    json!({
        "id": format!("resp_{}", reply.number),
        "object": "response",
        "created_at": 1_795_000_000,
        "status": status,
        "model": reply.model,
        "output": output,
        "usage": usage,
        "error": null,
        "incomplete_details": null,
    })
}

/// Its input includes what was cached, and its output what was thought.
fn counts(reply: &Reply) -> Value {
    let usage = &reply.usage;
    let input = usage.input + usage.cache_read + usage.cache_write;
    json!({
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.output / 3},
        "total_tokens": input + usage.output,
    })
}

pub(super) fn whole(reply: &Reply) -> Value {
    response(reply, "completed", items(reply), counts(reply))
}

pub(super) fn events(reply: &Reply) -> Vec<String> {
    let mut events = vec![
        json!({"type": "response.created", "response": response(reply, "in_progress", vec![], Value::Null)}),
    ];
    let items = items(reply);
    for (index, item) in items.iter().enumerate() {
        let id = &item["id"];
        // As it begins: with nothing in it.
        let mut begun = item.clone();
        begun["status"] = json!("in_progress");
        let (delta, whole) = match item["type"].as_str().unwrap() {
            "message" => {
                begun["content"] = json!([]);
                ("response.output_text.delta", item["content"][0]["text"].as_str().unwrap().to_owned())
            }
            "function_call" => {
                begun["arguments"] = json!("");
                ("response.function_call_arguments.delta", item["arguments"].as_str().unwrap().to_owned())
            }
            "custom_tool_call" => {
                begun["input"] = json!("");
                ("response.custom_tool_call_input.delta", item["input"].as_str().unwrap().to_owned())
            }
            _ => ("", String::new()),
        };
        events.push(json!({"type": "response.output_item.added", "output_index": index, "item": begun}));
        if item["type"] == "message" {
            events.push(json!({
                "type": "response.content_part.added", "item_id": id, "output_index": index, "content_index": 0,
                "part": {"type": "output_text", "text": "", "annotations": []},
            }));
        }
        if !delta.is_empty() {
            for part in reply.pieces(&whole) {
                events.push(json!({
                    "type": delta, "item_id": id, "output_index": index, "content_index": 0, "delta": part,
                }));
            }
        }
        if reply.cut {
            break;
        }
        match item["type"].as_str().unwrap() {
            "message" => {
                events.push(json!({
                    "type": "response.output_text.done", "item_id": id, "output_index": index,
                    "content_index": 0, "text": whole,
                }));
                events.push(json!({
                    "type": "response.content_part.done", "item_id": id, "output_index": index,
                    "content_index": 0, "part": item["content"][0],
                }));
            }
            "function_call" => events.push(json!({
                "type": "response.function_call_arguments.done", "item_id": id, "output_index": index,
                "arguments": whole,
            })),
            _ => {}
        }
        events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
    }
    if !reply.cut {
        let end = response(reply, "completed", items, counts(reply));
        events.push(json!({"type": "response.completed", "response": end}));
    }
    events
        .iter_mut()
        .enumerate()
        .map(|(number, event)| {
            event["sequence_number"] = json!(number);
            format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())
        })
        .collect()
}
