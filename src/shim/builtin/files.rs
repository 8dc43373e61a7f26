//! Purpose: files of the workspace and no others: every step of a path is opened by itself and no link is followed.
//!
//! A folder that is held open stays the same folder, whatever a command that still runs does to its name:
//! the next step goes through `/proc/self/fd`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of a file that is read or edited.
pub const MAX_FILE_BYTES: u64 = 2 * 1024 * 1024;
/// Folder depth of a search.
const MAX_DEPTH: usize = 40;
/// Entries that one search looks at, and its time.
const MAX_ENTRIES: usize = 200_000;
const SEARCH_TIME: Duration = Duration::from_secs(30);
/// What a search passes by unless its path leads there: what tools produce, not what people write.
const PASSED_BY: [&str; 5] = [".git", "node_modules", "target", ".venv", "__pycache__"];

// The same on all Linux machines but these.
#[cfg(any(target_arch = "aarch64", target_arch = "arm", target_arch = "powerpc64"))]
mod flags {
    pub const DIRECTORY: i32 = 0o40000;
    pub const NO_FOLLOW: i32 = 0o100_000;
}
#[cfg(not(any(target_arch = "aarch64", target_arch = "arm", target_arch = "powerpc64")))]
mod flags {
    pub const DIRECTORY: i32 = 0o200_000;
    pub const NO_FOLLOW: i32 = 0o400_000;
}
/// A FIFO must not hold us up.
const NON_BLOCK: i32 = 0o4000;

/// The folder that the agent works in.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    root: File,
}

/// A place below the workspace: the folder it lies in, held open, and its name there.
struct Place {
    folder: File,
    name: String,
}

impl Place {
    fn path(&self) -> PathBuf {
        below(&self.folder, &self.name)
    }
}

fn below(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}

fn open_folder(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags::DIRECTORY | flags::NO_FOLLOW).open(path)
}

/// One line of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    pub path: String,
    /// From 1; 0 where only the file's name was asked for.
    pub line: usize,
    pub text: String,
}

#[derive(Debug, Default)]
pub struct Found {
    pub hits: Vec<Hit>,
    /// Why there may be more.
    pub cut: Option<&'static str>,
}

/// What a search looks for.
#[derive(Debug)]
pub struct Search<'a> {
    /// Empty: only names.
    pub text: &'a str,
    pub glob: Option<&'a str>,
    /// Where it begins; empty: everywhere.
    pub path: &'a str,
    pub limit: usize,
}

