//! One file per agent CLI: how it is started, and how its output becomes `AgentEvent`s.

pub mod builtin;
pub mod claude;
pub mod codex;
pub mod command;
pub mod gemini;
pub mod opencode;
pub mod resume;

use super::{AdapterKind, AgentEvent, AgentSpec, Skill};
use crate::domain::budget::Usage;
use crate::domain::run::{FailureClass, RunMode};
use crate::domain::sanitize::one_line;
use serde_json::Value;
use std::path::Path;

/// Files and folders that agent CLIs execute or obey, in whatever folder of the repository they lie: taken from the base
/// branch, never from a pull request's head, and never part of a changeset from the head.
pub const MASKED_PATHS: &[&str] = &[
    // Claude Code: settings, hooks, commands, agents, skills, plugins, MCP servers, memory.
    ".claude",
    ".claude-plugin",
    ".mcp.json",
    "CLAUDE.md",
    "CLAUDE.local.md",
    // Codex: configuration, hooks, rules, memory; `.agents` holds skills and plugins for several CLIs.
    ".codex",
    ".agents",
    "AGENTS.md",
    "AGENTS.override.md",
    // opencode: configuration, plugins, tools, commands, agents, skills; `CONTEXT.md` is its older memory file.
    "opencode.json",
    "opencode.jsonc",
    ".opencode",
    "CONTEXT.md",
    // Gemini CLI: settings, hooks, commands, extensions, skills, policies, memory, what it may not see.
    ".gemini",
    "GEMINI.md",
    ".geminiignore",
    // Read into the environment by Gemini CLI, by programs built with Bun, and by tools they start.
    ".env",
    ".env.local",
    "bunfig.toml",
    // Run by Git when an agent commits.
    ".husky",
];

/// The port inside the container behind which the broker answers.
pub const BRIDGE_PORT: u16 = 4180;
/// Where each API begins behind the bridge.
const ANTHROPIC_BASE_URL: &str = "http://127.0.0.1:4180";
const OPENAI_BASE_URL: &str = "http://127.0.0.1:4180/openai/v1";
const GEMINI_BASE_URL: &str = "http://127.0.0.1:4180/gemini";
/// What a CLI takes for its key: the broker strips it and adds the real one.
const PLACEHOLDER_KEY: &str = "placeholder";

/// The broker's MCP endpoint (streamable HTTP) with the tools `ask`, `progress` and `context`, as the agent sees it.
pub const MCP_URL: &str = "http://127.0.0.1:4180/mcp";

/// The name under which CLIs know the MCP endpoint; Claude Code calls its tools `mcp__zeblit__ask` and so on.
pub const MCP_SERVER: &str = "zeblit";

/// The port inside the container behind which the proxy answers, when the run may reach anything.
pub const EGRESS_PORT: u16 = 4181;

/// Bytes of one text event: a log line that people read, not an archive.
pub const MAX_EVENT_TEXT_BYTES: usize = 16 * 1024;
/// Bytes of the agent's final words: an answer or a review, posted as one comment.
pub const MAX_RESULT_BYTES: usize = 60 * 1024;
/// Characters of the one line that says what a tool call does.
pub const MAX_SUMMARY_CHARS: usize = 200;

/// Git's identity inside: commits made by the agent get their real author from the host.
const GITCONFIG: &[u8] =
    b"[user]\n\tname = Zeblit\n\temail = zeblit@localhost\n[commit]\n\tgpgSign = false\n";

#[derive(Debug)]
pub struct LaunchContext<'a> {
    pub spec: &'a AgentSpec,
    pub skills: &'a [Skill],
    pub mode: RunMode,
    /// The model to use, when run, agent or repository name one.
    pub model: Option<&'a str>,
    /// The whole prompt.
    pub prompt: &'a str,
    /// For recipes: the words after its name.
    pub args: &'a str,
    /// As seen inside.
    pub workspace: &'a Path,
    pub home: &'a Path,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Launch {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stdin: Vec<u8>,
    /// Relative to HOME.
    pub home_files: Vec<(String, Vec<u8>)>,
    /// It needs the bridge to the model.
    pub needs_model: bool,
    /// What the report should mention ("the recipe takes no words; … was ignored").
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum AgentError {
    #[error("agent `{agent}` ({path}): {problem}")]
    Definition { agent: String, path: String, problem: String },
    #[error("skill `{skill}` ({path}): {problem}")]
    Skill { skill: String, path: String, problem: String },
    /// A folder or file of agents or skills that cannot be used as a whole.
    #[error("{path}: {problem}")]
    Folder { path: String, problem: String },
    #[error("there is no agent `{name}` here; there are: {known}")]
    Unknown { name: String, known: String },
    #[error("agent `{agent}` names the skill `{skill}`, which is not there")]
    UnknownSkill { agent: String, skill: String },
    /// The words of the request cannot become arguments.
    #[error("agent `{agent}`: the words of the request {problem}")]
    Words { agent: String, problem: String },
    /// Everything that is wrong with a set of files, one a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<AgentError>),
}

