//! One call to GitHub: address, credentials, time and size limits, and the exact meaning of each failure.

use super::tokens::AppKey;
use crate::clock::Clock;
use crate::remote::RemoteError;
use bytes::Bytes;
use chrono::DateTime;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use octocrab::service::middleware::base_uri::BaseUriLayer;
use octocrab::{AuthState, OctoBody, Octocrab, OctocrabBuilder};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Time to a connection, TLS included (a healthy one takes well under a second).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole call, body included (GitHub gives up on its own requests after 10 s).
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a reply about one thing: issue bodies and hunks are far smaller.
pub const REPLY_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a reply that lists 100 things: comments have up to 65 536 characters, which JSON may escape.
pub const LIST_BYTES: usize = 48 * 1024 * 1024;
/// Bytes of an error reply that are read; more says nothing more.
const ERROR_BYTES: usize = 64 * 1024;
/// Hops of a redirect (a renamed repository answers with one).
const REDIRECTS: usize = 3;
/// Characters of the other side's own words that are kept in an error.
const DETAIL_CHARS: usize = 400;
/// Wait when a limit was hit and the reply does not say how long (GitHub's documentation: at least a minute).
const LIMIT_DEFAULT: Duration = Duration::from_secs(60);
/// Longest wait that is believed: the primary limit resets every hour.
const LIMIT_LONGEST: Duration = Duration::from_secs(2 * 3600);
/// Replies kept for conditional requests.
const CACHE_ENTRIES: usize = 256;
/// Bytes of a reply that is kept for conditional requests; 256 of them are 64 MiB.
const CACHE_ENTRY_BYTES: usize = 256 * 1024;

/// JSON as GitHub's current API version gives it.
pub const JSON: &str = "application/vnd.github+json";
/// The bytes of a file instead of a JSON description of it.
pub const RAW: &str = "application/vnd.github.raw+json";

/// Who asks.
#[derive(Clone)]
pub enum Credentials {
    /// Nobody: public facts only.
    Anonymous,
    /// The App itself, by a signed JWT.
    App,
    /// An installation token.
    Token(SecretString),
}

/// One request. `path` is percent-encoded and starts with `/`.
pub struct Call {
    pub operation: &'static str,
    pub method: Method,
    pub path: String,
    pub accept: &'static str,
    pub body: Option<Value>,
    pub credentials: Credentials,
    /// Ask with `If-None-Match` and remember the reply.
    pub conditional: bool,
    pub limit: usize,
    /// Obeying this call twice or without our knowing would matter.
    pub write: bool,
}

impl Call {
    pub fn get(operation: &'static str, path: String, credentials: Credentials) -> Self {
        Self {
            operation,
            method: Method::GET,
            path,
            accept: JSON,
            body: None,
            credentials,
            conditional: false,
            limit: REPLY_BYTES,
            write: false,
        }
    }

    pub fn write(
        operation: &'static str,
        method: Method,
        path: String,
        body: Value,
        credentials: Credentials,
    ) -> Self {
        Self {
            operation,
            method,
            path,
            accept: JSON,
            body: Some(body),
            credentials,
            conditional: false,
            limit: REPLY_BYTES,
            write: true,
        }
    }

    pub fn conditional(mut self) -> Self {
        self.conditional = true;
        self
    }

    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    pub fn accept(mut self, media_type: &'static str) -> Self {
        self.accept = media_type;
        self
    }

    /// No harm was done whatever became of the request: it reads, or its effect is not visible.
    pub fn harmless(mut self) -> Self {
        self.write = false;
        self
    }

    /// The request may have been obeyed, or nothing is lost by asking again.
    fn failed(&self, detail: String) -> RemoteError {
        if self.write {
            RemoteError::Unclear { operation: self.operation, detail }
        } else {
            RemoteError::Unavailable { operation: self.operation, detail }
        }
    }
}

