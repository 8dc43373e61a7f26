//! The model proxy: paths allowed, client credentials stripped, key added, cost reserved and settled.
//!
//! A request to `/v1/messages` is paid for by a task of its own: when the agent hangs up or is killed, the answer is still
//! read to its end, because the model endpoint charges for it all the same.

use super::price::PriceTable;
use super::{Allowance, BrokerError, Refusals, Settings};
use crate::clock::{Clock, IdKind, Ids};
use crate::domain::budget::{Price, Usage, dollars};
use crate::domain::ids::RunId;
use crate::store::Store;
use crate::store::ledger::{self, Reservation, Reserved};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Bytes of a request's body: the model API's own cap.
const MAX_REQUEST_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of an answer, streamed or not: 128 000 tokens of output as events are about 20 MiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of an error's body that are passed on.
const MAX_ERROR_BYTES: usize = 256 * 1024;
/// Bytes of one line of an event stream that is looked at; lines with the usage are short.
const MAX_EVENT_BYTES: usize = 256 * 1024;
/// Seconds until the model endpoint must have accepted the connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Silence of the model endpoint after which a request is given up.
const SILENCE: Duration = Duration::from_secs(300);
/// Time for a request's body to arrive from the container.
const BODY: Duration = Duration::from_secs(60);
/// How long an answer is read on after the agent hung up, to learn its cost.
const DRAIN: Duration = Duration::from_secs(300);
/// Chunks of an answer on their way to the agent; more wait at the model endpoint.
const CHUNKS_IN_FLIGHT: usize = 16;
/// Most output tokens that a request may ask for; a sanity bound far above any model's.
const MAX_OUTPUT_TOKENS: i64 = 1_000_000;
/// Bytes of a request for one input token, at least; English text and code have about four.
const BYTES_PER_TOKEN: i64 = 3;
/// Bytes of a query string.
const MAX_QUERY_BYTES: usize = 512;
/// Tries to write a settlement, and the pause between them.
const SETTLE_TRIES: u32 = 5;
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

/// What goes from the agent to the model endpoint; everything else stays here.
const REQUEST_HEADERS: &[&str] = &["content-type", "anthropic-version", "anthropic-beta", "user-agent"];
/// What comes back.
const ANSWER_HEADERS: &[&str] = &["content-type", "retry-after", "request-id", "x-should-retry"];
/// Tools that run at the provider: they reach the network and cost money besides tokens.
const PROVIDER_TOOLS: &[&str] = &["web_search", "web_fetch", "code_execution", "mcp_toolset"];

pub(super) type AnyError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type Answer = Response<BoxBody<Bytes, AnyError>>;

/// Where model requests go.
#[derive(Debug)]
pub struct Upstream {
    /// `Err`: why there is none.
    client: Result<reqwest::Client, String>,
    base_url: String,
    key: Option<SecretString>,
    prices: PriceTable,
    store: Store,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
    pub(super) refusals: Refusals,
}

/// What a request asks for, as far as it costs money. A key given twice is an error: the endpoint might read the other.
#[derive(Debug, Deserialize)]
struct MessagesRequest {
    model: String,
    max_tokens: i64,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    speed: Option<String>,
    #[serde(default)]
    tools: Vec<ToolKind>,
    #[serde(default)]
    mcp_servers: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct ToolKind {
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

/// A refusal in the words of the model API, so that every CLI can show it.
struct Refusal {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: format!("zeblit: {}", message.into()) }
    }

    /// 400: Claude Code shows it and does not try again.
    fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    fn answer(&self) -> Answer {
        let body =
            serde_json::json!({"type": "error", "error": {"type": self.kind, "message": self.message}});
        let mut answer = whole(self.status, Bytes::from(body.to_string()));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }
}

fn whole(status: StatusCode, body: Bytes) -> Answer {
    let body = Full::new(body).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}

/// One paid request on its way.
struct Exchange {
    run: RunId,
    request_id: String,
    price: Price,
    /// What was reserved, and is charged when the real cost never becomes known.
    micros: i64,
    stream: bool,
}

