//! The queue against a small model of it: random steps on both, equal answers and equal rows after each.

use super::super::rows::exclusive;
use super::super::testing::{at, each_database, new_run, repo, spec};
use super::*;
use crate::domain::run::{AgentEnd, RunInput};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// Steps per seed.
const STEPS: usize = 250;
const SEEDS: [u64; 4] = [1, 2, 3, 4];
const LEASE_SECONDS: i64 = 60;
const CAPS: Caps = Caps { global: 4, per_owner: 9, per_repo: 2, per_user: 3 };

/// xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: i64) -> i64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        i64::try_from(high).unwrap() % limit
    }
}

/// What the model knows of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    repo: i64,
    user: i64,
    lock: String,
    priority: i64,
    created: i64,
    not_before: i64,
    state: RunState,
    fence: i64,
    owner: Option<String>,
    until: Option<i64>,
    cancel: bool,
}

impl Entry {
    fn live(&self) -> bool {
        !self.state.is_terminal() && self.state != RunState::Queued
    }
}

#[derive(Debug, Default)]
struct Model {
    runs: BTreeMap<String, Entry>,
}

impl Model {
    fn live(&self, fits: impl Fn(&Entry) -> bool) -> i64 {
        i64::try_from(self.runs.values().filter(|run| run.live() && fits(run)).count()).unwrap()
    }

    /// The run that a claim must give, worked out the slow way.
    fn next(&self, now: i64) -> Option<String> {
        let ended = self
            .runs
            .iter()
            .filter(|(_, run)| run.state.needs_worker() && run.until.is_none_or(|until| until < now))
            .min_by_key(|(id, run)| (run.priority, run.created, (*id).clone()));
        if let Some((id, _)) = ended {
            return Some(id.clone());
        }
        if self.live(|_| true) >= CAPS.global {
            return None;
        }
        self.runs
            .iter()
            .filter(|(id, run)| {
                run.state == RunState::Queued
                    && run.not_before <= now
                    && self.live(|other| other.repo == run.repo) < CAPS.per_repo
                    && self.live(|other| other.user == run.user) < CAPS.per_user
                    && self.live(|other| other.lock == run.lock) == 0
                    && !self.runs.iter().any(|(other_id, other)| {
                        other.state == RunState::Queued
                            && other.lock == run.lock
                            && (other.created, other_id) < (run.created, *id)
                    })
            })
            .min_by_key(|(id, run)| {
                (run.priority, self.live(|other| other.repo == run.repo), run.created, (*id).clone())
            })
            .map(|(id, _)| id.clone())
    }

    fn check(&self) {
        assert!(self.live(|_| true) <= CAPS.global);
        for run in self.runs.values().filter(|run| run.live()) {
            assert_eq!(self.live(|other| other.lock == run.lock), 1, "{}", run.lock);
            assert!(self.live(|other| other.repo == run.repo) <= CAPS.per_repo);
            assert!(self.live(|other| other.user == run.user) <= CAPS.per_user);
        }
    }
}

/// The rows in the form of the model.
async fn stored(store: &Store) -> BTreeMap<String, (RunState, i64, Option<String>, Option<i64>, bool)> {
    let runs = list(store, &Filter { limit: MAX_ROWS, ..Filter::default() }).await.unwrap();
    runs.into_iter()
        .map(|run| {
            let until = run.lease_until.map(|until| (until - at(0)).num_seconds());
            (
                run.id.to_string(),
                (run.state, run.fence, run.lease_owner, until, run.cancel_requested.is_some()),
            )
        })
        .collect()
}

/// One step that a run in this state may take.
fn step_of(state: RunState, chance: i64) -> RunInput {
    match (state, chance) {
        (_, 0) => RunInput::Failed,
        (RunState::Preparing, 1) => RunInput::Later,
        (RunState::Preparing, _) => RunInput::AgentStarted,
        (RunState::Running, _) => RunInput::AgentGone(AgentEnd::Finished),
        (RunState::Collecting, _) => RunInput::Collected,
        (RunState::Publishing, 1) => RunInput::NothingToDo,
        (RunState::Publishing, _) => RunInput::Pushed,
        (RunState::Reporting, _) => RunInput::Done,
        _ => RunInput::Cancelled,
    }
}

