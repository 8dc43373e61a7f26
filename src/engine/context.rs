//! What an agent is told besides the request: the conversation before the command, and the run before this one.

use super::EngineError;
use crate::agent::prompt::{Message, PromptContext};
use crate::app::App;
use crate::domain::run::Run;
use crate::store;

/// Comments of the conversation that go into a prompt, newest.
const MAX_MESSAGES: usize = 50;

/// The conversation before the command, and what the run before this one came to.
pub(super) async fn gather(app: &App, run: &Run) -> Result<PromptContext, EngineError> {
    let trigger = run.spec.origin.as_ref().map_or(run.created_at, |origin| origin.written_at);
    let comments = app.forge.thread(&run.repo, run.spec.subject.number, MAX_MESSAGES).await?;
    let edited_later = comments
        .iter()
        .filter(|comment| !comment.own && comment.created_at < trigger && comment.updated_at >= trigger)
        .count();
    let messages = comments
        .into_iter()
        // Only what stood there, unedited, before the command was written.
        .filter(|comment| !comment.own && comment.created_at < trigger && comment.updated_at < trigger)
        .map(|comment| Message {
            trusted: comment.author.id == run.spec.requester.id,
            author: comment.author.login,
            at: comment.created_at,
            place: comment.path.map(|path| match comment.line {
                Some(line) => format!("{path}:{line}"),
                None => path,
            }),
            body: comment.body,
        })
        .collect();
    let previous = match &run.spec.previous {
        Some(id) => store::runs::get(&app.store, id).await?.map(|previous| summary_of(&previous)),
        None => None,
    };
    Ok(PromptContext { messages, edited_later, previous })
}

fn summary_of(previous: &Run) -> String {
    let outcome = &previous.outcome;
    let mut text = format!(
        "It was asked to {} and ended as \"{}\".",
        previous.spec.verb.name(),
        previous.state.as_str()
    );
    if let Some(question) = &outcome.question {
        text.push_str("\n\nIt ended with a question, which the instruction above may answer:\n\n");
        text.push_str(&question.text);
        for choice in &question.choices {
            text.push_str(&format!("\n- {choice}"));
        }
    }
    for part in [&outcome.reason, &outcome.summary] {
        if !part.is_empty() {
            text.push_str("\n\n");
            text.push_str(part);
        }
    }
    if let Some(branch) = &outcome.branch {
        text.push_str(&format!("\n\nIts {} commit(s) are on the branch `{branch}`.", outcome.commits));
    }
    text
}
