//! Recipes: any argv run in the workspace, without a model.

use super::{AgentError, Launch, LaunchContext};

/// The element of `argv` that the words of the request take the place of.
pub const ARGS: &str = "{args}";
/// Words of one request; more are refused.
pub const MAX_WORDS: usize = 200;
/// Bytes of the words of one request.
pub const MAX_WORDS_BYTES: usize = 16 * 1024;

/// What must hold for the `argv` of an agent file.
pub fn check_argv(argv: &[String]) -> Result<(), String> {
    let Some(program) = argv.first() else {
        return Err("is empty; `adapter: command` needs the program and its arguments".into());
    };
    if program.is_empty() || program.contains(ARGS) {
        return Err("must begin with a program; `{args}` cannot choose it".into());
    }
    for element in argv {
        if element.contains('\0') {
            return Err("has an element with a NUL character".into());
        }
        if element != ARGS && element.contains(ARGS) {
            return Err("has `{args}` inside a longer element; write it as an element of its own".into());
        }
    }
    Ok(())
}

/// The recipe's argv with the words of the request in place of `{args}`, each an argument of its own.
pub(super) fn launch(context: &LaunchContext<'_>) -> Result<Launch, AgentError> {
    let spec = context.spec;
    check_argv(&spec.argv).map_err(|problem| AgentError::Definition {
        agent: spec.name.clone(),
        path: spec.source.clone(),
        problem: format!("`argv` {problem}"),
    })?;
    let mut notes = Vec::new();
    let takes_words = spec.argv.iter().any(|element| element == ARGS);
    let words = if takes_words {
        words(context.args)
            .map_err(|problem| AgentError::Words { agent: spec.name.clone(), problem: problem.into() })?
    } else {
        if !context.args.trim().is_empty() {
            notes.push(format!(
                "The recipe `{}` takes no words; those of the request were not used.",
                spec.name
            ));
        }
        Vec::new()
    };
    let mut argv = Vec::with_capacity(spec.argv.len() + words.len());
    for element in &spec.argv {
        if element == ARGS {
            argv.extend(words.iter().cloned());
        } else {
            argv.push(element.clone());
        }
    }
    // The locale makes tools print UTF-8; everything else is the image's and the shim's.
    let env = vec![("LANG".to_owned(), "C.UTF-8".to_owned())];
    Ok(Launch { argv, env, notes, ..Launch::default() })
}

