//! HTTP: the router and its layers.

pub mod api;
mod download;
pub mod error;
pub mod health;
pub mod server;
pub mod view;
pub mod web;
pub mod webhooks;

use crate::app::App;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use error::HttpError;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::timeout::TimeoutLayer;

/// Seconds that an answer other than a delivery's or a live log's may take.
const REQUEST_TIMEOUT_SECONDS: u64 = 30;
/// Largest body of an API request, in bytes; they hold a reason at most.
const API_BODY_BYTES: usize = 64 * 1024;
/// Of the connections, in quarters, those that live logs may hold: the rest is for deliveries.
const LIVE_QUARTERS: usize = 3;

/// Nothing from elsewhere, no inline code, no frames: pages show text that agents wrote.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// What the handlers share.
#[derive(Debug, Clone)]
pub struct Http(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    app: Arc<App>,
    budget: Arc<Semaphore>,
    live: Arc<Semaphore>,
    feeds: web::Feeds,
    kept: Mutex<health::Kept>,
    stop: CancellationToken,
}

impl Http {
    fn new(app: Arc<App>, stop: CancellationToken) -> Self {
        let budget = webhooks::budget(&app.config);
        let live = (app.config.server.max_connections * LIVE_QUARTERS).div_ceil(4);
        Self(Arc::new(Shared {
            app,
            budget,
            live: Arc::new(Semaphore::new(live.min(Semaphore::MAX_PERMITS))),
            feeds: web::Feeds::default(),
            kept: Mutex::default(),
            stop,
        }))
    }

    pub(crate) fn app(&self) -> &Arc<App> {
        &self.0.app
    }
    pub(crate) fn budget(&self) -> &Arc<Semaphore> {
        &self.0.budget
    }
    pub(crate) fn live(&self) -> &Arc<Semaphore> {
        &self.0.live
    }
    fn feeds(&self) -> &web::Feeds {
        &self.0.feeds
    }
    pub(crate) fn kept(&self) -> &Mutex<health::Kept> {
        &self.0.kept
    }
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }
}

/// Every route of the server.
pub fn router(app: Arc<App>) -> Router {
    router_until(app, CancellationToken::new())
}

/// What a node without web pages answers.
pub fn health_router(app: Arc<App>) -> Router {
    crate::telemetry::prometheus();
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            Duration::from_secs(REQUEST_TIMEOUT_SECONDS),
        ))
        .with_state(Http::new(app, CancellationToken::new()))
}

/// `router`, whose live logs end when `stop` is cancelled.
pub fn router_until(app: Arc<App>, stop: CancellationToken) -> Router {
    // The recorder must be there before the first counter is touched.
    crate::telemetry::prometheus();
    let http = Http::new(app, stop);
    let timeout = TimeoutLayer::with_status_code(
        StatusCode::SERVICE_UNAVAILABLE,
        Duration::from_secs(REQUEST_TIMEOUT_SECONDS),
    );
    let api = api::routes(&http).layer(DefaultBodyLimit::max(API_BODY_BYTES)).layer(timeout);
    let pages = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .merge(web::pages())
        .layer(timeout);
    // Outside all layers: every text of their answers is ours, and nothing is done twice for a delivery.
    let deliveries = Router::new()
        .route("/webhooks/{source}", post(webhooks::receive))
        .method_not_allowed_fallback(method_not_allowed);
    Router::new()
        .merge(pages)
        // Not under the timeout: a live log lasts as long as its run.
        .merge(web::streams())
        .nest("/api/v1", api)
        .fallback(|| async { HttpError::not_found("there is nothing at this address").into_response() })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(http.clone(), mask))
        .layer(axum::middleware::from_fn(no_index))
        .layer(set(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .layer(set(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(set(header::REFERRER_POLICY, "no-referrer"))
        .layer(set(header::CACHE_CONTROL, "no-store"))
        .merge(deliveries)
        .with_state(http)
}

fn set(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
}

async fn method_not_allowed() -> Response {
    HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address takes another method")
        .into_response()
}

/// Whatever made a text, no answer leaves with one of the server's secrets in it.
async fn mask(State(http): State<Http>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let secrets = http.app().secrets.clone();
    let masked = move |bytes: bytes::Bytes| match std::str::from_utf8(&bytes) {
        Ok(text) => bytes::Bytes::from(secrets.mask(text)),
        Err(_) => bytes,
    };
    match kind.as_str() {
        "text/html" | "text/plain" | "application/json" => {
            let (mut head, body) = response.into_parts();
            let Ok(body) = body.collect().await else {
                return HttpError::unavailable("the answer broke off").into_response();
            };
            // It may get shorter.
            head.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(head, Body::from(masked(body.to_bytes())))
        }
        // Events of a live log are masked where they are made, once for all their readers.
        _ => response,
    }
}

/// Signed links are for people who have them, not for search engines.
async fn no_index(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-robots-tag"), HeaderValue::from_static("noindex, nofollow"));
    response
}

#[cfg(test)]
mod tests;
