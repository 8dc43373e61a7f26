//! Purpose: what the readers of one run's live log have in common: one task that looks, gathers lines and makes each frame
//! once, however many read it.
//!
//! - A run that nobody reads has no task. Readers that are idle have no timer and ask no database.
//! - What a reader misses, because it came late or reads slowly, it takes from the store: memory does not grow with it.

use super::pages::{Facts, facts};
use crate::app::App;
use crate::domain::ids::RunId;
use crate::domain::run::{LogLine, Run};
use crate::http::view;
use crate::queue::{Following, LogLines, Topic};
use crate::store::{self, StoreError};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Milliseconds between two frames: what comes sooner is gathered. The first after a silence waits for nothing.
const FRAME_MS: u64 = 30;
/// Milliseconds until the database is asked again without a hint.
const POLL_MS: u64 = 1000;
/// Chunks that are read at one time.
pub(super) const FRAME_CHUNKS: i64 = 100;
/// Frames that a reader may be behind; then it reads the store.
const FRAMES_KEPT: usize = 16;
/// Seconds of silence after which a comment keeps proxies from closing a stream.
const KEEP_ALIVE_SECONDS: u64 = 15;

/// What is sent to readers.
#[derive(Debug, Clone)]
pub(super) enum Frame {
    /// Lines of the chunks after `after`, up to `last`.
    Log {
        after: i64,
        last: i64,
        text: Bytes,
    },
    State(Bytes),
    /// The run has ended with this state, and its log with the chunk `last`.
    End {
        last: i64,
        text: Bytes,
    },
    KeepAlive,
}

/// One event as it travels. The data has no line feed: it is JSON, or a word.
fn event(app: &App, name: &str, id: Option<i64>, data: &str) -> Bytes {
    let id = id.map_or(String::new(), |id| format!("id: {id}\n"));
    Bytes::from(app.secrets.mask(&format!("event: {name}\n{id}data: {data}\n\n")))
}

pub(super) fn log_event(app: &App, last: i64, lines: &[LogLine]) -> Bytes {
    event(app, "log", Some(last), &serde_json::to_string(lines).unwrap_or_default())
}

pub(super) fn state_event(app: &App, facts: &Facts) -> Bytes {
    event(app, "state", None, &serde_json::to_string(facts).unwrap_or_default())
}

pub(super) fn end_event(app: &App, run: &Run) -> Bytes {
    event(app, "end", None, run.state.as_str())
}

/// A run as its readers see it now; `None`: it is gone.
pub(super) async fn look(app: &App, run: &RunId) -> Result<Option<(Run, Facts)>, StoreError> {
    let Some(run) = store::runs::get(&app.store, run).await? else { return Ok(None) };
    let paused = store::settings::get(&app.store, store::settings::PAUSED).await?;
    let facts = facts(&run, paused, app.clock.now());
    Ok(Some((run, facts)))
}

/// The runs that are read here.
#[derive(Debug, Default)]
pub(in crate::http) struct Feeds(Mutex<BTreeMap<RunId, Weak<Feed>>>);

/// The task of one run; it ends when the last reader drops this.
#[derive(Debug)]
pub(super) struct Feed {
    frames: broadcast::WeakSender<Frame>,
    #[expect(dead_code, reason = "held for its drop: the task ends with this")]
    task: AbortOnDropHandle<()>,
}