impl AgentError {
    /// The same error with the real place of the file.
    pub(crate) fn at(mut self, place: &str) -> Self {
        if let AgentError::Definition { path, .. } | AgentError::Skill { path, .. } = &mut self {
            place.clone_into(path);
        }
        self
    }
}

/// The tools of an agent that names none; a recipe has none.
pub fn usual_tools(adapter: AdapterKind, read_only: bool) -> &'static [&'static str] {
    match adapter {
        AdapterKind::Claude => claude::usual_tools(read_only),
        AdapterKind::Builtin => builtin::usual_tools(read_only),
        // A definition names tools for the two above only.
        AdapterKind::Command | AdapterKind::Codex | AdapterKind::Opencode | AdapterKind::Gemini => &[],
    }
}

/// How to start the agent.
pub fn launch(context: &LaunchContext<'_>) -> Result<Launch, AgentError> {
    let mut launch = match context.spec.adapter {
        AdapterKind::Command => command::launch(context)?,
        AdapterKind::Claude => claude::launch(context),
        AdapterKind::Builtin => builtin::launch(context),
        AdapterKind::Codex => codex::launch(context),
        AdapterKind::Opencode => opencode::launch(context),
        AdapterKind::Gemini => gemini::launch(context),
    };
    launch.home_files.push((".gitconfig".into(), GITCONFIG.to_vec()));
    Ok(launch)
}

/// One line of the agent's output (`stderr` tells which stream). Never fails: what is not understood is text.
pub fn parse_line(adapter: AdapterKind, stderr: bool, line: &str) -> Vec<AgentEvent> {
    match adapter {
        _ if stderr => text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect(),
        AdapterKind::Command => text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect(),
        AdapterKind::Claude => claude::parse_line(line),
        AdapterKind::Builtin => builtin::parse_line(line),
        AdapterKind::Codex => codex::parse_line(line.trim()),
        AdapterKind::Opencode => opencode::parse_line(line.trim()),
        AdapterKind::Gemini => gemini::parse_line(line.trim()),
    }
}

/// A field of a JSON object as text; empty when it is not one.
fn string<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or("")
}

/// A line that is not JSON: plain text, or an event that was cut on its way (lines have a cap).
fn too_long(line: &str) -> Vec<AgentEvent> {
    if line.starts_with(r#"{"type":""#) && line.len() > MAX_EVENT_TEXT_BYTES {
        return vec![AgentEvent::Text { text: "(a message too long to show)".into() }];
    }
    text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect()
}

/// Words of the agent that are its result when nothing follows them.
fn answer(said: &str) -> Vec<AgentEvent> {
    if said.trim().is_empty() && !said.contains('\n') {
        return Vec::new();
    }
    vec![AgentEvent::Answer { text: capped(said, MAX_RESULT_BYTES) }]
}

fn usage(input: i64, output: i64, cache_read: i64, cache_write: i64) -> Vec<AgentEvent> {
    let usage = Usage { input, output, cache_read, cache_write };
    if usage == Usage::default() { Vec::new() } else { vec![AgentEvent::Tokens { usage }] }
}

/// What a tool call does, in one line: the command, the file, the pattern, else the first text argument.
fn summary(input: &Value) -> String {
    const KEYS: &[&str] = &[
        "command",
        "cmd",
        "file_path",
        "filePath",
        "notebook_path",
        "pattern",
        "skill",
        "description",
        "path",
    ];
    let known = KEYS.iter().find_map(|key| input.get(key).and_then(Value::as_str));
    let first = || input.as_object().and_then(|map| map.values().find_map(Value::as_str));
    let shown = known.or_else(first).unwrap_or("");
    // Cut first: one_line need not read a whole file that a tool is told to write.
    one_line(&capped(shown, MAX_SUMMARY_CHARS * 4), MAX_SUMMARY_CHARS)
}

