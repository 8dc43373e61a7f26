//! Purpose: the folders of each run, and the agents' own files in them.
//!
//! A run's workspace lies on the seed of its commit (or is a checkout of its own, see `Layout`); after the agent had it,
//! the host never runs Git in it and only moves and deletes it.

use super::mirror::{self, Mirror};
use super::overlay::{self, Layout};
use super::{Disk, Git, GitError, SeedSpec, Workspace, WorkspaceSpec, blocking, folder_name, object_error};
use super::{image, seed};
use crate::domain::ids::{RunId, Sha};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Files that the masked paths may hold together.
const MASKED_FILES_CAP: usize = 5_000;
/// One masked file (bytes).
const MASKED_FILE_BYTES: usize = 16 * 1024 * 1024;
/// Changed masked files that are told.
const MASKED_EDITS_CAP: usize = 50;
/// Files and folders of a workspace that are looked at for changed masked files.
const WORKSPACE_ENTRIES_CAP: usize = 500_000;
/// Links of a masked file that are followed, one after the other.
const LINKS_CAP: usize = 8;
/// Folder depth of trees.
const DEPTH_CAP: usize = 64;
/// The mode of a submodule's entry: an empty folder in the workspace.
const GITLINK: i32 = 0o160_000;
/// The file of a run's folder that says what its workspace was made from. Written last: without it, it is not prepared.
const SOURCE: &str = "source";

pub(super) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GitError {
    let path = path.to_owned();
    move |source| GitError::Io { operation, path, source }
}

/// See `Git::prepare`.
pub(crate) async fn prepare(git: &Git, spec: &WorkspaceSpec<'_>) -> Result<Workspace, GitError> {
    let operation = "prepare the workspace";
    // The sweeper deletes nothing meanwhile.
    let _preparing = git.preparing();
    let run = folder_name(operation, spec.run.as_str())?.to_owned();
    let mirror = Mirror::of(git, spec.remote, spec.repo_id)?;
    let seed_spec = SeedSpec {
        remote: spec.remote,
        repo_id: spec.repo_id,
        start: spec.start,
        objects_inside: spec.objects_inside.clone(),
        owner: spec.owner,
    };
    let seed = match git.layout() {
        Layout::Overlay => Some(seed::ensure(git, &mirror, &seed_spec).await?),
        Layout::Checkout => None,
    };
    let source =
        Source { mirror: mirror.path.clone(), inside: spec.objects_inside.clone(), seed: seed.clone() };
    let folder = git.root.join("runs").join(&run);
    let (store, id, at, owner) = (git.clone(), spec.run.clone(), folder.clone(), spec.owner);
    blocking(operation, move || make_folders(&store, &id, &at, seed.as_deref(), owner)).await?;
    let made = folders(&folder, &mirror);
    if source.seed.is_none() {
        seed::checkout(git, &mirror, &seed_spec, &made.workspace).await?;
    }
    if spec.start != spec.base_sha && !spec.masked.is_empty() {
        mask(&mirror, spec, &made.workspace).await?;
    }
    source.write(&folder)?;
    Ok(made)
}

/// Empty folders in the place of what an earlier preparation left, and the workspace on its seed.
fn make_folders(
    git: &Git,
    run: &RunId,
    folder: &Path,
    seed: Option<&Path>,
    owner: (u32, u32),
) -> Result<(), GitError> {
    let operation = "prepare the workspace";
    discard(git, run)?;
    match git.disk {
        Disk::Loop { bytes, files } => image::make(git, run.as_str(), bytes, files).map(drop)?,
        Disk::Watched => std::fs::create_dir(folder).map_err(io_error(operation, folder))?,
    }
    for (name, mode) in [("output", 0o755), ("home", 0o700)] {
        let part = folder.join(name);
        std::fs::create_dir(&part).map_err(io_error(operation, &part))?;
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(mode))
            .map_err(io_error(operation, &part))?;
        own(&part, owner)?;
    }
    match seed {
        Some(seed) => {
            overlay::make_folders(folder, Some(owner)).map_err(io_error(operation, folder))?;
            overlay::mount(folder, seed)
        }
        None => {
            let workspace = folder.join(overlay::WORKSPACE);
            std::fs::create_dir(&workspace).map_err(io_error(operation, &workspace))
        }
    }
}

/// What a run's workspace was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub mirror: PathBuf,
    /// What the alternates of the workspace say.
    pub inside: PathBuf,
    /// `None`: it is a checkout of its own.
    pub seed: Option<PathBuf>,
}

impl Source {
    fn write(&self, run: &Path) -> Result<(), GitError> {
        // No line break is in any of these paths: `Git::open` and the checkout see to it.
        let paths = [Some(&self.mirror), Some(&self.inside), self.seed.as_ref()];
        let mut text = Vec::new();
        for path in paths.into_iter().flatten() {
            text.extend_from_slice(path.as_os_str().as_encoded_bytes());
            text.push(b'\n');
        }
        write("prepare the workspace", &run.join(SOURCE), &text)
    }

    /// `None`: the run was not prepared to its end.
    pub fn read(run: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(run.join(SOURCE)).ok()?;
        let mut paths = text.strip_suffix('\n')?.split('\n').map(PathBuf::from);
        Some(Self { mirror: paths.next()?, inside: paths.next()?, seed: paths.next() })
    }
}

fn folders(run: &Path, mirror: &Mirror) -> Workspace {
    Workspace {
        workspace: run.join(overlay::WORKSPACE),
        output: run.join("output"),
        home: run.join("home"),
        objects: mirror.objects(),
    }
}

/// The name of a run's folder.
pub(crate) fn run_folder(run: &RunId) -> Result<&str, GitError> {
    folder_name("measure the workspace", run.as_str())
}

