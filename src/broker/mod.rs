//! What a container may reach: the model APIs and a few tools through one socket, metered; the broker holds the keys.
//! Through a second one, when its list is not empty, hosts of the network.

pub mod egress;
mod egress_parse;
mod filter;
mod json;
pub mod llm;
pub mod price;
pub mod provider;
mod route;
pub mod tools;
pub mod trouble;
mod usage;

use crate::clock::{Clock, Ids};
use crate::domain::budget::{Budget, Price, Standing};
use crate::domain::ids::RunId;
use crate::store::Store;
use chrono::{DateTime, Utc};
use hyper_util::rt::{TokioIo, TokioTimer};
use provider::Provider;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use trouble::Trouble;

/// The socket in an attempt's directory.
pub const SOCKET_FILE: &str = "broker.sock";
/// The proxy's socket beside it, when the run may reach anything.
pub const EGRESS_SOCKET_FILE: &str = "egress.sock";
/// Connections of one attempt at one time; an agent with sub-agents uses about ten.
const MAX_CONNECTIONS: usize = 64;
/// A connection that sends no request for so long is closed.
const IDLE_CONNECTION: Duration = Duration::from_secs(300);
/// Pause after a failed `accept` (the process is out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Different refusals counted for one run; an agent can invent any number of paths.
const MAX_REFUSALS: usize = 64;
/// Runs whose refusals are kept; the oldest are forgotten first.
const MAX_RUNS: usize = 1000;

/// What an attempt may spend and use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    pub run: RunId,
    pub attempt: i64,
    /// All model cost of the run together, in micros.
    pub budget_micros: i64,
    /// What its requests count against besides, in the order in which they are locked.
    pub wider: Vec<Budget>,
}

/// The listener of one attempt; dropping it closes the socket and its connections.
/// Requests that the model is working on are still read to their end and paid.
#[derive(Debug)]
pub struct Listener {
    pub(crate) task: tokio::task::JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("broker socket {path}: {source}")]
    Socket { path: std::path::PathBuf, source: std::io::Error },
    #[error("{0}")]
    Client(String),
    /// An address that no request can go to.
    #[error("address `{url}` of the model provider `{name}`: {detail}")]
    Endpoint { name: String, url: String, detail: String },
}

/// What the broker is told: plain values, so that it knows no configuration file.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub providers: Vec<Provider>,
    /// Over the built-in table, by model name.
    pub prices: BTreeMap<String, Price>,
    /// By model: what is asked instead when it does not accept a request, in order.
    pub fallback: BTreeMap<String, Vec<String>>,
}

/// Serves `broker.sock` in each attempt's socket directory.
#[derive(Debug, Clone)]
pub struct Broker {
    pub(crate) inner: Arc<llm::Upstream>,
    pub(crate) egress: Arc<egress::Proxy>,
    store: Store,
    clock: Arc<dyn Clock>,
}

/// What happened to the requests of each run: kept in memory, for its report.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    by_run: Mutex<BTreeMap<String, RunNotes>>,
}

#[derive(Debug, Default)]
struct RunNotes {
    refused: BTreeMap<String, u64>,
    /// The last, until a request works; and when it is over, where the endpoint said so.
    trouble: Option<(Trouble, Option<DateTime<Utc>>)>,
    /// The budget that did not reach for a request, the last time, and how often it was one.
    over: Option<(Standing, u32)>,
}

impl Notes {
    fn with<T>(&self, run: &RunId, change: impl FnOnce(&mut RunNotes) -> T) -> Option<T> {
        // A poisoned lock means a panic elsewhere; notes are worth no second one.
        let mut runs = self.by_run.lock().ok()?;
        if !runs.contains_key(run.as_str()) && runs.len() >= MAX_RUNS {
            // Ids sort by their time of creation.
            runs.pop_first();
        }
        Some(change(runs.entry(run.as_str().to_owned()).or_default()))
    }

