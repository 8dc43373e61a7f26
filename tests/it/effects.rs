//! Effects one by one: what is planned by configuration, several processes at one outbox, twins and who stays,
//! and the governor to the millisecond.

use crate::matrix::{case, case_at, put, put_at};
use crate::world::hub::Fault;
use crate::world::hub::state::Write;
use crate::world::sandbox::Script;
use crate::world::{REPO, World, node};
use chrono::Duration;
use std::collections::BTreeMap;
use zeblit::clock::Clock;
use zeblit::domain::effect::{EffectPriority, EffectState, Kind, OwnComment, Payload, STATE_LABELS};
use zeblit::domain::ids::{BranchName, Sha};
use zeblit::engine::{deliver, sweep};
use zeblit::store;

fn configured(w: &World, text: &str) {
    w.hub.push_commit(REPO, "main", &[(".github/zeblit.toml", text)], "Rules");
}

fn content(w: &World) -> Vec<Write> {
    w.hub.writes().into_iter().filter(|write| !write.path.starts_with("/git/")).collect()
}

#[tokio::test]
async fn a_label_shows_where_the_run_is_when_the_repository_wants_that() {
    World::run(async |w| {
        configured(w, "state_labels = true\n");
        let (number, _) = w.ask("/zeblit fix", Script::hangs().and_edit("a.txt", "a\n")).await;
        w.settle().await;
        assert_eq!(w.hub.issue(REPO, number).labels, [STATE_LABELS[1]]);
        w.sandbox.finish_hanging();
        w.settle().await;
        assert_eq!(w.hub.issue(REPO, number).labels, [STATE_LABELS[3]]);
        w.sandbox.next(Script::fails(1));
        w.say(number, "ada", "/zeblit fix again").await;
        w.settle().await;
        assert_eq!(w.hub.issue(REPO, number).labels, [STATE_LABELS[3]]);
    })
    .await;
    World::run(async |w| {
        let number = w.fix(Script::edit("a.txt", "a\n")).await;
        assert!(w.hub.issue(REPO, number).labels.is_empty(), "nobody asked for labels");
    })
    .await;
}

#[tokio::test]
async fn our_branch_goes_with_its_pull_request_when_the_repository_wants_that_and_nobody_worked_on_it() {
    for (wish, other_work, stays) in [(true, false, false), (true, true, true), (false, false, true)] {
        World::run(async |w| {
            configured(w, &format!("delete_branch = {wish}\n"));
            w.fix(Script::edit("a.txt", "a\n")).await;
            let pull = w.our_pull();
            let branch = pull.pull.unwrap().head_ref;
            if other_work {
                w.hub.push_commit(REPO, &branch, &[("b.txt", "b\n")], "More");
            }
            w.hub.merge(REPO, pull.number);
            w.deliver(&w.hub.pull_event(REPO, pull.number, "closed", "max")).await;
            w.settle().await;
            assert_eq!(w.hub.head(REPO, &branch).is_some(), stays, "{wish} {other_work}");
        })
        .await;
    }
}

#[tokio::test]
async fn who_asked_is_asked_for_a_review_of_what_is_no_draft() {
    for (wish, drafts, reviewers) in [(true, false, 1), (true, true, 0), (false, false, 0)] {
        World::run(async |w| {
            configured(w, &format!("request_review = {wish}\n"));
            w.hub.state().repo_mut(REPO).drafts_supported = drafts;
            w.fix(Script::edit("a.txt", "a\n")).await;
            assert_eq!(w.our_pull().reviewers.len(), reviewers, "{wish} {drafts}");
        })
        .await;
    }
}

