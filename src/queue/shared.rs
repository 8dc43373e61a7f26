//! Wake-ups that other processes hear, too, whatever carries them (`redis`, `postgres`).

use super::local::LocalWakeup;
use super::{Following, LogLines, Pending, Topic, Wakeup};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Lines that may wait for being told; more are dropped, because their readers look by themselves.
const BACKLOG: usize = 256;

/// Local wake-ups, and two tasks: one tells others, one hears them.
#[derive(Debug)]
pub struct SharedWakeup {
    local: Arc<LocalWakeup>,
    pending: Arc<Pending>,
    publish: mpsc::Sender<LogLines>,
    #[expect(dead_code, reason = "held for their drop: the tasks end with this")]
    tasks: [AbortOnDropHandle<()>; 2],
}

impl SharedWakeup {
    /// `tell` passes on what is pending and lines, topics first; `listen` wakes the waiters of this process.
    pub(super) fn start<T, L>(
        tell: impl FnOnce(Arc<Pending>, mpsc::Receiver<LogLines>) -> T,
        listen: impl FnOnce(Arc<LocalWakeup>) -> L,
    ) -> Self
    where
        T: Future<Output = ()> + Send + 'static,
        L: Future<Output = ()> + Send + 'static,
    {
        let (local, pending) = (Arc::new(LocalWakeup::default()), Arc::new(Pending::default()));
        let (publish, lines) = mpsc::channel(BACKLOG);
        let tasks = [
            AbortOnDropHandle::new(tokio::spawn(tell(Arc::clone(&pending), lines))),
            AbortOnDropHandle::new(tokio::spawn(listen(Arc::clone(&local)))),
        ];
        Self { local, pending, publish, tasks }
    }
}

#[async_trait]
impl Wakeup for SharedWakeup {
    fn notify(&self, topic: Topic) {
        self.local.notify(topic);
        self.pending.add(topic);
    }

    async fn wait(&self, topic: Topic, at_most: Duration) {
        self.local.wait(topic, at_most).await;
    }

    fn lines(&self, lines: LogLines) {
        self.local.lines(lines.clone());
        // Full or closed: readers look by themselves soon enough.
        let _dropped = self.publish.try_send(lines);
    }

    fn follow(&self, run: &str) -> Following {
        self.local.follow(run)
    }
}
