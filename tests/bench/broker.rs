//! B1: a streamed model reply through the broker's socket and directly, in turns.
//!
//! Each request is 60 KB, as Claude Code's first one is. The first byte is measured with an endpoint that answers at
//! once; through the broker it includes the reservation, on disk. Throughput is measured at the pace of `PACE` events a
//! second, some ten times that of the fastest hosted models, and once more as fast as the sockets go (for information).

use super::Bench;
use super::load::quantile;
use super::report::{Measured, Ratio};
use anyhow::{Context, ensure};
use secrecy::SecretString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use zeblit::broker::provider::Provider;
use zeblit::broker::{Allowance, Broker, Settings};
use zeblit::clock::{RandomIds, SystemClock};
use zeblit::domain::ids::RunId;
use zeblit::domain::model_api::ModelApi;
use zeblit::store::Store;

/// Events a second of the paced reply, and how often some are sent.
const PACE: u32 = 5000;
const TICK: Duration = Duration::from_millis(10);
const EVENTS_PER_TICK: u32 = PACE / 100;
/// Events of a paced reply (half a second), and of one without a pace.
const PACED_EVENTS: u32 = PACE / 2;
const FREE_EVENTS: u32 = 50_000;
/// Bytes of the request's system prompt.
const PROMPT_BYTES: usize = 60_000;
/// Replies of each kind in a round, each way.
const SHORT_REPLIES: usize = 20;
const PACED_REPLIES: usize = 5;
const FREE_REPLIES: usize = 3;
/// The goals: milliseconds that the first byte comes later, and percent of the throughput.
const MOST_ADDED: f64 = 2.0;
const MOST_LOST: f64 = 5.0;

const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":20000,\"output_tokens\":1}}}\n\n";
const TEXT: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"a few words\"}}\n\n";
const END: &str = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":30}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

/// What the endpoint is to answer; the model's temperature says it, so that the request stays an ordinary one.
#[derive(Clone, Copy)]
enum Reply {
    Short,
    Paced,
    Free,
}

impl Reply {
    fn temperature(self) -> &'static str {
        match self {
            Reply::Short => "0.1",
            Reply::Paced => "0.2",
            Reply::Free => "0.3",
        }
    }

    fn request(self) -> Vec<u8> {
        let body = format!(
            r#"{{"model":"claude-sonnet-4-5","max_tokens":64000,"stream":true,"temperature":{},"system":"{}","messages":[{{"role":"user","content":"hi"}}]}}"#,
            self.temperature(),
            "word ".repeat(PROMPT_BYTES / 5)
        );
        format!(
            "POST /v1/messages HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-type: application/json\r\nanthropic-version: 2023-06-01\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// One reply as its reader saw it.
struct Seen {
    first: Duration,
    whole: Duration,
    bytes: usize,
}

async fn read(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> anyhow::Result<Seen> {
    let begin = Instant::now();
    stream.write_all(request).await?;
    let mut first = None;
    let mut head = Vec::new();
    let mut bytes = 0;
    let mut chunk = vec![0; 256 * 1024];
    let mut end = Vec::new();
    loop {
        let read = stream.read(&mut chunk).await?;
        let got = chunk.get(..read).unwrap_or_default();
        if read == 0 {
            break;
        }
        bytes += read;
        if first.is_none() {
            head.extend_from_slice(got);
            if head.windows(6).any(|window| window == b"event:") {
                first = Some(begin.elapsed());
            }
        }
        end.extend_from_slice(got);
        let keep = end.len().saturating_sub(256);
        end.drain(..keep);
    }
    ensure!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    ensure!(String::from_utf8_lossy(&end).contains("message_stop"), "the reply broke off");
    Ok(Seen { first: first.context("no event arrived")?, whole: begin.elapsed(), bytes })
}

/// The endpoint: answers each connection once, or more often when the client keeps it.
async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some((body, close)) = request(&mut stream, &mut buffer).await? else { return Ok(()) };
        let has = |reply: Reply| {
            let wanted = format!("\"temperature\":{}", reply.temperature());
            body.windows(wanted.len()).any(|window| window == wanted.as_bytes())
        };
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}{:x}\r\n{START}\r\n", START.len()).as_bytes()).await?;
        let begin = tokio::time::Instant::now();
        let many = TEXT.repeat(EVENTS_PER_TICK as usize);
        let many = format!("{:x}\r\n{many}\r\n", many.len());
        let (events, paced) = match () {
            () if has(Reply::Paced) => (PACED_EVENTS, true),
            () if has(Reply::Free) => (FREE_EVENTS, false),
            () => (0, false),
        };
        for tick in 0..events / EVENTS_PER_TICK {
            if paced {
                tokio::time::sleep_until(begin + TICK * tick).await;
            }
            stream.write_all(many.as_bytes()).await?;
        }
        stream.write_all(format!("{:x}\r\n{END}\r\n0\r\n\r\n", END.len()).as_bytes()).await?;
        if close {
            return stream.shutdown().await;
        }
    }
}

