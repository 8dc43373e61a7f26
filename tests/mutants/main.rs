//! Deliberate breakages of this program, each of which must turn a named test red: `make prove-mutants`.
//!
//! All mutants of `list.toml` are written into one copy of the tree, each behind a switch that reads a variable. The copy
//! is built once; then the named tests run without a mutant (all green) and once with each (all red).
//!
//! `cargo test --test mutants -- [--list] [--only NAME]…`

#![expect(clippy::print_stdout, reason = "a program that tells its result")]

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Says which mutant is on. Not one of the program's own variables: those are refused when they are unknown.
const VARIABLE: &str = "MUTANT_ON";
/// A test that takes longer hangs, which is red, too.
const LONGEST: Duration = Duration::from_secs(75);
/// Tests that run side by side: each waits for the disk most of the time.
const SIDE_BY_SIDE: usize = 3;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    about: String,
    tests: Vec<String>,
    edit: Vec<Edit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: String,
    #[serde(default)]
    kind: Kind,
    from: String,
    to: String,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Expression,
    Statement,
    After,
    Whole,
}

/// Edits of one place, in the order of the list.
struct Place<'a> {
    at: usize,
    from: &'a str,
    edits: Vec<(&'a str, &'a Edit)>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn read_list() -> Result<List, String> {
    let path = root().join("tests/mutants/list.toml");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let list: List = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut names = BTreeSet::new();
    for mutant in &list.mutant {
        if !names.insert(&mutant.name) || mutant.tests.is_empty() || mutant.edit.is_empty() {
            return Err(format!("mutant `{}` needs a name of its own, tests and edits", mutant.name));
        }
    }
    Ok(list)
}

fn on(name: &str) -> String {
    format!("crate::mutant({name:?})")
}

