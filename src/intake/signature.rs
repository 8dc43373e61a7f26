//! Is this delivery genuine? Each source's rule, over the raw bytes, in constant time.

use crate::domain::event::Source;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Longest delivery id stored as it is, in bytes (GitHub's are 36 long); longer ones are replaced by their hash.
pub const MAX_DELIVERY_ID_BYTES: usize = 200;
/// Longest event name kept, in bytes: it becomes a column and a log field.
pub const MAX_EVENT_BYTES: usize = 64;
/// Largest Jira body, in bytes, that is searched for its event's name before the answer; the name is only a label.
const MAX_LABEL_BODY_BYTES: usize = 256 * 1024;

const GITHUB_SIGNATURE: &str = "x-hub-signature-256";
const GITHUB_DELIVERY: &str = "x-github-delivery";
const GITHUB_EVENT: &str = "x-github-event";
const JIRA_SIGNATURE: &str = "x-hub-signature";
const JIRA_DELIVERY: &str = "x-atlassian-webhook-identifier";
const SENTRY_SIGNATURE: &str = "sentry-hook-signature";
const SENTRY_RESOURCE: &str = "sentry-hook-resource";

/// A body whose signature was right: the only thing that may be stored or parsed.
#[derive(Debug, Clone)]
pub struct VerifiedBody(Bytes);

impl VerifiedBody {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

/// The facts about a delivery that its headers hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub delivery_id: String,
    pub event: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the signature header is missing")]
    Missing,
    #[error("the signature is wrong")]
    Wrong,
}

fn keyed(secret: &SecretString) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes a key of any length")
}

/// The signature that `header` claims, as bytes. Only the lower-case form that senders produce is taken,
/// so that no two header texts mean the same signature.
fn claimed<'h>(source: Source, header: impl Fn(&str) -> Option<&'h str>) -> Result<[u8; 32], SignatureError> {
    let text = match source {
        Source::Github => header(GITHUB_SIGNATURE),
        Source::Jira => header(JIRA_SIGNATURE),
        Source::Sentry => header(SENTRY_SIGNATURE),
    }
    .ok_or(SignatureError::Missing)?;
    let digits = match source {
        // `method=signature`; every other method (sha1, a future one) is refused, never guessed.
        Source::Github | Source::Jira => text.strip_prefix("sha256=").ok_or(SignatureError::Wrong)?,
        Source::Sentry => text,
    };
    if digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(SignatureError::Wrong);
    }
    let mut signature = [0u8; 32];
    hex::decode_to_slice(digits, &mut signature).map_err(|_| SignatureError::Wrong)?;
    Ok(signature)
}

/// Verifies `body` with any of `secrets` (at least one). `header` looks a header up by its lower-case name.
pub fn verify<'h>(
    source: Source,
    secrets: &[SecretString],
    header: impl Fn(&str) -> Option<&'h str>,
    body: Bytes,
) -> Result<VerifiedBody, SignatureError> {
    let signature = claimed(source, header)?;
    let mut genuine = false;
    // All secrets are always tried: the time taken does not tell which one, if any, was right.
    for secret in secrets {
        let mut mac = keyed(secret);
        mac.update(&body);
        let right = mac.verify_slice(&signature).is_ok();
        // An empty secret is no secret: anybody can sign with it.
        genuine |= right & !secret.expose_secret().is_empty();
    }
    if genuine { Ok(VerifiedBody(body)) } else { Err(SignatureError::Wrong) }
}

/// Delivery id and event name from headers (GitHub, Jira) or, where headers have no stable id (Sentry), from the verified body.
/// `Err` names the missing header.
pub fn envelope<'h>(
    source: Source,
    header: impl Fn(&str) -> Option<&'h str>,
    body: &VerifiedBody,
) -> Result<Envelope, &'static str> {
    match source {
        Source::Github => Ok(Envelope {
            delivery_id: delivery_id(header(GITHUB_DELIVERY), GITHUB_DELIVERY)?,
            event: event_name(header(GITHUB_EVENT).ok_or(GITHUB_EVENT)?, GITHUB_EVENT)?,
        }),
        Source::Jira => Ok(Envelope {
            delivery_id: delivery_id(header(JIRA_DELIVERY), JIRA_DELIVERY)?,
            event: jira_event(body.as_bytes()),
        }),
        Source::Sentry => {
            let event = event_name(header(SENTRY_RESOURCE).ok_or(SENTRY_RESOURCE)?, SENTRY_RESOURCE)?;
            Ok(Envelope { delivery_id: sentry_delivery_id(&event, body.as_bytes()), event })
        }
    }
}

