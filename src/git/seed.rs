//! Purpose: immutable checkouts: seeds, one per commit, that the workspaces of runs lie on; or one checkout for one run.
//!
//! A seed is built aside by the host alone, renamed into place and never written again: what lies below a mounted overlay
//! must not change. All its files have one time, older than its index: `git status` looks at no file's content.

use super::mirror::{self, Mirror};
use super::overlay::Layout;
use super::transport::Call;
use super::workspace::{io_error, own, write};
use super::{Git, GitError, SeedSpec, TemporaryFolder, blocking, folder_name, object_error, touch, usage};
use crate::domain::ids::Sha;
use sha2::{Digest, Sha256};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The branch that a workspace stands on.
pub(super) const WORK_BRANCH: &str = "zeblit-work";
/// How much older than its index the files of a checkout are at least: one tick of the coarsest clock that Git compares,
/// and one more, so that no edit has the same time.
const OLDER_SECONDS: i64 = 2;
/// The end of the name of what is known about a seed or mirror: when it was used last, and its size.
pub(super) const RECORD: &str = ".used";

/// The configuration of a seed: no remote, no hooks, and an index that survives another inode, owner and change time.
const CONFIG: &str = "[core]\n\
    \trepositoryformatversion = 0\n\
    \tfilemode = true\n\
    \tbare = false\n\
    \tlogallrefupdates = true\n\
    \tcheckStat = minimal\n\
    \ttrustctime = false\n\
    [user]\n\
    \tname = Zeblit agent\n\
    \temail = agent@zeblit.invalid\n\
    [commit]\n\
    \tgpgSign = false\n\
    [gc]\n\
    \tauto = 0\n\
    [maintenance]\n\
    \tauto = false\n";

/// What stands beside a seed or mirror; the time of its file is that of the last use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Record {
    pub bytes: u64,
    /// The boot of the machine that it was built or looked through in: a power loss leaves files empty that seemed written.
    pub boot: String,
}

impl Record {
    pub fn path(of: &Path) -> PathBuf {
        let mut name = of.as_os_str().to_owned();
        name.push(RECORD);
        PathBuf::from(name)
    }

    /// `None`: nothing readable is there.
    pub fn read(of: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(Self::path(of)).ok()?;
        let (bytes, boot) = text.trim().split_once(' ')?;
        Some(Self { bytes: bytes.parse().ok()?, boot: boot.to_owned() })
    }

    pub fn write(&self, of: &Path) -> Result<(), GitError> {
        let path = Self::path(of);
        write("note a size", &path, format!("{} {}\n", self.bytes, self.boot).as_bytes())
    }
}

/// What the blocks of a tree of ours take.
pub(super) fn size_of(folder: &Path) -> u64 {
    u64::try_from(usage::measure(folder, i64::MAX, i64::MAX).bytes).unwrap_or(0)
}

/// Distinguishes seeds of one commit: what they say inside, and whose they are.
fn name(spec: &SeedSpec<'_>) -> String {
    let mut hash = Sha256::new();
    hash.update(spec.objects_inside.as_os_str().as_encoded_bytes());
    hash.update(format!("\0{}:{}\0{OLDER_SECONDS}\0{CONFIG}", spec.owner.0, spec.owner.1));
    let digest = hex::encode(hash.finalize());
    format!("{}-{}", spec.start, digest.get(..12).unwrap_or(&digest))
}

/// The folder of a repository's seeds.
fn parent(git: &Git, spec: &SeedSpec<'_>) -> Result<PathBuf, GitError> {
    Ok(git.root.join("seeds").join(folder_name("find the seed", spec.remote)?).join(spec.repo_id.to_string()))
}

/// The lock under which a repository's seeds are found, put into place and removed: held for a moment only.
pub(super) fn lock_name(remote: &str, repo_id: &str) -> String {
    format!("seed-{remote}-{repo_id}")
}

/// The seed of a commit, made when it is not there.
pub(super) async fn ensure(git: &Git, mirror: &Mirror, spec: &SeedSpec<'_>) -> Result<PathBuf, GitError> {
    let seed = parent(git, spec)?.join(name(spec));
    if find(git, spec, &seed).await? {
        return Ok(seed);
    }
    // One of this process builds it; two processes at one time build it twice, and one of the two stays.
    let _building = git.lock_here(&seed.to_string_lossy()).await?;
    if find(git, spec, &seed).await? {
        return Ok(seed);
    }
    build(git, mirror, spec, &seed).await?;
    Ok(seed)
}

