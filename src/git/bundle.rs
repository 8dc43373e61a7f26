//! Purpose: the strict way in for what an agent made, and the way out to the remote.
//!
//! The only thing read is one bundle file. Its header is parsed here, its pack is checked by
//! `git index-pack` in a fresh repository of ours, and its commits are made anew: author, time,
//! message and masked files are the host's decision. The same input always gives the same commits.

use super::mirror::{self, Mirror};
use super::transport::{Call, Finished, Input, PUSH_LIMIT, UNPACK_LIMIT, classify};
use super::{Access, Git, GitError, ImportCaps, Imported, Rewrite, TemporaryFolder, blocking, object_error};
use crate::domain::effect::BranchPush;
use crate::domain::gate::{ADDED_TEXT_BYTES, Change, Changeset, Mode, is_ignorable, shown};
use crate::domain::ids::Sha;
use crate::domain::sanitize::for_commit;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The file in the output folder.
pub const BUNDLE_FILE: &str = "changes.bundle";
/// The one ref of every bundle.
pub const RESULT_REF: &str = "refs/heads/zeblit-result";
/// Lines and bytes of a bundle's header: one ref and as many prerequisites as commits, roughly.
const HEADER_LINES: usize = 200;
const HEADER_LINE_BYTES: u64 = 4096;
/// One commit object (bytes); messages are cut far below.
const COMMIT_BYTES: usize = 256 * 1024;
/// One tree object (bytes): about 250 000 files in one folder.
const TREE_BYTES: usize = 16 * 1024 * 1024;
/// Files larger than this are not compared by lines (bytes).
const TEXT_BYTES: usize = 4 * 1024 * 1024;
/// Changed paths of all commits together; the gate's own cap is far lower.
const CHANGES_CAP: usize = 20_000;
/// Trees read for one import: bounds trees that name the same subtree again and again.
const TREES_CAP: usize = 200_000;
/// Folder depth.
const DEPTH_CAP: usize = 128;
/// Dropped paths that are reported.
const DROPPED_CAP: usize = 100;
/// The diff for people (bytes).
const DIFF_BYTES: usize = 256 * 1024;
/// Comparing and rewriting must end.
const REWRITE_LIMIT: Duration = Duration::from_secs(120);
/// A message of an agent (bytes) and its first line (characters).
const MESSAGE_BYTES: usize = 4096;
const SUBJECT_CHARS: usize = 72;
/// The message of a commit that has none.
const DEFAULT_SUBJECT: &str = "Apply changes";

/// `O_NOFOLLOW` and `O_NONBLOCK` of Linux: a symbolic link is refused, a FIFO does not block.
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
pub(super) const O_NOFOLLOW: i32 = 0o100_000;
#[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
pub(super) const O_NOFOLLOW: i32 = 0o400_000;
pub(super) const O_NONBLOCK: i32 = 0o4000;

const IMPORT: &str = "import the result";
const PUSH: &str = "push";

fn rejected(detail: impl Into<String>) -> GitError {
    GitError::Rejected { detail: detail.into() }
}

/// What a bundle's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    prerequisites: Vec<Sha>,
    tip: Sha,
    /// Bytes before the pack.
    length: u64,
}

/// Whether these bytes begin with a header that an import would go on from.
pub fn is_acceptable_header(bytes: &[u8]) -> bool {
    parse_header(bytes).is_ok()
}

/// Reads the header: version 2, or 3 with SHA-1; exactly one ref with the agreed name.
fn parse_header(mut from: impl BufRead) -> Result<Header, GitError> {
    let mut length = 0;
    let mut line = |from: &mut dyn BufRead| -> Result<String, GitError> {
        let mut bytes = Vec::new();
        let mut limited = io::Read::take(from, HEADER_LINE_BYTES);
        let count = io::BufRead::read_until(&mut limited, b'\n', &mut bytes)
            .map_err(|error| rejected(format!("the bundle cannot be read: {error}")))?;
        if bytes.pop() != Some(b'\n') {
            return Err(rejected("the bundle's header is cut off or has a line that is too long"));
        }
        length += u64::try_from(count).unwrap_or(u64::MAX);
        // Comments of prerequisites may be in any encoding.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let version = match line(&mut from)?.as_str() {
        "# v2 git bundle" => 2,
        "# v3 git bundle" => 3,
        _ => return Err(rejected("the result is not a Git bundle of version 2 or 3")),
    };
    let mut prerequisites = Vec::new();
    let mut tip = None;
    for _ in 0..HEADER_LINES {
        let text = line(&mut from)?;
        if text.is_empty() {
            let tip = tip.ok_or_else(|| rejected(format!("the bundle does not hold `{RESULT_REF}`")))?;
            return Ok(Header { prerequisites, tip, length });
        }
        let id =
            |text: &str| Sha::parse(text).map_err(|error| rejected(format!("the bundle's header: {error}")));
        if let Some(capability) = text.strip_prefix('@') {
            if version == 3 && capability == "object-format=sha1" && tip.is_none() {
                continue;
            }
            return Err(rejected("the bundle asks for something other than a plain SHA-1 bundle"));
        }
        if let Some(rest) = text.strip_prefix('-') {
            if tip.is_some() {
                return Err(rejected("the bundle's header is out of order"));
            }
            prerequisites.push(id(rest.split(' ').next().unwrap_or_default())?);
            continue;
        }
        let (sha, name) = text.split_once(' ').unwrap_or((&text, ""));
        if name != RESULT_REF {
            return Err(rejected(format!(
                "the bundle holds a ref `{}`; only `{RESULT_REF}` is allowed",
                shown(name.as_bytes())
            )));
        }
        if tip.replace(id(sha)?).is_some() {
            return Err(rejected("the bundle holds more than one ref"));
        }
    }
    Err(rejected(format!("the bundle's header has more than {HEADER_LINES} lines")))
}

/// Opens a file of the output folder without following links or waiting; `None` when there is none.
fn open_result(output: &Path, name: &str, cap: u64) -> Result<Option<std::fs::File>, GitError> {
    let path = output.join(name);
    let not_regular = || rejected(format!("`{name}` is not a regular file"));
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(not_regular()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(GitError::Io { operation: IMPORT, path, source }),
    }
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(rejected(format!("`{name}` may not be read")));
        }
        Err(_) => return Err(not_regular()),
    };
    let io_error = |source| GitError::Io { operation: IMPORT, path: path.clone(), source };
    let found = file.metadata().map_err(io_error)?;
    if !found.is_file() {
        return Err(not_regular());
    }
    if found.len() > cap {
        return Err(rejected(format!("`{name}` has {} bytes, at most {cap} are allowed", found.len())));
    }
    Ok(Some(file))
}

/// See `Git::output_file`.
pub(crate) async fn output_file(
    output: &Path,
    name: &'static str,
    cap: u64,
) -> Result<Option<Vec<u8>>, GitError> {
    let output = output.to_owned();
    blocking(IMPORT, move || {
        let Some(file) = open_result(&output, name, cap)? else { return Ok(None) };
        let mut bytes = Vec::new();
        // The cap again while reading: the file may grow under a hostile hand that is not stopped.
        io::Read::read_to_end(&mut io::Read::take(file, cap.saturating_add(1)), &mut bytes)
            .map_err(|source| GitError::Io { operation: IMPORT, path: output.join(name), source })?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > cap {
            return Err(rejected(format!("`{name}` has more than {cap} bytes")));
        }
        Ok(Some(bytes))
    })
    .await
}

/// Opens the bundle and reads its header; `None` when there is none.
fn open_bundle(output: &Path, cap: u64) -> Result<Option<(std::fs::File, Header)>, GitError> {
    let Some(mut file) = open_result(output, BUNDLE_FILE, cap)? else { return Ok(None) };
    let path = output.join(BUNDLE_FILE);
    let io_error = |source| GitError::Io { operation: IMPORT, path: path.clone(), source };
    let header = parse_header(io::BufReader::new(&mut file))?;
    file.seek(SeekFrom::Start(header.length)).map_err(io_error)?;
    Ok(Some((file, header)))
}

/// A fresh bare repository that borrows the mirror's objects: only what Git takes for one.
fn fresh_repository(
    git: &Git,
    mirror: &Mirror,
    prefix: &str,
) -> Result<(TemporaryFolder, PathBuf), GitError> {
    let folder = TemporaryFolder(git.fresh_folder(&git.root.join("tmp"), prefix)?);
    let path = folder.0.join("repository.git");
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| GitError::Io { operation: "make a repository", path, source }
    };
    for part in ["objects/info", "objects/pack", "refs"] {
        let part = path.join(part);
        std::fs::create_dir_all(&part).map_err(io_error(&part))?;
    }
    let alternates = format!("{}\n", mirror.objects().display());
    for (file, text) in [
        ("HEAD", "ref: refs/heads/main\n"),
        ("config", "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"),
        ("objects/info/alternates", alternates.as_str()),
    ] {
        let file = path.join(file);
        std::fs::write(&file, text).map_err(io_error(&file))?;
    }
    Ok((folder, path))
}

