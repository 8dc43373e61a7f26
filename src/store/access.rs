//! API tokens: random, shown once, stored as SHA-256.

use super::rows::{MAX_ROWS, RowReader, millis, plain, sql};
use super::{Store, StoreError, Tx};
use chrono::{DateTime, Utc};
use sqlx::any::AnyRow;

/// An API token as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub id: String,
    pub name: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

fn read_token(row: &AnyRow) -> Result<Token, StoreError> {
    let row = RowReader::new(row, "tokens", "id");
    Ok(Token {
        id: row.text("id")?,
        name: row.text("name")?,
        created_at: row.time("created_at")?,
        expires_at: row.time_or_null("expires_at")?,
        revoked_at: row.time_or_null("revoked_at")?,
    })
}

/// `hash`: hex SHA-256 of the token.
pub async fn insert(tx: &mut Tx, token: &Token, hash: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tokens (id, hash, name, created_at, expires_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&token.id)
    .bind(hash)
    .bind(plain(&token.name).as_ref())
    .bind(millis(token.created_at))
    .bind(token.expires_at.map(millis))
    .bind(token.revoked_at.map(millis))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("insert a token"))?;
    Ok(())
}

/// The valid token (not expired, not revoked) with this hash.
pub async fn by_hash(store: &Store, hash: &str, now: DateTime<Utc>) -> Result<Option<Token>, StoreError> {
    let row = sqlx::query(
        "SELECT id, name, created_at, expires_at, revoked_at FROM tokens \
         WHERE hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
    )
    .bind(hash)
    .bind(millis(now))
    .fetch_optional(&store.pool)
    .await
    .map_err(sql("read a token"))?;
    row.as_ref().map(read_token).transpose()
}

/// All tokens, oldest first, at most a thousand.
pub async fn list(store: &Store) -> Result<Vec<Token>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, name, created_at, expires_at, revoked_at FROM tokens ORDER BY created_at, id LIMIT $1",
    )
    .bind(MAX_ROWS)
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list tokens"))?;
    rows.iter().map(read_token).collect()
}

/// By id or name; false when there is none. A token that was revoked before keeps that time.
pub async fn revoke(tx: &mut Tx, id_or_name: &str, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let done =
        sqlx::query("UPDATE tokens SET revoked_at = COALESCE(revoked_at, $2) WHERE id = $1 OR name = $1")
            .bind(plain(id_or_name).as_ref())
            .bind(millis(now))
            .execute(&mut *tx.inner)
            .await
            .map_err(sql("revoke a token"))?;
    Ok(done.rows_affected() > 0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    fn token(id: &str, expires_at: Option<DateTime<Utc>>) -> Token {
        Token {
            id: id.to_owned(),
            name: format!("name of {id}"),
            created_at: at(0),
            expires_at,
            revoked_at: None,
        }
    }

    #[tokio::test]
    async fn only_tokens_that_are_neither_expired_nor_revoked_are_valid() {
        each_database(async |database| {
            let store = &database.store;
            let mut tx = store.write_tx().await.unwrap();
            insert(&mut tx, &token("a", None), "hash a").await.unwrap();
            insert(&mut tx, &token("b", Some(at(100))), "hash b").await.unwrap();
            tx.commit().await.unwrap();

            assert_eq!(by_hash(store, "hash a", at(1)).await.unwrap(), Some(token("a", None)));
            assert_eq!(by_hash(store, "hash b", at(99)).await.unwrap(), Some(token("b", Some(at(100)))));
            assert_eq!(by_hash(store, "hash b", at(100)).await.unwrap(), None);
            assert_eq!(by_hash(store, "hash c", at(1)).await.unwrap(), None);

            let mut tx = store.write_tx().await.unwrap();
            assert!(revoke(&mut tx, "name of a", at(5)).await.unwrap());
            assert!(revoke(&mut tx, "b", at(6)).await.unwrap());
            assert!(revoke(&mut tx, "b", at(7)).await.unwrap());
            assert!(!revoke(&mut tx, "nobody", at(6)).await.unwrap());
            tx.commit().await.unwrap();
            assert_eq!(by_hash(store, "hash a", at(6)).await.unwrap(), None);
            let revoked: Vec<_> =
                list(store).await.unwrap().into_iter().map(|token| token.revoked_at).collect();
            assert_eq!(revoked, [Some(at(5)), Some(at(6))]);
        })
        .await;
    }

    #[tokio::test]
    async fn two_tokens_cannot_share_a_hash() {
        each_database(async |database| {
            let mut tx = database.store.write_tx().await.unwrap();
            insert(&mut tx, &token("a", None), "hash").await.unwrap();
            assert!(insert(&mut tx, &token("b", None), "hash").await.is_err());
        })
        .await;
    }
}
