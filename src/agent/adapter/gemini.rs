//! Gemini CLI, headless: `gemini --output-format stream-json`. Flags and lines as of version 0.61.0.
//!
//! It works without a person only in a trusted folder, where it reads the repository's `.gemini/`, `.env`, skills and
//! memory files: all of them are masked. The image's `/etc/gemini-cli/settings.json` wins over what a base branch sets.

use super::{
    GEMINI_BASE_URL, Launch, LaunchContext, MAX_EVENT_TEXT_BYTES, MCP_SERVER, MCP_URL, PLACEHOLDER_KEY,
    answer, classify, string, summary, text, too_long, usage,
};
use crate::agent::AgentEvent;
use crate::domain::run::RunMode;
use crate::domain::sanitize::one_line;
use serde_json::{Value, json};

/// Never: they run at the model provider or reach for the network; the last would ask a person.
const REFUSED_TOOLS: &[&str] = &["google_web_search", "web_fetch", "enter_plan_mode", "ask_user"];
/// Not in a run that changes nothing.
const WRITE_TOOLS: &[&str] = &["replace", "write_file"];

pub(super) fn launch(context: &LaunchContext<'_>) -> Launch {
    let spec = context.spec;
    let mut argv: Vec<String> = ["gemini", "--output-format", "stream-json", "--approval-mode", "yolo"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    if let Some(model) = context.model.or(spec.model.as_deref()) {
        argv.extend(["--model".to_owned(), model.to_owned()]);
    }
    let mut refused = REFUSED_TOOLS.to_vec();
    if spec.read_only || context.mode == RunMode::ReadOnly {
        refused.extend(WRITE_TOOLS);
    }
    let settings = json!({
        "general": {"enableAutoUpdate": false, "enableAutoUpdateNotification": false},
        "privacy": {"usageStatisticsEnabled": false},
        "telemetry": {"enabled": false},
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "hooksConfig": {"enabled": false},
        "experimental": {"enableAgents": false},
        "tools": {"sandbox": false, "exclude": refused},
        "mcp": {"allowed": [MCP_SERVER]},
        "mcpServers": {MCP_SERVER: {"httpUrl": MCP_URL, "trust": true}},
    });
    let mut home_files = vec![
        (".gemini/settings.json".to_owned(), settings.to_string().into_bytes()),
        // Its own memory file for all projects, added to every system prompt.
        (".gemini/GEMINI.md".to_owned(), spec.system_prompt.clone().into_bytes()),
    ];
    for skill in context.skills {
        home_files.push((format!(".gemini/skills/{}/SKILL.md", skill.name), skill.text.clone().into_bytes()));
    }
    let env = [
        ("GOOGLE_GEMINI_BASE_URL", GEMINI_BASE_URL),
        ("GEMINI_API_KEY", PLACEHOLDER_KEY),
        ("GEMINI_CLI_TRUST_WORKSPACE", "true"),
        // It would start itself again as a child with more memory.
        ("GEMINI_CLI_NO_RELAUNCH", "true"),
        ("NO_COLOR", "1"),
    ];
    Launch {
        argv,
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        stdin: context.prompt.as_bytes().to_vec(),
        home_files,
        needs_model: true,
        notes: Vec::new(),
    }
}

pub(super) fn parse_line(line: &str) -> Vec<AgentEvent> {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return too_long(line) };
    match string(&event, "type") {
        "init" => vec![AgentEvent::Session { id: one_line(string(&event, "session_id"), 100) }],
        // The prompt comes back as the first message.
        "message" if string(&event, "role") == "user" => Vec::new(),
        "message" => answer(string(&event, "content")),
        "tool_use" => vec![AgentEvent::ToolStart {
            tool: one_line(string(&event, "tool_name"), 64),
            summary: summary(event.get("parameters").unwrap_or(&Value::Null)),
        }],
        "tool_result" => vec![AgentEvent::ToolEnd {
            // The line names the call, not the tool; the call's id begins with the tool's name.
            tool: one_line(string(&event, "tool_id").split("__").next().unwrap_or(""), 64),
            ok: string(&event, "status") == "success",
        }],
        "result" => {
            let stats = event.get("stats").unwrap_or(&Value::Null);
            let count = |name: &str| stats.get(name).and_then(Value::as_i64).unwrap_or(0);
            let mut events = usage(count("input"), count("output_tokens"), count("cached"), 0);
            if string(&event, "status") != "success" {
                let said = event.get("error").map_or("", |error| string(error, "message"));
                events.push(classify(None, said));
            }
            events
        }
        "error" => text(string(&event, "message"), MAX_EVENT_TEXT_BYTES).into_iter().collect(),
        _ => text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect(),
    }
}
