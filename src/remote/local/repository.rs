//! The bare repositories of the local forge, read (and seeded) with git2; pushes come in by path from outside.

use crate::domain::ids::{BranchName, Sha};
use chrono::{DateTime, TimeZone, Utc};
use git2::{
    Delta, DiffFormat, ErrorCode, FetchOptions, ObjectType, Oid, Patch, Repository, RepositoryInitOptions,
    Sort, build::TreeUpdateBuilder,
};
use std::path::{Path, PathBuf};

/// Bytes of a file that `read_file` gives (the `Forge` contract).
pub(super) const MAX_FILE_BYTES: usize = 1024 * 1024;

/// Files of a comparison that are read: GitHub shows 300 as well.
pub(super) const MAX_DIFF_FILES: usize = 300;

/// Lines of a comparison that are read: what a browser still lays out quickly.
pub(super) const MAX_DIFF_LINES: usize = 5_000;

/// Commits of a comparison that are listed: GitHub lists 250.
const MAX_COMMITS: usize = 250;

/// Branches of a repository that are listed.
const MAX_BRANCHES: usize = 500;

/// Why a repository could not be read or made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RepositoryError {
    #[error("{operation}: {source}")]
    Git { operation: &'static str, source: git2::Error },
    #[error("{0}")]
    Refused(String),
    #[error("{operation}: {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
}

fn git(operation: &'static str) -> impl Fn(git2::Error) -> RepositoryError {
    move |source| RepositoryError::Git { operation, source }
}

