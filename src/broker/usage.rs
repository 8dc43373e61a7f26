//! What an answer used, read from the usage fields of each model API.

use super::route::Call;
use crate::domain::budget::Usage;
use serde::Deserialize;

/// Bytes of one line of an event stream that is looked at. The last event of a Responses stream repeats the whole
/// answer, with instructions and tools.
const MAX_EVENT_BYTES: usize = 8 * 1024 * 1024;

/// Tokens of one answer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) usage: Usage,
    /// Of `usage.cache_write`: written to a cache that lives for an hour.
    pub(super) hour: i64,
}

/// `usage` as Anthropic writes it. In a stream, later values replace earlier ones.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct AnthropicUsage {
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cache_creation_input_tokens: Option<i64>,
    cache_read_input_tokens: Option<i64>,
    cache_creation: Option<CacheCreation>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct CacheCreation {
    ephemeral_1h_input_tokens: i64,
}

impl AnthropicUsage {
    fn spent(&self) -> Spent {
        let usage = Usage {
            input: tokens(self.input_tokens),
            output: tokens(self.output_tokens),
            cache_read: tokens(self.cache_read_input_tokens),
            cache_write: tokens(self.cache_creation_input_tokens),
        };
        let hour = self.cache_creation.unwrap_or_default().ephemeral_1h_input_tokens;
        Spent { usage, hour: hour.clamp(0, usage.cache_write) }
    }

    fn merge(&mut self, later: AnthropicUsage) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
        self.cache_creation_input_tokens =
            later.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.cache_creation = later.cache_creation.or(self.cache_creation);
    }
}

/// `usage` of the Responses API, and of Chat Completions under other names. Input includes what was cached; output
/// includes reasoning.
#[derive(Debug, Clone, Copy, Deserialize)]
struct OpenAiUsage {
    #[serde(alias = "prompt_tokens")]
    input_tokens: i64,
    #[serde(default, alias = "completion_tokens")]
    output_tokens: Option<i64>,
    #[serde(default, alias = "prompt_tokens_details")]
    input_tokens_details: Option<InputDetails>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct InputDetails {
    cached_tokens: Option<i64>,
    cache_write_tokens: Option<i64>,
}

impl OpenAiUsage {
    fn spent(&self) -> Spent {
        let details = self.input_tokens_details.unwrap_or_default();
        let all = self.input_tokens.max(0);
        let cache_read = tokens(details.cached_tokens).min(all);
        let cache_write = tokens(details.cache_write_tokens).min(all - cache_read);
        let usage = Usage {
            input: all - cache_read - cache_write,
            output: tokens(self.output_tokens),
            cache_read,
            cache_write,
        };
        Spent { usage, hour: 0 }
    }
}

/// `usageMetadata`. The prompt includes what was cached; thoughts are counted beside the candidates.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GeminiUsage {
    prompt_token_count: Option<i64>,
    cached_content_token_count: Option<i64>,
    candidates_token_count: Option<i64>,
    thoughts_token_count: Option<i64>,
    tool_use_prompt_token_count: Option<i64>,
}

impl GeminiUsage {
    fn spent(&self) -> Spent {
        let prompt = tokens(self.prompt_token_count);
        let cache_read = tokens(self.cached_content_token_count).min(prompt);
        let usage = Usage {
            input: (prompt - cache_read).saturating_add(tokens(self.tool_use_prompt_token_count)),
            output: tokens(self.candidates_token_count).saturating_add(tokens(self.thoughts_token_count)),
            cache_read,
            cache_write: 0,
        };
        Spent { usage, hour: 0 }
    }
}

/// A count as the provider wrote it. More than this is no count, and would overflow sums.
fn tokens(count: Option<i64>) -> i64 {
    count.unwrap_or(0).clamp(0, 1 << 40)
}

