//! Deliveries that tell of a push, whatever became of them.

use super::rows::{RowReader, millis, row_limit, sql};
use super::{Store, StoreError};
use crate::domain::ids::InboxId;
use chrono::{DateTime, Utc};

/// A delivery of a push; what it says is in the inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    pub id: InboxId,
    pub received_at: DateTime<Utc>,
}

/// The pushes that were received after a time, the oldest first.
pub async fn since(store: &Store, after: DateTime<Utc>, limit: i64) -> Result<Vec<Push>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, received_at FROM inbox \
         WHERE received_at > $1 AND source = 'github' AND event = 'push' ORDER BY received_at, id LIMIT $2",
    )
    .bind(millis(after))
    .bind(row_limit(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(sql("list pushes"))?;
    rows.iter()
        .map(|row| {
            let row = RowReader::new(row, "inbox", "id");
            Ok(Push { id: InboxId::new(row.text("id")?), received_at: row.time("received_at")? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::inbox::{self, NewDelivery};
    use super::super::testing::{at, each_database};
    use super::*;
    use crate::domain::event::Source;

    #[tokio::test]
    async fn pushes_alone_are_listed_from_a_time_on() {
        each_database(async |database| {
            let store = &database.store;
            for (id, source, event, seconds) in [
                ("a", Source::Github, "push", 1),
                ("b", Source::Github, "push", 3),
                ("c", Source::Github, "issues", 4),
                ("d", Source::Sentry, "push", 5),
                ("e", Source::Github, "push", 6),
            ] {
                let delivery = NewDelivery {
                    id: InboxId::new(id),
                    source,
                    delivery_id: id.to_owned(),
                    event: event.to_owned(),
                    ignored: None,
                    headers: Vec::new(),
                    raw: b"{}".to_vec().into(),
                    received_at: at(seconds),
                };
                inbox::insert(store, delivery).await.unwrap();
            }
            let listed = async |after, limit| {
                let found = since(store, at(after), limit).await.unwrap();
                found.into_iter().map(|push| (push.id.to_string(), push.received_at)).collect::<Vec<_>>()
            };
            assert_eq!(listed(1, 10).await, [("b".to_owned(), at(3)), ("e".to_owned(), at(6))]);
            assert_eq!(listed(0, 1).await, [("a".to_owned(), at(1))]);
            assert_eq!(listed(6, 10).await, []);
        })
        .await;
    }
}