/// A successful reply.
#[derive(Debug, Clone)]
pub struct Reply {
    pub operation: &'static str,
    write: bool,
    pub body: Bytes,
    pub content_type: String,
    /// The next page of a list, as the path of a call.
    pub next: Option<String>,
}

impl Reply {
    /// Reads the reply as JSON. After a write an unreadable reply leaves open what was done.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, RemoteError> {
        let mut deserializer = serde_json::Deserializer::from_slice(&self.body);
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let detail = clip(&format!("not the JSON that the API documents: {error}"));
            if self.write {
                RemoteError::Unclear { operation: self.operation, detail }
            } else {
                RemoteError::Protocol { operation: self.operation, detail }
            }
        })
    }
}

struct Remembered {
    etag: HeaderValue,
    body: Bytes,
    content_type: String,
    used: u64,
}

/// Replies by address, the least recently used dropped first.
#[derive(Default)]
struct EtagCache {
    entries: HashMap<String, Remembered>,
    tick: u64,
}

impl EtagCache {
    fn get(&mut self, key: &str) -> Option<(HeaderValue, Bytes, String)> {
        self.tick += 1;
        let tick = self.tick;
        self.entries.get_mut(key).map(|entry| {
            entry.used = tick;
            (entry.etag.clone(), entry.body.clone(), entry.content_type.clone())
        })
    }

    fn put(&mut self, key: String, etag: HeaderValue, body: Bytes, content_type: String) {
        if body.len() > CACHE_ENTRY_BYTES {
            self.entries.remove(&key);
            return;
        }
        self.tick += 1;
        if self.entries.len() >= CACHE_ENTRIES && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, Remembered { etag, body, content_type, used: self.tick });
    }
}

/// The way to one GitHub: `https://api.github.com`, a GitHub Enterprise Server, or a double.
pub struct Client {
    octocrab: Octocrab,
    /// `host:port` of the API: credentials never go elsewhere.
    authority: String,
    /// Path before every route: empty, or `/api/v3` on GitHub Enterprise Server.
    prefix: String,
    app: AppKey,
    pub clock: Arc<dyn Clock>,
    pub timeout: Duration,
    cache: Mutex<EtagCache>,
}

impl Client {
    /// Must be called inside a Tokio runtime: octocrab starts a worker task. `api_url` has no trailing slash.
    pub fn connect(api_url: &str, app: AppKey, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let uri: Uri = api_url.parse().map_err(|error| format!("{error}"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err("a scheme and a host are needed, as in https://api.github.com".into());
        };
        if !matches!(scheme, "http" | "https") {
            return Err(format!("`{scheme}` is not supported, use https (or http for a test double)"));
        }
        if authority.as_str().contains('@') {
            return Err("credentials have no place in the address".into());
        }
        if uri.query().is_some() {
            return Err("a query has no place in the address".into());
        }
        let octocrab = octocrab_for(scheme, authority)?;
        Ok(Self {
            octocrab,
            authority: authority.as_str().to_ascii_lowercase(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            app,
            clock,
            timeout: CALL_TIMEOUT,
            cache: Mutex::default(),
        })
    }

    /// Where GraphQL is: `/graphql`, on GitHub Enterprise Server `/api/graphql`. Not below `prefix`.
    fn graphql_path(&self) -> String {
        let above = self.prefix.strip_suffix("/v3").unwrap_or(&self.prefix);
        format!("{above}/graphql")
    }

    /// Drops what was remembered for conditional requests.
    pub fn forget_replies(&self) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).entries.clear();
    }

    /// Sends one REST call; `call.path` is relative to the API.
    pub async fn call(&self, call: Call) -> Result<Reply, RemoteError> {
        let path = format!("{}{}", self.prefix, call.path);
        self.send(call, path).await
    }