impl Upstream {
    pub(super) fn new(settings: Settings, store: Store, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Self {
        let base_url = settings.anthropic_url.trim_end_matches('/').to_owned();
        Self {
            client: check_url(&base_url).and_then(|()| client()),
            base_url,
            key: settings.anthropic_api_key,
            prices: PriceTable::new(settings.prices),
            store,
            clock,
            ids,
            refusals: Refusals::default(),
        }
    }

    /// Whether requests can be sent at all.
    pub(super) fn check(&self) -> Result<(), BrokerError> {
        let fail =
            |detail: &String| BrokerError::Endpoint { url: self.base_url.clone(), detail: detail.clone() };
        self.client.as_ref().map(|_| ()).map_err(fail)
    }

    /// One request of the agent.
    pub(super) async fn answer(
        self: &Arc<Self>,
        allowance: &Allowance,
        request: Request<Incoming>,
    ) -> Answer {
        let what = format!("{} {}", request.method(), request.uri().path());
        match self.route(allowance, request).await {
            Ok(answer) => answer,
            Err(refusal) => {
                self.refusals.count(&allowance.run, &what);
                tracing::info!(run = %allowance.run, attempt = allowance.attempt, status = refusal.status.as_u16(),
                    reason = %refusal.message, "broker: refused");
                refusal.answer()
            }
        }
    }

    async fn route(
        self: &Arc<Self>,
        allowance: &Allowance,
        request: Request<Incoming>,
    ) -> Result<Answer, Refusal> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().map(str::to_owned);
        if query.as_ref().is_some_and(|query| query.len() > MAX_QUERY_BYTES) {
            return Err(Refusal::invalid(format!("the query is longer than {MAX_QUERY_BYTES} bytes")));
        }
        let method = request.method().clone();
        let target = match (&method, path.as_str()) {
            // The CLI looks whether somebody is there.
            (&Method::HEAD | &Method::GET, "/") => return Ok(whole(StatusCode::OK, Bytes::new())),
            (&Method::POST, "/v1/messages") => Target::Messages,
            (&Method::POST, "/v1/messages/count_tokens") => Target::Free,
            (&Method::GET, path) if is_models_path(path) => Target::Free,
            _ => {
                return Err(Refusal::new(
                    StatusCode::FORBIDDEN,
                    "permission_error",
                    "only /v1/messages, /v1/messages/count_tokens and /v1/models are reachable from a run",
                ));
            }
        };
        let Some(key) = &self.key else {
            // Not 503, which it is: Claude Code would try that for minutes.
            return Err(Refusal::invalid(
                "no model key is configured on the server (models.anthropic_api_key)",
            ));
        };
        let (head, body) = request.into_parts();
        let body = read_body(body).await?;
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        let client = self.client.as_ref().map_err(Refusal::invalid)?;
        let outgoing = client
            .request(method, format!("{}{path}{query}", self.base_url))
            .headers(passed_on(&head.headers))
            .header("x-api-key", secret_header(key)?)
            .body(body.clone());
        let (sender, receiver) = oneshot::channel();
        match target {
            Target::Free => {
                return self.free(outgoing).await;
            }
            Target::Messages => {
                let (reservation, exchange) = self.priced(allowance, &body)?;
                let (upstream, budget) = (Arc::clone(self), allowance.budget_micros);
                // A task of its own from the reservation on: dropping this future must not lose the settlement.
                tokio::spawn(
                    async move { upstream.paid(&reservation, budget, exchange, outgoing, sender).await },
                );
            }
        }
        receiver.await.unwrap_or_else(|_| {
            Err(Refusal::new(StatusCode::BAD_GATEWAY, "api_error", "the request was given up"))
        })
    }

    /// What a message request may cost at most.
    fn priced(&self, allowance: &Allowance, body: &Bytes) -> Result<(Reservation, Exchange), Refusal> {
        let request: MessagesRequest = serde_json::from_slice(body).map_err(|error| {
            Refusal::invalid(format!("the request is not one that can be priced: {error}"))
        })?;
        let model: String = request.model.chars().filter(|c| !c.is_control()).take(100).collect();
        let Some(price) = self.prices.of(&request.model) else {
            return Err(Refusal::invalid(format!(
                "the price of model `{model}` is not known; add [models.prices.\"{model}\"] with input, output, \
                 cache_read and cache_write (dollars for a million tokens) to the server's configuration"
            )));
        };
        if !(0..=MAX_OUTPUT_TOKENS).contains(&request.max_tokens) {
            return Err(Refusal::invalid(format!("max_tokens must be 0 to {MAX_OUTPUT_TOKENS}")));
        }
        if request.speed.as_deref().is_some_and(|speed| speed != "standard") {
            return Err(Refusal::invalid("only the standard speed has a known price"));
        }
        if request.mcp_servers.is_some_and(|servers| !servers.is_empty()) {
            return Err(Refusal::invalid("remote MCP servers are not available in a run"));
        }
        for kind in request.tools.iter().filter_map(|tool| tool.kind.as_deref()) {
            if PROVIDER_TOOLS.iter().any(|refused| kind.starts_with(refused)) {
                let kind: String = kind.chars().filter(|c| !c.is_control()).take(60).collect();
                return Err(Refusal::invalid(format!(
                    "the tool `{kind}` runs at the provider and is not available"
                )));
            }
        }
        let worst = Usage {
            input: i64::try_from(body.len())
                .unwrap_or(i64::MAX)
                .div_euclid(BYTES_PER_TOKEN)
                .saturating_add(1),
            output: request.max_tokens,
            ..Usage::default()
        };
        let micros = Price { input: dearest_input(&price, body), ..price }.cost(&worst);
        let request_id = self.ids.next(IdKind::Request);
        let reservation = Reservation {
            run: allowance.run.clone(),
            request_id: request_id.clone(),
            attempt: allowance.attempt,
            model: request.model,
            micros,
        };
        let exchange =
            Exchange { run: allowance.run.clone(), request_id, price, micros, stream: request.stream };
        Ok((reservation, exchange))
    }

    /// Requests that cost nothing: passed through whole.
    async fn free(&self, outgoing: reqwest::RequestBuilder) -> Result<Answer, Refusal> {
        let response = outgoing.send().await.map_err(|error| unreachable_endpoint(&error))?;
        if response.status() == StatusCode::UNAUTHORIZED || response.status() == StatusCode::FORBIDDEN {
            return Err(key_refused());
        }
        let (status, headers) = (response.status(), answer_headers(response.headers()));
        let body = read_answer(response, MAX_ERROR_BYTES.max(1024 * 1024)).await?;
        let mut answer = whole(status, body);
        *answer.headers_mut() = headers;
        Ok(answer)
    }