/// The files that some mutant changes, changed.
fn mutate(list: &List) -> Result<BTreeMap<&str, String>, Vec<String>> {
    let mut wrong = Vec::new();
    let mut places: BTreeMap<&str, Vec<Place<'_>>> = BTreeMap::new();
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for mutant in &list.mutant {
        for edit in &mutant.edit {
            let text = texts
                .entry(&edit.file)
                .or_insert_with(|| std::fs::read_to_string(root().join(&edit.file)).unwrap_or_default());
            // What stands in a file's own tests is not mutated.
            let code = text.find("#[cfg(test)]").map_or(text.as_str(), |end| &text[..end]);
            let found: Vec<usize> = code.match_indices(&edit.from).map(|(at, _)| at).collect();
            let [at] = found[..] else {
                wrong.push(format!(
                    "mutant `{}`: {} has {} places that read as follows, not one:\n{}",
                    mutant.name,
                    edit.file,
                    found.len(),
                    edit.from
                ));
                continue;
            };
            let of_file = places.entry(&edit.file).or_default();
            match of_file.iter_mut().find(|place| place.at == at && place.from == edit.from) {
                Some(place) => place.edits.push((&mutant.name, edit)),
                None => {
                    of_file.push(Place { at, from: &edit.from, edits: vec![(&mutant.name, edit)] });
                }
            }
        }
    }
    for (file, places) in &mut places {
        places.sort_by_key(|place| place.at);
        for pair in places.windows(2) {
            if pair[0].at + pair[0].from.len() > pair[1].at {
                wrong.push(format!(
                    "{file}: the places of `{}` and `{}` overlap",
                    pair[0].edits[0].0, pair[1].edits[0].0
                ));
            }
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    for (file, places) in places {
        let Some(text) = texts.get_mut(file) else { continue };
        for place in places.iter().rev() {
            text.replace_range(place.at..place.at + place.from.len(), &switched(place));
        }
    }
    Ok(texts)
}

/// What stands at a place in the copy: the original, unless a mutant of this place is on.
fn switched(place: &Place<'_>) -> String {
    let mut chain = String::new();
    let mut after = String::new();
    let mut whole = None;
    let mut paren = false;
    for (name, edit) in &place.edits {
        match edit.kind {
            Kind::After => {
                let _ = write!(after, "\nif {} {{ {} }}", on(name), edit.to);
            }
            Kind::Whole => whole = Some(edit.to.replace("{{on}}", &on(name))),
            Kind::Expression | Kind::Statement => {
                paren |= edit.kind == Kind::Expression;
                let _ = write!(chain, "if {} {{ {} }} else ", on(name), edit.to);
            }
        }
    }
    let body = match whole {
        Some(whole) => whole,
        None if chain.is_empty() => place.from.to_owned(),
        None if paren => format!("({chain}{{ {} }})", place.from),
        None => format!("{chain}{{ {} }}", place.from),
    };
    body + &after
}

/// The copy of the tree. A file that is as it was keeps its time, so that a second build is short.
fn copy(tree: &Path, mutated: &BTreeMap<&str, String>) -> Result<(), String> {
    let listed = Command::new("git")
        .current_dir(root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .output()
        .map_err(|error| format!("git: {error}"))?;
    let names: Vec<String> = String::from_utf8_lossy(&listed.stdout)
        .split('\0')
        .filter(|name| !name.is_empty() && root().join(name).is_file())
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err("git lists no files: this needs a checkout".into());
    }
    let mut wanted = BTreeSet::new();
    for name in &names {
        let mut bytes = match mutated.get(name.as_str()) {
            Some(text) => text.clone().into_bytes(),
            None => std::fs::read(root().join(name)).map_err(|error| format!("{name}: {error}"))?,
        };
        if name == "src/lib.rs" {
            bytes.splice(..0, QUIET.bytes());
            bytes.extend_from_slice(SWITCH.as_bytes());
        }
        if name == "Cargo.toml" || name == "Cargo.lock" {
            bytes = renumber(&String::from_utf8_lossy(&bytes))?.into_bytes();
        }
        let path = tree.join(name);
        wanted.insert(path.clone());
        if std::fs::read(&path).is_ok_and(|old| old == bytes) {
            continue;
        }
        let folder = path.parent().ok_or("a file in no folder")?;
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, bytes))
            .and_then(|()| {
                let mode = std::fs::metadata(root().join(name))?.permissions();
                std::fs::set_permissions(&path, mode)
            })
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    remove_others(tree, &wanted).map_err(|error| format!("{}: {error}", tree.display()))
}

/// Another version than the tree's: what Cargo builds of the copy lies beside what it built of the tree, and neither is
/// taken for the other.
fn renumber(text: &str) -> Result<String, String> {
    let version = concat!("name = \"zeblit\"\nversion = \"", env!("CARGO_PKG_VERSION"), "\"");
    if text.matches(version).count() != 1 {
        return Err("Cargo.toml or Cargo.lock does not name this package and its version in two lines".into());
    }
    let other = version.trim_end_matches('"').to_owned() + "+mutants\"";
    Ok(text.replace(version, &other))
}

fn remove_others(folder: &Path, wanted: &BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) && path.file_name().is_some_and(|name| name != "Cargo.lock") {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Stands before the library of the copy: a switch is put in brackets wherever it stands.
const QUIET: &str = "#![allow(unused_parens)]\n";
/// Added to the library of the copy.
const SWITCH: &str = r#"
/// Whether this mutant is on.
#[doc(hidden)]
pub fn mutant(name: &str) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("MUTANT_ON").ok()).as_deref() == Some(name)
}
"#;

/// Builds the scenario tests of the copy with the dependencies that are built already; gives their program.
fn build(tree: &Path) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target())
        .args([
            "test",
            "--no-run",
            "--offline",
            "--test",
            "it",
            "--message-format",
            "json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !built.status.success() {
        return Err("the mutated tree does not compile: see above; a text in list.toml is wrong".into());
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message.pointer("/target/name").is_some_and(|name| name == "it"))
        .find_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .ok_or_else(|| "cargo names no program of the scenario tests".into())
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Green,
    Red,
    /// Stopped after `LONGEST`.
    Hung,
}

