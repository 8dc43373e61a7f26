//! Money: requests that race for a budget through the broker's socket, and a run that a budget stops.

use crate::world::model::{KEY, ModelServer, Turn};
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zeblit::broker::provider::Provider;
use zeblit::broker::{Allowance, Broker, Settings};
use zeblit::clock::{RandomIds, SystemClock};
use zeblit::config::Config;
use zeblit::domain::budget::{Budget, BudgetKind, Usage, dollars};
use zeblit::domain::ids::RunId;
use zeblit::domain::model_api::ModelApi;
use zeblit::domain::run::{FailureClass, RunState};
use zeblit::store::Store;
use zeblit::store::ledger;

/// Requests sent at one time.
const REQUESTS: usize = 64;
// With a tool: the scripted endpoint plays its turns to agents only.
const BODY: &str = r#"{"model":"claude-sonnet-4-5","max_tokens":1000,"tools":[{"name":"Bash"}],"messages":[{"role":"user","content":"hi"}]}"#;

/// What one request reserves: input at the price of a cache write (3.75), 1000 tokens of output at 15.
fn reservation() -> i64 {
    let input = i64::try_from(BODY.len()).unwrap() / 3 + 1;
    (input * 375 + 99) / 100 + 15_000
}

/// What each answer says it used: all of the output.
const USED: Usage = Usage { input: 20, output: 1000, cache_read: 0, cache_write: 0 };

/// Sends one request through a socket; the status of its answer.
async fn ask(socket: &Path) -> u16 {
    let mut stream = UnixStream::connect(socket.join("broker.sock")).await.unwrap();
    let request = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap()
}

struct Outcome {
    answered: usize,
    refused: usize,
    /// Beyond the budget, in reservations, rounded up.
    overshoot: i64,
}

/// All requests at once, spread over `runs`, against a budget for one of them.
async fn race(store: &Store, name: &str, runs: usize) -> Outcome {
    let model = ModelServer::start((0..REQUESTS).map(|_| Turn::says("x").using(USED))).await;
    let key = Some(KEY.to_owned().into());
    let settings = Settings {
        providers: vec![Provider::general(ModelApi::Anthropic, &model.url, key)],
        ..Settings::default()
    };
    let broker = Broker::new(settings, store.clone(), Arc::new(SystemClock), Arc::new(RandomIds));
    let budget = reservation();
    let shared = Budget {
        kind: BudgetKind::UserDay,
        scope: format!("user:test:{name}"),
        whose: "ada".into(),
        cap_micros: Some(budget),
    };
    let folder = tempfile::tempdir().unwrap();
    let mut sockets = Vec::new();
    let mut listeners = Vec::new();
    let ids: Vec<RunId> = (0..runs).map(|n| RunId::new(format!("run_{name}_{n}"))).collect();
    for run in &ids {
        let socket = folder.path().join(run.as_str());
        std::fs::create_dir(&socket).unwrap();
        let (budget_micros, wider) =
            if runs == 1 { (budget, Vec::new()) } else { (budget * 1000, vec![shared.clone()]) };
        let allowance = Allowance { run: run.clone(), attempt: 1, budget_micros, wider };
        listeners.push(broker.open(&socket, allowance).await.unwrap());
        sockets.push(socket);
    }
    let asks = (0..REQUESTS).map(|n| {
        let socket: PathBuf = sockets[n % runs].clone();
        tokio::spawn(async move { ask(&socket).await })
    });
    let statuses: Vec<u16> =
        futures_util::future::join_all(asks).await.into_iter().map(|status| status.unwrap()).collect();
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!(count(200) + count(402), REQUESTS, "{statuses:?}");
    let mut spent = 0;
    let mut usage = 0;
    for run in &ids {
        let totals = ledger::totals(store, run).await.unwrap();
        spent += totals.micros;
        usage += totals.usage.total();
    }
    let (charged, answers) = model.charged();
    assert_eq!(usage, charged.total(), "the ledger has what the model server charged");
    assert_eq!(usize::try_from(answers).unwrap(), count(200));
    if runs > 1 {
        let standing = ledger::standings(store, &[shared], chrono::Utc::now()).await.unwrap();
        assert_eq!(standing[0].micros, spent, "the day's sum is the sum of the ledger");
    }
    let over = (spent - budget).max(0);
    Outcome {
        answered: count(200),
        refused: count(402),
        overshoot: over / budget + i64::from(over % budget != 0),
    }
}

