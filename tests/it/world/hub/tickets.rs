//! Jira and Sentry on the same address: tickets with a status and comments. Faults, chaos, lagging lists and the
//! ledger of writes are FakeHub's.

use super::server::{Answer, Handled, Request, not_found, ok, problem, text, unknown};
use super::state::{State, Write};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A ticket of Jira's or an issue of Sentry's.
#[derive(Debug, Clone)]
pub struct Ticket {
    pub status: String,
    pub notes: Vec<Note>,
}

/// A comment on one.
#[derive(Debug, Clone)]
pub struct Note {
    pub id: i64,
    pub author: &'static str,
    pub text: String,
    /// Jira's entity properties, as they came.
    pub properties: Value,
}

pub const JIRA_USER: &str = "zeblit@example.com";
pub const TOKEN: &str = "the token of the ticket systems";
/// Our account at Jira.
const ME: &str = "jira-account-1";
/// Jira's ways: every status leads to every other.
const JIRA_STATUSES: [(&str, &str); 3] = [("11", "To Do"), ("21", "In Progress"), ("31", "Done")];

impl State {
    fn noted(&mut self, request: &Request, summary: String) {
        let write = Write {
            at: self.now(),
            method: request.method.clone(),
            path: request.path.clone(),
            summary,
            permissions: BTreeMap::new(),
        };
        self.writes.push(write);
    }

    fn ticket(&mut self, key: &str) -> Result<&mut Ticket, Box<Answer>> {
        self.tickets.get_mut(key).ok_or_else(not_found)
    }

    pub fn jira(&mut self, request: &Request, rest: &[&str]) -> Handled {
        use base64::Engine as _;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{JIRA_USER}:{TOKEN}"));
        if request.header("authorization") != Some(&format!("Basic {pair}")) {
            return Err(problem(401, "Client must be authenticated to access this resource."));
        }
        let note_json = |note: &Note, expanded: bool| {
            let mut value = json!({
                "id": note.id.to_string(),
                "self": format!("https://jira.example/comment/{}", note.id),
                "author": { "accountId": note.author },
                "body": note.text,
            });
            if expanded {
                value["properties"] = note.properties.clone();
            }
            value
        };
        match (request.method.as_str(), rest) {
            ("GET", ["myself"]) => ok(&json!({ "accountId": ME, "emailAddress": JIRA_USER })),
            ("GET", ["issue", key]) => {
                let status = self.ticket(key)?.status.clone();
                ok(&json!({ "key": key, "fields": { "status": { "name": status } } }))
            }
            ("GET", ["issue", key, "transitions"]) => {
                let now = self.ticket(key)?.status.clone();
                let ways = JIRA_STATUSES.iter().filter(|(_, name)| *name != now);
                let ways: Vec<Value> = ways
                    .map(|(id, name)| json!({ "id": id, "name": "Move", "to": { "name": name } }))
                    .collect();
                ok(&json!({ "transitions": ways }))
            }
            ("POST", ["issue", key, "transitions"]) => {
                let body = request.json()?;
                let wanted = body.pointer("/transition/id").and_then(Value::as_str).unwrap_or_default();
                let ticket = self.ticket(key)?;
                let way = JIRA_STATUSES.iter().find(|(id, name)| *id == wanted && *name != ticket.status);
                let Some((_, name)) = way else {
                    return Err(problem(
                        400,
                        "It seems that you have tried to perform an illegal workflow operation.",
                    ));
                };
                ticket.status = (*name).to_owned();
                self.noted(request, format!("{key} is {name}"));
                Ok(Answer::raw(204, "application/json", Vec::new()))
            }
            ("GET", ["issue", key, "comment"]) => {
                let unseen = self.unseen();
                let expanded = request.query.get("expand").is_some_and(|what| what == "properties");
                let number = |name: &str| request.query.get(name).and_then(|n| n.parse().ok()).unwrap_or(0);
                let (start, most): (usize, usize) = (number("startAt"), number("maxResults"));
                let ticket = self.ticket(key)?;
                let mut shown: Vec<Value> = ticket
                    .notes
                    .iter()
                    .filter(|note| !unseen.contains(&note.id))
                    .map(|note| note_json(note, expanded))
                    .collect();
                if request.query.get("orderBy").is_some_and(|order| order == "-created") {
                    shown.reverse();
                }
                let shown: Vec<Value> = shown.into_iter().skip(start).take(most).collect();
                ok(&json!({ "comments": shown, "startAt": start, "maxResults": most }))
            }
            ("POST", ["issue", key, "comment"]) => {
                let body = request.json()?;
                let words = text(&body, "body", "Comment")?.to_owned();
                let properties = body.get("properties").cloned().unwrap_or_else(|| json!([]));
                let note = Note { id: self.made(), author: ME, text: words, properties };
                let value = note_json(&note, false);
                self.ticket(key)?.notes.push(note);
                self.noted(request, format!("comment on {key}"));
                Ok(Answer::json(201, &value))
            }
            ("PUT", ["issue", key, "comment", id]) => {
                let body = request.json()?;
                let words = text(&body, "body", "Comment")?.to_owned();
                let notes = &mut self.ticket(key)?.notes;
                let note = notes.iter_mut().find(|note| note.id.to_string() == *id).ok_or_else(not_found)?;
                note.text = words;
                let value = note_json(note, false);
                self.noted(request, format!("edit comment on {key}"));
                ok(&value)
            }
            ("DELETE", ["issue", key, "comment", id]) => self.remove_note(request, key, id),
            _ => Err(unknown()),
        }
    }