/// Splits at white space; `'…'` and `"…"` keep words together. No other character has a meaning: this is not a shell.
pub fn words(text: &str) -> Result<Vec<String>, &'static str> {
    if text.len() > MAX_WORDS_BYTES {
        return Err("are too long; use fewer");
    }
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '\0' => return Err("hold a NUL character; remove it"),
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("have a quote that is not closed; close it");
    }
    words.extend(word);
    if words.len() > MAX_WORDS {
        return Err("are too many; use fewer");
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err("hold a NUL character; remove it");
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::super::super::definition::AgentSet;
    use super::super::super::{AdapterKind, AgentSpec};
    use super::*;
    use crate::domain::run::RunMode;
    use std::path::Path;
    use std::process::Command;

    fn spec(argv: &[&str]) -> AgentSpec {
        AgentSpec {
            name: "x".into(),
            description: "x".into(),
            adapter: AdapterKind::Command,
            model: None,
            argv: argv.iter().map(|element| (*element).to_owned()).collect(),
            tools: vec![],
            skills: vec![],
            read_only: false,
            minutes: None,
            budget_micros: None,
            needs: vec![],
            system_prompt: String::new(),
            source: "agents/x.md".into(),
        }
    }

    fn launched(spec: &AgentSpec, args: &str) -> Result<Launch, AgentError> {
        super::super::launch(&LaunchContext {
            spec,
            skills: &[],
            mode: RunMode::Change,
            model: None,
            prompt: "",
            args,
            workspace: Path::new("/w"),
            home: Path::new("/h"),
        })
    }

    #[test]
    fn words_become_arguments_of_their_own_and_never_code() {
        for (text, expected) in [
            ("", vec![]),
            ("  a  b\tc\n", vec!["a", "b", "c"]),
            ("'a b' \"c 'd'\"", vec!["a b", "c 'd'"]),
            ("a'b c'd", vec!["ab cd"]),
            ("'' x", vec!["", "x"]),
            (
                "$(rm -rf /) `x` a;b |c \\d $HOME *",
                vec!["$(rm", "-rf", "/)", "`x`", "a;b", "|c", "\\d", "$HOME", "*"],
            ),
            ("{args}", vec!["{args}"]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        for bad in ["'a", "\"", "a\0b", "'\0'", &"a ".repeat(MAX_WORDS + 1), &"a".repeat(MAX_WORDS_BYTES + 1)]
        {
            assert!(words(bad).is_err(), "{bad:.20}");
        }
        let launch = launched(&spec(&["ls", "--", "{args}", "end"]), "'a b' $(id)").unwrap();
        assert_eq!(launch.argv, ["ls", "--", "a b", "$(id)", "end"]);
        assert!(!launch.needs_model && launch.notes.is_empty());
        assert_eq!(launched(&spec(&["ls", "{args}"]), "").unwrap().argv, ["ls"]);
    }

    #[test]
    fn words_that_a_recipe_does_not_take_are_mentioned() {
        let launch = launched(&spec(&["ls"]), "a b").unwrap();
        assert_eq!(launch.argv, ["ls"]);
        assert_eq!(launch.notes, ["The recipe `x` takes no words; those of the request were not used."]);
        let error = launched(&spec(&["ls", "{args}"]), "'a").unwrap_err().to_string();
        assert_eq!(error, "agent `x`: the words of the request have a quote that is not closed; close it");
    }

    fn git(folder: &Path, arguments: &[&str]) -> String {
        let done = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(arguments)
            .current_dir(folder)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// A repository with these files, and what a built-in recipe did to it: success and output.
    fn played(recipe: &str, args: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, bool, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for (name, text) in files {
            let file = path.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        git(path, &["init", "--quiet"]);
        git(path, &["add", "."]);
        git(path, &["commit", "--quiet", "-m", "start"]);
        let set = AgentSet::builtin().unwrap();
        let launch = launched(set.agent(recipe).unwrap(), args).unwrap();
        let done = Command::new(&launch.argv[0])
            .args(&launch.argv[1..])
            .current_dir(path)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        let output =
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        (folder, done.status.success(), output)
    }

    const PAGING: &str = "def page_count(items: int, per_page: int) -> int:\n    \"\"\"Pages — all of them.\"\"\"\n    return items // per_page\n\n\ndef half(n):\n    return n // 2\n";
    const TEST: &str = "import unittest\nfrom inventory.paging import page_count, half\n\nclass Paging(unittest.TestCase):\n    def test_full_pages(self):\n        self.assertEqual(page_count(20, 10), 2)\n        self.assertEqual(half(3), 1)\n\n    def test_last_partial_page_counts(self):\n        self.assertEqual(page_count(21, 10), 3)\n";

    #[test]
    fn the_demo_recipe_mends_the_bug_proves_it_and_commits() {
        let (folder, ok, output) = played(
            "demo-fix",
            "",
            &[
                ("inventory/__init__.py", ""),
                ("inventory/paging.py", PAGING),
                ("tests/__init__.py", ""),
                ("tests/test_paging.py", TEST),
            ],
        );
        assert!(ok, "{output}");
        assert!(output.contains("failing: test_last_partial_page_counts"), "{output}");
        assert!(output.contains("not an AI"), "{output}");
        let mended = std::fs::read_to_string(folder.path().join("inventory/paging.py")).unwrap();
        assert_eq!(mended, PAGING.replace("items // per_page", "-(-items // per_page)"));
        assert_eq!(git(folder.path(), &["status", "--porcelain"]), "");
        assert_eq!(git(folder.path(), &["log", "--format=%s"]), "Round up in page_count\nstart");
    }

    #[test]
    fn the_demo_recipe_says_when_it_cannot_help_and_leaves_no_trace() {
        let other = TEST
            .replace("half(3), 1", "half(3), 7")
            .replace("page_count(21, 10), 3", "page_count(21, 10), 99");
        let (folder, ok, output) = played(
            "demo-fix",
            "",
            &[
                ("inventory/__init__.py", ""),
                ("inventory/paging.py", PAGING),
                ("tests/__init__.py", ""),
                ("tests/test_paging.py", &other),
            ],
        );
        assert!(!ok, "{output}");
        assert!(output.contains("FAILED: no change that this codemod knows"), "{output}");
        assert_eq!(std::fs::read_to_string(folder.path().join("inventory/paging.py")).unwrap(), PAGING);
        assert_eq!(git(folder.path(), &["log", "--format=%s"]), "start");
        let passing = TEST.replace("page_count(21, 10), 3", "page_count(21, 10), 2");
        let (_folder, ok, output) = played(
            "demo-fix",
            "",
            &[
                ("inventory/__init__.py", ""),
                ("inventory/paging.py", PAGING),
                ("tests/__init__.py", ""),
                ("tests/test_paging.py", &passing),
            ],
        );
        assert!(ok && output.contains("nothing to mend"), "{output}");
    }

    #[test]
    fn the_format_recipe_says_what_is_missing_and_takes_only_inner_paths() {
        let (_folder, ok, output) = played("format", "", &[("a.txt", "x")]);
        assert!(!ok && output.contains("no formatter is set up"), "{output}");
        for path in ["/etc", "../x", "--config=x"] {
            let (_folder, ok, output) = played("format", path, &[("a.txt", "x")]);
            assert!(!ok && output.contains("not a path inside the repository"), "{output}");
        }
        let manifest = "[package]\nname = \"x\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        let (folder, ok, output) =
            played("format", "", &[("Cargo.toml", manifest), ("src/main.rs", "fn  main( ){}\n")]);
        assert!(ok && output.contains("cargo fmt --all"), "{output}");
        assert_eq!(std::fs::read_to_string(folder.path().join("src/main.rs")).unwrap(), "fn main() {}\n");
    }
}
