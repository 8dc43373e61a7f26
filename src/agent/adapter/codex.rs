//! Codex, headless: `codex exec --json`. Flags and lines as of version 0.169.0.
//!
//! The project is never trusted, so that Codex ignores `.codex/` of the repository; it does read `AGENTS.md` and
//! `.agents/skills/`, which are masked. The tools of the MCP endpoint reach the model as a namespace, by Codex's own search
//! among its tools, or inside its `exec`, depending on the model; all three are the client's own affair.

use super::{
    Launch, LaunchContext, MAX_EVENT_TEXT_BYTES, MCP_SERVER, MCP_URL, OPENAI_BASE_URL, PLACEHOLDER_KEY,
    answer, classify, string, summary, text, too_long, usage,
};
use crate::agent::AgentEvent;
use crate::domain::sanitize::one_line;
use serde_json::Value;

/// Off: what reaches for the network, for other programs, or for questions that nobody answers.
const FEATURES_OFF: &[&str] = &[
    "apps",
    "browser_use",
    "computer_use",
    "goals",
    "hooks",
    "image_generation",
    "memories",
    "plugins",
    "remote_plugin",
    "shell_snapshot",
    "skill_mcp_dependency_install",
    "tool_suggest",
];

pub(super) fn launch(context: &LaunchContext<'_>) -> Launch {
    let home = context.home.join(".codex");
    let argv = ["codex", "exec", "--json", "--skip-git-repo-check"]
        .into_iter()
        // The container is the sandbox; a question would wait for ever.
        .chain(["--dangerously-bypass-approvals-and-sandbox", "-"])
        .map(str::to_owned)
        .collect();
    let mut home_files = vec![(".codex/config.toml".to_owned(), config(context).into_bytes())];
    for skill in context.skills {
        home_files.push((format!(".codex/skills/{}/SKILL.md", skill.name), skill.text.clone().into_bytes()));
    }
    Launch {
        argv,
        env: vec![
            ("CODEX_HOME".to_owned(), home.to_string_lossy().into_owned()),
            ("OPENAI_API_KEY".to_owned(), PLACEHOLDER_KEY.to_owned()),
        ],
        stdin: context.prompt.as_bytes().to_vec(),
        home_files,
        needs_model: true,
        notes: Vec::new(),
    }
}

fn config(context: &LaunchContext<'_>) -> String {
    let mut config = toml::Table::new();
    let mut set = |key: &str, value: toml::Value| drop(config.insert(key.to_owned(), value));
    if let Some(model) = context.model.or(context.spec.model.as_deref()) {
        set("model", model.into());
    }
    set("model_provider", "zeblit".into());
    set("developer_instructions", context.spec.system_prompt.clone().into());
    set("web_search", "disabled".into());
    set("check_for_update_on_startup", false.into());
    set("analytics", toml::toml! { enabled = false }.into());
    set("agents", toml::toml! { enabled = false }.into());
    let off = FEATURES_OFF.iter().map(|name| ((*name).to_owned(), toml::Value::from(false)));
    set("features", off.collect::<toml::Table>().into());
    let mut provider = toml::toml! {
        name = "zeblit"
        wire_api = "responses"
        env_key = "OPENAI_API_KEY"
        requires_openai_auth = false
        request_max_retries = 4
        stream_max_retries = 2
    };
    provider.insert("base_url".to_owned(), OPENAI_BASE_URL.into());
    let providers = toml::Table::from_iter([("zeblit".to_owned(), toml::Value::from(provider))]);
    set("model_providers", providers.into());
    let mut mcp = toml::toml! { default_tools_approval_mode = "approve" };
    mcp.insert("url".to_owned(), MCP_URL.into());
    let servers = toml::Table::from_iter([(MCP_SERVER.to_owned(), toml::Value::from(mcp))]);
    set("mcp_servers", servers.into());
    config.to_string()
}

pub(super) fn parse_line(line: &str) -> Vec<AgentEvent> {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return too_long(line) };
    let item = event.get("item").unwrap_or(&Value::Null);
    match string(&event, "type") {
        "thread.started" => vec![AgentEvent::Session { id: one_line(string(&event, "thread_id"), 100) }],
        "turn.started" | "item.updated" => Vec::new(),
        "item.started" => started(item).into_iter().collect(),
        "item.completed" => completed(item),
        "turn.completed" => {
            let tokens = event.get("usage").unwrap_or(&Value::Null);
            let count = |name: &str| tokens.get(name).and_then(Value::as_i64).unwrap_or(0);
            let (cached, written) = (count("cached_input_tokens"), count("cache_write_input_tokens"));
            let input = count("input_tokens").saturating_sub(cached).saturating_sub(written);
            usage(input, count("output_tokens"), cached, written)
        }
        "turn.failed" => {
            let said = event.get("error").map_or("", |error| string(error, "message"));
            vec![classify(None, said)]
        }
        // Its own retries; what finally fails is the turn.
        "error" => text(string(&event, "message"), MAX_EVENT_TEXT_BYTES).into_iter().collect(),
        _ => text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect(),
    }
}

/// The name of a tool and what the call does; `None`: the item is not a tool call.
fn call(item: &Value) -> Option<(String, String)> {
    let first = |list: &str, field: &str| {
        let paths = item.get(list).and_then(Value::as_array)?.iter().map(|entry| string(entry, field));
        Some(paths.collect::<Vec<_>>().join(" "))
    };
    let (tool, shown) = match string(item, "type") {
        "command_execution" => ("shell".to_owned(), summary(item)),
        "file_change" => ("apply_patch".to_owned(), first("changes", "path").unwrap_or_default()),
        "mcp_tool_call" => (
            format!("{}.{}", string(item, "server"), string(item, "tool")),
            summary(item.get("arguments").unwrap_or(&Value::Null)),
        ),
        "web_search" => ("web_search".to_owned(), string(item, "query").to_owned()),
        _ => return None,
    };
    Some((one_line(&tool, 64), one_line(&shown, super::MAX_SUMMARY_CHARS)))
}

fn started(item: &Value) -> Option<AgentEvent> {
    call(item).map(|(tool, summary)| AgentEvent::ToolStart { tool, summary })
}

fn completed(item: &Value) -> Vec<AgentEvent> {
    if let Some((tool, _)) = call(item) {
        let ok = matches!(string(item, "status"), "completed" | "");
        return vec![AgentEvent::ToolEnd { tool, ok }];
    }
    match string(item, "type") {
        "agent_message" => answer(&format!("{}\n\n", string(item, "text").trim_end())),
        "error" => text(string(item, "message"), MAX_EVENT_TEXT_BYTES).into_iter().collect(),
        // Thinking and checklists are the model's own affair and not part of the log.
        _ => Vec::new(),
    }
}
