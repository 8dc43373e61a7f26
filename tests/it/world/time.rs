//! Time and chance under the test's control.

use chrono::{DateTime, TimeZone, Utc};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use zeblit::clock::{Clock, IdKind, Ids};

/// A clock that moves only when told to, or with real time from there on.
#[derive(Debug)]
pub struct SimClock {
    now: Mutex<DateTime<Utc>>,
    follows: OnceLock<Instant>,
}

impl Default for SimClock {
    fn default() -> Self {
        let start = Utc.with_ymd_and_hms(2026, 1, 5, 9, 0, 0).unwrap();
        Self { now: Mutex::new(start), follows: OnceLock::new() }
    }
}

impl SimClock {
    pub fn advance(&self, by: chrono::Duration) {
        *self.now.lock().unwrap() += by;
    }

    pub fn advance_to(&self, time: DateTime<Utc>) {
        let passed = self.passed();
        let mut now = self.now.lock().unwrap();
        *now = (*now).max(time - passed);
    }

    /// From now on real time passes too, besides the jumps.
    pub fn follow_real_time(&self) {
        self.follows.get_or_init(Instant::now);
    }

    fn passed(&self) -> chrono::Duration {
        let passed = self.follows.get().map(Instant::elapsed).unwrap_or_default();
        // Whole milliseconds, as the system's clock has them: what the database keeps.
        chrono::Duration::milliseconds(i64::try_from(passed.as_millis()).unwrap())
    }
}

impl Clock for SimClock {
    fn now(&self) -> DateTime<Utc> {
        let now = *self.now.lock().unwrap() + self.passed();
        // Whole milliseconds, as the real clock: what the database keeps.
        Utc.timestamp_millis_opt(now.timestamp_millis()).single().unwrap()
    }
}

/// Says whether the process dies now.
type Death = Box<dyn FnMut() -> bool + Send>;

/// The clock as one process sees it: when a test says so, the process dies where it looks at it.
pub struct ProcessClock {
    pub clock: Arc<SimClock>,
    death: Mutex<Option<Death>>,
}

impl std::fmt::Debug for ProcessClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessClock").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl ProcessClock {
    pub fn new(clock: Arc<SimClock>) -> Self {
        Self { clock, death: Mutex::default() }
    }

    /// The process dies at the first look at the clock at which `now` is true.
    pub fn dies_when(&self, now: impl FnMut() -> bool + Send + 'static) {
        *self.death.lock().unwrap() = Some(Box::new(now));
    }

    /// It dies no more.
    pub fn lives(&self) {
        *self.death.lock().unwrap() = None;
    }
}

impl Clock for ProcessClock {
    fn now(&self) -> DateTime<Utc> {
        let dies = {
            let mut death = self.death.lock().unwrap();
            let dies = death.as_mut().is_some_and(|now| now());
            if dies {
                *death = None;
            }
            dies
        };
        assert!(!dies, "the process dies here, as the test asked");
        self.clock.now()
    }
}

/// `run_0001`, `run_0002`, …: counted per kind, so that snapshots need no redaction.
#[derive(Debug, Default)]
pub struct CountedIds {
    counts: Mutex<HashMap<&'static str, u32>>,
    /// Part of every slot: containers of worlds that share an engine need different names.
    slots: OnceLock<String>,
}

impl CountedIds {
    pub fn name_slots(&self, instance: &str) {
        self.slots.get_or_init(|| instance.to_owned());
    }
}

impl Ids for CountedIds {
    fn next(&self, kind: IdKind) -> String {
        let name = match kind {
            IdKind::Inbox => "inb",
            IdKind::Task => "tsk",
            IdKind::Run => "run",
            IdKind::Slot => "slt",
            IdKind::Effect => "eff",
            IdKind::Request => "req",
            IdKind::Token => "tok",
            IdKind::Boot => "bot",
        };
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry(name).or_default();
        *count += 1;
        match (name, self.slots.get()) {
            ("slt", Some(instance)) => format!("{name}_{instance}_{count:04}"),
            _ => format!("{name}_{count:04}"),
        }
    }
}
