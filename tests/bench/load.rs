//! Requests over HTTP, signed deliveries above all: as many as are answered (closed loop), or so many a second whatever happens (open loop,
//! where a request's time counts from when it was to be sent).
//!
//! Cheap, so that the server is what is measured: one buffer for each connection, in which only the id changes.

use super::machine::{CLIENT_CORE, pinned};
use super::server::SECRET;
use anyhow::{Context, bail, ensure};
use secrecy::SecretString;
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeblit::domain::event::Source;
use zeblit::intake::signature;

/// A recorded delivery of a comment that holds no command.
const RECORDED: &str = include_str!("../fixtures/github/issue_comment.created.json");
/// Where the id of a delivery stands in a request, until it gets its own.
const ID: &str = "00000000-0000-4000-8000-000000000000";
/// Connections of an open loop: more than are ever busy unless the server falls behind.
const OPEN_CONNECTIONS: usize = 64;
/// The timer is coarser than what is measured: the last of a wait is spent looking at the clock.
const LOOK: Duration = Duration::from_millis(2);

/// What is sent again and again.
#[derive(Debug, Clone)]
pub struct Asked {
    bytes: Vec<u8>,
    /// Where the id of a delivery stands.
    id_at: Option<usize>,
}

impl Asked {
    /// Reads a page of the API.
    pub fn page(path: &str, token: &str) -> Self {
        let head = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\r\n");
        Self { bytes: head.into_bytes(), id_at: None }
    }

    /// The recorded comment as GitHub delivers it; `longer` times as long, by a longer text.
    pub fn comment(longer: usize) -> anyhow::Result<Self> {
        let body = match longer {
            0 | 1 => RECORDED.as_bytes().to_vec(),
            _ => with_text(&prose(RECORDED.len() * (longer - 1)))?,
        };
        Self::delivery(&body)
    }

    /// The recorded comment with a text that speaks of the bot and asks it for nothing, which only its reader can tell.
    pub fn about_the_bot() -> anyhow::Result<Self> {
        Self::delivery(&with_text("What does `/zeblit fix` do when the tests are red already?")?)
    }

    fn delivery(body: &[u8]) -> anyhow::Result<Self> {
        let mut head = String::from(
            "POST /webhooks/github HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\nuser-agent: GitHub-Hookshot/0000000\r\n",
        );
        head.push_str("x-github-hook-id: 1\r\nx-github-hook-installation-target-id: 1\r\nx-github-hook-installation-target-type: integration\r\n");
        for (name, value) in
            signature::sign(Source::Github, &SecretString::from(SECRET), ID, "issue_comment", body)
        {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let id_at = Some(head.find(ID).context("the request names its delivery")?);
        let mut bytes = head.into_bytes();
        bytes.extend(body);
        Ok(Self { bytes, id_at })
    }

    /// Gives it an id that no other delivery has.
    fn renew(&mut self) {
        let Some(id_at) = self.id_at else { return };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut count = NEXT.fetch_add(1, Ordering::Relaxed);
        if count == 0 {
            // Another run of the bench may have left its deliveries in a database.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let first = now.as_micros() as u64 & 0x0000_7fff_ffff_ffff;
            count = first;
            NEXT.fetch_add(first, Ordering::Relaxed);
        }
        let id = format!("{count:012x}");
        let at = id_at + ID.len() - id.len();
        self.bytes[at..at + id.len()].copy_from_slice(id.as_bytes());
    }
}

/// The recorded comment with this text.
fn with_text(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut payload: serde_json::Value = serde_json::from_str(RECORDED)?;
    *payload.pointer_mut("/comment/body").context("the fixture has a comment")? = text.into();
    Ok(serde_json::to_vec(&payload)?)
}

/// Words as people use them, always the same: a text that compresses like one.
fn prose(bytes: usize) -> String {
    const WORDS: [&str; 32] = [
        "the", "parser", "drops", "a", "line", "when", "input", "ends", "without", "newline", "we", "saw",
        "this", "on", "main", "after", "last", "release", "and", "it", "breaks", "every", "second", "build",
        "please", "look", "at", "commit", "because", "tests", "pass", "locally",
    ];
    let mut text = String::with_capacity(bytes + 16);
    let mut state: u64 = 7;
    while text.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 59) as usize]);
        match (state >> 40) % 23 {
            0 => text.push_str(".\n"),
            1 => text.push_str(&format!(" {} ", (state >> 20) % 10_000)),
            _ => text.push(' '),
        }
    }
    text
}

