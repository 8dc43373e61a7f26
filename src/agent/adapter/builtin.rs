//! The built-in agent: a small loop inside the shim itself, so an image with nothing but Git and a shell is enough.
//! What it is told and what it says is `shim/builtin/mod.rs`.

use super::{BRIDGE_PORT, Launch, LaunchContext, MAX_EVENT_TEXT_BYTES, MAX_RESULT_BYTES, MAX_SUMMARY_CHARS};
use super::{capped, text};
use crate::agent::AgentEvent;
use crate::domain::budget::Usage;
use crate::domain::run::{FailureClass, RunMode};
use crate::domain::sanitize::one_line;
use serde::Deserialize;

/// The shim puts itself in its place.
const PROGRAM: &str = "zeblit-shim";
const SYSTEM_PROMPT_FILE: &str = ".zeblit/system-prompt.md";
/// All it has, and without what changes files. (Whatever `run` changes there is thrown away with the workspace.)
const CHANGE_TOOLS: &[&str] = &["plan", "read", "search", "edit", "run"];
const READ_ONLY_TOOLS: &[&str] = &["plan", "read", "search", "run"];

/// The tools of an agent that names none.
pub fn usual_tools(read_only: bool) -> &'static [&'static str] {
    if read_only { READ_ONLY_TOOLS } else { CHANGE_TOOLS }
}

/// Whether an agent file may name this tool.
pub fn check_tool(tool: &str, read_only: bool) -> Result<(), String> {
    if read_only && tool == "edit" {
        return Err("`edit` contradicts `read_only: true`".into());
    }
    if CHANGE_TOOLS.contains(&tool) {
        return Ok(());
    }
    let tool: String = tool.chars().filter(|c| !c.is_control()).take(64).collect();
    Err(format!("`{tool}` is not one of the built-in agent's tools: {}", CHANGE_TOOLS.join(", ")))
}

/// Anthropic's models by their name; everything else speaks OpenAI's Chat Completions.
fn api(model: &str) -> (&'static str, String) {
    let host = format!("http://127.0.0.1:{BRIDGE_PORT}");
    if model.contains("claude") { ("anthropic", host) } else { ("openai", format!("{host}/openai/v1")) }
}

