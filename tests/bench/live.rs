//! G15: many readers of one live log, idle and while lines come, beside server-sent events by Node's http module.
//!
//! Our side is the whole service; lines reach it over Redis, as another node tells them. The peer is told over HTTP. A
//! line's time runs from then until every reader has it.

use super::load;
use super::machine::{self, CLIENT_CORE, SERVER_CORE, pinned};
use super::peers::{self, Keeps};
use super::report::{Measured, Ratio};
use super::server::{self, Options, Process};
use super::{Bench, world};
use anyhow::{Context, ensure};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use zeblit::queue::redis;
use zeblit::queue::shared::SharedWakeup;
use zeblit::queue::{LogLines, Wakeup};

const READERS: usize = 1000;
/// Lines whose time is taken, and the pause after each.
const TIMED: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);
/// Lines of a busy run, and how far apart they come.
const BUSY: usize = 300;
const BUSY_EVERY: Duration = Duration::from_millis(10);
/// Until readers that have come are taken to be idle.
const SETTLE: Duration = Duration::from_secs(3);
/// How long idle readers are watched.
const IDLE: Duration = Duration::from_secs(5);
/// A line that has not reached everybody by then is lost.
const LOST: Duration = Duration::from_secs(10);
const LINE_BYTES: usize = 120;

const NODE: &str = "Node http, server-sent events";

/// Tells a line to a side.
trait Tell {
    async fn tell(&mut self, text: &str) -> anyhow::Result<()>;
}

struct OverRedis {
    wakeup: SharedWakeup,
    run: String,
    seq: i64,
}

impl Tell for OverRedis {
    async fn tell(&mut self, text: &str) -> anyhow::Result<()> {
        self.seq += 1;
        let text = format!("{{\"n\":{},\"k\":\"out\",\"t\":\"{text}\"}}\n", self.seq).into();
        self.wakeup.lines(LogLines { run: self.run.clone(), seq: self.seq, text });
        Ok(())
    }
}

struct OverHttp(TcpStream);

impl Tell for OverHttp {
    async fn tell(&mut self, text: &str) -> anyhow::Result<()> {
        let request = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        self.0.write_all(request.as_bytes()).await?;
        let mut answer = [0; 1024];
        ensure!(self.0.read(&mut answer).await? > 0, "the peer hung up");
        Ok(())
    }
}

/// What one side did in one round.
#[derive(Debug, Default)]
pub struct Round {
    pub rss: f64,
    /// Share of a core, in percent.
    idle: f64,
    /// Milliseconds.
    p50: f64,
    pub p99: f64,
    /// Microseconds of processor time for a line that reached a reader.
    cpu: f64,
}

/// Counts the marks that have arrived, each line's once for each reader.
async fn read(mut stream: TcpStream, seen: mpsc::UnboundedSender<u32>) -> anyhow::Result<()> {
    let mut bytes = vec![0; 4096];
    let mut text: Vec<u8> = Vec::new();
    loop {
        let count = stream.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        text.extend_from_slice(bytes.get(..count).unwrap_or_default());
        // A mark is `#` and six digits.
        let mut from = 0;
        while let Some(at) = text.iter().skip(from).position(|byte| *byte == b'#').map(|at| at + from) {
            let Some(digits) = text.get(at + 1..at + 7) else { break };
            if let Some(mark) = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()) {
                let _end = seen.send(mark);
            }
            from = at + 7;
        }
        let keep = text.iter().rposition(|byte| *byte == b'#').filter(|at| *at >= from).unwrap_or(text.len());
        text.drain(..keep);
    }
}

fn marked(mark: usize) -> String {
    format!("#{mark:06} {}", "x".repeat(LINE_BYTES - 8))
}

