//! Purpose: what is removed from the store, and when: leftovers late and in batches, seeds and mirrors by their last use.
//!
//! Nothing that a run's folder names is ever touched, nor anything through a mount. A file system punishes creating many
//! files soon after deleting many: what is not needed any more is moved aside at once and deleted when it has rested.

use super::mirror;
use super::overlay;
use super::seed::{self, Record};
use super::workspace::{Source, io_error};
use super::{Git, GitError, Held, TemporaryFolder, folder_name, image, touch};
use crate::domain::ids::RunId;
use crate::telemetry;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// What was moved aside rests for so long, unless the disk is short.
const TRASH_REST: Duration = Duration::from_secs(600);
/// Deleting in one pass ends after this.
const DELETE_LIMIT: Duration = Duration::from_millis(500);
/// Seeds that nobody used for so long go, and what a crash left half made.
const SEED_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A seed or mirror that was used since then stays whatever the budget says: a run may be about to name it.
const SEED_REST: Duration = Duration::from_secs(600);
const MIRROR_REST: Duration = Duration::from_secs(3600);
/// Refs that keep pinned commits are dropped after this; their objects stay.
const KEEP_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// The disk is short when less than this part of it is free.
const SHORT_PART: u64 = 20;
/// However large the disk is, so much is enough (bytes).
const ENOUGH_FREE: u64 = 8 << 30;

/// Moves a folder of ours to where it is deleted later.
pub(super) fn move_aside(git: &Git, folder: &Path, name: &str) -> Result<PathBuf, GitError> {
    let operation = "move a folder aside";
    // It rests from now on.
    touch(folder)?;
    let trash = git.root.join("trash");
    for _ in 0..super::NAME_TRIES {
        let aside = git.fresh_name(&trash, &format!("{name}-"));
        // An earlier process may have had this number, and left something of that name.
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        std::fs::rename(folder, &aside).map_err(io_error(operation, folder))?;
        return Ok(aside);
    }
    let detail = format!("{} holds too much", trash.display());
    Err(GitError::Failed { operation, detail })
}

/// See `Git::known_runs`.
pub(super) fn known_runs(git: &Git) -> Vec<RunId> {
    let folders = entries(&git.root.join("runs")).into_iter().filter(|path| !hidden(path));
    let names: BTreeSet<String> = folders
        .map(|path| name_of(&path))
        .chain(
            entries(&git.root.join(super::IMAGES))
                .iter()
                .filter_map(|path| name_of(path).strip_suffix(".img").map(str::to_owned)),
        )
        .collect();
    names.into_iter().map(RunId::new).collect()
}

/// A seed or a mirror, as the sweeper sees it.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    /// `seed` or `mirror`.
    what: &'static str,
    remote: String,
    repo: String,
    used: SystemTime,
    bytes: u64,
    in_use: bool,
}

/// One pass.
struct Pass<'a> {
    git: &'a Git,
    now: SystemTime,
    first: Option<GitError>,
}

/// See `Git::sweep`. Goes on after a problem and tells the first one at the end.
pub(super) fn sweep(git: &Git, live: &[RunId]) -> Result<(), GitError> {
    let mut pass = Pass { git, now: file_system_time(git)?, first: None };
    pass.half_made();
    for run in live.iter().filter_map(|run| folder_name("sweep the Git store", run.as_str()).ok()) {
        pass.note(mount_again(git, run));
    }
    let kept = pass.kept();
    let is_short = pass.evict(kept);
    pass.trash(is_short);
    pass.forget_pins();
    pass.first.map_or(Ok(()), Err)
}

/// What a restart of the machine unmounted of a live run.
fn mount_again(git: &Git, run: &str) -> Result<(), GitError> {
    image::mount_again(git, run)?;
    let folder = git.root.join("runs").join(run);
    Source::read(&folder).map_or(Ok(()), |source| source.mount_again(&folder))
}