/// See `Git::prepared`.
pub(crate) fn prepared(git: &Git, remote: &str, repo_id: i64, run: &RunId) -> Option<Workspace> {
    let name = folder_name("find the workspace", run.as_str()).ok()?;
    let mirror = Mirror::of(git, remote, repo_id).ok()?;
    let folder = git.root.join("runs").join(name);
    let folders = folders(&folder, &mirror);
    let there = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let source = Source::read(&folder)?;
    if !(there(&folders.workspace) && there(&folders.output) && there(&folders.home)) {
        return None;
    }
    match source.mount_again(&folder) {
        Ok(()) => Some(folders),
        Err(error) => {
            tracing::warn!(run.id = name, error = %error, "a workspace is lost");
            None
        }
    }
}

impl Source {
    /// Mounts the workspace of the run when it is not.
    pub fn mount_again(&self, run: &Path) -> Result<(), GitError> {
        let Some(seed) = &self.seed else { return Ok(()) };
        match overlay::mount_again(run, seed, &self.inside) {
            // A disk of its own that is full.
            Err(GitError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                image::open_reserve(run)?;
                overlay::mount_again(run, seed, &self.inside)
            }
            done => done,
        }
    }
}

/// See `Git::discard`.
pub(crate) fn discard(git: &Git, run: &RunId) -> Result<(), GitError> {
    let operation = "discard the workspace";
    let name = folder_name(operation, run.as_str())?;
    let folder = git.root.join("runs").join(name);
    overlay::unmount_below(&folder.join(overlay::WORKSPACE))?;
    image::remove(git, name)?;
    if folder.symlink_metadata().is_err_and(|error| seed::gone(&error)) {
        return Ok(());
    }
    super::sweep::move_aside(git, &folder, name).map(drop)
}

pub(super) fn write(operation: &'static str, path: &Path, bytes: &[u8]) -> Result<(), GitError> {
    std::fs::write(path, bytes).map_err(io_error(operation, path))
}

/// Gives one path to the container's user.
pub(super) fn own(path: &Path, owner: (u32, u32)) -> Result<(), GitError> {
    let operation = "give a file to the agent's user";
    let found = path.symlink_metadata().map_err(io_error(operation, path))?;
    if (found.uid(), found.gid()) == owner {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.0), Some(owner.1)).map_err(io_error(operation, path))
}

/// A masked file as a commit has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MaskedFile {
    mode: i32,
    id: git2::Oid,
}

/// The masked files of one commit, wherever they lie, and the masked files and folders themselves.
struct MaskedFiles {
    files: BTreeMap<String, MaskedFile>,
    roots: BTreeSet<String>,
}

fn masked_files(
    repository: &git2::Repository,
    commit: &Sha,
    masked: &[Vec<u8>],
) -> Result<MaskedFiles, GitError> {
    let operation = "read the masked files";
    let tree = repository
        .find_commit(mirror::oid(operation, commit)?)
        .and_then(|commit| commit.tree())
        .map_err(object_error(operation))?;
    let (mut files, mut roots) = (BTreeMap::new(), BTreeSet::new());
    let mut open = vec![(String::new(), tree.id(), 0)];
    while let Some((prefix, id, depth)) = open.pop() {
        if depth >= DEPTH_CAP {
            return Err(GitError::Failed { operation, detail: format!("`{prefix}` is nested too deeply") });
        }
        let tree = repository.find_tree(id).map_err(object_error(operation))?;
        for entry in &tree {
            // Names that are not UTF-8 cannot be what an agent's program looks for.
            let Ok(name) = entry.name() else { continue };
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            let root = super::mask_root(path.as_bytes(), masked);
            if root.is_some_and(|root| root.len() == path.len()) {
                roots.insert(path.clone());
            }
            if entry.filemode() == 0o040_000 {
                open.push((path, entry.id(), depth + 1));
            } else if root.is_some() {
                files.insert(path, MaskedFile { mode: entry.filemode(), id: entry.id() });
                if files.len() > MASKED_FILES_CAP {
                    let detail = format!("more than {MASKED_FILES_CAP} files in the agents' own folders");
                    return Err(GitError::Failed { operation, detail });
                }
            }
        }
    }
    Ok(MaskedFiles { files, roots })
}

/// A masked file as a run on somebody's head sees it.
struct TrustedFile {
    bytes: Vec<u8>,
    is_executable: bool,
    /// Its id in Git.
    id: Option<git2::Oid>,
}

/// The masked files of the base branch, without a way from them to what the head changed: a link becomes the file that it
/// leads to there (or is left out, when it leads to a folder or nowhere), and a memory file imports nothing.
fn trusted_files(
    repository: &git2::Repository,
    base: &Sha,
    files: &BTreeMap<String, MaskedFile>,
) -> Result<BTreeMap<String, TrustedFile>, GitError> {
    let operation = "read the masked files";
    let tree = repository
        .find_commit(mirror::oid(operation, base)?)
        .and_then(|commit| commit.tree())
        .map_err(object_error(operation))?;
    let mut trusted = BTreeMap::new();
    for (name, file) in files {
        let (mut path, mut file) = (name.clone(), file.clone());
        for _ in 0..LINKS_CAP {
            if file.mode != 0o120_000 {
                break;
            }
            let link = repository.find_blob(file.id).map_err(object_error(operation))?;
            let Some(target) = std::str::from_utf8(link.content()).ok().and_then(|to| link_target(&path, to))
            else {
                break;
            };
            let Ok(found) = tree.get_path(Path::new(&target)) else { break };
            (path, file) = (target, MaskedFile { mode: found.filemode(), id: found.id() });
        }
        if !matches!(file.mode, 0o100_644 | 0o100_755 | 0o100_664) {
            continue;
        }
        let size = repository
            .odb()
            .and_then(|objects| objects.read_header(file.id))
            .map_err(object_error(operation))?
            .0;
        if size > MASKED_FILE_BYTES {
            return Err(GitError::Failed { operation, detail: format!("`{name}` is larger than 16 MiB") });
        }
        let blob = repository.find_blob(file.id).map_err(object_error(operation))?;
        let bytes = if is_memory(name) { without_imports(blob.content()) } else { blob.content().to_vec() };
        let id = git2::Oid::hash_object(git2::ObjectType::Blob, &bytes).ok();
        trusted.insert(name.clone(), TrustedFile { bytes, is_executable: file.mode == 0o100_755, id });
    }
    Ok(trusted)
}