async fn random_steps(store: &Store, seed: u64) {
    let mut random = Random::new(seed);
    let mut model = Model::default();
    // What each worker believes to hold, perhaps wrongly.
    let mut held: Vec<Run> = Vec::new();
    let mut now = 0;
    for step in 0..STEPS {
        let context = format!("seed {seed}, step {step}");
        match random.below(10) {
            0..=2 => {
                let id = format!("run-{seed}-{:04}", random.below(400));
                let (repository, user, lock) = (random.below(3), random.below(3), random.below(5));
                let new = NewRun {
                    repo: repo(repository),
                    spec: spec(user),
                    lock_key: format!("lock {lock}"),
                    priority: random.below(3),
                    created_at: at(now),
                    ..new_run(&id)
                };
                let mut tx = store.write_tx().await.unwrap();
                let inserted = insert(&mut tx, &new).await;
                assert_eq!(inserted.unwrap(), !model.runs.contains_key(&id), "{context}");
                tx.commit().await.unwrap();
                model.runs.entry(id).or_insert(Entry {
                    repo: repository,
                    user,
                    lock: new.lock_key,
                    priority: new.priority,
                    created: now,
                    not_before: 0,
                    state: RunState::Queued,
                    fence: 0,
                    owner: None,
                    until: None,
                    cancel: false,
                });
            }
            3..=4 => {
                let owner = format!("node:{}", random.below(3));
                let lease = Duration::from_secs(LEASE_SECONDS.unsigned_abs());
                let claimed = claim(store, &owner, at(now), lease, CAPS).await.unwrap();
                let wanted = model.next(now);
                assert_eq!(claimed.as_ref().map(|run| run.id.to_string()), wanted, "{context}");
                if let Some(run) = claimed {
                    let entry = model.runs.get_mut(run.id.as_str()).unwrap();
                    if entry.state == RunState::Queued {
                        entry.state = RunState::Preparing;
                    }
                    entry.fence += 1;
                    entry.owner = Some(owner);
                    entry.until = Some(now + LEASE_SECONDS);
                    held.push(run);
                }
            }
            5 => now += random.below(40),
            6 if !held.is_empty() => {
                let run = &held[usize::try_from(random.below(i64::try_from(held.len()).unwrap())).unwrap()];
                let entry = model.runs.get_mut(run.id.as_str()).unwrap();
                let beat = heartbeat(store, &run.id, run.fence, at(now + LEASE_SECONDS)).await;
                if entry.fence == run.fence && entry.state.needs_worker() {
                    assert_eq!(beat.unwrap().is_some(), entry.cancel, "{context}");
                    entry.until = Some(now + LEASE_SECONDS);
                } else {
                    assert!(matches!(beat, Err(StoreError::Fenced { .. })), "{context}");
                }
            }
            7..=8 if !held.is_empty() => {
                let index = usize::try_from(random.below(i64::try_from(held.len()).unwrap())).unwrap();
                let mut run = held[index].clone();
                let input = step_of(run.state, random.below(6));
                if run.apply(&input, at(now)).is_err() {
                    continue;
                }
                if run.state == RunState::Queued {
                    run.not_before = Some(at(now + 10));
                }
                let entry = model.runs.get_mut(run.id.as_str()).unwrap();
                let mut tx = store.write_tx().await.unwrap();
                let saved = save(&mut tx, &run).await;
                if entry.fence == run.fence {
                    saved.unwrap();
                    tx.commit().await.unwrap();
                    entry.state = run.state;
                    if run.state == RunState::Queued {
                        entry.not_before = now + 10;
                    }
                    if !run.state.needs_worker() {
                        (entry.owner, entry.until) = (None, None);
                    }
                    if run.state.is_terminal() || run.state == RunState::Queued {
                        held.remove(index);
                    } else {
                        held[index] = run;
                    }
                } else {
                    assert!(matches!(saved, Err(StoreError::Fenced { .. })), "{context}");
                    held.remove(index);
                }
            }
            _ => {
                let Some(id) = model.runs.keys().nth(usize::try_from(random.below(50)).unwrap()).cloned()
                else {
                    continue;
                };
                let entry = model.runs.get_mut(&id).unwrap();
                let mut tx = store.write_tx().await.unwrap();
                let marked = request_cancel(&mut tx, &RunId::new(id), "somebody").await.unwrap();
                tx.commit().await.unwrap();
                assert_eq!(marked, !entry.state.is_terminal(), "{context}");
                entry.cancel |= marked;
            }
        }
        model.check();
        let wanted: BTreeMap<_, _> = model
            .runs
            .iter()
            .map(|(id, run)| (id.clone(), (run.state, run.fence, run.owner.clone(), run.until, run.cancel)))
            .collect();
        assert_eq!(stored(store).await, wanted, "{context}");
    }
    // Nothing is lost: with workers that finish, every run comes to an end.
    loop {
        now += LEASE_SECONDS + 1;
        let lease = Duration::from_secs(LEASE_SECONDS.unsigned_abs());
        let filter = Filter { state: Some(RunState::Reporting), limit: MAX_ROWS, ..Filter::default() };
        for mut run in list(store, &filter).await.unwrap() {
            finish(store, &mut run).await;
        }
        let Some(mut run) = claim(store, "node:last", at(now), lease, CAPS).await.unwrap() else { break };
        finish(store, &mut run).await;
    }
    let states: BTreeSet<_> = stored(store).await.into_values().map(|row| row.0.as_str()).collect();
    assert!(states.iter().all(|state| RunState::parse(state).unwrap().is_terminal()), "{states:?}");
}