impl Pass<'_> {
    fn note(&mut self, done: Result<(), GitError>) {
        if let Err(error) = done {
            self.first.get_or_insert(error);
        }
    }

    fn age(&self, path: &Path) -> Option<Duration> {
        let changed = path.symlink_metadata().and_then(|found| found.modified()).ok()?;
        Some(self.now.duration_since(changed).unwrap_or_default())
    }

    fn is_old(&self, path: &Path, life: Duration) -> bool {
        self.age(path).is_some_and(|age| age > life)
    }

    /// What a crash left half made. Below `runs` there are whole runs only, which are for `discard`.
    fn half_made(&mut self) {
        let mut old: Vec<PathBuf> = entries(&self.git.root.join("tmp"));
        for parent in ["mirrors", "seeds"] {
            let repositories =
                entries(&self.git.root.join(parent)).into_iter().flat_map(|remote| entries(&remote));
            old.extend(repositories.flat_map(|path| match parent {
                "seeds" => entries(&path),
                _ => vec![path],
            }));
            old.retain(|path| hidden(path) || path.starts_with(self.git.root.join("tmp")));
        }
        for path in old.into_iter().filter(|path| self.is_old(path, SEED_LIFE)).collect::<Vec<_>>() {
            self.note(remove_tree(&path));
        }
    }

    /// Every seed and mirror, with those that a run's folder names marked.
    fn kept(&self) -> Vec<Kept> {
        let mut used = BTreeSet::new();
        for run in entries(&self.git.root.join("runs")) {
            let Some(source) = Source::read(&run) else { continue };
            used.insert(source.mirror);
            used.extend(source.seed);
        }
        let mut kept = Vec::new();
        for remote in entries(&self.git.root.join("seeds")) {
            for repo in entries(&remote) {
                let seeds = entries(&repo).into_iter().filter(|path| !hidden(path) && is_folder(path));
                kept.extend(seeds.map(|path| self.one(path, "seed", &remote, name_of(&repo), &used)));
            }
        }
        for remote in entries(&self.git.root.join("mirrors")) {
            let mirrors = entries(&remote).into_iter().filter(|path| !hidden(path) && is_folder(path));
            kept.extend(mirrors.map(|path| {
                let repo = name_of(&path).trim_end_matches(".git").to_owned();
                self.one(path, "mirror", &remote, repo, &used)
            }));
        }
        kept.sort_by_key(|one| one.used);
        kept
    }

    fn one(
        &self,
        path: PathBuf,
        what: &'static str,
        remote: &Path,
        repo: String,
        used: &BTreeSet<PathBuf>,
    ) -> Kept {
        let record = Record::read(&path).unwrap_or_else(|| {
            // Of an earlier version, or a crash came between: measured once.
            let record = Record { bytes: seed::size_of(&path), boot: String::new() };
            if let Err(error) = record.write(&path) {
                tracing::warn!(path = %path.display(), error = %error, "the size of a folder cannot be noted");
            }
            record
        });
        let last = Record::path(&path).metadata().and_then(|found| found.modified());
        Kept {
            in_use: used.contains(&path),
            what,
            remote: name_of(remote),
            repo,
            used: last.unwrap_or(self.now),
            bytes: record.bytes,
            path,
        }
    }

    fn idle(&self, one: &Kept) -> Duration {
        self.now.duration_since(one.used).unwrap_or_default()
    }

    /// Removes what nobody used for long, and the least recently used until the budget holds and the disk is not short;
    /// seeds first. Gives whether that was not enough, or would be only after deleting what was moved aside.
    fn evict(&mut self, kept: Vec<Kept>) -> bool {
        let mut total: u64 = kept.iter().map(|one| one.bytes).sum();
        let budget = self.git.cache.bytes.unwrap_or(u64::MAX);
        let missing = missing_room(&self.git.root);
        let mut over = total.saturating_sub(budget).max(missing);
        let is_short = over > 0;
        let (seeds, mirrors): (Vec<Kept>, Vec<Kept>) = kept.into_iter().partition(|one| one.what == "seed");
        for one in seeds {
            let idle = self.idle(&one);
            if one.in_use || idle <= SEED_REST || !(idle > SEED_LIFE || over > 0) {
                continue;
            }
            if self.evict_one(&one) {
                over = over.saturating_sub(one.bytes);
                total = total.saturating_sub(one.bytes);
            }
        }
        for one in mirrors {
            if one.in_use || over == 0 || self.idle(&one) <= MIRROR_REST {
                continue;
            }
            if self.evict_one(&one) {
                over = over.saturating_sub(one.bytes);
                total = total.saturating_sub(one.bytes);
            }
        }
        metrics::gauge!(telemetry::GIT_CACHE_BYTES).set(total as f64);
        is_short
    }

    /// Under its lock, and only while it is still as the pass has seen it.
    fn evict_one(&mut self, one: &Kept) -> bool {
        let lock = match one.what {
            "seed" => seed::lock_name(&one.remote, &one.repo),
            _ => mirror::lock_name(&one.remote, &one.repo),
        };
        let removed = self.git.try_lock(&lock).and_then(|held| match held {
            Some(held) => self.remove(one, &held),
            None => Ok(false),
        });
        let is_removed = matches!(removed, Ok(true));
        self.note(removed.map(drop));
        if is_removed {
            tracing::info!(
                what = one.what,
                path = %one.path.display(),
                size_mib = one.bytes >> 20,
                idle_seconds = self.idle(one).as_secs(),
                "removed from the cache"
            );
            metrics::counter!(telemetry::GIT_EVICTIONS, "what" => one.what).increment(1);
        }
        is_removed
    }

    fn remove(&self, one: &Kept, _held: &Held) -> Result<bool, GitError> {
        let record = Record::path(&one.path);
        let is_as_seen =
            || record.metadata().and_then(|found| found.modified()).is_ok_and(|used| used == one.used);
        if !is_as_seen() {
            return Ok(false);
        }
        let aside = move_aside(self.git, &one.path, one.what)?;
        // Who finds a mirror that holds what it wants takes no lock, but has said before that it is used.
        if !is_as_seen() {
            std::fs::rename(&aside, &one.path).map_err(io_error("put a folder back", &one.path))?;
            return Ok(false);
        }
        std::fs::remove_file(&record).map_err(io_error("remove from the cache", &record))?;
        Ok(true)
    }

    /// Deletes what was moved aside, the oldest first, for a limited time and while no run is being prepared.
    fn trash(&mut self, is_short: bool) {
        let mut rested: Vec<(Duration, PathBuf)> = entries(&self.git.root.join("trash"))
            .into_iter()
            .map(|path| (self.age(&path).unwrap_or_default(), path))
            .filter(|(age, _)| is_short || *age > TRASH_REST)
            .collect();
        rested.sort_by(|a, b| b.cmp(a));
        let begun = Instant::now();
        for (_, path) in rested {
            if begun.elapsed() > DELETE_LIMIT || (self.git.is_preparing() && !is_short) {
                break;
            }
            self.note(remove_tree(&path));
        }
    }

    /// Refs of commits that were pinned long ago.
    fn forget_pins(&mut self) {
        for mirror in entries(&self.git.root.join("mirrors")).iter().flat_map(|remote| entries(remote)) {
            for kept in entries(&mirror.join(mirror::KEEP)) {
                if self.is_old(&kept, KEEP_LIFE) {
                    self.note(std::fs::remove_file(&kept).map_err(io_error("forget a commit", &kept)));
                }
            }
        }
    }
}

