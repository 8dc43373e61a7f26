//! The forge breaks in every way it has: in the end there is exactly one of everything, and never too much of it.

use crate::world::hub::Fault;
use crate::world::hub::state::On;
use crate::world::sandbox::Script;
use crate::world::{REPO, World, without_markers};
use chrono::Duration;
use std::collections::BTreeSet;
use zeblit::domain::run::RunState;

const COMMENT: &str = "POST /repos/*/*/issues/*/comments";
const EDIT: &str = "PATCH /repos/*/*/issues/comments/*";
const REACTION: &str = "POST /repos/*/*/issues/comments/*/reactions";
const CHECK: &str = "POST /repos/*/*/check-runs";
const CHECK_EDIT: &str = "PATCH /repos/*/*/check-runs/*";
const REPLY: &str = "POST /repos/*/*/pulls/*/comments/*/replies";
const PULL: &str = "POST /repos/*/*/pulls";
const PUSH: &str = "POST /git/*/*/git-receive-pack";
const TOKEN: &str = "POST /app/installations/*/access_tokens";
const MINIMISE: &str = "POST /graphql";

/// Ways in which one answer goes wrong and the next is right again.
fn faults() -> Vec<Fault> {
    vec![
        Fault::After(502),
        Fault::ResetAfter,
        Fault::Before(500),
        Fault::ResetBefore,
        Fault::SecondaryLimit(30),
        Fault::SpokenLimit,
        Fault::PrimaryLimit(90),
        Fault::Before(401),
    ]
}

/// Every comment of ours has another marker, every check another commit or run, every reaction comes once.
fn nothing_twice(w: &World, numbers: &[i64], when: &str) {
    for number in numbers {
        let bodies = w.hub.own_comments(REPO, *number);
        let markers: BTreeSet<String> = bodies
            .iter()
            .map(|body| body[body.find("<!-- zeblit").expect("every comment has its marker")..].to_owned())
            .collect();
        assert_eq!(markers.len(), bodies.len(), "{when}: {bodies:#?}");
    }
    let state = w.hub.state();
    let repo = state.repo(REPO);
    let checks: BTreeSet<_> = repo.checks.iter().map(|check| (&check.head_sha, &check.external_id)).collect();
    assert_eq!(checks.len(), repo.checks.len(), "{when}: {:#?}", repo.checks);
    assert!(repo.checks.iter().all(|check| check.status == "completed"), "{when}: {:#?}", repo.checks);
    let reactions: BTreeSet<_> = repo.reactions.iter().map(|r| (r.on, &r.content)).collect();
    assert_eq!(reactions.len(), repo.reactions.len(), "{when}");
}

/// A fix of an issue that meets the fault once.
async fn an_issue_with(pattern: &str, fault: &Fault) {
    let when = format!("{pattern} {fault:?}");
    World::run(async |w| {
        w.hub.fail_next(pattern, fault.clone());
        let (number, comment) = w
            .ask("/zeblit fix", Script::hangs().and_edit("src/app.py", "def answer():\n    return 42\n"))
            .await;
        w.settle().await;
        w.sandbox.finish_hanging();
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Succeeded, "{when}: {:?}", run.outcome);
        let pull = w.our_pull();
        assert_eq!(run.outcome.pull_number, Some(pull.number), "{when}");
        assert_eq!(w.hub.branches(REPO).len(), 2, "{when}");
        let own = w.own(number);
        assert_eq!(own.len(), 1, "{when}: {own:?}");
        assert!(own[0].starts_with("**✅ Draft pull request #"), "{when}: {own:?}");
        assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes", "rocket"], "{when}");
        nothing_twice(w, &[number], &when);
        assert_eq!(w.sandbox.agents_started(), 1, "{when}");
    })
    .await;
}

/// A failed fix of a pull request and its retry, one of whose requests meets the fault.
async fn a_pull_with(pattern: &str, fault: &Fault) {
    let when = format!("{pattern} {fault:?}");
    World::run(async |w| {
        w.hub.fail_next(pattern, fault.clone());
        let number = w.pull();
        w.sandbox.next(Script::hangs());
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        w.sandbox.loses_all();
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Failed, "{when}");
        w.sandbox.next(Script::edit("b.txt", "b\n"));
        w.say(number, "ada", "/zeblit retry").await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded, "{when}");
        let own = w.own(number);
        assert_eq!(own.len(), 3, "two sticky comments and one that calls; {when}: {own:?}");
        nothing_twice(w, &[number], &when);
        let folded = w.hub.comments(REPO, number).iter().filter(|c| c.minimised.is_some()).count();
        assert_eq!(folded, 1, "{when}");
    })
    .await;
}