    /// Reserves, sends, passes on and settles.
    async fn paid(
        self: Arc<Self>,
        reservation: &Reservation,
        budget_micros: i64,
        exchange: Exchange,
        outgoing: reqwest::RequestBuilder,
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    ) {
        // Nobody waits any more exactly when the agent hung up; then there is nobody to tell.
        match ledger::reserve(&self.store, reservation, budget_micros, self.clock.now()).await {
            Ok(Reserved::Ok) => {}
            Ok(Reserved::OverBudget { committed_micros }) => {
                let _ = answer.send(Err(Refusal::new(
                    // Claude Code shows 402 and does not try again (429 and 5xx it would).
                    StatusCode::PAYMENT_REQUIRED,
                    "billing_error",
                    format!(
                        "the budget of this run is used up ({} of {}; this request may cost {})",
                        dollars(committed_micros),
                        dollars(budget_micros),
                        dollars(reservation.micros)
                    ),
                )));
                return;
            }
            Err(error) => {
                tracing::error!(run = %exchange.run, %error, "broker: cannot reserve");
                let _ = answer.send(Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "api_error",
                    "the cost of the request cannot be written down just now",
                )));
                return;
            }
        }
        let response = match outgoing.send().await {
            Ok(response) => response,
            Err(error) => {
                // Not connected: nothing was asked. Anything later: it may have been answered, and charged.
                let charge = if error.is_connect() { 0 } else { exchange.micros };
                self.settle(&exchange, Usage::default(), charge).await;
                let _ = answer.send(Err(unreachable_endpoint(&error)));
                return;
            }
        };
        let (status, headers) = (response.status(), answer_headers(response.headers()));
        if !status.is_success() {
            self.settle(&exchange, Usage::default(), 0).await;
            tracing::warn!(run = %exchange.run, status = status.as_u16(), "broker: the model endpoint refused");
            let told = if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                Err(key_refused())
            } else if status.is_redirection() || status.is_informational() {
                Err(Refusal::new(
                    StatusCode::BAD_GATEWAY,
                    "api_error",
                    "the model endpoint answered with a redirect",
                ))
            } else {
                read_answer(response, MAX_ERROR_BYTES).await.map(|body| {
                    let mut answer = whole(status, body);
                    *answer.headers_mut() = headers;
                    answer
                })
            };
            let _ = answer.send(told);
            return;
        }
        if exchange.stream {
            self.stream(exchange, response, headers, answer).await;
        } else {
            let body = read_answer(response, MAX_ANSWER_BYTES).await;
            let usage = body.as_ref().ok().and_then(|body| serde_json::from_slice::<WithUsage>(body).ok());
            match usage.and_then(|with| with.usage) {
                Some(usage) => self.settle_usage(&exchange, &usage).await,
                None => self.settle(&exchange, Usage::default(), exchange.micros).await,
            }
            let _ = answer.send(body.map(|body| {
                let mut answer = whole(status, body);
                *answer.headers_mut() = headers;
                answer
            }));
        }
    }

    /// Passes an event stream on chunk by chunk, reads it to its end in any case, and settles.
    async fn stream(
        &self,
        exchange: Exchange,
        mut response: reqwest::Response,
        headers: HeaderMap,
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    ) {
        let (chunks, receiver) = mpsc::channel::<Result<Frame<Bytes>, AnyError>>(CHUNKS_IN_FLIGHT);
        let body = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        });
        let mut reply: Answer = Response::new(BodyExt::boxed(StreamBody::new(body)));
        *reply.headers_mut() = headers;
        let mut listener = answer.send(Ok(reply)).is_ok().then_some(chunks);

        let mut meter = StreamMeter::default();
        let mut bytes = 0usize;
        let mut given_up = None;
        // Without a deadline while the agent listens: `SILENCE` and the run's wall clock bound that.
        let mut deadline: Option<tokio::time::Instant> = None;
        loop {
            if listener.is_none() && deadline.is_none() {
                deadline = Some(tokio::time::Instant::now() + DRAIN);
            }
            let chunk = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, response.chunk()).await.ok(),
                None => Some(response.chunk().await),
            };
            let chunk = match chunk {
                Some(Ok(Some(chunk))) => chunk,
                Some(Ok(None)) => break,
                Some(Err(error)) => {
                    given_up = Some(plain_error(&error));
                    break;
                }
                None => {
                    given_up = Some("the agent hung up and the answer went on".to_owned());
                    break;
                }
            };
            bytes = bytes.saturating_add(chunk.len());
            meter.feed(&chunk);
            if bytes > MAX_ANSWER_BYTES {
                given_up = Some(format!("the answer is longer than {MAX_ANSWER_BYTES} bytes"));
                break;
            }
            if let Some(chunks) = &listener {
                // An agent that does not read is as good as gone.
                let sent = tokio::time::timeout(SILENCE, chunks.send(Ok(Frame::data(chunk)))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    listener = None;
                }
            }
        }
        // Settled before the agent sees the end: its next request finds the ledger up to date.
        match meter.total() {
            Some(usage) => self.settle_usage(&exchange, &usage).await,
            None => self.settle(&exchange, Usage::default(), exchange.micros).await,
        }
        if let Some(reason) = given_up {
            tracing::warn!(run = %exchange.run, request = %exchange.request_id, %reason, "broker: stream cut");
            if let Some(chunks) = listener {
                let _ = chunks.send(Err(reason.into())).await;
            }
        }
    }

    async fn settle_usage(&self, exchange: &Exchange, usage: &ApiUsage) {
        self.settle(exchange, usage.plain(), usage.cost(&exchange.price)).await;
    }

    /// Writes what a request cost. A reservation that cannot be settled stays, and counts in full.
    async fn settle(&self, exchange: &Exchange, usage: Usage, micros: i64) {
        for left in (0..SETTLE_TRIES).rev() {
            match ledger::settle(&self.store, &exchange.run, &exchange.request_id, &usage, micros).await {
                Ok(()) => {
                    tracing::debug!(run = %exchange.run, request = %exchange.request_id, micros,
                        reserved = exchange.micros, "broker: settled");
                    return;
                }
                Err(error) if left == 0 => {
                    tracing::error!(run = %exchange.run, request = %exchange.request_id, %error,
                        "broker: cannot settle; the reservation stays");
                }
                Err(_) => tokio::time::sleep(SETTLE_PAUSE).await,
            }
        }
    }
}

