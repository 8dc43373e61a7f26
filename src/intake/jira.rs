//! Jira payloads: checked and kept until a later version acts on them.

use crate::domain::event::Decoded;
use serde::Deserialize;

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "webhookEvent")]
    webhook_event: Option<String>,
}

pub(super) fn decode(raw: &[u8]) -> Decoded {
    match super::read::<Payload>(raw) {
        Ok(Payload { webhook_event: Some(event) }) => Decoded::NotYetHandled(super::reason(&format!(
            "Jira `{event}` is kept for replay: this version does not act on Jira"
        ))),
        Ok(Payload { webhook_event: None }) => {
            Decoded::Unreadable("not a Jira delivery: `webhookEvent` is missing".to_owned())
        }
        Err(problem) => Decoded::Unreadable(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_deliveries_are_kept_for_a_later_version() {
        for (body, event) in [
            (&include_bytes!("../../tests/fixtures/jira/comment_created.json")[..], "comment_created"),
            (&include_bytes!("../../tests/fixtures/jira/issue_created.json")[..], "jira:issue_created"),
            (
                &include_bytes!("../../tests/fixtures/jira/issue_updated.commented.json")[..],
                "jira:issue_updated",
            ),
            (
                &include_bytes!("../../tests/fixtures/jira/issue_updated.status_changed.json")[..],
                "jira:issue_updated",
            ),
        ] {
            match decode(body) {
                Decoded::NotYetHandled(reason) => assert!(reason.contains(event), "{reason}"),
                other => panic!("{event}: {other:?}"),
            }
        }
    }

    #[test]
    fn other_bodies_are_unreadable_with_a_reason() {
        for (body, part) in [
            (&b"{}"[..], "webhookEvent"),
            (b"{\"webhookEvent\":1}", "`webhookEvent`"),
            (b"nope", "expected"),
            (b"", "EOF"),
            (b"{\"webhookEvent\":\"x\"} trailing", "trailing"),
            (b"\xff\xfe", "expected"),
        ] {
            match decode(body) {
                Decoded::Unreadable(reason) => assert!(reason.contains(part), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
