//! Purpose: `POST /webhooks/{source}`: verify the signature over the raw bytes, store, then answer. Nothing is parsed here;
//! what cannot be for us whatever it says is stored as ignored at once.
//!
//! - A 2xx is only ever given for a delivery that is on stable storage.
//! - Nothing that was not verified is stored.

use super::Http;
use super::error::HttpError;
use crate::app::App;
use crate::clock::IdKind;
use crate::config::Config;
use crate::domain::event::Source;
use crate::domain::ids::InboxId;
use crate::intake;
use crate::intake::signature::{self, VerifiedBody};
use crate::queue::Topic;
use crate::store::inbox::{self, Inserted, NewDelivery};
use crate::telemetry;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit of the in-flight budget stands for.
const PERMIT_BYTES: usize = 1024;
/// Bytes reserved for a body before any of it came; a declared length is only believed up to here.
const FIRST_BUFFER_BYTES: usize = 64 * 1024;
/// Bodies above this many bytes are hashed on a thread of their own: HMAC of 25 MiB takes tens of milliseconds.
const HASH_INLINE_BYTES: usize = 256 * 1024;
/// Seconds that storing may take: a sender that waits longer hangs up (GitHub after 10).
const STORE_SECONDS: u64 = 8;
/// Longest value of a header that is kept, in bytes.
const MAX_HEADER_BYTES: usize = 1024;
/// Headers that are kept with a delivery; signatures and credentials never are.
const KEPT_HEADERS: &[&str] = &[
    "content-type",
    "user-agent",
    "x-github-event",
    "x-github-delivery",
    "x-github-hook-id",
    "x-github-hook-installation-target-id",
    "x-github-hook-installation-target-type",
    "x-atlassian-webhook-identifier",
    "x-atlassian-webhook-retry",
    "x-atlassian-webhook-flow",
    "request-id",
    "sentry-hook-resource",
    "sentry-hook-timestamp",
];

/// The bytes of bodies that all requests together may hold.
pub fn budget(config: &Config) -> Arc<Semaphore> {
    let permits = (config.server.inflight_bytes / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(permits))
}

/// How a delivery was answered: the `result` label of the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Duplicate,
    Disabled,
    TooLarge,
    Timeout,
    BrokenBody,
    Unauthorized,
    MissingId,
    Overloaded,
    NotStored,
}

impl Verdict {
    fn label(self) -> &'static str {
        match self {
            Verdict::Accepted => "accepted",
            Verdict::Duplicate => "duplicate",
            Verdict::Disabled => "disabled",
            Verdict::TooLarge => "too_large",
            Verdict::Timeout => "timeout",
            Verdict::BrokenBody => "broken_body",
            Verdict::Unauthorized => "unauthorized",
            Verdict::MissingId => "missing_id",
            Verdict::Overloaded => "overloaded",
            Verdict::NotStored => "not_stored",
        }
    }
}

struct Refusal(Verdict, HttpError);

/// Takes one delivery.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn receive(State(http): State<Http>, Path(name): Path<String>, request: Request) -> Response {
    let Some(source) = Source::parse(&name) else {
        let known: Vec<&str> = Source::ALL.into_iter().map(Source::as_str).collect();
        return HttpError::not_found(format!("unknown webhook source; known are {}", known.join(", ")))
            .into_response();
    };
    let begun = Instant::now();
    let (verdict, response) = match take(&http, source, request).await {
        Ok((verdict, response)) => (verdict, response),
        Err(Refusal(verdict, error)) => {
            tracing::info!(source = source.as_str(), result = verdict.label(), "delivery refused");
            (verdict, error.into_response())
        }
    };
    metrics::counter!(telemetry::WEBHOOKS, "source" => source.as_str(), "result" => verdict.label())
        .increment(1);
    metrics::histogram!(telemetry::WEBHOOK_SECONDS, "source" => source.as_str())
        .record(begun.elapsed().as_secs_f64());
    response
}