/// A question in a review thread, whose pointer and answer in the thread meet the fault.
async fn a_thread_with(pattern: &str, fault: &Fault) {
    let when = format!("{pattern} {fault:?}");
    World::run(async |w| {
        let number = w.pull();
        let first = w.hub.review_comment(REPO, number, "ada", ("src/new.py", 1), "/zeblit ask why?");
        let words = serde_json::json!({
            "type": "result", "subtype": "success", "is_error": false, "result": "Because.",
        });
        w.sandbox.next(Script::hangs().and_print(&words.to_string()));
        w.hub.fail_next(pattern, fault.clone());
        let delivery = w.hub.review_comment_created(REPO, first);
        w.deliver(&delivery).await;
        w.settle().await;
        w.sandbox.finish_hanging();
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded, "{when}");
        let replies: Vec<String> = w
            .hub
            .review_comments(REPO, number)
            .into_iter()
            .filter(|comment| comment.reply_to == Some(first))
            .map(|comment| without_markers(&comment.body))
            .collect();
        assert_eq!(replies.len(), 2, "the pointer and the answer; {when}: {replies:#?}");
        assert!(replies.iter().any(|text| text.contains("Because.")), "{when}: {replies:#?}");
        assert_eq!(w.own(number).len(), 1, "{when}: {:?}", w.own(number));
        assert_eq!(w.hub.reactions(REPO, On::ReviewComment(first)), ["eyes", "rocket"], "{when}");
        nothing_twice(w, &[number], &when);
    })
    .await;
}

macro_rules! each_fault {
    ($($name:ident: $job:ident $pattern:expr;)+) => {$(
        #[tokio::test]
        async fn $name() {
            for fault in faults() {
                $job($pattern, &fault).await;
            }
        }
    )+};
}

each_fault! {
    the_sticky_comment_is_made_once_whatever_happens: an_issue_with COMMENT;
    the_sticky_comment_ends_true_whatever_happens_to_an_edit: an_issue_with EDIT;
    reactions_come_once_whatever_happens: an_issue_with REACTION;
    the_check_is_made_once_whatever_happens: an_issue_with CHECK;
    the_pull_request_is_opened_once_whatever_happens: an_issue_with PULL;
    checks_end_true_whatever_happens_to_an_edit: a_pull_with CHECK_EDIT;
    replies_in_a_thread_are_written_once_whatever_happens: a_thread_with REPLY;
    old_sticky_comments_are_folded_whatever_happens: a_pull_with MINIMISE;
}

#[tokio::test]
async fn the_branch_is_pushed_once_whatever_happens() {
    for fault in [Fault::After(502), Fault::ResetAfter, Fault::Before(500), Fault::ResetBefore] {
        an_issue_with(PUSH, &fault).await;
    }
}

#[tokio::test]
async fn a_token_that_is_not_to_be_had_is_asked_for_again() {
    for fault in [Fault::Before(500), Fault::ResetBefore, Fault::SecondaryLimit(30)] {
        an_issue_with(TOKEN, &fault).await;
    }
}