    /// Sends a GraphQL mutation and gives its `data`.
    pub async fn graphql(
        &self,
        operation: &'static str,
        query: &str,
        variables: Value,
        credentials: Credentials,
    ) -> Result<Value, RemoteError> {
        let body = serde_json::json!({ "query": query, "variables": variables });
        let call = Call::write(operation, Method::POST, String::new(), body, credentials);
        let reply = self.send(call, self.graphql_path()).await?;
        let mut value: Value = reply.json()?;
        let errors = value.get("errors").and_then(Value::as_array).filter(|errors| !errors.is_empty());
        if let Some(first) = errors.and_then(|errors| errors.first()) {
            let detail = clip(first.get("message").and_then(Value::as_str).unwrap_or("no message"));
            return Err(match first.get("type").and_then(Value::as_str).unwrap_or_default() {
                "NOT_FOUND" => RemoteError::NotFound { operation },
                "FORBIDDEN" | "INSUFFICIENT_SCOPES" => RemoteError::Forbidden { operation, detail },
                "RATE_LIMITED" => RemoteError::RateLimited { operation, retry_after: LIMIT_DEFAULT },
                _ => RemoteError::Refused { operation, status: 200, detail },
            });
        }
        match value.get_mut("data").map(Value::take) {
            Some(data @ Value::Object(_)) => Ok(data),
            _ => {
                Err(RemoteError::Unclear { operation, detail: "a reply with neither data nor errors".into() })
            }
        }
    }

    async fn send(&self, call: Call, path: String) -> Result<Reply, RemoteError> {
        match tokio::time::timeout(self.timeout, self.exchange(&call, path)).await {
            Ok(result) => result,
            Err(_) => Err(call.failed(format!("no complete answer within {:?}", self.timeout))),
        }
    }