impl Workspace {
    pub fn open(path: &Path) -> Result<Self, String> {
        let root = open_folder(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), root })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The parts of a path below the workspace; an absolute one must begin with the workspace.
    fn parts(&self, path: &str) -> Result<Vec<String>, String> {
        let inner = match path.strip_prefix('/') {
            None => Path::new(path),
            Some(_) => Path::new(path).strip_prefix(&self.path).map_err(|_| {
                format!("`{path}` is outside the workspace; only files inside it can be used")
            })?,
        };
        let mut parts = Vec::new();
        for part in inner.components() {
            match part {
                std::path::Component::Normal(name) => {
                    let name = name.to_str().ok_or("the path is not UTF-8")?;
                    if name.contains('\0') {
                        return Err("the path holds a NUL character".into());
                    }
                    parts.push(name.to_owned());
                }
                std::path::Component::CurDir => {}
                _ => return Err(format!("`{path}` may lead out of the workspace; write it without `..`")),
            }
        }
        Ok(parts)
    }

    /// The folder that these parts name, step by step; missing ones are made on request.
    fn folder(&self, parts: &[String], make: bool) -> Result<File, String> {
        let mut folder = self.root.try_clone().map_err(|error| error.to_string())?;
        for (index, name) in parts.iter().enumerate() {
            let next = below(&folder, name);
            let shown = || parts.get(..=index).unwrap_or_default().join("/");
            if make {
                match fs::create_dir(&next) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(format!("`{}`: {error}", shown()));
                    }
                    _ => {}
                }
            }
            folder = open_folder(&next).map_err(|error| problem(&next, &shown(), &error))?;
        }
        Ok(folder)
    }

    fn place(&self, path: &str, make: bool) -> Result<Place, String> {
        let mut parts = self.parts(path)?;
        let name = parts.pop().ok_or_else(|| format!("`{path}` names no file"))?;
        Ok(Place { folder: self.folder(&parts, make)?, name })
    }

    /// The content of a plain file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let place = self.place(path, false)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags::NO_FOLLOW | NON_BLOCK)
            .open(place.path())
            .map_err(|error| problem(&place.path(), path, &error))?;
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err(format!("`{path}` is no plain file"));
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(format!(
                "`{path}` has {} bytes, at most {MAX_FILE_BYTES} can be used",
                metadata.len()
            ));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|error| format!("`{path}`: {error}"))?;
        Ok(bytes)
    }

    /// The names in a folder, sorted; folders end in `/`. None when the path is no folder.
    pub fn list(&self, path: &str, limit: usize) -> Option<Vec<String>> {
        let folder = self.folder(&self.parts(path).ok()?, false).ok()?;
        Some(
            entries(&folder, limit)
                .into_iter()
                .map(|(name, is_folder)| name + if is_folder { "/" } else { "" })
                .collect(),
        )
    }

    /// Writes a plain file, with its folders.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<(), String> {
        if self.parts(path)?.iter().any(|part| part.eq_ignore_ascii_case(".git")) {
            return Err("files of `.git` are Git's own; use its commands".into());
        }
        let place = self.place(path, true)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags::NO_FOLLOW | NON_BLOCK)
            .open(place.path())
            .map_err(|error| problem(&place.path(), path, &error))?;
        let plain = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if !plain {
            return Err(format!("`{path}` is no plain file"));
        }
        file.set_len(0).and_then(|()| file.write_all(content)).map_err(|error| format!("`{path}`: {error}"))
    }

    /// Removes a file or link (never what a link leads to).
    pub fn delete(&self, path: &str) -> Result<(), String> {
        if self.parts(path)?.iter().any(|part| part.eq_ignore_ascii_case(".git")) {
            return Err("files of `.git` are Git's own; use its commands".into());
        }
        let place = self.place(path, false)?;
        fs::remove_file(place.path()).map_err(|error| problem(&place.path(), path, &error))
    }

    pub fn search(&self, search: &Search<'_>) -> Result<Found, String> {
        let parts = self.parts(search.path)?;
        let mut found = Found::default();
        let mut left = MAX_ENTRIES;
        let begun = Instant::now();
        // A file as the path: only that.
        let folder = match self.folder(&parts, false) {
            Ok(folder) => folder,
            Err(problem) => {
                if self.read(search.path).is_err() {
                    return Err(problem);
                }
                self.look_into(&parts.join("/"), search, &mut found);
                return Ok(found);
            }
        };
        let mut open = vec![(parts.join("/"), folder, 0usize)];
        while let Some((prefix, folder, depth)) = open.pop() {
            let mut inner = Vec::new();
            for (name, is_folder) in entries(&folder, left) {
                left = left.saturating_sub(1);
                if left == 0 || begun.elapsed() > SEARCH_TIME {
                    found.cut = Some("the search looked at too many files; give a path");
                    return Ok(found);
                }
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
                if is_folder {
                    if !PASSED_BY.contains(&name.as_str())
                        && depth < MAX_DEPTH
                        && let Ok(next) = open_folder(&below(&folder, &name))
                    {
                        inner.push((path, next, depth + 1));
                    }
                    continue;
                }
                if search.glob.is_some_and(|glob| !glob_matches(glob, &path)) {
                    continue;
                }
                if search.text.is_empty() {
                    found.hits.push(Hit { path, line: 0, text: String::new() });
                } else {
                    self.look_into(&path, search, &mut found);
                }
                if found.hits.len() >= search.limit {
                    found.hits.truncate(search.limit);
                    found.cut = Some("there may be more; narrow the search");
                    return Ok(found);
                }
            }
            // Depth first, in the order of the names.
            open.extend(inner.into_iter().rev());
        }
        Ok(found)
    }

    fn look_into(&self, path: &str, search: &Search<'_>, found: &mut Found) {
        // What cannot be read as text has no lines to show.
        let Ok(bytes) = self.read(path) else { return };
        if bytes.iter().take(8000).any(|byte| *byte == 0) {
            return;
        }
        let text = String::from_utf8_lossy(&bytes);
        for (index, line) in text.lines().enumerate() {
            if found.hits.len() >= search.limit {
                return;
            }
            if line.contains(search.text) {
                let shown: String = line.trim_end().chars().take(300).collect();
                found.hits.push(Hit { path: path.to_owned(), line: index + 1, text: shown });
            }
        }
    }
}

