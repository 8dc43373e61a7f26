//! Labels as commands, runs that wait for other tasks, priorities, and runs that a push makes pointless.

use crate::world::hub::state::On;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use zeblit::domain::run::{FailureClass, Priority, Run, RunState};
use zeblit::engine::ingest;

/// All runs, oldest first.
async fn runs(w: &World) -> Vec<Run> {
    let mut runs = w.runs().await;
    runs.reverse();
    runs
}

async fn label(w: &World, number: i64, name: &str, sender: &str) {
    w.deliver(&w.hub.labeled(REPO, number, name, sender)).await;
}

#[tokio::test]
async fn a_label_on_fifty_issues_is_fifty_runs_in_one_go() {
    World::run_with(
        |config| {
            config.limits.runs = 1;
            config.limits.writes_per_minute = 600;
            config.limits.writes_per_hour = 6000;
            config.limits.write_spacing_ms = 0;
        },
        async |w| {
            let numbers: Vec<i64> = (0..50).map(|_| w.issue()).collect();
            for number in &numbers {
                label(w, *number, "zeblit:fix", "ada").await;
            }
            let before = w.hub.requests().len();
            assert_eq!(ingest::tick(&w.app).await.unwrap(), 50);
            let asked = w.hub.requests().len() - before;
            assert!(asked < 20, "what is the same for all was asked {asked} times");
            let queued = runs(w).await;
            assert_eq!(queued.len(), 50);
            assert!(queued.iter().all(|run| run.priority == Priority::Low.as_i64()));
            // Sent again: nothing new.
            label(w, numbers[0], "zeblit:fix", "ada").await;
            ingest::tick(&w.app).await.unwrap();
            assert_eq!(runs(w).await.len(), 50);
            // Who asks in words goes before them.
            let more = w.issue();
            w.say(more, "max", "/zeblit fix").await;
            w.sandbox.usually(Script::nothing());
            ingest::tick(&w.app).await.unwrap();
            let first = zeblit::engine::execute::claim(&w.app).await.unwrap().unwrap();
            assert_eq!(first.spec.subject.number, more);
            w.restart().await;
            while runs(w).await.iter().any(|run| !run.state.is_terminal()) {
                w.round().await;
            }
            w.settle().await;
            assert!(runs(w).await.iter().all(|run| run.state == RunState::Nothing));
            assert_eq!(w.hub.reactions(REPO, On::Issue(numbers[7])), ["eyes", "+1"]);
        },
    )
    .await;
}

#[tokio::test]
async fn a_label_needs_the_same_role_as_the_words() {
    World::run(async |w| {
        w.hub.add_user("tri", 301);
        w.hub.set_role(REPO, "tri", "triage");
        let number = w.issue();
        w.hub.state().repo_mut(REPO).issues.get_mut(&number).unwrap().labels =
            vec!["bug".into(), "zeblit:fix".into(), "other".into()];
        label(w, number, "zeblit:fix", "tri").await;
        label(w, number, "zeblit:fix", "bob").await;
        label(w, number, "bug", "ada").await;
        w.settle().await;
        assert_eq!(runs(w).await.len(), 0);
        let said = w.own(number);
        assert_eq!(said.len(), 1, "people below triage get silence: {said:?}");
        assert!(said[0].contains("write"), "{said:?}");
        // The label went, so that it can be put there again; nobody touched the others.
        assert_eq!(w.hub.issue(REPO, number).labels, ["bug", "other"]);
    })
    .await;
}