    pub(crate) fn refused(&self, run: &RunId, what: &str) {
        self.with(run, |notes| {
            let counts = &mut notes.refused;
            let key: String = what.chars().filter(|c| !c.is_control()).take(120).collect();
            if counts.contains_key(&key) || counts.len() < MAX_REFUSALS {
                *counts.entry(key).or_default() += 1;
            } else {
                *counts.entry("(others)".into()).or_default() += 1;
            }
        });
    }

    pub(crate) fn trouble(&self, run: &RunId, trouble: Trouble, until: Option<DateTime<Utc>>) {
        metrics::counter!(crate::telemetry::MODEL_TROUBLES, "class" => trouble.name()).increment(1);
        self.with(run, |notes| notes.trouble = Some((trouble, until)));
    }

    pub(crate) fn over_budget(&self, run: &RunId, standing: Standing) {
        self.with(run, |notes| {
            let times = notes.over.as_ref().map_or(0, |(_, times)| *times);
            notes.over = Some((standing, times.saturating_add(1)));
        });
    }

    pub(crate) fn worked(&self, run: &RunId) {
        self.with(run, |notes| notes.trouble = None);
    }

    fn read<T>(&self, run: &RunId, read: impl FnOnce(&RunNotes) -> T) -> Option<T> {
        self.by_run.lock().ok()?.get(run.as_str()).map(read)
    }

    fn refusals(&self, run: &RunId) -> Vec<(String, u64)> {
        self.read(run, |notes| notes.refused.iter().map(|(what, count)| (what.clone(), *count)).collect())
            .unwrap_or_default()
    }
}