/// Checks and stores a pack in the fresh repository; whatever breaks a rule of Git is refused.
async fn unpack(git: &Git, repository: &Path, pack: Input, cap: u64) -> Result<(), GitError> {
    let finished = Call::local(IMPORT, &git.root)
        .git_dir(repository)
        .args(["-c", "pack.threads=1", "-c", "core.deltaBaseCacheLimit=32m"])
        // The repository does not outlive this process, nor is it read backwards.
        .args(["-c", "core.fsync=none", "-c", "pack.writeReverseIndex=false"])
        .args(["index-pack", "--stdin", "--fix-thin", "--strict", "--fsck-objects", "--threads=1"])
        .arg(format!("--max-input-size={cap}"))
        .input(pack)
        .limit(UNPACK_LIMIT)
        .confined()
        .run()
        .await
        .map_err(|error| match error {
            GitError::Failed { detail, .. } => rejected(format!("the pack could not be read: {detail}")),
            other => other,
        })?;
    if finished.success {
        Ok(())
    } else {
        Err(rejected(format!("Git refuses the objects: {}", finished.detail())))
    }
}

/// See `Git::import`.
pub(crate) async fn import(
    git: &Git,
    mirror: &Mirror,
    output: &Path,
    start: &Sha,
    rewrite: &Rewrite,
    caps: ImportCaps,
) -> Result<Option<Imported>, GitError> {
    let opened = {
        let (git, mirror, output, start) = (git.clone(), mirror.clone(), output.to_owned(), start.clone());
        blocking(IMPORT, move || {
            let Some((file, header)) = open_bundle(&output, caps.bundle_bytes)? else { return Ok(None) };
            check_prerequisites(&mirror, &header, &start)?;
            if header.tip == start {
                return Ok(None);
            }
            fresh_repository(&git, &mirror, "import-").map(|fresh| Some((file, header, fresh)))
        })
    };
    let Some((file, header, (_folder, repository))) = opened.await? else { return Ok(None) };
    // The cap again while reading: the file may grow under a hostile hand that is not stopped.
    unpack(git, &repository, Input::File(tokio::fs::File::from_std(file)), caps.bundle_bytes).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let work = {
        let (repository, start, rewrite, stop) =
            (repository.clone(), start.clone(), rewrite.clone(), Arc::clone(&stop));
        blocking(IMPORT, move || rewrite_chain(&repository, &header.tip, &start, &rewrite, caps, &stop))
    };
    let rewritten = match tokio::time::timeout(REWRITE_LIMIT, work).await {
        Ok(done) => done?,
        Err(_) => {
            stop.store(true, Ordering::Relaxed);
            return Err(rejected("comparing the commits takes too long"));
        }
    };
    let Some((changeset, diff, dropped)) = rewritten else { return Ok(None) };
    let bundle = create_bundle(git, &repository, start, &changeset.head, caps).await?;
    Ok(Some(Imported { changeset, bundle, diff, dropped }))
}

/// Each prerequisite is the start commit or one of its ancestors; there is at least one.
fn check_prerequisites(mirror: &Mirror, header: &Header, start: &Sha) -> Result<(), GitError> {
    if header.prerequisites.is_empty() {
        return Err(rejected("the bundle does not build on the pinned commit: it names no prerequisite"));
    }
    if header.prerequisites.iter().all(|sha| sha == start) {
        return Ok(());
    }
    let repository = mirror::open(IMPORT, &mirror.path)?;
    let start_id = mirror::oid(IMPORT, start)?;
    for sha in header.prerequisites.iter().filter(|sha| *sha != start) {
        let id = mirror::oid(IMPORT, sha)?;
        if !repository.graph_descendant_of(start_id, id).unwrap_or(false) {
            return Err(rejected(format!(
                "the bundle builds on {}, which is not in the history of the pinned commit {}",
                sha.short(),
                start.short()
            )));
        }
    }
    Ok(())
}

/// The bundle that is kept: made by us, from commits made by us. `git bundle create` would start another Git for the pack.
async fn create_bundle(
    git: &Git,
    repository: &Path,
    start: &Sha,
    head: &Sha,
    caps: ImportCaps,
) -> Result<Vec<u8>, GitError> {
    let header = format!("# v2 git bundle\n-{start} \n{head} {RESULT_REF}\n\n");
    let cap = usize::try_from(caps.bundle_bytes).unwrap_or(usize::MAX).saturating_sub(header.len());
    let finished = Call::local("make the bundle", &git.root)
        .git_dir(repository)
        .args(["pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset", "--threads=1", "-q"])
        .input(Input::Bytes(format!("{head}\n^{start}\n").into_bytes()))
        .output_cap(cap)
        .run_checked()
        .await?;
    if finished.truncated {
        return Err(rejected(format!("the rewritten bundle has more than {} bytes", caps.bundle_bytes)));
    }
    let mut bundle = finished.stdout;
    bundle.splice(0..0, header.into_bytes());
    Ok(bundle)
}

/// One side of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side {
    mode: i32,
    id: git2::Oid,
}

impl Side {
    fn kind(side: Option<Side>) -> Mode {
        match side.map(|side| side.mode) {
            None => Mode::Absent,
            Some(0o100_644 | 0o100_664) => Mode::File,
            Some(0o100_755) => Mode::Executable,
            Some(0o120_000) => Mode::Symlink,
            Some(0o160_000) => Mode::Gitlink,
            Some(_) => Mode::Other,
        }
    }
}

const TREE_MODE: i32 = 0o040_000;

/// A repository with the budgets of one import.
struct Reader<'r> {
    repository: &'r git2::Repository,
    objects: git2::Odb<'r>,
    stop: &'r AtomicBool,
    trees: usize,
}

type Difference = (Vec<u8>, Option<Side>, Option<Side>);

impl<'r> Reader<'r> {
    fn new(repository: &'r git2::Repository, stop: &'r AtomicBool) -> Result<Self, GitError> {
        let objects = repository.odb().map_err(object_error(IMPORT))?;
        Ok(Self { repository, objects, stop, trees: 0 })
    }

    fn go_on(&self) -> Result<(), GitError> {
        if self.stop.load(Ordering::Relaxed) {
            Err(rejected("comparing the commits takes too long"))
        } else {
            Ok(())
        }
    }

    fn size(&self, id: git2::Oid) -> Result<usize, GitError> {
        self.objects.read_header(id).map(|(size, _)| size).map_err(object_error(IMPORT))
    }

