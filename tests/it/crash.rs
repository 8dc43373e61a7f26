//! The process dies, at every step and in the middle of steps: in the end there is exactly one of everything.

use crate::world::hub::Fault;
use crate::world::hub::state::On;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use zeblit::domain::run::{FailureClass, RunState};

const OWN_BRANCH: &str = "zeblit/1-the-answer-is-wrong-k0001";

fn mended() -> Script {
    Script::edit("src/app.py", "def answer():\n    return 42\n").and_print("mended")
}

/// An issue with a command on it. Every agent does the same, in case one has to be started again.
pub async fn asked(w: &mut World) -> (i64, i64) {
    w.sandbox.usually(mended());
    let number = w.issue();
    let comment = w.say(number, "ada", "/zeblit fix").await;
    (number, comment)
}

/// One branch, one pull request, one sticky comment, one check, two reactions, one run.
pub fn exactly_one_of_each(w: &World, number: i64, comment: i64, when: &str) {
    // Its name ends in characters of the task's id, and ids that a dead process took are not taken again.
    let branch = w.our_pull().pull.unwrap();
    assert!(branch.head_ref.starts_with("zeblit/1-the-answer-is-wrong-k0"), "{when}: {branch:?}");
    assert_eq!(w.hub.branches(REPO), ["main", branch.head_ref.as_str()], "{when}");
    let head = w.hub.head(REPO, &branch.head_ref).unwrap();
    assert_eq!(branch.head_sha, head, "{when}");
    assert_eq!(w.hub.log(REPO, &branch.head_ref, "%s", 9), "The answer is wrong\nInitial commit", "{when}");
    let own = w.own(number);
    assert_eq!(own.len(), 1, "{when}: {own:?}");
    assert!(own[0].starts_with("**✅ Draft pull request #2 · "), "{when}: {own:?}");
    let checks = w.hub.checks(REPO, &head);
    assert_eq!(checks.len(), 1, "{when}: {checks:?}");
    assert_eq!(checks[0].conclusion.as_deref(), Some("success"), "{when}");
    green_comes_last(w, when);
    assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes", "rocket"], "{when}");
}

/// No check is green before its branch and its pull request are there.
fn green_comes_last(w: &World, when: &str) {
    let lines: Vec<String> = w.hub.writes().into_iter().map(|write| write.summary).collect();
    let first = |what: &dyn Fn(&&String) -> bool| lines.iter().position(|line| what(&line));
    let green = first(&|line| line.contains("check ") && line.ends_with("completed/success"));
    let pushed = first(&|line| line.starts_with("push "));
    let opened = first(&|line| line.contains("pull request octo/demo#"));
    assert!(pushed.is_some() && pushed < opened && opened < green, "{when}: {lines:#?}");
}

/// The whole job with a stop after each round in turn, until it needs no more rounds.
pub async fn stop_after_round(w: &mut World, rounds: usize) -> bool {
    let (number, comment) = asked(w).await;
    let mut busy = true;
    for _ in 0..rounds {
        busy = w.round().await;
    }
    w.restart().await;
    w.settle().await;
    assert_eq!(w.state_of(1).await, RunState::Succeeded);
    exactly_one_of_each(w, number, comment, &format!("stop after round {rounds}"));
    assert_eq!(w.sandbox.agents_started(), 1, "stop after round {rounds}");
    busy
}

#[tokio::test]
async fn a_stop_after_any_round_leaves_exactly_one_of_each_and_starts_one_agent() {
    for rounds in 0..60 {
        let mut busy = true;
        World::run(async |w| busy = stop_after_round(w, rounds).await).await;
        if !busy {
            assert!(rounds > 5, "the job took rounds");
            return;
        }
    }
    panic!("the job does not end");
}

#[tokio::test]
async fn a_stop_after_any_stage_of_a_round_does_too() {
    for stages in (1..36).step_by(2) {
        World::run(async |w| {
            let (number, comment) = asked(w).await;
            for stage in 0..stages {
                w.stage(stage % 5).await;
                w.clock.advance(Duration::milliseconds(300));
            }
            w.restart().await;
            w.settle().await;
            exactly_one_of_each(w, number, comment, &format!("stop after stage {stages}"));
            assert_eq!(w.sandbox.agents_started(), 1, "stop after stage {stages}");
        })
        .await;
    }
}

/// Dies in the middle of whatever it waits for.
pub async fn stop_at_wait(w: &mut World, nth: usize) -> bool {
    let (number, comment) = asked(w).await;
    let died = w.dies_at_wait(nth).await;
    w.restart().await;
    w.settle().await;
    // Found by count, not by id: a process that dies before its commit has used up ids.
    let states: Vec<_> = w.runs().await.iter().map(|run| run.state).collect();
    assert_eq!(states, [RunState::Succeeded], "died at wait {nth}: {:?}", w.own(number));
    exactly_one_of_each(w, number, comment, &format!("died at wait {nth}"));
    assert!(w.sandbox.agents_started() <= 2, "died at wait {nth}");
    died
}

/// Every 42nd wait from `first` on: three tests side by side look at every 14th.
async fn stops_at_waits(first: usize) {
    for nth in (first..4000).step_by(42) {
        let mut died = true;
        World::run(async |w| died = stop_at_wait(w, nth).await).await;
        if !died {
            return;
        }
    }
    panic!("the job does not end");
}

#[tokio::test]
async fn a_death_in_the_middle_of_a_step_leaves_exactly_one_of_each_0() {
    stops_at_waits(3).await;
}