/// Where a link of the tree leads, from the top of it; `None`: out of it.
fn link_target(path: &str, target: &str) -> Option<String> {
    let mut at: Vec<&str> = path.split('/').collect();
    at.pop();
    if target.starts_with('/') {
        return None;
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(at.pop()?),
            part => at.push(part),
        }
    }
    let target = at.join("/");
    parts(&target).is_some().then_some(target)
}

/// Whether it is text that a CLI may give to its model.
fn is_memory(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|end| end.eq_ignore_ascii_case("md"))
}

/// Memory files import others by `@docs/style.md`, and those are the head's: a `\` before it keeps the text and takes the
/// meaning, for every CLI that knows imports.
fn without_imports(text: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    let mut before = b' ';
    for (at, byte) in text.iter().enumerate() {
        // Beyond ASCII there are other spaces.
        let begins_a_word = before.is_ascii_whitespace() || before.is_ascii_control() || !before.is_ascii();
        if *byte == b'@' && begins_a_word && text.get(at + 1).is_some_and(|next| !next.is_ascii_whitespace())
        {
            kept.push(b'\\');
        }
        kept.push(*byte);
        before = *byte;
    }
    kept
}

fn masks(masked: &[&str]) -> Vec<Vec<u8>> {
    masked.iter().map(|path| path.trim_matches('/').as_bytes().to_vec()).collect()
}

/// See `Git::masked_edits`.
pub(crate) async fn masked_edits(
    git: &Git,
    remote: &str,
    repo_id: i64,
    run: &RunId,
    (start, base): (&Sha, &Sha),
    masked: &[&str],
) -> Result<Vec<String>, GitError> {
    let operation = "look for changed masked files";
    let Some(folders) = prepared(git, remote, repo_id, run) else { return Ok(Vec::new()) };
    let (mirror, masked) = (Mirror::of(git, remote, repo_id)?.path, masks(masked));
    let (start, base) = (start.clone(), base.clone());
    blocking(operation, move || {
        let repository = mirror::open(operation, &mirror)?;
        // As they were prepared (the base's), or as the start has them (a setup's settling puts them back so).
        let trusted = masked_files(&repository, &base, &masked)?.files;
        let (mut as_shown, mut own) = (BTreeMap::new(), BTreeMap::new());
        if start != base {
            as_shown = trusted_files(&repository, &base, &trusted)?;
            own = masked_files(&repository, &start, &masked)?.files;
        }
        let left = masked_in_folder(&folders.workspace, &masked);
        let mut edited = BTreeSet::new();
        for (path, file) in &left.files {
            let is_known = |files: &BTreeMap<String, MaskedFile>| {
                files.get(path).is_some_and(|known| known.mode == file.mode && file.ids.contains(&known.id))
            };
            let is_shown = as_shown.get(path).is_some_and(|shown| {
                let mode = if shown.is_executable { 0o100_755 } else { 0o100_644 };
                file.mode == mode && shown.id.is_some_and(|id| file.ids.contains(&id))
            });
            if !is_shown && !is_known(&trusted) && !is_known(&own) {
                edited.insert(path.clone());
            }
        }
        // What was there before the agent came and is not any more; what leads away from the base never was there.
        let was_there = |path: &str, file: &MaskedFile| {
            if start == base { file.mode != GITLINK } else { as_shown.contains_key(path) }
        };
        let gone = trusted
            .iter()
            .filter(|(path, file)| was_there(path, file) && left.whole && !left.files.contains_key(*path));
        edited.extend(gone.map(|(path, _)| path.clone()));
        Ok(edited.into_iter().take(MASKED_EDITS_CAP).collect())
    })
    .await
}

/// A masked file that an agent left: what its mode is in Git, and the ids that its bytes may have there (line ends may
/// have been changed by the checkout). Without ids it could not be read.
struct LeftFile {
    mode: i32,
    ids: Vec<git2::Oid>,
}

struct LeftFiles {
    files: BTreeMap<String, LeftFile>,
    /// Every folder was looked into.
    whole: bool,
}

/// The masked files below a folder that an agent had. What cannot be read counts as changed.
fn masked_in_folder(workspace: &Path, masked: &[Vec<u8>]) -> LeftFiles {
    let mut left = LeftFiles { files: BTreeMap::new(), whole: true };
    let mut open = vec![(String::new(), 0)];
    let mut looked_at = 0_usize;
    while let Some((prefix, depth)) = open.pop() {
        let Ok(entries) = std::fs::read_dir(workspace.join(&prefix)) else {
            left.whole = false;
            continue;
        };
        for entry in entries.flatten() {
            looked_at += 1;
            if looked_at > WORKSPACE_ENTRIES_CAP || left.files.len() > MASKED_FILES_CAP {
                left.whole = false;
                return left;
            }
            let (Ok(name), Ok(kind)) = (entry.file_name().into_string(), entry.file_type()) else { continue };
            if prefix.is_empty() && name == ".git" {
                continue;
            }
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if kind.is_dir() {
                if depth < DEPTH_CAP {
                    open.push((path, depth + 1));
                } else {
                    left.whole = false;
                }
            } else if super::mask_root(path.as_bytes(), masked).is_some() {
                let executable = entry.metadata().is_ok_and(|found| found.mode() & 0o100 != 0);
                let mode = match () {
                    () if kind.is_symlink() => 0o120_000,
                    () if executable => 0o100_755,
                    () => 0o100_644,
                };
                left.files.insert(path, LeftFile { mode, ids: ids_of(&entry.path(), kind) });
            }
        }
    }
    left
}

