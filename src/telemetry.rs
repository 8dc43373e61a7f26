//! Purpose: tracing and metrics: how logs are written, and the name of every metric.

use crate::config::LogFormat;
use crate::domain::secrets::SecretScan;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::io::{IsTerminal, Write};
use std::sync::{OnceLock, PoisonError, RwLock};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Variables that hold a log filter, e.g. `debug` or `zeblit=debug,info`; the first that is set counts.
const FILTER_VARIABLES: [&str; 2] = ["ZEBLIT_LOG", "RUST_LOG"];
/// What a server logs: what a maintainer would want, and only trouble from libraries.
const SERVER_FILTER: &str = "info,sqlx=warn,hyper=warn,hyper_util=warn,octocrab=warn,tower_http=warn";
/// What a command logs: its own output says the rest.
const COMMAND_FILTER: &str = "warn,sqlx=error";

/// Who writes logs: a server tells what it does, a command only trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    Server,
    Command,
}

/// The secrets of the configuration that this process was started with.
static HIDDEN: RwLock<Option<SecretScan>> = RwLock::new(None);

/// From now on nothing that this process logs or prints shows one of these.
pub fn hide(secrets: &SecretScan) {
    *HIDDEN.write().unwrap_or_else(PoisonError::into_inner) = Some(secrets.clone());
}

/// The text without what `hide` was told; as it is before that.
pub fn masked(text: &str) -> String {
    match &*HIDDEN.read().unwrap_or_else(PoisonError::into_inner) {
        Some(secrets) => secrets.mask(text),
        None => text.to_owned(),
    }
}

/// Takes secrets out of what is written. Each write is one whole line, as tracing makes them.
#[derive(Debug)]
pub struct Masked<W>(pub W);

