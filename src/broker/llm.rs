//! The model proxy: requests checked against the allow-list, client credentials stripped, the key added, cost reserved
//! and settled.
//!
//! A request that costs money is handled by a task of its own: when the agent hangs up or is killed, the answer is still
//! read to its end, because the provider charges for it all the same.

use super::filter;
use super::json::Json;
use super::price::PriceTable;
use super::provider::{Models, Provider};
use super::route::{self, Call, Route};
use super::trouble::{Trouble, classify};
use super::usage::{self, Spent, StreamMeter};
use super::{Allowance, BrokerError, Notes, Settings};
use crate::clock::{Clock, IdKind, Ids};
use crate::domain::budget::{Budget, Usage};
use crate::domain::model_api::ModelApi;
use crate::domain::secrets::SecretScan;
use crate::domain::wording;
use crate::store::Store;
use crate::store::ledger::{self, Booking, Reservation, Reserved};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use secrecy::ExposeSecret;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Bytes of a request's body: the Messages API's own cap.
const MAX_REQUEST_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of an answer, streamed or not: 128 000 tokens of output as events are about 20 MiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of a stream for each token of output that was reserved, and besides them: an event for one token has about
/// 250 bytes, and the last event of the Responses API repeats the whole answer.
const STREAM_BYTES_PER_TOKEN: i64 = 1024;
const STREAM_BYTES_BESIDES: i64 = 4 * 1024 * 1024;
/// Bytes of an error's body that are passed on.
const MAX_ERROR_BYTES: usize = 256 * 1024;
/// Bytes of an answer that costs nothing.
const MAX_FREE_BYTES: usize = 1024 * 1024;
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
/// Pauses before a request that was not accepted is sent again.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(1000)];
/// The longest `retry-after` that is waited for; with a longer one the next model is asked, or the agent hears of it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(15);

/// What goes from the agent to the model endpoint besides `anthropic-beta`; everything else stays here.
const REQUEST_HEADERS: &[&str] = &["content-type", "anthropic-version", "user-agent"];
/// What comes back.
const ANSWER_HEADERS: &[&str] =
    &["content-type", "retry-after", "request-id", "x-request-id", "x-should-retry"];

pub(super) type AnyError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type Answer = Response<BoxBody<Bytes, AnyError>>;

/// Where model requests go.
#[derive(Debug)]
pub struct Upstream {
    /// `Err`: why there is none.
    client: Result<reqwest::Client, String>,
    models: Models,
    store: Store,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
    /// The keys: an endpoint that repeats what it was sent does not tell them to an agent.
    keys: SecretScan,
    pub(super) notes: Notes,
}

/// What kind of refusal it is; each API has its own words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Invalid,
    Denied,
    Budget,
    TooLarge,
    Timeout,
    Failed,
}

/// A refusal that is answered in the error shape of the model API, so that every CLI can show it.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    kind: Kind,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, kind: Kind, message: impl Into<String>) -> Self {
        Self { status, kind, message: format!("zeblit: {}", message.into()) }
    }

    /// 400: the CLIs show it and do not try again.
    fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::Invalid, message)
    }

    fn body(&self, api: ModelApi) -> serde_json::Value {
        let (anthropic, openai, gemini) = match self.kind {
            Kind::Invalid => ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
            Kind::Denied => ("permission_error", "permission_error", "PERMISSION_DENIED"),
            Kind::Budget => ("billing_error", "insufficient_quota", "FAILED_PRECONDITION"),
            Kind::TooLarge => ("request_too_large", "invalid_request_error", "INVALID_ARGUMENT"),
            Kind::Timeout => ("timeout_error", "timeout", "DEADLINE_EXCEEDED"),
            Kind::Failed => ("api_error", "server_error", "UNAVAILABLE"),
        };
        let message = &self.message;
        match api {
            ModelApi::Anthropic => {
                serde_json::json!({"type": "error", "error": {"type": anthropic, "message": message}})
            }
            ModelApi::OpenAi => serde_json::json!({
                "error": {"message": message, "type": openai, "param": null, "code": openai}
            }),
            ModelApi::Gemini => serde_json::json!({
                "error": {"code": self.status.as_u16(), "message": message, "status": gemini}
            }),
        }
    }

    fn answer(&self, api: ModelApi) -> Answer {
        let mut answer = whole(self.status, Bytes::from(self.body(api).to_string()));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }

    /// As the last event of a stream that has begun.
    fn event(&self, call: Call) -> Bytes {
        let text = match call {
            Call::Messages => format!("event: error\ndata: {}\n\n", self.body(ModelApi::Anthropic)),
            Call::Responses => {
                let error = serde_json::json!({"type": "error", "code": "server_error", "message": self.message, "param": null});
                format!("event: error\ndata: {error}\n\n")
            }
            Call::Generate { .. } => format!("data: {}\n\n", self.body(ModelApi::Gemini)),
            Call::Chat | Call::CountTokens | Call::Models => {
                format!("data: {}\n\n", self.body(ModelApi::OpenAi))
            }
        };
        Bytes::from(text)
    }
}

