//! Nodes and installations: who works on this database, and where the App is installed.

use super::rows::{MAX_ROWS, RowReader, millis, plain, row_limit, sql};
use super::{Store, StoreError, Tx};
use crate::domain::ids::RunId;
use crate::domain::node::{Node, Role};
use chrono::{DateTime, Utc};

/// A node as it said of itself, and what it is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownNode {
    pub node: Node,
    /// As in leases, `NODE:BOOT`; empty: it ended in an orderly way.
    pub boot: String,
    pub version: String,
    pub started_at: DateTime<Utc>,
    pub seen_at: DateTime<Utc>,
    /// It claims nothing.
    pub draining: bool,
    /// Runs that it takes at one time.
    pub slots: i64,
    /// Runs that it holds a lease of.
    pub live: i64,
}

/// Roles whose nodes claim runs.
macro_rules! workers {
    () => {
        "('all', 'worker')"
    };
}

/// This node is alive. Another boot than the last one begins anew; an operator's drain stays.
pub async fn seen(
    store: &Store,
    node: &Node,
    boot: &str,
    slots: i64,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let mut tx = store.lazy_tx().await?;
    let before = sqlx::query("SELECT id, capabilities FROM nodes WHERE id = $1")
        .bind(&node.id)
        .fetch_optional(&mut *tx.inner)
        .await
        .map_err(sql("look for a node"))?
        .map(|row| RowReader::new(&row, "nodes", "id").text("capabilities"))
        .transpose()?;
    let capabilities = node.capabilities.join(" ");
    sqlx::query(
        "INSERT INTO nodes (id, role, capabilities, started_at, seen_at, name, boot, version, slots) \
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET role = excluded.role, \
         capabilities = excluded.capabilities, seen_at = excluded.seen_at, name = excluded.name, \
         version = excluded.version, slots = excluded.slots, boot = excluded.boot, \
         started_at = CASE WHEN nodes.boot = excluded.boot THEN nodes.started_at ELSE excluded.started_at END",
    )
    .bind(&node.id)
    .bind(node.role.as_str())
    .bind(&capabilities)
    .bind(millis(now))
    .bind(plain(&node.name).as_ref())
    .bind(boot)
    .bind(env!("CARGO_PKG_VERSION"))
    .bind(slots)
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("register a node"))?;
    if before.as_ref() != Some(&capabilities) {
        forget_capabilities(&mut tx, &node.id).await?;
        for capability in &node.capabilities {
            sqlx::query(
                "INSERT INTO node_capabilities (node, capability) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            )
            .bind(&node.id)
            .bind(capability)
            .execute(&mut *tx.inner)
            .await
            .map_err(sql("write what a node can"))?;
        }
    }
    tx.commit().await
}

async fn forget_capabilities(tx: &mut Tx, id: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM node_capabilities WHERE node = $1")
        .bind(id)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("forget what a node can"))?;
    Ok(())
}

/// This boot of a node ended in an orderly way; a later boot is left alone.
pub async fn stopped(store: &Store, id: &str, boot: &str) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    sqlx::query("UPDATE nodes SET boot = '' WHERE id = $1 AND boot = $2")
        .bind(id)
        .bind(boot)
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("end a node"))?;
    tx.commit().await
}

/// Nodes that were not seen since then; gives how many there were.
pub async fn forget_unseen(store: &Store, since: DateTime<Utc>) -> Result<usize, StoreError> {
    let mut tx = store.write_tx().await?;
    let rows = sqlx::query("DELETE FROM nodes WHERE seen_at < $1 RETURNING id")
        .bind(millis(since))
        .fetch_all(&mut *tx.inner)
        .await
        .map_err(sql("forget nodes"))?;
    for row in &rows {
        forget_capabilities(&mut tx, &RowReader::new(row, "nodes", "id").text("id")?).await?;
    }
    tx.commit().await?;
    Ok(rows.len())
}

/// Every node that is not forgotten, by name.
pub async fn list(store: &Store) -> Result<Vec<KnownNode>, StoreError> {
    let rows = sqlx::query(
        "SELECT n.id AS id, n.role AS role, n.capabilities AS capabilities, n.started_at AS started_at, \
         n.seen_at AS seen_at, n.name AS name, n.boot AS boot, n.version AS version, n.draining AS draining, \
         n.slots AS slots, (SELECT COUNT(*) FROM runs r WHERE SUBSTR(r.lease_owner, 1, LENGTH(n.id) + 1) = n.id || ':' \
         AND r.state IN ('preparing', 'running', 'collecting', 'publishing')) AS live \
         FROM nodes n ORDER BY n.name, n.role, n.id LIMIT $1",
    )
    .bind(MAX_ROWS)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list nodes"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "nodes", "id");
            Ok(KnownNode {
                node: Node {
                    id: row.text("id")?,
                    name: row.text("name")?,
                    role: row.word("role", Role::parse)?,
                    capabilities: row.text("capabilities")?.split_whitespace().map(str::to_owned).collect(),
                },
                boot: row.text("boot")?,
                version: row.text("version")?,
                started_at: row.time("started_at")?,
                seen_at: row.time("seen_at")?,
                draining: row.integer("draining")? != 0,
                slots: row.integer("slots")?,
                live: row.integer("live")?,
            })
        })
        .collect()
}