/// Whether the seed is there and whole; it counts as used now.
async fn find(git: &Git, spec: &SeedSpec<'_>, seed: &Path) -> Result<bool, GitError> {
    let operation = "find the seed";
    if !seed.is_dir() {
        return Ok(false);
    }
    let held = git.lock(&lock_name(spec.remote, &spec.repo_id.to_string())).await?;
    if !seed.is_dir() {
        return Ok(false);
    }
    let (git, seed, inside) = (git.clone(), seed.to_owned(), spec.objects_inside.clone());
    blocking(operation, move || {
        let _held = held;
        match Record::read(&seed) {
            Some(record) if record.boot == git.boot => {
                touch(&Record::path(&seed))?;
                return Ok(true);
            }
            _ => {}
        }
        if is_whole(&seed, &inside) {
            Record { bytes: size_of(&seed), boot: git.boot.clone() }.write(&seed)?;
            return Ok(true);
        }
        tracing::info!(seed = %seed.display(), "a seed did not survive the end of the machine and is built again");
        super::sweep::move_aside(&git, &seed, "seed")?;
        Ok(false)
    })
    .await
}

async fn build(git: &Git, mirror: &Mirror, spec: &SeedSpec<'_>, seed: &Path) -> Result<(), GitError> {
    let operation = "build the seed";
    let parent = parent(git, spec)?;
    std::fs::create_dir_all(&parent).map_err(io_error(operation, &parent))?;
    let aside = TemporaryFolder(git.fresh_folder(&parent, ".build-")?);
    checkout(git, mirror, spec, &aside.0).await?;
    let record = Record { bytes: size_of(&aside.0), boot: git.boot.clone() };
    let _held = git.lock(&lock_name(spec.remote, &spec.repo_id.to_string())).await?;
    record.write(seed)?;
    match std::fs::rename(&aside.0, seed) {
        // Another process was faster.
        Err(_) if seed.is_dir() => Ok(()),
        done => done.map_err(io_error(operation, seed)),
    }
}

/// A repository of our own making around a checkout of the start commit, owned by the agent's user. Its objects are the
/// mirror's, as seen inside.
pub(super) async fn checkout(
    git: &Git,
    mirror: &Mirror,
    spec: &SeedSpec<'_>,
    folder: &Path,
) -> Result<(), GitError> {
    let operation = "check out the start commit";
    let inside = spec.objects_inside.to_str().unwrap_or_default();
    if !inside.starts_with('/') || inside.chars().any(|c| c.is_control() || c == '"') {
        return Err(GitError::Failed {
            operation,
            detail: "the path of the objects inside the container must be absolute and plain".into(),
        });
    }
    let dot_git = folder.join(".git");
    for part in ["objects/info", "objects/pack", "refs/heads", "refs/tags", "info"] {
        let path = dot_git.join(part);
        std::fs::create_dir_all(&path).map_err(io_error(operation, &path))?;
    }
    let start = spec.start;
    write(operation, &dot_git.join("config"), CONFIG.as_bytes())?;
    write(operation, &dot_git.join("HEAD"), format!("ref: refs/heads/{WORK_BRANCH}\n").as_bytes())?;
    write(operation, &dot_git.join(format!("refs/heads/{WORK_BRANCH}")), format!("{start}\n").as_bytes())?;
    let alternates = dot_git.join("objects/info/alternates");
    write(operation, &alternates, format!("{}\n", mirror.objects().display()).as_bytes())?;
    Call::local(operation, &git.root)
        .git_dir(&dot_git)
        .arg("--work-tree")
        .arg(folder)
        .args([
            "-c",
            "checkout.workers=0",
            "checkout",
            "-q",
            "-f",
            "--no-recurse-submodules",
            WORK_BRANCH,
            "--",
        ])
        .run_checked()
        .await?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
        .map_err(io_error(operation, folder))?;
    write(operation, &alternates, format!("{inside}\n").as_bytes())?;
    let (folder, owner, start, mirror) =
        (folder.to_owned(), spec.owner, spec.start.clone(), mirror.path.clone());
    blocking(operation, move || settle(&folder, owner, &start, &mirror)).await
}

