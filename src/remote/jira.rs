//! Jira: comments (known again by an entity property that is written together with them) and transitions.

use super::rest::{Rest, part, text_at};
use super::{Remote, RemoteError};
use crate::domain::effect::{Effect, Payload, RemoteRef, TicketNote, Twin};
use async_trait::async_trait;
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::time::Duration;

/// The property that holds the mark of a comment of ours.
const PROPERTY: &str = "zeblit.intent";
/// Comments per page, and pages that are read, when looking for one of ours: the newest first.
const PAGE: usize = 100;
const FIND_PAGES: usize = 10;

/// Jira Cloud or Data Center, as one of its users.
#[derive(Debug)]
pub struct Jira {
    rest: Rest,
    /// Our own account, asked for once.
    me: tokio::sync::OnceCell<String>,
}

impl Jira {
    /// With a user (Cloud: an e-mail address) the token is an API token, without one a personal access token.
    pub fn new(base_url: &str, user: Option<&str>, token: &SecretString) -> Result<Self, String> {
        use base64::Engine as _;
        let authorization = match user {
            Some(user) => {
                let pair = format!("{user}:{}", token.expose_secret());
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
            }
            None => format!("Bearer {}", token.expose_secret()),
        };
        Ok(Self { rest: Rest::new(base_url, &authorization)?, me: tokio::sync::OnceCell::new() })
    }

    /// Another time limit for a whole call than 20 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.rest.set_timeout(timeout);
        self
    }

    /// Cloud calls it `accountId`, Data Center `key`.
    async fn me(&self) -> Result<&str, RemoteError> {
        const OPERATION: &str = "read our own Jira account";
        let ask = async || {
            let me = self.rest.get(OPERATION, "/rest/api/2/myself").await?;
            account(&me).map(str::to_owned).ok_or_else(|| RemoteError::Protocol {
                operation: OPERATION,
                detail: "neither `accountId` nor `key`".into(),
            })
        };
        self.me.get_or_try_init(ask).await.map(String::as_str)
    }

    async fn comment(
        &self,
        note: &TicketNote,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "write a Jira comment";
        let base = format!("/rest/api/2/issue/{}/comment", part(OPERATION, &note.ticket)?);
        let body = json!({
            "body": note.body,
            "properties": [{ "key": PROPERTY, "value": { "mark": note.mark } }],
        });
        let made = match existing {
            Some(existing) => {
                let path = format!("{base}/{}", part(OPERATION, &existing.id)?);
                self.rest.change(OPERATION, Method::PUT, &path, Some(&body)).await?
            }
            None => self.rest.change(OPERATION, Method::POST, &base, Some(&body)).await?,
        };
        made_ref(&made).ok_or_else(|| RemoteError::Unclear {
            operation: OPERATION,
            detail: "an answer without `id`".into(),
        })
    }

    async fn find_comments(&self, note: &TicketNote) -> Result<Vec<RemoteRef>, RemoteError> {
        const OPERATION: &str = "look for our Jira comment";
        let me = self.me().await?;
        let base = format!("/rest/api/2/issue/{}/comment", part(OPERATION, &note.ticket)?);
        let mut ours = Vec::new();
        for page in 0..FIND_PAGES {
            let path = format!(
                "{base}?expand=properties&orderBy=-created&startAt={}&maxResults={PAGE}",
                page * PAGE
            );
            let found = self.rest.get(OPERATION, &path).await?;
            let comments = found.get("comments").and_then(Value::as_array).cloned().unwrap_or_default();
            ours.extend(
                comments.iter().filter(|comment| is_ours(comment, me, &note.mark)).filter_map(made_ref),
            );
            if comments.len() < PAGE {
                break;
            }
        }
        // The oldest stays.
        ours.reverse();
        Ok(ours)
    }

    /// Reads the status and changes it by a transition that leads there, when there is one.
    async fn transition(&self, ticket: &str, status: &str) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "change the status of a Jira ticket";
        let base = format!("/rest/api/2/issue/{}", part(OPERATION, ticket)?);
        let done = RemoteRef { id: ticket.to_owned(), ..RemoteRef::default() };
        let now = self.rest.get(OPERATION, &format!("{base}?fields=status")).await?;
        if text_at(&now, "/fields/status/name").is_some_and(|name| name.eq_ignore_ascii_case(status)) {
            return Ok(done);
        }
        let path = format!("{base}/transitions");
        let ways = self.rest.get(OPERATION, &path).await?;
        let ways = ways.get("transitions").and_then(Value::as_array).cloned().unwrap_or_default();
        let way = ways
            .iter()
            .find(|way| text_at(way, "/to/name").is_some_and(|name| name.eq_ignore_ascii_case(status)));
        let Some(id) = way.and_then(|way| text_at(way, "/id")) else {
            let detail = format!("no transition of {ticket} leads to `{status}`");
            return Err(RemoteError::Refused { operation: OPERATION, status: 409, detail });
        };
        let body = json!({ "transition": { "id": id } });
        self.rest.change(OPERATION, Method::POST, &path, Some(&body)).await?;
        Ok(done)
    }
}

fn account(user: &Value) -> Option<&str> {
    text_at(user, "/accountId").or_else(|| text_at(user, "/key"))
}

fn made_ref(comment: &Value) -> Option<RemoteRef> {
    let id = text_at(comment, "/id")?.to_owned();
    Some(RemoteRef { id, url: text_at(comment, "/self").map(str::to_owned), ..RemoteRef::default() })
}

fn is_ours(comment: &Value, me: &str, mark: &str) -> bool {
    let by_us = comment.get("author").and_then(account) == Some(me);
    let properties = comment.get("properties").and_then(Value::as_array);
    by_us
        && properties.into_iter().flatten().any(|property| {
            text_at(property, "/key") == Some(PROPERTY) && text_at(property, "/value/mark") == Some(mark)
        })
}

#[async_trait]
impl Remote for Jira {
    fn name(&self) -> &'static str {
        "jira"
    }

    async fn apply(&self, effect: &Effect) -> Result<RemoteRef, RemoteError> {
        match &effect.payload {
            Payload::TicketComment(note) => self.comment(note, effect.remote_ref.as_ref()).await,
            Payload::TicketStatus { ticket, status } => self.transition(ticket, status).await,
            Payload::Remove(Twin::Note { ticket, id }) => {
                const OPERATION: &str = "remove a twin";
                let (ticket, id) = (part(OPERATION, ticket)?, part(OPERATION, id)?);
                let path = format!("/rest/api/2/issue/{ticket}/comment/{id}");
                self.rest.delete(OPERATION, &path).await?;
                Ok(RemoteRef { id: id.to_owned(), ..RemoteRef::default() })
            }
            other => Err(super::not_here("jira", other)),
        }
    }

    async fn find_all(&self, effect: &Effect) -> Result<Vec<RemoteRef>, RemoteError> {
        match &effect.payload {
            Payload::TicketComment(note) => self.find_comments(note).await,
            // Read before it is written: repeating it changes nothing.
            _ => Ok(Vec::new()),
        }
    }
}
