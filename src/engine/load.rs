//! What a running agent uses: looked at every few seconds, kept as samples, and held against the limits that
//! the container engine does not enforce: disk, files, silence.

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

/// Between two looks at one run.
const LOOK_EVERY: Duration = Duration::seconds(5);
/// The first look comes so soon: short runs have a peak, too.
const FIRST_LOOK: Duration = Duration::seconds(2);
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
    let due = app.loads.with(&run.id, now, |watched| {
        let due = now >= watched.next_look;
        if due {
            watched.next_look = now + LOOK_EVERY;
        }
        due
    });
    if !due {
        return Ok(None);
    }
    let limits = &app.config.sandbox;
    let disk_limit = limits.disk_mib.saturating_mul(1 << 20);
    let disk = app.git.disk_use(&run.id, disk_limit, limits.disk_files).await?;
    // Without an answer of the engine there is no sample; whether it is gone shows when it is polled.
    if let Ok(Some(used)) = app.sandbox.usage(&attempt.slot).await {
        let load = app.loads.with(&run.id, now, |watched| {
            let millicpus = watched.cpu.map_or(0, |before| millicpus(before, (now, used.cpu_nanos)));
            watched.cpu = Some((now, used.cpu_nanos));
            Load { millicpus, memory_bytes: used.memory_bytes, disk_bytes: disk.bytes }
        });
        keep(app, run, load, now).await?;
    }
    if let Some(detail) = over_disk(&disk, disk_limit, limits.disk_files) {
        return Ok(Some(AgentEnd::Failed { class: FailureClass::Disk, detail }));
    }
    silent(app, run, now).await
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
    if disk.bytes > bytes {
        return Some(wording::over_disk(disk.bytes, bytes));
    }
    if disk.too_deep {
        return Some(wording::too_deep());
    }
    (disk.files > files).then(|| wording::over_files(files))
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
        let used = |bytes, files, too_deep| DiskUse { bytes, files, too_deep };
        assert_eq!(over_disk(&used(10, 10, false), 10, 10), None);
        assert!(over_disk(&used(11 << 20, 1, false), 10 << 20, 10).unwrap().contains("limit of 10 MiB"));
        assert!(over_disk(&used(1, 11, false), 10, 10).unwrap().contains("more than 10 files"));
        assert!(over_disk(&used(1, 1, true), 10, 10).unwrap().contains("deep"));
    }
}
