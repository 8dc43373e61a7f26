//! The corpus of path tricks: spellings of protected paths that some file system or reader takes for the same,
//! and paths that are no paths at all. None passes. Beside it ordinary paths, all of which pass.

use super::{Change, Changeset, Mode, check};
use crate::domain::ids::Sha;
use crate::domain::repo_config::GateConfig;
use crate::domain::secrets::SecretScan;
use std::collections::BTreeSet;
use unicode_normalization::UnicodeNormalization;

/// One of each kind that is protected.
const PROTECTED: &[&str] = &[
    ".git/config",
    ".git/hooks/pre-commit",
    "sub/.git/config",
    ".gitmodules",
    "vendor/lib/.gitmodules",
    ".github/workflows/ci.yml",
    ".github/workflows/deep/er/ci.yml",
    ".github/actions/build/action.yml",
    ".github/zeblit.toml",
    ".github/zeblit/agents/fix.md",
    ".github/dependabot.yml",
    "CODEOWNERS",
    ".github/CODEOWNERS",
    "docs/CODEOWNERS",
    ".claude/settings.json",
    "sub/.claude/hooks/x.sh",
    ".mcp.json",
    ".codex/config.toml",
    "opencode.json",
    ".opencode/plugins/x.ts",
    ".gemini/settings.json",
    "CLAUDE.md",
    "AGENTS.md",
    "GEMINI.md",
    ".env",
    "app/.env",
    ".husky/pre-commit",
];

type Trick = fn(&str) -> String;