/// The body of the next request, and whether the client wants the connection closed after it.
async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<(Vec<u8>, bool)>> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|length| length.trim().parse::<usize>().ok())
                .unwrap_or(0);
            if buffer.len() >= end + 4 + length {
                let body = buffer.drain(..end + 4 + length).skip(end + 4).collect();
                return Ok(Some((body, head.contains("connection: close"))));
            }
        }
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
}

/// Both ways to the same reply.
struct Ways<'a> {
    address: std::net::SocketAddr,
    socket: &'a Path,
}

impl Ways<'_> {
    /// In turns, each the first every other time.
    async fn measure(&self, reply: Reply, rounds: usize) -> anyhow::Result<(Vec<Seen>, Vec<Seen>)> {
        let request = reply.request();
        let (mut direct, mut brokered) = (Vec::new(), Vec::new());
        for round in 0..rounds * 2 {
            if (round % 2 == 0) == ((round / 2) % 2 == 0) {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                direct.push(read(stream, &request).await?);
            } else {
                brokered.push(read(UnixStream::connect(self.socket).await?, &request).await?);
            }
        }
        Ok((direct, brokered))
    }
}

fn median(seen: &[Seen], what: impl Fn(&Seen) -> Duration) -> Duration {
    let mut times: Vec<Duration> = seen.iter().map(what).collect();
    times.sort_unstable();
    quantile(&times, 0.5)
}

/// Medians of one round, directly and through the broker.
#[derive(Debug)]
struct Round {
    /// Milliseconds until the first event.
    first: (f64, f64),
    /// Milliseconds of a whole paced reply.
    paced: (f64, f64),
    /// MB/s without a pace.
    free: (f64, f64),
}

impl Round {
    async fn take(ways: &Ways<'_>) -> anyhow::Result<Self> {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (direct, brokered) = ways.measure(Reply::Short, SHORT_REPLIES).await?;
        let first = (ms(median(&direct, |seen| seen.first)), ms(median(&brokered, |seen| seen.first)));
        let (direct, brokered) = ways.measure(Reply::Paced, PACED_REPLIES).await?;
        let paced = (ms(median(&direct, |seen| seen.whole)), ms(median(&brokered, |seen| seen.whole)));
        let (direct, brokered) = ways.measure(Reply::Free, FREE_REPLIES).await?;
        let rate = |seen: &[Seen]| {
            let bytes = seen.first().map_or(0, |seen| seen.bytes);
            bytes as f64 / median(seen, |seen| seen.whole).as_secs_f64() / 1e6
        };
        Ok(Self { first, paced, free: (rate(&direct), rate(&brokered)) })
    }
}

async fn rounds(bench: &Bench, folder: &Path) -> anyhow::Result<Vec<Round>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let endpoint = tokio::spawn(serve(listener));
    let store = Store::open(&format!("sqlite:{}", folder.join("bench.db").display())).await?;
    let key = Some(SecretString::from("a key of the bench"));
    let settings = Settings {
        providers: vec![Provider::general(ModelApi::Anthropic, &format!("http://{address}"), key)],
        ..Settings::default()
    };
    let broker = Broker::new(settings, store, Arc::new(SystemClock), Arc::new(RandomIds));
    let allowance = Allowance {
        run: RunId::new("run_bench"),
        attempt: 1,
        budget_micros: i64::MAX / 4,
        wider: Vec::new(),
    };
    let listening = broker.open(folder, allowance).await?;
    let socket = folder.join(zeblit::broker::SOCKET_FILE);
    let ways = Ways { address, socket: &socket };
    ways.measure(Reply::Short, 3).await?;
    let mut rounds = Vec::new();
    for round in 1..=bench.rounds {
        bench.tell(&format!("broker, round {round}: both ways in turns"));
        rounds.push(Round::take(&ways).await?);
    }
    drop(listening);
    endpoint.abort();
    Ok(rounds)
}

pub fn measure(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let folder = bench.fresh("broker")?;
    let rounds = tokio::runtime::Runtime::new()?.block_on(rounds(bench, &folder))?;
    let row = |what: &str, unit, ours: Vec<f64>, peer: Vec<f64>, wanted| Measured {
        goal: "B1",
        what: what.to_owned(),
        peer_name: if peer.is_empty() { "" } else { "directly" },
        ours,
        peer,
        unit,
        wanted,
    };
    let all = |value: fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<f64>>();
    Ok(vec![
        row(
            "first byte of a reply through the broker, added",
            "ms",
            all(|round| round.first.1 - round.first.0),
            Vec::new(),
            Ratio::ValueAtMost(MOST_ADDED),
        ),
        row(
            "throughput lost in it at 5000 events/s",
            "%",
            all(|round| (1.0 - round.paced.0 / round.paced.1).max(0.0) * 100.0),
            Vec::new(),
            Ratio::ValueAtMost(MOST_LOST),
        ),
        row("first byte", "ms", all(|round| round.first.1), all(|round| round.first.0), Ratio::Told),
        row(
            "throughput without a pace",
            "MB/s",
            all(|round| round.free.1),
            all(|round| round.free.0),
            Ratio::Told,
        ),
    ])
}
