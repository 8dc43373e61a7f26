//! The wire format of the Gemini API.

use super::Reply;
use serde_json::{Value, json};

/// Its prompt includes what was cached; what was thought is counted beside the answer.
fn counts(reply: &Reply) -> Value {
    let usage = &reply.usage;
    assert_eq!(usage.cache_write, 0, "Gemini has no price for what it writes to a cache");
    let (prompt, thoughts) = (usage.input + usage.cache_read, usage.output / 3);
    json!({
        "promptTokenCount": prompt,
        "cachedContentTokenCount": usage.cache_read,
        "candidatesTokenCount": usage.output - thoughts,
        "thoughtsTokenCount": thoughts,
        "totalTokenCount": prompt + usage.output,
    })
}

fn part(parts: Vec<Value>, finish: Option<&str>) -> Value {
    let mut candidate = json!({"index": 0, "content": {"role": "model", "parts": parts}});
    if let Some(finish) = finish {
        candidate["finishReason"] = json!(finish);
    }
    candidate
}

fn answer(reply: &Reply, candidate: Value) -> Value {
    json!({
        "candidates": [candidate],
        "modelVersion": "scripted",
        "responseId": format!("response-{}", reply.number),
    })
}

fn calls(reply: &Reply) -> Vec<Value> {
    let call = |(name, args): &(String, Value)| json!({"functionCall": {"name": name, "args": args}});
    reply.calls.iter().map(call).collect()
}

pub(super) fn whole(reply: &Reply) -> Value {
    let text = (!reply.text.is_empty()).then(|| json!({"text": reply.text}));
    let mut whole = answer(reply, part(text.into_iter().chain(calls(reply)).collect(), Some("STOP")));
    whole["usageMetadata"] = counts(reply);
    whole
}

pub(super) fn events(reply: &Reply) -> Vec<String> {
    let mut events = Vec::new();
    if !reply.text.is_empty() {
        for piece in reply.pieces(&reply.text) {
            events.push(answer(reply, part(vec![json!({"text": piece})], None)));
        }
    }
    if !reply.cut {
        // A part with nothing in it, as the real one ends a text.
        let mut parts = calls(reply);
        if parts.is_empty() {
            parts.push(json!({"text": ""}));
        }
        let mut last = answer(reply, part(parts, Some("STOP")));
        last["usageMetadata"] = counts(reply);
        events.push(last);
    }
    events.iter().map(|event| format!("data: {event}\r\n\r\n")).collect()
}
