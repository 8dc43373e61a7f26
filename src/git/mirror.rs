//! Purpose: one bare mirror per repository: filled by fetch, read by object id, put in order while no run needs it.
//!
//! Seeds, workspaces and imports borrow the mirror's objects through alternates, so nothing ever removes an object from
//! it: packs are put together, and what no ref reaches stays in them.

use super::seed::{Record, size_of};
use super::transport::{Call, FETCH_LIMIT, LIST_LIMIT, classify};
use super::{Access, Git, GitError, blocking, folder_name, object_error, sweep, touch};
use crate::domain::ids::{BranchName, Sha};
use std::path::{Path, PathBuf};

/// Commits that one call may ask for.
const WANTED_CAP: usize = 64;
/// From so many packs on they are put together: each is one more to look into for every object.
const PACKS_CAP: usize = 16;
/// Pinned commits keep a ref below this.
pub(crate) const KEEP: &str = "refs/zeblit/keep";

/// Where a repository's mirror is.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    pub path: PathBuf,
    /// The name of its lock.
    pub lock: String,
}

impl Mirror {
    pub fn of(git: &Git, remote: &str, repo_id: i64) -> Result<Self, GitError> {
        let remote = folder_name("find the mirror", remote)?;
        Ok(Self { path: git.mirror_path(remote, repo_id), lock: lock_name(remote, &repo_id.to_string()) })
    }

    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }
}

/// The lock under which a mirror is filled, put in order and removed.
pub(super) fn lock_name(remote: &str, repo_id: &str) -> String {
    format!("mirror-{remote}-{repo_id}")
}

/// Opens a bare repository of ours by its path, without looking around.
pub(crate) fn open(operation: &'static str, path: &Path) -> Result<git2::Repository, GitError> {
    git2::Repository::open_bare(path).map_err(|error| GitError::Failed {
        operation,
        detail: format!("{}: {}", path.display(), error.message()),
    })
}

/// The object id of a commit id.
pub(crate) fn oid(operation: &'static str, sha: &Sha) -> Result<git2::Oid, GitError> {
    git2::Oid::from_str(sha.as_str()).map_err(object_error(operation))
}

/// The commits of `wanted` that the mirror does not hold; keeps a ref to those that it does.
fn missing(path: &Path, wanted: &[Sha]) -> Result<Vec<Sha>, GitError> {
    let operation = "read the mirror";
    let repository = open(operation, path)?;
    let mut missing = Vec::new();
    for sha in wanted {
        let oid = oid(operation, sha)?;
        // The tree too: an interrupted fetch must not count as there.
        if repository.find_commit(oid).and_then(|commit| commit.tree()).is_err() {
            missing.push(sha.clone());
            continue;
        }
        let name = format!("{KEEP}/{sha}");
        if repository.refname_to_id(&name).is_err() {
            repository.reference(&name, oid, true, "").map_err(object_error("keep a commit"))?;
        }
    }
    Ok(missing)
}

async fn missing_of(path: &Path, wanted: &[Sha]) -> Result<Vec<Sha>, GitError> {
    let (path, wanted) = (path.to_owned(), wanted.to_vec());
    blocking("read the mirror", move || missing(&path, &wanted)).await
}

/// See `Git::ensure`.
pub(crate) async fn ensure(
    git: &Git,
    mirror: Mirror,
    access: &Access,
    wanted: &[Sha],
    pull: Option<i64>,
) -> Result<(), GitError> {
    if wanted.len() > WANTED_CAP {
        return Err(GitError::Failed {
            operation: "fetch",
            detail: format!("{} commits asked for at once, at most {WANTED_CAP}", wanted.len()),
        });
    }
    // In this order: who removes mirrors looks at this time once more when it is moved.
    let used = touch(&Record::path(&mirror.path)).is_ok();
    if used && !wanted.is_empty() && missing_of(&mirror.path, wanted).await?.is_empty() {
        return Ok(());
    }
    let _held = git.lock(&mirror.lock).await?;
    create(git, &mirror).await?;
    // Another run may have fetched it while this one waited.
    if !wanted.is_empty() && missing_of(&mirror.path, wanted).await?.is_empty() {
        return note_size(git, &mirror).await;
    }
    let mut refs = vec!["+refs/heads/*:refs/heads/*".to_owned()];
    if let Some(number) = pull.filter(|number| *number > 0) {
        refs.push(format!("+refs/pull/{number}/head:refs/pull/{number}/head"));
    }
    let fetched = fetch(git, &mirror, access, &refs).await;
    note_size(git, &mirror).await?;
    fetched?;
    let missing = missing_of(&mirror.path, wanted).await?;
    if missing.is_empty() {
        return Ok(());
    }
    // A commit that no branch holds any more can often still be had by its id.
    let refs: Vec<String> = missing.iter().map(|sha| format!("+{sha}:{KEEP}/{sha}")).collect();
    fetch(git, &mirror, access, &refs).await?;
    let missing = missing_of(&mirror.path, wanted).await?;
    match missing.first() {
        None => Ok(()),
        Some(sha) => Err(GitError::NotFound {
            operation: "fetch",
            detail: format!("the remote does not have commit {}", sha.short()),
        }),
    }
}

