//! Purpose: Git on the host: mirrors, seeds, workspaces, the strict way in and the push out.
//!
//! The host never runs Git inside a `.git` that an agent could write: what comes back is one bundle file.

pub mod bundle;
mod image;
pub mod mirror;
mod overlay;
mod seed;
mod sweep;
pub mod transport;
mod usage;
pub mod workspace;

pub use overlay::Layout;

use crate::domain::effect::BranchPush;
use crate::domain::gate::Changeset;
use crate::domain::ids::{BranchName, RunId, Sha};
use secrecy::SecretString;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often a folder name that is taken is tried again with another number.
const NAME_TRIES: usize = 10_000;
/// How long one operation waits for another process that works on the same mirror.
const LOCK_LIMIT: Duration = Duration::from_secs(1800);
/// How often it looks whether that one has finished.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// In-process locks that are kept before unused ones are forgotten.
const LOCKS_KEPT: usize = 1024;
/// The folders below the root.
const FOLDERS: &[&str] = &["mirrors", "seeds", "runs", IMAGES, "trash", "tmp", "locks"];
/// The disks of runs (`Disk::Loop`).
const IMAGES: &str = "images";

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The remote refused our credentials.
    #[error("{operation}: credentials refused")]
    Auth { operation: &'static str },
    #[error("{operation}: repository or ref not found: {detail}")]
    NotFound { operation: &'static str, detail: String },
    /// A push was rejected because the ref moved.
    #[error("push: `{branch}` moved")]
    Moved { branch: String },
    /// The remote refused a push for its own reasons (protected branch, hook).
    #[error("push refused: {detail}")]
    Refused { detail: String },
    /// The network or the remote failed; after a push it is not known whether it took place.
    #[error("{operation}: {detail}")]
    Unavailable { operation: &'static str, detail: String },
    /// The bundle breaks a rule of the way in.
    #[error("the result was refused: {detail}")]
    Rejected { detail: String },
    #[error("{operation}: {detail}")]
    Failed { operation: &'static str, detail: String },
    #[error("{operation}: {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
}

/// How to reach a repository for one operation. The token goes to Git through `GIT_ASKPASS` only.
#[derive(Debug, Clone)]
pub struct Access {
    pub url: String,
    pub username: String,
    pub token: Option<SecretString>,
}

/// What keeps a run's workspace, output and home small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Disk {
    /// They are folders of the host's file system, measured while the agent runs.
    #[default]
    Watched,
    /// They are a file system of their own, of this size.
    Loop { bytes: i64, files: i64 },
}

/// How workspaces are to be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Workspaces {
    /// As overlays where they work.
    #[default]
    Auto,
    Fixed(Layout),
}

/// What is kept for later runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cache {
    /// Of mirrors and seeds together; `None`: as much as fits on the disk.
    pub bytes: Option<u64>,
}

/// The host's Git store, all below one state directory.
#[derive(Debug, Clone)]
pub struct Git {
    pub(crate) root: PathBuf,
    disk: Disk,
    layout: Layout,
    /// Why workspaces cannot be overlays.
    no_overlay: Option<Arc<str>>,
    cache: Cache,
    /// This boot of the machine.
    boot: String,
    /// Runs that are being prepared now.
    preparing: Arc<AtomicUsize>,
    /// One lock per mirror or seed for the tasks of this process.
    locks: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    /// Makes names of temporary folders differ.
    counter: Arc<AtomicU64>,
}

/// What a run's container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    pub workspace: PathBuf,
    pub output: PathBuf,
    pub home: PathBuf,
    /// The mirror's objects on the host.
    pub objects: PathBuf,
}

/// What the folders of a run hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Blocks that are really taken, so that a sparse file counts as what it costs.
    pub bytes: i64,
    pub files: i64,
    /// Folders are nested deeper than anybody looks.
    pub too_deep: bool,
    /// Nothing more fits in.
    pub full: bool,
}

/// What to prepare a seed from.
#[derive(Debug, Clone)]
pub struct SeedSpec<'a> {
    pub remote: &'a str,
    pub repo_id: i64,
    pub start: &'a Sha,
    /// What the alternates file of the workspace must say.
    pub objects_inside: PathBuf,
    pub owner: (u32, u32),
}

