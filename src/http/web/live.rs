//! Purpose: `/runs/{id}/events`: the live log as server-sent events.
//!
//! `log` events carry lines and the number of the last chunk as their id, so that a browser that was cut off goes on
//! where it was (`Last-Event-ID`); `state` events carry what changed about the run; `end` is the last one.

use super::pages::{Facts, facts, refuse};
use super::{Signed, access};
use crate::app::App;
use crate::domain::ids::RunId;
use crate::http::Http;
use crate::http::error::HttpError;
use crate::http::view;
use crate::queue::{Following, LogLines, Topic};
use crate::store::{self, StoreError};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// Milliseconds that lines are gathered for one frame.
const FRAME_MS: u64 = 30;
/// Milliseconds until the database is asked again without a hint.
const POLL_MS: u64 = 1000;
/// Chunks of one frame.
const FRAME_CHUNKS: i64 = 100;
/// Seconds between two comments that keep proxies from closing a silent stream.
const KEEP_ALIVE_SECONDS: u64 = 15;
/// Milliseconds after which a browser that was cut off comes back.
const RETRY_MS: u64 = 2000;
/// Seconds that one stream lasts; then the browser comes back by itself and goes on where it was.
const MAX_STREAM_SECONDS: u64 = 3600;

struct Follow {
    app: Arc<App>,
    stop: CancellationToken,
    run: RunId,
    after: i64,
    told: Option<Facts>,
    ready: VecDeque<Event>,
    begun: Instant,
    /// Look without waiting: at the start, and while the last look was full.
    hurry: bool,
    looked_at: Instant,
    /// Lines as they are stored, wherever the run is worked on; what it misses is read from the store.
    lines: Following,
    ended: bool,
    /// One of the places for live logs, given back when the stream is dropped.
    _place: OwnedSemaphorePermit,
    _count: Viewer,
}

/// Counts a viewer for as long as it lives.
struct Viewer;

impl Viewer {
    fn new() -> Self {
        metrics::gauge!(crate::telemetry::LIVE_VIEWERS).increment(1.0);
        Self
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        metrics::gauge!(crate::telemetry::LIVE_VIEWERS).decrement(1.0);
    }
}

/// `GET /runs/{id}/events?e=&s=&after=`
pub(super) async fn events(
    State(http): State<Http>,
    Path(id): Path<String>,
    query: Result<Query<Signed>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let app = http.app();
    let signed = query.map(|Query(signed)| signed).unwrap_or_default();
    if let Some(refusal) = refuse(access(app, &id, &signed), &id) {
        return refusal;
    }
    let run = RunId::new(id);
    match store::runs::get(&app.store, &run).await {
        Ok(Some(_)) => {}
        Ok(None) => return HttpError::not_found("there is no such run").into_response(),
        Err(error) => return HttpError::store(app, "follow a run", &error).into_response(),
    }
    let Ok(place) = Arc::clone(http.live()).try_acquire_owned() else {
        return HttpError::unavailable("too many live logs are open").into_response();
    };
    // What the browser saw last counts more than where the page ended.
    let last_seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<i64>().ok());
    let follow = Follow {
        app: Arc::clone(app),
        stop: http.stop().clone(),
        after: last_seen.unwrap_or(signed.after).max(0),
        told: None,
        ready: VecDeque::from([Event::default().retry(Duration::from_millis(RETRY_MS)).comment("hello")]),
        begun: Instant::now(),
        hurry: true,
        looked_at: Instant::now(),
        lines: app.wakeup.follow(run.as_str()),
        run,
        ended: false,
        _place: place,
        _count: Viewer::new(),
    };
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(KEEP_ALIVE_SECONDS));
    Sse::new(stream_of(follow)).keep_alive(keep_alive).into_response()
}

fn stream_of(follow: Follow) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(follow, |mut follow| async move {
        let event = follow.next().await?;
        Some((Ok(event), follow))
    })
}

impl Follow {
    /// The next event; `None` closes the stream, and a browser whose run has not ended comes back.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended || self.begun.elapsed().as_secs() >= MAX_STREAM_SECONDS {
                return None;
            }
            if !self.hurry {
                let (stop, wakeup) = (self.stop.clone(), Arc::clone(&self.app.wakeup));
                let wait = Duration::from_millis(POLL_MS).saturating_sub(self.looked_at.elapsed());
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = wakeup.wait(Topic::Logs, wait) => {
                        tokio::time::sleep(Duration::from_millis(FRAME_MS)).await;
                    }
                    lines = self.lines.next() => {
                        if lines.is_some_and(|lines| self.take(&lines)) {
                            continue;
                        }
                    }
                }
            }
            if let Err(error) = self.look().await {
                let error = self.app.secrets.mask(&crate::http::error::chain(&error));
                tracing::warn!(run.id = self.run.as_str(), error, "a live log was cut");
                return None;
            }
        }
    }

    /// Shows lines that come next, without asking the database. False: some before them were missed.
    fn take(&mut self, lines: &LogLines) -> bool {
        if lines.seq <= self.after {
            return true;
        }
        if lines.seq != self.after + 1 {
            return false;
        }
        self.after = lines.seq;
        let shown = view::log_lines(&lines.text);
        if let Ok(event) = Event::default().event("log").id(lines.seq.to_string()).json_data(&shown) {
            self.ready.push_back(event);
        }
        true
    }

    /// Reads what is new. The run is read before its log, so that no line comes after `end`.
    async fn look(&mut self) -> Result<(), StoreError> {
        self.looked_at = Instant::now();
        let store = &self.app.store;
        let Some(run) = store::runs::get(store, &self.run).await? else {
            self.ended = true;
            return Ok(());
        };
        let paused = store::settings::get(store, store::settings::PAUSED).await?;
        let chunks = store::logs::read(store, &self.run, self.after, FRAME_CHUNKS).await?;
        let facts = facts(&run, paused, self.app.clock.now());
        if self.told.as_ref() != Some(&facts) {
            if let Ok(event) = Event::default().event("state").json_data(&facts) {
                self.ready.push_back(event);
            }
            self.told = Some(facts);
        }
        if let Some(last) = chunks.last() {
            self.after = last.seq;
            let lines: Vec<_> = chunks.iter().flat_map(|chunk| view::log_lines(&chunk.text)).collect();
            if let Ok(event) = Event::default().event("log").id(last.seq.to_string()).json_data(&lines) {
                self.ready.push_back(event);
            }
        } else if run.state.is_terminal() {
            self.ready.push_back(Event::default().event("end").data(run.state.as_str()));
            self.ended = true;
        }
        self.hurry = i64::try_from(chunks.len()).unwrap_or(i64::MAX) >= FRAME_CHUNKS;
        Ok(())
    }
}
