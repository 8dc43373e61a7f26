//! Purpose: path patterns as a repository writes them, walked over a folder: `*` within a part, `?` for one character,
//! `**` across parts; without a slash a name in any folder; what is below a match matches, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Files and folders that are looked at: a walk must end in a tree that an agent made.
const MAX_ENTRIES: usize = 500_000;
const MAX_DEPTH: usize = 64;
/// Files of one walk; more than are kept, so that what is left out can be told.
const MAX_FOUND: usize = 10_000;
/// Never looked into.
const GIT_FOLDER: &str = ".git";

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    parts: Vec<String>,
}

/// How far a path has come in a pattern: which parts may be next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reached {
    next: BTreeSet<usize>,
    matched: bool,
}

impl Reached {
    /// Nothing below can match.
    fn is_dead(&self) -> bool {
        !self.matched && self.next.is_empty()
    }
}

impl Glob {
    /// `None`: the pattern names nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let trimmed = text.trim().trim_end_matches('/');
        let mut parts: Vec<String> =
            trimmed.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect();
        if parts.is_empty() {
            return None;
        }
        if !trimmed.contains('/') {
            parts.insert(0, "**".to_owned());
        }
        Some(Self { parts })
    }

    fn start(&self) -> Reached {
        self.closed(BTreeSet::from([0]))
    }

    /// `**` stands for no part, too.
    fn closed(&self, mut next: BTreeSet<usize>) -> Reached {
        for index in 0..self.parts.len() {
            if next.contains(&index) && self.parts.get(index).is_some_and(|part| part == "**") {
                next.insert(index + 1);
            }
        }
        let matched = next.contains(&self.parts.len());
        Reached { next, matched }
    }

    fn step(&self, from: &Reached, part: &str) -> Reached {
        if from.matched {
            return from.clone();
        }
        let mut next = BTreeSet::new();
        for index in &from.next {
            match self.parts.get(*index) {
                Some(pattern) if pattern == "**" => {
                    next.insert(*index);
                }
                Some(pattern) if part_matches(pattern, part) => {
                    next.insert(index + 1);
                }
                _ => {}
            }
        }
        self.closed(next)
    }

    /// Whether a relative path or a folder above it matches.
    pub fn matches(&self, path: &str) -> bool {
        let mut reached = self.start();
        for part in path.split('/') {
            reached = self.step(&reached, part);
            if reached.matched {
                return true;
            }
        }
        false
    }
}

fn part_matches(pattern: &str, part: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let part: Vec<char> = part.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(c) = part.get(t) {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(wanted) if wanted == c || *wanted == '?' => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|c| *c == '*')
}

/// What a walk found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Relative paths of everything that matches and is not a folder, sorted; names that are not UTF-8 with stand-ins.
    pub paths: Vec<String>,
    /// There was too much to look at all of it.
    pub cut: bool,
}

/// Looks for matches below `root`. Links are not followed, `.git` is not entered.
pub fn walk(root: &Path, globs: &[Glob]) -> Found {
    let mut found = Found::default();
    let mut looked_at = 0_usize;
    let start: Vec<Reached> = globs.iter().map(Glob::start).collect();
    let mut open = vec![(String::new(), start, 0_usize)];
    while let Some((folder, reached, depth)) = open.pop() {
        let Ok(entries) = fs::read_dir(root.join(&folder)) else { continue };
        for entry in entries.flatten() {
            looked_at += 1;
            if looked_at > MAX_ENTRIES || found.paths.len() >= MAX_FOUND {
                found.cut = true;
                found.paths.sort();
                return found;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == GIT_FOLDER {
                continue;
            }
            let here: Vec<Reached> =
                globs.iter().zip(&reached).map(|(glob, from)| glob.step(from, &name)).collect();
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                if here.iter().any(|reached| !reached.is_dead()) {
                    if depth < MAX_DEPTH {
                        open.push((path, here, depth + 1));
                    } else {
                        found.cut = true;
                    }
                }
            } else if here.iter().any(|reached| reached.matched) {
                found.paths.push(path);
            }
        }
    }
    found.paths.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::gate::PathPatterns;
    use proptest::prelude::*;

    fn matches(glob: &str, path: &str) -> bool {
        Glob::parse(glob).is_some_and(|glob| glob.matches(path))
    }

    #[test]
    fn patterns_match_paths() {
        for (glob, path, expected) in [
            ("report.html", "report.html", true),
            ("report.html", "a/b/report.html", true),
            ("report.html", "a/report.htm", false),
            ("coverage/**", "coverage/a/b.xml", true),
            ("coverage/**", "coverage", true),
            ("coverage/**", "x/coverage/a", false),
            ("coverage", "x/coverage/a", true),
            ("target/*.log", "target/a.log", true),
            ("target/*.log", "target/a/b.log", false),
            ("**/*.png", "a.png", true),
            ("**/*.png", "a/b/c.png", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("./out/", "out/x", true),
            ("*", "anything/at/all", true),
            ("", "a", false),
            ("/", "a", false),
            ("a/b", "A/b", false),
        ] {
            assert_eq!(matches(glob, path), expected, "{glob} {path}");
        }
    }

    #[test]
    fn a_walk_finds_what_matches_and_follows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in
            ["coverage/a/b.xml", "coverage/.git/x", "src/report.html", "src/no.txt", ".git/report.html"]
        {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), "x").unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.join("coverage/etc")).unwrap();
        std::os::unix::fs::symlink(root.join("src"), root.join("linked")).unwrap();
        let globs: Vec<Glob> =
            ["coverage/**", "report.html"].iter().filter_map(|text| Glob::parse(text)).collect();
        let found = walk(root, &globs);
        // The link itself is told of, and nothing behind it.
        assert_eq!(found.paths, ["coverage/a/b.xml", "coverage/etc", "src/report.html"]);
        assert!(!found.cut);
        assert_eq!(walk(&root.join("missing"), &globs), Found::default());
        assert_eq!(walk(root, &[]), Found::default());
    }

    #[test]
    fn a_walk_ends_in_a_deep_tree() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join(["d"; 80].join("/"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("x.log"), "x").unwrap();
        let found = walk(folder.path(), &[Glob::parse("*.log").unwrap()]);
        assert_eq!(found, Found { paths: vec![], cut: true });
    }

    proptest! {
        /// What is collected inside is what the host takes: its own patterns match at least as much. (It takes no names
        /// that end in a dot.)
        #[test]
        fn the_host_takes_what_matches(glob in "[ab*?/.]{1,10}", path in "[ab]{1,3}(/[ab.]{0,2}[ab]){0,3}") {
            if matches(&glob, &path) {
                prop_assert!(PathPatterns::new(&[glob]).matches(&path));
            }
        }
    }
}