/// What to prepare a workspace from.
#[derive(Debug, Clone)]
pub struct WorkspaceSpec<'a> {
    pub remote: &'a str,
    pub repo_id: i64,
    pub run: &'a RunId,
    pub start: &'a Sha,
    /// Trusted copies of masked paths come from here.
    pub base_sha: &'a Sha,
    /// Masked files and folders (see `mask_root`) are replaced by those of `base_sha` (or removed when it has none).
    pub masked: &'a [&'a str],
    /// What the alternates file of the workspace must say.
    pub objects_inside: PathBuf,
    pub owner: (u32, u32),
}

/// How the imported commits are rewritten: author and committer are the host's decision.
#[derive(Debug, Clone)]
pub struct Rewrite {
    pub author_name: String,
    pub author_email: String,
    /// Seconds since 1970, the time of every commit (so that a repeated import gives equal ids).
    pub time: i64,
    /// Appended to each message as trailers, e.g. `Zeblit-Run: …`.
    pub trailers: Vec<(String, String)>,
    /// Masked paths: taken from the start commit in every rewritten commit.
    pub masked: Vec<String>,
}

/// Caps of the way in.
#[derive(Debug, Clone, Copy)]
pub struct ImportCaps {
    pub bundle_bytes: u64,
    pub commits: usize,
}

impl Default for ImportCaps {
    fn default() -> Self {
        Self { bundle_bytes: 200 * 1024 * 1024, commits: 100 }
    }
}

/// A verified result: rewritten commits and the bundle of them that is kept as an artifact.
#[derive(Debug, Clone)]
pub struct Imported {
    pub changeset: Changeset,
    /// A bundle `start..head` with one ref, `refs/heads/zeblit-result`, made by the host.
    pub bundle: Vec<u8>,
    /// A unified diff for people, capped at 256 KiB.
    pub diff: String,
    /// Paths that the agent changed but that were dropped because they are masked.
    pub dropped: Vec<String>,
}

impl Git {
    /// Opens (creating it) the store below `root`; checks that a usable `git` program is there.
    pub async fn open(root: &Path) -> Result<Self, GitError> {
        let operation = "open the Git store";
        let io_error = |source| GitError::Io { operation, path: root.to_owned(), source };
        std::fs::create_dir_all(root).map_err(io_error)?;
        let root = root.canonicalize().map_err(io_error)?;
        let plain =
            root.to_str().is_some_and(|text| !text.chars().any(|c| c.is_control() || c == '"' || c == ':'));
        if !plain {
            return Err(GitError::Failed {
                operation,
                detail: "the state directory's path holds control characters, `\"`, `:` or is not UTF-8; \
                         Git cannot name such a path in an alternates file: choose another one"
                    .into(),
            });
        }
        for folder in FOLDERS {
            std::fs::create_dir_all(root.join(folder)).map_err(io_error)?;
        }
        transport::install(&root).map_err(io_error)?;
        transport::check_version(&root).await?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut store = Self {
            root,
            disk: Disk::default(),
            layout: Layout::Overlay,
            no_overlay: None,
            cache: Cache::default(),
            boot: boot.trim().to_owned(),
            preparing: Arc::default(),
            locks: Arc::default(),
            counter: Arc::default(),
        };
        if let Err(why) = overlay::probe(&store) {
            (store.layout, store.no_overlay) = (Layout::Checkout, Some(why.into()));
        }
        Ok(store)
    }

    /// The same store; workspaces are made so from now on. An error says why they cannot be.
    pub fn with_workspaces(self, wanted: Workspaces) -> Result<Self, GitError> {
        match (wanted, &self.no_overlay) {
            (Workspaces::Auto, _) => Ok(self),
            (Workspaces::Fixed(Layout::Overlay), Some(why)) => {
                Err(GitError::Failed { operation: "make workspaces as overlays", detail: why.to_string() })
            }
            (Workspaces::Fixed(layout), _) => Ok(Self { layout, ..self }),
        }
    }

    /// The same store, which keeps at most so much for later runs.
    pub fn with_cache(self, cache: Cache) -> Self {
        Self { cache, ..self }
    }

    /// How workspaces are made.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Why workspaces cannot be overlays on this machine; `None`: they can.
    pub fn no_overlay(&self) -> Option<&str> {
        self.no_overlay.as_deref()
    }

    /// The same store; workspaces that are prepared from now on are bounded so.
    pub fn with_disk(self, disk: Disk) -> Self {
        Self { disk, ..self }
    }

    pub fn mirror_path(&self, remote: &str, repo_id: i64) -> PathBuf {
        self.root.join("mirrors").join(remote).join(format!("{repo_id}.git"))
    }