/// What the client saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Of answers with a status of 2xx, shortest first.
    pub times: Vec<Duration>,
    pub refused: usize,
    pub lasted: Duration,
}

impl Seen {
    pub fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.lasted.as_secs_f64()
    }

    /// In microseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(&self.times, share).as_secs_f64() * 1e6
    }
}

/// Of times that are sorted.
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let index = ((last as f64) * share).round() as usize;
    sorted.get(index.min(last)).copied().unwrap_or_default()
}

/// A connection that is kept, with its own copy of the request.
struct Connection {
    stream: TcpStream,
    request: Asked,
    answer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr, asked: &Asked) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, request: asked.clone(), answer: Vec::with_capacity(4096) })
    }

    /// Asks and reads the whole answer; gives the status.
    async fn ask(&mut self) -> anyhow::Result<u16> {
        self.request.renew();
        self.stream.write_all(&self.request.bytes).await?;
        self.answer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the server hung up");
            if let Some(status) = answered(&self.answer)? {
                return Ok(status);
            }
        }
    }
}

/// The status of an answer that is complete.
pub fn answered(bytes: &[u8]) -> anyhow::Result<Option<u16>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    let status = head.get(9..12).and_then(|status| status.parse().ok()).context("no status line")?;
    let header = |name: &str| {
        head.lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    };
    let body = &bytes[end + 4..];
    let complete = match (header("content-length"), header("transfer-encoding")) {
        (Some(length), _) => body.len() >= length.parse::<usize>()?,
        (None, Some("chunked")) => body.ends_with(b"0\r\n\r\n"),
        _ => bail!("an answer without a length: {head}"),
    };
    Ok(complete.then_some(status))
}

async fn run(address: SocketAddr, asked: &Asked, connections: usize, pace: Pace) -> anyhow::Result<Seen> {
    let mut all = Vec::new();
    for _ in 0..connections {
        all.push(Connection::open(address, asked).await?);
    }
    let next = Rc::new(Cell::new(0_u32));
    let begin = Instant::now();
    let local = tokio::task::LocalSet::new();
    let work: Vec<_> = all
        .into_iter()
        .map(|connection| local.spawn_local(one(connection, Rc::clone(&next), begin, pace)))
        .collect();
    let mut seen = Seen::default();
    local
        .run_until(async {
            for task in work {
                let (times, refused) = task.await??;
                seen.times.extend(times);
                seen.refused += refused;
            }
            anyhow::Ok(())
        })
        .await?;
    seen.lasted = begin.elapsed();
    seen.times.sort_unstable();
    Ok(seen)
}

#[derive(Debug, Clone, Copy)]
enum Pace {
    Closed { until: Duration },
    Open { per_second: f64, count: u32 },
}

async fn one(
    mut connection: Connection,
    next: Rc<Cell<u32>>,
    begin: Instant,
    pace: Pace,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let (mut times, mut refused) = (Vec::new(), 0);
    loop {
        let from = match pace {
            Pace::Closed { until } => {
                if begin.elapsed() >= until {
                    break;
                }
                Instant::now()
            }
            Pace::Open { per_second, count } => {
                let n = next.replace(next.get() + 1);
                if n >= count {
                    break;
                }
                let at = begin + Duration::from_secs_f64(f64::from(n) / per_second);
                if let Some(early) = at.checked_sub(LOOK) {
                    tokio::time::sleep_until(early.into()).await;
                }
                while Instant::now() < at {
                    tokio::task::yield_now().await;
                }
                at
            }
        };
        match connection.ask().await? {
            200..300 => times.push(from.elapsed()),
            _ => refused += 1,
        }
    }
    Ok((times, refused))
}

/// `connections` that send their next request when the last is answered.
pub fn closed(
    address: SocketAddr,
    asked: &Asked,
    connections: usize,
    until: Duration,
) -> anyhow::Result<Seen> {
    pinned(CLIENT_CORE, || run(address, asked, connections, Pace::Closed { until }))
}

/// `per_second` requests, evenly.
pub fn open(address: SocketAddr, asked: &Asked, per_second: f64, lasting: Duration) -> anyhow::Result<Seen> {
    let count = (per_second * lasting.as_secs_f64()) as u32;
    pinned(CLIENT_CORE, || run(address, asked, OPEN_CONNECTIONS, Pace::Open { per_second, count }))
}

/// The body of a page.
pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    Ok(answer.split_once("\r\n\r\n").context("no body")?.1.to_owned())
}
