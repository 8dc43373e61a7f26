//! Wake-ups between processes by Postgres' own NOTIFY, where there is no Redis: one channel for topics, one for lines of
//! live logs.
//!
//! Hints, as with Redis: when a connection is lost, waiters wake by their own time-outs until it is made again, and the
//! database tells the rest. Lines that are too long for a notification are not told: their readers hear of `Logs`.

use super::local::LocalWakeup;
use super::shared::SharedWakeup;
use super::{LogLines, Pending, Topic, Wakeup};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, Row};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// The channel that carries the topics' names.
const CHANNEL: &str = "zeblit_wake";

/// The channel that carries lines.
const LINES: &str = "zeblit_log";

/// Longest message, in bytes: Postgres refuses 8 000.
const MESSAGE_BYTES: usize = 7_900;

/// Between two tries to connect.
const RECONNECT: Duration = Duration::from_secs(1);

/// An answer that takes longer than this counts as none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The connection that listens is made anew when it was silent for so long: a network that swallows everything closes
/// none.
const SILENCE: Duration = Duration::from_secs(60);

/// Lines as they are told.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    run: String,
    seq: i64,
    text: Arc<str>,
}

/// Starts telling and listening; the server need not be there yet. The error is a URL that is none.
pub fn start(url: &str) -> Result<SharedWakeup, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?;
    // The process of the server that tells for us: what it tells was heard here already.
    let own = Arc::new(AtomicU32::new(0));
    let (teller, told) = (options.clone(), Arc::clone(&own));
    Ok(SharedWakeup::start(
        move |pending, lines| tell(teller, pending, lines, told),
        move |local| listen(options, local, own),
    ))
}

/// The answer in time, or an error as if the connection had broken.
async fn in_time<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Tells what is pending, for as long as this process can add to it.
async fn tell(
    options: PgConnectOptions,
    pending: Arc<Pending>,
    mut lines: mpsc::Receiver<LogLines>,
    own: Arc<AtomicU32>,
) {
    let mut connection = None;
    loop {
        let (topic, channel, message) = match pending.take() {
            Some(topic) => (Some(topic), CHANNEL, topic.name().to_owned()),
            None => tokio::select! {
                () = pending.more.notified() => continue,
                lines = lines.recv() => match lines {
                    None => return,
                    Some(LogLines { run, seq, text }) => {
                        let Ok(message) = serde_json::to_string(&Message { run, seq, text }) else { continue };
                        if message.len() > MESSAGE_BYTES {
                            continue;
                        }
                        (None, LINES, message)
                    }
                },
            },
        };
        if connection.is_none() {
            connection = match in_time(connect(&options, &own)).await {
                Ok(connected) => Some(connected),
                Err(error) => {
                    tracing::warn!(error = %error, "Postgres does not take wake-ups; other processes look by themselves");
                    None
                }
            };
        }
        if let Some(connected) = connection.as_mut() {
            let told =
                sqlx::query("SELECT pg_notify($1, $2)").bind(channel).bind(&message).execute(connected);
            match in_time(told).await {
                Ok(_) => continue,
                Err(_) => connection = None,
            }
        }
        if let Some(topic) = topic {
            pending.add(topic);
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// A connection that waits for no disk: what it tells is a hint.
async fn connect(options: &PgConnectOptions, own: &AtomicU32) -> Result<PgConnection, sqlx::Error> {
    let mut connection = options.clone().options([("synchronous_commit", "off")]).connect().await?;
    let row = sqlx::query("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    own.store(row.try_get::<i32, _>(0)?.unsigned_abs(), Ordering::Relaxed);
    Ok(connection)
}

/// Wakes the waiters of this process when another one tells.
async fn listen(options: PgConnectOptions, local: Arc<LocalWakeup>, own: Arc<AtomicU32>) {
    loop {
        if let Err(error) = listen_once(&options, &local, &own).await {
            tracing::warn!(error = %error, "Postgres gives no wake-ups; this process looks by itself");
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn listen_once(
    options: &PgConnectOptions,
    local: &LocalWakeup,
    own: &AtomicU32,
) -> Result<(), sqlx::Error> {
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
    let mut listener = in_time(PgListener::connect_with(&pool)).await?;
    in_time(listener.listen_all([CHANNEL, LINES])).await?;
    // What was told while nobody listened is lost: look once at everything.
    for topic in Topic::ALL {
        local.notify(topic);
    }
    while let Ok(heard) = tokio::time::timeout(SILENCE, listener.try_recv()).await {
        let Some(heard) = heard? else { return Ok(()) };
        if heard.process_id() == own.load(Ordering::Relaxed) {
            continue;
        }
        if heard.channel() == LINES {
            if let Ok(Message { run, seq, text }) = serde_json::from_str(heard.payload()) {
                local.lines(LogLines { run, seq, text });
            }
        } else if let Some(topic) = Topic::named(heard.payload()) {
            local.notify(topic);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// The test server; CI must name it.
    fn url() -> Option<String> {
        let url = std::env::var("ZEBLIT_TEST_POSTGRES").ok();
        assert!(url.is_some() || std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_POSTGRES");
        url
    }

    /// Notified again and again, `there` hears it in time.
    async fn hears(here: &SharedWakeup, there: &SharedWakeup, topic: Topic) {
        let begin = Instant::now();
        loop {
            let waited = Instant::now();
            here.notify(topic);
            there.wait(topic, Duration::from_secs(2)).await;
            if waited.elapsed() < Duration::from_secs(1) {
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "not heard");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_process_wakes_another_also_after_its_connections_were_cut() {
        let Some(url) = url() else { return };
        let (here, there) = (start(&url).unwrap(), start(&url).unwrap());
        hears(&here, &there, Topic::RunsHigh).await;
        let mut other = PgConnectOptions::from_str(&url).unwrap().connect().await.unwrap();
        let cut = sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND (query LIKE 'LISTEN %zeblit_%' OR query LIKE 'SELECT pg_notify(%')",
        )
        .fetch_all(&mut other)
        .await
        .unwrap();
        assert!(cut.len() >= 3, "{} connections were cut", cut.len());
        hears(&here, &there, Topic::Runs).await;
        hears(&there, &here, Topic::Inbox).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn lines_reach_another_process_unless_they_are_too_long() {
        let Some(url) = url() else { return };
        let (here, there) = (start(&url).unwrap(), start(&url).unwrap());
        let run = format!("run-{}", uuid::Uuid::now_v7().simple());
        let mut following = there.follow(&run);
        let begin = Instant::now();
        let heard = loop {
            // Told again until it is heard: a hint may be lost.
            here.lines(LogLines { run: run.clone(), seq: 6, text: "x".repeat(8_000).into() });
            here.lines(LogLines { run: run.clone(), seq: 7, text: "{\"n\":1}\n".into() });
            tokio::select! {
                lines = following.next() => break lines,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            assert!(begin.elapsed() < Duration::from_secs(25));
        };
        assert_eq!(heard, Some(LogLines { run, seq: 7, text: "{\"n\":1}\n".into() }));
    }

    #[tokio::test]
    async fn without_a_server_it_is_a_local_wake_up() {
        // Port 9 (discard): nothing answers there.
        let wakeup = start("postgres://127.0.0.1:9/none").unwrap();
        wakeup.notify(Topic::Runs);
        let begin = Instant::now();
        wakeup.wait(Topic::Runs, Duration::from_secs(30)).await;
        assert!(begin.elapsed() < Duration::from_secs(25));
    }

    #[tokio::test]
    async fn a_wrong_url_is_an_error() {
        assert!(start("nothing").is_err());
    }
}