#[tokio::test]
async fn only_our_own_branches_are_deleted_and_only_as_they_were() {
    World::run(async |w| {
        let head = w.hub.push_commit(REPO, "zeblit/x", &[("x", "x")], "X");
        let other = Sha::parse(&"b".repeat(40)).unwrap();
        let delete = |branch: &str, expected| Payload::DeleteBranch {
            branch: BranchName::parse(branch).unwrap(),
            expected,
        };
        let main = Sha::parse(&w.hub.head(REPO, "main").unwrap()).unwrap();
        put(w, "main", EffectPriority::Final, delete("main", main)).await;
        put(w, "moved", EffectPriority::Final, delete("zeblit/x", other.clone())).await;
        put(w, "gone", EffectPriority::Final, delete("zeblit/none", other)).await;
        w.settle().await;
        assert_eq!(w.hub.branches(REPO), ["main", "zeblit/x"]);
        let state = async |key| store::effects::by_key(&w.app.store, key).await.unwrap().unwrap().state;
        assert_eq!(state("main").await, EffectState::Failed);
        assert_eq!(state("moved").await, EffectState::Failed);
        assert_eq!(state("gone").await, EffectState::Confirmed);
        put(w, "as it was", EffectPriority::Final, delete("zeblit/x", Sha::parse(&head).unwrap())).await;
        w.settle().await;
        assert_eq!(w.hub.branches(REPO), ["main"]);
    })
    .await;
}

// ---------------------------------------------------------------- twins

/// Kinds of which a lagging list can make two.
const DOUBLE: [Kind; 5] = [Kind::Sticky, Kind::Comment, Kind::Check, Kind::Review, Kind::Issue];

/// The one that is held and the ones that are there.
async fn held(w: &World, key: &str) -> String {
    let effect = store::effects::by_key(&w.app.store, key).await.unwrap().unwrap();
    assert_eq!(effect.state, EffectState::Confirmed, "{key}");
    effect.remote_ref.unwrap().id
}

