//! Files that a run leaves for download: collected, scanned, listed, dropped after a while.

use crate::world::docker::steady;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use zeblit::domain::run::RunState;
use zeblit::store;
use zeblit::store::artifacts;

const CONFIG: &str = "artifacts = [\"coverage/**\", \"report.html\"]\n";

/// The repository asks for files.
fn wants_files(w: &World) {
    w.hub.push_commit(REPO, "main", &[(".github/zeblit.toml", CONFIG)], "Keep reports");
}

async fn kept(w: &World, n: u32) -> Vec<(String, i64)> {
    let run = w.nth_run(n).await.id;
    let files = artifacts::files(&w.app.store, &run).await.unwrap();
    files.into_iter().map(|file| (file.path, file.size)).collect()
}

async fn file(w: &World, n: u32, path: &str) -> Option<String> {
    let run = w.nth_run(n).await.id;
    let bytes = artifacts::file(&w.app.store, &run, path).await.unwrap();
    bytes.map(|bytes| String::from_utf8(bytes).unwrap())
}

#[tokio::test]
async fn files_are_kept_beside_the_commits_and_told_with_their_link() {
    World::run(async |w| {
        wants_files(w);
        let script = Script::edit("src/app.py", "def answer():\n    return 42\n")
            .and_edit("coverage/index.html", "<p>100 %</p>")
            .and_edit("docs/report.html", "<h1>Fine</h1>")
            .and_edit("notes.txt", "not asked for\n");
        let number = w.fix(script).await;
        let run = w.nth_run(1).await;
        assert_eq!((run.state, run.outcome.artifacts), (RunState::Succeeded, 2), "{:?}", run.outcome);
        assert_eq!(kept(w, 1).await, [("coverage/index.html".into(), 12), ("docs/report.html".into(), 13)]);
        assert_eq!(file(w, 1, "coverage/index.html").await.as_deref(), Some("<p>100 %</p>"));
        let pull = w.our_pull();
        let head = pull.pull.clone().unwrap().head_ref;
        for (path, is_committed) in [
            ("src/app.py", true),
            ("notes.txt", true),
            ("coverage/index.html", false),
            ("docs/report.html", false),
        ] {
            assert_eq!(w.hub.file_at(REPO, &head, path).is_some(), is_committed, "{path}");
        }
        let sticky = steady(&w.sticky(number));
        assert!(sticky.contains("[2 artifacts](https://zeblit.example/runs/run_0001?SIGNED)"), "{sticky}");
        assert!(
            pull.body.contains("| Kept for download | [2 artifacts](https://zeblit.example/runs/run_0001?e=")
        );
        assert!(pull.body.contains("#artifacts"), "{}", pull.body);
    })
    .await;
}

#[tokio::test]
async fn what_a_stopped_run_left_is_kept_too() {
    World::run(async |w| {
        wants_files(w);
        let script = Script::hangs().and_edit("report.html", "half of it");
        let (number, _) = w.ask("/zeblit fix", script).await;
        w.settle().await;
        w.say(number, "ada", "/zeblit cancel").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
        assert_eq!(kept(w, 1).await, [("report.html".into(), 10)]);
    })
    .await;
}

#[tokio::test]
async fn secrets_are_withheld_or_masked_and_that_is_told_and_audited() {
    World::run(async |w| {
        wants_files(w);
        let own = crate::world::SECRET;
        let token = "ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8";
        let script = Script::edit("coverage/own.txt", &format!("it is {own}"))
            .and_edit("coverage/token.txt", &format!("token={token}"))
            .and_edit("coverage/good.txt", "good");
        let number = w.fix(script).await;
        assert_eq!(kept(w, 1).await, [("coverage/good.txt".into(), 4), ("coverage/token.txt".into(), 14)]);
        assert_eq!(file(w, 1, "coverage/token.txt").await.as_deref(), Some("token=[secret]"));
        let sticky = w.sticky(number);
        assert!(
            sticky.contains("withheld, because they hold a secret of this server: `coverage/own.txt`."),
            "{sticky}"
        );
        assert!(sticky.contains("what looks like a secret is masked: `coverage/token.txt`."), "{sticky}");
        let audit = store::audit::list(&w.app.store, 50).await.unwrap();
        assert!(
            audit
                .iter()
                .any(|entry| entry.action == "artifact.withheld" && entry.detail == "coverage/own.txt")
        );
    })
    .await;
}

