//! The three model APIs that agents speak, and where the broker serves each of them inside a container.

/// A family of model APIs. Which provider answers is the server's configuration, never the agent's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelApi {
    Anthropic,
    OpenAi,
    Gemini,
}

impl ModelApi {
    pub const ALL: [ModelApi; 3] = [ModelApi::Anthropic, ModelApi::OpenAi, ModelApi::Gemini];

    /// As configuration and price table write it.
    pub fn name(self) -> &'static str {
        match self {
            ModelApi::Anthropic => "anthropic",
            ModelApi::OpenAi => "openai",
            ModelApi::Gemini => "gemini",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|api| api.name() == name)
    }

    /// What stands behind `http://127.0.0.1:<port>` in the base URL that a CLI is given. The CLI adds `/v1/messages`
    /// (Anthropic), `/responses` or `/chat/completions` (OpenAI), `/v1beta/models/…` (Gemini).
    pub fn base_path(self) -> &'static str {
        match self {
            ModelApi::Anthropic => "",
            ModelApi::OpenAi => "/openai/v1",
            ModelApi::Gemini => "/gemini",
        }
    }
}