#[tokio::test]
async fn a_lost_answer_and_a_list_that_lags_make_no_twin() {
    for pattern in [COMMENT, CHECK, PULL] {
        for fault in [Fault::After(502), Fault::ResetAfter] {
            World::run(async |w| {
                w.hub.lag_lists(3);
                w.hub.fail_next(pattern, fault.clone());
                let number = w.fix(Script::edit("a.txt", "a\n")).await;
                let when = format!("{pattern} {fault:?}");
                assert_eq!(w.state_of(1).await, RunState::Succeeded, "{when}");
                w.our_pull();
                assert_eq!(w.own(number).len(), 1, "{when}: {:?}", w.own(number));
                nothing_twice(w, &[number], &when);
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_forge_that_is_down_for_minutes_costs_time_only() {
    World::run(async |w| {
        let number = w.issue();
        w.sandbox.next(Script::edit("a.txt", "a\n"));
        w.hub.fail_times("POST /repos/**", Fault::Before(503), 12);
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        w.our_pull();
        nothing_twice(w, &[number], "twelve refusals");
    })
    .await;
}

#[tokio::test]
async fn a_sticky_comment_that_was_deleted_is_not_forced_back_on_people_and_the_run_ends_well() {
    World::run(async |w| {
        let (number, _) = w.ask("/zeblit fix", Script::hangs().and_edit("a.txt", "a\n")).await;
        w.settle().await;
        let sticky = w.hub.comments(REPO, number).into_iter().find(|comment| comment.via_app).unwrap();
        w.hub.delete_comment(REPO, sticky.id);
        w.sandbox.finish_hanging();
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        w.our_pull();
        let own = w.own(number);
        assert!(own.len() <= 1, "{own:?}");
        for text in &own {
            assert!(text.starts_with("**✅"), "{text}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_limit_of_the_forge_holds_everything_for_as_long_as_it_says() {
    World::run(async |w| {
        w.hub.fail_next(REACTION, Fault::SecondaryLimit(600));
        let before = zeblit::clock::Clock::now(w.clock.as_ref());
        let number = w.fix(Script::edit("a.txt", "a\n")).await;
        assert_eq!(w.own(number).len(), 1);
        for write in w.hub.writes() {
            // The push is no content write: it goes by Git.
            let waited = write.at - before;
            assert!(
                write.path.starts_with("/git/") || waited >= Duration::seconds(600),
                "{}: {waited}",
                write.summary
            );
        }
    })
    .await;
}

// ---------------------------------------------------------------- the governor

#[tokio::test]
async fn thirty_runs_at_once_stay_below_the_writes_of_a_minute_and_an_hour() {
    World::run_with(
        |config| {
            config.limits.runs = 30;
            config.limits.runs_per_repo = 30;
            config.limits.runs_per_user = 30;
            config.limits.commands_per_user_hour = 1000;
        },
        async |w| {
            w.sandbox.usually(Script::edit("a.txt", "a\n"));
            let mut numbers = Vec::new();
            for _ in 0..30 {
                let number = w.issue();
                w.say(number, "ada", "/zeblit fix").await;
                numbers.push(number);
            }
            for _ in 0..4000 {
                if !w.round().await {
                    break;
                }
            }
            assert_eq!(w.hub.pulls(REPO).len(), 30);
            assert!(w.hub.most_writes_in(Duration::minutes(1)) <= 60);
            assert!(w.hub.most_writes_in(Duration::hours(1)) <= 400);
            let content = w.hub.writes().iter().filter(|write| !write.path.starts_with("/git/")).count();
            assert!(content <= 30 * 7, "{content} writes for 30 runs");
            nothing_twice(w, &numbers, "thirty runs");
        },
    )
    .await;
}

#[tokio::test]
async fn a_chatty_hour_stays_below_its_limit_and_leaves_room_for_what_matters() {
    World::run_with(
        |config| {
            config.limits.runs = 4;
            config.limits.runs_per_repo = 4;
            config.limits.runs_per_user = 4;
            config.limits.writes_per_hour = 60;
            config.limits.writes_per_minute = 12;
        },
        async |w| {
            w.sandbox.usually(Script::hangs().and_edit("a.txt", "a\n"));
            let mut numbers = Vec::new();
            for _ in 0..4 {
                let number = w.issue();
                w.say(number, "ada", "/zeblit fix").await;
                numbers.push(number);
            }
            for n in 0..12 {
                w.sandbox.prints(&format!("step {n}"));
                w.clock.advance(Duration::seconds(16));
                for _ in 0..6 {
                    w.stage(2).await;
                    w.stage(4).await;
                    w.clock.advance(Duration::seconds(1));
                    if n == 0 {
                        w.stage(0).await;
                        w.stage(1).await;
                    }
                }
            }
            let before = w.hub.writes().len();
            assert!(before <= 42, "progress takes at most seven tenths of the hour: {before}");
            w.sandbox.finish_hanging();
            w.settle().await;
            for number in &numbers {
                assert!(w.sticky(*number).starts_with("**✅"), "{}", w.sticky(*number));
            }
            assert!(w.hub.most_writes_in(Duration::hours(1)) <= 60);
        },
    )
    .await;
}

#[tokio::test]
async fn what_is_final_goes_before_progress() {
    World::run_with(
        |config| {
            config.limits.runs = 5;
            config.limits.runs_per_repo = 5;
            config.limits.runs_per_user = 5;
        },
        async |w| {
            let mut numbers = Vec::new();
            for _ in 0..5 {
                w.sandbox.next(Script::hangs());
                let number = w.issue();
                w.say(number, "ada", "/zeblit fix").await;
                numbers.push(number);
            }
            w.settle().await;
            w.clock.advance(Duration::seconds(20));
            w.sandbox.prints("still at it");
            // All reports are due; the last run also gets its end before anything is sent.
            w.stage(2).await;
            let last = numbers[4];
            w.say(last, "ada", "/zeblit cancel").await;
            for _ in 0..8 {
                w.stage(0).await;
                w.stage(2).await;
            }
            let sent = w.hub.writes().len();
            w.settle().await;
            let lines: Vec<String> =
                w.hub.writes().into_iter().skip(sent).map(|write| write.summary).collect();
            let first_progress = lines.iter().position(|line| line.contains("🏃 Running")).unwrap();
            let last_final = lines.iter().rposition(|line| line.contains("🛑")).unwrap();
            assert!(last_final < first_progress, "{lines:#?}");
            w.sandbox.finish_hanging();
            w.settle().await;
        },
    )
    .await;
}

#[tokio::test]
async fn a_comment_of_ours_always_carries_its_marker_and_no_two_are_alike() {
    World::run(async |w| {
        let number = w.fix(Script::fails(1)).await;
        w.say(number, "ada", "/zeblit retry").await;
        w.say(number, "ada", "/zeblit help").await;
        w.settle().await;
        nothing_twice(w, &[number], "several comments");
        for body in w.hub.own_comments(REPO, number) {
            assert!(!without_markers(&body).contains("zeblit:v1"), "{body}");
        }
    })
    .await;
}
