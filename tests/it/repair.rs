//! What happened while nobody listened is found out: deliveries that did not arrive, subjects that were closed, runs
//! that nobody goes on with, deliveries that nobody survives.

use crate::world::hub::Fault;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use axum::http::StatusCode;
use chrono::Duration;
use zeblit::domain::run::{FailureClass, RunState};
use zeblit::engine::repair::{self, Look};
use zeblit::engine::{ingest, operate};
use zeblit::store;
use zeblit::store::inbox::InboxState;

const ATTEMPTS: &str = "POST /app/hook/deliveries/*/attempts";

async fn look(w: &mut World) {
    repair::tick(&w.app, Look::Due).await.unwrap();
    w.settle().await;
}

async fn boot(w: &mut World) {
    w.restart().await;
    repair::tick(&w.app, Look::Boot).await.unwrap();
    w.settle().await;
}

/// A comment of ada's whose delivery reaches nobody.
fn unheard(w: &World, number: i64, text: &str) -> i64 {
    let comment = w.hub.comment(REPO, number, "ada", text);
    w.miss(&w.hub.comment_created(REPO, comment));
    comment
}

async fn verdict(w: &World, id: &str) -> (InboxState, String) {
    let delivery = store::inbox::get(&w.app.store, id).await.unwrap().unwrap();
    (delivery.state, delivery.verdict)
}

#[tokio::test]
async fn a_delivery_that_nobody_heard_is_asked_for_at_the_next_start() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        let number = w.issue();
        let heard = w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        unheard(w, number, "/zeblit fix the docs");
        // The answer to this one was lost; it stands in the inbox.
        w.miss(&w.hub.comment_created(REPO, heard));
        let stored = w.hub.comment(REPO, number, "ada", "/zeblit fix the tests");
        let stored = w.hub.comment_created(REPO, stored);
        w.deliver(&stored).await;
        w.hub.state().hook_attempts.last_mut().unwrap().status = 504;
        boot(w).await;
        assert_eq!(w.hub.count(ATTEMPTS), 2, "the one that came is not asked for");
        let runs = w.runs().await;
        let texts: Vec<_> = runs.iter().rev().map(|run| run.spec.text.clone()).collect();
        assert_eq!(texts, ["", "the tests", "the docs"], "one comment makes one run, however often it comes");
        assert!(runs.iter().all(|run| run.state.is_terminal()));
        look(w).await;
        assert_eq!(w.hub.count(ATTEMPTS), 2);
    })
    .await;
}

#[tokio::test]
async fn looks_are_minutes_apart_and_reach_back_over_the_last_one() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        const LIST: &str = "GET /app/hook/deliveries";
        boot(w).await;
        assert_eq!(w.hub.count(LIST), 1);
        let number = w.issue();
        unheard(w, number, "/zeblit fix");
        w.clock.advance(Duration::minutes(4));
        look(w).await;
        assert_eq!(w.hub.count(LIST), 1, "not due");
        w.clock.advance(Duration::minutes(2));
        w.hub.fail_next("GET /app/hook/deliveries", Fault::Before(502));
        look(w).await;
        assert_eq!((w.hub.count(LIST), w.runs().await.len()), (2, 0), "the forge is away");
        look(w).await;
        assert_eq!((w.hub.count(LIST), w.runs().await.len()), (3, 1), "an unanswered look is no look");
        // The next one pages through what is newer than the last look, and no further.
        for _ in 0..150 {
            let ping = w.hub.ping();
            w.miss(&ping);
            w.hub.state().hook_attempts.last_mut().unwrap().status = 200;
        }
        unheard(w, number, "/zeblit fix the docs");
        w.clock.advance(Duration::minutes(6));
        look(w).await;
        assert_eq!((w.hub.count(LIST), w.runs().await.len()), (5, 2));
    })
    .await;
}

#[tokio::test]
async fn nothing_is_asked_for_when_it_is_switched_off() {
    World::run_with(
        |config| config.repair.minutes = 0,
        async |w| {
            let number = w.issue();
            unheard(w, number, "/zeblit fix");
            boot(w).await;
            assert_eq!((w.hub.count("GET /app/hook/deliveries"), w.runs().await.len()), (0, 0));
        },
    )
    .await;
}