#[tokio::test]
async fn a_run_waits_for_another_task_until_its_pull_request_is_merged() {
    World::run(async |w| {
        let (first, second) = (w.issue(), w.issue());
        w.sandbox.usually(Script::edit("a.txt", "a\n"));
        w.say(second, "ada", &format!("/zeblit fix --after #{first}")).await;
        w.settle().await;
        assert!(w.own(second)[0].contains(&format!("no open task for #{first}")), "{:?}", w.own(second));
        w.say(first, "ada", "/zeblit fix").await;
        ingest::tick(&w.app).await.unwrap();
        w.say(second, "ada", &format!("/zeblit fix --after #{first}")).await;
        w.say(first, "ada", &format!("/zeblit fix more --after #{second}")).await;
        w.settle().await;
        let states: Vec<_> = runs(w).await.iter().map(|run| (run.spec.subject.number, run.state)).collect();
        assert_eq!(states, [(first, RunState::Succeeded), (second, RunState::Queued)]);
        let sticky = w.own(second).into_iter().find(|body| body.contains("⏳ Queued")).unwrap();
        assert!(sticky.contains(&format!("waits for #{first}")), "{sticky}");
        assert!(
            w.own(first).iter().any(|body| body.contains("both would wait for ever")),
            "{:?}",
            w.own(first)
        );
        // Longer than the queue allows: it waits by order.
        w.clock.advance(chrono::Duration::hours(30));
        w.settle().await;
        assert_eq!(runs(w).await[1].state, RunState::Queued);
        let pull = w.our_pull().number;
        w.hub.merge(REPO, pull);
        w.deliver(&w.hub.pull_event(REPO, pull, "closed", "max")).await;
        w.settle().await;
        assert_eq!(runs(w).await[1].state, RunState::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn a_run_whose_blocker_fails_ends_and_says_why() {
    World::run(async |w| {
        let (first, second) = (w.issue(), w.issue());
        w.sandbox.next(Script::fails(3));
        w.say(first, "ada", "/zeblit fix").await;
        ingest::tick(&w.app).await.unwrap();
        w.say(second, "ada", &format!("/zeblit fix --after {first}")).await;
        w.settle().await;
        let run = &runs(w).await[1];
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Blocked)));
        assert!(run.outcome.reason.contains(&format!("#{first}")), "{}", run.outcome.reason);
        // Said again without it, it starts at once.
        w.sandbox.next(Script::edit("a.txt", "a\n"));
        w.say(second, "ada", "/zeblit retry").await;
        w.settle().await;
        assert_eq!(runs(w).await[2].state, RunState::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn high_priority_is_for_maintainers_and_goes_first() {
    World::run_with(
        |config| config.limits.runs = 1,
        async |w| {
            w.hub.set_role(REPO, "max", "maintain");
            w.sandbox.usually(Script::hangs());
            let numbers: Vec<i64> = (0..3).map(|_| w.issue()).collect();
            w.say(numbers[0], "ada", "/zeblit fix").await;
            w.settle().await;
            w.say(numbers[1], "ada", "/zeblit fix").await;
            w.say(numbers[2], "ada", "/zeblit fix --priority high").await;
            w.settle().await;
            assert!(w.own(numbers[2])[0].contains("`maintain`"), "{:?}", w.own(numbers[2]));
            w.say(numbers[2], "max", "/zeblit fix --priority high").await;
            w.settle().await;
            w.sandbox.finish_hanging();
            w.settle().await;
            let running: Vec<_> = runs(w)
                .await
                .iter()
                .filter(|r| r.state == RunState::Running)
                .map(|r| r.spec.subject.number)
                .collect();
            assert_eq!(running, [numbers[2]]);
            for _ in 0..3 {
                w.sandbox.finish_hanging();
                w.settle().await;
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_push_by_somebody_else_ends_what_was_asked_for_the_head_before() {
    World::run(async |w| {
        let number = w.pull();
        w.sandbox.next(Script::hangs().and_edit("b.txt", "b\n"));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Running);
        let before = w.hub.head(REPO, "feature").unwrap();
        w.hub.push_commit(REPO, "feature", &[("c.txt", "c\n")], "By hand");
        w.deliver(&w.hub.pull_synchronize(REPO, number, &before, "bob")).await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Cancelled, "{:?}", run.outcome);
        assert!(
            run.outcome.reason.contains("Somebody pushed to the pull request meanwhile"),
            "{}",
            run.outcome.reason
        );
        assert_eq!(w.hub.file_at(REPO, "feature", "b.txt"), None, "their branch is theirs");
        assert!(run.outcome.branch.is_some(), "partial work is kept beside: {:?}", run.outcome);
        let sticky = w.sticky(number);
        assert!(sticky.contains("`/zeblit retry` asks for the same on the new head."), "{sticky}");

        // Our own push ends nothing: the next run of the same branch waits and starts from it.
        w.sandbox.next(Script::hangs().and_edit("d.txt", "d\n"));
        w.say(number, "ada", "/zeblit retry").await;
        w.say(number, "ada", "/zeblit fix the docs").await;
        w.settle().await;
        let before = w.hub.head(REPO, "feature").unwrap();
        w.sandbox.next(Script::edit("e.txt", "e\n"));
        w.sandbox.finish_hanging();
        w.settle().await;
        w.deliver(&w.hub.pull_synchronize(REPO, number, &before, "zeblit[bot]")).await;
        w.settle().await;
        assert_eq!((w.state_of(2).await, w.state_of(3).await), (RunState::Succeeded, RunState::Succeeded));
    })
    .await;
}