/// A failure that the model endpoint (or the broker before it) reported, with its class.
fn classify(status: Option<i64>, said: &str) -> AgentEvent {
    let class = class_of(status.or_else(|| status_in(said)), said);
    AgentEvent::Error { class, detail: one_line(&capped(said, 4096), 1000) }
}

fn class_of(status: Option<i64>, said: &str) -> FailureClass {
    // The broker's own words: see broker/llm.rs.
    if said.contains("zeblit: the budget of ") && said.contains(" is used up") {
        return FailureClass::Budget;
    }
    if said.contains("zeblit: no model key") || said.contains("zeblit: the price of model") {
        return FailureClass::Model;
    }
    if said.contains("credit balance is too low") {
        return FailureClass::Quota;
    }
    match status {
        Some(401 | 403) => FailureClass::Auth,
        Some(402 | 429) => FailureClass::Quota,
        Some(404 | 408 | 500..=599) => FailureClass::Model,
        Some(_) => FailureClass::Agent,
        None if ["Unable to connect", "Connection error", "stream disconnected", "fetch failed"]
            .iter()
            .any(|words| said.contains(words)) =>
        {
            FailureClass::Model
        }
        None => FailureClass::Agent,
    }
}

/// The HTTP status that a message names: `status 402 Payment Required`, `last status: 429`, `"code":402`.
fn status_in(said: &str) -> Option<i64> {
    ["status", "\"code\""].iter().find_map(|word| {
        said.match_indices(word).find_map(|(at, _)| {
            let rest = said.get(at + word.len()..)?.trim_start_matches([' ', ':']);
            let digits = rest.get(..3)?;
            let ends = rest.get(3..4).is_none_or(|next| !next.starts_with(|c: char| c.is_ascii_digit()));
            digits.parse().ok().filter(|status| ends && (400..=599).contains(status))
        })
    })
}

/// A text event, when there is anything to see.
fn text(text: &str, max_bytes: usize) -> Option<AgentEvent> {
    let text = capped(text, max_bytes);
    (!text.trim().is_empty()).then_some(AgentEvent::Text { text })
}