impl Feeds {
    /// Every frame of the run from now on. The feed lives for as long as one of its readers holds it.
    pub(super) fn follow(
        &self,
        app: &Arc<App>,
        run: &RunId,
        stop: &CancellationToken,
    ) -> (Arc<Feed>, broadcast::Receiver<Frame>) {
        let mut feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feeds.get(run).and_then(Weak::upgrade)
            && let Some(frames) = feed.frames.upgrade()
        {
            return (feed, frames.subscribe());
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let (frames, reader) = broadcast::channel(FRAMES_KEPT);
        let weak = frames.downgrade();
        let follower = Follower {
            app: Arc::clone(app),
            stop: stop.clone(),
            lines: app.wakeup.follow(run.as_str()),
            run: run.clone(),
            frames,
            after: None,
            last: 0,
            gathered: Vec::new(),
            told: None,
            sent_at: Instant::now(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run()));
        let feed = Arc::new(Feed { frames: weak, task });
        feeds.insert(run.clone(), Arc::downgrade(&feed));
        (feed, reader)
    }
}

/// Looks for all readers of a run. They are told that it is over by the end of the channel.
struct Follower {
    app: Arc<App>,
    stop: CancellationToken,
    run: RunId,
    /// Lines as they are stored, wherever the run is worked on; what it misses is read from the store.
    lines: Following,
    frames: broadcast::Sender<Frame>,
    /// The chunk that the gathered lines come after; `None`: the end of the log is not known yet.
    after: Option<i64>,
    /// The chunk that they end with.
    last: i64,
    gathered: Vec<LogLine>,
    told: Option<Facts>,
    sent_at: Instant,
}

impl Follower {
    async fn run(mut self) {
        if let Err(error) = self.follow().await {
            let error = self.app.secrets.mask(&crate::http::error::chain(&error));
            tracing::warn!(run.id = self.run.as_str(), error, "a live log was cut");
        }
    }

    async fn follow(&mut self) -> Result<(), StoreError> {
        let frame = Duration::from_millis(FRAME_MS);
        let mut look_at = Instant::now();
        let stop = self.stop.clone();
        let wakeup = Arc::clone(&self.app.wakeup);
        loop {
            if Instant::now() >= look_at {
                if self.look().await? {
                    return Ok(());
                }
                look_at = Instant::now() + Duration::from_millis(POLL_MS);
            }
            let due = if self.gathered.is_empty() { look_at } else { look_at.min(self.sent_at + frame) };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                lines = self.lines.next() => {
                    if !lines.is_some_and(|lines| self.take(&lines)) {
                        look_at = Instant::now();
                    }
                }
                () = wakeup.wait(Topic::Logs, due.saturating_duration_since(Instant::now())) => {
                    // Woken early: something is new. Runs that change often are looked at once for each frame.
                    if Instant::now() < due {
                        look_at = look_at.min(Instant::now() + frame);
                    }
                }
            }
            if self.sent_at.elapsed() >= frame {
                self.flush();
            }
            if self.sent_at.elapsed() >= Duration::from_secs(KEEP_ALIVE_SECONDS) {
                self.send(Frame::KeepAlive);
            }
        }
    }

    /// Gathers lines that come next, without asking the database. False: some before them were missed.
    fn take(&mut self, lines: &LogLines) -> bool {
        if self.after.is_none() || lines.seq > self.last + 1 {
            return false;
        }
        if lines.seq == self.last + 1 {
            self.last = lines.seq;
            self.gathered.extend(view::log_lines(&lines.text));
        }
        true
    }

    /// Reads what is new. The run is read before its log, so that no line comes after the end. True: the run has ended.
    async fn look(&mut self) -> Result<bool, StoreError> {
        let app = Arc::clone(&self.app);
        let Some((run, facts)) = look(&app, &self.run).await? else { return Ok(true) };
        if self.after.is_none() {
            self.last = store::logs::last_seq(&app.store, &self.run).await?;
            self.after = Some(self.last);
            // From here on: whoever has read less of the store reads on.
            self.send(Frame::Log { after: self.last, last: self.last, text: Bytes::new() });
        }
        if self.told.as_ref() != Some(&facts) {
            self.flush();
            self.send(Frame::State(state_event(&app, &facts)));
            self.told = Some(facts);
        }
        loop {
            let chunks = store::logs::read(&app.store, &self.run, self.last, FRAME_CHUNKS).await?;
            let Some(last) = chunks.last() else { break };
            self.gathered.extend(chunks.iter().flat_map(|chunk| view::log_lines(&chunk.text)));
            self.last = last.seq;
            self.flush();
        }
        if run.state.is_terminal() {
            self.send(Frame::End { last: self.last, text: end_event(&app, &run) });
            return Ok(true);
        }
        Ok(false)
    }

    /// Sends what is gathered as one frame.
    fn flush(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let text = log_event(&self.app, self.last, &std::mem::take(&mut self.gathered));
        self.send(Frame::Log { after: self.after.unwrap_or(self.last), last: self.last, text });
        self.after = Some(self.last);
    }

    fn send(&mut self, frame: Frame) {
        // Without readers this is about to be dropped.
        let _unread = self.frames.send(frame);
        self.sent_at = Instant::now();
    }
}
