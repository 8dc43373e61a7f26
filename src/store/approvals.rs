//! Approved heads of pull requests from forks, and the pushes that void them.

use super::rows::{RowReader, millis, plain, sql};
use super::{Store, StoreError, Tx};
use crate::domain::event::Actor;
use crate::domain::ids::Sha;
use chrono::{DateTime, Utc};

/// A pull request of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullKey<'a> {
    pub remote: &'a str,
    pub repo_id: i64,
    pub number: i64,
}

/// The code of this head may be run. A later approval of the same head takes the place of the earlier one.
pub async fn approve(
    tx: &mut Tx,
    pull: PullKey<'_>,
    head: &Sha,
    by: &Actor,
    written_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO approvals (remote, repo_id, number, head, approver, login, written_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (remote, repo_id, number, head) DO UPDATE SET \
         approver = excluded.approver, login = excluded.login, written_at = excluded.written_at",
    )
    .bind(pull.remote)
    .bind(pull.repo_id)
    .bind(pull.number)
    .bind(head.as_str())
    .bind(by.id)
    .bind(plain(&by.login).as_ref())
    .bind(millis(written_at))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("store an approval"))?;
    Ok(())
}

/// The approved heads of a pull request.
pub async fn of_pull(store: &Store, pull: PullKey<'_>) -> Result<Vec<Sha>, StoreError> {
    let rows = sqlx::query(
        "SELECT head FROM approvals WHERE remote = $1 AND repo_id = $2 AND number = $3 ORDER BY head LIMIT 1000",
    )
    .bind(pull.remote)
    .bind(pull.repo_id)
    .bind(pull.number)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("read approvals"))?;
    rows.iter()
        .map(|row| RowReader::new(row, "approvals", "head").word("head", |text| Sha::parse(text).ok()))
        .collect()
}

/// Somebody pushed: remembers the newest push, and voids approvals whose comment is not newer than it.
/// Gives the heads that were approved until now.
pub async fn pushed(
    tx: &mut Tx,
    pull: PullKey<'_>,
    head: &Sha,
    at: DateTime<Utc>,
) -> Result<Vec<Sha>, StoreError> {
    sqlx::query(
        "INSERT INTO pull_pushes (remote, repo_id, number, head, pushed_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (remote, repo_id, number) DO UPDATE SET \
         head = CASE WHEN excluded.pushed_at >= pull_pushes.pushed_at THEN excluded.head ELSE pull_pushes.head END, \
         pushed_at = CASE WHEN excluded.pushed_at >= pull_pushes.pushed_at THEN excluded.pushed_at \
         ELSE pull_pushes.pushed_at END",
    )
    .bind(pull.remote)
    .bind(pull.repo_id)
    .bind(pull.number)
    .bind(head.as_str())
    .bind(millis(at))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("remember a push"))?;
    let rows = sqlx::query(
        "DELETE FROM approvals WHERE remote = $1 AND repo_id = $2 AND number = $3 AND written_at <= $4 \
         RETURNING head",
    )
    .bind(pull.remote)
    .bind(pull.repo_id)
    .bind(pull.number)
    .bind(millis(at))
    .fetch_all(&mut *tx.inner)
    .await
    .map_err(sql("void approvals"))?;
    rows.iter()
        .map(|row| RowReader::new(row, "approvals", "head").word("head", |text| Sha::parse(text).ok()))
        .collect()
}

/// The pull request stands at `head` now and nobody told of the push: voids approvals of other heads, and remembers the
/// push as of now when there were any. Gives the heads that were approved until now.
pub async fn moved(
    tx: &mut Tx,
    pull: PullKey<'_>,
    head: &Sha,
    now: DateTime<Utc>,
) -> Result<Vec<Sha>, StoreError> {
    let rows = sqlx::query(
        "DELETE FROM approvals WHERE remote = $1 AND repo_id = $2 AND number = $3 AND head <> $4 RETURNING head",
    )
    .bind(pull.remote)
    .bind(pull.repo_id)
    .bind(pull.number)
    .bind(head.as_str())
    .fetch_all(&mut *tx.inner)
    .await
    .map_err(sql("void approvals of other heads"))?;
    let void = rows
        .iter()
        .map(|row| RowReader::new(row, "approvals", "head").word("head", |text| Sha::parse(text).ok()))
        .collect::<Result<Vec<_>, _>>()?;
    // Where this very head is approved, what it was given for is there.
    if !void.is_empty() && !approved(tx, pull, head).await? {
        pushed(tx, pull, head, now).await?;
    }
    Ok(void)
}

