//! The ways out of the sandbox: at once, after approval, to a fork, as a patch, or not at all.

use crate::world::hub::Fault;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use zeblit::clock::Clock;
use zeblit::config::Config;
use zeblit::domain::policy::PushMode;
use zeblit::domain::run::{FailureClass, RunState};
use zeblit::store;

const BRANCH: &str = "zeblit/1-the-answer-is-wrong-k0001";
const FORK: &str = "zeblit-forks/demo";

fn mended() -> Script {
    Script::edit("src/app.py", "def answer():\n    return 42\n")
}

fn approve_first(config: &mut Config) {
    config.publish.mode = PushMode::ApproveFirst;
}

fn forks(config: &mut Config) {
    config.publish.mode = PushMode::Fork;
    config.publish.fork_owner = Some("zeblit-forks".into());
}

impl World {
    /// The commit that the nth run wants approved.
    async fn waiting(&self, n: u32) -> String {
        let run = self.nth_run(n).await;
        assert_eq!(run.state, RunState::Held, "{:?}", run.outcome);
        run.outcome.kept.expect("a change that waits was kept").head.to_string()
    }

    /// Audit lines of these actions, oldest first.
    async fn audited(&self, actions: &[&str]) -> Vec<String> {
        let mut rows = store::audit::list(&self.app.store, 200).await.expect("read");
        rows.reverse();
        rows.into_iter()
            .filter(|row| actions.contains(&row.action.as_str()))
            .map(|row| format!("{} {} {} {}", row.actor, row.action, row.subject, row.detail))
            .collect()
    }

    async fn says(&mut self, number: i64, login: &str, body: &str) {
        self.clock.advance(Duration::seconds(30));
        self.say(number, login, body).await;
        self.settle().await;
    }

    /// eve's pull request from her fork, and its head.
    fn strange_pull(&self) -> (i64, String) {
        self.hub.add_user("eve", 105);
        self.hub.add_fork(REPO, "eve/demo");
        let head = self.hub.push_commit("eve/demo", "idea", &[("src/idea.py", "import os\n")], "Improve");
        (self.hub.open_pull(REPO, "eve", "eve:idea", "main", "Improve"), head)
    }

    /// eve pushes once more, and the delivery of it arrives.
    async fn eve_pushes(&self, number: i64, before: &str) -> String {
        let head = self.hub.push_commit("eve/demo", "idea", &[("src/idea.py", "import evil\n")], "More");
        self.deliver(&self.hub.pull_synchronize(REPO, number, before, "eve")).await;
        head
    }
}

// ---------------------------------------------------------------- approve-first

#[tokio::test]
async fn nothing_is_pushed_before_exactly_this_change_was_approved() {
    World::run_with(approve_first, async |w| {
        let number = w.fix(mended()).await;
        let head = w.waiting(1).await;
        assert_eq!(w.hub.branches(REPO), ["main"]);
        assert_eq!(w.hub.workflow_runs(), []);
        let own = w.own(number).join("\n=====\n").replace(&head[..12], "<commit>");
        insta::assert_snapshot!(own, @r#"
        **✋ Waits for approval · 0s**

        1 commit · 1 file, +1 −1 · [the whole diff](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)

        It will be pushed to the branch `zeblit/1-the-answer-is-wrong-k0001`, and a draft pull request to `main` opened: "The answer is wrong".

        - `src/app.py` +1 −1

        ```diff
        diff --git a/src/app.py b/src/app.py
        index 1083d26..eca386f 100644
        --- a/src/app.py
        +++ b/src/app.py
        @@ -1,2 +1,2 @@
         def answer():
        -    return 41
        +    return 42
        ```

        **`/zeblit ok <commit>`** by somebody with write access pushes exactly this change; `/zeblit cancel` drops it. By itself it is dropped on 2026-01-12.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        =====
        ✋ @ada, the change of run `run_0001` waits for approval.

        **`/zeblit ok <commit>`** by somebody with write access pushes exactly this change; `/zeblit cancel` drops it. By itself it is dropped on 2026-01-12.
        "#);
        let other = if head.starts_with('0') { "1111111" } else { "0000000" };
        w.says(number, "ada", &format!("/zeblit ok {other}")).await;
        assert!(w.own(number).last().unwrap().contains(&head[..12]), "{:?}", w.own(number));
        w.says(number, "tri", &format!("/zeblit ok {}", &head[..7])).await;
        assert_eq!(w.hub.branches(REPO), ["main"], "triage is not enough");
        w.says(number, "max", &format!("/zeblit ok {}", &head[..7])).await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded, "{:?}", w.own(number));
        assert_eq!(w.hub.head(REPO, BRANCH).unwrap(), head);
        assert!(w.our_pull().pull.unwrap().draft);
        assert!(w.sticky(number).contains("Approved by max"), "{}", w.sticky(number));
        assert_eq!(w.sandbox.agents_started(), 1);
        let approvals = w.audited(&["approve"]).await;
        assert_eq!(approvals, [format!("max (104) approve octo/demo#1 the change {head} of run run_0001 as admin")]);
        // Repeated, it does nothing.
        w.says(number, "max", &format!("/zeblit ok {}", &head[..7])).await;
        assert!(w.own(number).last().unwrap().contains("Nothing waits"), "{:?}", w.own(number));
    })
    .await;
}

