//! What passes by itself is waited for, what does not is told at once, and what kills its workers is given up.

use crate::resume::{self, ID, edits, tells, with_session};
use crate::world::hub::Fault;
use crate::world::model::{ModelServer, Turn};
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use serde_json::json;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeblit::clock::Clock;
use zeblit::config::Config;
use zeblit::domain::run::{FailureClass, MAX_DEATHS, RETRY_MINUTES, Run, RunState};
use zeblit::engine::{execute, operate};
use zeblit::store;

/// What the agent inside would send; gives the status that it sees.
async fn ask_model(sockets: &Path) -> u16 {
    let mut stream = tokio::net::UnixStream::connect(sockets.join("broker.sock")).await.unwrap();
    let body = json!({
        "model": "claude-sonnet-4-5", "max_tokens": 100, "tools": [{"name": "Bash"}],
        "messages": [{"role": "user", "content": "hello"}],
    })
    .to_string();
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: model\r\nanthropic-version: 2023-06-01\r\n\
         content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

async fn with_model(turns: Vec<Turn>, scenario: impl AsyncFnOnce(&mut World)) {
    let model = ModelServer::start(turns).await;
    let configure = |config: &mut Config| {
        model.configure(config);
        config.agents.fix = "fixer".into();
    };
    World::run_with(configure, async |w| scenario(w).await).await;
}

/// Three refusals: the broker asks twice more by itself.
fn refused(status: u16, kind: &'static str, message: &str) -> Vec<Turn> {
    (0..3).map(|_| Turn::fails(status, kind, message)).collect()
}

/// The running agent meets the endpoint's refusal and gives up.
async fn gives_up(w: &mut World, status: u16) {
    let sockets = w.sandbox.started().last().unwrap().sockets.clone().unwrap();
    assert_eq!(ask_model(&sockets).await, status);
    let said = json!({"type": "result", "subtype": "error", "is_error": true, "result": "API Error"});
    w.sandbox.prints(&said.to_string());
    w.sandbox.finish_hanging();
    w.settle().await;
}

async fn first(w: &World) -> Run {
    w.nth_run(1).await
}

#[tokio::test]
async fn a_busy_model_is_waited_for_and_the_agent_goes_on_where_it_was() {
    with_model(refused(529, "overloaded_error", "Overloaded"), async |w| {
        let (number, _) =
            w.ask("/zeblit fix", with_session(Script::hangs()).and_edit("half.txt", "half\n")).await;
        w.settle().await;
        gives_up(w, 529).await;
        let run = first(w).await;
        assert_eq!(run.state, RunState::Queued, "{:?}", run.outcome);
        let again = run.progress.again.as_ref().unwrap();
        assert_eq!((again.class, again.times), (FailureClass::Quota, 1));
        let wait = run.not_before.unwrap() - w.clock.now();
        assert!(wait > Duration::seconds(50) && wait <= Duration::minutes(1), "{wait}");
        let sticky = w.sticky(number);
        assert!(sticky.contains("⏳ Queued") && sticky.contains("quota · try 1 of 5 at "), "{sticky}");
        assert_eq!(w.sandbox.alive(), 0, "its container is gone");

        let found = std::sync::Arc::new(std::sync::Mutex::new(None));
        let seen = std::sync::Arc::clone(&found);
        w.sandbox.next(tells(edits("x = 1\n"), ID).and_do(move |workspace| {
            *seen.lock().unwrap() = std::fs::read_to_string(workspace.join("half.txt")).ok();
        }));
        w.settle().await;
        assert_eq!(w.sandbox.agents_started(), 1, "not before its time");
        w.clock.advance(Duration::minutes(1));
        w.settle().await;
        let run = first(w).await;
        assert_eq!(run.state, RunState::Succeeded, "{:?}", run.outcome);
        assert_eq!(found.lock().unwrap().as_deref(), Some("half\n"), "the workspace is as it was");
        let job = w.agent_job(1);
        assert_eq!(resume::resumes(&job), Some(ID));
        let prompt = resume::prompt(&job);
        assert!(
            prompt.contains("Go on from where you stopped.") && prompt.contains("as you\nleft them"),
            "{prompt}"
        );
        assert!(w.sticky(number).contains("✅ Draft pull request"), "{}", w.sticky(number));
        assert!(
            run.outcome.notes.iter().any(|note| note.contains("was interrupted")),
            "{:?}",
            run.outcome.notes
        );
    })
    .await;
}

#[tokio::test]
async fn retries_come_to_an_end_and_say_so() {
    let turns =
        (0..=RETRY_MINUTES.len()).flat_map(|_| refused(529, "overloaded_error", "Overloaded")).collect();
    with_model(turns, async |w| {
        w.sandbox.usually(Script::hangs().and_edit("half.txt", "half\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        for minutes in RETRY_MINUTES {
            gives_up(w, 529).await;
            let run = first(w).await;
            assert_eq!(run.state, RunState::Queued, "{:?}", run.outcome);
            let wait = run.not_before.unwrap() - w.clock.now();
            assert!(
                wait <= Duration::minutes(minutes)
                    && wait > Duration::minutes(minutes) - Duration::seconds(30)
            );
            w.clock.advance(Duration::minutes(minutes));
            w.settle().await;
            assert_eq!(first(w).await.state, RunState::Running);
        }
        gives_up(w, 529).await;
        let run = first(w).await;
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Quota)));
        assert!(run.outcome.reason.contains("I tried again 5 times by myself"), "{}", run.outcome.reason);
        assert!(run.outcome.head.is_some(), "the work so far is kept");
    })
    .await;
}