fn whole(status: StatusCode, body: Bytes) -> Answer {
    let body = Full::new(body).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}

/// A request that may be sent, as far as the agent asked for it.
struct Ask {
    route: Route,
    /// With its `?`.
    query: String,
    headers: HeaderMap,
    body: Json,
    model: String,
    stream: bool,
    /// The most tokens of output; zero for what costs nothing.
    output: i64,
    /// It writes to a cache that lives for an hour.
    hour_cache: bool,
}

impl Ask {
    /// The same request to another model.
    fn switch_model(&mut self, model: &str) {
        if let Some(old) = &self.route.model {
            self.route.tail = self.route.tail.replacen(&format!("/{old}:"), &format!("/{model}:"), 1);
            self.route.model = Some(model.to_owned());
        } else {
            self.body.set("model", Json::from(model));
        }
        self.model = model.to_owned();
    }
}

/// One paid request on its way.
struct Exchange {
    /// What was reserved is charged when the real cost never becomes known.
    booking: Booking,
    rates: super::price::Rates,
    call: Call,
    stream: bool,
    output: i64,
}

/// What one model answered.
enum Sent {
    Answered(reqwest::Response),
    /// Nothing was accepted, nothing is charged; another model may be asked.
    Refused(Result<Answer, Refusal>),
    /// The end: either it may have been accepted, or another model would refuse it as well.
    Failed {
        charged: bool,
        answer: Result<Answer, Refusal>,
    },
}

