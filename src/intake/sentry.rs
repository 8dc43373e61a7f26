//! Sentry payloads: checked and kept until a later version acts on them.

use crate::domain::event::Decoded;
use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Deserialize)]
struct Payload {
    action: Option<String>,
    data: Option<IgnoredAny>,
}

pub(super) fn decode(resource: &str, raw: &[u8]) -> Decoded {
    match super::read::<Payload>(raw) {
        Ok(Payload { action: Some(action), data: Some(_) }) => Decoded::NotYetHandled(super::reason(
            &format!("Sentry `{resource}.{action}` is kept for replay: this version does not act on Sentry"),
        )),
        Ok(_) => Decoded::Unreadable("not a Sentry delivery: `action` or `data` is missing".to_owned()),
        Err(problem) => Decoded::Unreadable(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_deliveries_are_kept_for_a_later_version() {
        for (resource, action, body) in [
            (
                "event_alert",
                "triggered",
                &include_bytes!("../../tests/fixtures/sentry/event_alert.triggered.json")[..],
            ),
            ("issue", "created", &include_bytes!("../../tests/fixtures/sentry/issue.created.json")[..]),
        ] {
            match decode(resource, body) {
                Decoded::NotYetHandled(reason) => {
                    assert!(reason.contains(&format!("{resource}.{action}")), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn other_bodies_are_unreadable() {
        for body in
            [&b"{}"[..], b"[]", b"null", b"{\"action\":\"created\"}", b"{\"action\":{},\"data\":{}}", b"\0"]
        {
            assert!(matches!(decode("issue", body), Decoded::Unreadable(_)), "{body:?}");
        }
    }
}
