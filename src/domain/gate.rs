//! Purpose: the pure checks that a changeset passes before anything is pushed.

use super::ids::Sha;
use super::patterns;
use super::repo_config::GateConfig;
use super::secrets::SecretScan;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use unicode_normalization::UnicodeNormalization;

/// Git file mode of one side of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Absent,
    File,
    Executable,
    Symlink,
    Gitlink,
    /// Any other value of a tree entry's mode.
    Other,
}

/// One changed path between the pinned commit and the result, in any commit of the changeset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Raw path bytes, lossily decoded only for showing.
    pub path: Vec<u8>,
    pub old_mode: Mode,
    pub new_mode: Mode,
    pub added_lines: i64,
    pub removed_lines: i64,
    pub binary: bool,
    pub new_bytes: i64,
}

/// A verified changeset, ready for the gate: what was imported, rewritten and kept as an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changeset {
    pub base: Sha,
    pub head: Sha,
    pub commits: i64,
    pub changes: Vec<Change>,
    /// Every added line, path and commit message, for the secret scan (capped when read).
    pub added_text: Vec<u8>,
}

/// Why a changeset may not be pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// `gate.protected`, `gate.mode`, `gate.max_files`, `gate.max_lines`, `gate.max_bytes`, `gate.secret`, `gate.path`.
    pub rule: String,
    /// The path as it may be shown (control characters escaped); empty when it is about the whole.
    pub path: String,
    /// One sentence for people; never contains the secret that was found.
    pub problem: String,
}

/// New bytes of a whole changeset (4 MiB: what a person can still review is far below).
pub const MAX_NEW_BYTES: i64 = 4 * 1024 * 1024;
/// New bytes of one file.
pub const MAX_FILE_BYTES: i64 = 1024 * 1024;
/// What `Changeset::added_text` holds at most (bytes). A full one was cut and cannot be scanned whole.
pub const ADDED_TEXT_BYTES: usize = 8 * 1024 * 1024;
/// Violations that are told; the rest is counted.
pub const MAX_VIOLATIONS: usize = 50;
/// Bytes of one path and of one of its parts, as Linux has them.
const MAX_PATH_BYTES: usize = 4096;
const MAX_PART_BYTES: usize = 255;
/// Characters of a path that are shown.
const SHOWN_CHARS: usize = 200;

/// Names that are protected wherever they stand: Git's own and the files that agents execute or obey.
pub const PROTECTED_NAMES: &[&str] = &[
    ".git",
    ".gitmodules",
    ".claude",
    ".mcp.json",
    ".codex",
    "opencode.json",
    "opencode.jsonc",
    ".opencode",
    ".gemini",
    "claude.md",
    "claude.local.md",
    "agents.md",
    "gemini.md",
    ".env",
    ".husky",
];

/// Files and folders (with all that is in them) that are protected at exactly this place.
pub const PROTECTED_PATHS: &[&str] = &[
    ".github/workflows",
    ".github/actions",
    ".github/zeblit.toml",
    ".github/zeblit",
    ".github/dependabot.yml",
    ".github/dependabot.yaml",
    ".github/codeowners",
    "docs/codeowners",
    "codeowners",
];