impl Upstream {
    pub(super) fn new(settings: Settings, store: Store, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Self {
        let keys: Vec<&[u8]> = settings
            .providers
            .iter()
            .filter_map(|provider| provider.key.as_ref())
            .map(|key| key.expose_secret().as_bytes())
            .collect();
        Self {
            client: client(),
            keys: SecretScan::new(&keys),
            models: Models::new(settings.providers, PriceTable::new(settings.prices), settings.fallback),
            store,
            clock,
            ids,
            notes: Notes::default(),
        }
    }

    /// Whether requests can be sent at all.
    pub(super) fn check(&self) -> Result<(), BrokerError> {
        if let Err(detail) = &self.client {
            return Err(BrokerError::Client(detail.clone()));
        }
        for provider in self.models.providers() {
            if let Some(detail) = provider.problem() {
                let (name, url) = (provider.name.clone(), provider.base_url.clone());
                return Err(BrokerError::Endpoint { name, url, detail });
            }
        }
        Ok(())
    }

    /// One request of the agent.
    pub(super) async fn answer(
        self: &Arc<Self>,
        allowance: &Allowance,
        request: Request<Incoming>,
    ) -> Answer {
        let what = format!("{} {}", request.method(), request.uri().path());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        // The CLI looks whether somebody is there.
        if path == "/" && (method == Method::HEAD || method == Method::GET) {
            return whole(StatusCode::OK, Bytes::new());
        }
        let anthropic = request.headers().contains_key("anthropic-version");
        let (api, answer) = match route::route(&method, &path, anthropic) {
            Some(route) => (route.api, self.routed(allowance, route, request).await),
            None => {
                let refusal = Refusal::new(StatusCode::FORBIDDEN, Kind::Denied, route::REACHABLE);
                (ModelApi::Anthropic, Err(refusal))
            }
        };
        match answer {
            Ok(answer) => answer,
            Err(refusal) => {
                self.notes.refused(&allowance.run, &what);
                tracing::info!(run = %allowance.run, attempt = allowance.attempt, status = refusal.status.as_u16(),
                    reason = %refusal.message, "broker: refused");
                refusal.answer(api)
            }
        }
    }

    async fn routed(
        self: &Arc<Self>,
        allowance: &Allowance,
        route: Route,
        request: Request<Incoming>,
    ) -> Result<Answer, Refusal> {
        let query = request.uri().query().unwrap_or_default();
        if query.len() > MAX_QUERY_BYTES {
            return Err(Refusal::invalid(format!("the query is longer than {MAX_QUERY_BYTES} bytes")));
        }
        let query = route::query(&route, query)
            .map_err(|name| Refusal::invalid(format!("the query parameter `{name}` is not known")))?;
        if route.call == Call::Models {
            let headers = passed_on(&request.into_parts().0.headers)?;
            let provider = self.models.lister(route.api).ok_or_else(|| {
                Refusal::invalid(format!("no provider of the {} API is configured", route.api.name()))
            })?;
            let outgoing = self.outgoing(provider, Method::GET, &route.tail, &query, headers)?;
            return free(outgoing, &self.keys).await;
        }
        let (head, body) = request.into_parts();
        let headers = passed_on(&head.headers)?;
        let mut ask = ask(route, query, headers, &read_body(body).await?)?;
        let served = self.models.serve(ask.route.api, &ask.model).map_err(Refusal::invalid)?;
        served.provider.credentials().map_err(Refusal::invalid)?;
        if !ask.route.call.is_paid() {
            let outgoing =
                self.outgoing(served.provider, Method::POST, &ask.route.tail, &ask.query, ask.headers)?;
            return free(outgoing.body(ask.body.to_bytes()), &self.keys).await;
        }
        limit(&mut ask, served.provider, served.rates.usual_output)?;
        let (sender, receiver) = oneshot::channel();
        let (upstream, allowance) = (Arc::clone(self), allowance.clone());
        // A task of its own from the reservation on: dropping this future must not lose the settlement.
        tokio::spawn(async move { upstream.paid(ask, &allowance, sender).await });
        receiver.await.unwrap_or_else(|_| {
            Err(Refusal::new(StatusCode::BAD_GATEWAY, Kind::Failed, "the request was given up"))
        })
    }

    fn outgoing(
        &self,
        provider: &Provider,
        method: Method,
        tail: &str,
        query: &str,
        headers: HeaderMap,
    ) -> Result<reqwest::RequestBuilder, Refusal> {
        let client = self.client.as_ref().map_err(Refusal::invalid)?;
        let request = client.request(method, format!("{}{tail}{query}", provider.base_url)).headers(headers);
        Ok(match provider.credentials().map_err(Refusal::invalid)? {
            Some((name, value)) => request.header(name, value),
            None => request,
        })
    }

    /// Reserves, sends, passes on and settles; asks the next model when one did not accept the request.
    async fn paid(
        self: Arc<Self>,
        mut ask: Ask,
        allowance: &Allowance,
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    ) {
        let mut models = vec![ask.model.clone()];
        models.extend(self.models.instead(ask.route.api, &ask.model));
        // Nobody waits any more exactly when the agent hung up; then there is nobody to tell.
        let mut last: Option<Result<Answer, Refusal>> = None;
        for model in models {
            if last.is_some() {
                tracing::info!(run = %allowance.run, %model, instead_of = %ask.model, "broker: asking another model");
                ask.switch_model(&model);
            }
            let body = Bytes::from(ask.body.to_bytes());
            let exchange = match self.reserve(&ask, allowance, &body).await {
                Ok(exchange) => exchange,
                // What the first model said is the better reason, unless it is the first.
                Err(refusal) => {
                    last = last.or(Some(Err(refusal)));
                    break;
                }
            };
            match self.send(&ask, &exchange, body, &answer).await {
                Sent::Answered(response) => {
                    self.notes.worked(&allowance.run);
                    self.deliver(exchange, response, answer).await;
                    return;
                }
                Sent::Refused(told) => {
                    self.settle(&exchange, Usage::default(), 0).await;
                    last = Some(told);
                    if answer.is_closed() {
                        return;
                    }
                }
                Sent::Failed { charged, answer: told } => {
                    let micros = if charged { exchange.booking.micros } else { 0 };
                    self.settle(&exchange, Usage::default(), micros).await;
                    last = Some(told);
                    break;
                }
            }
        }
        if let Some(told) = last {
            let _ = answer.send(told);
        }
    }

    /// Writes down what the request may cost at most, against all budgets at once.
    async fn reserve(&self, ask: &Ask, allowance: &Allowance, body: &Bytes) -> Result<Exchange, Refusal> {
        let served = self.models.serve(ask.route.api, &ask.model).map_err(Refusal::invalid)?;
        let input =
            i64::try_from(body.len()).unwrap_or(i64::MAX).div_euclid(BYTES_PER_TOKEN).saturating_add(1);
        let reservation = Reservation {
            run: allowance.run.clone(),
            request_id: self.ids.next(IdKind::Request),
            attempt: allowance.attempt,
            model: ask.model.clone(),
            micros: served.rates.worst(input, ask.output, ask.hour_cache),
        };
        let mut budgets = allowance.wider.clone();
        budgets.push(Budget::of_run(&allowance.run, allowance.budget_micros));
        match ledger::reserve(&self.store, &reservation, &budgets, self.clock.now()).await {
            Ok(Reserved::Ok(booking)) => Ok(Exchange {
                booking,
                rates: served.rates,
                call: ask.route.call,
                stream: ask.stream,
                output: ask.output,
            }),
            Ok(Reserved::OverBudget(standing)) => {
                let message = wording::budget_used_up(&standing, reservation.micros);
                self.notes.over_budget(&allowance.run, standing);
                // Claude Code shows 402 and does not try again (429 and 5xx it would).
                Err(Refusal::new(StatusCode::PAYMENT_REQUIRED, Kind::Budget, message))
            }
            Err(error) => {
                tracing::error!(run = %reservation.run, %error, "broker: cannot reserve");
                Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    Kind::Failed,
                    "the cost of the request cannot be written down just now",
                ))
            }
        }
    }

    /// Sends to one model, again only where it was certainly not accepted.
    async fn send(
        &self,
        ask: &Ask,
        exchange: &Exchange,
        body: Bytes,
        answer: &oneshot::Sender<Result<Answer, Refusal>>,
    ) -> Sent {
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            let outgoing =
                self.models.serve(ask.route.api, &ask.model).map_err(Refusal::invalid).and_then(|served| {
                    let headers = ask.headers.clone();
                    self.outgoing(served.provider, Method::POST, &ask.route.tail, &ask.query, headers)
                });
            let outgoing = match outgoing {
                Ok(outgoing) => outgoing.body(body.clone()),
                Err(refusal) => return Sent::Failed { charged: false, answer: Err(refusal) },
            };
            let (told, trouble, again, wait) = match outgoing.send().await {
                Ok(response) if response.status().is_success() => return Sent::Answered(response),
                Ok(response) => {
                    let status = response.status();
                    let wait = retry_after(response.headers());
                    let until = limit_ends(response.headers(), self.clock.now());
                    let headers = answer_headers(response.headers());
                    let body =
                        read_answer(response, MAX_ERROR_BYTES).await.map(|body| without(&self.keys, body));
                    let trouble = classify(status, body.as_ref().map_or(&[], |body| body.as_ref()));
                    tracing::warn!(run = %exchange.booking.run, status = status.as_u16(), trouble = trouble.name(),
                        model = %ask.model, "broker: the model endpoint refused");
                    self.notes.trouble(&exchange.booking.run, trouble, until);
                    (passed_error(status, headers, body), trouble, trouble == Trouble::Overload, wait)
                }
                Err(error) => {
                    tracing::warn!(run = %exchange.booking.run, error = %plain_error(&error), model = %ask.model,
                        "broker: the model endpoint did not answer");
                    self.notes.trouble(&exchange.booking.run, Trouble::Timeout, None);
                    // Not connected: nothing was asked. Anything later: it may have been answered, and charged.
                    if !error.is_connect() {
                        return Sent::Failed { charged: true, answer: Err(unreachable_endpoint(&error)) };
                    }
                    (Err(unreachable_endpoint(&error)), Trouble::Timeout, true, None)
                }
            };
            // Not the model's fault, or nobody knows whether it was accepted.
            if trouble == Trouble::Other || (trouble == Trouble::Timeout && !again) {
                return Sent::Failed { charged: false, answer: told };
            }
            let pause = pauses.next().filter(|_| again);
            match pause.map(|pause| wait.unwrap_or(pause)).filter(|pause| *pause <= MAX_RETRY_AFTER) {
                Some(pause) if !answer.is_closed() => tokio::time::sleep(pause).await,
                _ => return Sent::Refused(told),
            }
        }
    }

    /// Passes a good answer on.
    async fn deliver(
        &self,
        exchange: Exchange,
        response: reqwest::Response,
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    ) {
        let (status, headers) = (response.status(), answer_headers(response.headers()));
        if exchange.stream {
            self.stream(exchange, response, headers, answer).await;
            return;
        }
        let body = read_answer(response, MAX_ANSWER_BYTES).await.map(|body| without(&self.keys, body));
        let spent = body.as_ref().ok().and_then(|body| usage::of_answer(exchange.call, body));
        self.settle_spent(&exchange, spent).await;
        let _ = answer.send(body.map(|body| with_headers(status, headers, body)));
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

        let cap = stream_cap(exchange.output);
        let mut meter = StreamMeter::new(exchange.call);
        let mut bytes = 0usize;
        let mut given_up = None;
        let mut too_long = None;
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
            if bytes > cap {
                let reason = format!("the answer is longer than {cap} bytes, what its reservation allows");
                too_long = Some(Refusal::new(StatusCode::BAD_GATEWAY, Kind::Failed, reason.as_str()));
                given_up = Some(reason);
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
        self.settle_spent(&exchange, meter.total(given_up.is_none())).await;
        if let Some(reason) = given_up {
            tracing::warn!(run = %exchange.booking.run, request = %exchange.booking.request_id, %reason, "broker: stream cut");
            if let Some(chunks) = listener {
                if let Some(refusal) = too_long {
                    let _ = chunks.send(Ok(Frame::data(refusal.event(exchange.call)))).await;
                }
                let _ = chunks.send(Err(reason.into())).await;
            }
        }
    }

    /// The whole reservation, when the answer did not say what it used.
    async fn settle_spent(&self, exchange: &Exchange, spent: Option<Spent>) {
        let (usage, micros) = match spent {
            Some(spent) => (spent.usage, exchange.rates.cost(&spent.usage, spent.hour)),
            None => (Usage::default(), exchange.booking.micros),
        };
        self.settle(exchange, usage, micros).await;
    }

    /// Writes what a request cost. A reservation that cannot be settled stays, and counts in full.
    async fn settle(&self, exchange: &Exchange, usage: Usage, micros: i64) {
        for left in (0..SETTLE_TRIES).rev() {
            match ledger::settle(&self.store, &exchange.booking, &usage, micros).await {
                Ok(()) => {
                    tracing::debug!(run = %exchange.booking.run, request = %exchange.booking.request_id, micros,
                        reserved = exchange.booking.micros, "broker: settled");
                    return;
                }
                Err(error) if left == 0 => {
                    tracing::error!(run = %exchange.booking.run, request = %exchange.booking.request_id, %error,
                        "broker: cannot settle; the reservation stays");
                }
                Err(_) => tokio::time::sleep(SETTLE_PAUSE).await,
            }
        }
    }
}

