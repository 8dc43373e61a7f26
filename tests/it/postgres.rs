//! The main jobs again on Postgres: `ZEBLIT_TEST_POSTGRES` names a server.

use crate::crash::{asked, exactly_one_of_each, stop_after_round, stop_at_wait};
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use zeblit::domain::run::{FailureClass, RunState};

#[tokio::test]
async fn a_comment_becomes_a_pull_request_on_postgres() {
    World::run_on_postgres(async |w| {
        let (number, comment) = asked(w).await;
        w.settle().await;
        exactly_one_of_each(w, number, comment, "on Postgres");
        assert_eq!(w.sandbox.agents_started(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_timeout_its_partial_work_and_continue_on_postgres() {
    World::run_on_postgres(async |w| {
        let (number, _) = w.ask("/zeblit fix", Script::hangs().and_edit("half.txt", "half\n")).await;
        w.pass(Duration::minutes(6)).await;
        assert_eq!(w.nth_run(1).await.outcome.class, Some(FailureClass::Timeout));
        w.sandbox.next(Script::edit("whole.txt", "whole\n"));
        w.say(number, "ada", "/zeblit continue").await;
        w.settle().await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded);
        let branch = w.our_pull().pull.unwrap().head_ref;
        assert!(w.hub.file_at(REPO, &branch, "half.txt").is_some());
    })
    .await;
}

#[tokio::test]
async fn the_queue_holds_its_caps_and_locks_on_postgres() {
    World::run_on_postgres(async |w| {
        w.sandbox.usually(Script::hangs());
        let (one, two) = (w.issue(), w.issue());
        for (number, text) in [(one, "/zeblit fix"), (one, "/zeblit fix more"), (two, "/zeblit fix")] {
            w.say(number, "ada", text).await;
        }
        w.settle().await;
        let states = [w.state_of(1).await, w.state_of(2).await, w.state_of(3).await];
        assert_eq!(states, [RunState::Running, RunState::Queued, RunState::Running]);
        assert!(w.own(one)[1].starts_with("**⏳ Queued · position 1 · waits for run `run_0001`"));
        for number in [one, two] {
            w.say(number, "ada", "/zeblit cancel").await;
        }
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_after_any_round_leaves_exactly_one_of_each_on_postgres() {
    for rounds in (0..60).step_by(3) {
        let mut busy = false;
        World::run_on_postgres(async |w| busy = stop_after_round(w, rounds).await).await;
        if !busy {
            return;
        }
    }
    panic!("the job does not end");
}

#[tokio::test]
async fn a_death_in_the_middle_of_a_step_leaves_exactly_one_of_each_on_postgres() {
    for nth in (5..4000).step_by(122) {
        let mut died = false;
        World::run_on_postgres(async |w| died = stop_at_wait(w, nth).await).await;
        if !died {
            return;
        }
    }
    panic!("the job does not end");
}