    /// Makes the mirror hold `wanted` (fetching heads, and `refs/pull/<n>/head` when `pull` is given). No network when it does already.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn ensure(
        &self,
        remote: &str,
        repo_id: i64,
        access: &Access,
        wanted: &[Sha],
        pull: Option<i64>,
    ) -> Result<(), GitError> {
        mirror::ensure(self, mirror::Mirror::of(self, remote, repo_id)?, access, wanted, pull).await
    }

    /// Seed (immutable checkout of `start`, reused) and per-run workspace, output and home folders.
    /// Repeating it for the same run before the agent started gives a fresh workspace.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn prepare(&self, spec: &WorkspaceSpec<'_>) -> Result<Workspace, GitError> {
        workspace::prepare(self, spec).await
    }

    /// Builds the seed of a commit that the mirror holds, so that a run finds it there.
    pub async fn prepare_ahead(&self, spec: &SeedSpec<'_>) -> Result<(), GitError> {
        seed::ahead(self, spec).await
    }

    /// The folders of a run that was prepared before (after a crash); `None` when they are not there.
    pub fn prepared(&self, remote: &str, repo_id: i64, run: &RunId) -> Option<Workspace> {
        workspace::prepared(self, remote, repo_id, run)
    }

    /// Reads the bundle file (no-follow, regular file, capped), imports it strictly into a fresh bare
    /// repository, checks ancestry and linear history, rewrites the commits. `Ok(None)`: no bundle or no change.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn import(
        &self,
        remote: &str,
        repo_id: i64,
        output: &Path,
        start: &Sha,
        rewrite: &Rewrite,
        caps: ImportCaps,
    ) -> Result<Option<Imported>, GitError> {
        bundle::import(self, &mirror::Mirror::of(self, remote, repo_id)?, output, start, rewrite, caps).await
    }

    /// Another file that a run left in its output folder, read with the same care as the bundle. `Ok(None)`: it is not there.
    pub async fn output_file(
        &self,
        output: &Path,
        name: &'static str,
        cap: u64,
    ) -> Result<Option<Vec<u8>>, GitError> {
        bundle::output_file(output, name, cap).await
    }

    /// Masked files of a run's workspace that are as neither of the two commits has them: the agent changed them.
    /// Reads without following links; nothing of it is run.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn masked_edits(
        &self,
        remote: &str,
        repo_id: i64,
        run: &RunId,
        commits: (&Sha, &Sha),
        masked: &[&str],
    ) -> Result<Vec<String>, GitError> {
        workspace::masked_edits(self, remote, repo_id, run, commits, masked).await
    }

    /// Pushes the head of a stored bundle: `expected` is the lease (`None`: the branch must not exist), never a force beyond it.
    /// Finding the branch at the new commit already is success.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn push(
        &self,
        remote: &str,
        repo_id: i64,
        access: &Access,
        bundle: &[u8],
        push: &BranchPush,
    ) -> Result<(), GitError> {
        bundle::push(self, &mirror::Mirror::of(self, remote, repo_id)?, access, bundle, push).await
    }

    /// What a branch of the remote holds now (`git ls-remote`).
    pub async fn remote_head(&self, access: &Access, branch: &BranchName) -> Result<Option<Sha>, GitError> {
        mirror::remote_head(self, access, branch).await
    }

    /// What workspace, output and home of a run hold. Counting ends soon after one of the limits is passed.
    pub async fn disk_use(&self, run: &RunId, bytes: i64, files: i64) -> Result<DiskUse, GitError> {
        let name = workspace::run_folder(run)?.to_owned();
        let (git, folder) = (self.clone(), self.root.join("runs").join(&name));
        blocking("measure the workspace", move || {
            Ok(image::measure(&git, &name)?.unwrap_or_else(|| usage::measure(&folder, bytes, files)))
        })
        .await
    }

    /// Before a full disk of a run is collected: gives up what was kept back for that.
    pub async fn open_reserve(&self, run: &RunId) -> Result<(), GitError> {
        let folder = self.root.join("runs").join(workspace::run_folder(run)?);
        blocking("open the reserve of the disk", move || image::open_reserve(&folder)).await
    }

    /// The runs that have folders or disks here, whatever became of them.
    pub fn known_runs(&self) -> Vec<RunId> {
        sweep::known_runs(self)
    }

    /// Deletes the folders of a run (moved aside at once, deleted late).
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn discard(&self, run: &RunId) -> Result<(), GitError> {
        let (git, run) = (self.clone(), run.clone());
        blocking("discard the workspace", move || workspace::discard(&git, &run)).await
    }

    /// Whether there is a mirror of the repository.
    pub fn knows(&self, remote: &str, repo_id: i64) -> bool {
        mirror::Mirror::of(self, remote, repo_id).is_ok_and(|mirror| mirror.path.is_dir())
    }

    /// Mounts again what the runs of `live` have lost, and deletes some of what was moved aside and has rested.
    pub async fn sweep(&self, live: &[RunId]) -> Result<(), GitError> {
        let git = self.clone();
        let live = live.to_vec();
        blocking("sweep", move || sweep::sweep(&git, &live)).await
    }

    /// Keeps the store small (see `Cache`) and its mirrors in order. What any run's folder names is left as it is.
    pub async fn tidy(&self) -> Result<(), GitError> {
        let git = self.clone();
        let scattered = blocking("tidy", move || sweep::tidy(&git)).await?;
        for mirror in scattered {
            mirror::put_together(self, &mirror).await?;
        }
        Ok(())
    }

    /// A new empty folder with a name of its own.
    pub(crate) fn fresh_folder(&self, parent: &Path, prefix: &str) -> Result<PathBuf, GitError> {
        let mut last = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        for _ in 0..NAME_TRIES {
            let path = self.fresh_name(parent, prefix);
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => last = error,
                Err(source) => return Err(GitError::Io { operation: "make a folder", path, source }),
            }
        }
        Err(GitError::Io { operation: "make a folder", path: parent.to_owned(), source: last })
    }

    /// A name that this process has not used before.
    pub(crate) fn fresh_name(&self, parent: &Path, prefix: &str) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        parent.join(format!("{prefix}{}-{number}", std::process::id()))
    }

    /// A run is being prepared until the value is dropped.
    pub(crate) fn preparing(&self) -> Preparing {
        self.preparing.fetch_add(1, Ordering::Relaxed);
        Preparing(Arc::clone(&self.preparing))
    }

    pub(crate) fn is_preparing(&self) -> bool {
        self.preparing.load(Ordering::Relaxed) > 0
    }

    fn mutex(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.len() > LOCKS_KEPT {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        locks.entry(name.to_owned()).or_default().clone()
    }

    /// Waits until nobody else in this process holds `name`.
    pub(crate) async fn lock_here(&self, name: &str) -> Result<tokio::sync::OwnedMutexGuard<()>, GitError> {
        let operation = "wait for a lock";
        let waited = tokio::time::timeout(LOCK_LIMIT, self.mutex(name).lock_owned()).await;
        waited.map_err(|_| GitError::Unavailable { operation, detail: format!("`{name}` stayed busy") })
    }

    fn lock_file(&self, name: &str) -> Result<std::fs::File, GitError> {
        let path = self.root.join("locks").join(format!("{name}.lock"));
        let opened = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        opened.map_err(|source| GitError::Io { operation: "open a lock", path, source })
    }

    /// `lock` for those that would rather come again later; `None`: somebody holds it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<Held>, GitError> {
        let Ok(task) = self.mutex(name).try_lock_owned() else { return Ok(None) };
        let file = self.lock_file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Held { _file: file, _task: task })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(source)) => {
                Err(GitError::Io { operation: "take a lock", path: PathBuf::from(name), source })
            }
        }
    }

    /// Waits until nobody else, in this process or another one of this state directory, holds `name`.
    pub(crate) async fn lock(&self, name: &str) -> Result<Held, GitError> {
        let operation = "wait for a lock";
        let task = self.lock_here(name).await?;
        let file = self.lock_file(name)?;
        let io_error = |source| GitError::Io { operation, path: PathBuf::from(name), source };
        let waited = tokio::time::timeout(LOCK_LIMIT, async {
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(()),
                    Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_POLL).await,
                    Err(std::fs::TryLockError::Error(error)) => return Err(error),
                }
            }
        });
        match waited.await {
            Ok(locked) => locked.map_err(io_error)?,
            Err(_) => {
                return Err(GitError::Unavailable {
                    operation,
                    detail: format!("another process kept `{name}` busy"),
                });
            }
        }
        Ok(Held { _file: file, _task: task })
    }
}

