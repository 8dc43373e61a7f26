//! Purpose: turn what stands in the workspace into commits and a bundle with one ref.
//!
//! The agent may have left anything: locks, a merge in progress, another branch, no `.git` at all. So the
//! result is made with plumbing that needs no clean state, and when the repository is unusable, in a
//! fresh one on the mirror's objects.

use super::Folders;
use super::job::WireJob;
use super::output::Output;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The one ref of the bundle.
pub const RESULT_REF: &str = "refs/heads/zeblit-result";
/// The bundle's name in the output folder.
pub const BUNDLE_FILE: &str = "changes.bundle";
/// Who the commits are by until the host sets author and committer.
const IDENTITY: [(&str, &str); 4] = [
    ("GIT_AUTHOR_NAME", "Zeblit"),
    ("GIT_AUTHOR_EMAIL", "zeblit@localhost"),
    ("GIT_COMMITTER_NAME", "Zeblit"),
    ("GIT_COMMITTER_EMAIL", "zeblit@localhost"),
];
const DEFAULT_MESSAGE: &str = "Changes by the agent";
/// One Git step: `add` and `bundle` on a large tree take seconds, never minutes.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// How long a step's output may stay open after it ended.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a step's output that are kept.
const STEP_OUTPUT_BYTES: u64 = 4 * 1024 * 1024;
/// Paths in one command line.
const PATHS_AT_ONCE: usize = 200;
/// Links of an excluded file that are followed, one after the other.
const LINKS_CAP: usize = 8;
/// What an interrupted Git leaves that stops the next one.
const STALE_LOCKS: [&str; 4] = ["index.lock", "HEAD.lock", "config.lock", "packed-refs.lock"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collected {
    Nothing,
    Commits(u64),
}

/// Makes `<output>/changes.bundle` with `base..result`, or finds that nothing changed.
pub fn collect(folders: &Folders, job: &WireJob, output: &Output) -> Result<Collected, String> {
    if !is_id(&job.base) {
        return Err(format!("the job's base `{}` is not a full commit id", job.base));
    }
    let exclude = clean_paths(&job.exclude)?;
    let excludes = excludes_file(folders, &job.artifacts)?;
    let own = Repository { excludes: excludes.clone(), ..Repository::own(folders) };
    let result = match own.result(folders, job, &exclude) {
        Ok(collected) => Ok(collected),
        Err(first) => {
            output.error("collect-in-place", &first);
            let mut fresh = Repository::fresh(folders).map_err(|error| format!("{first}; {error}"))?;
            fresh.excludes = excludes.clone();
            let result = fresh.result(folders, job, &exclude).map_err(|error| format!("{first}; {error}"));
            fresh.discard();
            result
        }
    };
    if let Some(excludes) = excludes {
        let _ = remove(&excludes);
    }
    result
}

/// What `add` ignores in a file of ours: the agent may have changed the workspace's.
fn excludes_file(folders: &Folders, artifacts: &[String]) -> Result<Option<PathBuf>, String> {
    let lines = ignore_lines(artifacts);
    if lines.is_empty() {
        return Ok(None);
    }
    let file = folders.output.join("excludes");
    let at = |error: io::Error| format!("{}: {error}", file.display());
    remove(&file).map_err(at)?;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&file)
        .and_then(|mut out| out.write_all(lines.as_bytes()))
        .map_err(at)?;
    Ok(Some(file))
}

/// Tracked files of the workspace that differ from the start.
pub fn changed(folders: &Folders, job: &WireJob) -> Result<BTreeSet<String>, String> {
    Repository::own(folders).changed(&job.base)
}

/// After a setup: the branch and tracked files are as before it, and what it left beside them (packages, build
/// output) stays out of the result.
pub fn settle(folders: &Folders, job: &WireJob, before: &BTreeSet<String>) -> Result<(), String> {
    let own = Repository::own(folders);
    own.unlock()?;
    own.git(&["update-ref", "HEAD", &job.base], b"")?;
    let touched: Vec<String> = own.changed(&job.base)?.difference(before).cloned().collect();
    own.put_back(&job.base, &touched)?;
    let left = own.git(&["ls-files", "--others", "--exclude-standard", "--directory", "-z"], b"")?;
    let patterns: String = left
        .split('\0')
        .filter(|path| !path.is_empty() && !path.contains('\n'))
        .map(|path| format!("/{}\n", escaped(path)))
        .collect();
    ignore(folders, &patterns)
}

/// Files that are artifacts stay out of the agent's own commits, too (where they are not tracked).
pub fn keep_out(folders: &Folders, artifacts: &[String]) -> Result<(), String> {
    ignore(folders, &ignore_lines(artifacts))
}

/// The patterns of artifacts in the words of `.gitignore`.
fn ignore_lines(artifacts: &[String]) -> String {
    let mut lines = String::new();
    for pattern in artifacts {
        let pattern = pattern.trim().trim_end_matches('/');
        let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
        if pattern.is_empty() || pattern.contains('\n') {
            continue;
        }
        if pattern.contains('/') {
            lines.push('/');
        }
        for c in pattern.chars() {
            if matches!(c, '[' | ']' | '\\' | ' ' | '!' | '#') {
                lines.push('\\');
            }
            lines.push(c);
        }
        lines.push('\n');
    }
    lines
}

/// Adds lines to what the workspace's repository ignores.
fn ignore(folders: &Folders, lines: &str) -> Result<(), String> {
    if lines.is_empty() {
        return Ok(());
    }
    let file = folders.workspace.join(".git/info/exclude");
    let at = |error: io::Error| format!("{}: {error}", file.display());
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).map_err(at)?;
    }
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&file)
        .and_then(|mut file| file.write_all(format!("\n{lines}").as_bytes()))
        .map_err(at)
}

/// A path as a pattern that means only it.
fn escaped(path: &str) -> String {
    let mut pattern = String::new();
    for c in path.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | ' ' | '!' | '#') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// Puts the excluded paths as they are in `mask_from`, whatever ran in this workspace before. The workspace's own