impl Broker {
    /// Settings that cannot work show in `open`.
    pub fn new(settings: Settings, store: Store, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Self {
        Self {
            egress: Arc::new(egress::Proxy::new(store.clone(), Arc::clone(&clock), Arc::new(egress::System))),
            store: store.clone(),
            clock: Arc::clone(&clock),
            inner: Arc::new(llm::Upstream::new(settings, store, clock, ids)),
        }
    }

    /// The same with another way to the network.
    pub fn with_dial(self, dial: Arc<dyn egress::Dial>) -> Self {
        let egress = Arc::new(egress::Proxy::new(self.store.clone(), Arc::clone(&self.clock), dial));
        Self { egress, ..self }
    }

    /// The budget that did not reach for the run's requests, as it stood the last time, and how often.
    pub fn over_budget(&self, run: &RunId) -> Option<(Standing, u32)> {
        self.inner.notes.read(run, |notes| notes.over.clone()).flatten()
    }

    /// Listens on `<sockets>/egress.sock` for what the grant allows.
    pub async fn open_egress(&self, sockets: &Path, grant: egress::Grant) -> Result<Listener, BrokerError> {
        let listener = bind(sockets.join(EGRESS_SOCKET_FILE))?;
        let task = tokio::spawn(egress::serve(listener, Arc::clone(&self.egress), Arc::new(grant)));
        Ok(Listener { task })
    }

    /// What was refused to a run since this process started: what it asked for, and how often.
    pub fn refused(&self, run: &RunId) -> Vec<(String, u64)> {
        self.inner.notes.refusals(run)
    }

    /// Why the model endpoint accepted none of the attempt's last requests, and until when, where it said so; nothing when
    /// the last one worked.
    pub fn trouble(&self, run: &RunId) -> Option<(Trouble, Option<DateTime<Utc>>)> {
        self.inner.notes.read(run, |notes| notes.trouble).flatten()
    }

    /// Listens on `<sockets>/broker.sock` (replacing a stale one; mode 0666 in the private directory).
    pub async fn open(&self, sockets: &Path, allowance: Allowance) -> Result<Listener, BrokerError> {
        self.inner.check()?;
        // What an earlier attempt met is over.
        self.inner.notes.worked(&allowance.run);
        let listener = bind(sockets.join(SOCKET_FILE))?;
        let upstream = Arc::clone(&self.inner);
        let tools = tools::endpoint(tools::Tools {
            store: self.store.clone(),
            clock: Arc::clone(&self.clock),
            run: allowance.run.clone(),
            attempt: allowance.attempt,
            calls: Arc::default(),
        });
        let task = tokio::spawn(serve(listener, upstream, tools, Arc::new(allowance)));
        Ok(Listener { task })
    }
}

/// Replaces a stale socket; mode 0666 in the private directory.
fn bind(path: std::path::PathBuf) -> Result<UnixListener, BrokerError> {
    let fail = |source| BrokerError::Socket { path: path.clone(), source };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(fail)?;
    // The container's uid is another one; the directory's secret name is what keeps others out.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).map_err(fail)?;
    Ok(listener)
}

/// Accepts until it is aborted; its connections end with it.
async fn serve(
    listener: UnixListener,
    upstream: Arc<llm::Upstream>,
    tools: tools::Endpoint,
    allowance: Arc<Allowance>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => break stream,
                    Err(error) => {
                        tracing::warn!(run = %allowance.run, %error, "broker: accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        };
        let upstream = Arc::clone(&upstream);
        let allowance = Arc::clone(&allowance);
        let tools = tools.clone();
        connections.spawn(async move {
            let _place = place;
            let service = hyper::service::service_fn(|request| {
                let upstream = Arc::clone(&upstream);
                let allowance = Arc::clone(&allowance);
                let tools = tools.clone();
                async move {
                    Ok::<_, std::convert::Infallible>(if request.uri().path() == tools::PATH {
                        tools::answer(&tools, request).await
                    } else {
                        upstream.answer(&allowance, request).await
                    })
                }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_CONNECTION)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(run = %allowance.run, %error, "broker: connection ended");
            }
        });
    }
}

/// What would be sent for a request of an agent: path and body; or why it is refused. Nothing is sent, nothing charged.
pub fn would_send(method: &str, target: &str, body: &[u8]) -> Result<(String, Vec<u8>), String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let method = hyper::Method::from_bytes(method.as_bytes()).map_err(|error| error.to_string())?;
    let route = route::route(&method, path, false).ok_or("there is no such path")?;
    let query = route::query(&route, query)?;
    let target = format!("{}{query}", route.tail);
    if method == hyper::Method::GET {
        return Ok((target, Vec::new()));
    }
    let body = json::Json::parse(body)?;
    filter::check(route.api, route.call, &body).map_err(|refused| refused.message())?;
    Ok((target, body.to_bytes()))
}

/// The tokens that a stream of events reports, however it is cut into chunks.
pub fn metered(stream: &[u8], chunk: usize) -> Vec<Option<i64>> {
    [route::Call::Messages, route::Call::Responses, route::Call::Chat, route::Call::Generate { stream: true }]
        .into_iter()
        .map(|call| {
            let mut meter = usage::StreamMeter::new(call);
            stream.chunks(chunk.max(1)).for_each(|chunk| meter.feed(chunk));
            meter.total(true).map(|spent| spent.usage.total())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_with_a_cap() {
        let refusals = Notes::default();
        let run = RunId::new("r1");
        for n in 0..MAX_REFUSALS * 2 {
            refusals.refused(&run, &format!("GET /{n}"));
        }
        refusals.refused(&run, "GET /0");
        refusals.refused(&run, &"x".repeat(10_000));
        let found = refusals.refusals(&run);
        assert!(found.len() <= MAX_REFUSALS + 1);
        assert!(found.contains(&("GET /0".into(), 2)));
        assert!(found.contains(&("(others)".into(), u64::try_from(MAX_REFUSALS).unwrap() + 1)));
        for n in 0..MAX_RUNS * 2 {
            refusals.refused(&RunId::new(format!("s{n:05}")), "GET /");
        }
        assert!(refusals.by_run.lock().unwrap().len() <= MAX_RUNS);
        assert!(refusals.refusals(&RunId::new("unknown")).is_empty());
    }
}
