//! G1 to G5: deliveries that are on the disk before the answer, beside what one builds of Probot, BullMQ and Redis.
//!
//! - A server and its database share one core; whoever sends has the other. Both log as they do by default.
//! - Our side also handles each delivery while the load goes on; the peer only queues it. Most comments are like the
//!   recorded one: the bot's name is nowhere in them. One that speaks of the bot must be read, and is measured apart.
//! - After each load every delivery that was answered with 2xx is counted in the database or in Redis.

use super::load::{self, Asked, Seen};
use super::machine::{self, SERVER_CORE};
use super::peers::{self, Keeps};
use super::report::{Measured, Ratio};
use super::server::{self, Options, Process};
use super::{Bench, world};
use anyhow::{Context, ensure};
use std::process::Command;
use std::time::{Duration, Instant};

/// Connections of the closed loop.
const CONNECTIONS: usize = 32;
/// Unmeasured load at the beginning: compilers and caches of all sides get warm.
const WARM: Duration = Duration::from_secs(2);
const CLOSED: Duration = Duration::from_secs(3);
const OPEN: Duration = Duration::from_secs(5);
const OPEN_RATE: f64 = 300.0;
/// How many times as long the long payload is.
const LONGER: usize = 8;
/// How long what was stored may take to be handled after a load.
const HANDLED: Duration = Duration::from_secs(120);

const DURABLE: &str = "Probot + BullMQ, Redis AOF always";
const PLAIN: &str = "Probot, stores nothing";

/// What one side did in one round.
#[derive(Debug, Default, Clone, Copy)]
struct Round {
    per_second: f64,
    /// Microseconds, closed loop.
    p99: f64,
    /// Microseconds of processor time for each delivery while the load went on.
    cpu: f64,
    /// The same until each was handled, too.
    cpu_handled: f64,
    open_p50: f64,
    open_p99: f64,
    read_per_second: f64,
    read_cpu: f64,
    long_per_second: f64,
    long_cpu: f64,
    rss: f64,
}

type Count = Box<dyn Fn() -> anyhow::Result<usize>>;

/// A side: its server, what counts with it, and how many deliveries it holds.
struct Side {
    server: Process,
    database: Option<Process>,
    /// `None`: it keeps nothing.
    kept: Option<Count>,
    /// Deliveries that are not handled yet; `None`: it handles nothing.
    waiting: Option<Count>,
    sent: usize,
}

impl Side {
    fn pids(&self) -> Vec<u32> {
        let mut pids = self.server.pids();
        pids.extend(self.database.iter().flat_map(Process::pids));
        pids
    }

    /// Counts what was accepted; a side that refuses or loses one is not measured.
    fn check(&mut self, seen: &Seen) -> anyhow::Result<()> {
        ensure!(seen.refused == 0, "{} deliveries were refused", seen.refused);
        self.sent += seen.times.len();
        Ok(())
    }

    fn closed(&mut self, asked: &Asked, lasting: Duration) -> anyhow::Result<(Seen, f64, f64)> {
        let before = machine::cpu_seconds(&self.pids())?;
        let seen = load::closed(self.server.address, asked, CONNECTIONS, lasting)?;
        let during = machine::cpu_seconds(&self.pids())? - before;
        self.check(&seen)?;
        let begin = Instant::now();
        while self.waiting.as_ref().is_some_and(|waiting| waiting().map_or(true, |count| count > 0)) {
            ensure!(begin.elapsed() < HANDLED, "deliveries are not handled after {} s", HANDLED.as_secs());
            std::thread::sleep(Duration::from_millis(100));
        }
        let handled = machine::cpu_seconds(&self.pids())? - before;
        let each = 1e6 / seen.times.len() as f64;
        Ok((seen, during * each, handled * each))
    }