/// repository is not asked: its configuration may be anybody's.
pub fn mask(folders: &Folders, job: &WireJob) -> Result<(), String> {
    if !is_id(&job.mask_from) {
        return Err(format!("`{}` is not a full commit id", job.mask_from));
    }
    let exclude = clean_paths(&job.exclude)?;
    let fresh = Repository::fresh(folders)?;
    let result = fresh
        .git(&["read-tree", &job.mask_from], b"")
        .and_then(|_| fresh.put_back(&job.mask_from, &exclude))
        .and_then(|()| {
            // What starts from the trusted commit has nothing of anybody else's.
            if job.base == job.mask_from { Ok(()) } else { fresh.put_back_in_every_folder(&exclude) }
        });
    fresh.discard();
    result
}

/// Removes what has one of these names, in every folder; no link is followed.
fn remove_everywhere(workspace: &Path, names: &[&str]) -> Result<(), String> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    let mut open = vec![workspace.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
            let entry = entry.map_err(failed(&folder))?;
            let (path, name) = (entry.path(), entry.file_name());
            if folder == workspace && name == ".git" {
                continue;
            }
            if names.iter().any(|known| name == *known) {
                remove(&path).map_err(failed(&path))?;
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            }
        }
    }
    Ok(())
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
            ".git" => return None,
            part => at.push(part),
        }
    }
    (!at.is_empty()).then(|| at.join("/"))
}