/// Reads and checks a request: everything that is not on the list is refused.
fn ask(route: Route, query: String, headers: HeaderMap, bytes: &Bytes) -> Result<Ask, Refusal> {
    let body = Json::parse(bytes)
        .map_err(|error| Refusal::invalid(format!("the request is not JSON that can be priced: {error}")))?;
    filter::check(route.api, route.call, &body).map_err(|refused| Refusal::invalid(refused.message()))?;
    let model = match &route.model {
        Some(model) => model.clone(),
        None => body
            .get("model")
            .and_then(Json::text)
            .ok_or_else(|| Refusal::invalid("the request needs a `model`"))?
            .to_owned(),
    };
    let stream = match route.call {
        Call::Generate { stream } => stream,
        _ => body.get("stream").and_then(Json::flag).unwrap_or(false),
    };
    // A cache that lives for an hour costs twice the input.
    let hour_cache = bytes.windows(4).any(|window| window == b"\"1h\"");
    Ok(Ask { route, query, headers, body, model, stream, output: 0, hour_cache })
}

/// Sees to it that a request says how much it may answer, that the answer says what it used, and that nothing of it is
/// stored at the provider.
fn limit(ask: &mut Ask, provider: &Provider, usual_output: i64) -> Result<(), Refusal> {
    let given = |body: &Json, name: &str| match body.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => match value.integer() {
            Some(tokens) if (0..=MAX_OUTPUT_TOKENS).contains(&tokens) => Ok(Some(tokens)),
            _ => Err(Refusal::invalid(format!("{name} must be 0 to {MAX_OUTPUT_TOKENS}"))),
        },
    };
    let body = &mut ask.body;
    ask.output = match ask.route.call {
        Call::Messages => given(body, "max_tokens")?
            .ok_or_else(|| Refusal::invalid(format!("max_tokens must be 0 to {MAX_OUTPUT_TOKENS}")))?,
        Call::Responses => {
            body.set("store", Json::Bool(false));
            match given(body, "max_output_tokens")? {
                Some(tokens) => tokens,
                None => {
                    body.set("max_output_tokens", Json::from(usual_output));
                    usual_output
                }
            }
        }
        Call::Chat => {
            if body.get("store").is_some() {
                body.set("store", Json::Bool(false));
            }
            if ask.stream {
                match body.get_mut("stream_options") {
                    Some(options @ Json::Object(_)) => options.set("include_usage", Json::Bool(true)),
                    _ => body.set(
                        "stream_options",
                        Json::Object(vec![("include_usage".to_owned(), Json::Bool(true))]),
                    ),
                }
            }
            // OpenAI's reasoning models know the new name only, many compatible servers the old one only.
            let name = if provider.needs_key { "max_completion_tokens" } else { "max_tokens" };
            match (given(body, "max_completion_tokens")?, given(body, "max_tokens")?) {
                (Some(a), Some(b)) => a.max(b),
                (Some(tokens), None) | (None, Some(tokens)) => tokens,
                (None, None) => {
                    body.set(name, Json::from(usual_output));
                    usual_output
                }
            }
        }
        Call::Generate { .. } => {
            if body.get("generationConfig").is_none_or(Json::is_null) {
                body.set("generationConfig", Json::Object(Vec::new()));
            }
            let config = body.get_mut("generationConfig");
            let config = config.ok_or_else(|| Refusal::invalid("the request is no object"))?;
            match given(config, "maxOutputTokens")? {
                Some(tokens) => tokens,
                None => {
                    config.set("maxOutputTokens", Json::from(usual_output));
                    usual_output
                }
            }
        }
        Call::CountTokens | Call::Models => 0,
    };
    Ok(())
}

