//! What a running agent uses: its disk measured often and the rest every few seconds, kept as samples, and held against
//! the limits that the container engine does not enforce: disk, files, silence.

use super::EngineError;
use crate::app::App;
use crate::domain::ids::RunId;
use crate::domain::run::{AgentEnd, Attempt, FailureClass, Load, Run};
use crate::domain::wording;
use crate::git::DiskUse;
use crate::store;
use crate::store::samples::Sample;
use chrono::{DateTime, Duration, Utc};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Between two looks at one run's processor and memory.
const LOOK_EVERY: Duration = Duration::seconds(5);
/// The first look comes so soon: short runs have a peak, too.
const FIRST_LOOK: Duration = Duration::seconds(2);
/// Between two looks at one run's disk, at least and at most.
const DISK_SOONEST: Duration = Duration::milliseconds(500);
const DISK_LATEST: Duration = Duration::seconds(5);
/// Measuring takes at most one part in so many of the time, unless the limit is near.
const DISK_SHARE: i32 = 20;
/// At its present growth, so many looks take place before a run reaches its limit.
const DISK_LOOKS_AHEAD: i64 = 4;
/// Samples of one run that are stored, at most; longer runs have them further apart.
pub const MAX_SAMPLES: i64 = 240;

/// What this process knows of the runs it looks at. Lost in a crash: then the clocks start again.
#[derive(Debug, Default)]
pub struct Loads {
    runs: Mutex<HashMap<RunId, Watched>>,
}

#[derive(Debug, Clone, Copy)]
struct Watched {
    /// The last sign of life: output, or a request to a model.
    active_at: DateTime<Utc>,
    next_look: DateTime<Utc>,
    next_sample: DateTime<Utc>,
    next_disk: DateTime<Utc>,
    /// When the disk was measured last, and its bytes.
    disk: Option<(DateTime<Utc>, i64)>,
    /// When the processor time was read last, and its nanoseconds.
    cpu: Option<(DateTime<Utc>, u64)>,
}

impl Loads {
    fn with<T>(&self, run: &RunId, now: DateTime<Utc>, look: impl FnOnce(&mut Watched) -> T) -> T {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        look(runs.entry(run.clone()).or_insert(Watched {
            active_at: now,
            next_look: now + FIRST_LOOK,
            next_sample: now,
            next_disk: now + DISK_SOONEST,
            disk: None,
            cpu: None,
        }))
    }

    /// The agent said something.
    pub fn touch(&self, run: &RunId, now: DateTime<Utc>) {
        self.with(run, now, |watched| watched.active_at = now);
    }

    pub fn forget(&self, run: &RunId) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(run);
    }
}

/// Looks at a running agent when it is time for it. Gives how it ends when it is over a limit.
pub async fn watch(app: &App, run: &mut Run, attempt: &Attempt) -> Result<Option<AgentEnd>, EngineError> {
    let now = app.clock.now();
    let (look_due, disk_due) = app.loads.with(&run.id, now, |watched| {
        let look_due = now >= watched.next_look;
        if look_due {
            watched.next_look = now + LOOK_EVERY;
        }
        (look_due, look_due || now >= watched.next_disk)
    });
    if disk_due {
        let limits = &app.config.sandbox;
        let disk_limit = limits.disk_mib.saturating_mul(1 << 20);
        let begun = Instant::now();
        let disk = app.git.disk_use(&run.id, disk_limit, limits.disk_files).await?;
        let took = Duration::from_std(begun.elapsed()).unwrap_or(DISK_LATEST);
        app.loads.with(&run.id, now, |watched| {
            watched.next_disk = now + until_next_disk(took, watched.disk, (now, disk.bytes), disk_limit);
            watched.disk = Some((now, disk.bytes));
        });
        if let Some(detail) = over_disk(&disk, disk_limit, limits.disk_files) {
            return Ok(Some(AgentEnd::Failed { class: FailureClass::Disk, detail }));
        }
    }
    if !look_due {
        return Ok(None);
    }
    // Without an answer of the engine there is no sample; whether it is gone shows when it is polled.
    if let Ok(Some(used)) = app.sandbox.usage(&attempt.slot).await {
        let load = app.loads.with(&run.id, now, |watched| {
            let millicpus = watched.cpu.map_or(0, |before| millicpus(before, (now, used.cpu_nanos)));
            watched.cpu = Some((now, used.cpu_nanos));
            let disk_bytes = watched.disk.map_or(0, |(_, bytes)| bytes);
            Load { millicpus, memory_bytes: used.memory_bytes, disk_bytes }
        });
        keep(app, run, load, now).await?;
    }
    silent(app, run, now).await
}

/// How long the disk is left alone: by what a look costs, and sooner when the limit is reached soon.
fn until_next_disk(
    took: Duration,
    before: Option<(DateTime<Utc>, i64)>,
    (now, bytes): (DateTime<Utc>, i64),
    limit: i64,
) -> Duration {
    let usual = (took * DISK_SHARE).clamp(DISK_SOONEST, DISK_LATEST);
    let Some((then, before)) = before else { return usual };
    let grown = bytes.saturating_sub(before);
    if grown <= 0 {
        return usual;
    }
    let elapsed = (now - then).num_milliseconds().max(1);
    let left = limit.saturating_sub(bytes).max(0);
    let reached_in = i64::try_from(i128::from(left) * i128::from(elapsed) / i128::from(grown));
    let looks =
        Duration::milliseconds(reached_in.unwrap_or(i64::MAX / 1000).min(i64::MAX / 1000) / DISK_LOOKS_AHEAD);
    looks.clamp(DISK_SOONEST, usual)
}

