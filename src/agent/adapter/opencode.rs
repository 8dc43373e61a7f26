//! opencode, headless: `opencode run --format json`. Flags and lines as of version 1.18.33.
//!
//! Its project configuration is switched off; it still looks for skills, plugins and memory files of the repository,
//! which are masked.

use super::{
    ANTHROPIC_BASE_URL, GEMINI_BASE_URL, Launch, LaunchContext, MAX_EVENT_TEXT_BYTES, MCP_SERVER, MCP_URL,
    OPENAI_BASE_URL, PLACEHOLDER_KEY, answer, classify, string, summary, text, too_long, usage,
};
use crate::agent::AgentEvent;
use crate::domain::run::RunMode;
use crate::domain::sanitize::one_line;
use serde_json::{Value, json};

/// Tokens that it may put into one request and expect in one answer; it shortens its history before that.
const CONTEXT_TOKENS: i64 = 200_000;
const OUTPUT_TOKENS: i64 = 32_000;

const SWITCHES: &[&str] = &[
    "OPENCODE_DISABLE_PROJECT_CONFIG",
    "OPENCODE_DISABLE_AUTOUPDATE",
    "OPENCODE_DISABLE_MODELS_FETCH",
    "OPENCODE_DISABLE_LSP_DOWNLOAD",
    "OPENCODE_DISABLE_CLAUDE_CODE",
    "OPENCODE_DISABLE_EXTERNAL_SKILLS",
];

/// The bundled client for a model, and where the broker speaks its protocol.
fn client(model: &str) -> (&'static str, String) {
    let family = model.rsplit('/').next().unwrap_or(model);
    if family.starts_with("claude") {
        ("@ai-sdk/anthropic", format!("{ANTHROPIC_BASE_URL}/v1"))
    } else if family.starts_with("gemini") {
        ("@ai-sdk/google", format!("{GEMINI_BASE_URL}/v1beta"))
    } else if family.starts_with("gpt-") {
        ("@ai-sdk/openai", OPENAI_BASE_URL.to_owned())
    } else {
        // Chat Completions, which gateways and local models speak.
        ("@ai-sdk/openai-compatible", OPENAI_BASE_URL.to_owned())
    }
}

pub(super) fn launch(context: &LaunchContext<'_>) -> Launch {
    let spec = context.spec;
    let model = context.model.or(spec.model.as_deref()).unwrap_or("default");
    let read_only = spec.read_only || context.mode == RunMode::ReadOnly;
    let argv = ["opencode", "run", "--pure", "--auto", "--title", "zeblit", "--format", "json", "--model"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("zeblit/{model}")])
        .collect();
    let (npm, base_url) = client(model);
    let models = json!({model: {
        "name": model, "tool_call": true, "limit": {"context": CONTEXT_TOKENS, "output": OUTPUT_TOKENS},
    }});
    let config = json!({
        "autoupdate": false,
        "share": "disabled",
        // Copies of the work tree for its `/undo`.
        "snapshot": false,
        "model": format!("zeblit/{model}"),
        "small_model": format!("zeblit/{model}"),
        "enabled_providers": ["zeblit"],
        "provider": {"zeblit": {
            "npm": npm,
            "name": "zeblit",
            "options": {"baseURL": base_url, "apiKey": PLACEHOLDER_KEY},
            "models": models,
        }},
        "permission": {
            "edit": if read_only { "deny" } else { "allow" },
            "bash": "allow",
            "webfetch": "deny",
            "websearch": "deny",
        },
        "mcp": {MCP_SERVER: {"type": "remote", "url": MCP_URL, "enabled": true, "oauth": false}},
    });
    let folder = ".config/opencode";
    let mut home_files = vec![
        (format!("{folder}/opencode.json"), config.to_string().into_bytes()),
        // Its own memory file for all projects, added to every system prompt.
        (format!("{folder}/AGENTS.md"), spec.system_prompt.clone().into_bytes()),
    ];
    for skill in context.skills {
        home_files
            .push((format!("{folder}/skills/{}/SKILL.md", skill.name), skill.text.clone().into_bytes()));
    }
    let below_home = |path: &str| context.home.join(path).to_string_lossy().into_owned();
    let mut env: Vec<(String, String)> =
        SWITCHES.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
    for (name, path) in [
        ("XDG_CONFIG_HOME", ".config"),
        ("XDG_DATA_HOME", ".local/share"),
        ("XDG_STATE_HOME", ".local/state"),
        ("XDG_CACHE_HOME", ".cache"),
    ] {
        env.push((name.to_owned(), below_home(path)));
    }
    Launch {
        argv,
        env,
        stdin: context.prompt.as_bytes().to_vec(),
        home_files,
        needs_model: true,
        notes: Vec::new(),
    }
}

pub(super) fn parse_line(line: &str) -> Vec<AgentEvent> {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return too_long(line) };
    let part = event.get("part").unwrap_or(&Value::Null);
    match string(&event, "type") {
        "step_start" => vec![AgentEvent::Session { id: one_line(string(&event, "sessionID"), 100) }],
        "text" => answer(&format!("{}\n\n", string(part, "text").trim_end())),
        "tool_use" => {
            let tool = one_line(string(part, "tool"), 64);
            let state = part.get("state").unwrap_or(&Value::Null);
            let summary = summary(state.get("input").unwrap_or(&Value::Null));
            // A name that it does not know becomes the tool `invalid`, which always completes.
            let exit =
                state.get("metadata").and_then(|of| of.get("exit")).and_then(Value::as_i64).unwrap_or(0);
            let ok = string(state, "status") == "completed" && tool != "invalid" && exit == 0;
            vec![AgentEvent::ToolStart { tool: tool.clone(), summary }, AgentEvent::ToolEnd { tool, ok }]
        }
        "step_finish" => {
            let tokens = part.get("tokens").unwrap_or(&Value::Null);
            let cache = tokens.get("cache").unwrap_or(&Value::Null);
            let count = |from: &Value, name: &str| from.get(name).and_then(Value::as_i64).unwrap_or(0);
            let output = count(tokens, "output").saturating_add(count(tokens, "reasoning"));
            usage(count(tokens, "input"), output, count(cache, "read"), count(cache, "write"))
        }
        "error" => {
            let error = event.get("error").unwrap_or(&Value::Null);
            let data = error.get("data").unwrap_or(&Value::Null);
            let said = match string(data, "message") {
                "" => string(error, "name"),
                said => said,
            };
            vec![classify(data.get("statusCode").and_then(Value::as_i64), said)]
        }
        "reasoning" => Vec::new(),
        _ => text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect(),
    }
}
