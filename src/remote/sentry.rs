//! Sentry: comments on its issues (known again by the mark in their text) and their status.

use super::rest::{Rest, part, text_at};
use super::{Remote, RemoteError};
use crate::domain::effect::{Effect, Payload, RemoteRef, TicketNote, Twin};
use async_trait::async_trait;
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::time::Duration;

/// What Sentry calls the states of an issue.
const STATUSES: [&str; 3] = ["resolved", "unresolved", "ignored"];

/// One organisation at Sentry, as an internal integration.
#[derive(Debug)]
pub struct Sentry {
    rest: Rest,
    organization: String,
}

impl Sentry {
    /// `organization` is its slug.
    pub fn new(base_url: &str, organization: &str, token: &SecretString) -> Result<Self, String> {
        part("configure Sentry", organization).map_err(|error| error.to_string())?;
        let rest = Rest::new(base_url, &format!("Bearer {}", token.expose_secret()))?;
        Ok(Self { rest, organization: organization.to_owned() })
    }

    /// Another time limit for a whole call than 20 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.rest.set_timeout(timeout);
        self
    }

    fn issue(&self, operation: &'static str, issue: &str) -> Result<String, RemoteError> {
        Ok(format!("/api/0/organizations/{}/issues/{}/", self.organization, part(operation, issue)?))
    }

    async fn comment(
        &self,
        note: &TicketNote,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "write a Sentry comment";
        let base = format!("{}comments/", self.issue(OPERATION, &note.ticket)?);
        let body = json!({ "text": format!("{}\n\n{}", note.body, note.mark) });
        let (method, path) = match existing {
            Some(existing) => (Method::PUT, format!("{base}{}/", part(OPERATION, &existing.id)?)),
            None => (Method::POST, base),
        };
        let made = self.rest.change(OPERATION, method, &path, Some(&body)).await?;
        made_ref(&made).ok_or_else(|| RemoteError::Unclear {
            operation: OPERATION,
            detail: "an answer without `id`".into(),
        })
    }

    /// The mark is signed: whoever could copy it could write a comment of their own anyway.
    async fn find_comments(&self, note: &TicketNote) -> Result<Vec<RemoteRef>, RemoteError> {
        const OPERATION: &str = "look for our Sentry comment";
        let path = format!("{}comments/", self.issue(OPERATION, &note.ticket)?);
        let found = self.rest.get(OPERATION, &path).await?;
        let notes = found.as_array().into_iter().flatten();
        let mut ours: Vec<RemoteRef> = notes
            .filter(|found| text_at(found, "/data/text").is_some_and(|text| text.contains(&note.mark)))
            .filter_map(made_ref)
            .collect();
        // The list begins with the newest: the oldest stays.
        ours.reverse();
        Ok(ours)
    }

    /// Reads the status and changes it when that is still needed.
    async fn status(&self, issue: &str, status: &str) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "change the status of a Sentry issue";
        if !STATUSES.contains(&status) {
            let detail = format!("`{status}` is no status of Sentry");
            return Err(RemoteError::Refused { operation: OPERATION, status: 400, detail });
        }
        let path = self.issue(OPERATION, issue)?;
        let now = self.rest.get(OPERATION, &path).await?;
        if text_at(&now, "/status") != Some(status) {
            self.rest.change(OPERATION, Method::PUT, &path, Some(&json!({ "status": status }))).await?;
        }
        Ok(RemoteRef { id: issue.to_owned(), ..RemoteRef::default() })
    }
}

fn made_ref(note: &Value) -> Option<RemoteRef> {
    Some(RemoteRef { id: text_at(note, "/id")?.to_owned(), ..RemoteRef::default() })
}

#[async_trait]
impl Remote for Sentry {
    fn name(&self) -> &'static str {
        "sentry"
    }

    async fn apply(&self, effect: &Effect) -> Result<RemoteRef, RemoteError> {
        match &effect.payload {
            Payload::TicketComment(note) => self.comment(note, effect.remote_ref.as_ref()).await,
            Payload::TicketStatus { ticket, status } => self.status(ticket, status).await,
            Payload::Remove(Twin::Note { ticket, id }) => {
                const OPERATION: &str = "remove a twin";
                let path = format!("{}comments/{}/", self.issue(OPERATION, ticket)?, part(OPERATION, id)?);
                self.rest.delete(OPERATION, &path).await?;
                Ok(RemoteRef { id: id.clone(), ..RemoteRef::default() })
            }
            other => Err(super::not_here("sentry", other)),
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
