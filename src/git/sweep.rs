//! Purpose: what is removed from the store, and when: leftovers late and in batches, seeds and mirrors by their last use.
//!
//! Nothing that a run's folder names is ever touched, nor anything through a mount. A file system punishes creating many
//! files soon after deleting many: what is not needed any more is moved aside at once and deleted when it has rested.

use super::mirror::{self, Mirror};
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
    let mut pass = Pass::of(git)?;
    for run in live.iter().filter_map(|run| folder_name("sweep the Git store", run.as_str()).ok()) {
        pass.note(mount_again(git, run));
    }
    pass.trash();
    pass.first.map_or(Ok(()), Err)
}

/// See `Git::tidy`. Gives the mirrors that are in many parts and that no run needs.
pub(super) fn tidy(git: &Git) -> Result<Vec<Mirror>, GitError> {
    let mut pass = Pass::of(git)?;
    pass.half_made();
    pass.forget_pins();
    let kept = pass.kept();
    let scattered = kept
        .iter()
        .filter(|one| one.what == "mirror" && !one.in_use && mirror::is_scattered(&one.path))
        .map(|one| Mirror { path: one.path.clone(), lock: mirror::lock_name(&one.remote, &one.repo) })
        .collect();
    pass.evict(kept);
    pass.first.map_or(Ok(scattered), Err)
}

/// Whether the folder of any run names this mirror.
pub(super) fn is_in_use(git: &Git, mirror: &Path) -> bool {
    let runs = entries(&git.root.join("runs"));
    runs.iter().filter_map(|run| Source::read(run)).any(|source| source.mirror == mirror)
}

/// What a restart of the machine unmounted of a live run.
fn mount_again(git: &Git, run: &str) -> Result<(), GitError> {
    image::mount_again(git, run)?;
    let folder = git.root.join("runs").join(run);
    Source::read(&folder).map_or(Ok(()), |source| source.mount_again(&folder))
}