    async fn exchange(&self, call: &Call, mut path: String) -> Result<Reply, RemoteError> {
        for _ in 0..=REDIRECTS {
            let key = format!("{} {path}", call.accept);
            let remembered = if call.conditional {
                self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            } else {
                None
            };
            let request = self.request(call, &path, remembered.as_ref().map(|(etag, _, _)| etag))?;
            let response = match self.octocrab.send(request).await {
                Ok(response) => response,
                Err(error) if never_sent(&error) => {
                    return Err(RemoteError::Unavailable {
                        operation: call.operation,
                        detail: clip(&causes(&error)),
                    });
                }
                Err(error) => return Err(call.failed(clip(&causes(&error)))),
            };
            let (parts, body) = response.into_parts();
            if parts.status == StatusCode::NOT_MODIFIED
                && let Some((_, body, content_type)) = remembered
            {
                return Ok(Reply {
                    operation: call.operation,
                    write: call.write,
                    body,
                    content_type,
                    next: None,
                });
            }
            if parts.status.is_redirection() {
                path = self.redirected(call, parts.status, &parts.headers)?;
                continue;
            }
            if !parts.status.is_success() {
                // An error whose body cannot be read still says enough by its status.
                let bytes = match Limited::new(body, ERROR_BYTES).collect().await {
                    Ok(collected) => collected.to_bytes(),
                    Err(_) => Bytes::new(),
                };
                return Err(self.refusal(call, parts.status, &parts.headers, &bytes));
            }
            let bytes = match Limited::new(body, call.limit).collect().await {
                Ok(collected) => collected.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() && !call.write => {
                    return Err(RemoteError::Refused {
                        operation: call.operation,
                        status: 413,
                        detail: format!("the reply is larger than {} bytes", call.limit),
                    });
                }
                Err(error) => return Err(call.failed(clip(&format!("the reply broke off: {error}")))),
            };
            let content_type = text_header(&parts.headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
            if call.conditional
                && parts.status == StatusCode::OK
                && let Some(etag) = parts.headers.get(header::ETAG)
            {
                self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(
                    key,
                    etag.clone(),
                    bytes.clone(),
                    content_type.clone(),
                );
            }
            let next = self.next_page(&parts.headers);
            return Ok(Reply {
                operation: call.operation,
                write: call.write,
                body: bytes,
                content_type,
                next,
            });
        }
        Err(RemoteError::Protocol {
            operation: call.operation,
            detail: format!("more than {REDIRECTS} redirects"),
        })
    }

    fn request(
        &self,
        call: &Call,
        path: &str,
        etag: Option<&HeaderValue>,
    ) -> Result<hyper::Request<OctoBody>, RemoteError> {
        let operation = call.operation;
        let wrong = |detail: String| RemoteError::Protocol { operation, detail: clip(&detail) };
        let builder = hyper::Request::builder().method(call.method.clone()).uri(path);
        let mut request = self
            .octocrab
            .build_request(builder, call.body.as_ref())
            .map_err(|error| wrong(causes(&error)))?;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static(call.accept));
        if let Some(etag) = etag {
            headers.insert(header::IF_NONE_MATCH, etag.clone());
        }
        let bearer = match &call.credentials {
            Credentials::Anonymous => None,
            Credentials::App => Some(self.app.jwt(self.clock.now()).map_err(|error| RemoteError::Auth {
                operation,
                detail: format!("the App's key cannot sign: {error}"),
            })?),
            Credentials::Token(token) => Some(token.clone()),
        };
        if let Some(bearer) = bearer {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.expose_secret()))
                .map_err(|_| wrong("a token with characters that no header may hold".into()))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    }

    /// The path a redirect leads to, if it stays on the same host.
    fn redirected(
        &self,
        call: &Call,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<String, RemoteError> {
        let operation = call.operation;
        let wrong = |detail: String| RemoteError::Protocol { operation, detail: clip(&detail) };
        // 302 and 303 would turn a write into a read.
        if call.method != Method::GET && !matches!(status.as_u16(), 301 | 307 | 308) {
            return Err(wrong(format!("a write was answered with {status}")));
        }
        let target = text_header(headers, header::LOCATION.as_str())
            .ok_or_else(|| wrong(format!("{status} without a target")))?;
        let uri: Uri = target.parse().map_err(|_| wrong(format!("{status} to an unreadable address")))?;
        if let Some(authority) = uri.authority()
            && authority.as_str().to_ascii_lowercase() != self.authority
        {
            return Err(wrong(format!("{status} to another host, `{authority}`")));
        }
        uri.path_and_query()
            .map(|path| path.as_str().to_owned())
            .ok_or_else(|| wrong(format!("{status} without a path")))
    }

    /// Where the `Link` header says the next page is, when that is on this host.
    fn next_page(&self, headers: &HeaderMap) -> Option<String> {
        let links = text_header(headers, header::LINK.as_str())?;
        let uri: Uri = next_link(&links)?.parse().ok()?;
        if uri.authority().is_some_and(|host| host.as_str().to_ascii_lowercase() != self.authority) {
            return None;
        }
        let path = uri.path_and_query()?.as_str();
        path.strip_prefix(self.prefix.as_str()).map(str::to_owned)
    }

    fn refusal(&self, call: &Call, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> RemoteError {
        let operation = call.operation;
        let detail = message(status, body);
        if matches!(status.as_u16(), 403 | 429)
            && let Some(retry_after) = self.limit_hit(status, headers, &detail)
        {
            return RemoteError::RateLimited { operation, retry_after };
        }
        match status.as_u16() {
            401 => RemoteError::Auth { operation, detail },
            403 => RemoteError::Forbidden { operation, detail },
            404 => RemoteError::NotFound { operation },
            408 => call.failed(detail),
            code if status.is_client_error() => RemoteError::Refused { operation, status: code, detail },
            code if status.is_server_error() => call.failed(format!("{code}: {detail}")),
            code => RemoteError::Protocol { operation, detail: format!("status {code}: {detail}") },
        }
    }

    /// How long to wait, when a 403 or 429 is a limit and not a refusal.
    fn limit_hit(&self, status: StatusCode, headers: &HeaderMap, detail: &str) -> Option<Duration> {
        if let Some(wait) = text_header(headers, header::RETRY_AFTER.as_str()) {
            let seconds = wait.trim().parse().map_or(LIMIT_DEFAULT, Duration::from_secs);
            return Some(seconds.clamp(Duration::from_secs(1), LIMIT_LONGEST));
        }
        if text_header(headers, "x-ratelimit-remaining").as_deref() == Some("0") {
            let reset = text_header(headers, "x-ratelimit-reset")
                .and_then(|reset| reset.trim().parse().ok())
                .and_then(|seconds| DateTime::from_timestamp(seconds, 0));
            let wait = reset.map_or(LIMIT_DEFAULT, |reset| {
                (reset - self.clock.now()).to_std().unwrap_or(Duration::from_secs(1))
            });
            return Some(wait.clamp(Duration::from_secs(1), LIMIT_LONGEST));
        }
        let lower = detail.to_ascii_lowercase();
        let said = lower.contains("secondary rate limit")
            || lower.contains("abuse detection")
            || lower.contains("rate limit exceeded");
        (said || status == StatusCode::TOO_MANY_REQUESTS).then_some(LIMIT_DEFAULT)
    }
}

/// octocrab over our own HTTP client: its default one adds a second `User-Agent` and knows no proxy.
/// It gets the bare host, because it joins a base path by a prefix test that fails for `/api/graphql`.
fn octocrab_for(scheme: &str, authority: &hyper::http::uri::Authority) -> Result<Octocrab, String> {
    let host = authority.host().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("zeblit/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        // Followed by `exchange`, which keeps credentials on this host.
        .redirect(reqwest::redirect::Policy::none());
    if loopback {
        builder = builder.no_proxy();
    }
    let http = builder.build().map_err(|error| causes(&error))?;
    let service = tower::service_fn(move |request: hyper::Request<OctoBody>| {
        let http = http.clone();
        async move {
            let request = reqwest::Request::try_from(request.map(reqwest::Body::wrap))?;
            http.execute(request).await.map(hyper::Response::<reqwest::Body>::from)
        }
    });
    let base: Uri = format!("{scheme}://{authority}").parse().map_err(|error| format!("{error}"))?;
    let built = OctocrabBuilder::new_empty()
        .with_service(service)
        .with_layer(&BaseUriLayer::new(base))
        .with_auth(AuthState::None)
        .build();
    match built {
        Ok(octocrab) => Ok(octocrab),
        Err(never) => match never {},
    }
}

/// The address in `<address>; rel="next"`, one of several between commas.
fn next_link(links: &str) -> Option<&str> {
    links.split(',').find_map(|link| {
        let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        rest.split(';').any(|part| matches!(part.trim(), "rel=\"next\"" | "rel=next")).then_some(address)
    })
}

fn text_header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Whether the request never left: no connection, no name, no TLS.
fn never_sent(error: &octocrab::Error) -> bool {
    let mut current: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = current {
        if let Some(http) = cause.downcast_ref::<reqwest::Error>() {
            return http.is_connect() || http.is_builder();
        }
        current = cause.source();
    }
    false
}

/// The chain of causes in one line (octocrab's own text may hold a backtrace; only its first line is kept).
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut current = Some(error);
    while let Some(cause) = current {
        let line = cause.to_string();
        let line = line.lines().next().unwrap_or_default();
        if !text.ends_with(line) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(line);
        }
        current = cause.source();
    }
    text
}

