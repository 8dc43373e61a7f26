//! The queue as people see it: one run at a time per task and branch, caps, places, cancels, retries, pause.

use crate::world::hub::state::On;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use zeblit::domain::ids::RunId;
use zeblit::domain::run::RunState;
use zeblit::engine::operate;

/// States of all runs, oldest first.
async fn states(w: &World) -> Vec<RunState> {
    let mut runs = w.runs().await;
    runs.reverse();
    runs.into_iter().map(|run| run.state).collect()
}

/// Lets every running agent end, round after round, until nothing is left.
async fn finish_all(w: &mut World) {
    for _ in 0..20 {
        w.sandbox.finish_hanging();
        w.settle().await;
        if w.runs().await.iter().all(|run| run.state.is_terminal()) {
            return;
        }
    }
    panic!("runs do not end: {:?}", states(w).await);
}

use RunState::{Cancelled, Nothing, Queued, Running, Succeeded};

#[tokio::test]
async fn runs_of_one_issue_go_one_after_the_other() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs());
        let number = w.issue();
        for more in ["", " and that", " and this"] {
            w.say(number, "ada", &format!("/zeblit fix{more}")).await;
        }
        w.settle().await;
        assert_eq!(states(w).await, [Running, Queued, Queued]);
        w.sandbox.finish_hanging();
        w.settle().await;
        assert_eq!(states(w).await, [Nothing, Running, Queued]);
        finish_all(w).await;
        assert_eq!(states(w).await, [Nothing, Nothing, Nothing]);
    })
    .await;
}

#[tokio::test]
async fn runs_of_two_issues_go_side_by_side() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs().and_edit("a.txt", "a\n").and_remove("README.md"));
        let (one, two) = (w.issue(), w.issue());
        w.say(one, "ada", "/zeblit fix").await;
        w.say(two, "max", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(states(w).await, [Running, Running]);
        finish_all(w).await;
        assert_eq!(states(w).await, [Succeeded, Succeeded]);
        assert_eq!(w.hub.branches(REPO).len(), 3);
        assert_eq!(w.hub.pulls(REPO).len(), 2);
    })
    .await;
}

#[tokio::test]
async fn two_pull_requests_with_one_head_are_worked_on_one_after_the_other() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs());
        let one = w.pull();
        w.hub.push_commit(REPO, "stable", &[("s.txt", "s\n")], "Stable");
        let two = w.hub.open_pull(REPO, "bob", "feature", "stable", "The same for stable");
        w.say(one, "ada", "/zeblit fix").await;
        w.say(two, "max", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(states(w).await, [Running, Queued]);
        finish_all(w).await;
    })
    .await;
}

#[tokio::test]
async fn caps_hold_for_all_for_a_repository_and_for_a_user() {
    // (runs in all, per repository, per user, how many of ada's and max's two issues each may run)
    for (global, per_repo, per_user, wanted) in
        [(1, 9, 9, 1), (9, 2, 9, 2), (9, 9, 1, 2), (3, 9, 9, 3), (9, 9, 9, 4)]
    {
        World::run_with(
            |config| {
                config.limits.runs = global;
                config.limits.runs_per_repo = per_repo;
                config.limits.runs_per_user = per_user;
            },
            async |w| {
                w.sandbox.usually(Script::hangs());
                for login in ["ada", "ada", "max", "max"] {
                    let number = w.issue();
                    w.say(number, login, "/zeblit fix").await;
                }
                w.settle().await;
                let running = states(w).await.into_iter().filter(|state| *state == Running).count();
                assert_eq!(running, wanted, "{global} {per_repo} {per_user}");
                finish_all(w).await;
            },
        )
        .await;
    }
}

#[tokio::test]
async fn the_place_in_the_queue_is_shown_and_moves_up() {
    World::run_with(
        |config| config.limits.runs = 1,
        async |w| {
            w.sandbox.usually(Script::hangs());
            let mut numbers = Vec::new();
            for _ in 0..3 {
                let number = w.issue();
                w.say(number, "ada", "/zeblit fix").await;
                numbers.push(number);
                w.settle().await;
            }
            let first_line = |w: &World, number: i64| w.sticky(number).lines().next().unwrap().to_owned();
            assert_eq!(first_line(w, numbers[1]), "**⏳ Queued · position 1**");
            assert_eq!(first_line(w, numbers[2]), "**⏳ Queued · position 2**");
            w.sandbox.finish_hanging();
            w.settle().await;
            assert!(first_line(w, numbers[1]).starts_with("**🏃 Running"), "{}", first_line(w, numbers[1]));
            assert_eq!(first_line(w, numbers[2]), "**⏳ Queued · position 1**");
            finish_all(w).await;
        },
    )
    .await;
}