impl<'a> Pass<'a> {
    fn of(git: &'a Git) -> Result<Self, GitError> {
        Ok(Self { git, now: file_system_time(git)?, first: None })
    }

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
    /// seeds first.
    fn evict(&mut self, kept: Vec<Kept>) {
        let mut total: u64 = kept.iter().map(|one| one.bytes).sum();
        let budget = self.git.cache.bytes.unwrap_or(u64::MAX);
        let mut over = total.saturating_sub(budget).max(missing_room(&self.git.root));
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
    fn trash(&mut self) {
        let is_short = missing_room(&self.git.root) > 0;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::tests::{REMOTE, REPO, World, git as run_git};
    use crate::git::{Cache, SeedSpec, Workspace, WorkspaceSpec};
    use std::os::unix::fs::MetadataExt;

    fn owner(world: &World) -> (u32, u32) {
        let found = world.git.root.metadata().unwrap();
        (found.uid(), found.gid())
    }

    async fn prepare(world: &World, run: &str) -> Workspace {
        let spec = WorkspaceSpec {
            remote: REMOTE,
            repo_id: REPO,
            run: &RunId::new(run),
            start: &world.start,
            base_sha: &world.start,
            masked: &[],
            objects_inside: PathBuf::from("/zeblit/objects"),
            owner: owner(world),
        };
        world.git.prepare(&spec).await.unwrap()
    }

    /// Seeds of the two commits that every world has, the first one used longer ago.
    async fn two_seeds(world: &World) {
        let first =
            crate::domain::ids::Sha::parse(&run_git(&world.person(), &["rev-parse", "HEAD~1"])).unwrap();
        for (start, ago) in [(&first, 5), (&world.start, 4)] {
            let spec = SeedSpec {
                remote: REMOTE,
                repo_id: REPO,
                start,
                objects_inside: PathBuf::from("/zeblit/objects"),
                owner: owner(world),
            };
            world.git.prepare_ahead(&spec).await.unwrap();
            for record in entries(&seeds_folder(world)).iter().filter(|path| path.is_file()) {
                if name_of(record).starts_with(start.as_str()) {
                    age(record, Duration::from_secs(ago * 3600));
                }
            }
        }
    }

    fn seeds_folder(world: &World) -> PathBuf {
        world.git.root.join("seeds").join(REMOTE).join(REPO.to_string())
    }

    /// The commits that have a seed.
    fn seeds(world: &World) -> Vec<String> {
        let folders = entries(&seeds_folder(world)).into_iter().filter(|path| path.is_dir());
        folders.map(|path| name_of(&path).split('-').next().unwrap().to_owned()).collect()
    }

    fn age(path: &Path, by: Duration) {
        let now = path.metadata().unwrap().modified().unwrap();
        std::fs::File::open(path).unwrap().set_modified(now - by).unwrap();
    }

    fn with_cache(world: &World, bytes: u64) -> Git {
        world.git.clone().with_cache(Cache { bytes: Some(bytes) })
    }

    #[tokio::test]
    async fn what_was_discarded_rests_and_is_deleted_then_even_with_closed_folders() {
        let world = World::new().await;
        let made = prepare(&world, "run_1").await;
        std::fs::create_dir_all(made.workspace.join("closed/inner")).unwrap();
        let closed = std::fs::Permissions::from_mode(0o000);
        std::fs::set_permissions(made.workspace.join("closed"), closed).unwrap();
        let outside = world.folder.path().join("outside");
        std::fs::write(&outside, "safe").unwrap();
        std::os::unix::fs::symlink(&outside, made.workspace.join("link")).unwrap();
        let run = RunId::new("run_1");
        world.git.discard(&run).await.unwrap();
        world.git.discard(&run).await.unwrap();
        assert_eq!(world.git.prepared(REMOTE, REPO, &run), None);
        let trash = || entries(&world.git.root.join("trash"));
        world.git.sweep(&[]).await.unwrap();
        assert_eq!(trash().len(), 1, "it rests");
        age(&trash()[0], TRASH_REST + Duration::from_secs(60));
        let preparing = world.git.preparing();
        world.git.sweep(&[]).await.unwrap();
        assert_eq!(trash().len(), 1, "a run is being prepared");
        drop(preparing);
        world.git.sweep(&[]).await.unwrap();
        assert_eq!(trash(), Vec::<PathBuf>::new());
        assert!(outside.is_file());
    }

    #[tokio::test]
    async fn nothing_is_deleted_through_a_mount() {
        let world = World::new().await;
        let target = world.git.root.join("tmp/target");
        let at = world.git.root.join("trash/run_9/inner");
        for folder in [&target, &at] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(target.join("file"), "safe").unwrap();
        if crate::mount::bind(&target, &at, crate::mount::Access::Write).is_err() {
            return; // Only root mounts.
        }
        age(&world.git.root.join("trash/run_9"), TRASH_REST + Duration::from_secs(60));
        world.git.sweep(&[]).await.unwrap();
        assert_eq!(entries(&world.git.root.join("trash")), Vec::<PathBuf>::new());
        assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "safe");
    }

    #[tokio::test]
    async fn the_seed_used_longest_ago_goes_first_and_none_that_a_run_has() {
        let world = World::new().await;
        if world.git.no_overlay().is_some() {
            return; // There are no seeds.
        }
        two_seeds(&world).await;
        let sizes: Vec<u64> = entries(&seeds_folder(&world))
            .iter()
            .filter(|path| path.is_dir())
            .map(|seed| Record::read(seed).unwrap().bytes)
            .collect();
        let mirror = Record::read(&world.git.mirror_path(REMOTE, REPO)).unwrap().bytes;
        let all = sizes.iter().sum::<u64>() + mirror;
        with_cache(&world, all).tidy().await.unwrap();
        assert_eq!(seeds(&world).len(), 2, "both fit");
        with_cache(&world, all - 1).tidy().await.unwrap();
        assert_eq!(seeds(&world), [world.start.as_str()]);
        prepare(&world, "run_1").await;
        for record in entries(&seeds_folder(&world)).iter().filter(|path| path.is_file()) {
            age(record, SEED_LIFE * 2);
        }
        with_cache(&world, 1).tidy().await.unwrap();
        assert_eq!(seeds(&world), [world.start.as_str()], "a run lies on it");
        world.git.discard(&RunId::new("run_1")).await.unwrap();
        world.git.tidy().await.unwrap();
        assert_eq!(seeds(&world), [""; 0], "nobody used it for long");
        prepare(&world, "run_2").await;
        with_cache(&world, 1).tidy().await.unwrap();
        assert_eq!(seeds(&world), [world.start.as_str()], "built again, and used just now");
    }

    #[tokio::test]
    async fn a_mirror_goes_when_seeds_are_not_enough_and_no_run_needs_it() {
        let world = World::new().await;
        let mirror = world.git.mirror_path(REMOTE, REPO);
        let small = with_cache(&world, 1);
        small.tidy().await.unwrap();
        assert!(mirror.is_dir(), "it was used just now");
        prepare(&world, "run_1").await;
        let old = || age(&Record::path(&mirror), MIRROR_REST * 2);
        old();
        small.tidy().await.unwrap();
        assert!(mirror.is_dir(), "a run needs it");
        world.git.discard(&RunId::new("run_1")).await.unwrap();
        let held = world.git.try_lock(&mirror::lock_name(REMOTE, &REPO.to_string())).unwrap();
        assert!(held.is_some());
        small.tidy().await.unwrap();
        assert!(mirror.is_dir(), "somebody works on it");
        drop(held);
        world.git.tidy().await.unwrap();
        assert!(mirror.is_dir(), "there is room for it");
        small.tidy().await.unwrap();
        assert!(!mirror.exists() && !Record::path(&mirror).exists());
        let start = std::slice::from_ref(&world.start);
        world.git.ensure(REMOTE, REPO, &world.access, start, None).await.unwrap();
        assert!(mirror.is_dir(), "and it is fetched again");
    }

    #[tokio::test]
    async fn packs_are_put_together_when_no_run_needs_them_and_every_object_stays() {
        let world = World::new().await;
        let person = world.person();
        let mut commits = Vec::new();
        for n in 0..20 {
            std::fs::write(person.join("file"), n.to_string()).unwrap();
            run_git(&person, &["add", "-A"]);
            run_git(&person, &["commit", "-qm", "More"]);
            run_git(&person, &["push", "-q", "--force", "../remote.git", "HEAD:refs/heads/topic"]);
            let head = crate::domain::ids::Sha::parse(&run_git(&person, &["rev-parse", "HEAD"])).unwrap();
            world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&head), None).await.unwrap();
            commits.push(head);
            // The next one is no child of this one: nothing reaches it any more.
            run_git(&person, &["reset", "-q", "--hard", "HEAD~1"]);
        }
        let mirror = world.git.mirror_path(REMOTE, REPO);
        for commit in &commits {
            run_git(&mirror, &["update-ref", "-d", &format!("{}/{commit}", mirror::KEEP)]);
        }
        let packs = || {
            let packs = entries(&mirror.join("objects/pack"));
            packs.iter().filter(|path| path.extension().is_some_and(|end| end == "pack")).count()
        };
        let before = packs();
        assert!(before > 16, "each fetch makes a pack: {before}");
        prepare(&world, "run_1").await;
        world.git.tidy().await.unwrap();
        assert_eq!(packs(), before, "a run needs them");
        world.git.discard(&RunId::new("run_1")).await.unwrap();
        world.git.tidy().await.unwrap();
        assert!(packs() < 4, "{} packs", packs());
        for commit in &commits {
            run_git(&mirror, &["cat-file", "-e", &format!("{commit}^{{tree}}")]);
        }
        assert_eq!(run_git(&mirror, &["fsck", "--connectivity-only", "--no-dangling"]), "");
    }
}
