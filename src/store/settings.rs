//! Switches of the operator.

use super::rows::{RowReader, millis, plain, sql};
use super::{Store, StoreError, Tx};
use chrono::{DateTime, Utc};

/// Key of the pause-all switch; its value says who paused and why.
pub const PAUSED: &str = "paused";

/// `None` when the switch is not set.
pub async fn get(store: &Store, key: &str) -> Result<Option<String>, StoreError> {
    let row = sqlx::query("SELECT key, value FROM settings WHERE key = $1")
        .bind(key)
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read a setting"))?;
    row.map(|row| RowReader::new(&row, "settings", "key").text("value")).transpose()
}

/// `None` removes it.
pub async fn set(tx: &mut Tx, key: &str, value: Option<&str>, now: DateTime<Utc>) -> Result<(), StoreError> {
    let query = match value {
        Some(value) => sqlx::query(
            "INSERT INTO settings (key, value, updated_at) VALUES ($1, $2, $3) \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        )
        .bind(key)
        .bind(plain(value).into_owned())
        .bind(millis(now)),
        None => sqlx::query("DELETE FROM settings WHERE key = $1").bind(key),
    };
    query.execute(&mut *tx.inner).await.map_err(sql("write a setting"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    #[tokio::test]
    async fn a_setting_is_set_changed_and_removed() {
        each_database(async |database| {
            let store = &database.store;
            assert_eq!(get(store, PAUSED).await.unwrap(), None);
            for value in [Some("first"), Some("second"), None, None] {
                let mut tx = store.write_tx().await.unwrap();
                set(&mut tx, PAUSED, value, at(0)).await.unwrap();
                tx.commit().await.unwrap();
                assert_eq!(get(store, PAUSED).await.unwrap().as_deref(), value);
            }
        })
        .await;
    }
}
