//! The claim: which queued runs go next, and taking them. What it reads does not grow with what has ended, nor with what
//! waits: the live runs, the oldest few that are queued of each priority, and, only when these do not decide, the
//! oldest of each repository.

use super::{Caps, read_runs};
use crate::domain::node::node_of;
use crate::domain::run::Run;
use crate::store::rows::{RowReader, exclusive, millis, sql};
use crate::store::{Store, StoreError, Tx};
use chrono::{DateTime, Utc};
use sqlx::any::AnyRow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most runs that one claim takes.
pub const AT_ONCE: usize = 16;
/// Times that a claim looks again when a run changed between looking and taking.
const CLAIM_TRIES: u32 = 8;
/// A run whose row cannot be read is set aside for so long, so that it does not stop all others.
pub(super) const SET_ASIDE: Duration = Duration::from_secs(600);
/// How many of the oldest queued runs of a priority are looked at. It stands in the statement: with a bound number of
/// rows SQLite would plan it anew each time.
macro_rules! looked_at {
    () => {
        32
    };
}

/// A live run that an earlier boot of the owner's node left, see `inherit_leases`.
macro_rules! left_to {
    ($run:literal, $owner:literal) => {
        concat!($run, "lease_owner = ", $owner, " || '/left'")
    };
}

/// The node has every capability that a run needs.
macro_rules! can_all_it_needs {
    ($run:literal, $node:literal) => {
        concat!(
            "NOT EXISTS (SELECT 1 FROM run_needs n WHERE n.run = ",
            $run,
            ".id AND NOT EXISTS (SELECT 1 FROM node_capabilities c WHERE c.node = ",
            $node,
            " AND c.capability = n.need))"
        )
    };
}

/// The time has come for a queued run, its lock is free and it is the oldest that wants it, its task waits for no
/// other, and the node can do it. `$1` is now, `$2` the node.
macro_rules! is_ready {
    ($run:literal) => {
        concat!(
            $run,
            ".not_before <= $1 AND NOT EXISTS (SELECT 1 FROM runs l WHERE l.lock_key = ",
            $run,
            ".lock_key AND l.state IN ",
            live_states!(),
            ") AND NOT EXISTS (SELECT 1 FROM runs o WHERE o.state = 'queued' AND o.lock_key = ",
            $run,
            ".lock_key AND (o.created_at < ",
            $run,
            ".created_at OR (o.created_at = ",
            $run,
            ".created_at AND o.id < ",
            $run,
            ".id))) AND NOT EXISTS (SELECT 1 FROM task_links b JOIN tasks p ON p.id = b.parent WHERE b.child = ",
            $run,
            ".task AND b.kind = 'blocked_by' AND ",
            crate::store::tasks::blocks!("p"),
            ") AND ",
            can_all_it_needs!($run, "$2")
        )
    };
}

/// Claims the next due run: highest priority (which rises with waiting, see `AGEING`), then fair between repositories (fewest live runs first), then oldest;
/// none whose lock is held, none whose task waits for another (`tasks::block`), none over a cap. Takes the lease, raises
/// the fence, moves it to `preparing`.
/// Also re-claims a live run whose lease ran out, or that an earlier boot of the owner's node left (state unchanged,
/// fence raised), which goes first: then the owner before has died of it, unless it said otherwise (`left_alive`).
/// An owner is `NODE:BOOT`: a node gets only runs whose needs are among its capabilities.
///
/// Of the queued runs with one lock only the oldest can be claimed. A run that cannot be read is an error once and
/// then set aside for ten minutes.
pub async fn claim(
    store: &Store,
    owner: &str,
    now: DateTime<Utc>,
    lease: Duration,
    caps: Caps,
) -> Result<Option<Run>, StoreError> {
    Ok(claim_some(store, owner, now, lease, caps, 1).await?.pop())
}

