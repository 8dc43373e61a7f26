//! `zeblit demo` and `zeblit run` as people start them: the real program, real Docker, real Git.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::path::Path;
use std::process::{Command, Output};

const NO_ENGINE: &str = "unix:///nowhere/docker.sock";

fn zeblit(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeblit"));
    command.current_dir(folder).stdin(std::process::Stdio::null());
    // The machine's own settings must not decide a test.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name == "ANTHROPIC_API_KEY" || name.starts_with("ZEBLIT_") {
            command.env_remove(name);
        }
    }
    command
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let done = Command::new("git")
        .args(["-c", "user.name=a", "-c", "user.email=a@localhost"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(done.status.success(), "git {arguments:?}: {}", text(&done));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// A repository with the kind of bug that the recipe `demo-fix` mends.
fn repository(folder: &Path) {
    let files = [
        ("boxes.py", "def box_count(things, size):\n    return things // size\n"),
        (
            "test_boxes.py",
            "import unittest\nfrom boxes import box_count\n\n\nclass Boxes(unittest.TestCase):\n    def test_rest(self):\n        self.assertEqual(box_count(7, 3), 3)\n",
        ),
        (".gitignore", "__pycache__/\n"),
    ];
    for (name, content) in files {
        std::fs::write(folder.join(name), content).unwrap();
    }
    git(folder, &["init", "--quiet", "--initial-branch", "trunk"]);
    git(folder, &["add", "."]);
    git(folder, &["commit", "--quiet", "-m", "Boxes"]);
}

fn demo_ends_well(sandbox: &str) {
    let folder = tempfile::tempdir().unwrap();
    let output = zeblit(folder.path())
        .args(["demo", "--once", "--listen", "127.0.0.1:0", "--sandbox", sandbox])
        .output()
        .unwrap();
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    for wanted in [
        "answered 202",
        "demo-fix",
        "-    return items // per_page",
        "+    return -(-items // per_page)",
        "The pull request is correct and its tests pass.",
        "/forge/demo/inventory/pull/2",
    ] {
        assert!(shown.contains(wanted), "{wanted} is missing in {shown}");
    }
    assert!(!shown.contains('\u{1b}'), "no colours into a pipe: {shown}");
}

#[test]
fn the_demo_ends_with_a_correct_pull_request_in_docker() {
    demo_ends_well("docker");
}

#[test]
fn the_demo_ends_with_a_correct_pull_request_without_docker() {
    demo_ends_well("process");
}

#[test]
fn without_an_engine_the_demo_says_so_and_uses_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let output = zeblit(folder.path())
        .env("ZEBLIT_SANDBOX__DOCKER_HOST", NO_ENGINE)
        .args(["demo", "--once", "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("a plain process without isolation: Docker does not answer"), "{shown}");
}

#[test]
fn the_demo_deletes_no_folder_that_is_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    let output = zeblit(folder.path()).args(["demo", "--once", "--dir", "."]).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("was not made by the demo"), "{}", text(&output));
    assert!(folder.path().join("thesis.txt").exists());
}

#[test]
fn a_run_leaves_a_branch_and_touches_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    repository(folder.path());
    // Work in progress must survive.
    std::fs::write(folder.path().join("notes.txt"), "draft\n").unwrap();
    std::fs::write(folder.path().join("boxes.py"), "# half done\n").unwrap();
    let head = git(folder.path(), &["rev-parse", "HEAD"]);
    let output = zeblit(folder.path()).args(["run", "--agent", "demo-fix"]).output().unwrap();
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("+    return -(-things // size)"), "{shown}");

    let branches = git(folder.path(), &["for-each-ref", "--format=%(refname:short)", "refs/heads"]);
    let made: Vec<&str> = branches.lines().filter(|name| name.starts_with("zeblit/")).collect();
    assert_eq!(made.len(), 1, "{branches}");
    let branch = made.first().unwrap();
    assert_eq!(git(folder.path(), &["merge-base", "trunk", branch]), head);
    let fixed = git(folder.path(), &["show", &format!("{branch}:boxes.py")]);
    assert!(fixed.contains("-(-things // size)"), "{fixed}");
    assert_eq!(git(folder.path(), &["rev-parse", "HEAD"]), head);
    assert_eq!(git(folder.path(), &["symbolic-ref", "HEAD"]), "refs/heads/trunk");
    assert_eq!(std::fs::read_to_string(folder.path().join("boxes.py")).unwrap(), "# half done\n");
    assert_eq!(git(folder.path(), &["status", "--porcelain"]), "M boxes.py\n?? notes.txt");
}

#[test]
fn a_run_that_is_refused_or_fails_says_why_and_keeps_its_state() {
    let folder = tempfile::tempdir().unwrap();
    repository(folder.path());
    let state = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 2] = [
        (&["run", "--agent", "nonsense", "x"], "nonsense"),
        (&["run", "--agent", "format", "/etc"], "not a path inside the repository: /etc"),
    ];
    for (arguments, wanted) in cases {
        let output = zeblit(folder.path()).env("TMPDIR", state.path()).args(arguments).output().unwrap();
        let shown = text(&output);
        assert!(!output.status.success(), "{shown}");
        assert!(shown.contains(wanted), "{arguments:?}: {shown}");
        assert!(shown.contains("State and server log are kept"), "{shown}");
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 2);
    assert!(!git(folder.path(), &["for-each-ref"]).contains("zeblit/"));
}

#[test]
fn a_run_that_cannot_start_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    repository(folder.path());
    let state = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str, &str); 4] = [
        (&["run", "add a flag"], "", "hint: set ANTHROPIC_API_KEY, or name a recipe"),
        (&["run", "--agent", "demo-fix"], NO_ENGINE, "hint: sudo apt-get install docker.io"),
        (&["run", "--repo", "nowhere", "x"], "", "nowhere is not there"),
        (&["run", "--agent", "demo-fix", "--repo", ".git/refs"], "", "is not a Git repository"),
    ];
    for (arguments, engine, wanted) in cases {
        let mut command = zeblit(folder.path());
        if !engine.is_empty() {
            command.env("ZEBLIT_SANDBOX__DOCKER_HOST", engine);
        }
        let output = command.env("TMPDIR", state.path()).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output).contains(wanted), "{arguments:?}: {}", text(&output));
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "nothing began, nothing is left");
    assert!(!git(folder.path(), &["for-each-ref"]).contains("zeblit/"));
}
