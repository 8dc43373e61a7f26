//! Wake-ups and fan-out: hints that say "look now", and lines of live logs as they are stored. Losing any of it costs
//! latency, never a run: the database tells the rest.

pub mod local;
pub mod postgres;
pub mod redis;
pub mod shared;

use async_trait::async_trait;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, broadcast};

/// Lines that a follower may be behind before it has a gap.
const LINES_KEPT: usize = 256;

/// What there may be something new of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// An urgent run may be due. Who waits for `Runs` hears it.
    RunsHigh,
    /// A delivery was stored.
    Inbox,
    /// An effect may be due.
    Effects,
    /// A run may be due.
    Runs,
    /// A run that is in no hurry may be due. Who waits for `Runs` hears it.
    RunsLow,
    /// A run has changed, or its log.
    Logs,
}

impl Topic {
    /// In the order in which other processes are told.
    pub const ALL: [Topic; 6] =
        [Topic::RunsHigh, Topic::Inbox, Topic::Effects, Topic::Runs, Topic::RunsLow, Topic::Logs];

    /// How other processes are told.
    fn name(self) -> &'static str {
        match self {
            Topic::Inbox => "inbox",
            Topic::RunsHigh => "runs:high",
            Topic::Runs => "runs:default",
            Topic::RunsLow => "runs:low",
            Topic::Effects => "effects",
            Topic::Logs => "logs",
        }
    }

    fn named(name: &str) -> Option<Topic> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// Runs of a priority: 0 high, 1 default, 2 low.
    pub fn runs(priority: i64) -> Topic {
        match priority {
            ..=0 => Topic::RunsHigh,
            1 => Topic::Runs,
            2.. => Topic::RunsLow,
        }
    }
}

/// Lines of a run's log that were just stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLines {
    pub run: String,
    /// The number of their chunk. Numbers have no gaps: who missed one reads the store.
    pub seq: i64,
    /// As stored.
    pub text: Arc<str>,
}

#[async_trait]
pub trait Wakeup: Send + Sync + Debug {
    fn notify(&self, topic: Topic);

    /// Returns at a notification that came after the last `wait` of this topic returned, or after `at_most`.
    async fn wait(&self, topic: Topic, at_most: Duration);

    /// Tells stored lines to who follows the run.
    fn lines(&self, lines: LogLines);

    /// Lines of a run from now on, as far as they are heard.
    fn follow(&self, run: &str) -> Following;
}

/// Topics that others are to be told of, each once, in the order of `Topic::ALL`.
#[derive(Debug, Default)]
pub(super) struct Pending {
    topics: Mutex<[bool; Topic::ALL.len()]>,
    pub more: Notify,
}

impl Pending {
    pub fn add(&self, topic: Topic) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        for (known, pending) in Topic::ALL.into_iter().zip(topics.iter_mut()) {
            *pending |= known == topic;
        }
        drop(topics);
        self.more.notify_one();
    }

    pub fn take(&self) -> Option<Topic> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let next = topics.iter().position(|pending| *pending)?;
        *topics.get_mut(next)? = false;
        Topic::ALL.get(next).copied()
    }
}

/// Which runs are followed in this process, and by how many.
#[derive(Debug)]
pub(super) struct Followed {
    runs: Mutex<BTreeMap<String, usize>>,
    pub changed: Notify,
    lines: broadcast::Sender<LogLines>,
}

impl Default for Followed {
    fn default() -> Self {
        let (lines, _) = broadcast::channel(LINES_KEPT);
        Self { runs: Mutex::default(), changed: Notify::new(), lines }
    }
}

impl Followed {
    pub fn names(&self) -> Vec<String> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    pub fn tell(&self, lines: LogLines) {
        // Nobody follows: nobody misses it.
        let _unheard = self.lines.send(lines);
    }

    pub fn follow(self: &Arc<Self>, run: &str) -> Following {
        *self.runs.lock().unwrap_or_else(PoisonError::into_inner).entry(run.to_owned()).or_default() += 1;
        self.changed.notify_one();
        Following { run: run.to_owned(), lines: self.lines.subscribe(), followed: Arc::clone(self) }
    }

    fn leave(&self, run: &str) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = runs.get_mut(run) {
            *count -= 1;
            if *count == 0 {
                runs.remove(run);
                self.changed.notify_one();
            }
        }
    }
}

/// Somebody who follows a run, until this is dropped.
#[derive(Debug)]
pub struct Following {
    run: String,
    lines: broadcast::Receiver<LogLines>,
    followed: Arc<Followed>,
}

impl Following {
    /// The next lines; `None`: some were missed, the store has them.
    pub async fn next(&mut self) -> Option<LogLines> {
        loop {
            match self.lines.recv().await {
                Ok(lines) if lines.run == self.run => return Some(lines),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {
                    return None;
                }
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.followed.leave(&self.run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_follows_hears_its_run_and_is_told_of_gaps() {
        let followed = Arc::new(Followed::default());
        let lines = |run: &str, seq| LogLines { run: run.into(), seq, text: "{}\n".into() };
        let (mut one, two) = (followed.follow("a"), followed.follow("a"));
        assert_eq!(followed.names(), ["a"]);
        followed.tell(lines("b", 1));
        followed.tell(lines("a", 1));
        assert_eq!(one.next().await, Some(lines("a", 1)));
        for seq in 0..=LINES_KEPT {
            followed.tell(lines("a", seq as i64));
        }
        assert_eq!(one.next().await, None, "it was too slow");
        drop(one);
        assert_eq!(followed.names(), ["a"]);
        drop(two);
        assert_eq!(followed.names(), Vec::<String>::new());
    }

    #[test]
    fn priorities_have_topics() {
        assert_eq!([0, 1, 2].map(Topic::runs), [Topic::RunsHigh, Topic::Runs, Topic::RunsLow]);
    }

    #[test]
    fn topic_names_read_back() {
        for topic in Topic::ALL {
            assert_eq!(Topic::named(topic.name()), Some(topic));
        }
        assert_eq!(Topic::named("anything else"), None);
    }

    #[test]
    fn urgent_runs_are_told_first_and_everything_once() {
        let pending = Pending::default();
        for topic in [Topic::Logs, Topic::RunsLow, Topic::Runs, Topic::RunsHigh, Topic::Runs] {
            pending.add(topic);
        }
        let told: Vec<Topic> = std::iter::from_fn(|| pending.take()).collect();
        assert_eq!(told, [Topic::RunsHigh, Topic::Runs, Topic::RunsLow, Topic::Logs]);
    }
}