#[tokio::test]
async fn an_approved_change_is_leased_and_gated_again_when_it_is_pushed() {
    World::run_with(approve_first, async |w| {
        let number = w.pull();
        w.sandbox.next(mended());
        w.says(number, "ada", "/zeblit fix").await;
        let head = w.waiting(1).await;
        let moved = w.hub.push_commit(REPO, "feature", &[("late.txt", "x\n")], "Late");
        w.says(number, "ada", &format!("/zeblit ok {}", &head[..10])).await;
        let run = w.nth_run(1).await;
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Conflict)));
        assert_eq!(w.hub.head(REPO, "feature").unwrap(), moved);

        w.sandbox.next(Script::edit("infra/main.tf", "resource {}\n"));
        w.says(number, "ada", "/zeblit fix").await;
        let head = w.waiting(2).await;
        w.hub.push_commit(
            REPO,
            "main",
            &[(".github/zeblit.toml", "push = \"approve-first\"\n[gate]\nprotected = [\"infra/**\"]\n")],
            "Protect",
        );
        w.says(number, "ada", &format!("/zeblit ok {}", &head[..10])).await;
        let run = w.nth_run(2).await;
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Gate)));
        assert_eq!(w.hub.head(REPO, "feature").unwrap(), moved);
    })
    .await;
}