async fn finish(store: &Store, run: &mut Run) {
    run.apply(&RunInput::Failed, at(0)).unwrap();
    let mut tx = store.write_tx().await.unwrap();
    save(&mut tx, run).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn random_steps_agree_with_the_model() {
    for seed in SEEDS {
        each_database(async |database| random_steps(&database.store, seed).await).await;
    }
}

/// Whom the workers of the race believe to be at work, and what was claimed.
#[derive(Debug, Default)]
struct Race {
    working: Vec<(String, i64, i64)>,
    done: Vec<String>,
}

async fn work(store: &Store, owner: &str, race: &Mutex<Race>, total: usize) {
    let lease = Duration::from_secs(LEASE_SECONDS.unsigned_abs());
    while race.lock().unwrap().done.len() < total {
        let Some(mut run) = claim(store, owner, at(1), lease, CAPS).await.unwrap() else {
            tokio::task::yield_now().await;
            continue;
        };
        assert_eq!(run.fence, 1, "{} was claimed twice", run.id);
        let lock = run.spec.text.clone();
        {
            let mut race = race.lock().unwrap();
            let count = |fits: &dyn Fn(&(String, i64, i64)) -> bool| {
                i64::try_from(race.working.iter().filter(|one| fits(one)).count()).unwrap()
            };
            assert!(count(&|_| true) < CAPS.global);
            assert_eq!(count(&|one| one.0 == lock), 0, "{lock} is held twice");
            assert!(count(&|one| one.1 == run.repo.id) < CAPS.per_repo);
            assert!(count(&|one| one.2 == run.spec.requester.id) < CAPS.per_user);
            race.working.push((lock.clone(), run.repo.id, run.spec.requester.id));
        }
        heartbeat(store, &run.id, run.fence, at(60)).await.unwrap();
        {
            let mut race = race.lock().unwrap();
            race.working.retain(|one| one.0 != lock);
            race.done.push(run.id.to_string());
        }
        finish(store, &mut run).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claimers_that_race_neither_double_nor_pass_locks_and_caps() {
    each_database(async |database| {
        // Two stores stand for two processes.
        let other = Store::open(&database.url).await.unwrap();
        let mut random = Random::new(9);
        let total = 60;
        let mut tx = database.store.write_tx().await.unwrap();
        for n in 0..total {
            let lock = format!("lock {}", random.below(8));
            let mut run = NewRun {
                repo: repo(random.below(3)),
                spec: spec(random.below(3)),
                lock_key: lock.clone(),
                ..new_run(&format!("run-{n:04}"))
            };
            run.spec.text = lock;
            assert!(insert(&mut tx, &run).await.unwrap());
        }
        tx.commit().await.unwrap();
        let race = Mutex::new(Race::default());
        let workers = (0..6).map(|n| {
            let store = if n % 2 == 0 { &database.store } else { &other };
            let race = &race;
            async move { work(store, &format!("node:{n}"), race, total).await }
        });
        futures_util::future::join_all(workers).await;
        let mut done = race.into_inner().unwrap().done;
        done.sort_unstable();
        done.dedup();
        assert_eq!(done.len(), total);
        other.close().await;
    })
    .await;
}

#[tokio::test]
async fn claimers_on_postgres_go_one_after_the_other() {
    each_database(async |database| {
        let store = &database.store;
        if store.kind() == DatabaseKind::Sqlite {
            return; // BEGIN IMMEDIATE lets one writer in at a time.
        }
        let mut tx = store.write_tx().await.unwrap();
        insert(&mut tx, &new_run("run-1")).await.unwrap();
        tx.commit().await.unwrap();
        let mut first = store.write_tx().await.unwrap();
        exclusive(&mut first, "claim").await.unwrap();
        let second = claim(store, "node:2", at(1), Duration::from_secs(60), CAPS);
        let mut second = std::pin::pin!(second);
        let second_waits = async {
            loop {
                let row = sqlx::query(
                    "SELECT COUNT(*) AS n, '' AS id FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                )
                .fetch_one(&store.pool)
                .await
                .unwrap();
                if RowReader::new(&row, "pg_locks", "id").integer("n").unwrap() > 0 {
                    break;
                }
            }
        };
        tokio::select! {
            claimed = &mut second => panic!("claimed while another claim was at work: {claimed:?}"),
            () = second_waits => {}
        }
        drop(first);
        assert_eq!(second.await.unwrap().unwrap().id.as_str(), "run-1");
    })
    .await;
}