fn figure(name: &str, text: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/prove/budget");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_race_for_a_budget_overshoot_it_by_nothing() {
    let mut outcomes = Vec::new();
    World::run(async |w| {
        outcomes.push(race(&w.app.store, "one", 1).await);
        outcomes.push(race(&w.app.store, "many", 8).await);
    })
    .await;
    World::run_on_postgres(async |w| {
        outcomes.push(race(&w.app.store, "one", 1).await);
        outcomes.push(race(&w.app.store, "many", 8).await);
    })
    .await;
    for outcome in &outcomes {
        assert_eq!((outcome.answered, outcome.refused, outcome.overshoot), (1, REQUESTS - 1, 0));
    }
    let worst = outcomes.iter().map(|outcome| outcome.overshoot).max().unwrap();
    let answered: usize = outcomes.iter().map(|outcome| outcome.answered).sum();
    let refused: usize = outcomes.iter().map(|outcome| outcome.refused).sum();
    figure(
        "requests",
        &format!(
            "{REQUESTS} requests at once against a budget for one, {} times on SQLite and Postgres, of a run and of a person: \
             {answered} answered, {refused} refused, overshoot {worst} reservations",
            outcomes.len()
        ),
    );
}

fn with_model(config: &mut Config) {
    config.models.anthropic_api_key = Some(KEY.into());
    config.agents.fix = "fixer".into();
}

/// The socket directory of the only run that is alive.
fn socket(w: &World) -> PathBuf {
    let folders = std::fs::read_dir(&w.app.socket_root).unwrap().map(|entry| entry.unwrap().path());
    folders.into_iter().find(|folder| folder.join("broker.sock").exists()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_a_days_budget_stops_keeps_its_partial_work_and_says_so() {
    let change = |config: &mut Config| {
        with_model(config);
        config.budget.user_day = Some(0.01);
        config.budget.owner_month = Some(200.0);
    };
    World::run_with(change, async |w| {
        let (number, _) = w.ask("/zeblit fix", Script::hangs().and_edit("half.txt", "half\n")).await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Running);
        let socket = socket(w);
        for _ in 0..3 {
            assert_eq!(ask(&socket).await, 402);
        }
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Budget)));
        let branch = run.outcome.branch.clone().unwrap();
        assert!(w.hub.file_at(REPO, branch.as_str(), "half.txt").is_some());
        let sticky = w.sticky(number);
        for words in [
            "Failed: budget",
            "The budget of ada for today did not reach for the agent's next request to the model: $0.00 of $0.01",
            "It starts again at 20",
            "`/zeblit continue` goes on when that budget starts again",
        ] {
            assert!(sticky.contains(words), "{words}\n{sticky}");
        }
        w.say(number, "ada", "/zeblit budget").await;
        w.settle().await;
        let table = w.own(number).pop().unwrap();
        for row in ["| run `", "| ada, today | $0.00 | $0.01 | 20", "| none |", ", this month | $0.00 | $200.00 | 20"] {
            assert!(table.contains(row), "{row}\n{table}");
        }
        figure(
            "partial",
            &format!(
                "a run stopped by {} of a day left {} commit on its branch and said so",
                dollars(10_000),
                run.outcome.commits
            ),
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_nearly_used_is_told_once() {
    let model = ModelServer::start([Turn::says("x").using(USED)]).await;
    let url = model.url.clone();
    let change = move |config: &mut Config| {
        with_model(config);
        config.models.anthropic_url = url.clone();
        // 80 % of it are used by one answer of 15 060 micros.
        config.budget.repo_day = Some(0.0188);
    };
    World::run_with(change, async |w| {
        let (number, _) = w.ask("/zeblit fix", Script::hangs().and_edit("half.txt", "half\n")).await;
        w.settle().await;
        assert_eq!(ask(&socket(w)).await, 200);
        w.pass(chrono::Duration::seconds(31)).await;
        w.pass(chrono::Duration::seconds(31)).await;
        let warning = "⚠️ 80 % of the budget of";
        assert_eq!(w.sticky(number).matches(warning).count(), 1, "{}", w.sticky(number));
        w.sandbox.finish_hanging();
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        assert_eq!(w.sticky(number).matches(warning).count(), 1, "{}", w.sticky(number));
        assert_eq!(w.nth_run(1).await.progress.cost_micros, 15_060);
    })
    .await;
}