#[tokio::test]
async fn a_change_that_waits_asks_for_action_on_the_check_and_goes_on_there() {
    World::run_with(approve_first, async |w| {
        let number = w.pull();
        let pinned = w.hub.head(REPO, "feature").unwrap();
        w.sandbox.next(mended());
        w.says(number, "ada", "/zeblit fix").await;
        let head = w.waiting(1).await;
        let check = w.hub.checks(REPO, &pinned).remove(0);
        assert_eq!(check.conclusion.as_deref(), Some("action_required"));
        assert!(check.summary.contains(&format!("/zeblit ok {}", &head[..12])), "{}", check.summary);
        w.says(number, "ada", &format!("/zeblit ok {}", &head[..12])).await;
        assert_eq!(w.hub.head(REPO, "feature").unwrap(), head);
        for sha in [&pinned, &head] {
            assert_eq!(w.hub.checks(REPO, sha)[0].conclusion.as_deref(), Some("success"), "{sha}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_change_that_waits_is_dropped_by_cancel_by_closing_and_by_time() {
    World::run_with(approve_first, async |w| {
        let number = w.fix(mended()).await;
        w.waiting(1).await;
        w.says(number, "ada", "/zeblit cancel").await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
        let sticky = w.sticky(number);
        assert!(sticky.contains("Asked for by ada.") && sticky.contains("was not pushed"), "{sticky}");

        w.sandbox.next(mended());
        w.says(number, "ada", "/zeblit fix").await;
        w.waiting(2).await;
        w.deliver(&w.hub.issue_event(REPO, number, "closed", "max")).await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Cancelled);

        let number = w.issue();
        w.sandbox.next(mended());
        w.says(number, "ada", "/zeblit fix").await;
        w.waiting(3).await;
        w.clock.advance(Duration::days(6));
        w.settle().await;
        w.waiting(3).await;
        w.clock.advance(Duration::days(2));
        w.settle().await;
        w.settle().await;
        assert_eq!(w.state_of(3).await, RunState::Cancelled);
        assert!(w.sticky(number).contains("Nobody approved"), "{}", w.sticky(number));
        assert_eq!(w.hub.branches(REPO), ["main"]);
    })
    .await;
}

#[tokio::test]
async fn an_approval_survives_a_crash_and_a_push_that_was_not_answered() {
    World::run_with(approve_first, async |w| {
        let number = w.fix(mended()).await;
        let head = w.waiting(1).await;
        w.restart().await;
        w.clock.advance(Duration::seconds(30));
        w.say(number, "ada", &format!("/zeblit ok {}", &head[..12])).await;
        w.stage(0).await;
        w.restart().await;
        w.hub.fail_next("POST /git/*/*/git-receive-pack", Fault::ResetAfter);
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded, "{:?}", w.own(number));
        assert_eq!(w.hub.head(REPO, BRANCH).unwrap(), head);
        w.our_pull();
    })
    .await;
}

#[tokio::test]
async fn partial_work_waits_for_nobody_and_is_not_pushed() {
    World::run_with(approve_first, async |w| {
        let number = w.fix(Script::fails(1).and_edit("half.txt", "half\n")).await;
        assert_eq!(w.state_of(1).await, RunState::Failed);
        assert_eq!(w.hub.branches(REPO), ["main"]);
        let sticky = w.sticky(number);
        assert!(sticky.contains("Partial work (1 commit, 1 file) was not pushed"), "{sticky}");
    })
    .await;
}

#[tokio::test]
async fn a_repository_may_be_stricter_than_the_server_and_never_looser() {
    World::run(async |w| {
        w.hub.push_commit(REPO, "main", &[(".github/zeblit.toml", "push = \"approve-first\"\n")], "Rules");
        let number = w.fix(mended()).await;
        w.waiting(1).await;
        w.says(number, "ada", "/zeblit cancel").await;
    })
    .await;
    World::run_with(
        |config| {
            config.publish.repositories.insert("octo/*".into(), PushMode::Trusted);
            config.publish.repositories.insert(REPO.into(), PushMode::ApproveFirst);
        },
        async |w| {
            w.hub.push_commit(REPO, "main", &[(".github/zeblit.toml", "push = \"trusted\"\n")], "Rules");
            let number = w.fix(mended()).await;
            w.waiting(1).await;
            w.says(number, "ada", "/zeblit cancel").await;
        },
    )
    .await;
}

// ---------------------------------------------------------------- fork

#[tokio::test]
async fn the_mode_fork_never_writes_to_the_repository_and_starts_nothing_with_its_secrets() {
    World::run_with(forks, async |w| {
        w.hub.add_own_fork(REPO, FORK);
        let number = w.fix(mended()).await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded, "{:?}", w.own(number));
        let pull = w.our_pull();
        let head = pull.pull.clone().unwrap();
        assert_eq!(head.head_repo, Some(w.hub.state().repo(FORK).id));
        assert_eq!(w.hub.branches(REPO), ["main"]);
        assert_eq!(w.hub.branches(FORK), ["main", BRANCH]);
        assert_eq!(w.hub.checks(REPO, &head.head_sha)[0].conclusion.as_deref(), Some("success"));
        // On its own pull request the work goes on in the fork; no approval is needed there.
        w.sandbox.next(Script::nothing().and_do(|workspace| {
            let app = std::fs::read_to_string(workspace.join("src/app.py")).unwrap();
            std::fs::write(workspace.join("src/app.py"), app + "# reviewed\n").unwrap();
        }));
        w.says(pull.number, "ada", "/zeblit fix add a remark").await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded, "{:?}", w.own(pull.number));
        assert!(w.hub.file_at(FORK, BRANCH, "src/app.py").unwrap().contains("42\n# reviewed"));
        // And on the issue.
        w.sandbox.next(Script::edit("notes.txt", "done\n"));
        w.says(number, "ada", "/zeblit fix write notes").await;
        assert_eq!(w.state_of(3).await, RunState::Succeeded, "{:?}", w.own(number));
        assert!(w.hub.file_at(FORK, BRANCH, "src/app.py").unwrap().contains("# reviewed"));
        assert!(w.hub.file_at(FORK, BRANCH, "notes.txt").is_some());
        let transcript = w.hub.transcript();
        assert!(!transcript.contains("push octo/demo"), "{transcript}");
        let with_secrets: Vec<_> =
            w.hub.workflow_runs().into_iter().filter(|run| run.repo == REPO && run.secrets).collect();
        assert_eq!(with_secrets, []);
        assert!(w.hub.workflow_runs().iter().any(|run| run.repo == REPO && run.event == "pull_request"));
    })
    .await;
}

