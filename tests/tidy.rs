//! Rules of the code base that the compiler cannot check: who may use whom, where time, chance, the
//! environment and programs are touched, what SQL may say. Red on a breach of an invariant.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

struct Source {
    path: String,
    /// Without test modules and comments.
    code: String,
    whole: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files(&root().join("src"), ".rs", &mut paths);
    paths
        .into_iter()
        .map(|path| {
            let whole = std::fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let production = match whole.find("#[cfg(test)]") {
                _ if name.ends_with("/tests.rs") || name.ends_with("/testing.rs") => "",
                Some(at) => &whole[..at],
                None => &whole,
            };
            let code = production
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .fold(String::new(), |text, line| text + line + "\n");
            Source { path: name, code, whole }
        })
        .collect()
}

/// The first folder or file below `src`, e.g. `engine`.
fn module(path: &str) -> &str {
    let inner = path.trim_start_matches("src/");
    inner.split('/').next().unwrap_or(inner).trim_end_matches(".rs")
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let rules: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("domain", &["domain"][..]),
        ("intake", &["intake", "domain"]),
        ("agent", &["agent", "domain"]),
        ("store", &["store", "domain", "clock", "telemetry"]),
        ("queue", &["queue", "domain", "clock", "telemetry"]),
        ("git", &["git", "mount", "domain", "clock", "telemetry"]),
        ("remote", &["remote", "domain", "clock", "telemetry"]),
        // The shim's wire format is what a sandbox speaks.
        ("sandbox", &["sandbox", "mount", "domain", "clock", "telemetry", "shim"]),
        ("mount", &["mount"]),
        ("broker", &["broker", "domain", "clock", "telemetry", "store"]),
        ("clock", &["clock"]),
        ("config", &["config", "domain"]),
        ("telemetry", &["telemetry", "config", "domain"]),
        ("shim", &["shim"]),
        (
            "http",
            &["http", "intake", "engine", "domain", "store", "app", "config", "queue", "telemetry", "clock"],
        ),
        (
            "engine",
            &[
                "engine",
                "store",
                "intake",
                "agent",
                "git",
                "broker",
                "remote",
                "sandbox",
                "queue",
                "domain",
                "clock",
                "telemetry",
                "app",
                "config",
            ],
        ),
    ]);
    let mut breaches = Vec::new();
    for source in sources() {
        let Some(allowed) = rules.get(module(&source.path)) else { continue };
        for (at, _) in source.code.match_indices("crate::") {
            let used: String =
                source.code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let known = root().join("src").join(format!("{used}.rs")).exists()
                || root().join("src").join(&used).is_dir();
            if known && !allowed.contains(&used.as_str()) {
                breaches.push(format!("{} uses crate::{used}", source.path));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn engine_and_http_know_no_backend() {
    let banned = [
        "octocrab",
        "bollard",
        "redis::",
        "sqlx::",
        "GithubForge",
        "LocalForge",
        "DockerSandbox",
        "ProcessSandbox",
    ];
    let mut breaches = Vec::new();
    for source in sources() {
        if !matches!(module(&source.path), "engine" | "http" | "domain" | "intake" | "agent") {
            continue;
        }
        for word in banned {
            if source.code.contains(word) {
                breaches.push(format!("{} names {word}", source.path));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn the_domain_is_pure() {
    let banned = [
        "tokio",
        "sqlx",
        "reqwest",
        "std::fs",
        "std::env",
        "std::process",
        "std::net",
        "Utc::now",
        "Instant::now",
        "async fn",
        "uuid",
    ];
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|source| module(&source.path) == "domain") {
        for word in banned {
            if source.code.contains(word) {
                breaches.push(format!("{} uses {word}", source.path));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn time_chance_environment_and_programs_have_one_home() {
    // (what, where it may stand)
    let homes: &[(&str, &[&str])] = &[
        ("Utc::now", &["src/clock.rs"]),
        ("SystemTime::now", &["src/shim/"]),
        // Besides ids: names of a probe container and of a file that is renamed at once.
        ("uuid::", &["src/clock.rs", "src/sandbox/docker.rs", "src/sandbox/shim_file.rs"]),
        // Besides configuration: PATH for the programs that are started.
        (
            "env::var",
            &[
                "src/config.rs",
                "src/cli/",
                "src/shim/",
                "src/telemetry.rs",
                "src/git/transport.rs",
                "src/sandbox/process.rs",
            ],
        ),
        // On a thread of its own, while a killed process group goes away.
        ("thread::sleep", &["src/shim/", "src/sandbox/process.rs"]),
        // The process sandbox asks for Git's version: its recipes need it.
        ("Command::new(\"git\")", &["src/git/transport.rs", "src/shim/", "src/sandbox/process.rs"]),
        ("println!", &[]),
        ("dbg!", &[]),
        ("todo!", &[]),
        ("unimplemented!", &[]),
    ];
    let mut breaches = Vec::new();
    for source in sources() {
        for (word, allowed) in homes {
            if source.code.contains(word) && !allowed.iter().any(|home| source.path.starts_with(home)) {
                breaches.push(format!("{} uses {word}", source.path));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn sql_stands_in_the_store_only() {
    let mut breaches = Vec::new();
    for source in sources() {
        // Besides NOTIFY, which reads and writes no table.
        if module(&source.path) == "store" || source.path == "src/queue/postgres.rs" {
            continue;
        }
        for word in ["sqlx::query", "INSERT INTO ", "DELETE FROM ", "UPDATE runs"] {
            if source.code.contains(word) {
                breaches.push(format!("{} has {word}", source.path));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn every_file_says_its_purpose_first() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|source| !source.whole.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    assert!(silent.is_empty(), "no `//!` head: {silent:#?}");
}

#[test]
fn tests_are_never_ignored() {
    let mut paths = Vec::new();
    files(&root().join("src"), ".rs", &mut paths);
    files(&root().join("tests"), ".rs", &mut paths);
    let mut breaches = Vec::new();
    for path in paths.into_iter().filter(|path| !path.ends_with("tidy.rs")) {
        let text = std::fs::read_to_string(&path).unwrap();
        if text.contains("#[ignore") {
            breaches.push(format!("{} ignores a test", path.display()));
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn every_deliberate_breakage_finds_its_place() {
    #[derive(serde::Deserialize)]
    struct List {
        mutant: Vec<Mutant>,
    }
    #[derive(serde::Deserialize)]
    struct Mutant {
        name: String,
        edit: Vec<Edit>,
    }
    #[derive(serde::Deserialize)]
    struct Edit {
        file: String,
        from: String,
    }
    let list: List =
        toml::from_str(&std::fs::read_to_string(root().join("tests/mutants/list.toml")).unwrap()).unwrap();
    let mut lost = Vec::new();
    for mutant in &list.mutant {
        for edit in &mutant.edit {
            let whole = std::fs::read_to_string(root().join(&edit.file)).unwrap();
            let production = whole.find("#[cfg(test)]").map_or(&*whole, |at| &whole[..at]);
            let places = production.matches(&edit.from).count();
            if places != 1 {
                lost.push(format!("{}: {places} places in {} read: {}", mutant.name, edit.file, edit.from));
            }
        }
    }
    assert!(lost.is_empty(), "mend tests/mutants/list.toml:\n{}", lost.join("\n"));
}

#[test]
fn continuous_integration_tests_on_postgres_too() {
    if std::env::var_os("CI").is_some() {
        assert!(
            std::env::var_os("ZEBLIT_TEST_POSTGRES").is_some(),
            "set ZEBLIT_TEST_POSTGRES: `make test` does"
        );
    }
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let mut paths = Vec::new();
    for folder in ["src", "tests", "agents", "skills", "deploy", "migrations", ".github", ".ci"] {
        if root().join(folder).is_dir() {
            files(&root().join(folder), "", &mut paths);
        }
    }
    paths.push(root().join("README.md"));
    let words = [
        concat!("/", "work/"),
        concat!("..", "/shared"),
        concat!("DESIGN", ".md"),
        concat!("SECURITY", ".md section"),
    ];
    let mut breaches = Vec::new();
    for path in paths {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for word in words {
            if text.contains(word) {
                breaches.push(format!("{} mentions {word}", path.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

/// `UPDATE_README=1 cargo test --test tidy` writes it anew.
#[test]
fn the_readme_shows_the_command_table() {
    use std::fmt::Write;
    let (begin, end) = ("<!-- commands:begin", "<!-- commands:end -->");
    let mut table = String::from("\n| Command | What it does | Needs |\n|---|---|---|\n");
    for info in zeblit::domain::command::VERBS {
        let names: Vec<String> = info.names.iter().skip(1).map(|name| format!(" (also `{name}`)")).collect();
        writeln!(
            table,
            "| `{}`{} | {} | {} |",
            info.usage.replace('|', "\\|"),
            names.concat(),
            info.about,
            info.default_role.name()
        )
        .unwrap();
    }
    let path = root().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let start = readme.find(begin).unwrap();
    let start = start + readme[start..].find('\n').unwrap();
    let stop = readme.find(end).unwrap();
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(&path, format!("{}{table}{}", &readme[..start], &readme[stop..])).unwrap();
        return;
    }
    assert_eq!(&readme[start..stop], table, "run UPDATE_README=1 cargo test --test tidy");
}