/// As that many claims one after the other, up to `AT_ONCE`, in one transaction. Fewer than there could be is no sign
/// that there are no more; none is.
pub async fn claim_some(
    store: &Store,
    owner: &str,
    now: DateTime<Utc>,
    lease: Duration,
    caps: Caps,
    limit: usize,
) -> Result<Vec<Run>, StoreError> {
    let mut tx = store.lazy_tx().await?;
    exclusive(&mut tx, "claim").await?;
    let until = later(now, lease);
    for _ in 0..CLAIM_TRIES {
        let ids = next(&mut tx, owner, now, caps, limit.min(AT_ONCE)).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = take(&mut tx, &ids, owner, now, until).await?;
        match read_runs(&rows) {
            // On Postgres a heartbeat or a cancel may have come between looking and taking: look again.
            Ok(runs) if runs.is_empty() => {}
            Ok(mut runs) => {
                tx.commit().await?;
                // The database gives them in any order.
                runs.sort_by_key(|run| ids.iter().position(|id| id == run.id.as_str()));
                return Ok(runs);
            }
            Err(error) => {
                drop(tx);
                if let StoreError::BadRow { id, .. } = &error {
                    set_aside(store, id, later(now, SET_ASIDE)).await?;
                }
                return Err(error);
            }
        }
    }
    Ok(Vec::new())
}

/// `now + time`, in milliseconds.
fn later(now: DateTime<Utc>, time: Duration) -> i64 {
    millis(now).saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

/// Takes a run that cannot be read out of the way: a newer version may be able to read it.
async fn set_aside(store: &Store, id: &str, until: i64) -> Result<(), StoreError> {
    let mut tx = store.lazy_tx().await?;
    sqlx::query(
        "UPDATE runs SET not_before = CASE WHEN state = 'queued' THEN $2 ELSE not_before END, \
         lease_until = CASE WHEN state = 'queued' THEN lease_until ELSE $2 END WHERE id = $1",
    )
    .bind(id)
    .bind(until)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("set a run aside"))?;
    tx.commit().await
}

const TAKE: &str = concat!(
    "UPDATE runs SET fence = fence + 1, lease_owner = $1, lease_until = $2, \
         deaths = deaths + CASE WHEN state = 'queued' OR lease_owner IS NULL THEN 0 ELSE 1 END, \
         started_at = CASE WHEN state = 'queued' THEN COALESCE(started_at, $3) ELSE started_at END, \
         state = CASE WHEN state = 'queued' THEN 'preparing' ELSE state END \
         WHERE id IN ($4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) AND (state = 'queued' \
         OR ((lease_until IS NULL OR lease_until < $3 OR ",
    left_to!("", "$1"),
    ") AND state IN ",
    working!(),
    ")) RETURNING ",
    columns!()
);

async fn take(
    tx: &mut Tx,
    ids: &[String],
    owner: &str,
    now: DateTime<Utc>,
    until: i64,
) -> Result<Vec<AnyRow>, StoreError> {
    let mut query = sqlx::query(TAKE).bind(owner).bind(until).bind(millis(now));
    for n in 0..AT_ONCE {
        // No run has an empty id.
        query = query.bind(ids.get(n).map_or("", String::as_str));
    }
    query.fetch_all(&mut *tx.inner).await.map_err(sql("claim runs"))
}

/// The ids of the next runs, in their order.
async fn next(
    tx: &mut Tx,
    owner: &str,
    now: DateTime<Utc>,
    caps: Caps,
    limit: usize,
) -> Result<Vec<String>, StoreError> {
    let (live, lost) = look_at_live(tx, owner, now).await?;
    let lost: Vec<String> = lost.into_iter().take(limit).collect();
    let room = usize::try_from(caps.global).unwrap_or(0).saturating_sub(live.runs);
    let limit = (limit - lost.len()).min(room);
    if limit == 0 {
        return Ok(lost);
    }
    let queued = look_at_queued(tx, owner, now).await?;
    let mut chosen = match choose(&live, &queued, None, caps, millis(now), limit) {
        Some(chosen) => chosen,
        None => {
            let heads = look_at_heads(tx, owner, now, caps).await?;
            choose(&live, &queued, Some(&heads), caps, millis(now), limit).unwrap_or_default()
        }
    };
    chosen.splice(0..0, lost);
    Ok(chosen)
}

/// How many live runs there are of each.
#[derive(Debug, Clone, Default)]
struct Live {
    runs: usize,
    of_repo: BTreeMap<(String, i64), i64>,
    of_user: BTreeMap<(String, i64), i64>,
    of_owner: BTreeMap<(String, String), i64>,
}

impl Live {
    fn add(&mut self, place: &Place) {
        self.runs += 1;
        *self.of_repo.entry((place.remote.clone(), place.repo)).or_default() += 1;
        *self.of_user.entry((place.remote.clone(), place.requester)).or_default() += 1;
        // Empty on rows of earlier versions.
        if !place.owner.is_empty() {
            *self.of_owner.entry((place.remote.clone(), place.owner.clone())).or_default() += 1;
        }
    }