    fn measure(&mut self, what: &What) -> anyhow::Result<Round> {
        let short = Asked::comment(1)?;
        self.closed(&short, WARM)?;
        let mut round = Round::default();
        let (seen, cpu, cpu_handled) = self.closed(&short, CLOSED)?;
        (round.per_second, round.p99) = (seen.per_second(), seen.quantile(0.99));
        (round.cpu, round.cpu_handled) = (cpu, cpu_handled);
        if what.read {
            let (seen, _, cpu) = self.closed(&Asked::about_the_bot()?, CLOSED)?;
            (round.read_per_second, round.read_cpu) = (seen.per_second(), cpu);
        }
        if what.open {
            let seen = load::open(self.server.address, &short, OPEN_RATE, OPEN)?;
            self.check(&seen)?;
            (round.open_p50, round.open_p99) = (seen.quantile(0.5), seen.quantile(0.99));
        }
        if what.long {
            let (seen, cpu, _) = self.closed(&Asked::comment(LONGER)?, CLOSED)?;
            (round.long_per_second, round.long_cpu) = (seen.per_second(), cpu);
        }
        round.rss = machine::rss_mib(&self.server.pids())?;
        if let Some(kept) = &self.kept {
            let kept = kept()?;
            ensure!(kept == self.sent, "{} deliveries were accepted, {kept} are kept", self.sent);
        }
        Ok(round)
    }

    fn stop(self) -> anyhow::Result<()> {
        self.server.stop()?;
        self.database.map_or(Ok(()), Process::stop)
    }
}

/// Which loads a side gets besides the short closed loop.
struct What {
    open: bool,
    long: bool,
    read: bool,
}

fn ours(bench: &Bench, postgres: bool) -> anyhow::Result<Side> {
    let name = if postgres { "ingest-zeblit-postgres" } else { "ingest-zeblit" };
    let folder = bench.fresh(name)?;
    let database =
        postgres.then(|| peers::postgres(&bench.fresh("postgres")?, Some(SERVER_CORE))).transpose()?;
    let url = database.as_ref().map(|server| format!("postgres://postgres@{}/postgres", server.address));
    let options = Options {
        folder,
        database: url.as_deref(),
        core: Some(SERVER_CORE),
        sections: "[sandbox]\nkind = \"process\"\n",
    };
    let server = server::zeblit(&options)?;
    let address = server.address;
    Ok(Side {
        server,
        database,
        kept: Some(Box::new(move || {
            world::sample(
                address,
                "zeblit_deliveries{",
                &["pending", "done", "ignored", "not_yet_handled", "failed"],
            )
        })),
        waiting: Some(Box::new(move || world::sample(address, "zeblit_deliveries{", &["pending"]))),
        sent: 0,
    })
}

fn durable(bench: &Bench) -> anyhow::Result<Side> {
    let database = peers::redis(&bench.fresh("redis")?, Keeps::Always, Some(SERVER_CORE))?;
    let redis = database.address;
    let server = peers::probot(bench, &bench.fresh("ingest-probot")?, Some(redis))?;
    Ok(Side {
        server,
        database: Some(database),
        kept: Some(Box::new(move || {
            let output = Command::new("redis-cli")
                .args(["-p", &redis.port().to_string(), "llen", "bull:deliveries:wait"])
                .output()?;
            String::from_utf8_lossy(&output.stdout).trim().parse().context("redis-cli llen")
        })),
        waiting: None,
        sent: 0,
    })
}

/// It keeps nothing, so there is nothing to count.
fn plain(bench: &Bench) -> anyhow::Result<Side> {
    let server = peers::probot(bench, &bench.fresh("ingest-plain")?, None)?;
    Ok(Side { server, database: None, kept: None, waiting: None, sent: 0 })
}

