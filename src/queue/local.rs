//! Wake-ups inside one process.

use super::{Topic, Wakeup};
use async_trait::async_trait;
use std::time::Duration;
use tokio::sync::Notify;

/// One `Notify` a topic. `Logs` wakes every waiter, the others one.
#[derive(Debug, Default)]
pub struct LocalWakeup {
    inbox: Notify,
    runs: Notify,
    effects: Notify,
    logs: Notify,
}

impl LocalWakeup {
    fn of(&self, topic: Topic) -> &Notify {
        match topic {
            Topic::Inbox => &self.inbox,
            Topic::Runs => &self.runs,
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
}