    fn of_repo(&self, place: &Place) -> i64 {
        self.of_repo.get(&(place.remote.clone(), place.repo)).copied().unwrap_or(0)
    }

    /// One more would not pass a cap.
    fn has_room(&self, place: &Place, caps: Caps) -> bool {
        let of_user = self.of_user.get(&(place.remote.clone(), place.requester));
        let of_owner = self.of_owner.get(&(place.remote.clone(), place.owner.clone()));
        self.of_repo(place) < caps.per_repo
            && of_user.is_none_or(|n| *n < caps.per_user)
            && of_owner.is_none_or(|n| *n < caps.per_owner)
    }
}

/// What caps and fairness go by.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    remote: String,
    repo: i64,
    owner: String,
    requester: i64,
}

fn read_place(row: &RowReader<'_>) -> Result<Place, StoreError> {
    Ok(Place {
        remote: row.text("remote")?,
        repo: row.integer("repo_id")?,
        owner: row.text("owner")?,
        requester: row.integer("requester")?,
    })
}

/// A queued run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    id: String,
    priority: i64,
    created_at: i64,
    place: Place,
    /// It can be claimed, as far as caps allow.
    ready: bool,
}

fn read_candidate(row: &AnyRow) -> Result<Candidate, StoreError> {
    let row = RowReader::new(row, "runs", "id");
    Ok(Candidate {
        id: row.text("id")?,
        priority: row.integer("priority")?,
        created_at: row.integer("created_at")?,
        place: read_place(&row)?,
        ready: row.integer("ready")? == 1,
    })
}

impl Candidate {
    /// The priority, risen by waiting.
    fn risen(&self, now: i64) -> i64 {
        let waited = (now - self.created_at) / super::AGEING.as_millis() as i64;
        if waited >= self.priority { 0 } else { self.priority - waited }
    }

    /// The place in the order, with so many live runs of its repository.
    fn order(&self, now: i64, live: i64) -> (i64, i64, i64, &str) {
        (self.risen(now), live, self.created_at, &self.id)
    }
}

/// Which runs go next, as far as the first of them can be told.
///
/// `queued` is the oldest few of each priority; `heads` is the oldest run of each priority and repository that may go,
/// among all. `None`: without the heads it cannot be told which run is first, because one that was not looked at could
/// go before it.
fn choose(
    live: &Live,
    queued: &[Looked],
    heads: Option<&[Candidate]>,
    caps: Caps,
    now: i64,
    limit: usize,
) -> Option<Vec<String>> {
    let mut live = live.clone();
    let known: BTreeMap<&str, &Candidate> = queued
        .iter()
        .flat_map(|looked| &looked.runs)
        .chain(heads.unwrap_or_default())
        .filter(|run| run.ready)
        .map(|run| (run.id.as_str(), run))
        .collect();
    // What was not looked at is younger than the youngest of its priority that was.
    let unseen = || queued.iter().filter(|looked| !looked.is_all);
    let group = |run: &Candidate| (run.priority, run.place.remote.clone(), run.place.repo);
    let groups = |live: &Live, chosen: &[String]| -> BTreeSet<_> {
        let able = known.values().filter(|run| !chosen.contains(&run.id) && live.has_room(&run.place, caps));
        able.map(|run| group(run)).collect()
    };
    let at_first = groups(&live, &[]);
    let mut chosen: Vec<String> = Vec::new();
    while chosen.len() < limit {
        let best = known
            .values()
            .filter(|run| !chosen.contains(&run.id) && live.has_room(&run.place, caps))
            .min_by_key(|run| run.order(now, live.of_repo(&run.place)));
        let is_sure = match heads {
            None => unseen().filter_map(|looked| looked.runs.last()).all(|youngest| {
                best.is_some_and(|best| best.order(now, live.of_repo(&best.place)) <= youngest.order(now, 0))
            }),
            // The runs behind the last one that is known of a repository are not.
            Some(_) => {
                let left = groups(&live, &chosen);
                unseen().next().is_none() || at_first.iter().all(|group| left.contains(group))
            }
        };
        match best {
            Some(best) if is_sure => {
                live.add(&best.place);
                chosen.push(best.id.clone());
            }
            None if is_sure => break,
            _ if chosen.is_empty() => return None,
            _ => break,
        }
    }
    Some(chosen)
}

