//! The proxy of a run: CONNECT (TLS) and plain HTTP to the hosts on its list, every byte accounted.
//!
//! A name is resolved once and the connection goes to that address; the TLS hello must name the host that was
//! asked for before any byte of it is passed on. What is inside TLS is not seen: the list and the budget bound it.

pub use super::egress_parse::{
    Asked, Connect, HeadError, HelloError, MAX_HEAD_BYTES, MAX_HELLO_BYTES, Plain, canonical_host,
    client_hello_sni, parse_connect, parse_request,
};
use super::{ACCEPT_PAUSE, MAX_CONNECTIONS};
use crate::clock::Clock;
use crate::domain::address::is_public;
use crate::domain::egress::AllowList;
use crate::domain::ids::RunId;
use crate::store::Store;
use crate::store::egress::{self as accounts, Bytes, Place};
use async_trait::async_trait;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Time for a request's head, and again for the TLS hello, to arrive.
const HEAD: Duration = Duration::from_secs(30);
/// Time for a name to be resolved, and for one address to answer.
const DIAL: Duration = Duration::from_secs(15);
/// Silence in both directions after which a connection is closed.
const SILENCE: Duration = Duration::from_secs(300);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Bytes that are counted ahead, outwards and inwards: few enough that many connections do not hold a budget up.
const AHEAD: Bytes = Bytes { out: 16 * 1024, inward: 512 * 1024 };
/// One read.
const CHUNK_BYTES: usize = 16 * 1024;
/// Refusals of one attempt that are written down; a program that asks on and on is not counted further.
const MAX_REFUSALS: u32 = 1000;

/// What an attempt may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub run: RunId,
    pub hosts: AllowList,
    /// Of the run, all its attempts together.
    pub budget: Bytes,
}

/// The way to the network: names to addresses, addresses to connections.
#[async_trait]
pub trait Dial: Send + Sync + std::fmt::Debug {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream>;
}

/// The machine's own resolver and network.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

#[async_trait]
impl Dial for System {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 443)).await?.map(|address| address.ip()).collect())
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        let own = stream.local_addr()?.ip() == address.ip();
        if own || stream.peer_addr()? != address {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "an address of this machine itself"));
        }
        Ok(stream)
    }
}

/// Why a connection is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Head(#[from] HeadError),
    #[error("`{0}` is not on this run's list of hosts")]
    NotListed(String),
    #[error("`{0}` has an address that is not on the public network")]
    Address(String),
    #[error("`{host}` cannot be reached: {detail}")]
    Unreachable { host: String, detail: String },
    #[error("the TLS hello does not fit: {0}")]
    Name(String),
    #[error("the run has used up the bytes it may send or receive")]
    Budget,
    #[error("the host cannot account for this now")]
    Accounts,
}

impl Refusal {
    fn verdict(&self) -> &'static str {
        match self {
            Refusal::Head(_) => "malformed",
            Refusal::NotListed(_) => "not listed",
            Refusal::Address(_) => "address",
            Refusal::Unreachable { .. } | Refusal::Accounts => "unreachable",
            Refusal::Name(_) => "name",
            Refusal::Budget => "budget",
        }
    }

    fn status(&self) -> &'static str {
        match self {
            Refusal::Head(HeadError::Method) => "405 Method Not Allowed",
            Refusal::Head(HeadError::Body) => "413 Content Too Large",
            Refusal::Head(HeadError::LongUrl) => "414 URI Too Long",
            Refusal::Head(_) => "400 Bad Request",
            Refusal::NotListed(_) | Refusal::Address(_) | Refusal::Name(_) => "403 Forbidden",
            Refusal::Budget => "429 Too Many Requests",
            Refusal::Unreachable { .. } | Refusal::Accounts => "502 Bad Gateway",
        }
    }
}

/// Serves the proxies of all attempts.
#[derive(Debug)]
pub struct Proxy {
    store: Store,
    clock: Arc<dyn Clock>,
    dial: Arc<dyn Dial>,
}

