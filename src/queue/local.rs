//! Wake-ups and fan-out inside one process.

use super::{Followed, Following, LogLines, Topic, Wakeup};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// One `Notify` for each kind of waiter. `Logs` wakes every waiter, the others one.
#[derive(Debug, Default)]
pub struct LocalWakeup {
    inbox: Notify,
    runs: Notify,
    effects: Notify,
    logs: Notify,
    pub(super) followed: Arc<Followed>,
}

impl LocalWakeup {
    fn of(&self, topic: Topic) -> &Notify {
        match topic {
            Topic::Inbox => &self.inbox,
            Topic::RunsHigh | Topic::Runs | Topic::RunsLow => &self.runs,
            Topic::Effects => &self.effects,
            Topic::Logs => &self.logs,
        }
    }
}

#[async_trait]
impl Wakeup for LocalWakeup {
    fn notify(&self, topic: Topic) {
        if topic == Topic::Logs {
            self.of(topic).notify_waiters();
        } else {
            self.of(topic).notify_one();
        }
    }

    async fn wait(&self, topic: Topic, at_most: Duration) {
        // An elapsed wait is as good as a notification: the caller looks either way.
        let _elapsed = tokio::time::timeout(at_most, self.of(topic).notified()).await;
    }

    fn lines(&self, lines: LogLines) {
        self.followed.tell(lines);
    }

    fn follow(&self, run: &str) -> Following {
        self.followed.follow(run)
    }
}
