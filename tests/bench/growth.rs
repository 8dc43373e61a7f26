//! G17: what ten times as much costs. A database with so many runs that have ended, runs that wait, repositories and
//! followers of logs, and one with ten times as many of each, measured in turns.

use super::Bench;
use super::jobs::Queue;
use super::load::quantile;
use super::machine::rss_mib;
use super::report::{Measured, Ratio};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use zeblit::clock::{Clock, SystemClock};
use zeblit::domain::event::Source;
use zeblit::domain::ids::InboxId;
use zeblit::queue::Wakeup;
use zeblit::store::inbox::{self, Inserted, NewDelivery};
use zeblit::store::runs::{self, Filter};

const ENDED: usize = 10_000;
const QUEUED: usize = 1_000;
const REPOS: usize = 100;
const FOLLOWERS: usize = 100;
const TIMES: usize = 10;
/// Of each kind in a round.
const ASKED: usize = 200;
/// Bytes of a delivery, and of one that is eight times as long.
const BODY: usize = 12_600;
const PEER: &str = "a tenth";

/// One size.
struct Side {
    queue: Queue,
    /// Kept for the time of the measurement.
    _followers: Vec<zeblit::queue::Following>,
    name: &'static str,
    deliveries: usize,
    jobs: usize,
    times: Vec<Times>,
}

/// Medians of one round, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Times {
    ack: f64,
    long_ack: f64,
    claim: f64,
    list: f64,
    open: f64,
    of_repo: f64,
    due: f64,
}

impl Side {
    async fn build(bench: &Bench, name: &'static str, times: usize) -> anyhow::Result<Self> {
        let queue = Queue::open(&bench.fresh(name)?, 16, REPOS * times).await?;
        queue.prepare("ended", ENDED * times, true).await?;
        queue.prepare("waits", QUEUED * times, false).await?;
        let followers = (0..FOLLOWERS * times).map(|n| queue.wakeup.follow(&format!("ended-{n}"))).collect();
        Ok(Self { queue, _followers: followers, name, deliveries: 0, jobs: 0, times: Vec::new() })
    }

    async fn ack(&mut self, bytes: usize) -> anyhow::Result<f64> {
        let body: String =
            (0..).map(|n: u64| format!("{{\"id\":{n},\"x\":{}}},", n * n)).take(bytes).collect();
        let raw = bytes::Bytes::copy_from_slice(body.as_bytes().get(..bytes).context("a long body")?);
        let mut took = Vec::with_capacity(ASKED);
        for _ in 0..ASKED {
            self.deliveries += 1;
            let delivery = NewDelivery {
                id: InboxId::new(format!("inbox-{}", self.deliveries)),
                source: Source::Github,
                delivery_id: format!("delivery-{}", self.deliveries),
                event: "issue_comment".to_owned(),
                ignored: None,
                headers: vec![("x-github-event".to_owned(), "issue_comment".to_owned())],
                raw: raw.clone(),
                received_at: SystemClock.now(),
            };
            let begin = Instant::now();
            let inserted = inbox::insert(&self.queue.store, delivery).await?;
            took.push(begin.elapsed());
            ensure!(inserted == Inserted::New, "a delivery was there before");
        }
        Ok(median(took))
    }

    /// A run of a queue in which others wait: claimed, and ended, which is not in the time.
    async fn claim(&mut self) -> anyhow::Result<f64> {
        let mut took = Vec::with_capacity(ASKED);
        for _ in 0..ASKED {
            self.jobs += 1;
            self.queue.add(&format!("{}-{}", self.name, self.jobs)).await?;
            let begin = Instant::now();
            let run = self.queue.claim(1).await?.pop();
            took.push(begin.elapsed());
            super::jobs::finish(self.queue.store.clone(), run.context("nothing to claim")?).await?;
        }
        Ok(median(took))
    }

    async fn list(&self, filter: Filter) -> anyhow::Result<f64> {
        let mut took = Vec::with_capacity(ASKED);
        for _ in 0..ASKED {
            let begin = Instant::now();
            let runs = runs::list(&self.queue.store, &filter).await?;
            took.push(begin.elapsed());
            ensure!(runs.len() == 50, "a page of {} runs", runs.len());
        }
        Ok(median(took))
    }

    async fn round(&mut self) -> anyhow::Result<()> {
        let page = Filter { limit: 50, ..Filter::default() };
        let mut due = Vec::with_capacity(ASKED);
        for _ in 0..ASKED {
            let begin = Instant::now();
            runs::next_due(&self.queue.store).await?.context("nothing is due")?;
            due.push(begin.elapsed());
        }
        let times = Times {
            ack: self.ack(BODY).await?,
            long_ack: self.ack(8 * BODY).await?,
            claim: self.claim().await?,
            list: self.list(page.clone()).await?,
            open: self.list(Filter { open_only: true, ..page.clone() }).await?,
            of_repo: self.list(Filter { repo: Some("bench/repo-7".to_owned()), ..page }).await?,
            due: median(due),
        };
        self.times.push(times);
        Ok(())
    }
}

fn median(mut took: Vec<Duration>) -> f64 {
    took.sort();
    quantile(&took, 0.5).as_secs_f64() * 1e6
}

pub fn measure(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let me = [std::process::id()];
    runtime.block_on(async {
        bench.tell("growth: fills a database");
        let before = rss_mib(&me)?;
        let mut small = Side::build(bench, "growth-small", 1).await?;
        small.round().await?;
        let of_small = rss_mib(&me)? - before;
        bench.tell("growth: fills a database with ten times as much");
        let before = rss_mib(&me)?;
        let mut large = Side::build(bench, "growth-large", TIMES).await?;
        large.round().await?;
        let of_large = rss_mib(&me)? - before;
        // The first round warmed both up.
        small.times.clear();
        large.times.clear();
        for round in 1..=bench.rounds {
            bench.tell(&format!("growth, round {round}"));
            small.round().await?;
            large.round().await?;
        }
        let row = |what: &str, value: fn(&Times) -> f64, wanted| Measured {
            goal: "G17",
            what: what.to_owned(),
            ours: large.times.iter().map(value).collect(),
            peer: small.times.iter().map(value).collect(),
            peer_name: PEER,
            unit: "us",
            wanted,
        };
        let flat = Ratio::AtMost(1.3);
        let mut measured = vec![
            row("acknowledging a delivery, 10x of all", |t| t.ack, flat),
            row("claiming a run, 10x of all", |t| t.claim, flat),
            row("when the next run is due, 10x of all", |t| t.due, flat),
            row("listing 50 runs, 10x of all", |t| t.list, flat),
            row("listing 50 open runs, 10x of all", |t| t.open, flat),
            row("listing 50 runs of a repository, 10x of all", |t| t.of_repo, flat),
        ];
        measured.push(Measured {
            goal: "G17",
            what: "acknowledging a delivery, 8x its bytes".into(),
            ours: large.times.iter().map(|times| times.long_ack).collect(),
            peer: large.times.iter().map(|times| times.ack).collect(),
            peer_name: "12.6 KB",
            unit: "us",
            wanted: Ratio::Told,
        });
        measured.push(Measured {
            goal: "G17",
            what: "memory that the store takes, 10x of all".into(),
            ours: vec![of_large],
            peer: vec![of_small],
            peer_name: PEER,
            unit: "MiB",
            wanted: Ratio::Told,
        });
        small.queue.store.close().await;
        large.queue.store.close().await;
        Ok(measured)
    })
}