fn ids_of(path: &Path, kind: std::fs::FileType) -> Vec<git2::Oid> {
    use std::io::Read;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::OpenOptionsExt;
    let id = |bytes: &[u8]| git2::Oid::hash_object(git2::ObjectType::Blob, bytes).ok();
    if kind.is_symlink() {
        return std::fs::read_link(path)
            .ok()
            .and_then(|to| id(to.as_os_str().as_bytes()))
            .into_iter()
            .collect();
    }
    if !kind.is_file() {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(super::bundle::O_NOFOLLOW | super::bundle::O_NONBLOCK)
        .open(path);
    let limit = u64::try_from(MASKED_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let read = opened.and_then(|file| file.take(limit).read_to_end(&mut bytes));
    if read.is_err() || bytes.len() > MASKED_FILE_BYTES {
        return Vec::new();
    }
    let plain: Vec<u8> = bytes.split(|byte| *byte == b'\r').flatten().copied().collect();
    [id(&bytes), id(&plain)].into_iter().flatten().collect()
}

/// Replaces the masked files of the workspace by the base commit's, and hides that from `git status`.
async fn mask(mirror: &Mirror, spec: &WorkspaceSpec<'_>, workspace: &Path) -> Result<(), GitError> {
    let operation = "mask the agents' own files";
    if let Some(bad) = spec.masked.iter().find(|path| parts(path.trim_matches('/')).is_none()) {
        return Err(GitError::Failed { operation, detail: format!("`{bad}` is not a path to mask") });
    }
    let masked = masks(spec.masked);
    let (path, start, base) = (mirror.path.clone(), spec.start.clone(), spec.base_sha.clone());
    let (folder, owner) = (workspace.to_owned(), spec.owner);
    blocking(operation, move || mask_in(&path, (&start, &base), &masked, &folder, owner)).await
}

fn mask_in(
    mirror: &Path,
    (start, base): (&Sha, &Sha),
    masked: &[Vec<u8>],
    workspace: &Path,
    owner: (u32, u32),
) -> Result<(), GitError> {
    let operation = "mask the agents' own files";
    let repository = mirror::open(operation, mirror)?;
    let before = masked_files(&repository, start, masked)?;
    let after = masked_files(&repository, base, masked)?;
    let trusted = trusted_files(&repository, base, &after.files)?;
    let is_plain = |(name, file): (&String, &MaskedFile)| {
        trusted.get(name).is_some_and(|trusted| trusted.id == Some(file.id))
    };
    if before.files == after.files && after.files.iter().all(is_plain) {
        return Ok(());
    }
    for name in &before.roots {
        // Whole folders: a trusted one must not keep a file that the head added.
        remove(workspace, name)?;
    }
    for (name, file) in &trusted {
        restore(workspace, name, file, owner)?;
    }
    let tracked: BTreeSet<String> = before.files.into_keys().collect();
    let added: Vec<String> = after.files.keys().filter(|name| !tracked.contains(*name)).cloned().collect();

    let dot_git = workspace.join(".git");
    if !added.is_empty() {
        let exclude = dot_git.join("info/exclude");
        let lines: String = added.iter().map(|name| format!("/{}\n", escaped_pattern(name))).collect();
        write(operation, &exclude, lines.as_bytes())?;
        own(&exclude, owner)?;
    }
    if !tracked.is_empty() {
        // The agent has not had this workspace yet: its `.git` is still that of our seed.
        // (Not `skip-worktree`: `git rm` refuses such paths, and the collector puts them back with it.)
        let path = dot_git.join("index");
        let mut index = git2::Index::open(&path).map_err(object_error(operation))?;
        for name in &tracked {
            let Some(mut entry) = index.get_path(Path::new(name), 0) else { continue };
            entry.flags |= git2::IndexEntryFlag::VALID.bits();
            index.add(&entry).map_err(object_error(operation))?;
        }
        index.write().map_err(object_error(operation))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
            .map_err(io_error(operation, &path))?;
        own(&path, owner)?;
    }
    Ok(())
}

/// A path as a line of an exclude file, taken literally.
fn escaped_pattern(path: &str) -> String {
    path.chars()
        .flat_map(|c| {
            let special = matches!(c, '*' | '?' | '[' | ']' | '\\' | '!' | '#' | ' ');
            special.then_some('\\').into_iter().chain(std::iter::once(c))
        })
        .collect()
}

/// The plain components of a relative path that stays where it is and out of `.git`.
fn parts(path: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().filter(|part| *part != ".git")?),
            _ => return None,
        }
    }
    (!parts.is_empty() && !path.contains('\n')).then_some(parts)
}

/// Removes a masked path. A symbolic link on the way is not followed: what is behind it has another path.
fn remove(workspace: &Path, name: &str) -> Result<(), GitError> {
    let operation = "remove a masked file";
    let Some(parts) = parts(name) else { return Ok(()) };
    let mut path = workspace.to_owned();
    let last = parts.len().saturating_sub(1);
    for (index, part) in parts.iter().enumerate() {
        path.push(part);
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(io_error(operation, &path)(error)),
        };
        if index == last && found.is_dir() {
            return std::fs::remove_dir_all(&path).map_err(io_error(operation, &path));
        }
        if index == last || !found.is_dir() {
            // A link or file in the place of a parent: the masked path could be reached through it.
            let through_link = found.file_type().is_symlink();
            if index == last || through_link {
                return std::fs::remove_file(&path).map_err(io_error(operation, &path));
            }
            return Ok(());
        }
    }
    Ok(())
}