/// A file that a new repository begins with.
#[derive(Debug, Clone, Copy)]
pub struct SeedFile<'a> {
    pub path: &'a str,
    pub content: &'a str,
    pub executable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BranchInfo {
    pub(super) name: String,
    pub(super) head: Sha,
    pub(super) subject: String,
    pub(super) when: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitInfo {
    pub(super) id: Sha,
    pub(super) subject: String,
    pub(super) body: String,
    pub(super) author: String,
    pub(super) when: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineKind {
    Hunk,
    Context,
    Added,
    Removed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiffLine {
    pub(super) kind: LineKind,
    pub(super) old: Option<u32>,
    pub(super) new: Option<u32>,
    pub(super) text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileDiff {
    pub(super) path: String,
    /// Set when the file was renamed.
    pub(super) old_path: Option<String>,
    pub(super) what: &'static str,
    pub(super) binary: bool,
    pub(super) added: usize,
    pub(super) removed: usize,
    pub(super) lines: Vec<DiffLine>,
}

/// What a pull request changes: its commits and its diff since the merge base.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Comparison {
    pub(super) commits: Vec<CommitInfo>,
    pub(super) files: Vec<FileDiff>,
    /// Something was left out because of a limit.
    pub(super) cut: bool,
}

impl FileDiff {
    /// The hunk up to `line` of the new file, as review comments quote it; `None` when the diff does not show the line.
    pub(super) fn hunk_of(&self, line: i64) -> Option<String> {
        let wanted = u32::try_from(line).ok()?;
        let at =
            self.lines.iter().position(|row| row.new == Some(wanted) && row.kind != LineKind::Removed)?;
        let start = self.lines.iter().take(at).rposition(|row| row.kind == LineKind::Hunk)?;
        let rows = self.lines.iter().skip(start).take(at + 1 - start);
        let texts = rows.map(|row| match row.kind {
            LineKind::Hunk => row.text.clone(),
            LineKind::Context => format!(" {}", row.text),
            LineKind::Added => format!("+{}", row.text),
            LineKind::Removed => format!("-{}", row.text),
        });
        Some(texts.collect::<Vec<_>>().join("\n"))
    }
}

fn sha(oid: Oid) -> Result<Sha, RepositoryError> {
    Sha::parse(&oid.to_string()).map_err(|error| RepositoryError::Refused(error.to_string()))
}

fn oid(sha: &Sha) -> Result<Oid, RepositoryError> {
    Oid::from_str(sha.as_str()).map_err(git("read commit id"))
}

fn when(commit: &git2::Commit<'_>) -> DateTime<Utc> {
    Utc.timestamp_opt(commit.committer().when().seconds(), 0).single().unwrap_or_default()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One bare repository, opened for each question: pushes by other programs are seen at once.
#[derive(Debug, Clone)]
pub(super) struct Bare {
    path: PathBuf,
}

impl Bare {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<Repository, RepositoryError> {
        Repository::open_bare(&self.path).map_err(git("open repository"))
    }

    fn init(&self, default_branch: &BranchName) -> Result<Repository, RepositoryError> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).map_err(|source| RepositoryError::Io {
                operation: "make the repository folder",
                path: parent.to_owned(),
                source,
            })?;
        }
        let mut options = RepositoryInitOptions::new();
        // No templates of the machine's own: a hook of theirs would run when somebody pushes.
        options.bare(true).no_reinit(true).external_template(false).initial_head(default_branch.as_str());
        Repository::init_opts(&self.path, &options).map_err(git("make repository"))
    }

    /// A new repository with one commit.
    pub(super) fn create(
        &self,
        default_branch: &BranchName,
        files: &[SeedFile<'_>],
        message: &str,
        now: DateTime<Utc>,
    ) -> Result<Sha, RepositoryError> {
        self.init(default_branch)?;
        self.commit_files(default_branch, files, message, now)
    }

    /// Commits `files` on top of a branch (made when it is not there).
    pub(super) fn commit_files(
        &self,
        branch: &BranchName,
        files: &[SeedFile<'_>],
        message: &str,
        now: DateTime<Utc>,
    ) -> Result<Sha, RepositoryError> {
        let repository = self.open()?;
        let parent = match repository.refname_to_id(&branch.full()) {
            Ok(id) => Some(repository.find_commit(id).map_err(git("read branch"))?),
            Err(error) if error.code() == ErrorCode::NotFound => None,
            Err(error) => return Err(git("read branch")(error)),
        };
        let baseline = match &parent {
            Some(commit) => commit.tree().map_err(git("read tree"))?,
            None => {
                let empty = repository.treebuilder(None).and_then(|builder| builder.write());
                repository.find_tree(empty.map_err(git("write tree"))?).map_err(git("write tree"))?
            }
        };
        let mut update = TreeUpdateBuilder::new();
        for file in files {
            let blob = repository.blob(file.content.as_bytes()).map_err(git("write file"))?;
            let mode = if file.executable { git2::FileMode::BlobExecutable } else { git2::FileMode::Blob };
            update.upsert(file.path, blob, mode);
        }
        let tree = update.create_updated(&repository, &baseline).map_err(git("write tree"))?;
        let tree = repository.find_tree(tree).map_err(git("write tree"))?;
        let signature = git2::Signature::new(
            "Local Maintainer",
            "maintainer@localhost",
            &git2::Time::new(now.timestamp(), 0),
        )
        .map_err(git("write commit"))?;
        let parents: Vec<&git2::Commit<'_>> = parent.iter().collect();
        let id = repository
            .commit(Some(&branch.full()), &signature, &signature, message, &tree, &parents)
            .map_err(git("write commit"))?;
        sha(id)
    }

    /// A new repository with every branch and tag of an existing one; gives the branch that is checked out there.
    pub(super) fn import(&self, source: &Path) -> Result<BranchName, RepositoryError> {
        let from = Repository::open(source).map_err(|error| {
            RepositoryError::Refused(format!(
                "{} is not a Git repository that can be read: {}",
                source.display(),
                error.message()
            ))
        })?;
        if from.is_shallow() {
            return Err(RepositoryError::Refused(format!(
                "{} is a shallow clone: run `git fetch --unshallow` there first",
                source.display()
            )));
        }
        if from.head_detached().unwrap_or(false) {
            return Err(RepositoryError::Refused(format!(
                "{} has no branch checked out (detached HEAD): run `git switch <branch>` there first",
                source.display()
            )));
        }
        let head = from.head().map_err(|_| {
            RepositoryError::Refused(format!("{} has no commits yet: make one first", source.display()))
        })?;
        let branch = lossy(head.shorthand_bytes());
        let branch =
            BranchName::parse(&branch).map_err(|error| RepositoryError::Refused(error.to_string()))?;
        let from_path = from.path().canonicalize().map_err(|source| RepositoryError::Io {
            operation: "find the repository",
            path: from.path().to_owned(),
            source,
        })?;
        let url = url::Url::from_file_path(&from_path).map_err(|()| {
            RepositoryError::Refused(format!("{} has no absolute path", from_path.display()))
        })?;
        let target = self.init(&branch)?;
        let mut remote = target.remote_anonymous(url.as_str()).map_err(git("import"))?;
        let mut options = FetchOptions::new();
        options.download_tags(git2::AutotagOption::None);
        remote
            .fetch(
                &["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"],
                Some(&mut options),
                Some("import"),
            )
            .map_err(git("import"))?;
        Ok(branch)
    }

    pub(super) fn branch_head(&self, branch: &BranchName) -> Result<Option<Sha>, RepositoryError> {
        match self.open()?.refname_to_id(&branch.full()) {
            Ok(id) => sha(id).map(Some),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(git("read branch")(error)),
        }
    }

    /// A new repository without any commit.
    pub(super) fn create_empty(&self, default_branch: &BranchName) -> Result<(), RepositoryError> {
        self.init(default_branch).map(|_| ())
    }

    pub(super) fn delete_branch(&self, branch: &BranchName) -> Result<(), RepositoryError> {
        let repository = self.open()?;
        let mut reference = repository.find_reference(&branch.full()).map_err(git("delete branch"))?;
        reference.delete().map_err(git("delete branch"))
    }

    /// Brings the head of a fork's branch here, as `refs/pull/<number>/head`: a pull request shows and offers it.
    pub(super) fn take_pull(
        &self,
        fork: &Bare,
        branch: &BranchName,
        number: i64,
    ) -> Result<(), RepositoryError> {
        let url = url::Url::from_file_path(&fork.path).map_err(|()| {
            RepositoryError::Refused(format!("{} has no absolute path", fork.path.display()))
        })?;
        let into = self.open()?;
        let mut remote = into.remote_anonymous(url.as_str()).map_err(git("read the fork"))?;
        let mut options = FetchOptions::new();
        options.download_tags(git2::AutotagOption::None).update_fetchhead(false);
        let spec = format!("+{}:refs/pull/{number}/head", branch.full());
        remote.fetch(&[spec.as_str()], Some(&mut options), Some("pull request")).map_err(git("read the fork"))
    }

    pub(super) fn has_commit(&self, commit: &Sha) -> Result<bool, RepositoryError> {
        match self.open()?.find_commit(oid(commit)?) {
            Ok(_) => Ok(true),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(false),
            Err(error) => Err(git("read commit")(error)),
        }
    }

    /// How many commits `head` has that `base` has not.
    pub(super) fn commits_ahead(&self, base: &Sha, head: &Sha) -> Result<usize, RepositoryError> {
        let (ahead, _) =
            self.open()?.graph_ahead_behind(oid(head)?, oid(base)?).map_err(git("compare branches"))?;
        Ok(ahead)
    }

    pub(super) fn branches(&self) -> Result<Vec<BranchInfo>, RepositoryError> {
        let repository = self.open()?;
        let mut found = Vec::new();
        for reference in
            repository.references_glob("refs/heads/*").map_err(git("list branches"))?.take(MAX_BRANCHES)
        {
            let reference = reference.map_err(git("list branches"))?;
            // A ref to something that is not a commit is no branch for people.
            let Ok(commit) = reference.peel_to_commit() else { continue };
            found.push(BranchInfo {
                name: lossy(reference.shorthand_bytes()),
                head: sha(commit.id())?,
                subject: subject(&commit),
                when: when(&commit),
            });
        }
        Ok(found)
    }

    /// The tree entry at `path` of a branch or commit.
    fn entry(
        repository: &Repository,
        at: &str,
        path: &str,
    ) -> Result<Option<(Oid, ObjectType)>, RepositoryError> {
        let full = format!("refs/heads/{at}");
        let commit = match Sha::parse(at) {
            Ok(id) => repository.find_commit(oid(&id)?),
            Err(_) => repository.find_reference(&full).and_then(|reference| reference.peel_to_commit()),
        };
        let commit = match commit {
            Ok(commit) => commit,
            Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::InvalidSpec) => {
                return Ok(None);
            }
            Err(error) => return Err(git("read commit")(error)),
        };
        let tree = commit.tree().map_err(git("read tree"))?;
        let path = path.trim_matches('/');
        if path.is_empty() {
            return Ok(Some((tree.id(), ObjectType::Tree)));
        }
        let plain = |part| matches!(part, std::path::Component::Normal(_));
        if !Path::new(path).components().all(plain) {
            return Ok(None);
        }
        match tree.get_path(Path::new(path)) {
            Ok(entry) => Ok(entry.kind().map(|kind| (entry.id(), kind))),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(git("read tree")(error)),
        }
    }

    /// The bytes of a file; `None` when there is none.
    pub(super) fn read_file(&self, at: &str, path: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
        let repository = self.open()?;
        let Some((id, ObjectType::Blob)) = Self::entry(&repository, at, path)? else { return Ok(None) };
        let (size, _) = repository.odb().and_then(|odb| odb.read_header(id)).map_err(git("read file"))?;
        if size > MAX_FILE_BYTES {
            return Err(RepositoryError::Refused(format!(
                "`{path}` has {size} bytes; at most {MAX_FILE_BYTES} are read"
            )));
        }
        let blob = repository.find_blob(id).map_err(git("read file"))?;
        Ok(Some(blob.content().to_vec()))
    }

    /// Names of the files directly in a folder.
    pub(super) fn list_folder(&self, at: &str, path: &str) -> Result<Vec<String>, RepositoryError> {
        let repository = self.open()?;
        let Some((id, ObjectType::Tree)) = Self::entry(&repository, at, path)? else { return Ok(Vec::new()) };
        let tree = repository.find_tree(id).map_err(git("read tree"))?;
        let shown = |entry: git2::TreeEntry<'_>| match entry.kind() {
            Some(ObjectType::Blob) => Some(lossy(entry.name_bytes())),
            Some(ObjectType::Tree) => Some(format!("{}/", lossy(entry.name_bytes()))),
            _ => None,
        };
        Ok(tree.iter().filter_map(shown).collect())
    }

    /// Writes every file of a commit below `folder`, which must be empty or not there.
    pub(super) fn export(&self, at: &Sha, folder: &Path) -> Result<(), RepositoryError> {
        let repository = self.open()?;
        let commit = repository.find_commit(oid(at)?).map_err(git("read commit"))?;
        let mut checkout = git2::build::CheckoutBuilder::new();
        checkout.target_dir(folder).force().update_index(false);
        repository
            .checkout_tree(commit.as_object(), Some(&mut checkout))
            .map_err(git("write the files of the commit"))
    }

    /// Brings a branch of this repository into another one under the same name, touching nothing else there.
    pub(super) fn copy_branch_to(&self, branch: &BranchName, target: &Path) -> Result<(), RepositoryError> {
        let into = Repository::open(target).map_err(git("open the target repository"))?;
        let url = url::Url::from_file_path(&self.path).map_err(|()| {
            RepositoryError::Refused(format!("{} has no absolute path", self.path.display()))
        })?;
        let mut remote = into.remote_anonymous(url.as_str()).map_err(git("copy branch"))?;
        let mut options = FetchOptions::new();
        options.download_tags(git2::AutotagOption::None).update_fetchhead(false);
        // Without `+`: a branch of that name that holds other work is refused, not overwritten.
        let spec = format!("{0}:{0}", branch.full());
        remote.fetch(&[spec.as_str()], Some(&mut options), Some("zeblit run")).map_err(git("copy branch"))?;
        let there = into.refname_to_id(&branch.full()).map_err(git("copy branch"))?;
        match self.branch_head(branch)? {
            Some(head) if head.as_str() == there.to_string() => Ok(()),
            _ => Err(RepositoryError::Refused(format!(
                "the branch `{}` of {} holds other commits already",
                branch.as_str(),
                target.display()
            ))),
        }
    }

    /// The unified diff between the merge base of two commits and `head`, for a terminal.
    pub(super) fn diff_text(
        &self,
        base: &Sha,
        head: &Sha,
        max_bytes: usize,
    ) -> Result<String, RepositoryError> {
        let repository = self.open()?;
        let diff = Self::diff(&repository, base, head)?;
        let mut text = Vec::new();
        let printed = diff.print(DiffFormat::Patch, |_, _, line| {
            if matches!(line.origin(), '+' | '-' | ' ') {
                text.extend(line.origin().encode_utf8(&mut [0; 4]).bytes());
            }
            text.extend_from_slice(line.content());
            text.len() <= max_bytes
        });
        match printed {
            Ok(()) => {}
            // Our own callback said stop: the diff is longer than wanted.
            Err(error) if error.code() == ErrorCode::User => {
                text.truncate(max_bytes);
                text.extend_from_slice(b"\n... (cut)\n");
            }
            Err(error) => return Err(git("read diff")(error)),
        }
        Ok(lossy(&text))
    }

    fn diff<'r>(
        repository: &'r Repository,
        base: &Sha,
        head: &Sha,
    ) -> Result<git2::Diff<'r>, RepositoryError> {
        let (base, head) = (oid(base)?, oid(head)?);
        let old = match repository.merge_base(base, head) {
            Ok(id) => Some(repository.find_commit(id).and_then(|c| c.tree()).map_err(git("read tree"))?),
            // Unrelated histories: everything is new.
            Err(error) if error.code() == ErrorCode::NotFound => None,
            Err(error) => return Err(git("find merge base")(error)),
        };
        let new = repository.find_commit(head).and_then(|c| c.tree()).map_err(git("read tree"))?;
        let mut diff =
            repository.diff_tree_to_tree(old.as_ref(), Some(&new), None).map_err(git("read diff"))?;
        diff.find_similar(None).map_err(git("find renames"))?;
        Ok(diff)
    }

    pub(super) fn compare(&self, base: &Sha, head: &Sha) -> Result<Comparison, RepositoryError> {
        let repository = self.open()?;
        let mut comparison = Comparison::default();
        let mut walk = repository.revwalk().map_err(git("list commits"))?;
        walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE).map_err(git("list commits"))?;
        walk.push(oid(head)?).map_err(git("list commits"))?;
        walk.hide(oid(base)?).map_err(git("list commits"))?;
        for id in walk {
            if comparison.commits.len() >= MAX_COMMITS {
                comparison.cut = true;
                break;
            }
            let commit = id.and_then(|id| repository.find_commit(id)).map_err(git("list commits"))?;
            comparison.commits.push(CommitInfo {
                id: sha(commit.id())?,
                subject: subject(&commit),
                body: commit.body_bytes().map(lossy).unwrap_or_default(),
                author: lossy(commit.author().name_bytes()),
                when: when(&commit),
            });
        }
        let diff = Self::diff(&repository, base, head)?;
        let mut room = MAX_DIFF_LINES;
        for (index, delta) in diff.deltas().enumerate() {
            if index >= MAX_DIFF_FILES {
                comparison.cut = true;
                break;
            }
            let old = delta.old_file().path_bytes().map(lossy);
            let new = delta.new_file().path_bytes().map(lossy);
            let what = match delta.status() {
                Delta::Added => "added",
                Delta::Deleted => "deleted",
                Delta::Renamed => "renamed",
                Delta::Copied => "copied",
                Delta::Typechange => "type changed",
                _ => "changed",
            };
            let mut file = FileDiff {
                path: new.clone().or_else(|| old.clone()).unwrap_or_default(),
                old_path: (delta.status() == Delta::Renamed).then_some(old).flatten(),
                what,
                binary: false,
                added: 0,
                removed: 0,
                lines: Vec::new(),
            };
            match Patch::from_diff(&diff, index).map_err(git("read diff"))? {
                None => file.binary = true,
                Some(patch) => {
                    file.binary = patch.delta().flags().is_binary();
                    let (_, added, removed) = patch.line_stats().map_err(git("read diff"))?;
                    (file.added, file.removed) = (added, removed);
                    for hunk_index in 0..patch.num_hunks() {
                        let (hunk, lines) = patch.hunk(hunk_index).map_err(git("read diff"))?;
                        if room == 0 {
                            comparison.cut = true;
                            break;
                        }
                        file.lines.push(DiffLine {
                            kind: LineKind::Hunk,
                            old: None,
                            new: None,
                            text: lossy(hunk.header()).trim_end().to_owned(),
                        });
                        for line_index in 0..lines {
                            if room == 0 {
                                comparison.cut = true;
                                break;
                            }
                            let line =
                                patch.line_in_hunk(hunk_index, line_index).map_err(git("read diff"))?;
                            let kind = match line.origin() {
                                '+' => LineKind::Added,
                                '-' => LineKind::Removed,
                                ' ' => LineKind::Context,
                                // "No newline at end of file" marks.
                                _ => continue,
                            };
                            room -= 1;
                            file.lines.push(DiffLine {
                                kind,
                                old: line.old_lineno(),
                                new: line.new_lineno(),
                                text: lossy(line.content()).trim_end_matches(['\n', '\r']).to_owned(),
                            });
                        }
                    }
                }
            }
            comparison.files.push(file);
        }
        Ok(comparison)
    }
}

fn subject(commit: &git2::Commit<'_>) -> String {
    let message = lossy(commit.message_bytes());
    message.lines().next().unwrap_or_default().to_owned()
}