#[tokio::test]
async fn a_refused_key_and_an_empty_account_stop_at_once() {
    // What the endpoint says, and what the agent hears of it.
    for (status, heard, kind, message, class) in [
        (401, 403, "authentication_error", "invalid x-api-key", FailureClass::Auth),
        (400, 400, "invalid_request_error", "Your credit balance is too low", FailureClass::Quota),
    ] {
        with_model(refused(status, kind, message), async |w| {
            w.ask("/zeblit fix", Script::hangs().and_edit("half.txt", "half\n")).await;
            w.settle().await;
            gives_up(w, heard).await;
            let run = first(w).await;
            assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(class)), "{:?}", run.outcome);
            assert_eq!(run.progress.again, None);
        })
        .await;
    }
}

#[tokio::test]
async fn a_forge_that_wants_to_be_left_alone_is_left_alone_until_its_reset() {
    World::run(async |w| {
        w.sandbox.next(Script::edit("a.txt", "a\n"));
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        zeblit::engine::ingest::tick(&w.app).await.unwrap();
        w.hub.fail_next("POST /app/installations/*/access_tokens", Fault::PrimaryLimit(3000));
        w.app.forge.forget(w.hub.installation(REPO));
        w.settle().await;
        let run = first(w).await;
        assert_eq!(run.state, RunState::Queued, "{:?}", run.outcome);
        assert_eq!(run.progress.again.as_ref().unwrap().reason, "The forge's rate limit was reached.");
        w.clock.advance(Duration::seconds(3000));
        w.settle().await;
        assert_eq!(first(w).await.state, RunState::Succeeded);
        assert_eq!(w.sandbox.agents_started(), 1);
    })
    .await;
}

/// Claims the run again and again as workers do that die on it before they come a step further.
async fn workers_die(w: &World, times: i64) {
    for _ in 0..times {
        w.clock.advance(Duration::from_std(execute::LEASE).unwrap() + Duration::seconds(1));
        assert!(execute::claim(&w.app).await.unwrap().is_some());
    }
    w.clock.advance(Duration::from_std(execute::LEASE).unwrap() + Duration::seconds(1));
}

#[tokio::test]
async fn a_run_that_kills_its_workers_is_a_dead_letter_and_can_be_replayed() {
    World::run(async |w| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        zeblit::engine::ingest::tick(&w.app).await.unwrap();
        workers_die(w, MAX_DEATHS).await;
        w.settle().await;
        let run = first(w).await;
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Poison)));
        assert_eq!(w.sandbox.agents_started(), 0);
        let said = w.own(number).join("\n");
        assert!(said.contains("died 3 times in a row") && said.contains("zeblit replay"), "{said}");
        let audit = store::audit::list(&w.app.store, 50).await.unwrap();
        assert!(audit.iter().any(|entry| entry.action == "dead_letter" && entry.subject == run.id.as_str()));

        w.sandbox.next(Script::edit("a.txt", "a\n"));
        let new = operate::replay(&w.app, run.id.as_str(), "ops").await.unwrap();
        w.settle().await;
        assert_eq!((new.as_str(), w.state_of(2).await), ("run_0002", RunState::Succeeded));
        assert!(operate::replay(&w.app, "none", "ops").await.is_err());
    })
    .await;
}

#[tokio::test]
async fn what_the_agent_of_a_dead_letter_left_is_kept() {
    World::run(async |w| {
        w.ask("/zeblit fix", Script::hangs().and_edit("half.txt", "half\n")).await;
        w.settle().await;
        workers_die(w, MAX_DEATHS - 1).await;
        w.restart().await;
        w.settle().await;
        let run = first(w).await;
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Poison)));
        let branch = run.outcome.branch.unwrap();
        assert_eq!(w.hub.file_at(REPO, branch.as_str(), "half.txt").as_deref(), Some("half\n"));
    })
    .await;
}

#[tokio::test]
async fn a_run_that_goes_on_after_each_death_is_no_dead_letter() {
    World::run_with(
        |config| config.sandbox.minutes = 60,
        async |w| {
            w.ask("/zeblit fix", Script::hangs().and_edit("a.txt", "a\n")).await;
            w.settle().await;
            // More deaths in all than are too many in a row, within the five minutes that this agent has.
            for _ in 0..2 {
                // With the one that the restart takes over from: one death less than is too many.
                workers_die(w, MAX_DEATHS - 2).await;
                w.restart().await;
                w.settle().await;
                let run = first(w).await;
                assert_eq!((run.state, run.deaths), (RunState::Running, 0), "{:?}", run.outcome);
            }
            w.sandbox.finish_hanging();
            w.settle().await;
            assert_eq!(first(w).await.state, RunState::Succeeded);
            assert_eq!(w.sandbox.agents_started(), 1);
        },
    )
    .await;
}