/// Whether an operator wants this node to claim nothing.
pub async fn is_draining(store: &Store, id: &str) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT id FROM nodes WHERE id = $1 AND draining <> 0")
        .bind(id)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("ask whether a node is drained"))?;
    Ok(row.is_some())
}

/// Drains the nodes of a name or id, or lets them claim again; gives how many there are.
pub async fn set_draining(tx: &mut Tx, name: &str, draining: bool) -> Result<u64, StoreError> {
    let done = sqlx::query("UPDATE nodes SET draining = $2 WHERE name = $1 OR id = $1")
        .bind(plain(name).as_ref())
        .bind(i64::from(draining))
        .execute(&mut *tx.inner)
        .await
        .map_err(sql("drain a node"))?;
    Ok(done.rows_affected())
}

/// Queued runs that no node would take that was seen since then, oldest first.
pub async fn without_node(
    store: &Store,
    seen_since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<(RunId, Vec<String>)>, StoreError> {
    let rows = sqlx::query(concat!(
        "SELECT q.id AS id FROM runs q WHERE q.state = 'queued' AND NOT EXISTS (\
         SELECT 1 FROM nodes n WHERE n.role IN ",
        workers!(),
        " AND n.boot <> '' AND n.draining = 0 AND n.seen_at >= $1 AND NOT EXISTS (\
         SELECT 1 FROM run_needs x WHERE x.run = q.id AND NOT EXISTS (\
         SELECT 1 FROM node_capabilities c WHERE c.node = n.id AND c.capability = x.need))) \
         ORDER BY q.created_at, q.id LIMIT $2"
    ))
    .bind(millis(seen_since))
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list runs without a node"))?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let run = RunId::new(RowReader::new(row, "runs", "id").text("id")?);
        let needs = needs_of(store, &run).await?;
        found.push((run, needs));
    }
    Ok(found)
}

/// What a node must have for this run, sorted.
pub async fn needs_of(store: &Store, run: &RunId) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query("SELECT run, need FROM run_needs WHERE run = $1 ORDER BY need")
        .bind(run.as_str())
        .fetch_all(&store.pool)
        .await
        .map_err(sql("read what a run needs"))?;
    rows.iter().map(|row| RowReader::new(row, "run_needs", "run").text("need")).collect()
}

/// Whether the App may work for an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstallationState {
    Active,
    Suspended,
    Deleted,
}

impl InstallationState {
    /// Every state.
    pub const ALL: [InstallationState; 3] =
        [InstallationState::Active, InstallationState::Suspended, InstallationState::Deleted];

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            InstallationState::Active => "active",
            InstallationState::Suspended => "suspended",
            InstallationState::Deleted => "deleted",
        }
    }

    /// The state of a word, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// An empty `account` keeps the one that is known.
pub async fn set_installation(
    tx: &mut Tx,
    remote: &str,
    id: i64,
    account: &str,
    state: InstallationState,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO installations (remote, id, account, state, updated_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (remote, id) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at, \
         account = CASE WHEN excluded.account = '' THEN installations.account ELSE excluded.account END",
    )
    .bind(remote)
    .bind(id)
    .bind(plain(account).as_ref())
    .bind(state.as_str())
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("write an installation"))?;
    Ok(())
}

