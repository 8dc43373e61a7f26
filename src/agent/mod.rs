//! Agents: definitions in `agents/*.md`, skills, the prompt, and one adapter per agent CLI.
//!
//! No adapter's quirks leak past this folder: the engine sees a `Job` to start and `AgentEvent`s back.

pub mod adapter;
pub mod definition;
pub mod prompt;

use crate::domain::budget::Usage;
use crate::domain::run::FailureClass;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// A recipe: any argv, no model.
    Command,
    /// Claude Code, headless.
    Claude,
    /// Zeblit's own small agent, part of the shim.
    Builtin,
    /// OpenAI's Codex, headless.
    Codex,
    /// opencode, headless.
    Opencode,
    /// Google's Gemini CLI, headless.
    Gemini,
}

impl AdapterKind {
    pub const ALL: &[AdapterKind] = &[
        AdapterKind::Command,
        AdapterKind::Claude,
        AdapterKind::Builtin,
        AdapterKind::Codex,
        AdapterKind::Opencode,
        AdapterKind::Gemini,
    ];
}

/// An agent as its file defines it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSpec {
    pub name: String,
    pub description: String,
    pub adapter: AdapterKind,
    pub model: Option<String>,
    /// `command` only; `{args}` as an own element is replaced by the words of the request.
    pub argv: Vec<String>,
    /// Tool names the CLI may use; empty: the adapter's default for the mode.
    pub tools: Vec<String>,
    pub skills: Vec<String>,
    /// It never changes the repository (its changes are thrown away).
    pub read_only: bool,
    pub minutes: Option<i64>,
    pub budget_micros: Option<i64>,
    /// What a node must have to run it.
    pub needs: Vec<String>,
    /// The body of the file.
    pub system_prompt: String,
    /// Where it came from, for messages: `agents/x.md` or `.github/zeblit/agents/x.md`.
    pub source: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skill {
    pub name: String,
    pub description: String,
    /// The whole SKILL.md.
    pub text: String,
    pub source: String,
}

/// What an agent did, in words that no CLI owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum AgentEvent {
    Text {
        text: String,
    },
    /// Words that are the result when the agent does nothing after them; a CLI without a line for its result says them.
    Answer {
        text: String,
    },
    ToolStart {
        tool: String,
        summary: String,
    },
    ToolEnd {
        tool: String,
        ok: bool,
    },
    /// The CLI's own count: shown while it runs, never billed.
    Tokens {
        usage: Usage,
    },
    /// Its session, for resuming.
    Session {
        id: String,
    },
    Result {
        ok: bool,
        text: String,
    },
    Error {
        class: FailureClass,
        detail: String,
    },
}