    fn commit(&self, id: git2::Oid) -> Result<git2::Commit<'r>, GitError> {
        let (size, kind) = self.objects.read_header(id).map_err(object_error(IMPORT))?;
        if kind != git2::ObjectType::Commit {
            return Err(rejected("the result is not a commit"));
        }
        if size > COMMIT_BYTES {
            return Err(rejected(format!("a commit has more than {COMMIT_BYTES} bytes")));
        }
        self.repository.find_commit(id).map_err(object_error(IMPORT))
    }

    fn tree(&mut self, id: git2::Oid) -> Result<git2::Tree<'r>, GitError> {
        self.go_on()?;
        self.trees += 1;
        if self.trees > TREES_CAP {
            return Err(rejected(format!("more than {TREES_CAP} folders would have to be read")));
        }
        if self.size(id)? > TREE_BYTES {
            return Err(rejected(format!("a folder's listing has more than {TREE_BYTES} bytes")));
        }
        self.repository.find_tree(id).map_err(object_error(IMPORT))
    }

    fn entries(&mut self, id: Option<git2::Oid>) -> Result<BTreeMap<Vec<u8>, Side>, GitError> {
        let Some(id) = id else { return Ok(BTreeMap::new()) };
        let tree = self.tree(id)?;
        Ok(tree
            .iter()
            .map(|entry| (entry.name_bytes().to_vec(), Side { mode: entry.filemode_raw(), id: entry.id() }))
            .collect())
    }

    /// Every file that differs between two trees. Ours and not the library's: it counts what it reads.
    fn differences(&mut self, old: git2::Oid, new: git2::Oid) -> Result<Vec<Difference>, GitError> {
        let mut found = Vec::new();
        let mut open = vec![(Vec::new(), Some(old), Some(new), 0_usize)];
        while let Some((prefix, old, new, depth)) = open.pop() {
            if old == new {
                continue;
            }
            if depth > DEPTH_CAP {
                return Err(rejected(format!("folders are nested more than {DEPTH_CAP} deep")));
            }
            let before = self.entries(old)?;
            let after = self.entries(new)?;
            let names: BTreeSet<&Vec<u8>> = before.keys().chain(after.keys()).collect();
            for name in names {
                let (old, new) = (before.get(name).copied(), after.get(name).copied());
                if old == new {
                    continue;
                }
                let path = join(&prefix, name);
                let is_tree = |side: &Side| side.mode == TREE_MODE;
                let trees =
                    (old.filter(is_tree).map(|side| side.id), new.filter(is_tree).map(|side| side.id));
                if trees != (None, None) {
                    open.push((path.clone(), trees.0, trees.1, depth + 1));
                }
                let is_file = |side: &Side| side.mode != TREE_MODE;
                let (old, new) = (old.filter(is_file), new.filter(is_file));
                if old != new {
                    found.push((path, old, new));
                    if found.len() > CHANGES_CAP {
                        return Err(rejected(format!("more than {CHANGES_CAP} files are changed")));
                    }
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// The content of a side when it is a blob small enough to look at.
    fn content(&self, side: Option<Side>) -> Result<Option<Vec<u8>>, GitError> {
        match side {
            None => Ok(Some(Vec::new())),
            Some(side) if side.mode == 0o160_000 => Ok(Some(Vec::new())),
            Some(side) if self.size(side.id)? > TEXT_BYTES => Ok(None),
            Some(side) => {
                let blob = self.repository.find_blob(side.id).map_err(object_error(IMPORT))?;
                Ok(Some(blob.content().to_vec()))
            }
        }
    }
}

fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = prefix.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// What one commit changed in one file.
struct Comparison {
    added_lines: i64,
    removed_lines: i64,
    binary: bool,
    new_bytes: i64,
}

fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Appends to the text for the secret scan as much as it still takes.
fn keep(text: &mut Vec<u8>, bytes: &[u8]) {
    let room = ADDED_TEXT_BYTES.saturating_sub(text.len());
    text.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
}

impl Reader<'_> {
    fn compare(
        &self,
        old: Option<Side>,
        new: Option<Side>,
        text: &mut Vec<u8>,
    ) -> Result<Comparison, GitError> {
        self.go_on()?;
        let same_content = old.map(|side| side.id) == new.map(|side| side.id);
        let mut result = Comparison { added_lines: 0, removed_lines: 0, binary: false, new_bytes: 0 };
        if same_content {
            return Ok(result);
        }
        let is_binary = |bytes: &[u8]| bytes.iter().take(8000).any(|byte| *byte == 0);
        let (before, after) = (self.content(old)?, self.content(new)?);
        let (Some(before), Some(after)) = (before, after) else {
            result.binary = true;
            if let Some(side) = new.filter(|side| side.mode != 0o160_000) {
                result.new_bytes = count(self.size(side.id)?);
                // Too large to scan: a full text makes the gate refuse it.
                text.resize(ADDED_TEXT_BYTES, b'\n');
            }
            return Ok(result);
        };
        if is_binary(&before) || is_binary(&after) {
            result.binary = true;
            result.new_bytes = count(after.len());
            keep(text, &after);
            keep(text, b"\n");
            return Ok(result);
        }
        let mut options = git2::DiffOptions::new();
        options.context_lines(0).interhunk_lines(0).force_text(true);
        let patch = git2::Patch::from_buffers(&before, None, &after, None, Some(&mut options))
            .map_err(object_error(IMPORT))?;
        for hunk in 0..patch.num_hunks() {
            for line in 0..patch.num_lines_in_hunk(hunk).map_err(object_error(IMPORT))? {
                let line = patch.line_in_hunk(hunk, line).map_err(object_error(IMPORT))?;
                match line.origin() {
                    '+' => {
                        result.added_lines += 1;
                        result.new_bytes += count(line.content().len());
                        keep(text, line.content());
                    }
                    '-' => result.removed_lines += 1,
                    _ => {}
                }
            }
        }
        keep(text, b"\n");
        Ok(result)
    }
}

/// Rewrites the chain and describes the result. `None`: nothing changed.
fn rewrite_chain(
    path: &Path,
    tip: &Sha,
    start: &Sha,
    rewrite: &Rewrite,
    caps: ImportCaps,
    stop: &AtomicBool,
) -> Result<Option<(Changeset, String, Vec<String>)>, GitError> {
    let repository = mirror::open(IMPORT, path)?;
    let mut reader = Reader::new(&repository, stop)?;
    let start_id = mirror::oid(IMPORT, start)?;
    let originals = chain(&reader, mirror::oid(IMPORT, tip)?, start_id, caps.commits)?;
    let start_tree = reader.commit(start_id)?.tree_id();
    let masked: Vec<Vec<u8>> = rewrite
        .masked
        .iter()
        .map(|path| path.trim_matches('/').as_bytes().to_vec())
        .filter(|path| !path.is_empty())
        .collect();

    let signature = git2::Signature::new(
        &plain_name(&rewrite.author_name, "Zeblit"),
        &plain_name(&rewrite.author_email, "zeblit@localhost"),
        &git2::Time::new(rewrite.time, 0),
    )
    .map_err(object_error(IMPORT))?;
    let mut dropped = BTreeSet::new();
    let mut text = Vec::new();
    let mut seen: BTreeMap<Vec<u8>, Seen> = BTreeMap::new();
    let (mut parent, mut parent_tree) = (start_id, start_tree);
    let mut commits = 0;
    for id in originals {
        let original = reader.commit(id)?;
        let touched = masks_touched(&mut reader, start_tree, original.tree_id(), &masked)?;
        note_dropped(&mut reader, start_tree, original.tree_id(), &touched, &mut dropped)?;
        let mut tree = original.tree_id();
        for path in &touched {
            let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
            tree = restore(&mut reader, Some(tree), Some(start_tree), &parts)?
                .unwrap_or(empty_tree(&repository)?);
        }
        if tree == parent_tree {
            continue;
        }
        for (path, old, new) in reader.differences(parent_tree, tree)? {
            keep(&mut text, &path);
            keep(&mut text, b"\n");
            let comparison = reader.compare(old, new, &mut text)?;
            seen.entry(path).or_default().add(Side::kind(new), &comparison);
            if seen.len() > CHANGES_CAP {
                return Err(rejected(format!("more than {CHANGES_CAP} files are changed")));
            }
        }
        let message = message(original.message_raw_bytes(), &rewrite.trailers);
        keep(&mut text, message.as_bytes());
        let parent_commit = reader.commit(parent)?;
        let tree_object = reader.tree(tree)?;
        parent = repository
            .commit(None, &signature, &signature, &message, &tree_object, &[&parent_commit])
            .map_err(object_error(IMPORT))?;
        parent_tree = tree;
        commits += 1;
    }
    if parent_tree == start_tree {
        return Ok(None);
    }
    let changes = changes(&mut reader, start_tree, parent_tree, seen)?;
    let diff = diff(&repository, start_tree, parent_tree)?;
    let head = Sha::parse(&parent.to_string())
        .map_err(|error| GitError::Failed { operation: IMPORT, detail: error.to_string() })?;
    let changeset = Changeset { base: start.clone(), head, commits, changes, added_text: text };
    Ok(Some((changeset, diff, dropped.into_iter().take(DROPPED_CAP).collect())))
}

fn empty_tree(repository: &git2::Repository) -> Result<git2::Oid, GitError> {
    repository.treebuilder(None).and_then(|builder| builder.write()).map_err(object_error(IMPORT))
}

/// The commits between start and tip, oldest first; each must have exactly one parent.
fn chain(
    reader: &Reader<'_>,
    tip: git2::Oid,
    start: git2::Oid,
    cap: usize,
) -> Result<Vec<git2::Oid>, GitError> {
    let mut commits = Vec::new();
    let mut at = tip;
    while at != start {
        if commits.len() >= cap {
            return Err(rejected(format!(
                "the result has more than {cap} commits or does not build on the pinned commit"
            )));
        }
        let commit = reader.commit(at)?;
        match commit.parent_count() {
            1 => {}
            0 => return Err(rejected("the result does not build on the pinned commit")),
            _ => {
                return Err(rejected("the result holds a merge commit; the history must be a straight line"));
            }
        }
        commits.push(at);
        at = commit.parent_id(0).map_err(object_error(IMPORT))?;
    }
    commits.reverse();
    Ok(commits)
}

/// What all commits together did to one path.
#[derive(Debug, Default)]
struct Seen {
    added_lines: i64,
    removed_lines: i64,
    binary: bool,
    new_bytes: i64,
    /// A mode that no commit may give it, even when a later one takes it back.
    bad_mode: Option<Mode>,
}

impl Seen {
    fn add(&mut self, mode: Mode, comparison: &Comparison) {
        self.added_lines += comparison.added_lines;
        self.removed_lines += comparison.removed_lines;
        self.binary |= comparison.binary;
        self.new_bytes = self.new_bytes.saturating_add(comparison.new_bytes);
        if matches!(mode, Mode::Symlink | Mode::Gitlink | Mode::Other) {
            self.bad_mode.get_or_insert(mode);
        }
    }
}

/// The changeset's list: the modes and lines between start and result; new bytes are those of every commit.
fn changes(
    reader: &mut Reader<'_>,
    start: git2::Oid,
    result: git2::Oid,
    seen: BTreeMap<Vec<u8>, Seen>,
) -> Result<Vec<Change>, GitError> {
    let mut net: BTreeMap<Vec<u8>, (Option<Side>, Option<Side>)> =
        reader.differences(start, result)?.into_iter().map(|(path, old, new)| (path, (old, new))).collect();
    let mut changes = Vec::new();
    for (path, seen) in seen {
        let mut change = Change {
            path,
            old_mode: Mode::Absent,
            new_mode: Mode::Absent,
            added_lines: seen.added_lines,
            removed_lines: seen.removed_lines,
            binary: seen.binary,
            new_bytes: seen.new_bytes,
        };
        if let Some((old, new)) = net.remove(&change.path) {
            let mut ignored = Vec::new();
            let comparison = reader.compare(old, new, &mut ignored)?;
            change.old_mode = Side::kind(old);
            change.new_mode = Side::kind(new);
            change.added_lines = comparison.added_lines;
            change.removed_lines = comparison.removed_lines;
        } else if let Some(side) = reader.entry(start, &change.path)?.filter(|side| side.mode != TREE_MODE) {
            // Changed and put back.
            change.old_mode = Side::kind(Some(side));
            change.new_mode = change.old_mode;
        }
        if let Some(mode) = seen.bad_mode {
            change.new_mode = mode;
        }
        changes.push(change);
    }
    Ok(changes)
}

/// The masked files and folders, wherever they lie, that are not as they were.
fn masks_touched(
    reader: &mut Reader<'_>,
    start: git2::Oid,
    tree: git2::Oid,
    masked: &[Vec<u8>],
) -> Result<BTreeSet<Vec<u8>>, GitError> {
    let changed = reader.differences(start, tree)?;
    Ok(changed.iter().filter_map(|(path, _, _)| super::mask_root(path, masked)).map(<[u8]>::to_vec).collect())
}

/// Notes the masked paths that the agent changed.
fn note_dropped(
    reader: &mut Reader<'_>,
    start: git2::Oid,
    tree: git2::Oid,
    masked: &BTreeSet<Vec<u8>>,
    dropped: &mut BTreeSet<String>,
) -> Result<(), GitError> {
    for path in masked {
        if dropped.len() >= DROPPED_CAP {
            return Ok(());
        }
        let (old, new) = (reader.entry(start, path)?, reader.entry(tree, path)?);
        if old == new {
            continue;
        }
        let is_tree = |side: &Side| side.mode == TREE_MODE;
        let file = |side: Option<Side>| side.filter(|side| side.mode != TREE_MODE);
        if file(old) != file(new) {
            dropped.insert(shown(path));
        }
        let empty = empty_tree(reader.repository)?;
        let below = reader.differences(
            old.filter(is_tree).map_or(empty, |side| side.id),
            new.filter(is_tree).map_or(empty, |side| side.id),
        )?;
        for (inside, _, _) in below.into_iter().take(DROPPED_CAP) {
            dropped.insert(shown(&join(path, &inside)));
        }
    }
    Ok(())
}

impl Reader<'_> {
    /// The file or folder at a path.
    fn entry(&mut self, root: git2::Oid, path: &[u8]) -> Result<Option<Side>, GitError> {
        let mut side = Side { mode: TREE_MODE, id: root };
        for part in path.split(|byte| *byte == b'/') {
            if side.mode != TREE_MODE {
                return Ok(None);
            }
            match self.tree(side.id)?.get_name_bytes(part) {
                Some(entry) => side = Side { mode: entry.filemode_raw(), id: entry.id() },
                None => return Ok(None),
            }
        }
        Ok(Some(side))
    }
}

/// The tree with one path put back to what it is in `start`. `None`: the tree has become empty.
fn restore(
    reader: &mut Reader<'_>,
    tree: Option<git2::Oid>,
    start: Option<git2::Oid>,
    parts: &[&[u8]],
) -> Result<Option<git2::Oid>, GitError> {
    let Some((name, rest)) = parts.split_first() else { return Ok(tree) };
    let side = |reader: &mut Reader<'_>, tree: Option<git2::Oid>| match tree {
        Some(id) => reader.entry(id, name),
        None => Ok(None),
    };
    let (now, before) = (side(reader, tree)?, side(reader, start)?);
    let wanted = if rest.is_empty() {
        before
    } else {
        let is_tree = |side: &Side| side.mode == TREE_MODE;
        let below = restore(
            reader,
            now.filter(is_tree).map(|side| side.id),
            before.filter(is_tree).map(|side| side.id),
            rest,
        )?;
        match below {
            Some(id) => Some(Side { mode: TREE_MODE, id }),
            // Nothing masked here: a file in the folder's place stays, an emptied folder goes.
            None => now.filter(|side| !is_tree(side)),
        }
    };
    if wanted == now {
        return Ok(tree);
    }
    let source = tree.map(|id| reader.tree(id)).transpose()?;
    let mut builder = reader.repository.treebuilder(source.as_ref()).map_err(object_error(IMPORT))?;
    match wanted {
        Some(side) => {
            // `insert` takes only the modes that Git writes today.
            let mode = if side.mode == 0o100_664 { 0o100_644 } else { side.mode };
            builder.insert(*name, side.id, mode).map_err(object_error(IMPORT))?;
        }
        None => builder.remove(*name).map_err(object_error(IMPORT))?,
    }
    if builder.is_empty() {
        return Ok(None);
    }
    builder.write().map(Some).map_err(object_error(IMPORT))
}