/// Requests that cost nothing: passed through whole.
async fn free(outgoing: reqwest::RequestBuilder, keys: &SecretScan) -> Result<Answer, Refusal> {
    let response = outgoing.send().await.map_err(|error| unreachable_endpoint(&error))?;
    let (status, headers) = (response.status(), answer_headers(response.headers()));
    let body = read_answer(response, MAX_FREE_BYTES).await.map(|body| without(keys, body));
    passed_error(status, headers, body)
}

/// An answer without our keys, in whatever encoding.
fn without(keys: &SecretScan, body: Bytes) -> Bytes {
    match std::str::from_utf8(&body) {
        Ok(text) if keys.found_in(text.as_bytes()) => {
            tracing::warn!("broker: the model endpoint repeated the server's key");
            Bytes::from(keys.mask_own(text))
        }
        _ => body,
    }
}

fn with_headers(status: StatusCode, headers: HeaderMap, body: Bytes) -> Answer {
    let mut answer = whole(status, body);
    *answer.headers_mut() = headers;
    answer
}

/// An answer as it came, except where it is about the server and not about the request.
fn passed_error(
    status: StatusCode,
    headers: HeaderMap,
    body: Result<Bytes, Refusal>,
) -> Result<Answer, Refusal> {
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        // 403, where the endpoint said 401: Claude Code would try 401 for minutes.
        let message = "the model endpoint refused the server's key";
        return Err(Refusal::new(StatusCode::FORBIDDEN, Kind::Denied, message));
    }
    if status.is_redirection() || status.is_informational() {
        let message = "the model endpoint answered with a redirect";
        return Err(Refusal::new(StatusCode::BAD_GATEWAY, Kind::Failed, message));
    }
    body.map(|body| with_headers(status, headers, body))
}