/// Opens the readers and takes all figures of one side.
async fn measure_side(
    server: &Process,
    path: &str,
    readers: usize,
    mut side: impl Tell,
) -> anyhow::Result<Round> {
    let (send, mut seen) = mpsc::unbounded_channel();
    let mut open = tokio::task::JoinSet::new();
    for _ in 0..readers {
        let mut stream = TcpStream::connect(server.address).await?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n").as_bytes(),
            )
            .await?;
        let mut head = [0; 16];
        stream.read_exact(&mut head).await?;
        ensure!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        open.spawn(read(stream, send.clone()));
    }
    tokio::time::sleep(SETTLE).await;
    let mut round = Round { rss: machine::rss_mib(&server.pids())?, ..Round::default() };
    let before = machine::cpu_seconds(&server.pids())?;
    tokio::time::sleep(IDLE).await;
    round.idle = (machine::cpu_seconds(&server.pids())? - before) / IDLE.as_secs_f64() * 100.0;

    // The first lines warm both sides up.
    let mut times = Vec::new();
    for mark in 0..TIMED + 5 {
        let begin = Instant::now();
        side.tell(&marked(mark)).await?;
        for _ in 0..readers {
            let got = tokio::time::timeout(LOST, seen.recv()).await.context("a line was lost")?;
            ensure!(got == u32::try_from(mark).ok(), "line {mark} was told, {got:?} came");
        }
        if mark >= 5 {
            times.push(begin.elapsed());
        }
        tokio::time::sleep(PAUSE).await;
    }
    times.sort_unstable();
    (round.p50, round.p99) =
        (load::quantile(&times, 0.5).as_secs_f64() * 1e3, load::quantile(&times, 0.99).as_secs_f64() * 1e3);

    let before = machine::cpu_seconds(&server.pids())?;
    let begin = Instant::now();
    for n in 0..BUSY {
        tokio::time::sleep_until((begin + BUSY_EVERY * u32::try_from(n)?).into()).await;
        side.tell(&marked(1000 + n)).await?;
    }
    for _ in 0..readers * BUSY {
        tokio::time::timeout(LOST, seen.recv()).await.context("a line was lost")?;
    }
    round.cpu = (machine::cpu_seconds(&server.pids())? - before) * 1e6 / (readers * BUSY) as f64;
    open.abort_all();
    Ok(round)
}

pub fn ours(bench: &Bench, readers: usize) -> anyhow::Result<Round> {
    let redis = peers::redis(&bench.fresh("live-redis")?, Keeps::Nothing, None)?;
    let folder = bench.fresh("live-zeblit")?;
    let url = format!("redis://{}/", redis.address);
    let sections = format!("[sandbox]\nkind = \"process\"\n\n[redis]\nurl = \"{url}\"\n");
    let deliveries = world::commands(&folder, 1, 1, "/zeblit run format")?;
    let service = server::zeblit(&Options {
        folder: folder.clone(),
        core: Some(SERVER_CORE),
        sections: &sections,
        ..Options::default()
    })?;
    // The run stays queued: nobody but this bench tells lines of it.
    server::command(&folder, &["pause", "the bench"])?;
    world::send(service.address, &deliveries)?;
    let run = world::wait_for_runs(&folder, 1)?.into_iter().next().context("a run")?;
    let page = run.get("page_url").and_then(|url| url.as_str()).context("the run has a page")?;
    let path = page.split_once("/runs/").context("the page's address")?.1.replacen('?', "/events?", 1);
    let id = run.get("id").and_then(|id| id.as_str()).context("the run has an id")?.to_owned();
    let round = pinned(CLIENT_CORE, || async {
        let side = OverRedis { wakeup: redis::start(&url)?, run: id, seq: 0 };
        measure_side(&service, &format!("/runs/{path}"), readers, side).await
    })?;
    service.stop()?;
    redis.stop()?;
    Ok(round)
}

fn node(bench: &Bench) -> anyhow::Result<Round> {
    let folder = bench.fresh("live-node")?;
    let service = peers::fanout(bench, &folder)?;
    let address: SocketAddr = service.address;
    let round = pinned(CLIENT_CORE, || async {
        let side = OverHttp(TcpStream::connect(address).await?);
        measure_side(&service, "/", READERS, side).await
    })?;
    service.stop()?;
    Ok(round)
}

pub fn measure(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        bench.tell(&format!("live log, round {round}: zeblit"));
        mine.push(ours(bench, READERS)?);
        bench.tell(&format!("live log, round {round}: {NODE}"));
        theirs.push(node(bench)?);
    }
    let row = |what: &str, unit, value: fn(&Round) -> f64, wanted| Measured {
        goal: "G15",
        what: what.to_owned(),
        ours: mine.iter().map(value).collect(),
        peer: theirs.iter().map(value).collect(),
        peer_name: NODE,
        unit,
        wanted,
    };
    Ok(vec![
        row("RSS with 1000 idle readers", "MiB", |round| round.rss, Ratio::AtMost(0.5)),
        row(
            "processor time for a line at a reader, 100 lines/s",
            "us",
            |round| round.cpu,
            Ratio::AtMost(0.6),
        ),
        row("line told until 1000 readers have it, p99", "ms", |round| round.p99, Ratio::AtMost(0.5)),
        row("line told until 1000 readers have it, p50", "ms", |round| round.p50, Ratio::Told),
        row("of a core while 1000 readers are idle", "%", |round| round.idle, Ratio::Told),
    ])
}