/// What is wrong with a path, with a word about links, which are not followed.
fn problem(place: &Path, shown: &str, error: &std::io::Error) -> String {
    if fs::symlink_metadata(place).is_ok_and(|metadata| metadata.file_type().is_symlink()) {
        return format!("`{shown}` is a symbolic link, and links are not followed");
    }
    format!("`{shown}`: {error}")
}

/// The names in an open folder, sorted, and whether each is a folder (a link is none).
fn entries(folder: &File, limit: usize) -> Vec<(String, bool)> {
    let Ok(listed) = fs::read_dir(below(folder, "")) else { return Vec::new() };
    let mut names: Vec<(String, bool)> = listed
        .flatten()
        .take(limit)
        .filter_map(|entry| {
            let is_folder = entry.file_type().ok()?.is_dir();
            Some((entry.file_name().into_string().ok()?, is_folder))
        })
        .collect();
    names.sort();
    names
}

/// `*` and `?` within a part, `**` across parts. Without a slash it is about the file's name.
pub fn glob_matches(glob: &str, path: &str) -> bool {
    let glob = glob.trim_start_matches("./").trim_start_matches('/');
    if !glob.contains('/') {
        return part_matches(glob, path.rsplit('/').next().unwrap_or(path));
    }
    let pattern: Vec<&str> = glob.split('/').collect();
    let parts: Vec<&str> = path.split('/').collect();
    // `reached[i]`: the first i parts of the pattern can have matched so far.
    let mut reached = vec![false; pattern.len() + 1];
    let close = |reached: &mut Vec<bool>| {
        for (index, part) in pattern.iter().enumerate() {
            if *part == "**"
                && reached.get(index) == Some(&true)
                && let Some(next) = reached.get_mut(index + 1)
            {
                *next = true;
            }
        }
    };
    reached[0] = true;
    close(&mut reached);
    for part in parts {
        let mut next = vec![false; pattern.len() + 1];
        for (index, wanted) in pattern.iter().enumerate() {
            if reached.get(index) != Some(&true) {
                continue;
            }
            if *wanted == "**" {
                next[index] = true;
            } else if part_matches(wanted, part) {
                next[index + 1] = true;
            }
        }
        close(&mut next);
        reached = next;
    }
    reached.last() == Some(&true)
}

