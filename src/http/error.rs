//! Purpose: the one error of the HTTP side: what the client is told, and what only the log is told.

use crate::app::App;
use crate::clock::IdKind;
use crate::engine::operate::OperateError;
use crate::store::StoreError;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// Seconds after which a client may try again when we are overloaded or the database is away.
pub const RETRY_AFTER_SECONDS: u64 = 5;

/// An answer that is not a success. The detail was logged when it was made.
#[derive(Debug)]
pub struct HttpError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// `{"error":{"code":…,"message":…}}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub error: EnvelopeError,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeError {
    pub code: String,
    pub message: String,
}

impl HttpError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// Try again later; never a success for something that was not done.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            .with(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS))
    }

    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The database failed: logged once under a short id that the client is told. A failing database is
    /// temporary (503); a row that cannot be read is a defect (500).
    pub fn store(app: &App, operation: &'static str, error: &StoreError) -> Self {
        let id = log_internal(app, operation, error);
        match error {
            StoreError::Overloaded => Self::unavailable(format!("overloaded, try again soon ({id})")),
            StoreError::BadRow { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                format!("something went wrong; the server's log knows it as {id}"),
            ),
            StoreError::Sql { .. }
            | StoreError::Fenced { .. }
            | StoreError::Url { .. }
            | StoreError::Migrate(_) => {
                Self::unavailable(format!("the database does not answer; the server's log knows it as {id}"))
            }
        }
    }

    pub fn operate(app: &App, operation: &'static str, error: &OperateError) -> Self {
        match error {
            OperateError::NotFound { .. } => Self::not_found(error.to_string()),
            OperateError::Refused(why) => Self::new(StatusCode::CONFLICT, "refused", why),
            OperateError::Store(error) => Self::store(app, operation, error),
            OperateError::Engine(error) => {
                let id = log_internal(app, operation, error);
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    format!("something went wrong; the server's log knows it as {id}"),
                )
            }
        }
    }
}

/// Logs an error with its causes once, masked, and gives the short id to tell the client.
fn log_internal(app: &App, operation: &'static str, error: &dyn std::error::Error) -> String {
    let id = app.ids.next(IdKind::Request);
    let short = id.get(id.len().saturating_sub(8)..).unwrap_or(&id).to_owned();
    let detail = app.secrets.mask(&chain(error));
    tracing::error!(error.id = short, error.detail = detail, operation, "request failed");
    short
}

/// An error and its causes, one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    /// A chain longer than this is a loop.
    const MAX_CAUSES: usize = 10;
    let mut text = error.to_string();
    let mut cause = error.source();
    for _ in 0..MAX_CAUSES {
        let Some(inner) = cause else { break };
        let said = inner.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let envelope =
            Envelope { error: EnvelopeError { code: self.code.to_owned(), message: self.message } };
        let mut response = (self.status, axum::Json(envelope)).into_response();
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_names_every_cause_once() {
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(chain(&std::io::Error::other("alone")), "alone");
    }

    #[tokio::test]
    async fn the_envelope_has_code_and_message() {
        let response = HttpError::unavailable("busy").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers().get("retry-after").unwrap(), "5");
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(&body[..], br#"{"error":{"code":"unavailable","message":"busy"}}"#);
    }
}