/// Checks a changeset. An empty answer lets it pass.
pub fn check(changeset: &Changeset, config: &GateConfig, own_secrets: &SecretScan) -> Vec<Violation> {
    let violation = |rule: &str, path: &str, problem: String| Violation {
        rule: rule.to_owned(),
        path: path.to_owned(),
        problem,
    };
    let mut found = whole(changeset, config, own_secrets);
    let globs: Vec<Glob> = config.protected.iter().filter_map(|text| Glob::parse(text)).collect();
    let mut changes: Vec<&Change> = changeset.changes.iter().collect();
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    for change in changes {
        // Never the secret, not even as a file's name.
        // Before it is cut short, and again when hidden characters are shown.
        let plain = own_secrets.mask(&String::from_utf8_lossy(&change.path));
        let shown = own_secrets.mask(&shown(plain.as_bytes()));
        if own_secrets.found_in(&change.path) {
            found.push(violation(
                "gate.secret",
                &shown,
                "its name holds one of this server's secrets".into(),
            ));
        } else if !patterns::kinds(&change.path).is_empty() {
            found.push(violation("gate.secret", &shown, "its name holds what looks like a secret".into()));
        }
        match path_problem(&change.path) {
            Some(problem) => found.push(violation("gate.path", &shown, problem)),
            None => {
                let folded = fold_path(&String::from_utf8_lossy(&change.path));
                if let Some(problem) = protected(&folded, &globs) {
                    found.push(violation("gate.protected", &shown, problem));
                }
            }
        }
        if let Some(problem) = mode_problem(change) {
            found.push(violation("gate.mode", &shown, problem.to_owned()));
        }
        if change.new_bytes > MAX_FILE_BYTES {
            found.push(violation(
                "gate.max_bytes",
                &shown,
                format!("{} new bytes in one file, at most {MAX_FILE_BYTES} are allowed", change.new_bytes),
            ));
        }
    }
    found.dedup();
    if found.len() > MAX_VIOLATIONS {
        let rest = found.split_off(MAX_VIOLATIONS - 1);
        let rule = rest.first().map_or("gate.path", |first| first.rule.as_str());
        found.push(violation(rule, "", format!("{} more problems are not listed", rest.len())));
    }
    found
}

/// The rules about the changeset as a whole.
fn whole(changeset: &Changeset, config: &GateConfig, own_secrets: &SecretScan) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut add = |rule: &str, problem: String| {
        found.push(Violation { rule: rule.into(), path: String::new(), problem })
    };
    let sum = |of: fn(&Change) -> i64| {
        changeset.changes.iter().fold(0_i64, |sum, change| sum.saturating_add(of(change).max(0)))
    };
    if own_secrets.found_in(&changeset.added_text) {
        add(
            "gate.secret",
            "the added lines, file contents or commit messages hold one of this server's secrets".into(),
        );
    } else if changeset.added_text.len() < ADDED_TEXT_BYTES {
        let kinds = patterns::kinds(&changeset.added_text);
        if !kinds.is_empty() {
            add(
                "gate.secret",
                format!(
                    "the added lines, file contents or commit messages hold what looks like a secret ({}); a stand-in \
                     for a test has the word EXAMPLE in it",
                    kinds.join(", ")
                ),
            );
        }
    }
    let paths: BTreeSet<&[u8]> = changeset.changes.iter().map(|change| change.path.as_slice()).collect();
    let files = i64::try_from(paths.len()).unwrap_or(i64::MAX);
    if files > config.max_files {
        add("gate.max_files", format!("{files} files changed, at most {} are allowed", config.max_files));
    }
    let lines = sum(|change| change.added_lines).saturating_add(sum(|change| change.removed_lines));
    if lines > config.max_lines {
        add("gate.max_lines", format!("{lines} lines changed, at most {} are allowed", config.max_lines));
    }
    let bytes = sum(|change| change.new_bytes);
    if bytes > MAX_NEW_BYTES || changeset.added_text.len() >= ADDED_TEXT_BYTES {
        add("gate.max_bytes", format!("{bytes} new bytes, at most {MAX_NEW_BYTES} are allowed"));
    }
    found
}

/// What is wrong with the modes of a change.
fn mode_problem(change: &Change) -> Option<&'static str> {
    match (change.old_mode, change.new_mode) {
        (_, Mode::Symlink) => Some("a symbolic link was added or changed; agents may add only plain files"),
        (_, Mode::Gitlink) => Some("a submodule was added or changed; agents may add only plain files"),
        (_, Mode::Other) => Some("the file has a mode that is neither plain nor executable"),
        (Mode::File, Mode::Executable) => {
            Some("an existing file was made executable; a person has to do that")
        }
        (_, Mode::Absent | Mode::File | Mode::Executable) => None,
    }
}