pub(super) fn launch(context: &LaunchContext<'_>) -> Launch {
    let spec = context.spec;
    let read_only = spec.read_only || context.mode == RunMode::ReadOnly;
    let mut tools: Vec<&str> = spec.tools.iter().map(String::as_str).collect();
    if read_only {
        tools.retain(|tool| READ_ONLY_TOOLS.contains(tool));
    }
    if tools.is_empty() {
        tools = usual_tools(read_only).to_vec();
    }
    let mut system = spec.system_prompt.clone();
    for skill in context.skills {
        system.push_str(&format!("\n\n# Skill: {}\n\n{}", skill.name, skill.text.trim()));
    }
    let model = context.model.or(spec.model.as_deref()).unwrap_or_default();
    let (api, url) = api(model);
    let env = [
        ("ZEBLIT_AGENT_API", api.to_owned()),
        ("ZEBLIT_AGENT_URL", url),
        ("ZEBLIT_AGENT_MODEL", model.to_owned()),
        ("ZEBLIT_AGENT_TOOLS", tools.join(",")),
        ("ZEBLIT_AGENT_COMMIT", if read_only { "0" } else { "1" }.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
    ];
    Launch {
        argv: vec![PROGRAM.into(), "builtin".into()],
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        stdin: context.prompt.as_bytes().to_vec(),
        home_files: vec![(SYSTEM_PROMPT_FILE.to_owned(), system.into_bytes())],
        needs_model: true,
        notes: Vec::new(),
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Text {
        text: String,
    },
    ToolStart {
        tool: String,
        #[serde(default)]
        summary: String,
    },
    ToolEnd {
        tool: String,
        ok: bool,
    },
    Tokens {
        input: i64,
        output: i64,
        cache_read: i64,
        cache_write: i64,
    },
    Result {
        text: String,
    },
    Error {
        status: Option<i64>,
        unreachable: bool,
        message: String,
    },
}

pub(super) fn parse_line(line: &str) -> Vec<AgentEvent> {
    let event = match serde_json::from_str::<Line>(line.trim()) {
        Ok(Line::Text { text: words }) => return text(&words, MAX_EVENT_TEXT_BYTES).into_iter().collect(),
        Ok(Line::ToolStart { tool, summary }) => AgentEvent::ToolStart {
            tool: one_line(&tool, 64),
            summary: one_line(&capped(&summary, MAX_SUMMARY_CHARS * 4), MAX_SUMMARY_CHARS),
        },
        Ok(Line::ToolEnd { tool, ok }) => AgentEvent::ToolEnd { tool: one_line(&tool, 64), ok },
        Ok(Line::Tokens { input, output, cache_read, cache_write }) => {
            let usage = Usage { input, output, cache_read, cache_write };
            if usage == Usage::default() {
                return Vec::new();
            }
            AgentEvent::Tokens { usage }
        }
        Ok(Line::Result { text }) => AgentEvent::Result { ok: true, text: capped(&text, MAX_RESULT_BYTES) },
        Ok(Line::Error { status, unreachable, message }) => {
            let class = if unreachable { FailureClass::Model } else { super::class_of(status, &message) };
            let said = one_line(&capped(&message, 4096), 900);
            let detail = status.map_or_else(|| said.clone(), |status| format!("HTTP {status}: {said}"));
            AgentEvent::Error { class, detail }
        }
        Err(_) => return text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect(),
    };
    vec![event]
}

#[cfg(test)]
mod tests {
    use super::super::super::definition::AgentSet;
    use super::*;
    use std::path::Path;

    fn launched(mode: RunMode, model: &str) -> Launch {
        let set = AgentSet::builtin().unwrap();
        let spec = set.agent("builtin").unwrap();
        let skills = set.skills_of(spec).unwrap();
        super::super::launch(&LaunchContext {
            spec,
            skills: &skills,
            mode,
            model: Some(model),
            prompt: "the prompt",
            args: "",
            workspace: Path::new("/zeblit/workspace"),
            home: Path::new("/zeblit/home"),
        })
        .unwrap()
    }

    fn variable(launch: &Launch, name: &str) -> String {
        launch.env.iter().find(|(key, _)| key == name).unwrap().1.clone()
    }

    #[test]
    fn the_shim_is_told_everything_and_no_key() {
        let launch = launched(RunMode::Change, "claude-sonnet-4-5");
        assert_eq!(launch.argv, ["zeblit-shim", "builtin"]);
        assert_eq!(launch.stdin, b"the prompt");
        let (name, system) = &launch.home_files[0];
        assert_eq!(name, SYSTEM_PROMPT_FILE);
        let system = String::from_utf8(system.clone()).unwrap();
        assert!(
            system.starts_with("You fix software") && system.contains("# Skill: small-diffs"),
            "{system}"
        );
        assert_eq!(variable(&launch, "ZEBLIT_AGENT_API"), "anthropic");
        assert_eq!(variable(&launch, "ZEBLIT_AGENT_URL"), "http://127.0.0.1:4180");
        assert_eq!(variable(&launch, "ZEBLIT_AGENT_TOOLS"), "plan,read,search,edit,run");
        assert_eq!(variable(&launch, "ZEBLIT_AGENT_COMMIT"), "1");
    }

    #[test]
    fn other_models_speak_the_other_api_and_reading_runs_do_not_edit() {
        let launch = launched(RunMode::ReadOnly, "qwen3-coder");
        assert_eq!(variable(&launch, "ZEBLIT_AGENT_API"), "openai");
        assert_eq!(variable(&launch, "ZEBLIT_AGENT_URL"), "http://127.0.0.1:4180/openai/v1");
        assert_eq!(variable(&launch, "ZEBLIT_AGENT_TOOLS"), "plan,read,search,run");
        assert_eq!(variable(&launch, "ZEBLIT_AGENT_COMMIT"), "0");
    }

    #[test]
    fn tools_are_its_own() {
        assert!(check_tool("edit", false).is_ok() && check_tool("run", true).is_ok());
        assert!(check_tool("edit", true).unwrap_err().contains("read_only"));
        assert!(check_tool("Bash", false).unwrap_err().contains("plan, read, search, edit, run"));
    }

    #[test]
    fn its_lines_become_plain_events() {
        for (line, event) in [
            (r#"{"type":"text","text":"I look."}"#, AgentEvent::Text { text: "I look.".into() }),
            (
                r#"{"type":"tool_start","tool":"run","summary":"a\nb"}"#,
                AgentEvent::ToolStart { tool: "run".into(), summary: "a b".into() },
            ),
            (
                r#"{"type":"tool_end","tool":"run","ok":false}"#,
                AgentEvent::ToolEnd { tool: "run".into(), ok: false },
            ),
            (
                r#"{"type":"tokens","input":1,"output":2,"cache_read":3,"cache_write":4}"#,
                AgentEvent::Tokens { usage: Usage { input: 1, output: 2, cache_read: 3, cache_write: 4 } },
            ),
            (r#"{"type":"result","text":"Done."}"#, AgentEvent::Result { ok: true, text: "Done.".into() }),
            ("a warning", AgentEvent::Text { text: "a warning".into() }),
            (r#"{"type":"text"}"#, AgentEvent::Text { text: r#"{"type":"text"}"#.into() }),
        ] {
            assert_eq!(parse_line(line), [event], "{line}");
        }
        assert_eq!(parse_line(""), []);
        assert_eq!(
            parse_line(r#"{"type":"tokens","input":0,"output":0,"cache_read":0,"cache_write":0}"#),
            []
        );
    }

    #[test]
    fn failures_have_their_class() {
        for (status, unreachable, message, class) in [
            ("402", false, "zeblit: the budget of this run is used up ($1 of $1)", FailureClass::Budget),
            ("403", false, "zeblit: the model endpoint refused the server's key", FailureClass::Auth),
            ("429", false, "slow down", FailureClass::Quota),
            ("529", false, "Overloaded", FailureClass::Model),
            ("null", true, "the model endpoint cannot be reached", FailureClass::Model),
            ("null", false, "not finished after 200 requests to the model", FailureClass::Agent),
            ("400", false, "a bad request", FailureClass::Agent),
        ] {
            let line = format!(
                r#"{{"type":"error","status":{status},"unreachable":{unreachable},"message":"{message}"}}"#
            );
            match parse_line(&line).as_slice() {
                [AgentEvent::Error { class: is, detail }] => {
                    assert_eq!(*is, class, "{line}");
                    assert!(detail.contains(message), "{detail}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }
}
