//! Purpose: connections: how long they may take, how many there are, how they end.

use crate::telemetry;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Seconds that running requests get to end after a stop.
pub const GRACE_SECONDS: u64 = 10;
/// Request line and headers together, in bytes; webhooks bring about 2 KiB.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Headers of one request; GitHub sends about 20.
const MAX_HEADERS: usize = 100;
/// Milliseconds after a stop in which a connection may still begin a request.
const LAST_REQUEST_MS: u64 = 300;
/// Milliseconds before accepting again after the system refused (out of file descriptors).
const ACCEPT_PAUSE_MS: u64 = 100;

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until the headers of a request are complete; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// At one time; further ones wait in the listener's backlog.
    pub max_connections: usize,
}

impl Limits {
    pub fn of(server: &crate::config::ServerConfig) -> Self {
        Self {
            header_timeout: Duration::from_secs(server.header_timeout_seconds),
            max_connections: server.max_connections,
        }
    }
}

/// Lets this process open as many files as the system grants it: each connection is one, and what is granted at first is
/// often fewer than there may be connections.
pub fn open_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let granted = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: granted.maximum, maximum: granted.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(error = %error, "the limit of open files stays as it is");
    }
}

/// Serves until `stop`; then lets running requests end, at most `GRACE_SECONDS`.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    let kill = CancellationToken::new();
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let Ok(slot) = slot else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                continue;
            }
        };
        let (router, stop, kill) = (router.clone(), stop.clone(), kill.clone());
        connections.spawn(async move {
            metrics::gauge!(telemetry::CONNECTIONS).increment(1.0);
            tokio::select! {
                () = kill.cancelled() => {}
                () = connection(stream, router, limits, stop) => {}
            }
            metrics::gauge!(telemetry::CONNECTIONS).decrement(1.0);
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(Duration::from_secs(GRACE_SECONDS), connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests did not end in time and were cut");
        kill.cancel();
        connections.wait().await;
    }
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, stop: CancellationToken) {
    // Answers are small and somebody waits for them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = format!("{error:#}"), "TCP_NODELAY");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // One that was just accepted has its request on the way: closing it now would lose that.
        () = stop.cancelled() => tokio::select! {
            ended = connection.as_mut() => ended,
            () = tokio::time::sleep(Duration::from_millis(LAST_REQUEST_MS)) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        },
    };
    if let Err(error) = ended {
        // Peers hang up and time out all day; nothing for a maintainer to do.
        tracing::debug!(error = format!("{error:#}"), "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn start(
        limits: Limits,
        router: Router,
    ) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, router, limits, stop.clone()));
        (address, stop, task)
    }

    const QUICK: Limits = Limits { header_timeout: Duration::from_millis(200), max_connections: 4 };

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn silent_connections_are_closed_and_free_their_place() {
        let router = Router::new().route("/", get(|| async { "hello" }));
        let (address, stop, task) = start(QUICK, router).await;
        // One more than there are places: half of them say nothing, half stop in the middle of a header.
        let mut silent = Vec::new();
        for n in 0..5 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if n % 2 == 0 {
                stream.write_all(b"GET / HTTP/1.1\r\nx-slow: ").await.unwrap();
            }
            silent.push(stream);
        }
        let begun = Instant::now();
        assert!(ask(address).await.ends_with("hello"));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        for mut stream in silent {
            // The server hangs up (with or without a 408); it never waits for us.
            let mut rest = Vec::new();
            let _closed = stream.read_to_end(&mut rest).await;
        }
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_lets_running_requests_end() {
        let (began, mut begun) = tokio::sync::mpsc::channel::<()>(1);
        let release = Arc::new(tokio::sync::Notify::new());
        let wait = Arc::clone(&release);
        let router = Router::new().route(
            "/",
            get(move || {
                let (began, wait) = (began.clone(), Arc::clone(&wait));
                async move {
                    began.send(()).await.unwrap();
                    wait.notified().await;
                    "done"
                }
            }),
        );
        let (address, stop, task) = start(QUICK, router).await;
        let asked = tokio::spawn(ask(address));
        begun.recv().await.unwrap();
        stop.cancel();
        release.notify_one();
        assert!(asked.await.unwrap().ends_with("done"));
        task.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nothing listens any more");
    }
}