/// Why a path cannot be accepted from an agent, whatever it names.
pub fn path_problem(path: &[u8]) -> Option<String> {
    let Ok(text) = std::str::from_utf8(path) else { return Some("the path is not UTF-8".into()) };
    if text.len() > MAX_PATH_BYTES {
        return Some(format!("the path is longer than {MAX_PATH_BYTES} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Some("the path holds control characters".into());
    }
    if text.chars().any(is_ignorable) {
        return Some("the path holds characters that show nothing".into());
    }
    if text.contains('\\') {
        return Some("the path holds a backslash, which separates folders on some systems".into());
    }
    for part in text.split('/') {
        let problem = match part {
            "" => "the path is absolute, empty or has an empty part",
            "." | ".." => "the path has a part `.` or `..`",
            _ if part.len() > MAX_PART_BYTES => "a part of the path is longer than 255 bytes",
            _ if part.ends_with(['.', ' ']) => {
                "a part of the path ends in a dot or space, which some systems drop"
            }
            _ if part.contains(":$") => "the path names a stream of another file",
            _ => continue,
        };
        return Some(problem.into());
    }
    None
}

/// Why a folded path is protected.
fn protected(folded: &str, globs: &[Glob]) -> Option<String> {
    let parts: Vec<&str> = folded.split('/').collect();
    for part in &parts {
        if let Some(name) = PROTECTED_NAMES.iter().find(|name| same_name(part, name)) {
            return Some(format!("`{name}` may not be changed by agents"));
        }
    }
    for path in PROTECTED_PATHS {
        let wanted: Vec<&str> = path.split('/').collect();
        // The folders above too: a file in the place of a folder replaces what is in it.
        let whole =
            parts.len() >= wanted.len() || parts.first().is_some_and(|part| same_name(part, ".github"));
        if whole && parts.iter().zip(&wanted).all(|(part, name)| same_name(part, name)) {
            return Some(format!("`{path}` may not be changed by agents"));
        }
    }
    globs.iter().find(|glob| glob.matches(&parts)).map(|glob| {
        format!("the repository protects `{}` (`.github/zeblit.toml`)", shown(glob.text.as_bytes()))
    })
}

/// Whether a folded part is this name or the short name that Windows may give to it.
fn same_name(part: &str, name: &str) -> bool {
    if part == name {
        return true;
    }
    let Some((stem, rest)) = part.split_once('~') else { return false };
    // The first three characters of the extension stay: `OPENCO~1.JSO`.
    let (number, extension) = rest.split_once('.').unwrap_or((rest, ""));
    let own = name.trim_start_matches('.').rsplit_once('.').map_or("", |(_, own)| own);
    if !extension.is_empty() && extension != own.get(..3).unwrap_or(own) {
        return false;
    }
    if number.is_empty() || !number.chars().all(|c| c.is_ascii_digit()) {
        return false;
    }
    // `GITMOD~1`; after four alike: two letters and four hexadecimal digits, `GI7EBA~1`.
    let plain: String = name.trim_start_matches('.').chars().filter(char::is_ascii_alphanumeric).collect();
    let base: String = name
        .trim_start_matches('.')
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let hashed = stem.len() == 6
        && stem.get(2..).is_some_and(|rest| rest.chars().all(|c| c.is_ascii_hexdigit()))
        && stem.get(..2).is_some_and(|start| plain.starts_with(start));
    let short = |full: &str| !full.is_empty() && !stem.is_empty() && stem == full.get(..6).unwrap_or(full);
    hashed || short(&plain) || short(&base)
}

/// One spelling for all the ways to write a path that some file system takes for the same.
fn fold_path(path: &str) -> String {
    path.split('/').map(fold_part).collect::<Vec<_>>().join("/")
}

fn fold_part(part: &str) -> String {
    let mut folded: String = part.to_owned();
    // Twice: folding may bring forth characters that fold again.
    for _ in 0..2 {
        folded = folded.chars().filter(|c| !is_ignorable(*c)).nfkc().collect();
        folded = folded.to_uppercase().to_lowercase();
    }
    let plain = folded.split(':').next().unwrap_or_default();
    plain.trim_end_matches(['.', ' ']).to_owned()
}

/// Characters that show nothing (Default_Ignorable_Code_Point) or only steer how others are shown.
pub fn is_ignorable(c: char) -> bool {
    matches!(u32::from(c),
        0x00ad | 0x034f | 0x061c | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f
        | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0x3164 | 0xfe00..=0xfe0f
        | 0xfeff | 0xffa0 | 0xfff0..=0xfffb | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a
        | 0xe0000..=0xe0fff)
}

/// A path as it may be shown: on one line, hidden characters visible, not too long.
pub fn shown(path: &[u8]) -> String {
    let mut text = String::new();
    for (count, c) in String::from_utf8_lossy(path).chars().enumerate() {
        if count >= SHOWN_CHARS {
            text.push('…');
            break;
        }
        if c.is_control() || is_ignorable(c) || c == '`' {
            text.extend(c.escape_unicode());
        } else {
            text.push(c);
        }
    }
    text
}

/// One entry of `protected`: `*` within a part, `**` across parts. Without a slash it names something in any
/// folder; a leading slash or one inside ties it to the root; what is below a match is protected too.
#[derive(Debug)]
struct Glob {
    text: String,
    parts: Vec<String>,
}

impl Glob {
    fn parse(text: &str) -> Option<Self> {
        let trimmed = text.trim().trim_end_matches('/');
        let anchored = trimmed.contains('/');
        let mut parts: Vec<String> = trimmed
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
            .map(|part| if part == "**" { part.to_owned() } else { fold_part(part) })
            .collect();
        if parts.is_empty() {
            return None;
        }
        if !anchored {
            parts.insert(0, "**".into());
        }
        Some(Self { text: text.to_owned(), parts })
    }

    /// Whether the path or a folder above it matches.
    fn matches(&self, path: &[&str]) -> bool {
        // `reached` holds how many parts of the pattern can have matched so far.
        let length = self.parts.len();
        let is_any = |index: usize| self.parts.get(index).is_some_and(|part| part == "**");
        let close = |reached: &mut BTreeSet<usize>| {
            for index in 0..length {
                if reached.contains(&index) && is_any(index) {
                    reached.insert(index + 1);
                }
            }
        };
        let mut reached = BTreeSet::from([0]);
        close(&mut reached);
        for part in path {
            let mut next = BTreeSet::new();
            for index in &reached {
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
            close(&mut next);
            if next.contains(&length) {
                return true;
            }
            reached = next;
        }
        false
    }
}

/// Path patterns in the language of `gate.protected`.
#[derive(Debug)]
pub struct PathPatterns(Vec<Glob>);

impl PathPatterns {
    pub fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().filter_map(|text| Glob::parse(text)).collect())
    }

    /// Whether the path or a folder above it matches one of them.
    pub fn matches(&self, path: &str) -> bool {
        let folded = fold_path(path);
        let parts: Vec<&str> = folded.split('/').collect();
        self.0.iter().any(|glob| glob.matches(&parts))
    }
}

/// `*` stands for any characters of one part, `?` for one.
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

#[cfg(test)]
mod corpus;

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &[u8]) -> Change {
        Change {
            path: path.to_vec(),
            old_mode: Mode::Absent,
            new_mode: Mode::File,
            added_lines: 1,
            removed_lines: 0,
            binary: false,
            new_bytes: 10,
        }
    }

    fn changeset(changes: Vec<Change>) -> Changeset {
        let sha = |c: &str| Sha::parse(&c.repeat(40)).unwrap();
        Changeset { base: sha("a"), head: sha("b"), commits: 1, changes, added_text: Vec::new() }
    }

    fn verdict(path: &[u8]) -> Vec<String> {
        verdict_with(path, &[])
    }

    fn verdict_with(path: &[u8], protected: &[&str]) -> Vec<String> {
        let config = GateConfig {
            protected: protected.iter().map(|text| (*text).to_owned()).collect(),
            ..GateConfig::default()
        };
        let found = check(&changeset(vec![change(path)]), &config, &SecretScan::default());
        found.into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn paths_are_not_longer_than_file_systems_have_them() {
        assert_eq!(verdict(&b"x".repeat(256)), ["gate.path"]);
        assert_eq!(verdict(&b"x/".repeat(3000)), ["gate.path"]);
    }

    #[test]
    fn a_folded_path_is_found_whatever_case_each_letter_has() {
        for path in PROTECTED_PATHS.iter().chain(PROTECTED_NAMES) {
            for turn in 0..8_usize {
                let mixed: String = path
                    .char_indices()
                    .map(|(at, c)| if (at + turn).is_multiple_of(3) { c.to_ascii_uppercase() } else { c })
                    .collect();
                assert_eq!(verdict(mixed.as_bytes()), ["gate.protected"], "{mixed}");
                assert_eq!(verdict(format!("{mixed}/x").as_bytes()), ["gate.protected"], "{mixed}/x");
            }
        }
    }

    #[test]
    fn globs_of_the_repository_are_obeyed() {
        for (glob, path, hit) in [
            ("infra/**", "infra/main.tf", true),
            ("infra/**", "infra/a/b/c.tf", true),
            ("infra/**", "src/infra/main.tf", false),
            ("infra/", "infra/main.tf", true),
            ("infra", "infra/main.tf", true),
            ("infra", "src/infra/main.tf", true),
            ("/infra", "src/infra/main.tf", false),
            ("/infra", "infra/main.tf", true),
            ("*.pem", "a/b/key.pem", true),
            ("*.pem", "key.PEM", true),
            ("*.pem", "key.pem.txt", false),
            ("src/*.rs", "src/main.rs", true),
            ("src/*.rs", "src/a/main.rs", false),
            ("src/**/*.rs", "src/main.rs", true),
            ("src/**/*.rs", "src/a/b/main.rs", true),
            ("src/**/*.rs", "src/a/b/main.py", false),
            ("**/secrets/*", "a/b/secrets/x", true),
            ("**/secrets/*", "secrets/x", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
            ("file?.txt", "file1.txt", true),
            ("file?.txt", "file.txt", false),
            ("Cargo.LOCK", "cargo.lock", true),
            ("Grüße.md", "GRU\u{308}SSE.md", true),
            ("**", "anything/at/all", true),
            ("*", "anything", true),
            ("", "anything", false),
            ("/", "anything", false),
        ] {
            let expected: &[&str] = if hit { &["gate.protected"] } else { &[] };
            assert_eq!(verdict_with(path.as_bytes(), &[glob]), expected, "{glob} on {path}");
        }
    }

    #[test]
    fn patterns_cannot_be_made_slow() {
        let glob = "*a".repeat(200);
        let path = "a".repeat(250);
        verdict_with(path.as_bytes(), &[&glob]);
        let glob = "**/a/".repeat(100);
        let path = "a/".repeat(1000) + "b";
        verdict_with(path.as_bytes(), &[&glob]);
    }

    #[test]
    fn only_plain_files_come_in() {
        use Mode::{Absent, Executable, File, Gitlink, Other, Symlink};
        for (old, new, allowed) in [
            (Absent, File, true),
            (Absent, Executable, true),
            (File, File, true),
            (File, Absent, true),
            (Executable, File, true),
            (Executable, Executable, true),
            (Symlink, Absent, true),
            (Symlink, File, true),
            (Gitlink, Absent, true),
            (Absent, Absent, true),
            (File, Executable, false),
            (Absent, Symlink, false),
            (File, Symlink, false),
            (Symlink, Symlink, false),
            (Absent, Gitlink, false),
            (Gitlink, Gitlink, false),
            (File, Gitlink, false),
            (Absent, Other, false),
            (File, Other, false),
        ] {
            let changes = vec![Change { old_mode: old, new_mode: new, ..change(b"a") }];
            let found = check(&changeset(changes), &GateConfig::default(), &SecretScan::default());
            assert_eq!(found.is_empty(), allowed, "{old:?} to {new:?}: {found:?}");
            assert!(found.iter().all(|violation| violation.rule == "gate.mode"));
        }
    }

    #[test]
    fn sizes_are_capped_exactly() {
        let config = GateConfig { protected: Vec::new(), max_files: 2, max_lines: 10 };
        let rules = |changes: Vec<Change>, text: usize| {
            let mut set = changeset(changes);
            set.added_text = vec![b'x'; text];
            let found = check(&set, &config, &SecretScan::default());
            found.into_iter().map(|violation| violation.rule).collect::<Vec<_>>()
        };
        let lines = |path: &str, added, removed| Change {
            added_lines: added,
            removed_lines: removed,
            ..change(path.as_bytes())
        };
        let bytes = |path: &str, new_bytes| Change { new_bytes, ..change(path.as_bytes()) };
        assert!(rules(vec![change(b"a"), change(b"b"), change(b"b")], 0).is_empty());
        assert_eq!(rules(vec![change(b"a"), change(b"b"), change(b"c")], 0), ["gate.max_files"]);
        assert!(rules(vec![lines("a", 4, 3), lines("b", 1, 2)], 0).is_empty());
        assert_eq!(rules(vec![lines("a", 4, 4), lines("b", 1, 2)], 0), ["gate.max_lines"]);
        assert_eq!(rules(vec![lines("a", i64::MAX, i64::MAX)], 0), ["gate.max_lines"]);
        assert_eq!(rules(vec![lines("a", 20, 0), lines("b", -15, 0)], 0), ["gate.max_lines"]);
        assert!(rules(vec![bytes("a", MAX_FILE_BYTES)], 0).is_empty());
        assert_eq!(rules(vec![bytes("a", MAX_FILE_BYTES + 1)], 0), ["gate.max_bytes"]);
        assert_eq!(rules(vec![bytes("a", i64::MAX), bytes("b", i64::MAX)], 0).len(), 3);
        assert!(rules(vec![], ADDED_TEXT_BYTES - 1).is_empty());
        assert_eq!(rules(vec![], ADDED_TEXT_BYTES), ["gate.max_bytes"]);
        let many = (0..5).map(|n| bytes(&n.to_string(), MAX_FILE_BYTES)).collect();
        assert_eq!(rules(many, 0), ["gate.max_files", "gate.max_bytes"]);
    }

    #[test]
    fn own_secrets_are_found_and_never_shown() {
        let secret = "whsec-0123456789-abcdef";
        let scan = SecretScan::new(&[secret.as_bytes()]);
        let mut set = changeset(vec![change(format!("notes-{secret}.txt").as_bytes())]);
        set.added_text = format!("x = \"{}\"\n", hex::encode(secret)).into_bytes();
        let found = check(&set, &GateConfig::default(), &scan);
        let rules: Vec<&str> = found.iter().map(|violation| violation.rule.as_str()).collect();
        assert_eq!(rules, ["gate.secret", "gate.secret"]);
        assert_eq!(found.iter().map(|v| v.path.as_str()).collect::<Vec<_>>(), ["", "notes-[secret].txt"]);
        assert!(!format!("{found:?}").contains(secret));
        assert!(!format!("{found:?}").contains(&hex::encode(secret)));
        set.changes = vec![change(b"a")];
        set.added_text = b"harmless".to_vec();
        assert!(check(&set, &GateConfig::default(), &scan).is_empty());
    }

    #[test]
    fn the_list_is_short_and_always_in_the_same_order() {
        let changes: Vec<Change> = (0..120).map(|n| change(format!(".git/{n}").as_bytes())).collect();
        let mut turned = changes.clone();
        turned.reverse();
        let config = GateConfig { max_files: 10, ..GateConfig::default() };
        let found = check(&changeset(changes), &config, &SecretScan::default());
        assert_eq!(found, check(&changeset(turned), &config, &SecretScan::default()));
        assert_eq!(found.len(), MAX_VIOLATIONS);
        assert_eq!(found.first().unwrap().rule, "gate.max_files");
        assert_eq!(found.last().unwrap().problem, "72 more problems are not listed");
    }

    #[test]
    fn shown_paths_are_one_harmless_line() {
        assert_eq!(shown(b"a\nb`\xe2\x80\xae"), "a\\u{a}b\\u{60}\\u{202e}");
        assert_eq!(shown(b"caf\xe9"), "caf\u{fffd}");
        assert_eq!(shown(&b"x".repeat(500)).chars().count(), SHOWN_CHARS + 1);
    }
}