/// A lock that is held; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    _file: std::fs::File,
    _task: tokio::sync::OwnedMutexGuard<()>,
}

/// See `Git::preparing`.
#[derive(Debug)]
pub(crate) struct Preparing(Arc<AtomicUsize>);

impl Drop for Preparing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A folder that disappears with the value.
#[derive(Debug)]
pub(crate) struct TemporaryFolder(pub PathBuf);

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by `sweep`.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs file and object work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(GitError::Failed { operation, detail: error.to_string() }),
    }
}

/// The masked path at or above a path: a mask without `/` is a name in any folder, another is a path from the top.
pub(crate) fn mask_root<'a>(path: &'a [u8], masked: &[Vec<u8>]) -> Option<&'a [u8]> {
    let ends =
        path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
    let mut start = 0;
    for end in ends {
        let (name, whole) = (path.get(start..end)?, path.get(..end)?);
        if masked.iter().any(|mask| mask.as_slice() == if mask.contains(&b'/') { whole } else { name }) {
            return Some(whole);
        }
        start = end + 1;
    }
    None
}

/// Makes now the time of a file or folder.
pub(crate) fn touch(path: &Path) -> Result<(), GitError> {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(
        |error| GitError::Io { operation: "set a file's time", path: path.to_owned(), source: error.into() },
    )
}