/// Thousandths of a processor between two readings of its time.
fn millicpus(before: (DateTime<Utc>, u64), after: (DateTime<Utc>, u64)) -> i64 {
    let wall = (after.0 - before.0).num_nanoseconds().unwrap_or(i64::MAX).max(1);
    let used = i64::try_from(after.1.saturating_sub(before.1)).unwrap_or(i64::MAX);
    used.saturating_mul(1000) / wall
}

async fn keep(app: &App, run: &mut Run, load: Load, now: DateTime<Utc>) -> Result<(), EngineError> {
    let peak = run.progress.peak.unwrap_or_default();
    run.progress.peak = Some(Load {
        millicpus: peak.millicpus.max(load.millicpus),
        memory_bytes: peak.memory_bytes.max(load.memory_bytes),
        disk_bytes: peak.disk_bytes.max(load.disk_bytes),
    });
    let apart = Duration::seconds((run.spec.wall_seconds / MAX_SAMPLES).max(LOOK_EVERY.num_seconds()));
    let store_it = app.loads.with(&run.id, now, |watched| {
        let due = now >= watched.next_sample;
        if due {
            watched.next_sample = now + apart;
        }
        due
    });
    let mut tx = app.store.write_tx().await?;
    if store_it {
        store::samples::insert(&mut tx, &run.id, &Sample { at: now, load }).await?;
    }
    store::runs::save_progress(&mut tx, run).await?;
    tx.commit().await?;
    Ok(())
}

fn over_disk(disk: &DiskUse, bytes: i64, files: i64) -> Option<String> {
    if disk.full && disk.files <= files {
        return Some(wording::disk_is_full(bytes));
    }
    if disk.bytes > bytes {
        return Some(wording::over_disk(disk.bytes, bytes));
    }
    if disk.too_deep {
        return Some(wording::too_deep());
    }
    (disk.full || disk.files > files).then(|| wording::over_files(files))
}

async fn silent(app: &App, run: &Run, now: DateTime<Utc>) -> Result<Option<AgentEnd>, EngineError> {
    let limit = Duration::minutes(app.config.sandbox.idle_minutes);
    let active = app.loads.with(&run.id, now, |watched| watched.active_at);
    if now - active < limit {
        return Ok(None);
    }
    // It may be thinking: a request to the model is a sign of life.
    if let Some(asked) = store::ledger::last_request(&app.store, &run.id).await?
        && now - asked < limit
    {
        return Ok(None);
    }
    let detail = wording::idle(app.config.sandbox.idle_minutes);
    Ok(Some(AgentEnd::Failed { class: FailureClass::Timeout, detail }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_becomes_a_rate() {
        let at = |seconds: i64| DateTime::from_timestamp(seconds, 0).unwrap();
        assert_eq!(millicpus((at(0), 1_000_000_000), (at(2), 4_000_000_000)), 1500);
        assert_eq!(millicpus((at(0), 5), (at(0), 5)), 0);
        assert_eq!(millicpus((at(0), 5), (at(1), 0)), 0, "a counter that went back");
    }

    #[test]
    fn the_limits_of_the_disk_are_named() {
        let used = |bytes, files, too_deep| DiskUse { bytes, files, too_deep, full: false };
        assert_eq!(over_disk(&used(10, 10, false), 10, 10), None);
        assert!(over_disk(&used(11 << 20, 1, false), 10 << 20, 10).unwrap().contains("limit of 10 MiB"));
        assert!(over_disk(&used(1, 11, false), 10, 10).unwrap().contains("more than 10 files"));
        assert!(over_disk(&used(1, 1, true), 10, 10).unwrap().contains("deep"));
        let full = |bytes, files| DiskUse { bytes, files, too_deep: false, full: true };
        assert!(over_disk(&full(9 << 20, 3), 10 << 20, 10).unwrap().contains("disk of 10 MiB is full"));
        assert!(over_disk(&full(1 << 20, 11), 10 << 20, 10).unwrap().contains("more than 10 files"));
    }

    #[test]
    fn the_disk_is_looked_at_sooner_the_faster_it_grows() {
        let at = |millis: i64| DateTime::from_timestamp_millis(millis).unwrap();
        let next = |took: i64, before: Option<(i64, i64)>, now: (i64, i64)| {
            let before = before.map(|(millis, bytes)| (at(millis), bytes));
            until_next_disk(Duration::milliseconds(took), before, (at(now.0), now.1), 1000).num_milliseconds()
        };
        assert_eq!(next(0, None, (0, 0)), 500, "small folders: often");
        assert_eq!(next(100, None, (0, 0)), 2000, "large folders: as often as it costs little");
        assert_eq!(next(9000, None, (0, 0)), 5000, "never seldom");
        assert_eq!(next(9000, Some((0, 500)), (1000, 500)), 5000, "nothing grows");
        // 100 a second, 400 left: four looks before it is reached.
        assert_eq!(next(9000, Some((0, 500)), (1000, 600)), 1000);
        assert_eq!(next(9000, Some((0, 0)), (1000, 900)), 500);
        assert_eq!(next(9000, Some((0, 0)), (1000, i64::MAX)), 500);
        assert_eq!(next(9000, Some((0, 0)), (1000, 1)), 5000);
    }
}