/// GitHub's own words about an error: its message and the reasons below `errors`.
fn message(status: StatusCode, body: &[u8]) -> String {
    let reason = status.canonical_reason().unwrap_or("no reason given");
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return reason.to_owned() };
    let mut text = value.get("message").and_then(Value::as_str).unwrap_or(reason).to_owned();
    // `errors` is a list of objects, a list of texts, or one text.
    match value.get("errors") {
        Some(Value::Array(errors)) => {
            for error in errors.iter().take(5) {
                let part = |name| error.get(name).and_then(Value::as_str);
                let line = match (error.as_str(), part("message"), part("field"), part("code")) {
                    (Some(line), ..) | (_, Some(line), ..) => line.to_owned(),
                    (_, _, Some(field), Some(code)) => format!("{field} {code}"),
                    (_, _, _, Some(code)) => code.to_owned(),
                    _ => continue,
                };
                let _ = write!(text, "; {line}");
            }
        }
        Some(Value::String(line)) => {
            let _ = write!(text, "; {line}");
        }
        _ => {}
    }
    clip(&text)
}

/// Foreign text made safe for logs: one line, no control characters, short.
pub fn clip(text: &str) -> String {
    let mut clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL_CHARS + 1).collect();
    if clean.chars().count() > DETAIL_CHARS {
        clean.pop();
        clean.push('…');
    }
    clean
}