/// The same as the host does to memory files when it prepares a workspace: see `git/workspace.rs`.
fn without_imports(text: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    let mut before = b' ';
    for (at, byte) in text.iter().enumerate() {
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

/// Relative paths without `..`, so that nothing outside the workspace is put back.
fn clean_paths(paths: &[String]) -> Result<Vec<String>, String> {
    paths
        .iter()
        .map(|path| path.trim_end_matches('/'))
        .filter(|path| !path.is_empty())
        .map(|path| {
            let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            if plain {
                Ok(path.to_owned())
            } else {
                Err(format!("excluded path `{path}` is not a plain relative path"))
            }
        })
        .collect()
}

struct Repository {
    workspace: PathBuf,
    /// Apart from the workspace's own `.git`.
    git_dir: Option<PathBuf>,
    /// A file of ours with what `add` ignores, besides what the repository's own files say.
    excludes: Option<PathBuf>,
}

impl Repository {
    /// The workspace's own.
    fn own(folders: &Folders) -> Self {
        Self { workspace: folders.workspace.clone(), git_dir: None, excludes: None }
    }

    /// An empty repository beside the bundle, on the mirror's objects, with the workspace as its tree.
    fn fresh(folders: &Folders) -> Result<Self, String> {
        let git_dir = folders.output.join("collect.git");
        remove(&git_dir).map_err(|error| format!("{}: {error}", git_dir.display()))?;
        let repository = Self { git_dir: Some(git_dir.clone()), ..Self::own(folders) };
        let path = git_dir.to_string_lossy().into_owned();
        let plain = Self { workspace: folders.output.clone(), git_dir: None, excludes: None };
        plain.git(&["init", "-q", "--bare", &path], b"")?;
        let alternates = git_dir.join("objects/info/alternates");
        fs::write(&alternates, format!("{}\n", folders.objects.display()))
            .map_err(|error| format!("{}: {error}", alternates.display()))?;
        Ok(repository)
    }

    fn discard(&self) {
        if let Some(git_dir) = &self.git_dir {
            let _ = remove(git_dir);
        }
    }

    fn result(&self, folders: &Folders, job: &WireJob, exclude: &[String]) -> Result<Collected, String> {
        let base = job.base.as_str();
        match &self.git_dir {
            Some(_) => {
                self.git(&["update-ref", "--no-deref", "HEAD", base], b"")?;
                self.git(&["read-tree", base], b"")?;
            }
            None => self.unlock()?,
        }
        // These need no index, so that they are looked up while the slow step runs.
        let asked = self.start(
            &["cat-file", "--batch-check=%(objectname)"],
            Before::question(base).as_bytes(),
            true,
            Stdio::piped(),
        )?;
        self.add_all_but(exclude)?;
        let mut tree = self.line(&["write-tree"])?;
        let before = Before::read(&asked.end()?, base)?;
        let checked =
            if tree == before.tree { None } else { self.start_check_of(exclude, &before.tree, &tree)? };
        // Meanwhile, because what is excluded is hardly ever in the index with a change.
        let mut made = self.commit(job, &before, &tree)?;
        if let Some(checked) = checked
            && !checked.end()?.is_empty()
        {
            self.put_back_anywhere(base, exclude)?;
            tree = self.line(&["write-tree"])?;
            made = self.commit(job, &before, &tree)?;
        }
        let Some((result, commits)) = made else { return Ok(Collected::Nothing) };
        self.bundle(folders, base, &result)?;
        Ok(Collected::Commits(commits))
    }

    /// Removes what an interrupted Git left in the workspace's own repository.
    fn unlock(&self) -> Result<(), String> {
        let git_dir = self.workspace.join(".git");
        if !fs::symlink_metadata(&git_dir).is_ok_and(|found| found.is_dir()) {
            return Err("the workspace's .git is not a folder any more".into());
        }
        for lock in STALE_LOCKS {
            let _ = fs::remove_file(git_dir.join(lock));
        }
        Ok(())
    }

    /// Tracked files that differ from `base`; masked ones are marked as unchanged in the index and not among them.
    fn changed(&self, base: &str) -> Result<BTreeSet<String>, String> {
        let listed =
            self.git(&["diff", "--no-ext-diff", "--no-renames", "--name-only", "-z", base, "--"], b"")?;
        Ok(listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
    }

    /// The commit of `tree` and how many there are from the base to it; `None`: the base has the same tree.
    fn commit(&self, job: &WireJob, before: &Before, tree: &str) -> Result<Option<(String, u64)>, String> {
        if tree == before.tree {
            return Ok(None);
        }
        let above = before.head.as_ref().and_then(|(head, head_tree)| {
            let commits = if *head == job.base { 0 } else { self.commits_above(&job.base, head)? };
            Some((head, head_tree, commits))
        });
        let (parent, commits) = match above {
            Some((head, head_tree, commits)) if head_tree == tree => {
                return Ok(Some((head.clone(), commits)));
            }
            Some((head, _, commits)) => (head.as_str(), commits),
            // HEAD stands on something else: the result becomes one commit on the base.
            None => (job.base.as_str(), 0),
        };
        let message = if job.message.trim().is_empty() { DEFAULT_MESSAGE } else { &job.message };
        let made = self.line_with(&["commit-tree", tree, "-p", parent, "-F", "-"], message.as_bytes())?;
        Ok(Some((made, commits + 1)))
    }

    /// How many commits `head` has that `base` has not; `None`: it does not stand on `base`.
    fn commits_above(&self, base: &str, head: &str) -> Option<u64> {
        let range = format!("{base}...{head}");
        let counts = self.line(&["rev-list", "--count", "--left-right", &range]).ok()?;
        let (missing, above) = counts.split_once('\t')?;
        if missing == "0" { above.parse().ok() } else { None }
    }

    /// Writes `base..result` as a bundle: `git bundle create` would start two more programs for it, and asks for a ref.
    fn bundle(&self, folders: &Folders, base: &str, result: &str) -> Result<(), String> {
        let bundle = folders.output.join(BUNDLE_FILE);
        let aside = folders.output.join(format!("{BUNDLE_FILE}.tmp"));
        let at = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| format!("{path}: {error}")
        };
        // The agent may have left anything under these names.
        for path in [&bundle, &aside] {
            remove(path).map_err(at(path))?;
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).open(&aside).map_err(at(&aside))?;
        file.write_all(format!("# v2 git bundle\n-{base} \n{result} {RESULT_REF}\n\n").as_bytes())
            .map_err(at(&aside))?;
        let revisions = format!("{result}\n^{base}\n");
        let pack =
            ["pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset", "--threads=1", "-q"];
        self.start(&pack, revisions.as_bytes(), true, file.into())?.end()?;
        fs::rename(&aside, &bundle).map_err(at(&bundle))
    }

    /// Excluded paths look as they do in `base` again, in the index and in the tree.
    fn put_back(&self, base: &str, exclude: &[String]) -> Result<(), String> {
        for paths in exclude.chunks(PATHS_AT_ONCE) {
            let with_paths = |start: &[&str], paths: &[String]| -> Vec<String> {
                start.iter().map(|part| (*part).to_owned()).chain(paths.iter().cloned()).collect()
            };
            self.git_owned(&with_paths(
                &["rm", "-r", "-q", "-f", "--cached", "--ignore-unmatch", "--"],
                paths,
            ))?;
            for path in paths {
                if parents_are_folders(&self.workspace, path) {
                    let target = self.workspace.join(path);
                    remove(&target).map_err(|error| format!("{}: {error}", target.display()))?;
                }
            }
            let listed = self.git_owned(&with_paths(&["ls-tree", "-z", "--name-only", base, "--"], paths))?;
            let in_base: Vec<String> =
                listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
            if !in_base.is_empty() {
                self.git_owned(&with_paths(&["checkout", "-q", "-f", base, "--"], &in_base))?;
            }
        }
        Ok(())
    }

    /// Everything in the tree goes into the index, but for what is excluded: that stays as the agent left it, so that
    /// the host can tell what of it was changed, and nothing in it (a repository of its own, closed files) is in the way.
    fn add_all_but(&self, exclude: &[String]) -> Result<(), String> {
        let mut arguments: Vec<String> = ["add", "--all", "--", "."].into_iter().map(str::to_owned).collect();
        arguments.extend(patterns(exclude).map(|(magic, pattern)| format!(":(exclude,{magic}){pattern}")));
        self.git_patterns(&arguments).map(drop)
    }

    /// Excluded names (those without `/`) in every folder, as the index has them. The rest of the workspace is somebody
    /// else's, so that nothing trusted may lead there: a link becomes the file that it leads to, and a memory file imports
    /// nothing.
    fn put_back_in_every_folder(&self, exclude: &[String]) -> Result<(), String> {
        let names: Vec<&str> =
            exclude.iter().map(String::as_str).filter(|name| !name.contains('/')).collect();
        remove_everywhere(&self.workspace, &names)?;
        let mut masked = Vec::new();
        for names in names.chunks(PATHS_AT_ONCE) {
            let patterns = names
                .iter()
                .flat_map(|name| [format!(":(glob)**/{name}"), format!(":(glob)**/{name}/**")])
                .collect::<Vec<_>>();
            masked.extend(self.listed(&patterns)?);
        }
        let mut plain = Vec::new();
        for (mode, _, path) in &masked {
            if mode != "160000" && mode != "120000" {
                plain.extend_from_slice(path.as_bytes());
                plain.push(0);
            }
        }
        self.git(&["checkout-index", "-q", "-f", "-z", "--stdin"], &plain)?;
        for (mode, id, path) in &masked {
            let file = self.workspace.join(path);
            let failed = |error: io::Error| format!("{}: {error}", file.display());
            let is_memory =
                path.rsplit('.').next().is_some_and(|end| end.eq_ignore_ascii_case("md")) && mode != "160000";
            let bytes = if mode == "120000" {
                let Some(text) = self.behind_link(path, id)? else { continue };
                if let Some(folder) = file.parent() {
                    fs::create_dir_all(folder).map_err(failed)?;
                }
                text.into_bytes()
            } else if is_memory {
                fs::read(&file).map_err(failed)?
            } else {
                continue;
            };
            let bytes = if is_memory { without_imports(&bytes) } else { bytes };
            fs::write(&file, bytes).map_err(failed)?;
        }
        Ok(())
    }

    /// Mode, id and path of what the index has there; the paths are patterns.
    fn listed(&self, paths: &[String]) -> Result<Vec<(String, String, String)>, String> {
        let start = ["ls-files", "-s", "-z", "--"].into_iter().map(str::to_owned);
        let listed = self.git_patterns(&start.chain(paths.iter().cloned()).collect::<Vec<_>>())?;
        let entry = |line: &str| {
            let (about, path) = line.split_once('\t')?;
            let mut about = about.split(' ');
            Some((about.next()?.to_owned(), about.next()?.to_owned(), path.to_owned()))
        };
        Ok(listed.split('\0').filter_map(entry).collect())
    }

    /// The text of the file that a link of the index leads to; `None`: a folder, nothing, or no text.
    fn behind_link(&self, path: &str, id: &str) -> Result<Option<String>, String> {
        let (mut path, mut id) = (path.to_owned(), id.to_owned());
        for _ in 0..LINKS_CAP {
            let target = self.git(&["cat-file", "blob", &id], b"")?;
            let Some(target) = link_target(&path, &target) else { return Ok(None) };
            let found = self.listed(&[format!(":(literal){target}")])?;
            let Some((mode, found, _)) = found.into_iter().find(|(_, _, path)| *path == target) else {
                return Ok(None);
            };
            (path, id) = (target, found);
            if mode != "120000" {
                let text = self.git(&["cat-file", "blob", &id], b"")?;
                return Ok((mode != "160000" && !text.contains('\u{fffd}')).then_some(text));
            }
        }
        Ok(None)
    }

    /// Names what is excluded and differs between the two trees. The tree of the whole index is compared, so that what else
    /// `add` did there (a file in a folder's place) counts, too.
    fn start_check_of(&self, exclude: &[String], before: &str, tree: &str) -> Result<Option<Step>, String> {
        if exclude.is_empty() {
            return Ok(None);
        }
        let mut arguments: Vec<String> = [
            "diff-tree",
            "-r",
            "-z",
            "--name-only",
            "--no-renames",
            "--ignore-submodules=none",
            before,
            tree,
            "--",
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(patterns(exclude).map(|(magic, pattern)| format!(":({magic}){pattern}")));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.start(&arguments, b"", false, Stdio::piped()).map(Some)
    }

    /// Excluded paths are in the index as `base` has them; excluded names (those without `/`) in every folder.
    fn put_back_anywhere(&self, base: &str, exclude: &[String]) -> Result<(), String> {
        let all: Vec<String> =
            patterns(exclude).map(|(magic, pattern)| format!(":({magic}){pattern}")).collect();
        for some in all.chunks(PATHS_AT_ONCE) {
            let start = ["reset", "-q", base, "--"].into_iter().map(str::to_owned);
            self.git_patterns(&start.chain(some.iter().cloned()).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn line(&self, arguments: &[&str]) -> Result<String, String> {
        self.line_with(arguments, b"")
    }

    fn line_with(&self, arguments: &[&str], stdin: &[u8]) -> Result<String, String> {
        self.git(arguments, stdin).map(|text| text.trim().to_owned())
    }

    fn git_owned(&self, arguments: &[String]) -> Result<String, String> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.git(&arguments, b"")
    }

    /// A step whose paths are patterns with magic words.
    fn git_patterns(&self, arguments: &[String]) -> Result<String, String> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.run(&arguments, b"", false)
    }

    /// One Git step: its standard output, or an error that names the step. Paths are taken as they stand.
    fn git(&self, arguments: &[&str], stdin: &[u8]) -> Result<String, String> {
        self.run(arguments, stdin, true)
    }

    fn run(&self, arguments: &[&str], stdin: &[u8], literal: bool) -> Result<String, String> {
        self.start(arguments, stdin, literal, Stdio::piped())?.end()
    }

    /// The same, still on its way.
    fn start(&self, arguments: &[&str], stdin: &[u8], literal: bool, stdout: Stdio) -> Result<Step, String> {
        let name = format!("git {}", arguments.iter().take(3).copied().collect::<Vec<_>>().join(" "));
        let mut command = Command::new("git");
        let excludes = self.excludes.as_deref().unwrap_or(Path::new("/dev/null")).display();
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.untrackedCache=false",
            &format!("core.excludesFile={excludes}"),
            "core.attributesFile=/dev/null",
            "safe.directory=*",
            "commit.gpgSign=false",
            "gc.auto=0",
            "advice.addEmbeddedRepo=false",
            "core.quotePath=false",
        ] {
            command.args(["-c", setting]);
        }
        if literal {
            command.arg("--literal-pathspecs");
        }
        if let Some(git_dir) = &self.git_dir {
            command.arg("--git-dir").arg(git_dir).arg("--work-tree").arg(&self.workspace);
        }
        command.args(arguments).current_dir(&self.workspace).env_clear().envs(IDENTITY);
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()));
        for (name, value) in [
            ("HOME", "/nonexistent"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("LC_ALL", "C"),
        ] {
            command.env(name, value);
        }
        command.stdout(stdout);
        Step::start(name, command, stdin, STEP_LIMIT)
    }
}

/// What the base and HEAD hold before anything of the workspace is committed.
struct Before {
    /// The tree of the base.
    tree: String,
    /// HEAD and its tree, when there is such a commit.
    head: Option<(String, String)>,
}

impl Before {
    /// The question to `cat-file --batch-check=%(objectname)`, one object a line.
    fn question(base: &str) -> String {
        format!("{base}^{{tree}}\nHEAD^{{commit}}\nHEAD^{{tree}}\n")
    }

    /// Its answer: a line that is no id says that there is no such object.
    fn read(answer: &str, base: &str) -> Result<Self, String> {
        let mut ids = answer.lines().map(|line| is_id(line).then(|| line.to_owned()));
        let mut next = || ids.next().flatten();
        let tree = next().ok_or_else(|| format!("the base {base} is not in the workspace's repository"))?;
        let (head, head_tree) = (next(), next());
        Ok(Self { tree, head: head.zip(head_tree) })
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What is excluded, as (magic word, pattern): a name in every folder, a path only where it is; both with what is in them.
/// A name is three patterns, because Git compares the first two far faster than `**/name`, and does so for every file.
fn patterns(exclude: &[String]) -> impl Iterator<Item = (&'static str, String)> + '_ {
    exclude.iter().flat_map(|path| {
        let mut patterns = vec![("literal", path.clone())];
        if !path.contains('/') {
            let name = escaped(path);
            patterns.extend([("", format!("*/{name}")), ("", format!("*/{name}/*"))]);
        }
        patterns
    })
}

/// A command on its way. It is killed with its group at its limit, and when nobody waits for it any more.
struct Step {
    name: String,
    pid: i32,
    deadline: Instant,
    out: mpsc::Receiver<Vec<u8>>,
    err: mpsc::Receiver<Vec<u8>>,
    ended: mpsc::Receiver<io::Result<ExitStatus>>,
    over: bool,
}

impl Step {
    /// Starts a command whose standard output is set already.
    fn start(name: String, mut command: Command, stdin: &[u8], limit: Duration) -> Result<Self, String> {
        command.process_group(0).stderr(Stdio::piped());
        command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("{name}: the program is not in the image (it needs git)"),
            _ => format!("{name}: {error}"),
        })?;
        let pid = i32::try_from(child.id()).map_err(|error| format!("{name}: {error}"))?;
        let out = read_in_background(child.stdout.take());
        let err = read_in_background(child.stderr.take());
        if let Some(mut pipe) = child.stdin.take() {
            let bytes = stdin.to_vec();
            let _ = std::thread::Builder::new().spawn(move || pipe.write_all(&bytes));
        }
        let (sender, ended) = mpsc::channel();
        let step = Self { name, pid, deadline: Instant::now() + limit, out, err, ended, over: false };
        // A thread that waits sees the end at once: to look now and then costs more than a short step takes.
        match std::thread::Builder::new().spawn(move || sender.send(child.wait())) {
            Ok(_) => Ok(step),
            Err(error) => Err(step.failed(&error.to_string())),
        }
    }

    /// Waits for its end: what it wrote, or an error that names the step.
    fn end(mut self) -> Result<String, String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let ended = self.ended.recv_timeout(left);
        self.over = ended.is_ok();
        let status = match ended {
            Ok(ended) => ended.map_err(|error| self.failed(&error.to_string()))?,
            Err(_) => return Err(self.failed("it took too long and was killed")),
        };
        let text = |from: &mpsc::Receiver<Vec<u8>>| {
            String::from_utf8_lossy(&from.recv_timeout(OUTPUT_PATIENCE).unwrap_or_default()).into_owned()
        };
        if status.success() {
            Ok(text(&self.out))
        } else {
            let said: String = text(&self.err).trim().chars().take(600).collect();
            Err(self.failed(&format!("{status}: {said}")))
        }
    }

    fn failed(&self, detail: &str) -> String {
        format!("{}: {detail}", self.name)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.over && self.ended.try_recv().is_err() {
            let _ = super::signal::send(-self.pid, super::signal::SIGKILL);
            // What comes next must not meet its locks.
            let _ = self.ended.recv_timeout(OUTPUT_PATIENCE);
        }
    }
}

fn read_in_background(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        let _ = std::thread::Builder::new().spawn(move || {
            let mut bytes = Vec::new();
            let _ = Read::by_ref(&mut pipe).take(STEP_OUTPUT_BYTES).read_to_end(&mut bytes);
            // What is past the cap is read too, or the step would block on its output.
            let _ = io::copy(&mut pipe, &mut io::sink());
            let _ = sender.send(bytes);
        });
    }
    receiver
}

/// Removes a file, a link (not what it points to) or a folder; no error when there is none.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether every folder above `path` is a real one: a link would lead elsewhere.
fn parents_are_folders(root: &Path, path: &str) -> bool {
    let mut at = root.to_path_buf();
    let mut parts: Vec<_> = Path::new(path).components().collect();
    parts.pop();
    parts.into_iter().all(|part| {
        at.push(part);
        fs::symlink_metadata(&at).is_ok_and(|found| found.is_dir())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        folder: tempfile::TempDir,
        base: String,
    }

    fn git(folder: &Path, arguments: &[&str]) -> String {
        let out = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@localhost"])
            .args(arguments)
            .current_dir(folder)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(out.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let workspace = folder.path().join("workspace");
            fs::create_dir_all(workspace.join(".claude")).unwrap();
            fs::create_dir(folder.path().join("output")).unwrap();
            git(&workspace, &["init", "-q", "-b", "main"]);
            fs::write(workspace.join("a.txt"), "one\n").unwrap();
            fs::write(workspace.join(".claude/settings.json"), "{}").unwrap();
            git(&workspace, &["add", "-A"]);
            git(&workspace, &["commit", "-q", "-m", "base"]);
            let base = git(&workspace, &["rev-parse", "HEAD"]);
            // The mirror's objects live apart from the workspace, as in a run.
            let objects = folder.path().join("objects");
            fs::create_dir(&objects).unwrap();
            let copied =
                Command::new("cp").arg("-r").arg(workspace.join(".git/objects/.")).arg(&objects).status();
            assert!(copied.unwrap().success());
            Self { folder, base }
        }

        fn workspace(&self) -> PathBuf {
            self.folder.path().join("workspace")
        }

        fn folders(&self) -> Folders {
            let at = |name: &str| self.folder.path().join(name);
            Folders {
                sockets: at("sockets"),
                workspace: at("workspace"),
                output: at("output"),
                home: at("home"),
                objects: at("objects"),
            }
        }

        fn collect(&self, exclude: &[&str]) -> Result<Collected, String> {
            self.collect_without(exclude, &[])
        }

        fn collect_without(&self, exclude: &[&str], artifacts: &[&str]) -> Result<Collected, String> {
            let job = WireJob {
                artifacts: artifacts.iter().map(|pattern| (*pattern).to_owned()).collect(),
                base: self.base.clone(),
                message: "Do it\n\nBecause.".into(),
                exclude: exclude.iter().map(|path| (*path).to_owned()).collect(),
                ..WireJob::default()
            };
            collect(&self.folders(), &job, &Output::new(Box::new(io::sink())))
        }

        /// The files that differ between base and the bundle's result, with the result fetched into a new repository.
        fn changed(&self) -> String {
            let copy = tempfile::tempdir().unwrap();
            git(copy.path(), &["init", "-q", "--bare"]);
            fs::write(
                copy.path().join("objects/info/alternates"),
                format!("{}\n", self.folder.path().join("objects").display()),
            )
            .unwrap();
            git(copy.path(), &["update-ref", "refs/heads/base", &self.base]);
            let bundle = self.folder.path().join("output").join(BUNDLE_FILE);
            git(copy.path(), &["fetch", "-q", &bundle.to_string_lossy(), RESULT_REF]);
            git(copy.path(), &["diff", "--name-status", &self.base, "FETCH_HEAD"])
        }
    }

    #[test]
    fn an_untouched_workspace_gives_nothing() {
        let world = World::new();
        assert_eq!(world.collect(&[".claude"]), Ok(Collected::Nothing));
        assert!(!world.folder.path().join("output").join(BUNDLE_FILE).exists());
    }

    #[test]
    fn edits_and_the_agents_own_commits_come_along() {
        let world = World::new();
        fs::write(world.workspace().join("a.txt"), "two\n").unwrap();
        git(&world.workspace(), &["commit", "-q", "-a", "-m", "mine"]);
        fs::write(world.workspace().join("b.txt"), "new\n").unwrap();
        assert_eq!(world.collect(&[]), Ok(Collected::Commits(2)));
        assert_eq!(world.changed(), "M\ta.txt\nA\tb.txt");
    }

    #[test]
    fn the_bundle_is_one_that_git_takes_and_holds_only_what_is_new() {
        let world = World::new();
        let workspace = world.workspace();
        let bundle = world.folder.path().join("output").join(BUNDLE_FILE);
        // A merge does not pass the host, which says so: here it comes along whole.
        git(&workspace, &["checkout", "-q", "-b", "side"]);
        fs::write(workspace.join("side.txt"), "side\n").unwrap();
        git(&workspace, &["add", "-A"]);
        git(&workspace, &["commit", "-q", "-m", "side"]);
        git(&workspace, &["checkout", "-q", "main"]);
        git(&workspace, &["commit", "-q", "--allow-empty", "-m", "other"]);
        git(&workspace, &["merge", "-q", "--no-ff", "-m", "merge", "side"]);
        for (edits, commits) in [(false, 3), (true, 4)] {
            if edits {
                fs::write(workspace.join("a.txt"), "one\ntwo\n").unwrap();
            }
            assert_eq!(world.collect(&[".claude"]), Ok(Collected::Commits(commits)));
            let path = bundle.to_string_lossy().into_owned();
            git(&workspace, &["bundle", "verify", "-q", &path]);
            let heads = git(&workspace, &["bundle", "list-heads", &path]);
            let (id, name) = heads.split_once(' ').unwrap();
            assert_eq!(name, RESULT_REF);
            let above = git(&workspace, &["rev-list", "--count", &format!("{}..{id}", world.base)]);
            assert_eq!(above, commits.to_string());
            assert_eq!(world.changed(), if edits { "M\ta.txt\nA\tside.txt" } else { "A\tside.txt" });
        }
        let start = fs::read(&bundle).unwrap();
        let header = format!("# v2 git bundle\n-{} \n", world.base);
        assert!(start.starts_with(header.as_bytes()));
        // Four commits, of which two have a tree and a file of their own.
        let pack = start.windows(4).position(|bytes| bytes == b"PACK").unwrap();
        assert_eq!(start[pack + 8..pack + 12], 8_u32.to_be_bytes());
    }

    #[test]
    fn artifacts_stay_out_of_the_commits_where_they_are_not_tracked() {
        for broken in [false, true] {
            let world = World::new();
            let workspace = world.workspace();
            let artifacts = ["report.html", "out/**", "a.txt", "odd [x] #!.txt"];
            keep_out(&world.folders(), &artifacts.map(str::to_owned)).unwrap();
            for path in ["report.html", "deep/report.html", "out/b/c.txt", "odd [x] #!.txt", "a.txt", "d.txt"]
            {
                fs::create_dir_all(workspace.join(path).parent().unwrap()).unwrap();
                fs::write(workspace.join(path), "new\n").unwrap();
            }
            // The agent's own commit leaves them out, too.
            git(&workspace, &["add", "-A"]);
            git(&workspace, &["commit", "-q", "-m", "mine"]);
            fs::write(workspace.join(".git/info/exclude"), "").unwrap();
            if broken {
                fs::write(workspace.join(".git/config"), "[[[").unwrap();
            }
            assert_eq!(world.collect_without(&[], &artifacts), Ok(Collected::Commits(1)), "{broken}");
            assert_eq!(world.changed(), "M\ta.txt\nA\td.txt");
            assert!(!world.folder.path().join("output/excludes").exists());
        }
    }

    #[test]
    fn committed_work_without_further_edits_keeps_its_commits() {
        let world = World::new();
        fs::write(world.workspace().join("a.txt"), "two\n").unwrap();
        git(&world.workspace(), &["commit", "-q", "-a", "-m", "mine"]);
        assert_eq!(world.collect(&[]), Ok(Collected::Commits(1)));
    }

    #[test]
    fn excluded_paths_are_put_back_whatever_happened_to_them() {
        let world = World::new();
        let workspace = world.workspace();
        fs::write(workspace.join(".claude/settings.json"), "{\"hooks\":1}").unwrap();
        fs::write(workspace.join(".claude/extra.json"), "{}").unwrap();
        fs::write(workspace.join("CLAUDE.md"), "obey").unwrap();
        git(&workspace, &["add", "-A"]);
        git(&workspace, &["commit", "-q", "-m", "sneak"]);
        fs::write(workspace.join("a.txt"), "two\n").unwrap();
        assert_eq!(world.collect(&[".claude/", "CLAUDE.md", ".mcp.json"]), Ok(Collected::Commits(2)));
        assert_eq!(world.changed(), "M\ta.txt");
    }

    #[test]
    fn excluded_files_stay_as_the_agent_left_them_for_the_host_to_see() {
        let world = World::new();
        let workspace = world.workspace();
        fs::create_dir(workspace.join("sub")).unwrap();
        for path in ["CLAUDE.md", "sub/CLAUDE.md", ".claude/more.json", "sub/kept.txt"] {
            fs::write(workspace.join(path), "obey").unwrap();
        }
        fs::remove_file(workspace.join(".claude/settings.json")).unwrap();
        // What `git add` would stumble over.
        let nested = workspace.join(".claude/worktrees/one");
        fs::create_dir_all(&nested).unwrap();
        git(&nested, &["init", "-q"]);
        let nested = workspace.join("sub/.claude/worktrees/two");
        fs::create_dir_all(&nested).unwrap();
        git(&nested, &["init", "-q"]);
        // Names that only look like excluded ones, and one that looks like a pattern.
        fs::create_dir(workspace.join("sub/x.claude")).unwrap();
        for path in ["sub/x.claude/CLAUDE.md.txt", "aXb.md", "sub/a[b] *.md"] {
            fs::write(workspace.join(path), "x").unwrap();
        }
        let exclude = [".claude", "CLAUDE.md", "deep/er.txt", "a?b.md", "a[b] *.md"];
        assert_eq!(world.collect(&exclude), Ok(Collected::Commits(1)));
        assert_eq!(world.changed(), "A\taXb.md\nA\tsub/kept.txt\nA\tsub/x.claude/CLAUDE.md.txt");
        for path in ["CLAUDE.md", "sub/CLAUDE.md", ".claude/more.json"] {
            assert_eq!(fs::read_to_string(workspace.join(path)).unwrap(), "obey", "{path}");
        }
        assert!(!workspace.join(".claude/settings.json").exists());
    }

    #[test]
    fn an_emptied_workspace_is_a_change_like_any_other() {
        let world = World::new();
        fs::remove_file(world.workspace().join("a.txt")).unwrap();
        fs::remove_dir_all(world.workspace().join(".claude")).unwrap();
        assert_eq!(world.collect(&[".claude"]), Ok(Collected::Commits(1)));
        assert_eq!(world.changed(), "D\ta.txt");
    }

    #[test]
    fn paths_that_look_like_patterns_are_paths() {
        let world = World::new();
        fs::write(world.workspace().join(":(glob)**"), "x").unwrap();
        fs::create_dir(world.workspace().join("deep")).unwrap();
        fs::write(world.workspace().join("deep/er.txt"), "dropped").unwrap();
        assert_eq!(world.collect(&["deep/er.txt"]), Ok(Collected::Commits(1)));
        assert_eq!(world.changed(), "A\t:(glob)**");
    }

    #[test]
    fn after_a_setup_the_masked_files_are_the_bases_in_every_folder() {
        let mut world = World::new();
        let workspace = world.workspace();
        for folder in ["docs", "src/deep/.claude", ".husky"] {
            fs::create_dir_all(workspace.join(folder)).unwrap();
        }
        for (path, text) in [
            ("docs/rules.md", "rules, see @style.md\n"),
            ("AGENTS.md", "kind to a@b.c: @docs/style.md\n"),
            ("src/deep/.claude/x.md", "deep\n"),
            (".husky/pre-commit", "true\n"),
        ] {
            fs::write(workspace.join(path), text).unwrap();
        }
        let link =
            |target: &str, path: &str| std::os::unix::fs::symlink(target, workspace.join(path)).unwrap();
        link("docs/rules.md", "CLAUDE.md");
        link("../CLAUDE.md", "src/CLAUDE.md");
        link("../docs", "src/AGENTS.md");
        link("../../outside", "docs/AGENTS.md");
        git(&workspace, &["add", "-A"]);
        git(&workspace, &["commit", "-q", "-m", "trusted"]);
        let trusted = git(&workspace, &["rev-parse", "HEAD"]);
        let objects = world.folder.path().join("objects");
        let copied =
            Command::new("cp").arg("-r").arg(workspace.join(".git/objects/.")).arg(&objects).status();
        assert!(copied.unwrap().success());

        // What a setup of a hostile head leaves.
        fs::write(workspace.join("docs/rules.md"), "evil\n").unwrap();
        fs::write(workspace.join("src/deep/.claude/evil.md"), "evil\n").unwrap();
        fs::create_dir_all(workspace.join("node_modules/x")).unwrap();
        fs::write(workspace.join("node_modules/x/AGENTS.md"), "evil\n").unwrap();
        fs::remove_file(workspace.join("AGENTS.md")).unwrap();
        link("docs/rules.md", "AGENTS.md");
        let exclude = [".claude", "AGENTS.md", "CLAUDE.md", ".husky"].map(str::to_owned).to_vec();
        let job = WireJob {
            base: world.base.clone(),
            mask_from: trusted.clone(),
            exclude: exclude.clone(),
            ..WireJob::default()
        };
        mask(&world.folders(), &job).unwrap();
        let read = |path: &str| fs::read_to_string(workspace.join(path)).unwrap();
        assert_eq!(read("AGENTS.md"), "kind to a@b.c: \\@docs/style.md\n");
        assert_eq!(read("CLAUDE.md"), "rules, see \\@style.md\n");
        assert_eq!(read("src/CLAUDE.md"), read("CLAUDE.md"));
        assert_eq!(read("src/deep/.claude/x.md"), "deep\n");
        assert_eq!(read(".husky/pre-commit"), "true\n");
        assert_eq!(read("docs/rules.md"), "evil\n", "the head's own files are its own");
        for gone in
            ["src/AGENTS.md", "docs/AGENTS.md", "node_modules/x/AGENTS.md", "src/deep/.claude/evil.md"]
        {
            assert!(fs::symlink_metadata(workspace.join(gone)).is_err(), "{gone}");
        }

        // On the base itself everything is trusted, and links stay links.
        world.base = trusted.clone();
        let job = WireJob { base: trusted.clone(), mask_from: trusted, exclude, ..WireJob::default() };
        mask(&world.folders(), &job).unwrap();
        assert_eq!(read("AGENTS.md"), "kind to a@b.c: @docs/style.md\n");
        assert!(fs::symlink_metadata(workspace.join("CLAUDE.md")).unwrap().is_symlink());
    }

    #[test]
    fn only_excluded_changes_are_nothing() {
        let world = World::new();
        fs::write(world.workspace().join("CLAUDE.md"), "obey").unwrap();
        fs::remove_dir_all(world.workspace().join(".claude")).unwrap();
        assert_eq!(world.collect(&[".claude", "CLAUDE.md"]), Ok(Collected::Nothing));
    }

    #[test]
    fn leftovers_of_a_killed_git_do_not_stop_the_collection() {
        let world = World::new();
        let workspace = world.workspace();
        fs::write(workspace.join("a.txt"), "two\n").unwrap();
        for lock in STALE_LOCKS {
            fs::write(workspace.join(".git").join(lock), "").unwrap();
        }
        fs::write(workspace.join(".git/MERGE_HEAD"), &world.base).unwrap();
        fs::create_dir_all(workspace.join(".git/rebase-merge")).unwrap();
        assert_eq!(world.collect(&[]), Ok(Collected::Commits(1)));
        assert_eq!(world.changed(), "M\ta.txt");
    }

    #[test]
    fn a_destroyed_repository_still_gives_the_work() {
        type Sabotage = fn(&Path);
        let ways: [(&str, Sabotage); 5] = [
            ("removed", |w| fs::remove_dir_all(w.join(".git")).unwrap()),
            ("a file", |w| {
                fs::remove_dir_all(w.join(".git")).unwrap();
                fs::write(w.join(".git"), "gitdir: /elsewhere\n").unwrap();
            }),
            ("a broken config", |w| fs::write(w.join(".git/config"), "[[[").unwrap()),
            ("a broken index", |w| fs::write(w.join(".git/index"), "junk").unwrap()),
            ("an orphan branch", |w| {
                git(w, &["checkout", "-q", "--orphan", "other"]);
                git(w, &["commit", "-q", "-m", "orphan"]);
            }),
        ];
        for (name, sabotage) in ways {
            let world = World::new();
            fs::write(world.workspace().join("b.txt"), "new\n").unwrap();
            sabotage(&world.workspace());
            assert_eq!(world.collect(&[".claude"]), Ok(Collected::Commits(1)), "{name}");
            assert_eq!(world.changed(), "A\tb.txt", "{name}");
            assert!(!world.folder.path().join("output/collect.git").exists(), "{name}");
        }
    }

    #[test]
    fn planted_hooks_and_monitors_do_not_run() {
        let world = World::new();
        let workspace = world.workspace();
        let canary = world.folder.path().join("canary");
        let script = format!("#!/bin/sh\ntouch {}\n", canary.display());
        for hook in
            ["pre-commit", "post-commit", "post-checkout", "reference-transaction", "post-index-change"]
        {
            let path = workspace.join(".git/hooks").join(hook);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &script).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let monitor = workspace.join(".git/hooks/post-commit").display().to_string();
        git(&workspace, &["config", "core.fsmonitor", &monitor]);
        fs::write(workspace.join("a.txt"), "two\n").unwrap();
        assert_eq!(world.collect(&[".claude"]), Ok(Collected::Commits(1)));
        assert!(!canary.exists());
    }

    #[test]
    fn what_stands_under_the_bundles_name_is_replaced_not_followed() {
        let world = World::new();
        fs::write(world.workspace().join("a.txt"), "two\n").unwrap();
        let victim = world.folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let output = world.folder.path().join("output");
        std::os::unix::fs::symlink(&victim, output.join(BUNDLE_FILE)).unwrap();
        std::os::unix::fs::symlink(&victim, output.join("changes.bundle.tmp")).unwrap();
        assert_eq!(world.collect(&[]), Ok(Collected::Commits(1)));
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
        assert!(fs::symlink_metadata(output.join(BUNDLE_FILE)).unwrap().is_file());
    }

    #[test]
    fn wrong_jobs_are_refused() {
        let mut world = World::new();
        assert!(world.collect(&["../x"]).unwrap_err().contains("excluded path"));
        assert!(world.collect(&["/etc"]).unwrap_err().contains("excluded path"));
        world.base = "HEAD".into();
        assert!(world.collect(&[]).unwrap_err().contains("full commit id"));
    }

    #[test]
    fn a_step_that_hangs_is_killed() {
        let sleep = |limit| {
            let mut command = Command::new("sleep");
            command.arg("1000").stdout(Stdio::piped());
            Step::start("sleep".into(), command, b"", limit).unwrap()
        };
        let error = sleep(Duration::from_millis(50)).end().unwrap_err();
        assert!(error.contains("too long"), "{error}");
        // Nor does one go on when what it was for has failed.
        let left = sleep(STEP_LIMIT);
        let pid = left.pid;
        drop(left);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