fn part_matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == '?' || Some(c) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, at)) => {
                    p = after;
                    t = at + 1;
                    star = Some((after, t));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn workspace() -> (tempfile::TempDir, Workspace) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("workspace");
        fs::create_dir_all(root.join("src/deep")).unwrap();
        fs::create_dir_all(root.join(".git")).unwrap();
        fs::write(root.join("src/a.py"), "one\ntwo needle\n").unwrap();
        fs::write(root.join("src/deep/b.rs"), "needle\n").unwrap();
        fs::write(root.join(".git/config"), "needle").unwrap();
        fs::write(root.join("binary"), b"needle\0").unwrap();
        fs::write(folder.path().join("secret"), "needle outside").unwrap();
        let workspace = Workspace::open(&root).unwrap();
        (folder, workspace)
    }

    #[test]
    fn files_inside_are_read_written_and_deleted() {
        let (folder, workspace) = workspace();
        let root = folder.path().join("workspace");
        assert_eq!(workspace.read("src/a.py").unwrap(), b"one\ntwo needle\n");
        assert_eq!(workspace.read(root.join("src/./a.py").to_str().unwrap()).unwrap(), b"one\ntwo needle\n");
        workspace.write("new/folder/c.txt", b"long content").unwrap();
        workspace.write("new/folder/c.txt", b"short").unwrap();
        assert_eq!(fs::read(root.join("new/folder/c.txt")).unwrap(), b"short");
        workspace.delete("new/folder/c.txt").unwrap();
        assert!(!root.join("new/folder/c.txt").exists());
        assert_eq!(workspace.list("src", 10).unwrap(), ["a.py", "deep/"]);
        assert_eq!(workspace.list("src/a.py", 10), None);
        assert_eq!(workspace.list("", 2).unwrap().len(), 2);
    }

    #[test]
    fn nothing_outside_is_reached_by_any_way() {
        let (folder, workspace) = workspace();
        let root = folder.path().join("workspace");
        let secret = folder.path().join("secret");
        symlink(&secret, root.join("link")).unwrap();
        symlink(folder.path(), root.join("out")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        let absolute = secret.to_str().unwrap().to_owned();
        for path in [
            "../secret",
            "src/../../secret",
            "/etc/passwd",
            &absolute,
            "link",
            "out/secret",
            "dangling",
            "..",
            "",
            ".",
            "/proc/self/fd/0",
            "src",
            "a\0b",
        ] {
            assert!(workspace.read(path).is_err(), "{path}");
            assert!(workspace.write(path, b"x").is_err(), "{path}");
        }
        for path in ["../secret", &absolute, "out/secret", "src"] {
            assert!(workspace.delete(path).is_err(), "{path}");
        }
        assert_eq!(fs::read(&secret).unwrap(), b"needle outside");
        assert!(!folder.path().join("nowhere").exists() && !root.join("nowhere").exists());
        // The link itself is the workspace's own.
        workspace.delete("link").unwrap();
        assert!(secret.exists());
        assert!(workspace.read("out/secret").unwrap_err().contains("symbolic link"));
        assert!(workspace.write(".git/hooks/pre-commit", b"x").is_err());
        assert!(workspace.delete(".GIT/config").is_err());
    }

    #[test]
    fn pipes_and_large_files_do_not_hold_it_up() {
        let (folder, workspace) = workspace();
        let root = folder.path().join("workspace");
        let made = std::process::Command::new("mkfifo").arg(root.join("pipe")).status().unwrap();
        assert!(made.success());
        assert!(workspace.read("pipe").is_err());
        assert!(workspace.write("pipe", b"x").is_err());
        File::create(root.join("large")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(workspace.read("large").unwrap_err().contains("at most"));
    }

    #[test]
    fn a_search_finds_lines_and_names_and_stays_inside() {
        let (folder, workspace) = workspace();
        symlink(folder.path(), folder.path().join("workspace/out")).unwrap();
        let search = |text, glob, path, limit| {
            let found = workspace.search(&Search { text, glob, path, limit }).unwrap();
            let hits: Vec<String> =
                found.hits.iter().map(|hit| format!("{}:{}", hit.path, hit.line)).collect();
            (hits, found.cut.is_some())
        };
        assert_eq!(search("needle", None, "", 100).0, ["src/a.py:2", "src/deep/b.rs:1"]);
        assert_eq!(search("needle", Some("*.rs"), "", 100).0, ["src/deep/b.rs:1"]);
        assert_eq!(search("", Some("src/**/*.rs"), "", 100).0, ["src/deep/b.rs:0"]);
        assert_eq!(search("needle", None, "src/deep", 100).0, ["src/deep/b.rs:1"]);
        assert_eq!(search("needle", None, "src/a.py", 100).0, ["src/a.py:2"]);
        assert_eq!(search("needle", None, "", 1), (vec!["src/a.py:2".to_owned()], true));
        assert_eq!(search("absent", None, "", 10), (vec![], false));
        assert!(workspace.search(&Search { text: "x", glob: None, path: "out", limit: 1 }).is_err());
        assert!(workspace.search(&Search { text: "x", glob: None, path: "../", limit: 1 }).is_err());
    }

    #[test]
    fn globs_match_names_and_paths() {
        for (glob, path, matches) in [
            ("*.py", "src/a.py", true),
            ("*.py", "src/a.pyc", false),
            ("src/*.py", "src/a.py", true),
            ("src/*.py", "src/x/a.py", false),
            ("src/**/*.py", "src/a.py", true),
            ("src/**", "src/x/y", true),
            ("**/test_?.py", "a/b/test_1.py", true),
            ("**/test_?.py", "test_12.py", false),
            ("a*b*c", "aXbYbZc", true),
            ("", "a", false),
            ("*", "a", true),
        ] {
            assert_eq!(glob_matches(glob, path), matches, "{glob} {path}");
        }
    }
}
