//! Claude Code, headless: `claude -p --output-format stream-json`. Flags and lines as of version 2.1.329.

use super::{
    ANTHROPIC_BASE_URL, Launch, LaunchContext, MAX_EVENT_TEXT_BYTES, MAX_RESULT_BYTES, MCP_SERVER, MCP_URL,
    PLACEHOLDER_KEY,
};
use super::{capped, class_of, summary, text};
use crate::agent::AgentEvent;
use crate::domain::budget::Usage;
use crate::domain::run::{FailureClass, RunMode};
use crate::domain::sanitize::one_line;
use serde::Deserialize;
use serde_json::Value;

/// Tools that change files or run commands, and the ones to look around with.
const CHANGE_TOOLS: &[&str] = &["Bash", "Edit", "Glob", "Grep", "NotebookEdit", "Read", "Skill", "Write"];
const READ_ONLY_TOOLS: &[&str] = &["Bash", "Glob", "Grep", "Read", "Skill"];
/// Never: they run at the model provider or reach for the network.
const NETWORK_TOOLS: &[&str] = &["WebFetch", "WebSearch"];
/// Not in a run that changes nothing. (Whatever `Bash` changes there is thrown away with the workspace.)
const WRITE_TOOLS: &[&str] = &["Edit", "NotebookEdit", "Write"];

/// Where the system prompt lies below HOME; an argument would be limited to 128 KiB and visible to every `ps`.
const SYSTEM_PROMPT_FILE: &str = ".zeblit/system-prompt.md";

/// The tools of an agent that names none.
pub fn usual_tools(read_only: bool) -> &'static [&'static str] {
    if read_only { READ_ONLY_TOOLS } else { CHANGE_TOOLS }
}

/// Whether an agent file may name this tool.
pub fn check_tool(tool: &str, read_only: bool) -> Result<(), String> {
    let plain =
        !tool.is_empty() && tool.len() <= 64 && tool.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !plain {
        return Err(format!("`{tool}` is not a tool's name"));
    }
    if NETWORK_TOOLS.contains(&tool) {
        return Err(format!("`{tool}` is never available: there is no network"));
    }
    if read_only && WRITE_TOOLS.contains(&tool) {
        return Err(format!("`{tool}` contradicts `read_only: true`"));
    }
    Ok(())
}

pub(super) fn launch(context: &LaunchContext<'_>) -> Launch {
    let spec = context.spec;
    let read_only = spec.read_only || context.mode == RunMode::ReadOnly;
    let mut tools: Vec<&str> = spec.tools.iter().map(String::as_str).collect();
    if read_only {
        tools.retain(|tool| !WRITE_TOOLS.contains(tool));
    }
    if tools.is_empty() {
        tools = usual_tools(read_only).to_vec();
    }
    if !context.skills.is_empty() && !tools.contains(&"Skill") {
        tools.push("Skill");
    }
    let mut refused = NETWORK_TOOLS.to_vec();
    if read_only {
        refused.extend(WRITE_TOOLS);
    }
    let system_prompt = context.home.join(SYSTEM_PROMPT_FILE);
    let mut argv: Vec<String> = ["claude", "-p", "--output-format", "stream-json", "--verbose"]
        .into_iter()
        // The container is the permission system; a question would wait for ever.
        .chain(["--dangerously-skip-permissions"])
        // Nothing that the repository or an MCP server would configure.
        .chain(["--setting-sources", "user", "--strict-mcp-config"])
        .map(str::to_owned)
        .collect();
    argv.extend(["--mcp-config".to_owned(), mcp_config()]);
    argv.extend(["--tools".to_owned(), tools.join(","), "--disallowedTools".to_owned(), refused.join(",")]);
    argv.extend(["--append-system-prompt-file".to_owned(), system_prompt.to_string_lossy().into_owned()]);
    if let Some(model) = context.model.or(spec.model.as_deref()) {
        argv.extend(["--model".to_owned(), model.to_owned()]);
    }
    let env = [
        ("ANTHROPIC_BASE_URL", ANTHROPIC_BASE_URL.to_owned()),
        ("ANTHROPIC_API_KEY", PLACEHOLDER_KEY.to_owned()),
        // Lets it run without permission prompts as root, too.
        ("IS_SANDBOX", "1".to_owned()),
        ("DISABLE_TELEMETRY", "1".to_owned()),
        ("DISABLE_AUTOUPDATER", "1".to_owned()),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".to_owned()),
    ];
    let mut home_files = vec![(SYSTEM_PROMPT_FILE.to_owned(), spec.system_prompt.clone().into_bytes())];
    for skill in context.skills {
        home_files.push((format!(".claude/skills/{}/SKILL.md", skill.name), skill.text.clone().into_bytes()));
    }
    Launch {
        argv,
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        stdin: context.prompt.as_bytes().to_vec(),
        home_files,
        needs_model: true,
        notes: Vec::new(),
    }
}

