//! The shapes of requests that a run may send: an allow-list, field by field.
//!
//! A model API is itself a way out: tools that run at the provider fetch pages, files are named by ids, images by URLs,
//! and an answer can be stored for somebody else. So everything that is not listed is refused, with its place and the
//! reason. What is the agent's own data (JSON Schemas of its tools, arguments of calls) is free.

use super::json::Json;
use super::route::Call;
use crate::domain::model_api::ModelApi;

/// What a value may look like. A field may be `null` wherever it may be absent.
pub(super) enum Shape {
    /// The client's own data, which no provider acts on.
    Own,
    Text,
    Number,
    Bool,
    Null,
    False,
    /// Just this number.
    One,
    /// One of these texts.
    Is(&'static [&'static str]),
    /// One of these texts, and the field has to be there: without it the provider would choose.
    Must(&'static [&'static str]),
    /// A text that begins with one of these: `bash_20250124`.
    Begins(&'static [&'static str]),
    /// `data:…`: the bytes themselves, not a place to fetch them from.
    Data,
    List(&'static Shape),
    /// Any keys, all values alike.
    Map(&'static Shape),
    Object(&'static [Field]),
    /// By the text in a field; with a list for objects that have no such field.
    Tagged(&'static str, Option<&'static [Field]>, &'static [(&'static str, &'static [Field])]),
    /// The first that is of the same kind (text, list, object, …) as the value.
    Either(&'static [Shape]),
}

type Field = (&'static str, &'static Shape);

/// A request that may not be sent: where, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) place: String,
    pub(super) why: String,
}

impl Refused {
    fn new(place: &str, why: impl Into<String>) -> Self {
        Self { place: place.to_owned(), why: why.into() }
    }

    pub(super) fn message(&self) -> String {
        let place = if self.place.is_empty() { "the request" } else { &self.place };
        format!("`{place}` {}", self.why)
    }
}

/// Whether a run may send this.
pub(super) fn check(api: ModelApi, call: Call, body: &Json) -> Result<(), Refused> {
    let shape = match call {
        Call::Messages => &MESSAGES,
        Call::CountTokens if api == ModelApi::Gemini => &GEMINI_COUNT,
        Call::CountTokens => &MESSAGES,
        Call::Responses => &RESPONSES,
        Call::Chat => &CHAT,
        Call::Generate { .. } => &GENERATE,
        Call::Models => &Shape::Null,
    };
    if !matches!(body, Json::Object(_)) {
        return Err(Refused::new("", "must be a JSON object"));
    }
    fits(body, shape, &mut String::new())
}

/// Reasons that are worth more than "not on the list", by the name of a field or a type.
const REASONS: &[(&str, &str)] = &[
    ("mcp", "names a remote MCP server, which would be called from the provider"),
    ("mcpServers", "names a remote MCP server, which would be called from the provider"),
    ("web_search", "is a tool that runs at the provider and reaches the network"),
    ("web_fetch", "is a tool that runs at the provider and reaches the network"),
    ("googleSearch", "is a tool that runs at the provider and reaches the network"),
    ("google", "is a tool that runs at the provider and reaches the network"),
    ("urlContext", "is a tool that runs at the provider and reaches the network"),
    ("url_context", "is a tool that runs at the provider and reaches the network"),
    ("code_execution", "is a tool that runs at the provider"),
    ("codeExecution", "is a tool that runs at the provider"),
    ("code_interpreter", "is a tool that runs at the provider"),
    ("file_search", "is a tool that runs at the provider"),
    ("fileSearch", "is a tool that runs at the provider"),
    ("image_generation", "is a tool that runs at the provider"),
    ("computer", "is a tool that a run does not have"),
    ("tool_search_tool", "is a tool that runs at the provider"),
    ("file_id", "names a file stored at the provider; send its bytes"),
    ("fileData", "names a file stored elsewhere; send its bytes as inlineData"),
    ("file_data", "names a file stored elsewhere; send its bytes as inlineData"),
    ("file_url", "is a URL that the provider would fetch; send the bytes"),
    ("file", "names a file stored at the provider; send its bytes"),
    ("url", "is a URL that the provider would fetch; send the bytes"),
    ("container", "names a container at the provider"),
    ("previous_response_id", "names an answer stored at the provider; send the conversation itself"),
    ("conversation", "names a conversation stored at the provider; send it"),
    ("item_reference", "names an item stored at the provider; send it"),
    ("prompt", "names a prompt stored at the provider; send its text"),
    ("cachedContent", "names content stored at the provider; send it"),
    ("background", "would answer without anybody metering it"),
];

fn reason(name: &str) -> String {
    REASONS
        .iter()
        .find(|(known, _)| {
            name == *known || name.strip_prefix(known).is_some_and(|rest| rest.starts_with('_'))
        })
        .map_or_else(|| "is not on the list of what a run may send".to_owned(), |(_, why)| (*why).to_owned())
}

/// A name from a request, for a message.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(60).collect()
}

fn fits(value: &Json, shape: &'static Shape, place: &mut String) -> Result<(), Refused> {
    let wrong = |place: &str, wanted: &str| {
        Err(Refused::new(place, format!("must be {wanted}, not {}", value.kind())))
    };
    match (shape, value) {
        (Shape::Own, _) => own(value, place),
        (Shape::Text, Json::Text(_)) | (Shape::Number, Json::Number(_)) | (Shape::Bool, Json::Bool(_)) => {
            Ok(())
        }
        (Shape::Null, Json::Null) => Ok(()),
        (Shape::False, Json::Bool(false)) => Ok(()),
        (Shape::One, Json::Number(number)) if number.as_i64() == Some(1) => Ok(()),
        (Shape::Is(allowed) | Shape::Must(allowed), Json::Text(text)) => {
            if allowed.contains(&text.as_str()) {
                Ok(())
            } else {
                Err(Refused::new(place, format!("may not be `{}`: it {}", shown(text), reason(text))))
            }
        }
        (Shape::Begins(allowed), Json::Text(text)) => {
            if allowed.iter().any(|begin| text.starts_with(begin)) {
                Ok(())
            } else {
                Err(Refused::new(place, format!("may not be `{}`: it {}", shown(text), reason(text))))
            }
        }
        (Shape::Data, Json::Text(text)) => {
            // The scheme is compared as written: `DATA:` is refused, which costs nobody anything.
            if text.starts_with("data:") {
                Ok(())
            } else {
                Err(Refused::new(place, "is a URL that the provider would fetch; send the bytes as `data:`"))
            }
        }
        (Shape::List(inner), Json::List(values)) => {
            let length = place.len();
            for (at, value) in values.iter().enumerate() {
                place.push_str(&format!("[{at}]"));
                fits(value, inner, place)?;
                place.truncate(length);
            }
            Ok(())
        }
        (Shape::Map(inner), Json::Object(fields)) => {
            let length = place.len();
            for (name, value) in fields {
                enter(place, name);
                fits(value, inner, place)?;
                place.truncate(length);
            }
            Ok(())
        }
        (Shape::Object(allowed), Json::Object(fields)) => object(fields, allowed, None, place),
        (Shape::Tagged(tag, untagged, variants), Json::Object(fields)) => {
            let Some(kind) = value.get(tag) else {
                return match untagged {
                    Some(allowed) => object(fields, allowed, None, place),
                    None => Err(Refused::new(place, format!("needs `{tag}`"))),
                };
            };
            let kind = kind.text().unwrap_or_default();
            match variants.iter().find(|(name, _)| *name == kind) {
                Some((_, allowed)) => object(fields, allowed, Some(tag), place),
                None => {
                    enter(place, tag);
                    Err(Refused::new(place, format!("may not be `{}`: it {}", shown(kind), reason(kind))))
                }
            }
        }
        (Shape::Either(shapes), _) => match shapes.iter().find(|shape| is_kind(shape, value)) {
            Some(shape) => fits(value, shape, place),
            None => wrong(place, "of another kind"),
        },
        (Shape::Text | Shape::Is(_) | Shape::Must(_) | Shape::Begins(_) | Shape::Data, _) => {
            wrong(place, "a text")
        }
        (Shape::Number, _) => wrong(place, "a number"),
        (Shape::One, _) => Err(Refused::new(place, "must be 1: more answers cost more than is reserved")),
        (Shape::Bool, _) => wrong(place, "true or false"),
        (Shape::Null, _) => Err(Refused::new(place, "is not on the list of what a run may send")),
        (Shape::False, _) => Err(Refused::new(place, format!("must be false: it {}", reason(last(place))))),
        (Shape::List(_), _) => wrong(place, "a list"),
        (Shape::Map(_) | Shape::Object(_) | Shape::Tagged(..), _) => wrong(place, "an object"),
    }
}

fn last(place: &str) -> &str {
    place.rsplit('.').next().unwrap_or(place)
}

fn enter(place: &mut String, name: &str) {
    if !place.is_empty() {
        place.push('.');
    }
    place.push_str(&shown(name));
}

fn object(
    fields: &[(String, Json)],
    allowed: &'static [Field],
    tag: Option<&str>,
    place: &mut String,
) -> Result<(), Refused> {
    let length = place.len();
    for (name, value) in fields {
        enter(place, name);
        match allowed.iter().find(|(known, _)| known == name) {
            _ if tag == Some(name) => {}
            None => return Err(Refused::new(place, reason(name))),
            Some(_) if value.is_null() => {}
            Some((_, shape)) => fits(value, shape, place)?,
        }
        place.truncate(length);
    }
    for (name, shape) in allowed {
        let Shape::Must(texts) = shape else { continue };
        if !fields.iter().any(|(known, value)| known == name && !value.is_null()) {
            return Err(Refused::new(place, format!("needs `{name}` to be `{}`", texts.join("` or `"))));
        }
    }
    Ok(())
}

fn is_kind(shape: &Shape, value: &Json) -> bool {
    match (shape, value) {
        (Shape::Own, _) => true,
        (Shape::Text | Shape::Is(_) | Shape::Must(_) | Shape::Begins(_) | Shape::Data, value) => {
            matches!(value, Json::Text(_))
        }
        (Shape::Number | Shape::One, value) => matches!(value, Json::Number(_)),
        (Shape::Bool | Shape::False, value) => matches!(value, Json::Bool(_)),
        (Shape::Null, value) => value.is_null(),
        (Shape::List(_), value) => matches!(value, Json::List(_)),
        (Shape::Map(_) | Shape::Object(_) | Shape::Tagged(..), value) => matches!(value, Json::Object(_)),
        (Shape::Either(shapes), value) => shapes.iter().any(|shape| is_kind(shape, value)),
    }
}

/// The one thing in a JSON Schema that could make somebody fetch something: `$ref` to another document.
fn own(value: &Json, place: &str) -> Result<(), Refused> {
    match value {
        Json::List(values) => values.iter().try_for_each(|value| own(value, place)),
        Json::Object(fields) => fields.iter().try_for_each(|(name, value)| match value {
            Json::Text(target)
                if matches!(name.as_str(), "$ref" | "$dynamicRef") && !target.starts_with('#') =>
            {
                Err(Refused::new(place, "holds a `$ref` to another document"))
            }
            value => own(value, place),
        }),
        _ => Ok(()),
    }
}

// ---------------------------------------------------------------- Anthropic

static CACHE: Shape = Shape::Object(&[
    ("type", &Shape::Is(&["ephemeral"])),
    ("ttl", &Shape::Is(&["5m", "1h"])),
    ("scope", &Shape::Is(&["global", "organization", "workspace"])),
]);

const TEXT_BLOCK: &[Field] =
    &[("text", &Shape::Text), ("cache_control", &CACHE), ("citations", &Shape::Null)];

static BYTES: Shape = Shape::Tagged(
    "type",
    None,
    &[
        ("base64", &[("media_type", &Shape::Text), ("data", &Shape::Text)]),
        ("text", &[("media_type", &Shape::Text), ("data", &Shape::Text)]),
        ("content", &[("content", &RESULT)]),
    ],
);

static IMAGE_BLOCK: [Field; 2] = [("source", &BYTES), ("cache_control", &CACHE)];

static DOCUMENT_BLOCK: [Field; 5] = [
    ("source", &BYTES),
    ("cache_control", &CACHE),
    ("title", &Shape::Text),
    ("context", &Shape::Text),
    ("citations", &Shape::Object(&[("enabled", &Shape::Bool)])),
];

/// What a tool gave back, and the inside of a document.
static RESULT: Shape = Shape::Either(&[
    Shape::Text,
    Shape::List(&Shape::Tagged(
        "type",
        None,
        &[
            ("text", TEXT_BLOCK),
            ("image", &IMAGE_BLOCK),
            ("document", &DOCUMENT_BLOCK),
            ("tool_reference", &[("tool_name", &Shape::Text), ("cache_control", &CACHE)]),
        ],
    )),
]);

static BLOCKS: Shape = Shape::Either(&[
    Shape::Text,
    Shape::List(&Shape::Tagged(
        "type",
        None,
        &[
            ("text", TEXT_BLOCK),
            ("image", &IMAGE_BLOCK),
            ("document", &DOCUMENT_BLOCK),
            (
                "tool_use",
                &[
                    ("id", &Shape::Text),
                    ("name", &Shape::Text),
                    ("input", &Shape::Own),
                    ("cache_control", &CACHE),
                    ("caller", &Shape::Object(&[("type", &Shape::Is(&["direct"]))])),
                ],
            ),
            (
                "tool_result",
                &[
                    ("tool_use_id", &Shape::Text),
                    ("content", &RESULT),
                    ("is_error", &Shape::Bool),
                    ("cache_control", &CACHE),
                ],
            ),
            ("thinking", &[("thinking", &Shape::Text), ("signature", &Shape::Text)]),
            ("redacted_thinking", &[("data", &Shape::Text)]),
        ],
    )),
]);

const EFFORT: Field = ("effort", &Shape::Text);

const OWN_TOOL: &[Field] = &[
    ("name", &Shape::Text),
    ("description", &Shape::Text),
    ("input_schema", &Shape::Own),
    ("cache_control", &CACHE),
    ("strict", &Shape::Bool),
    ("eager_input_streaming", &Shape::Bool),
    ("defer_loading", &Shape::Bool),
    ("input_examples", &Shape::Own),
    ("allowed_callers", &Shape::List(&Shape::Is(&["direct"]))),
];

/// Tools that Anthropic defines and the client runs.
const CLIENT_TOOL: &[Field] =
    &[("name", &Shape::Text), ("cache_control", &CACHE), ("max_characters", &Shape::Number)];

static MESSAGES: Shape = Shape::Object(&[
    ("model", &Shape::Text),
    (
        "messages",
        &Shape::List(&Shape::Object(&[
            ("role", &Shape::Is(&["user", "assistant", "system"])),
            ("content", &BLOCKS),
            ("output_config", &Shape::Object(&[EFFORT])),
        ])),
    ),
    (
        "system",
        &Shape::Either(&[Shape::Text, Shape::List(&Shape::Tagged("type", None, &[("text", TEXT_BLOCK)]))]),
    ),
    ("max_tokens", &Shape::Number),
    ("stream", &Shape::Bool),
    ("temperature", &Shape::Number),
    ("top_p", &Shape::Number),
    ("top_k", &Shape::Number),
    ("stop_sequences", &Shape::List(&Shape::Text)),
    ("metadata", &Shape::Object(&[("user_id", &Shape::Text)])),
    ("service_tier", &Shape::Is(&["standard_only"])),
    ("speed", &Shape::Is(&["standard"])),
    ("cache_control", &CACHE),
    (
        "thinking",
        &Shape::Object(&[
            ("type", &Shape::Is(&["enabled", "disabled", "adaptive"])),
            ("budget_tokens", &Shape::Number),
            ("display", &Shape::Text),
        ]),
    ),
    (
        "output_config",
        &Shape::Object(&[
            EFFORT,
            ("format", &Shape::Object(&[("type", &Shape::Is(&["json_schema"])), ("schema", &Shape::Own)])),
        ]),
    ),
    (
        "context_management",
        &Shape::Object(&[(
            "edits",
            &Shape::List(&Shape::Object(&[
                ("type", &Shape::Begins(&["clear_thinking_", "clear_tool_uses_"])),
                ("keep", &Shape::Own),
                ("trigger", &Shape::Own),
                ("clear_at_least", &Shape::Own),
                ("exclude_tools", &Shape::List(&Shape::Text)),
                ("clear_tool_inputs", &Shape::Own),
            ])),
        )]),
    ),
    (
        "tool_choice",
        &Shape::Object(&[
            ("type", &Shape::Is(&["auto", "any", "tool", "none"])),
            ("name", &Shape::Text),
            ("disable_parallel_tool_use", &Shape::Bool),
        ]),
    ),
    (
        "tools",
        &Shape::List(&Shape::Tagged(
            "type",
            Some(OWN_TOOL),
            &[
                ("custom", OWN_TOOL),
                ("bash_20241022", CLIENT_TOOL),
                ("bash_20250124", CLIENT_TOOL),
                ("text_editor_20241022", CLIENT_TOOL),
                ("text_editor_20250124", CLIENT_TOOL),
                ("text_editor_20250429", CLIENT_TOOL),
                ("text_editor_20250728", CLIENT_TOOL),
                ("memory_20250818", CLIENT_TOOL),
            ],
        )),
    ),
]);

/// Betas that change how text, tools of the client and thinking are written, and nothing about what the provider does.
/// As Claude Code 2.1.329 knows them, with their older names.
const BETAS: &[&str] = &[
    "advanced-tool-use-2025-11-20",
    "afk-mode-2026-01-31",
    "cache-diagnosis-2026-04-07",
    "claude-code-20250219",
    "claude-code-side-query-2026-09-29",
    "context-hint-2026-04-09",
    "context-management-2025-06-27",
    "dangerous-tool-use-2026-09-03",
    "effort-2025-11-24",
    "extended-cache-ttl-2025-04-11",
    "fine-grained-tool-streaming-2025-05-14",
    "inline-tools-2026-09-15",
    "interleaved-thinking-2025-05-14",
    "mid-conversation-system-2026-04-07",
    "mid-conversation-system-clear-at-2026-08-21",
    "mid-conversation-tool-changes-2026-07-01",
    "output-128k-2025-02-19",
    "per-turn-control-2026-07-01",
    "prompt-caching-2024-07-31",
    "prompt-caching-evict-2026-05-12",
    "prompt-caching-scope-2026-01-05",
    "redact-thinking-2026-02-12",
    "structured-outputs-2025-11-13",
    "structured-outputs-2025-12-15",
    "thinking-binding-controls-2026-08-01",
    "thinking-display-updates-2026-08-18",
    "thinking-resumption-2026-07-17",
    "thinking-token-count-2026-05-13",
    "timing-2026-09-09",
    "token-counting-2024-11-01",
    "token-efficient-tools-2025-02-19",
    "tool-provenance-2026-10-26",
];

/// Betas that are left out without a word: they only make a request dearer than the table says.
const DEARER_BETAS: &[&str] = &["context-1m-", "fast-mode-"];

/// The `anthropic-beta` header as it goes on. `Err`: the first flag that is not known.
pub(super) fn betas<'a>(values: impl Iterator<Item = &'a str>) -> Result<String, String> {
    let mut kept = Vec::new();
    for beta in values.flat_map(|value| value.split(',')).map(str::trim).filter(|beta| !beta.is_empty()) {
        if DEARER_BETAS.iter().any(|dearer| beta.starts_with(dearer)) {
            continue;
        }
        if !BETAS.contains(&beta) {
            return Err(shown(beta));
        }
        kept.push(beta);
    }
    Ok(kept.join(","))
}

// ---------------------------------------------------------------- OpenAI

const STATUS: Field = ("status", &Shape::Text);
const ID: Field = ("id", &Shape::Text);
const CALL_ID: Field = ("call_id", &Shape::Text);

/// Text and pictures, by the bytes.
static INPUT_PARTS: Shape = Shape::Either(&[
    Shape::Text,
    Shape::List(&Shape::Tagged(
        "type",
        None,
        &[
            ("input_text", &[("text", &Shape::Text)]),
            (
                "output_text",
                &[
                    ("text", &Shape::Text),
                    ("annotations", &Shape::List(&Shape::Null)),
                    ("logprobs", &Shape::List(&Shape::Null)),
                ],
            ),
            ("refusal", &[("refusal", &Shape::Text)]),
            ("input_image", &[("image_url", &Shape::Data), ("detail", &Shape::Text)]),
            ("input_file", &[("file_data", &Shape::Data), ("filename", &Shape::Text)]),
        ],
    )),
]);

const MESSAGE_ITEM: &[Field] = &[
    ID,
    STATUS,
    ("role", &Shape::Is(&["user", "assistant", "system", "developer"])),
    ("content", &INPUT_PARTS),
    ("phase", &Shape::Text),
];

/// Tools that Codex finds for the model among its own, and the calls of that: searched by the provider, they would be
/// another affair.
const BY_CLIENT: Field = ("execution", &Shape::Must(&["client"]));

static LOCAL_SHELL_ACTION: Shape = Shape::Object(&[
    ("type", &Shape::Is(&["exec"])),
    ("command", &Shape::List(&Shape::Text)),
    ("commands", &Shape::List(&Shape::Text)),
    ("env", &Shape::Map(&Shape::Text)),
    ("timeout_ms", &Shape::Number),
    ("working_directory", &Shape::Text),
    ("user", &Shape::Text),
]);

static REASONING_TEXTS: Shape = Shape::List(&Shape::Tagged(
    "type",
    None,
    &[
        ("summary_text", &[("text", &Shape::Text)]),
        ("reasoning_text", &[("text", &Shape::Text)]),
        ("text", &[("text", &Shape::Text)]),
    ],
));

static ITEMS: Shape = Shape::Either(&[
    Shape::Text,
    Shape::List(&Shape::Tagged(
        "type",
        Some(MESSAGE_ITEM),
        &[
            ("message", MESSAGE_ITEM),
            (
                "function_call",
                &[
                    ID,
                    STATUS,
                    CALL_ID,
                    ("name", &Shape::Text),
                    ("namespace", &Shape::Text),
                    ("arguments", &Shape::Text),
                ],
            ),
            ("function_call_output", &[ID, STATUS, CALL_ID, ("output", &INPUT_PARTS)]),
            (
                "custom_tool_call",
                &[
                    ID,
                    STATUS,
                    CALL_ID,
                    ("name", &Shape::Text),
                    ("namespace", &Shape::Text),
                    ("input", &Shape::Text),
                ],
            ),
            (
                "custom_tool_call_output",
                &[ID, STATUS, CALL_ID, ("name", &Shape::Text), ("output", &INPUT_PARTS)],
            ),
            ("local_shell_call", &[ID, STATUS, CALL_ID, ("action", &LOCAL_SHELL_ACTION)]),
            ("local_shell_call_output", &[ID, STATUS, CALL_ID, ("output", &Shape::Text)]),
            ("apply_patch_call", &[ID, STATUS, CALL_ID, ("operation", &Shape::Own)]),
            ("apply_patch_call_output", &[ID, STATUS, CALL_ID, ("output", &Shape::Text)]),
            (
                "reasoning",
                &[
                    ID,
                    STATUS,
                    ("summary", &REASONING_TEXTS),
                    ("content", &REASONING_TEXTS),
                    ("encrypted_content", &Shape::Text),
                ],
            ),
            ("compaction", &[ID, ("encrypted_content", &Shape::Text)]),
            ("tool_search_call", &[ID, STATUS, CALL_ID, BY_CLIENT, ("arguments", &Shape::Own)]),
            ("tool_search_output", &[ID, STATUS, CALL_ID, BY_CLIENT, ("tools", &RESPONSES_TOOLS)]),
            // Where Codex puts the tools of newer models.
            (
                "additional_tools",
                &[ID, STATUS, ("role", &Shape::Is(&["developer"])), ("tools", &RESPONSES_TOOLS)],
            ),
        ],
    )),
]);

static CUSTOM_FORMAT: Shape = Shape::Tagged(
    "type",
    None,
    &[
        ("text", &[]),
        (
            "grammar",
            &[
                ("syntax", &Shape::Text),
                ("definition", &Shape::Text),
                ("grammar", &Shape::Object(&[("syntax", &Shape::Text), ("definition", &Shape::Text)])),
            ],
        ),
    ],
);

const FUNCTION_TOOL: &[Field] = &[
    ("name", &Shape::Text),
    ("description", &Shape::Text),
    ("parameters", &Shape::Own),
    ("strict", &Shape::Bool),
    ("defer_loading", &Shape::Bool),
];

const CUSTOM_TOOL: &[Field] = &[
    ("name", &Shape::Text),
    ("description", &Shape::Text),
    ("format", &CUSTOM_FORMAT),
    ("defer_loading", &Shape::Bool),
];

static RESPONSE_FORMAT: Shape = Shape::Object(&[
    ("type", &Shape::Is(&["text", "json_object", "json_schema"])),
    ("name", &Shape::Text),
    ("description", &Shape::Text),
    ("schema", &Shape::Own),
    ("strict", &Shape::Bool),
    (
        "json_schema",
        &Shape::Object(&[
            ("name", &Shape::Text),
            ("description", &Shape::Text),
            ("schema", &Shape::Own),
            ("strict", &Shape::Bool),
        ]),
    ),
]);

/// Tools that the client runs. A namespace is a name before theirs: Codex puts the tools of an MCP server into one.
static RESPONSES_TOOLS: Shape = Shape::List(&Shape::Tagged(
    "type",
    None,
    &[
        ("function", FUNCTION_TOOL),
        ("custom", CUSTOM_TOOL),
        ("local_shell", &[]),
        ("apply_patch", &[]),
        ("tool_search", &[BY_CLIENT, ("description", &Shape::Text), ("parameters", &Shape::Own)]),
        (
            "namespace",
            &[
                ("name", &Shape::Text),
                ("description", &Shape::Text),
                (
                    "tools",
                    &Shape::List(&Shape::Tagged(
                        "type",
                        None,
                        &[("function", FUNCTION_TOOL), ("custom", CUSTOM_TOOL)],
                    )),
                ),
            ],
        ),
    ],
));

/// Not `priority` or `flex`: they have other prices.
static TIER: Shape = Shape::Is(&["auto", "default"]);

static RESPONSES: Shape = Shape::Object(&[
    ("model", &Shape::Text),
    ("input", &ITEMS),
    ("instructions", &Shape::Text),
    ("max_output_tokens", &Shape::Number),
    ("stream", &Shape::Bool),
    ("stream_options", &Shape::Object(&[("include_obfuscation", &Shape::Bool)])),
    // Set to false on its way.
    ("store", &Shape::Bool),
    ("background", &Shape::False),
    ("temperature", &Shape::Number),
    ("top_p", &Shape::Number),
    ("top_logprobs", &Shape::Number),
    ("max_tool_calls", &Shape::Number),
    ("parallel_tool_calls", &Shape::Bool),
    ("truncation", &Shape::Text),
    ("user", &Shape::Text),
    ("safety_identifier", &Shape::Text),
    ("prompt_cache_key", &Shape::Text),
    ("prompt_cache_retention", &Shape::Is(&["in_memory", "in-memory"])),
    ("metadata", &Shape::Map(&Shape::Text)),
    ("client_metadata", &Shape::Map(&Shape::Text)),
    ("service_tier", &TIER),
    (
        "reasoning",
        &Shape::Object(&[
            EFFORT,
            ("summary", &Shape::Text),
            ("generate_summary", &Shape::Text),
            ("context", &Shape::Text),
        ]),
    ),
    ("text", &Shape::Object(&[("format", &RESPONSE_FORMAT), ("verbosity", &Shape::Text)])),
    ("include", &Shape::List(&Shape::Is(&["reasoning.encrypted_content", "message.output_text.logprobs"]))),
    (
        "tool_choice",
        &Shape::Either(&[
            Shape::Is(&["auto", "none", "required"]),
            Shape::Tagged(
                "type",
                None,
                &[
                    ("function", &[("name", &Shape::Text)]),
                    ("custom", &[("name", &Shape::Text)]),
                    ("apply_patch", &[]),
                    ("local_shell", &[]),
                    (
                        "allowed_tools",
                        &[
                            ("mode", &Shape::Text),
                            (
                                "tools",
                                &Shape::List(&Shape::Object(&[
                                    ("type", &Shape::Is(&["function", "custom"])),
                                    ("name", &Shape::Text),
                                ])),
                            ),
                        ],
                    ),
                ],
            ),
        ]),
    ),
    ("tools", &RESPONSES_TOOLS),
]);

/// `cache_control`: gateways to models of Anthropic take it here, too.
static CHAT_PARTS: Shape = Shape::Either(&[
    Shape::Text,
    Shape::List(&Shape::Tagged(
        "type",
        None,
        &[
            ("text", &[("text", &Shape::Text), ("cache_control", &CACHE)]),
            ("refusal", &[("refusal", &Shape::Text)]),
            (
                "image_url",
                &[
                    ("image_url", &Shape::Object(&[("url", &Shape::Data), ("detail", &Shape::Text)])),
                    ("cache_control", &CACHE),
                ],
            ),
            ("file", &[("file", &Shape::Object(&[("file_data", &Shape::Data), ("filename", &Shape::Text)]))]),
        ],
    )),
]);

const CHAT_FUNCTION: Field =
    ("function", &Shape::Object(&[("name", &Shape::Text), ("arguments", &Shape::Text)]));
const CHAT_CUSTOM: Field = ("custom", &Shape::Object(&[("name", &Shape::Text), ("input", &Shape::Text)]));

static CHAT: Shape = Shape::Object(&[
    ("model", &Shape::Text),
    (
        "messages",
        &Shape::List(&Shape::Object(&[
            ("role", &Shape::Is(&["system", "developer", "user", "assistant", "tool"])),
            ("content", &CHAT_PARTS),
            ("name", &Shape::Text),
            ("refusal", &Shape::Text),
            ("tool_call_id", &Shape::Text),
            ("reasoning", &Shape::Text),
            ("reasoning_content", &Shape::Text),
            ("cache_control", &CACHE),
            (
                "tool_calls",
                &Shape::List(&Shape::Object(&[
                    ID,
                    ("index", &Shape::Number),
                    ("type", &Shape::Is(&["function", "custom"])),
                    CHAT_FUNCTION,
                    CHAT_CUSTOM,
                ])),
            ),
        ])),
    ),
    ("max_tokens", &Shape::Number),
    ("max_completion_tokens", &Shape::Number),
    ("stream", &Shape::Bool),
    (
        "stream_options",
        &Shape::Object(&[("include_usage", &Shape::Bool), ("include_obfuscation", &Shape::Bool)]),
    ),
    // Set to false on its way.
    ("store", &Shape::Bool),
    ("n", &Shape::One),
    ("temperature", &Shape::Number),
    ("top_p", &Shape::Number),
    ("top_k", &Shape::Number),
    ("min_p", &Shape::Number),
    ("seed", &Shape::Number),
    ("stop", &Shape::Either(&[Shape::Text, Shape::List(&Shape::Text)])),
    ("presence_penalty", &Shape::Number),
    ("frequency_penalty", &Shape::Number),
    ("repetition_penalty", &Shape::Number),
    ("logit_bias", &Shape::Map(&Shape::Number)),
    ("logprobs", &Shape::Bool),
    ("top_logprobs", &Shape::Number),
    ("user", &Shape::Text),
    ("safety_identifier", &Shape::Text),
    ("prompt_cache_key", &Shape::Text),
    ("prompt_cache_retention", &Shape::Is(&["in_memory", "in-memory"])),
    ("metadata", &Shape::Map(&Shape::Text)),
    ("service_tier", &TIER),
    ("reasoning_effort", &Shape::Text),
    ("verbosity", &Shape::Text),
    ("response_format", &RESPONSE_FORMAT),
    ("parallel_tool_calls", &Shape::Bool),
    ("modalities", &Shape::List(&Shape::Is(&["text"]))),
    (
        "tool_choice",
        &Shape::Either(&[
            Shape::Is(&["auto", "none", "required"]),
            Shape::Object(&[
                ("type", &Shape::Is(&["function", "custom"])),
                ("function", &Shape::Object(&[("name", &Shape::Text)])),
                ("custom", &Shape::Object(&[("name", &Shape::Text)])),
            ]),
        ]),
    ),
    (
        "tools",
        &Shape::List(&Shape::Tagged(
            "type",
            None,
            &[
                ("function", &[("function", &Shape::Object(FUNCTION_TOOL)), ("cache_control", &CACHE)]),
                ("custom", &[("custom", &Shape::Object(CUSTOM_TOOL))]),
            ],
        )),
    ),
]);

// ---------------------------------------------------------------- Gemini

static GEMINI_PART: Shape = Shape::Object(&[
    ("text", &Shape::Text),
    ("thought", &Shape::Bool),
    ("thoughtSignature", &Shape::Text),
    INLINE_DATA,
    ("functionCall", &Shape::Object(&[ID, ("name", &Shape::Text), ("args", &Shape::Own)])),
    (
        "functionResponse",
        &Shape::Object(&[
            ID,
            ("name", &Shape::Text),
            ("response", &Shape::Own),
            ("willContinue", &Shape::Bool),
            ("scheduling", &Shape::Text),
            ("parts", &Shape::List(&Shape::Object(&[INLINE_DATA]))),
        ]),
    ),
]);

const INLINE_DATA: Field = (
    "inlineData",
    &Shape::Object(&[("mimeType", &Shape::Text), ("data", &Shape::Text), ("displayName", &Shape::Text)]),
);

static CONTENT: Shape = Shape::Object(&[
    ("role", &Shape::Is(&["user", "model", "system", "function"])),
    ("parts", &Shape::Either(&[Shape::List(&GEMINI_PART), GEMINI_ONE_PART])),
]);

const GEMINI_ONE_PART: Shape = Shape::Object(&[("text", &Shape::Text)]);

static FUNCTION_CALLING: Shape = Shape::Object(&[(
    "functionCallingConfig",
    &Shape::Object(&[("mode", &Shape::Text), ("allowedFunctionNames", &Shape::List(&Shape::Text))]),
)]);

const GEMINI_FIELDS: &[Field] = &[
    ("model", &Shape::Text),
    (
        "contents",
        &Shape::Either(&[
            Shape::List(&CONTENT),
            Shape::Object(&[("role", &Shape::Is(&["user"])), ("parts", &Shape::List(&GEMINI_PART))]),
        ]),
    ),
    ("systemInstruction", &CONTENT),
    ("toolConfig", &FUNCTION_CALLING),
    (
        "tools",
        &Shape::List(&Shape::Object(&[(
            "functionDeclarations",
            &Shape::List(&Shape::Object(&[
                ("name", &Shape::Text),
                ("description", &Shape::Text),
                ("parameters", &Shape::Own),
                ("parametersJsonSchema", &Shape::Own),
                ("response", &Shape::Own),
                ("responseJsonSchema", &Shape::Own),
                ("behavior", &Shape::Text),
            ])),
        )])),
    ),
    (
        "safetySettings",
        &Shape::List(&Shape::Object(&[
            ("category", &Shape::Text),
            ("threshold", &Shape::Text),
            ("method", &Shape::Text),
        ])),
    ),
    (
        "generationConfig",
        &Shape::Object(&[
            ("temperature", &Shape::Number),
            ("topP", &Shape::Number),
            ("topK", &Shape::Number),
            ("seed", &Shape::Number),
            ("maxOutputTokens", &Shape::Number),
            ("candidateCount", &Shape::One),
            ("stopSequences", &Shape::List(&Shape::Text)),
            ("presencePenalty", &Shape::Number),
            ("frequencyPenalty", &Shape::Number),
            ("responseMimeType", &Shape::Is(&["text/plain", "application/json", "text/x.enum"])),
            ("responseSchema", &Shape::Own),
            ("responseJsonSchema", &Shape::Own),
            ("responseModalities", &Shape::List(&Shape::Is(&["TEXT", "text"]))),
            ("responseLogprobs", &Shape::Bool),
            ("logprobs", &Shape::Number),
            ("mediaResolution", &Shape::Text),
            (
                "thinkingConfig",
                &Shape::Object(&[
                    ("includeThoughts", &Shape::Bool),
                    ("thinkingBudget", &Shape::Number),
                    ("thinkingLevel", &Shape::Text),
                ]),
            ),
        ]),
    ),
];

static GENERATE: Shape = Shape::Object(GEMINI_FIELDS);

static GEMINI_COUNT: Shape = Shape::Object(&[
    ("contents", &Shape::List(&CONTENT)),
    ("model", &Shape::Text),
    ("generateContentRequest", &Shape::Object(GEMINI_FIELDS)),
]);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD_MESSAGES: &str = r##"{"model":"m","max_tokens":10,"stream":true,"temperature":1,"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral","ttl":"1h"}}],"messages":[{"role":"user","content":[{"type":"text","text":"t"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA"}},{"type":"document","source":{"type":"text","media_type":"text/plain","data":"d"},"title":null}]},{"role":"assistant","content":[{"type":"thinking","thinking":"h","signature":"s"},{"type":"tool_use","id":"t1","name":"Read","input":{"free":{"any":1}}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","is_error":false,"content":[{"type":"text","text":"r"}]}]},{"role":"user","content":"plain"}],"tools":[{"name":"Read","description":"d","input_schema":{"type":"object","$ref":"#/x","anything":{}}},{"type":"bash_20250124","name":"bash"}],"tool_choice":{"type":"auto"},"metadata":{"user_id":"u"},"thinking":{"type":"enabled","budget_tokens":5,"display":"updates"},"context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"}]},"output_config":{"effort":"medium"}}"##;
    const GOOD_RESPONSES: &str = r##"{"model":"m","instructions":"i","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"t"},{"type":"input_image","image_url":"data:image/png;base64,AA","detail":"auto"}]},{"role":"developer","content":"d"},{"type":"reasoning","id":"r","summary":[{"type":"summary_text","text":"s"}],"content":null,"encrypted_content":"e"},{"type":"function_call","call_id":"c","name":"shell","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"o"},{"type":"custom_tool_call","call_id":"d","name":"apply_patch","input":"p","status":"completed"},{"type":"custom_tool_call_output","call_id":"d","output":"o"},{"type":"local_shell_call","call_id":"l","status":"completed","action":{"type":"exec","command":["ls"],"timeout_ms":5}},{"type":"tool_search_call","id":"ts","call_id":"t","status":"completed","execution":"client","arguments":{"query":"q"}},{"type":"tool_search_output","id":"to","call_id":"t","status":"completed","execution":"client","tools":[{"type":"namespace","name":"mcp__zeblit","description":"d","tools":[{"type":"function","name":"ask","strict":false,"defer_loading":true,"parameters":{"any":{}}}]}]},{"type":"function_call","call_id":"m","name":"ask","namespace":"mcp__zeblit","arguments":"{}"},{"type":"additional_tools","id":"at","role":"developer","tools":[{"type":"namespace","name":"functions","description":"","tools":[{"type":"custom","name":"exec","format":{"type":"grammar","syntax":"lark","definition":"x"}}]}]}],"tools":[{"type":"function","name":"shell","strict":false,"parameters":{"any":{}}},{"type":"custom","name":"apply_patch","format":{"type":"grammar","syntax":"lark","definition":"x"}},{"type":"local_shell"},{"type":"tool_search","execution":"client","description":"d","parameters":{"any":{}}},{"type":"namespace","name":"mcp__zeblit","description":"d","tools":[{"type":"function","name":"progress","strict":false,"parameters":{"any":{}}}]}],"tool_choice":"auto","parallel_tool_calls":false,"reasoning":{"effort":"medium","summary":"auto"},"store":false,"stream":true,"include":["reasoning.encrypted_content"],"prompt_cache_key":"k","text":{"verbosity":"low"}}"##;
    const GOOD_CHAT: &str = r##"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"t"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"r"}],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"any":1}}}],"tool_choice":"auto","stream":true,"stream_options":{"include_usage":true},"max_tokens":5,"n":1,"stop":["x"],"response_format":{"type":"text"}}"##;
    const GOOD_GEMINI: &str = r##"{"contents":[{"role":"user","parts":[{"text":"t"},{"inlineData":{"mimeType":"image/png","data":"AA"}}]},{"role":"model","parts":[{"text":"h","thought":true,"thoughtSignature":"s"},{"functionCall":{"name":"f","args":{"any":1}}}]},{"role":"user","parts":[{"functionResponse":{"id":"1","name":"f","response":{"any":1}}}]}],"systemInstruction":{"role":"user","parts":[{"text":"s"}]},"tools":[{"functionDeclarations":[{"name":"f","description":"d","parametersJsonSchema":{"any":1}}]}],"toolConfig":{"functionCallingConfig":{"mode":"AUTO"}},"generationConfig":{"temperature":0,"topP":1,"maxOutputTokens":9,"candidateCount":1,"thinkingConfig":{"includeThoughts":true,"thinkingBudget":-1}}}"##;

    const ALL: [(ModelApi, Call, &str); 4] = [
        (ModelApi::Anthropic, Call::Messages, GOOD_MESSAGES),
        (ModelApi::OpenAi, Call::Responses, GOOD_RESPONSES),
        (ModelApi::OpenAi, Call::Chat, GOOD_CHAT),
        (ModelApi::Gemini, Call::Generate { stream: true }, GOOD_GEMINI),
    ];

    fn verdict(api: ModelApi, call: Call, text: &str) -> Result<(), Refused> {
        check(api, call, &Json::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    #[test]
    fn what_the_clis_send_passes() {
        for (api, call, good) in ALL {
            assert_eq!(verdict(api, call, good), Ok(()));
        }
        let count = r#"{"generateContentRequest":{"model":"models/g","contents":[{"role":"user","parts":[{"text":"t"}]}]}}"#;
        assert_eq!(verdict(ModelApi::Gemini, Call::CountTokens, count), Ok(()));
        assert_eq!(
            verdict(ModelApi::Gemini, Call::CountTokens, r#"{"contents":[{"parts":[{"text":"t"}]}]}"#),
            Ok(())
        );
        assert_eq!(verdict(ModelApi::Anthropic, Call::CountTokens, r#"{"model":"m","messages":[]}"#), Ok(()));
    }

    /// A good request with one more field.
    fn with(good: &str, field: &str) -> String {
        format!(
            "{},{field}}}",
            good.trim_end_matches('}').to_owned()
                + &"}".repeat(good.len() - good.trim_end_matches('}').len() - 1)
        )
    }

    /// More than a hundred ways to make a provider do, fetch or keep something.
    fn bad_shapes() -> Vec<(ModelApi, Call, String)> {
        let mut bad = Vec::new();
        let mut add = |at: usize, text: String| {
            let (api, call, _) = ALL[at];
            bad.push((api, call, text));
        };
        for field in [
            r#""mcp_servers":[{"type":"url","url":"https://evil.example","name":"x"}]"#,
            r#""mcp_servers":[]"#,
            r#""container":"c_1""#,
            r#""container":{"skills":[{"type":"custom","skill_id":"s"}]}"#,
            r#""inference_geo":"us""#,
            r#""service_tier":"auto""#,
            r#""speed":"fast""#,
            r#""betas":["files-api-2025-04-14"]"#,
            r#""fallback":"x""#,
            r#""extra_body":{}"#,
            r#""user_profile_id":"p""#,
            r#""context_management":{"edits":[{"type":"compact_20260112"}]}"#,
            r#""tool_choice":{"type":"server"}"#,
            r#""metadata":{"user_id":"u","callback":"https://evil.example"}"#,
            r#""thinking":{"type":"remote"}"#,
            r#""output_config":{"task_budget":{"type":"tokens","total":9}}"#,
            r#""cache_control":{"type":"persistent"}"#,
            r#""stream":"true""#,
        ] {
            add(0, format!(r#"{{"model":"m","max_tokens":1,"messages":[],{field}}}"#));
        }
        for tool in [
            r#"{"type":"web_search_20250305","name":"web_search"}"#,
            r#"{"type":"web_search_20260209","name":"web_search","allowed_domains":["evil.example"]}"#,
            r#"{"type":"web_fetch_20250910","name":"web_fetch"}"#,
            r#"{"type":"code_execution_20250522","name":"code_execution"}"#,
            r#"{"type":"code_execution_20250825","name":"code_execution"}"#,
            r#"{"type":"mcp_toolset","mcp_server_name":"x"}"#,
            r#"{"type":"tool_search_tool_regex_20251119","name":"t"}"#,
            r#"{"type":"tool_search_tool_bm25_20251119","name":"t"}"#,
            r#"{"type":"advisor_20260301","name":"advisor","model":"m"}"#,
            r#"{"type":"computer_20250124","name":"computer","display_width_px":1,"display_height_px":1}"#,
            r#"{"type":"text_editor_29990101","name":"x"}"#,
            r#"{"type":"bash_20250124 ","name":"bash"}"#,
            r#"{"type":"WEB_SEARCH_20250305","name":"w"}"#,
            r#"{"type":null,"name":"web_search"}"#,
            r#"{"type":["custom"],"name":"x"}"#,
            r#"{"name":"x","input_schema":{"$ref":"https://evil.example/s.json"}}"#,
            r#"{"name":"x","input_schema":{},"allowed_callers":["code_execution_20250825"]}"#,
            r#"{"name":"x","input_schema":{},"url":"https://evil.example"}"#,
            r#""web_search""#,
        ] {
            add(0, format!(r#"{{"model":"m","max_tokens":1,"messages":[],"tools":[{tool}]}}"#));
        }
        for block in [
            r#"{"type":"image","source":{"type":"url","url":"https://evil.example/a.png"}}"#,
            r#"{"type":"image","source":{"type":"file","file_id":"file_1"}}"#,
            r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA","url":"https://evil.example"}}"#,
            r#"{"type":"document","source":{"type":"url","url":"https://evil.example/a.pdf"}}"#,
            r#"{"type":"document","source":{"type":"file","file_id":"file_1"}}"#,
            r#"{"type":"document","source":{"type":"content","content":[{"type":"image","source":{"type":"url","url":"https://evil.example"}}]}}"#,
            r#"{"type":"tool_result","tool_use_id":"t","content":[{"type":"image","source":{"type":"url","url":"https://evil.example"}}]}"#,
            r#"{"type":"tool_result","tool_use_id":"t","content":[{"type":"document","source":{"type":"file","file_id":"f"}}]}"#,
            r#"{"type":"tool_result","tool_use_id":"t","content":[{"type":"search_result","source":"https://evil.example","title":"t","content":[]}]}"#,
            r#"{"type":"search_result","source":"https://evil.example","title":"t","content":[]}"#,
            r#"{"type":"container_upload","file_id":"file_1"}"#,
            r#"{"type":"server_tool_use","id":"s","name":"web_search","input":{"query":"secret"}}"#,
            r#"{"type":"web_search_tool_result","tool_use_id":"s","content":[]}"#,
            r#"{"type":"code_execution_tool_result","tool_use_id":"s","content":{}}"#,
            r#"{"type":"mcp_tool_use","id":"m","name":"n","server_name":"s","input":{}}"#,
            r#"{"type":"mcp_tool_result","tool_use_id":"m","content":[]}"#,
            r#"{"type":"text","text":"t","citations":[{"type":"web_search_result_location","url":"https://evil.example"}]}"#,
            r#"{"type":"tool_use","id":"t","name":"n","input":{},"caller":{"type":"code_execution_20250825","tool_id":"x"}}"#,
            r#"{"type":"text","text":{"url":"x"}}"#,
            r#"{"type":"video","source":{"type":"base64","data":"AA"}}"#,
            r#"{"text":"no type"}"#,
            r#"7"#,
        ] {
            add(
                0,
                format!(
                    r#"{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":[{block}]}}]}}"#
                ),
            );
        }
        add(0, r#"{"model":"m","max_tokens":1,"messages":[],"system":[{"type":"image","source":{"type":"url","url":"https://evil.example"}}]}"#.into());
        add(0, r#"{"model":"m","max_tokens":1,"messages":[{"role":"tool","content":"x"}]}"#.into());
        for field in [
            r#""previous_response_id":"resp_1""#,
            r#""conversation":"conv_1""#,
            r#""conversation":{"id":"conv_1"}"#,
            r#""prompt":{"id":"pmpt_1","variables":{}}"#,
            r#""background":true"#,
            r#""store":"yes""#,
            r#""service_tier":"priority""#,
            r#""service_tier":"flex""#,
            r#""prompt_cache_retention":"24h""#,
            r#""include":["file_search_call.results"]"#,
            r#""include":["web_search_call.action.sources"]"#,
            r#""include":["code_interpreter_call.outputs"]"#,
            r#""context_management":[{"type":"compaction"}]"#,
            r#""tool_choice":{"type":"web_search_preview"}"#,
            r#""tool_choice":{"type":"mcp","server_label":"x"}"#,
            r#""tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"mcp","server_label":"x"}]}"#,
            r#""webhook":"https://evil.example""#,
            r#""moderation":{}"#,
            r#""metadata":{"a":{"b":"c"}}"#,
            r#""max_output_tokens":"10""#,
        ] {
            add(1, format!(r#"{{"model":"m","input":"x",{field}}}"#));
        }
        for tool in [
            r#"{"type":"web_search"}"#,
            r#"{"type":"web_search_preview"}"#,
            r#"{"type":"web_search_2025_08_26"}"#,
            r#"{"type":"file_search","vector_store_ids":["vs_1"]}"#,
            r#"{"type":"code_interpreter","container":{"type":"auto","file_ids":["f"]}}"#,
            r#"{"type":"image_generation"}"#,
            r#"{"type":"mcp","server_label":"x","server_url":"https://evil.example"}"#,
            r#"{"type":"mcp","connector_id":"connector_gmail","authorization":"t"}"#,
            r#"{"type":"computer_use_preview"}"#,
            r#"{"type":"shell","environment":{"type":"container_auto"}}"#,
            r#"{"type":"tool_search"}"#,
            r#"{"type":"tool_search","execution":null}"#,
            r#"{"type":"tool_search","execution":"server"}"#,
            r#"{"type":"tool_search","execution":"client","vector_store_ids":["vs_1"]}"#,
            r#"{"type":"namespace","name":"n","tools":[{"type":"tool_search","execution":"client"}]}"#,
            r#"{"type":"namespace","name":"n","tools":[{"type":"mcp","server_url":"https://evil.example"}]}"#,
            r#"{"type":"namespace","name":"n","server_url":"https://evil.example","tools":[]}"#,
            r#"{"type":"function","name":"f","server_url":"https://evil.example"}"#,
            r#"{"type":"namespace","name":"n","tools":[{"type":"web_search"}]}"#,
            r#"{"name":"untyped","parameters":{}}"#,
        ] {
            add(1, format!(r#"{{"model":"m","input":"x","tools":[{tool}]}}"#));
        }
        for item in [
            r#"{"type":"item_reference","id":"msg_1"}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_image","image_url":"https://evil.example/a.png"}]}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_image","image_url":"DATA:image/png;base64,AA"}]}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_image","file_id":"file_1"}]}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_file","file_id":"file_1"}]}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_file","file_url":"https://evil.example/a.pdf"}]}"#,
            r#"{"type":"message","role":"user","content":[{"type":"input_audio","input_audio":{}}]}"#,
            r#"{"type":"function_call_output","call_id":"c","output":[{"type":"input_image","image_url":"http://169.254.169.254/"}]}"#,
            r#"{"type":"web_search_call","id":"w","status":"completed"}"#,
            r#"{"type":"file_search_call","id":"w","queries":["q"]}"#,
            r#"{"type":"code_interpreter_call","id":"w","code":"x","container_id":"c"}"#,
            r#"{"type":"image_generation_call","id":"ig_1"}"#,
            r#"{"type":"tool_search_call","call_id":"c","arguments":{"query":"q"}}"#,
            r#"{"type":"tool_search_call","call_id":"c","execution":"server","arguments":{"query":"q"}}"#,
            r#"{"type":"tool_search_output","call_id":"c","tools":[]}"#,
            r#"{"type":"tool_search_output","call_id":"c","execution":"client","tools":[{"type":"mcp","server_label":"x","server_url":"https://evil.example"}]}"#,
            r#"{"type":"tool_search_output","call_id":"c","execution":"client","tools":[{"type":"web_search"}]}"#,
            r#"{"type":"tool_search_output","call_id":"c","execution":"client","tools":[{"type":"namespace","name":"n","tools":[{"type":"code_interpreter","container":{"type":"auto"}}]}]}"#,
            r#"{"type":"additional_tools","role":"developer","tools":[{"type":"web_search"}]}"#,
            r#"{"type":"additional_tools","role":"developer","tools":[{"type":"tool_search"}]}"#,
            r#"{"type":"additional_tools","role":"developer","tools":[{"type":"image_generation"}]}"#,
            r#"{"type":"additional_tools","role":"user","tools":[]}"#,
            r#"{"type":"mcp_call","id":"m","server_label":"s","name":"n","arguments":"{}"}"#,
            r#"{"type":"mcp_list_tools","id":"m","server_label":"s","tools":[]}"#,
            r#"{"type":"mcp_approval_response","approval_request_id":"a","approve":true}"#,
            r#"{"type":"computer_call","call_id":"c","action":{}}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"t","annotations":[{"type":"file_citation","file_id":"f"}]}]}"#,
        ] {
            add(1, format!(r#"{{"model":"m","input":[{item}]}}"#));
        }
        for field in [
            r#""web_search_options":{}"#,
            r#""functions":[{"name":"f"}]"#,
            r#""n":2"#,
            r#""n":128"#,
            r#""audio":{"voice":"alloy","format":"wav"}"#,
            r#""modalities":["text","audio"]"#,
            r#""service_tier":"priority""#,
            r#""plugins":[{"id":"web"}]"#,
            r#""provider":{"order":["x"]}"#,
            r#""models":["dear"]"#,
            r#""route":"fallback""#,
            r#""extra_body":{}"#,
            r#""prediction":{"type":"content","content":"x"}"#,
            r#""best_of":5"#,
            r#""stream_options":{"include_usage":true,"callback":"https://evil.example"}"#,
            r#""tools":[{"type":"web_search"}]"#,
            r#""tools":[{"type":"mcp","server_url":"https://evil.example"}]"#,
            r#""tools":[{"type":"function","function":{"name":"f","url":"https://evil.example"}}]"#,
            r#""tools":[{"function":{"name":"f"}}]"#,
        ] {
            add(2, format!(r#"{{"model":"m","messages":[],{field}}}"#));
        }
        for part in [
            r#"{"type":"image_url","image_url":{"url":"https://evil.example/a.png"}}"#,
            r#"{"type":"image_url","image_url":"https://evil.example/a.png"}"#,
            r#"{"type":"image_url","image_url":{"url":"//evil.example/a.png"}}"#,
            r#"{"type":"file","file":{"file_id":"file_1"}}"#,
            r#"{"type":"file","file":{"file_data":"https://evil.example/a.pdf"}}"#,
            r#"{"type":"video_url","video_url":{"url":"https://evil.example"}}"#,
            r#"{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}}"#,
        ] {
            add(2, format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}"#));
        }
        add(2, r#"{"model":"m","messages":[{"role":"assistant","audio":{"id":"audio_1"}}]}"#.into());
        for field in [
            r#""cachedContent":"cachedContents/x""#,
            r#""cached_content":"cachedContents/x""#,
            r#""labels":{"a":"b"}"#,
            r#""tools":[{"googleSearch":{}}]"#,
            r#""tools":[{"google_search":{}}]"#,
            r#""tools":[{"googleSearchRetrieval":{}}]"#,
            r#""tools":[{"urlContext":{}}]"#,
            r#""tools":[{"url_context":{}}]"#,
            r#""tools":[{"codeExecution":{}}]"#,
            r#""tools":[{"code_execution":{}}]"#,
            r#""tools":[{"googleMaps":{}}]"#,
            r#""tools":[{"fileSearch":{"fileSearchStoreNames":["x"]}}]"#,
            r#""tools":[{"computerUse":{}}]"#,
            r#""tools":[{"mcpServers":[{"name":"x"}]}]"#,
            r#""tools":[{"retrieval":{}}]"#,
            r#""tools":[{"functionDeclarations":[],"googleSearch":{}}]"#,
            r#""generationConfig":{"candidateCount":8}"#,
            r#""generationConfig":{"responseModalities":["IMAGE"]}"#,
            r#""generationConfig":{"speechConfig":{}}"#,
            r#""generationConfig":{"imageConfig":{}}"#,
            r#""toolConfig":{"retrievalConfig":{}}"#,
            r#""store":true"#,
            r#""serviceTier":"priority""#,
        ] {
            add(3, format!(r#"{{"contents":[],{field}}}"#));
        }
        for part in [
            r#"{"fileData":{"fileUri":"gs://bucket/x","mimeType":"text/plain"}}"#,
            r#"{"fileData":{"fileUri":"https://www.youtube.com/watch?v=x"}}"#,
            r#"{"file_data":{"file_uri":"https://evil.example"}}"#,
            r#"{"executableCode":{"language":"PYTHON","code":"x"}}"#,
            r#"{"codeExecutionResult":{"outcome":"OUTCOME_OK"}}"#,
            r#"{"inlineData":{"mimeType":"image/png","data":"AA","fileUri":"x"}}"#,
            r#"{"functionResponse":{"name":"f","response":{},"parts":[{"fileData":{"fileUri":"x"}}]}}"#,
            r#"{"toolCall":{"toolType":"GOOGLE_SEARCH"}}"#,
            r#"{"videoMetadata":{"fps":1}}"#,
        ] {
            add(3, format!(r#"{{"contents":[{{"role":"user","parts":[{part}]}}]}}"#));
        }
        for (at, (_, _, good)) in ALL.iter().enumerate() {
            add(at, with(good, r#""a_field_of_next_year":null"#));
            add(at, "[]".into());
            add(at, "\"x\"".into());
        }
        bad
    }

    #[test]
    fn every_known_bad_shape_is_refused_and_says_where() {
        let bad = bad_shapes();
        assert!(bad.len() >= 120, "{}", bad.len());
        for (api, call, text) in &bad {
            match verdict(*api, *call, text) {
                Ok(()) => panic!("passed: {text}"),
                Err(refused) => assert!(!refused.why.is_empty() && refused.message().len() < 500, "{text}"),
            }
        }
        let says = |at: usize, text: &str| {
            let (api, call, _) = ALL[at];
            verdict(api, call, text).unwrap_err().message()
        };
        assert_eq!(
            says(0, r#"{"tools":[{"name":"a"},{"type":"web_search_20250305"}]}"#),
            "`tools[1].type` may not be `web_search_20250305`: it is a tool that runs at the provider and reaches the network"
        );
        assert_eq!(
            says(1, r#"{"previous_response_id":"r"}"#),
            "`previous_response_id` names an answer stored at the provider; send the conversation itself"
        );
        assert_eq!(says(2, r#"{"x\u0000y":1}"#), "`xy` is not on the list of what a run may send");
    }

    /// Keys below which everything is the client's own.
    const OWN_KEYS: &[&str] = &[
        "input_schema",
        "parameters",
        "parametersJsonSchema",
        "input",
        "args",
        "arguments",
        "response",
        "keep",
    ];

    /// Adds a field to the object number `at`, in order of appearance; counts down through `at`.
    fn insert(value: &mut Json, at: &mut usize, name: &str, what: &Json) -> bool {
        match value {
            Json::List(values) => values.iter_mut().any(|value| insert(value, at, name, what)),
            Json::Object(fields) => {
                if *at == 0 {
                    fields.push((name.to_owned(), what.clone()));
                    return true;
                }
                *at -= 1;
                fields
                    .iter_mut()
                    // `input` of the Responses API is the conversation, of a tool call its arguments.
                    .filter(|(key, value)| {
                        !OWN_KEYS.contains(&key.as_str()) || matches!(value, Json::List(_))
                    })
                    .any(|(_, value)| insert(value, at, name, what))
            }
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

        #[test]
        fn an_unknown_field_never_passes(
            which in 0usize..4,
            at in 0usize..40,
            name in "[a-z_]{1,12}_x[a-z0-9]{0,4}",
            what in prop_oneof![
                Just(Json::Null),
                Just(Json::Bool(false)),
                Just(Json::Text("x".into())),
                Just(Json::List(Vec::new())),
                Just(Json::Object(Vec::new())),
            ],
        ) {
            let (api, call, good) = ALL[which];
            let mut value = Json::parse(good.as_bytes()).unwrap();
            let mut left = at;
            if insert(&mut value, &mut left, &name, &what) {
                prop_assert!(check(api, call, &value).is_err(), "{name} in object {at} of {call:?}");
            }
        }
    }

    #[test]
    fn betas_are_an_allow_list() {
        assert_eq!(
            betas(["claude-code-20250219, context-1m-2025-08-07", "effort-2025-11-24,"].into_iter()),
            Ok("claude-code-20250219,effort-2025-11-24".into())
        );
        for bad in [
            "files-api-2025-04-14",
            "mcp-client-2025-04-04",
            "code-execution-2025-05-22",
            "skills-2025-10-02",
            "x",
            "?",
        ] {
            assert_eq!(betas(["effort-2025-11-24", bad].into_iter()), Err(bad.to_owned()));
        }
        assert_eq!(betas(std::iter::empty()), Ok(String::new()));
    }
}