/// Accepts until it is aborted; its connections end with it.
pub(super) async fn serve(listener: UnixListener, proxy: Arc<Proxy>, grant: Arc<Grant>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let refusals = Arc::new(AtomicU32::new(0));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => break stream,
                    Err(error) => {
                        tracing::warn!(run = %grant.run, %error, "proxy: accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        };
        let (proxy, grant, refusals) = (Arc::clone(&proxy), Arc::clone(&grant), Arc::clone(&refusals));
        connections.spawn(async move {
            let _place = place;
            proxy.connection(&grant, &refusals, stream).await;
        });
    }
}

impl Proxy {
    pub(super) fn new(store: Store, clock: Arc<dyn Clock>, dial: Arc<dyn Dial>) -> Self {
        Self { store, clock, dial }
    }

    /// One connection of the agent, from its head to its end.
    async fn connection<S>(&self, grant: &Grant, refusals: &AtomicU32, mut client: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let mut buffer = Vec::new();
        let Ok(Ok(Some(end))) = timeout(HEAD, read_head(&mut client, &mut buffer)).await else { return };
        let rest = buffer.split_off(end);
        let asked = parse_request(&buffer);
        let mut place = Place { run: grant.run.clone(), host: "(unreadable)".into(), port: 0 };
        let refusal = match asked {
            Err(error) => Refusal::from(error),
            Ok(asked) => {
                let (host, port) = match &asked {
                    Asked::Tunnel(connect) => (&connect.host, connect.port),
                    Asked::Plain(plain) => (&plain.host, 80),
                };
                place = Place { host: host.clone(), port, ..place };
                match self.pass(grant, &place, &asked, rest, &mut client).await {
                    Ok(()) => return,
                    Err(refusal) => refusal,
                }
            }
        };
        tracing::info!(run = %grant.run, host = place.host, port = place.port, reason = %refusal, "proxy: refused");
        if refusals.fetch_add(1, Ordering::SeqCst) < MAX_REFUSALS
            && let Err(error) =
                accounts::refuse(&self.store, &place, refusal.verdict(), self.clock.now()).await
        {
            tracing::error!(run = %grant.run, %error, "proxy: a refusal could not be stored");
        }
        // After the TLS hello there is no HTTP any more: an answer would be noise.
        if !matches!(refusal, Refusal::Name(_)) {
            let body = format!("zeblit: {refusal}\n");
            let answer = format!(
                "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                refusal.status(),
                body.len()
            );
            let _ = timeout(HEAD, client.write_all(answer.as_bytes())).await;
        }
        let _ = client.shutdown().await;
    }

    /// Lets a request through that the list allows. A refusal comes before any byte has gone out.
    async fn pass<S>(
        &self,
        grant: &Grant,
        place: &Place,
        asked: &Asked,
        mut rest: Vec<u8>,
        client: &mut S,
    ) -> Result<(), Refusal>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let listed = match asked {
            Asked::Tunnel(_) => grant.hosts.allows(&place.host),
            Asked::Plain(_) => grant.hosts.allows_plain(&place.host),
        };
        if !listed {
            return Err(Refusal::NotListed(place.host.clone()));
        }
        let mut server = self.dial(place).await?;
        let meter = Meter::open(self, grant, place).await?;
        let first = match asked {
            Asked::Plain(plain) => {
                // One request, no body: whatever else the client sends is not passed on.
                plain.request.clone()
            }
            Asked::Tunnel(_) => {
                let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
                client.write_all(established).await.map_err(|error| gone(place, &error))?;
                timeout(HEAD, read_hello(client, &mut rest, &place.host))
                    .await
                    .map_err(|_| Refusal::Name("it did not arrive in time".into()))??;
                rest
            }
        };
        if !meter.spend_out(first.len()).await {
            return Err(Refusal::Budget);
        }
        if let Err(error) = server.write_all(&first).await {
            tracing::debug!(run = %grant.run, host = place.host, %error, "proxy: the server is gone");
            return Ok(());
        }
        exchange(&meter, client, server, matches!(asked, Asked::Tunnel(_))).await;
        Ok(())
    }

    /// Resolves once, and connects to what came out of it.
    async fn dial(&self, place: &Place) -> Result<TcpStream, Refusal> {
        let unreachable = |detail: String| Refusal::Unreachable {
            host: place.host.clone(),
            detail: detail.chars().take(200).collect(),
        };
        let addresses = timeout(DIAL, self.dial.resolve(&place.host))
            .await
            .map_err(|_| unreachable("its name is not resolved in time".into()))?
            .map_err(|error| unreachable(error.to_string()))?;
        // One bad address among good ones is a sign of rebinding, not of luck.
        if addresses.iter().any(|address| !is_public(*address)) {
            return Err(Refusal::Address(place.host.clone()));
        }
        let mut last = "its name has no address".to_owned();
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            match timeout(DIAL, self.dial.connect(SocketAddr::new(address, place.port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(Refusal::Address(place.host.clone()));
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = "no answer in time".into(),
            }
        }
        Err(unreachable(last))
    }
}

fn gone(place: &Place, error: &io::Error) -> Refusal {
    Refusal::Unreachable { host: place.host.clone(), detail: format!("the client is gone: {error}") }
}

/// Reads up to and including the empty line: its end in `buffer`. `None`: the client hung up first.
async fn read_head<S: AsyncRead + Unpin>(client: &mut S, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut chunk = [0; 2048];
    loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(Some(at + 4));
        }
        if buffer.len() > MAX_HEAD_BYTES {
            // Too long to be one: the parser says so.
            return Ok(Some(buffer.len()));
        }
        let read = client.read(&mut chunk).await?;
        if read == 0 {
            return Ok(if buffer.is_empty() { None } else { Some(buffer.len()) });
        }
        buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
}