/// Bytes of a stream: far above what the tokens that were reserved can need.
fn stream_cap(output: i64) -> usize {
    let bytes = output.saturating_mul(STREAM_BYTES_PER_TOKEN).saturating_add(STREAM_BYTES_BESIDES);
    usize::try_from(bytes).unwrap_or(MAX_ANSWER_BYTES).min(MAX_ANSWER_BYTES)
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

async fn read_body(body: Incoming) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(BODY, Limited::new(body, MAX_REQUEST_BYTES).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Kind::TooLarge,
            format!("the request is larger than {MAX_REQUEST_BYTES} bytes"),
        )),
        Ok(Err(_)) => Err(Refusal::invalid("the request broke off")),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            Kind::Timeout,
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
                    Kind::Failed,
                    format!("the answer of the model endpoint is larger than {cap} bytes"),
                ));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(error) => return Err(unreachable_endpoint(&error)),
        }
    }
}

/// The agent's headers that the model endpoint may see, each once.
fn passed_on(headers: &HeaderMap) -> Result<HeaderMap, Refusal> {
    let mut passed = HeaderMap::new();
    for name in REQUEST_HEADERS {
        if let Some(value) = headers.get(*name) {
            passed.insert(HeaderName::from_static(name), value.clone());
        }
    }
    let betas = headers.get_all("anthropic-beta").iter().map(|value| value.to_str().unwrap_or("?"));
    let betas = filter::betas(betas).map_err(|beta| {
        Refusal::invalid(format!("the anthropic-beta flag `{beta}` is not on the list of what a run may use"))
    })?;
    if !betas.is_empty()
        && let Ok(value) = HeaderValue::from_str(&betas)
    {
        passed.insert(HeaderName::from_static("anthropic-beta"), value);
    }
    Ok(passed)
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

/// Seconds only; a date is as good as nothing here.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u32 = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(u64::from(seconds)))
}

/// When a limit is over: `retry-after`, or the reset of a limit over hours or days (Anthropic: seconds since 1970).
fn limit_ends(headers: &HeaderMap, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let reset = headers
        .get("anthropic-ratelimit-unified-reset")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let after = retry_after(headers).and_then(|wait| now.checked_add_signed(TimeDelta::from_std(wait).ok()?));
    reset.max(after).filter(|until| *until > now)
}