/// A name or address that cannot break a commit's header.
fn plain_name(name: &str, default: &str) -> String {
    let clean: String =
        name.chars().filter(|c| !c.is_control() && !is_ignorable(*c) && !matches!(c, '<' | '>')).collect();
    let clean = clean.trim().trim_matches(['.', ',', ':', ';', '"', '\'', '\\']).trim();
    if clean.is_empty() { default.to_owned() } else { clean.chars().take(200).collect() }
}

/// Trailers by which an agent could speak for others or steer what reads commits.
fn is_trailer(line: &str) -> bool {
    let Some((key, _)) = line.split_once(':') else { return false };
    let key = key.trim().to_ascii_lowercase();
    let word = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    word && (key.ends_with("-by")
        || key.starts_with("zeblit")
        || matches!(key.as_str(), "skip-checks" | "cc" | "change-id" | "on-behalf-of"))
}

/// A commit message made harmless, with the host's trailers.
fn message(original: &[u8], trailers: &[(String, String)]) -> String {
    let text = String::from_utf8_lossy(original).replace("\r\n", "\n").replace('\r', "\n");
    let clean: String =
        text.chars().filter(|c| *c == '\n' || *c == '\t' || !(c.is_control() || is_ignorable(*c))).collect();
    let mut lines: Vec<String> = Vec::new();
    for line in clean.lines() {
        let line = line.trim_end();
        if is_trailer(line) || line.is_empty() && lines.last().is_none_or(String::is_empty) {
            continue;
        }
        lines.push(for_commit(line));
    }
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    let mut lines = lines.into_iter();
    let first = lines.next().unwrap_or_default();
    let (subject, rest) = split_subject(first.trim());
    let mut body: Vec<String> = rest.into_iter().collect();
    let mut lines: Vec<String> = lines.collect();
    if lines.first().is_some_and(String::is_empty) {
        lines.remove(0);
    }
    body.extend(lines);
    let mut message = subject;
    if !body.is_empty() {
        message.push_str("\n\n");
        message.push_str(&body.join("\n"));
    }
    if message.len() > MESSAGE_BYTES {
        let cut = (0..=MESSAGE_BYTES).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(cut);
        message.push_str("\n[cut]");
    }
    message.push('\n');
    for (index, (key, value)) in trailers.iter().enumerate() {
        if index == 0 {
            message.push('\n');
        }
        let key: String = key.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        message.push_str(&format!("{key}: {}\n", value.trim()));
    }
    message
}

/// The first line, at most 72 characters, and what had to be moved below it.
fn split_subject(line: &str) -> (String, Option<String>) {
    if line.is_empty() {
        return (DEFAULT_SUBJECT.to_owned(), None);
    }
    if line.chars().count() <= SUBJECT_CHARS {
        return (line.to_owned(), None);
    }
    let head: String = line.chars().take(SUBJECT_CHARS - 1).collect();
    // At a word's end, unless that leaves next to nothing.
    let cut = head.rfind(' ').filter(|at| *at > SUBJECT_CHARS / 2).unwrap_or(head.len());
    let subject = format!("{}…", head.get(..cut).unwrap_or(&head).trim_end());
    let rest = line.get(cut..).unwrap_or_default().trim();
    (subject, Some(format!("…{rest}")))
}