/// The headers a sender of `source` would add: for `send-webhook`, the demo and tests.
/// Jira names its event in the body, Sentry its delivery: the matching argument is not used.
pub fn sign(
    source: Source,
    secret: &SecretString,
    delivery_id: &str,
    event: &str,
    body: &[u8],
) -> Vec<(&'static str, String)> {
    let mut mac = keyed(secret);
    mac.update(body);
    let signature = hex::encode(mac.finalize().into_bytes());
    let mut headers = vec![("content-type", "application/json".to_owned())];
    match source {
        Source::Github => headers.extend([
            (GITHUB_EVENT, event.to_owned()),
            (GITHUB_DELIVERY, delivery_id.to_owned()),
            (GITHUB_SIGNATURE, format!("sha256={signature}")),
        ]),
        Source::Jira => headers.extend([
            (JIRA_DELIVERY, delivery_id.to_owned()),
            (JIRA_SIGNATURE, format!("sha256={signature}")),
        ]),
        Source::Sentry => headers.extend([
            (SENTRY_RESOURCE, event.to_owned()),
            ("request-id", delivery_id.to_owned()),
            (SENTRY_SIGNATURE, signature),
        ]),
    }
    headers
}

fn hashed(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn delivery_id(value: Option<&str>, name: &'static str) -> Result<String, &'static str> {
    let value = value.map(str::trim).unwrap_or_default();
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(name);
    }
    Ok(if value.len() > MAX_DELIVERY_ID_BYTES { hashed(value.as_bytes()) } else { value.to_owned() })
}

/// Event names are words; anything else in one becomes `_`, so that it is safe in a log or a label.
fn event_name(value: &str, name: &'static str) -> Result<String, &'static str> {
    let word: String = value
        .trim()
        .chars()
        .take(MAX_EVENT_BYTES)
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':') { c } else { '_' })
        .collect();
    if word.is_empty() { Err(name) } else { Ok(word) }
}

fn jira_event(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Label {
        #[serde(rename = "webhookEvent")]
        webhook_event: String,
    }
    let label = (body.len() <= MAX_LABEL_BODY_BYTES)
        .then(|| serde_json::from_slice::<Label>(body).ok())
        .flatten()
        .and_then(|label| event_name(&label.webhook_event, "webhookEvent").ok());
    label.unwrap_or_else(|| "jira".to_owned())
}