const LOOK_AT_LIVE: &str = concat!(
    "SELECT q.id AS id, q.remote AS remote, q.repo_id AS repo_id, q.owner AS owner, q.requester AS requester, \
         CASE WHEN q.state IN ",
    working!(),
    " AND ((q.lease_until IS NULL OR q.lease_until < $1) AND ",
    can_all_it_needs!("q", "$2"),
    " OR ",
    left_to!("q.", "$3"),
    ") THEN 1 ELSE 0 END AS lost FROM runs q WHERE q.state IN ",
    live_states!(),
    " ORDER BY q.priority, q.created_at, q.id"
);

/// Counts of the live runs, and the ids of those that can be taken over, in their order.
async fn look_at_live(
    tx: &mut Tx,
    owner: &str,
    now: DateTime<Utc>,
) -> Result<(Live, Vec<String>), StoreError> {
    let rows = sqlx::query(LOOK_AT_LIVE)
        .bind(millis(now))
        .bind(node_of(owner))
        .bind(owner)
        .fetch_all(&mut *tx.inner)
        .await
        .map_err(sql("look at live runs"))?;
    let (mut live, mut lost) = (Live::default(), Vec::new());
    for row in &rows {
        let row = RowReader::new(row, "runs", "id");
        live.add(&read_place(&row)?);
        if row.integer("lost")? == 1 {
            lost.push(row.text("id")?);
        }
    }
    Ok((live, lost))
}

/// The oldest queued runs of one priority.
#[derive(Debug, Clone, Default)]
struct Looked {
    runs: Vec<Candidate>,
    is_all: bool,
}

macro_rules! candidate {
    ($ready:expr) => {
        concat!(
            "SELECT q.id AS id, q.priority AS priority, q.created_at AS created_at, q.remote AS remote, \
             q.repo_id AS repo_id, q.owner AS owner, q.requester AS requester, ",
            $ready,
            " AS ready FROM runs q "
        )
    };
}

macro_rules! oldest {
    ($priority:literal) => {
        concat!(
            "SELECT * FROM (",
            candidate!(concat!("CASE WHEN ", is_ready!("q"), " THEN 1 ELSE 0 END")),
            "WHERE q.state = 'queued' AND q.priority = ",
            $priority,
            " ORDER BY q.created_at, q.id LIMIT ",
            looked_at!(),
            ") p",
            $priority
        )
    };
}

const LOOK_AT_QUEUED: &str = concat!(oldest!("0"), " UNION ALL ", oldest!("1"), " UNION ALL ", oldest!("2"));

async fn look_at_queued(tx: &mut Tx, owner: &str, now: DateTime<Utc>) -> Result<Vec<Looked>, StoreError> {
    let rows = sqlx::query(LOOK_AT_QUEUED)
        .bind(millis(now))
        .bind(node_of(owner))
        .fetch_all(&mut *tx.inner)
        .await
        .map_err(sql("look at the oldest queued runs"))?;
    let mut looked: BTreeMap<i64, Vec<Candidate>> = BTreeMap::new();
    for row in &rows {
        let run = read_candidate(row)?;
        looked.entry(run.priority).or_default().push(run);
    }
    Ok(looked.into_values().map(|runs| Looked { is_all: runs.len() < looked_at!(), runs }).collect())
}

macro_rules! first_queued {
    ($condition:literal, $order:literal) => {
        concat!(
            "(SELECT f.id FROM runs f WHERE f.state = 'queued'",
            $condition,
            " ORDER BY ",
            $order,
            "f.created_at, f.id LIMIT 1)"
        )
    };
}

/// The first queued run of the repository that follows `h`'s in the index. Of a comparison of whole rows SQLite uses
/// the first column only, and reads all that `h`'s repository has queued.
macro_rules! first_of_next {
    () => {
        concat!(
            "COALESCE(",
            first_queued!(
                " AND f.priority = h.priority AND f.remote = h.remote AND f.repo_id > h.repo_id",
                "f.repo_id, "
            ),
            ", ",
            first_queued!(" AND f.priority = h.priority AND f.remote > h.remote", "f.remote, f.repo_id, "),
            ", ",
            first_queued!(" AND f.priority > h.priority", "f.priority, f.remote, f.repo_id, "),
            ")"
        )
    };
}

