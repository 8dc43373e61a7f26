//! S1 to S6: what one server holds in round figures: REST, deliveries, queued tasks, live readers, repositories, runs a day.
//!
//! S1, S3 and S5 share a server with a thousand repositories, each with a command on an issue; it is paused, so that every
//! command becomes a queued run and stays one. S6 runs whole runs in containers for some minutes.

use super::load::{self, Asked};
use super::machine;
use super::report::{Measured, Ratio};
use super::server::{self, Options};
use super::{Bench, live, world};
use anyhow::ensure;
use std::time::{Duration, Instant};

const REPOS: usize = 1000;
const TASKS: usize = 1000;
const READERS: usize = 100;
/// Deliveries a second, and for how long.
const DELIVERIES: f64 = 1000.0;
const DELIVERED: Duration = Duration::from_secs(10);
/// Requests a second to each page of the API, and for how long.
const PAGES: f64 = 50.0;
const PAGED: Duration = Duration::from_secs(10);
/// How long whole runs are watched.
const WATCHED: Duration = Duration::from_secs(180);
/// Runs that wait at the beginning: more than end in that time.
const WAITING: usize = 1500;
/// 10 000 runs a day, in a minute.
const RUNS_A_MINUTE: f64 = 10_000.0 / (24.0 * 60.0);
/// How long the comments on queued runs may take to be written.
const SETTLED: Duration = Duration::from_secs(300);

/// An agent without a model that changes one file.
const AGENT: &str = "---\nname: note\ndescription: Writes a file. No model.\nadapter: command\nargv: [bash, -c, \"date >note.txt\"]\n---\n";

fn row(goal: &'static str, what: &str, unit: &'static str, value: f64, wanted: Ratio) -> Measured {
    Measured { goal, what: what.to_owned(), ours: vec![value], peer: Vec::new(), peer_name: "", unit, wanted }
}

/// S1, S3, S5.
pub fn thousand(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let folder = bench.fresh("figures-thousand")?;
    bench.tell("seed figures: makes 1000 repositories with an issue each");
    let posted = world::commands(&folder, REPOS, TASKS, "/zeblit run format")?;
    let sections = format!("[sandbox]\nkind = \"process\"\n\n{}", world::NO_LIMITS);
    let service =
        server::zeblit(&Options { folder: folder.clone(), sections: &sections, ..Options::default() })?;
    server::command(&folder, &["pause", "the bench"])?;
    bench.tell("seed figures: 1000 commands become queued runs");
    let begin = Instant::now();
    world::send(service.address, &posted)?;
    let count = |state: &str| world::sample(service.address, "zeblit_runs{", &[state]);
    while count("queued")? < TASKS {
        ensure!(begin.elapsed() < SETTLED, "{} of {TASKS} commands are queued runs", count("queued")?);
        std::thread::sleep(Duration::from_millis(20));
    }
    let queued = TASKS as f64 / begin.elapsed().as_secs_f64() * 60.0;
    while world::sample(service.address, "zeblit_effects{", &["pending"])? > 0 && begin.elapsed() < SETTLED {
        std::thread::sleep(Duration::from_millis(200));
    }
    bench.tell("seed figures: reads the API");
    let token = server::command(&folder, &["token", "create", "bench"])?.trim().to_owned();
    let runs = world::runs(&folder, 1)?;
    let run =
        runs.first().and_then(|run| run.get("id")).and_then(|id| id.as_str()).unwrap_or_default().to_owned();
    let mut times = Vec::new();
    for path in [
        "/api/v1/status".to_owned(),
        "/api/v1/runs?limit=50".to_owned(),
        format!("/api/v1/runs/{run}"),
        "/api/v1/deliveries?limit=50".to_owned(),
    ] {
        let seen = load::open(service.address, &Asked::page(&path, &token), PAGES, PAGED)?;
        ensure!(seen.refused == 0, "{} requests to {path} were refused", seen.refused);
        times.extend(seen.times);
    }
    times.sort_unstable();
    let rss = machine::rss_mib(&service.pids())?;
    service.stop()?;
    Ok(vec![
        row(
            "S1",
            "REST, four pages at 50/s each, p95",
            "ms",
            load::quantile(&times, 0.95).as_secs_f64() * 1e3,
            Ratio::ValueAtMost(200.0),
        ),
        row(
            "S3",
            "commands accepted and queued as runs, one sender",
            "/min",
            queued,
            Ratio::ValueAtLeast(1000.0),
        ),
        row("S5", "RSS with 1000 repositories and 1000 queued runs", "MiB", rss, Ratio::Told),
    ])
}

/// S2.
pub fn deliveries(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    bench.tell("seed figures: 1000 deliveries a second");
    let folder = bench.fresh("figures-deliveries")?;
    let service = server::zeblit(&Options {
        folder,
        sections: "[sandbox]\nkind = \"process\"\n",
        ..Options::default()
    })?;
    let seen = load::open(service.address, &Asked::comment(1)?, DELIVERIES, DELIVERED)?;
    ensure!(seen.refused == 0, "{} deliveries were refused", seen.refused);
    service.stop()?;
    Ok(vec![
        // What is sent in ten seconds and answered some milliseconds later is a little less a second.
        row(
            "S2",
            "deliveries stored and answered, 1000/s sent",
            "/s",
            seen.per_second(),
            Ratio::ValueAtLeast(DELIVERIES * 0.99),
        ),
        row("S2", "answer at 1000/s, p99", "ms", seen.quantile(0.99) / 1e3, Ratio::Told),
    ])
}

/// S6: queue, container, result; without a model, so what is measured is ours and the machine's.
pub fn day(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    bench.tell("seed figures: whole runs in containers");
    let folder = bench.fresh("figures-day")?;
    let posted = world::commands(&folder, 20, WAITING, "/zeblit run note")?;
    let agents = folder.join("agents");
    std::fs::create_dir(&agents)?;
    std::fs::write(agents.join("note.md"), AGENT)?;
    let sections = format!("[agents]\nfolder = {agents:?}\n\n{}", world::NO_LIMITS);
    let service = server::zeblit(&Options { folder, sections: &sections, ..Options::default() })?;
    world::send(service.address, &posted)?;
    let ended = || world::sample(service.address, "zeblit_runs{", &["succeeded"]);
    let begin = Instant::now();
    // The first minute makes mirrors and seeds, as after any start.
    std::thread::sleep(Duration::from_secs(20));
    let (from, at) = (ended()?, begin.elapsed());
    std::thread::sleep(WATCHED);
    let (to, lasted) = (ended()?, begin.elapsed() - at);
    let failed = world::sample(service.address, "zeblit_runs{", &["failed"])?;
    ensure!(failed == 0, "{failed} runs failed");
    service.stop()?;
    let rate = (to - from) as f64 / lasted.as_secs_f64() * 60.0;
    Ok(vec![
        row(
            "S6",
            "whole runs in containers, three minutes",
            "/min",
            rate,
            Ratio::ValueAtLeast(RUNS_A_MINUTE),
        ),
        row("S6", "the same for a day", "/day", rate * 24.0 * 60.0, Ratio::Told),
    ])
}

/// S4.
pub fn readers(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    bench.tell("seed figures: 100 live readers");
    let round = live::ours(bench, READERS)?;
    Ok(vec![row(
        "S4",
        "line told until 100 live readers have it, p99",
        "ms",
        round.p99,
        Ratio::ValueAtMost(100.0),
    )])
}
