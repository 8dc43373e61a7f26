//! Wake-ups: hints that say "look now". Losing one costs latency, never a run.

pub mod local;
pub mod redis;

use async_trait::async_trait;
use std::fmt::Debug;
use std::time::Duration;

/// What there may be something new of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A delivery was stored.
    Inbox,
    /// A run may be due.
    Runs,
    /// An effect may be due.
    Effects,
    /// Log lines were stored.
    Logs,
}

impl Topic {
    pub const ALL: [Topic; 4] = [Topic::Inbox, Topic::Runs, Topic::Effects, Topic::Logs];
}

#[async_trait]
pub trait Wakeup: Send + Sync + Debug {
    fn notify(&self, topic: Topic);

    /// Returns at a notification that came after the last `wait` of this topic returned, or after `at_most`.
    async fn wait(&self, topic: Topic, at_most: Duration);
}