/// Reads until the TLS hello is whole; it must name `host`.
async fn read_hello<S: AsyncRead + Unpin>(
    client: &mut S,
    buffer: &mut Vec<u8>,
    host: &str,
) -> Result<(), Refusal> {
    let mut chunk = [0; 4096];
    loop {
        match client_hello_sni(buffer) {
            Ok(name) if name == host => return Ok(()),
            Ok(name) => return Err(Refusal::Name(format!("it names `{name}`, the request named `{host}`"))),
            Err(HelloError::Incomplete) if buffer.len() <= 2 * MAX_HELLO_BYTES => {}
            Err(error) => return Err(Refusal::Name(error.to_string())),
        }
        match client.read(&mut chunk).await {
            Ok(0) => return Err(Refusal::Name("the client hung up before it was whole".into())),
            Ok(read) => buffer.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            Err(error) => return Err(Refusal::Name(error.to_string())),
        }
    }
}

/// Copies in both directions until the server has said everything, the budget is used up, or nobody speaks.
async fn exchange<S>(meter: &Meter<'_>, client: &mut S, server: TcpStream, tunnel: bool)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = server.into_split();
    let moved = AtomicU64::new(0);
    let outward = async {
        if tunnel {
            let mut chunk = vec![0; CHUNK_BYTES];
            while let Some(read) = read_some(&mut from_client, &mut chunk, &moved).await {
                if !meter.spend_out(read).await {
                    tracing::info!(run = %meter.grant.run, host = meter.place.host, "proxy: the budget is used up");
                    return;
                }
                if to_server.write_all(chunk.get(..read).unwrap_or_default()).await.is_err() {
                    return;
                }
            }
            let _ = to_server.shutdown().await;
        }
        // The answer may go on long after the last word of the client.
        std::future::pending::<()>().await;
    };
    let inward = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Some(read) = read_some(&mut from_server, &mut chunk, &moved).await {
            if !meter.spend_in(read).await {
                tracing::info!(run = %meter.grant.run, host = meter.place.host, "proxy: the budget is used up");
                return;
            }
            if to_client.write_all(chunk.get(..read).unwrap_or_default()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = outward => {}
        () = inward => {}
    }
    let _ = timeout(HEAD, to_client.shutdown()).await;
}

/// `None` at the end, after an error, or when neither direction has moved for `SILENCE`.
async fn read_some<R: AsyncRead + Unpin>(from: &mut R, chunk: &mut [u8], moved: &AtomicU64) -> Option<usize> {
    loop {
        let before = moved.load(Ordering::SeqCst);
        match timeout(SILENCE, from.read(chunk)).await {
            Ok(Ok(0) | Err(_)) => return None,
            Ok(Ok(read)) => {
                moved.fetch_add(1, Ordering::SeqCst);
                return Some(read);
            }
            Err(_) if moved.load(Ordering::SeqCst) == before => return None,
            Err(_) => {}
        }
    }
}

/// Counts one connection's bytes before they go, a little ahead, and gives back what was not used.
struct Meter<'a> {
    proxy: &'a Proxy,
    grant: &'a Grant,
    place: Place,
    out: AtomicU64,
    inward: AtomicU64,
}