fn check_url(base_url: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(base_url).map_err(|error| error.to_string())?;
    let fits = matches!(url.scheme(), "http" | "https")
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if fits { Ok(()) } else { Err("must be http(s)://HOST, without user, query and fragment".into()) }
}

fn client() -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        // A redirect would carry prompt and key to another place.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| format!("the client cannot be made: {error}"))
}

enum Target {
    /// Costs money.
    Messages,
    /// Costs nothing.
    Free,
}

fn is_models_path(path: &str) -> bool {
    path == "/v1/models"
        || path.strip_prefix("/v1/models/").is_some_and(|model| {
            !model.is_empty()
                && model != ".."
                && model != "."
                && model
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'@'))
        })
}

/// The dearest that a million input tokens of this request can cost.
fn dearest_input(price: &Price, body: &[u8]) -> i64 {
    let dearest = price.input.max(price.cache_write).max(price.cache_read);
    // A cache that lives for an hour costs twice the input.
    let hour = body.windows(4).any(|window| window == b"\"1h\"");
    if hour { dearest.max(price.input.saturating_mul(2)) } else { dearest }
}

async fn read_body(body: Incoming) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(BODY, Limited::new(body, MAX_REQUEST_BYTES).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!("the request is larger than {MAX_REQUEST_BYTES} bytes"),
        )),
        Ok(Err(_)) => Err(Refusal::invalid("the request broke off")),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout_error",
            "the request took too long to arrive",
        )),
    }
}

/// The body of a response, at most `cap` bytes.
async fn read_answer(mut response: reqwest::Response, cap: usize) -> Result<Bytes, Refusal> {
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > cap => {
                return Err(Refusal::new(
                    StatusCode::BAD_GATEWAY,
                    "api_error",
                    format!("the answer of the model endpoint is larger than {cap} bytes"),
                ));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(error) => return Err(unreachable_endpoint(&error)),
        }
    }
}

/// The agent's headers that the model endpoint may see. Each may come once; long-context betas are taken out, because
/// tokens beyond 200 000 cost more than the table says.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in REQUEST_HEADERS {
        let Some(value) = headers.get(*name).and_then(|value| value.to_str().ok()) else { continue };
        let value = if *name == "anthropic-beta" {
            let kept: Vec<&str> = headers
                .get_all(*name)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .map(str::trim)
                .filter(|beta| {
                    !beta.is_empty() && !beta.starts_with("context-1m") && !beta.starts_with("fast-mode")
                })
                .collect();
            kept.join(",")
        } else {
            value.to_owned()
        };
        if !value.is_empty()
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            passed.insert(HeaderName::from_static(name), value);
        }
    }
    passed
}

fn answer_headers(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in ANSWER_HEADERS {
        if let Some(value) = headers.get(*name) {
            passed.insert(HeaderName::from_static(name), value.clone());
        }
    }
    passed
}

fn secret_header(key: &SecretString) -> Result<HeaderValue, Refusal> {
    let mut value = HeaderValue::from_str(key.expose_secret().trim()).map_err(|_| {
        Refusal::invalid(
            "the model key of the server has characters that no key has (models.anthropic_api_key)",
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// 403, where the endpoint said 401: Claude Code would try 401 for minutes.
fn key_refused() -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, "permission_error", "the model endpoint refused the server's key")
}

fn unreachable_endpoint(error: &reqwest::Error) -> Refusal {
    Refusal::new(
        StatusCode::BAD_GATEWAY,
        "api_error",
        format!("the model endpoint cannot be reached: {}", plain_error(error)),
    )
}

/// What went wrong, without the URL (it may name a host that is nobody's business in there).
fn plain_error(error: &reqwest::Error) -> String {
    let kind = if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    };
    kind.to_owned()
}

/// `usage` of an answer, as the model API writes it. In a stream, later values replace earlier ones.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct ApiUsage {
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cache_creation_input_tokens: Option<i64>,
    cache_read_input_tokens: Option<i64>,
    cache_creation: Option<CacheCreation>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct CacheCreation {
    ephemeral_1h_input_tokens: i64,
}

#[derive(Deserialize)]
struct WithUsage {
    #[serde(default)]
    usage: Option<ApiUsage>,
}

impl ApiUsage {
    fn plain(&self) -> Usage {
        let tokens = |count: Option<i64>| count.unwrap_or(0).max(0);
        Usage {
            input: tokens(self.input_tokens),
            output: tokens(self.output_tokens),
            cache_read: tokens(self.cache_read_input_tokens),
            cache_write: tokens(self.cache_creation_input_tokens),
        }
    }

    /// Tokens written to a cache that lives for an hour cost twice the input, not the table's 1.25 times.
    fn cost(&self, price: &Price) -> i64 {
        let mut usage = self.plain();
        let hour =
            self.cache_creation.unwrap_or_default().ephemeral_1h_input_tokens.clamp(0, usage.cache_write);
        usage.cache_write -= hour;
        let hour_price = Price { input: price.input.saturating_mul(2), ..*price };
        price.cost(&usage).saturating_add(hour_price.cost(&Usage { input: hour, ..Usage::default() }))
    }

    fn merge(&mut self, later: ApiUsage) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
        self.cache_creation_input_tokens =
            later.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.cache_creation = later.cache_creation.or(self.cache_creation);
    }
}

