//! Single rules of store and engine, each told by the smallest story that breaks when the rule is broken. The mutants
//! (`make prove-mutants`) take the rules away one by one; other stories of this folder tell the larger ones.

use crate::world::hub::Fault;
use crate::world::hub::state::On;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use zeblit::domain::effect::{EffectState, RemoteRef};
use zeblit::domain::ids::InboxId;
use zeblit::domain::run::{Run, RunState};
use zeblit::engine::{deliver, execute};
use zeblit::store;
use zeblit::store::StoreError;
use zeblit::store::inbox::InboxState;

const COMMENT: &str = "POST /repos/*/*/issues/*/comments";
const LEASE: std::time::Duration = std::time::Duration::from_secs(60);

fn caps() -> store::runs::Caps {
    store::runs::Caps { global: 9, per_owner: 9, per_repo: 9, per_user: 9 }
}

/// A live run, and what a worker knew of it that lost it to another one since.
async fn overtaken(w: &mut World) -> Run {
    w.sandbox.usually(Script::hangs());
    let number = w.issue();
    w.say(number, "ada", "/zeblit fix").await;
    w.settle().await;
    let late = w.nth_run(1).await;
    assert_eq!(late.state, RunState::Running);
    w.clock.advance(Duration::seconds(61));
    let other = store::runs::claim(&w.app.store, "other:1", w.clock_now(), LEASE, caps()).await.unwrap();
    assert_eq!(other.unwrap().fence, late.fence + 1);
    w.forget_workers();
    w.ends_in_the_middle = true;
    late
}

fn is_fenced<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Fenced { .. })), "{result:?}");
}