/// The diff for people.
fn diff(repository: &git2::Repository, start: git2::Oid, result: git2::Oid) -> Result<String, GitError> {
    let tree = |id| repository.find_tree(id).map_err(object_error("make the diff"));
    let mut options = git2::DiffOptions::new();
    options.max_size(i64::try_from(TEXT_BYTES).unwrap_or(i64::MAX)).indent_heuristic(true);
    let diff = repository
        .diff_tree_to_tree(Some(&tree(start)?), Some(&tree(result)?), Some(&mut options))
        .map_err(object_error("make the diff"))?;
    let mut text: Vec<u8> = Vec::new();
    let mut full = false;
    let printed = diff.print(git2::DiffFormat::Patch, |_, _, line| {
        let origin = line.origin();
        let marked = matches!(origin, '+' | '-' | ' ');
        if text.len() + line.content().len() + 1 > DIFF_BYTES {
            full = true;
            return false;
        }
        if marked {
            text.extend(u8::try_from(origin));
        }
        text.extend_from_slice(line.content());
        true
    });
    if !full {
        printed.map_err(object_error("make the diff"))?;
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if full {
        text.push_str("\n[the diff is longer than 256 KiB: the rest is left out]\n");
    }
    Ok(text)
}

/// See `Git::push`.
pub(crate) async fn push(
    git: &Git,
    mirror: &Mirror,
    access: &Access,
    bundle: &[u8],
    push: &BranchPush,
) -> Result<(), GitError> {
    let header = parse_header(bundle)?;
    if header.tip != push.new {
        return Err(rejected(format!(
            "the stored bundle holds {}, not {}",
            header.tip.short(),
            push.new.short()
        )));
    }
    let (_folder, repository) = {
        let (git, mirror, wanted) = (git.clone(), mirror.clone(), push.clone());
        let start = usize::try_from(header.length).unwrap_or(usize::MAX);
        let pack = bundle.get(start..).unwrap_or_default().to_vec();
        blocking(PUSH, move || {
            let (folder, path) = fresh_repository(&git, &mirror, "push-")?;
            let repository = mirror::open(PUSH, &path)?;
            store(&repository, &pack)?;
            check_fast_forward(&repository, &wanted)?;
            Ok((folder, path))
        })
        .await?
    };

    let full = push.branch.full();
    let lease = push.expected.as_ref().map_or("", Sha::as_str);
    let finished = Call::remote(PUSH, &git.root, access)?
        .git_dir(&repository)
        .args(["push", "--porcelain", "--no-verify", "--no-follow-tags", "--no-signed"])
        .arg(format!("--force-with-lease={full}:{lease}"))
        .arg("--")
        .arg(&access.url)
        .arg(format!("{}:{full}", push.new))
        .limit(PUSH_LIMIT)
        .run()
        .await?;
    if finished.success {
        return Ok(());
    }
    let error = classify_push(&finished, push);
    if matches!(error, GitError::Moved { .. })
        && mirror::remote_head(git, access, &push.branch).await?.as_ref() == Some(&push.new)
    {
        // An earlier try of ours got through.
        return Ok(());
    }
    Err(error)
}

/// Stores the pack of a bundle of ours. What the branch gets is named by its id, so that it is what passed the checks of
/// the way in, and the gate has bounded its size: no other Git has to look at it once more.
fn store(repository: &git2::Repository, pack: &[u8]) -> Result<(), GitError> {
    let objects = repository.odb().map_err(object_error(PUSH))?;
    let mut writer = objects.packwriter().map_err(object_error(PUSH))?;
    let refused = |error: String| rejected(format!("the stored bundle cannot be read: {error}"));
    io::Write::write_all(&mut writer, pack).map_err(|error| refused(error.to_string()))?;
    writer.commit().map(drop).map_err(|error| refused(error.message().to_owned()))
}

/// A lease allows a forced update: so that it never becomes one, the new commit must build on the old.
fn check_fast_forward(repository: &git2::Repository, push: &BranchPush) -> Result<(), GitError> {
    let new = mirror::oid(PUSH, &push.new)?;
    repository.find_commit(new).map_err(object_error(PUSH))?;
    let Some(expected) = &push.expected else { return Ok(()) };
    let old = mirror::oid(PUSH, expected)?;
    if repository.find_commit(old).is_err() {
        return Err(GitError::Failed {
            operation: PUSH,
            detail: format!("the mirror does not hold {}, which the branch should be at", expected.short()),
        });
    }
    if old == new || repository.graph_descendant_of(new, old).map_err(object_error(PUSH))? {
        Ok(())
    } else {
        Err(rejected(format!("{} does not build on {}", push.new.short(), expected.short())))
    }
}

/// Reads the porcelain line of the ref, then the general failures.
fn classify_push(finished: &Finished, push: &BranchPush) -> GitError {
    let output = String::from_utf8_lossy(&finished.stdout);
    let line = output.lines().find(|line| line.starts_with('!')).unwrap_or_default().to_ascii_lowercase();
    let moved = [
        "stale info",
        "fetch first",
        "non-fast-forward",
        "needs force",
        "incorrect old value",
        "failed to update ref",
        "cannot lock ref",
        "reference already exists",
        "failed to lock",
    ];
    if moved.iter().any(|needle| line.contains(needle)) {
        return GitError::Moved { branch: push.branch.as_str().to_owned() };
    }
    if line.contains("[remote rejected]") || line.contains("[rejected]") {
        let reason = line.rsplit_once('(').map_or("", |(_, reason)| reason.trim_end_matches(')'));
        let said: Vec<&str> = finished
            .stderr
            .lines()
            .filter_map(|line| line.strip_prefix("remote: "))
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .take(5)
            .collect();
        let detail =
            if said.is_empty() { reason.to_owned() } else { format!("{reason}: {}", said.join("; ")) };
        let detail: String = detail.chars().filter(|c| !c.is_control()).take(600).collect();
        return GitError::Refused { detail };
    }
    classify(PUSH, finished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::BranchName;
    use crate::git::tests::{REMOTE, REPO, World, git, git_output};
    use std::process::Stdio;

    fn write(folder: &Path, path: &str, bytes: impl AsRef<[u8]>) {
        std::fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
        std::fs::write(folder.join(path), bytes).unwrap();
    }

    fn commit(agent: &Path, message: &str) {
        git(agent, &["add", "-A"]);
        git(agent, &["commit", "-q", "--allow-empty", "-m", message]);
    }

    fn change<'a>(imported: &'a Imported, path: &str) -> &'a Change {
        imported.changeset.changes.iter().find(|change| change.path == path.as_bytes()).unwrap()
    }

    fn paths(imported: &Imported) -> Vec<String> {
        let path = |change: &Change| String::from_utf8_lossy(&change.path).into_owned();
        imported.changeset.changes.iter().map(path).collect()
    }

    fn detail(result: Result<Option<Imported>, GitError>) -> String {
        match result {
            Err(GitError::Rejected { detail }) => detail,
            Err(other) => panic!("refused in another way: {other:?}"),
            Ok(done) => panic!("accepted: {}", done.is_some()),
        }
    }

    /// The commits of a stored bundle in a clone of the mirror, for looking at.
    fn unbundled(world: &World, imported: &Imported) -> PathBuf {
        let look = world.folder.path().join("look.git");
        let _ = std::fs::remove_dir_all(&look);
        git(world.folder.path(), &["clone", "-q", "--bare", "remote.git", "look.git"]);
        write(world.folder.path(), "stored.bundle", &imported.bundle);
        git(&look, &["fetch", "-q", "../stored.bundle", "refs/heads/zeblit-result:refs/heads/result"]);
        look
    }

    #[tokio::test]
    async fn commits_come_in_with_the_hosts_author_and_trailers() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "src/main.py", "print(1)\nprint(3)\nprint(4)\n");
        commit(
            &agent,
            "Fix the print\n\nIt was wrong.\n\nSigned-off-by: Boss <boss@example.com>\nZeblit-Run: fake",
        );
        write(&agent, "new.sh", "#!/bin/sh\n");
        git(&agent, &["add", "-A", "--chmod=+x"]);
        commit(&agent, "Add a script");
        world.bundle(&agent);
        let imported = world.import().await.unwrap().unwrap();

        assert_eq!(imported.changeset.base, world.start);
        assert_eq!(imported.changeset.commits, 2);
        assert_eq!(paths(&imported), ["new.sh", "src/main.py"]);
        let main = change(&imported, "src/main.py");
        assert_eq!((main.old_mode, main.new_mode), (Mode::File, Mode::File));
        assert_eq!((main.added_lines, main.removed_lines, main.binary), (2, 1, false));
        let script = change(&imported, "new.sh");
        assert_eq!((script.old_mode, script.added_lines, script.new_bytes), (Mode::Absent, 1, 10));
        assert!(imported.diff.contains("-print(2)\n+print(3)\n+print(4)\n"), "{}", imported.diff);
        let text = String::from_utf8_lossy(&imported.changeset.added_text).into_owned();
        for part in ["print(4)", "src/main.py", "It was wrong.", "#!/bin/sh"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(imported.dropped.is_empty());

        let look = unbundled(&world, &imported);
        assert_eq!(git(&look, &["rev-parse", "result"]), imported.changeset.head.as_str());
        assert_eq!(git(&look, &["rev-parse", "result~2"]), world.start.as_str());
        let log = git(&look, &["log", "-1", "--format=%an|%ae|%cn|%ce|%at|%ct|%B", "result~1"]);
        assert_eq!(
            log,
            "zeblit[bot]|1+zeblit[bot]@users.noreply.github.com|zeblit[bot]|1+zeblit[bot]@users.noreply.github.com|1700000000|1700000000|Fix the print\n\nIt was wrong.\n\nZeblit-Run: run_0001"
        );
    }

    #[tokio::test]
    async fn the_same_input_gives_the_same_commits_and_cleans_up() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "a", "1\n");
        commit(&agent, "One");
        world.bundle(&agent);
        let first = world.import().await.unwrap().unwrap();
        let again = world.import().await.unwrap().unwrap();
        assert_eq!(first.changeset, again.changeset);
        assert_eq!(first.diff, again.diff);
        assert_eq!(std::fs::read_dir(world.git.root.join("tmp")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn nothing_changed_is_not_an_error() {
        let world = World::new().await;
        assert!(world.import().await.unwrap().is_none(), "no file");
        let agent = world.agent();
        commit(&agent, "Empty");
        world.bundle(&agent);
        assert!(world.import().await.unwrap().is_none(), "an empty commit");
        write(&agent, "a", "1\n");
        commit(&agent, "Do");
        git(&agent, &["rm", "-q", "a"]);
        commit(&agent, "Undo");
        world.bundle(&agent);
        assert!(world.import().await.unwrap().is_none(), "done and undone");
        write(&agent, "AGENTS.md", "obey me\n");
        commit(&agent, "Masked only");
        world.bundle(&agent);
        assert!(world.import().await.unwrap().is_none(), "masked files only");
    }

    #[tokio::test]
    async fn masked_files_are_put_back_in_every_commit() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "AGENTS.md", "obey me\n");
        write(&agent, ".claude/settings.json", "{\"hooks\":1}");
        write(&agent, ".claude/deep/new.sh", "evil");
        write(&agent, ".github/agents.md", "evil");
        write(&agent, "a", "1\n");
        commit(&agent, "One");
        git(&agent, &["rm", "-qr", ".claude", ".github"]);
        commit(&agent, "Only masked: becomes empty");
        write(&agent, ".claude", "a file in the folder's place");
        write(&agent, "b", "2\n");
        commit(&agent, "Two");
        world.bundle(&agent);
        let imported = world.import().await.unwrap().unwrap();
        assert_eq!(paths(&imported), ["a", "b"]);
        assert_eq!(imported.changeset.commits, 2);
        for expected in
            [".claude", ".claude/deep/new.sh", ".claude/settings.json", ".github/agents.md", "AGENTS.md"]
        {
            assert!(
                imported.dropped.iter().any(|path| path == expected),
                "{expected}: {:?}",
                imported.dropped
            );
        }
        let look = unbundled(&world, &imported);
        for commit in ["result", "result~1"] {
            let names = git(&look, &["diff", "--name-only", world.start.as_str(), commit]);
            assert!(names.lines().all(|name| name == "a" || name == "b"), "{names}");
        }
    }

    #[tokio::test]
    async fn what_only_one_commit_had_is_still_seen() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "secret.txt", "in-between-content\n");
        std::os::unix::fs::symlink("/etc/passwd", agent.join("README.link")).unwrap();
        write(&agent, "run.sh", "#!/bin/sh\necho\n");
        commit(&agent, "One");
        git(&agent, &["rm", "-q", "secret.txt", "README.link"]);
        write(&agent, "run.sh", "#!/bin/sh\n");
        write(&agent, "kept", "x\n");
        commit(&agent, "Two");
        world.bundle(&agent);
        let imported = world.import().await.unwrap().unwrap();
        assert_eq!(paths(&imported), ["README.link", "kept", "run.sh", "secret.txt"]);
        assert_eq!(change(&imported, "README.link").new_mode, Mode::Symlink);
        assert_eq!(change(&imported, "secret.txt").new_mode, Mode::Absent);
        assert_eq!(change(&imported, "run.sh").old_mode, Mode::File);
        let text = String::from_utf8_lossy(&imported.changeset.added_text).into_owned();
        assert!(text.contains("in-between-content") && text.contains("/etc/passwd"), "{text}");
    }

    #[tokio::test]
    async fn binary_and_large_files_are_measured() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "image.bin", b"\0\x01secret-in-binary\0");
        write(&agent, "large.txt", vec![b'a'; TEXT_BYTES + 1]);
        commit(&agent, "Files");
        world.bundle(&agent);
        let imported = world.import().await.unwrap().unwrap();
        let image = change(&imported, "image.bin");
        assert!(image.binary);
        assert_eq!(image.new_bytes, 19);
        assert_eq!(change(&imported, "large.txt").new_bytes, count(TEXT_BYTES + 1));
        assert_eq!(imported.changeset.added_text.len(), ADDED_TEXT_BYTES, "the gate will refuse it");
        let text = String::from_utf8_lossy(&imported.changeset.added_text).into_owned();
        assert!(text.contains("secret-in-binary"));
    }

    #[tokio::test]
    async fn the_diff_is_capped() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "many.txt", "a line of text\n".repeat(40_000));
        commit(&agent, "Many");
        world.bundle(&agent);
        let imported = world.import().await.unwrap().unwrap();
        assert!(imported.diff.len() < DIFF_BYTES + 100);
        assert!(imported.diff.ends_with("the rest is left out]\n"));
        assert_eq!(change(&imported, "many.txt").added_lines, 40_000);
    }

    #[tokio::test]
    async fn histories_that_are_no_straight_line_from_the_start_are_refused() {
        let world = World::new().await;
        // A merge.
        let agent = world.agent();
        write(&agent, "a", "1\n");
        commit(&agent, "One");
        git(&agent, &["checkout", "-q", "-b", "side", world.start.as_str()]);
        write(&agent, "b", "1\n");
        commit(&agent, "Side");
        git(&agent, &["merge", "-q", "--no-edit", "zeblit-work"]);
        world.bundle(&agent);
        assert!(detail(world.import().await).contains("merge commit"));
        // On an ancestor of the start: the prerequisite is fine, the chain is not.
        let agent = world.agent();
        git(&agent, &["checkout", "-q", "-B", "zeblit-work", "HEAD~1"]);
        write(&agent, "a", "1\n");
        commit(&agent, "Elsewhere");
        world.bundle(&agent);
        assert!(detail(world.import().await).contains("does not build on the pinned commit"));
        // A history of its own.
        let agent = world.agent();
        git(&agent, &["checkout", "-q", "--orphan", "alone"]);
        commit(&agent, "Root");
        world.bundle(&agent);
        assert!(detail(world.import().await).contains("names no prerequisite"));
        // Too many commits.
        let agent = world.agent();
        for number in 0..4 {
            write(&agent, "a", format!("{number}\n"));
            commit(&agent, "Step");
        }
        world.bundle(&agent);
        let caps = ImportCaps { commits: 3, ..ImportCaps::default() };
        assert!(detail(world.import_capped(caps).await).contains("more than 3 commits"));
        assert!(world.import().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn prerequisites_must_be_known_history_of_the_start() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "a", "1\n");
        commit(&agent, "One");
        git(&agent, &["tag", "unpublished"]);
        write(&agent, "a", "2\n");
        commit(&agent, "Two");
        git(&agent, &["update-ref", "refs/heads/zeblit-result", "HEAD"]);
        let file = world.output().join(BUNDLE_FILE);
        let file = file.to_str().unwrap();
        git(&agent, &["bundle", "create", "-q", file, "unpublished..refs/heads/zeblit-result"]);
        assert!(detail(world.import().await).contains("not in the history of the pinned commit"));
        // A commit that the remote has, but not in the history of the start.
        let person = world.person();
        write(&person, "later", "1\n");
        commit(&person, "Later");
        git(&person, &["push", "-q", "../remote.git", "HEAD:refs/heads/main"]);
        let later = Sha::parse(&git(&person, &["rev-parse", "HEAD"])).unwrap();
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&later), None).await.unwrap();
        let agent = world.agent();
        git(&agent, &["reset", "-q", "--hard", later.as_str()]);
        write(&agent, "a", "1\n");
        commit(&agent, "On later");
        git(&agent, &["update-ref", "refs/heads/zeblit-result", "HEAD"]);
        git(&agent, &["bundle", "create", "-q", file, &format!("{later}..refs/heads/zeblit-result")]);
        assert!(detail(world.import().await).contains("not in the history of the pinned commit"));
    }

    #[tokio::test]
    async fn other_and_further_refs_are_refused() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "a", "1\n");
        commit(&agent, "One");
        let file = world.output().join(BUNDLE_FILE);
        let file = file.to_str().unwrap();
        let range = format!("^{}", world.start);
        git(&agent, &["update-ref", "refs/heads/zeblit-result", "HEAD"]);
        git(&agent, &["update-ref", "refs/heads/main2", "HEAD"]);
        for refs in [
            &["refs/heads/main2"][..],
            &["refs/heads/zeblit-result", "refs/heads/main2"],
            &["HEAD", "refs/heads/zeblit-result"],
            &["HEAD"],
        ] {
            let mut arguments = vec!["bundle", "create", "-q", file, range.as_str()];
            arguments.extend(refs);
            git(&agent, &arguments);
            assert!(detail(world.import().await).contains("is allowed"), "{refs:?}");
        }
    }

    #[test]
    fn headers_are_read_strictly() {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        let good = format!("# v2 git bundle\n-{sha} a comment \u{e9}\n{sha} {RESULT_REF}\n\nPACK");
        let header = parse_header(good.as_bytes()).unwrap();
        assert_eq!(header.prerequisites.len(), 1);
        assert_eq!(&good[usize::try_from(header.length).unwrap()..], "PACK");
        let third = format!("# v3 git bundle\n@object-format=sha1\n-{sha}\n{sha} {RESULT_REF}\n\n");
        assert!(parse_header(third.as_bytes()).is_ok());
        let long = "x".repeat(10_000);
        for bad in [
            String::new(),
            "\n".into(),
            "PACK".into(),
            "# v1 git bundle\n\n".into(),
            "# v4 git bundle\n\n".into(),
            "# v2 git bundle\n\n".into(),
            "# v2 git bundle".into(),
            format!("# v2 git bundle\r\n{sha} {RESULT_REF}\n\n"),
            format!("# v2 git bundle\n@object-format=sha1\n{sha} {RESULT_REF}\n\n"),
            format!("# v3 git bundle\n@object-format=sha256\n{sha} {RESULT_REF}\n\n"),
            format!("# v3 git bundle\n@filter=blob:none\n{sha} {RESULT_REF}\n\n"),
            format!("# v2 git bundle\n{sha} {RESULT_REF}\n"),
            format!("# v2 git bundle\n{sha} {RESULT_REF}\n{sha} {RESULT_REF}\n\n"),
            format!("# v2 git bundle\n{sha} {RESULT_REF}\n-{sha} late\n\n"),
            format!("# v2 git bundle\n{sha} refs/heads/main\n\n"),
            format!("# v2 git bundle\n{sha} {RESULT_REF}x\n\n"),
            format!("# v2 git bundle\n{sha}\t{RESULT_REF}\n\n"),
            format!("# v2 git bundle\n{} {RESULT_REF}\n\n", sha.to_uppercase()),
            format!("# v2 git bundle\n{} {RESULT_REF}\n\n", &sha[1..]),
            format!("# v2 git bundle\n-{sha}extra\n{sha} {RESULT_REF}\n\n"),
            format!("# v2 git bundle\n-{sha} {long}\n{sha} {RESULT_REF}\n\n"),
            format!("# v2 git bundle\n{}{sha} {RESULT_REF}\n\n", format!("-{sha}\n").repeat(HEADER_LINES)),
        ] {
            assert!(matches!(parse_header(bad.as_bytes()), Err(GitError::Rejected { .. })), "{bad:.80}");
        }
    }

    #[tokio::test]
    async fn only_a_plain_file_of_fair_size_is_read() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "a", "1\n");
        commit(&agent, "One");
        world.bundle(&agent);
        let file = world.output().join(BUNDLE_FILE);
        let aside = world.folder.path().join("aside.bundle");
        std::fs::rename(&file, &aside).unwrap();
        // A symbolic link, even to a good bundle; a FIFO; a folder; a socket; a device by link.
        std::os::unix::fs::symlink(&aside, &file).unwrap();
        assert!(detail(world.import().await).contains("not a regular file"));
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert!(detail(world.import().await).contains("not a regular file"));
        std::fs::remove_file(&file).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&file).stdin(Stdio::null()).status().unwrap();
        assert!(made.success());
        let opened = std::fs::OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&file);
        assert!(!opened.unwrap().metadata().unwrap().is_file(), "opening a FIFO does not wait");
        assert!(detail(world.import().await).contains("not a regular file"));
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(detail(world.import().await).contains("not a regular file"));
        std::fs::remove_dir(&file).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&file).unwrap();
        assert!(detail(world.import().await).contains("not a regular file"));
        std::fs::remove_file(&file).unwrap();
        // Links are refused by the open itself too.
        std::os::unix::fs::symlink(&aside, &file).unwrap();
        let opened = std::fs::OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(&file);
        assert!(opened.is_err());
        std::fs::remove_file(&file).unwrap();
        // Empty, sparse and huge, larger than the cap.
        std::fs::write(&file, b"").unwrap();
        assert!(detail(world.import().await).contains("cut off"));
        std::fs::File::create(&file).unwrap().set_len(300 * 1024 * 1024).unwrap();
        assert!(detail(world.import().await).contains("at most"));
        std::fs::remove_file(&file).unwrap();
        std::fs::copy(&aside, &file).unwrap();
        let caps = ImportCaps { bundle_bytes: 100, ..ImportCaps::default() };
        assert!(detail(world.import_capped(caps).await).contains("at most 100"));
        assert!(world.import().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn damaged_packs_are_refused() {
        let world = World::new().await;
        let agent = world.agent();
        write(&agent, "a", "1\n".repeat(200));
        commit(&agent, "One");
        world.bundle(&agent);
        let file = world.output().join(BUNDLE_FILE);
        let good = std::fs::read(&file).unwrap();
        for cut in [1, 20, 21, good.len() / 2] {
            std::fs::write(&file, &good[..good.len() - cut]).unwrap();
            detail(world.import().await);
        }
        for at in [good.len() - 1, good.len() - 30, good.len() - 60] {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            std::fs::write(&file, &bad).unwrap();
            detail(world.import().await);
        }
        // A header that names a commit that the pack does not hold.
        let header = parse_header(good.as_slice()).unwrap();
        let pack = &good[usize::try_from(header.length).unwrap()..];
        let mut bad =
            format!("# v2 git bundle\n-{}\n{} {RESULT_REF}\n\n", world.start, "7".repeat(40)).into_bytes();
        bad.extend_from_slice(pack);
        std::fs::write(&file, &bad).unwrap();
        assert!(world.import().await.is_err());
    }

    /// Makes a commit of one raw tree on the start commit and bundles it.
    fn raw_tree(world: &World, entries: &[(&str, &[u8], &str)]) {
        let agent = world.agent();
        let mut tree = Vec::new();
        for (mode, name, id) in entries {
            tree.extend_from_slice(mode.as_bytes());
            tree.push(b' ');
            tree.extend_from_slice(name);
            tree.push(0);
            tree.extend_from_slice(&hex::decode(id).unwrap());
        }
        let output =
            git_output(&agent, &["hash-object", "-w", "-t", "tree", "--literally", "--stdin"], &tree);
        let tree = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let commit = git(&agent, &["commit-tree", "-p", world.start.as_str(), "-m", "Raw", &tree]);
        // Git itself would not bundle some of these: the pack is made from a list, the header by hand.
        let list = format!("{commit}\n{tree}\n");
        let packed = git_output(&agent, &["pack-objects", "-q", "--stdout"], list.as_bytes());
        assert!(packed.status.success());
        let mut bundle = format!("# v2 git bundle\n-{}\n{commit} {RESULT_REF}\n\n", world.start).into_bytes();
        bundle.extend_from_slice(&packed.stdout);
        write(&world.output(), BUNDLE_FILE, bundle);
    }

    #[tokio::test]
    async fn hostile_trees_are_refused_by_the_object_check() {
        let world = World::new().await;
        let agent = world.agent();
        let blob = git(&agent, &["rev-parse", "HEAD:README.md"]);
        let tree = git(&agent, &["rev-parse", "HEAD:src"]);
        let null = "0".repeat(40);
        let missing = "5".repeat(40);
        let (file, folder) = ("100644", "40000");
        let cases: Vec<Vec<(&str, &[u8], &str)>> = vec![
            vec![(folder, b".git", &tree)],
            vec![(folder, b".GIT", &tree)],
            vec![(folder, b".Git", &tree)],
            vec![(folder, b"git~1", &tree)],
            vec![(folder, b".git ", &tree)],
            vec![(folder, b".git.", &tree)],
            vec![(folder, b".git::$INDEX_ALLOCATION", &tree)],
            vec![(folder, ".g\u{200c}it".as_bytes(), &tree)],
            vec![(folder, b"..", &tree)],
            vec![(folder, b".", &tree)],
            vec![(file, b".git", &blob)],
            vec![(file, b"..", &blob)],
            vec![(file, b"a/b", &blob)],
            vec![(file, b"", &blob)],
            vec![(file, b"a", &null)],
            vec![(file, b"a", &missing)],
            vec![(folder, b"a", &missing)],
            vec![(file, b"a", &tree)],
            vec![(folder, b"a", &blob)],
            vec![(file, b"a", &blob), (file, b"a", &blob)],
            vec![(file, b"b", &blob), (file, b"a", &blob)],
            vec![("120000", b".gitmodules", &blob)],
            vec![("0100644", b"a", &blob)],
        ];
        for case in cases {
            raw_tree(&world, &case);
            let shown = String::from_utf8_lossy(case[0].1).into_owned();
            let problem = match world.import().await {
                Err(GitError::Rejected { detail }) => detail,
                other => panic!("{shown:?} ({}): {other:?}", case[0].0),
            };
            assert!(problem.contains("Git refuses"), "{shown}: {problem}");
        }
        // The counterpart: the same way with an honest tree passes.
        raw_tree(&world, &[(file, b"a", &blob)]);
        assert!(world.import().await.unwrap().is_some());
        raw_tree(&world, &[("160000", b"module", &missing)]);
        let imported = world.import().await.unwrap().unwrap();
        assert_eq!(change(&imported, "module").new_mode, Mode::Gitlink);
    }

    #[tokio::test]
    async fn objects_that_inflate_without_end_are_stopped() {
        let world = World::new().await;
        let agent = world.agent();
        // 136 MiB of zeros in a tree: less than 1 MiB of pack, more than one allocation may have.
        let zeros = vec![0; 136 * 1024 * 1024];
        let output =
            git_output(&agent, &["hash-object", "-w", "--literally", "-t", "tree", "--stdin"], &zeros);
        let tree = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let body = format!(
            "tree {tree}\nparent {}\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nBomb\n",
            world.start
        );
        let output = git_output(
            &agent,
            &["hash-object", "-w", "-t", "commit", "--literally", "--stdin"],
            body.as_bytes(),
        );
        let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let list = format!("{commit}\n{tree}\n");
        let packed = git_output(&agent, &["pack-objects", "-q", "--stdout"], list.as_bytes());
        assert!(packed.status.success() && packed.stdout.len() < 2 * 1024 * 1024);
        let mut bundle = format!("# v2 git bundle\n-{}\n{commit} {RESULT_REF}\n\n", world.start).into_bytes();
        bundle.extend_from_slice(&packed.stdout);
        write(&world.output(), BUNDLE_FILE, bundle);
        let problem = detail(world.import().await);
        assert!(problem.contains("over limit"), "{problem}");
    }

    #[tokio::test]
    async fn trees_that_unfold_without_end_are_stopped() {
        let world = World::new().await;
        let agent = world.agent();
        let mut id = git(&agent, &["rev-parse", "HEAD:src"]);
        for _ in 0..12 {
            let lines: String = (0..10).map(|name| format!("040000 tree {id}\t{name}\n")).collect();
            let output = git_output(&agent, &["mktree"], lines.as_bytes());
            id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
        let commit = git(&agent, &["commit-tree", "-p", world.start.as_str(), "-m", "Bomb", &id]);
        git(&agent, &["update-ref", "refs/heads/zeblit-work", &commit]);
        world.bundle(&agent);
        let problem = detail(world.import().await);
        assert!(problem.contains("more than"), "{problem}");
    }

    #[test]
    fn messages_are_made_harmless() {
        let plain = |text: &str| message(text.as_bytes(), &[]);
        for (original, expected) in [
            ("Fix it", "Fix it\n"),
            ("", "Apply changes\n"),
            ("\n\n \n", "Apply changes\n"),
            ("Fix\n\n\n\nBody\r\nmore\n\n", "Fix\n\nBody\nmore\n"),
            ("Fix\nno blank", "Fix\n\nno blank\n"),
            ("Fix\n\nCo-authored-by: A <a@b.c>\nSigned-off-by: B <b@c.d>\nReviewed-By: C", "Fix\n"),
            ("Fix\n\nZeblit-Run: other\nskip-checks: true", "Fix\n"),
            ("Note: keep this\n\nSee: that", "Note: keep this\n\nSee: that\n"),
            ("a\u{1b}[31mb\u{202e}c\u{200b}d\0", "a[31mbcd\n"),
            ("Fix [skip ci] [CI SKIP]", "Fix (skip ci] (CI SKIP]\n"),
            ("Fixes #7 and closes: octo/hello#8", "refs #7 and refs octo/hello#8\n"),
            ("Resolves https://github.com/o/r/issues/1", "refs https://github.com/o/r/issues/1\n"),
            ("This fixes the bug, see #9", "This fixes the bug, see #9\n"),
            ("Thanks @octocat and me@example.com (@team)", "Thanks octocat and me@example.com (team)\n"),
        ] {
            assert_eq!(plain(original), expected, "{original:?}");
        }
        assert_eq!(message(b"\xff\xfe bad", &[]), "\u{fffd}\u{fffd} bad\n");
        let long = plain(&"word ".repeat(40));
        let mut lines = long.lines();
        assert!(lines.next().unwrap().chars().count() <= SUBJECT_CHARS, "{long}");
        assert_eq!(lines.next(), Some(""));
        assert!(plain(&"\u{e9}".repeat(200)).lines().next().unwrap().chars().count() <= SUBJECT_CHARS);
        assert!(plain(&format!("a\n\n{}", "\u{e9}".repeat(9000))).len() < MESSAGE_BYTES + 20);
        let trailers = [("Zeblit-Run".to_owned(), "a\nSigned-off-by: x".to_owned())];
        assert_eq!(message(b"Fix", &trailers), "Fix\n\nZeblit-Run: a Signed-off-by: x\n");
        assert_eq!(plain_name(" <a>\n", "x"), "a");
        assert_eq!(plain_name("<>", "x"), "x");
    }

    async fn imported(world: &World, text: &str) -> Imported {
        let agent = world.agent();
        write(&agent, "a", text);
        commit(&agent, "One");
        world.bundle(&agent);
        world.import().await.unwrap().unwrap()
    }

    fn branch_push(branch: &str, expected: Option<&Sha>, new: &Sha) -> BranchPush {
        BranchPush {
            branch: BranchName::parse(branch).unwrap(),
            expected: expected.cloned(),
            new: new.clone(),
        }
    }

    async fn push_it(world: &World, imported: &Imported, push: &BranchPush) -> Result<(), GitError> {
        world.git.push(REMOTE, REPO, &world.access, &imported.bundle, push).await
    }

    fn remote_ref(world: &World, branch: &str) -> String {
        git(&world.remote(), &["rev-parse", &format!("refs/heads/{branch}")])
    }

    #[tokio::test]
    async fn a_new_branch_is_pushed_once_and_again() {
        let world = World::new().await;
        let imported = imported(&world, "1\n").await;
        let head = imported.changeset.head.clone();
        let push = branch_push("zeblit/7-fix-abc", None, &head);
        push_it(&world, &imported, &push).await.unwrap();
        assert_eq!(remote_ref(&world, "zeblit/7-fix-abc"), head.as_str());
        push_it(&world, &imported, &push).await.unwrap();
        assert_eq!(world.git.remote_head(&world.access, &push.branch).await.unwrap(), Some(head));
    }

    #[tokio::test]
    async fn the_stored_bundle_is_one_that_git_takes_and_its_damage_is_seen() {
        let mut world = World::new().await;
        // A change of a large file is small only as a difference to what the mirror has.
        let lines: Vec<String> = (0..2000).map(|n| format!("{n} {}\n", "word ".repeat(n % 7))).collect();
        let person = world.person();
        write(&person, "large.txt", lines.concat());
        commit(&person, "Large");
        git(&person, &["push", "-q", world.remote().to_str().unwrap(), "main"]);
        let start = Sha::parse(&git(&person, &["rev-parse", "HEAD"])).unwrap();
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&start), None).await.unwrap();
        world.start = start;
        let agent = world.agent();
        write(&agent, "large.txt", format!("first\n{}", lines.concat()));
        commit(&agent, "Edit");
        world.bundle(&agent);
        let imported = world.import().await.unwrap().unwrap();
        assert!(imported.bundle.len() < 2000, "{}", imported.bundle.len());
        let look = unbundled(&world, &imported);
        git(&look, &["bundle", "verify", "-q", "../stored.bundle"]);
        git(&look, &["fsck", "--strict", "--full", "result"]);

        let branch = branch_push("zeblit/one", None, &imported.changeset.head);
        for at in [imported.bundle.len() - 1, imported.bundle.len() - 30] {
            let mut damaged = imported.clone();
            damaged.bundle[at] ^= 0x55;
            let refused = push_it(&world, &damaged, &branch).await;
            assert!(matches!(refused, Err(GitError::Rejected { .. })), "{refused:?}");
        }
        push_it(&world, &imported, &branch).await.unwrap();
        assert_eq!(remote_ref(&world, "zeblit/one"), imported.changeset.head.as_str());
        git(&world.remote(), &["fsck", "--strict", "--full"]);
    }

    #[tokio::test]
    async fn an_existing_branch_moves_only_from_where_it_was() {
        let world = World::new().await;
        let imported = imported(&world, "1\n").await;
        let head = imported.changeset.head.clone();
        // It exists, although it should not.
        let error = push_it(&world, &imported, &branch_push("main", None, &head)).await.unwrap_err();
        assert!(matches!(error, GitError::Moved { .. }), "{error:?}");
        // Forward from the start.
        let push = branch_push("main", Some(&world.start), &head);
        push_it(&world, &imported, &push).await.unwrap();
        push_it(&world, &imported, &push).await.unwrap();
        assert_eq!(remote_ref(&world, "main"), head.as_str());
        // Somebody pushed meanwhile.
        let person = world.person();
        git(&person, &["push", "-q", "--force", "../remote.git", "HEAD~1:refs/heads/main"]);
        let before = remote_ref(&world, "main");
        let error = push_it(&world, &imported, &push).await.unwrap_err();
        assert!(matches!(error, GitError::Moved { .. }), "{error:?}");
        // The branch is gone.
        git(&person, &["push", "-q", "../remote.git", "main:refs/heads/gone"]);
        git(&person, &["push", "-q", "../remote.git", ":refs/heads/gone"]);
        let gone = branch_push("gone", Some(&world.start), &head);
        let error = push_it(&world, &imported, &gone).await.unwrap_err();
        assert!(matches!(error, GitError::Moved { .. }), "{error:?}");
        assert_eq!(remote_ref(&world, "main"), before);
    }

    #[tokio::test]
    async fn a_lease_never_becomes_a_forced_push() {
        let world = World::new().await;
        let imported = imported(&world, "1\n").await;
        let head = imported.changeset.head.clone();
        let person = world.person();
        write(&person, "other", "1\n");
        commit(&person, "Other");
        git(&person, &["push", "-q", "../remote.git", "HEAD:refs/heads/main"]);
        let other = Sha::parse(&git(&person, &["rev-parse", "HEAD"])).unwrap();
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&other), None).await.unwrap();
        let error = push_it(&world, &imported, &branch_push("main", Some(&other), &head)).await.unwrap_err();
        assert!(matches!(error, GitError::Rejected { .. }), "{error:?}");
        assert_eq!(remote_ref(&world, "main"), other.as_str());
        // A bundle is pushed only as what it holds.
        let wrong = branch_push("x", None, &world.start);
        assert!(matches!(push_it(&world, &imported, &wrong).await, Err(GitError::Rejected { .. })));
    }

    #[tokio::test]
    async fn what_the_remote_refuses_is_told_in_its_words() {
        let world = World::new().await;
        let imported = imported(&world, "1\n").await;
        let hook = world.remote().join("hooks/pre-receive");
        write(
            &world.remote(),
            "hooks/pre-receive",
            "#!/bin/sh\necho 'GH006: Protected branch' >&2\nexit 1\n",
        );
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let push = branch_push("zeblit/1-a-b", None, &imported.changeset.head);
        match push_it(&world, &imported, &push).await {
            Err(GitError::Refused { detail }) => {
                assert!(detail.contains("GH006: Protected branch"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
        let nowhere = Access { url: "/nonexistent.git".into(), ..world.access.clone() };
        let error = world.git.push(REMOTE, REPO, &nowhere, &imported.bundle, &push).await;
        assert!(matches!(error, Err(GitError::NotFound { .. })), "{error:?}");
    }
}