/// Percent-encodes one segment of a path or one value of a query: everything but unreserved characters.
pub fn encode(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Percent-encodes a path of several segments, its slashes kept. `None` when a segment is empty, `.` or `..`:
/// such a path would name another resource of the API.
pub fn encode_path(path: &str) -> Option<String> {
    let segments: Vec<&str> = path.split('/').collect();
    if segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
        return None;
    }
    Some(segments.iter().map(|segment| encode(segment)).collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_and_cannot_climb() {
        assert_eq!(encode_path("feature/ü #1?x%2f").as_deref(), Some("feature/%C3%BC%20%231%3Fx%252f"));
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a"] {
            assert_eq!(encode_path(bad), None, "{bad}");
        }
        assert_eq!(encode("dependabot[bot]"), "dependabot%5Bbot%5D");
    }

    #[test]
    fn error_texts_hold_githubs_reasons_in_one_short_line() {
        let body = br#"{"message":"Validation Failed","errors":[{"resource":"PullRequest","code":"custom",
            "message":"A pull request already exists for octo:x."},{"field":"head","code":"invalid"},"plain"]}"#;
        assert_eq!(
            message(StatusCode::UNPROCESSABLE_ENTITY, body),
            "Validation Failed; A pull request already exists for octo:x.; head invalid; plain"
        );
        assert_eq!(message(StatusCode::BAD_GATEWAY, b"<html>"), "Bad Gateway");
        let long = clip(&format!("a\nb\u{7}{}", "x".repeat(900)));
        assert!(long.starts_with("a b x") && long.ends_with('…'));
        assert_eq!(long.chars().count(), DETAIL_CHARS + 1);
    }

    #[test]
    fn the_next_page_is_found_among_links() {
        let links = "<https://h/app/hook/deliveries?per_page=2&cursor=v1_9>; rel=\"next\", <https://h/x>; rel=\"last\"";
        assert_eq!(next_link(links), Some("https://h/app/hook/deliveries?per_page=2&cursor=v1_9"));
        assert_eq!(next_link("<https://h/x>; rel=\"prev\""), None);
        assert_eq!(next_link("nonsense, <, <a>"), None);
    }

    #[test]
    fn the_reply_cache_is_bounded_and_drops_the_least_used() {
        let mut cache = EtagCache::default();
        let etag = HeaderValue::from_static("\"x\"");
        for n in 0..CACHE_ENTRIES {
            cache.put(format!("{n}"), etag.clone(), Bytes::from_static(b"x"), String::new());
        }
        assert!(cache.get("0").is_some());
        cache.put("new".into(), etag.clone(), Bytes::from_static(b"x"), String::new());
        assert_eq!(cache.entries.len(), CACHE_ENTRIES);
        assert!(cache.get("0").is_some() && cache.get("1").is_none());
        cache.put("big".into(), etag, Bytes::from(vec![0; CACHE_ENTRY_BYTES + 1]), String::new());
        assert!(cache.get("big").is_none());
    }
}
