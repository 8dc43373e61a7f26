//! Wake-ups between processes over one Redis channel, and lines of live logs over one for each run that is followed.
//!
//! Everything here is a hint: when Redis is flushed, slow or gone, waiters wake by their own time-outs and the database
//! tells the rest. So nothing is waited for, and errors are only logged. What could not be told stays pending, each
//! topic once, and is told when Redis is back, urgent runs first; lines are dropped.

use super::local::LocalWakeup;
use super::shared::SharedWakeup;
use super::{LogLines, Pending, Topic, Wakeup};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The channel that carries the topics' names.
const CHANNEL: &str = "zeblit:wake";

/// What comes before the run in the name of a channel of lines.
const LINES: &str = "zeblit:log:";

/// Between two tries to reach Redis.
const RECONNECT: Duration = Duration::from_secs(1);

/// An answer that takes longer than this counts as none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Between two questions whether the connection that listens still lives: a network that swallows everything closes none.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Lines as they are published.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    seq: i64,
    text: Arc<str>,
}

/// Starts publishing and listening; Redis need not be there yet. The error is a URL that is none.
pub fn start(url: &str) -> Result<SharedWakeup, redis::RedisError> {
    let client = redis::Client::open(url)?;
    let teller = client.clone();
    Ok(SharedWakeup::start(
        move |pending, lines| tell(teller, pending, lines),
        move |local| listen(client, local),
    ))
}