/// Sentry makes a new `Request-ID` for every try, so the id is made from what stays the same in the body:
/// installation, resource, action and the event's id, or for an issue its id, substatus and last sighting.
/// A body without them is its own id.
fn sentry_delivery_id(resource: &str, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        action: String,
        installation: Installation,
        data: Data,
    }
    #[derive(Deserialize)]
    struct Installation {
        uuid: String,
    }
    #[derive(Deserialize)]
    struct Data {
        event: Option<Seen>,
        error: Option<Seen>,
        issue: Option<Issue>,
    }
    #[derive(Deserialize)]
    struct Seen {
        event_id: String,
    }
    #[derive(Deserialize)]
    struct Issue {
        id: String,
        substatus: Option<String>,
        #[serde(rename = "lastSeen")]
        last_seen: Option<String>,
    }
    let Ok(Body { action, installation, data }) = serde_json::from_slice::<Body>(body) else {
        return hashed(body);
    };
    let mut parts = vec![installation.uuid, resource.to_owned(), action];
    match (data.event.or(data.error), data.issue) {
        (Some(seen), _) => parts.push(seen.event_id),
        (None, Some(issue)) => {
            parts.extend([issue.id, issue.substatus.unwrap_or_default(), issue.last_seen.unwrap_or_default()])
        }
        (None, None) => return hashed(body),
    }
    let plain = |part: &String| {
        part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'+'))
    };
    let joined = parts.join("/");
    if parts.iter().all(plain) && joined.len() <= MAX_DELIVERY_ID_BYTES {
        joined
    } else {
        // Lengths first: no two lists of parts give the same bytes.
        let lengths: Vec<String> = parts.iter().map(|part| part.len().to_string()).collect();
        hashed(format!("{}\n{joined}", lengths.join(",")).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALERT: &[u8] = include_bytes!("../../tests/fixtures/sentry/event_alert.triggered.json");
    const ISSUE: &[u8] = include_bytes!("../../tests/fixtures/sentry/issue.created.json");

    fn secrets(list: &[&str]) -> Vec<SecretString> {
        list.iter().map(|text| SecretString::from((*text).to_owned())).collect()
    }

    fn lookup<'h>(headers: &'h [(&'static str, String)]) -> impl Fn(&str) -> Option<&'h str> {
        move |name| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
    }

    fn signed(source: Source, secret: &str, body: &[u8]) -> Vec<(&'static str, String)> {
        sign(source, &secrets(&[secret])[0], "delivery-1", "issue_comment", body)
    }

    fn check(
        source: Source,
        with: &[&str],
        headers: &[(&'static str, String)],
        body: &[u8],
    ) -> Result<(), SignatureError> {
        verify(source, &secrets(with), lookup(headers), Bytes::copy_from_slice(body)).map(|_| ())
    }

    fn envelope_of(
        source: Source,
        headers: &[(&'static str, String)],
        body: &[u8],
    ) -> Result<Envelope, &'static str> {
        envelope(source, lookup(headers), &VerifiedBody(Bytes::copy_from_slice(body)))
    }

    #[test]
    fn the_vector_that_github_publishes_verifies() {
        let value = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let headers = [("x-hub-signature-256", value.to_owned())];
        let secret = "It's a Secret to Everybody";
        assert_eq!(check(Source::Github, &[secret], &headers, b"Hello, World!"), Ok(()));
        assert_eq!(check(Source::Github, &[secret], &headers, b"Hello, World"), Err(SignatureError::Wrong));
    }

    #[test]
    fn what_is_signed_verifies_for_every_source_and_for_no_other() {
        for source in Source::ALL {
            let headers = signed(source, "s3cret", b"{}");
            assert_eq!(check(source, &["s3cret"], &headers, b"{}"), Ok(()), "{source:?}");
            assert_eq!(check(source, &["old", "s3cret"], &headers, b"{}"), Ok(()), "rotation");
            assert_eq!(check(source, &["s3cret", "new"], &headers, b"{}"), Ok(()), "rotation");
            assert_eq!(check(source, &["other"], &headers, b"{}"), Err(SignatureError::Wrong));
            assert_eq!(check(source, &[], &headers, b"{}"), Err(SignatureError::Wrong), "no secret");
            for other in Source::ALL.into_iter().filter(|other| *other != source) {
                assert!(check(other, &["s3cret"], &headers, b"{}").is_err(), "{source:?} as {other:?}");
            }
        }
    }

    #[test]
    fn an_empty_secret_never_verifies() {
        for source in Source::ALL {
            let headers = signed(source, "", b"{}");
            assert_eq!(check(source, &[""], &headers, b"{}"), Err(SignatureError::Wrong));
        }
    }

    #[test]
    fn missing_and_malformed_signatures_are_told_apart() {
        let right = signed(Source::Github, "s", b"x").pop().unwrap().1;
        let cases = [
            (None, SignatureError::Missing),
            (Some(String::new()), SignatureError::Wrong),
            (Some("sha256=".to_owned()), SignatureError::Wrong),
            (Some(right.replace("sha256=", "sha1=")), SignatureError::Wrong),
            (Some(right.replace("sha256=", "")), SignatureError::Wrong),
            (Some(right.to_uppercase()), SignatureError::Wrong),
            (Some(format!("{right}00")), SignatureError::Wrong),
            (Some(right[..right.len() - 2].to_owned()), SignatureError::Wrong),
            (Some(format!(" {right}")), SignatureError::Wrong),
            (Some("sha256=zz".repeat(10)), SignatureError::Wrong),
        ];
        for (value, expected) in cases {
            for (source, name) in [(Source::Github, "x-hub-signature-256"), (Source::Jira, "x-hub-signature")]
            {
                let headers: Vec<_> = value.iter().map(|value| (name, value.clone())).collect();
                assert_eq!(check(source, &["s"], &headers, b"x"), Err(expected), "{source:?} {value:?}");
            }
        }
        assert_eq!(check(Source::Sentry, &["s"], &[], b"x"), Err(SignatureError::Missing));
    }

    #[test]
    fn the_legacy_sha1_header_of_github_is_ignored() {
        let headers = [("x-hub-signature", "sha1=00".to_owned())];
        assert_eq!(check(Source::Github, &["s"], &headers, b"x"), Err(SignatureError::Missing));
    }

    #[test]
    fn envelopes_come_from_headers() {
        let github = signed(Source::Github, "s", b"{}");
        assert_eq!(
            envelope_of(Source::Github, &github, b"{}"),
            Ok(Envelope { delivery_id: "delivery-1".into(), event: "issue_comment".into() })
        );
        let jira = signed(Source::Jira, "s", b"{}");
        let body = br#"{"webhookEvent":"jira:issue_updated","issue":{}}"#;
        assert_eq!(
            envelope_of(Source::Jira, &jira, body),
            Ok(Envelope { delivery_id: "delivery-1".into(), event: "jira:issue_updated".into() })
        );
        assert_eq!(envelope_of(Source::Jira, &jira, b"not json").unwrap().event, "jira");
    }

    #[test]
    fn a_missing_header_is_named() {
        let without = |source, name: &str| {
            let headers: Vec<_> =
                signed(source, "s", b"{}").into_iter().filter(|(key, _)| *key != name).collect();
            envelope_of(source, &headers, b"{}")
        };
        assert_eq!(without(Source::Github, "x-github-delivery"), Err("x-github-delivery"));
        assert_eq!(without(Source::Github, "x-github-event"), Err("x-github-event"));
        assert_eq!(
            without(Source::Jira, "x-atlassian-webhook-identifier"),
            Err("x-atlassian-webhook-identifier")
        );
        assert_eq!(without(Source::Sentry, "sentry-hook-resource"), Err("sentry-hook-resource"));
    }

    #[test]
    fn odd_ids_are_refused_and_long_ones_hashed() {
        let with = |id: &str, event: &str| {
            let headers = [("x-github-delivery", id.to_owned()), ("x-github-event", event.to_owned())];
            envelope_of(Source::Github, &headers, b"{}")
        };
        for bad in ["", "   ", "a\u{0}b", "a\nb", "\u{7f}x"] {
            assert_eq!(with(bad, "ping"), Err("x-github-delivery"), "{bad:?}");
        }
        let long = with(&"a".repeat(5_000), "ping").unwrap().delivery_id;
        assert!(long.starts_with("sha256:") && long.len() < 100);
        assert_ne!(long, with(&"a".repeat(5_001), "ping").unwrap().delivery_id);
        assert_eq!(with("1", "a\"b\n").unwrap().event, "a_b");
        assert_eq!(with("1", &"e".repeat(500)).unwrap().event.len(), MAX_EVENT_BYTES);
    }

    #[test]
    fn sentry_deliveries_keep_their_id_when_sent_again() {
        let id = |resource: &str, request: &str, body: &[u8]| {
            let headers = [("sentry-hook-resource", resource.to_owned()), ("request-id", request.to_owned())];
            envelope_of(Source::Sentry, &headers, body).unwrap().delivery_id
        };
        assert_eq!(id("event_alert", "1", ALERT), id("event_alert", "2", ALERT));
        assert!(
            id("event_alert", "1", ALERT)
                .starts_with("a8e5d37a-696c-4c54-adb5-b3f28d64c7de/event_alert/triggered/")
        );
        assert_eq!(
            id("issue", "1", ISSUE),
            "a8e5d37a-696c-4c54-adb5-b3f28d64c7de/issue/created/1170820242/escalating/2019-08-19T20:58:37.391000Z"
        );
        assert_ne!(id("issue", "1", ISSUE), id("event_alert", "1", ISSUE));
        for odd in [&b"not json"[..], b"", b"{}", b"[1]", br#"{"action":1}"#] {
            assert!(id("issue", "1", odd).starts_with("sha256:"), "{odd:?}");
        }
        let slashes = |a: &str, b: &str| {
            let body = serde_json::json!({"action": a, "installation": {"uuid": "u"},
                "data": {"event": {"event_id": b}}});
            id("event_alert", "1", body.to_string().as_bytes())
        };
        assert_ne!(slashes("a/b", "c"), slashes("a", "b/c"));
        assert!(slashes("a", &"x".repeat(10_000)).len() < 100);
    }

    #[test]
    fn bodies_that_nest_without_end_do_not_overflow_the_stack() {
        for body in ["[".repeat(1_000_000), "{\"data\":".repeat(200_000)] {
            let headers = [("sentry-hook-resource", "issue".to_owned())];
            assert!(envelope_of(Source::Sentry, &headers, body.as_bytes()).is_ok());
            assert_eq!(jira_event(body.as_bytes()), "jira");
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_verifies(
            body in proptest::collection::vec(any::<u8>(), 1..200),
            in_body: bool, at: usize, bit in 0u8..8, source in 0usize..3,
        ) {
            let source = Source::ALL[source];
            let headers = signed(source, "a secret", &body);
            prop_assert_eq!(check(source, &["a secret"], &headers, &body), Ok(()));
            let (name, value) = headers.last().unwrap().clone();
            let mut changed_body = body.clone();
            let mut changed_value = value.into_bytes();
            let target = if in_body { &mut changed_body } else { &mut changed_value };
            let at = at % target.len();
            target[at] ^= 1 << bit;
            if let Ok(value) = String::from_utf8(changed_value) {
                prop_assert!(check(source, &["a secret"], &[(name, value)], &changed_body).is_err());
            }
        }

        #[test]
        fn envelopes_never_panic(id in ".*", event in ".*", body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let headers = [
                ("x-github-delivery", id.clone()), ("x-github-event", event.clone()),
                ("x-atlassian-webhook-identifier", id), ("sentry-hook-resource", event),
            ];
            for source in Source::ALL {
                if let Ok(envelope) = envelope_of(source, &headers, &body) {
                    prop_assert!(envelope.delivery_id.len() <= MAX_DELIVERY_ID_BYTES);
                    prop_assert!(!envelope.delivery_id.contains(char::is_control));
                    prop_assert!(!envelope.event.is_empty() && envelope.event.len() <= MAX_EVENT_BYTES);
                }
            }
        }
    }
}