#[tokio::test]
async fn a_worker_that_was_overtaken_writes_no_state() {
    World::run(async |w| {
        let late = overtaken(w).await;
        let mut tx = w.app.store.write_tx().await.unwrap();
        is_fenced(store::runs::save(&mut tx, &late).await);
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_was_overtaken_writes_no_progress() {
    World::run(async |w| {
        let late = overtaken(w).await;
        let mut tx = w.app.store.write_tx().await.unwrap();
        is_fenced(store::runs::save_progress(&mut tx, &late).await);
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_was_overtaken_keeps_no_lease() {
    World::run(async |w| {
        let late = overtaken(w).await;
        let until = w.clock_now() + Duration::seconds(60);
        is_fenced(store::runs::heartbeat(&w.app.store, &late.id, late.fence, until).await);
    })
    .await;
}

#[tokio::test]
async fn a_run_with_a_lease_is_claimed_by_nobody_else_and_each_heartbeat_makes_it_longer() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs());
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let claim = async |w: &World| {
            store::runs::claim(&w.app.store, "other:1", w.clock_now(), LEASE, caps()).await.unwrap()
        };
        assert_eq!(claim(w).await, None);
        let run = w.nth_run(1).await;
        for _ in 0..3 {
            w.clock.advance(Duration::seconds(50));
            let until = w.clock_now() + Duration::seconds(60);
            store::runs::heartbeat(&w.app.store, &run.id, run.fence, until).await.unwrap();
        }
        assert_eq!(claim(w).await, None);
        w.sandbox.finish_hanging();
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn a_death_between_sending_and_its_answer_makes_no_twin() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        let number = w.issue();
        w.say(number, "ada", "/zeblit help").await;
        w.stage(0).await;
        w.hub.fail_next(COMMENT, Fault::HangAfter);
        for _ in 0..9 {
            w.clock.advance(Duration::seconds(2));
            let sent = tokio::time::timeout(std::time::Duration::from_secs(2), deliver::tick(&w.app)).await;
            if sent.is_err() {
                break;
            }
        }
        assert_eq!(w.own(number).len(), 1, "it arrived there, and nobody heard of it");
        w.restart().await;
        w.settle().await;
        assert_eq!(w.own(number).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn two_writes_to_an_installation_are_a_second_apart() {
    World::run(async |w| {
        w.sandbox.usually(Script::edit("a.txt", "a\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let writes = w.hub.writes();
        let times: Vec<_> =
            writes.iter().filter(|write| !write.path.starts_with("/git/")).map(|write| write.at).collect();
        assert!(times.len() >= 3, "{}", w.hub.transcript());
        for pair in times.windows(2) {
            assert!(pair[1] - pair[0] >= Duration::seconds(1), "{}", w.hub.transcript());
        }
    })
    .await;
}

#[tokio::test]
async fn a_comment_whose_answer_was_lost_is_told_from_its_neighbour_by_its_marker() {
    World::run(async |w| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit help").await;
        w.settle().await;
        w.hub.fail_next(COMMENT, Fault::After(502));
        w.say(number, "ada", "/zeblit ping").await;
        w.settle().await;
        let own = w.own(number);
        assert_eq!(own.len(), 2, "{own:#?}");
        assert_ne!(own[0], own[1]);
    })
    .await;
}

#[tokio::test]
async fn an_hour_holds_no_more_writes_than_it_may() {
    World::run_with(
        |config| config.limits.writes_per_hour = 6,
        async |w| {
            let number = w.issue();
            for _ in 0..5 {
                w.say(number, "ada", "/zeblit help").await;
            }
            w.settle().await;
            assert_eq!(w.own(number).len(), 5);
            assert_eq!(w.hub.most_writes_in(Duration::hours(1)), 6, "{}", w.hub.transcript());
        },
    )
    .await;
}

#[tokio::test]
async fn a_confirmation_of_an_older_text_leaves_the_newer_one_to_be_sent() {
    World::run(async |w| {
        w.sandbox.usually(Script::nothing());
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.stage(0).await;
        let run = w.nth_run(1).await;
        let key = format!("sticky:{}", run.id);
        let old = store::effects::by_key(&w.app.store, &key).await.unwrap().unwrap();
        w.settle().await;
        let newest = store::effects::by_key(&w.app.store, &key).await.unwrap().unwrap();
        assert_eq!(newest.state, EffectState::Confirmed);
        assert!(newest.revision > old.revision);
        // Once more, with a newer text that nobody has sent yet.
        let mut tx = w.app.store.write_tx().await.unwrap();
        let mut payload = newest.payload.clone();
        if let zeblit::domain::effect::Payload::Sticky(comment) = &mut payload {
            comment.body.insert_str(0, "newer ");
        }
        let again = zeblit::domain::effect::NewEffect {
            run: newest.run.clone(),
            task: newest.task.clone(),
            remote: newest.remote.clone(),
            repo: newest.repo.clone(),
            key,
            priority: newest.priority,
            payload,
            not_before: None,
        };
        store::effects::put(&mut tx, &newest.id, &again, w.clock_now()).await.unwrap();
        let remote: RemoteRef = newest.remote_ref.clone().unwrap();
        store::effects::confirm(&mut tx, &newest.id, newest.revision, &remote, w.clock_now()).await.unwrap();
        tx.commit().await.unwrap();
        w.settle().await;
        assert!(w.sticky(number).starts_with("newer "), "{}", w.sticky(number));
        let comment = w.nth_run(1).await.spec.origin.unwrap().comment_id;
        assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes", "+1"]);
    })
    .await;
}

#[tokio::test]
async fn a_delivery_that_waits_is_not_thrown_away_however_old_it_is() {
    World::run(async |w| {
        let ping = w.hub.ping();
        w.deliver(&ping).await;
        let later = w.clock_now() + Duration::days(90);
        store::retention::forget_ignored(&w.app.store, later).await.unwrap();
        store::retention::forget_handled(&w.app.store, later).await.unwrap();
        let kept = store::inbox::get(&w.app.store, &ping.id).await.unwrap().unwrap();
        assert_eq!(kept.state, InboxState::Pending);
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_backup_held_to_be_sent_is_looked_for_before_it_is_sent() {
    World::run(async |w| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit help").await;
        w.stage(0).await;
        let mut backup = Vec::new();
        let nothing = store::backup::Extra::default();
        store::backup::dump(&w.app.store, &nothing, &mut backup, w.clock_now()).await.unwrap();
        // Sent after the backup.
        w.settle().await;
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("restored.db").display());
        let restored = store::Store::open(&url).await.unwrap();
        store::backup::load(&restored, &mut backup.as_slice(), w.clock_now()).await.unwrap();
        let open = store::effects::counts(&restored).await.unwrap();
        assert!(open.iter().all(|(state, _)| state != "planned"), "{open:?}");
        assert!(open.iter().any(|(state, _)| state == "ambiguous"), "{open:?}");
        restored.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_delivery_ends_once() {
    World::run(async |w| {
        let ping = w.hub.ping();
        w.deliver(&ping).await;
        w.settle().await;
        let stored = store::inbox::get(&w.app.store, &ping.id).await.unwrap().unwrap();
        let mut tx = w.app.store.write_tx().await.unwrap();
        let id = InboxId::new(stored.id.as_str());
        store::inbox::finish(&mut tx, &id, InboxState::Failed, "late").await.unwrap();
        tx.commit().await.unwrap();
        let now = store::inbox::get(&w.app.store, &ping.id).await.unwrap().unwrap();
        assert_eq!((now.state, now.verdict), (InboxState::Done, "the hook works".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_is_adopted_is_the_one_that_ran() {
    World::run(async |w| {
        w.sandbox.usually(Script::hangs());
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        for _ in 0..2 {
            w.restart().await;
            w.settle().await;
        }
        assert_eq!((w.sandbox.agents_started(), w.sandbox.alive()), (1, 1));
        assert_eq!(w.nth_run(1).await.attempts, 1);
        w.sandbox.finish_hanging();
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Nothing);
        assert!(execute::LEASE >= LEASE);
    })
    .await;
}
