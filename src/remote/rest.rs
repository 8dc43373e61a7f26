//! One call to a small JSON API (Jira, Sentry): address, credentials, time and size limits, and what each failure means.

use super::RemoteError;
use http_body_util::{BodyExt, Limited};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::Duration;

/// Time for a whole call, body included.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a reply: a page of 100 comments.
const REPLY_BYTES: usize = 16 * 1024 * 1024;
/// Wait when a limit was hit and the reply does not say how long, and the longest that is believed.
const LIMIT_DEFAULT: Duration = Duration::from_secs(60);
const LIMIT_LONGEST: Duration = Duration::from_secs(2 * 3600);
/// Characters of the other side's own words that are kept in an error.
const DETAIL_CHARS: usize = 300;

#[derive(Debug)]
pub(super) struct Rest {
    client: reqwest::Client,
    /// Without a slash at the end.
    base: String,
    timeout: Duration,
}

impl Rest {
    /// `authorization` is the whole value of the header.
    pub(super) fn new(base: &str, authorization: &str) -> Result<Self, String> {
        let url = url::Url::parse(base).map_err(|error| error.to_string())?;
        let host = url.host_str().ok_or("an http or https address with a host is needed")?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some()
        {
            return Err("an http or https address without credentials is needed".into());
        }
        let mut value = HeaderValue::from_str(authorization)
            .map_err(|_| "the token has characters that no header may hold".to_owned())?;
        value.set_sensitive(true);
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("zeblit/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]))
            // Credentials never go elsewhere.
            .redirect(reqwest::redirect::Policy::none());
        if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), timeout: CALL_TIMEOUT })
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    pub(super) async fn get(&self, operation: &'static str, path: &str) -> Result<Value, RemoteError> {
        self.call(operation, Method::GET, path, None).await
    }

    /// A change: an answer that cannot be read leaves open what was done. An empty answer is `null`.
    pub(super) async fn change(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, RemoteError> {
        self.call(operation, method, path, body).await
    }

    /// Deletes something; what is gone already is deleted.
    pub(super) async fn delete(&self, operation: &'static str, path: &str) -> Result<(), RemoteError> {
        match self.call(operation, Method::DELETE, path, None).await {
            Ok(_) | Err(RemoteError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn call(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, RemoteError> {
        let reads = method == Method::GET;
        let failed = |detail: String| {
            if reads {
                RemoteError::Unavailable { operation, detail }
            } else {
                RemoteError::Unclear { operation, detail }
            }
        };
        let mut request = self.client.request(method, format!("{}{path}", self.base)).timeout(self.timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = match request.send().await {
            Ok(response) => response,
            // It never left.
            Err(error) if error.is_connect() || error.is_builder() => {
                return Err(RemoteError::Unavailable { operation, detail: said(&error) });
            }
            Err(error) => return Err(failed(said(&error))),
        };
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let body = Limited::new(reqwest::Body::from(response), REPLY_BYTES).collect().await;
        let bytes = match body {
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(failed(format!("the reply broke off: {error}"))),
        };
        if !status.is_success() {
            let detail = clip(&String::from_utf8_lossy(&bytes));
            return Err(match status {
                StatusCode::TOO_MANY_REQUESTS => {
                    let wait = retry_after.unwrap_or(LIMIT_DEFAULT);
                    let retry_after = wait.clamp(Duration::from_secs(1), LIMIT_LONGEST);
                    RemoteError::RateLimited { operation, retry_after }
                }
                StatusCode::UNAUTHORIZED => RemoteError::Auth { operation, detail },
                StatusCode::FORBIDDEN => RemoteError::Forbidden { operation, detail },
                StatusCode::NOT_FOUND => RemoteError::NotFound { operation },
                StatusCode::REQUEST_TIMEOUT => failed(detail),
                status if status.is_client_error() => {
                    RemoteError::Refused { operation, status: status.as_u16(), detail }
                }
                status if status.is_server_error() => failed(format!("{status}: {detail}")),
                status => RemoteError::Protocol { operation, detail: format!("{status}") },
            });
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|error| failed(format!("not JSON: {error}")))
    }
}

/// The cause without the address, which may be long.
fn said(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    if text.is_empty() { "no complete answer".into() } else { clip(&text) }
}

/// Foreign text made safe for logs: one line, short.
fn clip(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL_CHARS).collect()
}

/// One part of a path: an id or a key. Anything else would name another resource.
pub(super) fn part<'t>(operation: &'static str, text: &'t str) -> Result<&'t str, RemoteError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if text.is_empty() || text.len() > 100 || !text.chars().all(plain) {
        let detail = format!("`{}` is no id of this kind", clip(text));
        return Err(RemoteError::Refused { operation, status: 400, detail });
    }
    Ok(text)
}

/// A text below a JSON pointer.
pub(super) fn text_at<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    value.pointer(pointer).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_parts_go_into_a_path() {
        for good in ["ABC-1", "1117540176", "a_b"] {
            assert_eq!(part("test", good).unwrap(), good);
        }
        for bad in ["", "..", "a/b", "a?b", "ä", &"x".repeat(101)] {
            assert!(part("test", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_needs_a_host_and_no_credentials() {
        assert!(Rest::new("https://jira.example/base/", "Bearer x").is_ok());
        for bad in ["jira.example", "ftp://x", "https://u:p@host"] {
            assert!(Rest::new(bad, "Bearer x").is_err(), "{bad}");
        }
        assert!(Rest::new("https://jira.example", "Bearer \n").is_err());
    }
}