#[tokio::test]
async fn a_bad_pack_never_fails_a_run() {
    let forged: &[u8] = b"ZBP1\x01\x07\x00\x00\x00../evil\x01\x00\x00\x00x\x00ZEND";
    let unasked: &[u8] = b"ZBP1\x01\x09\x00\x00\x00src/x.txt\x01\x00\x00\x00x\x00ZEND";
    for (pack, told) in [
        (&b"junk"[..], Some("was not taken: not a pack: it does not begin as one.")),
        (b"ZBP1\x01\xff", Some("was not taken: the pack was cut off.")),
        (forged, Some("Artifacts left out: `../evil` (its name is not plain text or too long).")),
        (unasked, None),
    ] {
        World::run(async |w| {
            wants_files(w);
            let number = w.fix(Script::leaves_pack(pack).and_edit("src/app.py", "x = 1\n")).await;
            assert_eq!(w.state_of(1).await, RunState::Succeeded);
            assert_eq!(kept(w, 1).await, []);
            let sticky = w.sticky(number);
            assert_eq!(sticky.contains("ℹ️"), told.is_some(), "{sticky}");
            assert!(sticky.contains(told.unwrap_or_default()), "{sticky}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_pack_that_is_a_link_is_not_followed() {
    World::run(async |w| {
        wants_files(w);
        // The output folder stands beside the workspace.
        let script = Script::leaves_garbage().and_do(|workspace| {
            let output = workspace.with_file_name("output");
            std::os::unix::fs::symlink("/etc/hostname", output.join("extras.pack")).unwrap();
        });
        let number = w.fix(script).await;
        assert_eq!(w.state_of(1).await, RunState::Failed);
        let sticky = w.sticky(number);
        assert!(sticky.contains("`extras.pack` is not a regular file"), "{sticky}");
    })
    .await;
}

#[tokio::test]
async fn kept_files_go_after_their_time() {
    World::run_with(
        |config| config.retention.artifacts_days = 2,
        async |w| {
            wants_files(w);
            w.fix(Script::edit("report.html", "x")).await;
            assert_eq!(kept(w, 1).await.len(), 1);
            w.clock.advance(chrono::Duration::hours(47));
            w.settle().await;
            assert_eq!(kept(w, 1).await.len(), 1);
            w.clock.advance(chrono::Duration::hours(2));
            w.settle().await;
            assert_eq!(kept(w, 1).await, []);
        },
    )
    .await;
}

#[tokio::test]
async fn a_crash_on_the_way_keeps_each_once() {
    for nth in (60..420).step_by(45) {
        World::run(async |w| {
            wants_files(w);
            let script =
                Script::edit("report.html", "x").and_edit("coverage/a", "a").and_edit("b.txt", "b\n");
            w.sandbox.usually(script);
            let number = w.issue();
            w.say(number, "ada", "/zeblit fix").await;
            w.dies_at_wait(nth).await;
            w.restart().await;
            w.settle().await;
            // Found by count, not by id: a process that dies before its commit has used up ids.
            let run = w.runs().await.remove(0);
            assert_eq!((run.state, run.outcome.artifacts), (RunState::Succeeded, 2), "died at wait {nth}");
            let files = artifacts::files(&w.app.store, &run.id).await.unwrap();
            let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
            assert_eq!(paths, ["coverage/a", "report.html"], "died at wait {nth}");
            assert_eq!(run.outcome.notes, [""; 0], "died at wait {nth}");
        })
        .await;
    }
}

#[tokio::test]
async fn the_real_shim_and_the_real_collector_pack_the_same() {
    const WRITES: &str = "import os, time\nos.makedirs('coverage')\nopen('coverage/a.txt', 'w').write('half')\n\
                          os.symlink('/etc/passwd', 'coverage/link')\nopen('b.txt', 'w').write('b')\nprint('WRITTEN')\n";
    World::run_in_docker(
        |_| {},
        async |w| {
            wants_files(w);
            let stays = format!("{WRITES}time.sleep(600)");
            let number = w.recipe_says("stays", &stays, "WRITTEN").await;
            w.say(number, "ada", "/zeblit cancel").await;
            w.settle().await;
            w.recipe("ends", WRITES);
            let other = w.issue();
            w.say(other, "ada", "/zeblit run ends").await;
            w.settle().await;
            for (n, number, state) in [(1, number, RunState::Cancelled), (2, other, RunState::Succeeded)] {
                let run = w.nth_run(n).await;
                assert_eq!(run.state, state, "{:?} {}", run.outcome, w.log(n).await);
                assert_eq!(file(w, n, "coverage/a.txt").await.as_deref(), Some("half"));
                assert_eq!(kept(w, n).await.len(), 1);
                let note = "Artifacts left out: `coverage/link` (not a plain file).";
                assert_eq!(run.outcome.notes, [note]);
                assert!(w.sticky(number).contains("[1 artifact]("), "{}", w.sticky(number));
                let branch = run.outcome.branch.expect("work was done").to_string();
                assert!(w.hub.file_at(REPO, &branch, "b.txt").is_some());
                assert!(w.hub.file_at(REPO, &branch, "coverage/a.txt").is_none());
            }
        },
    )
    .await;
}