pub fn measure(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let (mut sqlite, mut postgres, mut queued, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let on_sqlite = ["G1", "G2", "G3", "G5"].iter().any(|goal| bench.wants(goal));
    let with_queue = ["G1", "G2", "G3", "G4"].iter().any(|goal| bench.wants(goal));
    for round in 1..=bench.rounds {
        let tell = |side: &str| bench.tell(&format!("ingest, round {round}: {side}"));
        if on_sqlite {
            tell("zeblit on SQLite");
            let mut side = ours(bench, false)?;
            let what = What {
                open: bench.wants("G3"),
                long: bench.wants("G5"),
                read: bench.wants("G1") || bench.wants("G2"),
            };
            sqlite.push(side.measure(&what)?);
            side.stop()?;
        }
        if with_queue {
            tell(DURABLE);
            let mut side = durable(bench)?;
            queued.push(side.measure(&What { open: bench.wants("G3"), long: false, read: false })?);
            side.stop()?;
        }
        if bench.wants("G1") || bench.wants("G5") {
            tell(PLAIN);
            let mut side = plain(bench)?;
            bare.push(side.measure(&What { open: false, long: bench.wants("G5"), read: false })?);
            side.stop()?;
        }
        if bench.wants("G4") {
            tell("zeblit on PostgreSQL");
            let mut side = ours(bench, true)?;
            postgres.push(side.measure(&What { open: false, long: false, read: false })?);
            side.stop()?;
        }
    }
    let all = |rounds: &[Round], value: fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<f64>>();
    let row = |goal,
               what: &str,
               unit,
               value: fn(&Round) -> f64,
               ours: &[Round],
               peer: &[Round],
               peer_name,
               wanted| Measured {
        goal,
        what: what.to_owned(),
        ours: all(ours, value),
        peer: all(peer, value),
        peer_name,
        unit,
        wanted,
    };
    let told = |goal, what, unit, ours: fn(&Round) -> f64, others: fn(&Round) -> f64| {
        let others_of = |value| row(goal, what, unit, value, &sqlite, &[], "", Ratio::Told);
        Measured { peer: others_of(others).ours, peer_name: "the others", ..others_of(ours) }
    };
    Ok(vec![
        row(
            "G1",
            "durable deliveries, one core, 32 connections",
            "/s",
            |r| r.per_second,
            &sqlite,
            &queued,
            DURABLE,
            Ratio::AtLeast(7.0),
        ),
        row("G1", "the same", "/s", |r| r.per_second, &sqlite, &bare, PLAIN, Ratio::AtLeast(3.0)),
        row(
            "G2",
            "processor time for a delivery",
            "us",
            |r| r.cpu,
            &sqlite,
            &queued,
            DURABLE,
            Ratio::AtMost(1.0 / 8.0),
        ),
        row(
            "G2",
            "the same until it is handled (the peer only queues)",
            "us",
            |r| r.cpu_handled,
            &sqlite,
            &queued,
            DURABLE,
            Ratio::Told,
        ),
        row(
            "G3",
            "answer at 300/s, p99",
            "us",
            |r| r.open_p99,
            &sqlite,
            &queued,
            DURABLE,
            Ratio::AtMost(0.5),
        ),
        row("G3", "answer at 300/s, p50", "us", |r| r.open_p50, &sqlite, &queued, DURABLE, Ratio::Told),
        row(
            "G3",
            "answer with 32 connections, p99",
            "us",
            |r| r.p99,
            &sqlite,
            &queued,
            DURABLE,
            Ratio::AtMost(0.25),
        ),
        row(
            "G4",
            "durable deliveries on PostgreSQL",
            "/s",
            |r| r.per_second,
            &postgres,
            &queued,
            DURABLE,
            Ratio::AtLeast(4.0),
        ),
        row(
            "G4",
            "processor time for a delivery, PostgreSQL's too",
            "us",
            |r| r.cpu,
            &postgres,
            &queued,
            DURABLE,
            Ratio::Told,
        ),
        Measured {
            goal: "G5",
            what: "processor time, payload 8 times as long".into(),
            ours: sqlite.iter().map(|round| round.long_cpu / round.cpu).collect(),
            peer: bare.iter().map(|round| round.long_cpu / round.cpu).collect(),
            peer_name: PLAIN,
            unit: "times",
            wanted: Ratio::ValueAtMost(4.0),
        },
        row(
            "G5",
            "durable deliveries, payload 8 times as long",
            "/s",
            |r| r.long_per_second,
            &sqlite,
            &bare,
            PLAIN,
            Ratio::AtLeast(2.0),
        ),
        told(
            "G1",
            "durable deliveries that speak of the bot, read and decided",
            "/s",
            |r| r.read_per_second,
            |r| r.per_second,
        ),
        told("G2", "processor time until one of them is handled", "us", |r| r.read_cpu, |r| r.cpu_handled),
        row("G1", "RSS after the load", "MiB", |r| r.rss, &sqlite, &queued, DURABLE, Ratio::Told),
    ])
}
