//! What an agent tells through its tools while it works: a question, and its checklist.

use super::rows::{RowReader, json, millis, sql};
use super::{Store, StoreError};
use crate::domain::ids::RunId;
use crate::domain::run::{ChecklistItem, Question};
use chrono::{DateTime, Utc};

/// The first question of a run is kept; `false` when it had asked one before.
pub async fn ask(
    store: &Store,
    run: &RunId,
    attempt: i64,
    question: &Question,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let mut tx = store.write_tx().await?;
    let done = sqlx::query(
        "INSERT INTO questions (run, attempt, question, asked_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (run) DO NOTHING",
    )
    .bind(run.as_str())
    .bind(attempt)
    .bind(json("keep a question", question)?)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("keep a question"))?;
    tx.commit().await?;
    Ok(done.rows_affected() > 0)
}

/// The question of a run, when its agent asked one.
pub async fn of_run(store: &Store, run: &RunId) -> Result<Option<Question>, StoreError> {
    let row = sqlx::query("SELECT run, question FROM questions WHERE run = $1")
        .bind(run.as_str())
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read a question"))?;
    row.map(|row| RowReader::new(&row, "questions", "run").json("question")).transpose()
}

/// Replaces the checklist.
pub async fn set_checklist(
    store: &Store,
    run: &RunId,
    items: &[ChecklistItem],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let mut tx = store.write_tx().await?;
    sqlx::query(
        "INSERT INTO checklists (run, items, updated_at) VALUES ($1, $2, $3) \
         ON CONFLICT (run) DO UPDATE SET items = excluded.items, updated_at = excluded.updated_at",
    )
    .bind(run.as_str())
    .bind(json("keep a checklist", &items)?)
    .bind(millis(now))
    .execute(&mut *tx.inner)
    .await
    .map_err(sql("keep a checklist"))?;
    tx.commit().await
}

/// Empty when the agent gave none.
pub async fn checklist(store: &Store, run: &RunId) -> Result<Vec<ChecklistItem>, StoreError> {
    let row = sqlx::query("SELECT run, items FROM checklists WHERE run = $1")
        .bind(run.as_str())
        .fetch_optional(&store.pool)
        .await
        .map_err(sql("read a checklist"))?;
    row.map_or(Ok(Vec::new()), |row| RowReader::new(&row, "checklists", "run").json("items"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, each_database};
    use super::*;

    #[tokio::test]
    async fn the_first_question_stays() {
        each_database(async |database| {
            let store = &database.store;
            let run = RunId::new("run");
            assert_eq!(of_run(store, &run).await.unwrap(), None);
            let first = Question { text: "Which?\u{e4}".into(), choices: vec!["a".into(), "b".into()] };
            assert!(ask(store, &run, 1, &first, at(0)).await.unwrap());
            let second = Question { text: "And now?".into(), choices: Vec::new() };
            assert!(!ask(store, &run, 2, &second, at(1)).await.unwrap());
            assert_eq!(of_run(store, &run).await.unwrap(), Some(first));
            assert_eq!(of_run(store, &RunId::new("other")).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test]
    async fn a_checklist_is_replaced() {
        each_database(async |database| {
            let store = &database.store;
            let run = RunId::new("run");
            assert_eq!(checklist(store, &run).await.unwrap(), []);
            for done in [false, true] {
                let items = vec![ChecklistItem { text: "Find it".into(), done }];
                set_checklist(store, &run, &items, at(0)).await.unwrap();
                assert_eq!(checklist(store, &run).await.unwrap(), items);
            }
        })
        .await;
    }
}