#[tokio::test]
async fn what_was_made_twice_because_a_list_lagged_is_taken_away_later() {
    World::run_on_both(
        |_| {},
        async |w| {
            for (n, kind) in DOUBLE.into_iter().enumerate() {
                let (case, key) = (case(w, kind, n), kind.as_str());
                // Longer than is waited for before a thing is made again.
                w.hub.lag_lists_for(Duration::seconds(100));
                w.hub.fail_next(case.write, Fault::After(502));
                put(w, key, EffectPriority::Final, case.payload).await;
                w.settle().await;
                assert_eq!((case.count)(&w.hub), 2, "{key}: made again");
                let kept = held(w, key).await;
                w.clock.advance(Duration::minutes(3));
                w.settle().await;
                assert_eq!((case.count)(&w.hub), 1, "{key}: one is taken away");
                assert_eq!(held(w, key).await, kept, "{key}: the one that is held stays");
                // Nor does anything come after that.
                let writes = content(w).len();
                w.clock.advance(Duration::minutes(15));
                w.settle().await;
                assert_eq!(content(w).len(), writes, "{key}");
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_twin_that_turns_up_minutes_later_is_found_by_the_second_look() {
    World::run(async |w| {
        let case = case(w, Kind::Sticky, 1);
        w.hub.lag_lists_for(Duration::minutes(6));
        w.hub.fail_next(case.write, Fault::After(502));
        put(w, "sticky", EffectPriority::Final, case.payload).await;
        w.pass(Duration::minutes(5)).await;
        assert_eq!((case.count)(&w.hub), 2);
        w.pass(Duration::minutes(10)).await;
        assert_eq!((case.count)(&w.hub), 1);
    })
    .await;
}

/// A process is paused between its request and the answer; another one takes over meanwhile, as after two minutes.
#[tokio::test]
async fn a_process_that_was_paused_takes_away_what_it_made_second() {
    World::run_on_both(
        |_| {},
        async |w| {
            for (n, kind) in DOUBLE.into_iter().enumerate() {
                let (case, key) = (case(w, kind, n), kind.as_str());
                // The other one does not see what the first one made.
                w.hub.lag_lists_for(Duration::minutes(30));
                w.hub.fail_next(case.write, Fault::HeldAfter);
                put(w, key, EffectPriority::Final, case.payload).await;
                let (watch, before) = (w.hub.watch(), w.hub.writes().len());
                let other = w.another(node("other"), w.sandbox.clone()).await;
                let paused = std::sync::Arc::clone(&w.app);
                let first = tokio::spawn(async move { deliver::tick(&paused).await });
                watch.until(|watch| watch.writes() > before).await;
                for _ in 0..4 {
                    w.clock.advance(Duration::seconds(61));
                    deliver::tick(&other).await.unwrap();
                }
                let kept = held(w, key).await;
                assert_eq!((case.count)(&w.hub), 2, "{key}: the other one made it again");
                w.hub.answer_held();
                first.await.unwrap().unwrap();
                w.settle().await;
                w.clock.advance(Duration::seconds(30));
                w.settle().await;
                assert_eq!((case.count)(&w.hub), 1, "{key}");
                assert_eq!(held(w, key).await, kept, "{key}: the confirmed one stays");
                store::duties::release_all(&other.store, &other.boot).await.unwrap();
                w.hub.lag_lists_for(Duration::zero());
                w.clock.advance(Duration::minutes(15));
                w.settle().await;
                assert_eq!((case.count)(&w.hub), 1, "{key}");
            }
        },
    )
    .await;
}

#[tokio::test]
async fn what_was_held_up_between_its_intent_and_its_sending_is_not_begun() {
    World::run(async |w| {
        let case = case(w, Kind::Sticky, 1);
        put(w, "sticky", EffectPriority::Final, case.payload).await;
        let (clock, mut looks) = (std::sync::Arc::clone(&w.clock), 0);
        // The fourth look is the one after the commit.
        w.process.dies_when(move || {
            looks += 1;
            if looks == 4 {
                clock.advance(Duration::seconds(40));
            }
            false
        });
        deliver::tick(&w.app).await.unwrap();
        let effect = store::effects::by_key(&w.app.store, "sticky").await.unwrap().unwrap();
        assert_eq!(effect.last_error.as_deref(), Some("held up before it was sent"));
        assert_eq!((effect.state, w.hub.writes().len()), (EffectState::Ambiguous, 0));
        w.settle().await;
        assert_eq!((case.count)(&w.hub), 1);
    })
    .await;
}

/// An edit that was under way in a paused process may reach the forge after a newer one.
#[tokio::test]
async fn an_edit_of_a_paused_process_does_not_stay_the_last_word() {
    World::run_on_both(
        |_| {},
        async |w| {
            let number = w.issue();
            let marker = w.app.signer.marker("late", "sticky");
            let text = |body: &str| {
                let marker = marker.clone();
                let body = format!("{body}\n\n{marker}");
                Payload::Sticky(OwnComment { number, thread: None, marker, body })
            };
            put(w, "late", EffectPriority::Final, text("one")).await;
            w.settle().await;
            w.clock.advance(Duration::seconds(30));
            w.hub.fail_next("PATCH /repos/*/*/issues/comments/*", Fault::HeldAfter);
            put(w, "late", EffectPriority::Final, text("two")).await;
            let (watch, before) = (w.hub.watch(), w.hub.writes().len());
            let other = w.another(node("other"), w.sandbox.clone()).await;
            let paused = std::sync::Arc::clone(&w.app);
            let first = tokio::spawn(async move { deliver::tick(&paused).await });
            watch.until(|watch| watch.writes() > before).await;
            w.clock.advance(Duration::seconds(130));
            put(w, "late", EffectPriority::Final, text("three")).await;
            for _ in 0..4 {
                deliver::tick(&other).await.unwrap();
                w.clock.advance(Duration::seconds(2));
            }
            assert_eq!(w.own(number), ["three"]);
            // What the paused one sent arrives only now.
            let sticky = w.hub.comments(REPO, number)[0].id;
            w.hub.edit_comment(REPO, sticky, "two");
            w.hub.answer_held();
            first.await.unwrap().unwrap();
            w.clock.advance(Duration::seconds(30));
            w.settle().await;
            assert_eq!(w.own(number), ["three"]);
        },
    )
    .await;
}

// ---------------------------------------------------------------- Jira and Sentry

#[tokio::test]
async fn a_comment_on_a_ticket_is_edited_in_place_and_what_was_made_twice_is_taken_away() {
    World::run(async |w| {
        for (n, remote) in ["jira", "sentry"].into_iter().enumerate() {
            let case = case_at(w, Kind::TicketComment, remote, n);
            let Payload::TicketComment(note) = &case.payload else { unreachable!() };
            let mut edited = note.clone();
            w.hub.lag_lists_for(Duration::seconds(100));
            w.hub.fail_next(case.write, Fault::ResetAfter);
            put_at(w, remote, remote, EffectPriority::Final, case.payload.clone()).await;
            w.settle().await;
            assert_eq!((case.count)(&w.hub), 2, "{remote}: made again");
            let kept = held(w, remote).await;
            w.pass(Duration::minutes(3)).await;
            edited.body = "Better.".into();
            put_at(w, remote, remote, EffectPriority::Final, Payload::TicketComment(edited.clone())).await;
            w.settle().await;
            let notes = w.hub.ticket(&edited.ticket).notes;
            assert_eq!(notes.len(), 1, "{remote}");
            assert_eq!(notes[0].id.to_string(), kept, "{remote}");
            assert!(notes[0].text.starts_with("Better."), "{remote}: {notes:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_status_that_cannot_be_had_is_refused_and_one_that_is_there_is_left_alone() {
    World::run(async |w| {
        w.hub.add_ticket("ABC-1", "To Do");
        w.hub.add_ticket("77", "resolved");
        let status = |ticket: &str, status: &str| Payload::TicketStatus {
            ticket: ticket.into(),
            status: status.into(),
        };
        let state = async |key: &str| {
            let effect = store::effects::by_key(&w.app.store, key).await.unwrap().unwrap();
            (effect.state, effect.last_error.unwrap_or_default())
        };
        for (key, remote, payload) in [
            ("no way", "jira", status("ABC-1", "Rejected")),
            ("as it is", "jira", status("ABC-1", "to do")),
            ("no such status", "sentry", status("77", "fixed")),
            ("resolved", "sentry", status("77", "resolved")),
            ("no path", "sentry", status("77/../1", "resolved")),
            ("no ticket", "github", status("ABC-1", "Done")),
        ] {
            put_at(w, remote, key, EffectPriority::Final, payload).await;
        }
        for _ in 0..6 {
            deliver::tick(&w.app).await.unwrap();
            w.clock.advance(Duration::seconds(2));
        }
        for (key, good, part) in [
            ("no way", false, "no transition of ABC-1 leads to `Rejected`"),
            ("as it is", true, ""),
            ("no such status", false, "no status of Sentry"),
            ("resolved", true, ""),
            ("no path", false, "is no id"),
            ("no ticket", false, "no effects of kind `ticket_status`"),
        ] {
            let wanted = if good { EffectState::Confirmed } else { EffectState::Failed };
            let (found, error) = state(key).await;
            assert!(found == wanted && error.contains(part), "{key}: {found:?} {error}");
        }
        assert!(w.hub.writes().is_empty(), "{}", w.hub.transcript());
    })
    .await;
}

#[tokio::test]
async fn somebody_elses_comment_with_our_mark_is_not_adopted_at_jira() {
    World::run(async |w| {
        let case = case_at(w, Kind::TicketComment, "jira", 1);
        let Payload::TicketComment(own) = &case.payload else { unreachable!() };
        let mark = own.mark.clone();
        w.hub.fail_next(case.write, Fault::Before(500));
        put_at(w, "jira", "jira", EffectPriority::Final, case.payload.clone()).await;
        deliver::tick(&w.app).await.unwrap();
        {
            let mut state = w.hub.state();
            let id = state.id();
            let properties = serde_json::json!([{ "key": "zeblit.intent", "value": { "mark": mark } }]);
            let text = "copied".to_owned();
            let note = crate::world::hub::tickets::Note { id, author: "mallory", text, properties };
            state.tickets.get_mut(&own.ticket).unwrap().notes.push(note);
        }
        w.settle().await;
        let notes = w.hub.ticket(&own.ticket).notes;
        assert_eq!(notes.len(), 2, "ours is there besides theirs: {notes:?}");
        assert_eq!(notes[0].text, "copied");
        assert_eq!(held(w, "jira").await, notes[1].id.to_string());
    })
    .await;
}

// ---------------------------------------------------------------- lanes

async fn state(w: &World, key: &str) -> EffectState {
    store::effects::by_key(&w.app.store, key).await.unwrap().unwrap().state
}

/// Labels to add, each an effect of its own name.
async fn put_labels(w: &World, names: &[(&str, EffectPriority)]) -> i64 {
    let number = w.issue();
    for (name, priority) in names {
        put(w, name, *priority, Payload::Label { number, name: (*name).to_owned(), present: true }).await;
    }
    number
}

#[tokio::test]
async fn what_follows_in_a_lane_is_begun_with_the_commit_that_settles_what_went_before() {
    let unhurried = |config: &mut zeblit::config::Config| config.limits.write_spacing_ms = 0;
    World::run_on_both(unhurried, async |w| {
        let number = put_labels(
            w,
            &[
                ("third", EffectPriority::Progress),
                ("second", EffectPriority::Check),
                ("first", EffectPriority::Final),
            ],
        )
        .await;
        let before = w.app.store.commits();
        assert_eq!(deliver::tick(&w.app).await.unwrap().sent, 1, "one lane");
        assert_eq!(w.hub.issue(REPO, number).labels, ["first", "second", "third"]);
        // The first intent, and one for each that was sent.
        let commits = w.app.store.commits() - before;
        assert!(commits <= 4, "{commits} commits for three writes");
    })
    .await;
}

#[tokio::test]
async fn what_was_begun_and_not_sent_is_sent_after_a_death() {
    let unhurried = |config: &mut zeblit::config::Config| config.limits.write_spacing_ms = 0;
    World::run_on_both(unhurried, async |w| {
        for (n, stop) in [Fault::HangBefore, Fault::HangAfter].into_iter().enumerate() {
            let (first, second) = (case(w, Kind::Sticky, 2 * n), case(w, Kind::Check, 2 * n + 1));
            let (one, two) = (format!("first {n}"), format!("second {n}"));
            put(w, &one, EffectPriority::Final, first.payload).await;
            put(w, &two, EffectPriority::Check, second.payload).await;
            w.hub.fail_next(second.write, stop);
            let begun = async {
                while state(w, &two).await != EffectState::Sending {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                ticked = deliver::tick(&w.app) => panic!("it ended with {ticked:?}"),
                () = begun => {}
            }
            assert_eq!(state(w, &one).await, EffectState::Confirmed);
            w.restart().await;
            w.settle().await;
            for (key, count) in [(&one, (first.count)(&w.hub)), (&two, (second.count)(&w.hub))] {
                assert_eq!((count, state(w, key).await), (1, EffectState::Confirmed), "{key}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_dead_process_wrote_late_is_looked_for_before_it_is_orphaned_by_time() {
    World::run_on_both(
        |_| {},
        async |w| {
            // Its successor has looked already when the intent of the process before it gets to the database.
            let before = std::sync::Arc::clone(&w.app);
            w.restart().await;
            put_labels(w, &[("late", EffectPriority::Final)]).await;
            w.hub.fail_next("POST /repos/*/*/issues/*/labels", Fault::HangBefore);
            let begun = async {
                while state(w, "late").await != EffectState::Sending {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                ticked = deliver::tick(&before) => panic!("it ended with {ticked:?}"),
                () = begun => {}
            }
            drop(before);
            sweep::tick(&w.app).await.unwrap();
            assert_eq!(state(w, "late").await, EffectState::Ambiguous);
            w.settle().await;
            assert_eq!(state(w, "late").await, EffectState::Confirmed);
        },
    )
    .await;
}

#[tokio::test]
async fn a_remote_that_does_not_answer_holds_up_no_other() {
    World::run_on_both(
        |_| {},
        async |w| {
            let mut lanes = deliver::Lanes::default();
            w.hub.fail_next("POST /repos/*/*/issues/*/labels", Fault::HangBefore);
            put_labels(w, &[("silent", EffectPriority::Final)]).await;
            lanes.begin(&w.app).await.unwrap();
            for n in 0..3 {
                let key = format!("ticket {n}");
                put_at(
                    w,
                    "jira",
                    &key,
                    EffectPriority::Final,
                    case_at(w, Kind::TicketComment, "jira", n).payload,
                )
                .await;
                lanes.begin(&w.app).await.unwrap();
                lanes.ended(&w.app).await;
                assert_eq!(state(w, &key).await, EffectState::Confirmed, "{key}");
                w.clock.advance(Duration::seconds(2));
            }
            assert_eq!(state(w, "silent").await, EffectState::Sending);
            drop(lanes);
            w.restart().await;
            w.settle().await;
            assert_eq!(state(w, "silent").await, EffectState::Confirmed);
        },
    )
    .await;
}

#[tokio::test]
async fn a_lane_that_has_to_wait_is_not_asked_again_until_then_or_a_wake_up() {
    World::run(async |w| {
        let mut lanes = deliver::Lanes::default();
        put_labels(w, &[("one", EffectPriority::Final), ("two", EffectPriority::Final)]).await;
        assert_eq!(lanes.begin(&w.app).await.unwrap(), None);
        lanes.ended(&w.app).await;
        assert_eq!(
            (state(w, "one").await, state(w, "two").await),
            (EffectState::Confirmed, EffectState::Planned)
        );
        lanes.begin(&w.app).await.unwrap();
        lanes.ended(&w.app).await;
        // The governor's second; nothing is at work, so nothing would end.
        let at = w.clock.now() + Duration::seconds(1);
        assert_eq!(lanes.begin(&w.app).await.unwrap(), Some(at));
        assert!(futures_util::FutureExt::now_or_never(lanes.ended(&w.app)).is_none());
        lanes.woken();
        assert_eq!(lanes.begin(&w.app).await.unwrap(), None, "it is asked again");
        lanes.ended(&w.app).await;
        w.clock.advance_to(at);
        assert_eq!(lanes.begin(&w.app).await.unwrap(), None);
        lanes.ended(&w.app).await;
        assert_eq!(state(w, "two").await, EffectState::Confirmed);
    })
    .await;
}

// ---------------------------------------------------------------- several processes, one governor

#[tokio::test]
async fn one_process_at_a_time_sends_for_an_installation_and_another_takes_over() {
    World::run_on_both(
        |_| {},
        async |w| {
            let other = w.another(node("other"), w.sandbox.clone()).await;
            put(w, "one", EffectPriority::Final, case(w, Kind::LabelAdd, 1).payload).await;
            assert_eq!(deliver::tick(&w.app).await.unwrap().sent, 1);
            put(w, "two", EffectPriority::Final, case(w, Kind::LabelAdd, 2).payload).await;
            w.clock.advance(Duration::seconds(5));
            assert_eq!(deliver::tick(&other).await.unwrap().sent, 0, "the lane is the first one's");
            // The first one is gone without a word.
            w.clock.advance(Duration::seconds(16));
            assert_eq!(deliver::tick(&other).await.unwrap().sent, 1);
            put(w, "three", EffectPriority::Final, case(w, Kind::LabelAdd, 3).payload).await;
            w.clock.advance(Duration::seconds(2));
            assert_eq!(deliver::tick(&w.app).await.unwrap().sent, 0);
            // It ends in good order.
            store::duties::release_all(&other.store, &other.boot).await.unwrap();
            assert_eq!(deliver::tick(&w.app).await.unwrap().sent, 1);
        },
    )
    .await;
}

#[tokio::test]
async fn a_boot_leaves_alone_what_another_node_is_sending() {
    World::run(async |w| {
        let other = w.another(node("other"), w.sandbox.clone()).await;
        let case = case(w, Kind::Sticky, 1);
        w.hub.fail_next(case.write, Fault::HeldAfter);
        put(w, "sticky", EffectPriority::Final, case.payload).await;
        let (watch, before) = (w.hub.watch(), w.hub.writes().len());
        let sender = std::sync::Arc::clone(&other);
        let sending = tokio::spawn(async move { deliver::tick(&sender).await });
        watch.until(|watch| watch.writes() > before).await;
        w.restart().await;
        let state = async || store::effects::by_key(&w.app.store, "sticky").await.unwrap().unwrap().state;
        assert_eq!(state().await, EffectState::Sending);
        w.hub.answer_held();
        sending.await.unwrap().unwrap();
        assert_eq!(state().await, EffectState::Confirmed);
        sweep::boot(&other).await.unwrap();
        assert_eq!((case.count)(&w.hub), 1);
    })
    .await;
}

/// The most within any window of this length, by the forge's own clock.
fn most_within(times: &[chrono::DateTime<chrono::Utc>], window: Duration) -> usize {
    let from = |start: &chrono::DateTime<chrono::Utc>| {
        times.iter().filter(|at| **at >= *start && **at < *start + window).count()
    };
    times.iter().map(from).max().unwrap_or(0)
}

/// Two processes that both believe to have the lane, as after pauses: nothing but the outbox keeps them apart.
async fn crowded(w: &mut World) {
    let other = w.another(node("other"), w.sandbox.clone()).await;
    let number = w.issue();
    let (most_minute, most_hour) = (w.config.limits.writes_per_minute, w.config.limits.writes_per_hour);
    let [most_minute, most_hour] = [most_minute, most_hour].map(|most| usize::try_from(most).unwrap());
    let all = most_hour * 23 / 20;
    for n in 0..all {
        let priority = match n % 10 {
            9 => EffectPriority::Progress,
            n if n % 2 == 0 => EffectPriority::Final,
            _ => EffectPriority::Check,
        };
        let payload = Payload::Label { number, name: format!("label {n}"), present: true };
        put(w, &format!("label {n}"), priority, payload).await;
    }
    let start = w.clock.now();
    let mut turn = 0_i64;
    loop {
        for app in [&w.app, &other] {
            store::duties::release_all(&w.app.store, &app.boot).await.unwrap();
        }
        let (one, two) = tokio::join!(deliver::tick(&w.app), deliver::tick(&other));
        let (one, two) = (one.unwrap(), two.unwrap());
        turn += 1;
        if one.sent + two.sent > 0 {
            w.clock.advance(Duration::milliseconds(turn * 137 % 450));
            continue;
        }
        match one.next.into_iter().chain(two.next).min() {
            // Woken too early now and then.
            Some(_) if turn % 4 == 0 => w.clock.advance(Duration::milliseconds(1 + turn * 89 % 400)),
            Some(next) => w.clock.advance_to(next.max(w.clock.now() + Duration::milliseconds(1))),
            None => break,
        }
    }
    let times: Vec<_> = content(w).into_iter().map(|write| write.at).collect();
    assert_eq!(times.len(), all);
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= Duration::seconds(1)), "a second between two");
    let minute = most_within(&times, Duration::minutes(1));
    let hour = most_within(&times, Duration::hours(1));
    assert!(minute <= most_minute && hour <= most_hour, "{minute} in a minute, {hour} in an hour");
    assert!(minute * 2 > most_minute && hour == most_hour, "the room is used: {minute}, {hour}");
    assert!(w.clock.now() - start > Duration::hours(1));
    // What is final did not wait for progress.
    let place = |n: usize| {
        let name = format!(": label {n}");
        content(w).iter().position(|write| write.summary.ends_with(&name)).unwrap()
    };
    let last_final = (0..all).step_by(2).map(place).max().unwrap();
    let first_progress = (9..all).step_by(10).map(place).min().unwrap();
    assert!(last_final < first_progress);
}

#[tokio::test]
async fn no_window_ever_holds_more_writes_than_allowed_with_two_processes() {
    World::run(crowded).await;
}

#[tokio::test]
async fn no_window_ever_holds_more_writes_than_allowed_with_two_processes_on_postgres() {
    let fewer = |config: &mut zeblit::config::Config| {
        // All of them with `make prove-faults`.
        if std::env::var_os("ZEBLIT_PROVE_EFFECTS").is_none() {
            config.limits.writes_per_minute = 8;
            config.limits.writes_per_hour = 40;
        }
    };
    World::run_on_postgres_with(fewer, crowded).await;
}

#[tokio::test]
async fn of_many_progress_texts_only_the_newest_is_sent() {
    World::run_on_both(
        |_| {},
        async |w| {
            let number = w.issue();
            for n in 0..20 {
                let marker = w.app.signer.marker("news", "sticky");
                let body = format!("news {n}\n\n{marker}");
                let payload = Payload::Sticky(OwnComment { number, thread: None, marker, body });
                put(w, "news", EffectPriority::Progress, payload).await;
            }
            w.settle().await;
            assert_eq!(w.own(number), ["news 19"]);
            assert_eq!(content(w).len(), 1);
        },
    )
    .await;
}

#[tokio::test]
async fn limits_of_the_forge_are_obeyed_to_the_second_by_every_process() {
    let waits = [(Fault::SecondaryLimit(77), 77), (Fault::PrimaryLimit(95), 95), (Fault::SpokenLimit, 60)];
    World::run_on_both(
        |_| {},
        async |w| {
            let other = w.another(node("other"), w.sandbox.clone()).await;
            for (n, (fault, seconds)) in waits.iter().enumerate() {
                for m in 0..3 {
                    let case = case(w, Kind::LabelAdd, n);
                    put(w, &format!("limit {n} {m}"), EffectPriority::Final, case.payload).await;
                }
                w.hub.fail_next("POST /repos/*/*/issues/*/labels", fault.clone());
                let (from, before) = (w.clock.now(), content(w).len());
                let mut first = BTreeMap::new();
                while content(w).len() < before + 3 {
                    for (name, app) in [("one", &w.app), ("other", &other)] {
                        store::duties::release_all(&app.store, &w.app.boot).await.unwrap();
                        store::duties::release_all(&app.store, &other.boot).await.unwrap();
                        let known = content(w).len();
                        deliver::tick(app).await.unwrap();
                        if content(w).len() > known {
                            first.entry(name).or_insert_with(|| w.clock.now() - from);
                        }
                    }
                    w.clock.advance(Duration::milliseconds(500));
                }
                let soonest = *first.values().min().unwrap();
                let wanted = Duration::seconds(*seconds);
                // A primary limit ends with a whole second.
                let early = i64::from(matches!(fault, Fault::PrimaryLimit(_)));
                assert!(
                    soonest >= wanted - Duration::seconds(early) && soonest < wanted + Duration::seconds(3),
                    "{fault:?}: {soonest}"
                );
                w.settle().await;
            }
        },
    )
    .await;
}
