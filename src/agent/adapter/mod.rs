//! One file per agent CLI: how it is started, and how its output becomes `AgentEvent`s.

pub mod builtin;
pub mod claude;
pub mod command;

use super::{AdapterKind, AgentEvent, AgentSpec, Skill};
use crate::domain::run::RunMode;
use std::path::Path;

/// Files and folders that agent CLIs execute or obey: taken from the base branch, never from a
/// pull request's head, and never part of a changeset from the head.
pub const MASKED_PATHS: &[&str] = &[
    ".claude",
    ".mcp.json",
    ".codex",
    "opencode.json",
    "opencode.jsonc",
    ".opencode",
    ".gemini",
    "CLAUDE.md",
    "CLAUDE.local.md",
    "AGENTS.md",
    "GEMINI.md",
    ".env",
    ".husky",
];

/// The port inside the container behind which the broker answers.
pub const BRIDGE_PORT: u16 = 4180;

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
        AdapterKind::Command => &[],
    }
}

/// How to start the agent.
pub fn launch(context: &LaunchContext<'_>) -> Result<Launch, AgentError> {
    let mut launch = match context.spec.adapter {
        AdapterKind::Command => command::launch(context)?,
        AdapterKind::Claude => claude::launch(context),
        AdapterKind::Builtin => builtin::launch(context),
    };
    launch.home_files.push((".gitconfig".into(), GITCONFIG.to_vec()));
    Ok(launch)
}

/// One line of the agent's output (`stderr` tells which stream). Never fails: what is not understood is text.
pub fn parse_line(adapter: AdapterKind, stderr: bool, line: &str) -> Vec<AgentEvent> {
    match adapter {
        AdapterKind::Claude if !stderr => claude::parse_line(line),
        AdapterKind::Builtin if !stderr => builtin::parse_line(line),
        AdapterKind::Claude | AdapterKind::Builtin | AdapterKind::Command => {
            text(line, MAX_EVENT_TEXT_BYTES).into_iter().collect()
        }
    }
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
        for adapter in [AdapterKind::Command, AdapterKind::Claude, AdapterKind::Builtin] {
            let events = parse_line(adapter, true, r#"{"type":"result","is_error":false,"result":"x"}"#);
            assert!(matches!(events.as_slice(), [AgentEvent::Text { .. }]), "{events:?}");
            assert_eq!(parse_line(adapter, true, "  "), vec![]);
        }
    }
}
