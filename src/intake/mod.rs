//! Bytes → delivery → event: signatures over raw bytes, then the few fields we use.

pub mod github;
pub mod jira;
pub mod sentry;
pub mod signature;

use crate::domain::event::{Decoded, Source};
use serde::de::DeserializeOwned;

/// Longest explanation of why a payload could not be read, in characters: it is stored with the delivery.
const MAX_REASON_CHARS: usize = 300;

/// Decodes a stored delivery. Never panics, whatever the bytes are. `event` is the source's name for its kind.
pub fn decode(source: Source, event: &str, raw: &[u8]) -> Decoded {
    match source {
        Source::Github => github::decode(event, raw),
        Source::Jira => jira::decode(raw),
        Source::Sentry => sentry::decode(event, raw),
    }
}

/// Why a delivery leads to nothing, where that is certain without reading its JSON: most of what a busy repository sends
/// is either an event that nobody asked for or a comment in which the bot's name cannot stand.
pub fn unread(source: Source, event: &str, raw: &[u8]) -> Option<String> {
    match source {
        Source::Github => github::unread(event, raw),
        Source::Jira | Source::Sentry => None,
    }
}

/// Reads JSON into `T`; the error names the field. Nesting is limited by serde_json (128), so that no
/// payload can overflow the stack.
fn read<T: DeserializeOwned>(raw: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(raw);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("`{path}`: ") };
        reason(&format!("{place}{}", error.into_inner()))
    })?;
    json.end().map_err(|error| reason(&error.to_string()))?;
    Ok(value)
}

/// One short line: what a payload says may be long and hold anything.
fn reason(text: &str) -> String {
    text.chars().take(MAX_REASON_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_that_nests_without_end_is_unreadable_and_does_no_harm() {
        for body in ["[".repeat(1_000_000), "{\"a\":".repeat(200_000), "{\"issue\":[[".repeat(50_000)] {
            for source in Source::ALL {
                for event in ["issue_comment", "issues", "push", "nonsense"] {
                    assert!(matches!(decode(source, event, body.as_bytes()), Decoded::Unreadable(_)));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_of_any_event_decode_without_panic(
            event in "[a-z_]{0,12}", body in proptest::collection::vec(any::<u8>(), 0..300), source in 0usize..3,
        ) {
            let _ = decode(Source::ALL[source], &event, &body);
        }
    }
}