async fn take(http: &Http, source: Source, request: Request) -> Result<(Verdict, Response), Refusal> {
    let app = http.app();
    let secrets = app.config.secrets_for(source);
    if secrets.is_empty() {
        let section = source.as_str();
        return Err(Refusal(
            Verdict::Disabled,
            HttpError::not_found(format!(
                "webhooks from {section} are disabled here: the server's configuration has no `{section}.webhook_secrets`"
            )),
        ));
    }
    if app.store.is_nearly_full() {
        let error = HttpError::unavailable("the disk of the database is nearly full, try again later");
        return Err(Refusal(Verdict::NotStored, error));
    }
    let cap = app.config.body_cap(source);
    let (parts, body) = request.into_parts();
    let declared = content_length(&parts.headers);
    if declared.is_some_and(|length| length > cap) {
        return Err(too_large(source, cap));
    }
    let seconds = app.config.server.body_timeout_seconds;
    let reading = read_body(body, cap, declared, http.budget());
    let (body, held) = match tokio::time::timeout(Duration::from_secs(seconds), reading).await {
        Ok(Ok(read)) => read,
        Ok(Err(ReadError::TooLarge)) => return Err(too_large(source, cap)),
        Ok(Err(ReadError::NoMemory)) => {
            return Err(Refusal(
                Verdict::Overloaded,
                HttpError::unavailable("too many large deliveries at one time, try again soon"),
            ));
        }
        Ok(Err(ReadError::Broken)) => {
            return Err(Refusal(
                Verdict::BrokenBody,
                HttpError::bad_request("the body could not be read to its end"),
            ));
        }
        Err(_elapsed) => {
            return Err(Refusal(
                Verdict::Timeout,
                HttpError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "timeout",
                    format!("the body did not arrive within {seconds} s"),
                ),
            ));
        }
    };
    let (envelope, body) = verify(app, source, &parts.headers, body).await?;
    let id = InboxId::new(app.ids.next(IdKind::Inbox));
    let raw = body.into_bytes();
    let delivery = NewDelivery {
        id: id.clone(),
        source,
        delivery_id: envelope.delivery_id,
        ignored: intake::unread(source, &envelope.event, &raw),
        event: envelope.event,
        headers: kept_headers(&parts.headers),
        raw,
        received_at: app.clock.now(),
    };
    let is_work = delivery.ignored.is_none();
    let (delivery_id, event) = (delivery.delivery_id.clone(), delivery.event.clone());
    // The permit is held until the delivery is stored, also when its sender has given up: the body is in memory for that
    // long.
    let storing = tokio::spawn({
        let app = Arc::clone(app);
        async move {
            let stored = inbox::insert(&app.store, delivery).await;
            drop(held);
            if is_work && matches!(stored, Ok(Inserted::New)) {
                app.wakeup.notify(Topic::Inbox);
            }
            stored
        }
    });
    let stored = match tokio::time::timeout(Duration::from_secs(STORE_SECONDS), storing).await {
        Ok(Ok(stored)) => stored,
        Ok(Err(_stopped)) => {
            return Err(Refusal(Verdict::NotStored, HttpError::unavailable("the server is shutting down")));
        }
        // It may be stored yet: the sender's next try is then known.
        Err(_elapsed) => {
            let error = HttpError::unavailable("the database does not answer, try again soon");
            return Err(Refusal(Verdict::NotStored, error));
        }
    };
    match stored {
        Ok(Inserted::New) => {
            tracing::debug!(
                source = source.as_str(),
                delivery.id = delivery_id,
                inbox.id = id.as_str(),
                event,
                "delivery stored"
            );
            let answer = Json(serde_json::json!({ "id": id.as_str() }));
            Ok((Verdict::Accepted, (StatusCode::ACCEPTED, answer).into_response()))
        }
        Ok(Inserted::Duplicate) => {
            Ok((Verdict::Duplicate, Json(serde_json::json!({ "duplicate": true })).into_response()))
        }
        Err(error) => Err(Refusal(Verdict::NotStored, not_stored(app, &error))),
    }
}

/// Whatever went wrong, the sender keeps the delivery and tries again.
fn not_stored(app: &App, error: &crate::store::StoreError) -> HttpError {
    let answer = HttpError::store(app, "store a delivery", error);
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        answer
    } else {
        HttpError::unavailable(answer.message)
    }
}

fn too_large(source: Source, cap: usize) -> Refusal {
    let message = format!("deliveries from {} may have at most {cap} bytes", source.as_str());
    // What follows is not read, so the connection cannot be used again.
    let error = HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        .with(header::CONNECTION, header::HeaderValue::from_static("close"));
    Refusal(Verdict::TooLarge, error)
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    // A length that does not fit is larger than any cap.
    let text = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    Some(text.parse().unwrap_or(usize::MAX))
}

#[derive(Debug)]
enum ReadError {
    TooLarge,
    NoMemory,
    Broken,
}

/// Reads the body piece by piece; each piece is paid from the budget when it has arrived, so that a client
/// cannot hold memory by promising a large body.
async fn read_body(
    mut body: Body,
    cap: usize,
    declared: Option<usize>,
    budget: &Arc<Semaphore>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ReadError> {
    let mut buffer = BytesMut::with_capacity(declared.unwrap_or(0).min(FIRST_BUFFER_BYTES));
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_cut| ReadError::Broken)?;
        // Trailers are not part of what was signed.
        let Ok(data) = frame.into_data() else { continue };
        let length = buffer.len().saturating_add(data.len());
        if length > cap {
            return Err(ReadError::TooLarge);
        }
        let paid = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let owed = length.div_ceil(PERMIT_BYTES).saturating_sub(paid);
        if owed > 0 {
            let owed = u32::try_from(owed).map_err(|_huge| ReadError::TooLarge)?;
            let more =
                Arc::clone(budget).try_acquire_many_owned(owed).map_err(|_spent| ReadError::NoMemory)?;
            match &mut held {
                Some(permit) => permit.merge(more),
                None => held = Some(more),
            }
        }
        buffer.extend_from_slice(&data);
    }
    Ok((buffer.freeze(), held))
}

async fn verify(
    app: &Arc<App>,
    source: Source,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<(signature::Envelope, VerifiedBody), Refusal> {
    if body.len() <= HASH_INLINE_BYTES {
        return check(app, source, headers, body);
    }
    let (app, headers) = (Arc::clone(app), headers.clone());
    match tokio::task::spawn_blocking(move || check(&app, source, &headers, body)).await {
        Ok(checked) => checked,
        Err(_stopped) => {
            Err(Refusal(Verdict::Overloaded, HttpError::unavailable("the server is shutting down")))
        }
    }
}

fn check(
    app: &App,
    source: Source,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<(signature::Envelope, VerifiedBody), Refusal> {
    let look_up = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let verified = signature::verify(source, app.config.secrets_for(source), look_up, body)
        .map_err(|error| Refusal(Verdict::Unauthorized, HttpError::unauthorized(error.to_string())))?;
    let envelope = signature::envelope(source, look_up, &verified).map_err(|name| {
        Refusal(Verdict::MissingId, HttpError::bad_request(format!("the header `{name}` is missing")))
    })?;
    Ok((envelope, verified))
}

fn kept_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    KEPT_HEADERS
        .iter()
        .filter_map(|name| {
            let value = headers.get(*name)?.to_str().ok()?;
            (value.len() <= MAX_HEADER_BYTES).then(|| ((*name).to_owned(), value.to_owned()))
        })
        .collect()
}