#[derive(Deserialize)]
struct WithUsage<U> {
    usage: Option<U>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GeminiChunk {
    usage_metadata: Option<GeminiUsage>,
    #[serde(default)]
    candidates: Vec<GeminiCandidate>,
    #[serde(default)]
    prompt_feedback: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GeminiCandidate {
    finish_reason: Option<String>,
}

/// The usage of a whole answer; `None`: it does not say.
pub(super) fn of_answer(call: Call, body: &[u8]) -> Option<Spent> {
    match call {
        Call::Messages => {
            serde_json::from_slice::<WithUsage<AnthropicUsage>>(body).ok()?.usage.map(|usage| usage.spent())
        }
        Call::Responses | Call::Chat => {
            serde_json::from_slice::<WithUsage<OpenAiUsage>>(body).ok()?.usage.map(|usage| usage.spent())
        }
        Call::Generate { .. } => {
            serde_json::from_slice::<GeminiChunk>(body).ok()?.usage_metadata.map(|usage| usage.spent())
        }
        Call::CountTokens | Call::Models => None,
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum MessagesEvent {
    MessageStart {
        message: WithUsage<AnthropicUsage>,
    },
    MessageDelta {
        #[serde(default)]
        usage: Option<AnthropicUsage>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum ResponsesEvent {
    #[serde(rename = "response.completed", alias = "response.incomplete", alias = "response.failed")]
    End { response: WithUsage<OpenAiUsage> },
    #[serde(other)]
    Other,
}

/// Reads the usage out of an event stream that passes by.
#[derive(Debug)]
pub(super) struct StreamMeter {
    call: Call,
    line: Vec<u8>,
    /// The current line is longer than what is looked at.
    too_long: bool,
    anthropic: AnthropicUsage,
    spent: Option<Spent>,
    started: bool,
    ended: bool,
}

impl StreamMeter {
    pub(super) fn new(call: Call) -> Self {
        Self {
            call,
            line: Vec::new(),
            too_long: false,
            anthropic: AnthropicUsage::default(),
            spent: None,
            started: false,
            ended: false,
        }
    }

    pub(super) fn feed(&mut self, chunk: &[u8]) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > MAX_EVENT_BYTES {
                self.too_long = true;
                self.line.clear();
            }
            if !self.too_long {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                if !self.too_long {
                    self.event();
                }
                self.line.clear();
                self.too_long = false;
            }
        }
    }

    /// The type of an event is what counts, never its text: a model can write what looks like usage.
    fn event(&mut self) {
        let Some(data) = self.line.strip_prefix(b"data:") else { return };
        let data = data.trim_ascii();
        match self.call {
            Call::Messages => match serde_json::from_slice::<MessagesEvent>(data) {
                Ok(MessagesEvent::MessageStart { message: WithUsage { usage: Some(usage) } }) => {
                    self.started = true;
                    self.anthropic.merge(usage);
                }
                Ok(MessagesEvent::MessageDelta { usage: Some(usage) }) => {
                    self.ended = true;
                    self.anthropic.merge(usage);
                }
                _ => {}
            },
            Call::Responses => {
                if let Ok(ResponsesEvent::End { response: WithUsage { usage: Some(usage) } }) =
                    serde_json::from_slice(data)
                {
                    self.ended = true;
                    self.spent = Some(usage.spent());
                }
            }
            Call::Chat if data == b"[DONE]" => self.ended = true,
            Call::Chat => {
                if let Ok(WithUsage { usage: Some(usage) }) =
                    serde_json::from_slice::<WithUsage<OpenAiUsage>>(data)
                {
                    self.spent = Some(usage.spent());
                }
            }
            Call::Generate { .. } => {
                let Ok(chunk) = serde_json::from_slice::<GeminiChunk>(data) else { return };
                if let Some(usage) = chunk.usage_metadata {
                    self.spent = Some(usage.spent());
                }
                let finished = chunk.candidates.iter().any(|one| one.finish_reason.is_some());
                self.ended |= finished || chunk.prompt_feedback.is_some();
            }
            Call::CountTokens | Call::Models => {}
        }
    }

    /// What the answer cost, when the stream said so to the end. `clean`: the connection ended as it should; not every
    /// OpenAI-compatible server sends `[DONE]`.
    pub(super) fn total(&self, clean: bool) -> Option<Spent> {
        match self.call {
            Call::Messages => (self.started && self.ended).then(|| self.anthropic.spent()),
            Call::Chat => self.spent.filter(|_| self.ended || clean),
            _ => self.spent.filter(|_| self.ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: i64, output: i64, cache_read: i64, cache_write: i64) -> Usage {
        Usage { input, output, cache_read, cache_write }
    }

    /// The meter's total, the same for every way to cut the stream into chunks.
    fn total(call: Call, stream: &str, clean: bool) -> Option<Spent> {
        let mut totals = [1, 7, 64, stream.len().max(1)].into_iter().map(|size| {
            let mut meter = StreamMeter::new(call);
            for chunk in stream.as_bytes().chunks(size) {
                meter.feed(chunk);
            }
            meter.total(clean)
        });
        let first = totals.next().unwrap();
        assert!(totals.all(|total| total == first), "{stream}");
        first
    }

    const MESSAGES: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":100,\"cache_read_input_tokens\":50,\"cache_creation_input_tokens\":20,\"output_tokens\":1}}}\n\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"{\\\"type\\\":\\\"message_delta\\\",\\\"usage\\\":{\\\"output_tokens\\\":0}}\"}}\n\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":30}}\n\n";
    const RESPONSES: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"\\\"usage\\\":{\\\"input_tokens\\\":0}\"}\n\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"usage\":{\"input_tokens\":100,\"input_tokens_details\":{\"cached_tokens\":60},\"output_tokens\":40,\"output_tokens_details\":{\"reasoning_tokens\":30},\"total_tokens\":140}}}\n\n";
    const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":4,\"cache_write_tokens\":3}}}\n\ndata: [DONE]\n\n";
    const GEMINI: &str = "data: {\"candidates\":[{\"content\":{}}],\"usageMetadata\":{\"promptTokenCount\":100,\"candidatesTokenCount\":1}}\r\n\r\ndata: {\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":100,\"cachedContentTokenCount\":30,\"candidatesTokenCount\":20,\"thoughtsTokenCount\":15,\"totalTokenCount\":135}}\r\n\r\n";

    #[test]
    fn every_api_is_read_to_the_token() {
        assert_eq!(total(Call::Messages, MESSAGES, true).unwrap().usage, usage(100, 30, 50, 20));
        assert_eq!(total(Call::Responses, RESPONSES, true).unwrap().usage, usage(40, 40, 60, 0));
        assert_eq!(total(Call::Chat, CHAT, false).unwrap().usage, usage(3, 5, 4, 3));
        assert_eq!(total(Call::Generate { stream: true }, GEMINI, true).unwrap().usage, usage(70, 35, 30, 0));
    }

    #[test]
    fn a_stream_without_its_end_has_no_total() {
        for (call, stream) in [
            (Call::Messages, MESSAGES),
            (Call::Responses, RESPONSES),
            (Call::Generate { stream: true }, GEMINI),
        ] {
            let cut = &stream[..stream.trim_end().rfind("data:").unwrap()];
            assert_eq!(total(call, cut, true), None, "{cut}");
            assert_eq!(total(call, "", true), None);
        }
        let without_done = CHAT.replace("data: [DONE]\n\n", "");
        assert_eq!(total(Call::Chat, &without_done, false), None);
        assert_eq!(total(Call::Chat, &without_done, true).unwrap().usage, usage(3, 5, 4, 3));
        assert_eq!(total(Call::Chat, "data: {\"choices\":[]}\n\ndata: [DONE]\n\n", true), None);
        let failed = RESPONSES.replace("response.completed", "response.incomplete");
        assert_eq!(total(Call::Responses, &failed, true).unwrap().usage.output, 40);
    }

    #[test]
    fn whole_answers_are_read() {
        let read = |call, text: &str| of_answer(call, text.as_bytes());
        let hour = read(
            Call::Messages,
            r#"{"usage":{"cache_creation_input_tokens":1000,"cache_creation":{"ephemeral_1h_input_tokens":400}}}"#,
        )
        .unwrap();
        assert_eq!((hour.usage, hour.hour), (usage(0, 0, 0, 1000), 400));
        assert_eq!(
            read(Call::Responses, r#"{"usage":{"input_tokens":7,"output_tokens":2}}"#).unwrap().usage,
            usage(7, 2, 0, 0)
        );
        assert_eq!(
            read(Call::Chat, r#"{"usage":{"prompt_tokens":7,"completion_tokens":2}}"#).unwrap().usage,
            usage(7, 2, 0, 0)
        );
        assert_eq!(
            read(Call::Generate { stream: false }, r#"{"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":2,"toolUsePromptTokenCount":1}}"#)
                .unwrap()
                .usage,
            usage(8, 2, 0, 0)
        );
        for (call, odd) in [
            (Call::Messages, "not json"),
            (Call::Messages, "{}"),
            (Call::Chat, r#"{"usage":null}"#),
            (Call::Chat, r#"{"usage":{"completion_tokens":2}}"#),
            (Call::Responses, r#"{"usage":{"input_tokens":"7"}}"#),
            (Call::Generate { stream: false }, "{}"),
        ] {
            assert_eq!(read(call, odd), None, "{odd}");
        }
        let lies = r#"{"usage":{"prompt_tokens":5,"completion_tokens":-2,"prompt_tokens_details":{"cached_tokens":99,"cache_write_tokens":9}}}"#;
        assert_eq!(read(Call::Chat, lies).unwrap().usage, usage(0, 0, 5, 0));
    }

    #[test]
    fn a_line_of_any_length_is_survived() {
        let mut meter = StreamMeter::new(Call::Messages);
        let (start, rest) = MESSAGES.split_at(MESSAGES.find("data: {\"type\":\"content").unwrap());
        meter.feed(start.as_bytes());
        meter.feed(b"data: ");
        for _ in 0..3 {
            meter.feed(&vec![b'x'; MAX_EVENT_BYTES]);
        }
        assert!(meter.line.len() <= MAX_EVENT_BYTES);
        meter.feed(b"\n");
        assert_eq!(meter.total(true), None);
        meter.feed(rest.replace('\n', "\r\n").as_bytes());
        assert_eq!(meter.total(true).unwrap().usage, usage(100, 30, 50, 20));
        for odd in [
            "data:",
            "data: null\n",
            "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":\"x\"}}\n",
            "\n\n",
            "data: {\"type\":7}\n",
        ] {
            for call in [Call::Messages, Call::Responses, Call::Chat, Call::Generate { stream: true }] {
                StreamMeter::new(call).feed(odd.as_bytes());
            }
        }
    }
}
