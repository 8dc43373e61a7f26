//! Time and chance, as parameters: the only use of the system clock and of randomness for ids.

use chrono::{DateTime, TimeZone, Utc};
use std::fmt::Debug;

/// What an id is for; tests number each kind on its own (`run_0001`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdKind {
    Inbox,
    Task,
    Run,
    Slot,
    Effect,
    Request,
    Token,
    Boot,
}

pub trait Clock: Send + Sync + Debug {
    /// In whole milliseconds: what was stored and read back is equal.
    fn now(&self) -> DateTime<Utc>;
}

pub trait Ids: Send + Sync + Debug {
    /// A new id: unique for ever, sortable by time of creation.
    fn next(&self, kind: IdKind) -> String;
}

#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        // Whole milliseconds: what the database keeps.
        let now = Utc::now();
        Utc.timestamp_millis_opt(now.timestamp_millis()).single().unwrap_or(now)
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl Ids for RandomIds {
    fn next(&self, _kind: IdKind) -> String {
        uuid::Uuid::now_v7().simple().to_string()
    }
}