async fn approved(tx: &mut Tx, pull: PullKey<'_>, head: &Sha) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT head FROM approvals WHERE remote = $1 AND repo_id = $2 AND number = $3 AND head = $4",
    )
    .bind(pull.remote)
    .bind(pull.repo_id)
    .bind(pull.number)
    .bind(head.as_str())
    .fetch_optional(&mut *tx.inner)
    .await
    .map_err(sql("look for an approval"))?;
    Ok(row.is_some())
}

/// Whether a push at or after `since` is known.
pub async fn pushed_since(
    store: &Store,
    pull: PullKey<'_>,
    since: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT head FROM pull_pushes WHERE remote = $1 AND repo_id = $2 AND number = $3 AND pushed_at >= $4",
    )
    .bind(pull.remote)
    .bind(pull.repo_id)
    .bind(pull.number)
    .bind(millis(since))
    .fetch_optional(&store.pool)
    .await
    .map_err(sql("look for a push"))?;
    Ok(row.is_some())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;
    use crate::domain::run::tests::{actor, sha};

    const PULL: PullKey<'static> = PullKey { remote: "github", repo_id: 1, number: 12 };

    #[tokio::test]
    async fn a_push_voids_what_was_approved_before_it_and_nothing_else() {
        each_database(async |database| {
            let store = &database.store;
            let other = PullKey { number: 13, ..PULL };
            let mut tx = store.write_tx().await.unwrap();
            for (pull, head, seconds) in [(PULL, 'a', 10), (PULL, 'b', 30), (other, 'a', 10)] {
                approve(&mut tx, pull, &sha(head), &actor(7, "ada"), at(seconds)).await.unwrap();
            }
            tx.commit().await.unwrap();
            assert_eq!(of_pull(store, PULL).await.unwrap(), [sha('a'), sha('b')]);
            // Told late: the push came before either comment.
            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(pushed(&mut tx, PULL, &sha('a'), at(9)).await.unwrap(), []);
            assert_eq!(pushed(&mut tx, PULL, &sha('b'), at(10)).await.unwrap(), [sha('a')]);
            // Out of order: the newest push stays.
            assert_eq!(pushed(&mut tx, PULL, &sha('c'), at(5)).await.unwrap(), []);
            tx.commit().await.unwrap();
            assert_eq!(of_pull(store, PULL).await.unwrap(), [sha('b')]);
            assert_eq!(of_pull(store, other).await.unwrap(), [sha('a')]);
            assert!(pushed_since(store, PULL, at(10)).await.unwrap());
            assert!(!pushed_since(store, PULL, at(11)).await.unwrap());
            assert!(!pushed_since(store, other, at(0)).await.unwrap());
        })
        .await;
    }

    #[tokio::test]
    async fn a_repeated_approval_is_as_new_as_its_comment() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            approve(&mut tx, PULL, &sha('a'), &actor(7, "ada"), at(10)).await.unwrap();
            approve(&mut tx, PULL, &sha('a'), &actor(8, "max"), at(30)).await.unwrap();
            assert_eq!(pushed(&mut tx, PULL, &sha('a'), at(20)).await.unwrap(), []);
            tx.commit().await.unwrap();
            assert_eq!(of_pull(store, PULL).await.unwrap(), [sha('a')]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_head_that_moved_unseen_voids_approvals_of_other_heads() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(moved(&mut tx, PULL, &sha('a'), at(50)).await.unwrap(), []);
            for (head, seconds) in [('a', 10), ('b', 30)] {
                approve(&mut tx, PULL, &sha(head), &actor(7, "ada"), at(seconds)).await.unwrap();
            }
            assert_eq!(moved(&mut tx, PULL, &sha('b'), at(50)).await.unwrap(), [sha('a')]);
            assert_eq!(moved(&mut tx, PULL, &sha('b'), at(51)).await.unwrap(), []);
            tx.commit().await.unwrap();
            assert_eq!(of_pull(store, PULL).await.unwrap(), [sha('b')]);
            assert!(!pushed_since(store, PULL, at(0)).await.unwrap(), "what was approved is there");
            let mut tx = store.write_tx().await.unwrap();
            assert_eq!(moved(&mut tx, PULL, &sha('c'), at(60)).await.unwrap(), [sha('b')]);
            tx.commit().await.unwrap();
            assert!(pushed_since(store, PULL, at(60)).await.unwrap());
        })
        .await;
    }
}