#[tokio::test]
async fn a_queued_run_is_cancelled_at_once_and_the_live_one_goes_on() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs());
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        w.say(number, "ada", "/zeblit fix the docs").await;
        w.settle().await;
        operate::cancel(&w.app, &RunId::new("run_0002"), "token ops").await.unwrap();
        w.settle().await;
        assert_eq!(states(w).await, [Running, Cancelled]);
        assert_eq!(w.sandbox.agents_started(), 1);
        insta::assert_snapshot!(w.own(number)[1], @r"
        **🛑 Cancelled before it started**

        Asked for by token ops.

        `/zeblit continue` goes on from here, `/zeblit retry` asks for the same again.

        <sub>run `run_0002` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0002?e=1775379601&s=7d593c408827b211b07c49c60ce65115)</sub>
        ");
        finish_all(w).await;
    })
    .await;
}

#[tokio::test]
async fn cancel_stops_what_runs_and_what_waits_and_keeps_the_partial_work() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs().and_edit("half.txt", "half\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        w.say(number, "ada", "/zeblit fix the docs").await;
        w.settle().await;
        w.say(number, "ada", "/zeblit cancel").await;
        w.settle().await;
        assert_eq!(states(w).await, [Cancelled, Cancelled]);
        let run = w.nth_run(1).await;
        let branch = run.outcome.branch.unwrap();
        assert_eq!(w.hub.file_at(REPO, branch.as_str(), "half.txt").unwrap(), "half\n");
        let head = w.hub.head(REPO, branch.as_str()).unwrap();
        assert_eq!(w.hub.checks(REPO, &head)[0].conclusion.as_deref(), Some("cancelled"));
        assert!(w.hub.pulls(REPO).is_empty());
    })
    .await;
}

#[tokio::test]
async fn cancel_where_nothing_runs_says_so() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.say(number, "ada", "/zeblit cancel").await;
        w.settle().await;
        assert_eq!(w.own(number), ["👍 Nothing is running or queued here."]);
        assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes"]);
    })
    .await;
}

#[tokio::test]
async fn closing_the_issue_stops_its_run() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs());
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        w.hub.set_open(REPO, number, false);
        let closed = w.hub.issue_event(REPO, number, "closed", "bob");
        w.deliver(&closed).await;
        w.settle().await;
        assert_eq!(states(w).await, [Cancelled]);
        insta::assert_snapshot!(w.sticky(number), @r"
        **🛑 Cancelled · 1s**

        #1 was closed.

        That ended its task, too. When it is open again, `/zeblit fix` begins a new one.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        ");
    })
    .await;
}

#[tokio::test]
async fn retry_asks_for_the_same_again_and_continue_adds_words() {
    World::run(async |w| {
        let number = w.issue();
        w.sandbox.usually(Script::fails(1));
        w.say(number, "ada", "/zeblit fix the rounding").await;
        w.settle().await;
        w.say(number, "max", "/zeblit retry").await;
        w.settle().await;
        w.say(number, "ada", "/zeblit continue but keep the name").await;
        w.settle().await;
        let (first, retry, on) = (w.nth_run(1).await, w.nth_run(2).await, w.nth_run(3).await);
        assert_eq!(retry.spec.text, first.spec.text);
        assert_eq!(retry.spec.requester.login, "max");
        assert_eq!(on.spec.text, "but keep the name");
        assert_eq!(on.spec.previous, Some(retry.id));
        assert_eq!(on.task, first.task);
    })
    .await;
}