#[tokio::test]
async fn a_delivery_that_never_arrives_is_asked_for_five_times_at_growing_distances() {
    World::run(async |w| {
        let number = w.issue();
        unheard(w, number, "/zeblit fix");
        let mut asked_at = Vec::new();
        for minute in 0..1500 {
            let before = w.hub.count(ATTEMPTS);
            repair::tick(&w.app, Look::Due).await.unwrap();
            // Each attempt fails as the first one did.
            for wanted in w.hub.wanted_again() {
                w.miss(&wanted);
            }
            if w.hub.count(ATTEMPTS) > before {
                asked_at.push(minute);
            }
            w.clock.advance(Duration::minutes(1));
        }
        assert_eq!(asked_at, [0, 5, 25, 105, 425]);
        assert!(w.runs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_question_that_the_forge_did_not_hear_does_not_count() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        let number = w.issue();
        unheard(w, number, "/zeblit fix");
        w.hub.fail_times(ATTEMPTS, Fault::SecondaryLimit(60), 7);
        for _ in 0..8 {
            repair::tick(&w.app, Look::Due).await.unwrap();
            w.clock.advance(Duration::minutes(1));
        }
        w.settle().await;
        assert_eq!(w.runs().await.len(), 1);
        // One that the forge has thrown away is let go after its time.
        w.miss(&w.hub.ping());
        w.hub.fail_times(ATTEMPTS, Fault::Before(404), 5);
        for _ in 0..100 {
            repair::tick(&w.app, Look::Due).await.unwrap();
            w.clock.advance(Duration::minutes(10));
        }
        assert_eq!(w.hub.count(ATTEMPTS), 8 + 5);
    })
    .await;
}

/// A live run on an issue.
async fn working(w: &mut World) -> i64 {
    w.sandbox.usually(Script::hangs());
    let number = w.issue();
    w.say(number, "ada", "/zeblit fix").await;
    w.settle().await;
    assert_eq!(w.state_of(1).await, RunState::Running);
    number
}

#[tokio::test]
async fn an_issue_that_was_closed_unheard_ends_as_if_it_had_been_heard() {
    World::run(async |w| {
        let number = working(w).await;
        w.hub.set_open(REPO, number, false);
        boot(w).await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
        assert_eq!(w.nth_run(1).await.outcome.reason, format!("#{number} was closed."));
        // The next command begins a new task.
        w.hub.set_open(REPO, number, true);
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_ne!(w.nth_run(2).await.task, w.nth_run(1).await.task);
        w.sandbox.finish_hanging();
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn an_issue_that_was_deleted_ends_its_run_and_a_command_after_the_look_does_not() {
    World::run(async |w| {
        let number = working(w).await;
        w.hub.state().repo_mut(REPO).issues.remove(&number);
        w.clock.advance(Duration::minutes(11));
        look(w).await;
        assert_eq!(w.nth_run(1).await.outcome.reason, format!("#{number} was deleted or moved."));
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
    })
    .await;
}

#[tokio::test]
async fn each_open_task_is_compared_once_in_its_time() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        operate::pause(&w.app, Some("hands off"), "ops").await.unwrap();
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let reads = |w: &World| w.hub.count(&format!("GET /repos/octo/demo/issues/{number}"));
        look(w).await;
        assert_eq!(reads(w), 1);
        look(w).await;
        w.clock.advance(Duration::minutes(9));
        look(w).await;
        assert_eq!(reads(w), 1);
        w.clock.advance(Duration::minutes(2));
        look(w).await;
        assert_eq!(reads(w), 2);
        operate::pause(&w.app, None, "ops").await.unwrap();
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Nothing);
        // Without a run, its task is looked at a few times a day.
        let idle = reads(w);
        w.clock.advance(Duration::minutes(70));
        look(w).await;
        assert_eq!(reads(w), idle);
        w.clock.advance(Duration::hours(6));
        look(w).await;
        assert_eq!(reads(w), idle + 1);
    })
    .await;
}

#[tokio::test]
async fn a_pull_request_that_was_merged_unheard_closes_its_task() {
    World::run(async |w| {
        let number = w.fix(Script::edit("answer.txt", "42\n")).await;
        let pull = w.our_pull().number;
        w.hub.merge(REPO, pull);
        boot(w).await;
        let task = w.nth_run(1).await.task;
        assert!(store::tasks::get(&w.app.store, &task).await.unwrap().unwrap().closed_at.is_some());
        assert!(w.hub.issue(REPO, number).open);
    })
    .await;
}