/// Gives a checkout to the container's user, and all its files one time: that of the commit.
fn settle(folder: &Path, owner: (u32, u32), start: &Sha, mirror: &Path) -> Result<(), GitError> {
    let operation = "settle the checkout";
    let repository = mirror::open(operation, mirror)?;
    let commit = repository.find_commit(mirror::oid(operation, start)?).map_err(object_error(operation))?;
    let made = folder.metadata().and_then(|found| found.modified()).map_err(io_error(operation, folder))?;
    let made = made.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let latest = i64::from(i32::try_from(made).unwrap_or(i32::MAX)).saturating_sub(OLDER_SECONDS);
    let time = commit.time().seconds().clamp(1, latest.max(1));
    own_and_date(folder, owner, time)?;

    let path = folder.join(".git/index");
    let mut index = git2::Index::open(&path).map_err(object_error(operation))?;
    let entries: Vec<git2::IndexEntry> = index.iter().collect();
    let seconds = i32::try_from(time).unwrap_or(i32::MAX);
    for mut entry in entries {
        entry.mtime = git2::IndexTime::new(seconds, 0);
        index.add(&entry).map_err(object_error(operation))?;
    }
    // Notes the trees of the folders anew, which the changes above dropped; what is known of the files stays.
    let tree = commit.tree().map_err(object_error(operation))?;
    index.read_tree(&tree).map_err(object_error(operation))?;
    index.write().map_err(object_error(operation))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
        .map_err(io_error(operation, &path))?;
    own(&path, owner)
}

/// Walks a tree of ours.
fn own_and_date(folder: &Path, owner: (u32, u32), seconds: i64) -> Result<(), GitError> {
    let operation = "settle the checkout";
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(io_error(operation, &folder))? {
            let entry = entry.map_err(io_error(operation, &folder))?;
            let path = entry.path();
            if entry.file_type().map_err(io_error(operation, &path))?.is_dir() {
                folders.push(path);
                continue;
            }
            own(&path, owner)?;
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| io_error(operation, &path)(error.into()))?;
        }
        own(&folder, owner)?;
    }
    Ok(())
}

/// Whether everything of a seed is on the disk: after a power loss, files may be there that were never written.
pub(super) fn is_whole(seed: &Path, inside: &Path) -> bool {
    let dot_git = seed.join(".git");
    let holds =
        |name: &str, wanted: &[u8]| std::fs::read(dot_git.join(name)).is_ok_and(|text| text == wanted);
    let alternates = [inside.as_os_str().as_encoded_bytes(), b"\n"].concat();
    let Ok(index) = git2::Index::open(&dot_git.join("index")) else { return false };
    let is_there = |entry: &git2::IndexEntry| {
        let path = seed.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&entry.path));
        path.symlink_metadata().is_ok_and(|found| {
            found.is_dir()
                || (found.mtime() == i64::from(entry.mtime.seconds())
                    && found.size() & u64::from(u32::MAX) == u64::from(entry.file_size))
        })
    };
    let head = std::fs::read(dot_git.join(format!("refs/heads/{WORK_BRANCH}")));
    holds("config", CONFIG.as_bytes())
        && holds("HEAD", format!("ref: refs/heads/{WORK_BRANCH}\n").as_bytes())
        && holds("objects/info/alternates", &alternates)
        && head.is_ok_and(|head| {
            seed.file_name().is_some_and(|name| {
                let (name, head) = (name.as_encoded_bytes(), head.trim_ascii_end());
                !head.is_empty() && name.starts_with(head)
            })
        })
        && index.iter().all(|entry| is_there(&entry))
}

/// See `Git::prepare_ahead`.
pub(super) async fn ahead(git: &Git, spec: &SeedSpec<'_>) -> Result<(), GitError> {
    match git.layout() {
        Layout::Overlay => {
            let mirror = Mirror::of(git, spec.remote, spec.repo_id)?;
            ensure(git, &mirror, spec).await.map(drop)
        }
        // Each run has a checkout of its own.
        Layout::Checkout => Ok(()),
    }
}

/// What `io::ErrorKind::NotFound` means where something may have gone already.
pub(super) fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