#[tokio::test]
async fn retry_without_an_earlier_run_says_so() {
    World::run(async |w| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit retry").await;
        w.say(number, "ada", "/zeblit continue").await;
        w.settle().await;
        assert_eq!(
            w.own(number),
            [
                "😕 There is no earlier run here to retry. `/zeblit fix` starts one.",
                "😕 There is no earlier run here to continue. `/zeblit fix` starts one.",
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn the_forges_own_re_run_button_starts_a_retry_for_those_who_may() {
    World::run(async |w| {
        let number = w.pull();
        w.sandbox.usually(Script::fails(1));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let head = w.hub.head(REPO, "feature").unwrap();
        let check = w.hub.checks(REPO, &head)[0].id;
        let pressed = w.hub.check_rerequested(REPO, check, "bob");
        w.deliver(&pressed).await;
        w.settle().await;
        assert_eq!(w.runs().await.len(), 1, "bob may only read");
        w.sandbox.usually(Script::edit("b.txt", "b\n"));
        let pressed = w.hub.check_rerequested(REPO, check, "max");
        w.deliver(&pressed).await;
        w.deliver(&pressed).await;
        w.settle().await;
        assert_eq!(w.runs().await.len(), 2, "once pressed, once run");
        assert_eq!(w.state_of(2).await, Succeeded);
        assert_eq!(w.nth_run(2).await.spec.requester.login, "max");
        let again: Vec<String> =
            w.hub.checks(REPO, &head).into_iter().map(|check| check.external_id).collect();
        assert_eq!(again, ["run_0001:zeblit", "run_0002:zeblit"]);
    })
    .await;
}

#[tokio::test]
async fn a_re_run_after_the_head_moved_takes_the_new_head_or_says_why_not() {
    World::run(async |w| {
        let number = w.pull();
        w.sandbox.usually(Script::fails(1));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let head = w.hub.head(REPO, "feature").unwrap();
        let check = w.hub.checks(REPO, &head)[0].id;
        w.hub.push_commit(REPO, "feature", &[("c.txt", "c\n")], "Meanwhile");
        let pressed = w.hub.check_rerequested(REPO, check, "max");
        w.deliver(&pressed).await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Failed);
        assert!(w.own(number).last().unwrap().contains("`feature` moved after the command was given"));
    })
    .await;
}

#[tokio::test]
async fn while_paused_commands_are_taken_and_started_later_and_live_runs_go_on() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs());
        let (one, two) = (w.issue(), w.issue());
        w.say(one, "ada", "/zeblit fix").await;
        w.settle().await;
        operate::pause(&w.app, Some("maintenance"), "max").await.unwrap();
        w.say(two, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(states(w).await, [Running, Queued]);
        w.sandbox.finish_hanging();
        w.pass(Duration::minutes(2)).await;
        assert_eq!(states(w).await, [Nothing, Queued]);
        w.say(two, "ada", "/zeblit status").await;
        w.settle().await;
        insta::assert_snapshot!(w.own(two)[1], @r"
        ⏸ This server is paused: maintenance

        | Run | Asked by | What | State | Time | Cost |
        |---|---|---|---|---|---|
        | `run_0002` | ada | fix | ⏳ queued, position 1 | – | $0.00 |
        ");
        operate::pause(&w.app, None, "max").await.unwrap();
        w.settle().await;
        assert_eq!(states(w).await, [Nothing, Running]);
        finish_all(w).await;
    })
    .await;
}

#[tokio::test]
async fn an_operator_can_retry_an_ended_run_and_no_other() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs());
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let run = RunId::new("run_0001");
        let refused = operate::retry(&w.app, &run, "token ops").await.unwrap_err().to_string();
        assert_eq!(refused, "run run_0001 has not ended (it is running): cancel it first");
        finish_all(w).await;
        let new = operate::retry(&w.app, &run, "token ops").await.unwrap();
        finish_all(w).await;
        assert_eq!(w.nth_run(2).await.id, new);
        let missing =
            operate::retry(&w.app, &RunId::new("run_9"), "token ops").await.unwrap_err().to_string();
        assert_eq!(missing, "there is no run `run_9`");
    })
    .await;
}

#[tokio::test]
async fn a_run_that_waits_too_long_ends_and_says_so() {
    World::run(async |w| {
        operate::pause(&w.app, Some("maintenance"), "ops").await.unwrap();
        let number = w.issue();
        let comment = w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        w.clock.advance(Duration::hours(23));
        w.settle().await;
        assert_eq!(w.state_of(1).await, Queued);
        w.clock.advance(Duration::hours(1));
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Failed);
        let told = w.sticky(number);
        assert!(
            told.contains("It waited in the queue for 24 hours, its limit, and never started."),
            "{told}"
        );
        assert!(told.contains("`/zeblit retry` asks for the same again."), "{told}");
        assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes", "confused"]);
    })
    .await;
}