/// `None` when it was never seen: then it is treated as active.
pub async fn installation(
    store: &Store,
    remote: &str,
    id: i64,
) -> Result<Option<InstallationState>, StoreError> {
    let row = sqlx::query("SELECT account, state FROM installations WHERE remote = $1 AND id = $2")
        .bind(remote)
        .bind(id)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read an installation"))?;
    row.map(|row| RowReader::new(&row, "installations", "account").word("state", InstallationState::parse))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database, new_run};
    use super::*;
    use sqlx::Row;

    fn node(id: &str, role: Role, capabilities: &[&str]) -> Node {
        let capabilities = capabilities.iter().map(|word| (*word).to_owned()).collect();
        Node { id: id.into(), name: format!("{id}.example"), role, capabilities }
    }

    #[tokio::test]
    async fn a_node_is_seen_again_ends_and_is_forgotten() {
        each_database(async |database| {
            let store = &database.store;
            let one = node("n1", Role::Worker, &["amd64", "docker"]);
            seen(store, &one, "n1:a", 4, at(1)).await.unwrap();
            seen(store, &one, "n1:a", 4, at(2)).await.unwrap();
            seen(store, &node("n2", Role::Web, &[]), "n2:a", 0, at(2)).await.unwrap();
            let known = list(store).await.unwrap();
            assert_eq!(known.len(), 2);
            let wanted = KnownNode {
                node: one.clone(),
                boot: "n1:a".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                started_at: at(1),
                seen_at: at(2),
                draining: false,
                slots: 4,
                live: 0,
            };
            assert_eq!(known[0], wanted);

            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(set_draining(&mut tx, "n1.example", true).await.unwrap(), 1);
            assert_eq!(set_draining(&mut tx, "nobody", true).await.unwrap(), 0);
            tx.commit().await.unwrap();
            let changed = Node { capabilities: vec!["gpu".into()], ..one };
            seen(store, &changed, "n1:b", 2, at(9)).await.unwrap();
            assert!(is_draining(store, "n1").await.unwrap(), "a restart does not end a drain");
            assert!(!is_draining(store, "n2").await.unwrap());
            let again = &list(store).await.unwrap()[0];
            assert_eq!((again.started_at, again.slots, &again.node), (at(9), 2, &changed));

            stopped(store, "n1", "n1:a").await.unwrap();
            assert_eq!(list(store).await.unwrap()[0].boot, "n1:b", "an earlier boot ends nothing");
            stopped(store, "n1", "n1:b").await.unwrap();
            assert_eq!(list(store).await.unwrap()[0].boot, "");
            assert_eq!(forget_unseen(store, at(5)).await.unwrap(), 1);
            assert_eq!(forget_unseen(store, at(100)).await.unwrap(), 1);
            let left = sqlx::query("SELECT node FROM node_capabilities").fetch_optional(&store.pool).await;
            assert!(left.unwrap().is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn a_run_has_a_node_when_one_that_lives_can_all_it_needs() {
        each_database(async |database| {
            let store = &database.store;
            let plain = new_run("plain");
            let mut picky = new_run("picky");
            picky.spec.needs = vec!["arm64".into(), "gpu".into()];
            let mut tx = store.write_tx().await.unwrap();
            for run in [&plain, &picky] {
                assert!(crate::store::runs::insert(&mut tx, run).await.unwrap());
            }
            tx.commit().await.unwrap();
            assert_eq!(needs_of(store, &picky.id).await.unwrap(), ["arm64", "gpu"]);
            let without = async || {
                let found = without_node(store, at(100), 10).await.unwrap();
                found.into_iter().map(|(run, needs)| format!("{run} {}", needs.join(","))).collect::<Vec<_>>()
            };
            assert_eq!(without().await.len(), 2, "there is no node at all");
            seen(store, &node("web", Role::Web, &["arm64", "gpu"]), "web:1", 0, at(200)).await.unwrap();
            seen(store, &node("old", Role::Worker, &["arm64", "gpu"]), "old:1", 0, at(99)).await.unwrap();
            assert_eq!(without().await.len(), 2, "one does not work, one is lost");
            seen(store, &node("n1", Role::All, &["arm64"]), "n1:1", 1, at(200)).await.unwrap();
            assert_eq!(without().await, ["picky arm64,gpu"]);
            seen(store, &node("n2", Role::Worker, &["arm64", "gpu", "x"]), "n2:1", 1, at(200)).await.unwrap();
            assert_eq!(without().await, Vec::<String>::new());
            let mut tx = store.write_tx().await.unwrap();
            set_draining(&mut tx, "n2", true).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(without().await, ["picky arm64,gpu"]);
        })
        .await;
    }

    #[tokio::test]
    async fn an_installation_has_its_latest_state() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(installation(store, "github", 7).await.unwrap(), None);
            for state in InstallationState::ALL {
                let mut tx = store.write_tx().await.unwrap();
                set_installation(&mut tx, "github", 7, "octo", state, at(0)).await.unwrap();
                tx.commit().await.unwrap();
                assert_eq!(installation(store, "github", 7).await.unwrap(), Some(state));
            }
            let mut tx = store.write_tx().await.unwrap();
            set_installation(&mut tx, "github", 7, "", InstallationState::Active, at(0)).await.unwrap();
            tx.commit().await.unwrap();
            let row = sqlx::query("SELECT account FROM installations").fetch_one(&store.pool).await.unwrap();
            assert_eq!(row.get::<String, _>("account"), "octo");
            assert_eq!(installation(store, "other", 7).await.unwrap(), None);
        })
        .await;
    }
}