fn run(program: &Path, tree: &Path, test: &str, mutant: Option<&str>) -> Result<End, String> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.current_dir(tree).args(["--exact", test]).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("RUST_BACKTRACE", "0").env("INSTA_UPDATE", "no").env_remove(VARIABLE);
    if let Some(mutant) = mutant {
        command.env(VARIABLE, mutant);
    }
    // Its own group: what it started ends with it.
    let mut child = command.process_group(0).spawn().map_err(|error| format!("{test}: {error}"))?;
    let begun = Instant::now();
    loop {
        match child.try_wait().map_err(|error| format!("{test}: {error}"))? {
            Some(status) if status.success() => return Ok(End::Green),
            Some(_) => return Ok(End::Red),
            None if begun.elapsed() > LONGEST => {
                let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
                let _ = child.wait();
                return Ok(End::Hung);
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Runs every pair of test and mutant, some side by side, in order of the list.
fn run_all<'a>(program: &Path, tree: &Path, jobs: &[(&'a str, Option<&'a str>)]) -> Result<Vec<End>, String> {
    let next = Mutex::new(0_usize);
    let ends = Mutex::new(vec![None; jobs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let at = {
                        let mut next = next.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        *next += 1;
                        *next - 1
                    };
                    let Some((test, mutant)) = jobs.get(at) else { return };
                    let end = run(program, tree, test, *mutant);
                    ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[at] = Some(end);
                }
            });
        }
    });
    let ends = ends.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    ends.into_iter().map(|end| end.unwrap_or_else(|| Err("a test was not run".into()))).collect()
}

/// Tests that the program does not have would be green for ever.
fn check_names(program: &Path, tree: &Path, tests: &BTreeSet<&str>) -> Result<(), String> {
    let listed = Command::new(program)
        .current_dir(tree)
        .arg("--list")
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let known: BTreeSet<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let unknown: Vec<&&str> = tests.difference(&known).collect();
    if unknown.is_empty() { Ok(()) } else { Err(format!("there are no such tests: {unknown:?}")) }
}

fn prove(list: &List, only: &[String]) -> Result<bool, String> {
    let mutated = mutate(list).map_err(|wrong| wrong.join("\n"))?;
    let chosen: Vec<&Mutant> =
        list.mutant.iter().filter(|mutant| only.is_empty() || only.contains(&mutant.name)).collect();
    if chosen.is_empty() {
        return Err(format!("there is no mutant {only:?}"));
    }
    let tree = target().join("mutants/tree");
    std::fs::create_dir_all(&tree).map_err(|error| format!("{}: {error}", tree.display()))?;
    copy(&tree, &mutated)?;
    let program = build(&tree)?;
    let tests: BTreeSet<&str> =
        chosen.iter().flat_map(|mutant| mutant.tests.iter().map(String::as_str)).collect();
    check_names(&program, &tree, &tests)?;
    let plain: Vec<_> = tests.iter().map(|test| (*test, None)).collect();
    for ((test, _), end) in plain.iter().zip(run_all(&program, &tree, &plain)?) {
        if end != End::Green {
            return Err(format!("without any mutant, {test} is {end:?}"));
        }
    }
    let jobs: Vec<_> = chosen
        .iter()
        .flat_map(|mutant| mutant.tests.iter().map(|test| (test.as_str(), Some(mutant.name.as_str()))))
        .collect();
    let mut survived = BTreeSet::new();
    for ((test, mutant), end) in jobs.iter().zip(run_all(&program, &tree, &jobs)?) {
        let mutant = mutant.unwrap_or_default();
        let word = match end {
            End::Green => "SURVIVED",
            End::Red => "killed",
            End::Hung => "hung",
        };
        if end == End::Green {
            survived.insert(mutant);
        }
        println!("{word:<9} {mutant:<36} {test}");
    }
    println!("prove-mutants: {} of {} killed", chosen.len() - survived.len(), chosen.len());
    Ok(survived.is_empty())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut listed, mut only) = (false, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => listed = true,
            "--only" => only.extend(arguments.next()),
            // What a test runner adds for all programs.
            _ => {}
        }
    }
    let result = read_list().and_then(|list| {
        if listed {
            for mutant in &list.mutant {
                println!("{:<36} {}", mutant.name, mutant.about);
            }
            return mutate(&list).map(|_| true).map_err(|wrong| wrong.join("\n"));
        }
        prove(&list, &only)
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("prove-mutants: {error}");
            ExitCode::FAILURE
        }
    }
}