macro_rules! live_of {
    ($run:literal, $condition:literal) => {
        concat!("(SELECT COUNT(*) FROM live v WHERE v.remote = ", $run, ".remote AND ", $condition, ")")
    };
}

/// Caps of the repository and of its account are looked at once for each repository: all behind its first run may wait
/// for them.
const LOOK_AT_HEADS: &str = concat!(
    "WITH RECURSIVE live AS MATERIALIZED (SELECT remote, repo_id, owner, requester FROM runs WHERE state IN ",
    live_states!(),
    "), first_ones (id) AS (SELECT ",
    first_queued!("", "f.priority, f.remote, f.repo_id, "),
    " UNION ALL SELECT ",
    first_of_next!(),
    " FROM first_ones i JOIN runs h ON h.id = i.id) ",
    candidate!("1"),
    "JOIN (SELECT (SELECT x.id FROM runs x WHERE x.state = 'queued' AND x.priority = h.priority \
         AND x.remote = h.remote AND x.repo_id = h.repo_id AND ",
    live_of!("x", "v.requester = x.requester"),
    " < $4 AND ",
    is_ready!("x"),
    " ORDER BY x.created_at, x.id LIMIT 1) AS id FROM first_ones i JOIN runs h ON h.id = i.id WHERE ",
    live_of!("h", "v.repo_id = h.repo_id"),
    " < $3 AND ",
    live_of!("h", "v.owner = h.owner AND v.owner <> ''"),
    " < $5) e ON e.id = q.id"
);