/// The one MCP server: the broker's own.
fn mcp_config() -> String {
    serde_json::json!({"mcpServers": {MCP_SERVER: {"type": "http", "url": MCP_URL}}}).to_string()
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamLine {
    System(SystemLine),
    Assistant {
        message: Message,
    },
    User {
        message: Message,
    },
    Result(ResultLine),
    /// Known and of no interest: partial messages, limits of a subscription.
    StreamEvent,
    RateLimitEvent,
}

#[derive(Deserialize)]
struct SystemLine {
    #[serde(default)]
    subtype: String,
    #[serde(default)]
    session_id: String,
    #[serde(default)]
    attempt: i64,
    #[serde(default)]
    max_retries: i64,
    #[serde(default)]
    error_status: Option<i64>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Value,
    #[serde(default)]
    usage: Option<CliUsage>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CliUsage {
    input_tokens: i64,
    output_tokens: i64,
    cache_creation_input_tokens: i64,
    cache_read_input_tokens: i64,
}

#[derive(Deserialize)]
struct ResultLine {
    #[serde(default)]
    subtype: String,
    #[serde(default)]
    is_error: bool,
    #[serde(default)]
    api_error_status: Option<i64>,
    #[serde(default)]
    result: String,
    #[serde(default)]
    errors: Vec<Value>,
}

pub(super) fn parse_line(line: &str) -> Vec<AgentEvent> {
    let line = line.trim();
    if line.is_empty() {
        return Vec::new();
    }
    match serde_json::from_str::<StreamLine>(line) {
        Ok(StreamLine::System(system)) => system_events(system),
        Ok(StreamLine::Assistant { message }) => assistant_events(&message),
        Ok(StreamLine::User { message }) => tool_results(&message),
        Ok(StreamLine::Result(result)) => vec![result_event(&result)],
        Ok(StreamLine::StreamEvent | StreamLine::RateLimitEvent) => Vec::new(),
        Err(_) => cut_line(line)
            .map_or_else(|| text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect(), |event| vec![event]),
    }
}

fn system_events(line: SystemLine) -> Vec<AgentEvent> {
    match line.subtype.as_str() {
        "init" if !line.session_id.is_empty() => {
            vec![AgentEvent::Session { id: capped(&line.session_id, 100) }]
        }
        "api_retry" => {
            let status = line.error_status.map_or_else(|| "nothing".to_owned(), |status| status.to_string());
            vec![AgentEvent::Text {
                text: format!(
                    "The model endpoint answered {status}; retry {} of {}.",
                    line.attempt, line.max_retries
                ),
            }]
        }
        // Status lines of the CLI's own machinery, new ones with every version.
        _ => Vec::new(),
    }
}

/// The blocks of a message; a plain string is one text block.
fn blocks(message: &Message) -> Vec<&Value> {
    match &message.content {
        Value::Array(blocks) => blocks.iter().collect(),
        other => vec![other],
    }
}

fn assistant_events(message: &Message) -> Vec<AgentEvent> {
    let mut events = Vec::new();
    for block in blocks(message) {
        let field = |name: &str| block.get(name).and_then(Value::as_str);
        match (block.as_str(), field("type")) {
            (Some(plain), _) => events.extend(text(plain, MAX_EVENT_TEXT_BYTES)),
            (None, Some("text")) => {
                events.extend(field("text").and_then(|words| text(words, MAX_EVENT_TEXT_BYTES)));
            }
            (None, Some("tool_use")) => {
                let tool = field("name").unwrap_or("tool");
                events.push(AgentEvent::ToolStart {
                    tool: one_line(tool, 64),
                    summary: summary(block.get("input").unwrap_or(&Value::Null)),
                });
            }
            // Thinking is the model's own affair and not part of the log.
            _ => {}
        }
    }
    if let Some(usage) = &message.usage {
        let usage = Usage {
            input: usage.input_tokens,
            output: usage.output_tokens,
            cache_read: usage.cache_read_input_tokens,
            cache_write: usage.cache_creation_input_tokens,
        };
        if usage != Usage::default() {
            events.push(AgentEvent::Tokens { usage });
        }
    }
    events
}

fn tool_results(message: &Message) -> Vec<AgentEvent> {
    blocks(message)
        .into_iter()
        .filter(|block| block.get("type").and_then(Value::as_str) == Some("tool_result"))
        .map(|block| AgentEvent::ToolEnd {
            // The line names the call, not the tool.
            tool: one_line(block.get("tool_use_id").and_then(Value::as_str).unwrap_or(""), 64),
            ok: !block.get("is_error").and_then(Value::as_bool).unwrap_or(false),
        })
        .collect()
}

fn result_event(line: &ResultLine) -> AgentEvent {
    if !line.is_error && line.subtype == "success" {
        return AgentEvent::Result { ok: true, text: capped(&line.result, MAX_RESULT_BYTES) };
    }
    let errors: Vec<&str> = line.errors.iter().filter_map(Value::as_str).collect();
    let said = if line.result.is_empty() { errors.join("; ") } else { line.result.clone() };
    let detail = match line.subtype.as_str() {
        "success" | "" => said.clone(),
        subtype if said.is_empty() => subtype.replace('_', " "),
        subtype => format!("{}: {said}", subtype.replace('_', " ")),
    };
    let class = if line.subtype == "error_max_budget_usd" {
        FailureClass::Budget
    } else {
        class_of(line.api_error_status, &said)
    };
    AgentEvent::Error { class, detail: one_line(&capped(&detail, 4096), 1000) }
}

/// A line that was cut on its way (lines have a cap) still tells what kind it was.
fn cut_line(line: &str) -> Option<AgentEvent> {
    let start = line.get(..line.floor_char_boundary(1024)).unwrap_or(line);
    if start.starts_with(r#"{"type":"user""#) {
        return Some(AgentEvent::ToolEnd { tool: String::new(), ok: !line.contains(r#""is_error":true"#) });
    }
    if start.starts_with(r#"{"type":"assistant""#) {
        return Some(AgentEvent::Text { text: "(a message too long to show)".into() });
    }
    if start.starts_with(r#"{"type":"result""#) {
        let ok = start.contains(r#""is_error":false"#) && start.contains(r#""subtype":"success""#);
        let said = line.split_once(r#""result":""#).map_or("", |(_, rest)| rest);
        let said = unescaped(said.get(..said.floor_char_boundary(MAX_RESULT_BYTES)).unwrap_or(""));
        return Some(if ok {
            AgentEvent::Result { ok, text: said }
        } else {
            AgentEvent::Error { class: class_of(None, &said), detail: one_line(&capped(&said, 4096), 1000) }
        });
    }
    None
}

/// The beginning of a JSON string without its end: drops what a cut made unreadable at the end.
fn unescaped(cut: &str) -> String {
    // An escape is at most 12 characters long (a surrogate pair), so few tries suffice.
    let mut end = cut.len();
    for _ in 0..16 {
        let part = cut.get(..end).unwrap_or("");
        if let Ok(text) = serde_json::from_str::<String>(&format!("\"{part}\"")) {
            return text;
        }
        end = cut.floor_char_boundary(end.saturating_sub(1));
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::super::super::definition::AgentSet;
    use super::*;
    use std::path::Path;

    fn launched(agent: &str, mode: RunMode, model: Option<&str>) -> Launch {
        let set = AgentSet::builtin().unwrap();
        let spec = set.agent(agent).unwrap();
        let skills = set.skills_of(spec).unwrap();
        super::super::launch(&LaunchContext {
            spec,
            skills: &skills,
            mode,
            model,
            prompt: "the prompt",
            args: "ignored",
            workspace: Path::new("/zeblit/workspace"),
            home: Path::new("/zeblit/home"),
        })
        .unwrap()
    }

    #[test]
    fn it_starts_headless_with_files_and_prompt_in_their_places() {
        let launch = launched("fixer", RunMode::Change, Some("claude-haiku-4-5"));
        assert_eq!(
            launch.argv.join(" "),
            "claude -p --output-format stream-json --verbose --dangerously-skip-permissions --setting-sources user \
             --strict-mcp-config --mcp-config {\"mcpServers\":{\"zeblit\":{\"type\":\"http\",\"url\":\"http://127.0.0.1:4180/mcp\"}}} --tools Bash,Edit,Glob,Grep,NotebookEdit,Read,Skill,Write \
             --disallowedTools WebFetch,WebSearch --append-system-prompt-file /zeblit/home/.zeblit/system-prompt.md \
             --model claude-haiku-4-5"
        );
        let names: Vec<&str> = launch.home_files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                ".zeblit/system-prompt.md",
                ".claude/skills/small-diffs/SKILL.md",
                ".claude/skills/write-tests/SKILL.md",
                ".claude/skills/commit-messages/SKILL.md",
                ".gitconfig",
            ]
        );
        assert_eq!(launch.stdin, b"the prompt");
        assert!(launch.needs_model);
    }

    #[test]
    fn the_environment_holds_a_placeholder_and_the_bridge_only() {
        let names: Vec<String> = launched("fixer", RunMode::Change, None)
            .env
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            names,
            [
                "ANTHROPIC_BASE_URL=http://127.0.0.1:4180",
                "ANTHROPIC_API_KEY=placeholder",
                "IS_SANDBOX=1",
                "DISABLE_TELEMETRY=1",
                "DISABLE_AUTOUPDATER=1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
            ]
        );
    }

    #[test]
    fn a_run_that_changes_nothing_has_no_tools_that_write() {
        for (agent, mode) in [("reviewer", RunMode::Change), ("fixer", RunMode::ReadOnly)] {
            let argv = launched(agent, mode, None).argv.join(" ");
            assert!(argv.contains("--tools Bash,Glob,Grep,Read,Skill "), "{argv}");
            assert!(argv.contains("--disallowedTools WebFetch,WebSearch,Edit,NotebookEdit,Write "), "{argv}");
            assert!(!argv.contains("--model"), "{argv}");
        }
    }

    fn events(fixture: &str) -> Vec<AgentEvent> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/claude").join(fixture);
        std::fs::read_to_string(file).unwrap().lines().flat_map(parse_line).collect()
    }

    #[test]
    fn a_recorded_run_becomes_plain_events() {
        let usage = Usage { input: 100, output: 1, cache_read: 20, cache_write: 10 };
        let tokens = AgentEvent::Tokens { usage };
        let start =
            |tool: &str, summary: &str| AgentEvent::ToolStart { tool: tool.into(), summary: summary.into() };
        let end = |id: &str, ok: bool| AgentEvent::ToolEnd { tool: id.into(), ok };
        let found = events("success.jsonl");
        assert_eq!(
            found,
            vec![
                AgentEvent::Session { id: "00000000-0000-4000-8000-000000000000".into() },
                AgentEvent::Text { text: "I look at the file first.".into() },
                tokens.clone(),
                start("Read", "/zeblit/workspace/a.txt"),
                tokens.clone(),
                end("toolu_1", true),
                start("Edit", "/zeblit/workspace/a.txt"),
                tokens.clone(),
                end("toolu_2", true),
                start("Bash", "cat a.txt && false"),
                tokens.clone(),
                end("toolu_3", false),
                AgentEvent::Text { text: "Done: a.txt says goodbye now.".into() },
                tokens,
                AgentEvent::Result { ok: true, text: "Done: a.txt says goodbye now.".into() },
            ]
        );
    }

    #[test]
    fn recorded_failures_have_their_class() {
        for (fixture, class, words) in [
            ("budget.jsonl", FailureClass::Budget, "the budget of this run is used up"),
            ("refused.jsonl", FailureClass::Agent, "Prompt is too long"),
            ("auth.jsonl", FailureClass::Auth, "403"),
            ("max_turns.jsonl", FailureClass::Agent, "error max turns"),
            ("overloaded.jsonl", FailureClass::Model, "529"),
            ("quota.jsonl", FailureClass::Quota, "429"),
            ("no_endpoint.jsonl", FailureClass::Model, "Unable to connect"),
        ] {
            let found = events(fixture);
            match found.last() {
                Some(AgentEvent::Error { class: is, detail }) => {
                    assert_eq!(*is, class, "{fixture}: {detail}");
                    assert!(detail.contains(words), "{fixture}: {detail}");
                }
                other => panic!("{fixture}: {other:?}"),
            }
        }
    }

    #[test]
    fn lines_that_are_not_understood_are_text_with_a_cap() {
        for line in
            ["hello", "{", r#"{"type":"new_kind","a":1}"#, r#"[1]"#, r#"{"type":"assistant"}"#, "\u{1b}[31m"]
        {
            let found = parse_line(line);
            assert!(matches!(found.as_slice(), [AgentEvent::Text { .. }]), "{line}: {found:?}");
        }
        let found = parse_line(&"x".repeat(MAX_EVENT_TEXT_BYTES * 2));
        assert!(
            matches!(found.as_slice(), [AgentEvent::Text { text }] if text.len() <= MAX_EVENT_TEXT_BYTES)
        );
        for quiet in
            ["", "   ", r#"{"type":"system","subtype":"status"}"#, r#"{"type":"stream_event","event":{}}"#]
        {
            assert_eq!(parse_line(quiet), vec![], "{quiet}");
        }
    }

    #[test]
    fn odd_shapes_never_panic() {
        for line in [
            r#"{"type":"assistant","message":{"content":"plain"}}"#,
            r#"{"type":"assistant","message":{"content":[{"type":"tool_use"},{"type":"text"},7,null]}}"#,
            r#"{"type":"assistant","message":{"content":[{"type":"tool_use","name":"X","input":"y"}],"usage":{"input_tokens":"many"}}}"#,
            r#"{"type":"user","message":{"content":[{"type":"tool_result","is_error":"yes"}]}}"#,
            r#"{"type":"user","message":{"content":null}}"#,
            r#"{"type":"result","result":null}"#,
            r#"{"type":"system","subtype":"init"}"#,
        ] {
            parse_line(line);
        }
    }

    #[test]
    fn a_line_that_was_cut_keeps_its_meaning() {
        let line = r#"{"type":"result","subtype":"success","is_error":false,"result":"All \"good\"\nand \u00e4 more"#;
        for cut in 0..=4 {
            let found = parse_line(line.get(..line.len() - cut).unwrap());
            assert!(
                matches!(found.as_slice(), [AgentEvent::Result { ok: true, text }] if text.starts_with("All \"good\"\nand ä")),
                "{found:?}"
            );
        }
        assert_eq!(
            parse_line(
                r#"{"type":"user","message":{"content":[{"type":"tool_result","is_error":true,"content":"xx"#
            ),
            vec![AgentEvent::ToolEnd { tool: String::new(), ok: false }]
        );
        let found = parse_line(r#"{"type":"assistant","message":{"content":[{"type":"text","text":"xx"#);
        assert_eq!(found, vec![AgentEvent::Text { text: "(a message too long to show)".into() }]);
    }
}