#[tokio::test]
async fn a_repository_that_was_renamed_unheard_is_followed() {
    World::run(async |w| {
        working(w).await;
        w.hub.rename_repo(REPO, "octo/renamed");
        boot(w).await;
        w.sandbox.finish_hanging();
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!((run.repo.name.as_str(), run.state), ("octo/renamed", RunState::Nothing));
        w.hub.rename_repo("octo/renamed", REPO);
    })
    .await;
}

#[tokio::test]
async fn a_repository_that_is_gone_ends_its_runs_at_the_second_look() {
    World::run(async |w| {
        working(w).await;
        let repo = w.hub.repo(REPO).id;
        w.hub.delete_repo(REPO);
        boot(w).await;
        assert_eq!(w.state_of(1).await, RunState::Running, "one look may err");
        w.clock.advance(Duration::minutes(11));
        look(w).await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Cancelled);
        assert_eq!(run.outcome.reason, "The repository was deleted, or the App may not see it any more.");
        w.hub.state().repos.get_mut(&repo).unwrap().deleted = false;
    })
    .await;
}

#[tokio::test]
async fn a_delivery_of_a_deleted_repository_ends_its_runs_at_once() {
    World::run(async |w| {
        working(w).await;
        let deleted = w.hub.repo_deleted(REPO, "max");
        w.deliver(&deleted).await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
        assert_eq!(verdict(w, &deleted.id).await.1, "repository deleted: 1 run(s) stop");
    })
    .await;
}