fn unreachable_endpoint(error: &reqwest::Error) -> Refusal {
    Refusal::new(
        StatusCode::BAD_GATEWAY,
        Kind::Failed,
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

#[cfg(test)]
mod tests {
    use super::super::Broker;
    use super::*;
    use crate::clock::{RandomIds, SystemClock};
    use crate::domain::ids::RunId;
    use crate::store::ledger::Totals;
    use axum::body::Body;
    use axum::extract::State;
    use secrecy::SecretString;
    use std::collections::{BTreeMap, VecDeque};
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
            let provider = |api: ModelApi, path: &str| {
                let key = key.map(|key| SecretString::from(key.to_owned()));
                Provider::general(api, &format!("{}{path}", base_url.trim_end_matches('/')), key)
            };
            let settings = Settings {
                providers: vec![
                    provider(ModelApi::Anthropic, "/"),
                    provider(ModelApi::OpenAi, "/v1"),
                    provider(ModelApi::Gemini, ""),
                ],
                fallback: BTreeMap::from([(
                    "claude-opus-4-5".to_owned(),
                    vec!["claude-sonnet-4-5".to_owned()],
                )]),
                ..Settings::default()
            };
            let broker = Broker::new(settings, store.clone(), Arc::new(SystemClock), Arc::new(RandomIds));
            let run = RunId::new("run_1");
            let allowance = Allowance { run: run.clone(), attempt: 1, budget_micros, wider: Vec::new() };
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
    async fn an_endpoint_that_repeats_the_key_does_not_tell_it_to_the_agent() {
        let key = "sk-real-0123456789abcdef";
        let world = World::with_key(1_000_000, Some(key)).await;
        for (status, shown) in [(400, key.to_owned()), (404, hex::encode(key)), (200, key.to_owned())] {
            let said = format!("{{\"error\":{{\"type\":\"x\",\"message\":\"you sent {shown}\"}}}}");
            world.plays(Play::Json(status, said));
            let (got, answer) = world.ask(&messages(REQUEST)).await;
            assert_eq!(got, status, "{answer}");
            assert!(answer.contains("you sent [secret]") && !answer.contains(&shown), "{answer}");
        }
    }

    #[tokio::test]
    async fn the_key_is_added_and_everything_of_the_clients_is_stripped() {
        let world = World::new(PLENTY).await;
        let headers = "x-api-key: placeholder\r\nauthorization: Bearer y\r\ncookie: a=b\r\nproxy-authorization: z\r\nx-forwarded-for: 1.2.3.4\r\nanthropic-version: 2023-06-01\r\nanthropic-beta: context-1m-2025-08-07, effort-2025-11-24\r\nanthropic-beta: claude-code-20250219\r\nuser-agent: claude-cli/2\r\nanthropic-dangerous-direct-browser-access: true\r\n";
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
        assert_eq!(headers["anthropic-beta"], "effort-2025-11-24,claude-code-20250219");
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
        for (status, told, times) in [
            (429, 429, 3),
            (529, 529, 3),
            (500, 500, 1),
            (400, 400, 1),
            (401, 403, 1),
            (403, 403, 1),
            (302, 502, 1),
        ] {
            for _ in 0..times {
                world.plays(Play::Json(
                    status,
                    r#"{"type":"error","error":{"type":"x","message":"their words"}}"#.into(),
                ));
            }
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
        for allowed in ["/v1/models", "/anthropic/v1/models?limit=1000", "/v1/models/claude-sonnet-4-5"] {
            assert_eq!(world.ask(&get(allowed)).await.0, 200, "{allowed}");
        }
        assert_eq!(
            world
                .ask(&post(
                    "/v1/messages/count_tokens?beta=true",
                    "",
                    r#"{"model":"claude-sonnet-4-5","messages":[]}"#
                ))
                .await
                .0,
            200
        );
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
            ("[]", "must be a JSON object"),
            ("{", "be priced"),
            (r#"{"model":"claude-sonnet-4-5"}"#, "max_tokens"),
            (r#"{"model":"claude-sonnet-4-5","max_tokens":-1}"#, "max_tokens"),
            (r#"{"model":"claude-sonnet-4-5","max_tokens":9000000000000000000}"#, "max_tokens"),
            (r#"{"model":"claude-sonnet-4-5","max_tokens":1,"max_tokens":9}"#, "duplicate"),
            (r#"{"model":"claude-sonnet-4-5","model":"claude-opus-4-1","max_tokens":9}"#, "duplicate"),
            (
                r#"{"model":"gpt-99","max_tokens":1}"#,
                "the price of model `gpt-99` is not known; add [models.prices",
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
        let allowance =
            Allowance { run: world.run.clone(), attempt: 2, budget_micros: PLENTY, wider: Vec::new() };
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
                Allowance { run: world.run.clone(), attempt: 1, budget_micros: 1, wider: Vec::new() },
            )
            .await;
        assert!(missing.unwrap_err().to_string().contains("/nonexistent/broker.sock"));
    }

    /// The request that arrived at the endpoint: its line, headers and body.
    fn arrived(world: &World, at: usize) -> (String, HeaderMap, serde_json::Value) {
        let seen = world.endpoint.seen.lock().unwrap();
        let (what, headers, body) = &seen[at];
        (what.clone(), headers.clone(), serde_json::from_slice(body).unwrap())
    }

    fn streamed(events: &str) -> Play {
        Play::Stream { chunks: vec![Some(events.to_owned())], broken: false }
    }

    #[tokio::test]
    async fn openai_answers_are_limited_never_stored_and_settled_on_their_usage() {
        let world = World::new(PLENTY).await;
        world.plays(streamed("data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":100,\"input_tokens_details\":{\"cached_tokens\":60},\"output_tokens\":40}}}\n\n"));
        let body = r#"{"model":"gpt-5","input":"x","stream":true,"store":true}"#;
        let (status, answer) =
            world.ask(&post("/openai/v1/responses", "authorization: Bearer theirs\r\n", body)).await;
        assert_eq!(status, 200, "{answer}");
        // 40 × 1.25 + 60 × 0.125 + 40 × 10 millionths.
        let usage = Usage { input: 40, output: 40, cache_read: 60, cache_write: 0 };
        assert_eq!(world.totals().await, Totals { micros: 458, usage, requests: 1 });
        let (what, headers, sent) = arrived(&world, 0);
        assert_eq!(
            (what.as_str(), &headers["authorization"]),
            ("POST /v1/responses", &HeaderValue::from_static("Bearer sk-real"))
        );
        assert_eq!(sent["store"], false);
        assert_eq!(sent["max_output_tokens"], 32_000);

        world.plays(streamed("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n"));
        let body =
            r#"{"model":"gpt-5","messages":[],"stream":true,"stream_options":{"include_usage":false}}"#;
        assert_eq!(world.ask(&post("/v1/chat/completions", "", body)).await.0, 200);
        let (what, _, sent) = arrived(&world, 1);
        assert_eq!(what, "POST /v1/chat/completions");
        assert_eq!(sent["stream_options"]["include_usage"], true);
        assert_eq!(sent["max_completion_tokens"], 32_000);
        assert_eq!(world.totals().await.micros, 458 + 63);
    }

    #[tokio::test]
    async fn gemini_answers_are_limited_and_settled_on_their_usage() {
        let world = World::new(PLENTY).await;
        world.plays(streamed("data: {\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":100,\"candidatesTokenCount\":20,\"thoughtsTokenCount\":10}}\r\n\r\n"));
        let path = "/gemini/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse&key=theirs";
        let body = r#"{"contents":[{"role":"user","parts":[{"text":"x"}]}]}"#;
        let (status, answer) = world.ask(&post(path, "x-goog-api-key: theirs\r\n", body)).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(world.totals().await.micros, 125 + 300);
        let (what, headers, sent) = arrived(&world, 0);
        assert_eq!(what, "POST /v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse");
        assert_eq!(headers["x-goog-api-key"], "sk-real");
        assert_eq!(sent["generationConfig"]["maxOutputTokens"], 32_000);
    }

    #[tokio::test]
    async fn a_refusal_has_the_error_shape_of_its_api() {
        let world = World::new(PLENTY).await;
        for (path, body, shape) in [
            (
                "/v1/messages",
                r#"{"model":"m","max_tokens":1,"mcp_servers":[]}"#,
                r#"{"type":"error","error":{"#,
            ),
            (
                "/v1/responses",
                r#"{"model":"gpt-5","input":"x","background":true}"#,
                r#"{"error":{"code":"invalid_request_error","#,
            ),
            (
                "/v1beta/models/gemini-2.5-pro:generateContent",
                r#"{"cachedContent":"x"}"#,
                r#"{"error":{"code":400,"#,
            ),
        ] {
            let (status, answer) = world.ask(&post(path, "", body)).await;
            assert_eq!(status, 400, "{answer}");
            let body: serde_json::Value =
                serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
            let wanted: serde_json::Value =
                serde_json::from_str(&format!("{}\"message\":0}}}}", shape)).unwrap();
            let keys = |value: &serde_json::Value| -> Vec<String> {
                value.as_object().unwrap().keys().cloned().collect()
            };
            assert_eq!(keys(&body), keys(&wanted), "{answer}");
            assert!(body["error"]["message"].as_str().unwrap().starts_with("zeblit: `"), "{answer}");
        }
        assert_eq!(world.seen(), 0);
    }

    #[tokio::test]
    async fn a_busy_model_is_asked_again_and_then_another_one() {
        let world = World::new(PLENTY).await;
        let busy = r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#;
        for _ in 0..3 {
            world.plays(Play::Json(529, busy.into()));
        }
        world.plays(Play::Json(200, r#"{"usage":{"input_tokens":100,"output_tokens":30}}"#.into()));
        let request = REQUEST.replace("claude-sonnet-4-5", "claude-opus-4-5");
        assert_eq!(world.ask(&messages(&request)).await.0, 200);
        let models: Vec<String> =
            (0..4).map(|at| arrived(&world, at).2["model"].as_str().unwrap().to_owned()).collect();
        assert_eq!(models, ["claude-opus-4-5", "claude-opus-4-5", "claude-opus-4-5", "claude-sonnet-4-5"]);
        // At the price of the model that answered.
        assert_eq!(world.totals().await.micros, 300 + 450);
        assert_eq!(world.broker.trouble(&world.run), None);

        let quota = r#"{"error":{"message":"Your credit balance is too low"}}"#;
        for _ in 0..2 {
            world.plays(Play::Json(400, quota.into()));
        }
        let (status, answer) = world.ask(&messages(&request)).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains("credit balance"), "{answer}");
        assert_eq!(world.seen(), 6, "an empty account is not asked again, another model once");
        assert_eq!(world.broker.trouble(&world.run), Some((Trouble::Quota, None)));
        assert_eq!(world.totals().await.micros, 300 + 450);
    }
}