/// The mirror is used, and this large now.
pub(super) async fn note_size(git: &Git, mirror: &Mirror) -> Result<(), GitError> {
    let (path, boot) = (mirror.path.clone(), git.boot.clone());
    blocking("note the mirror's size", move || Record { bytes: size_of(&path), boot }.write(&path)).await
}

fn packs(mirror: &Path) -> usize {
    let entries = std::fs::read_dir(mirror.join("objects/pack")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "pack")).count()
}

/// Whether a mirror is in so many parts that they are to be put together.
pub(super) fn is_scattered(mirror: &Path) -> bool {
    packs(mirror) > PACKS_CAP
}

/// Puts the packs of a mirror together, in sizes that grow by the power of two, unless a run needs it or somebody works
/// on it. A run that begins meanwhile finds every object, in the old place or the new one.
pub(super) async fn put_together(git: &Git, mirror: &Mirror) -> Result<(), GitError> {
    let operation = "put the mirror's packs together";
    let Some(_held) = git.try_lock(&mirror.lock)? else { return Ok(()) };
    let (store, path) = (git.clone(), mirror.path.clone());
    let before = packs(&mirror.path);
    if blocking(operation, move || Ok(sweep::is_in_use(&store, &path))).await? {
        return Ok(());
    }
    let calls: [&[&str]; 2] = [
        &["repack", "-d", "-q", "--geometric=2"],
        &["commit-graph", "write", "--reachable", "--no-progress"],
    ];
    for arguments in calls {
        let call = Call::local(operation, &git.root).git_dir(&mirror.path).args(arguments).limit(FETCH_LIMIT);
        call.run_checked().await?;
    }
    let used = Record::path(&mirror.path).metadata().and_then(|found| found.modified());
    note_size(git, mirror).await?;
    // Nobody has used it.
    if let Ok(used) = used {
        let record = std::fs::File::options().write(true).open(Record::path(&mirror.path));
        let _ = record.and_then(|record| record.set_modified(used));
    }
    tracing::info!(mirror = %mirror.path.display(), before, after = packs(&mirror.path), "packs are put together");
    Ok(())
}

/// Makes the empty mirror aside and renames it into place.
async fn create(git: &Git, mirror: &Mirror) -> Result<(), GitError> {
    let operation = "create the mirror";
    if mirror.path.join("HEAD").exists() {
        return Ok(());
    }
    let parent = mirror.path.parent().unwrap_or(&git.root);
    let io_error = |source| GitError::Io { operation, path: mirror.path.clone(), source };
    std::fs::create_dir_all(parent).map_err(io_error)?;
    let aside = super::TemporaryFolder(git.fresh_folder(parent, ".build-")?);
    // 0644: the container's user reads the objects, whatever this process's umask is.
    Call::local(operation, &git.root)
        .args(["init", "-q", "--bare", "--template=", "--shared=0644", "--initial-branch=main", "--"])
        .arg(&aside.0)
        .run_checked()
        .await?;
    std::fs::rename(&aside.0, &mirror.path).map_err(io_error)
}

async fn fetch(git: &Git, mirror: &Mirror, access: &Access, refs: &[String]) -> Result<(), GitError> {
    let operation = "fetch";
    let finished = Call::remote(operation, &git.root, access)?
        .git_dir(&mirror.path)
        .args([
            // Packs are put together now and then, loose objects are not.
            "-c",
            "fetch.unpackLimit=1",
            "fetch",
            "-q",
            "--prune",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--no-recurse-submodules",
            "--",
        ])
        .arg(&access.url)
        .args(refs)
        .limit(FETCH_LIMIT)
        .run()
        .await?;
    if finished.success { Ok(()) } else { Err(classify(operation, &finished)) }
}