/// Ways to write a path differently. What a trick does not change is not counted.
const TRICKS: &[(&str, Trick)] = &[
    ("as it is", str::to_owned),
    ("upper case", str::to_uppercase),
    ("lower case", str::to_lowercase),
    ("mixed case", |path| {
        path.chars().enumerate().map(|(at, c)| if at % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect()
    }),
    ("full-width letters", |path| letters(path, 0xff21, 0xff41)),
    ("bold letters of mathematics", |path| letters(path, 0x1d400, 0x1d41a)),
    ("letters in circles", |path| letters(path, 0x24b6, 0x24d0)),
    ("full-width dots", |path| path.replace('.', "\u{ff0e}")),
    ("one-dot leaders", |path| path.replace('.', "\u{2024}")),
    ("the sign of Kelvin", |path| path.replace('k', "\u{212a}")),
    ("long s", |path| path.replace('s', "\u{17f}")),
    ("dotless i", |path| path.replace('i', "\u{131}")),
    ("a ligature of fl", |path| path.replace("fl", "\u{fb02}")),
    ("zero-width non-joiner inside", |path| inside(path, '\u{200c}')),
    ("zero-width joiner inside", |path| inside(path, '\u{200d}')),
    ("left-to-right mark inside", |path| inside(path, '\u{200e}')),
    ("right-to-left override inside", |path| inside(path, '\u{202e}')),
    ("symmetric swapping inside", |path| inside(path, '\u{206a}')),
    ("nominal digit shapes inside", |path| inside(path, '\u{206f}')),
    ("word joiner inside", |path| inside(path, '\u{2060}')),
    ("soft hyphen inside", |path| inside(path, '\u{ad}')),
    ("byte order mark in front", |path| format!("\u{feff}{path}")),
    ("byte order mark behind", |path| format!("{path}\u{feff}")),
    ("variation selector behind", |path| format!("{path}\u{fe0f}")),
    ("tag character inside", |path| inside(path, '\u{e0067}')),
    ("grapheme joiner inside", |path| inside(path, '\u{34f}')),
    ("a dot behind", |path| format!("{path}.")),
    ("a space behind", |path| format!("{path} ")),
    ("dots and spaces behind", |path| format!("{path} . .")),
    ("a dot behind the first part", |path| first(path, ".")),
    ("a space behind the first part", |path| first(path, " ")),
    ("its data stream", |path| format!("{path}::$DATA")),
    ("a stream of its own", |path| format!("{path}:x")),
    ("the index stream of the first part", |path| first(path, "::$INDEX_ALLOCATION")),
    ("the named index stream of the first part", |path| first(path, ":$I30:$INDEX_ALLOCATION")),
    ("backslashes", |path| path.replace('/', "\\")),
    ("a backslash in front", |path| format!("\\{path}")),
    ("from here", |path| format!("./{path}")),
    ("from the top", |path| format!("/{path}")),
    ("two slashes", |path| path.replace('/', "//")),
    ("there and back", |path| format!("x/../{path}")),
    ("a folder of this name", |path| format!("{path}/inner.txt")),
    ("a slash behind", |path| format!("{path}/")),
    ("a line end behind", |path| format!("{path}\n")),
    ("a tab inside", |path| inside(path, '\t')),
    ("short names", |path| {
        path.split('/')
            .map(|part| short(part).unwrap_or_else(|| part.to_owned()))
            .collect::<Vec<_>>()
            .join("/")
    }),
    ("decomposed and composed again", |path| {
        path.nfd().collect::<String>().nfc().collect::<String>().to_uppercase()
    }),
];

/// Letters moved to another block of them.
fn letters(path: &str, upper: u32, lower: u32) -> String {
    path.chars()
        .map(|c| match c {
            'A'..='Z' => char::from_u32(upper + u32::from(c) - u32::from('A')).unwrap_or(c),
            'a'..='z' => char::from_u32(lower + u32::from(c) - u32::from('a')).unwrap_or(c),
            _ => c,
        })
        .collect()
}

/// A character behind the second one of each part.
fn inside(path: &str, hidden: char) -> String {
    let part = |part: &str| -> String {
        part.chars()
            .enumerate()
            .flat_map(|(at, c)| [Some(c), (at == 1).then_some(hidden)])
            .flatten()
            .collect()
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn first(path: &str, ending: &str) -> String {
    match path.split_once('/') {
        Some((start, rest)) => format!("{start}{ending}/{rest}"),
        None => format!("{path}{ending}"),
    }
}

/// The short name that Windows gives to a name that needs one.
fn short(part: &str) -> Option<String> {
    let hidden = part.starts_with('.');
    let (stem, extension) =
        part.trim_start_matches('.').split_once('.').unwrap_or((part.trim_start_matches('.'), ""));
    if !hidden && stem.len() <= 8 && extension.len() <= 3 {
        return None;
    }
    let stem: String = stem.chars().take(6).collect();
    let extension: String = extension.chars().take(3).collect();
    Some(format!("{stem}~1.{extension}").trim_end_matches('.').to_uppercase())
}

/// What no trick above makes.
const ODD: &[&[u8]] = &[
    b".github",
    b".github/workflows",
    b".GITHUB",
    b".github/zeblit",
    b".git",
    b"git~1",
    b"GIT~2",
    b"git~1/hooks/post-checkout",
    b"GITHUB~1/WORKFL~1/ci.yml",
    b".github/WORKFL~1/ci.yml",
    b"GITMOD~1",
    b"GITMOD~4",
    b"GI7EBA~1",
    b"gi7eba~9",
    b"CODEOW~1",
    b"docs/CODEOW~1",
    b"CLAUDE~1",
    b"OPENCO~1.JSO",
    b".git\xff/config",
    b"\xff\xfe",
    b"caf\xe9.txt",
    b".gi\xcc",
    b"",
    b"/",
    b".",
    b"..",
    b"...",
    b"../outside",
    b"a/..",
    b"a/../../b",
    b"/etc/passwd",
    b"C:\\Windows\\x",
    b"\\\\server\\share",
    b"a\0b",
    b"a\rb",
    b"a\x1b[2Kb",
    b"a\x7fb",
    b"\xc2\x85",
    b"line\xe2\x80\xa8break",
    b"paragraph\xe2\x80\xa9break",
    b"invoice\xe2\x80\xaefdp.exe",
    b"isolate\xe2\x81\xa6x",
    b"filler\xe3\x85\xa4",
    b"trailing.",
    b"trailing ",
    b"folder./x",
    b"folder /x",
    b"file::$DATA",
    b"file:x:$DATA",
    b"dir:$I30:$INDEX_ALLOCATION/x",
];

/// What people and agents really change.
const ORDINARY: &[&str] = &[
    "README.md",
    "readme",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
    "Makefile",
    "Dockerfile",
    "docker-compose.yml",
    "Cargo.toml",
    "Cargo.lock",
    "package.json",
    "package-lock.json",
    "pnpm-lock.yaml",
    "yarn.lock",
    "pyproject.toml",
    "requirements.txt",
    "requirements-dev.txt",
    "setup.py",
    "setup.cfg",
    "go.mod",
    "go.sum",
    "pom.xml",
    "build.gradle.kts",
    "Gemfile.lock",
    "composer.json",
    "tsconfig.json",
    "jest.config.js",
    "webpack.config.js",
    ".gitignore",
    "sub/.gitignore",
    ".gitattributes",
    ".gitkeep",
    ".editorconfig",
    ".prettierrc",
    ".eslintrc.json",
    ".clang-format",
    ".rustfmt.toml",
    ".dockerignore",
    ".npmrc.example",
    ".env.example",
    ".env.test.sample",
    ".envrc.sample",
    ".config/app.toml",
    ".cargo/config.toml",
    ".vscode/settings.json",
    ".github/ISSUE_TEMPLATE/bug.md",
    ".github/ISSUE_TEMPLATE.md",
    ".github/PULL_REQUEST_TEMPLATE.md",
    ".github/FUNDING.yml",
    ".github/labels.yml",
    ".github/zeblit.toml.example",
    ".github/workflows.md",
    "sub/.github/workflows/ci.yml",
    "workflows/ci.yml",
    "github/workflows/ci.yml",
    "zeblit.toml",
    "docs/guide.md",
    "docs/codeowners.md",
    "docs/index.rst",
    "doc/CODEOWNERS",
    "sub/CODEOWNERS",
    "src/CODEOWNERS_test.py",
    "src/main.rs",
    "src/lib.rs",
    "src/.hidden",
    "src/git.rs",
    "src/git/mod.rs",
    "src/agents.rs",
    "src/claude.rs",
    "src/gemini/mod.rs",
    "src/app.py",
    "src/components/Button.tsx",
    "src/components/button/index.ts",
    "src/[id]/page.tsx",
    "src/(group)/layout.tsx",
    "src/@types/index.d.ts",
    "app/models/user.rb",
    "app/environment.rb",
    "app/env.py",
    "lib/husky.js",
    "lib/__init__.py",
    "cmd/server/main.go",
    "pkg/api/v1/types.go",
    "internal/codex/codex.go",
    "tests/test_stock.py",
    "tests/fixtures/data.json",
    "tests/fixtures/page.html",
    "tests/__snapshots__/x.snap",
    "spec/models/user_spec.rb",
    "migrations/0001_init.sql",
    "db/migrate/20260101_add.rb",
    "static/logo.svg",
    "static/fonts/a.woff2",
    "assets/img/photo 1.jpg",
    "scripts/build.sh",
    "scripts/release",
    "git/config",
    "git.md",
    "my.git.notes",
    "x.git/readme",
    "gitmodules.txt",
    "agents/fix.md",
    "claude/notes.md",
    "opencode/config.json",
    "opencode.json.md",
    "mcp.json",
    "codex.toml",
    "environment",
    "a b/c d.txt",
    "a:b.txt",
    "backup~1",
    "file~",
    "~notes",
    "a/b/c/d/e/f/g/h/i/j",
    "name with 'quotes' and $dollar",
    "100%.txt",
    "c++/a+b.cpp",
    "a=b,c;d.txt",
    "-rf",
    "--upload-pack=x",
    "日本語/ファイル.txt",
    "Grüße.md",
    "cafe\u{301}.txt",
    "emoji-\u{1f600}.txt",
    "Русский/файл.txt",
    "עברית.txt",
];

fn change(path: &[u8], old_mode: Mode, new_mode: Mode) -> Change {
    Change {
        path: path.to_vec(),
        old_mode,
        new_mode,
        added_lines: 1,
        removed_lines: 0,
        binary: false,
        new_bytes: 10,
    }
}

fn rules(changes: Vec<Change>) -> Vec<String> {
    let sha = |c: &str| Sha::parse(&c.repeat(40)).unwrap();
    let set = Changeset { base: sha("a"), head: sha("b"), commits: 1, changes, added_text: Vec::new() };
    let found = check(&set, &GateConfig::default(), &SecretScan::default());
    found.into_iter().map(|violation| violation.rule).collect()
}

#[test]
fn no_trick_with_a_path_passes() {
    let mut tricks: BTreeSet<Vec<u8>> = ODD.iter().map(|path| path.to_vec()).collect();
    for path in PROTECTED {
        for (_, trick) in TRICKS {
            tricks.insert(trick(path).into_bytes());
        }
    }
    assert!(tricks.len() >= 1000, "{} tricks", tricks.len());
    let refusals = [Mode::File, Mode::Executable];
    let passed: Vec<String> = tricks
        .iter()
        .filter(|path| {
            // Added, changed, and (the first half of a rename) deleted.
            let added = refusals.iter().map(|mode| (Mode::Absent, *mode));
            let others = [(Mode::File, Mode::File), (Mode::File, Mode::Absent)];
            added.chain(others).any(|(old, new)| {
                let found = rules(vec![change(path, old, new)]);
                !found.iter().any(|rule| rule == "gate.path" || rule == "gate.protected")
            })
        })
        .map(|path| format!("{:?}", String::from_utf8_lossy(path)))
        .collect();
    assert!(passed.is_empty(), "{} of {} passed: {passed:#?}", passed.len(), tricks.len());
}

#[test]
fn every_trick_changes_what_it_is_for() {
    for (name, trick) in &TRICKS[1..] {
        assert!(PROTECTED.iter().any(|path| trick(path) != *path), "{name}");
    }
}

#[test]
fn modes_and_renames_are_no_way_around() {
    use Mode::{Absent, Executable, File, Gitlink, Other, Symlink};
    // Whatever the name: links, submodules and odd modes, also in the place of something harmless.
    for path in ["docs/guide", "a", "src/lib", "vendor/lib", "link", "日本語"] {
        for old in [Absent, File, Executable, Symlink, Gitlink, Other] {
            for new in [Symlink, Gitlink, Other] {
                assert!(
                    rules(vec![change(path.as_bytes(), old, new)]).contains(&"gate.mode".to_owned()),
                    "{path}"
                );
            }
        }
        assert_eq!(rules(vec![change(path.as_bytes(), File, Executable)]), ["gate.mode"], "{path}");
    }
    // A rename is a deletion and an addition: either half is enough.
    for (from, to) in [
        (".github/workflows/ci.yml", "old/ci.yml"),
        ("old/ci.yml", ".github/workflows/ci.yml"),
        ("CODEOWNERS", "owners.txt"),
        ("docs/CODEOWNERS", "docs/owners"),
        (".github/CODEOWNERS", "x"),
        ("x.md", "AGENTS.md"),
        ("a", "b/.gitmodules"),
    ] {
        let renamed = vec![change(from.as_bytes(), File, Absent), change(to.as_bytes(), Absent, File)];
        assert!(rules(renamed).contains(&"gate.protected".to_owned()), "{from} to {to}");
    }
}

#[test]
fn ordinary_paths_pass() {
    let all: BTreeSet<&str> = ORDINARY.iter().copied().collect();
    assert!(all.len() >= 100 && all.len() == ORDINARY.len(), "{}", all.len());
    for path in ORDINARY {
        for (old, new) in [
            (Mode::Absent, Mode::File),
            (Mode::Absent, Mode::Executable),
            (Mode::File, Mode::File),
            (Mode::File, Mode::Absent),
        ] {
            assert_eq!(rules(vec![change(path.as_bytes(), old, new)]), Vec::<String>::new(), "{path}");
        }
    }
}