#[tokio::test]
async fn a_death_in_the_middle_of_a_step_leaves_exactly_one_of_each_1() {
    stops_at_waits(17).await;
}

#[tokio::test]
async fn a_death_in_the_middle_of_a_step_leaves_exactly_one_of_each_2() {
    stops_at_waits(31).await;
}

#[tokio::test]
async fn a_stop_after_every_single_round_still_leads_to_the_end() {
    World::run(async |w| {
        let (number, comment) = asked(w).await;
        for _ in 0..80 {
            w.round().await;
            w.restart().await;
        }
        w.settle().await;
        exactly_one_of_each(w, number, comment, "a stop after every round");
        assert_eq!(w.sandbox.agents_started(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_stop_after_any_round_of_work_on_a_pull_request_leaves_one_check_per_commit() {
    for rounds in 0..40 {
        let mut busy = true;
        World::run(async |w| {
            w.sandbox.usually(Script::edit("src/new.py", "def new():\n    return 2\n"));
            let number = w.pull();
            let old = w.hub.head(REPO, "feature").unwrap();
            w.say(number, "ada", "/zeblit fix").await;
            for _ in 0..rounds {
                busy = w.round().await;
            }
            w.restart().await;
            w.settle().await;
            let new = w.hub.head(REPO, "feature").unwrap();
            assert_eq!(w.hub.log(REPO, "feature", "%P", 1), old, "one commit on top, after round {rounds}");
            for sha in [&old, &new] {
                let checks = w.hub.checks(REPO, sha);
                assert_eq!(checks.len(), 1, "after round {rounds}: {checks:?}");
                assert_eq!(checks[0].conclusion.as_deref(), Some("success"));
            }
            assert_eq!(w.own(number).len(), 1);
            assert_eq!(w.hub.branches(REPO), ["feature", "main"]);
        })
        .await;
        if !busy {
            return;
        }
    }
    panic!("the job does not end");
}

#[tokio::test]
async fn a_running_agent_is_adopted_and_its_log_is_read_on() {
    World::run(async |w| {
        let (number, comment) = w.ask("/zeblit fix", Script::hangs()).await;
        w.settle().await;
        w.sandbox.prints("before the crash");
        w.settle().await;
        w.restart().await;
        w.sandbox.prints("after the crash");
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Running);
        let workspace = w.sandbox.started()[0].workspace.clone();
        std::fs::write(workspace.join("src/app.py"), "def answer():\n    return 42\n").unwrap();
        w.sandbox.finish_hanging();
        w.settle().await;
        exactly_one_of_each(w, number, comment, "adopted");
        assert_eq!(w.sandbox.agents_started(), 1);
        let id = w.nth_run(1).await.id;
        let chunks = zeblit::store::logs::read(&w.app.store, &id, 0, 100).await.unwrap();
        let log = format!("{chunks:?}");
        for line in ["before the crash", "after the crash"] {
            assert_eq!(log.matches(line).count(), 1, "{log}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_wall_clock_of_an_adopted_agent_goes_on_from_its_start() {
    World::run(async |w| {
        w.ask("/zeblit fix", Script::hangs().and_edit("half.txt", "half\n")).await;
        w.settle().await;
        w.clock.advance(Duration::minutes(4));
        w.restart().await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Running);
        w.pass(Duration::minutes(2)).await;
        let run = w.nth_run(1).await;
        assert_eq!(run.outcome.class, Some(FailureClass::Timeout));
        assert!(run.outcome.branch.is_some());
    })
    .await;
}

#[tokio::test]
async fn a_cancel_that_came_while_the_server_was_down_is_obeyed() {
    World::run(async |w| {
        let (number, _) = w.ask("/zeblit fix", Script::hangs()).await;
        w.settle().await;
        // The delivery is stored before the stop, and looked at after it.
        w.say(number, "ada", "/zeblit cancel").await;
        w.restart().await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_ended_while_the_server_was_down_is_published() {
    World::run(async |w| {
        let (number, comment) = w
            .ask("/zeblit fix", Script::hangs().and_edit("src/app.py", "def answer():\n    return 42\n"))
            .await;
        w.settle().await;
        w.sandbox.finish_hanging();
        w.clock.advance(Duration::minutes(30));
        w.restart().await;
        w.settle().await;
        exactly_one_of_each(w, number, comment, "it ended meanwhile");
    })
    .await;
}

#[tokio::test]
async fn a_container_that_vanished_while_the_server_was_down_leaves_its_partial_work() {
    World::run(async |w| {
        w.ask("/zeblit fix", Script::hangs().and_edit("half.txt", "half\n")).await;
        w.settle().await;
        w.sandbox.loses_all();
        w.restart().await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(run.outcome.class, Some(FailureClass::Sandbox));
        assert_eq!(w.hub.file_at(REPO, OWN_BRANCH, "half.txt").unwrap(), "half\n");
    })
    .await;
}

#[tokio::test]
async fn a_push_whose_answer_was_lost_with_the_process_is_recognised() {
    World::run(async |w| {
        let (number, comment) = asked(w).await;
        w.hub.fail_next("POST /git/*/*/git-receive-pack", Fault::HangAfter);
        // The model obeys the push and never answers; the process dies while it waits.
        let died = tokio::time::timeout(std::time::Duration::from_secs(5), w.settle()).await;
        assert!(died.is_err(), "it waits for the push");
        assert!(w.hub.head(REPO, OWN_BRANCH).is_some(), "the branch is there");
        w.restart().await;
        w.settle().await;
        exactly_one_of_each(w, number, comment, "push without an answer");
        assert_eq!(w.sandbox.agents_started(), 1);
    })
    .await;
}