/// Publishes what is pending, for as long as this process can add to it.
async fn tell(client: redis::Client, pending: Arc<Pending>, mut lines: mpsc::Receiver<LogLines>) {
    let mut connection = None;
    loop {
        let (topic, command) = match pending.take() {
            Some(topic) => (Some(topic), publish(CHANNEL, topic.name())),
            None => tokio::select! {
                () = pending.more.notified() => continue,
                lines = lines.recv() => match lines {
                    None => return,
                    Some(LogLines { run, seq, text }) => {
                        let Ok(message) = serde_json::to_string(&Message { seq, text }) else { continue };
                        (None, publish(&format!("{LINES}{run}"), &message))
                    }
                },
            },
        };
        if connection.is_none() {
            connection = match tokio::time::timeout(TIMEOUT, client.get_multiplexed_async_connection()).await
            {
                Ok(Ok(connected)) => Some(connected),
                Ok(Err(error)) => {
                    tracing::warn!(error = %error, "Redis does not take wake-ups; other processes look by themselves");
                    None
                }
                Err(_) => None,
            };
        }
        if let Some(connected) = connection.as_mut() {
            match tokio::time::timeout(TIMEOUT, command.query_async::<i64>(connected)).await {
                Ok(Ok(_)) => continue,
                Ok(Err(_)) | Err(_) => connection = None,
            }
        }
        if let Some(topic) = topic {
            pending.add(topic);
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

fn publish(channel: &str, message: &str) -> redis::Cmd {
    let mut command = redis::cmd("PUBLISH");
    command.arg(channel).arg(message);
    command
}

/// Wakes the waiters of this process when another one publishes.
async fn listen(client: redis::Client, local: Arc<LocalWakeup>) {
    loop {
        if let Err(error) = listen_once(&client, &local).await {
            tracing::warn!(error = %error, "Redis gives no wake-ups; this process looks by itself");
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// The answer in time, or an error as if the connection had broken.
async fn in_time<T>(asked: impl Future<Output = redis::RedisResult<T>>) -> redis::RedisResult<T> {
    match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

async fn listen_once(client: &redis::Client, local: &LocalWakeup) -> Result<(), redis::RedisError> {
    let (mut sink, mut messages) = in_time(client.get_async_pubsub()).await?.split();
    in_time(sink.subscribe(CHANNEL)).await?;
    // What was published while nobody listened is lost: look once at everything.
    for topic in Topic::ALL {
        local.notify(topic);
    }
    let mut heard: BTreeSet<String> = BTreeSet::new();
    loop {
        let wanted: BTreeSet<String> = local.followed.names().into_iter().collect();
        for run in wanted.difference(&heard) {
            in_time(sink.subscribe(format!("{LINES}{run}"))).await?;
        }
        for run in heard.difference(&wanted) {
            in_time(sink.unsubscribe(format!("{LINES}{run}"))).await?;
        }
        heard = wanted;
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => take(local, &message),
                None => return Ok(()),
            },
            () = local.followed.changed.notified() => {}
            () = tokio::time::sleep(PING_EVERY) => {
                in_time(sink.ping::<redis::Value>()).await?;
            }
        }
    }
}

fn take(local: &LocalWakeup, message: &redis::Msg) {
    let Ok(text) = message.get_payload::<String>() else { return };
    match message.get_channel_name().strip_prefix(LINES) {
        Some(run) => {
            if let Ok(Message { seq, text }) = serde_json::from_str(&text) {
                local.lines(LogLines { run: run.to_owned(), seq, text });
            }
        }
        None => {
            if let Some(topic) = Topic::named(&text) {
                local.notify(topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// The test server; CI must name it.
    fn url() -> Option<String> {
        let url = std::env::var("ZEBLIT_TEST_REDIS").ok();
        assert!(url.is_some() || std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_REDIS");
        url
    }

    #[tokio::test]
    async fn one_process_wakes_another() {
        let Some(url) = url() else { return };
        let (here, there) = (start(&url).unwrap(), start(&url).unwrap());
        // The first wake-up is the one of having connected.
        there.wait(Topic::Inbox, Duration::from_secs(10)).await;
        let begin = Instant::now();
        let waiting = there.wait(Topic::Inbox, Duration::from_secs(30));
        tokio::pin!(waiting);
        loop {
            // Sent again until it is heard: a hint may be lost.
            here.notify(Topic::Inbox);
            tokio::select! {
                () = &mut waiting => break,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(25), "woken by time-out only");
    }

    /// A way to Redis that can be cut (connections are closed, new ones too) or swallow everything.
    struct Way {
        address: std::net::SocketAddr,
        state: Arc<tokio::sync::watch::Sender<WayState>>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum WayState {
        Open,
        Cut,
        Swallows,
    }

    impl Way {
        async fn to(url: &str) -> Self {
            let target = url.trim_start_matches("redis://").trim_end_matches('/').to_owned();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let state = Arc::new(tokio::sync::watch::channel(WayState::Open).0);
            let states = Arc::clone(&state);
            tokio::spawn(async move {
                while let Ok((near, _)) = listener.accept().await {
                    let mut state = states.subscribe();
                    let target = target.clone();
                    tokio::spawn(async move {
                        if *state.borrow() == WayState::Cut {
                            return;
                        }
                        let mut near = near;
                        let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                        loop {
                            let now = *state.borrow_and_update();
                            tokio::select! {
                                changed = state.changed() => changed.unwrap(),
                                _ = tokio::io::copy_bidirectional(&mut near, &mut far), if now == WayState::Open => return,
                                () = std::future::ready(()), if now == WayState::Cut => return,
                            }
                        }
                    });
                }
            });
            Self { address, state }
        }

        fn url(&self) -> String {
            format!("redis://{}/", self.address)
        }
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
    async fn a_way_that_was_cut_or_swallowed_everything_is_found_again() {
        let Some(url) = url() else { return };
        let way = Way::to(&url).await;
        let (here, there) = (start(&url).unwrap(), start(&way.url()).unwrap());
        hears(&here, &there, Topic::RunsHigh).await;
        for trouble in [WayState::Cut, WayState::Swallows] {
            way.state.send_replace(trouble);
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Drains what came before.
            there.wait(Topic::Runs, Duration::from_millis(50)).await;
            let begin = Instant::now();
            here.notify(Topic::Runs);
            there.wait(Topic::Runs, Duration::from_millis(700)).await;
            assert!(begin.elapsed() >= Duration::from_millis(700), "{trouble:?}: nothing can be heard");
            // Its own waiters are woken as ever.
            there.notify(Topic::Runs);
            there.wait(Topic::Runs, Duration::from_secs(30)).await;
            assert!(begin.elapsed() < Duration::from_secs(25));
            way.state.send_replace(WayState::Open);
            hears(&here, &there, Topic::Runs).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn lines_of_a_followed_run_reach_another_process() {
        let Some(url) = url() else { return };
        let (here, there) = (start(&url).unwrap(), start(&url).unwrap());
        let run = format!("run-{}", uuid::Uuid::now_v7().simple());
        let mut following = there.follow(&run);
        let begin = Instant::now();
        let heard = loop {
            // Told again until it is heard: a hint may be lost.
            here.lines(LogLines { run: run.clone(), seq: 7, text: "{\"n\":1}\n".into() });
            here.lines(LogLines { run: "another".into(), seq: 9, text: "x".into() });
            tokio::select! {
                lines = following.next() => break lines,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            assert!(begin.elapsed() < Duration::from_secs(25));
        };
        assert_eq!(heard, Some(LogLines { run, seq: 7, text: "{\"n\":1}\n".into() }));
    }

    #[tokio::test]
    async fn without_redis_it_is_a_local_wake_up() {
        // Port 9 (discard): nothing answers there.
        let wakeup = start("redis://127.0.0.1:9/").unwrap();
        wakeup.notify(Topic::Runs);
        let begin = Instant::now();
        wakeup.wait(Topic::Runs, Duration::from_secs(30)).await;
        assert!(begin.elapsed() < Duration::from_secs(25));
    }

    #[tokio::test]
    async fn a_wrong_url_is_an_error() {
        assert!(start("mysql://nothing").is_err());
    }
}
