//! What a container may reach: the model endpoint and a few tools through one socket, metered; the broker holds the
//! key. Through a second one, when its list is not empty, hosts of the network.

pub mod egress;
mod egress_parse;
pub mod llm;
pub mod price;
pub mod tools;

use crate::clock::{Clock, Ids};
use crate::domain::budget::Price;
use crate::domain::ids::RunId;
use crate::store::Store;
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

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
    /// The settings do not make a client for the model endpoint.
    #[error("models.anthropic_url `{url}`: {detail}")]
    Endpoint { url: String, detail: String },
}

/// What the broker is told: plain values, so that it knows no configuration file.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `https://api.anthropic.com`, or a gateway with the same API; a path in it is kept.
    pub anthropic_url: String,
    /// Absent: every request is answered with the reason.
    pub anthropic_api_key: Option<SecretString>,
    /// Over the built-in table, by model name.
    pub prices: BTreeMap<String, Price>,
}

/// Serves `broker.sock` in each attempt's socket directory.
#[derive(Debug, Clone)]
pub struct Broker {
    pub(crate) inner: Arc<llm::Upstream>,
    pub(crate) egress: Arc<egress::Proxy>,
    store: Store,
    clock: Arc<dyn Clock>,
}

/// What was refused, by run: counted in memory, for the report of a run.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    by_run: Mutex<BTreeMap<String, BTreeMap<String, u64>>>,
}

impl Refusals {
    pub(crate) fn count(&self, run: &RunId, what: &str) {
        // A poisoned lock means a panic elsewhere; counters are worth no second one.
        let Ok(mut runs) = self.by_run.lock() else { return };
        if !runs.contains_key(run.as_str()) && runs.len() >= MAX_RUNS {
            // Ids sort by their time of creation.
            runs.pop_first();
        }
        let counts = runs.entry(run.as_str().to_owned()).or_default();
        let key: String = what.chars().filter(|c| !c.is_control()).take(120).collect();
        if counts.contains_key(&key) || counts.len() < MAX_REFUSALS {
            *counts.entry(key).or_default() += 1;
        } else {
            *counts.entry("(others)".into()).or_default() += 1;
        }
    }

    fn of(&self, run: &RunId) -> Vec<(String, u64)> {
        let Ok(runs) = self.by_run.lock() else { return Vec::new() };
        runs.get(run.as_str())
            .map(|counts| counts.iter().map(|(what, count)| (what.clone(), *count)).collect())
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

    /// Listens on `<sockets>/egress.sock` for what the grant allows.
    pub async fn open_egress(&self, sockets: &Path, grant: egress::Grant) -> Result<Listener, BrokerError> {
        let listener = bind(sockets.join(EGRESS_SOCKET_FILE))?;
        let task = tokio::spawn(egress::serve(listener, Arc::clone(&self.egress), Arc::new(grant)));
        Ok(Listener { task })
    }

    /// What was refused to a run since this process started: what it asked for, and how often.
    pub fn refused(&self, run: &RunId) -> Vec<(String, u64)> {
        self.inner.refusals.of(run)
    }

    /// Listens on `<sockets>/broker.sock` (replacing a stale one; mode 0666 in the private directory).
    pub async fn open(&self, sockets: &Path, allowance: Allowance) -> Result<Listener, BrokerError> {
        self.inner.check()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_with_a_cap() {
        let refusals = Refusals::default();
        let run = RunId::new("r1");
        for n in 0..MAX_REFUSALS * 2 {
            refusals.count(&run, &format!("GET /{n}"));
        }
        refusals.count(&run, "GET /0");
        refusals.count(&run, &"x".repeat(10_000));
        let found = refusals.of(&run);
        assert!(found.len() <= MAX_REFUSALS + 1);
        assert!(found.contains(&("GET /0".into(), 2)));
        assert!(found.contains(&("(others)".into(), u64::try_from(MAX_REFUSALS).unwrap() + 1)));
        for n in 0..MAX_RUNS * 2 {
            refusals.count(&RunId::new(format!("s{n:05}")), "GET /");
        }
        assert!(refusals.by_run.lock().unwrap().len() <= MAX_RUNS);
        assert!(refusals.of(&RunId::new("unknown")).is_empty());
    }
}
