//! Purpose: `/runs/{id}/events`: the live log as server-sent events.
//!
//! `log` events carry lines and the number of the last chunk as their id, so that a browser that was cut off goes on
//! where it was (`Last-Event-ID`); `state` events carry what changed about the run; `end` is the last one.

use super::feed::{self, FRAME_CHUNKS, Feed, Frame};
use super::pages::refuse;
use super::{Signed, access};
use crate::app::App;
use crate::domain::ids::RunId;
use crate::http::Http;
use crate::http::error::HttpError;
use crate::http::view;
use crate::store::{self, StoreError};
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

/// What comes first: milliseconds after which a browser that was cut off comes back.
const HELLO: &[u8] = b": hello\nretry: 2000\n\n";
/// What keeps a silent stream open.
const KEEP_ALIVE: &[u8] = b":\n\n";
/// Seconds that one stream lasts; then the browser comes back by itself and goes on where it was.
const MAX_STREAM_SECONDS: u64 = 3600;

/// One reader.
struct Reader {
    app: Arc<App>,
    stop: CancellationToken,
    run: RunId,
    /// The last chunk that it was sent.
    after: i64,
    /// The state that it was sent last.
    state: Bytes,
    ready: VecDeque<Bytes>,
    /// Chunks may be in the store that it was not sent.
    behind: bool,
    /// What it is sent when it has every chunk; then the stream closes.
    end: Option<Bytes>,
    ended: bool,
    frames: Receiver<Frame>,
    begun: Instant,
    _feed: Arc<Feed>,
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
    let Ok(place) = Arc::clone(http.live()).try_acquire_owned() else {
        return HttpError::unavailable("too many live logs are open").into_response();
    };
    // Followed before it is looked at: what changes in between is heard.
    let (feed, frames) = http.feeds().follow(app, &run, http.stop());
    let (known, facts) = match feed::look(app, &run).await {
        Ok(Some(found)) => found,
        Ok(None) => return HttpError::not_found("there is no such run").into_response(),
        Err(error) => return HttpError::store(app, "follow a run", &error).into_response(),
    };
    // What the browser saw last counts more than where the page ended.
    let last_seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<i64>().ok());
    let state = feed::state_event(app, &facts);
    let reader = Reader {
        app: Arc::clone(app),
        stop: http.stop().clone(),
        run,
        after: last_seen.unwrap_or(signed.after).max(0),
        ready: VecDeque::from([Bytes::from_static(HELLO), state.clone()]),
        state,
        behind: true,
        end: known.state.is_terminal().then(|| feed::end_event(app, &known)),
        ended: false,
        frames,
        begun: Instant::now(),
        _feed: feed,
        _place: place,
        _count: Viewer::new(),
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(stream_of(reader))).into_response()
}

fn stream_of(reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(reader, |mut reader| async move {
        let piece = reader.next().await?;
        Some((Ok(piece), reader))
    })
}

impl Reader {
    /// The next piece; `None` closes the stream, and a browser whose run has not ended comes back.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            if self.behind {
                if let Err(error) = self.catch_up().await {
                    let error = self.app.secrets.mask(&crate::http::error::chain(&error));
                    tracing::warn!(run.id = self.run.as_str(), error, "a live log was cut");
                    return None;
                }
                continue;
            }
            if self.ended {
                return None;
            }
            if let Some(end) = self.end.take() {
                self.ended = true;
                return Some(end);
            }
            let frame = tokio::select! {
                () = self.stop.cancelled() => return None,
                frame = self.frames.recv() => frame,
            };
            match frame {
                Ok(frame) => self.take(frame)?,
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Makes ready what a frame brings; `None`: the stream has lasted long enough.
    fn take(&mut self, frame: Frame) -> Option<()> {
        if self.begun.elapsed().as_secs() >= MAX_STREAM_SECONDS {
            return None;
        }
        match frame {
            Frame::Log { last, .. } if last <= self.after => {}
            Frame::Log { after, last, text } if after == self.after => {
                self.after = last;
                self.ready.push_back(text);
            }
            // It was sent a part of these, or lacks some before them.
            Frame::Log { .. } => self.behind = true,
            Frame::State(state) if state == self.state => {}
            Frame::State(state) => {
                self.state = state.clone();
                self.ready.push_back(state);
            }
            Frame::End { last, text } => {
                self.behind = last > self.after;
                self.end = Some(text);
            }
            Frame::KeepAlive => self.ready.push_back(Bytes::from_static(KEEP_ALIVE)),
        }
        Some(())
    }

    /// Reads what it lacks from the store, one frame at a time.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let chunks = store::logs::read(&self.app.store, &self.run, self.after, FRAME_CHUNKS).await?;
        self.behind = i64::try_from(chunks.len()).unwrap_or(i64::MAX) >= FRAME_CHUNKS;
        if let Some(last) = chunks.last() {
            self.after = last.seq;
            let lines: Vec<_> = chunks.iter().flat_map(|chunk| view::log_lines(&chunk.text)).collect();
            self.ready.push_back(feed::log_event(&self.app, last.seq, &lines));
        }
        Ok(())
    }
}