/// Reads the usage out of an event stream that passes by.
#[derive(Debug, Default)]
struct StreamMeter {
    line: Vec<u8>,
    /// The current line is longer than what is looked at.
    too_long: bool,
    usage: ApiUsage,
    started: bool,
    ended: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamEvent {
    MessageStart {
        message: WithUsage,
    },
    MessageDelta {
        #[serde(default)]
        usage: Option<ApiUsage>,
    },
    #[serde(other)]
    Other,
}

impl StreamMeter {
    fn feed(&mut self, chunk: &[u8]) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > MAX_EVENT_BYTES {
                self.too_long = true;
                self.line.clear();
            }
            if !self.too_long {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                if !self.too_long {
                    self.event();
                }
                self.line.clear();
                self.too_long = false;
            }
        }
    }

    fn event(&mut self) {
        let Some(data) = self.line.strip_prefix(b"data:") else { return };
        // Most events carry text; only these two carry usage, and their type is what counts, not their text.
        match serde_json::from_slice::<StreamEvent>(data) {
            Ok(StreamEvent::MessageStart { message: WithUsage { usage: Some(usage) } }) => {
                self.started = true;
                self.usage.merge(usage);
            }
            Ok(StreamEvent::MessageDelta { usage: Some(usage) }) => {
                self.ended = true;
                self.usage.merge(usage);
            }
            _ => {}
        }
    }

    /// What the answer cost, when the stream said so to the end.
    fn total(&self) -> Option<ApiUsage> {
        (self.started && self.ended).then_some(self.usage)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Broker;
    use super::*;
    use crate::clock::{RandomIds, SystemClock};
    use crate::store::ledger::Totals;
    use axum::body::Body;
    use axum::extract::State;
    use std::collections::VecDeque;
    use std::path::Path;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::Notify;

    /// What the endpoint does with the next request.
    enum Play {
        Json(u16, String),
        /// Chunks; before each `None` it waits for `go`. `broken`: the connection breaks at the end.
        Stream {
            chunks: Vec<Option<String>>,
            broken: bool,
        },
    }

    #[derive(Default)]
    struct Endpoint {
        plays: Mutex<VecDeque<Play>>,
        seen: Mutex<Vec<(String, HeaderMap, Bytes)>>,
        go: Notify,
    }

    async fn endpoint(
        State(state): State<Arc<Endpoint>>,
        request: axum::extract::Request,
    ) -> axum::response::Response {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        state.seen.lock().unwrap().push((format!("{} {}", head.method, head.uri), head.headers, body));
        let play = state.plays.lock().unwrap().pop_front();
        let answer = axum::response::Response::builder();
        match play.unwrap_or_else(|| Play::Json(200, "{}".into())) {
            Play::Json(status, body) => answer
                .status(status)
                .header("content-type", "application/json")
                .header("set-cookie", "a=b")
                .header("anthropic-organization-id", "org")
                .body(Body::from(body))
                .unwrap(),
            Play::Stream { chunks, broken } => {
                let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
                tokio::spawn(async move {
                    for chunk in chunks {
                        match chunk {
                            Some(text) => {
                                let _ = sender.send(Ok(Bytes::from(text))).await;
                            }
                            None => state.go.notified().await,
                        }
                    }
                    if broken {
                        let _ = sender.send(Err(std::io::Error::other("broken"))).await;
                    }
                });
                let body = stream::unfold(receiver, |mut receiver| async move {
                    receiver.recv().await.map(|chunk| (chunk, receiver))
                });
                answer.header("content-type", "text/event-stream").body(Body::from_stream(body)).unwrap()
            }
        }
    }

    struct World {
        folder: tempfile::TempDir,
        store: Store,
        endpoint: Arc<Endpoint>,
        broker: Broker,
        listener: Option<super::super::Listener>,
        run: RunId,
    }

    impl World {
        async fn new(budget_micros: i64) -> Self {
            Self::with_key(budget_micros, Some("sk-real")).await
        }

        async fn with_key(budget_micros: i64, key: Option<&str>) -> Self {
            let endpoint_state = Arc::new(Endpoint::default());
            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let base_url = format!("http://{}/", tcp.local_addr().unwrap());
            let app = axum::Router::new().fallback(endpoint).with_state(Arc::clone(&endpoint_state));
            tokio::spawn(async move { axum::serve(tcp, app).await });
            Self::at(base_url, budget_micros, key, endpoint_state).await
        }

        async fn at(
            base_url: String,
            budget_micros: i64,
            key: Option<&str>,
            endpoint: Arc<Endpoint>,
        ) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store =
                Store::open(&format!("sqlite:{}", folder.path().join("z.db").display())).await.unwrap();
            let settings = Settings {
                anthropic_url: base_url,
                anthropic_api_key: key.map(|key| SecretString::from(key.to_owned())),
                ..Settings::default()
            };
            let broker = Broker::new(settings, store.clone(), Arc::new(SystemClock), Arc::new(RandomIds));
            let run = RunId::new("run_1");
            let allowance = Allowance { run: run.clone(), attempt: 1, budget_micros };
            let listener = Some(broker.open(folder.path(), allowance).await.unwrap());
            Self { folder, store, endpoint, broker, listener, run }
        }

        fn plays(&self, play: Play) {
            self.endpoint.plays.lock().unwrap().push_back(play);
        }

        fn seen(&self) -> usize {
            self.endpoint.seen.lock().unwrap().len()
        }

        fn socket(&self) -> &Path {
            self.folder.path()
        }

        async fn connect(&self, request: &str) -> UnixStream {
            let mut stream = UnixStream::connect(self.socket().join("broker.sock")).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        }

        /// Status and the whole raw answer.
        async fn ask(&self, request: &str) -> (u16, String) {
            let mut stream = self.connect(request).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            (status, answer)
        }

        async fn totals(&self) -> Totals {
            ledger::totals(&self.store, &self.run).await.unwrap()
        }

        /// Waits until every request of the ledger is settled.
        async fn settled(&self) -> Totals {
            for _ in 0..500 {
                let totals = self.totals().await;
                if totals.usage != Usage::default() {
                    return totals;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("never settled: {:?}", self.totals().await);
        }
    }

    fn post(path: &str, headers: &str, body: &str) -> String {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn messages(body: &str) -> String {
        post("/v1/messages?beta=true", "", body)
    }

    const REQUEST: &str = r#"{"model":"claude-sonnet-4-5","max_tokens":1000,"messages":[]}"#;
    const STREAMED: &str = r#"{"model":"claude-sonnet-4-5","max_tokens":1000,"stream":true,"messages":[]}"#;
    const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":100,\"cache_read_input_tokens\":50,\"cache_creation_input_tokens\":20,\"output_tokens\":1}}}\n\n";
    const TEXT: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"{\\\"type\\\":\\\"message_delta\\\",\\\"usage\\\":{\\\"output_tokens\\\":0}}\"}}\n\n";
    const DELTA: &str = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":30}}\n\n";
    const STOP: &str = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    const USAGE: Usage = Usage { input: 100, output: 30, cache_read: 50, cache_write: 20 };
    /// 100 × 3 + 30 × 15 + 50 × 0.3 + 20 × 3.75 millionths.
    const COST: i64 = 840;
    const PLENTY: i64 = 10_000_000;

    fn reserved(body: &str) -> i64 {
        // Input at the price of a cache write (3.75), 1000 tokens of output at 15.
        let tokens = i64::try_from(body.len()).unwrap() / 3 + 1;
        (tokens * 375 + 99) / 100 + 15_000
    }

    #[tokio::test]
    async fn the_key_is_added_and_everything_of_the_clients_is_stripped() {
        let world = World::new(PLENTY).await;
        let headers = "x-api-key: placeholder\r\nauthorization: Bearer y\r\ncookie: a=b\r\nproxy-authorization: z\r\nx-forwarded-for: 1.2.3.4\r\nanthropic-version: 2023-06-01\r\nanthropic-beta: context-1m-2025-08-07, tools-x\r\nanthropic-beta: other\r\nuser-agent: claude-cli/2\r\nanthropic-dangerous-direct-browser-access: true\r\n";
        world.plays(Play::Json(200, r#"{"usage":{"input_tokens":1}}"#.into()));
        let (status, answer) = world.ask(&post("/v1/messages?beta=true", headers, REQUEST)).await;
        assert_eq!(status, 200, "{answer}");
        assert!(!answer.contains("set-cookie") && !answer.contains("organization"), "{answer}");
        let seen = world.endpoint.seen.lock().unwrap();
        let (what, headers, body) = &seen[0];
        assert_eq!(what, "POST /v1/messages?beta=true");
        assert_eq!(body, REQUEST);
        let mut names: Vec<String> = headers.keys().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "accept",
                "anthropic-beta",
                "anthropic-version",
                "content-length",
                "content-type",
                "host",
                "user-agent",
                "x-api-key"
            ]
        );
        assert_eq!(headers["x-api-key"], "sk-real");
        assert_eq!(headers["anthropic-beta"], "tools-x,other");
    }

    #[tokio::test]
    async fn a_whole_answer_is_settled_on_its_usage() {
        let world = World::new(PLENTY).await;
        let body = r#"{"id":"m","usage":{"input_tokens":100,"output_tokens":30,"cache_read_input_tokens":50,"cache_creation_input_tokens":20}}"#;
        world.plays(Play::Json(200, body.into()));
        let (status, answer) = world.ask(&messages(REQUEST)).await;
        assert_eq!(status, 200);
        assert!(answer.ends_with(body));
        assert_eq!(world.totals().await, Totals { micros: COST, usage: USAGE, requests: 1 });
    }

    #[tokio::test]
    async fn a_streamed_answer_arrives_chunk_by_chunk_and_is_settled_on_its_usage() {
        let world = World::new(PLENTY).await;
        let (half, rest) = DELTA.split_at(40);
        world.plays(Play::Stream {
            chunks: vec![
                Some(START.into()),
                Some(TEXT.into()),
                None,
                Some(half.into()),
                Some(format!("{rest}{STOP}")),
            ],
            broken: false,
        });
        let mut stream = world.connect(&messages(STREAMED)).await;
        let mut answer = String::new();
        while !answer.contains("content_block_delta") {
            let mut chunk = vec![0; 4096];
            let read = stream.read(&mut chunk).await.unwrap();
            assert!(read > 0, "{answer}");
            answer.push_str(&String::from_utf8_lossy(&chunk[..read]));
        }
        // Here the end is not there yet: the reservation stands.
        assert_eq!(world.totals().await.micros, reserved(STREAMED));
        world.endpoint.go.notify_one();
        let mut end = String::new();
        stream.read_to_string(&mut end).await.unwrap();
        assert!(end.contains("message_stop"), "{end}");
        assert_eq!(world.totals().await, Totals { micros: COST, usage: USAGE, requests: 1 });
    }

    #[tokio::test]
    async fn an_agent_that_hangs_up_pays_for_the_whole_answer() {
        let mut world = World::new(PLENTY).await;
        world.plays(Play::Stream {
            chunks: vec![Some(START.into()), None, Some(TEXT.into()), Some(DELTA.into())],
            broken: false,
        });
        let mut stream = world.connect(&messages(STREAMED)).await;
        let mut one = [0; 64];
        assert!(stream.read(&mut one).await.unwrap() > 0);
        drop(stream);
        // The listener goes as well, as when the container was killed.
        world.listener = None;
        world.endpoint.go.notify_one();
        assert_eq!(world.settled().await, Totals { micros: COST, usage: USAGE, requests: 1 });
    }

    #[tokio::test]
    async fn a_cut_answer_costs_its_reservation() {
        for (chunks, broken) in [
            (vec![Some(START.to_owned()), Some(TEXT.to_owned())], true),
            (vec![Some(START.to_owned()), Some(TEXT.to_owned())], false),
            (vec![], false),
        ] {
            let world = World::new(PLENTY).await;
            world.plays(Play::Stream { chunks, broken });
            world.ask(&messages(STREAMED)).await;
            assert_eq!(
                world.totals().await,
                Totals { micros: reserved(STREAMED), usage: Usage::default(), requests: 1 }
            );
        }
        let world = World::new(PLENTY).await;
        world.plays(Play::Json(200, "not json".into()));
        world.ask(&messages(REQUEST)).await;
        assert_eq!(world.totals().await.micros, reserved(REQUEST));
    }

    #[tokio::test]
    async fn beyond_the_budget_nothing_is_sent() {
        let world = World::new(reserved(REQUEST)).await;
        let usage = r#"{"usage":{"input_tokens":0,"output_tokens":1}}"#;
        world.plays(Play::Json(200, usage.into()));
        assert_eq!(world.ask(&messages(REQUEST)).await.0, 200);
        let (status, answer) = world.ask(&messages(REQUEST)).await;
        assert_eq!(status, 402, "{answer}");
        assert!(
            answer.contains("\"billing_error\"")
                && answer.contains("zeblit: the budget of this run is used up"),
            "{answer}"
        );
        assert_eq!(world.seen(), 1);
        assert_eq!(world.totals().await.micros, 15);
        assert_eq!(world.broker.refused(&world.run), vec![("POST /v1/messages".to_owned(), 1)]);
    }

    #[tokio::test]
    async fn many_requests_at_once_reserve_no_more_than_the_budget() {
        let world = Arc::new(World::new(reserved(STREAMED)).await);
        for _ in 0..16 {
            world.plays(Play::Stream {
                chunks: vec![Some(START.into()), None, Some(DELTA.into())],
                broken: false,
            });
        }
        let mut asks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let world = Arc::clone(&world);
            asks.spawn(async move { world.ask(&messages(STREAMED)).await.0 });
        }
        let mut refused = 0;
        while refused < 15 {
            assert_eq!(asks.join_next().await.unwrap().unwrap(), 402);
            refused += 1;
        }
        world.endpoint.go.notify_one();
        assert_eq!(asks.join_next().await.unwrap().unwrap(), 200);
        assert_eq!(world.seen(), 1);
        assert_eq!(world.totals().await, Totals { micros: COST, usage: USAGE, requests: 1 });
    }

    #[tokio::test]
    async fn errors_of_the_endpoint_cost_nothing_and_are_passed_on() {
        let world = World::new(PLENTY).await;
        for (status, told) in
            [(429, 429), (529, 529), (500, 500), (400, 400), (401, 403), (403, 403), (302, 502)]
        {
            world.plays(Play::Json(
                status,
                r#"{"type":"error","error":{"type":"x","message":"their words"}}"#.into(),
            ));
            let (found, answer) = world.ask(&messages(REQUEST)).await;
            assert_eq!(found, told, "{answer}");
            assert_eq!(answer.contains("their words"), status == told && status != 403, "{answer}");
        }
        assert_eq!(world.totals().await.micros, 0);
    }

    #[tokio::test]
    async fn an_endpoint_that_is_not_there_costs_nothing() {
        let world = World::at("http://127.0.0.1:1".into(), PLENTY, Some("k"), Arc::default()).await;
        let (status, answer) = world.ask(&messages(REQUEST)).await;
        assert_eq!(status, 502, "{answer}");
        assert!(
            answer.contains("cannot be reached: no connection") && !answer.contains("127.0.0.1"),
            "{answer}"
        );
        assert_eq!(world.totals().await.micros, 0);
    }

    #[tokio::test]
    async fn only_the_listed_paths_are_reachable() {
        let world = World::new(PLENTY).await;
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        for allowed in ["/v1/models", "/v1/models?limit=1000", "/v1/models/claude-sonnet-4-5"] {
            assert_eq!(world.ask(&get(allowed)).await.0, 200, "{allowed}");
        }
        assert_eq!(world.ask(&post("/v1/messages/count_tokens?beta=true", "", "{}")).await.0, 200);
        assert_eq!(world.seen(), 4);
        assert_eq!(world.ask(&get("/")).await.0, 200);
        assert_eq!(world.ask("HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.0, 200);
        let mut refused = vec![
            messages(REQUEST).replacen("POST", "PUT", 1),
            post("/v1/files", "", "{}"),
            post("/v1/messages/batches", "", "{}"),
            post("/v1/messages/", "", REQUEST),
            post("//v1/messages", "", REQUEST),
            post("/v1/messages%2fbatches", "", "{}"),
            post("/v1/../v1/files", "", "{}"),
            post("/v1/complete", "", "{}"),
            post("http://evil.example/v1/files", "", "{}"),
        ];
        refused.extend(
            [
                "/v1/files",
                "/v1/models/",
                "/v1/models/..",
                "/v1/models/../files",
                "/v1/models/a/b",
                "/metrics",
            ]
            .map(get),
        );
        for request in &refused {
            let (status, answer) = world.ask(request).await;
            assert_eq!(status, 403, "{request}\n{answer}");
            assert!(answer.contains("\"permission_error\""), "{answer}");
        }
        assert_eq!(
            world.ask("CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.0,
            403
        );
        assert_eq!(world.ask(&get(&format!("/v1/models?{}", "a".repeat(600)))).await.0, 400);
        assert_eq!(world.seen(), 4);
        let counted: u64 = world.broker.refused(&world.run).iter().map(|(_, count)| count).sum();
        assert_eq!(counted, u64::try_from(refused.len()).unwrap() + 2);
    }

    #[tokio::test]
    async fn an_absolute_url_still_goes_to_the_configured_endpoint() {
        let world = World::new(PLENTY).await;
        world.plays(Play::Json(200, r#"{"usage":{"input_tokens":1}}"#.into()));
        assert_eq!(world.ask(&post("http://evil.example/v1/messages", "", REQUEST)).await.0, 200);
        assert_eq!(world.seen(), 1);
    }

    #[tokio::test]
    async fn requests_that_cannot_be_priced_are_refused() {
        let world = World::new(PLENTY).await;
        for (body, wanted) in [
            ("", "cannot be priced"),
            ("[]", "be priced"),
            ("{", "be priced"),
            (r#"{"model":"claude-sonnet-4-5"}"#, "max_tokens"),
            (r#"{"model":"claude-sonnet-4-5","max_tokens":-1}"#, "max_tokens"),
            (r#"{"model":"claude-sonnet-4-5","max_tokens":9000000000000000000}"#, "max_tokens"),
            (r#"{"model":"claude-sonnet-4-5","max_tokens":1,"max_tokens":9}"#, "duplicate"),
            (r#"{"model":"claude-sonnet-4-5","model":"claude-opus-4-1","max_tokens":9}"#, "duplicate"),
            (
                r#"{"model":"gpt-5","max_tokens":1}"#,
                "the price of model `gpt-5` is not known; add [models.prices",
            ),
            (r#"{"model":"claude-opus-4-6","max_tokens":1,"speed":"fast"}"#, "speed"),
            (
                r#"{"model":"claude-sonnet-4-5","max_tokens":1,"tools":[{"type":"web_search_20250305","name":"w"}]}"#,
                "runs at the provider",
            ),
            (
                r#"{"model":"claude-sonnet-4-5","max_tokens":1,"mcp_servers":[{"url":"https://evil.example"}]}"#,
                "MCP",
            ),
        ] {
            let (status, answer) = world.ask(&messages(body)).await;
            assert_eq!(status, 400, "{body}\n{answer}");
            assert!(answer.contains(wanted) || wanted == "cannot be priced", "{body}\n{answer}");
        }
        assert_eq!((world.seen(), world.totals().await.requests), (0, 0));
    }

    #[tokio::test]
    async fn without_a_key_the_answer_says_so() {
        let world = World::with_key(PLENTY, None).await;
        let (status, answer) = world.ask(&messages(REQUEST)).await;
        assert_eq!(status, 400);
        assert!(answer.contains("no model key is configured on the server"), "{answer}");
        assert_eq!(world.seen(), 0);
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_is_refused() {
        let world = World::new(PLENTY).await;
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            MAX_REQUEST_BYTES + 1
        );
        let mut stream = world.connect(&head).await;
        // The server answers before all of it came, and may close then.
        let _ = stream.write_all(&vec![b' '; MAX_REQUEST_BYTES + 1]).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(
            String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 413"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        assert_eq!(world.seen(), 0);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_dropped_listener_answers_no_more() {
        let mut world = World::new(PLENTY).await;
        let allowance = Allowance { run: world.run.clone(), attempt: 2, budget_micros: PLENTY };
        world.listener = Some(world.broker.open(world.socket(), allowance).await.unwrap());
        let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert_eq!(world.ask(request).await.0, 200);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(world.socket().join("broker.sock")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o666);
        world.listener = None;
        while UnixStream::connect(world.socket().join("broker.sock")).await.is_ok() {
            tokio::task::yield_now().await;
        }
        let missing = world
            .broker
            .open(
                Path::new("/nonexistent"),
                Allowance { run: world.run.clone(), attempt: 1, budget_micros: 1 },
            )
            .await;
        assert!(missing.unwrap_err().to_string().contains("/nonexistent/broker.sock"));
    }

    #[test]
    fn addresses_of_endpoints_are_checked() {
        for bad in ["", "api.anthropic.com", "ftp://x", "https://user@x", "https://x/?a=b", "https://x/#a"] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
        for good in ["https://api.anthropic.com", "http://127.0.0.1:1/gateway/anthropic"] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn hour_long_caches_cost_twice_the_input() {
        let price = PriceTable::new([]).of("claude-sonnet-4-5").unwrap();
        let usage: ApiUsage = serde_json::from_str(
            r#"{"cache_creation_input_tokens":1000,"cache_creation":{"ephemeral_1h_input_tokens":400,"ephemeral_5m_input_tokens":600}}"#,
        )
        .unwrap();
        assert_eq!(usage.cost(&price), 600 * 375 / 100 + 400 * 6);
        assert_eq!(dearest_input(&price, br#"{"ttl":"1h"}"#), 6_000_000);
        assert_eq!(dearest_input(&price, b"{}"), 3_750_000);
    }

    #[test]
    fn the_meter_reads_any_chunking_and_survives_odd_streams() {
        let all = format!("{START}{TEXT}{DELTA}{STOP}");
        for size in [1, 7, 64, all.len()] {
            let mut meter = StreamMeter::default();
            for chunk in all.as_bytes().chunks(size) {
                meter.feed(chunk);
            }
            assert_eq!(meter.total().unwrap().plain(), USAGE, "chunks of {size}");
        }
        let mut meter = StreamMeter::default();
        meter.feed(START.as_bytes());
        meter.feed(b"data: ");
        for _ in 0..10 {
            meter.feed(&[b'x'; MAX_EVENT_BYTES]);
        }
        assert!(meter.line.len() <= MAX_EVENT_BYTES);
        meter.feed(b"\n");
        assert_eq!(meter.total(), None);
        meter.feed(&DELTA.replace('\n', "\r\n").into_bytes());
        assert_eq!(meter.total().unwrap().plain(), USAGE);
        for odd in [
            "data:",
            "data: null\n",
            "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":\"x\"}}\n",
            "\n\n",
            "data: {\"type\":7}\n",
        ] {
            StreamMeter::default().feed(odd.as_bytes());
        }
    }
}