/// For each priority and repository that has queued runs the oldest that may go: from one to the next in the index,
/// not by reading all.
async fn look_at_heads(
    tx: &mut Tx,
    owner: &str,
    now: DateTime<Utc>,
    caps: Caps,
) -> Result<Vec<Candidate>, StoreError> {
    let rows = sqlx::query(LOOK_AT_HEADS)
        .bind(millis(now))
        .bind(node_of(owner))
        .bind(caps.per_repo)
        .bind(caps.per_user)
        .bind(caps.per_owner)
        .fetch_all(&mut *tx.inner)
        .await
        .map_err(sql("look at the oldest queued run of each repository"))?;
    rows.iter().map(read_candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::super::list_text;
    use super::*;
    use crate::store::testing::each_database;
    use crate::store::testing::sqlite_plan;

    const CAPS: Caps = Caps { global: 6, per_owner: 4, per_repo: 3, per_user: 4 };

    /// One claim after the other, among all.
    fn slowly(live: &Live, all: &[Candidate], now: i64, limit: usize) -> Vec<String> {
        let (mut live, mut chosen) = (live.clone(), Vec::new());
        while chosen.len() < limit {
            let best = all
                .iter()
                .filter(|run| run.ready && !chosen.contains(&run.id) && live.has_room(&run.place, CAPS))
                .min_by_key(|run| run.order(now, live.of_repo(&run.place)));
            let Some(best) = best else { break };
            live.add(&best.place);
            chosen.push(best.id.clone());
        }
        chosen
    }

    proptest::proptest! {
        #[test]
        fn what_is_chosen_from_the_oldest_few_is_what_would_be_chosen_among_all(
            // Priority, minutes since it was made, repository, user, ready.
            runs in proptest::collection::vec((0..3_i64, 0..90_i64, 1..6_i64, 1..5_i64, proptest::bool::weighted(0.8)), 0..40),
            live_places in proptest::collection::vec((1..6_i64, 1..5_i64), 0..5),
            most in 1..6_usize,
            limit in 1..5_usize,
        ) {
            let place = |repo: i64, requester| Place { remote: "r".into(), repo, owner: format!("o{}", repo % 2), requester };
            let now = 100 * 60_000;
            let mut all: Vec<Candidate> = runs
                .into_iter()
                .enumerate()
                .map(|(n, (priority, waited, repo, user, ready))| Candidate {
                    id: format!("run {n:02}"),
                    priority,
                    created_at: now - waited * 60_000,
                    place: place(repo, user),
                    ready,
                })
                .collect();
            all.sort_by_key(|run| (run.priority, run.created_at, run.id.clone()));
            let mut live = Live::default();
            for (repo, user) in live_places {
                live.add(&place(repo, user));
            }
            let of = |priority| all.iter().filter(move |run| run.priority == priority).cloned();
            let queued: Vec<Looked> = (0..3)
                .map(|priority| Looked { runs: of(priority).take(most).collect(), is_all: of(priority).count() < most })
                .collect();
            let mut heads: BTreeMap<(i64, i64), Candidate> = BTreeMap::new();
            for run in all.iter().filter(|run| run.ready && live.has_room(&run.place, CAPS)) {
                heads.entry((run.priority, run.place.repo)).or_insert_with(|| run.clone());
            }
            let heads: Vec<Candidate> = heads.into_values().collect();
            let wanted = slowly(&live, &all, now, limit);
            if let Some(chosen) = choose(&live, &queued, None, CAPS, now, limit) {
                proptest::prop_assert!(wanted.starts_with(&chosen), "{:?} {:?}", chosen, wanted);
                proptest::prop_assert_eq!(chosen.is_empty(), wanted.is_empty());
            }
            let chosen = choose(&live, &queued, Some(&heads), CAPS, now, limit).unwrap_or_default();
            proptest::prop_assert!(wanted.starts_with(&chosen), "{:?} {:?}", chosen, wanted);
            proptest::prop_assert_eq!(chosen.is_empty(), wanted.is_empty());
        }
    }

    #[test]
    fn an_idle_repository_needs_no_look_at_the_rest_of_the_queue() {
        let run = |id: &str, repo| Candidate {
            id: id.into(),
            priority: 1,
            created_at: 0,
            place: Place { remote: "r".into(), repo, owner: "o".into(), requester: repo },
            ready: true,
        };
        let mut live = Live::default();
        live.add(&run("live", 1).place);
        let part = |runs| vec![Looked { runs, is_all: false }];
        let idle = part(vec![run("a", 1), run("b", 2)]);
        assert_eq!(choose(&live, &idle, None, CAPS, 0, 1), Some(vec!["b".to_owned()]));
        let busy = part(vec![run("a", 1), run("b", 1)]);
        assert_eq!(
            choose(&live, &busy, None, CAPS, 0, 1),
            None,
            "a run further behind may be of an idle one"
        );
        let heads = [run("a", 1), run("z", 3)];
        assert_eq!(choose(&live, &busy, Some(&heads), CAPS, 0, 1), Some(vec!["z".to_owned()]));
    }

    #[tokio::test]
    async fn nothing_that_the_queue_asks_reads_a_whole_table() {
        each_database(async |database| {
            if database.store.kind() != crate::store::DatabaseKind::Sqlite {
                return;
            }
            let lists =
                [(false, false), (true, false), (false, true), (true, true)].map(|(of_repo, open_only)| {
                    list_text(&super::super::Filter {
                        repo: of_repo.then(String::new),
                        open_only,
                        ..super::super::Filter::default()
                    })
                });
            let asked = [LOOK_AT_LIVE, LOOK_AT_QUEUED, LOOK_AT_HEADS, TAKE, super::super::NEXT_DUE];
            let (mut scans, mut steps_to_next) = (BTreeSet::new(), Vec::new());
            for text in asked.into_iter().chain(lists) {
                let plan = sqlite_plan(&database.store, text).await;
                scans.extend(plan.iter().filter(|step| step.starts_with("SCAN")).cloned());
                steps_to_next.extend(plan.into_iter().filter(|step| step.starts_with("SEARCH f ")));
            }
            // Over all that one repository has queued.
            steps_to_next.sort();
            let through = "SEARCH f USING COVERING INDEX runs_queued";
            let wanted =
                ["(priority=? AND remote=? AND repo_id>?)", "(priority=? AND remote>?)", "(priority>?)"];
            assert_eq!(steps_to_next, wanted.map(|columns| format!("{through} {columns}")));
            // Results of parts, and indexes that hold only live, queued or open runs, or are read in their order.
            let wanted = [
                "SCAN CONSTANT ROW",
                "SCAN f USING COVERING INDEX runs_queued",
                "SCAN i",
                "SCAN p0",
                "SCAN p1",
                "SCAN p2",
                "SCAN q USING INDEX runs_live",
                "SCAN runs USING INDEX runs_created",
                "SCAN runs USING INDEX runs_live",
                "SCAN runs USING INDEX runs_open",
            ];
            assert_eq!(scans.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
        })
        .await;
    }
}
