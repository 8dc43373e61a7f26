//! The demo's project: a small real one in Python, with a real bug and a test that shows it.

use crate::remote::local::SeedFile;

/// Owner and name on the local forge.
pub const REPO: &str = "demo/inventory";
pub const DESCRIPTION: &str = "A small stock keeper in Python: items, pages, reports";
pub const FIRST_COMMIT: &str = "Inventory with paged reports";

/// The file with the bug, and the line that is wrong.
pub const BUGGY_FILE: &str = "inventory/paging.py";
pub const BUGGY_LINE: &str = "return items // per_page";

macro_rules! seed {
    ($path:literal, $file:literal) => {
        SeedFile { path: $path, content: include_str!(concat!("project/", $file)), executable: false }
    };
    ($path:literal) => {
        seed!($path, $path)
    };
}

pub const FILES: &[SeedFile<'static>] = &[
    seed!("README.md"),
    seed!(".gitignore", "gitignore"),
    seed!("data/stock.csv"),
    seed!("inventory/__init__.py"),
    seed!("inventory/__main__.py"),
    seed!("inventory/paging.py"),
    seed!("inventory/report.py"),
    seed!("inventory/stock.py"),
    seed!("tests/__init__.py"),
    seed!("tests/test_paging.py"),
    seed!("tests/test_report.py"),
    seed!("tests/test_stock.py"),
];

pub const ISSUE_TITLE: &str = "The last page of a report is missing";
pub const ISSUE_BODY: &str = "\
The report leaves out the last items whenever they do not fill a whole page.

### Steps

1. `python3 -m inventory data/stock.csv` with the stock file of this repository: it has 25 items, and a page holds 10.
2. Look at the end of the output.

### What I expect

Three pages; the last one has `sandpaper`, `saw`, `screw`, `tape` and `washer`.

### What I get

```
page 2 of 2

25 items, worth 22174.10
```

The five last items are not printed at all, although the total below counts them. With 5 items there is no page at all.

`python3 -m unittest` shows it too: `test_last_partial_page_counts` fails with `2 != 3`.
";

/// The comment that starts everything.
pub const COMMAND: &str = "/zeblit fix";

/// The agent that checks the pull request, and the comment that asks for it.
pub const VERIFIER: &str = "verify";
pub const VERIFY_COMMAND: &str = "/zeblit run verify";

/// A recipe of the server's own: it runs the pull request's tests, then the tests of the project's first commit (so that
/// a pull request cannot pass by deleting or weakening them), in the same kind of sandbox as the agent. It is read-only:
/// whatever it changes is thrown away.
pub const VERIFIER_FILE: &str = include_str!("verify.md");

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn python(folder: &std::path::Path) -> (bool, String) {
        let done = Command::new("python3")
            .args(["-m", "unittest"])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(folder)
            .output()
            .unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    }

    #[test]
    fn exactly_one_test_fails_and_rounding_up_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        for file in FILES {
            let path = folder.path().join(file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file.content).unwrap();
        }
        let (passed, output) = python(folder.path());
        assert!(!passed && output.contains("failures=1"), "{output}");
        assert!(output.contains("FAIL: test_last_partial_page_counts"), "{output}");
        let file = folder.path().join(BUGGY_FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.matches(BUGGY_LINE).count(), 1);
        std::fs::write(&file, text.replace(BUGGY_LINE, "return -(-items // per_page)")).unwrap();
        let (passed, output) = python(folder.path());
        assert!(passed, "{output}");
    }

    #[test]
    fn the_issue_says_what_the_program_prints() {
        let stock = FILES.iter().find(|file| file.path == "data/stock.csv").unwrap().content;
        assert_eq!(stock.lines().count(), 26, "a header and 25 items");
    }
}
