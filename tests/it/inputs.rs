//! What an agent is given besides text: attached files, what failed checks say, and who may be believed.

use crate::world::hub::Fault;
use crate::world::hub::state::{Check, Level};
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use zeblit::broker::tools::{CONTEXT_PART, Section};
use zeblit::config::Config;
use zeblit::domain::run::RunState;
use zeblit::sandbox::{Duty, Job};
use zeblit::store;

/// An agent with a model: recipes are given nothing.
fn with_model(config: &mut Config) {
    config.agents.fix = "fixer".into();
    config.models.anthropic_api_key = Some("sk-ant-test-key-of-the-test-world".into());
}

/// What the nth agent was started with.
struct Given {
    job: Job,
    prompt: String,
}

impl Given {
    fn file(&self, path: &str) -> Option<&[u8]> {
        self.job.home_files.iter().find(|(name, _)| name == path).map(|(_, bytes)| bytes.as_slice())
    }

    fn text(&self, path: &str) -> String {
        let bytes = self.file(path).unwrap_or_else(|| panic!("no {path}: {:?}", self.attached()));
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    fn attached(&self) -> Vec<&str> {
        let names = self.job.home_files.iter().map(|(name, _)| name.as_str());
        names.filter(|name| name.starts_with("attachments/") || name.starts_with("context/")).collect()
    }
}

fn given(w: &World, n: usize) -> Given {
    let job = match &w.sandbox.started()[n].duty {
        Duty::Agent(job) => job.clone(),
        Duty::Collect(_) => panic!("start {n} is a collector"),
    };
    let prompt = String::from_utf8(job.stdin.clone()).expect("a prompt is text");
    Given { job, prompt }
}

/// A part of what the tool `context` tells.
async fn part(w: &World, run: u32, name: &str) -> Option<String> {
    let run = w.nth_run(run).await;
    let stored = store::artifacts::get(&w.app.store, &run.id, CONTEXT_PART).await.expect("read");
    let sections: Vec<Section> = serde_json::from_slice(&stored.expect("stored")).expect("sections");
    sections.into_iter().find(|section| section.part == name).map(|section| section.text)
}

async fn log(w: &World, run: u32) -> String {
    let run = w.nth_run(run).await;
    let chunks = store::logs::read(&w.app.store, &run.id, 0, 100).await.expect("read");
    chunks.into_iter().map(|chunk| chunk.text).collect()
}

/// A picture of this size, as far as anybody looks.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend(b"\x08\x06\0\0\0");
    bytes
}

fn tick(w: &World) {
    w.clock.advance(Duration::seconds(1));
}

/// Credentials that went to the storage: must be none.
fn leaked(w: &World) -> Vec<String> {
    let seen = w.hub.requests().into_iter();
    seen.filter(|seen| seen.authorized && (seen.path.starts_with("/blob/") || seen.path.starts_with("/log/")))
        .map(|seen| seen.path)
        .collect()
}