/// At most `max_bytes` of it, cut between characters; a cut is marked.
fn capped(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    const MARK: &str = " […]";
    let end = text.floor_char_boundary(max_bytes.saturating_sub(MARK.len()));
    format!("{}{MARK}", text.get(..end).unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_fall_between_characters() {
        assert_eq!(capped("äöü", 6), "äöü");
        assert_eq!(capped(&"ä".repeat(10), 11), "ää […]");
        assert!(capped(&"x".repeat(100), 20).len() <= 20);
    }

    #[test]
    fn standard_error_is_text_for_every_agent() {
        for adapter in AdapterKind::ALL.iter().copied() {
            let events = parse_line(adapter, true, r#"{"type":"result","is_error":false,"result":"x"}"#);
            assert!(matches!(events.as_slice(), [AgentEvent::Text { .. }]), "{events:?}");
            assert_eq!(parse_line(adapter, true, "  "), vec![]);
        }
    }

    fn launched(agent: &str, mode: RunMode, model: Option<&str>) -> Launch {
        let set = super::super::definition::AgentSet::builtin().unwrap();
        let spec = set.agent(agent).unwrap();
        launch(&LaunchContext {
            spec,
            skills: &set.skills_of(spec).unwrap(),
            mode,
            model,
            prompt: "the prompt",
            args: "ignored",
            workspace: Path::new("/zeblit/workspace"),
            home: Path::new("/zeblit/home"),
        })
        .unwrap()
    }

    fn home_file(launch: &Launch, name: &str) -> String {
        let found = launch.home_files.iter().find(|(path, _)| path == name);
        String::from_utf8(found.unwrap_or_else(|| panic!("no {name}")).1.clone()).unwrap()
    }

    #[test]
    fn every_cli_starts_headless_with_its_prompt_skills_and_a_placeholder() {
        for (agent, argv, prompt_file, skill) in [
            (
                "codex",
                "codex exec --json --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox -",
                ".codex/config.toml",
                ".codex/skills/small-diffs/SKILL.md",
            ),
            (
                "opencode",
                "opencode run --pure --auto --title zeblit --format json --model zeblit/the-model",
                ".config/opencode/AGENTS.md",
                ".config/opencode/skills/small-diffs/SKILL.md",
            ),
            (
                "gemini",
                "gemini --output-format stream-json --approval-mode yolo --model the-model",
                ".gemini/GEMINI.md",
                ".gemini/skills/small-diffs/SKILL.md",
            ),
        ] {
            let launch = launched(agent, RunMode::Change, Some("the-model"));
            assert_eq!(launch.argv.join(" "), argv);
            assert_eq!(launch.stdin, b"the prompt");
            assert!(launch.needs_model);
            assert!(home_file(&launch, prompt_file).contains("You fix software"), "{agent}");
            assert!(home_file(&launch, skill).contains("name: small-diffs"), "{agent}");
            let everything = format!(
                "{:?}{:?}",
                launch.env,
                launch
                    .home_files
                    .iter()
                    .map(|(_, text)| { String::from_utf8_lossy(text) })
                    .collect::<Vec<_>>()
            );
            assert!(everything.contains("http://127.0.0.1:4180/"), "{everything}");
            assert!(everything.contains("placeholder"), "{everything}");
            assert!(everything.contains(MCP_URL), "{agent}: {everything}");
        }
    }

    #[test]
    fn codex_is_told_everything_in_its_own_configuration() {
        let launch = launched("codex", RunMode::Change, Some("gpt-5.5"));
        let config: toml::Table = home_file(&launch, ".codex/config.toml").parse().unwrap();
        assert_eq!(config["model"].as_str(), Some("gpt-5.5"));
        assert_eq!(config["web_search"].as_str(), Some("disabled"));
        assert_eq!(config["features"]["hooks"].as_bool(), Some(false));
        let provider = &config["model_providers"]["zeblit"];
        assert_eq!(provider["base_url"].as_str(), Some(OPENAI_BASE_URL));
        assert_eq!(provider["wire_api"].as_str(), Some("responses"));
        assert_eq!(config["mcp_servers"][MCP_SERVER]["url"].as_str(), Some(MCP_URL));
    }

    #[test]
    fn opencode_speaks_the_protocol_of_its_model() {
        for (model, npm, url) in [
            ("claude-sonnet-4-5", "@ai-sdk/anthropic", "http://127.0.0.1:4180/v1"),
            ("gpt-5.5", "@ai-sdk/openai", "http://127.0.0.1:4180/openai/v1"),
            ("gemini-2.5-pro", "@ai-sdk/google", "http://127.0.0.1:4180/gemini/v1beta"),
            ("qwen/qwen3-coder", "@ai-sdk/openai-compatible", "http://127.0.0.1:4180/openai/v1"),
        ] {
            let launch = launched("opencode", RunMode::Change, Some(model));
            let config: Value =
                serde_json::from_str(&home_file(&launch, ".config/opencode/opencode.json")).unwrap();
            let provider = &config["provider"]["zeblit"];
            assert_eq!(provider["npm"], npm);
            assert_eq!(provider["options"]["baseURL"], url);
            assert!(provider["models"][model].is_object());
            assert_eq!(config["permission"]["edit"], "allow");
        }
    }

    #[test]
    fn a_run_that_changes_nothing_offers_no_tools_that_write() {
        let launch = launched("opencode", RunMode::ReadOnly, Some("m"));
        assert!(home_file(&launch, ".config/opencode/opencode.json").contains(r#""edit":"deny""#));
        let launch = launched("gemini", RunMode::ReadOnly, Some("m"));
        assert!(home_file(&launch, ".gemini/settings.json").contains(r#""replace","write_file""#));
    }

    fn events(adapter: AdapterKind, fixture: &str) -> Vec<AgentEvent> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().flat_map(|line| parse_line(adapter, false, line)).collect()
    }

    #[test]
    fn recorded_runs_become_plain_events() {
        for (adapter, fixture, shell, edit, last) in [
            (AdapterKind::Codex, "codex/success.jsonl", "shell", "apply_patch", "All done.\n\n"),
            (AdapterKind::Opencode, "opencode/success.jsonl", "bash", "apply_patch", "All done.\n\n"),
            (AdapterKind::Gemini, "gemini/success.jsonl", "run_shell_command", "replace", "All done."),
        ] {
            let found = events(adapter, fixture);
            assert!(matches!(&found[0], AgentEvent::Session { id } if id.len() > 20), "{found:?}");
            let tools: Vec<(&str, &str)> = found
                .iter()
                .filter_map(|event| match event {
                    AgentEvent::ToolStart { tool, summary } => Some((tool.as_str(), summary.as_str())),
                    _ => None,
                })
                .collect();
            assert_eq!(tools[0].0, shell);
            assert!(tools[0].1.contains("cat src/app.py; false"), "{tools:?}");
            assert_eq!(tools[1].0, edit);
            let ends: Vec<(&str, bool)> = found
                .iter()
                .filter_map(|event| match event {
                    AgentEvent::ToolEnd { tool, ok } => Some((tool.as_str(), *ok)),
                    _ => None,
                })
                .collect();
            // Gemini CLI does not say that a command failed.
            assert_eq!(ends[..2], [(shell, adapter == AdapterKind::Gemini), (edit, true)], "{adapter:?}");
            let tokens = found.iter().fold(Usage::default(), |sum, event| match event {
                AgentEvent::Tokens { usage } => Usage {
                    input: sum.input + usage.input,
                    output: sum.output + usage.output,
                    cache_read: sum.cache_read + usage.cache_read,
                    ..sum
                },
                _ => sum,
            });
            // The recorded model charged 80 new and 20 cached tokens and 10 of output for each of its answers.
            let answers = if adapter == AdapterKind::Opencode { 4 } else { 3 };
            assert_eq!(
                (tokens.input, tokens.cache_read, tokens.output),
                (80 * answers, 20 * answers, 10 * answers),
                "{adapter:?}"
            );
            assert!(found.contains(&AgentEvent::Answer { text: last.into() }), "{found:?}");
            assert!(!found.iter().any(|event| matches!(event, AgentEvent::Error { .. })), "{found:?}");
        }
    }

    #[test]
    fn calls_of_our_own_tools_are_shown_as_calls() {
        let found = events(AdapterKind::Codex, "codex/mcp.jsonl");
        let tool = || "zeblit.context".to_owned();
        assert_eq!(
            found[1..3],
            [
                AgentEvent::ToolStart { tool: tool(), summary: String::new() },
                AgentEvent::ToolEnd { tool: tool(), ok: true }
            ]
        );
    }

    #[test]
    fn recorded_failures_have_their_class() {
        for (adapter, fixture, class) in [
            (AdapterKind::Codex, "codex/budget.jsonl", FailureClass::Budget),
            (AdapterKind::Codex, "codex/auth.jsonl", FailureClass::Auth),
            (AdapterKind::Codex, "codex/quota.jsonl", FailureClass::Quota),
            (AdapterKind::Codex, "codex/overloaded.jsonl", FailureClass::Model),
            (AdapterKind::Opencode, "opencode/budget.jsonl", FailureClass::Budget),
            (AdapterKind::Opencode, "opencode/auth.jsonl", FailureClass::Auth),
            (AdapterKind::Gemini, "gemini/budget.jsonl", FailureClass::Budget),
            (AdapterKind::Gemini, "gemini/auth.jsonl", FailureClass::Auth),
        ] {
            let found = events(adapter, fixture);
            let errors: Vec<_> = found
                .iter()
                .filter_map(|event| match event {
                    AgentEvent::Error { class, .. } => Some(*class),
                    _ => None,
                })
                .collect();
            assert_eq!(errors, [class], "{fixture}: {found:?}");
        }
    }

    #[test]
    fn lines_that_are_not_understood_are_text_for_every_cli() {
        for adapter in AdapterKind::ALL.iter().copied() {
            for line in ["hello", "{", r#"{"type":"new_kind","a":1}"#, "[1]", "7", "\u{1b}[31m"] {
                let found = parse_line(adapter, false, line);
                assert!(
                    matches!(found.as_slice(), [AgentEvent::Text { .. }]),
                    "{adapter:?} {line}: {found:?}"
                );
            }
            for odd in [
                r#"{"type":"item.completed","item":7}"#,
                r#"{"type":"turn.completed","usage":{"input_tokens":"many"}}"#,
                r#"{"type":"error","error":[],"message":{}}"#,
                r#"{"type":"tool_use","part":{"state":[]},"parameters":null}"#,
                r#"{"type":"result","stats":[]}"#,
            ] {
                parse_line(adapter, false, odd);
            }
            let cut = format!(r#"{{"type":"text","part":{{"text":"{}"#, "x".repeat(MAX_EVENT_TEXT_BYTES));
            assert!(!parse_line(adapter, false, &cut).is_empty());
        }
    }

    #[test]
    fn a_status_is_found_in_the_words_of_a_cli() {
        for (said, status) in [
            ("unexpected status 402 Payment Required: x", Some(402)),
            ("exceeded retry limit, last status: 429 Too Many Requests", Some(429)),
            (r#"[API Error: {"error":{"code":503,"status":"UNAVAILABLE"}}]"#, Some(503)),
            ("status 4020", None),
            ("status quo 404", None),
            ("exit status 1", None),
            ("ü status", None),
        ] {
            assert_eq!(status_in(said), status, "{said}");
        }
    }
}