#[tokio::test]
async fn a_push_that_nobody_told_of_voids_the_approval() {
    World::run(async |w| {
        w.hub.add_user("eve", 900);
        w.hub.add_fork(REPO, "eve/demo");
        w.hub.push_commit("eve/demo", "feature", &[("new.py", "x = 1\n")], "New");
        let number = w.hub.open_pull(REPO, "eve", "eve:feature", "main", "From outside");
        w.sandbox.usually(Script::hangs());
        let head = w.hub.head("eve/demo", "feature").unwrap();
        w.say(number, "ada", &format!("/zeblit ok {head}")).await;
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Running);
        w.hub.push_commit("eve/demo", "feature", &[("new.py", "x = 2\n")], "Other");
        w.clock.advance(Duration::minutes(11));
        look(w).await;
        let key = store::approvals::PullKey { remote: "github", repo_id: w.hub.repo(REPO).id, number };
        assert_eq!(store::approvals::of_pull(&w.app.store, key).await.unwrap(), []);
        w.sandbox.finish_hanging();
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn a_run_whose_pull_request_does_not_come_ends_with_the_reason() {
    World::run(async |w| {
        w.sandbox.next(Script::edit("answer.txt", "42\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        for _ in 0..60 {
            w.round().await;
            if w.runs().await.first().is_some_and(|run| run.state == RunState::Reporting) {
                break;
            }
        }
        assert_eq!(w.state_of(1).await, RunState::Reporting);
        let key = format!("pull:{}", w.nth_run(1).await.task);
        let effect = store::effects::by_key(&w.app.store, &key).await.unwrap().unwrap();
        let later = w.clock_now() + Duration::days(3);
        let mut tx = w.app.store.write_tx().await.unwrap();
        store::effects::again(&mut tx, &effect, "the forge is away", later).await.unwrap();
        tx.commit().await.unwrap();
        repair::tick(&w.app, Look::Due).await.unwrap();
        w.clock.advance(Duration::hours(23));
        repair::tick(&w.app, Look::Due).await.unwrap();
        assert_eq!(w.state_of(1).await, RunState::Reporting);
        w.clock.advance(Duration::hours(2));
        look(w).await;
        let run = w.nth_run(1).await;
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Forge)));
        assert_eq!(
            run.outcome.reason,
            "The pull request could not be opened within 24 h (the forge is away)."
        );
        assert!(w.hub.pulls(REPO).is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_run_that_no_worker_goes_on_with_ends_with_a_reason_and_a_jump_of_the_clock_ends_none() {
    World::run(async |w| {
        working(w).await;
        // Its worker is gone, and no other comes.
        w.forget_workers();
        w.clock.advance(Duration::days(2));
        repair::tick(&w.app, Look::Due).await.unwrap();
        assert_eq!(w.state_of(1).await, RunState::Running, "seen for the first time");
        w.clock.advance(Duration::hours(25));
        repair::tick(&w.app, Look::Due).await.unwrap();
        let run = w.nth_run(1).await;
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Internal)));
        assert_eq!(run.outcome.reason, "It was begun, and for 24 h no worker went on with it.");
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn a_delivery_that_nobody_survives_is_given_up_and_holds_up_no_other() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        let number = w.issue();
        let deadly = w.hub.comment(REPO, number, "ada", "/zeblit fix");
        let deadly = w.hub.comment_created(REPO, deadly);
        w.deliver(&deadly).await;
        let role = "GET /repos/*/*/collaborators/ada/permission";
        let mut deaths = 0;
        loop {
            // Whoever asks for ada's role dies; max's commands come in between.
            w.hub.fail_next(role, Fault::HangBefore);
            let said = w.say(number, "max", &format!("/zeblit fix {deaths}")).await;
            let died =
                tokio::time::timeout(std::time::Duration::from_millis(700), ingest::tick(&w.app)).await;
            if died.is_err() {
                deaths += 1;
                assert!(deaths < 9, "it is never given up");
                w.restart().await;
            }
            w.clock.advance(Duration::minutes(1));
            if verdict(w, &deadly.id).await.0 == InboxState::Failed {
                break;
            }
            assert!(said > 0);
        }
        assert_eq!(deaths, 4, "once with others, three times alone");
        w.hub.clear_faults();
        w.settle().await;
        let (_, why) = verdict(w, &deadly.id).await;
        assert_eq!(
            why,
            "the server died 3 times while it handled only this delivery; `zeblit replay` tries it again"
        );
        let runs = w.runs().await;
        assert!(runs.len() > deaths && runs.iter().all(|run| run.spec.requester.login == "max"), "{runs:#?}");
        let id = store::inbox::get(&w.app.store, &deadly.id).await.unwrap().unwrap().id;
        operate::replay(&w.app, id.as_str(), "ops").await.unwrap();
        w.settle().await;
        assert_eq!(w.runs().await.iter().filter(|run| run.spec.requester.login == "ada").count(), 1);
        assert_eq!(w.deliver(&deadly).await, StatusCode::OK, "known");
    })
    .await;
}

#[tokio::test]
async fn a_delivery_is_not_given_up_because_the_server_is_killed_again_and_again() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        let tick_until_killed = async |w: &mut World| {
            w.hub.fail_next("GET /repos/*/*/collaborators/ada/permission", Fault::HangBefore);
            let tick =
                tokio::time::timeout(std::time::Duration::from_millis(700), ingest::tick(&w.app)).await;
            w.hub.clear_faults();
            w.restart().await;
            tick
        };
        // With others, and alone: it is tried at once, twice.
        for _ in 0..2 {
            assert!(tick_until_killed(w).await.is_err());
        }
        // From now on only by a process that has lived for a while; none of these has.
        for _ in 0..30 {
            w.clock.advance(Duration::seconds(9));
            assert_eq!(tick_until_killed(w).await.expect("nothing to do").unwrap(), 0);
        }
        w.clock.advance(Duration::seconds(11));
        assert_eq!(ingest::tick(&w.app).await.unwrap(), 1);
        w.settle().await;
        assert_eq!(w.runs().await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_death_among_others_leaves_the_others_unharmed() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        let mut numbers = Vec::new();
        for _ in 0..5 {
            let number = w.issue();
            w.say(number, "ada", "/zeblit fix").await;
            numbers.push(number);
        }
        for _ in 0..3 {
            w.hub.fail_next("GET /repos/*/*/collaborators/ada/permission", Fault::HangBefore);
            let tick =
                tokio::time::timeout(std::time::Duration::from_millis(700), ingest::tick(&w.app)).await;
            assert!(tick.is_err());
            w.restart().await;
            w.clock.advance(Duration::minutes(1));
        }
        w.settle().await;
        assert_eq!(w.runs().await.len(), 5);
        for number in numbers {
            assert_eq!(w.own(number).len(), 1);
        }
    })
    .await;
}