/// Maps an error of the object library.
pub(crate) fn object_error(operation: &'static str) -> impl Fn(git2::Error) -> GitError {
    move |error| GitError::Failed { operation, detail: error.message().to_owned() }
}

/// One folder name made from an id: refuses whatever could be more than that.
pub(crate) fn folder_name<'a>(operation: &'static str, name: &'a str) -> Result<&'a str, GitError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(plain) {
        Ok(name)
    } else {
        let shown: String = name.chars().take(40).map(|c| if plain(c) { c } else { '?' }).collect();
        Err(GitError::Failed { operation, detail: format!("`{shown}` cannot be the name of a folder") })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_mask_without_a_slash_holds_in_every_folder() {
        let masked = [b".claude".to_vec(), b"AGENTS.md".to_vec(), b".github/agents.md".to_vec()];
        for (path, root) in [
            ("AGENTS.md", Some("AGENTS.md")),
            ("src/deep/AGENTS.md", Some("src/deep/AGENTS.md")),
            ("src/.claude/skills/x/SKILL.md", Some("src/.claude")),
            (".claude", Some(".claude")),
            (".github/agents.md", Some(".github/agents.md")),
            ("src/.github/agents.md", None),
            ("src/MY-AGENTS.md", None),
            ("src/AGENTS.md.txt", None),
            ("agents.md", None),
            ("", None),
        ] {
            assert_eq!(mask_root(path.as_bytes(), &masked), root.map(str::as_bytes), "{path}");
        }
    }

    /// Runs real Git as a person or an agent would; the answer without its last line break.
    pub(crate) fn git(folder: &Path, arguments: &[&str]) -> String {
        let output = git_output(folder, arguments, b"");
        assert!(
            output.status.success(),
            "git {arguments:?} in {}: {}",
            folder.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    pub(crate) fn git_output(folder: &Path, arguments: &[&str], input: &[u8]) -> std::process::Output {
        let mut child = Command::new("git")
            .args([
                "-c",
                "user.name=Agent",
                "-c",
                "user.email=agent@example.com",
                "-c",
                "init.defaultBranch=main",
            ])
            .args(["-c", "core.protectNTFS=false", "-c", "core.protectHFS=false"])
            .args(arguments)
            .current_dir(folder)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A remote on disk, a store with its mirror, and a place where an agent works.
    pub(crate) struct World {
        pub folder: tempfile::TempDir,
        pub git: Git,
        pub access: Access,
        pub start: Sha,
    }

    impl Drop for World {
        fn drop(&mut self) {
            // What is mounted cannot be removed with the folder.
            overlay::unmount_below(&self.git.root).unwrap();
        }
    }

    pub(crate) const REMOTE: &str = "local";
    pub(crate) const REPO: i64 = 7;

    impl World {
        /// A repository with a few files, masked ones among them, and its mirror.
        pub(crate) async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let remote = folder.path().join("remote.git");
            std::fs::create_dir(&remote).unwrap();
            git(&remote, &["init", "-q", "--bare"]);
            let seed = folder.path().join("person");
            std::fs::create_dir(&seed).unwrap();
            git(&seed, &["init", "-q"]);
            for (path, text) in [
                ("README.md", "hello\n"),
                ("src/main.py", "print(1)\nprint(2)\n"),
                ("run.sh", "#!/bin/sh\n"),
                (".claude/settings.json", "{}\n"),
                ("AGENTS.md", "be kind\n"),
            ] {
                std::fs::create_dir_all(seed.join(path).parent().unwrap()).unwrap();
                std::fs::write(seed.join(path), text).unwrap();
            }
            git(&seed, &["add", "-A"]);
            git(&seed, &["commit", "-qm", "First"]);
            std::fs::write(seed.join("README.md"), "hello world\n").unwrap();
            git(&seed, &["commit", "-qam", "Second"]);
            git(&seed, &["push", "-q", remote.to_str().unwrap(), "main"]);
            let start = Sha::parse(&git(&seed, &["rev-parse", "HEAD"])).unwrap();
            let store = Git::open(&folder.path().join("state")).await.unwrap();
            let access =
                Access { url: remote.to_str().unwrap().to_owned(), username: String::new(), token: None };
            store.ensure(REMOTE, REPO, &access, std::slice::from_ref(&start), None).await.unwrap();
            Self { folder, git: store, access, start }
        }

        pub(crate) fn remote(&self) -> PathBuf {
            self.folder.path().join("remote.git")
        }

        pub(crate) fn person(&self) -> PathBuf {
            self.folder.path().join("person")
        }

        pub(crate) fn output(&self) -> PathBuf {
            let output = self.folder.path().join("output");
            std::fs::create_dir_all(&output).unwrap();
            output
        }

        /// A fresh clone at the start commit, as the workspace of an agent.
        pub(crate) fn agent(&self) -> PathBuf {
            let agent = self.folder.path().join("agent");
            let _ = std::fs::remove_dir_all(&agent);
            git(self.folder.path(), &["clone", "-q", "remote.git", "agent"]);
            git(&agent, &["checkout", "-q", "-B", "zeblit-work", self.start.as_str()]);
            agent
        }

        /// What the program in the container does at the end.
        pub(crate) fn bundle(&self, agent: &Path) {
            git(agent, &["update-ref", "refs/heads/zeblit-result", "HEAD"]);
            let file = self.output().join(bundle::BUNDLE_FILE);
            let range = format!("{}..refs/heads/zeblit-result", self.start);
            git(agent, &["bundle", "create", "-q", file.to_str().unwrap(), &range]);
        }

        pub(crate) fn rewrite() -> Rewrite {
            Rewrite {
                author_name: "zeblit[bot]".into(),
                author_email: "1+zeblit[bot]@users.noreply.github.com".into(),
                time: 1_700_000_000,
                trailers: vec![("Zeblit-Run".into(), "run_0001".into())],
                masked: vec![".claude".into(), "AGENTS.md".into(), ".github/agents.md".into()],
            }
        }

        pub(crate) async fn import(&self) -> Result<Option<Imported>, GitError> {
            self.import_capped(ImportCaps::default()).await
        }

        pub(crate) async fn import_capped(&self, caps: ImportCaps) -> Result<Option<Imported>, GitError> {
            self.git.import(REMOTE, REPO, &self.output(), &self.start, &Self::rewrite(), caps).await
        }
    }

    #[tokio::test]
    async fn the_store_opens_again_and_refuses_paths_that_git_cannot_name() {
        let folder = tempfile::tempdir().unwrap();
        Git::open(&folder.path().join("state")).await.unwrap();
        Git::open(&folder.path().join("state")).await.unwrap();
        for bad in ["a\nb", "a:b", "a\"b"] {
            let error = Git::open(&folder.path().join(bad)).await.unwrap_err();
            assert!(error.to_string().contains("choose another"), "{error}");
        }
    }

    #[tokio::test]
    async fn names_from_outside_are_never_more_than_one_folder() {
        let world = World::new().await;
        for bad in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "a b", &"x".repeat(101)] {
            assert!(folder_name("test", bad).is_err(), "{bad}");
            assert!(world.git.ensure(bad, 1, &world.access, &[], None).await.is_err(), "{bad}");
            assert!(world.git.discard(&RunId::new(bad)).await.is_err(), "{bad}");
            assert!(world.git.prepared(REMOTE, REPO, &RunId::new(bad)).is_none(), "{bad}");
        }
        assert!(folder_name("test", "github.example-1_a").is_ok());
    }

    #[tokio::test]
    async fn a_lock_is_held_by_one_at_a_time_and_given_back() {
        let world = World::new().await;
        let held = world.git.lock("test").await.unwrap();
        // Another process sees the file lock.
        let file = std::fs::File::open(world.git.root.join("locks/test.lock")).unwrap();
        assert!(matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        let waiting = tokio::spawn({
            let git = world.git.clone();
            async move { git.lock("test").await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap().unwrap();
    }
}
