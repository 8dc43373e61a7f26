//! Branches and pull requests: what is pushed where, and what is refused or never touched.

use crate::world::hub::Fault;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use zeblit::domain::run::{FailureClass, RunState};

const OWN_BRANCH: &str = "zeblit/1-the-answer-is-wrong-k0001";

fn mended() -> Script {
    Script::edit("src/app.py", "def answer():\n    return 42\n")
}

/// The class of the nth run, which must have failed.
async fn failed(w: &World, n: u32) -> FailureClass {
    let run = w.nth_run(n).await;
    assert_eq!(run.state, RunState::Failed, "{:?}", run.outcome);
    run.outcome.class.unwrap()
}

// ---------------------------------------------------------------- our own pull request

#[tokio::test]
async fn the_pull_request_says_what_who_how_and_where_from() {
    World::run(async |w| {
        w.fix(mended().and_print("changed 41 to 42")).await;
        let pull = w.our_pull();
        assert!(pull.pull.as_ref().unwrap().draft);
        insta::assert_snapshot!(format!("{}\n\n{}", pull.title, w.shown(&pull.body)), @r"
        The answer is wrong

        Fixes #1

        ## What and why

        ```
        changed 41 to 42
        ```

        ---

        | | |
        |---|---|
        | Requested by | @ada in [octo/demo#1](https://hub.example/octo/demo/issues/1#issuecomment-1005) |
        | Agent | `demo-fix` |
        | Changes | 1 commit, 1 file, +1 −1 |
        | Cost | $0.00 (0 tokens) |
        | Run | [`run_0001`](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3) |

        <sub>Written by a bot and not yet reviewed by a human. `/zeblit` commands work in this pull request too: `/zeblit fix …`, `/zeblit review`, `/zeblit help`.</sub>

        Co-authored-by: ada <101+ada@users.noreply.github.example>
        Zeblit-Run: run_0001
        ");
        insta::assert_snapshot!(w.hub.log(REPO, OWN_BRANCH, "%an <%ae>%n%cn <%ce>%n%B", 1), @r"
        zeblit[bot] <9001+zeblit[bot]@users.noreply.github.example>
        zeblit[bot] <9001+zeblit[bot]@users.noreply.github.example>
        The answer is wrong

        Refs #1

        Co-authored-by: ada <101+ada@users.noreply.github.example>
        Zeblit-Run: run_0001
        ");
    })
    .await;
}

#[tokio::test]
async fn the_pull_request_follows_the_repositorys_template() {
    World::run(async |w| {
        let template = "## Checklist\n\n- [ ] I have read the rules\n<!-- keep this -->\n";
        w.hub.push_commit(REPO, "main", &[(".github/pull_request_template.md", template)], "Template");
        w.fix(mended()).await;
        let body = w.our_pull().body;
        assert!(body.starts_with("Fixes #1\n"), "{body}");
        assert!(body.contains("## Checklist\n\n- [ ] I have read the rules"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn the_agents_own_commits_keep_their_messages_and_get_the_bots_name() {
    World::run(async |w| {
        let script = Script::nothing().and_do(|workspace| {
            for (name, message) in [("a.txt", "Add a"), ("b.txt", "Add b")] {
                std::fs::write(workspace.join(name), "x\n").unwrap();
                for arguments in [
                    vec!["add", name],
                    vec!["-c", "user.name=Linus", "-c", "user.email=l@example.com", "commit", "-q", "-m", message],
                ] {
                    let done =
                        std::process::Command::new("git").current_dir(workspace).args(arguments).status();
                    assert!(done.unwrap().success());
                }
            }
        });
        w.fix(script).await;
        insta::assert_snapshot!(w.hub.log(REPO, OWN_BRANCH, "%an|%s|%(trailers:key=Zeblit-Run,separator=)", 3), @r"
        zeblit[bot]|Add b|Zeblit-Run: run_0001
        zeblit[bot]|Add a|Zeblit-Run: run_0001
        Octo Cat|Initial commit|
        ");
        assert_eq!(w.nth_run(1).await.outcome.commits, 2);
    })
    .await;
}

#[tokio::test]
async fn a_second_fix_adds_commits_to_the_same_branch_and_pull_request() {
    World::run(async |w| {
        let number = w.fix(mended()).await;
        let first = w.hub.head(REPO, OWN_BRANCH).unwrap();
        w.sandbox.next(Script::nothing().and_do(|workspace| {
            let text = std::fs::read_to_string(workspace.join("src/app.py")).unwrap();
            assert!(text.contains("42"), "it starts from the work of the first");
            std::fs::write(workspace.join("docs.md"), "docs\n").unwrap();
        }));
        w.say(number, "ada", "/zeblit fix document it too").await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded);
        assert_eq!(w.hub.branches(REPO), ["main", OWN_BRANCH]);
        let second = w.hub.head(REPO, OWN_BRANCH).unwrap();
        assert_eq!(w.hub.log(REPO, OWN_BRANCH, "%P", 1), first, "fast-forward");
        assert_eq!(w.our_pull().pull.unwrap().head_sha, second);
        insta::assert_snapshot!(w.own(number)[1], @r"
        **✅ Draft pull request #2 · 0s**

        [#2](https://hub.example/octo/demo/pull/2) · 1 commit · 1 file, +1 −0

        > ℹ️ The recipe `demo-fix` takes no words; those of the request were not used.

        <sub>run `run_0002` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0002?e=1775379604&s=cfceac0d62fdf365373eef59f33059ef)</sub>
        ");
        for sha in [&first, &second] {
            assert_eq!(w.hub.checks(REPO, sha).len(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_base_that_was_named_is_where_the_pull_request_goes() {
    World::run(async |w| {
        w.hub.push_commit(REPO, "stable", &[("only-here.txt", "x\n")], "Stable");
        let number = w.issue();
        w.sandbox.next(mended().and_do(|workspace| assert!(workspace.join("only-here.txt").exists())));
        w.say(number, "ada", "/zeblit fix --base stable").await;
        w.say(number, "ada", "/zeblit fix --base nowhere").await;
        w.settle().await;
        assert_eq!(w.our_pull().pull.unwrap().base_ref, "stable");
        assert!(
            w.own(number).iter().any(|text| text == "😕 There is no branch `nowhere` here."),
            "{:?}",
            w.own(number)
        );
        assert_eq!(w.runs().await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn where_drafts_are_refused_a_normal_pull_request_is_opened_and_the_report_says_so() {
    World::run(async |w| {
        w.hub.state().repo_mut(REPO).drafts_supported = false;
        let number = w.fix(mended()).await;
        assert!(!w.our_pull().pull.unwrap().draft);
        insta::assert_snapshot!(w.sticky(number), @r"
        **✅ Pull request #2 · 1s**

        [#2](https://hub.example/octo/demo/pull/2) · 1 commit · 1 file, +1 −1

        > ℹ️ This repository does not take drafts, so it is a normal pull request.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        ");
    })
    .await;
}

#[tokio::test]
async fn a_pull_request_that_is_refused_fails_the_run_and_names_the_reason_and_the_branch() {
    World::run(async |w| {
        let refusal = r#"{"message":"Validation Failed","errors":[{"resource":"PullRequest","code":"custom","message":"You have too many open pull requests"}]}"#;
        w.hub.fail_next("POST /repos/*/*/pulls", Fault::Refuse(422, refusal.into()));
        let number = w.fix(mended()).await;
        assert_eq!(failed(w, 1).await, FailureClass::Forge);
        insta::assert_snapshot!(w.own(number).join("\n=====\n"), @r#"
        **❌ Failed: forge at step "pull request" · 1s**

        The pull request could not be opened: Validation Failed; You have too many open pull requests.

        The work is on `zeblit/1-the-answer-is-wrong-k0001` (1 commit).

        Mend what the forge objects to (rules of the branch, permissions of the App), then `/zeblit retry`.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        =====
        ❌ @ada, run `run_0001` failed (forge).

        The pull request could not be opened: Validation Failed; You have too many open pull requests.

        The work is on `zeblit/1-the-answer-is-wrong-k0001` (1 commit).

        Mend what the forge objects to (rules of the branch, permissions of the App), then `/zeblit retry`.
        "#);
    })
    .await;
}

#[tokio::test]
async fn a_branch_that_was_deleted_meanwhile_is_made_again_with_a_pull_request_of_its_own() {
    World::run(async |w| {
        let number = w.fix(mended()).await;
        let pull = w.our_pull().number;
        w.hub.delete_branch(REPO, OWN_BRANCH);
        w.hub.set_open(REPO, pull, false);
        w.sandbox.next(Script::edit("b.txt", "b\n"));
        w.say(number, "ada", "/zeblit fix once more").await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded, "{:?}", w.own(number));
        assert_eq!(w.hub.file_at(REPO, OWN_BRANCH, "b.txt").unwrap(), "b\n");
        let open: Vec<i64> =
            w.hub.pulls(REPO).into_iter().filter(|pull| pull.open).map(|pull| pull.number).collect();
        assert_eq!(open, [3], "the closed one is not reported as the place of the new work");
        insta::assert_snapshot!(w.own(number)[1], @r"
        **✅ Draft pull request #3 · 2s**

        [#3](https://hub.example/octo/demo/pull/3) · 1 commit · 1 file, +1 −0

        > ℹ️ The recipe `demo-fix` takes no words; those of the request were not used.

        <sub>run `run_0002` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0002?e=1775379604&s=cfceac0d62fdf365373eef59f33059ef)</sub>
        ");
    })
    .await;
}

#[tokio::test]
async fn a_pull_request_that_was_closed_is_not_reported_as_the_result_of_the_next_run() {
    World::run(async |w| {
        let number = w.fix(mended()).await;
        let first = w.our_pull().number;
        w.hub.set_open(REPO, first, false);
        let delivery = w.hub.pull_event(REPO, first, "closed", "bob");
        w.deliver(&delivery).await;
        w.settle().await;
        w.sandbox.next(Script::edit("b.txt", "b\n"));
        w.say(number, "ada", "/zeblit fix once more").await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded, "{:?}", w.own(number));
        let open: Vec<i64> =
            w.hub.pulls(REPO).into_iter().filter(|pull| pull.open).map(|pull| pull.number).collect();
        assert_eq!(open.len(), 1, "the work of the second run can be reviewed somewhere");
        assert_eq!(w.nth_run(2).await.outcome.pull_number, Some(open[0]));
    })
    .await;
}

#[tokio::test]
async fn the_sticky_comment_of_the_run_before_is_folded_away_on_retry() {
    World::run(async |w| {
        let number = w.fix(Script::fails(1)).await;
        w.sandbox.next(mended());
        w.say(number, "ada", "/zeblit retry").await;
        w.settle().await;
        let comments = w.hub.comments(REPO, number);
        let folded: Vec<&str> = comments
            .iter()
            .filter(|comment| comment.minimised.as_deref() == Some("OUTDATED"))
            .map(|comment| comment.body.lines().next().unwrap())
            .collect();
        assert_eq!(folded, ["**❌ Failed: agent at step \"agent\" · 0s**"]);
        assert_eq!(w.state_of(2).await, RunState::Succeeded);
    })
    .await;
}

// ---------------------------------------------------------------- other people's pull requests

#[tokio::test]
async fn a_fix_on_a_pull_request_of_the_same_repository_pushes_onto_its_head() {
    World::run(async |w| {
        let number = w.pull();
        let before = w.hub.head(REPO, "feature").unwrap();
        w.sandbox.next(Script::edit("src/new.py", "def new():\n    return 2\n"));
        w.say(number, "ada", "/zeblit fix return two").await;
        w.settle().await;
        assert_eq!(w.hub.log(REPO, "feature", "%P", 1), before, "one commit on top");
        assert_eq!(w.hub.branches(REPO), ["feature", "main"]);
        assert_eq!(w.hub.pulls(REPO).len(), 1, "no pull request of ours");
        insta::assert_snapshot!(w.own(number).join("\n=====\n"), @r"
        **✅ Pushed 1 commit to `feature` · 0s**

        1 commit · 1 file, +1 −1

        > ℹ️ The recipe `demo-fix` takes no words; those of the request were not used.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        ");
    })
    .await;
}

#[tokio::test]
async fn a_head_that_moved_before_the_start_is_a_conflict() {
    World::run(async |w| {
        let number = w.pull();
        w.say(number, "ada", "/zeblit fix").await;
        w.stage(0).await;
        let theirs = w.hub.push_commit(REPO, "feature", &[("c.txt", "c\n")], "Meanwhile");
        w.settle().await;
        assert_eq!(failed(w, 1).await, FailureClass::Conflict);
        assert_eq!(w.hub.head(REPO, "feature"), Some(theirs));
        assert_eq!(w.sandbox.agents_started(), 0, "no agent worked on a commit that nobody meant");
        insta::assert_snapshot!(w.sticky(number), @r#"
        **❌ Failed: conflict at step "clone" · 0s**

        `feature` moved after the command was given, and I work only on the commit that was meant.

        `/zeblit retry` starts again from the new head.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        "#);
        w.sandbox.next(Script::edit("d.txt", "d\n"));
        w.say(number, "ada", "/zeblit retry").await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded, "retry takes the new head");
    })
    .await;
}

#[tokio::test]
async fn a_head_that_moved_while_the_agent_worked_is_never_overwritten() {
    World::run(async |w| {
        let number = w.pull();
        w.sandbox.next(Script::hangs().and_edit("src/new.py", "def new():\n    return 2\n"));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let theirs = w.hub.push_commit(REPO, "feature", &[("c.txt", "c\n")], "Meanwhile");
        w.sandbox.finish_hanging();
        w.settle().await;
        assert_eq!(failed(w, 1).await, FailureClass::Conflict);
        assert_eq!(w.hub.head(REPO, "feature"), Some(theirs));
        insta::assert_snapshot!(w.sticky(number), @r#"
        **❌ Failed: conflict at step "push" · 2s**

        `feature` moved while the agent worked, and I never overwrite that.

        `/zeblit retry` starts again from the new head.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        "#);
    })
    .await;
}

#[tokio::test]
async fn our_own_branch_is_never_overwritten_either() {
    World::run(async |w| {
        let number = w.fix(mended()).await;
        w.sandbox.next(Script::hangs().and_edit("b.txt", "b\n"));
        w.say(number, "ada", "/zeblit fix more").await;
        w.settle().await;
        let theirs = w.hub.push_commit(REPO, OWN_BRANCH, &[("c.txt", "c\n")], "A person's commit");
        w.sandbox.finish_hanging();
        w.settle().await;
        assert_eq!(failed(w, 2).await, FailureClass::Conflict);
        assert_eq!(w.hub.head(REPO, OWN_BRANCH), Some(theirs));
        w.sandbox.next(Script::edit("b.txt", "b\n"));
        w.say(number, "ada", "/zeblit retry").await;
        w.settle().await;
        assert_eq!(w.state_of(3).await, RunState::Succeeded, "{:?}", w.own(number));
        assert_eq!(w.hub.file_at(REPO, OWN_BRANCH, "c.txt").unwrap(), "c\n");
    })
    .await;
}

#[tokio::test]
async fn partial_work_on_a_persons_pull_request_goes_to_a_branch_of_ours() {
    World::run(async |w| {
        let number = w.pull();
        let before = w.hub.head(REPO, "feature").unwrap();
        w.sandbox.next(Script::fails(1).and_edit("half.txt", "half\n"));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(
            w.hub.head(REPO, "feature").unwrap(),
            before,
            "half work is not pushed onto people's work"
        );
        let branches = w.hub.branches(REPO);
        let ours = branches.iter().find(|name| name.starts_with("zeblit/")).unwrap().clone();
        insta::assert_snapshot!(w.sticky(number), @r#"
        **❌ Failed: agent at step "agent" · 0s**

        The agent ended with exit code 1.

        Partial work is on `zeblit/1-partial-work-n0001` (1 commit).

        `/zeblit continue` goes on from there, `/zeblit retry --agent NAME` tries another agent.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        "#);
        w.sandbox.next(Script::nothing().and_do(|workspace| {
            let half = std::fs::read_to_string(workspace.join("half.txt")).expect("it goes on from there");
            std::fs::write(workspace.join("half.txt"), half + "whole\n").unwrap();
        }));
        w.say(number, "ada", "/zeblit continue").await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded, "{:?}", w.own(number));
        assert_eq!(w.hub.file_at(REPO, "feature", "half.txt").unwrap(), "half\nwhole\n");
        assert_eq!(w.hub.branches(REPO), ["feature", "main", ours.as_str()]);
    })
    .await;
}

#[tokio::test]
async fn a_fork_is_only_read() {
    World::run(async |w| {
        w.hub.add_user("eve", 105);
        w.hub.add_fork(REPO, "eve/demo");
        w.hub.push_commit("eve/demo", "evil", &[("src/app.py", "import os\n")], "Improve");
        let number = w.hub.open_pull(REPO, "eve", "eve:evil", "main", "Improve");
        for command in ["/zeblit fix", "/zeblit run format", "/zeblit retry"] {
            w.say(number, "ada", command).await;
        }
        w.settle().await;
        assert_eq!(w.sandbox.agents_started(), 0);
        insta::assert_snapshot!(w.own(number).join("\n=====\n"), @r"
        🚫 This pull request comes from a fork, so `fix` would run a stranger's code. Read the commit `726958d6121f` first, then type `/zeblit ok 726958d6121f` and the command again. `/zeblit review` and `/zeblit ask` run nothing and need no approval.
        =====
        🚫 This pull request comes from a fork, so `run` would run a stranger's code. Read the commit `726958d6121f` first, then type `/zeblit ok 726958d6121f` and the command again. `/zeblit review` and `/zeblit ask` run nothing and need no approval.
        =====
        😕 There is no earlier run here to retry. `/zeblit fix` starts one.
        ");
        let words = serde_json::json!({
            "type": "result", "subtype": "success", "is_error": false, "result": "It imports os for nothing.",
        });
        w.sandbox.next(Script::nothing().and_print(&words.to_string()).and_do(|workspace| {
            assert_eq!(std::fs::read_to_string(workspace.join("src/app.py")).unwrap(), "import os\n");
        }));
        w.say(number, "ada", "/zeblit review").await;
        w.settle().await;
        let own = w.own(number);
        assert!(own.last().unwrap().starts_with("It imports os for nothing."), "{own:?}");
        let transcript = w.hub.transcript();
        let touched = ["push ", "draft ", "pull request "];
        assert!(!transcript.lines().any(|line| touched.iter().any(|start| line.starts_with(start))), "{transcript}");
    })
    .await;
}

#[tokio::test]
async fn a_review_answers_on_the_pull_request_and_pushes_nothing() {
    World::run(async |w| {
        let number = w.pull();
        let head = w.hub.head(REPO, "feature").unwrap();
        let words = serde_json::json!({
            "type": "result", "subtype": "success", "is_error": false, "result": "Looks right to me.",
        });
        w.sandbox.next(Script::nothing().and_print(&words.to_string()));
        w.say(number, "ada", "/zeblit review the error handling").await;
        w.settle().await;
        insta::assert_snapshot!(w.own(number).join("\n=====\n"), @r"
        **✅ Answered below · 0s**

        <sub>run `run_0001` for ada · `reviewer` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        =====
        Looks right to me.

        <sub>`reviewer` answered ada's `review` · run `run_0001`</sub>
        ");
        assert_eq!(w.hub.checks(REPO, &head)[0].conclusion.as_deref(), Some("success"));
        assert_eq!(w.hub.head(REPO, "feature").unwrap(), head);
    })
    .await;
}

#[tokio::test]
async fn a_protected_branch_refuses_the_push_and_the_run_says_so() {
    World::run(async |w| {
        let number = w.pull();
        w.hub.protect_branch(REPO, "feature");
        w.sandbox.next(Script::edit("d.txt", "d\n"));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(failed(w, 1).await, FailureClass::Forge);
        insta::assert_snapshot!(w.sticky(number), @r#"
        **❌ Failed: forge at step "push" · 0s**

        The push was refused: hook declined: error: GH006: Protected branch update failed for refs/heads/feature.; error: hook declined to update refs/heads/feature.

        Mend what the forge objects to (rules of the branch, permissions of the App), then `/zeblit retry`.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        "#);
    })
    .await;
}

#[tokio::test]
async fn the_default_branch_is_never_pushed_to_even_when_it_is_a_head() {
    World::run(async |w| {
        w.hub.push_commit(REPO, "old", &[("o.txt", "o\n")], "Old");
        w.hub.push_commit(REPO, "main", &[("m.txt", "m\n")], "Newer");
        let number = w.hub.open_pull(REPO, "bob", "main", "old", "Backport everything");
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(
            w.own(number),
            ["🚫 The head of this pull request is `main`, a branch I never push to. `/zeblit review` works."]
        );
        assert!(w.runs().await.is_empty());
    })
    .await;
}