impl<'a> Meter<'a> {
    async fn open(proxy: &'a Proxy, grant: &'a Grant, place: &Place) -> Result<Self, Refusal> {
        let meter =
            Self { proxy, grant, place: place.clone(), out: AtomicU64::new(0), inward: AtomicU64::new(0) };
        match accounts::take(&proxy.store, place, 1, Bytes::default(), grant.budget, proxy.clock.now()).await
        {
            Ok(true) => Ok(meter),
            Ok(false) => Err(Refusal::Budget),
            Err(error) => {
                tracing::error!(run = %grant.run, %error, "proxy: a connection could not be stored");
                Err(Refusal::Accounts)
            }
        }
    }

    async fn spend_out(&self, bytes: usize) -> bool {
        self.spend(&self.out, bytes, AHEAD.out, |out| Bytes { out, inward: 0 }).await
    }

    async fn spend_in(&self, bytes: usize) -> bool {
        self.spend(&self.inward, bytes, AHEAD.inward, |inward| Bytes { out: 0, inward }).await
    }

    /// Only one task spends in one direction. Without accounts nothing goes.
    async fn spend(&self, left: &AtomicU64, bytes: usize, ahead: i64, shape: impl Fn(i64) -> Bytes) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let there = left.load(Ordering::SeqCst);
        if there >= bytes {
            left.store(there - bytes, Ordering::SeqCst);
            return true;
        }
        let short = i64::try_from(bytes - there).unwrap_or(i64::MAX);
        // Near the end of a budget what is needed may still fit where more does not.
        for taken in [short.saturating_add(ahead), short] {
            let now = self.proxy.clock.now();
            match accounts::take(&self.proxy.store, &self.place, 0, shape(taken), self.grant.budget, now)
                .await
            {
                Ok(true) => {
                    left.store(u64::try_from(taken - short).unwrap_or(0), Ordering::SeqCst);
                    return true;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(run = %self.grant.run, %error, "proxy: traffic could not be stored");
                    return false;
                }
            }
        }
        false
    }
}

impl Drop for Meter<'_> {
    /// Also when the connection is cut because its attempt ended.
    fn drop(&mut self) {
        let number = |left: &AtomicU64| i64::try_from(left.load(Ordering::SeqCst)).unwrap_or(0);
        let unused = Bytes { out: number(&self.out), inward: number(&self.inward) };
        if unused == Bytes::default() {
            return;
        }
        let (store, place) = (self.proxy.store.clone(), self.place.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = accounts::give_back(&store, &place, unused).await {
                    tracing::error!(run = %place.run, %error, "proxy: traffic could not be settled");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