/// Writes one trusted file, never through a symbolic link.
fn restore(workspace: &Path, name: &str, file: &TrustedFile, owner: (u32, u32)) -> Result<(), GitError> {
    let operation = "write a masked file";
    let Some(parts) = parts(name) else { return Ok(()) };
    let mut path = workspace.to_owned();
    let last = parts.len().saturating_sub(1);
    for (index, part) in parts.iter().enumerate() {
        path.push(part);
        let found = path.symlink_metadata().ok();
        if index < last {
            if found.as_ref().is_some_and(|found| found.is_dir()) {
                continue;
            }
            if found.is_some() {
                std::fs::remove_file(&path).map_err(io_error(operation, &path))?;
            }
            std::fs::create_dir(&path).map_err(io_error(operation, &path))?;
            own(&path, owner)?;
        } else if let Some(found) = found {
            let removed =
                if found.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(io_error(operation, &path))?;
        }
    }
    write(operation, &path, &file.bytes)?;
    let mode = if file.is_executable { 0o755 } else { 0o644 };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
        .map_err(io_error(operation, &path))?;
    own(&path, owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::Workspaces;
    use crate::git::seed::WORK_BRANCH;
    use crate::git::sweep::entries;
    use crate::git::tests::{REMOTE, REPO, World, git, git_output};

    const MASKED: &[&str] = &[".claude", "AGENTS.md", ".mcp.json", "CLAUDE.md"];

    fn me(world: &World) -> (u32, u32) {
        let found = world.folder.path().metadata().unwrap();
        (found.uid(), found.gid())
    }

    async fn prepare_for(world: &World, run: &str, start: &Sha, owner: (u32, u32)) -> Workspace {
        prepare_on(world, run, start, &world.start, owner).await
    }

    async fn prepare_on(world: &World, run: &str, start: &Sha, base: &Sha, owner: (u32, u32)) -> Workspace {
        let run = RunId::new(run);
        let spec = WorkspaceSpec {
            remote: REMOTE,
            repo_id: REPO,
            run: &run,
            start,
            base_sha: base,
            masked: MASKED,
            objects_inside: PathBuf::from("/zeblit/objects"),
            owner,
        };
        world.git.prepare(&spec).await.unwrap()
    }

    /// Git in the workspace, with the objects where they are on this machine.
    fn inside(world: &World, workspace: &Workspace, arguments: &[&str]) -> String {
        let alternates = workspace.workspace.join(".git/objects/info/alternates");
        std::fs::write(&alternates, format!("{}\n", workspace.objects.display())).unwrap();
        let uid = workspace.workspace.metadata().unwrap().uid();
        assert_eq!(uid, me(world).0);
        git(&workspace.workspace, arguments)
    }

    #[tokio::test]
    async fn a_workspace_is_a_clean_checkout_without_a_way_out() {
        let world = World::new().await;
        let made = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        let read = |path: &str| std::fs::read_to_string(made.workspace.join(path)).unwrap();
        assert_eq!(read("README.md"), "hello world\n");
        assert_eq!(read(".git/objects/info/alternates"), "/zeblit/objects\n");
        assert_eq!(made.objects, world.git.mirror_path(REMOTE, REPO).join("objects"));
        assert!(made.output.is_dir() && made.home.is_dir());
        assert!(!made.workspace.join(".git/hooks").exists());
        assert_eq!(inside(&world, &made, &["status", "--porcelain"]), "");
        assert_eq!(inside(&world, &made, &["remote"]), "");
        assert_eq!(inside(&world, &made, &["branch", "--show-current"]), WORK_BRANCH);
        assert_eq!(inside(&world, &made, &["rev-parse", "HEAD"]), world.start.as_str());
        assert_eq!(inside(&world, &made, &["fsck"]), "");
        inside(&world, &made, &["commit", "-q", "--allow-empty", "-m", "works"]);
    }

    #[tokio::test]
    async fn seeds_are_reused_and_a_second_preparation_starts_afresh() {
        let world = World::new().await;
        let first = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        std::fs::write(first.workspace.join("README.md"), "changed").unwrap();
        std::fs::write(first.home.join("session"), "x").unwrap();
        let again = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        assert_eq!(first, again);
        assert_eq!(std::fs::read_to_string(again.workspace.join("README.md")).unwrap(), "hello world\n");
        assert!(!again.home.join("session").exists());
        let seeds = entries(&world.git.root.join("seeds").join(REMOTE).join(REPO.to_string()));
        assert_eq!(seeds.iter().filter(|path| path.is_dir()).count(), 1, "{seeds:?}");
        assert_eq!(world.git.prepared(REMOTE, REPO, &RunId::new("run_1")), Some(again));
        assert_eq!(world.git.prepared(REMOTE, REPO, &RunId::new("run_2")), None);
    }

    #[tokio::test]
    async fn files_belong_to_the_agents_user() {
        let world = World::new().await;
        if me(&world).0 != 0 {
            return; // Only root can give files away.
        }
        let made = prepare_for(&world, "run_1", &world.start, (10_001, 10_001)).await;
        for path in [&made.workspace, &made.output, &made.home] {
            assert_eq!(path.metadata().unwrap().uid(), 10_001, "{}", path.display());
        }
        for path in ["README.md", ".git/index", ".git/HEAD", ".claude/settings.json"] {
            assert_eq!(made.workspace.join(path).metadata().unwrap().uid(), 10_001, "{path}");
        }
    }

    #[tokio::test]
    async fn masked_files_come_from_the_base_and_git_does_not_mind() {
        let world = World::new().await;
        let person = world.person();
        std::fs::write(person.join(".claude/settings.json"), "{\"hooks\":1}").unwrap();
        std::fs::write(person.join(".claude/evil.sh"), "evil").unwrap();
        std::fs::write(person.join(".mcp.json"), "{}").unwrap();
        std::fs::remove_file(person.join("AGENTS.md")).unwrap();
        // A link in the place of a masked file, and the way it would be followed.
        std::fs::create_dir(person.join("victim")).unwrap();
        std::fs::write(person.join("victim/file"), "mine").unwrap();
        std::os::unix::fs::symlink("victim/file", person.join("AGENTS.md")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", person.join("CLAUDE.md")).unwrap();
        git(&person, &["add", "-A"]);
        git(&person, &["commit", "-qm", "Hostile head"]);
        git(&person, &["push", "-q", "../remote.git", "HEAD:refs/pull/3/head"]);
        let head = Sha::parse(&git(&person, &["rev-parse", "HEAD"])).unwrap();
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&head), Some(3)).await.unwrap();

        let made = prepare_for(&world, "run_1", &head, me(&world)).await;
        let read = |path: &str| std::fs::read_to_string(made.workspace.join(path)).unwrap();
        assert_eq!(read(".claude/settings.json"), "{}\n");
        assert_eq!(read("AGENTS.md"), "be kind\n");
        assert_eq!(read("victim/file"), "mine");
        assert!(made.workspace.join("AGENTS.md").symlink_metadata().unwrap().is_file());
        for gone in [".claude/evil.sh", ".mcp.json", "CLAUDE.md"] {
            assert!(made.workspace.join(gone).symlink_metadata().is_err(), "{gone}");
        }
        assert_eq!(inside(&world, &made, &["status", "--porcelain"]), "");
        assert_eq!(inside(&world, &made, &["rev-parse", "HEAD"]), head.as_str());
        // What the agent changes is committed without them, and the collector can put them back.
        std::fs::write(made.workspace.join("README.md"), "changed\n").unwrap();
        inside(&world, &made, &["add", "--all"]);
        assert_eq!(inside(&world, &made, &["diff", "--cached", "--name-only", "HEAD"]), "README.md");
        for masked in MASKED {
            inside(&world, &made, &["rm", "-r", "-q", "-f", "--cached", "--ignore-unmatch", "--", masked]);
            let _ = std::fs::remove_dir_all(made.workspace.join(masked));
            let _ = std::fs::remove_file(made.workspace.join(masked));
        }
        let there = [".claude", "AGENTS.md", ".mcp.json", "CLAUDE.md"];
        inside(&world, &made, &[&["checkout", "-q", "-f", head.as_str(), "--"], &there[..]].concat());
        inside(&world, &made, &["add", "--all"]);
        assert_eq!(inside(&world, &made, &["diff", "--cached", "--name-only", "HEAD"]), "README.md");
        assert_eq!(read(".claude/evil.sh"), "evil");
    }

    #[tokio::test]
    async fn what_the_base_trusts_does_not_lead_to_the_head() {
        let world = World::new().await;
        let person = world.person();
        std::fs::create_dir(person.join("docs")).unwrap();
        std::fs::write(person.join("docs/rules.md"), "base rules, see @style.md\n").unwrap();
        std::fs::write(person.join("docs/style.md"), "base style\n").unwrap();
        std::fs::write(person.join("AGENTS.md"), "be kind to a@b.c: @docs/style.md\n").unwrap();
        std::os::unix::fs::symlink("docs/rules.md", person.join("CLAUDE.md")).unwrap();
        std::fs::create_dir(person.join("deep")).unwrap();
        for (place, target) in [
            ("deep/CLAUDE.md", "../AGENTS.md"),
            ("docs/AGENTS.md", "../../out"),
            ("deep/.mcp.json", "../docs"),
        ] {
            std::os::unix::fs::symlink(target, person.join(place)).unwrap();
        }
        git(&person, &["add", "-A"]);
        git(&person, &["commit", "-qm", "Base"]);
        git(&person, &["push", "-q", "../remote.git", "HEAD:main"]);
        let base = Sha::parse(&git(&person, &["rev-parse", "HEAD"])).unwrap();
        // None of the masked files themselves.
        std::fs::write(person.join("docs/rules.md"), "evil\n").unwrap();
        std::fs::write(person.join("docs/style.md"), "evil\n").unwrap();
        git(&person, &["commit", "-qam", "Hostile head"]);
        git(&person, &["push", "-q", "../remote.git", "HEAD:refs/pull/3/head"]);
        let head = Sha::parse(&git(&person, &["rev-parse", "HEAD"])).unwrap();
        world.git.ensure(REMOTE, REPO, &world.access, &[base.clone(), head.clone()], Some(3)).await.unwrap();

        let made = prepare_on(&world, "run_1", &head, &base, me(&world)).await;
        let read = |path: &str| std::fs::read_to_string(made.workspace.join(path)).unwrap();
        assert_eq!(read("AGENTS.md"), "be kind to a@b.c: \\@docs/style.md\n");
        assert_eq!(read("CLAUDE.md"), "base rules, see \\@style.md\n");
        assert_eq!(read("deep/CLAUDE.md"), read("AGENTS.md"));
        for gone in ["docs/AGENTS.md", "deep/.mcp.json"] {
            assert!(made.workspace.join(gone).symlink_metadata().is_err(), "{gone}");
        }
        assert_eq!(read("docs/style.md"), "evil\n", "the head's own files are its own");
        assert_eq!(inside(&world, &made, &["status", "--porcelain"]), "");
        let edits = async || {
            let run = RunId::new("run_1");
            world.git.masked_edits(REMOTE, REPO, &run, (&head, &base), MASKED).await.unwrap()
        };
        assert_eq!(edits().await, [""; 0], "what the host wrote is no change of the agent's");
        std::fs::write(made.workspace.join("AGENTS.md"), "evil\n").unwrap();
        assert_eq!(edits().await, ["AGENTS.md"]);
    }

    #[test]
    fn imports_lose_their_meaning_and_keep_their_text() {
        for (text, kept) in [
            ("@a", "\\@a"),
            ("x\n@./docs/a.md @~/b", "x\n\\@./docs/a.md \\@~/b"),
            ("\u{feff}@a \u{a0}@b", "\u{feff}\\@a \u{a0}\\@b"),
            ("mail a@b.c, `@decorator`, @ alone, (@x", "mail a@b.c, `@decorator`, @ alone, (@x"),
        ] {
            assert_eq!(String::from_utf8(without_imports(text.as_bytes())).unwrap(), kept);
        }
    }

    #[tokio::test]
    async fn links_in_the_place_of_folders_are_not_followed() {
        let world = World::new().await;
        let person = world.person();
        git(&person, &["rm", "-rq", ".claude"]);
        std::fs::create_dir(person.join("other")).unwrap();
        std::fs::write(person.join("other/settings.json"), "theirs").unwrap();
        std::os::unix::fs::symlink("other", person.join(".claude")).unwrap();
        git(&person, &["add", "-A"]);
        git(&person, &["commit", "-qm", "Link"]);
        git(&person, &["push", "-q", "../remote.git", "HEAD:refs/pull/3/head"]);
        let head = Sha::parse(&git(&person, &["rev-parse", "HEAD"])).unwrap();
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&head), Some(3)).await.unwrap();
        let made = prepare_for(&world, "run_1", &head, me(&world)).await;
        let read = |path: &str| std::fs::read_to_string(made.workspace.join(path)).unwrap();
        assert!(made.workspace.join(".claude").symlink_metadata().unwrap().is_dir());
        assert_eq!(read(".claude/settings.json"), "{}\n");
        assert_eq!(read("other/settings.json"), "theirs");
    }

    #[test]
    fn masked_writes_go_through_no_link_and_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        let workspace = folder.path().join("workspace");
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(&workspace).unwrap();
        std::fs::write(outside.join("file"), "safe").unwrap();
        std::os::unix::fs::symlink(&outside, workspace.join("dir")).unwrap();
        remove(&workspace, "dir/file").unwrap();
        assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "safe");
        assert!(workspace.join("dir").symlink_metadata().is_err(), "the link itself is gone");
        for bad in ["", "..", "../x", "/etc/passwd", "a/../b", ".git", ".git/config", "a/.git/hooks", "a\nb"]
        {
            assert_eq!(parts(bad), None, "{bad}");
        }
        assert_eq!(parts(".github/x"), Some(vec![".github", "x"]));
    }

    #[tokio::test]
    async fn the_first_status_looks_at_no_files_content() {
        let world = World::new().await;
        let first = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        let seed = Source::read(first.workspace.parent().unwrap()).unwrap().seed;
        // Where there are no overlays the workspace itself is as a seed would be.
        let place = seed.unwrap_or_else(|| first.workspace.clone());
        let file = place.join("README.md");
        let time = file.metadata().unwrap().modified().unwrap();
        std::fs::write(&file, "HELLO WORLD\n").unwrap();
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        let made = match place == first.workspace {
            true => first,
            false => prepare_for(&world, "run_2", &world.start, me(&world)).await,
        };
        assert_eq!(std::fs::read_to_string(made.workspace.join("README.md")).unwrap(), "HELLO WORLD\n");
        assert_eq!(inside(&world, &made, &["status", "--porcelain"]), "");
        // An edit of the same length is seen all the same.
        std::fs::write(made.workspace.join("README.md"), "jello world\n").unwrap();
        assert_eq!(inside(&world, &made, &["status", "--porcelain"]), " M README.md");
        let debug = inside(&world, &made, &["ls-files", "--debug", "run.sh"]);
        let time = made.workspace.join("run.sh").metadata().unwrap().mtime();
        assert!(debug.contains(&format!("mtime: {time}:0")), "{debug}");
        assert!(time + 2 <= place.join(".git/index").metadata().unwrap().mtime(), "{debug}");
    }

    /// Every path below a folder with its type, mode, links, size and text.
    fn listing(folder: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let mut open = vec![folder.to_owned()];
        while let Some(folder) = open.pop() {
            for path in entries(&folder) {
                let found = path.symlink_metadata().unwrap();
                let text = if found.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
                let (mode, links) = (found.mode(), found.nlink());
                lines.push(format!("{} {mode:o} {links} {:?} {text:?}", path.display(), found.modified()));
                if found.is_dir() {
                    open.push(path);
                }
            }
        }
        lines
    }

    #[tokio::test]
    async fn whatever_a_run_does_to_its_workspace_is_collected_and_leaves_the_seed_alone() {
        let world = World::new().await;
        let made = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        let folder = made.workspace.parent().unwrap();
        let seed = Source::read(folder).unwrap().seed;
        assert_eq!(seed.is_some(), world.git.layout() == Layout::Overlay);
        let before = seed.as_deref().map(listing);
        let script = "set -e
            mv src moved
            git mv .claude claude
            chmod +x README.md
            ln run.sh again.sh
            ln -s moved/main.py link
            rm AGENTS.md && echo new > AGENTS.md
            mkdir src && echo other > src/main.py
            mv moved/main.py moved/first.py
            echo 'print(3)' >> moved/first.py
            rm -r claude && mkdir claude && echo x > claude/x
            git add -A
            git commit -qm Everything";
        let alternates = made.workspace.join(".git/objects/info/alternates");
        std::fs::write(&alternates, format!("{}\n", made.objects.display())).unwrap();
        let done =
            std::process::Command::new("sh").args(["-c", script]).current_dir(&made.workspace).output();
        let done = done.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(
            inside(&world, &made, &["diff", "--no-renames", "--name-status", "HEAD~1"]),
            "D\t.claude/settings.json\nM\tAGENTS.md\nM\tREADME.md\nA\tagain.sh\nA\tclaude/x\nA\tlink\n\
             A\tmoved/first.py\nM\tsrc/main.py"
        );
        assert_eq!(inside(&world, &made, &["status", "--porcelain"]), "");
        assert_eq!(inside(&world, &made, &["fsck"]), "");
        assert_eq!(
            std::fs::read_to_string(made.workspace.join("moved/first.py")).unwrap().lines().count(),
            3
        );
        assert_eq!(seed.as_deref().map(listing), before);
    }

    #[tokio::test]
    async fn a_run_is_measured_by_what_it_wrote() {
        let world = World::new().await;
        let made = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        let used = async || world.git.disk_use(&RunId::new("run_1"), i64::MAX, i64::MAX).await.unwrap();
        let before = used().await;
        std::fs::write(made.workspace.join("large"), vec![1; 1 << 20]).unwrap();
        std::fs::write(made.home.join("large"), vec![1; 1 << 20]).unwrap();
        let after = used().await;
        assert!((2 << 20..3 << 20).contains(&(after.bytes - before.bytes)), "{before:?} {after:?}");
        assert_eq!(after.files - before.files, 2);
        if world.git.layout() == Layout::Overlay {
            assert!(before.files < 12, "the checkout below is nobody's: {before:?}");
        }
    }

    #[tokio::test]
    async fn a_workspace_that_was_unmounted_is_mounted_again_if_its_seed_is_whole() {
        let world = World::new().await;
        let run = RunId::new("run_1");
        let made = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        let folder = made.workspace.parent().unwrap();
        let Some(seed) = Source::read(folder).unwrap().seed else {
            assert!(world.git.no_overlay().is_some(), "no overlay without a reason");
            return;
        };
        std::fs::write(made.workspace.join("mine"), "kept").unwrap();
        overlay::unmount_below(folder).unwrap();
        assert!(!made.workspace.join("README.md").exists());
        assert_eq!(world.git.prepared(REMOTE, REPO, &run), Some(made.clone()));
        assert_eq!(std::fs::read_to_string(made.workspace.join("mine")).unwrap(), "kept");
        assert!(made.workspace.join("README.md").exists());
        overlay::unmount_below(folder).unwrap();
        world.git.sweep(std::slice::from_ref(&run)).await.unwrap();
        assert!(made.workspace.join("mine").exists());

        // As a power loss leaves files that were never written.
        overlay::unmount_below(folder).unwrap();
        std::fs::write(seed.join("src/main.py"), "").unwrap();
        assert_eq!(world.git.prepared(REMOTE, REPO, &run), None);
        // And as the next boot finds such a seed: it is made anew.
        let record = seed::Record { bytes: 1, boot: "another".into() };
        record.write(&seed).unwrap();
        let made = prepare_for(&world, "run_2", &world.start, me(&world)).await;
        assert_eq!(std::fs::read_to_string(made.workspace.join("src/main.py")).unwrap().lines().count(), 2);
        assert_eq!(seed::Record::read(&seed).unwrap().boot, world.git.boot);
    }

    #[tokio::test]
    async fn a_workspace_that_is_bound_elsewhere_is_discarded_all_the_same() {
        let world = World::new().await;
        let made = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        let view = world.git.root.join("tmp/view");
        std::fs::create_dir(&view).unwrap();
        if crate::mount::bind(&made.workspace, &view, crate::mount::Access::Write).is_err() {
            return; // Only root mounts.
        }
        std::fs::write(view.join("mine"), "x").unwrap();
        let seed = Source::read(made.workspace.parent().unwrap()).unwrap().seed;
        let before = seed.as_deref().map(listing);
        let run = RunId::new("run_1");
        world.git.discard(&run).await.unwrap();
        assert_eq!(world.git.prepared(REMOTE, REPO, &run), None);
        assert!(world.git.known_runs().is_empty());
        // A container that still has it sees it as it was.
        assert_eq!(std::fs::read_to_string(view.join("README.md")).unwrap(), "hello world\n");
        crate::mount::unmount(&view).unwrap();
        assert_eq!(seed.as_deref().map(listing), before);
    }

    #[tokio::test]
    async fn a_checkout_of_its_own_is_as_good_as_an_overlay() {
        let mut world = World::new().await;
        world.git = world.git.clone().with_workspaces(Workspaces::Fixed(Layout::Checkout)).unwrap();
        let made = prepare_for(&world, "run_1", &world.start, me(&world)).await;
        assert_eq!(crate::mount::at(&made.workspace), None);
        assert_eq!(std::fs::read_to_string(made.workspace.join("README.md")).unwrap(), "hello world\n");
        assert_eq!(
            std::fs::read_to_string(made.workspace.join(".git/objects/info/alternates")).unwrap(),
            "/zeblit/objects\n"
        );
        assert_eq!(inside(&world, &made, &["status", "--porcelain"]), "");
        assert_eq!(inside(&world, &made, &["rev-parse", "HEAD"]), world.start.as_str());
        assert!(!world.git.root.join("seeds").join(REMOTE).exists());
        assert_eq!(world.git.prepared(REMOTE, REPO, &RunId::new("run_1")), Some(made));
    }

    #[test]
    fn exclude_lines_are_taken_literally() {
        assert_eq!(escaped_pattern("a b/[x]*?!#\\.md"), "a\\ b/\\[x\\]\\*\\?\\!\\#\\\\.md");
    }

    #[tokio::test]
    async fn a_checkout_runs_nothing_that_the_repository_asks_for() {
        let world = World::new().await;
        let person = world.person();
        let canary = world.folder.path().join("canary");
        let touch = format!("touch {}", canary.display());
        std::fs::write(person.join(".gitattributes"), "* filter=evil diff=evil merge=evil\n").unwrap();
        std::fs::write(
            person.join(".gitconfig"),
            format!(
                "[filter \"evil\"]\n\tsmudge = {touch}\n\tclean = {touch}\n[core]\n\tfsmonitor = {touch}\n"
            ),
        )
        .unwrap();
        std::fs::create_dir_all(person.join("hooks")).unwrap();
        std::fs::write(person.join("hooks/post-checkout"), format!("#!/bin/sh\n{touch}\n")).unwrap();
        git(&person, &["add", "-A"]);
        let id = git(&person, &["rev-parse", "HEAD"]);
        git(&person, &["update-index", "--add", "--cacheinfo", &format!("160000,{id},module")]);
        git(&person, &["commit", "-qm", "Payloads"]);
        git(&person, &["push", "-q", "../remote.git", "HEAD:refs/heads/main"]);
        let head = Sha::parse(&git(&person, &["rev-parse", "HEAD"])).unwrap();
        world.git.ensure(REMOTE, REPO, &world.access, std::slice::from_ref(&head), None).await.unwrap();
        let made = prepare_for(&world, "run_1", &head, me(&world)).await;
        assert!(made.workspace.join("module").is_dir(), "a submodule is an empty folder");
        assert!(!canary.exists());
        let status = git_output(&made.workspace, &["config", "--get-regexp", "filter"], b"");
        assert!(!status.status.success());
    }
}