/// Bytes that the disk of the store lacks until it is not short any more.
fn missing_room(root: &Path) -> u64 {
    let Ok(found) = rustix::fs::statvfs(root) else { return 0 };
    let (total, free) =
        (found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize));
    (total / SHORT_PART).min(ENOUGH_FREE).saturating_sub(free)
}

fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn hidden(path: &Path) -> bool {
    name_of(path).starts_with('.')
}

/// What a folder holds; nothing when it is not there.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The time by the clock that stamps files, which is the one that their ages are measured with.
fn file_system_time(git: &Git) -> Result<SystemTime, GitError> {
    let operation = "read the file system's time";
    let probe = TemporaryFolder(git.fresh_folder(&git.root.join("tmp"), "now-")?);
    let found = probe.0.metadata().and_then(|found| found.modified());
    found.map_err(io_error(operation, &probe.0))
}

/// Deletes a tree that an agent may have filled: links are not followed, closed folders are opened, and nothing is
/// deleted through a mount.
fn remove_tree(path: &Path) -> Result<(), GitError> {
    let operation = "delete a folder";
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if seed::gone(&error) => return Ok(()),
        Err(error) => return Err(io_error(operation, path)(error)),
    };
    if !found.is_dir() {
        return std::fs::remove_file(path).map_err(io_error(operation, path));
    }
    overlay::unmount_below(path)?;
    match std::fs::remove_dir_all(path) {
        Ok(()) => return Ok(()),
        Err(error) if seed::gone(&error) => return Ok(()),
        Err(_) => {}
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let _ = std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700));
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    std::fs::remove_dir_all(path).map_err(io_error(operation, path))
}