#[tokio::test]
async fn a_trusted_push_starts_workflows_with_secrets() {
    // What the other modes are for; and that the model of the hub would notice.
    World::run(async |w| {
        w.fix(mended()).await;
        assert!(w.hub.workflow_runs().iter().any(|run| run.repo == REPO && run.secrets));
    })
    .await;
}

#[tokio::test]
async fn in_the_mode_fork_a_pull_request_of_the_repository_gets_a_patch() {
    World::run_with(forks, async |w| {
        w.hub.add_own_fork(REPO, FORK);
        let number = w.pull();
        let head = w.hub.head(REPO, "feature").unwrap();
        w.sandbox.next(mended());
        w.says(number, "ada", "/zeblit fix").await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded, "{:?}", w.own(number));
        assert_eq!(w.hub.head(REPO, "feature").unwrap(), head);
        let sticky = w.sticky(number);
        assert!(sticky.contains("+    return 42") && sticky.contains("mode `fork`"), "{sticky}");
    })
    .await;
}

#[tokio::test]
async fn without_a_fork_the_mode_fork_starts_nothing() {
    World::run_with(forks, async |w| {
        // Somebody else's fork of that name is none of ours.
        w.hub.add_fork(REPO, FORK);
        let number = w.issue();
        w.says(number, "ada", "/zeblit fix").await;
        assert_eq!(w.sandbox.agents_started(), 0);
        assert!(w.sticky(number).contains("`publish.fork_owner`"), "{}", w.sticky(number));
    })
    .await;
}

#[tokio::test]
async fn a_repository_of_the_same_name_that_is_no_fork_takes_nothing() {
    World::run_with(forks, async |w| {
        w.hub.add_repo(FORK, &[("README.md", "# Another\n")]);
        let number = w.issue();
        w.says(number, "ada", "/zeblit fix").await;
        assert!(w.sticky(number).contains("`publish.fork_owner`"), "{}", w.sticky(number));
    })
    .await;
}

// ---------------------------------------------------------------- staged