/// See `Git::remote_head`.
pub(crate) async fn remote_head(
    git: &Git,
    access: &Access,
    branch: &BranchName,
) -> Result<Option<Sha>, GitError> {
    let operation = "read the remote's branch";
    let full = branch.full();
    let finished = Call::remote(operation, &git.root, access)?
        .args(["ls-remote", "-q", "--refs", "--"])
        .arg(&access.url)
        .arg(&full)
        .limit(LIST_LIMIT)
        .run()
        .await?;
    if !finished.success {
        return Err(classify(operation, &finished));
    }
    // The pattern matches the end of names: only the line with exactly this name counts.
    let text = String::from_utf8_lossy(&finished.stdout);
    let line = text.lines().find_map(|line| line.split_once('\t').filter(|(_, name)| *name == full));
    line.map(|(sha, _)| Sha::parse(sha))
        .transpose()
        .map_err(|error| GitError::Failed { operation, detail: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::tests::{REMOTE, REPO, World, git};

    fn commit(world: &World, name: &str) -> Sha {
        std::fs::write(world.person().join(name), name).unwrap();
        git(&world.person(), &["add", "-A"]);
        git(&world.person(), &["commit", "-qm", name]);
        Sha::parse(&git(&world.person(), &["rev-parse", "HEAD"])).unwrap()
    }

    fn push(world: &World, refspec: &str) {
        git(&world.person(), &["push", "-q", "--force", "../remote.git", refspec]);
    }

    #[tokio::test]
    async fn what_the_mirror_holds_needs_no_network() {
        let world = World::new().await;
        let nowhere = Access { url: "/nonexistent/remote.git".into(), ..world.access.clone() };
        world.git.ensure(REMOTE, REPO, &nowhere, std::slice::from_ref(&world.start), None).await.unwrap();
        let error = world.git.ensure(REMOTE, 99, &nowhere, std::slice::from_ref(&world.start), None).await;
        assert!(matches!(error, Err(GitError::NotFound { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn new_commits_pull_requests_and_forgotten_commits_are_fetched() {
        let world = World::new().await;
        let second = commit(&world, "second");
        push(&world, "HEAD:refs/heads/topic");
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&second), None).await.unwrap();

        let pull = commit(&world, "pull");
        push(&world, "HEAD:refs/pull/5/head");
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&pull), Some(5)).await.unwrap();

        // Pushed over: no ref of the remote holds it any more, its id still finds it.
        let gone = commit(&world, "gone");
        push(&world, "HEAD:refs/heads/topic");
        push(&world, &format!("{second}:refs/heads/topic"));
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&gone), None).await.unwrap();
        let mirror = world.git.mirror_path(REMOTE, REPO);
        assert_eq!(git(&mirror, &["rev-parse", &format!("{KEEP}/{gone}")]), gone.as_str());
        assert_eq!(git(&mirror, &["rev-parse", "refs/heads/topic"]), second.as_str());
    }

    #[tokio::test]
    async fn branches_that_give_way_to_folders_are_pruned() {
        let world = World::new().await;
        push(&world, "HEAD:refs/heads/a");
        let one = commit(&world, "one");
        push(&world, "HEAD:refs/heads/main");
        world.git.ensure(REMOTE, REPO, &world.access, &[one], None).await.unwrap();
        push(&world, ":refs/heads/a");
        push(&world, "HEAD:refs/heads/a/b");
        let two = commit(&world, "two");
        push(&world, "HEAD:refs/heads/main");
        world.git.ensure(REMOTE, REPO, &world.access, &[two], None).await.unwrap();
        let refs =
            git(&world.git.mirror_path(REMOTE, REPO), &["for-each-ref", "--format=%(refname)", "refs/heads"]);
        assert_eq!(refs, "refs/heads/a/b\nrefs/heads/main");
    }

    #[tokio::test]
    async fn what_the_remote_does_not_have_is_not_found() {
        let world = World::new().await;
        let unknown = Sha::parse(&"1".repeat(40)).unwrap();
        let error = world.git.ensure(REMOTE, REPO, &world.access, &[unknown], None).await;
        assert!(matches!(error, Err(GitError::NotFound { .. })), "{error:?}");
        let other = Sha::parse(&"2".repeat(40)).unwrap();
        let error = world.git.ensure(REMOTE, REPO, &world.access, &[other], Some(77)).await;
        assert!(matches!(error, Err(GitError::NotFound { .. })), "{error:?}");
        let many = vec![world.start.clone(); WANTED_CAP + 1];
        assert!(world.git.ensure(REMOTE, REPO, &world.access, &many, None).await.is_err());
    }

    #[tokio::test]
    async fn an_empty_remote_makes_an_empty_mirror() {
        let world = World::new().await;
        let empty = world.folder.path().join("empty.git");
        std::fs::create_dir(&empty).unwrap();
        git(&empty, &["init", "-q", "--bare"]);
        let access = Access { url: format!("file://{}", empty.display()), ..world.access.clone() };
        world.git.ensure(REMOTE, 8, &access, &[], None).await.unwrap();
        assert!(world.git.mirror_path(REMOTE, 8).join("HEAD").is_file());
    }

    #[tokio::test]
    async fn parallel_runs_fetch_one_after_the_other() {
        let world = World::new().await;
        let sha = commit(&world, "new");
        push(&world, "HEAD:refs/heads/main");
        let calls = (0..6).map(|_| {
            let (git, access, sha) = (world.git.clone(), world.access.clone(), sha.clone());
            tokio::spawn(async move { git.ensure(REMOTE, REPO, &access, &[sha], None).await })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_remote_head_is_that_of_exactly_this_branch() {
        let world = World::new().await;
        push(&world, "HEAD~1:refs/heads/other/refs/heads/topic");
        let read = |name: &str| {
            let (git, access, branch) =
                (world.git.clone(), world.access.clone(), BranchName::parse(name).unwrap());
            async move { git.remote_head(&access, &branch).await }
        };
        assert_eq!(read("main").await.unwrap().as_ref(), Some(&world.start));
        assert_eq!(read("topic").await.unwrap(), None);
    }
}