    fn remove_note(&mut self, request: &Request, key: &str, id: &str) -> Handled {
        let notes = &mut self.ticket(key)?.notes;
        let before = notes.len();
        notes.retain(|note| note.id.to_string() != id);
        if notes.len() == before {
            return Err(not_found());
        }
        self.noted(request, format!("delete comment on {key}"));
        Ok(Answer::raw(204, "application/json", Vec::new()))
    }

    pub fn sentry(&mut self, request: &Request, rest: &[&str]) -> Handled {
        if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Err(problem(401, "Invalid token"));
        }
        let note_json =
            |note: &Note| json!({ "id": note.id.to_string(), "type": "note", "data": { "text": note.text } });
        let ["organizations", "octo", "issues", key, rest @ ..] = rest else { return Err(unknown()) };
        match (request.method.as_str(), rest) {
            ("GET", []) => {
                let status = self.ticket(key)?.status.clone();
                ok(&json!({ "id": key, "status": status }))
            }
            ("PUT", []) => {
                let body = request.json()?;
                let status = text(&body, "status", "Group")?.to_owned();
                self.ticket(key)?.status.clone_from(&status);
                self.noted(request, format!("{key} is {status}"));
                ok(&json!({ "id": key, "status": status }))
            }
            ("GET", ["comments"]) => {
                let unseen = self.unseen();
                let notes = &self.ticket(key)?.notes;
                let shown = notes.iter().rev().filter(|note| !unseen.contains(&note.id)).map(note_json);
                ok(&shown.collect())
            }
            ("POST", ["comments"]) => {
                let body = request.json()?;
                let words = text(&body, "text", "Note")?.to_owned();
                let note = Note { id: self.made(), author: "zeblit", text: words, properties: Value::Null };
                let value = note_json(&note);
                self.ticket(key)?.notes.push(note);
                self.noted(request, format!("note on {key}"));
                Ok(Answer::json(201, &value))
            }
            ("PUT", ["comments", id]) => {
                let body = request.json()?;
                let words = text(&body, "text", "Note")?.to_owned();
                let notes = &mut self.ticket(key)?.notes;
                let note = notes.iter_mut().find(|note| note.id.to_string() == *id).ok_or_else(not_found)?;
                note.text = words;
                let value = note_json(note);
                self.noted(request, format!("edit note on {key}"));
                ok(&value)
            }
            ("DELETE", ["comments", id]) => self.remove_note(request, key, id),
            _ => Err(unknown()),
        }
    }
}