impl<W: Write> Write for Masked<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(masked(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Starts tracing to standard error. A second call changes nothing.
pub fn init(format: LogFormat, audience: Audience) {
    let default = match audience {
        Audience::Server => SERVER_FILTER,
        Audience::Command => COMMAND_FILTER,
    };
    let filter = FILTER_VARIABLES
        .iter()
        .find_map(|name| EnvFilter::try_from_env(name).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    let registry = tracing_subscriber::registry().with(filter);
    // Files and journals get no colours.
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(|| Masked(std::io::stderr()))
        .with_ansi(std::io::stderr().is_terminal());
    // A test or a caller that has set up tracing already keeps it.
    let _already_set = match format {
        LogFormat::Text => registry.with(layer.with_target(false)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric that this program writes.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub about: &'static str,
}

/// Deliveries answered, by `source` and `result`.
pub const WEBHOOKS: &str = "zeblit_webhooks_total";
/// Seconds from the headers of a delivery to its answer, by `source`.
pub const WEBHOOK_SECONDS: &str = "zeblit_webhook_seconds";
/// Open connections.
pub const CONNECTIONS: &str = "zeblit_http_connections";
/// People who follow a live log.
pub const LIVE_VIEWERS: &str = "zeblit_live_viewers";
/// Requests to the API, by `result`.
pub const API_REQUESTS: &str = "zeblit_api_requests_total";
/// Runs by `state`, read from the database at scrape.
pub const RUNS: &str = "zeblit_runs";
/// Effects by `state`, read from the database at scrape.
pub const EFFECTS: &str = "zeblit_effects";
/// Deliveries by `state`, read from the database at scrape.
pub const DELIVERIES: &str = "zeblit_deliveries";
/// Model requests that a provider did not accept, by `class`: quota, auth, overload, timeout, other.
pub const MODEL_TROUBLES: &str = "zeblit_model_troubles_total";
/// Runs that were put back into the queue because something passes by itself, by `class`: quota, model.
pub const RUN_RETRIES: &str = "zeblit_run_retries_total";
/// Agents' containers started, by `kind`: warm (entered while it waited), cold (made for its run).
pub const STARTS: &str = "zeblit_starts_total";
/// What is handled no more because workers died on it, by `what`: run, delivery.
pub const DEAD_LETTERS: &str = "zeblit_dead_letters_total";
/// Deliveries that the forge could not hand over, by `result`: found, asked, arrived, given_up.
pub const MISSED_DELIVERIES: &str = "zeblit_missed_deliveries_total";
/// Runs that were ended because nobody went on with them, by `state`.
pub const STUCK_RUNS: &str = "zeblit_stuck_runs_total";
/// Bytes of mirrors and seeds on this machine, as last counted.
pub const GIT_CACHE_BYTES: &str = "zeblit_git_cache_bytes";
/// Mirrors and seeds removed because they were not used for long or because of the disk budget, by `what`.
pub const GIT_EVICTIONS: &str = "zeblit_git_evictions_total";
/// 1 while the operator has paused everything.
pub const PAUSED: &str = "zeblit_paused";
/// 1 when the counts of this scrape were read from the database, else they are old.
pub const DATABASE_UP: &str = "zeblit_database_up";
/// Always 1; its `version` label is the program's.
pub const BUILD: &str = "zeblit_build_info";

/// Every metric, as described to Prometheus.
pub const METRICS: &[Metric] = &[
    Metric { name: WEBHOOKS, kind: MetricKind::Counter, about: "Deliveries answered, by source and result" },
    Metric {
        name: WEBHOOK_SECONDS,
        kind: MetricKind::Histogram,
        about: "Seconds from the headers of a delivery to its answer, by source",
    },
    Metric { name: CONNECTIONS, kind: MetricKind::Gauge, about: "Open HTTP connections" },
    Metric { name: LIVE_VIEWERS, kind: MetricKind::Gauge, about: "Open live logs" },
    Metric { name: API_REQUESTS, kind: MetricKind::Counter, about: "Requests to the API, by result" },
    Metric { name: RUNS, kind: MetricKind::Gauge, about: "Runs, by state" },
    Metric { name: EFFECTS, kind: MetricKind::Gauge, about: "Effects of the outbox, by state" },
    Metric { name: DELIVERIES, kind: MetricKind::Gauge, about: "Stored deliveries, by state" },
    Metric {
        name: MODEL_TROUBLES,
        kind: MetricKind::Counter,
        about: "Model requests that a provider did not accept, by class",
    },
    Metric {
        name: RUN_RETRIES,
        kind: MetricKind::Counter,
        about: "Runs put back into the queue until something passes, by class",
    },
    Metric { name: STARTS, kind: MetricKind::Counter, about: "Agents' containers started, by kind" },
    Metric {
        name: DEAD_LETTERS,
        kind: MetricKind::Counter,
        about: "Runs and deliveries given up because workers died on them",
    },
    Metric {
        name: MISSED_DELIVERIES,
        kind: MetricKind::Counter,
        about: "Deliveries that the forge could not hand over, by result",
    },
    Metric {
        name: STUCK_RUNS,
        kind: MetricKind::Counter,
        about: "Runs ended because nobody went on with them, by state",
    },
    Metric {
        name: GIT_CACHE_BYTES,
        kind: MetricKind::Gauge,
        about: "Bytes of mirrors and seeds on this machine",
    },
    Metric {
        name: GIT_EVICTIONS,
        kind: MetricKind::Counter,
        about: "Mirrors and seeds removed from this machine, by what it was",
    },
    Metric { name: PAUSED, kind: MetricKind::Gauge, about: "1 while the operator has paused everything" },
    Metric {
        name: DATABASE_UP,
        kind: MetricKind::Gauge,
        about: "1 when the counts of this scrape were read from the database",
    },
    Metric { name: BUILD, kind: MetricKind::Gauge, about: "The program's version, as a label" },
];

/// Upper bounds of histograms in seconds: from a fast disk to GitHub's own time limit of 10 s.
const SECONDS_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Tells the recorder what each metric is.
pub fn describe_all() {
    for metric in METRICS {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.about),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.about),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.about),
        }
    }
}

/// The recorder of this process, installed at the first call. It is global because the `metrics` facade is.
pub fn prometheus() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let builder = match PrometheusBuilder::new().set_buckets(SECONDS_BUCKETS) {
            Ok(builder) => builder,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "histograms have no buckets");
                PrometheusBuilder::new()
            }
        };
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::error!("another metrics recorder is installed: /metrics will be empty");
        }
        describe_all();
        handle
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_are_unique_and_say_their_unit_or_kind() {
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        for metric in METRICS {
            assert!(metric.name.starts_with("zeblit_"), "{}", metric.name);
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == MetricKind::Counter,
                "{}",
                metric.name
            );
            assert_eq!(
                metric.name.ends_with("_seconds"),
                metric.kind == MetricKind::Histogram,
                "{}",
                metric.name
            );
        }
    }

    #[test]
    fn what_is_counted_can_be_read_back() {
        let handle = prometheus();
        metrics::counter!(API_REQUESTS, "result" => "test").increment(2);
        assert!(handle.render().contains("zeblit_api_requests_total{result=\"test\"} 2"));
    }

    #[test]
    fn tracing_can_be_started_twice() {
        init(LogFormat::Text, Audience::Command);
        init(LogFormat::Json, Audience::Server);
    }
}
