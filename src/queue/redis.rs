//! Wake-ups between processes, over one Redis channel.
//!
//! Everything here is a hint: when Redis is flushed, slow or gone, waiters wake by their own time-outs and
//! the database tells the rest. So messages are dropped rather than waited for, and errors are only logged.

use super::local::LocalWakeup;
use super::{Topic, Wakeup};
use async_trait::async_trait;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// The channel that carries the topics' names.
const CHANNEL: &str = "zeblit:wake";

/// Wake-ups that may wait for being published; more are dropped, because one look finds everything.
const BACKLOG: usize = 256;

/// Between two tries to reach Redis.
const RECONNECT: Duration = Duration::from_secs(1);

/// An answer that takes longer than this counts as none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Local wake-ups, also told to and by the other processes on the same Redis.
#[derive(Debug)]
pub struct RedisWakeup {
    local: Arc<LocalWakeup>,
    publish: mpsc::Sender<Topic>,
    #[expect(dead_code, reason = "held for their drop: the tasks end with this")]
    tasks: [AbortOnDropHandle<()>; 2],
}

impl RedisWakeup {
    /// Starts publishing and listening; Redis need not be there yet. The error is a URL that is none.
    pub fn start(url: &str) -> Result<Self, redis::RedisError> {
        let client = redis::Client::open(url)?;
        let local = Arc::new(LocalWakeup::default());
        let (publish, topics) = mpsc::channel(BACKLOG);
        let tasks = [
            AbortOnDropHandle::new(tokio::spawn(tell(client.clone(), topics))),
            AbortOnDropHandle::new(tokio::spawn(listen(client, Arc::clone(&local)))),
        ];
        Ok(Self { local, publish, tasks })
    }
}

#[async_trait]
impl Wakeup for RedisWakeup {
    fn notify(&self, topic: Topic) {
        self.local.notify(topic);
        // Full or closed: the others look by themselves soon enough.
        let _dropped = self.publish.try_send(topic);
    }

    async fn wait(&self, topic: Topic, at_most: Duration) {
        self.local.wait(topic, at_most).await;
    }
}

fn name(topic: Topic) -> &'static str {
    match topic {
        Topic::Inbox => "inbox",
        Topic::Runs => "runs",
        Topic::Effects => "effects",
        Topic::Logs => "logs",
    }
}

fn topic(name: &str) -> Option<Topic> {
    Topic::ALL.into_iter().find(|topic| self::name(*topic) == name)
}

/// Publishes what is sent to it, for as long as somebody can send.
async fn tell(client: redis::Client, mut topics: mpsc::Receiver<Topic>) {
    let mut connection = None;
    while let Some(topic) = topics.recv().await {
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
        let Some(connected) = connection.as_mut() else {
            tokio::time::sleep(RECONNECT).await;
            continue;
        };
        let mut command = redis::cmd("PUBLISH");
        command.arg(CHANNEL).arg(name(topic));
        match tokio::time::timeout(TIMEOUT, command.query_async::<i64>(connected)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => connection = None,
        }
    }
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

async fn listen_once(client: &redis::Client, local: &LocalWakeup) -> Result<(), redis::RedisError> {
    let mut connection = client.get_async_pubsub().await?;
    connection.subscribe(CHANNEL).await?;
    // What was published while nobody listened is lost: look once at everything.
    for topic in Topic::ALL {
        local.notify(topic);
    }
    let mut messages = connection.on_message();
    while let Some(message) = messages.next().await {
        if let Ok(text) = message.get_payload::<String>()
            && let Some(topic) = topic(&text)
        {
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
        let url = std::env::var("ZEBLIT_TEST_REDIS").ok();
        assert!(url.is_some() || std::env::var_os("CI").is_none(), "CI must set ZEBLIT_TEST_REDIS");
        url
    }

    #[test]
    fn topic_names_read_back() {
        for topic in Topic::ALL {
            assert_eq!(self::topic(name(topic)), Some(topic));
        }
        assert_eq!(topic("anything else"), None);
    }

    #[tokio::test]
    async fn one_process_wakes_another() {
        let Some(url) = url() else { return };
        let (here, there) = (RedisWakeup::start(&url).unwrap(), RedisWakeup::start(&url).unwrap());
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

    #[tokio::test]
    async fn without_redis_it_is_a_local_wake_up() {
        // Port 9 (discard): nothing answers there.
        let wakeup = RedisWakeup::start("redis://127.0.0.1:9/").unwrap();
        wakeup.notify(Topic::Runs);
        let begin = Instant::now();
        wakeup.wait(Topic::Runs, Duration::from_secs(30)).await;
        assert!(begin.elapsed() < Duration::from_secs(25));
    }

    #[tokio::test]
    async fn a_wrong_url_is_an_error() {
        assert!(RedisWakeup::start("mysql://nothing").is_err());
    }
}