#[tokio::test]
async fn attached_images_and_logs_reach_the_agent_as_files_with_their_authors_trust() {
    World::run_with(with_model, async |w| {
        let shot = w.hub.attach(None, &png(640, 480));
        let crash = w.hub.attach(Some("Crash%20Report.log"), b"\x1b[31mboom\x1b[0m at\xe2\x80\x8b line 3\n");
        let seen = w.hub.attach(None, b"GIF89a\x10\0\x10\0");
        let number = w.hub.open_issue(
            REPO,
            "bob",
            "It crashes",
            &format!("Look: <img width=\"64\" alt=\"x\" src=\"{shot}\" />\n\n[crash.log]({crash})\n\n<!-- {seen} -->"),
        );
        let own = w.hub.attach(Some("fix.patch"), b"--- a/x\n+++ b/x\n");
        w.hub.comment(REPO, number, "max", &format!("Same here: {seen}"));
        tick(w);
        w.say(number, "ada", &format!("/zeblit fix it\n\nwith this:\n\n[fix.patch]({own})")).await;
        w.settle().await;
        let given = given(w, 0);
        assert_eq!(
            given.attached(),
            [
                "attachments/01-fix.patch",
                "attachments/02-image.png",
                "attachments/03-crash-20report.log",
                "attachments/04-image.gif"
            ]
        );
        assert_eq!(given.file("attachments/02-image.png"), Some(png(640, 480).as_slice()));
        assert_eq!(given.text("attachments/03-crash-20report.log"), "boom at line 3\n");
        for told in [
            "attached to the request by @ada (may write to this repository) -----",
            "attached to the issue by @bob (may not write here: untrusted) -----",
            "attached to a message by @max (may write to this repository) -----",
            "/attachments/02-image.png\nPNG image, 640 x 480, 29 bytes\nfrom http://",
            "/attachments/01-fix.patch\ntext, 16 bytes\n",
        ] {
            assert!(given.prompt.contains(told), "{told}: {}", given.prompt);
        }
        let told = part(w, 1, "attachments").await.expect("there");
        assert!(told.contains("01-fix.patch") && told.contains("by @bob"), "{told}");
        // As a stranger: everybody may see what is attached here.
        let asked = w.hub.requests().into_iter().filter(|seen| seen.path.starts_with("/user-attachments/"));
        assert_eq!(asked.map(|seen| seen.authorized).collect::<Vec<_>>(), [false; 4]);
        assert_eq!(leaked(w), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn what_was_attached_or_put_in_after_the_command_is_not_fetched() {
    World::run_with(with_model, async |w| {
        let (before, later, edited) =
            (w.hub.attach(None, &png(1, 1)), w.hub.attach(None, &png(2, 2)), w.hub.attach(None, &png(3, 3)));
        let number = w.hub.open_issue(REPO, "bob", "Odd", &format!("![]({before})"));
        let comment = w.hub.comment(REPO, number, "bob", "HARMLESS");
        tick(w);
        w.say(number, "ada", "/zeblit fix").await;
        tick(w);
        w.hub.comment(REPO, number, "bob", &format!("![]({later})"));
        w.hub.edit_comment(REPO, comment, &format!("![]({edited})"));
        w.hub.state().repo_mut(REPO).issues.get_mut(&number).expect("there").body = format!("![]({edited})");
        w.settle().await;
        assert_eq!(given(w, 0).attached(), ["attachments/01-image.png"]);
        assert_eq!(w.hub.count("GET /user-attachments/**"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_file_that_cannot_be_had_is_a_note_and_the_run_goes_on() {
    let change = |config: &mut Config| {
        with_model(config);
        config.inputs.attachments = 7;
        config.inputs.attachment_kib = 1;
        config.inputs.attachments_kib = 1;
    };
    World::run_with(change, async |w| {
        let zip = w.hub.attach(Some("logs.zip"), b"PK\x03\x04 and so on");
        let large = w.hub.attach(Some("large.log"), &[b'x'; 2000]);
        let wide = w.hub.attach(None, &png(9000, 1));
        let gone = format!("{}/user-attachments/files/1/gone.log", w.hub.api_url());
        let evil = w.hub.attach_elsewhere("http://169.254.169.254/latest/meta-data/");
        let good = w.hub.attach(Some("good.log"), &[b'g'; 700]);
        let more = w.hub.attach(Some("more.log"), &[b'm'; 700]);
        let many = w.hub.attach(Some("many.log"), b"x");
        let all = [&zip, &large, &wide, &gone, &evil, &good, &more, &many].map(String::as_str).join("\n\n");
        let number = w.hub.open_issue(REPO, "bob", "Odd", &all);
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        let given = given(w, 0);
        assert_eq!(given.attached(), ["attachments/01-good.log"]);
        let log = log(w, 1).await;
        for (url, reason) in [
            (
                &zip,
                "it is a ZIP archive; only PNG, JPEG, GIF and WebP images and text in UTF-8 are passed on",
            ),
            (&large, "it is larger than 1 KiB"),
            (&wide, "it is an image of 9000 x 1 pixels; at most 8000 x 8000 are passed on"),
            (&gone, "the forge does not give it to the App"),
            (&evil, "`169.254.169.254` is not https on its usual port"),
            (&more, "a run gets at most 1 KiB of files"),
            (&many, "a run gets at most 7 files"),
        ] {
            assert!(given.prompt.contains(&format!("left out: {reason}\nfrom {url}")), "{}", given.prompt);
            assert!(log.contains(&format!("attachment left out: {url}: {reason}")), "{log}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_forge_that_breaks_off_costs_the_file_and_not_the_run() {
    World::run_with(with_model, async |w| {
        let url = w.hub.attach(None, &png(1, 1));
        let number = w.hub.open_issue(REPO, "bob", "Odd", &url);
        w.hub.fail_next("GET /user-attachments/**", Fault::ResetBefore);
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Nothing);
        assert!(given(w, 0).prompt.contains("left out: the forge could not be asked"));
        assert!(log(w, 1).await.contains("the forge could not be asked"));
    })
    .await;
}

#[tokio::test]
async fn a_private_image_comes_by_its_signed_address_and_no_token_goes_to_the_storage() {
    World::run_with(with_model, async |w| {
        w.hub.set_private(REPO, true);
        w.hub.set_role(REPO, "bob", "read");
        w.hub.add_repo("octo/other", &[("README.md", "# Other\n")]);
        let image = w.hub.attach_in(REPO, None, &png(5, 5));
        let file = w.hub.attach_in(REPO, Some("crash.log"), b"boom");
        let foreign = w.hub.attach_in("octo/other", None, &png(6, 6));
        let number = w.hub.open_issue(REPO, "bob", "Odd", &format!("{image}\n\n{file}\n\n{foreign}"));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let given = given(w, 0);
        assert_eq!(given.attached(), ["attachments/01-image.png"]);
        assert_eq!(given.file("attachments/01-image.png"), Some(png(5, 5).as_slice()));
        for url in [&file, &foreign] {
            let note = format!("left out: the forge does not give it to the App\nfrom {url}");
            assert!(given.prompt.contains(&note), "{}", given.prompt);
        }
        assert!(w.hub.count("GET /blob/*") == 1 && leaked(w).is_empty(), "{:?}", w.hub.requests());
    })
    .await;
}

#[tokio::test]
async fn a_server_that_wants_no_files_and_recipes_fetch_none() {
    let change = |config: &mut Config| {
        with_model(config);
        config.inputs.attachments = 0;
    };
    World::run_with(change, async |w| {
        let url = w.hub.attach(None, &png(1, 1));
        let number = w.hub.open_issue(REPO, "bob", "Odd", &url);
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert!(!given(w, 0).prompt.contains("Attached files"));
        assert_eq!(w.hub.count("GET /user-attachments/**"), 0);
    })
    .await;
    World::run(async |w| {
        let url = w.hub.attach(None, &png(1, 1));
        let number = w.hub.open_issue(REPO, "bob", "Odd", &url);
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.hub.count("GET /user-attachments/**"), 0);
    })
    .await;
}

fn failed(name: &str, log: Option<&str>) -> Check {
    Check {
        id: 0,
        name: name.into(),
        head_sha: String::new(),
        external_id: String::new(),
        status: "completed".into(),
        conclusion: Some("failure".into()),
        title: "1 failed".into(),
        summary: "See the log.".into(),
        details_url: None,
        started_at: None,
        completed_at: None,
        annotations: vec!["src/new.py:2 assert 41 == 42".into()],
        reporter: None,
        log: log.map(str::to_owned),
        history: Vec::new(),
        hidden: 0,
    }
}

#[tokio::test]
async fn failed_checks_of_the_pinned_commit_come_with_the_ends_of_their_logs() {
    World::run_with(with_model, async |w| {
        w.hub.set_permission(REPO, "actions", Some(Level::Read));
        let number = w.pull();
        let head = w.hub.head(REPO, "feature").expect("there");
        let lines: String =
            (0..500).map(|n| format!("2026-01-05T09:00:00.1234567Z \u{1b}[31mline {n}\u{1b}[0m\n")).collect();
        let secret = "sk-ant-test-key-of-the-test-world";
        w.hub.report_check(REPO, &head, failed("tests", Some(&format!("{lines}the key is {secret}\n"))));
        w.hub.report_check(
            REPO,
            &head,
            Check { conclusion: Some("success".into()), ..failed("lint", Some("fine")) },
        );
        let other = Check { reporter: Some("other-ci".into()), ..failed("other", Some("not to be had")) };
        w.hub.report_check(REPO, &head, other);
        let main = w.hub.head(REPO, "main").expect("there");
        w.hub.report_check(REPO, &main, failed("elsewhere", Some("x")));
        w.say(number, "ada", "/zeblit fix the tests").await;
        w.settle().await;
        let given = given(w, 0);
        let ci = part(w, 1, "ci").await.expect("there");
        assert_eq!(given.text("context/ci.txt"), ci);
        for told in [
            "## tests: failure, 1 failed\n\nSee the log.\n\n- src/new.py:2: assert 41 == 42\n",
            "… (the beginning is left out)\nline 301\n",
            "\nline 499\nthe key is [secret]",
            "## other: failure",
        ] {
            assert!(ci.contains(told), "{told}: {ci}");
        }
        for absent in ["lint", "elsewhere", "not to be had", "Zeblit", "\u{1b}", "2026-01-05T", secret] {
            assert!(!ci.contains(absent), "{absent}: {ci}");
        }
        assert!(
            given.prompt.contains("# Failed checks") && given.prompt.contains("\ntests: failure, 1 failed\n")
        );
        assert!(!given.prompt.contains("line 499"), "logs are asked for, not told");
        assert_eq!(w.hub.count("GET /log/*"), 1);
        assert_eq!(leaked(w), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn without_the_permission_for_logs_the_annotations_still_come() {
    World::run_with(with_model, async |w| {
        let number = w.pull();
        let head = w.hub.head(REPO, "feature").expect("there");
        w.hub.report_check(REPO, &head, failed("tests", Some("boom")));
        w.say(number, "ada", "/zeblit fix the tests").await;
        w.settle().await;
        let ci = part(w, 1, "ci").await.expect("there");
        assert!(ci.contains("assert 41 == 42") && !ci.contains("boom"), "{ci}");
        assert!(!log(w, 1).await.contains("left out"), "its owner chose so");
        assert_eq!(w.hub.count("GET /repos/*/*/actions/**"), 0);
    })
    .await;
}

#[tokio::test]
async fn checks_that_cannot_be_read_do_not_keep_a_run_from_starting() {
    World::run_with(with_model, async |w| {
        let number = w.pull();
        w.hub.fail_next("GET /repos/*/*/commits/*/check-runs", Fault::Before(502));
        w.say(number, "ada", "/zeblit fix the tests").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Nothing);
        assert_eq!(part(w, 1, "ci").await, None);
        assert!(
            log(w, 1).await.contains("the checks of the commit are left out: the forge could not be asked")
        );
    })
    .await;
}

#[tokio::test]
async fn an_issue_asks_for_no_checks() {
    World::run_with(with_model, async |w| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(given(w, 0).attached(), Vec::<&str>::new());
        assert_eq!(w.hub.count("GET /repos/*/*/commits/*/check-runs"), 0);
    })
    .await;
}

#[tokio::test]
async fn everybody_is_labelled_by_their_role_of_now_and_nobody_by_what_the_payload_says() {
    World::run_with(with_model, async |w| {
        let number = w.hub.open_issue(REPO, "max", "By an admin", "Text.");
        w.hub.comment(REPO, number, "ada", "OF ADA");
        w.hub.comment(REPO, number, "bob", "OF BOB");
        w.hub.comment(REPO, number, "tri", "OF TRI");
        w.hub.comment(REPO, number, "max", "OF MAX");
        tick(w);
        w.say(number, "ada", "/zeblit fix").await;
        // A writer when the message was written, a reader when the run starts.
        w.hub.set_role(REPO, "max", "read");
        w.settle().await;
        let prompt = given(w, 0).prompt;
        for (author, trust) in [
            ("message of @ada", "may write to this repository"),
            ("message of @bob", "may not write here: untrusted"),
            ("message of @tri", "may not write here: untrusted"),
            ("message of @max", "may not write here: untrusted"),
            ("issue #1, title and text, by @max", "may not write here: untrusted"),
        ] {
            assert!(prompt.contains(&format!("{author} ({trust})")), "{author}: {prompt}");
        }
        let told = part(w, 1, "conversation").await.expect("there");
        assert!(told.contains("@ada (may write to this repository)"), "{told}");
        assert!(told.contains("@max (may not write here: untrusted)"), "{told}");
    })
    .await;
}

#[tokio::test]
async fn roles_that_the_forge_does_not_tell_make_strangers() {
    World::run_with(with_model, async |w| {
        let number = w.hub.open_issue(REPO, "max", "By an admin", "Text.");
        for n in 0..30 {
            w.hub.add_user(&format!("user{n}"), 5000 + n);
            w.hub.set_role(REPO, &format!("user{n}"), "write");
            w.hub.comment(REPO, number, &format!("user{n}"), "One voice.");
        }
        tick(w);
        w.say(number, "ada", "/zeblit fix").await;
        let asked = "GET /repos/*/*/collaborators/max/permission";
        w.hub.fail_next(asked, Fault::Before(500));
        let before = w.hub.count("GET /repos/*/*/collaborators/*/permission");
        w.settle().await;
        let prompt = given(w, 0).prompt;
        assert!(prompt.contains("by @max (may not write here: untrusted)"), "{prompt}");
        assert!(prompt.contains("message of @user29 (may write to this repository)"), "{prompt}");
        assert!(prompt.contains("message of @user2 (may not write here: untrusted)"), "{prompt}");
        // Twenty people, and the requester once more when the command was judged.
        assert_eq!(w.hub.count("GET /repos/*/*/collaborators/*/permission") - before, 21);
    })
    .await;
}

#[tokio::test]
async fn no_way_in_lets_hidden_text_through() {
    World::run_with(with_model, async |w| {
        w.hub.set_permission(REPO, "actions", Some(Level::Read));
        // A zero-width space, a tag character, a direction mark and a variation selector around each word.
        let hide = |word: &str| format!("\u{200b}{word}\u{e0041}\u{202e}\u{fe0f}");
        let number = w.pull();
        let head = w.hub.head(REPO, "feature").expect("there");
        {
            let mut state = w.hub.state();
            let issue = state.repo_mut(REPO).issues.get_mut(&number).expect("there");
            issue.title = hide("TITLE");
            issue.body = format!("{} <!-- HIDDEN -->", hide("BODY"));
        }
        let attached = w.hub.attach(Some("a.log"), hide("FILE").as_bytes());
        w.hub.comment(
            REPO,
            number,
            "bob",
            &format!("{} <b title=\"HIDDEN\">x</b> {attached}", hide("MESSAGE")),
        );
        w.hub.review_comment(REPO, number, "bob", (&hide("src/PLACE.py"), 1), &hide("REVIEW"));
        let check = Check {
            name: hide("CHECK"),
            title: hide("OUTPUT"),
            summary: format!("{} <!-- HIDDEN -->", hide("SUMMARY")),
            annotations: vec![format!("src/new.py:2 {}", hide("ANNOTATION"))],
            log: Some(hide("LOG")),
            ..failed("", None)
        };
        w.hub.report_check(REPO, &head, check);
        tick(w);
        let comment = w.hub.review_comment(
            REPO,
            number,
            "ada",
            ("src/new.py", 2),
            &format!("/zeblit fix {}", hide("REQUEST")),
        );
        w.hub
            .state()
            .repo_mut(REPO)
            .review_comments
            .iter_mut()
            .find(|found| found.id == comment)
            .expect("there")
            .diff_hunk = format!("@@ -1 +1 @@\n+{}", hide("HUNK"));
        w.deliver(&w.hub.review_comment_created(REPO, comment)).await;
        w.settle().await;
        let given = given(w, 0);
        let mut all = given.prompt.clone();
        for (path, bytes) in &given.job.home_files {
            if path.starts_with("attachments/") || path.starts_with("context/") {
                all.push_str(&String::from_utf8_lossy(bytes));
            }
        }
        for name in ["subject", "conversation", "reviews", "attachments", "ci"] {
            all.push_str(&part(w, 1, name).await.unwrap_or_else(|| panic!("no {name}")));
        }
        for word in [
            "TITLE",
            "BODY",
            "MESSAGE",
            "FILE",
            "PLACE",
            "REVIEW",
            "CHECK",
            "OUTPUT",
            "SUMMARY",
            "ANNOTATION",
            "LOG",
            "REQUEST",
            "HUNK",
        ] {
            assert!(all.contains(word), "{word}: {all}");
        }
        assert!(!all.contains("HIDDEN"), "{all}");
        let hidden: Vec<char> = all.chars().filter(|c| zeblit::domain::sanitize::is_hidden(*c)).collect();
        assert_eq!(hidden, Vec::<char>::new(), "{all}");
    })
    .await;
}

#[tokio::test]
async fn what_the_comment_says_beside_the_command_reaches_the_agent_as_information() {
    World::run_with(with_model, async |w| {
        w.sandbox.usually(Script::edit("a.txt", "a\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix the answer\n\nIt began with release 3.\n\n> quoted").await;
        w.say(w.issue(), "ada", "/zeblit fix the question").await;
        w.settle().await;
        let (first, second) = (given(w, 0).prompt, given(w, 1).prompt);
        assert!(first.contains("the whole comment of @ada, who gave the instruction"), "{first}");
        assert!(first.contains("It began with release 3."), "{first}");
        assert!(!second.contains("The comment that asks"), "nothing to add: {second}");
    })
    .await;
}