#[tokio::test]
async fn a_dry_run_shows_what_would_be_done_and_does_nothing() {
    World::run(async |w| {
        let number = w.issue();
        w.sandbox.next(mended());
        w.says(number, "ada", "/zeblit fix --staged").await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        assert_eq!(w.hub.branches(REPO), ["main"]);
        assert_eq!(w.hub.workflow_runs(), []);
        insta::assert_snapshot!(w.own(number).join("\n=====\n"), @r#"
        **🧪 Staged: nothing was pushed · 0s**

        1 commit · 1 file, +1 −1 · [the whole diff](https://zeblit.example/runs/run_0001?e=1775379630&s=b3e411f2b030cb5f8c908eabe9028ed4)

        It would be pushed to the branch `zeblit/1-the-answer-is-wrong-k0001`, and a draft pull request to `main` opened: "The answer is wrong".

        - `src/app.py` +1 −1

        ```diff
        diff --git a/src/app.py b/src/app.py
        index 1083d26..eca386f 100644
        --- a/src/app.py
        +++ b/src/app.py
        @@ -1,2 +1,2 @@
         def answer():
        -    return 41
        +    return 42
        ```

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379630&s=b3e411f2b030cb5f8c908eabe9028ed4)</sub>
        "#);
        let diff = store::artifacts::get(&w.app.store, &w.nth_run(1).await.id, "diff").await.unwrap().unwrap();
        assert!(String::from_utf8(diff).unwrap().contains("+    return 42"));
        // On a pull request the check says so, too.
        let number = w.pull();
        let pinned = w.hub.head(REPO, "feature").unwrap();
        w.sandbox.next(mended());
        w.says(number, "ada", "/zeblit fix --staged").await;
        let check = w.hub.checks(REPO, &pinned).remove(0);
        assert_eq!(check.conclusion.as_deref(), Some("neutral"));
        assert!(check.title.contains("Staged"), "{}", check.title);
        assert_eq!(w.hub.head(REPO, "feature").unwrap(), pinned);
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_that_finds_nothing_to_do_says_so() {
    World::run_with(
        |config| config.publish.staged = true,
        async |w| {
            let number = w.fix(Script::nothing()).await;
            assert_eq!(w.state_of(1).await, RunState::Nothing);
            assert!(w.sticky(number).contains("Nothing to change"), "{}", w.sticky(number));
        },
    )
    .await;
}

// ---------------------------------------------------------------- pull requests from forks

#[tokio::test]
async fn the_code_of_a_fork_runs_once_its_head_is_approved_and_gives_a_patch() {
    World::run(async |w| {
        let (number, head) = w.strange_pull();
        w.says(number, "ada", "/zeblit fix").await;
        assert_eq!(w.sandbox.agents_started(), 0);
        w.says(number, "ada", &format!("/zeblit ok {}", &head[..7])).await;
        w.sandbox.next(Script::nothing().and_do(|workspace| {
            assert_eq!(std::fs::read_to_string(workspace.join("src/idea.py")).unwrap(), "import os\n");
            std::fs::write(workspace.join("src/idea.py"), "import sys\n").unwrap();
        }));
        w.says(number, "ada", "/zeblit fix").await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded, "{:?}", w.own(number));
        let own = w.own(number).join("\n=====\n").replace(&head[..12], "<commit>");
        insta::assert_snapshot!(own, @r"
        🚫 This pull request comes from a fork, so `fix` would run a stranger's code. Read the commit `<commit>` first, then type `/zeblit ok <commit>` and the command again. `/zeblit review` and `/zeblit ask` run nothing and need no approval.
        =====
        👍 The commit `<commit>` may be run here. A push to this pull request needs a new approval.
        =====
        **✅ A patch is ready, nothing was pushed · 0s**

        1 commit · 1 file, +1 −1 · [the whole diff](https://zeblit.example/runs/run_0001?e=1775379692&s=6ff783db73517456b457bf9e98a0f6d7)

        I never push to a fork: this is the change, to be applied by whoever wants it.

        - `src/idea.py` +1 −1

        ```diff
        diff --git a/src/idea.py b/src/idea.py
        index 21b405d..de10111 100644
        --- a/src/idea.py
        +++ b/src/idea.py
        @@ -1 +1 @@
        -import os
        +import sys
        ```

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379692&s=6ff783db73517456b457bf9e98a0f6d7)</sub>
        ");
        let transcript = w.hub.transcript();
        assert!(!transcript.lines().any(|line| line.starts_with("push ")), "{transcript}");
        assert_eq!(
            w.audited(&["approve"]).await,
            [format!("ada (101) approve octo/demo#1 the head {head} as write")]
        );
        // The same head needs no second approval, for whoever may command.
        w.sandbox.next(Script::nothing());
        w.says(number, "max", "/zeblit retry").await;
        assert_eq!(w.state_of(2).await, RunState::Nothing);
    })
    .await;
}

#[tokio::test]
async fn approval_and_command_may_stand_in_one_comment() {
    World::run(async |w| {
        let (number, head) = w.strange_pull();
        w.sandbox.next(mended());
        w.says(number, "ada", &format!("/zeblit ok {head}\n\n/zeblit fix")).await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded, "{:?}", w.own(number));
    })
    .await;
}

#[tokio::test]
async fn only_people_with_write_access_approve() {
    World::run(async |w| {
        let (number, head) = w.strange_pull();
        for login in ["eve", "bob", "tri"] {
            w.says(number, login, &format!("/zeblit ok {head}")).await;
        }
        w.says(number, "ada", "/zeblit fix").await;
        assert_eq!(w.sandbox.agents_started(), 0);
        assert_eq!(w.audited(&["approve"]).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_head_that_moves_between_comment_and_run_is_never_run() {
    // At each stage: before the approval is read, before the command, while the run is queued.
    for stage in 0..3 {
        World::run(async move |w| {
            let (number, head) = w.strange_pull();
            let ok = format!("/zeblit ok {}", &head[..7]);
            w.clock.advance(Duration::seconds(30));
            w.say(number, "ada", &ok).await;
            if stage == 0 {
                w.clock.advance(Duration::seconds(1));
                w.eve_pushes(number, &head).await;
            }
            w.settle().await;
            if stage == 1 {
                w.clock.advance(Duration::seconds(1));
                w.eve_pushes(number, &head).await;
            }
            w.clock.advance(Duration::seconds(30));
            w.say(number, "ada", "/zeblit fix").await;
            if stage == 2 {
                w.stage(0).await;
                w.clock.advance(Duration::seconds(1));
                // Its delivery is lost: the head itself tells.
                w.hub.push_commit("eve/demo", "idea", &[("src/idea.py", "import evil\n")], "More");
            }
            w.settle().await;
            assert_eq!(w.sandbox.agents_started(), 0, "stage {stage}");
            if stage == 2 {
                let run = w.nth_run(1).await;
                assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Conflict)));
            } else {
                assert_eq!(w.runs().await.len(), 0);
            }
        })
        .await;
    }
}

#[tokio::test]
async fn an_approval_that_a_push_reached_first_is_void_although_its_digits_fit() {
    World::run(async |w| {
        let (number, _) = w.strange_pull();
        w.clock.advance(Duration::seconds(30));
        // The comment is written; then eve pushes a commit whose digits fit (here: the comment names it).
        let written = w.clock.now();
        w.clock.advance(Duration::seconds(1));
        let fitting = w.hub.push_commit("eve/demo", "idea", &[("src/idea.py", "import evil\n")], "More");
        let comment = w.hub.comment(REPO, number, "ada", &format!("/zeblit ok {}", &fitting[..7]));
        for found in &mut w.hub.state().repo_mut(REPO).comments {
            if found.id == comment {
                found.created_at = written;
                found.updated_at = written;
            }
        }
        w.deliver(&w.hub.comment_created(REPO, comment)).await;
        w.settle().await;
        assert_eq!(w.audited(&["approve"]).await.len(), 1, "nothing was known of the push");
        w.sandbox.next(Script::hangs());
        w.clock.advance(Duration::seconds(30));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Running);
        // The delivery of the push comes late.
        let mut late = w.hub.pull_synchronize(REPO, number, &fitting, "eve");
        let mut body: serde_json::Value = serde_json::from_slice(&late.body).unwrap();
        body["pull_request"]["updated_at"] = serde_json::json!(
            (written + Duration::seconds(1)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
        );
        late.body = body.to_string().into_bytes();
        w.deliver(&late).await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
        assert_eq!(w.audited(&["approve.void"]).await.len(), 1);
        // And the other way round: the push is known when the comment is read.
        let comment = w.hub.comment(REPO, number, "ada", &format!("/zeblit ok {}", &fitting[..8]));
        for found in &mut w.hub.state().repo_mut(REPO).comments {
            if found.id == comment {
                found.created_at = written;
                found.updated_at = written;
            }
        }
        w.deliver(&w.hub.comment_created(REPO, comment)).await;
        w.settle().await;
        assert!(w.own(number).last().unwrap().contains("after your comment was written"));
        assert_eq!(w.audited(&["approve"]).await.len(), 1);
    })
    .await;
}

// ---------------------------------------------------------------- the check of a changed configuration

/// The checks named `zeblit config` on a commit: conclusion, title, annotations.
fn config_checks(w: &World, sha: &str) -> Vec<(String, String, Vec<String>)> {
    let ours = w.hub.checks(REPO, sha).into_iter().filter(|check| check.name == "zeblit config");
    ours.map(|check| (check.conclusion.unwrap_or_default(), check.title, check.annotations)).collect()
}

#[tokio::test]
async fn a_pull_request_that_changes_the_rules_has_them_checked_line_by_line() {
    World::run(async |w| {
        let config = "enabled = true\nagnet = \"x\"\n";
        let agent = "---\nname: helper\ndescription: helps\nadapter: nonsense\n---\nHelp.\n";
        let files = [(".github/zeblit.toml", config), (".github/zeblit/agents/helper.md", agent)];
        let head = w.hub.push_commit(REPO, "rules", &files, "Rules");
        let number = w.hub.open_pull(REPO, "bob", "rules", "main", "Rules");
        w.deliver(&w.hub.pull_event(REPO, number, "opened", "bob")).await;
        w.settle().await;
        let found = config_checks(w, &head);
        let [(conclusion, title, annotations)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((conclusion.as_str(), title.as_str()), ("failure", "The configuration has 2 problems"));
        assert!(annotations[0].starts_with(".github/zeblit.toml:2 unknown field `agnet`"), "{annotations:?}");
        assert!(annotations[1].starts_with(".github/zeblit/agents/helper.md:"), "{annotations:?}");
        // Broken rules that are not merged change nothing.
        assert_eq!(w.hears("ada", "/zeblit ping").await.len(), 1);

        let good = [(".github/zeblit.toml", "agent = \"fixer\"\n"), (".github/zeblit/agents/helper.md", "")];
        let next = w.hub.push_commit(REPO, "rules", &good[..1], "Mend");
        let next = w.hub.push_commit(
            REPO,
            "rules",
            &[(
                ".github/zeblit/agents/helper.md",
                "---\nname: helper\ndescription: helps\nadapter: claude\n---\nHelp.\n",
            )],
            &format!("After {next}"),
        );
        w.deliver(&w.hub.pull_synchronize(REPO, number, &head, "bob")).await;
        w.deliver(&w.hub.pull_synchronize(REPO, number, &head, "bob")).await;
        w.settle().await;
        assert_eq!(
            config_checks(w, &next),
            [("success".into(), "The configuration is right".into(), vec![])]
        );
    })
    .await;
}

#[tokio::test]
async fn the_check_reads_rules_of_forks_names_unknown_agents_and_leaves_other_pull_requests_alone() {
    World::run(async |w| {
        w.hub.add_user("eve", 105);
        w.hub.add_fork(REPO, "eve/demo");
        let config = "staged = true\nagent = \"nobody\"\nimage = \"evil:1\"\n";
        let head = w.hub.push_commit("eve/demo", "rules", &[(".github/zeblit.toml", config)], "Rules");
        let number = w.hub.open_pull(REPO, "eve", "eve:rules", "main", "Rules");
        w.deliver(&w.hub.pull_event(REPO, number, "opened", "eve")).await;
        let other = w.pull();
        w.deliver(&w.hub.pull_event(REPO, other, "opened", "bob")).await;
        w.settle().await;
        let found = config_checks(w, &head);
        let [(conclusion, _, annotations)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(conclusion, "failure");
        assert!(
            annotations[0].starts_with(".github/zeblit.toml:2 there is no agent `nobody`"),
            "{annotations:?}"
        );
        assert!(annotations[1].starts_with(".github/zeblit.toml:3 ") && annotations[1].contains("evil:1"));
        assert_eq!(config_checks(w, &w.hub.head(REPO, "feature").unwrap()), []);
        assert_eq!(w.sandbox.agents_started(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_repositorys_own_skills_are_read() {
    World::run(async |w| {
        let skill = "---\nname: tidy\ndescription: keeps things tidy\n---\nBe tidy.\n";
        let agent = "---\nname: helper\ndescription: helps\nadapter: claude\nskills: [tidy]\n---\nHelp.\n";
        let files =
            [(".github/zeblit/skills/tidy/SKILL.md", skill), (".github/zeblit/agents/helper.md", agent)];
        w.hub.push_commit(REPO, "main", &files, "Skills");
        let help = w.hears("ada", "/zeblit help").await.remove(0);
        assert!(help.contains("`helper`: helps") && !help.contains("cannot be read"), "{help}");
    })
    .await;
}
